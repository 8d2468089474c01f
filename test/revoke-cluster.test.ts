/** Commands beside revoke(): disconnect() and setPermissions(); several registrations of one cluster; and a cluster that fails. */
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import type { AuthContext, HybridAuthOptions, RouteAuth } from '../lib/index.js'
import type { Cluster, ClusterDriver, ClusterMember } from '../lib/cluster/cluster.js'
import type { Command } from '../lib/cluster/command.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { ClusterNode } from '../lib/cluster/node.js'
import { Revocations } from '../lib/cluster/revocations.js'
import { createHub } from '../lib/connection/connections.js'
import { createRooms } from '../lib/connection/room-api.js'
import { authError } from '../lib/errors.js'
import { createAuditor } from '../lib/observe/audit.js'
import { parseOptions } from '../lib/options.js'
import { BucketTable } from '../lib/policy/bucket.js'
import { closeReason } from '../lib/protocol.js'
import { goodToken, handshake, inSeconds, JWT, keepLines, rawExchange, SESSION_SECRET, statusOf } from './helpers.js'
import { lookNow, setClock, type LiveOptions, type Pair } from './live.js'
import { audited, bearer, codeAndReason, driverOf, isOpen, isRevoked, outcome, REVOKED, untyped, updateOf, withCookie, withoutId, type Audited } from './revoking.js'
import { ask, codeOf, deferred, MapStore } from './stores.js'
import { authFrame, connect, until } from './wire.js'

const nextTurn = () => new Promise<void>(resolve => { setImmediate(resolve) })
const OPTION = 'FST_HYBRID_AUTH_INVALID_OPTION'
const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const CANARY = 'canary-4711'

t.test('setPermissions() replaces the permissions of every socket of the user at once', async t => {
  const { app, open, session, events } = await audited(t)
  const token = goodToken({ permissions: ['a', 'b'], role: 'agent' })
  const [speaking, plain] = [await open({ token, speaks: true }), await open({ token })]
  const ofSession = await open({ cookie: session('s1', { userId: 'alice', permissions: ['b'] }) })
  const bob = await open({ token: goodToken({ sub: 'bob', permissions: ['a'] }), speaks: true })
  const refreshed: AuthContext[] = []
  speaking.there.connection.on('refresh', context => { refreshed.push(context) })
  const before = speaking.there.connection.context
  const given = ['b', 'c']
  const result = app.hybridAuth.setPermissions('alice', given)
  given.push('d')
  for (const { there: { connection, request } } of [speaking, plain, ofSession]) {
    t.same(connection.context.permissions, ['b', 'c'], 'in the same turn')
    t.ok(Object.isFrozen(connection.context) && Object.isFrozen(connection.context.permissions))
    t.same([connection.can('a'), connection.can('c'), connection.can('d')], [false, true, false])
    t.equal(request.auth, connection.context)
    t.equal(connection.context.version, 2)
  }
  t.match(withoutId(t, await result), outcome(3, 0))
  t.same([before.permissions, before.version], [['a', 'b'], 1], 'who kept the old one has the old one')
  t.match(speaking.there.connection.context, { ...before, permissions: ['b', 'c'], version: 2 })
  t.same(refreshed, [speaking.there.connection.context])
  for (const pair of [speaking, plain, ofSession, bob]) await isOpen(t, pair, 'the socket')
  t.same(speaking.peer.framesOf('permission_update'), [{ type: 'permission_update', permissions: ['b', 'c'], added: ['c'], removed: ['a'] }])
  for (const { peer } of [plain, ofSession, bob]) t.same(peer.framesOf('permission_update'), [])
  t.same(bob.there.connection.context.permissions, ['a'])
  const ids = [speaking, plain, ofSession].map(({ there }) => there.connection.id).sort()
  t.same(events.filter(({ type }) => type === 'permissions_changed').map(event => 'connectionId' in event ? event.connectionId : '').sort(), ids)
})

t.test('setPermissions() with the same list says so; with none takes all; of nobody matches nobody', async t => {
  const { app, open } = await audited(t)
  const { peer, there } = await open({ token: goodToken({ permissions: ['a'] }), speaks: true })
  await app.hybridAuth.setPermissions('alice', ['a'])
  await app.hybridAuth.setPermissions('alice', [])
  t.match(await app.hybridAuth.setPermissions('Alice', ['z']), outcome(0))
  await peer.until(() => peer.framesOf('permission_update').length === 2)
  t.same(peer.framesOf('permission_update'), [
    { type: 'permission_update', permissions: ['a'], added: [], removed: [] }, { type: 'permission_update', permissions: [], added: [], removed: ['a'] }
  ])
  t.equal(there.connection.context.version, 3)
})

