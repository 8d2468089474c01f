/** How much may come: buckets against exact arithmetic, every limit at its edge, one below and one above, and nodes that count together. */
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { Registry } from 'prom-client'
import type { AuditEvent, HybridAuthOptions, MessageRule, RouteAuth, RouteRule } from '../lib/index.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { Bucket, BucketTable, type Rate } from '../lib/policy/bucket.js'
import { MessageRate } from '../lib/policy/rates.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { intercepted, redisNode, SHORT } from './cluster-suite.js'
import { build, goodToken, inSeconds } from './helpers.js'
import { dial, eventually, HOUR, live, setClock, type Dial, type Live, type Pair, type Peer } from './live.js'
import { needsRedis, startRedis } from './redis.js'
import { driverOf, updateOf } from './revoking.js'
import { deferred, type Deferred } from './stores.js'
import { authFrame, connected, Inbox, turn } from './wire.js'

type RateRule = NonNullable<RouteRule['rate']>

/** Nothing comes back while a test runs. */
const NEVER = 0.001

const tokenOf = (sub: string, changes: Record<string, unknown> = {}) => goodToken({ sub, exp: inSeconds(1e6), ...changes })

interface RatedOptions {
  rule?: RouteRule
  auth?: Partial<HybridAuthOptions>
  more?: RateRule
}

/** A server whose clock stands until it is moved. */
async function rated (t: Test, rate: RateRule, { rule = {}, auth = {}, more = rate }: RatedOptions = {}) {
  const clock = setClock(t)
  clock.freeze()
  const server = await live(t, {
    route: { rate, ...rule },
    auth: { heartbeat: false, ...auth },
    routes (app) {
      app.get('/other', { websocket: true, auth: { rate: more } }, socket => { socket.on('message', (data: Buffer) => { socket.send(data) }) })
    }
  })
  const events: AuditEvent[] = []
  for (const type of ['limited', 'closed', 'refreshed', 'message_refused'] as const) server.app.hybridAuth.events.on(type, (event: AuditEvent) => { events.push(event) })
  return { ...server, clock, events, limited: () => events.filter(({ type }) => type === 'limited').length }
}

const as = (sub: string, how: Dial = {}, changes: Record<string, unknown> = {}): Dial => ({ token: tokenOf(sub, changes), ...how })

/** Until the server has read all that was sent before, or the socket ended. */
async function settled ({ socket, end }: Peer): Promise<void> {
  socket.ping()
  await Promise.race([once(socket, 'pong'), end])
}

/** What of it reached the application. */
async function send ({ peer, there }: Pair, ...messages: Array<string | Buffer>): Promise<string[]> {
  const before = there.received.length
  for (const one of messages) peer.socket.send(one)
  await settled(peer)
  return there.received.slice(before)
}

const waits = ({ peer }: Pair) => peer.framesOf('error').map(({ code, retryAfterMs }) => code === 'rate_limited' ? retryAfterMs : code)
const reasonOf = async ({ peer }: Pair) => {
  const { code, reason } = await peer.end
  const parsed: unknown = JSON.parse(reason)
  return [code, parsed]
}
const of = (length: number) => 'x'.repeat(length)
const times = (count: number, text = 'x') => Array.from({ length: count }, () => text)

/** Token buckets without fractions: a millionth of a token is the unit, and a rate is so many of them a millisecond. */
class ExactBucket {
  static readonly #UNIT = 1e6
  readonly #full: number
  readonly #refill: number
  #units: number
  #at = 0

  constructor (capacity: number, refill: number) {
    this.#full = capacity * ExactBucket.#UNIT
    this.#refill = refill
    this.#units = this.#full
  }

