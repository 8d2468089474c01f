/** Rooms of a client: how far it has heard in each, over any number of sockets, and what is its own. */
import t, { type Test } from 'tap'
import type { AuthSocketOptions } from '../lib/client/index.js'
import { fakeSockets, fakeTime, lookalike, setGlobals, settle, watched, type FakeSockets, type FakeTime, type Watched } from './clients.js'
import { goodToken } from './helpers.js'
import { live } from './live.js'

const ADDRESS = 'ws://server.example/live'

interface Roomed extends Watched, FakeSockets { time: FakeTime, again: () => Promise<void> }

function roomed (t: Test, options: Partial<AuthSocketOptions> = {}): Roomed {
  const time = fakeTime(t, 0)
  const sockets = fakeSockets()
  const seen = watched(t, { url: ADDRESS, WebSocket: sockets.WebSocket, ...options })
  return {
    ...seen,
    ...sockets,
    time,
    /** Loses the socket and has another. */
    async again () {
      sockets.last().end()
      seen.client.connect()
      await settle()
      sockets.last().open()
    }
  }
}

t.test('a room is joined again where it was heard last: behind its last message, or where it was joined', async t => {
  const { client, last, again } = roomed(t)
  await settle()
  last().open()
  for (const room of ['heard', 'joined', 'live', 'both']) client.join(room)
  t.same(last().frames, ['heard', 'joined', 'live', 'both'].map(room => ({ type: 'join', room })))
  last().say({ type: 'message', room: 'heard', payload: 1, cursor: 'c1' })
  last().say({ type: 'message', room: 'heard', payload: 2, cursor: 'c2' })
  last().say({ type: 'joined', room: 'joined', cursor: 'c3' })
  last().say({ type: 'joined', room: 'live' })
  last().say({ type: 'message', room: 'live', payload: 3 })
  last().say({ type: 'joined', room: 'both', cursor: 'c4' })
  last().say({ type: 'message', room: 'both', payload: 4, cursor: 'c5' })
  await again()
  t.same(last().frames, [{ type: 'join', room: 'heard', cursor: 'c2' }, { type: 'join', room: 'joined', cursor: 'c3' }, { type: 'join', room: 'live' }, { type: 'join', room: 'both', cursor: 'c5' }])
  await again()
  t.equal(last().frames.length, 4, 'also where nothing came')
})

t.test('a cursor that is no text moves nothing', async t => {
  const { client, last, again } = roomed(t)
  client.join('a')
  await settle()
  last().open().say({ type: 'joined', room: 'a', cursor: 'c1' })
  for (const cursor of [7, null, {}, [], true]) last().say({ type: 'message', room: 'a', payload: 1, cursor })
  await again()
  t.same(last().frames, [{ type: 'join', room: 'a', cursor: 'c1' }])
})

t.test('who joins again without having left goes on where it was, and who has left begins anew', async t => {
  const { client, last, again } = roomed(t)
  client.join('a')
  await settle()
  last().open().say({ type: 'joined', room: 'a', cursor: 'c1' })
  client.join('a')
  t.same(last().frames.at(-1), { type: 'join', room: 'a', cursor: 'c1' })
  client.leave('a')
  t.same(last().frames.at(-1), { type: 'leave', room: 'a' })
  // What was on its way.
  last().say({ type: 'message', room: 'a', payload: 1, cursor: 'c2' })
  last().say({ type: 'left', room: 'a' })
  await again()
  t.same(last().frames, [])
  client.join('a')
  t.same(last().frames, [{ type: 'join', room: 'a' }])
  last().say({ type: 'joined', room: 'a', cursor: 'c3' })
  last().say({ type: 'left', room: 'a', reason: 'forbidden' })
  await again()
  t.same(last().frames, [], 'nor does who was put out')
})

t.test('a client that is somewhere else, or nobody, keeps rooms for when it is open', async t => {
  const { client, last, time } = roomed(t)
  client.join('a')
  client.join('b')
  client.leave('b')
  client.leave('never')
  await settle()
  t.same(last().sent, [])
  last().open()
  t.same(last().frames, [{ type: 'join', room: 'a' }])
  last().end({ code: 4003 })
  client.join('a')
  await settle()
  t.same(last().open().frames, [{ type: 'join', room: 'a' }], 'who wants into a room is not idle')
  last().end({ code: 4001 })
  client.join('c')
  await time.pass(10_000)
  t.equal(client.state, 'closed')
})

