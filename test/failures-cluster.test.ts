/** Failures under names: the table that counts them, against a naive one; and nodes that count together, or alone when they must. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { memoryCluster } from '../lib/cluster/memory.js'
import type { HybridAuthOptions } from '../lib/index.js'
import { Failures } from '../lib/policy/failures.js'
import { EPISODE, StrikeTable } from '../lib/policy/strikes.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { intercepted, redisNode, SHORT, startNode, until, type Node, type NodeSettings } from './cluster-suite.js'
import { goodClaims, goodToken, SECRET, signHs256, upgrade } from './helpers.js'
import { eventually, HOUR, setClock } from './live.js'
import { connect as connectRedis, needsRedis, startRedis } from './redis.js'
import { untyped } from './revoking.js'
import { ask, codeOf, cookieFor } from './stores.js'
import { authFrame, connected } from './wire.js'

const TOO_MANY = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const MINUTE = 60_000

t.test('the first failure of an address that claims somebody new counts for both', async t => {
  let now = Date.now()
  const table = new StrikeTable(100, () => now)
  t.same(table.strike(['ip:a', 'id:b'], { max: 2, window: 1000 }), { isOver: false, waits: [0, 0], isAlert: false })
  t.equal(table.size, 2, 'both are kept')
  now++
  t.same(table.strike(['ip:a', 'id:b'], { max: 2, window: 1000 }), { isOver: false, waits: [999, 999], isAlert: true })
  now += 10_000
  t.same(table.strike(['ip:a', 'id:c'], { max: 2, window: 1000 }), { isOver: false, waits: [0, 0], isAlert: false })
  t.same(table.strike(['ip:a', 'id:d'], { max: 2, window: 1000 }), { isOver: false, waits: [1000, 0], isAlert: true })
})

/** What would be swept every half minute is when the test says. */
function sweeps (t: Test): () => void {
  let waiting = new Set<Wheeled>()
  t.intercept(wheel, 'schedule', { value: (item: Wheeled) => { waiting.add(item) } })
  return () => {
    const due = waiting
    waiting = new Set()
    for (const item of due) item.look()
  }
}

t.test('a sweep forgets a name when its failures and its suspicion are over, and not before', async t => {
  const sweep = sweeps(t)
  let now = Date.now()
  const table = new StrikeTable(100, () => now)
  for (let n = 0; n < 3; n++) table.strike(['often'], { max: 3, window: 1000 })
  table.strike(['once'], { max: 3, window: 1000 })
  for (const [after, left] of [[0, 2], [999, 2], [1, 1], [999, 1], [1, 0]] as const) {
    now += after
    sweep()
    t.equal(table.size, left)
  }
  table.strike(['again'], { max: 3, window: 1000 })
  now += 1000
  sweep()
  t.equal(table.size, 0, 'it sweeps again for whoever comes after')
})

/** Keeps everything for ever, and looks at all of it each time. */
class NaiveTable {
  readonly #strikes: Array<{ name: string, at: number }> = []
  readonly #reached: Array<{ name: string, at: number }> = []

  strike (names: readonly string[], { max, window }: { max: number, window: number }, now: number) {
    const of = (name: string) => this.#strikes.filter(strike => strike.name === name && strike.at + window > now)
    const over = names.filter(name => of(name).length >= max)
    const isSuspected = this.#reached.some(({ name, at }) => names.includes(name) && at + EPISODE * window > now)
    const counted = names.filter(name => !over.includes(name))
    for (const name of counted) this.#strikes.push({ name, at: now })
    const reached = counted.filter(name => of(name).length >= max)
    for (const name of reached) this.#reached.push({ name, at: now })
    return {
      isOver: over.length > 0,
      waits: names.map(name => of(name).length >= max ? Math.min(...of(name).map(({ at }) => at)) + window - now : 0),
      isAlert: reached.length > 0 && !isSuspected && over.length === 0
    }
  }
}

const NAMES = ['a', 'b', 'c', 'd']
const step = fc.record({
  names: fc.uniqueArray(fc.constantFrom(...NAMES), { minLength: 1, maxLength: 3 }),
  after: fc.oneof({ weight: 3, arbitrary: fc.nat(3) }, { weight: 2, arbitrary: fc.nat(60) }, { weight: 1, arbitrary: fc.nat(250) }),
  isSwept: fc.boolean()
})

