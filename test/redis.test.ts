/** A cluster in Redis: how nodes come to know what was before them, what they believe, and what they leave alone. */
import { createHmac } from 'node:crypto'
import { createClient } from 'redis'
import t, { type Test } from 'tap'
import type { ConnectionFilter, RevokeTarget } from '../lib/index.js'
import type { RedisClient } from '../lib/cluster/redis-client.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { bearer, CLUSTER_SECRET, endOf, isOpen, kept, redisNode, REVOKED, settled, SHORT, startNode, tokenOf, until, type RedisNodeSettings } from './cluster-suite.js'
import { upgrade } from './helpers.js'
import { eventually } from './live.js'
import { connect, needsRedis, startRedis } from './redis.js'
import { ask, codeOf } from './stores.js'

const LOG = '{hybrid-auth}:log'
const LIVE = '{hybrid-auth}:live'
const CALM = { ...SHORT, nodeTimeout: 2000, timeout: 1000 }
/** What a caller without types may give. */
const untyped: (given: unknown) => never = given => given as never

/** As nodes sign. */
function seal (text: string, { place = 'control', secret = CLUSTER_SECRET } = {}): string {
  return `${createHmac('sha256', secret).update(`hybrid-auth.${place}\n${text}`).digest('base64url')}:${text}`
}

async function one (t: Test, settings: RedisNodeSettings = {}) {
  const { url } = await startRedis(t)
  const admin = await connect(t, url)
  const start = (more: RedisNodeSettings = {}) => redisNode(t, url, { cluster: CALM, ...settings, ...more })
  return { url, admin, start, node: await start() }
}

t.test('options that cannot be used throw, and name themselves', async t => {
  const client = createClient()
  const rows: Array<[options: object, name: string]> = [
    [{ prefix: '' }, 'cluster.prefix'], [{ prefix: 7 }, 'cluster.prefix'], [{ prefix: null }, 'cluster.prefix'],
    [{ secret: 'x'.repeat(31) }, 'cluster.secret'], [{ secret: Buffer.alloc(31) }, 'cluster.secret'], [{ secret: 7 }, 'cluster.secret'], [{ secret: '' }, 'cluster.secret'],
    [{ secret: [] }, 'cluster.secret'],
    [{ onClusterLoss: 'open' }, 'cluster.onClusterLoss'], [{ onClusterLoss: true }, 'cluster.onClusterLoss'],
    [{ clusterLossDelay: -1 }, 'cluster.clusterLossDelay'], [{ clusterLossDelay: Number.NaN }, 'cluster.clusterLossDelay'], [{ clusterLossDelay: Infinity }, 'cluster.clusterLossDelay'],
    [{ nodeTimeout: 499 }, 'cluster.nodeTimeout'], [{ nodeTimeout: 600_001 }, 'cluster.nodeTimeout'], [{ nodeTimeout: '1000' }, 'cluster.nodeTimeout'],
    [{ timeout: 49 }, 'cluster.timeout'], [{ timeout: 60_001 }, 'cluster.timeout'],
    [{ secret: undefined }, 'cluster.secret'],
    [{ onclusterloss: 'serve' }, 'cluster.onclusterloss'], [{ url: 'redis://localhost' }, 'cluster.url']
  ]
  for (const [options, name] of rows) {
    t.throws(() => redisCluster(client, untyped(options)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`^Invalid option ${name.replaceAll('.', '\\.')}[:.]`) }, JSON.stringify(options))
  }
  for (const given of [7, 'text']) t.throws(() => redisCluster(client, untyped(given)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /option cluster/ }, JSON.stringify(given))
  for (const given of [undefined, {}, { prefix: undefined }, { secret: 'x'.repeat(32) }, { secret: Buffer.alloc(32) }, { secret: ['x'.repeat(32), Buffer.alloc(32)] }, { nodeTimeout: 500, timeout: 50, clusterLossDelay: 0 }]) {
    t.match(redisCluster(client, given), { join: Function })
  }
})

