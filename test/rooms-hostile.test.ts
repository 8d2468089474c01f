/** Rooms under attack, under load, and while what somebody may do is changing. */
import { once } from 'node:events'
import t from 'tap'
import type { RoomOptions } from '../lib/index.js'
import type { Cluster } from '../lib/cluster/cluster.js'
import { goodToken } from './helpers.js'
import { dial, eventually, lookNow, setClock, type Frame, type Pair, type Peer } from './live.js'
import { driverOf, Hold, updateOf } from './revoking.js'
import { guardedOf, heard, heardSoFar, hubOf, joins, NOTHING, PASS, Questions, remains, roomy, settled, turns, type Roomy } from './rooming.js'
import { deferred, never } from './stores.js'

const BY_PERMISSION: RoomOptions = { authorize: auth => auth.permissions.includes('room') }
const say = (payload: unknown, room = 'r') => ({ type: 'message', room, payload })
/** The frames of a peer that are about rooms, or say no. */
const story = ({ peer }: Pair): Frame[] => peer.texts.filter(text => text.startsWith('{')).map(text => JSON.parse(text) as Frame)
/** Everything that the peer has sent was read by the server. */
async function received (peer: Peer): Promise<void> {
  peer.socket.ping()
  await once(peer.socket, 'pong')
}
const outOf = (pair: Pair, room = 'r') => !pair.there.connection.rooms.has(room)

t.test('a route with rooms has somebody who decides, or does not start', async t => {
  for (const [what, patterns] of Object.entries({ 'an empty list': [], 'an empty object': {}, 'a Set': new Set(['r']), 'a Map': new Map([['r', true]]), 'a Date': new Date() })) {
    t.test(what, async t => {
      let server: Roomy
      try {
        server = await roomy(t, { rooms: { patterns } })
      } catch (error) {
        t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /rooms/ }, 'it does not start')
        return
      }
      const mallory = await server.enter('mallory')
      mallory.peer.say({ type: 'join', room: 'r' })
      await settled(mallory)
      t.same([...mallory.there.connection.rooms], [], 'nobody gets in')
    })
  }
})

t.test('66: what was lost between the verdict on a join and its effect keeps the door shut, at every turn between', async t => {
  const losses: Array<[string, (server: Roomy, pair: Pair) => Promise<unknown>]> = [
    ['leave()', async (_server, { there }) => there.connection.leave('r')],
    ['close()', async (_server, { there, peer }) => {
      there.connection.close()
      await peer.end
    }],
    ['setPermissions()', async ({ app }, { there }) => app.hybridAuth.setPermissions(there.connection.context.userId, [])],
    ['revoke()', async ({ app }, { there }) => app.hybridAuth.revoke({ userId: there.connection.context.userId })],
    ['disconnect()', async ({ app }, { there }) => app.hybridAuth.disconnect({ userId: there.connection.context.userId })]
  ]
  for (const [what, lose] of losses) {
    t.test(what, async t => {
      const questions = new Questions()
      const server = await roomy(t, { rooms: { authorize: questions.authorize } })
      const seen: string[] = []
      for (let depth = 0; depth < 24; depth++) {
        const pair = await server.enter(`user-${depth}`, ['room'])
        const hub = hubOf(pair)
        questions.hold()
        const before = questions.asked.length
        const joining = pair.there.connection.join('r')
        const question = await questions.at(before)
        questions.answerAtOnce(auth => auth.permissions.includes('room'))
        question.answer(true)
        await turns(depth)
        const wasIn = pair.there.connection.rooms.has('r')
        await lose(server, pair)
        const isIn = await joining
        if (!outOf(pair)) seen.push(`${depth} turns after the verdict: still in`)
        if (isIn && !wasIn) seen.push(`${depth} turns after the verdict: told that it is in`)
        pair.peer.socket.terminate()
        await pair.there.closed
        if (remains(hub).memberships !== 0 || remains(hub).rooms !== 0) {
          seen.push(`${depth} turns after the verdict: ${JSON.stringify(remains(hub))} are left`)
          break
        }
      }
      t.same(seen, [])
    })
  }
})

t.test('a permission that is lost while the channel of a room is being opened keeps the door shut', async t => {
  const losses: Array<[string, (server: Roomy, pair: Pair) => Promise<unknown>]> = [
    ['leave()', async (_server, { there }) => there.connection.leave('r')],
    ['close()', async (_server, { there }) => { there.connection.close() }],
    ['setPermissions()', async ({ app }) => app.hybridAuth.setPermissions('alice', [])],
    ['revoke()', async ({ app }) => app.hybridAuth.revoke({ userId: 'alice' })],
    ['the peer goes', async (_server, { there, peer }) => {
      peer.socket.terminate()
      await there.closed
    }],
    ['a token with fewer permissions', async (_server, { peer }) => {
      peer.say(updateOf(goodToken({ sub: 'alice', permissions: [] })))
      await peer.takeFrame('auth_updated')
    }]
  ]
  for (const [what, lose] of losses) {
    t.test(what, async t => {
      const channel = deferred<void>()
      const calls: string[] = []
      const cluster = driverOf((inner): Partial<Cluster> => ({
        async subscribe (room) {
          calls.push(`+${room}`)
          await inner.subscribe(room)
          await channel.promise
        },
        unsubscribe (room) {
          calls.push(`-${room}`)
          inner.unsubscribe(room)
        }
      }))
      const server = await roomy(t, { rooms: BY_PERMISSION, auth: { cluster } })
      const pair = await server.enter('alice', ['room'])
      const hub = hubOf(pair)
      const joining = pair.there.connection.join('r')
      t.same(calls, ['+r'], 'the channel is on its way')
      await lose(server, pair)
      channel.resolve()
      t.equal(await joining, false, 'join() says no')
      t.same([...pair.there.connection.rooms], [], 'it is in no room')
      t.match(remains(hub), { memberships: 0, rooms: 0 }, 'nothing is left of the room')
      t.same(calls, ['+r', '-r'], 'nor of its channel')
      t.same(server.told('room_joined'), [], 'and nobody was told that it joined')
    })
  }
})

