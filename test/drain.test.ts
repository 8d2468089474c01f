import cookie from '@fastify/cookie'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { WebSocket } from 'ws'
import type { Connection, ConnectionFilter, DisconnectOptions, HybridAuthOptions, KeyMaterial } from '../lib/index.js'
import hybridAuth from '../lib/index.js'
import { wheel } from '../lib/wheel.js'
import { closeReason } from '../lib/protocol.js'
import { goodClaims, goodToken, handshake, JWT, portOf, SECRET, signHs256, statusOf, upgrade } from './helpers.js'
import { deafPeer, dial, eventually, live, setRandom, type Peer } from './live.js'
import { ask, codeOf, cookieFor, deferred, headerOf, MapStore, rawAnswer, serve, storeOf } from './stores.js'

const LATE = 700
const bearerLine = (token = goodToken()) => [`Authorization: Bearer ${token}`]
const reasonOf = (reason: string) => JSON.parse(reason) as { code: string, action: string, retryAfterMs: number }
const INVALID_OPTION = 'FST_HYBRID_AUTH_INVALID_OPTION'

t.test('app.close() closes every socket 1012 with its own time to come back, within the window', async t => {
  const { app, open } = await live(t, { auth: { drain: { window: 4000 } } })
  const pairs = await Promise.all(Array.from({ length: 80 }, (_, i) => open({ speaks: i % 2 === 0 })))
  const started = performance.now()
  await app.close()
  t.ok(performance.now() - started < 2000, 'peers that answer are not waited for')
  const ends = await Promise.all(pairs.map(({ peer }) => peer.end))
  t.ok(ends.every(({ code }) => code === 1012))
  const reasons = ends.map(({ reason }) => reasonOf(reason))
  t.ok(reasons.every(({ code, action }) => code === 'draining' && action === 'reconnect'))
  const times = reasons.map(({ retryAfterMs }) => retryAfterMs)
  t.ok(times.every(ms => Number.isInteger(ms) && ms >= 0 && ms < 4000))
  const quarters = new Set(times.map(ms => Math.floor(ms / 1000)))
  t.equal(quarters.size, 4, 'spread over all of it')
  for (const [i, { peer }] of pairs.entries()) {
    t.same(peer.framesOf('bye'), i % 2 === 0 ? [{ type: 'bye', code: 'draining', action: 'reconnect', retryAfterMs: times[i] }] : [])
  }
  t.ok(pairs.every(({ there }) => there.closes.join() === '1012'))
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a window of 0 lets everybody come back at once; the default is 5 s', async t => {
  const none = await live(t, { auth: { drain: { window: 0 } } })
  const usual = await live(t)
  setRandom(t, 0.999)
  const [now, later] = [await none.open(), await usual.open()]
  await Promise.all([none.app.close(), usual.app.close()])
  t.equal(reasonOf((await now.peer.end).reason).retryAfterMs, 0)
  t.equal(reasonOf((await later.peer.end).reason).retryAfterMs, 4995)
})

t.test('while it drains, new upgrades get 503 with Retry-After and HTTP goes on; who has not answered by the deadline is cut off', async t => {
  const { app, host, port, handled } = await live(t, { auth: { drain: { deadline: 1000 } } })
  const deaf = await deafPeer(t, port, bearerLine())
  await eventually('it is a connection', () => app.hybridAuth.count() === 1)
  const started = performance.now()
  let isClosed = false
  const closing = app.close().then(() => { isClosed = true })
  await eventually('it was told', () => app.hybridAuth.count() === 0)
  for (const path of ['/live', '/app']) {
    const answer = await rawAnswer(port, handshake(bearerLine(), { path }), '}')
    t.equal(statusOf(answer), 503, path)
    t.match(headerOf(answer, 'retry-after'), /^\d+$/)
    t.match(answer, 'FST_HYBRID_AUTH_UNAVAILABLE')
  }
  const anonymous = await upgrade(t, host, {})
  t.equal(anonymous.status, 503)
  const told = await upgrade(t, host, { protocols: ['hybrid-auth.v1'], headers: { authorization: `Bearer ${goodToken()}` } })
  t.ok(told.code === 4012 || told.code === 1012, `a client that speaks the protocol is told by close: ${told.code}`)
  t.equal((await ask(host, '/me', { headers: { authorization: `Bearer ${goodToken()}` } })).status, 200)
  t.notOk(isClosed)
  const took = await deaf.closed - started
  t.ok(took >= 950 && took < 1000 + LATE, `cut off after ${Math.round(took)} ms`)
  await closing
  t.equal(handled(), 0)
})

