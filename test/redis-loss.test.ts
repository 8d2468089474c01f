/** Redis dies, freezes, is cut off and forgets: what nodes do meanwhile, and that nothing of it is lost. */
import { cp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bearer, delivery, endOf, isOpen, kept, redisNode, REVOKED, settled, tokenOf, until, type Node, type RedisNode, type RedisNodeSettings } from './cluster-suite.js'
import { goodToken, upgrade } from './helpers.js'
import { eventually, type Pair } from './live.js'
import { connect, needsRedis, startProxy, startRedis, type Proxy, type Redis } from './redis.js'
import { ask, codeOf } from './stores.js'

// Many failures, each waited for.
t.setTimeout(180_000)

const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const AWAY = { durable: false, nodes: { acknowledged: 1, missing: 1 } }
const LOG = '{hybrid-auth}:log'
const LIVE = '{hybrid-auth}:live'
const NODES = '{hybrid-auth}:nodes'

interface World {
  redis: Redis
  a: RedisNode
  b: RedisNode
  proxies: [Proxy, Proxy]
  admin: Awaited<ReturnType<typeof connect>>
  start: (settings?: RedisNodeSettings) => Promise<RedisNode>
}

/** Two nodes, each with a way of its own to one Redis. */
async function world (t: Test, { durable = false, ...settings }: RedisNodeSettings & { durable?: boolean } = {}): Promise<World> {
  const redis = await startRedis(t, { durable })
  const proxies: [Proxy, Proxy] = [await startProxy(t, redis.port), await startProxy(t, redis.port)]
  const [a, b] = await Promise.all([redisNode(t, proxies[0].url, settings), redisNode(t, proxies[1].url, settings)])
  const admin = await connect(t, redis.url)
  await eventually('they know of each other', () => a.count('cluster_lost') === 0)
  await settled(a)
  await settled(b)
  return { redis, a, b, proxies, admin, start: async (more = {}) => redisNode(t, redis.url, { ...settings, ...more }) }
}

const isLost = (node: Node) => !node.status().connected && node.count('cluster_lost') > node.count('cluster_recovered')
const isBack = (node: Node) => node.status().connected && node.count('cluster_lost') === node.count('cluster_recovered')
const bothLost = ({ a, b }: World) => eventually('both have lost it', () => isLost(a) && isLost(b))
const bothBack = ({ a, b }: World) => eventually('both are back', () => isBack(a) && isBack(b), 10_000)

interface Fault { durable: boolean, begin: (world: World) => unknown, end: (world: World) => unknown }
const FAULTS: Record<string, Fault> = {
  'killed, and has lost everything when it is back': { durable: false, begin: ({ redis }) => redis.kill(), end: ({ redis }) => redis.restart() },
  'killed, and has everything when it is back': { durable: true, begin: ({ redis }) => redis.kill(), end: ({ redis }) => redis.restart() },
  frozen: { durable: false, begin ({ redis }) { redis.pause() }, end ({ redis }) { redis.resume() } },
  'cut off': { durable: false, begin ({ proxies }) { for (const one of proxies) one.cut() }, end ({ proxies }) { for (const one of proxies) one.heal() } },
  'behind a network where nothing passes': { durable: false, begin ({ proxies }) { for (const one of proxies) one.stall() }, end ({ proxies }) { for (const one of proxies) one.flow() } }
}

