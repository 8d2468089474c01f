/** A credential as the first message: cases 62 to 65, and hostile tokens over an open socket. */
import { generateKeyPairSync } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { AuditEvent, HybridAuthOptions, JwtOptions, RouteRule } from '../lib/index.js'
import { wheel } from '../lib/wheel.js'
import { build, goodClaims, goodToken, inSeconds, JWT, keepLines, SECRET, signHs256, signRaw, statusOf, upgrade } from './helpers.js'
import { codeOf, deferred, headerOf, logTo, never, rawUpgrade, type Deferred } from './stores.js'
import {
  authFrame, closeFrame, connect, connected, connectionOf, frame, Inbox, json, numbered, OPCODE, rawConnect, serveLive, shiftedClock, texts, textsOf, turn, until, updateFrame,
  type Closed, type Handler, type LiveOptions, type RawOptions, type ServerSocket
} from './wire.js'

const NAME = 'hybrid-auth.v1'
const SOON = 150
const parse = (text: string): unknown => JSON.parse(text)
const reason = (code: string, action: string) => `{"code":"${code}","action":"${action}","retryAfterMs":0}`

const TIMEOUT: Closed = { code: 4010, reason: reason('authentication_timeout', 'stop') }
const PROTOCOL: Closed = { code: 4013, reason: reason('protocol_error', 'stop') }
const FAILED: Closed = { code: 4001, reason: reason('authentication_failed', 'stop') }
const EXPIRED: Closed = { code: 4002, reason: reason('expired', 'refresh') }
const FORBIDDEN: Closed = { code: 4007, reason: reason('forbidden', 'stop') }
const UNAVAILABLE: Closed = { code: 4012, reason: reason('unavailable', 'retry').replace('0}', '5000}') }

/** A verdict of a type that TypeScript would not let a rule answer. */
const verdict = (value: unknown) => value as boolean

interface WaitingOptions extends Omit<LiveOptions, 'rule'> {
  rule?: RouteRule
  jwt?: Partial<JwtOptions>
}

/** A route that waits for its credential, and everything that came of it. */
async function waiting (t: Test, { rule, jwt, auth, handler, ...rest }: WaitingOptions = {}) {
  const audit: AuditEvent[] = []
  const heard = new Inbox<string>()
  const sockets = new Inbox<ServerSocket>()
  const own: Handler = socket => { socket.on('message', (data: Buffer) => { heard.push(data.toString()) }) }
  const options: Partial<HybridAuthOptions> = { jwt: { ...JWT, ...jwt }, audit: event => { audit.push(event) }, ...auth }
  const server = await serveLive(t, {
    ...rest,
    rule: { firstMessage: true, ...rule },
    auth: options,
    handler (socket, request) {
      sockets.push(socket)
      return (handler ?? own)(socket, request)
    }
  })
  const client = (how: RawOptions = {}) => rawConnect(t, server.port, { token: null, ...how })
  const handled = () => sockets.all.length
  return { ...server, audit, heard, sockets, handled, client }
}

/** A key function that waits to be told. */
function slowKey () {
  const asked = new Inbox<Deferred<string>>()
  const key: JwtOptions['key'] = () => {
    const one = deferred<string>()
    asked.push(one)
    return one.promise
  }
  return { asked, key }
}

t.test('the first message brings the credential: auth_success, then the handler', async t => {
  const { app, audit, sockets, handled, client } = await waiting(t, {
    handler (socket, request) { socket.send(JSON.stringify({ userId: request.auth.userId, via: request.auth.via, version: request.auth.version })) }
  })
  const peer = client()
  await peer.answered
  peer.write(frame('ping'))
  await peer.heard.reach(1)
  t.equal(handled(), 0)
  t.equal(app.hybridAuth.count(), 0)
  peer.write(texts(authFrame(goodToken({ exp: inSeconds(300) }))))
  await peer.heard.reach(3)
  const [success, hello] = textsOf(peer.heard.all).map(parse)
  const { id } = connectionOf(app, await sockets.next())
  t.match(success, { expiresIn: Number })
  const { expiresIn, ...others } = success as { expiresIn: number }
  t.strictSame(others, { type: 'auth_success', user: { id: 'alice' }, authType: 'jwt', connectionId: id })
  t.ok(expiresIn >= 298 && expiresIn <= 300)
  t.strictSame(hello, { userId: 'alice', via: 'message', version: 1 })
  t.equal(app.hybridAuth.count({ userId: 'alice' }), 1)
  t.strictSame(audit.map(({ type }) => type), ['authenticated'])
})

t.test('a credential without end is said so: expiresIn is null', async t => {
  const { client } = await waiting(t, { jwt: { allowNoExpiry: true } })
  const peer = client({ first: texts(authFrame(goodToken({ exp: undefined }))) })
  await peer.heard.reach(1)
  t.match(textsOf(peer.heard.all).map(parse), [{ type: 'auth_success', expiresIn: null }])
})

t.test('frames around the credential are delivered after the handler started, in order, none lost', async t => {
  const { key, asked } = slowKey()
  const { client, heard, handled } = await waiting(t, { jwt: { key } })
  const peer = client({ first: Buffer.concat([texts('a', 'b'), texts(authFrame(goodToken())), texts('c'), frame('binary', 'd')]) })
  const found = await asked.next()
  peer.write(texts('e'), frame('ping'))
  await peer.heard.reach(1)
  t.equal(handled(), 0)
  t.strictSame(heard.all, [])
  found.resolve(SECRET)
  t.strictSame(await heard.reach(5), ['a', 'b', 'c', 'd', 'e'])
  peer.write(texts('f'))
  await heard.reach(6)
  t.equal(heard.all[5], 'f')
})

