import { spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import t, { type Test } from 'tap'
import type { AuditEvent, HybridAuthOptions, Identity } from '../lib/index.js'
import { CLOSE, closeReason, type CloseName } from '../lib/protocol.js'
import { wheel } from '../lib/wheel.js'
import { handshake, inSeconds, goodToken, JWT } from './helpers.js'
import { blockUntil, DAY, deafPeer, eventually, HOUR, live, lookNow, setClock, type Pair } from './live.js'
import { cookieFor, deferred, MapStore } from './stores.js'

const together: Array<{ title: string, run: (t: Test) => Promise<void> }> = []
/** For tests that set nothing of the process, neither clock nor dice, and hold up nobody: these run at once, at the end. */
function beside (title: string, run: (t: Test) => Promise<void>): void {
  together.push({ title, run })
}

/** The wheel turns in ticks of 50 ms, and a busy machine is late. */
const LATE = 700
const MASKED_TEXT_X = Buffer.from([0x81, 0x81, 0, 0, 0, 0, 0x78])
const EXPIRED = { code: 4002, reason: closeReason('AuthenticationExpired') }
const bearerLine = (token = goodToken()) => [`Authorization: Bearer ${token}`]

/** A token that ends at this time, which need not be a whole second. */
const tokenUntil = (time: number) => goodToken({ exp: time / 1000 })
const codeAndReason = ({ code, reason }: { code: number, reason: string }) => ({ code, reason })

beside('case 23: a 2-second token on a silent socket that only receives is closed 4002 on time and not before', async t => {
  const { open } = await live(t, { handler: ({ socket }) => { socket.send('hello') } })
  const ends = Date.now() + 2000
  const pairs = await Promise.all(Array.from({ length: 5 }, () => open({ token: tokenUntil(ends) })))
  for (const end of await Promise.all(pairs.map(({ peer }) => peer.end))) {
    t.same(codeAndReason(end), EXPIRED)
    t.ok(end.at >= ends, `${end.at - ends} ms after the end`)
    t.ok(end.at < ends + LATE, `${end.at - ends} ms after the end`)
  }
  t.ok(pairs.every(({ there }) => there.received.length === 0))
})

beside('case 23: a token that ends in a second connects, works, and is closed at its end', async t => {
  const { open } = await live(t)
  const exp = inSeconds(1)
  const { peer } = await open({ token: goodToken({ exp: exp + 1 }) })
  t.ok(await peer.echoed('before the end'))
  const end = await peer.end
  t.same(codeAndReason(end), EXPIRED)
  t.ok(end.at >= (exp + 1) * 1000)
})

t.test('after the end nothing is delivered to the application, whether or not a timer has fired', async t => {
  const { open } = await live(t)
  const ends = Date.now() + 400
  const { peer, there } = await open({ token: tokenUntil(ends) })
  t.ok(await peer.echoed('first'))
  peer.say('queued while the loop was blocked')
  blockUntil(ends + 20)
  t.same(codeAndReason(await peer.end), EXPIRED)
  t.same(there.received, ['first'])
})

t.test('after the end nothing of the application is delivered to the peer, whether or not a timer has fired', async t => {
  const { app, open } = await live(t)
  const ends = Date.now() + 400
  const { peer, there } = await open({ token: tokenUntil(ends) })
  t.ok(await peer.echoed('first'))
  const told = deferred<Error | undefined>()
  blockUntil(ends)
  t.equal(there.connection.send('late'), false)
  there.socket.send('late')
  there.socket.send('late', error => { told.resolve(error) })
  there.socket.send(Buffer.from('late'), { binary: true }, () => {})
  t.ok(await told.promise instanceof Error, 'who asked is told')
  t.same(codeAndReason(await peer.end), EXPIRED)
  t.same(peer.texts, ['first'])
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a listener that is called past the end of the credential finds the socket closing', async t => {
  const clock = setClock(t)
  const { open } = await live(t)
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(60) }) })
  t.ok(await peer.echoed('first'))
  clock.move(61_000)
  peer.say('second')
  t.same(codeAndReason(await peer.end), EXPIRED)
  await there.closed
  t.same(there.received, ['first'])
  t.same([there.closes, there.socketCloses], [[4002], [4002]])
})

