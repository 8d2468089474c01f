/** Histories in Redis: what it keeps, what it loses, and who else can write to it. */
import { createHmac } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { redisCluster } from '../lib/cluster/redis.js'
import { CLUSTER_SECRET, redisNode, Script, SHORT, settled, startNode, until, type RedisNode, type RedisNodeSettings } from './cluster-suite.js'
import { comeBack, cursorOf, framesOf, HALL, joinFrom, keeper, keeperOf, pollable, said, taleOf, type Keeper } from './histories.js'
import { eventually, setClock } from './live.js'
import { connect, needsRedis, startProxy, startRedis, type Proxy, type Redis } from './redis.js'

t.setTimeout(180_000)

const CALM = { ...SHORT, nodeTimeout: 4000, timeout: 2000 }
const LIST = '{hybrid-auth}:history:hall'
const HEAD = '{hybrid-auth}:head:hall'
const CHANNEL = '{hybrid-auth}:room:hall'
const DAY = 86_400_000
const PATTERNS = { [HALL]: { join: true, publish: true, history: 20, repeats: 60_000 } } as const

type Kept = RedisNode & Keeper

async function kept (t: Test, url: string, { auth, ...settings }: RedisNodeSettings = {}): Promise<Kept> {
  return keeperOf(await redisNode(t, url, {
    cluster: CALM, route: { rooms: true }, routes: pollable, ...settings, auth: { heartbeat: false, rooms: { patterns: PATTERNS }, ...auth }
  }))
}

interface World { redis: Redis, a: Kept, b: Kept, proxies: [Proxy, Proxy], admin: Awaited<ReturnType<typeof connect>> }

async function world (t: Test, durable = false, settings: RedisNodeSettings = {}): Promise<World> {
  const redis = await startRedis(t, { durable })
  const proxies: [Proxy, Proxy] = [await startProxy(t, redis.port), await startProxy(t, redis.port)]
  const [a, b] = [await kept(t, proxies[0].url, settings), await kept(t, proxies[1].url, settings)]
  await settled(a)
  await settled(b)
  return { redis, a, b, proxies, admin: await connect(t, redis.url) }
}

const isLost = (node: RedisNode) => !node.status().connected

t.test('a room has two keys, which end by themselves, and as many messages as it may', { ...needsRedis }, async t => {
  const { a, admin } = await world(t)
  t.equal((await admin.keys('*:h*:hall')).length, 0)
  await a.pollOf(null)
  t.same(await admin.keys('*hall*'), [HEAD])
  for (const payload of said(1, 30)) await a.publish(payload)
  t.same((await admin.keys('*hall*')).sort(), [HEAD, LIST])
  t.equal(await admin.lLen(LIST), 20)
  t.equal(await admin.hGet(HEAD, 'n'), '30')
  const ends = [await admin.pTTL(LIST), await admin.pTTL(HEAD)]
  t.ok(Number(ends[0]) > 290_000 && Number(ends[0]) <= 300_000 && Number(ends[1]) > DAY && Number(ends[1]) <= DAY + 300_000, JSON.stringify(ends))
  const [last = ''] = await admin.lRange(LIST, -1, -1)
  t.match(last, /^\d{13} [\w-]{43}:\{"from":"[\w-]+","room":"hall","number":30,"at":\d{13},"payload":"\\"30\\""\}$/)
})

