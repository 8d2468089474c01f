/** What nodes remember of users together: in a real Redis, which dies, freezes, forgets, and may have been written to by somebody else. */
import { createHash } from 'node:crypto'
import t, { type Test } from 'tap'
import type { Enrich, Identity } from '../lib/index.js'
import { createCodec } from '../lib/cluster/command.js'
import { createKeys } from '../lib/cluster/redis-keys.js'
import { run, type RedisClient } from '../lib/cluster/redis-client.js'
import { RedisMemory } from '../lib/cluster/redis-memory.js'
import { redisCluster, type RedisClusterOptions } from '../lib/cluster/redis.js'
import { bearer, CLUSTER_SECRET, endOf, redisNode, Script, SHORT, settled, startNode, until, type Node, type RedisNode, type RedisNodeSettings } from './cluster-suite.js'
import { goodToken, inSeconds, SECRET } from './helpers.js'
import { dial, eventually, setClock } from './live.js'
import { connect, needsRedis, startRedis, type Redis } from './redis.js'
import { untyped } from './revoking.js'
import { ask, deferred, type Deferred } from './stores.js'

// Many failures, each waited for.
t.setTimeout(180_000)

type Admin = Awaited<ReturnType<typeof connect>>
/** Nothing of ours runs out in a test that is about something else. */
const CALM = { ...SHORT, nodeTimeout: 4000, timeout: 2000 }
const USER = '{hybrid-auth}:user:'
const hashOf = (userId: string) => createHash('sha256').update(userId).digest('base64url')
const keyOf = (userId: string) => USER + hashOf(userId)

/** A user service that all nodes ask. */
class Service {
  readonly asked: Array<{ by: string, identity: Identity }> = []
  answer: (identity: Identity, by: string) => unknown = () => ({ told: 'first' })

  at (by: string): Enrich {
    return identity => {
      this.asked.push({ by, identity })
      return untyped(this.answer(identity, by))
    }
  }

  says (answer: unknown): void {
    this.answer = () => answer
  }

  defers (): Array<Deferred<unknown>> {
    const waiting: Array<Deferred<unknown>> = []
    this.answer = () => {
      const one = deferred<unknown>()
      waiting.push(one)
      return one.promise
    }
    return waiting
  }

  get by (): string[] {
    return this.asked.map(({ by }) => by)
  }
}

interface World {
  redis: Redis
  admin: Admin
  service: Service
  a: RedisNode
  b: RedisNode
  scripts: [Script, Script]
}

interface Settings extends RedisNodeSettings { maxAge?: number, shared?: boolean }

async function world (t: Test, { maxAge, shared = true, auth, cluster, ...rest }: Settings = {}): Promise<World> {
  const redis = await startRedis(t)
  const service = new Service()
  const scripts: World['scripts'] = [new Script(), new Script()]
  const start = async (name: string, script: Script) => redisNode(t, redis.url, {
    cluster: { ...CALM, ...cluster }, wrap: script.wrap, auth: { heartbeat: false, enrich: { ask: service.at(name), shared, ...(maxAge !== undefined && { maxAge }) }, ...auth }, ...rest
  })
  const [a, b] = [await start('a', scripts[0]), await start('b', scripts[1])]
  await settled(a)
  await settled(b)
  return { redis, admin: await connect(t, redis.url), service, a, b, scripts }
}

async function contextAt ({ host }: Node, claims: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
  const { status, body } = await ask(host, '/me', bearer(goodToken({ iat: inSeconds(-10), ...claims })))
  if (status !== 200) return { status }
  return JSON.parse(body) as Record<string, unknown>
}

async function toldAt (node: Node, claims: Record<string, unknown> = {}): Promise<unknown> {
  const { user, status } = await contextAt(node, claims)
  return status ?? (typeof user === 'object' && user !== null ? Reflect.get(user, 'told') : undefined)
}

/** Of a user, `version` not counted. */
async function keptOf (admin: Admin, userId: string): Promise<Record<string, string>> {
  const { version: _version, ...answers } = await admin.hGetAll(keyOf(userId))
  return answers
}

const keeps = (admin: Admin, userId: string, count = 1) => until(`${count} answers of ${userId} are kept`, async () => Object.keys(await keptOf(admin, userId)).length === count)

t.test('an answer that one node was given serves the other without a call', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  service.says({ told: 'shared', role: 'admin', permissions: ['x'], list: [{ deep: 1 }] })
  const first = await contextAt(a)
  t.match(first, { role: 'admin', permissions: ['x'], user: { told: 'shared' } })
  await keeps(admin, 'alice')
  const second = await contextAt(b)
  t.same(second.user, first.user)
  t.match(second, { role: 'admin', permissions: ['x'] })
  t.same(service.by, ['a'])
  const { there: { connection } } = await b.open({ token: goodToken() })
  const { user } = connection.context
  t.ok(Object.isFrozen(user) && Object.isFrozen(Reflect.get(user, 'list')), 'it is frozen there as well')
  t.same(service.by, ['a'])
  t.equal(await toldAt(b, { role: 'other' }), 'shared')
  t.equal(await toldAt(b, { iss: 'https://other.example' }), 'shared')
  t.same(service.by, ['a', 'b', 'b'], 'another identity and another issuer are asked about')
})

