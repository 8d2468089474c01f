import { inspect } from 'node:util'
import { Signer } from '@fastify/cookie'
import t, { type Test } from 'tap'
import type { AuditEvent, HybridAuthOptions, Identity, SessionStore } from '../lib/index.js'
import { build, goodToken, JWT, keepLines, rawExchange, handshake, SESSION, SESSION_SECRET, statusOf, upgrade } from './helpers.js'
import { ask, codeOf, cookieFor, deferred, MapStore, rawUpgrade, serve, serveFromStore, storeOf, type StoreCallback } from './stores.js'
import websocket from '@fastify/websocket'
import hybridAuth from '../lib/index.js'

const CANARY = 'canary-4711'
const BOB = { userId: 'bob', role: 'agent', permissions: ['property:read'], tenantId: 'acme' }
const sessionOf = (changes: Record<string, unknown> = {}) => ({ user: BOB, cookie: {}, ...changes })
const inMs = (ms: number) => Date.now() + ms

interface Reader {
  host: string
  port: number
  store: MapStore
}
interface ReaderOptions { prefix?: string, name?: string, user?: NonNullable<HybridAuthOptions['session']>['user'], jwt?: boolean }

/** The two readers over stores of the same content. */
const READERS: Record<'request' | 'store', (t: Test, options?: ReaderOptions) => Promise<Reader>> = {
  async request (t, { prefix = '', name = 'sessionId', user = SESSION.user, jwt = false } = {}) {
    const store = new MapStore()
    const { host, port } = await build(t, {
      auth: { jwt: jwt ? JWT : undefined, session: { user } }, session: { store, secret: SESSION_SECRET, cookiePrefix: prefix, cookieName: name }
    })
    return { host, port, store }
  },
  async store (t, { prefix = '', name = 'sessionId', user = SESSION.user, jwt = false } = {}) {
    const store = new MapStore()
    const { host, port } = await serveFromStore(t, { store, user, cookiePrefix: prefix, cookieName: name }, { auth: { jwt: jwt ? JWT : undefined } })
    return { host, port, store }
  }
}
const NAMES = ['request', 'store'] as const

const upgradeWith = (t: Test, host: string, cookie: string) => upgrade(t, host, { headers: { cookie, origin: `http://${host}` } })

