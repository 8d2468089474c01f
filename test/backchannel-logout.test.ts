/** Logout tokens of an OpenID provider (OpenID Connect Back-Channel Logout 1.0): which count, how they may come, and that they are good for nothing else. */
import { createPublicKey } from 'node:crypto'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import hybridAuth, { serializers, type BackchannelLogoutOptions, type Claims, type HybridAuthOptions } from '../lib/index.js'
import { discover, introspection, jwks } from '../lib/verify/providers.js'
import { watch } from './canary.js'
import { goodClaims, inSeconds, keepLines, SECRET, SESSION, SESSION_SECRET, signHs256, signRaw, upgrade } from './helpers.js'
import { eventually, setClock, type LiveOptions } from './live.js'
import { fakeIssuer, garbled, issuerKey, mint, mintRaw, publishes, says, saysJson, stopwatch, type FakeIssuer, type Jwk } from './provider.js'
import { audited, bearer, driverOf, isOpen, isRevoked, untyped, type Audited } from './revoking.js'
import { ask, codeOf, deferred, rawAnswer, type Answer } from './stores.js'
import { authFrame, connect } from './wire.js'

const EVENT = 'http://schemas.openid.net/event/backchannel-logout'
const FORM = 'application/x-www-form-urlencoded'
const PATH = '/logged-out'
const ISSUER = 'https://id.example'
const APP = 'the-app'
const OPTION = 'FST_HYBRID_AUTH_INVALID_OPTION'

const KEY = issuerKey('k1')
const PUBLIC = createPublicKey({ key: KEY.jwk, format: 'jwk' })
const PEM = PUBLIC.export({ type: 'spki', format: 'pem' }).toString()
const JWT = { key: PUBLIC, algorithms: ['ES256'], issuer: ISSUER, audience: APP } as const satisfies HybridAuthOptions['jwt']

/** Claims of a logout token that is in order, with changes. */
const logoutClaims = (changes: Jwk = {}): Jwk =>
  goodClaims({ iss: ISSUER, aud: APP, sub: undefined, sid: 'login-1', exp: inSeconds(120), events: { [EVENT]: {} }, ...changes })
const logoutToken = (changes: Jwk = {}, header: Jwk = {}) => mint(KEY, logoutClaims(changes), { typ: 'logout+jwt', ...header })
/** What the same provider issues for access. */
const accessToken = (changes: Jwk = {}, header: Jwk = {}) => mint(KEY, { iss: ISSUER, aud: APP, sid: 'login-1', iat: inSeconds(-10), ...changes }, header)

const formOf = (body: string | URLSearchParams): RequestInit => ({ method: 'POST', headers: { 'content-type': FORM }, body: String(body) })
const tell = (host: string, token: string, path = PATH) => ask(host, path, formOf(new URLSearchParams({ logout_token: token })))

interface Guarded extends Audited {
  tell: (token: string, path?: string) => Promise<Answer>
  /** What `onLogout` was called with. */
  told: Claims[]
  /** What `/me` answers to a token. */
  status: (token: string) => Promise<number>
}

interface GuardedOptions extends LiveOptions { logout?: Partial<BackchannelLogoutOptions> }

async function guarded (t: Test, { logout, auth, routes, ...rest }: GuardedOptions = {}): Promise<Guarded> {
  const told: Claims[] = []
  const server = await audited(t, {
    auth: { jwt: JWT, ...auth },
    routes (app) {
      routes?.(app)
      app.register(hybridAuth.backchannelLogout, { path: PATH, onLogout: claims => { told.push(claims) }, ...logout })
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => {})
    },
    ...rest
  })
  return {
    ...server,
    told,
    tell: (token, path) => tell(server.host, token, path),
    status: async token => (await ask(server.host, '/me', bearer(token))).status
  }
}

const headerOf = ({ headers }: Answer, name: string) => headers.get(name)

function isDone (t: Test, answer: Answer, what = 'the logout'): void {
  t.same([answer.status, answer.body, headerOf(answer, 'cache-control')], [200, '', 'no-store'], `${what} is carried out`)
}

function isRefused (t: Test, answer: Answer, what = 'it'): void {
  t.same([answer.status, answer.body, headerOf(answer, 'cache-control')], [400, '{"error":"invalid_request"}', 'no-store'], `${what} is refused`)
}

function isDeferred (t: Test, answer: Answer, what = 'it'): void {
  t.same([answer.status, answer.body, headerOf(answer, 'cache-control'), headerOf(answer, 'retry-after')],
    [503, '{"error":"temporarily_unavailable"}', 'no-store', '1'], `${what} may come again`)
}

/** Nothing has ended: no socket, no token, and nothing is remembered. */
async function isUntouched (t: Test, { app, status, told }: Guarded, token: string): Promise<void> {
  t.same([await status(token), app.hybridAuth.status().revocations, told], [200, 0, []], 'nothing has ended')
}

const unsigned = (claims: Jwk, header: Jwk, signature = '') =>
  `${Buffer.from(JSON.stringify(header)).toString('base64url')}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`
const byHs = (secret: string) => signRaw(JSON.stringify({ alg: 'HS256', kid: 'k1', typ: 'logout+jwt' }), JSON.stringify(logoutClaims()), secret)
const LONG = 'x'.repeat(1025)

