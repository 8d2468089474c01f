/** Credentials that look like guesses: what counts, by whom, in which window, who is refused for it and who is not. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import type { FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import hybridAuth, { type AuditEvent, type HybridAuthOptions } from '../lib/index.js'
import { goodClaims, goodToken, inSeconds, JWT, SECRET, SESSION, SESSION_SECRET, signHs256, signRaw, upgrade, type Upgrade } from './helpers.js'
import { HOUR, setClock } from './live.js'
import { driverOf, untyped } from './revoking.js'
import { ask, codeOf, cookieFor, liveRoutes, MapStore, never, serve, type Answer } from './stores.js'
import { authFrame, connected, updateFrame } from './wire.js'

const TOO_MANY = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const MINUTE = 60_000
const WINDOW = 300_000
const NAME = 'hybrid-auth.v1'
const OTHER_SECRET = 'a secret that no server here has ever known'
const FAR = { exp: inSeconds(90 * 86_400) }
const BOB = { userId: 'bob' }

const someone = () => randomBytes(6).toString('hex')
/** Signed by somebody else, of whom it says it is. */
const forged = (sub = someone(), claims: Record<string, unknown> = {}) => signHs256(goodClaims({ sub, ...FAR, ...claims }), {}, OTHER_SECRET)
const lasting = (changes: Record<string, unknown> = {}) => goodToken({ ...FAR, ...changes })
const forgedCookie = () => cookieFor(someone(), { secret: OTHER_SECRET })
const unknownTicket = (kind = 'j') => kind + randomBytes(32).toString('base64url')
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const from = (address: string) => ({ 'x-forwarded-for': address })
let given = 0
/** One that nobody had before. */
const newAddress = () => `198.51.${100 + (++given >> 8)}.${given & 255}`

interface GuardedOptions {
  failures?: HybridAuthOptions['failures']
  auth?: Partial<HybridAuthOptions>
  fastify?: FastifyServerOptions
  /** Who reads sessions: what @fastify/session loaded, or the store. */
  reader?: 'request' | 'store'
}

/** A server that takes an address from whoever says one. */
async function guarded (t: Test, { failures = { max: 3 }, auth = {}, fastify = {}, reader = 'request' }: GuardedOptions = {}) {
  const alerts: Array<AuditEvent & { type: 'brute_force_suspected' }> = []
  const refusals: Array<AuditEvent & { type: 'refused' }> = []
  const store = new MapStore()
  const served = await serve(t, async app => {
    await app.register(cookie)
    if (reader === 'request') await app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false }, saveUninitialized: false, rolling: false })
    await app.register(websocket)
    await app.register(hybridAuth, {
      jwt: JWT, session: reader === 'request' ? SESSION : { ...SESSION, store, secret: SESSION_SECRET }, credentials: { query: true }, heartbeat: false, failures, ...auth
    })
    liveRoutes(app)
    app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => { socket.send('{}') })
    app.get('/maybe', { websocket: true, auth: { optional: true } }, (socket, request) => { socket.send(JSON.stringify({ who: app.hybridAuth.contextOf(request) })) })
    app.get('/whoever', { auth: { optional: true } }, async request => ({ who: app.hybridAuth.contextOf(request) }))
    app.get('/twice', { auth: { optional: true }, preHandler: app.hybridAuth.require() }, async request => request.auth)
    app.get('/admins', { auth: { role: 'admin' } }, async request => request.auth)
    app.get('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
    app.hybridAuth.events.on('brute_force_suspected', event => { alerts.push(event) })
    app.hybridAuth.events.on('refused', event => { refusals.push(event) })
  }, { trustProxy: true, ...fastify })
  return {
    ...served, alerts, refusals, store,
    cookie (id: string, changes: Record<string, unknown> = {}) {
      store.put(id, { user: BOB, cookie: {}, ...changes })
      return cookieFor(id)
    },
    get: (address: string, headers: Record<string, string> = {}, path = '/me') => ask(served.host, path, { headers: { ...from(address), ...headers } }),
    open: (address: string, { headers = {}, ...rest }: Parameters<typeof upgrade>[2] = {}) => upgrade(t, served.host, { headers: { ...from(address), ...headers }, ...rest })
  }
}
type Guarded = Awaited<ReturnType<typeof guarded>>

/** What came of an attempt, by whatever way, and how long it has to wait. */
type Seen = readonly ['passed' | 'refused' | 'throttled', wait?: number] | readonly [unexpected: string]

function ofAnswer ({ status, headers, body }: Answer): Seen {
  if (status === 200) return ['passed']
  if (status === 401) return ['refused']
  return status === 429 && codeOf(body) === TOO_MANY ? ['throttled', Number(headers.get('retry-after')) * 1000] : [`${status} ${body}`]
}

function ofUpgrade ({ status, headers, body, context, code, reason }: Upgrade): Seen {
  if (status !== 101) return ofAnswer({ status, headers: new Headers(headers), body })
  return context === undefined ? ofClose(code, reason) : ['passed']
}

function ofClose (code: number, reason: string): Seen {
  if (code === 4001) return ['refused']
  const { code: name, action, retryAfterMs } = JSON.parse(reason) as Record<string, unknown>
  return code === 4008 && name === 'rate_limited' && action === 'retry' ? ['throttled', Number(retryAfterMs)] : [`${code} ${reason}`]
}

async function firstMessage (t: Test, { host }: Guarded, address: string, token = forged(), headers: Record<string, string> = {}): Promise<Seen> {
  const peer = await connected(t, host, { path: '/first', token: null, headers: { ...from(address), ...headers } })
  peer.send(authFrame(token))
  const outcome = await Promise.race([peer.closed, peer.heard.next()])
  peer.socket.terminate()
  return typeof outcome === 'string' ? ['passed'] : ofClose(outcome.code, outcome.reason)
}

