/** Attacks on rooms, live permissions, rules by message type and step-up. */
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { WebSocket } from 'ws'
import type { AuditEvent, AuthContext, Connection } from '../lib/index.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { askAgain } from '../lib/connection/watch.js'
import { goodToken, keepLines, SECRET, SESSION as SESSION_USER } from './helpers.js'
import { redisNode } from './cluster-suite.js'
import { connect, needsRedis, startRedis } from './redis.js'
import { eventually, live, setClock, type Pair, type Peer, lookNow } from './live.js'
import { deferred, logTo, MapStore, type Deferred } from './stores.js'

const ALL = { authorize: () => true }

/** Everything the peer has said before was dealt with. */
async function settled (peer: Peer): Promise<void> {
  await peer.echoed(`settled ${Math.random()}`)
}

t.test('rooms without a single pattern are nobody\'s', async t => {
  for (const patterns of [[], {}, new Map([['a', true]]) as object as Record<string, boolean>]) {
    await t.rejects(live(t, { auth: { rooms: { patterns } }, route: { rooms: true } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
  }
})

t.test('what narrows whose permissions are set cannot name another user or other permissions', async t => {
  const { open, app } = await live(t)
  const { there: bob } = await open({ token: goodToken({ sub: 'bob' }) })
  const scope: object = { userId: 'bob', permissions: ['admin'] }
  await app.hybridAuth.setPermissions('alice', [], scope).catch(() => {})
  t.equal(bob.connection.can('admin'), false)
})

t.test('a message that is binary is held to the rule of its type, whatever becomes of other types', async t => {
  const { open } = await live(t, { route: { messages: { property_delete: { role: 'admin' }, default: 'allow' } } })
  const { peer, there } = await open({ speaks: true })
  peer.socket.send(Buffer.from('{"type":"property_delete"}'), { binary: true })
  await settled(peer)
  t.notOk(there.received.includes('{"type":"property_delete"}'))
})

t.test('nobody sends no message that a rule keeps for somebody', async t => {
  const received: string[] = []
  const { host } = await live(t, {
    routes (app) {
      app.get('/optional', { websocket: true, auth: { optional: true, messages: { property_delete: { role: 'admin' } } } }, socket => {
        socket.on('message', (data: Buffer) => { received.push(data.toString()); socket.send('heard') })
      })
    }
  })
  const socket = new WebSocket(`ws://${host}/optional`)
  t.teardown(() => { socket.terminate() })
  await new Promise(resolve => { socket.on('open', resolve) })
  socket.send('{"type":"property_delete"}')
  await sleep(200)
  t.same(received, [])
})

t.test('83: an answer of authorize that looks like a step-up is a refusal', async t => {
  let asked = 0
  const { open } = await live(t, { route: { authorize: () => { asked++; return asked === 1 ? JSON.parse('{"maxAuthAge":1}') as boolean : true } } })
  const { peer, there } = await open({ speaks: true })
  const faults: unknown[] = []
  const onFault = (error: unknown) => { faults.push(error) }
  process.prependListener('uncaughtException', onFault)
  t.teardown(() => { process.off('uncaughtException', onFault) })
  peer.say('one')
  await sleep(100)
  t.same(faults, [])
  t.same(there.received, [])
  t.equal(peer.hasEnded, false)
})

t.test('permission lost between the verdict of a join and its effect: nobody is in', async t => {
  for (let ticks = 0; ticks < 24; ticks++) {
    const answers: Array<Deferred<boolean>> = []
    const { open, app } = await live(t, {
      auth: {
        rooms: {
          authorize: (auth: AuthContext) => {
            if (!auth.permissions.includes('r')) return false
            const answer = deferred<boolean>()
            answers.push(answer)
            return answer.promise
          }
        }
      }
    })
    const { there } = await open({ token: goodToken({ permissions: ['r'] }) })
    const joined = there.connection.join('r')
    answers[0]?.resolve(true)
    for (let i = 0; i < ticks; i++) await Promise.resolve()
    const set = app.hybridAuth.setPermissions('alice', [])
    await Promise.all([joined, set])
    await immediate()
    t.equal(there.connection.rooms.size, 0, `after ${ticks} ticks`)
    await app.close()
  }
})

t.test('who left while the join was being answered is not in', async t => {
  for (let ticks = 0; ticks < 12; ticks++) {
    const answer = deferred<boolean>()
    const { open, app } = await live(t, { auth: { rooms: { authorize: () => answer.promise } } })
    const { there } = await open()
    const joined = there.connection.join('r')
    answer.resolve(true)
    for (let i = 0; i < ticks; i++) await Promise.resolve()
    const wasLeft = there.connection.leave('r')
    await joined
    t.notOk(wasLeft && there.connection.rooms.size > 0, `after ${ticks} ticks`)
    t.notOk(app.hybridAuth.rooms.count('r') > 0 && wasLeft)
    await app.close()
  }
})

t.test('a rule that falls is not forgotten because the session was read again meanwhile', async t => {
  const answers: Array<Deferred<boolean>> = []
  const { open, login, app } = await live(t, {
    auth: { session: { ...SESSION_USER, revalidate: 1000 } },
    route: {
      check: auth => {
        if (auth.permissions.includes('r')) return true
        const answer = deferred<boolean>()
        answers.push(answer)
        return answer.promise
      }
    }
  })
  const { peer, there } = await open({ cookie: await login({ userId: 'bob', permissions: ['r'] }) })
  const set = app.hybridAuth.setPermissions('bob', [])
  await eventually('the rule is asked', () => answers.length === 1)
  if (!(there.connection instanceof GuardedConnection)) throw new Error('no')
  const before = there.connection.context
  await askAgain(there.connection)
  t.not(there.connection.context, before, 'the session was read again')
  t.equal(there.connection.context.version, before.version)
  t.same(there.connection.context.permissions, [])
  answers[0]?.resolve(false)
  await set
  await sleep(50)
  t.equal(peer.hasEnded, true)
})

t.test('a room is not silent for ever because the session was read again while it was asked about', async t => {
  const answers: Array<Deferred<boolean>> = []
  const { open, login, app } = await live(t, {
    auth: {
      rooms: {
        authorize: auth => {
          if (auth.permissions.includes('r')) return true
          const answer = deferred<boolean>()
          answers.push(answer)
          return answer.promise
        }
      }
    }
  })
  const { peer, there } = await open({ cookie: await login({ userId: 'bob', permissions: ['r'] }) })
  t.equal(await there.connection.join('r'), true)
  const set = app.hybridAuth.setPermissions('bob', [])
  await eventually('the room is asked about', () => answers.length === 1)
  if (!(there.connection instanceof GuardedConnection)) throw new Error('no')
  await askAgain(there.connection)
  answers[0]?.resolve(true)
  await set
  await app.hybridAuth.rooms.publish('r', 1)
  await settled(peer)
  t.equal(peer.framesOf('message').length, 1)
})

t.test('a join waits until it is known what its sender may do now', async t => {
  const asked: Array<Deferred<string[]>> = []
  const limits = deferred<null>()
  const { app, host } = await live(t, {
    auth: {
      permissions: () => { const answer = deferred<string[]>(); asked.push(answer); return answer.promise },
      rooms: { authorize: auth => auth.permissions.includes('r') }
    },
    route: { rooms: true, check: () => limits.promise.then(() => true) }
  })
  const socket = new WebSocket(`ws://${host}/app`, ['hybrid-auth.v1'], { headers: { authorization: `Bearer ${goodToken()}` } })
  t.teardown(() => { socket.terminate() })
  const texts: string[] = []
  socket.on('message', (data: Buffer) => { texts.push(data.toString()) })
  await eventually('asked', () => asked.length === 1)
  asked[0]?.resolve(['r'])
  await sleep(20)
  await app.hybridAuth.refreshPermissions('alice')
  limits.resolve(null)
  await new Promise(resolve => { socket.on('open', resolve) })
  socket.send('{"type":"join","room":"r"}')
  await eventually('asked again', () => asked.length === 2)
  await sleep(100)
  t.equal(app.hybridAuth.rooms.count('r'), 0)
  await app.hybridAuth.rooms.publish('r', 'secret')
  asked[1]?.resolve([])
  await sleep(100)
  t.notOk(texts.some(text => text.includes('secret')))
})

t.test('what the session\'s store was slow about does not bring back what the source took', async t => {
  let granted = ['r']
  const touched = deferred<null>()
  const store = new MapStore()
  let isSlow = false
  const slow = Object.assign(store, {
    touch (_id: string, _session: unknown, callback: () => void) { if (isSlow) touched.promise.then(() => { callback() }, () => {}); else callback() }
  })
  const { open, login, app } = await live(t, {
    session: { store: slow },
    auth: { session: { ...SESSION_USER, touch: true }, permissions: () => granted }
  })
  const { peer, there } = await open({ cookie: await login({ userId: 'bob' }) })
  await settled(peer)
  if (!(there.connection instanceof GuardedConnection)) throw new Error('no')
  isSlow = true
  const reading = askAgain(there.connection)
  await sleep(30)
  granted = []
  await app.hybridAuth.refreshPermissions('bob')
  t.same(there.connection.context.permissions, [])
  touched.resolve(null)
  await reading
  t.same(there.connection.context.permissions, [])
})

t.test('a token that was verified before its user lost something does not bring it back', async t => {
  for (let ticks = 0; ticks < 16; ticks++) {
    let granted = ['r']
    const asked: Array<Deferred<string[]>> = []
    let isSlow = false
    const { open, app } = await live(t, {
      auth: {
        permissions: () => {
          if (!isSlow) return granted
          const answer = deferred<string[]>()
          asked.push(answer)
          return answer.promise
        }
      }
    })
    const { peer, there } = await open({ speaks: true, token: goodToken({ role: 'a' }) })
    isSlow = true
    peer.say({ type: 'auth_update', token: goodToken({ role: 'b' }) })
    await eventually('asked', () => asked.length === 1)
    isSlow = false
    asked[0]?.resolve(['r'])
    for (let i = 0; i < ticks; i++) await Promise.resolve()
    granted = []
    await app.hybridAuth.refreshPermissions('alice')
    await sleep(10)
    t.same(there.connection.context.permissions, [], `after ${ticks} ticks`)
    await app.close()
  }
})

t.test('a socket that was held back while it was asked can bring the credential that is then wanted', async t => {
  const answer = deferred<boolean>()
  const { open } = await live(t, { route: { messages: { pay: { acr: 'high', check: () => answer.promise }, default: 'allow' } } })
  const { peer, there } = await open({ speaks: true })
  peer.say({ type: 'pay' })
  for (let i = 0; i < 40; i++) peer.say(`later ${i}`)
  await sleep(100)
  answer.resolve(true)
  const error = await peer.takeFrame('error')
  t.equal(error.code, 'insufficient_user_authentication')
  peer.say({ type: 'auth_update', token: goodToken({ acr: 'high' }) })
  await sleep(300)
  t.equal(peer.framesOf('auth_updated').length, 1)
  t.ok(there.received.length > 0)
})

t.test('what waited for a verdict is not passed on to who has ended', async t => {
  const clock = setClock(t)
  const answer = deferred<boolean>()
  const { open, app } = await live(t, { auth: { expiryGrace: 0, rooms: { authorize: auth => auth.permissions.includes('r') ? true : answer.promise } } })
  const { peer, there } = await open({ token: goodToken({ permissions: ['r'] }) })
  await there.connection.join('r')
  const set = app.hybridAuth.setPermissions('alice', [])
  await sleep(20)
  await app.hybridAuth.rooms.publish('r', 'secret')
  clock.move(3_600_000)
  answer.resolve(true)
  await set
  await sleep(100)
  t.notOk(peer.texts.some(text => text.includes('secret')))
})

t.test('answers that are not read are bounded as well', async t => {
  const { open } = await live(t, { auth: { rooms: { ...ALL, maxBuffered: 65_536 } }, route: { rooms: true } })
  const { peer, there } = await open({ speaks: true })
  peer.socket.pause()
  let most = 0
  const room = 'r'.repeat(100)
  for (let i = 0; i < 60 && !peer.hasEnded && there.closes.length === 0 && peer.socket.readyState === 1; i++) {
    for (let n = 0; n < 1000; n++) peer.say({ type: 'leave', room })
    await sleep(10)
    most = Math.max(most, there.socket.bufferedAmount)
  }
  t.comment(`most: ${most}`)
  t.ok(most < 1_000_000, `${most} bytes wait`)
})

t.test('a message that had to be judged again is published once', async t => {
  const answers: Array<Deferred<boolean>> = []
  const { open, app } = await live(t, {
    auth: {
      handshakeTimeout: 400, rooms: {
        authorize: (_auth, _room, action) => {
          if (action === 'join') return true
          const answer = deferred<boolean>()
          answers.push(answer)
          return answer.promise
        }
      }
    },
    route: { rooms: true }
  })
  const { there: alice, peer } = await open({ speaks: true })
  const { there: bob, peer: bobs } = await open({ speaks: true, token: goodToken({ sub: 'bob' }) })
  await Promise.all([alice.connection.join('r'), bob.connection.join('r')])
  peer.say({ type: 'message', room: 'r', payload: 'late', id: 1 })
  await eventually('asked', () => answers.length === 1)
  await sleep(300)
  await app.hybridAuth.setPermissions('alice', ['x'])
  answers[0]?.resolve(true)
  await eventually('asked again', () => answers.length === 2)
  await sleep(200)
  t.comment(`asked ${answers.length} times, errors ${JSON.stringify(peer.framesOf('error'))}`)
  for (const answer of answers) answer.resolve(true)
  await sleep(100)
  t.ok(bobs.framesOf('message').length <= 1, String(bobs.framesOf('message').length))
})

t.test('what a peer said before it closed is judged by what it may do now', async t => {
  const first = deferred<boolean>()
  let asked = 0
  const { open, app } = await live(t, {
    auth: { rooms: { authorize: auth => auth.permissions.includes('r') } },
    route: { rooms: true, authorize: () => { asked++; return first.promise } }
  })
  const { there: alice, peer } = await open({ speaks: true, token: goodToken({ permissions: ['r'] }) })
  const { there: bob, peer: bobs } = await open({ speaks: true, token: goodToken({ sub: 'bob', permissions: ['r'] }) })
  await Promise.all([alice.connection.join('r'), bob.connection.join('r')])
  peer.say('slow')
  peer.say({ type: 'message', room: 'r', payload: 'late' })
  await eventually('asked', () => asked === 1)
  peer.socket.close()
  await sleep(50)
  await app.hybridAuth.setPermissions('alice', [])
  first.resolve(true)
  await alice.closed
  await sleep(50)
  t.equal(bobs.framesOf('message').length, 0)
})

t.test('a socket that the application has closed says nothing more in a room', async t => {
  const { open } = await live(t, { auth: { rooms: ALL }, route: { rooms: true } })
  const { there: bob, peer: bobs } = await open({ speaks: true, token: goodToken({ sub: 'bob' }) })
  const { there: alice, peer } = await open({ speaks: true })
  await Promise.all([alice.connection.join('r'), bob.connection.join('r')])
  await settled(peer)
  // Said before the peer has read that it is closed.
  alice.socket.close(1008)
  peer.say({ type: 'message', room: 'r', payload: 'late' })
  await alice.closed
  await settled(bobs)
  t.equal(bobs.framesOf('message').length, 0)
})

t.test('the same credential again and again does not ask about rooms without end', async t => {
  let waiting = 0
  let most = 0
  let isSlow = false
  const { open } = await live(t, {
    auth: {
      rooms: {
        authorize: async () => {
          if (!isSlow) return true
          most = Math.max(most, ++waiting)
          await sleep(500)
          waiting--
          return true
        }
      }
    }
  })
  const token = goodToken()
  const { there, peer } = await open({ speaks: true, token })
  for (let i = 0; i < 20; i++) await there.connection.join(`r${i}`)
  isSlow = true
  for (let i = 0; i < 100; i++) {
    peer.say({ type: 'auth_update', token })
  }
  await settled(peer)
  t.ok(most <= 200, `${most} questions at once`)
})

t.test('what is kept for one member is bounded for all of its rooms together', async t => {
  const answer = deferred<boolean>()
  const { open, app } = await live(t, { auth: { rooms: { maxBuffered: 4096, authorize: auth => auth.permissions.includes('r') ? true : answer.promise } } })
  const { there, peer } = await open({ speaks: true, token: goodToken({ permissions: ['r'] }) })
  for (let i = 0; i < 20; i++) await there.connection.join(`r${i}`)
  const set = app.hybridAuth.setPermissions('alice', [])
  await sleep(20)
  for (let i = 0; i < 20; i++) await app.hybridAuth.rooms.publish(`r${i}`, 'x'.repeat(3000))
  await sleep(50)
  t.equal(peer.hasEnded || there.socket.readyState !== 1, true)
  answer.resolve(true)
  await set
})

t.test('messages come in the order they were published, also where a listener publishes that somebody left', async t => {
  const clock = setClock(t)
  const { open, app } = await live(t, { auth: { expiryGrace: 0, rooms: ALL } })
  const { there: ends } = await open({ token: goodToken({ sub: 'carol', exp: Math.floor(Date.now() / 1000) + 60 }) })
  const { there, peer } = await open({ speaks: true, token: goodToken({ exp: Math.floor(Date.now() / 1000) + 86_400 }) })
  await ends.connection.join('r')
  await there.connection.join('r')
  ends.connection.on('left', () => { app.hybridAuth.rooms.publish('r', 2).catch(() => {}) })
  clock.move(120_000)
  await app.hybridAuth.rooms.publish('r', 1)
  lookNow(ends.connection)
  await settled(peer)
  t.same(peer.framesOf('message').map(frame => frame.payload), [1, 2])
})

t.test('a member of the user that is empty is no place in a room\'s name', async t => {
  const { open } = await live(t, { auth: { jwt: { key: SECRET, algorithms: ['HS256'], user: claims => ({ userId: String(claims.sub), team: '' }) }, rooms: { patterns: ['team/:team/all'] } } })
  const { there } = await open()
  t.equal(await there.connection.join('team//all'), false)
})

t.test('a join never rejects, whatever the name', async t => {
  const { open, app } = await live(t, { auth: { rooms: ALL } })
  const { there } = await open()
  for (const room of [undefined, null, 1, {}, [], Symbol('r')] as unknown[] as string[]) t.equal(await app.hybridAuth.rooms.join(there.connection, room), false)
  t.equal(await there.connection.join(goodToken()), false)
})

t.test('10: a token that comes as the name of a room is in no log and no event', async t => {
  const lines = keepLines()
  const events: unknown[] = []
  const { open } = await live(t, { auth: { rooms: { authorize: () => false, maxNameLength: 1024 }, audit: event => { events.push(event) } }, route: { rooms: true }, fastify: logTo(lines.stream) })
  const { peer } = await open({ speaks: true })
  const token = goodToken()
  peer.say({ type: 'join', room: token })
  await settled(peer)
  t.ok(JSON.stringify(events).includes('room_refused'))
  t.notOk(JSON.stringify(events).includes(token.slice(0, 60)))
  t.notOk(lines.text().includes(token.slice(0, 60)))
})

t.test('10 000 joins from one socket: no more rooms than allowed, and no line a frame', async t => {
  const lines = keepLines()
  const { open, app } = await live(t, { auth: { rooms: ALL }, route: { rooms: true }, fastify: { logger: { stream: lines.stream, level: 'info' } } })
  const { peer, there } = await open({ speaks: true })
  for (let i = 0; i < 10_000; i++) peer.say({ type: 'join', room: `r${i}` })
  await settled(peer)
  t.equal(there.connection.rooms.size, 100)
  const count = lines.text().split('room refused').length - 1
  t.ok(count < 200, `${count} lines`)
  peer.socket.terminate()
  await there.closed
  t.equal(app.hybridAuth.rooms.count('r0'), 0)
})

t.test('a payload that is nested as deeply as one node can write stops no other node', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const auth = { rooms: ALL }
  const route = { rooms: true, authorize: () => immediate(true) }
  const [a, b] = [await redisNode(t, url, { auth, route }), await redisNode(t, url, { auth, route })]
  const { peer, there } = await a.open({ speaks: true })
  const { peer: other, there: far } = await b.open({ speaks: true, token: goodToken({ sub: 'bob' }) })
  await there.connection.join('r')
  await far.connection.join('r')
  const faults: unknown[] = []
  const onFault = (error: unknown) => { faults.push(error) }
  process.prependListener('uncaughtException', onFault)
  t.teardown(() => { process.off('uncaughtException', onFault) })
  const send = async (depth: number): Promise<boolean> => {
    const id = `d${depth}`
    peer.say('first')
    peer.say(`{"type":"message","room":"r","id":"${id}","payload":${'['.repeat(depth)}${']'.repeat(depth)}}`)
    await settled(peer)
    return !peer.framesOf('error').some(frame => frame.id === id)
  }
  let [low, high] = [100, 32_000]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (await send(middle)) low = middle
    else high = middle
  }
  t.comment(`up to ${low}`)
  for (let depth = low - 60; depth <= low + 5; depth++) await send(depth)
  await sleep(200)
  t.same(faults, [])
  await a.app.hybridAuth.rooms.publish('r', 'after')
  await eventually('the other node still hears', () => other.texts.some(text => text.includes('"after"')))
})

t.test('a frame with a credential that comes before the first one was verified is not the application\'s', async t => {
  const { host } = await live(t, { auth: { jwt: { key: async () => { await sleep(100); return SECRET }, algorithms: ['HS256'] } }, route: { firstMessage: true } })
  const socket = new WebSocket(`ws://${host}/app`)
  t.teardown(() => { socket.terminate() })
  const texts: string[] = []
  socket.on('message', (data: Buffer) => { texts.push(data.toString()) })
  await new Promise(resolve => { socket.on('open', resolve) })
  const second = goodToken()
  socket.send(JSON.stringify({ type: 'auth', token: goodToken() }))
  socket.send(JSON.stringify({ type: 'auth_update', token: second }))
  await eventually('in, or refused', () => texts.some(text => text.includes('auth_success')) || socket.readyState === WebSocket.CLOSED)
  await sleep(200)
  t.notOk(texts.some(text => text.includes(second)), 'echoed by the application')
})

t.test('a join that is asked about while the app closes leaves nothing behind', async t => {
  const answer = deferred<boolean>()
  const { open, app } = await live(t, { auth: { drain: { window: 0, deadline: 200 }, rooms: { authorize: () => answer.promise } } })
  const { there } = await open()
  const joined = there.connection.join('r')
  await app.close()
  answer.resolve(true)
  t.equal(await joined, false)
  t.equal(app.hybridAuth.rooms.count('r'), 0)
  t.equal(await there.connection.join('r'), false)
})

t.test('a socket that ends at any point of a join is in no room', async t => {
  for (let ticks = 0; ticks < 16; ticks++) {
    const answer = deferred<boolean>()
    const { open, app } = await live(t, { auth: { rooms: { authorize: () => answer.promise } } })
    const { there } = await open()
    const joined = there.connection.join('r')
    answer.resolve(true)
    for (let i = 0; i < ticks; i++) await Promise.resolve()
    there.connection.close()
    await joined
    t.equal(app.hybridAuth.rooms.count('r'), 0, `after ${ticks} ticks`)
    await there.closed
    t.equal(app.hybridAuth.rooms.count('r'), 0, `after ${ticks} ticks`)
    await app.close()
  }
})

t.test('a listener that publishes where it lost a right does not reach itself', async t => {
  const { open, app } = await live(t, { auth: { rooms: { authorize: auth => auth.permissions.includes('r') } } })
  const { peer, there } = await open({ speaks: true, token: goodToken({ permissions: ['r'] }) })
  await there.connection.join('r')
  there.connection.on('refresh', () => { app.hybridAuth.rooms.publish('r', 'secret').catch(() => {}) })
  await app.hybridAuth.setPermissions('alice', [])
  await settled(peer)
  t.equal(peer.framesOf('message').length, 0)
})

t.test('nothing of the application, and nothing of ours, throws its way past the other connections of a user', async t => {
  const { open, app } = await live(t, { auth: { rooms: ALL } })
  const { there: one } = await open({ token: goodToken({ permissions: ['r'] }) })
  const { there: two } = await open({ token: goodToken({ permissions: ['r'] }) })
  for (const { connection } of [one, two]) {
    await connection.join('r')
    connection.on('refresh', () => { throw new Error('a listener') })
    connection.on('left', () => { throw new Error('a listener') })
  }
  await app.hybridAuth.setPermissions('alice', [])
  t.same([one.connection.context.permissions, two.connection.context.permissions], [[], []])
})

t.test('a socket that speaks another subprotocol gets no frame of ours, and is in no room', async t => {
  const { open } = await live(t, { auth: { rooms: ALL }, route: { rooms: true, control: true, messages: { pay: { acr: 'high' }, default: 'allow' } } })
  const { peer, there } = await open({ protocols: ['graphql-transport-ws'] })
  t.equal(there.socket.protocol, 'graphql-transport-ws')
  t.equal(await there.connection.join('r'), false)
  peer.say({ type: 'pay' })
  peer.say({ type: 'join', room: 'r' })
  peer.say({ type: 'message', room: 'r', payload: 1 })
  await settled(peer)
  t.notOk(peer.texts.some(text => /insufficient|not_joined|"joined"/.test(text)))
  t.ok(there.received.includes('{"type":"join","room":"r"}'))
})

t.test('whatever happens at once: rooms, members, subscriptions and rights agree', async t => {
  const random = seeded(Number(process.env.SEED ?? 6))
  const pause = async () => { for (let i = Math.floor(random() * 12); i > 0; i--) await Promise.resolve(); if (random() < 0.2) await immediate() }
  const subscribed = new Set<string>()
  const memory = memoryCluster()
  const cluster: ClusterDriver = {
    join (member) {
      const node = memory.join(member)
      return {
        ...node,
        async subscribe (room) { if (subscribed.has(room)) t.fail('subscribed twice'); subscribed.add(room); await pause() },
        unsubscribe (room) { if (!subscribed.delete(room)) t.fail('unsubscribed twice') }
      }
    }
  }
  const { open, app } = await live(t, {
    auth: {
      cluster, rooms: {
        maxPerConnection: 3, authorize (auth, room) {
          const may = auth.permissions.includes(room)
          return random() < 0.4 ? may : pause().then(() => may)
        }
      }
    }, route: { rooms: true }
  })
  const { rooms } = app.hybridAuth
  const names = ['r0', 'r1', 'r2', 'r3']
  for (let round = 0; round < 25; round++) {
    const pairs = await Promise.all(Array.from({ length: 4 }, (_, i) => open({ speaks: true, token: goodToken({ sub: `u${i}`, permissions: names }) })))
    const balance = new Map<Connection, Map<string, number>>()
    for (const { there: { connection } } of pairs) {
      const counts = new Map(names.map(name => [name, 0]))
      balance.set(connection, counts)
      connection.on('joined', room => { counts.set(room, (counts.get(room) ?? 0) + 1) })
      connection.on('left', room => { counts.set(room, (counts.get(room) ?? 0) - 1) })
    }
    const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(random() * list.length)]
    await Promise.all(Array.from({ length: 40 }, async () => {
      await pause()
      const pair = pick(pairs)
      const room = pick(names)
      if (pair === undefined || room === undefined) return
      const { there: { connection, socket }, peer } = pair
      const what = random()
      if (what < 0.4) await connection.join(room)
      else if (what < 0.5) peer.say({ type: 'join', room })
      else if (what < 0.65) connection.leave(room)
      else if (what < 0.85) await app.hybridAuth.setPermissions(connection.context.userId, names.filter(() => random() < 0.6))
      else if (what < 0.93) await rooms.publish(room, round)
      else if (what < 0.95) connection.close()
      else if (what < 0.97) socket.terminate()
      else if (what < 0.98) peer.socket.terminate()
      else peer.say({ type: 'leave', room })
    }))
    const unfit = (): string[] => [
      ...pairs.flatMap(({ there: { connection, socket } }) => names.filter(name => {
        const isIn = connection.rooms.has(name)
        return isIn !== rooms.members(name).includes(connection) || isIn !== (balance.get(connection)?.get(name) === 1) ||
          (isIn && (!connection.can(name) || socket.readyState === WebSocket.CLOSED || connection.rooms.size > 3))
      })),
      ...names.filter(name => subscribed.has(name) !== (rooms.count(name) > 0))
    ]
    await eventually(`round ${round} agrees`, () => unfit().length === 0, 1000)
    for (const { peer } of pairs) peer.socket.terminate()
    await eventually('all are gone', () => app.hybridAuth.count() === 0 && subscribed.size === 0 && names.every(name => rooms.count(name) === 0))
    const [{ there: { connection } }] = pairs as [Pair]
    if (connection instanceof GuardedConnection) t.same([connection.route.hub.rooms.size, connection.route.hub.rooms.open], [0, 0])
  }
})

