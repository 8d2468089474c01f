/** A session that is destroyed over HTTP takes its sockets along, at once and on every node: cases 58, 60 and 68. */
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import type { FastifyRequest, FastifyServerOptions, Session } from 'fastify'
import t, { type Test } from 'tap'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import hybridAuth, { type AuditEvent, type HybridAuthOptions, type SessionStore } from '../lib/index.js'
import { touch } from '../lib/verify/store.js'
import { goodToken, JWT, keepLines, SESSION, SESSION_SECRET, upgrade } from './helpers.js'
import { dial, HOUR, setClock, type Peer } from './live.js'
import { ask, codeOf, cookieFor, deferred, liveRoutes, logTo, MapStore, never, serve, type Deferred, type StoreCallback } from './stores.js'
import { Inbox, turn, until } from './wire.js'

const REVOKED = { code: 4006, reason: '{"code":"revoked","action":"stop","retryAfterMs":0}' }
const BOB = { userId: 'bob', permissions: ['property:read'] }
const stored: unknown = { user: BOB, cookie: {} }
const STORED = stored as Session

/** A store in memory that tells every call, over sessions that other stores may share. */
class ToldStore {
  readonly calls: string[] = []
  readonly sessions: Map<string, Session>

  constructor (sessions = new Map<string, Session>()) {
    this.sessions = sessions
  }

  get (sessionId: string, callback: StoreCallback): void {
    this.calls.push(`get ${sessionId}`)
    callback(null, this.sessions.get(sessionId))
  }

  set (sessionId: string, stored: Session, callback: (error?: unknown) => void): void {
    this.calls.push(`set ${sessionId}`)
    this.sessions.set(sessionId, stored)
    callback()
  }

  destroy (sessionId: string, callback: (error?: unknown) => void): void {
    this.calls.push(`destroy ${sessionId}`)
    this.sessions.delete(sessionId)
    callback()
  }

  put (sessionId: string): this {
    this.sessions.set(sessionId, STORED)
    return this
  }
}

/** One that can extend its sessions. */
class TouchStore extends ToldStore {
  touch (sessionId: string, stored: Session, callback: (error?: unknown) => void): void {
    this.calls.push(`touch ${sessionId}`)
    this.sessions.set(sessionId, stored)
    callback(null)
  }
}

/** Who reads the session: what @fastify/session loaded from its own store, or from the test's; or the plugin itself. */
const READERS = ['own', 'request', 'store', 'child'] as const
type Reader = typeof READERS[number]

interface LogoutOptions {
  reader?: Reader
  store?: Pick<MapStore, 'get' | 'set' | 'destroy'>
  fastify?: FastifyServerOptions
  auth?: Partial<HybridAuthOptions>
  user?: NonNullable<HybridAuthOptions['session']>['user']
}

/** A server with every way of logging in and out. */
async function serveLogout (t: Test, { reader = 'request', store = new ToldStore(), auth = {}, fastify = {}, user = SESSION.user }: LogoutOptions = {}) {
  const audit: AuditEvent[] = []
  const gates = new Inbox<Deferred<undefined>>()
  let handled = 0
  const served = await serve(t, async app => {
    const options = {
      jwt: JWT,
      session: reader === 'store' || reader === 'child' ? { user, store, secret: SESSION_SECRET } : { user },
      audit: (event: AuditEvent) => { audit.push(event) },
      ...auth
    }
    const ofSession = { secret: SESSION_SECRET, cookie: { secure: false }, saveUninitialized: false, ...(reader !== 'own' && { store }) }
    await app.register(websocket)
    if (reader === 'child') await app.register(hybridAuth, options)
    const declare = async (scope: typeof app) => {
      await scope.register(cookie)
      await scope.register(session, ofSession)
      if (reader !== 'child') await scope.register(hybridAuth, options)
      scope.post('/login', async request => {
        request.session.user = BOB
        return request.session.sessionId
      })
      scope.post('/relogin', async request => {
        await request.session.regenerate()
        request.session.user = BOB
        return request.session.sessionId
      })
      scope.post('/destroy', async request => {
        await request.session.destroy()
        return 'bye'
      })
      scope.post('/destroy-callback', (request, reply) => {
        request.session.destroy(error => { reply.send(error instanceof Error ? error : 'bye') })
      })
      scope.post('/logout', async (request, reply) => {
        await request.session.destroy()
        return reply.send('bye')
      })
      scope.post('/regenerate', async request => {
        await request.session.regenerate()
        return request.session.sessionId
      })
      scope.post('/regenerate-callback', (request, reply) => {
        request.session.regenerate(error => { reply.send(error ?? request.session.sessionId) })
      })
      scope.post('/under-way', async request => {
        const gate = deferred<undefined>()
        gates.push(gate)
        await gate.promise
        request.session.user = { ...BOB, permissions: ['more'] }
        await request.session.save()
        return 'saved'
      })
    }
    if (reader === 'child') await app.register(declare)
    else await declare(app)
    liveRoutes(app)
    app.get('/echo', { websocket: true }, socket => {
      handled++
      socket.on('message', (data: Buffer) => { socket.send(data.toString()) })
    })
  }, fastify)
  const { host } = served
  const post = async (path: string, held?: string) => {
    const { status, headers, body } = await ask(host, path, { method: 'POST', headers: held === undefined ? {} : { cookie: held } })
    return { status, body, cookie: (headers.get('set-cookie') ?? '').split(';', 1)[0] ?? '' }
  }
  return {
    ...served,
    audit,
    gates,
    post,
    handled: () => handled,
    login: async () => (await post('/login')).cookie,
    dial: (held: string) => dial(t, host, { path: '/echo', cookie: held }),
    /** Of an upgrade with the cookie. */
    statusWith: async (held: string) => (await upgrade(t, host, { headers: { cookie: held, origin: `http://${host}` } })).status
  }
}

async function endsRevoked (t: Test, peer: Peer, name: string): Promise<void> {
  const { code, reason } = await peer.end
  t.strictSame({ code, reason }, REVOKED, name)
}

