/** The numbers that Prometheus scrapes, each moved by real traffic. */
import type { FastifyInstance } from 'fastify'
import { AggregatorRegistry, Counter, Registry, type OpenMetricsContentType } from 'prom-client'
import t, { type Test } from 'tap'
import type { HybridAuthOptions, Identity, RouteAuth } from '../lib/index.js'
import { redisNode } from './cluster-suite.js'
import { build, goodToken, inSeconds, JWT, SECRET, signHs256, upgrade, type Server, type ServerOptions } from './helpers.js'
import { eventually, lookNow, setClock } from './live.js'
import { connect as connectRedis, needsRedis, startRedis } from './redis.js'
import { driverOf, untyped, updateOf } from './revoking.js'
import { ask, cookieFor, deferred, MapStore } from './stores.js'
import { authFrame, closeFrame, connected, rawConnect, type Peer, type PeerOptions } from './wire.js'

type Labels = Record<string, string>
interface Sample { labels: Labels, value: number, metricName?: string }

const bearer = (token = goodToken()) => ({ headers: { authorization: `Bearer ${token}` } })
const forged = (sub = 'alice') => signHs256({ sub, exp: inSeconds(300) }, {}, 'not the secret of anybody, long enough')
const BOB: Identity = { userId: 'bob', permissions: [] }

interface Metered extends Server {
  registry: Registry
  /** The sum of all samples of a metric that have these labels. */
  read: (name: string, labels?: Labels) => Promise<number>
  /** Every series of a metric, as `label="value"`, and its value. */
  series: (name: string) => Promise<Record<string, number>>
  /** Until the metric says so. */
  reaches: (name: string, labels: Labels, value: number) => Promise<void>
  open: (options?: PeerOptions) => Promise<Peer>
  session: (id: string, user?: Identity) => PeerOptions
}

async function samplesOf (registry: Registry, name: string): Promise<Sample[]> {
  const all = await registry.getMetricsAsJSON()
  const found = all.find(metric => metric.name === `hybrid_auth_${name}`)
  if (found === undefined) throw new Error(`there is no ${name}`)
  return 'values' in found ? (found.values as Sample[]) : []
}

const has = (labels: Labels, wanted: Labels) => Object.entries(wanted).every(([name, value]) => labels[name] === value)
const written = (labels: Labels) => Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join()

interface MeteredOptions extends ServerOptions { route?: RouteAuth, late?: boolean }

async function metered (t: Test, { auth, route = true, routes, late = false, ...rest }: MeteredOptions = {}): Promise<Metered> {
  const store = new MapStore()
  const server = await build(t, {
    session: { store },
    auth: { heartbeat: false, ...auth },
    routes (app) {
      app.get('/app', { websocket: true, auth: route }, socket => { socket.on('message', (data: Buffer) => { socket.send(data) }) })
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => {})
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      routes?.(app)
    },
    ...rest
  })
  const { app, host } = server
  const registry = new Registry()
  if (!late) app.hybridAuth.metrics(registry)
  const read: Metered['read'] = async (name, labels = {}) =>
    (await samplesOf(registry, name)).filter(sample => has(sample.labels, labels)).reduce((sum, { value }) => sum + value, 0)
  return {
    ...server,
    registry,
    read,
    series: async name => Object.fromEntries((await samplesOf(registry, name)).map(({ labels, value, metricName = '' }) => [metricName.slice(name.length + 'hybrid_auth_'.length) + written(labels), value])),
    async reaches (name, labels, value) {
      const deadline = performance.now() + 5000
      while (await read(name, labels) !== value) {
        if (performance.now() > deadline) throw new Error(`${name} ${written(labels)} is ${await read(name, labels)}, not ${value}`)
        await new Promise(resolve => { setTimeout(resolve, 5) })
      }
    },
    open: options => connected(t, host, { path: '/app', ...options }),
    session (id, user = BOB) {
      store.put(id, { user, cookie: {} })
      return { token: null, headers: { cookie: cookieFor(id), origin: `http://${host}` } }
    }
  }
}

