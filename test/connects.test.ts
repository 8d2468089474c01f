/** How many sockets may be opened a minute, how many may owe their first message, over what, and what is only reported. */
import Fastify from 'fastify'
import websocket from '@fastify/websocket'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { memoryCluster } from '../lib/cluster/memory.js'
import hybridAuth, { type AuditEvent, type HybridAuthOptions } from '../lib/index.js'
import { closeReason } from '../lib/protocol.js'
import { redisNode, SHORT } from './cluster-suite.js'
import { build, goodToken, inSeconds, JWT, keepLines, SECRET, signHs256, statusOf, upgrade, type Server, type ServerOptions, type Upgrade } from './helpers.js'
import { eventually, setClock } from './live.js'
import { needsRedis, startRedis } from './redis.js'
import { driverOf } from './revoking.js'
import { ask, codeOf, deferred, logTo, rawUpgrade, serve, type Deferred } from './stores.js'
import { authFrame, connect, connected, Inbox, turn, until, type Closed, type Peer, type PeerOptions } from './wire.js'

type Limits = NonNullable<HybridAuthOptions['limits']>
type Refused = Extract<AuditEvent, { type: 'refused' }>

const NAME = 'hybrid-auth.v1'
const TOO_OFTEN = 'FST_HYBRID_AUTH_RATE_LIMITED'
const TOO_MANY = 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS'
const TLS_REQUIRED = 'FST_HYBRID_AUTH_TLS_REQUIRED'
const QUIET = { heartbeat: false } as const

const tokenOf = (sub = 'alice', changes: Record<string, unknown> = {}) => goodToken({ sub, exp: inSeconds(1e6), ...changes })
const bearer = (token = tokenOf(), ip?: string) => ({ authorization: `Bearer ${token}`, ...ip !== undefined && { 'x-forwarded-for': ip } })
const rateLimited = (retryAfterMs: number): Closed => ({ code: 4008, reason: JSON.stringify({ code: 'rate_limited', action: 'retry', retryAfterMs }) })
const ended = ({ code, reason }: Upgrade): Closed => ({ code, reason })

interface Gated extends Server {
  events: AuditEvent[]
  refused: () => Array<Pick<Refused, 'code' | 'enforced'>>
  /** The status of an upgrade of this user, from this address. */
  opens: (token?: string, ip?: string, path?: string) => Promise<number>
  /** What was counted in the metrics under this limit. */
  counted: (limit: string, enforced: boolean) => Promise<number>
}

/** A server with every kind of route, which keeps what it decided. */
async function gated (t: Test, auth: Partial<HybridAuthOptions>, { routes, ...rest }: ServerOptions = {}): Promise<Gated> {
  const registry = new Registry()
  const server = await build(t, {
    auth: { ...QUIET, ...auth },
    routes (app) {
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => { socket.send('"in"') })
      app.get('/maybe', { websocket: true, auth: { optional: true } }, socket => { socket.send('{}') })
      app.get('/open', { websocket: true, auth: false }, socket => { socket.send('{}') })
      app.get('/twice', { websocket: true, preHandler: app.hybridAuth.require({}) }, socket => { socket.send('{}') })
      app.route({ method: 'GET', url: '/both', auth: true, handler: async request => request.auth, wsHandler: socket => { socket.send('{}') } })
      app.get('/forbidden', { websocket: true, auth: { role: 'nobody has it' } }, () => {})
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      app.post('/me', { auth: true }, async request => request.auth)
      routes?.(app)
    },
    ...rest
  })
  const { app, host } = server
  app.hybridAuth.metrics(registry)
  const events: AuditEvent[] = []
  for (const type of ['refused', 'limited', 'authenticated', 'closed', 'brute_force_suspected'] as const) app.hybridAuth.events.on(type, (event: AuditEvent) => { events.push(event) })
  return {
    ...server,
    events,
    refused: () => events.flatMap(event => event.type === 'refused' ? [{ code: event.code, enforced: event.enforced }] : []),
    opens: async (token, ip, path) => (await upgrade(t, host, { headers: bearer(token, ip), ...path !== undefined && { path } })).status,
    async counted (limit, enforced) {
      const text = await registry.getSingleMetricAsString('hybrid_auth_limited_total')
      return Number(new RegExp(`^hybrid_auth_limited_total\\{limit="${limit}",enforced="${enforced}"\\} (\\d+)$`, 'm').exec(text)?.[1] ?? 0)
    }
  }
}

const stopClock = (t: Test) => {
  const clock = setClock(t)
  clock.freeze()
  return clock
}

