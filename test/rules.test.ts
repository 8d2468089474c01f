import net from 'node:net'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import hybridAuth, { type AuditEvent, type AuthContext, type HybridAuthOptions, type Identity, type RouteAuth, type RuleFunction } from '../lib/index.js'
import { settleWithin } from '../lib/deadline.js'
import { logFault } from '../lib/observe/faults.js'
import { adopt, whenReady } from '../lib/maybe.js'
import { checkIdentity, identityFromClaims } from '../lib/verify/identity.js'
import { plain, plainObject } from '../lib/verify/plain.js'
import { build, goodClaims, goodToken, handshake, inSeconds, JWT, keepLines, SECRET, SESSION, SESSION_SECRET, signHs256, signRaw, statusOf, upgrade } from './helpers.js'
import { ask, codeOf, cookieFor, deferred, headerOf, liveRoutes, MapStore, never, rawAnswer, rawUpgrade, serve } from './stores.js'

const CANARY = 'canary-4711'
const NAME = 'hybrid-auth.v1'
const FORBIDDEN = 'FST_HYBRID_AUTH_FORBIDDEN'
const bearer = (changes: Record<string, unknown> = {}) => ({ authorization: `Bearer ${goodToken(changes)}` })

/** What each way of putting a rule on a route answers to the same headers: by upgrade, over HTTP, and by `require()`. */
async function everyWay (t: Test, auth: Exclude<RouteAuth, boolean>, headers: Record<string, string>, options: Partial<HybridAuthOptions> = {}): Promise<number[]> {
  const { host } = await build(t, {
    auth: options,
    routes (app) {
      app.get('/socket', { websocket: true, auth }, socket => { socket.send('{}') })
      app.get('/http', { auth }, async () => 'ok')
      app.get('/required', { preHandler: app.hybridAuth.require(auth) }, async () => 'ok')
      app.get('/required-too', { auth: true, preHandler: app.hybridAuth.require(auth) }, async () => 'ok')
      app.get('/socket-required', { websocket: true, preHandler: app.hybridAuth.require(auth) }, socket => { socket.send('{}') })
    }
  })
  const answers = await Promise.all([
    upgrade(t, host, { path: '/socket', headers }), upgrade(t, host, { path: '/socket-required', headers }),
    ask(host, '/http', { headers }), ask(host, '/required', { headers }), ask(host, '/required-too', { headers })
  ])
  return answers.map(({ status }) => status)
}

const allowed = [101, 101, 200, 200, 200]
const all = (status: number) => allowed.map(() => status)

t.test('a rule admits who has all of what it asks for, on every way in', async t => {
  const who = { role: 'agent', permissions: ['a:read', 'a:write'] }
  const table: Array<[string, Exclude<RouteAuth, boolean>, boolean]> = [
    ['nothing asked', {}, true],
    ['one permission', { permissions: ['a:read'] }, true],
    ['two permissions', { permissions: ['a:write', 'a:read'] }, true],
    ['one of two missing', { permissions: ['a:read', 'b:read'] }, false],
    ['case 32: a prefix of a permission', { permissions: ['a:rea'] }, false],
    ['case 32: a longer permission', { permissions: ['a:readall'] }, false],
    ['a permission in other case', { permissions: ['A:READ'] }, false],
    ['a wildcard, which is only a name', { permissions: ['*'] }, false],
    ['one of several permissions', { anyPermission: ['b:read', 'a:read'] }, true],
    ['none of several', { anyPermission: ['b:read', 'c:read'] }, false],
    ['the role', { role: 'agent' }, true], ['another role', { role: 'admin' }, false], ['the role in other case', { role: 'Agent' }, false],
    ['one of the roles', { roles: ['admin', 'agent'] }, true], ['none of the roles', { roles: ['admin'] }, false],
    ['the type', { types: ['jwt'] }, true], ['one of the types', { types: ['session', 'jwt'] }, true], ['another type', { types: ['session'] }, false],
    ['all at once', { permissions: ['a:read'], anyPermission: ['x', 'a:write'], role: 'agent', roles: ['agent'], types: ['jwt'], check: () => true }, true],
    ['all but one', { permissions: ['a:read'], anyPermission: ['x', 'a:write'], role: 'agent', roles: ['admin'], types: ['jwt'], check: () => true }, false],
    ['all but the check', { permissions: ['a:read'], check: () => false }, false],
    ['a function that admits', auth => auth.userId === 'alice', true], ['a function that does not', auth => auth.userId === 'bob', false],
    ['an asynchronous function that admits', async auth => auth.userId === 'alice', true], ['one that does not', async () => false, false],
    ['a check that looks at the request', { check: (_auth, request) => request.headers['x-none'] === undefined }, true]
  ]
  for (const [what, rule, admits] of table) t.same(await everyWay(t, rule, bearer(who)), admits ? allowed : all(403), what)
})

t.test('a context without a role or permissions meets no rule that asks for one', async t => {
  for (const rule of [{ role: 'null' }, { role: 'undefined' }, { roles: ['null', 'undefined'] }, { permissions: ['undefined'] }, { anyPermission: ['', 'x'].filter(name => name !== '') }]) {
    t.same(await everyWay(t, rule, bearer()), all(403), JSON.stringify(rule))
  }
})

t.test('case 32: a scope is matched by exact name, and in another shape grants nothing', async t => {
  const { host } = await build(t, { routes (app) { app.get('/read', { auth: { permissions: ['read'] } }, async () => 'ok') } })
  const status = async (claims: Record<string, unknown>) => (await ask(host, '/read', { headers: bearer(claims) })).status
  t.equal(await status({ scope: 'read' }), 200)
  t.equal(await status({ scope: 'write  read' }), 200)
  for (const scope of ['readall', 'rea', 'read,write', 'READ', '', ' ', ['read'], 7, { read: true }, null]) t.equal(await status({ scope }), 403, JSON.stringify(scope))
  t.equal(await status({ permissions: [], scope: 'read' }), 403, 'permissions come first')
  for (const permissions of ['read', [['read']], [7], { 0: 'read' }, 7]) t.equal(await status({ permissions }), 401, `${JSON.stringify(permissions)} is no list of names`)
})