function seeded (seed: number): () => number {
  let state = seed
  return () => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    return state / 2_147_483_648
  }
}

t.test('the handler never runs for a socket whose peer went away while its rights were asked for again', async t => {
  const asked: Array<Deferred<string[]>> = []
  const rule = deferred<boolean>()
  const { app, host } = await live(t, {
    auth: { permissions: () => { const answer = deferred<string[]>(); asked.push(answer); return answer.promise } },
    route: { check: () => rule.promise },
    handler: () => { handled++ }
  })
  let handled = 0
  const socket = new WebSocket(`ws://${host}/app`, { headers: { authorization: `Bearer ${goodToken()}` } })
  socket.on('error', () => {})
  t.teardown(() => { socket.terminate() })
  await eventually('asked', () => asked.length === 1)
  asked[0]?.resolve(['r'])
  await sleep(20)
  await app.hybridAuth.refreshPermissions('alice')
  rule.resolve(true)
  await new Promise(resolve => { socket.on('open', resolve) })
  await eventually('asked again', () => asked.length === 2)
  socket.terminate()
  await sleep(100)
  asked[1]?.resolve(['r'])
  await sleep(50)
  t.equal(handled, 0)
  t.equal(app.hybridAuth.count(), 0)
})

t.test('nothing follows a close frame: not what waited for a verdict either', async t => {
  const answer = deferred<boolean>()
  const { open, app } = await live(t, { auth: { rooms: { authorize: auth => auth.permissions.includes('r') ? true : answer.promise } } })
  const { peer, there } = await open({ token: goodToken({ permissions: ['r'] }) })
  await there.connection.join('r')
  const set = app.hybridAuth.setPermissions('alice', [])
  await sleep(20)
  await app.hybridAuth.rooms.publish('r', 'late')
  const written: string[] = []
  const net = Reflect.get(there.socket, '_socket') as import('node:net').Socket
  const write = net.write.bind(net)
  net.write = (data: Buffer, ...rest: []) => { written.push(data.toString('latin1')); return write(data, ...rest) }
  peer.socket.pause()
  there.socket.close(1000)
  answer.resolve(true)
  await set
  await sleep(50)
  t.notOk(written.some(text => text.includes('late')))
})

