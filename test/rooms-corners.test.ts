/** What is left of rooms and live permissions: other ways to write a frame, and answers that come when something else has happened. */
import { once } from 'node:events'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import { Registry } from 'prom-client'
import t from 'tap'
import { WebSocket } from 'ws'
import hybridAuth, { type AuthContext } from '../lib/index.js'
import { parseOptions } from '../lib/options.js'
import { parseClientFrame, parseRoomFrame } from '../lib/protocol.js'
import { parseRouteAuth, parseRule } from '../lib/route-options.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { watch } from './canary.js'
import { goodClaims, goodToken, JWT, portOf, SESSION_SECRET, signHs256 } from './helpers.js'
import { eventually, live, lookNow, setClock, type Peer } from './live.js'
import { audited, updateOf } from './revoking.js'
import { deferred, MapStore, type Deferred } from './stores.js'

const ANY = { authorize: () => true }
const payloadsOf = (peer: Peer) => peer.framesOf('message').map(({ payload }) => payload)

t.test('a frame that is JSON and no object is none of ours', t => {
  for (const text of ['1', '"join"', 'null', 'true', '{', '']) t.same([parseRoomFrame(text), parseClientFrame(text)], [null, null], text)
  t.same(parseRoomFrame('{"type":"message","room":"r","payload":null,"id":1}'), { type: 'message', room: 'r', payload: null, id: 1 })
  t.equal(parseRoomFrame('{"type":"message","room":"r"}'), null, 'a message without a payload')
  t.same(parseRoomFrame('{"type":"message","room":"r","payload":1,"id":{}}'), { type: 'message', room: 'r', payload: 1 }, 'an id is a text or a number')
  t.end()
})

t.test('84: a list where an object of options belongs is refused by its path, and never read as one of which nothing was given', async t => {
  const list: object = []
  const refusal = (option: string, more = '') => ({ code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`option ${option}: must be an object${more}`) })
  t.throws(() => parseOptions(list), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
  for (const name of ['failures', 'credentials', 'limits', 'rooms', 'revocations'] as const) t.throws(() => parseOptions({ jwt: JWT, [name]: list }), refusal(name))
  t.throws(() => parseOptions({ jwt: JWT, limits: { connections: list } }), refusal('limits.connections'))
  t.throws(() => parseRule(list), refusal('require'))
  t.throws(() => parseRouteAuth(list, true, 'GET /live'), refusal('auth', ' \\(GET /live\\)'))
  t.throws(() => parseRouteAuth({ messages: { a: list } }, true, 'GET /live'), refusal('auth.messages.a'))
  const { app } = await live(t)
  await t.rejects(app.hybridAuth.disconnect({ userId: 'alice' }, list), refusal('options'))
  await t.rejects(app.hybridAuth.setPermissions('alice', [], list), refusal('scope'))
})

t.test('what a name cannot hold stands in it as encodeURIComponent writes it, and stands for nothing else', async t => {
  const { open } = await live(t, { auth: { rooms: { patterns: ['user/:userId', 'of/:tenantId'] } } })
  const { there } = await open({ token: goodToken({ sub: 'auth0|7 /ä%', companyId: 'acme' }) })
  const [own, decoded] = [`user/${encodeURIComponent('auth0|7 /ä%')}`, 'user/auth0|7']
  const joined = await Promise.all([own, decoded, 'user/auth0%7C7', 'user/%', 'user/%zz', 'of/acme', 'of/%61cme', 'of/%2561cme', own.replaceAll('%7C', '%7c')].map(async room => [room, await there.connection.join(room)]))
  t.same(joined.filter(([, isIn]) => isIn).map(([room]) => room), [own, 'of/acme'], 'and in one way')
  const half = await open({ token: goodToken({ sub: '\ud800', companyId: 'acme' }) })
  t.equal(await half.there.connection.join('user/%ED%A0%80'), false, 'what cannot be written so has no room')
})

