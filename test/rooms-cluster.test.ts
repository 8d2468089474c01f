/** Rooms and live permissions over nodes in memory and in Redis, and what a Redis is asked for them. */
import { spawn } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import t, { type Test } from 'tap'
import { memoryCluster } from '../lib/cluster/memory.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { CLUSTER_SECRET, redisNode, SHORT, startNode, tokenOf, until, type RedisNode, type RedisNodeSettings } from './cluster-suite.js'
import { SECRET } from './helpers.js'
import { setClock } from './live.js'
import { connect, needsRedis, startRedis } from './redis.js'
import { flushed, heardBy, into, roomMeter, ROOMS, roomsSuite } from './rooms-suite.js'

// The suite takes its time for either cluster where others keep the machine busy.
t.setTimeout(240_000)

roomsSuite(t, 'nodes that share memory', async () => {
  const driver = memoryCluster()
  return () => driver
})

roomsSuite(t, 'nodes that share a Redis', async t => {
  const { url } = await startRedis(t)
  return async () => redisCluster(await connect(t, url), { secret: CLUSTER_SECRET })
}, { ...needsRedis })

type Admin = RedisNode['client']
const CALM = { ...SHORT, nodeTimeout: 4000, timeout: 2000 }
const CHANNEL = '{hybrid-auth}:room:'
const OPEN = { heartbeat: false, rooms: { authorize: () => true } } as const

async function pair (t: Test, settings: RedisNodeSettings = {}): Promise<{ url: string, admin: Admin, a: RedisNode, b: RedisNode }> {
  const { url } = await startRedis(t)
  const admin = await connect(t, url)
  const start = () => redisNode(t, url, { cluster: CALM, route: ROOMS, auth: OPEN, ...settings })
  return { url, admin, a: await start(), b: await start() }
}

const listeners = async (admin: Admin, room: string) => (await admin.pubSubNumSub(CHANNEL + room))[CHANNEL + room]
const connections = async (admin: Admin) => (await admin.clientList()).length

t.test('a node listens to a channel while it has a member in the room, and to no other', { ...needsRedis }, async t => {
  const { admin, a, b } = await pair(t)
  const [first, second, far] = [await a.open({ speaks: true }), await a.open(), await b.open()]
  const channels = async () => (await admin.pubSubChannels('*')).map(name => name.replace(CHANNEL, '')).sort()
  t.same(await channels(), [])
  await into(first, 'hall', 'tenant/42/agents')
  t.same([await channels(), await listeners(admin, 'hall')], [['hall', 'tenant/42/agents'], 1])
  await into(second, 'hall')
  t.equal(await listeners(admin, 'hall'), 1, 'once for a node')
  await into(far, 'hall')
  t.equal(await listeners(admin, 'hall'), 2)
  first.there.connection.leave('hall')
  second.there.connection.leave('hall')
  await until('only the other node listens', async () => await listeners(admin, 'hall') === 1)
  first.peer.socket.close()
  far.peer.socket.terminate()
  await until('nobody listens', async () => (await channels()).length === 0)
  for (let n = 0; n < 10; n++) {
    second.there.connection.join('hall').catch(() => { t.fail('it rejects') })
    second.there.connection.leave('hall')
  }
  await into(second, 'own')
  await until('nobody listens', async () => (await channels()).join() === 'own')
  t.same([a.app.hybridAuth.rooms.count('hall'), [...second.there.connection.rooms]], [0, ['own']])
})

t.test('a refused join asks Redis for nothing', { ...needsRedis }, async t => {
  const { admin, a } = await pair(t, { auth: { heartbeat: false, rooms: { authorize: () => false } } })
  const before = await connections(admin)
  const { there, peer } = await a.open({ speaks: true })
  t.equal(await there.connection.join('hall'), false)
  peer.say({ type: 'join', room: '*' })
  t.match(await peer.takeFrame('error'), { code: 'bad_room' })
  t.same([await admin.pubSubChannels('*'), await connections(admin)], [[], before])
})

t.test('the connection that listens is made for the first room, and there is one', { ...needsRedis }, async t => {
  const { admin, a } = await pair(t)
  const member = await a.open({ speaks: true })
  const before = await connections(admin)
  t.same(await a.app.hybridAuth.rooms.publish('hall', 1), { delivered: 0, published: true })
  t.equal((await a.app.hybridAuth.rooms.presence('hall')).members, 0)
  await a.app.hybridAuth.setPermissions('alice', [])
  t.equal(await connections(admin), before)
  await Promise.all(Array.from({ length: 20 }, (_, n) => into(member, `room/${n}`)))
  t.equal(await connections(admin), before + 1)
  for (let n = 0; n < 20; n++) member.there.connection.leave(`room/${n}`)
  await into(member, 'hall')
  t.equal(await connections(admin), before + 1)
})