/** On a socket that is open already. */
async function update (peer: Awaited<ReturnType<typeof connected>>, token = forged()): Promise<Seen> {
  peer.send(updateFrame(token))
  const outcome = await Promise.race([peer.closed, peer.heard.next()])
  if (typeof outcome !== 'string') return ofClose(outcome.code, outcome.reason)
  const { type, code, action, retryAfterMs } = JSON.parse(outcome) as Record<string, unknown>
  if (type === 'auth_updated') return ['passed']
  if (type === 'error' && code === 'refresh_failed') return ['refused']
  return type === 'error' && code === 'rate_limited' && action === 'retry' ? ['throttled', Number(retryAfterMs)] : [outcome]
}

async function opened (t: Test, { host }: Guarded, address: string, token = lasting()) {
  const peer = await connected(t, host, { token, headers: from(address) })
  await peer.heard.next()
  return peer
}

/** One guess by every way in. */
const WAYS: Readonly<Record<string, (t: Test, server: Guarded, address: string) => Promise<Seen>>> = {
  'HTTP header': async (_t, server, address) => ofAnswer(await server.get(address, bearer(forged()))),
  'HTTP query': async (_t, server, address) => ofAnswer(await server.get(address, {}, `/me?token=${forged()}`)),
  'HTTP cookie': async (_t, server, address) => ofAnswer(await server.get(address, { cookie: forgedCookie() })),
  'upgrade header': async (_t, server, address) => ofUpgrade(await server.open(address, { headers: bearer(forged()) })),
  'upgrade header, told by close': async (_t, server, address) => ofUpgrade(await server.open(address, { headers: bearer(forged()), protocols: [NAME] })),
  subprotocol: async (_t, server, address) => ofUpgrade(await server.open(address, { protocols: [NAME, `bearer.${forged()}`] })),
  'upgrade query': async (_t, server, address) => ofUpgrade(await server.open(address, { path: `/live?token=${forged()}` })),
  'upgrade cookie': async (_t, server, address) => ofUpgrade(await server.open(address, { headers: { cookie: forgedCookie(), origin: `http://${server.host}` } })),
  ticket: async (_t, server, address) => ofUpgrade(await server.open(address, { path: `/live?ticket=${unknownTicket()}` })),
  'first message': (t, server, address) => firstMessage(t, server, address),
  async auth_update (t, server, address) {
    const peer = await opened(t, server, address)
    const seen = await update(peer)
    peer.socket.terminate()
    return seen
  }
}

const isThrottled = ([outcome, wait = 0]: Seen, longest = WINDOW) => outcome === 'throttled' && wait > 0 && wait <= longest

for (const max of [1, 3, undefined]) {
  const limit = max ?? 10
  t.test(`CASE 80: failures.max ${max ?? 'left out'}: ${limit} forged tokens are refused with 401, the last raises the alert, the next is answered 429`, async t => {
    const server = await guarded(t, { failures: max === undefined ? {} : { max } })
    const address = newAddress()
    for (let n = 1; n <= limit; n++) {
      const { status, headers, body } = await server.get(address, { 'user-agent': 'a tool', ...bearer(forged('alice')) })
      t.same([status, codeOf(body), headers.get('retry-after')], [401, 'FST_HYBRID_AUTH_INVALID_TOKEN', null], `failure ${n}`)
      t.equal(server.alerts.length, n === limit ? 1 : 0, `after failure ${n}`)
    }
    t.match(server.alerts, [{ type: 'brute_force_suspected', by: ['address', 'identity'], claimed: { userId: 'alice', issuer: null }, ip: address, route: '/me', websocket: false, userAgent: 'a tool' }])
    for (const more of [1, 2, 3]) {
      const { status, headers, body } = await server.get(address, bearer(forged('alice')))
      t.same([status, codeOf(body)], [429, TOO_MANY], `${more} more`)
      t.ok(Number(headers.get('retry-after')) > 290 && Number(headers.get('retry-after')) <= 300)
      t.same([headers.get('www-authenticate'), headers.get('cache-control')], [null, 'no-store'])
    }
    t.match(server.refusals.at(-1), { code: TOO_MANY, enforced: true, ip: address })
    t.equal(server.alerts.length, 1)
    t.same(ofAnswer(await server.get(newAddress(), bearer(forged()))), ['refused'], 'another address')
  })
}

for (const reader of ['request', 'store'] as const) {
  t.test(`CASE 80: all ways in share one counter, and every one of them is throttled by it (sessions read from the ${reader})`, async t => {
    const ways = Object.entries(WAYS)
    const server = await guarded(t, { failures: { max: ways.length }, reader })
    const address = newAddress()
    for (const [name, guess] of ways) {
      t.equal(server.alerts.length, 0)
      t.same(await guess(t, server, address), ['refused'], name)
    }
    t.match(server.alerts, [{ by: ['address'], ip: address }])
    for (const [name, guess] of ways) t.ok(isThrottled(await guess(t, server, address)), `${name} is throttled`)
    t.equal(server.alerts.length, 1)
  })
}

t.test('CASE 80: whichever way the last failure came, the next is throttled', async t => {
  const server = await guarded(t, { failures: { max: 1 } })
  for (const [name, guess] of Object.entries(WAYS)) {
    const address = newAddress()
    t.same(await guess(t, server, address), ['refused'], name)
    t.ok(isThrottled(ofAnswer(await server.get(address, bearer(forged())))), name)
  }
  t.equal(server.alerts.length, Object.keys(WAYS).length)
})

