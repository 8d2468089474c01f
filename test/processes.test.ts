/** Real processes that share a Redis: what one does reaches the other, also when one dies, or freezes and comes back. */
import t, { type Test } from 'tap'
import { bearer, endOf, tokenOf, until } from './cluster-suite.js'
import { upgrade } from './helpers.js'
import { dial, eventually, type Peer } from './live.js'
import { startNode, type AppNode, type NodeOptions } from './processes.js'
import { connect, needsRedis, startRedis } from './redis.js'

const CLUSTER = { nodeTimeout: 1000, timeout: 500, onClusterLoss: 'serve', secret: 'a secret that all processes know of 32' }

async function processes (t: Test, { cluster, ...options }: Omit<NodeOptions, 'redisUrl'> = {}) {
  const redis = await startRedis(t)
  const admin = await connect(t, redis.url)
  const start = () => startNode(t, { redisUrl: redis.url, cluster: { ...CLUSTER, ...cluster }, ...options })
  const [a, b] = await Promise.all([start(), start()])
  return { redis, admin, start, a, b }
}

const open = (t: Test, { host }: AppNode, token: string): Promise<Peer> => dial(t, host, { path: '/live', token })
const status = async ({ host }: AppNode, token: string, t: Test) => (await upgrade(t, host, bearer(token))).status
const limits = (perUser: number) => ({ auth: { limits: { connections: { perUser } } } })

async function login ({ post }: AppNode, userId: string): Promise<string> {
  const { headers } = await post('/login', { userId })
  return (headers.get('set-cookie') ?? '').split(';', 1)[0] ?? ''
}

t.test('who logs out on one process is out on the other', { ...needsRedis }, async t => {
  const { a, b, admin } = await processes(t)
  const cookie = await login(a, 'bob')
  const other = await login(b, 'bob')
  const sessions = await admin.keys('sess:*')
  t.equal(sessions.length, 2)
  const [onA, onB, stays] = [await dial(t, a.host, { path: '/live', cookie }), await dial(t, b.host, { path: '/live', cookie }), await dial(t, a.host, { path: '/live', cookie: other })]
  t.match(await b.get('/me', { cookie }), { status: 200, body: { authType: 'session', userId: 'bob' } })

  t.equal((await b.post('/logout', undefined, { cookie })).status, 200)
  for (const peer of [onA, onB]) t.match(await endOf(peer), { code: 4006, reason: /"code":"revoked"/ })
  t.equal(await stays.echoed('still here'), true)
  for (const node of [a, b]) {
    t.equal((await node.get('/me', { cookie })).status, 401)
    t.equal((await upgrade(t, node.host, { headers: { cookie, origin: `http://${node.host}` } })).status, 401)
  }
  t.equal((await admin.keys('sess:*')).length, 1)

  // A session that comes back from the dead, as from a replica that lags, is refused all the same.
  const [gone = ''] = sessions.filter(key => cookie.includes(key.slice('sess:'.length)))
  await admin.set(gone, JSON.stringify({ user: { userId: 'bob' }, cookie: {} }))
  t.equal((await upgrade(t, a.host, { headers: { cookie, origin: `http://${a.host}` } })).status, 401)
})

t.test('who logs in again is told from who was there before', { ...needsRedis }, async t => {
  const { a, b } = await processes(t)
  const cookie = await login(a, 'bob')
  const peer = await dial(t, b.host, { path: '/live', cookie })
  const { headers } = await a.post('/login', { userId: 'carol' }, { cookie })
  const next = (headers.get('set-cookie') ?? '').split(';', 1)[0] ?? ''
  t.not(next, cookie)
  t.equal((await endOf(peer)).code, 4006, 'the session of before was regenerated')
  const again = await dial(t, b.host, { path: '/live', cookie: next })
  t.match(JSON.parse(await again.take() ?? ''), { userId: 'carol' })
})

t.test('commands and tickets go from process to process', { ...needsRedis }, async t => {
  const { a, b } = await processes(t)
  const token = tokenOf('alice')
  const [one, two] = [await open(t, a, token), await open(t, b, token)]
  t.match((await a.post('/permissions', { userId: 'alice', permissions: ['x'] })).body, { matched: 2, nodes: { acknowledged: 2, missing: 0 } })
  t.match((await a.post('/revoke', { target: { userId: 'alice' }, options: { dryRun: true } })).body, { matched: 2, closed: 0, durable: true })
  t.match((await a.post('/disconnect', { filter: { userId: 'alice' }, options: { code: 4321 } })).body, { matched: 2, closed: 2, nodes: { acknowledged: 2, missing: 0 } })
  for (const peer of [one, two]) t.equal((await endOf(peer)).code, 4321)
  const { ticket } = (await a.post('/ticket', undefined, bearer(token).headers)).body as { ticket: string }
  t.same([(await upgrade(t, b.host, { path: `/live?ticket=${ticket}` })).status, (await upgrade(t, a.host, { path: `/live?ticket=${ticket}` })).status], [101, 401])
})

