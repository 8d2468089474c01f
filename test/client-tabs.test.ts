/** Clients of one page in several tabs, over the BroadcastChannel of Node. Locks that a browser has, and Node 20 has not, are stood in for. */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { WebSocket as RealSocket } from 'ws'
import { createAuthSocket, type AuthSocketOptions, type TokenRequest } from '../lib/client/index.js'
import { closeReason } from '../lib/protocol.js'
import {
  FakeLocks, fakeSockets, fakeTime, inPage, lookalike, setGlobals, settle, siblingOf, soon, watched, watching, type FakeSocket, type FakeSockets, type Sibling, type Watched
} from './clients.js'
import { goodToken, inSeconds, JWT, SECRET } from './helpers.js'
import { live } from './live.js'
import { deferred, never } from './stores.js'

const ADDRESS = 'ws://server.example/live'
let names = 0
const anyName = () => `tabs of a test ${++names}`

interface Tab extends Watched, FakeSockets {
  /** Why tokens were asked for. */
  asked: string[]
}

function tab (t: Test, name: string, getToken: (request: TokenRequest) => string | null | Promise<string | null>, options: Partial<AuthSocketOptions> = {}): Tab {
  const sockets = fakeSockets()
  const asked: string[] = []
  const seen = watched(t, {
    url: ADDRESS,
    WebSocket: sockets.WebSocket,
    tabs: name,
    getToken (request) {
      asked.push(request.reason)
      return getToken(request)
    },
    ...options
  })
  return { ...seen, ...sockets, asked }
}

async function opened (one: Tab): Promise<FakeSocket> {
  await soon('it has a socket', () => one.all.length > 0)
  return one.last().open()
}

t.test('a new token of one is the other\'s too, over the socket that is open, and nobody asks for it again', async t => {
  const name = anyName()
  const [old, next] = [lookalike(100), lookalike(200)]
  const tokens = [old, next]
  const one = tab(t, name, () => tokens.shift() ?? null)
  await opened(one)
  const two = tab(t, name, () => old)
  await opened(two)
  one.last().say({ type: 'token_refresh_required', expiresIn: 5 })
  await soon('the other has offered it', () => two.last().sent.length > 0)
  t.same(two.last().frames, [{ type: 'auth_update', token: next }])
  t.same(one.last().frames, [{ type: 'auth_update', token: next }])
  two.last().say({ type: 'auth_updated', expiresIn: 200 })
  two.last().end({ code: 4002 })
  two.client.connect()
  await settle()
  t.not(two.last().token, next, 'what was accepted, and is over, is not offered again')
  t.same([one.asked, two.all[0]?.token], [['connect', 'expiring'], old])
})

t.test('a real server takes what a sibling has got, for the socket that is open', async t => {
  const { app, host } = await live(t)
  const name = anyName()
  const sibling = siblingOf(t, name)
  const { isOpen, client } = watched(t, { url: `ws://${host}/app`, tabs: name, getToken: () => goodToken({ jti: 'first' }) })
  await isOpen()
  const idOf = () => {
    const [connection] = app.hybridAuth.connections()
    const context = connection?.context
    return context !== undefined && context.authType !== 'session' ? context.tokenId : null
  }
  const before = idOf()
  sibling.say({ token: goodToken({ jti: 'second' }), id: 'alice' })
  await soon('the server has it', () => idOf() !== before)
  t.equal(client.state, 'open')
})

