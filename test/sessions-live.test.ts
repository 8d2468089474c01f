import Fastify, { type Session } from 'fastify'
import t, { type Test } from 'tap'
import type { AuditEvent, HybridAuthOptions, RouteAuth, SessionStore } from '../lib/index.js'
import hybridAuth from '../lib/index.js'
import { closeReason } from '../lib/protocol.js'
import { keepLines, SESSION, SESSION_SECRET } from './helpers.js'
import { eventually, HOUR, live, lookNow, setClock, setRandom, type Live, type LiveOptions } from './live.js'
import { ask, cookieFor, type StoreCallback } from './stores.js'

const together: Array<{ title: string, run: (t: Test) => Promise<void> }> = []
/** For tests that set nothing of the process, neither clock nor dice, and hold up nobody: these run at once, at the end. */
function beside (title: string, run: (t: Test) => Promise<void>): void {
  together.push({ title, run })
}

const CANARY = 'canary-4711'
const BOB = { userId: 'bob', role: 'agent', permissions: ['a:read'], tenantId: 'acme' }
const LATE = 700
const REVALIDATE = 200
const codeAndReason = ({ code, reason }: { code: number, reason: string }) => ({ code, reason })
const REVOKED = { code: 4006, reason: closeReason('Revoked') }
const UNAVAILABLE = { code: 4012, reason: closeReason('Unavailable') }

/** A store that keeps JSON, as those over a network do, counts what it is asked, and can be slow or down. */
class LiveStore implements SessionStore {
  readonly texts = new Map<string, string>()
  readonly reads: string[] = []
  mode: 'up' | 'down' | 'rejecting' | 'hanging' | 'gated' = 'up'
  readonly #gated: Array<() => void> = []

  get (sessionId: string, callback: StoreCallback): unknown {
    this.reads.push(sessionId)
    const answer = () => { callback(null, JSON.parse(this.texts.get(sessionId) ?? 'null') as Session | null) }
    if (this.mode === 'up') setImmediate(answer)
    if (this.mode === 'down') callback(new Error(CANARY))
    if (this.mode === 'rejecting') return Promise.reject(new Error(CANARY))
    if (this.mode === 'gated') this.#gated.push(answer)
    return undefined
  }

  set (sessionId: string, session: unknown, callback: (error?: unknown) => void): void {
    this.texts.set(sessionId, JSON.stringify(session))
    callback()
  }

  destroy (sessionId: string, callback: (error?: unknown) => void): void {
    this.texts.delete(sessionId)
    callback()
  }

  put (sessionId: string, changes: Record<string, unknown> = {}): this {
    this.texts.set(sessionId, JSON.stringify({ user: BOB, cookie: {}, ...changes }))
    return this
  }

  get waiting (): number {
    return this.#gated.length
  }

  open (): void {
    for (const answer of this.#gated.splice(0)) answer()
  }
}

/** One that can extend a session. */
class TouchStore extends LiveStore {
  readonly touched: Array<{ sessionId: string, session: unknown }> = []
  touchFails = false

