/** Rooms in one process: who gets in, what is heard, and that nothing is left of a socket that ends. */
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import type { HybridAuthOptions, Identity, RoomOptions, RouteAuth, RouteRule } from '../lib/index.js'
import { build, goodToken, JWT } from './helpers.js'
import { dial, eventually, live, lookNow, setClock, type Pair } from './live.js'
import { untyped, updateOf } from './revoking.js'
import { guardedOf, heard, heardSoFar, hubOf, joins, NOTHING, PASS, Questions, remains, roomy, settled, type Roomy } from './rooming.js'
import { deferred, never } from './stores.js'

const INVALID = 'FST_HYBRID_AUTH_INVALID_OPTION'
const say = (payload: unknown, room = 'r', id?: unknown) => ({ type: 'message', room, payload, id })

t.test('options of rooms that cannot be used are named when the plugin is registered', async t => {
  const bad: Array<[path: string, rooms: unknown]> = [
    ['rooms', 1], ['rooms', null], ['rooms', 'r'], ['rooms', true],
    ['rooms.authorise', { authorise: () => true }],
    ['rooms.authorize', { authorize: true }], ['rooms.authorize', { authorize: null }], ['rooms.authorize', { authorize: 'a' }],
    ['rooms.patterns', { patterns: null }], ['rooms.patterns', { patterns: 'a' }], ['rooms.patterns', { patterns: 1 }], ['rooms.patterns', { patterns: () => true }],
    ...[1, null, undefined, '', '/', 'a/', '/a', 'a//b', ':', 'a/:', 'a/:1', 'a/:b-c', 'a b', 'a/*', '*', '#', 'a?', 'a/:b:c', 'a:b', 'a/b:c', '"a"', 'a\n', 'a\u0000', '\ud800', ['a'], { a: true }]
      .map((pattern): [string, unknown] => ['rooms.patterns.1', { patterns: ['fine', pattern] }]),
    ['rooms.patterns.a b', { patterns: { 'a b': true } }],
    ['rooms.patterns.a/:', { patterns: { 'a/:': true } }],
    ['rooms.patterns.a', { patterns: { a: null } }], ['rooms.patterns.a', { patterns: { a: 'yes' } }], ['rooms.patterns.a', { patterns: { a: 1 } }],
    ['rooms.patterns.a', { patterns: { a: undefined } }],
    ['rooms.patterns.a.roles', { patterns: { a: { roles: [] } } }],
    ['rooms.patterns.a.role', { patterns: { a: { role: '' } } }],
    ['rooms.patterns.a.joins', { patterns: { a: { joins: true } } }],
    ['rooms.patterns.a.read', { patterns: { a: { join: true, read: true } } }],
    ['rooms.patterns.a.join', { patterns: { a: { join: 'yes' } } }], ['rooms.patterns.a.join', { patterns: { a: { join: null } } }],
    ['rooms.patterns.a.publish', { patterns: { a: { publish: 1 } } }],
    ['rooms.patterns.a.publish.permission', { patterns: { a: { publish: { permission: 'x' } } } }],
    ['rooms.patterns.a/:tenantId.join.maxAuthAge', { patterns: { 'a/:tenantId': { join: { maxAuthAge: 1 } } } }],
    ...(['maxPerConnection', 'maxNameLength', 'maxPayload', 'maxBuffered'] as const).flatMap(name =>
      [0, -1, 1.5, Number.NaN, Infinity, '10', null, 1e10].map((value): [string, unknown] => [`rooms.${name}`, { [name]: value }]))
  ]
  for (const [path, rooms] of bad) {
    const error = await build(t, { auth: { rooms: untyped(rooms) } }).then(() => null, (error: unknown) => error)
    t.match(error, { code: INVALID, message: `Invalid option ${path}: ` }, `${path} of ${JSON.stringify(rooms)}`)
  }
})

t.test('a route that takes frames about rooms needs somebody who decides about them', async t => {
  const start = (auth: Partial<HybridAuthOptions>, route: unknown, isSocket = true) => build(t, {
    auth,
    routes: app => {
      if (isSocket) app.get('/app', { websocket: true, auth: untyped(route) }, () => {})
      else app.get('/app', { auth: untyped(route) }, () => 'ok')
    }
  }).then(() => 'started', (error: unknown) => error)
  t.match(await start({}, { rooms: true }), { code: INVALID, message: /auth\.rooms/ }, 'no option at all')
  t.match(await start({ rooms: {} }, { rooms: true }), { code: INVALID, message: /auth\.rooms/ })
  t.match(await start({ rooms: { maxPerConnection: 5 } }, { rooms: true }), { code: INVALID, message: /auth\.rooms/ })
  t.match(await start({ rooms: PASS }, { rooms: 'yes' }), { code: INVALID, message: /auth\.rooms/ })
  t.match(await start({ rooms: PASS }, { rooms: true }, false), { code: INVALID, message: /auth\.rooms/ }, 'a route without sockets')
  t.equal(await start({ rooms: PASS }, { rooms: true }), 'started')
  t.equal(await start({ rooms: { patterns: ['a'] } }, { rooms: true }), 'started')
  t.equal(await start({}, { rooms: false }), 'started')
})

