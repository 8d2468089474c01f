import t, { type Test } from 'tap'
import type { AuditEvent, AuthContext, HybridAuthOptions, KeyMaterial, RouteAuth } from '../lib/index.js'
import { CLOSE, closeReason } from '../lib/protocol.js'
import { goodClaims, goodToken, inSeconds, JWT, keepLines, SECRET, SESSION, signHs256 } from './helpers.js'
import { DAY, eventually, live, lookNow, setClock, setRandom, type Live, type Pair } from './live.js'
import { ask, cookieFor, deferred, MapStore, never, type Deferred } from './stores.js'

const CANARY = 'canary-4711'
const BAD = 'not.a.token'
const update = (token: unknown, type = 'auth_update') => ({ type, token })
const forever = (changes: Record<string, unknown> = {}) => goodToken({ exp: inSeconds(30 * 86_400), ...changes })
const codeAndReason = ({ code, reason }: { code: number, reason: string }) => ({ code, reason })
const REFUSED = { type: 'error', code: 'refresh_failed', action: 'refresh' }
const UNAVAILABLE = { type: 'error', code: 'unavailable', action: 'retry' }

interface Audited extends Live { events: AuditEvent[], types: () => string[] }

async function audited (t: Test, auth: Partial<HybridAuthOptions> = {}, route: RouteAuth = true): Promise<Audited> {
  const events: AuditEvent[] = []
  const server = await live(t, { auth: { ...auth, audit: event => { events.push(event) } }, route })
  return { ...server, events, types: () => events.map(({ type }) => type) }
}

/** A server whose keys come when the test says: the token with `kid: '1'` waits for `keys[1]`. */
async function withSlowKeys (t: Test, more: Partial<HybridAuthOptions> = {}, route: RouteAuth = true) {
  const keys: Array<Deferred<KeyMaterial | null>> = Array.from({ length: 12 }, () => deferred<KeyMaterial | null>())
  const asked: number[] = []
  const key = ({ kid }: { kid?: string }) => {
    if (kid === undefined) return SECRET
    asked.push(Number(kid))
    return keys[Number(kid)]?.promise ?? null
  }
  const server = await audited(t, { jwt: { ...JWT, key }, ...more }, route)
  const slowToken = (n: number, changes: Record<string, unknown> = {}) => signHs256(goodClaims(changes), { kid: String(n) })
  const answer = (n: number, found: KeyMaterial | null = SECRET) => { keys[n]?.resolve(found) }
  const askedFor = (n: number) => eventually(`the key of token ${n} is asked for`, () => asked.includes(n))
  return { ...server, slowToken, answer, askedFor }
}

/** A context as JSON keeps it. */
const shown = (context: AuthContext): unknown => JSON.parse(JSON.stringify(context))

t.test('a refresh is asked for at 70 to 90 % of the lifetime, at least 30 s ahead of the end of a long one', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { heartbeat: false } })
  const table: Array<[string, number, number, number, number]> = [
    ['an hour, at once', 3600, 0, 3600 * 0.7, 1080], ['an hour, late', 3600, 1, 3600 * 0.9, 360],
    ['200 s, late', 200, 1, 170, 30], ['200 s, early', 200, 0, 140, 60], ['120 s, late', 120, 1, 90, 30],
    ['10 s, early', 10, 0, 7, 3], ['10 s, late', 10, 1, 9, 1], ['60 s, middle', 60, 0.5, 48, 12], ['99 s, late', 99, 1, 89.1, 9.9]
  ]
  for (const [what, lifetime, random, after, left] of table) {
    setRandom(t, random)
    const openNow = async () => {
      clock.reset()
      const opened = Date.now()
      return { opened, ...await open({ token: goodToken({ exp: opened / 1000 + lifetime }), speaks: true }) }
    }
    // The lifetime is counted from the authentication: a machine that took its time with that tries again.
    let attempt = await openNow()
    while (attempt.there.connection.context.authenticatedAt - attempt.opened > 150) attempt = await openNow()
    const { opened, peer, there } = attempt
    const remaining: number[] = []
    there.connection.on('expiring', ms => { remaining.push(ms) })
    const moveTo = (seconds: number) => {
      clock.reset()
      clock.move(opened + seconds * 1000 - Date.now())
      lookNow(there.connection)
    }
    moveTo(after - 0.5)
    t.ok(await peer.echoed('not yet'))
    t.same([peer.framesOf('token_refresh_required'), remaining], [[], []], `${what}: not before`)
    moveTo(after + 0.3)
    const { expiresIn } = await peer.takeFrame('token_refresh_required')
    t.ok(typeof expiresIn === 'number' && Math.abs(expiresIn - left) <= 1, `${what}: ${String(expiresIn)} s ahead`)
    t.ok(remaining.length === 1 && Math.abs((remaining[0] ?? 0) - left * 1000) < 1000)
    lookNow(there.connection)
    t.ok(await peer.echoed('once'))
    t.equal(peer.framesOf('token_refresh_required').length, 1, `${what}: once`)
    peer.socket.terminate()
  }
})

