/** Every decision is told as one event, whole and right, and the same on every way out. */
import t, { type Test } from 'tap'
import type { HybridAuthOptions, Identity, RouteAuth } from '../lib/index.js'
import { DEBUG, INFO, isWritten, observe, whole, world, type World, type Written } from './auditing.js'
import { redisNode } from './cluster-suite.js'
import { goodToken, inSeconds, JWT, signHs256, signRaw, upgrade } from './helpers.js'
import { eventually, lookNow, setClock } from './live.js'
import { needsRedis, startRedis } from './redis.js'
import { driverOf, Hold, updateOf } from './revoking.js'
import { ask, cookieFor, rawAnswer } from './stores.js'
import { get } from './ways.js'
import { authFrame, connect, connected } from './wire.js'

const BOB: Identity = { userId: 'bob', permissions: [] }
const NOBODY = { userId: null, authType: null, via: null }
const ALICE = { userId: 'alice', authType: 'jwt', via: 'header' }
const CODE = 'FST_HYBRID_AUTH_'

const forged = () => signHs256({ sub: 'alice', exp: inSeconds(300) }, {}, 'not the secret of anybody, long enough')
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const failing = async (): Promise<never> => { throw new Error('down') }

interface Refused {
  auth?: Partial<HybridAuthOptions>
  route?: RouteAuth
  /** What comes before it, and may be let in or not. */
  before?: (world: World) => Promise<unknown>
  headers?: (world: World) => Record<string, string> | Promise<Record<string, string>>
  path?: (world: World) => string | Promise<string>
  who?: Written
  /** It is about sockets alone. */
  socketOnly?: boolean
}

const REFUSED: Record<string, Refused> = {
  MALFORMED_REQUEST: { headers: () => ({ authorization: 'Bearer one two' }) },
  MISSING_CREDENTIALS: {},
  INVALID_TOKEN: { headers: () => bearer(forged()) },
  EXPIRED_TOKEN: { headers: () => bearer(goodToken({ exp: inSeconds(-10) })) },
  INVALID_SESSION: { headers: ({ host }) => ({ cookie: cookieFor('nobody-knows-it'), origin: `http://${host}` }) },
  INVALID_TICKET: { path: () => '/app?ticket=nothing', socketOnly: true },
  REVOKED_TOKEN: {
    before: ({ app }) => app.hybridAuth.revoke({ jti: 'one' }),
    headers: () => bearer(goodToken({ jti: 'one' }))
  },
  REVOKED_SESSION: {
    before: ({ app, store }) => app.hybridAuth.revoke({ userId: 'bob' }).then(() => store.put('s-bob', { user: BOB, cookie: {} })),
    headers: ({ host }) => ({ cookie: cookieFor('s-bob'), origin: `http://${host}` })
  },
  FORBIDDEN: { route: { role: 'admin' }, headers: () => bearer(goodToken()), who: ALICE },
  ORIGIN_REFUSED: { headers: () => ({ ...bearer(goodToken()), origin: 'https://evil.example' }), socketOnly: true },
  TLS_REQUIRED: { auth: { requireTls: true }, headers: () => bearer(goodToken()), socketOnly: true },
  TOO_MANY_FAILURES: {
    auth: { failures: { max: 1 } },
    before: ({ host }) => ask(host, '/me', { headers: { ...bearer(forged()), 'x-id': 'first' } }),
    headers: () => bearer(forged())
  },
  RATE_LIMITED: {
    auth: { limits: { connects: { perUser: 1 } } },
    before: ({ enter }) => enter('first'),
    headers: () => bearer(goodToken()),
    who: ALICE,
    socketOnly: true
  },
  TOO_MANY_CONNECTIONS: {
    auth: { limits: { connections: { perUser: 1 } } },
    before: ({ enter }) => enter('first'),
    headers: () => bearer(goodToken()),
    who: ALICE,
    socketOnly: true
  },
  UNAVAILABLE: { auth: { jwt: { ...JWT, key: failing } }, headers: () => bearer(goodToken()) }
}

