/** A client that polls where there is no socket to be had: over real HTTP, with sockets of which the test is the network. */
import t, { type Test } from 'tap'
import { createAuthSocket, type AuthSocketOptions } from '../lib/client/index.js'
import { fakeSockets, fakeTime, inPage, lookalike, pollServer, serverAt, setGlobals, settle, timersSet, watched, type FakeSockets, type PollServer, type Watched } from './clients.js'
import { goodToken, portOf } from './helpers.js'
import { setRandom } from './live.js'
import { deferred, never, serve } from './stores.js'

const ADDRESS = 'ws://server.example/live'
const [AFTER, INTERVAL] = [20, 10]

interface Polled extends Watched, FakeSockets { server: PollServer, asked: string[] }

/** Its sockets neither open nor end, unless the test says so. */
async function polled (t: Test, options: Partial<AuthSocketOptions> = {}, keeps?: number): Promise<Polled> {
  const server = await pollServer(t, keeps)
  const sockets = fakeSockets()
  const asked: string[] = []
  const seen = watched(t, {
    url: ADDRESS,
    WebSocket: sockets.WebSocket,
    getToken ({ reason }) {
      asked.push(reason)
      return lookalike(100)
    },
    fallback: { after: AFTER, poll: server.url, interval: INTERVAL },
    ...options
  })
  return { ...seen, ...sockets, server, asked }
}

/** What came by way of rooms. */
const payloads = ({ messages }: Watched) => messages.map(message => 'payload' in message ? message.payload : null)

/** Whatever is asked has been answered and heard so many times more. */
async function rounds ({ server, until }: Polled, count = 3): Promise<void> {
  const before = server.polls.length
  await until(`${count} polls`, () => server.polls.length > before + count)
}

t.test('where no socket is to be had for a time the rooms are polled with the token of the socket, and each message is heard once', async t => {
  const polling = await polled(t)
  const { client, server, degraded, order, last, until, asked } = polling
  client.join('a')
  client.join('b')
  server.keep('a', 'before')
  await until('it is polled', () => server.polls.length === 1)
  t.same([client.state, degraded, order], ['connecting', [true], ['connecting', 'degraded']])
  t.same(server.polls[0], { authorization: `Bearer ${last().token}`, rooms: { a: null, b: null } })
  await until('it knows where it is', () => server.polls.at(-1)?.rooms.a === 'c1')
  for (const n of [1, 2, 3]) server.keep(n === 2 ? 'b' : 'a', n, `id${n}`)
  await until('it has heard', () => polling.messages.length === 3)
  server.keep('a', 4)
  await until('it has heard', () => polling.messages.length === 4)
  await rounds(polling)
  t.same(polling.messages, [{ room: 'a', payload: 1, id: 'id1' }, { room: 'a', payload: 3, id: 'id3' }, { room: 'b', payload: 2, id: 'id2' }, { room: 'a', payload: 4 }])
  t.same([server.polls.at(-1)?.rooms, asked, degraded], [{ a: 'c5', b: 'c5' }, ['connect'], [true]])
})

t.test('a socket that comes in time is not polled for, and one that was lost again has its time from there', async t => {
  const time = fakeTime(t)
  let polls = 0
  setGlobals(t, { fetch: () => { polls++; return never() } })
  const { WebSocket, last } = fakeSockets()
  const { client, degraded } = watched(t, { url: ADDRESS, WebSocket, fallback: { poll: 'https://server.example/poll' } })
  client.join('a')
  await time.pass(9000)
  last().open()
  await time.pass(9000)
  t.same([polls, degraded], [0, []])
  last().end()
  for (let i = 0; i < 9; i++) {
    await time.pass(1000)
    last().end()
  }
  t.same([polls, degraded], [0, []])
  await time.pass(1000)
  t.same([polls, degraded], [1, [true]], 'ten seconds in all, however often it was tried')
})