t.test('who is not let in by a rule gets 403 insufficient_scope, and who is nobody 401', async t => {
  const { host } = await build(t, {
    routes (app) {
      app.get('/admin', { websocket: true, auth: { role: 'admin' } }, () => {})
      app.get('/required', { preHandler: app.hybridAuth.require({ role: 'admin' }) }, async () => 'ok')
    }
  })
  const refused = await upgrade(t, host, { path: '/admin', headers: bearer() })
  t.equal(refused.status, 403)
  t.equal(codeOf(refused.body), FORBIDDEN)
  t.equal(refused.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth", error="insufficient_scope"')
  t.notMatch(refused.body, /admin/, 'what was missing is not said')
  const required = await ask(host, '/required', { headers: bearer() })
  t.same([required.status, required.body], [403, refused.body])
  t.equal((await ask(host, '/required')).status, 401)
  t.equal((await upgrade(t, host, { path: '/admin' })).status, 401)
})

t.test('optional lets nobody through as nobody, but not a refused credential', async t => {
  const { host } = await build(t, {
    routes (app) {
      app.get('/maybe', { auth: { optional: true } }, async request => ({ who: app.hybridAuth.contextOf(request)?.userId ?? null }))
      app.get('/maybe-live', { websocket: true, auth: { optional: true, check: () => false } }, (socket, request) => {
        socket.send(JSON.stringify({ who: app.hybridAuth.contextOf(request) }))
      })
      app.get('/reads', { auth: { optional: true } }, async request => request.auth)
    }
  })
  const origin = `http://${host}`
  t.equal((await ask(host, '/maybe')).body, '{"who":null}')
  t.equal((await ask(host, '/maybe', { headers: bearer() })).body, '{"who":"alice"}')
  t.equal((await ask(host, '/maybe', { headers: { cookie: 'sessionId=forged.x' } })).body, '{"who":null}', 'a cookie that names nobody is nobody')
  for (const authorization of ['Bearer a.b.c', `Bearer ${goodToken({ exp: inSeconds(-5) })}`]) t.equal((await ask(host, '/maybe', { headers: { authorization } })).status, 401)
  t.equal((await ask(host, '/maybe', { headers: { authorization: 'Bearer a b' } })).status, 400)
  t.same((await upgrade(t, host, { path: '/maybe-live' })).context, { who: null }, 'the rest of the rule is for somebody')
  t.equal((await upgrade(t, host, { path: '/maybe-live', headers: bearer() })).status, 403)
  t.equal((await upgrade(t, host, { path: '/maybe-live', headers: { origin: 'https://evil.example' } })).status, 403)
  t.same((await upgrade(t, host, { path: '/maybe-live', headers: { cookie: 'sessionId=forged.x', origin } })).context, { who: null })
  const read = await ask(host, '/reads')
  t.equal(read.status, 401)
  t.equal(codeOf(read.body), 'FST_HYBRID_AUTH_NOT_AUTHENTICATED')
})

t.test('request.auth on a route that authenticates nobody throws, and contextOf is null', async t => {
  let caught: unknown
  const { host } = await build(t, {
    routes (app) {
      app.get('/open', async request => {
        try { return request.auth } catch (error) { caught = error }
        return { who: app.hybridAuth.contextOf(request) }
      })
      app.get('/throws', async request => request.auth)
      app.get('/live-open', { websocket: true, auth: false }, (socket, request) => {
        try { socket.send(JSON.stringify(request.auth)) } catch (error) { socket.send(JSON.stringify(error)) }
      })
    }
  })
  t.equal((await ask(host, '/open', { headers: bearer() })).body, '{"who":null}')
  t.match(caught, { code: 'FST_HYBRID_AUTH_NOT_AUTHENTICATED', statusCode: 401 })
  t.equal((await ask(host, '/throws', { headers: bearer() })).status, 401)
  t.match((await upgrade(t, host, { path: '/live-open', headers: bearer() })).context, { code: 'FST_HYBRID_AUTH_NOT_AUTHENTICATED' })
})

t.test('require() works after a body was read, also where its answer takes time', async t => {
  const { host } = await build(t, {
    routes (app) {
      app.post('/now', { preHandler: app.hybridAuth.require({ check: () => true }) }, async request => request.body)
      app.post('/later', { preHandler: app.hybridAuth.require(() => new Promise(resolve => { setImmediate(resolve, true) })) }, async request => request.body)
      app.post('/never', { preHandler: app.hybridAuth.require(() => new Promise(resolve => { setImmediate(resolve, false) })) }, async request => request.body)
      app.post('/guarded', { auth: { check: () => new Promise(resolve => { setImmediate(resolve, true) }) } }, async request => request.body)
    }
  })
  const post = async (path: string) => {
    const init = { method: 'POST', body: '{"a":1}', headers: { ...bearer(), 'content-type': 'application/json' }, signal: AbortSignal.timeout(2000) }
    return ask(host, path, init).then(({ status, body }) => [status, status === 200 ? body : codeOf(body)], () => 'no answer')
  }
  t.same(await post('/now'), [200, '{"a":1}'])
  t.same(await post('/later'), [200, '{"a":1}'])
  t.same(await post('/guarded'), [200, '{"a":1}'])
  t.same(await post('/never'), [403, FORBIDDEN])
})

t.test('require() asks about who is authenticated already, and authenticates but once', async t => {
  const events: AuditEvent[] = []
  let mapped = 0
  const { host } = await build(t, {
    auth: { jwt: { ...JWT, user: claims => { mapped++; return { userId: claims.sub ?? '' } } }, audit: event => { events.push(event) } },
    routes (app) {
      app.get('/twice', { auth: true, preHandler: [app.hybridAuth.require(), app.hybridAuth.require({ types: ['jwt'] })] }, async request => request.auth.userId)
      app.get('/refused', { auth: true, preHandler: app.hybridAuth.require({ role: 'admin' }) }, async () => 'ok')
    }
  })
  t.equal((await ask(host, '/twice', { headers: bearer() })).body, 'alice')
  t.equal(mapped, 1)
  t.same(events.map(event => event.type), ['authenticated'])
  t.equal((await ask(host, '/refused', { headers: bearer() })).status, 403)
  t.same(events.map(event => event.type), ['authenticated', 'authenticated', 'refused'])
})

/** What a rule or mapper may answer that is no answer. Each is a refusal. */
const garbage: Array<[string, unknown]> = [
  ['yes', 'yes'], ['1', 1], ['{}', {}], ['[]', []], ['a function', () => true], ['undefined', undefined], ['null', null], ['0', 0], ['an empty text', ''], ['NaN', NaN],
  ['a text that says true', 'true'], ['a boxed true', Object(true)], ['a promise of yes', Promise.resolve('yes')], ['a promise of 1', Promise.resolve(1)],
  ['a promise of {}', Promise.resolve({})], ['a promise of nothing', Promise.resolve()], ['a symbol', Symbol('x')]
]

t.test('case 83: a check that answers anything but true refuses', async t => {
  for (const [what, answer] of garbage) t.same(await everyWay(t, { check: () => answer as boolean }, bearer()), all(403), what)
  for (const [what, answer] of garbage) t.same(await everyWay(t, () => answer as boolean, bearer()), all(403), `${what}, from a rule as a function`)
})

t.test('case 83: a check that throws, rejects or never settles refuses inside the deadline, without its words', async t => {
  const log = keepLines()
  const nothing: unknown = undefined
  const faults: Array<[string, RuleFunction]> = [
    ['throws', () => { throw new Error(CANARY) }], ['throws a text', () => { throw CANARY as unknown }], ['rejects', () => Promise.reject(new Error(CANARY))],
    ['rejects with nothing', () => Promise.reject(nothing)], ['never settles', never], ['is a broken thenable', () => ({ then () { throw new Error(CANARY) } }) as never]
  ]
  for (const [what, check] of faults) {
    const { host } = await build(t, {
      auth: { handshakeTimeout: 100 },
      fastify: { logger: { stream: log.stream, level: 'trace' } },
      routes (app) {
        app.get('/socket', { websocket: true, auth: { check } }, () => { t.fail('the handler ran') })
        app.get('/http', { auth: check }, async () => t.fail('the handler ran'))
        app.get('/required', { preHandler: app.hybridAuth.require(check) }, async () => t.fail('the handler ran'))
      }
    })
    const start = performance.now()
    const answers = await Promise.all([upgrade(t, host, { path: '/socket', headers: bearer() }), ask(host, '/http', { headers: bearer() }), ask(host, '/required', { headers: bearer() })])
    t.ok(performance.now() - start < 2000, `a check that ${what} is answered in time`)
    for (const { status, body } of answers) {
      t.equal(status, 503, what)
      t.equal(codeOf(body), 'FST_HYBRID_AUTH_UNAVAILABLE')
      t.notMatch(body, CANARY)
    }
    const told = await upgrade(t, host, { path: '/socket', headers: bearer(), protocols: [NAME] })
    t.match(told, { status: 101, code: 4012 }, 'and by close code to who can read one')
  }
  t.notMatch(log.text(), CANARY)
  t.match(log.text(), /authentication failed in rule/)
})

t.test('case 83: a mapper that throws, rejects, answers garbage or never settles refuses inside the deadline', async t => {
  const log = keepLines()
  const mappers: Array<[string, () => unknown, number]> = [
    ...garbage.map(([what, answer]): [string, () => unknown, number] => [`answers ${what}`, () => answer, 401]),
    ['answers an identity without a name', () => ({ userId: '' }), 401], ['answers a number as name', () => ({ userId: 7 }), 401],
    ['answers permissions as text', () => ({ userId: 'x', permissions: 'all' }), 401], ['answers a promise of null', async () => null, 401],
    ['throws', () => { throw new Error(CANARY) }, 503], ['throws a text', () => { throw CANARY as unknown }, 503], ['rejects', () => Promise.reject(new Error(CANARY)), 503],
    ['never settles', never, 503], ['answers a bigint', () => ({ userId: 'x', n: 1n }), 503],
    ['answers', () => ({ userId: 'x' }), 101], ['answers later', async () => ({ userId: 'x' }), 101]
  ]
  for (const [what, map, status] of mappers) {
    const { host } = await build(t, {
      auth: { jwt: { ...JWT, user: () => map() as Identity }, handshakeTimeout: 100 }, fastify: { logger: { stream: log.stream, level: 'trace' } }
    })
    const answers = await Promise.all([upgrade(t, host, { headers: bearer() }), ask(host, '/me', { headers: bearer() })])
    t.same(answers.map(answer => answer.status === 200 ? 101 : answer.status), [status, status], `a mapper that ${what}`)
    t.notMatch(JSON.stringify(answers.map(({ body }) => body)), CANARY)
  }
  t.notMatch(log.text(), CANARY)
})

t.test('case 83: a key function that throws, rejects, answers garbage or never settles refuses inside the deadline', async t => {
  const log = keepLines()
  const functions: Array<[string, () => unknown, number]> = [
    ['answers the key', () => SECRET, 101], ['answers it later', async () => SECRET, 101], ['answers bytes', () => Buffer.from(SECRET), 101],
    ['answers a pinned key', () => ({ key: SECRET, algorithm: 'HS256' }), 101],
    ['knows none', () => null, 401], ['knows none, as undefined', () => undefined, 401], ['knows none, later', async () => null, 401],
    ['answers another key', () => 'x'.repeat(32), 401],
    ['answers 1', () => 1, 503], ['answers true', () => true, 503], ['answers {}', () => ({}), 503], ['answers an empty key', () => '', 503], ['answers a short key', () => 'short', 503],
    ['throws', () => { throw new Error(CANARY) }, 503], ['rejects', () => Promise.reject(new Error(CANARY)), 503], ['never settles', never, 503]
  ]
  for (const [what, key, status] of functions) {
    const { host } = await build(t, { auth: { jwt: { ...JWT, key: () => key() as string }, handshakeTimeout: 100 }, fastify: { logger: { stream: log.stream, level: 'trace' } } })
    const answers = await Promise.all([upgrade(t, host, { headers: bearer() }), ask(host, '/me', { headers: bearer() }), upgrade(t, host, { headers: bearer() })])
    t.same(answers.map(answer => answer.status === 200 ? 101 : answer.status), [status, status, status], `a key function that ${what}`)
    t.notMatch(JSON.stringify(answers.map(({ body }) => body)), CANARY)
  }
  t.notMatch(log.text(), CANARY)
  t.notMatch(log.text(), SECRET)
})

t.test('case 40: a refused bearer falls back to the session, and the context says so', async t => {
  const events: AuditEvent[] = []
  const { host, login } = await build(t, { auth: { audit: event => { events.push(event) } } })
  const headers = { cookie: await login(), origin: `http://${host}` }
  for (const [authorization, code] of [
    ['Bearer a.b.c', 'FST_HYBRID_AUTH_INVALID_TOKEN'], [`Bearer ${goodToken({ exp: inSeconds(-5) })}`, 'FST_HYBRID_AUTH_EXPIRED_TOKEN'],
    [`Bearer ${signHs256(goodClaims(), {}, 'x'.repeat(32))}`, 'FST_HYBRID_AUTH_INVALID_TOKEN']
  ] as const) {
    events.length = 0
    const { context } = await upgrade(t, host, { headers: { ...headers, authorization } })
    t.match(context, { authType: 'session', via: 'cookie', userId: 'bob', fallbackFrom: code })
    t.match(events, [
      { type: 'fallback', code, userId: 'bob', authType: 'session', via: 'cookie', route: '/live', websocket: true, ip: '127.0.0.1' },
      { type: 'authenticated', userId: 'bob', authType: 'session', via: 'cookie' }
    ])
    t.match(JSON.parse((await ask(host, '/me', { headers: { ...headers, authorization } })).body), { fallbackFrom: code })
  }
  const neither = await upgrade(t, host, { headers: { cookie: 'sessionId=forged.x', origin: `http://${host}`, authorization: 'Bearer a.b.c' } })
  t.equal(codeOf(neither.body), 'FST_HYBRID_AUTH_INVALID_TOKEN', 'where the session does not help, the bearer\'s refusal is the answer')
  const noOrigin = await upgrade(t, host, { headers: { cookie: headers.cookie, authorization: 'Bearer a.b.c' } })
  t.equal(noOrigin.status, 401, 'nor does it help without an Origin')
  t.equal((await upgrade(t, host, { headers: { ...headers, authorization: 'Bearer a b' } })).status, 400, 'a malformed request falls back to nothing')
})

t.test('case 40: under fallback: absent a refused bearer is a refusal, whatever the cookie', async t => {
  const { host, login } = await build(t, { auth: { fallback: 'absent' } })
  const headers = { cookie: await login(), origin: `http://${host}` }
  const refused = await upgrade(t, host, { headers: { ...headers, authorization: 'Bearer a.b.c' } })
  t.equal(refused.status, 401)
  t.equal(codeOf(refused.body), 'FST_HYBRID_AUTH_INVALID_TOKEN')
  t.equal((await ask(host, '/me', { headers: { ...headers, authorization: 'Bearer a.b.c' } })).status, 401)
  const session = await upgrade(t, host, { headers })
  t.match(session.context, { authType: 'session' }, 'without a bearer the session counts')
  t.notOk(session.context !== undefined && 'fallbackFrom' in session.context)
  t.match((await upgrade(t, host, { headers: { ...headers, authorization: 'Basic eDp5' } })).context, { authType: 'session' })
})

t.test('case 41: a good bearer of one user wins over the cookie of another, whose session stays as it was', async t => {
  const store = new MapStore()
  const { host, login } = await build(t, { session: { store, secret: SESSION_SECRET } })
  const cookie = await login()
  const before = JSON.stringify([...store.sessions])
  for (const fallback of ['invalid', 'absent'] as const) {
    const { context } = await upgrade(t, host, { headers: { cookie, origin: `http://${host}`, ...bearer() } })
    t.match(context, { authType: 'jwt', userId: 'alice' }, fallback)
    t.notOk(context !== undefined && 'fallbackFrom' in context)
  }
  t.equal(JSON.stringify([...store.sessions]), before)
})

t.test('with sessions alone a bearer is a refused one, and with tokens alone a cookie is nothing', async t => {
  const sessions = await build(t, { auth: { jwt: undefined } })
  const headers = { cookie: await sessions.login(), origin: `http://${sessions.host}` }
  t.equal(codeOf((await upgrade(t, sessions.host, { headers: bearer() })).body), 'FST_HYBRID_AUTH_INVALID_TOKEN')
  t.match((await upgrade(t, sessions.host, { headers: { ...headers, ...bearer() } })).context, { authType: 'session', fallbackFrom: 'FST_HYBRID_AUTH_INVALID_TOKEN' })
  const tokens = await build(t, { auth: { session: undefined } })
  const cookie = await tokens.login()
  const answer = await upgrade(t, tokens.host, { headers: { cookie, origin: `http://${tokens.host}` } })
  t.equal(codeOf(answer.body), 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
  t.equal((await upgrade(t, tokens.host, { headers: { cookie, authorization: 'Bearer a.b.c' } })).status, 401)
})

t.test('every decision is one audit event without a credential', async t => {
  const events: AuditEvent[] = []
  const { host, login } = await build(t, {
    auth: { audit: event => { if (event.type !== 'closed') events.push(event) } },
    routes (app) { app.get('/things/:id', { auth: { role: 'admin' } }, async () => 'ok') }
  })
  const cookie = await login()
  const token = goodToken()
  const before = Date.now()
  await upgrade(t, host, { headers: { authorization: `Bearer ${token}` } })
  await upgrade(t, host)
  await ask(host, `/things/7?secret=${CANARY}`, { headers: { authorization: `Bearer ${token}` } })
  await ask(host, '/me', { headers: { cookie } })
  t.match(events, [
    { type: 'authenticated', userId: 'alice', authType: 'jwt', via: 'header', route: '/live', websocket: true, ip: '127.0.0.1', requestId: /./ },
    { type: 'refused', code: 'FST_HYBRID_AUTH_MISSING_CREDENTIALS', route: '/live', websocket: true },
    { type: 'refused', code: FORBIDDEN, route: '/things/:id', websocket: false },
    { type: 'authenticated', userId: 'bob', authType: 'session', via: 'cookie', route: '/me', websocket: false }
  ])
  t.equal(events.length, 4)
  t.ok(events.every(event => event.time >= before && event.time <= Date.now()))
  const text = JSON.stringify(events)
  for (const secret of [token, cookie, decodeURIComponent(cookie), CANARY]) t.notMatch(text, secret)
})

t.test('case 83: an audit sink that throws, rejects, hangs or answers garbage changes nothing', async t => {
  const sinks: Array<[string, () => unknown]> = [
    ['throws', () => { throw new Error(CANARY) }], ['rejects', () => Promise.reject(new Error(CANARY))], ['never settles', never],
    ['answers false', () => false], ['is a broken thenable', () => ({ then () { throw new Error(CANARY) } })]
  ]
  for (const [what, sink] of sinks) {
    let called = 0
    const { host } = await build(t, { auth: { handshakeTimeout: 1000, audit: () => { called++; return sink() } } })
    t.equal((await upgrade(t, host, { headers: bearer() })).status, 101, `a sink that ${what}`)
    t.equal((await upgrade(t, host)).status, 401)
    t.equal((await ask(host, '/me', { headers: bearer() })).status, 200)
    t.equal(called, 4, 'the close of the socket is told too')
  }
})

t.test('refuse: who offered our protocol is told by close code, the others by status', async t => {
  const modes = {
    auto: await build(t, { auth: { refuse: 'auto' }, routes: refusing }),
    http: await build(t, { auth: { refuse: 'http' }, routes: refusing }),
    close: await build(t, { auth: { refuse: 'close' }, routes: refusing })
  }
  function refusing (app: Parameters<typeof liveRoutes>[0]): void {
    app.get('/admin', { websocket: true, auth: { role: 'admin' } }, () => { t.fail('the handler ran') })
    app.get('/down', { websocket: true, auth: { check: () => { throw new Error(CANARY) } } }, () => { t.fail('the handler ran') })
  }
  const table: Array<[string, { path?: string, headers?: Record<string, string> }, number, number, string, string]> = [
    ['nothing', {}, 401, 4001, 'authentication_failed', 'stop'],
    ['a bad token', { headers: { authorization: 'Bearer a.b.c' } }, 401, 4001, 'authentication_failed', 'stop'],
    ['an expired token', { headers: bearer({ exp: inSeconds(-5) }) }, 401, 4002, 'expired', 'refresh'],
    ['a role that is missing', { path: '/admin', headers: bearer() }, 403, 4007, 'forbidden', 'stop'],
    ['a foreign origin', { headers: { ...bearer(), origin: 'https://evil.example' } }, 403, 4007, 'forbidden', 'stop'],
    ['what is not available', { path: '/down', headers: bearer() }, 503, 4012, 'unavailable', 'retry']
  ]
  for (const [what, request, status, code, reason, action] of table) {
    for (const [mode, { host }] of Object.entries(modes)) {
      for (const protocols of [[], ['other'], [NAME], ['other', NAME]]) {
        const byClose = mode === 'close' || (mode === 'auto' && protocols.includes(NAME))
        if (byClose && protocols[0] === 'other' && protocols.length === 1) continue // the client library insists on a selection
        const answer = await upgrade(t, host, { ...request, protocols })
        const title = `${what}, refuse ${mode}, offering ${protocols.join(' and ') || 'nothing'}`
        if (byClose) {
          t.match(answer, { status: 101, code, context: undefined, protocol: protocols.includes(NAME) ? NAME : '' }, title)
          t.same(JSON.parse(answer.reason), { code: reason, action, retryAfterMs: action === 'retry' ? 5000 : 0 })
          t.ok(Buffer.byteLength(answer.reason) <= 123)
        } else {
          t.equal(answer.status, status, title)
        }
      }
    }
  }
  t.equal(modes.close.handled() + modes.auto.handled() + modes.http.handled(), 0)
})

t.test('refuse: a malformed request is answered as HTTP under auto, and a token beside our protocol is not echoed', async t => {
  const auto = await build(t)
  const close = await build(t, { auth: { refuse: 'close' } })
  const lines = [`Sec-WebSocket-Protocol: ${NAME}, bearer.a.b.c`]
  t.equal(statusOf(await rawUpgrade(auto.port, [...lines, 'Authorization: Bearer a.b.c'])), 400)
  t.equal(statusOf(await rawUpgrade(close.port, [...lines, 'Authorization: Bearer a.b.c'])), 101)
  for (const { port } of [auto, close]) {
    const answer = await rawUpgrade(port, lines)
    t.equal(statusOf(answer), 101)
    t.equal(headerOf(answer, 'sec-websocket-protocol'), NAME)
    t.notMatch(answer, /a\.b\.c/)
  }
})

t.test('refuse: close answers an HTTP request, and a handshake that is none, by status', async t => {
  const { host, port } = await build(t, { auth: { refuse: 'close' } })
  t.equal((await ask(host)).status, 401)
  t.match(await rawUpgrade(port, [], { version: '7' }), /^HTTP\/1\.1 4\d\d /)
  t.match(await rawUpgrade(port, [], { key: 'short' }), /^HTTP\/1\.1 4\d\d /)
  t.match(await rawUpgrade(port, ['Sec-WebSocket-Protocol: a,a']), /^HTTP\/1\.1 4\d\d /)
})

t.test('refuse: what a client sends before it reads the close is not delivered, and the code still arrives', async t => {
  const { host, handled } = await build(t, { auth: { refuse: 'close' } })
  const ended = deferred<number>()
  const socket = new WebSocket(`ws://${host}/live`)
  t.teardown(() => { socket.terminate() })
  socket.on('open', () => { socket.send('hello') })
  socket.on('message', () => { t.fail('nothing is answered') })
  socket.on('error', () => {})
  socket.on('close', code => { ended.resolve(code) })
  t.equal(await ended.promise, 4001)
  t.equal(handled(), 0)
})

t.test('refuse: a peer that never answers the close is terminated, and frames it sends end it at once', async t => {
  const { port, app } = await build(t, { auth: { refuse: 'close' } })
  const silent = new Promise<number>((resolve, reject) => {
    let closing = 0
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true }, () => { socket.write(handshake()) })
    t.teardown(() => { socket.destroy() })
    socket.on('data', () => { closing ||= performance.now() })
    socket.on('error', reject)
    socket.on('end', () => { resolve(performance.now() - closing) })
  })
  const talking = new Promise<void>(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(handshake()) })
    t.teardown(() => { socket.destroy() })
    // A masked text frame of one letter, under the mask of zeros.
    socket.once('data', () => { socket.write(Buffer.from([0x81, 0x81, 0, 0, 0, 0, 0x61])) })
    socket.on('error', () => { socket.destroy() })
    socket.on('close', () => { resolve() })
  })
  const rude = new Promise<void>(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(handshake()) })
    t.teardown(() => { socket.destroy() })
    socket.once('data', () => { socket.write(Buffer.from([0xff, 0xff, 0xff])) })
    socket.on('error', () => { socket.destroy() })
    socket.on('close', () => { resolve() })
  })
  await Promise.all([talking, rude])
  const waited = await silent
  t.ok(waited > 2500 && waited < 5000, `after ${Math.round(waited)} ms`)
  await Promise.all([...app.websocketServer.clients].map(client => new Promise(resolve => { client.on('close', resolve) })))
  t.equal(app.websocketServer.clients.size, 0, 'none is left')
})