for (const [name, { auth = {}, route = true, before, headers = () => ({}), path = () => '/app', who = NOBODY, socketOnly = false }] of Object.entries(REFUSED)) {
  t.test(`a refusal with ${name} is told with its code, where, and who it was if that is known`, async t => {
    const one = await world(t, {
      auth,
      route,
      routes (app) { app.get('/http', { auth: route }, async () => 'in') }
    })
    await before?.(one)
    const earlier = one.told.filter(({ type }) => type === 'refused').length
    for (let i = 0; i < earlier; i++) await one.take('refused')
    const given: { origin?: string } = await Promise.resolve(headers(one))
    const { origin = null } = given
    const refused = await upgrade(t, one.host, { path: await path(one), headers: { ...given, 'x-id': 'ws', 'user-agent': 'tester/1' } })
    t.not(refused.status, 101)
    whole(t, await one.take('refused'), {
      type: 'refused', code: CODE + name, enforced: true, ...one.at('ws', { userAgent: 'tester/1', origin }), ...who
    }, `${name} on an upgrade`)
    if (socketOnly) return
    await ask(one.host, '/http', { headers: { ...given, 'x-id': 'http', 'user-agent': 'tester/2' } })
    whole(t, await one.take('refused'), {
      type: 'refused', code: CODE + name, enforced: true, ...one.at('http', { userAgent: 'tester/2', origin, route: '/http', websocket: false }), ...who
    }, `${name} on HTTP`)
  })
}

t.test('a refusal by close, in the first message, and by require() are told like any other', async t => {
  const one = await world(t, {
    routes (app) {
      app.get('/strict', { auth: true, preHandler: app.hybridAuth.require({ role: 'admin' }) }, async () => 'in')
    }
  })
  await upgrade(t, one.host, { path: '/app', protocols: ['hybrid-auth.v1', `bearer.${forged()}`], headers: { 'x-id': 'close' } })
  whole(t, await one.take('refused'), { type: 'refused', code: `${CODE}INVALID_TOKEN`, enforced: true, ...one.at('close'), ...NOBODY })

  const peer = await connected(t, one.host, { path: '/first', token: null, headers: { 'x-id': 'first' } })
  peer.send(authFrame(forged()))
  await peer.closed
  whole(t, await one.take('refused'), { type: 'refused', code: `${CODE}INVALID_TOKEN`, enforced: true, ...one.at('first', { route: '/first' }), ...NOBODY })

  await ask(one.host, '/strict', { headers: { ...bearer(goodToken()), 'x-id': 'strict', 'user-agent': 'u' } })
  whole(t, await one.take('authenticated'), { type: 'authenticated', ...one.at('strict', { route: '/strict', websocket: false, userAgent: 'u' }), ...ALICE })
  whole(t, await one.take('refused'), { type: 'refused', code: `${CODE}FORBIDDEN`, enforced: true, ...one.at('strict', { route: '/strict', websocket: false, userAgent: 'u' }), ...ALICE })
})

t.test('a first message that is none, and one that never comes, are told with what they are', async t => {
  const one = await world(t, { routes (app) { app.get('/soon', { websocket: true, auth: { firstMessage: { timeout: 20 } } }, () => {}) } })
  const peer = await connected(t, one.host, { path: '/first', token: null, headers: { 'x-id': 'garbage' } })
  peer.send('{"type":"auth","token":1}')
  t.equal((await peer.closed).code, 4013)
  whole(t, await one.take('refused'), { type: 'refused', code: `${CODE}MALFORMED_REQUEST`, enforced: true, ...one.at('garbage', { route: '/first' }), ...NOBODY })
  const late = await connected(t, one.host, { path: '/soon', token: null, headers: { 'x-id': 'late' } })
  t.equal((await late.closed).code, 4010)
  whole(t, await one.take('refused'), { type: 'refused', code: `${CODE}MISSING_CREDENTIALS`, enforced: true, ...one.at('late', { route: '/soon' }), ...NOBODY })
})

t.test('who is authenticated is told with how, on every way in', async t => {
  const one = await world(t, { auth: { credentials: { query: true } } })
  const { host, store, at, take } = one
  store.put('s-bob', { user: BOB, cookie: {} })
  const cookie = { cookie: cookieFor('s-bob'), origin: `http://${host}` }
  const origin = cookie.origin
  const jwtTicket = (await ask(host, '/ticket', { method: 'POST', headers: { ...bearer(goodToken()), 'x-id': 't1', 'user-agent': 'u' } })).body
  const sessionTicket = (await ask(host, '/ticket', { method: 'POST', headers: { ...cookie, 'x-id': 't2', 'user-agent': 'u' } })).body
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('t1', { route: '/ticket', websocket: false, userAgent: 'u' }), ...ALICE })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('t2', { route: '/ticket', websocket: false, userAgent: 'u', origin }), userId: 'bob', authType: 'session', via: 'cookie' })

  const alice = { userId: 'alice', authType: 'jwt' }
  const bob = { userId: 'bob', authType: 'session' }
  await one.enter('header')
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('header'), ...alice, via: 'header' })
  await one.enter('subprotocol', { token: null, protocols: ['hybrid-auth.v1', `bearer.${goodToken()}`] })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('subprotocol'), ...alice, via: 'subprotocol' })
  await one.enter('query', { token: null, path: `/app?token=${goodToken()}` })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('query'), ...alice, via: 'query' })
  await one.enter('ticket', { token: null, path: `/app?ticket=${jwtTicket}` })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('ticket'), ...alice, via: 'ticket' })
  await one.enter('ticket of a session', { token: null, path: `/app?ticket=${sessionTicket}`, headers: { origin } })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('ticket of a session', { origin }), ...bob, via: 'ticket' })
  await one.enter('cookie', { token: null, headers: cookie })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('cookie', { origin }), ...bob, via: 'cookie' })
  const peer = await connected(t, host, { path: '/first', token: null, headers: { 'x-id': 'message' } })
  peer.send(authFrame(goodToken()))
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('message', { route: '/first' }), ...alice, via: 'message' })
  t.same([...new Set(one.types())], ['authenticated'])
})

