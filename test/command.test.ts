/** What nodes tell each other: only what a node with the same secret has said, in its shape and within its size, is read. */
import t from 'tap'
import { createCodec, type Command } from '../lib/cluster/command.js'

const [ONE, TWO] = ['one secret of nodes, of 32 or more characters', 'another secret of nodes, of 32 or more characters']
const command: Command = { type: 'disconnect', id: 'c1', from: 'n1', at: 1, filter: { userId: 'alice', issuer: null }, code: 'Inactive', reason: 'bye' }
const answer = { from: 'n1', to: 'c1', matched: 2, closed: 1 }
const ticket = { key: 'k', value: 'v', until: 5 }
const remembered = { user: 'u', key: 'k', value: '{}', until: 5 }
const message = { from: 'n1', room: 'r', number: 1, at: 1, payload: '{"a":1}' }

t.test('what a node seals, another with the same secret opens', async t => {
  for (const secrets of [[], [ONE], [Buffer.from(ONE)]]) {
    const [here, there] = [createCodec(secrets), createCodec(secrets)]
    t.same(there.openCommand(here.seal('control', command)), command)
    t.same(there.openAnswer(here.seal('answer', answer)), answer)
    t.same(there.openTicket(here.seal('ticket', ticket)), ticket)
    t.same(there.openRoom(here.seal('room', message)), message)
    t.same(there.openRemembered(here.seal('memory', remembered)), remembered)
    t.equal(there.openRemembered(here.seal('memory', ticket)), null)
  }
})

t.test('of several secrets the first signs, and each is accepted', async t => {
  const [old, both, fresh] = [createCodec([ONE]), createCodec([TWO, ONE]), createCodec([TWO])]
  t.same(both.openCommand(old.seal('control', command)), command)
  t.same(fresh.openCommand(both.seal('control', command)), command)
  t.equal(fresh.openCommand(old.seal('control', command)), null)
  t.same([old, both, fresh].map(({ isCurrent }) => isCurrent(both.seal('control', command))), [false, true, true])
  t.equal(createCodec([]).isCurrent('anything'), true, 'without a secret there is nothing to renew')
})

t.test('case 69: what is unsigned, signed for another place, or altered is not read by a node with a secret', async t => {
  const codec = createCodec([ONE])
  const sealed = codec.seal('control', command)
  const unsigned = createCodec([]).seal('control', command)
  for (const forged of [unsigned, sealed.replace('alice', 'bob'), codec.seal('ticket', command), sealed.slice(1), `${sealed.slice(0, 42)}é${sealed.slice(43)}`, '', ':', 'no colon']) {
    t.equal(codec.openCommand(forged), null, forged.slice(0, 60))
  }
  t.same(createCodec([]).openCommand(sealed), command, 'a node without one reads it')
})

t.test('case 69: what is garbled, misshapen or too long is not read by any', async t => {
  const codec = createCodec([])
  const wrong: unknown[] = [
    null, [], 'text', {}, { ...command, type: 'eval' }, { ...command, more: 1 }, { ...command, at: 'now' }, { ...command, id: '' },
    { ...command, code: 1005 }, { ...command, code: 4000.5 }, { ...command, code: 'no name' }, { ...command, reason: 'x'.repeat(41) },
    { ...command, filter: { everybody: true } }, { ...command, filter: { authType: 'none' } }
  ]
  for (const value of wrong) t.equal(codec.openCommand(`:${JSON.stringify(value)}`), null, JSON.stringify(value))
  t.equal(codec.openCommand(':{"type":'), null)
  t.equal(codec.openCommand(`:${' '.repeat(65_536)}${JSON.stringify(command)}`), null)
  t.equal(codec.openCommand(':{"__proto__":{"type":"evict"},"id":"c","from":"n","at":1,"leases":[]}'), null)
  t.equal(codec.openAnswer(':{"from":"n1"}'), null)
  t.equal(codec.openTicket(':{"key":"k"}'), null)
  for (const wrong of [{ ...message, payload: {} }, { ...message, more: 1 }, { ...message, number: '1' }]) t.equal(codec.openRoom(`:${JSON.stringify(wrong)}`), null)
  t.same(codec.openRoom(`:${' '.repeat(65_536)}${JSON.stringify(message)}`), message, 'a message of a room may be longer')
  t.equal(codec.openRoom(`:${' '.repeat(2 * 1024 * 1024)}${JSON.stringify(message)}`), null)
  t.throws(() => codec.seal('control', { text: 'x'.repeat(65_536) }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
})
