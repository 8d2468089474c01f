/** Which credentials a revocation kills, and for how long: the index, `issuedBefore`, and the end of it all. */
import t, { type Test } from 'tap'
import type { AuthContext, RevokeOptions, RevokeTarget } from '../lib/index.js'
import { connectionsOf } from '../lib/connection/enforce.js'
import { Registry } from '../lib/connection/registry.js'
import { isAimedAt, isOlder, Revocations, type Revocation } from '../lib/cluster/revocations.js'
import { parseRevoke } from '../lib/cluster/target.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { identifyToken, isJose, isJws, isRespelled, tokenHash } from '../lib/verify/identify.js'
import { build, goodToken, JWT, SECRET } from './helpers.js'
import { DAY, eventually, HOUR, setClock } from './live.js'
import { audited, bearer, isOpen, isRevoked, outcome, untyped, withCookie } from './revoking.js'
import { ask } from './stores.js'

const SWEEP = 30_000
/** A multiple of everything that is rounded to. */
const START = 1_800_000_000_000
const MINUTE = 60_000

let made = 0
const revocationOf = (changes: Partial<Revocation> = {}): Revocation => ({
  id: `r${++made}`, kind: 'token', key: 'k', reason: '', reauthWithin: 0, at: Date.now(), expiresAt: null, ...changes
})

const base = { userId: 'u', role: null, permissions: [], tenantId: 't', user: { userId: 'u' }, via: 'header', issuer: 'i', authenticatedAt: START, expiresAt: null, version: 1 } as const
const tokenContext = (changes: Partial<Extract<AuthContext, { authType: 'jwt' }>> = {}): AuthContext => ({ ...base, authType: 'jwt', claims: {}, tokenId: 'k', ...changes })
const sessionContext = (changes: Partial<Extract<AuthContext, { authType: 'session' }>> = {}): AuthContext => ({ ...base, authType: 'session', issuer: null, sessionId: 's', ...changes })

/** Stops `Date.now()`, which `set` moves; one that costs as little as the clock itself. */
function stopClock (t: Test, start: number): { set: (ms: number) => void } {
  const real = Date.now
  let time = start
  Date.now = () => time
  t.teardown(() => { Date.now = real })
  return { set (ms) { time = ms } }
}

/** The sweep of what is over, when the test wants it rather than every 30 s. */
function sweeper (t: Test): { sweep: () => void, isWaiting: () => boolean } {
  let sweeping: Wheeled | undefined
  const schedule = wheel.schedule.bind(wheel)
  t.intercept(wheel, 'schedule', {
    value (item: Wheeled, ms: number) {
      if (ms === SWEEP && Object.getPrototypeOf(item) === Object.prototype) sweeping = item
      schedule(item, ms)
    },
    configurable: true
  })
  t.teardown(() => { if (sweeping !== undefined) wheel.remove(sweeping) })
  return {
    isWaiting: () => sweeping !== undefined && sweeping.due !== -1,
    sweep () {
      if (sweeping === undefined || sweeping.due === -1) throw new Error('no sweep is waiting')
      wheel.remove(sweeping)
      sweeping.look()
    }
  }
}