t.test('a join whose channel is opened under a context that has gone is decided anew, and let in where it still may', async t => {
  const channel = deferred<void>()
  const asked: string[][] = []
  const server = await roomy(t, {
    rooms: {
      authorize (auth) {
        asked.push([...auth.permissions])
        return auth.permissions.includes('room')
      }
    },
    auth: {
      cluster: driverOf(inner => ({
        async subscribe (room) {
          await inner.subscribe(room)
          await channel.promise
        }
      }))
    }
  })
  const pair = await server.enter('alice', ['room'])
  const joining = pair.there.connection.join('r')
  await server.app.hybridAuth.setPermissions('alice', ['room', 'more'])
  channel.resolve()
  t.equal(await joining, true)
  t.same(asked, [['room'], ['room', 'more']], 'the new context has its own answer')
  t.match(remains(hubOf(pair)), { memberships: 1, rooms: 1 }, 'it is in once')
})

t.test('a join that takes its time has one answer, and frames behind it wait', async t => {
  const channel = deferred<void>()
  const server = await roomy(t, {
    auth: {
      handshakeTimeout: 100,
      cluster: driverOf(inner => ({
        async subscribe (room) {
          await inner.subscribe(room)
          await channel.promise
        }
      }))
    }
  })
  const pair = await server.enter('alice')
  pair.peer.say({ type: 'join', room: 'r' })
  const timer = setTimeout(channel.resolve, 250)
  t.teardown(() => { clearTimeout(timer) })
  await settled(pair)
  await channel.promise
  await settled(pair)
  const frames = story(pair).filter(({ type }) => type === 'joined' || type === 'error')
  t.equal(frames.length, 1, `one answer: ${JSON.stringify(frames)}`)
  t.equal(frames[0]?.type === 'joined', pair.there.connection.rooms.has('r'), 'and it is true')
})

t.test('66: who lost a room does not hear what is published in the very moment', async t => {
  const server = await roomy(t, { rooms: BY_PERMISSION })
  const alice = await server.enterRoom('alice', 'r', ['room'])
  const { rooms } = server.app.hybridAuth
  const told: number[] = []
  alice.there.connection.on('refresh', () => { rooms.publish('r', 'a secret').then(({ delivered }) => { told.push(delivered) }, () => {}) })
  alice.peer.say(updateOf(goodToken({ sub: 'alice', permissions: [] })))
  await alice.peer.takeFrame('auth_updated')
  t.same(await heard(alice), [], 'a listener of `refresh` publishes, and she is out already')
  t.same(told, [0])
})

t.test('66: a peer that has closed does not say anything by a permission that it lost before its frame was judged', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const alice = await server.enterRoom('alice', 'r', ['room'])
  const bob = await server.enterRoom('bob', 'r', ['room'])
  questions.hold()
  alice.peer.say(say('held'))
  const question = await questions.at(0)
  alice.peer.socket.close()
  await eventually('the peer has closed', () => guardedOf(alice).heldClose !== null)
  questions.answerAtOnce(auth => auth.permissions.includes('room'))
  await server.app.hybridAuth.setPermissions('alice', [])
  question.answer(true)
  await alice.there.closed
  t.same(await heard(bob), [], 'nothing that the lost permission allowed is said after the acknowledgement')
})

t.test('66: frames that are there before the handler wait until it is known what the user may do now', async t => {
  const hold = new Hold()
  const answer = deferred<readonly string[]>()
  let isKnown = true
  const server = await roomy(t, {
    rooms: BY_PERMISSION,
    auth: { permissions: () => isKnown ? ['room'] : answer.promise },
    rule: {
      async check () {
        await hold.pass()
        return true
      }
    }
  })
  const bob = await server.enterRoom('bob', 'r', ['room'])
  hold.arm()
  const opening = dial(t, server.host, { token: goodToken({ sub: 'alice' }), speaks: true })
  await hold.entered
  isKnown = false
  await server.app.hybridAuth.refreshPermissions('alice')
  hold.release()
  const alice = await opening
  alice.say({ type: 'join', room: 'r' })
  alice.say(say('by what she has lost'))
  await received(alice)
  const { delivered } = await server.app.hybridAuth.rooms.publish('r', 'said after the acknowledgement')
  t.equal(delivered, 1, 'bob alone')
  answer.resolve([])
  await alice.echoed('is open')
  t.same(heardSoFar(alice), [], 'she does not hear what her old permissions would have let her hear')
  t.match(alice.framesOf('error'), [{ code: 'forbidden', room: 'r' }, { code: 'not_joined', room: 'r' }], 'what she said is judged by what she may do now')
  t.same(await heard(bob), ['said after the acknowledgement'])
})

