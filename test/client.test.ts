/** The client, against a real server wherever that has a part in it. */
import t from 'tap'
import { WebSocket } from 'ws'
import { createAuthSocket, type AuthSocket, type TokenRequest } from '../lib/client/index.js'
import { closeReason, SUBPROTOCOL } from '../lib/protocol.js'
import { countedSockets, fakeSockets, fakeTime, serverAt, settle, timersSet, watched, watching, withHeaders, type FakeSocket } from './clients.js'
import { build, goodToken, inSeconds, JWT, SECRET, signHs256, type Server } from './helpers.js'
import { eventually, live, setRandom } from './live.js'
import { ask, deferred, MapStore, never, cookieFor } from './stores.js'

const GARBAGE = 'not.a.token'
/** Quick to come back, and not at once. */
const QUICK = 0.1

async function ticketOf ({ host }: Server, token = goodToken()): Promise<string> {
  const { body } = await ask(host, '/ticket', { headers: { authorization: `Bearer ${token}` } })
  return (JSON.parse(body) as { ticket: string }).ticket
}

t.test('every way to attach a credential opens a socket, as whom it is for', async t => {
  const server = await build(t, {
    auth: { credentials: { query: true } },
    routes (app) {
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
      app.get('/ticket', { auth: true }, async request => ({ ticket: await app.hybridAuth.issueTicket(request) }))
    }
  })
  const url = `ws://${server.host}/live`
  const cases = [
    { attach: undefined, via: 'subprotocol', userId: 'alice', identity: { id: 'alice' }, getToken: () => goodToken() },
    { attach: 'protocol', via: 'subprotocol', userId: 'alice', identity: { id: 'alice' }, getToken: async () => goodToken() },
    { attach: 'message', via: 'message', userId: 'alice', identity: { id: 'alice' }, getToken: () => goodToken(), url: `ws://${server.host}/first` },
    { attach: 'ticket', via: 'ticket', userId: 'alice', identity: { id: 'alice' }, getToken: () => ticketOf(server) },
    { attach: 'query', via: 'query', userId: 'alice', identity: { id: 'alice' }, getToken: () => goodToken() },
    { attach: 'cookie', via: 'cookie', userId: 'bob', identity: { id: 'bob' }, WebSocket: withHeaders({ cookie: await server.login(), origin: `http://${server.host}` }) }
  ] as const
  for (const { attach, via, userId, identity, ...rest } of cases) {
    const what = attach ?? 'the default'
    const { client, opens, messages, order, until } = watched(t, { url, attach, ...rest })
    t.equal(client.state, 'waiting', `${what}: nothing happens before the next turn of the loop`)
    await until('a message', () => messages.length > 0)
    t.same(opens, [{ identity, recovered: false }], what)
    t.same(client.identity, identity, what)
    const [message] = messages
    t.match(message, { room: null, data: String }, what)
    if (message !== undefined && 'data' in message) t.match(JSON.parse(String(message.data)), { via, userId }, what)
    t.same(order, ['connecting', 'open', 'open'], what)
    client.close()
  }
})

t.test('a token that is refused is 4001 and not 1006: it stops, and is sent once', async t => {
  const { host } = await build(t)
  const { WebSocket, made } = countedSockets()
  const { client, closes, until } = watched(t, { url: `ws://${host}/live`, getToken: () => GARBAGE, WebSocket })
  await until('it is closed', () => client.state === 'closed')
  t.same(closes, [{ code: 4001, reason: 'authentication_failed', action: 'stop', terminal: true }])
  t.same(made.map(({ protocols }) => protocols), [[SUBPROTOCOL, `bearer.${GARBAGE}`]])
})

t.test('a refused token is not sent again by connect() either: getToken is asked why, and the next one opens', async t => {
  const { host } = await build(t)
  const { WebSocket, made } = countedSockets()
  const asked: string[] = []
  const tokens = [GARBAGE, GARBAGE, goodToken()]
  setRandom(t, QUICK)
  const { client, errors, until, isOpen } = watched(t, {
    url: `ws://${host}/live`,
    WebSocket,
    getToken ({ reason, attempt }) {
      asked.push(`${reason} ${attempt}`)
      return tokens.shift() ?? null
    }
  })
  await until('it is closed', () => client.state === 'closed')
  client.connect()
  await isOpen()
  t.same(asked, ['connect 0', 'rejected 0', 'rejected 1'])
  t.match(errors, [{ stage: 'token', error: { message: /refused/ } }])
  t.equal(made.length, 2)
})

t.test('an expired token is 4002: another one is asked for, and opens', async t => {
  const { host } = await build(t)
  setRandom(t, QUICK)
  const asked: string[] = []
  const tokens = [goodToken({ exp: inSeconds(-60), iat: inSeconds(-120) }), goodToken()]
  const { closes, opens, messages, until } = watched(t, {
    url: `ws://${host}/live`,
    getToken ({ reason }) {
      asked.push(reason)
      return tokens.shift() ?? null
    }
  })
  await until('the second one is open', () => messages.length > 0)
  t.same(closes, [{ code: 4002, reason: 'expired', action: 'refresh', terminal: false }])
  t.same(asked, ['connect', 'rejected'])
  t.equal(opens.at(-1)?.identity?.id, 'alice')
})

t.test('a socket that the rule of its route refuses is 4007, and stops', async t => {
  const { host } = await live(t, { route: { role: 'admin' } })
  const { client, closes, until } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken() })
  await until('it is closed', () => client.state === 'closed')
  t.same(closes, [{ code: 4007, reason: 'forbidden', action: 'stop', terminal: true }])
})

t.test('a server that cannot verify is 4012: it is tried again with the same token, after what the server says', async t => {
  let isDown = true
  const key = async () => {
    if (isDown) throw new Error('the keys are away')
    return SECRET
  }
  const { host } = await build(t, { auth: { jwt: { ...JWT, key } } })
  const delays = timersSet(t)
  const { WebSocket, made } = countedSockets()
  let asked = 0
  const { client, closes, messages, until } = watched(t, { url: `ws://${host}/live`, WebSocket, getToken: () => { asked++; return goodToken() } })
  await until('it waits', () => client.state === 'waiting' && closes.length === 1)
  t.same(closes, [{ code: 4012, reason: 'unavailable', action: 'retry', terminal: false }])
  t.ok(delays.some(ms => ms >= 5000 && ms <= 5500), 'five seconds, and jitter')
  isDown = false
  client.connect()
  await until('it is open', () => messages.length === 1)
  t.equal(asked, 1)
  t.equal(made.length, 2)
})

t.test('an upgrade that is one too many is 4008 rather than 429, and comes back when the server says', async t => {
  const { host } = await build(t, { auth: { limits: { connects: { perUser: 1 } } } })
  const first = watched(t, { url: `ws://${host}/live`, getToken: () => goodToken() })
  await first.until('the first one is in', () => first.messages.length > 0)
  const delays = timersSet(t)
  const { WebSocket, made } = countedSockets()
  const second = watched(t, { url: `ws://${host}/live`, getToken: () => goodToken(), WebSocket })
  await second.until('it waits', () => second.client.state === 'waiting' && second.closes.length === 1)
  t.same(second.closes, [{ code: 4008, reason: 'rate_limited', action: 'retry', terminal: false }])
  const { retryAfterMs } = JSON.parse(made[0]?.reasons[0] ?? '') as { retryAfterMs: number }
  t.ok(retryAfterMs > 1000, `${retryAfterMs}`)
  t.ok(delays.some(ms => ms >= retryAfterMs && ms <= retryAfterMs + 500))
})

/** Sends numbers from 0, one every few milliseconds. */
function numbers ({ socket }: { socket: WebSocket }): void {
  let n = 0
  const timer = setInterval(() => { socket.send(String(n++)) }, 10)
  socket.on('close', () => { clearInterval(timer) })
}