t.test('frames around the credential wait for a handler that awaits, and for the rule', async t => {
  const go = deferred<undefined>()
  const heard = new Inbox<string>()
  const { client, sockets } = await waiting(t, {
    rule: { authorize: async (_auth, message) => message.text() !== 'bad' },
    async handler (socket) {
      await go.promise
      socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
    }
  })
  const peer = client({ first: texts('a', 'bad', authFrame(goodToken()), 'b', 'bad', ...numbered(20)) })
  await sockets.next()
  await peer.heard.reach(1)
  await turn()
  go.resolve(undefined)
  t.strictSame(await heard.reach(22), ['a', 'b', ...numbered(20)])
})

t.test('a handler that never listens is told of the close behind frames that came before the credential', async t => {
  const clock = shiftedClock(t)
  const closes = new Inbox<string>()
  const { app, client, sockets } = await waiting(t, {
    handler (socket, request) {
      socket.on('close', () => { closes.push('socket') })
      connectionOf(request.server, socket).on('close', () => { closes.push('connection') })
    }
  })
  const peer = client({ first: Buffer.concat([texts('early', authFrame(goodToken())), closeFrame(1000)]) })
  const socket = await sockets.next()
  const connection = connectionOf(app, socket)
  await peer.closed
  await until(() => socket.readyState === socket.CLOSED)
  clock.ahead(6000)
  connection.look()
  await turn()
  t.equal(closes.all.length, 2)
})

t.test('frames that came before the credential count towards what may be held', async t => {
  const go = deferred<undefined>()
  const heard = new Inbox<string>()
  const { app, client, sockets } = await waiting(t, {
    rule: { authorize: async () => { await go.promise; return true } },
    handler (socket) { socket.on('message', (data: Buffer) => { heard.push(data.toString()) }) }
  })
  const early = numbered(7).map(one => one.padStart(8000, '.'))
  const later = numbered(3).map(one => one.padStart(8000, ','))
  const peer = client()
  await peer.answered
  peer.write(texts(...early), texts(authFrame(goodToken())))
  const socket = await sockets.next()
  await peer.heard.reach(1)
  peer.write(texts(...later))
  const connection = connectionOf(app, socket)
  await until(() => socket.isPaused || connection.held?.length === 9)
  t.ok(socket.isPaused, 'more than 64 KiB wait: the socket is paused')
  go.resolve(undefined)
  t.strictSame(await heard.reach(10), [...early, ...later])
})

const early: Array<[string, Buffer[]]> = [
  ['nothing', []],
  ['text', [texts('hello')]],
  ['JSON of the application', [json({ type: 'chat', token: goodToken() })]],
  ['binary', [frame('binary', 'hello')]],
  ['a good credential in binary', [frame('binary', authFrame(goodToken()))]],
  ['32 frames', [texts(...numbered(32))]],
  ['32 pings', Array.from({ length: 32 }, () => frame('ping', 'x'))],
  ['pongs', [frame('pong'), frame('pong')]],
  ['fragments that do not end', [frame('text', 'a', { fin: false }), ...Array.from({ length: 500 }, () => frame('continuation', 'b', { fin: false }))]],
  ['half a credential', [texts(authFrame(goodToken())).subarray(0, 60)]],
  ['half a fragmented credential', [frame('text', authFrame(goodToken()).slice(0, 30), { fin: false })]],
  ['a frame that says it is large', [frame('text', 'a', { claims: 2 ** 20 })]],
  ['JSON that is not ours', [texts('{"type":"auth_"}', '{"type":"authentication","token":"x"}', '{', '[]', 'null')]]
]

t.test('case 62: whatever comes before the credential is not delivered, and the socket is closed with 4010 at the deadline', async t => {
  const { app, audit, heard, handled, client } = await waiting(t, { rule: { firstMessage: { timeout: SOON } } })
  await Promise.all(early.map(async ([what, bytes]) => {
    const peer = client()
    await peer.answered
    const started = performance.now()
    peer.write(...bytes)
    t.strictSame(await peer.closed, TIMEOUT, what)
    const took = performance.now() - started
    t.ok(took > SOON - 30 && took < SOON + 500, `${what}: after ${Math.round(took)} ms`)
    t.strictSame(textsOf(peer.heard.all), [], 'and nothing is said before')
  }))
  t.equal(handled(), 0)
  t.strictSame(heard.all, [])
  t.equal(app.hybridAuth.count(), 0)
  t.strictSame(audit.map(event => event.type === 'refused' ? event.code : event.type), early.map(() => 'FST_HYBRID_AUTH_MISSING_CREDENTIALS'))
})

