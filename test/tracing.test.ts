/** The verification as a TracingChannel of diagnostics_channel. */
import { AsyncLocalStorage } from 'node:async_hooks'
import { tracingChannel } from 'node:diagnostics_channel'
import t, { type Test } from 'tap'
import type { Identity } from '../lib/index.js'
import { build, goodToken, inSeconds, JWT, SECRET, SESSION, SESSION_SECRET, signHs256, upgrade, type ServerOptions } from './helpers.js'
import { updateOf } from './revoking.js'
import { ask, cookieFor, MapStore } from './stores.js'
import { connected } from './wire.js'

const bearer = (token = goodToken()) => ({ headers: { authorization: `Bearer ${token}` } })
const forged = () => signHs256({ sub: 'alice', exp: inSeconds(300) }, {}, 'not the secret of anybody, long enough')
const BOB: Identity = { userId: 'bob', permissions: [] }

/** A server whose requests are named by their clients. */
async function traceable (t: Test, { auth, routes, ...rest }: ServerOptions = {}) {
  const store = new MapStore().put('s1', { user: BOB, cookie: {} })
  const server = await build(t, {
    session: { store },
    auth: { heartbeat: false, ...auth },
    fastify: { genReqId: ({ headers: { 'x-id': id } }) => typeof id === 'string' ? id : 'unnamed' },
    routes (app) {
      app.get('/app', { websocket: true }, socket => { socket.on('message', (data: Buffer) => { socket.send(data) }) })
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      routes?.(app)
    },
    ...rest
  })
  return { ...server, cookie: { cookie: cookieFor('s1'), origin: `http://${server.host}` } }
}

interface Traced { message: string, requestId: string, route: string, credential: string, outcome?: string }
const channel = tracingChannel<string, Traced>('fastify-hybrid-auth:verify')

/** Everything that is told of verifications, as it was at the time. */
function traced (t: Test): Traced[] {
  const seen: Traced[] = []
  const keep = (message: string) => (context: object) => { seen.push({ message, ...context } as Traced) }
  const handlers = { start: keep('start'), end: keep('end'), asyncStart: keep('asyncStart'), asyncEnd: keep('asyncEnd'), error: keep('error') }
  channel.subscribe(handlers)
  t.teardown(() => { channel.unsubscribe(handlers) })
  return seen
}

const named = (id: string, { headers = {} }: { headers?: Record<string, string> } = bearer()) => ({ headers: { ...headers, 'x-id': id } })

t.test('a verification that needs to wait for nothing begins and ends, with its outcome', async t => {
  const { host } = await traceable(t)
  const seen = traced(t)
  const rows: Array<[id: string, credential: string, outcome: string, headers: Record<string, string>]> = [
    ['good', 'token', 'jwt', bearer().headers], ['forged', 'token', 'FST_HYBRID_AUTH_INVALID_TOKEN', bearer(forged()).headers],
    ['old', 'token', 'FST_HYBRID_AUTH_EXPIRED_TOKEN', bearer(goodToken({ exp: 1 })).headers], ['nothing', 'none', 'FST_HYBRID_AUTH_MISSING_CREDENTIALS', {}]
  ]
  for (const [requestId, credential, outcome, headers] of rows) {
    await ask(host, '/me', named(requestId, { headers }))
    const about = { requestId, route: '/me', credential }
    t.strictSame(seen.splice(0), [{ message: 'start', ...about }, { message: 'end', ...about, outcome }])
  }
})