t.test('it polls after ten seconds, and every five, half as long to half as long again, unless it is told otherwise', async t => {
  for (const [random, delay] of [[0, 2500], [0.5, 5000], [0.9999, 7499.5]] as const) {
    await t.test(`${random}`, async t => {
      const time = fakeTime(t, random)
      let polls = 0
      setGlobals(t, { fetch: async () => { polls++; return new Response('{"rooms":{}}') } })
      const { WebSocket } = fakeSockets()
      const { client } = watched(t, { url: ADDRESS, WebSocket, fallback: { poll: 'https://server.example/poll' } })
      client.join('a')
      await time.pass(10_000)
      await settle()
      t.equal(polls, 1)
      // The other is of the connection that does not open.
      t.same(time.pending().map(Math.round), [delay, 5000].map(Math.round).sort((a, b) => a - b))
      await time.pass(delay)
      t.equal(polls, 2)
    })
  }
})

/** What fetch was given, which is done all the same. */
function spiedFetch (t: Test): RequestInit[] {
  const real = globalThis.fetch
  const given: RequestInit[] = []
  setGlobals(t, {
    fetch: (input: string, init: RequestInit) => {
      given.push(init)
      return real(input, init)
    }
  })
  return given
}

t.test('with a token the poll carries no cookies, and without one it does', async t => {
  const given = spiedFetch(t)
  const one = await polled(t)
  one.client.join('a')
  await one.until('it is polled', () => given.length > 0)
  t.same([given[0]?.credentials, given[0]?.redirect], ['omit', 'error'], 'and no token goes elsewhere')
  one.client.close()
  given.length = 0
  const two = await polled(t, { getToken: undefined })
  two.client.join('a')
  await two.until('it is polled', () => given.length > 0)
  t.same([given[0]?.credentials, two.server.polls[0]?.authorization], ['include', undefined])
  const three = await polled(t, { attach: 'cookie' })
  three.client.join('a')
  await three.until('it is polled', () => three.server.polls.length > 0)
  t.same([three.server.polls[0]?.authorization, three.asked], [undefined, []], 'a getToken that is of no use is not asked')
})

t.test('a guarded route is polled with a token that is good, and a new one where it is refused', async t => {
  const { app, port } = await serverAt(t, {
    declare (app) {
      app.post<{ Body: { rooms: Record<string, string | null> } }>('/poll', { auth: true }, async ({ body, auth }) => ({
        rooms: Object.fromEntries(Object.entries(body.rooms).map(([room, cursor]) => [room, { messages: cursor === null ? [{ payload: auth.userId, cursor: 'c1' }] : [], cursor: 'c1' }]))
      }))
    }
  })
  setRandom(t, 0.1)
  // A way that fetch has opened and does not need is no idle one to Node.
  t.teardown(() => { app.server.closeAllConnections() })
  const asked: string[] = []
  const { WebSocket } = fakeSockets()
  const { client, messages, until } = watched(t, {
    url: ADDRESS,
    WebSocket,
    getToken ({ reason }) {
      asked.push(reason)
      return asked.length === 1 ? 'not.a.token' : goodToken({ sub: 'bob' })
    },
    fallback: { after: AFTER, poll: new URL(`http://127.0.0.1:${portOf(app)}/poll`), interval: INTERVAL }
  })
  t.ok(port > 0)
  client.join('a')
  await until('it has heard', () => messages.length > 0)
  t.same(messages, [{ room: 'a', payload: 'bob' }])
  t.same(asked, ['connect', 'rejected'])
})

t.test('a session that is over, as the poll says, is a logout', async t => {
  const { client, server, logouts, closes, degraded, order, until } = await polled(t, { getToken: undefined })
  client.join('a')
  server.instead.push(reply => reply.code(401).send({ code: 'unauthorized' }))
  await until('it is closed', () => client.state === 'closed')
  t.same(closes, [{ code: 1000, reason: 'logged_out', action: 'stop', terminal: true }])
  t.same([logouts, degraded], [[{ by: 'server' }], [true, false]])
  t.equal(order.at(-1), 'close')
  t.equal(server.polls.length, 1)
})

