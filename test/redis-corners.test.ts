/** What a node does with replies that are rare, and with what others left in its Redis. */
import t, { type Test } from 'tap'
import { OVER, type Cluster, type ClusterMember, type Lease, type Recovery } from '../lib/cluster/cluster.js'
import type { Command } from '../lib/cluster/command.js'
import type { RedisClient } from '../lib/cluster/redis-client.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { endOf, intercepted, isOpen, redisNode, Script, settled, SHORT, tokenOf, until } from './cluster-suite.js'
import { signHs256, goodClaims, JWT } from './helpers.js'
import { eventually } from './live.js'
import { connect, needsRedis, startRedis } from './redis.js'

// Many failures, each waited for.
t.setTimeout(180_000)

const LOG = '{hybrid-auth}:log'
const ENDS = '{hybrid-auth}:ends'
const CALM = { ...SHORT, nodeTimeout: 4000, timeout: 2000 }

async function one (t: Test, settings: Parameters<typeof redisNode>[2] = {}) {
  const { url } = await startRedis(t)
  const script = new Script()
  const admin = await connect(t, url)
  return { url, admin, script, node: await redisNode(t, url, { cluster: CALM, wrap: script.wrap, ...settings }) }
}

interface Bare {
  cluster: Cluster
  received: Command[]
  events: Array<Recovery | 'lost'>
}

/** A cluster's node without an application. */
function join (client: RedisClient, id: string, settings = CALM): Bare {
  const received: Command[] = []
  const events: Bare['events'] = []
  const member: ClusterMember = {
    id,
    async receive (command) {
      received.push(command)
      return { matched: 0, closed: 0 }
    },
    revocations: () => [],
    hasRevocation: () => false,
    heard () {},
    told () {},
    resumed () {},
    leases: () => [],
    lost () { events.push('lost') },
    recovered (recovery) { events.push(recovery) },
    ignored () {}
  }
  return { cluster: redisCluster(client, settings).join(member), received, events }
}

const lease = (id: string, ...keys: string[]): Lease => ({ id, keys, at: Date.now() })

t.test('many leases that were taken while Redis was away are told to it, but for those that were given back', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const admin = await connect(t, url)
  const script = new Script()
  const client = await connect(t, url)
  const { cluster } = join(script.wrap(client), 'n')
  const all = Array.from({ length: 1200 }, (_, i) => lease(`n:${i}`, 'user:alice', `ip:${i}`))
  for (const each of all) if (await cluster.acquire(each, [2000, 1], false) === null) t.fail('no place')
  t.equal(cluster.isConnected, false)
  const first = script.holds('ACQUIRE')
  const starting = cluster.start()
  await first.arrived
  // One that was just told, and one whose turn has not come.
  for (const i of [0, 1100]) cluster.release(all[i] ?? lease(''))
  await client.ping()
  first.release()
  await starting
  t.equal(cluster.isConnected, true)
  t.equal(await admin.zCard('{hybrid-auth}:lease:user:alice'), 1198)
  t.equal(await admin.hLen('{hybrid-auth}:held:n'), 1198)
  for (const i of [0, 1100]) t.equal(await admin.exists(`{hybrid-auth}:lease:ip:${i}`), 0)
  await cluster.stop()
  t.same(await admin.keys('{hybrid-auth}:lease:*'), [])
})

t.test('of commands that fail at once as many wait as may', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  let isBroken = true
  const wrap = (client: RedisClient) => intercepted(client, ({ name, send }) => name === 'PUBLISH' && isBroken ? Promise.reject(new Error('MISCONF')) : send())
  const node = await redisNode(t, url, { cluster: CALM, wrap })
  const results = await Promise.allSettled(Array.from({ length: 1002 }, (_, i) => node.disconnect({ userId: `nobody ${i}` })))
  const refused = results.flatMap(result => result.status === 'rejected' ? [result.reason as unknown] : [])
  t.match(refused, [{ code: 'FST_HYBRID_AUTH_UNAVAILABLE' }, { code: 'FST_HYBRID_AUTH_UNAVAILABLE' }])
  t.equal(refused.length, 2)
  t.equal(node.status().queued, 1000)
  isBroken = false
  await eventually('all are told', () => node.status().queued === 0 && node.status().connected)
  t.equal(await node.client.xLen(LOG), 1000)
})