for (const [what, fault] of Object.entries(FAULTS)) {
  t.test(`while Redis is ${what}, nodes do what they can, and the rest when it is over`, { ...needsRedis }, async t => {
    const world_ = await world(t, { durable: fault.durable })
    const { a, b, start } = world_
    const [alice, before] = [tokenOf('alice'), tokenOf('before')]
    await a.revoke({ token: before })
    const [onA, onB] = [await a.open({ token: alice }), await b.open({ token: alice })]
    const bob = await b.open({ token: tokenOf('bob') })
    const dave = await b.open({ token: tokenOf('dave', { permissions: [] }), speaks: true })
    const carol = await a.open({ token: tokenOf('carol') })
    const began = Date.now()

    await fault.begin(world_)
    await bothLost(world_)
    for (const node of [a, b]) {
      const { connected, lostSince } = node.status()
      t.same([connected, node.count('cluster_lost')], [false, 1])
      t.ok(lostSince !== null && lostSince >= began && lostSince <= Date.now(), 'since when')
    }
    for (const pair of [onA, onB, bob, carol]) await isOpen(t, pair, 'a socket meanwhile')
    t.same(await a.admits(tokenOf('erin')), [101, 200], 'tokens need no Redis')

    const revoked = await a.revoke({ userId: 'alice' })
    t.same([revoked.matched, revoked.closed, delivery(revoked)], [1, 1, AWAY])
    t.same(await endOf(onA.peer), REVOKED)
    t.same(await a.admits(alice), [401, 401])
    await isOpen(t, onB, 'a socket that nobody can tell')
    const counted = await a.revoke({ userId: 'bob' }, { dryRun: true })
    t.same([counted.matched, delivery(counted)], [0, AWAY])
    for (const name of ['one', 'two', 'three']) t.same(delivery(await a.app.hybridAuth.setPermissions('dave', [name])), AWAY)
    t.same(delivery(await b.revoke({ userId: 'carol' })), AWAY)
    t.same(delivery(await a.disconnect({ userId: 'bob' }, { code: 4444 })), AWAY)
    t.same([a.status().queued, b.status().queued], [6, 1])

    const since = [a, b].map(({ status }) => status().lostSince ?? 0)
    const healed = Date.now()
    await fault.end(world_)
    t.same(await endOf(onB.peer), REVOKED, 'it arrived')
    t.same(await endOf(carol.peer), REVOKED)
    t.equal((await endOf(bob.peer)).code, 4444)
    await bothBack(world_)
    for (const [i, node] of [a, b].entries()) {
      t.match(node.status(), { connected: true, lostSince: null, queued: 0, revocations: 3, ignored: 0 })
      t.same([node.count('cluster_lost'), node.count('cluster_recovered')], [1, 1])
      const recovered = node.events.find(event => event.type === 'cluster_recovered')
      if (recovered?.type !== 'cluster_recovered') throw new Error('no event')
      const { lostFor, converged } = recovered
      t.ok(lostFor >= healed - (since[i] ?? 0) - 50 && lostFor <= Date.now() - began, `lost for ${lostFor}`)
      t.ok(converged >= 0 && converged < 3000, `converged in ${converged}`)
    }
    t.same(dave.peer.framesOf('permission_update').map(({ permissions }) => permissions), [['one'], ['two'], ['three']], 'in order')
    const c = await start()
    for (const node of [a, b, c]) {
      for (const token of [alice, before, tokenOf('carol')]) t.same(await node.admits(token), [401, 401])
      t.same(await node.admits(tokenOf('bob')), [101, 200])
    }
    t.match(await b.revoke({ userId: 'dave' }), { matched: 1, durable: true, nodes: { acknowledged: 3, missing: 0 } })
  })
}

t.test('where no more commands can wait, a disconnect is refused, and a revocation is not lost', { ...needsRedis }, async t => {
  const world_ = await world(t)
  const { a, b, proxies: [near] } = world_
  const [alice, bob] = [await b.open({ token: tokenOf('alice') }), await b.open({ token: tokenOf('bob') })]
  near.cut()
  await eventually('it is lost', () => isLost(a))
  await Promise.all(Array.from({ length: 999 }, (_, i) => a.disconnect({ userId: `nobody ${i}` })))
  await a.disconnect({ userId: 'bob' })
  t.equal(a.status().queued, 1000)
  await t.rejects(a.disconnect({ userId: 'bob' }), { code: UNAVAILABLE })
  await t.rejects(a.app.hybridAuth.setPermissions('bob', []), { code: UNAVAILABLE })
  await t.rejects(a.revoke({ userId: 'bob' }, { dryRun: true }), { code: UNAVAILABLE })
  t.same(delivery(await a.revoke({ userId: 'alice' })), AWAY)
  t.equal(a.status().queued, 1000)
  near.heal()
  t.same(await endOf(alice.peer), REVOKED)
  t.equal((await endOf(bob.peer)).code, 4006)
  await eventually('all have been told', () => a.status().queued === 0 && isBack(a))
  t.same(await b.admits(tokenOf('alice')), [401, 401])
  t.same(await b.admits(tokenOf('bob')), [101, 200])
})