t.test('what a room has lost is told, and a room that is refused is left', async t => {
  const polling = await polled(t, {}, 2)
  const { client, server, gaps, errors, lefts, until } = polling
  client.join('a')
  client.join('b')
  await until('it knows where it is', () => server.polls.at(-1)?.rooms.a === 'c0')
  for (const n of [1, 2, 3, 4]) server.keep('a', n)
  await until('it has heard', () => polling.messages.length > 0)
  t.same([payloads(polling), gaps], [[3, 4], [{ room: 'a' }]])
  server.instead.push(async () => ({ rooms: { a: { messages: [], cursor: 'c4' }, b: { error: 'forbidden' } } }))
  await until('it is refused', () => lefts.length > 0)
  t.same([lefts, errors], [[{ room: 'b', reason: 'forbidden' }], []])
  await rounds(polling)
  t.same(Object.keys(server.polls.at(-1)?.rooms ?? {}), ['a'])
  t.same([lefts.length, gaps.length], [1, 1])
  polling.last().open()
  t.same(polling.last().frames, [{ type: 'join', room: 'a', cursor: 'c4' }])
})

t.test('a room of which there is nothing to be had by polls is not asked for again, and joined when there is a socket', async t => {
  const polling = await polled(t)
  const { client, server, errors, last, until } = polling
  for (const room of ['a', 'b']) client.join(room)
  server.instead.push(async () => ({ rooms: { a: { messages: [], cursor: 'c0' }, b: { error: 'no_history' } } }))
  await until('it is told', () => errors.length > 0)
  await rounds(polling)
  t.same([errors.length, server.polls.at(-1)?.rooms], [1, { a: 'c0' }])
  last().open()
  t.same(last().frames, [{ type: 'join', room: 'a', cursor: 'c0' }, { type: 'join', room: 'b' }])
  last().end()
  const before = server.polls.length
  await until('it is polled again', () => server.polls.length > before)
  t.same(server.polls[before]?.rooms, { a: 'c0', b: null }, 'which may have changed')
})

t.test('a server that has no time is asked again when it says, and never at once', async t => {
  for (const [status, header, wait] of [[429, '7', 7000], [503, '30', 30_000]] as const) {
    const delays = timersSet(t)
    const { client, server, errors, until } = await polled(t)
    client.join('a')
    server.instead.push(reply => reply.code(status).header('retry-after', header).send(''))
    await until('it is told', () => errors.length > 0)
    t.match(errors, [{ stage: 'poll', error: { message: String(status) } }])
    await until('it waits', () => delays.includes(wait))
    t.equal(server.polls.length, 1)
    client.close()
  }
  for (const header of ['Fri, 31 Dec 2027 23:59:59 GMT', 'soon', '-5', '', '1e9', 'Infinity', '2147484']) {
    const delays = timersSet(t)
    const server = await pollServer(t)
    const { WebSocket } = fakeSockets()
    const { client, errors, until } = watched(t, { url: ADDRESS, WebSocket, fallback: { after: 1, poll: server.url, interval: 60_000 } })
    client.join('a')
    server.instead.push(reply => reply.code(503).header('retry-after', header).send(''))
    await until('it is told', () => errors.length > 0)
    await settle()
    t.notOk(delays.some(ms => Number.isNaN(ms) || ms > 2 ** 31 - 1), `${header}: ${delays.join()}`)
    t.ok(delays.some(ms => ms >= 30_000), `${header}: ${delays.join()}`)
    client.close()
  }
})