t.test('a registration that accepts other credentials is given nothing that this one was told', { ...needsRedis }, async t => {
  const { redis, a, admin, service } = await world(t)
  const other = await redisNode(t, redis.url, { cluster: CALM, auth: { heartbeat: false, jwt: { key: SECRET, algorithms: ['HS256'], audience: 'another service' }, enrich: { ask: service.at('other'), shared: true } } })
  await settled(other)
  service.says({ role: 'admin' })
  t.match(await contextAt(a, { aud: 'another service' }), { role: 'admin' })
  await keeps(admin, 'alice')
  service.says({ role: 'guest' })
  t.match(await contextAt(other, { aud: 'another service' }), { role: 'guest' })
  t.same(service.by, ['a', 'other'])
})

t.test('that nothing is known is shared as well, and without `shared` nothing is', { ...needsRedis }, async t => {
  for (const nothing of [null, undefined, {}]) {
    const { a, b, admin, service } = await world(t)
    service.says(nothing)
    t.equal(await toldAt(a), undefined)
    await settled(a)
    t.equal(await toldAt(b), undefined)
    t.same(service.by, ['a'], JSON.stringify(nothing))
    t.equal(Object.keys(await keptOf(admin, 'alice')).length, 1)
  }
  const { a, b, admin, service } = await world(t, { shared: false })
  t.equal(await toldAt(a), 'first')
  t.equal(await toldAt(b), 'first')
  await a.app.hybridAuth.refreshPermissions('alice')
  t.same(service.by, ['a', 'b'])
  t.same(await admin.keys(`${USER}*`), [])
})

t.test('what another node reads of a shared answer is what the first made of it', { ...needsRedis }, async t => {
  let reads = 0
  class Row {
    readonly told = 'a row'
    toJSON () { return { role: 'of toJSON', told: 'toJSON' } }
  }
  const answers: Array<[string, () => unknown]> = [
    ['a role that is undefined', () => ({ role: undefined })], ['permissions that are undefined', () => ({ permissions: undefined })], ['a tenant that is undefined', () => ({ tenantId: undefined })], ['a role that is a function', () => ({ role: () => 'x' })],
    ['an object with a toJSON', () => new Row()], ['one of its own', () => ({ told: 'own', toJSON: () => ({ role: 'of toJSON' }) })],
    ['one that is read twice', () => ({ get told () { return ++reads } })], ['a date', () => ({ told: new Date(0) })], ['numbers that JSON has not', () => ({ told: [NaN, -0, Infinity] })], ['a list with holes', () => ({ told: [undefined, () => 1, 2] })],
    ['a poisoned name', () => JSON.parse('{"__proto__":{"role":"admin"},"told":1}') as unknown], ['null for a role', () => ({ role: null })]
  ]
  const { a, b, service } = await world(t)
  const claims = { role: 'agent', permissions: ['read'], companyId: 'acme' }
  for (const [what, answer] of answers) {
    service.answer = answer
    const one = await contextAt(a, { ...claims, sub: what })
    await settled(a)
    const other = await contextAt(b, { ...claims, sub: what })
    for (const name of ['role', 'permissions', 'tenantId', 'user']) t.same(other[name], one[name], `${what}: ${name}`)
    t.not(one.status, 503, what)
  }
})

t.test('a thousand sockets of one user on two nodes make a call for each node at most, from a cold start and after a refresh', { ...needsRedis }, async t => {
  const { a, b, service } = await world(t)
  const nodes = [a, b] as const
  const storm = async (what: string) => {
    const before = service.asked.length
    const answer = deferred<unknown>()
    service.says(answer.promise)
    let arrived = 0
    const count = () => { arrived++ }
    for (const { app } of nodes) app.server.on('upgrade', count)
    const token = goodToken()
    const opened = Array.from({ length: 1000 }, (_, n) => dial(t, nodes[n % 2 === 0 ? 0 : 1].host, { token }))
    await eventually('all of them have come', () => arrived === 1000, 10_000)
    await eventually('the service is asked', () => service.asked.length > before)
    for (const { app } of nodes) app.server.off('upgrade', count)
    answer.resolve({ told: what })
    const peers = await Promise.all(opened)
    await eventually('all are connected', () => a.app.hybridAuth.count() + b.app.hybridAuth.count() === 1000)
    const calls = service.asked.length - before
    t.comment(`${what}: ${calls} calls`)
    t.ok(calls >= 1 && calls <= 2, `${calls} calls`)
    t.ok(nodes.every(({ app }) => app.hybridAuth.connections().every(({ context: { user } }) => Reflect.get(user, 'told') === what)))
    return peers
  }
  const peers = await storm('cold')
  const before = service.asked.length
  service.says({ told: 'refreshed' })
  t.match(await a.app.hybridAuth.refreshPermissions('alice'), { matched: 1000, closed: 0, nodes: { acknowledged: 2, missing: 0 } })
  const calls = service.asked.length - before
  t.comment(`refreshed: ${calls} calls`)
  t.ok(calls >= 1 && calls <= 2, `${calls} calls`)
  t.ok(nodes.every(({ app }) => app.hybridAuth.connections().every(({ context: { user } }) => Reflect.get(user, 'told') === 'refreshed')))
  for (const { socket } of peers) socket.terminate()
  await eventually('all have gone', () => a.app.hybridAuth.count() + b.app.hybridAuth.count() === 0)
  await a.app.hybridAuth.refreshPermissions('alice')
  for (const { socket } of await storm('again')) socket.terminate()
})