beside('expiryGrace is how long a socket outlives its credential', async t => {
  const { open } = await live(t, { auth: { expiryGrace: 600 } })
  const ends = Date.now() + 500
  const { peer } = await open({ token: tokenUntil(ends) })
  await t.test('it works in the grace', async t => {
    await new Promise(resolve => { setTimeout(resolve, ends - Date.now() + 50) })
    t.ok(Date.now() > ends)
    t.ok(await peer.echoed('in the grace'))
  })
  const end = await peer.end
  t.same(codeAndReason(end), EXPIRED)
  t.ok(end.at >= ends + 600 && end.at < ends + 600 + LATE)
})

t.test('by default a socket that can refresh has 25 s of grace, and any other none', async t => {
  const clock = setClock(t)
  const store = new MapStore()
  const cookie = cookieFor('s1')
  const { open } = await live(t, { route: { control: true }, session: { store } })
  store.put('s1', { user: { userId: 'bob' }, cookie: { expires: new Date(Date.now() + 60_000).toISOString() } })
  const token = goodToken({ exp: inSeconds(60) })
  const speaking = await open({ token, speaks: true })
  const unasked = await open({ token })
  const session = await open({ cookie, speaks: true })
  const other = await open({ token, protocols: ['chat.v2'] })
  clock.move(61_000)
  for (const { there } of [session, other]) lookNow(there.connection)
  t.equal((await session.peer.end).code, 4002, 'a session cannot be refreshed in-band')
  t.equal((await other.peer.end).code, 4002, 'a client of another protocol does not speak ours')
  clock.reset()
  clock.move(60_000 + 24_000)
  for (const { peer, there } of [speaking, unasked]) {
    lookNow(there.connection)
    t.ok(await peer.echoed('still here'))
  }
  clock.move(1500)
  for (const { peer, there } of [speaking, unasked]) {
    lookNow(there.connection)
    t.equal((await peer.end).code, 4005, 'it was asked to refresh and did not')
  }
})

t.test('expiryGrace: 0 takes the grace from sockets that can refresh', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { expiryGrace: 0 } })
  const { peer } = await open({ token: goodToken({ exp: inSeconds(60) }), speaks: true })
  clock.move(60_500)
  peer.say('late')
  const end = await peer.end
  t.match(end, { code: 4002 }, 'nobody had asked for a refresh yet')
})

beside('maxConnectionAge ends a socket whatever its credential says, and a refresh does not extend it', async t => {
  const { open } = await live(t, { auth: { maxConnectionAge: 700, expiryGrace: 30_000, jwt: { ...JWT, allowNoExpiry: true } } })
  const started = Date.now()
  const [long, endless, refreshed] = await Promise.all([open(), open({ token: goodToken({ exp: undefined }) }), open({ speaks: true })])
  refreshed.peer.say({ type: 'auth_update', token: goodToken({ exp: inSeconds(9000) }) })
  t.match(await refreshed.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  for (const { peer } of [long, endless, refreshed]) {
    const end = await peer.end
    t.same(codeAndReason(end), EXPIRED)
    t.ok(end.at >= started + 700 && end.at < started + 700 + LATE)
  }
})

beside('a credential that ends before maxConnectionAge ends the socket', async t => {
  const { open } = await live(t, { auth: { maxConnectionAge: DAY } })
  const ends = Date.now() + 400
  const { peer } = await open({ token: tokenUntil(ends) })
  const end = await peer.end
  t.same(codeAndReason(end), EXPIRED)
  t.ok(end.at < ends + LATE)
})

beside('case 70: an end 60 days, 100 years or no end ahead does not fire', async t => {
  const { app, open } = await live(t, { auth: { jwt: { ...JWT, allowNoExpiry: true }, heartbeat: { interval: 50, timeout: 100 } } })
  const pairs = await Promise.all([60 * DAY, 36_525 * DAY, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 8.64e15 - Date.now() - DAY].map(ms => open({ token: goodToken({ exp: inSeconds(ms / 1000) }), speaks: true })))
  pairs.push(await open({ token: goodToken({ exp: undefined }), speaks: true }))
  for (const { peer } of pairs) await peer.until(() => peer.pings.length >= 3)
  for (const { there } of pairs) lookNow(there.connection)
  for (const { peer } of pairs) {
    t.ok(await peer.echoed('alive'))
    t.same(peer.framesOf('token_refresh_required'), [], 'and is not asked to refresh')
  }
  t.equal(app.hybridAuth.count(), pairs.length)
})

t.test('case 70: a clock that is set forward past the end closes the socket at the next look, and one within it does not', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { heartbeat: { interval: 50, timeout: 1000 } } })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(2 * 3600) }) })
  clock.move(HOUR)
  t.ok(await peer.echoed('an hour later'))
  lookNow(there.connection)
  t.ok(await peer.echoed('and looked at'))
  clock.move(HOUR + 1000)
  t.same(codeAndReason(await peer.end), EXPIRED)
})