t.test('86: patterns that never decide, and rules that say nothing, are refused by their path', async t => {
  const table: Array<[object, RegExp]> = [
    [{ 'a/:userId': true, 'a/:tenantId': true }, /rooms\.patterns\.a\/:tenantId: has the form/], [['a', 'a'], /rooms\.patterns\.1: has the form/],
    [{ ['x'.repeat(129)]: true }, /is longer than any name/], [{ a: {} }, /rooms\.patterns\.a: says nothing/], [{ a: { join: {} } }, /rooms\.patterns\.a\.join: says nothing/]
  ]
  for (const [patterns, message] of table) await t.rejects(live(t, { auth: { rooms: { patterns: patterns as string[] } } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message })
  for (const type of ['join', 'leave', 'message']) {
    const message = new RegExp(`auth\\.messages\\.${type}: is a frame about rooms.*\\(GET /app\\)`)
    await t.rejects(live(t, { auth: { rooms: ANY }, route: { rooms: true, messages: { [type]: { role: 'a' } } } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message })
    t.throws(() => parseRouteAuth({ rooms: true, messages: { [type]: { role: 'a' } } }, true), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
    t.doesNotThrow(() => parseRouteAuth({ messages: { [type]: { role: 'a' } } }, true), 'without rooms it is a type like others')
  }
  t.doesNotThrow(() => parseRouteAuth({ rooms: true, messages: { field: 'event', join: { role: 'a' } } }, true), 'and under another member')
})

t.test('84: what publish() is given beside the message is checked by name', async t => {
  const { app } = await live(t)
  const odd: object[] = [{ exept: 1 }, { except: null }, { except: 'id' }, []]
  for (const options of odd) await t.rejects(app.hybridAuth.rooms.publish('r', 1, options), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /options/ })
})

for (const perMessageDeflate of [true, false]) {
  t.test(`messages of every length arrive as they were published, ${perMessageDeflate ? 'compressed' : 'plain'}, among those of the application`, async t => {
    const app = Fastify(watch(t))
    t.teardown(() => app.close())
    await app.register(websocket, { options: { perMessageDeflate } })
    await app.register(hybridAuth, { jwt: JWT, rooms: { maxPayload: 200_000 } })
    const joined = deferred<void>()
    const sends: Array<(text: string) => void> = []
    app.get('/rooms', { websocket: true, auth: {} }, async (socket: WebSocket) => {
      sends.push(text => { socket.send(text) })
      await app.hybridAuth.connection(socket)?.join('r')
      joined.resolve()
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    const client = new WebSocket(`ws://127.0.0.1:${portOf(app)}/rooms`, { headers: { authorization: `Bearer ${goodToken()}` } })
    t.teardown(() => { client.terminate() })
    const texts: string[] = []
    client.on('message', (data: Buffer) => { texts.push(data.toString()) })
    await once(client, 'open')
    await joined.promise
    t.equal(client.extensions !== '', perMessageDeflate)
    const lengths = [0, 1, 80, 85, 86, 87, 90, 125, 126, 127, 1000, 65_490, 65_495, 65_496, 65_500, 65_535, 65_536, 70_000, 150_000]
    for (const length of lengths) {
      await app.hybridAuth.rooms.publish('r', 'ä'.repeat(length / 2))
      sends[0]?.(`of the application ${length}`)
    }
    await eventually('all have come', () => texts.length === 2 * lengths.length)
    t.same(texts, lengths.flatMap(length => [
      `{"type":"message","room":"r","payload":"${'ä'.repeat(length / 2)}"}`, `of the application ${length}`
    ]))
  })
}

t.test('a message goes behind one of the application that is still being compressed or read', async t => {
  const { app, open } = await live(t, { auth: { rooms: ANY } })
  const { there, peer } = await open()
  await there.connection.join('r')
  // ws reads a Blob before it is sent.
  there.socket.send(new Blob(['first']), { binary: false })
  await app.hybridAuth.rooms.publish('r', 'second')
  await peer.until(() => peer.texts.length === 2)
  t.same(peer.texts, ['first', '{"type":"message","room":"r","payload":"second"}'])
})

t.test('publish() says where the other nodes cannot be told, and it is counted', async t => {
  const driver = memoryCluster()
  let canTell = true
  const cluster: ClusterDriver = { join: member => Object.assign(driver.join(member), { broadcast: () => canTell }) }
  const { app, open } = await live(t, { auth: { cluster } })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  const { there } = await open()
  await there.connection.join('r')
  t.same(await app.hybridAuth.rooms.publish('r', 1), { delivered: 1, published: true })
  canTell = false
  t.same(await app.hybridAuth.rooms.publish('r', 2), { delivered: 1, published: false })
  t.match(await registry.metrics(), /room_messages_total\{step="lost"\} 1/)
})

t.test('a message whose verdict comes when its sender was taken out, or has ended, is not published', async t => {
  const asked: Array<Deferred<boolean>> = []
  const authorize = (_auth: AuthContext, _room: string, action: string) => {
    if (action === 'join') return true
    const answer = deferred<boolean>()
    asked.push(answer)
    return answer.promise
  }
  const { open } = await live(t, { auth: { rooms: { authorize } }, route: { rooms: true } })
  const [alice, bob] = [await open({ speaks: true }), await open({ speaks: true, token: goodToken({ sub: 'bob' }) })]
  for (const { there } of [alice, bob]) await there.connection.join('r')
  alice.peer.say({ type: 'message', room: 'r', payload: 1, id: 'a' })
  await eventually('it is judged', () => asked.length === 1)
  t.equal(alice.there.connection.leave('r'), true)
  asked[0]?.resolve(true)
  t.match(await alice.peer.takeFrame('error'), { code: 'not_joined', room: 'r', id: 'a' })
  await alice.there.connection.join('r')
  alice.peer.say({ type: 'message', room: 'r', payload: 2 })
  await eventually('it is judged', () => asked.length === 2)
  alice.there.connection.close('Forbidden')
  asked[1]?.resolve(true)
  t.equal((await alice.peer.end).code, 4007)
  t.ok(await bob.peer.echoed('after'))
  t.same(payloadsOf(bob.peer), [])
})

t.test('a refresh whose rule is still asked when the permissions change is answered all the same, and once', async t => {
  const rules: Array<Deferred<boolean>> = []
  const { app, open, types } = await audited(t, {
    route: {
      check (auth) {
        if (auth.version === 1) return true
        const answer = deferred<boolean>()
        rules.push(answer)
        return answer.promise
      }
    }
  })
  const { peer } = await open({ speaks: true })
  peer.say(updateOf(goodToken()))
  await eventually('the rule is asked', () => rules.length === 1)
  const set = app.hybridAuth.setPermissions('alice', ['a'])
  rules[0]?.resolve(true)
  t.type((await peer.takeFrame('auth_updated')).expiresIn, 'number')
  rules[1]?.resolve(true)
  t.match(await set, { matched: 1, closed: 0 })
  t.match(await peer.takeFrame('permission_update'), { permissions: ['a'] })
  t.equal(peer.framesOf('auth_updated').length, 1)
  t.equal(types().filter(type => type === 'refreshed').length, 1)
  peer.say(updateOf(signHs256(goodClaims({ permissions: ['b'] }))))
  await eventually('the rule is asked', () => rules.length === 3)
  peer.say(updateOf(signHs256(goodClaims({ permissions: ['c'] }))))
  await eventually('the rule is asked', () => rules.length === 4)
  for (const rule of rules.slice(2)) rule.resolve(true)
  await peer.takeFrame('auth_updated')
  t.ok(await peer.echoed('after'))
  t.equal(peer.framesOf('auth_updated').length, 2, 'of two refreshes the later is answered')
})

/** A store that extends sessions when the test says so. */
class SlowStore extends MapStore {
  readonly touched: Array<() => void> = []

  touch (_sessionId: string, _session: unknown, callback: () => void): void {
    this.touched.push(callback)
  }
}

t.test('57: what a session may do is asked again where that was forgotten while the store was waited for; a source that fails is a store that does', async t => {
  const clock = setClock(t)
  const store = new SlowStore()
  const asked: Array<Deferred<unknown>> = []
  let isSlow = false
  const { app, open, login } = await live(t, {
    session: { store, cookie: { secure: false, maxAge: 3_600_000 } },
    auth: {
      heartbeat: false,
      session: { user: stored => stored.user ?? null, store, secret: SESSION_SECRET, revalidate: 1000, maxStale: 300_000, touch: true },
      permissions () {
        if (!isSlow) return ['a']
        const answer = deferred<unknown>()
        asked.push(answer)
        return answer.promise as Promise<string[]>
      }
    }
  })
  const users = ['alice', 'bob', 'carol']
  const pairs = await Promise.all(users.map(async userId => open({ cookie: await login({ userId }) })))
  const [alice, bob, carol] = pairs
  for (const { peer } of pairs) t.ok(await peer.echoed('used'))
  clock.move(5000)
  for (const { there } of pairs) lookNow(there.connection)
  await eventually('the store is to extend them', () => store.touched.length === 3)
  // What the source has said of them is forgotten, though nobody is meant.
  await Promise.all(users.map(async userId => app.hybridAuth.revoke({ userId, tenantId: 'elsewhere' })))
  isSlow = true
  for (const done of store.touched) done()
  await eventually('the source is asked', () => asked.length === 3)
  bob?.there.connection.close()
  const byUser = asked
  byUser[0]?.resolve(['b'])
  byUser[1]?.resolve(['b'])
  byUser[2]?.resolve(null)
  await eventually('it is known', () => alice?.there.connection.can('b') === true)
  t.ok(await carol?.peer.echoed('still served'))
  t.same(pairs.map(({ there }) => there.connection.can('b')), [true, false, false])
  t.equal(app.hybridAuth.count(), 2)
})
