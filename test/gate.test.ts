/** The gate: what stands between a socket and the application's listeners. */
import { AsyncResource, createHook } from 'node:async_hooks'
import { on, once } from 'node:events'
import t, { type Test } from 'tap'
import type { RawData } from 'ws'
import type { AuthContext, Message, MessageRule, RouteRule } from '../lib/index.js'
import { goodToken, keepLines } from './helpers.js'
import { deferred, logTo, never, type Deferred } from './stores.js'
import {
  closeFrame, connected, connectionOf, frame, Inbox, numbered, OPCODE, rawConnect, serveLive, shiftedClock, streamOf, texts, textsOf, turn, until, updateFrame,
  type Closed, type Handler, type LiveOptions, type RawPeer, type ServerSocket
} from './wire.js'

const NAME = 'hybrid-auth.v1'
const ERROR_FRAME = { type: 'error', code: 'forbidden', message: 'This message is not allowed', action: 'none' }
const FORBIDDEN: Closed = { code: 4007, reason: '{"code":"forbidden","action":"stop","retryAfterMs":0}' }
const parse = (text: string): unknown => JSON.parse(text)

/** A server whose handler keeps what it hears, as text. */
async function listening (t: Test, options: Omit<LiveOptions, 'handler'> = {}) {
  const heard = new Inbox<string>()
  const sockets = new Inbox<ServerSocket>()
  const closes = new Inbox<Closed>()
  const server = await serveLive(t, {
    ...options,
    handler (socket) {
      socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
      socket.on('close', (code, reason) => { closes.push({ code, reason: reason.toString() }) })
      sockets.push(socket)
    }
  })
  return { ...server, heard, sockets, closes }
}

interface Asked { auth: AuthContext, text: string, verdict: Deferred<boolean> }

/** A rule that puts every question to the test. */
function asking () {
  const asked = new Inbox<Asked>()
  const authorize: MessageRule = (auth, message) => {
    const verdict = deferred<boolean>()
    asked.push({ auth, text: message.text(), verdict })
    return verdict.promise
  }
  return { asked, authorize }
}

/** A handler that attaches its listener when told. */
function late (attach: (socket: ServerSocket) => unknown) {
  const go = deferred<undefined>()
  const sockets = new Inbox<ServerSocket>()
  const handler: Handler = async socket => {
    sockets.push(socket)
    await go.promise
    await attach(socket)
  }
  return { handler, sockets, go: () => { go.resolve(undefined) } }
}

const sizes: Array<[string, string[]]> = [
  ['50 small frames', numbered(50)],
  ['40 frames of 4 KiB', numbered(40).map(one => one.padStart(4096, '.'))],
  ['3 frames of 100 KiB', numbered(3).map(one => one.padStart(102_400, '.'))],
  ['one frame', ['0']]
]

t.test('frames that come while the handler awaits are delivered when it listens, in order, none lost', async t => {
  for (const [what, sent] of sizes) {
    const heard = new Inbox<string>()
    const { handler, sockets, go } = late(socket => { socket.on('message', (data: Buffer) => { heard.push(data.toString()) }) })
    const { host } = await serveLive(t, { handler })
    const peer = await connected(t, host)
    const socket = await sockets.next()
    peer.send(...sent)
    if (sent.length === 1) await peer.settled()
    else await until(() => socket.isPaused, 'the socket is paused')
    t.equal(heard.all.length, 0)
    go()
    t.strictSame(await heard.reach(sent.length), sent, what)
    await until(() => !socket.isPaused)
    peer.send('after')
    await heard.reach(sent.length + 1)
    t.equal(heard.all.at(-1), 'after')
  }
})

t.test('frames in the same TCP chunk as the handshake are delivered, in order, none lost', async t => {
  for (const [what, sent] of sizes) {
    for (const isLate of [false, true]) {
      const heard = new Inbox<string>()
      const { handler, sockets, go } = late(socket => { socket.on('message', (data: Buffer) => { heard.push(data.toString()) }) })
      if (!isLate) go()
      const { port } = await serveLive(t, { handler })
      rawConnect(t, port, { first: texts(...sent) })
      await sockets.next()
      if (isLate) await turn()
      go()
      t.strictSame(await heard.reach(sent.length), sent, `${what}, the handler ${isLate ? 'awaits' : 'listens'}`)
    }
  }
})

t.test('a listener that is attached within the same turn as others does not take frames from them', async t => {
  const [first, second] = [new Inbox<string>(), new Inbox<string>()]
  const { handler, sockets, go } = late(socket => {
    socket.on('message', (data: Buffer) => { first.push(data.toString()) })
    socket.on('message', (data: Buffer) => { second.push(data.toString()) })
  })
  const { port } = await serveLive(t, { handler })
  rawConnect(t, port, { first: texts('a', 'b') })
  await sockets.next()
  await turn()
  go()
  t.strictSame([await first.reach(2), await second.reach(2)], [['a', 'b'], ['a', 'b']])
})

t.test('once() in a loop hears every frame that was held', async t => {
  const heard: string[] = []
  const done = deferred<undefined>()
  const { handler, sockets, go } = late(async socket => {
    while (heard.length < 20) {
      const [data] = await once(socket, 'message') as [Buffer]
      heard.push(data.toString())
    }
    done.resolve(undefined)
  })
  const { port } = await serveLive(t, { handler })
  rawConnect(t, port, { first: texts(...numbered(20)) })
  await sockets.next()
  await turn()
  go()
  await done.promise
  t.strictSame(heard, numbered(20))
})

