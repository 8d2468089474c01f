/** Case 68: a credential is revoked while something is being waited for, and frames around a revocation. */
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { Claims, HybridAuthOptions, Identity, RevokeOptions, RevokeTarget, RouteRule } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { build, goodToken, JWT, SECRET, SESSION_SECRET, upgrade } from './helpers.js'
import { echo, HOUR, live, lookNow, setClock, type Pair, type There } from './live.js'
import { audited, bearer, codeAndReason, driverOf, Hold, isOpen, isRevoked, outcome, REVOKED, updateOf, withCookie } from './revoking.js'
import { ask, codeOf, cookieFor, deferred, MapStore, type StoreCallback } from './stores.js'
import { authFrame, connect, turn, until } from './wire.js'

const REVOKED_TOKEN = 'FST_HYBRID_AUTH_REVOKED_TOKEN'
const REVOKED_SESSION = 'FST_HYBRID_AUTH_REVOKED_SESSION'

/** Where a path waits. */
interface Step {
  at: string
  auth?: (hold: Hold) => Partial<HybridAuthOptions>
  rule?: (hold: Hold) => RouteRule
  hooks?: (app: FastifyInstance, hold: Hold) => void
}

const identityOf = ({ sub = '' }: Claims): Identity => ({ userId: sub })
const heldRule = (hold: Hold): RouteRule => ({
  async check () {
    await hold.pass()
    return true
  }
})

/** What is waited for with the token in hand. */
const KEY: Step = {
  at: 'the key',
  auth: hold => ({
    jwt: {
      ...JWT,
      async key () {
        await hold.pass()
        return SECRET
      }
    }
  })
}
const MAPPER: Step = {
  at: 'jwt.user',
  auth: hold => ({
    jwt: {
      ...JWT,
      async user (claims) {
        await hold.pass()
        return identityOf(claims)
      }
    }
  })
}
const RULE: Step = { at: 'the rule', rule: heldRule }
const PLACE: Step = {
  at: 'the place under a limit',
  auth: hold => ({
    limits: { connections: { perUser: 5 } },
    cluster: driverOf(inner => ({
      async acquire (...given) {
        const taken = await inner.acquire(...given)
        await hold.pass()
        return taken
      }
    }))
  })
}
/** What is waited for with the session in hand. */
const STORE: Step = {
  at: 'the store',
  auth: hold => ({
    session: {
      secret: SESSION_SECRET,
      store: {
        get (_sessionId: string, callback: StoreCallback) {
          hold.pass().then(() => { new MapStore().put('s1', { user: { userId: 'alice' }, cookie: {} }).get('s1', callback) }, callback)
        }
      },
      user: stored => stored.user ?? null
    }
  })
}
const SESSION_MAPPER: Step = {
  at: 'session.user',
  auth: hold => ({
    session: {
      secret: SESSION_SECRET,
      store: new MapStore().put('s1', { user: { userId: 'alice' }, cookie: {} }),
      async user (stored) {
        await hold.pass()
        return stored.user ?? null
      }
    }
  })
}
const SESSION_RULE: Step = { ...RULE, auth: () => STORE.auth?.(new Hold()) ?? {} }
/** What is waited for between our guard and the 101. */
const HOOKS: Step[] = (['preParsing', 'preValidation', 'preHandler'] as const).map(name => ({
  at: `a ${name} hook of the application`,
  hooks (app, hold) { app.addHook(name, async () => hold.pass()) }
}))

/** A server whose `/slow` waits at the step, over a socket, and `/slow-http` over HTTP. */
async function slow (t: Test, { auth, rule, hooks }: Step, more: RouteRule = {}) {
  const hold = new Hold()
  const ran: string[] = []
  const received: string[] = []
  const server = await build(t, {
    auth: { heartbeat: false, ...auth?.(hold) },
    routes (app) {
      hooks?.(app, hold)
      app.get('/slow', { websocket: true, auth: { ...rule?.(hold), ...more } }, socket => {
        ran.push('socket')
        socket.on('message', (data: Buffer) => { received.push(data.toString()) })
      })
      const { check } = rule?.(hold) ?? {}
      app.get('/slow-http', { auth: { ...(check !== undefined && { check }) } }, async () => { ran.push('http') })
    }
  })
  return { ...server, hold, ran, received }
}