  touch (sessionId: string, session: unknown, callback: (error?: unknown) => void): void {
    this.touched.push({ sessionId, session })
    if (this.touchFails) {
      callback(new Error(CANARY))
      return
    }
    const stored = JSON.parse(this.texts.get(sessionId) ?? 'null') as { cookie: object } | null
    const given = JSON.parse(JSON.stringify(session)) as { cookie: { expires: unknown } }
    if (stored !== null) this.texts.set(sessionId, JSON.stringify({ ...stored, cookie: { ...stored.cookie, expires: given.cookie.expires } }))
    callback()
  }
}

const READERS = ['request', 'store'] as const
type Reader = typeof READERS[number]
type SessionPart = Partial<NonNullable<HybridAuthOptions['session']>>

interface LiveSessions extends Live { store: LiveStore, events: AuditEvent[], enter: (sessionId: string) => ReturnType<Live['open']> }
interface Options extends SessionPart { auth?: Partial<HybridAuthOptions>, route?: RouteAuth, handler?: LiveOptions['handler'], fastify?: LiveOptions['fastify'], maxAge?: number }

async function withSessions<S extends LiveStore> (t: Test, reader: Reader, store: S, { auth, route, handler, fastify, maxAge, ...session }: Options = {}): Promise<LiveSessions & { store: S }> {
  const events: AuditEvent[] = []
  const server = await live(t, {
    auth: {
      session: { ...SESSION, revalidate: REVALIDATE, ...(reader === 'store' && { store, secret: SESSION_SECRET }), ...session },
      audit: event => { events.push(event) },
      ...auth
    },
    session: { store, saveUninitialized: false, cookie: { secure: false, ...(maxAge !== undefined && { maxAge }) } },
    ...(route !== undefined && { route }), ...(handler !== undefined && { handler }), ...(fastify !== undefined && { fastify }),
    routes (app) {
      app.post('/logout', async request => { await request.session.destroy(); return 'ok' })
      app.post('/regenerate', async request => { await request.session.regenerate(); request.session.user = BOB; return 'ok' })
    }
  })
  return { ...server, store, events, enter: sessionId => server.open({ cookie: cookieFor(sessionId), speaks: true }) }
}

const post = (host: string, path: string, cookie: string) => ask(host, path, { method: 'POST', headers: { cookie } })
const inMs = (ms: number) => new Date(Date.now() + ms).toISOString()

for (const reader of READERS) {
  const by = `(read by the ${reader})`

  beside(`case 58: a session destroyed over HTTP closes its sockets 4006 within the interval, and no others ${by}`, async t => {
    const { app, host, open, login } = await withSessions(t, reader, new LiveStore())
    const [cookie, other] = [await login(BOB), await login(BOB)]
    const mine = await Promise.all([open({ cookie }), open({ cookie, speaks: true }), open({ cookie })])
    const theirs = await open({ cookie: other })
    t.equal(app.hybridAuth.count({ userId: 'bob', authType: 'session' }), 4)
    const out = Date.now()
    t.equal((await post(host, '/logout', cookie)).status, 200)
    for (const { peer } of mine) {
      const end = await peer.end
      t.same(codeAndReason(end), REVOKED)
      t.ok(end.at < out + REVALIDATE + LATE, `${end.at - out} ms after the logout`)
    }
    t.same(mine[1].peer.framesOf('bye'), [{ type: 'bye', code: 'revoked', action: 'stop' }])
    t.ok(await theirs.peer.echoed('still logged in'))
    t.equal(app.hybridAuth.count(), 1)
  })

  beside(`case 60: regenerate closes the sockets of the old id 4006, and the old id is refused ${by}`, async t => {
    const { host, open, login, store } = await withSessions(t, reader, new LiveStore())
    const cookie = await login(BOB)
    const { peer } = await open({ cookie })
    const answer = await post(host, '/regenerate', cookie)
    const renewed = (answer.headers.get('set-cookie') ?? '').split(';', 1)[0] ?? ''
    t.not(renewed, cookie)
    t.equal(store.texts.size, 1)
    t.same(codeAndReason(await peer.end), REVOKED)
    await t.rejects(open({ cookie }))
    t.ok(await (await open({ cookie: renewed })).peer.echoed('the new id works'))
  })

  beside(`case 59: a session that ends closes its sockets 4002, not before ${by}`, async t => {
    const { enter, store } = await withSessions(t, reader, new LiveStore())
    const ends = Date.now() + 900
    store.put('s1', { cookie: { expires: new Date(ends).toISOString() } })
    const { peer, there } = await enter('s1')
    t.equal(there.connection.context.expiresAt, ends)
    const end = await peer.end
    t.same(codeAndReason(end), { code: 4002, reason: closeReason('AuthenticationExpired') })
    t.ok(end.at >= ends && end.at < ends + LATE, `${end.at - ends} ms after its end`)
  })

  beside(`case 59: a session whose end was moved ahead of now in the store is 4002 ${by}`, async t => {
    const { enter, store } = await withSessions(t, reader, new LiveStore())
    store.put('s1', { cookie: { expires: inMs(HOUR) } })
    const { peer } = await enter('s1')
    store.put('s1', { cookie: { expires: inMs(-1000) } })
    t.equal((await peer.end).code, 4002)
  })

  beside(`case 59: messages on the socket do not extend a session ${by}`, async t => {
    const store = new TouchStore()
    const { enter } = await withSessions(t, reader, store)
    const ends = Date.now() + 900
    store.put('s1', { cookie: { originalMaxAge: 900, expires: new Date(ends).toISOString() } })
    const { peer } = await enter('s1')
    const timer = setInterval(() => { peer.say('x') }, 50)
    t.teardown(() => { clearInterval(timer) })
    const end = await peer.end
    t.ok(end.code === 4002 && end.at < ends + LATE)
    t.same(store.touched, [])
  })

  beside(`case 59: a session that was extended over HTTP is not closed at its old end ${by}`, async t => {
    const { enter, store } = await withSessions(t, reader, new LiveStore(), { revalidate: 30_000 })
    const [first, second] = [Date.now() + 2600, Date.now() + 4000]
    store.put('s1', { cookie: { expires: new Date(first).toISOString() } })
    const { peer, there } = await enter('s1')
    store.put('s1', { cookie: { expires: new Date(second).toISOString() } })
    await eventually('the old end is past', () => Date.now() > first + 200)
    t.ok(await peer.echoed('past the old end'))
    t.match(there.connection.context, { expiresAt: second, version: 1 })
    const end = await peer.end
    t.ok(end.code === 4002 && end.at >= second && end.at < second + LATE)
  })

  beside(`case 59: a rolling session that is used over HTTP keeps its socket ${by}`, async t => {
    const { host, open, login } = await withSessions(t, reader, new LiveStore(), { maxAge: 1500 })
    const started = Date.now()
    const cookie = await login(BOB)
    const { peer } = await open({ cookie })
    const uses = setInterval(() => { ask(host, '/me', { headers: { cookie } }).catch(() => {}) }, 300)
    t.teardown(() => { clearInterval(uses) })
    await eventually('the first end is past', () => Date.now() > started + 2100)
    t.ok(await peer.echoed('kept'))
    clearInterval(uses)
    t.equal((await peer.end).code, 4002)
  })

  beside(`a session without a user, or one that is no session, closes 4006 ${by}`, async t => {
    for (const stored of [{ user: null }, { user: { userId: '' } }, { user: 7 }, { cookie: 7 }, { cookie: { expires: 'never' } }, { user: { userId: 'bob', permissions: 'all' } }]) {
      const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'))
      const { peer, there } = await enter('s1')
      store.put('s1', stored)
      t.same(codeAndReason(await peer.end), REVOKED, JSON.stringify(stored))
      t.equal(there.connection.context.version, 1)
    }
  })

  beside(`changed user data is a new version on every socket of the session, and unchanged data is not ${by}`, async t => {
    const { app, enter, store } = await withSessions(t, reader, new LiveStore().put('s1').put('s2'))
    const [a, b, other] = await Promise.all([enter('s1'), enter('s1'), enter('s2')])
    const refreshed: string[] = []
    for (const [name, { there }] of Object.entries({ a, b, other })) there.connection.on('refresh', ({ version }) => { refreshed.push(`${name}${version}`) })
    const reads = store.reads.length
    await eventually('it was read several times', () => store.reads.length >= reads + 6)
    t.same([refreshed, a.there.connection.context.version], [[], 1], 'the same')
    store.put('s1', { user: { ...BOB, name: 'Robert', permissions: ['a:read', 'a:write'] }, elsewhere: 'is not looked at' })
    await eventually('both changed', () => refreshed.length === 2)
    for (const { there } of [a, b]) {
      t.match(there.connection.context, { version: 2, permissions: ['a:read', 'a:write'], user: { name: 'Robert' }, sessionId: 's1', via: 'cookie' })
      t.equal(there.request.auth, there.connection.context)
      t.ok(there.connection.can('a:write'))
    }
    t.equal(app.hybridAuth.count({ sessionId: 's1' }), 2)
    store.put('s1', { user: { ...BOB, name: 'Robert', permissions: [] } })
    await eventually('both changed again', () => refreshed.length === 4)
    t.same(refreshed.sort(), ['a2', 'a3', 'b2', 'b3'])
    t.notOk(a.there.connection.can('a:read'))
    t.equal(other.there.connection.context.version, 1)
  })

  beside(`a session of another user or tenant closes 4011 and is audited ${by}`, async t => {
    for (const changes of [{ userId: 'mallory' }, { tenantId: 'evil' }, { tenantId: null }]) {
      const { enter, store, events } = await withSessions(t, reader, new LiveStore().put('s1'))
      const { peer, there } = await enter('s1')
      store.put('s1', { user: { ...BOB, ...changes } })
      t.same(codeAndReason(await peer.end), { code: 4011, reason: closeReason('IdentityChanged') })
      await there.closed
      t.equal(there.connection.context.userId, 'bob')
      t.match(events.slice(-2), [{ type: 'identity_changed', userId: 'bob', authType: 'session' }, { type: 'closed', closeCode: 4011 }])
    }
  })

  beside(`a session that lost what the route asks for closes 4007 ${by}`, async t => {
    const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), { route: { permissions: ['a:read'] } })
    const { peer } = await enter('s1')
    store.put('s1', { user: { ...BOB, permissions: ['a:write'] } })
    t.equal((await peer.end).code, 4007)
  })

  beside(`a store that fails closes 4012 with onStoreError: close, and its words go nowhere ${by}`, async t => {
    for (const mode of ['down', 'rejecting', 'hanging'] as const) {
      const log = keepLines()
      const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), {
        onStoreError: 'close', auth: { handshakeTimeout: 200 }, fastify: { logger: { stream: log.stream } }
      })
      const { peer } = await enter('s1')
      store.mode = mode
      const failing = Date.now()
      const end = await peer.end
      t.same(codeAndReason(end), UNAVAILABLE, mode)
      t.ok(end.at < failing + REVALIDATE + 200 + LATE)
      t.notMatch(log.text() + peer.texts.join() + end.reason, CANARY)
    }
  })

  beside(`a store that fails is served without by default, until maxStale ${by}`, async t => {
    for (const mode of ['down', 'hanging'] as const) {
      const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), { maxStale: 1200, auth: { handshakeTimeout: 100 } })
      const { peer } = await enter('s1')
      store.mode = mode
      const failing = Date.now()
      await eventually('it failed twice', () => store.reads.length >= 3)
      t.ok(await peer.echoed('served'), mode)
      const end = await peer.end
      t.same(codeAndReason(end), UNAVAILABLE)
      t.ok(end.at >= failing + 1200 - REVALIDATE - 100 && end.at < failing + 1200 + REVALIDATE + LATE, `after ${end.at - failing} ms`)
    }
  })

  beside(`a store that comes back is read again, after an error and after it hung ${by}`, async t => {
    for (const mode of ['down', 'rejecting', 'hanging'] as const) {
      const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), { maxStale: 60_000, auth: { handshakeTimeout: 100 } })
      const { peer, there } = await enter('s1')
      store.mode = mode
      await eventually('it failed', () => store.reads.length >= 4)
      t.ok(await peer.echoed('served'))
      t.equal(there.connection.context.version, 1)
      store.mode = 'up'
      store.texts.delete('s1')
      t.same(codeAndReason(await peer.end), REVOKED, mode)
    }
  })

  beside(`one read serves every socket of a session ${by}`, async t => {
    const { app, enter, store } = await withSessions(t, reader, new LiveStore().put('s1').put('s2').put('s3'), { revalidate: 300 })
    for (const id of ['s1', 's2', 's3']) for (let i = 0; i < 20; i++) await enter(id)
    t.equal(app.hybridAuth.count(), 60)
    const first = store.reads.length
    const started = performance.now()
    await eventually('each was read three times', () => ['s1', 's2', 's3'].every(id => store.reads.slice(first).filter(one => one === id).length >= 3))
    // The jitter takes a tenth of the interval off at most.
    const rounds = Math.floor((performance.now() - started) / 270) + 1
    for (const id of ['s1', 's2', 's3']) {
      const reads = store.reads.slice(first).filter(one => one === id).length
      t.ok(reads <= rounds, `${reads} reads in ${rounds} intervals of 20 sockets`)
    }
    await app.hybridAuth.disconnect({})
    const last = store.reads.length
    await new Promise(resolve => { setTimeout(resolve, 700) })
    t.equal(store.reads.length, last, 'and who is gone is not read')
  })

  t.test(`sessionMaxAge: a message waits for a fresh reading, and what is behind it too ${by}`, async t => {
    const clock = setClock(t)
    setRandom(t, 0)
    const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), { revalidate: 30_000, route: { sessionMaxAge: 1000 }, auth: { heartbeat: false } })
    const { peer, there } = await enter('s1')
    const before = store.reads.length
    t.ok(await peer.echoed('fresh'))
    t.equal(store.reads.length, before, 'fresh enough')
    clock.move(1100)
    store.mode = 'gated'
    for (const text of ['m1', 'm2', 'm3']) peer.say(text)
    await eventually('it is being read', () => store.waiting === 1)
    peer.socket.ping()
    await new Promise(resolve => { peer.socket.once('pong', resolve) })
    t.same(there.received, ['fresh'])
    store.open()
    await peer.until(() => there.received.length === 4)
    t.ok(await peer.echoed('m4'))
    t.same(there.received, ['fresh', 'm1', 'm2', 'm3', 'm4'])
    t.equal(store.reads.length, before + 1, 'one reading')

    clock.move(1100)
    store.texts.delete('s1')
    peer.say('after the logout')
    await eventually('it is being read', () => store.waiting === 1)
    store.open()
    t.same(codeAndReason(await peer.end), REVOKED)
    t.equal(there.received.length, 5)
  })

  t.test(`sessionMaxAge: a message is judged by what was read ${by}`, async t => {
    const clock = setClock(t)
    setRandom(t, 0)
    const judged: number[] = []
    const { enter, store } = await withSessions(t, reader, new LiveStore().put('s1'), {
      revalidate: 30_000, auth: { heartbeat: false },
      route: { sessionMaxAge: 1000, authorize (auth) { judged.push(auth.version); return auth.permissions.includes('a:read') } }
    })
    const { peer, there } = await enter('s1')
    t.ok(await peer.echoed('allowed'))
    store.put('s1', { user: { ...BOB, permissions: [] } })
    clock.move(1100)
    peer.say('refused')
    t.match(await peer.takeFrame('error'), { code: 'forbidden' })
    t.same(there.received, ['allowed'])
    t.equal(judged.at(-1), 2)
  })

  t.test(`sessionMaxAge: a store that hangs holds a message no longer than the deadline, and does not deliver it ${by}`, async t => {
    const clock = setClock(t)
    const { enter, store, events } = await withSessions(t, reader, new LiveStore().put('s1'), {
      revalidate: 30_000, onStoreError: 'close', route: { sessionMaxAge: 1000 }, auth: { handshakeTimeout: 150, heartbeat: false }
    })
    const { peer, there } = await enter('s1')
    clock.move(1100)
    store.mode = 'hanging'
    peer.say('never judged')
    t.same(codeAndReason(await peer.end), UNAVAILABLE)
    await there.closed
    t.same(there.received, [])
    t.ok(events.some(({ type }) => type === 'closed'))
  })
}