t.test('CASE 80: whatever looks like a guess counts', async t => {
  const server = await guarded(t, { failures: { max: 1 }, auth: { jwt: { ...JWT, key: { one: SECRET } } } })
  // Who is claimed is counted as well, and here that is nobody.
  const claims = { ...goodClaims(FAR), sub: undefined, name: 'alice' }
  const [head = '', payload = '', signature = ''] = signHs256(claims, { kid: 'one' }).split('.')
  const flipped = `${signature.startsWith('A') ? 'B' : 'A'}${signature.slice(1)}`
  const tokens: Record<string, string> = {
    'another key': signHs256(claims, { kid: 'one' }, OTHER_SECRET),
    'a signature with one bit changed': `${head}.${payload}.${flipped}`,
    'a short signature': `${head}.${payload}.${signature.slice(0, 20)}`,
    'no signature': `${head}.${payload}.`,
    'claims of somebody else': `${head}.${Buffer.from(JSON.stringify({ ...claims, sub: 'root' })).toString('base64url')}.${signature}`,
    'an unknown kid': signHs256(claims, { kid: 'two' }),
    'no kid': signHs256(claims),
    'a kid that is a path': signHs256(claims, { kid: '../one' }),
    'alg none': signRaw('{"alg":"none"}', JSON.stringify(claims)),
    'another algorithm': signHs256(claims, { kid: 'one', alg: 'HS512' }),
    'a key of its own': signHs256(claims, { kid: 'one', jwk: {} }),
    'an expired token that is forged as well': signHs256({ ...claims, exp: 1 }, { kid: 'one' }, OTHER_SECRET),
    'one word': 'x',
    'three words': 'a.b.c',
    'two segments': `${head}.${payload}`,
    'a header that is no JSON': signRaw('{', JSON.stringify(claims)),
    'too long': signHs256({ ...claims, pad: 'x'.repeat(9000) }, { kid: 'one' })
  }
  for (const [what, token] of Object.entries(tokens)) {
    const address = newAddress()
    t.same(ofAnswer(await server.get(address, bearer(token))), ['refused'], what)
    t.ok(isThrottled(ofAnswer(await server.get(address, bearer(token)))), what)
  }
  for (const ticket of ['', 'x', unknownTicket(), unknownTicket('s'), unknownTicket('k'), `${unknownTicket()}x`]) {
    const address = newAddress()
    t.same(ofUpgrade(await server.open(address, { path: `/live?ticket=${ticket}` })), ['refused'], `ticket ${ticket}`)
    t.ok(isThrottled(ofUpgrade(await server.open(address, { path: `/live?ticket=${ticket}` }))), `ticket ${ticket}`)
  }
})

for (const reader of ['request', 'store'] as const) {
  t.test(`CASE 80: a forged cookie counts, and one that was signed here never does (sessions read from the ${reader})`, async t => {
    const server = await guarded(t, { failures: { max: 1 }, reader })
    const cookie: Guarded['cookie'] = (...given) => server.cookie(...given)
    const [value = ''] = cookie('known').split('=').slice(1)
    const cookies: Record<string, string> = {
      'another secret': forgedCookie(), unsigned: 'sessionId=known', 'an id of a session, forged': cookieFor('known', { secret: OTHER_SECRET }),
      'another id before a signature': `sessionId=x${value}`, 'a dot': 'sessionId=.', 'a long one': `sessionId=${'x'.repeat(5000)}`
    }
    for (const [what, forgery] of Object.entries(cookies)) {
      const address = newAddress()
      t.same(ofAnswer(await server.get(address, { cookie: forgery })), ['refused'], what)
      t.ok(isThrottled(ofAnswer(await server.get(address, { cookie: forgery }))), what)
    }
    const own: Record<string, string> = {
      'of a session that is gone': cookieFor('gone'), 'of one that is over': cookie('over', { cookie: { expires: new Date(0) } }),
      'of one without a user': cookie('nobody', { user: undefined }), empty: 'sessionId=', 'under another name': 'other=x', 'of one that is damaged': cookie('damaged', { cookie: { expires: 'x' } })
    }
    for (const [what, harmless] of Object.entries(own)) {
      const address = newAddress()
      for (let n = 0; n < 3; n++) t.same(ofAnswer(await server.get(address, { cookie: harmless })), ['refused'], what)
      t.same(ofAnswer(await server.get(address, { cookie: forgedCookie() })), ['refused'], `${what}: was not counted`)
    }
  })
}