t.test('the table answers what a naive one does that forgets nothing, whenever it is swept', async t => {
  const sweep = sweeps(t)
  fc.assert(fc.property(fc.integer({ min: 1, max: 5 }), fc.array(step, { maxLength: 80 }), (max, steps) => {
    let now = 1_000_000
    const [table, naive] = [new StrikeTable(1000, () => now), new NaiveTable()]
    for (const { names, after, isSwept } of steps) {
      now += after
      if (isSwept) sweep()
      assert.deepEqual(table.strike(names, { max, window: 100 }), naive.strike(names, { max, window: 100 }, now))
    }
    // So that no sweep finds anything of it.
    now += 1000
    sweep()
    assert.equal(table.size, 0)
  }), { numRuns: 300 })
})

t.test('in no window more than max pass, and a wait is over to the millisecond when it says', async () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 5 }), fc.array(fc.nat(40), { minLength: 1, maxLength: 60 }), (max, gaps) => {
    const window = { max, window: 100 }
    const times = gaps.map((gap, at) => 1_000_000 + gaps.slice(0, at).reduce((sum, one) => sum + one, gap))
    const replay = (at: number) => {
      let now = 0
      const table = new StrikeTable(10, () => now)
      return [...times.filter(time => time <= at), at].map(time => {
        now = time
        return { time, ...table.strike(['a'], window) }
      })
    }
    const all = replay(times.at(-1) ?? 0)
    const passed = all.filter(({ isOver }) => !isOver).map(({ time }) => time)
    if (passed.some((time, at) => (passed[at + max] ?? Infinity) < time + 100)) return false
    return all.every(({ time, isOver, waits: [wait = 0] }) => !isOver || (wait > 0 && wait <= 100 && (times.some(later => later > time && later <= time + wait) ||
      (replay(time + wait).at(-1)?.isOver === false && (wait === 1 || replay(time + wait - 1).at(-1)?.isOver === true)))))
  }), { numRuns: 200 })
})

t.test('whatever the clock does, nobody waits longer than a window, and a window of quiet is always enough', async () => {
  const jump = fc.oneof(fc.nat(50), fc.integer({ min: -120, max: 0 }), fc.integer({ min: -1000, max: 1000 }), fc.constantFrom(-1e9, 1e9))
  fc.assert(fc.property(fc.integer({ min: 1, max: 4 }), fc.array(fc.record({ names: step.map(({ names }) => names), jump }), { maxLength: 60 }), (max, steps) => {
    let now = 1e12
    const table = new StrikeTable(NAMES.length, () => now)
    for (const { names, jump } of steps) {
      now += jump
      const { waits } = table.strike(names, { max, window: 100 })
      if (!waits.every(wait => wait >= 0 && wait <= 100) || table.size > NAMES.length) return false
    }
    table.strike(NAMES, { max, window: 100 })
    now += 100
    return !table.strike(NAMES, { max, window: 100 }).isOver
  }), { numRuns: 300 })
})

const timers = () => process.getActiveResourcesInfo().filter(kind => kind === 'Timeout').length

/** How long each quarter of it took, in milliseconds. */
function quarters (count: number, run: (n: number) => void): number[] {
  return [0, 1, 2, 3].map(quarter => {
    const started = performance.now()
    for (let n = quarter * count / 4; n < (quarter + 1) * count / 4; n++) run(n)
    return performance.now() - started
  })
}

t.test('a flood of 400 000 addresses leaves a bounded table and no timer for each, and costs no more at its end than at its beginning', async t => {
  const before = timers()
  const table = new StrikeTable(100_000)
  t.teardown(() => { table.stop() })
  let largest = 0
  const [first = 0, ...later] = quarters(400_000, n => {
    table.strike([`ip:${n}`], { max: 10, window: MINUTE })
    largest = Math.max(largest, table.size)
  })
  t.equal(largest, 100_000)
  t.ok(timers() - before <= 1)
  t.ok(Math.max(...later) < 10 * first + 500, `${[first, ...later].map(Math.round).join(', ')} ms`)
})