t.test('sockets of one second are asked at different times', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { heartbeat: false } })
  const token = goodToken({ exp: inSeconds(1000) })
  const pairs = await Promise.all(Array.from({ length: 40 }, () => open({ token, speaks: true })))
  const askedAt = async (seconds: number) => {
    clock.reset()
    clock.move(seconds * 1000)
    for (const { peer, there } of pairs) {
      lookNow(there.connection)
      await peer.echoed(`at ${seconds}`)
    }
    return pairs.filter(({ peer }) => peer.framesOf('token_refresh_required').length > 0).length
  }
  t.equal(await askedAt(690), 0)
  const middle = await askedAt(800)
  t.ok(middle > 3 && middle < 37, `${middle} of 40 in the first half`)
  t.equal(await askedAt(905), 40)
})

t.test('only sockets that speak the protocol are asked; `expiring` is told of all', async t => {
  const clock = setClock(t)
  const store = new MapStore()
  const { open } = await live(t, { auth: { heartbeat: false }, session: { store } })
  store.put('s1', { user: { userId: 'bob' }, cookie: { expires: new Date(Date.now() + 100_000).toISOString() } })
  const token = goodToken({ exp: inSeconds(100) })
  const [speaking, plain, other, session] = await Promise.all([
    open({ token, speaks: true }), open({ token }), open({ token, protocols: ['chat.v2'] }), open({ cookie: cookieFor('s1'), speaks: true })
  ])
  const told: string[] = []
  for (const [name, { there }] of Object.entries({ speaking, plain, other, session })) there.connection.on('expiring', () => { told.push(name) })
  clock.move(95_000)
  for (const { peer, there } of [speaking, plain, other, session]) {
    lookNow(there.connection)
    t.ok(await peer.echoed('x'))
  }
  t.same([speaking, plain, other, session].map(({ peer }) => peer.framesOf('token_refresh_required').length), [1, 0, 0, 0])
  t.same(told, ['speaking', 'plain', 'other'], 'a session is not refreshed in-band')
})

for (const type of ['auth_update', 'token_refresh']) {
  t.test(`${type} with a good token swaps the context in one step`, async t => {
    const { app, open, events, types } = await audited(t)
    const old = goodToken({ jti: 'old', permissions: ['a:read'], companyId: 'acme', role: 'agent' })
    const { peer, there } = await open({ token: old })
    const [before, { id }] = [there.connection.context, there.connection]
    const seen: Array<{ context: AuthContext, auth: AuthContext, byOld: number, byNew: number }> = []
    const seeing = (context: AuthContext) => {
      seen.push({ context, auth: there.request.auth, byOld: app.hybridAuth.count({ tokenId: 'old' }), byNew: app.hybridAuth.count({ tokenId: 'new' }) })
    }
    there.connection.on('refresh', seeing)
    const exp = inSeconds(1800)
    peer.say(update(goodToken({ jti: 'new', permissions: ['a:read', 'a:write'], companyId: 'acme', role: 'admin', exp }), type))
    const answer = await peer.takeFrame('auth_updated')
    t.same(Object.keys(answer).sort(), ['expiresIn', 'type'])
    t.ok(typeof answer.expiresIn === 'number' && answer.expiresIn >= 1798 && answer.expiresIn <= 1800)

    const { context } = there.connection
    t.match(context, { authType: 'jwt', tokenId: 'new', version: 2, via: 'message', role: 'admin', permissions: ['a:read', 'a:write'], expiresAt: exp * 1000, claims: { jti: 'new' } })
    t.ok(Object.isFrozen(context))
    t.equal(there.request.auth, context)
    t.equal(app.hybridAuth.contextOf(there.request), context)
    t.same([there.connection.can('a:write'), there.connection.id], [true, id])
    t.match(before, { tokenId: 'old', version: 1, permissions: ['a:read'] }, 'who kept the old one has the old one')
    t.same(seen.map(({ context: one, auth, byOld, byNew }) => [one === context, auth === context, byOld, byNew]), [[true, true, 0, 1]])
    t.same([app.hybridAuth.count(), app.hybridAuth.connections({ userId: 'alice' })], [1, [there.connection]])
    t.ok(await peer.echoed('after'))
    t.same(there.received, ['after'], 'the frame is not the application\'s')
    t.match(events.filter(one => one.type === 'refreshed'), [{ userId: 'alice', via: 'message', connectionId: id }])

    there.connection.off('refresh', seeing)
    peer.say(update(goodToken({ companyId: 'acme' }), type))
    await peer.takeFrame('auth_updated')
    t.same([seen.length, there.connection.context.version], [1, 3])
    t.same(types(), ['authenticated', 'refreshed', 'refreshed'])
  })
}