t.test('while Redis is away nothing is said, and it is told; afterwards nobody has to join again, and nothing is missed', { ...needsRedis }, async t => {
  const faults: Array<[string, boolean, (world: World) => unknown, (world: World) => unknown]> = [
    // It may have forgotten the last of it: nobody knows.
    ['killed, and durable', true, ({ redis }) => redis.kill(), ({ redis }) => redis.restart()],
    ['frozen', false, ({ redis }) => { redis.pause() }, ({ redis }) => { redis.resume() }],
    ['cut off', false, ({ proxies }) => { for (const one of proxies) one.cut() }, ({ proxies }) => { for (const one of proxies) one.heal() }]
  ]
  for (const [what, durable, begin, end] of faults) {
    t.test(what, async t => {
      const here = await world(t, durable, { cluster: SHORT })
      const { a, b } = here
      const [near, far] = [await comeBack(a), await comeBack(b)]
      await a.publish('1')
      await far.peer.until(() => taleOf(far.peer).length === 2)
      const cursor = cursorOf(far)
      await begin(here)
      await eventually('both have lost it', () => isLost(a) && isLost(b), 10_000)
      t.same(await a.publish('while it is away'), { delivered: 0, published: false })
      near.peer.say({ type: 'message', room: HALL, payload: 'either', id: 'an id' })
      t.match(await near.peer.takeFrame('error'), { code: 'unavailable', action: 'retry', room: HALL, id: 'an id' })
      t.equal((await a.poll({ [HALL]: cursor })).status, 503)
      t.same(await joinFrom(await a.open({ speaks: true }), cursor), { type: 'joined', room: HALL, cursor }, 'who has everything')
      t.same(await joinFrom(await a.open({ speaks: true }), cursor.replace('.1', '.0')), { type: 'joined', room: HALL, cursor, gap: true })
      await end(here)
      await eventually('both are back', () => !isLost(a) && !isLost(b), 10_000)
      near.peer.say({ type: 'message', room: HALL, payload: '2', id: 'an id' })
      await far.peer.until(() => taleOf(far.peer).includes('2'))
      t.match(await b.publish('3'), { published: true })
      for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).at(-1) === '3')
      const gap = durable ? ['gap'] : []
      t.same([taleOf(near.peer), taleOf(far.peer)], [['joined', '1', ...gap, '3'], ['joined', '1', ...gap, '2', '3']])
      t.same(taleOf((await comeBack(a, cursor)).peer), durable ? ['gap'] : ['2', '3', 'joined'])
    })
  }
})

t.test('a node whose listener was away reads what it has missed, in order', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t)
  const [near, far] = [await comeBack(a), await comeBack(b)]
  for (let run = 0; run < 5; run++) {
    await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub'])
    for (let n = 1; n <= 3; n++) t.match(await a.publish(String(3 * run + n)), { delivered: 1, published: true })
    for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).length === 3 * run + 4)
  }
  for (const { peer } of [near, far]) t.same(taleOf(peer), ['joined', ...said(1, 15)])
})

t.test('a Redis that comes back empty, or that was emptied, begins anew: members are told, and miss nothing that follows', { ...needsRedis }, async t => {
  const { a, b, redis, admin } = await world(t, false, { cluster: SHORT })
  const [near, far] = [await comeBack(a), await comeBack(b)]
  await a.publish('1')
  for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).length === 2)
  const before = cursorOf(near)
  await redis.restart()
  await eventually('both are back', () => !isLost(a) && !isLost(b), 10_000)
  for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).includes('gap'))
  t.not(cursorOf(near).split('.')[0], before.split('.')[0])
  await until('it is said', async () => (await a.publish('2')).published)
  for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).at(-1) === '2')
  await until('the test is back', async () => admin.isReady)
  await admin.flushAll()
  await b.publish('3')
  for (const { peer } of [near, far]) {
    await peer.until(() => taleOf(peer).at(-1) === '3')
    t.same(taleOf(peer).slice(-3), ['2', 'gap', '3'])
    t.equal(framesOf(peer).at(-1)?.cursor, framesOf(near.peer).at(-1)?.cursor)
  }
  t.same(taleOf((await comeBack(a, before)).peer), ['gap'])
})

t.test('a Redis that has gone back to older data gives no number twice', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t)
  const [near, far] = [await comeBack(a), await comeBack(b)]
  for (const payload of said(1, 2)) await a.publish(payload)
  for (const key of [LIST, HEAD]) await admin.copy(key, `${key}:backup`)
  for (const payload of said(3, 5)) await a.publish(payload)
  for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).length === 6)
  const cursor = cursorOf(far)
  // As after a failover to a replica that was behind.
  for (const key of [LIST, HEAD]) await admin.rename(`${key}:backup`, key)
  await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub'])
  for (const { peer } of [near, far]) await peer.until(() => taleOf(peer).at(-1) === 'gap')
  t.not(cursorOf(near).split('.')[0], cursor.split('.')[0])
  await b.publish('6')
  for (const { peer } of [near, far]) {
    await peer.until(() => taleOf(peer).at(-1) === '6')
    t.same(taleOf(peer), ['joined', ...said(1, 5), 'gap', '6'])
  }
  t.same(taleOf((await comeBack(a, cursor)).peer), ['gap'])
})