t.test('the places of a process that was killed are free after nodeTimeout, and not before', { ...needsRedis }, async t => {
  const { a, b, admin } = await processes(t, limits(2))
  const token = tokenOf('alice')
  const peers = [await open(t, a, token), await open(t, a, token)]
  t.equal(await status(b, token, t), 429)
  await a.kill()
  await Promise.all(peers.map(endOf))
  t.equal(await status(b, token, t), 429)
  await until('they are free', async () => await status(b, token, t) === 101)
  await until('they can all be taken', async () => await admin.zCard('{hybrid-auth}:lease:user:[null,"alice"]') === 0)
  await open(t, b, token)
  await open(t, b, token)
  t.equal(await status(b, token, t), 429)
  t.equal(await admin.zCard('{hybrid-auth}:nodes'), 1)
  t.match((await b.post('/revoke', { target: { userId: 'alice' } })).body, { matched: 2, nodes: { acknowledged: 1, missing: 0 } })
})

t.test('a process that was frozen takes its places back, and carries out what it missed', { ...needsRedis }, async t => {
  const { a, b, admin } = await processes(t, limits(1))
  const [alice, bob, carol, dave] = ['alice', 'bob', 'carol', 'dave'].map(user => tokenOf(user))
  if (alice === undefined || bob === undefined || carol === undefined || dave === undefined) throw new Error('four')
  const { nodeId } = (await a.get('/status')).body as { nodeId: string }
  const [onA, toRevoke, toDisconnect] = [await open(t, a, alice), await open(t, a, bob), await open(t, a, carol)]
  a.pause()
  t.match((await b.post('/revoke', { target: { token: bob } })).body, { durable: true, nodes: { acknowledged: 1, missing: 1 } })
  t.equal(await status(b, alice, t), 429)
  await until('it is given up', async () => await admin.zScore('{hybrid-auth}:nodes', nodeId) === null)
  t.match((await b.post('/disconnect', { filter: { userId: 'carol' } })).body, { durable: true, nodes: { acknowledged: 1, missing: 0 } })
  t.equal(await status(b, alice, t), 101)
  await open(t, b, dave)
  a.resume()
  t.equal((await endOf(toRevoke)).code, 4006)
  t.equal((await endOf(toDisconnect)).code, 4006)
  await until('it is back', async () => await status(b, alice, t) === 429)
  t.equal(await onA.echoed('still here'), true)
  t.equal(await status(a, bob, t), 401)
  t.equal(await status(a, dave, t), 429)
  await until('and freed what has ended', async () => await status(b, carol, t) === 101)
  t.match((await b.post('/revoke', { target: { userId: 'alice' } })).body, { matched: 1, closed: 1, nodes: { acknowledged: 2, missing: 0 } })
  const after = (await a.get('/status')).body
  t.match(after, { connected: true, lostSince: null, queued: 0, ignored: 0 })
})

t.test('processes tell of a loss, and of its end', { ...needsRedis }, async t => {
  const { a, b, redis } = await processes(t)
  const peer = await open(t, b, tokenOf('alice'))
  t.match((await a.post('/revoke', { target: { userId: 'alice' }, options: { dryRun: true } })).body, { matched: 1, nodes: { acknowledged: 2 } }, 'they know of each other')
  await redis.kill()
  await eventually('both tell of it', () => a.events.length === 1 && b.events.length === 1)
  t.match((await a.post('/revoke', { target: { userId: 'alice' } })).body, { durable: false, nodes: { acknowledged: 1, missing: 1 } })
  t.match((await a.get('/status')).body, { connected: false, queued: 1 })
  await redis.restart()
  t.equal((await endOf(peer)).code, 4006)
  await eventually('both tell of its end', () => a.events.length === 2 && b.events.length === 2)
  for (const { events, errors } of [a, b]) {
    t.same(events.map(({ type }) => type), ['cluster_lost', 'cluster_recovered'])
    t.equal(errors(), '')
  }
})