t.test('open connections are counted by auth_type, pending sockets and queued frames as they are now', async t => {
  const verdict = deferred<boolean>()
  const { open, series, read, reaches, session, host } = await metered(t, { route: { authorize: () => verdict.promise } })
  t.same(await series('connections'), { 'auth_type="jwt"': 0, 'auth_type="oauth2"': 0, 'auth_type="session"': 0 })
  const [one, two] = [await open(), await open()]
  const bob = await open(session('s1'))
  t.same(await series('connections'), { 'auth_type="jwt"': 2, 'auth_type="oauth2"': 0, 'auth_type="session"': 1 })
  one.send('judged', 'held', 'held')
  two.send('judged', 'held')
  await Promise.all([one.settled(), two.settled()])
  t.equal(await read('queued_frames'), 3)
  verdict.resolve(true)
  await one.heard.reach(3)
  await two.heard.reach(2)
  t.equal(await read('queued_frames'), 0)
  for (const { socket } of [one, bob]) socket.close()
  await reaches('connections', {}, 1)
  t.same(await series('connections'), { 'auth_type="jwt"': 1, 'auth_type="oauth2"': 0, 'auth_type="session"': 0 })

  const pending = [await connected(t, host, { path: '/first', token: null }), await connected(t, host, { path: '/first', token: null })] as const
  await reaches('pending_sockets', {}, 2)
  pending[0].send(authFrame(goodToken()))
  await reaches('pending_sockets', {}, 1)
  pending[1].socket.terminate()
  await reaches('pending_sockets', {}, 0)
})

t.test('handshakes are counted by transport and outcome', async t => {
  const { host, series, session, open, reaches } = await metered(t, {
    routes (app) {
      app.get('/maybe', { websocket: true, auth: { optional: true } }, socket => { socket.send('{}') })
      app.get('/admin', { auth: { role: 'admin' } }, async () => 'in')
    }
  })
  for (const init of [bearer(), bearer(), {}, bearer(forged()), bearer(goodToken({ exp: 1 }))]) await ask(host, '/me', init)
  await ask(host, '/admin', bearer())
  await open(session('s1'))
  await upgrade(t, host, { path: '/maybe' })
  await upgrade(t, host, { path: '/app?ticket=unknown' })
  await upgrade(t, host, { path: '/app', headers: { origin: 'https://evil.example' } })
  const first = await connected(t, host, { path: '/first', token: null })
  first.send(authFrame(goodToken()))
  const left = await connected(t, host, { path: '/first', token: null })
  left.socket.terminate()
  await reaches('handshakes_total', { outcome: 'abandoned' }, 1)
  await reaches('handshakes_total', { transport: 'websocket', outcome: 'jwt' }, 1)
  const row = (transport: string, outcome: string) => `transport="${transport}",outcome="${outcome}"`
  t.same(await series('handshakes_total'), {
    [row('http', 'jwt')]: 2, [row('http', 'missing_credentials')]: 1, [row('http', 'invalid_token')]: 1, [row('http', 'expired_token')]: 1,
    [row('http', 'forbidden')]: 1, [row('websocket', 'session')]: 1, [row('websocket', 'anonymous')]: 1, [row('websocket', 'invalid_ticket')]: 1,
    [row('websocket', 'origin_refused')]: 1, [row('websocket', 'pending')]: 2, [row('websocket', 'abandoned')]: 1, [row('websocket', 'jwt')]: 1
  })
})