t.test('a cursor of the future, which a client has made up, changes nothing for others', { ...needsRedis }, async t => {
  const { a } = await world(t)
  const member = await comeBack(a)
  await a.publish('1')
  await member.peer.until(() => taleOf(member.peer).length === 2)
  const ahead = `${cursorOf(member).split('.', 1)[0]}.999`
  t.same(taleOf((await comeBack(a, ahead)).peer), ['gap'])
  t.match(await a.pollOf(ahead), { gap: true, messages: [] })
  await a.publish('2')
  await member.peer.until(() => taleOf(member.peer).length === 3)
  t.same(taleOf(member.peer), ['joined', '1', '2'])
})

/** As nodes sign. */
function seal (value: unknown, secret: string | null = CLUSTER_SECRET, place = 'history'): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value)
  return `${secret === null ? '' : createHmac('sha256', secret).update(`hybrid-auth.${place}\n${text}`).digest('base64url')}:${text}`
}

for (const secret of [CLUSTER_SECRET, null]) {
  t.test(`what no node can have said is given to nobody, in a history or over a channel, ${secret === null ? 'without' : 'with'} a secret`, { ...needsRedis }, async t => {
    const { url } = await startRedis(t)
    const admin = await connect(t, url)
    const { secret: _secret, ...settings } = CALM
    const a = keeperOf(await startNode(t, {
      cluster: redisCluster(await connect(t, url), { ...settings, ...(secret !== null && { secret }) }),
      route: { rooms: true }, routes: pollable, auth: { heartbeat: false, rooms: { patterns: { [HALL]: { join: true, history: 100 } } } }
    }))
    const member = await comeBack(a)
    const start = cursorOf(member)
    const [epoch = ''] = start.split('.')
    const good = { from: 'another node', room: HALL, number: 7, at: Date.now(), payload: '"forged"' }
    const rows = [
      '', ':', 'x', 'x:{', seal('{', secret), seal('null', secret), seal({ ...good, room: 'other' }, secret), seal({ ...good, payload: '1}, {"type":"bye"' }, secret), seal({ ...good, more: 1 }, secret),
      seal({ ...good, id: { a: 1 } }, secret), seal({ ...good, id: 'x'.repeat(129) }, secret), seal({ ...good, number: 0 }, secret), seal({ ...good, at: Date.now() - 361_000 }, secret), seal({ ...good, at: Date.now() + 62_000 }, secret),
      ...(secret === null ? [] : [seal(good, null), seal(good, 'x'.repeat(32)), seal(good, secret, 'room'), seal(good).replace('forged', 'FORGED')])
    ]
    for (const sealed of rows) await admin.publish(CHANNEL, `${epoch}.1 ${sealed}`)
    await until('they are counted', async () => a.status().ignored === rows.length)
    await a.publish('1')
    const [kept = ''] = await admin.lRange(LIST, 0, 0)
    for (const sealed of rows) {
      await admin.rPush(LIST, `${Date.now()} ${sealed}`)
      await admin.hIncrBy(HEAD, 'n', 1)
    }
    // The same a second time, and what is no entry at all.
    await admin.rPush(LIST, [kept, 'garbage'])
    await admin.hIncrBy(HEAD, 'n', 2)
    await a.publish('2')
    await member.peer.until(() => taleOf(member.peer).length === 3)
    t.same(taleOf(member.peer), ['joined', '1', '2'])
    t.equal(a.status().ignored, rows.length * 2 + 2)
    t.same(taleOf((await comeBack(a, start)).peer), ['1', '2', 'joined'])
    const polled = await a.pollOf(start)
    t.same([polled.messages.map(({ payload }) => payload), polled.cursor], [['1', '2'], cursorOf(member)])
    // One of another room, and one that was said before, over the channel of this one.
    const before = a.status().ignored
    await admin.publish(CHANNEL, `${epoch}.${rows.length + 5} ${kept.slice(14)}`)
    await until('it is counted', async () => a.status().ignored === before + 1)
    await admin.publish(CHANNEL.replace('hall', 'other'), 'nobody listens')
    await a.publish('3')
    await member.peer.until(() => taleOf(member.peer).length === 4)
    t.same(taleOf(member.peer), ['joined', '1', '2', '3'])
  })
}