t.test('setPermissions() closes 4007 where the route\'s rule no longer holds, and tells nothing else', async t => {
  const { app, open, events } = await audited(t, { route: { permissions: ['a'] } })
  const { peer, there } = await open({ token: goodToken({ permissions: ['a', 'b'] }), speaks: true })
  t.match(await app.hybridAuth.setPermissions('alice', ['a']), { matched: 1, closed: 0 })
  t.match(await app.hybridAuth.setPermissions('alice', ['b']), { matched: 1, closed: 1 })
  t.same(codeAndReason(await peer.end), { code: 4007, reason: closeReason('Forbidden') })
  await there.closed
  t.equal(peer.framesOf('permission_update').length, 1)
  const types = events.map(({ type }) => type).filter(type => type !== 'command')
  t.same(types, ['authenticated', 'permissions_changed', 'permissions_changed', 'closed'])
})

t.test('setPermissions() counts for the next message, also for one whose verdict is under way', async t => {
  const asked: string[] = []
  const verdict = deferred<boolean>()
  const { app, open } = await audited(t, {
    route: {
      authorize (auth, message) {
        asked.push(`${message.text()} ${auth.permissions.join()}`)
        return asked.length === 1 ? verdict.promise : auth.permissions.includes('write')
      }
    }
  })
  const { peer, there } = await open({ token: goodToken({ permissions: ['write'] }), speaks: true })
  peer.say('one')
  await until(() => asked.length === 1)
  await app.hybridAuth.setPermissions('alice', ['read'])
  verdict.resolve(true)
  t.match(await peer.takeFrame('error'), { code: 'forbidden' })
  t.same([asked, there.received], [['one write', 'one read'], []])
})

t.test('of two setPermissions() whose rule is asked meanwhile, the later counts and is told', async t => {
  const holds: Array<(value: boolean) => void> = []
  const { app, open, types } = await audited(t, {
    route: { check: auth => auth.version === 1 ? true : new Promise<boolean>(resolve => { holds.push(resolve) }) }
  })
  const { peer, there } = await open({ speaks: true })
  const first = app.hybridAuth.setPermissions('alice', ['one'])
  const second = app.hybridAuth.setPermissions('alice', ['two'])
  t.same([there.connection.context.permissions, peer.framesOf('permission_update'), holds.length], [['two'], [], 2])
  holds[1]?.(true)
  t.match(await peer.takeFrame('permission_update'), { permissions: ['two'] })
  t.match(await second, { matched: 1, closed: 0 })
  holds[0]?.(false)
  t.match(await first, { matched: 1, closed: 0 })
  t.ok(await peer.echoed('still open'))
  t.equal(types().filter(type => type === 'permissions_changed').length, 2)
})

t.test('the next credential has its own permissions, and so does the next handshake', async t => {
  const { app, open } = await audited(t)
  const token = goodToken({ permissions: ['a'] })
  const { peer, there } = await open({ token, speaks: true })
  await app.hybridAuth.setPermissions('alice', ['b'])
  t.same((await open({ token })).there.connection.context.permissions, ['a'])
  peer.say(updateOf(goodToken({ permissions: ['c'] })))
  await peer.takeFrame('auth_updated')
  t.same([there.connection.context.permissions, there.connection.context.version], [['c'], 3])
})

t.test('what setPermissions() gave a socket of a session outlives its readings, until the session says something else', async t => {
  const clock = setClock(t)
  const { app, open, session, store } = await audited(t)
  const { there, peer } = await open({ cookie: session('s1', { userId: 'bob', permissions: ['a'] }) })
  await app.hybridAuth.setPermissions('bob', ['b'])
  for (const [stored, expected] of [[['a'], ['b']], [['c'], ['c']], [['a'], ['a']]] as const) {
    const { reads } = store
    store.put('s1', { user: { userId: 'bob', permissions: stored }, cookie: {} })
    clock.move(31_000)
    lookNow(there.connection)
    await until(() => store.reads > reads)
    t.ok(await peer.echoed(`read ${expected.join()} of ${stored.join()}`))
    t.same(there.connection.context.permissions, expected)
  }
})

