/** What a process keeps of its rooms, and no more; options, cursors and frames. */
import t from 'tap'
import { unawaited } from '../lib/maybe.js'
import { Publications } from '../lib/rooms/publications.js'
import type { Retention, Wanted } from '../lib/cluster/history.js'
import { createCodec } from '../lib/cluster/command.js'
import { MemoryHistories } from '../lib/cluster/memory-history.js'
import { Senders } from '../lib/cluster/senders.js'
import { parseRoomFrame } from '../lib/protocol.js'
import { cursorOf, parseCursor } from '../lib/rooms/cursor.js'
import { build } from './helpers.js'
import { setClock } from './live.js'
import { untyped } from './revoking.js'
import { wheel } from '../lib/wheel.js'

const KEEP: Retention = { messages: 10_000, maxAge: 60_000 }
const wanted = (more: Partial<Wanted> = {}): Wanted => ({ ...KEEP, bytes: Infinity, isHad: false, ...more })
const DAY = 86_400_000

t.test('options of a pattern that cannot be used are named', async t => {
  const rules: Array<[string, unknown]> = [
    ...[0, -1, 1.5, 10_001, '10', null, true, Number.NaN].map((history): [string, unknown] => ['history', { join: true, history }]),
    ['history.messages', { join: true, history: {} }], ['history.messages', { join: true, history: { messages: 0 } }], ['history.maxAge', { join: true, history: { messages: 1, maxAge: 0 } }],
    ['history.maxAge', { join: true, history: { messages: 1, maxAge: DAY + 1 } }], ['history.age', { join: true, history: { messages: 1, age: 1 } }],
    ['history', { history: 1 }], ['history', { join: false, publish: true, history: 1 }],
    ...[0, -1, DAY + 1, '1', null, true].map((repeats): [string, unknown] => ['repeats', { publish: true, repeats }]), ['repeats', { join: true, repeats: 1 }]
  ]
  for (const [path, rule] of rules) {
    const error = await build(t, { auth: { rooms: { patterns: { a: untyped(rule) } } } }).then(() => null, (error: unknown) => error)
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: `Invalid option rooms.patterns.a.${path}: ` }, JSON.stringify(rule))
  }
  await build(t, { auth: { rooms: { patterns: { a: { join: true, publish: true, history: { messages: 10_000, maxAge: DAY }, repeats: DAY }, b: { join: true, history: 1 } } } } })
})

t.test('a cursor is what was given as one, and nothing else', t => {
  t.same(parseCursor(cursorOf({ epoch: 'a-_9', number: 7 })), { epoch: 'a-_9', number: 7 })
  for (const text of ['', '.', 'a', 'a.', '.1', 'a.1.2', 'a.01', 'a.-1', 'a.1e3', 'a.1 ', ' a.1', 'a.1\n', 'a.9007199254740992', `${'a'.repeat(33)}.1`, 'ä.1', 'a.٣']) t.equal(parseCursor(text), null, JSON.stringify(text))
  const frame = (cursor: unknown) => parseRoomFrame(JSON.stringify({ type: 'join', room: 'r', cursor }))
  t.same([frame('x'), frame(null), frame(undefined), frame(1), frame({})], ['x', undefined, undefined, '', ''].map(cursor => ({ type: 'join', room: 'r', ...(cursor !== undefined && { cursor }) })))
  t.same(parseRoomFrame('{"type":"leave","room":"r","cursor":"x"}'), { type: 'leave', room: 'r' })
  t.end()
})

t.test('a room keeps as many messages as it may, and as many bytes', t => {
  const histories = new MemoryHistories()
  t.teardown(() => { histories.stop() })
  for (let sequence = 1; sequence <= 7; sequence++) histories.append('r', 'n', { sequence, payload: String(sequence) }, { ...KEEP, messages: 3 })
  const { epoch, head } = histories.recall('r', null, wanted())
  const from = (number: number, more?: Partial<Wanted>) => {
    const { entries, from, to } = histories.recall('r', { epoch, number }, wanted(more))
    return [from, entries.map(entry => entry.number), to]
  }
  t.equal(head, 7)
  t.same([from(0), from(4), from(5), from(7), from(9)], [[4, [5, 6, 7], 7], [4, [5, 6, 7], 7], [5, [6, 7], 7], [7, [], 7], [7, [], 7]])
  t.same([from(4, { bytes: 600 }), from(4, { bytes: 0 })], [[4, [5, 6], 6], [4, [5], 5]], 'one at least')
  t.same(histories.recall('r', { epoch: 'another', number: 6 }, wanted()).entries.length, 3)
  const large = 'x'.repeat(1024 * 1024)
  for (let sequence = 8; sequence < 40; sequence++) histories.append('r', 'n', { sequence, payload: large }, KEEP)
  t.same(from(0)[0], 24, '16 MiB')
  for (let room = 0; room < 8; room++) for (let sequence = 0; sequence < 15; sequence++) histories.append(`r${room}`, 'n', { sequence, payload: large }, KEEP)
  t.not(histories.recall('r', null, wanted()).epoch, epoch, 'the one that was used least is forgotten past 128 MiB')
  t.end()
})

