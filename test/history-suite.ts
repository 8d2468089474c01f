/** What rooms with history have to do, whatever nodes talk through. */
import { setImmediate as turn } from 'node:timers/promises'
import type { Test } from 'tap'
import type { RoomOptions } from '../lib/index.js'
import { tokenOf, type MakeDriver } from './cluster-suite.js'
import { comeBack, cursorOf, framesOf, HALL, joinFrom, keeper, said, taleOf, type Keeper } from './histories.js'
import { into } from './rooms-suite.js'

const END = 'end'

/** @param options of the test that they are all in */
export function historySuite (t: Test, name: string, makeDriver: MakeDriver, options: { skip?: string | false } = {}): void {
  t.test(name, { timeout: 90_000, ...options }, async t => {
    const two = async (t: Test, rooms?: RoomOptions): Promise<[Keeper, Keeper]> => {
      const driverOf = await makeDriver(t)
      return [await keeper(t, await driverOf(), rooms), await keeper(t, await driverOf(), rooms)]
    }

    t.test('all members on all nodes have the same messages in the same order, whoever published them, under cursors that rise', async t => {
      const [a, b] = await two(t)
      const members = await Promise.all([a, a, b].map(node => comeBack(node)))
      const published = []
      for (let n = 0; n < 200; n++) {
        published.push(a.publish(`a${n}`), b.publish(`b${n}`))
        if (n % 20 === 0) await turn()
      }
      for (const [i, result] of (await Promise.all(published)).entries()) if (result.delivered !== (i % 2 === 0 ? 2 : 1) || !result.published) t.fail(JSON.stringify(result))
      t.same(await a.publish(END), { delivered: 2, published: true })
      const told = await Promise.all(members.map(async ({ peer }) => {
        await peer.until(() => taleOf(peer).at(-1) === END)
        return framesOf(peer).slice(1)
      }))
      t.equal(told[0]?.length, 401)
      for (const other of told) t.same(other, told[0])
      const payloads = told[0]?.map(({ payload }) => String(payload)) ?? []
      for (const of of ['a', 'b']) t.same(payloads.filter(text => text.startsWith(of)), said(0, 199, of), 'each publisher in its order')
      const numbers = told[0]?.map(({ cursor }) => String(cursor).split('.')) ?? []
      t.equal(new Set(numbers.map(([epoch]) => epoch)).size, 1)
      t.same(numbers.map(([, number]) => Number(number)), said(1, 401).map(Number))
      t.ok(String(told[0]?.at(-1)?.cursor).length <= 64)
    })

    t.test('who comes back, to whichever node, is given what was said since, is told that it is in, and hears what follows', async t => {
      const [a, b] = await two(t)
      const first = await comeBack(a)
      t.match(framesOf(first.peer), [{ type: 'joined', room: HALL, cursor: /^[\w-]{16}\.0$/ }])
      await a.publish('1')
      await b.publish('2')
      await first.peer.until(() => taleOf(first.peer).length === 3)
      const cursor = cursorOf(first)
      first.peer.socket.terminate()
      await first.there.closed
      for (const payload of said(3, 6)) await (Number(payload) % 2 === 0 ? a : b).publish(payload)
      const backs = await Promise.all([a, b].map(node => comeBack(node, cursor)))
      for (const { peer } of backs) {
        t.same(taleOf(peer), [...said(3, 6), 'joined'])
        const [last, joined] = framesOf(peer).slice(-2)
        t.same(joined, { type: 'joined', room: HALL, cursor: last?.cursor }, 'where it is')
      }
      await b.publish('7')
      for (const back of backs) {
        await back.peer.until(() => taleOf(back.peer).length === 6)
        t.same(taleOf(back.peer).at(-1), '7')
        t.same(taleOf((await comeBack(a, cursorOf(back))).peer), ['joined'], 'who has everything is given nothing')
      }
    })

    t.test('what was said while nobody was there is given to who comes back', async t => {
      const [a, b] = await two(t)
      const { cursor } = await b.pollOf(null)
      for (const payload of said(1, 3)) t.same(await a.publish(payload), { delivered: 0, published: true })
      t.same(taleOf((await comeBack(b, cursor)).peer), [...said(1, 3), 'joined'])
    })

    t.test('many who come back while two nodes publish have each message once and in order', async t => {
      const [a, b] = await two(t, { patterns: { [HALL]: { join: true, publish: true, history: 10_000 } } })
      const start = cursorOf(await comeBack(a))
      let n = 0
      const over = new AbortController()
      const order: unknown[] = []
      const witness = await comeBack(b, start)
      const publishing = [a, b].map(async node => {
        while (!over.signal.aborted) {
          await node.publish(++n)
          if (n % 7 === 0) await turn()
        }
      })
      const visits = Array.from({ length: 6 }, async (_, i) => {
        const had: unknown[] = []
        let cursor = start
        for (let visit = 0; visit < 6; visit++) {
          const pair = await comeBack((i + visit) % 2 === 0 ? a : b, cursor)
          await pair.peer.until(() => taleOf(pair.peer).length > 3)
          pair.peer.socket.terminate()
          await pair.there.closed
          if (taleOf(pair.peer).includes('gap')) t.fail('a gap')
          had.push(...taleOf(pair.peer).filter(one => one !== 'joined'))
          cursor = cursorOf(pair)
        }
        return had
      })
      const had = await Promise.all(visits)
      over.abort()
      await Promise.all(publishing)
      await a.publish(END)
      await witness.peer.until(() => taleOf(witness.peer).at(-1) === END)
      order.push(...taleOf(witness.peer).slice(1))
      t.equal(order.length, n + 1)
      for (const one of had) t.same(one, order.slice(0, one.length), 'a beginning of what everybody has')
    })

    t.test('what is not to be had any more is a gap, and nothing is sent of before', async t => {
      const [a, b] = await two(t)
      const member = await comeBack(a, undefined, 'short')
      const start = cursorOf(member, 'short')
      for (const payload of said(1, 9)) await b.publish(payload, 'short')
      await member.peer.until(() => taleOf(member.peer, 'short').length === 10)
      const [epoch] = start.split('.')
      const at = (number: number | string) => `${epoch}.${number}`
      const back = async (cursor: unknown) => taleOf((await comeBack(b, cursor, 'short')).peer, 'short')
      t.same(await back(at(4)), [...said(5, 9), 'joined'], 'as far as it goes')
      const bad = [at(3), start, at(10), at(2 ** 53), at('9e0'), at('09'), at(-1), at(''), at('1.0'), `${epoch}`, 'x.4', '', '.', 'a'.repeat(5000), '__proto__.4', '\u0000', 4, 0, true, {}, [at(4)]]
      for (const cursor of bad) t.same(await back(cursor), ['gap'], JSON.stringify(cursor).slice(0, 40))
      t.same(await back(null), ['joined'], 'null is none')
      t.same(await back(undefined), ['joined'], 'and without one nothing is missed')
      const gap = await joinFrom(await b.open({ speaks: true }), 'x', 'short')
      t.same(gap, { type: 'joined', room: 'short', cursor: at(9), gap: true })
      for (const cursor of bad.filter(one => typeof one === 'string' && one.length < 100)) {
        t.same(await a.pollOf(cursor as string, 'short'), { messages: [], cursor: at(9), gap: true }, JSON.stringify(cursor))
      }
    })

    t.test('more than may wait for a member is a gap as well', async t => {
      const [a, b] = await two(t, { maxBuffered: 4000 })
      const member = await comeBack(a)
      const start = cursorOf(member)
      for (let n = 0; n < 2; n++) await b.publish('x'.repeat(1000))
      t.same(taleOf((await comeBack(a, start)).peer).length, 3)
      for (let n = 0; n < 3; n++) await b.publish('x'.repeat(1000))
      t.same(taleOf((await comeBack(a, start)).peer), ['gap'])
      await b.publish('x'.repeat(10_000))
      await member.peer.until(() => taleOf(member.peer).length === 7)
      t.same(taleOf((await comeBack(b, framesOf(member.peer).at(-2)?.cursor)).peer), ['gap'], 'one that is too large by itself')
      t.equal((await a.pollOf(String(framesOf(member.peer).at(-2)?.cursor))).messages.length, 1, 'is had by a poll')
    })

    t.test('a room without history is as it was, whatever cursor a client has', async t => {
      const [a] = await two(t)
      const pair = await a.open({ speaks: true })
      t.same(await joinFrom(pair, 'x.1', 'plain'), { type: 'joined', room: 'plain' })
      t.same(await joinFrom(pair, 'x.1', 'plain'), { type: 'joined', room: 'plain' })
      await a.publish(1, 'plain')
      const other = await comeBack(a, undefined, 'plain')
      other.peer.say({ type: 'message', room: 'plain', payload: 2, id: 'an id' })
      await pair.peer.until(() => taleOf(pair.peer, 'plain').length === 4)
      t.same(framesOf(pair.peer, 'plain').slice(2), [1, 2].map(payload => ({ type: 'message', room: 'plain', payload })))
      t.same((await a.poll({ plain: null })).body.rooms, { plain: { error: 'no_history' } })
    })

    t.test('who is in is told so again, and where it is; whom the server joins begins there', async t => {
      const [a, b] = await two(t)
      const member = await comeBack(a)
      await b.publish('1')
      await member.peer.until(() => taleOf(member.peer).length === 2)
      t.same(await joinFrom(member, 'garbage'), { type: 'joined', room: HALL, cursor: cursorOf(member) })
      const joined = await b.open({ speaks: true })
      await into(joined, HALL)
      await b.publish('2')
      await joined.peer.until(() => taleOf(joined.peer).length === 2)
      t.same(taleOf(joined.peer), ['joined', '2'])
      const [first, second] = framesOf(joined.peer)
      t.same([first?.cursor, second?.cursor], [1, 2].map(number => `${cursorOf(member).split('.', 1)[0]}.${number}`))
    })

    t.test('an exception is left out on its own node alone, and finds the message in the history; an id goes with it', async t => {
      const [a, b] = await two(t)
      const [says, near, far] = [await comeBack(a), await comeBack(a), await comeBack(b)]
      const start = cursorOf(says)
      t.same(await a.app.hybridAuth.rooms.publish(HALL, 'not for one', { except: near.there.connection }), { delivered: 1, published: true })
      for (const id of ['an id', 7, '', 'x'.repeat(128), 'x'.repeat(129), true]) says.peer.say({ type: 'message', room: HALL, payload: id, id })
      await far.peer.until(() => taleOf(far.peer).length === 8)
      await b.publish(END)
      for (const { peer } of [says, near, far]) await peer.until(() => taleOf(peer).at(-1) === END)
      t.same([says, near, far].map(({ peer }) => taleOf(peer).length), [3, 8, 9])
      t.same(framesOf(far.peer).slice(2, -1).map(({ id }) => id), ['an id', 7, undefined, 'x'.repeat(128), undefined, undefined])
      const back = await comeBack(a, start)
      t.same(framesOf(back.peer).slice(0, -1), framesOf(far.peer).slice(1), 'as all have it')
      t.same((await b.pollOf(start)).messages, framesOf(far.peer).slice(1).map(({ type: _type, room: _room, ...kept }) => kept))
    })

    t.test('where the publishing node has no member, nobody of it gets a message that is told', async t => {
      const [a, b] = await two(t)
      const far = await comeBack(b)
      t.same(await a.publish('1'), { delivered: 0, published: true })
      await far.peer.until(() => taleOf(far.peer).length === 2)
      t.same(taleOf(far.peer), ['joined', '1'])
    })

    t.test('who polls has each message once and in order, and may take turns with a socket', async t => {
      const [a, b] = await two(t)
      const { cursor, ...rest } = await a.pollOf(null)
      t.same(rest, { messages: [] })
      t.same(await b.pollOf(null), { messages: [], cursor }, 'there is nothing yet, on any node')
      await a.publish({ n: 1, __proto__: null })
      await b.publish(null)
      const polled = await b.pollOf(cursor)
      t.same(polled.messages.map(({ payload }) => payload), [{ n: 1 }, null])
      t.equal(polled.cursor, polled.messages.at(-1)?.cursor)
      t.same(await a.pollOf(polled.cursor), { messages: [], cursor: polled.cursor })
      await a.publish('3')
      const back = await comeBack(b, polled.cursor)
      t.same(taleOf(back.peer), ['3', 'joined'])
      await a.publish('4')
      await back.peer.until(() => taleOf(back.peer).length === 3)
      await b.publish('5')
      t.same((await a.pollOf(String(framesOf(back.peer)[2]?.cursor))).messages.map(({ payload }) => payload), ['5'])
      t.same((await a.pollOf(cursor)).messages.length, 5)
    })

    t.test('an answer holds no more than may wait for a member, the rest comes with the next, and no room waits for ever', async t => {
      const patterns = { 'room/:userId': { join: true, history: 50 }, one: { join: true, history: 50 }, two: { join: true, history: 50 } } as const
      const [a] = await two(t, { maxBuffered: 8000, patterns })
      const rooms = ['room/alice', 'one', 'two']
      let cursors = Object.fromEntries((await Promise.all(rooms.map(async room => [room, (await a.pollOf(null, room)).cursor] as const))))
      for (let n = 0; n < 20; n++) for (const room of rooms) await a.publish(`${n} ${'x'.repeat(1500)}`, room)
      await a.publish('y'.repeat(20_000), 'two')
      const had: Record<string, unknown[]> = {}
      for (let poll = 0; poll < 40; poll++) {
        const { body: { rooms: answers } } = await a.poll(cursors)
        const size = JSON.stringify(answers).length
        if (size > 8500 && !Object.values(answers).some(({ messages }) => messages.length === 1 && JSON.stringify(messages).length > 20_000)) t.fail(`${size} bytes`)
        for (const [room, { messages, gap }] of Object.entries(answers)) {
          if (gap === true) t.fail('a gap')
          had[room] = [...had[room] ?? [], ...messages.map(({ payload }) => String(payload).split(' ', 1)[0]?.slice(0, 3))]
        }
        cursors = Object.fromEntries(Object.entries(answers).map(([room, { cursor }]) => [room, cursor]))
      }
      const all = said(0, 19)
      t.same(had, { 'room/alice': all, one: all, two: [...all, 'yyy'] })
    })

    t.test('who may join now may read, and who may not is told so and audited, each time', async t => {
      const [a] = await two(t, {
        patterns: {
          'tenant/:tenantId': { join: { permissions: ['read'] }, history: 10 },
          mfa: { join: { acr: 'mfa' }, history: 10 },
          throws: { join: () => { throw new Error('no') }, history: 10 },
          late: { join: async () => true, history: 10 },
          constructor: { join: true, history: 10 }
        }
      })
      const token = (permissions: string[]) => tokenOf('alice', { companyId: 'acme', permissions })
      const wanted = Object.fromEntries(['tenant/acme', 'tenant/other', 'mfa', 'throws', 'late', 'constructor', 'a b', 'unknown', 'x'.repeat(200)].map(room => [room, null]))
      const errors = async (permissions: string[]) => {
        const { status, body: { rooms } } = await a.poll(wanted, token(permissions))
        t.equal(status, 200)
        return Object.fromEntries(Object.entries(rooms).map(([room, { error = 'none' }]) => [room.slice(0, 20), error]))
      }
      const some = { 'tenant/other': 'forbidden', mfa: 'insufficient_user_authentication', throws: 'forbidden', late: 'none', constructor: 'none', 'a b': 'bad_room', unknown: 'forbidden', ['x'.repeat(20)]: 'bad_room' }
      t.same(await errors(['read']), { 'tenant/acme': 'none', ...some })
      await a.publish('1', 'tenant/acme')
      t.same(await errors([]), { 'tenant/acme': 'forbidden', ...some })
      const refused = a.events.filter(event => event.type === 'room_refused')
      t.same(refused.length, 6 + 7)
      t.match(refused.find(({ room }) => room === 'tenant/acme'), { type: 'room_refused', action: 'join', reason: 'forbidden', userId: 'alice', connectionId: null, route: '/poll', websocket: false })
      const proto = await a.poll('{"rooms":{"constructor":null,"__proto__x":null}}')
      t.same(Object.keys(proto.body.rooms), ['constructor', '__proto__x'])
    })

    t.test('a body that is none is refused', async t => {
      const [a] = await two(t, { maxPerConnection: 3 })
      const bad = ['[]', 'null', '1', '"x"', '{}', '{"rooms":null}', '{"rooms":[]}', '{"rooms":["hall"]}', '{"rooms":1}', '{"room":{"hall":null}}', '{"rooms":{"hall":1}}', '{"rooms":{"hall":true}}', '{"rooms":{"hall":{}}}', '{"rooms":{"hall":["x.1"]}}',
        JSON.stringify({ rooms: { a: null, b: null, c: null, d: null } })]
      for (const body of bad) t.match(await a.poll(body), { status: 400, body: { code: 'FST_HYBRID_AUTH_MALFORMED_REQUEST' } }, body)
      t.same(await a.poll('{"rooms":{}}'), { status: 200, body: { rooms: {} } })
      t.equal((await a.poll('{"rooms":{"__proto__":null}}')).status, 400, 'Fastify')
    })
  })
}