t.test('who said goodbye is no member that is counted while what it said before is judged', async t => {
  const answer = deferred<boolean>()
  const { open, app } = await live(t, { auth: { rooms: ALL }, route: { authorize: () => answer.promise } })
  const { peer, there } = await open()
  await there.connection.join('r')
  peer.say('slow')
  await sleep(30)
  peer.socket.close()
  await sleep(50)
  t.equal(app.hybridAuth.rooms.count('r'), 0)
  answer.resolve(true)
  await there.closed
})

t.test('a message of a room that is put into Redis again is not said again', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const auth = { rooms: ALL }
  const [a, b] = [await redisNode(t, url, { auth }), await redisNode(t, url, { auth })]
  const { peer: other, there: far } = await b.open({ token: goodToken({ sub: 'bob' }) })
  await far.connection.join('r')
  const spy = await connect(t, url)
  const seen: Array<[string, string]> = []
  await spy.pSubscribe('*', (message, channel) => { if (channel.endsWith(':room:r')) seen.push([channel, message]) })
  await a.app.hybridAuth.rooms.publish('r', 1)
  await other.until(() => other.framesOf('message').length === 1)
  for (const [channel, message] of [...seen]) await a.client.publish(channel, message)
  await sleep(100)
  t.equal(other.framesOf('message').length, 1)
})