t.test('100 000 rooms are kept, and of more those that were used last', t => {
  const histories = new MemoryHistories()
  t.teardown(() => { histories.stop() })
  const [first, second] = ['first', 'second'].map(name => histories.recall(name, null, wanted()).epoch)
  for (let n = 0; n < 99_998; n++) histories.recall(`r${n}`, null, wanted())
  t.equal(histories.recall('first', null, wanted()).epoch, first)
  histories.append('one more', 'n', { sequence: 1, payload: '1' }, KEEP)
  t.equal(histories.size, 100_000)
  t.equal(histories.recall('first', null, wanted()).epoch, first)
  t.not(histories.recall('second', null, wanted()).epoch, second)
  t.end()
})

t.test('what is old is swept, and a room is forgotten a day after it was used last', async t => {
  const clock = setClock(t)
  clock.freeze()
  const histories = new MemoryHistories()
  t.teardown(() => { histories.stop() })
  histories.append('r', 'n', { sequence: 1, payload: '1' }, KEEP)
  const { epoch } = histories.recall('r', null, wanted())
  const sweep = () => { histories.sweeper.look() }
  clock.move(60_001)
  sweep()
  t.same(histories.recall('r', { epoch, number: 0 }, wanted()), { epoch, head: 1, from: 1, to: 1, entries: [] }, 'it knows where it is')
  clock.move(DAY + 60_000)
  sweep()
  t.equal(histories.size, 1)
  clock.move(1)
  sweep()
  t.equal(histories.size, 0)
  histories.stop()
  const before = wheel.size
  histories.recall('r', null, wanted())
  t.equal(wheel.size, before + 1, 'it is swept now and then')
  histories.stop()
  t.equal(wheel.size, before)
})

t.test('what nodes keep of a room is read as strictly as what they say, and means nothing elsewhere', t => {
  const codec = createCodec(['a secret of at least 32 characters'])
  const message = { from: 'n', room: 'r', number: 1, at: 1, payload: '"x"' }
  t.same(codec.openKept(codec.seal('history', message)), message)
  for (const id of ['an id', 7]) t.same(codec.openKept(codec.seal('history', { ...message, id })), { ...message, id })
  for (const id of ['x'.repeat(129), null, {}, true]) t.equal(codec.openKept(codec.seal('history', { ...message, id })), null)
  t.same([codec.openKept(codec.seal('room', message)), codec.openRoom(codec.seal('history', message))], [null, null])
  t.equal(codec.openRoom(codec.seal('room', { ...message, id: 'x' })), null)
  t.ok(codec.openKept(codec.seal('history', { ...message, payload: 'x'.repeat(2_000_000) })))
  t.throws(() => codec.seal('history', { ...message, payload: 'x'.repeat(2_100_000) }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
  t.end()
})

t.test('a thousand senders are remembered', t => {
  const senders = new Senders()
  for (let n = 0; n < 1001; n++) t.ok(senders.isNew({ from: `n${n}`, number: 5 }))
  t.same([senders.isNew({ from: 'n1', number: 5 }), senders.isNew({ from: 'n0', number: 5 })], [false, true])
  t.end()
})

t.test('of more messages than anybody waits for at once the oldest are given up', async t => {
  const publications = new Publications()
  const first = publications.expect(1, null)
  for (let sequence = 2; sequence <= 10_001; sequence++) unawaited(publications.expect(sequence, null))
  t.equal(await first, 0)
  t.equal(publications.take(1), null)
  t.not(publications.take(2), null)
  publications.end()
})