const NO_CLIENT = { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /^Invalid option cluster\.client: must be a client of node-redis/ }

t.test('what is no client is refused', async t => {
  for (const given of [undefined, null, 'redis://localhost', 7, {}, { url: 'redis://localhost' }, { sendCommand: 1, duplicate: 1 }, () => {}]) {
    t.throws(() => redisCluster(untyped(given)), NO_CLIENT)
  }
})

t.test('a node knows of every live revocation before it answers anybody', { ...needsRedis }, async t => {
  const { node, start } = await one(t)
  const [token, other] = [tokenOf('alice'), tokenOf('bob', { jti: 'b', companyId: 'acme' })]
  const cookie = await node.login({ userId: 'carol' })
  await node.revoke({ token })
  await node.revoke({ tenantId: 'acme', issuedBefore: Date.now() }, { reason: 'why' })
  for (let i = 0; i < 300; i++) await node.revoke({ userId: `user ${i}` })
  const late = await start()
  t.equal(late.status().revocations, 302)
  for (const one of [token, other, tokenOf('user 0'), tokenOf('user 299')]) t.same(await late.admits(one), [401, 401])
  t.same(await late.admits(tokenOf('erin')), [101, 200])
  t.type(cookie, 'string')
  t.equal(codeOf((await ask(late.host, '/me', bearer(token))).body), 'FST_HYBRID_AUTH_REVOKED_TOKEN')
})

t.test('what was ordered before a node began does nothing there, and what ended is in no list', { ...needsRedis }, async t => {
  const { node, start, admin } = await one(t)
  await node.disconnect({ userId: 'alice' })
  await node.app.hybridAuth.setPermissions('alice', ['old'])
  const late = await start()
  const pair = await late.open({ token: tokenOf('alice', { permissions: ['mine'] }) })
  await settled(node)
  await isOpen(t, pair, 'a socket')
  t.same(pair.there.connection.context.permissions, ['mine'])

  await node.revoke({ userId: 'bob' }, { expiresAt: Date.now() + 60 })
  const [id = '', ...more] = await kept(admin)
  t.same(more, [])
  t.same(await late.admits(tokenOf('bob')), [401, 401])
  await until('it is over', async () => (await late.admits(tokenOf('bob')))[0] === 101)
  // Clocks may differ by a minute: until then it is kept.
  await admin.zAdd('{hybrid-auth}:ends', { score: Date.now() - 70_000, value: id })
  await until('it is dropped', async () => (await kept(admin)).length === 0 && await admin.zCard('{hybrid-auth}:ends') === 0)
})

for (const RESP of [2, 3] as const) {
  t.test(`a client that speaks RESP${RESP} does`, { ...needsRedis }, async t => {
    const { node, start } = await one(t, { clientOptions: { RESP }, auth: { heartbeat: false, limits: { connections: { perUser: 2, policy: 'evict-oldest' } } } })
    const b = await start()
    const token = tokenOf('alice')
    const first = await node.open({ token })
    await b.open({ token })
    await b.open({ token })
    t.equal((await endOf(first.peer)).code, 4009)
    const path = `/live?ticket=${(await ask(node.host, '/ticket', { method: 'POST', ...bearer(tokenOf('bob')) })).body}`
    t.same([(await upgrade(t, b.host, { path })).status, (await upgrade(t, b.host, { path })).status], [101, 401])
    t.match(await node.revoke({ userId: 'alice' }), { matched: 2, durable: true, nodes: { acknowledged: 2, missing: 0 } })
    t.same([node, b].map(({ status }) => status().ignored), [0, 0])
    const c = await start()
    t.same(await c.admits(token), [401, 401])
  })
}

