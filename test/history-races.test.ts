/** Histories that are slow, away or behind, and members that change meanwhile: every order in which things can happen is the test's. */
import { setImmediate as turn } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Cluster } from '../lib/cluster/cluster.js'
import type { Entry, Recalled } from '../lib/cluster/history.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { bearer, tokenOf } from './cluster-suite.js'
import { comeBack, cursorOf, framesOf, HALL, joinFrom, keeper, pollable, said, taleOf, type Keeper } from './histories.js'
import { eventually, setClock, type Pair } from './live.js'
import { driverOf } from './revoking.js'
import { hubOf, remains, settled } from './rooming.js'
import { into, roomMeter } from './rooms-suite.js'
import { ask, codeOf, deferred, type Deferred } from './stores.js'

/** A cluster in memory of whose answers the test decides. */
class Slow {
  /** Questions that wait, where they do. */
  readonly asked: Array<Deferred<void>> = []
  isHeld = false
  isAway = false
  isDeaf = false
  /** When channels have been opened. */
  subscribing: Promise<void> | null = null
  /** What is answered in place of what there is. */
  answer: (recalled: Recalled) => Recalled = recalled => recalled

  readonly driver = driverOf((inner, member): Partial<Cluster> => {
    const tell = member.told.bind(member)
    member.told = (...given) => { if (!this.isDeaf) tell(...given) }
    this.tell = tell
    this.resume = () => { member.resumed() }
    this.hear = (...given) => { member.heard(...given) }
    return {
      async subscribe (room) {
        await inner.subscribe(room)
        await slow.subscribing
      },
      async append (...given) {
        await turn()
        return slow.isAway ? false : inner.append(...given)
      },
      async recall (...given) {
        const held = deferred<void>()
        if (slow.isHeld) {
          slow.asked.push(held)
          await held.promise
        }
        const recalled = slow.isAway ? null : await inner.recall(...given)
        return recalled === null ? null : slow.answer(recalled)
      }
    }
  })

  tell: (room: string, epoch: string, entry: Entry) => void = () => {}
  hear: (room: string, payload: string) => void = () => {}
  resume: () => void = () => {}
}
let slow = new Slow()

async function asked (count: number): Promise<Deferred<void>> {
  for (;;) {
    const question = slow.asked[count - 1]
    if (question !== undefined) return question
    await turn()
  }
}

async function kept (t: Test, ...given: Parameters<typeof keeper> extends [Test, unknown, ...infer Rest] ? Rest : never): Promise<Keeper> {
  slow = new Slow()
  return keeper(t, slow.driver, ...given)
}

const permitted = { patterns: { [HALL]: { join: { permissions: ['read'] }, publish: true, history: 100 } } }
const CANNOT: Array<[string, (node: Keeper, pair: Pair) => unknown]> = [
  ['permissions are taken', async ({ app }) => app.hybridAuth.setPermissions('alice', [])],
  ['the socket is closed', (_node, { there }) => { there.connection.close() }],
  ['the peer goes', async ({ app }, { peer }) => {
    peer.socket.terminate()
    await eventually('it is seen', () => app.hybridAuth.connections({ userId: 'alice' }).length === 0)
  }],
  ['it is told to leave', (_node, { there }) => there.connection.leave(HALL)]
]
for (const [what, lose] of CANNOT) {
  t.test(`nothing is given to who may not be in there any more when the history has been read: ${what}`, async t => {
    const node = await kept(t, permitted)
    const { cursor } = await node.pollOf(null, HALL, tokenOf('alice', { permissions: ['read'] }))
    for (const payload of said(1, 3)) await node.publish(payload)
    const pair = await node.open({ token: tokenOf('alice', { permissions: ['read'] }), speaks: true })
    const hub = hubOf(pair)
    slow.isHeld = true
    pair.peer.say({ type: 'join', room: HALL, cursor })
    ;(await asked(1)).resolve()
    const reading = await asked(2)
    await lose(node, pair)
    slow.isHeld = false
    await node.publish('4')
    reading.resolve()
    await turn()
    if (!pair.peer.hasEnded && what !== 'the socket is closed') {
      await settled(pair)
      t.match(pair.peer.framesOf('error'), [{ code: what.startsWith('perm') ? 'forbidden' : 'ended', room: HALL }])
    }
    t.same(pair.peer.framesOf('message'), [])
    t.same(pair.peer.framesOf('joined'), [])
    t.match(remains(hub), { memberships: 0, rooms: 0 })
  })
}