t.test('case 70: a clock that is set back closes nothing, and the end comes when the clock says so', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { heartbeat: { interval: 50, timeout: 1000 } } })
  const ends = Date.now() + 300_000
  const { peer, there } = await open({ token: tokenUntil(ends) })
  clock.move(-HOUR)
  lookNow(there.connection)
  t.ok(await peer.echoed('an hour earlier'))
  clock.reset()
  lookNow(there.connection)
  t.ok(await peer.echoed('set right'))
  clock.move(300_000)
  peer.say('at the end')
  t.equal((await peer.end).code, 4002)
})

t.test('case 70: after the clock was set back an hour, peers that are gone are still found', async t => {
  const clock = setClock(t)
  const { app, open } = await live(t, { auth: { heartbeat: { interval: 100, timeout: 100 } } })
  const { peer, there } = await open({ autoPong: false })
  clock.move(-HOUR)
  await Promise.race([peer.end, new Promise(resolve => { setTimeout(resolve, 3000) })])
  t.ok(peer.hasEnded, 'a peer that answers no ping is cut off')
  await eventually('it is no connection any more', () => app.hybridAuth.count() === 0)
  there.connection.close()
})

t.test('idleTimeout closes 4003 a socket on which no message came; it is off by default', async t => {
  const { open } = await live(t, { auth: { idleTimeout: 400 } })
  const started = Date.now()
  const { peer } = await open()
  const end = await peer.end
  t.same(codeAndReason(end), { code: 4003, reason: closeReason('Inactive') })
  t.ok(end.at >= started + 400 && end.at < started + 400 + LATE)

  const clock = setClock(t)
  const unlimited = await live(t)
  const quiet = await unlimited.open({ token: goodToken({ exp: inSeconds(30 * 86_400) }) })
  clock.move(20 * DAY)
  lookNow(quiet.there.connection)
  t.ok(await quiet.peer.echoed('20 days later'))
})

t.test('messages of the application put idleTimeout off', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { idleTimeout: 60_000, heartbeat: false } })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(86_400) }) })
  for (let minute = 0; minute < 5; minute++) {
    clock.move(50_000)
    t.ok(await peer.echoed(`minute ${minute}`))
    lookNow(there.connection)
  }
  clock.move(59_000)
  lookNow(there.connection)
  t.notOk(peer.hasEnded)
  clock.move(1100)
  lookNow(there.connection)
  t.equal((await peer.end).code, 4003)
})

t.test('pings, pongs, control frames and what the server sends do not put idleTimeout off', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { idleTimeout: 60_000, heartbeat: false } })
  const [pings, updates, sends] = await Promise.all([open(), open({ speaks: true }), open()])
  clock.move(50_000)
  pings.peer.socket.ping()
  pings.peer.socket.pong()
  await once(pings.there.socket, 'pong')
  updates.peer.say({ type: 'auth_update', token: goodToken() })
  await updates.peer.takeFrame('auth_updated')
  sends.there.socket.send('from the server')
  await sends.peer.take()
  clock.move(10_100)
  for (const { peer, there } of [pings, updates, sends]) {
    lookNow(there.connection)
    t.equal((await peer.end).code, 4003)
  }
})