/** The counter with a table of its own, and how often that was asked. */
function counter (t: Test, { max = 1, block = 'address', isFar = false }: { max?: number, block?: 'address' | 'credential', isFar?: boolean } = {}) {
  const window = MINUTE
  const table = new StrikeTable(1000)
  const [blocked, alerts]: [string[], string[]] = [[], []]
  let asked = 0
  const failures = new Failures({ max, window, block }, {
    cluster: {
      strike (names, window) {
        asked++
        const strike = table.strike(names, window)
        return isFar ? Promise.resolve(strike) : strike
      }
    },
    isReportOnly: false,
    onSuspected: (_request, by) => { alerts.push(by.join()) },
    onReported () {},
    onBlocked: address => { blocked.push(address) }
  })
  t.teardown(() => {
    failures.stop()
    table.stop()
  })
  return {
    failures, blocked, alerts, asked: () => asked,
    count: (ip: string | undefined, userId?: string) => failures.count(untyped({ ip }), {}, 'FST_HYBRID_AUTH_INVALID_TOKEN', () => userId === undefined ? null : { userId, issuer: null }),
    isBlocked: (ip: string) => failures.isBlocked(untyped({ ip }), {})
  }
}

const addressOf = (n: number) => `10.${n >> 16 & 255}.${n >> 8 & 255}.${n & 255}`

t.test('400 000 addresses that are all blocked: the latest are kept, without a timer for each, and as cheaply as the first', async t => {
  const before = timers()
  const { count, isBlocked } = counter(t)
  const [first = 0, ...later] = quarters(400_000, n => { count(addressOf(n)) })
  for (const [n, isKept] of [[0, false], [299_999, false], [300_001, true], [399_999, true]] as const) t.equal(isBlocked(addressOf(n)), isKept, `address ${n}`)
  t.ok(timers() - before <= 2)
  t.ok(Math.max(...later) < 10 * first + 500, `${[first, ...later].map(Math.round).join(', ')} ms`)
})

t.test('an attack that was noticed asks the cluster nothing more, whomever it claims to be next', async t => {
  const { count, asked, alerts, blocked } = counter(t, { max: 5, block: 'credential' })
  for (let n = 0; n < 500; n++) t.equal(count('192.0.2.1', `user ${n}`), n < 5 ? 'FST_HYBRID_AUTH_INVALID_TOKEN' : TOO_MANY)
  t.equal(asked(), 5)
  t.same(alerts, ['address'])
  t.same(blocked, [], 'only with block address are others told')
})

t.test('of an address that is blocked the others are told once, however many attempts were on their way', async t => {
  const { count, blocked, alerts } = counter(t, { max: 5, isFar: true })
  const outcomes = await Promise.all(Array.from({ length: 30 }, async () => count('192.0.2.1')))
  t.equal(outcomes.filter(outcome => outcome === TOO_MANY).length, 25)
  t.same(blocked, ['192.0.2.1'])
  t.same(alerts, ['address'])
})

t.test('what another node tells late does not shorten a block, and nothing it tells lasts longer than a window', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { failures, isBlocked, count } = counter(t)
  count('192.0.2.1')
  failures.block('192.0.2.1', 1)
  failures.block('192.0.2.1', 0)
  t.ok(isBlocked('192.0.2.1'))
  clock.move(MINUTE - 1)
  t.ok(isBlocked('192.0.2.1'))
  for (const ms of [1e15, Infinity]) {
    failures.block('192.0.2.2', ms)
    t.ok(isBlocked('192.0.2.2'))
    clock.move(MINUTE)
    t.notOk(isBlocked('192.0.2.2'), `${ms} ms`)
  }
})

/** As an attacker makes it, of whom he likes. */
const forged = (sub = randomBytes(6).toString('hex')) => signHs256(goodClaims({ sub }), {}, 'a secret that no server here has ever known')
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const from = (address: string) => ({ 'x-forwarded-for': address })
const A = '192.0.2.1'

interface Counting extends Node { alerts: Array<ReadonlyArray<'address' | 'identity'>> }
type Start = (failures: HybridAuthOptions['failures'], more?: Partial<NodeSettings>) => Promise<Counting>

function settingsFor (failures: HybridAuthOptions['failures'], { auth, ...more }: Partial<NodeSettings> = {}): Omit<NodeSettings, 'cluster'> {
  return { fastify: { trustProxy: true }, route: { firstMessage: true }, auth: { heartbeat: false, failures, ...auth }, ...more }
}

function counting (node: Node): Counting {
  const alerts: Counting['alerts'] = []
  node.app.hybridAuth.events.on('brute_force_suspected', ({ by }) => { alerts.push(by) })
  return { ...node, alerts }
}