t.test('the cache and the time of a verification are counted, on every way to one', async t => {
  const { host, read, series, session, open, registry } = await metered(t, {
    auth: { jwt: { ...JWT, user: async ({ sub = '' }) => ({ userId: sub }) } }
  })
  const token = goodToken()
  for (let i = 0; i < 3; i++) await ask(host, '/me', bearer(token))
  await ask(host, '/me', bearer(forged()))
  t.same(await series('verify_cache_total'), { 'result="hit"': 2, 'result="miss"': 2 })
  t.equal((await samplesOf(registry, 'verify_seconds')).find(({ metricName }) => metricName?.endsWith('_count'))?.value, 4)
  const peer = await open(session('s1'))
  peer.send(JSON.stringify(updateOf(token)))
  await peer.heard.reach(1)
  await ask(host, '/me')
  const count = (await samplesOf(registry, 'verify_seconds')).find(({ metricName }) => metricName?.endsWith('_count'))?.value
  t.equal(count, 7, 'a session, a message and nothing at all')
  const buckets = (await samplesOf(registry, 'verify_seconds')).filter(({ metricName }) => metricName?.endsWith('_bucket'))
  t.same(buckets.map(({ labels }) => labels.le), ['0.00001', '0.0001', '0.001', '0.01', '0.1', '1', '10', '+Inf'])
  t.ok(buckets.every(({ value }, i) => value >= (buckets[i - 1]?.value ?? 0)), 'each bucket holds those below it')
  t.equal(buckets.at(-1)?.value, 7)
  const sum = (await samplesOf(registry, 'verify_seconds')).find(({ metricName }) => metricName?.endsWith('_sum'))?.value ?? 0
  t.ok(sum > 0 && sum < 5, `${sum} seconds`)
  t.equal(await read('verify_cache_total', { result: 'hit' }), 3)
})

t.test('a verification that takes its time is in the bucket of that time', async t => {
  const { host, registry } = await metered(t, {
    auth: { jwt: { ...JWT, key: () => new Promise(resolve => { setTimeout(resolve, 120, SECRET) }) } }
  })
  await ask(host, '/me', bearer())
  const samples = await samplesOf(registry, 'verify_seconds')
  t.same(samples.slice(4, 6).map(({ value }) => value), [0, 1], 'more than a tenth of a second')
})

t.test('refreshes are counted by outcome, expiries and refused messages by number', async t => {
  const clock = setClock(t)
  const { app, open, series, read, reaches, session } = await metered(t, {
    auth: { expiryGrace: 0 }, route: { authorize: (_auth, message) => message.text() !== 'bad' }
  })
  const tokenFor = (sub: string, exp = 100) => goodToken({ sub, exp: inSeconds(exp) })
  const peer = await open({ token: tokenFor('alice') })
  peer.send('bad', 'bad', 'good', JSON.stringify(updateOf(forged())), JSON.stringify(updateOf(goodToken({ exp: 1 }))), JSON.stringify(updateOf(tokenFor('alice'))))
  await reaches('refreshes_total', { outcome: 'refreshed' }, 1)
  t.equal(await read('messages_refused_total'), 2)
  const carol = await open({ token: tokenFor('carol') })
  carol.send(JSON.stringify(updateOf(tokenFor('mallory'))))
  await carol.closed
  t.same(await series('refreshes_total'), {
    'outcome="invalid_token"': 1, 'outcome="expired_token"': 1, 'outcome="refreshed"': 1, 'outcome="identity_changed"': 1
  })
  t.equal(await read('expiries_total'), 0)
  await open({ token: tokenFor('dave', 500) })
  clock.move(101_000)
  for (const connection of app.hybridAuth.connections()) lookNow(connection)
  await peer.closed
  t.equal(await read('expiries_total'), 1)
  await open(session('s1'))
  t.equal(await read('expiries_total'), 1)
})

t.test('what is revoked is counted on each node, and how long it took to get there', async t => {
  const cluster = driverOf()
  const [a, b] = [await metered(t, { auth: { cluster } }), await metered(t, { auth: { cluster } })]
  const peers = [await a.open(), await b.open(), await b.open()]
  await a.app.hybridAuth.revoke({ userId: 'nobody' })
  await a.app.hybridAuth.revoke({ userId: 'alice' })
  await Promise.all(peers.map(async ({ closed }) => closed))
  t.same([await a.read('revoked_total'), await b.read('revoked_total')], [1, 2])
  t.same([await a.read('revocations'), await b.read('revocations')], [2, 2])
  for (const { registry } of [a, b]) {
    const samples = await samplesOf(registry, 'revocation_seconds')
    t.equal(samples.find(({ metricName }) => metricName?.endsWith('_count'))?.value, 2)
    t.same(samples.filter(({ metricName }) => metricName?.endsWith('_bucket')).map(({ labels }) => labels.le), ['0.001', '0.005', '0.025', '0.1', '0.25', '1', '5', '30', '+Inf'])
  }
  await a.reaches('closes_total', {}, 1)
  t.same(await a.series('closes_total'), { 'code="4006",by="authentication"': 1 })
})

