/** Rooms while Redis dies, freezes or is cut off: what is lost is told, and who is in a room stays there and hears again. */
import t, { type Test } from 'tap'
import type { RedisClient } from '../lib/cluster/redis-client.js'
import { isOpen, redisNode, Script, SHORT, settled, tokenOf, until, type RedisNode, type RedisNodeSettings } from './cluster-suite.js'
import { eventually, type Pair } from './live.js'
import { connect, needsRedis, startProxy, startRedis, type Proxy, type Redis } from './redis.js'
import { flushed, heardBy, into, roomMeter, ROOMS } from './rooms-suite.js'

// Many failures, each waited for.
t.setTimeout(180_000)

type Admin = RedisNode['client']
const CHANNEL = '{hybrid-auth}:room:'
const RIGHT = 'room:agents'
const OPEN = { heartbeat: false, rooms: { authorize: () => true } } as const
/** Nothing of ours runs out in a test that is about something else. */
const CALM = { ...SHORT, nodeTimeout: 4000, timeout: 2000 }
/** How much later than its time something may come where others keep the machine busy. */
const SLACK = 1500

interface World {
  redis: Redis
  admin: Admin
  a: RedisNode
  b: RedisNode
  /** One way for each node. */
  proxies: [Proxy, Proxy]
}

async function world (t: Test, settings: RedisNodeSettings = {}): Promise<World> {
  const redis = await startRedis(t)
  const proxies: [Proxy, Proxy] = [await startProxy(t, redis.port), await startProxy(t, redis.port)]
  const options = { route: ROOMS, auth: OPEN, ...settings }
  const [a, b] = [await redisNode(t, proxies[0].url, options), await redisNode(t, proxies[1].url, options)]
  await settled(a)
  await settled(b)
  return { redis, admin: await connect(t, redis.url), a, b, proxies }
}

const isLost = (node: RedisNode) => !node.status().connected
const listeners = async (admin: Admin, room: string) => (await admin.pubSubNumSub(CHANNEL + room))[CHANNEL + room]
const listening = (admin: Admin, room: string, count: number) => until(`${count} listen to ${room}`, async () => await listeners(admin, room) === count, 10_000)
const publish = async ({ app }: RedisNode, room: string, payload: unknown) => app.hybridAuth.rooms.publish(room, payload)

/** Says something every now and then until it is heard: that nobody joins again is the point. */
async function hearsAgain (from: RedisNode, member: Pair, room: string): Promise<void> {
  await until(`${room} is heard of`, async () => {
    const { published } = await publish(from, room, 'back')
    return published && heardBy(member, room).includes('back')
  }, 10_000)
}

interface Fault { begin: (world: World) => unknown, end: (world: World) => unknown }
const FAULTS: Record<string, Fault> = {
  killed: { begin: ({ redis }) => redis.kill(), end: ({ redis }) => redis.restart() },
  frozen: { begin ({ redis }) { redis.pause() }, end ({ redis }) { redis.resume() } },
  'cut off': { begin ({ proxies }) { for (const one of proxies) one.cut() }, end ({ proxies }) { for (const one of proxies) one.heal() } }
}