beside('the heartbeat pings every interval, and who answers stays', async t => {
  const { open } = await live(t, { auth: { heartbeat: { interval: 600, timeout: 300 } } })
  const { peer } = await open()
  await eventually('three pings', () => peer.pings.length >= 3)
  const gaps = peer.pings.slice(1).map((at, i) => at - (peer.pings[i] ?? 0))
  t.ok(gaps.every(gap => gap >= 550), gaps.join())
  t.ok(gaps.every(gap => gap < 600 + 250), `every 600 ms, not every ${gaps.join()}`)
  t.notOk(peer.hasEnded)
})

beside('who sends nothing for the timeout after a ping is terminated, without a close frame', async t => {
  const events: AuditEvent[] = []
  const { app, open } = await live(t, { auth: { heartbeat: { interval: 200, timeout: 300 }, audit: event => { events.push(event) } } })
  const started = Date.now()
  const { peer, there } = await open({ autoPong: false })
  const end = await peer.end
  t.equal(end.code, 1006)
  t.ok(end.at >= started + 450 && end.at < started + 500 + LATE, `${end.at - started} ms`)
  await there.closed
  t.same([there.closes, app.hybridAuth.count()], [[1006], 0])
  t.match(events.filter(({ type }) => type === 'closed'), [{ closeCode: 1006, userId: 'alice' }])
})

beside('anything that a peer sends shows that it is there', async t => {
  const { open } = await live(t, { auth: { heartbeat: { interval: 100, timeout: 400 } } })
  const messages = await open({ autoPong: false })
  const pongs = await open({ autoPong: false })
  const pings = await open({ autoPong: false })
  const timer = setInterval(() => {
    messages.peer.say('x')
    pongs.peer.socket.pong()
    pings.peer.socket.ping()
  }, 100)
  t.teardown(() => { clearInterval(timer) })
  for (const { peer } of [messages, pongs, pings]) {
    await peer.until(() => peer.pings.length >= 3)
    t.notOk(peer.hasEnded)
  }
})

beside('a socket that is not read, for the application or the gate paused it, is not taken for dead', async t => {
  const gate = deferred<boolean>()
  const { open } = await live(t, { auth: { heartbeat: { interval: 100, timeout: 100 } }, route: { authorize: () => gate.promise } })
  const held = await open()
  for (let i = 0; i < 40; i++) held.peer.say(`m${i}`)
  const plain = await live(t, { auth: { heartbeat: { interval: 100, timeout: 100 } } })
  const paused = await plain.open()
  paused.there.socket.pause()
  await new Promise(resolve => { setTimeout(resolve, 900) })
  t.notOk(held.peer.hasEnded, 'held back by a verdict')
  t.notOk(paused.peer.hasEnded, 'paused by the application')
  gate.resolve(true)
  paused.there.socket.resume()
  if (!held.peer.hasEnded) await held.peer.until(() => held.there.received.length === 40)
  t.equal(held.there.received.length, 40)
  t.ok(await paused.peer.echoed('resumed'))
})

t.test('heartbeat: false pings nobody', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { heartbeat: false } })
  const { peer, there } = await open({ token: goodToken({ exp: inSeconds(86_400) }), autoPong: false })
  for (let i = 0; i < 5; i++) {
    clock.move(60_000)
    lookNow(there.connection)
  }
  t.ok(await peer.echoed('x'))
  t.same(peer.pings, [])
})

