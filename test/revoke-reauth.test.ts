/** `mode: { reauthWithin }`: another credential within a time, or the end. */
import t from 'tap'
import type { Identity, RevokeTarget } from '../lib/index.js'
import { closeReason } from '../lib/protocol.js'
import { goodToken, inSeconds } from './helpers.js'
import { lookNow, setClock, type Pair } from './live.js'
import { audited, bearer, codeAndReason, isOpen, isRevoked, outcome, REVOKED, updateOf, withCookie } from './revoking.js'
import { ask } from './stores.js'

const WITHIN = 60_000
const LATER = { mode: { reauthWithin: WITHIN } }
const ALICE: RevokeTarget = { userId: 'alice' }
/** Of a token that is older than whatever the test revokes. */
const old = () => inSeconds(-10)
const askedOf = ({ peer }: Pair) => peer.framesOf('token_refresh_required')
const look = (...pairs: Pair[]) => { for (const { there } of pairs) lookNow(there.connection) }

t.test('sockets that speak the protocol are asked for another token, all hear `expiring`, and nobody is closed', async t => {
  const { app, open, session, types } = await audited(t)
  const token = goodToken({ iat: old() })
  const pairs: Record<string, Pair> = {
    speaking: await open({ token, speaks: true }), plain: await open({ token }), other: await open({ token, protocols: ['chat.v2'] }),
    session: await open({ cookie: session('s1', { userId: 'alice' }), speaks: true }), bob: await open({ token: goodToken({ sub: 'bob' }), speaks: true })
  }
  const told: Array<[string, number]> = []
  for (const [name, { there }] of Object.entries(pairs)) there.connection.on('expiring', left => { told.push([name, left]) })
  t.match(await app.hybridAuth.revoke(ALICE, LATER), outcome(4, 0))
  for (const [name, pair] of Object.entries(pairs)) {
    await isOpen(t, pair, name)
    t.same(askedOf(pair), name === 'speaking' ? [{ type: 'token_refresh_required', expiresIn: 60 }] : [], name)
  }
  t.same(told.sort(), [['other', WITHIN], ['plain', WITHIN], ['session', WITHIN], ['speaking', WITHIN]])
  t.notOk(types().includes('revoked'))
})

t.test('who sends a new token in time stays past the deadline; who does not is closed at it', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, events } = await audited(t)
  const token = goodToken({ iat: old() })
  const [fresh, late, plain] = [await open({ token, speaks: true }), await open({ token, speaks: true }), await open({ token })]
  await app.hybridAuth.revoke(ALICE, { ...LATER, reason: 'new role' })
  for (const pair of [fresh, plain]) {
    pair.peer.say(updateOf(goodToken({ exp: inSeconds(3600) })))
    t.match(await pair.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  }
  clock.move(WITHIN - 1)
  look(fresh, late, plain)
  for (const pair of [fresh, late, plain]) await isOpen(t, pair, 'before the deadline')
  clock.move(1)
  look(fresh, late, plain)
  await isRevoked(t, late, 'who sent none')
  t.same(late.peer.framesOf('bye'), [{ type: 'bye', code: 'revoked', action: 'stop' }])
  for (const pair of [fresh, plain]) await isOpen(t, pair, 'who did')
  t.match(events.filter(({ type }) => type === 'revoked'), [{ reason: 'new role', connectionId: late.there.connection.id }])
  t.equal(events.filter(({ type }) => type === 'revoked').length, 1)
})

t.test('at the deadline nothing passes any more, whether or not the wheel has come round', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const token = goodToken({ iat: old() })
  const [first, second] = [await open({ token }), await open({ token })]
  await app.hybridAuth.revoke(ALICE, LATER)
  clock.move(WITHIN)
  first.peer.say('late')
  await isRevoked(t, first, 'the socket that is written to')
  const failed = new Promise(resolve => { second.there.socket.send('late', resolve) })
  t.ok(await failed instanceof Error)
  await isRevoked(t, second, 'the socket that is sent from')
  t.same([first.there.received, first.peer.texts, second.peer.texts], [[], [], []])
})

