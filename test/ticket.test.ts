/** Single-use tickets: who gets one, what it opens and how often, and everything that ends it before it is used. */
import { createHash, createPublicKey, createSecretKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import type { FastifyRequest, FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import { OVER, type Cluster, type ClusterDriver, type ClusterMember, type Lease } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { authError } from '../lib/errors.js'
import hybridAuth, { serializers, type AuthContext, type HybridAuthOptions, type TicketOptions } from '../lib/index.js'
import { parseOptions } from '../lib/options.js'
import { realmOf } from '../lib/verify/realm.js'
import { seal, unseal } from '../lib/verify/seal.js'
import { goodClaims, goodToken, inSeconds, JWT, keepLines, SECRET, SESSION, SESSION_SECRET, signHs256, statusOf, upgrade } from './helpers.js'
import { setClock } from './live.js'
import { ask, codeOf, cookieFor, deferred, liveRoutes, logTo, MapStore, never, rawUpgrade, serve } from './stores.js'
import { Inbox, turn } from './wire.js'

const INVALID = 'FST_HYBRID_AUTH_INVALID_TICKET'
const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const MALFORMED = 'FST_HYBRID_AUTH_MALFORMED_REQUEST'
const NAME = 'hybrid-auth.v1'
const BOB = { userId: 'bob', role: 'agent', permissions: ['property:read'], tenantId: 'acme', name: 'Bob' }
const FORM = { jwt: /^j[A-Za-z0-9_-]{43}$/, session: /^s[A-Za-z0-9_-]{43}$/ }
const PAGE = 'https://app.example.com'
const bearer = (token = goodToken()) => ({ authorization: `Bearer ${token}` })
const sessionOf = (changes: Record<string, unknown> = {}) => ({ user: BOB, cookie: {}, ...changes })
const hashOf = (text: string) => createHash('sha256').update(text).digest('base64url')
const realmFor = (changes: Partial<NonNullable<HybridAuthOptions['jwt']>> = {}) => {
  const { jwt } = parseOptions({ jwt: { ...JWT, ...changes } })
  if (jwt === undefined) throw new Error('no jwt')
  return realmOf(jwt)
}
/** Where a ticket is kept: one of a token by those alone who take that token. */
const keyOf = (ticket: string) => hashOf(ticket.startsWith('j') ? `${ticket}\n${realmFor()}` : ticket)
/** A ticket that nobody was given. */
const FORGED = { jwt: `j${'A'.repeat(43)}`, session: `s${'A'.repeat(43)}` }

type Reader = 'request' | 'store'

interface TicketServerOptions {
  reader?: Reader
  auth?: Partial<HybridAuthOptions>
  fastify?: FastifyServerOptions
  store?: MapStore
}

/** A server whose `/ticket` issues tickets, of what the header `ttl` says. */
async function serveTickets (t: Test, { reader = 'store', auth = {}, fastify = {}, store = new MapStore() }: TicketServerOptions = {}) {
  const seen: FastifyRequest[] = []
  const contexts: AuthContext[] = []
  const served = await serve(t, async app => {
    await app.register(cookie)
    if (reader === 'request') await app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false }, saveUninitialized: false, rolling: false })
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, session: reader === 'request' ? SESSION : { ...SESSION, store, secret: SESSION_SECRET }, failures: false, ...auth })
    liveRoutes(app)
    app.get('/seen', { websocket: true }, (socket, request) => {
      seen.push(request)
      contexts.push(request.auth)
      request.log.info({ req: request, url: request.url, raw: request.raw.url, query: request.query }, 'in the handler')
      socket.send('{}')
    })
    app.get('/admins', { websocket: true, auth: { role: 'admin' } }, socket => { socket.send('{}') })
    app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => { socket.send('{}') })
    app.get('/maybe', { websocket: true, auth: { optional: true } }, socket => { socket.send('{}') })
    app.get('/open', { websocket: true, auth: false }, socket => { socket.send('{}') })
    app.get('/again', { websocket: true }, async (socket, request) => {
      const ticket = await app.hybridAuth.issueTicket(request)
      socket.send(JSON.stringify({ ticket }))
    })
    app.get<{ Headers: { ttl?: string } }>('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request, request.headers.ttl === undefined ? undefined : { ttl: Number(request.headers.ttl) }))
    app.get('/nobody', async request => app.hybridAuth.issueTicket(request))
  }, fastify)
  const { host } = served
  return {
    ...served,
    store,
    seen,
    contexts,
    issue: async (headers: Record<string, string> = bearer()) => {
      const { status, body } = await ask(host, '/ticket', { headers })
      if (status !== 200) throw new Error(`no ticket: ${status} ${body}`)
      return body
    },
    /** Opens with a ticket, and whatever else. */
    open: (ticket: string, { path = '/live', ...rest }: Parameters<typeof upgrade>[2] = {}) => upgrade(t, host, { path: `${path}?ticket=${ticket}`, ...rest })
  }
}

/** What is thrown need not be an error. */
async function rejected (thrown: unknown): Promise<never> {
  throw thrown
}

/** A memory cluster whose tickets the test can look at, answer for and keep waiting. */
function ticketCluster (own: Partial<Pick<Cluster, 'putTicket' | 'takeTicket'>> = {}) {
  const inner = memoryCluster()
  const kept = new Map<string, string>()
  const asked = new Inbox<string>()
  const driver: ClusterDriver = {
    join (member) {
      const cluster = inner.join(member)
      return {
        ...cluster,
        putTicket (key, value, ttl) {
          kept.set(key, value)
          return own.putTicket === undefined ? cluster.putTicket(key, value, ttl) : own.putTicket(key, value, ttl)
        },
        takeTicket (key) {
          asked.push(key)
          return own.takeTicket === undefined ? cluster.takeTicket(key) : own.takeTicket(key)
        }
      }
    }
  }
  return { driver, kept, asked }
}

t.test('a ticket of a token opens one socket with the same context, via ticket', async t => {
  const { issue, open, host, contexts } = await serveTickets(t)
  const token = goodToken({ role: 'admin', permissions: ['a', 'b'], companyId: 'acme', iss: 'us', nested: { deep: [1, { x: null }] } })
  const own: unknown = JSON.parse((await ask(host, '/me', { headers: bearer(token) })).body)
  const ticket = await issue(bearer(token))
  t.match(ticket, FORM.jwt)
  const { status, context } = await open(ticket)
  t.equal(status, 101)
  t.type(context?.authenticatedAt, 'number')
  t.strictSame({ ...context, authenticatedAt: 0 }, { ...own as object, via: 'ticket', authenticatedAt: 0 })
  t.match(context, { authType: 'jwt', via: 'ticket', version: 1, userId: 'alice', role: 'admin', tenantId: 'acme', issuer: 'us' })
  t.equal((await open(await issue(bearer(token)), { path: '/admins' })).status, 101, 'the rule of the route is asked')
  t.equal((await open(await issue(), { path: '/admins' })).status, 403)
  t.equal(contexts.length, 0)
})

t.test('the context of a ticket is frozen plain data like any other', async t => {
  const { issue, open, contexts } = await serveTickets(t)
  await open(await issue(bearer(goodToken({ permissions: ['a'], nested: { list: [1] } }))), { path: '/seen' })
  const [context] = contexts
  t.ok(Object.isFrozen(context))
  if (context?.authType !== 'jwt') throw new Error('not a token')
  t.ok(Object.isFrozen(context.permissions), 'permissions')
  t.ok(Object.isFrozen(context.user), 'user')
  t.ok(Object.isFrozen(context.claims), 'claims')
  t.ok(Object.isFrozen(context.claims.nested), 'nested claims')
})