t.test('who may still be in there under another context is given everything, once', async t => {
  const node = await kept(t, permitted)
  const token = tokenOf('alice', { permissions: ['read'] })
  const { cursor } = await node.pollOf(null, HALL, token)
  for (const payload of said(1, 3)) await node.publish(payload)
  const pair = await node.open({ token, speaks: true })
  slow.isHeld = true
  pair.peer.say({ type: 'join', room: HALL, cursor })
  ;(await asked(1)).resolve()
  const reading = await asked(2)
  await node.app.hybridAuth.setPermissions('alice', ['read', 'more'])
  slow.isHeld = false
  reading.resolve()
  await pair.peer.until(() => taleOf(pair.peer).includes('joined'))
  await node.publish('4')
  await pair.peer.until(() => taleOf(pair.peer).length === 5)
  t.same(taleOf(pair.peer), [...said(1, 3), 'joined', '4'])
})

t.test('what is said while the history is being read comes behind it, before or after it was read there', async t => {
  for (const isReadFirst of [true, false]) {
    const node = await kept(t)
    const other = await keeper(t, slow.driver)
    const witness = await comeBack(node)
    const start = cursorOf(witness)
    for (const payload of said(1, 3)) await node.publish(payload)
    slow.isHeld = true
    const pair = await node.open({ speaks: true })
    pair.peer.say({ type: 'join', room: HALL, cursor: start })
    const reading = await asked(1)
    if (!isReadFirst) await other.publish('4')
    reading.resolve()
    if (isReadFirst) await other.publish('4')
    await node.publish('5')
    await pair.peer.until(() => taleOf(pair.peer).length === 6)
    t.same(taleOf(pair.peer).filter(one => one !== 'joined'), said(1, 5))
    await witness.peer.until(() => taleOf(witness.peer).length === 6)
    t.same(taleOf(witness.peer), ['joined', ...said(1, 5)])
  }
})

t.test('more than a member is sent at once while the history is being read is a gap', async t => {
  const node = await kept(t, { maxBuffered: 3000 })
  const witness = await comeBack(node)
  const start = cursorOf(witness)
  await node.publish('1')
  slow.isHeld = true
  const pair = await node.open({ speaks: true })
  pair.peer.say({ type: 'join', room: HALL, cursor: start })
  const reading = await asked(1)
  for (let n = 0; n < 4; n++) await node.publish('x'.repeat(900))
  reading.resolve()
  await pair.peer.until(() => taleOf(pair.peer).length > 0)
  t.same(framesOf(pair.peer), [{ type: 'joined', room: HALL, cursor: `${start.split('.', 1)[0]}.5`, gap: true }])
})

t.test('what a node was not told it reads, in order, before it goes on; what it is told twice it passes on once', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  const meter = roomMeter(node)
  slow.isDeaf = true
  const other = await keeper(t, memberOf(slow))
  for (const payload of said(1, 3)) await other.publish(payload)
  t.same(taleOf(member.peer), ['joined'])
  slow.isDeaf = false
  await other.publish('4')
  await member.peer.until(() => taleOf(member.peer).length === 5)
  t.same(taleOf(member.peer), ['joined', ...said(1, 4)])
  const [epoch = '', number] = cursorOf(member).split('.')
  slow.tell(HALL, epoch, { number: Number(number), from: 'other', sequence: 9, payload: '"4"' })
  slow.tell(HALL, epoch, { number: 1, from: 'other', sequence: 10, payload: '"1"' })
  slow.tell('nobody/here', epoch, { number: 1, from: 'other', sequence: 11, payload: '"1"' })
  await other.publish('5')
  await member.peer.until(() => taleOf(member.peer).length === 6)
  t.same(taleOf(member.peer).at(-1), '5')
  slow.isDeaf = true
  await other.publish('6')
  slow.resume()
  await member.peer.until(() => taleOf(member.peer).length === 7)
  t.same([await meter('heard'), await meter('delivered')], [7, 6], 'and one of a room that nobody is in')
})

