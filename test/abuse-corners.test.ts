/** Corners of the limits that the other files do not turn. */
import websocket from '@fastify/websocket'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import hybridAuth, { type AuditEvent, type HybridAuthOptions, type RouteRule } from '../lib/index.js'
import { OVER } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { goodToken, JWT } from './helpers.js'
import { setClock } from './live.js'
import { driverOf } from './revoking.js'
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
  const cluster = memoryCluster().join({ id: '', async receive () { return { matched: 0, closed: 0 } }, revocations: () => [], hasRevocation: () => false, leases: () => [], lost () {}, recovered () {}, ignored () {} })
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