beside('a peer that never answers the close is terminated after 3 s', async t => {
  const { app, open, port } = await live(t, { handler: ({ socket }) => { socket.send('x') } })
  const [first, second] = await Promise.all([deafPeer(t, port, bearerLine()), deafPeer(t, port, bearerLine(tokenUntil(Date.now() + 300)))])
  const started = performance.now()
  await eventually('both are connections', () => app.hybridAuth.count() === 2)
  const { matched } = await app.hybridAuth.disconnect({})
  t.equal(matched, 2)
  t.equal(app.hybridAuth.count(), 0, 'neither is a connection from here on')
  for (const { closed } of [first, second]) {
    const took = await closed - started
    t.ok(took >= 2900 && took < 3000 + LATE, `after ${Math.round(took)} ms`)
  }
  t.equal((await open()).peer.socket.readyState, 1)
})

beside('a peer that keeps sending after the close is terminated too, and nothing it sends is delivered', async t => {
  let received = 0
  const { app, port } = await live(t, { handler: ({ socket }) => { socket.on('message', () => { received++ }) } })
  const { socket, closed } = await deafPeer(t, port, bearerLine())
  const timer = setInterval(() => { socket.write(MASKED_TEXT_X) }, 20)
  t.teardown(() => { clearInterval(timer) })
  await eventually('messages come', () => received > 2)
  const started = performance.now()
  await app.hybridAuth.disconnect({})
  const seen = received
  const took = await closed - started
  t.ok(took < 3000 + LATE, `after ${Math.round(took)} ms`)
  t.equal(received, seen)
})

t.test('a listener of `expiring` that closes does not put off the end of a peer that never answers', async t => {
  const clock = setClock(t)
  const { app, port } = await live(t, { handler: ({ connection }) => { connection.on('expiring', () => { connection.close('Inactive') }) } })
  const { closed } = await deafPeer(t, port, bearerLine(goodToken({ exp: inSeconds(3600) })))
  await eventually('it is a connection', () => app.hybridAuth.count() === 1)
  const [connection] = app.hybridAuth.connections()
  clock.move(3500_000)
  const started = performance.now()
  if (connection !== undefined) lookNow(connection)
  clock.reset()
  t.equal(app.hybridAuth.count(), 0)
  const took = await Promise.race([closed, new Promise<number>(resolve => { setTimeout(resolve, 6000, Infinity) })]) - started
  t.ok(took < 3000 + LATE, `after ${Math.round(took)} ms`)
})

beside('close codes and reasons are those of the table, as JSON of at most 123 bytes', async t => {
  const { open } = await live(t)
  const names = Object.keys(CLOSE) as CloseName[]
  t.equal(names.length, 14)
  for (const name of names) {
    const { peer, there } = await open()
    there.connection.close(name)
    const end = await peer.end
    const { code, reason, action } = CLOSE[name]
    t.equal(end.code, code, name)
    t.same(JSON.parse(end.reason), { code: reason, action, retryAfterMs: 0 })
    t.equal(end.reason, closeReason(name))
    t.ok(Buffer.byteLength(end.reason) <= 123)
    t.same([there.connection.send('x'), peer.texts], [false, []], 'no bye to who does not speak the protocol')
  }
})

beside('a code of the table closes like its name, and another code says `closed`', async t => {
  const { open } = await live(t)
  const [known, other] = await Promise.all([open(), open()])
  known.there.connection.close(4003)
  other.there.connection.close(4444)
  t.same(codeAndReason(await known.peer.end), { code: 4003, reason: closeReason('Inactive') })
  t.same(codeAndReason(await other.peer.end), { code: 4444, reason: JSON.stringify({ code: 'closed', action: 'stop', retryAfterMs: 0 }) })
})