t.test('once() in a loop hears every frame, also those of one TCP chunk that come while it listens', async t => {
  const heard = new Inbox<string>()
  const { host, port } = await serveLive(t, {
    async handler (socket) {
      for (;;) {
        const [data] = await once(socket, 'message') as [Buffer]
        heard.push(data.toString())
      }
    }
  })
  const peer = rawConnect(t, port)
  await peer.answered
  peer.write(texts('0'))
  await heard.reach(1)
  peer.write(texts('1', '2', '3', '4'), frame('ping'))
  await peer.heard.reach(1)
  await (await connected(t, host)).settled()
  t.strictSame(heard.all, numbered(5))
})

t.test('once() in a loop with slow work between hears every frame, however long it takes in all', async t => {
  const clock = shiftedClock(t)
  const heard = new Inbox<string>()
  const work = new Inbox<string>()
  const { handler, sockets, go } = late(async socket => {
    for (;;) {
      const [data] = await once(socket, 'message') as [Buffer]
      heard.push(data.toString())
      await work.next()
    }
  })
  const { app, port } = await serveLive(t, { handler })
  rawConnect(t, port, { first: texts('0', '1', '2') })
  const socket = await sockets.next()
  await turn()
  go()
  for (let count = 1; count <= 3; count++) {
    await heard.reach(count)
    clock.ahead(4000)
    connectionOf(app, socket).look()
    work.push('done')
  }
  t.strictSame(heard.all, ['0', '1', '2'])
})

t.test('frames for a handler that never listens are dropped after 5 seconds with one warning, and the socket lives on', async t => {
  const clock = shiftedClock(t)
  const log = keepLines()
  const sockets = new Inbox<ServerSocket>()
  const { app, host } = await serveLive(t, { handler: socket => { sockets.push(socket) }, fastify: logTo(log.stream), auth: { heartbeat: false } })
  const peer = await connected(t, host)
  const socket = await sockets.next()
  const warnings = () => log.text().split('\n').filter(line => line.includes('no listener was attached'))
  peer.send(...numbered(20))
  await peer.settled()
  peer.send(...numbered(20))
  await until(() => socket.isPaused)
  clock.ahead(4900)
  connectionOf(app, socket).look()
  t.equal(warnings().length, 0)
  clock.ahead(100)
  connectionOf(app, socket).look()
  t.equal(warnings().length, 1)
  t.match(parse(warnings()[0] ?? ''), { level: 40, frames: Number })
  await peer.settled()
  peer.send('more', 'and more')
  await peer.settled()
  clock.ahead(6000)
  connectionOf(app, socket).look()
  t.equal(warnings().length, 1, 'the rest is dropped in silence')
  t.equal(peer.socket.readyState, peer.socket.OPEN)
  const heard = new Inbox<string>()
  socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
  peer.send('now')
  t.strictSame(await heard.reach(1), ['now'], 'who listens late hears what comes then')
})

t.test('frames that nobody listens for are dropped by the clock alone', async t => {
  const log = keepLines()
  const { host } = await serveLive(t, { handler: () => {}, fastify: logTo(log.stream) })
  const peer = await connected(t, host)
  const started = performance.now()
  peer.send(...numbered(100).map(one => one.padStart(8192, '.')))
  await new Promise<void>(resolve => {
    peer.socket.once('pong', () => { resolve() })
    peer.socket.ping()
  })
  const took = performance.now() - started
  t.ok(took > 4900 && took < 6000, `the ping behind them was answered after ${Math.round(took)} ms`)
  t.match(log.text(), /no listener was attached/)
})

/** A handler that notes how its socket ends, and listens for nothing else. */
async function closing (t: Test, options: Omit<LiveOptions, 'handler'> = {}, before?: (socket: ServerSocket) => void) {
  const closes = new Inbox<string>()
  const sockets = new Inbox<ServerSocket>()
  const server = await serveLive(t, {
    ...options,
    handler (socket, request) {
      before?.(socket)
      socket.on('close', (code, reason) => { closes.push(`socket ${code} ${reason.toString()}`) })
      connectionOf(request.server, socket).on('close', code => { closes.push(`connection ${code}`) })
      sockets.push(socket)
    }
  })
  return { ...server, closes, sockets }
}

t.test('a handler that never listens is told of the close, whatever the client sent before', async t => {
  const clock = shiftedClock(t)
  const { app, port, closes, sockets } = await closing(t)
  const peer = rawConnect(t, port, { first: Buffer.concat([texts('a', 'b'), closeFrame(4321, 'bye')]) })
  const socket = await sockets.next()
  await peer.closed
  await until(() => socket.readyState === socket.CLOSED)
  t.equal(app.hybridAuth.count(), 0)
  clock.ahead(5000)
  connectionOf(app, socket).look()
  t.strictSame((await closes.reach(2)).toSorted(), ['connection 4321', 'socket 4321 bye'])
})

t.test('a handler that never listens is told of the close, also when the connection ends while the close waits', async t => {
  const clock = shiftedClock(t)
  const { app, port, closes, sockets } = await closing(t, { auth: { maxConnectionAge: 2000 } })
  const peer = rawConnect(t, port, { first: Buffer.concat([texts('a'), closeFrame(1000)]) })
  const socket = await sockets.next()
  await peer.closed
  await until(() => socket.readyState === socket.CLOSED)
  for (let i = 0; i < 3; i++) {
    clock.ahead(3000)
    connectionOf(app, socket).look()
  }
  t.equal(closes.all.length, 2)
})