t.test('a fallback is told with why, before who it is', async t => {
  const { host, store, at, types, enter, told } = await world(t)
  store.put('s-bob', { user: BOB, cookie: {} })
  const headers = { cookie: cookieFor('s-bob'), origin: `http://${host}` }
  const bob = { userId: 'bob', authType: 'session', via: 'cookie' }
  await enter('fell', { headers, token: goodToken({ exp: inSeconds(-5) }) })
  await eventually('both', () => told.length === 2)
  t.same(types(), ['fallback', 'authenticated'])
  const place = at('fell', { origin: headers.origin })
  for (const [i, more] of [{ type: 'fallback', code: `${CODE}EXPIRED_TOKEN` }, { type: 'authenticated' }].entries()) {
    const event = told[i]
    if (event !== undefined) whole(t, event, { ...more, ...place, ...bob })
  }
})

t.test('what becomes of an open socket is told with its connection', async t => {
  const clock = setClock(t)
  const { app, at, take, enter, types } = await world(t, {
    auth: { expiryGrace: 0 },
    route: { permissions: ['in'], authorize: (_auth, message) => message.text() !== 'bad' }
  })
  const tokenFor = (changes: Written = {}) => goodToken({ permissions: ['in'], ...changes })
  const { peer, connectionId } = await enter('one', { token: tokenFor({ exp: inSeconds(100) }), protocols: ['hybrid-auth.v1'] })
  whole(t, await take('authenticated'), { type: 'authenticated', ...at('one'), ...ALICE })

  peer.send('bad')
  whole(t, await take('message_refused'), { type: 'message_refused', ...at('one'), ...ALICE, connectionId })
  peer.send(JSON.stringify(updateOf(forged())))
  whole(t, await take('refresh_refused'), { type: 'refresh_refused', code: `${CODE}INVALID_TOKEN`, ...at('one'), ...ALICE, connectionId })
  peer.send(JSON.stringify(updateOf(tokenFor({ exp: inSeconds(200) }))))
  const refreshed = { ...at('one'), ...ALICE, via: 'message', connectionId }
  whole(t, await take('refreshed'), { type: 'refreshed', ...refreshed })
  await app.hybridAuth.setPermissions('alice', ['in', 'more'])
  whole(t, await take('permissions_changed'), { type: 'permissions_changed', permissions: ['in', 'more'], ...refreshed })
  await take('command')

  const other = await enter('two', { token: tokenFor({ sub: 'carol' }) })
  other.peer.send(JSON.stringify(updateOf(tokenFor())))
  t.equal((await other.peer.closed).code, 4011)
  const carol = { ...at('two'), userId: 'carol', authType: 'jwt', via: 'header', connectionId: other.connectionId }
  whole(t, await take('identity_changed'), { type: 'identity_changed', ...carol })
  t.match(await take('closed'), { closeCode: 4011, ...carol })

  clock.move(201_000)
  for (const connection of app.hybridAuth.connections()) lookNow(connection)
  t.equal((await peer.closed).code, 4002)
  whole(t, await take('expired'), { type: 'expired', ...refreshed })
  t.match(await take('closed'), { closeCode: 4002, ...refreshed })
  t.same(types(), [
    'authenticated', 'message_refused', 'refresh_refused', 'refreshed', 'permissions_changed', 'command',
    'authenticated', 'identity_changed', 'closed', 'expired', 'closed'
  ])
})