t.test('a token is not taken that is somebody else\'s, was refused, or is there', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const [held, refused, good] = [lookalike(100), lookalike(100), lookalike(100)]
  const tokens = [held, refused]
  const one = tab(t, name, () => tokens.shift() ?? never())
  const socket = await opened(one)
  socket.say({ type: 'token_refresh_required', expiresIn: 5 })
  await settle()
  socket.say({ type: 'error', code: 'refresh_failed', message: '', action: 'refresh' })
  t.same(socket.frames, [{ type: 'auth_update', token: refused }])
  for (const message of [{ token: refused, id: 'alice' }, { token: lookalike(100, { sub: 'mallory' }), id: 'mallory' }, { token: lookalike(100), id: null }, { token: lookalike(100) }]) sibling.say(message)
  await sibling.settled()
  t.equal(socket.sent.length, 1)
  sibling.say({ token: good, id: 'alice' })
  await soon('it is taken', () => socket.sent.length === 2)
  socket.say({ type: 'auth_updated', expiresIn: 100 })
  sibling.say({ token: good, id: 'alice' })
  await sibling.settled()
  t.same(socket.frames.slice(1), [{ type: 'auth_update', token: good }])
})

t.test('who does not know yet who it is tells and takes no token', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const first = lookalike(100)
  const one = tab(t, name, () => first)
  await soon('it has a socket', () => one.all.length > 0)
  one.last().greets = false
  sibling.say({ token: lookalike(100), id: 'alice' })
  await sibling.settled()
  one.last().open().say({ type: 'auth_success', user: { id: 'alice' } })
  t.same([one.last().sent, sibling.heard], [[], []])
})

t.test('a token that comes while there is no socket is used for the next one, unasked', async t => {
  const time = fakeTime(t)
  const name = anyName()
  const sibling = siblingOf(t, name)
  const one = tab(t, name, () => lookalike(100))
  await opened(one)
  one.last().end()
  t.equal(one.client.state, 'waiting')
  const next = lookalike(100)
  sibling.say({ token: next, id: 'alice' })
  await sibling.settled()
  await time.pass(1000)
  t.same([one.last().token, one.asked], [next, ['connect']])
  one.last().end({ code: 4006 })
  sibling.say({ token: lookalike(100), id: 'alice' })
  await sibling.settled()
  one.client.connect()
  await settle()
  t.same(one.asked, ['connect', 'rejected'], 'a client that is closed takes none')
})

t.test('a token that comes while the next socket is on its way is offered when that is open', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  for (const isOpen of [false, true]) {
    const first = lookalike(100)
    const one = tab(t, name, () => first)
    await opened(one)
    one.last().end()
    one.client.connect()
    await settle()
    const socket = one.last()
    t.equal(socket.token, first)
    socket.greets = false
    if (isOpen) socket.open()
    const next = lookalike(100)
    sibling.say({ token: next, id: 'alice' })
    await sibling.settled()
    if (!isOpen) socket.open()
    socket.say({ type: 'auth_success', user: { id: 'alice' } })
    t.same(socket.frames, [{ type: 'auth_update', token: next }])
    socket.end({ code: 4002 })
    one.client.connect()
    await settle()
    t.equal(one.last().token, next, 'which was not the one that ended')
    one.client.close()
  }
})

t.test('a sibling\'s token that comes while a first message is judged does not end the socket', async t => {
  const judged = deferred<string>()
  let keys = 0
  const { app, host } = await live(t, { auth: { jwt: { ...JWT, key: () => ++keys === 2 ? judged.promise : SECRET } }, route: { firstMessage: true } })
  const name = anyName()
  const sibling = siblingOf(t, name)
  const { client, closes, opens, isOpen, until } = watched(t, { url: `ws://${host}/app`, attach: 'message', tabs: name, getToken: () => goodToken() })
  await isOpen()
  await until('the server has it', () => app.hybridAuth.count() === 1)
  await app.hybridAuth.disconnect({ userId: 'alice' }, { code: 'AuthenticationExpired' })
  await until('it is lost', () => client.state !== 'open')
  client.connect()
  await soon('it is judged', () => keys === 2)
  sibling.say({ token: goodToken(), id: 'alice' })
  await sibling.settled()
  judged.resolve(SECRET)
  await until('it is open', () => opens.length === 2)
  await soon('the other is judged too', () => keys > 2)
  t.same([client.state, closes.map(({ code }) => code)], ['open', [4002]])
})