t.test('the same token, sent again, does not undo what was set since, unless its user is another now', async t => {
  let granted = ['a']
  const { app, open } = await audited(t, { auth: { jwt: { ...JWT, user: ({ sub = '' }) => ({ userId: sub, permissions: granted }) } } })
  const token = goodToken()
  const { peer, there } = await open({ token, speaks: true })
  await app.hybridAuth.setPermissions('alice', ['b'])
  peer.say(updateOf(token))
  t.match(await peer.takeFrame('auth_updated'), {})
  t.same(there.connection.context.permissions, ['b'])
  granted = ['c']
  peer.say(updateOf(token))
  t.match(await peer.takeFrame('auth_updated'), {})
  t.same(there.connection.context.permissions, ['c'])
})

t.test('bad arguments of setPermissions() reject by name, and change nothing', async t => {
  const { app, open } = await audited(t)
  const { there } = await open()
  const table: Array<[unknown, unknown, string]> = [
    [undefined, [], 'userId'], [null, [], 'userId'], ['', [], 'userId'], [4711, [], 'userId'], [[CANARY], [], 'userId'], [CANARY.repeat(300), [], 'userId'],
    ['alice', undefined, 'permissions'], ['alice', null, 'permissions'], ['alice', CANARY, 'permissions'], ['alice', new Set([CANARY]), 'permissions'],
    ['alice', [4711], 'permissions.0'], ['alice', ['a', ''], 'permissions.1'], ['alice', ['a', null], 'permissions.1'], ['alice', [CANARY.repeat(300)], 'permissions.0'],
    ['alice', Array.from({ length: 5000 }, () => CANARY), 'permissions']
  ]
  for (const [userId, permissions, name] of table) {
    const error = await app.hybridAuth.setPermissions(untyped(userId), untyped(permissions)).then(() => null, (one: unknown) => one)
    t.match(error, { code: OPTION }, name)
    t.ok(error instanceof Error && error.message.startsWith(`Invalid option ${name}:`), String(error))
    t.notOk(String(error).includes('4711'), 'the value is not repeated')
  }
  t.equal(there.connection.context.version, 1)
})

t.test('disconnect() closes who matches, by any name or code; their credentials stay good', async t => {
  const { app, open, session, types } = await audited(t)
  const token = goodToken({ iss: 'issuer', companyId: 'acme', jti: 'one' })
  const cookie = session('s1', { userId: 'bob', tenantId: 'acme' })
  const table: Array<[Parameters<typeof app.hybridAuth.disconnect>, { code: number, reason: string }, Array<'token' | 'session'>]> = [
    [[{ userId: 'alice' }], REVOKED, ['token']], [[{}], REVOKED, ['token', 'session']], [[{ tenantId: 'acme' }, {}], REVOKED, ['token', 'session']],
    [[{ issuer: null }, { code: 'Forbidden' }], { code: 4007, reason: closeReason('Forbidden') }, ['session']],
    [[{ tokenId: 'one', issuer: 'issuer' }, { code: 4123 }], { code: 4123, reason: '{"code":"closed","action":"stop","retryAfterMs":0}' }, ['token']],
    [[{ sessionId: 's1' }, { code: 4123, reason: 'maintenance: now' }], { code: 4123, reason: '{"code":"maintenance: now","action":"stop","retryAfterMs":0}' }, ['session']],
    [[{ authType: 'jwt' }, { code: 4006, reason: 'gone' }], { code: 4006, reason: '{"code":"gone","action":"stop","retryAfterMs":0}' }, ['token']],
    [[{ userId: 'alice', tenantId: 'x' }], REVOKED, []]
  ]
  for (const [args, end, closes] of table) {
    const pairs: Record<'token' | 'session', Pair> = { token: await open({ token }), session: await open({ cookie }) }
    t.same(withoutId(t, await app.hybridAuth.disconnect(...args)), outcome(closes.length))
    for (const name of ['token', 'session'] as const) {
      if (closes.includes(name)) t.same(codeAndReason(await pairs[name].peer.end), end, `${JSON.stringify(args)}: ${name}`)
      else await isOpen(t, pairs[name], `${JSON.stringify(args)}: ${name}`)
    }
    await app.hybridAuth.disconnect({})
  }
  t.notOk(types().includes('revoked'))
  t.equal(app.hybridAuth.status().revocations, 0)
})