for (const name of NAMES) {
  const open = READERS[name]

  t.test(`a session in the store is a session connection (read from the ${name})`, async t => {
    const { host, store } = await open(t)
    const expires = new Date(inMs(60_000))
    store.put('s1', sessionOf({ cookie: { expires: expires.toISOString() }, other: 'not shown' }))
    const { context } = await upgradeWith(t, host, cookieFor('s1'))
    t.match(context, {
      authType: 'session', via: 'cookie', userId: 'bob', role: 'agent', permissions: ['property:read'], tenantId: 'acme', user: BOB,
      issuer: null, sessionId: 's1', expiresAt: expires.getTime(), version: 1
    })
    t.notOk(context !== undefined && ('fallbackFrom' in context || 'claims' in context || 'other' in context))
    t.match(JSON.parse((await ask(host, '/me', { headers: { cookie: cookieFor('s1') } })).body), { authType: 'session', userId: 'bob' })
  })

  t.test(`case 52: a cookie that is forged, unsigned, of another prefix, broken, empty or endless is refused (read from the ${name})`, async t => {
    const { host, port, store } = await open(t, { prefix: 's:' })
    store.put('s1', sessionOf())
    const signed = new Signer(SESSION_SECRET).sign('s1')
    const good = cookieFor('s1', { prefix: 's:' })
    const bad: Array<[string, string]> = [
      ['unsigned', 'sessionId=s%3As1'],
      ['an empty signature', 'sessionId=s%3As1.'],
      ['a forged signature', `sessionId=s%3As1.${'A'.repeat(43)}`],
      ['another key', cookieFor('s1', { prefix: 's:', secret: 'x'.repeat(32) })],
      ['one character more', `${good}A`],
      ['one character less', good.slice(0, -1)],
      ['no prefix', cookieFor('s1')],
      ['another prefix', cookieFor('s1', { prefix: 't:' })],
      ['the prefix only', 'sessionId=s%3A'],
      ['the signature of another session', `sessionId=s%3As2.${signed.slice(3)}`],
      ['a signed empty id', cookieFor('', { prefix: 's:' })],
      ['a bad percent sign', 'sessionId=s:%'],
      ['another', 'sessionId=%E0%A4%A'],
      ['empty', 'sessionId='],
      ['empty in quotes', 'sessionId=""'],
      ['4 KiB', `sessionId=s:${'a'.repeat(4200)}.${'A'.repeat(43)}`],
      ['4 KiB, signed', cookieFor('a'.repeat(4200), { prefix: 's:' })],
      ['another name', good.replace('sessionId', 'sessionid')],
      ['a longer name', good.replace('sessionId', 'xsessionId')],
      ['__proto__', cookieFor('__proto__', { prefix: 's:' })],
      ['a name of every object', 'constructor=1; __proto__=2; toString=3; sessionId=s%3Aconstructor.x']
    ]
    for (const [what, cookie] of bad) {
      const answer = await upgradeWith(t, host, cookie)
      t.equal(answer.status, 401, what)
      t.notOk(answer.headers['set-cookie'], what)
      t.equal(answer.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth"', what)
      t.equal((await ask(host, '/me', { headers: { cookie } })).status, 401, what)
    }
    for (const cookie of ['', ';', '=', 'sessionId', '\xff\xfe', 'sessionId=\x80']) {
      t.equal(statusOf(await rawUpgrade(port, [`Cookie: ${cookie}`, `Origin: http://${host}`], { host })), 401, JSON.stringify(cookie))
    }
    t.equal((await upgradeWith(t, host, good)).status, 101)
    t.equal((await upgradeWith(t, host, `a=b; ${good}; c=d`)).status, 101)
    t.equal((await upgradeWith(t, host, `${good}; sessionId=x`)).status, 101, 'of two the first counts')
    t.equal((await upgradeWith(t, host, `sessionId=x; ${good}`)).status, 401)
  })

  t.test(`case 53: a session that was destroyed or has expired is refused (read from the ${name})`, async t => {
    const { host, store } = await open(t)
    const cookie = cookieFor('s1')
    t.equal((await upgradeWith(t, host, cookie)).status, 401, 'never stored')
    store.put('s1', sessionOf())
    t.equal((await upgradeWith(t, host, cookie)).status, 101)
    store.sessions.delete('s1')
    const destroyed = await upgradeWith(t, host, cookie)
    t.equal(destroyed.status, 401)
    for (const expires of [new Date(inMs(-1)), new Date(inMs(-1)).toISOString(), inMs(-1), 1, new Date(0)]) {
      store.put('s1', sessionOf({ cookie: { expires } }))
      t.equal((await upgradeWith(t, host, cookie)).status, 401, `expired ${JSON.stringify(expires)}`)
    }
  })

  t.test(`case 54: a session without a user is nobody (read from the ${name})`, async t => {
    const { host, store } = await open(t)
    const users = [
      undefined, null, '', 'bob', 7, true, [], {}, { userId: '' }, { userId: 7 }, { userId: null }, { userId: 'x'.repeat(1025) }, { id: 'bob' },
      { userId: 'bob', role: 7 }, { userId: 'bob', permissions: 'all' }, { userId: 'bob', permissions: [1] }, { userId: 'bob', tenantId: {} }, ['bob']
    ]
    for (const user of users) {
      store.put('s1', sessionOf({ user }))
      const answer = await upgradeWith(t, host, cookieFor('s1'))
      t.equal(answer.status, 401, inspect(user).slice(0, 40))
      t.equal(codeOf(answer.body), 'FST_HYBRID_AUTH_INVALID_SESSION')
    }
  })

  t.test(`case 61: poisoned keys in a stored session reach no context and no prototype (read from the ${name})`, async t => {
    const { host, store } = await open(t)
    store.put('s1', JSON.parse(`{ "cookie": {}, "constructor": { "prototype": { "polluted": true } },
      "user": { "userId": "bob", "__proto__": { "role": "admin", "polluted": true }, "constructor": "x", "prototype": "y",
                "deep": [{ "__proto__": { "polluted": true }, "kept": 1 }] } }`))
    const { status, context } = await upgradeWith(t, host, cookieFor('s1'))
    t.equal(status, 101)
    t.match(context, { userId: 'bob', role: null, user: { deep: [{ kept: 1 }] } })
    t.notMatch(JSON.stringify(context), /polluted|__proto__|constructor|prototype/)
    t.notOk('polluted' in {})
  })

  t.test(`case 61: a user that comes only from a prototype is nobody (read from the ${name})`, async t => {
    const { host, store } = await open(t)
    store.put('s1', JSON.parse('{ "cookie": {}, "user": { "__proto__": { "userId": "admin" } } }'))
    t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, 401)
    if (name === 'request') return // @fastify/session itself does not survive the next one
    store.put('s2', JSON.parse('{ "cookie": {}, "__proto__": { "user": { "userId": "admin" } } }'))
    t.equal((await upgradeWith(t, host, cookieFor('s2'))).status, 401)
  })

  t.test(`case 41: a good bearer of one user beside the cookie of another: the bearer's (read from the ${name})`, async t => {
    const { host, store } = await open(t, { jwt: true })
    store.put('s1', sessionOf({ cookie: { expires: new Date(inMs(60_000)).toISOString(), originalMaxAge: null } }))
    const before = JSON.stringify(store.sessions.get('s1'))
    const answer = await upgrade(t, host, { headers: { authorization: `Bearer ${goodToken()}`, cookie: cookieFor('s1'), origin: `http://${host}` } })
    t.match(answer.context, { authType: 'jwt', userId: 'alice' })
    t.equal(JSON.stringify(store.sessions.get('s1')), before, 'that session is untouched')
    if (name === 'store') t.equal(store.reads, 0, 'nor is it read')
  })

  t.test(`the mapper decides who the session belongs to, and null is nobody (read from the ${name})`, async t => {
    const answers: Array<[string, unknown, number]> = [
      ['an identity', { userId: 'carol' }, 101], ['a promise of one', Promise.resolve({ userId: 'carol' }), 101],
      ['a thenable', { then: (settle: (value: unknown) => void) => { settle({ userId: 'carol' }) } }, 101],
      ['null', null, 401], ['undefined', undefined, 401], ['a promise of null', Promise.resolve(null), 401], ['yes', 'yes', 401], ['1', 1, 401], ['{}', {}, 401],
      ['true', true, 401], ['a function', () => ({ userId: 'carol' }), 401]
    ]
    let answer: unknown
    const { host, store } = await open(t, { user: () => answer as Identity })
    store.put('s1', sessionOf())
    for (const [what, given, status] of answers) {
      answer = given
      t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, status, what)
    }
  })

  t.test(`case 83: a mapper that throws, rejects or returns what cannot be copied is a refusal without its message (read from the ${name})`, async t => {
    const cyclic: Record<string, unknown> = { userId: 'carol' }
    cyclic.self = cyclic
    const mappers: Array<() => unknown> = [
      () => { throw new Error(CANARY) }, () => Promise.reject(new Error(CANARY)), () => { throw CANARY as unknown }, () => cyclic, () => ({ userId: 'carol', big: 1n }),
      () => ({ get userId () { throw new Error(CANARY) } }), () => ({ then () { throw new Error(CANARY) } })
    ]
    let mapper = (): unknown => null
    const { host, store } = await open(t, { user: () => mapper() as Identity })
    store.put('s1', sessionOf())
    for (mapper of mappers) {
      const answer = await upgradeWith(t, host, cookieFor('s1'))
      t.equal(answer.status, 503, mapper.toString().slice(0, 40))
      t.equal(codeOf(answer.body), 'FST_HYBRID_AUTH_UNAVAILABLE')
      t.notMatch(answer.body, CANARY)
    }
  })
}