for (const reader of ['request', 'store'] as const) {
  t.test(`a ticket of a session opens one socket as its user, via ticket (read from the ${reader})`, async t => {
    const { issue, open, host, store } = await serveTickets(t, { reader })
    store.put('s1', sessionOf())
    const headers = { cookie: cookieFor('s1') }
    const own: unknown = JSON.parse((await ask(host, '/me', { headers })).body)
    const ticket = await issue(headers)
    t.match(ticket, FORM.session)
    const { status, context } = await open(ticket)
    t.equal(status, 101)
    t.strictSame({ ...context, authenticatedAt: 0 }, { ...own as object, via: 'ticket', authenticatedAt: 0 })
    t.match(context, { authType: 'session', via: 'ticket', sessionId: 's1', userId: 'bob', version: 1 })
  })

  t.test(`a ticket dies with its session: destroyed, without its user, expired, revoked (read from the ${reader})`, async t => {
    const { issue, open, app, store } = await serveTickets(t, { reader })
    const ends: Array<[string, (id: string) => unknown, string, unknown?]> = [
      ['destroyed', id => store.sessions.delete(id), INVALID],
      ['logged out', id => store.put(id, sessionOf({ user: null })), INVALID],
      ['expired', id => store.put(id, sessionOf({ cookie: { expires: new Date(Date.now() - 1) } })), INVALID],
      ['garbage', id => store.put(id, 'garbage'), INVALID],
      ['revoked', id => app.hybridAuth.revoke({ sessionId: id }), 'FST_HYBRID_AUTH_REVOKED_SESSION'],
      ['of another user by now, who is revoked', async id => {
        store.put(id, sessionOf({ user: { userId: 'carol' } }))
        await app.hybridAuth.revoke({ userId: 'carol' })
      }, INVALID],
      ['revoked with its tenant', () => app.hybridAuth.revoke({ tenantId: 'gone' }), 'FST_HYBRID_AUTH_REVOKED_SESSION', { ...BOB, tenantId: 'gone' }],
      ['revoked with its user', () => app.hybridAuth.revoke({ userId: 'bob' }), 'FST_HYBRID_AUTH_REVOKED_SESSION']
    ]
    for (const [name, end, code, user = BOB] of ends) {
      const id = `s-${name}`
      store.put(id, sessionOf({ user }))
      const ticket = await issue({ cookie: cookieFor(id) })
      await end(id)
      const refused = await open(ticket)
      t.strictSame([refused.status, codeOf(refused.body)], [401, code], name)
    }
  })

  t.test(`a ticket opens a socket as whom it was issued for, or none (read from the ${reader})`, async t => {
    const { issue, open, store } = await serveTickets(t, { reader })
    const others: Array<[string, unknown]> = [
      ['another user', { ...BOB, userId: 'eve' }], ['another tenant', { ...BOB, tenantId: 'other' }], ['no tenant', { ...BOB, tenantId: null }], ['another case', { ...BOB, userId: 'Bob' }],
      ['nobody', { ...BOB, userId: '' }]
    ]
    for (const [name, user] of others) {
      store.put('s1', sessionOf())
      const ticket = await issue({ cookie: cookieFor('s1') })
      store.put('s1', sessionOf({ user }))
      const refused = await open(ticket)
      t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID], name)
      store.put('s1', sessionOf())
      t.equal((await open(ticket)).status, 401, 'and the ticket is used up')
    }
    store.put('s2', sessionOf())
    const fresh = await issue({ cookie: cookieFor('s2') })
    store.put('s2', sessionOf({ user: { ...BOB, permissions: [] } }))
    t.match((await open(fresh)).context, { userId: 'bob', permissions: [] }, 'its rights are those of now')
  })

  t.test(`a store that fails or hangs while a ticket is redeemed is 503 (read from the ${reader})`, async t => {
    const { issue, open, store, host } = await serveTickets(t, { reader, auth: { handshakeTimeout: 60 } })
    store.put('s1', sessionOf())
    const headers = { cookie: cookieFor('s1') }
    const [one, two] = [await issue(headers), await issue(headers)]
    const get = store.get.bind(store)
    store.get = (_id, callback) => { callback(new Error('canary')) }
    const failed = await open(one)
    t.strictSame([failed.status, codeOf(failed.body)], [503, UNAVAILABLE])
    store.get = () => {}
    t.equal((await open(two)).status, 503)
    store.get = get
    t.equal((await open(one)).status, 401, 'it was taken all the same')
    t.equal((await ask(host, '/me', { headers })).status, 200)
  })
}

t.test('a ticket of a token opens nothing where there are no tokens, whatever the store says', async t => {
  const credential = { authType: 'jwt', userId: 'alice', tenantId: null, claims: { sub: 'alice' }, tokenId: 'j1' }
  const { driver } = ticketCluster({ takeTicket: () => JSON.stringify({ origin: null, credential }) })
  const { open } = await serveTickets(t, { reader: 'store', auth: { jwt: undefined, cluster: driver } })
  const refused = await open(`j${'A'.repeat(43)}`)
  t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID])
})

t.test('a ticket dies with its token: the token, its user, its tenant revoked, or its time over', async t => {
  const clock = setClock(t)
  const { issue, open, app } = await serveTickets(t)
  const ends: Array<[string, Record<string, unknown>, (token: string) => unknown]> = [
    ['token', {}, token => app.hybridAuth.revoke({ token })],
    ['jti', { jti: 'j1' }, () => app.hybridAuth.revoke({ jti: 'j1' })],
    ['user', { sub: 'carol' }, () => app.hybridAuth.revoke({ userId: 'carol' })],
    ['tenant', { companyId: 'gone' }, () => app.hybridAuth.revoke({ tenantId: 'gone' })]
  ]
  for (const [name, claims, end] of ends) {
    const token = goodToken(claims)
    const ticket = await issue(bearer(token))
    await end(token)
    const refused = await open(ticket)
    t.strictSame([refused.status, codeOf(refused.body)], [401, 'FST_HYBRID_AUTH_REVOKED_TOKEN'], name)
    t.equal((await open(ticket, { protocols: [NAME] })).code, 4001, 'and it is used up')
  }
  const ticket = await issue({ ...bearer(goodToken({ exp: inSeconds(10) })), ttl: '300000' })
  clock.move(11_000)
  const refused = await open(ticket)
  t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID])
})

t.test('a token that has ended in the meantime ends its ticket even where the cluster still has it', async t => {
  const clock = setClock(t)
  const values = new Map<string, string>()
  const { driver } = ticketCluster({ putTicket (key, value) { values.set(key, value) }, takeTicket: key => values.get(key) ?? null })
  const { issue, open } = await serveTickets(t, { auth: { cluster: driver } })
  const [short, long] = [await issue(bearer(goodToken({ exp: inSeconds(10) }))), await issue(bearer(goodToken({ exp: inSeconds(300) })))]
  clock.move(11_000)
  t.equal((await open(short)).status, 401)
  t.equal((await open(long)).status, 101)
})

t.test('a revocation while the ticket is being taken refuses it', async t => {
  const answer = deferred<undefined>()
  const { driver, kept, asked } = ticketCluster({ takeTicket: key => answer.promise.then(() => kept.get(key) ?? null) })
  const { issue, open, app } = await serveTickets(t, { auth: { cluster: driver } })
  const token = goodToken()
  const ticket = await issue(bearer(token))
  const opening = open(ticket)
  await asked.next()
  await app.hybridAuth.revoke({ token })
  answer.resolve(undefined)
  t.equal((await opening).status, 401)
})

t.test('a ticket is good once', async t => {
  const { issue, open } = await serveTickets(t)
  const ticket = await issue()
  t.equal((await open(ticket)).status, 101)
  for (let n = 0; n < 2; n++) {
    const again = await open(ticket)
    t.strictSame([again.status, codeOf(again.body)], [401, INVALID])
    t.equal(again.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth"')
  }
  t.match(await open(ticket, { protocols: [NAME] }), { status: 101, code: 4001, reason: '{"code":"authentication_failed","action":"stop","retryAfterMs":0}' })
})

t.test('raced: a ticket that two apps are given at the same time opens one socket', async t => {
  const cluster = memoryCluster()
  const [one, two] = [await serveTickets(t, { auth: { cluster } }), await serveTickets(t, { auth: { cluster } })]
  for (let n = 0; n < 10; n++) {
    const ticket = await (n % 2 === 0 ? one : two).issue()
    const answers = await Promise.all([one, two, one, two].map(({ open }) => open(ticket)))
    t.strictSame(answers.map(({ status }) => status).sort(), [101, 401, 401, 401])
  }
  t.equal((await two.open(await one.issue())).status, 101, 'issued here, used there')
})

t.test('raced: of two that wait for the same ticket one opens, whoever is answered first', async t => {
  for (const first of [0, 1]) {
    const inner = memoryCluster()
    const gates: Array<(go: undefined) => void> = []
    const slow: ClusterDriver = {
      join (member) {
        const cluster = inner.join(member)
        return {
          ...cluster,
          async takeTicket (key) {
            const gate = deferred<undefined>()
            gates.push(gate.resolve)
            await gate.promise
            return cluster.takeTicket(key)
          }
        }
      }
    }
    const [one, two] = [await serveTickets(t, { auth: { cluster: slow } }), await serveTickets(t, { auth: { cluster: slow } })]
    const ticket = await one.issue()
    const both = [one.open(ticket)]
    while (gates.length < 1) await new Promise(resolve => { setImmediate(resolve) })
    both.push(two.open(ticket))
    while (gates.length < 2) await new Promise(resolve => { setImmediate(resolve) })
    gates[first]?.(undefined)
    const winner = await both[first]
    gates[1 - first]?.(undefined)
    const loser = await both[1 - first]
    t.strictSame([winner?.status, loser?.status], [101, 401])
  }
})

t.test('a ticket ends after 30 seconds, or what ttl says, to the millisecond', async t => {
  const clock = setClock(t)
  const { issue, open } = await serveTickets(t)
  clock.freeze()
  let moved = 0
  for (const [ttl, ms] of [[undefined, 30_000], ['1000', 1000], ['300000', 300_000]] as const) {
    const claims = { exp: inSeconds(moved / 1000 + 1000) }
    const headers = { ...bearer(goodToken(claims)), ...(ttl !== undefined && { ttl }) }
    const [before, at] = [await issue(headers), await issue(headers)]
    clock.move(ms - 1)
    moved += ms
    t.equal((await open(before)).status, 101, `${ms} - 1`)
    clock.move(1)
    const refused = await open(at)
    t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID], String(ms))
  }
})