t.test('a refreshed 2-second token keeps its numbered stream without a gap, past the first end and to the second', async t => {
  let n = 0
  const { open } = await live(t, {
    handler ({ socket }) {
      const timer = setInterval(() => { socket.send(String(n++)) }, 10)
      socket.on('close', () => { clearInterval(timer) })
    }
  })
  const [first, second] = [Date.now() + 2000, Date.now() + 3000]
  const { peer, there } = await open({ token: goodToken({ exp: first / 1000 }), protocols: ['hybrid-auth.v1'] })
  t.match(await peer.takeFrame('token_refresh_required'), { type: 'token_refresh_required' })
  const asked = Date.now()
  t.ok(asked >= first - 700 && asked < first, `${first - asked} ms ahead`)
  peer.say(update(goodToken({ exp: second / 1000 })))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  await eventually('the first end is past', () => Date.now() > first + 300)
  t.notOk(peer.hasEnded)
  there.connection.close()
  await peer.end
  const numbers = peer.texts.filter(text => /^\d+$/.test(text)).map(Number)
  t.ok(numbers.length > 100, `${numbers.length} numbers`)
  t.same(numbers, numbers.map((_, i) => i))
})

t.test('a refresh moves the end: it counts from the new token, also where that ends sooner', async t => {
  const { open } = await live(t, { auth: { expiryGrace: 0 } })
  const { peer } = await open({ token: goodToken({ exp: inSeconds(3000) }) })
  const ends = Date.now() + 400
  peer.say(update(goodToken({ exp: ends / 1000 })))
  await peer.takeFrame('auth_updated')
  const end = await peer.end
  t.ok(end.at >= ends && end.at < ends + 700)
})

t.test('a token without end answers expiresIn: null, and is not asked to refresh', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { jwt: { ...JWT, allowNoExpiry: true }, heartbeat: false } })
  const { peer, there } = await open({ speaks: true })
  peer.say(update(goodToken({ exp: undefined })))
  t.same(await peer.takeFrame('auth_updated'), { type: 'auth_updated', expiresIn: null })
  clock.move(1000 * DAY)
  lookNow(there.connection)
  t.ok(await peer.echoed('still here'))
  t.equal(peer.framesOf('token_refresh_required').length, 0)
})

t.test('a refresh that was asked for and does not come is 4005; without being asked it is 4002', async t => {
  const { open, events } = await audited(t, { expiryGrace: 300 })
  const ends = Date.now() + 700
  const token = goodToken({ exp: ends / 1000 })
  const [asked, plain] = await Promise.all([open({ token, speaks: true }), open({ token })])
  t.match(await asked.peer.takeFrame('token_refresh_required'), { type: 'token_refresh_required' })
  const end = await asked.peer.end
  t.same(codeAndReason(end), { code: 4005, reason: closeReason('RefreshTimeout') })
  t.ok(end.at >= ends + 300, 'after the grace')
  t.match(asked.peer.framesOf('bye'), [{ code: 'refresh_timeout', action: 'refresh' }])
  t.equal((await plain.peer.end).code, 4002)
  await Promise.all([asked.there.closed, plain.there.closed])
  t.equal(events.filter(({ type }) => type === 'expired').length, 2)
})

t.test('after a refresh the next one is asked for anew', async t => {
  const clock = setClock(t)
  setRandom(t, 0.5)
  const { open } = await live(t, { auth: { heartbeat: false } })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(100) }), speaks: true })
  for (let round = 1; round <= 3; round++) {
    clock.move(85_000)
    lookNow(there.connection)
    await peer.takeFrame('token_refresh_required')
    peer.say(update(goodToken({ exp: inSeconds(100) })))
    await peer.takeFrame('auth_updated')
    lookNow(there.connection)
    t.ok(await peer.echoed(`round ${round}`))
    t.equal(peer.framesOf('token_refresh_required').length, round)
  }
  clock.move(126_000)
  lookNow(there.connection)
  t.equal((await peer.end).code, 4002, 'not asked since the last refresh')
})