t.test('a server that is not there is an error, and is asked again until it is', async t => {
  const { port, app } = await serve(t, () => {})
  await app.close()
  const polling = await polled(t, { fallback: { after: AFTER, poll: `http://127.0.0.1:${port}/poll`, interval: INTERVAL } })
  const { client, errors, degraded, until } = polling
  client.join('a')
  await until('it is told twice', () => errors.length > 1)
  t.match(errors, [{ stage: 'poll', error: TypeError }, { stage: 'poll', error: TypeError }])
  t.same([client.state, degraded], ['connecting', [true]])
})

t.test('answers that are none deliver nothing, move nothing, and are survived', async t => {
  const polling = await polled(t)
  const { client, server, errors, gaps, until } = polling
  client.join('a')
  await until('it knows where it is', () => server.polls.at(-1)?.rooms.a === 'c0')
  const noAnswers = ['', 'null', '[]', '7', '{', '<html>', '{"rooms":null}']
  const texts = [
    ...noAnswers, '{"rooms":[]}', '{"rooms":{"a":null}}', '{"rooms":{"a":7}}', '{"rooms":{"a":[]}}', '{"rooms":{"a":{}}}',
    '{"rooms":{"a":{"messages":7,"cursor":7}}}', '{"rooms":{"a":{"messages":{},"cursor":null}}}', '{"rooms":{"a":{"messages":[1,null,"text",[],{}],"cursor":{}}}}',
    '{"rooms":{"other":{"messages":[{"payload":1,"cursor":"c9"}],"cursor":"c9","gap":true}}}', '{"rooms":{"other":{"error":"forbidden"}}}', '{"rooms":{"__proto__":{"error":"x"}}}'
  ]
  for (const text of texts) server.instead.push(reply => reply.header('content-type', 'application/json').send(text))
  await until('all are there', () => server.instead.length === 0)
  await rounds(polling)
  t.same([polling.messages, gaps, server.polls.at(-1)?.rooms, client.state], [[], [], { a: 'c0' }, 'connecting'])
  t.same(errors.map(({ stage }) => stage), noAnswers.map(() => 'poll'), 'what is no answer at all is told')
  server.keep('a', 1)
  await until('it has heard', () => polling.messages.length === 1)
})

t.test('a poll that is never answered is given up after 15 s', async t => {
  const limits: number[] = []
  const limit = new AbortController()
  t.intercept(AbortSignal, 'timeout', { value: (ms: number) => { limits.push(ms); return limits.length === 1 ? limit.signal : new AbortController().signal }, configurable: true })
  const polling = await polled(t)
  const { client, server, errors, until } = polling
  client.join('a')
  server.instead.push(() => never())
  await until('it is polled', () => server.polls.length === 1)
  limit.abort(new DOMException('too long', 'TimeoutError'))
  await until('it is asked again', () => server.polls.length > 1)
  t.match(errors, [{ stage: 'poll', error: { name: 'TimeoutError' } }])
  t.equal(limits[0], 15_000)
})

t.test('a socket that comes back goes on where the polls have come to, without a gap and without a repeat', async t => {
  const polling = await polled(t)
  const { client, server, degraded, opens, gaps, last, until } = polling
  client.join('a')
  client.join('b')
  await until('it knows where it is', () => server.polls.at(-1)?.rooms.a === 'c0')
  server.keep('a', 1)
  await until('it has heard', () => payloads(polling).length === 1)
  client.leave('b')
  await rounds(polling)
  const socket = last().open()
  t.same(degraded, [true, false])
  t.same(socket.frames, [{ type: 'join', room: 'a', cursor: 'c1' }])
  socket.say({ type: 'message', room: 'a', payload: 2, cursor: 'c2' })
  socket.say({ type: 'joined', room: 'a', cursor: 'c2' })
  const before = server.polls.length
  await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
  t.same([server.polls.length, payloads(polling), gaps, opens.length], [before, [1, 2], [], 1])
  socket.end()
  await until('it is polled again', () => server.polls.length > before)
  t.same([degraded, server.polls.at(-1)?.rooms], [[true, false, true], { a: 'c2' }])
})