t.test('what is no ticket is refused unasked, and forged ones are refused', async t => {
  const { driver, asked } = ticketCluster()
  const { open, host, issue } = await serveTickets(t, { auth: { cluster: driver } })
  const ticket = await issue()
  const rest = ticket.slice(1)
  const forms = [
    '', ' ', 'x', 'j', 's', rest, `J${rest}`, `S${rest}`, `x${rest}`, `A${rest}`, ticket.slice(0, 43), `${ticket}A`, `j${ticket}`, `${ticket}=`, `${ticket.slice(0, 43)}!`, `${ticket}%0a`, `%0a${ticket}`, `${ticket}%0a${realmFor()}`,
    '..%2f..%2f', 'null', keyOf(ticket), keyOf(ticket) + keyOf(ticket), 'x'.repeat(5000)
  ]
  for (const form of forms) {
    const refused = await open(form)
    t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID], form.slice(0, 50))
  }
  const bare = await upgrade(t, host, { path: '/live?ticket' })
  t.strictSame([bare.status, codeOf(bare.body)], [401, INVALID])
  t.equal(asked.all.length, 0)
  const forgeries = [FORGED.jwt, FORGED.session, `s${rest}`, `j${keyOf(ticket)}`, `s${keyOf(ticket)}`, `j${rest.toUpperCase()}`, `j${rest.split('').reverse().join('')}`]
  for (const forged of forgeries) {
    const refused = await open(forged)
    t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID], forged)
  }
  t.strictSame(asked.all, forgeries.map(keyOf), 'each is asked for once, under its own key')
  t.equal((await open(ticket)).status, 101, 'and the good one is still good')
})

t.test('a ticket twice, or beside another bearer, is a malformed request and stays unused', async t => {
  const { host, issue, open, store } = await serveTickets(t, { auth: { credentials: { query: true } } })
  const ticket = await issue()
  const token = goodToken()
  const both: Array<Parameters<typeof upgrade>[2]> = [
    { path: `/live?ticket=${ticket}&ticket=${ticket}` },
    { path: `/live?ticket=${ticket}&ticket=` },
    { path: `/live?ticket=${ticket}`, headers: bearer(token) },
    { path: `/live?ticket=${ticket}`, protocols: [NAME, `bearer.${token}`] },
    { path: `/live?ticket=${ticket}&token=${token}` },
    { path: `/live?ticket=${ticket}&token=` },
    { path: `/live?ticket=&token=${token}` },
    { path: `/live?ticket=${ticket}&token=${token}`, headers: bearer(token) },
    { path: `/live?ticket=${ticket}&ticket=${ticket}`, protocols: [NAME] }
  ]
  for (const how of both) {
    const refused = await upgrade(t, host, how)
    t.strictSame([refused.status, codeOf(refused.body)], [400, MALFORMED], String(how?.path).replaceAll(ticket, 'TICKET').replaceAll(token, 'TOKEN'))
  }
  store.put('s1', sessionOf())
  const { status, context } = await open(ticket, { headers: { cookie: cookieFor('s1'), origin: `http://${host}`, authorization: 'Basic eDp5' } })
  t.strictSame([status, context?.userId], [101, 'alice'], 'a cookie beside it is no second bearer, and neither is another scheme')
})

t.test('a refused ticket does not fall back to the session', async t => {
  for (const reader of ['request', 'store'] as const) {
    const { host, issue, open, store } = await serveTickets(t, { reader })
    store.put('s1', sessionOf())
    const headers = { cookie: cookieFor('s1'), origin: `http://${host}` }
    t.equal((await upgrade(t, host, { headers })).status, 101, 'the session is good')
    const used = await issue()
    await open(used)
    for (const ticket of [used, '', FORGED.jwt, FORGED.session, 'A'.repeat(43)]) {
      for (const path of ['/live', '/maybe', '/first']) {
        const refused = await open(ticket, { path, headers })
        t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID], path)
      }
    }
  }
})

t.test('a ticket is bound to the origin that it was issued to', async t => {
  const { issue, open, host } = await serveTickets(t, { auth: { origins: [PAGE, 'https://other.example.com'] } })
  const ticketOf = (origin?: string) => issue({ ...bearer(), ...(origin !== undefined && { origin }) })
  const status = async (ticket: string, origin?: string) => (await open(ticket, { headers: origin === undefined ? {} : { origin } })).status
  t.equal(await status(await ticketOf(PAGE), PAGE), 101)
  t.equal(await status(await ticketOf(PAGE), 'https://other.example.com'), 401, 'an allowed origin, but another')
  t.equal(await status(await ticketOf(PAGE)), 401, 'without origin')
  t.equal(await status(await ticketOf(), PAGE), 401, 'issued without one')
  t.equal(await status(await ticketOf()), 101)
  t.equal(await status(await ticketOf('https://evil.example.com'), 'https://evil.example.com'), 403, 'one that is not allowed opens nothing')
  t.equal(await status(await ticketOf(), `http://${host}`), 403, 'and the server\'s own is not in the list')
  t.equal(await status(await ticketOf('null'), 'null'), 403)
  const tried = await ticketOf(PAGE)
  await status(tried, 'https://other.example.com')
  t.equal(await status(tried, PAGE), 401, 'who tries it elsewhere has used it up')
})

t.test('a ticket that a page of the server itself asked for, by GET and so without Origin, opens from that page', async t => {
  const { issue, open, host } = await serveTickets(t)
  t.equal((await open(await issue(), { headers: { origin: `http://${host}` } })).status, 101)
  t.equal((await open(await issue())).status, 101, 'or from no page at all')
  t.equal((await open(await issue({ ...bearer(), origin: `http://${host}` }), { headers: { origin: `http://${host}` } })).status, 101)
  t.equal((await open(await issue({ ...bearer(), origin: `http://${host}` }))).status, 401)
  t.equal((await open(await issue(), { headers: { origin: 'http://other.example.com' } })).status, 403)
})

t.test('a ticket issued without Origin opens from the server\'s own origin however a proxy spells its host', async t => {
  const { issue, port } = await serveTickets(t)
  const spellings = [
    ['app.example.com', 'http://app.example.com'], ['App.Example.com', 'http://app.example.com'], ['app.example.com:80', 'http://app.example.com'],
    ['APP.example.com:80', 'http://app.example.com'], ['app.example.com:8080', 'http://app.example.com:8080']
  ]
  for (const [server, origin] of spellings) {
    const lines = [`Origin: ${String(origin)}`]
    const how = { host: String(server) }
    t.equal(statusOf(await rawUpgrade(port, [...lines, `Authorization: Bearer ${goodToken()}`], how)), 101, `a token: ${String(server)}`)
    const answer = await rawUpgrade(port, lines, { ...how, path: `/live?ticket=${await issue()}` })
    t.equal(statusOf(answer), 101, `a ticket: ${String(server)}`)
  }
  for (const [server, origin] of [['app.example.com:8080', 'http://app.example.com'], ['app.example.com', 'https://app.example.com'], ['example.com', 'http://app.example.com']]) {
    const answer = await rawUpgrade(port, [`Origin: ${String(origin)}`], { host: String(server), path: `/live?ticket=${await issue()}` })
    t.equal(statusOf(answer), 403, `${String(server)} is not ${String(origin)}`)
  }
})

t.test('an allowed origin that is not the server\'s own opens no ticket that was issued without one', async t => {
  const { issue, port } = await serveTickets(t, { auth: { origins: [PAGE, 'http://app.example.com'] } })
  const statusFrom = async (origin: string) => statusOf(await rawUpgrade(port, [`Origin: ${origin}`], { host: 'app.example.com', path: `/live?ticket=${await issue()}` }))
  t.equal(await statusFrom('http://app.example.com'), 101)
  t.equal(await statusFrom(PAGE), 401)
})

