import t, { type Test } from 'tap'
import type { AuthContext, Connection, ConnectionFilter } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import type { Hub, RouteSettings } from '../lib/connection/hub.js'
import { ReusableMessage } from '../lib/connection/message.js'
import { Registry } from '../lib/connection/registry.js'
import type { GuardedSocket } from '../lib/connection/socket.js'
import { HORIZON, Wheel, type Wheeled } from '../lib/wheel.js'
import type { FastifyRequest } from 'fastify'

const TICK = 50
const DAY = 86_400_000

interface Timer { at: number, run: () => void, isRef: boolean }

/** Timers, immediates and the monotonic clock, moved by hand. */
class FakeTime {
  now = 1_000_000.4
  readonly timers = new Set<Timer>()
  readonly immediates: Array<() => void> = []
  readonly uncaught: unknown[] = []
  /** Runs wherever the loop would get to serve others. */
  betweenSlices: () => void = () => {}

  /** As time passes while nothing blocks the loop. */
  pass (ms: number): void {
    const end = this.now + ms
    for (let timer = this.#next(); timer !== undefined && timer.at <= end; timer = this.#next()) {
      this.now = Math.max(this.now, timer.at)
      this.#fire(timer)
    }
    this.now = Math.max(this.now, end)
  }

  /** The loop does nothing for so long, and then what is due at once. */
  block (ms: number): void {
    this.now += ms
    this.pass(0)
  }

  /** As node does with what nobody catches, were there a handler for it. */
  #run (what: () => void): void {
    try {
      what()
    } catch (error) {
      this.uncaught.push(error)
    }
  }

  #next (): Timer | undefined {
    return [...this.timers].sort((a, b) => a.at - b.at)[0]
  }

  #fire (timer: Timer): void {
    this.timers.delete(timer)
    this.#run(timer.run)
    for (let turns = 0; this.immediates.length > 0; turns++) {
      if (turns > 10_000) throw new Error('the wheel never stops turning')
      this.betweenSlices()
      for (const run of this.immediates.splice(0)) this.#run(run)
    }
  }
}

/** Everything inside happens in fake time, synchronously. */
function inFakeTime (run: (time: FakeTime) => void): void {
  const time = new FakeTime()
  const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, setImmediate: globalThis.setImmediate }
  const fakes = {
    setTimeout (callback: () => void, ms: number) {
      // Node's timers count whole milliseconds, and take what is too long for at once.
      const timer: Timer = { at: time.now + (ms > 0x7fffffff ? 1 : Math.max(1, Math.floor(ms))), run: callback, isRef: true }
      time.timers.add(timer)
      return Object.assign(timer, { unref () { timer.isRef = false } })
    },
    clearTimeout (timer: Timer) { time.timers.delete(timer) },
    setImmediate (callback: () => void) { time.immediates.push(callback) }
  }
  performance.now = () => time.now
  Object.assign(globalThis, fakes)
  try {
    run(time)
  } finally {
    Object.assign(globalThis, real)
    Reflect.deleteProperty(performance, 'now')
  }
}

class Item implements Wheeled {
  due = -1
  position = 0
  readonly looks: number[] = []
  readonly #then: (item: Item) => void

  constructor (then: (item: Item) => void = () => {}) {
    this.#then = then
  }

  look (): void {
    this.looks.push(performance.now())
    this.#then(this)
  }
}

/** Whether it was looked at once, not before its time and less than two ticks after. */
const isOnTime = ({ looks: [look, ...more] }: Item, due: number): boolean =>
  look !== undefined && more.length === 0 && look >= due && look < due + 2 * TICK

function shuffled<T> (list: readonly T[]): T[] {
  return list.map((item, i) => ({ item, rank: (i * 7919 + 31) % list.length })).sort((a, b) => a.rank - b.rank).map(({ item }) => item)
}

const DELAYS = [0, 0.1, 1, 49, 49.9, 50, 50.1, 51, 99, 100, 101, 999, 1000, 5000, 12_345, 25_000, 50_000, HORIZON - 2 * TICK, HORIZON - TICK]