const tooMuch: Array<[string, Buffer[]]> = [
  ['a frame of 8 193 bytes', [frame('text', 'x'.repeat(8193))]],
  ['a binary frame of 8 193 bytes', [frame('binary', Buffer.alloc(8193))]],
  ['a credential of 8 193 bytes', [texts(authFrame(goodToken()).padEnd(8193))]],
  ['case 13: a credential of 1 MB', [texts(authFrame('x'.repeat(1_000_000)))]],
  ['33 frames', [texts(...numbered(33))]],
  ['a good credential in an update, which is not for the application', [texts(updateFrame())]],
  ['33 frames of nothing', Array.from({ length: 33 }, () => frame('binary'))],
  ['33 pings', Array.from({ length: 33 }, () => frame('ping'))],
  ['33 pongs', Array.from({ length: 33 }, () => frame('pong'))],
  ['frames and pings, 33 in all', Array.from({ length: 33 }, (_, at) => frame(at % 2 === 0 ? 'ping' : 'text', 'x'))],
  ['a ping flood', Array.from({ length: 5000 }, () => frame('ping', 'x'.repeat(100)))],
  ['fragments of 64 KiB in all', [frame('text', 'a', { fin: false }), ...Array.from({ length: 66 }, () => frame('continuation', 'b'.repeat(1000), { fin: false }))]],
  ['fragments of nothing, 64 KiB in all', [frame('text', '', { fin: false }), ...Array.from({ length: 11_000 }, () => frame('continuation', '', { fin: false }))]],
  ['9 frames of 8 KiB', Array.from({ length: 9 }, () => frame('binary', Buffer.alloc(8192)))],
  ['64 KiB of a frame that says it is 50 MB', [frame('text', Buffer.alloc(66_000, 0x20), { claims: 50_000_000 })]]
]

t.test('case 62: past 8 KiB a frame, 64 KiB in all or 32 frames, the socket is closed with 4013 at once', async t => {
  const { app, audit, handled, client } = await waiting(t, { rule: { firstMessage: { timeout: 4000 } } })
  for (const [what, bytes] of tooMuch) {
    const peer = client()
    await peer.answered
    const started = performance.now()
    peer.write(...bytes)
    await until(() => peer.heard.all.some(({ opcode }) => opcode === OPCODE.close))
    const took = performance.now() - started
    const [close] = peer.heard.all.filter(({ opcode }) => opcode === OPCODE.close)
    t.strictSame([close?.payload.readUInt16BE(0), close?.payload.toString('utf8', 2)], [PROTOCOL.code, PROTOCOL.reason], what)
    t.ok(took < 1000, `${what}: after ${Math.round(took)} ms`)
    peer.net.destroy()
    await peer.closed
  }
  t.equal(handled(), 0)
  t.equal(app.hybridAuth.count(), 0)
  t.equal(audit.filter(({ type }) => type === 'refused').length, tooMuch.length, 'one refusal each')
})

t.test('case 62: what follows a refusal is not read for as long as the peer likes to send', async t => {
  const unfinished = frame('binary', '', { fin: false })
  const fragments = Buffer.concat(Array.from({ length: 50 }, () => frame('continuation', Buffer.alloc(10_000), { fin: false })))
  const huge = frame('binary', '', { claims: 90_000_000 })
  const floods: Array<[string, Buffer[], Buffer]> = [
    ['one huge frame', [huge], Buffer.alloc(500_000)],
    ['endless fragments', [unfinished], fragments],
    ['a wrong credential, then one huge frame', [texts(authFrame('x.y.z')), huge], Buffer.alloc(500_000)],
    ['a malformed credential, then endless fragments', [texts('{"type":"auth"}'), unfinished], fragments],
    ['nothing until the deadline, then one huge frame', [], Buffer.concat([huge, Buffer.alloc(500_000)])]
  ]
  await Promise.all(floods.map(async ([what, start, chunk]) => {
    let bytesRead = () => 0
    const { client } = await waiting(t, {
      rule: { firstMessage: { timeout: start.length === 0 ? 50 : 4000 } },
      more: app => { app.addHook('onRequest', async ({ raw }) => { bytesRead = () => raw.socket.bytesRead }) }
    })
    const peer = client({ answers: false })
    await peer.answered
    if (start.length === 0) await peer.heard.reach(1)
    else peer.write(...start)
    // 40 MB, with back-pressure, or until the server hangs up.
    for (let sent = 0; sent < 40_000_000 && !peer.net.destroyed; sent += chunk.length) {
      if (peer.net.write(chunk)) await turn()
      else await Promise.race([new Promise<void>(resolve => { peer.net.once('drain', resolve) }), peer.closed])
    }
    t.ok(bytesRead() < 2_000_000, `${what}: ${bytesRead()} bytes were read`)
    peer.net.destroy()
  }))
})

t.test('a client that answers the close is through at once, whatever it was refused for', async t => {
  const { client } = await waiting(t, { rule: { firstMessage: { timeout: SOON } } })
  const refused: Array<[string, Buffer, number]> = [
    ['no credential', Buffer.alloc(0), 4010], ['a wrong one', texts(authFrame('x')), 4001],
    ['a malformed one', texts('{"type":"auth"}'), 4013], ['a large frame', texts('x'.repeat(8193)), 4013], ['many frames', texts(...numbered(33)), 4013]
  ]
  await Promise.all(refused.map(async ([what, bytes, code]) => {
    const peer = client()
    await peer.answered
    const started = performance.now()
    peer.write(bytes)
    t.equal((await peer.closed).code, code, what)
    const took = performance.now() - started
    t.ok(took < 1500, `${what}: after ${Math.round(took)} ms`)
  }))
})