t.test('what one node forgets the other asks for again, whatever made it be forgotten', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  const orders: Array<[string, () => Promise<unknown>]> = [
    ['refreshPermissions', () => a.app.hybridAuth.refreshPermissions('alice')],
    ['setPermissions', () => a.app.hybridAuth.setPermissions('alice', ['set'])],
    ['revoke', () => a.app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() - 60_000 })]
  ]
  for (const [what, order] of orders) {
    service.says({ told: `before ${what}` })
    await a.app.hybridAuth.refreshPermissions('alice')
    t.equal(await toldAt(a), `before ${what}`)
    await keeps(admin, 'alice')
    t.equal(await toldAt(b), `before ${what}`)
    service.says({ told: `after ${what}` })
    t.equal(await toldAt(b), `before ${what}`, 'it is remembered there')
    await order()
    t.equal(await toldAt(b), `after ${what}`)
    t.equal(await toldAt(a), `after ${what}`)
  }
  const { length } = service.asked
  await a.app.hybridAuth.refreshPermissions('bob')
  t.equal(await toldAt(b), 'after revoke')
  t.equal(service.asked.length, length, 'somebody else is nobody to forget')
})

t.test('another role is on the open sockets of both nodes when refreshPermissions answers', { ...needsRedis }, async t => {
  const { a, b, service } = await world(t, { route: auth => auth.role !== 'nobody' })
  service.says({ role: 'agent' })
  const pairs = [await a.open({ token: goodToken() }), await b.open({ token: goodToken() })]
  service.says({ role: 'manager' })
  t.match(await a.app.hybridAuth.refreshPermissions('alice'), { matched: 2, closed: 0 })
  t.same(pairs.map(({ there: { connection } }) => connection.context.role), ['manager', 'manager'])
  service.says({ role: 'nobody' })
  t.match(await b.app.hybridAuth.refreshPermissions('alice'), { matched: 2, closed: 2 })
  for (const { peer } of pairs) t.equal((await endOf(peer)).code, 4007)
})

t.test('an answer that was asked for before the change and comes after it is served by no node, and not kept', { ...needsRedis }, async t => {
  for (const asks of ['a', 'b'] as const) {
    const world_ = await world(t)
    const { a, b, admin, service } = world_
    const [asking, other] = asks === 'a' ? [a, b] : [b, a]
    const waiting = service.defers()
    const first = toldAt(asking)
    await eventually('it is asked', () => waiting.length === 1)
    await a.app.hybridAuth.refreshPermissions('alice')
    waiting[0]?.resolve({ told: 'stale' })
    await eventually('it is asked again', () => waiting.length === 2)
    t.same(await keptOf(admin, 'alice'), {}, 'the stale one is not kept')
    const second = toldAt(other)
    await eventually('the other node asks as well', () => waiting.length === 3)
    for (const one of waiting) one.resolve({ told: 'new' })
    t.same(await Promise.all([first, second]), ['new', 'new'])
    await settled(asking)
    t.ok(Object.values(await keptOf(admin, 'alice')).every(text => text.includes('new')))
  }
})

t.test('so it is where the stale answer is on its way to Redis when the user is forgotten', { ...needsRedis }, async t => {
  const { a, b, admin, service, scripts } = await world(t)
  // The answer of the node that was asked for what is kept is held back: what it was told is old by then.
  const recalled = scripts[1].holds('RECALL_USER')
  const waiting = service.defers()
  const first = toldAt(b)
  await recalled.arrived
  await a.app.hybridAuth.refreshPermissions('alice')
  recalled.release()
  await eventually('it is asked', () => waiting.length > 0)
  for (let n = 0; n < waiting.length; n++) {
    waiting[n]?.resolve({ told: `answer ${n}` })
    await settled(b)
  }
  t.match(String(await first), /^answer/)
  const version = await admin.hGet(keyOf('alice'), 'version')
  t.ok(version, 'that it was forgotten is known')
  for (const text of Object.values(await keptOf(admin, 'alice'))) t.notOk(text.includes('answer 0'))
})