/** A socket that owes its credential. */
const pendingAt = (t: Test, host: string, options: PeerOptions = {}): Promise<Peer> => connected(t, host, { path: '/first', token: null, ...options })

for (const option of ['perUser', 'perIp'] as const) {
  t.test(`limits.connects.${option}: below and at the limit sockets open, one more is told when to come back, and that is true`, async t => {
    for (const [count, retryAfter] of [[1, 60], [3, 20], [7, 9], [60, 1]] as const) {
      await t.test(`${count} a minute`, async t => {
        const clock = stopClock(t)
        const server = await gated(t, { limits: { connects: { [option]: count } } })
        for (let n = 0; n < count; n++) t.equal(await server.opens(), 101)
        const refused = await upgrade(t, server.host, { headers: bearer() })
        t.match(refused, { status: 429, headers: { 'retry-after': String(retryAfter), 'cache-control': 'no-store' } })
        t.equal(refused.headers['www-authenticate'], undefined, 'the credential is good')
        t.equal(codeOf(refused.body), TOO_OFTEN)
        t.equal(server.handled(), count)
        t.match(server.events.filter(({ type }) => type === 'refused'), [{ code: TOO_OFTEN, enforced: true, userId: 'alice', websocket: true, route: '/live' }])
        clock.move(Math.ceil(60_000 / count) - 1)
        t.match(await upgrade(t, server.host, { headers: bearer() }), { status: 429, headers: { 'retry-after': '1' } })
        clock.move(1)
        t.equal(await server.opens(), 101)
        t.equal(await server.opens(), 429)
        clock.move(retryAfter * 1000)
        t.equal(await server.opens(), 101, 'after Retry-After')
        t.same([await server.counted('connects', true), await server.counted('connects', false)], [3, 0])
      })
    }
  })
}

t.test('who speaks hybrid-auth.v1 is told by close 4008, with refuse: close everybody is, with refuse: http nobody', async t => {
  for (const [refuse, protocols, isClosed] of [['auto', [NAME], true], ['auto', [], false], ['close', [], true], ['http', [NAME], false]] as const) {
    await t.test(`${refuse} ${protocols.join()}`, async t => {
      stopClock(t)
      const server = await gated(t, { limits: { connects: { perUser: 3 } }, refuse })
      for (let n = 0; n < 3; n++) await server.opens()
      const refused = await upgrade(t, server.host, { headers: bearer(), protocols: [...protocols] })
      t.same([refused.status, ended(refused)], isClosed ? [101, rateLimited(20_000)] : [429, { code: 0, reason: '' }])
      t.equal(server.handled(), 3)
    })
  }
})

t.test('a socket that brings its credential as the first message is closed with 4008, and counts only then', async t => {
  const clock = stopClock(t)
  const server = await gated(t, { limits: { connects: { perUser: 2, perIp: 100 } } })
  const open = async () => {
    const peer = await pendingAt(t, server.host)
    peer.send(authFrame(tokenOf()))
    return peer
  }
  for (let n = 0; n < 5; n++) (await pendingAt(t, server.host)).socket.terminate()
  for (let n = 0; n < 2; n++) t.match(await (await open()).heard.next(), 'auth_success')
  t.same(await (await open()).closed, rateLimited(30_000))
  t.match(server.events.at(-1), { type: 'refused', code: TOO_OFTEN, enforced: true, userId: 'alice', route: '/first' })
  t.equal(await server.opens(), 429, 'it is one count for every way in')
  clock.move(30_000)
  t.match(await (await open()).heard.next(), 'auth_success')
})

t.test('perUser: of one tenant, by whatever credential, and nobody else', async t => {
  stopClock(t)
  const server = await gated(t, { limits: { connects: { perUser: 3 } } })
  const cookie = await server.login({ userId: 'alice' })
  const ticket = await (await fetch(`http://${server.host}/ticket`, { method: 'POST', headers: bearer() })).text()
  t.equal((await upgrade(t, server.host, { path: `/live?ticket=${ticket}` })).status, 101)
  t.equal((await upgrade(t, server.host, { headers: { cookie, origin: `http://${server.host}` } })).status, 101)
  t.equal(await server.opens(), 101)
  t.equal(await server.opens(), 429)
  t.equal((await upgrade(t, server.host, { headers: { cookie, origin: `http://${server.host}` } })).status, 429)
  for (const other of [tokenOf('bob'), tokenOf('alice', { companyId: 'acme' }), tokenOf('alice', { companyId: 'other' }), tokenOf('[null,"alice"]')]) t.equal(await server.opens(other), 101)
  t.equal(await server.opens(tokenOf('alice', { iss: 'another' })), 429, 'an issuer is no tenant')
})