t.test('each kind of revocation covers its own credentials, and no others', async t => {
  stopClock(t, START)
  const contexts: Record<string, AuthContext> = {
    token: tokenContext(), other: tokenContext({ tokenId: 'x', userId: 'x', tenantId: null }), session: sessionContext(), otherSession: sessionContext({ sessionId: 'x', tenantId: 'x' })
  }
  const table: Array<[Partial<Revocation>, string[]]> = [
    [{ kind: 'token', key: 'k' }, ['token']], [{ kind: 'token', key: 's' }, []], [{ kind: 'token', key: 'k', issuer: 'i' }, ['token']],
    [{ kind: 'token', key: 'k', issuer: null }, []], [{ kind: 'session', key: 's' }, ['session']], [{ kind: 'session', key: 'k' }, []],
    [{ kind: 'user', key: 'u' }, ['token', 'session', 'otherSession']], [{ kind: 'user', key: 'u', issuer: null }, ['session', 'otherSession']],
    [{ kind: 'user', key: 'u', tenantId: 't' }, ['token', 'session']], [{ kind: 'user', key: 'x', tenantId: null }, ['other']],
    [{ kind: 'tenant', key: 't' }, ['token', 'session']], [{ kind: 'tenant', key: 't', issuer: 'i' }, ['token']],
    [{ kind: 'tenant', key: 't', issuedBefore: START }, ['token', 'session']], [{ kind: 'user', key: 'u', issuedBefore: 0 }, ['token', 'session', 'otherSession']]
  ]
  for (const [changes, covered] of table) {
    const revocations = new Revocations()
    for (const [name, context] of Object.entries(contexts)) t.notOk(revocations.covers(context), name)
    t.ok(revocations.add(revocationOf(changes)))
    t.same(Object.entries(contexts).filter(([, context]) => revocations.covers(context)).map(([name]) => name), covered, JSON.stringify(changes))
  }
})

t.test('a revocation is aimed at a credential of its kind only', async t => {
  const table: Array<[Revocation['kind'], string, AuthContext, boolean]> = [
    ['session', 's', sessionContext(), true], ['session', 's', tokenContext({ tokenId: 's' }), false],
    ['token', 'k', tokenContext(), true], ['token', 'k', sessionContext({ sessionId: 'k' }), false],
    ['user', 'u', sessionContext(), true], ['tenant', 't', tokenContext(), true], ['tenant', 't', tokenContext({ tenantId: null }), false]
  ]
  for (const [kind, key, context, isAimed] of table) t.equal(isAimedAt(revocationOf({ kind, key }), context), isAimed, `${kind} at ${context.authType}`)
  t.same(connectionsOf(new Registry(), revocationOf()), [])
})

t.test('older is compared in whole seconds of iat, and in milliseconds of issuedAt; what does not say when it was issued is older than anything', async t => {
  const S = START / 1000
  const table: Array<[AuthContext, number, boolean]> = [
    [tokenContext({ claims: { iat: S } }), START, false], [tokenContext({ claims: { iat: S } }), START + 999, false],
    [tokenContext({ claims: { iat: S } }), START + 1000, true], [tokenContext({ claims: { iat: S - 1 } }), START, true],
    [tokenContext({ claims: { iat: S + 0.4 } }), START + 500, false], [tokenContext({ claims: { iat: S - 0.1 } }), START, true],
    [tokenContext({ claims: { iat: S + 1 } }), START, false], [tokenContext({ claims: { iat: 0 } }), START, true],
    [tokenContext(), 1, true], [tokenContext({ user: { userId: 'u', issuedAt: START } }), START, true],
    [sessionContext(), 1, true], [sessionContext({ user: { userId: 'u', issuedAt: null } }), 1, true],
    [sessionContext({ user: { userId: 'u', issuedAt: START } }), START, false], [sessionContext({ user: { userId: 'u', issuedAt: START - 1 } }), START, true],
    [sessionContext({ user: { userId: 'u', issuedAt: START + 499 } }), START + 500, true], [sessionContext({ user: { userId: 'u', issuedAt: START + 500 } }), START + 500, false]
  ]
  for (const [context, time, older] of table) t.equal(isOlder(context, time), older, `${JSON.stringify(context)} before ${time}`)
})

t.test('what is known, or over, is not added again', async t => {
  sweeper(t)
  const clock = stopClock(t, START)
  const revocations = new Revocations()
  const one = revocationOf({ expiresAt: START + 1 })
  t.same([revocations.add(one), revocations.add(one), revocations.size], [true, false, 1])
  t.same([revocations.has(one.id), revocations.has('x'), [...revocations.live()]], [true, false, [one]])
  t.notOk(revocations.add(revocationOf({ expiresAt: START })))
  t.notOk(revocations.add(revocationOf({ expiresAt: 0 })))
  t.ok(revocations.covers(tokenContext()))
  clock.set(START + 1)
  t.notOk(revocations.covers(tokenContext()), 'from its end on it kills nothing, swept or not')
  t.equal(revocations.size, 1)
})