t.test('what was kept before the change is not believed where Redis told of it just before', { ...needsRedis }, async t => {
  const { a, b, admin, service, scripts } = await world(t)
  service.says({ told: 'old' })
  t.equal(await toldAt(a), 'old')
  await keeps(admin, 'alice')
  const recalled = scripts[1].holds('RECALL_USER')
  const late = toldAt(b)
  await recalled.arrived
  service.says({ told: 'new' })
  await a.app.hybridAuth.refreshPermissions('alice')
  recalled.release()
  t.equal(await late, 'new')
  t.equal(await toldAt(b), 'new')
})

t.test('nor while the node itself is still forgetting', { ...needsRedis }, async t => {
  const { a, admin, service, scripts } = await world(t)
  service.says({ told: 'old' })
  t.equal(await toldAt(a), 'old')
  await keeps(admin, 'alice')
  service.says({ told: 'new' })
  const forgotten = scripts[0].holds('FORGET_USER')
  const refresh = a.app.hybridAuth.refreshPermissions('alice')
  await forgotten.arrived
  const see = toldAt(a)
  await refresh
  t.equal(service.asked.length, 1, 'nobody is asked before it is forgotten')
  forgotten.release()
  t.equal(await see, 'new')
})

t.test('where Redis did not forget, it is told again before it is believed', { ...needsRedis }, async t => {
  const { a, b, admin, service, scripts } = await world(t)
  for (const times of [1, 2]) {
    await a.app.hybridAuth.refreshPermissions('alice')
    service.says({ told: 'old' })
    t.equal(await toldAt(a), 'old')
    await keeps(admin, 'alice')
    service.says({ told: 'new' })
    const { length } = service.asked
    // The other node would do it otherwise.
    const all = [scripts[1].fails('FORGET_USER'), ...Array.from({ length: times }, () => scripts[0].fails('FORGET_USER'))]
    await a.app.hybridAuth.refreshPermissions('alice')
    t.ok(Object.values(await keptOf(admin, 'alice')).some(text => text.includes('old')), 'Redis has it')
    t.equal(await toldAt(a), 'new')
    t.equal(await toldAt(b), 'new')
    await Promise.all(all)
    t.ok(service.asked.length > length)
    await until('the old one is gone', async () => Object.values(await keptOf(admin, 'alice')).every(text => text.includes('new')))
  }
})

t.test('a Redis that cannot run one of the scripts leaves each node to itself', { ...needsRedis }, async t => {
  const { a, b, admin, service, scripts } = await world(t)
  const failed = scripts.map(script => script.fails('RECALL_USER'))
  t.same([await toldAt(a), await toldAt(b)], ['first', 'first'])
  await Promise.all(failed)
  t.same(service.by, ['a', 'b'])
  t.same(await keptOf(admin, 'alice'), {}, 'what it may be kept under is not known')
  // Somebody has put something else where the hash would be.
  await admin.set(keyOf('bob'), 'a text')
  t.same([await toldAt(a, { sub: 'bob' }), await toldAt(b, { sub: 'bob' })], ['first', 'first'])
  t.same(service.by, ['a', 'b', 'a', 'b'])
  await a.app.hybridAuth.refreshPermissions('bob')
  t.equal(await toldAt(a, { sub: 'bob' }), 'first')
  await keeps(admin, 'bob')
  const failing = scripts[0].fails('KEEP_USER')
  t.equal(await toldAt(a, { sub: 'carol' }), 'first')
  await failing
  t.same(await keptOf(admin, 'carol'), {})
})

interface Fault { begin: (world: World) => unknown, end: (world: World) => unknown }
const FAULTS: Record<string, Fault> = {
  killed: { begin: ({ redis }) => redis.kill(), end: ({ redis }) => redis.restart() },
  frozen: { begin ({ redis }) { redis.pause() }, end ({ redis }) { redis.resume() } }
}

for (const [what, { begin, end }] of Object.entries(FAULTS)) {
  t.test(`while Redis is ${what} each node asks by itself, and what is forgotten then stays forgotten when it is back`, { ...needsRedis }, async t => {
    const world_ = await world(t, { cluster: { ...SHORT, timeout: 150 }, maxAge: 3_600_000 })
    const { a, b, admin, service } = world_
    service.says({ told: 'old' })
    t.equal(await toldAt(a), 'old')
    t.equal(await toldAt(a, { sub: 'bob' }), 'old')
    await keeps(admin, 'alice')
    await keeps(admin, 'bob')
    await begin(world_)
    await eventually('both have lost it', () => !a.status().connected && !b.status().connected, 10_000)
    service.says({ told: 'new' })
    t.same([await toldAt(b), await toldAt(b, { sub: 'carol' }), await toldAt(a, { sub: 'carol' })], ['new', 'new', 'new'])
    t.equal(await toldAt(a), 'old', 'what a node remembers by itself is good')
    t.match(await a.app.hybridAuth.refreshPermissions('alice'), { durable: false, nodes: { acknowledged: 1 } })
    service.says({ told: 'newest' })
    t.equal(await toldAt(a), 'newest')
    await end(world_)
    await eventually('both are back', () => a.status().connected && b.status().connected, 15_000)
    await settled(a)
    await settled(b)
    await eventually('the other has been told', () => b.status().queued === 0 && a.status().queued === 0)
    service.says({ told: 'at last' })
    t.not(await toldAt(a), 'old')
    await until('the other asks as well', async () => {
      const told = await toldAt(b)
      return told !== 'old' && told !== 'new'
    })
    // A node that begins now has nothing but what Redis tells it.
    const c = await redisNode(t, world_.redis.url, { cluster: SHORT, auth: { heartbeat: false, enrich: { ask: service.at('c'), shared: true } } })
    t.not(await toldAt(c), 'old')
    if (what === 'frozen') t.equal(await toldAt(c, { sub: 'bob' }), 'old', 'of somebody who was not forgotten it is what was kept')
  })
}

