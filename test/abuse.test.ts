/** What is counted, told and limited, seen by somebody who wants to pass by it, or to make it work against others. */
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import { Registry } from 'prom-client'
import t from 'tap'
import hybridAuth, { serializers, type AuditEvent } from '../lib/index.js'
import { excerpt } from '../lib/observe/redaction.js'
import { addressKey } from '../lib/policy/address.js'
import { Failures } from '../lib/policy/failures.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { intercepted, redisNode } from './cluster-suite.js'
import { goodClaims, goodToken, JWT, keepLines, SESSION, SESSION_SECRET, signHs256, upgrade } from './helpers.js'
import { eventually, setClock } from './live.js'
import { needsRedis, startRedis } from './redis.js'
import { untyped } from './revoking.js'
import { ask, cookieFor, logTo, MapStore, serve } from './stores.js'
import { closeFrame, connected, rawConnect, serveLive, texts } from './wire.js'

const OTHER_SECRET = 'a secret that no server here has ever known'
const forged = (sub: string) => signHs256(goodClaims({ sub }), {}, OTHER_SECRET)
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const TIGHT = { capacity: 2, refillPerSecond: 0.001 }

t.test('auth.rate holds for who brings no credential on an optional route, as for who does', async t => {
  const { host } = await serveLive(t, { rule: { optional: true, rate: TIGHT } })
  for (const token of [goodToken(), null]) {
    const peer = await connected(t, host, { token })
    for (let n = 0; n < 5; n++) peer.send(String(n))
    await peer.settled()
    t.same(peer.heard.all, ['0', '1'], token === null ? 'nobody' : 'somebody')
  }
})

t.test('a socket that the application closes has its code in the metrics, and not one that the peer makes up', async t => {
  const { app, port } = await serveLive(t, { handler: socket => { socket.on('message', () => { socket.close(4321) }) } })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  for (let n = 0; n < 5; n++) {
    const peer = rawConnect(t, port, { answers: false })
    await peer.answered
    peer.write(texts('close me'))
    await peer.heard.reach(1)
    peer.write(closeFrame(3100 + n))
    await peer.closed
  }
  await eventually('all are closed', () => app.hybridAuth.count() === 0)
  const series = (await registry.metrics()).split('\n').filter(line => line.startsWith('hybrid_auth_closes_total{'))
  t.same(series, ['hybrid_auth_closes_total{code="4321",by="application"} 5'])
})

t.test('what a client writes about itself in X-Forwarded-For is cut and cleaned as what it writes elsewhere', async t => {
  const events: AuditEvent[] = []
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, audit: event => { events.push(event) } })
    app.get('/me', { auth: true }, async request => request.auth)
  }, { trustProxy: true, requestIdHeader: 'x-request-id', logger: false })
  const token = goodToken()
  await ask(host, '/me', { headers: { 'x-forwarded-for': token } })
  await ask(host, '/me', { headers: { 'x-forwarded-for': 'x'.repeat(8000) } })
  await ask(host, '/me', { headers: { 'x-request-id': token } })
  await eventually('all are told', () => events.length === 3)
  t.notOk(JSON.stringify(events).includes(token), 'no event holds a token')
  t.ok(JSON.stringify(events).length < 4000, `three events of ${JSON.stringify(events).length} bytes`)
})

t.test('whom a forged token claims to be writes no line of its own into a log', async t => {
  t.notMatch(excerpt('eve\n2026-11-22 level=info user=admin authenticated'), /\n/)
  t.notMatch(excerpt('eve\u001b[2J\u202e'), /[\p{Cc}\p{Cf}]/u)
})

t.test('an origin stays legible in an event', async t => {
  for (const origin of ['https://eyewear-shop.example', 'https://pr-1234-frontend-app.preview-environments.example.com']) t.equal(excerpt(origin), origin)
})

t.test('CASE 81: who comes through a translator is not counted as everybody else behind it (RFC 6052)', async t => {
  t.equal(addressKey('64:ff9b::192.0.2.1'), '192.0.2.1')
  t.not(addressKey('64:ff9b::c000:201'), addressKey('64:ff9b::c633:6401'))
})

