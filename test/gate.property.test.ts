/** The gate under chance: 10 000 messages, none lost, none out of order, none twice. */
import fc from 'fast-check'
import t from 'tap'
import type { MessageRule } from '../lib/index.js'
import { goodToken } from './helpers.js'
import { deferred } from './stores.js'
import { connectionOf, frame, Inbox, rawConnect, serveLive, textsOf, turn, type ServerSocket } from './wire.js'

const RUNS = 50
const MESSAGES = 200

/** What happens to one message on its way. */
const message = fc.record({
  /** 0: judged at once; else after so many turns of the loop; -1: after a microtask. */
  latency: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 2, arbitrary: fc.constant(-1) }, { weight: 2, arbitrary: fc.integer({ min: 1, max: 4 }) }),
  isRefused: fc.integer({ min: 0, max: 9 }).map(roll => roll === 0),
  size: fc.oneof({ weight: 8, arbitrary: fc.nat(200) }, { weight: 1, arbitrary: fc.integer({ min: 2000, max: 20_000 }) }),
  isBinary: fc.boolean(),
  fragments: fc.oneof({ weight: 4, arbitrary: fc.constant(1) }, { weight: 1, arbitrary: fc.integer({ min: 2, max: 4 }) }),
  /** What the client sends before it. */
  before: fc.oneof({ weight: 12, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: fc.constantFrom('refresh' as const, 'ping' as const) }),
  /** What the application does when it came: stops reading for so many turns. */
  pause: fc.oneof({ weight: 12, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.integer({ min: 1, max: 3 }) })
})
type Plan = typeof message extends fc.Arbitrary<infer T> ? T : never

const run = fc.record({
  plans: fc.array(message, { minLength: MESSAGES, maxLength: MESSAGES }),
  /** Where the bytes are cut, as sizes that repeat. */
  cuts: fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 100, max: 70_000 })), { minLength: 1, maxLength: 12 }),
  /** How many turns the handler waits before it listens. */
  listensAfter: fc.integer({ min: 0, max: 6 }),
  withHandshake: fc.boolean()
})

const textOf = (plan: Plan, at: number) => `${at}:${'x'.repeat(plan.size)}`
const numberOf = (text: string) => Number(text.slice(0, text.indexOf(':')))

function bytesOf (plan: Plan, at: number): Buffer {
  const payload = Buffer.from(textOf(plan, at))
  const step = Math.ceil(payload.length / plan.fragments)
  const parts = Array.from({ length: Math.ceil(payload.length / step) }, (_, part) =>
    frame(part > 0 ? 'continuation' : plan.isBinary ? 'binary' : 'text', payload.subarray(part * step, (part + 1) * step), { fin: (part + 1) * step >= payload.length }))
  const before = plan.before === 'refresh' ? [frame('text', JSON.stringify({ type: 'auth_update', token: goodToken() }))] : plan.before === 'ping' ? [frame('ping')] : []
  return Buffer.concat([...before, ...parts])
}

async function turns (count: number): Promise<void> {
  for (let i = 0; i < count; i++) await turn()
}

t.test('10 000 messages, judged at once and later, arrive once and in order, whatever the chunks, pauses and refreshes', async t => {
  t.ok(RUNS * MESSAGES >= 10_000)
  let plans: Plan[] = []
  let listensAfter = 0
  let heard = new Inbox<string>()
  let sockets = new Inbox<ServerSocket>()
  let judging = 0
  let overlapped = 0
  const versions = { last: 0, back: 0 }
  const authorize: MessageRule = (auth, message) => {
    const { latency = 0, isRefused = false } = plans[numberOf(message.text())] ?? {}
    if (judging > 0) overlapped++
    if (auth.version < versions.last) versions.back++
    versions.last = auth.version
    if (latency === 0) return !isRefused
    judging++
    const later = latency < 0 ? Promise.resolve() : turns(latency)
    return later.then(() => {
      judging--
      return !isRefused
    })
  }
  const { app, port } = await serveLive(t, {
    rule: { authorize, control: true },
    async handler (socket) {
      sockets.push(socket)
      await turns(listensAfter)
      socket.on('message', (data: Buffer, isBinary) => {
        const at = numberOf(data.toString())
        heard.push(plans[at]?.isBinary === isBinary && data.toString() === textOf(plans[at], at) ? String(at) : `garbled ${at}`)
        const pause = plans[at]?.pause ?? 0
        if (pause === 0) return
        socket.pause()
        turns(pause).then(() => { socket.resume() }, (error: unknown) => { t.threw(error) })
      })
    }
  })
  let total = 0
  await fc.assert(fc.asyncProperty(run, async ({ cuts, withHandshake, ...rest }) => {
    ;({ plans, listensAfter } = rest)
    heard = new Inbox()
    sockets = new Inbox()
    versions.last = 0
    const all = Buffer.concat(plans.map(bytesOf))
    const chunks: Buffer[] = []
    for (let at = 0, cut = 0; at < all.length; cut++) {
      const size = cuts[cut % cuts.length] ?? 1
      chunks.push(all.subarray(at, at + size))
      at += size
    }
    // Cuts of a few bytes all the way would take a turn for each.
    const [first = Buffer.alloc(0), ...others] = chunks.length > 1500 ? [all.subarray(0, 1000), all.subarray(1000, 1007), all.subarray(1007)] : chunks
    const peer = rawConnect(t, port, withHandshake ? { first } : {})
    const socket = await sockets.next()
    if (!withHandshake) peer.write(first)
    for (const chunk of others) {
      peer.write(chunk)
      await turn()
    }
    const expected = plans.flatMap(({ isRefused }, at) => isRefused ? [] : [String(at)])
    await heard.reach(expected.length)
    const connection = connectionOf(app, socket)
    const refreshes = plans.filter(({ before }) => before === 'refresh').length
    const answers = () => textsOf(peer.heard.all).filter(text => text.includes('auth_updated')).length
    const errors = () => textsOf(peer.heard.all).filter(text => text.includes('"error"')).length
    // The last may be refused ones, which only the client hears of.
    const isThrough = deferred<undefined>()
    const look = (): void => {
      if (answers() === refreshes && errors() === plans.length - expected.length) isThrough.resolve(undefined)
      else setImmediate(look)
    }
    look()
    await isThrough.promise
    if (JSON.stringify(heard.all) !== JSON.stringify(expected)) throw new Error(`heard ${heard.all.join()}`)
    if (connection.context.version !== 1 + refreshes) throw new Error(`version ${connection.context.version} after ${refreshes} refreshes`)
    if (connection.held !== null || connection.heldBytes !== 0 || connection.isJudging) throw new Error('something is still held')
    total += plans.length
    peer.net.destroy()
    await peer.closed
  }), { numRuns: RUNS, endOnFailure: true })
  t.equal(total, RUNS * MESSAGES)
  t.equal(overlapped, 0, 'one verdict at a time')
  t.equal(versions.back, 0, 'no verdict under an older version than the one before')
})