t.test('a close behind frames that were left by once() is told', async t => {
  const clock = shiftedClock(t)
  const { asked, authorize } = asking()
  const { app, port, closes, sockets } = await closing(t, { rule: { authorize } }, socket => { socket.once('message', () => {}) })
  const peer = rawConnect(t, port)
  const socket = await sockets.next()
  await peer.answered
  peer.write(texts('a', 'b'), closeFrame(1000))
  const { verdict } = await asked.next()
  await peer.closed
  await until(() => socket.readyState === socket.CLOSED)
  verdict.resolve(true)
  await turn()
  clock.ahead(6000)
  connectionOf(app, socket).look()
  t.equal(closes.all.length, 2)
})

const admitting: Array<[string, MessageRule]> = [
  ['true', () => true],
  ['a promise of true', async () => true]
]
/** A verdict of a type that TypeScript would not let a rule answer. */
const verdict = (value: unknown) => value as boolean
const thenable = (value: unknown) => verdict({ then (resolve: (value: unknown) => void) { resolve(value) } })

const nothing = (): unknown => undefined

const refusing: Array<[string, MessageRule]> = [
  ['false', () => false],
  ['"yes"', () => verdict('yes')],
  ['1', () => verdict(1)],
  ['an object', () => verdict({})],
  ['nothing', () => verdict(undefined)],
  ['null', () => verdict(null)],
  ['a Boolean object', () => verdict(Object(true))],
  ['a throw', () => { throw new Error('canary') }],
  ['a throw of nothing', () => { throw nothing() }],
  ['a promise of false', async () => false],
  ['a promise of "true"', async () => verdict('true')],
  ['a promise of an object', async () => verdict({})],
  ['a rejection', async () => { throw new Error('canary') }],
  ['a thenable of false', () => thenable(false)],
  ['a thenable that throws', () => verdict({ then () { throw new Error('canary') } })],
  ['a then that throws when it is read', () => verdict(Object.defineProperty({}, 'then', { get () { throw new Error('canary') } }))],
  ['a message that is not JSON', (_auth, message) => message.json() !== 0],
  ['what never settles', never]
]

t.test('a message is delivered where the verdict is true, at once or later', async t => {
  for (const [what, authorize] of [...admitting, ['a thenable of true', () => thenable(true)] satisfies [string, MessageRule]]) {
    const { host, heard } = await listening(t, { rule: { authorize } })
    const peer = await connected(t, host)
    peer.send('a', 'b')
    t.strictSame(await heard.reach(2), ['a', 'b'], what)
  }
})

t.test('case 83: a message is never delivered on any other verdict, and those behind it are, in order', async t => {
  const log = keepLines()
  for (const [what, refuse] of refusing) {
    const authorize: MessageRule = (auth, message, request) => message.text().startsWith('bad') ? refuse(auth, message, request) : true
    const { host, heard } = await listening(t, { rule: { authorize, control: true }, auth: { handshakeTimeout: 60 }, fastify: logTo(log.stream) })
    const peer = await connected(t, host)
    peer.send('1', 'bad', '2', 'bad bad', '3')
    t.strictSame(await heard.reach(3), ['1', '2', '3'], what)
    t.strictSame((await peer.heard.reach(2)).map(parse), [ERROR_FRAME, ERROR_FRAME], what)
    t.equal(peer.socket.readyState, peer.socket.OPEN)
  }
  t.match(log.text(), /authorize/, 'the operator is told of what threw')
  t.notMatch(log.text(), /goodToken|eyJ/)
})

t.test('an asynchronous verdict holds back the frames behind it, and one is asked for at a time', async t => {
  const { asked, authorize } = asking()
  const { host, heard } = await listening(t, { rule: { authorize } })
  const peer = await connected(t, host)
  peer.send('a', 'b', 'c')
  const first = await asked.next()
  await peer.settled()
  t.equal(asked.all.length, 1)
  t.equal(heard.all.length, 0)
  first.verdict.resolve(true)
  const second = await asked.next()
  t.strictSame(heard.all, ['a'])
  second.verdict.resolve(false)
  const third = await asked.next()
  peer.send('d')
  await peer.settled()
  t.equal(asked.all.length, 3)
  third.verdict.resolve(true)
  ;(await asked.next()).verdict.resolve(true)
  t.strictSame(await heard.reach(3), ['a', 'c', 'd'])
})

t.test('a rule sees the context, the request and the message of its frame', async t => {
  const seen: unknown[] = []
  const { host, heard } = await listening(t, {
    rule: {
      authorize (auth, message, request) {
        seen.push(auth.userId, auth === request.auth, request.url, message.text(), message.isBinary)
        return true
      }
    }
  })
  const peer = await connected(t, host)
  peer.send('text', Buffer.from('bytes'))
  await heard.reach(2)
  t.strictSame(seen, ['alice', true, '/live', 'text', false, 'alice', true, '/live', 'bytes', true])
})

const tellings: Array<[string, { control?: boolean, protocols?: string[] }, boolean]> = [
  ['no subprotocol', {}, false],
  ['no subprotocol, control: true', { control: true }, true],
  ['no subprotocol, control: false', { control: false }, false],
  ['our subprotocol', { protocols: [NAME] }, true],
  ['our subprotocol, control: true', { protocols: [NAME], control: true }, true],
  ['our subprotocol, control: false', { protocols: [NAME], control: false }, false],
  ['another subprotocol', { protocols: ['chat'] }, false],
  ['another subprotocol, control: true', { protocols: ['chat'], control: true }, false]
]