const alertsOf = (nodes: readonly Counting[]) => nodes.reduce((sum, { alerts }) => sum + alerts.length, 0)

type Outcome = 'refused' | 'throttled' | 'passed' | `unexpected ${string}`

function outcomeOf (status: number, body: string, retryAfter: string | null): Outcome {
  if (status === 200 || status === 101) return 'passed'
  if (status === 401) return 'refused'
  return status === 429 && codeOf(body) === TOO_MANY && Number(retryAfter) > 0 ? 'throttled' : `unexpected ${status} ${body}`
}

async function get (node: Node, headers: Record<string, string>, address = A): Promise<Outcome> {
  const { status, body, headers: answered } = await ask(node.host, '/me', { headers: { ...from(address), ...headers } })
  return outcomeOf(status, body, answered.get('retry-after'))
}

async function open (t: Test, node: Node, { headers, ...options }: Parameters<typeof upgrade>[2] = {}): Promise<Outcome> {
  const { status, body, code, context, reason, headers: answered } = await upgrade(t, node.host, { ...options, headers: { ...from(A), ...headers } })
  if (status !== 101) return outcomeOf(status, body, answered['retry-after'] ?? null)
  return context !== undefined ? 'passed' : ofClose(code, reason)
}

function ofClose (code: number, reason: string): Outcome {
  return code === 4001 ? 'refused' : code === 4008 && /"retryAfterMs":[1-9]/.test(reason) ? 'throttled' : `unexpected ${code} ${reason}`
}

const guess = (node: Node, sub?: string, address = A) => get(node, bearer(forged(sub)), address)
const WAYS: ReadonlyArray<(t: Test, node: Node) => Promise<Outcome>> = [
  (_t, node) => guess(node),
  (t, node) => open(t, node, { headers: bearer(forged()) }),
  (t, node) => open(t, node, { protocols: ['hybrid-auth.v1', `bearer.${forged()}`] }),
  (_t, node) => get(node, bearer('malformed')),
  (_t, node) => get(node, { cookie: cookieFor('x', { secret: 'another secret, as long as it has to be' }) }),
  (t, node) => open(t, node, { path: `/live?ticket=j${randomBytes(32).toString('base64url')}` }),
  async (t, { host }) => {
    const peer = await connected(t, host, { path: '/app', token: null, headers: from(A) })
    peer.send(authFrame(forged()))
    const { code, reason } = await peer.closed
    return ofClose(code, reason)
  }
]

const tally = (outcomes: readonly Outcome[]) => Object.fromEntries(['refused', 'throttled'].map(one => [one, outcomes.filter(outcome => outcome === one).length]))

/** A node by itself. Its clock is set before. */
const one = async (t: Test, failures: HybridAuthOptions['failures']) => counting(await startNode(t, { cluster: memoryCluster(), ...settingsFor(failures) }))

t.test('one below the limit in every window, for ever: nobody is refused or suspected', async t => {
  const clock = setClock(t)
  clock.freeze()
  const node = await one(t, { max: 3, window: MINUTE })
  for (let n = 0; n < 30; n++) {
    t.equal(await guess(node, 'alice'), 'refused')
    clock.move(MINUTE / 2)
  }
  t.same(node.alerts, [])
})

for (const [what, claim] of [['one user', () => 'alice'], ['a new user each time', () => undefined]] as const) {
  t.test(`a brute force of ${what} that goes on for windows raises exactly one alert, and one that comes back after two quiet windows another`, async t => {
    const clock = setClock(t)
    clock.freeze()
    const node = await one(t, { max: 5, window: MINUTE })
    const attack = async () => {
      let refused = 0
      for (let n = 0; n < 200; n++) {
        if (await guess(node, claim()) === 'refused') refused++
        clock.move(1500)
      }
      return refused
    }
    // Five windows: five at once, then as many as a window lets go.
    t.ok(await attack() <= 25)
    t.equal(node.alerts.length, 1)
    clock.move(MINUTE / 2)
    await attack()
    t.equal(node.alerts.length, 1, 'a short pause is the same attack')
    clock.move(3 * MINUTE)
    await attack()
    t.equal(node.alerts.length, 2, 'after two quiet windows it is another')
    t.same(node.alerts.map(([by]) => by), ['address', 'address'])
  })
}