t.test('what is just within the bounds is held and delivered', async t => {
  const { heard, client } = await waiting(t)
  const token = goodToken()
  const tables: Array<[string, Buffer[], number]> = [
    ['a frame of 8 192 bytes', [texts('x'.repeat(8192)), texts(authFrame(token))], 1],
    ['31 frames and the credential', [texts(...numbered(31)), texts(authFrame(token))], 31],
    ['a credential of 8 192 bytes', [texts(authFrame(token).padEnd(8192)), texts('x')], 1],
    ['a credential in fragments', [...Array.from(authFrame(token), (char, at) => frame(at === 0 ? 'text' : 'continuation', char, { fin: false })), frame('continuation'), texts('x')], 1]
  ]
  let count = 0
  for (const [what, bytes, frames] of tables) {
    const peer = client()
    await peer.answered
    peer.write(...bytes)
    count += frames
    await heard.reach(count)
    await peer.heard.reach(1)
    t.match(textsOf(peer.heard.all).map(parse), [{ type: 'auth_success' }], what)
  }
})

const malformed: Array<[string, string]> = [
  ['no token', '{"type":"auth"}'],
  ['JSON that does not end', '{"type":"auth","token":"'],
  ['JSON and more', `${authFrame(goodToken())}}`],
  ['type twice', `{"type":"auth","type":"chat","token":"${goodToken()}"}`],
  ...[null, 1, true, [goodToken()], { token: goodToken() }, undefined].map((token): [string, string] => [`case 19: ${authFrame(token).slice(0, 40)}`, authFrame(token)])
]

t.test('case 63: a malformed credential is closed with 4013, once, and the process lives', async t => {
  const { audit, handled, client } = await waiting(t)
  await Promise.all(malformed.map(async ([what, text]) => {
    const peer = client({ first: texts(text, 'x', text) })
    t.strictSame(await peer.closed, PROTOCOL, what)
    t.equal(peer.heard.all.length, 1, 'one close frame and nothing else')
  }))
  t.equal(audit.length, malformed.length)
  t.equal(handled(), 0)
})

t.test('case 63: two credentials at once have one outcome', async t => {
  const both = (first: string, second: string) => texts(authFrame(first), authFrame(second))
  const { key, asked } = slowKey()
  const slow = await waiting(t, { jwt: { key } })
  const peer = slow.client({ first: both(goodToken(), goodToken()) })
  ;(await asked.next()).resolve(SECRET)
  t.strictSame(await peer.closed, PROTOCOL)
  await turn()
  t.equal(slow.handled(), 0)
  t.equal(asked.all.length, 1)

  const fast = await waiting(t)
  const good = fast.client({ first: both(goodToken(), goodToken()) })
  await good.heard.reach(2)
  t.match(textsOf(good.heard.all).map(parse), [{ type: 'auth_success' }, { type: 'auth_updated' }], 'the second is a refresh where the first is through')
  t.equal(fast.handled(), 1)
  t.strictSame(await fast.client({ first: both('x.y.z', goodToken()) }).closed, FAILED)
  const other = fast.client({ first: both(goodToken(), goodToken({ sub: 'mallory' })) })
  t.equal((await other.closed).code, 4011)
  t.strictSame(fast.heard.all, [], 'neither reaches the application')
})

t.test('case 64: a byte at a time does not move the deadline', async t => {
  const { client, handled } = await waiting(t, { rule: { firstMessage: { timeout: 300 } } })
  const peer = client()
  await peer.answered
  const started = performance.now()
  const bytes = texts(authFrame(goodToken()))
  let at = 0
  const timer = setInterval(() => { peer.write(bytes.subarray(at, ++at)) }, 20)
  t.teardown(() => { clearInterval(timer) })
  t.strictSame(await peer.closed, TIMEOUT)
  clearInterval(timer)
  t.ok(at > 5 && performance.now() - started < 800)
  t.equal(handled(), 0)
})

t.test('case 65: past the cap on pending sockets an upgrade gets 503, and a place that is left is free again', async t => {
  const { host, client, port } = await waiting(t, { auth: { limits: { pending: 2 } } })
  const [one, two] = [client(), client()]
  t.strictSame([statusOf(await one.answered), statusOf(await two.answered)], [101, 101])
  const refused = await rawUpgrade(port)
  t.equal(statusOf(refused), 503)
  t.match(headerOf(refused, 'retry-after'), /^\d+$/)
  t.strictSame(await connect(t, host, { token: null, protocols: [NAME] }).closed, UNAVAILABLE)
  t.equal((await connected(t, host)).socket.readyState, 1, 'who brings a credential at the handshake does not wait')

  one.net.destroy()
  two.write(texts(authFrame(goodToken())))
  await two.heard.reach(1)
  const [three, four] = [client(), client()]
  await until(() => one.net.destroyed)
  t.equal(statusOf(await three.answered), 101)
  t.equal(statusOf(await four.answered), 101)
  t.equal(statusOf(await rawUpgrade(port)), 503)
})

t.test('case 65: the cap holds for upgrades that are admitted at once', async t => {
  const go = deferred<undefined>()
  const waitingThere = new Inbox<string>()
  const { client } = await waiting(t, {
    auth: { limits: { pending: 1 } },
    more (app) {
      app.addHook('preHandler', async () => {
        waitingThere.push('')
        await go.promise
      })
    }
  })
  const peers = [client(), client(), client()]
  // Hooks are bound when a route is declared: those of `more` are the routes' as well.
  await Promise.race([waitingThere.reach(1), Promise.all(peers.map(({ answered }) => answered))])
  for (let i = 0; i < 5; i++) await turn()
  go.resolve(undefined)
  const outcomes = await Promise.all(peers.map(async peer => {
    const status = statusOf(await peer.answered)
    if (status !== 101) return 'refused'
    peer.write(frame('ping'))
    const [first] = await peer.heard.reach(1)
    return first?.opcode === OPCODE.pong ? 'waiting' : 'refused'
  }))
  t.equal(outcomes.filter(outcome => outcome === 'waiting').length, 1)
})