t.test('case 81: perIp counts an IPv6 /64, through trustProxy only', async t => {
  const trusting = await gated(t, { limits: { connects: { perIp: 1 } } }, { fastify: { trustProxy: true } })
  for (const [ip, expected] of [
    ['192.0.2.1', 101], ['::ffff:192.0.2.1', 429], ['192.0.2.1:4711', 429], ['192.0.2.2', 101],
    ['2001:db8:1:2::1', 101], ['2001:0DB8:1:2:ffff::9', 429], ['2001:db8:1:3::1', 101], ['unknown', 101], ['unknown', 429], ['192.0.2.9, 192.0.2.1', 101]
  ] as const) t.equal(statusOf(await rawUpgrade(trusting.port, [`Authorization: Bearer ${tokenOf()}`, `X-Forwarded-For: ${ip}`])), expected, ip)
  const other = await gated(t, { limits: { connects: { perIp: 1 } } })
  t.equal(await other.opens(tokenOf(), '192.0.2.1'), 101)
  for (const ip of ['192.0.2.2', '2001:db8::1', '', 'unknown']) t.equal(await other.opens(tokenOf(`from ${ip}`), ip), 429, `not trusted: ${ip}`)
})

t.test('case 81: where there is no address nothing counts by it, and users do all the same', async t => {
  const { app } = await gated(t, { limits: { connects: { perIp: 1, perUser: 3 } } })
  for (let n = 0; n < 3; n++) (await app.injectWS('/live', { headers: bearer() })).terminate()
  await t.rejects(app.injectWS('/live', { headers: bearer() }), /429/)
})

t.test('both: each is held to, and what one refuses takes nothing of the other', async t => {
  stopClock(t)
  const { opens } = await gated(t, { limits: { connects: { perUser: 2, perIp: 3 } } }, { fastify: { trustProxy: true } })
  for (let n = 0; n < 2; n++) t.equal(await opens(tokenOf('alice'), '192.0.2.1'), 101)
  for (let n = 0; n < 5; n++) t.equal(await opens(tokenOf('alice'), '192.0.2.2'), 429, 'the user is at the limit')
  for (const user of ['b', 'c', 'd']) t.equal(await opens(tokenOf(user), '192.0.2.2'), 101)
  for (let n = 0; n < 5; n++) t.equal(await opens(tokenOf('e'), '192.0.2.2'), 429, 'the address is')
  for (let n = 0; n < 2; n++) t.equal(await opens(tokenOf('e'), '192.0.2.3'), 101)
})

t.test('HTTP requests, open routes, and who is refused for another reason do not count', async t => {
  stopClock(t)
  const server = await gated(t, { limits: { connects: { perUser: 2, perIp: 2 } } })
  for (let n = 0; n < 3; n++) {
    t.equal((await ask(server.host, '/me', { headers: bearer() })).status, 200)
    t.equal((await ask(server.host, '/both', { headers: bearer() })).status, 200, 'of a route that sockets may open as well')
    t.equal((await upgrade(t, server.host, { path: '/open' })).status, 101)
    t.equal(await server.opens(signHs256({ sub: 'alice', exp: inSeconds(100) }, {}, 'a secret of somebody else, as long as it has to be')), 401)
    t.equal(await server.opens(tokenOf(), undefined, '/forbidden'), 403)
    t.equal((await upgrade(t, server.host, { headers: { ...bearer(), origin: 'https://evil.example' } })).status, 403)
  }
  t.equal(await server.opens(tokenOf(), undefined, '/twice'), 101, 'one guard counts it, and another does not')
  t.equal(await server.opens(), 101)
  t.equal(await server.opens(), 429)
  t.equal((await ask(server.host, '/me', { headers: bearer() })).status, 200, 'HTTP goes on')
  t.equal((await upgrade(t, server.host, { path: '/maybe' })).status, 429, 'nobody counts by address')
  t.equal(await server.opens(tokenOf(), undefined, '/maybe'), 429, 'somebody on an optional route counts')
})

t.test('who is refused for connecting too often takes no place of limits.connections, and evicts nobody', async t => {
  stopClock(t)
  let acquired = 0
  const cluster = driverOf(inner => ({ acquire: (...given) => { acquired++; return inner.acquire(...given) } }))
  const server = await gated(t, { limits: { connects: { perUser: 3 }, connections: { perUser: 1, policy: 'evict-oldest' } }, cluster })
  const peers: Peer[] = []
  for (let n = 0; n < 3; n++) peers.push(await connected(t, server.host, { token: tokenOf() }))
  for (const peer of peers.slice(0, 2)) t.equal((await peer.closed).code, 4009, 'evicted')
  for (let n = 0; n < 3; n++) t.equal(await server.opens(), 429)
  t.equal(acquired, 3)
  const last = peers.at(-1)
  last?.send('still here')
  await until(() => last?.heard.all.includes('still here') === true)
  t.equal(server.events.filter(({ type }) => type === 'limited').length, 2)
  last?.socket.close()
  await last?.closed
  t.same([...cluster.members[0]?.leases() ?? []], [])
})

