/** A client in a page, which goes offline, sleeps, is put away and fetched back. */
import t, { type Test } from 'tap'
import { closeReason } from '../lib/protocol.js'
import { fakeSockets, fakeTime, inPage, lookalike, settle, watched, type FakeSocket, type FakeTime, type Page, type Watched } from './clients.js'
import { deferred, never } from './stores.js'

const ADDRESS = 'ws://server.example/live'

interface Paged extends Watched { page: Page, time: FakeTime, all: FakeSocket[], last: () => FakeSocket }

/** A client in a page of its own; no other tab knows of it. */
function paged (t: Test, options: Partial<Parameters<typeof watched>[1]> = {}): Paged {
  const page = inPage(t)
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  return { ...watched(t, { url: ADDRESS, WebSocket, tabs: false, ...options }), page, time, all, last }
}

/** Open, and the server does not answer any more. */
async function silent (client: Paged): Promise<void> {
  await settle()
  client.last().open().greets = false
}

/** What lets a client doubt that its socket is open. */
const DOUBTS: Array<[what: string, happens: (page: Page, t: Test) => void]> = [
  ['the page is offline', page => {
    page.navigator.onLine = false
    page.fire('offline')
    page.navigator.onLine = true
  }],
  ['it is online again', page => { page.fire('online') }],
  ['the page is seen again', page => { page.fire('visibilitychange') }],
  ['the page was fetched back', page => { page.fire('pageshow', { persisted: true }) }],
  ['it slept', (page, t) => {
    const now = Date.now()
    t.intercept(Date, 'now', { value: () => now + 95_000, configurable: true })
    page.tick()
  }]
]

for (const [what, happens] of DOUBTS) {
  t.test(`${what}: the server is asked, and the socket is given up after 5 s without a word`, async t => {
    const client = paged(t)
    const { page, time, all, last, closes, states } = client
    await silent(client)
    t.equal(last().asked, 0)
    happens(page, t)
    t.equal(last().asked, 1)
    await time.pass(4999)
    t.equal(client.client.state, 'open')
    await time.pass(1)
    t.same(closes, [{ code: 1006, reason: '', action: 'retry', terminal: false }])
    t.equal(last().closedWith, 1000)
    await time.pass(1000)
    t.equal(all.length, 2)
    last().open()
    t.same(states, ['connecting', 'open', 'waiting', 'connecting', 'open'])
  })

  t.test(`${what}: any frame is a sign of life`, async t => {
    for (const frame of [{ type: 'auth_success', user: { id: 'alice' } }, 'a message', new ArrayBuffer(3), { type: 'error', code: 'rate_limited', message: '', action: 'retry' }]) {
      await t.test(JSON.stringify(frame), async t => {
        const client = paged(t)
        const { page, time, last, closes, opens } = client
        await silent(client)
        happens(page, t)
        await time.pass(4000)
        last().say(frame)
        await time.pass(60_000)
        t.same([closes.length, opens.length, client.client.state], [0, 1, 'open'])
      })
    }
  })
}

t.test('a page that is hidden, that was not away, or whose time only went on, asks nothing', async t => {
  const client = paged(t)
  const { page, time, last } = client
  await silent(client)
  page.document.hidden = true
  page.fire('visibilitychange')
  page.fire('pageshow', { persisted: false })
  page.fire('pagehide', { persisted: false })
  const now = Date.now()
  let later = 0
  t.intercept(Date, 'now', { value: () => now + later, configurable: true })
  for (let i = 0; i < 10; i++) {
    later += 60_000
    page.tick()
  }
  await time.pass(60_000)
  t.same([last().asked, client.client.state], [0, 'open'])
})

t.test('who doubts again and again waits for an answer no longer than once', async t => {
  const client = paged(t)
  const { page, time, closes } = client
  await silent(client)
  for (let i = 0; i < 4; i++) {
    page.fire('visibilitychange')
    await time.pass(2000)
  }
  t.equal(closes.length, 1)
})

t.test('a socket that is not open is not asked', async t => {
  const leads: Array<[state: string, lead: (last: () => FakeSocket) => void]> = [
    ['connecting', () => {}],
    ['idle', last => { last().open().end({ code: 4003 }) }],
    ['closed', last => { last().open().end({ code: 4006 }) }]
  ]
  for (const [state, lead] of leads) {
    await t.test(state, async t => {
      const { client, page, time, all, last, states } = paged(t)
      await settle()
      lead(last)
      t.equal(client.state, state)
      const before = states.length
      last().greets = false
      for (const type of ['offline', 'online', 'visibilitychange']) page.fire(type)
      page.fire('pageshow', { persisted: true })
      await time.pass(10_000)
      t.same([states.slice(before), all.length, last().asked], [[], 1, 0])
    })
  }
})