t.test('the sweep drops what is over, from every index, and rests when nothing is left to end', async t => {
  const clock = stopClock(t, START)
  const { sweep, isWaiting } = sweeper(t)
  const revocations = new Revocations()
  const ends = [10_000, 10_000, 40_000, 100_000]
  for (const end of ends) {
    for (const kind of ['user', 'session', 'token', 'tenant'] as const) revocations.add(revocationOf({ kind, key: 'same', expiresAt: START + end }))
  }
  const endless = revocationOf({ kind: 'user', key: 'same' })
  revocations.add(endless)
  t.equal(revocations.size, 17)
  const sizes: number[] = []
  for (let at = SWEEP; at <= 5 * SWEEP; at += SWEEP) {
    clock.set(START + at)
    sweep()
    sizes.push(revocations.size)
    if (!isWaiting()) break
  }
  t.same(sizes, [9, 5, 5, 1], 'each within one sweep of its end')
  t.notOk(isWaiting())
  t.ok(revocations.covers(tokenContext({ userId: 'same' })), 'what has no end is still there')
  t.notOk(revocations.covers(tokenContext({ tokenId: 'same' })))
  t.ok(revocations.add(revocationOf({ expiresAt: START + DAY })), 'and the next that ends is swept again')
  t.ok(isWaiting())
})

t.test('the sweep drops nothing before its end, wherever that lies between two sweeps', async t => {
  const clock = stopClock(t, START + 1000)
  const { sweep } = sweeper(t)
  const revocations = new Revocations()
  revocations.add(revocationOf({ expiresAt: START + 2 * SWEEP - 1000 }))
  clock.set(START + SWEEP + 1000)
  t.ok(revocations.covers(tokenContext()))
  sweep()
  t.ok(revocations.covers(tokenContext()), '28 s before its end')
})

t.test('a token that was revoked until its own end does not come back half a minute before it', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(1000 - Date.now() % SWEEP)
  const { sweep } = sweeper(t)
  const { app, host } = await build(t)
  const exp = (Date.now() - 1000 + 2 * SWEEP - 1000) / 1000
  const token = goodToken({ exp, jti: 'one', iat: undefined })
  await app.hybridAuth.revoke({ jti: 'one' }, { expiresAt: exp * 1000 })
  clock.move(SWEEP)
  t.equal((await ask(host, '/me', bearer(token))).status, 401)
  sweep()
  t.equal((await ask(host, '/me', bearer(token))).status, 401, 'after the sweep')
})

t.test('after the clock was set far ahead the sweep costs what there is, and drops what is over', async t => {
  const clock = stopClock(t, START)
  const { sweep, isWaiting } = sweeper(t)
  const revocations = new Revocations()
  for (let at = 0; at < 10; at++) revocations.add(revocationOf({ key: String(at), expiresAt: START + at * DAY + 1 }))
  const late = revocationOf({ key: 'late', expiresAt: START + 40 * 365 * DAY })
  revocations.add(late)
  clock.set(START + 30 * 365 * DAY)
  const started = performance.now()
  sweep()
  t.ok(performance.now() - started < 1000, 'not one turn for each of the 30 million sweeps that were missed')
  t.same([...revocations.live()], [late])
  t.ok(isWaiting())
  clock.set(START + 41 * 365 * DAY)
  sweep()
  t.same([revocations.size, isWaiting()], [0, false])
})