t.test('a client that hangs up, or a handshake that is over, before the cluster has answered leaves no place behind', async t => {
  const asked = new Inbox<Deferred<number>>()
  const cluster = driverOf(() => ({
    spend () {
      const answer = deferred<number>()
      asked.push(answer)
      return answer.promise
    }
  }))
  const server = await gated(t, { limits: { connects: { perUser: 9 }, connections: { perUser: 9 } }, cluster, handshakeTimeout: 300 })
  const leases = () => [...cluster.members[0]?.leases() ?? []].length
  const gone = connect(t, server.host, { token: tokenOf() })
  gone.opened.catch(() => {})
  await asked.reach(1)
  gone.socket.terminate()
  await gone.closed
  t.equal((await upgrade(t, server.host, { headers: bearer() })).status, 503, 'it took too long')
  for (const answer of asked.all) answer.resolve(0)
  await until(() => leases() === 0)
  for (let n = 0; n < 10; n++) await turn()
  t.equal(leases(), 0)
  t.equal(server.app.hybridAuth.count(), 0)
})

t.test('two registrations of one memory cluster count together', async t => {
  const cluster = memoryCluster()
  stopClock(t)
  const [a, b] = [await gated(t, { limits: { connects: { perUser: 3, perIp: 5 } }, cluster }), await gated(t, { limits: { connects: { perUser: 3, perIp: 5 } }, cluster })]
  t.same([await a.opens(), await b.opens(), await a.opens(), await b.opens(), await a.opens()], [101, 101, 101, 429, 429])
  t.same([await b.opens(tokenOf('bob')), await a.opens(tokenOf('eve')), await b.opens(tokenOf('eve'))], [101, 101, 429], 'by address as well')
})

const SIX = { ...QUIET, failures: false, limits: { connects: { perUser: 6 } } } as const satisfies Partial<HybridAuthOptions>
const statuses = (t: Test, hosts: readonly string[], count: number, token = tokenOf()) => Promise.all(Array.from({ length: count }, async (_, n) =>
  (await upgrade(t, hosts[n % hosts.length] ?? '', { headers: bearer(token) })).status))
const admitted = (all: readonly number[]) => all.filter(status => status === 101).length

t.test('two nodes of one Redis: of 40 upgrades at once as many pass as may, and no more', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const nodes = [await redisNode(t, url, { auth: SIX }), await redisNode(t, url, { auth: SIX })]
  const hosts = nodes.map(({ host }) => host)
  const all = await statuses(t, hosts, 40)
  t.equal(admitted(all), 6)
  t.equal(all.filter(status => status === 429).length, 34)
  const { headers } = await upgrade(t, hosts[0] ?? '', { headers: bearer() })
  t.ok(Number(headers['retry-after']) >= 1 && Number(headers['retry-after']) <= 10, `Retry-After: ${headers['retry-after'] ?? ''}`)
  t.equal(admitted(await statuses(t, hosts, 20, tokenOf('bob'))), 6, 'of another user')
})

t.test('Redis away: each node counts alone; hanging: who connects waits no longer than its timeout', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const nodes = [await redisNode(t, redis.url, { auth: SIX }), await redisNode(t, redis.url, { auth: SIX })]
  redis.pause()
  const started = performance.now()
  t.equal(admitted(await statuses(t, [nodes[0]?.host ?? ''], 10)), 6)
  t.ok(performance.now() - started < 20 * SHORT.timeout)
  await redis.kill()
  await eventually('both know that it is away', () => nodes.every(({ status }) => !status().connected))
  t.equal(admitted(await statuses(t, [nodes[1]?.host ?? ''], 10)), 6)
  t.equal(admitted(await statuses(t, [nodes[0]?.host ?? ''], 10)), 0, 'its six had been taken')
})