for (const [what, { control, protocols = [] }, isTold] of tellings) {
  t.test(`a refused message is ${isTold ? 'answered by an error frame' : 'dropped in silence'}: ${what}`, async t => {
    const rule: RouteRule = { authorize: (_auth, message) => message.text() !== 'bad', ...(control !== undefined && { control }) }
    const { host } = await serveLive(t, { rule })
    const peer = await connected(t, host, { protocols })
    t.equal(peer.socket.protocol, protocols[0] ?? '')
    peer.send('bad', 'good')
    await peer.heard.reach(isTold ? 2 : 1)
    t.strictSame(peer.heard.all.map(one => one === 'good' ? one : parse(one)), isTold ? [ERROR_FRAME, 'good'] : ['good'])
  })

  t.test(`onRefused: close ends the socket with 4007, ${isTold ? 'after a bye frame' : 'without a frame of ours'}: ${what}`, async t => {
    const rule: RouteRule = { authorize: (_auth, message) => message.text() !== 'bad', onRefused: 'close', ...(control !== undefined && { control }) }
    const { host, heard, closes } = await listening(t, { rule })
    const peer = await connected(t, host, { protocols })
    peer.send('good', 'bad', 'good')
    t.strictSame(await peer.closed, FORBIDDEN)
    await closes.reach(1)
    t.strictSame(heard.all, ['good'], 'nothing behind it is delivered')
    t.equal(closes.all[0]?.code, 4007)
    t.strictSame(peer.heard.all.map(parse), isTold ? [{ type: 'bye', code: 'forbidden', action: 'stop' }] : [])
  })
}

t.test('onRefused: close ends the socket on an asynchronous refusal, and nothing that was held is delivered', async t => {
  const { asked, authorize } = asking()
  const { app, host, heard } = await listening(t, { rule: { authorize, onRefused: 'close' } })
  const peer = await connected(t, host)
  peer.send('a', 'b', 'c')
  const { verdict } = await asked.next()
  await peer.settled()
  verdict.resolve(false)
  t.strictSame(await peer.closed, FORBIDDEN)
  t.equal(asked.all.length, 1)
  t.equal(heard.all.length, 0)
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a client that sent a control frame is told of refusals from then on', async t => {
  const { host } = await serveLive(t, { rule: { authorize: () => false } })
  const peer = await connected(t, host)
  peer.send('a')
  await peer.settled()
  t.strictSame(peer.heard.all, [])
  peer.send(updateFrame(), 'b')
  t.match((await peer.heard.reach(2)).map(parse), [{ type: 'auth_updated' }, ERROR_FRAME])
})

t.test('past 32 frames or 64 KiB that wait the socket is paused, what it holds is bounded, and all of it is delivered', async t => {
  for (const [what, size, count] of [['small frames', 8, 40_000], ['frames of 1 KiB', 1024, 4000], ['frames of 60 KiB', 61_440, 60]] as const) {
    const gate = deferred<boolean>()
    const heard = new Inbox<string>()
    const opened = deferred<{ socket: ServerSocket, bytesRead: () => number }>()
    const { host } = await serveLive(t, {
      rule: { authorize: () => gate.promise },
      handler (socket, request) {
        socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
        const { socket: net } = request.raw
        opened.resolve({ socket, bytesRead: () => net.bytesRead })
      }
    })
    const peer = await connected(t, host)
    const { socket, bytesRead } = await opened.promise
    const sent = numbered(count).map(one => one.padStart(size, '.'))
    peer.send(...sent)
    await until(() => socket.isPaused, 'the socket is paused')
    const other = await connected(t, host)
    for (let i = 0; i < 5; i++) await other.settled()
    t.ok(bytesRead() < 384 * 1024, `${what}: ${bytesRead()} bytes were read of ${size * count}`)
    t.ok(socket.isPaused)
    t.equal(heard.all.length, 0)
    gate.resolve(true)
    await heard.reach(count)
    t.strictSame(heard.all, sent, what)
  }
})

t.test('the application that paused the socket stays the one to resume it', async t => {
  const { asked, authorize } = asking()
  const { host, heard, sockets } = await listening(t, { rule: { authorize } })
  const peer = await connected(t, host)
  const socket = await sockets.next()
  peer.send(...numbered(40))
  await until(() => socket.isPaused)
  socket.pause()
  for (let i = 0; i < 40 && i < asked.all.length + 1; i++) {
    const question = await Promise.race([asked.next(), until(() => heard.all.length >= 32 && asked.all.length === heard.all.length).then(() => null)])
    if (question === null) break
    question.verdict.resolve(true)
    await turn()
  }
  t.ok(socket.isPaused, 'what was held is through, and the socket still paused')
  const before = heard.all.length
  peer.send('after')
  const other = await connected(t, host)
  await other.settled()
  await other.settled()
  t.equal(heard.all.length, before)
  socket.resume()
  t.notOk(socket.isPaused)
  const answering = (async () => {
    while (heard.all.length < 41) {
      for (const { verdict } of asked.all) verdict.resolve(true)
      await turn()
    }
  })()
  t.strictSame(await heard.reach(41), [...numbered(40), 'after'])
  await answering
})

t.test('an application that resumes does not undo the pause of the gate', async t => {
  const gate = deferred<boolean>()
  const { host, heard, sockets } = await listening(t, { rule: { authorize: () => gate.promise } })
  const peer = await connected(t, host)
  const socket = await sockets.next()
  socket.pause()
  socket.resume()
  peer.send(...numbered(2000).map(one => one.padStart(1024, '.')))
  await until(() => socket.isPaused)
  socket.pause()
  socket.resume()
  socket.resume()
  t.ok(socket.isPaused)
  gate.resolve(true)
  await heard.reach(2000)
  await until(() => !socket.isPaused)
  t.equal(heard.all.length, 2000)
})