t.test('refuse: an upgrade that cannot be accepted is refused by status, and not left waiting', async t => {
  const connections: net.Socket[] = []
  const { app, port } = await serve(t, async app => {
    app.addHook('onRequest', (request, _reply, done) => {
      // What another version of @fastify/websocket might keep elsewhere.
      for (const symbol of Object.getOwnPropertySymbols(request.raw)) if (symbol.description === 'ws-head') Reflect.deleteProperty(request.raw, symbol)
      done()
    })
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, refuse: 'close' })
    liveRoutes(app)
  })
  app.server.on('connection', (socket: net.Socket) => { connections.push(socket) })
  t.equal(statusOf(await rawUpgrade(port)), 401)
  // One that nobody answered would keep the server from closing.
  for (const socket of connections) socket.destroy()
})

t.test('require() guards the handler of what is not found', async t => {
  const events: AuditEvent[] = []
  const { host } = await build(t, {
    auth: { audit: event => { events.push(event) } },
    routes (app) { app.setNotFoundHandler({ preHandler: app.hybridAuth.require() }, async (_request, reply) => reply.code(404).send('nothing here')) }
  })
  t.equal((await ask(host, '/nowhere')).status, 401)
  t.same(await ask(host, '/nowhere', { headers: bearer() }).then(({ status, body }) => [status, body]), [404, 'nothing here'])
  t.match(events, [{ type: 'refused', route: '' }, { type: 'authenticated', route: '' }])
})

