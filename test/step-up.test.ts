/** Rules that ask how, and how lately, somebody has logged in (RFC 9470), and messages that wait until he has again. */
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import type { AuthContext, Identity, RequirementRule, RouteRule, Rule } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { challengeOf, compileStepUp } from '../lib/policy/step-up.js'
import { SUBPROTOCOL } from '../lib/protocol.js'
import { build, goodToken, inSeconds, SESSION, upgrade } from './helpers.js'
import { eventually, lookNow, Peer, setClock, type Dial, type End, type LiveOptions, type Pair } from './live.js'
import { audited, bearer, untyped, updateOf, withCookie, type Audited } from './revoking.js'
import { ask, codeOf, deferred, type Deferred } from './stores.js'

const CODE = 'FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION'
const SHORT = 'insufficient_user_authentication'
const MESSAGE = 'This needs the user to authenticate again'
const FORBIDDEN = { type: 'error', code: 'forbidden', message: 'This message is not allowed', action: 'none' }
/** What is told of a rule that asks for `mfa`. */
const NEEDS_MFA = { type: 'error', code: SHORT, message: MESSAGE, action: 'refresh', acr_values: 'mfa' }
/** Nothing that it could send would help. */
const REFUSED_FOR_MFA = { ...NEEDS_MFA, action: 'none' }
const PATIENCE = 120_000
const MINUTE = 60_000
const weak = (changes: Record<string, unknown> = {}) => goodToken({ acr: 'pwd', ...changes })
const strong = (changes: Record<string, unknown> = {}) => goodToken({ acr: 'mfa', auth_time: inSeconds(0), ...changes })

const reasonOf = ({ reason }: Pick<End, 'reason'>): unknown => JSON.parse(reason)

/** Rules, credentials that meet them, and others that do not. */
async function statusOf (t: Test, rule: RequirementRule): Promise<(who: Record<string, unknown> | Identity) => Promise<number>> {
  const { host, login } = await build(t, { routes (app) { app.get('/asked', { auth: rule }, async () => 'ok') } })
  return async who => {
    const init = 'userId' in who ? withCookie(await login(untyped(who))) : bearer(goodToken(who))
    return (await ask(host, '/asked', init)).status
  }
}

t.test('a rule with `acr` asks for one of its values, exactly, and fails where none is claimed', async t => {
  for (const acr of ['mfa', ['mfa'], ['urn:x:gold', 'mfa']]) {
    const status = await statusOf(t, { acr })
    t.equal(await status({ acr: 'mfa' }), 200)
    for (const other of [undefined, null, '', 'MFA', 'mfa ', 'mf', 'pwd', ['mfa'], { mfa: true }, 1, true, 'mfa pwd']) t.equal(await status({ acr: other }), 401, JSON.stringify(other))
    t.equal(await status({ userId: 'bob', acr: 'mfa' }), 200, 'a session')
    for (const other of [undefined, null, 'pwd']) t.equal(await status({ userId: 'bob', acr: other }), 401, `a session with ${String(other)}`)
    t.equal(await status({ userId: 'bob', claims: { acr: 'mfa' } }), 401, 'a session has no claims')
  }
})

t.test('a rule with `maxAuthAge` counts from the login, to the millisecond, and not from when the token was made', async t => {
  const clock = setClock(t)
  clock.freeze()
  clock.move(1000 - Date.now() % 1000)
  const status = await statusOf(t, { maxAuthAge: MINUTE })
  for (const [age, expected] of [[0, 200], [59, 200], [60, 200], [61, 401], [3600, 401]] as const) t.equal(await status({ auth_time: inSeconds(-age) }), expected, `${age} s ago`)
  for (const [age, expected] of [[0, 200], [MINUTE, 200], [MINUTE + 1, 401]] as const) t.equal(await status({ userId: 'bob', issuedAt: Date.now() - age }), expected, `a session, ${age} ms ago`)
  t.equal(await status({ iat: inSeconds(0) }), 401, 'a new token of an old login')
  for (const other of [null, '', String(inSeconds(0)), [inSeconds(0)], { at: 1 }, true, 0, -1, -1e300]) t.equal(await status({ auth_time: other }), 401, JSON.stringify(other))
  for (const other of [undefined, null, 0, -1]) t.equal(await status({ userId: 'bob', issuedAt: other }), 401, `a session with ${String(other)}`)
  t.equal(await status({ auth_time: inSeconds(0) - 59.5 }), 200, 'parts of a second count')
})