t.test('a node that was cut off while another revoked carries it out when it is back', { ...needsRedis }, async t => {
  const { a, b, proxies: [, far] } = await world(t)
  const token = tokenOf('alice')
  const { peer } = await b.open({ token })
  far.cut()
  await eventually('it is lost', () => isLost(b))
  t.match(await a.revoke({ userId: 'alice' }), { matched: 0, durable: true, nodes: { acknowledged: 1, missing: 1 } })
  t.same(await b.admits(token), [101, 200])
  far.heal()
  t.same(await endOf(peer), REVOKED)
  await eventually('it is back', () => isBack(b))
  t.same(await b.admits(token), [401, 401])
  t.same([a.count('cluster_lost'), b.count('cluster_recovered')], [0, 1])
})

t.test('a node that was away for longer than the log goes back knows everything before it says that it is back', { ...needsRedis }, async t => {
  const { a, b, admin, proxies: [, far] } = await world(t)
  const { peer } = await b.open({ token: tokenOf('alice') })
  far.cut()
  await eventually('it is lost', () => isLost(b))
  await a.revoke({ userId: 'alice' })
  await admin.xTrim(LOG, 'MAXLEN', 0)
  const now = Date.now.bind(Date)
  t.teardown(() => { Date.now = now })
  Date.now = () => now() + 7_200_000
  let known = -1
  b.app.hybridAuth.events.once('cluster_recovered', () => { known = b.status().revocations })
  far.heal()
  t.same(await endOf(peer), REVOKED)
  await eventually('it is back', () => isBack(b))
  t.equal(known, 1)
})

t.test('what was carried out before is not carried out again where the log is read anew', { ...needsRedis }, async t => {
  const world_ = await world(t, { durable: true })
  const { a, b, redis } = world_
  const token = tokenOf('alice')
  const { peer } = await b.open({ token, speaks: true })
  await a.disconnect({ userId: 'alice' })
  t.equal((await endOf(peer)).code, 4006)
  await a.app.hybridAuth.setPermissions('bob', ['old'])
  const again = [await a.open({ token }), await b.open({ token }), await b.open({ token: tokenOf('bob', { permissions: ['his own'] }) })]
  await redis.kill()
  await bothLost(world_)
  await redis.restart()
  await bothBack(world_)
  await settled(a)
  for (const pair of again) await isOpen(t, pair, 'a socket that came after')
  t.same(again[2]?.there.connection.context.permissions, ['his own'])
})

async function loses (t: Test, lose: (world: World) => Promise<unknown>, { durable = false, isNoticed = true } = {}): Promise<void> {
  const world_ = await world(t, { durable, auth: { heartbeat: false, limits: { connections: { perUser: 2 } } } })
  const { a, b, admin, start } = world_
  const revoked = tokenOf('alice')
  await a.revoke({ token: revoked })
  const bob = [await a.open({ token: tokenOf('bob') }), await b.open({ token: tokenOf('bob') })]
  await settled(a)
  await lose(world_)
  if (isNoticed) await eventually('it was noticed', () => a.count('cluster_lost') > 0 && b.count('cluster_lost') > 0)
  await bothBack(world_)
  await until('it is told what nodes know', async () => (await kept(admin)).length === 1 && await admin.zCard('{hybrid-auth}:lease:user:[null,"bob"]') === 2)
  const c = await start()
  t.same(await c.admits(revoked), [401, 401])
  t.same(await c.admits(tokenOf('bob')), [429, 200])
  for (const pair of bob) await isOpen(t, pair, 'a socket')
  t.match(await c.revoke({ userId: 'bob' }), { matched: 2, closed: 2, durable: true, nodes: { acknowledged: 3, missing: 0 } })
  for (const { status } of [a, b]) t.match(status(), { connected: true, revocations: 2, ignored: 0 })
}

t.test('a Redis that was restarted without its data is told what nodes know', { ...needsRedis }, t => loses(t, ({ redis }) => redis.restart()))

t.test('a Redis that is emptied is told what nodes know, at the next beat', { ...needsRedis }, t => loses(t, ({ admin }) => admin.flushAll(), { isNoticed: false }))