t.test('case 66: three bad tokens are 4004, each audited, and the socket works until then', async t => {
  const { open, events, types } = await audited(t)
  const { peer, there } = await open({ speaks: true })
  const before = there.connection.context
  const bad = [BAD, goodToken({ exp: inSeconds(-5) }), signHs256(goodClaims(), {}, 'another secret of 32 bytes or more')]
  for (const [index, token] of bad.entries()) {
    peer.say(update(token))
    if (index === 2) break
    t.match(await peer.takeFrame('error'), REFUSED)
    t.ok(await peer.echoed(`works after ${index}`))
    t.equal(there.connection.context, before)
  }
  t.same(codeAndReason(await peer.end), { code: 4004, reason: closeReason('RefreshFailed') })
  t.same(peer.framesOf('bye'), [{ type: 'bye', code: 'refresh_failed', action: 'stop' }])
  await there.closed
  t.same(types(), ['authenticated', 'refresh_refused', 'refresh_refused', 'refresh_refused', 'closed'])
  t.match(events.filter(({ type }) => type === 'refresh_refused'), [
    { code: 'FST_HYBRID_AUTH_INVALID_TOKEN' }, { code: 'FST_HYBRID_AUTH_EXPIRED_TOKEN', connectionId: there.connection.id }, { code: 'FST_HYBRID_AUTH_INVALID_TOKEN', userId: 'alice' }
  ])
})

t.test('case 66: a good token forgives the bad ones before it', async t => {
  const { open } = await live(t)
  const { peer } = await open()
  for (let round = 0; round < 3; round++) {
    for (const token of [BAD, BAD]) {
      peer.say(update(token))
      t.match(await peer.takeFrame('error'), REFUSED)
    }
    peer.say(update(goodToken()))
    t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  }
  for (const token of [BAD, BAD, BAD]) peer.say(update(token))
  t.equal((await peer.end).code, 4004)
})

t.test('case 66: another user, issuer or tenant is 4011 and audited, and never takes effect', async t => {
  const whos: Array<[string, Record<string, unknown>]> = [
    ['another user', { sub: 'mallory' }], ['another issuer', { iss: 'https://b.example' }], ['no issuer', { iss: undefined }], ['another tenant', { companyId: 'evil' }],
    ['no tenant', { companyId: undefined }], ['the user in other case', { sub: 'Alice' }]
  ]
  const self = { iss: 'https://a.example', companyId: 'acme' }
  const { app, open, events } = await audited(t)
  for (const [what, changes] of whos) {
    const { peer, there } = await open({ token: goodToken(self), speaks: true })
    const before = there.connection.context
    let refreshed = 0
    there.connection.on('refresh', () => { refreshed++ })
    peer.say(update(goodToken({ ...self, permissions: ['everything'], jti: 'theirs', ...changes })))
    peer.say('right behind it')
    t.same(codeAndReason(await peer.end), { code: 4011, reason: closeReason('IdentityChanged') }, what)
    await there.closed
    t.same([there.connection.context === before, there.request.auth === before, refreshed, there.received], [true, true, 0, []], what)
    t.equal(app.hybridAuth.count({ tokenId: 'theirs' }), 0)
    t.match(events.at(-2), { type: 'identity_changed', userId: 'alice', connectionId: there.connection.id })
  }
  const { peer } = await open({ token: goodToken(self) })
  peer.say(update(goodToken({ ...self, jti: 'mine' })))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
})