t.test('CASE 80: what is merely not good never counts, however often', async t => {
  const clock = setClock(t)
  const isMine = (kid: string | undefined) => kid === undefined || kid === 'mine'
  const server = await guarded(t, {
    failures: { max: 1 },
    auth: {
      jwt: {
        algorithms: ['HS256'], issuer: 'us', audience: 'api',
        key ({ kid }) {
          if (kid === 'throws') throw new Error('the key function')
          if (kid === 'short') return 'short'
          return isMine(kid) ? SECRET : kid === 'late' ? Promise.reject(new Error('later')) : null
        },
        user: ({ sub = '', maps }) => maps === 'throws' ? untyped(JSON.parse('{')) : maps === 'null' ? null : { userId: sub, role: 'agent' }
      }
    }
  })
  const { get, open, host } = server
  const token = (claims: Record<string, unknown> = {}, header = {}) => signHs256({ ...goodClaims(FAR), sub: someone(), iss: 'us', aud: 'api', ...claims }, header)
  const attempts: Record<string, (address: string) => Promise<{ status: number }>> = {
    'an expired token': address => get(address, bearer(token({ exp: inSeconds(-1) }))),
    'no exp': address => get(address, bearer(token({ exp: undefined }))),
    'a wrong audience': address => get(address, bearer(token({ aud: 'web' }))),
    'no audience': address => get(address, bearer(token({ aud: undefined }))),
    'a wrong issuer': address => get(address, bearer(token({ iss: 'them' }))),
    'nbf ahead': address => get(address, bearer(token({ nbf: inSeconds(60) }))),
    'iat ahead': address => get(address, bearer(token({ iat: inSeconds(60) }))),
    'a claim of the wrong type': address => get(address, bearer(token({ exp: '1' }))),
    'nobody, as the mapper says': address => get(address, bearer(token({ maps: 'null' }))),
    'a mapper that throws': address => get(address, bearer(token({ maps: 'throws' }))),
    'a key function that throws': address => get(address, bearer(token({}, { kid: 'throws' }))),
    'a key function that rejects': address => get(address, bearer(token({}, { kid: 'late' }))),
    'a key that cannot be used': address => get(address, bearer(token({}, { kid: 'short' }))),
    'nothing at all': address => get(address),
    'nothing at all, upgrade': address => open(address),
    'another scheme': address => get(address, { authorization: 'Basic YTpi' }),
    'two tokens': address => get(address, { authorization: 'Bearer a b' }),
    'a role that is missing': address => get(address, bearer(token()), '/admins'),
    'a foreign origin with a cookie': address => open(address, { headers: { origin: 'http://evil.example', cookie: forgedCookie() } }),
    'a foreign origin with a forged token': address => open(address, { headers: { origin: 'http://evil.example', ...bearer(forged()) } }),
    'a first message without a token' (address) {
      return connected(t, host, { path: '/first', token: null, headers: from(address) }).then(async ({ send, closed }) => {
        send('{"type":"auth"}')
        return { status: (await closed).code }
      })
    }
  }
  for (const [what, attempt] of Object.entries(attempts)) {
    const address = newAddress()
    for (let n = 0; n < 3; n++) t.ok([400, 401, 403, 503, 4013].includes((await attempt(address)).status), what)
    t.same(ofAnswer(await get(address, bearer(forged()))), ['refused'], `${what}: was not counted`)
  }

  const revoked = token({ sub: 'mallory', jti: 'r' })
  await server.app.hybridAuth.revoke({ token: revoked })
  const used = (await get(newAddress(), bearer(token()), '/ticket')).body
  t.equal((await open(newAddress(), { path: `/live?ticket=${used}` })).status, 101)
  const expired = (await get(newAddress(), bearer(token()), '/ticket')).body
  const elsewhere = (await get(newAddress(), bearer(token()), '/ticket')).body
  clock.move(31_000)
  const late: Record<string, (address: string) => Promise<{ status: number }>> = {
    'a revoked token': address => get(address, bearer(revoked)),
    'a used ticket': address => open(address, { path: `/live?ticket=${used}` }),
    'an expired ticket': address => open(address, { path: `/live?ticket=${expired}` }),
    'a ticket of another page': address => open(address, { path: `/live?ticket=${elsewhere}`, headers: { origin: `http://${host}` } }),
    'two tickets': address => open(address, { path: '/live?ticket=a&ticket=b' })
  }
  for (const [what, attempt] of Object.entries(late)) {
    const address = newAddress()
    for (let n = 0; n < 3; n++) t.ok([400, 401].includes((await attempt(address)).status), what)
    t.same(ofAnswer(await get(address, bearer(forged()))), ['refused'], `${what}: was not counted`)
  }
})

for (const reader of ['request', 'store'] as const) {
  t.test(`a session that is destroyed while its cookie lives on, or a store that is down, counts for nobody (sessions read from the ${reader})`, async t => {
    const server = await guarded(t, { failures: { max: 1 }, reader })
    const own = server.cookie('one')
    t.equal((await server.get('192.0.2.1', { cookie: own })).status, 200)
    server.store.sessions.delete('one')
    for (let n = 0; n < 3; n++) t.equal((await server.get('192.0.2.1', { cookie: own })).status, 401)
    server.store.get = (_id, callback) => { callback(new Error('the store is down')) }
    for (let n = 0; n < 3; n++) t.ok((await server.get('192.0.2.1', { cookie: own })).status >= 500)
    server.store.get = () => { throw new Error('the store is down') }
    for (let n = 0; n < 3; n++) t.ok((await server.get('192.0.2.1', { cookie: own })).status >= 500)
    t.same(ofAnswer(await server.get('192.0.2.1', bearer(forged()))), ['refused'], 'none of it was counted')
  })
}

t.test('Retry-After, in a header, a close reason and an error frame alike, shrinks with time and ends with the window', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await guarded(t, { failures: { max: 2, window: MINUTE } })
  const peer = await opened(t, server, '192.0.2.1')
  await server.get('192.0.2.1', bearer(forged()))
  clock.move(10_000)
  await server.get('192.0.2.1', bearer(forged()))
  for (const [move, left, seconds] of [[0, 50_000, 50], [1, 49_999, 50], [999, 49_000, 49], [48_500, 500, 1], [499, 1, 1]] as const) {
    clock.move(move)
    t.same(ofAnswer(await server.get('192.0.2.1', bearer(forged()))), ['throttled', seconds * 1000], `header, ${left} left`)
    t.same(ofUpgrade(await server.open('192.0.2.1', { headers: bearer(forged()) })), ['throttled', seconds * 1000], `header of an upgrade, ${left} left`)
    t.same(ofUpgrade(await server.open('192.0.2.1', { protocols: [NAME, `bearer.${forged()}`] })), ['throttled', left], `close reason, ${left} left`)
    t.same(await firstMessage(t, server, '192.0.2.1'), ['throttled', left], `first message, ${left} left`)
    t.same(await update(peer), ['throttled', left], `auth_update, ${left} left`)
    t.same(await update(peer, lasting()), ['passed'], 'a good one begins anew')
  }
  clock.move(1)
  t.same(await update(peer), ['refused'], 'the window is over')
})

t.test('an auth_update that is throttled is told so twice, and closed with 4008 at the third', async t => {
  const server = await guarded(t, { failures: { max: 1 } })
  await server.get('192.0.2.1', bearer(forged()))
  const peer = await opened(t, server, '192.0.2.1')
  for (let n = 0; n < 2; n++) t.ok(isThrottled(await update(peer)))
  peer.send(updateFrame(forged()))
  const { code, reason } = await peer.closed
  t.ok(isThrottled(ofClose(code, reason)), reason)
  t.match(peer.heard.all.at(-1), /"type":"bye","code":"rate_limited","action":"retry","retryAfterMs":\d+/)
})