t.test('after the clock was set back nothing is dropped early; after ahead and back it is still freed', async t => {
  const clock = stopClock(t, START)
  const { sweep } = sweeper(t)
  const revocations = new Revocations()
  revocations.add(revocationOf({ expiresAt: START + MINUTE }))
  clock.set(START - HOUR)
  sweep()
  t.ok(revocations.covers(tokenContext()))
  clock.set(START + 2 * MINUTE)
  sweep()
  t.equal(revocations.size, 0)

  revocations.add(revocationOf({ expiresAt: START + 10 * MINUTE }))
  clock.set(START + 365 * DAY)
  sweep()
  t.equal(revocations.size, 0)
  clock.set(START + 20 * MINUTE)
  revocations.add(revocationOf({ expiresAt: START + 21 * MINUTE }))
  clock.set(START + 30 * MINUTE)
  sweep()
  t.equal(revocations.size, 0, 'what was added after the clock was right again')
})

t.test('100 000 revocations: each is found, and dropped, and none costs more for the others', async t => {
  const clock = stopClock(t, START)
  const { sweep } = sweeper(t)
  const [COUNT, FEW] = [100_000, 100]
  const contexts = Array.from({ length: COUNT }, (_, at) => tokenContext({ tokenId: `token-${at}` }))
  const indexOf = (count: number) => {
    const revocations = new Revocations()
    for (let at = 0; at < count; at++) revocations.add(revocationOf({ kind: 'token', key: `token-${at}`, issuer: 'i', expiresAt: START + (1 + at % 10) * SWEEP }))
    return revocations
  }
  const look = (revocations: Revocations) => {
    const started = performance.now()
    const found = contexts.filter(context => revocations.covers(context)).length
    return { found, time: performance.now() - started }
  }
  const small = indexOf(FEW)
  const inFew = look(small)
  const revocations = indexOf(COUNT)
  t.equal(revocations.size, COUNT)
  const inMany = look(revocations)
  t.same([inFew.found, inMany.found], [FEW, COUNT])
  t.ok(inMany.time < 50 * inFew.time + 50, `${inMany.time} ms among ${COUNT}, ${inFew.time} ms among ${FEW}`)
  t.notOk(revocations.covers(tokenContext({ tokenId: `token-${COUNT}` })))
  t.notOk(revocations.covers(tokenContext({ tokenId: 'token-1', issuer: 'x' })))
  const sizes: number[] = []
  for (let at = 1; at <= 10; at++) {
    clock.set(START + at * SWEEP)
    sweep()
    sizes.push(revocations.size)
  }
  t.same(sizes, Array.from({ length: 10 }, (_, at) => COUNT - (at + 1) * COUNT / 10))
  t.same([...revocations.live()], [])
})

t.test('of many revocations of one user those that are over are dropped, and the others stay', async t => {
  const clock = stopClock(t, START)
  const { sweep } = sweeper(t)
  const revocations = new Revocations()
  for (let at = 0; at < 2000; at++) revocations.add(revocationOf({ kind: 'user', key: 'u', expiresAt: START + (at % 2 === 0 ? 1 : HOUR) }))
  clock.set(START + SWEEP)
  sweep()
  t.equal(revocations.size, 1000)
  t.ok(revocations.covers(tokenContext()))
})