t.test('the rooms of one user are joined as another from where they are now', async t => {
  const tokens = [lookalike(100), lookalike(100, { sub: 'mallory' })]
  const { client, last } = roomed(t, { getToken: () => tokens.shift() ?? null })
  client.join('a')
  await settle()
  last().open().say({ type: 'joined', room: 'a', cursor: 'c1' })
  last().end({ code: 4002 })
  client.connect()
  await settle()
  t.same(last().open().frames, [{ type: 'join', room: 'a' }])
})

t.test('a gap is told of the room that has it', async t => {
  const { client, last, gaps, messages } = roomed(t)
  for (const room of ['a', 'b']) client.join(room)
  await settle()
  last().open()
  last().say({ type: 'message', room: 'a', payload: 1, cursor: 'c8' })
  last().say({ type: 'joined', room: 'a', cursor: 'c9', gap: true })
  last().say({ type: 'joined', room: 'b', cursor: 'c9' })
  t.same([gaps, messages], [[{ room: 'a' }], [{ room: 'a', payload: 1 }]])
  last().say({ type: 'joined', room: 'b', cursor: 'c10', gap: true })
  t.same(gaps, [{ room: 'a' }, { room: 'b' }], 'also later, where the server has missed something')
})

t.test('who is in a room and out of it is told, and why', async t => {
  const { client, last } = roomed(t)
  const told: unknown[] = []
  for (const name of ['joined', 'left'] as const) client.on(name, event => { told.push([name, event]) })
  for (const room of ['a', 'b', 'c', 'd']) client.join(room)
  await settle()
  last().open()
  last().say({ type: 'joined', room: 'a' })
  last().say({ type: 'left', room: 'a' })
  last().say({ type: 'left', room: 'b', reason: 'removed' })
  last().say({ type: 'left', room: 'c', reason: 'forbidden' })
  last().say({ type: 'left', room: 'd', reason: 'unheard of' })
  t.same(told, [['joined', { room: 'a' }], ['left', { room: 'a', reason: null }], ['left', { room: 'b', reason: 'removed' }], ['left', { room: 'c', reason: 'forbidden' }], ['left', { room: 'd', reason: null }]])
})

t.test('what one has said is not heard by oneself when the history brings it, and is heard where it is somebody else\'s', async t => {
  const { client, last, messages, again } = roomed(t)
  client.join('a')
  await settle()
  last().open()
  t.equal(client.publish('a', 'mine', 'x'), true)
  t.equal(client.publish('a', 'mine', 7), true)
  t.equal(client.publish('a', 'mine'), true)
  const frames = last().frames as Array<{ id?: string | number }>
  const id = frames.at(-1)?.id
  t.same(frames.slice(1), [{ type: 'message', room: 'a', payload: 'mine', id: 'x' }, { type: 'message', room: 'a', payload: 'mine', id: 7 }, { type: 'message', room: 'a', payload: 'mine', id }])
  t.type(id, 'string')
  await again()
  for (const one of ['x', 7, id]) last().say({ type: 'message', room: 'a', payload: 'mine', id: one, cursor: `c${one ?? ''}` })
  t.same(messages, [])
  last().say({ type: 'message', room: 'a', payload: 'theirs', id: 'y', cursor: 'c2' })
  last().say({ type: 'message', room: 'a', payload: 'theirs', id: 8, cursor: 'c3' })
  last().say({ type: 'message', room: 'b', payload: 'theirs', id: 'x' })
  last().say({ type: 'message', room: 'a', payload: 'theirs', id: '7' })
  last().say({ type: 'message', room: 'a', payload: 'theirs', id: { y: 1 } })
  last().say({ type: 'message', room: 'a', payload: null })
  t.same(messages, [
    { room: 'a', payload: 'theirs', id: 'y' }, { room: 'a', payload: 'theirs', id: 8 }, { room: 'b', payload: 'theirs', id: 'x' }, { room: 'a', payload: 'theirs', id: '7' }, { room: 'a', payload: 'theirs' }, { room: 'a', payload: null }
  ])
  await again()
  t.match(last().frames, [{ type: 'join', room: 'a', cursor: 'c3' }], 'one\'s own moves the cursor as well')
})