t.test('case 66: a session connection that sends a token is 4011, whoever the token names', async t => {
  const store = new MapStore()
  const { app, open } = await live(t, { session: { store } })
  for (const claims of [{ sub: 'bob' }, { sub: 'bob', iss: 'https://a.example' }, { sub: 'mallory' }]) {
    store.put('s1', { user: { userId: 'bob' }, cookie: {} })
    const { peer, there } = await open({ cookie: cookieFor('s1'), speaks: true })
    peer.say(update(goodToken(claims)))
    const outcome = await Promise.race([peer.end, peer.takeFrame('auth_updated')])
    t.match(outcome, { code: 4011 }, JSON.stringify(claims))
    t.equal(there.connection.context.authType, 'session')
    there.connection.close()
    await peer.end
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('case 66: fewer permissions shrink at once, for the messages right behind too', async t => {
  const judged: Array<[string, number]> = []
  const { open } = await live(t, {
    route: {
      authorize (auth, message) {
        judged.push([message.text(), auth.version])
        return auth.permissions.includes('write')
      }
    }
  })
  const { peer, there } = await open({ token: goodToken({ permissions: ['read', 'write'] }), speaks: true })
  t.ok(await peer.echoed('first'))
  peer.say(update(goodToken({ permissions: ['read'] })))
  peer.say('second')
  t.match(await peer.takeFrame('error'), { code: 'forbidden', action: 'none' })
  t.same(judged, [['first', 1], ['second', 2]])
  t.same([there.received, there.connection.can('write'), there.connection.can('read')], [['first'], false, true])
})

t.test('case 66: where the route\'s rule no longer holds the socket is 4007', async t => {
  const rules: Array<[string, RouteAuth, Record<string, unknown>]> = [
    ['permissions', { permissions: ['read'] }, { permissions: ['write'] }],
    ['role', { role: 'agent' }, { permissions: ['read'], role: 'guest' }],
    ['a check', { check: auth => auth.permissions.length > 0 }, { permissions: [] }],
    ['an asynchronous check', { check: async auth => auth.permissions.length > 0 }, { permissions: [] }],
    ['a check that throws', { check (auth) { if (auth.version > 1) throw new Error(CANARY); return true } }, { permissions: ['read'] }],
    ['a check that rejects', { check: async auth => { if (auth.version > 1) throw new Error(CANARY); return true } }, { permissions: ['read'] }]
  ]
  for (const [what, route, claims] of rules) {
    const { open } = await audited(t, {}, route)
    const { peer, there } = await open({ token: goodToken({ permissions: ['read'], role: 'agent' }), speaks: true })
    peer.say(update(goodToken(claims)))
    const end = await peer.end
    t.same(codeAndReason(end), { code: 4007, reason: closeReason('Forbidden') }, what)
    await there.closed
    t.same(there.closes, [4007])
    t.notMatch(peer.texts.join(), CANARY)
  }
})

t.test('case 66: a check that never settles after a refresh closes inside the deadline', async t => {
  const { open } = await audited(t, { handshakeTimeout: 200 }, { check: auth => auth.version === 1 || never() })
  const { peer } = await open()
  peer.say(update(goodToken()))
  t.equal((await peer.end).code, 4007)
  t.equal(peer.framesOf('auth_updated').length, 0, 'a success is not told before the rule holds')
})

t.test('an asynchronous check of a context that was replaced meanwhile decides nothing', async t => {
  const verdicts = new Map<number, Deferred<boolean>>()
  const check = ({ version }: AuthContext) => {
    if (version === 1) return true
    const verdict = deferred<boolean>()
    verdicts.set(version, verdict)
    return verdict.promise
  }
  const { open } = await live(t, { route: { check } })
  const { peer, there } = await open()
  for (const version of [2, 3]) {
    peer.say(update(goodToken()))
    await eventually(`the check of version ${version} is asked`, () => verdicts.has(version))
  }
  verdicts.get(2)?.resolve(false)
  t.ok(await peer.echoed('the old verdict is void'))
  t.equal(peer.framesOf('auth_updated').length, 0)
  verdicts.get(3)?.resolve(true)
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  t.ok(await peer.echoed('the new one holds'))
  t.equal(there.connection.context.version, 3)
})

t.test('case 66: two re-authentications that finish in the wrong order: the older cannot overwrite', async t => {
  const { open, slowToken, answer, askedFor, types } = await withSlowKeys(t)
  const { peer, there } = await open({ speaks: true })
  const refreshes: string[] = []
  there.connection.on('refresh', context => { if (context.authType !== 'session') refreshes.push(context.tokenId) })
  peer.say(update(slowToken(1, { jti: 'older', permissions: ['everything'] })))
  await askedFor(1)
  peer.say(update(slowToken(2, { jti: 'newer', permissions: ['read'] })))
  await askedFor(2)
  answer(2)
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  answer(1)
  t.ok(await peer.echoed('both are in'))
  t.match(there.connection.context, { tokenId: 'newer', permissions: ['read'], version: 2 })
  t.same([refreshes, peer.framesOf('auth_updated').length, peer.framesOf('error').length], [['newer'], 1, 0])
  t.same(types(), ['authenticated', 'refreshed'])
})

t.test('case 66: an older re-authentication as somebody else, or with a bad token, that comes late has no effect', async t => {
  for (const [what, changes, key] of [['somebody else', { sub: 'mallory' }, SECRET], ['a bad token', {}, null], ['an expired one', { exp: inSeconds(-1) }, SECRET]] as const) {
    const { open, slowToken, answer, askedFor } = await withSlowKeys(t)
    const { peer, there } = await open()
    peer.say(update(slowToken(1, changes)))
    await askedFor(1)
    peer.say(update(goodToken({ jti: 'newer' })))
    await peer.takeFrame('auth_updated')
    answer(1, key)
    t.ok(await peer.echoed('late'), what)
    t.match(there.connection.context, { tokenId: 'newer' })
  }
})

t.test('two re-authentications in order both take effect, and an older success behind a newer failure too', async t => {
  const { open, slowToken, answer, askedFor } = await withSlowKeys(t)
  const { peer, there } = await open()
  for (const n of [1, 2, 3]) peer.say(update(slowToken(n, { jti: `t${n}` })))
  await askedFor(3)
  answer(1)
  await peer.takeFrame('auth_updated')
  t.match(there.connection.context, { tokenId: 't1', version: 2 })
  answer(3, null)
  t.match(await peer.takeFrame('error'), REFUSED)
  answer(2)
  await peer.takeFrame('auth_updated')
  t.match(there.connection.context, { tokenId: 't2', version: 3 })
})

t.test('case 67: the credential ends while a re-authentication is in flight: exactly one outcome', async t => {
  const { open, slowToken, answer, askedFor, types } = await withSlowKeys(t, { expiryGrace: 0 })
  const ends = Date.now() + 500
  const { peer, there } = await open({ token: goodToken({ exp: ends / 1000 }) })
  peer.say(update(slowToken(1, { jti: 'late' })))
  await askedFor(1)
  const end = await peer.end
  t.ok(end.at >= ends)
  answer(1)
  await there.closed
  await new Promise(resolve => { setImmediate(resolve) })
  t.ok([4002, 4005].includes(end.code), `${end.code}`)
  t.same([peer.framesOf('auth_updated').length, there.closes, there.connection.context.version], [0, [end.code], 1])
  t.same(types(), ['authenticated', 'expired', 'closed'])
})

t.test('case 67: the answer comes in the same turn as the end, after it: the end holds', async t => {
  const clock = setClock(t)
  const { open, slowToken, answer, askedFor, types } = await withSlowKeys(t, { expiryGrace: 0 })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(60) }) })
  peer.say(update(slowToken(1, { exp: inSeconds(9000) })))
  await askedFor(1)
  clock.move(60_001)
  answer(1)
  const end = await peer.end
  t.ok(end.code === 4002, `${end.code}`)
  await there.closed
  t.same([peer.framesOf('auth_updated').length, there.closes, there.connection.context.version], [0, [4002], 1])
  t.same(types(), ['authenticated', 'expired', 'closed'])
})