interface Lifetime {
  what: string
  target: RevokeTarget
  options?: RevokeOptions
  saw?: Array<number | null>
  retention?: number
  tolerance?: number
  ends: number | null
}
const [EXP, SOON] = [START / 1000 + 86_400, START / 1000 + 300]
const LIFETIMES: Lifetime[] = [
  { what: 'a token', target: { token: goodToken({ exp: EXP }) }, ends: EXP * 1000 + MINUTE },
  { what: 'a token, with tolerance', target: { token: goodToken({ exp: EXP }) }, tolerance: 30, ends: EXP * 1000 + 30_000 + MINUTE },
  { what: 'a token that ends soon: an hour', target: { token: goodToken({ exp: SOON }) }, tolerance: 30, ends: START + HOUR },
  { what: 'a token that is over: an hour', target: { token: goodToken({ exp: 5 }) }, ends: START + HOUR },
  { what: 'a token without end', target: { token: goodToken({ exp: undefined }) }, ends: null },
  { what: 'a token whose end is no number', target: { token: goodToken({ exp: String(EXP) }) }, ends: null },
  { what: 'a token, whatever was seen', target: { token: goodToken({ exp: EXP }) }, saw: [null, START + 99 * DAY], ends: EXP * 1000 + MINUTE },
  { what: 'a given end', target: { userId: 'u' }, options: { expiresAt: START + 5 }, saw: [null], ends: START + 5 },
  { what: 'a given end of a token', target: { token: goodToken({ exp: EXP }) }, options: { expiresAt: START + 5 }, ends: START + 5 },
  { what: 'a user', target: { userId: 'u' }, ends: START + 30 * DAY + MINUTE },
  { what: 'a session', target: { sessionId: 's' }, ends: START + 30 * DAY + MINUTE },
  { what: 'a jti', target: { jti: 'k' }, ends: START + 30 * DAY + MINUTE },
  { what: 'a tenant, kept for an hour', target: { tenantId: 't' }, retention: HOUR, ends: START + HOUR + MINUTE },
  { what: 'a user, with tolerance', target: { userId: 'u' }, retention: HOUR, tolerance: 300, ends: START + HOUR + 300_000 + MINUTE },
  { what: 'a user, where a token lives longer', target: { userId: 'u' }, retention: HOUR, saw: [START + 2 * HOUR, START + 3 * HOUR, START + HOUR], ends: START + 3 * HOUR + MINUTE },
  { what: 'a user, where tokens live shorter', target: { userId: 'u' }, retention: HOUR, saw: [START + 1000], ends: START + HOUR + MINUTE },
  { what: 'a user, where a token has no end', target: { userId: 'u' }, retention: HOUR, saw: [START + 1000, null, START + 2000], ends: null },
  { what: 'a user, issued before', target: { userId: 'u', issuedBefore: START - 1000 }, retention: HOUR, ends: START + HOUR + MINUTE },
  { what: 'a user, issued before a time to come', target: { userId: 'u', issuedBefore: START + DAY }, retention: HOUR, ends: START + DAY + HOUR + MINUTE },
  { what: 'a user, issued before longer than anything is kept', target: { userId: 'u', issuedBefore: 1e11 }, retention: HOUR, ends: START + HOUR + MINUTE },
  { what: 'a user, kept for a second', target: { userId: 'u' }, retention: 1000, ends: START + HOUR },
  { what: 'a user, issued before, where a token lives longer', target: { userId: 'u', issuedBefore: START - DAY }, retention: HOUR, saw: [START + HOUR], ends: START + HOUR + MINUTE }
]

t.test('a revocation lasts until nothing that it kills can be alive', async t => {
  stopClock(t, START)
  for (const { what, target, options, saw = [], retention = 30 * DAY, tolerance = 0, ends } of LIFETIMES) {
    const known = new Revocations()
    for (const expiresAt of saw) known.saw(tokenContext({ expiresAt }))
    known.saw(sessionContext({ expiresAt: null }))
    const { revocation, dryRun } = parseRevoke(target, options, known, { retention, clockTolerance: tolerance, asks: 'none' })
    t.same([revocation.expiresAt, revocation.at, dryRun], [ends, START, false], what)
  }
})

t.test('reauthWithin gives a user or a tenant the present, and nothing else', async t => {
  stopClock(t, START)
  const mode = { reauthWithin: 1000 }
  const table: Array<[RevokeTarget, RevokeOptions | undefined, number | undefined]> = [
    [{ userId: 'u' }, { mode }, START], [{ tenantId: 't' }, { mode }, START], [{ userId: 'u', issuedBefore: 2e11 }, { mode }, 2e11],
    [{ sessionId: 's' }, { mode }, undefined], [{ jti: 'k' }, { mode }, undefined], [{ userId: 'u' }, { mode: 'now' }, undefined], [{ userId: 'u' }, undefined, undefined]
  ]
  for (const [target, options, before] of table) {
    const { revocation } = parseRevoke(target, options, new Revocations(), { retention: HOUR, clockTolerance: 0, asks: 'none' })
    t.equal(revocation.issuedBefore, before, JSON.stringify({ target, options }))
    t.equal(revocation.reauthWithin, options?.mode === mode ? 1000 : 0)
  }
})