for (const reader of READERS) {
  t.test(`case 58: destroying a session closes its sockets at once with 4006, and no others (${reader})`, async t => {
    const server = await serveLogout(t, { reader })
    for (const path of ['/destroy', '/destroy-callback']) {
      const [mine, other] = [await server.login(), await server.login()]
      const [one, two, theirs] = [await server.dial(mine), await server.dial(mine), await server.dial(other)]
      const byToken = await dial(t, server.host, { path: '/echo', token: goodToken({ sub: 'bob' }) })
      t.same(await server.post(path, mine).then(({ status, body }) => [status, body]), [200, 'bye'])
      t.equal(server.app.hybridAuth.count(), 2, 'they are gone before the answer is there')
      await endsRevoked(t, one, path)
      await endsRevoked(t, two, path)
      t.equal(await server.statusWith(mine), 401, 'the old cookie is refused')
      t.equal((await ask(server.host, '/me', { headers: { cookie: mine } })).status, 401)
      for (const peer of [theirs, byToken]) {
        t.ok(await peer.echoed('still here'))
        peer.socket.close()
      }
      await until(() => server.app.hybridAuth.count() === 0)
    }
    t.match(server.audit.filter(({ type }) => type === 'revoked'), Array.from({ length: 4 }, () => ({ reason: 'logout', userId: 'bob', authType: 'session' })))
  })

  t.test(`case 60: regenerating a session closes the sockets of the old id with 4006, and the new id works (${reader})`, async t => {
    const server = await serveLogout(t, { reader })
    for (const path of ['/regenerate', '/regenerate-callback', '/relogin']) {
      const [mine, other] = [await server.login(), await server.login()]
      const [peer, theirs] = [await server.dial(mine), await server.dial(other)]
      const { status, cookie: fresh } = await server.post(path, mine)
      t.equal(status, 200)
      await endsRevoked(t, peer, path)
      t.equal(await server.statusWith(mine), 401, 'the old id is refused')
      t.ok(await theirs.echoed('still here'))
      theirs.socket.close()
      if (path === '/relogin') t.equal(await server.statusWith(fresh), 101, 'the new one is logged in')
    }
  })
}

t.test('case 58: frames that came before the logout are not answered after it', async t => {
  const server = await serveLogout(t)
  const mine = await server.login()
  const peer = await server.dial(mine)
  await server.post('/destroy', mine)
  peer.say('too late')
  await endsRevoked(t, peer, 'closed')
  t.strictSame(peer.texts, [])
})

t.test('case 58: a logout closes the sockets on another app that shares the cluster, and refuses the session there', async t => {
  for (const reader of ['request', 'store', 'child'] as const) {
    const cluster = memoryCluster()
    const sessions = new Map<string, Session>()
    // Each has a store of its own over the same sessions, as two processes have.
    const [one, two] = [
      await serveLogout(t, { reader, store: new ToldStore(sessions), auth: { cluster } }),
      await serveLogout(t, { reader, store: new ToldStore(sessions), auth: { cluster } })
    ]
    const [mine, other] = [await one.login(), await one.login()]
    const [here, there, theirs] = [await one.dial(mine), await two.dial(mine), await two.dial(other)]
    t.equal((await one.post('/destroy', mine)).status, 200)
    t.equal(two.app.hybridAuth.count(), 1, 'the others were told before the answer')
    await endsRevoked(t, here, reader)
    await endsRevoked(t, there, reader)
    t.equal(await two.statusWith(mine), 401)
    t.ok(await theirs.echoed('still here'))
  }
})

t.test('case 58: a session that its store still holds after the logout is refused on every node', async t => {
  const cluster = memoryCluster()
  const stores = [new ToldStore().put('s1'), new ToldStore().put('s1')]
  // One of those that a replica puts back, or whose destruction is lost.
  for (const store of stores) {
    store.destroy = (id, callback) => {
      store.calls.push(`destroy ${id}`)
      callback()
    }
  }
  const [one, two] = await Promise.all(stores.map(store => serveLogout(t, { reader: 'store', store, auth: { cluster } })))
  if (one === undefined || two === undefined) throw new Error('not there')
  const held = cookieFor('s1')
  t.equal(await two.statusWith(held), 101)
  await one.post('/destroy', held)
  t.strictSame(stores.map(({ sessions, calls }) => [sessions.size, calls.filter(one => one === 'destroy s1').length]), [[1, 1], [1, 1]], 'both were told to destroy it, and still hold it')
  t.equal(await one.statusWith(held), 401)
  const refused = await upgrade(t, two.host, { headers: { cookie: held, origin: `http://${two.host}` } })
  t.strictSame([refused.status, codeOf(refused.body)], [401, 'FST_HYBRID_AUTH_REVOKED_SESSION'])
  t.match(await upgrade(t, two.host, { protocols: ['hybrid-auth.v1'], headers: { cookie: held, origin: `http://${two.host}` } }), REVOKED)
  t.equal((await ask(two.host, '/me', { headers: { cookie: held } })).status, 401)
})

t.test('case 58: a store whose destroy fails gives its error to the caller, and the sockets are closed all the same', async t => {
  for (const reader of ['request', 'store', 'child'] as const) {
    for (const path of ['/destroy', '/destroy-callback', '/regenerate', '/regenerate-callback']) {
      const store = new ToldStore()
      store.destroy = (_id, callback) => { callback(new Error('the store is down')) }
      const server = await serveLogout(t, { reader, store })
      const mine = await server.login()
      const peer = await server.dial(mine)
      const { status, body } = await server.post(path, mine)
      t.equal(status, 500, path)
      t.match(body, 'the store is down')
      await endsRevoked(t, peer, `${reader} ${path}`)
      t.equal(await server.statusWith(mine), 401, 'though the store still has it')
    }
  }
})

t.test('case 58: a store whose destroy hangs, throws or rejects does not keep the sockets open', async t => {
  const faults: Array<[string, () => unknown, number | null]> = [
    ['hangs', () => undefined, null],
    ['hangs with a promise', () => never(), null],
    ['throws', () => { throw new Error('the store is down') }, 500]
  ]
  for (const [name, destroy, status] of faults) {
    const store = new ToldStore()
    Object.defineProperty(store, 'destroy', { value: destroy, configurable: true })
    const server = await serveLogout(t, { reader: 'store', store })
    const mine = await server.login()
    const peer = await server.dial(mine)
    const controller = new AbortController()
    const answer = fetch(`http://${server.host}/destroy`, { method: 'POST', headers: { cookie: mine }, signal: controller.signal }).then(response => response.status, () => null)
    await endsRevoked(t, peer, name)
    if (status === null) controller.abort()
    t.equal(await answer, status, name)
    t.equal(await server.statusWith(mine), 401)
    // A request that is never answered would keep the server from closing.
    server.app.server.closeAllConnections()
  }
})

t.test('what destroy returns, and every argument of its callback, reach the caller as they are', async t => {
  const store = new ToldStore().put('s1')
  const answered: unknown[][] = []
  const returned = { some: 'thing' }
  const seen: unknown[][] = []
  Object.defineProperty(store, 'destroy', {
    configurable: true,
    value (this: unknown, ...given: unknown[]) {
      seen.push([this === store, ...given.filter(one => typeof one !== 'function')])
      for (const one of given) if (typeof one === 'function') Reflect.apply(one, undefined, ['first', 'second'])
      return returned
    }
  })
  await serveLogout(t, { reader: 'store', store })
  const answer: unknown = call(store, 'destroy', 's1', 'extra', (...given: unknown[]) => { answered.push(given) })
  t.equal(answer, returned)
  t.strictSame(seen, [[true, 's1', 'extra']], 'on the store itself')
  await until(() => answered.length > 0)
  t.strictSame(answered, [['first', 'second']])
  t.equal(call(store, 'destroy', 's2'), returned, 'without a callback, as stores with promises are called')
})

t.test('a session id that nothing can be named by is the store\'s business alone', async t => {
  const store = new ToldStore()
  await serveLogout(t, { reader: 'store', store })
  for (const id of ['', 'x'.repeat(3000)]) {
    await new Promise<void>(resolve => { store.destroy(id, () => { resolve() }) })
    t.equal(store.calls.at(-1), `destroy ${id}`)
  }
})