  wait (cost: number, time: number): number {
    this.#units = Math.min(this.#full, this.#units + Math.max(0, time - this.#at) * this.#refill)
    this.#at = time
    const units = cost * ExactBucket.#UNIT
    if (this.#units >= units) return 0
    return units > this.#full ? Infinity : Math.ceil((units - this.#units) / this.#refill)
  }

  take (cost: number): void {
    this.#units -= cost * ExactBucket.#UNIT
  }
}

const capacity = fc.integer({ min: 1, max: 100 })
/** A thousandth a second. */
const refill = fc.oneof(fc.integer({ min: 1, max: 3_000_000 }), fc.constantFrom(100, 1000, 10_000, 100_000, 1_500_000))
const step = fc.record({ after: fc.oneof(fc.nat(5), fc.nat(20_000), fc.integer({ min: -5000, max: 5000 })), cost: fc.integer({ min: 0, max: 120 }) })

t.test('a bucket says what exact arithmetic says, whatever is taken, and wherever the clock is set', async () => {
  fc.assert(fc.property(capacity, refill, fc.array(step, { minLength: 1, maxLength: 60 }), (capacity, refill, steps) => {
    const bucket = new Bucket({ capacity, refillPerSecond: refill / 1000 }, 0)
    const exact = new ExactBucket(capacity, refill)
    let time = 0
    for (const { after, cost } of steps) {
      time += after
      const [told, expected] = [bucket.wait(cost, time), exact.wait(cost, time)]
      // A millisecond more is what rounding may cost; to pass or not to pass is exact.
      if ((told === 0) !== (expected === 0) || Math.abs(told - expected) > 1) throw new Error(`told to wait ${told}, and it is ${expected}`)
      if (told > 0) continue
      bucket.take(cost)
      exact.take(cost)
    }
  }), { numRuns: 3000 })
})

t.test('what a bucket tells to wait is true: then it passes, one millisecond before it does not, and asking meanwhile changes nothing', async () => {
  fc.assert(fc.property(capacity, refill, fc.array(step, { minLength: 1, maxLength: 30 }), fc.nat(20), (capacity, refill, steps, polls) => {
    const bucket = new Bucket({ capacity, refillPerSecond: refill / 1000 }, 0)
    let time = 0
    for (const { after, cost } of steps) {
      time += Math.abs(after)
      const part = Math.min(cost, capacity)
      const wait = bucket.wait(part, time)
      const asked = wait === 0 ? [] : [...Array.from({ length: polls }, (_, n) => Math.floor((wait - 1) * n / polls)), wait - 1]
      for (const later of asked) if (bucket.wait(part, time + later) === 0) throw new Error(`told to wait ${wait}, and ${later} would have done`)
      time += wait
      if (bucket.wait(part, time) !== 0) throw new Error(`told to wait ${wait}, and refused then`)
      bucket.take(part)
    }
  }), { numRuns: 2000 })
})

t.test('a rate is what it says, within one percent, however often the bucket is asked', async t => {
  for (const refillPerSecond of [0.1, 1 / 3, 7, 1500, 3000]) {
    const per = Math.max(1, Math.ceil(1 / refillPerSecond))
    for (const every of [1, 3, 7.3 * per, 333]) {
      const capacity = 10 + 2 * refillPerSecond * every / 1000
      const bucket = new Bucket({ capacity, refillPerSecond }, 0)
      const seconds = 1000 * per
      let passed = -capacity
      for (let time = 0; time <= seconds * 1000; time += every) {
        for (; bucket.wait(1, Math.floor(time)) === 0; passed++) bucket.take(1)
      }
      t.ok(Math.abs(passed / (refillPerSecond * seconds) - 1) <= 0.01, `${refillPerSecond} a second, asked every ${every} ms: ${passed} in ${seconds} s`)
    }
  }
})

t.test('what costs nothing passes, however little is left', async t => {
  const bucket = new Bucket({ capacity: 1, refillPerSecond: 100 }, 0)
  bucket.take(1)
  t.equal(bucket.wait(0, 0), 0)
  for (let time = 1; time < 10; time++) bucket.wait(1, time)
  t.equal(bucket.wait(1, 10), 0)
  bucket.take(1)
  t.equal(bucket.wait(0, 10), 0)
})

t.test('a clock that is set back gives nothing and takes nothing, and the bucket fills from there', async t => {
  const bucket = new Bucket({ capacity: 2, refillPerSecond: 1 }, HOUR)
  bucket.take(2)
  t.equal(bucket.wait(1, 0), 1000)
  t.equal(bucket.wait(1, 999), 1)
  t.equal(bucket.wait(1, 1000), 0)
  bucket.take(1)
  t.equal(bucket.wait(2, 10 * HOUR), 0, 'set forward it is full, and no fuller')
  t.equal(bucket.wait(3, 20 * HOUR), Infinity)
  t.ok(bucket.isFull(20 * HOUR))
})

t.test('a table of buckets gives what a bucket for each name would, takes from all or none, and holds no more than it may', async () => {
  const debit = fc.record({ key: fc.nat(12), cost: fc.integer({ min: 1, max: 4 }) })
  const spend = fc.record({ after: fc.nat(20), debits: fc.uniqueArray(debit, { minLength: 1, maxLength: 3, selector: ({ key }) => key }) })
  fc.assert(fc.property(fc.constantFrom(4, 7, 26, 1000), fc.array(spend, { maxLength: 80 }), (max, spends) => {
    const rate: Rate = { capacity: 4, refillPerSecond: 125 }
    let time = 0
    const table = new BucketTable(max, () => time)
    const naive = new Map<number, ExactBucket>()
    for (const { after, debits } of spends) {
      time += after
      const all = debits.map(({ key, cost }) => {
        const bucket = naive.get(key) ?? new ExactBucket(4, 125_000)
        naive.set(key, bucket)
        return { bucket, cost, wait: bucket.wait(cost, time) }
      })
      const expected = Math.max(...all.map(({ wait }) => wait))
      const told = table.spend(debits.map(({ key, cost }) => ({ key: String(key), rate, cost })))
      if (table.size > max) throw new Error(`${table.size} are kept`)
      // One that had to go for another is full when it comes back.
      if (max < 26) continue
      if (told !== expected) throw new Error(`told to wait ${told}, and it is ${expected}`)
      for (const { bucket, cost } of told === 0 ? all : []) bucket.take(cost)
    }
    table.stop()
  }), { numRuns: 2000 })
})

t.test('200 000 names leave no more buckets than there may be, the newer half is remembered, and a sweep leaves those that are not full', async t => {
  const MAX = 10_000
  const rate: Rate = { capacity: 1, refillPerSecond: 1 }
  const sweepers = new Set<Wheeled>()
  const schedule = wheel.schedule.bind(wheel)
  t.teardown(() => { wheel.schedule = schedule })
  wheel.schedule = one => { sweepers.add(one) }
  let time = 0
  const table = new BucketTable(MAX, () => time)
  const spend = (name: string) => table.spend([{ key: name, rate, cost: 1 }])
  for (let n = 0; n < 200_000; n++) {
    if (spend(`name-${n}`) !== 0) t.fail(`${n} was never seen`)
    if (table.size > MAX) t.fail(`${table.size} are kept`)
  }
  for (let n = 200_000 - MAX / 2; n < 200_000; n++) if (spend(`name-${n}`) !== 1000) t.fail(`${n} is forgotten`)
  const { size } = table
  time = 999
  for (const sweeper of sweepers) sweeper.look()
  t.equal(table.size, size)
  t.equal(spend('new'), 0)
  time = 1000
  for (const sweeper of sweepers) sweeper.look()
  t.equal(table.size, 1, 'the rest is as if it never had been')
  t.equal(spend('name-199999'), 0)
  t.equal(sweepers.size, 1)
  table.stop()
})

t.test('messages: one below and at the limit pass, one above is told how long to wait, and that is true to the millisecond', async t => {
  const asked: string[] = []
  const authorize: MessageRule = (_auth, message) => asked.push(message.text()) > 0
  const server = await rated(t, { capacity: 3, refillPerSecond: 2 }, { rule: { authorize } })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, '1', '2'), ['1', '2'], 'below')
  t.same(await send(pair, '3'), ['3'], 'at the limit')
  t.same(await send(pair, '4'), [], 'above')
  t.same(pair.peer.framesOf('error'), [{ type: 'error', code: 'rate_limited', message: 'Too much came in too short a time', action: 'retry', retryAfterMs: 500 }])
  server.clock.move(499)
  t.same(await send(pair, '5'), [], 'one millisecond before')
  server.clock.move(1)
  t.same(await send(pair, '6', '7'), ['6'])
  t.same(waits(pair), [500, 1, 500])
  server.clock.move(HOUR)
  t.same(await send(pair, 'a', 'b', 'c', 'd'), ['a', 'b', 'c'], 'full, and no fuller')
  t.same(asked, ['1', '2', '3', '6', 'a', 'b', 'c'], 'authorize is asked about nothing else')
})