t.test('a frame for rooms that is too large is counted, however large', async t => {
  const events: AuditEvent[] = []
  const { open } = await live(t, { auth: { rooms: { ...ALL, maxPayload: 10 }, audit: event => { events.push(event) } }, route: { rooms: true } })
  const { peer } = await open({ speaks: true })
  peer.say({ type: 'message', room: 'r', payload: 'x'.repeat(100_000) })
  await settled(peer)
  t.equal(peer.framesOf('error').length, 1)
  t.equal(events.filter(({ type }) => type === 'room_refused').length, 1)
})

t.test('a route that takes frames about rooms and passes every frame to the application is an error', async t => {
  await t.rejects(live(t, { auth: { rooms: ALL }, route: { rooms: true, control: false } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
})

t.test('a listener that throws is heard of, and what came behind the message still comes', async t => {
  const faults: unknown[] = []
  const keep = (error: unknown) => { faults.push(error) }
  process.removeAllListeners('unhandledRejection')
  process.removeAllListeners('uncaughtException')
  process.on('unhandledRejection', keep)
  process.on('uncaughtException', keep)
  t.teardown(() => {
    process.off('unhandledRejection', keep)
    process.off('uncaughtException', keep)
  })
  const { open } = await live(t, {
    route: { authorize: () => immediate(true) },
    handler: ({ socket, received }) => {
      socket.on('message', (data: Buffer) => {
        received.push(data.toString())
        if (data.toString() === 'bad') throw new Error('of the application')
      })
    }
  })
  const { peer, there } = await open()
  for (const text of ['bad', 'second', 'third']) peer.say(text)
  await sleep(200)
  t.equal(faults.length, 1)
  t.same(there.received, ['bad', 'second', 'third'])
})