t.test('an attack on one identity that moves to another address is one attack', async t => {
  const node = await one(t, { max: 4 })
  for (const address of ['192.0.2.7', '192.0.2.8', '192.0.2.9']) for (let n = 0; n < 20; n++) await guess(node, 'alice', address)
  t.same(node.alerts, [['address', 'identity']])
})

t.test('after the clock was set back, another attack is told as one', async t => {
  const clock = setClock(t)
  clock.freeze()
  const node = await one(t, { max: 2, window: MINUTE })
  const attack = async () => { for (let n = 0; n < 5; n++) await guess(node) }
  await attack()
  clock.move(-24 * HOUR)
  t.equal(await guess(node), 'throttled', 'for a window at most')
  clock.move(10 * MINUTE)
  await attack()
  t.equal(node.alerts.length, 2)
})

/** What nodes talk through, and whether it is there. */
const CLUSTERS: Readonly<Record<string, { options: { skip?: string | false }, make: (t: Test) => Promise<Start> }>> = {
  'one process': {
    options: {},
    async make (t) {
      const cluster = memoryCluster()
      return async (failures, more) => counting(await startNode(t, { cluster, ...settingsFor(failures, more) }))
    }
  },
  Redis: {
    options: needsRedis,
    async make (t) {
      const { url } = await startRedis(t)
      return async (failures, more) => counting(await redisNode(t, url, settingsFor(failures, more)))
    }
  }
}

for (const [name, { options, make }] of Object.entries(CLUSTERS)) {
  for (const max of [1, 3, 10]) {
    t.test(`CASE 80: two nodes of ${name} refuse ${max} forged tokens in all, and answer 429 to the next on either`, { ...options }, async t => {
      const start = await make(t)
      const [a, b] = [await start({ max }), await start({ max })]
      for (let n = 1; n <= max; n++) {
        t.equal(await guess(n % 2 === 0 ? a : b), 'refused', `failure ${n}`)
        t.equal(alertsOf([a, b]), n === max ? 1 : 0)
      }
      for (const node of [a, b, a, b]) t.equal(await guess(node), 'throttled')
      for (const node of [a, b]) t.equal(await get(node, bearer(goodToken())), 'passed', 'a good token passes')
      t.equal(await guess(a, undefined, '192.0.2.2'), 'refused', 'another address')
      if (max > 1) t.equal(alertsOf([a, b]), 1)
    })
  }

  t.test(`50 forged at once, over two nodes of ${name}: exactly max are answered 401, and one alert is raised`, { ...options }, async t => {
    const start = await make(t)
    const [a, b] = [await start({ max: 7 }), await start({ max: 7 })]
    for (const [address, sub] of [['192.0.2.10', undefined], ['192.0.2.11', 'alice']] as const) {
      const before = alertsOf([a, b])
      const outcomes = await Promise.all(Array.from({ length: 50 }, (_, n) => guess(n % 2 === 0 ? a : b, sub, address)))
      t.same(tally(outcomes), { refused: 7, throttled: 43 })
      t.equal(alertsOf([a, b]) - before, 1)
    }
  })

  t.test(`a scripted brute force of 200 attempts by every way, spread over two nodes of ${name}, raises exactly one alert in all`, { ...options }, async t => {
    const start = await make(t)
    const nodes = [await start({}), await start({})]
    const outcomes: Outcome[] = []
    for (let n = 0; n < 200; n += 4) {
      outcomes.push(...await Promise.all([0, 1, 2, 3].map(async more => {
        const [node, way] = [nodes[(n + more) % 2], WAYS[(n + more) % WAYS.length]]
        return node === undefined || way === undefined ? 'unexpected nothing' : way(t, node)
      })))
    }
    t.same(tally(outcomes), { refused: 10, throttled: 190 })
    t.equal(alertsOf(nodes), 1)
  })

  t.test(`an identity that is claimed from several addresses at two nodes of ${name} is throttled on both, and its own token passes`, { ...options }, async t => {
    const start = await make(t)
    const [a, b] = [await start({ max: 4 }), await start({ max: 4 })]
    for (const [n, node] of [a, b, a, b].entries()) t.equal(await guess(node, 'alice', `192.0.2.${n}`), 'refused')
    for (const node of [a, b]) {
      t.equal(await guess(node, 'alice', '192.0.2.100'), 'throttled')
      t.equal(await guess(node, 'bob', '192.0.2.101'), 'refused')
      t.equal(await get(node, bearer(goodToken({ sub: 'alice' })), '192.0.2.102'), 'passed')
    }
    t.same([...a.alerts, ...b.alerts], [['identity']])
  })

  t.test(`block address: who is blocked on one node of ${name} is on the other, before its key is asked, until the window is over`, { ...options }, async t => {
    const start = await make(t)
    let keys = 0
    const jwt = { algorithms: ['HS256'], key () { keys++; return SECRET } } satisfies HybridAuthOptions['jwt']
    const failures = { max: 2, window: 1500, block: 'address' } as const
    const [a, b] = [await start(failures, { auth: { jwt } }), await start(failures, { auth: { jwt } })]
    for (let n = 0; n < 2; n++) t.equal(await guess(a), 'refused')
    const started = performance.now()
    // Whoever has not heard yet lets a good one pass.
    await until('the other node has heard', async () => await get(b, bearer(goodToken())) === 'throttled')
    const asked = keys
    for (const node of [a, b]) t.equal(await get(node, bearer(goodToken())), 'throttled')
    t.equal(await open(t, b, { protocols: ['hybrid-auth.v1', `bearer.${goodToken()}`] }), 'throttled')
    t.equal(keys, asked, 'no key was asked')
    t.equal(await get(b, bearer(goodToken()), '192.0.2.2'), 'passed')
    await until('the window is over', async () => await get(a, bearer(goodToken())) === 'passed' && await get(b, bearer(goodToken())) === 'passed')
    t.ok(performance.now() - started > 1000)
    t.equal(alertsOf([a, b]), 1)
  })

  t.test(`a ticket that was used or has expired at one node of ${name} is no guess at the other`, { ...options }, async t => {
    const start = await make(t)
    const [a, b] = [await start({ max: 1 }), await start({ max: 1 })]
    const { body: ticket } = await ask(a.host, '/ticket', { method: 'POST', headers: { ...from(A), ...bearer(goodToken()) } })
    t.equal(await open(t, b, { path: `/live?ticket=${ticket}` }), 'passed')
    for (const node of [a, b, a, b]) t.equal(await open(t, node, { path: `/live?ticket=${ticket}` }), 'refused')
    t.equal(await open(t, b, { path: `/live?ticket=${ticket}x` }), 'refused', 'one that was never given is')
    t.equal(await open(t, a, { path: `/live?ticket=${ticket}x` }), 'throttled')
  })
}

