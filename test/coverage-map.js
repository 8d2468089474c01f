// What the tests are held to: every file of the library, whichever test loads it.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'

const NEEDS_REDIS = /^cluster\/(redis|answers)/
const hasRedis = spawnSync('redis-server', ['--version']).status === 0

const files = readdirSync('lib', { recursive: true })
  .filter(name => name.endsWith('.ts') && (hasRedis || !NEEDS_REDIS.test(name)))
  .map(name => `lib/${name}`)

export default () => files
