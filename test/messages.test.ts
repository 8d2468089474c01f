/** `auth.messages`: rules by the type of a message, before anything of the application hears it. */
import t, { type Test } from 'tap'
import type { Message, MessageTypeRules, RouteAuth, RouteRule } from '../lib/index.js'
import { closeReason } from '../lib/protocol.js'
import { build, goodToken } from './helpers.js'
import { lookNow, type Dial, type Pair } from './live.js'
import { audited, codeAndReason, untyped, updateOf, type Audited } from './revoking.js'
import { deferred, never, type Deferred } from './stores.js'

const INVALID = 'FST_HYBRID_AUTH_INVALID_OPTION'
const FORBIDDEN = { type: 'error', code: 'forbidden', message: 'This message is not allowed', action: 'none' }
const FORBIDDEN_CLOSE = { code: 4007, reason: closeReason('Forbidden') }
const MAP: MessageTypeRules = { property_update: { role: 'agent' }, property_delete: { permissions: ['property.delete'] } }

interface Judge extends Audited, Pair {
  /** Says one frame, and answers whether the application heard it. */
  passes: (frame: unknown, binary?: boolean) => Promise<boolean>
}

let fences = 0

/** A socket on a route with these rules. Messages that begin with `#` are always let through, to tell when all before is judged. */
async function judging (t: Test, messages: MessageTypeRules, { rule = {}, token = goodToken({ role: 'agent' }), ...how }: Dial & { rule?: RouteRule } = {}): Promise<Judge> {
  const server = await audited(t, { route: { messages, ...rule } })
  const pair = await server.open({ token, speaks: true, ...how })
  const { peer, there: { received } } = pair
  return {
    ...server,
    ...pair,
    async passes (frame, binary = false) {
      const before = received.length
      peer.socket.send(typeof frame === 'string' || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame), { binary })
      await judged(pair)
      return received.length > before
    }
  }
}

/** Everything that was said before has been judged: what is pinged is answered behind it. */
async function judged ({ peer }: Pair): Promise<void> {
  const name = `fence ${++fences}`
  const heard = new Promise(resolve => { peer.socket.once('pong', resolve) })
  peer.socket.ping(name)
  await heard
}

t.test('each type has its own rule, and those that are not named are refused', async t => {
  const { passes, there, peer, types } = await judging(t, MAP)
  t.ok(await passes({ type: 'property_update' }))
  t.notOk(await passes({ type: 'property_delete' }))
  t.notOk(await passes({ type: 'property_read' }))
  t.same(there.received, ['{"type":"property_update"}'])
  t.same(peer.framesOf('error'), [FORBIDDEN, FORBIDDEN])
  t.equal(types().filter(type => type === 'message_refused').length, 2)
})

t.test('by default, or where it is said, what is not named is refused; or else it passes', async t => {
  const others = [{ type: 'other' }, {}, { type: '' }, [], ['ping'], [{ type: 'ping' }], 'null', '7', '"ping"', 'ping', '', '{', '{"type":"ping"', ' ', '\u0000', { event: 'ping' }, { data: { type: 'ping' } }, { type: 'Ping' }, { type: 'ping ' }, { type: 'ping\u0000' }]
  for (const [what, isAllowed] of [[undefined, false], ['deny', false], ['allow', true]] as const) {
    const { passes } = await judging(t, { ping: {}, pong: { role: 'nobody' }, ...(what !== undefined && { default: what }) })
    t.ok(await passes({ type: 'ping' }), `${String(what)}: a type that is named`)
    t.ok(await passes(' {\n"a":1,\t"type" : "p\\u0069ng"}'), `${String(what)}: in whatever way it is written`)
    t.notOk(await passes({ type: 'pong' }), `${String(what)}: a type whose rule does not hold`)
    for (const other of others) t.equal(await passes(other), isAllowed, `${String(what)}: ${JSON.stringify(other)}`)
    t.equal(await passes(Buffer.from([0, 255]), true), isAllowed, `${String(what)}: bytes`)
    t.equal(await passes(Buffer.from('{"type":"other"}'), true), isAllowed, `${String(what)}: bytes that are JSON`)
  }
})