t.test('a fault is logged by name, code and frames, whatever was thrown, and never by its message', async t => {
  const lines: unknown[] = []
  const { app } = await serve(t, () => {})
  const log = app.log.child({})
  log.error = (line: unknown) => { lines.push(line) }
  const bare = new TypeError(CANARY)
  Reflect.deleteProperty(bare, 'stack')
  for (const fault of [Object.assign(new Error(CANARY), { code: 'ECONNREFUSED' }), Object.assign(new RangeError(CANARY), { code: 7 }), Object.assign(new Error(CANARY), { code: { CANARY } }), bare, CANARY, undefined, { CANARY }]) {
    logFault(log, 'test', fault)
  }
  t.match(lines, [
    { hybridAuth: { where: 'test', name: 'Error', code: 'ECONNREFUSED', frames: [/^ {4}at /] } }, { hybridAuth: { name: 'RangeError', code: 7 } }, { hybridAuth: { name: 'Error', code: undefined } },
    { hybridAuth: { name: 'TypeError', frames: [] } }, { hybridAuth: { thrown: 'string' } }, { hybridAuth: { thrown: 'undefined' } }, { hybridAuth: { thrown: 'object' } }
  ])
  t.notMatch(JSON.stringify(lines), CANARY)
})

t.test('a refused upgrade has no session when its hooks end, so that none is stored', async t => {
  const seen: unknown[] = []
  const { host, login } = await build(t, {
    routes (app) {
      app.get('/admin', {
        websocket: true, auth: { role: 'admin' },
        onSend: (request, _reply, payload, done) => { seen.push(request.session); done(null, payload) }
      }, () => {})
      app.get('/http', { auth: { role: 'admin' }, onSend: (request, _reply, payload, done) => { seen.push(typeof request.session); done(null, payload) } }, async () => 'ok')
    }
  })
  const cookie = await login()
  t.equal((await upgrade(t, host, { path: '/admin', headers: { cookie, origin: `http://${host}` } })).status, 403)
  t.equal((await ask(host, '/http', { headers: { cookie } })).status, 403)
  t.same(seen, [null, 'object'], 'an HTTP request keeps its own')
})

