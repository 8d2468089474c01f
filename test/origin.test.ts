import { mock } from 'node:test'
import t from 'tap'
import { createOriginCheck, parseOriginPattern, type OriginPattern } from '../lib/handshake/origin.js'
import { build, goodToken, rawExchange, handshake, SESSION, SESSION_SECRET, statusOf, upgrade } from './helpers.js'
import { ask, codeOf, cookieFor, MapStore, rawUpgrade, serveFromStore } from './stores.js'

const REFUSED = 'FST_HYBRID_AUTH_ORIGIN_REFUSED'
const LOGGED_IN = { user: { userId: 'bob' }, cookie: {} }

function patterns (...given: string[]): OriginPattern[] {
  return given.map(one => {
    const pattern = parseOriginPattern(one)
    if (pattern === null) throw new Error(`${one} is no pattern`)
    return pattern
  })
}

t.test('case 46: a cookie from a foreign origin is refused before the store is read', async t => {
  const store = new MapStore().put('s1', LOGGED_IN)
  const { host } = await serveFromStore(t, { store }, { auth: { origins: ['https://app.example.com'] } })
  const headers = { cookie: cookieFor('s1') }
  for (const origin of ['https://evil.example', `http://${host}`, 'https://app.example.com.evil.example']) {
    const answer = await upgrade(t, host, { headers: { ...headers, origin } })
    t.equal(answer.status, 403, origin)
    t.equal(codeOf(answer.body), REFUSED)
    t.notOk(answer.headers['set-cookie'])
  }
  t.equal(store.reads, 0, 'the store was never asked')
  const good = await upgrade(t, host, { headers: { ...headers, origin: 'https://app.example.com' } })
  t.match(good.context, { authType: 'session', userId: 'bob' })
  t.equal(store.reads, 1)
})

t.test('case 46: a session that @fastify/session loaded does not open a socket for a foreign origin', async t => {
  const mapper = mock.fn(SESSION.user)
  const { host, login, handled } = await build(t, { auth: { session: { user: mapper } } })
  const answer = await upgrade(t, host, { headers: { cookie: await login(), origin: 'https://evil.example' } })
  t.equal(answer.status, 403)
  t.equal(codeOf(answer.body), REFUSED)
  t.notOk(answer.headers['set-cookie'])
  t.equal(mapper.mock.callCount(), 0)
  t.equal(handled(), 0)
})

t.test('case 47: a cookie with origin null, an empty one or none is refused', async t => {
  const store = new MapStore().put('s1', LOGGED_IN)
  const fromStore = await serveFromStore(t, { store })
  const fromRequest = await build(t, { session: { store, secret: SESSION_SECRET } })
  for (const [reader, port] of [['store', fromStore.port], ['request', fromRequest.port]] as const) {
    const lines = [`Cookie: ${cookieFor('s1')}`]
    for (const extra of [['Origin: null'], ['Origin:'], ['Origin: '], []]) {
      t.equal(statusOf(await rawUpgrade(port, [...lines, ...extra])), 403, `${reader}: ${extra.join() || 'no Origin'}`)
    }
  }
})

t.test('case 48: only the exact origin is the same origin, whatever its letters\' case', async t => {
  const { port } = await serveFromStore(t, { store: new MapStore().put('s1', LOGGED_IN) })
  const tryOrigin = async (origin: string, host: string) =>
    statusOf(await rawExchange(port, handshake([`Cookie: ${cookieFor('s1')}`, `Origin: ${origin}`], { host })))
  const refused = [
    'http://good.example.evil', 'http://evil-good.example', 'http://evilgood.example', 'http://sub.good.example',
    'https://good.example', 'ws://good.example', 'http://good.example:8080', 'http://good.example:', 'http://good.example.',
    'http://user@good.example', 'http://good.example@evil.example', 'http://good.example/', 'http://good.example/path',
    'http://good.example?x', 'http://good.example#x', 'http://good.example http://evil.example', 'http://evil.example, http://good.example',
    'http://good.example,http://good.example', '//good.example', 'good.example', 'http:good.example', 'http:///good.example', '*', 'http://*'
  ]
  for (const origin of refused) t.equal(await tryOrigin(origin, 'good.example'), 403, origin)
  t.equal(await tryOrigin('http://good.example', 'good.example'), 101)
  t.equal(await tryOrigin('http://GOOD.Example', 'good.example'), 101, 'the case of the origin folds')
  t.equal(await tryOrigin('http://good.example', 'Good.EXAMPLE'), 101, 'the case of the Host folds')
  t.equal(await tryOrigin('http://good.example', 'good.example:80'), 101, 'a browser leaves the default port out')
  t.equal(await tryOrigin('http://good.example:8080', 'good.example:8080'), 101)
  t.equal(await tryOrigin('http://good.example', 'good.example:8080'), 403)
  t.equal(await tryOrigin('http://[::1]:3000', '[::1]:3000'), 101)
})