t.test('what Redis does not answer, or not as it should, is a history that cannot be read', { ...needsRedis }, async t => {
  const script = new Script()
  const { a } = await world(t, false, { wrap: script.wrap })
  const { cursor } = await a.pollOf(null)
  script.answers('RECALL', ['x'])
  t.equal((await a.poll({ [HALL]: cursor })).status, 503)
  for (const reply of [null, 'OK', 7]) {
    script.answers('RECALL', reply)
    t.equal((await a.poll({ [HALL]: cursor })).status, 503)
  }
  script.fails('APPEND').catch(() => {})
  t.same(await a.publish('1'), { delivered: 0, published: false })
  t.same(await a.publish('2'), { delivered: 0, published: true })
  t.same((await a.pollOf(cursor)).messages.map(({ payload }) => payload), ['2'])
})

t.test('messages that are too old are none, by the clock of Redis', { ...needsRedis }, async t => {
  const { a } = await world(t, false, { auth: { rooms: { patterns: { [HALL]: { join: true, history: { messages: 20, maxAge: 400 } } } } } })
  const { cursor } = await a.pollOf(null)
  const clock = setClock(t)
  await a.publish('1')
  clock.move(50_000)
  t.equal((await a.pollOf(cursor)).messages.length, 1, 'a node may be behind or ahead')
  await sleep(250)
  await a.publish('2')
  await sleep(250)
  t.match(await a.pollOf(cursor), { messages: [], gap: true })
  t.same((await a.pollOf(cursor.replace('.0', '.1'))).messages.map(({ payload }) => payload), ['2'])
})

t.test('a long history is read in parts', { ...needsRedis }, async t => {
  const { a } = await world(t, false, { auth: { rooms: { patterns: { [HALL]: { join: true, history: 1000 } } } } })
  const { cursor } = await a.pollOf(null)
  await Promise.all(said(1, 1050).map(payload => a.publish(payload)))
  t.match(await a.pollOf(cursor), { gap: true })
  const polled = await a.pollOf(cursor.replace('.0', '.50'))
  t.same(polled.messages.map(({ payload }) => payload), said(51, 1050))
  t.equal(polled.cursor, cursor.replace('.0', '.1050'))
})

t.test('another Redis, or another life of one, is another epoch, however much was said there since', { ...needsRedis }, async t => {
  const { a, b, admin } = await world(t)
  const { peer } = await comeBack(a)
  for (const payload of said(1, 3)) await a.publish(payload)
  const cursor = (await a.pollOf(null)).cursor
  // As a replica that had the first of them, and what others have said to it before this node has looked.
  await admin.hSet(HEAD, { run: 'another', n: '1' })
  for (const payload of said(4, 9)) await b.publish(payload)
  await peer.until(() => taleOf(peer).at(-1) === '9')
  t.same(taleOf(peer), ['joined', ...said(1, 3), 'gap', ...said(4, 9)])
  t.match(await a.pollOf(cursor), { messages: [], gap: true })
})

t.test('a sender is given nothing of its own, however much of it is on the way', { ...needsRedis }, async t => {
  const { a } = await world(t)
  const [{ peer }, other] = [await comeBack(a), await comeBack(a)]
  for (const payload of said(1, 1500)) peer.say({ type: 'message', room: HALL, payload })
  await other.peer.until(() => taleOf(other.peer).length === 1501)
  t.same(taleOf(other.peer), ['joined', ...said(1, 1500)])
  t.same(taleOf(peer), ['joined'])
})

t.test('what is over is not read, and goes with what is said next', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = await keeper(t, redisCluster(await connect(t, redis.url), { secret: CLUSTER_SECRET }), {
    patterns: { over: { join: true, history: { messages: 1000, maxAge: 1000 } } }
  })
  const admin = await connect(t, redis.url)
  const payload = 'x'.repeat(60_000)
  for (let n = 0; n < 100; n++) await node.publish(payload, 'over')
  const { cursor } = await node.pollOf(null, 'over')
  while ((await node.pollOf(cursor.replace(/\d+$/, '99'), 'over')).gap !== true) await sleep(100)
  await admin.sendCommand(['CONFIG', 'RESETSTAT'])
  await node.pollOf(cursor.replace(/\d+$/, '1'), 'over')
  t.notMatch(JSON.stringify(await admin.sendCommand(['INFO', 'commandstats'])), /cmdstat_lrange/)
  await node.publish('last', 'over')
  t.ok(await admin.lLen('{hybrid-auth}:history:over') < 100)
})
