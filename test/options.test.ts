import type { Socket } from 'node:net'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import hybridAuth, { ERRORS, hybridAuth as named, type HybridAuthOptions, type RouteAuth, type Rule } from '../lib/index.js'
import { parseOptions } from '../lib/options.js'
import { parseRouteAuth, parseRule } from '../lib/route-options.js'
import { CLOSE, closeReason, type CloseName } from '../lib/protocol.js'
import { build, goodToken, handshake, JWT, keepLines, SECRET, SESSION, SESSION_SECRET, signHs256, goodClaims, statusOf, upgrade } from './helpers.js'
import { ask, codeOf, cookieFor, headerOf, liveRoutes, MapStore, rawAnswer, rawUpgrade, serve } from './stores.js'

const INVALID = 'FST_HYBRID_AUTH_INVALID_OPTION'
const store = new MapStore()
const withJwt = (changes: object) => ({ jwt: { ...JWT, ...changes } })
const withStore = (changes: object) => ({ session: { ...SESSION, store, secret: SESSION_SECRET, ...changes } })

/** What is wrong, and the path that the message must name. */
const BAD: Array<[string, string, unknown]> = [
  // Case 84
  ['case 84: algorithms missing', 'jwt.algorithms', { jwt: { key: SECRET } }],
  ['case 84: algorithms undefined', 'jwt.algorithms', withJwt({ algorithms: undefined })],
  ['case 84: algorithms as text', 'jwt.algorithms', withJwt({ algorithms: 'HS256' })],
  ['case 84: no algorithms', 'jwt.algorithms', withJwt({ algorithms: [] })],
  ['case 84: algorithms as a set', 'jwt.algorithms', withJwt({ algorithms: new Set(['HS256']) })],
  ['case 84: none', 'jwt.algorithms.0', withJwt({ algorithms: ['none'] })],
  ['case 84: none among good ones', 'jwt.algorithms.1', withJwt({ algorithms: ['HS256', 'none'] })],
  ['case 84: lower case', 'jwt.algorithms.0', withJwt({ algorithms: ['hs256'] })],
  ['case 84: an unknown one', 'jwt.algorithms.0', withJwt({ algorithms: ['ES256K'] })],
  ['case 84: null among them', 'jwt.algorithms.0', withJwt({ algorithms: [null] })],
  ['case 84: two families', 'jwt.algorithms', withJwt({ algorithms: ['HS256', 'RS256'] })],
  ['case 84: two other families', 'jwt.algorithms', withJwt({ algorithms: ['ES256', 'EdDSA'] })],
  // Case 85, the option itself
  ['case 85: no key', 'jwt.key', { jwt: { algorithms: ['HS256'] } }],
  ['case 85: a null key', 'jwt.key', withJwt({ key: null })],
  ['case 85: an empty key', 'jwt.key', withJwt({ key: '' })],
  ['case 85: a number as key', 'jwt.key', withJwt({ key: 7 })],
  ['case 85: no keys', 'jwt.key', withJwt({ key: {} })],
  // Case 86
  ['case 86: a RegExp as issuer', 'jwt.issuer', withJwt({ issuer: /x/ })],
  ['case 86: an empty issuer', 'jwt.issuer', withJwt({ issuer: '' })],
  ['case 86: no issuers', 'jwt.issuer', withJwt({ issuer: [] })],
  ['case 86: an empty issuer in a list', 'jwt.issuer.1', withJwt({ issuer: ['a', ''] })],
  ['case 86: a RegExp in a list', 'jwt.issuer', withJwt({ issuer: [/x/] })],
  ['case 86: a null issuer', 'jwt.issuer', withJwt({ issuer: null })],
  ['case 86: a RegExp as audience', 'jwt.audience', withJwt({ audience: /x/ })],
  ['case 86: an empty audience', 'jwt.audience', withJwt({ audience: '' })],
  ['case 86: no audiences', 'jwt.audience', withJwt({ audience: [] })],
  ['case 86: an empty audience in a list', 'jwt.audience.0', withJwt({ audience: [''] })],
  ['case 86: an empty typ', 'jwt.typ', withJwt({ typ: '' })],
  // Case 87
  ['case 87: a tolerance that is no number', 'jwt.clockTolerance', withJwt({ clockTolerance: NaN })],
  ['case 87: an infinite tolerance', 'jwt.clockTolerance', withJwt({ clockTolerance: Infinity })],
  ['case 87: more than 300 s', 'jwt.clockTolerance', withJwt({ clockTolerance: 301 })],
  ['case 87: a negative tolerance', 'jwt.clockTolerance', withJwt({ clockTolerance: -1 })],
  ['case 87: a tolerance as text', 'jwt.clockTolerance', withJwt({ clockTolerance: '60' })],
  ['case 87: a maximum age as text', 'jwt.maxAge', withJwt({ maxAge: '60s' })],
  ['case 87: a maximum age of nothing', 'jwt.maxAge', withJwt({ maxAge: 0 })],
  ['case 87: an infinite maximum age', 'jwt.maxAge', withJwt({ maxAge: Infinity })],
  ['case 87: a token length of nothing', 'jwt.maxTokenLength', withJwt({ maxTokenLength: 0 })],
  ['case 87: a token length without bound', 'jwt.maxTokenLength', withJwt({ maxTokenLength: 1e9 })],
  ['case 87: a deadline of nothing', 'handshakeTimeout', { jwt: JWT, handshakeTimeout: 0 }],
  ['case 87: a deadline that is no number', 'handshakeTimeout', { jwt: JWT, handshakeTimeout: NaN }],
  ['case 87: a deadline past what a timer can hold', 'handshakeTimeout', { jwt: JWT, handshakeTimeout: 2 ** 31 }],
  // Case 88
  ['case 88: an unknown option', 'orgins', { jwt: JWT, orgins: [] }],
  ['case 88: an unknown option of jwt', 'jwt.algorithm', withJwt({ algorithm: 'HS256' })],
  ['case 88: an unknown option of session', 'session.cookie', { session: { ...SESSION, cookie: 'x' } }],
  ['case 88: an unknown option of credentials', 'credentials.header', { jwt: JWT, credentials: { header: false } }],
  ['case 88: an unknown option that is undefined', 'tokens', { jwt: JWT, tokens: undefined }],
  // Case 89
  ['case 89: nothing that authenticates', 'jwt', {}],
  ['case 89: both undefined', 'jwt', { jwt: undefined, session: undefined }],
  // Types
  ['jwt as true', 'jwt', { jwt: true }],
  ['jwt as null', 'jwt', { jwt: null, session: SESSION }],
  ['session as true', 'session', { session: true }],
  ['allowNoExpiry as text', 'jwt.allowNoExpiry', withJwt({ allowNoExpiry: 'yes' })],
  ['a mapper that is no function', 'jwt.user', withJwt({ user: 'sub' })],
  ['a session without a mapper', 'session.user', { session: {} }],
  ['a session mapper that is no function', 'session.user', { session: { user: true } }],
  ['a store without get', 'session.store', withStore({ store: {} })],
  ['a store that is null', 'session.store', withStore({ store: null })],
  ['a store whose get is no function', 'session.store', withStore({ store: { get: 1 } })],
  ['a store without a secret', 'session.secret', { session: { ...SESSION, store } }],
  ['a short secret', 'session.secret', withStore({ secret: 'short' })],
  ['a secret of 31 characters', 'session.secret', withStore({ secret: 'x'.repeat(31) })],
  ['an empty list of secrets', 'session.secret', withStore({ secret: [] })],
  ['a short secret in a list', 'session.secret', withStore({ secret: [SESSION_SECRET, 'short'] })],
  ['a number as secret', 'session.secret', withStore({ secret: 7 })],
  ['a signer that only signs', 'session.secret', withStore({ secret: { sign: () => '' } })],
  ['a secret without a store', 'session.secret', { session: { ...SESSION, secret: SESSION_SECRET } }],
  ['an empty cookie name', 'session.cookieName', withStore({ cookieName: '' })],
  ['a cookie prefix that is no text', 'session.cookiePrefix', withStore({ cookiePrefix: 7 })],
  ['origins as text', 'origins', { jwt: JWT, origins: 'https://a.example' }],
  ['no origins', 'origins', { jwt: JWT, origins: [] }],
  ['any origin', 'origins.0', { jwt: JWT, origins: ['*'] }],
  ['origins as true', 'origins', { jwt: JWT, origins: true }],
  ['an origin with a path', 'origins.1', { jwt: JWT, origins: ['https://a.example', 'https://a.example/'] }],
  ['an origin as RegExp', 'origins.0', { jwt: JWT, origins: [/a/] }],
  ['an unknown fallback', 'fallback', { jwt: JWT, fallback: 'never' }],
  ['credentials as true', 'credentials', { jwt: JWT, credentials: true }],
  ['a query that is no flag', 'credentials.query', { jwt: JWT, credentials: { query: 'token' } }],
  ['a subprotocol that is no flag', 'credentials.subprotocol', { jwt: JWT, credentials: { subprotocol: 1 } }],
  ['an unknown guard', 'guard', { jwt: JWT, guard: 'none' }],
  ['guard as false', 'guard', { jwt: JWT, guard: false }],
  ['an unknown refusal', 'refuse', { jwt: JWT, refuse: 'drop' }],
  ['an audit that is no function', 'audit', { jwt: JWT, audit: [] }]
]