for (const attach of ['protocol', 'message', 'query'] as const) {
  t.test(`attach ${attach}: a token is replaced ahead of its end over the same socket, and a numbered stream has no gap`, async t => {
    const { host } = await live(t, { auth: { credentials: { query: true } }, route: { firstMessage: attach === 'message' }, handler: numbers })
    const { WebSocket, made } = countedSockets()
    const asked: string[] = []
    const ends: number[] = []
    const { client, closes, opens, texts, until } = watched(t, {
      url: `ws://${host}/app`,
      attach,
      WebSocket,
      getToken ({ reason }) {
        asked.push(reason)
        ends.push(Date.now() + 2000)
        return goodToken({ exp: inSeconds(2) })
      }
    })
    await until('the end of two tokens is over', () => Date.now() > (ends[1] ?? Infinity) + 200, 8000)
    client.close()
    const all = texts()
    t.same(all, all.map((_, i) => String(i)))
    t.ok(all.length > 150, `${all.length}`)
    t.equal(made.length, 1)
    t.equal(opens.length, 1)
    t.same(closes.map(({ code }) => code), [1000])
    t.equal(asked[0], 'connect')
    t.ok(asked.length >= 3 && asked.length <= 6 && asked.slice(1).every(reason => reason === 'expiring'), asked.join())
  })
}

t.test('a token that is older than it says when it comes is replaced when the server asks, without a gap', async t => {
  const { host } = await live(t, { handler: numbers })
  const { WebSocket, made } = countedSockets()
  const asked: string[] = []
  const end = inSeconds(2)
  const { closes, texts, until } = watched(t, {
    url: `ws://${host}/app`,
    WebSocket,
    getToken ({ reason }) {
      asked.push(reason)
      return asked.length === 1 ? goodToken({ iat: inSeconds(-3600), exp: end }) : goodToken()
    }
  })
  await until('its end is over', () => Date.now() > end * 1000 + 200)
  const all = texts()
  t.same(all, all.map((_, i) => String(i)))
  t.same(asked, ['connect', 'expiring'])
  t.same(closes, [])
  t.equal(made.length, 1)
})

t.test('a new token that the server refuses is followed by another one, and the socket stays', async t => {
  const { host } = await live(t, { handler: numbers })
  const { WebSocket, made } = countedSockets()
  const asked: string[] = []
  const end = inSeconds(3)
  const tokens = [goodToken({ iat: inSeconds(-3600), exp: end }), GARBAGE, goodToken()]
  const { closes, errors, until } = watched(t, {
    url: `ws://${host}/app`,
    WebSocket,
    getToken ({ reason }) {
      asked.push(reason)
      return tokens.shift() ?? null
    }
  })
  await until('the end of the first one is over', () => Date.now() > end * 1000 + 200)
  t.same(asked, ['connect', 'expiring', 'rejected'])
  t.same(closes, [])
  t.same(errors, [])
  t.equal(made.length, 1)
})

t.test('a new token that cannot be verified at the moment is sent again, and the socket outlives the first one', async t => {
  let failures = 0
  const key = async ({ kid }: { kid?: string }) => {
    if (kid === 'away' && failures++ === 0) throw new Error('the keys are away')
    return SECRET
  }
  const { host, app } = await live(t, { auth: { jwt: { ...JWT, key }, expiryGrace: 0 } })
  setRandom(t, QUICK)
  const { WebSocket, made } = countedSockets()
  const end = inSeconds(2)
  const tokens = [goodToken({ iat: inSeconds(-3600), exp: end })]
  const { closes, until } = watched(t, {
    url: `ws://${host}/app`, WebSocket, getToken: () => tokens.shift() ?? signHs256({ sub: 'alice', iat: inSeconds(0), exp: inSeconds(300) }, { kid: 'away' })
  })
  await until('the end of the first one is over', () => Date.now() > end * 1000 + 300)
  t.ok(failures >= 1)
  t.same(closes, [])
  t.equal(made.length, 1)
  t.equal(app.hybridAuth.count(), 1)
})

t.test('a logout closes the socket of its session 4006 for good', async t => {
  const store = new MapStore()
  store.put('s1', { user: { userId: 'bob' }, cookie: {} })
  const { app, host } = await live(t, { session: { store } })
  const { client, closes, states, isOpen, until } = watched(t, { url: `ws://${host}/app`, WebSocket: withHeaders({ cookie: cookieFor('s1'), origin: `http://${host}` }) })
  await isOpen()
  await eventually('the server has it', () => app.hybridAuth.count() === 1)
  await app.hybridAuth.revoke({ userId: 'bob' })
  await until('it is closed', () => client.state === 'closed')
  t.same(closes, [{ code: 4006, reason: 'revoked', action: 'stop', terminal: true }])
  t.same(states, ['connecting', 'open', 'closed'])
})

t.test('a server that comes back is found again: recovered, in the rooms it was in, and no other', async t => {
  setRandom(t, QUICK)
  const auth = { rooms: { authorize: () => true } }
  const declare = (app: Parameters<Parameters<typeof serverAt>[1]['declare']>[0]) => {
    app.get('/app', { websocket: true, auth: { rooms: true } }, socket => { socket.on('message', () => {}) })
  }
  const first = await serverAt(t, { auth, declare })
  const { client, opens, messages, closes, until, isOpen } = watched(t, { url: `http://127.0.0.1:${first.port}/app`, getToken: () => goodToken() })
  client.join('one')
  client.join('never')
  client.leave('never')
  await isOpen()
  client.join('two')
  client.join('left')
  client.leave('left')
  await until('it is in two rooms', () => first.app.hybridAuth.rooms.count('two') === 1 && first.app.hybridAuth.rooms.count('left') === 0)
  for (const socket of first.app.websocketServer.clients) socket.terminate()
  await first.app.close()
  await until('it has noticed', () => closes.length > 0)
  t.match(closes[0], { code: 1006, action: 'retry', terminal: false })
  const second = await serverAt(t, { port: first.port, auth, declare })
  await until('it is back', () => opens.length === 2)
  t.same(opens[1], { identity: { id: 'alice' }, recovered: true })
  const { rooms } = second.app.hybridAuth
  await eventually('it is in two rooms', () => rooms.count('one') === 1 && rooms.count('two') === 1)
  t.equal(rooms.count('left') + rooms.count('never'), 0)
  await rooms.publish('two', { n: 1 })
  await until('it hears', () => messages.length === 1)
  t.same(messages, [{ room: 'two', payload: { n: 1 } }])
})

t.test('a server that is away for long is found again with the token that getToken goes on giving', async t => {
  setRandom(t, QUICK)
  const declare = (app: Parameters<Parameters<typeof serverAt>[1]['declare']>[0]) => {
    app.get('/app', { websocket: true }, socket => { socket.on('message', () => {}) })
  }
  const first = await serverAt(t, { declare })
  const token = goodToken()
  const { WebSocket, made } = countedSockets()
  const { opens, until, isOpen } = watched(t, { url: `ws://127.0.0.1:${first.port}/app`, getToken: () => token, WebSocket })
  await isOpen()
  for (const socket of first.app.websocketServer.clients) socket.terminate()
  await first.app.close()
  await until('it has tried often', () => made.length >= 3)
  await new Promise(resolve => { setTimeout(resolve, 300) })
  await serverAt(t, { port: first.port, declare })
  await until('it is back', () => opens.length === 2)
})

t.test('a server that drains is left with 1012, and not asked again before the time that it gives', async t => {
  const { app, host } = await live(t, { auth: { drain: { window: 60_000 } } })
  const { client, closes, until, isOpen } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken() })
  await isOpen()
  await eventually('the server has it', () => app.hybridAuth.count() === 1)
  setRandom(t, 0.9)
  const delays = timersSet(t)
  await app.close()
  await until('it waits', () => client.state === 'waiting')
  t.same(closes, [{ code: 1012, reason: 'draining', action: 'reconnect', terminal: false }])
  t.ok(delays.some(ms => ms >= 54_000 && ms <= 55_000), delays.join())
})

t.test('permissions that were changed are told', async t => {
  const { app, host } = await live(t)
  const { permissions, isOpen, until } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken({ permissions: ['a', 'b'] }) })
  await isOpen()
  await eventually('the server has it', () => app.hybridAuth.count() === 1)
  await app.hybridAuth.setPermissions('alice', ['b', 'c'])
  await until('it is told', () => permissions.length === 1)
  t.match(permissions[0], { permissions: ['b', 'c'], added: ['c'], removed: ['a'] })
})