/** Each is refused, and ends nothing. */
const BAD: Array<[what: string, make: () => string]> = [
  // Who signed it.
  ['unsigned, alg none', () => unsigned(logoutClaims(), { alg: 'none', typ: 'logout+jwt' })],
  ['unsigned, alg None, with something for a signature', () => unsigned(logoutClaims(), { alg: 'None', kid: 'k1', typ: 'logout+jwt' }, 'AAAA')],
  ['unsigned, and says ES256', () => unsigned(logoutClaims(), { alg: 'ES256', kid: 'k1', typ: 'logout+jwt' })],
  ['signed by another key', () => mint(issuerKey('k1'), logoutClaims(), { typ: 'logout+jwt' })],
  ['signed by another key, which it brings', () => {
    const other = issuerKey('k1')
    return mint(other, logoutClaims(), { typ: 'logout+jwt', jwk: other.jwk })
  }],
  ['HS256 with the public key for a secret', () => byHs(PEM)],
  ['HS256 with the public key for a secret, trimmed', () => byHs(PEM.trim())],
  ['HS256 with a secret that others know', () => byHs(SECRET)],
  ['a bit of its signature turned over', () => garbled(logoutToken())],
  ['its signature cut off', () => logoutToken().replace(/\.[^.]*$/, '')],
  ['its claims changed after it was signed', () => {
    const [header = '', , signature = ''] = logoutToken().split('.')
    return `${header}.${Buffer.from(JSON.stringify(logoutClaims())).toString('base64url')}.${signature}`
  }],
  ['of an algorithm that is not accepted', () => mint(issuerKey('k1', 'ES384'), logoutClaims(), { typ: 'logout+jwt' })],
  ['with jku', () => logoutToken({}, { jku: `${ISSUER}/jwks` })],
  ['with x5u', () => logoutToken({}, { x5u: `${ISSUER}/x5u` })],
  ['with jwk', () => logoutToken({}, { jwk: KEY.jwk })],
  ['with crit', () => logoutToken({}, { crit: ['exp'] })],
  ['with an empty crit', () => logoutToken({}, { crit: [] })],
  ['with b64', () => logoutToken({}, { b64: true })],
  // What kind of token it is.
  ...['at+jwt', 'application/at+jwt', 'secevent+jwt', 'dpop+jwt', 'id_token', '', 'logout+jwt ', 'application/application/logout+jwt']
    .map((typ): [string, () => string] => [`typ ${JSON.stringify(typ)}`, () => logoutToken({}, { typ })]),
  ['typ that is a list', () => logoutToken({}, { typ: ['logout+jwt'] })],
  ['typ null', () => logoutToken({}, { typ: null })],
  // Whose, and for whom.
  ['iss missing', () => logoutToken({ iss: undefined })],
  ['iss of another', () => logoutToken({ iss: 'https://other.example' })],
  ['iss with a slash behind', () => logoutToken({ iss: `${ISSUER}/` })],
  ['iss in capitals', () => logoutToken({ iss: ISSUER.toUpperCase() })],
  ['iss a list', () => logoutToken({ iss: [ISSUER] })],
  ['aud missing', () => logoutToken({ aud: undefined })],
  ['aud of another', () => logoutToken({ aud: 'another-app' })],
  ['aud an empty list', () => logoutToken({ aud: [] })],
  ['aud a list of others', () => logoutToken({ aud: ['another-app', `${APP}2`] })],
  ['aud a list of mixed types', () => logoutToken({ aud: [APP, 1] })],
  ['aud null', () => logoutToken({ aud: null })],
  // When.
  ['iat missing', () => logoutToken({ iat: undefined })],
  ['iat more than five minutes ago', () => logoutToken({ iat: inSeconds(-301) })],
  ['iat in a minute', () => logoutToken({ iat: inSeconds(60) })],
  ['iat a text', () => logoutToken({ iat: String(inSeconds(0)) })],
  ['iat null', () => logoutToken({ iat: null })],
  ['iat in milliseconds', () => logoutToken({ iat: Date.now() })],
  ['iat negative', () => logoutToken({ iat: -1 })],
  ['iat past every date', () => mintRaw(KEY, JSON.stringify(logoutClaims()).replace(/"iat":\d+/, '"iat":1e400'), { typ: 'logout+jwt' })],
  ['exp past', () => logoutToken({ exp: inSeconds(-1) })],
  ['exp a text', () => logoutToken({ exp: String(inSeconds(60)) })],
  ['exp null', () => logoutToken({ exp: null })],
  ['nbf ahead', () => logoutToken({ nbf: inSeconds(60) })],
  // Which one it is.
  ['jti missing', () => logoutToken({ jti: undefined })],
  ['jti empty', () => logoutToken({ jti: '' })],
  ['jti a number', () => logoutToken({ jti: 4711 })],
  ['jti null', () => logoutToken({ jti: null })],
  ['jti an object', () => logoutToken({ jti: { id: 'x' } })],
  ['jti too long', () => logoutToken({ jti: LONG })],
  // What it tells of.
  ['no events', () => logoutToken({ events: undefined })],
  ['events null', () => logoutToken({ events: null })],
  ['events true', () => logoutToken({ events: true })],
  ['events a text', () => logoutToken({ events: EVENT })],
  ['events JSON in a text', () => logoutToken({ events: JSON.stringify({ [EVENT]: {} }) })],
  ['events an empty list', () => logoutToken({ events: [] })],
  ['events a list with the name', () => logoutToken({ events: [EVENT] })],
  ['events a list with the object', () => logoutToken({ events: [{ [EVENT]: {} }] })],
  ['events an empty object', () => logoutToken({ events: {} })],
  ['events of another name', () => logoutToken({ events: { 'http://schemas.openid.net/event/other': {} } })],
  ['events with the name one level down', () => logoutToken({ events: { events: { [EVENT]: {} } } })],
  ['events under another name', () => logoutToken({ events: undefined, event: { [EVENT]: {} } })],
  ['a nonce', () => logoutToken({ nonce: 'n-0S6_WzA2Mj' })],
  ['an empty nonce', () => logoutToken({ nonce: '' })],
  ['a nonce that is null', () => logoutToken({ nonce: null })],
  ['a nonce that is false', () => logoutToken({ nonce: false })],
  ['bound to a key', () => logoutToken({ cnf: { jkt: 'x' } })],
  // Of whom.
  ['neither sid nor sub', () => logoutToken({ sid: undefined })],
  ['sid null and no sub', () => logoutToken({ sid: null })],
  ...([['empty', ''], ['a number', 4711], ['true', true], ['a list', ['login-1']], ['an object', { id: 'login-1' }], ['too long', LONG]] as Array<[string, unknown]>)
    .flatMap(([what, value]): typeof BAD => [
      [`sid ${what}`, () => logoutToken({ sid: value })], [`sid ${what}, and a sub`, () => logoutToken({ sid: value, sub: 'alice' })],
      [`sub ${what}`, () => logoutToken({ sid: undefined, sub: value })], [`sub ${what}, and a sid`, () => logoutToken({ sub: value })]
    ]),
  ['sub null, and a sid', () => logoutToken({ sub: null })],
  // Another token.
  ['an ID token', () => accessToken({ nonce: 'n-0S6_WzA2Mj', auth_time: inSeconds(-5), iat: inSeconds(0) }, { typ: 'JWT' })],
  ['an ID token without a nonce', () => accessToken({ iat: inSeconds(0) })],
  ['an access token', () => accessToken({ iat: inSeconds(0), scope: 'read' }, { typ: 'at+jwt' })],
  ['an access token that says logout+jwt', () => accessToken({ iat: inSeconds(0) }, { typ: 'logout+jwt' })],
  // Its form.
  ['empty', () => ''],
  ['no token', () => 'login-1'],
  ['with a space behind', () => `${logoutToken()} `],
  ['with a line end behind', () => `${logoutToken()}\n`],
  ['with a fourth part', () => `${logoutToken()}.AAAA`],
  ['longer than tokens are', () => logoutToken({ padding: 'x'.repeat(8192) })],
  ['claims that are a list', () => mintRaw(KEY, JSON.stringify([logoutClaims()]), { typ: 'logout+jwt' })],
  ['claims that are null', () => mintRaw(KEY, 'null', { typ: 'logout+jwt' })],
  ['claims that are not UTF-8', () => mintRaw(KEY, Buffer.from(JSON.stringify(logoutClaims({ sid: 'login-\u00e4' })), 'latin1'), { typ: 'logout+jwt' })],
  ['nested past measure', () => mintRaw(KEY, JSON.stringify(logoutClaims()).replace(/}$/, `,"x":${'['.repeat(70)}${']'.repeat(70)}}`), { typ: 'logout+jwt' })]
]