t.test('a login that lies ahead is none, but for clocks that differ a little', async t => {
  const clock = setClock(t)
  clock.freeze()
  const status = await statusOf(t, { maxAuthAge: MINUTE })
  t.equal(await status({ auth_time: inSeconds(2) }), 200, 'a little ahead')
  t.equal(await status({ userId: 'bob', issuedAt: Date.now() + 2000 }), 200, 'a little ahead')
  for (const [what, seconds] of [['in milliseconds', Date.now()], ['a year', inSeconds(31_536_000)], ['an hour', inSeconds(3600)], ['1e300', 1e300]] as const) {
    t.equal(await status({ auth_time: seconds }), 401, `a token, ${what} ahead`)
    t.equal(await status({ userId: 'bob', issuedAt: seconds * 1000 }), 401, `a session, ${what} ahead`)
  }
  const check = compileStepUp({ maxAuthAge: MINUTE })
  for (const since of [Infinity, -Infinity, NaN]) {
    t.ok(check?.(untyped({ authType: 'jwt', user: {}, claims: { auth_time: since } })), String(since))
    t.ok(check?.(untyped({ authType: 'session', user: { issuedAt: since } })), String(since))
  }
})

t.test('both together must hold, beside everything else that a rule asks', async t => {
  const status = await statusOf(t, { acr: ['mfa', 'key'], maxAuthAge: MINUTE, role: 'agent', check: async auth => auth.tenantId === 'acme' })
  const good = { acr: 'key', auth_time: inSeconds(-5), role: 'agent', companyId: 'acme' }
  t.equal(await status(good), 200)
  t.equal(await status({ ...good, acr: 'pwd' }), 401)
  t.equal(await status({ ...good, auth_time: inSeconds(-500) }), 401)
  t.equal(await status({ ...good, role: 'other' }), 403, 'whom another login would not help is not sent to one')
  t.equal(await status({ ...good, acr: 'pwd', role: 'other' }), 403)
  t.equal(await status({ ...good, acr: 'pwd', companyId: 'other' }), 403)
})

t.test('what a mapper says of the login comes before the claim', async t => {
  const { host } = await build(t, {
    auth: { jwt: { key: 'a secret for tests, 32 bytes or more', algorithms: ['HS256'], user: ({ sub = '', amr }) => ({ userId: sub, acr: Array.isArray(amr) && amr.includes('otp') ? 'mfa' : null }) } },
    routes (app) { app.get('/asked', { auth: { acr: 'mfa' } }, async () => 'ok') }
  })
  t.equal((await ask(host, '/asked', bearer(goodToken({ amr: ['otp'], acr: 'pwd' })))).status, 200)
  t.equal((await ask(host, '/asked', bearer(goodToken({ amr: ['pwd'] })))).status, 401)
  t.equal((await ask(host, '/asked', bearer(goodToken({ amr: ['pwd'], acr: 'mfa' })))).status, 200, 'where it says nothing, the claim counts')
})

t.test('a rule without either asks nothing of the login', t => {
  t.equal(compileStepUp({}), null)
  t.same(challengeOf(untyped({ acr: [], maxAuthAge: null })), {})
  t.end()
})

/** The challenge of RFC 9470 §3, and what the frame says of the same. */
const CHALLENGES: Array<[RequirementRule, string, object]> = [
  [{ acr: 'mfa' }, ', acr_values="mfa"', { acr_values: 'mfa' }],
  [{ acr: ['urn:x:gold', 'mfa'] }, ', acr_values="urn:x:gold mfa"', { acr_values: 'urn:x:gold mfa' }],
  [{ maxAuthAge: 300_000 }, ', max_age="300"', { max_age: 300 }],
  [{ maxAuthAge: 1999 }, ', max_age="1"', { max_age: 1 }],
  [{ acr: ['a', 'b'], maxAuthAge: 5000 }, ', acr_values="a b", max_age="5"', { acr_values: 'a b', max_age: 5 }]
]

t.test('over HTTP the challenge says what is needed: on routes, by require(), of tokens and of sessions', async t => {
  for (const [rule, rest] of CHALLENGES) {
    const { host, login } = await build(t, {
      routes (app) {
        app.get('/asked', { auth: rule }, async () => 'ok')
        app.get('/required', { preHandler: app.hybridAuth.require(rule) }, async () => 'ok')
        app.get('/both', { auth: true, preHandler: app.hybridAuth.require(rule) }, async () => 'ok')
        app.get('/late', { auth: { ...rule, check: async () => true } }, async () => 'ok')
      }
    })
    const cookie = await login({ userId: 'bob' })
    for (const path of ['/asked', '/required', '/both', '/late']) {
      for (const init of [bearer(goodToken()), withCookie(cookie)]) {
        const { status, headers, body } = await ask(host, path, init)
        t.equal(status, 401, path)
        t.equal(headers.get('www-authenticate'), `Bearer realm="fastify-hybrid-auth", error="${SHORT}"${rest}`)
        t.equal(headers.get('cache-control'), 'no-store')
        t.equal(codeOf(body), CODE)
      }
    }
  }
})