t.test('limits.pendingPerIp: below and at the limit, and one more is refused by 429, or by 4009 to who speaks the protocol', async t => {
  const server = await gated(t, { limits: { pendingPerIp: 2 } }, { fastify: { trustProxy: true } })
  const from = (ip: string): PeerOptions => ({ headers: { 'x-forwarded-for': ip } })
  const refused = (ip: string, protocols: string[] = []) => upgrade(t, server.host, { path: '/first', headers: { 'x-forwarded-for': ip }, protocols })
  await pendingAt(t, server.host, from('192.0.2.1'))
  await pendingAt(t, server.host, from('192.0.2.1'))
  const answer = await refused('192.0.2.1')
  t.match(answer, { status: 429, headers: { 'retry-after': '5' } })
  t.equal(codeOf(answer.body), TOO_MANY)
  t.same(ended(await refused('::ffff:192.0.2.1', [NAME])), { code: 4009, reason: JSON.stringify({ code: 'too_many_connections', action: 'retry', retryAfterMs: 5000 }) })
  t.same(server.refused(), [{ code: TOO_MANY, enforced: true }, { code: TOO_MANY, enforced: true }])
  t.same([await server.counted('pending', true), await server.counted('connections', true)], [2, 0])
  t.equal(await server.opens(tokenOf(), '192.0.2.1', '/first'), 101, 'who brings the credential at once is not waiting')
  t.equal(await server.opens(tokenOf(), '192.0.2.1'), 101)
  await pendingAt(t, server.host, from('192.0.2.2'))
  for (const ip of ['2001:db8:1:2::1', '2001:db8:1:2:9::']) await pendingAt(t, server.host, from(ip))
  t.equal((await refused('2001:db8:1:2:8::')).status, 429, 'the same /64')
  await pendingAt(t, server.host, from('2001:db8:1:3::1'))
})

t.test('limits.pendingPerIp: a place is free again when its socket authenticates, fails, is late or leaves', async t => {
  const server = await gated(t, { limits: { pendingPerIp: 1 } }, {
    routes (app) { app.get('/hurry', { websocket: true, auth: { firstMessage: { timeout: 50 } } }, () => {}) }
  })
  const isFull = async () => (await upgrade(t, server.host, { path: '/first' })).status === 429
  const ways: Array<[string, (peer: Peer) => unknown, string?]> = [
    ['it authenticates', async peer => { peer.send(authFrame(tokenOf())); await peer.heard.next() }],
    ['its credential is refused', async peer => { peer.send(authFrame('no token')); t.equal((await peer.closed).code, 4001) }],
    ['it breaks the protocol', async peer => { peer.send('{"type":"auth"}'); t.equal((await peer.closed).code, 4013) }],
    ['it closes', async peer => { peer.socket.close(); await peer.closed }],
    ['it is cut off', peer => { peer.socket.terminate() }],
    ['it is late', async peer => { t.equal((await peer.closed).code, 4010) }, '/hurry']
  ]
  for (const [what, leave, path] of ways) {
    const peer = await opensSoon(t, server.host, path)
    if (path === undefined) t.ok(await isFull(), 'at the limit')
    await leave(peer)
    const next = await opensSoon(t, server.host)
    t.ok(await isFull(), what)
    next.socket.terminate()
  }
})

/** The server may not have seen yet that the last one has gone. */
async function opensSoon (t: Test, host: string, path = '/first'): Promise<Peer> {
  for (let n = 0; n < 500; n++) {
    const peer = connect(t, host, { path, token: null })
    if (await peer.opened.then(() => true, () => false)) return peer
    await turn()
  }
  throw new Error('no place ever became free')
}

t.test('case 65: limits.pending still holds beside limits.pendingPerIp, and is answered as before', async t => {
  const server = await gated(t, { limits: { pending: 3, pendingPerIp: 2 } }, { fastify: { trustProxy: true } })
  for (const ip of ['192.0.2.1', '192.0.2.1', '192.0.2.2']) await pendingAt(t, server.host, { headers: { 'x-forwarded-for': ip } })
  for (const ip of ['192.0.2.1', '192.0.2.2', '192.0.2.3']) {
    const answer = await upgrade(t, server.host, { path: '/first', headers: { 'x-forwarded-for': ip } })
    t.same([answer.status, codeOf(answer.body)], [503, 'FST_HYBRID_AUTH_UNAVAILABLE'], ip)
  }
  t.equal((await upgrade(t, server.host, { path: '/first', headers: { 'x-forwarded-for': '192.0.2.3' }, protocols: [NAME] })).code, 4012)
  t.equal(await server.counted('pending', true), 4)
  t.equal(await server.opens(), 101)
})