t.test('tickets are not read on HTTP routes, on open routes, or with credentials.ticket: false', async t => {
  const { issue, open, host } = await serveTickets(t)
  const ticket = await issue()
  const overHttp = await ask(host, `/me?ticket=${ticket}`)
  t.strictSame([overHttp.status, codeOf(overHttp.body)], [401, 'FST_HYBRID_AUTH_MISSING_CREDENTIALS'])
  t.equal((await ask(host, `/me?ticket=${ticket}&ticket=x`, { headers: bearer() })).status, 200)
  t.equal((await open(ticket, { path: '/open' })).status, 101)
  t.equal((await open(ticket)).status, 101, 'so it is still unused')
  const off = await serveTickets(t, { auth: { credentials: { ticket: false } } })
  const unread = await off.issue()
  const refused = await off.open(unread)
  t.strictSame([refused.status, codeOf(refused.body)], [401, 'FST_HYBRID_AUTH_MISSING_CREDENTIALS'])
  t.equal((await off.open(unread, { headers: bearer() })).status, 101)
  t.equal((await upgrade(t, off.host, { path: '/live?ticket=a&ticket=b', headers: bearer() })).status, 101)
})

t.test('a ticket opens routes that wait for a first message, or for nobody, as its user', async t => {
  const { issue, open, app } = await serveTickets(t)
  for (const path of ['/first', '/maybe']) {
    const ticket = await issue()
    const connected = new Promise(resolve => { app.hybridAuth.events.once('authenticated', resolve) })
    t.equal((await open(ticket, { path })).status, 101)
    t.match(await connected, { userId: 'alice', via: 'ticket', authType: 'jwt' })
  }
})

t.test('a socket can be given a ticket for the next one', async t => {
  const { issue, open } = await serveTickets(t)
  const { context } = await open(await issue(), { path: '/again' })
  t.match((await open(String(context?.ticket))).context, { userId: 'alice', via: 'ticket' })
})

t.test('the handler sees the ticket nowhere in its request, however the parameter is spelled', async t => {
  const { stream, text } = keepLines()
  const { issue, host, seen } = await serveTickets(t, { fastify: logTo(stream, { serializers }) })
  for (const parameter of ['ticket', '%74icket', 'tick%65t']) {
    const ticket = await issue()
    t.equal((await upgrade(t, host, { path: `/seen?a=1&${parameter}=${ticket}&b=2` })).status, 101, parameter)
    const request = seen.at(-1)
    t.same(request?.query, { a: '1', b: '2' })
    t.notMatch(String(request?.url), ticket, `request.url, ${parameter}`)
    t.notMatch(String(request?.raw.url), ticket, `request.raw.url, ${parameter}`)
    t.match(request?.url, /a=1.*b=2/)
    t.match(text(), 'in the handler')
    t.notMatch(text(), ticket, `log lines, ${parameter}`)
  }
})

t.test('a parameter whose name only begins as that of the ticket stays in the request and in the log', async t => {
  const { stream, text } = keepLines()
  const { open, issue, seen } = await serveTickets(t, { fastify: logTo(stream, { serializers }) })
  const ticket = await issue()
  t.equal((await open(`${ticket}&ticketNumber=4711&tickets=4712&ticket_id=4713`, { path: '/seen' })).status, 101)
  t.same(seen[0]?.query, { ticketNumber: '4711', tickets: '4712', ticket_id: '4713' })
  t.equal(seen[0]?.url, '/seen?ticket=[redacted]&ticketNumber=4711&tickets=4712&ticket_id=4713')
  t.match(text(), 'ticketNumber=4711&tickets=4712&ticket_id=4713')
  t.notMatch(text(), ticket)
})

t.test('no log line after the guard has it, with the serializers of Fastify too', async t => {
  const { stream, text } = keepLines()
  const { issue, open } = await serveTickets(t, { fastify: logTo(stream) })
  const ticket = await issue()
  const before = text().length
  await open(ticket, { path: '/seen' })
  const after = text().slice(before).split('\n').filter(line => !line.includes('incoming request')).join('\n')
  t.match(after, 'in the handler')
  t.notMatch(after, ticket)
})

/** A server that keeps what every hook and its error handler see of a URL. */
async function serveUrls (t: Test, auth: Partial<HybridAuthOptions> = {}) {
  const urls: string[] = []
  const see = ({ url, raw, query }: FastifyRequest) => { urls.push(`${url} ${String(raw.url)} ${JSON.stringify(query)}`) }
  const served = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, ...auth })
    app.setErrorHandler(async (error: Error & { statusCode?: number }, request, reply) => {
      see(request)
      return reply.code(error.statusCode ?? 500).send(error.message)
    })
    app.addHook('onResponse', async request => { see(request) })
    app.get('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
    app.get('/admins', { websocket: true, auth: { role: 'admin' } }, () => {})
    app.get('/maybe', { websocket: true, auth: { optional: true } }, (socket, request) => {
      see(request)
      socket.close()
    })
    liveRoutes(app)
  })
  const ticket = (await ask(served.host, '/ticket', { headers: bearer() })).body
  urls.length = 0
  return { ...served, urls, ticket }
}

t.test('an error handler does not see a ticket that was refused, or that is still good', async t => {
  const { host, port, urls, ticket } = await serveUrls(t, { credentials: { query: true } })
  const query = `?a=1&ticket=${ticket}&b=2`
  t.equal((await upgrade(t, host, { path: `/live${query}&ticket=x` })).status, 400)
  t.equal((await upgrade(t, host, { path: `/live${query}`, headers: bearer() })).status, 400)
  t.equal((await upgrade(t, host, { path: `/live${query}&token=${goodToken()}` })).status, 400)
  t.equal((await upgrade(t, host, { path: `/live${query}`, headers: { authorization: 'Bearer a b' } })).status, 400)
  t.equal((await upgrade(t, host, { path: `/live${query}`, protocols: ['bearer.x', 'bearer.y', NAME] })).status, 400)
  t.equal((await upgrade(t, host, { path: `/admins${query}` })).status, 403)
  t.equal((await upgrade(t, host, { path: `/live${query}` })).status, 401)
  t.equal(statusOf(await rawUpgrade(port, [], { path: '/live?a=1&ticket=&b=2' })), 401)
  t.equal(statusOf(await rawUpgrade(port, [], { path: `/live?a=1&ticket=${FORGED.jwt}&b=2` })), 401)
  t.equal(statusOf(await rawUpgrade(port, [], { path: `/live?a=1&ticket=${FORGED.session}&b=2` })), 401)
  t.ok(urls.length >= 10)
  for (const url of urls) {
    t.notMatch(url, ticket)
    t.notMatch(url, 'A'.repeat(43))
    t.match(url, /^\/\w+\?a=1&.*&b=2.* \{"a":"1","b":"2"\}$/, 'all else is there')
  }
})

t.test('an upgrade that is refused before its credential is looked for keeps no ticket in its URL', async t => {
  const origin = await serveUrls(t)
  t.equal((await upgrade(t, origin.host, { path: `/live?ticket=${origin.ticket}`, headers: { origin: 'https://evil.example.com' } })).status, 403)
  t.ok(origin.urls.length > 0)
  for (const url of origin.urls) {
    t.notMatch(url, origin.ticket, 'for its Origin')
  }
  const urls: string[] = []
  const away: ClusterDriver = {
    join (member) {
      setImmediate(() => { member.lost(new Error('away')) })
      return { ...memoryCluster().join(member), onLoss: { action: 'refuse-new', after: 0 } }
    }
  }
  const lost = await serveUrls(t, { cluster: away })
  let status = 0
  while (status !== 503) status = (await upgrade(t, lost.host, { path: `/live?ticket=${lost.ticket}` })).status
  urls.push(...lost.urls.slice(-1))
  t.equal(urls.length, 1)
  t.notMatch(urls[0], lost.ticket, 'without its cluster')
})

t.test('issueTicket rejects where nobody is authenticated, whatever else it is given', async t => {
  const { host } = await serveTickets(t)
  const refused = await ask(host, '/nobody', { headers: bearer() })
  t.strictSame([refused.status, codeOf(refused.body)], [401, 'FST_HYBRID_AUTH_NOT_AUTHENTICATED'], 'a route without auth authenticates nobody')
})