t.test('sessionMaxAge: right after a reading no other is needed, whatever the jitter', async t => {
  const clock = setClock(t)
  setRandom(t, 0.99)
  const { enter, store } = await withSessions(t, 'store', new LiveStore().put('s1'), { revalidate: 30_000, route: { sessionMaxAge: 1000 }, auth: { heartbeat: false } })
  const { peer } = await enter('s1')
  const before = store.reads.length
  clock.move(1100)
  for (let i = 0; i < 10; i++) t.ok(await peer.echoed(`m${i}`))
  t.equal(store.reads.length, before + 1)
})

t.test('sessions that were read together are read apart the next time', async t => {
  const clock = setClock(t)
  const store = new LiveStore()
  const ids = Array.from({ length: 40 }, (_, i) => `s${i}`)
  for (const id of ids) store.put(id)
  const { enter } = await withSessions(t, 'store', store, { revalidate: 30_000, auth: { heartbeat: false } })
  const pairs = await Promise.all(ids.map(id => enter(id)))
  const round = async (ms: number) => {
    const before = store.reads.length
    clock.move(ms)
    for (const { there } of pairs) lookNow(there.connection)
    for (const { peer } of pairs) await peer.echoed(`${before} ${ms}`)
    return store.reads.length - before
  }
  t.equal(await round(30_001), 40)
  t.equal(await round(26_500), 0)
  const early = await round(2000)
  t.ok(early > 3 && early < 37, `${early} of 40 in the first half of the tenth`)
  t.equal(await round(1600), 40 - early)
})

