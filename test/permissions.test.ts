/** The option `permissions`: the application's own source of what a user may do, and what follows when it changes. */
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import type { AuthContext, CommandResult, HybridAuthOptions, Identity, RuleFunction } from '../lib/index.js'
import { createSources } from '../lib/policy/sources.js'
import { closeReason, SUBPROTOCOL } from '../lib/protocol.js'
import { build, goodToken, JWT, keepLines, SECRET, SESSION, SESSION_SECRET, signHs256, upgrade, goodClaims } from './helpers.js'
import { dial, eventually, lookNow, Peer, setClock, type LiveOptions } from './live.js'
import { audited, bearer, codeAndReason, driverOf, Hold, outcome, untyped, updateOf, withCookie, withoutId, type Audited } from './revoking.js'
import { ask, codeOf, cookieFor, deferred, logTo, MapStore, never, type Deferred } from './stores.js'

type Answer = readonly string[] | Promise<readonly string[]>

const CANARY = 'canary-4711-of-the-source'
const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const CLAIMED = ['claimed']
const FORBIDDEN = { code: 4007, reason: closeReason('Forbidden') }

/** A source that a test may change, and that keeps whom it was asked about. */
class Source {
  readonly asked: Identity[] = []
  answer: (identity: Identity) => Answer

  constructor (answer: Answer | ((identity: Identity) => Answer) = ['granted']) {
    this.answer = typeof answer === 'function' ? answer : () => answer
  }

  readonly permissions = (identity: Identity): Answer => {
    this.asked.push(identity)
    return this.answer(identity)
  }

  /** From now on, to everybody. */
  says (...permissions: string[]): void {
    this.answer = () => permissions
  }

  /** From now on each question waits here, in order. */
  defers (): Array<Deferred<readonly string[]>> {
    const waiting: Array<Deferred<readonly string[]>> = []
    this.answer = () => {
      const one = deferred<readonly string[]>()
      waiting.push(one)
      return one.promise
    }
    return waiting
  }
}

interface Sourced extends Audited { source: Source }

async function sourced (t: Test, { auth, source = new Source(), ...rest }: LiveOptions & { source?: Source } = {}): Promise<Sourced> {
  return { ...await audited(t, { auth: { permissions: source.permissions, ...auth }, ...rest }), source }
}

/** A socket without a credential, which says it as its first message. */
function knock (t: Test, host: string, path: string, protocols: string[] = []): Peer {
  const socket = new WebSocket(`ws://${host}${path}`, protocols)
  t.teardown(() => { socket.terminate() })
  return new Peer(socket)
}

async function knockWith (t: Test, host: string, path: string, token: string, protocols: string[] = []): Promise<Peer> {
  const peer = knock(t, host, path, protocols)
  await new Promise(resolve => { peer.socket.on('open', resolve) })
  peer.say({ type: 'auth', token })
  return peer
}

const permissionsIn = (body: string): unknown => {
  const parsed: unknown = JSON.parse(body)
  return typeof parsed === 'object' && parsed !== null && 'permissions' in parsed ? parsed.permissions : undefined
}

/** Whether a promise has settled by now: everything that has nothing to wait for any more is done first. */
async function isSettled (promise: Promise<unknown>): Promise<boolean> {
  let settled = false
  const mark = () => { settled = true }
  promise.then(mark, mark)
  for (let turn = 0; turn < 5; turn++) await new Promise(resolve => { setImmediate(resolve) })
  return settled
}

const tokenWith = (changes: Record<string, unknown> = {}) => goodToken({ permissions: CLAIMED, ...changes })

t.test('the source is asked on every way in, and what it says takes the place of what the credential says', async t => {
  const source = new Source()
  const { app, host, open, session } = await sourced(t, {
    source,
    routes (app) {
      app.get('/required', { preHandler: app.hybridAuth.require({ permissions: ['granted'] }) }, async request => request.auth)
      app.get('/claimed', { auth: { permissions: ['claimed'] } }, async () => 'ok')
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
    }
  })
  // Each of them is somebody else, so that nobody's answer is remembered for another.
  let users = 0
  const somebody = () => `user ${++users}`
  const seen: Record<string, unknown> = {}
  const cookieOf = (sub: string) => session(sub, { userId: sub, permissions: CLAIMED })
  seen.http = permissionsIn((await ask(host, '/me', bearer(tokenWith({ sub: somebody() })))).body)
  seen.httpSession = permissionsIn((await ask(host, '/me', withCookie(cookieOf(somebody())))).body)
  seen.required = permissionsIn((await ask(host, '/required', bearer(tokenWith({ sub: somebody() })))).body)
  seen.requiredSession = permissionsIn((await ask(host, '/required', withCookie(cookieOf(somebody())))).body)
  seen.upgrade = (await upgrade(t, host, bearer(tokenWith({ sub: somebody() })))).context?.permissions
  seen.upgradeSession = (await open({ cookie: cookieOf(somebody()) })).there.connection.context.permissions
  for (const who of [bearer(tokenWith({ sub: somebody() })), withCookie(cookieOf(somebody()))]) {
    const { body } = await ask(host, '/ticket', { method: 'POST', headers: { ...who.headers, origin: `http://${host}` } })
    await app.hybridAuth.refreshPermissions(`user ${users}`)
    seen[`ticket ${JSON.stringify(Object.keys(who.headers))}`] = (await upgrade(t, host, { path: `/live?ticket=${body}`, headers: { origin: `http://${host}` } })).context?.permissions
  }
  const first = await knockWith(t, host, '/first', tokenWith({ sub: somebody() }))
  await first.takeFrame('auth_success')
  seen.first = permissionsIn(await first.take() ?? '{}')
  t.ok(Object.keys(seen).length === 9)
  for (const [way, permissions] of Object.entries(seen)) t.same(permissions, ['granted'], way)
  t.equal((await ask(host, '/claimed', bearer(tokenWith()))).status, 403, 'what only the credential says is worth nothing')
  t.same(new Set(source.asked.map(({ permissions }) => JSON.stringify(permissions))), new Set(['["claimed"]']), 'the source is given what the credential says')
})