t.test('what one says in a room the others hear; a room that one may not be in any more is not joined again', async t => {
  setRandom(t, QUICK)
  const { app, host } = await live(t, {
    auth: { rooms: { authorize: (auth, room) => room === 'open' || auth.permissions.includes(room) } }, route: { rooms: true }
  })
  const url = `ws://${host}/app`
  const bob = watched(t, { url, getToken: () => goodToken({ sub: 'bob' }) })
  const alice = watched(t, { url, getToken: () => goodToken({ permissions: ['secret'] }) })
  for (const { client } of [alice, bob]) client.join('open')
  alice.client.join('secret')
  await eventually('both are in', () => app.hybridAuth.rooms.count('open') === 2 && app.hybridAuth.rooms.count('secret') === 1)
  t.equal(alice.client.publish('open', { hello: 'bob' }), true)
  await bob.until('bob hears it', () => bob.messages.length === 1)
  t.same(bob.messages, [{ room: 'open', payload: { hello: 'bob' } }])
  bob.client.publish('secret', 1, 'mine')
  await bob.until('bob is refused', () => bob.errors.length === 1)
  t.match(bob.errors, [{ stage: 'refused', error: { type: 'error', room: 'secret', id: 'mine' } }])

  await app.hybridAuth.setPermissions('alice', [])
  await eventually('she is out', () => app.hybridAuth.rooms.count('secret') === 0)
  await app.hybridAuth.setPermissions('alice', ['secret'])
  await app.hybridAuth.rooms.publish('open', 'settled')
  await alice.until('she has heard all before', () => alice.messages.length === 1)
  await app.hybridAuth.disconnect({ userId: 'alice' }, { code: 'Unavailable' })
  await alice.until('she is back', () => alice.opens.length === 2)
  await eventually('she is in one', () => app.hybridAuth.rooms.count('open') === 2)
  t.equal(app.hybridAuth.rooms.count('secret'), 0)
})

t.test('a socket that was closed because nothing was said stays away until something is', async t => {
  const { app, host } = await live(t, { auth: { idleTimeout: 300, rooms: { authorize: () => true } }, route: { rooms: true } })
  setRandom(t, QUICK)
  const { client, closes, states, texts, opens, until } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken(), queue: 1 })
  await until('it is idle', () => client.state === 'idle')
  t.same(closes, [{ code: 4003, reason: 'inactive', action: 'reconnect', terminal: false }])
  await new Promise(resolve => { setTimeout(resolve, 200) })
  t.same(states, ['connecting', 'open', 'idle'])
  t.equal(client.send('I am back'), false, 'it is not on its way yet')
  t.equal(client.state, 'connecting')
  await until('the echo', () => texts().length === 1)
  t.same(texts(), ['I am back'])
  t.equal(opens[1]?.recovered, true)
  await until('it is idle', () => client.state === 'idle')
  client.join('room')
  await eventually('it is in the room', () => app.hybridAuth.rooms.count('room') === 1)
  await until('it is idle', () => client.state === 'idle')
  client.leave('room')
  t.equal(client.state, 'idle')
  client.connect()
  await until('it is open', () => client.state === 'open')
})

t.test('bytes go both ways as bytes, text as text, with one iterator or many', async t => {
  const { host } = await live(t)
  const { client, messages, isOpen, until } = watched(t, { url: new URL(`ws://${host}/app`), getToken: () => goodToken() })
  await isOpen()
  const bytes = new Uint8Array([1, 2, 255])
  t.equal(client.send(bytes), true)
  t.equal(client.send(bytes.buffer), true)
  t.equal(client.send('text'), true)
  await until('three echoes', () => messages.length === 3)
  t.same(messages.map(message => 'data' in message && message.data instanceof ArrayBuffer ? [...new Uint8Array(message.data)] : message), [[1, 2, 255], [1, 2, 255], { data: 'text', room: null }])
})

t.test('the global WebSocket is taken where there is one', async t => {
  // Node has one from 22 on.
  if (typeof Reflect.get(globalThis, 'WebSocket') !== 'function') {
    Reflect.set(globalThis, 'WebSocket', WebSocket)
    t.teardown(() => { Reflect.deleteProperty(globalThis, 'WebSocket') })
  }
  const { host } = await live(t)
  const client = createAuthSocket({ url: `ws://${host}/app`, getToken: () => goodToken() })
  t.teardown(() => { client.close() })
  const { isOpen, texts, until } = watching(client)
  await isOpen()
  client.send('hello')
  await until('the echo', () => texts().length === 1)
  const refused = createAuthSocket({ url: `ws://${host}/app`, getToken: () => GARBAGE })
  const { closes, until: untilRefused } = watching(refused)
  await untilRefused('it is refused', () => closes.length === 1)
  t.match(closes, [{ code: 4001, terminal: true }])
})

// What follows is about time, and about what no server of ours does: the other end is the test's.

const ADDRESS = 'ws://server.example/app'
const DRAINING = { code: 1012, reason: closeReason('Draining', 3000) }

t.test('what cannot work is refused when the client is made', async t => {
  const { WebSocket, all } = fakeSockets()
  t.throws(() => createAuthSocket({ url: ADDRESS, attach: 'message', WebSocket }), { name: 'TypeError', message: /getToken/ })
  t.intercept(globalThis, 'WebSocket', { value: undefined, configurable: true })
  t.throws(() => createAuthSocket({ url: ADDRESS }), { name: 'TypeError', message: /WebSocket/ })
  t.throws(() => createAuthSocket({ url: ADDRESS, attach: 'ticket', WebSocket, getToken: () => 'a', fallback: { poll: ADDRESS } }), { name: 'TypeError', message: /fallback/ })
  t.intercept(globalThis, 'WebSocket', { value: WebSocket, configurable: true })
  const client = createAuthSocket({ url: ADDRESS, attach: 'cookie' })
  t.teardown(() => { client.close() })
  await settle()
  t.same(all.map(({ url, protocols }) => ({ url, protocols })), [{ url: ADDRESS, protocols: [SUBPROTOCOL] }], 'the global one is taken')
})

t.test('with attach cookie a getToken is not asked', async t => {
  const { WebSocket, last } = fakeSockets()
  let asked = 0
  watched(t, { url: ADDRESS, attach: 'cookie', WebSocket, getToken: () => { asked++; return 'a' } })
  await settle()
  last().open().say({ type: 'token_refresh_required', expiresIn: 5 })
  await settle()
  t.equal(asked, 0)
  t.same(last().sent, [])
})

t.test('an address may be http, relative, a URL, or a function that is asked for each connection', async t => {
  const time = fakeTime(t)
  Object.assign(globalThis, { location: { href: 'https://app.example/page/one' } })
  t.teardown(() => { Reflect.deleteProperty(globalThis, 'location') })
  let asked = 0
  const cases = [
    ['http://server.example/a', 'ws://server.example/a'], ['https://server.example/a?b=c', 'wss://server.example/a?b=c'], ['/live', 'wss://app.example/live'],
    ['live', 'wss://app.example/page/live'], [new URL('wss://server.example/a'), 'wss://server.example/a'],
    [() => `/live?n=${++asked}`, 'wss://app.example/live?n=1']
  ] as const
  for (const [url, expected] of cases) {
    const { WebSocket, last } = fakeSockets()
    watched(t, { url, WebSocket })
    await settle()
    t.equal(last().url, expected)
    last().end()
    await time.pass(1000)
    t.equal(last().url, expected.replace('n=1', 'n=2'))
  }
})

t.test('a token goes into the query beside what is there, and nowhere else', async t => {
  for (const [attach, name] of [['query', 'token'], ['ticket', 'ticket']] as const) {
    const { WebSocket, last } = fakeSockets()
    watched(t, { url: `${ADDRESS}?room=1`, attach, WebSocket, getToken: () => 'a+b&c' })
    await settle()
    t.equal(last().url, `${ADDRESS}?room=1&${name}=a%2Bb%26c`)
    t.same(last().protocols, [SUBPROTOCOL])
  }
})