t.test('of two tokens that are offered one after the other the last one counts, and the one that is refused is known', async t => {
  for (const [what, answers, isKept] of [
    ['both are taken', [{ type: 'auth_updated', expiresIn: 100 }, { type: 'auth_updated', expiresIn: 100 }], false],
    ['the first is refused', [{ type: 'error', code: 'refresh_failed', message: '', action: 'refresh' }, { type: 'auth_updated', expiresIn: 100 }], true]
  ] as const) {
    await t.test(what, async t => {
      const name = anyName()
      const sibling = siblingOf(t, name)
      const [first, second, third] = [lookalike(100), lookalike(100), lookalike(100)]
      const tokens = [first, second]
      const one = tab(t, name, () => tokens.shift() ?? never())
      const socket = await opened(one)
      socket.say({ type: 'token_refresh_required', expiresIn: 5 })
      await settle()
      sibling.say({ token: third, id: 'alice' })
      await sibling.settled()
      for (const answer of answers) socket.say(answer)
      t.same(socket.frames, [{ type: 'auth_update', token: second }, { type: 'auth_update', token: third }])
      socket.end({ code: isKept ? 1006 : 4002 })
      one.client.connect()
      await settle()
      if (isKept) t.equal(one.last().token, third, 'the one that was taken is good for the next socket')
      else t.equal(one.all.length, 1, 'the one that ended is not offered again: another is asked for')
    })
  }
})

t.test('an answer to what was not offered is the application\'s, and changes nothing', async t => {
  const first = lookalike(100)
  const one = tab(t, anyName(), () => first)
  const socket = await opened(one)
  const texts = ['{"type":"auth_updated","expiresIn":1}', '{"type":"error","code":"refresh_failed","message":"","action":"refresh"}']
  for (const text of texts) socket.say(text)
  t.same([one.texts(), one.errors], [texts, []])
  for (const code of ['unavailable', 'rate_limited']) socket.say({ type: 'error', code, message: '', action: 'retry', retryAfterMs: 1 })
  t.equal(one.errors.length, 2)
  socket.end()
  one.client.connect()
  await settle()
  t.same([one.last().token, one.asked], [first, ['connect']])
})

t.test('what could not be judged is offered again, not before the time that the server gives, and only if it was not refused since', async t => {
  const time = fakeTime(t)
  const [first, second, third] = [lookalike(1000), lookalike(1000), lookalike(1000)]
  const tokens = [first, second]
  const one = tab(t, anyName(), () => tokens.shift() ?? third)
  const socket = await opened(one)
  socket.say({ type: 'token_refresh_required', expiresIn: 50 })
  await settle()
  socket.say({ type: 'error', code: 'unavailable', message: '', action: 'retry', retryAfterMs: 5000 })
  await time.pass(5000)
  t.equal(socket.sent.length, 1)
  // A sign of life tells nothing of what is offered.
  socket.say({ type: 'auth_success', user: { id: 'alice' }, expiresIn: 40 })
  await time.pass(2000)
  t.same(socket.frames, [{ type: 'auth_update', token: second }, { type: 'auth_update', token: second }])
  // Too many messages of the application, while the token is judged.
  socket.say({ type: 'error', code: 'rate_limited', message: '', action: 'retry', retryAfterMs: 2 ** 40 })
  socket.say({ type: 'error', code: 'refresh_failed', message: '', action: 'refresh' })
  await settle()
  t.same(socket.frames.slice(2), [{ type: 'auth_update', token: third }])
  socket.say({ type: 'auth_updated', expiresIn: 1000 })
  await time.pass(60_000)
  t.same([socket.sent.length, one.texts()], [3, []])
})

t.test('a token that was taken while it was to be offered again is not', async t => {
  const time = fakeTime(t)
  const tokens = [lookalike(1000), lookalike(1000)]
  const one = tab(t, anyName(), () => tokens.shift() ?? null)
  const socket = await opened(one)
  socket.say({ type: 'token_refresh_required', expiresIn: 50 })
  await settle()
  socket.say({ type: 'error', code: 'rate_limited', message: '', action: 'retry', retryAfterMs: 100 })
  socket.say({ type: 'auth_updated', expiresIn: 1000 })
  await time.pass(60_000)
  t.same([socket.sent.length, one.client.state], [1, 'open'])
})