t.test('case 65: no pending sockets at all are allowed by a cap of 0', async t => {
  const { port } = await waiting(t, { auth: { limits: { pending: 0 } } })
  t.equal(statusOf(await rawUpgrade(port)), 503)
})

t.test('a bearer or a session at the handshake counts, and nothing is waited for', async t => {
  const handled = new Inbox<string>()
  const { host, login } = await build(t, {
    routes (app) {
      app.get('/first', { websocket: true, auth: { firstMessage: { timeout: SOON } } }, (socket, request) => {
        handled.push(`${request.auth.authType} ${request.auth.via}`)
        socket.send(JSON.stringify({ ready: true }))
      })
    }
  })
  const cookie = await login()
  const ways = [{ headers: { authorization: `Bearer ${goodToken()}` } }, { headers: { cookie, origin: `http://${host}` } }, { protocols: [NAME, `bearer.${goodToken()}`] }]
  for (const way of ways) t.match(await upgrade(t, host, { path: '/first', ...way }), { status: 101, context: { ready: true } })
  t.strictSame(handled.all, ['jwt header', 'session cookie', 'jwt subprotocol'])

  const refused = async (headers: Record<string, string>) => {
    const { status, body, code } = await upgrade(t, host, { path: '/first', headers })
    return status === 101 ? code : [status, codeOf(body)]
  }
  t.strictSame(await refused({ authorization: 'Bearer x.y.z' }), [401, 'FST_HYBRID_AUTH_INVALID_TOKEN'], 'a refused credential is a refusal, not a missing one')
  t.strictSame(await refused({ origin: 'https://evil.example' }), [403, 'FST_HYBRID_AUTH_ORIGIN_REFUSED'])
  t.strictSame(await refused({ origin: 'null' }), [403, 'FST_HYBRID_AUTH_ORIGIN_REFUSED'])
  t.strictSame(await refused({ cookie, origin: 'https://evil.example' }), [403, 'FST_HYBRID_AUTH_ORIGIN_REFUSED'])
  t.equal(await refused({ cookie: 'sessionId=forged.x', origin: `http://${host}` }), 4010, 'a cookie that names nobody is nobody, who may still tell')
  t.equal(await refused({ origin: `http://${host}` }), 4010)
})

t.test('a refused first message is closed by the code of its refusal', async t => {
  const { host, handled, audit } = await waiting(t, { rule: { role: 'admin', check: (_auth, request) => request.url === '/live' } })
  const closed = async (token: string) => {
    const peer = await connected(t, host, { token: null })
    peer.send(authFrame(token))
    const end = await peer.closed
    t.strictSame(peer.heard.all, [])
    return end
  }
  t.strictSame(await closed('x.y.z'), FAILED)
  t.strictSame(await closed(''), FAILED)
  t.strictSame(await closed(signHs256(goodClaims(), {}, 'x'.repeat(40))), FAILED)
  t.strictSame(await closed(goodToken({ exp: inSeconds(-5) })), EXPIRED)
  t.strictSame(await closed(goodToken()), FORBIDDEN)
  t.strictSame(await closed(goodToken({ role: 'Admin' })), FORBIDDEN)
  t.equal(handled(), 0)
  t.strictSame(audit.map(event => event.type === 'refused' ? event.code : event.type), [
    ...Array.from({ length: 3 }, () => 'FST_HYBRID_AUTH_INVALID_TOKEN'), 'FST_HYBRID_AUTH_EXPIRED_TOKEN', 'FST_HYBRID_AUTH_FORBIDDEN', 'FST_HYBRID_AUTH_FORBIDDEN'])
  const admin = await connected(t, host, { token: null })
  admin.send(authFrame(goodToken({ role: 'admin' })))
  t.match(parse(await admin.heard.next()), { type: 'auth_success' })
})

t.test('case 83: a key function, mapper or rule that throws, rejects, answers garbage or never settles is a refusal in time', async t => {
  const boom = () => { throw new Error('canary') }
  const table: Array<[string, WaitingOptions, Closed]> = [
    ['key throws', { jwt: { key: boom } }, UNAVAILABLE],
    ['key rejects', { jwt: { key: async () => boom() } }, UNAVAILABLE],
    ['key never settles', { jwt: { key: never } }, UNAVAILABLE],
    ['key finds none', { jwt: { key: () => null } }, FAILED],
    ['mapper throws', { jwt: { user: boom } }, UNAVAILABLE],
    ['mapper never settles', { jwt: { user: never } }, UNAVAILABLE],
    ['mapper answers nobody', { jwt: { user: () => null } }, FAILED],
    ['rule throws', { rule: { check: boom } }, UNAVAILABLE],
    ['rule rejects', { rule: { check: async () => boom() } }, UNAVAILABLE],
    ['rule never settles', { rule: { check: never } }, UNAVAILABLE],
    ['rule says no later', { rule: { check: async () => false } }, FORBIDDEN],
    ['rule says 1', { rule: { check: () => verdict(1) } }, FORBIDDEN]
  ]
  for (const [what, options, expected] of table) {
    const log = keepLines()
    const { client, handled } = await waiting(t, { ...options, auth: { handshakeTimeout: SOON, ...options.auth }, fastify: logTo(log.stream) })
    const token = goodToken()
    const peer = client({ first: texts('a', authFrame(token), 'b') })
    t.strictSame(await peer.closed, expected, what)
    t.equal(handled(), 0)
    t.notOk(log.text().includes(token), 'no log line holds the token')
    t.notMatch(log.text(), /"msg":"[^"]*canary/)
  }
})