t.test('frames that were held for a verdict are not passed to one who is over by then', async t => {
  t.test('its token has expired', async t => {
    const clock = setClock(t)
    const questions = new Questions()
    const server = await roomy(t, { rooms: { authorize: questions.authorize }, auth: { expiryGrace: 0 } })
    questions.answerAtOnce()
    const alice = await server.enterRoom('alice', 'r')
    questions.hold()
    const set = server.app.hybridAuth.setPermissions('alice', ['other'])
    const question = await questions.at(0)
    await server.app.hybridAuth.rooms.publish('r', 'held')
    clock.move(3_600_000)
    question.answer(true)
    await set
    lookNow(alice.there.connection)
    await alice.peer.end
    t.same(heardSoFar(alice.peer), [], 'past the end of the token nothing comes')
    t.match(remains(hubOf(alice)), NOTHING)
  })

  t.test('its user is revoked, among many', async t => {
    const questions = new Questions()
    const server = await roomy(t, { rooms: { authorize: questions.authorize } })
    questions.answerAtOnce()
    // So many that the last is closed in a later turn of the loop.
    const crowd: Pair[] = []
    for (let i = 0; i < 60; i++) crowd.push(await server.enterRoom('alice', 'r'))
    questions.hold()
    const set = server.app.hybridAuth.setPermissions('alice', ['other'])
    await questions.at(59)
    await server.app.hybridAuth.rooms.publish('r', 'held')
    const revoked = server.app.hybridAuth.revoke({ userId: 'alice' })
    for (const { answer } of questions.asked) answer(true)
    await Promise.all([set, revoked, ...crowd.map(({ peer }) => peer.end)])
    t.equal(crowd.flatMap(({ peer }) => heardSoFar(peer)).length, 0, 'after a revocation nothing comes')
  })
})

t.test('what is held for a member until a verdict is bounded over all of its rooms together', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize, maxBuffered: 10_000 } })
  questions.answerAtOnce()
  const alice = await server.enter('alice')
  const names = Array.from({ length: 10 }, (_, i) => `room-${i}`)
  for (const name of names) await joins(alice.peer, name)
  questions.hold()
  const set = server.app.hybridAuth.setPermissions('alice', ['other'])
  await questions.at(9)
  for (const name of names) for (let i = 0; i < 2; i++) await server.app.hybridAuth.rooms.publish(name, 'x'.repeat(4000))
  const held = [...guardedOf(alice).memberships?.values() ?? []].flatMap(frames => frames ?? []).reduce((sum, { length }) => sum + length, 0)
  t.ok(held <= 10_000 + 5000, `${held} bytes are held`)
  for (const { answer } of questions.asked) answer(true)
  await set
})

t.test('a message that a listener publishes while another is being handed out comes after it, for everybody', async t => {
  const server = await roomy(t, { rooms: { ...PASS, maxBuffered: 1024 } })
  const before = await server.enterRoom('bob', 'r')
  const leaving = await server.enterRoom('alice', 'r')
  const after = await server.enterRoom('carol', 'r')
  const { rooms } = server.app.hybridAuth
  leaving.there.connection.on('left', () => { rooms.publish('r', 'alice has left').catch(() => {}) })
  // As if it had not read what came before.
  guardedOf(leaving).suspendedBytes = 5000
  t.match(await rooms.publish('r', 'hello'), { delivered: 2 })
  t.same(await heard(before), ['hello', 'alice has left'])
  t.same(await heard(after), ['hello', 'alice has left'])
})

const CHANGES: Array<[string, (server: Roomy, pair: Pair) => Promise<unknown>, string]> = [
  ['a token with fewer permissions', async (_server, { peer }) => {
    peer.say(updateOf(goodToken({ sub: 'alice', permissions: ['other'] })))
    await peer.takeFrame('auth_updated')
  }, 'auth_updated'],
  ['setPermissions()', ({ app }) => app.hybridAuth.setPermissions('alice', ['other']), 'permission_update']
]

t.test('66: fewer permissions shrink at once, rooms included', async t => {
  for (const [what, change, told] of CHANGES) {
    t.test(what, async t => {
      const server = await roomy(t, { rooms: { patterns: { kept: { join: true }, lost: { join: { permissions: ['room'] }, publish: true }, said: { join: true, publish: { permissions: ['room'] } } } } })
      const alice = await server.enterRoom('alice', 'kept', ['room', 'other'])
      for (const room of ['lost', 'said']) await joins(alice.peer, room)
      const bob = await server.enterRoom('bob', 'lost', ['room'])
      await joins(bob.peer, 'said')
      const events: unknown[] = []
      alice.there.connection.on('left', (room, reason) => { events.push([room, reason]) })
      await change(server, alice)
      const { rooms } = server.app.hybridAuth
      for (const room of ['kept', 'lost', 'said']) rooms.publish(room, room).catch(() => {})
      for (const room of ['lost', 'said']) alice.peer.say(say('by alice', room))
      alice.peer.say({ type: 'join', room: 'lost' })
      t.same(await heard(alice), ['kept', 'said'])
      t.same(await heard(bob), ['lost', 'said'])
      t.same(events, [['lost', 'forbidden']])
      t.same(alice.peer.framesOf('left'), [{ type: 'left', room: 'lost', reason: 'forbidden' }])
      t.match(alice.peer.framesOf('error'), [{ code: 'not_joined', room: 'lost' }, { code: 'forbidden', room: 'said' }, { code: 'forbidden', room: 'lost' }])
      t.equal(alice.peer.framesOf(told).length, 1, `one ${told}`)
      t.same([...alice.there.connection.rooms].sort(), ['kept', 'said'])
      t.same(server.told('room_left'), [{ userId: 'alice', room: 'lost', reason: 'forbidden' }])
    })
  }
})