t.test('a paused socket delivers nothing new, and everything when it is resumed', async t => {
  const { host, heard, sockets } = await listening(t)
  const peer = await connected(t, host)
  const socket = await sockets.next()
  socket.pause()
  peer.send(...numbered(100))
  const other = await connected(t, host)
  await other.settled()
  t.equal(heard.all.length, 0)
  socket.resume()
  t.strictSame(await heard.reach(100), numbered(100))
})

t.test('a verdict reached under an older version of the context is reached again', async t => {
  for (const [stale, fresh] of [[true, false], [false, true], [true, true], [false, false]] as const) {
    const { asked, authorize } = asking()
    const { host, heard } = await listening(t, { rule: { authorize, control: true } })
    const peer = await connected(t, host)
    peer.send('a')
    const first = await asked.next()
    t.equal(first.auth.version, 1)
    peer.send('b', updateFrame(goodToken({ role: 'new' })))
    t.match(parse(await peer.heard.next()), { type: 'auth_updated' })
    first.verdict.resolve(stale)
    const again = await asked.next()
    t.strictSame([again.text, again.auth.version, again.auth.role], ['a', 2, 'new'])
    t.equal(heard.all.length, 0, 'the stale verdict decided nothing')
    again.verdict.resolve(fresh)
    const behind = await asked.next()
    t.strictSame([behind.text, behind.auth.version], ['b', 2])
    behind.verdict.resolve(true)
    t.strictSame(await heard.reach(fresh ? 2 : 1), fresh ? ['a', 'b'] : ['b'])
  }
})

t.test('a verdict is reached again as often as the context changes meanwhile', async t => {
  const { asked, authorize } = asking()
  const { host, heard } = await listening(t, { rule: { authorize, control: true } })
  const peer = await connected(t, host)
  peer.send('a', 'b')
  for (let version = 1; version <= 4; version++) {
    const question = await asked.next()
    t.strictSame([question.text, question.auth.version], ['a', version])
    peer.send(updateFrame())
    await peer.heard.next()
    question.verdict.resolve(true)
  }
  ;(await asked.next()).verdict.resolve(true)
  ;(await asked.next()).verdict.resolve(true)
  t.strictSame(await heard.reach(2), ['a', 'b'])
})

t.test('a verdict that comes after the end of the connection delivers nothing', async t => {
  const { asked, authorize } = asking()
  const { app, host, heard, closes } = await listening(t, { rule: { authorize } })
  const peer = await connected(t, host)
  peer.send('a', 'b')
  const { verdict } = await asked.next()
  await app.hybridAuth.disconnect({ userId: 'alice' })
  t.equal((await peer.closed).code, 4006)
  verdict.resolve(true)
  await closes.reach(1)
  await turn()
  t.equal(heard.all.length, 0)
  t.equal(asked.all.length, 1)
})

type Event = [name: string, ...details: unknown[]]

/** Everything that a handler can notice. */
function noting (events: Inbox<Event>, options: { answers?: boolean } = {}): Handler {
  return socket => {
    socket.on('message', (data: Buffer, isBinary) => {
      events.push(['message', data.toString('latin1'), isBinary])
      if (options.answers === true) socket.send(data, { binary: isBinary })
    })
    socket.on('ping', data => { events.push(['ping', data.toString()]) })
    socket.on('pong', data => { events.push(['pong', data.toString()]) })
    socket.on('error', error => { events.push(['error', error.message]) })
    socket.on('close', (code, reason) => { events.push(['close', code, reason.toString()]) })
  }
}

const AsyncFunction = (async () => {}).constructor

const wires: Array<[string, Buffer[]]> = [
  ['text', [texts('hello', 'größe', '')]],
  ['binary', [frame('binary', Buffer.from([0, 255, 128])), frame('binary')]],
  ['text that looks like ours, in binary', [frame('binary', updateFrame('x'))]],
  ['frames of 126, 65 535 and 65 536 bytes', [126, 65_535, 65_536].map(size => frame('binary', Buffer.alloc(size, 7)))],
  ['fragments', [frame('text', 'a', { fin: false }), frame('continuation', 'b', { fin: false }), frame('continuation', 'c')]],
  ['fragments of nothing', [frame('binary', '', { fin: false }), frame('continuation', '')]],
  ['pings among fragments', [frame('text', 'a', { fin: false }), frame('ping', '1'), frame('continuation', 'b', { fin: false }), frame('pong', '2'), frame('continuation', 'c')]],
  ['pings', [frame('ping', 'x'), frame('ping'), frame('pong', 'y')]],
  ['a close with a code', [texts('a'), closeFrame(4321, 'a reason')]],
  ['a close without a code', [texts('a'), frame('close')]],
  ['frames behind a close', [closeFrame(1000), texts('late')]],
  ['a code that is not allowed', [closeFrame(1006)]],
  ['text that is not UTF-8', [texts('a'), frame('text', Buffer.from([0xff, 0xfe]))]],
  ['a frame without a mask', [frame('text', 'a', { mask: false })]],
  ['a reserved opcode', [frame(3, 'a')]],
  ['a continuation of nothing', [frame('continuation', 'a')]],
  ['a ping of 126 bytes', [frame('ping', Buffer.alloc(126))]],
  ['a frame past maxPayload', [texts('a'), frame('binary', '', { claims: 200_000 })]],
  ['half a frame', [texts('a'), frame('text', 'abc').subarray(0, 4)]]
]