t.test('a bad option stops the registration, with a code and the option\'s path', async t => {
  for (const [what, path, options] of BAD) {
    const app = Fastify()
    const registered = Promise.resolve(app.register(hybridAuth, options as HybridAuthOptions))
    await t.rejects(registered, { code: INVALID, message: new RegExp(`^Invalid option ${path.replaceAll('.', '\\.')}: \\S`) }, what)
    await app.close().catch(() => {})
  }
  t.throws(() => parseOptions(undefined), { code: INVALID })
  t.throws(() => parseOptions(null), { code: INVALID })
  t.throws(() => parseOptions('x'), { code: INVALID, message: /options: must be an object/ })
})

t.test('no message of a bad option holds the key or the secret', async t => {
  const canary = 'canary-4711'
  const bad: unknown[] = [
    withJwt({ key: canary }), withJwt({ key: { kid: canary } }), withStore({ secret: canary }), withStore({ secret: [canary] }), withJwt({ key: canary, algorithms: ['HS512'] }),
    withJwt({ key: `-----BEGIN PUBLIC KEY-----\n${canary}` }), withJwt({ key: canary, algorithms: ['RS256'] })
  ]
  for (const options of bad) {
    const error: unknown = await Promise.resolve(Fastify().register(hybridAuth, options as HybridAuthOptions)).then(() => null, (reason: unknown) => reason)
    t.match(error, { code: INVALID })
    t.notMatch(error instanceof Error ? error.message + (error.stack ?? '') : '', canary)
  }
})