t.test('while Redis is away each node counts alone and still refuses, and they count together again when it is back', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const start: Start = async (failures, more) => counting(await redisNode(t, redis.url, settingsFor(failures, more)))
  const nodes = [await start({ max: 3 }), await start({ max: 3 })]
  await redis.kill()
  await eventually('both know', () => nodes.every(({ status }) => !status().connected))
  for (const node of nodes) {
    for (let n = 0; n < 3; n++) t.equal(await guess(node), 'refused')
    t.equal(await guess(node), 'throttled')
    t.equal(await get(node, bearer(goodToken())), 'passed')
    t.same(node.alerts, [['address']])
  }
  await redis.restart()
  await eventually('both are back', () => nodes.every(({ status }) => status().connected), 10_000)
  for (const node of nodes) t.equal(await guess(node), 'throttled', 'what a node knows it knows')
  const [a, b] = nodes
  if (a === undefined || b === undefined) throw new Error('two nodes')
  for (const node of [a, b, a]) t.equal(await guess(node, undefined, '192.0.2.9'), 'refused', 'together')
  for (const node of [a, b]) t.equal(await guess(node, undefined, '192.0.2.9'), 'throttled')
})

t.test('a Redis that is frozen, or answers nonsense, keeps nobody from being counted', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = counting(await redisNode(t, redis.url, { ...settingsFor({ max: 3 }), cluster: SHORT }))
  const admin = await connectRedis(t, redis.url)
  t.equal(await guess(node), 'refused')
  const [key = ''] = (await admin.keys('*strikes*')).filter(key => key.endsWith(A))
  await admin.del(key)
  await admin.set(key, 'no sorted set')
  for (let n = 0; n < 3; n++) t.equal(await guess(node), 'refused')
  t.equal(await guess(node), 'throttled', 'of the wrong kind')
  redis.pause()
  t.teardown(() => { redis.resume() })
  for (let n = 0; n < 3; n++) t.equal(await guess(node, undefined, '192.0.2.2'), 'refused')
  t.equal(await guess(node, undefined, '192.0.2.2'), 'throttled', 'frozen')
  t.equal(node.alerts.length, 2)
})