/** Whether a value and everything it holds are frozen. */
function isDeepFrozen (value: unknown): boolean {
  return typeof value !== 'object' || value === null || (Object.isFrozen(value) && Object.values(value).every(isDeepFrozen))
}

t.test('a context is frozen to its depth and shares nothing with what it was made of', async t => {
  const contexts: AuthContext[] = []
  const user = { userId: 'carol', permissions: ['a'], deep: [{ list: [1] }] }
  const { host, login } = await build(t, {
    auth: { jwt: { ...JWT, user: () => user }, session: SESSION },
    routes (app) { app.get('/keep', { auth: true }, async request => { contexts.push(request.auth); return 'ok' }) }
  })
  await ask(host, '/keep', { headers: bearer({ nested: { a: [{ b: 1 }] } }) })
  await ask(host, '/keep', { headers: { cookie: await login() } })
  t.equal(contexts.length, 2)
  for (const context of contexts) {
    t.ok(isDeepFrozen(context), context.authType)
    t.throws(() => { Object.assign(context, { userId: 'mallory' }) }, TypeError)
    t.throws(() => { Object.assign(context.permissions, ['all']) }, TypeError)
  }
  user.permissions.push('b')
  user.deep[0]?.list.push(2)
  t.match(contexts[0], { permissions: ['a'], user: { permissions: ['a'], deep: [{ list: [1] }] }, claims: { nested: { a: [{ b: 1 }] } } })
  t.equal(contexts[0]?.permissions.length, 1)
})