t.test('case 67: the answer comes just before the end: the socket lives on', async t => {
  const clock = setClock(t)
  const { open, slowToken, answer, askedFor } = await withSlowKeys(t, { expiryGrace: 0 })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(60) }) })
  peer.say(update(slowToken(1, { exp: inSeconds(9000) })))
  await askedFor(1)
  clock.move(58_000)
  answer(1)
  await peer.takeFrame('auth_updated')
  clock.move(5000)
  lookNow(there.connection)
  t.ok(await peer.echoed('past the first end'))
})

t.test('a socket that closes during the verification stays closed, whoever closed it', async t => {
  const endings: Array<[string, (pair: Pair) => unknown, number]> = [
    ['by us', ({ there }) => { there.connection.close() }, 4006],
    ['by the peer', ({ peer }) => { peer.socket.close(4321) }, 4321],
    ['cut off', ({ peer }) => { peer.socket.terminate() }, 1006],
    ['by the handler', ({ there }) => { there.socket.close(4322) }, 4322]
  ]
  for (const [what, end, code] of endings) {
    const { app, open, slowToken, answer, askedFor, types } = await withSlowKeys(t)
    const pair = await open()
    const { peer, there } = pair
    peer.say(update(slowToken(1, { jti: 'late' })))
    await askedFor(1)
    end(pair)
    await Promise.all([peer.end, there.closed])
    answer(1)
    await new Promise(resolve => { setImmediate(resolve) })
    t.same(there.closes, [code], what)
    t.same([app.hybridAuth.count(), app.hybridAuth.connections({ tokenId: 'late' }), app.hybridAuth.connections({ userId: 'alice' })], [0, [], []], what)
    t.same([there.connection.context.version, types()], [1, ['authenticated', 'closed']], what)
  }
})

t.test('a re-authentication that succeeds while the socket is closing is not applied', async t => {
  const { app, open, slowToken, answer, askedFor } = await withSlowKeys(t)
  const { peer, there } = await open()
  peer.say(update(slowToken(1, { jti: 'late' })))
  await askedFor(1)
  there.connection.close()
  answer(1)
  await peer.end
  await there.closed
  t.same([there.connection.context.version, app.hybridAuth.connections({ tokenId: 'late' })], [1, []])
})