t.test('a refresh that the route\'s rule forbids is told as refused', async t => {
  const { at, take, enter } = await world(t, { route: { role: 'agent' } })
  const { peer, connectionId } = await enter('one', { token: goodToken({ role: 'agent' }) })
  peer.send(JSON.stringify(updateOf(goodToken({ role: 'guest' }))))
  t.equal((await peer.closed).code, 4007)
  whole(t, await take('refresh_refused'), { type: 'refresh_refused', code: `${CODE}FORBIDDEN`, ...at('one'), ...ALICE, via: 'message', connectionId })
})

t.test('permissions that close the socket are told as changed, and nothing is refused', async t => {
  const { app, at, take, enter, types } = await world(t, { route: { permissions: ['in'] } })
  const { peer, connectionId } = await enter('one', { token: goodToken({ permissions: ['in'] }) })
  const { id } = await app.hybridAuth.setPermissions('alice', [])
  t.equal((await peer.closed).code, 4007)
  whole(t, await take('permissions_changed'), { type: 'permissions_changed', permissions: [], ...at('one'), ...ALICE, connectionId })
  t.match(await take('command'), { command: 'permissions', commandId: id, matched: 1, closed: 1 })
  await take('closed')
  t.same(types(), ['authenticated', 'permissions_changed', 'command', 'closed'])
})

/** What a session's next reading finds. */
async function reread (t: Test, stored: object | null) {
  const clock = setClock(t)
  const one = await world(t)
  one.store.put('s-bob', { user: { ...BOB, permissions: ['a'] }, cookie: {} })
  const { peer, connectionId } = await one.enter('one', { token: null, headers: { cookie: cookieFor('s-bob'), origin: `http://${one.host}` } })
  if (stored === null) one.store.sessions.delete('s-bob')
  else one.store.put('s-bob', stored)
  clock.move(31_000)
  for (const connection of one.app.hybridAuth.connections()) lookNow(connection)
  return { ...one, peer, expected: { ...one.at('one', { origin: `http://${one.host}` }), userId: 'bob', authType: 'session', via: 'cookie', connectionId } }
}

t.test('a session that has ended meanwhile is told as expired', async t => {
  const { take, peer, expected } = await reread(t, { user: BOB, cookie: { expires: new Date(Date.now() - 1000) } })
  t.equal((await peer.closed).code, 4002)
  t.match(await take('closed'), { closeCode: 4002 })
  whole(t, await take('expired'), { type: 'expired', ...expected })
})

t.test('a session that says other permissions is told as changed', async t => {
  const { app, take, expected } = await reread(t, { user: { ...BOB, permissions: ['b'] }, cookie: {} })
  await eventually('it was read', () => app.hybridAuth.connections()[0]?.can('b') === true)
  whole(t, await take('permissions_changed'), { type: 'permissions_changed', permissions: ['b'], ...expected })
})

t.test('a session that is gone is told as revoked, by nobody\'s order', async t => {
  const { take, peer, expected, types } = await reread(t, null)
  t.equal((await peer.closed).code, 4006)
  whole(t, await take('revoked'), { type: 'revoked', reason: 'the session is gone', commandId: null, ...expected })
  await take('closed')
  t.same(types(), ['authenticated', 'revoked', 'closed'])
})

t.test('a session that is somebody else\'s now is told as another identity', async t => {
  const { take, expected, peer } = await reread(t, { user: { userId: 'mallory' }, cookie: {} })
  t.equal((await peer.closed).code, 4011)
  whole(t, await take('identity_changed'), { type: 'identity_changed', ...expected })
})

t.test('a revocation is told of each socket with its reason, and the id that revoke() answered, on every node', async t => {
  const cluster = driverOf()
  const [seenHere, seenThere] = [observe(t), observe(t)]
  const here = await world(t, { auth: { cluster }, seen: seenHere })
  const there = await world(t, { auth: { cluster }, seen: seenThere })
  const pairs = [await here.enter('here'), await there.enter('there')] as const
  const given = { userId: 'alice', issuedBefore: Date.now() + 60_000 }
  const { id } = await here.app.hybridAuth.revoke(given, { reason: 'password changed' })
  for (const [i, node] of [here, there].entries()) {
    whole(t, await node.take('revoked'), {
      type: 'revoked', reason: 'password changed', commandId: id, ...node.at(i === 0 ? 'here' : 'there'), ...ALICE, connectionId: pairs[i]?.connectionId
    })
    t.match(await node.take('closed'), { closeCode: 4006 })
  }
  whole(t, await here.take('command'), {
    type: 'command', nodeId: here.nodeId, command: 'revoke', commandId: id, target: 'user', userId: 'alice', tenantId: null,
    reason: 'password changed', matched: 2, closed: 2
  })
  t.notOk(there.types().includes('command'), 'the node that was told gave no command')
  t.not(here.nodeId, there.nodeId)
})