t.test('a session id that nothing can be named by does not end the process where destroy is called without a callback', async t => {
  const store = { get: (_id: string, callback: StoreCallback) => { callback(null, null) }, destroy: async () => 'done' }
  await serve(t, async app => { await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } }) })
  const unhandled: unknown[] = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', error => { unhandled.push(error) })
  t.teardown(() => {
    process.removeAllListeners('unhandledRejection')
    for (const listener of listeners) process.on('unhandledRejection', listener)
  })
  for (const id of ['', 'x'.repeat(3000), undefined, null, 7, {}, [], ['s1'], Symbol('s1'), () => {}]) t.equal(await call(store, 'destroy', id), 'done')
  await turn()
  await turn()
  t.equal(unhandled.length, 0, 'no rejection is left unhandled')
})

t.test('an id that is no text ends nothing, and is the store\'s business alone', async t => {
  const store = new ToldStore().put('s1').put('undefined').put('null').put('7').put('[object Object]')
  const { app, dial: open } = await serveLogout(t, { reader: 'store', store })
  const peers = [await open(cookieFor('s1')), await open(cookieFor('7')), await open(cookieFor('undefined'))]
  store.calls.length = 0
  for (const id of [undefined, null, 7, {}, ['s1'], { toString: () => 's1' }]) {
    call(store, 'destroy', id, () => {})
    call(store, 'set', id, STORED, () => {})
  }
  t.strictSame(store.calls.map(one => one.split(' ', 1)[0]), Array.from({ length: 6 }, () => ['destroy', 'set']).flat(), 'each is handed on, and nothing is read')
  t.equal(app.hybridAuth.status().revocations, 0)
  for (const peer of peers) t.ok(await peer.echoed('still here'))
})

/** Calls a method that may be another by now than its type says. */
function call (store: object, name: string, ...given: unknown[]): unknown {
  const method: unknown = Reflect.get(store, name)
  if (typeof method !== 'function') throw new Error(`no ${name}`)
  const answer: unknown = Reflect.apply(method, store, given)
  return answer
}

t.test('case 58: a request that was under way during the logout does not bring its session back', async t => {
  for (const reader of READERS) {
    const store = new ToldStore()
    const server = await serveLogout(t, { reader, store })
    const mine = await server.login()
    const slow = server.post('/under-way', mine)
    const gate = await server.gates.next()
    const peer = await server.dial(mine)
    await server.post('/destroy', mine)
    await endsRevoked(t, peer, reader)
    const calls = store.calls.length
    gate.resolve(undefined)
    const { status, body } = await slow
    t.strictSame([status, body], [200, 'saved'], `${reader}: answered without error`)
    t.strictSame(store.calls.slice(calls), [], `${reader}: nothing is written`)
    t.equal(store.sessions.size, 0)
    t.equal(await server.statusWith(mine), 401)
  }
})

t.test('a request that was under way while its session was regenerated does not bring the old one back', async t => {
  const store = new ToldStore()
  const server = await serveLogout(t, { store })
  const mine = await server.login()
  const slow = server.post('/under-way', mine)
  const gate = await server.gates.next()
  const { cookie: fresh } = await server.post('/relogin', mine)
  gate.resolve(undefined)
  t.equal((await slow).status, 200)
  t.equal(await server.statusWith(mine), 401)
  t.equal(await server.statusWith(fresh), 101)
  t.equal(store.sessions.size, 1)
})

t.test('what is dropped is answered in every form of set, and other sessions are written as ever', async t => {
  const store = new ToldStore().put('gone').put('here')
  await serveLogout(t, { reader: 'store', store })
  await new Promise<void>(resolve => { store.destroy('gone', () => { resolve() }) })
  let answered: unknown[] | null = null
  call(store, 'set', 'gone', STORED, (...given: unknown[]) => { answered = given })
  t.strictSame(answered, [], 'with a callback')
  t.equal(call(store, 'set', 'gone', STORED), undefined, 'with none')
  t.notOk(store.sessions.has('gone'))
  store.set('here', STORED, () => {})
  store.set('new', STORED, () => {})
  t.strictSame([...store.sessions.keys()], ['here', 'new'])
})

t.test('touch of a session that was logged out is dropped as set is, and others are extended as ever', async t => {
  const store = new TouchStore().put('gone').put('here')
  await serveLogout(t, { reader: 'store', store })
  await new Promise<void>(resolve => { store.destroy('gone', () => { resolve() }) })
  store.calls.length = 0
  let answered: unknown[] | null = null
  call(store, 'touch', 'gone', STORED, (...given: unknown[]) => { answered = given })
  t.strictSame(answered, [], 'with a callback')
  t.equal(call(store, 'touch', 'gone', STORED), undefined, 'with none')
  t.strictSame(store.calls, [])
  t.notOk(store.sessions.has('gone'))
  call(store, 'touch', 'here', STORED, (...given: unknown[]) => { answered = given })
  t.strictSame([store.calls, answered], [['touch here'], [null]])
})

t.test('what set and touch return, and every argument of their callbacks, reach the caller as they are', async t => {
  const seen: unknown[][] = []
  const returned = { some: 'thing' }
  const store = new TouchStore()
  for (const name of ['set', 'touch']) {
    Object.defineProperty(store, name, {
      configurable: true,
      value (this: unknown, ...given: unknown[]) {
        seen.push([this === store, ...given.filter(one => typeof one !== 'function')])
        for (const one of given) if (typeof one === 'function') Reflect.apply(one, undefined, ['first', 'second'])
        return returned
      }
    })
  }
  await serveLogout(t, { reader: 'store', store })
  for (const name of ['set', 'touch']) {
    let answered: unknown[] = []
    t.equal(call(store, name, 's1', STORED, 'extra', (...given: unknown[]) => { answered = given }), returned)
    t.strictSame([seen.pop(), answered], [[true, 's1', STORED, 'extra'], ['first', 'second']], name)
    t.equal(call(store, name, 's1', STORED), returned, `${name} without a callback`)
  }
})

t.test('session.touch does not extend a session that was logged out', async t => {
  const stored = { user: BOB, cookie: { originalMaxAge: 60_000, expires: new Date(Date.now() + 60_000) } }
  const store = new TouchStore()
  store.sessions.set('s1', Object.assign({}, STORED, stored))
  const { app } = await serveLogout(t, { reader: 'store', store })
  await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  t.equal(app.hybridAuth.status().revocations, 1)
  await touch(store, 's1')
  t.equal(store.sessions.size, 0)
})