t.test('a token that comes in-band and a session that is read again ask the source as well', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open, session, source } = await sourced(t, { source: new Source(['one']) })
  const token = await open({ token: tokenWith(), speaks: true })
  const browser = await open({ cookie: session('s1', { userId: 'bob', permissions: CLAIMED }) })
  t.same([token, browser].map(({ there }) => there.connection.context.permissions), [['one'], ['one']])
  source.says('two')
  clock.move(31_000)
  token.peer.say(updateOf(tokenWith()))
  await token.peer.takeFrame('auth_updated')
  lookNow(browser.there.connection)
  await eventually('the session is read', () => browser.there.connection.can('two'))
  t.same([token, browser].map(({ there }) => there.connection.context.permissions), [['two'], ['two']])
  t.same([token, browser].map(({ there }) => there.connection.context.version), [2, 2])
})

t.test('what the source said is remembered for 30 s, and no longer', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { host, source } = await sourced(t)
  const see = async () => permissionsIn((await ask(host, '/me', bearer(tokenWith()))).body)
  t.same(await see(), ['granted'])
  source.says('later')
  clock.move(29_999)
  t.same(await see(), ['granted'])
  t.equal(source.asked.length, 1)
  clock.move(1)
  t.same(await see(), ['later'])
  t.equal(source.asked.length, 2)
})

t.test('a thousand sockets of one user that come at once ask once', async t => {
  const { app, host, source } = await sourced(t)
  const [waiting] = [source.defers()]
  let arrived = 0
  app.server.on('upgrade', () => { arrived++ })
  const token = tokenWith()
  const opened = Array.from({ length: 1000 }, () => dial(t, host, { token }))
  await eventually('all of them have come', () => arrived === 1000, 8000)
  // The first question is still open.
  t.equal(source.asked.length, 1)
  waiting[0]?.resolve(['granted'])
  const peers = await Promise.all(opened)
  t.equal(source.asked.length, 1)
  await eventually('all are connected', () => app.hybridAuth.count() === 1000)
  t.ok(app.hybridAuth.connections().every(({ context }) => context.permissions[0] === 'granted'))
  for (const { socket } of peers) socket.terminate()
  await eventually('all have gone', () => app.hybridAuth.count() === 0)
})

t.test('who is another, or comes from another issuer, or with other rights of the same user, is asked about separately', async t => {
  const { host, source } = await sourced(t, { source: new Source(({ userId, permissions }) => [userId, ...permissions ?? []]) })
  const see = async (claims: Record<string, unknown>) => permissionsIn((await ask(host, '/me', bearer(tokenWith(claims)))).body)
  t.same(await see({ permissions: ['read', 'write'] }), ['alice', 'read', 'write'])
  t.same(await see({ permissions: ['read'] }), ['alice', 'read'], 'the narrower token of the same user')
  t.same(await see({ sub: 'bob', permissions: ['read'] }), ['bob', 'read'], 'another user')
  t.same(await see({ permissions: ['read'], companyId: 'acme' }), ['alice', 'read'], 'another tenant')
  t.equal(source.asked.length, 4)
  source.says('of the issuer')
  t.same(await see({ permissions: ['read'], iss: 'https://other.example' }), ['of the issuer'], 'another issuer')
  t.same(await see({ permissions: ['read', 'write'] }), ['alice', 'read', 'write'], 'who was first is remembered')
  t.equal(source.asked.length, 5)
})

t.test('questions about other rights of one user that are asked at the same time are not mixed up', async t => {
  const { host, source } = await sourced(t)
  const waiting = source.defers()
  const wide = ask(host, '/me', bearer(tokenWith({ permissions: ['all'] })))
  await eventually('the first is asked', () => waiting.length === 1)
  const narrow = ask(host, '/me', bearer(tokenWith({ permissions: ['some'] })))
  await eventually('the second is asked', () => waiting.length === 2)
  waiting[1]?.resolve(['narrow'])
  waiting[0]?.resolve(['wide'])
  t.same([permissionsIn((await wide).body), permissionsIn((await narrow).body)], [['wide'], ['narrow']])
})

t.test('however many users and identities there are, what is remembered is bounded', async t => {
  let asked = 0
  const sources = createSources({ permissions: () => { asked++; return ['a'] }, timeout: 1000, shared: null, realm: () => '', onFault (_where, error) { throw error } })
  if (sources === null) throw new Error('none')
  const source = {
    isCurrent: (context: AuthContext) => sources.isCurrent(context),
    find: (issuer: string | null, user: Identity) => sources.complete(issuer, { userId: user.userId, role: null, permissions: [], tenantId: null, user })
  }
  const userOf = (n: number): Identity => ({ userId: `user ${n}` })
  for (let n = 0; n < 25_000; n++) source.find(null, userOf(n))
  asked = 0
  for (let n = 24_999; n >= 0; n--) source.find(null, userOf(n))
  t.ok(25_000 - asked <= 10_000, `${25_000 - asked} of 25 000 were remembered`)
  t.ok(25_000 - asked >= 4000, 'and some were')
  const identityOf = (n: number): Identity => ({ userId: 'alice', role: `role ${n}` })
  for (let n = 0; n < 100; n++) source.find(null, identityOf(n))
  const contextOf = (n: number) => untyped({ issuer: null, user: identityOf(n), permissions: [] })
  asked = 0
  for (let n = 99; n >= 84; n--) source.find(null, identityOf(n))
  t.ok(asked <= 16)
  asked = 0
  for (let n = 0; n < 100; n++) source.find(null, identityOf(n))
  t.ok(asked >= 84, `of 100 identities of one user ${100 - asked} were remembered`)
  t.notOk(source.isCurrent(contextOf(5)), 'who holds another list is not up to date')
})