t.test('case 88: a route\'s auth option is held to its schema, at every depth', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT })
  const bad: Array<[string, unknown]> = [
    ['auth', 'yes'], ['auth', 1], ['auth', 0], ['auth', ''], ['auth', Symbol('x')],
    ['auth.permision', { permision: ['x'] }], ['auth.permissions', { permissions: 'x' }], ['auth.permissions', { permissions: [] }], ['auth.permissions.0', { permissions: [''] }],
    ['auth.permissions.1', { permissions: ['a', 7] }], ['auth.anyPermission', { anyPermission: [] }], ['auth.anyPermission', { anyPermission: 'x' }],
    ['auth.role', { role: '' }], ['auth.role', { role: ['admin'] }], ['auth.role', { role: null }], ['auth.roles', { roles: 'admin' }], ['auth.roles', { roles: [] }],
    ['auth.types', { types: [] }], ['auth.types', { types: 'jwt' }], ['auth.types.0', { types: ['cookie'] }], ['auth.optional', { optional: 'yes' }], ['auth.check', { check: true }]
  ]
  for (const [path, auth] of bad) {
    const expected = { code: INVALID, message: new RegExp(`^Invalid option ${path.replaceAll('.', '\\.')}: \\S`) }
    t.throws(() => app.get('/x', { auth: auth as RouteAuth }, async () => 'ok'), expected, `${path} of an HTTP route`)
    t.throws(() => app.get('/x', { websocket: true, auth: auth as RouteAuth }, () => {}), expected, `${path} of a WebSocket route`)
  }
  for (const auth of [true, false, {}, { permissions: ['a'], anyPermission: ['b'], role: 'c', roles: ['d'], types: ['jwt', 'session'], optional: true, check: () => true }, () => true]) {
    t.doesNotThrow(() => parseRouteAuth(auth as RouteAuth, true))
  }
})