t.test('case 65: sockets that pass the guard together, and are slow behind it, are counted where they begin to wait', async t => {
  const gate = deferred<boolean>()
  let arrived = 0
  const server = await gated(t, { limits: { pendingPerIp: 3 } }, {
    routes (app) {
      app.get('/late', {
        websocket: true,
        auth: { firstMessage: true },
        async preHandler () {
          arrived++
          await gate.promise
        }
      }, () => {})
    }
  })
  const peers = Array.from({ length: 10 }, () => connect(t, server.host, { path: '/late', token: null }))
  await until(() => arrived === 10)
  gate.resolve(true)
  await Promise.all(peers.map(({ opened }) => opened))
  const codes: number[] = []
  for (const { closed } of peers) closed.then(({ code }) => { codes.push(code) }).catch(() => {})
  await until(() => codes.length === 7)
  t.same(new Set(codes), new Set([4009]))
  for (let n = 0; n < 10; n++) await turn()
  t.equal(codes.length, 7, 'and three wait')
  t.equal(await server.counted('pending', true), 7)
})

t.test('case 81: sockets without an address are not counted by it, and take no place of those that have one', async t => {
  const { app, host } = await gated(t, { limits: { pendingPerIp: 1 } })
  const sockets = [await app.injectWS('/first'), await app.injectWS('/first')]
  await pendingAt(t, host)
  t.equal((await upgrade(t, host, { path: '/first' })).status, 429)
  for (const socket of sockets) socket.terminate()
})

t.test('requireTls: a plain upgrade is refused by 403, or by 4007 to who speaks the protocol, before anything of it is looked at', async t => {
  let keys = 0
  const server = await gated(t, { requireTls: true, jwt: { ...JWT, key: () => { keys++; return SECRET } } })
  for (const path of ['/live', '/first', '/maybe', '/forbidden']) {
    for (const headers of [bearer(), {}]) {
      const answer = await upgrade(t, server.host, { path, headers })
      t.same([answer.status, codeOf(answer.body)], [403, TLS_REQUIRED], path)
      t.same(ended(await upgrade(t, server.host, { path, headers, protocols: [NAME] })), { code: 4007, reason: closeReason('Forbidden') }, path)
    }
  }
  t.same(new Set(server.refused().map(({ code, enforced }) => `${code} ${enforced}`)), new Set([`${TLS_REQUIRED} true`]))
  t.equal(await server.counted('tls', true), 16)
  t.equal(keys, 0)
  t.equal(server.handled(), 0)
  t.equal((await ask(server.host, '/me', { headers: bearer() })).status, 200, 'HTTP requests are not concerned')
  t.equal((await upgrade(t, server.host, { path: '/open' })).status, 101, 'and neither are routes that are open on purpose')
})

t.test('requireTls: X-Forwarded-Proto counts where the proxy is trusted, the last of it, and nowhere else', async t => {
  const through = (host: string, proto: string) => upgrade(t, host, { headers: { ...bearer(), 'x-forwarded-proto': proto } }).then(({ status }) => status)
  const plain = await gated(t, { requireTls: true })
  const trusting = await gated(t, { requireTls: true }, { fastify: { trustProxy: true } })
  const elsewhere = await gated(t, { requireTls: true }, { fastify: { trustProxy: '10.0.0.0/8' } })
  for (const proto of ['https', 'wss', 'HTTPS', 'http']) for (const { host } of [plain, elsewhere]) t.equal(await through(host, proto), 403, proto)
  for (const [proto, expected] of [['https', 101], ['http, https', 101], ['https, http', 403], ['http', 403], ['ws', 403], ['xhttps', 403], ['', 403]] as const) {
    t.equal(await through(trusting.host, proto), expected, proto)
  }
  for (const proto of ['wss', 'HTTPS']) t.equal(await through(trusting.host, proto), 101, `${proto}, as some proxies write it for an upgrade`)
})

t.test('behind a proxy that writes wss for an upgrade a page may open a socket to its own server, and a foreign one may not', async t => {
  const { host } = await gated(t, { requireTls: true }, { fastify: { trustProxy: true } })
  const from = (origin: string, proto: string) => upgrade(t, host, { headers: { ...bearer(), origin, 'x-forwarded-proto': proto } }).then(({ status }) => status)
  for (const proto of ['https', 'wss', 'HTTPS']) {
    t.equal(await from(`https://${host}`, proto), 101, proto)
    t.equal(await from(`http://${host}`, proto), 403, proto)
    t.equal(await from('https://evil.example', proto), 403, proto)
  }
})