t.test('a list that the application keeps and changes does not change what was remembered', async t => {
  const list = ['granted']
  const { host } = await sourced(t, { source: new Source(() => list) })
  const see = async () => permissionsIn((await ask(host, '/me', bearer(tokenWith()))).body)
  await see()
  list.push('slipped in')
  t.same(await see(), ['granted'])
})

/** What a source may do that is no answer. */
const FAILURES: Array<[string, () => unknown]> = [
  ['it throws', () => { throw new Error(CANARY) }], ['it rejects with a text', () => ({ then (_done: unknown, failed: (why: string) => void) { failed(CANARY) } })], ['it rejects', () => Promise.reject(new Error(CANARY))], ['it hangs', never],
  ['null', () => null], ['nothing', () => undefined], ['a text', () => CANARY], ['numbers', () => [1]], ['an object', () => ({ 0: CANARY, length: 1 })], ['a text and null', () => [CANARY, null]],
  ['true', () => true], ['a set', () => new Set(['granted'])], ['nested lists', () => [['granted']]], ['late garbage', async () => ({ [CANARY]: 1 })],
  ['a list that throws', () => new Proxy([], { get () { throw new Error(CANARY) } })]
]

t.test('83: whatever the source does instead of answering, everybody is refused for the time being, and nothing of it is told', async t => {
  for (const [what, fail] of FAILURES) {
    await t.test(what, async t => {
      const { stream, text } = keepLines()
      const source = new Source()
      const { host, open, session } = await sourced(t, {
        source,
        fastify: logTo(stream),
        auth: { handshakeTimeout: what === 'it hangs' ? 60 : 5000, session: { ...SESSION } },
        routes (app) { app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => { t.fail('a handler ran') }) }
      })
      const faults = () => text().split('\n').filter(line => line.includes('"where":"permissions"'))
      const alice = await open({ token: tokenWith({ sub: 'before' }), speaks: true })
      source.answer = untyped(fail)
      const http = await ask(host, '/me', bearer(tokenWith()))
      t.same([http.status, codeOf(http.body), http.headers.get('retry-after')], [503, UNAVAILABLE, '5'])
      t.equal(faults().length, 1, 'the operator is told once')
      const bySession = await ask(host, '/me', withCookie(session('s1', { userId: 'bob' })))
      t.same([bySession.status, codeOf(bySession.body)], [503, UNAVAILABLE])
      const byUpgrade = await upgrade(t, host, bearer(tokenWith()))
      t.same([byUpgrade.status, codeOf(byUpgrade.body)], [503, UNAVAILABLE])
      const byClose = await upgrade(t, host, { ...bearer(tokenWith()), protocols: [SUBPROTOCOL] })
      t.equal(byClose.code, 4012)
      const first = await knockWith(t, host, '/first', tokenWith())
      t.equal((await first.end).code, 4012)
      alice.peer.say(updateOf(tokenWith()))
      t.match(await alice.peer.takeFrame('error'), { code: 'unavailable', action: 'retry' }, 'in-band')
      t.same(alice.there.connection.context.permissions, ['granted'], 'an open socket keeps what it has')
      t.equal(faults().length, 6, 'once for each')
      t.notOk([text(), http.body, byUpgrade.body, byClose.reason, ...alice.peer.texts, ...first.texts].join().includes(CANARY))
    })
  }
})

t.test('83: a list with a hole in it is no list of texts', async t => {
  const { host } = await sourced(t, {
    source: new Source(() => {
      const list = ['granted']
      list.length = 2
      return list
    })
  })
  t.equal((await ask(host, '/me', bearer(tokenWith()))).status, 503)
})

t.test('a failure is not remembered: the next one asks again', async t => {
  let fails = true
  const { host, source } = await sourced(t, { source: new Source(() => { if (fails) throw new Error(CANARY); return ['granted'] }) })
  t.equal((await ask(host, '/me', bearer(tokenWith()))).status, 503)
  fails = false
  t.equal((await ask(host, '/me', bearer(tokenWith()))).status, 200)
  t.equal(source.asked.length, 2)
})

t.test('a session whose permissions cannot be asked for is treated as one that cannot be read', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open, session, source } = await sourced(t, { auth: { session: { ...SESSION, maxStale: 60_000 } } })
  const pair = await open({ cookie: session('s1', { userId: 'bob' }) })
  source.answer = () => { throw new Error(CANARY) }
  clock.move(31_000)
  lookNow(pair.there.connection)
  await eventually('the source was asked', () => source.asked.length === 2)
  t.ok(await pair.peer.echoed('served'))
  clock.move(31_000)
  lookNow(pair.there.connection)
  t.equal((await pair.peer.end).code, 4012)
})

t.test('refreshPermissions gives every socket of the user what the source says now, and tells those that speak the protocol', async t => {
  const { app, open, session, source, events, types } = await sourced(t, { source: new Source(['keep', 'lose']) })
  const speaking = await open({ token: tokenWith(), speaks: true })
  const plain = await open({ token: tokenWith() })
  const browser = await open({ cookie: session('s1', { userId: 'alice' }), speaks: true })
  const other = await open({ token: tokenWith({ sub: 'bob' }), speaks: true })
  const refreshed: string[] = []
  speaking.there.connection.on('refresh', ({ permissions }) => { refreshed.push(...permissions) })
  source.says('keep', 'gain')
  t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(3, 0))
  for (const { there } of [speaking, plain, browser]) {
    t.same(there.connection.context.permissions, ['keep', 'gain'])
    t.ok(Object.isFrozen(there.connection.context) && Object.isFrozen(there.connection.context.permissions))
    t.equal(there.connection.context.version, 2)
    t.equal(there.request.auth, there.connection.context, 'request.auth is the new one')
    t.same([there.connection.can('gain'), there.connection.can('lose')], [true, false])
  }
  for (const pair of [speaking, plain, browser, other]) t.ok(await pair.peer.echoed('fence'))
  const update = { type: 'permission_update', permissions: ['keep', 'gain'], added: ['gain'], removed: ['lose'] }
  t.same([speaking, plain, browser, other].map(({ peer }) => peer.framesOf('permission_update')), [[update], [], [update], []])
  t.same(other.there.connection.context.permissions, ['keep', 'lose'], 'another user is not asked about')
  t.same(refreshed, ['keep', 'gain'])
  t.equal(types().filter(type => type === 'permissions_changed').length, 3)
  t.match(events.filter(({ type }) => type === 'command'), [{ command: 'refresh', userId: 'alice', matched: 3, closed: 0 }])
})