t.test('a closed node leaves no connection but the caller\'s, and no channel', { ...needsRedis }, async t => {
  const { admin, a, b } = await pair(t)
  const [near, far] = [await a.open(), await b.open({ speaks: true })]
  await into(near, 'hall')
  await into(far, 'hall')
  await a.app.close()
  t.equal(await listeners(admin, 'hall'), 1)
  await b.app.close()
  await until('two clients and the test are left', async () => await connections(admin) === 3)
  t.ok(a.client.isReady && b.client.isReady)
})

/** As nodes sign. */
function seal (value: unknown, { place = 'room', secret = CLUSTER_SECRET }: { place?: string, secret?: string | null } = {}): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value)
  return `${secret === null ? '' : createHmac('sha256', secret).update(`hybrid-auth.${place}\n${text}`).digest('base64url')}:${text}`
}

for (const secret of [CLUSTER_SECRET, null]) {
  t.test(`69: what no node can have said in a room ${secret === null ? 'without' : 'with'} a secret is counted and heard by nobody`, { ...needsRedis }, async t => {
    const { url } = await startRedis(t)
    const admin = await connect(t, url)
    const { secret: _secret, ...settings } = CALM
    const start = async () => startNode(t, {
      cluster: redisCluster(await connect(t, url), { ...settings, ...(secret !== null && { secret }) }), route: ROOMS, auth: OPEN
    })
    const [a, b] = [await start(), await start()]
    const member = await b.open({ speaks: true })
    await into(member, 'hall', 'other')
    const heard = roomMeter(b)
    const good = { from: 'another node', room: 'hall', number: 7, at: Date.now(), payload: '"forged"' }
    const tell = (sealed: string | Buffer, room = 'hall') => admin.publish(CHANNEL + room, sealed)
    const sign = (value: unknown, place = 'room') => seal(value, { place, secret })

    const { payload: _payload, ...without } = good
    const rows: Record<string, string | Buffer> = {
      nothing: '', 'a colon': ':', 'no colon': 'x'.repeat(60), bytes: Buffer.from([0xff, 0xfe, 0x3a, 0x00]), 'no JSON': sign('{"from"'), null: sign('null'), 'a list': sign('[]'),
      'too much': sign({ ...good, payload: 'x'.repeat(2 * 1024 * 1024) }),
      'no payload': sign(without), 'a payload that is no text': sign({ ...good, payload: { it: 'is' } }), 'a payload that is no JSON': sign({ ...good, number: 6, payload: '1}, {"type":"bye"' }),
      'no number': sign({ ...good, number: undefined }), 'a number that is none': sign({ ...good, number: '7' }), 'a number before all': sign({ ...good, number: 0 }), 'a member too many': sign({ ...good, more: 1 }), 'another room': sign({ ...good, room: 'other' }), 'no room': sign({ ...good, room: '' }),
      'a room that is no text': sign({ ...good, room: ['hall'] }), 'no sender': sign({ ...good, from: '' }), 'a sender that is no text': sign({ ...good, from: 7 }),
      'no time': sign({ ...good, at: null }), 'a time that is no number': sign({ ...good, at: '1' }), 'a time before all': sign({ ...good, at: -1 }),
      'too old': sign({ ...good, at: Date.now() - 61_000 }), 'from the future': sign({ ...good, at: Date.now() + 62_000 }),
      ...(secret !== null && {
        'not signed': seal(good, { secret: null }), 'signed for another place': sign(good, 'control'), 'signed by another secret': seal(good, { secret: 'x'.repeat(32) }),
        'signed, and changed since': sign(good).replace('forged', 'FORGED'), 'a signature cut short': sign(good).slice(1), 'nothing but a signature': `${sign(good).split(':', 1)[0]}:`
      })
    }
    let ignored = 0
    for (const [what, sealed] of Object.entries(rows)) {
      t.equal(await tell(sealed), 1, `${what}: there is a listener`)
      ignored++
      await until(`${what} is counted`, async () => b.status().ignored === ignored)
    }
    // What it said itself comes back, and is no news.
    await tell(sign({ ...good, from: b.status().nodeId }))
    await flushed(a, 'hall', [member])
    await flushed(a, 'other', [member])
    t.same([heardBy(member, 'hall'), heardBy(member, 'other')], [['end'], ['end']])
    t.same([b.status().ignored, await heard('heard')], [ignored, 2])
    // The test knows how nodes speak.
    await tell(sign({ ...good, at: Date.now() - 50_000, payload: '{"it":"is read"}' }))
    t.same(await member.peer.takeFrame('message'), { type: 'message', room: 'hall', payload: 'end' })
    await member.peer.until(() => heardBy(member, 'hall').length === 2)
    t.same(heardBy(member, 'hall')[1], { it: 'is read' })
    for (const number of [7, 1]) await tell(sign({ ...good, number }))
    await until('they are counted', async () => b.status().ignored === ignored + 2)
    // As many others as are remembered, and then it is a stranger.
    for (let n = 0; n < 1000; n++) await tell(sign({ ...good, from: `node ${n}`, room: 'other' }), 'other')
    await tell(sign({ ...good, number: 1, payload: '"of a stranger"' }))
    await until('it is heard', async () => heardBy(member, 'hall').length === 3)
    t.equal(heardBy(member, 'other').length, 1001)
  })
}