t.test('bytes: counted as they come over the wire; what is larger than the bucket never passes, what is empty always', async t => {
  const server = await rated(t, { bytes: { capacity: 10, refillPerSecond: 4 } })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, of(9)), [of(9)], 'below')
  t.same(await send(pair, 'y'), ['y'], 'at the limit')
  t.same(await send(pair, 'z', ''), [''], 'above')
  server.clock.move(1000)
  t.same(await send(pair, '€', 'é'), ['€'], 'three bytes of four, and two of one')
  t.same(waits(pair), [250, 250])
  server.clock.move(HOUR)
  for (const tooLarge of [of(11), Buffer.alloc(5000, 'x')]) t.same(await send(pair, tooLarge), [], `${tooLarge.length} bytes`)
  t.same(pair.peer.framesOf('error').slice(2), [1, 2].map(() => ({ type: 'error', code: 'too_large', message: 'This message is larger than any may be', action: 'none' })))
  t.same(await send(pair, Buffer.alloc(10, 'x')), [of(10)], 'which took nothing, and binary frames count the same')
  t.same(await send(pair, Buffer.from('x')), [])
})

t.test('messages and bytes together: what one refuses takes nothing of the other', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: 1, bytes: { capacity: 10, refillPerSecond: 2 } })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, of(8), of(8), of(8)), [of(8)])
  t.same(await send(pair, of(2)), [of(2)], 'a message and two bytes were left')
  t.same(await send(pair, of(2)), [])
  t.same(waits(pair), [3000, 3000, 1000])
  server.clock.move(1000)
  t.same(await send(pair, 'a', 'b'), ['a'], 'one message, two bytes')
  server.clock.move(1000)
  t.same(await send(pair, of(3)), [of(3)], 'one byte was left')
})

t.test('who keeps on with what is too large is closed with 4008 like anybody, and told a time that is one', async t => {
  for (const rate of [{ bytes: { capacity: 10, refillPerSecond: 4 } }, { perUser: { bytes: { capacity: 10, refillPerSecond: 4 }, shared: true } }]) {
    const server = await rated(t, rate)
    const pair = await server.open(as('alice'))
    t.same(await send(pair, ...times(9, of(11)), 'x'), ['x'])
    await send(pair, of(11))
    t.same(await reasonOf(pair), [4008, { code: 'rate_limited', action: 'retry', retryAfterMs: 5000 }])
  }
})

t.test('a fragmented message is one message of all its bytes, and pings are none', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: 1, bytes: { capacity: 6, refillPerSecond: 1 } })
  const pair = await server.open(as('alice'))
  for (const [part, fin] of [['ab', false], ['cd', false], ['ef', true]] as const) pair.peer.socket.send(part, { fin })
  for (let n = 0; n < 20; n++) await settled(pair.peer)
  t.same(pair.there.received, ['abcdef'])
  t.same(await send(pair, 'x'), [], 'no byte is left')
  t.same(await send(pair, ''), [''], 'and one message was')
})