for (const [what, fault] of Object.entries(FAULTS)) {
  t.test(`while Redis is ${what}, members of the node itself hear, the loss is told and counted, and afterwards nobody has to join again`, { ...needsRedis }, async t => {
    const world_ = await world(t)
    const { a, b, admin } = world_
    const [near, far, late] = [await a.open({ speaks: true }), await b.open({ speaks: true }), await b.open({ speaks: true })]
    for (const member of [near, far]) await into(member, 'hall')
    await flushed(a, 'hall', [near, far], 'before')
    const meters = [roomMeter(a), roomMeter(b)]

    await fault.begin(world_)
    let began = performance.now()
    const first = await publish(a, 'hall', 'at once')
    t.ok(performance.now() - began < SHORT.timeout + SLACK, 'the first that finds out answers in time')
    t.equal(first.delivered, 1)
    await eventually('both have lost it', () => isLost(a) && isLost(b), 10_000)
    t.same(await publish(a, 'hall', 'while it is away'), { delivered: 1, published: false })
    t.same(await publish(b, 'hall', 'there as well'), { delivered: 1, published: false })
    await near.peer.until(() => heardBy(near, 'hall').includes('while it is away'))
    await far.peer.until(() => heardBy(far, 'hall').includes('there as well'))

    began = performance.now()
    t.equal(await late.there.connection.join('late'), true)
    near.peer.say({ type: 'join', room: 'late' })
    t.same(await near.peer.takeFrame('joined'), { type: 'joined', room: 'hall' })
    t.same(await near.peer.takeFrame('joined'), { type: 'joined', room: 'late' })
    t.ok(performance.now() - began < SHORT.timeout + SLACK, 'nobody waits for it')
    t.same(await publish(a, 'late', 'only here'), { delivered: 1, published: false })
    t.equal(near.there.connection.leave('late'), true)
    await into(near, 'late')
    await t.rejects(a.app.hybridAuth.rooms.presence('hall'), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' }, 'nobody can say how many they are')
    t.equal(a.status().queued, 0, 'and nobody is asked later')
    t.equal(await meters[0]?.('lost'), first.published ? 2 : 3)
    t.equal(await meters[1]?.('lost'), 1)

    await fault.end(world_)
    await eventually('both are back', () => !isLost(a) && !isLost(b), 10_000)
    for (const [from, member] of [[a, far], [b, near]] as const) await hearsAgain(from, member, 'hall')
    await hearsAgain(a, late, 'late')
    await hearsAgain(b, near, 'late')
    t.same([heardBy(far, 'hall').includes('while it is away'), heardBy(near, 'hall').includes('there as well'), heardBy(late, 'late').includes('only here')], [false, false, false], 'what was lost stays so')
    for (const room of ['hall', 'late']) await listening(admin, room, 2)
    t.match(await a.app.hybridAuth.rooms.presence('hall'), { members: 2, nodes: { acknowledged: 2, missing: 0 } })
    for (const member of [near, far, late]) await isOpen(t, member, 'a member')
  })
}

t.test('a Redis that freezes holds a message and a join no longer than the timeout', { ...needsRedis }, async t => {
  const { a, redis } = await world(t, { cluster: { ...SHORT, nodeTimeout: 20_000, timeout: 400 } })
  const member = await a.open({ speaks: true })
  await into(member, 'hall')
  redis.pause()
  const began = performance.now()
  const [said, joined] = await Promise.all([publish(a, 'hall', 1), member.there.connection.join('another')])
  const took = performance.now() - began
  t.same([said, joined], [{ delivered: 1, published: false }, true])
  t.ok(took >= 390 && took < 400 + SLACK, `${took.toFixed()} ms`)
  redis.resume()
})

t.test('what is published at a time is lost at a time, and told for each', { ...needsRedis }, async t => {
  const script = new Script()
  const { a } = await world(t, { wrap: script.wrap, cluster: CALM })
  const lost = roomMeter(a)
  const failed = script.fails('PUBLISH')
  t.same(await publish(a, 'hall', 1), { delivered: 0, published: false })
  await failed
  t.same(await publish(a, 'hall', 2), { delivered: 0, published: true })
  t.same([await lost('published'), await lost('lost')], [2, 1])
})

/** A node whose listener takes a way of its own. */
async function apart (t: Test): Promise<{ admin: Admin, a: RedisNode, b: RedisNode, way: Proxy }> {
  const redis = await startRedis(t)
  const way = await startProxy(t, redis.port)
  const other = await connect(t, way.url)
  let isBegun = false
  const wrap = (client: RedisClient): RedisClient => {
    const far: RedisClient = other
    return {
      get isReady () { return client.isReady },
      get options () { return client.options },
      sendCommand: (...given) => client.sendCommand(...given),
      subscribe: (...given) => client.subscribe(...given),
      unsubscribe: (...given) => client.unsubscribe(...given),
      duplicate: overrides => (isBegun ? far : client).duplicate(overrides),
      connect: () => client.connect(),
      destroy () { client.destroy() },
      on: (event, listener) => client.on(event, listener)
    }
  }
  const a = await redisNode(t, redis.url, { route: ROOMS, auth: OPEN })
  const b = await redisNode(t, redis.url, { route: ROOMS, auth: OPEN, wrap })
  await settled(b)
  isBegun = true
  return { admin: await connect(t, redis.url), a, b, way }
}

for (const [what, begin, end] of [['is cut', 'cut', 'heal'], ['lets nothing through', 'stall', 'flow']] as const) {
  t.test(`a node whose listener's connection ${what} is no lost node, and listens anew`, { ...needsRedis }, async t => {
    const { admin, a, b, way } = await apart(t)
    const [near, far] = [await a.open({ speaks: true }), await b.open({ speaks: true })]
    for (const member of [near, far]) await into(member, 'hall')
    await flushed(a, 'hall', [near, far])
    way[begin]()
    // Its half of the connection is given up by the node or by the network.
    if (begin === 'cut') await listening(admin, 'hall', 1)
    else await new Promise(resolve => { setTimeout(resolve, 1500) })
    t.equal(b.status().connected, true)
    t.same(await publish(a, 'hall', 'lost'), { delivered: 1, published: true })
    t.same(await publish(b, 'hall', 'it speaks'), { delivered: 1, published: true })
    await near.peer.until(() => heardBy(near, 'hall').includes('it speaks'))
    const began = performance.now()
    t.equal(await far.there.connection.join('meanwhile'), true)
    t.ok(performance.now() - began < SHORT.timeout + SLACK)
    way[end]()
    await hearsAgain(a, far, 'hall')
    await hearsAgain(a, far, 'meanwhile')
    t.same([a.count('cluster_lost'), b.count('cluster_lost'), b.status().connected], [0, 0, true])
  })
}

t.test('who joins while its node\'s listener is being replaced hears what is said from then on', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t, { cluster: CALM })
  const member = await b.open({ speaks: true })
  await into(member, 'hall')
  for (let run = 0; run < 5; run++) {
    await listening(admin, 'hall', 1)
    await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub'])
    if (run % 2 === 0) await listening(admin, 'hall', 0)
    await into(member, `room/${run}`)
    t.equal((await publish(a, `room/${run}`, run)).published, true)
  }
  await hearsAgain(a, member, 'hall')
  t.same(Array.from({ length: 5 }, (_, run) => heardBy(member, `room/${run}`)), Array.from({ length: 5 }, (_, run) => [run]))
})