t.test('69: a message that was kept and is told again, in its own room a minute later or in another at once, is heard by nobody', { ...needsRedis }, async t => {
  const { url, admin, a, b } = await pair(t)
  const clock = setClock(t)
  const member = await b.open({ speaks: true })
  await into(member, 'hall', 'other')
  const kept: string[] = []
  const spy = await connect(t, url)
  await spy.subscribe(`${CHANNEL}hall`, sealed => { kept.push(sealed) })
  await flushed(a, 'hall', [member], 'once')
  await until('it was kept', async () => kept.length === 1)
  const [sealed = ''] = kept
  await admin.publish(`${CHANNEL}other`, sealed)
  await until('it is counted', async () => b.status().ignored === 1)
  clock.move(61_000)
  await admin.publish(`${CHANNEL}hall`, sealed)
  await until('it is counted', async () => b.status().ignored === 2)
  clock.reset()
  await flushed(a, 'hall', [member])
  t.same([heardBy(member, 'hall'), heardBy(member, 'other')], [['once', 'end'], []])
})

t.test('nodes of another prefix hear nothing', { ...needsRedis }, async t => {
  const { url, a } = await pair(t)
  const stranger = await redisNode(t, url, { cluster: { ...CALM, prefix: 'another' }, route: ROOMS, auth: OPEN })
  const [here, there] = [await a.open({ speaks: true }), await stranger.open({ speaks: true })]
  for (const member of [here, there]) await into(member, 'hall')
  t.same(await a.app.hybridAuth.rooms.publish('hall', 1), { delivered: 1, published: true })
  t.equal((await a.app.hybridAuth.rooms.presence('hall')).members, 1)
  await flushed(stranger, 'hall', [there])
  t.same(heardBy(there, 'hall'), ['end'])
  t.same([a.status().ignored, stranger.status().ignored], [0, 0])
})

for (const RESP of [2, 3] as const) {
  t.test(`a client that speaks RESP ${RESP} carries rooms`, { ...needsRedis }, async t => {
    const { admin, a, b } = await pair(t, { clientOptions: { RESP } })
    const member = await b.open({ speaks: true })
    await into(member, 'hall')
    await flushed(a, 'hall', [member])
    member.there.connection.leave('hall')
    await until('nobody listens', async () => await listeners(admin, 'hall') === 0)
    await into(member, 'hall')
    await flushed(a, 'hall', [member], 'again')
    t.same(heardBy(member, 'hall'), ['end', 'again'])
  })
}

const PROGRAM = `
  import { once } from 'node:events'
  import Fastify from 'fastify'
  import websocket from '@fastify/websocket'
  import { createClient } from 'redis'
  import { WebSocket } from 'ws'
  import hybridAuth from './lib/index.ts'
  import { redisCluster } from './lib/cluster/redis.ts'
  const { REDIS_URL: url, TOKEN: token, KEY: key } = process.env
  const client = createClient({ url })
  await client.connect()
  const app = Fastify()
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: { key, algorithms: ['HS256'] }, cluster: redisCluster(client), rooms: { authorize: () => true } })
  app.get('/app', { websocket: true, auth: { rooms: true } }, () => {})
  await app.listen({ port: 0, host: '127.0.0.1' })
  const socket = new WebSocket('ws://127.0.0.1:' + app.server.address().port + '/app', ['hybrid-auth.v1'], { headers: { authorization: 'Bearer ' + token } })
  await once(socket, 'open')
  socket.send('{"type":"join","room":"hall"}')
  const [joined] = await once(socket, 'message')
  const ended = once(socket, 'close')
  await app.close()
  const [code] = await ended
  client.destroy()
  console.log(JSON.stringify({ joined: JSON.parse(joined), code }))
`

t.test('a process with members in rooms exits by itself after app.close()', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const loader = process.execArgv.filter(argument => argument.includes('typescript'))
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))
  const child = spawn(process.execPath, [...loader, '--input-type=module', '-e', PROGRAM], {
    cwd: new URL('..', import.meta.url), env: { ...env, REDIS_URL: url, TOKEN: tokenOf('alice'), KEY: SECRET }, stdio: ['ignore', 'pipe', 'inherit']
  })
  const timer = setTimeout(() => { child.kill('SIGKILL') }, 30_000)
  t.teardown(() => { clearTimeout(timer); child.kill('SIGKILL') })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => { printed += chunk.toString() })
  const [status] = await once(child, 'close') as [unknown]
  t.equal(status, 0)
  t.same(JSON.parse(printed), { joined: { type: 'joined', room: 'hall' }, code: 1012 })
})
