/** What every cluster has to do, whatever nodes talk through; and nodes of one in this process. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from 'redis'
import type { Test } from 'tap'
import type { AuditEvent, ClusterStatus, CommandResult, HybridAuth, HybridAuthOptions } from '../lib/index.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import type { RedisClient } from '../lib/cluster/redis-client.js'
import * as scripts from '../lib/cluster/redis-scripts.js'
import { redisCluster, type RedisClusterOptions } from '../lib/cluster/redis.js'
import { closeReason } from '../lib/protocol.js'
import { goodToken, inSeconds, upgrade } from './helpers.js'
import { eventually, live, type Live, type LiveOptions, type Pair, type Peer } from './live.js'
import { connect } from './redis.js'
import { ask, codeOf, deferred, MapStore, type Deferred } from './stores.js'

export const REVOKED = { code: 4006, reason: closeReason('Revoked') }
export const bearer = (token: string) => ({ headers: { authorization: `Bearer ${token}` } })
/** Of a user, issued long enough ago to be older than what a test does now. */
export const tokenOf = (sub: string, changes: Record<string, unknown> = {}) => goodToken({ sub, iat: inSeconds(-10), ...changes })

/** The end of a peer without its time, which has to come. */
export async function endOf (peer: Peer) {
  await eventually('a socket ends', () => peer.hasEnded, 10_000)
  const { code, reason } = await peer.end
  return { code, reason }
}

export async function isOpen (t: Test, { peer }: Pair, what: string): Promise<void> {
  t.ok(await peer.echoed(`${what}: echo ${randomBytes(4).toString('hex')}`), `${what}: open`)
}

export interface Node extends Live {
  events: AuditEvent[]
  /** How many events of this type there were. */
  count: (type: AuditEvent['type']) => number
  revoke: (...given: Parameters<HybridAuth['revoke']>) => Promise<CommandResult>
  disconnect: (...given: Parameters<HybridAuth['disconnect']>) => Promise<CommandResult>
  status: () => ClusterStatus
  /** What an upgrade and an HTTP request with this token are answered. */
  admits: (token: string) => Promise<[upgrade: number, http: number]>
}

export interface NodeSettings extends LiveOptions {
  cluster: ClusterDriver
  store?: MapStore
}

/** A node of a cluster, with routes that give out tickets and log out. */
export async function startNode (t: Test, { cluster, auth, store = new MapStore(), ...rest }: NodeSettings): Promise<Node> {
  const events: AuditEvent[] = []
  const server = await live(t, {
    auth: { heartbeat: false, audit: event => { events.push(event) }, cluster, ...auth },
    session: { store },
    routes (app) {
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      app.post('/logout', async request => {
        await request.session.destroy()
        return 'ok'
      })
    },
    ...rest
  })
  const { hybridAuth } = server.app
  return {
    ...server,
    events,
    count: type => events.filter(event => event.type === type).length,
    revoke: (...given) => hybridAuth.revoke(...given),
    disconnect: (...given) => hybridAuth.disconnect(...given),
    status: () => hybridAuth.status(),
    async admits (token) {
      const [{ status }, answer] = await Promise.all([upgrade(t, server.host, bearer(token)), ask(server.host, '/me', bearer(token))])
      return [status, answer.status]
    }
  }
}

export const CLUSTER_SECRET = 'a secret that all nodes of a cluster know'
/** Time limits that a test can wait for. */
export const SHORT = { secret: CLUSTER_SECRET, nodeTimeout: 1000, timeout: 300, clusterLossDelay: 100, onClusterLoss: 'serve' } as const satisfies RedisClusterOptions

export interface RedisNode extends Node {
  client: Awaited<ReturnType<typeof connect>>
}

export interface RedisNodeSettings extends Omit<NodeSettings, 'cluster'> {
  cluster?: RedisClusterOptions
  /** What the cluster is given in place of the client. */
  wrap?: (client: RedisClient) => RedisClient
  /** Of its client. */
  clientOptions?: ConnectOptions
}