t.test('what is one\'s own is known again for the last thousand', async t => {
  const { client, last, messages } = roomed(t)
  await settle()
  last().open()
  for (let i = 0; i < 1001; i++) client.publish('a', i, i)
  for (const id of [0, 1, 1000]) last().say({ type: 'message', room: 'a', payload: id, id })
  t.same(messages, [{ room: 'a', payload: 0, id: 0 }])
})

t.test('a message has an id of its own also where a page has only the half of crypto, as without https', async t => {
  const real = globalThis.crypto
  setGlobals(t, { crypto: { getRandomValues: real.getRandomValues.bind(real) } })
  const { client, last } = roomed(t)
  await settle()
  last().open()
  for (let i = 0; i < 100; i++) client.publish('a', i)
  const ids = (last().frames as Array<{ id: string }>).map(({ id }) => id)
  t.equal(new Set(ids).size, 100)
  t.ok(ids.every(id => typeof id === 'string' && id.length >= 16 && id.length <= 128), ids.join())
})

t.test('what is published without a socket waits only where there is a queue', async t => {
  const { client, last } = roomed(t, { queue: 1 })
  t.equal(client.publish('a', 1, 'x'), false)
  t.equal(client.publish('a', 2, 'y'), false)
  client.join('a')
  await settle()
  t.same(last().open().frames, [{ type: 'join', room: 'a' }, { type: 'message', room: 'a', payload: 1, id: 'x' }])
})

t.test('two clients of one real room hear each other, and not themselves', async t => {
  const { app, host } = await live(t, { auth: { rooms: { authorize: () => true } }, route: { rooms: true } })
  const [one, two] = ['one', 'two'].map(sub => watched(t, { url: `ws://${host}/app`, getToken: () => goodToken({ sub }) }))
  if (one === undefined || two === undefined) throw new Error('there are two')
  const joined: string[] = []
  for (const { client } of [one, two]) {
    client.on('joined', ({ room }) => { joined.push(room) })
    client.join('a')
  }
  await one.until('both are in', () => joined.length === 2 && app.hybridAuth.rooms.count('a') === 2)
  one.client.publish('a', 'from one', 'x')
  await two.until('it hears', () => two.messages.length === 1)
  two.client.publish('a', 'from two')
  await one.until('it hears', () => one.messages.length === 1)
  t.match([one.messages, two.messages], [[{ room: 'a', payload: 'from two' }], [{ room: 'a', payload: 'from one' }]])
})

t.test('what has a code or a room and is none of our frames is the application\'s, and moves nothing', async t => {
  const { client, last, messages, errors, again } = roomed(t)
  client.join('a')
  await settle()
  last().open().say({ type: 'joined', room: 'a', cursor: 'c1' })
  const texts = ['{"type":"order","code":"x","room":"a","cursor":"c9","gap":true}', '{"type":"move","room":"a","cursor":"c9"}', '{"type":"message","room":"a","cursor":"c9"}']
  for (const text of texts) last().say(text)
  t.same([messages, errors], [texts.map(data => ({ data, room: null })), []])
  await again()
  t.same(last().frames, [{ type: 'join', room: 'a', cursor: 'c1' }])
})

t.test('what is neither text nor bytes does not wait for a socket', async t => {
  const { client, last } = roomed(t, { queue: 9 })
  for (const data of [7, null, undefined, {}, []]) t.throws(() => { (client.send as (data: unknown) => boolean)(data) }, TypeError)
  const bytes = new Uint8Array([1, 2])
  for (const data of ['text', bytes, bytes.buffer, '', new Uint8Array()]) t.equal(client.send(data), false)
  await settle()
  t.same(last().open().sent, ['text', bytes, bytes.buffer, '', new Uint8Array()])
})