/** Each way for a socket to end, and who ended it. */
interface End {
  what: string
  code: string
  by: string
  auth?: Partial<HybridAuthOptions>
  route?: RouteAuth
  routes?: (app: FastifyInstance) => void
  path?: string
  end: (peer: Peer, server: Metered) => unknown
}

const closing = (code: number) => (app: FastifyInstance) => {
  app.get('/ends', { websocket: true }, socket => { socket.on('message', () => { socket.close(code) }) })
}

const ENDS: End[] = [
  { what: 'a revocation', code: '4006', by: 'authentication', end: (_peer, { app }) => app.hybridAuth.revoke({ userId: 'alice' }) },
  { what: 'a rule that no longer holds', code: '4007', by: 'authentication', route: { permissions: ['in'] }, end: (_peer, { app }) => app.hybridAuth.setPermissions('alice', []) },
  { what: 'an identity that changed', code: '4011', by: 'authentication', end: peer => { peer.send(JSON.stringify(updateOf(goodToken({ sub: 'mallory' })))) } },
  { what: 'refreshes that failed', code: '4004', by: 'authentication', end: peer => { for (let i = 0; i < 3; i++) peer.send(JSON.stringify(updateOf(forged()))) } },
  { what: 'a remapped code of ours', code: '4406', by: 'authentication', auth: { closeCodes: { Revoked: 4406 } }, end: (_peer, { app }) => app.hybridAuth.revoke({ userId: 'alice' }) },
  { what: 'too many messages', code: '4008', by: 'limit', route: { rate: { capacity: 1, refillPerSecond: 0.01 } }, end: peer => { peer.send(...Array.from({ length: 11 }, () => 'x')) } },
  {
    what: 'an eviction', code: '4009', by: 'limit', auth: { limits: { connections: { perUser: 1, policy: 'evict-oldest' } } },
    end: (_peer, { open }) => open()
  },
  { what: 'app.close()', code: '1012', by: 'server', end: (_peer, { app }) => app.close() },
  {
    what: 'nothing said for long', code: '4003', by: 'server', auth: { idleTimeout: 1000 },
    end (_peer, { app }) {
      setClock(t).move(1001)
      for (const connection of app.hybridAuth.connections()) lookNow(connection)
    }
  },
  { what: 'disconnect() with a code of its own', code: '4444', by: 'application', end: (_peer, { app }) => app.hybridAuth.disconnect({}, { code: 4444 }) },
  { what: 'connection.close() with a code of its own', code: '4445', by: 'application', end (_peer, { app }) { app.hybridAuth.connections()[0]?.close(4445) } },
  { what: 'socket.close() of the handler', code: '4321', by: 'application', path: '/ends', routes: closing(4321), end: peer => { peer.send('x') } },
  { what: 'socket.close(1000) of the handler', code: '1000', by: 'application', path: '/ends', routes: closing(1000), end: peer => { peer.send('x') } },
  { what: 'a peer that says goodbye', code: '1000', by: 'peer', end (peer) { peer.socket.close(1000) } },
  { what: 'a peer that says nothing with it', code: '1005', by: 'peer', end (peer) { peer.socket.close() } },
  { what: 'a peer with a code of ours', code: 'other', by: 'peer', end (peer) { peer.socket.close(4006) } },
  { what: 'a connection that is cut', code: '1006', by: 'network', end (peer) { peer.socket.terminate() } }
]

for (const { what, code, by, path = '/app', end, ...options } of ENDS) {
  t.test(`a socket that ends by ${what} is counted as closed with ${code} by ${by}`, async t => {
    const server = await metered(t, options)
    const peer = await server.open({ path, token: goodToken({ permissions: ['in'] }) })
    await end(peer, server)
    await peer.closed
    await server.reaches('closes_total', {}, 1)
    t.same(await server.series('closes_total'), { [`code="${code}",by="${by}"`]: 1 })
  })
}