t.test('case 54: the empty session that a cookie path mismatch leaves is nobody', async t => {
  const store = new MapStore().put('s1', sessionOf())
  const { host } = await build(t, { session: { store, secret: SESSION_SECRET, cookie: { path: '/app', secure: false } } })
  t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, 401)
  t.equal((await ask(host, '/me', { headers: { cookie: cookieFor('s1') } })).status, 401)
})

t.test('both readers give the same answer to the same request', async t => {
  const contents: Array<[string, unknown]> = [
    ['a user', sessionOf()], ['no such session', undefined], ['no user', { cookie: {} }],
    ['expires as JSON text', sessionOf({ cookie: { expires: new Date(inMs(60_000)).toISOString() } })],
    ['expires as Date', sessionOf({ cookie: { expires: new Date(inMs(60_000)) } })],
    ['expires as number', sessionOf({ cookie: { expires: inMs(60_000) } })],
    ['expires null', sessionOf({ cookie: { expires: null } })],
    ['expired as JSON text', sessionOf({ cookie: { expires: new Date(inMs(-1)).toISOString() } })],
    ['expired as Date', sessionOf({ cookie: { expires: new Date(inMs(-1)) } })],
    ['expired as number', sessionOf({ cookie: { expires: inMs(-1) } })],
    ['expired although a maximum age is kept', sessionOf({ cookie: { expires: new Date(inMs(-1)).toISOString(), originalMaxAge: 60_000 } })],
    ['live with a maximum age', sessionOf({ cookie: { expires: new Date(inMs(30_000)).toISOString(), originalMaxAge: 60_000 } })],
    ['garbage expires', sessionOf({ cookie: { expires: 'tomorrow' } })],
    ['a poisoned user', JSON.parse('{ "cookie": {}, "user": { "userId": "bob", "__proto__": { "role": "admin" } } }')]
  ]
  const origin = (host: string) => ({ origin: `http://${host}` })
  // One for both: the second may change between them.
  const token = goodToken()
  const requests: Array<[string, (host: string, id: string) => Record<string, string>]> = [
    ['the cookie', (host, id) => ({ cookie: cookieFor(id), ...origin(host) })],
    ['no cookie', host => origin(host)],
    ['an empty cookie', host => ({ cookie: 'sessionId=', ...origin(host) })],
    ['a forged cookie', host => ({ cookie: 'sessionId=s1.x', ...origin(host) })],
    ['the cookie without Origin', (_host, id) => ({ cookie: cookieFor(id) })],
    ['the cookie from a foreign origin', (_host, id) => ({ cookie: cookieFor(id), origin: 'https://evil.example' })],
    ['a refused bearer and the cookie', (host, id) => ({ cookie: cookieFor(id), authorization: 'Bearer a.b.c', ...origin(host) })],
    ['a good bearer and the cookie', (host, id) => ({ cookie: cookieFor(id), authorization: `Bearer ${token}`, ...origin(host) })],
    ['a good bearer and a forged cookie', host => ({ cookie: 'sessionId=s1.x', authorization: `Bearer ${token}`, ...origin(host) })]
  ]
  const request = await READERS.request(t, { jwt: true })
  const store = await READERS.store(t, { jwt: true })
  let made = 0
  for (const [what, content] of contents) {
    for (const [how, headers] of requests) {
      const outcomes = []
      // One that has ended is destroyed for good: each has an id of its own.
      const id = `s${++made}`
      for (const { host, store: kept } of [request, store]) {
        kept.sessions.clear()
        if (content !== undefined) kept.put(id, content)
        const { status, body, context } = await upgrade(t, host, { headers: headers(host, id) })
        const { userId, role, permissions, tenantId, user, authType, via, sessionId, expiresAt, fallbackFrom } = context ?? {}
        outcomes.push({ status, code: status === 101 ? '' : codeOf(body), userId, role, permissions, tenantId, user, authType, via, sessionId, expiresAt, fallbackFrom })
      }
      t.same(outcomes[0], outcomes[1], `${what}; ${how}`)
    }
  }
})