/** Another node of the same cluster, which the test leaves alone. */
function memberOf ({ driver }: Slow) {
  const mine = { tell: slow.tell, hear: slow.hear, resume: slow.resume }
  return {
    join (member: Parameters<typeof driver.join>[0]) {
      const told = member.told.bind(member)
      const cluster = driver.join(member)
      member.told = told
      Object.assign(slow, mine)
      return cluster
    }
  }
}

t.test('what is told while the history is being read is read as well, and once', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  const other = await keeper(t, memberOf(slow))
  slow.isDeaf = true
  await other.publish('1')
  slow.isDeaf = false
  slow.isHeld = true
  await other.publish('2')
  const first = await asked(1)
  await other.publish('3')
  // The second was asked before it was said.
  slow.answer = recalled => ({ ...recalled, head: 2, to: 2, entries: recalled.entries.slice(0, 2) })
  slow.resume()
  first.resolve()
  const second = await asked(2)
  t.same(taleOf(member.peer).length <= 3, true)
  slow.answer = recalled => recalled
  await other.publish('4')
  second.resolve()
  await member.peer.until(() => taleOf(member.peer).length === 5)
  await turn()
  t.equal(slow.asked.length, 2, 'it was there already')
  t.same(taleOf(member.peer), ['joined', ...said(1, 4)])
  await node.publish('5')
  await member.peer.until(() => taleOf(member.peer).length === 6)
})

t.test('what a node has missed and cannot read any more it says to its members, but to those that do not speak of it', async t => {
  const node = await kept(t, { maxBuffered: 2000 })
  const [member, plain] = [await comeBack(node, undefined, 'short'), await node.open()]
  await into(plain, 'short')
  const other = await keeper(t, memberOf(slow), { maxBuffered: 2000 })
  slow.isDeaf = true
  for (const payload of said(1, 9)) await other.publish(payload, 'short')
  slow.isDeaf = false
  slow.resume()
  await member.peer.until(() => taleOf(member.peer, 'short').length === 7)
  t.same(taleOf(member.peer, 'short'), ['joined', 'gap', ...said(5, 9)], 'it goes on where the history begins')
  t.match(framesOf(member.peer, 'short')[1]?.cursor, /\.4$/)
  await settled(plain)
  t.same(taleOf(plain.peer, 'short'), said(5, 9))

  slow.isDeaf = true
  for (let n = 0; n < 4; n++) await other.publish('x'.repeat(900), 'short')
  slow.isDeaf = false
  await other.publish('14', 'short')
  await member.peer.until(() => taleOf(member.peer, 'short').length === 8)
  t.same(framesOf(member.peer, 'short')[7], { type: 'joined', room: 'short', cursor: cursorOf(member, 'short'), gap: true }, 'too much to be sent at once')
  t.match(cursorOf(member, 'short'), /\.14$/)
  await other.publish('15', 'short')
  await member.peer.until(() => taleOf(member.peer, 'short').length === 9)
})

t.test('a room of another epoch is a gap, and all of it comes; nobody who is coming back is given a part', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  await node.publish('1')
  const start = cursorOf(member)
  slow.isHeld = true
  const back = await node.open({ speaks: true })
  back.peer.say({ type: 'join', room: HALL, cursor: start })
  const reading = await asked(1)
  slow.isHeld = false
  slow.answer = recalled => ({ epoch: 'another', head: 2, from: 0, to: 2, entries: said(1, 2).map((text, i) => ({ number: i + 1, from: 'other', sequence: i + 1, payload: `"new ${text}"` })), ...(recalled.epoch === '' && recalled) })
  slow.tell(HALL, 'another', { number: 2, from: 'other', sequence: 2, payload: '"new 2"' })
  await member.peer.until(() => taleOf(member.peer).length === 5)
  t.same(framesOf(member.peer).slice(2).map(({ type, payload, cursor, gap }) => [type, payload, cursor, gap]), [
    ['joined', undefined, 'another.0', true], ['message', 'new 1', 'another.1', undefined], ['message', 'new 2', 'another.2', undefined]
  ])
  reading.resolve()
  await back.peer.until(() => taleOf(back.peer).length === 1)
  t.same(framesOf(back.peer), [{ type: 'joined', room: HALL, cursor: 'another.2', gap: true }])
})

