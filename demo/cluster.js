/** The demo as a cluster: a Redis of its own, two processes, and one page in front of both. Run it with `npm run demo:cluster`. */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { startBalancer } from './balancer.js'
import { clusterCommands } from './cluster-commands.js'
import { loginLines } from './print.js'
import { startRedis } from './redis.js'
import { stopInTime } from './stop.js'

const HOST = '127.0.0.1'
const PORT = Number(process.env.PORT || 3000)
const PORTS = PORT === 0 ? [0, 0] : [PORT + 1, PORT + 2]
const NODE = new URL('./node.js', import.meta.url)

const interrupted = new Promise(resolve => {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => { resolve('interrupted') })
})

let balancer = null

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
  const listening = Promise.all(nodes.map(node => node.listening)).then(all => present(all, redis))

  let outcome = await Promise.race([listening, ended, interrupted])
  if (outcome === 'listening') outcome = await Promise.race([ended, interrupted])
  if (outcome !== 'interrupted') process.exitCode = 1
  await Promise.all(nodes.map(node => node.stop()))
  balancer?.stop()
  await redis.stop()
}

/** One page for all nodes. What it says otherwise is why not. */
async function present (nodes, redis) {
  try {
    balancer = await startBalancer({ host: HOST, port: PORT, ports: nodes.map(({ origin }) => Number(new URL(origin).port)) })
  } catch (error) {
    console.error(error.code === 'EADDRINUSE' ? `Port ${PORT} is taken. Try others: PORT=4000 npm run demo:cluster` : error.message)
    return 'not listening'
  }
  explain(nodes, balancer, redis)
  return 'listening'
}

function startNode (env) {
  const child = fork(NODE, { env: { ...process.env, ...env } })
  const gone = new Promise(resolve => { child.once('exit', resolve) })
  return {
    gone,
    listening: new Promise(resolve => { child.once('message', resolve) }),
    stop: () => stopInTime(child, gone)
  }
}

function explain ([first, second], { port }, redis) {
  console.log(clusterCommands([first.origin, second.origin], first.logins))
  console.log(`# Or open http://${HOST}:${port}/, which is one page on both nodes: its connections go to them in turn. Sign in as`)
  console.log(loginLines(first.logins))
  console.log(`# The nodes by themselves: ${first.origin} and ${second.origin}`)
  console.log(`# What the nodes tell each other: redis-cli -p ${redis.port} monitor`)
  console.log('# Ctrl+C stops the nodes and Redis. What they decide from now on:\n')
}