t.test('bad arguments of disconnect() reject by name, and close nobody', async t => {
  const { app, open } = await audited(t)
  const pair = await open()
  const table: Array<[unknown, unknown, string]> = [
    [null, undefined, 'filter'], [undefined, undefined, 'filter'], [CANARY, undefined, 'filter'], [{ userID: CANARY }, undefined, 'filter.userID'],
    [{ userId: undefined }, undefined, 'filter.userId'], [{ jti: CANARY }, undefined, 'filter.jti'],
    [{ userId: 'x' }, null, 'options'], [{ userId: 'x' }, { reasons: CANARY }, 'reasons'], [{ userId: 4711 }, {}, 'filter.userId'], [{ authType: CANARY }, {}, 'filter.authType'],
    [{}, { code: 'Gone' }, 'code'], [{}, { code: 1000 }, 'code'], [{}, { code: 5000 }, 'code'], [{}, { code: 4000.5 }, 'code'], [{}, { code: null }, 'code'],
    [{}, { reason: '' }, 'reason'], [{}, { reason: `"${CANARY}"` }, 'reason'], [{}, { reason: 'x'.repeat(41) }, 'reason'], [{}, { reason: 4711 }, 'reason']
  ]
  for (const [filter, options, name] of table) {
    const error = await app.hybridAuth.disconnect(untyped(filter), untyped(options)).then(() => null, (one: unknown) => one)
    t.match(error, { code: OPTION }, name)
    t.ok(error instanceof Error && error.message.startsWith(`Invalid option ${name}:`), String(error))
    t.notOk(String(error).includes('4711'), `${name}: the value is not repeated`)
  }
  await isOpen(t, pair, 'the socket')
})

/** Registrations of one cluster, each in an application of its own. */
function nodes (t: Test, count: number, cluster: ClusterDriver, auth: Partial<HybridAuthOptions> = {}, route: RouteAuth = true): Promise<Audited[]> {
  return Promise.all(Array.from({ length: count }, () => audited(t, { auth: { cluster, ...auth }, route })))
}

const three = (matched: number, closed = matched) => ({ ...outcome(matched, closed), nodes: { acknowledged: 3, missing: 0 } })

t.test('revoke() on one registration reaches the others of its cluster, and the answers add up', async t => {
  const servers = await nodes(t, 3, memoryCluster())
  const [first, second, third] = servers
  if (first === undefined || second === undefined || third === undefined) throw new Error('there are three')
  t.equal(new Set(servers.map(({ app }) => app.hybridAuth.status().nodeId)).size, 3)
  const token = goodToken()
  const pairs = [await first.open({ token }), await second.open({ token }), await second.open({ token }), await third.open({ token })]
  const bob = await third.open({ token: goodToken({ sub: 'bob' }) })
  t.match(await second.app.hybridAuth.revoke({ userId: 'alice' }, { dryRun: true }), three(4, 0))
  t.same(servers.map(({ app }) => app.hybridAuth.status().revocations), [0, 0, 0])
  const result = first.app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'everywhere' })
  for (const { there } of pairs) there.socket.send('late')
  t.match(await result, three(4))
  for (const pair of pairs) await isRevoked(t, pair, 'the socket')
  t.same(pairs.flatMap(({ peer }) => peer.texts), [])
  await isOpen(t, bob, 'the other user')
  for (const { host, events } of servers) {
    t.equal((await ask(host, '/me', bearer(token))).status, 401)
    t.ok(events.some(event => event.type === 'revoked' && event.reason === 'everywhere'))
  }
  t.same(servers.map(({ app }) => app.hybridAuth.status().revocations), [1, 1, 1])
  t.match(await third.app.hybridAuth.revoke({ userId: 'alice' }), three(0))
})

