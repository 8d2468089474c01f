/** What rooms and live permissions have to do over nodes, whatever those talk through. */
import { setImmediate as turn } from 'node:timers/promises'
import websocket from '@fastify/websocket'
import { Registry } from 'prom-client'
import type { Test } from 'tap'
import type { HybridAuth, Identity, RouteAuth } from '../lib/index.js'
import hybridAuth from '../lib/index.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import { bearer, endOf, isOpen, startNode, tokenOf, type MakeDriver, type Node } from './cluster-suite.js'
import { JWT } from './helpers.js'
import { dial, eventually, type LiveOptions, type Pair, type Peer } from './live.js'
import { ask, deferred, serve, type Deferred } from './stores.js'

export const ROOMS: RouteAuth = { rooms: true }
const UNAVAILABLE = { code: 4012 }
const END = 'end'

/** What a member was given in a room so far, in order. */
export function heardBy ({ peer }: Pick<Pair, 'peer'>, room: string): unknown[] {
  return peer.framesOf('message').filter(frame => frame.room === room).map(({ payload }) => payload)
}

/** Joins from the server's side, and fails where that is refused. */
export async function into ({ there }: Pair, ...rooms: string[]): Promise<void> {
  for (const room of rooms) if (!await there.connection.join(room)) throw new Error(`no way into ${room}`)
}

/** Everything that this node published in the room before this has come where it can. */
export async function flushed ({ app }: Pick<Node, 'app'>, room: string, members: readonly Pair[], mark: unknown = END): Promise<void> {
  await app.hybridAuth.rooms.publish(room, mark)
  for (const { peer } of members) await peer.until(() => peer.texts.some(text => text === JSON.stringify({ type: 'message', room, payload: mark })))
}

/** `hybrid_auth_room_messages_total`, by step, since the registry was made. */
export function roomMeter ({ app }: Pick<Node, 'app'>): (step: 'published' | 'heard' | 'delivered' | 'lost') => Promise<number> {
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  return async step => {
    const metric = await registry.getSingleMetric('hybrid_auth_room_messages_total')?.get()
    return metric?.values.find(({ labels }) => labels.step === step)?.value ?? Number.NaN
  }
}

type Loose = Omit<LiveOptions, 'session'>

/** Nodes whose routes let clients into rooms, as the options say. */
export async function nodesOf (t: Test, count: number, driverOf: () => ClusterDriver | Promise<ClusterDriver>, { auth, route = ROOMS, ...rest }: Loose = {}): Promise<Node[]> {
  return Promise.all(Array.from({ length: count }, async () => startNode(t, {
    cluster: await driverOf(), route, ...rest, auth: { heartbeat: false, rooms: { authorize: () => true }, ...auth }
  })))
}

export async function two (t: Test, makeDriver: MakeDriver, options?: Loose): Promise<[Node, Node]> {
  const [a, b] = await nodesOf(t, 2, await makeDriver(t), options)
  if (a === undefined || b === undefined) throw new Error('no nodes')
  return [a, b]
}

export async function three (t: Test, makeDriver: MakeDriver, options?: Loose): Promise<[Node, Node, Node]> {
  const [a, b, c] = await nodesOf(t, 3, await makeDriver(t), options)
  if (a === undefined || b === undefined || c === undefined) throw new Error('no nodes')
  return [a, b, c]
}

/** The application's own table of who may do what, asked by every node. */
export class Table {
  readonly rights = new Map<string, readonly string[]>()
  asked = 0
  /** Whoever asks waits for it. */
  gate: Promise<void> | null = null

  readonly source = async ({ userId }: Identity): Promise<string[]> => {
    this.asked++
    await this.gate
    const found = this.rights.get(userId)
    if (found === undefined) throw new Error('the table cannot be read')
    return [...found]
  }
}

const AGENTS = 'agents'
const RIGHT = 'room:agents'
const mayJoin = ({ permissions }: { permissions: readonly string[] }) => permissions.includes(RIGHT)