t.test('perUser: all sockets of a user on a route share it, other users, tenants and routes do not, and coming back does not fill it', async t => {
  for (const [perUser, text] of [[{ capacity: 3, refillPerSecond: 1 }, 'x'], [{ bytes: { capacity: 30, refillPerSecond: 10 } }, of(10)]] as const) {
    await t.test(JSON.stringify(perUser), async t => {
      const server = await rated(t, { perUser })
      const [a, b] = [await server.open(as('alice')), await server.open(as('alice'))]
      t.equal((await send(a, text, text)).length, 2, 'below')
      t.equal((await send(b, text, text)).length, 1, 'at the limit, and above')
      t.equal((await send(a, text)).length, 0)
      for (const other of [as('bob'), as('alice', {}, { companyId: 'acme' }), as('["alice"]')]) {
        t.equal((await send(await server.open(other), ...times(4, text))).length, 3, 'somebody else')
      }
      const elsewhere = await dial(t, server.host, as('alice', { path: '/other' }))
      for (let n = 0; n < 4; n++) elsewhere.say(text)
      await settled(elsewhere)
      t.equal(elsewhere.texts.length, 3, 'another route')
      a.peer.socket.close()
      b.peer.socket.terminate()
      await Promise.all([a.there.closed, b.there.closed])
      const again = await server.open(as('alice'))
      t.equal((await send(again, text)).length, 0, 'after all of them have gone')
      server.clock.move(1000)
      t.equal((await send(again, text, text)).length, 1)
    })
  }
})

t.test('perUser beside the rate of each socket: both hold, and what one refuses takes nothing of the other', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: NEVER, perUser: { capacity: 3, refillPerSecond: 10 } })
  const [a, b] = [await server.open(as('alice', { speaks: true })), await server.open(as('alice', { speaks: true }))]
  t.equal((await send(a, ...times(5))).length, 2, 'the socket is at its limit')
  t.equal((await send(b, ...times(5))).length, 1, 'the user is')
  t.same(new Set(waits(b)), new Set([100]))
  server.clock.move(100)
  t.equal((await send(b, ...times(2))).length, 1, 'of the socket nothing was taken meanwhile')
})

t.test('a session and a token of one user share a rate', async t => {
  const server = await rated(t, { perUser: { capacity: 2, refillPerSecond: 1 } })
  const cookie = await server.login({ userId: 'alice' })
  t.equal((await send(await server.open({ cookie }), 'x', 'x', 'x')).length, 2)
  t.equal((await send(await server.open(as('alice')), 'x')).length, 0)
})

for (const [name, rate, full, allowed] of [
  ['as many refusals as the bucket has messages', { capacity: 30, refillPerSecond: 2 }, 30, 30],
  ['ten of a small bucket', { capacity: 3, refillPerSecond: 2 }, 3, 10],
  ['ten of a bucket of bytes', { bytes: { capacity: 3, refillPerSecond: 2 } }, 3, 10],
  ['as many as a user has messages', { perUser: { capacity: 12, refillPerSecond: 2 } }, 12, 12]
] as const satisfies ReadonlyArray<readonly [string, RateRule, number, number]>) {
  t.test(`who keeps on is closed with 4008 after ${name}, and not one before; after a pause it begins anew`, async t => {
    const server = await rated(t, rate)
    const pair = await server.open(as('alice'))
    const speaker = await server.open(as('bob', { speaks: true }))
    for (const one of [pair, speaker]) t.equal((await send(one, ...times(full + allowed - 1))).length, full)
    t.notOk(pair.peer.hasEnded || speaker.peer.hasEnded)
    server.clock.move(2 * full * 500 + 1)
    t.equal((await send(pair, ...times(full + allowed - 1))).length, full, 'forgiven')
    t.notOk(pair.peer.hasEnded)
    await send(pair, 'x', 'x')
    t.same(await reasonOf(pair), [4008, { code: 'rate_limited', action: 'retry', retryAfterMs: 500 }])
    t.equal(pair.peer.framesOf('error').length + pair.peer.framesOf('bye').length, 0, 'who does not speak the protocol gets no frame')
    t.equal(server.limited(), 3, 'one event for each that began')
  })
}

t.test('who speaks the protocol is told by each frame, and by bye before 4008', async t => {
  const server = await rated(t, { capacity: 1, refillPerSecond: 4 })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, ...times(15)), ['x'])
  t.same(await reasonOf(pair), [4008, { code: 'rate_limited', action: 'retry', retryAfterMs: 250 }])
  t.same(waits(pair), Array.from({ length: 9 }, () => 250))
  t.same(pair.peer.framesOf('bye'), [{ type: 'bye', code: 'rate_limited', action: 'retry', retryAfterMs: 250 }])
  await pair.there.closed
  t.same([pair.there.closes, pair.there.socketCloses], [[4008], [4008]])
})

t.test('one event for each episode, and every refusal in the metrics', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: 1 })
  const registry = new Registry()
  server.app.hybridAuth.metrics(registry)
  const pair = await server.open(as('alice'))
  await send(pair, ...times(6))
  t.match(server.events, [{ type: 'limited', code: 'FST_HYBRID_AUTH_RATE_LIMITED', enforced: true, userId: 'alice', connectionId: pair.there.connection.id, route: '/app', websocket: true }])
  server.clock.move(1000)
  t.same(await send(pair, 'a', 'b'), ['a'])
  t.equal(server.limited(), 1, 'it went on')
  server.clock.move(4001)
  await send(pair, 'a', 'b')
  t.equal(server.limited(), 1, 'nothing was refused')
  await send(pair, 'c', 'd')
  t.equal(server.limited(), 2, 'and another began')
  t.match(await registry.getSingleMetricAsString('hybrid_auth_limited_total'), 'hybrid_auth_limited_total{limit="rate",enforced="true"} 7')
})