const user = ({ sub = '', ...rest }: Record<string, unknown>): Identity => ({ userId: String(sub), ...(rest.user as object | undefined) })
const WITH_USER: Partial<HybridAuthOptions> = { jwt: { ...JWT, user: claims => user({ ...claims }) } }

/** What each name gets, asked by the server for a user who has these members. */
async function admitted (t: Test, rooms: RoomOptions, claims: object, names: string[]): Promise<string[]> {
  const server = await roomy(t, { rooms: { maxPerConnection: 1000, ...rooms }, auth: WITH_USER })
  const { there: { connection } } = await server.open({ token: goodToken({ sub: 'alice', user: claims }) })
  const isIn = await Promise.all(names.map(name => connection.join(name)))
  const joined = names.filter((_, i) => isIn[i])
  t.same([...connection.rooms].sort(), [...joined].sort())
  return joined
}

t.test('a pattern admits who has what its places say, of the context and of the user\'s own members', async t => {
  const patterns = [
    'lobby', 'user/:userId', 'tenant/:tenantId/agents', 'role/:role', 'issuer/:issuer', 'by/:authType', 'team/:team', 'level/:level', 'both/:team/:level',
    'own/:constructor', 'own2/:toString', 'own3/:hasOwnProperty', 'own4/:__proto__', 'flag/:flag', 'list/:permissions', 'thing/:thing', 'none/:none', 'via/:via', 'version/:version'
  ]
  const who = { tenantId: 'acme', role: 'agent', team: 'red', level: 7, flag: true, thing: { a: 1 }, none: null, permissions: ['p'] }
  t.same(await admitted(t, { patterns }, who, [
    'lobby', 'user/alice', 'tenant/acme/agents', 'role/agent', 'by/jwt', 'team/red', 'level/7', 'both/red/7',
    'user/bob', 'user', 'user/', 'user/alice/x', 'User/alice', 'user/ALICE', 'user/:userId', 'tenant/other/agents', 'tenant/acme/users', 'tenant/acme', 'tenant//agents', 'role/admin',
    'issuer/null', 'issuer/', 'issuer/undefined', 'team/blue', 'level/07', 'level/7.0', 'both/7/red', 'lobby/', '/lobby', 'lobb', 'lobbyx', 'Lobby',
    'own/function', 'own2/function', 'own3/function', 'own4/Object', 'own/', 'own/undefined', 'own/null', 'flag/true', 'list/p', 'thing/1', 'none/null', 'none/', 'none/undefined',
    'via/header', 'version/1', 'version/undefined', 'other', ':userId'
  ]), ['lobby', 'user/alice', 'tenant/acme/agents', 'role/agent', 'by/jwt', 'team/red', 'level/7', 'both/red/7'])
  t.same(await admitted(t, { patterns }, {}, ['tenant/null/agents', 'tenant//agents', 'tenant/undefined/agents', 'role/null', 'role/', 'team/', 'team/undefined']), [],
    'what is not there equals nothing')
})

t.test('the first pattern whose form a name has decides, and the function about names of no form', async t => {
  const asked: string[] = []
  const rooms: RoomOptions = {
    patterns: {
      'a/closed': false,
      'a/:role': true,
      'b/rule': { role: 'agent' },
      'b/fails': { role: 'admin' },
      'b/fn': auth => auth.userId === 'alice',
      'b/no': () => false,
      'b/throws': () => { throw new Error('no') },
      'b/late': async () => true,
      'b/rejects': async () => { throw new Error('no') },
      'b/odd': untyped(() => 'yes') as () => boolean,
      'c/join': { join: true },
      'c/publish': { publish: true },
      'c/none': { join: false, publish: false },
      'c/empty': { join: undefined },
      'c/rule': { join: { permissions: ['p'] }, publish: false },
      any: true
    },
    authorize (_auth, room, action) {
      asked.push(`${action} ${room}`)
      return room.startsWith('open')
    }
  }
  t.same(await admitted(t, rooms, { role: 'agent', permissions: ['p'] }, [
    'a/agent', 'a/alice', 'a/closed', 'b/rule', 'b/fails', 'b/fn', 'b/no', 'b/throws', 'b/late', 'b/rejects', 'b/odd',
    'c/join', 'c/publish', 'c/none', 'c/empty', 'c/rule', 'any', 'open/1', 'shut/1', 'a', 'a/b/c'
  ]), ['a/agent', 'b/rule', 'b/fn', 'b/late', 'c/join', 'c/rule', 'any', 'open/1'])
  t.same(asked, ['join open/1', 'join shut/1', 'join a', 'join a/b/c'], 'the function is not asked about what a pattern has closed')
})