t.test('an address that is none, and a token that no subprotocol can carry, end it: trying again changes neither', async t => {
  const cases = [{ url: 'not an address' }, { url: '/relative' }, { url: 'ftp://127.0.0.1/' }, { url: 'ws://127.0.0.1:1/', getToken: () => 'with a space' }]
  for (const options of cases) {
    const { client, closes, errors, states, until } = watched(t, options)
    await until('it is closed', () => client.state === 'closed')
    t.same(closes, [{ code: 1000, reason: 'bad_address', action: 'stop', terminal: true }], options.url)
    t.match(errors, [{ stage: 'connect', error: Error }])
    t.same(states, ['connecting', 'closed'])
    t.notMatch(String(errors[0]?.error), 'with a space', 'the token is not repeated')
  }
})

t.test('no token is final: it closes at the start, and in the middle', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  const first = watched(t, { url: ADDRESS, WebSocket, getToken: () => null })
  await settle()
  t.same(first.closes, [{ code: 1000, reason: 'no_credential', action: 'stop', terminal: true }])
  t.equal(all.length, 0)

  const tokens = [jwt(100)]
  const { client, closes, states } = watched(t, { url: ADDRESS, WebSocket, getToken: async () => tokens.shift() ?? null })
  await settle()
  last().open()
  await time.pass(80_000)
  t.same(closes, [{ code: 1000, reason: 'no_credential', action: 'stop', terminal: true }])
  t.equal(last().closedWith, 1000)
  t.same(states, ['connecting', 'open', 'closed'])
  tokens.push(jwt(100))
  client.connect()
  await settle()
  t.equal(client.state, 'connecting', 'somebody may log in again')
  t.equal(all.length, 2)
})

/** A token as it looks from outside, that lasts so many seconds. */
function jwt (seconds: number, claims: object = {}): string {
  return `e30.${Buffer.from(JSON.stringify({ sub: 'alice', iat: 5000, exp: 5000 + seconds, n: Math.floor(performance.now()), ...claims })).toString('base64url')}.c2ln`
}

t.test('what getToken throws, and what is no token, is an error that backs off; it counts, and starts again from 0', async t => {
  const time = fakeTime(t, 0.999)
  const { WebSocket, all, last } = fakeSockets()
  const asked: string[] = []
  const broken = new Error('the login page is away')
  const answers: Array<() => unknown> = [
    () => { throw broken }, async () => { throw broken }, () => '', () => undefined, async () => 42, () => jwt(100), () => { throw broken }, () => jwt(200)
  ]
  const { errors, client } = watched(t, {
    url: ADDRESS,
    WebSocket,
    getToken: ({ reason, attempt }) => {
      asked.push(`${reason} ${attempt}`)
      return (answers.shift() ?? (() => null))() as string
    }
  })
  for (const wait of [500, 1000, 2000, 4000, 8000]) {
    await settle()
    t.equal(client.state, 'waiting')
    const [delay = 0] = time.pending()
    t.ok(delay > wait * 0.99 && delay <= wait, `${delay} is nearly ${wait}`)
    await time.pass(wait)
  }
  t.equal(all.length, 1)
  last().open()
  await time.pass(81_000)
  t.same(asked, ['connect 0', 'connect 1', 'connect 2', 'connect 3', 'connect 4', 'connect 5', 'expiring 0'])
  t.match(errors.map(({ stage }) => stage), Array(6).fill('token'))
  t.equal(errors[0]?.error, broken)
  t.match(errors[2]?.error, { name: 'TypeError' })
  await time.pass(2000)
  t.equal(asked.at(-1), 'expiring 1')
  t.match(last().frames, [{ type: 'auth_update', token: String }])
  t.equal(client.state, 'open')
})

t.test('getToken is given ten seconds, and is told when they are over; its late answer is not used', async t => {
  const time = fakeTime(t)
  const { WebSocket, all } = fakeSockets()
  const requests: TokenRequest[] = []
  const late = deferred<string>()
  const { errors, client } = watched(t, { url: ADDRESS, WebSocket, getToken: request => { requests.push(request); return late.promise } })
  await time.pass(9999)
  t.same([requests.length, requests[0]?.signal.aborted, errors.length, client.state], [1, false, 0, 'connecting'])
  await time.pass(1)
  await settle()
  t.equal(requests[0]?.signal.aborted, true)
  t.match(errors, [{ stage: 'token', error: { message: /too long/ } }])
  t.equal(client.state, 'waiting')
  late.resolve(jwt(100))
  await settle()
  t.equal(all.length, 0)
  await time.pass(250)
  t.equal(all.length, 1, 'it is asked again')
})

t.test('getToken is never asked twice at once: who needs a token waits for the one that is on its way', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  let asked = 0
  const answers = [deferred<string>(), deferred<string>()]
  const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => answers[asked++]?.promise ?? never() })
  await settle()
  client.connect()
  client.connect()
  answers[0]?.resolve(jwt(100))
  await settle()
  t.same([asked, all.length], [1, 1])
  last().open().say({ type: 'token_refresh_required', expiresIn: 5 })
  last().say({ type: 'token_refresh_required', expiresIn: 5 })
  last().end({ code: 4002 })
  await time.pass(300)
  t.equal(asked, 2)
  const next = jwt(200)
  answers[1]?.resolve(next)
  await settle()
  t.same([all.length, last().token], [2, next])
  t.same(all[0]?.sent, [], 'nothing goes to a socket that is over')
})

t.test('closing the client aborts the getToken that is on its way, and nothing comes of it', async t => {
  const time = fakeTime(t)
  for (const isOpen of [false, true]) {
    const { WebSocket, all } = fakeSockets()
    const signals: AbortSignal[] = []
    const { client, closes, errors } = watched(t, {
      url: ADDRESS,
      WebSocket,
      getToken: ({ signal }) => {
        signals.push(signal)
        return isOpen && signals.length === 1 ? jwt(100) : never()
      }
    })
    await settle()
    if (isOpen) all[0]?.open().say({ type: 'token_refresh_required', expiresIn: 5 })
    client.close()
    await settle()
    t.equal(signals.at(-1)?.aborted, true)
    t.same(closes, [{ code: 1000, reason: 'closed', action: 'stop', terminal: true }])
    t.same(errors, [])
    t.equal(all.length, isOpen ? 1 : 0)
    t.same(time.pending(), [], 'no timer is left')
  }
})

t.test('a refresh that is late for its socket is not said on the next one, whether it succeeds or fails', async t => {
  const time = fakeTime(t)
  for (const outcome of ['succeeds', 'fails'] as const) {
    const { WebSocket, all, last } = fakeSockets()
    const slow = deferred<string>()
    let asked = 0
    const { errors, client } = watched(t, {
      url: ADDRESS,
      WebSocket,
      getToken: () => ++asked === 1 ? jwt(100) : slow.promise
    })
    await settle()
    last().open().say({ type: 'token_refresh_required', expiresIn: 5 })
    last().end()
    await time.pass(300)
    last().open()
    slow.resolve(outcome === 'fails' ? '' : jwt(200))
    await settle()
    t.same(all.map(({ sent }) => sent), [[], []], outcome)
    t.same(errors, [], outcome)
    t.equal(client.state, 'open')
  }
})

t.test('a token is replaced between 65 and 80 percent of its life, of which the server knows best', async t => {
  const time = fakeTime(t)
  for (const [random, at] of [[0, 65_000], [0.5, 72_500], [0.9999, 80_000]] as const) {
    time.random(random)
    const { WebSocket, last } = fakeSockets()
    watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
    await settle()
    last().open()
    await time.pass(at - 20)
    t.same(last().sent, [], `${random}`)
    await time.pass(20)
    t.match(last().frames, [{ type: 'auth_update' }], `${random}`)
    last().say({ type: 'auth_updated', expiresIn: 1000 })
    await time.pass(10 * at - 200)
    t.equal(last().sent.length, 1, 'what the server says counts')
    await time.pass(200)
    t.equal(last().sent.length, 2)
  }
})