t.test('a socket whose token is as young as the revocation, and reconnects with it, is told by the id of the one who revoked', async t => {
  const { app, enter, take, host } = await world(t)
  const token = goodToken({ iat: inSeconds(0) })
  await enter('one', { token })
  const { id } = await app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() }, { reason: 'now' })
  t.match(await take('revoked'), { commandId: id, reason: 'now' })
  t.equal((await upgrade(t, host, { path: '/app', headers: bearer(token) })).status, 401)
})

t.test('who has not brought another credential in time is told as revoked, by what asked for it', async t => {
  const clock = setClock(t)
  const { app, enter, take, at, types } = await world(t)
  const { peer, connectionId } = await enter('one', { token: goodToken({ iat: inSeconds(-10) }) })
  const { id } = await app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'again', mode: { reauthWithin: 5000 } })
  await take('command')
  t.notOk(types().includes('revoked'))
  clock.move(5001)
  for (const connection of app.hybridAuth.connections()) lookNow(connection)
  t.equal((await peer.closed).code, 4006)
  whole(t, await take('revoked'), { type: 'revoked', reason: 'again', commandId: id, ...at('one'), ...ALICE, connectionId })
})

t.test('CASE 68: a socket that is caught between its verification and its registration is told by its revocation', async t => {
  const hold = new Hold()
  const one = await world(t, {
    // Behind the guard, and before the 101.
    routes (app) {
      app.get('/slow', { websocket: true, preHandler: async () => hold.pass() }, () => {})
    }
  })
  hold.arm()
  const peer = connect(t, one.host, { path: '/slow', headers: { 'x-id': 'caught' } })
  await hold.entered
  const { id, matched } = await one.app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'the thief' })
  t.equal(matched, 0)
  hold.release()
  t.equal((await peer.closed).code, 4006)
  const revoked = await one.take('revoked')
  const connectionId = 'connectionId' in revoked ? revoked.connectionId : null
  t.type(connectionId, 'string')
  whole(t, revoked, { type: 'revoked', reason: 'the thief', commandId: id, ...one.at('caught', { route: '/slow' }), ...ALICE, connectionId })
  t.match(await one.take('closed'), { closeCode: 4006, connectionId })
})

t.test('every command is told with what it was about and what it met, and names no session and no token', async t => {
  const { app, host, store, nodeId, take, told, enter } = await world(t, {
    routes (app) {
      app.post('/logout', async request => {
        await request.session.destroy()
        return 'out'
      })
    }
  })
  const { hybridAuth } = app
  const [sessionId, jti] = ['session-id-that-nobody-may-see', 'token-id-that-nobody-may-see']
  const token = goodToken({ jti: 'another-token-id-to-hide' })
  store.put(sessionId, { user: BOB, cookie: {} })
  const cookie = { cookie: cookieFor(sessionId), origin: `http://${host}` }
  const nothing = { target: null, userId: null, tenantId: null, reason: '', matched: 0, closed: 0 }
  const given: Array<[run: () => Promise<{ id: string }>, expected: Written]> = [
    [() => hybridAuth.revoke({ userId: 'nobody' }), { command: 'revoke', target: 'user', userId: 'nobody' }],
    [() => hybridAuth.revoke({ userId: 'nobody', tenantId: 'acme' }, { reason: 'why' }), { command: 'revoke', target: 'user', userId: 'nobody', tenantId: 'acme', reason: 'why' }],
    [() => hybridAuth.revoke({ tenantId: 'acme', issuer: 'one' }), { command: 'revoke', target: 'tenant', tenantId: 'acme' }],
    [() => hybridAuth.revoke({ sessionId: `${sessionId}-of-nobody` }), { command: 'revoke', target: 'session' }],
    [() => hybridAuth.revoke({ jti, iss: 'one' }), { command: 'revoke', target: 'token' }],
    [() => hybridAuth.revoke({ tokenId: jti }), { command: 'revoke', target: 'token' }],
    [() => hybridAuth.revoke({ token }), { command: 'revoke', target: 'token' }],
    [() => hybridAuth.disconnect({ userId: 'nobody', tenantId: 'acme' }, { code: 4444, reason: 'bye' }), { command: 'disconnect', userId: 'nobody', tenantId: 'acme', reason: 'bye' }],
    [() => hybridAuth.disconnect({ sessionId }), { command: 'disconnect' }],
    [() => hybridAuth.disconnect({ tokenId: jti, authType: 'jwt', issuer: null }), { command: 'disconnect' }],
    [() => hybridAuth.setPermissions('nobody', ['a']), { command: 'permissions', userId: 'nobody' }]
  ]
  for (const [run, expected] of given) {
    const { id } = await run()
    whole(t, await take('command'), { type: 'command', nodeId, commandId: id, ...nothing, ...expected })
  }
  await hybridAuth.revoke({ userId: 'nobody' }, { dryRun: true })

  await enter('bob', { token: null, headers: cookie })
  await ask(host, '/logout', { method: 'POST', headers: cookie })
  const logout = await take('command')
  t.match(await take('revoked'), { userId: 'bob', reason: 'logout', commandId: 'commandId' in logout ? logout.commandId : '' })
  whole(t, logout, { type: 'command', nodeId, command: 'revoke', commandId: 'commandId' in logout ? logout.commandId : '', ...nothing, target: 'session', reason: 'logout', matched: 1, closed: 1 })
  t.equal(told.filter(({ type }) => type === 'command').length, given.length + 1, 'what only counts is no command')
  const text = JSON.stringify(told)
  for (const hidden of [sessionId, jti, 'another-token-id-to-hide', token]) t.notOk(text.includes(hidden))
})