t.test('a peer that is not heard of is counted as a bad network', async t => {
  const clock = setClock(t)
  const { app, host, series, reaches } = await metered(t, { auth: { heartbeat: { interval: 25_000, timeout: 10_000 } } })
  const peer = await connected(t, host, { path: '/app', autoPong: false })
  for (const ms of [25_001, 10_001]) {
    clock.move(ms)
    for (const connection of app.hybridAuth.connections()) lookNow(connection)
  }
  await peer.closed
  await reaches('closes_total', {}, 1)
  t.same(await series('closes_total'), { 'code="1006",by="network"': 1 })
})

t.test('codes that peers make up make no series of their own', async t => {
  const { port, series, reaches } = await metered(t)
  const codes = [1000, 1001, 1008, 1011, ...Array.from({ length: 200 }, (_, i) => 3000 + i * 9)]
  for (let from = 0; from < codes.length; from += 50) {
    await Promise.all(codes.slice(from, from + 50).map(async code => rawConnect(t, port, { path: '/app', first: closeFrame(code) }).closed))
  }
  await reaches('closes_total', {}, codes.length)
  t.same(await series('closes_total'), {
    'code="1000",by="peer"': 1, 'code="1001",by="peer"': 1, 'code="1008",by="peer"': 1, 'code="1011",by="peer"': 1, 'code="other",by="peer"': 200
  })
})

t.test('limits are counted by name, and by whether they were enforced', async t => {
  const limits = { connects: { perUser: 4 }, connections: { perUser: 2 }, pendingPerIp: 1 }
  const rate = { capacity: 1, refillPerSecond: 0.01 }
  const drive = async ({ open, host, read }: Metered) => {
    const peer = await open()
    peer.send('x', 'x', 'x')
    await peer.settled()
    await open()
    for (let i = 0; i < 3; i++) await upgrade(t, host, { path: '/live', ...bearer() })
    for (let i = 0; i < 3; i++) await ask(host, '/me', bearer(forged('mallory')))
    const before = await read('refreshes_total')
    const carol = await open({ token: goodToken({ sub: 'carol' }) })
    carol.send(JSON.stringify(updateOf(forged('mallory'))))
    await carol.heard.reach(1)
    t.equal(await read('refreshes_total') - before, 1)
  }
  const strict = await metered(t, { auth: { limits, failures: { max: 1 } }, route: { rate } })
  await drive(strict)
  t.same(await strict.series('limited_total'), {
    'limit="rate",enforced="true"': 2, 'limit="connections",enforced="true"': 2, 'limit="connects",enforced="true"': 1, 'limit="failures",enforced="true"': 3
  })
  t.equal(await strict.read('brute_force_suspected_total'), 1)
  const lenient = await metered(t, { auth: { limits, failures: { max: 1 }, report: ['rate', 'failures', 'connections', 'connects'] }, route: { rate } })
  await drive(lenient)
  t.same(Object.keys(await lenient.series('limited_total')).sort(), [
    'limit="connections",enforced="false"', 'limit="connects",enforced="false"', 'limit="failures",enforced="false"', 'limit="rate",enforced="false"'
  ])
  t.equal(await lenient.read('brute_force_suspected_total'), 1)
  t.equal(await lenient.read('closes_total'), await lenient.read('closes_total', { by: 'peer' }), 'nobody was closed for it')
})

t.test('audit events that are dropped are counted as status() counts them', async t => {
  const busy = deferred<undefined>()
  const { app, open, read } = await metered(t, { auth: { audit: () => busy.promise }, route: { authorize: () => false } })
  const peer = await open()
  for (let i = 0; i < 11; i++) {
    peer.send(...Array.from({ length: 1000 }, () => 'x'))
    await peer.settled()
  }
  const dropped = await read('audit_dropped_total')
  t.ok(dropped > 500, `${dropped} were dropped`)
  t.equal(dropped, app.hybridAuth.status().auditDropped)
  busy.resolve(undefined)
})