t.test('at most fifty sessions are read at once, and all of them in the end', async t => {
  const store = new LiveStore()
  const ids = Array.from({ length: 120 }, (_, i) => `s${i}`)
  for (const id of ids) store.put(id)
  const { app, enter } = await withSessions(t, 'store', store, { revalidate: 30_000 })
  const clock = setClock(t)
  for (const id of ids) await enter(id)
  store.mode = 'gated'
  clock.move(30_100)
  const before = store.reads.length
  for (const connection of app.hybridAuth.connections()) lookNow(connection)
  await eventually('fifty are waiting', () => store.waiting === 50)
  t.equal(store.reads.length - before, 50)
  while (store.reads.length - before < 120 || store.waiting > 0) {
    t.ok(store.waiting <= 50)
    store.open()
    await new Promise(resolve => { setImmediate(resolve) })
  }
  t.same([...new Set(store.reads.slice(before))].length, 120)
})

t.test('case 70: after the clock was set back an hour, a logout still closes the socket within the interval', async t => {
  const clock = setClock(t)
  const { enter, store } = await withSessions(t, 'store', new LiveStore().put('s1'))
  const { peer, there } = await enter('s1')
  clock.move(-HOUR)
  store.texts.delete('s1')
  await Promise.race([peer.end, new Promise(resolve => { setTimeout(resolve, 2500) })])
  t.ok(peer.hasEnded)
  there.connection.close()
})