t.test('a Redis that lost some of it is told what nodes know', { ...needsRedis }, t => loses(t, async ({ redis, admin }) => {
  await admin.del([LOG, LIVE, '{hybrid-auth}:ends', '{hybrid-auth}:lease:user:[null,"bob"]'])
  for (const key of await admin.keys('{hybrid-auth}:held:*')) await admin.del(key)
  await redis.restart()
}, { durable: true }))

t.test('a Redis that went back to an older state is told what nodes know, and what it says of them is corrected', { ...needsRedis }, async t => {
  const world_ = await world(t, { durable: true, auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const { a, b, redis, admin, start } = world_
  const { peer, there } = await a.open({ token: tokenOf('bob') })
  await settled(a)
  const dir = (await admin.configGet('dir')).dir ?? ''
  const backup = join(dir, 'backup')
  await cp(join(dir, 'appendonlydir'), backup, { recursive: true })
  const revoked = tokenOf('alice')
  await a.revoke({ token: revoked })
  peer.socket.close()
  await there.closed
  const carol = await b.open({ token: tokenOf('carol') })
  await settled(a)
  await redis.kill()
  await bothLost(world_)
  await rm(join(dir, 'appendonlydir'), { recursive: true })
  await cp(backup, join(dir, 'appendonlydir'), { recursive: true })
  await redis.restart()
  await bothBack(world_)
  const c = await start()
  t.same(await c.admits(revoked), [401, 401])
  t.same(await c.admits(tokenOf('carol')), [429, 200], 'whose socket came after that state')
  t.same(await c.admits(tokenOf('bob')), [101, 200], 'whose socket had gone')
  await isOpen(t, carol, 'a socket')
})

for (const [what, [break_, mend]] of Object.entries({
  'may not write to the log': [['ACL', 'SETUSER', 'default', '-xadd'], ['ACL', 'SETUSER', 'default', '+xadd']],
  'may not write': [['CONFIG', 'SET', 'min-replicas-to-write', '1'], ['CONFIG', 'SET', 'min-replicas-to-write', '0']],
  'has no memory for more': [['CONFIG', 'SET', 'maxmemory', '1'], ['CONFIG', 'SET', 'maxmemory', '0']]
} as const)) {
  t.test(`where a node ${what}, its commands wait until it may`, { ...needsRedis }, async t => {
    const world_ = await world(t)
    const { a, b, admin } = world_
    const [alice, bob] = [await b.open({ token: tokenOf('alice') }), await b.open({ token: tokenOf('bob') })]
    await admin.sendCommand([...break_])
    const began = performance.now()
    t.match(await a.revoke({ userId: 'alice' }), { matched: 0, durable: false, nodes: { acknowledged: 1 } })
    t.match(await a.disconnect({ userId: 'bob' }, { code: 4444 }), { matched: 0, durable: false })
    await eventually('it is noticed', () => a.status().lostSince !== null)
    await eventually('some tries have failed', () => performance.now() - began > 1000)
    t.equal(a.count('cluster_lost'), 1)
    await isOpen(t, alice, 'a socket that nobody can tell')
    const lostSince = a.status().lostSince ?? 0
    await admin.sendCommand([...mend])
    t.same(await endOf(alice.peer), REVOKED)
    t.equal((await endOf(bob.peer)).code, 4444)
    await bothBack(world_)
    t.same([a.status().queued, a.count('cluster_lost'), a.count('cluster_recovered')], [0, 1, 1])
    const recovered = a.events.find(event => event.type === 'cluster_recovered')
    if (recovered?.type !== 'cluster_recovered') throw new Error('no event')
    t.ok(recovered.lostFor + 300 >= recovered.time - lostSince - recovered.converged, `lost for ${recovered.lostFor} of ${recovered.time - lostSince}`)
  })
}

t.test("onClusterLoss: 'serve' lets sockets in, however long it is", { ...needsRedis }, async t => {
  const world_ = await world(t, { cluster: { onClusterLoss: 'serve', clusterLossDelay: 0 } })
  const { a, redis } = world_
  await redis.kill()
  await bothLost(world_)
  t.same(await a.admits(tokenOf('alice')), [101, 200])
})

t.test("onClusterLoss: 'refuse-new' refuses new sockets after the delay, and nothing else", { ...needsRedis }, async t => {
  const world_ = await world(t, { cluster: { onClusterLoss: 'refuse-new', clusterLossDelay: 400 } })
  const { a, redis } = world_
  const pair = await a.open({ token: tokenOf('alice') })
  await redis.kill()
  await eventually('it is lost', () => isLost(a))
  t.same(await a.admits(tokenOf('alice')), [101, 200], 'before the delay')
  await until('the delay is over', async () => (await upgrade(t, a.host, bearer(tokenOf('alice')))).status === 503)
  const lostSince = a.status().lostSince ?? 0
  t.ok(Date.now() - lostSince >= 390)
  const refused = await upgrade(t, a.host, bearer(tokenOf('alice')))
  t.same([refused.status, codeOf(refused.body)], [503, UNAVAILABLE])
  t.same(await a.admits(tokenOf('alice')), [503, 200], 'HTTP goes on')
  await isOpen(t, pair, 'an open socket')
  await redis.restart()
  await bothBack(world_)
  t.same(await a.admits(tokenOf('alice')), [101, 200])
  await isOpen(t, pair, 'an open socket')
})

t.test("onClusterLoss: 'close' closes the open ones as well", { ...needsRedis }, async t => {
  const world_ = await world(t, { cluster: { onClusterLoss: 'close', clusterLossDelay: 200 } })
  const { a, b, redis } = world_
  const pairs = [await a.open({ token: tokenOf('alice') }), await b.open({ cookie: await b.login() })]
  redis.pause()
  await bothLost(world_)
  for (const { peer } of pairs) t.match(await endOf(peer), { code: 4012, reason: /"code":"unavailable","action":"retry"/ })
  t.same(await a.admits(tokenOf('alice')), [503, 200])
  redis.resume()
  await bothBack(world_)
  t.same(await a.admits(tokenOf('alice')), [101, 200])
})

t.test('a loss that is over before the delay is none', { ...needsRedis }, async t => {
  const world_ = await world(t, { cluster: { onClusterLoss: 'close', clusterLossDelay: 20_000 } })
  const { a, proxies } = world_
  const pair = await a.open()
  for (const one of proxies) one.cut()
  await bothLost(world_)
  for (const one of proxies) one.heal()
  await bothBack(world_)
  await isOpen(t, pair, 'a socket')
})

t.test('a node that starts while Redis is away refuses everybody until it knows who was revoked', { ...needsRedis }, async t => {
  const { redis, a, b } = await world(t)
  const [revoked, good] = [tokenOf('alice'), tokenOf('bob')]
  await a.revoke({ token: revoked })
  const ticket = (await ask(b.host, '/ticket', { method: 'POST', ...bearer(good) })).body
  const proxy = await startProxy(t, redis.port)
  const c = await redisNode(t, proxy.url, {
    wrap (client) {
      proxy.stall()
      return client
    }
  })
  t.match(c.status(), { connected: false, revocations: 0, queued: 0 })
  t.not(c.status().lostSince, null)
  t.equal(c.count('cluster_lost'), 1)
  for (const token of [revoked, good, goodToken()]) t.same(await c.admits(token), [503, 503])
  const cookie = await c.login()
  t.equal((await upgrade(t, c.host, { headers: { cookie, origin: `http://${c.host}` } })).status, 503)
  t.equal((await upgrade(t, c.host, { path: `/live?ticket=${ticket}` })).status, 503)
  t.match(await c.revoke({ userId: 'carol' }), { durable: false, nodes: { acknowledged: 1, missing: 0 } })
  proxy.flow()
  await eventually('it has loaded', () => isBack(c))
  t.same(await c.admits(revoked), [401, 401])
  t.same(await c.admits(good), [101, 200])
  t.equal((await upgrade(t, c.host, { headers: { cookie, origin: `http://${c.host}` } })).status, 101)
  t.same(await a.admits(tokenOf('carol')), [401, 401], 'what it was told meanwhile')
})

t.test('while Redis is away each node counts its own connections, and they are counted together after', { ...needsRedis }, async t => {
  const world_ = await world(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const { a, b, redis, start } = world_
  const token = tokenOf('alice')
  const pairs: Pair[] = [await a.open({ token })]
  const gone = await a.open({ token: tokenOf('bob') })
  t.same(await b.admits(tokenOf('bob')), [429, 200])
  await redis.kill()
  await bothLost(world_)
  t.same(await a.admits(token), [429, 200])
  pairs.push(await b.open({ token }))
  t.same(await b.admits(token), [429, 200])
  gone.peer.socket.close()
  await gone.there.closed
  await redis.restart()
  await bothBack(world_)
  const c = await start()
  t.same(await c.admits(tokenOf('bob')), [101, 200])
  for (const { peer, there } of pairs) {
    t.same(await c.admits(token), [429, 200])
    peer.socket.close()
    await there.closed
  }
  await settled(a)
  await settled(b)
  t.same(await c.admits(token), [101, 200])
})

t.test('a place that was given back while Redis was away is free when it is there', { ...needsRedis }, async t => {
  const world_ = await world(t, { durable: true, auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const { a, b, proxies, admin } = world_
  const token = tokenOf('alice')
  for (const fault of ['cut', 'stall'] as const) {
    const { peer, there } = await a.open({ token })
    t.same(await b.admits(token), [429, 200])
    proxies[0][fault]()
    await eventually('it is lost', () => isLost(a))
    peer.socket.close()
    await there.closed
    t.equal(await admin.zCard('{hybrid-auth}:lease:user:[null,"alice"]'), 1)
    proxies[0].heal()
    proxies[0].flow()
    await eventually('it is back', () => isBack(a))
    t.same(await b.admits(token), [101, 200])
    await settled(b)
  }
})

t.test('tickets are neither given nor taken while Redis is away', { ...needsRedis }, async t => {
  const world_ = await world(t)
  const { a, b, redis } = world_
  const issue = () => ask(a.host, '/ticket', { method: 'POST', ...bearer(tokenOf('alice')) })
  const path = `/live?ticket=${(await issue()).body}`
  redis.pause()
  const answer = await issue()
  t.same([answer.status, codeOf(answer.body)], [503, UNAVAILABLE])
  t.equal((await upgrade(t, b.host, { path })).status, 503)
  await bothLost(world_)
  t.equal((await issue()).status, 503)
  redis.resume()
  await bothBack(world_)
  const again = `/live?ticket=${(await issue()).body}`
  t.equal((await upgrade(t, b.host, { path: again })).status, 101)
})

for (const [what, begin] of Object.entries({
  killed: (redis: Redis) => redis.kill(),
  frozen (redis: Redis) { redis.pause() }
})) {
  t.test(`a Redis that is ${what} holds up no command and no close`, { ...needsRedis }, async t => {
    const { a, b, redis } = await world(t)
    const pairs = [await a.open({ token: tokenOf('alice') }), await b.open({ token: tokenOf('bob') })]
    await begin(redis)
    const began = performance.now()
    await Promise.all([a.revoke({ userId: 'nobody' }), a.disconnect({ userId: 'nobody' }), b.revoke({ userId: 'nobody' })])
    t.ok(performance.now() - began < 1500, 'commands end')
    // One knows already that it is lost, the other may not.
    await eventually('it is lost', () => isLost(a))
    await Promise.all([a.app.close(), b.app.close()])
    t.ok(performance.now() - began < 4000, 'and so does the application')
    for (const { peer } of pairs) t.equal((await endOf(peer)).code, 1012)
    await t.rejects(a.revoke({ userId: 'nobody' }), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' }, 'and what is asked afterwards')
  })
}

t.test('a node that closes leaves nothing behind', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1, perIp: 600 } } } })
  const pairs = await Promise.all(Array.from({ length: 3 }, (_, i) => a.open({ token: tokenOf(`user ${i}`) })))
  t.same(await b.admits(tokenOf('user 1')), [429, 200])
  t.equal(await admin.zCard(NODES), 2)
  await a.app.close()
  for (const { peer } of pairs) t.equal((await endOf(peer)).code, 1012)
  const { nodeId } = a.status()
  t.same((await admin.keys('*')).filter(key => key.includes(nodeId)), [])
  t.same(await admin.zRange(NODES, 0, -1), [b.status().nodeId])
  t.same(await b.admits(tokenOf('user 1')), [101, 200])
  t.equal(a.client.isReady, true, 'the client stays its owner\'s')
  await b.app.close()
  t.same((await admin.keys('*')).filter(key => /nodes|held|lease|answers/.test(key)), [])
})