t.test('the wheel looks at an item when its time has come and never earlier, in whatever order they were put in', async t => {
  for (const phase of [0, 0.3, 17, 25, 49, 49.7]) {
    for (const delays of [DELAYS, [...DELAYS].reverse(), shuffled(DELAYS)]) {
      inFakeTime(time => {
        time.now += phase
        const wheel = new Wheel()
        const items = delays.map(delay => ({ delay, due: time.now + delay, item: new Item() }))
        for (const { item, delay } of items) wheel.schedule(item, delay)
        t.equal(wheel.size, delays.length)
        time.pass(HORIZON + TICK)
        t.same(items.filter(({ item, due }) => !isOnTime(item, due)).map(({ delay }) => delay), [], `phase ${phase}`)
        t.equal(wheel.size, 0)
      })
    }
  }
})

t.test('a time that is past already comes at the next tick, and not within schedule()', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const items = [-1, -1e9, -Infinity].map(delay => {
      const item = new Item()
      wheel.schedule(item, delay)
      return item
    })
    t.same(items.map(({ looks }) => looks.length), [0, 0, 0])
    time.pass(2 * TICK)
    t.same(items.map(({ looks }) => looks.length), [1, 1, 1])
  })
})

t.test('what was removed is not looked at, wherever it stood in its slot', async t => {
  for (const removed of [[0], [2], [4], [0, 4], [4, 0], [1, 2, 3], [3, 1, 0, 2], [0, 1, 2, 3, 4]]) {
    inFakeTime(time => {
      const wheel = new Wheel()
      const items = Array.from({ length: 5 }, () => new Item())
      for (const item of items) wheel.schedule(item, 500)
      for (const index of removed) {
        const item = items[index]
        if (item === undefined) continue
        wheel.remove(item)
        wheel.remove(item)
        t.equal(item.due, -1)
      }
      t.equal(wheel.size, 5 - removed.length)
      time.pass(1000)
      t.same(items.map(({ looks }) => looks.length), items.map((_, index) => removed.includes(index) ? 0 : 1), `without ${removed.join()}`)
    })
  }
})

t.test('an item is in one place: scheduling it again moves it', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const [later, sooner, same] = [new Item(), new Item(), new Item()]
    wheel.schedule(later, 100)
    wheel.schedule(sooner, 40_000)
    wheel.schedule(same, 300)
    const start = time.now
    wheel.schedule(later, 2000)
    wheel.schedule(sooner, 200)
    wheel.schedule(same, 300)
    t.equal(wheel.size, 3)
    time.pass(HORIZON)
    t.ok(isOnTime(later, start + 2000))
    t.ok(isOnTime(sooner, start + 200))
    t.ok(isOnTime(same, start + 300))
  })
})

t.test('an item may schedule itself, remove others or add some while it is looked at', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const every = new Item(item => { wheel.schedule(item, 100) })
    const atOnce = new Item(item => { if (item.looks.length < 5) wheel.schedule(item, 0) })
    wheel.schedule(every, 100)
    wheel.schedule(atOnce, 0)
    time.pass(3000)
    t.ok(every.looks.length >= 15 && every.looks.length <= 30, `${every.looks.length} looks in 3 s`)
    t.ok(every.looks.every((at, i) => at - (every.looks[i - 1] ?? 0) >= 100))
    t.equal(new Set(atOnce.looks).size, 5, 'scheduled for at once, it comes once a tick')
    wheel.remove(every)

    const [one, other, born] = [new Item(), new Item(), new Item()]
    const killer = new Item(() => {
      wheel.remove(one)
      wheel.remove(other)
      wheel.schedule(born, 0)
    })
    for (const item of [one, killer, other]) wheel.schedule(item, 100)
    time.pass(1000)
    t.same([killer.looks.length, born.looks.length], [1, 1])
    t.equal(one.looks.length + other.looks.length, 1, 'the one that came before, not the one behind')
    t.equal(wheel.size, 0)
    t.equal(time.timers.size, 0)
  })
})

t.test('thousands in one slot are looked at in slices, between which the loop serves others', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const items = Array.from({ length: 5000 }, () => new Item(() => { time.now += 0.1 }))
    for (const item of items) wheel.schedule(item, 1000)
    const pauses: number[] = []
    const extra = new Item()
    let lastPause = 0
    time.betweenSlices = () => {
      pauses.push(time.now - (lastPause === 0 ? time.now : lastPause))
      if (pauses.length === 3) wheel.schedule(extra, 0)
      lastPause = time.now
    }
    time.pass(5000)
    t.ok(items.every(({ looks }) => looks.length === 1), 'every one once')
    t.equal(extra.looks.length, 1, 'what came meanwhile too')
    t.ok(pauses.length > 40, `${pauses.length} pauses in 500 ms of work`)
    t.ok(Math.max(...pauses) < 12, `the longest slice was ${Math.max(...pauses)} ms`)
    t.equal(wheel.size, 0)
    t.equal(time.timers.size, 0)
  })
})