t.test('a Redis that hangs delays who comes by no more than it may, and the service is asked', { ...needsRedis }, async t => {
  const { redis, a, service } = await world(t, { cluster: { ...SHORT, timeout: 200 } })
  redis.pause()
  const began = performance.now()
  t.equal(await toldAt(a), 'first')
  t.ok(performance.now() - began < 2500)
  t.same(service.by, ['a'])
  redis.resume()
})

/** The parts of a node that remember, with a Redis that can be taken away. */
async function bare (t: Test, { secret = CLUSTER_SECRET, prefix = 'hybrid-auth' } = {}) {
  const { url } = await startRedis(t)
  const admin = await connect(t, url)
  const state = { isAway: false }
  const client: RedisClient = admin
  const codec = createCodec(secret === '' ? [] : [secret])
  const memoryOf = () => new RedisMemory(createKeys(prefix), codec, async (script, keys, args) =>
    state.isAway ? undefined : run(client, script, keys, args, 2000).catch(() => undefined))
  return { admin, codec, state, memory: memoryOf(), memoryOf }
}

const until_ = (memory: RedisMemory, userId: string, key: string, value: string | null) => until(`${key} is ${value ?? 'gone'}`, async () => (await memory.recall(userId, key))?.value === value)
const inAMinute = () => Date.now() + 60_000

t.test('more than sixteen identities of a user: at most sixteen answers are kept, and that it was forgotten stays known for its time', { ...needsRedis }, async t => {
  const { admin, memory } = await bare(t)
  const keep = async (n: number, version: string) => {
    memory.keep('alice', `key ${n}`, String(n), Date.now() + 5000, version)
    await admin.ping()
  }
  const none = await memory.recall('alice', 'key')
  for (let n = 0; n < 40; n++) await keep(n, none?.version ?? '')
  const first = Object.keys(await keptOf(admin, 'alice')).length
  t.ok(first >= 1 && first <= 16, `${first} are kept`)

  const ofBob = await memory.recall('bob', 'key')
  for (let n = 0; n < 17; n++) memory.keep('bob', `key ${n}`, String(n), Date.now() + 5000, ofBob?.version ?? '')
  await admin.ping()
  t.ok(Object.keys(await keptOf(admin, 'bob')).length <= 16, 'also of somebody who was never forgotten')

  memory.forget('alice')
  const version = (await memory.recall('alice', 'key'))?.version ?? ''
  t.ok(version)
  t.same(await keptOf(admin, 'alice'), {})
  t.ok(await admin.pTTL(keyOf('alice')) > 800_000, 'it is known for as long as a question may take')
  for (let n = 0; n < 40; n++) await keep(n, version)
  const second = Object.keys(await keptOf(admin, 'alice')).length
  t.ok(second >= 1 && second <= 16, `${second} are kept`)
  t.equal((await memory.recall('alice', 'key'))?.version, version)
  t.ok(await admin.pTTL(keyOf('alice')) > 800_000, 'also where there were more than are kept')
})

t.test('through the whole of it: forty identities of a user on two nodes are each right', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  service.answer = ({ role }) => ({ told: `of ${role ?? 'nobody'}` })
  for (let n = 0; n < 40; n++) t.equal(await toldAt(n % 2 === 0 ? a : b, { role: `role ${n}` }), `of role ${n}`)
  for (let n = 0; n < 40; n++) t.equal(await toldAt(n % 2 === 0 ? b : a, { role: `role ${n}` }), `of role ${n}`)
  await settled(a)
  await settled(b)
  t.ok(Object.keys(await keptOf(admin, 'alice')).length <= 16)
})