t.test('the cluster is counted: whether it is there, how late it is, what waits and what is no message', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const [a, b] = [await redisNode(t, redis.url), await redisNode(t, redis.url)]
  const registry = new Registry()
  b.app.hybridAuth.metrics(registry)
  const read = async (name: string) => (await samplesOf(registry, name))[0]?.value ?? -1
  await eventually('both are there', () => a.status().connected && b.status().connected)
  await a.revoke({ userId: 'nobody' })
  await eventually('it is known', () => b.status().revocations === 1)
  t.same(await Promise.all(['cluster_connected', 'cluster_queued', 'cluster_ignored_total', 'revocations'].map(read)), [1, 0, 0, 1])
  const lag = await read('cluster_lag_seconds')
  t.ok(lag >= 0 && lag < 1, `${lag} seconds behind`)
  const latency = await samplesOf(registry, 'revocation_seconds')
  t.equal(latency.find(({ metricName }) => metricName?.endsWith('_count'))?.value, 1)
  const admin = await connectRedis(t, redis.url)
  for (let i = 0; i < 2; i++) await admin.xAdd('{hybrid-auth}:log', '*', { m: 'no message of ours' })
  await eventually('it is ignored', () => b.status().ignored === 2)
  t.equal(await read('cluster_ignored_total'), 2)

  await redis.kill()
  await eventually('it is lost', () => !b.status().connected && b.status().lostSince !== null)
  await b.revoke({ userId: 'somebody' })
  t.same(await Promise.all(['cluster_connected', 'cluster_queued', 'revocations'].map(read)), [0, 1, 2])
  const [early] = [await read('cluster_lag_seconds')]
  await eventually('the lag grows', () => Date.now() - (b.status().lostSince ?? Infinity) > early * 1000 + 20)
  t.ok(await read('cluster_lag_seconds') > early)
  await redis.restart()
  await eventually('it is back', () => b.status().connected && b.status().queued === 0)
  t.same(await Promise.all(['cluster_connected', 'cluster_queued'].map(read)), [1, 0])
})

const NAME = 'hybrid_auth_[a-z_]+'
const VALUE = '[0-9.e+-]+|[+-]Inf'
const LABEL = '[a-z_]+="(?:[^"\\\\\n]|\\\\[\\\\n"])*"'
const LINES = {
  help: new RegExp(`^# HELP (${NAME}) \\S.*\\.$`),
  type: new RegExp(`^# TYPE (${NAME}) (counter|gauge|histogram)$`),
  sample: new RegExp(`^((${NAME}?)(?:_bucket|_sum|_count)?(?:\\{${LABEL}(?:,${LABEL})*\\})?) (${VALUE})$`)
}

/** What a scrape says, of which every line must be one (https://prometheus.io/docs/instrumenting/exposition_formats). */
function readScrape (t: Test, text: string): { types: Record<string, string>, series: Map<string, number> } {
  const helped = new Set<string>()
  const types: Record<string, string> = {}
  const series = new Map<string, number>()
  let name = ''
  for (const line of text.split('\n').filter(line => line !== '' && line !== '# EOF')) {
    const [help, type, sample] = [LINES.help.exec(line), LINES.type.exec(line), LINES.sample.exec(line)]
    if (help?.[1] !== undefined) {
      name = help[1]
      t.notOk(helped.has(name), `${name} is described once`)
      helped.add(name)
    } else if (type?.[1] !== undefined && type[2] !== undefined) {
      t.equal(type[1], name, 'its type follows')
      types[name] = type[2]
    } else if (sample?.[1] !== undefined) {
      t.ok(sample[1].startsWith(name), `${sample[1]} is of ${name}`)
      t.notOk(series.has(sample[1]), `${sample[1]} is there once`)
      series.set(sample[1], Number(sample[3]))
    } else t.fail(`no line of a scrape: ${line}`)
  }
  t.same(Object.keys(types), [...helped])
  return { types, series }
}

