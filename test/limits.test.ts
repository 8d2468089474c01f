/** How many connections there may be: every limit at its edge, every way out gives its place back, and every race for one. */
import type { FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import websocket from '@fastify/websocket'
import type { Cluster, ClusterDriver, ClusterMember, Lease } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import hybridAuth, { type AuditEvent, type HybridAuthOptions, type RouteAuth } from '../lib/index.js'
import { addressKey } from '../lib/policy/address.js'
import { build, goodToken, inSeconds, JWT, keepLines, statusOf, upgrade } from './helpers.js'
import { dial, lookNow, setClock } from './live.js'
import { ask, codeOf, deferred, headerOf, logTo, never, rawAnswer, rawUpgrade, serve, type Deferred } from './stores.js'
import { authFrame, connect, connected, Inbox, rawConnect, turn, until, type Peer, type PeerOptions, type ServerSocket } from './wire.js'

const NAME = 'hybrid-auth.v1'
const TOO_MANY = 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS'
const FULL = { code: 4009, reason: '{"code":"too_many_connections","action":"retry","retryAfterMs":5000}' }
/** It must not come back at once, or the two would evict each other for ever. */
const EVICTED = { code: 4009, reason: '{"code":"evicted","action":"stop","retryAfterMs":0}' }
type Limits = NonNullable<NonNullable<HybridAuthOptions['limits']>['connections']>

const tokenOf = (sub: string, tenant?: string, more: Record<string, unknown> = {}) => goodToken({ sub, companyId: tenant, ...more })
const bearer = (token = goodToken()) => ({ authorization: `Bearer ${token}` })

/** A memory cluster that tells which places are taken, and asks the test before and after each. */
function watchedCluster (inner: ClusterDriver = memoryCluster()) {
  const taken = new Map<string, Lease>()
  const members: ClusterMember[] = []
  const asked = new Inbox<Lease>()
  const steps: { before: (() => unknown) | null, after: (() => unknown) | null } = { before: null, after: null }
  const driver: ClusterDriver = {
    join (member) {
      members.push(member)
      const cluster = inner.join(member)
      const take: Cluster['acquire'] = (lease, limits, evicts) => {
        const found = cluster.acquire(lease, limits, evicts)
        if (found !== null) taken.set(lease.id, lease)
        return found
      }
      return {
        ...cluster,
        acquire (lease, limits, evicts) {
          asked.push(lease)
          const { before, after } = steps
          const first = before?.()
          if (!(first instanceof Promise) && after === null) return take(lease, limits, evicts)
          return (async () => {
            await first
            const found = await take(lease, limits, evicts)
            await after?.()
            return found
          })()
        },
        release (lease) {
          taken.delete(lease.id)
          cluster.release(lease)
        }
      }
    }
  }
  return {
    driver,
    asked,
    members,
    steps,
    taken,
    /** How many places the nodes know, of all that were ever asked for; whoever has one is evicted. */
    async known () {
      const outcomes = await Promise.all(members.map(member => evictFrom(member, ...asked.all.map(({ id }) => id))))
      return outcomes.reduce((sum, { matched }) => sum + matched, 0)
    },
    idle: () => until(() => taken.size === 0, 'no place taken')
  }
}

let ordered = 0

/** An eviction as another node orders it. */
async function evictFrom (member: ClusterMember | undefined, ...leases: string[]) {
  if (member === undefined) throw new Error('nobody has joined')
  return member.receive({ type: 'evict', leases, id: `test-${++ordered}`, from: 'another', at: Date.now() })
}

interface LimitedOptions {
  limits?: Limits
  auth?: Partial<HybridAuthOptions>
  fastify?: FastifyServerOptions
  cluster?: ReturnType<typeof watchedCluster>
  rule?: RouteAuth
}

/** A server with limits, whose `/gate` waits for the test behind the guard. */
async function limited (t: Test, { limits = { perUser: 2 }, auth = {}, fastify = {}, cluster = watchedCluster(), rule = true }: LimitedOptions = {}) {
  const audit: AuditEvent[] = []
  const gates = new Inbox<Deferred<boolean>>()
  const sockets = new Inbox<ServerSocket>()
  const nets: Array<{ readonly destroyed: boolean, destroy: () => unknown }> = []
  const echo = (socket: ServerSocket) => {
    sockets.push(socket)
    socket.on('message', (data: Buffer, isBinary) => { socket.send(data, { binary: isBinary }) })
  }
  const served = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, limits: { connections: limits }, cluster: cluster.driver, audit: event => { audit.push(event) }, ...auth })
    app.get('/live', { websocket: true, auth: rule }, echo)
    app.get('/first', { websocket: true, auth: { firstMessage: true } }, echo)
    app.get('/maybe', { websocket: true, auth: { optional: true } }, echo)
    app.get('/open', { websocket: true, auth: false }, echo)
    app.get('/throws', { websocket: true }, () => { throw new Error('the handler') })
    app.get('/rejects', { websocket: true }, async () => { throw new Error('the handler') })
    app.get('/hangsup', { websocket: true }, socket => { socket.close(1000) })
    app.get('/cuts', { websocket: true }, socket => { socket.terminate() })
    app.get('/forbidden', { websocket: true, preValidation: async (_request, reply) => reply.code(403).send('no') }, echo)
    app.get('/gate', {
      websocket: true,
      async preHandler () {
        const gate = deferred<boolean>()
        gates.push(gate)
        await gate.promise
      }
    }, echo)
    app.get('/me', { auth: true }, async request => request.auth)
    app.server.on('connection', net => { nets.push(net) })
  }, fastify)
  return { ...served, audit, cluster, gates, nets, sockets, handled: () => sockets.all.length, gone: () => until(() => nets.every(({ destroyed }) => destroyed) && served.app.websocketServer.clients.size === 0, 'every client gone') }
}

type Limited = Awaited<ReturnType<typeof limited>>

async function hangUp (peers: readonly Peer[]): Promise<void> {
  for (const { socket } of peers) socket.close()
  await Promise.all(peers.map(({ closed }) => closed))
}