t.test('of two rules, the answer names what the one that refused needs, and nothing where it is something else that is lacking', async t => {
  const rules: Rule[] = [{ acr: 'a' }, { acr: 'b', maxAuthAge: 1000 }, { role: 'nobody' }]
  const { host } = await build(t, {
    routes (app) {
      app.get('/asked', { auth: rules[0] ?? false, preHandler: [app.hybridAuth.require(rules[1]), app.hybridAuth.require(rules[2])] }, async () => 'ok')
    }
  })
  const challenge = async (claims: object) => (await ask(host, '/asked', bearer(goodToken({ ...claims })))).headers.get('www-authenticate')
  t.match(await challenge({}), /, acr_values="a"$/)
  t.match(await challenge({ acr: 'a' }), /, acr_values="b", max_age="1"$/)
})

t.test('an upgrade is refused by the same answer, or by a frame and a close that say it', async t => {
  for (const [rule, rest, told] of CHALLENGES) {
    const { host, handled } = await build(t, { routes (app) { app.get('/asked', { websocket: true, auth: rule }, () => { t.fail('a handler ran') }) } })
    const byStatus = await upgrade(t, host, { path: '/asked', ...bearer(goodToken()) })
    t.same([byStatus.status, byStatus.headers['www-authenticate'], codeOf(byStatus.body)], [401, `Bearer realm="fastify-hybrid-auth", error="${SHORT}"${rest}`, CODE])
    const byClose = await upgrade(t, host, { path: '/asked', protocols: [SUBPROTOCOL], ...bearer(goodToken()) })
    t.same(byClose.context, { type: 'error', code: SHORT, message: MESSAGE, action: 'stop', ...told }, 'the frame comes before the close')
    t.equal(byClose.code, 4007)
    t.match(reasonOf(byClose), { code: SHORT, retryAfterMs: 0 })
    t.ok(Buffer.byteLength(byClose.reason) <= 123)
    t.equal(handled(), 0)
  }
})

t.test('who speaks another protocol is closed without a frame', async t => {
  const { host } = await build(t, { auth: { refuse: 'close' }, routes (app) { app.get('/asked', { websocket: true, auth: { acr: 'mfa' } }, () => {}) } })
  for (const protocols of [['chat.v2'], []]) {
    const { context, code, reason } = await upgrade(t, host, { path: '/asked', protocols, ...bearer(goodToken()) })
    t.equal(context, undefined)
    t.equal(code, 4007)
    t.match(reasonOf({ reason }), { code: SHORT })
  }
})

async function firstMessage (t: Test, protocols: string[], token: string, rule: RouteRule): Promise<Peer> {
  const { host } = await build(t, { routes (app) { app.get('/first', { websocket: true, auth: { ...rule, firstMessage: true } }, socket => { socket.send('handled') }) } })
  const socket = new WebSocket(`ws://${host}/first`, protocols)
  t.teardown(() => { socket.terminate() })
  const peer = new Peer(socket)
  await new Promise(resolve => { socket.on('open', resolve) })
  peer.say({ type: 'auth', token })
  return peer
}

t.test('so is a first message', async t => {
  for (const rule of [{ acr: 'mfa' }, { acr: 'mfa', check: async () => true }]) {
    for (const protocols of [[SUBPROTOCOL], []]) {
      const peer = await firstMessage(t, protocols, weak(), rule)
      const end = await peer.end
      t.same(peer.texts.map(text => JSON.parse(text) as unknown), [{ ...NEEDS_MFA, action: 'stop' }])
      t.equal(end.code, 4007)
      t.match(reasonOf(end), { code: SHORT })
      t.ok(Buffer.byteLength(end.reason) <= 123)
      const good = await firstMessage(t, protocols, strong(), rule)
      t.equal(await good.take() === null, false)
      await good.until(() => good.texts.includes('handled'))
    }
  }
  const foreign = await firstMessage(t, ['chat.v2'], weak(), { acr: 'mfa' })
  t.equal((await foreign.end).code, 4007)
  t.same(foreign.texts, [], 'a socket of another protocol gets no frame of ours')
})

/** Messages that begin with `!` need `mfa`, those with `?` a verdict that is waited for. */
interface Held extends Audited, Pair {
  verdicts: Array<Deferred<boolean>>
}

const RULES = { weak: {}, strong: { acr: 'mfa' }, fresh: { maxAuthAge: MINUTE }, no: { role: 'nobody' } }
const text = (type: string, n: number | string = 0): string => JSON.stringify({ type, n })

async function holding (t: Test, { rule = {}, auth, handler, ...how }: Dial & { rule?: RouteRule } & Pick<LiveOptions, 'auth' | 'handler'> = {}): Promise<Held> {
  const verdicts: Array<Deferred<boolean>> = []
  const late = () => {
    const one = deferred<boolean>()
    verdicts.push(one)
    return one.promise
  }
  const server = await audited(t, {
    route: { messages: { ...RULES, late, lateStrong: { acr: 'mfa', check: late } }, ...rule },
    ...(auth !== undefined && { auth }), ...(handler !== undefined && { handler })
  })
  return { ...server, ...await server.open({ token: weak(), speaks: true, ...how }), verdicts }
}