t.test('a client at 0.9 of the rate is never refused, one at twice the rate is closed', async t => {
  const server = await rated(t, { capacity: 20, refillPerSecond: 10 })
  const good = await server.open(as('alice'))
  for (let n = 0; n < 300; n++) {
    server.clock.move(112)
    await send(good, 'x')
  }
  t.equal(good.there.received.length, 300)
  t.equal(server.limited(), 0)
  const bad = await server.open(as('bob'))
  let sent = 0
  for (; sent < 1000 && !bad.peer.hasEnded; sent++) {
    server.clock.move(50)
    await send(bad, 'x')
  }
  t.match(await reasonOf(bad), [4008, { code: 'rate_limited' }])
  t.ok(sent <= 2 * (20 + 20) + 2, `after ${sent} messages`)
  t.equal(server.limited(), 1)
})

t.test('of whatever rate: at 0.9 nothing is refused, at twice it, more or less evenly, the end comes', async () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 60 }), fc.constantFrom(0.1, 1, 3, 7, 10, 150, 1500), fc.array(fc.integer({ min: -2, max: 2 }), { minLength: 1, maxLength: 9 }), (more, refillPerSecond, jitter) => {
    // A clock that knows no part of a millisecond needs room for what comes in one.
    const capacity = more + Math.floor(refillPerSecond / 1000)
    const parts = { users: new BucketTable(10, () => 0), cluster: { spend: () => 0 } }
    const [slow, fast] = [0, 1].map(() => new MessageRate({ messages: { capacity, refillPerSecond }, bytes: null, perUser: null }, parts, 'alice', 0))
    if (slow === undefined || fast === undefined) return
    for (let n = 0; n < 500; n++) if (slow.spend(1, Math.ceil(n * 1000 / (0.9 * refillPerSecond))) !== 0) throw new Error(`refused at ${n}`)
    let time = 0
    for (let n = 0; n <= 4 * (capacity + 10); n++) {
      time = Math.max(time, Math.floor(n * 1000 / (2 * refillPerSecond)) + (jitter[n % jitter.length] ?? 0))
      if (fast.spend(1, time) !== 0) fast.refuse(time)
      if (fast.isPersistent) return
    }
    throw new Error('it went on for ever')
  }), { numRuns: 500 })
})

t.test('frames of ours count as well: a refused auth_update is not verified, and whoever does not speak hears nothing of it', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: 1 })
  const refreshed = () => server.events.filter(({ type }) => type === 'refreshed').length
  const pair = await server.open(as('alice', { speaks: true }))
  pair.peer.say(updateOf(tokenOf('alice')))
  await pair.peer.takeFrame('auth_updated')
  t.same(await send(pair, 'x', JSON.stringify(updateOf(tokenOf('mallory'))), JSON.stringify({ type: 'auth_update' })), ['x'])
  t.same(waits(pair), [1000, 1000])
  t.notOk(pair.peer.hasEnded, 'whom it names was not asked')
  server.clock.move(1000)
  pair.peer.say(updateOf(tokenOf('alice')))
  await pair.peer.takeFrame('auth_updated')
  t.equal(refreshed(), 2)
  const silent = await server.open(as('bob'))
  await send(silent, 'a', 'b', JSON.stringify(updateOf(tokenOf('bob'))))
  t.same(silent.peer.texts, ['a', 'b'])
})

t.test('with an asynchronous authorize: it is asked about nothing that was refused, and the rest keeps its order', async t => {
  const asked: string[] = []
  const verdicts = new Inbox<Deferred<boolean>>()
  const authorize: MessageRule = async (_auth, message) => {
    asked.push(message.text())
    const verdict = deferred<boolean>()
    verdicts.push(verdict)
    return verdict.promise
  }
  const server = await rated(t, { capacity: 5, refillPerSecond: 1 }, { rule: { authorize } })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, '1', '2', '3', '4', '5', '6', '7'), [])
  t.same(waits(pair), [1000, 1000], 'who is refused need not wait for the others')
  server.clock.move(1000)
  await send(pair, '8', '9')
  for (let n = 1; n <= 6; n++) (await verdicts.reach(n))[n - 1]?.resolve(n !== 2)
  await eventually('all are there', () => pair.there.received.length === 5)
  t.same(pair.there.received, ['1', '3', '4', '5', '8'])
  t.same(asked, ['1', '2', '3', '4', '5', '8'])
})

t.test('the clock is set back and forward under open sockets: nobody is locked out, and nobody gets more than a bucket', async t => {
  const server = await rated(t, { capacity: 2, refillPerSecond: 1, perUser: { capacity: 4, refillPerSecond: 2 } })
  const pair = await server.open(as('alice'))
  t.equal((await send(pair, ...times(3))).length, 2)
  server.clock.move(-HOUR)
  t.equal((await send(pair, 'x')).length, 0)
  server.clock.move(1000)
  t.equal((await send(pair, 'x', 'x')).length, 1)
  server.clock.move(2 * HOUR)
  t.equal((await send(pair, ...times(5))).length, 2)
})