t.test('disconnect() and setPermissions() reach the other registrations too', async t => {
  const servers = await nodes(t, 3, memoryCluster())
  const pairs: Pair[] = []
  for (const { open } of servers) pairs.push(await open({ speaks: true }))
  const [first] = servers
  const changed = await first?.app.hybridAuth.setPermissions('alice', ['everywhere'])
  t.match(changed, three(3, 0))
  for (const { there, peer } of pairs) {
    t.ok(there.connection.can('everywhere'))
    t.match(await peer.takeFrame('permission_update'), { added: ['everywhere'] })
  }
  t.match(await first?.app.hybridAuth.disconnect({ userId: 'alice' }, { code: 'Inactive', reason: 'bye' }), three(3))
  for (const { peer } of pairs) t.same(codeAndReason(await peer.end), { code: 4003, reason: '{"code":"bye","action":"reconnect","retryAfterMs":0}' })
})

t.test('reauthWithin, and tokens of the very second, count on every registration', async t => {
  const clock = setClock(t)
  clock.freeze()
  const servers = await nodes(t, 3, memoryCluster())
  const token = goodToken()
  const pairs: Pair[] = []
  for (const { open } of servers) pairs.push(await open({ token, speaks: true }))
  t.match(await servers[0]?.app.hybridAuth.revoke({ userId: 'alice' }, { mode: { reauthWithin: 60_000 } }), three(3, 0))
  for (const { host } of servers) t.equal((await ask(host, '/me', bearer(token))).status, 401)
  pairs[1]?.peer.say(updateOf(goodToken()))
  t.match(await pairs[1]?.peer.takeFrame('auth_updated'), {})
  clock.move(60_000)
  for (const [index, pair] of pairs.entries()) {
    t.equal(pair.peer.framesOf('token_refresh_required').length, 1)
    lookNow(pair.there.connection)
    await (index === 1 ? isOpen : isRevoked)(t, pair, `node ${index}`)
  }
})

t.test('a registration whose application was closed has left the cluster', async t => {
  const [first, second, third] = await nodes(t, 3, memoryCluster())
  if (first === undefined || second === undefined || third === undefined) throw new Error('there are three')
  await third.app.close()
  t.match(await first.app.hybridAuth.revoke({ userId: 'alice' }), { nodes: { acknowledged: 2, missing: 0 } })
  t.same([first, second, third].map(({ app }) => app.hybridAuth.status().revocations), [1, 1, 0])
  await second.app.close()
  t.match(await first.app.hybridAuth.revoke({ userId: 'bob' }), { nodes: { acknowledged: 1, missing: 0 } })
})

t.test('registrations without a common cluster know nothing of each other', async t => {
  const [first, second] = [await audited(t), await audited(t)]
  const pair = await second.open()
  t.match(await first.app.hybridAuth.revoke({ userId: 'alice' }), outcome(0))
  await isOpen(t, pair, 'the other\'s socket')
})

/** Commands as another node gives them. */
let given = 0
const revokeUser = (userId: string) => ({
  type: 'revoke' as const, revocation: { id: `r${++given}`, kind: 'user' as const, key: userId, reason: '', reauthWithin: 0, at: Date.now(), expiresAt: null }
})
type Order = Command extends infer One ? One extends Command ? Omit<One, 'id' | 'from' | 'at'> : never : never
const commandOf = (order: Order, changes: Partial<Pick<Command, 'id' | 'at'>> = {}): Command => ({ id: `c${++given}`, from: 'another', at: Date.now(), ...order, ...changes })

async function joined (t: Test, changes: (inner: Cluster, member: ClusterMember) => Partial<Cluster> = () => ({}), auth: Partial<HybridAuthOptions> = {}, rest: Pick<LiveOptions, 'routes'> = {}) {
  const cluster = driverOf(changes)
  const server = await audited(t, { auth: { cluster, ...auth }, ...rest })
  const [member] = cluster.members
  if (member === undefined) throw new Error('nobody joined')
  return { ...server, member }
}

t.test('a command that came before does nothing, and one that is an hour old only if it is a revocation', async t => {
  const { app, open, member } = await joined(t)
  const pair = await open()
  const HOUR = 3_600_000
  const stale = { at: Date.now() - HOUR - 1000 }
  t.same(await member.receive(commandOf({ type: 'disconnect', filter: {}, code: 4123 }, stale)), { matched: 0, closed: 0 })
  await isOpen(t, pair, 'the socket')
  const once = commandOf({ type: 'permissions', userId: 'alice', permissions: ['a'] })
  t.same([await member.receive(once), await member.receive(once)], [{ matched: 1, closed: 0 }, { matched: 0, closed: 0 }])
  t.equal(pair.there.connection.context.version, 2)
  const revoke = commandOf(revokeUser('alice'), stale)
  t.same([await member.receive(revoke), await member.receive(revoke)], [{ matched: 1, closed: 1 }, { matched: 0, closed: 0 }])
  await isRevoked(t, pair, 'the socket')
  t.same([...member.revocations()].map(({ key }) => key), ['alice'])
  t.same([member.hasRevocation('x'), [...member.revocations()].every(({ id }) => member.hasRevocation(id))], [false, true])
  t.equal(app.hybridAuth.status().revocations, 1)
})