/** So many sockets and not one more, which leaves everything as it was. */
async function hasPlaces (t: Test, { host, cluster }: Pick<Limited, 'host' | 'cluster'>, count: number, options: PeerOptions = {}, name = ''): Promise<void> {
  await cluster.idle()
  t.equal(await cluster.known(), 0, `${name}: no node has a place left`)
  const peers: Peer[] = []
  for (let n = 0; n < count; n++) peers.push(await connected(t, host, options))
  const refused = await upgrade(t, host, { headers: { ...options.headers, ...bearer(options.token ?? goodToken()) } })
  t.equal(refused.status, 429, `${name}: ${count} places, and not one more`)
  await hangUp(peers)
  await cluster.idle()
}

t.test('limits.connections.perUser: below and at the limit sockets open, above it the upgrade is answered 429', async t => {
  const server = await limited(t)
  const { host, handled } = server
  const peers = [await connected(t, host), await connected(t, host)]
  const refused = await upgrade(t, host, { headers: bearer() })
  t.equal(refused.status, 429)
  t.equal(refused.headers['retry-after'], '5')
  t.equal(refused.headers['cache-control'], 'no-store')
  t.equal(refused.headers['www-authenticate'], undefined, 'the credential is good')
  t.equal(codeOf(refused.body), TOO_MANY)
  t.equal(handled(), 2)
  t.match(server.audit.at(-1), { type: 'refused', code: TOO_MANY, websocket: true })
  for (const { send, heard } of peers) {
    send('still here')
    t.equal(await heard.next(), 'still here')
  }
  await hangUp(peers)
  await hasPlaces(t, server, 2)
})

t.test('limits.connections.perIp and perTenant are held to as perUser is, each by itself', async t => {
  for (const limits of [{ perIp: 2 }, { perTenant: 2 }] satisfies Limits[]) {
    const { host, cluster } = await limited(t, { limits })
    const peers = [await connected(t, host, { token: tokenOf('a', 'acme') }), await connected(t, host, { token: tokenOf('b', 'acme') })]
    const refused = await upgrade(t, host, { headers: bearer(tokenOf('c', 'acme')) })
    t.strictSame([refused.status, codeOf(refused.body)], [429, TOO_MANY], JSON.stringify(limits))
    await hangUp(peers)
    await cluster.idle()
    await hangUp([await connected(t, host, { token: tokenOf('c', 'acme') })])
  }
})

t.test('a limit that nothing is told of does not count: users without tenant, an empty limits.connections', async t => {
  for (const limits of [{ perTenant: 1 }, {}] satisfies Limits[]) {
    const { host, cluster } = await limited(t, { limits })
    const peers = [await connected(t, host), await connected(t, host), await connected(t, host)]
    t.equal(cluster.taken.size, 0)
    await hangUp(peers)
  }
})

t.test('users of different tenants with the same id count apart, and a name cannot be put together from two', async t => {
  const { host } = await limited(t, { limits: { perUser: 1 } })
  const tokens = [
    tokenOf('alice'), tokenOf('alice', 'acme'), tokenOf('alice', 'other'), tokenOf('bob', 'acme'), tokenOf('["acme","alice"]'), tokenOf('acme","alice')
  ]
  for (const token of tokens) await connected(t, host, { token })
  for (const token of tokens) t.equal((await upgrade(t, host, { headers: bearer(token) })).status, 429)
})

t.test('a session counts with the tokens of the same user', async t => {
  const { host, login, app } = await build(t, { auth: { limits: { connections: { perUser: 1 } } } })
  const cookie = await login({ userId: 'alice' })
  await dial(t, host, { path: '/live', cookie })
  t.equal((await upgrade(t, host, { headers: bearer() })).status, 429)
  t.equal((await upgrade(t, host, { headers: { cookie, origin: `http://${host}` } })).status, 429)
  await app.hybridAuth.disconnect({ userId: 'alice' })
  const isFree = async () => (await upgrade(t, host, { headers: bearer() })).status === 101
  t.ok(await isFree())
})

t.test('who speaks hybrid-auth.v1 is told by close 4009 when to come back', async t => {
  const { host, handled } = await limited(t, { limits: { perUser: 1 } })
  await connected(t, host)
  const { status, code, reason } = await upgrade(t, host, { protocols: [NAME], headers: bearer() })
  t.strictSame({ status, code, reason }, { status: 101, ...FULL })
  t.equal(handled(), 1)
})

t.test('with refuse: close every client is told by close 4009, with refuse: http none is', async t => {
  const close = await limited(t, { limits: { perUser: 1 }, auth: { refuse: 'close' } })
  await connected(t, close.host)
  const { code, reason } = await upgrade(t, close.host, { headers: bearer() })
  t.strictSame({ code, reason }, FULL)
  const http = await limited(t, { limits: { perUser: 1 }, auth: { refuse: 'http' } })
  await connected(t, http.host)
  t.equal((await upgrade(t, http.host, { protocols: [NAME], headers: bearer() })).status, 429)
})

t.test('a socket that brings its credential as the first message is closed with 4009 above the limit', async t => {
  const { host, handled, audit, cluster, app } = await limited(t, { limits: { perUser: 1 } })
  const waiting = await connected(t, host, { path: '/first', token: null })
  t.equal(cluster.taken.size, 0, 'who has not said who it is takes no place')
  const first = await connected(t, host, { path: '/first', token: null })
  first.send(authFrame(goodToken()))
  t.match(JSON.parse(await first.heard.next()), { type: 'auth_success' })
  waiting.send(authFrame(goodToken()))
  t.strictSame(await waiting.closed, FULL)
  t.equal(handled(), 1)
  t.match(audit.at(-1), { type: 'refused', code: TOO_MANY })
  await hangUp([first])
  await until(() => app.hybridAuth.count() === 0)
  await cluster.idle()
  const again = await connected(t, host, { path: '/first' })
  t.equal(cluster.taken.size, 1, 'a credential at the handshake takes it there')
  await hangUp([again])
})