t.test('a socket that brings its credential as the first message has its rate from then on', async t => {
  const server = await rated(t, { capacity: 3, refillPerSecond: 1 }, { rule: { firstMessage: true } })
  const first = async (...before: string[]) => {
    const peer = await connected(t, server.host, { path: '/app', token: null })
    peer.send(...before, authFrame(tokenOf('alice')))
    t.match(JSON.parse(await peer.heard.next()), { type: 'auth_success' })
    return peer
  }
  const peer = await first()
  peer.send(...times(5))
  await peer.settled()
  t.same(peer.heard.all.slice(1, 4), times(3))
  t.match(peer.heard.all.slice(4).map(text => JSON.parse(text) as unknown), [{ code: 'rate_limited', retryAfterMs: 1000 }, { code: 'rate_limited' }])
  const eager = await first(...times(10))
  await eager.settled()
  t.ok(eager.heard.all.filter(text => text === 'x').length <= 3, 'what came before the credential counts too')
})

t.test('bad rates throw at registration and name the option', async t => {
  const good = { capacity: 1, refillPerSecond: 1 }
  const numbers = [0, -1, NaN, Infinity, '1', null, true, 1e10]
  const bad: Array<[unknown, string]> = [
    ...['', 'bytes.', 'perUser.', 'perUser.bytes.'].flatMap(part => [...numbers.map(value => ({ capacity: value })), ...numbers.map(value => ({ refillPerSecond: value }))].map((change): [unknown, string] => {
      const path = `${part}${Object.keys(change).join()}`
      const rates = { ...good, ...change }
      return [part === '' ? rates : part === 'bytes.' ? { bytes: rates } : part === 'perUser.' ? { perUser: rates } : { perUser: { bytes: rates } }, `auth.rate.${path}`]
    })),
    ...[null, 5, 'fast', true].flatMap((value): Array<[unknown, string]> => [[value, 'auth.rate'], [{ bytes: value }, 'auth.rate.bytes'], [{ perUser: value }, 'auth.rate.perUser']]),
    [{}, 'auth.rate'], [{ capacity: 1 }, 'auth.rate'], [{ refillPerSecond: 1 }, 'auth.rate'], [{ perUser: {} }, 'auth.rate.perUser'],
    [{ perUser: { shared: true } }, 'auth.rate.perUser'], [{ ...good, perUser: { capacity: 2 } }, 'auth.rate.perUser'],
    [{ bytes: { capacity: 1 } }, 'auth.rate.bytes.refillPerSecond'], [{ bytes: {} }, 'auth.rate.bytes.capacity'],
    [{ perUser: { ...good, shared: 'yes' } }, 'auth.rate.perUser.shared'], [{ ...good, shared: true }, 'auth.rate.shared'],
    [{ ...good, refill: 1 }, 'auth.rate.refill'], [{ ...good, bytes: { ...good, shared: true } }, 'auth.rate.bytes.shared'], [{ perUser: { ...good, perUser: good } }, 'auth.rate.perUser.perUser']
  ]
  const registering = (auth: unknown, websocket = true) => build(t, {
    routes (app) {
      if (websocket) app.get('/rated', { websocket: true, auth: auth as RouteAuth }, () => {})
      else app.get('/rated', { auth: auth as RouteAuth }, async () => 'never')
    }
  })
  for (const [rate, path] of bad) {
    await t.rejects(registering({ rate }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`\\b${path.replaceAll('.', '\\.')}(?![\\w.])`) }, `${path}: ${JSON.stringify(rate)}`)
  }
  await t.rejects(registering({ rate: good }, false), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bauth\.rate: is not an option/ }, 'an HTTP route has none')
  for (const rate of [undefined, good, { capacity: 1e9, refillPerSecond: 1e9 }, { capacity: 1.5, refillPerSecond: 0.001 }, { bytes: good }, { perUser: { ...good, shared: true } }, { ...good, bytes: good, perUser: { ...good, bytes: good } }]) await registering({ rate })
})

/** Two nodes of one cluster, and both ends of a socket of one user on each. */
async function twoNodes (start: () => Promise<Live>): Promise<[Pair, Pair, Live, Live]> {
  const [one, other] = [await start(), await start()]
  return [await one.open(as('alice', { speaks: true })), await other.open(as('alice', { speaks: true })), one, other]
}

/** Until each of so many messages was delivered or refused. */
const judged = (count: number, ...pairs: Pair[]) => eventually(`${count} are judged`, () =>
  pairs.reduce((sum, { peer, there }) => sum + there.received.length + peer.framesOf('error').length, 0) >= count, 15_000)
const passed = (...pairs: Pair[]) => pairs.reduce((sum, { there }) => sum + there.received.length, 0)
const say = ({ peer }: Pair, texts: readonly string[]) => { for (const text of texts) peer.say(text) }
const numbered = (count: number) => Array.from({ length: count }, (_, n) => String(n))

