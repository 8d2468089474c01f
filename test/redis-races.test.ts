/** What comes between the steps of a node and its Redis: each step is held up where it hurts. */
import { cp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { RESP_TYPES } from 'redis'
import t, { type Test } from 'tap'
import { endOf, intercepted, kept, redisNode, Script, SHORT, tokenOf, until, type RedisNodeSettings } from './cluster-suite.js'
import { Answers } from '../lib/cluster/answers.js'
import type { Answer } from '../lib/cluster/command.js'
import { ask, bounded, connectAnother, discard, listOf, pairsOf, run, script, textOf, textsOf, type RedisClient } from '../lib/cluster/redis-client.js'
import { eventually } from './live.js'
import { connect, needsRedis, startRedis } from './redis.js'
import { deferred, never } from './stores.js'

// Many failures, each waited for.
t.setTimeout(180_000)

const USER = '{hybrid-auth}:lease:user:[null,"alice"]'

const limits = (perUser: number) => ({ heartbeat: false, limits: { connections: { perUser } } } as const)
const CALM = { nodeTimeout: 4000, timeout: 2000 }

async function pair (t: Test, { auth = {}, cluster = CALM }: Pick<RedisNodeSettings, 'auth' | 'cluster'> = {}) {
  const { url } = await startRedis(t)
  const script = new Script()
  const admin = await connect(t, url)
  const a = await redisNode(t, url, { auth, cluster, wrap: script.wrap })
  const b = await redisNode(t, url, { auth, cluster })
  return { a, b, script, admin, url }
}

t.test('a place that is given while leases are compared stays taken', { ...needsRedis }, async t => {
  const { a, b, script } = await pair(t, { auth: limits(1) })
  const other = await a.open({ token: tokenOf('bob') })
  const place = script.holds('ACQUIRE')
  const opening = a.open({ token: tokenOf('alice') })
  await place.arrived
  const failed = script.fails('RELEASE')
  const compared = script.holds('HKEYS')
  other.peer.socket.close()
  await failed
  await compared.arrived
  compared.release()
  // What follows from the comparison is done when the next thing is asked.
  await a.revoke({ userId: 'nobody' })
  await a.revoke({ userId: 'nobody' })
  place.release()
  await opening
  t.same(await b.admits(tokenOf('alice')), [429, 200])
})

t.test('a place that Redis did not answer for is told to it as soon as it answers', { ...needsRedis }, async t => {
  const { a, b, script, admin } = await pair(t, { auth: limits(1) })
  script.fails('ACQUIRE')
  await a.open({ token: tokenOf('alice') })
  await until('Redis knows', async () => await admin.zCard(USER) === 1, 3000)
  t.same(await b.admits(tokenOf('alice')), [429, 200])
})

t.test('a place that Redis gave, and did not say so in time, is freed where nobody took it', { ...needsRedis }, async t => {
  const { a, script, admin } = await pair(t, { auth: limits(1), cluster: { nodeTimeout: 4000, timeout: 200 } })
  const one = await a.open({ token: tokenOf('alice') })
  // Redis lost it, and the node does not know yet: there, the next finds room; here, none.
  await admin.del(USER)
  const place = script.holds('ACQUIRE')
  t.same(await a.admits(tokenOf('alice')), [429, 200])
  place.release()
  one.peer.socket.close()
  await one.there.closed
  await until('Redis knows', async () => await admin.zCard(USER) === 0, 3000)
})

t.test('what is ordered after the cluster came back does not overtake what waited', { ...needsRedis }, async t => {
  const { a, b, script } = await pair(t)
  const { there } = await b.open({ token: tokenOf('alice') })
  script.fails('PUBLISH')
  const compared = script.holds('HKEYS')
  await a.app.hybridAuth.setPermissions('alice', ['old'])
  await compared.arrived
  const second = a.app.hybridAuth.setPermissions('alice', ['new'])
  // It has a moment to get there before, if it is let.
  await a.client.ping()
  await a.client.ping()
  compared.release()
  await second
  await eventually('both are there', () => b.count('permissions_changed') === 2)
  t.same(there.connection.context.permissions, ['new'])
})

t.test('a start that takes longer than it is waited for ends connected', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const script = new Script()
  const compared = script.holds('HKEYS')
  const node = await redisNode(t, url, { cluster: { timeout: 10_000 }, wrap: script.wrap })
  t.equal(node.count('cluster_lost'), 1)
  compared.release()
  await eventually('it is back', () => node.count('cluster_recovered') === 1)
  t.match(node.status(), { connected: true, lostSince: null })
  t.match(await node.revoke({ userId: 'alice' }), { durable: true })
})