t.test('a key function that throws, rejects, hangs or answers garbage is `unavailable`, and extends nothing', async t => {
  const garbage: unknown = { not: 'a key' }
  const faults: Array<[string, () => KeyMaterial | Promise<KeyMaterial>]> = [
    ['throws', () => { throw new Error(CANARY) }], ['rejects', () => Promise.reject(new Error(CANARY))], ['hangs', () => never()],
    ['answers garbage', () => garbage as KeyMaterial], ['answers a promise of garbage', async () => garbage as KeyMaterial]
  ]
  for (const [what, fault] of faults) {
    const log = keepLines()
    const events: AuditEvent[] = []
    const key = ({ kid }: { kid?: string }) => kid === undefined ? SECRET : fault()
    const { open } = await live(t, { fastify: { logger: { stream: log.stream } }, auth: { jwt: { ...JWT, key }, handshakeTimeout: 150, expiryGrace: 0, audit: event => { events.push(event) } } })
    const { peer, there } = await open()
    const before = shown(there.connection.context)
    for (let i = 0; i < 4; i++) {
      peer.say(update(signHs256(goodClaims(), { kid: 'x' })))
      const frame = await peer.takeFrame('error')
      t.match(frame, UNAVAILABLE, what)
    }
    t.same(shown(there.connection.context), before)
    t.ok(await peer.echoed('it is not the peer\'s fault'), what)
    t.notMatch(log.text() + peer.texts.join(), CANARY)
    t.equal(events.filter(event => event.type === 'refresh_refused' && event.code === 'FST_HYBRID_AUTH_UNAVAILABLE').length, 4)
  }
})

t.test('an answer that comes after the deadline has no effect', async t => {
  const { open, slowToken, answer, askedFor } = await withSlowKeys(t, { handshakeTimeout: 100 })
  const { peer, there } = await open()
  peer.say(update(slowToken(1, { jti: 'late' })))
  await askedFor(1)
  t.match(await peer.takeFrame('error'), UNAVAILABLE)
  answer(1)
  t.ok(await peer.echoed('x'))
  t.same([there.connection.context.version, peer.framesOf('auth_updated').length], [1, 0])
})

t.test('a mapper that throws, rejects or names nobody refuses the refresh', async t => {
  let mapper: () => unknown = () => ({ userId: 'alice' })
  const { open } = await audited(t, { jwt: { ...JWT, user: () => mapper() as { userId: string } } })
  const { peer, there } = await open()
  for (const [fault, expected] of [
    [() => { throw new Error(CANARY) }, UNAVAILABLE], [() => Promise.reject(new Error(CANARY)), UNAVAILABLE], [() => null, REFUSED], [() => 'alice', REFUSED]
  ] as const) {
    mapper = fault
    peer.say(update(goodToken()))
    t.match(await peer.takeFrame('error'), expected)
  }
  t.equal(there.connection.context.version, 1)
  mapper = () => ({ userId: 'alice' })
  peer.say(update(goodToken()))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
})

t.test('of more re-authentications at once than four the fifth is refused, and the key is not asked', async t => {
  const { open, slowToken, answer, askedFor } = await withSlowKeys(t)
  const { peer, there } = await open()
  for (const n of [1, 2, 3, 4, 5]) peer.say(update(slowToken(n, { jti: `t${n}` })))
  t.match(await peer.takeFrame('error'), REFUSED)
  await askedFor(4)
  for (const n of [1, 2, 3, 4, 5]) answer(n)
  for (let i = 0; i < 4; i++) await peer.takeFrame('auth_updated')
  t.match(there.connection.context, { tokenId: 't4', version: 5 })
  peer.say(update(slowToken(6)))
  answer(6)
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' }, 'there is room again')
})

t.test('a flood of re-authentications is 4004', async t => {
  const { open, slowToken } = await withSlowKeys(t)
  const { peer } = await open()
  for (let n = 0; n < 11; n++) peer.say(update(slowToken(n)))
  t.equal((await peer.end).code, 4004)
})