t.test('with attach message the lifetime that auth_success gives counts, and the socket is open from there on', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, last } = fakeSockets()
  const { client, opens } = watched(t, { url: ADDRESS, attach: 'message', WebSocket, getToken: () => 'opaque', queue: 1 })
  await settle()
  last().open()
  t.same(last().frames, [{ type: 'auth', token: 'opaque' }])
  t.equal(client.state, 'connecting')
  t.equal(client.send('early'), false)
  last().say({ type: 'auth_success', user: { id: 'carol' }, authType: 'oauth2', connectionId: 'c', expiresIn: 100 })
  t.same(opens, [{ identity: { id: 'carol' }, recovered: false }])
  last().say({ type: 'auth_success', user: { id: 'dave' }, authType: 'oauth2', connectionId: 'c', expiresIn: 100 })
  t.same([opens.length, client.identity], [1, { id: 'carol' }], 'a second one changes nobody')
  t.equal(last().sent[1], 'early')
  await time.pass(64_990)
  t.equal(last().sent.length, 2)
  await time.pass(10)
  t.equal(last().sent.length, 3)
})

t.test('a token of which nobody knows how long it lasts is kept, over connections too, until the server asks for another', async t => {
  const time = fakeTime(t)
  for (const token of ['opaque', 'a.%%%.c', `a.${btoa('"text"')}.c`, `a.${btoa('null')}.c`, jwt(100, { iat: undefined }), jwt(100, { exp: 'soon' })]) {
    const { WebSocket, last } = fakeSockets()
    const asked: string[] = []
    const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: ({ reason }) => { asked.push(reason); return token } })
    await settle()
    last().open()
    await time.pass(3_600_000)
    t.same(asked, ['connect'], token)
    t.same(last().sent, [], token)
    last().end()
    await time.pass(500)
    t.same(asked, ['connect'], `${token}: once more`)
    last().open().say({ type: 'token_refresh_required', expiresIn: 30 })
    await settle()
    t.equal(asked.at(-1), 'expiring', token)
    t.same(last().frames, [{ type: 'auth_update', token }])
    client.close()
  }
})

t.test('a token without end, as the server says, is asked for once', async t => {
  const time = fakeTime(t)
  const { WebSocket, last } = fakeSockets()
  let asked = 0
  watched(t, { url: ADDRESS, attach: 'message', WebSocket, getToken: () => { asked++; return 'opaque' } })
  await settle()
  last().open().say({ type: 'auth_success', user: { id: 'carol' }, authType: 'jwt', connectionId: 'c', expiresIn: null })
  await time.pass(10_000)
  t.equal(asked, 1)
})

t.test('a life that is longer than any timer is waited for in parts', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, last } = fakeSockets()
  const year = 365 * 86_400
  const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(year) })
  await settle()
  last().open()
  await time.pass(0.65 * year * 1000 - 10)
  t.same(last().sent, [])
  t.equal(client.state, 'open')
  await time.pass(10)
  t.equal(last().sent.length, 1)
})

t.test('a token that is nearly over is not used for another connection; each connection has a ticket of its own', async t => {
  const time = fakeTime(t, 0)
  const asked: string[] = []
  const one = fakeSockets()
  watched(t, { url: ADDRESS, WebSocket: one.WebSocket, getToken: ({ reason }) => { asked.push(reason); return asked.length === 1 ? jwt(100) : never() } })
  await settle()
  one.last().open()
  await time.pass(50_000)
  one.last().end()
  await time.pass(1)
  t.same([asked, one.all.length], [['connect'], 2], 'half of it is left')
  t.equal(one.all[0]?.token, one.all[1]?.token)
  one.last().open()
  await time.pass(41_000)
  one.last().end()
  await time.pass(1)
  t.ok(asked.length > 1 && asked.slice(1).every(reason => reason === 'expiring'))
  t.equal(one.all.length, 2, 'a tenth is not')

  const tickets: string[] = []
  const two = fakeSockets()
  watched(t, { url: ADDRESS, attach: 'ticket', WebSocket: two.WebSocket, getToken: ({ reason }) => { tickets.push(reason); return `j${tickets.length}` } })
  await settle()
  two.last().open().say({ type: 'token_refresh_required', expiresIn: 5 })
  await settle()
  t.same(two.last().sent, [], 'a ticket refreshes nothing')
  two.last().end()
  await time.pass(500)
  t.same(two.all.map(({ url }) => url), [`${ADDRESS}?ticket=j1`, `${ADDRESS}?ticket=j2`])
  t.same(tickets, ['connect', 'connect'])
})

t.test('a refused token that getToken gives again is not sent, and tried for again', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  const [old, next] = [jwt(100), jwt(200)]
  const asked: string[] = []
  const { errors, client } = watched(t, { url: ADDRESS, WebSocket, getToken: ({ reason, attempt }) => { asked.push(`${reason} ${attempt}`); return asked.length < 5 ? old : next } })
  await settle()
  last().open().say({ type: 'token_refresh_required', expiresIn: 5 })
  await settle()
  last().say({ type: 'error', code: 'refresh_failed', message: '', action: 'refresh' })
  await time.pass(5000)
  t.same(asked, ['connect 0', 'expiring 0', 'rejected 0', 'rejected 1', 'rejected 2'])
  t.same(last().frames, [{ type: 'auth_update', token: old }, { type: 'auth_update', token: next }])
  t.match(errors, [{ stage: 'token' }, { stage: 'token' }])
  t.equal(client.state, 'open')
  t.equal(all.length, 1)
})

t.test('two connections in a row that are lost before they open ask for a fresh token once', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  const asked: string[] = []
  watched(t, { url: ADDRESS, WebSocket, getToken: ({ reason }) => { asked.push(reason); return jwt(100 + asked.length) } })
  for (let i = 0; i < 5; i++) {
    await settle()
    last().end(i === 0 ? {} : { code: 1006, reason: '' })
    await time.pass(20_000)
  }
  t.same(asked.slice(0, 2), ['connect', 'rejected'])
  t.ok(!asked.slice(2).includes('rejected'), asked.join())
  t.equal(all[0]?.token, all[1]?.token)
  t.not(all[1]?.token, all[2]?.token)
})

t.test('a connection that does not open within 15 s is given up, and is tried again', async t => {
  const time = fakeTime(t)
  for (const attach of ['protocol', 'message'] as const) {
    const { WebSocket, all, last } = fakeSockets()
    const { client, closes } = watched(t, { url: ADDRESS, attach, WebSocket, getToken: () => jwt(1000) })
    await settle()
    if (attach === 'message') last().open()
    await time.pass(14_999)
    t.equal(client.state, 'connecting')
    await time.pass(1)
    t.same(closes, [{ code: 1006, reason: '', action: 'retry', terminal: false }])
    t.equal(last().closedWith, 1000)
    all[0]?.open()
    all[0]?.end({ code: 4006 })
    t.equal(client.state, 'waiting', 'what comes of it later is nobody else\'s')
    await time.pass(250)
    t.equal(all.length, 2)
    last().open().say({ type: 'auth_success', user: { id: 'alice' }, authType: 'jwt', connectionId: 'c', expiresIn: 1000 })
    await time.pass(60_000)
    t.equal(client.state, 'open')
  }
})

t.test('it waits up to twice as long each time, 20 s at most, and from the start again after 5 s that held', async t => {
  const time = fakeTime(t, 0.9999)
  const { WebSocket, all, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket })
  const lose = async () => {
    const before = all.length
    last().end({ code: 1011 })
    const delay = Math.max(...time.pending())
    await time.pass(delay)
    t.equal(all.length, before + 1)
    return Math.round(delay / 100) * 100
  }
  await settle()
  for (const expected of [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]) t.equal(await lose(), expected)
  last().open()
  await time.pass(4900)
  t.equal(await lose(), 20_000, 'it did not hold')
  last().open()
  await time.pass(5000)
  t.equal(await lose(), 500)
  time.random(0)
  last().end()
  await time.pass(1)
  t.equal(client.state, 'connecting', 'or not at all')
})

