/** One process of the demo's cluster: what server.js builds, with what it keeps and what the plugin shares in Redis. */
import { RedisStore } from 'connect-redis'
import { redisCluster } from 'fastify-hybrid-auth/redis'
import { createClient } from 'redis'
import { printDecision } from './print.js'
import { redisRoles } from './roles.js'
import { buildDemo, derive, HOST } from './server.js'
import { exitInTime } from './stop.js'
import { redisStore } from './store.js'

const { REDIS_URL, DEMO_NAME, DEMO_SECRET, DEMO_TICKS, PORT } = process.env

const client = createClient({ url: REDIS_URL })
client.on('error', error => { console.error(DEMO_NAME, error.message) })
await client.connect()

const secret = Buffer.from(DEMO_SECRET, 'hex')
const { app, logins } = await buildDemo({
  audit: event => { printDecision(event, DEMO_NAME) },
  node: DEMO_NAME,
  secret,
  sessions: new RedisStore({ client, prefix: 'session:' }),
  store: redisStore(client),
  roles: redisRoles(client),
  isTicking: DEMO_TICKS === 'yes',
  cluster: redisCluster(client, { secret: derive(secret, 'cluster') })
})

const listening = app.listen({ host: HOST, port: Number(PORT) })
listening.then(
  () => { process.send({ origin: `http://${HOST}:${app.server.address().port}`, logins }) },
  error => {
    console.error(error.code === 'EADDRINUSE' ? `Port ${PORT} is taken. Try others: PORT=4000 npm run demo:cluster` : error.message)
    process.exitCode = 1
    close()
  })

let closed = null
process.on('SIGTERM', close)
process.on('disconnect', close)
// Ctrl+C comes here too. Who started this process says when it ends.
process.on('SIGINT', () => {})

function close () {
  if (closed === null) exitInTime()
  // Fastify goes on to listen where it is closed before it does.
  closed ??= listening.catch(() => {}).then(() => app.close()).then(() => {
    client.destroy()
    if (process.connected) process.disconnect()
  })
}