t.test('case 63: malformed and oversized re-authentications are refused, and the process lives', async t => {
  const { host, open } = await live(t)
  const long = 'x'.repeat(70_000)
  const frames: Array<[string, string]> = [
    ['no JSON', '{"type":"auth_update","token":'], ['no token', '{"type":"auth_update"}'], ['a number', '{"type":"auth_update","token":7}'],
    ['null', '{"type":"auth_update","token":null}'], ['a list', '{"type":"token_refresh","token":["a"]}'], ['an object', '{"type":"auth_update","token":{"a":1}}'],
    ['an empty token', '{"type":"auth_update","token":""}'], ['oversized', JSON.stringify(update(long))], ['a good token in too large a frame', JSON.stringify({ ...update(goodToken()), padding: long })],
    ['text behind', `${JSON.stringify(update(goodToken()))}x`], ['with blanks', ' \n{ "type" \t: "auth_update" }'.trim()], ['another type behind', '{"type":"auth_update","type":"x","token":"y"}']
  ]
  for (const [what, frame] of frames) {
    const { peer, there } = await open()
    peer.say(frame)
    t.match(await peer.takeFrame('error'), REFUSED, what)
    t.ok(await peer.echoed('alive'), what)
    t.same([there.received, there.connection.context.version], [['alive'], 1], what)
    peer.say(frame)
    peer.say(frame)
    t.equal((await peer.end).code, 4004)
  }
  t.equal((await ask(host, '/me', { headers: { authorization: `Bearer ${goodToken()}` } })).status, 200)
})

t.test('frames that only look like ours are the application\'s', async t => {
  const { open } = await live(t)
  const { peer, there } = await open({ speaks: true })
  const frames = [
    '{"token":"x","type":"auth_update"}', '{"type":"auth_updated"}', '{"type":"auth"}', '{"type":"AUTH_UPDATE","token":"x"}', '["auth_update"]', '"auth_update"',
    '{"type":"auth_update ","token":"x"}', ' {"type":"auth_update","token":"x"}', '{"type":', '{"type":"token_refresh', '{', '', '{"type":"join","room":"r"}'
  ]
  for (const frame of frames) peer.say(frame)
  peer.socket.send(Buffer.from(JSON.stringify(update(goodToken()))), { binary: true })
  t.ok(await peer.echoed('end'))
  t.same(there.received.slice(0, -2), frames)
  t.equal(there.connection.context.version, 1)
})

t.test('a client of another protocol, or a route with control: false, keeps its auth_update frames', async t => {
  const other = await live(t)
  const never = await live(t, { route: { control: false } })
  const frame = JSON.stringify(update(goodToken()))
  for (const { peer, there } of [await other.open({ protocols: ['chat.v2'] }), await never.open(), await never.open({ speaks: true })]) {
    t.ok(await peer.echoed(frame))
    t.same([there.received, there.connection.context.version], [[frame], 1])
  }
})

t.test('listeners that throw change nothing and are logged without their words', async t => {
  const clock = setClock(t)
  const log = keepLines()
  const { app, open } = await live(t, {
    fastify: { logger: { stream: log.stream } },
    handler ({ connection, socket, received }) {
      for (const event of ['refresh', 'expiring', 'close'] as const) connection.on(event, () => { throw new Error(CANARY) })
      socket.on('message', (data: Buffer) => { received.push(data.toString()); socket.send(data.toString()) })
    }
  })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(60) }), speaks: true })
  clock.move(58_000)
  lookNow(there.connection)
  await peer.takeFrame('token_refresh_required')
  peer.say(update(forever({ jti: 'new' })))
  await peer.takeFrame('auth_updated')
  t.match(there.connection.context, { tokenId: 'new', version: 2 })
  t.ok(await peer.echoed('lives'))
  there.connection.close()
  t.equal((await peer.end).code, 4006)
  await there.closed
  t.equal(app.hybridAuth.count(), 0)
  const lines = log.text()
  for (const event of ['refresh', 'expiring', 'close']) t.match(lines, `the ${event} listener`)
  t.notMatch(lines, CANARY)
})

t.test('a `refresh` listener that closes the connection is the end of it', async t => {
  const { app, open } = await live(t)
  const { peer, there } = await open()
  there.connection.on('refresh', () => { there.connection.close('Forbidden') })
  peer.say(update(goodToken()))
  t.equal((await peer.end).code, CLOSE.Forbidden.code)
  await there.closed
  t.same([app.hybridAuth.count(), app.hybridAuth.connections({ userId: 'alice' }).length, there.closes], [0, 0, [4007]])
})

t.test('a server of sessions only refuses tokens on its sockets', async t => {
  const store = new MapStore().put('s1', { user: { userId: 'bob' }, cookie: {} })
  const { open } = await live(t, { auth: { jwt: undefined, session: SESSION }, session: { store } })
  const { peer, there } = await open({ cookie: cookieFor('s1'), speaks: true })
  peer.say(update(goodToken({ sub: 'bob' })))
  const outcome = await Promise.race([peer.end, peer.takeFrame('error')])
  t.ok(outcome.code === 4011 || outcome.code === 'refresh_failed', String(outcome.code))
  t.equal(there.connection.context.authType, 'session')
})
