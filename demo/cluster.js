/** The demo as a cluster: a Redis of its own and two processes. Run it with `npm run demo:cluster`. */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { clusterCommands } from './cluster-commands.js'
import { startRedis } from './redis.js'

const FIRST_PORT = Number(process.env.PORT || 3000)
const PORTS = FIRST_PORT === 0 ? [0, 0] : [FIRST_PORT, FIRST_PORT + 1]
const NODE = new URL('./node.js', import.meta.url)

const interrupted = new Promise(resolve => {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => { resolve('interrupted') })
})

await run()

async function run () {
  const redis = await startRedis().catch(error => {
    console.error(error.code === 'ENOENT'
      ? 'This needs redis-server, which is not installed. Without it: npm start'
      : error.message)
    process.exitCode = 1
  })
  if (redis === undefined) return

  const secret = randomBytes(32).toString('hex')
  const nodes = PORTS.map((port, i) =>
    startNode({ REDIS_URL: redis.url, DEMO_NAME: `node ${i + 1}`, DEMO_SECRET: secret, DEMO_TICKS: i === 0 ? 'yes' : 'no', PORT: String(port) }))
  const ended = Promise.race([redis, ...nodes].map(({ gone }) => gone)).then(() => 'ended')
  const listening = Promise.all(nodes.map(node => node.listening)).then(all => {
    explain(all, redis)
    return 'listening'
  })

  let outcome = await Promise.race([listening, ended, interrupted])
  if (outcome === 'listening') outcome = await Promise.race([ended, interrupted])
  if (outcome === 'ended') process.exitCode = 1
  await Promise.all(nodes.map(node => node.stop()))
  await redis.stop()
}

function startNode (env) {
  const child = fork(NODE, { env: { ...process.env, ...env } })
  const gone = new Promise(resolve => { child.once('exit', resolve) })
  return {
    gone,
    listening: new Promise(resolve => { child.once('message', resolve) }),
    stop () {
      child.kill()
      return gone
    }
  }
}

function explain (nodes, redis) {
  const origins = nodes.map(({ origin }) => origin)
  const [{ logins }] = nodes
  console.log(clusterCommands(origins, logins))
  console.log(`# Or open ${origins.map(origin => `${origin}/`).join(' and ')}, which share a session: sign in on one, and out on the other. As`)
  for (const { username, password, role } of logins) console.log(`#   ${username} ${password} (${role})`)
  console.log(`# What the nodes tell each other: redis-cli -p ${redis.port} monitor`)
  console.log('# Ctrl+C stops the nodes and Redis. What they decide from now on:\n')
}
