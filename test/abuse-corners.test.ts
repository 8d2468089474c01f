/** Corners of the limits that the other files do not turn. */
import websocket from '@fastify/websocket'
import type { FastifyInstance } from 'fastify'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import hybridAuth, { serializers, type AuditEvent, type HybridAuthOptions, type RouteRule } from '../lib/index.js'
import { OVER, type ClusterDriver } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { Failures } from '../lib/policy/failures.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { goodToken, JWT, upgrade } from './helpers.js'
import { setClock } from './live.js'
import { driverOf, untyped } from './revoking.js'
import { deferred, serve, type Served } from './stores.js'
import { authFrame, connected, connect, until } from './wire.js'

interface Cornered extends Served {
  events: AuditEvent[]
  handled: () => number
}

/** A route `/app` by this rule, which echoes. */
async function cornered (t: Test, rule: RouteRule, { more = () => {}, ...auth }: Partial<HybridAuthOptions> & { more?: (app: FastifyInstance) => void } = {}, options = {}): Promise<Cornered> {
  const events: AuditEvent[] = []
  let handled = 0
  const served = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, audit: event => { events.push(event) }, ...auth })
    app.get('/app', { websocket: true, auth: rule }, socket => {
      handled++
      socket.on('message', data => { socket.send(data) })
    })
    more(app)
  }, options)
  return { ...served, events, handled: () => handled }
}

const typesOf = ({ events }: Cornered) => events.map(({ type }) => type)

t.test('a ticket that was over for long enough is not remembered any more', async t => {
  const clock = setClock(t)
  clock.freeze()
  const cluster = memoryCluster().join({ id: '', async receive () { return { matched: 0, closed: 0 } }, revocations: () => [], hasRevocation: () => false, heard () {}, told () {}, resumed () {}, leases: () => [], lost () {}, recovered () {}, ignored () {} })
  await cluster.putTicket('one', 'value', 1000)
  clock.move(1000)
  t.equal(await cluster.takeTicket('one'), OVER)
  clock.move(300_000)
  await cluster.putTicket('two', 'value', 1000)
  t.equal(await cluster.takeTicket('one'), null)
  t.equal(await cluster.takeTicket('two'), 'value')
})