/** @param options of the test that they are all in */
export function roomsSuite (t: Test, name: string, makeDriver: MakeDriver, options: { skip?: string | false } = {}): void {
  t.test(name, { timeout: 90_000, ...options }, async t => {
    t.test('what is published on one node reaches every member on every node, each once', async t => {
      const nodes = await three(t, makeDriver)
      const [a] = nodes
      const members = await Promise.all(nodes.flatMap(({ open }) => [open({ speaks: true }), open({ speaks: true })]))
      const outsiders = await Promise.all(nodes.map(({ open }) => open({ speaks: true })))
      for (const member of members) await into(member, 'hall', 'other')
      const meters = nodes.map(roomMeter)
      t.same(await a.app.hybridAuth.rooms.publish('hall', { text: 'é "quoted" \u2028', n: [1, null] }), { delivered: 2, published: true })
      for (const { app } of nodes) await flushed({ app }, 'hall', members, app.hybridAuth.status().nodeId)
      for (const member of members) {
        const heard = heardBy(member, 'hall')
        t.same(heard.filter(one => typeof one === 'object'), [{ text: 'é "quoted" \u2028', n: [1, null] }])
        t.equal(heard.length, 4)
        t.same(heardBy(member, 'other'), [])
      }
      for (const outsider of outsiders) {
        await isOpen(t, outsider, 'who is not in there')
        t.same(outsider.peer.framesOf('message'), [])
      }
      for (const [i, meter] of meters.entries()) {
        t.same([await meter('published'), await meter('heard'), await meter('delivered'), await meter('lost')], [i === 0 ? 2 : 1, i === 0 ? 2 : 3, 8, 0])
      }
    })

    t.test('a client on one node is heard by the others in the room on every node, and not by itself', async t => {
      const [a, b] = await two(t, makeDriver)
      const [says, near, far] = [await a.open({ speaks: true }), await a.open({ speaks: true }), await b.open({ speaks: true })]
      for (const { peer } of [says, near, far]) {
        peer.say({ type: 'join', room: 'hall' })
        t.same(await peer.takeFrame('joined'), { type: 'joined', room: 'hall' })
      }
      says.peer.say({ type: 'message', room: 'hall', payload: { __proto__: null, text: 'hello' } })
      for (const { peer } of [near, far]) t.same(await peer.takeFrame('message'), { type: 'message', room: 'hall', payload: { text: 'hello' } })
      await flushed(b, 'hall', [says, near, far])
      t.same([heardBy(says, 'hall'), heardBy(near, 'hall').length, heardBy(far, 'hall').length], [[END], 2, 2])
    })

    t.test('a thousand messages of one publisher come in their order on every node, beside those of another', async t => {
      const [a, b, c] = await three(t, makeDriver)
      const members = await Promise.all([a, b, c].map(({ open }) => open({ speaks: true })))
      for (const member of members) await into(member, 'hall')
      const results = []
      for (let n = 0; n < 1000; n++) {
        results.push(a.app.hybridAuth.rooms.publish('hall', `a ${n}`), b.app.hybridAuth.rooms.publish('hall', `b ${n}`))
        if (n % 100 === 0) await turn()
      }
      for (const result of await Promise.all(results)) if (!result.published || result.delivered !== 1) t.fail('one was lost')
      await flushed(a, 'hall', members, 'end of a')
      await flushed(b, 'hall', members, 'end of b')
      const expected = (of: string) => Array.from({ length: 1000 }, (_, n) => `${of} ${n}`)
      for (const member of members) {
        for (const of of ['a', 'b']) t.same(heardBy(member, 'hall').filter(text => String(text).startsWith(`${of} `)), expected(of))
      }
    })

    t.test('an exception is one connection, wherever it is published', async t => {
      const [a, b] = await two(t, makeDriver)
      const [first, second, far] = [await a.open({ speaks: true }), await a.open({ speaks: true }), await b.open({ speaks: true })]
      for (const member of [first, second, far]) await into(member, 'hall')
      t.same(await a.app.hybridAuth.rooms.publish('hall', 'not for the first', { except: first.there.connection }), { delivered: 1, published: true })
      await flushed(a, 'hall', [first, second, far])
      t.same([first, second, far].map(member => heardBy(member, 'hall')), [[END], ['not for the first', END], ['not for the first', END]])
    })

    t.test('a node hears of a room only while somebody is in there', async t => {
      const [a, b] = await two(t, makeDriver)
      const heard = roomMeter(b)
      const [one, other] = [await b.open({ speaks: true }), await b.open({ speaks: true })]
      /** How many of these are heard on B; what B asked of its cluster before that is done. */
      let probes = 0
      const hears = async () => {
        const probe = `probe/${++probes}`
        await into(one, probe)
        const before = await heard('heard')
        await a.app.hybridAuth.rooms.publish('hall', 'who hears?')
        await flushed(a, probe, [one])
        return await heard('heard') - before - 1
      }
      t.equal(await hears(), 0, 'nobody was ever there')
      await into(one, 'hall')
      t.equal(await hears(), 1)
      await into(other, 'hall')
      t.equal(await hears(), 1, 'once, for both')
      one.there.connection.leave('hall')
      t.equal(await hears(), 1, 'one is left')
      other.peer.socket.close()
      await other.there.closed
      t.equal(await hears(), 0, 'the last socket has ended')
      await into(one, 'hall')
      t.equal(await hears(), 1, 'somebody came back')
      one.there.connection.leave('hall')
      t.equal(await hears(), 0)
    })

    t.test('whoever goes and comes, the node hears of the room as long as the last thing was to come', async t => {
      const [a, b] = await two(t, makeDriver)
      const pair = await b.open({ speaks: true })
      const { connection } = pair.there
      const missing: string[] = []
      const cameBack = async (what: string, room: string) => {
        if (!connection.rooms.has(room)) throw new Error(`${what}: it is not in there`)
        await a.app.hybridAuth.rooms.publish(room, what)
        await into(pair, `after/${what}`)
        await flushed(a, `after/${what}`, [pair])
        if (!heardBy(pair, room).includes(what)) missing.push(what)
      }

      await connection.join('one')
      connection.leave('one')
      await connection.join('one')
      await cameBack('left,and-back-at-once', 'one')

      const never = connection.join('two')
      connection.leave('two')
      await connection.join('two')
      await never
      await cameBack('left-before-it-was-in', 'two')

      await connection.join('three')
      for (let n = 0; n < 20; n++) {
        connection.leave('three')
        const joining = connection.join('three')
        if (n % 3 === 0) await joining
        if (n % 3 === 1) await turn()
      }
      await connection.join('three')
      await cameBack('twenty-times', 'three')

      const other = await b.open({ speaks: true })
      await into(other, 'four')
      other.there.connection.leave('four')
      await into(pair, 'four')
      await cameBack('another-goes', 'four')
      t.same(missing, [])
    })

    t.test('many who come and go at random hear what is said when it is quiet again', async t => {
      const [a, b] = await two(t, makeDriver)
      const pairs = await Promise.all(Array.from({ length: 6 }, () => b.open({ speaks: true })))
      const rooms = ['red', 'green', 'blue']
      await Promise.all(pairs.map(async ({ there: { connection } }) => {
        for (let n = 0; n < 60; n++) {
          const room = rooms[Math.floor(Math.random() * rooms.length)] ?? ''
          if (Math.random() < 0.5) connection.leave(room)
          else if (Math.random() < 0.5) await connection.join(room)
          else connection.join(room).catch((error: unknown) => { t.fail(String(error)) })
          if (Math.random() < 0.3) await turn()
        }
      }))
      // What is under way ends first: it asks for the same place.
      for (const [i, pair] of pairs.entries()) await into(pair, `own/${i}`, ...rooms.filter((_, n) => (i + n) % 2 === 0))
      for (const [i, { there: { connection } }] of pairs.entries()) for (const room of rooms.filter((_, n) => (i + n) % 2 !== 0)) connection.leave(room)
      for (const room of rooms) await a.app.hybridAuth.rooms.publish(room, 'quiet')
      for (const [i, pair] of pairs.entries()) {
        await flushed(a, `own/${i}`, [pair])
        t.same(rooms.map(room => heardBy(pair, room).length), rooms.map((_, n) => (i + n) % 2 === 0 ? 1 : 0), `socket ${i}`)
      }
    })

    t.test('who has joined gets whatever is published from then on, on any node, in 200 runs', async t => {
      const [a, b] = await two(t, makeDriver)
      const pair = await b.open({ speaks: true })
      const { peer, there: { connection } } = pair
      await into(pair, END)
      for (let run = 0; run < 200; run++) {
        // A room that nobody was in, and one that was just left.
        const room = run % 2 === 0 ? `room/${run}` : 'again'
        if (run % 4 < 2) await connection.join(room)
        else {
          peer.say({ type: 'join', room })
          await peer.until(() => peer.framesOf('joined').length === run + 2)
        }
        a.app.hybridAuth.rooms.publish(room, run).catch((error: unknown) => { t.fail(String(error)) })
        if (run % 3 === 0) await turn()
        await flushed(a, END, [pair], run)
        connection.leave(room)
        peer.texts.splice(0, peer.texts.length, ...peer.texts.filter(text => !text.includes(`"room":"${END}","payload"`)))
      }
      const got = peer.framesOf('message').filter(({ room }) => room !== END).map(({ payload }) => payload)
      t.same(got, Array.from({ length: 200 }, (_, run) => run))
    })

    t.test('presence counts the members of a room on every node', async t => {
      const nodes = await three(t, makeDriver)
      const [a, b, c] = nodes
      const of = async ({ app }: Node, room = 'hall') => app.hybridAuth.rooms.presence(room)
      const all = { acknowledged: 3, missing: 0 }
      t.same(await of(a), { members: 0, nodes: all })
      const pairs = await Promise.all([a, a, b].map(({ open }) => open({ speaks: true })))
      for (const pair of pairs) await into(pair, 'hall')
      for (const node of nodes) {
        t.same(await of(node), { members: 3, nodes: all })
        t.same(await of(node, 'nobody/here'), { members: 0, nodes: all })
      }
      t.same(nodes.map(({ app }) => app.hybridAuth.rooms.count('hall')), [2, 1, 0], 'what each knows by itself')
      pairs[2]?.peer.socket.close()
      await pairs[2]?.there.closed
      pairs[0]?.there.connection.leave('hall')
      t.same(await of(c), { members: 1, nodes: all })
      await b.app.close()
      t.same(await of(c), { members: 1, nodes: { acknowledged: 2, missing: 0 } }, 'a node that has closed')
      for (const room of ['', 'a b', 'x'.repeat(129), '*']) await t.rejects(of(a, room), { code: 'FST_HYBRID_AUTH_INVALID_OPTION' })
    })

    t.test('66: permissions that were changed at their source are so on every node when the answer comes, rooms included', async t => {
      const table = new Table()
      table.rights.set('alice', [RIGHT, 'read']).set('bob', [RIGHT])
      const nodes = await three(t, makeDriver, { auth: { permissions: table.source, rooms: { authorize: mayJoin } } })
      const [a] = nodes
      const pairs = await Promise.all(nodes.map(({ open }) => open({ token: tokenOf('alice'), speaks: true })))
      const others = await Promise.all(nodes.map(({ open }) => open({ token: tokenOf('bob'), speaks: true })))
      for (const pair of [...pairs, ...others]) await into(pair, AGENTS)

      table.rights.set('alice', ['read', 'write'])
      const { id: _id, ...result } = await a.app.hybridAuth.refreshPermissions('alice')
      t.same(pairs.map(({ there: { connection } }) => [[...connection.rooms], connection.can('write'), connection.can(RIGHT)]), pairs.map(() => [[], true, false]), 'when it resolves')
      t.same(result, { matched: 3, closed: 0, durable: true, nodes: { acknowledged: 3, missing: 0 } })
      await a.app.hybridAuth.rooms.publish(AGENTS, 'not for alice')
      for (const { peer, there } of pairs) {
        t.same(await peer.takeFrame('permission_update'), { type: 'permission_update', permissions: ['read', 'write'], added: ['write'], removed: [RIGHT] })
        t.same(await peer.takeFrame('left'), { type: 'left', room: AGENTS, reason: 'forbidden' })
        peer.say({ type: 'join', room: AGENTS })
        t.match(await peer.takeFrame('error'), { code: 'forbidden', room: AGENTS })
        t.same(peer.framesOf('message'), [])
        t.same(there.request.auth.permissions, ['read', 'write'])
      }
      for (const other of others) {
        t.ok(other.there.connection.rooms.has(AGENTS))
        t.same(await other.peer.takeFrame('message'), { type: 'message', room: AGENTS, payload: 'not for alice' })
        t.same(other.peer.framesOf('permission_update'), [])
      }
      for (const { count } of nodes) t.same([count('permissions_changed'), count('room_left')], [1, 1])
    })

    t.test('66: a route\'s own rule is asked again on every node, and closes where it no longer holds', async t => {
      const table = new Table()
      table.rights.set('alice', ['read'])
      const nodes = await three(t, makeDriver, { auth: { permissions: table.source }, route: { permissions: ['read'], rooms: true } })
      const pairs = await Promise.all(nodes.map(({ open }) => open({ token: tokenOf('alice'), speaks: true })))
      table.rights.set('alice', [])
      const { matched, closed } = await nodes[1].app.hybridAuth.refreshPermissions('alice')
      t.same([matched, closed], [3, 3])
      for (const { peer } of pairs) t.equal((await endOf(peer)).code, 4007)
    })

    t.test('where the source fails nobody of the user stays, on any node', async t => {
      const table = new Table()
      table.rights.set('alice', [RIGHT]).set('bob', [RIGHT])
      const nodes = await three(t, makeDriver, { auth: { permissions: table.source } })
      const pairs = await Promise.all(nodes.map(({ open }) => open({ token: tokenOf('alice') })))
      const bob = await nodes[2].open({ token: tokenOf('bob') })
      table.rights.delete('alice')
      t.match(await nodes[0].app.hybridAuth.refreshPermissions('alice'), { matched: 3, closed: 3, nodes: { acknowledged: 3, missing: 0 } })
      for (const { peer } of pairs) t.match(await endOf(peer), UNAVAILABLE)
      await isOpen(t, bob, 'another user')
    })

    t.test('the source is asked once a node for whoever asks at the same time, remembered, and forgotten on every node', async t => {
      const table = new Table()
      table.rights.set('alice', ['one'])
      const nodes = await three(t, makeDriver, { auth: { permissions: table.source } })
      const [a, b, c] = nodes
      const token = tokenOf('alice')
      const me = async ({ host }: Node): Promise<unknown> => {
        const answer: unknown = JSON.parse((await ask(host, '/me', bearer(token))).body)
        return typeof answer === 'object' && answer !== null && 'permissions' in answer ? answer.permissions : answer
      }
      const opened: Deferred<undefined> = deferred()
      table.gate = opened.promise
      const asking = nodes.flatMap(node => Array.from({ length: 5 }, () => me(node)))
      const opening = Promise.all(nodes.map(({ open }) => open({ token })))
      await eventually('every node asks', () => table.asked === 3)
      await turn()
      opened.resolve(undefined)
      t.same(await Promise.all(asking), asking.map(() => ['one']))
      await opening
      for (const node of nodes) await me(node)
      t.equal(table.asked, 3, 'once each, and not again')

      table.rights.set('alice', ['two'])
      for (const node of nodes) t.same(await me(node), ['one'], 'nobody was told')
      t.match(await b.app.hybridAuth.refreshPermissions('alice'), { matched: 3, nodes: { acknowledged: 3 } })
      for (const node of nodes) t.same(await me(node), ['two'])
      t.equal(table.asked, 6, 'once each, for socket and requests')

      table.rights.set('alice', ['three'])
      // C has no socket of hers to give anything to, and forgets all the same.
      for (const { connection } of (await opening).filter((_, i) => i === 2).map(({ there }) => there)) connection.close('Inactive')
      await a.app.hybridAuth.setPermissions('alice', ['set'])
      for (const node of [a, b, c]) t.same(await me(node), ['three'], 'what is set is set on sockets; requests get what the source says')
      t.equal(table.asked, 9)
      t.same((await opening).slice(0, 2).map(({ there }) => there.connection.context.permissions), [['set'], ['set']])
    })

    t.test('permissions are set for one issuer or tenant only, on every node', async t => {
      const nodes = await three(t, makeDriver, { auth: { rooms: { authorize: mayJoin } } })
      const [a] = nodes
      const who = [{ iss: 'one', companyId: 'acme' }, { iss: 'one', companyId: 'other' }, { iss: 'two', companyId: 'acme' }, {}]
      const pairs = await Promise.all(nodes.map(({ open }) => Promise.all(who.map(claims => open({ token: tokenOf('alice', { ...claims, permissions: [RIGHT] }), speaks: true })))))
      for (const pair of pairs.flat()) await into(pair, AGENTS)
      const inside = () => pairs.map(row => row.map(({ there: { connection } }) => connection.rooms.has(AGENTS)))
      const set = async (...given: Parameters<HybridAuth['setPermissions']>) => {
        const { matched, nodes: { acknowledged, missing } } = await a.app.hybridAuth.setPermissions(...given)
        return [matched, acknowledged, missing]
      }
      const rows: Array<[scope: { issuer?: string | null, tenantId?: string | null }, matched: number, inside: boolean[]]> = [
        [{ issuer: 'three' }, 0, [true, true, true, true]],
        [{ issuer: 'one', tenantId: 'acme' }, 3, [false, true, true, true]],
        [{ tenantId: 'acme' }, 6, [false, true, false, true]],
        [{ issuer: null }, 3, [false, true, false, false]],
        [{ issuer: 'one' }, 6, [false, false, false, false]]
      ]
      for (const [scope, matched, left] of rows) {
        t.same(await set('alice', [], scope), [matched, 3, 0], JSON.stringify(scope))
        t.same(inside(), nodes.map(() => left), JSON.stringify(scope))
      }
      t.same(await set('alice', [RIGHT], { tenantId: null }), [3, 3, 0])
      t.same(pairs.map(row => row.map(({ there: { connection } }) => connection.can(RIGHT))), nodes.map(() => [false, false, false, true]))
      t.same(await set('alice', [RIGHT]), [12, 3, 0])
    })

    t.test('two registrations of one application are two nodes, with one driver between them', async t => {
      const driver = await (await makeDriver(t))()
      const apis: HybridAuth[] = []
      const { host } = await serve(t, async app => {
        await app.register(websocket)
        for (const prefix of ['/one', '/two']) {
          await app.register(async scope => {
            await scope.register(hybridAuth, { jwt: JWT, failures: false, heartbeat: false, cluster: driver, rooms: { authorize: mayJoin } })
            scope.get('/app', { websocket: true, auth: { rooms: true } }, () => {})
            apis.push(scope.hybridAuth)
          }, { prefix })
        }
      })
      const [one, two] = apis
      if (one === undefined || two === undefined) throw new Error('no registrations')
      t.not(one.status().nodeId, two.status().nodeId)
      const peers = await Promise.all(['/one/app', '/two/app'].map(path => dial(t, host, { path, token: tokenOf('alice', { permissions: [RIGHT] }), speaks: true })))
      for (const peer of peers) {
        peer.say({ type: 'join', room: AGENTS })
        t.same(await peer.takeFrame('joined'), { type: 'joined', room: AGENTS })
      }
      t.same([one.rooms.count(AGENTS), two.rooms.count(AGENTS), (await one.rooms.presence(AGENTS)).members], [1, 1, 2])
      t.same(await one.rooms.publish(AGENTS, 1), { delivered: 1, published: true })
      t.same(await two.rooms.publish(AGENTS, 2), { delivered: 1, published: true })
      for (const peer of peers) {
        await peer.until(() => peer.framesOf('message').length === 2)
        t.same(peer.framesOf('message').map(({ payload }) => payload).sort(), [1, 2])
      }
      t.match(await two.setPermissions('alice', []), { matched: 2, nodes: { acknowledged: 2, missing: 0 } })
      for (const peer of peers) t.same(await peer.takeFrame('left'), { type: 'left', room: AGENTS, reason: 'forbidden' })
      t.equal((await two.rooms.presence(AGENTS)).members, 0)
    })

    for (const [what, loss] of Object.entries(LOSSES)) {
      t.test(`66: ${what} on one node: the socket on another is told, leaves the room, and gets nothing published after the answer, in ${RUNS} runs`, async t => {
        await loses(t, makeDriver, loss)
      })
    }
  })
}

