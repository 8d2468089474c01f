/** The option `enrich`: what the application's own service knows of a user joins what the credential says, and follows when it changes. */
import t, { type Test } from 'tap'
import type { FastifyInstance } from 'fastify'
import type { AuthContext, CommandResult, Enrich, HybridAuthOptions, Identity, RuleFunction } from '../lib/index.js'
import { parseOptions } from '../lib/options.js'
import type { SharedMemory } from '../lib/policy/asked.js'
import { createSources, type EnrichSettings, type Sources } from '../lib/policy/sources.js'
import { closeReason, SUBPROTOCOL } from '../lib/protocol.js'
import { introspection } from '../lib/verify/providers.js'
import { createRealm } from '../lib/verify/realm.js'
import { build, goodToken, inSeconds, JWT, keepLines, SECRET, SESSION, SESSION_SECRET, upgrade } from './helpers.js'
import { dial, eventually, lookNow, setClock, type LiveOptions } from './live.js'
import { fakeIssuer, saysJson } from './provider.js'
import { audited, bearer, codeAndReason, Hold, outcome, untyped, updateOf, withCookie, withoutId, type Audited } from './revoking.js'
import { ask, codeOf, cookieFor, deferred, logTo, MapStore, never, type Deferred } from './stores.js'

const CANARY = 'canary-4712-of-the-user-service'
const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const FORBIDDEN = { code: 4007, reason: closeReason('Forbidden') }
const UNSURE = { code: 4012, reason: closeReason('Unavailable') }

/** A user service that a test may change, and that keeps whom it was asked about. */
class Service {
  readonly asked: Identity[] = []
  answer: (identity: Identity) => unknown

  constructor (answer: unknown = { plan: 'gold' }) {
    this.answer = typeof answer === 'function' ? untyped(answer) : () => answer
  }

  readonly ask: Enrich = identity => {
    this.asked.push(identity)
    return untyped(this.answer(identity))
  }

  /** From now on, of everybody. */
  says (answer: unknown): void {
    this.answer = () => answer
  }

  /** From now on each question waits here, in order. */
  defers (): Array<Deferred<unknown>> {
    const waiting: Array<Deferred<unknown>> = []
    this.answer = () => {
      const one = deferred<unknown>()
      waiting.push(one)
      return one.promise
    }
    return waiting
  }
}

interface Enriched extends Audited { service: Service }

async function enriched (t: Test, { auth, service = new Service(), ...rest }: LiveOptions & { service?: Service } = {}): Promise<Enriched> {
  return { ...await audited(t, { auth: { enrich: service.ask, ...auth }, ...rest }), service }
}

/** What an answer of `/me` says, under the names of a context. */
function contextIn (body: string | null): Record<string, unknown> {
  const parsed: unknown = JSON.parse(body ?? '{}')
  return typeof parsed === 'object' && parsed !== null ? parsed as Record<string, unknown> : {}
}

const seeAs = async ({ host }: { host: string }, claims: Record<string, unknown> = {}) => contextIn((await ask(host, '/me', bearer(goodToken(claims)))).body)
const userAs = async (server: { host: string }, claims: Record<string, unknown> = {}) => (await seeAs(server, claims)).user
const refusalAs = async ({ host }: { host: string }, claims: Record<string, unknown> = {}) => {
  const { status, body } = await ask(host, '/me', bearer(goodToken(claims)))
  return [status, status === 200 ? null : codeOf(body)]
}

/** Everything that has nothing to wait for any more is done. */
async function turns (): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise(resolve => { setImmediate(resolve) })
}

async function isSettled (promise: Promise<unknown>): Promise<boolean> {
  let settled = false
  const mark = () => { settled = true }
  promise.then(mark, mark)
  await turns()
  return settled
}

t.test('what the service says joins auth.user on every way in', async t => {
  const service = new Service(({ userId }: Identity) => ({ plan: `of ${userId}`, nested: { list: [1, { deep: true }] } }))
  const issuer = await fakeIssuer(t)
  issuer.rest = saysJson({ active: true, sub: 'opaque user', scope: 'a b', exp: inSeconds(300) })
  const seen: Record<string, unknown> = {}
  const { host, session, open } = await enriched(t, {
    service,
    auth: { introspection: introspection({ endpoint: `${issuer.issuer}/introspect`, clientId: 'us', clientSecret: 'a secret of ours' }) },
    routes (app) {
      app.get('/required', { preHandler: app.hybridAuth.require() }, async request => request.auth)
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
    }
  })
  const whole = (userId: string, more: object = {}) => ({ userId, ...more, plan: `of ${userId}`, nested: { list: [1, { deep: true }] } })
  const of = (sub: string) => whole(sub, { role: null, permissions: [], tenantId: null })
  const expected: Record<string, unknown> = {}
  const see = (way: string, context: Record<string, unknown> | undefined, user: unknown) => {
    seen[way] = context?.user
    expected[way] = user
  }
  const tokens = (sub: string) => bearer(goodToken({ sub }))
  const cookieOf = (userId: string) => withCookie(session(userId, { userId }))
  const opaque = bearer('an-opaque-token')
  see('http', contextIn((await ask(host, '/me', tokens('u1'))).body), of('u1'))
  see('require()', contextIn((await ask(host, '/required', tokens('u2'))).body), of('u2'))
  see('upgrade', (await upgrade(t, host, tokens('u3'))).context, of('u3'))
  see('http with a session', contextIn((await ask(host, '/me', cookieOf('u4'))).body), whole('u4'))
  see('upgrade with a session', (await upgrade(t, host, { headers: { ...cookieOf('u5').headers, origin: `http://${host}` } })).context, whole('u5'))
  see('http with an opaque token', contextIn((await ask(host, '/me', opaque)).body), whole('opaque user', { role: null, permissions: ['a', 'b'], tenantId: null }))
  see('upgrade with an opaque token', (await upgrade(t, host, opaque)).context, whole('opaque user', { role: null, permissions: ['a', 'b'], tenantId: null }))
  for (const [way, who, user] of [['a ticket of a token', tokens('u6'), of('u6')], ['of a session', cookieOf('u7'), whole('u7')], ['of an opaque token', opaque, expected['http with an opaque token']]] as const) {
    const { body } = await ask(host, '/ticket', { method: 'POST', headers: { ...who.headers, origin: `http://${host}` } })
    see(way, (await upgrade(t, host, { path: `/live?ticket=${body}`, headers: { origin: `http://${host}` } })).context, user)
  }
  const first = await dial(t, host, { path: '/first', protocols: [], cookie: '' }).catch(() => null)
  t.ok(first)
  first?.say({ type: 'auth', token: goodToken({ sub: 'u8' }) })
  await first?.takeFrame('auth_success')
  see('a first message', contextIn(await first?.take() ?? null), of('u8'))
  const { there } = await open({ token: goodToken({ sub: 'u9' }) })
  seen['the context of a connection'] = there.connection.context.user
  expected['the context of a connection'] = of('u9')
  t.equal(there.request.auth.user, there.connection.context.user)
  t.same(seen, expected)
  t.equal(Object.keys(seen).length, 12)
  t.equal(service.asked.length, 10, 'once for each of them: the token that came three times is one')
})

t.test('a token that comes in-band, and a session and an opaque token that are asked about again, bring what the service says by then', async t => {
  const clock = setClock(t)
  clock.freeze()
  const issuer = await fakeIssuer(t)
  issuer.rest = saysJson({ active: true, sub: 'opaque user', exp: inSeconds(3600) })
  const service = new Service({ plan: 'one' })
  const { open, session } = await enriched(t, {
    service, auth: { introspection: introspection({ endpoint: `${issuer.issuer}/introspect`, clientId: 'us', clientSecret: 'a secret of ours' }) }
  })
  const token = await open({ token: goodToken(), speaks: true })
  const browser = await open({ cookie: session('s1', { userId: 'bob' }) })
  const opaque = await open({ token: 'an-opaque-token' })
  const all = [token, browser, opaque]
  const plans = () => all.map(({ there }) => Reflect.get(there.connection.context.user, 'plan') as unknown)
  t.same(plans(), ['one', 'one', 'one'])
  service.says({ plan: 'two' })
  clock.move(31_000)
  token.peer.say(updateOf(goodToken()))
  await token.peer.takeFrame('auth_updated')
  for (const { there } of [browser, opaque]) lookNow(there.connection)
  await eventually('both are asked about', () => plans().every(plan => plan === 'two'))
  t.same(all.map(({ there }) => there.connection.context.version), [2, 2, 2])
  for (const { peer, there } of all) {
    t.equal(there.request.auth, there.connection.context)
    t.ok(await peer.echoed('fence'))
    t.same(peer.framesOf('permission_update'), [], 'the permissions are what they were')
  }
})