t.test('the deadline does not wait for a verification, and what it says later changes nothing', async t => {
  const { key, asked } = slowKey()
  const { app, client, handled, audit } = await waiting(t, { jwt: { key }, rule: { firstMessage: { timeout: SOON } } })
  const peer = client({ first: texts(authFrame(goodToken())) })
  const found = await asked.next()
  t.strictSame(await peer.closed, TIMEOUT)
  found.resolve(SECRET)
  for (let i = 0; i < 3; i++) await turn()
  t.equal(handled(), 0)
  t.equal(app.hybridAuth.count(), 0)
  t.equal(audit.length, 1)
})

t.test('a client that leaves while its credential is verified never reaches the handler', async t => {
  for (const how of ['close', 'cut'] as const) {
    const { key, asked } = slowKey()
    const { app, client, handled } = await waiting(t, { jwt: { key } })
    const peer = client({ first: texts(authFrame(goodToken())) })
    const found = await asked.next()
    if (how === 'close') peer.write(closeFrame(1000))
    else peer.net.destroy()
    await peer.closed
    const other = client()
    await other.answered
    other.write(frame('ping'))
    await other.heard.reach(1)
    found.resolve(SECRET)
    for (let i = 0; i < 3; i++) await turn()
    t.equal(handled(), 0, how)
    t.equal(app.hybridAuth.count(), 0)
  }
})

t.test('a token that ends while it is verified ends the socket before the handler', async t => {
  const clock = shiftedClock(t)
  const check = new Inbox<Deferred<boolean>>()
  const { client, handled } = await waiting(t, {
    auth: { expiryGrace: 0 },
    rule: { check: () => { const one = deferred<boolean>(); check.push(one); return one.promise } }
  })
  const peer = client({ first: texts(authFrame(goodToken({ exp: inSeconds(100) }))) })
  const verdict = await check.next()
  clock.ahead(101_000)
  verdict.resolve(true)
  t.equal((await peer.closed).code, 4002)
  t.equal(handled(), 0)
})

t.test('a frame that breaks the protocol ends a pending socket as ws ends it, and leaves nothing', async t => {
  const before = wheel.size
  const { client, handled, port } = await waiting(t, { auth: { limits: { pending: 1 } } })
  for (const [bytes, code] of [[frame('text', 'a', { mask: false }), 1002], [frame(3, 'a'), 1002], [frame('text', Buffer.from([0xff])), 1007]] as const) {
    const peer = client()
    t.equal(statusOf(await peer.answered), 101)
    peer.write(bytes)
    t.equal((await peer.closed).code, code)
    t.equal(statusOf(await rawUpgrade(port)), 101)
    await until(() => wheel.size <= before)
  }
  t.equal(handled(), 0)
})

t.test('compression is not negotiated with a socket that owes its credential', async t => {
  const { host, client } = await waiting(t, { websocket: { options: { perMessageDeflate: true } } })
  const pending = await connected(t, host, { token: null, perMessageDeflate: true })
  t.equal(pending.socket.extensions, '')
  pending.send(authFrame(goodToken()))
  t.match(parse(await pending.heard.next()), { type: 'auth_success' })
  t.match((await connected(t, host, { perMessageDeflate: true })).socket.extensions, /permessage-deflate/)
  const raw = client({ lines: ['Sec-WebSocket-Extensions: permessage-deflate'] })
  t.notMatch(await raw.answered, /extensions/i)
  raw.write(frame('text', 'x', { claims: 1 }).fill(0xc1, 0, 1))
  t.equal((await raw.closed).code, 1002)
})

t.test('app.close() closes sockets that wait, with 1012', async t => {
  const { app, client } = await waiting(t)
  const { key, asked } = slowKey()
  const slow = await waiting(t, { jwt: { key } })
  const [one, two, three] = [client(), client({ first: texts('a') }), slow.client({ first: texts(authFrame(goodToken())) })]
  await Promise.all([one.answered, two.answered, asked.next()])
  const closing = Promise.all([app.close(), slow.app.close()])
  for (const peer of [one, two, three]) {
    const { code, reason } = await peer.closed
    t.equal(code, 1012)
    t.match(parse(reason), { code: 'draining', action: 'reconnect', retryAfterMs: Number })
  }
  await closing
})

t.test('closeCodes remaps what closes a pending socket', async t => {
  const { client } = await waiting(t, { auth: { closeCodes: { AuthenticationTimeout: 4500, ProtocolError: 4501, AuthenticationFailed: 4502 } }, rule: { firstMessage: { timeout: SOON } } })
  t.equal((await client().closed).code, 4500)
  t.equal((await client({ first: texts('{"type":"auth"}') }).closed).code, 4501)
  t.equal((await client({ first: texts(authFrame('x')) }).closed).code, 4502)
})