const COOKIE = cookieFor('s1')

interface Case { step: Step, isEarly: boolean, credential: 'token' | 'session' }
const HANDSHAKES: Case[] = [
  ...[KEY, MAPPER, RULE, PLACE].map((step): Case => ({ step, isEarly: true, credential: 'token' })),
  ...[STORE, SESSION_MAPPER, SESSION_RULE].map((step): Case => ({ step, isEarly: true, credential: 'session' })),
  ...HOOKS.flatMap((step): Case[] => [
    { step, isEarly: false, credential: 'token' },
    { step: { ...step, auth: () => STORE.auth?.(new Hold()) ?? {} }, isEarly: false, credential: 'session' }
  ])
]

for (const { step, isEarly, credential } of HANDSHAKES) {
  for (const by of ['itself', 'user'] as const) {
    t.test(`case 68: a ${credential} that is revoked by ${by} during ${step.at} opens no socket`, async t => {
      for (const speaks of [false, true]) {
        const { app, host, hold, ran } = await slow(t, step)
        const token = goodToken()
        const itself: RevokeTarget = credential === 'token' ? { token } : { sessionId: 's1' }
        hold.arm()
        const headers = credential === 'token' ? { authorization: `Bearer ${token}` } : { cookie: COOKIE, origin: `http://${host}` }
        const answer = upgrade(t, host, { path: '/slow', headers, protocols: speaks ? ['hybrid-auth.v1'] : [] })
        await hold.entered
        const result = app.hybridAuth.revoke(by === 'itself' ? itself : { userId: 'alice' })
        hold.release()
        t.match(await result, outcome(0))
        const { status, body, code, reason } = await answer
        if (isEarly && !speaks) {
          t.same([status, codeOf(body)], [401, credential === 'token' ? REVOKED_TOKEN : REVOKED_SESSION])
        } else t.same([status, { code, reason }], [101, REVOKED])
        t.same([ran, app.hybridAuth.count()], [[], 0], 'the handler did not run, and nothing is registered')
      }
    })
  }
}

for (const { step, isEarly, credential } of HANDSHAKES) {
  if (!isEarly || step === PLACE) continue
  t.test(`case 68: a ${credential} that is revoked during ${step.at} is refused over HTTP`, async t => {
    const { app, host, hold, ran } = await slow(t, step)
    const token = goodToken()
    hold.arm()
    const answer = ask(host, '/slow-http', credential === 'token' ? bearer(token) : withCookie(COOKIE))
    await hold.entered
    const result = app.hybridAuth.revoke(credential === 'token' ? { token } : { sessionId: 's1' })
    hold.release()
    await result
    const { status, body } = await answer
    t.same([status, codeOf(body)], [401, credential === 'token' ? REVOKED_TOKEN : REVOKED_SESSION])
    t.same(ran, [])
  })
}

t.test('case 68: require() asks again of who was let in before', async t => {
  const hold = new Hold()
  let ran = 0
  const { app, host } = await build(t, {
    routes (app) {
      app.get('/twice', { auth: true, preValidation: async () => hold.pass(), preHandler: app.hybridAuth.require() }, async () => { ran++ })
    }
  })
  const token = goodToken()
  hold.arm()
  const answer = ask(host, '/twice', bearer(token))
  await hold.entered
  const result = app.hybridAuth.revoke({ token })
  hold.release()
  await result
  t.same([(await answer).status, codeOf((await answer).body), ran], [401, REVOKED_TOKEN, 0])
})