t.test('case 88: auth: null says neither that a route is open nor that it is guarded, and is refused', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT })
  const auth: unknown = null
  t.throws(() => app.get('/x', { auth: auth as RouteAuth }, async () => 'ok'), { code: INVALID })
  t.throws(() => app.get('/y', { websocket: true, auth: auth as RouteAuth }, () => {}), { code: INVALID })
})

t.test('case 88: a rule for require() is held to its schema', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(hybridAuth, { jwt: JWT })
  for (const [path, rule] of [
    ['require.optional', { optional: true }], ['require.roll', { roll: 'x' }], ['require.permissions', { permissions: 'x' }], ['require.types.0', { types: ['x'] }],
    ['require.check', { check: 'x' }], ['require', 'admin'], ['require', true], ['require', 1]
  ] as const) {
    t.throws(() => app.hybridAuth.require(rule as Rule), { code: INVALID, message: new RegExp(`^Invalid option ${path.replaceAll('.', '\\.')}: \\S`) }, path)
  }
  const check = () => true
  t.match(parseRule(check), { check, firstMessage: 0 })
})

t.test('every default is what the documentation says', async t => {
  const { jwt, ...rest } = parseOptions({ jwt: JWT })
  t.same(rest, {
    heartbeat: { interval: 25_000, timeout: 10_000 }, drain: { window: 5000, deadline: 10_000 }, closeCodes: {}, limits: { pending: 1000 },
    fallback: 'invalid', credentials: { query: false, subprotocol: true, ticket: true, allowTokenInLogs: false }, revocations: { retention: 2_592_000_000 }, guard: 'all', refuse: 'auto', handshakeTimeout: 10_000,
    failures: { max: 10, window: 300_000, block: 'credential' }, requireTls: false, report: [],
    rooms: { maxPerConnection: 100, maxNameLength: 128, maxPayload: 65_536, maxBuffered: 1_048_576 }
  })
  t.same(jwt, { key: SECRET, algorithms: ['HS256'], clockTolerance: 0, maxTokenLength: 8192, allowNoExpiry: false })
  t.match(parseOptions({ session: { ...SESSION, store, secret: SESSION_SECRET } }).session, {
    cookieName: 'sessionId', cookiePrefix: '', revalidate: 30_000, onStoreError: 'serve', maxStale: 300_000, touch: false
  })
  t.match(parseOptions({ jwt: { ...JWT, issuer: 'a', audience: ['b', 'c'] } }).jwt, { issuer: ['a'], audience: ['b', 'c'] }, 'one becomes a list of one')
  t.equal(hybridAuth, named, 'default and named export are the same')
})

t.test('the bounds of a number are inside', async t => {
  for (const changes of [{ clockTolerance: 0 }, { clockTolerance: 300 }, { maxAge: 1 }, { maxTokenLength: 65_536 }]) t.doesNotThrow(() => parseOptions(withJwt(changes)))
  for (const handshakeTimeout of [1, 600_000]) t.doesNotThrow(() => parseOptions({ jwt: JWT, handshakeTimeout }))
})

t.test('sessions without @fastify/session stop the start with a code of their own', async t => {
  const app = Fastify()
  await app.register(hybridAuth, { session: SESSION })
  await t.rejects(Promise.resolve(app.ready()), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY', message: /@fastify\/session/ })
  await app.close().catch(() => {})

  const child = Fastify()
  await child.register(async scope => {
    await scope.register(cookie)
    await scope.register(session, { secret: SESSION_SECRET })
  })
  await child.register(hybridAuth, { session: SESSION })
  await t.rejects(Promise.resolve(child.ready()), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY' }, 'one in a sibling scope is no help')
  await child.close().catch(() => {})

  const reading = Fastify()
  t.teardown(() => reading.close())
  await reading.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } })
  await t.resolves(Promise.resolve(reading.ready()), 'reading the store needs none')
})

t.test('registering twice in one scope is refused', async t => {
  const app = Fastify()
  await app.register(hybridAuth, { jwt: JWT })
  await t.rejects(Promise.resolve(app.register(hybridAuth, { jwt: JWT })))
  await app.close().catch(() => {})
})