t.test('nothing is kept for longer than it is good, and that somebody was forgotten for a quarter of an hour', { ...needsRedis }, async t => {
  const { a, admin, service } = await world(t, { maxAge: 5000 })
  t.equal(await toldAt(a), 'first')
  await keeps(admin, 'alice')
  const ttl = await admin.pTTL(keyOf('alice'))
  t.ok(ttl > 0 && ttl <= 900_000, `${ttl} ms`)
  await a.app.hybridAuth.refreshPermissions('alice')
  await settled(a)
  const forgotten = await admin.pTTL(keyOf('alice'))
  t.ok(forgotten > 800_000 && forgotten <= 900_000, `${forgotten} ms`)
  service.says({ told: 'second' })
  t.equal(await toldAt(a), 'second')
  await keeps(admin, 'alice')
  const again = await admin.pTTL(keyOf('alice'))
  t.ok(again > 800_000 && again <= forgotten, `${again} ms`)
  for (const key of await admin.keys('*')) if (key.startsWith(USER)) t.ok(await admin.pTTL(key) > 0, key)

  const { memory, admin: other } = await bare(t)
  const { version = '' } = await memory.recall('bob', 'key') ?? {}
  memory.keep('bob', 'key', '1', Date.now() + 3_600_000, version)
  await until_(memory, 'bob', 'key', '1')
  memory.keep('bob', 'short', '1', Date.now() + 100, version)
  memory.keep('bob', 'over', '1', Date.now() - 1, version)
  await other.ping()
  const longest = await other.pTTL(keyOf('bob'))
  t.ok(longest > 3_500_000 && longest <= 3_600_000, `${longest} ms: for as long as the longest is good`)
  t.equal(await other.hExists(keyOf('bob'), 'over'), 0)
})

t.test('an answer that is over by its own time is not served, however long Redis has it', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t, { maxAge: 200 })
  await a.app.hybridAuth.refreshPermissions('alice')
  t.equal(await toldAt(a), 'first')
  await keeps(admin, 'alice')
  service.says({ told: 'second' })
  await until('its time is over', async () => await toldAt(b) === 'second')
  t.ok(await admin.pTTL(keyOf('alice')) > 800_000, 'Redis has it still')
})

t.test('an answer of a node whose clock runs ahead is good here for no longer than maxAge', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t, { maxAge: 20_000 })
  t.equal(await toldAt(a), 'first')
  await keeps(admin, 'alice')
  const [[field, sealed] = ['', '']] = Object.entries(await keptOf(admin, 'alice'))
  const codec = createCodec([CLUSTER_SECRET])
  const kept = codec.openRemembered(sealed)
  if (kept === null) throw new Error('what is kept cannot be read')
  await admin.hSet(keyOf('alice'), field, codec.seal('memory', { ...kept, until: kept.until + 3_600_000 }))
  t.equal(await toldAt(b), 'first')
  t.same(service.by, ['a'])
  service.says({ told: 'second' })
  const clock = setClock(t)
  clock.move(20_001)
  // Redis has dropped it by then.
  await admin.hDel(keyOf('alice'), field)
  t.equal(await toldAt(b), 'second')
})

t.test('69: what no node has signed for this user and this identity, or not lately, is ignored, and the service is asked', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  service.says({ told: 'true' })
  t.equal(await toldAt(a), 'true')
  await keeps(admin, 'alice')
  const [[field, sealed] = ['', '']] = Object.entries(await keptOf(admin, 'alice'))
  t.equal(await toldAt(a, { role: 'other' }), 'true')
  await keeps(admin, 'alice', 2)
  const [[other, ofOther] = ['', '']] = Object.entries(await keptOf(admin, 'alice')).filter(([key]) => key !== field)
  const at = sealed.indexOf(':')
  const [signature, text] = [sealed.slice(0, at), sealed.slice(at + 1)]
  t.match(JSON.parse(text), { user: hashOf('alice'), key: field })
  t.equal(signature.length, 43)
  const codec = createCodec([CLUSTER_SECRET])
  const stranger = createCodec(['a secret that nobody here has told us of'])
  const nobody = createCodec([])
  const good = { user: hashOf('alice'), key: field, value: '{"told":"forged","role":"admin"}', until: inAMinute() }
  const forged: Array<[string, string]> = [
    ['tampered with', `${signature}:${text.replace('true', 'lies')}`], ['without a signature', `:${JSON.stringify(good)}`], ['unsigned', nobody.seal('memory', good)], ['signed by another', stranger.seal('memory', good)],
    ['signed for another place', codec.seal('ticket', good)], ['signed as a command', codec.seal('control', good)], ['of another identity', ofOther], ['of another user', codec.seal('memory', { ...good, user: hashOf('bob') })],
    ['of another key', codec.seal('memory', { ...good, key: other })], ['over', codec.seal('memory', { ...good, until: Date.now() - 1 })], ['over for ever', codec.seal('memory', { ...good, until: 0 })],
    ['huge', `${signature}:${JSON.stringify({ ...good, value: 'x'.repeat(1_000_000) })}`], ['no JSON', `${signature}:{`], ['empty', ''], ['null', 'null'], ['with more members', codec.seal('memory', { ...good, more: 1 })],
    ['without a value', codec.seal('memory', { ...good, value: undefined })], ['a value that is no text', codec.seal('memory', { ...good, value: { told: 'forged' } })], ['a time that is a text', codec.seal('memory', { ...good, until: '9e99' })],
    ['bytes that are no text', '\u0000\ud800']
  ]
  for (const [what, value] of forged) {
    // Only the node itself forgets: what is there is put there afterwards.
    await b.app.hybridAuth.refreshPermissions('alice')
    await settled(a)
    await settled(b)
    await admin.hSet(keyOf('alice'), field, value)
    const { length } = service.asked
    const { role, user } = await contextAt(b)
    t.same([role, Reflect.get(user ?? {}, 'told'), service.asked.length - length], [null, 'true', 1], what)
  }
  await b.app.hybridAuth.refreshPermissions('alice')
  await settled(a)
  await settled(b)
  await admin.hSet(keyOf('alice'), field, codec.seal('memory', good))
  t.match(await contextAt(b), { role: 'admin', user: { told: 'forged' } }, 'one with which nothing is wrong is believed')
})