t.test('role, permissions, tenantId, acr and issuedAt among it count as if the credential had said so, and null takes them away', async t => {
  const service = new Service()
  const said = { role: 'admin', permissions: ['write'], tenantId: 'acme', acr: 'mfa' }
  const server = await enriched(t, {
    service,
    routes (app) {
      app.get('/admin', { auth: { role: 'admin' } }, async request => request.auth)
      app.get('/write', { auth: { permissions: ['write'] } }, async request => request.auth)
      app.get('/mfa', { auth: { acr: 'mfa' } }, async request => request.auth)
      app.get('/recent', { auth: { maxAuthAge: 60_000 } }, async request => request.auth)
    }
  })
  const statuses = async (init: RequestInit) => Promise.all(['/admin', '/write', '/mfa', '/recent'].map(async path => (await ask(server.host, path, init)).status))
  service.says(said)
  t.match(await seeAs(server), { userId: 'alice', ...said, acr: undefined, user: { userId: 'alice', ...said } })
  t.same(await statuses(bearer(goodToken())), [200, 200, 200, 401], 'a token says by itself when its user logged in')

  const cookie = server.session('s1', { userId: 'bob', role: 'agent', permissions: ['read'], tenantId: 'own', acr: 'pwd' })
  t.same(await statuses(withCookie(cookie)), [200, 200, 200, 401])
  service.says({ issuedAt: Date.now() })
  const recent = server.session('s2', { userId: 'carol', role: 'agent', issuedAt: 1 })
  t.same(await statuses(withCookie(recent)), [403, 403, 401, 200])

  service.says({ role: null, permissions: null, tenantId: null, acr: null })
  const claims = { sub: 'dave', role: 'admin', permissions: ['write'], companyId: 'acme' }
  t.match(await seeAs(server, claims), { userId: 'dave', role: null, permissions: [], tenantId: null, user: { role: null, permissions: null, tenantId: null, acr: null } })
  const all = server.session('s3', { userId: 'dave', role: 'admin', permissions: ['write'], acr: 'mfa' })
  t.same(await statuses(withCookie(all)), [403, 403, 401, 401])

  service.says({ plan: 'gold' })
  t.match(await seeAs(server, { ...claims, sub: 'erin' }), { userId: 'erin', role: 'admin', permissions: ['write'], tenantId: 'acme' }, 'what it does not speak of stays')
})

t.test('sid and tenantId that the service names are what logouts and revocations find', async t => {
  const service = new Service({ tenantId: 'acme' })
  const { app, open } = await enriched(t, { service })
  const { peer } = await open({ token: goodToken() })
  t.match(await app.hybridAuth.revoke({ tenantId: 'acme' }), { matched: 1, closed: 1 })
  t.equal((await peer.end).code, 4006)
  service.says({ sid: 'a login' })
  const bob = await open({ token: goodToken({ sub: 'bob' }) })
  t.equal(bob.there.connection.context.user.sid, 'a login')
})

t.test('userId may be repeated, and is never another one', async t => {
  const service = new Service(({ userId }: Identity) => ({ userId, plan: 'gold' }))
  const server = await enriched(t, { service })
  t.match(await userAs(server), { userId: 'alice', plan: 'gold' })
  for (const userId of ['bob', 'Alice', '', null, NaN, 7, {}, ['alice']]) {
    service.says({ userId })
    t.same(await refusalAs(server, { sub: `not ${JSON.stringify(userId)}` }), [503, UNAVAILABLE], JSON.stringify(userId))
  }
  service.says({ userId: undefined, plan: 'gold' })
  t.match(await userAs(server, { sub: 'carol' }), { userId: 'carol', plan: 'gold' }, 'what is undefined is not there')
})

t.test('null, undefined and an object without members add nothing', async t => {
  for (const nothing of [null, undefined, {}, Promise.resolve(null), Promise.resolve(undefined), new Map([['role', 'admin']]), Object.create({ role: 'admin' }) as unknown]) {
    const server = await enriched(t, { service: new Service(() => nothing) })
    t.match(await seeAs(server, { role: 'agent' }), { role: 'agent', user: { userId: 'alice', role: 'agent', permissions: [], tenantId: null } })
    t.same(Object.keys(await userAs(server, { role: 'agent' }) ?? {}).sort(), ['permissions', 'role', 'tenantId', 'userId'])
    t.equal(server.service.asked.length, 1, 'and that is remembered')
  }
})

const cyclic: Record<string, unknown> = {}
cyclic.self = cyclic
const deep = JSON.parse(`${'{"a":'.repeat(80)}1${'}'.repeat(80)}`) as object
const throwing = () => { throw new Error(CANARY) }

/** What a service may do that is no answer. */
const FAILURES: Array<[string, () => unknown]> = [
  ['it throws', throwing], ['it rejects', () => Promise.reject(new Error(CANARY))], ['it rejects with a text', () => ({ then (_done: unknown, failed: (why: string) => void) { failed(CANARY) } })],
  ['it hangs', never], ['its then throws', () => ({ then: throwing })], ['its then is a getter that throws', () => Object.defineProperty({}, 'then', { get: throwing })],
  ['a text', () => CANARY], ['an empty text', () => ''], ['a number', () => 7], ['zero', () => 0], ['true', () => true], ['false', () => false], ['a bigint', () => 7n], ['a symbol', () => Symbol(CANARY)], ['not a number', () => NaN],
  ['a function', () => throwing], ['a list', () => []], ['a list of objects', () => [{ role: CANARY }]], ['late garbage', async () => [CANARY]],
  ['a getter that throws', () => ({ get role () { return throwing() } })], ['a proxy that throws', () => new Proxy({}, { ownKeys: throwing })], ['a revoked proxy', () => {
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    return proxy
  }],
  ['a proxy that throws when it is adopted', () => new Proxy({}, { has: throwing })],
  ['a toJSON that gives nothing', () => ({ toJSON: () => undefined })], ['a toJSON that throws', () => ({ when: { toJSON: throwing } })], ['a cycle', () => cyclic], ['80 levels', () => deep], ['a bigint among it', () => ({ balance: 7n })],
  ['a role that is no text', () => ({ role: 7 })], ['an empty role', () => ({ role: '' })], ['a role of 10 KiB', () => ({ role: 'x'.repeat(10_240) })], ['a list of roles', () => ({ role: ['admin'] })],
  ['permissions that are a text', () => ({ permissions: 'a b' })], ['permissions that are a set', () => ({ permissions: new Set(['a']) })], ['permissions that are numbers', () => ({ permissions: [1] })], ['permissions with null', () => ({ permissions: ['a', null] })],
  ['a tenant that is no text', () => ({ tenantId: {} })], ['an acr that is no text', () => ({ acr: 2 })], ['a sid that is no text', () => ({ sid: true })], ['a time that is no number', () => ({ issuedAt: 'now' })], ['another user', () => ({ userId: 'mallory' })]
]