t.test('case 18: poisoned keys in claims and in what a mapper returns are in no context', async t => {
  const contexts: AuthContext[] = []
  const { host } = await build(t, {
    auth: { jwt: { ...JWT, user: claims => JSON.parse(`{"userId":"${claims.sub ?? ''}","__proto__":{"role":"admin"},"constructor":{"prototype":{"x":1}},"kept":1}`) as Identity } },
    routes (app) { app.get('/keep', { auth: true }, async request => { contexts.push(request.auth); return 'ok' }) }
  })
  const claims = `{"sub":"alice","exp":${inSeconds(60)},"__proto__":{"role":"admin"},"constructor":1,"prototype":2,"deep":{"__proto__":{"y":1},"kept":1}}`
  t.equal((await ask(host, '/keep', { headers: { authorization: `Bearer ${signRaw('{"alg":"HS256"}', claims)}` } })).status, 200)
  const [context] = contexts
  t.match(context, { userId: 'alice', role: null, user: { kept: 1 }, claims: { deep: { kept: 1 } } })
  t.notMatch(JSON.stringify(context), /__proto__|constructor|prototype|admin/)
  t.equal(context === undefined ? null : Object.getPrototypeOf(context.user), Object.prototype)
  t.notOk('x' in {} || 'y' in {} || 'role' in {})
})