type ConnectOptions = NonNullable<Parameters<typeof createClient>[0]>

/** A client that was made with options of its own. */
async function connectWith (t: Test, url: string, options: ConnectOptions): Promise<RedisClient> {
  const client = createClient({ socket: { reconnectStrategy: () => 100 }, ...options, url })
  client.on('error', () => {})
  t.teardown(() => { if (client.isOpen) client.destroy() })
  await client.connect()
  return client
}

export async function redisNode (t: Test, url: string, { cluster = {}, wrap = client => client, clientOptions, ...rest }: RedisNodeSettings = {}): Promise<RedisNode> {
  const client = await connect(t, url)
  const given = clientOptions === undefined ? client : await connectWith(t, url, clientOptions)
  return { ...await startNode(t, { cluster: redisCluster(wrap(given), { ...SHORT, ...cluster }), ...rest }), client }
}

/** A command on its way to Redis, on the connection that is asked or on the one that listens. */
export interface Sent {
  readonly args: readonly string[]
  /** Of the script where it runs one, of the command otherwise. */
  readonly name: string
  readonly isReader: boolean
  readonly send: () => Promise<unknown>
}

const NAMES = new Map(Object.entries(scripts).flatMap(([name, { text, sha }]) => [[text, name], [sha, name]]))

/** A client of which every command passes by the test. */
export function intercepted (client: RedisClient, pass: (sent: Sent) => Promise<unknown>, isReader = false): RedisClient {
  return {
    get isReady () { return client.isReady },
    get options () { return client.options },
    sendCommand: args => pass({ args, name: NAMES.get(args[1] ?? '') ?? args[0] ?? '', isReader, send: () => client.sendCommand(args) }),
    subscribe: (channels, listener) => pass({ args: ['SUBSCRIBE', ...channels], name: 'SUBSCRIBE', isReader, send: () => client.subscribe(channels, listener) }),
    unsubscribe: (channel, listener) => pass({ args: ['UNSUBSCRIBE', channel], name: 'UNSUBSCRIBE', isReader, send: () => client.unsubscribe(channel, listener) }),
    duplicate: overrides => intercepted(client.duplicate(overrides), pass, true),
    connect: () => client.connect(),
    destroy () { client.destroy() },
    on: (event, listener) => client.on(event, listener)
  }
}

/** What happens to the next command of a name, once. */
export class Script {
  readonly #plans: Array<{ name: string, isReader: boolean, run: (sent: Sent) => Promise<unknown> }> = []

  readonly wrap = (client: RedisClient): RedisClient => intercepted(client, sent => {
    const at = this.#plans.findIndex(({ name, isReader }) => name === sent.name && isReader === sent.isReader)
    const [plan] = at === -1 ? [] : this.#plans.splice(at, 1)
    return plan === undefined ? sent.send() : plan.run(sent)
  })

  /** The next command of this name fails. */
  fails (name: string, isReader = false): Promise<void> {
    const there = deferred<undefined>()
    this.#plans.push({
      name, isReader, async run () {
        there.resolve(undefined)
        throw new Error(`${name} fails`)
      }
    })
    return there.promise
  }

  /** The next command of this name is answered by this. */
  answers (name: string, reply: unknown, isReader = false): void {
    this.#plans.push({ name, isReader, run: async () => reply })
  }

  /** The next command of this name is carried out, and its answer is held back. */
  holds (name: string, isReader = false): { arrived: Promise<void>, release: () => void } {
    const arrived: Deferred<undefined> = deferred()
    const released: Deferred<undefined> = deferred()
    const hold = async ({ send }: Sent) => {
      const reply = await send().catch((error: unknown) => {
        // It is about one that is answered: a script that is not known yet is sent again.
        this.#plans.unshift({ name, isReader, run: hold })
        throw error
      })
      arrived.resolve(undefined)
      await released.promise
      return reply
    }
    this.#plans.push({ name, isReader, run: hold })
    return { arrived: arrived.promise, release () { released.resolve(undefined) } }
  }
}