t.test('a token is named by jti and iss, or else by the hash of its first two parts', async t => {
  const named = goodToken({ jti: 'one', iss: 'issuer', exp: 5 })
  t.same(identifyToken(named), { tokenId: 'one', issuer: 'issuer', expiresAt: 5000 })
  const plain = goodToken({ jti: undefined, exp: undefined })
  const [header = '', payload = ''] = plain.split('.')
  t.same(identifyToken(plain), { tokenId: tokenHash(header, payload), issuer: null, expiresAt: null })
  t.same(identifyToken(`${header}.${payload}.AAAA`)?.tokenId, tokenHash(header, payload), 'whatever its signature')
  t.match(identifyToken(goodToken({ jti: 5, iss: 5, exp: '5' })), { tokenId: /^sha256:/, issuer: null, expiresAt: null })
})

t.test('retention: a revocation of a user ends after it, and the index is empty again', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { sweep } = sweeper(t)
  const { app, host } = await build(t, { auth: { revocations: { retention: HOUR }, jwt: { ...JWT, clockTolerance: 10 } } })
  const status = async (exp = Date.now() / 1000 + 100) => (await ask(host, '/me', bearer(goodToken({ exp, iat: undefined })))).status
  await app.hybridAuth.revoke({ userId: 'alice' })
  t.equal(await status(), 401)
  clock.move(HOUR + 10_000 + MINUTE - 1)
  t.equal(await status(), 401)
  clock.move(1)
  t.equal(await status(), 200)
  t.equal(app.hybridAuth.status().revocations, 1)
  clock.move(SWEEP)
  sweep()
  t.equal(app.hybridAuth.status().revocations, 0)

  await status(Date.now() / 1000 + 5 * 3600)
  await app.hybridAuth.revoke({ userId: 'alice' })
  clock.move(5 * HOUR)
  t.equal(await status(), 401, 'as long as the token that was seen')
})

t.test('where tokens need no end, and one was seen, a revocation of a user has none', async t => {
  const clock = setClock(t)
  const { app, host } = await build(t, { auth: { revocations: { retention: 1000 }, jwt: { ...JWT, allowNoExpiry: true } } })
  const token = goodToken({ exp: undefined, iat: undefined })
  t.equal((await ask(host, '/me', bearer(token))).status, 200)
  await app.hybridAuth.revoke({ userId: 'alice' })
  const other = goodToken({ sub: 'bob', exp: undefined, iat: undefined })
  await app.hybridAuth.revoke({ token: other })
  clock.move(10_000 * DAY)
  for (const one of [token, other]) t.equal((await ask(host, '/me', bearer(one))).status, 401)
  t.equal(app.hybridAuth.status().revocations, 2)
})

t.test('a revocation cannot be over before it begins', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t)
  const pair = await open()
  for (const expiresAt of [0, Date.now() - 1, Date.now()]) {
    const error = await app.hybridAuth.revoke({ userId: 'alice' }, { expiresAt }).then(() => null, (one: unknown) => one)
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /^Invalid option options\.expiresAt: / })
  }
  t.equal(app.hybridAuth.status().revocations, 0)
  await isOpen(t, pair, 'the socket')
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }, { expiresAt: Date.now() + 1 }), outcome(1))
  await isRevoked(t, pair, 'the socket')
})

t.test('sessions and sockets that are older than the retention are ended by issuedBefore all the same', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, session } = await audited(t, { auth: { revocations: { retention: HOUR } } })
  const pair = await open({ cookie: session('s1', { userId: 'bob', issuedAt: Date.now() - 3 * HOUR }) })
  const target: RevokeTarget = { userId: 'bob', issuedBefore: Date.now() - 2 * HOUR }
  t.match(await app.hybridAuth.revoke(target, { dryRun: true }), outcome(1, 0))
  t.match(await app.hybridAuth.revoke(target), outcome(1), 'as dryRun said')
  await isRevoked(t, pair, 'the socket')
})