t.test('tickets are told and taken by nobody; a logout is', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  let made = 0
  const one = tab(t, name, () => `ticket${++made}`, { attach: 'ticket' })
  await opened(one)
  sibling.say({ token: 'somebody\'s', id: 'somebody' })
  await sibling.settled()
  t.same([one.last().sent, sibling.heard], [[], []])
  one.last().end()
  one.client.connect()
  await settle()
  t.match(one.last().url, 'ticket=ticket2')
  one.client.logout()
  await soon('it is told', () => sibling.heard.length > 0)
  t.match(sibling.heard, [{ logout: true }])
  one.client.connect()
  await opened(one)
  sibling.say({ logout: true, id: null })
  await soon('it is closed', () => one.client.state === 'closed')
})

t.test('a logout in one closes both for good, who forget their tokens and ask for others when they connect again', async t => {
  const time = fakeTime(t)
  const name = anyName()
  const [one, two] = [tab(t, name, () => lookalike(100)), tab(t, name, () => lookalike(100))]
  await opened(one)
  await opened(two)
  const [first, second] = [one.last(), two.last()]
  one.client.logout()
  t.equal(one.client.state, 'closed')
  await soon('the other is closed', () => two.client.state === 'closed')
  const close = { code: 1000, reason: 'logged_out', action: 'stop', terminal: true }
  t.same([one.logouts, one.closes], [[{ by: 'self' }], [close]])
  t.same([two.logouts, two.closes], [[{ by: 'tab' }], [close]])
  t.same([first.closedWith, second.closedWith], [1000, 1000])
  for (const { order } of [one, two]) t.same(order.slice(-3), ['logout', 'closed', 'close'])
  t.same(time.pending(), [])
  await time.pass(60_000)
  for (const { client, asked, all, last } of [one, two]) {
    t.equal(all.length, 1)
    client.connect()
    await settle()
    t.same(asked, ['connect', 'connect'])
    t.not(last().token, all[0]?.token)
  }
})

t.test('a logout reaches a client in every state, and one that the server has closed is not told of it a second time', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  for (const by of ['self', 'tab'] as const) {
    for (const [state, code] of [['connecting', 0], ['waiting', 1006], ['idle', 4003], ['closed', 4001]] as const) {
      const one = tab(t, name, () => lookalike(100))
      await soon('it has a socket', () => one.all.length > 0)
      if (code !== 0) one.last().open().end({ code })
      t.equal(one.client.state, state)
      const isOver = state === 'closed'
      if (by === 'self') one.client.logout()
      else sibling.say({ logout: true, id: null })
      await sibling.settled()
      t.same([one.client.state, one.logouts], ['closed', [{ by: isOver ? 'server' : by }]], `${state}, by ${by}`)
      t.equal(one.closes.filter(({ terminal }) => terminal).length, 1)
      one.client.close()
    }
  }
})

t.test('a token that is asked for while a logout comes is not used, told or kept', async t => {
  for (const by of ['self', 'tab'] as const) {
    for (const isOpen of [false, true]) {
      await t.test(`by ${by}, ${isOpen ? 'in place of another' : 'for the first socket'}`, async t => {
        const name = anyName()
        const sibling = siblingOf(t, name)
        const slow = deferred<string>()
        const requests: TokenRequest[] = []
        const answers = [...(isOpen ? [lookalike(100)] : []), slow.promise]
        const next = lookalike(100)
        const one = tab(t, name, request => {
          requests.push(request)
          return answers.shift() ?? next
        })
        if (isOpen) (await opened(one)).say({ type: 'token_refresh_required', expiresIn: 5 })
        await soon('it is asked', () => answers.length === 0)
        const before = [one.all.length, sibling.heard.length]
        if (by === 'self') one.client.logout()
        else sibling.say({ logout: true, id: null })
        await soon('it is closed', () => one.client.state === 'closed')
        t.equal(requests.at(-1)?.signal.aborted, true)
        slow.resolve(lookalike(100))
        await sibling.settled()
        t.same([one.all.length, sibling.heard.filter(message => !Object.hasOwn(Object(message) as object, 'logout')).length], before)
        t.same([one.errors, one.all.flatMap(({ sent }) => sent)], [[], []])
        one.client.connect()
        await settle()
        t.same([requests.at(-1)?.reason, one.last().token], ['connect', next])
      })
    }
  }
})