beside('closeCodes replaces the code and leaves the reason', async t => {
  const events: AuditEvent[] = []
  const closeCodes = { AuthenticationExpired: 4902, Revoked: 3000, Inactive: 4999, Draining: 4912 }
  const { app, open } = await live(t, { auth: { closeCodes, idleTimeout: 300, audit: event => { events.push(event) } } })
  const started = Date.now()
  const [expired, revoked, idle, byCode, drained] = await Promise.all([open({ token: tokenUntil(started + 250), speaks: false }), open(), open(), open(), open()])
  await app.hybridAuth.disconnect({ tokenId: tokenIdOf(revoked) })
  byCode.there.connection.close(4003)
  drained.there.connection.close('Draining')
  t.same(codeAndReason(await expired.peer.end), { code: 4902, reason: closeReason('AuthenticationExpired') })
  t.same(codeAndReason(await revoked.peer.end), { code: 3000, reason: closeReason('Revoked') })
  t.same(codeAndReason(await idle.peer.end), { code: 4999, reason: closeReason('Inactive') })
  t.same(codeAndReason(await byCode.peer.end), { code: 4999, reason: closeReason('Inactive') })
  t.same(codeAndReason(await drained.peer.end), { code: 4912, reason: closeReason('Draining') })
  await Promise.all([expired, revoked, idle, byCode, drained].map(({ there }) => there.closed))
  t.same(events.flatMap(event => event.type === 'closed' ? [event.closeCode] : []).sort(), [3000, 4902, 4912, 4999, 4999])
  t.equal(events.filter(({ type }) => type === 'expired').length, 1)
})

const tokenIdOf = ({ there }: Pair) => there.connection.context.authType === 'session' ? '' : there.connection.context.tokenId

beside('`bye` comes before the close where the protocol is spoken, and nowhere else', async t => {
  const { app, open } = await live(t)
  const [spoken, silent, other] = await Promise.all([open({ speaks: true }), open(), open({ protocols: ['chat.v2'] })])
  const answered = await open()
  answered.peer.say({ type: 'auth_update', token: goodToken() })
  await answered.peer.takeFrame('auth_updated')
  await app.hybridAuth.disconnect({}, { code: 'RateLimited', reason: 'too_fast' })
  const ends = await Promise.all([spoken, silent, other, answered].map(({ peer }) => peer.end))
  for (const end of ends) t.same(codeAndReason(end), { code: 4008, reason: '{"code":"too_fast","action":"retry","retryAfterMs":0}' })
  const bye = { type: 'bye', code: 'too_fast', action: 'retry' }
  t.same(spoken.peer.texts.map(text => JSON.parse(text) as unknown), [bye])
  t.same(answered.peer.framesOf('bye'), [bye], 'in answer to a control frame')
  t.same([silent.peer.texts, other.peer.texts], [[], []])
})

beside('`control` decides about `bye` on a route, save for clients of another protocol', async t => {
  const always = await live(t, { route: { control: true } })
  const never = await live(t, { route: { control: false } })
  const [plain, other, negotiated] = await Promise.all([always.open(), always.open({ protocols: ['chat.v2'] }), never.open({ speaks: true })])
  const { peer: untouched, there } = await never.open()
  t.ok(await untouched.echoed('{"type":"auth_update","token":"x"}'), 'control: false leaves every frame to the application')
  for (const { connection } of [plain.there, other.there, negotiated.there, there]) connection.close()
  for (const peer of [plain.peer, other.peer, negotiated.peer, untouched]) t.equal((await peer.end).code, 4006)
  t.equal(plain.peer.framesOf('bye').length, 1)
  t.same([other.peer.framesOf('bye'), untouched.framesOf('bye')], [[], []])
})

beside('the peer\'s own close reaches the application with its code', async t => {
  const events: AuditEvent[] = []
  const { app, open } = await live(t, { auth: { audit: event => { events.push(event) } } })
  const { peer, there } = await open()
  peer.socket.close(4321, 'mine')
  t.equal((await peer.end).code, 4321)
  await there.closed
  t.same([there.closes, there.socketCloses, app.hybridAuth.count()], [[4321], [4321], 0])
  t.match(events.at(-1), { type: 'closed', closeCode: 4321, connectionId: there.connection.id })
})

t.test('a peer\'s close behind frames that nobody listens for reaches the application although the credential ends meanwhile', async t => {
  const waiting = wheel.size
  const { open } = await live(t, { handler: () => {} })
  const { peer, there } = await open({ token: tokenUntil(Date.now() + 600) })
  peer.say('nobody listens')
  peer.socket.close(4321)
  await peer.end
  const outcome = await Promise.race([there.closed.then(() => 'told'), new Promise(resolve => { setTimeout(resolve, 6500, 'never told') })])
  t.equal(outcome, 'told')
  t.equal(there.closes.length, 1)
  t.equal(wheel.size, waiting, 'and nothing of it waits')
})