t.test('issuedBefore: older tokens are refused and their sockets closed, newer pass, and a token without iat is older', async t => {
  const { app, host, open } = await audited(t)
  const S = Math.floor(Date.now() / 1000) - 100
  const cut = S * 1000 + 500
  const table: Array<[string, number | undefined, boolean]> = [
    ['a second older', S - 1, true], ['an hour older', S - 3600, true], ['without iat', undefined, true],
    ['of the very second, and not open then', S, false], ['a second newer', S + 1, false], ['of now', S + 100, false]
  ]
  const before = await Promise.all(table.map(async ([, iat]) => open({ token: goodToken({ iat }) })))
  t.match(await app.hybridAuth.revoke({ userId: 'alice', issuedBefore: cut }), outcome(3))
  for (const [index, [what, iat, isOld]] of table.entries()) {
    const pair = before[index]
    if (pair === undefined) throw new Error('there is one for each')
    await (isOld ? isRevoked : isOpen)(t, pair, what)
    t.equal((await ask(host, '/me', bearer(goodToken({ iat })))).status, isOld ? 401 : 200, `${what}, a new token`)
  }
})

t.test('issuedBefore: sessions go by issuedAt of session.user', async t => {
  const { app, host, open, session } = await audited(t)
  const cut = Date.now() - 100_000
  const cookies = {
    old: session('old', { userId: 'bob', issuedAt: cut - 5000 }), fresh: session('fresh', { userId: 'bob', issuedAt: cut + 5000 }),
    silent: session('silent', { userId: 'bob' }), nothing: session('nothing', { userId: 'bob', issuedAt: null })
  }
  const pairs = { old: await open({ cookie: cookies.old }), fresh: await open({ cookie: cookies.fresh }), silent: await open({ cookie: cookies.silent }), nothing: await open({ cookie: cookies.nothing }) }
  t.match(await app.hybridAuth.revoke({ userId: 'bob', issuedBefore: cut }), outcome(3))
  for (const name of ['old', 'silent', 'nothing'] as const) {
    await isRevoked(t, pairs[name], name)
    t.equal((await ask(host, '/me', withCookie(cookies[name]))).status, 401, name)
  }
  await isOpen(t, pairs.fresh, 'the newer one')
  t.equal((await ask(host, '/me', withCookie(cookies.fresh))).status, 200)
})

t.test('a token of the very second of issuedBefore: open, it ends and cannot come back; issued after it, it is good', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(500 - Date.now() % 1000)
  const { app, host, open, events } = await audited(t)
  const token = goodToken({ jti: 'open', iss: 'issuer' })
  const pairs = [await open({ token }), await open({ token })]
  t.match(await app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() }, { reason: 'new password' }), outcome(2))
  for (const pair of pairs) await isRevoked(t, pair, 'the socket')
  t.equal((await ask(host, '/me', bearer(token))).status, 401, 'its token')
  t.equal((await ask(host, '/me', bearer(goodToken({ iss: 'issuer' })))).status, 200, 'one of the same second')
  t.equal((await ask(host, '/me', bearer(goodToken({ jti: 'open', iss: 'other' })))).status, 200, 'the same jti of another issuer')
  t.same(events.filter(({ type }) => type === 'revoked').map(event => 'reason' in event ? event.reason : ''), ['new password', 'new password'])
})

t.test('a token without end that is open in the second of issuedBefore is revoked without end', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, host, open } = await audited(t, { auth: { jwt: { ...JWT, allowNoExpiry: true } } })
  const token = goodToken({ exp: undefined })
  const pair = await open({ token })
  await app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() })
  await isRevoked(t, pair, 'the socket')
  clock.move(10_000 * DAY)
  t.equal((await ask(host, '/me', bearer(token))).status, 401)
})