t.test('several limits at once: each is held to, and what one refuses takes no place of another', async t => {
  const { host, port, cluster } = await limited(t, { limits: { perUser: 2, perIp: 3, perTenant: 4 }, fastify: { trustProxy: true } })
  const open = (user: string, ip: string) => connected(t, host, { token: tokenOf(user, 'acme'), headers: { 'x-forwarded-for': ip } })
  const statusFor = async (user: string, ip: string, tenant = 'acme') =>
    statusOf(await rawUpgrade(port, [`Authorization: Bearer ${tokenOf(user, tenant)}`, `X-Forwarded-For: ${ip}`]))
  await open('a', '192.0.2.1')
  await open('a', '192.0.2.1')
  for (let n = 0; n < 3; n++) t.equal(await statusFor('a', '192.0.2.2'), 429, 'the user is at its limit')
  t.equal(cluster.taken.size, 2)
  await open('b', '192.0.2.1')
  t.equal(await statusFor('c', '192.0.2.1'), 429, 'the address is')
  await open('c', '192.0.2.2')
  t.equal(await statusFor('d', '192.0.2.3'), 429, 'the tenant is')
  t.equal(await statusFor('d', '192.0.2.3', 'other'), 101, 'and nobody else')
})

t.test('evict-oldest: the oldest is closed with 4009 and audited, the new one is let in, the others stay', async t => {
  const { host, audit, app, cluster } = await limited(t, { limits: { perUser: 2, policy: 'evict-oldest' } })
  const oldest = await connected(t, host, { protocols: [NAME] })
  const [connection] = app.hybridAuth.connections()
  const second = await connected(t, host)
  const third = await connected(t, host)
  t.strictSame(await oldest.closed, EVICTED)
  t.strictSame(JSON.parse(await oldest.heard.next()), { type: 'bye', code: 'evicted', action: 'stop' })
  for (const { send, heard } of [second, third]) {
    send('here')
    t.equal(await heard.next(), 'here')
  }
  const events = audit.filter(({ type }) => type === 'limited')
  t.match(events, [{ type: 'limited', code: TOO_MANY, userId: 'alice', connectionId: connection?.id, websocket: true }])
  t.equal(events.length, 1)
  await until(() => audit.some(event => event.type === 'closed' && event.closeCode === 4009))
  const fourth = await connected(t, host)
  t.equal((await second.closed).code, 4009)
  await hangUp([third, fourth])
  await cluster.idle()
  t.equal(await cluster.known(), 0)
})

t.test('evict-oldest with several limits: whoever is in the way of any goes, and nobody else', async t => {
  const { host } = await limited(t, { limits: { perUser: 1, perTenant: 2, policy: 'evict-oldest' } })
  const a = await connected(t, host, { token: tokenOf('a', 'acme') })
  const b = await connected(t, host, { token: tokenOf('b', 'acme') })
  const other = await connected(t, host, { token: tokenOf('a', 'other') })
  const newA = await connected(t, host, { token: tokenOf('a', 'acme') })
  t.equal((await a.closed).code, 4009, 'its user is at the limit, and with it the tenant is not any more')
  for (const { send, heard } of [b, other, newA]) {
    send('here')
    t.equal(await heard.next(), 'here')
  }
  await connected(t, host, { token: tokenOf('c', 'acme') })
  t.equal((await b.closed).code, 4009)
})

t.test('evict-oldest on a socket that brought its credential as the first message', async t => {
  const { host, handled } = await limited(t, { limits: { perUser: 1, policy: 'evict-oldest' } })
  const open = async () => {
    const peer = await connected(t, host, { path: '/first', token: null })
    peer.send(authFrame(goodToken()))
    t.match(JSON.parse(await peer.heard.next()), { type: 'auth_success' })
    return peer
  }
  const first = await open()
  await open()
  t.strictSame(await first.closed, EVICTED)
  t.equal(handled(), 2)
})

t.test('HTTP routes and open routes take no place, and sockets of nobody none of a user', async t => {
  const { host, cluster } = await limited(t, { limits: { perUser: 1, perTenant: 1 } })
  for (let n = 0; n < 3; n++) {
    await connected(t, host, { path: '/open' })
    await connected(t, host, { path: '/maybe', token: null })
    await connected(t, host, { path: '/first', token: null })
    t.equal((await ask(host, '/me', { headers: bearer() })).status, 200)
  }
  t.equal(cluster.taken.size, 0)
  await connected(t, host)
  t.equal((await ask(host, '/me', { headers: bearer() })).status, 200, 'at the limit too')
  t.equal((await upgrade(t, host, { path: '/maybe', headers: bearer() })).status, 429, 'somebody on an optional route counts')
})

const WAYS: Array<{ name: string, fill?: number, run: (t: Test, server: Limited) => Promise<unknown> }> = [
  { name: 'the client closes', async run (t, { host }) { await hangUp([await connected(t, host)]) } },
  { name: 'the client cuts the connection', async run (t, { host }) { (await connected(t, host)).socket.terminate() } },
  {
    name: 'the client resets the connection',
    async run (t, { port, sockets }) {
      const { net, answered } = rawConnect(t, port)
      await answered
      await sockets.next()
      net.resetAndDestroy()
    }
  },
  { name: 'the handler closes the socket', async run (t, { host }) { await (await connected(t, host, { path: '/hangsup' })).closed } },
  { name: 'the handler terminates the socket', async run (t, { host }) { await (await connected(t, host, { path: '/cuts' })).closed } },
  { name: 'the handler throws', async run (t, { host }) { await (await connected(t, host, { path: '/throws' })).closed } },
  { name: 'the handler rejects', async run (t, { host }) { await (await connected(t, host, { path: '/rejects' })).closed } },
  {
    name: 'connection.close()',
    async run (t, { host, app, sockets }) {
      const { closed } = await connected(t, host)
      app.hybridAuth.connection(await sockets.next())?.close('Inactive')
      t.equal((await closed).code, 4003)
    }
  },
  {
    name: 'disconnect()',
    async run (t, { host, app }) {
      const { closed } = await connected(t, host)
      t.match(await app.hybridAuth.disconnect({ userId: 'alice' }), { closed: 1 })
      t.equal((await closed).code, 4006)
    }
  },
  {
    name: 'revoke()',
    async run (t, { host, app }) {
      const token = goodToken()
      const { closed } = await connected(t, host, { token })
      t.match(await app.hybridAuth.revoke({ token }), { closed: 1 })
      t.equal((await closed).code, 4006)
    }
  },
  {
    name: 'the handler runs on a credential that is refused by then: a revocation between guard and 101',
    async run (t, { host, app, gates }) {
      const token = goodToken()
      const peer = connect(t, host, { path: '/gate', token })
      const gate = await gates.next()
      await app.hybridAuth.revoke({ token })
      gate.resolve(true)
      t.equal((await peer.closed).code, 4006)
    }
  },
  {
    name: 'a later hook refuses with 403',
    async run (t, { host }) { t.equal((await upgrade(t, host, { path: '/forbidden', headers: bearer() })).status, 403) }
  },
  {
    name: 'the handshake has no key',
    async run (t, { port }) { t.equal(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`], { key: '' })), 400) }
  },
  {
    name: 'the handshake is of another version',
    async run (t, { port }) { t.ok([400, 426].includes(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`], { version: '12' })))) }
  },
  {
    name: 'the client is gone before the 101',
    async run (t, { port, gates, gone }) {
      const { net } = rawConnect(t, port, { path: '/gate' })
      const gate = await gates.next()
      net.destroy()
      // Nobody reads an upgrade before its 101, so nobody sees that it has ended.
      gate.resolve(true)
      await gone()
    }
  },
  {
    name: 'the client resets before the 101',
    async run (t, { port, gates, gone }) {
      const { net } = rawConnect(t, port, { path: '/gate' })
      const gate = await gates.next()
      net.resetAndDestroy()
      await gone()
      gate.resolve(true)
      await turn()
    }
  },
  {
    name: 'a peer that does not answer the close is cut off',
    async run (t, { port, app, sockets }) {
      const { answered } = rawConnect(t, port, { answers: false })
      await answered
      const socket = await sockets.next()
      await app.hybridAuth.disconnect({})
      socket.terminate()
    }
  },
  {
    name: 'a socket that said who it is by its first message closes',
    async run (t, { host, sockets }) {
      const peer = await connected(t, host, { path: '/first', token: null })
      peer.send(authFrame(goodToken()))
      await sockets.next()
      await hangUp([peer])
    }
  },
  {
    name: 'a socket goes away before its first message',
    async run (t, { host }) { await hangUp([await connected(t, host, { path: '/first', token: null })]) }
  }
]