t.test('nodes of another prefix hear nothing, and count nothing', { ...needsRedis }, async t => {
  const { node, start } = await one(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const other = await start({ cluster: { ...CALM, prefix: 'another application' } })
  const token = tokenOf('alice')
  const [here, there] = [await node.open({ token }), await other.open({ token })]
  t.match(await node.revoke({ userId: 'alice' }), { matched: 1, nodes: { acknowledged: 1, missing: 0 } })
  t.same(await endOf(here.peer), REVOKED)
  await settled(other)
  await isOpen(t, there, 'the socket of the other')
  t.same([other.status().revocations, other.status().ignored], [0, 0])
  const path = `/live?ticket=${(await ask(other.host, '/ticket', { method: 'POST', ...bearer(token) })).body}`
  t.equal((await upgrade(t, node.host, { path })).status, 401)
})

t.test('without a secret everything works as well', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const start = async () => startNode(t, { cluster: redisCluster(await connect(t, url)) })
  const [a, b] = [await start(), await start()]
  const token = tokenOf('alice')
  const { peer } = await b.open({ token })
  const path = `/live?ticket=${(await ask(a.host, '/ticket', { method: 'POST', ...bearer(tokenOf('bob')) })).body}`
  t.equal((await upgrade(t, b.host, { path })).status, 101)
  t.match(await a.revoke({ userId: 'alice' }), { matched: 1, closed: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
  t.same(await endOf(peer), REVOKED)
  t.same(await (await start()).admits(token), [401, 401])
})

const command = (changes: Record<string, unknown> = {}) => ({ id: 'forged', from: 'nobody', at: Date.now(), type: 'disconnect', filter: { userId: 'alice' }, code: 'Revoked', ...changes })
const revocation = (changes: Record<string, unknown> = {}) => ({ id: 'forged', kind: 'user', key: 'alice', reason: '', reauthWithin: 0, at: 1, expiresAt: null, ...changes })
const revoke = (changes: Record<string, unknown> = {}) => command({ type: 'revoke', filter: undefined, code: undefined, revocation: revocation(), ...changes })

const FORGED: Record<string, string> = {
  'no text': '',
  'no JSON': seal('{'),
  'no separator': JSON.stringify(command()),
  unsigned: `:${JSON.stringify(command())}`,
  'signed by a stranger': seal(JSON.stringify(command()), { secret: 'the secret of somebody else, 32 of it' }),
  'signed for an answer': seal(JSON.stringify(command()), { place: 'answer' }),
  'signed for a ticket': seal(JSON.stringify(command()), { place: 'ticket' }),
  'with a signature that is cut off': seal(JSON.stringify(command())).slice(1),
  'with a signature of another alphabet': `${'ä'.repeat(43)}:${JSON.stringify(command())}`,
  changed: seal(JSON.stringify(command({ id: 'another' }))).replace('another', 'forged!'),
  null: seal('null'),
  'a list': seal('[]'),
  'a number': seal('7'),
  'nothing of a command': seal('{}'),
  'of no type': seal(JSON.stringify(command({ type: undefined }))),
  'of an unknown type': seal(JSON.stringify(command({ type: 'shutdown' }))),
  'of a poisoned type': seal(JSON.stringify(command({ type: '__proto__' }))),
  'with one member more': seal(JSON.stringify(command({ more: 1 }))),
  'with a poisoned member': seal(JSON.stringify(command()).replace('{', '{"__proto__":{"polluted":true},')),
  'with a poisoned filter': seal(JSON.stringify(command()).replace('"userId"', '"__proto__":{"polluted":true},"userId"')),
  'with an unknown filter': seal(JSON.stringify(command({ filter: { everybody: true } }))),
  'with an id that is no text': seal(JSON.stringify(command({ id: 7 }))),
  'without a time': seal(JSON.stringify(command({ at: null }))),
  'with a revocation of an unknown kind': seal(JSON.stringify(revoke({ revocation: revocation({ kind: 'everybody' }) }))),
  'with a revocation that is none': seal(JSON.stringify(revoke({ revocation: null }))),
  'with a revocation that asks for words': seal(JSON.stringify(revoke({ revocation: revocation({ reason: 'x'.repeat(201) }) }))),
  'longer than nodes read': seal(JSON.stringify(command({ reason: 'x'.repeat(64 * 1024) })))
}

t.test('case 69: what no node can have sent is ignored, counted, and breaks nothing', { ...needsRedis }, async t => {
  const { node, start, admin } = await one(t)
  const alice = await node.open({ token: tokenOf('alice') })
  const ignored = () => node.status().ignored
  const isIgnored = async (what: string, count: number) => {
    await eventually(`${what} is ignored`, () => ignored() === count)
    t.pass(what)
  }
  let count = 0
  for (const [what, text] of Object.entries(FORGED)) {
    await admin.xAdd(LOG, '*', { m: text })
    await isIgnored(`in the log: ${what}`, ++count)
  }
  await admin.xAdd(LOG, '*', { a: 'b', m: 'c' })
  await isIgnored('in the log: other fields', ++count)
  const answers = `{hybrid-auth}:answers:${node.status().nodeId}`
  for (const [what, text] of Object.entries({
    ...FORGED, 'a command': seal(JSON.stringify(command()), { place: 'answer' }), 'a negative count': seal(JSON.stringify({ from: 'a', to: 'b', matched: -1, closed: 0 }), { place: 'answer' })
  })) {
    await admin.xAdd(answers, '*', { m: text })
    await isIgnored(`among the answers: ${what}`, ++count)
  }
  await admin.xAdd(answers, '*', { m: seal(JSON.stringify({ from: 'a', to: 'nobody asked', matched: 1, closed: 1 }), { place: 'answer' }) })
  await isOpen(t, alice, 'whom they are about')
  t.match(node.status(), { connected: true, lostSince: null, revocations: 0, ignored: count })
  t.equal(Reflect.get({}, 'polluted'), undefined)

  for (const [what, text] of Object.entries(FORGED)) await admin.hSet(LIVE, what, text)
  await admin.hSet(LIVE, 'a command that does not revoke', seal(JSON.stringify(command())))
  const late = await start()
  t.match(late.status(), { connected: true, revocations: 0, ignored: Object.keys(FORGED).length + 1 })
  t.same(await late.admits(tokenOf('alice')), [101, 200])
  t.match(await late.revoke({ userId: 'alice' }), { matched: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
  t.same(await endOf(alice.peer), REVOKED)
})

t.test('case 69: a ticket in Redis that no node has put there opens nothing', { ...needsRedis }, async t => {
  const { node, admin } = await one(t)
  const issue = async () => (await ask(node.host, '/ticket', { method: 'POST', ...bearer(tokenOf('alice')) })).body
  const issued = async () => {
    const ticket = await issue()
    const [key = ''] = await admin.keys('{hybrid-auth}:ticket:*')
    return { key, kept: await admin.get(key) ?? '', path: `/live?ticket=${ticket}` }
  }
  const plain = await issued()
  t.notOk(plain.kept.includes(plain.path.slice(-43)) || plain.key.includes(plain.path.slice(-43)), 'the ticket itself is not there')
  t.equal((await upgrade(t, node.host, { path: plain.path })).status, 101)
  const text = plain.kept.slice(44)
  for (const [what, forged] of Object.entries({
    unsigned: `:${text}`,
    changed: `${plain.kept.slice(0, 44)}${text.replace('alice', 'admin')}`,
    'signed for the log': seal(text),
    'no object': seal('null', { place: 'ticket' }),
    'no value': seal('{}', { place: 'ticket' }),
    'a value that is no text': seal('{"value":7}', { place: 'ticket' }),
    empty: ''
  })) {
    const { key, path } = await issued()
    await admin.set(key, forged)
    t.equal((await upgrade(t, node.host, { path })).status, 401, what)
    t.equal(await admin.exists(key), 0)
  }
  const { kept, key } = await issued()
  await admin.xAdd(LOG, '*', { m: kept })
  await admin.del(key)
  await eventually('in the log it is ignored', () => node.status().ignored === 1)
})

t.test('an order that is older than an hour is not carried out any more, and a revocation is', { ...needsRedis }, async t => {
  const { node, admin } = await one(t)
  const [alice, bob] = [await node.open({ token: tokenOf('alice') }), await node.open({ token: tokenOf('bob') })]
  const old = Date.now() - 3_700_000
  await admin.xAdd(LOG, '*', { m: seal(JSON.stringify(command({ at: old }))) })
  await admin.xAdd(LOG, '*', { m: seal(JSON.stringify(revoke({ id: 'r', at: old, revocation: revocation({ id: 'r', key: 'bob' }) }))) })
  t.same(await endOf(bob.peer), REVOKED)
  await isOpen(t, alice, 'whom the old order is about')
  t.equal(await admin.exists('{hybrid-auth}:answers:nobody'), 0, 'and nobody waits for its answer')
  await admin.xAdd(LOG, '*', { m: seal(JSON.stringify(command({ id: 'fresh', code: 'NameOfAnotherVersion' }))) })
  t.same(await endOf(alice.peer), REVOKED)
  await until('it is answered', async () => await admin.xLen('{hybrid-auth}:answers:nobody') === 1)
  t.ok(await admin.pTTL('{hybrid-auth}:answers:nobody') > 0, 'and the answer goes away by itself')
})

t.test('a command that is longer than nodes read is refused before anybody is told', { ...needsRedis }, async t => {
  const { node, admin } = await one(t)
  const { peer, there } = await node.open({ token: tokenOf('alice', { permissions: ['mine'] }) })
  const before = await admin.xLen(LOG)
  const many = Array.from({ length: 70 }, (_, i) => `${i}${'x'.repeat(1000)}`)
  await t.rejects(node.app.hybridAuth.setPermissions('alice', many), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
  t.equal(await admin.xLen(LOG), before)
  t.equal(there.connection.can('mine'), true, 'not even here')
  t.equal(peer.hasEnded, false)
  t.match(node.status(), { queued: 0, connected: true })
})

t.test('whatever one node may order, the others understand', { ...needsRedis }, async t => {
  const { node, start } = await one(t)
  const b = await start()
  const long = 'x'.repeat(3000)
  const filters: ConnectionFilter[] = [
    {}, { userId: '' }, { userId: long }, { sessionId: long }, { tokenId: '' }, { issuer: null }, { tenantId: null }, { issuer: '' }, { authType: 'session' },
    { userId: 'nobody', issuer: 'i', tenantId: 't', sessionId: 's', tokenId: 'j', authType: 'jwt' }
  ]
  for (const filter of filters) {
    const what = JSON.stringify(filter).slice(0, 60)
    const result = await node.disconnect(filter).catch((error: unknown) => error)
    if (result instanceof Error) t.match(result, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, `${what} is refused`)
    else t.match(result, { durable: true, nodes: { acknowledged: 2, missing: 0 } }, what)
  }
  for (const permissions of [[], ['a'], ['x'.repeat(2048)]]) t.match(await node.app.hybridAuth.setPermissions('alice', permissions), { nodes: { acknowledged: 2 } })
  const targets: RevokeTarget[] = [{ userId: 'x'.repeat(2048), issuer: null, tenantId: 'acme', issuedBefore: 1e11 }, { tokenId: 'j', issuer: 'i' }, { jti: 'j', iss: null }, { sessionId: 's' }, { token: tokenOf('alice') }, { tenantId: 'acme' }]
  for (const target of targets) t.match(await node.revoke(target, { reason: 'x'.repeat(200), mode: { reauthWithin: 86_400_000 } }), { nodes: { acknowledged: 2, missing: 0 } })
  t.same([b.status().ignored, b.status().revocations], [0, targets.length])
})

t.test('a Redis that forgets its scripts is told them again', { ...needsRedis }, async t => {
  const { node, start, admin } = await one(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const b = await start()
  const token = tokenOf('alice')
  await admin.scriptFlush()
  const { peer, there } = await node.open({ token })
  await admin.scriptFlush()
  t.same(await b.admits(token), [429, 200])
  peer.socket.close()
  await there.closed
  await admin.scriptFlush()
  t.match(await b.revoke({ userId: 'nobody' }), { durable: true, nodes: { acknowledged: 2, missing: 0 } })
  await settled(node)
  t.same(await b.admits(token), [101, 200])
  t.same([node, b].map(({ count }) => count('cluster_lost')), [0, 0])
})

t.test('a Redis that does not say who it is does as well', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const admin = await connect(t, redis.url)
  await admin.sendCommand(['ACL', 'SETUSER', 'default', '-info'])
  const start = () => redisNode(t, redis.url, { auth: { heartbeat: false, limits: { connections: { perUser: 1 } } } })
  const [a, b] = [await start(), await start()]
  const token = tokenOf('alice')
  const { peer } = await b.open({ token })
  t.same(await a.admits(token), [429, 200])
  t.match(await a.revoke({ userId: 'alice' }), { matched: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
  t.same(await endOf(peer), REVOKED)
  await admin.flushAll()
  await until('it is told', async () => (await kept(admin)).length === 1)
  const again = [await a.open({ token: tokenOf('bob') }), await b.open({ token: tokenOf('carol') })]
  const beats = await admin.zRangeWithScores('{hybrid-auth}:nodes', 0, -1)
  await until('both have compared', async () => (await admin.zRangeWithScores('{hybrid-auth}:nodes', 0, -1)).every(({ score, value }) => score > (beats.find(one => one.value === value)?.score ?? 0)))
  for (const pair of again) await isOpen(t, pair, 'a socket')
  t.same([a, b].map(({ count }) => count('cluster_lost')), [0, 0])
})

t.test('a node that is not heard of any more gives its places back', { ...needsRedis }, async t => {
  const { start, admin, node } = await one(t, { auth: { heartbeat: false, limits: { connections: { perUser: 1, perIp: 100_000 } } } })
  const gone = 'a node of another time'
  const held = `{hybrid-auth}:held:${gone}`
  // More than are freed in one step.
  const ids = Array.from({ length: 1201 }, (_, i) => `${gone}:${i}`)
  await admin.hSet(held, Object.fromEntries(ids.map((id, i) => [id, JSON.stringify([`user:[null,"user ${i}"]`, 'ip:127.0.0.1'])])))
  await admin.zAdd('{hybrid-auth}:lease:ip:127.0.0.1', ids.map(value => ({ value, score: 1 })))
  for (const [i, value] of ids.entries()) await admin.zAdd(`{hybrid-auth}:lease:user:[null,"user ${i}"]`, { value, score: 1 })
  await admin.zAdd('{hybrid-auth}:nodes', { value: gone, score: Date.now() })
  t.same(await node.admits(tokenOf('user 7')), [429, 200])
  await admin.zAdd('{hybrid-auth}:nodes', { value: gone, score: Date.now() - 10_000 })
  await until('it is buried', async () => await admin.zScore('{hybrid-auth}:nodes', gone) === null)
  t.equal(await admin.exists(held), 0)
  t.same((await admin.keys('{hybrid-auth}:lease:*')), [])
  const late = await start()
  t.same(await late.admits(tokenOf('user 7')), [101, 200])
})

t.test('a client that is closed by its owner is a loss, and not an end', { ...needsRedis }, async t => {
  const { node } = await one(t)
  const pair = await node.open()
  node.client.destroy()
  await eventually('it is lost', () => node.status().lostSince !== null)
  await isOpen(t, pair, 'a socket')
  t.match(await node.revoke({ userId: 'nobody' }), { durable: false })
  await node.client.connect()
  await eventually('it is back', () => node.status().connected)
  t.match(node.status(), { queued: 0, lostSince: null })
})

t.test('the client that nodes need is the one that createClient makes', async t => {
  const client: RedisClient = createClient()
  t.equal(client.isReady, false)
})