t.test('both readers take a cookie that is not the session\'s for none', async t => {
  const request = await READERS.request(t)
  const store = await READERS.store(t)
  for (const headers of [{ cookie: 'theme=dark' }, { cookie: 'theme=dark', origin: 'http://127.0.0.1' }]) {
    const answers = []
    for (const { port } of [request, store]) {
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
      const answer = await rawExchange(port, handshake(lines), '}')
      answers.push([statusOf(answer), codeOf(answer.slice(answer.indexOf('{')))])
    }
    t.same(answers[0], answers[1], JSON.stringify(headers))
  }
})

t.test('case 55: refused upgrades store no session and set no cookie, whatever saveUninitialized says', async t => {
  for (const refuse of ['auto', 'close'] as const) {
    const store = new MapStore()
    const { host, port, login } = await build(t, {
      auth: { refuse }, session: { store, secret: SESSION_SECRET, saveUninitialized: true },
      routes (app) { app.get('/admin', { websocket: true, auth: { role: 'admin' } }, () => {}) }
    })
    const cookie = await login()
    const size = store.sessions.size
    t.equal(size, 1)
    const stored = JSON.stringify([...store.sessions])
    const kinds = [
      [], [`Cookie: ${cookie}`], [`Cookie: ${cookie}`, 'Origin: https://evil.example'], ['Authorization: Bearer a.b.c'],
      ['Cookie: sessionId=forged.x', `Origin: http://${host}`], ['Authorization: Bearer a b'], ['Sec-WebSocket-Protocol: hybrid-auth.v1'],
      [`Cookie: ${cookie}`, `Origin: http://${host}`]
    ]
    const answers = await Promise.all(Array.from({ length: 200 }, (_, i) =>
      rawUpgrade(port, kinds[i % kinds.length], { host, path: i % kinds.length === 7 ? '/admin' : '/live' })))
    t.equal(answers.length, 200)
    t.equal(answers.filter(answer => /set-cookie/i.test(answer)).length, 0, `no cookie was set (${refuse})`)
    t.equal(answers.filter(answer => answer === '' || answer.includes(' 500 ')).length, 0)
    t.equal(store.sessions.size, size, 'the store has not grown')
    t.equal(JSON.stringify([...store.sessions]), stored, 'nor changed')
  }
})