t.test('a room that is joined while only the node\'s other connections are away is heard of afterwards', { ...needsRedis }, async t => {
  const script = new Script()
  const { a, b } = await world(t, { wrap: script.wrap })
  const member = await b.open({ speaks: true })
  await into(member, 'hall')
  for (let n = 0; n < 4; n++) script.fails('BEAT').catch(() => {})
  await eventually('it is lost', () => isLost(b))
  t.equal(await member.there.connection.join('meanwhile'), true)
  await eventually('it is back', () => !isLost(b) && !isLost(a), 10_000)
  await hearsAgain(a, member, 'hall')
  await hearsAgain(a, member, 'meanwhile')
})

t.test('a subscription that Redis refuses ends the listener, and the next one asks again', { ...needsRedis }, async t => {
  const script = new Script()
  const { a, b } = await world(t, { wrap: script.wrap, cluster: CALM })
  const member = await b.open({ speaks: true })
  await into(member, 'first')
  const refused = script.fails('SUBSCRIBE', true)
  t.equal(await member.there.connection.join('second'), true)
  await refused
  await hearsAgain(a, member, 'second')
  await hearsAgain(a, member, 'first')
  t.equal(b.count('cluster_lost'), 0)
})

t.test('a channel that could not be left is left with its listener', { ...needsRedis }, async t => {
  const script = new Script()
  const { a, b, admin } = await world(t, { wrap: script.wrap, cluster: CALM })
  const member = await b.open({ speaks: true })
  await into(member, 'stays', 'goes')
  const refused = script.fails('UNSUBSCRIBE', true)
  member.there.connection.leave('goes')
  await refused
  await listening(admin, 'goes', 0)
  await hearsAgain(a, member, 'stays')
})