beside('a `refresh` listener that closes the other sockets of the session leaves no entry behind', async t => {
  const { app, enter, store } = await withSessions(t, 'store', new LiveStore().put('s1'))
  const pairs = await Promise.all([enter('s1'), enter('s1'), enter('s1')])
  for (const { there } of pairs) there.connection.on('refresh', () => { app.hybridAuth.disconnect({ sessionId: 's1' }).catch(() => {}) })
  store.put('s1', { user: { ...BOB, role: 'guest' } })
  for (const { peer } of pairs) t.equal((await peer.end).code, 4006)
  await Promise.all(pairs.map(({ there }) => there.closed))
  t.same([app.hybridAuth.count(), app.hybridAuth.count({ sessionId: 's1' }), app.hybridAuth.count({ userId: 'bob' })], [0, 0, 0])
  t.equal(pairs.filter(({ there }) => there.connection.context.version > 1).length, 1, 'who is closed gets no new context')
})

// Extending.

const rolling = (ms: number) => ({ cookie: { originalMaxAge: ms, expires: inMs(ms) } })

for (const reader of READERS) {
  beside(`session.touch extends a rolling session after messages of the application, and only then (read by the ${reader})`, async t => {
    const store = new TouchStore().put('s1', rolling(60_000))
    const { enter } = await withSessions(t, reader, store, { touch: true })
    const { peer, there } = await enter('s1')
    const { expiresAt } = there.connection.context
    peer.socket.ping()
    there.socket.send('from the server')
    const reads = store.reads.length
    await eventually('it was read', () => store.reads.length >= reads + 3)
    t.same(store.touched, [], 'nobody said anything')

    const used = Date.now()
    t.ok(await peer.echoed('used'))
    await eventually('it was extended', () => store.touched.length === 1)
    await eventually('the connection knows', () => (there.connection.context.expiresAt ?? 0) > (expiresAt ?? Infinity))
    t.ok((there.connection.context.expiresAt ?? 0) >= used + 60_000)
    t.equal(there.connection.context.version, 1)
    const after = store.reads.length
    await eventually('it was read again', () => store.reads.length >= after + 5)
    t.ok(store.touched.length <= 2, 'one use extends it once')
  })

  beside(`session.touch keeps a used socket past its first end, and an unused one not (read by the ${reader})`, async t => {
    const store = new TouchStore()
    const { enter } = await withSessions(t, reader, store, { touch: true })
    store.put('s1', rolling(900)).put('s2', rolling(900))
    const started = Date.now()
    const [used, unused] = await Promise.all([enter('s1'), enter('s2')])
    const timer = setInterval(() => { used.peer.say('x') }, 50)
    t.teardown(() => { clearInterval(timer) })
    t.equal((await unused.peer.end).code, 4002)
    await eventually('twice as long', () => Date.now() > started + 2000)
    t.notOk(used.peer.hasEnded)
    const rounds = Math.ceil((Date.now() - started) / (0.9 * REVALIDATE))
    t.ok(store.touched.length >= 2 && store.touched.length <= rounds, `${store.touched.length} times in ${rounds} intervals`)
    clearInterval(timer)
    t.equal((await used.peer.end).code, 4002)
  })
}