t.test('a peer\'s close behind frames that nobody listens for is told after 5 s, and nothing of it is left', async t => {
  const waiting = wheel.size
  const { open } = await live(t, { handler: () => {} })
  const { peer, there } = await open()
  peer.say('nobody listens')
  peer.socket.close(4321)
  await peer.end
  await there.closed
  t.same([there.closes, there.socketCloses], [[4321], [4321]])
  t.equal(wheel.size, waiting)
})

// Ends of every kind.

const FEW = 400

/** Opens sockets in batches, so that the listener's queue is not what is tested. */
async function openMany (open: () => Promise<Pair>, count = FEW): Promise<Pair[]> {
  const pairs: Pair[] = []
  while (pairs.length < count) pairs.push(...await Promise.all(Array.from({ length: 50 }, open)))
  return pairs
}

const ENDINGS: Array<[string, (pairs: Pair[], disconnect: () => Promise<unknown>) => unknown]> = [
  ['a close of the client', pairs => { for (const { peer } of pairs) peer.socket.close() }],
  ['a client that is gone', pairs => { for (const { peer } of pairs) peer.socket.terminate() }],
  ['a close of the handler', pairs => { for (const { there } of pairs) there.socket.close() }],
  ['a terminate of the handler', pairs => { for (const { there } of pairs) there.socket.terminate() }],
  ['close() of the connection', pairs => { for (const { there } of pairs) there.connection.close() }],
  ['disconnect()', (_pairs, disconnect) => disconnect()],
  ['a frame that breaks the protocol', pairs => { for (const { there } of pairs) there.socket.emit('error', new Error('broken')); for (const { peer } of pairs) peer.socket.terminate() }],
  ['closes of both at once', pairs => { for (const { peer, there } of pairs) { peer.socket.close(); there.connection.close() } }],
  ['a message and a close at once', pairs => { for (const { peer } of pairs) { peer.say('last'); peer.socket.close() } }]
]

t.test('case 82: thousands of sockets opened and closed in every way leave no entry and nothing in the wheel', async t => {
  const before = wheel.size
  const { app, open } = await live(t, { handler ({ socket }) { socket.on('error', () => {}); socket.on('message', () => {}) } })
  for (const [what, end] of ENDINGS) {
    const pairs = await openMany(() => open({ token: goodToken({ sub: 'alice', jti: 'shared' }) }))
    t.equal(app.hybridAuth.count(), FEW)
    await end(pairs, () => app.hybridAuth.disconnect({ userId: 'alice' }))
    await Promise.all(pairs.flatMap(({ peer, there }) => [peer.end, there.closed]))
    t.same([app.hybridAuth.count(), app.hybridAuth.connections({ tokenId: 'shared' }).length, app.hybridAuth.connections({ userId: 'alice' }).length], [0, 0, 0], what)
    t.ok(pairs.every(({ there }) => there.closes.length === 1 && there.socketCloses.length === 1), `${what}: told once`)
    t.equal(wheel.size, before, what)
  }
})

t.test('case 82: so do sockets that expire in the same moment, without stalling the loop', async t => {
  const before = wheel.size
  const { app, open } = await live(t, { handler: () => {} })
  const ends = Date.now() + 3000
  const token = tokenUntil(ends)
  const pairs = await openMany(() => open({ token }), 1000)
  t.equal(app.hybridAuth.count(), 1000)
  const found = await Promise.all(pairs.map(({ peer }) => peer.end))
  t.ok(found.every(({ code, at }) => code === 4002 && at >= ends))
  await Promise.all(pairs.map(({ there }) => there.closed))
  t.same([app.hybridAuth.count(), wheel.size], [0, before])
})