t.test('revoke({ sessionId }) closes the sockets of a session and leaves its store alone', async t => {
  for (const reason of [undefined, 'stolen', 'logout']) {
    const cluster = memoryCluster()
    const sessions = new Map<string, Session>()
    const [one, two] = [new TouchStore(sessions).put('s1'), new TouchStore(sessions)]
    const servers = [await serveLogout(t, { reader: 'store', store: one, auth: { cluster } }), await serveLogout(t, { reader: 'store', store: two, auth: { cluster } })]
    const [here, there] = servers
    if (here === undefined || there === undefined) throw new Error('not there')
    two.set('s1', STORED, () => {})
    const peers = [await here.dial(cookieFor('s1')), await there.dial(cookieFor('s1'))]
    one.calls.length = two.calls.length = 0
    t.match(await here.app.hybridAuth.revoke({ sessionId: 's1' }, reason === undefined ? {} : { reason }), { closed: 2 })
    for (const peer of peers) await endsRevoked(t, peer, String(reason))
    for (const store of [one, two]) {
      store.set('s1', STORED, () => {})
      store.touch('s1', STORED, () => {})
    }
    await turn()
    t.strictSame([one.calls, two.calls, sessions.size], [['set s1', 'touch s1'], ['set s1', 'touch s1'], 1], String(reason))
    t.equal(await there.statusWith(cookieFor('s1')), 401)
  }
})

t.test('a session that was revoked by the application is logged out all the same when it is destroyed', async t => {
  for (const reason of ['stolen', 'logout']) {
    const store = new ToldStore().put('s1')
    const { app } = await serveLogout(t, { reader: 'store', store })
    await app.hybridAuth.revoke({ sessionId: 's1' }, { reason })
    await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
    store.set('s1', STORED, () => {})
    t.equal(store.sessions.size, 0, reason)
    t.equal(app.hybridAuth.status().revocations, 2, reason)
  }
})

t.test('a logout is told to the other nodes as one, and an application has no way to say so', async t => {
  const inner = memoryCluster()
  const told: unknown[] = []
  const driver: ClusterDriver = {
    join (member) {
      const cluster = inner.join(member)
      return {
        ...cluster,
        publish (command, awaits) {
          told.push(command.type === 'revoke' ? [command.revocation.key, command.revocation.reason, command.revocation.isLogout] : command.type)
          return cluster.publish(command, awaits)
        }
      }
    }
  }
  const store = new ToldStore().put('s1').put('s2')
  const { app } = await serveLogout(t, { reader: 'store', store, auth: { cluster: driver } })
  store.destroy('s1', () => {})
  await app.hybridAuth.revoke({ sessionId: 's2' }, { reason: 'logout' })
  t.strictSame(told, [['s1', 'logout', true], ['s2', 'logout', undefined]])
  await t.rejects(app.hybridAuth.revoke({ sessionId: 's2' }, { isLogout: true } as object), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bisLogout\b/ })
})

t.test('a session that never was in the store revokes nothing', async t => {
  for (const reader of READERS) {
    const { app, post } = await serveLogout(t, { reader })
    const revocations = () => app.hybridAuth.status().revocations
    for (let n = 0; n < 50; n++) t.equal((await post('/logout')).status, 200)
    t.equal(revocations(), 0, `${reader}: a logout of nobody`)
    for (const path of ['/relogin', '/regenerate', '/regenerate-callback', '/destroy-callback']) t.equal((await post(path)).status, 200)
    t.equal(revocations(), 0, `${reader}: a login that regenerates what never was saved`)
    const { cookie: held } = await post('/relogin')
    t.equal((await post('/logout', held)).status, 200)
    t.equal(revocations(), 1, `${reader}: and who is logged in is logged out`)
    for (let n = 0; n < 3; n++) await post('/logout', held)
    t.equal(revocations(), 1, `${reader}: once`)
  }
})

t.test('whether a session was in the store is read once, and not where its sockets are open', async t => {
  const store = new ToldStore().put('s1').put('s2')
  const { app, dial: open } = await serveLogout(t, { reader: 'store', store })
  const peer = await open(cookieFor('s1'))
  store.calls.length = 0
  for (const id of ['s1', 's2', 's3']) store.destroy(id, () => {})
  t.strictSame(store.calls, ['destroy s1', 'get s2', 'destroy s2', 'get s3', 'destroy s3'])
  await endsRevoked(t, peer, 's1')
  t.equal(app.hybridAuth.status().revocations, 2)
})

t.test('a session that was found or saved not long ago is logged out unasked, and at once, also where the store hangs', async t => {
  for (const how of ['found', 'saved', 'found later'] as const) {
    const store = new ToldStore().put('s1').put('s2')
    const get = store.get.bind(store)
    if (how === 'found later') store.get = (id, callback) => { setImmediate(get, id, callback) }
    const { app } = await serveLogout(t, { reader: 'store', store })
    if (how === 'saved') store.set('s1', STORED, () => {})
    else await new Promise<void>(resolve => { store.get('s1', () => { resolve() }) })
    store.get = () => {}
    store.calls.length = 0
    let isCalledBack = false
    const answer = call(store, 'destroy', 's1', () => { isCalledBack = true })
    t.strictSame([answer, isCalledBack, store.calls, app.hybridAuth.status().revocations], [undefined, true, ['destroy s1'], 1], how)
  }
})

t.test('a session that was asked for and not found, or failed to be, is not remembered', async t => {
  const answers: unknown[][] = [[null], [null, null], [null, undefined], [new Error('the store is down')], [null, 'garbage'], [null, { user: BOB }], [null, { cookie: null }]]
  for (const given of answers) {
    const store = new ToldStore()
    let asked = 0
    Object.defineProperty(store, 'get', {
      configurable: true,
      value: (_id: string, callback: StoreCallback) => {
        asked++
        Reflect.apply(callback, undefined, asked === 1 ? given : [null, null])
      }
    })
    const { app } = await serveLogout(t, { reader: 'store', store })
    store.get('s1', () => {})
    store.destroy('s1', () => {})
    t.strictSame([asked, app.hybridAuth.status().revocations], [2, 0], JSON.stringify(given))
  }
})

t.test('what get returns, and what its callback is given, reach the caller as they are', async t => {
  const returned = { some: 'thing' }
  const seen: unknown[][] = []
  const store = new ToldStore()
  Object.defineProperty(store, 'get', {
    configurable: true,
    value (this: unknown, ...given: unknown[]) {
      seen.push([this === store, ...given.filter(one => typeof one !== 'function')])
      for (const one of given) if (typeof one === 'function') Reflect.apply(one, undefined, ['first', STORED])
      return returned
    }
  })
  await serveLogout(t, { reader: 'store', store })
  const answered: unknown[][] = []
  t.equal(call(store, 'get', 's1', 'extra', (...given: unknown[]) => { answered.push(given) }), returned)
  t.equal(call(store, 'get', 's1'), returned, 'without a callback')
  t.strictSame([seen, answered], [[[true, 's1', 'extra'], [true, 's1']], [['first', STORED]]])
  t.equal(answered[0]?.[1], STORED, 'the session itself')
})