t.test('issueTicket rejects options that it cannot use, naming them', async t => {
  let given: TicketOptions | undefined
  const { driver, kept } = ticketCluster()
  const { host } = await serve(t, async app => {
    await app.register(hybridAuth, { jwt: JWT, cluster: driver })
    app.get('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request, given))
  })
  const bad: Array<[unknown, string]> = [
    ...[0, 999, 300_001, -1, NaN, Infinity, '30000', null, true].map((ttl): [unknown, string] => [{ ttl }, 'options.ttl']),
    [{ tll: 1000 }, 'options.tll'], ['x', 'options'], [5000, 'options']
  ]
  for (const [options, path] of bad) {
    given = options as TicketOptions
    const { status, body } = await ask(host, '/ticket', { headers: bearer() })
    t.strictSame([status, codeOf(body)], [500, 'FST_HYBRID_AUTH_INVALID_OPTION'], JSON.stringify(options))
    t.match(body, `Invalid option ${path}:`)
  }
  t.equal(kept.size, 0)
  for (const ttl of [1000, 1000.5, 300_000, undefined]) {
    given = { ttl }
    t.equal((await ask(host, '/ticket', { headers: bearer() })).status, 200)
  }
})

t.test('the ticket itself is kept nowhere, and lives no longer than its credential', async t => {
  const ttls: number[] = []
  const { driver, kept } = ticketCluster({ putTicket (_key, _value, ttl) { ttls.push(ttl) } })
  const { issue, store } = await serveTickets(t, { auth: { cluster: driver, jwt: { ...JWT, allowNoExpiry: true } } })
  const ticket = await issue()
  t.strictSame([...kept.keys()], [keyOf(ticket)])
  t.notMatch([...kept.values()].join(), ticket)
  await issue(bearer(goodToken({ exp: inSeconds(5) })))
  await issue({ ...bearer(goodToken({ exp: undefined })), ttl: '300000' })
  store.put('s1', sessionOf({ cookie: { expires: new Date(Date.now() + 2000) } }))
  await issue({ cookie: cookieFor('s1') })
  t.ok(ttls[0] === 30_000 && Number(ttls[1]) <= 5000 && ttls[2] === 300_000 && Number(ttls[3]) <= 2000, ttls.join())
  t.ok(ttls.every(ttl => ttl >= 1))
})

t.test('a credential that ends while its ticket is issued still has a ttl that a store can take', async t => {
  const ttls: number[] = []
  const clock = setClock(t)
  const { driver } = ticketCluster({ putTicket (_key, _value, ttl) { ttls.push(ttl) } })
  const { host } = await serve(t, async app => {
    await app.register(hybridAuth, { jwt: JWT, cluster: driver })
    app.get('/ticket', { auth: true }, async request => {
      clock.move(400_000)
      return app.hybridAuth.issueTicket(request)
    })
  })
  t.equal((await ask(host, '/ticket', { headers: bearer() })).status, 200)
  t.strictSame(ttls, [1])
})

t.test('issueTicket rejects with UNAVAILABLE where the store throws, rejects or hangs', async t => {
  const faults: Array<[string, Cluster['putTicket']]> = [
    ['throws', () => { throw new Error('canary-4711') }],
    ['rejects', () => Promise.reject(new Error('canary-4711'))],
    ['rejects with a code of its own', () => Promise.reject(Object.assign(new Error('canary-4711'), { code: 'ECONNREFUSED' }))],
    ['rejects with a code that is none', () => Promise.reject(Object.assign(new Error('canary-4711'), { code: 7 }))],
    ['rejects with an error of ours', () => Promise.reject(authError('FST_HYBRID_AUTH_UNAVAILABLE'))],
    ['throws what is thrown of a command that is too long', () => { throw authError('FST_HYBRID_AUTH_INVALID_OPTION', 'canary-4711', 'is too long') }],
    ['rejects with another error of ours', () => Promise.reject(authError('FST_HYBRID_AUTH_NOT_AUTHENTICATED'))],
    ['throws what is no error', () => { throw 'canary-4711' as unknown as Error }],
    ['rejects with what is no error', () => rejected('canary-4711')]
  ]
  for (const [name, putTicket] of faults) {
    const { driver } = ticketCluster({ putTicket })
    const { host } = await serveTickets(t, { auth: { cluster: driver } })
    const { status, body } = await ask(host, '/ticket', { headers: bearer() })
    t.equal(status, 503, name)
    t.equal(codeOf(body), UNAVAILABLE, name)
    t.notMatch(body, 'canary', name)
  }
  const { driver } = ticketCluster({ putTicket: () => never() })
  const { host } = await serveTickets(t, { auth: { cluster: driver, handshakeTimeout: 60 } })
  const { status, body } = await ask(host, '/ticket', { headers: bearer(), signal: AbortSignal.timeout(2000) })
  t.strictSame([status, codeOf(body)], [503, UNAVAILABLE], 'hangs')
})

t.test('a store that fails after issueTicket has given up does not end the process, and one that answers late keeps nobody waiting', async t => {
  const unhandled: unknown[] = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', error => { unhandled.push(error) })
  t.teardown(() => {
    process.removeAllListeners('unhandledRejection')
    for (const listener of listeners) process.on('unhandledRejection', listener)
  })
  const answer = deferred<string>()
  const { driver } = ticketCluster({
    async putTicket () {
      if (await answer.promise === 'fail') throw new Error('too late')
    }
  })
  const { host } = await serveTickets(t, { auth: { cluster: driver, handshakeTimeout: 50 } })
  t.equal((await ask(host, '/ticket', { headers: bearer() })).status, 503)
  answer.resolve('fail')
  await turn()
  await turn()
  t.equal(unhandled.length, 0)
})

t.test('a store that throws, rejects or hangs refuses with 503, 4012 by close, logged without its words', async t => {
  const faults: Array<[string, Cluster['takeTicket']]> = [
    ['throws', () => { throw new Error('canary-4711') }],
    ['rejects', () => Promise.reject(new Error('canary-4711'))],
    ['hangs', () => never()]
  ]
  for (const [name, takeTicket] of faults) {
    const { stream, text } = keepLines()
    const { driver } = ticketCluster({ takeTicket })
    const { issue, open, store, host } = await serveTickets(t, { auth: { cluster: driver, handshakeTimeout: 60 }, fastify: logTo(stream) })
    store.put('s1', sessionOf())
    const refused = await open(await issue(), { headers: { cookie: cookieFor('s1'), origin: `http://${host}` } })
    t.strictSame([refused.status, codeOf(refused.body)], [503, UNAVAILABLE], name)
    t.equal((await open(await issue(), { protocols: [NAME] })).code, 4012, name)
    t.notMatch(text(), 'canary')
    if (name !== 'hangs') t.match(text(), 'authentication failed in ticket')
  }
})

interface Kept { origin: string | null, credential: Record<string, unknown> }

/** What a ticket of this version leaves behind. */
async function keptOf (t: Test, headers: Record<string, string>, store = new MapStore()): Promise<Kept> {
  const { driver, kept } = ticketCluster()
  const { issue } = await serveTickets(t, { store, auth: { cluster: driver } })
  const ticket = await issue(headers)
  const [value = ''] = kept.values()
  return JSON.parse(unseal(value, ticket) ?? '') as Kept
}

t.test('a ticket keeps what names its credential again, and nothing of the rest', async t => {
  const store = new MapStore().put('s1', sessionOf())
  const exp = inSeconds(100)
  const claims = { sub: 'alice', companyId: 'acme', role: 'admin', permissions: ['a'], jti: 'j1', iat: inSeconds(0), exp, deep: { list: [1, null] } }
  t.strictSame(await keptOf(t, { ...bearer(goodToken(claims)), origin: PAGE }), {
    origin: PAGE, credential: { authType: 'jwt', userId: 'alice', tenantId: 'acme', claims, tokenId: 'j1' }
  })
  const nameless = await keptOf(t, bearer(goodToken({ jti: undefined })))
  t.match(nameless, { origin: null, credential: { authType: 'jwt', userId: 'alice', tenantId: null } })
  t.match(nameless.credential.tokenId, /^sha256:[A-Za-z0-9_-]{43}$/, 'the hash of a token without jti')
  t.strictSame(await keptOf(t, { cookie: cookieFor('s1') }, store), { origin: null, credential: { authType: 'session', userId: 'bob', tenantId: 'acme', sessionId: 's1' } })
})

t.test('whatever else the store holds under a ticket is refused, and reaches no context', async t => {
  let answer: unknown
  const { driver } = ticketCluster({ takeTicket: () => answer as string })
  const { open, store } = await serveTickets(t, { auth: { cluster: driver } })
  store.put('s1', sessionOf())
  let ticket: string = FORGED.jwt
  const { credential: ofToken } = await keptOf(t, bearer(goodToken({ companyId: 'acme' })))
  const { credential: ofSession } = await keptOf(t, { cookie: cookieFor('s1') }, store)
  const attempt = async (given: unknown) => {
    answer = typeof given === 'string' ? seal(given, ticket) : given
    return open(ticket)
  }
  const keep = (credential: unknown, more: object = { origin: null }) => JSON.stringify({ ...more, credential })
  const presentAs = ({ authType }: Record<string, unknown>) => { ticket = authType === 'session' ? FORGED.session : FORGED.jwt }
  for (const credential of [ofToken, ofSession]) {
    presentAs(credential)
    t.equal((await attempt(keep(credential))).status, 101)
  }

  for (const text of ['', 'not json', '{"origin":null', '{"origin":null,"credential":{}', undefined, {}, [], Buffer.from('x')]) {
    const { status, body } = await attempt(text)
    t.ok([401, 503].includes(status), `${JSON.stringify(text)}: ${status}`)
    t.ok([INVALID, UNAVAILABLE].includes(String(codeOf(body))))
  }
  const shapes = [
    null, '1', 'null', '[]', '{}', '"x"', 'true', 1, true, keep(ofToken, {}), keep(ofToken, { origin: 1 }), keep(ofToken, { origin: [null] }), keep(ofToken, { origin: null, more: 1 }), keep(null), keep([]), keep('x'), keep({}),
    JSON.stringify({ origin: null, context: ofToken }), JSON.stringify({ origin: null, credential: ofToken, context: ofToken }), JSON.stringify({ origin: null })
  ]
  for (const shape of shapes) {
    const { status, body } = await attempt(shape)
    t.strictSame([status, codeOf(body)], [401, INVALID], String(shape).slice(0, 60))
  }
  for (const credential of [ofToken, ofSession]) {
    presentAs(credential)
    for (const name of Object.keys(credential)) {
      const bad = [null, {}, [], true, 1.5, 'x'].filter(value => {
        if (name === 'tenantId') return value !== null || credential.tenantId !== null
        return name !== 'tokenId' || value !== 'x'
      })
      for (const value of bad) {
        const { status, body } = await attempt(keep({ ...credential, [name]: value }))
        t.strictSame([status, codeOf(body)], [401, INVALID], `${String(credential.authType)}: ${name} ${JSON.stringify(value)}`)
      }
      const { [name]: _left, ...rest } = credential
      t.equal((await attempt(keep(rest))).status, 401, `${String(credential.authType)}: no ${name}`)
    }
  }
  const claims = ofToken.claims as Record<string, unknown>
  const worse: object[] = [
    { ...ofToken, more: 1 }, { ...ofToken, sessionId: 's1' }, { ...ofSession, claims }, { ...ofToken, authType: 'basic' }, { ...ofToken, authType: 'session' }, { ...ofSession, authType: 'jwt' },
    { ...ofToken, via: 'ticket' }, { ...ofToken, permissions: [] }, { ...ofToken, userId: 'eve' }, { ...ofToken, tenantId: null }, { ...ofToken, tenantId: 'other' }, { ...ofSession, userId: 'eve' },
    { ...ofSession, sessionId: 's2' }, { ...ofSession, sessionId: '' }, { ...ofSession, expiresAt: 1 }, { ...ofToken, expiresAt: null }, { ...ofToken, expiresAt: inSeconds(100) * 1000 }, { ...ofToken, claims: { ...claims, sub: 'eve' } }, { ...ofToken, claims: { ...claims, sub: 1 } },
    { ...ofToken, claims: { ...claims, exp: 1 } }, { ...ofToken, claims: { ...claims, exp: undefined } }, { ...ofToken, claims: { ...claims, exp: 'x' } }, { ...ofToken, claims: { ...claims, nbf: inSeconds(100) } },
    { ...ofToken, claims: { ...claims, cnf: {} } }, { ...ofToken, claims: { ...claims, aud: 1 } }, { ...ofToken, claims: { ...claims, companyId: 'other' } }
  ]
  for (const credential of worse) {
    presentAs(Object.hasOwn(credential, 'sessionId') ? ofSession : ofToken)
    const { status, body } = await attempt(keep(credential))
    t.strictSame([status, codeOf(body)], [401, INVALID], JSON.stringify(credential).slice(0, 100))
  }
})

t.test('poisoned keys and endless nesting in what the store holds reach no context and no prototype', async t => {
  let answer = ''
  const { driver } = ticketCluster({ takeTicket: () => answer })
  const { open, contexts } = await serveTickets(t, { auth: { cluster: driver } })
  const { credential } = await keptOf(t, bearer())
  const text = JSON.stringify(credential)
  for (const poisoned of [
    `{"__proto__":{"origin":null,"credential":${text}}}`,
    `{"origin":null,"credential":{"__proto__":${text}}}`,
    `{"origin":null,"__proto__":{"credential":${text}}}`,
    `{"origin":null,"credential":${text.replace('"claims":', '"constructor":')}}`,
    `{"origin":null,"credential":${text.replace('"claims":{"sub":"alice"', '"claims":{"__proto__":{"sub":"alice"}')}}`
  ]) {
    answer = seal(poisoned, FORGED.jwt)
    t.equal((await open(FORGED.jwt)).status, 401, poisoned.slice(0, 60))
  }
  answer = seal(`{"origin":null,"credential":${text.replace('"claims":{', '"claims":{"__proto__":{"role":"admin"},"constructor":1,"prototype":[],"deep":{"__proto__":{"role":"admin"},"a":1},')}}`, FORGED.jwt)
  const { status } = await open(FORGED.jwt, { path: '/seen' })
  t.equal(status, 101, 'what is not read does no harm')
  const [seen] = contexts
  if (seen?.authType !== 'jwt') throw new Error('not a token')
  t.strictSame([seen.userId, seen.role, Reflect.get(seen.user, 'role'), Reflect.get(seen.claims, 'role')], ['alice', null, null, undefined])
  t.strictSame([Object.hasOwn(seen.claims, 'constructor'), Object.hasOwn(seen.claims, '__proto__'), Object.hasOwn(seen.claims, 'prototype')], [false, false, false])
  t.strictSame(seen.claims.deep, { a: 1 })
  t.ok([Object.prototype, null].includes(Object.getPrototypeOf(seen.claims) as object | null))
  t.equal(Reflect.get({}, 'role'), undefined)
  answer = seal(`{"origin":null,"credential":${text.replace('"claims":{', `"claims":{"deep":${'['.repeat(100)}${']'.repeat(100)},`)}}`, FORGED.jwt)
  t.equal((await open(FORGED.jwt)).status, 503)
})

t.test('a ticket of one registration\'s issuer does not open another registration\'s socket, and is not used up there', async t => {
  const { driver: cluster, asked } = ticketCluster()
  const [one, two, any] = [
    await serveTickets(t, { auth: { cluster, jwt: { ...JWT, issuer: 'https://one.example.com' } } }),
    await serveTickets(t, { auth: { cluster, jwt: { ...JWT, issuer: 'https://two.example.com' } } }),
    await serveTickets(t, { auth: { cluster, jwt: { ...JWT, issuer: ['https://one.example.com', 'https://two.example.com'] } } })
  ]
  const headers = (name: string) => bearer(goodToken({ iss: `https://${name}.example.com`, companyId: 'acme' }))
  t.equal((await upgrade(t, two.host, { headers: headers('one') })).status, 401, 'as its token does not')
  const tries = [
    { from: one, name: 'one', to: two }, { from: two, name: 'two', to: one }, { from: any, name: 'one', to: two },
    { from: one, name: 'one', to: any }, { from: any, name: 'two', to: two }
  ]
  for (const { from, name, to } of tries) {
    const ticket = await from.issue(headers(name))
    const { status, body } = await to.open(ticket)
    t.strictSame([status, codeOf(body)], [401, INVALID])
    t.match(await from.open(ticket), { status: 101, context: { issuer: `https://${name}.example.com`, tenantId: 'acme' } }, 'it is still good where it was issued')
    t.equal((await from.open(ticket)).status, 401, 'once')
  }
  t.equal(asked.all.length, 3 * tries.length)
})

t.test('a ticket does not stand for a token that this registration would refuse for its key, algorithm, issuer, audience or typ', async t => {
  const cluster = memoryCluster()
  const own = { ...JWT, algorithms: ['HS256', 'HS384'], issuer: ['us', 'them'], audience: ['web', 'api'], typ: 'JWT', key: 'k'.repeat(48) } as const
  const token = signHs256(goodClaims({ iss: 'us', aud: 'web' }), {}, own.key)
  const issuing = await serveTickets(t, { auth: { cluster, jwt: own } })
  const others: Array<[string, Partial<NonNullable<HybridAuthOptions['jwt']>>]> = [
    ['another key', { key: 'another secret for tests, of 48 bytes or even more' }], ['another algorithm', { algorithms: ['HS384'] }], ['another issuer', { issuer: 'them' }], ['another audience', { audience: 'api' }], ['another typ', { typ: 'at+jwt' }],
    ['a key in a map', { key: { k1: { key: own.key, algorithm: 'HS256' } } }], ['a key of a function', { key: () => null }]
  ]
  for (const [name, jwt] of others) {
    const { open, host } = await serveTickets(t, { auth: { cluster, jwt: { ...own, ...jwt } } })
    t.equal((await upgrade(t, host, { headers: bearer(token) })).status, 401, `a token: ${name}`)
    const ticket = await issuing.issue(bearer(token))
    const { status, body } = await open(ticket)
    t.strictSame([status, codeOf(body)], [401, INVALID], `a ticket: ${name}`)
    t.equal((await issuing.open(ticket)).status, 101, `it is not used up: ${name}`)
  }
  const sister = await serveTickets(t, { auth: { cluster, jwt: { ...own } } })
  t.equal((await sister.open(await issuing.issue(bearer(token)))).status, 101, 'and one that takes the same tokens takes their tickets')
})

t.test('a ticket of a session opens wherever its session does, whatever tokens are taken there', async t => {
  const cluster = memoryCluster()
  const store = new MapStore().put('s1', sessionOf())
  const headers = { cookie: cookieFor('s1') }
  const { issue } = await serveTickets(t, { store, auth: { cluster } })
  for (const jwt of [JWT, { ...JWT, issuer: 'https://one.example.com' }, { ...JWT, key: 'another secret for tests, 32 bytes or more' }, undefined]) {
    const { open } = await serveTickets(t, { store, auth: { cluster, jwt } })
    const ticket = await issue(headers)
    t.match(await open(ticket), { status: 101, context: { userId: 'bob', sessionId: 's1', via: 'ticket' } })
    t.equal((await open(ticket)).status, 401, 'once')
  }
})

t.test('the claims of a ticket are held to what the registration that it opens asks of a token', async t => {
  const cluster = memoryCluster()
  const clock = setClock(t)
  const { issue } = await serveTickets(t, { auth: { cluster, jwt: { ...JWT, allowNoExpiry: true, clockTolerance: 60 } } })
  const asks: Array<[string, Record<string, unknown>, Partial<NonNullable<HybridAuthOptions['jwt']>>, number]> = [
    ['nothing else', {}, {}, 101],
    ['an end, and it has none', { exp: undefined }, {}, 401],
    ['no end', { exp: undefined }, { allowNoExpiry: true }, 101],
    ['an end that is over', { exp: inSeconds(-10) }, {}, 401],
    ['an end that is not over by its clock', { exp: inSeconds(-10) }, { clockTolerance: 30 }, 101],
    ['a start that is still to come', { nbf: inSeconds(10) }, {}, 401],
    ['a start that has come by its clock', { nbf: inSeconds(10) }, { clockTolerance: 30 }, 101],
    ['an age', { iat: inSeconds(-100) }, { maxAge: 300 }, 101],
    ['another age', { iat: inSeconds(-100) }, { maxAge: 50 }, 401],
    ['an age, and it says none', { iat: undefined }, { maxAge: 300 }, 401]
  ]
  for (const [name, claims, jwt, status] of asks) {
    const asking = await serveTickets(t, { auth: { cluster, jwt: { ...JWT, ...jwt } } })
    const ticket = await issue(bearer(goodToken(claims)))
    const { status: answered, body } = await asking.open(ticket)
    t.equal(answered, status, name)
    if (status !== 101) t.equal(codeOf(body), INVALID, name)
    const again = await serveTickets(t, { auth: { cluster, jwt: { ...JWT, allowNoExpiry: true, clockTolerance: 60 } } })
    t.equal((await again.open(ticket)).status, 401, `${name}: it was found, and is used up`)
  }
  const aging = await serveTickets(t, { auth: { cluster, jwt: { ...JWT, maxAge: 60 } } })
  const ticket = await aging.issue({ ...bearer(), ttl: '300000' })
  clock.move(61_000)
  t.equal((await aging.open(ticket)).status, 401, 'an age that is reached while it waits')
})

t.test('jwt.user is asked anew when a ticket is redeemed, and names the same user or nobody', async t => {
  const { stream, text } = keepLines()
  let user: (claims: Record<string, unknown>) => unknown = ({ sub }) => ({ userId: String(sub), permissions: ['old'] })
  const { issue, open } = await serveTickets(t, { fastify: logTo(stream), auth: { handshakeTimeout: 60, jwt: { ...JWT, user: claims => user(claims) as null } } })
  const asked: unknown[] = []
  const redeemed = async (then: typeof user) => {
    const before = user
    const ticket = await issue(bearer(goodToken({ deep: { list: [1] } })))
    user = claims => {
      asked.push(claims)
      return then(claims)
    }
    const answer = await open(ticket)
    user = before
    return answer
  }
  t.match(await redeemed(({ sub }) => ({ userId: String(sub), permissions: ['new'], role: 'admin' })), { status: 101, context: { userId: 'alice', permissions: ['new'], role: 'admin', via: 'ticket' } })
  t.match(await redeemed(async ({ sub }) => ({ userId: String(sub) })), { status: 101, context: { userId: 'alice', permissions: [] } })
  t.match(asked, [{ sub: 'alice', deep: { list: [1] } }, { sub: 'alice' }])
  t.ok(asked.every(claims => Object.isFrozen(claims)), 'frozen, as those of a token are')
  const refusals: Array<[string, typeof user]> = [
    ['nobody', () => null], ['nobody, later', async () => null], ['somebody else', () => ({ userId: 'eve' })], ['somebody of a tenant', () => ({ userId: 'alice', tenantId: 'acme' })], ['no identity', () => ({ userId: 1 })]
  ]
  for (const [name, then] of refusals) {
    const { status, body } = await redeemed(then)
    t.strictSame([status, codeOf(body)], [401, INVALID], name)
  }
  t.match(text(), 'jwt.user returned something that is no identity')
  for (const then of [() => { throw new Error('canary-4711') }, () => Promise.reject(new Error('canary-4711')), () => never()]) {
    const { status, body } = await redeemed(then)
    t.strictSame([status, codeOf(body)], [503, UNAVAILABLE])
  }
  t.notMatch(text(), 'canary')
})

t.test('a user of the same id that another registration maps to another tenant is not let in', async t => {
  const cluster = memoryCluster()
  const of = (tenantId: string | null) => serveTickets(t, { auth: { cluster, jwt: { ...JWT, user: ({ sub = '' }) => ({ userId: sub, tenantId }) } } })
  const [acme, other, none] = [await of('acme'), await of('other'), await of(null)]
  for (const [from, to] of [[acme, other], [acme, none], [none, acme]] as const) {
    const { status, body } = await to.open(await from.issue())
    t.strictSame([status, codeOf(body)], [401, INVALID])
  }
  const again = await of('acme')
  t.match(await again.open(await acme.issue()), { status: 101, context: { userId: 'alice', tenantId: 'acme' } })
})

t.test('a ticket of a kind of credential that this node does not take is refused', async t => {
  const cluster = memoryCluster()
  const store = new MapStore().put('s1', sessionOf())
  const { issue } = await serveTickets(t, { store, auth: { cluster } })
  const tokensOnly = await serveTickets(t, { store, auth: { cluster, session: undefined } })
  const sessionsOnly = await serveTickets(t, { store, auth: { cluster, jwt: undefined } })
  t.equal((await sessionsOnly.open(await issue({ cookie: cookieFor('s1') }))).status, 101)
  t.equal((await tokensOnly.open(await issue())).status, 101)
  for (const refused of [await tokensOnly.open(await issue({ cookie: cookieFor('s1') })), await sessionsOnly.open(await issue())]) {
    t.strictSame([refused.status, codeOf(refused.body)], [401, INVALID])
  }
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

t.test('the memory cluster keeps 100 000 tickets, sweeps what has expired, and says when it can keep no more', async t => {
  const clock = setClock(t)
  clock.freeze()
  const cluster = memoryCluster().join(nobody)
  for (let n = 0; n < 100_000; n++) await cluster.putTicket(`k${n}`, 'v', 1000)
  t.throws(() => cluster.putTicket('one more', 'v', 1000), { code: UNAVAILABLE })
  t.equal(await cluster.takeTicket('k5'), 'v')
  t.equal(await cluster.takeTicket('k5'), OVER)
  await cluster.putTicket('one more', 'v', 1000)
  t.throws(() => cluster.putTicket('another', 'v', 1000), { code: UNAVAILABLE })
  clock.move(999)
  t.throws(() => cluster.putTicket('another', 'v', 1000), { code: UNAVAILABLE })
  t.equal(await cluster.takeTicket('k6'), 'v')
  clock.move(1)
  t.equal(await cluster.takeTicket('k7'), OVER)
  for (let n = 0; n < 100_000; n++) await cluster.putTicket(`l${n}`, 'w', 1000)
  t.equal(await cluster.takeTicket('k8'), null)
  t.equal(await cluster.takeTicket('l0'), 'w')
})

t.test('the memory cluster sweeps what has expired behind a ticket that has not', async t => {
  const clock = setClock(t)
  clock.freeze()
  const cluster = memoryCluster().join(nobody)
  await cluster.putTicket('long', 'v', 300_000)
  for (let n = 1; n < 100_000; n++) await cluster.putTicket(`k${n}`, 'v', 1000)
  clock.move(1000)
  const put = () => cluster.putTicket('new', 'v', 1000)
  t.doesNotThrow(put, 'one of 100 000 is left')
  t.equal(await cluster.takeTicket('new'), 'v')
  t.equal(await cluster.takeTicket('long'), 'v')
  for (let n = 1; n < 100_000; n += 9999) t.equal(await cluster.takeTicket(`k${n}`), null)
  for (let n = 0; n < 100_000; n++) await cluster.putTicket(`l${n}`, 'w', n % 2 === 0 ? 300_000 : 1000)
  t.throws(put, { code: UNAVAILABLE })
  clock.move(1000)
  for (let n = 0; n < 50_000; n++) await cluster.putTicket(`m${n}`, 'x', 300_000)
  t.throws(put, { code: UNAVAILABLE }, 'as many as had expired')
  t.equal(await cluster.takeTicket('l0'), 'w')
  t.equal(await cluster.takeTicket('l1'), null)
})

type Key = NonNullable<HybridAuthOptions['jwt']>['key']

/** The realm of a registration of this key. */
const realmOfKey = (key: Key, algorithms: NonNullable<HybridAuthOptions['jwt']>['algorithms'] = ['HS256']) => realmFor({ key, algorithms })

t.test('the realm of a registration is a hash that is the same wherever its options are, and names none of them', async t => {
  t.match(realmFor(), /^[A-Za-z0-9_-]{43}$/)
  t.equal(realmFor(), realmFor())
  t.notMatch(realmFor(), SECRET)
  t.equal(realmFor({ clockTolerance: 5, maxAge: 60, maxTokenLength: 100, allowNoExpiry: true, user: () => null }), realmFor(), 'what decides when a token counts, and for whom, is asked again')
  t.equal(realmFor({ issuer: 'us', audience: 'web' }), realmFor({ issuer: ['us'], audience: ['web'] }), 'one name is a list of one')
  const realms = [
    realmFor(), realmFor({ algorithms: ['HS512'] }), realmFor({ algorithms: ['HS256', 'HS384'] }), realmFor({ issuer: 'us' }), realmFor({ issuer: ['us', 'web'] }), realmFor({ audience: 'us' }), realmFor({ issuer: 'us', audience: 'web' }),
    realmFor({ issuer: 'web', audience: 'us' }), realmFor({ issuer: '["us"]' }), realmFor({ typ: 'us' }), realmFor({ typ: 'JWT' }), realmFor({ key: 'another secret for tests, 32 bytes or more' })
  ]
  t.equal(new Set(realms).size, realms.length, 'each of them makes another')
})

t.test('the realm of a key is that of its material, whatever form it has', async t => {
  const other = 'another secret for tests, 32 bytes or more'
  const pairs = [0, 1].map(() => generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey)
  const [one, two] = pairs
  if (one === undefined || two === undefined) throw new Error('no keys')
  const pem = (key: KeyObject) => String(key.export({ type: 'spki', format: 'pem' }))
  const ed448 = [0, 1].map(() => generateKeyPairSync('ed448').publicKey)
  const rsa = [0, 1].map(() => generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey)
  const forms: Array<[string, Parameters<typeof realmOfKey>[1], () => Key, () => Key]> = [
    ['a text', ['HS256'], () => SECRET, () => other],
    ['a Buffer', ['HS256'], () => Buffer.from(SECRET), () => Buffer.from(other)],
    ['a Buffer of any bytes', ['HS256'], () => Buffer.alloc(32, 0xfe), () => Buffer.alloc(32, 0xff)],
    ['a secret KeyObject', ['HS256'], () => createSecretKey(Buffer.from(SECRET)), () => createSecretKey(Buffer.from(other))],
    ['a public KeyObject', ['ES256'], () => createPublicKey(pem(one)), () => createPublicKey(pem(two))],
    ['a public KeyObject of RSA', ['RS256'], () => rsa[0] ?? '', () => rsa[1] ?? ''],
    ['a public KeyObject of Ed448', ['EdDSA'], () => ed448[0] ?? '', () => ed448[1] ?? ''],
    ['PEM', ['ES256'], () => pem(one), () => pem(two)],
    ['a pinned text', ['HS256'], () => ({ key: SECRET, algorithm: 'HS256' }), () => ({ key: other, algorithm: 'HS256' })],
    ['a pinned Buffer', ['HS256'], () => ({ key: Buffer.from(SECRET), algorithm: 'HS256' }), () => ({ key: Buffer.from(other), algorithm: 'HS256' })],
    ['a pinned KeyObject', ['ES256'], () => ({ key: createPublicKey(pem(one)), algorithm: 'ES256' }), () => ({ key: createPublicKey(pem(two)), algorithm: 'ES256' })],
    ['another pin', ['HS256', 'HS384'], () => ({ key: SECRET, algorithm: 'HS256' }), () => ({ key: SECRET, algorithm: 'HS384' })],
    ['a map of texts', ['HS256'], () => ({ k1: SECRET, k2: other }), () => ({ k1: other, k2: SECRET })],
    ['a map of Buffers', ['HS256'], () => ({ k1: Buffer.from(SECRET) }), () => ({ k1: Buffer.from(other) })],
    ['a map of KeyObjects', ['ES256'], () => ({ k1: createPublicKey(pem(one)) }), () => ({ k1: createPublicKey(pem(two)) })],
    ['a map of pins', ['ES256'], () => ({ k1: { key: createPublicKey(pem(one)), algorithm: 'ES256' } }), () => ({ k1: { key: createPublicKey(pem(two)), algorithm: 'ES256' } })],
    ['a map by other names', ['HS256'], () => ({ k1: SECRET }), () => ({ k2: SECRET })],
    ['a map of one more', ['HS256'], () => ({ k1: SECRET }), () => ({ k1: SECRET, k2: other })]
  ]
  const realms: string[] = []
  for (const [name, algorithms, make, makeOther] of forms) {
    t.equal(realmOfKey(make(), algorithms), realmOfKey(make(), algorithms), `${name}: made anew`)
    t.not(realmOfKey(make(), algorithms), realmOfKey(makeOther(), algorithms), `${name}: another`)
    realms.push(realmOfKey(makeOther(), algorithms))
  }
  const half = createPublicKey({ key: generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }), format: 'jwk' })
  t.equal(realmOfKey(half, ['EdDSA']), realmOfKey(createPublicKey(pem(half)), ['EdDSA']), 'a KeyObject of a JWK and of PEM is the same')
})

t.test('of a key function the realm knows only that it is one', async t => {
  const [one, two] = [() => SECRET, async () => null]
  t.equal(realmOfKey(one), realmOfKey(two))
  t.not(realmOfKey(one), realmOfKey(SECRET))
  t.not(realmOfKey(one), realmOfKey({ function: SECRET }))
  t.not(realmFor({ key: one, issuer: 'us' }), realmFor({ key: one }))
})

t.test('a key that has no realm is refused as one that cannot be used, naming the option', async t => {
  const cycle: Record<string, unknown> = {}
  cycle.k1 = cycle
  const keys: Array<[string, unknown, string, string]> = [
    ['DSA', generateKeyPairSync('dsa', { modulusLength: 1024, divisorLength: 160 }).publicKey, 'ES256', 'jwt.key'],
    ['RSA-PSS', generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).publicKey, 'PS256', 'jwt.key'],
    ['a curve without a name among JWKs', generateKeyPairSync('ec', { namedCurve: 'secp224r1' }).publicKey, 'ES256', 'jwt.key'],
    ['one in a map', { k1: generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).publicKey }, 'PS256', 'jwt.key.k1'],
    ['a bigint', 1n, 'HS256', 'jwt.key'],
    ['a cycle', cycle, 'HS256', 'jwt.key.k1']
  ]
  for (const [name, key, algorithm, path] of keys) {
    const registered = serve(t, async app => { await app.register(hybridAuth, { jwt: { key: key as string, algorithms: [algorithm as 'HS256'] } }) })
    await t.rejects(registered, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`\\b${path}\\b`) }, name)
  }
})