t.test('66: a session that is read again with fewer rights is out of its rooms', async t => {
  const server = await roomy(t, { rooms: BY_PERMISSION })
  const cookie = server.session('s1', { userId: 'alice', permissions: ['room'] })
  const alice = await server.open({ cookie, speaks: true })
  await joins(alice.peer, 'r')
  server.session('s1', { userId: 'alice', permissions: [] })
  const { connection } = alice.there
  guardedOf(alice).readAt -= 60_000
  lookNow(connection)
  t.same(await alice.peer.takeFrame('left'), { type: 'left', room: 'r', reason: 'forbidden' })
  t.match(await server.app.hybridAuth.rooms.publish('r', 'secret'), { delivered: 0 })
  t.same(await heard(alice), [])
  t.same([...connection.rooms], [])
})

t.test('a revocation with time to authenticate asks about the rooms again', async t => {
  let isOpen = true
  const server = await roomy(t, { rooms: { authorize: () => isOpen } })
  const alice = await server.enterRoom('alice', 'r')
  isOpen = false
  await server.app.hybridAuth.revoke({ userId: 'alice' }, { mode: { reauthWithin: 60_000 } })
  t.match(await server.app.hybridAuth.rooms.publish('r', 'secret'), { delivered: 0 })
  t.same(await alice.peer.takeFrame('left'), { type: 'left', room: 'r', reason: 'forbidden' })
  t.same(await heard(alice), [])
})

t.test('while it is not known whether somebody may stay, messages wait, and come in order when he may', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const alice = await server.enterRoom('alice', 'a')
  await joins(alice.peer, 'b')
  const bob = await server.enterRoom('bob', 'a')
  questions.hold()
  let isAcknowledged = false
  const set = server.app.hybridAuth.setPermissions('alice', ['other']).then(() => { isAcknowledged = true })
  await questions.at(1)
  const { rooms } = server.app.hybridAuth
  for (let n = 1; n <= 3; n++) {
    t.match(await rooms.publish('a', n), { published: true })
    await rooms.publish('b', -n)
  }
  t.same(await heard(alice), [], 'nothing comes meanwhile')
  t.same(await heard(bob), [1, 2, 3], 'for others it does')
  t.notOk(isAcknowledged, 'nor is the order acknowledged')
  const [first, second] = [await questions.at(0), await questions.at(1)]
  const [ofA, ofB] = first.room === 'a' ? [first, second] : [second, first]
  ofA.answer(true)
  await turns(20)
  await rooms.publish('a', 4)
  t.same(await heard(alice), [1, 2, 3, 4])
  t.notOk(isAcknowledged, 'one answer is not both')
  ofB.answer(false)
  await set
  await rooms.publish('b', -4)
  t.same(await heard(alice), [1, 2, 3, 4], 'what was held for one who may not stay is gone')
  t.same(alice.peer.framesOf('left'), [{ type: 'left', room: 'b', reason: 'forbidden' }])
  t.same([...alice.there.connection.rooms], ['a'])
  t.same(questions.asked.map(({ permissions }) => permissions), [['other'], ['other']])
})

t.test('a later context has its own answer, whatever the earlier one\'s is and whenever it comes', async t => {
  for (const first of [true, false]) {
    for (const second of [true, false]) {
      t.test(`the earlier is ${first}, the later ${second}`, async t => {
        const questions = new Questions()
        const server = await roomy(t, { rooms: { authorize: questions.authorize } })
        questions.answerAtOnce()
        const alice = await server.enterRoom('alice', 'r')
        questions.hold()
        let acknowledged = 0
        const set = ['one', 'two', 'three'].map(name => server.app.hybridAuth.setPermissions('alice', [name]).then(() => { acknowledged++ }))
        const earlier = await questions.at(0)
        await server.app.hybridAuth.rooms.publish('r', 'held')
        earlier.answer(first)
        const later = await questions.at(1)
        t.same([earlier.permissions, later.permissions], [['one'], ['three']])
        t.same([await heard(alice), acknowledged], [[], 0], 'the earlier answer lets nothing through, and nobody out')
        t.equal(outOf(alice), false)
        await server.app.hybridAuth.rooms.publish('r', 'more')
        later.answer(second)
        await Promise.all(set)
        t.same(await heard(alice), second ? ['held', 'more'] : [])
        t.equal(outOf(alice), !second)
        t.equal(questions.asked.length, 2)
        t.equal(guardedOf(alice).suspendedBytes, 0)
      })
    }
  }
})