t.test('without firstMessage the word `auth` is the application\'s, and with it is not', async t => {
  const { host, handled, heard } = await waiting(t, { rule: { firstMessage: false } })
  const peer = await connected(t, host)
  const frame = authFrame(goodToken())
  peer.send(frame)
  t.strictSame(await heard.reach(1), [frame])
  t.equal(handled(), 1)
  t.equal((await upgrade(t, host)).status, 401)
})

t.test('a socket that authenticated by its first message speaks the protocol from then on', async t => {
  const { client } = await waiting(t, { rule: { authorize: () => false } })
  const peer = client({ first: texts('early', authFrame(goodToken()), 'late', updateFrame(), authFrame(goodToken())) })
  await peer.heard.reach(5)
  t.match(textsOf(peer.heard.all).map(parse).map(one => (one as { type: string }).type).toSorted(), ['auth_success', 'auth_updated', 'auth_updated', 'error', 'error'])
})

t.test('another subprotocol never sees a frame of ours, also where the credential was its first message', async t => {
  const { app, host, heard } = await waiting(t, { rule: { authorize: (_auth, message) => message.text() !== 'bad' } })
  const peer = await connected(t, host, { token: null, protocols: ['chat'] })
  peer.send(authFrame(goodToken()), 'bad', 'good')
  t.strictSame(await heard.reach(1), ['good'])
  await app.hybridAuth.disconnect({})
  t.equal((await peer.closed).code, 4006)
  t.strictSame(peer.heard.all, [])
})

t.test('control: false leaves every frame behind the credential to the application, and sends none unasked', async t => {
  const { app, host, heard } = await waiting(t, { rule: { control: false, authorize: (_auth, message) => message.text() !== 'bad' } })
  const peer = await connected(t, host, { token: null })
  const update = updateFrame()
  peer.send(authFrame(goodToken()), 'bad', update, authFrame('x'))
  t.strictSame(await heard.reach(2), [update, authFrame('x')])
  await app.hybridAuth.disconnect({})
  t.equal((await peer.closed).code, 4006)
  t.match(peer.heard.all.map(parse), [{ type: 'auth_success' }], 'the answer to the credential is all')
  t.equal(peer.heard.all.length, 1)
})

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ type: 'spki', format: 'pem' }).toString()
const good = goodToken()
const [header = '', payload = '', signature = ''] = good.split('.')
const deep = `{"sub":"alice","exp":${inSeconds(300)},"x":${'['.repeat(2000)}${']'.repeat(2000)}}`
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
const claims = (text: string) => signRaw('{"alg":"HS256"}', text)

const hostile: Array<[string, string]> = [
  ...['none', 'None', 'NONE', ''].flatMap((alg): Array<[string, string]> => [[`case 1: alg ${alg}, signed`, signHs256(goodClaims(), { alg })], [`case 1: alg ${alg}, unsigned`, `${encode({ alg })}.${payload}.`]]),
  ...[undefined, null, ['HS256'], {}, 256, 'hs256', 'HS256 '].map((alg): [string, string] => [`case 2: alg ${JSON.stringify(alg)}`, signHs256(goodClaims(), { alg })]),
  ...[rsa, rsa.trim(), rsa.replace(/\r/g, '')].map((key, at): [string, string] => [`case 3: signed with a public key, ${at}`, signHs256(goodClaims(), {}, key)]),
  ...['HS384', 'HS512', 'RS256', 'ES256', 'EdDSA'].map((alg): [string, string] => [`case 4: alg ${alg}`, signHs256(goodClaims(), { alg })]),
  ...Object.entries({ jwk: { kty: 'oct', k: 'AAAA' }, jku: 'http://127.0.0.1/', x5u: 'http://127.0.0.1/', x5c: ['AAAA'], crit: [], b64: false }).map(([name, value]): [string, string] => [`cases 5 to 7: ${name}`, signHs256(goodClaims(), { [name]: value })]),
  ['case 8: four dots', `${good}..`], ['case 8: two segments', `${header}.${payload}`], ['case 8: JSON serialisation', JSON.stringify({ payload, protected: header, signature })],
  ...['=', '\n', ' ', '\t', '\u0000', 'A', '+', '/'].map((end): [string, string] => [`cases 9 and 10: ${JSON.stringify(end)} behind it`, good + end]),
  ['case 9: a space before it', ` ${good}`], ['case 9: the scheme before it', `Bearer ${good}`],
  ['case 12: an empty signature', `${header}.${payload}.`], ['case 12: one byte of signature', `${header}.${payload}.AA`], ['case 12: a long signature', `${good}${'A'.repeat(2000)}`],
  ['case 13: 7 KiB', signHs256({ ...goodClaims(), x: 'x'.repeat(7000) }, {}, 'wrong'.repeat(8))],
  ['case 14: nested deep', claims(deep)],
  ...['[]', '"s"', '1', 'null', '{}', '', '{'].map((text): [string, string] => [`case 15: payload ${text}`, claims(text)]),
  ['case 16: invalid UTF-8', signRaw('{"alg":"HS256"}', Buffer.concat([Buffer.from(`{"sub":"alice","exp":${inSeconds(300)},"x":"`), Buffer.from([0xff]), Buffer.from('"}')]))],
  ...[undefined, '300', null, true, [1], {}].map((exp): [string, string] => [`cases 20 and 21: exp ${JSON.stringify(exp)}`, signHs256(goodClaims({ exp }))]),
  ...['1e400', '-1e400', '1e308', '-1e20', '-1'].map((exp): [string, string] => [`case 22: exp ${exp}`, claims(`{"sub":"alice","exp":${exp}}`)]),
  ['case 24: nbf ahead', goodToken({ nbf: inSeconds(100) })], ['case 25: iat a year ahead', goodToken({ iat: inSeconds(31_536_000) })],
  ...[undefined, ['issuer'], 'Issuer', 'issuer/'].map((iss): [string, string] => [`case 27: iss ${JSON.stringify(iss)}`, goodToken({ iss })]),
  ...[undefined, null, '', {}, 123].map((sub): [string, string] => [`case 30: sub ${JSON.stringify(sub)}`, goodToken({ iss: 'issuer', sub })]),
  ['case 31: cnf', goodToken({ iss: 'issuer', cnf: { jkt: 'x' } })]
]