t.test('a node that does not know where a room is lets members in all the same, and tells them when it does', async t => {
  const node = await kept(t)
  slow.isAway = true
  const [member, other] = [await comeBack(node), await comeBack(node, 'x.1')]
  for (const { peer } of [member, other]) t.same(framesOf(peer), [{ type: 'joined', room: HALL, gap: true }])
  t.same(await joinFrom(member), { type: 'joined', room: HALL, gap: true }, 'asked again')
  t.same(await node.publish('1'), { delivered: 0, published: false })
  member.peer.say({ type: 'message', room: HALL, payload: '2', id: 'an id' })
  t.match(await member.peer.takeFrame('error'), { code: 'unavailable', action: 'retry', room: HALL, id: 'an id' })
  t.match(await node.poll({ [HALL]: null }), { status: 503, body: { code: 'FST_HYBRID_AUTH_UNAVAILABLE' } })
  slow.isAway = false
  // It asks again by itself.
  await Promise.all([member, other].map(async ({ peer }) => peer.until(() => taleOf(peer).length > 1 && taleOf(peer).at(-1) === 'gap' && framesOf(peer).at(-1)?.cursor !== undefined)))
  await node.publish('3')
  for (const { peer } of [member, other]) {
    await peer.until(() => taleOf(peer).at(-1) === '3')
    t.match(framesOf(peer).at(-2), { type: 'joined', cursor: /\.0$/, gap: true })
  }
})

t.test('a history that cannot be read for who comes back is a gap for him alone', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  await node.publish('1')
  await member.peer.until(() => taleOf(member.peer).length === 2)
  const start = framesOf(member.peer)[0]?.cursor
  slow.isAway = true
  t.same(taleOf((await comeBack(node, start)).peer), ['gap'])
  slow.isAway = false
  t.same(taleOf((await comeBack(node, start)).peer), ['1', 'joined'])
  slow.answer = recalled => ({ ...recalled, head: 0, from: 0, to: 0, entries: [] })
  t.same(taleOf((await comeBack(node, start)).peer), ['gap'], 'one that is older than this node')
  t.same(taleOf(member.peer), ['joined', '1'])
})

t.test('who was on a node that was ahead is given the rest, when this one has it', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  const other = await keeper(t, memberOf(slow))
  const ahead = await comeBack(other)
  slow.isDeaf = true
  for (const payload of said(1, 2)) await other.publish(payload)
  await ahead.peer.until(() => taleOf(ahead.peer).length === 3)
  const cursor = cursorOf(ahead)
  await other.publish('3')
  slow.isDeaf = false
  t.same(taleOf((await comeBack(node, cursor)).peer), ['3', 'joined'])
  t.same(taleOf(member.peer), ['joined', ...said(1, 3)])
})

t.test('a message that its own node is not told of is read, and its publisher waits for it', async t => {
  const node = await kept(t)
  const [member, leaver] = [await comeBack(node), await comeBack(node, undefined, 'short')]
  slow.isDeaf = true
  t.same(await node.publish('1'), { delivered: 1, published: true })
  await member.peer.until(() => taleOf(member.peer).length === 2)
  const publishing = node.publish('2', 'short')
  await turn()
  await turn()
  leaver.there.connection.leave('short')
  t.same(await publishing, { delivered: 0, published: true }, 'nobody is left to wait for')
  const unread = node.publish('3')
  await turn()
  await turn()
  slow.isAway = true
  t.same(await unread, { delivered: 0, published: true }, 'it is there, and nobody here has had it yet')
  slow.isDeaf = false
  const results = await Promise.all(Array.from({ length: 1002 }, () => node.publish('x')))
  t.same(results.filter(({ delivered, published }) => delivered !== 0 || published), [])
})

