/**
 * What a rate limit adds to a message: frames are put where ws emits them, as in ../connection/guard.js. Runs in a process of its
 * own, with --expose-gc and a young generation that holds the garbage of a batch.
 */
import { once } from 'node:events'
import { randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import WebSocket from 'ws'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'

const BATCH = 25_000
const ROUNDS = Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 10
const FRAME = Buffer.from('{"type":"chat","room":"lobby","text":"hello to everybody who is here"}')

// More than is ever sent, and a part of it comes back with each reading of the clock, as with any.
const messages = { capacity: 1e9, refillPerSecond: 1e6 }
const bytes = { capacity: 1e9, refillPerSecond: 1e8 }

/** The rules of the routes, by the last part of their path. */
const RULES = {
  none: {},
  twin: {},
  messages: { rate: messages },
  'messages-bytes': { rate: { ...messages, bytes } },
  user: { rate: { perUser: messages } },
  'messages-user': { rate: { ...messages, perUser: messages } },
  all: { rate: { ...messages, bytes, perUser: { ...messages, bytes } } }
}

const secret = randomBytes(32).toString('base64url')
const token = createIssuer('HS256', secret)()

answerRequests({ measure })

/** @returns nanoseconds and bytes per message of every round, by name */
async function measure () {
  const { subjects, close } = await createSubjects()
  const names = Object.keys(subjects)
  const results = Object.fromEntries(names.map(name => [name, { nanos: [], bytes: [] }]))
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round + WARM_UP) % names.length]
      const { nanos, bytes } = run(subjects[name])
      if (round < 0) continue
      results[name].nanos.push(nanos)
      results[name].bytes.push(bytes)
    }
  }
  close()
  return results
}

function run (subject) {
  const { socket } = subject
  globalThis.gc()
  subject.delivered = 0
  const before = process.memoryUsage().heapUsed
  const start = process.hrtime.bigint()
  for (let i = 0; i < BATCH; i++) socket.emit('message', FRAME, false)
  const nanos = Number(process.hrtime.bigint() - start) / BATCH
  const bytes = (process.memoryUsage().heapUsed - before) / BATCH
  if (subject.delivered !== BATCH) throw new Error(`${subject.delivered} messages were delivered`)
  return { nanos, bytes }
}

async function createSubjects () {
  const app = Fastify()
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: { key: secret, algorithms: ['HS256'] }, heartbeat: false })
  const accepted = []
  for (const [name, auth] of Object.entries(RULES)) app.get(`/${name}`, { websocket: true, auth }, socket => { accepted.push(socket) })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const clients = []
  const subjects = {}
  for (const name of Object.keys(RULES)) {
    const client = new WebSocket(`ws://127.0.0.1:${app.server.address().port}/${name}`, { headers: { authorization: `Bearer ${token}` } })
    await once(client, 'open')
    clients.push(client)
    subjects[name] = createSubject(accepted.at(-1))
  }
  // The guard delivers from the turn after the listener on.
  await setImmediate()
  return { subjects, close: () => { for (const client of clients) client.terminate() } }
}

function createSubject (socket) {
  const subject = { socket, delivered: 0 }
  socket.on('message', () => { subject.delivered++ })
  return subject
}