t.test('case 48: two Origin headers are refused, even where each would do', async t => {
  const { port } = await serveFromStore(t, { store: new MapStore().put('s1', LOGGED_IN) })
  const cookie = `Cookie: ${cookieFor('s1')}`
  t.equal(statusOf(await rawUpgrade(port, [cookie, 'Origin: http://127.0.0.1', 'Origin: http://127.0.0.1'])), 403)
  t.equal(statusOf(await rawUpgrade(port, [cookie, 'Origin: http://127.0.0.1', 'Origin: http://evil.example'])), 403)
})

t.test('the same origin follows the protocol that a trusted proxy names', async t => {
  const { port } = await serveFromStore(t, { store: new MapStore().put('s1', LOGGED_IN) }, { fastify: { trustProxy: '127.0.0.1' } })
  const lines = (origin: string) => [`Cookie: ${cookieFor('s1')}`, `Origin: ${origin}`, 'X-Forwarded-Proto: https', 'X-Forwarded-Host: app.example.com']
  t.equal(statusOf(await rawUpgrade(port, lines('https://app.example.com'))), 101)
  t.equal(statusOf(await rawUpgrade(port, lines('http://app.example.com'))), 403)
  const plain = await serveFromStore(t, { store: new MapStore().put('s1', LOGGED_IN) })
  t.equal(statusOf(await rawUpgrade(plain.port, lines('https://app.example.com'))), 403, 'without trustProxy those headers say nothing')
})

t.test('case 49: a wildcard stands for one or more whole labels', async t => {
  const { port } = await serveFromStore(t, { store: new MapStore().put('s1', LOGGED_IN) }, { auth: { origins: ['https://*.example.com', 'https://*.example.org:8443'] } })
  const tryOrigin = async (origin: string) => statusOf(await rawUpgrade(port, [`Cookie: ${cookieFor('s1')}`, `Origin: ${origin}`]))
  for (const origin of ['https://a.example.com', 'https://a.b.example.com', 'https://A.EXAMPLE.COM', 'https://x-1.example.com', 'https://a.example.org:8443']) {
    t.equal(await tryOrigin(origin), 101, origin)
  }
  const refused = [
    'https://example.com', 'https://evilexample.com', 'https://.example.com', 'https://a..example.com', 'http://a.example.com',
    'https://a.example.com:8443', 'https://a.example.com.', 'https://a.example.com.evil', 'https://evil/.example.com', 'https://evil?.example.com',
    'https://evil#.example.com', 'https://user@a.example.com', 'https://evil:1.example.com', 'https://*.example.com', 'https://a.example.org',
    'https://evil\\.example.com', 'https://%65.example.com', 'https://a b.example.com', 'https://.a.example.com'
  ]
  for (const origin of refused) t.equal(await tryOrigin(origin), 403, origin)
})

t.test('case 50: an Origin that is no origin is refused, and the server lives on', async t => {
  const store = new MapStore().put('s1', LOGGED_IN)
  const listed = await serveFromStore(t, { store }, { auth: { origins: ['https://*.example.com'] } })
  const same = await serveFromStore(t, { store })
  for (const { port } of [listed, same]) {
    for (const origin of ['http://[', 'http://]', 'http://[::1', `https://${'a'.repeat(8192)}.example.com`, '\xff\xfe', 'https://b\xfccher.example.com', 'https://\x80.example.com', '%00', 'javascript:alert(1)']) {
      t.equal(statusOf(await rawUpgrade(port, [`Cookie: ${cookieFor('s1')}`, `Origin: ${origin}`])), 403, JSON.stringify(origin.slice(0, 40)))
    }
    t.equal(statusOf(await rawUpgrade(port)), 401)
  }
})

t.test('case 51: a bearer without Origin passes, one from a foreign page does not', async t => {
  const { host } = await build(t)
  const authorization = `Bearer ${goodToken()}`
  t.equal((await upgrade(t, host, { headers: { authorization } })).status, 101)
  t.equal((await upgrade(t, host, { headers: { authorization, origin: `http://${host}` } })).status, 101)
  const foreign = await upgrade(t, host, { headers: { authorization, origin: 'https://evil.example' } })
  t.equal(foreign.status, 403)
  t.equal(codeOf(foreign.body), REFUSED)
  t.equal(foreign.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth"')
})

t.test('an unsafe HTTP method with a session needs an allowed Origin; a safe one, and a bearer, do not', async t => {
  const store = new MapStore().put('s1', LOGGED_IN)
  const fromStore = await serveFromStore(t, { store }, { auth: { jwt: { key: SESSION_SECRET, algorithms: ['HS256'] } } })
  const fromRequest = await build(t, {
    session: { store, secret: SESSION_SECRET },
    routes (app) {
      for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) app.route({ method, url: '/me', auth: true, handler: async request => request.auth })
    }
  })
  const cookie = cookieFor('s1')
  for (const [reader, { host }] of [['store', fromStore], ['request', fromRequest]] as const) {
    t.equal((await ask(host, '/me', { headers: { cookie } })).status, 200, `${reader}: GET without Origin`)
    t.equal((await ask(host, '/me', { headers: { cookie, origin: 'https://evil.example' } })).status, 200, `${reader}: GET is safe`)
    t.equal((await ask(host, '/me', { method: 'HEAD', headers: { cookie } })).status, 200, `${reader}: HEAD is safe`)
    for (const origin of [undefined, 'null', 'https://evil.example', `https://${host}`]) {
      const answer = await ask(host, '/me', { method: 'POST', headers: { cookie, ...(origin !== undefined && { origin }) } })
      t.equal(answer.status, 403, `${reader}: POST from ${origin ?? 'nowhere'}`)
      t.equal(codeOf(answer.body), REFUSED)
    }
    t.equal((await ask(host, '/me', { method: 'POST', headers: { cookie, origin: `http://${host}` } })).status, 200, `${reader}: POST from the same origin`)
  }
  for (const method of ['PUT', 'PATCH', 'DELETE']) {
    t.equal((await ask(fromRequest.host, '/me', { method, headers: { cookie } })).status, 403, method)
  }
  const authorization = `Bearer ${goodToken()}`
  t.equal((await ask(fromRequest.host, '/me', { method: 'POST', headers: { authorization } })).status, 200, 'a bearer needs none')
  t.equal((await ask(fromRequest.host, '/me', { method: 'POST', headers: { authorization, cookie } })).status, 200, 'nor beside a cookie')
  const refusedBearer = await ask(fromRequest.host, '/me', { method: 'POST', headers: { authorization: 'Bearer a.b.c', cookie } })
  t.equal(refusedBearer.status, 401, 'a refused bearer does not lead around the Origin check')
})