for (const [what, typeMapping] of Object.entries({
  'text as bytes': { [RESP_TYPES.BLOB_STRING]: Buffer, [RESP_TYPES.SIMPLE_STRING]: Buffer, [RESP_TYPES.VERBATIM_STRING]: Buffer },
  'maps as lists': { [RESP_TYPES.MAP]: Array },
  'maps as maps': { [RESP_TYPES.MAP]: Map },
  'numbers as text': { [RESP_TYPES.NUMBER]: String }
})) {
  t.test(`a client that gives ${what} does as well`, { ...needsRedis }, async t => {
    const { url } = await startRedis(t)
    const start = () => redisNode(t, url, { auth: limits(1), cluster: { ...SHORT, nodeTimeout: 4000 }, clientOptions: { commandOptions: { typeMapping } } })
    const [a, b] = [await start(), await start()]
    const token = tokenOf('alice')
    const { peer } = await a.open({ token })
    t.same(await b.admits(token), [429, 200])
    t.match(await b.revoke({ userId: 'alice' }), { matched: 1, closed: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
    t.equal((await endOf(peer)).code, 4006)
    const c = await start()
    t.same(await c.admits(token), [401, 401])
    t.same([a, b, c].map(({ status }) => status().ignored), [0, 0, 0])
  })
}

/** What is waited for within bounds does not keep a process alive. */
function stayAlive (t: Test): void {
  const timer = setInterval(() => {}, 1000)
  t.teardown(() => { clearInterval(timer) })
}

const answer = (from: string, matched = 0, closed = 0): Answer => ({ from, to: 'it', matched, closed })

t.test('answers are collected until the last is there, or the time is over', async t => {
  stayAlive(t)
  const answers = new Answers()
  const collection = answers.expect('it')
  answers.add(answer('early', 3, 2))
  answers.add({ ...answer('a'), to: 'something else' })
  t.same(await collection.from([], 10_000), { acknowledged: 0, missing: 0, matched: 0, closed: 0 }, 'nobody is to answer')
  const all = collection.from(['early', 'late'], 10_000)
  answers.add(answer('a stranger', 100, 100))
  answers.add(answer('late', 4, 4))
  t.same(await all, { acknowledged: 2, missing: 0, matched: 7, closed: 6 })
  t.same(await collection.from(['early', 'never'], 10), { acknowledged: 1, missing: 1, matched: 3, closed: 2 })
  answers.add(answer('early', 5, 5))
  t.match(await collection.from(['early'], 10), { matched: 5 }, 'the last answer of a node counts')
  collection.end()
  answers.add(answer('never'))
  t.match(await collection.from(['never'], 10), { missing: 1 }, 'who answers later is not heard')
})

const clientOf = (changes: Partial<RedisClient> = {}): RedisClient => {
  const client: RedisClient = {
    isReady: true,
    sendCommand: async () => 'OK',
    subscribe: async () => undefined,
    unsubscribe: async () => undefined,
    duplicate: () => client,
    connect: async () => undefined,
    destroy () {},
    on: () => undefined,
    ...changes
  }
  return client
}

t.test('a client is asked within bounds, and not where it would keep the question', async t => {
  stayAlive(t)
  const asked: string[][] = []
  const sendCommand = async (args: string[]) => {
    asked.push(args)
    return 'OK'
  }
  t.equal(await ask(clientOf({ sendCommand }), ['PING'], 1000), 'OK')
  await t.rejects(ask(clientOf({ sendCommand, isReady: false }), ['PING'], 1000))
  t.same(asked, [['PING']])
  await t.rejects(ask(clientOf({ sendCommand: never }), ['PING'], 10))
  await t.rejects(ask(clientOf({ sendCommand: () => Promise.reject(new Error('OOM')) }), ['PING'], 1000), { message: 'OOM' })
  const late = deferred<unknown>()
  await t.rejects(bounded(late.promise, 10))
  late.resolve('too late for anybody')
})

t.test('a script is sent where Redis does not know it, and other failures are passed on', async t => {
  stayAlive(t)
  const one = script('return 1')
  t.match(one.sha, /^[0-9a-f]{40}$/)
  const asked: string[][] = []
  const knowing = (failure: unknown) => clientOf({
    sendCommand: async args => {
      asked.push(args)
      if (args[0] === 'EVALSHA') throw failure
      return 7
    }
  })
  t.equal(await run(knowing(new Error('NOSCRIPT No matching script')), one, ['k'], ['a', 'b'], 1000), 7)
  t.same(asked, [['EVALSHA', one.sha, '1', 'k', 'a', 'b'], ['EVAL', 'return 1', '1', 'k', 'a', 'b']])
  await t.rejects(run(knowing(new Error('WRONGTYPE')), one, [], [], 1000), { message: 'WRONGTYPE' })
  t.equal(await run(knowing('no Error'), one, [], [], 1000).catch((error: unknown) => error), 'no Error')
})

t.test('a second connection is like the first, does not come back by itself, and is thrown away where it fails', async t => {
  stayAlive(t)
  const { signal } = new AbortController()
  const made: object[] = []
  let destroyed = 0
  const other = (changes: Partial<RedisClient>, options?: RedisClient['options']) => clientOf({
    options,
    duplicate (overrides = {}) {
      made.push(overrides)
      return clientOf({ destroy () { destroyed++ }, ...changes })
    }
  })
  await connectAnother(other({}, { socket: { host: 'h', connectTimeout: 9, socketTimeout: 9, tls: true } }), 100, signal)
  await connectAnother(other({}), 100, signal)
  await connectAnother(other({}, { socket: 'what is this' }), 100, signal)
  const ours = { connectTimeout: 100, socketTimeout: undefined, reconnectStrategy: false }
  t.same(made.map(one => 'socket' in one ? one.socket : null), [{ host: 'h', tls: true, ...ours }, ours, ours])
  t.match(made, [{ disableOfflineQueue: true }, { disableOfflineQueue: true }, { disableOfflineQueue: true }])
  t.equal(destroyed, 0)
  await t.rejects(connectAnother(other({ connect: () => Promise.reject(new Error('ECONNREFUSED')) }), 100, signal), { message: 'ECONNREFUSED' })
  await t.rejects(connectAnother(other({ connect: never }), 10, signal))
  t.equal(destroyed, 2)
  discard(clientOf({ destroy () { throw new Error('The client is closed') } }))
})

t.test('a second connection is closed when it is not needed any more, connected or not', async t => {
  stayAlive(t)
  let destroyed = 0
  const other = (connect: RedisClient['connect']) => clientOf({ duplicate: () => clientOf({ connect, destroy () { destroyed++ } }) })
  const stopping = new AbortController()
  await connectAnother(other(async () => undefined), 100, stopping.signal)
  t.equal(destroyed, 0)
  stopping.abort()
  t.equal(destroyed, 1)
  const early = new AbortController()
  const there = deferred<undefined>()
  const connecting = connectAnother(other(() => there.promise), 1000, early.signal)
  early.abort()
  t.equal(destroyed, 2)
  there.resolve(undefined)
  await t.rejects(connecting, { name: 'AbortError' })
  await t.rejects(connectAnother(other(async () => undefined), 1000, AbortSignal.abort()), { name: 'AbortError' })
})

t.test('a Redis that does not say who it is, and went back to an older state, is told what nodes know', { ...needsRedis }, async t => {
  const { url, restart, kill } = await startRedis(t, { durable: true })
  const admin = await connect(t, url)
  const wrap = (client: RedisClient) => intercepted(client, ({ name, send }) => name === 'INFO' ? Promise.reject(new Error('NOPERM')) : send())
  const a = await redisNode(t, url, { wrap })
  await a.revoke({ userId: 'before' })
  const dir = (await admin.configGet('dir')).dir ?? ''
  await cp(join(dir, 'appendonlydir'), join(dir, 'backup'), { recursive: true })
  await a.revoke({ userId: 'alice' })
  t.equal((await kept(admin)).length, 2)
  await kill()
  await eventually('it is lost', () => !a.status().connected)
  await rm(join(dir, 'appendonlydir'), { recursive: true })
  await cp(join(dir, 'backup'), join(dir, 'appendonlydir'), { recursive: true })
  await restart()
  await until('it is told', async () => (await kept(admin)).length === 2, 3000)
  const late = await redisNode(t, url, { wrap })
  t.same(await late.admits(tokenOf('alice')), [401, 401])
})

t.test('replies are read as what they are, and as nothing where they are something else', async t => {
  t.same(listOf(['a', 1]), ['a', 1])
  for (const reply of [null, undefined, 'text', {}, 7]) t.same(listOf(reply), [])
  t.same([textOf('ä'), textOf(Buffer.from('ä')), textOf(7), textOf(null)], ['ä', 'ä', '', ''])
  t.same(textsOf(['a', Buffer.from('b'), 7]), ['a', 'b', ''])
  const pairs = [['k', ['v']], ['l', ['w']]]
  for (const reply of [pairs, new Map<unknown, unknown>([['k', ['v']], ['l', ['w']]]), { k: ['v'], l: ['w'] }]) t.same(pairsOf(reply), pairs)
  for (const reply of [null, undefined, 'text', 7, []]) t.same(pairsOf(reply), [])
})