t.test('what never answers when it is asked again is a no, in time', async t => {
  let isAnswering = true
  const server = await roomy(t, { rooms: { authorize: () => isAnswering || never() }, auth: { handshakeTimeout: 60 } })
  const alice = await server.enterRoom('alice', 'r')
  isAnswering = false
  await server.app.hybridAuth.setPermissions('alice', ['other'])
  t.ok(outOf(alice))
  t.same(await alice.peer.takeFrame('left'), { type: 'left', room: 'r', reason: 'forbidden' })
})

t.test('one that leaves while it is asked about is out, and what was held for it is gone', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const alice = await server.enterRoom('alice', 'r')
  questions.hold()
  const set = server.app.hybridAuth.setPermissions('alice', ['other'])
  const question = await questions.at(0)
  await server.app.hybridAuth.rooms.publish('r', 'held')
  t.equal(alice.there.connection.leave('r'), true)
  questions.answerAtOnce()
  t.equal(await alice.there.connection.join('r'), true, 'it comes back')
  await server.app.hybridAuth.rooms.publish('r', 'anew')
  question.answer(true)
  await set
  t.same(await heard(alice), ['anew'])
  t.match(remains(hubOf(alice)), { memberships: 1, rooms: 1 })
})

t.test('leave() while a join waits for its verdict is a leave, and a new join is a new question', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  const { there: { connection }, peer } = await server.enter('alice')
  const first = connection.join('r')
  const same = connection.join('r')
  const question = await questions.at(0)
  t.equal(questions.asked.length, 1, 'two joins at once are one question')
  t.equal(connection.leave('r'), true)
  const second = connection.join('r')
  const another = await questions.at(1)
  question.answer(true)
  t.same([await first, await same], [false, false])
  t.same([...connection.rooms], [])
  another.answer(true)
  t.equal(await second, true)
  t.same([...connection.rooms], ['r'])
  await peer.until(() => peer.framesOf('joined').length === 1)
  t.same(peer.framesOf('left'), [], 'who was never in does not leave')
  t.same(server.told('room_joined').length, 1)
})

t.test('a verdict on a join, or on a message, that was reached under another context is reached again', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const bob = await server.enterRoom('bob', 'r')
  const alice = await server.enterRoom('alice', 'r', ['room'])
  questions.hold()
  alice.peer.say(say('by what was lost'))
  const publishing = await questions.at(0)
  t.equal(publishing.action, 'publish')
  const set = server.app.hybridAuth.setPermissions('alice', [])
  const again = await questions.at(1)
  again.answer(true)
  publishing.answer(true)
  const anew = await questions.at(2)
  t.same([anew.action, anew.permissions], ['publish', []])
  anew.answer(false)
  await set
  t.match(await alice.peer.takeFrame('error'), { code: 'forbidden', room: 'r' })
  t.same(await heard(bob), [])
})

t.test('a peer that speaks and closes at once is heard by the others, all of it and in order', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const bob = await server.enterRoom('bob', 'r')
  const alice = await server.enterRoom('alice', 'r')
  questions.hold()
  for (let n = 1; n <= 5; n++) alice.peer.say(say(n))
  alice.peer.socket.close()
  for (let n = 0; n < 5; n++) (await questions.at(n)).answer(true)
  await alice.there.closed
  t.same(await heard(bob), [1, 2, 3, 4, 5])
  t.match(remains(hubOf(bob)), { connections: 1, memberships: 1 })
})

t.test('a join of a peer that has closed meanwhile leaves nothing behind', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  const alice = await server.enter('alice')
  alice.peer.say({ type: 'join', room: 'r' })
  const question = await questions.at(0)
  alice.peer.socket.close()
  await alice.peer.end
  question.answer(true)
  await alice.there.closed
  t.same(remains(hubOf(alice)), NOTHING)
  t.same(server.told('room_joined'), [])
})

t.test('names that are none are refused, and the socket stays', async t => {
  const server = await roomy(t, { rooms: { ...PASS, maxPerConnection: 1000 } })
  const alice = await server.enter('alice')
  const bad = ['', ' ', 'a b', '*', 'room/*', '#', '>', '+ ', 'a?', '[a]', '{a}', 'a"b', "a'b", 'a\\b', 'a\nb', 'a\r\nb', 'a\u0000b', 'a\u007f', '\u200b', '\u202e', '\ufeff', '\u2028', '😀', '<a>', 'a|b', '$', '^', '(', 'x'.repeat(129), 'x'.repeat(10_240)]
  for (const room of [...bad, '\ud800']) {
    const before = alice.peer.framesOf('error').length
    // As JSON writes it, escapes and all.
    alice.peer.say({ type: 'join', room })
    await settled(alice)
    t.match(alice.peer.framesOf('error').slice(before), [{ code: 'bad_room' }], Array.from(room.slice(0, 9), character => character.codePointAt(0)).join(' '))
    t.notOk(JSON.stringify(alice.peer.framesOf('error').at(-1)).length > 300, 'the answer is short')
    t.equal(await server.app.hybridAuth.rooms.join(alice.there.connection, room), false)
  }
  t.same([...alice.there.connection.rooms], [])
  t.equal(server.told('room_refused').length, 2 * bad.length + 2)
  t.ok(server.told('room_refused').every(({ room, reason }) => String(room).length <= 256 && reason === 'bad_room'), 'the audit has a part of it')
  const good = ['__proto__', 'constructor', 'prototype', 'hasOwnProperty', 'toString', 'x'.repeat(128), 'Zürich', 'Zu\u0308rich', '部屋', 'غرفة', '٣', 'a/b/c', '..', '../..', '-', '+', '&', 'a@b.c', 'a:b', 'a=b,c;d~e!f', 'null', '0', '%00', '%zz']
  for (const room of good) {
    await joins(alice.peer, room)
    t.match(await server.app.hybridAuth.rooms.publish(room, room), { delivered: 1 }, room)
  }
  t.same(await heard(alice), good)
  t.same([...alice.there.connection.rooms], good)
  t.same(server.app.hybridAuth.count(), 1)
  t.equal(Object.hasOwn(Object.prototype, 'room'), false)
})