for (const { name, run } of WAYS) {
  t.test(`a place is given back: ${name}`, async t => {
    const server = await limited(t)
    for (let n = 0; n < 3; n++) {
      await run(t, server)
      await server.cluster.idle()
    }
    await hasPlaces(t, server, 2, {}, name)
  })
}

t.test('a place is given back: the token ends', async t => {
  const clock = setClock(t)
  const server = await limited(t, { auth: { heartbeat: false } })
  const { host, app, sockets } = server
  const { closed } = await connected(t, host, { token: goodToken({ exp: inSeconds(60) }) })
  const connection = app.hybridAuth.connection(await sockets.next())
  clock.move(61_000)
  if (connection !== null) lookNow(connection)
  t.equal((await closed).code, 4002)
  await hasPlaces(t, server, 2)
})

t.test('a place is given back: app.close(), with sockets open, pending and in the middle of their upgrade', async t => {
  const shared = memoryCluster()
  const closing = await limited(t, { cluster: watchedCluster(shared), auth: { drain: { window: 10, deadline: 500 } } })
  const staying = await limited(t, { cluster: watchedCluster(shared) })
  const one = await connected(t, closing.host)
  const two = connect(t, closing.host, { path: '/gate' })
  two.opened.catch(() => {})
  const gate = await closing.gates.next()
  t.equal((await upgrade(t, staying.host, { headers: bearer() })).status, 429, 'both are counted')
  const closed = closing.app.close()
  gate.resolve(true)
  t.equal((await one.closed).code, 1012)
  await Promise.race([two.closed, two.opened.catch(() => {})])
  await closed
  t.equal(closing.handled(), 1)
  await hasPlaces(t, staying, 2)
})

t.test('a place is given back by a node that stops, also where its cluster answers too late', async t => {
  const shared = memoryCluster()
  const closing = await limited(t, { cluster: watchedCluster(shared), auth: { drain: { window: 10, deadline: 500 }, handshakeTimeout: 100 } })
  const staying = await limited(t, { cluster: watchedCluster(shared) })
  const gate = deferred<undefined>()
  closing.cluster.steps.before = () => gate.promise
  const peer = rawConnect(t, closing.port)
  await closing.cluster.asked.next()
  const closed = closing.app.close()
  await closed
  gate.resolve(undefined)
  await peer.closed
  await closing.gone()
  await closing.cluster.idle()
  t.equal(closing.handled(), 0)
  await hasPlaces(t, staying, 2)
})

t.test('two apps that share a cluster count together', async t => {
  const cluster = watchedCluster()
  const [one, two] = [await limited(t, { cluster }), await limited(t, { cluster })]
  const peers = [await connected(t, one.host), await connected(t, two.host)]
  t.equal((await upgrade(t, one.host, { headers: bearer() })).status, 429)
  t.equal((await upgrade(t, two.host, { headers: bearer() })).status, 429)
  await hangUp(peers)
  await hasPlaces(t, two, 2)
})