t.test('with patterns alone, other names are nobody\'s; without the option, the server joins whom it likes', async t => {
  t.same(await admitted(t, { patterns: ['a'] }, {}, ['a', 'b']), ['a'])
  const server = await live(t)
  const { there: { connection } } = await server.open()
  t.equal(await connection.join('anything'), true)
  t.equal(await server.app.hybridAuth.rooms.join(connection, 'more'), true)
  t.same([...connection.rooms], ['anything', 'more'])
})

t.test('whom the server joins hears what is published, and so it is on until it leaves', async t => {
  const server = await roomy(t)
  const { rooms } = server.app.hybridAuth
  const alice = await server.enter('alice')
  const bob = await server.enter('bob')
  const events: unknown[] = []
  alice.there.connection.on('joined', room => { events.push(['joined', room]) })
  alice.there.connection.on('left', (room, reason) => { events.push(['left', room, reason]) })

  t.same(await rooms.publish('r', 'nobody'), { delivered: 0, published: true })
  t.equal(await rooms.join(alice.there.connection, 'r'), true)
  t.equal(await bob.there.connection.join('r'), true)
  t.equal(await alice.there.connection.join('r'), true, 'twice is once')
  t.equal(rooms.count('r'), 2)
  t.same(rooms.members('r').map(({ id }) => id), [alice, bob].map(({ there }) => there.connection.id))
  t.same(await rooms.presence('r'), { members: 2, nodes: { acknowledged: 1, missing: 0 } })
  t.same(await rooms.presence('empty'), { members: 0, nodes: { acknowledged: 1, missing: 0 } })
  t.same([...alice.there.connection.rooms], ['r'])

  t.same(await rooms.publish('r', { n: 1 }), { delivered: 2, published: true })
  t.same(await rooms.publish('r', null, { except: alice.there.connection }), { delivered: 1, published: true })
  t.same(await rooms.publish('r', 'x', { except: undefined }), { delivered: 2, published: true })
  t.same(await rooms.publish('other', 'x'), { delivered: 0, published: true })
  t.same(await heard(alice), [{ n: 1 }, 'x'])
  t.same(await heard(bob), [{ n: 1 }, null, 'x'])

  t.equal(rooms.leave(alice.there.connection, 'r'), true)
  t.equal(rooms.leave(alice.there.connection, 'r'), false)
  t.equal(alice.there.connection.leave('other'), false)
  t.same(await rooms.publish('r', 'later'), { delivered: 1, published: true })
  t.same(await heard(alice), [{ n: 1 }, 'x'])
  t.same(alice.peer.framesOf('joined'), [{ type: 'joined', room: 'r' }])
  t.same(alice.peer.framesOf('left'), [{ type: 'left', room: 'r', reason: 'removed' }])
  t.same(events, [['joined', 'r'], ['left', 'r', 'removed']])
  t.same(server.told('room_joined'), [{ userId: 'alice', room: 'r' }, { userId: 'bob', room: 'r' }])
  t.same(server.told('room_left'), [{ userId: 'alice', room: 'r', reason: 'removed' }])
  t.same([...alice.there.connection.rooms], [])
  t.same(remains(hubOf(alice)), { connections: 2, memberships: 1, rooms: 1 })
})

t.test('what a caller is given of rooms is his own, and changes nothing', async t => {
  const server = await roomy(t)
  const alice = await server.enterRoom('alice', 'r')
  const { rooms } = server.app.hybridAuth
  rooms.members('r').length = 0
  const set = alice.there.connection.rooms
  if (set instanceof Set) set.clear()
  t.equal(rooms.count('r'), 1)
  t.same([...alice.there.connection.rooms], ['r'])
})

t.test('who is no member hears what is published to a room only if a client of another dialect could too', async t => {
  const server = await roomy(t)
  const plain = await server.enter('alice', [], { speaks: false })
  t.equal(await plain.there.connection.join('r'), true, 'a client without a subprotocol may be joined')
  await server.app.hybridAuth.rooms.publish('r', 'hello')
  t.same(await heard(plain), ['hello'], 'it hears messages')
  t.same(plain.peer.framesOf('joined'), [], 'and no frames that it did not ask for')
  const foreign = await server.enter('bob', [], { protocols: ['graphql-transport-ws'], speaks: false })
  t.equal(await foreign.there.connection.join('r'), false, 'one of another subprotocol may not')
  t.same([...foreign.there.connection.rooms], [])
  foreign.peer.say({ type: 'join', room: 'r' })
  await settled(foreign)
  t.same(foreign.there.received[0], '{"type":"join","room":"r"}', 'its frames are the application\'s')
  t.same(server.app.hybridAuth.rooms.count('r'), 1)
})

