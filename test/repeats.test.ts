/** What comes a second time: ids of messages that a user has used. */
import t, { type Test } from 'tap'
import type { AuthContext } from '../lib/index.js'
import { createClaims } from '../lib/cluster/claims.js'
import type { Cluster } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { CLUSTER_SECRET, redisNode, SHORT, tokenOf, type MakeDriver } from './cluster-suite.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { framesOf, HALL, joinFrom, keeper, taleOf, type Keeper } from './histories.js'
import { eventually, setClock, type Pair } from './live.js'
import { connect, needsRedis, startRedis } from './redis.js'
import { driverOf, untyped } from './revoking.js'
import { deferred } from './stores.js'

const PATTERNS = { [HALL]: { join: true, publish: { permissions: ['write'] }, history: 100, repeats: 60_000 }, plain: { join: true, publish: true, repeats: 60_000 } }
const MALFORMED = { code: 'FST_HYBRID_AUTH_MALFORMED_REQUEST', statusCode: 400 }
const writer = (sub: string, more: object = {}) => tokenOf(sub, { permissions: ['write'], ...more })

async function enter (node: Keeper, token: string, room: string = HALL): Promise<Pair> {
  const pair = await node.open({ token, speaks: true })
  await joinFrom(pair, undefined, room)
  return pair
}