t.test('an upgrade whose verification began before app.close() and ends while it drains is refused or closed 1012', async t => {
  const found = deferred<KeyMaterial>()
  let asked = 0
  const key = ({ kid }: { kid?: string }) => {
    if (kid === undefined) return SECRET
    asked++
    return found.promise
  }
  let handled = 0
  const { app, port } = await live(t, { auth: { jwt: { ...JWT, key }, drain: { deadline: 1500 } }, handler: () => { handled++ } })
  await deafPeer(t, port, bearerLine())
  await eventually('one is a connection', () => app.hybridAuth.count() === 1)
  const late = rawAnswer(port, handshake(bearerLine(signHs256(goodClaims(), { kid: 'slow' })), { path: '/app' }), 'draining')
  await eventually('the key is asked for', () => asked === 1)
  const closing = app.close()
  await eventually('it drains', () => app.hybridAuth.count() === 0)
  found.resolve(SECRET)
  const answer = await late
  t.ok(statusOf(answer) === 503 || answer.includes('"draining"'), answer.split('\r\n')[0] ?? '')
  t.ok(handled === 1 || answer.includes('draining'), 'the handler of the late one runs only for a socket that is told')
  await closing
})

type Plugin = (app: FastifyInstance) => unknown
const plugins: Record<'cookie' | 'websocket' | 'hybridAuth', Plugin> = {
  cookie: app => app.register(cookie),
  websocket: app => app.register(websocket),
  hybridAuth: app => app.register(hybridAuth, { jwt: JWT })
}
const declareLive = (app: FastifyInstance) => app.get('/live', { websocket: true }, socket => { socket.on('message', () => {}) })

async function close1012 (t: Test, app: FastifyInstance, host: string, what: string, close: () => Promise<unknown> = () => app.close(), count = 3): Promise<void> {
  const peers: Peer[] = []
  for (let i = 0; i < count; i++) peers.push(await dial(t, host, { path: '/live' }))
  await close()
  t.same((await Promise.all(peers.map(({ end }) => end))).filter(({ code }) => code !== 1012), [], what)
  t.same((await Promise.all(peers.map(({ end }) => end))).map(({ reason }) => reasonOf(reason).code).filter(code => code !== 'draining'), [])
}

t.test('the order of the plugins makes no difference to the drain', async t => {
  const orders = [['websocket', 'hybridAuth'], ['hybridAuth', 'websocket'], ['cookie', 'websocket', 'hybridAuth'], ['websocket', 'hybridAuth', 'cookie']] as const
  for (const order of orders) {
    const { app, host } = await serve(t, async app => {
      for (const name of order) await plugins[name](app)
      await app.register(async scope => { declareLive(scope) })
    })
    await close1012(t, app, host, order.join())
  }
})

t.test('plugins that are registered without waiting drain too', async t => {
  const { app, host } = await serve(t, app => {
    app.register(hybridAuth, { jwt: JWT }).register(websocket)
    app.register(async scope => { declareLive(scope) })
  })
  await close1012(t, app, host, 'no await')
})