t.test('what a poll answers when there is a socket again is not heard, for the socket brings it', async t => {
  const polling = await polled(t)
  const { client, server, errors, last, until } = polling
  client.join('a')
  await until('it knows where it is', () => server.polls.at(-1)?.rooms.a === 'c0')
  const slow = deferred<unknown>()
  let isAsked = false
  server.instead.push(() => { isAsked = true; return slow.promise })
  await until('it is asked', () => isAsked)
  const socket = last().open()
  slow.resolve({ rooms: { a: { messages: [{ payload: 1, cursor: 'c1' }], cursor: 'c1', gap: true } } })
  socket.say({ type: 'message', room: 'a', payload: 1, cursor: 'c1' })
  await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
  t.same(socket.frames, [{ type: 'join', room: 'a', cursor: 'c0' }])
  t.same([payloads(polling), polling.gaps, errors], [[1], [], []])
})

t.test('who closes the client in the middle of an answer hears nothing more of it', async t => {
  const two = { messages: [{ payload: 1, cursor: 'c1' }, { payload: 2, cursor: 'c2' }], cursor: 'c2', gap: true }
  const cases: Array<[what: string, answer: object, event: 'message' | 'gap' | 'left' | 'error']> = [
    ['a message', { a: two, b: two }, 'message'],
    ['a gap', { a: { ...two, messages: [] }, b: two }, 'gap'],
    ['a refusal', { a: { error: 'forbidden' }, b: { error: 'forbidden' } }, 'left'],
    ['a room without history', { a: { error: 'no_history' }, b: { error: 'no_history' } }, 'error']
  ]
  for (const [what, answer, event] of cases) {
    await t.test(what, async t => {
      const polling = await polled(t)
      const { client, server, closes, order, until } = polling
      for (const room of ['a', 'b']) client.join(room)
      client.on(event, () => { client.close() })
      server.instead.push(async () => ({ rooms: answer }))
      await until('it is closed', () => client.state === 'closed')
      for (let i = 0; i < 10; i++) await settle()
      t.equal(polling.messages.length + polling.gaps.length + polling.lefts.length + polling.errors.length, 1)
      t.equal(closes.length, 1)
      t.same(order.slice(order.indexOf('closed')), ['closed', 'close'])
      t.equal(server.polls.length, 1)
    })
  }
})

t.test('who leaves a room in the middle of an answer hears nothing more of it, and all of the others', async t => {
  const polling = await polled(t)
  const { client, server, gaps, until } = polling
  for (const room of ['a', 'b']) client.join(room)
  client.on('message', ({ room }) => { if (room === 'a') client.leave('a') })
  const of = (from: number) => ({ messages: [0, 1].map(n => ({ payload: from + n, cursor: `c${from + n}` })), cursor: `c${from + 1}`, gap: true })
  server.instead.push(async () => ({ rooms: { a: of(1), b: of(3) } }))
  await until('it has heard', () => gaps.length > 0)
  t.same([payloads(polling), gaps], [[1, 3, 4], [{ room: 'b' }]])
  await rounds(polling)
  t.same(server.polls[1]?.rooms, { b: 'c4' })
})

t.test('who closes the client when it hears that it is degraded, or that this is over, is asked for nothing more', async t => {
  for (const when of [true, false]) {
    await t.test(String(when), async t => {
      const polling = await polled(t)
      const { client, server, degraded, closes, errors, last, until, asked } = polling
      client.join('a')
      client.on('degraded', is => { if (is === when) client.close() })
      if (!when) {
        await until('it is polled', () => server.polls.length > 0)
        last().open()
      }
      await until('it is closed', () => client.state === 'closed')
      const polls = server.polls.length
      await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
      t.same([server.polls.length, asked, errors, degraded.length], [polls, ['connect'], [], 2])
      t.same(closes.map(({ reason, terminal }) => [reason, terminal]), [['closed', true]])
      t.equal(polling.opens.length, 0)
    })
  }
})