const RUNS = 1000
const USERS = 10
/** Messages of one node that may be on their way at a time. */
const WINDOW = 4

interface Loss {
  /** Takes the right away, or gives it back; resolves when that is acknowledged. */
  readonly change: (api: HybridAuth, userId: string) => Promise<unknown>
  readonly hasSource: boolean
  readonly authorize: (auth: { permissions: readonly string[] }) => boolean | Promise<boolean>
}

const sometime = async () => { for (let turns = Math.floor(Math.random() * 4); turns > 0; turns--) await turn() }
const roles = new Map<string, string>()
const rightsOf = (userId: string) => roles.get(userId) === 'agent' ? [RIGHT] : []
const source = async ({ userId }: Identity) => {
  const rights = rightsOf(userId)
  await sometime()
  return rights
}
const setRights = (api: HybridAuth, userId: string) => api.setPermissions(userId, rightsOf(userId))

const LOSSES: Readonly<Record<string, Loss>> = {
  'a role that is removed over HTTP': { change: (api, userId) => api.refreshPermissions(userId), hasSource: true, authorize: mayJoin },
  'permissions that are set': { change: setRights, hasSource: false, authorize: mayJoin },
  'permissions that are set, with rooms that have to be asked about,': {
    change: setRights,
    hasSource: false,
    async authorize ({ permissions }) {
      await sometime()
      return permissions.includes(RIGHT)
    }
  }
}