t.test('case 70: delays of 60 days, of 100 years and without end are looked at within the horizon, and no timer overflows', async t => {
  for (const delay of [HORIZON, HORIZON + 1, 2 ** 31 - 1, 2 ** 31, 60 * DAY, 36_525 * DAY, Number.MAX_SAFE_INTEGER, Infinity]) {
    inFakeTime(time => {
      const wheel = new Wheel()
      const item = new Item()
      const start = time.now
      wheel.schedule(item, delay)
      t.ok([...time.timers].every(({ at }) => at - start > 1000), 'its timer is not for at once')
      time.pass(HORIZON - 2 * TICK)
      t.equal(item.looks.length, 0, `${delay} ms: not before the horizon`)
      time.pass(3 * TICK)
      t.equal(item.looks.length, 1, `${delay} ms: at the horizon`)
    })
  }
})

t.test('one timer at a time is armed, it keeps no process alive, and none is left when nothing waits', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    t.equal(time.timers.size, 0, 'an empty wheel has none')
    const items = Array.from({ length: 200 }, (_, i) => ({ item: new Item(), delay: (i * 137) % 5000 }))
    for (const { item, delay } of items) {
      wheel.schedule(item, delay)
      t.equal(time.timers.size, 1)
    }
    t.ok([...time.timers].every(({ isRef }) => !isRef))
    time.pass(1000)
    t.equal(time.timers.size, 1)
    t.ok([...time.timers].every(({ isRef }) => !isRef))
    for (const { item } of items) wheel.remove(item)
    t.equal(wheel.size, 0)
    t.equal(time.timers.size, 0, 'all were removed')
    const again = new Item()
    wheel.schedule(again, 100)
    const due = time.now + 100
    time.pass(1000)
    t.ok(isOnTime(again, due), 'it goes on after a rest')
    t.equal(time.timers.size, 0, 'all were looked at')
  })
})

t.test('after the loop was blocked everything that is due comes at once, and nothing that is not', async t => {
  for (const blocked of [1000, 10_000, HORIZON - 3 * TICK, HORIZON + 5000, 3 * HORIZON]) {
    inFakeTime(time => {
      const wheel = new Wheel()
      const items = Array.from({ length: 500 }, (_, i) => ({ item: new Item(), delay: i * 100 }))
      for (const { item, delay } of items) wheel.schedule(item, delay)
      const start = time.now
      time.block(blocked)
      const due = items.filter(({ delay }) => delay < blocked - 2 * TICK)
      t.ok(due.every(({ item }) => item.looks.length === 1), `blocked for ${blocked} ms`)
      t.ok(items.every(({ item, delay }) => item.looks.every(look => look >= start + delay)))
      time.pass(HORIZON)
      t.ok(items.every(({ item }) => item.looks.length === 1), 'all in the end')
    })
  }
})

t.test('an item that is put in while the wheel is between two far looks is not looked at early', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const first = new Item()
    wheel.schedule(first, 50_000)
    time.pass(49_000)
    const [short, long] = [new Item(), new Item()]
    wheel.schedule(short, 3000)
    wheel.schedule(long, 49_000)
    const now = time.now
    time.pass(HORIZON)
    t.ok(isOnTime(short, now + 3000), `3 s: after ${(short.looks[0] ?? 0) - now} ms`)
    t.ok(isOnTime(long, now + 49_000), `49 s: after ${(long.looks[0] ?? 0) - now} ms`)
  })
})

t.test('an item that schedules itself to the horizon after the loop was blocked is looked at once a round', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const item = new Item(it => {
      time.now += 0.1
      if (it.looks.length > 1000) throw new Error('looked at more than 1000 times')
      wheel.schedule(it, Infinity)
    })
    wheel.schedule(item, 1000)
    time.block(3000)
    t.same([item.looks.length, time.uncaught], [1, []])
  })
})

t.test('an item that throws does not keep the others from being looked at', async t => {
  inFakeTime(time => {
    const wheel = new Wheel()
    const [before, after, later] = [new Item(), new Item(), new Item()]
    const broken = new Item(() => { throw new Error('broken') })
    for (const item of [before, broken, after]) wheel.schedule(item, 100)
    wheel.schedule(later, 500)
    time.pass(1000)
    const fresh = new Item()
    wheel.schedule(fresh, 100)
    time.pass(1000)
    t.same([before, after, later, fresh].map(({ looks }) => looks.length), [1, 1, 1, 1])
    t.match(time.uncaught, [{ message: 'broken' }], 'and it is heard of')
  })
})