t.test('payloads past the limit, or that cannot be written, are refused; whatever else JSON holds arrives as it was', async t => {
  const server = await roomy(t, { rooms: { ...PASS, maxPayload: 70_000 } })
  const alice = await server.enterRoom('alice', 'r')
  const bob = await server.enterRoom('bob', 'r')
  const refusals: Array<[string, string, string]> = [
    ['a byte too much', JSON.stringify(say('x'.repeat(69_999), 'r')), 'too_large'],
    ['far too much', JSON.stringify(say('x'.repeat(200_000))), 'too_large'],
    ['bytes, not characters', JSON.stringify(say('ü'.repeat(35_000))), 'too_large'],
    ['32 000 brackets', `{"type":"message","room":"r","payload":${'['.repeat(32_000)}${']'.repeat(32_000)}}`, 'malformed'],
    ['16 000 objects', `{"type":"message","room":"r","payload":${'{"":'.repeat(12_000)}1${'}'.repeat(12_000)}}`, 'malformed']
  ]
  for (const [what, text, code] of refusals) {
    const before = alice.peer.framesOf('error').length
    alice.peer.say(text)
    await settled(alice)
    t.match(alice.peer.framesOf('error').slice(before), [{ code }], what)
    t.notOk(alice.peer.hasEnded, what)
  }
  t.same(await heard(bob), [])
  t.same(server.told('room_refused').map(({ reason }) => reason), ['too_large', 'too_large', 'too_large'], 'each is told of')
  const good = [
    '"' + 'x'.repeat(69_998) + '"', 'null', 'false', '0', '""', '[]', '{}', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\u2028"', '{"__proto__":{"isAdmin":true},"constructor":{"prototype":{"isAdmin":true}}}',
    '{"type":"left","room":"r"}', '"\\"}"'
  ]
  const before = bob.peer.texts.length
  for (const payload of good) alice.peer.say(`{"type":"message","room":"r","payload":${payload}}`)
  await settled(alice)
  await settled(bob)
  t.same(bob.peer.texts.slice(before, before + good.length), good.map(payload => `{"type":"message","room":"r","payload":${payload.replace('\\u2028', '\u2028')}}`))
  t.equal(Reflect.get({}, 'isAdmin'), undefined)
  t.equal(bob.peer.framesOf('left').length, 0, 'a payload is no frame of ours')
})

t.test('10 000 joins of one socket are as many rooms as it may be in', async t => {
  const server = await roomy(t)
  const alice = await server.enter('alice')
  const COUNT = 10_000
  for (let i = 0; i < COUNT; i++) alice.peer.say({ type: 'join', room: `room-${i}` })
  await alice.peer.until(() => alice.peer.texts.length >= COUNT)
  t.equal(alice.there.connection.rooms.size, 100)
  t.equal(alice.peer.framesOf('joined').length, 100)
  t.equal(alice.peer.framesOf('error').filter(({ code }) => code === 'too_many_rooms').length, COUNT - 100)
  t.match(remains(hubOf(alice)), { memberships: 100, rooms: 100 })
  alice.peer.say({ type: 'leave', room: 'room-0' })
  alice.peer.say({ type: 'join', room: 'another' })
  await alice.peer.until(() => alice.peer.texts.length >= COUNT + 2)
  t.equal(alice.there.connection.rooms.size, 100, 'who leaves one may join one')
  // The same from the server's side, all at once.
  const bob = await server.enter('bob')
  const isIn = await Promise.all(Array.from({ length: COUNT }, (_, i) => bob.there.connection.join(`other-${i}`)))
  t.equal(isIn.filter(Boolean).length, 100)
  for (const { peer, there } of [alice, bob]) {
    peer.socket.terminate()
    await there.closed
  }
  t.same(remains(hubOf(alice)), NOTHING)
})

t.test('joins that wait for a verdict count as well', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize, maxPerConnection: 3 } })
  const { there: { connection }, peer } = await server.enter('alice')
  const joining = ['a', 'b', 'c', 'd'].map(room => connection.join(room))
  t.equal(await joining[3], false)
  for (const { answer } of questions.asked) answer(true)
  t.same(await Promise.all(joining), [true, true, true, false])
  t.equal(questions.asked.length, 3, 'nobody is asked about what there is no place for')
  peer.socket.close()
})

t.test('frames about rooms count for the rate of the route', async t => {
  const server = await roomy(t, { rule: { rate: { capacity: 3, refillPerSecond: 0.001 } } })
  const alice = await server.enter('alice')
  for (const room of ['a', 'b', 'c', 'd']) alice.peer.say({ type: 'join', room })
  await alice.peer.takeFrame('error')
  t.match(alice.peer.framesOf('error'), [{ code: 'rate_limited' }])
  t.same([...alice.there.connection.rooms], ['a', 'b', 'c'])
})