t.test('83: whatever the service does instead of answering, everybody is refused for the time being, and nothing of it is told', async t => {
  for (const [what, fail] of FAILURES) {
    await t.test(what, async t => {
      const { stream, text } = keepLines()
      const service = new Service()
      const { host, open, session, app } = await enriched(t, {
        service,
        fastify: logTo(stream),
        auth: { handshakeTimeout: what === 'it hangs' ? 60 : 5000, session: { ...SESSION } },
        routes (app) { app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => { t.fail('a handler ran') }) }
      })
      const faults = () => text().split('\n').filter(line => line.includes('"where":"enrich"'))
      const before = await open({ token: goodToken({ sub: 'before' }), speaks: true })
      const alice = await open({ token: goodToken() })
      service.answer = fail
      const http = await ask(host, '/me', bearer(goodToken({ sub: 'carol' })))
      t.same([http.status, codeOf(http.body), http.headers.get('retry-after')], [503, UNAVAILABLE, '5'])
      t.equal(faults().length, 1, 'the operator is told once')
      const bySession = await ask(host, '/me', withCookie(session('s1', { userId: 'bob' })))
      t.same([bySession.status, codeOf(bySession.body)], [503, UNAVAILABLE])
      const byUpgrade = await upgrade(t, host, bearer(goodToken({ sub: 'carol' })))
      t.same([byUpgrade.status, codeOf(byUpgrade.body)], [503, UNAVAILABLE])
      const byClose = await upgrade(t, host, { ...bearer(goodToken({ sub: 'carol' })), protocols: [SUBPROTOCOL] })
      t.equal(byClose.code, 4012)
      const first = await dial(t, host, { path: '/first', cookie: '' })
      first.say({ type: 'auth', token: goodToken({ sub: 'carol' }) })
      t.equal((await first.end).code, 4012)
      before.peer.say(updateOf(goodToken({ sub: 'before', role: 'other' })))
      t.match(await before.peer.takeFrame('error'), { code: 'unavailable', action: 'retry' }, 'in-band')
      t.match(before.there.connection.context.user, { userId: 'before', plan: 'gold' }, 'an open socket keeps what it has')
      t.equal(faults().length, 6, 'once for each')
      t.match(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(1), 'a refresh')
      t.same(codeAndReason(await alice.peer.end), UNSURE)
      t.equal(before.peer.hasEnded, false, 'and nobody else')
      t.notOk([text(), http.body, byUpgrade.body, byClose.reason, ...before.peer.texts, ...alice.peer.texts, ...first.texts].join().includes(CANARY))
    })
  }
})

t.test('a failure is not remembered: the next one asks again', async t => {
  const service = new Service(() => { throw new Error(CANARY) })
  const server = await enriched(t, { service })
  t.same(await refusalAs(server), [503, UNAVAILABLE])
  service.says({ plan: 'gold' })
  t.match(await userAs(server), { plan: 'gold' })
  t.equal(service.asked.length, 2)
})

t.test('what comes after its time is not remembered either', async t => {
  const service = new Service()
  const waiting = service.defers()
  const server = await enriched(t, { service, auth: { handshakeTimeout: 50 } })
  t.same(await refusalAs(server), [503, UNAVAILABLE])
  waiting[0]?.resolve({ plan: 'late' })
  await turns()
  service.says({ plan: 'in time' })
  t.match(await userAs(server), { plan: 'in time' })
  t.equal(service.asked.length, 2)
})

t.test('a session that the service says nothing of is treated as one that cannot be read', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open, session, service } = await enriched(t, { auth: { session: { ...SESSION, maxStale: 60_000 } } })
  const pair = await open({ cookie: session('s1', { userId: 'bob' }) })
  service.answer = throwing
  clock.move(31_000)
  lookNow(pair.there.connection)
  await eventually('the service was asked', () => service.asked.length === 2)
  t.ok(await pair.peer.echoed('served'))
  clock.move(31_000)
  lookNow(pair.there.connection)
  t.equal((await pair.peer.end).code, 4012)
})

t.test('83: what it says is a copy: plain, frozen at every depth, without a name that means something else', async t => {
  class Row {
    readonly plan = 'gold'
    readonly since = new Date(0)
    readonly money = { toJSON: () => '12.50' }
    readonly method = () => CANARY
    get computed () { return CANARY }
  }
  const mine = { list: [{ a: 1 }], map: new Map([['a', 1]]), no: undefined, nan: NaN }
  const poisoned = JSON.parse('{"__proto__":{"isAdmin":true},"constructor":{"prototype":{"isAdmin":true}},"prototype":1,"in":{"__proto__":{"isAdmin":true},"a":1}}') as object
  const service = new Service(() => Object.assign(new Row(), { [Symbol('hidden')]: CANARY }, mine, Object.fromEntries(Object.entries(poisoned).filter(([name]) => name !== '__proto__'))))
  const { open, host } = await enriched(t, { service })
  const { there: { connection } } = await open({ token: goodToken() })
  const { user } = connection.context
  t.same(user, {
    userId: 'alice', role: null, permissions: [], tenantId: null, plan: 'gold', since: '1970-01-01T00:00:00.000Z', money: '12.50', list: [{ a: 1 }], map: {}, nan: null, in: { a: 1 }
  })
  t.same(Object.keys(user).filter(name => ['no', 'method', 'computed', 'constructor', 'prototype'].includes(name)), [])
  t.equal(Object.getPrototypeOf(user), Object.prototype)
  const list: unknown = Reflect.get(user, 'list')
  t.ok(Array.isArray(list) && [user, list, list[0], user.permissions].every(Object.isFrozen))
  mine.list.push({ a: 2 })
  Reflect.set(mine.list[0] ?? {}, 'a', 666)
  t.same(Reflect.get(contextIn((await ask(host, '/me', bearer(goodToken()))).body).user ?? {}, 'list'), [{ a: 1 }], 'what is remembered does not change with what was returned')

  service.says(poisoned)
  const bob = (await open({ token: goodToken({ sub: 'bob' }) })).there.connection.context.user
  t.same(Object.keys(bob).sort(), ['in', 'permissions', 'role', 'tenantId', 'userId'])
  t.same([Reflect.get(bob, 'isAdmin'), Reflect.get({}, 'isAdmin')], [undefined, undefined])
})

t.test('the service is asked about the identity, frozen, and sees nothing of a token', async t => {
  const service = new Service()
  const user: NonNullable<NonNullable<HybridAuthOptions['jwt']>['user']> = ({ sub = '' }) => ({ userId: `mapped ${sub}`, role: 'mapped' })
  const server = await enriched(t, { service, auth: { jwt: { ...JWT, user } } })
  t.same(await userAs(server), { userId: 'mapped alice', role: 'mapped', plan: 'gold' })
  const [asked] = service.asked
  t.same(asked, { userId: 'mapped alice', role: 'mapped' })
  t.ok(Object.isFrozen(asked))
})

t.test('tokens of the same identity share an answer; another issuer, tenant, role, right or user is another question', async t => {
  const service = new Service((identity: Identity) => ({ told: JSON.stringify(identity) }))
  const server = await enriched(t, { service })
  const told = async (claims: Record<string, unknown>) => Reflect.get(await userAs(server, claims) ?? {}, 'told') as unknown
  const narrow = { role: 'agent', companyId: 'acme', permissions: ['read'] }
  const first = await told(narrow)
  t.equal(await told({ ...narrow, jti: 'another token', exp: inSeconds(60) }), first)
  t.equal(service.asked.length, 1)
  const others = [{ role: 'admin' }, { companyId: 'other' }, { companyId: undefined }, { permissions: ['read', 'write'] }, { permissions: [] }, { sub: 'bob' }, { role: undefined }]
  for (const other of others) {
    const { length } = service.asked
    t.not(await told({ ...narrow, ...other }), first, JSON.stringify(other))
    t.equal(service.asked.length, length + 1, JSON.stringify(other))
  }
  const { length } = service.asked
  service.says({ told: 'of the issuer' })
  t.equal(await told({ ...narrow, iss: 'https://other.example' }), 'of the issuer')
  service.says({ told: 'of another issuer' })
  t.equal(await told({ ...narrow, iss: 'https://another.example' }), 'of another issuer')
  t.equal(service.asked.length, length + 2)
  t.equal(await told(narrow), first, 'who was first is remembered')
  t.equal(await told({ ...narrow, iss: 'https://other.example' }), 'of the issuer')
})

t.test('names that would run into each other are kept apart', async t => {
  const service = new Service(({ userId, tenantId, role }: Identity) => ({ told: [userId, tenantId, role] }))
  const server = await enriched(t, { service })
  const odd = [['a', 'b","c', 'd'], ['a","b', 'c', 'd'], ['a', 'b', 'c","d'], ['__proto__', 'constructor', 'toString'], ['ａ', 'b', 'd'], ['a\u0000', 'b', 'd'], ['a', '\u0000b', 'd']]
  for (let round = 0; round < 2; round++) {
    for (const [sub, companyId, role] of odd) t.same(Reflect.get(await userAs(server, { sub, companyId, role }) ?? {}, 'told'), [sub, companyId, role])
  }
  t.equal(service.asked.length, odd.length)
})

t.test('answers to questions about two identities of a user that cross are not mixed up', async t => {
  const service = new Service()
  const waiting = service.defers()
  const server = await enriched(t, { service })
  const wide = userAs(server, { role: 'admin' })
  await eventually('the first is asked', () => waiting.length === 1)
  const narrow = userAs(server, { role: 'agent' })
  await eventually('the second is asked', () => waiting.length === 2)
  waiting[1]?.resolve({ told: 'narrow' })
  t.match(await narrow, { role: 'agent', told: 'narrow' })
  waiting[0]?.resolve({ told: 'wide' })
  t.match(await wide, { role: 'admin', told: 'wide' })
  t.match([await userAs(server, { role: 'admin' }), await userAs(server, { role: 'agent' })], [{ told: 'wide' }, { told: 'narrow' }])
})