t.test('closed tells the code, how long it was open, and every frame that came and went', async t => {
  const clock = setClock(t)
  const { take, at, enter } = await world(t)
  clock.freeze()
  const { peer, connectionId } = await enter('one', { protocols: ['hybrid-auth.v1'] })
  peer.send('a', Buffer.from('b'), JSON.stringify(updateOf(goodToken())), JSON.stringify(updateOf(forged())), 'c')
  await peer.heard.reach(5)
  await peer.settled()
  clock.move(1234)
  peer.socket.close(3333)
  await peer.closed
  const expected = { ...at('one'), ...ALICE, via: 'message', connectionId }
  whole(t, await take('closed'), { type: 'closed', closeCode: 3333, duration: 1234, framesIn: 5, framesOut: 5, ...expected })
  const cut = await enter('two')
  cut.peer.socket.terminate()
  t.match(await take('closed'), { closeCode: 1006, duration: 0, framesIn: 0, framesOut: 0, connectionId: cut.connectionId })
})

t.test('closed counts what we say, and not what the application sends to a socket that is closed', async t => {
  const { app, take, enter } = await world(t, {
    routes (app) {
      app.get('/late', { websocket: true }, socket => {
        app.hybridAuth.connection(socket)?.on('close', () => {})
        socket.on('message', () => {
          app.hybridAuth.connection(socket)?.close(4444)
          for (let i = 0; i < 3; i++) socket.send('too late', () => {})
        })
      })
    }
  })
  const { peer } = await enter('one', { path: '/late', protocols: ['hybrid-auth.v1'] })
  peer.send('go')
  t.equal((await peer.closed).code, 4444)
  t.same(peer.heard.all.length, 1, 'nothing but bye')
  t.match(await take('closed'), { closeCode: 4444, framesIn: 1, framesOut: 1 })
  t.equal(app.hybridAuth.count(), 0)
})

t.test('closed counts the first message, and what came with it', async t => {
  const { take, host } = await world(t)
  const peer = await connected(t, host, { path: '/first', token: null })
  peer.send(authFrame(goodToken()), 'a', 'b')
  await peer.heard.reach(3)
  peer.socket.close()
  t.match(await take('closed'), { closeCode: 1005, framesIn: 3, framesOut: 3 })
})

t.test('a limit is told once for each that begins, and whether it was enforced', async t => {
  const { take, at, enter, types } = await world(t, { route: { rate: { capacity: 2, refillPerSecond: 0.01 } } })
  const { peer, connectionId } = await enter('one')
  peer.send(...Array.from({ length: 11 }, () => 'x'))
  await peer.settled()
  whole(t, await take('limited'), { type: 'limited', code: `${CODE}RATE_LIMITED`, enforced: true, ...at('one'), ...ALICE, connectionId })
  peer.send('one too much')
  t.equal((await peer.closed).code, 4008)
  t.match(await take('closed'), { closeCode: 4008, framesIn: 12, framesOut: 2 })
  t.same(types(), ['authenticated', 'limited', 'closed'])
})