t.test('a logout token that is not in order is refused, and ends nothing', async t => {
  const server = await guarded(t)
  const token = accessToken()
  const pair = await server.open({ token })
  for (const [at, [what, make]] of BAD.entries()) {
    await t.test(`logout token ${at + 1}: ${what}`, async t => {
      isRefused(t, await server.tell(make()))
      await isUntouched(t, server, token)
    })
  }
  await isOpen(t, pair, 'the socket')
  isDone(t, await server.tell(logoutToken()), 'one that is in order')
  await isRevoked(t, pair, 'its socket')
  t.equal(await server.status(token), 401)
})

const GOOD: Array<[what: string, make: () => string]> = [
  ['without typ', () => logoutToken({}, { typ: undefined })],
  ...['JWT', 'jwt', 'logout+jwt', 'LOGOUT+JWT', 'application/logout+jwt'].map((typ): [string, () => string] => [`typ ${typ}`, () => logoutToken({}, { typ })]),
  ['aud a list that names us', () => logoutToken({ aud: ['another-app', APP] })],
  ['without exp', () => logoutToken({ exp: undefined })],
  ['iat almost five minutes ago', () => logoutToken({ iat: inSeconds(-297) })],
  ['more events beside', () => logoutToken({ events: { [EVENT]: {}, 'https://other.example/event': { x: 1 } } })],
  ['a sub as well', () => logoutToken({ sub: 'alice' })],
  ['names as long as they may be', () => logoutToken({ sub: 'x'.repeat(1024), jti: `${Math.random()}`.padEnd(1024, 'x') })],
  ['claims of its own', () => logoutToken({ nonces: 1, trace_id: 'x', toe: 1, txn: 'x' })]
]

t.test('a logout token that is in order counts, whatever may differ between providers', async t => {
  for (const [what, make] of GOOD) {
    const server = await guarded(t)
    const token = accessToken()
    t.equal(await server.status(token), 200)
    isDone(t, await server.tell(make()), what)
    t.equal(await server.status(token), 401, what)
    t.equal(server.told.length, 1, what)
  }
})

t.test('clockTolerance widens iat and exp: the own one, or that of jwt', async t => {
  const makes = () => [logoutToken({ iat: inSeconds(-330) }), logoutToken({ iat: inSeconds(45) }), logoutToken({ exp: inSeconds(-30) })]
  const statuses = async (options: GuardedOptions) => {
    const { tell } = await guarded(t, options)
    return Promise.all(makes().map(async token => (await tell(token)).status))
  }
  t.same(await statuses({ logout: { clockTolerance: 60 } }), [200, 200, 200])
  t.same(await statuses({ auth: { jwt: { ...JWT, clockTolerance: 60 } } }), [200, 200, 200])
  t.same(await statuses({ auth: { jwt: { ...JWT, clockTolerance: 60 } }, logout: { clockTolerance: 0 } }), [400, 400, 400])
})

t.test('what jwt asks of access tokens beside key, issuer and audience is not asked of logout tokens', async t => {
  const mapped: unknown[] = []
  const { tell, told } = await guarded(t, {
    auth: {
      jwt: {
        ...JWT, typ: 'at+jwt', maxAge: 1, allowNoExpiry: false, user (claims) {
          mapped.push(claims)
          return null
        }
      }
    }
  })
  isDone(t, await tell(logoutToken({ exp: undefined, iat: inSeconds(-100) })))
  t.same([mapped, told.length], [[], 1])
})

t.test('logout replayed: a token is carried out once, however often and in whatever spelling it comes', async t => {
  const { tell, told } = await guarded(t)
  const claims = logoutClaims()
  const token = mint(KEY, claims, { typ: 'logout+jwt' })
  isDone(t, await tell(token))
  for (const round of ['second', 'third']) isRefused(t, await tell(token), `the ${round} time`)
  isRefused(t, await tell(mint(KEY, claims, { typ: 'JWT' })), 'signed anew')
  isRefused(t, await tell(mint(KEY, { ...claims, sid: 'login-2' }, { typ: 'logout+jwt' })), 'with another sid')
  t.equal(told.length, 1)
})

t.test('logout replayed: of one token that comes many times at once, one is carried out', async t => {
  const { tell, told, events } = await guarded(t)
  const token = logoutToken()
  const statuses = (await Promise.all(Array.from({ length: 10 }, () => tell(token)))).map(({ status }) => status)
  t.ok(statuses.includes(200) && statuses.every(status => status === 200 || status === 400), statuses.join())
  isRefused(t, await tell(token), 'after that')
  t.equal(told.length, 1)
  t.equal(events.filter(({ type }) => type === 'command').length, 1)
})

t.test('logout replayed: while onLogout works on it, the same token waits for what becomes of it, and counts once', async t => {
  const [began, ends] = [deferred<undefined>(), deferred<undefined>()]
  let calls = 0
  const { tell } = await guarded(t, {
    logout: {
      async onLogout () {
        calls++
        began.resolve(undefined)
        await ends.promise
      }
    }
  })
  const token = logoutToken()
  const first = tell(token)
  await began.promise
  const second = tell(token)
  ends.resolve(undefined)
  isDone(t, await first)
  t.not((await second).status, 503, 'nothing is left to be done')
  isRefused(t, await tell(token), 'after that')
  t.equal(calls, 1)
})

t.test('logout replayed: a jti is remembered for longer than a token is good, and then no more', async t => {
  const clock = setClock(t)
  const { tell } = await guarded(t, { logout: { clockTolerance: 300 } })
  const again = () => logoutToken({ jti: 'the same' })
  isDone(t, await tell(again()))
  clock.move(899_000)
  isRefused(t, await tell(again()), 'after almost 15 minutes')
  clock.move(2000)
  isDone(t, await tell(again()), 'after that')
  isDone(t, await tell(logoutToken({ jti: 'another' })), 'another')
})