t.test('a session of the very second of issuedBefore: open, it ends and cannot come back', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(500 - Date.now() % 1000)
  const { app, host, open, session } = await audited(t)
  const cookie = session('s1', { userId: 'bob', issuedAt: Date.now() - 300 })
  const pair = await open({ cookie })
  t.match(await app.hybridAuth.revoke({ userId: 'bob', issuedBefore: Date.now() }), outcome(1))
  await isRevoked(t, pair, 'the socket')
  t.equal((await ask(host, '/me', withCookie(cookie))).status, 401, 'its session, which is 300 ms older')
})

t.test('a socket that was opened after issuedBefore with a token of its second stays', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(500 - Date.now() % 1000)
  const { app, open } = await audited(t)
  const before = Date.now()
  clock.move(1)
  const pair = await open()
  t.match(await app.hybridAuth.revoke({ userId: 'alice', issuedBefore: before }), outcome(0))
  await isOpen(t, pair, 'the socket')
})

t.test('bad revocations options are refused at registration, by name', async t => {
  const table: Array<[unknown, string]> = [
    [null, 'revocations'], ['4711', 'revocations'], [{ retentions: 4711 }, 'revocations.retentions'], [{ retention: NaN }, 'revocations.retention'],
    [{ retention: 999 }, 'revocations.retention'], [{ retention: -4711 }, 'revocations.retention'], [{ retention: '4711' }, 'revocations.retention'],
    [{ retention: Infinity }, 'revocations.retention'], [{ retention: 4001 * DAY }, 'revocations.retention'], [{ retention: null }, 'revocations.retention']
  ]
  for (const [revocations, name] of table) {
    const error = await build(t, { auth: { revocations: untyped(revocations) } }).then(() => null, (one: unknown) => one)
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, name)
    t.ok(error instanceof Error && error.message.startsWith(`Invalid option ${name}:`), String(error))
    t.notOk(String(error).includes('4711'), name)
  }
  for (const revocations of [undefined, {}, { retention: undefined }, { retention: 1000 }, { retention: 4000 * DAY }]) await build(t, { auth: { revocations } })
})

t.test('an option that is a text where an object belongs is refused without being quoted: it may be the secret', async t => {
  for (const name of ['jwt', 'session', 'limits', 'credentials', 'drain', 'heartbeat', 'closeCodes', 'revocations']) {
    const error = await build(t, { auth: { [name]: SECRET } }).then(() => null, (one: unknown) => one)
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, name)
    t.ok(error instanceof Error && error.message.startsWith(`Invalid option ${name}:`) && !error.message.includes(SECRET), String(error))
  }
})

t.test('bad cluster options are refused at registration, by name', async t => {
  for (const cluster of [null, 'redis', {}, { join: true }, () => {}]) {
    const error = await build(t, { auth: { cluster: untyped(cluster) } }).then(() => null, (one: unknown) => one)
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
    t.ok(error instanceof Error && error.message.startsWith('Invalid option cluster:'), String(error))
  }
})

t.test('a closed application leaves no sweep behind', async t => {
  const { isWaiting } = sweeper(t)
  const { app } = await build(t)
  await app.hybridAuth.revoke({ userId: 'alice' })
  t.ok(isWaiting())
  await app.close()
  await eventually('the sweep is taken out', () => !isWaiting())
})

t.test('what begins with a header of JOSE is told from every other token, however many headers there are, and however long', t => {
  const encoded = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  for (let n = 0; n < 200; n++) {
    const token = `${encoded({ alg: 'HS256', n })}.e30.AA`
    t.ok(isJws(token) && isJws(token) && isJose(`${token}.AA.AA`) && !isJws(`${token}.AA.AA`) && !isRespelled(token) && isRespelled(`${token}=`))
  }
  const long = encoded({ alg: 'HS256', kid: 'x'.repeat(2000) })
  t.ok(isJws(`${long}.e30.AA`) && isJws(`${long}.e30.AA`))
  for (const other of ['', '.', '..', 'a.b.c', `.${long}.AA`, `${encoded('text')}.e30.AA`, `${encoded(1)}.e30.AA`, long, 'eyJ.e30.AA', ' .e30.AA']) t.notOk(isJose(other), other.slice(0, 20))
  t.end()
})
