/**
 * Rules by message type, beside the function that one would write: frames are put where ws emits them, as in
 * ../connection/guard.js. Runs in a process of its own, with --expose-gc and a young generation that holds the garbage of a batch.
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

const BATCH = 20_000
const ROUNDS = Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 10
const FRAME = Buffer.from('{"type":"chat","room":"lobby","text":"hello to everybody who is here"}')

/** The rules of the routes, by the last part of their path. */
const RULES = {
  none: {},
  parsed: { authorize: (auth, message) => message.json().type === 'chat' },
  written: { authorize: (auth, message) => message.json().type === 'chat' && auth.role === 'agent' },
  twin: { authorize: (auth, message) => message.json().type === 'chat' && auth.role === 'agent' },
  open: { messages: { chat: {} } },
  role: { messages: { chat: { role: 'agent' }, property_delete: { permissions: ['property:delete'] } } },
  permissions: { messages: { chat: { permissions: ['property:read', 'property:write'] } } },
  function: { messages: { chat: { role: 'agent' } }, authorize: auth => auth.userId !== null }
}

const secret = randomBytes(32).toString('base64url')
const token = createIssuer('HS256', secret)()

answerRequests({ measure })

/** @returns nanoseconds of CPU time per message of every round, by name */
async function measure () {
  const { subjects, close } = await createSubjects()
  const names = Object.keys(subjects)
  const nanos = Object.fromEntries(names.map(name => [name, []]))
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round + WARM_UP) % names.length]
      const taken = run(subjects[name])
      if (round >= 0) nanos[name].push(taken)
    }
  }
  close()
  return nanos
}

function run (subject) {
  const { socket } = subject
  globalThis.gc({ type: 'minor' })
  subject.delivered = 0
  const before = process.cpuUsage()
  for (let i = 0; i < BATCH; i++) socket.emit('message', FRAME, false)
  const { user, system } = process.cpuUsage(before)
  if (subject.delivered !== BATCH) throw new Error(`${subject.delivered} messages were delivered`)
  return (user + system) * 1000 / BATCH
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