t.test('a thousand sockets of one user that come at once make one call: from a cold start, and after a refresh', async t => {
  const { app, host, service } = await enriched(t)
  const waiting = service.defers()
  let arrived = 0
  app.server.on('upgrade', () => { arrived++ })
  const token = goodToken()
  const storm = async (what: string) => {
    const before = { asked: service.asked.length, arrived }
    const opened = Array.from({ length: 1000 }, () => dial(t, host, { token }))
    await eventually('all of them have come', () => arrived === before.arrived + 1000, 8000)
    // The question is still open.
    t.equal(service.asked.length, before.asked + 1, what)
    waiting.at(-1)?.resolve({ told: what })
    const peers = await Promise.all(opened)
    await eventually('all are connected', () => app.hybridAuth.count() === 1000)
    t.equal(service.asked.length, before.asked + 1, what)
    t.ok(app.hybridAuth.connections().every(({ context }) => Reflect.get(context.user, 'told') === what))
    return peers
  }
  const peers = await storm('cold')
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('it is asked', () => waiting.length === 2)
  waiting[1]?.resolve({ told: 'refreshed' })
  t.match(await refresh, { matched: 1000, closed: 0 })
  t.equal(service.asked.length, 2, 'one question for a thousand sockets')
  t.ok(app.hybridAuth.connections().every(({ context }) => Reflect.get(context.user, 'told') === 'refreshed'))
  for (const { socket } of peers) socket.terminate()
  await eventually('all have gone', () => app.hybridAuth.count() === 0)
  const gone = app.hybridAuth.refreshPermissions('alice')
  t.match(await gone, { matched: 0 })
  for (const { socket } of await storm('again')) socket.terminate()
  t.equal(service.asked.length, 3)
  await eventually('all have gone', () => app.hybridAuth.count() === 0)
})

t.test('an answer is good for 30 s, or for as long as maxAge says, and no longer', async t => {
  const clock = setClock(t)
  clock.freeze()
  for (const [maxAge, ms] of [[undefined, 30_000], [5000, 5000], [3_600_000, 3_600_000]] as const) {
    const service = new Service({ told: 'first' })
    const server = await enriched(t, { auth: { enrich: { ask: service.ask, ...(maxAge !== undefined && { maxAge }) } }, service })
    // Of a lifetime that does not matter here.
    const claims = { exp: inSeconds(100_000) }
    t.match(await userAs(server, claims), { told: 'first' })
    service.says({ told: 'later' })
    clock.move(ms - 1)
    t.match(await userAs(server, claims), { told: 'first' })
    t.equal(service.asked.length, 1)
    clock.move(1)
    t.match(await userAs(server, claims), { told: 'later' })
    t.equal(service.asked.length, 2)
    clock.reset()
  }
})

t.test('with a maxAge of 0 nothing is remembered, each way in asks once, and those that come while a question is open share it', async t => {
  const service = new Service({ told: 1 })
  const server = await enriched(t, { auth: { enrich: { ask: service.ask, maxAge: 0 } }, service })
  t.match(await userAs(server), { told: 1 })
  service.says({ told: 2 })
  t.match(await userAs(server), { told: 2 })
  t.equal(service.asked.length, 2)
  const waiting = service.defers()
  const both = Promise.all([userAs(server), userAs(server)])
  await eventually('it is asked', () => waiting.length > 0)
  await turns()
  for (const one of waiting) one.resolve({ told: 3 })
  t.match(await both, [{ told: 3 }, { told: 3 }])
  service.says(Promise.resolve({ told: 4 }))
  const before = service.asked.length
  const { there } = await server.open({ token: goodToken() })
  t.match(there.connection.context.user, { told: 4 })
  t.equal(service.asked.length, before + 1, 'a socket')
})

t.test('with a maxAge of 0 a token that comes in-band is taken, and asked about once', async t => {
  for (const answer of [{ told: 1 }, Promise.resolve({ told: 1 })]) {
    const service = new Service(() => answer)
    const { open } = await enriched(t, { auth: { enrich: { ask: service.ask, maxAge: 0 } }, service })
    const { peer } = await open({ token: goodToken(), speaks: true })
    const before = service.asked.length
    const ask = service.answer
    service.answer = identity => {
      // What goes on for ever is ended here.
      if (service.asked.length > before + 100) throw new Error('asked too often')
      return ask(identity)
    }
    peer.say(updateOf(goodToken()))
    await peer.until(() => peer.framesOf('auth_updated').length + peer.framesOf('error').length > 0)
    t.equal(peer.framesOf('auth_updated').length, 1)
    t.equal(service.asked.length, before + 1)
  }
})

t.test('an answer that was asked for before the change is used by nobody', async t => {
  const orders: Array<[string, (app: Audited['app']) => Promise<CommandResult>]> = [
    ['refreshPermissions', app => app.hybridAuth.refreshPermissions('alice')],
    ['setPermissions', app => app.hybridAuth.setPermissions('alice', ['set'])],
    ['revoke', app => app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() - 60_000 })]
  ]
  for (const [what, order] of orders) {
    const service = new Service()
    const waiting = service.defers()
    const server = await enriched(t, { service })
    const first = userAs(server)
    await eventually('the service is asked', () => waiting.length === 1)
    const ofBob = userAs(server, { sub: 'bob' })
    await eventually('also about somebody else', () => waiting.length === 2)
    await order(server.app)
    const second = userAs(server)
    await eventually('who comes after it asks again', () => waiting.length === 3)
    waiting[0]?.resolve({ told: 'old' })
    t.notOk(await isSettled(Promise.race([first, second])), `${what}: the late answer serves neither`)
    waiting[2]?.resolve({ told: 'new' })
    t.match(await Promise.all([first, second]), [{ told: 'new' }, { told: 'new' }], what)
    waiting[1]?.resolve({ told: 'of bob' })
    t.match(await ofBob, { told: 'of bob' }, 'what was asked about somebody else is as good as before')
    t.match(await userAs(server), { told: 'new' }, 'nor is it remembered')
    t.equal(waiting.length, 3)
  }
})

t.test('nor is it where it comes last, fails late, or where the user is forgotten again and again', async t => {
  const service = new Service()
  const waiting = service.defers()
  const server = await enriched(t, { service })
  const { hybridAuth } = server.app
  const first = userAs(server)
  await eventually('it is asked', () => waiting.length === 1)
  await hybridAuth.refreshPermissions('alice')
  const second = userAs(server)
  await eventually('and again', () => waiting.length === 2)
  await hybridAuth.refreshPermissions('alice')
  const third = userAs(server)
  await eventually('and again', () => waiting.length === 3)
  waiting[2]?.resolve({ told: 'newest' })
  t.match(await third, { told: 'newest' })
  service.says({ told: 'asked for in vain' })
  waiting[1]?.resolve({ told: 'older' })
  t.match(await second, { told: 'newest' })
  waiting[0]?.resolve(Promise.reject(new Error(CANARY)))
  t.match(await first, { told: 'newest' }, 'what failed was no answer either')
  t.match(await userAs(server), { told: 'newest' })
  t.equal(service.asked.length, 3)
})

t.test('revoke({ userId }) forgets, and a dry run, a revocation of a token and one of somebody else do not', async t => {
  const service = new Service({ told: 'old' })
  const server = await enriched(t, { service })
  const { hybridAuth } = server.app
  const old = { iat: inSeconds(-100) }
  t.match(await userAs(server, old), { told: 'old' })
  service.says({ told: 'new' })
  await hybridAuth.revoke({ userId: 'alice' }, { dryRun: true })
  await hybridAuth.revoke({ userId: 'bob' })
  await hybridAuth.revoke({ token: goodToken() })
  await hybridAuth.refreshPermissions('bob')
  t.match(await userAs(server), { told: 'old' })
  t.equal(service.asked.length, 1)
  await hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() - 50_000 })
  t.match(await userAs(server), { told: 'new' })
  t.same(await refusalAs(server, old), [401, 'FST_HYBRID_AUTH_REVOKED_TOKEN'])
  service.says({ told: 'newer' })
  await hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() - 40_000 }, { mode: { reauthWithin: 60_000 } })
  t.match(await userAs(server), { told: 'newer' }, 'also one that gives time')
})