/** Resolves when it holds, asked again and again. */
export async function until (what: string, holds: () => Promise<boolean>, ms = 5000): Promise<void> {
  const started = performance.now()
  while (!await holds()) {
    if (performance.now() - started > ms) throw new Error(`never: ${what}`)
    await sleep(10)
  }
}

/** The ids of revocations that Redis keeps. */
export async function kept (admin: RedisNode['client']): Promise<string[]> {
  return (await admin.hKeys('{hybrid-auth}:live')).filter(id => id !== 'generation')
}

/** Everything that this node asked of the cluster so far has been done. */
export async function settled ({ revoke }: Pick<Node, 'revoke'>): Promise<void> {
  await revoke({ userId: 'nobody' }, { dryRun: true })
}

/** A result without its id, and without what it met on sockets where only its delivery matters. */
export function delivery ({ durable, nodes }: CommandResult): Pick<CommandResult, 'durable' | 'nodes'> {
  return { durable, nodes }
}

/** Another process's view of the same sessions: its own object, on which nobody else's hooks are. */
class StoreView extends MapStore {
  override readonly sessions: MapStore['sessions']

  constructor (sessions: MapStore['sessions']) {
    super()
    this.sessions = sessions
  }
}

/** One cluster for a test: each call is the driver of one more node. */
export type MakeDriver = (t: Test) => Promise<() => ClusterDriver | Promise<ClusterDriver>>

type Limits = NonNullable<NonNullable<HybridAuthOptions['limits']>['connections']>

const ROUNDS = 25
const FULL = 4009