t.test('the last 10 000 sessions are remembered, by when they were last found or saved', async t => {
  const store = new ToldStore().put('first').put('second').put('third')
  const { app } = await serveLogout(t, { reader: 'store', store })
  for (const id of ['first', 'second', 'third']) store.get(id, () => {})
  for (let n = 0; n < 9998; n++) store.set(`s${n}`, STORED, () => {})
  store.get('second', () => {})
  store.set('last', STORED, () => {})
  store.calls.length = 0
  for (const id of ['second', 's0', 'last', 'first', 'third']) store.destroy(id, () => {})
  t.strictSame(store.calls, ['destroy second', 'destroy s0', 'destroy last', 'get first', 'destroy first', 'get third', 'destroy third'])
  t.equal(app.hybridAuth.status().revocations, 5)
})

t.test('a session of which the store does not say whether it is there counts as there, and is destroyed when that is told', async t => {
  const stored = STORED
  const faults: Array<[string, (callback: StoreCallback) => unknown, number, boolean]> = [
    ['an error', callback => { callback(new Error('the store is down')) }, 1, false],
    ['what is no error', callback => { Reflect.apply(callback, undefined, ['the store is down']) }, 1, false],
    ['a throw', () => { throw new Error('the store is down') }, 1, false],
    ['a rejection', () => Promise.reject(new Error('the store is down')), 1, true],
    ['a session', callback => { callback(null, stored) }, 1, false],
    ['a session, later', callback => { setImmediate(callback, null, stored) }, 1, true],
    ['an error, later', callback => { setImmediate(callback, new Error('the store is down')) }, 1, true],
    ['nothing', callback => { callback(null) }, 0, false],
    ['null', callback => { callback(null, null) }, 0, false],
    ['nothing, later', callback => { setImmediate(callback, null, null) }, 0, true],
    ['no such file', callback => { callback(Object.assign(new Error('no such file'), { code: 'ENOENT' })) }, 0, false],
    ['no such file, later', callback => { setImmediate(callback, Object.assign(new Error('no such file'), { code: 'ENOENT' })) }, 0, true]
  ]
  for (const [name, get, revocations, isLater] of faults) {
    const store = new ToldStore()
    const returned = { some: 'thing' }
    const known: number[] = []
    let revoked = () => -1
    Object.defineProperty(store, 'destroy', {
      configurable: true,
      value (_id: string, callback: () => void) {
        known.push(revoked())
        callback()
        return returned
      }
    })
    const { app } = await serveLogout(t, { reader: 'store', store })
    revoked = () => app.hybridAuth.status().revocations
    store.get = (_id, callback) => get(callback) as undefined
    let isCalledBack = false
    const answer = call(store, 'destroy', 's1', () => { isCalledBack = true })
    t.equal(isCalledBack, !isLater, `${name}: the store is waited for where it does not answer at once, and only there`)
    t.equal(answer instanceof Promise, isLater, name)
    t.equal(await answer, returned, `${name}: what the store answers`)
    t.ok(isCalledBack, name)
    t.strictSame(known, [revocations], `${name}: it is destroyed once, and told before`)
    for (let n = 0; n < 5; n++) await turn()
    t.equal(revoked(), revocations, name)
  }
})

t.test('a session of which the store says nothing for a second counts as there, on every node', async t => {
  const cluster = memoryCluster()
  const sessions = new Map<string, Session>()
  const [hanging, working] = [new ToldStore(sessions).put('s1'), new ToldStore(sessions)]
  const [one, two] = [await serveLogout(t, { reader: 'store', store: hanging, auth: { cluster } }), await serveLogout(t, { reader: 'store', store: working, auth: { cluster } })]
  const peer = await two.dial(cookieFor('s1'))
  const answers: StoreCallback[] = []
  hanging.get = (_id, callback) => { answers.push(callback) }
  hanging.calls.length = 0
  const started = performance.now()
  const destroyed = new Promise<void>(resolve => { hanging.destroy('s1', () => { resolve() }) })
  t.ok(await peer.echoed('still here'))
  t.strictSame([one.app.hybridAuth.status().revocations, hanging.calls], [0, []], 'it is told first, and destroyed then')
  await destroyed
  const took = performance.now() - started
  t.ok(took > 900 && took < 3000, String(took))
  await endsRevoked(t, peer, 'after a second')
  t.strictSame(hanging.calls, ['destroy s1'])
  t.equal(answers.length, 1, 'the store is asked once')
  for (const answer of answers) answer(null, null)
  await turn()
  t.strictSame([one, two].map(({ app }) => app.hybridAuth.status().revocations), [1, 1], 'an answer that comes later changes nothing')
  t.strictSame(hanging.calls, ['destroy s1'])
})

t.test('a store that throws late, and was given no callback, rejects what destroy() returned', async t => {
  const store = new ToldStore()
  store.get = (_id, callback) => { setImmediate(callback, null, null) }
  store.destroy = () => { throw new Error('the store is down') }
  await serveLogout(t, { reader: 'store', store })
  const destroy: unknown = Reflect.get(store, 'destroy')
  if (typeof destroy !== 'function') throw new Error('no destroy')
  await t.rejects(Promise.resolve(Reflect.apply(destroy, store, ['nobody'])), { message: 'the store is down' })
})

t.test('a store that throws while it destroys a session that it was asked about first fails its request, and not the process', async t => {
  const unhandled: unknown[] = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', error => { unhandled.push(error) })
  t.teardown(() => {
    process.removeAllListeners('unhandledRejection')
    for (const listener of listeners) process.on('unhandledRejection', listener)
  })
  for (const isLater of [false, true]) {
    const store = new ToldStore()
    store.get = (_id, callback) => {
      if (isLater) setImmediate(callback, null, null)
      else callback(null, null)
    }
    store.destroy = () => { throw new Error('the store is down') }
    const { app, host } = await serveLogout(t, { reader: 'store', store })
    const status = await fetch(`http://${host}/regenerate`, { method: 'POST', signal: AbortSignal.timeout(2000) }).then(answer => answer.status, () => 'no answer')
    await turn()
    t.strictSame([status, unhandled.length], [500, 0], isLater ? 'a store that answers later' : 'a store that answers at once')
    app.server.closeAllConnections()
  }
})

t.test('a store that reads a session when it has been destroyed already does not keep its sockets open elsewhere', async t => {
  const cluster = memoryCluster()
  const sessions = new Map<string, Session>()
  const slow = new ToldStore(sessions).put('s1')
  const [one, two] = [await serveLogout(t, { reader: 'request', store: slow, auth: { cluster } }), await serveLogout(t, { reader: 'store', store: new ToldStore(sessions), auth: { cluster } })]
  const peer = await two.dial(cookieFor('s1'))
  // As a pool does, whose connections overtake each other.
  slow.get = (id, callback) => { setTimeout(() => { callback(null, sessions.get(id)) }, 5) }
  t.equal((await one.post('/destroy', cookieFor('s1'))).status, 200)
  const end = await Promise.race([peer.end.then(({ code }) => code), new Promise(resolve => { setTimeout(resolve, 200, 'open') })])
  t.equal(end, 4006, 'closed')
})