t.test('case 68: a credential that is revoked in the very moment of the 101 opens no socket', async t => {
  for (const speaks of [false, true]) {
    const { app, host, ran } = await slow(t, { at: 'the 101' })
    let result: Promise<unknown> | undefined
    app.websocketServer.on('headers', () => { result = app.hybridAuth.revoke({ userId: 'alice' }) })
    const { status, code, reason } = await upgrade(t, host, { path: '/slow', headers: { authorization: `Bearer ${goodToken()}` }, protocols: speaks ? ['hybrid-auth.v1'] : [] })
    t.same([status, { code, reason }, ran, app.hybridAuth.count()], [101, REVOKED, [], 0])
    t.match(await result, outcome(0))
  }
})

t.test('case 68: a credential that is revoked in the first line of the handler has a socket that ends', async t => {
  const results: Array<Promise<unknown>> = []
  const { app, open } = await live(t, {
    handler (there) {
      results.push(app.hybridAuth.revoke({ userId: 'alice' }))
      there.socket.send('late')
      echo(there)
    }
  })
  const pair = await open()
  await isRevoked(t, pair, 'the socket')
  t.match(await Promise.all(results), [outcome(1)])
  t.same([pair.peer.texts, pair.there.received], [[], []])
})

t.test('case 68: what reauthWithin revokes during the handshake is refused all the same', async t => {
  const { app, host, hold, ran } = await slow(t, RULE)
  hold.arm()
  const answer = upgrade(t, host, { path: '/slow', headers: { authorization: `Bearer ${goodToken({ iat: undefined })}` } })
  await hold.entered
  const result = app.hybridAuth.revoke({ userId: 'alice' }, { mode: { reauthWithin: 60_000 } })
  hold.release()
  await result
  t.same([(await answer).status, ran], [401, []])
})

for (const step of [KEY, MAPPER, RULE, PLACE]) {
  for (const by of ['itself', 'user'] as const) {
    t.test(`case 68: a first message whose token is revoked by ${by} during ${step.at} opens no socket`, async t => {
      for (const protocols of [[], ['hybrid-auth.v1']]) {
        const { app, host, hold, ran, received } = await slow(t, step, { firstMessage: true })
        const token = goodToken()
        const peer = connect(t, host, { path: '/slow', token: null, protocols })
        await peer.opened
        hold.arm()
        peer.send(authFrame(token), 'behind it')
        await hold.entered
        const result = app.hybridAuth.revoke(by === 'itself' ? { token } : { userId: 'alice' })
        hold.release()
        t.match(await result, outcome(0))
        t.same(await peer.closed, REVOKED)
        t.same(peer.heard.all.filter(text => text.includes('auth_success')), [])
        t.same([ran, received, app.hybridAuth.count()], [[], [], 0], 'the handler did not run, and nothing is registered')
      }
    })
  }
}

type Which = 'the old token' | 'the new token' | 'the user'
const LATER: RevokeOptions = { mode: { reauthWithin: 60_000 } }
/** What comes of a re-authentication: an answer, or the end. */
type Came = 'auth_updated' | 'error' | 'closed'
const IN_FLIGHT: Array<{ which: Which, options: RevokeOptions, comes: Came, atDeadline: 'open' | 'closed' }> = [
  { which: 'the old token', options: {}, comes: 'closed', atDeadline: 'closed' },
  { which: 'the new token', options: {}, comes: 'error', atDeadline: 'open' },
  { which: 'the user', options: {}, comes: 'closed', atDeadline: 'closed' },
  { which: 'the old token', options: LATER, comes: 'auth_updated', atDeadline: 'open' },
  { which: 'the new token', options: LATER, comes: 'error', atDeadline: 'open' },
  { which: 'the user', options: LATER, comes: 'error', atDeadline: 'closed' }
]