t.test('case 90: a WebSocket route declared before the plugin is refused, and the log says so', async t => {
  const log = keepLines()
  const token = goodToken()
  let ran = 0
  const { port } = await serve(t, async app => {
    await app.register(websocket)
    app.get('/early', { websocket: true }, () => { ran++ })
    app.get('/early-and-open', { websocket: true, auth: false }, () => { ran++ })
    await app.register(hybridAuth, { jwt: JWT })
    liveRoutes(app)
  }, { logger: { stream: log.stream, level: 'error' } })
  for (const path of ['/early', '/early-and-open']) {
    for (const lines of [[], [`Authorization: Bearer ${token}`]]) {
      const answer = await rawAnswer(port, handshake(lines, { path: `${path}?token=${token}` }), '}')
      t.equal(statusOf(answer), 503, path)
      t.equal(codeOf(answer.slice(answer.indexOf('{'))), 'FST_HYBRID_AUTH_UNGUARDED_ROUTE')
      t.equal(Number(headerOf(answer, 'content-length')), answer.slice(answer.indexOf('{')).length)
    }
  }
  t.equal(ran, 0)
  t.match(log.text(), /"code":"FST_HYBRID_AUTH_UNGUARDED_ROUTE","path":"\/early"/)
  t.notMatch(log.text(), token)
  t.equal(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${token}`])), 101, 'the routes behind it work')
})

t.test('case 90: a WebSocket route in a scope beside the plugin is refused', async t => {
  let ran = 0
  const { port } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(async scope => {
      await scope.register(hybridAuth, { jwt: JWT })
      liveRoutes(scope)
    })
    await app.register(async scope => { scope.get('/beside', { websocket: true }, () => { ran++ }) })
    app.get('/above', { websocket: true }, () => { ran++ })
  })
  for (const path of ['/beside', '/above']) t.equal(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`], { path })), 503, path)
  t.equal(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`])), 101)
  t.equal(statusOf(await rawUpgrade(port)), 401)
  t.equal(ran, 0)
})

t.test('auth: false opens a WebSocket route, and only that one', async t => {
  const { host, port } = await build(t, {
    routes (app) {
      app.get('/open', { websocket: true, auth: false }, (socket, request) => { socket.send(JSON.stringify({ who: app.hybridAuth.contextOf(request) })) })
    }
  })
  t.same((await upgrade(t, host, { path: '/open' })).context, { who: null })
  t.same((await upgrade(t, host, { path: '/open', headers: { authorization: `Bearer ${goodToken()}` } })).context, { who: null }, 'a credential is not even looked at')
  t.same((await upgrade(t, host, { path: '/open', headers: { origin: 'https://evil.example' } })).context, { who: null })
  t.equal(statusOf(await rawUpgrade(port)), 401)
})

t.test('guard: opt-in leaves WebSocket routes without auth open, and says so at the start', async t => {
  const log = keepLines()
  const { host } = await build(t, {
    auth: { guard: 'opt-in' },
    fastify: { logger: { stream: log.stream, level: 'warn' } },
    routes (app) {
      app.get('/new', { websocket: true, auth: true }, socket => { socket.send('{}') })
      app.get('/old', { websocket: true }, (socket, request) => { socket.send(JSON.stringify({ who: app.hybridAuth.contextOf(request) })) })
      app.get('/agents', { websocket: true, auth: { role: 'agent' } }, socket => { socket.send('{}') })
    }
  })
  t.same((await upgrade(t, host, { path: '/old' })).context, { who: null })
  t.equal((await upgrade(t, host, { path: '/new' })).status, 401)
  t.equal((await upgrade(t, host, { path: '/new', headers: { authorization: `Bearer ${goodToken()}` } })).status, 101)
  t.equal((await upgrade(t, host, { path: '/agents', headers: { authorization: `Bearer ${goodToken()}` } })).status, 403)
  t.match(log.text(), /opt-in/)
})

t.test('an HTTP route is guarded only where it says so', async t => {
  const { host } = await build(t, {
    routes (app) {
      app.get('/open', async request => ({ who: app.hybridAuth.contextOf(request) }))
      app.get('/open-too', { auth: false }, async () => 'ok')
    }
  })
  t.equal((await ask(host, '/open', { headers: { authorization: `Bearer ${goodToken()}` } })).body, '{"who":null}')
  t.equal((await ask(host, '/open-too')).status, 200)
  t.equal((await ask(host)).status, 401)
  t.equal((await ask(host, '/me', { method: 'HEAD' })).status, 401, 'its HEAD route as well')
  t.equal((await ask(host, '/me', { method: 'HEAD', headers: { authorization: `Bearer ${goodToken()}` } })).status, 200)
})

t.test('a route that serves HTTP and WebSocket guards its socket, and its HTTP only if auth is given', async t => {
  const { host } = await build(t, {
    routes (app) {
      const wsHandler = (socket: { send: (text: string) => void }) => { socket.send('{}') }
      app.route({ method: 'GET', url: '/both', handler: async () => 'ok', wsHandler })
      app.route({ method: 'GET', url: '/both-guarded', auth: true, handler: async () => 'ok', wsHandler })
      app.route({ method: 'GET', url: '/both-open', auth: false, handler: async () => 'ok', wsHandler })
    }
  })
  const results = []
  for (const path of ['/both', '/both-guarded', '/both-open']) results.push([(await ask(host, path)).status, (await upgrade(t, host, { path })).status])
  t.same(results, [[200, 401], [401, 401], [200, 101]])
  t.equal((await upgrade(t, host, { path: '/both', headers: { authorization: `Bearer ${goodToken()}` } })).status, 101)
})

t.test('two scopes have their own options, each holding for its routes', async t => {
  const key = 'another key for the other scope, as long'
  const { port } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(async scope => {
      await scope.register(hybridAuth, { jwt: JWT })
      liveRoutes(scope)
    }, { prefix: '/a' })
    await app.register(async scope => {
      await scope.register(hybridAuth, { jwt: { key, algorithms: ['HS256'] }, refuse: 'close' })
      liveRoutes(scope)
    }, { prefix: '/b' })
  })
  const status = async (path: string, secret: string) => statusOf(await rawUpgrade(port, [`Authorization: Bearer ${signHs256(goodClaims(), {}, secret)}`], { path }))
  t.equal(await status('/a/live', SECRET), 101)
  t.equal(await status('/a/live', key), 401)
  t.equal((await ask(`127.0.0.1:${port}`, '/b/me', { headers: { authorization: `Bearer ${signHs256(goodClaims(), {}, key)}` } })).status, 200)
  t.equal((await ask(`127.0.0.1:${port}`, '/b/me', { headers: { authorization: `Bearer ${goodToken()}` } })).status, 401)
  t.match((await upgrade(t, `127.0.0.1:${port}`, { path: '/b/live', headers: { authorization: `Bearer ${goodToken()}` } })), { status: 101, code: 4001, context: undefined })
  t.match((await upgrade(t, `127.0.0.1:${port}`, { path: '/b/live', headers: { authorization: `Bearer ${signHs256(goodClaims(), {}, key)}` } })).context, { authType: 'jwt' })
})

t.test('a registration in a child scope wins there, and the parent\'s holds elsewhere', async t => {
  const key = 'another key for the other scope, as long'
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT })
    liveRoutes(app)
    await app.register(async scope => {
      scope.get('/before', { websocket: true }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
      await scope.register(hybridAuth, { jwt: { key, algorithms: ['HS256'] } })
      liveRoutes(scope)
      scope.get('/required', { preHandler: scope.hybridAuth.require() }, async request => request.auth)
      await scope.register(async inner => { liveRoutes(inner) }, { prefix: '/inner' })
    }, { prefix: '/child' })
  })
  const ours = { headers: { authorization: `Bearer ${goodToken()}` } }
  const theirs = { headers: { authorization: `Bearer ${signHs256(goodClaims(), {}, key)}` } }
  for (const [path, first, second] of [['/live', 101, 401], ['/child/live', 401, 101], ['/child/inner/live', 401, 101], ['/child/before', 101, 401]] as const) {
    t.equal((await upgrade(t, host, { path, ...ours })).status, first, `${path} with the parent's key`)
    t.equal((await upgrade(t, host, { path, ...theirs })).status, second, `${path} with the child's key`)
  }
  for (const path of ['/child/me', '/child/required']) {
    t.equal((await ask(host, path, ours)).status, 401, path)
    t.equal((await ask(host, path, theirs)).status, 200, path)
  }
})