t.test('69: what is signed and makes no identity refuses, and lets nobody in', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  t.equal(await toldAt(a), 'first')
  await keeps(admin, 'alice')
  const [[field] = ['']] = Object.entries(await keptOf(admin, 'alice'))
  const codec = createCodec([CLUSTER_SECRET])
  for (const value of ['{', '[]', '7', '{"userId":"mallory"}', '{"role":7}']) {
    await a.app.hybridAuth.refreshPermissions('alice')
    await settled(b)
    await admin.hSet(keyOf('alice'), field, codec.seal('memory', { user: hashOf('alice'), key: field, value, until: inAMinute() }))
    t.match(await contextAt(b), { status: 503 }, value)
    t.equal(service.asked.length, 1)
  }
})

t.test('a version that somebody else has written makes nothing worse than that the service is asked', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  for (const version of ['', 'x'.repeat(100_000), '\u0000', 'a b']) {
    await a.app.hybridAuth.refreshPermissions('alice')
    await settled(b)
    await admin.hSet(keyOf('alice'), 'version', version)
    t.same([await toldAt(a), await toldAt(b)], ['first', 'first'])
  }
  t.ok(service.asked.length >= 4)
})

t.test('names of keys hold neither a user id nor anything of a token, and no value holds a token', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t)
  const token = goodToken({ sub: 'alice@example.com', jti: 'the-jti-of-it' })
  for (const { host } of [a, b]) t.equal((await ask(host, '/me', bearer(token))).status, 200)
  await keeps(admin, 'alice@example.com')
  await a.app.hybridAuth.refreshPermissions('alice@example.com')
  await toldAt(a, { sub: 'alice@example.com' })
  await keeps(admin, 'alice@example.com')
  const names = await admin.keys('*')
  t.ok(names.includes(keyOf('alice@example.com')))
  for (const name of names) t.notMatch(name, /alice|example\.com/)
  for (const [field, value] of Object.entries(await admin.hGetAll(keyOf('alice@example.com')))) {
    for (const part of [token, ...token.split('.'), 'the-jti-of-it', 'alice']) t.notOk(`${field} ${value}`.includes(part))
  }
})

t.test('scripts that Redis has lost are sent again', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  const flush = () => admin.scriptFlush()
  await flush()
  t.equal(await toldAt(a), 'first')
  await keeps(admin, 'alice')
  await flush()
  t.equal(await toldAt(b), 'first')
  t.same(service.by, ['a'])
  await flush()
  service.says({ told: 'second' })
  await a.app.hybridAuth.refreshPermissions('alice')
  t.equal(await toldAt(b), 'second')
  const { admin: bareAdmin, memory } = await bare(t)
  await bareAdmin.scriptFlush()
  memory.forget('bob')
  await bareAdmin.scriptFlush()
  const { version = '' } = await memory.recall('bob', 'key') ?? {}
  t.ok(version)
  await bareAdmin.scriptFlush()
  memory.keep('bob', 'key', 'kept', inAMinute(), version)
  await until_(memory, 'bob', 'key', 'kept')
})

t.test('another prefix is another cluster', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const admin = await connect(t, redis.url)
  const service = new Service()
  const start = (prefix: string) => redisNode(t, redis.url, { cluster: { ...CALM, prefix }, auth: { heartbeat: false, enrich: { ask: service.at(prefix), shared: true } } })
  const [one, two, again] = [await start('one'), await start('two'), await start('one')]
  t.equal(await toldAt(one), 'first')
  await until('it is kept', async () => await admin.hLen(`{one}:user:${hashOf('alice')}`) > 0)
  t.same([await toldAt(two), await toldAt(again)], ['first', 'first'])
  t.same(service.by, ['one', 'two'])
  t.same((await admin.keys('*user*')).sort(), [`{one}:user:${hashOf('alice')}`, `{two}:user:${hashOf('alice')}`])
})