t.test('a command is remembered for two hours: longer than one is carried out', async t => {
  const clock = setClock(t)
  const { open, member } = await joined(t)
  const { there } = await open({ token: goodToken({ exp: inSeconds(86_400) }) })
  const first = commandOf({ type: 'permissions', userId: 'alice', permissions: ['a'] })
  await member.receive(first)
  for (const [hours, version] of [[0.9, 2], [0.2, 2], [0.8, 2], [0.2, 3]] as const) {
    clock.move(hours * 3_600_000)
    await member.receive(commandOf({ type: 'evict', leases: [] }))
    await member.receive({ ...first, at: Date.now() })
    t.equal(there.connection.context.version, version)
  }
})

t.test('a revocation that is over when it comes ends what was open when it was made, and nothing else', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, open, member } = await joined(t)
  const before = await open()
  const { revocation } = revokeUser('alice')
  clock.move(10_000)
  const after = await open()
  const late = commandOf({ type: 'revoke', revocation: { ...revocation, expiresAt: Date.now() - 1 } })
  t.same(await member.receive(late), { matched: 1, closed: 1 })
  await isRevoked(t, before, 'who was there')
  await isOpen(t, after, 'who came later')
  t.equal(app.hybridAuth.status().revocations, 0)
})

t.test('a close name that only another version knows is 4006', async t => {
  const { open, member } = await joined(t)
  for (const [code, expected] of [['Suspended', 4006], ['toString', 4006], ['Inactive', 4003], [4321, 4321]] as const) {
    const { peer } = await open()
    t.same(await member.receive(commandOf({ type: 'disconnect', filter: {}, code })), { matched: 1, closed: 1 })
    t.equal((await peer.end).code, expected, String(code))
  }
})

t.test('a place that another node takes away ends its connection, on the node that has it', async t => {
  const taken: string[] = []
  const acquiring = (inner: Cluster): Partial<Cluster> => ({
    acquire (...args) {
      taken.push(args[0].id)
      return inner.acquire(...args)
    }
  })
  const { member, open, events } = await joined(t, acquiring, { limits: { connections: { perUser: 5 } } })
  const { peer } = await open()
  t.equal(taken.length, 1)
  t.same(await member.receive(commandOf({ type: 'evict', leases: ['x', ...taken] })), { matched: 1, closed: 1 })
  t.equal((await peer.end).code, 4009)
  t.match(events.filter(({ type }) => type === 'limited'), [{ code: 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS' }])
  const unlimited = await joined(t)
  t.same(await unlimited.member.receive(commandOf({ type: 'evict', leases: ['x'] })), { matched: 0, closed: 0 })
})

t.test('a place in the way is taken from the node that has it, and nobody waits for that', async t => {
  const never = new Promise<never>(() => {})
  const sent: Command[] = []
  for (const publish of [async () => never, async () => Promise.reject(authError(UNAVAILABLE))]) {
    const { open } = await joined(t, () => ({
      acquire: () => ['of another'],
      publish (command) {
        sent.push(command)
        return publish()
      }
    }), { limits: { connections: { perUser: 1, policy: 'evict-oldest' } } })
    await isOpen(t, await open(), 'the socket')
  }
  t.match(sent, [{ type: 'evict', leases: ['of another'] }, { type: 'evict' }])
})

t.test('answers of the other nodes are added, and revoke() waits for them; a logout is only sent', async t => {
  const sent: Array<[string, boolean]> = []
  const answer = deferred<void>()
  const store = new MapStore().put('s1', { user: { userId: 'bob' }, cookie: {} })
  const { app, open } = await joined(t, () => ({
    async publish (command, awaits) {
      sent.push([command.type, awaits])
      if (command.type === 'revoke') await answer.promise
      return { matched: 5, closed: 4, durable: false, acknowledged: 2, missing: 1 }
    }
  }), { session: { store, secret: SESSION_SECRET, user: stored => stored.user ?? null } })
  const pair = await open()
  let isAnswered = false
  const result = app.hybridAuth.revoke({ userId: 'alice' }).finally(() => { isAnswered = true })
  await isRevoked(t, pair, 'the socket, meanwhile,')
  t.notOk(isAnswered)
  let isDestroyed = false
  store.destroy('s1', () => { isDestroyed = true })
  answer.resolve()
  t.same(withoutId(t, await result), { matched: 6, closed: 5, durable: false, nodes: { acknowledged: 3, missing: 1 } })
  await until(() => isDestroyed)
  t.same(sent, [['revoke', true], ['revoke', false]])
})

t.test('what the others cannot be told is carried out here, and said to have failed', async t => {
  const { app, open } = await joined(t, () => ({ publish: async () => Promise.reject(authError(UNAVAILABLE)) }))
  const token = goodToken()
  const pair = await open({ token })
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }).then(() => null, (error: unknown) => error), { code: UNAVAILABLE })
  await isRevoked(t, pair, 'the socket')
  t.equal(app.hybridAuth.status().revocations, 1)
})