t.test('a sweep of what is over forgets nothing that is not', async t => {
  const waiting = new Set<Wheeled>()
  t.intercept(wheel, 'schedule', {
    value (item: Wheeled) {
      item.due = 1
      waiting.add(item)
    }
  })
  const failures = new Failures({ max: 3, window: 300_000, block: 'address' }, untyped({ cluster: {}, isReportOnly: false, onSuspected () {}, onReported () {}, onBlocked () {} }))
  const addressOf = (n: number) => `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`
  const isBlocked = (n: number) => failures.isBlocked(untyped({ ip: addressOf(n) }), {})
  for (let n = 0; n < 99_000; n++) failures.block(addressOf(n), 300_000)
  t.equal(isBlocked(4999), true, 'before it')
  for (const item of waiting) item.look()
  t.equal(isBlocked(98_999), true, 'the latest')
  t.equal(isBlocked(5000), true, 'one that had room')
})

t.test('a session that is over is no guess, also where the prefix of its cookie was told to @fastify/session alone', async t => {
  const alerts: AuditEvent[] = []
  const { host } = await serve(t, async app => {
    await app.register(cookie)
    await app.register(session, { secret: SESSION_SECRET, store: new MapStore(), cookie: { secure: false }, saveUninitialized: false, cookiePrefix: 's:' })
    await app.register(websocket)
    await app.register(hybridAuth, { session: SESSION, failures: { max: 3 } })
    app.get('/me', { auth: true }, async request => request.auth)
    app.hybridAuth.events.on('brute_force_suspected', event => { alerts.push(event) })
  })
  for (let n = 0; n < 5; n++) t.equal((await ask(host, '/me', { headers: { cookie: cookieFor(`over-${n}`, { prefix: 's:' }) } })).status, 401)
  t.same(alerts, [])
})

t.test('the bucket of a user on a route is that of this route, whatever other routes have the same URL', async t => {
  const { port } = await serveLive(t, {
    auth: { heartbeat: false },
    more (app) {
      for (const [host, capacity] of [['wide.example', 100], ['tight.example', 2]] as const) {
        app.get('/room', { websocket: true, constraints: { host }, auth: { rate: { perUser: { capacity, refillPerSecond: 0.001 } } } }, socket => {
          socket.on('message', (data: Buffer, isBinary) => { socket.send(data, { binary: isBinary }) })
        })
      }
    }
  })
  const heard: number[] = []
  for (const host of ['wide.example', 'tight.example']) {
    const peer = await connected(t, `127.0.0.1:${port}`, { path: '/room', headers: { host } })
    for (let n = 0; n < 5; n++) peer.send(String(n))
    await peer.settled()
    heard.push(peer.heard.all.length)
  }
  t.same(heard, [5, 2])
})

t.test('serializers.headers reads whatever is logged as headers', async t => {
  for (const given of [null, undefined, 'x', 1]) t.doesNotThrow(() => serializers.headers(untyped(given)), String(given))
  for (const given of [[['authorization', 'Bearer secret']], ['authorization', 'Bearer secret'], { referer: 'https://x.example/?token=secret' }]) {
    t.notOk(JSON.stringify(serializers.headers(given)).includes('secret'), JSON.stringify(given))
  }
})

t.test('a trustProxy function that throws is a refusal, and no end of the process', async t => {
  const unhandled: unknown[] = []
  const note = (error: unknown) => { unhandled.push(error) }
  process.on('unhandledRejection', note)
  t.teardown(() => { process.off('unhandledRejection', note) })
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: { ...JWT, user: async claims => ({ userId: String(claims.sub) }) }, audit () {} })
    app.get('/me', { auth: true }, async request => request.auth)
  }, {
    trustProxy (address: string) {
      if (address === 'garbage') throw new Error('not an address')
      return true
    }
  })
  const answer = await ask(host, '/me', { headers: { ...bearer(goodToken()), 'x-forwarded-for': '10.0.0.1, garbage' }, signal: AbortSignal.timeout(1000) }).then(({ status }) => status).catch(() => 'never answered')
  t.type(answer, 'number', String(answer))
  t.same(unhandled, [])
})

t.test('refusals of limits.connects and of auth.rate are told apart in the metrics', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { app, host } = await serveLive(t, { auth: { limits: { connects: { perUser: 1 } } }, rule: { rate: TIGHT } })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  const peer = await connected(t, host)
  for (let n = 0; n < 3; n++) peer.send('x')
  await peer.settled()
  t.equal((await upgrade(t, host, { headers: bearer(goodToken()) })).status, 429)
  const series = (await registry.metrics()).split('\n').filter(line => line.startsWith('hybrid_auth_limited_total{'))
  t.equal(series.length, 2, series.join())
})