/** What came between two times that a client was let in. */
class Stay {
  last = 0
  messages = 0
  /** Everything but messages, in order. */
  readonly told: string[] = []
}

/** A client that keeps its stays in the room. */
class Guest {
  readonly peer: Peer
  stay = new Stay()
  /** The stay that ended when it was let in again; what came later was sent later. */
  before = new Stay()
  #waiting: { what: string, resolve: () => void } | null = null

  constructor (peer: Peer) {
    this.peer = peer
    peer.socket.on('message', (data: Buffer) => {
      peer.texts.length = 0
      this.#take(JSON.parse(data.toString()) as { type: string, payload?: number, reason?: string, removed?: string[], added?: string[] })
    })
  }

  #take ({ type, payload = 0, reason, added = [], removed = [] }: { type: string, payload?: number, reason?: string, removed?: string[], added?: string[] }): void {
    const { stay } = this
    if (type === 'message') {
      stay.last = Math.max(stay.last, payload)
      stay.messages++
      return
    }
    const what = type === 'left' ? `left ${reason}` : type === 'permission_update' ? `+${added.join()} -${removed.join()}` : type
    stay.told.push(what)
    if (what === 'joined') {
      this.before = stay
      this.stay = new Stay()
    }
    if (this.#waiting?.what === what) this.#waiting.resolve()
  }