t.test('every registration of several drains its own sockets', async t => {
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    for (const prefix of ['/a', '/b']) {
      await app.register(async scope => {
        await scope.register(hybridAuth, { jwt: JWT, drain: { window: prefix === '/a' ? 0 : 1 } })
        declareLive(scope)
      }, { prefix })
    }
  })
  const [a, b] = [await dial(t, host, { path: '/a/live' }), await dial(t, host, { path: '/b/live' })]
  await app.close()
  t.same([(await a.end).code, (await b.end).code], [1012, 1012])
})

t.test('a scope that registered the plugin closes the whole application as the root does', async t => {
  let scoped: FastifyInstance | undefined
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(async scope => {
      scoped = scope
      await scope.register(hybridAuth, { jwt: JWT })
      declareLive(scope)
    })
  })
  await close1012(t, app, host, 'from a scope', async () => scoped?.close())
})

t.test('app.close(callback) calls back when all is closed', async t => {
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT })
    declareLive(app)
  })
  await close1012(t, app, host, 'callback', () => new Promise<void>(resolve => {
    app.close(() => {
      t.equal(app.server.listening, false)
      resolve()
    })
  }))
})

t.test('app.close() twice at once drains once, and both wait', async t => {
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT })
    declareLive(app)
  })
  await close1012(t, app, host, 'twice', () => Promise.all([app.close(), app.close()]), 120)
  await t.resolves(app.close(), 'and a third time')
})

t.test('a second app.close() does not cut the drain short', async t => {
  const { app, port } = await live(t, { auth: { drain: { deadline: 900 } } })
  const deaf = await deafPeer(t, port, bearerLine())
  await eventually('it is a connection', () => app.hybridAuth.count() === 1)
  const started = performance.now()
  const first = app.close()
  await eventually('it drains', () => app.hybridAuth.count() === 0)
  await app.close()
  t.ok(performance.now() - started >= 850, `the second was done after ${Math.round(performance.now() - started)} ms`)
  await Promise.all([first, deaf.closed])
})

t.test('app.close() before ready, without routes, without sockets and without @fastify/websocket', async t => {
  const bare = Fastify()
  bare.register(hybridAuth, { jwt: JWT })
  await t.resolves(bare.close())
  const awaited = Fastify()
  await awaited.register(hybridAuth, { jwt: JWT })
  await t.resolves(awaited.close())
  const ready = Fastify()
  await ready.register(websocket)
  await ready.register(hybridAuth, { jwt: JWT })
  await ready.ready()
  await t.resolves(ready.close())
  const called = Fastify()
  called.register(hybridAuth, { jwt: JWT })
  await t.resolves(new Promise<void>(resolve => { called.close(resolve) }))
})

t.test('sockets that are closing already, that closed, or that end during the drain hold it up no longer than their own time', async t => {
  const { app, open } = await live(t)
  const pairs = await Promise.all(Array.from({ length: 60 }, () => open()))
  pairs[0]?.there.connection.close()
  pairs[1]?.peer.socket.close()
  pairs[59]?.there.connection.on('close', () => {})
  for (const { there } of pairs.slice(2, 4)) there.connection.on('close', () => { pairs[58]?.peer.socket.terminate() })
  const started = performance.now()
  await app.close()
  t.ok(performance.now() - started < 2000)
  await Promise.all(pairs.map(({ there }) => there.closed))
  t.ok(pairs.every(({ there }) => there.closes.length === 1))
})

t.test('a socket that still owes its first message is drained too', async t => {
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT })
    app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => {})
  })
  const port = portOf(app)
  const answer = rawAnswer(port, handshake([], { path: '/first' }), 'draining')
  await eventually('it is open', () => app.websocketServer.clients.size === 1)
  t.equal(app.hybridAuth.count(), 0)
  await app.close()
  t.match(await answer, '"code":"draining","action":"reconnect"', host)
})

t.test('after the drain the wheel is empty', async t => {
  await eventually('nothing waits', () => wheel.size === 0)
  t.equal(wheel.size, 0)
})

// What the application may ask and say.