t.test('the window slides: each failure counts for as long as the window is, and refused ones do not prolong it', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await guarded(t, { failures: { max: 3, window: MINUTE } })
  const guess = async () => ofAnswer(await server.get('192.0.2.1', bearer(forged())))
  for (let n = 0; n < 3; n++) {
    t.same(await guess(), ['refused'])
    clock.move(20_000)
  }
  t.equal(server.alerts.length, 1)
  // The first was a window ago, to the millisecond.
  t.same(await guess(), ['refused'])
  t.same(await guess(), ['throttled', 20_000], 'until the second is old enough')
  clock.move(19_999)
  for (let n = 0; n < 5; n++) t.same(await guess(), ['throttled', 1000])
  clock.move(1)
  t.same(await guess(), ['refused'])
  t.same(await guess(), ['throttled', 20_000])
  clock.move(MINUTE)
  for (let n = 0; n < 3; n++) t.same(await guess(), ['refused'], 'nothing is left')
  t.ok(isThrottled(await guess()))
})

for (const reader of ['request', 'store'] as const) {
  t.test(`block credential: a good credential passes while the window is open, by every way in, also one never seen before (sessions read from the ${reader})`, async t => {
    const server = await guarded(t, { failures: { max: 1, block: 'credential' }, reader })
    const known = lasting()
    const address = newAddress()
    const [cookie, ticket] = [server.cookie('bob'), (await server.get(address, bearer(known), '/ticket')).body]
    const peer = await opened(t, server, address)
    await server.get(address, bearer(forged('alice')))
    t.ok(isThrottled(ofAnswer(await server.get(address, bearer(forged('alice'))))))
    const good: Record<string, () => Promise<Seen>> = {
      'a token that was seen': async () => ofAnswer(await server.get(address, bearer(known))),
      'a new token': async () => ofAnswer(await server.get(address, bearer(lasting()))),
      'an upgrade': async () => ofUpgrade(await server.open(address, { headers: bearer(lasting()) })),
      'a subprotocol': async () => ofUpgrade(await server.open(address, { protocols: [NAME, `bearer.${lasting()}`] })),
      'a cookie': async () => ofAnswer(await server.get(address, { cookie })),
      'a cookie of an upgrade': async () => ofUpgrade(await server.open(address, { headers: { cookie, origin: `http://${server.host}` } })),
      'a cookie beside a forged token': async () => ofAnswer(await server.get(address, { cookie, ...bearer(forged()) })),
      'a ticket': async () => ofUpgrade(await server.open(address, { path: `/live?ticket=${ticket}` })),
      'a first message': () => firstMessage(t, server, address, lasting()),
      'an update': () => update(peer, lasting())
    }
    for (const [what, attempt] of Object.entries(good)) t.same(await attempt(), ['passed'], what)
    t.match(JSON.parse((await server.get(address, { cookie, ...bearer(forged()) })).body), { userId: 'bob', fallbackFrom: TOO_MANY })
    t.equal((await server.get(address, bearer(lasting({ exp: inSeconds(-1) })))).status, 401, 'an expired one is answered as ever')
    t.equal((await server.get(address)).status, 401, 'and so is nothing')
    t.ok(isThrottled(ofAnswer(await server.get(address, bearer(forged())))))
    t.equal(server.alerts.length, 1)
  })
}

t.test('block address: nothing passes, and no key, session store or ticket is asked, until the window is over', async t => {
  const clock = setClock(t)
  let keys = 0
  const tickets: string[] = []
  const cluster: ClusterDriver = driverOf(inner => ({
    takeTicket (key) {
      tickets.push(key)
      return inner.takeTicket(key)
    }
  }))
  const server = await guarded(t, {
    failures: { max: 2, window: MINUTE, block: 'address' }, reader: 'store',
    auth: { cluster, jwt: { algorithms: ['HS256'], key () { keys++; return SECRET } } }
  })
  const [address, other] = [newAddress(), newAddress()]
  const known = lasting()
  const cookie = server.cookie('bob')
  const [ticket, another] = [(await server.get(address, bearer(known), '/ticket')).body, (await server.get(address, bearer(known), '/ticket')).body]
  const peer = await opened(t, server, address)
  await server.get(address, bearer(forged()))
  t.same(ofAnswer(await server.get(address, bearer(lasting()))), ['passed'], 'one below the limit')
  t.same(ofAnswer(await server.get(address, bearer(forged()))), ['refused'], 'at the limit')
  const asked = [keys, server.store.reads, tickets.length]
  const attempts: Record<string, (address: string) => Promise<Seen>> = {
    'a token that was seen': async address => ofAnswer(await server.get(address, bearer(known))),
    'a new token': async address => ofAnswer(await server.get(address, bearer(lasting()))),
    'an upgrade': async address => ofUpgrade(await server.open(address, { headers: bearer(lasting()) })),
    'an upgrade told by close': async address => ofUpgrade(await server.open(address, { protocols: [NAME, `bearer.${lasting()}`] })),
    'a query': async address => ofAnswer(await server.get(address, {}, `/me?token=${lasting()}`)),
    'a cookie': async address => ofAnswer(await server.get(address, { cookie })),
    'a cookie of an upgrade': async address => ofUpgrade(await server.open(address, { headers: { cookie, origin: `http://${server.host}` } })),
    'a cookie beside a token': async address => ofAnswer(await server.get(address, { cookie, ...bearer(lasting()) })),
    'a first message': address => firstMessage(t, server, address, lasting())
  }
  for (const [what, attempt] of Object.entries(attempts)) t.ok(isThrottled(await attempt(address), MINUTE), what)
  t.ok(isThrottled(ofUpgrade(await server.open(address, { path: `/live?ticket=${ticket}` })), MINUTE), 'a ticket')
  t.ok(isThrottled(await update(peer, lasting()), MINUTE), 'an update')
  for (const [name, guess] of Object.entries(WAYS)) if (name !== 'auth_update') t.ok(isThrottled(await guess(t, server, address), MINUTE), name)
  t.same([keys, server.store.reads, tickets.length], asked, 'nobody was asked')
  t.equal((await server.get(address)).status, 401, 'no credential is no attempt')
  for (const [what, attempt] of Object.entries(attempts)) t.same(await attempt(other), ['passed'], `${what} of another address`)
  await peer.settled()
  t.equal(peer.socket.readyState, WebSocket.OPEN, 'who is in stays in')
  clock.move(MINUTE)
  for (const [what, attempt] of Object.entries(attempts)) t.same(await attempt(address), ['passed'], `${what} after the window`)
  t.same(ofUpgrade(await server.open(address, { path: `/live?ticket=${another}` })), ['refused'], 'the ticket has expired meanwhile, and does not count')
  t.same(await update(peer, lasting()), ['passed'])
  t.equal(server.alerts.length, 1)
})