t.test('case 82: a socket whose handler throws leaves nothing', async t => {
  const before = wheel.size
  const { app, host } = await live(t, { routes (app) { app.get('/throws', { websocket: true }, () => { throw new Error('broken handler') }) } })
  const port = Number(host.split(':')[1])
  const sockets = await Promise.all(Array.from({ length: 20 }, () => new Promise<net.Socket>((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(handshake(bearerLine(), { path: '/throws' })) })
    socket.on('error', reject)
    socket.resume()
    socket.on('close', () => { resolve(socket) })
  })))
  t.equal(sockets.length, 20)
  await eventually('all are gone', () => app.hybridAuth.count() === 0 && wheel.size === before)
  t.equal(app.hybridAuth.count(), 0)
})

/** A process of its own: the app, ten clients, every timer that there is, then `app.close()` and nothing more. */
const PROGRAM = `
  import Fastify from 'fastify'
  import cookie from '@fastify/cookie'
  import session from '@fastify/session'
  import websocket from '@fastify/websocket'
  import { createSigner } from 'fast-jwt'
  import { WebSocket } from 'ws'
  import { once } from 'node:events'
  import hybridAuth from './lib/index.ts'
  const key = 'a secret for tests, 32 bytes or more'
  const token = createSigner({ key, expiresIn: 3600_000 })({ sub: 'alice' })
  const app = Fastify()
  await app.register(cookie)
  await app.register(session, { secret: key + key, cookie: { secure: false } })
  await app.register(websocket)
  await app.register(hybridAuth, {
    jwt: { key, algorithms: ['HS256'] }, session: { user: stored => stored.user ?? null }, idleTimeout: 3600_000, maxConnectionAge: 3600_000
  })
  app.get('/app', { websocket: true, auth: { firstMessage: { timeout: 600_000 } } }, socket => { socket.on('message', data => { socket.send(data) }) })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const clients = Array.from({ length: 10 }, (_, i) => new WebSocket('ws://127.0.0.1:' + app.server.address().port + '/app', i === 0 ? {} : { headers: { authorization: 'Bearer ' + token } }))
  await Promise.all(clients.map(client => once(client, 'open')))
  const codes = clients.map(client => once(client, 'close').then(([code]) => code))
  clients[9].close()
  await codes[9]
  await app.close()
  console.log(JSON.stringify({ codes: await Promise.all(codes), count: app.hybridAuth.count() }))
`

beside('case 82: a process with open sockets and every timer exits by itself after app.close()', async t => {
  const { status, printed } = await run(t, PROGRAM)
  t.equal(status, 0)
  t.same(JSON.parse(printed), { codes: [...Array.from({ length: 9 }, () => 1012), 1005], count: 0 })
})

async function run (t: Test, program: string): Promise<{ status: unknown, printed: string }> {
  const loader = process.execArgv.filter(argument => argument.includes('typescript'))
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))
  const child = spawn(process.execPath, [...loader, '--input-type=module', '-e', program], { cwd: new URL('..', import.meta.url), env, stdio: ['ignore', 'pipe', 'inherit'] })
  const timer = setTimeout(() => { child.kill('SIGKILL') }, 20_000)
  t.teardown(() => { clearTimeout(timer); child.kill('SIGKILL') })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => { printed += chunk.toString() })
  const [status] = await once(child, 'close') as [unknown]
  return { status, printed }
}

beside('an expiry is audited once, with who it was', async t => {
  const events: AuditEvent[] = []
  const user = (): Identity => ({ userId: 'carol' })
  const auth: Partial<HybridAuthOptions> = { jwt: { ...JWT, user }, audit: event => { events.push(event) } }
  const { open } = await live(t, { auth })
  const { peer, there } = await open({ token: tokenUntil(Date.now() + 200) })
  await peer.end
  await there.closed
  t.match(events.map(({ type }) => type), ['authenticated', 'expired', 'closed'])
  t.match(events[1], { userId: 'carol', authType: 'jwt', via: 'header', route: '/app', websocket: true, connectionId: there.connection.id })
  t.match(events[2], { closeCode: 4002, connectionId: there.connection.id })
})

t.test('side by side', async t => {
  t.jobs = 8
  for (const { title, run } of together) t.test(title, { buffered: true }, run)
})