t.test('app.hybridAuth.connection() is the connection of a guarded socket, and null of an open route\'s', async t => {
  const seen: Array<Connection | null> = []
  const { app, host, open } = await live(t, {
    routes (app) { app.get('/open', { websocket: true, auth: false }, (socket: WebSocket) => { seen.push(app.hybridAuth.connection(socket)); socket.send('{}') }) }
  })
  const { peer, there } = await open()
  t.equal(app.hybridAuth.connection(there.socket), there.connection)
  t.equal(app.hybridAuth.connection(peer.socket), null, 'a socket that is none of ours')
  await upgrade(t, host, { path: '/open' })
  t.same(seen, [null])
  there.connection.close()
  await there.closed
  t.equal(app.hybridAuth.connection(there.socket), there.connection, 'after the end too')
})

t.test('connections(), count() and disconnect() filter by user, issuer, tenant, session, token and type', async t => {
  const store = new MapStore()
  const { app, open } = await live(t, { session: { store } })
  store.put('s1', { user: { userId: 'bob', tenantId: 'acme' }, cookie: {} })
  const people = {
    a1: await open({ token: goodToken({ jti: 'a1' }) }),
    a2: await open({ token: goodToken({ jti: 'a2', iss: 'https://a.example', companyId: 'acme' }) }),
    b1: await open({ cookie: cookieFor('s1') }),
    b2: await open({ cookie: cookieFor('s1') }),
    b3: await open({ token: goodToken({ sub: 'bob', jti: 'b3' }) })
  }
  const namesOf = (found: Connection[]) => Object.entries(people).filter(([, { there }]) => found.includes(there.connection)).map(([name]) => name).join()
  const table: Array<[ConnectionFilter, string]> = [
    [{}, 'a1,a2,b1,b2,b3'], [{ userId: 'bob' }, 'b1,b2,b3'], [{ issuer: null }, 'a1,b1,b2,b3'], [{ issuer: 'https://a.example' }, 'a2'], [{ tenantId: 'acme' }, 'a2,b1,b2'],
    [{ sessionId: 's1' }, 'b1,b2'], [{ tokenId: 'b3' }, 'b3'], [{ authType: 'session' }, 'b1,b2'], [{ userId: 'bob', authType: 'jwt' }, 'b3'], [{ userId: 'nobody' }, ''], [{ tokenId: 's1' }, '']
  ]
  for (const [filter, names] of table) {
    t.equal(namesOf(app.hybridAuth.connections(filter)), names, JSON.stringify(filter))
    t.equal(app.hybridAuth.count(filter), names === '' ? 0 : names.split(',').length)
  }
  t.equal(app.hybridAuth.connections().length, 5)
  t.equal(app.hybridAuth.count(), 5)
  t.match(await app.hybridAuth.disconnect({ userId: 'nobody' }), { matched: 0, closed: 0 })
  t.match(await app.hybridAuth.disconnect({ sessionId: 's1' }), { matched: 2, closed: 2 })
  t.same([(await people.b1.peer.end).code, (await people.b2.peer.end).code], [4006, 4006])
  t.equal(app.hybridAuth.count(), 3)
  t.match(await app.hybridAuth.disconnect({ userId: 'alice', tenantId: null }, { code: 'Forbidden' }), { matched: 1, closed: 1 })
  t.same(await people.a1.peer.end.then(({ code, reason }) => [code, reason]), [4007, closeReason('Forbidden')])
  t.match(await app.hybridAuth.disconnect({}, { code: 3999, reason: 'see you: 12.30' }), { matched: 2, closed: 2 })
  for (const { peer } of [people.a2, people.b3]) {
    const end = await peer.end
    t.equal(end.code, 3999)
    t.same(reasonOf(end.reason), { code: 'see you: 12.30', action: 'stop', retryAfterMs: 0 })
  }
  t.match(await app.hybridAuth.disconnect({}), { matched: 0, closed: 0 })
})

