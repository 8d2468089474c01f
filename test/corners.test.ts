/** What a server meets seldom: things missing, things exchanged behind its back, and values no type allows. */
import type { IncomingMessage } from 'node:http'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { byteLengthOf, toBuffer } from '../lib/connection/message.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { ownerOf } from '../lib/connection/socket.js'
import { askAgain } from '../lib/connection/watch.js'
import { acceptEarly } from '../lib/handshake/seam.js'
import hybridAuth, { type ConnectionFilter, type Identity } from '../lib/index.js'
import { logFault } from '../lib/observe/faults.js'
import { toSigner } from '../lib/verify/signer.js'
import { storeOf, touch } from '../lib/verify/store.js'
import { cookieFor } from './stores.js'
import { build, goodToken, JWT, portOf, SESSION, SESSION_SECRET, upgrade } from './helpers.js'

const bearer = () => ({ authorization: `Bearer ${goodToken()}` })

function app (t: Test): FastifyInstance {
  const instance = Fastify()
  t.teardown(() => instance.close())
  return instance
}

t.test('a WebSocket route without @fastify/websocket stops the start', async t => {
  const server = app(t)
  await server.register(hybridAuth, { jwt: JWT })
  server.route({ method: 'GET', url: '/live', websocket: true, handler: () => {} })
  await t.rejects(async () => server.ready(), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY', message: /@fastify\/websocket/ })
})

t.test('a socket of another class than the guarded one is cut off, and its handler does not run', async t => {
  const { app, host, handled } = await build(t)
  app.websocketServer.options.WebSocket = WebSocket as typeof app.websocketServer.options.WebSocket
  const outcome = await upgrade(t, host, { headers: bearer() })
  t.equal(outcome.code, 1006)
  t.equal(handled(), 0)
})

t.test('case 62: a broadcast to every client of the server does not reach a socket that owes its credential', async t => {
  const server = app(t)
  await server.register(websocket)
  await server.register(hybridAuth, { jwt: JWT })
  server.get('/first', { websocket: true, auth: { firstMessage: true } }, () => {})
  await server.listen({ port: 0, host: '127.0.0.1' })
  const client = new WebSocket(`ws://127.0.0.1:${portOf(server)}/first`)
  t.teardown(() => { client.terminate() })
  const heard: string[] = []
  client.on('message', (data: Buffer) => { heard.push(data.toString()) })
  await new Promise(resolve => { client.once('open', resolve) })

  const told: unknown[] = []
  for (const socket of server.websocketServer.clients) {
    socket.on('message', () => { t.fail('nobody hears what is not authenticated') })
    ownerOf(socket)?.listened()
    socket.emit('error', new Error('it has a listener of ours'))
    socket.send('secret news')
    await new Promise<void>(resolve => { socket.send('secret news', error => { told.push(error); resolve() }) })
    await new Promise<void>(resolve => { socket.send('secret news', {}, error => { told.push(error); resolve() }) })
  }
  t.match(told, [{ code: 'FST_HYBRID_AUTH_MISSING_CREDENTIALS' }, { code: 'FST_HYBRID_AUTH_MISSING_CREDENTIALS' }])
  client.send(JSON.stringify({ type: 'auth', token: goodToken() }))
  await new Promise(resolve => { client.once('message', resolve) })
  t.match(heard, [/^\{"type":"auth_success"/], 'the answer to the credential is the first that it hears')
})

t.test('a filter with a hole in it matches nobody, and says so', async t => {
  const { app } = await build(t)
  const filters: unknown[] = [{ userId: undefined }, { tenantId: undefined, userId: 'alice' }]
  for (const filter of filters) {
    t.throws(() => app.hybridAuth.connections(filter as ConnectionFilter), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /is undefined/ })
  }
})

t.test('an upgrade that cannot be accepted early is not', async t => {
  const server = app(t)
  await server.register(websocket)
  const raws: unknown[] = [{}, { [Symbol('ws-socket')]: {} }, { [Symbol('ws-socket')]: {}, [Symbol('ws-head')]: Buffer.alloc(0) }, { [Symbol('ws-socket')]: null, [Symbol('ws-head')]: 1 }]
  for (const raw of raws) t.equal(acceptEarly(server, raw as IncomingMessage, () => {}), false)
})

t.test('frames of every kind are counted, and read where they can be', async t => {
  t.equal(byteLengthOf(new Blob(['four'])), 4)
  t.equal(byteLengthOf([Buffer.from('ab'), Buffer.from('c')]), 3)
  t.equal(byteLengthOf(new ArrayBuffer(5)), 5)
  t.equal(toBuffer([Buffer.from('ab'), Buffer.from('c')]).toString(), 'abc')
  t.equal(toBuffer(new ArrayBuffer(2)).length, 2)
  t.throws(() => toBuffer(new Blob(['x'])), TypeError)
})

t.test('a connection by token has no session to read', async t => {
  const { app, host } = await build(t, {
    routes (app) {
      app.get('/own', { websocket: true }, async socket => {
        const connection = app.hybridAuth.connection(socket)
        if (connection instanceof GuardedConnection) await askAgain(connection)
        socket.send('{}')
      })
    }
  })
  t.same((await upgrade(t, host, { path: '/own', headers: bearer() })).context, {})
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a session that took the place of a bearer keeps saying so when its user changes', async t => {
  const contexts: unknown[] = []
  const { host, port, login } = await build(t, {
    auth: { session: { ...SESSION, revalidate: 100 } },
    routes (app) {
      app.post<{ Body: Identity }>('/change', async request => { request.session.user = request.body; return 'ok' })
      app.get('/own', { websocket: true }, socket => {
        app.hybridAuth.connection(socket)?.on('refresh', auth => {
          contexts.push(auth)
          socket.send('{}')
        })
      })
    }
  })
  const cookieHeader = await login()
  const opened = upgrade(t, host, { path: '/own', headers: { cookie: cookieHeader, origin: `http://${host}`, authorization: 'Bearer x.y.z' } })
  await fetch(`http://127.0.0.1:${port}/change`, {
    method: 'POST', headers: { cookie: cookieHeader, 'content-type': 'application/json' }, body: JSON.stringify({ userId: 'bob', role: 'agent', permissions: ['one', 'more'] })
  })
  await opened
  t.match(contexts, [{ version: 2, permissions: ['one', 'more'], fallbackFrom: 'FST_HYBRID_AUTH_INVALID_TOKEN' }])
})

t.test('what is missing is named: the signer, the store, and what a store cannot do', async t => {
  await t.rejects(toSigner(SESSION_SECRET, () => Promise.reject(new Error('not found'))), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY', message: /@fastify\/cookie/ })
  const bare: unknown = {}
  t.throws(() => storeOf(bare as FastifyRequest, undefined), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY' })
  await t.rejects(touch({ get () {} }, 'id'), { code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY', message: /touch/ })
})

t.test('a store is given the session back as it would keep it, and may refuse in any way', async t => {
  const given: unknown[] = []
  const storeWith = (cookie: object, refusal?: unknown) => ({
    get (_id: string, callback: (error: unknown, session?: unknown) => void) { callback(null, { user: 'u', cookie }) },
    touch (_id: string, session: unknown, callback: (error?: unknown) => void) {
      given.push(session)
      callback(refusal)
    }
  })
  const before = Date.now()
  t.ok(Number(await touch(storeWith({ originalMaxAge: 1000, hidden: 1, toJSON: () => ({ originalMaxAge: 1000, path: '/' }) }), 'id')) >= before + 1000)
  t.ok(Number(await touch(storeWith({ originalMaxAge: 1000, toJSON: 1 }, null), 'id')) >= before + 1000)
  t.match(given, [{ user: 'u', cookie: { path: '/', expires: Date } }, { cookie: { originalMaxAge: 1000 } }])
  t.notMatch(given, [{ cookie: { hidden: 1 } }])
  t.equal(await touch(storeWith({ originalMaxAge: null }), 'id'), null, 'a session that does not roll')
  await t.rejects(touch(storeWith({ originalMaxAge: 1000 }, new RangeError('x')), 'id'), RangeError)
  await t.rejects(touch(storeWith({ originalMaxAge: 1000 }, 'no'), 'id'), Error)
})

t.test('session.touch with a store of @fastify/session that cannot extend is a fault in the log, and the socket stays', async t => {
  const server = app(t)
  await server.register(cookie)
  await server.register(session, { secret: SESSION_SECRET, cookie: { secure: false, maxAge: 60_000 } })
  await server.register(websocket)
  await server.register(hybridAuth, { session: { ...SESSION, touch: true, revalidate: 100 } })
  server.post('/login', async request => { request.session.user = { userId: 'bob' }; return 'ok' })
  const faults: unknown[] = []
  server.get('/live', { websocket: true }, (socket, request) => {
    const { log } = request
    log.error = (line: unknown) => {
      faults.push(line)
      socket.send('{}')
    }
    socket.on('message', () => {})
  })
  await server.listen({ port: 0, host: '127.0.0.1' })
  const host = `127.0.0.1:${portOf(server)}`
  const answer = await fetch(`http://${host}/login`, { method: 'POST' })
  const client = new WebSocket(`ws://${host}/live`, { headers: { cookie: (answer.headers.get('set-cookie') ?? '').split(';', 1).join(), origin: `http://${host}` } })
  t.teardown(() => { client.terminate() })
  client.on('open', () => { client.send('used') })
  await new Promise(resolve => { client.once('message', resolve) })
  t.match(faults, [{ hybridAuth: { where: 'session.touch', code: 'FST_HYBRID_AUTH_MISSING_DEPENDENCY' } }])
  t.equal(client.readyState, WebSocket.OPEN)
})

t.test('a key that throws when it is looked at is no key', async t => {
  const key = { get key (): string { throw new Error('canary') }, algorithm: 'HS256' as const }
  await t.rejects(async () => app(t).register(hybridAuth, { jwt: { ...JWT, key } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: 'Invalid option jwt.key: is not usable' })
})

t.test('an error that names itself with what it was given is logged as an error', async t => {
  const lines: unknown[] = []
  const log = { ...app(t).log, error: (line: unknown) => { lines.push(line) } }
  logFault(log, 'test', Object.assign(new Error('x'), { name: 'No such token: canary' }))
  t.match(lines, [{ hybridAuth: { name: 'Error' } }])
  t.notMatch(JSON.stringify(lines), 'canary')
})

t.test('a mapper that returns what is no identity is warned of once', async t => {
  const warnings: unknown[] = []
  const server = app(t)
  server.log.warn = (line: unknown) => { warnings.push(line) }
  const numbered: unknown = { userId: 7 }
  await server.register(cookie)
  await server.register(session, { secret: SESSION_SECRET, cookie: { secure: false } })
  await server.register(hybridAuth, { jwt: { ...JWT, user: () => numbered as Identity }, session: { user: () => numbered as Identity } })
  server.get('/me', { auth: true }, async () => 'ok')
  const first = await server.inject({ url: '/me', headers: bearer() })
  t.equal((await server.inject({ url: '/me', headers: bearer() })).statusCode, 401)
  const [set = ''] = [first.headers['set-cookie'] ?? ''].flat()
  t.equal((await server.inject({ url: '/me', headers: { cookie: set.split(';', 1).join() } })).statusCode, 401)
  t.match(warnings, [/^jwt\.user returned/, /^session\.user returned/])
})

t.test('case 58: frames that a peer left behind its close are not delivered for a session that is gone by then', async t => {
  const readings: Array<(error: unknown, session?: unknown) => void> = []
  const stored = { user: { userId: 'bob' }, cookie: { expires: null } }
  let isOpen = false
  const server = app(t)
  await server.register(websocket)
  await server.register(hybridAuth, {
    session: {
      ...SESSION,
      secret: SESSION_SECRET,
      store: { get (_id, callback) { if (isOpen) readings.push(callback); else callback(null, stored) } }
    }
  })
  const heard: string[] = []
  const closed = new Promise<void>(resolve => {
    server.get('/live', { websocket: true, auth: { sessionMaxAge: 0 } }, socket => {
      isOpen = true
      socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
      socket.on('close', () => { resolve() })
      socket.send('{}')
    })
  })
  await server.listen({ port: 0, host: '127.0.0.1' })
  const host = `127.0.0.1:${portOf(server)}`
  const client = new WebSocket(`ws://${host}/live`, { headers: { cookie: cookieFor('s1'), origin: `http://${host}` } })
  await new Promise(resolve => { client.once('message', resolve) })
  const opened = Date.now()
  while (Date.now() <= opened + 1) await new Promise(resolve => { setImmediate(resolve) })
  client.send('left behind')
  client.close()
  while (server.hybridAuth.count() > 0 || readings.length === 0) await new Promise(resolve => { setImmediate(resolve) })
  for (const answer of readings) answer(null, null)
  await closed
  t.same(heard, [])
})