t.test('the token that has to be replaced does not replace itself, however often it is sent', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, types } = await audited(t)
  const targets: Array<[string, () => RevokeTarget]> = [
    ['the user', () => ALICE], ['the token', () => ({ jti: 'old' })], ['the tenant', () => ({ tenantId: 'acme' })], ['older tokens', () => ({ userId: 'alice', issuedBefore: Date.now() })]
  ]
  for (const [what, targetOf] of targets) {
    // Of this very second, in which it is no older than what is revoked.
    const token = goodToken({ jti: 'old', companyId: 'acme' })
    const pair = await open({ token, speaks: true })
    await app.hybridAuth.revoke(targetOf(), { ...LATER, expiresAt: Date.now() + 2 * WITHIN })
    await isOpen(t, pair, what)
    t.equal(askedOf(pair).length, 1, `${what}: asked once`)
    pair.peer.say(updateOf(token))
    t.match(await pair.peer.takeFrame('error'), { code: 'refresh_failed', action: 'refresh' }, what)
    clock.move(WITHIN)
    look(pair)
    await isRevoked(t, pair, what)
    clock.move(300_000)
  }
  t.equal(types().filter(type => type === 'refresh_refused').length, targets.length)
  t.notOk(types().includes('refreshed'))
})

t.test('a revocation that is over before the deadline still does not let the token replace itself', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const token = goodToken({ iat: old() })
  const pair = await open({ token, speaks: true })
  await app.hybridAuth.revoke(ALICE, { ...LATER, expiresAt: Date.now() + 1000 })
  clock.move(2000)
  pair.peer.say(updateOf(token))
  t.match(await pair.peer.takeFrame('error'), { code: 'refresh_failed' })
  clock.move(WITHIN)
  look(pair)
  await isRevoked(t, pair, 'the socket')
})

t.test('three refused tokens are 4004 here too', async t => {
  const { app, open } = await audited(t)
  const token = goodToken({ iat: old() })
  const { peer } = await open({ token, speaks: true })
  await app.hybridAuth.revoke(ALICE, LATER)
  for (let round = 0; round < 3; round++) peer.say(updateOf(token))
  t.same(codeAndReason(await peer.end), { code: 4004, reason: closeReason('RefreshFailed') })
})

t.test('another token that is as old is refused, and one without iat; the socket ends at the deadline', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const pair = await open({ token: goodToken({ iat: old() }), speaks: true })
  await app.hybridAuth.revoke(ALICE, LATER)
  for (const iat of [old(), undefined]) {
    pair.peer.say(updateOf(goodToken({ iat })))
    t.match(await pair.peer.takeFrame('error'), { code: 'refresh_failed' })
  }
  clock.move(WITHIN)
  look(pair)
  await isRevoked(t, pair, 'the socket')
})

t.test('a new token of the same second works, and the old one opens nothing from the first moment on', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(400 - Date.now() % 1000)
  const { app, host, open } = await audited(t)
  const token = goodToken({ iss: 'issuer' })
  const pair = await open({ token, speaks: true })
  clock.move(100)
  await app.hybridAuth.revoke(ALICE, LATER)
  const next = goodToken({ iss: 'issuer', iat: inSeconds(0) })
  t.equal((await ask(host, '/me', bearer(token))).status, 401, 'the old one')
  t.equal((await ask(host, '/me', bearer(next))).status, 200, 'the new one')
  await isOpen(t, pair, 'the socket')
  t.equal(askedOf(pair).length, 1)
  pair.peer.say(updateOf(next))
  t.match(await pair.peer.takeFrame('auth_updated'), {})
  clock.move(WITHIN)
  look(pair)
  await isOpen(t, pair, 'the socket after the deadline')
})

t.test('the old token stays refused at handshakes after the socket has a new one', async t => {
  const { app, host, open } = await audited(t)
  const token = goodToken({ iat: old() })
  const { peer } = await open({ token, speaks: true })
  await app.hybridAuth.revoke(ALICE, LATER)
  peer.say(updateOf(goodToken()))
  await peer.takeFrame('auth_updated')
  t.equal((await ask(host, '/me', bearer(token))).status, 401)
})