/** Cases 8 to 10 are about one good token, which must itself be accepted where no issuer is asked for. */
const issuerFor = (what: string) => /^case (27|30|31)/.test(what) ? { issuer: 'issuer' } : {}

t.test('cases 1 to 32: a hostile token as the first message is refused, reaches nobody and is repeated nowhere', async t => {
  const log = keepLines()
  const servers = [await waiting(t, { fastify: logTo(log.stream) }), await waiting(t, { jwt: { issuer: 'issuer' }, fastify: logTo(log.stream) })] as const
  for (const [what, token] of hostile) {
    const peer = ('issuer' in issuerFor(what) ? servers[1] : servers[0]).client({ first: texts(authFrame(token)) })
    const { code, reason } = await peer.closed
    t.equal(code, token.length > 8100 ? PROTOCOL.code : FAILED.code, what)
    t.notOk(token.length > 20 && reason.includes(token))
    t.notOk(token.length > 20 && log.text().includes(token))
  }
  for (const exp of ['0', '1', String(inSeconds(-1))]) {
    t.strictSame(await servers[0].client({ first: texts(authFrame(claims(`{"sub":"alice","exp":${exp}}`))) }).closed, EXPIRED, `case 23: exp ${exp}`)
  }
  t.strictSame(servers.map(({ handled }) => handled()), [0, 0])
})

t.test('cases 1 to 32: a hostile token as a refresh is refused, changes nothing and extends nothing', async t => {
  const log = keepLines()
  const start = async (options: WaitingOptions, changes: object): Promise<{ app: FastifyInstance, host: string, token: string, audit: AuditEvent[] }> =>
    ({ ...await waiting(t, { ...options, fastify: logTo(log.stream) }), token: goodToken({ ...changes }) })
  const servers = [await start({}, {}), await start({ jwt: { issuer: 'issuer' } }, { iss: 'issuer' })] as const
  for (const [what, token] of [...hostile, ...malformed.map(([what, frame]) => [what, frame.replace('"auth"', '"auth_update"')] as const)]) {
    const { app, host, token: own, audit } = 'issuer' in issuerFor(what) ? servers[1] : servers[0]
    const before = audit.length
    const peer = await connected(t, host, { token: own })
    const [connection] = app.hybridAuth.connections()
    const { context } = connection ?? {}
    peer.send(token.startsWith('{"type"') ? token : updateFrame(token))
    t.match(parse(await peer.heard.next()), { type: 'error', code: 'refresh_failed', action: 'refresh' }, what)
    t.equal(connection?.context, context)
    t.notOk(peer.heard.all.some(one => token.length > 20 && one.includes(token)))
    t.strictSame(audit.slice(before).map(({ type }) => type), ['authenticated', 'refresh_refused'])
    peer.socket.close()
    await peer.closed
    await until(() => app.hybridAuth.count() === 0)
    audit.length = 0
  }
  t.notOk(hostile.some(([, token]) => token.length > 20 && log.text().includes(token)))
})

t.test('three refused refreshes close with 4004, each counted; a good one between starts anew', async t => {
  const { host, audit } = await waiting(t, { rule: { firstMessage: false } })
  const peer = await connected(t, host)
  peer.send(updateFrame('x'), updateFrame(7), updateFrame(), updateFrame('x'), updateFrame('y'), updateFrame('z'))
  t.equal((await peer.closed).code, 4004)
  t.equal(audit.filter(({ type }) => type === 'refresh_refused').length, 5)
  t.match(peer.heard.all.map(parse), [{ type: 'error' }, { type: 'error' }, { type: 'auth_updated' }, { type: 'error' }, { type: 'error' }, { type: 'bye', code: 'refresh_failed' }])
})

t.test('case 82: nothing is left of sockets that waited', async t => {
  const before = wheel.size
  const { app, client, handled } = await waiting(t, { rule: { firstMessage: { timeout: SOON } } })
  const peers = [...Array.from({ length: 20 }, () => client()), ...Array.from({ length: 20 }, () => client({ first: texts('x', authFrame('x')) })), ...Array.from({ length: 20 }, () => client({ first: texts(...numbered(40)) }))]
  const good = Array.from({ length: 20 }, () => client({ first: texts(authFrame(goodToken())) }))
  await Promise.all(good.map(({ heard }) => heard.reach(1)))
  for (const peer of good) peer.write(closeFrame(1000))
  const cut = Array.from({ length: 20 }, () => client())
  await Promise.all(cut.map(({ answered }) => answered))
  for (const { net } of cut) net.destroy()
  await Promise.all([...peers, ...good, ...cut].map(({ closed }) => closed))
  await until(() => app.hybridAuth.count() === 0 && wheel.size <= before, 'the wheel is empty')
  t.equal(handled(), 20)
})