t.test('one claimed identity from several addresses: an alert, then 429 for whoever else claims it, by whatever way, while its own token passes', async t => {
  const server = await guarded(t, { failures: { max: 3 } })
  const claim = async (token: string, address = newAddress()) => ofAnswer(await server.get(address, bearer(token)))
  for (let n = 0; n < 3; n++) t.same(await claim(forged('alice', { iss: 'us' })), ['refused'])
  t.match(server.alerts, [{ by: ['identity'], claimed: { userId: 'alice', issuer: 'us' } }])
  t.ok(isThrottled(await claim(forged('alice', { iss: 'us' }))))
  t.ok(isThrottled(await firstMessage(t, server, newAddress(), forged('alice', { iss: 'us' }))))
  t.ok(isThrottled(ofUpgrade(await server.open(newAddress(), { protocols: [NAME, `bearer.${forged('alice', { iss: 'us' })}`] }))))
  t.ok(isThrottled(await update(await opened(t, server, newAddress()), forged('alice', { iss: 'us' }))))
  for (const address of [newAddress(), newAddress()]) t.same(await claim(lasting({ sub: 'alice', iss: 'us' }), address), ['passed'], 'her own')
  t.same(await claim(forged('alice')), ['refused'], 'without an issuer it is another')
  t.same(await claim(forged('alice', { iss: 'them' })), ['refused'])
  t.same(await claim(forged('bob', { iss: 'us' })), ['refused'])
  t.same(await claim(forged('Alice', { iss: 'us' })), ['refused'])
  t.same(await claim('x'), ['refused'], 'who claims nobody')
  t.equal(server.alerts.length, 1)
})

t.test('what a forged token claims cannot crash, confuse or mark anybody', async t => {
  const server = await guarded(t, { failures: { max: 2 } })
  const claims = ['{"sub":7}', '{"sub":null}', '{"sub":{}}', '{"sub":""}', '[]', 'null', '7', '{', `{"sub":"${'x'.repeat(5000)}"}`, '{"sub":"\\ud800"}', '{"__proto__":{"sub":"x"}}', '{"sub":"a\\n\\u0000"}']
  for (const claim of claims) t.same(ofAnswer(await server.get(newAddress(), bearer(signRaw('{"alg":"HS256"}', claim, OTHER_SECRET)))), ['refused'], claim.slice(0, 20))
  t.same(ofAnswer(await server.get(newAddress(), bearer(signRaw('{"alg":"HS256"}', Buffer.from([0x7b, 0xff, 0x7d]), OTHER_SECRET)))), ['refused'], 'no UTF-8')
  // Each alone, twice from two addresses: it is nobody, or somebody whom only it names.
  t.same(server.alerts, [])
  for (const tenth of ['["us","alice"]', 'us","alice', 'alice']) t.same(ofAnswer(await server.get(newAddress(), bearer(forged(tenth)))), ['refused'], 'a name cannot be put together')
  t.same(server.alerts, [])
  const long = 'y'.repeat(3000)
  for (let n = 0; n < 2; n++) await server.get(newAddress(), bearer(forged(long)))
  t.ok((server.alerts[0]?.claimed?.userId.length ?? 9999) <= 256, 'a long name is told in part')
})

t.test('a scripted brute force of 200 attempts, by every way, from one address, raises exactly one alert', async t => {
  const server = await guarded(t, { failures: {} })
  const ways = Object.values(WAYS)
  const seen: Record<string, number> = {}
  for (let n = 0; n < 200; n++) {
    const [outcome] = await ways[n % ways.length]?.(t, server, '192.0.2.1') ?? ['nothing']
    seen[outcome] = (seen[outcome] ?? 0) + 1
  }
  t.same(seen, { refused: 10, throttled: 190 })
  t.match(server.alerts, [{ by: ['address'], ip: '192.0.2.1' }])
  t.equal(server.alerts.length, 1)
})

t.test('CASE 81: IPv6 is counted by /64, an IPv4 address written as IPv6 is that address, and ports are no part of it', async t => {
  const server = await guarded(t, { failures: { max: 3 } })
  const guess = async (address: string) => ofAnswer(await server.get(address, bearer(forged())))
  const shared = [
    ['2001:db8:1:2::1', '2001:db8:1:2:ffff:ffff:ffff:ffff', '2001:DB8:1:2:0:0:0:7', '2001:db8:0001:0002::9'],
    ['192.0.2.7', '::ffff:192.0.2.7', '::FFFF:c000:207', '::ffff:192.0.2.7'],
    ['fe80::1%eth0', 'fe80::2%eth1', 'fe80::3', 'fe80:0:0:0:1::']
  ]
  for (const [a = '', b = '', c = '', d = ''] of shared) {
    for (const address of [a, b, c]) t.same(await guess(address), ['refused'], address)
    t.ok(isThrottled(await guess(d)), `${d} counts as ${a}`)
  }
  for (const address of ['2001:db8:1:3::1', '2001:db8:1:1:ffff::1', '2001:db8::1', '192.0.2.8', '::192.0.2.7', 'fe80:0:0:1::1']) t.same(await guess(address), ['refused'], `${address} is another`)
  t.equal(server.alerts.length, 3)
  // What a proxy passes on need not be an address.
  for (const odd of ['unknown', 'x'.repeat(5000), '_hidden', '"quoted"']) {
    for (let n = 0; n < 3; n++) t.same(await guess(odd), ['refused'], odd.slice(0, 10))
    t.ok(isThrottled(await guess(odd)), odd.slice(0, 10))
  }
  t.same(await guess(`${'x'.repeat(4999)}y`), ['refused'])
})