t.test('who does not read is closed, and no more waits for it than it may', async t => {
  const maxBuffered = 200_000
  const server = await roomy(t, { rooms: { ...PASS, maxBuffered } })
  const slow = await server.enterRoom('alice', 'r')
  const quick = await server.enterRoom('bob', 'r')
  const hub = hubOf(slow)
  slow.peer.socket.pause()
  const { rooms } = server.app.hybridAuth
  const payload = 'x'.repeat(50_000)
  let most = 0
  let sent = 0
  let last = { delivered: 2 }
  while (rooms.count('r') === 2 && sent < 2000) {
    last = await rooms.publish('r', payload)
    sent++
    most = Math.max(most, guardedOf(slow).buffered)
    // A client that reads keeps up.
    await settled(quick)
  }
  t.equal(rooms.count('r'), 1, `closed after ${sent} messages`)
  t.equal(last.delivered, 1, 'what it did not get was not delivered')
  t.ok(most > 0 && most < maxBuffered + 60_000, `at most ${most} bytes waited`)
  t.match(remains(hub), { connections: 1, memberships: 1, rooms: 1 })
  slow.peer.socket.resume()
  const { code, reason } = await slow.peer.end
  t.equal(code, 4008)
  t.match(JSON.parse(reason), { code: 'slow_consumer', action: 'retry' })
  await slow.there.closed
  t.same(slow.there.closes, [4008])
  t.match(server.told('limited'), [{ userId: 'alice', code: 'FST_HYBRID_AUTH_RATE_LIMITED' }])
  t.equal((await heard(quick)).length, sent, 'the other has lost nothing')
})

t.test('one that never reads again is cut off', async t => {
  const server = await roomy(t, { rooms: { ...PASS, maxBuffered: 1024 } })
  const slow = await server.enterRoom('alice', 'r')
  slow.peer.socket.pause()
  const { rooms } = server.app.hybridAuth
  for (let i = 0; i < 2000 && rooms.count('r') === 1; i++) await rooms.publish('r', 'x'.repeat(60_000))
  t.equal(rooms.count('r'), 0)
  await slow.there.closed
  t.same(slow.there.closes, [4008])
  t.same(remains(hubOf(slow)), NOTHING)
})

t.test('who is asked about for too long is closed like one that does not read', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize, maxBuffered: 10_000 } })
  questions.answerAtOnce()
  const alice = await server.enterRoom('alice', 'r')
  questions.hold()
  const set = server.app.hybridAuth.setPermissions('alice', ['other'])
  const question = await questions.at(0)
  const { rooms } = server.app.hybridAuth
  for (let i = 0; i < 20; i++) await rooms.publish('r', 'x'.repeat(1000))
  t.match(await alice.peer.end, { code: 4008 })
  t.same(heardSoFar(alice.peer), [])
  question.answer(true)
  await set
  await alice.there.closed
  t.same(remains(hubOf(alice)), NOTHING)
})

t.test('a member that goes in the middle of a message does not keep it from the others', async t => {
  const server = await roomy(t)
  const pairs: Pair[] = []
  for (const sub of ['a', 'b', 'c', 'd']) pairs.push(await server.enterRoom(sub, 'r'))
  const [first, second, third, fourth] = pairs
  if (first === undefined || second === undefined || third === undefined || fourth === undefined) throw new Error('four there are')
  const { rooms } = server.app.hybridAuth
  // As if it had not read what came before; and who is told of it puts others out.
  guardedOf(second).suspendedBytes = 2_000_000
  second.there.connection.on('left', () => {
    third.there.connection.leave('r')
    first.there.connection.leave('r')
  })
  await rooms.publish('r', 'hello')
  for (const [what, pair] of Object.entries({ first, third, fourth })) t.same(await heard(pair), ['hello'], what)
  t.equal(rooms.count('r'), 1)
})

t.test('what a route\'s function does with rooms while it is asked about one does not hang anybody', async t => {
  const server: Roomy = await roomy(t, {
    rooms: {
      async authorize (auth, room) {
        const [connection] = server.app.hybridAuth.connections({ userId: auth.userId })
        if (room === 'outer') await connection?.join('inner')
        return true
      }
    }
  })
  const { there: { connection } } = await server.enter('alice')
  t.equal(await connection.join('outer'), true)
  t.same([...connection.rooms].sort(), ['inner', 'outer'])
})