t.test('without a secret answers are shared as well; who has one believes none that is not signed', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const admin = await connect(t, redis.url)
  const service = new Service()
  const { secret, ...unsigned } = CALM
  const start = async (name: string, cluster: RedisClusterOptions) => startNode(t, {
    cluster: redisCluster(await connect(t, redis.url), cluster), auth: { heartbeat: false, enrich: { ask: service.at(name), shared: true } }
  })
  const [one, two] = [await start('one', unsigned), await start('two', unsigned)]
  t.equal(await toldAt(one), 'first')
  await keeps(admin, 'alice')
  t.equal(await toldAt(two), 'first')
  t.same(service.by, ['one'])
  const signing = await start('signing', { ...unsigned, secret })
  t.equal(await toldAt(signing), 'first')
  t.same(service.by, ['one', 'signing'])
})

t.test('an answer that is too long to be told is remembered by the node alone', { ...needsRedis }, async t => {
  const { a, b, admin, service } = await world(t)
  service.says({ told: 'x'.repeat(70_000) })
  for (const node of [a, b, a, b]) t.equal(String(await toldAt(node)).length, 70_000)
  t.same(service.by, ['a', 'b'])
  t.same(await keptOf(admin, 'alice'), {})
})

t.test('an answer that comes after its time is not kept for the others', { ...needsRedis }, async t => {
  const { a, admin, service, redis } = await world(t, { auth: { heartbeat: false } })
  const slow = await redisNode(t, redis.url, { cluster: CALM, auth: { heartbeat: false, handshakeTimeout: 300, enrich: { ask: service.at('slow'), shared: true } } })
  await settled(slow)
  const waiting = service.defers()
  t.equal(await toldAt(slow), 503)
  await a.app.hybridAuth.refreshPermissions('alice')
  // A quarter of an hour later nothing is known of that any more.
  await admin.del(keyOf('alice'))
  waiting[0]?.resolve({ told: 'stale' })
  await settled(slow)
  await settled(slow)
  t.same(await keptOf(admin, 'alice'), {})
})

t.test('a stale answer is not kept where Redis has lost everything since it was asked for, that the user was forgotten included', { ...needsRedis }, async t => {
  const { admin, memoryOf } = await bare(t)
  const [one, two] = [memoryOf(), memoryOf()]
  const asked = await one.recall('alice', 'key')
  if (asked === null) throw new Error('Redis does not answer')
  t.equal(asked.value, null)
  two.forget('alice')
  await until_(two, 'alice', 'key', null)
  await admin.flushAll()
  one.keep('alice', 'key', 'stale', inAMinute(), asked.version)
  await admin.ping()
  t.not((await memoryOf().recall('alice', 'key'))?.value, 'stale')
})

t.test('a stale answer is not kept under a version of before', { ...needsRedis }, async t => {
  const { admin, memoryOf } = await bare(t)
  const [one, two] = [memoryOf(), memoryOf()]
  for (let round = 0; round < 3; round++) {
    const asked = await one.recall('alice', 'key')
    if (asked === null) throw new Error('Redis does not answer')
    two.forget('alice')
    const fresh = await two.recall('alice', 'key')
    one.keep('alice', 'key', 'stale', inAMinute(), asked.version)
    await admin.ping()
    t.same((await two.recall('alice', 'key'))?.value, null)
    two.keep('alice', 'key', 'fresh', inAMinute(), fresh?.version ?? '')
    await until_(one, 'alice', 'key', 'fresh')
  }
})

t.test('who was forgotten while Redis was away is forgotten there before anything of it is believed', { ...needsRedis }, async t => {
  const { state, memory, memoryOf } = await bare(t)
  const { version = '' } = await memory.recall('alice', 'key') ?? {}
  memory.keep('alice', 'key', 'old', inAMinute(), version)
  await until_(memory, 'alice', 'key', 'old')
  state.isAway = true
  memory.forget('alice')
  t.equal(await memory.recall('alice', 'key'), null, 'it cannot be asked')
  t.equal(await memory.recall('alice', 'key'), null, 'nor a second time')
  state.isAway = false
  t.equal((await memory.recall('alice', 'key'))?.value, null)
  t.equal((await memoryOf().recall('alice', 'key'))?.value, null, 'nor has anybody else')
  // And then it is believed again.
  const again = await memory.recall('alice', 'key')
  memory.keep('alice', 'key', 'new', inAMinute(), again?.version ?? '')
  await until_(memory, 'alice', 'key', 'new')
})

t.test('so it is for as many as may be forgotten while it is away', { ...needsRedis }, async t => {
  const { state, memory, admin } = await bare(t)
  const { version = '' } = await memory.recall('alice', 'key') ?? {}
  memory.keep('alice', 'key', 'old', inAMinute(), version)
  await until_(memory, 'alice', 'key', 'old')
  state.isAway = true
  memory.forget('alice')
  for (let n = 0; n < 250_000; n++) memory.forget(`user ${n}`)
  state.isAway = false
  t.not((await memory.recall('alice', 'key'))?.value, 'old')
  t.ok(await admin.dbSize() < 10_000)
})