t.test('more rooms than fit in one command are heard of again, but for one that was left meanwhile, and one that came', { ...needsRedis }, async t => {
  const script = new Script()
  const { a, b, admin } = await world(t, { wrap: script.wrap, cluster: { ...CALM, timeout: 5000 }, auth: { heartbeat: false, rooms: { authorize: () => true, maxPerConnection: 2000 } } })
  const member = await b.open()
  const rooms = Array.from({ length: 1001 }, (_, n) => `room/${n}`)
  await Promise.all(rooms.map(room => into(member, room)))
  const first = script.holds('SUBSCRIBE', true)
  await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub'])
  await first.arrived
  // One of each part, and the one that is alone in the last.
  for (const left of ['room/0', 'room/700', 'room/1000']) member.there.connection.leave(left)
  const came = into(member, 'room/new')
  first.release()
  await came
  const kept = rooms.filter(room => !['room/0', 'room/700', 'room/1000'].includes(room))
  await until('all are heard of', async () => (await admin.pubSubChannels('*')).length === kept.length + 1)
  t.same((await admin.pubSubChannels('*')).map(name => name.replace(CHANNEL, '')).sort(), [...kept, 'room/new'].sort())
  const heard = roomMeter(b)
  for (const room of rooms) await publish(a, room, 1)
  await until('they come', async () => await heard('heard') === kept.length)
})

t.test('nobody counts whom a node could not be asked about', { ...needsRedis }, async t => {
  const { a, b, proxies: [, far] } = await world(t)
  const members = [await a.open(), await b.open(), await b.open()]
  for (const member of members) await into(member, 'hall')
  t.same(await a.app.hybridAuth.rooms.presence('hall'), { members: 3, nodes: { acknowledged: 2, missing: 0 } })
  far.stall()
  t.same(await a.app.hybridAuth.rooms.presence('hall'), { members: 1, nodes: { acknowledged: 1, missing: 1 } })
  far.flow()
  await until('it is back', async () => !isLost(a) && !isLost(b) && (await a.app.hybridAuth.rooms.presence('hall').catch(() => null))?.members === 3, 10_000)
})

t.test('66: permissions that were changed while a node was cut off are changed there when it is back, rooms included', { ...needsRedis }, async t => {
  const rights = new Map([['alice', [RIGHT]], ['bob', [RIGHT]]])
  const { a, b, proxies: [, far] } = await world(t, {
    auth: { heartbeat: false, permissions: ({ userId }) => rights.get(userId) ?? [], rooms: { authorize: ({ permissions }) => permissions.includes(RIGHT) } }
  })
  const [alice, bob] = [await b.open({ token: tokenOf('alice'), speaks: true }), await b.open({ token: tokenOf('bob'), speaks: true })]
  for (const member of [alice, bob]) await into(member, 'hall')
  far.cut()
  await eventually('it is lost', () => isLost(b))
  rights.delete('alice')
  rights.delete('bob')
  t.match(await a.app.hybridAuth.refreshPermissions('alice'), { matched: 0, durable: true, nodes: { acknowledged: 1, missing: 1 } })
  t.match(await a.app.hybridAuth.setPermissions('bob', ['read']), { matched: 0, durable: true, nodes: { acknowledged: 1, missing: 1 } })
  t.same([alice, bob].map(({ there: { connection } }) => connection.can(RIGHT)), [true, true], 'it cannot be told')
  far.heal()
  for (const { peer } of [alice, bob]) {
    t.match(await peer.takeFrame('permission_update'), { removed: [RIGHT] })
    t.same(await peer.takeFrame('left'), { type: 'left', room: 'hall', reason: 'forbidden' })
  }
  t.same(bob.there.connection.context.permissions, ['read'])
  t.same(alice.there.connection.context.permissions, [])
})

t.test('an application closes while Redis is away, with members in rooms', { ...needsRedis }, async t => {
  const { a, b, redis, proxies } = await world(t)
  const [near, far] = [await a.open(), await b.open()]
  for (const member of [near, far]) await into(member, 'hall')
  proxies[0].cut()
  redis.pause()
  for (const { app } of [a, b]) {
    const began = performance.now()
    await app.close()
    t.ok(performance.now() - began < 3000 + SLACK, 'in time')
  }
  t.equal(await near.there.connection.join('hall'), false, 'too late')
})

t.test('a node that stops while its listener is being made leaves none behind', { ...needsRedis }, async t => {
  const { a, admin } = await world(t)
  const member = await a.open()
  const before = (await admin.clientList()).length
  const joining = member.there.connection.join('hall')
  await a.app.close()
  await joining
  await until('nothing listens', async () => (await admin.clientList()).length < before && await listeners(admin, 'hall') === 0)
})