t.test('a ticket is kept under a name once', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const { cluster } = join(await connect(t, url), 'n')
  await t.rejects(Promise.resolve(cluster.takeTicket('key')), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' }, 'not before it is connected')
  await cluster.start()
  t.teardown(() => cluster.stop())
  await cluster.putTicket('key', 'value', 1000.5)
  await t.rejects(Promise.resolve(cluster.putTicket('key', 'another', 1000)), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' })
  await t.rejects(Promise.resolve(cluster.putTicket('long', 'x'.repeat(64 * 1024), 1000)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
  t.equal(await cluster.takeTicket('long'), null)
  t.equal(await cluster.takeTicket('key'), 'value')
  t.equal(await cluster.takeTicket('key'), OVER)
})

t.test('what is left over is freed, also where somebody else was faster, or left what is no list', { ...needsRedis }, async t => {
  const { node, script, admin } = await one(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const held = `{hybrid-auth}:held:${node.status().nodeId}`
  const other = await node.open({ token: tokenOf('bob') })
  await admin.hSet(held, { gone: '["user:x"]', left: '["user:y"]' })
  await admin.zAdd('{hybrid-auth}:lease:user:y', { value: 'left', score: 1 })
  const failed = script.fails('RELEASE')
  const compared = script.holds('HKEYS')
  other.peer.socket.close()
  await failed
  await compared.arrived
  await admin.hDel(held, 'gone')
  compared.release()
  await until('all of it is freed', async () => await admin.exists(held) === 0 && await admin.exists('{hybrid-auth}:lease:user:y') === 0)
  t.equal(node.status().connected, true)
})

t.test('case 69: leases that no node can have written keep nobody from the cluster', { ...needsRedis }, async t => {
  const { node, script, admin } = await one(t, { cluster: SHORT, auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const held = `{hybrid-auth}:held:${node.status().nodeId}`
  for (const [i, text] of ['{', '', '7', 'null', '{"a":1}', '[7,null,{}]', '"user:x"'].entries()) await admin.hSet(held, `forged ${i}`, text)
  await admin.hSet('{hybrid-auth}:held:a node that is gone', { a: '{', b: '7', c: '[null,7,{}]', d: '["user:y"]' })
  await admin.zAdd('{hybrid-auth}:nodes', { value: 'a node that is gone', score: 1 })
  const other = await node.open({ token: tokenOf('bob') })
  const failed = script.fails('RELEASE')
  other.peer.socket.close()
  await failed
  await until('they are cleared away', async () => await admin.exists(held) === 0 && await admin.zScore('{hybrid-auth}:nodes', 'a node that is gone') === null, 3000)
  t.match(node.status(), { connected: true, lostSince: null })
  t.match(await node.revoke({ userId: 'alice' }), { durable: true })
  t.equal(node.count('cluster_lost'), 0)
})

t.test('what does not end is kept without an end', { ...needsRedis }, async t => {
  const { node, admin } = await one(t, { auth: { heartbeat: false, jwt: { ...JWT, allowNoExpiry: true } } })
  const token = signHs256(goodClaims({ sub: 'alice', exp: undefined, iat: undefined }))
  const { peer } = await node.open({ token })
  await node.revoke({ userId: 'alice' })
  t.equal((await endOf(peer)).code, 4006)
  t.same((await admin.zRangeWithScores(ENDS, 0, -1)).map(({ score }) => score), [Infinity])
})

/** A client for which Redis is another process whenever the test says so. */
function renamed (client: RedisClient): { client: RedisClient, rename: () => void } {
  let runs = 1
  return {
    client: intercepted(client, async ({ name, send }) => name === 'INFO' ? `run_id:${runs}` : send()),
    rename () { runs++ }
  }
}

t.test('an order that was there before a node began stays one, however often the log is read', { ...needsRedis }, async t => {
  const { url, node } = await one(t)
  await node.disconnect({ userId: 'alice' })
  const names = [() => {}]
  const late = await redisNode(t, url, {
    cluster: SHORT,
    wrap (client) {
      const { client: other, rename } = renamed(client)
      names.push(rename)
      return other
    }
  })
  const pair = await late.open({ token: tokenOf('alice') })
  const read = late.client.xAdd(LOG, '*', { m: 'a mark' })
  await read
  await eventually('the mark is read', () => late.status().ignored === 1)
  for (const rename of names) rename()
  await eventually('it is read anew', () => late.status().ignored === 2)
  await settled(late)
  await isOpen(t, pair, 'who came after')
  t.match(await node.disconnect({ userId: 'alice' }), { matched: 1 })
  t.equal((await endOf(pair.peer)).code, 4006)
})

t.test('of two orders of one millisecond the one that came before a node began does nothing there', { ...needsRedis }, async t => {
  const { url, admin } = await one(t)
  const signing = join(await connect(t, url), 'signs')
  await signing.cluster.start()
  const disconnect = (id: string): Command => ({ type: 'disconnect', id, from: 'signs', at: Date.now(), filter: {}, code: 'Revoked' })
  for (const id of ['before', 'after']) await signing.cluster.publish(disconnect(id), false)
  const [before, after] = (await admin.xRange(LOG, '-', '+') ?? []).slice(-2).map(({ message }) => message.m ?? '')
  await admin.del(LOG)
  await admin.xAdd(LOG, '5000-3', { m: before ?? '' })
  const { client, rename } = renamed(await connect(t, url))
  const { cluster, received } = join(client, 'late', SHORT)
  await cluster.start()
  await admin.xAdd(LOG, '5000-4', { m: after ?? '' })
  await eventually('it is heard', () => received.length > 0)
  rename()
  await eventually('it is read anew', () => received.length > 1)
  t.same([...new Set(received.map(({ id }) => id))], ['after'])
  await Promise.all([cluster.stop(), signing.cluster.stop()])
})

t.test('orders reach a node also where Redis begins anew with a clock that is behind', { ...needsRedis }, async t => {
  const { url, admin, node } = await one(t, { cluster: SHORT })
  await admin.xAdd(LOG, '99999999999999-0', { m: 'of a clock that was ahead' })
  const late = await redisNode(t, url, { cluster: SHORT })
  const pair = await late.open({ token: tokenOf('alice') })
  await admin.flushAll()
  await until('both have noticed', async () => await admin.zCard('{hybrid-auth}:nodes') === 2)
  t.match(await node.disconnect({ userId: 'alice' }), { matched: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
  t.equal((await endOf(pair.peer)).code, 4006)
})

t.test('an entry without a message is ignored', { ...needsRedis }, async t => {
  const { node, script } = await one(t)
  script.answers('XREAD', [[LOG, [['1-1', []], ['1-2', null]]]], true)
  await eventually('it is ignored', () => node.status().ignored === 2)
  t.match(await node.revoke({ userId: 'alice' }), { durable: true })
  t.equal(node.status().connected, true)
})

t.test('two connections to two servers are no cluster, until they are to one', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  let runId = 'another'
  const wrap = (client: RedisClient) => intercepted(client, async ({ name, isReader, send }) => name === 'INFO' && isReader ? `run_id:${runId}` : name === 'INFO' ? 'run_id:here' : send())
  const starting = redisNode(t, url, { cluster: SHORT, wrap })
  const node = await starting
  t.match(node.status(), { connected: false })
  t.same(await node.admits(tokenOf('alice')), [503, 503])
  runId = 'here'
  await eventually('it is connected', () => node.status().connected)
  t.same(await node.admits(tokenOf('alice')), [101, 200])
  runId = 'another'
  await eventually('it is lost', () => !node.status().connected)
  runId = 'here'
  await eventually('it is back', () => node.status().connected)
})

t.test('a client with a socket timeout that is shorter than a read does as well', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const node = await redisNode(t, url, { cluster: { ...SHORT, nodeTimeout: 8000 }, clientOptions: { socket: { socketTimeout: 300, reconnectStrategy: () => 50 } } })
  const began = performance.now()
  await eventually('some reads are over', () => performance.now() - began > 1500)
  t.equal(node.count('cluster_lost'), 0)
  t.equal(node.status().connected, true)
})

t.test('a node that is closed before it is ready ends', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const client = await connect(t, url)
  const { cluster, events } = join(client, 'n')
  await cluster.stop()
  t.same(events, [])
  const second = join(client, 'm')
  const starting = second.cluster.start()
  await second.cluster.stop()
  t.equal(second.cluster.isConnected, false)
  await starting
  t.same(second.events, [], 'and tells of no loss')
  t.equal(client.isReady, true)
  t.equal(await client.zCard('{hybrid-auth}:nodes'), 0)
})