t.test('a logout is for the tabs of the same user, and for those of whom nobody knows who they are', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  for (const [id, isMine] of [['alice', true], ['mallory', false], [null, true]] as const) {
    const one = tab(t, name, () => lookalike(100))
    await opened(one)
    sibling.say({ logout: true, id })
    await sibling.settled()
    t.equal(one.client.state, isMine ? 'closed' : 'open', `of ${id ?? 'nobody'}`)
    one.client.close()
  }
  const nobody = tab(t, name, () => lookalike(100))
  await soon('it has a socket', () => nobody.all.length > 0)
  sibling.say({ logout: true, id: 'mallory' })
  await sibling.settled()
  t.equal(nobody.client.state, 'closed')
  const [alice, mallory] = [tab(t, name, () => lookalike(100)), tab(t, name, () => lookalike(100, { sub: 'mallory' }))]
  await opened(alice)
  await opened(mallory)
  alice.client.logout()
  await sibling.settled()
  t.same([alice.client.state, mallory.client.state], ['closed', 'open'])
})

t.test('a logout that one is told of by the server is not told to the others', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const one = tab(t, name, () => lookalike(100))
  await opened(one)
  await sibling.settled()
  sibling.heard.length = 0
  one.last().end({ code: 4006, reason: closeReason('Revoked') })
  await sibling.settled()
  t.same([one.logouts, sibling.heard], [[{ by: 'server' }], []])
  t.same(one.order.slice(-3), ['logout', 'closed', 'close'])
})

t.test('a listener of a logout may connect the client as somebody else, or close it for good', async t => {
  const name = anyName()
  const tokens = [lookalike(100), lookalike(100, { sub: 'bob' })]
  const one = tab(t, name, () => tokens.shift() ?? null, { queue: 1 })
  one.client.join('a')
  ;(await opened(one)).say({ type: 'joined', room: 'a', cursor: 'c1' })
  one.client.on('logout', () => { one.client.connect() })
  one.client.logout()
  await soon('it has another socket', () => one.all.length === 2)
  t.same(one.last().open().sent, [], 'nothing of the one before is left')
  t.same([one.client.identity, one.opens.at(-1)?.recovered], [{ id: 'bob' }, false])
  for (const end of ['self', 'server'] as const) {
    const two = tab(t, name, () => lookalike(100))
    await opened(two)
    two.client.on('logout', () => { two.client.close() })
    if (end === 'self') two.client.logout()
    else two.last().end({ code: 4006 })
    t.same([two.client.state, two.closes.map(({ reason }) => reason)], ['closed', ['closed']], end)
    two.client.logout()
    t.equal(two.logouts.length, 1)
  }
})

t.test('with a cookie a logout goes to all, and tokens to nobody', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const sockets = fakeSockets()
  const { client, logouts } = watched(t, { url: ADDRESS, WebSocket: sockets.WebSocket, tabs: name })
  await settle()
  sockets.last().open()
  sibling.say({ token: lookalike(100), id: 'somebody' })
  await sibling.settled()
  t.same([sockets.last().sent, client.state], [[], 'open'])
  sibling.say({ logout: true, id: null })
  await sibling.settled()
  t.same(logouts, [{ by: 'tab' }])
})