t.test('a client that is gone while an asynchronous check runs breaks nothing', async t => {
  for (const verdict of [true, false]) {
    const entered = deferred<undefined>()
    const gate = deferred<boolean>()
    const gone = deferred<undefined>()
    let ran = 0
    const log = keepLines()
    const { app, host, port } = await build(t, {
      fastify: { logger: { stream: log.stream, level: 'error' } },
      routes (app) {
        const check = () => { entered.resolve(undefined); return gate.promise }
        app.get('/slow', { websocket: true, auth: { check } }, () => { ran++ })
      }
    })
    app.server.on('connection', (socket: net.Socket) => { socket.on('close', () => { gone.resolve(undefined) }) })
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(handshake([`Authorization: Bearer ${goodToken()}`], { path: '/slow' })) })
    socket.on('error', () => {})
    await entered.promise
    socket.resetAndDestroy()
    await gone.promise
    gate.resolve(verdict)
    t.equal((await upgrade(t, host, { headers: bearer() })).status, 101, 'the server lives')
    t.equal(ran, 0)
    t.equal(log.text(), '', 'and logs no error')
  }
})

t.test('an HTTP client that is gone while an asynchronous check runs breaks nothing', async t => {
  const entered = deferred<undefined>()
  const gate = deferred<boolean>()
  const gone = deferred<undefined>()
  let ran = 0
  const { app, host, port } = await build(t, {
    routes (app) { app.get('/slow', { auth: () => { entered.resolve(undefined); return gate.promise } }, async () => { ran++; return 'ok' }) }
  })
  app.server.on('connection', (socket: net.Socket) => { socket.on('close', () => { gone.resolve(undefined) }) })
  const socket = net.connect(port, '127.0.0.1', () => { socket.write(`GET /slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${goodToken()}\r\n\r\n`) })
  await entered.promise
  socket.destroy()
  await gone.promise
  gate.resolve(true)
  t.equal((await ask(host, '/me', { headers: bearer() })).status, 200)
  t.equal(ran, 0, 'its handler does not run for nobody')
})