t.test('online while it waits connects at once', async t => {
  const { client, page, time, all, last } = paged(t)
  await settle()
  for (let i = 0; i < 8; i++) {
    last().end()
    await time.pass(20_000)
  }
  last().end()
  const before = all.length
  t.equal(client.state, 'waiting')
  for (const type of ['online', 'online']) page.fire(type)
  await settle()
  t.same([client.state, all.length], ['connecting', before + 1])
  t.same(time.pending(), [15_000], 'the timer for it is gone')
})

t.test('online while it waits connects not before the time that the server has given', async t => {
  for (const type of ['online', 'pageshow']) {
    await t.test(type, async t => {
      const { client, page, time, all, last } = paged(t)
      await settle()
      last().end({ code: 1012, reason: closeReason('Draining', 30_000) })
      await time.pass(10_000)
      page.fire(type, { persisted: true })
      page.fire(type, { persisted: true })
      await settle()
      t.same([client.state, all.length, time.pending()], ['waiting', 1, [20_000]])
      await time.pass(19_999)
      t.equal(all.length, 1)
      await time.pass(1)
      t.equal(all.length, 2)
    })
  }
})

t.test('offline it is tried seldom, and at once when there is a way again', async t => {
  const { client, page, time, all, last } = paged(t)
  await settle()
  page.navigator.onLine = false
  last().end()
  t.same([client.state, time.pending()], ['waiting', [20_000]])
  page.navigator.onLine = true
  page.fire('online')
  await settle()
  t.equal(all.length, 2)
  page.navigator.onLine = false
  last().end({ code: 4012, reason: closeReason('Unavailable', 5000) })
  page.fire('online')
  t.same([client.state, time.pending()], ['waiting', [20_000]], 'what says that it is online, and is not')
  client.connect()
  await settle()
  t.equal(all.length, 3, 'who wants to connects all the same')
  last().end({ code: 4012, reason: closeReason('Unavailable', 60_000) })
  const [delay = 0] = time.pending()
  t.ok(delay >= 60_000, 'not before the time that the server has given')
})

t.test('a page that is put away lets go of its socket, and has another when it is fetched back', async t => {
  const { client, page, time, all, last, opens, closes } = paged(t, { queue: 1 })
  await settle()
  last().open()
  client.join('room')
  page.fire('pagehide', { persisted: true })
  t.same([client.state, last().closedWith, closes, time.pending()], ['waiting', 1000, [], []])
  last().end({ code: 1000 })
  await time.pass(3_600_000)
  t.same([all.length, client.state], [1, 'waiting'])
  t.equal(client.send('meanwhile'), false)
  page.fire('pageshow', { persisted: true })
  await settle()
  last().open()
  t.same(last().sent, ['{"type":"join","room":"room"}', 'meanwhile'])
  t.same(opens.map(({ recovered }) => recovered), [false, true])
})

t.test('a page that is put away while a token is asked for opens nothing with it until it is back', async t => {
  const slow = deferred<string>()
  let asked = 0
  const { client, page, all, last } = paged(t, { getToken: () => { asked++; return slow.promise } })
  await settle()
  page.fire('pagehide', { persisted: true })
  const token = lookalike(100)
  slow.resolve(token)
  await settle()
  t.same([client.state, all.length], ['waiting', 0])
  page.fire('pageshow', { persisted: true })
  await settle()
  t.same([all.length, last().token, asked], [1, token, 1])
})

t.test('a page that is put away leaves alone what has no socket', async t => {
  const { client, page, time, all, last, states } = paged(t)
  await settle()
  last().open().end({ code: 4003 })
  page.fire('pagehide', { persisted: true })
  page.fire('pageshow', { persisted: true })
  t.equal(client.state, 'idle')
  client.connect()
  await settle()
  last().end({ code: 4006 })
  page.fire('pagehide', { persisted: true })
  page.fire('pageshow', { persisted: true })
  await time.pass(60_000)
  t.same([client.state, all.length, states.at(-1)], ['closed', 2, 'closed'])
})