t.test('a room that is left while its history is being read is read for nobody', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  slow.isHeld = true
  slow.resume()
  const reading = await asked(1)
  slow.resume()
  member.there.connection.leave(HALL)
  reading.resolve()
  await turn()
  t.equal(slow.asked.length, 1)
  slow.isHeld = false
  slow.isAway = true
  await into(member, HALL)
  member.there.connection.leave(HALL)
  await settled(member)
  slow.isAway = false
  t.same(await joinFrom(member), { type: 'joined', room: HALL, cursor: cursorOf(member) })
})

t.test('two who come at once have one opening between them', async t => {
  const node = await kept(t)
  const pairs = [await node.open({ speaks: true }), await node.open({ speaks: true })]
  slow.isHeld = true
  const joining = pairs.map(({ there }) => there.connection.join(HALL))
  const opening = await asked(1)
  // Its channel has come back before it was known where it is.
  slow.resume()
  opening.resolve()
  ;(await asked(2)).resolve()
  t.same(await Promise.all(joining), [true, true])
  t.equal(slow.asked.length, 2)
  for (const { peer } of pairs) {
    await peer.until(() => taleOf(peer).length === 1)
    t.match(framesOf(peer), [{ type: 'joined', cursor: /\.0$/ }])
  }
})

for (const isKnown of [true, false]) {
  t.test(`a channel that is there again while a room is being opened opens it, ${isKnown ? 'before' : 'after'} others are`, async t => {
    const node = await kept(t)
    const pair = await node.open({ speaks: true })
    await into(pair, 'plain')
    const channel = deferred<void>()
    slow.subscribing = channel.promise
    slow.isHeld = true
    const joining = pair.there.connection.join(HALL)
    slow.resume()
    const opening = await asked(1)
    if (isKnown) {
      opening.resolve()
      for (let n = 0; n < 3; n++) await turn()
    }
    channel.resolve()
    await turn()
    opening.resolve()
    t.equal(await joining, true)
    t.equal(slow.asked.length, 1, 'asked once')
    await settled(pair)
    t.match(framesOf(pair.peer), [{ type: 'joined', cursor: /\.0$/ }])
  })
}

t.test('what was said once and stands in the history again is passed on once, and counted', async t => {
  const node = await kept(t)
  const member = await comeBack(node)
  const [epoch = ''] = cursorOf(member).split('.')
  const entry = (number: number, sequence: number) => ({ number, from: 'other', sequence, payload: `"${sequence}"` })
  for (const [number, sequence] of [[1, 5], [2, 5], [2, 4], [2, 6]] as const) slow.tell(HALL, epoch, entry(number, sequence))
  await member.peer.until(() => taleOf(member.peer).length === 3)
  t.equal(node.status().ignored, 2, 'told')
  slow.answer = () => ({ epoch, head: 6, from: 2, to: 6, entries: [entry(3, 6), entry(4, 7), entry(5, 1), entry(6, 8)] })
  slow.resume()
  await member.peer.until(() => taleOf(member.peer).length === 5)
  t.same(framesOf(member.peer).slice(1).map(({ payload, cursor }) => [payload, cursor]), [['5', 1], ['6', 2], ['7', 4], ['8', 6]].map(([payload, number]) => [payload, `${epoch}.${number}`]))
  t.equal(node.status().ignored, 4, 'and read')
})

t.test('nodes that differ about what is kept hear each other', async t => {
  const cluster = memoryCluster()
  const node = await keeper(t, cluster)
  const other = await keeper(t, cluster, { patterns: { [HALL]: true } })
  const [near, far] = [await comeBack(node), await comeBack(other)]
  await node.publish('1')
  await other.publish('2')
  for (const { peer } of [near, far]) {
    await peer.until(() => taleOf(peer).length === 3)
    t.same(taleOf(peer), ['joined', '1', '2'])
  }
  t.same([near, far].map(pair => framesOf(pair.peer).map(one => 'cursor' in one)), [[true, true, false], [false, false, false]])
})