beside('session.touch leaves the data alone', async t => {
  const store = new TouchStore().put('s1', { ...rolling(60_000), cart: ['a'] })
  const { enter } = await withSessions(t, 'store', store, { touch: true })
  const { peer } = await enter('s1')
  store.put('s1', { ...rolling(60_000), cart: ['a', 'b'] })
  const opened = Date.now()
  await eventually('it is later', () => Date.now() > opened + 1)
  t.ok(await peer.echoed('used'))
  await eventually('it was extended', () => store.touched.length > 0)
  t.match(store.touched[0], { sessionId: 's1', session: { user: BOB, cart: ['a', 'b'], cookie: { originalMaxAge: 60_000 } } }, 'as it is now, not as it was')
  t.match(JSON.parse(store.texts.get('s1') ?? ''), { cart: ['a', 'b'], user: BOB })
})

beside('session.touch: a session that does not roll, a store that fails and a session that is gone extend nothing', async t => {
  const store = new TouchStore().put('s1', { cookie: { expires: inMs(60_000) } }).put('s2', rolling(60_000))
  const log = keepLines()
  const { enter } = await withSessions(t, 'store', store, { touch: true, fastify: { logger: { stream: log.stream } } })
  const [fixed, failing] = await Promise.all([enter('s1'), enter('s2')])
  const { expiresAt } = failing.there.connection.context
  store.touchFails = true
  const opened = Date.now()
  await eventually('it is later', () => Date.now() > opened + 1)
  t.ok(await fixed.peer.echoed('x') && await failing.peer.echoed('x'))
  await eventually('one failed', () => store.touched.length > 0)
  t.ok(store.touched.every(({ sessionId }) => sessionId === 's2'))
  t.ok(await failing.peer.echoed('it goes on'))
  t.equal(failing.there.connection.context.expiresAt, expiresAt)
  t.notMatch(log.text(), CANARY)
  store.texts.delete('s2')
  const touches = store.touched.length
  t.same(codeAndReason(await failing.peer.end), REVOKED)
  t.ok(store.touched.length <= touches + 1)
  t.notOk(store.texts.has('s2'), 'it does not come back')
})