t.test('it comes back no sooner than the server says, and a timer takes no more than it can', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, all, last } = fakeSockets()
  watched(t, { url: ADDRESS, WebSocket })
  await settle()
  last().open().end(DRAINING)
  await time.pass(2999)
  t.equal(all.length, 1)
  await time.pass(1)
  t.equal(all.length, 2)
  last().end({ code: 4008, reason: '{"code":"rate_limited","action":"retry","retryAfterMs":1e300}' })
  await time.pass(86_400_000)
  t.equal(all.length, 2)
})

t.test('what is lost on the way of a close frame, bye has said', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, all, last } = fakeSockets()
  const { client, closes } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
  await settle()
  last().open().say({ type: 'bye', code: 'draining', action: 'reconnect', retryAfterMs: 3000 })
  last().end()
  t.same(closes, [{ code: 1006, reason: 'draining', action: 'reconnect', terminal: false }])
  await time.pass(2999)
  t.equal(all.length, 1)
  await time.pass(1)
  last().open().end()
  t.same(closes[1], { code: 1006, reason: '', action: 'retry', terminal: false }, 'it is not remembered')
  await time.pass(500)
  last().open().say({ type: 'bye', code: 'inactive', action: 'reconnect' })
  last().end({ code: 4006, reason: '' })
  t.same(closes[2], { code: 4006, reason: 'revoked', action: 'stop', terminal: true }, 'a code that came counts')
  t.equal(client.state, 'closed')
})

t.test('a close means what its reason says, else what its code does, else that it is tried again', async t => {
  const time = fakeTime(t, 0)
  const cases: Array<[code: number, reason: string, expected: object]> = [
    [4001, '', { reason: 'authentication_failed', action: 'stop', terminal: true }],
    [4001, 'null', { reason: 'authentication_failed', action: 'stop', terminal: true }],
    [4001, '"text"', { reason: 'authentication_failed', action: 'stop', terminal: true }],
    [4001, '{"action":"none"}', { reason: 'authentication_failed', action: 'stop', terminal: true }],
    [4001, '{"action":"retry"}', { reason: 'authentication_failed', action: 'retry', terminal: false }],
    [4002, '{"code":', { reason: '', action: 'refresh', terminal: false }],
    [4002, '{"retryAfterMs":"5"}', { reason: '', action: 'refresh', terminal: false }],
    [4321, '{"code":"revoked","action":"stop","retryAfterMs":0}', { reason: 'revoked', action: 'stop', terminal: true }],
    [4003, '', { reason: 'inactive', action: 'reconnect', terminal: false }],
    [4006, '', { reason: 'revoked', action: 'stop', terminal: true }],
    [4321, 'bye', { reason: '', action: 'retry', terminal: false }],
    [1000, '', { reason: '', action: 'retry', terminal: false }],
    [4007, '{"code":"insufficient_user_authentication","action":"stop"}', { reason: 'insufficient_user_authentication', action: 'stop', terminal: true }]
  ]
  for (const [code, reason, expected] of cases) {
    const { WebSocket, last } = fakeSockets()
    const { closes, client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
    await settle()
    last().open().end({ code, reason })
    t.same(closes, [{ code, ...expected }], `${code} ${reason}`)
    client.close()
    t.same(time.pending(), [])
  }
})

t.test('a close reason that is no text, or a time before now, is as if it were not there', async t => {
  const time = fakeTime(t, 0.9)
  const cases = ['{"code":{"toString":0}}', '{"code":{}}', '{"code":7}', '{"code":null}', '{"retryAfterMs":-100000}']
  for (const reason of cases) {
    const { WebSocket, all, last } = fakeSockets()
    const { closes, client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
    await settle()
    t.doesNotThrow(() => { last().open().end({ code: 4012, reason }) }, reason)
    t.same(closes, [{ code: 4012, reason: '', action: 'retry', terminal: false }], reason)
    await time.pass(400)
    t.equal(all.length, 1, `${reason}: it backs off`)
    await time.pass(100)
    t.equal(all.length, 2, `${reason}: and comes back`)
    client.close()
  }
})

t.test('after a revocation or a failed refresh the token that was there is not offered again', async t => {
  for (const end of [{ code: 4006, reason: closeReason('Revoked') }, { code: 4004, reason: closeReason('RefreshFailed') }, { code: 4011, reason: closeReason('IdentityChanged') }]) {
    fakeTime(t, 0)
    const { WebSocket, last } = fakeSockets()
    const asked: string[] = []
    const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: ({ reason }) => { asked.push(reason); return jwt(100 + asked.length) } })
    await settle()
    const before = last().token
    last().open().end(end)
    t.equal(client.state, 'closed')
    client.connect()
    await settle()
    t.same(asked, ['connect', end.code === 4011 ? 'connect' : 'rejected'])
    t.not(last().token, before)
  }
})

t.test('a token that came too late for a socket that has expired is used for the next one', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, all, last } = fakeSockets()
  let asked = 0
  const fresh = jwt(200)
  watched(t, { url: ADDRESS, WebSocket, getToken: () => ++asked === 1 ? jwt(100) : fresh })
  await settle()
  last().open().say({ type: 'token_refresh_required', expiresIn: 1 })
  await settle()
  t.same(last().frames, [{ type: 'auth_update', token: fresh }])
  last().end({ code: 4002, reason: closeReason('AuthenticationExpired') })
  await time.pass(500)
  t.equal(all.length, 2)
  t.equal(last().token, fresh)
})

t.test('send says whether it is on its way; without a queue what is not is nowhere', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket })
  t.equal(client.send('1'), false)
  await settle()
  t.equal(client.send('2'), false)
  last().open()
  t.equal(client.send('3'), true)
  last().readyState = 2
  t.equal(client.send('4'), false, 'the socket is closing')
  last().end()
  t.equal(client.send('5'), false)
  await time.pass(1)
  t.same(last().open().sent, [])
  client.close()
  t.equal(client.send('6'), false)
})

t.test('a queue keeps its order and its bound, over connections, and is empty once the client is closed', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, all, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket, queue: 3 })
  t.same(['1', '2', '3', '4'].map(text => client.send(text)), [false, false, false, false])
  await settle()
  t.same(last().open().sent, ['1', '2', '3'])
  last().end()
  client.send('')
  client.publish('room', { a: 1 }, 7)
  client.publish('room', 2)
  await time.pass(1)
  last().open()
  t.same(last().sent.splice(0, 2), ['', '{"type":"message","room":"room","payload":{"a":1},"id":7}'])
  t.match(last().frames.at(-1), { type: 'message', room: 'room', payload: 2, id: /^(\d+-){3}\d+$/ })
  last().end()
  client.send('lost')
  await time.pass(1)
  last().end({ code: 4007 })
  t.equal(client.state, 'closed')
  t.equal(client.send('too late'), false)
  client.connect()
  await settle()
  t.same(last().open().sent, [])
  t.equal(all.length, 4)
})

t.test('what does not go out any more when a socket has just opened stays in the queue', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket, queue: 3 })
  for (const text of ['1', '2']) client.send(text)
  await settle()
  const socket = last()
  const send = socket.send.bind(socket)
  socket.send = data => {
    send(data)
    socket.readyState = 2
  }
  socket.open()
  socket.end()
  await time.pass(1)
  t.same([socket.sent, last().open().sent], [['1'], ['2']])
})

t.test('the queue of one user is not sent as another', async t => {
  const time = fakeTime(t, 0)
  for (const [other, id] of [[jwt(100, { sub: 'mallory' }), 'mallory'], ['opaque', 'somebody']] as const) {
    const { WebSocket, last } = fakeSockets()
    const tokens = [jwt(100), other]
    const { client, opens } = watched(t, { url: ADDRESS, WebSocket, queue: 3, getToken: () => tokens.shift() ?? null })
    client.send('before anybody')
    await settle()
    t.same(last().open().sent, ['before anybody'])
    last().end({ code: 4002 })
    client.send('as alice')
    await time.pass(1)
    t.same(last().open().sent, [])
    t.same(opens.map(({ identity }) => identity?.id), ['alice', id])
    client.close()
  }
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket, queue: 3, getToken: () => jwt(100) })
  await settle()
  last().open().end()
  client.send('as alice')
  await time.pass(1)
  t.same(last().open().sent, ['as alice'], 'of the same one it is')
})