t.test('an address that is blocked costs the cluster one message, and no answers', { ...needsRedis }, async t => {
  const { url } = await startRedis(t)
  const first = await redisNode(t, url, { auth: { failures: { max: 1, window: 1000, block: 'address' } }, fastify: { trustProxy: true } })
  const second = await redisNode(t, url, { auth: { failures: { max: 1, window: 1000, block: 'address' } }, fastify: { trustProxy: true } })
  for (let n = 0; n < 50; n++) await ask(first.host, '/me', { headers: { ...bearer(forged(`user-${n}`)), 'x-forwarded-for': `198.51.100.${n}` } })
  await first.revoke({ userId: 'nobody' })
  const answers = Number(await first.client.sendCommand(['XLEN', `{hybrid-auth}:answers:${first.app.hybridAuth.status().nodeId}`]))
  t.ok(answers <= 1, `${answers} answers, and one was asked for`)
  t.equal(second.app.hybridAuth.status().connected, true)
})

t.test('an audit function that fails is heard of', async t => {
  const { stream, text } = keepLines()
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, audit () { throw new Error('the disk is full') } })
    app.get('/me', { auth: true }, async request => request.auth)
  }, logTo(stream))
  await ask(host)
  await app.close()
  t.match(text(), /"level":(?:40|50),[^\n]*audit/)
})

t.test('a client that comes back with the ticket that it had is no guesser, as long as it keeps coming', async t => {
  const clock = setClock(t)
  const alerts: AuditEvent[] = []
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, failures: { max: 3 } })
    app.get('/live', { websocket: true }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
    app.get('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
    app.hybridAuth.events.on('brute_force_suspected', event => { alerts.push(event) })
  })
  const { body: ticket } = await ask(host, '/ticket', { headers: bearer(goodToken({ exp: Math.floor(Date.now() / 1000) + 86_400 })) })
  t.equal((await upgrade(t, host, { path: `/live?ticket=${ticket}` })).status, 101)
  // What a library that reconnects by itself does: the same URL, again and again.
  for (let n = 0; n < 20; n++) {
    clock.move(200_000)
    t.equal((await ask(host, '/ticket', { headers: bearer(goodToken({ exp: Math.floor(Date.now() / 1000) + 86_400 })) })).status, 200, 'others come and go')
    t.equal((await upgrade(t, host, { path: `/live?ticket=${ticket}` })).status, 401)
  }
  t.same(alerts, [])
})

t.test('while Redis hangs, guessed tickets do not pile up in its client', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  let asked = 0
  const node = await redisNode(t, redis.url, {
    wrap: client => intercepted(client, ({ name, send }) => {
      if (name === 'TAKE_TICKET') asked++
      return send()
    })
  })
  redis.pause()
  t.teardown(() => { redis.resume() })
  await eventually('the loss is noticed', () => !node.app.hybridAuth.status().connected)
  asked = 0
  for (let n = 0; n < 5; n++) t.equal((await upgrade(t, node.host, { path: `/app?ticket=j${String(n).padStart(43, 'x')}` })).status, 503)
  t.equal(asked, 0, 'nobody is asked who does not answer')
})

t.test('a request id that is a number does no harm', async t => {
  let id = 0
  const events: AuditEvent[] = []
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: JWT, audit: event => { events.push(event) } })
    app.get('/me', { auth: true }, async request => request.auth)
    // As Fastify's documentation has it.
  }, { genReqId: () => untyped(id++) })
  t.equal((await ask(host, '/me', { headers: bearer(goodToken()) })).status, 200)
  app.hybridAuth.metrics(new Registry())
  t.equal((await ask(host, '/me', { headers: bearer(goodToken()) })).status, 200)
  t.match(events, [{ requestId: '0' }, { requestId: '1' }])
})

t.test('CASE 81: nobody of whom there is no address shares a bucket with others of whom there is none', async t => {
  const { app } = await serveLive(t, { rule: { optional: true, rate: { perUser: TIGHT } } })
  const heard: number[] = []
  for (const name of ['first', 'second']) {
    const socket = await app.injectWS('/live')
    t.teardown(() => { socket.terminate() })
    let count = 0
    socket.on('message', () => { count++ })
    for (const n of [1, 2]) socket.send(`${name} ${n}`)
    const answered = new Promise(resolve => { socket.once('pong', resolve) })
    socket.ping()
    await answered
    heard.push(count)
  }
  t.same(heard, [2, 2])
})

t.test('who is refused a place is counted, also where it is nobody', async t => {
  const { app, host } = await serveLive(t, { rule: { optional: true }, auth: { limits: { connections: { perIp: 1 } } } })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  await connected(t, host, { token: null })
  t.equal((await upgrade(t, host)).status, 429)
  t.match(await registry.metrics(), /hybrid_auth_limited_total\{limit="connections",enforced="true"\} 1/)
})