t.test('nobody who has to go for another before the handler ran is closed, and told of without a name', async t => {
  const held = deferred<undefined>()
  let isHeld = true
  const server = await cornered(t, { optional: true }, {
    limits: { connections: { perIp: 1, policy: 'evict-oldest' } },
    more (app) {
      app.addHook('preValidation', async () => {
        if (!isHeld) return
        isHeld = false
        await held.promise
      })
    }
  })
  const first = connect(t, server.host, { path: '/app', token: null })
  await until(() => !isHeld)
  const second = await connected(t, server.host, { path: '/app', token: null })
  held.resolve(undefined)
  t.match(await first.closed, { code: 4009 })
  t.equal(server.handled(), 1)
  t.match(server.events.filter(({ type }) => type === 'limited'), [{ code: 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS', userId: null, authType: null, connectionId: null }])
  const third = await connected(t, server.host, { path: '/app', token: null })
  t.match(await second.closed, { code: 4009 }, 'one whose handler ran goes the same way')
  t.equal(server.events.filter(({ type }) => type === 'limited').length, 2)
  third.socket.terminate()
})

t.test('what came before the credential may be too much: the socket ends, and no handler runs', async t => {
  const server = await cornered(t, { firstMessage: true, rate: { capacity: 1, refillPerSecond: 0.001 } })
  const peer = await connected(t, server.host, { path: '/app', token: null })
  for (let n = 0; n < 20; n++) peer.send(`early ${n}`)
  peer.send(authFrame(goodToken()))
  t.match(await peer.closed, { code: 4008 })
  t.equal(server.handled(), 0)
  t.ok(typesOf(server).includes('limited'))
})

t.test('a cluster that throws when it is asked for room refuses the message, and says when to try again', async t => {
  const server = await cornered(t, { rate: { perUser: { capacity: 5, refillPerSecond: 5, shared: true } }, control: true }, {
    cluster: driverOf(() => ({ spend () { throw new Error('no cluster does this') } }))
  })
  const peer = await connected(t, server.host, { path: '/app' })
  peer.send('one')
  await peer.heard.reach(1)
  t.match(JSON.parse(peer.heard.all[0] ?? ''), { type: 'error', code: 'rate_limited', retryAfterMs: 5000 })
})

t.test('nobody who keeps sending too much is closed with 4008, and held to the rate by address', async t => {
  for (const [rate, closing] of [[{ capacity: 2, refillPerSecond: 0.001 }, 12], [{ bytes: { capacity: 4, refillPerSecond: 0.001 } }, 11], [{ perUser: { capacity: 2, refillPerSecond: 0.001, shared: true } }, 12]] as const) {
    const server = await cornered(t, { optional: true, rate })
    const peer = await connected(t, server.host, { path: '/app', token: null })
    for (let n = 0; n < closing; n++) peer.send('too long for four'.slice(0, 'bytes' in rate ? 17 : 3))
    t.match(await peer.closed, { code: 4008 })
    t.equal(peer.heard.all.length, 'bytes' in rate ? 0 : 2)
    t.same(typesOf(server).filter(type => type === 'limited'), ['limited'], 'told once')
    const again = await connected(t, server.host, { path: '/app', token: null })
    again.send('one')
    again.send('two')
    if ('perUser' in rate) {
      for (let n = 0; n < 8; n++) again.send('more')
      t.match(await again.closed, { code: 4008 }, 'the address is known')
    } else {
      await again.heard.reach(1)
      t.equal(again.heard.all[0], 'one')
    }
  }
})

t.test('report: nobody is not refused either', async t => {
  const server = await cornered(t, { optional: true, rate: { capacity: 1, refillPerSecond: 0.001 } }, { report: ['rate'] })
  const peer = await connected(t, server.host, { path: '/app', token: null })
  for (let n = 0; n < 30; n++) peer.send(String(n))
  await peer.heard.reach(30)
  t.match(server.events.filter(({ type }) => type === 'limited'), [{ enforced: false, userId: null }])
})

t.test('nobody of whom the address cannot be told has a bucket of his own', async t => {
  const server = await cornered(t, { optional: true, rate: { capacity: 1, refillPerSecond: 0.001, perUser: { capacity: 5, refillPerSecond: 5 } } }, {}, {
    trustProxy () { throw new Error('not an address') }
  })
  const peer = await connected(t, server.host, { path: '/app', token: null, headers: { 'x-forwarded-for': 'garbage' } })
  for (let n = 0; n < 5; n++) peer.send(String(n))
  await peer.heard.reach(1)
  const other = await connected(t, server.host, { path: '/app', token: null, headers: { 'x-forwarded-for': 'garbage' } })
  other.send('mine')
  await other.heard.reach(1)
  t.same([peer.heard.all, other.heard.all], [['0'], ['mine']])
})

t.test('nobody under a limit of places alone sends and pings as he likes', async t => {
  const server = await cornered(t, { optional: true }, { limits: { connections: { perIp: 1 } } })
  const peer = await connected(t, server.host, { path: '/app', token: null })
  for (let n = 0; n < 3; n++) {
    peer.socket.ping()
    peer.send(String(n))
  }
  await peer.heard.reach(3)
  t.same(peer.heard.all, ['0', '1', '2'])
  t.equal((await upgrade(t, server.host, { path: '/app' })).status, 429)
})

t.test('what all nodes refuse is given back to the buckets of the socket, bytes too', async t => {
  let isFull = true
  const server = await cornered(t, { rate: { bytes: { capacity: 5, refillPerSecond: 0.001 }, perUser: { capacity: 5, refillPerSecond: 5, shared: true } }, control: true }, {
    cluster: driverOf(() => ({ spend: () => isFull ? 100 : 0 }))
  })
  const peer = await connected(t, server.host, { path: '/app' })
  peer.send('first')
  await peer.heard.reach(1)
  t.match(JSON.parse(peer.heard.all[0] ?? ''), { code: 'rate_limited', retryAfterMs: 100 })
  isFull = false
  peer.send('again')
  await peer.heard.reach(2)
  t.equal(peer.heard.all[1], 'again')
})

t.test('serializers.headers takes headers in every shape', async t => {
  const secret = 'Bearer of.a.secret'
  t.same(serializers.headers(new Headers({ authorization: secret, accept: 'text/html' })), { accept: 'text/html', authorization: '[redacted]' })
  t.same(serializers.headers({ Cookie: secret, age: 7, via: ['a', 'https://b.example/?token=x'] }), { Cookie: '[redacted]', age: 7, via: ['a', 'https://b.example/?token=[redacted]'] })
  t.same(serializers.headers(['Authorization', secret, 'Host', 'a']), ['Authorization', '[redacted]', 'Host', 'a'])
  t.equal(serializers.headers(undefined), undefined)
})

/** A counter whose cluster always says the same. */
function failuresThat (t: Test, isReportOnly: boolean): { failures: Failures, reported: string[] } {
  const reported: string[] = []
  const failures = new Failures({ max: 1, window: 60_000, block: 'credential' }, {
    cluster: { strike: names => ({ isOver: true, isAlert: false, waits: names.map(() => 1000) }) },
    isReportOnly,
    onSuspected () {},
    onReported (_request, code) { reported.push(code) },
    onBlocked () {}
  })
  t.teardown(() => { failures.stop() })
  return { failures, reported }
}

t.test('what another node has counted is only reported too where that was asked for', async t => {
  for (const isReportOnly of [true, false]) {
    const { failures, reported } = failuresThat(t, isReportOnly)
    const answer = failures.count(untyped({ ip: '192.0.2.1' }), {}, 'FST_HYBRID_AUTH_INVALID_TOKEN', () => null)
    t.equal(answer, isReportOnly ? 'FST_HYBRID_AUTH_INVALID_TOKEN' : 'FST_HYBRID_AUTH_TOO_MANY_FAILURES')
    t.equal(reported.length, isReportOnly ? 1 : 0)
  }
})

t.test('a sweep leaves the blocks that are not over', async t => {
  const clock = setClock(t)
  clock.freeze()
  const sweepers = new Set<Wheeled>()
  const schedule = wheel.schedule.bind(wheel)
  t.teardown(() => { wheel.schedule = schedule })
  wheel.schedule = one => { sweepers.add(one) }
  const { failures } = failuresThat(t, false)
  failures.block('192.0.2.1', 1000)
  failures.block('192.0.2.2', 50_000)
  clock.move(1000)
  for (const sweeper of sweepers) sweeper.look()
  t.equal(failures.count(untyped({ ip: '192.0.2.2' }), {}, 'FST_HYBRID_AUTH_INVALID_TOKEN', () => null), 'FST_HYBRID_AUTH_TOO_MANY_FAILURES')
})

t.test('a flood of addresses that are blocked is told of a hundred times, and no more', async t => {
  const cluster = driverOf(() => ({}))
  let told = 0
  const counting: ClusterDriver = {
    join (member) {
      const joined = cluster.join(member)
      const publish = joined.publish.bind(joined)
      joined.publish = (command, awaits) => {
        if (command.type === 'block') told++
        return publish(command, awaits)
      }
      return joined
    }
  }
  const { host } = await cornered(t, {}, { cluster: counting, failures: { max: 1, block: 'address' } }, { trustProxy: true })
  for (let n = 0; n < 110; n++) await upgrade(t, host, { path: '/app', headers: { 'x-forwarded-for': `192.0.2.${n}`, authorization: 'Bearer no.such.token' } })
  t.equal(told, 100)
})

t.test('what was ordered before a node began says nothing of how far it is behind', async t => {
  const cluster = driverOf(() => ({}))
  const registry = new Registry()
  await cornered(t, {}, { cluster, more (app) { app.hybridAuth.metrics(registry) } })
  await cluster.members[0]?.receive({ type: 'disconnect', id: 'old', from: 'another', at: Date.now() - 60_000, filter: {}, code: 'Revoked' })
  t.match(await registry.metrics(), /hybrid_auth_cluster_lag_seconds 0$/m)
  await cluster.members[0]?.receive({ type: 'disconnect', id: 'new', from: 'another', at: Date.now() + 1000, filter: {}, code: 'Revoked' })
  t.match(await registry.metrics(), /hybrid_auth_cluster_lag_seconds 0$/m, 'nor does a clock that is ahead')
  const clock = setClock(t)
  cluster.members[0]?.lost(new Error('away'))
  clock.move(7000)
  t.match(await registry.metrics(), /hybrid_auth_cluster_lag_seconds 7(?:\.\d+)?$/m, 'how long the others have been away does')
})