t.test('a client that is closed does not listen to its page any more', async t => {
  const { client, page, time, all, states } = paged(t)
  await settle()
  t.equal(page.intervals(), 1)
  client.close()
  t.equal(page.intervals(), 0)
  const before = states.length
  for (const type of ['offline', 'online', 'visibilitychange', 'pagehide', 'pageshow']) page.fire(type, { persisted: true })
  await time.pass(60_000)
  t.same([states.length, all.length], [before, 1])
})

t.test('a doubt that is over with its socket does not reach the next one', async t => {
  const client = paged(t)
  const { page, time, all, last } = client
  await silent(client)
  page.fire('visibilitychange')
  await time.pass(3000)
  last().end()
  await time.pass(500)
  last().open()
  await time.pass(60_000)
  t.same([all.length, client.client.state], [2, 'open'])
})

t.test('in Node there is no page, and nothing of it is listened to', async t => {
  const time = fakeTime(t)
  const { WebSocket, all, last } = fakeSockets()
  const { client } = watched(t, { url: ADDRESS, WebSocket })
  await settle()
  last().end()
  t.equal(client.state, 'waiting')
  await time.pass(1000)
  t.equal(all.length, 2)
})

t.test('who closes the client when it is asked for the address sees no socket for long, and no event of it', async t => {
  const time = fakeTime(t)
  const { WebSocket, all } = fakeSockets()
  const seen: Watched = watched(t, {
    url () {
      seen.client.close()
      return ADDRESS
    },
    WebSocket
  })
  await settle()
  await time.pass(60_000)
  t.same(all.map(({ closedWith }) => closedWith).filter(code => code !== 1000), [])
  t.same([seen.closes.length, seen.states.at(-1), time.pending()], [1, 'closed', []])
})

t.test('a getToken that closes the client and never answers leaves no timer', async t => {
  const time = fakeTime(t)
  const { WebSocket, all } = fakeSockets()
  const seen: Watched = watched(t, {
    url: ADDRESS,
    getToken () {
      seen.client.close()
      return never()
    },
    WebSocket
  })
  await settle()
  await settle()
  t.same([all.length, seen.errors, time.pending()], [0, [], []])
})

t.test('a token that was refused is known for a hundred more', async t => {
  const time = fakeTime(t, 0)
  const { WebSocket, all, last } = fakeSockets()
  const tokens = Array.from({ length: 102 }, () => lookalike(1000))
  const given = [...tokens]
  const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => given.shift() ?? null })
  await settle()
  for (let i = 0; i < 101; i++) {
    last().open().end({ code: 4002 })
    client.connect()
    await settle()
  }
  t.equal(all.length, 102)
  given.push(tokens[100] ?? '', tokens[2] ?? '')
  last().open().end({ code: 4002 })
  for (let i = 0; i < 10; i++) await time.pass(1000)
  t.equal(client.state, 'closed', 'both are known, and there is no other')
  t.equal(all.length, 102)
})

t.test('a token that the server has closed for is not sent again, also where the reason was lost on the way', async t => {
  const reasons = { 4001: 'AuthenticationFailed', 4002: 'AuthenticationExpired', 4004: 'RefreshFailed', 4005: 'RefreshTimeout', 4006: 'Revoked' } as const
  const time = fakeTime(t, 0)
  for (const [code, name] of Object.entries(reasons)) {
    for (const reason of [closeReason(name), '']) {
      const { WebSocket, all, last } = fakeSockets()
      const token = lookalike(1000)
      const { client } = watched(t, { url: ADDRESS, WebSocket, getToken: () => token })
      await settle()
      last().open().end({ code: Number(code), reason })
      client.connect()
      await time.pass(1000)
      t.same(all.map(socket => socket.token), [token], `${code} ${reason}`)
      client.close()
    }
  }
})

t.test('what is said while there is no network waits, in its order, and goes over the same socket where that is still there', async t => {
  const { client, page, last, all } = paged(t, { queue: 3 })
  await settle()
  last().open()
  page.navigator.onLine = false
  last().greets = false
  page.fire('offline')
  t.equal(client.send('1'), false)
  page.navigator.onLine = true
  t.equal(client.send('2'), false, 'it does not overtake what waits')
  t.same(last().frames, [])
  last().say({ type: 'auth_success', user: { id: 'somebody' }, expiresIn: null })
  t.same([last().sent, all.length], [['1', '2'], 1])
  page.navigator.onLine = false
  t.equal(client.send('3'), true, 'who is there, as the server says, is not offline, whatever the browser believes')
})