t.test('case 55: an accepted upgrade stores nothing either, and HTTP keeps its sessions', async t => {
  const store = new MapStore()
  const { host, login } = await build(t, { session: { store, secret: SESSION_SECRET, saveUninitialized: false } })
  const cookie = await login()
  const stored = JSON.stringify([...store.sessions])
  t.equal((await upgradeWith(t, host, cookie)).status, 101)
  t.equal(JSON.stringify([...store.sessions]), stored)
  t.equal((await ask(host, '/me', { headers: { cookie } })).status, 200)
})

/** Stores of every temper, read by the plugin itself, and what an upgrade with the good cookie gets. */
const tempers: Array<[string, SessionStore['get'], number]> = [
  ['answers at once', (_id, answer) => { answer(null, sessionOf()) }, 101],
  ['answers later', (_id, answer) => { setImmediate(answer, null, sessionOf()) }, 101],
  ['answers in a microtask', (_id, answer) => { queueMicrotask(() => { answer(undefined, sessionOf()) }) }, 101],
  ['answers twice', (_id, answer) => { answer(null, sessionOf()); answer(null, sessionOf({ user: { userId: 'mallory' } })) }, 101],
  ['answers twice, later', (_id, answer) => { setImmediate(() => { answer(null, sessionOf()); answer(new Error(CANARY)) }) }, 101],
  ['finds nothing', (_id, answer) => { answer(null) }, 401],
  ['finds null', (_id, answer) => { answer(null, null) }, 401],
  ['finds nothing, later', (_id, answer) => { setImmediate(answer) }, 401],
  ['finds a number', (_id, answer) => { answer(null, 7) }, 401],
  ['finds a text', (_id, answer) => { answer(null, JSON.stringify(sessionOf())) }, 401],
  ['finds a list', (_id, answer) => { answer(null, [sessionOf()]) }, 401],
  ['finds a session without a cookie', (_id, answer) => { answer(null, { user: BOB }) }, 401],
  ['finds a session whose cookie is null', (_id, answer) => { answer(null, { user: BOB, cookie: null }) }, 401],
  ['says that the file is not there', (_id, answer) => { answer(Object.assign(new Error(CANARY), { code: 'ENOENT' })) }, 401],
  ['says so later', (_id, answer) => { setImmediate(answer, Object.assign(new Error(CANARY), { code: 'ENOENT' })) }, 401],
  ['says so and gives a session', (_id, answer) => { answer(Object.assign(new Error(CANARY), { code: 'ENOENT' }), null) }, 401],
  ['fails', (_id, answer) => { answer(new Error(CANARY)) }, 503],
  ['fails later', (_id, answer) => { setImmediate(answer, new Error(CANARY)) }, 503],
  ['fails and gives a session', (_id, answer) => { answer(new Error(CANARY), sessionOf()) }, 503],
  ['fails with a text', (_id, answer) => { answer(CANARY) }, 503],
  ['fails with an empty text', (_id, answer) => { answer('') }, 503],
  ['fails with false', (_id, answer) => { answer(false, sessionOf()) }, 503],
  ['fails, then answers', (_id, answer) => { answer(new Error(CANARY)); answer(null, sessionOf()) }, 503],
  ['throws', () => { throw new Error(CANARY) }, 503],
  ['throws a text', () => { throw CANARY as unknown }, 503],
  ['answers, then throws', (_id, answer) => { answer(null, sessionOf()); throw new Error(CANARY) }, 503],
  ['is asynchronous and answers', async (_id, answer) => { await Promise.resolve(); answer(null, sessionOf()) }, 101],
  ['hangs', () => {}, 503]
]