t.test('what an application could take for a type that is not allowed is refused, also where others pass', async t => {
  const { passes } = await judging(t, { ping: {}, no: { role: 'nobody' }, default: 'allow' })
  for (const type of [7, null, true, ['no'], { no: 1 }, [['no']]]) t.notOk(await passes({ type }), `a type that is no text: ${JSON.stringify(type)}`)
  t.notOk(await passes(Buffer.from('{"type":"no"}'), true), 'a binary frame that is JSON')
  t.ok(await passes(Buffer.from('{"type":"ping"}'), true))
  for (const binary of [true, false]) {
    t.notOk(await passes(Buffer.from('\ufeff{"type":"no"}'), binary), 'behind a byte order mark')
    t.ok(await passes(Buffer.from('\ufeff{"type":"ping"}'), binary))
    t.ok(await passes(Buffer.from('\ufeff{'), binary))
  }
})

t.test('a name of the language is a type like any other: undeclared unless it is declared', async t => {
  const names = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'valueOf', 'prototype']
  const frames = names.map(name => JSON.stringify({ type: name }))
  const without = await judging(t, MAP)
  for (const frame of frames) t.notOk(await without.passes(frame), frame)
  for (const frame of ['{"__proto__":{"type":"property_update"}}', '{"constructor":{"type":"property_update"}}']) t.notOk(await without.passes(frame), frame)
  t.equal(Reflect.get({}, 'type'), undefined)
  const declared = (rule: string): MessageTypeRules => JSON.parse(`{${names.map(name => `${JSON.stringify(name)}:${rule}`).join()}}`) as MessageTypeRules
  const allowed = await judging(t, declared('{}'))
  for (const frame of frames) t.ok(await allowed.passes(frame), frame)
  const refused = await judging(t, { ...declared('{"role":"nobody"}'), default: 'allow' })
  const own = { ...declared('{"role":"nobody"}') }
  for (const name of Object.keys(own)) t.notOk(await refused.passes({ type: name }), name)
  t.ok(await refused.passes({ type: 'isPrototypeOf' }))
})

t.test('`__proto__` may be the member that names the type', async t => {
  const { passes } = await judging(t, { field: '__proto__', ping: {} })
  t.ok(await passes('{"__proto__":"ping"}'))
  t.notOk(await passes('{"type":"ping"}'))
  t.notOk(await passes('{}'))
})

t.test('the type stands in the member that is named, which must be the message’s own', async t => {
  const { passes } = await judging(t, { field: 'event', ping: {} })
  t.ok(await passes({ event: 'ping' }))
  t.ok(await passes({ type: 'other', event: 'ping' }))
  for (const other of [{ type: 'ping' }, { event: 'other' }, { Event: 'ping' }, { data: { event: 'ping' } }]) t.notOk(await passes(other), JSON.stringify(other))
  const inherited = await judging(t, { field: 'toString', ping: {} })
  t.notOk(await inherited.passes({}))
  const first = await judging(t, { field: '0', ping: {} })
  t.ok(await first.passes(['ping', 1]), 'also of a list')
  t.notOk(await first.passes('"ping"'), 'but not of a text')
})

t.test('of a member that is there twice the last counts, as for the application', async t => {
  const { passes } = await judging(t, { ping: {} })
  t.ok(await passes('{"type":"other","type":"ping"}'))
  t.notOk(await passes('{"type":"ping","type":"other"}'))
  t.notOk(await passes('{"type":"ping","\\u0074ype":"other"}'), 'however it is written')
})