t.test('what is only reported is told as not enforced', async t => {
  const one = await world(t, {
    auth: { report: ['rate', 'tls', 'origin', 'connects', 'connections', 'failures'], requireTls: true, failures: { max: 1 }, limits: { connects: { perUser: 1 }, connections: { perUser: 1 } } },
    route: { rate: { capacity: 1, refillPerSecond: 0.01 } }
  })
  const headers = { origin: 'https://evil.example' }
  const { peer, connectionId } = await one.enter('one', { headers })
  peer.send('x', 'y', 'z')
  await peer.heard.reach(3)
  await one.enter('two', { headers })
  const reported = (id: string, name: string, who: Written) => ({ type: 'refused', code: CODE + name, enforced: false, ...one.at(id, headers), ...who })
  for (const id of ['one', 'two']) {
    for (const name of ['TLS_REQUIRED', 'ORIGIN_REFUSED']) whole(t, await one.take('refused'), reported(id, name, NOBODY))
  }
  for (const name of ['RATE_LIMITED', 'TOO_MANY_CONNECTIONS']) whole(t, await one.take('refused'), reported('two', name, ALICE))
  whole(t, await one.take('limited'), { type: 'limited', code: `${CODE}RATE_LIMITED`, enforced: false, ...one.at('one', headers), ...ALICE, connectionId })
  for (const id of ['three', 'four']) await ask(one.host, '/me', { headers: { ...bearer(forged()), 'x-id': id } })
  const codes = one.told.filter(({ type }) => type === 'refused').slice(6).map(event => 'enforced' in event ? [event.code.slice(CODE.length), event.enforced] : [])
  t.same(codes, [['INVALID_TOKEN', true], ['TOO_MANY_FAILURES', false], ['INVALID_TOKEN', true]])
})

t.test('who has to go for another is told as limited, with a connection if it has one by then', async t => {
  const hold = new Hold()
  const { take, at, enter, host } = await world(t, {
    auth: { limits: { connections: { perUser: 1, policy: 'evict-oldest' } } },
    routes (app) { app.get('/slow', { websocket: true, preHandler: async () => hold.pass() }, () => {}) }
  })
  hold.arm()
  const early = connect(t, host, { path: '/slow', headers: { 'x-id': 'early' } })
  await hold.entered
  const { peer, connectionId } = await enter('one')
  hold.release()
  t.equal((await early.closed).code, 4009)
  const limited = { type: 'limited', code: `${CODE}TOO_MANY_CONNECTIONS`, enforced: true, ...ALICE }
  whole(t, await take('limited'), { ...limited, ...at('early', { route: '/slow' }), connectionId: null })
  await enter('two')
  t.equal((await peer.closed).code, 4009)
  whole(t, await take('limited'), { ...limited, ...at('one'), connectionId })
})

t.test('a socket that is nobody\'s is told as limited without anybody', async t => {
  const { take, at, host, types } = await world(t, {
    auth: { limits: { connections: { perIp: 1, policy: 'evict-oldest' } } },
    routes (app) { app.get('/maybe', { websocket: true, auth: { optional: true } }, () => {}) }
  })
  const [first, second] = [{ path: '/maybe', token: null, headers: { 'x-id': 'one' } }, { path: '/maybe', token: null, headers: { 'x-id': 'two' } }]
  const peer = await connected(t, host, first)
  await connected(t, host, second)
  t.equal((await peer.closed).code, 4009)
  whole(t, await take('limited'), { type: 'limited', code: `${CODE}TOO_MANY_CONNECTIONS`, enforced: true, ...at('one', { route: '/maybe' }), ...NOBODY, connectionId: null })
  t.same(types(), ['limited'])
})

t.test('CASE 80: an attack is told once, by what it was noticed, and whom it claims to be', async t => {
  const { take, at, types, host } = await world(t, { auth: { failures: { max: 2 } }, fastify: { trustProxy: true } })
  const claiming = (claims: Written) => signHs256({ exp: inSeconds(300), ...claims }, {}, 'not the secret of anybody, long enough')
  const hostile = { sub: `I am ${goodToken()}\n`, iss: 'y'.repeat(400) }
  const rows: Array<[id: string, tokens: [string, string], ips: [string, string], by: string[], claimed: unknown]> = [
    ['both', [claiming({ sub: 'carol', iss: 'us' }), claiming({ sub: 'carol', iss: 'us' })], ['192.0.2.1', '192.0.2.1'], ['address', 'identity'], { userId: 'carol', issuer: 'us' }],
    ['address', ['garbage', 'more garbage'.replace(' ', '')], ['192.0.2.2', '192.0.2.2'], ['address'], null],
    ['identity', [claiming({ sub: 'dave' }), claiming({ sub: 'dave' })], ['192.0.2.3', '192.0.2.4'], ['identity'], { userId: 'dave', issuer: null }],
    ['hostile', [claiming(hostile), claiming(hostile)], ['192.0.2.5', '192.0.2.6'], ['identity'], { userId: 'I am [redacted] ', issuer: 'y'.repeat(256) }]
  ]
  for (const [id, tokens, ips, by, claimed] of rows) {
    for (const [i, token] of tokens.entries()) {
      await ask(host, '/me', { headers: { ...bearer(token), 'x-id': id, 'x-forwarded-for': ips[i] ?? '', 'user-agent': 'u' } })
    }
    whole(t, await take('brute_force_suspected'), { type: 'brute_force_suspected', by, claimed, ...at(id, { route: '/me', websocket: false, ip: ips[1], userAgent: 'u' }) }, id)
  }
  t.equal(types().filter(type => type === 'brute_force_suspected').length, rows.length)
})