// The registry.

let named = 0
type Changes = Partial<Pick<AuthContext, 'userId' | 'issuer' | 'tenantId'>>
const shared = { role: null, permissions: [], via: 'header', authenticatedAt: 0, expiresAt: null, version: 1 } as const
const byToken = (tokenId: string, { userId = 'alice', issuer = null, tenantId = null }: Changes = {}): AuthContext =>
  ({ ...shared, authType: 'jwt', userId, issuer, tenantId, user: { userId }, claims: {}, tokenId })
const bySession = (sessionId: string, { userId = 'alice', issuer = null, tenantId = null }: Changes = {}): AuthContext =>
  ({ ...shared, authType: 'session', userId, issuer, tenantId, user: { userId }, sessionId })

/** A connection of nothing but its context: the registry reads no more of one. */
function connectionOf (context: AuthContext): GuardedConnection {
  const [socket, request, hub]: [object, object, object] = [{ protocol: '' }, {}, {}]
  const route: RouteSettings = {
    hub: hub as Hub, meets: () => null, decide: undefined, rooms: false, onRefused: 'error', rate: undefined, control: undefined, firstMessage: 0, sessionMaxAge: undefined, message: new ReusableMessage()
  }
  return new GuardedConnection(socket as GuardedSocket, request as FastifyRequest, route, context)
}

function registryOf (contexts: AuthContext[]): { registry: Registry, all: GuardedConnection[] } {
  const registry = new Registry()
  const all = contexts.map(context => connectionOf(context))
  for (const connection of all) registry.add(connection)
  return { registry, all }
}

const idsOf = (connections: readonly Connection[]) => connections.map(({ id }) => id).sort()

const CROWD = [
  byToken('t1'), byToken('t1'), byToken('t2'), byToken('t3', { userId: 'bob' }), byToken('t1', { issuer: 'https://a.example' }),
  byToken('t4', { issuer: 'https://b.example', tenantId: 'acme' }), byToken('t5', { userId: 'bob', tenantId: 'acme' }),
  bySession('s1'), bySession('s1'), bySession('s2', { userId: 'bob', tenantId: 'acme' }), bySession('t1', { userId: 'carol' }), byToken('s1', { userId: 'carol' })
]

const FILTERS: ConnectionFilter[] = [
  {}, { userId: 'alice' }, { userId: 'bob' }, { userId: 'nobody' }, { userId: '' }, { issuer: null }, { issuer: 'https://a.example' }, { tenantId: null }, { tenantId: 'acme' },
  { sessionId: 's1' }, { sessionId: 't1' }, { sessionId: 't2' }, { tokenId: 't1' }, { tokenId: 's1' }, { tokenId: 's2' }, { authType: 'jwt' }, { authType: 'session' },
  { userId: 'alice', issuer: 'https://a.example' }, { userId: 'alice', tenantId: 'acme', issuer: 'https://b.example' }, { userId: 'bob', authType: 'session' },
  { tokenId: 't1', userId: 'alice', issuer: null }, { tokenId: 't1', userId: 'bob' }, { sessionId: 's1', authType: 'jwt' }, { sessionId: 's1', tokenId: 's1' },
  { sessionId: 's2', userId: 'bob', tenantId: 'acme', issuer: null, authType: 'session' }
]

/** What a filter means, said plainly. */
function means (context: AuthContext, filter: ConnectionFilter): boolean {
  const members = new Map<string, unknown>(Object.entries(context))
  return Object.entries(filter).every(([name, wanted]) => wanted === undefined || members.get(name) === wanted)
}

function same (t: Test, registry: Registry, present: readonly GuardedConnection[], what: string): void {
  const wrong = FILTERS.filter(filter => idsOf(registry.find(filter)).join() !== idsOf(present.filter(({ context }) => means(context, filter))).join())
  t.same(wrong, [], what)
  t.equal(registry.size, present.length, what)
}

t.test('the registry finds connections by every filter and every combination, and each once', async t => {
  const { registry, all } = registryOf(CROWD)
  same(t, registry, all, 'all present')
  t.equal(registry.find({ userId: 'alice' }).length, 7)
  t.equal(registry.find({ sessionId: 's1' }).length, 2)
  t.equal(new Set(all.map(({ id }) => id)).size, all.length)
})