t.test('case 56: whatever a store does, the answer is a session, a 401 or a 503 without its words', async t => {
  for (const [what, get, status] of tempers) {
    const log = keepLines()
    const events: AuditEvent[] = []
    const { host } = await serveFromStore(t, { store: storeOf(get) }, {
      auth: { handshakeTimeout: 100, audit: event => { events.push(event) } }, fastify: { logger: { stream: log.stream, level: 'trace' } }
    })
    for (const answer of [await upgradeWith(t, host, cookieFor('s1')), await ask(host, '/me', { headers: { cookie: cookieFor('s1') } })]) {
      t.equal(answer.status === 200 ? 101 : answer.status, status, `a store that ${what}`)
      t.notMatch(JSON.stringify(answer), CANARY)
      if (status === 503) {
        t.equal(codeOf(answer.body), 'FST_HYBRID_AUTH_UNAVAILABLE')
        t.equal(answer.headers instanceof Headers ? answer.headers.get('retry-after') : answer.headers['retry-after'], '5')
      }
      if ('context' in answer && status === 101) t.match(answer.context, { userId: 'bob' })
    }
    t.notMatch(log.text(), CANARY, 'its words are in no log line')
    t.notMatch(log.text(), cookieFor('s1').slice(10, 30), 'nor is the cookie')
    t.notMatch(JSON.stringify(events), CANARY)
  }
})

t.test('case 56: a store whose get is asynchronous and rejects is unavailable, and the process lives', async t => {
  const rejecting: () => unknown = async () => { throw new Error(CANARY) }
  const stray: unknown[] = []
  const keep = (error: unknown) => { stray.push(error) }
  process.prependListener('unhandledRejection', keep)
  t.teardown(() => process.off('unhandledRejection', keep))
  const log = keepLines()
  const { host } = await serveFromStore(t, { store: storeOf(rejecting) }, {
    auth: { handshakeTimeout: 200 }, fastify: { logger: { stream: log.stream, level: 'trace' } }
  })
  const answer = await upgradeWith(t, host, cookieFor('s1'))
  t.equal(answer.status, 503)
  t.notMatch(answer.body + log.text(), CANARY)
  t.equal(stray.length, 0, 'its rejection is nobody\'s accident')
})

t.test('case 56: a store that hangs is given up inside the deadline, and its late answer changes nothing', async t => {
  const asked = deferred<StoreCallback>()
  const { host } = await serveFromStore(t, { store: storeOf((_id, answer) => { asked.resolve(answer) }) }, { auth: { handshakeTimeout: 50 } })
  const start = performance.now()
  const answer = await upgradeWith(t, host, cookieFor('s1'))
  t.equal(answer.status, 503)
  t.ok(performance.now() - start < 2000)
  const late = await asked.promise
  late(null, null)
  late(new Error(CANARY))
  t.equal((await upgrade(t, host)).status, 401, 'the process lives')
})

t.test('case 57: with the store down a good bearer still connects, and a refused one does not become a 500', async t => {
  for (const [what, get] of tempers.filter(([, , status]) => status === 503)) {
    const { host } = await serveFromStore(t, { store: storeOf(get) }, { auth: { jwt: JWT, handshakeTimeout: 100 } })
    const headers = { cookie: cookieFor('s1'), origin: `http://${host}` }
    const good = await upgrade(t, host, { headers: { ...headers, authorization: `Bearer ${goodToken()}` } })
    t.match(good.context, { authType: 'jwt' }, `a store that ${what}`)
    const refused = await upgrade(t, host, { headers: { ...headers, authorization: 'Bearer a.b.c' } })
    t.equal(refused.status, 503, 'the session might have helped')
  }
})

t.test('a session\'s end in the store is the context\'s end, in whatever shape the store keeps it', async t => {
  const { host, store } = await READERS.store(t)
  const end = inMs(60_000)
  const table: Array<[unknown, number | null | 'refused']> = [
    [new Date(end), end], [new Date(end).toISOString(), end], [end, end], [null, null], [undefined, null],
    ['garbage', 'refused'], ['', 'refused'], [NaN, 'refused'], [Infinity, 'refused'], [{}, 'refused'], [[], 'refused'], [true, 'refused'], [false, 'refused'],
    [new Date(NaN), 'refused'], [-Infinity, 'refused'], [-1, 'refused'], [0, 'refused'], [{ getTime: () => end }, 'refused']
  ]
  for (const [expires, expected] of table) {
    store.put('s1', sessionOf({ cookie: { expires } }))
    const { status, context } = await upgradeWith(t, host, cookieFor('s1'))
    const what = inspect(expires)
    if (expected === 'refused') t.equal(status, 401, what)
    else t.equal(context?.expiresAt, expected, what)
  }
})