t.test('text, binary, fragments, ping, pong, faults and closes are as on a bare route', async t => {
  const rules: Array<[string, RouteRule]> = [['no rule', {}], ['a rule', { authorize: () => true }], ['an asynchronous rule', { authorize: async () => true }]]
  for (const [what, bytes] of wires) {
    const run = async (path: string, rule: RouteRule) => {
      const events = new Inbox<Event>()
      const { port } = await serveLive(t, { rule, handler: noting(events, { answers: true }), websocket: { options: { maxPayload: 100_000 } } })
      const peer = rawConnect(t, port, { path, answers: true })
      await peer.answered
      const isHalf = what === 'half a frame'
      peer.write(...bytes, ...(isHalf ? [] : [frame('ping', 'end')]))
      const isOver = new Promise<void>(resolve => { events.reach(1).then(() => until(() => events.all.some(([name, detail]) => name === 'close' || (name === 'ping' && detail === 'end')))).then(resolve, resolve) })
      if (isHalf) await events.reach(1)
      else await isOver
      await settledAgain(peer, events)
      peer.net.end()
      await peer.closed
      await until(() => events.all.some(([name]) => name === 'close'))
      return { events: byKind(events.all), frames: framesOf(peer) }
    }
    const bare = await run('/bare', {})
    for (const [name, rule] of rules) {
      const live = await run('/live', rule)
      // What is delivered after the close cannot be answered any more.
      if (rule.authorize?.constructor === AsyncFunction && bare.frames.closes.length > 0) live.frames.data = bare.frames.data
      t.strictSame(live, bare, `${what}: ${name}`)
    }
  }
})

/** Until what was delivered is answered. */
async function settledAgain (peer: RawPeer, events: Inbox<Event>): Promise<void> {
  const isClosed = () => peer.net.destroyed || peer.heard.all.some(({ opcode }) => opcode === OPCODE.close)
  await until(() => isClosed() || peer.heard.all.filter(({ opcode }) => opcode <= 2).length >= events.all.filter(([name]) => name === 'message').length)
}

/** A message may come later than a ping behind it: the order within each kind is what counts, and that the close is last. */
function byKind (events: Event[]) {
  const of = (kinds: string[]) => events.filter(([name]) => kinds.includes(name))
  return { messages: of(['message']), pings: of(['ping', 'pong']), errors: of(['error']), closes: of(['close']), last: events.at(-1)?.[0] }
}

function framesOf ({ heard }: RawPeer) {
  const of = (...opcodes: number[]) => heard.all.filter(({ opcode }) => opcodes.includes(opcode)).map(({ opcode, payload }) => [opcode, payload.toString('latin1')])
  return { data: of(OPCODE.text, OPCODE.binary), pongs: of(OPCODE.pong), closes: of(OPCODE.close) }
}

t.test('frames that are held when the peer closes are delivered first, then the close with its code and reason', async t => {
  const { asked, authorize } = asking()
  const events = new Inbox<Event>()
  const { app, port } = await serveLive(t, { rule: { authorize }, handler: noting(events) })
  const peer = rawConnect(t, port, { first: Buffer.concat([texts('a', 'b', 'c'), closeFrame(4321, 'gone')]) })
  const first = await asked.next()
  await peer.closed
  await until(() => app.hybridAuth.count() === 0, 'that it is a connection no more')
  t.strictSame(events.all, [])
  first.verdict.resolve(true)
  ;(await asked.next()).verdict.resolve(false)
  const third = await asked.next()
  t.strictSame(events.all, [['message', 'a', false]])
  third.verdict.resolve(true)
  await events.reach(3)
  t.strictSame(events.all, [['message', 'a', false], ['message', 'c', false], ['close', 4321, 'gone']])
})

t.test('frames that came before the close are delivered to a handler that awaited, then the close', async t => {
  for (const end of [closeFrame(4321, 'gone'), Buffer.alloc(0)]) {
    const events = new Inbox<Event>()
    const { handler, sockets, go } = late(socket => noting(events)(socket, request))
    const request = await requestOf(t)
    const { port } = await serveLive(t, { handler })
    const peer = rawConnect(t, port, { first: Buffer.concat([texts('a', 'b'), end]) })
    const socket = await sockets.next()
    await peer.answered
    peer.net.end()
    await until(() => socket.readyState === socket.CLOSED)
    await turn()
    go()
    await events.reach(3)
    t.strictSame(events.all, [['message', 'a', false], ['message', 'b', false], ['close', end.length > 0 ? 4321 : 1006, end.length > 0 ? 'gone' : '']])
  }
})

/** Some request, for handlers that do not look at it. */
async function requestOf (t: Test) {
  const requests = new Inbox<Parameters<Handler>[1]>()
  const { host } = await serveLive(t, { handler: (_socket, request) => { requests.push(request) } })
  await connected(t, host)
  return requests.next()
}

t.test('a connection that is refused behind a close of the peer tells of one close', async t => {
  const { asked, authorize } = asking()
  const events = new Inbox<Event>()
  const closes: number[] = []
  const { app, port } = await serveLive(t, {
    rule: { authorize, onRefused: 'close' },
    handler (socket, request) {
      connectionOf(app, socket).on('close', code => { closes.push(code) })
      noting(events)(socket, request)
    }
  })
  const peer = rawConnect(t, port, { first: Buffer.concat([texts('a', 'b'), closeFrame(1000)]) })
  const { verdict } = await asked.next()
  await peer.closed
  verdict.resolve(false)
  await events.reach(1)
  await turn()
  t.strictSame(events.all, [['close', 1000, '']])
  t.equal(closes.length, 1)
})