t.test('an unknown filter throws and names it, in whatever company', async t => {
  const { registry } = registryOf(CROWD)
  for (const name of ['user', 'userid', 'id', 'role', '__proto', 'toString', 'constructor']) {
    for (const more of [{}, { userId: 'alice' }]) {
      t.throws(() => registry.find({ ...more, [name]: 'x' }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`filter\\.${name}`) }, name)
    }
  }
  t.throws(() => registry.find(Object.fromEntries([['__proto__', 'x']])), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
})

t.test('connections leave in every order without taking another along', async t => {
  const trio = () => [byToken('t'), byToken('t'), byToken('t'), byToken('t')]
  const orders = permutations([0, 1, 2, 3])
  t.equal(orders.length, 24)
  for (const make of [trio, () => trio().map(() => bySession('s'))]) {
    for (const order of orders) {
      const { registry, all } = registryOf(make())
      const left = new Set(all)
      for (const index of order) {
        const connection = all[index]
        if (connection === undefined) continue
        registry.remove(connection)
        registry.remove(connection)
        left.delete(connection)
        for (const filter of [{ userId: 'alice' }, { tokenId: 't' }, { sessionId: 's' }, {}]) {
          t.same(idsOf(registry.find(filter)), idsOf([...left].filter(({ context }) => means(context, filter))))
        }
      }
      t.equal(registry.size, 0)
    }
  }
})

t.test('a crowd leaves in three orders and the rest stays findable at every step', async t => {
  const indexes = CROWD.map((_, i) => i)
  for (const order of [indexes, [...indexes].reverse(), shuffled(indexes)]) {
    const { registry, all } = registryOf(CROWD)
    let left = all
    for (const index of order) {
      const connection = all[index]
      if (connection !== undefined) registry.remove(connection)
      left = left.filter(one => one !== connection)
      same(t, registry, left, `without ${index}`)
    }
  }
})

t.test('a connection moves to its new credential, of whatever kind, and is found by that alone', async t => {
  const { registry, all } = registryOf(CROWD)
  const moves: Array<[number, AuthContext]> = [[0, byToken('t9')], [1, byToken('t2')], [7, bySession('s9')], [8, byToken('t9')], [2, bySession('s1')], [0, byToken('t1')], [0, byToken('t1')]]
  for (const [index, context] of moves) {
    const connection = all[index]
    if (connection === undefined) continue
    registry.rekey(connection, () => { connection.context = context })
    same(t, registry, all, `moved ${index}`)
  }
  t.same(registry.find({ tokenId: 't9' }), [all[8]])
  for (const connection of all) registry.remove(connection)
  same(t, registry, [], 'all gone')
})

t.test('a connection that has left the registry does not come back into it with a new credential', async t => {
  const { registry, all } = registryOf([byToken('t1'), byToken('t1'), byToken('t2')])
  const [gone, ...others] = all
  if (gone === undefined) throw new Error('there are three')
  registry.remove(gone)
  const next = byToken('t2')
  registry.rekey(gone, () => { gone.context = next })
  t.equal(gone.context, next)
  same(t, registry, others, 'the others are where they were')
})

t.test('finding one user among 50 000 takes microseconds, and so does leaving', async t => {
  const { registry, all } = registryOf(Array.from({ length: 50_000 }, (_, i) => byToken(`t${i}`, { userId: `u${i}` })))
  const perCall = (calls: number, call: (i: number) => void) => {
    const started = performance.now()
    for (let i = 0; i < calls; i++) call(i)
    return (performance.now() - started) * 1000 / calls
  }
  const find = perCall(10_000, i => { if (registry.find({ userId: `u${i * 3}` }).length !== 1) named++ })
  t.equal(named, 0)
  t.ok(find < 50, `${find.toFixed(1)} µs to find`)
  const remove = perCall(50_000, i => {
    const connection = all[i]
    if (connection !== undefined) registry.remove(connection)
  })
  t.ok(remove < 50, `${remove.toFixed(1)} µs to leave`)
  t.equal(registry.size, 0)
})

function permutations<T> (list: readonly T[]): T[][] {
  if (list.length < 2) return [[...list]]
  return list.flatMap((item, i) => permutations([...list.slice(0, i), ...list.slice(i + 1)]).map(rest => [item, ...rest]))
}