t.test('the secret may be a text, bytes, a list that rotates, or a signer', async t => {
  const other = 'an older secret, which still signs some of the cookies'
  const good: Array<[string, NonNullable<HybridAuthOptions['session']>['secret']]> = [
    ['text', SESSION_SECRET], ['bytes', Buffer.from(SESSION_SECRET)], ['a list', [SESSION_SECRET]], ['the first of a list', [SESSION_SECRET, other]],
    ['the second of a list', [other, SESSION_SECRET]], ['a mixed list', [Buffer.from(other), SESSION_SECRET]], ['a signer', new Signer(SESSION_SECRET)],
    ['a signer of one\'s own', { sign: value => value, unsign: value => ({ valid: value.startsWith('s1.'), value: 's1' }) }]
  ]
  for (const [what, secret] of good) {
    const { host } = await serveFromStore(t, { store: new MapStore().put('s1', sessionOf()), secret })
    t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, 101, what)
    t.equal((await upgradeWith(t, host, 'sessionId=forged.x')).status, 401, what)
  }
  const { host } = await serveFromStore(t, { store: new MapStore().put('s1', sessionOf()), secret: [other] })
  t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, 401, 'a secret that rotated out')
})

t.test('case 83: a signer that throws or answers garbage is a refusal', async t => {
  const store = new MapStore().put('s1', sessionOf())
  const answers: Array<[() => unknown, number]> = [
    [() => { throw new Error(CANARY) }, 503], [() => undefined, 503], [() => null, 503],
    [() => ({}), 401], [() => ({ valid: false, value: 's1' }), 401], [() => ({ valid: true, value: null }), 401], [() => ({ valid: true, value: '' }), 401]
  ]
  for (const [unsign, status] of answers) {
    const signer = { sign: (value: string) => value, unsign: () => unsign() as { valid: boolean, value: string | null } }
    const { host } = await serveFromStore(t, { store, secret: signer })
    const answer = await upgradeWith(t, host, 'sessionId=s1')
    t.equal(answer.status, status, unsign.toString())
    t.notMatch(answer.body, CANARY)
  }
  t.equal(store.reads, 0)
})

t.test('a cookie that is not signed rightly, or is not there, costs no read of the store', async t => {
  const { host, store } = await READERS.store(t, { prefix: 's:', name: 'sid' })
  store.put('s1', sessionOf())
  for (const cookie of ['sid=', 'sid=s%3As1.x', 'other=1', cookieFor('s1', { name: 'sid' }), cookieFor('s1', { prefix: 's:' }), `sid=${'x'.repeat(5000)}`]) {
    t.equal((await upgradeWith(t, host, cookie)).status, 401, cookie.slice(0, 20))
  }
  t.equal((await upgrade(t, host)).status, 401)
  t.equal(store.reads, 0)
  t.equal((await upgradeWith(t, host, cookieFor('s1', { name: 'sid', prefix: 's:' }))).status, 101)
  t.equal(store.reads, 1, 'a good one costs one')
})

t.test('a session from the store is a session where @fastify/session runs as well', async t => {
  const store = new MapStore()
  const { host, login } = await build(t, { auth: { session: { ...SESSION, store, secret: SESSION_SECRET } }, session: { store, secret: SESSION_SECRET } })
  const cookie = await login(BOB)
  t.match((await upgradeWith(t, host, cookie)).context, { authType: 'session', userId: 'bob', tenantId: 'acme' })
})

t.test('the store keeps its receiver', async t => {
  const { host } = await serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: { ...SESSION, secret: SESSION_SECRET, store: new (class { #own = sessionOf(); get (_id: string, answer: StoreCallback) { answer(null, { ...this.#own } as Parameters<StoreCallback>[1] & object) } })() } })
    app.get('/live', { websocket: true }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
  })
  t.equal((await upgradeWith(t, host, cookieFor('s1'))).status, 101)
})
