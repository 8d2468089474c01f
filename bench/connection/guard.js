/**
 * The guard alone: frames are put where ws emits them, on sockets that are connected, so that what is measured is all that
 * happens to a message between ws and the application's listener. Runs in a process of its own, with --expose-gc and a
 * young generation that holds the garbage of a batch.
 */
import { once } from 'node:events'
import { randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import WebSocket from 'ws'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'
import { createApp } from './apps.js'

const BATCH = 25_000
const ROUNDS = 40
const WARM_UP = 10
// As many as are delivered before the loop turns: below the bound of what a connection holds.
const AT_ONCE = 16

const FRAME = Buffer.from('{"type":"chat","room":"lobby","text":"hello to everybody who is here"}')

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
      const { nanos, bytes } = await run(subjects[name], name === 'async' ? sendInParts : sendAll)
      if (round < 0) continue
      results[name].nanos.push(nanos)
      results[name].bytes.push(bytes)
    }
  }
  close()
  return results
}

async function run (subject, send) {
  globalThis.gc()
  subject.delivered = 0
  const before = process.memoryUsage().heapUsed
  const start = process.hrtime.bigint()
  await send(subject)
  const nanos = Number(process.hrtime.bigint() - start) / BATCH
  const bytes = (process.memoryUsage().heapUsed - before) / BATCH
  if (subject.delivered !== BATCH) throw new Error(`${subject.delivered} messages were delivered`)
  return { nanos, bytes }
}

function sendAll ({ socket }) {
  for (let i = 0; i < BATCH; i++) socket.emit('message', FRAME, false)
}

async function sendInParts (subject) {
  for (let sent = 0; sent < BATCH;) {
    for (let i = 0; i < AT_ONCE && sent < BATCH; i++, sent++) subject.socket.emit('message', FRAME, false)
    while (subject.delivered < sent) await null
  }
}

async function createSubjects () {
  const accepted = []
  const keep = socket => { accepted.push(socket) }
  const apps = { bare: await createApp('bare', secret, keep), ours: await createApp('ours', secret, keep) }
  const places = { bare: [apps.bare, '/none'], none: [apps.ours, '/none'], sync: [apps.ours, '/sync'], async: [apps.ours, '/async'] }
  const subjects = {}
  const clients = []
  for (const [name, [app, path]] of Object.entries(places)) {
    const client = new WebSocket(`ws://127.0.0.1:${app.server.address().port}${path}`, { headers: { authorization: `Bearer ${token}` } })
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