t.test('clients join, speak and leave by frames, and do not hear themselves', async t => {
  const server = await roomy(t)
  const alice = await server.enterRoom('alice', 'r')
  const bob = await server.enterRoom('bob', 'r')
  const carol = await server.enterRoom('carol', 'other')
  const events: unknown[] = []
  alice.there.connection.on('left', (room, reason) => { events.push([room, reason]) })
  alice.peer.say(say({ n: 1 }))
  alice.peer.say(say('two', 'r', 'an id'))
  await settled(alice)
  t.same(await heard(bob), [{ n: 1 }, 'two'])
  t.same(bob.peer.framesOf('message'), [{ type: 'message', room: 'r', payload: { n: 1 } }, { type: 'message', room: 'r', payload: 'two' }])
  t.same(await heard(alice), [])
  t.same(await heard(carol), [])
  alice.peer.say({ type: 'join', room: 'r' })
  await settled(alice)
  t.same(alice.peer.framesOf('joined'), [{ type: 'joined', room: 'r' }, { type: 'joined', room: 'r' }], 'who is in is told so again')
  alice.peer.say({ type: 'leave', room: 'r' })
  alice.peer.say(say('too late', 'r', 7))
  alice.peer.say({ type: 'leave', room: 'r' })
  alice.peer.say({ type: 'leave', room: 'never' })
  await settled(alice)
  t.same(alice.peer.framesOf('left'), [{ type: 'left', room: 'r' }])
  t.same(events, [['r', 'left']])
  t.match(alice.peer.framesOf('error'), [
    { code: 'not_joined', room: 'r', id: 7, action: 'none' }, { code: 'not_joined', room: 'r', action: 'none' }, { code: 'not_joined', room: 'never' }
  ])
  t.same(await heard(bob), [{ n: 1 }, 'two'])
  t.same(server.told('room_left'), [{ userId: 'alice', room: 'r', reason: 'left' }])
  t.same(server.told('room_refused'), [{ userId: 'alice', room: 'r', action: 'publish', reason: 'not_joined' }])
  t.ok(alice.there.received.every(text => text.startsWith('marker')), 'the application sees none of it')
})

t.test('frames about rooms are the application\'s on a route without rooms, and as binary', async t => {
  const frames = [{ type: 'join', room: 'r' }, { type: 'leave', room: 'r' }, say('x')].map(one => JSON.stringify(one))
  const rules: Array<[string, RouteAuth]> = [['without', true], ['rooms: false', { rooms: false }]]
  for (const [what, route] of rules) {
    const server = await live(t, { route, auth: { rooms: PASS } })
    const pair = await server.open({ speaks: true })
    for (const one of frames) t.ok(await pair.peer.echoed(one), what)
    t.same(pair.there.received, frames, what)
    t.same([...pair.there.connection.rooms], [], what)
    t.equal(await pair.there.connection.join('r'), true, `${what}: the server joins all the same`)
  }
  const server = await roomy(t)
  const pair = await server.enter('alice')
  for (const one of frames) pair.peer.socket.send(Buffer.from(one), { binary: true })
  await settled(pair)
  t.same(pair.there.received.slice(0, 3), frames, 'binary')
  for (const one of ['{"type":"joined","room":"r"}', '{"room":"r","type":"join"}', ' {"type":"join","room":"r"}', '[{"type":"join"}]', '{"type":"joins"}', '{"type":"Join","room":"r"}', '{"type":"messages"}']) {
    t.ok(await pair.peer.echoed(one), `${one} is not ours`)
  }
  t.same([...pair.there.connection.rooms], [])
  pair.peer.say('{ "type" :\n"join", "room": "r" }')
  await settled(pair)
  t.same([...pair.there.connection.rooms], ['r'], 'space does not matter')
})

t.test('frames that cannot be read are answered, and the socket stays', async t => {
  const server = await roomy(t)
  const alice = await server.enterRoom('alice', 'r')
  const bob = await server.enterRoom('bob', 'r')
  const bad = [
    '{"type":"join"}', '{"type":"join","room":1}', '{"type":"join","room":null}', '{"type":"join","room":["r"]}', '{"type":"join","room":{}}', '{"type":"join"', '{"type":"join","room":"r"}}',
    '{"type":"leave"}', '{"type":"leave","room":true}', '{"type":"message","room":"r"}', '{"type":"message","payload":1}', '{"type":"message","room":{"toString":1},"payload":1}', '{"type":"message",'
  ]
  for (const one of bad) {
    const before = alice.peer.framesOf('error').length
    alice.peer.say(one)
    await settled(alice)
    t.match(alice.peer.framesOf('error').slice(before), [{ code: 'malformed', action: 'none' }], one)
  }
  alice.peer.say('{"type":"join","room":"a","room":"r","type":"message","payload":1}')
  alice.peer.say('{"type":"message","room":"r","payload":1,"id":{"a":1}}')
  alice.peer.say({ ...say(2), id: 'x'.repeat(129) })
  alice.peer.say({ ...say(2, 'not joined'), id: 'x'.repeat(129) })
  await settled(alice)
  t.same(await heard(bob), [1, 1, 2], 'the last of two members counts, as in every JSON')
  t.notMatch(alice.peer.framesOf('error').at(-1), { id: String }, 'an id that is too long does not come back')
})