t.test('a pattern is an origin as a browser writes it, or a whole leading label', async t => {
  const good: Array<[string, Partial<OriginPattern>]> = [
    ['https://app.example.com', { scheme: 'https', host: 'app.example.com', wildcard: false }],
    ['HTTPS://App.Example.COM', { scheme: 'https', host: 'app.example.com', wildcard: false }],
    ['http://localhost:3000', { scheme: 'http', host: 'localhost:3000', wildcard: false }],
    ['http://127.0.0.1:8080', { host: '127.0.0.1:8080' }],
    ['http://[::1]:3000', { host: '[::1]:3000' }],
    ['https://*.example.com', { scheme: 'https', host: '.example.com', wildcard: true }],
    ['https://*.example.com:8443', { host: '.example.com:8443', wildcard: true }],
    ['capacitor://localhost', { scheme: 'capacitor', host: 'localhost' }],
    ['chrome-extension://abcdefghijklmnop', { scheme: 'chrome-extension' }]
  ]
  for (const [text, expected] of good) t.match(parseOriginPattern(text), expected, text)
  const bad = [
    '', '*', 'null', 'example.com', '//example.com', 'https://', 'https://*', 'https://*.', 'https://*example.com', 'https://a*.example.com',
    'https://a.*.example.com', 'https://**.example.com', 'https://*.*.example.com', 'https://*..example.com', 'https://*.example.com.',
    'https://example.com/', 'https://example.com/path', 'https://example.com?x', 'https://example.com#x', 'https://user@example.com',
    'https://example.com:443', 'http://example.com:80', 'https://example.com:', 'https://example.com:0', 'https://example.com:123456',
    'https://example.com:x', 'https://example.com.', 'https://exa mple.com', ' https://example.com', 'https://b\u00fccher.example', 'https://[::1',
    'https://*.[::1]', '1http://example.com', 'https://example.com\n'
  ]
  for (const text of bad) t.equal(parseOriginPattern(text), null, JSON.stringify(text))
})

t.test('a check of listed origins knows nothing but the list', async t => {
  const isAllowed = createOriginCheck(patterns('https://app.example.com', 'https://*.example.org'))
  const table: Array<[string, boolean]> = [
    ['https://app.example.com', true], ['https://APP.example.com', true], ['https://app.example.com:443', false], ['https://own.host', false],
    ['https://a.example.org', true], ['https://a.b.c.example.org', true], ['https://example.org', false], ['https://.example.org', false],
    ['https://-.example.org', true], ['https://a_b.example.org', true], ['', false], ['null', false], [`https://${'a.'.repeat(300)}example.org`, false]
  ]
  for (const [origin, expected] of table) t.equal(isAllowed(origin, 'https', 'own.host'), expected, origin.slice(0, 60))
})

t.test('a check without a list compares with the scheme and host that were asked', async t => {
  const isAllowed = createOriginCheck(undefined)
  const table: Array<[string, string, string, boolean]> = [
    ['http://a.example', 'http', 'a.example', true],
    ['https://a.example', 'http', 'a.example', false],
    ['https://a.example', 'https', 'a.example:443', true],
    ['https://a.example', 'https', 'a.example:80', false],
    ['http://a.example:443', 'http', 'a.example:443', true],
    ['http://a.example', 'http', '', false],
    ['http://', 'http', '', false],
    ['', 'http', '', false],
    ['null', 'http', 'a.example', false],
    ['other://a.example:80', 'other', 'a.example:80', true]
  ]
  for (const [origin, protocol, host, expected] of table) t.equal(isAllowed(origin, protocol, host), expected, `${origin} at ${protocol} ${host}`)
})