t.test('what disconnect() cannot do rejects, names the argument, and closes nobody', async t => {
  const { app, open } = await live(t)
  const { peer } = await open()
  const badOptions: Array<[string, unknown]> = [
    ['code', { code: 1000 }], ['code', { code: 1005 }], ['code', { code: 2999 }], ['code', { code: 5000 }], ['code', { code: 4000.5 }], ['code', { code: NaN }], ['code', { code: Infinity }],
    ['code', { code: '4006' }], ['code', { code: 'revoked' }], ['code', { code: 'toString' }], ['code', { code: '__proto__' }], ['code', { code: null }], ['code', { code: {} }], ['code', { code: true }],
    ['reason', { reason: '' }], ['reason', { reason: 'x'.repeat(41) }], ['reason', { reason: 7 }], ['reason', { reason: null }], ['reason', { reason: '"'.repeat(40) }], ['reason', { reason: '\u0000'.repeat(20) }],
    ['reason', { reason: 'é'.repeat(40) }], ['reason', { reason: 'line\nline' }], ['reason', { reason: {} }]
  ]
  for (const [name, options] of badOptions) {
    await t.rejects(app.hybridAuth.disconnect({}, options as DisconnectOptions), { code: INVALID_OPTION, message: new RegExp(name) }, JSON.stringify(options))
  }
  const badFilters: unknown[] = [{ user: 'alice' }, { userID: 'alice' }, { userId: 'alice', role: 'x' }, { id: 'x' }]
  for (const filter of badFilters) {
    await t.rejects(app.hybridAuth.disconnect(filter as ConnectionFilter), { code: INVALID_OPTION, message: /filter/ }, JSON.stringify(filter))
    t.throws(() => app.hybridAuth.count(filter as ConnectionFilter), { code: INVALID_OPTION })
    t.throws(() => app.hybridAuth.connections(filter as ConnectionFilter), { code: INVALID_OPTION })
  }
  const nothing: unknown[] = [undefined, null, 'alice', 7]
  for (const filter of nothing) await t.rejects(app.hybridAuth.disconnect(filter as ConnectionFilter), `${String(filter)} is no filter`)
  t.ok(await peer.echoed('still here'))
  t.equal(app.hybridAuth.count(), 1)
})

t.test('a connection has an id of its own, which is no credential', async t => {
  const { open } = await live(t)
  const pairs = await Promise.all(Array.from({ length: 50 }, () => open({ token: goodToken({ jti: 'one' }) })))
  const ids = pairs.map(({ there }) => there.connection.id)
  t.equal(new Set(ids).size, 50)
  t.ok(ids.every(id => /^[\w-]{8,40}$/.test(id) && !id.includes('one')))
  t.same(pairs.map(({ there }) => there.connection.id), ids, 'the same each time')
})

t.test('can() asks the current context by exact name', async t => {
  const { open } = await live(t)
  const { there: { connection } } = await open({ token: goodToken({ permissions: ['a:read'] }) })
  t.same(['a:read', 'a:rea', 'A:READ', 'a:*', '', 'toString', 'length'].map(name => connection.can(name)), [true, false, false, false, false, false, false])
})

t.test('send() sends JSON, says whether it did, and throws for what JSON cannot hold', async t => {
  const { open } = await live(t)
  const { peer, there: { connection, closed } } = await open()
  for (const value of [{ a: 1 }, [1], 'x', 7, null, true]) t.equal(connection.send(value), true)
  await peer.until(() => peer.texts.length === 6)
  t.same(peer.texts, ['{"a":1}', '[1]', '"x"', '7', 'null', 'true'])
  const loop: Record<string, unknown> = {}
  loop.self = loop
  for (const value of [loop, 1n, undefined, () => 1, Symbol('x')]) t.throws(() => connection.send(value), TypeError, typeof value)
  connection.close()
  t.equal(connection.send({ late: true }), false, 'while it closes')
  await Promise.all([peer.end, closed])
  t.equal(connection.send({ late: true }), false, 'after it closed')
  t.equal(peer.texts.length, 6)
})