for (const step of [KEY, MAPPER]) {
  for (const { which, options, comes, atDeadline } of IN_FLIGHT) {
    t.test(`case 68: ${which} is revoked${options === LATER ? ' within a minute' : ''} while a re-authentication waits for ${step.at}: exactly one outcome, ${comes}`, async t => {
      const clock = setClock(t)
      const hold = new Hold()
      const { app, open } = await audited(t, { auth: step.auth?.(hold) ?? {} })
      const iat = Math.floor(Date.now() / 1000) - 10
      const [old, next] = [goodToken({ iat, jti: 'old' }), goodToken({ iat, jti: 'new' })]
      const pair = await open({ token: old, speaks: true })
      const { peer, there } = pair
      hold.arm()
      peer.say(updateOf(next))
      await hold.entered
      const target: RevokeTarget = which === 'the user' ? { userId: 'alice' } : { jti: which === 'the old token' ? 'old' : 'new' }
      const result = app.hybridAuth.revoke(target, options)
      hold.release()
      await result
      const came = () => [...peer.framesOf('auth_updated'), ...peer.framesOf('error'), ...(peer.hasEnded ? [{ type: 'closed' }] : [])].map(({ type }) => type)
      await peer.until(() => came().length > 0)
      if (comes === 'closed') await isRevoked(t, pair, 'the socket')
      else await isOpen(t, pair, 'the socket')
      t.same(came(), [comes])
      if (comes !== 'closed') {
        t.match(there.connection.context, { tokenId: comes === 'error' ? 'old' : 'new' })
        if (comes === 'error') t.match(peer.framesOf('error'), [{ code: 'refresh_failed' }])
        clock.move(60_001)
        lookNow(there.connection)
        await (atDeadline === 'open' ? isOpen : isRevoked)(t, pair, 'at the deadline')
      }
    })
  }
}

t.test('case 68: the token of a re-authentication is revoked while the route\'s rule is asked about it: closed, and not answered', async t => {
  const hold = new Hold()
  const { app, open } = await audited(t, { route: heldRule(hold) })
  const pair = await open({ token: goodToken({ jti: 'old' }), speaks: true })
  hold.arm()
  pair.peer.say(updateOf(goodToken({ jti: 'new' })))
  await hold.entered
  t.match(await app.hybridAuth.revoke({ jti: 'old' }), outcome(0), 'the old one is nobody\'s any more')
  t.match(await app.hybridAuth.revoke({ jti: 'new' }), outcome(1))
  hold.release()
  await isRevoked(t, pair, 'the socket')
  t.same([...pair.peer.framesOf('auth_updated'), ...pair.peer.framesOf('error')], [])
})

t.test('case 68: two re-authentications under way, of which the later is revoked: the earlier counts', async t => {
  const keys = [deferred<string>(), deferred<string>()]
  const asked: string[] = []
  const { app, open } = await audited(t, {
    auth: {
      jwt: {
        ...JWT,
        async user (claims) {
          asked.push(claims.jti ?? '')
          if (claims.jti !== 'old') await keys[claims.jti === 'one' ? 0 : 1]?.promise
          return identityOf(claims)
        }
      }
    }
  })
  const { peer, there } = await open({ token: goodToken({ jti: 'old' }), speaks: true })
  peer.say(updateOf(goodToken({ jti: 'one' })))
  peer.say(updateOf(goodToken({ jti: 'two' })))
  await until(() => asked.length === 3)
  await app.hybridAuth.revoke({ jti: 'two' })
  keys[1]?.resolve('')
  t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  keys[0]?.resolve('')
  t.match(await peer.takeFrame('auth_updated'), {})
  t.equal(there.connection.context.version, 2)
  t.match(there.connection.context, { tokenId: 'one' })
})