t.test('session.touch: opening a socket is no use of the session', async t => {
  const clock = setClock(t)
  setRandom(t, 0.99)
  const store = new TouchStore().put('s1', rolling(HOUR))
  const { enter } = await withSessions(t, 'store', store, { revalidate: 30_000, touch: true, auth: { heartbeat: false } })
  const first = await enter('s1')
  clock.move(29_000)
  const second = await enter('s1')
  for (let round = 0; round < 4; round++) {
    clock.move(15_100)
    for (const { there } of [first, second]) lookNow(there.connection)
    await eventually('the reading is over', () => store.reads.length > 0)
    for (let turn = 0; turn < 10; turn++) await new Promise(resolve => { setImmediate(resolve) })
  }
  t.ok(store.reads.length >= 3)
  t.same(store.touched, [])
})

/** Looks at the connection and waits until the reading that follows, if any, is over. */
async function readNow (store: LiveStore, there: Awaited<ReturnType<LiveSessions['enter']>>['there']): Promise<void> {
  const before = store.reads.length
  lookNow(there.connection)
  await eventually('it was read', () => store.reads.length > before)
  for (let turn = 0; turn < 20; turn++) await new Promise(resolve => { setImmediate(resolve) })
}

t.test('session.touch: a message counts also in the very millisecond in which the socket was opened', async t => {
  const clock = setClock(t)
  const store = new TouchStore().put('s1', rolling(HOUR))
  const { enter } = await withSessions(t, 'store', store, { revalidate: 30_000, touch: true, auth: { heartbeat: false } })
  clock.freeze()
  const { peer, there } = await enter('s1')
  t.ok(await peer.echoed('at once'))
  clock.move(30_100)
  await readNow(store, there)
  t.equal(store.touched.length, 1)
})

t.test('session.touch: one message extends the session once, whatever the jitter', async t => {
  const clock = setClock(t)
  setRandom(t, 0.99)
  const store = new TouchStore().put('s1', rolling(HOUR))
  const { enter } = await withSessions(t, 'store', store, { revalidate: 30_000, touch: true, auth: { heartbeat: false } })
  const { peer, there } = await enter('s1')
  clock.move(29_000)
  t.ok(await peer.echoed('once'))
  for (const later of [1100, 30_100, 30_100]) {
    clock.move(later)
    await readNow(store, there)
  }
  t.equal(store.touched.length, 1)
})

beside('session.touch needs a store that can', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const session = { ...SESSION, secret: SESSION_SECRET, touch: true }
  await t.rejects(async () => app.register(hybridAuth, { session: { ...session, store: new LiveStore() } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /session\.touch/ })
  const other = Fastify()
  t.teardown(() => other.close())
  await t.resolves(async () => other.register(hybridAuth, { session: { ...session, store: new TouchStore() } }))
})

t.test('side by side', async t => {
  t.jobs = 8
  for (const { title, run } of together) t.test(title, { buffered: true }, run)
})