t.test('perUser.shared: two registrations of one cluster count together, to the millisecond; without shared each counts its own', async t => {
  for (const [shared, onOther] of [[true, 1], [false, 4]] as const) {
    await t.test(`shared: ${shared}`, async t => {
      const clock = setClock(t)
      clock.freeze()
      const cluster = memoryCluster()
      const [a, b, , other] = await twoNodes(() => live(t, { route: { rate: { perUser: { capacity: 4, refillPerSecond: 1, shared } } }, auth: { cluster, heartbeat: false } }))
      t.equal((await send(a, ...times(3))).length, 3)
      t.equal((await send(b, ...times(5))).length, onOther)
      t.same(new Set(waits(b)), new Set([1000]))
      t.equal((await send(await other.open(as('bob')), ...times(5))).length, 4)
      clock.move(999)
      t.same(await send(b, 'x'), [])
      clock.move(1)
      t.same(await send(b, 'x', 'x'), ['x'])
    })
  }
})

t.test('perUser.shared with bytes, and who keeps on', async t => {
  const server = await rated(t, { perUser: { capacity: 3, refillPerSecond: 1, bytes: { capacity: 10, refillPerSecond: 1 }, shared: true } })
  const pair = await server.open(as('alice'))
  t.same(await send(pair, of(8), of(8), of(2)), [of(8), of(2)], 'what is refused for its bytes takes no message')
  t.same(await send(pair, of(11), ''), [''])
  await send(pair, ...times(10))
  t.match(await reasonOf(pair), [4008, { code: 'rate_limited', retryAfterMs: 1000 }])
  t.equal(server.limited(), 1)
})

t.test('what the shared bucket of a user refuses takes nothing of the socket, and what the client is told is true', async t => {
  const server = await rated(t, { capacity: 3, refillPerSecond: NEVER, perUser: { capacity: 1, refillPerSecond: 10, shared: true } })
  const pair = await server.open(as('alice', { speaks: true }))
  t.same(await send(pair, '1', '2', '3'), ['1'])
  t.same(waits(pair), [100, 100])
  server.clock.move(100)
  t.same(await send(pair, '4'), ['4'])
})

/** A cluster that answers when the test does, and a server of it. */
async function waiting (t: Test, rule: RouteRule = {}, auth: Partial<HybridAuthOptions> = {}) {
  const asked = new Inbox<Deferred<number>>()
  const cluster = driverOf(() => ({
    spend () {
      const answer = deferred<number>()
      asked.push(answer)
      return answer.promise
    }
  }))
  const server = await rated(t, { perUser: { capacity: 9, refillPerSecond: 1, shared: true } }, { auth: { cluster, ...auth }, rule })
  return { ...server, asked }
}

t.test('a message that waits for the cluster is paid for once, also where the credential is replaced meanwhile', async t => {
  const { asked, open } = await waiting(t)
  for (const wait of [0, 500]) {
    const pair = await open(as('alice', { speaks: true }))
    const before = asked.all.length
    pair.peer.say('one')
    const [answer] = (await asked.reach(before + 1)).slice(before)
    pair.peer.say(updateOf(tokenOf('alice')))
    await pair.peer.takeFrame('auth_updated')
    answer?.resolve(wait)
    for (let n = 0; n < 5; n++) await turn()
    t.equal(asked.all.length, before + 1, `told to wait ${wait}: asked once`)
    asked.all.at(-1)?.resolve(0)
    await settled(pair.peer)
    t.same([pair.there.received, waits(pair)], wait === 0 ? [['one'], []] : [[], [500]], 'and answered once')
  }
})

t.test('a socket that ended while its message waited for the cluster: authorize is not asked, nothing is told', async t => {
  let judged = 0
  const { asked, open, events } = await waiting(t, { authorize: () => ++judged > 0 })
  for (const wait of [0, 500]) {
    const pair = await open(as('alice', { speaks: true }))
    const before = asked.all.length
    pair.peer.say('one')
    await asked.reach(before + 1)
    pair.there.connection.close()
    await pair.peer.end
    asked.all.at(-1)?.resolve(wait)
    for (let n = 0; n < 5; n++) await turn()
    t.same([judged, pair.there.received, waits(pair), events.filter(({ type }) => type === 'limited')], [0, [], [], []], `told to wait ${wait}`)
  }
})

t.test('a cluster that rejects or never answers: the node counts alone, and no message overtakes another', async t => {
  for (const spend of [() => Promise.reject(new Error('spend')), () => new Promise<number>(() => {})]) {
    const server = await rated(t, { perUser: { capacity: 3, refillPerSecond: 1, shared: true } }, { auth: { cluster: driverOf(() => ({ spend })), handshakeTimeout: 50 } })
    const pair = await server.open(as('alice', { speaks: true }))
    say(pair, numbered(5))
    await judged(5, pair)
    t.same([pair.there.received, waits(pair)], [numbered(3), [1000, 1000]])
  }
})

const TOGETHER = { perUser: { capacity: 20, refillPerSecond: NEVER, shared: true } } as const satisfies RateRule
const QUIET = { heartbeat: false, failures: false } as const