t.test('a verdict that comes after the deadline opens nothing', async t => {
  const gate = deferred<boolean>()
  let ran = 0
  const { host } = await build(t, {
    auth: { handshakeTimeout: 50 },
    routes (app) { app.get('/slow', { websocket: true, auth: () => gate.promise }, () => { ran++ }) }
  })
  t.equal((await upgrade(t, host, { path: '/slow', headers: bearer() })).status, 503)
  gate.resolve(true)
  t.equal((await upgrade(t, host)).status, 401)
  t.equal(ran, 0)
})

t.test('injectWS works, with and without a credential', async t => {
  const { app } = await build(t, { routes (app) { app.get('/later', { websocket: true, auth: async () => true }, socket => { socket.send('{}') }) } })
  for (const path of ['/live', '/later']) {
    const first = deferred<string>()
    const socket = await app.injectWS(path, { headers: bearer() }, { onInit (ws) { ws.on('message', (data: Buffer) => { first.resolve(data.toString()) }) } })
    t.match(JSON.parse(await first.promise), path === '/live' ? { authType: 'jwt', userId: 'alice' } : {})
    socket.terminate()
  }
  await t.rejects(app.injectWS('/live'), { message: /401/ })
  await t.rejects(app.injectWS('/live', { headers: { authorization: 'Bearer a b' } }), { message: /400/ })
  await t.rejects(app.injectWS('/live', { headers: { cookie: 'sessionId=x', origin: 'http://x' } }), { message: /403/ })
  const refused = deferred<number>()
  await app.injectWS('/live', { headers: { 'sec-websocket-protocol': NAME } }, { onInit (ws) { ws.on('close', (code: number) => { refused.resolve(code) }) } })
  t.equal(await refused.promise, 4001)
})

t.test('case 81: a request without a network address does not break the audit', async t => {
  const events: AuditEvent[] = []
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT, audit: event => { events.push(event) } })
  liveRoutes(app)
  await app.ready()
  const socket = await app.injectWS('/live', { headers: bearer() })
  socket.terminate()
  t.match(events, [{ type: 'authenticated', ip: null, websocket: true }])
})

t.test('a session from the cookie serves HTTP and WebSocket with the same context', async t => {
  const store = new MapStore().put('s1', { user: { userId: 'bob', role: 'agent' }, cookie: {} })
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } })
    liveRoutes(app)
  })
  const headers = { cookie: cookieFor('s1'), origin: `http://${host}` }
  const { authenticatedAt: first, ...byUpgrade } = (await upgrade(t, host, { headers })).context ?? {}
  const { authenticatedAt: second, ...byHttp } = JSON.parse((await ask(host, '/me', { headers })).body) as Record<string, unknown>
  t.same(byUpgrade, byHttp)
  t.type(first, 'number')
  t.type(second, 'number')
})

t.test('a raw upgrade that is refused ends its connection', async t => {
  const { port } = await build(t)
  const answer = await rawAnswer(port, handshake(), 'nothing that is ever sent')
  t.equal(statusOf(answer), 401)
  t.equal(codeOf(answer.slice(answer.indexOf('{'))), 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
})

t.test('the deadline settles once: with what is there, what comes, what fails, or when it is over', async t => {
  const settled: unknown[] = []
  const settle = (value: unknown) => { settled.push(value) }
  settleWithin('now', 10, 'late', settle)
  t.same(settled, ['now'], 'what is there is settled at once')
  const outcome = (value: Promise<string>, ms: number) => new Promise(resolve => { settleWithin(value, ms, 'late', resolve) })
  t.equal(await outcome(Promise.resolve('soon'), 1000), 'soon')
  t.equal(await outcome(Promise.reject(new Error('x')), 1000), 'late', 'what fails is as good as late')
  const slow = deferred<string>()
  // The timer holds no process open, so something else must until it has run.
  const hold = setTimeout(() => {}, 5000)
  t.equal(await outcome(slow.promise, 5), 'late')
  clearTimeout(hold)
  slow.resolve('too late')
  await slow.promise
})

t.test('what may be there stays synchronous', async t => {
  t.equal(whenReady(1, value => value + 1), 2)
  t.equal(await whenReady(Promise.resolve(1), value => value + 1), 2)
  t.equal(adopt(7), 7)
  t.equal(adopt(null), null)
  t.equal(await adopt({ then (settle: (value: number) => unknown) { settle(7) } } as PromiseLike<number>), 7)
})

t.test('plain data is what JSON would keep, without poison, to a depth', async t => {
  t.same(plain({ a: undefined, b: () => 1, c: NaN, d: new Date(0), e: [undefined, Symbol('x'), 1], f: null, g: 'x', h: true }), { c: null, d: '1970-01-01T00:00:00.000Z', e: [null, null, 1], f: null, g: 'x', h: true })
  t.equal(plain(undefined), undefined)
  t.equal(plain(Infinity), null)
  t.throws(() => plain(1n), TypeError)
  const cycle: unknown[] = []
  cycle.push(cycle)
  t.throws(() => plain(cycle), TypeError)
  const self: Record<string, unknown> = {}
  self.self = self
  t.throws(() => plainObject(self), TypeError)
  t.throws(() => plain({ toJSON () { return this } }), TypeError)
  t.same(plainObject(Object.create({ inherited: 1 }) as object), {})
})

t.test('an identity is whole or none', async t => {
  t.match(checkIdentity({ userId: 'a' }), { userId: 'a', role: null, permissions: [], tenantId: null, user: { userId: 'a' } })
  t.match(checkIdentity({ userId: 'a', role: null, permissions: null, tenantId: undefined }), { role: null, permissions: [], tenantId: null })
  for (const bad of [null, undefined, 'a', 1, {}, { userId: '' }, { userId: 'a', role: '' }, { userId: 'a', tenantId: 7 }, { userId: 'a', permissions: {} }]) t.equal(checkIdentity(bad), null)
  t.match(identityFromClaims({ sub: 'a', role: 'r', scope: 'x y', companyId: 'c' }), { userId: 'a', role: 'r', permissions: ['x', 'y'], tenantId: 'c' })
})