t.test('a verification that waits goes on later, and has its outcome then', async t => {
  const { host, cookie } = await traceable(t, { auth: { jwt: { ...JWT, key: async () => SECRET }, session: { user: async (stored: { user?: Identity }) => stored.user ?? null } } })
  const sent = await ask(host, '/ticket', { method: 'POST', ...bearer() })
  const bob = await ask(host, '/ticket', { method: 'POST', headers: cookie })
  const seen = traced(t)
  const isWhole = (requestId: string, route: string, credential: string, outcome: string) => {
    const about = { requestId, route, credential }
    t.strictSame(seen.splice(0), [
      { message: 'start', ...about }, { message: 'end', ...about }, { message: 'asyncStart', ...about, outcome }, { message: 'asyncEnd', ...about, outcome }
    ], `${credential}: ${outcome}`)
  }
  await ask(host, '/me', named('good'))
  isWhole('good', '/me', 'token', 'jwt')
  await ask(host, '/me', named('forged', bearer(forged())))
  isWhole('forged', '/me', 'token', 'FST_HYBRID_AUTH_INVALID_TOKEN')
  const peer = await connected(t, host, { path: '/app', token: null, ...named('bob', { headers: cookie }) })
  isWhole('bob', '/app', 'session', 'session')
  await connected(t, host, { path: `/app?ticket=${sent.body}`, ...named('ticket', {}), token: null })
  await connected(t, host, { path: `/app?ticket=${bob.body}`, ...named('ticket', { headers: { origin: `http://${host}` } }), token: null })
  t.match(seen.splice(0).map(({ message, credential, outcome }) => [message, credential, outcome]), [
    ['start', 'ticket', undefined], ['end', 'ticket', 'jwt'],
    ['start', 'ticket', undefined], ['end', 'ticket', undefined], ['asyncStart', 'ticket', 'session'], ['asyncEnd', 'ticket', 'session']
  ])
  peer.send(JSON.stringify(updateOf(goodToken())))
  await peer.closed
  isWhole('bob', '/app', 'token', 'jwt')
})

t.test('a dependency that fails is an outcome, and no error', async t => {
  const { host } = await traceable(t, { auth: { jwt: { ...JWT, key: async () => { throw new Error('down') } } } })
  const seen = traced(t)
  await ask(host, '/me', bearer())
  t.match(seen.at(-1), { message: 'asyncEnd', outcome: 'FST_HYBRID_AUTH_UNAVAILABLE' })
  t.notOk(seen.some(({ message }) => message === 'error'))
})

t.test('what a subscriber binds to the start is there in everything that is asked, and nowhere else', async t => {
  const spans = new AsyncLocalStorage<string>()
  const seen: string[] = []
  const look = (where: string) => { seen.push(`${where}: ${spans.getStore() ?? 'nothing'}`) }
  const store = new MapStore().put('s1', { user: BOB, cookie: {} })
  const { host } = await traceable(t, {
    auth: {
      jwt: {
        ...JWT,
        async key () {
          look('key')
          await new Promise(resolve => { setImmediate(resolve) })
          return SECRET
        },
        user ({ sub = '' }) {
          look('user')
          return { userId: sub }
        }
      },
      session: {
        ...SESSION,
        secret: SESSION_SECRET,
        store: {
          get (sessionId: string, callback: (error: unknown, session?: unknown) => void) {
            look('store')
            store.get(sessionId, callback)
          }
        }
      }
    },
    routes (app) {
      app.get('/here', { auth: { check () { look('rule'); return true } } }, async () => { look('handler') })
    }
  })
  channel.start.bindStore(spans, ({ requestId }) => `span of ${requestId}`)
  t.teardown(() => { channel.start.unbindStore(spans) })
  await Promise.all([ask(host, '/here', named('one')), ask(host, '/here', named('two'))])
  t.same(seen.splice(0).sort(), [
    'handler: nothing', 'handler: nothing', 'key: span of one', 'key: span of two', 'rule: nothing', 'rule: nothing', 'user: span of one', 'user: span of two'
  ])
  await ask(host, '/here', named('three', { headers: { cookie: cookieFor('s1') } }))
  t.same(seen.filter(one => one.startsWith('store')), ['store: span of three'])
})

t.test('a subscriber costs no change of behaviour', async t => {
  const { host, cookie } = await traceable(t)
  const run = async () => {
    const answers = []
    for (const init of [bearer(), bearer(forged()), {}, bearer(goodToken({ exp: 1 }))]) answers.push((await ask(host, '/me', init)).status)
    for (const options of [{ path: '/live', ...bearer() }, { path: '/app?ticket=x' }]) answers.push((await upgrade(t, host, options)).status)
    const peer = await connected(t, host, { path: '/app', token: null, headers: cookie })
    peer.send('x')
    await peer.heard.reach(1)
    return [...answers, peer.heard.all]
  }
  const before = await run()
  const seen = traced(t)
  t.same(await run(), before)
  t.equal(seen.filter(({ message }) => message === 'start').length, 7)
})