t.test('66: of a room that was lost nothing comes that was published after the acknowledgement, with a broadcaster running flat out', async t => {
  for (const [what, wait] of [['a verdict at once', null], ['a verdict that takes its time', 1]] as const) {
    t.test(what, async t => {
      const authorize: NonNullable<RoomOptions['authorize']> = auth => {
        const may = auth.permissions.includes('room')
        return wait === null ? may : turns(Math.floor(Math.random() * 30)).then(() => may)
      }
      const server = await roomy(t, { rooms: { authorize } })
      const { hybridAuth } = server.app
      const pairs: Pair[] = []
      for (let i = 0; i < 30; i++) pairs.push(await server.enterRoom(`user-${i}`, 'r', ['room']))
      const stays = await server.enterRoom('stays', 'r', ['room'])
      let published = 0
      const running = { isOn: true }
      const run = async () => {
        while (running.isOn) {
          for (let i = 0; i < 5; i++) hybridAuth.rooms.publish('r', ++published).catch(() => {})
          await (published % 50 === 0 ? new Promise(resolve => { setImmediate(resolve) }) : turns(1 + published % 7))
        }
      }
      const ended = run()
      const until = await Promise.all(pairs.map(async ({ there }, i) => {
        await new Promise(resolve => { setTimeout(resolve, i * 3 * Math.random()) })
        await hybridAuth.setPermissions(there.connection.context.userId, [])
        return published
      }))
      running.isOn = false
      await ended
      const all = await heard(stays)
      t.same(all, Array.from({ length: published }, (_, i) => i + 1), `who stays hears all ${published}, in order`)
      for (const [i, pair] of pairs.entries()) {
        const got = await heard(pair)
        t.ok(got.length <= Number(until[i]), `${got.length} of ${until[i]} before the acknowledgement`)
        t.same(got, all.slice(0, got.length), 'without a gap')
      }
      t.match(remains(hubOf(stays)), { memberships: 1, rooms: 1 })
    })
  }
})

/** The same numbers for the same seed. */
function dice (seed: number): (sides: number) => number {
  let state = seed
  return sides => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * sides)
  }
}

t.test('whatever happens to members in whatever order, rooms hold those who are in them, and in the end nobody', async t => {
  for (let seed = 1; seed <= 12; seed++) {
    const roll = dice(seed)
    const waiting: Array<() => void> = []
    const channels: string[] = []
    const later = async (): Promise<void> => { await new Promise<void>(resolve => { waiting.push(resolve) }) }
    const server = await roomy(t, {
      rooms: {
        maxPerConnection: 3,
        authorize (auth, room) {
          const may = auth.permissions.includes(room)
          return roll(3) === 0 ? may : later().then(() => may)
        }
      },
      auth: {
        cluster: driverOf(inner => ({
          subscribe (room) {
            channels.push(`+${room}`)
            return roll(2) === 0 ? inner.subscribe(room) : later()
          },
          unsubscribe (room) {
            channels.push(`-${room}`)
            inner.unsubscribe(room)
          }
        }))
      }
    })
    const names = ['a', 'b', 'c', 'd', 'e']
    const { hybridAuth } = server.app
    const pairs: Pair[] = []
    for (let i = 0; i < 5; i++) pairs.push(await server.enter(`user-${i}`, names.filter(() => roll(3) > 0)))
    const [some] = pairs
    if (some === undefined) throw new Error('five there are')
    const hub = hubOf(some)
    const pending: Array<Promise<unknown>> = []
    for (let step = 0; step < 150; step++) {
      const pair = pairs[roll(pairs.length)] ?? some
      const { connection } = pair.there
      const room = names[roll(names.length)] ?? 'a'
      switch (roll(10)) {
        case 0: case 1: case 2: pending.push(connection.join(room)); break
        case 3: connection.leave(room); break
        case 4: pending.push(hybridAuth.setPermissions(connection.context.userId, names.filter(() => roll(3) > 0))); break
        case 5: case 6: case 7: waiting.splice(roll(Math.max(1, waiting.length)), 1)[0]?.(); break
        case 8: pending.push(hybridAuth.rooms.publish(room, step)); break
        default: if (roll(8) === 0) connection.close()
      }
      await turns(roll(6))
    }
    while (waiting.length > 0) {
      for (const go of waiting.splice(0)) go()
      await turns(50)
    }
    await Promise.all(pending)
    const open = pairs.filter(({ there }) => hybridAuth.connections().includes(there.connection))
    for (const { there: { connection } } of open) {
      t.ok([...connection.rooms].every(room => connection.can(room)), `seed ${seed}: everybody may be where he is`)
      t.ok(connection.rooms.size <= 3, `seed ${seed}: in no more rooms than he may`)
    }
    for (const name of names) {
      t.same(hybridAuth.rooms.members(name).map(({ id }) => id).sort(), open.filter(({ there }) => there.connection.rooms.has(name)).map(({ there }) => there.connection.id).sort(), `seed ${seed}: both sides agree on ${name}`)
    }
    t.match(remains(hub), {
      memberships: open.reduce((sum, { there }) => sum + there.connection.rooms.size, 0),
      rooms: new Set(open.flatMap(({ there }) => [...there.connection.rooms])).size
    }, `seed ${seed}: and the numbers do`)
    for (const { there: { connection } } of open) connection.close()
    t.same(remains(hub), NOTHING, `seed ${seed}: nobody`)
    for (const name of names) t.equal(channels.filter(one => one === `+${name}`).length, channels.filter(one => one === `-${name}`).length, `seed ${seed}: no channel of ${name} is left`)
    await server.app.close()
  }
})

t.test('a client that is put out while it waits to get in is told that it is not in', async t => {
  const questions = new Questions()
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  const alice = await server.enter('alice')
  alice.peer.say({ type: 'join', room: 'r' })
  const question = await questions.at(0)
  t.equal(alice.there.connection.leave('r'), true)
  question.answer(true)
  await settled(alice)
  t.equal(alice.peer.framesOf('joined').length, 0)
  t.match(alice.peer.framesOf('error'), [{ room: 'r', action: 'none' }], 'it is answered once')
  t.ok(outOf(alice))
})