function suite (name: string, makeDriver: MakeDriver, options: { skip?: string | false } = {}): void {
  t.test(name, options, async t => {
    const two = async (t: Test): Promise<[Keeper, Keeper]> => {
      const of = await makeDriver(t)
      return [await keeper(t, await of(), { patterns: PATTERNS }), await keeper(t, await of(), { patterns: PATTERNS })]
    }

    t.test('an id is no repeat the first time that its user has it, and one each time after, on any node', async t => {
      const [a, b] = await two(t)
      const contextOf = async (claims: object, sub = 'alice'): Promise<AuthContext> => (await a.open({ token: tokenOf(sub, { ...claims }) })).there.connection.context
      const alice = await contextOf({})
      const others = await Promise.all([contextOf({}, 'bob'), contextOf({ iss: 'another' }), contextOf({ companyId: 'acme' })])
      const ask = (auth: AuthContext, id: string | number, window?: number) => b.app.hybridAuth.isRepeat(auth, id, window === undefined ? undefined : { window })
      const all = await Promise.all(Array.from({ length: 50 }, (_, i) => (i % 2 === 0 ? a : b).app.hybridAuth.isRepeat(alice, 'an id')))
      t.equal(all.filter(isRepeat => !isRepeat).length, 1, 'one of fifty at once')
      t.equal(await ask(alice, 'an id'), true)
      t.same(await Promise.all(others.map(other => ask(other, 'an id'))), [false, false, false], 'others have their own')
      t.same([await ask(alice, 7), await ask(alice, '7'), await ask(alice, 7), await ask(alice, 'x'.repeat(128)), await ask(alice, -0.5)], [false, false, true, false, false])
      for (const id of ['', 'x'.repeat(129), Number.NaN, Infinity, null, undefined, true, {}, ['a'], 1n]) await t.rejects(ask(alice, untyped(id)), MALFORMED)
      for (const window of [0, -1, 86_400_001, Number.NaN, '1', null]) await t.rejects(ask(alice, 'x', untyped(window)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /options\.window/ })
      await t.rejects(a.app.hybridAuth.isRepeat(alice, 'x', untyped({ windows: 1 })), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
    })

    t.test('a message whose id its user has used in the room is said once, from whichever socket and node it comes', async t => {
      const [a, b] = await two(t)
      const [first, second, bob] = [await enter(a, writer('alice')), await enter(b, writer('alice')), await enter(b, writer('bob'))]
      const say = ({ peer }: Pair, payload: string, id?: unknown, room = HALL) => { peer.say({ type: 'message', room, payload, id }) }
      const done = async ({ peer }: Pair, mark: string) => peer.echoed(mark)
      say(first, '1', 'a')
      say(first, 'again', 'a')
      say(first, '2')
      say(first, '3')
      say(first, '4', 'b')
      await done(first, 'said')
      await bob.peer.until(() => taleOf(bob.peer).length === 5)
      say(second, 'again', 'b')
      say(second, '5', 'c')
      await done(second, 'said')
      await bob.peer.until(() => taleOf(bob.peer).length === 6)
      say(bob, '6', 'a')
      await first.peer.until(() => taleOf(first.peer).length === 3)
      t.same(taleOf(bob.peer), ['joined', '1', '2', '3', '4', '5'])
      t.same(taleOf(first.peer), ['joined', '5', '6'])
      await joinFrom(first, undefined, 'plain')
      await joinFrom(bob, undefined, 'plain')
      for (const payload of ['1', 'again']) say(first, payload, 'a', 'plain')
      await done(first, 'said again')
      await a.app.hybridAuth.rooms.publish('plain', 'end')
      await bob.peer.until(() => taleOf(bob.peer, 'plain').length === 3)
      t.same(taleOf(bob.peer, 'plain'), ['joined', '1', 'end'], 'another room has its own')
      t.same([first, second, bob].flatMap(({ peer }) => peer.framesOf('error')), [])
      for (const id of ['', 'x'.repeat(129)]) say(first, 'odd', id)
      await done(first, 'odd')
      t.match(first.peer.framesOf('error'), [{ code: 'malformed', room: HALL, id: '' }, { code: 'malformed', room: HALL }])
    })

    t.test('what was refused may be said under its id when it is allowed', async t => {
      const [a] = await two(t)
      const [alice, bob] = [await enter(a, tokenOf('alice')), await enter(a, tokenOf('bob'))]
      const frame = { type: 'message', room: HALL, payload: 'at last', id: 'an id' }
      alice.peer.say(frame)
      t.match(await alice.peer.takeFrame('error'), { code: 'forbidden', id: 'an id' })
      await a.app.hybridAuth.setPermissions('alice', ['write'])
      alice.peer.say(frame)
      await bob.peer.until(() => taleOf(bob.peer).length === 2)
      t.same(framesOf(bob.peer)[1]?.id, 'an id')
      alice.peer.say({ ...frame, room: 'nowhere' })
      t.match(await alice.peer.takeFrame('error'), { code: 'not_joined' })
    })
  })
}

suite('nodes that share memory', async () => {
  const driver = memoryCluster()
  return () => driver
})

suite('nodes that share a Redis', async t => {
  const { url } = await startRedis(t)
  return async () => redisCluster(await connect(t, url), { secret: CLUSTER_SECRET })
}, { ...needsRedis })

t.test('after its time an id is new', async t => {
  const clock = setClock(t)
  clock.freeze()
  const node = await keeper(t, memoryCluster())
  const { context } = (await node.open()).there.connection
  const ask = (window?: number) => node.app.hybridAuth.isRepeat(context, 'an id', { window })
  t.same([await ask(), await ask(1000)], [false, false])
  clock.move(999)
  t.same([await ask(), await ask(1000)], [true, true])
  clock.move(1)
  t.same([await ask(), await ask(1000), await ask(1000)], [true, false, true])
  clock.move(59_000)
  t.equal(await ask(), false)
})

t.test('what others have seen and cannot be asked is no answer, and a message whose id may have been used is not said', async t => {
  let isAway = false
  const unavailable = Object.assign(new Error('away'), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' })
  const node = await keeper(t, driverOf(inner => ({
    async spend (debits, isExact) {
      if (isAway && isExact === true) throw unavailable
      return inner.spend(debits)
    },
    append: async (...given) => !isAway && await inner.append(...given)
  })), { patterns: PATTERNS })
  const [alice, bob] = [await enter(node, writer('alice')), await enter(node, writer('bob'))]
  const frame = { type: 'message', room: HALL, payload: '1', id: 'an id' }
  isAway = true
  await t.rejects(node.app.hybridAuth.isRepeat(alice.there.connection.context, 'x'), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' })
  alice.peer.say(frame)
  t.match(await alice.peer.takeFrame('error'), { code: 'unavailable', action: 'retry', room: HALL, id: 'an id' })
  isAway = false
  alice.peer.say(frame)
  await bob.peer.until(() => taleOf(bob.peer).length === 2)
})

t.test('a message that could not be said may be said under its id when it can; one whose sender has lost the right meanwhile is not', async t => {
  let canAppend = false
  const held = deferred<void>()
  let isHeld = false
  const node = await keeper(t, driverOf(inner => ({
    async spend (debits) {
      if (isHeld) await held.promise
      return inner.spend(debits)
    },
    append: async (...given) => canAppend && await inner.append(...given)
  })), { patterns: PATTERNS })
  const [alice, bob] = [await enter(node, writer('alice')), await enter(node, writer('bob'))]
  const frame = { type: 'message', room: HALL, payload: '1', id: 'an id' }
  alice.peer.say(frame)
  t.match(await alice.peer.takeFrame('error'), { code: 'unavailable', action: 'retry' })
  canAppend = true
  alice.peer.say(frame)
  await bob.peer.until(() => taleOf(bob.peer).length === 2)
  isHeld = true
  alice.peer.say({ ...frame, payload: '2', id: 'another' })
  await eventually('it waits', () => node.app.hybridAuth.connections({ userId: 'alice' }).length === 1)
  await node.app.hybridAuth.setPermissions('alice', [])
  held.resolve()
  t.match(await alice.peer.takeFrame('error'), { code: 'forbidden', id: 'another' })
  t.same(taleOf(bob.peer), ['joined', '1'])
})

t.test('without Redis nobody knows what the other nodes have seen', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = await redisNode(t, redis.url, { cluster: SHORT })
  const { context } = (await node.open()).there.connection
  t.equal(await node.app.hybridAuth.isRepeat(context, 'an id'), false)
  redis.pause()
  for (let n = 0; n < 2; n++) await t.rejects(node.app.hybridAuth.isRepeat(context, 'another'), { code: 'FST_HYBRID_AUTH_UNAVAILABLE', statusCode: 503 })
  redis.resume()
  await eventually('it is back', () => node.status().connected, 10_000)
  t.equal(await node.app.hybridAuth.isRepeat(context, 'an id'), true)
})

t.test('an id of which it was not known whether it was taken is given back: who asks again is the first, and nobody else is let in for it', async t => {
  const asked: number[] = []
  let fails = true
  const spend: Cluster['spend'] = async ([debit]) => {
    asked.push(debit?.cost ?? 0)
    if (fails) throw new Error('no answer')
    return 0
  }
  const { claim, release } = createClaims({ spend }, true)
  await t.rejects(claim('x', 60))
  await t.rejects(claim('x', 60), 'what may be taken is given back first')
  t.same(asked, [1, -1])
  await t.rejects(release('y', 60))
  await t.rejects(release('y', 60))
  fails = false
  t.equal(await claim('x', 60), true)
  t.same(asked.splice(0), [1, -1, -1, -1, -1, 1])
  await eventually('y is given back as well', () => asked.includes(-1))
  t.same(asked.splice(0), [-1], 'and x is not: it was taken since')
  t.equal(await claim('x', 60), true)
  t.same(asked, [1])
})

t.test('what cannot be given back is tried for a minute, and not for ever', { timeout: 30_000 }, async t => {
  const asked: number[] = []
  const real = globalThis.setTimeout
  t.teardown(() => { globalThis.setTimeout = real })
  const pauses: number[] = []
  Object.assign(globalThis, {
    setTimeout (run: () => void, ms: number) {
      pauses.push(ms)
      return real(run, 0)
    }
  })
  const { claim } = createClaims({ async spend ([debit]) { asked.push(debit?.cost ?? 0); throw new Error('no answer') } }, true)
  await t.rejects(claim('x', 60))
  const pass = () => new Promise<void>(resolve => { real(resolve, 5) })
  for (let turn = 0; turn < 1000 && asked.length < 61; turn++) await pass()
  for (let turn = 0; turn < 10; turn++) await pass()
  t.equal(asked.length, 61)
  t.ok(pauses.every(ms => ms === 1000) && pauses.length >= 60)
})

t.test('a message whose id could not be asked about is said when it comes again, and once', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const node = await keeper(t, redisCluster(await connect(t, redis.url), { ...SHORT, secret: CLUSTER_SECRET }), { patterns: PATTERNS })
  for (const room of ['plain', HALL]) {
    const [alice, bob] = [await enter(node, writer('alice'), room), await enter(node, writer('bob'), room)]
    const frame = { type: 'message', room, payload: 'important', id: `of ${room}` }
    redis.pause()
    alice.peer.say(frame)
    t.match(await alice.peer.takeFrame('error'), { code: 'unavailable', action: 'retry', id: frame.id })
    redis.resume()
    await eventually('it is back', () => node.status().connected, 10_000)
    const again = (): void => { alice.peer.say(frame) }
    again()
    await bob.peer.until(() => taleOf(bob.peer, room).includes('important'))
    again()
    alice.peer.say({ ...frame, payload: 'another', id: `another of ${room}` })
    await bob.peer.until(() => taleOf(bob.peer, room).includes('another'))
    t.same(taleOf(bob.peer, room), ['joined', 'important', 'another'], room)
  }
})