t.test('a function may take its time; what is no true is a no', async t => {
  const answers: Array<[string, () => unknown, boolean]> = [
    ['true', () => true, true], ['a promise of true', async () => true, true], ['a thenable of true', () => ({ then (done: (value: unknown) => void) { done(true) } }), true],
    ['false', () => false, false], ['a promise of false', async () => false, false], ['undefined', () => {}, false], ['null', () => null, false],
    ['yes', () => 'yes', false], ['1', () => 1, false], ['{}', () => ({}), false], ['a promise of yes', async () => 'yes', false], ['a promise of {}', async () => ({}), false],
    ['it throws', () => { throw new Error('a secret of the application') }, false], ['it throws nothing', () => { throw undefined as unknown as Error }, false],
    ['it rejects', async () => { throw new Error('a secret of the application') }, false], ['a thenable that throws', () => ({ then () { throw new Error('no') } }), false],
    ['a getter that throws', () => ({ get then () { throw new Error('no') } }), false], ['it never settles', never, false]
  ]
  for (const [what, answer, isIn] of answers) {
    for (const rooms of [{ authorize: untyped(answer) as () => boolean }, { patterns: { r: untyped(answer) as () => boolean } }]) {
      const server = await roomy(t, { rooms, auth: { handshakeTimeout: 50 } })
      const pair = await server.enter('alice')
      pair.peer.say({ type: 'join', room: 'r' })
      await settled(pair)
      t.equal(pair.there.connection.rooms.has('r'), isIn, what)
      const frames = [...pair.peer.framesOf('joined'), ...pair.peer.framesOf('error')]
      t.equal(frames.length, 1, `${what}: one answer`)
      t.match(frames, [isIn ? { type: 'joined', room: 'r' } : { type: 'error', code: 'forbidden', room: 'r', action: 'none' }], what)
      t.notMatch(JSON.stringify(frames), /secret/, what)
      t.same(server.told('room_refused'), isIn ? [] : [{ userId: 'alice', room: 'r', action: 'join', reason: 'forbidden' }], what)
      t.equal(await pair.there.connection.join('r'), isIn, `${what}: the server hears the same`)
      t.match(remains(hubOf(pair)), { memberships: Number(isIn), rooms: Number(isIn) }, what)
      t.notOk(pair.peer.hasEnded, what)
    }
  }
})

t.test('joining and publishing are two questions', async t => {
  const asked: unknown[] = []
  const server = await roomy(t, {
    rooms: {
      authorize (auth, room, action) {
        asked.push([auth.userId, room, action])
        return action === 'join' || auth.permissions.includes('speak')
      }
    }
  })
  const alice = await server.enterRoom('alice', 'r', ['speak'])
  const bob = await server.enterRoom('bob', 'r')
  alice.peer.say(say('from alice'))
  bob.peer.say(say('from bob', 'r', 'b1'))
  await settled(bob)
  t.match(bob.peer.framesOf('error'), [{ code: 'forbidden', room: 'r', id: 'b1' }])
  t.same(await heard(alice), [])
  t.same(await heard(bob), ['from alice'])
  t.same(asked, [['alice', 'r', 'join'], ['bob', 'r', 'join'], ['alice', 'r', 'publish'], ['bob', 'r', 'publish']])
  t.same(server.told('room_refused'), [{ userId: 'bob', room: 'r', action: 'publish', reason: 'forbidden' }])
  await server.app.hybridAuth.rooms.publish('r', 'by the server')
  t.equal(asked.length, 4, 'the server is not asked')

  const byPattern = await roomy(t, { rooms: { patterns: { hear: { join: true }, speak: { join: true, publish: { permissions: ['speak'] } } } } })
  const carol = await byPattern.enterRoom('carol', 'hear', ['speak'])
  await joins(carol.peer, 'speak')
  const dave = await byPattern.enterRoom('dave', 'speak')
  await joins(dave.peer, 'hear')
  carol.peer.say(say(1, 'hear'))
  carol.peer.say(say(2, 'speak'))
  await settled(carol)
  dave.peer.say(say(3, 'speak'))
  await settled(dave)
  t.same([await heard(carol), await heard(dave)], [[], [2]])
  t.match(carol.peer.framesOf('error'), [{ code: 'forbidden', room: 'hear' }])
  t.match(dave.peer.framesOf('error'), [{ code: 'forbidden', room: 'speak' }])
})