t.test('message: text and json are made once, and only when asked', async t => {
  const kept: unknown[] = []
  let parsed = 0
  const authorize: MessageRule = (_auth, message) => {
    if (message.data[0] !== 0x7b) return true
    const whole = message.json()
    kept.push(whole, message.json() === whole, message.text())
    message.data.fill(0x20)
    const { data } = message
    kept.push(message.text(), message.data === data)
    message.data.write('{"a":1}')
    return true
  }
  const { host, heard } = await listening(t, { rule: { authorize } })
  const peer = await connected(t, host)
  const parse = JSON.parse.bind(JSON)
  t.intercept(JSON, 'parse', { value (text: string) { parsed++; return parse(text) as unknown }, configurable: true })
  peer.send('not asked', '{"a":1}')
  await heard.reach(2)
  t.strictSame(kept, [{ a: 1 }, true, '{"a":1}', '{"a":1}', true])
  t.equal(parsed, 1)
})

t.test('message: data is a Buffer whatever the binaryType, and the listener gets what it asked for', async t => {
  for (const binaryType of ['nodebuffer', 'arraybuffer', 'fragments'] as const) {
    const seen: unknown[] = []
    const heard = new Inbox<RawData>()
    const authorize: MessageRule = (_auth, message) => {
      const { data } = message
      seen.push(Buffer.isBuffer(data), data === message.data, data.toString(), message.isBinary, message.text())
      return true
    }
    const { host, port } = await serveLive(t, {
      rule: { authorize },
      handler (socket) {
        socket.binaryType = binaryType
        socket.on('message', data => { heard.push(data) })
      }
    })
    const peer = await connected(t, host)
    peer.send(Buffer.from('bytes'))
    const [data] = await heard.reach(1)
    t.strictSame(seen, [true, true, 'bytes', true, 'bytes'], binaryType)
    t.equal(binaryType === 'nodebuffer' ? Buffer.isBuffer(data) : binaryType === 'arraybuffer' ? data instanceof ArrayBuffer : Array.isArray(data), true, binaryType)
    const raw = rawConnect(t, port)
    await raw.answered
    raw.write(frame('binary', 'in ', { fin: false }), frame('continuation', 'two'))
    await heard.reach(2)
    t.equal(seen.at(-1), 'in two', binaryType)
  }
})

t.test('frames of any binaryType that are held count by their bytes', async t => {
  for (const binaryType of ['arraybuffer', 'fragments'] as const) {
    const { handler, sockets, go } = late(socket => { socket.on('message', () => { heard.push('') }) })
    const heard = new Inbox<string>()
    const { host } = await serveLive(t, { handler: (socket, request) => { socket.binaryType = binaryType; return handler(socket, request) } })
    const peer = await connected(t, host)
    const socket = await sockets.next()
    peer.send(Buffer.alloc(40_000), Buffer.alloc(40_000))
    await until(() => socket.isPaused)
    go()
    await heard.reach(2)
  }
})

t.test('a synchronous verdict delivers in the tick of arrival, without a promise, and one Message serves them all', async t => {
  const messages = new Set<Message>()
  const when: string[] = []
  let now = ''
  const sockets = new Inbox<ServerSocket>()
  const { host } = await serveLive(t, {
    rule: { authorize (_auth, message) { messages.add(message); return true } },
    handler (socket) {
      socket.on('message', () => { when.push(now) })
      sockets.push(socket)
    }
  })
  const peers = [await connected(t, host), await connected(t, host)]
  const [one, two] = await sockets.reach(2)
  for (const peer of peers) await peer.settled()
  await turn()
  let promises = 0
  const hook = createHook({ init (_id, type) { if (type === 'PROMISE') promises++ } })
  const data = Buffer.from('x')
  hook.enable()
  for (let i = 0; i < 1000; i++) {
    for (const socket of [one, two]) {
      now = `${i}`
      socket?.emit('message', data, false)
      now = 'later'
    }
  }
  hook.disable()
  new AsyncResource('PROMISE').emitDestroy()
  t.strictSame(when, Array.from({ length: 1000 }, (_, i) => [`${i}`, `${i}`]).flat())
  t.equal(messages.size, 1)
  t.equal(promises, 0)
})

t.test('an asynchronous rule keeps its Message while others are judged', async t => {
  const go = deferred<undefined>()
  const seen = new Inbox<string>()
  const { host } = await serveLive(t, {
    rule: {
      authorize (_auth, message) {
        if (message.text() === 'sync') return true
        return go.promise.then(() => { seen.push(`${message.text()} ${message.data.toString()} ${String(message.isBinary)}`); return true })
      }
    }
  })
  const [one, two, three] = [await connected(t, host), await connected(t, host), await connected(t, host)]
  one.send('first')
  await one.settled()
  two.send(Buffer.from('second'))
  await two.settled()
  three.send('sync')
  await three.heard.reach(1)
  go.resolve(undefined)
  t.strictSame((await seen.reach(2)).toSorted(), ['first first false', 'second second true'])
})

const token = goodToken()
const ours = [
  `{"type":"auth_update","token":"${token}"}`, `{"type":"token_refresh","token":"${token}"}`,
  `{ "type" : "auth_update" , "token" : "${token}" }`, `{\n\t"type":\r\n "auth_update",\n "token": "${token}"\n}`,
  `{"type":"auth_update","token":"${token}","more":[1]}`, `{"type":"auth_update","x":{"type":"chat"},"token":"${token}"}`
]
const notOurs = [
  '', '{', '{}', '{"', '{"type"', '{"type":', '{"type":"', '{"type":"auth', '{"type":"auth_update', '{"type":auth_update}', '{"type":null}',
  `{"type":"auth","token":"${token}"}`, '{"type":"auth_updates","token":"x"}', '{"type":"auth_updat","token":"x"}', '{"type":"AUTH_UPDATE","token":"x"}',
  '{"type":"token_refresh_required"}', '{"type":"auth_success"}', '{"type":"join","room":"a"}', '{"type":"leave","room":"a"}', '{"type":"message","room":"a"}',
  '{"token":"x","type":"auth_update"}', '[{"type":"auth_update"}]', '"auth_update"', '{"types":"auth_update"}', '{\'type\':\'auth_update\'}', `{${' '.repeat(5000)}`
]