t.test('a socket of a session ends at the deadline, unless its session is newer when it is read again', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, host, open, session, store } = await audited(t)
  const issuedAt = Date.now() - 10_000
  const userOf = (more: Partial<Identity> = {}): Identity => ({ userId: 'alice', issuedAt, ...more })
  const cookies = [session('same', userOf()), session('newer', userOf()), session('newer-late', userOf()), session('silent', { userId: 'alice' })]
  const pairs = { same: await open({ cookie: cookies[0] ?? '' }), newer: await open({ cookie: cookies[1] ?? '' }), late: await open({ cookie: cookies[2] ?? '' }), silent: await open({ cookie: cookies[3] ?? '' }) }
  const all = Object.values(pairs)
  t.match(await app.hybridAuth.revoke(ALICE, LATER), outcome(4, 0))
  for (const cookie of cookies) t.equal((await ask(host, '/me', withCookie(cookie))).status, 401, 'refused over HTTP at once')
  clock.move(10_000)
  store.put('newer', { user: userOf({ issuedAt: Date.now() }), cookie: {} })
  store.put('newer-late', { user: userOf({ issuedAt: issuedAt + 1 }), cookie: {} })
  clock.move(31_000)
  const reads = store.reads
  look(...all)
  for (const pair of all) await isOpen(t, pair, 'after the reading')
  t.equal(store.reads - reads, 4)
  t.equal(pairs.newer.there.connection.context.user.issuedAt, issuedAt + 20_000)
  clock.move(WITHIN)
  look(...all)
  await isOpen(t, pairs.newer, 'whose session is newer')
  for (const pair of [pairs.same, pairs.late, pairs.silent]) await isRevoked(t, pair, 'whose session is not')
})

t.test('a session that is revoked itself is over for good: its socket ends at the deadline', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, session } = await audited(t)
  const pair = await open({ cookie: session('s1', { userId: 'bob', issuedAt: Date.now() + 1000 }), speaks: true })
  t.match(await app.hybridAuth.revoke({ sessionId: 's1' }, LATER), outcome(1, 0))
  clock.move(31_000)
  look(pair)
  await isOpen(t, pair, 'until then it')
  pair.peer.say(updateOf(goodToken({ sub: 'bob' })))
  t.equal((await pair.peer.end).code, 4011, 'a token is no substitute for a session')
})

t.test('a logout ends the sockets of a session at once, also of one that had until later', async t => {
  const { app, host, open, session, store } = await audited(t)
  const target: RevokeTarget = { sessionId: 's1' }
  const cookie = session('s1', { userId: 'bob' })
  const pair = await open({ cookie })
  await ask(host, '/me', withCookie(cookie))
  await app.hybridAuth.revoke(target, LATER)
  for (let time = 1; time <= 2; time++) await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  await isRevoked(t, pair, 'the socket')
  t.equal(app.hybridAuth.status().revocations, 2, 'a logout is one, however often it is said')
})

t.test('the sooner of two revocations counts, and a later one changes nothing', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, events } = await audited(t)
  const within = (ms: number, reason: string) => ({ mode: { reauthWithin: ms }, reason })
  const token = goodToken({ iat: old(), jti: 'old' })
  const pair = await open({ token, speaks: true })
  t.match(await app.hybridAuth.revoke(ALICE, within(60_000, 'first')), outcome(1, 0))
  t.match(await app.hybridAuth.revoke(ALICE, within(120_000, 'later')), outcome(1, 0))
  await isOpen(t, pair, 'the socket')
  t.same(askedOf(pair), [{ type: 'token_refresh_required', expiresIn: 60 }], 'the later one asks nothing')
  t.match(await app.hybridAuth.revoke({ jti: 'old' }, within(30_000, 'sooner')), outcome(1, 0))
  await isOpen(t, pair, 'the socket after that')
  t.match(askedOf(pair), [{ expiresIn: 60 }, { expiresIn: 30 }])
  clock.move(29_999)
  look(pair)
  await isOpen(t, pair, 'the socket before the sooner deadline')
  clock.move(1)
  look(pair)
  await isRevoked(t, pair, 'the socket')
  t.match(events.filter(({ type }) => type === 'revoked'), [{ reason: 'sooner' }])
})