  /** What brings it about is under way, or has not begun. */
  async told (what: string): Promise<void> {
    let timer
    await new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => { reject(new Error(`no ${what}, but ${this.stay.told.join(' | ')}`)) }, 10_000)
      this.#waiting = { what, resolve }
      if (this.stay.told.includes(what)) resolve()
    })
    clearTimeout(timer)
  }

  async enter (): Promise<void> {
    const joined = this.told('joined')
    this.peer.say({ type: 'join', room: AGENTS })
    await joined
  }
}

async function loses (t: Test, makeDriver: MakeDriver, { change, hasSource, authorize }: Loss): Promise<void> {
  let published = 0
  const [a, b] = await two(t, makeDriver, {
    fastify: { logger: false },
    auth: {
      rooms: { authorize },
      ...(hasSource && { permissions: source })
    },
    routes (app) {
      app.delete<{ Params: { user: string } }>('/role/:user', async ({ params: { user } }) => {
        roles.delete(user)
        await change(app.hybridAuth, user)
        return String(published)
      })
    }
  })
  /** @returns the last that was published before it was acknowledged */
  const removeRole = async (user: string) => {
    const { status, body } = await ask(a.host, `/role/${user}`, { method: 'DELETE' })
    if (status !== 200) throw new Error(body)
    return Number(body)
  }
  const open = async (node: Node, user: string) => {
    roles.set(user, 'agent')
    const guest = new Guest((await node.open({ token: tokenOf(user, { permissions: [RIGHT] }), speaks: true })).peer)
    await guest.enter()
    return guest
  }
  const steady = await Promise.all([open(a, 'steady'), open(b, 'steady')])
  const users = await Promise.all(Array.from({ length: USERS }, async (_, i) => ({ user: `user ${i}`, guest: await open(b, `user ${i}`) })))

  const over = new AbortController()
  t.teardown(() => { over.abort() })
  const broadcasting = [a, b].flatMap(({ app: { hybridAuth: { rooms } } }) => Array.from({ length: WINDOW }, async () => {
    while (!over.signal.aborted) {
      await rooms.publish(AGENTS, ++published)
      await turn()
    }
  }))
  const wrong: string[] = []
  let reached = 0
  let behind = 0
  await Promise.all(users.map(async ({ user, guest }) => {
    for (let run = 0; run < RUNS / USERS; run++) {
      await sometime()
      const last = await removeRole(user)
      await guest.told('left forbidden')
      roles.set(user, 'agent')
      await change(a.app.hybridAuth, user)
      await guest.enter()
      const { before } = guest
      if (before.messages > 0) reached++
      behind += last - before.last
      if (before.last > last) wrong.push(`${user}, run ${run}: ${before.last} came, and ${last} was the last before the answer`)
      const told = before.told.join(', ')
      if (told !== `+ -${RIGHT}, left forbidden, +${RIGHT} -, joined`) wrong.push(`${user}, run ${run}: ${told}`)
    }
  }))
  over.abort()
  await Promise.all(broadcasting)
  t.same(wrong.slice(0, 5), [], `${wrong.length} wrong`)
  t.ok(reached > RUNS * 0.9, `it was reached by the broadcaster in ${reached} runs`)
  await eventually('who stays gets everything', () => steady.every(({ stay: { messages } }) => messages === published))
  t.comment(`${published} messages, ${(behind / RUNS).toFixed(1)} between the last that came and the answer`)
}