t.test('where the source says the same, nothing is sent and the version stays', async t => {
  const { app, open, source, types } = await sourced(t, { source: new Source(['a', 'b']) })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  const { context } = there.connection
  t.match(await app.hybridAuth.refreshPermissions('alice'), { matched: 1, closed: 0 })
  t.equal(source.asked.length, 2)
  t.equal(there.connection.context, context)
  t.ok(await peer.echoed('fence'))
  t.same(peer.texts, ['fence'])
  t.notOk(types().includes('permissions_changed'))
})

t.test('the same permissions in another order are no change', async t => {
  const { app, open, source } = await sourced(t, { source: new Source(['a', 'b']) })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  source.says('b', 'a')
  await app.hybridAuth.refreshPermissions('alice')
  t.ok(await peer.echoed('fence'))
  t.same(peer.texts, ['fence'])
  t.equal(there.connection.context.version, 1)
})

t.test('refreshPermissions of somebody who is not there forgets what was known of him', async t => {
  const { app, host, source } = await sourced(t, { source: new Source(['old']) })
  await ask(host, '/me', bearer(tokenWith()))
  source.says('new')
  t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(0))
  t.same(permissionsIn((await ask(host, '/me', bearer(tokenWith()))).body), ['new'])
})

t.test('66: a socket whose route asks for what was lost is closed with 4007, and the call has waited for a rule that takes its time', async t => {
  const rules: Array<[string, (verdict: Promise<boolean>) => RuleFunction]> = [
    ['a rule that answers at once', () => auth => auth.permissions.includes('read')],
    ['a rule that takes its time', verdict => async auth => auth.permissions.includes('read') || await verdict]
  ]
  for (const [what, ruleOf] of rules) {
    const verdict = deferred<boolean>()
    const { app, open, source } = await sourced(t, { source: new Source(['read']), route: ruleOf(verdict.promise) })
    const { peer, there } = await open({ token: tokenWith(), speaks: true })
    source.says()
    const done = app.hybridAuth.refreshPermissions('alice')
    if (what === 'a rule that takes its time') {
      t.notOk(await isSettled(done), 'the rule has not answered')
      t.same(there.connection.context.permissions, [], 'what was lost is lost already')
    }
    verdict.resolve(false)
    t.same(withoutId(t, await done), outcome(1), what)
    t.same(codeAndReason(await peer.end), FORBIDDEN, what)
    t.same(peer.framesOf('permission_update'), [], 'who is closed for it is not told of it')
    t.match(peer.framesOf('bye'), [{ code: 'forbidden' }])
    await there.closed
    t.same([there.closes, there.socketCloses], [[4007], [4007]])
  }
})

t.test('83: a rule that throws or rejects when it is asked again closes the socket', async t => {
  for (const fail of [() => { throw new Error(CANARY) }, () => Promise.reject(new Error(CANARY))]) {
    let fails = false
    const { app, open, source } = await sourced(t, { route: () => { if (fails) return fail(); return true } })
    const { peer } = await open({ token: tokenWith() })
    fails = true
    source.says('other')
    t.match(await app.hybridAuth.refreshPermissions('alice'), { matched: 1, closed: 1 })
    t.same(codeAndReason(await peer.end), FORBIDDEN)
  }
})

t.test('83: where the source fails at a refresh, the socket is closed with 4012, and nobody else is', async t => {
  for (const [what, fail] of FAILURES) {
    const source = new Source()
    const { app, open } = await sourced(t, { source, auth: { handshakeTimeout: what === 'it hangs' ? 60 : 5000 } })
    const [first, second, other] = [await open({ token: tokenWith() }), await open({ token: tokenWith({ companyId: 'acme' }), speaks: true }), await open({ token: tokenWith({ sub: 'bob' }) })]
    source.answer = untyped(fail)
    t.same(withoutId(t, await app.hybridAuth.refreshPermissions('alice')), outcome(2), what)
    for (const { peer } of [first, second]) t.equal((await peer.end).code, 4012, what)
    t.ok(await other.peer.echoed('fence'))
  }
})

t.test('without a source, and with what is no user, refreshPermissions throws and names what is wrong', async t => {
  const without = await audited(t)
  await t.rejects(without.app.hybridAuth.refreshPermissions('alice'), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /permissions/ })
  const { app, source, types } = await sourced(t)
  for (const bad of ['', 7, null, undefined, {}, ['alice']]) {
    await t.rejects(app.hybridAuth.refreshPermissions(untyped(bad)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /userId/ }, JSON.stringify(bad))
  }
  t.equal(source.asked.length, 0)
  t.notOk(types().includes('command'))
  for (const bad of [7, 'list', {}, null, []]) await t.rejects(build(t, { auth: { permissions: untyped(bad) } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /permissions/ })
})