t.test('the order of registration does not matter', async t => {
  const orders: Array<[string, (app: FastifyInstance) => Promise<void>]> = [
    ['the plugin first', async app => {
      await app.register(hybridAuth, { jwt: JWT, session: SESSION })
      await app.register(websocket)
      await app.register(cookie)
      await app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false } })
    }],
    ['between them', async app => {
      await app.register(cookie)
      await app.register(websocket)
      await app.register(hybridAuth, { jwt: JWT, session: SESSION })
      await app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false } })
    }],
    ['not waited for', async app => {
      app.register(hybridAuth, { jwt: JWT, session: SESSION })
      app.register(websocket)
      app.register(cookie)
      app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false } })
    }]
  ]
  store.put('s1', { user: { userId: 'bob' }, cookie: {} })
  for (const [what, register] of orders) {
    const { host } = await serve(t, async app => {
      await register(app)
      app.register(async scope => { liveRoutes(scope) })
    })
    const cookies = { cookie: cookieFor('s1'), origin: `http://${host}` }
    t.match((await upgrade(t, host, { headers: { authorization: `Bearer ${goodToken()}` } })).context, { authType: 'jwt' }, what)
    t.match((await upgrade(t, host, { headers: cookies })).context, { authType: 'session' }, what)
    t.equal((await upgrade(t, host)).status, 401, what)
    t.equal((await upgrade(t, host, { headers: { ...cookies, origin: 'https://evil.example' } })).status, 403, what)
    t.match(await upgrade(t, host, { protocols: ['hybrid-auth.v1'] }), { status: 101, code: 4001 }, what)
    t.equal((await ask(host, '/me', { headers: cookies })).status, 200, what)
  }
})