const COUNTERS = [
  'handshakes', 'verify_cache', 'introspections', 'refreshes', 'expiries', 'revoked', 'closes', 'messages_refused', 'rooms_refused', 'room_messages', 'limited', 'brute_force_suspected', 'audit_dropped', 'audit_failed', 'cluster_ignored'
]
const GAUGES = ['connections', 'pending_sockets', 'queued_frames', 'cluster_connected', 'cluster_lag_seconds', 'cluster_queued', 'revocations', 'rooms', 'room_members']
const HISTOGRAMS = ['verify_seconds', 'revocation_seconds']

/** @param suffix of counters */
function typesOf (suffix: string): Record<string, string> {
  const types: Record<string, string> = {}
  for (const name of COUNTERS) types[`hybrid_auth_${name}${suffix}`] = 'counter'
  for (const name of GAUGES) types[`hybrid_auth_${name}`] = 'gauge'
  for (const name of HISTOGRAMS) types[`hybrid_auth_${name}`] = 'histogram'
  return types
}

t.test('a scrape is well-formed, in both formats, and as JSON', async t => {
  const { app, host, registry, open } = await metered(t)
  await ask(host, '/me', bearer(forged()))
  const peer = await open()
  peer.send('x')
  const plain = await registry.metrics()
  const { types, series } = readScrape(t, plain)
  t.same(types, typesOf('_total'))
  t.equal(series.get('hybrid_auth_handshakes_total{transport="http",outcome="invalid_token"}'), 1)
  const json = await registry.getMetricsAsJSON()
  t.same(Object.fromEntries(json.map(({ name, type }) => [name, type])), types)
  t.ok(json.every(({ help }) => help.length > 10))
  t.match(await registry.getSingleMetricAsString('hybrid_auth_connections'), /^hybrid_auth_connections\{auth_type="jwt"\} 1$/m)

  const openMetrics = new Registry<OpenMetricsContentType>()
  openMetrics.setContentType(Registry.OPENMETRICS_CONTENT_TYPE)
  app.hybridAuth.metrics(openMetrics)
  for (let i = 0; i < 2; i++) {
    const text = await openMetrics.metrics()
    t.match(text, /\n# EOF\n$/)
    const read = readScrape(t, text)
    t.same(read.types, typesOf(''), 'counters are called by their family')
    t.same([...read.series.keys()].sort(), [...series.keys()].sort(), 'and have the same series')
  }
  t.same(await registry.metrics().then(text => [...readScrape(t, text).series.keys()]), [...series.keys()], 'one registry is not changed by another')
})

t.test('a registry may do what registries do', async t => {
  const { app, host, registry, read } = await metered(t)
  await ask(host)
  registry.setDefaultLabels({ service: 'live', outcome: 'mine' })
  t.match(await registry.metrics(), /hybrid_auth_handshakes_total\{transport="http",outcome="missing_credentials",service="live"\} 1/)
  registry.resetMetrics()
  t.equal(await read('handshakes_total', { outcome: 'missing_credentials' }), 1, 'what happened has happened')
  t.equal(Registry.merge([registry, new Registry()]).getMetricsAsArray().length, registry.getMetricsAsArray().length)
  registry.clear()
  app.hybridAuth.metrics(registry)
  t.equal(await read('handshakes_total'), 1, 'it may be registered again after clear()')
})

t.test('of several processes what adds up is added, and what does not is not', async t => {
  const cluster = driverOf()
  const [a, b] = [await metered(t, { auth: { cluster } }), await metered(t, { auth: { cluster } })]
  for (const { open } of [a, a, b]) await open()
  await a.app.hybridAuth.revoke({ userId: 'nobody' })
  const [ofA, ofB] = [await a.registry.getMetricsAsJSON(), await b.registry.getMetricsAsJSON()]
  for (const [i, metrics] of [ofA, ofB].entries()) {
    const lag = metrics.find(({ name }) => name === 'hybrid_auth_cluster_lag_seconds')
    const [sample] = lag !== undefined && 'values' in lag ? (lag.values as Sample[]) : []
    if (sample !== undefined) sample.value = i + 1
  }
  const text = await AggregatorRegistry.aggregate([ofA, ofB]).metrics()
  const { series } = readScrape(t, text)
  t.equal(series.get('hybrid_auth_connections{auth_type="jwt"}'), 3)
  t.equal(series.get('hybrid_auth_revocation_seconds_count'), 2)
  t.equal(series.get('hybrid_auth_cluster_lag_seconds'), 2, 'the latest of all')
  t.equal(series.get('hybrid_auth_cluster_connected'), 1, 'both are there')
  t.equal(series.get('hybrid_auth_revocations'), 1, 'everybody knows the same')
})

t.test('registering twice is what it is for any metric of prom-client; another registry, or another registration, has its own', async t => {
  const { app, registry, host } = await metered(t)
  const other = await metered(t)
  const taken = 'A metric with the name hybrid_auth_connections has already been registered.'
  t.throws(() => { app.hybridAuth.metrics(registry) }, { message: taken })
  t.throws(() => { other.app.hybridAuth.metrics(registry) }, { message: taken })
  const second = new Registry()
  app.hybridAuth.metrics(second)
  await ask(host)
  for (const one of [registry, second]) t.equal((await samplesOf(one, 'handshakes_total')).length, 1)
  t.equal((await samplesOf(other.registry, 'handshakes_total')).length, 0)
  const own = new Registry()
  t.throws(() => new Counter({ name: 'hybrid_auth_expiries_total', help: 'Mine.', registers: [registry] }), /already been registered/)
  app.hybridAuth.metrics(own)
  t.type(own.getSingleMetric('hybrid_auth_expiries_total'), 'object')
})

t.test('what is no registry is refused by name', async t => {
  const { app } = await metered(t)
  for (const given of [undefined, null, {}, [], 'registry', 5, () => {}, { registerMetric: true }, Registry]) {
    t.throws(() => { app.hybridAuth.metrics(untyped(given)) }, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bregistry\b/ })
  }
})