/** A node that keeps what it asks of Redis, by name. */
async function asking (t: Test, url: string, failures: HybridAuthOptions['failures'], asked: string[]): Promise<Counting> {
  return counting(await redisNode(t, url, {
    ...settingsFor(failures),
    wrap: client => intercepted(client, sent => {
      asked.push(sent.name)
      return sent.send()
    })
  }))
}

t.test('an attack that was noticed costs Redis nothing more, and with block address one order', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const admin = await connectRedis(t, url)
  for (const block of ['credential', 'address'] as const) {
    const asked: string[] = []
    const before = await admin.xLen('{hybrid-auth}:log')
    const node = await asking(t, url, { max: 5, block }, asked)
    const address = block === 'address' ? '192.0.2.5' : '192.0.2.6'
    await Promise.all(Array.from({ length: 30 }, () => guess(node, undefined, address)))
    const strikes = () => asked.filter(name => name === 'STRIKE').length
    const struck = strikes()
    for (let n = 0; n < 30; n++) t.equal(await guess(node, undefined, address), 'throttled')
    t.equal(strikes(), struck, `block ${block}: no more strikes`)
    // Behind whatever was ordered before.
    await node.app.hybridAuth.setPermissions('nobody', [])
    t.equal(await admin.xLen('{hybrid-auth}:log') - before, block === 'address' ? 2 : 1, `block ${block}: orders`)
  }
})

t.test('what Redis keeps of failures names nobody in clear but addresses, and goes by itself', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const admin = await connectRedis(t, url)
  const node = counting(await redisNode(t, url, settingsFor({ max: 2, window: 1000 })))
  const token = forged('alice@example.com')
  for (let n = 0; n < 2; n++) await get(node, bearer(token))
  const keys = (await admin.keys('*')).filter(key => /strikes|suspect/.test(key))
  t.equal(keys.filter(key => key.includes(A)).length, 2)
  t.equal(keys.length, 4)
  const dump = JSON.stringify([keys, await Promise.all(keys.map(async key => key.includes('strikes') ? admin.zRange(key, 0, -1) : admin.get(key)))])
  for (const secret of ['alice', ...token.split('.')]) t.notOk(dump.includes(secret))
  for (const key of keys) {
    const left = await admin.pTTL(key)
    t.ok(left > 0 && left <= (key.includes('strikes') ? 1000 : EPISODE * 1000), key)
  }
  for (const [what, gone, alerts] of [['the same attack after a window', /strikes/, 1], ['another after two quiet ones', /strikes|suspect/, 2]] as const) {
    await until(what, async () => (await admin.keys('*')).every(key => !gone.test(key)))
    for (let n = 0; n < 3; n++) await get(node, bearer(token))
    t.equal(node.alerts.length, alerts, what)
  }
})

t.test('addresses that are blocked while Redis is away leave room for what the application orders', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = counting(await redisNode(t, redis.url, settingsFor({ max: 1, block: 'address' })))
  await redis.kill()
  await eventually('it knows', () => !node.status().connected)
  for (let n = 0; n < 1100; n++) if (await guess(node, undefined, addressOf(n)) !== 'refused') t.fail(`address ${n}`)
  t.ok(node.status().queued < 1000, `${node.status().queued} wait`)
  t.match(await node.disconnect({ userId: 'alice' }).catch((error: unknown) => error), { durable: false }, 'disconnect() is kept')
  t.match(await node.app.hybridAuth.setPermissions('alice', []).catch((error: unknown) => error), { durable: false }, 'setPermissions() is kept')
})

t.test('registrations with other limits on one cluster do not weaken each other', async t => {
  const cluster = memoryCluster()
  const start = async (failures: HybridAuthOptions['failures']) => counting(await startNode(t, { cluster, ...settingsFor(failures) }))
  const clock = setClock(t)
  clock.freeze()
  const [strict, lax] = [await start({ max: 3, window: 10 * MINUTE }), await start({ max: 3, window: 1000 })]
  for (let n = 0; n < 2; n++) t.equal(await guess(strict), 'refused')
  clock.move(5000)
  t.equal(await guess(lax), 'refused')
  t.equal(await guess(strict), 'refused', 'the third in ten minutes')
  t.equal(await guess(strict), 'throttled')
})