t.test('frames of rooms and of the application stay in the order they came in, however long a verdict takes', async t => {
  const questions = new Questions()
  const order: string[] = []
  const server = await roomy(t, { rooms: { authorize: questions.authorize } })
  questions.answerAtOnce()
  const bob = await server.enterRoom('bob', 'r')
  questions.hold()
  const alice = await server.enter('alice')
  alice.there.socket.on('message', (data: Buffer) => { order.push(data.toString()) })
  alice.there.connection.on('joined', () => { order.push('joined') })
  alice.there.connection.on('left', () => { order.push('left') })
  for (const frame of ['a', JSON.stringify({ type: 'join', room: 'r' }), 'b', JSON.stringify(say(1)), 'c', JSON.stringify(say(2)), JSON.stringify({ type: 'leave', room: 'r' }), 'd']) alice.peer.say(frame)
  const join = await questions.at(0)
  t.same(order, ['a'])
  join.answer(true)
  const first = await questions.at(1)
  t.same([first.action, order], ['publish', ['a', 'joined', 'b']])
  first.answer(true)
  const second = await questions.at(2)
  t.same(await heard(bob), [1])
  t.same(order, ['a', 'joined', 'b', 'c'])
  second.answer(true)
  await eventually('all of it', () => order.includes('d'))
  t.same(order, ['a', 'joined', 'b', 'c', 'left', 'd'])
  t.same(await heard(bob), [1, 2])
})

t.test('frames about rooms need no listener of the application', async t => {
  const server = await roomy(t, { handler: () => {} })
  const alice = await server.enterRoom('alice', 'r')
  const bob = await server.enterRoom('bob', 'r')
  alice.peer.say(say('hello'))
  await bob.peer.until(() => bob.peer.framesOf('message').length === 1)
  t.same(heardSoFar(bob.peer), ['hello'])
  alice.peer.say({ type: 'leave', room: 'r' })
  t.same(await alice.peer.takeFrame('left'), { type: 'left', room: 'r' })
})

t.test('neither the rules for messages nor the function of the route are asked about frames of rooms', async t => {
  const asked: string[] = []
  const server = await roomy(t, {
    rule: {
      messages: { hello: {} },
      authorize (_auth, message) {
        asked.push(message.text())
        return true
      }
    }
  })
  const alice = await server.enter('alice')
  const bob = await server.enter('bob')
  for (const { peer } of [alice, bob]) {
    peer.say({ type: 'join', room: 'r' })
    await peer.takeFrame('joined')
  }
  alice.peer.say(say('x'))
  await bob.peer.takeFrame('message')
  alice.peer.say({ type: 'hello' })
  await alice.peer.takeFrame('hello')
  t.same(asked, ['{"type":"hello"}'])
})

t.test('frames about rooms that come before the first message are done after it, in their order', async t => {
  const server = await roomy(t, { rule: { firstMessage: true } })
  const bob = await server.enterRoom('bob', 'r')
  const arrived = deferred<string[]>()
  const socket = new WebSocket(`ws://${server.host}/app`)
  t.teardown(() => { socket.terminate() })
  const texts: string[] = []
  socket.on('message', (data: Buffer) => {
    texts.push(data.toString())
    if (data.toString() === 'last') arrived.resolve(texts)
  })
  socket.on('open', () => {
    socket.send(JSON.stringify({ type: 'auth', token: goodToken({ sub: 'alice' }) }))
    for (const one of [{ type: 'join', room: 'r' }, say('early'), { type: 'leave', room: 'other' }]) socket.send(JSON.stringify(one))
    socket.send('last')
  })
  const all = await arrived.promise
  t.match(all.slice(0, -1).map(text => JSON.parse(text) as unknown), [{ type: 'auth_success' }, { type: 'joined', room: 'r' }, { type: 'error', code: 'not_joined', room: 'other' }])
  t.same(await heard(bob), ['early'])
})

t.test('what a caller gets wrong is said to him', async t => {
  const server = await roomy(t, { rooms: { ...PASS, maxPayload: 100, maxNameLength: 10 } })
  const { rooms } = server.app.hybridAuth
  const alice = await server.enterRoom('alice', 'r')
  for (const name of ['', ' ', 'a b', '*', 'a*', '#', '>', 'a\n', '\u0000', '\ud800', 'x'.repeat(11), undefined, null, 1, {}, ['r']]) {
    const given = untyped(name)
    await t.rejects(rooms.publish(given, 1), { code: INVALID, message: /room/ }, `publish to ${JSON.stringify(name)}`)
    await t.rejects(rooms.presence(given), { code: INVALID, message: /room/ }, `presence of ${JSON.stringify(name)}`)
    t.equal(await rooms.join(alice.there.connection, given).catch(String), false, `join ${JSON.stringify(name)}`)
    t.equal(rooms.leave(alice.there.connection, given), false)
    t.same([rooms.members(given), rooms.count(given)], [[], 0])
  }
  await t.rejects(rooms.publish('r', 'x'.repeat(99)), { code: INVALID, message: /payload/ }, 'a byte too much, with its quotes')
  await t.rejects(rooms.publish('r', 'ü'.repeat(50)), { code: INVALID, message: /payload/ }, 'bytes count, not characters')
  t.match(await rooms.publish('r', 'x'.repeat(98)), { delivered: 1 })
  for (const payload of [undefined, () => 1, Symbol('s'), 1n]) await t.rejects(rooms.publish('r', payload), { name: 'TypeError' }, String(payload))
  const cycle: unknown[] = []
  cycle.push(cycle)
  await t.rejects(rooms.publish('r', cycle), { name: 'TypeError' })
  await t.rejects(rooms.publish('r', { toJSON () { throw new RangeError('mine') } }), new RangeError('mine'))
  for (const other of [undefined, null, {}, alice.there.socket, 'id']) {
    await t.rejects(async () => rooms.join(untyped(other), 'r'), { code: INVALID, message: /connection/ })
    t.throws(() => rooms.leave(untyped(other), 'r'), { code: INVALID, message: /connection/ })
    if (other !== undefined) await t.rejects(rooms.publish('r', 1, { except: untyped(other) }), { code: INVALID, message: /connection/ })
  }
  t.same(await heard(alice), ['x'.repeat(98)])
})