t.test('CASE 81: X-Forwarded-For without trustProxy changes nothing, and every address of a socket counts by itself', async t => {
  const server = await guarded(t, { failures: { max: 2 }, fastify: { trustProxy: false } })
  for (let n = 0; n < 2; n++) t.same(ofAnswer(await server.get(newAddress(), bearer(forged()))), ['refused'])
  t.ok(isThrottled(ofAnswer(await server.get(newAddress(), bearer(forged())))), 'whatever it says')
  t.match(server.alerts, [{ ip: '127.0.0.1' }])
  const other = await upgrade(t, server.host, { headers: { ...from('127.0.0.1'), ...bearer(forged()) }, localAddress: '127.0.0.2' })
  t.same(ofUpgrade(other), ['refused'])
  t.same(ofUpgrade(await upgrade(t, server.host, { headers: bearer(forged()), localAddress: '127.0.0.2' })), ['refused'])
  t.ok(isThrottled(ofUpgrade(await upgrade(t, server.host, { headers: bearer(forged()), localAddress: '127.0.0.2' }))))
  t.equal(server.alerts.length, 2)
})

/** A way in without an address, as behind a proxy that speaks over a socket of the file system. */
async function overUnix (t: Test, { app }: Guarded) {
  const dir = await mkdtemp(join(tmpdir(), 'hybrid-auth-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const path = join(dir, 'socket')
  const doors = net.createServer(socket => { app.server.emit('connection', socket) }).listen(path)
  t.teardown(() => { doors.close() })
  await once(doors, 'listening')
  return {
    get: (headers: http.OutgoingHttpHeaders) => new Promise<Answer>((resolve, reject) => {
      http.get({ socketPath: path, path: '/me', headers, agent: false }, response => {
        let body = ''
        response.on('data', (chunk: Buffer) => { body += chunk.toString() })
        response.on('end', () => { resolve({ status: response.statusCode ?? 0, headers: new Headers(response.headers as Record<string, string>), body }) })
      }).on('error', reject)
    }),
    open: (options: Parameters<typeof upgrade>[2] = {}) => upgrade(t, 'localhost', { ...options, createConnection: () => net.connect(path) })
  }
}

for (const block of ['credential', 'address'] as const) {
  t.test(`CASE 81: who has no address shares no bucket with others who have none, and is counted by whom he claims to be (block ${block})`, async t => {
    const server = await guarded(t, { failures: { max: 2, block }, fastify: { trustProxy: false } })
    const { get, open } = await overUnix(t, server)
    for (let n = 0; n < 4; n++) {
      t.same(ofAnswer(await get(bearer('malformed'))), ['refused'], 'a malformed token')
      t.same(ofAnswer(await get({ cookie: forgedCookie() })), ['refused'], 'a forged cookie')
      t.same(ofAnswer(await get(bearer(forged()))), ['refused'], 'a forged token')
      t.same(ofUpgrade(await open({ path: `/live?ticket=${unknownTicket()}` })), ['refused'], 'an unknown ticket')
    }
    t.same(server.alerts, [])
    for (let n = 0; n < 2; n++) t.same(ofAnswer(await get(bearer(forged('alice')))), ['refused'])
    t.ok(isThrottled(ofAnswer(await get(bearer(forged('alice'))))))
    t.same(ofAnswer(await get(bearer(lasting()))), ['passed'], 'her own token')
    t.match(server.alerts, [{ by: ['identity'], ip: null }])
    await t.rejects(server.app.injectWS('/live', { headers: bearer('malformed') }), /401/)
  })
}

for (const block of ['credential', 'address'] as const) {
  t.test(`a clock that is set back or forward refuses nobody for longer than a window (block ${block})`, async t => {
    const clock = setClock(t)
    clock.freeze()
    const server = await guarded(t, { failures: { max: 2, window: MINUTE, block } })
    const guess = async () => ofAnswer(await server.get('192.0.2.1', bearer(forged())))
    for (let n = 0; n < 2; n++) await guess()
    t.same(await guess(), ['throttled', MINUTE])
    clock.move(-HOUR)
    t.same(await guess(), ['throttled', MINUTE], 'never longer than the window')
    clock.move(MINUTE / 2)
    t.same(await guess(), ['throttled', MINUTE / 2], 'and it goes on')
    clock.move(MINUTE / 2)
    for (let n = 0; n < 2; n++) t.same(await guess(), ['refused'], 'it is over a window later')
    t.ok(isThrottled(await guess(), MINUTE))
    clock.move(HOUR)
    t.same(await guess(), ['refused'], 'set forward')
  })
}

t.test('what is refused for another reason is not told to wait for the window of failures', async t => {
  const server = await guarded(t, { failures: { max: 1 }, reader: 'store', auth: { limits: { connections: { perUser: 1 }, pending: 1 } } })
  const cookie = server.cookie('bob')
  await server.get('192.0.2.1', bearer(forged()))
  const both = { cookie, origin: `http://${server.host}`, ...bearer(forged()) }
  await connected(t, server.host, { token: null, headers: { ...from('192.0.2.1'), cookie, origin: `http://${server.host}` } })
  t.match(await server.open('192.0.2.1', { headers: both }), { status: 429, headers: { 'retry-after': '5' }, body: /TOO_MANY_CONNECTIONS/ }, 'too many connections')
  t.match((await server.open('192.0.2.1', { headers: both, protocols: [NAME] })).reason, '"retryAfterMs":5000')
  await connected(t, server.host, { path: '/first', token: null })
  t.match(await server.open('192.0.2.1', { path: '/first', headers: { cookie: forgedCookie(), origin: `http://${server.host}` } }), { status: 503, headers: { 'retry-after': '5' } }, 'no room to wait')
  server.store.get = (_id, callback) => { callback(new Error('the store is down')) }
  t.match(await server.open('192.0.2.1', { headers: both }), { status: 503, headers: { 'retry-after': '5' } }, 'the store is down')
})

t.test('a cluster that cannot count lets nobody in for it, and keeps nobody out who is good', async t => {
  const strikes = { throws () { throw new Error('no table') }, rejects: () => Promise.reject(new Error('no table')), hangs: () => never<never>() }
  for (const [what, strike] of Object.entries(strikes)) {
    const server = await guarded(t, { auth: { cluster: driverOf(() => ({ strike })), handshakeTimeout: 50 } })
    for (let n = 0; n < 3; n++) t.match(await server.get('192.0.2.1', bearer(forged())), { status: 503, body: /UNAVAILABLE/ }, what)
    t.same(await firstMessage(t, server, '192.0.2.1'), ['4012 {"code":"unavailable","action":"retry","retryAfterMs":5000}'], what)
    t.same(ofAnswer(await server.get('192.0.2.1', bearer(lasting()))), ['passed'], what)
    t.same(server.alerts, [])
  }
})

t.test('a request counts once, however many rules it has to meet', async t => {
  const server = await guarded(t, { failures: { max: 2 } })
  for (let n = 0; n < 2; n++) t.same(ofAnswer(await server.get('192.0.2.1', { cookie: forgedCookie() }, '/twice')), ['refused'], `request ${n + 1}`)
  t.ok(isThrottled(ofAnswer(await server.get('192.0.2.1', { cookie: forgedCookie() }, '/twice'))))
})

t.test('failures: false counts nothing', async t => {
  const server = await guarded(t, { failures: false })
  for (let n = 0; n < 30; n++) t.same(ofAnswer(await server.get('192.0.2.1', bearer(forged('alice')))), ['refused'])
  for (const [name, guess] of Object.entries(WAYS)) t.same(await guess(t, server, '192.0.2.1'), ['refused'], name)
  t.same(server.alerts, [])
})

for (const block of ['credential', 'address'] as const) {
  t.test(`report: failures refuses nobody, and tells once of each request that would have been refused (block ${block})`, async t => {
    const server = await guarded(t, { failures: { max: 3, block }, auth: { report: ['failures'] } })
    for (const [name, guess] of Object.entries(WAYS)) t.same(await guess(t, server, '192.0.2.1'), ['refused'], name)
    t.equal(server.alerts.length, 1)
    const reported = () => server.refusals.filter(({ code, enforced }) => code === TOO_MANY && !enforced).length
    t.equal(server.refusals.filter(({ code, enforced }) => code === TOO_MANY && enforced).length, 0)
    const before = reported()
    t.same(ofAnswer(await server.get('192.0.2.1', bearer(forged()))), ['refused'])
    t.equal(reported() - before, 1, 'a forged token')
    t.same(ofAnswer(await server.get('192.0.2.1', { cookie: forgedCookie() })), ['refused'])
    t.equal(reported() - before, 2, 'a forged cookie')
    t.same(ofAnswer(await server.get('192.0.2.1', bearer(lasting()))), ['passed'])
    t.equal(reported() - before, block === 'address' ? 3 : 2, 'a good token')
    t.match(server.refusals.at(-1), { ip: '192.0.2.1' })
  })

  t.test(`a throttled cookie on a route that takes nobody, or a first message, and a throttled token (block ${block})`, async t => {
    const server = await guarded(t, { failures: { max: 1, block } })
    const address = newAddress()
    await server.get(address, bearer(forged()))
    const cookie = { cookie: forgedCookie(), origin: `http://${server.host}` }
    if (block === 'credential') {
      t.same(JSON.parse((await server.get(address, cookie, '/whoever')).body), { who: null })
      t.match(await server.open(address, { path: '/maybe', headers: cookie }), { status: 101, context: { who: null } })
      t.same(await firstMessage(t, server, address, lasting(), cookie), ['passed'], 'a good first message')
    } else {
      // A good cookie is not looked at either, and its user must not be nobody without a word.
      t.ok(isThrottled(ofAnswer(await server.get(address, cookie, '/whoever'))))
      t.ok(isThrottled(ofUpgrade(await server.open(address, { path: '/maybe', headers: cookie }))))
      t.ok(isThrottled(await firstMessage(t, server, address, lasting())), 'the first message is refused')
    }
    t.ok(isThrottled(await firstMessage(t, server, address, forged())))
    t.ok(isThrottled(ofAnswer(await server.get(address, bearer(forged()), '/whoever'))))
    for (const path of ['/maybe', '/first']) t.ok(isThrottled(ofUpgrade(await server.open(address, { path, headers: bearer(forged()) }))), path)
    t.match(await server.open(address, { path: '/maybe' }), { status: 101 }, 'nobody at all')
  })
}

t.test('options that cannot be used throw, and name themselves', async t => {
  const rows: Array<[failures: unknown, name: string]> = [
    [true, 'failures'], [null, 'failures'], ['10', 'failures'],
    [{ max: 0 }, 'failures.max'], [{ max: 1001 }, 'failures.max'], [{ max: 1.5 }, 'failures.max'], [{ max: Number.NaN }, 'failures.max'], [{ max: '3' }, 'failures.max'], [{ max: null }, 'failures.max'],
    [{ window: 999 }, 'failures.window'], [{ window: 86_400_001 }, 'failures.window'], [{ window: Infinity }, 'failures.window'], [{ window: '5m' }, 'failures.window'],
    [{ block: 'user' }, 'failures.block'], [{ block: true }, 'failures.block'], [{ limit: 3 }, 'failures.limit']
  ]
  for (const [failures, name] of rows) {
    await t.rejects(guarded(t, { failures: untyped(failures) }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`^Invalid option ${name.replace('.', '\\.')}:`) }, JSON.stringify(failures))
  }
  await t.rejects(guarded(t, { auth: { report: untyped(['failure']) } }), { message: /^Invalid option report\.0:/ })
  for (const failures of [false, {}, { max: 1, window: 1000 }, { max: 1000, window: 86_400_000, block: 'address' }, { max: undefined }] as const) await guarded(t, { failures })
})