t.test('a logout is carried out here, whatever becomes of it elsewhere', async t => {
  const { app, host, open, session, store } = await joined(t, () => ({ publish: async () => Promise.reject(authError(UNAVAILABLE)) }))
  const cookie = session('s1', { userId: 'bob' })
  const pair = await open({ cookie })
  await ask(host, '/me', withCookie(cookie))
  await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  await isRevoked(t, pair, 'the socket')
  t.equal(app.hybridAuth.status().revocations, 1)
})

t.test('until the revocations are known nobody is told from who was revoked: 503 for all', async t => {
  const { app, host, member, session } = await joined(t, () => ({ isConnected: false, queued: 7 }))
  const [token, cookie] = [goodToken(), session('s1', { userId: 'bob' })]
  for (const how of [bearer(token), withCookie(cookie)]) t.equal(codeOf((await ask(host, '/me', how)).body), UNAVAILABLE)
  t.match(app.hybridAuth.status(), { connected: false, queued: 7, lostSince: null, ignored: 0 })
  member.recovered({ lostFor: 1, converged: 2 })
  for (const how of [bearer(token), withCookie(cookie)]) t.equal((await ask(host, '/me', how)).status, 200)
})

t.test('a cluster that is lost is told of once, and so is its return', async t => {
  const { app, events, member, open } = await joined(t)
  const pair = await open()
  const before = Date.now()
  member.lost(new Error(CANARY))
  member.lost(new Error(CANARY))
  const { lostSince, nodeId } = app.hybridAuth.status()
  t.ok(lostSince !== null && lostSince >= before)
  await isOpen(t, pair, 'the socket')
  member.recovered({ lostFor: 12, converged: 3 })
  member.recovered({ lostFor: 0, converged: 0 })
  t.equal(app.hybridAuth.status().lostSince, null)
  await nextTurn()
  t.match(events.filter(({ type }) => type.startsWith('cluster_')), [{ type: 'cluster_lost', nodeId }, { type: 'cluster_recovered', nodeId, lostFor: 12, converged: 3 }])
  t.equal(events.filter(({ type }) => type.startsWith('cluster_')).length, 2)
  member.ignored()
  member.ignored()
  t.equal(app.hybridAuth.status().ignored, 2)
  t.equal(app.hybridAuth.status().nodeId, member.id)
})

/** Until a new socket is refused with 503; those that are not are ended. */
async function refusedOpening ({ port }: Audited): Promise<void> {
  let status = 0
  for (let tries = 0; status !== 503 && tries < 500; tries++) {
    status = statusOf(await rawExchange(port, handshake([`Authorization: Bearer ${goodToken({ sub: 'carol' })}`])))
  }
  if (status !== 503) throw new Error('new sockets are never refused')
}

t.test('messages that no node can have sent are counted, and the first of them is logged', async t => {
  const lines = keepLines()
  const cluster = driverOf()
  const { app } = await audited(t, { auth: { cluster }, fastify: { logger: { stream: lines.stream, level: 'warn' } } })
  for (const member of cluster.members) for (let i = 0; i < 3; i++) member.ignored()
  t.equal(app.hybridAuth.status().ignored, 3)
  t.equal(lines.text().split('same secret').length - 1, 1)
})