t.test('send() on a socket whose peer is closing sends nothing', async t => {
  const { open } = await live(t)
  const { peer, there: { connection, closed } } = await open()
  peer.socket.close()
  await closed
  t.equal(connection.send('x'), false)
})

t.test('close() takes a name or a code, and a reason; what it cannot do throws and leaves the socket open', async t => {
  const { app, open } = await live(t)
  const ends: Array<[(connection: Connection) => void, number, string]> = [
    [connection => { connection.close() }, 4006, 'revoked'], [connection => { connection.close('Inactive') }, 4003, 'inactive'], [connection => { connection.close('Inactive', 'lunch') }, 4003, 'lunch'],
    [connection => { connection.close(3000) }, 3000, 'closed'], [connection => { connection.close(4999, 'x'.repeat(40)) }, 4999, 'x'.repeat(40)], [connection => { connection.close(1012) }, 1012, 'draining']
  ]
  for (const [close, code, reason] of ends) {
    const { peer, there } = await open()
    close(there.connection)
    close(there.connection)
    const end = await peer.end
    t.same([end.code, reasonOf(end.reason).code], [code, reason])
    await there.closed
    t.same(there.closes, [code], 'told once')
  }
  const { peer, there: { connection } } = await open()
  const bad: Array<[unknown, unknown]> = [[1005, undefined], [99_999, undefined], ['nothing', undefined], ['constructor', undefined], ['Revoked', ''], ['Revoked', 'x'.repeat(200)], ['Revoked', '"'.repeat(40)], [4006, 7]]
  for (const [code, reason] of bad) {
    t.throws(() => { connection.close(code as number, reason as string) }, { code: INVALID_OPTION }, `${String(code)}, ${String(reason)}`)
  }
  t.ok(await peer.echoed('still open'))
  t.equal(app.hybridAuth.count(), 1)
})

t.test('on() adds listeners, off() removes them, and both return the connection', async t => {
  const { open } = await live(t)
  const { peer, there: { connection, closed } } = await open()
  const told: string[] = []
  const first = () => { told.push('first') }
  const second = () => { told.push('second') }
  t.equal(connection.off('refresh', first), connection, 'one that was never added')
  t.equal(connection.on('refresh', first), connection)
  connection.on('refresh', second).on('close', code => { told.push(`closed ${code}`) })
  peer.say({ type: 'auth_update', token: goodToken() })
  await peer.takeFrame('auth_updated')
  t.equal(connection.off('refresh', first), connection)
  peer.say({ type: 'auth_update', token: goodToken() })
  await peer.takeFrame('auth_updated')
  connection.close()
  await closed
  t.same(told, ['first', 'second', 'second', 'closed 4006'])
})

t.test('disconnect() reaches a connection that a `close` listener of another has just made irrelevant, once', async t => {
  const { app, open } = await live(t)
  const pairs = await Promise.all(Array.from({ length: 4 }, () => open()))
  for (const { there } of pairs) there.connection.on('close', () => { app.hybridAuth.disconnect({}).catch(() => {}) })
  t.match(await app.hybridAuth.disconnect({ userId: 'alice' }), { matched: 4, closed: 4 })
  for (const { peer, there } of pairs) {
    t.equal((await peer.end).code, 4006)
    await there.closed
    t.same(there.closes, [4006])
  }
})

t.test('a route without a websocket server has no connections, and the rest of the API works', async t => {
  const options: HybridAuthOptions = { session: { user: () => null, store: storeOf((_id, callback) => { callback(null, null) }), secret: SECRET } }
  const { app, host } = await serve(t, async app => {
    await app.register(hybridAuth, options)
    app.get('/me', { auth: true }, async request => request.auth)
  })
  t.match([app.hybridAuth.count(), app.hybridAuth.connections(), await app.hybridAuth.disconnect({})], [0, [], { matched: 0 }])
  t.equal(codeOf((await ask(host, '/me')).body), 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
})