t.test('what else is said on the channel is nothing to a client', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const garbage = [null, undefined, 7, 'token', true, [], {}, { token: 7, id: 'somebody' }, { token: '', id: 'somebody' }, { token: {}, id: 'somebody' }, { token: 'a', id: 7 }, { logout: false, id: null }, new Map([['logout', true]])]
  for (const isHeld of [true, false]) {
    const one = tab(t, name, () => isHeld ? 'opaque' : never())
    if (isHeld) await opened(one)
    else await soon('it is asked', () => one.asked.length > 0)
    for (const message of garbage) sibling.say(message)
    await sibling.settled()
    t.same([one.client.state, one.errors], [isHeld ? 'open' : 'connecting', []])
    t.same(one.all.flatMap(({ sent }) => sent), [])
    if (isHeld) {
      one.last().end()
      one.client.connect()
      await settle()
      t.equal(one.last().token, 'opaque')
    }
    one.client.close()
  }
})

t.test('the channel is closed with the client, who says nothing on it afterwards', async t => {
  const name = anyName()
  const sibling = siblingOf(t, name)
  const slow = deferred<string>()
  const one = tab(t, name, () => slow.promise)
  await soon('it is asked', () => one.asked.length > 0)
  one.client.close()
  slow.resolve(lookalike(100))
  one.client.logout()
  sibling.say({ logout: true, id: null })
  await sibling.settled()
  t.same([sibling.heard, one.logouts, one.client.state], [[], [], 'closed'])
})

t.test('tabs of a page are of one address unless they are told otherwise; those of Node are each for itself', async t => {
  const made: string[] = []
  const Channel = globalThis.BroadcastChannel
  setGlobals(t, {
    BroadcastChannel: class extends Channel {
      constructor (name: string) {
        made.push(name)
        super(name)
      }
    }
  })
  const { WebSocket } = fakeSockets()
  const start = (options: Partial<AuthSocketOptions>) => { watched(t, { url: ADDRESS, WebSocket, ...options }) }
  start({})
  t.same(made, [])
  start({ tabs: 'mine' })
  t.same(made.splice(0), ['mine'])
  inPage(t)
  start({})
  start({ url: 'http://server.example/live?room=7' })
  start({ url: new URL('wss://other.example/') })
  start({ tabs: 'mine' })
  t.same(made.splice(0), ['hybrid-auth server.example/live', 'hybrid-auth server.example/live', 'hybrid-auth other.example/', 'mine'])
  start({ url: () => ADDRESS })
  start({ tabs: false })
  start({ url: 'no address' })
  t.same(made, [])
  setGlobals(t, { location: { href: 'https://page.example/app/' } })
  start({ url: 'live' })
  t.same(made.splice(0), ['hybrid-auth page.example/app/live'])
  setGlobals(t, { BroadcastChannel: undefined })
  t.doesNotThrow(() => { start({ tabs: 'mine' }) })
})

/** Tabs of a page with locks, and with a time of their own. */
function locked (t: Test) {
  const page = inPage(t)
  const locks = page.navigator.locks = new FakeLocks()
  const name = anyName()
  return { time: fakeTime(t), name, locks, sibling: siblingOf(t, name) }
}

/** Until all that waits for the channel and for 50 ms has gone on, a few times over. */
async function goOn (time: { pass: (ms: number) => Promise<void> }, sibling: Sibling, ms = 300): Promise<void> {
  for (let i = 0; i < ms / 50; i++) {
    await sibling.settled()
    await time.pass(50)
  }
}

/** Tabs that are open, whose tokens end soon. */
async function expiring (t: Test, { name, time, sibling }: ReturnType<typeof locked>, answers: Array<(request: TokenRequest) => string | null | Promise<string | null>>): Promise<Tab[]> {
  let isFirst = true
  const tabs = answers.map(answer => tab(t, name, request => isFirst ? lookalike(100) : answer(request)))
  await goOn(time, sibling)
  for (const { last } of tabs) last().open()
  isFirst = false
  for (const { last } of tabs) last().say({ type: 'token_refresh_required', expiresIn: 50 })
  await sibling.settled()
  return tabs
}