t.test('an answer that was asked for before the change is used by nobody', async t => {
  const { app, host, open, source } = await sourced(t, { source: new Source(['old']) })
  const opened = await open({ token: tokenWith({ companyId: 'other identity' }) })
  const waiting = source.defers()
  const request = ask(host, '/me', bearer(tokenWith()))
  await eventually('the source is asked', () => waiting.length === 1)
  const ofBob = ask(host, '/me', bearer(tokenWith({ sub: 'bob' })))
  await eventually('also about somebody else', () => waiting.length === 2)
  const [ofAlice = deferred(), aboutBob = deferred()] = waiting.splice(0)
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('and again for the socket that is open', () => waiting.length === 1)
  ofAlice.resolve(['old'])
  await eventually('and again for who had asked before', () => waiting.length === 2)
  waiting[1]?.resolve(['new'])
  waiting[0]?.resolve(['new'])
  t.same(permissionsIn((await request).body), ['new'])
  aboutBob.resolve(['of bob'])
  t.same(permissionsIn((await ofBob).body), ['of bob'], 'what was asked about somebody else is as good as before')
  await refresh
  t.same(opened.there.connection.context.permissions, ['new'])
  t.same(permissionsIn((await ask(host, '/me', bearer(tokenWith()))).body), ['new'], 'nor is it remembered')
  t.equal(waiting.length, 2)
})

t.test('setPermissions makes the source be asked again as well', async t => {
  const { app, host, source } = await sourced(t, { source: new Source(['old']) })
  const waiting = source.defers()
  const request = ask(host, '/me', bearer(tokenWith()))
  await eventually('the source is asked', () => waiting.length === 1)
  await app.hybridAuth.setPermissions('alice', ['set'])
  waiting[0]?.resolve(['old'])
  await eventually('and again', () => waiting.length === 2)
  waiting[1]?.resolve(['new'])
  t.same(permissionsIn((await request).body), ['new'])
})

t.test('68: a socket that is being opened while the permissions change has the new ones before its handler runs', async t => {
  const hold = new Hold()
  const seen: unknown[] = []
  const { app, host, source } = await sourced(t, {
    source: new Source(['old']),
    routes (app) {
      app.get('/held', { websocket: true, preValidation: () => hold.pass() }, (socket, request) => {
        seen.push(request.auth.permissions)
        socket.send('handled')
      })
    }
  })
  hold.arm()
  const opening = dial(t, host, { path: '/held', token: tokenWith() })
  await hold.entered
  source.says('new')
  t.match(await app.hybridAuth.refreshPermissions('alice'), { matched: 0 })
  hold.release()
  const peer = await opening
  t.equal(await peer.take(), 'handled')
  t.same(seen, [['new']])
})