t.test('registrations of one application count together where they name the same cluster, and apart where they name none', async t => {
  for (const cluster of [undefined, memoryCluster()]) {
    const { host, port } = await serve(t, async app => {
      await app.register(websocket)
      for (const prefix of ['/one', '/two']) {
        await app.register(async scope => {
          await scope.register(hybridAuth, { jwt: JWT, limits: { connections: { perUser: 1, perIp: 1 } }, ...(cluster !== undefined && { cluster }) })
          scope.get('/live', { websocket: true }, socket => { socket.send('{}') })
        }, { prefix })
      }
    })
    const statusFor = async (path: string) => statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`], { path }))
    await connected(t, host, { path: '/one/live' })
    t.equal(await statusFor('/one/live'), 429)
    if (cluster === undefined) await connected(t, host, { path: '/two/live' })
    t.equal(await statusFor('/two/live'), 429)
    t.equal(await statusFor('/one/live'), 429)
  }
})

t.test('an eviction reaches the app that has the oldest socket, and apps without limits do not mind', async t => {
  const cluster = watchedCluster()
  const limits: Limits = { perUser: 1, policy: 'evict-oldest' }
  const [one, two] = [await limited(t, { limits, cluster }), await limited(t, { limits, cluster })]
  const without = await limited(t, { cluster, auth: { limits: {} } })
  const bystander = await connected(t, without.host)
  const old = await connected(t, one.host)
  const young = await connected(t, two.host)
  t.strictSame(await old.closed, EVICTED)
  t.match(one.audit.filter(({ type }) => type === 'limited'), [{ code: TOO_MANY, userId: 'alice' }])
  t.strictSame(two.audit.filter(({ type }) => type === 'limited'), [])
  for (const { send, heard } of [young, bystander]) {
    send('here')
    t.equal(await heard.next(), 'here')
  }
  await hangUp([young, bystander])
  await cluster.idle()
  t.equal(await cluster.known(), 0)
})

t.test('a lower limit on one of two apps evicts as many as it takes', async t => {
  const cluster = watchedCluster()
  const many = await limited(t, { limits: { perUser: 3, policy: 'evict-oldest' }, cluster })
  const few = await limited(t, { limits: { perUser: 1, policy: 'evict-oldest' }, cluster })
  const old = [await connected(t, many.host), await connected(t, many.host), await connected(t, many.host)]
  const young = await connected(t, few.host)
  for (const { closed } of old) t.equal((await closed).code, 4009)
  young.send('here')
  t.equal(await young.heard.next(), 'here')
})

t.test('an acquire that answers after the client is gone gives its place back', async t => {
  for (const when of ['before', 'after'] as const) {
    for (const how of ['end', 'reset'] as const) {
      const server = await limited(t)
      const { port, cluster, gone, handled } = server
      const answer = deferred<undefined>()
      cluster.steps[when] = () => answer.promise
      const { net } = rawConnect(t, port)
      await cluster.asked.next()
      if (how === 'end') net.destroy()
      else {
        net.resetAndDestroy()
        await gone()
      }
      answer.resolve(undefined)
      await gone()
      await turn()
      await cluster.idle()
      // Nobody reads an upgrade before its 101: that a client has ended properly is not seen before.
      if (how === 'reset') t.equal(handled(), 0)
      cluster.steps[when] = null
      await hasPlaces(t, server, 2, {}, `${how}, the answer waits ${when} the place is taken`)
    }
  }
})

t.test('an acquire that answers while the client waits lets it in', async t => {
  const server = await limited(t)
  const answer = deferred<undefined>()
  server.cluster.steps.after = () => answer.promise
  const peer = connect(t, server.host)
  await server.cluster.asked.next()
  t.equal(server.handled(), 0)
  answer.resolve(undefined)
  await peer.opened
  server.cluster.steps.after = null
  await hangUp([peer])
  await hasPlaces(t, server, 2)
})

t.test('an acquire that never answers is 503 within handshakeTimeout, 4012 by close', async t => {
  const server = await limited(t, { auth: { handshakeTimeout: 60 } })
  const { host, cluster, handled, gone } = server
  cluster.steps.before = () => never()
  const refused = await upgrade(t, host, { headers: bearer() })
  t.strictSame([refused.status, codeOf(refused.body)], [503, 'FST_HYBRID_AUTH_UNAVAILABLE'])
  t.equal((await upgrade(t, host, { protocols: [NAME], headers: bearer() })).code, 4012)
  const pending = await connected(t, host, { path: '/first', token: null })
  pending.send(authFrame(goodToken()))
  t.equal((await pending.closed).code, 4012)
  t.equal(handled(), 0)
  await gone()
  await turn()
  t.equal(await cluster.known(), 0, 'nothing is kept of who is gone')
  cluster.steps.before = null
  await hasPlaces(t, server, 2)
})

t.test('an acquire that answers after it was given up gives its place back', async t => {
  const server = await limited(t, { auth: { handshakeTimeout: 60 } })
  const { host, cluster, gone } = server
  const answer = deferred<undefined>()
  cluster.steps.before = () => answer.promise
  t.equal((await upgrade(t, host, { headers: bearer() })).status, 503)
  t.equal((await upgrade(t, host, { protocols: [NAME], headers: bearer() })).code, 4012)
  await gone()
  answer.resolve(undefined)
  await turn()
  await cluster.idle()
  cluster.steps.before = null
  await hasPlaces(t, server, 2)
})

t.test('an acquire that rejects or throws is 503, logged without its words, and keeps no place', async t => {
  const { stream, text } = keepLines()
  const server = await limited(t, { fastify: logTo(stream) })
  const { host, cluster, handled, gone } = server
  for (const before of [() => Promise.reject(new Error('canary-4711')), () => { throw new Error('canary-4711') }]) {
    cluster.steps.before = before
    const refused = await upgrade(t, host, { headers: bearer() })
    t.strictSame([refused.status, codeOf(refused.body)], [503, 'FST_HYBRID_AUTH_UNAVAILABLE'])
    t.notMatch(refused.body, 'canary')
    const pending = await connected(t, host, { path: '/first', token: null })
    pending.send(authFrame(goodToken()))
    t.equal((await pending.closed).code, 4012)
  }
  t.equal(handled(), 0)
  t.notMatch(text(), 'canary')
  t.match(text(), 'authentication failed in rule')
  cluster.steps.before = null
  await gone()
  await turn()
  t.equal(await cluster.known(), 0, 'nothing is kept of who was refused')
  const peers = [await connected(t, host), await connected(t, host)]
  t.equal((await upgrade(t, host, { headers: bearer() })).status, 429)
  await hangUp(peers)
})

t.test('an acquire that took a place and then rejects gives it back', async t => {
  const server = await limited(t)
  const { host, cluster, gone } = server
  cluster.steps.after = () => Promise.reject(new Error('the answer was lost'))
  t.equal((await upgrade(t, host, { headers: bearer() })).status, 503)
  const pending = await connected(t, host, { path: '/first', token: null })
  pending.send(authFrame(goodToken()))
  t.equal((await pending.closed).code, 4012)
  await gone()
  await turn()
  t.equal(cluster.taken.size, 0, 'no place is taken')
  cluster.steps.after = null
  await hasPlaces(t, server, 2)
})

t.test('an acquire that takes a place for a client that has gone, and then rejects, gives it back', async t => {
  const server = await limited(t)
  const { port, cluster, gone, nets } = server
  const [before, after] = [deferred<undefined>(), deferred<undefined>()]
  cluster.steps.before = () => before.promise
  cluster.steps.after = async () => {
    await after.promise
    throw new Error('the answer was lost')
  }
  const { closed } = rawConnect(t, port)
  await cluster.asked.next()
  nets[0]?.destroy()
  await closed
  await gone()
  await turn()
  before.resolve(undefined)
  await until(() => cluster.taken.size === 1)
  after.resolve(undefined)
  await turn()
  await turn()
  t.equal(cluster.taken.size, 0, 'no place is taken')
  t.equal(await cluster.known(), 0, 'and none is known')
  cluster.steps.before = cluster.steps.after = null
  await hasPlaces(t, server, 2)
})

t.test('a place is given back: the client has gone before its place was asked for, while its credential was being verified', async t => {
  for (const policy of ['reject', 'evict-oldest'] as const) {
    const asked = new Inbox<Deferred<{ userId: string }>>()
    let isSlow = true
    const user = (): { userId: string } | Promise<{ userId: string }> => {
      if (!isSlow) return { userId: 'alice' }
      const gate = deferred<{ userId: string }>()
      asked.push(gate)
      return gate.promise
    }
    const server = await limited(t, { limits: { perUser: 2, policy }, auth: { jwt: { ...JWT, user } } })
    const { port, cluster, nets, gone, handled } = server
    const peer = rawConnect(t, port)
    const gate = await asked.next()
    nets[0]?.destroy()
    await peer.closed
    await gone()
    gate.resolve({ userId: 'alice' })
    await cluster.asked.next()
    await turn()
    t.equal(cluster.taken.size, 0)
    t.equal(await cluster.known(), 0)
    t.equal(handled(), 0)
    isSlow = false
    if (policy === 'reject') await hasPlaces(t, server, 2)
  }
})

t.test('an eviction that overtakes the answer of acquire closes the socket with 4009, and no handler runs', async t => {
  const server = await limited(t)
  const { host, cluster, handled, app } = server
  const answer = deferred<undefined>()
  cluster.steps.after = () => answer.promise
  const peer = connect(t, host)
  const { id } = await cluster.asked.next()
  t.match(await evictFrom(cluster.members[0], id, 'unknown'), { matched: 1, closed: 1 })
  answer.resolve(undefined)
  t.strictSame(await peer.closed, EVICTED)
  t.equal(handled(), 0)
  t.equal(app.hybridAuth.count(), 0)
  cluster.steps.after = null
  await hasPlaces(t, server, 2)
})

t.test('an eviction between acquire and the 101 closes the socket with 4009, and no handler runs', async t => {
  const { host, cluster, gates, handled } = await limited(t, { limits: { perUser: 1, policy: 'evict-oldest' } })
  const slow = connect(t, host, { path: '/gate' })
  const gate = await gates.next()
  const fast = await connected(t, host)
  gate.resolve(true)
  t.strictSame(await slow.closed, EVICTED)
  t.equal(handled(), 1)
  fast.send('here')
  t.equal(await fast.heard.next(), 'here')
  await hangUp([fast])
  await cluster.idle()
  t.equal(await cluster.known(), 0)
})

t.test('an eviction that overtakes the answer of acquire closes a socket that waits for it with its first message', async t => {
  const server = await limited(t)
  const { host, cluster, handled, app } = server
  const answer = deferred<undefined>()
  cluster.steps.after = () => answer.promise
  const peer = await connected(t, host, { path: '/first', token: null })
  peer.send(authFrame(goodToken()))
  const { id } = await cluster.asked.next()
  await evictFrom(cluster.members[0], id)
  answer.resolve(undefined)
  const first = await Promise.race([peer.closed, peer.heard.next()])
  t.strictSame(first, EVICTED)
  t.equal(handled(), 0)
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a socket whose place is being acquired for its first message and that fails or goes away keeps none', async t => {
  const leave: Array<[string, (peer: Peer) => unknown]> = [
    ['a second credential', async peer => {
      peer.send(authFrame(goodToken()))
      t.equal((await peer.closed).code, 4013)
    }],
    ['the client closes', peer => { peer.socket.close() }],
    ['the client is cut off', peer => { peer.socket.terminate() }]
  ]
  for (const when of ['before', 'after'] as const) {
    for (const [name, act] of leave) {
      const server = await limited(t)
      const { host, cluster, handled, gone } = server
      const answer = deferred<undefined>()
      cluster.steps[when] = () => answer.promise
      const peer = await connected(t, host, { path: '/first', token: null })
      peer.send(authFrame(goodToken()))
      await cluster.asked.next()
      await act(peer)
      await gone()
      answer.resolve(undefined)
      await turn()
      await cluster.idle()
      t.equal(handled(), 0, name)
      cluster.steps[when] = null
      await hasPlaces(t, server, 2, {}, name)
    }
  }
})

t.test('a socket that fails while its place is acquired, and does not answer the close, gives it back when it is cut off', async t => {
  const server = await limited(t)
  const { port, cluster, gone } = server
  const answer = deferred<undefined>()
  cluster.steps.before = () => answer.promise
  const peer = rawConnect(t, port, { path: '/first', token: null, answers: false })
  await peer.answered
  const { texts } = await import('./wire.js')
  peer.write(texts(authFrame(goodToken())))
  await cluster.asked.next()
  peer.write(texts(authFrame(goodToken())))
  await peer.heard.reach(1)
  answer.resolve(undefined)
  await until(() => cluster.taken.size === 1)
  peer.net.destroy()
  await gone()
  cluster.steps.before = null
  await hasPlaces(t, server, 2)
})

t.test('case 81: addressKey gives the IPv4 address, the /64 of IPv6, the text of what is neither, or nothing', async t => {
  const cases: Array<[string | undefined, string | null]> = [
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['::FFFF:192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1%eth0', '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:DB8:1:2:FFFF:4:5:6', '2001:db8:1:2::/64'],
    ['2001:0db8:0001:0002::', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['2001:db8:0:0::1', '2001:db8:0:0::/64'],
    ['2001:0db8:0000:0000:0000:0000:0000:0001', '2001:db8:0:0::/64'],
    ['2001:db8:1:2:3:4:5::', '2001:db8:1:2::/64'],
    ['::2:3:4:5:6:7:8', '0:2:3:4::/64'],
    ['1:2:3:4:5:6:192.0.2.1', '1:2:3:4::/64'],
    ['64:ff9b::192.0.2.1', '192.0.2.1'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['fe80::1%25eth0', 'fe80:0:0:0::/64'],
    ['::', '0:0:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    [undefined, null],
    ['', null],
    ['192.0.2.1:80', '192.0.2.1'],
    ['192.0.2.1:0', '192.0.2.1'],
    ['192.0.2.1:65535', '192.0.2.1'],
    ['[192.0.2.1]:80', '192.0.2.1'],
    ['[::ffff:192.0.2.1]:80', '192.0.2.1'],
    ['[::ffff:c000:201]', '192.0.2.1'],
    ['[::1]', '0:0:0:0::/64'],
    ['[2001:db8::1]:80', '2001:db8:0:0::/64'],
    ['[2001:DB8:1:2::1]', '2001:db8:1:2::/64'],
    ['[fe80::1%eth0]:443', 'fe80:0:0:0::/64'],
    ['::ffff:0:192.0.2.1', '0:0:0:0::/64'],
    ['::192.0.2.1', '0:0:0:0::/64']
  ]
  for (const [ip, key] of cases) t.equal(addressKey(ip), key, String(ip))
  t.notMatch(addressKey('2001:db8:1:3::1'), addressKey('2001:db8:1:2::1'))
})

t.test('case 81: what is no address counts as its own text', async t => {
  const others = [
    '%', '%eth0', ' ', 'unknown', 'UNKNOWN', '_hidden', 'localhost', '192.0.2', '192.0.2.256', '192.0.2.256:80', '192.0.2.1:', '192.0.2.1:80:80', '192.0.2.1:x', '::ffff:192.0.2.999',
    '2001:db8::1::2', '1:2:3', 'g::', '192.0.2.1,192.0.2.2', ' 192.0.2.1', '192.0.2.1 ', '192.0.2.1\n', '[]', '[]:80', '[unknown]', '[192.0.2]:80', '[::1', '::1]', '[::1]:', '[::1]x', '[[::1]]', '1:2:3:4:5:6:7:8:9', '/tmp/socket'
  ]
  for (const ip of others) t.equal(addressKey(ip), ip, JSON.stringify(ip))
})

t.test('case 81: an IPv4-mapped IPv6 address equals the IPv4 address in every spelling', async t => {
  const spellings = [
    '::ffff:192.0.2.1', '::ffff:c000:201', '::ffff:c000:0201', '::FFFF:C000:0201', '0:0:0:0:0:ffff:192.0.2.1', '0000:0000:0000:0000:0000:ffff:c000:0201', '0::ffff:192.0.2.1',
    '0:0::ffff:c000:201', '0:0:0:0:0:FFFF:c000:201', '::0:ffff:192.0.2.1', '::0000:ffff:192.0.2.1'
  ]
  for (const ip of spellings) {
    t.equal(addressKey(ip), '192.0.2.1', ip)
    t.equal(addressKey(`[${ip}]:8080`), '192.0.2.1', `[${ip}]:8080`)
    t.equal(addressKey(`${ip}%eth0`), '192.0.2.1', `${ip}%eth0`)
  }
  t.equal(addressKey('::ffff:0:0'), '0.0.0.0')
  t.equal(addressKey('::ffff:ff:ff00'), '0.255.255.0')
  t.equal(addressKey('::ffff:ffff:ffff'), '255.255.255.255')
  t.equal(addressKey('::ffff:ffff'), '0:0:0:0::/64', 'seven groups of it are not')
})

t.test('case 81: every spelling of an IPv6 address gives the same key', async t => {
  const padded = (groups: string[]) => groups.map(group => group.padStart(4, '0'))
  for (let n = 0; n < 500; n++) {
    const groups = Array.from({ length: 8 }, () => Math.random() < 0.4 ? '0' : Math.floor(Math.random() * 0x10000).toString(16))
    const key = `${groups.slice(0, 4).join(':')}::/64`
    const spellings = [groups.join(':'), padded(groups).join(':'), groups.join(':').toUpperCase(), `[${groups.join(':')}]:1`]
    for (let from = 0; from < 8; from++) {
      for (let to = from + 1; to <= 8 && groups[to - 1] === '0'; to++) {
        if (groups.slice(from, to).every(group => group === '0')) spellings.push(`${groups.slice(0, from).join(':')}::${groups.slice(to).join(':')}`)
      }
    }
    for (const ip of spellings) if (addressKey(ip) !== key) t.fail(`${ip} gives ${String(addressKey(ip))}, not ${key}`)
  }
})

t.test('case 81: X-Forwarded-For changes nothing without trustProxy', async t => {
  const { host, cluster } = await limited(t, { limits: { perIp: 1 } })
  await connected(t, host, { headers: { 'x-forwarded-for': '192.0.2.1' } })
  for (const ip of ['192.0.2.2', '2001:db8::1', 'unknown', '']) {
    t.equal((await upgrade(t, host, { headers: { ...bearer(), 'x-forwarded-for': ip, forwarded: `for=${ip}`, 'x-real-ip': ip } })).status, 429, ip)
  }
  t.strictSame([...cluster.taken.values()].map(({ keys }) => keys), [['ip:127.0.0.1']])
})

t.test('case 81: with trustProxy connections count by the address that it gives', async t => {
  const { host, port, cluster } = await limited(t, { limits: { perIp: 1 }, fastify: { trustProxy: true } })
  const open = (ip: string) => connected(t, host, { headers: { 'x-forwarded-for': ip } })
  const statusFor = async (ip: string) => statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`, `X-Forwarded-For: ${ip}`]))
  await open('192.0.2.1')
  t.equal(await statusFor('::ffff:192.0.2.1'), 429, 'mapped')
  await open('192.0.2.2')
  await open('2001:db8:1:2::1')
  t.equal(await statusFor('2001:0DB8:1:2:ffff::9'), 429, 'the same /64')
  t.equal(await statusFor('2001:db8:1:3::1'), 101, 'another /64')
  await until(() => cluster.taken.size === 3)
  t.strictSame([...cluster.taken.values()].flatMap(({ keys }) => keys), ['ip:192.0.2.1', 'ip:192.0.2.2', 'ip:2001:db8:1:2::/64'])
})