t.test('case 68: whatever the moment after the verification, no socket is left open with a revoked token', async t => {
  for (let ticks = 0; ticks <= 16; ticks++) {
    const hold = new Hold()
    const { app, open } = await audited(t, { auth: MAPPER.auth?.(hold) ?? {} })
    const pair = await open({ token: goodToken({ jti: 'old' }), speaks: true })
    const { peer, there } = pair
    hold.arm()
    peer.say(updateOf(goodToken({ jti: 'new' })))
    await hold.entered
    hold.release()
    for (let tick = 0; tick < ticks; tick++) await Promise.resolve()
    const { matched } = await app.hybridAuth.revoke({ jti: 'new' })
    await peer.until(() => peer.framesOf('error').length > 0)
    const isClosed = peer.hasEnded
    t.equal(isClosed, matched === 1, `after ${ticks} turns of the queue: ${isClosed ? 'closed' : 'refused'}`)
    if (isClosed) await isRevoked(t, pair, 'the socket')
    else t.match(there.connection.context, { tokenId: 'old', version: 1 })
  }
})

t.test('case 68: whatever the moment after the rule, no handler runs for a revoked token', async t => {
  for (let ticks = 0; ticks <= 16; ticks++) {
    const { app, host, hold, ran } = await slow(t, RULE)
    const token = goodToken()
    hold.arm()
    const answer = upgrade(t, host, { path: '/slow', headers: { authorization: `Bearer ${token}` } })
    await hold.entered
    hold.release()
    for (let tick = 0; tick < ticks; tick++) await Promise.resolve()
    const { matched } = await app.hybridAuth.revoke({ token })
    const { status, code } = await answer
    t.same(ran.length, matched, `after ${ticks} turns of the queue: ${status} ${code}`)
    t.ok(status === 401 || code === 4006)
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('case 68: a session that is revoked while it is read again ends its sockets, once', async t => {
  const hold = new Hold()
  const clock = setClock(t)
  const { app, open, session } = await audited(t, {
    auth: {
      session: {
        async user (stored) {
          await hold.pass()
          return stored.user ?? null
        }
      }
    }
  })
  const pair = await open({ cookie: session('s1', { userId: 'alice' }) })
  hold.arm()
  clock.move(31_000)
  lookNow(pair.there.connection)
  await hold.entered
  t.match(await app.hybridAuth.revoke({ sessionId: 's1' }), outcome(1))
  hold.release()
  await isRevoked(t, pair, 'the socket')
})

/** Both directions of a socket after its end, and what came of them. */
function tryBoth ({ there, peer }: Pair, failed: unknown[]): void {
  peer.say('from the client, late')
  there.socket.send('from the server, late', error => { failed.push(error) })
  if (there.connection.send('from the server, late')) throw new Error('a frame passed')
  // As ws does with what the kernel holds already.
  there.socket.emit('message', Buffer.from('from the kernel, late'), false)
}

t.test('after revoke() was called no frame passes in either direction, of 2000 sockets that close in batches', async t => {
  const { app, open } = await live(t, { auth: { heartbeat: false } })
  const pairs: Pair[] = []
  const token = goodToken()
  for (let at = 0; at < 20; at++) pairs.push(...await Promise.all(Array.from({ length: 100 }, () => open({ token }))))
  const other = await open({ token: goodToken({ sub: 'bob' }) })
  for (const { peer } of pairs) peer.say('sent, and not read yet')
  const failed: unknown[] = []
  const result = app.hybridAuth.revoke({ userId: 'alice' })
  const closedAtOnce = 2001 - app.hybridAuth.count()
  t.ok(closedAtOnce > 0 && closedAtOnce < 100, `${closedAtOnce} are closed at once`)
  for (const pair of pairs.slice(1000)) tryBoth(pair, failed)
  await turn()
  t.ok(app.hybridAuth.count() < 2001 - closedAtOnce)
  for (const pair of pairs.slice(0, 1000)) tryBoth(pair, failed)
  t.match(await result, outcome(2000))
  t.equal(app.hybridAuth.count(), 1)
  const ends = await Promise.all(pairs.map(({ peer }) => peer.end))
  t.same(new Set(ends.map(({ code, reason }) => `${code} ${reason}`)), new Set([`${REVOKED.code} ${REVOKED.reason}`]))
  t.same(pairs.flatMap(({ there }) => there.received), [], 'nothing reached the application')
  t.same(pairs.flatMap(({ peer }) => peer.texts), [], 'nothing reached a client')
  await until(() => failed.length === 2000)
  t.ok(failed.every(error => error instanceof Error), 'who sends is told')
  await isOpen(t, other, 'the other user')
})

t.test('frames that wait for a listener do not reach one that is attached after the call, whichever batch their socket is in', async t => {
  const { app, open } = await audited(t, { handler: () => {} })
  const token = goodToken()
  const pairs = await Promise.all(Array.from({ length: 60 }, () => open({ token })))
  for (const { peer } of pairs) peer.say('too late')
  await until(() => pairs.every(({ there }) => there.connection instanceof GuardedConnection && there.connection.held !== null))
  const answer = app.hybridAuth.revoke({ userId: 'alice' })
  for (const { there } of pairs) there.socket.on('message', (data: Buffer) => { there.received.push(data.toString()) })
  t.match(await answer, outcome(60))
  await Promise.all(pairs.map(async ({ peer }) => peer.end))
  t.same(pairs.flatMap(({ there }) => there.received), [])
})

t.test('other work goes on between the batches', async t => {
  const { app, open } = await live(t, { auth: { heartbeat: false } })
  const token = goodToken()
  await Promise.all(Array.from({ length: 100 }, () => open({ token })))
  const counts: number[] = []
  const result = app.hybridAuth.revoke({ userId: 'alice' })
  while (app.hybridAuth.count() > 0) {
    counts.push(app.hybridAuth.count())
    await turn()
  }
  await result
  t.ok(counts.length >= 3 && new Set(counts).size >= 3, `between ${counts.join(', ')}`)
})

t.test('a clock that is set back while the batches close leaves no socket open', async t => {
  const clock = setClock(t)
  const { app, open } = await live(t, { auth: { heartbeat: false } })
  const token = goodToken({ exp: Math.floor(Date.now() / 1000) + 86_400, iat: undefined })
  const pairs = await Promise.all(Array.from({ length: 60 }, () => open({ token })))
  const result = app.hybridAuth.revoke({ userId: 'alice' })
  clock.move(-HOUR)
  for (const { there } of pairs) there.socket.emit('message', Buffer.from('late'), false)
  t.match(await result, outcome(60))
  t.equal(app.hybridAuth.count(), 0, 'all are closed, as revoke() said')
  t.same(pairs.flatMap(({ there }) => there.received), [], 'nothing was delivered')
})

t.test('tokens of the very second of issuedBefore close in batches too, and each token is revoked once', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open } = await live(t, { auth: { heartbeat: false } })
  const token = goodToken()
  const pairs = await Promise.all(Array.from({ length: 100 }, () => open({ token })))
  const result = app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() })
  t.ok(app.hybridAuth.count() > 0, 'some are left for the next turn')
  t.match(await result, outcome(100))
  t.equal(app.hybridAuth.status().revocations, 2, 'the user and the token')
  for (const pair of pairs) t.equal((await pair.peer.end).code, 4006)
})