t.test('requireTls: over TLS sockets open, those that owe their first message too', async t => {
  // Without a certificate: who knows the key is the other end (RFC 4279).
  const psk = { ciphers: 'PSK-AES128-GCM-SHA256', maxVersion: 'TLSv1.2' } as const
  const key = Buffer.alloc(32, 'k')
  const app = Fastify({ https: { ...psk, pskCallback: () => key } })
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT, requireTls: true })
  app.get('/live', { websocket: true }, socket => { socket.send('in') })
  app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => { socket.send('in') })
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  for (const path of ['/live', '/first']) {
    const options = { ...psk, headers: path === '/live' ? bearer() : {}, pskCallback: () => ({ psk: key, identity: 'test' }), checkServerIdentity: () => false }
    const socket = new WebSocket(`${address.replace('https', 'wss')}${path}`, options)
    t.teardown(() => { socket.terminate() })
    const heard = new Inbox<string>()
    socket.on('open', () => { if (path === '/first') socket.send(authFrame(tokenOf())) })
    socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
    await until(() => heard.all.includes('in'), `in by ${path}`)
  }
})

t.test('report: origin, tls, connects and connections refuse nobody, and are told and counted as such', async t => {
  const evil = { origin: 'https://evil.example' }
  const cases: Array<[name: string, auth: Partial<HybridAuthOptions>, code: string, headers: object, times: number]> = [
    ['origin', {}, 'FST_HYBRID_AUTH_ORIGIN_REFUSED', evil, 3],
    ['tls', { requireTls: true }, TLS_REQUIRED, {}, 3],
    ['connects', { limits: { connects: { perUser: 1, perIp: 2 } } }, TOO_OFTEN, {}, 2],
    ['connections', { limits: { connections: { perUser: 1 } } }, TOO_MANY, {}, 2],
    ['connections', { limits: { connections: { perUser: 1, perIp: 1, policy: 'evict-oldest' } } }, TOO_MANY, {}, 2]
  ]
  for (const [name, auth, code, more, times] of cases) {
    await t.test(`${name} ${JSON.stringify(auth)}`, async t => {
      stopClock(t)
      const server = await gated(t, { ...auth, report: [name as 'origin'] })
      const peers: Peer[] = []
      for (let n = 0; n < 3; n++) {
        const peer = await connected(t, server.host, { token: tokenOf(), headers: { ...more } })
        await peer.heard.next()
        peers.push(peer)
      }
      t.equal(server.app.hybridAuth.count(), 3, 'all are open')
      t.same(server.refused(), Array.from({ length: times }, () => ({ code, enforced: false })))
      const userId = name.startsWith('connect') ? 'alice' : null
      t.same(new Set(server.events.flatMap(event => event.type === 'refused' ? [event.userId] : [])), new Set([userId]), 'with the user where it is known by then')
      t.same([await server.counted(name, false), await server.counted(name, true)], [times, 0])
      t.equal(server.events.filter(({ type }) => type === 'authenticated').length, 3)
      t.equal(server.events.filter(({ type }) => type === 'limited' || type === 'closed').length, 0)
      for (const { socket } of peers) socket.close()
      await Promise.all(peers.map(({ closed }) => closed))
      await until(() => server.app.hybridAuth.count() === 0)
      t.equal(await server.opens(tokenOf('bob')), 101)

      const strict = await gated(t, { ...auth, report: name === 'origin' ? ['tls', 'rate'] : ['origin', 'rate'] })
      const first = await Promise.all([1, 2, 3].map(() => connect(t, strict.host, { token: tokenOf(), headers: { ...more } }).opened.then(() => true, () => false)))
      t.ok(first.includes(false) || strict.events.some(({ type }) => type === 'limited'), 'and what is not named is enforced')
      t.notOk(strict.refused().some(({ enforced }) => !enforced))
    })
  }
})

t.test('report: origin also lets a foreign page use a session, over HTTP and by ticket or first message, once told for each', async t => {
  const server = await gated(t, { report: ['origin'] })
  const cookie = await server.login({ userId: 'alice' })
  const foreign = { cookie, origin: 'https://evil.example' }
  t.equal((await upgrade(t, server.host, { headers: foreign })).status, 101)
  t.equal((await ask(server.host, '/me', { method: 'POST', headers: foreign })).status, 200)
  t.equal((await ask(server.host, '/me', { method: 'POST', headers: { cookie } })).status, 200)
  const peer = await pendingAt(t, server.host, { headers: { origin: 'https://evil.example' } })
  peer.send(authFrame(tokenOf()))
  await peer.heard.next()
  t.same(server.refused(), Array.from({ length: 4 }, () => ({ code: 'FST_HYBRID_AUTH_ORIGIN_REFUSED', enforced: false })))
})

t.test('report: tls is told once for each upgrade, however many guards it meets, and not for HTTP requests', async t => {
  const server = await gated(t, { requireTls: true, report: ['tls'] })
  t.equal(await server.opens(tokenOf(), undefined, '/twice'), 101)
  t.equal((await ask(server.host, '/me', { headers: bearer() })).status, 200)
  t.same(server.refused(), [{ code: TLS_REQUIRED, enforced: false }])
})