t.test('a member that does not read is closed when all have what there is, also by what is made up for', async t => {
  const node = await kept(t, { maxBuffered: 20_000, maxPayload: 15_000 })
  const [quick, stuck] = [await comeBack(node), await comeBack(node)]
  stuck.peer.socket.pause()
  const texts = Array.from({ length: 600 }, (_, n) => `${n} ${'x'.repeat(14_000)}`)
  for (const text of texts) await node.publish(text)
  await quick.peer.until(() => taleOf(quick.peer).length === 601)
  t.ok(taleOf(quick.peer).slice(1).every((text, n) => text === texts[n]))
  stuck.peer.socket.resume()
  t.equal((await stuck.peer.end).code, 4008)
})

t.test('a room whose messages find no place in an answer keeps its cursor, whether or not they were looked for', async t => {
  for (const size of [5000, 5700]) {
    const node = await kept(t, { maxBuffered: 6000, patterns: { one: { join: true, history: 10 }, two: { join: true, history: 10 } } })
    const cursors = { one: (await node.pollOf(null, 'one')).cursor, two: (await node.pollOf(null, 'two')).cursor }
    for (const room of ['one', 'two']) await node.publish('x'.repeat(size), room)
    const { one, two } = (await node.poll(cursors)).body.rooms
    const [full, empty] = one?.messages.length === 1 ? [one, two] : [two, one]
    t.equal(full?.messages.length, 1)
    t.same(empty, { messages: [], cursor: empty === one ? cursors.one : cursors.two })
  }
})

t.test('who is nobody may not poll, and an answer is not to be stored', async t => {
  const node = await kept(t, {}, {
    routes (app) {
      app.post('/open', request => app.hybridAuth.rooms.poll(request))
      pollable(app)
    }
  })
  const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"rooms":{}}' }
  const open = await ask(node.host, '/open', init)
  t.same([open.status, codeOf(open.body)], [401, 'FST_HYBRID_AUTH_NOT_AUTHENTICATED'])
  const { status, headers } = await ask(node.host, '/poll', { ...init, headers: { ...init.headers, ...bearer(tokenOf('alice')).headers } })
  t.same([status, headers.get('cache-control')], [200, 'no-store'])
})

t.test('what is old is no history, and a room is forgotten a day after its last message', async t => {
  const clock = setClock(t)
  const node = await kept(t, { patterns: { [HALL]: { join: true, history: { messages: 10, maxAge: 1000 } } } })
  const { cursor } = await node.pollOf(null)
  await node.publish('1')
  clock.move(600)
  await node.publish('2')
  t.same((await node.pollOf(cursor)).messages.length, 2)
  clock.move(600)
  t.match(await node.pollOf(cursor), { messages: [], gap: true })
  const [epoch] = cursor.split('.')
  t.same((await node.pollOf(`${epoch}.1`)).messages.map(({ payload }) => payload), ['2'])
})

t.test('a poll whose user is revoked, or whose token ends, while it waits is given nothing', async t => {
  for (const [what, end] of [['revoked', async (node: Keeper) => { await node.app.hybridAuth.revoke({ userId: 'alice' }) }], ['expired', async () => { setClock(t).move(7_200_000) }]] as const) {
    const asked = deferred<void>()
    const verdict = deferred<boolean>()
    const node = await keeper(t, memoryCluster(), { patterns: { [HALL]: { join: () => { asked.resolve(undefined); return verdict.promise }, history: 10 } } })
    const poll = node.poll({ [HALL]: null })
    await asked.promise
    await end(node)
    await node.publish('a secret')
    verdict.resolve(true)
    const { status, body } = await poll
    t.equal(status, 401, what)
    t.notMatch(JSON.stringify(body), /secret/)
  }
})