/** A route whose verdict about each message the test gives. */
async function judging (t: Test, handler: (there: There) => void = echo) {
  const verdicts = Array.from({ length: 4 }, () => deferred<boolean>())
  const judged: string[] = []
  const server = await audited(t, {
    handler,
    route: {
      authorize (_auth, message) {
        const verdict = verdicts[judged.push(message.text()) - 1]
        return verdict === undefined ? false : verdict.promise
      }
    }
  })
  return { ...server, verdicts, judged }
}

for (const mode of ['now', 'disconnect'] as const) {
  t.test(`frames behind an asynchronous authorize are not delivered after ${mode === 'now' ? 'revoke()' : 'disconnect()'}, whatever the verdict`, async t => {
    const { app, open, verdicts, judged } = await judging(t)
    const pair = await open()
    for (const text of ['a', 'b', 'c']) pair.peer.say(text)
    await until(() => judged.length === 1)
    const result = mode === 'now' ? app.hybridAuth.revoke({ userId: 'alice' }) : app.hybridAuth.disconnect({ userId: 'alice' })
    for (const { resolve } of verdicts) resolve(true)
    t.match(await result, outcome(1))
    await isRevoked(t, pair, 'the socket')
    t.same([pair.there.received, judged], [[], ['a']])
  })
}