t.test('report: failures counts and alerts, and answers each guess as the first', async t => {
  for (const block of ['credential', 'address'] as const) {
    const server = await gated(t, { failures: { max: 2, block }, report: ['failures'] })
    for (let n = 0; n < 5; n++) t.equal(await server.opens(`guess-${n}`), 401)
    t.equal(await server.opens(), 101)
    t.equal(server.events.filter(({ type }) => type === 'brute_force_suspected').length, 1)
    const reported = server.refused().filter(({ enforced }) => !enforced)
    t.ok(reported.length >= 3)
    t.same(new Set(reported.map(({ code }) => code)), new Set(['FST_HYBRID_AUTH_TOO_MANY_FAILURES']))
    t.same([await server.counted('failures', false), await server.counted('failures', true)], [reported.length, 0])
  }
})

t.test('report: rate delivers everything, tells once, counts each, and closes nobody', async t => {
  for (const perUser of [undefined, { capacity: 2, refillPerSecond: 0.001, shared: true }]) {
    const server = await gated(t, { report: ['rate'] }, {
      routes (app) {
        app.get('/rated', { websocket: true, auth: { rate: perUser === undefined ? { capacity: 2, refillPerSecond: 0.001 } : { perUser } } }, socket => {
          socket.on('message', (data: Buffer) => { socket.send(data) })
        })
      }
    })
    const peer = await connected(t, server.host, { path: '/rated', token: tokenOf(), protocols: [NAME] })
    const texts = Array.from({ length: 100 }, (_, n) => String(n))
    peer.send(...texts)
    t.same(await peer.heard.reach(100), texts, 'and no frame of ours')
    t.match(server.events.filter(({ type }) => type !== 'authenticated'), [{ type: 'limited', code: TOO_OFTEN, enforced: false, userId: 'alice' }])
    t.same([await server.counted('rate', false), await server.counted('rate', true)], [98, 0])
  }
})

t.test('what is only reported is named in a warning at the start', async t => {
  for (const [report, expected] of [[['origin', 'connects'], /limits that refuse nobody.*origin, connects/], [[], null], [undefined, null]] as const) {
    const { stream, text } = keepLines()
    await serve(t, async app => { await app.register(hybridAuth, { jwt: JWT, ...report !== undefined && { report: [...report] } }) }, logTo(stream))
    const line = text().split('\n').find(one => one.includes('refuse nobody'))
    if (expected === null) t.equal(line, undefined)
    else t.match(JSON.parse(line ?? '{}'), { level: 40, msg: expected })
  }
})

t.test('bad limits.connects, limits.pendingPerIp, requireTls and report throw at registration and name the option', async t => {
  const counts = [0, -1, 1.5, NaN, Infinity, 1e7, '1', null, true]
  const bad: Array<[unknown, string]> = [
    ...(['perUser', 'perIp'] as const).flatMap(name => counts.map((value): [unknown, string] => [{ limits: { connects: { [name]: value } } }, `limits.connects.${name}`])),
    ...[0, -1, NaN, 1e7, '1', null, true].map((value): [unknown, string] => [{ limits: { pendingPerIp: value } }, 'limits.pendingPerIp']),
    ...[null, 5, true].map((value): [unknown, string] => [{ limits: { connects: value } }, 'limits.connects']),
    [{ limits: { connects: { perTenant: 1 } } }, 'limits.connects.perTenant'],
    ...['yes', 1, null].map((value): [unknown, string] => [{ requireTls: value }, 'requireTls']),
    ...['origin', null, true, {}].map((value): [unknown, string] => [{ report: value }, 'report']),
    [{ report: ['orgin'] }, 'report.0'], [{ report: ['tls', 'pending'] }, 'report.1'], [{ report: ['toString'] }, 'report.0'], [{ report: [null] }, 'report.0']
  ]
  const registered = (given: unknown) => serve(t, async app => { await app.register(hybridAuth, { jwt: JWT, ...given as Partial<HybridAuthOptions> }) })
  for (const [given, path] of bad) {
    await t.rejects(registered(given), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`\\b${path.replaceAll('.', '\\.')}(?![\\w.])`) }, `${path}: ${JSON.stringify(given)}`)
  }
  const limits: Limits[] = [{ connects: {} }, { connects: { perUser: 1, perIp: 1e6 } }, { pendingPerIp: 1 }, { pendingPerIp: 1e6 }]
  for (const good of limits) await registered({ limits: good })
  await registered({ requireTls: false, report: ['origin', 'tls', 'failures', 'connections', 'connects', 'rate'] })
})