t.test('refreshPermissions puts another role on open sockets: their rule and their rooms are asked again', async t => {
  const service = new Service({ role: 'agent' })
  const { app, open, events } = await enriched(t, {
    service,
    auth: { rooms: { authorize: (auth, room) => auth.role === room } },
    route: auth => auth.role !== 'nobody'
  })
  const [alice, plain, bob] = [await open({ token: goodToken({ companyId: 'a' }), speaks: true }), await open({ token: goodToken({ companyId: 'b' }) }), await open({ token: goodToken({ sub: 'bob' }), speaks: true })]
  for (const { there: { connection } } of [alice, plain, bob]) t.ok(await connection.join('agent'))
  const refreshed: unknown[] = []
  alice.there.connection.on('refresh', ({ role }) => { refreshed.push(role) })
  service.says({ role: 'manager' })
  t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(2, 0))
  for (const { there: { connection, request } } of [alice, plain]) {
    t.match(connection.context, { role: 'manager', version: 2, user: { role: 'manager' } })
    t.ok(Object.isFrozen(connection.context) && Object.isFrozen(connection.context.user))
    t.equal(request.auth, connection.context)
    t.same([...connection.rooms], [], 'out of the room of the role that was lost')
  }
  t.same([bob.there.connection.context.role, [...bob.there.connection.rooms]], ['agent', ['agent']])
  t.match(await alice.peer.takeFrame('left'), { room: 'agent', reason: 'forbidden' })
  t.same(refreshed, ['manager'])
  t.same(alice.peer.framesOf('permission_update'), [])
  t.notOk(events.some(({ type }) => type === 'permissions_changed'))
  service.says({ role: 'nobody' })
  t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(2))
  for (const { peer } of [alice, plain]) t.same(codeAndReason(await peer.end), FORBIDDEN)
  t.ok(await bob.peer.echoed('fence'))
})

t.test('66: the call has waited for a rule that takes its time about the other role', async t => {
  const verdict = deferred<boolean>()
  const rule: RuleFunction = async auth => auth.role === 'agent' || await verdict.promise
  const service = new Service({ role: 'agent' })
  const { app, open } = await enriched(t, { service, route: rule })
  const { peer, there } = await open({ token: goodToken(), speaks: true })
  service.says({ role: 'other' })
  const done = app.hybridAuth.refreshPermissions('alice')
  t.notOk(await isSettled(done))
  t.equal(there.connection.context.role, 'other', 'what was lost is lost already')
  verdict.resolve(false)
  t.same(withoutId(t, await done), outcome(1))
  t.same(codeAndReason(await peer.end), FORBIDDEN)
})

t.test('refreshPermissions with other permissions sends permission_update, with other data a new version alone, and with the same nothing', async t => {
  const service = new Service({ permissions: ['keep', 'lose'], plan: 'gold' })
  const { app, open, types } = await enriched(t, { service })
  const { peer, there: { connection } } = await open({ token: goodToken(), speaks: true })
  const first = connection.context
  service.says({ plan: 'gold', permissions: ['lose', 'keep'] })
  const same = connection.context
  await app.hybridAuth.refreshPermissions('alice')
  service.says({ permissions: ['keep', 'lose'], plan: 'gold' })
  await app.hybridAuth.refreshPermissions('alice')
  t.same(connection.context.permissions.length, 2)
  t.equal(same, first)
  t.ok(await peer.echoed('the same'))
  t.same(peer.texts, ['the same'], 'nothing is sent')
  t.notOk(types().includes('permissions_changed'))

  const { version } = connection.context
  service.says({ permissions: ['keep', 'lose'], plan: 'platinum' })
  t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(1, 0))
  t.match(connection.context, { version: version + 1, user: { plan: 'platinum' } })
  t.ok(await peer.echoed('other data'))
  t.same(peer.texts, ['the same', 'other data'])
  t.notOk(types().includes('permissions_changed'))

  service.says({ permissions: ['keep', 'gain'], plan: 'platinum' })
  await app.hybridAuth.refreshPermissions('alice')
  t.match(connection.context, { version: version + 2, permissions: ['keep', 'gain'], user: { permissions: ['keep', 'gain'] } })
  t.same(await peer.takeFrame('permission_update'), { type: 'permission_update', permissions: ['keep', 'gain'], added: ['gain'], removed: ['lose'] })
  t.equal(types().filter(type => type === 'permissions_changed').length, 1)

  service.says(null)
  await app.hybridAuth.refreshPermissions('alice')
  t.same(connection.context.user, { userId: 'alice', role: null, permissions: [], tenantId: null }, 'what it says no more is gone')
  t.same((await peer.takeFrame('permission_update')).removed, ['keep', 'gain'])
})

t.test('where the service says the same, the version stays', async t => {
  const { app, open, service } = await enriched(t)
  const { there: { connection } } = await open({ token: goodToken() })
  const { context } = connection
  await app.hybridAuth.refreshPermissions('alice')
  t.equal(service.asked.length, 2)
  t.equal(connection.context, context)
})

t.test('a role that the service gave and gives no more falls back to what the credential said', async t => {
  const service = new Service({ role: 'admin', permissions: ['all'], tenantId: 'own' })
  const { app, open } = await enriched(t, { service })
  const { there: { connection } } = await open({ token: goodToken({ role: 'agent', permissions: ['read'], companyId: 'own' }) })
  t.match(connection.context, { role: 'admin', permissions: ['all'], tenantId: 'own' })
  service.says({})
  await app.hybridAuth.refreshPermissions('alice')
  t.match(connection.context, { role: 'agent', permissions: ['read'], tenantId: 'own' })
  t.same(service.asked.map(({ role }) => role), ['agent', 'agent'], 'it is asked about what the credential said each time')
})

t.test('65: a socket whose user has another tenant after a refresh is closed with 4011', async t => {
  for (const [before, after] of [['acme', 'other'], ['acme', null], [null, 'acme']] as const) {
    const service = new Service({ tenantId: before })
    const { app, open, types } = await enriched(t, { service })
    const { peer, there } = await open({ token: goodToken(), speaks: true })
    service.says({ tenantId: after })
    t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(1))
    t.same(codeAndReason(await peer.end), { code: 4011, reason: closeReason('IdentityChanged') })
    await there.closed
    t.ok(types().includes('identity_changed'))
    t.equal(there.connection.context.tenantId, before)
  }
})

t.test('65: so it is for a token that comes in-band and a session that is read again', async t => {
  const clock = setClock(t)
  clock.freeze()
  const service = new Service({ tenantId: 'acme' })
  const { open, session } = await enriched(t, { service })
  const token = await open({ token: goodToken(), speaks: true })
  const browser = await open({ cookie: session('s1', { userId: 'bob' }) })
  service.says({ tenantId: 'other' })
  clock.move(31_000)
  token.peer.say(updateOf(goodToken()))
  lookNow(browser.there.connection)
  for (const { peer } of [token, browser]) t.equal((await peer.end).code, 4011)
})

t.test('65: a ticket of somebody who has another tenant by then is refused', async t => {
  const service = new Service({ tenantId: 'acme' })
  const { app, host } = await enriched(t, { service, routes (app) { app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request)) } })
  const issue = async () => (await ask(host, '/ticket', { method: 'POST', ...bearer(goodToken()) })).body
  const [good, late] = [await issue(), await issue()]
  t.match((await upgrade(t, host, { path: `/live?ticket=${good}` })).context, { tenantId: 'acme' })
  service.says({ tenantId: 'other' })
  await app.hybridAuth.refreshPermissions('alice')
  t.equal((await upgrade(t, host, { path: `/live?ticket=${late}` })).status, 401)
})

/** A server with a route at whose door whoever comes by is held up, once that is armed. */
async function held (t: Test, service: Service, auth: Partial<HybridAuthOptions> = {}, rule: LiveOptions['route'] = true) {
  const hold = new Hold()
  const seen: AuthContext[] = []
  const server = await enriched(t, {
    service, auth,
    routes (app) {
      app.get('/held', { websocket: true, auth: rule, preValidation: () => hold.pass() }, (socket, request) => {
        seen.push(request.auth)
        socket.send('handled')
      })
    }
  })
  return { ...server, hold, seen }
}