t.test('tabs that begin at once ask one after the other', async t => {
  const { name, locks, time, sibling } = locked(t)
  const slow = deferred<string>()
  const tabs = [0, 1].map(() => tab(t, name, () => slow.promise))
  await sibling.settled()
  t.same([tabs.map(({ asked }) => asked.length), locks.waiting], [[1, 0], 1])
  slow.resolve(lookalike(100))
  await goOn(time, sibling)
  t.same([tabs.map(({ asked, all }) => [asked.length, all.length]), locks.waiting], [[[1, 1], [1, 1]], 0])
})

t.test('one tab asks for a token at a time, and who waited takes what it got, once', async t => {
  const page = locked(t)
  const slow = deferred<string>()
  const tabs = await expiring(t, page, [0, 1, 2].map(() => () => slow.promise))
  t.same([tabs.map(({ asked }) => asked.length), page.locks.waiting], [[2, 1, 1], 2])
  const token = lookalike(100)
  slow.resolve(token)
  await page.sibling.settled()
  for (const { last } of tabs) last().say({ type: 'auth_updated', expiresIn: 100 })
  await goOn(page.time, page.sibling)
  t.same(tabs.map(({ asked, last }) => [asked.length, last().frames]), [2, 1, 1].map(count => [count, [{ type: 'auth_update', token }]]))
  t.equal(page.locks.waiting, 0)
})

t.test('who waited for a tab that got none, or nothing but an error, asks for itself', async t => {
  for (const outcome of ['none', 'an error'] as const) {
    await t.test(outcome, async t => {
      const page = locked(t)
      const token = lookalike(100)
      const [one, two] = await expiring(t, page, [() => { if (outcome === 'none') return null; throw new Error('away') }, () => token])
      await goOn(page.time, page.sibling)
      t.same(two?.last().frames, [{ type: 'auth_update', token }])
      t.match(one?.errors, outcome === 'none' ? [] : [{ stage: 'token', error: { message: 'away' } }])
      if (outcome === 'none') t.match(one?.closes, [{ reason: 'no_credential', terminal: true }])
    })
  }
})

t.test('who stops waiting for the others lets them go on, and is asked for nothing', async t => {
  const page = locked(t)
  const slow = deferred<string>()
  const [one, two, three] = await expiring(t, page, [() => slow.promise, () => lookalike(100), () => lookalike(100)])
  t.equal(page.locks.waiting, 2)
  two?.client.close()
  await page.sibling.settled()
  t.equal(page.locks.waiting, 1)
  const token = lookalike(100)
  slow.resolve(token)
  await goOn(page.time, page.sibling)
  t.same([one, three].map(tab => tab?.last().frames), [[{ type: 'auth_update', token }], [{ type: 'auth_update', token }]])
  t.same([two?.last().sent, two?.errors, two?.asked], [[], [], ['connect']])
})

t.test('a getToken that never answers keeps the others waiting no longer than its own ten seconds', async t => {
  const page = locked(t)
  const [one, two] = await expiring(t, page, [() => never(), () => 'of nobody'])
  const token = lookalike(100)
  await page.time.pass(5000)
  t.same([one?.asked.length, two?.asked.length], [2, 1])
  two?.last().say({ type: 'auth_success', user: { id: 'alice' } })
  await page.time.pass(5000)
  await goOn(page.time, page.sibling, 3000)
  t.match(one?.errors[0], { stage: 'token' })
  t.equal(two?.asked.length, 2, 'it is its turn')
  page.sibling.say({ token, id: 'alice' })
  await goOn(page.time, page.sibling)
  t.match(one?.last().frames, [{ type: 'auth_update' }])
})

t.test('where a page may not ask for locks it goes on without', async t => {
  const { name, sibling } = locked(t)
  setGlobals(t, { navigator: { locks: { request: async () => { throw new DOMException('an opaque origin', 'SecurityError') } } } })
  const one = tab(t, name, () => lookalike(100))
  await sibling.settled()
  t.same([one.asked, one.errors, one.all.length], [['connect'], [], 1])
})