t.test('the same jti of two issuers is two tokens', async t => {
  const other = 'https://other.example'
  const { tell } = await guarded(t, { logout: { issuer: [ISSUER, other] } })
  isDone(t, await tell(logoutToken({ jti: 'one' })))
  isDone(t, await tell(logoutToken({ jti: 'one', iss: other })), 'that of the other')
  isRefused(t, await tell(logoutToken({ jti: 'one', iss: other })), 'again')
})

t.test('a logout token comes as one parameter of a form that is posted, and in no other way', async t => {
  const server = await guarded(t)
  const { host, port } = server
  const token = accessToken()
  const pair = await server.open({ token })
  const json = { 'content-type': 'application/json' }
  const query = () => `${PATH}?logout_token=${logoutToken()}`
  const twice = () => {
    const one = logoutToken()
    return `logout_token=${one}&logout_token=${one}`
  }
  const refused: Array<[what: string, init: RequestInit, path?: string]> = [
    ['two parameters', formOf(`logout_token=${logoutToken()}&logout_token=${logoutToken()}`)],
    ['the same parameter twice', formOf(twice())],
    ['one that is empty and one', formOf(`logout_token=&logout_token=${logoutToken()}`)],
    ['an empty parameter', formOf('logout_token=')],
    ['a parameter without a value', formOf('logout_token')],
    ['an empty form', formOf('')],
    ['another parameter', formOf(`token=${logoutToken()}`)],
    ['a parameter in capitals', formOf(`LOGOUT_TOKEN=${logoutToken()}`)],
    ['a list', formOf(`logout_token[]=${logoutToken()}`)],
    ['a member', formOf(`logout_token[0]=${logoutToken()}`)],
    ['the token and nothing else', formOf(logoutToken())],
    ['JSON', { method: 'POST', headers: json, body: JSON.stringify({ logout_token: logoutToken() }) }],
    ['JSON in a list', { method: 'POST', headers: json, body: JSON.stringify([logoutToken()]) }],
    ['JSON of a text', { method: 'POST', headers: json, body: JSON.stringify(logoutToken()) }],
    ['JSON null', { method: 'POST', headers: json, body: 'null' }],
    ['a form as plain text', { method: 'POST', headers: { 'content-type': 'text/plain' }, body: `logout_token=${logoutToken()}` }],
    ['no body', { method: 'POST' }],
    ['a parameter of the URL', { method: 'POST' }, query()],
    ['a parameter of the URL and an empty form', formOf(''), query()],
    ['a header', { method: 'POST', headers: { authorization: `Bearer ${logoutToken()}`, logout_token: logoutToken() } }]
  ]
  for (const [what, init, path = PATH] of refused) isRefused(t, await ask(host, path, init), what)

  const body = `logout_token=${logoutToken()}`
  const multipart = new FormData()
  multipart.set('logout_token', logoutToken())
  const unknown: Array<[what: string, status: number, init: RequestInit, path?: string]> = [
    ['multipart', 415, { method: 'POST', body: multipart }],
    ['octets', 415, { method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body }],
    ['a token as such', 415, { method: 'POST', headers: { 'content-type': 'application/jwt' }, body: logoutToken() }],
    ['a type that only begins like a form', 415, { method: 'POST', headers: { 'content-type': `${FORM}x` }, body }],
    ['broken JSON', 400, { method: 'POST', headers: json, body: '{"logout_token":' }],
    ['a huge body', 413, formOf(`logout_token=${'x'.repeat(33 * 1024)}`)],
    ['a huge body around a good token', 413, formOf(`${body}&padding=${'x'.repeat(33 * 1024)}`)],
    ['GET', 404, {}, query()], ['PUT', 404, { ...formOf(body), method: 'PUT' }], ['PATCH', 404, { ...formOf(body), method: 'PATCH' }],
    ['DELETE', 404, { method: 'DELETE' }], ['HEAD', 404, { method: 'HEAD' }, query()], ['OPTIONS', 404, { method: 'OPTIONS' }]
  ]
  for (const [what, status, init, path = PATH] of unknown) t.equal((await ask(host, path, init)).status, status, what)
  const bare = await rawAnswer(port, `POST ${PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
  t.match(bare, /^HTTP\/1\.1 415 /, 'a body of no type')
  const long = await rawAnswer(port, `POST ${PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: ${FORM}\r\nContent-Length: ${1024 * 1024 * 1024}\r\n\r\nlogout_token=`)
  t.match(long, /^HTTP\/1\.1 413 /, 'one that says it is huge is not waited for')
  await isUntouched(t, server, token)
  await isOpen(t, pair, 'the socket')
})

t.test('a form may have a charset, other parameters, and a token that is escaped', async t => {
  const { host } = await guarded(t)
  const escaped = (text: string) => Buffer.from(text).toString('hex').replace(/../g, '%$&')
  for (const type of [`${FORM};charset=UTF-8`, `${FORM}; charset=utf-8`, 'Application/X-WWW-Form-URLEncoded']) {
    isDone(t, await ask(host, PATH, { ...formOf(`logout_token=${logoutToken()}`), headers: { 'content-type': type } }), type)
  }
  isDone(t, await ask(host, PATH, formOf(`a=1&logout_token=${logoutToken()}&b=2&__proto__=3`)), 'other parameters')
  isDone(t, await ask(host, PATH, formOf(`logout_token=${escaped(logoutToken())}`)), 'escaped')
  isRefused(t, await ask(host, PATH, formOf('logout_token=%ff%zz%00')), 'escaped wrongly')
})

t.test('a logout token is no bearer, on whatever way it comes, and however good its other claims are', async t => {
  const server = await guarded(t)
  const { host, open, status } = server
  const claims = { sub: 'alice', iat: inSeconds(-5), exp: inSeconds(300) }
  t.equal(await status(accessToken(claims)), 200, 'without events it would be one')
  t.equal(await status(accessToken({ ...claims, events: { 'urn:other': {} } })), 200, 'with other events too')
  const { peer, there } = await open({ token: accessToken(), speaks: true })
  const bad = [
    logoutToken(claims), logoutToken(claims, { typ: 'JWT' }), logoutToken(claims, { typ: undefined }), logoutToken(claims, { typ: 'at+jwt' }), logoutToken({ ...claims, nonce: 'x' }),
    ...[null, true, 'x', [], 0].map(value => accessToken({ ...claims, events: { [EVENT]: value } }, { typ: 'at+jwt' }))
  ]
  for (const [at, token] of bad.entries()) {
    for (const round of ['first', 'second']) {
      const answer = await ask(host, '/me', bearer(token))
      t.same([answer.status, codeOf(answer.body)], [401, 'FST_HYBRID_AUTH_INVALID_TOKEN'], `${at}, the ${round} time`)
    }
    t.equal((await upgrade(t, host, { path: '/live', ...bearer(token) })).status, 401, `${at}: upgrade`)
    t.equal((await upgrade(t, host, { path: '/live', protocols: ['hybrid-auth.v1', `hybrid-auth.token.${token}`] })).context, undefined, `${at}: subprotocol`)
    const first = connect(t, host, { path: '/first', token: null, protocols: ['hybrid-auth.v1'] })
    await first.opened
    first.send(authFrame(token))
    t.equal((await first.closed).code, 4001, `${at}: first message`)
    if (at >= 2) continue
    peer.say({ type: 'auth_update', token })
    t.match(await peer.takeFrame('error'), { code: 'refresh_failed' }, `${at}: in-band`)
  }
  t.equal(there.connection.context.version, 1)
  isDone(t, await server.tell(logoutToken(claims)), 'as what it is')
})

/** Answers what the test has about tokens, of a server that nobody else is. */
function introspected (issuer: FakeIssuer, answers: Map<string, Jwk>): NonNullable<HybridAuthOptions['introspection']> {
  issuer.rest = (request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => { body += chunk.toString() })
    request.on('end', () => { saysJson(answers.get(new URLSearchParams(body).get('token') ?? '') ?? { active: false })(request, response) })
  }
  return introspection({ endpoint: `${issuer.issuer}/introspect`, clientId: APP, clientSecret: 'a secret of the client' })
}

t.test('77: an introspection that answers with the event of a logout makes no bearer of the token', async t => {
  const issuer = await fakeIssuer(t)
  const active = { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300), iat: inSeconds(-5) }
  const signed = logoutToken({ sub: 'alice' })
  const answers = new Map<string, Jwk>([
    ['opaque-good', active], ['opaque-other', { ...active, events: { 'urn:other': {} } }],
    ['opaque-logout', { ...active, events: { [EVENT]: {} } }], ['opaque-null', { ...active, events: { [EVENT]: null } }], [signed, { ...active, ...logoutClaims({ sub: 'alice' }) }]
  ])
  const { status } = await guarded(t, {
    auth: { jwt: undefined, introspection: introspected(issuer, answers) }, logout: { key: PUBLIC, algorithms: ['ES256'], issuer: ISSUER, audience: APP }
  })
  t.same([await status('opaque-good'), await status('opaque-other')], [200, 200])
  for (const token of ['opaque-logout', 'opaque-null', signed]) t.equal(await status(token), 401, token.slice(0, 13))
})

t.test('what onLogout throws, or rejects with, is answered with 503, and the same token may come again', async t => {
  const { stream, text } = keepLines()
  const outcomes: Array<() => unknown> = [
    () => { throw new Error('the first failed') }, async () => { throw new Error('the second failed') },
    () => 'done'
  ]
  const calls: Claims[] = []
  const token = logoutToken({ sub: 'alice' })
  const server = await guarded(t, {
    fastify: { logger: { level: 'trace', stream, serializers } },
    logout: {
      onLogout (claims) {
        calls.push(claims)
        return outcomes.shift()?.()
      }
    }
  })
  const access = accessToken()
  const pair = await server.open({ token: access })
  for (const time of ['first', 'second']) isDeferred(t, await server.tell(token), `the ${time} time`)
  await isRevoked(t, pair, 'the socket has ended all the same')
  t.equal(await server.status(access), 401)
  isDone(t, await server.tell(token), 'the third time')
  isRefused(t, await server.tell(token), 'the fourth')
  t.equal(calls.length, 3)
  t.match(calls[2], { iss: ISSUER, sid: 'login-1', sub: 'alice', events: { [EVENT]: {} } })
  t.ok(Object.isFrozen(calls[2]))
  const told = text().split('\n').filter(line => line.includes('"where":"backchannelLogout"'))
  t.equal(told.length, 3, 'the operator is told each time, and of the replay')
  t.notOk(text().includes('the first failed'), 'and not in the words of the application')
  for (const part of token.split('.').slice(1)) t.notOk(text().includes(part.slice(0, 40)), 'and of the token nothing')
})

t.test('onLogout is waited for, and comes after everything has ended', async t => {
  const ends = deferred<undefined>()
  const seen: unknown[] = []
  const server = await guarded(t, {
    logout: {
      async onLogout () {
        seen.push(server.app.hybridAuth.count(), server.app.hybridAuth.status().revocations)
        await ends.promise
      }
    }
  })
  const pair = await server.open({ token: accessToken() })
  let isAnswered = false
  const answer = server.tell(logoutToken({ sub: 'alice' })).finally(() => { isAnswered = true })
  await isRevoked(t, pair, 'the socket')
  await eventually('it is called', () => seen.length > 0)
  t.same([seen, isAnswered], [[0, 2], false])
  ends.resolve(undefined)
  isDone(t, await answer)
})

t.test('83: an onLogout that does not settle is answered with 503 inside handshakeTimeout, and the same token is told of its end when it comes again', async t => {
  const ends = deferred<undefined>()
  let calls = 0
  const { tell } = await guarded(t, { auth: { handshakeTimeout: 200 }, logout: { async onLogout () { calls++; await ends.promise } } })
  const token = logoutToken()
  const started = performance.now()
  isDeferred(t, await tell(token), 'the first time')
  const took = performance.now() - started
  t.ok(took > 190 && took < 2000, `${took} ms`)
  isDeferred(t, await tell(token), 'the second time')
  ends.resolve(undefined)
  isDone(t, await tell(token), 'the third time')
  isRefused(t, await tell(token), 'the fourth')
  t.equal(calls, 1)
})

t.test('what onLogout rejects with after the 503 was sent does no harm, and the same token may come again', async t => {
  const late = deferred<undefined>()
  const outcomes: Array<() => unknown> = [async () => { await late.promise; throw new Error('too late') }, () => 'done']
  const { stream, text } = keepLines()
  const { tell } = await guarded(t, {
    fastify: { logger: { level: 'trace', stream, serializers } }, auth: { handshakeTimeout: 100 }, logout: { onLogout: () => outcomes.shift()?.() }
  })
  const token = logoutToken()
  isDeferred(t, await tell(token), 'the first time')
  late.resolve(undefined)
  await eventually('the operator is told', () => text().includes('"where":"backchannelLogout"'))
  isDone(t, await tell(token), 'the second time')
  isRefused(t, await tell(token), 'the third')
})

t.test('72: keys that come later than handshakeTimeout make 503, and the same token is good when they are there', async t => {
  const issuer = await fakeIssuer(t)
  const keys = deferred<undefined>()
  issuer.keys = (request, response) => { keys.promise.then(() => { publishes(KEY)(request, response) }) }
  const server = await guarded(t, { auth: { handshakeTimeout: 200, jwt: { ...JWT, key: jwks(issuer.url) } } })
  const token = logoutToken()
  const access = accessToken()
  isDeferred(t, await server.tell(token), 'while they are waited for')
  keys.resolve(undefined)
  t.equal(await server.status(accessToken({ sid: 'login-2' })), 200, 'they are there')
  isDone(t, await server.tell(token), 'the next time')
  t.equal(await server.status(access), 401)
  isRefused(t, await server.tell(token), 'after that')
})

t.test('what could not be told to the other nodes is answered with 503, and the same token may come again', async t => {
  const fails = { publish: 0, spend: 0, durable: 0 }
  const cluster = driverOf(inner => ({
    async publish (command, awaits) {
      if (fails.publish-- > 0) throw new Error('nobody there')
      const delivery = await inner.publish(command, awaits)
      return fails.durable-- > 0 ? { ...delivery, durable: false } : delivery
    },
    async spend (debits) {
      if (fails.spend-- > 0) throw new Error('nobody counts')
      return inner.spend(debits)
    }
  }))
  const { tell, told } = await guarded(t, { auth: { cluster } })
  const [one, other] = [logoutToken(), logoutToken()]
  fails.publish = 1
  isDeferred(t, await tell(one), 'one that was not published')
  t.equal(told.length, 0)
  isDone(t, await tell(one), 'the next time')
  const kept = logoutToken()
  fails.durable = 1
  isDeferred(t, await tell(kept), 'one that waits here for the other nodes')
  fails.durable = 0
  isDone(t, await tell(kept), 'the next time')
  fails.spend = 1
  isDeferred(t, await tell(other), 'one of which nobody knows whether it came before')
  isDone(t, await tell(other), 'the next time')
  isRefused(t, await tell(other))
})

t.test('keys that cannot be had make 503, and the same token is good when they can', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t)
  const key = jwks(issuer.url, { cooldown: 1000 })
  const server = await guarded(t, { auth: { jwt: { ...JWT, key } } })
  const token = logoutToken()
  issuer.keys = says('', { status: 500 })
  isDeferred(t, await server.tell(token), 'while they fail')
  isDeferred(t, await server.tell(token), 'within the pause')
  clock.move(5000)
  issuer.keys = publishes(KEY)
  isDone(t, await server.tell(token), 'with keys')
  isRefused(t, await server.tell(token), 'again')
  isRefused(t, await server.tell(garbled(logoutToken())), 'a signature that is none')
  isRefused(t, await server.tell(mint(issuerKey('unknown'), logoutClaims())), 'a key that nobody published')
  t.equal(server.told.length, 1)
})

for (const [name, source] of [['jwks()', (issuer: FakeIssuer) => jwks(issuer.url)], ['discover()', (issuer: FakeIssuer) => discover(issuer.issuer)]] as const) {
  t.test(`the keys of ${name} are fetched once, for access tokens and logout tokens`, async t => {
    for (const order of ['access first', 'logout first']) {
      const issuer = await fakeIssuer(t, KEY)
      const { tell, status } = await guarded(t, { auth: { jwt: { ...JWT, issuer: issuer.issuer, key: source(issuer) } } })
      const steps: Array<() => Promise<unknown>> = [
        async () => { t.equal(await status(accessToken({ iss: issuer.issuer, sid: 'login-2' })), 200, order) },
        async () => { isDone(t, await tell(logoutToken({ iss: issuer.issuer })), order) }
      ]
      for (const step of order === 'access first' ? steps : steps.reverse()) await step()
      t.equal(issuer.hits, 1, order)
      isRefused(t, await tell(logoutToken({ iss: ISSUER })), 'another issuer')
    }
  })
}

t.test('key, algorithms, issuer and audience of its own count in place of those of jwt', async t => {
  const own = issuerKey('k9', 'ES384')
  const mine = (changes: Jwk = {}) => mint(own, logoutClaims({ iss: 'https://other.example', aud: 'rp', ...changes }), { typ: 'logout+jwt' })
  const server = await guarded(t, {
    logout: { key: createPublicKey({ key: own.jwk, format: 'jwk' }), algorithms: ['ES384'], issuer: ['https://other.example', 'https://third.example'], audience: ['rp', 'rp2'] }
  })
  isDone(t, await server.tell(mine()))
  isDone(t, await server.tell(mine({ iss: 'https://third.example', aud: 'rp2' })))
  isDone(t, await server.tell(mine({ padding: 'x'.repeat(9000) })), 'as long as maxTokenLength of jwt does not let access tokens be')
  for (const token of [logoutToken(), mine({ iss: ISSUER }), mine({ aud: APP }), mint(KEY, logoutClaims({ iss: 'https://other.example', aud: 'rp' })), mine({ padding: 'x'.repeat(13_000) })]) {
    isRefused(t, await server.tell(token))
  }
  t.equal(await server.status(accessToken()), 200, 'access tokens are verified as before')
  t.equal(await server.status(mint(own, { iss: ISSUER, aud: APP })), 401, 'and not by the keys of logout tokens')
})

t.test('an audience of its own goes with the keys of jwt', async t => {
  const { tell, status } = await guarded(t, { logout: { audience: 'client-id' } })
  isRefused(t, await tell(logoutToken()), 'one for the audience of access tokens')
  const token = accessToken()
  isDone(t, await tell(logoutToken({ aud: 'client-id' })))
  t.equal(await status(token), 401)
})

t.test('logout tokens of a shared secret count where jwt has one', async t => {
  const { tell, host } = await guarded(t, { auth: { jwt: { key: SECRET, algorithms: ['HS256'], issuer: ISSUER, audience: APP } } })
  const token = signHs256(logoutClaims(), { typ: 'logout+jwt' })
  isDone(t, await tell(token))
  isRefused(t, await tell(signHs256(logoutClaims(), { typ: 'logout+jwt' }, 'another secret for tests, 32 bytes or more')))
  t.equal((await ask(host, '/me', bearer(signHs256(goodClaims({ iss: ISSUER, aud: APP, sid: 'login-1' }))))).status, 401)
})

t.test('without jwt, opaque tokens and sessions end by logout tokens with a key of their own', async t => {
  const issuer = await fakeIssuer(t)
  const active = { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300), iat: inSeconds(-5) }
  const answers = new Map<string, Jwk>([['opaque-one', { ...active, sid: 'login-1' }], ['opaque-two', { ...active, sid: 'login-2' }], ['opaque-three', { ...active, sid: 'login-1', iss: 'https://other.example' }]])
  const server = await guarded(t, {
    auth: { jwt: undefined, introspection: introspected(issuer, answers) }, logout: { key: PUBLIC, algorithms: ['ES256'], issuer: ISSUER, audience: APP }
  })
  const one = await server.open({ token: 'opaque-one' })
  const two = await server.open({ token: 'opaque-two' })
  const ofSession = await server.open({ cookie: server.session('s1', { userId: 'bob', sid: 'login-1' }) })
  isDone(t, await server.tell(logoutToken()))
  await isRevoked(t, one, 'the opaque token')
  await isRevoked(t, ofSession, 'the session')
  await isOpen(t, two, 'another login')
  t.same([await server.status('opaque-one'), await server.status('opaque-two'), await server.status('opaque-three')], [401, 200, 200])
})

/** What registering it says. */
async function registered (t: Test, logout: unknown, auth: unknown = { jwt: JWT }): Promise<unknown> {
  const app = Fastify(watch(t))
  t.teardown(() => app.close())
  await app.register(cookie)
  await app.register(session, { secret: SESSION_SECRET })
  await app.register(websocket)
  await app.register(hybridAuth, untyped(auth))
  try {
    await app.register(hybridAuth.backchannelLogout, untyped(logout))
    return null
  } catch (error) {
    return error
  }
}

t.test('options of backchannelLogout that are missing or wrong throw at registration, and name the option', async t => {
  const path = PATH
  const own = { path, key: PUBLIC, algorithms: ['ES256'], issuer: ISSUER, audience: APP }
  const { issuer: _issuer, ...withoutIssuer } = JWT
  const { audience: _audience, ...withoutAudience } = JWT
  const sessions = { session: SESSION }
  const table: Array<[logout: unknown, auth: unknown, name: string]> = [
    [undefined, undefined, 'path'], [{}, undefined, 'path'], [{ path: '' }, undefined, 'path'], [{ path: 5 }, undefined, 'path'], [{ path: null }, undefined, 'path'],
    [{ path, key: null }, undefined, 'key'], [{ path, key: 'no key' }, undefined, 'key'], [{ path, key: 4711 }, undefined, 'key'], [{ path, key: {} }, undefined, 'key'],
    [{ path, key: SECRET, algorithms: ['ES256'] }, undefined, 'key'], [{ path, key: PEM, algorithms: ['HS256'] }, undefined, 'key'], [{ path, algorithms: ['HS256'] }, undefined, 'key'],
    [{ path, key: KEY.jwk }, undefined, 'key'], [{ path, key: jwks('http://127.0.0.1:1/jwks'), algorithms: ['HS256'] }, undefined, 'algorithms'],
    [{ path, algorithms: [] }, undefined, 'algorithms'], [{ path, algorithms: 'ES256' }, undefined, 'algorithms'], [{ path, algorithms: ['none'] }, undefined, 'algorithms.0'],
    [{ path, algorithms: ['ES256', 'HS256'] }, undefined, 'algorithms'], [{ path, algorithms: null }, undefined, 'algorithms'],
    [{ path, issuer: '' }, undefined, 'issuer'], [{ path, issuer: [] }, undefined, 'issuer'], [{ path, issuer: /x/ }, undefined, 'issuer'], [{ path, issuer: null }, undefined, 'issuer'],
    [{ path, audience: '' }, undefined, 'audience'], [{ path, audience: [''] }, undefined, 'audience.0'], [{ path, audience: 5 }, undefined, 'audience'],
    [{ path, clockTolerance: -1 }, undefined, 'clockTolerance'], [{ path, clockTolerance: 301 }, undefined, 'clockTolerance'], [{ path, clockTolerance: NaN }, undefined, 'clockTolerance'],
    [{ path, onLogout: 'x' }, undefined, 'onLogout'], [{ path, onLogout: {} }, undefined, 'onLogout'],
    [{ path, audiences: APP }, undefined, 'audiences'], [{ path, onlogout: () => {} }, undefined, 'onlogout'], [{ uri: path }, undefined, 'uri'],
    [{ path }, { jwt: withoutIssuer }, 'issuer'], [{ path }, { jwt: withoutAudience }, 'audience'],
    [{ path }, sessions, 'key'], [{ ...own, key: undefined }, sessions, 'key'], [{ ...own, algorithms: undefined }, sessions, 'algorithms'],
    [{ ...own, issuer: undefined }, sessions, 'issuer'], [{ ...own, audience: undefined }, sessions, 'audience']
  ]
  for (const [logout, auth, name] of table) {
    const error = await registered(t, logout, auth)
    t.match(error, { code: OPTION }, `${name}: ${JSON.stringify(logout)}`)
    t.ok(error instanceof Error && error.message.startsWith(`Invalid option backchannelLogout.${name}: `), String(error))
    t.notOk(String(error).includes('4711') || String(error).includes(SECRET), 'the value is not repeated')
  }
  t.equal(await registered(t, { path }), null)
  t.equal(await registered(t, own, sessions), null)
  t.equal(await registered(t, { path, issuer: ISSUER, audience: APP }, { jwt: { key: PUBLIC, algorithms: ['ES256'] } }), null)
  t.equal(await registered(t, { path, key: undefined, algorithms: undefined, issuer: undefined, audience: undefined, clockTolerance: undefined, onLogout: undefined }), null)
})

t.test('without the plugin registered before it, it is refused', async t => {
  const none = Fastify(watch(t))
  const foreign = Fastify(watch(t))
  const apart = Fastify(watch(t))
  for (const app of [none, foreign, apart]) t.teardown(() => app.close())
  foreign.decorate('hybridAuth', untyped({}))
  apart.register(async inner => { await inner.register(hybridAuth, { jwt: JWT }) })
  for (const app of [none, foreign, apart]) {
    await t.rejects(async () => { await app.register(hybridAuth.backchannelLogout, { path: PATH }) }, { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY', message: /backchannelLogout/ })
  }
})

t.test('two paths, of two providers: each takes its own tokens', async t => {
  const other = issuerKey('k2')
  const served = await guarded(t, {
    routes (app) {
      app.register(hybridAuth.backchannelLogout, { path: '/other', key: createPublicKey({ key: other.jwk, format: 'jwk' }), issuer: 'https://other.example', audience: 'rp' })
    }
  })
  const ofOther = () => mint(other, logoutClaims({ iss: 'https://other.example', aud: 'rp' }), { typ: 'logout+jwt' })
  isRefused(t, await served.tell(ofOther()), 'the other\'s')
  isRefused(t, await served.tell(logoutToken(), '/other'), 'the first\'s at the other')
  const token = accessToken()
  isDone(t, await served.tell(ofOther(), '/other'))
  t.equal(await served.status(token), 200, 'of another issuer')
  isDone(t, await served.tell(logoutToken()))
  t.equal(await served.status(token), 401)
})

t.test('logout replayed: what was carried out on one path is refused on another', async t => {
  const { tell } = await guarded(t, { routes (app) { app.register(hybridAuth.backchannelLogout, { path: '/other' }) } })
  const token = logoutToken()
  isDone(t, await tell(token))
  isRefused(t, await tell(token, '/other'))
})

t.test('it goes below a prefix, its own and that of the scope that it is in', async t => {
  const { tell, app } = await guarded(t, {
    routes (app) {
      app.register(async inner => { inner.register(hybridAuth.backchannelLogout, { path: '/out' }) }, { prefix: '/scope' })
    }
  })
  isDone(t, await tell(logoutToken(), '/scope/out'))
  t.ok(app.hasRoute({ method: 'POST', url: PATH }))
})

t.test('the options that every plugin of Fastify may have go with it', async t => {
  const app = Fastify(watch(t))
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT })
  await app.register(hybridAuth.backchannelLogout, { path: '/out', prefix: '/own', logLevel: 'warn' })
  const { statusCode } = await app.inject({ method: 'POST', url: '/own/out', headers: { 'content-type': FORM }, payload: `logout_token=${logoutToken()}` })
  t.equal(statusCode, 200)
})

t.test('other routes of the application parse forms as they did, whenever they say how', async t => {
  const parsers: Array<[what: string, add: (app: FastifyInstance) => void]> = [
    ['by the type', app => { app.addContentTypeParser(FORM, { parseAs: 'string' }, (_request, body, done) => { done(null, { parsed: body }) }) }],
    ['by an expression', app => { app.addContentTypeParser(/^application\/x-www-form/, { parseAs: 'string' }, (_request, body, done) => { done(null, { parsed: body }) }) }],
    ['by whatever comes', app => { app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => { done(null, { parsed: body }) }) }]
  ]
  for (const [what, add] of parsers) {
    for (const isBefore of [true, false]) {
      const app = Fastify(watch(t))
      t.teardown(() => app.close())
      await app.register(websocket)
      await app.register(hybridAuth, { jwt: JWT })
      if (isBefore) add(app)
      await app.register(hybridAuth.backchannelLogout, { path: PATH })
      if (!isBefore) add(app)
      app.post('/form', async request => request.body)
      const host = (await app.listen({ port: 0, host: '127.0.0.1' })).replace('http://', '')
      const title = `${what}, ${isBefore ? 'before' : 'after'}`
      isDone(t, await tell(host, logoutToken()), title)
      const answer = await ask(host, '/form', formOf('a=1&b=2'))
      t.same([answer.status, answer.body], [200, '{"parsed":"a=1&b=2"}'], title)
    }
  }
})

t.test('an application that parses no forms parses none for it', async t => {
  const { host } = await guarded(t, { routes (app) { app.post('/form', async request => request.body) } })
  t.equal((await ask(host, '/form', formOf('a=1'))).status, 415)
})

t.test('no log line and no audit event says anything of a logout token, good, bad or in the wrong place', async t => {
  const { stream, text } = keepLines()
  const server = await guarded(t, {
    fastify: { logger: { level: 'trace', stream, serializers } },
    logout: { onLogout ({ jti }) { if (jti === 'fails') throw new Error('it fails') } }
  })
  const names = { sid: 'a-login-that-is-nobody-elses', sub: 'a-subject-that-is-nobody-elses' }
  const pair = await server.open({ token: accessToken({ sid: names.sid }) })
  const tokens = [logoutToken(names), garbled(logoutToken(names)), logoutToken({ ...names, nonce: 'x' }), logoutToken({ ...names, jti: 'fails' })]
  for (const token of tokens) await server.tell(token)
  const [first = ''] = tokens
  await server.tell(first)
  await ask(server.host, `${PATH}?logout_token=${first}`, { method: 'POST' })
  await ask(server.host, `${PATH}?logout_token=${first}`)
  await ask(server.host, PATH, { method: 'POST', headers: { 'content-type': 'text/html' }, body: `logout_token=${first}` })
  await isRevoked(t, pair, 'the socket')
  const written = text() + JSON.stringify(server.events.filter(({ type }) => type === 'command'))
  t.ok(written.includes('logged out at the provider'))
  for (const token of tokens) for (const part of token.split('.').slice(1)) t.notOk(written.includes(part), 'no part of the token')
  t.notOk(written.includes(names.sub), 'no sub')
  t.notOk(written.includes(names.sid), 'no sid')
})

t.test('each logout is told of, by what it was aimed at, and without an id', async t => {
  const { tell, open, events } = await guarded(t)
  const pairs = [await open({ token: accessToken() }), await open({ token: accessToken({ sid: undefined }) }), await open({ token: accessToken({ sid: undefined }) })]
  const commands = () => events.flatMap(event => {
    if (event.type !== 'command') return []
    const { time, nodeId, commandId, ...rest } = event
    t.ok(time > 0 && nodeId !== '' && /^[\w-]{16}$/.test(commandId))
    return [rest]
  })
  const of = (target: 'login' | 'subject', matched: number) =>
    ({ type: 'command', command: 'revoke', target, userId: null, tenantId: null, reason: 'logged out at the provider', matched, closed: matched })
  await tell(logoutToken({ sid: 'login-1' }))
  t.same(commands(), [of('login', 1)])
  await tell(logoutToken({ sid: undefined, sub: 'alice' }))
  t.same(commands().slice(1), [of('subject', 2)])
  await tell(logoutToken({ sub: 'nobody' }))
  t.same(commands().slice(2).sort((a, b) => String(a.target).localeCompare(String(b.target))), [of('login', 0), of('subject', 0)])
  for (const pair of pairs) await isRevoked(t, pair, 'a socket')
  t.equal(events.filter(({ type }) => type === 'revoked').length, 3)
})