t.test('what happened before anybody asked is counted, but for the time it took', async t => {
  const { app, host, registry, read } = await metered(t, { late: true })
  await ask(host, '/me', bearer())
  app.hybridAuth.metrics(registry)
  t.equal(await read('handshakes_total', { outcome: 'jwt' }), 1)
  t.equal((await samplesOf(registry, 'verify_seconds')).at(-1)?.value, 0)
  await ask(host, '/me', bearer())
  t.equal((await samplesOf(registry, 'verify_seconds')).at(-1)?.value, 1)
})

t.test('no label holds a user, a token, an address or anything else that a client chooses', async t => {
  const { app, host, registry, open, session, port } = await metered(t, { auth: { failures: { max: 1 } } })
  const canary = 'canary0123456789'
  const token = goodToken({ sub: canary, jti: canary, role: canary, companyId: canary, permissions: [canary], iss: canary })
  await ask(host, '/me', bearer(token))
  await ask(host, '/me', bearer(forged(canary)))
  await ask(host, `/me?${canary}=${canary}`, { headers: { 'user-agent': canary, origin: `https://${canary}` } })
  const [one, two] = [await open({ token }), await open(session(`session-of-${canary}`, { userId: canary, role: canary }))]
  one.send(canary, JSON.stringify(updateOf(forged(canary))))
  await one.heard.reach(2)
  await app.hybridAuth.setPermissions(canary, [canary])
  await app.hybridAuth.revoke({ userId: canary }, { reason: canary })
  await Promise.all([one.closed, two.closed])
  await rawConnect(t, port, { path: '/app', first: closeFrame(3000, canary) }).closed
  const text = await registry.metrics()
  t.notOk(text.includes(canary))
  t.notOk(text.includes('127.0.0.1'))
  const { series } = readScrape(t, text)
  for (const name of series.keys()) {
    for (const [, value = ''] of name.matchAll(/="([^"]*)"/g)) t.match(value, /^(?:[a-z_]+|oauth2|\d{4}|[\d.]+|\+Inf)$/)
  }
  t.ok(series.size < 100, `${series.size} series`)
})