t.test('a request that saves its session while its store is asked about its logout does not bring it back', async t => {
  const store = new ToldStore().put('s1')
  const { app } = await serveLogout(t, { reader: 'store', store })
  const { sessions } = store
  store.get = (id, callback) => {
    const found = sessions.get(id)
    setTimeout(() => { callback(null, found) }, 5)
  }
  const destroyed = new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  store.set('s1', STORED, () => {})
  await destroyed
  store.set('s1', STORED, () => {})
  await until(() => app.hybridAuth.status().revocations === 1)
  await turn()
  t.equal(sessions.size, 0, 'it is gone')
})

t.test('a node that saved a session shortly before it heard of its logout from another destroys it once more', async t => {
  for (const reader of ['request', 'store', 'child'] as const) {
    const cluster = memoryCluster()
    const sessions = new Map<string, Session>()
    const stores = [new ToldStore(sessions), new ToldStore(sessions)] as const
    const [one, two] = [await serveLogout(t, { reader, store: stores[0], auth: { cluster } }), await serveLogout(t, { reader, store: stores[1], auth: { cluster } })]
    const mine = await one.login()
    // What @fastify/session brings is known with the first request.
    t.equal(await two.statusWith(mine), 101)
    const [id = ''] = sessions.keys()
    stores[1].set(id, STORED, () => {})
    stores[1].calls.length = 0
    t.equal((await one.post('/destroy', mine)).status, 200)
    await turn()
    t.strictSame(stores[1].calls, [`destroy ${id}`], reader)
    t.equal(sessions.size, 0)
    await one.app.hybridAuth.revoke({ sessionId: id })
    t.strictSame(stores[1].calls, [`destroy ${id}`], `${reader}: once`)
  }
})

t.test('a session that another node brought back to life during its logout is gone when that node has heard', async t => {
  const inner = memoryCluster()
  const gate = deferred<undefined>()
  let isSlow = false
  // What one says reaches the other later.
  const driver: ClusterDriver = {
    join (member) {
      const cluster = inner.join(member)
      return {
        ...cluster,
        async publish (command, awaits) {
          if (isSlow) await gate.promise
          return cluster.publish(command, awaits)
        }
      }
    }
  }
  const sessions = new Map<string, Session>()
  const stores = [new ToldStore(sessions), new TouchStore(sessions)] as const
  const [one, two] = [await serveLogout(t, { store: stores[0], auth: { cluster: driver } }), await serveLogout(t, { store: stores[1], auth: { cluster: driver } })]
  const mine = await one.login()
  const slow = two.post('/under-way', mine)
  const under = await two.gates.next()
  isSlow = true
  t.equal((await one.post('/destroy', mine)).status, 200)
  t.equal(sessions.size, 0)
  under.resolve(undefined)
  t.equal((await slow).body, 'saved')
  t.equal(sessions.size, 1, 'it is back, and this node cannot know')
  gate.resolve(undefined)
  await until(() => two.app.hybridAuth.status().revocations === 1)
  await turn()
  t.equal(sessions.size, 0)
  const [id = ''] = stores[1].calls.filter(one => one.startsWith('destroy')).map(one => one.split(' ')[1])
  stores[1].set(id, STORED, () => {})
  stores[1].touch(id, STORED, () => {})
  t.equal(sessions.size, 0, 'and what comes later is dropped')
})

t.test('a store that fails while a session is destroyed once more is nobody\'s trouble', async t => {
  const faults: Array<[string, unknown]> = [
    ['throws', () => { throw new Error('the store is down') }],
    ['rejects', () => Promise.reject(new Error('the store is down'))],
    ['calls back with an error', (_id: string, callback: (error: unknown) => void) => { callback(new Error('the store is down')) }],
    ['hangs', () => never()],
    ['answers', async () => {}],
    ['is not there', undefined]
  ]
  const unhandled: unknown[] = []
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', error => { unhandled.push(error) })
  t.teardown(() => {
    process.removeAllListeners('unhandledRejection')
    for (const listener of listeners) process.on('unhandledRejection', listener)
  })
  for (const [name, destroy] of faults) {
    const cluster = memoryCluster()
    const store = new ToldStore().put('s1')
    const failing: SessionStore & Record<string, unknown> = { get: store.get.bind(store), set: store.set.bind(store), ...(destroy !== undefined && { destroy }) }
    const one = await serveLogout(t, { reader: 'store', store, auth: { cluster } })
    const two = await serve(t, async app => { await app.register(hybridAuth, { session: { ...SESSION, store: failing, secret: SESSION_SECRET }, cluster }) })
    call(failing, 'set', 's1', STORED, () => {})
    await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
    await turn()
    t.strictSame([one, two].map(({ app }) => app.hybridAuth.status().revocations), [1, 1], name)
    call(failing, 'set', 's1', STORED, () => {})
  }
  await turn()
  t.equal(unhandled.length, 0)
})

t.test('a node destroys once more what it found or saved of the last 10 000 sessions, and nothing else', async t => {
  const cluster = memoryCluster()
  const sessions = new Map<string, Session>()
  const [store, other] = [new ToldStore(sessions).put('first').put('second').put('never').put('found'), new ToldStore(sessions)]
  await serveLogout(t, { reader: 'store', store, auth: { cluster } })
  await serveLogout(t, { reader: 'store', store: other, auth: { cluster } })
  const save = (id: string) => { other.set(id, STORED, () => {}) }
  save('first')
  save('second')
  for (let n = 0; n < 9998; n++) save(`s${n}`)
  other.get('found', () => {})
  other.get('never there', () => {})
  save('second')
  other.calls.length = 0
  for (const id of ['never', 'never there', 'first', 'second', 'found', 's0', 's9997']) await new Promise<void>(resolve => { store.destroy(id, () => { resolve() }) })
  await turn()
  t.strictSame(other.calls, ['destroy second', 'destroy found', 'destroy s0', 'destroy s9997'])
})

t.test('after an hour nothing of a logout is left', async t => {
  const clock = setClock(t)
  const store = new ToldStore().put('s1')
  const { app, statusWith } = await serveLogout(t, { reader: 'store', store })
  await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  store.set('s1', STORED, () => {})
  t.equal(store.sessions.size, 0)
  t.equal(app.hybridAuth.status().revocations, 1)
  clock.move(HOUR + 1000)
  store.set('s1', STORED, () => {})
  t.equal(store.sessions.size, 1)
  t.equal(await statusWith(cookieFor('s1')), 101)
})

t.test('destroying a session twice is one logout', async t => {
  const store = new ToldStore().put('s1')
  const { app, dial: open } = await serveLogout(t, { reader: 'store', store })
  const peer = await open(cookieFor('s1'))
  const destroyed = () => new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  await Promise.all([destroyed(), destroyed()])
  await destroyed()
  await endsRevoked(t, peer, 'once')
  t.equal(app.hybridAuth.status().revocations, 1)
  t.equal(store.calls.filter(call => call === 'destroy s1').length, 3, 'the store is asked each time')
})