t.test('what a listener does when the client ends and is no longer degraded is not undone, and is told once', async t => {
  for (const [what, code] of [['close', 4006], ['connect', 4006], ['close', 4007], ['connect', 4007]] as const) {
    await t.test(`${what}, ${code}`, async t => {
      const { client, server, degraded, closes, states, all, last, until } = await polled(t)
      client.join('a')
      client.on('degraded', is => { if (!is) client[what]() })
      await until('it is polled', () => server.polls.length > 0)
      last().end({ code })
      for (let i = 0; i < 10; i++) await settle()
      t.same(degraded, [true, false])
      t.equal(closes.filter(({ terminal }) => terminal).length, what === 'close' ? 1 : 0)
      t.same([client.state, states.at(-1), all.length], what === 'close' ? ['closed', 'closed', 1] : ['connecting', 'connecting', 2])
      client.close()
    })
  }
})

t.test('a client that ends leaves no timer, whatever it waits for', async t => {
  const time = fakeTime(t)
  let answer: () => Promise<Response> = () => never()
  setGlobals(t, { fetch: (_url: string, { signal }: { signal: AbortSignal }) => Promise.race([answer(), new Promise((_resolve, reject) => { signal.addEventListener('abort', reject) })]) })
  const leads: Array<[what: string, ms: number, fetched: typeof answer]> = [
    ['to be degraded', 5000, never],
    ['for an answer', 10_000, never],
    ['for the next poll', 10_000, async () => new Response('{"rooms":{}}')],
    ['as long as the server says', 10_000, async () => new Response('', { status: 503, headers: { 'retry-after': '60' } })]
  ]
  for (const [what, ms, fetched] of leads) {
    answer = fetched
    for (const end of ['close', 'logout', '4006'] as const) {
      const { WebSocket, last } = fakeSockets()
      const { client, degraded, errors } = watched(t, { url: ADDRESS, WebSocket, getToken: () => lookalike(1000), fallback: { poll: 'https://server.example/poll' } })
      client.join('a')
      await time.pass(ms)
      await settle()
      const before = errors.length
      if (end === '4006') last().end({ code: 4006 })
      else client[end]()
      await settle()
      t.same(time.pending(), [], `${what}: ${end}`)
      t.same(degraded, ms < 10_000 ? [] : [true, false])
      t.equal(errors.length, before, 'what is given up is no error')
      client.close()
    }
  }
})

t.test('a client that is idle is not degraded', async t => {
  const time = fakeTime(t)
  let polls = 0
  setGlobals(t, { fetch: () => { polls++; return never() } })
  const { WebSocket, last } = fakeSockets()
  const { client, degraded } = watched(t, { url: ADDRESS, WebSocket, fallback: { poll: 'https://server.example/poll' } })
  client.join('a')
  await settle()
  last().open().end({ code: 4003 })
  t.equal(client.state, 'idle')
  t.same(time.pending(), [])
  await time.pass(60_000)
  t.same([polls, degraded], [0, []])
  client.send('wake')
  await time.pass(10_000)
  t.same([polls, degraded], [1, [true]])
  last().end({ code: 4003 })
  t.same([client.state, degraded], ['idle', [true, false]])
})

t.test('offline, and without rooms, nothing is polled', async t => {
  const page = inPage(t)
  const polling = await polled(t, { tabs: false })
  const { client, server, degraded, until } = polling
  await until('it is degraded', () => degraded.length > 0)
  await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
  t.equal(server.polls.length, 0, 'no room')
  page.navigator.onLine = false
  client.join('a')
  await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
  t.equal(server.polls.length, 0, 'no network')
  page.navigator.onLine = true
  await until('it is polled', () => server.polls.length > 0)
})