t.test('what a listener sends the moment it is open goes behind what waited, and behind the rooms', async t => {
  for (const name of ['state', 'open'] as const) {
    const { WebSocket, last } = fakeSockets()
    const { client } = watched(t, { url: ADDRESS, WebSocket, queue: 3 })
    client.on(name, () => { if (client.state === 'open') client.send('last') })
    client.join('room')
    client.send('first')
    await settle()
    t.same(last().open().sent, ['{"type":"join","room":"room"}', 'first', 'last'], name)
  }
})

t.test('frames of the server are obeyed; what only looks like one is a message of the application', async t => {
  fakeTime(t)
  const { WebSocket, last } = fakeSockets()
  const { client, messages, errors, permissions } = watched(t, { url: ADDRESS, WebSocket })
  await settle()
  last().open()
  client.join('a')
  last().say('{"type":"joined","room":"a"}')
  last().say('{"type":"left","room":"a"}')
  last().say('{"type":"message","room":"a","payload":1}')
  t.same(messages, [{ room: 'a', payload: 1 }])
  last().say('{"type":"permission_update","permissions":["a"],"added":["a"],"removed":[]}')
  t.match(permissions, [{ added: ['a'] }])
  last().say('{"type":"error","code":"forbidden","message":"no","action":"none"}')
  t.match(errors, [{ stage: 'refused', error: { code: 'forbidden' } }])
  messages.length = 0
  const texts = ['{"type":"message","room":', '{"type":"unknown"}', ' {"type":"left"}', '{"a":1,"type":"left"}', '{"type":7}', '["left"]', '', 'left', '{"type":"toString"}']
  for (const text of texts) last().say(text)
  t.same(messages, texts.map(data => ({ data, room: null })))
  const bytes = new TextEncoder().encode('{"type":"left","room":"a","reason":"removed"}').buffer
  last().say(bytes)
  t.equal(messages.at(-1)?.room, null, 'bytes are never ours')
  t.equal(last().binaryType, 'arraybuffer')
})

t.test('a frame of the application whose type is also one of ours, but whose members are not, is the application\'s', async t => {
  fakeTime(t)
  const texts = [
    '{"type":"message","text":"hello"}', '{"type":"message","room":7,"payload":1}', '{"type":"auth_success"}', '{"type":"auth_updated"}', '{"type":"permission_update"}', '{"type":"left"}', '{"type":"joined"}',
    '{"type":"error","message":"out of stock"}'
  ]
  for (const text of texts) {
    const { WebSocket, last } = fakeSockets()
    const { messages, errors, permissions } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
    await settle()
    last().open().say(text)
    t.same(messages, [{ data: text, room: null }], text)
    t.same([...errors, ...permissions], [], text)
  }
})

t.test('before it is authenticated by message, a server that says nonsense is survived', async t => {
  fakeTime(t)
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, attach: 'message', WebSocket, getToken: () => 'a' })
  await settle()
  t.doesNotThrow(() => { last().open().say('{"type":"auth_success"}') })
  t.equal(client.state, 'connecting')
})

t.test('close() ends it for good from every state, once, and connect() does nothing after it', async t => {
  const time = fakeTime(t)
  const ended = { code: 1000, reason: 'closed', action: 'stop', terminal: true }
  const cases: Array<[string, (last: () => FakeSocket) => void]> = [
    ['connecting', () => {}],
    ['open', last => { last().open() }],
    ['waiting', last => { last().end() }],
    ['idle', last => { last().open().end({ code: 4003 }) }]
  ]
  for (const [state, lead] of cases) {
    const { WebSocket, all, last } = fakeSockets()
    const { client, closes } = watched(t, { url: ADDRESS, WebSocket })
    await settle()
    lead(last)
    t.equal(client.state, state)
    client.close()
    client.close()
    t.same(closes.at(-1), ended, state)
    t.equal(closes.filter(({ terminal }) => terminal).length, 1, state)
    t.same(time.pending(), [], `${state}: no timer is left`)
    if (state === 'connecting' || state === 'open') t.equal(last().closedWith, 1000)
    last().open().say('late')
    last().end()
    client.connect()
    await settle()
    t.same([client.state, all.length, closes.at(-1)], ['closed', 1, ended], state)
  }
  const { WebSocket, all, last } = fakeSockets()
  const before = watched(t, { url: ADDRESS, WebSocket })
  before.client.close()
  await settle()
  t.same([before.client.state, all.length, before.closes], ['closed', 0, [ended]], 'before it has begun')
  const stopped = watched(t, { url: ADDRESS, WebSocket })
  await settle()
  last().open().end({ code: 4006 })
  stopped.client.close()
  t.equal(stopped.closes.length, 1, 'what the server has closed is not closed again')
  stopped.client.connect()
  await settle()
  t.equal(all.length, 1)
})

t.test('connect() is at once from every state, and makes no second connection', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  const { client, opens } = watched(t, { url: ADDRESS, WebSocket })
  client.connect()
  await settle()
  client.connect()
  await settle()
  t.equal(all.length, 1, 'connecting')
  last().open()
  client.connect()
  await settle()
  t.equal(all.length, 1, 'open')
  for (const end of [{}, { code: 4003 }, { code: 4006 }]) {
    const before = all.length
    last().end(end)
    client.connect()
    await settle()
    t.equal(all.length, before + 1)
    last().open()
    await time.pass(30_000)
    t.equal(all.length, before + 1, 'the timer for it is gone')
  }
  t.same(opens.map(({ recovered }) => recovered), [false, true, true, false], 'who comes back after a logout may be somebody else')
})

t.test('an AbortSignal closes it: before, while it connects, and when it is open', async t => {
  fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  let asked = 0
  const aborted = watched(t, { url: ADDRESS, WebSocket, signal: AbortSignal.abort(), getToken: () => { asked++; return 'a' } })
  await settle()
  t.same([aborted.client.state, asked, all.length], ['closed', 0, 0])
  for (const isOpen of [false, true]) {
    const controller = new AbortController()
    const { client, closes } = watched(t, { url: ADDRESS, WebSocket, signal: controller.signal })
    await settle()
    if (isOpen) last().open()
    controller.abort()
    t.equal(client.state, 'closed')
    t.match(closes, [{ reason: 'closed', terminal: true }])
    t.equal(last().closedWith, 1000)
  }
})

t.test('with a signal that was aborted before, the close is told like everything else: after one could listen', async t => {
  const { WebSocket } = fakeSockets()
  const { closes } = watched(t, { url: ADDRESS, WebSocket, signal: AbortSignal.abort() })
  await settle()
  t.match(closes, [{ reason: 'closed', terminal: true }])
})

t.test('an iterator gives what came since it was made, in order, to whoever waits or comes later, until the client closes', async t => {
  fakeTime(t)
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket })
  await settle()
  last().open().say('too early')
  const [one, two] = [client[Symbol.asyncIterator](), client[Symbol.asyncIterator]()]
  const waiting = [one.next(), one.next()]
  for (const text of ['1', '2', '3']) last().say(text)
  const said = (data: string) => ({ value: { data, room: null }, done: false })
  t.same(await Promise.all(waiting), [said('1'), said('2')])
  t.same(await one.next(), said('3'))
  t.same(await two.next(), said('1'))
  const left = two.next().then(() => two.next()).then(() => two.next())
  await settle()
  t.same(await two.return?.(), { value: undefined, done: true })
  t.same(await left, { value: undefined, done: true }, 'whoever waits is let go')
  last().say('4')
  t.same(await two.next(), { value: undefined, done: true }, 'nothing is kept for who has gone')
  const end = one.next().then(() => one.next())
  await settle()
  const behind = client[Symbol.asyncIterator]()
  last().say('5')
  client.close()
  t.same(await end, said('5'))
  t.same([await one.next(), await behind.next(), await behind.next()], [{ value: undefined, done: true }, said('5'), { value: undefined, done: true }])
  const pending = client[Symbol.asyncIterator]().next()
  t.same(await pending, { value: undefined, done: true }, 'after the close')
})