t.test('a message that is huge, or nested deeply, is judged or refused, and the socket goes on', async t => {
  const { passes, peer } = await judging(t, { ping: {} })
  const deep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`
  t.equal(await passes(`{"type":"ping","a":${deep}}`), await passes(`{"type":"ping","a":${deep}}`))
  t.notOk(await passes(deep))
  t.notOk(await passes(`{"a":${deep},"type":"pong"}`))
  t.ok(await passes({ type: 'ping', fill: 'x'.repeat(2_000_000) }))
  t.notOk(await passes({ type: 'x'.repeat(2_000_000) }))
  t.notOk(peer.hasEnded)
})

t.test('`field` and `default` are types like others where they hold a rule', async t => {
  const byRule = await judging(t, { field: { role: 'agent' }, default: { role: 'nobody' }, ping: {} })
  t.ok(await byRule.passes({ type: 'field' }))
  t.notOk(await byRule.passes({ type: 'default' }))
  t.notOk(await byRule.passes({ type: 'other' }), 'and what is not named is still refused')
  t.ok(await byRule.passes({ type: 'ping' }))
  const byFunction = await judging(t, { field: () => false, default: () => true })
  t.notOk(await byFunction.passes({ type: 'field' }))
  t.ok(await byFunction.passes({ type: 'default' }))
  const asTexts = await judging(t, { field: 'type', default: 'allow' })
  t.ok(await asTexts.passes({ type: 'field' }))
})

t.test('a map without types refuses everything, or nothing', async t => {
  const none = await judging(t, {})
  t.notOk(await none.passes({ type: 'ping' }))
  t.notOk(await none.passes('text'))
  const all = await judging(t, { default: 'allow' })
  t.ok(await all.passes({ type: 'ping' }))
  t.ok(await all.passes('text'))
})

t.test('all that rules may ask is asked of messages, and only `true` of a function admits', async t => {
  const table: Array<[MessageTypeRules[string], boolean]> = [
    [{}, true], [{ role: 'agent' }, true], [{ role: 'admin' }, false], [{ roles: ['admin', 'agent'] }, true], [{ permissions: ['a', 'b'] }, true], [{ permissions: ['a', 'c'] }, false],
    [{ anyPermission: ['c', 'b'] }, true], [{ anyPermission: ['c'] }, false], [{ types: ['jwt'] }, true], [{ types: ['session'] }, false],
    [{ check: () => true }, true], [{ check: () => false }, false], [{ role: 'admin', check: () => true }, false],
    [() => true, true], [() => false, false], [async () => true, true], [async () => false, false],
    [(auth, request) => auth.userId === 'alice' && request.headers.upgrade === 'websocket', true],
    [() => { throw new Error('no') }, false], [() => Promise.reject(new Error('no')), false]
  ]
  for (const garbage of [1, 'true', {}, [true], null, undefined, { maxAuthAge: 1 }, { maxAuthAge: 1, acr: [] }, Symbol('x')]) table.push([() => untyped(garbage), false], [async () => untyped(garbage), false])
  const messages = Object.fromEntries(table.map(([rule], i) => [`t${i}`, rule]))
  const { passes } = await judging(t, messages, { token: goodToken({ role: 'agent', permissions: ['a', 'b'] }) })
  for (const [i, [rule, isAllowed]] of table.entries()) t.equal(await settledPass(passes, `t${i}`), isAllowed, `${i}: ${typeof rule === 'function' ? rule.toString() : JSON.stringify(rule)}`)
})

/** An asynchronous verdict is there when the frames behind it are. */
async function settledPass (passes: Judge['passes'], type: string): Promise<boolean> {
  const first = await passes({ type })
  return first || await passes({ type })
}

t.test('83: what `authorize` answers that is no verdict refuses the message, and nothing more', async t => {
  const garbage = [1, 'true', {}, null, undefined, { maxAuthAge: 1 }, { maxAuthAge: 1, acr: 'x' }, { code: 'FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION', acr: [], maxAuthAge: 1 }, [true], Symbol('answered')]
  for (const messages of [{ ping: {} }, undefined]) {
    for (const value of garbage) {
      for (const authorize of [() => untyped(value), async () => untyped(value)] as const) {
        const { open } = await audited(t, { route: { authorize, ...(messages !== undefined && { messages }) } })
        const pair = await open({ speaks: true })
        pair.peer.say({ type: 'ping' })
        t.same(await pair.peer.takeFrame('error'), FORBIDDEN)
        t.same(pair.there.received, [])
        t.notOk(pair.peer.hasEnded)
      }
    }
  }
})

t.test('`authorize` is asked about what the map lets through, and about nothing else', async t => {
  const asked: string[] = []
  const authorize = (_auth: unknown, message: Message) => {
    asked.push(message.text())
    return message.text().includes('good')
  }
  const { passes } = await judging(t, { sync: {}, late: async () => true, never: async () => false, no: { role: 'nobody' } }, { rule: { authorize } })
  t.ok(await passes({ type: 'sync', good: 1 }))
  t.notOk(await passes({ type: 'sync' }))
  await passes({ type: 'late', good: 2 })
  await passes({ type: 'late' })
  await passes({ type: 'no', good: 3 })
  await passes({ type: 'never', good: 4 })
  await passes({ type: 'other', good: 5 })
  t.ok(await passes({ type: 'sync', good: 6 }))
  t.same(asked, ['{"type":"sync","good":1}', '{"type":"sync"}', '{"type":"late","good":2}', '{"type":"late"}', '{"type":"sync","good":6}'])
})

t.test('an `authorize` that takes its time behind a rule that does sees its own message', async t => {
  const verdicts: Array<Deferred<boolean>> = []
  const seen: string[] = []
  const { peer, there, open } = await judging(t, { late: () => { const one = deferred<boolean>(); verdicts.push(one); return one.promise } }, {
    rule: { authorize: async (_auth, message) => { await Promise.resolve(); seen.push(message.text()); return true } }
  })
  const other = await open({ speaks: true, token: goodToken({ sub: 'bob' }) })
  peer.say({ type: 'late', n: 1 })
  await judged({ peer, there })
  other.peer.say({ type: 'late', n: 2 })
  await judged(other)
  t.equal(verdicts.length, 2)
  verdicts[1]?.resolve(true)
  await other.peer.take()
  verdicts[0]?.resolve(true)
  await peer.take()
  t.same(seen, ['{"type":"late","n":2}', '{"type":"late","n":1}'])
  t.same([there.received, other.there.received], [['{"type":"late","n":1}'], ['{"type":"late","n":2}']])
})

t.test('messages keep their order, whichever of them have to wait', async t => {
  const first = deferred<boolean>()
  let asked = 0
  const { peer, there } = await judging(t, { sync: {}, late: () => { asked++; return asked === 1 ? first.promise : Promise.resolve(true) }, no: { role: 'nobody' } })
  const said = ['late', 'sync', 'no', 'late', 'sync', 'sync', 'no', 'late'].map((type, n) => JSON.stringify({ type, n }))
  for (const text of said) peer.say(text)
  await judged({ peer, there })
  t.same(there.received, [])
  first.resolve(true)
  await peer.until(() => peer.texts.includes(said.at(-1) ?? ''))
  t.same(there.received, said.filter(text => !text.includes('no')))
})

t.test('a verdict that was reached under permissions that are gone is reached again', async t => {
  const verdicts: Array<Deferred<boolean>> = []
  const { app, peer, there } = await judging(t, { late: auth => { const one = deferred<boolean>(); verdicts.push(one); return one.promise.then(yes => yes && auth.permissions.includes('a')) } }, { token: goodToken({ permissions: ['a'] }) })
  peer.say({ type: 'late' })
  await judged({ peer, there })
  await app.hybridAuth.setPermissions('alice', [])
  verdicts[0]?.resolve(true)
  await peer.until(() => verdicts.length === 2 || peer.texts.includes('{"type":"late"}'))
  for (let turn = 0; turn < 5 && verdicts.length < 2; turn++) await judged({ peer, there })
  t.equal(verdicts.length, 2, 'it is asked again')
  verdicts[1]?.resolve(true)
  t.same(await peer.takeFrame('error'), FORBIDDEN)
  t.same(there.received, [])
})

t.test('the permissions of a message are those of the moment', async t => {
  const { app, passes, peer } = await judging(t, MAP, { token: goodToken({ permissions: ['property.delete'] }) })
  t.ok(await passes({ type: 'property_delete' }))
  await app.hybridAuth.setPermissions('alice', [])
  t.notOk(await passes({ type: 'property_delete' }))
  peer.say(updateOf(goodToken({ permissions: ['property.delete'] })))
  await peer.takeFrame('auth_updated')
  t.ok(await passes({ type: 'property_delete' }))
})

t.test('what a rule waits for too long is refused', async t => {
  const { open } = await audited(t, { auth: { handshakeTimeout: 50 }, route: { messages: { late: () => never<boolean>(), ping: {} } } })
  const { peer, there } = await open({ speaks: true })
  peer.say({ type: 'late' })
  peer.say({ type: 'ping' })
  t.same(await peer.takeFrame('error'), FORBIDDEN)
  t.match(await peer.takeFrame('ping'), { type: 'ping' })
  t.same(there.received, ['{"type":"ping"}'])
})

t.test('`onRefused: close` closes with 4007, and nothing behind the message is heard', async t => {
  for (const speaks of [true, false]) {
    const { peer, there } = await judging(t, MAP, { speaks, rule: { onRefused: 'close' } })
    for (const type of ['property_update', 'property_delete', 'property_update']) peer.say({ type })
    t.same(codeAndReason(await peer.end), FORBIDDEN_CLOSE)
    t.same(there.received, ['{"type":"property_update"}'])
    t.same(peer.framesOf('error'), [])
  }
})

t.test('who does not speak the protocol is refused in silence', async t => {
  for (const how of [{ speaks: false }, { protocols: ['chat.v2'] }]) {
    const { passes, peer } = await judging(t, MAP, how)
    t.notOk(await passes({ type: 'property_delete' }))
    t.ok(await passes({ type: 'property_update' }))
    t.same(peer.texts, ['{"type":"property_update"}'])
  }
})

t.test('frames of the protocol are not asked about, and those that look like them are where it is not spoken', async t => {
  const { peer, passes } = await judging(t, { auth_update: { role: 'nobody' }, default: 'deny' })
  peer.say(updateOf(goodToken()))
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  t.notOk(await passes({ token: 'x', type: 'auth_update' }), 'which has the type first')
  t.notOk(await passes('{"type":"auth_update","type":"ping","token":"x"}'))
  const open = await judging(t, { auth_update: {} }, { rule: { control: false } })
  t.ok(await open.passes(updateOf('x')))
})

t.test('where there is no map nothing is parsed', async t => {
  const { parse } = JSON
  let parsed = 0
  JSON.parse = (...given: Parameters<typeof parse>): unknown => {
    if (given[0].includes('"look"')) parsed++
    return parse(...given)
  }
  t.teardown(() => { JSON.parse = parse })
  const ask = async (rule: RouteRule) => {
    const { open } = await audited(t, { route: rule })
    const { peer, there } = await open({ speaks: true })
    peer.say('{"look":"here"}')
    await judged({ peer, there })
    lookNow(there.connection)
    t.equal(there.received.length, 1)
  }
  await ask({})
  await ask({ authorize: () => true })
  t.equal(parsed, 0)
  await ask({ messages: { default: 'allow' }, authorize: (_auth, message) => message.json() !== null })
  t.equal(parsed, 1, 'and where there is one, once')
})

t.test('84: what cannot be used as a map is named when the route is declared', async t => {
  const table: Array<[unknown, RegExp]> = [
    [[], /auth\.messages: must be an object/], ['ping', /auth\.messages/], [7, /auth\.messages/], [null, /auth\.messages/], [true, /auth\.messages/],
    [{ '': {} }, /auth\.messages: must be a type/],
    [{ ping: 'agent' }, /auth\.messages\.ping/], [{ ping: true }, /auth\.messages\.ping/], [{ ping: null }, /auth\.messages\.ping/], [{ ping: undefined }, /auth\.messages\.ping/], [{ ping: [] }, /auth\.messages\.ping/],
    [{ ping: { role: 7 } }, /auth\.messages\.ping\.role/], [{ ping: { rol: 'agent' } }, /auth\.messages\.ping\.rol\b/], [{ ping: { permissions: 'a' } }, /auth\.messages\.ping\.permissions/], [{ ping: { permissions: [] } }, /auth\.messages\.ping\.permissions/],
    [{ ping: { maxAuthAge: Infinity } }, /auth\.messages\.ping\.maxAuthAge/], [{ ping: { optional: true } }, /auth\.messages\.ping\.optional/],
    [{ default: 'maybe' }, /auth\.messages\.default/], [{ default: true }, /auth\.messages\.default/], [{ field: '' }, /auth\.messages\.field/], [{ field: 7 }, /auth\.messages\.field/],
    [JSON.parse('{"__proto__":{"rol":"x"}}'), /auth\.messages\.__proto__\.rol/]
  ]
  for (const [messages, message] of table) {
    const auth = untyped({ messages }) as RouteAuth
    await t.rejects(build(t, { routes (app) { app.get('/named', { websocket: true, auth }, () => {}) } }), { code: INVALID, message }, JSON.stringify(messages))
    await t.rejects(build(t, { routes (app) { app.get('/named', { websocket: true, auth }, () => {}) } }), { message: /\/named/ }, 'and so is the route')
  }
  await t.rejects(build(t, { routes (app) { app.get('/http', { auth: untyped({ messages: {} }) }, async () => 'ok') } }), { code: INVALID, message: /auth\.messages/ }, 'an HTTP route has no messages')
  await build(t, { routes (app) { t.throws(() => app.hybridAuth.require(untyped({ messages: {} })), { code: INVALID, message: /messages/ }) } })
})

t.test('`default` and `field` that are undefined are as if they were not there', async t => {
  const { passes } = await judging(t, { default: undefined, field: undefined, ping: {} })
  t.ok(await passes({ type: 'ping' }))
  t.notOk(await passes({ type: 'default' }))
})