t.test('where there is no token any more the client ends, and one that is late polls nothing', async t => {
  const tokens = [lookalike(100)]
  const polling = await polled(t, { getToken: () => tokens.shift() ?? null })
  const { client, server, closes, errors, last, until } = polling
  client.join('a')
  server.instead.push(reply => reply.code(401).send(''))
  await until('it is polled', () => server.polls.length === 1)
  await new Promise(resolve => { setTimeout(resolve, 5 * INTERVAL) })
  t.same([server.polls.length, client.state], [1, 'connecting'])
  last().end()
  client.connect()
  await until('it is closed', () => client.state === 'closed')
  t.same([closes.at(-1)?.reason, polling.logouts, errors.map(({ stage }) => stage)], ['no_credential', [{ by: 'self' }], ['poll', 'connect']])
})

t.test('a token that is asked for by a poll is not used when the client is closed meanwhile', async t => {
  const slow = deferred<string>()
  const tokens: Array<string | Promise<string>> = [lookalike(100), slow.promise]
  const polling = await polled(t, { getToken: () => tokens.shift() ?? never() })
  const { client, server, errors, until } = polling
  client.join('a')
  server.instead.push(reply => reply.code(401).send(''))
  await until('it is asked', () => tokens.length === 0)
  client.close()
  slow.resolve(lookalike(100))
  for (let i = 0; i < 10; i++) await settle()
  t.same([server.polls.length, errors.map(({ stage }) => stage)], [1, ['poll']])
})

t.test('a getToken that fails is an error of the poll, and the poll goes on', async t => {
  let asked = 0
  const polling = await polled(t, {
    getToken () {
      if (++asked === 2) throw new Error('the login page is away')
      return lookalike(100)
    }
  })
  const { client, server, errors, until } = polling
  client.join('a')
  server.instead.push(reply => reply.code(401).send(''))
  await until('it is polled again', () => server.polls.length > 1)
  t.match(errors, [{ stage: 'poll', error: { message: 'the server answered 401' } }, { stage: 'poll', error: { message: 'the login page is away' } }])
})

t.test('a ticket opens sockets only: with it there is no fallback', t => {
  t.throws(() => createAuthSocket({ url: ADDRESS, WebSocket: fakeSockets().WebSocket, attach: 'ticket', getToken: () => 'a', fallback: { poll: 'https://server.example/poll' } }), TypeError)
  t.end()
})

t.test('a real socket that is refused its way is polled for, and is in the rooms again when it is not', async t => {
  const polls: unknown[] = []
  let isBlocked = true
  const { app, port } = await serverAt(t, {
    auth: { rooms: { authorize: () => true } },
    declare (app) {
      app.get('/app', { websocket: true, auth: { rooms: true } }, socket => { socket.on('message', () => {}) })
      app.post('/poll', { auth: true }, async ({ body }) => {
        polls.push(body)
        return { rooms: { a: { messages: [], cursor: 'c1' } } }
      })
    }
  })
  setRandom(t, 0.1)
  t.teardown(() => { app.server.closeAllConnections() })
  const { client, messages, degraded, states, until, isOpen } = watched(t, {
    url: () => `ws://127.0.0.1:${isBlocked ? 1 : port}/app`,
    getToken: () => goodToken(),
    fallback: { after: AFTER, poll: `http://127.0.0.1:${port}/poll`, interval: INTERVAL }
  })
  client.join('a')
  await until('it is polled', () => polls.length > 1)
  t.same(polls[0], { rooms: { a: null } })
  t.ok(states.includes('waiting'))
  isBlocked = false
  await until('it is over', () => degraded.length === 2)
  t.ok(app.hybridAuth.count() <= 1)
  await isOpen()
  await until('it is in the room', () => app.hybridAuth.rooms.count('a') === 1)
  await app.hybridAuth.rooms.publish('a', 'hello')
  await until('it hears', () => messages.length === 1)
  t.same(messages.map(message => 'payload' in message ? message.payload : null), ['hello'])
})