t.test('a logout closes at once the sockets that a revocation gave time for another credential', async t => {
  const store = new ToldStore().put('s1')
  const server = await serveLogout(t, { reader: 'store', store })
  const peer = await server.dial(cookieFor('s1'))
  await server.app.hybridAuth.revoke({ sessionId: 's1' }, { mode: { reauthWithin: 60_000 } })
  t.equal(server.app.hybridAuth.count(), 1)
  await server.post('/destroy', cookieFor('s1'))
  t.equal(server.app.hybridAuth.count(), 0)
  await endsRevoked(t, peer, 'closed')
})

t.test('a store without destroy and set is fine, and stays as it is', async t => {
  const sessions = new ToldStore().put('s1')
  const store: SessionStore & Record<string, unknown> = { get: (id, callback) => { sessions.get(id, callback) }, destroy: 'not a method' }
  const { host, app } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } })
    liveRoutes(app)
  })
  const open = async () => (await upgrade(t, host, { headers: { cookie: cookieFor('s1'), origin: `http://${host}` } })).status
  t.equal(await open(), 101)
  t.strictSame(Object.keys(store), ['get', 'destroy'])
  t.equal(store.destroy, 'not a method')
  await app.hybridAuth.revoke({ sessionId: 's1' })
  t.equal(await open(), 401)
})

const frozen = (sessions = new ToldStore()) => Object.freeze({
  get (id: string, callback: StoreCallback) { sessions.get(id, callback) },
  set (id: string, stored: Session, callback: () => void) { sessions.set(id, stored, callback) },
  destroy (id: string, callback: () => void) { sessions.destroy(id, callback) }
})

t.test('a store that cannot be changed is refused at registration', async t => {
  const { get, set, destroy } = frozen()
  const stores = [frozen(), Object.seal({ get, set, destroy }), Object.preventExtensions({ get })]
  for (const store of stores) {
    const registered = serve(t, async app => { await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } }) })
    await t.rejects(registered, { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bsession\.store\b/ })
  }
})

t.test('a store of @fastify/session that cannot be changed is served with one warning', async t => {
  const { stream, text } = keepLines()
  const sessions = new ToldStore().put('s1')
  const server = await serveLogout(t, { reader: 'request', store: frozen(sessions), fastify: logTo(stream) })
  const headers = { authorization: `Bearer ${goodToken()}` }
  for (let n = 0; n < 3; n++) t.equal((await ask(server.host, '/me', { headers })).status, 200)
  t.equal(await server.statusWith(cookieFor('s1')), 101)
  const mine = await server.login()
  t.equal(await server.statusWith(mine), 101)
  t.equal((await server.post('/destroy', mine)).status, 200)
  t.equal(await server.statusWith(mine), 401)
  t.equal(server.app.hybridAuth.status().revocations, 0)
  const warnings = text().split('\n').filter(line => line.includes('"level":40'))
  t.equal(warnings.length, 1)
  t.match(warnings[0], 'the session store is frozen')
  await server.app.close()
})

/** A store one of whose methods cannot be replaced. */
function pinned (name: 'get' | 'set' | 'touch' | 'destroy', sessions = new TouchStore()): SessionStore & ToldStore {
  const method: unknown = Reflect.get(sessions, name)
  return Object.defineProperty(sessions, name, { value: method, configurable: false, writable: false })
}

const registering = (t: Test, store: SessionStore) =>
  serve(t, async app => { await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } }) })

t.test('a store whose methods cannot be replaced is refused at registration', async t => {
  for (const name of ['get', 'set', 'touch', 'destroy'] as const) {
    await t.rejects(registering(t, pinned(name)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bsession\.store\b/ }, name)
  }
})

t.test('a store whose methods cannot be replaced is refused at every registration', async t => {
  for (const name of ['get', 'set', 'touch', 'destroy'] as const) {
    const store = pinned(name)
    for (let n = 1; n <= 3; n++) {
      await t.rejects(registering(t, store), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /\bsession\.store\b/ }, `${name}, registration ${n}`)
    }
  }
})

t.test('a store of @fastify/session whose methods cannot be replaced is served with one warning by every application', async t => {
  const sessions = new TouchStore().put('s1')
  const store = pinned('destroy', sessions)
  for (let n = 1; n <= 2; n++) {
    const { stream, text } = keepLines()
    const server = await serveLogout(t, { reader: 'request', store, fastify: logTo(stream) })
    for (let n = 0; n < 2; n++) t.equal(await server.statusWith(cookieFor('s1')), 101)
    const mine = await server.login()
    t.equal((await server.post('/destroy', mine)).status, 200)
    t.equal(await server.statusWith(mine), 401)
    t.equal(server.app.hybridAuth.status().revocations, 0)
    t.equal(text().split('\n').filter(line => line.includes('the session store is frozen')).length, 1, `application ${n}`)
    await server.app.close()
  }
})

t.test('two registrations that share a store both watch it; one that is closed no longer does, and leaves nothing in it', async t => {
  for (const reader of ['request', 'store'] as const) {
    const store = new ToldStore().put('s1').put('s2').put('s3').put('warm')
    const [one, two] = [await serveLogout(t, { reader, store }), await serveLogout(t, { reader, store })]
    // What @fastify/session brings is known with the first request.
    for (const { statusWith } of [one, two]) await statusWith(cookieFor('warm'))
    const wrapped = methodOf(store)
    const [here, there] = [await one.dial(cookieFor('s1')), await two.dial(cookieFor('s1'))]
    await one.post('/destroy', cookieFor('s1'))
    await endsRevoked(t, here, reader)
    await endsRevoked(t, there, reader)
    t.equal(store.calls.filter(call => call === 'destroy s1').length, 1, 'the store is asked once')
    const left = await one.dial(cookieFor('s2'))
    await two.app.close()
    t.equal(methodOf(store), wrapped, 'wrapped once')
    const known = () => two.app.hybridAuth.status().revocations
    const before = known()
    await one.post('/destroy', cookieFor('s2'))
    await endsRevoked(t, left, reader)
    t.equal(known(), before, 'who is closed is not told')
    await one.app.close()
    t.equal(watchesOf(store), 0, 'and nothing is left of either')
    const three = await serveLogout(t, { reader, store })
    await three.statusWith(cookieFor('warm'))
    t.equal(watchesOf(store), 1)
    const again = await three.dial(cookieFor('s3'))
    await three.post('/destroy', cookieFor('s3'))
    await endsRevoked(t, again, 'a registration that comes later')
    t.equal(methodOf(store), wrapped)
  }
})

const methodOf = (store: object): unknown => Reflect.get(store, 'destroy')

/** How many registrations a store knows of. */
function watchesOf (store: object): number {
  const watch: unknown = Reflect.get(store, Symbol.for('fastify-hybrid-auth.watched'))
  if (typeof watch !== 'object' || watch === null || !('watches' in watch) || !('onLogout' in watch)) return -1
  return watch.watches instanceof Set && typeof watch.onLogout === 'function' ? watch.watches.size : -1
}

t.test('an app that was closed before its first request leaves nothing, and one without sessions watches nothing', async t => {
  const store = new ToldStore()
  const { app } = await serveLogout(t, { reader: 'request', store })
  await app.close()
  t.equal(watchesOf(store), -1)
  const without = await serve(t, async app => {
    await app.register(cookie)
    await app.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false } })
    await app.register(hybridAuth, { jwt: JWT })
    liveRoutesOverHttp(app)
  })
  t.equal((await ask(without.host, '/me', { headers: { authorization: `Bearer ${goodToken()}` } })).status, 200)
  t.equal(watchesOf(store), -1)
})