t.test('a frame whose verdict is awaited when its peer has closed is not delivered after revoke()', async t => {
  const { app, open, verdicts, judged } = await judging(t)
  const { peer, there } = await open()
  peer.say('a')
  await until(() => judged.length === 1)
  peer.socket.close(1000)
  await until(() => app.hybridAuth.count() === 0)
  await app.hybridAuth.revoke({ userId: 'alice' })
  verdicts[0]?.resolve(true)
  await there.closed
  t.same(there.received, [], 'nothing')
})

t.test('frames held behind a verdict and the peer\'s close are not delivered after revoke()', async t => {
  const { app, open, verdicts, judged, types } = await judging(t)
  const { peer, there } = await open()
  for (const text of ['a', 'b']) peer.say(text)
  await until(() => judged.length === 1)
  peer.socket.close(1000)
  await until(() => app.hybridAuth.count() === 0)
  await app.hybridAuth.revoke({ userId: 'alice' })
  for (const { resolve } of verdicts) resolve(true)
  await there.closed
  t.notOk(there.received.includes('b'))
  t.same(judged, ['a'])
  t.same(there.closes, [4006])
  t.same(types().slice(-2), ['closed', 'command'])
})

t.test('frames held for a listener and the peer\'s close are not delivered after revoke()', async t => {
  const { app, open } = await audited(t, { handler: () => {} })
  for (const isGone of [true, false]) {
    const token = goodToken()
    const { peer, there } = await open({ token })
    for (const text of ['a', 'b']) peer.say(text)
    peer.socket.close(1000)
    await until(() => app.hybridAuth.count() === 0)
    if (isGone) await app.hybridAuth.revoke({ token })
    echo(there)
    await there.closed
    t.same(there.received, isGone ? [] : ['a', 'b'], isGone ? 'revoked' : 'and as they came where nothing was revoked')
    t.same(there.closes, [isGone ? 4006 : 1000])
  }
})

t.test('frames held for a handler that awaits are not delivered after revoke()', async t => {
  const { app, open } = await audited(t, { handler: () => {} })
  const pair = await open()
  pair.peer.say('a')
  const { connection } = pair.there
  await until(() => connection instanceof GuardedConnection && connection.held?.length === 1)
  const result = app.hybridAuth.revoke({ userId: 'alice' })
  echo(pair.there)
  t.match(await result, outcome(1))
  t.same(codeAndReason(await pair.peer.end), REVOKED)
  await pair.there.closed
  t.same(pair.there.received, [])
})

t.test('a frame that waits for its session to be read is not delivered after revoke()', async t => {
  const hold = new Hold()
  const { app, open, session } = await audited(t, {
    route: { sessionMaxAge: 0 },
    auth: {
      session: {
        async user (stored) {
          await hold.pass()
          return stored.user ?? null
        }
      }
    }
  })
  const clock = setClock(t)
  const pair = await open({ cookie: session('s1', { userId: 'alice' }) })
  clock.move(1000)
  hold.arm()
  pair.peer.say('a')
  await hold.entered
  const result = app.hybridAuth.revoke({ sessionId: 's1' })
  hold.release()
  t.match(await result, outcome(1))
  await isRevoked(t, pair, 'the socket')
  t.same(pair.there.received, [])
})
