// What the tests are held to: every file of the library, whichever test loads it.
import { readdirSync } from 'node:fs'

const files = readdirSync('lib', { recursive: true }).filter(name => name.endsWith('.ts')).map(name => `lib/${name}`)

export default () => files
