// A process that is flooded; test/flood.test.ts starts it, with --expose-gc, and asks it things.
import { setTimeout as sleep } from 'node:timers/promises'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import { Registry } from 'prom-client'
import { wheel } from '../dist/esm/lib/wheel.js'
import hybridAuth from '../dist/esm/lib/index.js'

const { secret, sessionSecret, auth } = JSON.parse(process.env.FLOOD_SERVER_JSON)
const COLLECTIONS = 5

/** Timers that neither fired nor were cleared. Node itself tells of those alone that keep the process alive. */
const timers = new Set()
const { setTimeout: set, clearTimeout: clear } = globalThis
globalThis.setTimeout = (callback, ms, ...given) => {
  const timer = set(() => {
    timers.delete(timer)
    callback(...given)
  }, ms)
  timers.add(timer)
  return timer
}
globalThis.clearTimeout = timer => {
  timers.delete(timer)
  clear(timer)
}

const app = Fastify({ forceCloseConnections: true })
await app.register(cookie)
await app.register(session, { secret: sessionSecret, cookie: { secure: false }, saveUninitialized: false })
await app.register(websocket)
await app.register(hybridAuth, {
  ...auth,
  jwt: { key: secret, algorithms: ['HS256'] },
  session: { user: stored => stored.user ?? null },
  audit: ({ type }) => { events[type] = (events[type] ?? 0) + 1 }
})
const registry = new Registry()
app.hybridAuth.metrics(registry)

/** How often the application's function was told of each type. */
const events = {}

const echo = socket => {
  socket.on('message', data => { socket.send(data.toString()) })
}
app.get('/live', { websocket: true }, echo)
app.get('/first', { websocket: true, auth: { firstMessage: true } }, echo)
app.get('/me', { auth: true }, async request => request.auth)
app.post('/login', async request => {
  request.session.user = request.body
  return 'ok'
})
app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
app.get('/metrics', async (_request, reply) => {
  reply.header('content-type', registry.contentType)
  return registry.metrics()
})

const answers = {
  /** The bytes in use, once nothing more can be collected. */
  async memory () {
    let least = Infinity
    for (let i = 0; i < COLLECTIONS; i++) {
      await sleep(100)
      globalThis.gc()
      const { heapUsed, external } = process.memoryUsage()
      least = Math.min(least, heapUsed + external)
    }
    return least
  },
  /** What there is at the moment. */
  async state () {
    const connections = await new Promise((resolve, reject) => {
      app.server.getConnections((error, count) => { error ? reject(error) : resolve(count) })
    })
    return { sockets: app.hybridAuth.count(), connections, waiting: wheel.size, timers: timers.size }
  },
  /** The CPU time used so far, in seconds. */
  async cpu () {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1e6
  },
  /** Closes the application, and with the answer the last that keeps this process alive. */
  async close () {
    await app.close()
    const { sockets, waiting } = { sockets: app.hybridAuth.count(), waiting: wheel.size }
    return { sockets, waiting, timers: timers.size, events, metrics: await registry.metrics() }
  }
}

let isClosing = false
process.on('disconnect', () => { if (!isClosing) process.exit(1) })
process.on('message', ({ id, name }) => {
  answers[name]().then(answer => {
    isClosing = name === 'close'
    process.send({ id, answer }, () => { if (isClosing) process.disconnect() })
  }, error => { process.send({ id, error: error.stack }) })
})

await app.listen({ port: 0, host: '127.0.0.1', backlog: 4096 })
process.send({ port: app.server.address().port })