t.test('case 81: with trustProxy a port changes nothing, and what is no address counts as its own text', async t => {
  const { host, port, cluster } = await limited(t, { limits: { perIp: 1 }, fastify: { trustProxy: true } })
  const open = (ip: string) => connected(t, host, { headers: { 'x-forwarded-for': ip } })
  const statusFor = async (ip: string) => statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`, `X-Forwarded-For: ${ip}`]))
  await open('192.0.2.1:4711')
  for (const ip of ['192.0.2.1:4712', '192.0.2.1', '::ffff:c000:201', '[::ffff:192.0.2.1]:80']) t.equal(await statusFor(ip), 429, ip)
  await open('[2001:db8:1:2::1]:4711')
  for (const ip of ['[2001:db8:1:2::1]:4712', '2001:db8:1:2::2']) t.equal(await statusFor(ip), 429, ip)
  await open('unknown')
  t.equal(await statusFor('unknown'), 429)
  await open('_hidden')
  t.strictSame([...cluster.taken.values()].flatMap(({ keys }) => keys), ['ip:192.0.2.1', 'ip:2001:db8:1:2::/64', 'ip:unknown', 'ip:_hidden'])
})

t.test('case 81: where there is no address at all nothing counts by it', async t => {
  const { app, cluster } = await limited(t, { limits: { perIp: 1 } })
  const injected = [await app.injectWS('/live', { headers: bearer() }), await app.injectWS('/live', { headers: bearer() })]
  t.equal(cluster.taken.size, 0)
  for (const socket of injected) socket.terminate()
})

t.test('a socket without a network is counted by its user, and its place given back', async t => {
  const server = await limited(t)
  const { app, cluster } = server
  const injected = [await app.injectWS('/live', { headers: bearer() }), await app.injectWS('/live', { headers: bearer() })]
  t.equal(cluster.taken.size, 2)
  await t.rejects(app.injectWS('/live', { headers: bearer() }), /429/)
  await app.hybridAuth.disconnect({})
  for (const socket of injected) socket.terminate()
  await hasPlaces(t, server, 2)
})

t.test('bad limits.connections throw at registration and name the option', async t => {
  const places = [0, -1, 1.5, NaN, Infinity, 1e10, '1', null, true]
  const bad: Array<[unknown, string]> = [
    ...(['perUser', 'perIp', 'perTenant'] as const).flatMap(name => places.map((value): [unknown, string] => [{ [name]: value }, `limits.connections.${name}`])),
    [{ policy: 'evict' }, 'limits.connections.policy'],
    [{ policy: null }, 'limits.connections.policy'],
    [{ perSession: 1 }, 'limits.connections.perSession'],
    [true, 'limits.connections'],
    [5, 'limits.connections'],
    [null, 'limits.connections']
  ]
  for (const [given, path] of bad) {
    const registered = serve(t, async app => { await app.register(hybridAuth, { jwt: JWT, limits: { connections: given as Limits } }) })
    await t.rejects(registered, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`\\b${path}\\b`) }, `${path}: ${JSON.stringify(given)}`)
  }
  for (const cluster of [{}, null, 1, memoryCluster]) {
    const registered = serve(t, async app => { await app.register(hybridAuth, { jwt: JWT, cluster: cluster as ClusterDriver }) })
    await t.rejects(registered, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bcluster\b/ })
  }
  await serve(t, async app => { await app.register(hybridAuth, { jwt: JWT, limits: { connections: { perUser: 1, perIp: 1e9, perTenant: 1, policy: 'reject' } } }) })
})

/** A member that has nothing. */
const nobody: ClusterMember = Object.assign({
  id: 'nobody',
  receive: async () => ({ matched: 0, closed: 0 }),
  revocations: () => [],
  hasRevocation: () => false,
  heard () {},
  told () {},
  resumed () {},
  lost () {},
  recovered () {},
  ignored () {}
}, { leases: (): Lease[] => [] })

t.test('the memory cluster: a place under every key or under none, oldest out first, and giving back twice does nothing', async t => {
  const cluster = memoryCluster().join(nobody)
  const leaseOf = (id: string, ...keys: string[]): Lease => ({ id, keys, at: 1 })
  const take = (id: string, keys: string[], limits: number[], evicts = false) => cluster.acquire(leaseOf(id, ...keys), limits, evicts)
  t.strictSame(take('1', ['a', 'b'], [1, 2]), [])
  t.strictSame(take('2', ['b', 'a'], [2, 1]), null)
  t.strictSame(take('3', ['b'], [2]), [], 'what was refused took nothing')
  t.strictSame(take('4', ['a', 'b'], [1, 2], true), ['1'])
  t.strictSame(take('5', ['b'], [1], true), ['3', '4'])
  cluster.release(leaseOf('4', 'a', 'b'))
  cluster.release(leaseOf('4', 'a', 'b'))
  cluster.release(leaseOf('never', 'c'))
  t.strictSame(take('6', ['a'], [1]), [])
  cluster.release(leaseOf('5', 'b'))
  t.strictSame(take('8', ['b'], [1]), [])
  t.strictSame(take('9', ['d'], []), null, 'a key without a limit has no place')
  await cluster.stop()
})

t.test('thousands of sockets that come and go in every order leave no place behind', async t => {
  const server = await limited(t, { limits: { perUser: 20, perIp: 20, perTenant: 20, policy: 'evict-oldest' }, auth: { heartbeat: false } })
  const { host, cluster, app } = server
  for (let round = 0; round < 5; round++) {
    const peers = Array.from({ length: 60 }, (_, n) => connect(t, host, { token: tokenOf(`user-${n % 4}`, `tenant-${n % 2}`) }))
    await Promise.all(peers.map(({ opened }) => opened.catch(() => {})))
    t.ok(app.hybridAuth.count() <= 20)
    for (const [n, { socket }] of peers.entries()) {
      if (n % 2 === 0) socket.terminate()
      else socket.close()
    }
    await Promise.all(peers.map(({ closed }) => closed))
  }
  await cluster.idle()
  t.equal(await cluster.known(), 0)
})

t.test('a raw 429 is a whole answer that closes the connection', async t => {
  const { port, host } = await limited(t, { limits: { perUser: 1 } })
  await connected(t, host)
  const answer = await rawAnswer(port, `GET /live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer ${goodToken()}\r\n\r\n`, '}')
  t.equal(statusOf(answer), 429)
  t.equal(headerOf(answer, 'retry-after'), '5')
})