t.test('a first message that comes while the cluster is lost for too long is refused with 4012', async t => {
  const { host, member } = await joined(t, () => ({ onLoss: { action: 'refuse-new', after: 0 } }), {}, {
    routes (app) { app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => { t.fail('the handler ran') }) }
  })
  const early = connect(t, host, { token: null, path: '/first' })
  await early.opened
  member.lost(new Error('away'))
  await new Promise<void>(resolve => { setTimeout(resolve, 6) })
  early.socket.send(authFrame(goodToken()))
  t.match(await early.closed, { code: 4012, reason: /"code":"unavailable","action":"retry"/ })
})

for (const action of ['refuse-new', 'close'] as const) {
  t.test(`a cluster that is lost for too long: ${action}, until it is back`, async t => {
    const server = await joined(t, () => ({ onLoss: { action, after: 0 } }))
    const { host, member, open } = server
    const pair = await open()
    member.lost(new Error('away'))
    if (action === 'close') t.match(codeAndReason(await pair.peer.end), { code: 4012, reason: /"code":"unavailable","action":"retry","retryAfterMs":(?:[5-9]\d{3})\}/ })
    await refusedOpening(server)
    if (action === 'refuse-new') await isOpen(t, pair, 'who was there')
    t.equal((await ask(host, '/me', bearer(goodToken()))).status, 200, 'HTTP goes on')
    member.recovered({ lostFor: 1, converged: 1 })
    await isOpen(t, await open(), 'whoever comes then')
  })
}

t.test('a cluster that is back in time closes nobody, and one that is lost while the application closes neither', async t => {
  const { member, open, app } = await joined(t, () => ({ onLoss: { action: 'close', after: 5 } }))
  const pair = await open()
  member.lost(new Error('away'))
  member.recovered({ lostFor: 1, converged: 1 })
  // One that is set later for as long comes later.
  await new Promise<void>(resolve => { setTimeout(resolve, 6) })
  await isOpen(t, pair, 'the socket')
  member.lost(new Error('away'))
  await app.close()
  t.equal((await pair.peer.end).code, 1012)
})

t.test('what a cluster says before there are connections does no harm, and the same revocation counts later', async t => {
  const early = commandOf(revokeUser('alice'))
  const answers: Array<Promise<unknown>> = []
  const { app, host, member } = await joined(t, (_inner, one) => {
    answers.push(one.receive(early), one.receive(commandOf({ type: 'disconnect', filter: {}, code: 4123 })))
    one.recovered({ lostFor: 0, converged: 0 })
    return {}
  })
  t.same(await Promise.all(answers), [{ matched: 0, closed: 0 }, { matched: 0, closed: 0 }])
  await member.receive(early)
  t.equal(app.hybridAuth.status().revocations, 1)
  t.equal((await ask(host, '/me', bearer(goodToken()))).status, 401)
})

t.test('a cluster that is lost for too long before there are connections is still lost when there are', async t => {
  const cluster = driverOf(() => ({ onLoss: { action: 'refuse-new', after: 0 } }))
  const known = new Revocations()
  const app = Fastify()
  const audit = createAuditor('node', app.log, undefined)
  const reported: unknown[] = []
  const options = { ...parseOptions({ jwt: JWT }), cluster }
  const node = new ClusterNode(options, known, audit, { onLost (cause) { reported.push(cause) }, onIgnored () {} })
  node.lost('away')
  // A timer that is set later for longer comes later.
  await new Promise<void>(resolve => { setTimeout(resolve, 6) })
  t.same(reported, ['away'])
  const report = () => {}
  const hub = createHub(options, { ...createRooms(options, node, audit, report, known), sources: null, verifiers: { verifyToken: () => 'FST_HYBRID_AUTH_INVALID_TOKEN', watched: {}, forgetAnswers () {} }, audit, report, revocations: known, limits: null, rates: { users: new BucketTable(1, Date.now), cluster: node.cluster } })
  node.attach(hub)
  t.equal(hub.isIsolated, true, 'new sockets are refused')
  node.recovered({ lostFor: 1, converged: 1 })
  t.equal(hub.isIsolated, false)
  await node.stop()
})