t.test('a revocation at once does not wait for the deadline of another', async t => {
  const { app, open, events } = await audited(t)
  const pair = await open({ token: goodToken({ iat: old() }), speaks: true })
  await app.hybridAuth.revoke(ALICE, { ...LATER, reason: 'first' })
  t.match(await app.hybridAuth.revoke(ALICE, { reason: 'now' }), outcome(1))
  await isRevoked(t, pair, 'the socket')
  t.match(events.filter(({ type }) => type === 'revoked'), [{ reason: 'now' }])
})

t.test('a new token is asked for again by the next revocation', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const pair = await open({ token: goodToken({ iat: old() }), speaks: true })
  for (let round = 1; round <= 2; round++) {
    await app.hybridAuth.revoke(ALICE, LATER)
    await isOpen(t, pair, `round ${round}`)
    t.equal(askedOf(pair).length, round)
    clock.move(2000)
    pair.peer.say(updateOf(goodToken()))
    await pair.peer.takeFrame('auth_updated')
    clock.move(2000)
  }
  await app.hybridAuth.revoke(ALICE, LATER)
  clock.move(WITHIN)
  look(pair)
  await isRevoked(t, pair, 'the third time it sent none, and')
})

t.test('a token that ends before the deadline ends its socket then', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t, { auth: { expiryGrace: 0 } })
  const pair = await open({ token: goodToken({ iat: old(), exp: inSeconds(30) }), speaks: true })
  await app.hybridAuth.revoke(ALICE, LATER)
  clock.move(30_000)
  look(pair)
  t.same(codeAndReason(await pair.peer.end), { code: 4005, reason: closeReason('RefreshTimeout') })
})

t.test('other permissions do not move the deadline', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const pair = await open({ token: goodToken({ iat: old() }), speaks: true })
  await app.hybridAuth.revoke(ALICE, LATER)
  await app.hybridAuth.setPermissions('alice', ['a'])
  clock.move(WITHIN)
  look(pair)
  t.same(codeAndReason(await pair.peer.end), REVOKED)
})

t.test('a deadline after that of the idle or the old has no say', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t, { auth: { maxConnectionAge: 30_000 } })
  const pair = await open({ token: goodToken({ iat: old() }) })
  await app.hybridAuth.revoke(ALICE, LATER)
  clock.move(30_000)
  look(pair)
  t.equal((await pair.peer.end).code, 4002)
})

t.test('a tenant is asked as its users are, and issuedBefore is the present where none is given', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, host, open } = await audited(t)
  const token = goodToken({ iat: old(), companyId: 'acme' })
  const pair = await open({ token, speaks: true })
  t.match(await app.hybridAuth.revoke({ tenantId: 'acme' }, LATER), outcome(1, 0))
  t.equal((await ask(host, '/me', bearer(token))).status, 401)
  t.equal((await ask(host, '/me', bearer(goodToken({ companyId: 'acme' })))).status, 200)
  pair.peer.say(updateOf(goodToken({ companyId: 'acme' })))
  t.match(await pair.peer.takeFrame('auth_updated'), {})
})

t.test('a token that is revoked by name is replaced by any other of the user', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const token = goodToken({ jti: 'one' })
  const pair = await open({ token, speaks: true })
  t.match(await app.hybridAuth.revoke({ token }, LATER), outcome(1, 0))
  pair.peer.say(updateOf(goodToken({ iat: old() })))
  t.match(await pair.peer.takeFrame('auth_updated'), {})
  clock.move(WITHIN)
  look(pair)
  await isOpen(t, pair, 'the socket')
})