t.test('68: a socket that is being opened while the data change has the new ones before its handler runs', async t => {
  for (const after of [{ told: 'new' }, Promise.resolve({ told: 'new' })]) {
    const service = new Service({ told: 'old' })
    const { app, host, hold, seen } = await held(t, service)
    hold.arm()
    const opening = dial(t, host, { path: '/held', token: goodToken() })
    await hold.entered
    service.says(after)
    t.match(await app.hybridAuth.refreshPermissions('alice'), { matched: 0 })
    hold.release()
    t.equal(await (await opening).take(), 'handled')
    t.match(seen, [{ user: { told: 'new' } }])
  }
})

t.test('68: it is closed before its handler where the service fails then, the rule no longer holds, or it is another tenant', async t => {
  const changes: Array<[string, unknown, number]> = [
    ['it fails', Promise.reject(new Error(CANARY)), 4012], ['another role', { role: 'nobody' }, 4007], ['another role, later', Promise.resolve({ role: 'nobody' }), 4007],
    ['another tenant', { tenantId: 'other' }, 4011], ['another user', { userId: 'mallory' }, 4012]
  ]
  for (const [what, after, code] of changes) {
    if (after instanceof Promise) after.catch(() => {})
    const service = new Service({})
    const { app, host, hold, seen } = await held(t, service, {}, auth => auth.role !== 'nobody')
    hold.arm()
    const opening = dial(t, host, { path: '/held', token: goodToken() })
    await hold.entered
    service.says(after)
    await app.hybridAuth.refreshPermissions('alice')
    hold.release()
    t.equal((await (await opening).end).code, code, what)
    t.same(seen, [], what)
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('a token whose question was asked before the change does not bring back what was', async t => {
  const service = new Service({ role: 'old' })
  const { app, open } = await enriched(t, { service })
  const { peer, there: { connection } } = await open({ token: goodToken(), speaks: true })
  const waiting = service.defers()
  peer.say(updateOf(goodToken({ permissions: ['other'] })))
  await eventually('the service is asked', () => waiting.length === 1)
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('and about the socket', () => waiting.length === 2)
  waiting[1]?.resolve({ role: 'new' })
  await refresh
  waiting[0]?.resolve({ role: 'old' })
  await eventually('it is asked again', () => waiting.length === 3)
  waiting[2]?.resolve({ role: 'new' })
  await peer.takeFrame('auth_updated')
  t.match(connection.context, { role: 'new', permissions: ['other'] })
})

t.test('nor does one that was verified in the moment of the change', async t => {
  const service = new Service({ role: 'old' })
  const { app, open } = await enriched(t, { service, auth: { jwt: { ...JWT, key: async () => SECRET } } })
  const { peer, there: { connection } } = await open({ token: goodToken(), speaks: true })
  let refresh: Promise<CommandResult> | undefined
  service.answer = ({ permissions }) => {
    if (permissions?.[0] !== 'other') return { role: 'new' }
    // Behind the question, and before its answer is with the socket.
    queueMicrotask(() => {
      service.says({ role: 'new' })
      refresh = app.hybridAuth.refreshPermissions('alice')
    })
    return { role: 'old' }
  }
  peer.say(updateOf(goodToken({ permissions: ['other'] })))
  await peer.takeFrame('auth_updated')
  await refresh
  t.ok(await peer.echoed('fence'))
  t.equal(connection.context.role, 'new')
})

/** A store that extends sessions when the test says so. */
class TouchStore extends MapStore {
  readonly touching: Array<() => void> = []

  touch (_sessionId: string, _session: unknown, callback: (error?: unknown) => void): void {
    this.touching.push(() => { callback() })
  }
}

t.test('a session that was being read during the change does not bring back what was', async t => {
  const clock = setClock(t)
  clock.freeze()
  const store = new TouchStore()
  const service = new Service({ role: 'old' })
  const { app, open } = await enriched(t, { service, auth: { session: { ...SESSION, store, secret: SESSION_SECRET, touch: true } } })
  store.put('s1', { user: { userId: 'bob' }, cookie: { originalMaxAge: 3_600_000, expires: new Date(Date.now() + 3_600_000) } })
  const { peer, there: { connection } } = await open({ cookie: cookieFor('s1') })
  t.ok(await peer.echoed('used'))
  clock.move(31_000)
  lookNow(connection)
  await eventually('the session is being extended', () => store.touching.length === 1)
  service.says({ role: 'new' })
  await app.hybridAuth.refreshPermissions('bob')
  t.equal(connection.context.role, 'new')
  store.touching[0]?.()
  t.ok(await peer.echoed('fence'))
  await turns()
  t.equal(connection.context.role, 'new')
})

t.test('a token that comes while the service is asked for a refresh is the one that counts', async t => {
  const service = new Service({ told: 'old' })
  const { app, open } = await enriched(t, { service })
  const { peer, there: { connection } } = await open({ token: goodToken({ role: 'one' }), speaks: true })
  const waiting = service.defers()
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('the service is asked', () => waiting.length === 1)
  peer.say(updateOf(goodToken({ role: 'two' })))
  await eventually('and about the new token', () => waiting.length === 2)
  waiting[1]?.resolve({ told: 'of two' })
  await peer.takeFrame('auth_updated')
  t.notOk(await isSettled(refresh))
  waiting[0]?.resolve({ told: 'of one' })
  t.match(await refresh, { matched: 1, closed: 0 })
  t.match(connection.context, { role: 'two', user: { told: 'of two' } })
})

t.test('with both options the source of permissions is asked about the enriched identity, and has the last word', async t => {
  const service = new Service({ role: 'admin', permissions: ['enriched'], plan: 'gold' })
  const asked: Identity[] = []
  const server = await enriched(t, { service, auth: { permissions (identity) { asked.push(identity); return [`of ${identity.role ?? 'nobody'}`] } } })
  t.match(await seeAs(server, { role: 'agent' }), { role: 'admin', permissions: ['of admin'], user: { permissions: ['enriched'], plan: 'gold' } })
  t.same(asked, [{ userId: 'alice', role: 'admin', permissions: ['enriched'], tenantId: null, plan: 'gold' }])
  t.same(service.asked, [{ userId: 'alice', role: 'agent', permissions: [], tenantId: null }])
  const { peer, there: { connection } } = await server.open({ token: goodToken({ role: 'agent' }), speaks: true })
  t.same([asked.length, service.asked.length], [1, 1], 'both are remembered')
  service.says({ role: 'manager' })
  t.same(withoutId(t, await server.app.hybridAuth.refreshPermissions('alice')), outcome(1, 0))
  t.match(connection.context, { role: 'manager', permissions: ['of manager'], version: 2, user: { role: 'manager', permissions: [] } })
  t.same(await peer.takeFrame('permission_update'), { type: 'permission_update', permissions: ['of manager'], added: ['of manager'], removed: ['of admin'] })
  t.same([asked.length, service.asked.length], [2, 2])
})

t.test('with permissions alone auth.user is what the credential says, and follows nothing', async t => {
  let said = ['a']
  const { app, open } = await audited(t, { auth: { permissions: () => said } })
  const { there: { connection } } = await open({ token: goodToken({ role: 'agent' }) })
  const { user } = connection.context
  said = ['b']
  await app.hybridAuth.refreshPermissions('alice')
  t.match(connection.context, { role: 'agent', permissions: ['b'] })
  t.equal(connection.context.user, user)
})

t.test('with both options, where the service fails the source of permissions is not asked, and where that fails nobody is let in', async t => {
  const service = new Service(throwing)
  let asked = 0
  let fails = false
  let said: unknown = ['a']
  const server = await enriched(t, { service, auth: { permissions () { asked++; return fails ? throwing() : untyped(said) } } })
  t.same(await refusalAs(server), [503, UNAVAILABLE])
  t.equal(asked, 0)
  service.says({})
  fails = true
  t.same(await refusalAs(server), [503, UNAVAILABLE])
  fails = false
  for (const garbage of [null, 'a', [1], {}]) {
    said = garbage
    t.same(await refusalAs(server), [503, UNAVAILABLE])
  }
  said = ['a']
  t.same(await refusalAs(server), [200, null])
  t.equal(service.asked.length, 2, 'what the service said is remembered')
})

t.test('with both options, a socket that was opened between two changes has what both say in the end', async t => {
  for (const order of ['service', 'permissions'] as const) {
    const service = new Service({ told: 'old' })
    const answers: Array<Deferred<readonly string[]>> = []
    let isSlow = false
    const { app, host, hold, seen } = await held(t, service, {
      permissions () {
        if (!isSlow) return ['old']
        const one = deferred<readonly string[]>()
        answers.push(one)
        return one.promise
      }
    })
    hold.arm()
    const opening = dial(t, host, { path: '/held', token: goodToken() })
    await hold.entered
    isSlow = true
    const asked = service.defers()
    await app.hybridAuth.refreshPermissions('alice')
    hold.release()
    const peer = await opening
    await eventually('the service is asked', () => asked.length === 1)
    if (order === 'service') {
      // It is forgotten while the first of the two is asked…
      const again = app.hybridAuth.refreshPermissions('alice')
      await eventually('and again', () => asked.length === 2)
      asked[0]?.resolve({ told: 'stale' })
      asked[1]?.resolve({ told: 'new' })
      await eventually('the permissions are asked for', () => answers.length === 1)
      answers[0]?.resolve(['new'])
      await again
    } else {
      asked[0]?.resolve({ told: 'stale' })
      await eventually('the permissions are asked for', () => answers.length === 1)
      // …or while the second is.
      const again = app.hybridAuth.refreshPermissions('alice')
      await eventually('the service is asked again', () => asked.length === 2)
      answers[0]?.resolve(['stale'])
      asked[1]?.resolve({ told: 'new' })
      await eventually('and the permissions', () => answers.length >= 2)
      for (const one of answers) one.resolve(['new'])
      await turns()
      for (const one of answers) one.resolve(['new'])
      await again
    }
    t.equal(await peer.take(), 'handled')
    t.match(seen.at(-1), { user: { told: 'new' }, permissions: ['new'] }, order)
    t.match(app.hybridAuth.connections().map(({ context }) => context), [{ user: { told: 'new' }, permissions: ['new'] }], order)
  }
})

t.test('with both options, a token that comes in-band is not taken with old data and new permissions', async t => {
  const service = new Service({ told: 'old' })
  const waiting: Array<Deferred<readonly string[]>> = []
  let isSlow = false
  const { app, open } = await enriched(t, {
    service,
    auth: {
      permissions ({ role }) {
        if (!isSlow || role !== 'other') return ['of the first']
        const one = deferred<readonly string[]>()
        waiting.push(one)
        return one.promise
      }
    }
  })
  const { peer, there: { connection } } = await open({ token: goodToken(), speaks: true })
  isSlow = true
  peer.say(updateOf(goodToken({ role: 'other' })))
  await eventually('the service has answered, and the permissions are asked for', () => waiting.length === 1)
  service.says({ told: 'new' })
  await app.hybridAuth.refreshPermissions('alice')
  t.match(connection.context, { user: { told: 'new' } })
  waiting[0]?.resolve(['old'])
  await eventually('they are asked for again', () => waiting.length === 2)
  t.match(connection.context, { role: null, user: { told: 'new' } })
  waiting[1]?.resolve(['new'])
  await eventually('and about the new data', () => waiting.length === 3 || peer.framesOf('auth_updated').length === 1)
  waiting[2]?.resolve(['newest'])
  await peer.takeFrame('auth_updated')
  t.match(connection.context, { role: 'other', permissions: ['newest'], user: { told: 'new' } })
})

t.test('permissions that were set stay while a session is read again whose other data have changed', async t => {
  const clock = setClock(t)
  clock.freeze()
  const service = new Service({ plan: 'gold', permissions: ['own'] })
  const { app, open, session } = await enriched(t, { service })
  const { there: { connection } } = await open({ cookie: session('s1', { userId: 'bob' }) })
  await app.hybridAuth.setPermissions('bob', ['set'])
  t.equal(service.asked.length, 1, 'what is set is not asked for')
  service.says({ plan: 'platinum', permissions: ['own'] })
  clock.move(31_000)
  lookNow(connection)
  await eventually('it was read', () => Reflect.get(connection.context.user, 'plan') === 'platinum')
  t.same(connection.context.permissions, ['set'])
  await app.hybridAuth.refreshPermissions('bob')
  t.same(connection.context.permissions, ['own'], 'a refresh asks the service')
})

t.test('options that are wrong are refused by name', async t => {
  const askNobody: Enrich = () => null
  const wrong: Array<[unknown, RegExp]> = [
    [7, /enrich: must be a function, or/], ['ask', /enrich: must be/], [null, /enrich: must be/], [true, /enrich: must be/], [[], /enrich(\.ask)?: /], [{}, /enrich\.ask/], [{ ask: 'x' }, /enrich\.ask: must be a function/],
    [{ ask: askNobody, maxAge: -1 }, /enrich\.maxAge: must be a number of milliseconds/], [{ ask: askNobody, maxAge: 86_400_001 }, /enrich\.maxAge/], [{ ask: askNobody, maxAge: '30s' }, /enrich\.maxAge/],
    [{ ask: askNobody, maxAge: NaN }, /enrich\.maxAge/], [{ ask: askNobody, maxAge: null }, /enrich\.maxAge/], [{ ask: askNobody, shared: 'yes' }, /enrich\.shared/], [{ ask: askNobody, shared: 1 }, /enrich\.shared/],
    [{ ask: askNobody, ttl: 5 }, /enrich\.ttl: is not an option/], [{ maxAge: 5 }, /enrich\.ask/], [[askNobody], /enrich/]
  ]
  for (const [given, message] of wrong) await t.rejects(build(t, { auth: { enrich: untyped(given) } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message }, JSON.stringify(given))
  for (const given of [undefined, askNobody, { ask: askNobody }, { ask: askNobody, maxAge: undefined, shared: undefined }, { ask: askNobody, maxAge: 86_400_000, shared: true }]) await build(t, { auth: { enrich: given } })
  await t.rejects((await audited(t)).app.hybridAuth.refreshPermissions('alice'), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /enrich/ }, 'what may be given instead is named')
})

t.test('shared answers of an application that is one process are its own', async t => {
  const service = new Service()
  const server = await enriched(t, { service, auth: { enrich: { ask: service.ask, shared: true } } })
  t.match([await userAs(server), await userAs(server)], [{ plan: 'gold' }, { plan: 'gold' }])
  t.equal(service.asked.length, 1)
})

t.test('the type of a service says what it may return', async t => {
  const services: Enrich[] = [() => null, () => undefined, () => ({ plan: 'gold' }), async ({ userId }) => ({ told: userId }), async () => null]
  // @ts-expect-error -- a text is no members
  services.push(() => 'gold')
  // @ts-expect-error -- who it is asked about cannot be changed
  services.push(identity => { identity.userId = 'mallory' })
  const options: Array<HybridAuthOptions['enrich']> = [...services, { ask: () => null }, { ask: () => null, maxAge: 0, shared: true }, undefined]
  // @ts-expect-error -- it has to be asked
  options.push({ maxAge: 5 })
  t.equal(options.length, 11)
})

/** Without a server: what is remembered, of many. */
function sourcesOf (settings: Partial<EnrichSettings>): Sources {
  const sources = createSources({ enrich: { ask: () => null, maxAge: 30_000, shared: false, ...settings }, timeout: 1000, shared: null, realm: () => '', onFault (_where, error) { throw error } })
  if (sources === null) throw new Error('none')
  return sources
}

const bare = (user: Identity) => ({ userId: user.userId, role: user.role ?? null, permissions: [], tenantId: null, user })

t.test('however many users and identities there are, what is remembered is bounded', async t => {
  let asked = 0
  const sources = sourcesOf({ ask: () => { asked++; return { a: 1 } } })
  const find = (user: Identity) => sources.complete(null, bare(user))
  const userOf = (n: number): Identity => ({ userId: `user ${n}` })
  for (let n = 0; n < 25_000; n++) find(userOf(n))
  asked = 0
  for (let n = 24_999; n >= 0; n--) find(userOf(n))
  t.ok(25_000 - asked <= 10_000, `${25_000 - asked} of 25 000 were remembered`)
  t.ok(25_000 - asked >= 4000, 'and some were')
  const identityOf = (n: number): Identity => ({ userId: 'alice', role: `role ${n}` })
  for (let n = 0; n < 100; n++) find(identityOf(n))
  asked = 0
  for (let n = 0; n < 100; n++) find(identityOf(n))
  t.ok(asked >= 84, `of 100 identities of one user ${100 - asked} were remembered`)
  for (let n = 0; n < 16; n++) find({ userId: 'bob', role: `role ${n}` })
  asked = 0
  for (let n = 0; n < 16; n++) find({ userId: 'bob', role: `role ${n}` })
  t.equal(asked, 0, 'sixteen of one user are all remembered')
  t.equal(createSources({ timeout: 1000, shared: null, realm: () => '', onFault () {} }), null, 'without a source there is none')
})

t.test('more identities of a user than are remembered, all on open sockets, are each brought up to date by a refresh', async t => {
  for (const isLate of [false, true]) {
    const service = new Service((): unknown => ({ told: 'old' }))
    const { app, open } = await enriched(t, { service })
    const pairs = await Promise.all(Array.from({ length: 40 }, (_, n) => open({ token: goodToken({ role: `role ${n}` }), speaks: true })))
    const { length } = service.asked
    service.answer = () => isLate ? Promise.resolve({ told: 'new' }) : { told: 'new' }
    t.match(await app.hybridAuth.refreshPermissions('alice'), { matched: 40, closed: 0 })
    t.equal(service.asked.length, length + 40)
    t.ok(pairs.every(({ there: { connection: { context } } }) => Reflect.get(context.user, 'told') === 'new'))
    for (const [n, { peer }] of pairs.entries()) peer.say(updateOf(goodToken({ role: `other ${n}` })))
    for (const { peer } of pairs) t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
    t.same(pairs.map(({ there: { connection: { context } } }) => context.role), pairs.map((_, n) => `other ${n}`))
  }
})

t.test('68: who was forgotten is not taken for current, however many others were forgotten since', async t => {
  const sources = sourcesOf({ ask: () => ({ a: 1 }) })
  const contextOf = async (userId: string): Promise<AuthContext> => {
    const found = await sources.complete(null, bare({ userId }))
    return untyped({ issuer: null, userId, permissions: [], user: typeof found === 'string' ? null : found.user })
  }
  const [alice, bob] = [await contextOf('alice'), await contextOf('bob')]
  t.same([sources.isCurrent(alice), sources.isCurrent(bob)], [true, true])
  sources.forget('alice')
  t.same([sources.isCurrent(alice), sources.isCurrent(bob)], [false, true])
  for (let n = 0; n < 25_000; n++) {
    sources.forget(`user ${n}`)
    // Who is asked about in between is moved to where he is kept for longer.
    if (n % 1000 === 999 && sources.isCurrent(alice)) t.fail(`after ${n}`)
  }
  t.notOk(sources.isCurrent(alice))
  t.ok(sources.isCurrent(await contextOf('alice')))
})

t.test('82: with more users forgotten than are remembered, an in-band token is taken, and its user asked about once', async t => {
  const service = new Service(() => ({ role: 'agent' }))
  const { app, open } = await enriched(t, { service })
  const { peer } = await open({ token: goodToken(), speaks: true })
  await Promise.all(Array.from({ length: 10_001 }, async (_, n) => app.hybridAuth.refreshPermissions(`user ${n}`)))
  const { length } = service.asked
  peer.say({ type: 'auth_update', token: goodToken({ jti: 'another' }) })
  await peer.takeFrame('auth_updated')
  t.equal(service.asked.length - length, 1)
})

t.test('83: a source that forgets its own user, at once or later, is asked a few times and then refused', async t => {
  for (const isLate of [false, true]) {
    const apps: FastifyInstance[] = []
    const service = new Service(async () => {
      if (isLate) await new Promise(resolve => { setImmediate(resolve) })
      await apps[0]?.hybridAuth.refreshPermissions('nobody')
      await apps[0]?.hybridAuth.revoke({ userId: 'alice', tenantId: 'elsewhere' })
      return { role: 'agent' }
    })
    const server = await enriched(t, { service })
    apps.push(server.app)
    t.equal((await ask(server.host, '/me', bearer(goodToken()))).status, 503)
    t.ok(service.asked.length > 1 && service.asked.length < 20, `${service.asked.length} times`)
  }
  const apps: FastifyInstance[] = []
  let forgets = false
  const service = new Service(() => {
    // Carried out here before it is waited for.
    if (forgets) apps[0]?.hybridAuth.revoke({ userId: 'alice', tenantId: 'elsewhere' }).catch(() => {})
    return { role: 'agent' }
  })
  const server = await enriched(t, { service })
  apps.push(server.app)
  const { peer } = await server.open({ token: goodToken(), speaks: true })
  const { length } = service.asked
  forgets = true
  await server.app.hybridAuth.revoke({ userId: 'alice', tenantId: 'elsewhere' })
  peer.say({ type: 'auth_update', token: goodToken({ jti: 'another' }) })
  t.match(await peer.takeFrame('error'), { code: 'unavailable' })
  t.ok(service.asked.length - length < 20, `${service.asked.length - length} times`)
})

t.test('a realm is whom a registration accepts, of whatever kind, and the same each time', t => {
  const session = { user: () => null }
  const remote = introspection({ endpoint: 'https://as.example.com/introspect', clientId: 'api', clientSecret: 'secret' })
  const given: HybridAuthOptions[] = [{ jwt: JWT }, { jwt: { ...JWT, audience: 'api' } }, { session }, { session: { ...session, cookieName: 'sid' } }, { introspection: remote }, { jwt: JWT, session, introspection: remote }]
  const realms = given.map(options => createRealm(parseOptions(options)))
  t.equal(new Set(realms.map(realm => realm())).size, given.length)
  for (const [index, realm] of realms.entries()) t.equal(realm(), createRealm(parseOptions(given[index]))())
  t.end()
})

/** What nodes remember together, in a Map. */
class Shelf implements SharedMemory {
  readonly kept = new Map<string, { value: string, until: number }>()
  isAway = false
  version = 'one'
  readonly forgotten: string[] = []

  async recall (userId: string, key: string): ReturnType<SharedMemory['recall']> {
    const { value = null, until = 0 } = this.kept.get(`${userId} ${key}`) ?? {}
    return this.isAway ? null : { value, until, version: this.version }
  }

  keep (userId: string, key: string, value: string, until: number, version: string): void {
    if (version === this.version) this.kept.set(`${userId} ${key}`, { value, until })
  }

  forget (userId: string): void {
    this.forgotten.push(userId)
    this.version = 'another'
  }
}

t.test('who is forgotten is forgotten by all nodes', t => {
  const shelf = new Shelf()
  const sources = createSources({ enrich: { ask: () => null, maxAge: 1000, shared: true }, timeout: 1000, shared: shelf, realm: () => 'a', onFault () {} })
  sources?.forget('alice')
  t.same(shelf.forgotten, ['alice'])
  t.end()
})

t.test('what another node was told is used while it is good, and nothing else that is kept there', async t => {
  const clock = setClock(t)
  const shelf = new Shelf()
  const faults: string[] = []
  let asked = 0
  let answer: () => unknown = () => ({ told: ++asked })
  const node = (maxAge = 30_000) => {
    const sources = createSources({ enrich: { ask: () => answer(), maxAge, shared: true }, timeout: 1000, shared: shelf, realm: () => 'a', onFault (where) { faults.push(where) } })
    if (sources === null) throw new Error('none')
    return async () => {
      const found = await sources.complete(null, bare({ userId: 'alice' }))
      return typeof found === 'string' ? found : Reflect.get(found.user, 'told') as unknown
    }
  }
  t.equal(await node()(), 1)
  t.equal(await node()(), 1, 'kept')
  t.equal(asked, 1)
  const short = node(1000)
  t.equal(await short(), 1)
  clock.move(1001)
  t.equal(await short(), 1, 'for no longer than its own time, and asked for again')
  clock.move(30_000)
  t.equal(await node()(), 2, 'what is over is not used')
  shelf.isAway = true
  t.equal(await node()(), 3, 'nor is what cannot be asked for')
  shelf.isAway = false
  t.equal(await node()(), 2, 'and what was asked for meanwhile is not kept')
  for (const entry of shelf.kept.values()) entry.value = '{'
  t.equal(await node()(), UNAVAILABLE)
  t.same(faults, ['enrich'])
  shelf.kept.clear()
  const late = deferred<unknown>()
  answer = () => late.promise
  const waiting = node()()
  await eventually('it is given up', () => faults.length === 2)
  t.equal(await waiting, UNAVAILABLE)
  clock.move(2000)
  late.resolve({ told: 'late' })
  await late.promise
  t.equal(shelf.kept.size, 0, 'who asked for it has given up')
})