/** @param options of the test that they are all in */
export function clusterSuite (t: Test, name: string, makeDriver: MakeDriver, options: { skip?: string | false } = {}): void {
  t.test(name, options, async t => {
    const three = async (t: Test, limits?: Limits): Promise<[Node, Node, Node]> => {
      const driverOf = await makeDriver(t)
      const { sessions } = new MapStore()
      const start = async () => startNode(t, {
        cluster: await driverOf(), store: new StoreView(sessions), ...(limits !== undefined && { auth: { heartbeat: false, limits: { connections: limits } } })
      })
      return Promise.all([start(), start(), start()])
    }

    t.test('a revocation closes the sockets of its target on every node, and is refused there', async t => {
      const nodes = await three(t)
      const [a, b, c] = nodes
      const token = tokenOf('alice')
      const sockets = await Promise.all(nodes.map(({ open }) => open({ token })))
      const others = await Promise.all(nodes.map(({ open }) => open({ token: tokenOf('bob') })))
      t.same(await a.admits(token), [101, 200])

      const { id, ...rest } = await a.revoke({ userId: 'alice' })
      t.match(id, /^[\w-]{16}$/)
      t.same(rest, { matched: 3, closed: 3, durable: true, nodes: { acknowledged: 3, missing: 0 } })
      for (const { peer } of sockets) t.same(await endOf(peer), REVOKED)
      for (const node of [a, b, c]) {
        t.same(await node.admits(token), [401, 401])
        t.equal(codeOf((await ask(node.host, '/me', bearer(token))).body), 'FST_HYBRID_AUTH_REVOKED_TOKEN')
        t.equal(node.status().revocations, 1)
        t.same(await node.admits(tokenOf('bob')), [101, 200])
      }
      for (const other of others) await isOpen(t, other, 'another user')
    })

    t.test('a dry run counts on every node, and changes nothing', async t => {
      const nodes = await three(t)
      const token = tokenOf('alice')
      const sockets = await Promise.all(nodes.flatMap(({ open }) => [open({ token }), open({ token })]))
      const { id: _id, ...rest } = await nodes[1].revoke({ userId: 'alice' }, { dryRun: true })
      t.same(rest, { matched: 6, closed: 0, durable: true, nodes: { acknowledged: 3, missing: 0 } })
      for (const socket of sockets) await isOpen(t, socket, 'a socket that was counted')
      for (const node of nodes) t.same([node.status().revocations, await node.admits(token)], [0, [101, 200]])
    })

    t.test('a revocation that gives time asks on every node, and ends who brought nothing', async t => {
      const [a, b, c] = await three(t)
      const brings = await b.open({ token: tokenOf('alice'), speaks: true })
      const silent = await c.open({ token: tokenOf('alice') })
      const brought = tokenOf('alice', { iat: inSeconds(0) })
      const result = await a.revoke({ userId: 'alice' }, { mode: { reauthWithin: 600 } })
      t.same([result.matched, result.closed, result.nodes], [2, 0, { acknowledged: 3, missing: 0 }])
      t.match(await brings.peer.takeFrame('token_refresh_required'), { expiresIn: 1 })
      brings.peer.say({ type: 'auth_update', token: brought })
      t.match(await brings.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
      t.same(await endOf(silent.peer), REVOKED)
      await isOpen(t, brings, 'who brought a fresh token')
      for (const node of [a, b, c]) t.same([await node.admits(tokenOf('alice')), await node.admits(brought)], [[401, 401], [101, 200]])
    })

    t.test('a disconnect closes on every node, with its code and reason, and refuses nothing', async t => {
      const nodes = await three(t)
      const [a, b, c] = nodes
      const token = tokenOf('alice', { jti: 'the one' })
      const sockets = await Promise.all(nodes.map(({ open }) => open({ token })))
      const other = await c.open({ token: tokenOf('alice') })
      const { id: _id, ...rest } = await b.disconnect({ userId: 'alice', tokenId: 'the one' }, { code: 4321, reason: 'moved away' })
      t.same(rest, { matched: 3, closed: 3, durable: true, nodes: { acknowledged: 3, missing: 0 } })
      for (const { peer } of sockets) t.match(await endOf(peer), { code: 4321, reason: /"code":"moved away"/ })
      await isOpen(t, other, 'another token')
      t.same(await a.admits(token), [101, 200])

      const result = await a.disconnect({ userId: 'alice' }, { code: 'Inactive' })
      t.equal(result.matched, 1)
      t.match(await endOf(other.peer), { code: 4003, reason: /"code":"inactive"/ })
    })

    t.test('permissions are replaced on every node, and clients there are told', async t => {
      const [a, b] = await three(t)
      const { peer, there } = await b.open({ token: tokenOf('alice', { permissions: ['read', 'write'] }), speaks: true })
      const result = await a.app.hybridAuth.setPermissions('alice', ['read', 'admin'])
      t.match(result, { matched: 1, closed: 0, durable: true, nodes: { acknowledged: 3, missing: 0 } })
      t.same(await peer.takeFrame('permission_update'), { type: 'permission_update', permissions: ['read', 'admin'], added: ['admin'], removed: ['write'] })
      t.same([there.connection.can('admin'), there.connection.can('write'), there.request.auth.permissions], [true, false, ['read', 'admin']])
    })

    t.test('of three nodes that race for the last place one gets it, each time', async t => {
      const nodes = await three(t, { perUser: 3 })
      const [a, b] = nodes
      const token = tokenOf('alice')
      await Promise.all([a.open({ token }), b.open({ token })])
      const winners = new Map<Node, number>()
      for (let round = 0; round < ROUNDS; round++) {
        // Whoever asks first has the advantage: each in turn.
        const order = [...nodes.slice(round % 3), ...nodes.slice(0, round % 3)]
        const tries = await Promise.all(order.map(async node => ({ node, pair: await node.open({ token }).catch((error: unknown) => String(error)) })))
        const won = tries.filter(({ pair }) => typeof pair !== 'string')
        if (won.length !== 1) t.fail(`round ${round}: ${won.length} got a place`)
        for (const { pair, node } of won) {
          if (typeof pair === 'string') continue
          winners.set(node, (winners.get(node) ?? 0) + 1)
          pair.peer.socket.close()
          await pair.there.closed
          await settled(node)
        }
        for (const { pair } of tries) if (typeof pair === 'string' && !pair.includes('429')) t.fail(pair)
        const open = nodes.reduce((sum, { app }) => sum + app.hybridAuth.count({ userId: 'alice' }), 0)
        if (open !== 2) t.fail(`round ${round}: ${open} are left`)
      }
      t.comment(`places went to ${[...winners.values()].join(', ')}`)
      t.pass('one at a time')
    })

    t.test('many sockets that come at once fill the limit and no more, on all nodes together', async t => {
      const nodes = await three(t, { perUser: 7 })
      const token = tokenOf('alice')
      for (let round = 0; round < 5; round++) {
        const tries = await Promise.all(Array.from({ length: 24 }, async (_, i) => (nodes[i % 3] ?? nodes[0]).open({ token }).catch(() => null)))
        const opened = tries.filter(pair => pair !== null)
        t.equal(opened.length, 7)
        for (const { peer } of opened) peer.socket.close()
        await Promise.all(opened.map(({ there }) => there.closed))
        await Promise.all(nodes.map(settled))
      }
    })

    t.test('a limit that is full on all nodes together refuses on each, until a place is given back', async t => {
      const [a, b, c] = await three(t, { perUser: 2 })
      const token = tokenOf('alice')
      const first = await a.open({ token })
      await b.open({ token })
      for (const { host } of [a, b, c]) {
        const refused = await upgrade(t, host, bearer(token))
        t.same([refused.status, codeOf(refused.body)], [429, 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS'])
      }
      t.same(await c.admits(tokenOf('bob')), [101, 200])
      first.peer.socket.close()
      await first.there.closed
      await settled(a)
      await c.open({ token })
      for (const { host } of [a, b, c]) t.equal((await upgrade(t, host, bearer(token))).status, 429)
    })

    t.test('the oldest goes for the newest, wherever it is', async t => {
      const [a, b, c] = await three(t, { perUser: 2, policy: 'evict-oldest' })
      const token = tokenOf('alice')
      const first = await a.open({ token })
      const second = await b.open({ token })
      const third = await c.open({ token })
      t.match(await endOf(first.peer), { code: FULL, reason: /"code":"evicted","action":"stop"/ })
      await eventually('it is heard of', () => a.count('limited') === 1)
      const fourth = await c.open({ token })
      t.match(await endOf(second.peer), { code: FULL })
      const fifth = await c.open({ token })
      t.match(await endOf(third.peer), { code: FULL })
      await isOpen(t, fourth, 'the one before')
      await isOpen(t, fifth, 'the newest')
    })

    t.test('whoever goes for one limit makes room under the others', async t => {
      const [a, b, c] = await three(t, { perUser: 2, perIp: 3, perTenant: 3, policy: 'evict-oldest' })
      const of = (user: string, tenant = 'acme') => ({ token: tokenOf(user, { companyId: tenant }) })
      const one = await a.open(of('alice'))
      const two = await b.open(of('alice'))
      const three_ = await c.open(of('bob'))
      // Over by one under all three limits, and the same goes for all.
      const four = await c.open(of('alice'))
      t.match(await endOf(one.peer), { code: FULL })
      for (const [pair, what] of [[two, 'alice, second'], [three_, 'bob'], [four, 'alice, third']] as const) await isOpen(t, pair, what)
      await settled(a)
      // Another tenant: only the address is full.
      const five = await a.open(of('carol', 'other'))
      t.match(await endOf(two.peer), { code: FULL })
      await settled(b)
      // Room under the tenant, none under the address.
      const six = await b.open(of('dave'))
      t.match(await endOf(three_.peer), { code: FULL })
      for (const [pair, what] of [[four, 'alice, third'], [five, 'carol'], [six, 'dave']] as const) await isOpen(t, pair, what)
    })

    t.test('many that come at once where the oldest goes leave as many as there may be', async t => {
      const nodes = await three(t, { perUser: 3, perIp: 5, policy: 'evict-oldest' })
      const peers: Peer[] = []
      await Promise.all(Array.from({ length: 30 }, async (_, i) => {
        const pair = await (nodes[i % 3] ?? nodes[0]).open({ token: tokenOf(i % 2 === 0 ? 'alice' : 'bob') }).catch(() => null)
        if (pair !== null) peers.push(pair.peer)
      }))
      const open = (userId?: string) => nodes.reduce((sum, { app }) => sum + app.hybridAuth.count(userId === undefined ? {} : { userId }), 0)
      await eventually('the last is gone', () => open() <= 5)
      await Promise.all(nodes.map(settled))
      t.equal(open(), 5)
      t.ok(open('alice') <= 3 && open('bob') <= 3, `${open('alice')} of alice, ${open('bob')} of bob`)
      await eventually('all others have ended', () => peers.filter(({ hasEnded }) => !hasEnded).length === 5)
      for (const peer of peers) if (peer.hasEnded && (await endOf(peer)).code !== FULL) t.fail('another end')
    })

    t.test('a ticket of one node opens one socket on another', async t => {
      const [a, b, c] = await three(t)
      const token = tokenOf('alice')
      const issue = async () => (await ask(a.host, '/ticket', { method: 'POST', ...bearer(token) })).body
      const taken = await upgrade(t, b.host, { path: `/live?ticket=${await issue()}` })
      t.match(taken, { status: 101, context: { userId: 'alice', via: 'ticket' } })
      for (let round = 0; round < 10; round++) {
        const path = `/live?ticket=${await issue()}`
        const tries = await Promise.all([b, c, b, c].map(async ({ host }) => (await upgrade(t, host, { path })).status))
        t.same([...tries].sort(), [101, 401, 401, 401])
      }
      const path = `/live?ticket=${await issue()}`
      await c.revoke({ token })
      t.equal((await upgrade(t, b.host, { path })).status, 401, 'it ends with what it was issued for')
    })

    t.test('who logs out on one node is out on the others', async t => {
      const [a, b, c] = await three(t)
      const cookie = await a.login({ userId: 'bob' })
      const sockets = [await a.open({ cookie }), await b.open({ cookie }), await c.open({ cookie })]
      const other = await b.open({ cookie: await b.login({ userId: 'bob' }) })
      t.equal((await ask(a.host, '/logout', { method: 'POST', headers: { cookie } })).status, 200)
      for (const { peer } of sockets) t.same(await endOf(peer), REVOKED)
      await isOpen(t, other, 'another session')
    })

    t.test('who logs out where there is no socket of theirs is out on the others', async t => {
      const [a, b] = await three(t)
      const cookie = await b.login({ userId: 'bob' })
      const { peer } = await b.open({ cookie })
      await ask(a.host, '/logout', { method: 'POST', headers: { cookie } })
      t.same(await endOf(peer), REVOKED)
      t.equal((await upgrade(t, b.host, { headers: { cookie, origin: `http://${b.host}` } })).status, 401)
    })

    t.test('a node that has closed is neither counted nor missing, and its places are free', async t => {
      const [a, b, c] = await three(t, { perUser: 1 })
      const token = tokenOf('alice')
      const { peer } = await a.open({ token })
      t.equal((await upgrade(t, b.host, bearer(token))).status, 429)
      await a.app.close()
      t.equal((await endOf(peer)).code, 1012)
      await b.open({ token })
      t.match(await c.revoke({ userId: 'alice' }), { matched: 1, closed: 1, durable: true, nodes: { acknowledged: 2, missing: 0 } })
    })

    t.test('commands of all nodes at once reach all nodes', async t => {
      const nodes = await three(t)
      const users = Array.from({ length: 30 }, (_, i) => `user ${i}`)
      const tokens = users.map(user => tokenOf(user))
      const sockets = await Promise.all(tokens.map((token, i) => (nodes[i % 3] ?? nodes[0]).open({ token })))
      const results = await Promise.all(users.map((userId, i) => (nodes[(i + 1) % 3] ?? nodes[0]).revoke({ userId })))
      for (const result of results) t.match(result, { matched: 1, closed: 1, nodes: { acknowledged: 3, missing: 0 } })
      for (const { peer } of sockets) t.equal((await endOf(peer)).code, 4006)
      for (const { status } of nodes) t.equal(status().revocations, 30)
    })
  })
}