t.test('68: a socket that is being opened is closed before its handler where the source fails then, or the rule no longer holds', async t => {
  for (const [what, answer, code] of [['fails', () => Promise.reject(new Error(CANARY)), 4012], ['takes the permission', () => [], 4007], ['takes it later', async () => [], 4007]] as const) {
    const hold = new Hold()
    const { app, host, source } = await sourced(t, {
      source: new Source(['old']),
      routes (app) { app.get('/held', { websocket: true, auth: { permissions: ['old'] }, preValidation: () => hold.pass() }, () => { t.fail('the handler ran') }) }
    })
    hold.arm()
    const opening = dial(t, host, { path: '/held', token: tokenWith() })
    await hold.entered
    source.answer = answer
    await app.hybridAuth.refreshPermissions('alice')
    hold.release()
    t.equal((await (await opening).end).code, code, what)
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('68: who says something and goes away while the source is asked again is heard, and the handler is told of the close', async t => {
  const hold = new Hold()
  const heard: string[] = []
  const closed = deferred<void>()
  const { app, host, source } = await sourced(t, {
    source: new Source(['old']),
    routes (app) {
      app.get('/held', { websocket: true, preValidation: () => hold.pass() }, (socket, request) => {
        heard.push(...request.auth.permissions)
        socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
        socket.on('close', () => {
          heard.push('close')
          closed.resolve()
        })
      })
    }
  })
  hold.arm()
  const opening = dial(t, host, { path: '/held', token: tokenWith() })
  await hold.entered
  await app.hybridAuth.refreshPermissions('alice')
  const waiting = source.defers()
  hold.release()
  const peer = await opening
  await eventually('the source is asked', () => waiting.length === 1)
  peer.say('early')
  peer.socket.close(1000)
  await eventually('it is gone', () => app.hybridAuth.count() === 0)
  t.same(heard, [])
  waiting[0]?.resolve(['new'])
  await closed.promise
  t.same(heard, ['new', 'early', 'close'])
})

/** A route that waits for its credential, whose rule can be held up, and whose handler tells what it sees. */
function firstMessageRoute (hold: Hold, seen: unknown[]): NonNullable<LiveOptions['routes']> {
  return app => {
    app.get('/first', { websocket: true, auth: { firstMessage: true, check: async () => { await hold.pass(); return true } } }, (socket, request) => {
      seen.push(request.auth.permissions)
      socket.on('message', (data: Buffer) => { socket.send(data.toString()) })
    })
  }
}

t.test('68: so it is for who says who he is as the first message, and what he said early comes in order', async t => {
  const hold = new Hold()
  const seen: unknown[] = []
  const { app, host, source } = await sourced(t, { source: new Source(['old']), routes: firstMessageRoute(hold, seen) })
  hold.arm()
  const peer = await knockWith(t, host, '/first', tokenWith(), [SUBPROTOCOL])
  for (let n = 0; n < 5; n++) peer.say(`early ${n}`)
  await hold.entered
  await app.hybridAuth.refreshPermissions('alice')
  const waiting = source.defers()
  hold.release()
  await eventually('the source is asked again', () => waiting.length === 1)
  for (let n = 5; n < 10; n++) peer.say(`early ${n}`)
  await eventually('there is a connection', () => app.hybridAuth.count() === 1)
  t.same(seen, [], 'the handler waits')
  waiting[0]?.resolve(['new'])
  t.ok(await peer.echoed('last'))
  t.same(seen, [['new']])
  t.same(peer.texts.filter(text => !text.startsWith('{')), [...Array.from({ length: 10 }, (_, n) => `early ${n}`), 'last'])
})

t.test('68: auth_success is the first frame that it gets', async t => {
  const hold = new Hold()
  const seen: unknown[] = []
  const { app, host, source } = await sourced(t, { source: new Source(['old']), routes: firstMessageRoute(hold, seen) })
  hold.arm()
  const peer = await knockWith(t, host, '/first', tokenWith(), [SUBPROTOCOL])
  await hold.entered
  source.says('new')
  await app.hybridAuth.refreshPermissions('alice')
  hold.release()
  t.ok(await peer.echoed('fence'))
  t.match(JSON.parse(peer.texts[0] ?? '{}'), { type: 'auth_success' })
  t.same(seen, [['new']])
})

t.test('frames that wait while the source is asked before the handler runs are not dropped, however slow it is', async t => {
  const clock = setClock(t)
  clock.freeze()
  const hold = new Hold()
  const seen: unknown[] = []
  const { app, host, source } = await sourced(t, { source: new Source(['old']), routes: firstMessageRoute(hold, seen) })
  hold.arm()
  const peer = await knockWith(t, host, '/first', tokenWith(), [SUBPROTOCOL])
  peer.say('early')
  await hold.entered
  await app.hybridAuth.refreshPermissions('alice')
  const waiting = source.defers()
  hold.release()
  await eventually('the source is asked again', () => waiting.length === 1)
  const [connection] = app.hybridAuth.connections()
  if (connection === undefined) throw new Error('there is no connection')
  clock.move(5001)
  lookNow(connection)
  waiting[0]?.resolve(['new'])
  t.ok(await peer.echoed('last'))
  t.same(peer.texts.filter(text => !text.startsWith('{')), ['early', 'last'])
})

t.test('a token that comes while the source is asked for a refresh is the one that counts, with what the source says of it', async t => {
  const { app, open, source } = await sourced(t, { source: new Source(['old']) })
  const { peer, there } = await open({ token: tokenWith({ permissions: ['wide'] }), speaks: true })
  const waiting = source.defers()
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('the source is asked', () => waiting.length === 1)
  peer.say(updateOf(tokenWith({ permissions: ['narrow'] })))
  await eventually('and about the new token', () => waiting.length === 2)
  waiting[1]?.resolve(['narrowed'])
  await peer.takeFrame('auth_updated')
  t.notOk(await isSettled(refresh))
  waiting[0]?.resolve(['wide'])
  t.match(await refresh, { matched: 1, closed: 0 })
  t.same(there.connection.context.permissions, ['narrowed'])
  t.equal(there.connection.context.version, 2)
  t.ok(await peer.echoed('fence'))
  t.same(peer.framesOf('permission_update'), [])
})

t.test('a token whose source was asked before the change does not bring back what was lost', async t => {
  const { app, open, source } = await sourced(t, { source: new Source(['old']) })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  const waiting = source.defers()
  peer.say(updateOf(tokenWith({ permissions: ['other'] })))
  await eventually('the source is asked', () => waiting.length === 1)
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('and about the socket', () => waiting.length === 2)
  waiting[1]?.resolve(['new'])
  await refresh
  waiting[0]?.resolve(['old'])
  await eventually('it is asked again', () => waiting.length === 3)
  waiting[2]?.resolve(['new too'])
  await peer.takeFrame('auth_updated')
  t.same(there.connection.context.permissions, ['new too'])
})

t.test('a token that was verified in the moment of the change does not bring back what was lost', async t => {
  const source = new Source(['old'])
  const { app, open } = await sourced(t, { source, auth: { jwt: { ...JWT, key: async () => SECRET } } })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  let refresh: Promise<CommandResult> | undefined
  source.answer = ({ permissions }) => {
    if (permissions?.[0] !== 'other') return ['new']
    // Behind the question, and before its answer is with the socket.
    queueMicrotask(() => {
      source.says('new')
      refresh = app.hybridAuth.refreshPermissions('alice')
    })
    return ['old']
  }
  peer.say(updateOf(tokenWith({ permissions: ['other'] })))
  await peer.takeFrame('auth_updated')
  await refresh
  t.ok(await peer.echoed('fence'))
  t.same(there.connection.context.permissions, ['new'])
})

t.test('83: nor does it where the source fails then: the token is refused for the time being', async t => {
  const source = new Source(['old'])
  const { app, open } = await sourced(t, { source, auth: { jwt: { ...JWT, key: async () => SECRET } } })
  const { peer, there } = await open({ token: tokenWith({ companyId: 'acme' }), speaks: true })
  source.answer = ({ role }) => {
    if (role !== 'other') return ['new']
    queueMicrotask(() => {
      source.answer = ({ role }) => {
        if (role === 'other') throw new Error(CANARY)
        return ['new']
      }
      app.hybridAuth.refreshPermissions('alice').catch(() => {})
    })
    return ['old']
  }
  peer.say(updateOf(tokenWith({ companyId: 'acme', role: 'other' })))
  await peer.until(() => peer.framesOf('error').length > 0 || peer.framesOf('auth_updated').length > 0)
  t.match(peer.framesOf('error'), [{ code: 'unavailable' }])
  t.same([there.connection.context.permissions, there.connection.context.role], [['new'], null])
})

/** A store that extends sessions when the test says so. */
class TouchStore extends MapStore {
  readonly touching: Array<() => void> = []

  touch (_sessionId: string, _session: unknown, callback: (error?: unknown) => void): void {
    this.touching.push(() => { callback() })
  }
}

t.test('a session that was being read during the change does not bring back what was lost', async t => {
  const clock = setClock(t)
  clock.freeze()
  const store = new TouchStore()
  const { app, open, source } = await sourced(t, { source: new Source(['old']), auth: { session: { ...SESSION, store, secret: SESSION_SECRET, touch: true } } })
  store.put('s1', { user: { userId: 'bob' }, cookie: { originalMaxAge: 3_600_000, expires: new Date(Date.now() + 3_600_000) } })
  const { peer, there } = await open({ cookie: cookieFor('s1') })
  t.ok(await peer.echoed('used'))
  clock.move(31_000)
  lookNow(there.connection)
  await eventually('the session is being extended', () => store.touching.length === 1)
  source.says('new')
  await app.hybridAuth.refreshPermissions('bob')
  t.same(there.connection.context.permissions, ['new'])
  store.touching[0]?.()
  t.ok(await peer.echoed('fence'))
  await eventually('it was read', () => there.connection.context.version >= 2)
  for (let turn = 0; turn < 5; turn++) await new Promise(resolve => { setImmediate(resolve) })
  t.same(there.connection.context.permissions, ['new'])
})

t.test('nor does one whose user has become another identity meanwhile, not even until the source has answered', async t => {
  const clock = setClock(t)
  clock.freeze()
  const store = new TouchStore()
  const { app, open, source } = await sourced(t, { source: new Source(['old']), auth: { session: { ...SESSION, store, secret: SESSION_SECRET, touch: true } } })
  const put = (role: string) => { store.put('s1', { user: { userId: 'bob', role }, cookie: { originalMaxAge: 3_600_000, expires: new Date(Date.now() + 3_600_000) } }) }
  put('agent')
  const { peer, there } = await open({ cookie: cookieFor('s1') })
  t.ok(await peer.echoed('used'))
  clock.move(31_000)
  put('nobody')
  lookNow(there.connection)
  await eventually('the session is being extended', () => store.touching.length === 1)
  const waiting = source.defers()
  const refresh = app.hybridAuth.refreshPermissions('bob')
  await eventually('the source is asked', () => waiting.length === 1)
  waiting[0]?.resolve(['new'])
  await refresh
  t.same(there.connection.context.permissions, ['new'])
  store.touching[0]?.()
  await eventually('the source is asked about the other identity', () => waiting.length === 2)
  t.notOk(there.connection.can('old'), 'what was lost stays lost while that is waited for')
  waiting[1]?.resolve(['new'])
  await eventually('it was read', () => there.connection.context.role === 'nobody')
  t.same(there.connection.context.permissions, ['new'])
})

t.test('the answer waits for rooms that take their time, and for a rule that does', async t => {
  const verdicts: Array<Deferred<boolean>> = []
  let isSlow = false
  const { app, open, source } = await sourced(t, {
    source: new Source(['old']),
    auth: {
      rooms: {
        authorize () {
          if (!isSlow) return true
          const verdict = deferred<boolean>()
          verdicts.push(verdict)
          return verdict.promise
        }
      }
    }
  })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  t.ok(await there.connection.join('news'))
  isSlow = true
  for (const [answer, order] of [[true, () => app.hybridAuth.setPermissions('alice', ['set'])], [false, () => { source.says('new'); return app.hybridAuth.refreshPermissions('alice') }]] as const) {
    const done = order()
    await eventually('the room is asked', () => verdicts.length === 1)
    t.notOk(await isSettled(done))
    verdicts.pop()?.resolve(answer)
    t.match(await done, { matched: 1, closed: 0 })
    t.equal(there.connection.rooms.has('news'), answer)
  }
  t.match(await peer.takeFrame('left'), { room: 'news', reason: 'forbidden' })
})

t.test('66: while the server sends as fast as it can, not one frame that the lost permission allowed leaves it after the answer', async t => {
  const { app, open, source } = await sourced(t, {
    source: new Source(['read']),
    auth: { rooms: { patterns: { news: { join: { permissions: ['read'] } }, late: { join: { check: async auth => auth.permissions.includes('read') } } } } }
  })
  let n = 0
  let goesOn = true
  const broadcast = () => {
    if (!goesOn) return
    n++
    for (const room of ['news', 'late']) app.hybridAuth.rooms.publish(room, n).catch(() => {})
    for (const connection of app.hybridAuth.connections()) if (connection.can('read')) connection.send({ type: 'own', payload: n })
    setImmediate(broadcast)
  }
  broadcast()
  t.teardown(() => { goesOn = false })
  for (let round = 0; round < 25; round++) {
    source.answer = round % 2 === 0 ? () => ['read'] : async () => ['read']
    await app.hybridAuth.refreshPermissions('alice')
    const { peer, there } = await open({ token: tokenWith(), speaks: true })
    t.ok(await there.connection.join('news') && await there.connection.join('late'))
    const before = n
    await eventually('frames come', () => n > before + (round % 7))
    source.answer = round % 3 === 0 ? async () => [] : () => []
    await app.hybridAuth.refreshPermissions('alice')
    const acknowledged = n
    await eventually('the server goes on', () => n > acknowledged + 20)
    t.ok(await peer.echoed('fence'))
    const late = [...peer.framesOf('message'), ...peer.framesOf('own')].filter(({ payload }) => Number(payload) > acknowledged)
    t.same(late, [], `round ${round}: nothing behind the answer`)
    t.ok(peer.framesOf('own').length > 0 && peer.framesOf('message').length > 0, 'and something before it')
    t.same(peer.framesOf('left').map(({ room }) => room).sort(), ['late', 'news'])
    peer.socket.terminate()
    await eventually('it is gone', () => app.hybridAuth.count() === 0)
  }
})

t.test('setPermissions reaches all sockets of a user, or those of one issuer or tenant, or of none', async t => {
  const { app, open, session } = await audited(t)
  const claims = [{}, { iss: 'a' }, { iss: 'b' }, { companyId: 'acme' }, { iss: 'a', companyId: 'acme' }]
  const scopes: Array<[Parameters<HybridAuthSet>[2], string[]]> = [
    [undefined, ['{}', '{"iss":"a"}', '{"iss":"b"}', '{"companyId":"acme"}', '{"iss":"a","companyId":"acme"}', 'session']],
    [{ issuer: 'a' }, ['{"iss":"a"}', '{"iss":"a","companyId":"acme"}']],
    [{ issuer: null }, ['{}', '{"companyId":"acme"}', 'session']],
    [{ tenantId: 'acme' }, ['{"companyId":"acme"}', '{"iss":"a","companyId":"acme"}']],
    [{ tenantId: null }, ['{}', '{"iss":"a"}', '{"iss":"b"}', 'session']],
    [{ issuer: null, tenantId: null }, ['{}', 'session']],
    [{ issuer: 'a', tenantId: 'acme' }, ['{"iss":"a","companyId":"acme"}']],
    [{ issuer: 'nobody' }, []]
  ]
  const pairs = new Map(await Promise.all(claims.map(async one => [JSON.stringify(one), await open({ token: tokenWith(one) })] as const)))
  pairs.set('session', await open({ cookie: session('s1', { userId: 'alice', permissions: CLAIMED }) }))
  const bob = await open({ token: tokenWith({ sub: 'bob', iss: 'a', companyId: 'acme' }) })
  for (const [n, [scope, reached]] of scopes.entries()) {
    const name = `round ${n}`
    t.match(await app.hybridAuth.setPermissions('alice', [name], scope), { matched: reached.length, closed: 0 })
    t.same([...pairs].filter(([, { there }]) => there.connection.can(name)).map(([who]) => who).sort(), [...reached].sort(), JSON.stringify(scope))
  }
  t.same(bob.there.connection.context.permissions, CLAIMED)
  for (const bad of [{ issuer: 7 }, { tenant: 'acme' }, { issuer: '' }]) {
    await t.rejects(app.hybridAuth.setPermissions('alice', [], untyped(bad)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, JSON.stringify(bad))
  }
})
type HybridAuthSet = Audited['app']['hybridAuth']['setPermissions']

t.test('permissions that were set stay when the same session is read again, and end when the source says something else', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, session, source, store } = await sourced(t, { source: new Source(['old']) })
  const { there } = await open({ cookie: session('s1', { userId: 'bob' }) })
  const readAgain = async () => {
    const { reads } = store
    clock.move(31_000)
    lookNow(there.connection)
    await eventually('the session was read', () => store.reads > reads)
    for (let turn = 0; turn < 5; turn++) await new Promise(resolve => { setImmediate(resolve) })
    return there.connection.context.permissions
  }
  await app.hybridAuth.setPermissions('bob', ['set'])
  t.same(await readAgain(), ['set'])
  await app.hybridAuth.setPermissions('bob', ['set again'])
  t.same(await readAgain(), ['set again'])
  source.says('new')
  t.same(await readAgain(), ['new'])
  source.says('old')
  t.same(await readAgain(), ['old'], 'what was set does not come back')
})

t.test('permissions that were set stay when the same token is sent again, and end with another one or with a refresh', async t => {
  const { app, open } = await sourced(t, { source: new Source(['source']) })
  const token = tokenWith()
  const { peer, there } = await open({ token, speaks: true })
  const send = async (text: string) => {
    peer.say(updateOf(text))
    await peer.takeFrame('auth_updated')
    return there.connection.context.permissions
  }
  await app.hybridAuth.setPermissions('alice', ['set'])
  t.same(await send(token), ['set'])
  t.same(await send(signHs256(goodClaims())), ['source'])
  await app.hybridAuth.setPermissions('alice', ['set'])
  t.same(there.connection.context.permissions, ['set'])
  await app.hybridAuth.refreshPermissions('alice')
  t.same(there.connection.context.permissions, ['source'])
  t.same(await send(token), ['source'], 'and what was set does not come back')
})

t.test('a node without a source that is told to ask again has nothing to ask, and changes nothing', async t => {
  const cluster = driverOf()
  const { open } = await audited(t, { auth: { cluster } })
  const { peer, there } = await open({ token: tokenWith(), speaks: true })
  t.match(await cluster.members[0]?.receive({ id: 'a-command-of-16-c', from: 'another', at: Date.now(), type: 'refresh', userId: 'alice' }), { matched: 1, closed: 0 })
  t.ok(await peer.echoed('fence'))
  t.same([peer.texts, there.connection.context.version, there.connection.context.permissions], [['fence'], 1, CLAIMED])
})

t.test('a socket that ends while the source is asked is left alone', async t => {
  const { app, open, source } = await sourced(t)
  const { peer, there } = await open({ token: tokenWith() })
  const waiting = source.defers()
  const refresh = app.hybridAuth.refreshPermissions('alice')
  await eventually('the source is asked', () => waiting.length === 1)
  peer.socket.terminate()
  await there.closed
  waiting[0]?.resolve(['new'])
  t.match(await refresh, { matched: 1, closed: 1 })
  t.same(there.connection.context.permissions, ['granted'])
})

t.test('a mapper of tokens that names other rights is the identity that the source is asked about', async t => {
  const user: NonNullable<NonNullable<HybridAuthOptions['jwt']>['user']> = ({ sub = '' }) => ({ userId: `mapped ${sub}`, role: 'mapped' })
  const { host, source } = await sourced(t, { auth: { jwt: { ...JWT, user } } })
  t.match(JSON.parse((await ask(host, '/me', bearer(tokenWith()))).body), { userId: 'mapped alice', role: 'mapped', permissions: ['granted'] })
  t.same(source.asked, [{ userId: 'mapped alice', role: 'mapped' }])
})