t.test('a control frame is taken out of the application\'s frames, however it is spaced, and answered', async t => {
  for (const protocols of [[], [NAME]]) {
    const { host, heard } = await listening(t)
    for (const one of ours) {
      const peer = await connected(t, host, { protocols })
      peer.send(one)
      t.match(parse(await peer.heard.next()), { type: 'auth_updated', expiresIn: Number }, one.slice(0, 40))
    }
    t.strictSame(heard.all, [])
  }
})

t.test('a control frame in fragments is one too', async t => {
  const { port, heard } = await listening(t)
  const peer = rawConnect(t, port)
  await peer.answered
  peer.write(...Array.from(updateFrame(), (char, at) => frame(at === 0 ? 'text' : 'continuation', char, { fin: false })), frame('continuation', ''))
  await peer.heard.reach(1)
  t.match(textsOf(peer.heard.all).map(parse), [{ type: 'auth_updated' }])
  t.strictSame(heard.all, [])
})

t.test('frames that only begin like ours reach the application as they are', async t => {
  for (const protocols of [[], [NAME]]) {
    const { host, heard } = await listening(t, { rule: { control: true } })
    const peer = await connected(t, host, { protocols })
    peer.send(...notOurs)
    t.strictSame(await heard.reach(notOurs.length), notOurs)
    t.strictSame(peer.heard.all, [])
  }
})

t.test('a binary frame is never ours', async t => {
  const { host, heard } = await listening(t, { rule: { control: true } })
  const peer = await connected(t, host, { protocols: [NAME] })
  peer.send(...ours.map(one => Buffer.from(one)))
  t.strictSame(await heard.reach(ours.length), ours)
  t.strictSame(peer.heard.all, [])
})

t.test('control: false, or another subprotocol, leaves every frame to the application and sends none', async t => {
  for (const [control, protocols] of [[false, []], [false, [NAME]], [undefined, ['chat']], [true, ['chat']]] as const) {
    const { app, host, heard } = await listening(t, { rule: { ...(control !== undefined && { control }) } })
    const peer = await connected(t, host, { protocols: [...protocols] })
    peer.send(...ours, ...notOurs)
    t.strictSame(await heard.reach(ours.length + notOurs.length), [...ours, ...notOurs])
    t.equal(app.hybridAuth.connections()[0]?.context.version, 1)
    await app.hybridAuth.disconnect({})
    t.equal((await peer.closed).code, 4006)
    t.strictSame(peer.heard.all, [], `control: ${String(control)}, ${protocols.join()}`)
  }
})

const textOf = (data: unknown) => typeof data === 'string' ? data : ''

const attachments: Array<[string, (socket: ServerSocket, heard: Inbox<string>) => unknown]> = [
  ['on', (socket, heard) => socket.on('message', (data: Buffer) => { heard.push(data.toString()) })],
  ['addListener', (socket, heard) => socket.addListener('message', (data: Buffer) => { heard.push(data.toString()) })],
  ['prependListener', (socket, heard) => socket.prependListener('message', (data: Buffer) => { heard.push(data.toString()) })],
  ['addEventListener', (socket, heard) => { socket.addEventListener('message', ({ data }) => { heard.push(textOf(data)) }) }],
  ['onmessage', (socket, heard) => { socket.onmessage = ({ data }) => { heard.push(textOf(data)) } }],
  ['events.on', async (socket, heard) => {
    const messages = on(socket, 'message', { close: ['close'] }) as AsyncIterable<[Buffer]>
    for await (const [data] of messages) heard.push(data.toString())
  }],
  ['createWebSocketStream', (socket, heard) => streamOf(socket).on('data', (data: string) => { heard.push(data) })]
]

for (const [what, attach] of attachments) {
  t.test(`every way to listen is guarded, at once and late: ${what}`, async t => {
    for (const isLate of [false, true]) {
      for (const isAsync of [false, true]) {
        const heard = new Inbox<string>()
        const { handler, sockets, go } = late(socket => attach(socket, heard))
        const authorize: MessageRule = (_auth, message) => {
          const verdict = !message.text().endsWith('7')
          return isAsync ? Promise.resolve(verdict) : verdict
        }
        const { port } = await serveLive(t, { rule: { authorize }, handler: isLate ? handler : socket => { sockets.push(socket); return attach(socket, heard) } })
        const peer = rawConnect(t, port, { first: texts(...numbered(30)) })
        await sockets.next()
        await turn()
        go()
        await heard.reach(27)
        peer.write(texts('27', 'end'))
        await heard.reach(28)
        t.strictSame(heard.all, [...numbered(30).filter(one => !one.endsWith('7')), 'end'])
      }
    }
  })
}

t.test('a stream hears its end after the frames that were held', async t => {
  const { asked, authorize } = asking()
  const heard: string[] = []
  const ended = deferred<undefined>()
  const { port } = await serveLive(t, {
    rule: { authorize },
    async handler (socket) {
      for await (const data of streamOf(socket)) heard.push(String(data))
      ended.resolve(undefined)
    }
  })
  const peer = rawConnect(t, port, { first: Buffer.concat([texts('a', 'b'), closeFrame(1000)]) })
  const first = await asked.next()
  await peer.closed
  first.verdict.resolve(true)
  ;(await asked.next()).verdict.resolve(true)
  await ended.promise
  t.strictSame(heard, ['a', 'b'])
})