t.test('for await goes on over a reconnect, and ends with break and with the client', async t => {
  setRandom(t, QUICK)
  const { app, host } = await live(t, { handler: ({ socket }) => { for (const text of ['1', '2']) socket.send(text) } })
  const { client } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken() })
  const seen: unknown[] = []
  for await (const message of client) {
    seen.push('data' in message ? message.data : null)
    if (seen.length === 2) await app.hybridAuth.disconnect({ userId: 'alice' }, { code: 'Unavailable' })
    if (seen.length === 4) break
  }
  t.same(seen, ['1', '2', '1', '2'])
  setImmediate(() => { client.close() })
  for await (const message of client) seen.push(message)
  t.equal(client.state, 'closed')
})

t.test('a listener that throws keeps nobody from anything, and is as loud as anywhere else; one that is off is quiet', async t => {
  const { WebSocket, last } = fakeSockets()
  const { client, messages } = watched(t, { url: ADDRESS, WebSocket })
  const heard: unknown[] = []
  const broken = new Error('of a listener')
  const off = client.on('message', () => { throw broken })
  const offTwo = client.on('message', message => { heard.push(message) })
  await settle()
  const later: Array<() => void> = []
  const real: unknown = Reflect.get(process, 'nextTick')
  last().open()
  Object.assign(process, { nextTick: (run: () => void) => { later.push(run) } })
  try {
    last().say('1')
  } finally {
    Object.assign(process, { nextTick: real })
  }
  t.same([heard.length, messages.length], [1, 1])
  t.equal(later.length, 1)
  t.throws(() => { later[0]?.() }, broken)
  off()
  offTwo()
  off()
  last().say('2')
  t.same([heard.length, messages.length], [1, 2])
})

t.test('a listener may close the client at any event: nothing is told, asked or waited for after that', async t => {
  const time = fakeTime(t)
  const cases: Array<[name: string, close: (client: AuthSocket) => void, lead: (last: () => FakeSocket) => Promise<void> | void, getToken?: () => string]> = [
    ['connecting', client => client.on('state', state => { if (state === 'connecting') client.close() }), () => {}],
    ['open, the state', client => client.on('state', state => { if (state === 'open') client.close() }), last => { last().open() }],
    ['open', client => client.on('open', () => { client.close() }), last => { last().open() }],
    ['message', client => client.on('message', () => { client.close() }), last => { last().open().say('1') }],
    ['close', client => client.on('close', () => { client.close() }), last => { last().open().end() }],
    ['waiting', client => client.on('state', state => { if (state === 'waiting') client.close() }), last => { last().open().end() }],
    ['idle', client => client.on('state', state => { if (state === 'idle') client.close() }), last => { last().open().end({ code: 4003 }) }],
    ['an error of the token', client => client.on('error', () => { client.close() }), () => {}, () => ''],
    ['an error of the address', client => client.on('error', () => { client.close() }), () => {}, () => 'bad'],
    ['an error of a refresh', client => client.on('error', () => { client.close() }), async last => { last().open().say({ type: 'token_refresh_required', expiresIn: 5 }) }]
  ]
  for (const [name, listen, lead, getToken] of cases) {
    const { WebSocket, all, last } = fakeSockets()
    let asked = 0
    let isClosed = false
    const { client, order, closes } = watched(t, {
      url: ADDRESS,
      WebSocket: class extends WebSocket {
        constructor (url: string, protocols: string[]) {
          super(url, protocols)
          if (this.token === 'bad') throw new SyntaxError('no subprotocol')
        }
      },
      getToken () {
        t.notOk(isClosed, `${name}: getToken is not asked`)
        return asked++ > 0 ? '' : getToken?.() ?? jwt(100)
      }
    })
    client.on('state', state => { isClosed ||= state === 'closed' })
    listen(client)
    await settle()
    await lead(last)
    await settle()
    t.equal(client.state, 'closed', name)
    t.equal(closes.filter(({ terminal }) => terminal).length, 1, `${name}: closed once`)
    t.ok(['close', 'open', 'error'].includes(order.at(-1) ?? ''), name)
    t.equal(order.slice(order.indexOf('closed')).filter(event => event !== 'closed' && event !== 'close').join(), '', `${name}: nothing comes after it`)
    t.same(time.pending(), [], `${name}: no timer is left`)
    const before = all.length
    await time.pass(60_000)
    t.equal(all.length, before, name)
  }
})

t.test('a listener of the last close may connect again', async t => {
  const { WebSocket, all, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket })
  client.on('close', ({ terminal }) => { if (terminal) client.connect() })
  await settle()
  last().open().end({ code: 4006 })
  await settle()
  t.equal(client.state, 'connecting')
  t.equal(all.length, 2)
})

t.test('who closes a client while it gets ready to connect sees no socket', async t => {
  const { WebSocket, all, last } = fakeSockets()
  const { client, closes } = watched(t, { url: ADDRESS, WebSocket, getToken: () => jwt(100) })
  await settle()
  last().open().end()
  // With the token that is there: it has begun, and there is no socket yet.
  client.connect()
  client.close()
  await settle()
  t.same([all.length, client.state, closes.at(-1)?.terminal], [1, 'closed', true])
})

t.test('options that cannot be are refused by their name', t => {
  const { WebSocket } = fakeSockets()
  const wrong: Array<[string, object]> = [
    ['url', { url: undefined }], ['url', { url: '' }], ['WebSocket', { WebSocket: {} }], ['getToken', { getToken: 'a' }], ['attach', { attach: 'header', getToken: () => 'a' }],
    ['queue', { queue: -1 }], ['queue', { queue: 'a' }], ['fallback', { fallback: true }], ['fallback', { fallback: {} }], ['fallback', { fallback: { poll: '/poll', interval: 0 } }],
    ['fallback', { fallback: { poll: '/poll', interval: 'a' } }], ['fallback', { fallback: { poll: '/poll', after: -1 } }], ['fallback', { fallback: { poll: '/poll', after: NaN } }]
  ]
  for (const [option, given] of wrong) {
    const options: object = { url: ADDRESS, WebSocket, ...given }
    t.throws(() => { Reflect.apply(createAuthSocket, null, [options]) }, { name: 'TypeError', message: `the option ${option} is missing, or cannot be what it is` }, JSON.stringify(given))
  }
  t.end()
})

t.test('what is neither text nor bytes, and what JSON does not hold, is not sent, whether or not there is a socket', async t => {
  const { WebSocket, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket, queue: 5 })
  const wrong = (): void => {
    for (const data of [{ a: 1 }, 7, null, undefined]) t.throws(() => { Reflect.apply(Object(Reflect.get(client, 'send')) as typeof createAuthSocket, client, [data]) }, TypeError)
    for (const payload of [undefined, () => {}]) t.throws(() => client.publish('a', payload), TypeError)
  }
  wrong()
  await settle()
  last().open()
  wrong()
  t.equal(client.send(new Uint8Array(1)), true)
  t.same(last().sent, [new Uint8Array(1)])
})

t.test('why there is no connection is told, as far as the socket knows; and nobody logged in is a logout', async t => {
  const { client, errors, until } = watched(t, { url: 'ws://127.0.0.1:1/', WebSocket })
  await until('it has failed', () => errors.length > 0)
  t.match(errors, [{ stage: 'connect', error: { message: /ECONNREFUSED/ } }])
  client.close()
  const fakes = fakeSockets()
  const one = watched(t, { url: ADDRESS, WebSocket: fakes.WebSocket })
  one.client.join('a')
  await settle()
  fakes.last().end()
  t.match(one.errors, [{ stage: 'connect', error: { message: 'no connection, or no answer' } }])
  one.client.connect()
  await settle()
  fakes.last().open().end({ code: 4001 })
  t.same([one.logouts, one.client.state], [[{ by: 'server' }], 'closed'])
  one.client.connect()
  await settle()
  fakes.last().greets = true
  t.same(fakes.last().open().frames, [], 'who was logged out is in no room')
})