t.test('a cluster that is lost and recovered is told, with for how long', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const seen = observe(t)
  const { app, status } = await redisNode(t, redis.url, { fastify: seen.fastify, auth: { audit: event => { seen.told.push(event) } } })
  seen.attach(app)
  await eventually('it is there', () => status().connected)
  const { nodeId } = status()
  await redis.kill()
  whole(t, await seen.take('cluster_lost'), { type: 'cluster_lost', nodeId })
  const since = status().lostSince ?? 0
  await redis.restart()
  const recovered = await seen.take('cluster_recovered')
  const { lostFor, converged } = recovered.type === 'cluster_recovered' ? recovered : { lostFor: -1, converged: -1 }
  whole(t, recovered, { type: 'cluster_recovered', nodeId, lostFor, converged })
  t.ok(lostFor > 0 && lostFor <= recovered.time - since + 50 && converged >= 0, `lost for ${lostFor}, converged in ${converged}`)
})

t.test('nothing is logged below the level of the logger, which a route may set otherwise', async t => {
  const one = await world(t, {
    level: 'info',
    routes (app) {
      app.get('/quiet', { auth: true, logLevel: 'warn' }, async () => 'in')
      app.get('/loud', { auth: true, logLevel: 'debug' }, async () => 'in')
    }
  })
  for (const path of ['/me', '/quiet', '/loud']) {
    for (const headers of [bearer(goodToken()), {}]) await ask(one.host, path, { headers: { ...headers, 'x-id': path } })
  }
  await eventually('all', () => one.told.length === 6)
  const lines = one.logged().map(({ reqId, level, hybridAuth, msg }) => [reqId, level, isWritten(hybridAuth) ? hybridAuth.type : '', msg])
  t.same(lines, [
    ['/me', INFO, 'refused', 'authentication refused'], ['/loud', DEBUG, 'authenticated', 'authenticated'], ['/loud', INFO, 'refused', 'authentication refused']
  ])
})

t.test('what a client says of itself is cut at 256 characters, and without what may be a token', async t => {
  const { host, take, port } = await world(t)
  const spaced = signRaw('{ "alg": "HS256", "typ": "JWT" }', `{ "sub": "alice", "exp": ${inSeconds(300)} }`)
  t.equal((await ask(host, '/me', { headers: bearer(spaced) })).status, 200, 'a token may be written so')
  const token = goodToken()
  const hostile = ['x'.repeat(257), `curl ${token}`, `${'x'.repeat(200)} ${token}`, 'eyJ '.repeat(80), `${'x'.repeat(253)}eyJhbGciOi`, `curl ${spaced}`, `${token},${token}`]
  for (const value of hostile) {
    await rawAnswer(port, get('/me', [`User-Agent: ${value}`, `Origin: https://evil.example/${value}`]))
    const refused = await take('refused')
    const { origin, userAgent } = 'origin' in refused ? refused : { origin: null, userAgent: null }
    for (const text of [origin ?? '', userAgent ?? '']) {
      t.ok(text.length > 0 && text.length <= 256, `${text.length} characters of ${value.slice(0, 30)}`)
      for (const part of [...token.split('.'), ...spaced.split('.')]) t.notOk(text.includes(part.slice(0, 16)), `no token in ${text}`)
    }
  }
})

t.test('an address and a request id that a client made up are cut, and hold no token', async t => {
  const { host, take } = await world(t, { level: 'silent', fastify: { trustProxy: true, requestIdHeader: 'x-request-id', genReqId: () => 'mine' } })
  const token = goodToken()
  for (const value of [token, 'x'.repeat(1000), `a ${token} b`]) {
    await ask(host, '/me', { headers: { 'x-forwarded-for': value, 'x-request-id': value } })
    const refused = await take('refused')
    const { ip, requestId } = 'ip' in refused ? refused : { ip: null, requestId: '' }
    for (const text of [ip ?? '', requestId]) {
      t.ok(text.length <= 256, `${text.length} characters`)
      for (const part of token.split('.')) t.notOk(text.includes(part.slice(0, 16)), `no token in ${text}`)
    }
  }
})