/** What was said before has been read and judged. */
async function judged ({ peer }: Pair): Promise<void> {
  const heard = new Promise(resolve => { peer.socket.once('pong', resolve) })
  peer.socket.ping()
  await heard
}

function demandOf ({ there }: Pair): object | null {
  if (!(there.connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  return there.connection.demand
}

function guarded ({ there }: Pair): GuardedConnection {
  if (!(there.connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  return there.connection
}

t.test('a message that needs another login waits for it, those behind it wait as well, and then all come in order', async t => {
  const held = await holding(t)
  const { peer, there, types } = held
  peer.say(text('weak', 1))
  peer.say(text('strong', 2))
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  for (const n of [3, 4]) peer.say(text('weak', n))
  peer.say(text('no', 5))
  peer.say(text('strong', 6))
  await judged(held)
  t.same(there.received, [text('weak', 1)])
  peer.say(updateOf(strong()))
  await peer.takeFrame('auth_updated')
  await peer.until(() => peer.texts.includes(text('strong', 6)))
  t.same(there.received, [text('weak', 1), text('strong', 2), text('weak', 3), text('weak', 4), text('strong', 6)])
  t.same(peer.framesOf('error'), [NEEDS_MFA, FORBIDDEN])
  t.equal(types().filter(type => type === 'message_refused').length, 1, 'only what was refused is told')
  t.ok(peer.texts.findIndex(one => one.includes('auth_updated')) < peer.texts.indexOf(text('strong', 2)), 'the answer to the token comes first')
})

t.test('each demand is named as its rule has it', async t => {
  const { peer } = await holding(t, { rule: { messages: { a: { acr: ['x', 'y'] }, b: { maxAuthAge: 90_000 }, c: { acr: 'z', maxAuthAge: 1000 } } } })
  for (const [type, needs, token] of [
    ['a', { acr_values: 'x y' }, goodToken({ acr: 'y' })], ['b', { max_age: 90 }, goodToken({ auth_time: inSeconds(0) })], ['c', { acr_values: 'z', max_age: 1 }, goodToken({ acr: 'z', auth_time: inSeconds(0) })]
  ] as const) {
    peer.say(text(type))
    t.same(await peer.takeFrame('error'), { type: 'error', code: SHORT, message: MESSAGE, action: 'refresh', ...needs })
    peer.say(updateOf(token))
    t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
    t.ok(await peer.takeFrame(type))
  }
})

t.test('a token that is not enough does not let it through, nor do one that is refused and other permissions', async t => {
  const held = await holding(t)
  const { app, peer, there } = held
  peer.say(text('strong'))
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  peer.say(updateOf(weak()))
  await peer.takeFrame('auth_updated')
  t.same(await peer.takeFrame('error'), NEEDS_MFA, 'what is needed is said again')
  peer.say(updateOf('garbage'))
  t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  await app.hybridAuth.setPermissions('alice', ['all'])
  await judged(held)
  t.same(there.received, [])
  t.ok(demandOf(held), 'it still waits')
  peer.say(updateOf(strong()))
  await peer.until(() => there.received.length > 0 && peer.texts.includes(text('strong')))
  t.same(there.received, [text('strong')])
})

t.test('an asynchronous rule and the wish for another login go together', async t => {
  const held = await holding(t)
  const { peer, there, verdicts } = held
  peer.say(text('lateStrong'))
  peer.say(text('weak'))
  await eventually('the rule is asked', () => verdicts.length === 1)
  verdicts[0]?.resolve(true)
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  peer.say(updateOf(strong()))
  await eventually('it is asked again', () => verdicts.length === 2)
  t.same(there.received, [])
  verdicts[1]?.resolve(true)
  await peer.until(() => peer.texts.includes(text('weak')))
  t.same(there.received, [text('lateStrong'), text('weak')])
})

t.test('a token that came while the verdict was waited for is what the message is judged by', async t => {
  const { peer, there, verdicts } = await holding(t)
  peer.say(text('lateStrong'))
  await eventually('the rule is asked', () => verdicts.length === 1)
  peer.say(updateOf(strong()))
  await peer.takeFrame('auth_updated')
  verdicts[0]?.resolve(true)
  await eventually('it is asked again', () => verdicts.length === 2)
  verdicts[1]?.resolve(true)
  await peer.until(() => peer.texts.includes(text('lateStrong')))
  t.same(there.received, [text('lateStrong')])
  t.same(peer.framesOf('error'), [])
})

t.test('after two minutes it is refused, and those behind it are judged', async t => {
  const clock = setClock(t)
  clock.freeze()
  const held = await holding(t)
  const { peer, there, types } = held
  peer.say(text('strong', 1))
  peer.say(text('weak', 2))
  peer.say(text('no', 3))
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  await judged(held)
  clock.move(PATIENCE - 1)
  lookNow(there.connection)
  await judged(held)
  t.same(there.received, [])
  clock.move(1)
  lookNow(there.connection)
  t.same(await peer.takeFrame('error'), FORBIDDEN)
  t.same(await peer.takeFrame('error'), FORBIDDEN)
  t.same(there.received, [text('weak', 2)])
  t.equal(types().filter(type => type === 'message_refused').length, 2)
  peer.say(updateOf(strong()))
  await peer.takeFrame('auth_updated')
  t.same(there.received, [text('weak', 2)], 'what was refused does not come back')
  t.ok(await peer.echoed(text('strong', 4)))
})

t.test('the two minutes are those since it was said first, however many tokens that are not enough come meanwhile', async t => {
  const clock = setClock(t)
  clock.freeze()
  const held = await holding(t)
  const { peer, there } = held
  peer.say(text('strong'))
  await peer.takeFrame('error')
  clock.move(PATIENCE - 1000)
  peer.say(updateOf(weak()))
  await peer.takeFrame('auth_updated')
  await judged(held)
  t.ok(demandOf(held))
  clock.move(1000)
  lookNow(there.connection)
  await judged(held)
  t.equal(demandOf(held), null)
})

t.test('each message has its own two minutes', async t => {
  const clock = setClock(t)
  clock.freeze()
  const held = await holding(t, { token: weak({ exp: inSeconds(900) }) })
  const { peer, there } = held
  for (const token of [strong({ exp: inSeconds(600) }), strong({ exp: inSeconds(900) })]) {
    peer.say(text('strong'))
    t.same(await peer.takeFrame('error'), NEEDS_MFA)
    clock.move(PATIENCE - 1)
    lookNow(there.connection)
    await judged(held)
    t.ok(demandOf(held), 'it waits')
    peer.say(updateOf(token))
    await peer.takeFrame('auth_updated')
    peer.say(updateOf(weak({ exp: inSeconds(900) })))
    await peer.takeFrame('auth_updated')
  }
})

t.test('the wheel comes round for it by itself', async t => {
  const held = await holding(t)
  const { peer, there } = held
  const clock = setClock(t)
  peer.say(text('strong'))
  await peer.takeFrame('error')
  clock.move(PATIENCE)
  await eventually('it is given up', () => { lookNow(there.connection); return demandOf(held) === null })
})

t.test('32 frames or 64 KiB behind it are more than may wait: it is refused, so that a token can still be read', async t => {
  for (const [what, behind] of [['frames', Array.from({ length: 32 }, (_, n) => text('weak', n))], ['bytes', [text('weak', 'x'.repeat(65_536))]]] as const) {
    const held = await holding(t)
    const { peer, there } = held
    peer.say(text('strong'))
    t.same(await peer.takeFrame('error'), NEEDS_MFA)
    const before = behind.slice(0, -1)
    for (const one of before) peer.say(one)
    await judged(held)
    t.same(there.received, [], `${what}: one less may wait`)
    peer.say(behind.at(-1))
    t.same(await peer.takeFrame('error'), FORBIDDEN, what)
    await peer.until(() => there.received.length === behind.length)
    t.same(there.received, behind)
    peer.say(updateOf(strong()))
    t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
    t.ok(await peer.echoed(text('strong', 'later')))
  }
})

t.test('however many messages that need another login are said, no more than the bound waits, and a token is read', async t => {
  const held = await holding(t)
  const { peer, there } = held
  const connection = guarded(held)
  let most = 0
  for (let n = 0; n < 31; n++) peer.say(text('strong', n))
  for (let n = 0; n < 40; n++) {
    peer.say(text('strong', 'x'.repeat(60_000)))
    await judged(held)
    most = Math.max(most, connection.heldBytes)
  }
  t.ok(most <= 2 * 65_536, `${most} bytes waited`)
  t.ok((connection.held?.length ?? 0) <= 32)
  peer.say(updateOf(strong()))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  await eventually('what had waited comes', () => connection.held === null)
  t.ok(there.received.length > 0)
  t.ok(await peer.echoed(text('strong', 'last')))
})

t.test('a message that turns out to need another login while the socket is held back does not keep the token from being read', async t => {
  const held = await holding(t)
  const { peer, there, verdicts } = held
  peer.say(text('lateStrong', 'first'))
  await eventually('the rule is asked', () => verdicts.length === 1)
  for (let n = 0; n < 40; n++) peer.say(text('weak', n))
  await eventually('the socket is held back', () => there.socket.isPaused)
  verdicts[0]?.resolve(true)
  t.same(await peer.takeFrame('error'), REFUSED_FOR_MFA)
  peer.say(updateOf(strong()))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  await peer.until(() => peer.texts.includes(text('weak', 39)))
  t.same(there.received.filter(one => one.includes('weak')), Array.from({ length: 40 }, (_, n) => text('weak', n)))
})

t.test('nor does one among many that came before somebody listened', async t => {
  const listening = deferred<void>()
  const held = await holding(t, {
    handler ({ socket, received }) {
      listening.promise.then(() => {
        socket.on('message', (data: Buffer) => {
          received.push(data.toString())
          socket.send(data.toString())
        })
      }, () => {})
    }
  })
  const { peer, there } = held
  peer.say(text('strong', 'first'))
  for (let n = 0; n < 40; n++) peer.say(text('weak', n))
  await eventually('the socket is held back', () => there.socket.isPaused)
  listening.resolve()
  t.same(await peer.takeFrame('error'), REFUSED_FOR_MFA)
  peer.say(updateOf(strong()))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  await peer.until(() => peer.texts.includes(text('weak', 39)))
  t.same(there.received.filter(one => one.includes('weak')), Array.from({ length: 40 }, (_, n) => text('weak', n)))
})

t.test('a peer that closes meanwhile brings no token: the message is refused, those behind it are judged, and then the close is told', async t => {
  const held = await holding(t)
  const { peer, there, verdicts, types } = held
  peer.say(text('strong', 1))
  await peer.takeFrame('error')
  for (const [type, n] of [['weak', 2], ['strong', 3], ['no', 4], ['late', 5], ['weak', 6]] as const) peer.say(text(type, n))
  peer.socket.close(1000)
  await eventually('the last rule is asked', () => verdicts.length === 1)
  t.same(there.received, [text('weak', 2)])
  t.same([there.closes, there.socketCloses], [[], []], 'the close waits for what came before it')
  verdicts[0]?.resolve(true)
  await there.closed
  t.same(there.received, [text('weak', 2), text('late', 5), text('weak', 6)])
  t.same([there.closes, there.socketCloses], [[1000], [1000]])
  t.equal(types().filter(type => type === 'message_refused').length, 3)
  t.equal(types().filter(type => type === 'closed').length, 1)
})

t.test('so it is where nothing is behind it, and where the connection breaks', async t => {
  for (const end of [(peer: Peer) => { peer.socket.close(1000) }, (peer: Peer) => { peer.socket.terminate() }]) {
    const { app, peer, there } = await holding(t)
    peer.say(text('strong'))
    await peer.takeFrame('error')
    end(peer)
    await there.closed
    t.equal(there.closes.length, 1)
    t.same(there.received, [])
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('a revocation, an expiry and a lost permission end the socket, and what waits is dropped', async t => {
  const clock = setClock(t)
  clock.freeze()
  const ends: Array<[string, number, (held: Held) => unknown]> = [
    ['revoked', 4006, ({ app }) => app.hybridAuth.revoke({ userId: 'alice' })],
    ['disconnected', 4321, ({ app }) => app.hybridAuth.disconnect({ userId: 'alice' }, { code: 4321 })],
    ['the route’s rule', 4007, ({ app }) => app.hybridAuth.setPermissions('alice', [])],
    ['expired', 4002, ({ there }) => { clock.move(400_000); lookNow(there.connection) }],
    ['another user’s token', 4011, ({ peer }) => { peer.say(updateOf(strong({ sub: 'mallory', permissions: ['in'] }))) }],
    ['another tenant’s token', 4011, ({ peer }) => { peer.say(updateOf(strong({ companyId: 'other', permissions: ['in'] }))) }]
  ]
  for (const [what, code, end] of ends) {
    const held = await holding(t, { rule: { permissions: ['in'] }, token: weak({ permissions: ['in'] }), auth: { expiryGrace: 0 } })
    const { peer, there } = held
    peer.say(text('strong', 1))
    await peer.takeFrame('error')
    peer.say(text('weak', 2))
    await judged(held)
    await end(held)
    t.equal((await peer.end).code, code, what)
    await there.closed
    t.same(there.received, [], what)
    t.same([there.closes, there.socketCloses], [[code], [code]], what)
    t.equal(demandOf(held), null, what)
    t.equal(guarded(held).held, null, what)
    clock.reset()
  }
})

t.test('sockets of a session, and those that do not speak the protocol, are refused at once, and go on', async t => {
  const { open, session } = await audited(t, { route: { messages: RULES } })
  const table: Array<[string, Dial, object[]]> = [
    ['a session that speaks', { cookie: session('s1', { userId: 'bob' }), speaks: true }, [REFUSED_FOR_MFA]],
    ['a session that does not', { cookie: session('s2', { userId: 'bob' }) }, []],
    ['a token without the protocol', { token: weak() }, []],
    ['a token with another', { token: weak(), protocols: ['chat.v2'] }, []]
  ]
  for (const [what, how, told] of table) {
    const pair = await open(how)
    pair.peer.say(text('strong'))
    t.ok(await pair.peer.echoed(text('weak')), what)
    t.same(pair.there.received, [text('weak')], what)
    t.same(pair.peer.framesOf('error'), told, what)
    t.equal(demandOf(pair), null, what)
  }
})

t.test('a session that was logged in to again sends its message again', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open, session } = await audited(t, { route: { messages: RULES, sessionMaxAge: 0 } })
  const { peer, there } = await open({ cookie: session('s1', { userId: 'bob', issuedAt: Date.now() - 2 * MINUTE }), speaks: true })
  peer.say(text('fresh', 1))
  t.match(await peer.takeFrame('error'), { code: SHORT, max_age: 60 })
  session('s1', { userId: 'bob', issuedAt: Date.now() })
  clock.move(1)
  peer.say(text('fresh', 2))
  await peer.until(() => peer.texts.includes(text('fresh', 2)))
  t.same(there.received, [text('fresh', 2)])
})

t.test('`onRefused: close` waits as well, and closes where nobody could bring what is needed', async t => {
  const clock = setClock(t)
  clock.freeze()
  const waiting = await holding(t, { rule: { onRefused: 'close' } })
  waiting.peer.say(text('strong', 1))
  t.same(await waiting.peer.takeFrame('error'), NEEDS_MFA)
  waiting.peer.say(updateOf(strong()))
  await waiting.peer.until(() => waiting.peer.texts.includes(text('strong', 1)))
  const late = await holding(t, { rule: { onRefused: 'close' } })
  late.peer.say(text('strong', 1))
  late.peer.say(text('weak', 2))
  await late.peer.takeFrame('error')
  await judged(late)
  clock.move(PATIENCE)
  lookNow(late.there.connection)
  t.equal((await late.peer.end).code, 4007)
  t.same(late.there.received, [])
  const silent = await holding(t, { rule: { onRefused: 'close' }, speaks: false })
  silent.peer.say(text('strong', 1))
  t.equal((await silent.peer.end).code, 4007)
  t.same(silent.peer.texts, [])
  const gone = await holding(t, { rule: { onRefused: 'close' } })
  gone.peer.say(text('strong', 1))
  await gone.peer.takeFrame('error')
  gone.peer.say(text('weak', 2))
  gone.peer.socket.close(1000)
  await gone.there.closed
  t.same(gone.there.received, [], 'what is behind a message that closes is not heard')
  t.equal(gone.there.socketCloses.length, 1)
})

t.test('66: a socket whose login has become too old for its route is told and closed with 4007 when its token is refreshed', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open, types } = await audited(t, { route: { maxAuthAge: MINUTE } })
  const loggedIn = inSeconds(0)
  const [speaking, plain] = [await open({ token: goodToken({ auth_time: loggedIn }), speaks: true }), await open({ token: goodToken({ auth_time: loggedIn }) })]
  clock.move(30_000)
  speaking.peer.say(updateOf(goodToken({ auth_time: loggedIn })))
  await speaking.peer.takeFrame('auth_updated')
  clock.move(31_000)
  t.ok(await speaking.peer.echoed('time alone does nothing'))
  for (const { peer } of [speaking, plain]) {
    peer.say(updateOf(goodToken({ auth_time: loggedIn })))
    const end = await peer.end
    t.equal(end.code, 4007)
    t.match(reasonOf(end), { code: SHORT })
    t.match(peer.framesOf('error'), [{ code: SHORT, max_age: 60 }])
    t.match(peer.framesOf('bye'), [{ code: SHORT }])
  }
  t.equal(types().filter(type => type === 'refresh_refused').length, 2)
})

t.test('who has other permissions and a login that is too old is closed without a frame where the protocol is not spoken', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await audited(t, { route: { maxAuthAge: MINUTE } })
  const { peer } = await open({ token: goodToken({ auth_time: inSeconds(0) }) })
  clock.move(MINUTE + 1000)
  await app.hybridAuth.setPermissions('alice', ['other'])
  const end = await peer.end
  t.equal(end.code, 4007)
  t.match(reasonOf(end), { code: SHORT })
  t.same(peer.texts, [])
})

t.test('frames about rooms wait for another login as other messages do', async t => {
  const held = await holding(t, {
    auth: { rooms: { patterns: { open: true, safe: { join: { acr: 'mfa' }, publish: { acr: 'mfa' } }, half: { join: true, publish: { acr: 'mfa' } } } } },
    rule: { rooms: true }
  })
  const { app, open, peer, there, events } = held
  const listener = await open({ token: strong({ sub: 'bob' }), speaks: true })
  t.ok(await listener.there.connection.join('half') && await listener.there.connection.join('safe'))
  peer.say({ type: 'join', room: 'half' })
  t.same(await peer.takeFrame('joined'), { type: 'joined', room: 'half' })
  peer.say({ type: 'join', room: 'safe' })
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  peer.say({ type: 'message', room: 'safe', payload: 1 })
  peer.say({ type: 'message', room: 'half', payload: 2 })
  peer.say(text('weak', 3))
  await judged(held)
  t.same([app.hybridAuth.rooms.count('safe'), there.received], [1, []])
  peer.say(updateOf(strong()))
  await peer.until(() => peer.texts.includes(text('weak', 3)))
  t.equal(app.hybridAuth.rooms.count('safe'), 2)
  await listener.peer.until(() => listener.peer.framesOf('message').length === 2)
  t.same(listener.peer.framesOf('message'), [{ type: 'message', room: 'safe', payload: 1 }, { type: 'message', room: 'half', payload: 2 }])
  t.same(peer.framesOf('joined').map(({ room }) => room), ['half', 'safe'])
  t.match(events.filter(({ type }) => type === 'room_refused'), [{ room: 'safe', action: 'join', reason: SHORT }])
})

t.test('a message to a room waits, and so does one whose rule takes its time', async t => {
  const held = await holding(t, {
    auth: { rooms: { patterns: { half: { join: true, publish: { acr: 'mfa', check: async () => true } } } } },
    rule: { rooms: true }
  })
  const { open, peer } = held
  const listener = await open({ token: strong({ sub: 'bob' }), speaks: true })
  t.ok(await listener.there.connection.join('half'))
  peer.say({ type: 'join', room: 'half' })
  await peer.takeFrame('joined')
  peer.say({ type: 'message', room: 'half', payload: 1 })
  t.same(await peer.takeFrame('error'), NEEDS_MFA)
  peer.say({ type: 'message', room: 'half', payload: 2 })
  await judged(held)
  t.same(listener.peer.framesOf('message'), [])
  peer.say(updateOf(strong()))
  await listener.peer.until(() => listener.peer.framesOf('message').length === 2)
  t.same(listener.peer.framesOf('message').map(({ payload }) => payload), [1, 2])
})

t.test('a frame about a room that waits is refused after two minutes, and a session’s at once', async t => {
  const clock = setClock(t)
  clock.freeze()
  const rooms = { patterns: { safe: { acr: 'mfa' } } }
  const held = await holding(t, { auth: { rooms }, rule: { rooms: true } })
  held.peer.say({ type: 'join', room: 'safe' })
  await held.peer.takeFrame('error')
  clock.move(PATIENCE)
  lookNow(held.there.connection)
  t.match(await held.peer.takeFrame('error'), { code: 'forbidden' })
  t.equal(held.app.hybridAuth.rooms.count('safe'), 0)
  const pair = await held.open({ cookie: held.session('s1', { userId: 'bob' }) })
  pair.peer.say({ type: 'join', room: 'safe' })
  t.same(await pair.peer.takeFrame('error'), REFUSED_FOR_MFA)
  t.ok(await pair.peer.echoed(text('weak')))
  t.equal(demandOf(pair), null)
})

t.test('whose login is no longer enough for a room is out of it when the context changes', async t => {
  const { app, open } = await audited(t, { auth: { rooms: { patterns: { safe: { acr: 'mfa' } } } } })
  const { peer, there } = await open({ token: strong(), speaks: true })
  t.ok(await there.connection.join('safe'))
  peer.say(updateOf(weak()))
  t.match(await peer.takeFrame('left'), { room: 'safe', reason: 'forbidden' })
  t.equal(app.hybridAuth.rooms.count('safe'), 0)
})

t.test('84: what cannot stand in a challenge, and what is no age, is named when the route is declared', async t => {
  const bad: Array<[object, RegExp]> = [
    ...['', 'a b', ' ', 'a"b', 'a\\b', 'a\nb', 'ä', 'a\u0000', 7, null, true, {}, [], ['a', 'b c'], ['a', 7], [''], [['a']]].map((acr): [object, RegExp] => [{ acr }, /acr/]),
    ...[999, 0, -1, NaN, Infinity, '60000', null, true, [], 1e15].map((maxAuthAge): [object, RegExp] => [{ maxAuthAge }, /maxAuthAge/])
  ]
  for (const [given, message] of bad) {
    for (const where of ['auth', 'messages', 'require', 'pattern'] as const) {
      const rule = untyped(given) as RequirementRule
      const declared = build(t, {
        auth: where === 'pattern' ? { rooms: { patterns: { room: { join: rule } } } } : {},
        routes (app) {
          if (where === 'auth') app.get('/bad', { websocket: true, auth: rule }, () => {})
          if (where === 'messages') app.get('/bad', { websocket: true, auth: { messages: { ping: rule } } }, () => {})
          if (where === 'require') app.hybridAuth.require(rule)
        }
      })
      await t.rejects(declared, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message }, `${where}: ${JSON.stringify(given)}`)
    }
  }
  await build(t, { auth: { session: SESSION }, routes (app) { app.get('/good', { auth: { acr: ['urn:mace:incommon:iap:silver', '0', 'a!#$%~'], maxAuthAge: 1000 } }, async () => 'ok') } })
})

t.test('a context keeps what its login was', async t => {
  const { open, session } = await audited(t)
  const contexts: AuthContext[] = []
  for (const how of [{ token: strong() }, { cookie: session('s1', { userId: 'bob', acr: 'mfa' }) }]) contexts.push((await open(how)).there.connection.context)
  t.match(contexts, [{ claims: { acr: 'mfa' } }, { user: { acr: 'mfa' } }])
})