t.test('perUser.shared over Redis: two nodes at once let through what one would, in order, and no more', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const [a, b, one] = await twoNodes(() => redisNode(t, url, { route: { rate: TOGETHER }, auth: QUIET }))
  say(a, numbered(19))
  say(b, numbered(19))
  await judged(38, a, b)
  t.equal(passed(a, b), 20, 'of 38')
  for (const { there } of [a, b]) t.same(there.received, numbered(19).slice(0, there.received.length), 'in order')
  t.ok(waits(a).concat(waits(b)).every(wait => Number(wait) > 990_000 && Number(wait) <= 1_000_000))
  const bob = await one.open(as('bob', { speaks: true }))
  say(bob, numbered(21))
  await judged(21, bob)
  t.equal(passed(bob), 20, 'of another user')
})

t.test('over Redis: bytes, a wait that is true, all or nothing, and keys that go by themselves', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const node = await redisNode(t, url, { route: { rate: { perUser: { capacity: 3, refillPerSecond: 5, bytes: { capacity: 10, refillPerSecond: 20 }, shared: true } } }, auth: QUIET })
  const pair = await node.open(as('alice', { speaks: true }))
  say(pair, [of(10), of(11)])
  await judged(2, pair)
  t.same([pair.there.received, waits(pair)], [[of(10)], ['too_large']])
  say(pair, [of(2)])
  await judged(3, pair)
  const wait = Number(waits(pair).at(-1))
  t.ok(wait > 0 && wait <= 100, `two bytes in ${wait} ms`)
  await sleep(wait)
  say(pair, [of(2)])
  await judged(4, pair)
  t.same(pair.there.received, [of(10), of(2)])
  const keys = await node.client.keys('{hybrid-auth}:bucket:*')
  t.equal(keys.length, 2)
  for (const key of keys) t.ok(await node.client.pTTL(key) > 0, `${key} ends`)
})

t.test('over Redis: a clock of its that was set back, and a key that holds something else, lock nobody out', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const node = await redisNode(t, url, { route: { rate: { perUser: { capacity: 2, refillPerSecond: 10, shared: true } } }, auth: QUIET })
  const pair = await node.open(as('alice', { speaks: true }))
  say(pair, times(2))
  await judged(2, pair)
  const [key = ''] = await node.client.keys('{hybrid-auth}:bucket:*')
  await node.client.hSet(key, { t: '0', at: String(Date.now() + HOUR) })
  for (let n = 0; n < 5 && passed(pair) < 3; n++) {
    const before = passed(pair) + waits(pair).length
    say(pair, ['after the clock was set back'])
    await judged(before + 1, pair)
    await sleep(200)
  }
  t.equal(passed(pair), 3, 'after the clock was set back')
  const before = passed(pair) + waits(pair).length
  await node.client.set(key, 'something else')
  say(pair, ['x'])
  await judged(before + 1, pair)
  t.equal(pair.there.received.at(-1), 'x')
})

t.test('Redis away: each node counts alone, and together again when it is back', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const [a, b, one, other] = await twoNodes(() => redisNode(t, redis.url, { route: { rate: TOGETHER }, auth: QUIET }))
  const isConnected = (is: boolean) => eventually(`connected: ${is}`, () => [one, other].every(({ app }) => app.hybridAuth.status().connected === is), 15_000)
  await redis.kill()
  await isConnected(false)
  for (const pair of [a, b]) {
    say(pair, numbered(25))
    await judged(25, pair)
    t.same(pair.there.received, numbered(20), 'each as if it were alone')
  }
  await redis.restart()
  await isConnected(true)
  const [c, d] = [await one.open(as('alice', { speaks: true })), await other.open(as('alice', { speaks: true }))]
  say(c, numbered(15))
  say(d, numbered(15))
  await judged(30, c, d)
  t.equal(passed(c, d), 20)
})

t.test('Redis hangs: messages wait no longer than its timeout, none is lost or overtaken', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  for (const handshakeTimeout of [10_000, 100]) {
    const node = await redisNode(t, redis.url, { route: { rate: { perUser: { capacity: 100, refillPerSecond: NEVER, shared: true } } }, auth: { ...QUIET, handshakeTimeout } })
    const pair = await node.open(as(`alice-${handshakeTimeout}`, { speaks: true }))
    say(pair, ['first'])
    await judged(1, pair)
    redis.pause()
    const started = performance.now()
    say(pair, numbered(80))
    await judged(81, pair)
    t.same(pair.there.received, ['first', ...numbered(80)], `with a handshakeTimeout of ${handshakeTimeout}`)
    t.ok(performance.now() - started < 20 * SHORT.timeout, 'and by then it was known to be away')
    redis.resume()
    await eventually('it is back', () => node.status().connected, 15_000)
  }
})

t.test('Redis is slow: order is kept, under a refresh and a close as well', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = await redisNode(t, redis.url, {
    route: { rate: { perUser: { capacity: 60, refillPerSecond: NEVER, shared: true } } },
    auth: QUIET,
    wrap: client => intercepted(client, async ({ name, send }) => {
      if (name === 'SPEND') await sleep(Math.random() * 12)
      return send()
    })
  })
  const pair = await node.open(as('alice', { speaks: true }))
  say(pair, numbered(20))
  pair.peer.say(updateOf(tokenOf('alice')))
  say(pair, numbered(60).slice(20))
  say(pair, ['one too many'])
  pair.peer.socket.close()
  await eventually('the socket ended', () => pair.there.socketCloses.length === 1, 15_000)
  t.same(pair.there.received, numbered(60))
})