t.test('a message is written once, for however many members', async t => {
  const server = await roomy(t)
  for (let i = 0; i < 5; i++) await server.enterRoom(`user-${i}`, 'r')
  let written = 0
  t.match(await server.app.hybridAuth.rooms.publish('r', { toJSON () { return ++written } }), { delivered: 5 })
  t.equal(written, 1)
  const pair = await server.enterRoom('last', 'r')
  const counted = { toJSON () { return ++written } }
  await server.app.hybridAuth.rooms.publish('r', [counted])
  t.same([written, await heard(pair)], [2, [[2]]])
})

t.test('the numbers tell of rooms', async t => {
  const server = await roomy(t, { rooms: { authorize: (_auth, room) => room !== 'shut', maxPerConnection: 2 } })
  const registry = new Registry()
  server.app.hybridAuth.metrics(registry)
  const read = async () => {
    const all = await registry.getMetricsAsJSON()
    return Object.fromEntries(all.filter(({ name }) => name.startsWith('hybrid_auth_room')).flatMap(metric =>
      ('values' in metric ? metric.values : []).map(({ value, labels }) => [[metric.name.slice('hybrid_auth_'.length), ...Object.values(labels)].join(' '), value])))
  }
  const alice = await server.enterRoom('alice', 'a')
  const bob = await server.enterRoom('bob', 'a')
  await joins(bob.peer, 'b')
  for (const room of ['shut', 'c', '*']) alice.peer.say({ type: 'join', room })
  for (const room of ['d', 'e']) bob.peer.say({ type: 'join', room })
  alice.peer.say(say(1, 'a'))
  alice.peer.say(say(1, 'b'))
  alice.peer.say(say('x'.repeat(66_000), 'a'))
  await settled(alice)
  await settled(bob)
  await server.app.hybridAuth.rooms.publish('a', 1)
  t.same(await read(), {
    rooms: 3, room_members: 4,
    'rooms_refused_total forbidden': 1, 'rooms_refused_total bad_room': 1, 'rooms_refused_total too_many_rooms': 2, 'rooms_refused_total not_joined': 1, 'rooms_refused_total too_large': 1,
    'room_messages_total published': 2, 'room_messages_total heard': 0, 'room_messages_total delivered': 3, 'room_messages_total lost': 0
  })
  for (const { peer, there } of [alice, bob]) {
    peer.socket.close()
    await there.closed
  }
  t.match(await read(), { rooms: 0, room_members: 0 })
})

let isSourceDown = false

const ENDS: Array<[string, (server: Roomy, pair: Pair, t: Test) => unknown, { auth?: Partial<HybridAuthOptions>, rule?: RouteRule, /** Connections that are there afterwards. */ leaves?: number }?]> = [
  ['the peer closes', (_server, { peer }) => { peer.socket.close() }],
  ['the peer closes with a code', (_server, { peer }) => { peer.socket.close(4999, 'bye') }],
  ['the peer is cut off', (_server, { peer }) => { peer.socket.terminate() }],
  ['the network resets it', (_server, { peer }) => {
    const net: unknown = Reflect.get(peer.socket, '_socket')
    if (typeof net === 'object' && net !== null && 'resetAndDestroy' in net && typeof net.resetAndDestroy === 'function') Reflect.apply(net.resetAndDestroy, net, [])
  }],
  ['the application closes the connection', (_server, { there }) => { there.connection.close() }],
  ['the application closes the socket', (_server, { there }) => { there.socket.close(4000) }],
  ['the application cuts off the socket', (_server, { there }) => { there.socket.terminate() }],
  ['it is revoked', ({ app }) => app.hybridAuth.revoke({ userId: 'alice' })],
  ['it is disconnected', ({ app }) => app.hybridAuth.disconnect({ userId: 'alice' })],
  ['its credential expires', (_server, { there }, t) => {
    setClock(t).move(3_600_000)
    lookNow(there.connection)
  }],
  ['it is too old', (_server, { there }, t) => {
    setClock(t).move(2000)
    lookNow(there.connection)
  }, { auth: { maxConnectionAge: 1000 } }],
  ['it is idle', (_server, { there }, t) => {
    setClock(t).move(2000)
    lookNow(there.connection)
  }, { auth: { idleTimeout: 1000 } }],
  ['the route\'s rule no longer holds', ({ app }) => app.hybridAuth.setPermissions('alice', [])],
  ['it is somebody else all of a sudden', (_server, { peer }) => { peer.say(updateOf(goodToken({ sub: 'bob', permissions: ['live'] }))) }],
  ['another takes its place', async ({ open }) => { await open({ token: goodToken({ sub: 'alice', permissions: ['live'] }) }) },
    { auth: { limits: { connections: { perUser: 1, policy: 'evict-oldest' } } }, leaves: 1 }],
  ['what it may do cannot be known any more', ({ app }) => {
    isSourceDown = true
    return app.hybridAuth.refreshPermissions('alice')
  }, {
    auth: {
      permissions () {
        if (isSourceDown) throw new Error('the source is down')
        return ['live']
      }
    }
  }],
  ['it sends too much', (_server, { peer }) => { for (let i = 0; i < 200; i++) peer.say('x') }, { rule: { rate: { capacity: 20, refillPerSecond: 0.001 } } }],
  ['it says what closes it', (_server, { peer }) => { peer.say('x') }, { rule: { authorize: () => false, onRefused: 'close' } }],
  ['its refreshes fail', (_server, { peer }) => { for (let i = 0; i < 3; i++) peer.say(updateOf('no token')) }],
  ['the application closes', ({ app }) => app.close()],
  ['it sends what is no frame', (_server, { peer }) => {
    const net: unknown = Reflect.get(peer.socket, '_socket')
    if (typeof net === 'object' && net !== null && 'write' in net && typeof net.write === 'function') Reflect.apply(net.write, net, [Buffer.from([0xff, 0xff, 0xff, 0xff])])
  }]
]