t.test('a lifetime that is told while one waits for the others is not a new token', async t => {
  const { name, time, locks, sibling } = locked(t)
  const [old, next] = [lookalike(100), lookalike(100)]
  const tokens = [old, next]
  const one = tab(t, name, () => tokens.shift() ?? null)
  await goOn(time, sibling)
  const socket = one.last().open()
  const busy = deferred<boolean>()
  locks.request(name, { signal: new AbortController().signal }, async () => { await busy.promise })
  socket.say({ type: 'token_refresh_required', expiresIn: 5 })
  await sibling.settled()
  t.equal(locks.waiting, 1)
  socket.say({ type: 'auth_success', user: { id: 'alice' }, expiresIn: 4 })
  busy.resolve(true)
  await goOn(time, sibling)
  t.same(socket.frames, [{ type: 'auth_update', token: next }])
})

t.test('a client that is closed leaves no timer behind, also not one of a token that it has just told', async t => {
  const { name, time, sibling } = locked(t)
  const one = tab(t, name, () => lookalike(100))
  await sibling.settled()
  t.equal(one.all.length, 1)
  one.client.close()
  await sibling.settled()
  t.same(time.pending(), [])
})

t.test('a page without locks shares tokens all the same', async t => {
  inPage(t)
  const name = anyName()
  const sibling = siblingOf(t, name)
  const tokens = [lookalike(100), lookalike(100)]
  const next = tokens[1]
  const one = tab(t, name, () => tokens.shift() ?? null)
  const socket = await opened(one)
  socket.say({ type: 'token_refresh_required', expiresIn: 5 })
  await soon('it is told', () => sibling.heard.length > 0)
  t.same(sibling.heard, [{ token: next, id: 'alice' }])
})

const CLIENT = fileURLToPath(new URL('../dist/esm/lib/client/index.js', import.meta.url))
/** Without what makes tap measure a child process. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))

for (const [what, lead] of [
  ['is closed', 'client.close()'],
  ['is logged out', 'client.logout()'],
  ['was ended by the server', 'await server.hybridAuth.revoke({ userId: "alice" })']
] as const) {
  t.test(`a process whose client with tabs ${what} ends by itself`, async t => {
    const { app, host } = await live(t)
    const program = `
      import { createAuthSocket } from ${JSON.stringify(CLIENT)}
      import { WebSocket } from 'ws'
      const client = createAuthSocket({ url: 'ws://${host}/app', WebSocket, tabs: 'of a process', getToken: () => process.env.TOKEN })
      client.on('open', () => { ${lead.startsWith('await') ? 'console.log("open")' : lead} })
      client.on('close', ({ reason }) => { console.log(reason) })
    `
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], { env: { ...ENV, TOKEN: goodToken({ exp: inSeconds(300) }) }, stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => { child.kill('SIGKILL') })
    let text = ''
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString()
      if (text === 'open\n') app.hybridAuth.revoke({ userId: 'alice' }).catch((error: unknown) => { t.fail(String(error)) })
    })
    const code = await new Promise(resolve => {
      const timer = setTimeout(() => { resolve('never') }, 15_000)
      child.on('close', exitCode => {
        clearTimeout(timer)
        resolve(exitCode)
      })
    })
    t.equal(code, 0)
    t.match(text, what === 'is closed' ? /^closed/ : what === 'is logged out' ? /^logged_out/ : /^open\nrevoked/)
  })
}

t.test('tabs of two clients with real sockets, one of which logs out, leave none open', async t => {
  const { app, host } = await live(t)
  const name = anyName()
  const clients = [0, 1].map(() => {
    const client = createAuthSocket({ url: `ws://${host}/app`, WebSocket: RealSocket, tabs: name, getToken: () => goodToken() })
    t.teardown(() => { client.close() })
    return watching(client)
  })
  for (const { isOpen } of clients) await isOpen()
  clients[0]?.client.logout()
  await soon('none is left', () => app.hybridAuth.count() === 0)
  t.same(clients.map(({ logouts }) => logouts), [[{ by: 'self' }], [{ by: 'tab' }]])
})