t.test('an application with several stores watches each of them, and leaves nothing in any', async t => {
  const stores = [new ToldStore().put('s1').put('s2'), new ToldStore().put('s1').put('s2')] as const
  const { app, host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: SESSION })
    for (const [n, store] of stores.entries()) {
      await app.register(async scope => {
        await scope.register(cookie)
        await scope.register(session, { secret: SESSION_SECRET, store, cookie: { secure: false }, saveUninitialized: false })
        liveRoutes(scope)
      }, { prefix: `/${n}` })
    }
    // One that it finds at the root is what it needs to be ready.
    if (!app.hasRequestDecorator('session')) app.decorateRequest('session')
  })
  for (let round = 0; round < 2; round++) {
    for (const n of [0, 1]) t.equal((await ask(host, `/${n}/me`, { headers: { cookie: cookieFor('s1') } })).status, 200)
  }
  t.strictSame(stores.map(watchesOf), [1, 1])
  for (const [n, store] of stores.entries()) {
    const peer = await dial(t, host, { path: `/${n}/live`, cookie: cookieFor(`s${n + 1}`) })
    await new Promise<void>(resolve => { store.destroy(`s${n + 1}`, () => { resolve() }) })
    await endsRevoked(t, peer, String(n))
  }
  await app.close()
  t.strictSame(stores.map(watchesOf), [0, 0], 'after it is closed')
})

function liveRoutesOverHttp (app: Parameters<typeof liveRoutes>[0]): void {
  app.get('/me', { auth: true }, async (request: FastifyRequest) => request.auth)
}

t.test('a logout neither writes nor reads anything else in the store', async t => {
  for (const reader of ['request', 'store', 'child'] as const) {
    const store = new ToldStore().put('s1').put('s2')
    const server = await serveLogout(t, { reader, store })
    const [mine, theirs] = [await server.dial(cookieFor('s1')), await server.dial(cookieFor('s2'))]
    store.calls.length = 0
    await server.post('/destroy', cookieFor('s1'))
    await endsRevoked(t, mine, reader)
    t.strictSame(store.calls, ['get s1', 'destroy s1'], `${reader}: @fastify/session reads it, and destroys it`)
    t.strictSame([...store.sessions.keys()], ['s2'])
    t.ok(await theirs.echoed('here'))
    t.strictSame(Object.keys(store).sort(), Object.keys(new ToldStore()).sort(), 'nothing that JSON or a copy would show')
  }
})

for (const reader of ['request', 'child'] as const) {
  t.test(`case 68: a handshake that read its session before the logout and finishes after it is refused (${reader})`, async t => {
    const store = new ToldStore().put('s1')
    const server = await serveLogout(t, { reader, store })
    const reads = new Inbox<() => void>()
    const get = store.get.bind(store)
    const held = cookieFor('s1')
    const headers = { cookie: held, origin: `http://${server.host}` }
    let isSlow = false
    store.get = (id, callback) => {
      if (!isSlow) {
        get(id, callback)
        return
      }
      // What it has read by now is what it answers later.
      const found = store.sessions.get(id)
      reads.push(() => { callback(null, found) })
    }
    t.equal(await server.statusWith(held), 101)
    isSlow = true
    const [byStatus, byClose, overHttp] = [upgrade(t, server.host, { headers }), upgrade(t, server.host, { headers, protocols: ['hybrid-auth.v1'] }), ask(server.host, '/me', { headers })]
    await reads.reach(3)
    isSlow = false
    await server.post('/destroy', held)
    for (const answer of reads.all) answer()
    const refused = await byStatus
    t.strictSame([refused.status, codeOf(refused.body)], [401, 'FST_HYBRID_AUTH_REVOKED_SESSION'])
    t.match(await byClose, REVOKED)
    t.equal((await overHttp).status, 401)
    t.equal(server.handled(), 0)
    t.equal(server.app.hybridAuth.count(), 0)
  })

  t.test(`case 68: a handshake that waits for session.user during the logout is refused (${reader})`, async t => {
    const mappers = new Inbox<Deferred<undefined>>()
    const store = new ToldStore().put('s1')
    const server = await serveLogout(t, {
      reader,
      store,
      async user (stored) {
        const gate = deferred<undefined>()
        mappers.push(gate)
        await gate.promise
        return stored.user ?? null
      }
    })
    const opening = upgrade(t, server.host, { headers: { cookie: cookieFor('s1'), origin: `http://${server.host}` } })
    const gate = await mappers.next()
    await server.post('/destroy', cookieFor('s1'))
    gate.resolve(undefined)
    t.equal((await opening).status, 401)
  })
}

t.test('case 68: a session that is logged out between guard and handler closes with 4006, and the handler does not run', async t => {
  const store = new ToldStore().put('s1')
  const gates = new Inbox<Deferred<undefined>>()
  let handled = 0
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: { ...SESSION, store, secret: SESSION_SECRET } })
    app.get('/live', {
      websocket: true,
      async preHandler () {
        const gate = deferred<undefined>()
        gates.push(gate)
        await gate.promise
      }
    }, () => { handled++ })
  })
  const opening = upgrade(t, host, { headers: { cookie: cookieFor('s1'), origin: `http://${host}` } })
  const gate = await gates.next()
  await new Promise<void>(resolve => { store.destroy('s1', () => { resolve() }) })
  gate.resolve(undefined)
  t.match(await opening, { status: 101, ...REVOKED })
  t.equal(handled, 0)
})

t.test('a cluster that cannot be told does not keep a user from logging out', async t => {
  for (const publish of [() => Promise.reject(new Error('away')), () => { throw new Error('away') }]) {
    const inner = memoryCluster()
    const driver: ClusterDriver = { join: member => ({ ...inner.join(member), publish }) }
    const server = await serveLogout(t, { reader: 'store', auth: { cluster: driver } })
    const mine = await server.login()
    const peer = await server.dial(mine)
    t.equal((await server.post('/destroy', mine)).status, 200)
    await endsRevoked(t, peer, 'closed')
    t.equal(await server.statusWith(mine), 401)
  }
})

t.test('a cluster that hangs does not keep a user from logging out, nor a socket open', async t => {
  const inner = memoryCluster()
  const driver: ClusterDriver = { join: member => ({ ...inner.join(member), publish: () => never() }) }
  const store = new ToldStore().put('s1').put('s2')
  const server = await serveLogout(t, { reader: 'store', store, auth: { cluster: driver } })
  const peer = await server.dial(cookieFor('s1'))
  let isCalledBack = false
  store.destroy('s1', () => { isCalledBack = true })
  t.ok(isCalledBack, 'as soon as the store has answered')
  await endsRevoked(t, peer, 'at once here')
  t.equal((await server.post('/destroy', cookieFor('s2'))).status, 200)
})