t.test('of a socket that ends in any way, no membership is left', async t => {
  for (const [what, end, { auth = {}, rule = {}, leaves = 0 } = {}] of ENDS) {
    t.test(what, async t => {
      const server = await roomy(t, { auth, rule: { permissions: ['live'], ...rule } })
      const pair = await server.enterRoom('alice', 'r', ['live'])
      await joins(pair.peer, 's')
      const hub = hubOf(pair)
      const left: string[] = []
      pair.there.connection.on('left', (room, reason) => { left.push(`${room} ${reason}`) })
      t.match(remains(hub), { connections: 1, memberships: 2, rooms: 2 })
      const ending = end(server, pair, t)
      await pair.there.closed
      await ending
      t.same(remains(hub), { ...NOTHING, connections: leaves })
      t.same(left, ['r closed', 's closed'], 'the listener is told once of each')
      t.same([...pair.there.connection.rooms], [])
      t.same(server.told('room_left'), [], 'the audit is told of the socket alone')
      t.equal(await pair.there.connection.join('t'), false, 'and it does not come back')
      t.equal(pair.there.connection.leave('r'), false)
      t.same(remains(hub), { ...NOTHING, connections: leaves })
    })
  }
})

t.test('a listener that throws, joins or leaves while its connection ends changes nothing', async t => {
  const server = await roomy(t)
  const pair = await server.enterRoom('alice', 'a')
  await joins(pair.peer, 'b')
  const hub = hubOf(pair)
  pair.there.connection.on('left', room => {
    pair.there.connection.leave('b')
    pair.there.connection.join('c').catch(() => {})
    throw new Error(`cannot do without ${room}`)
  })
  pair.there.connection.close()
  await pair.there.closed
  t.same(remains(hub), NOTHING)
})

t.test('one whose credential has ended hears nothing before the wheel has come round, and is in no room after it', async t => {
  const server = await roomy(t, { auth: { expiryGrace: 0 } })
  const alice = await server.enterRoom('alice', 'r')
  const clock = setClock(t)
  clock.move(3_600_000)
  t.match(await server.app.hybridAuth.rooms.publish('r', 'late'), { delivered: 0 })
  lookNow(alice.there.connection)
  t.equal(server.app.hybridAuth.rooms.count('r'), 0)
  t.match(await alice.peer.end, { code: 4002 })
  t.same(heardSoFar(alice.peer), [])
  t.same(remains(hubOf(alice)), NOTHING)
})

t.test('who dials with a token of its own is a member of its own', async t => {
  const server = await roomy(t)
  const first = await server.enterRoom('alice', 'r')
  const second = await server.enterRoom('alice', 'r')
  first.peer.say(say('to my other window'))
  await settled(first)
  t.same(await heard(second), ['to my other window'])
  t.same(await heard(first), [])
  second.peer.socket.close()
  await second.there.closed
  t.equal(server.app.hybridAuth.rooms.count('r'), 1)
  const open = await dial(t, server.host, { path: '/live' })
  open.say({ type: 'join', room: 'r' })
  await open.echoed('{"type":"join","room":"r"}')
  t.equal(server.app.hybridAuth.rooms.count('r'), 1)
  t.equal(guardedOf(first).memberships?.size, 1)
})