t.test('@fastify/websocket in a child scope of the plugin: its routes are guarded, and told by close code', async t => {
  const { app, host, port } = await serve(t, async app => {
    await app.register(hybridAuth, { jwt: JWT })
    await app.register(async scope => {
      await scope.register(websocket)
      liveRoutes(scope)
    })
  })
  const connections: Socket[] = []
  app.server.on('connection', (socket: Socket) => { connections.push(socket) })
  t.equal(statusOf(await rawUpgrade(port)), 401)
  t.match((await upgrade(t, host, { headers: { authorization: `Bearer ${goodToken()}` } })).context, { authType: 'jwt' })
  const told = await rawUpgrade(port, ['Sec-WebSocket-Protocol: hybrid-auth.v1'])
  t.equal(statusOf(told), 101, 'a client that speaks the protocol is told by close code')
  // One that nobody answered would keep the server from closing.
  for (const socket of connections) socket.destroy()
})

t.test('without @fastify/websocket the plugin guards HTTP alone', async t => {
  const events: unknown[] = []
  const { host, port } = await serve(t, async app => {
    await app.register(hybridAuth, { jwt: JWT, audit: event => { events.push(event) } })
    app.get('/me', { auth: true }, async request => request.auth)
  })
  t.equal((await ask(host)).status, 401)
  t.equal((await ask(host, '/me', { headers: { authorization: `Bearer ${goodToken()}` } })).status, 200)
  t.match(events, [{ type: 'refused', websocket: false }, { type: 'authenticated', websocket: false }], 'an HTTP request is no WebSocket in the audit')
  t.not(statusOf(await rawUpgrade(port, [], { path: '/me' })), 101)
})

t.test('every error has a status, a close code and a message without holes', async t => {
  const names = Object.keys(CLOSE)
  for (const [code, row] of Object.entries(ERRORS)) {
    t.match(code, /^FST_HYBRID_AUTH_[A-Z_]+$/)
    t.ok(row.status >= 400 && row.status < 600)
    t.ok(names.includes(row.close), code)
  }
  t.ok(Object.isFrozen(ERRORS))
})

t.test('every close reason is JSON of at most 123 bytes, and no code is used twice', async t => {
  const codes = Object.values(CLOSE).map(row => row.code)
  t.equal(new Set(codes).size, codes.length)
  for (const name of Object.keys(CLOSE) as CloseName[]) {
    const text = closeReason(name, 2 ** 53)
    t.ok(Buffer.byteLength(text) <= 123, name)
    t.same(JSON.parse(text), { code: CLOSE[name].reason, action: CLOSE[name].action, retryAfterMs: 2 ** 53 })
  }
  t.match(JSON.parse(closeReason('Revoked')), { retryAfterMs: 0 })
})
