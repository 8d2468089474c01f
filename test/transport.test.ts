import { IncomingMessage } from 'node:http'
import { Socket } from 'node:net'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyBaseLogger, type FastifyInstance, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import hybridAuth, { serializers, type HybridAuthOptions } from '../lib/index.js'
import { composeHandleProtocols, readOffer, speaksProtocol } from '../lib/handshake/subprotocol.js'
import { build, goodToken, handshake, inSeconds, JWT, keepLines, statusOf, upgrade } from './helpers.js'
import { ask, codeOf, headerOf, liveRoutes, logTo, rawAnswer, rawUpgrade, serve } from './stores.js'

const MALFORMED = 'FST_HYBRID_AUTH_MALFORMED_REQUEST'
const CHALLENGE = /^Bearer realm="[^"\r\n]*"(?:, error="[a-z_]+")?$/
const NAME = 'hybrid-auth.v1'

/** A server whose WebSocket options are the test's, with a guarded and an open route. */
function serveWith (t: Test, options: NonNullable<Parameters<typeof websocket>[1]>['options'], auth: Partial<HybridAuthOptions> = {}, fastify: FastifyServerOptions = {}) {
  return serve(t, async app => {
    await app.register(websocket, options === undefined ? {} : { options })
    await app.register(hybridAuth, { jwt: JWT, ...auth })
    liveRoutes(app)
    app.get('/open', { websocket: true, auth: false }, socket => { socket.send('{}') })
  }, fastify)
}

t.test('case 33: the scheme of the Authorization header passes in any case', async t => {
  const { host } = await build(t)
  for (const scheme of ['Bearer', 'bearer', 'BEARER', 'bEaReR']) {
    const headers = { authorization: `${scheme} ${goodToken()}` }
    t.match((await upgrade(t, host, { headers })).context, { authType: 'jwt', via: 'header' }, scheme)
    t.equal((await ask(host, '/me', { headers })).status, 200, scheme)
  }
})

t.test('case 34: a tab, a comma list, an extra word or nothing after the scheme is a malformed request', async t => {
  const { port, handled } = await build(t)
  const token = goodToken()
  const values = [
    `Bearer\t${token}`, `Bearer ${token}\tx`, `Bearer ${token}, Bearer ${token}`, `Bearer ${token},${token}`, `Bearer ${token} extra`,
    `Bearer  ${token}`, `Bearer \t${token}`, 'Bearer', 'Bearer ', 'bearer\t', `Bearer, ${token}`, `Bearer,${token}`
  ]
  for (const value of values) {
    const line = `Authorization: ${value}`
    for (const answer of [await rawUpgrade(port, [line]), await rawAnswer(port, `GET /me HTTP/1.1\r\nHost: x\r\n${line}\r\n\r\n`)]) {
      t.equal(statusOf(answer), 400, JSON.stringify(value.slice(0, 12)))
      t.equal(headerOf(answer, 'www-authenticate'), 'Bearer realm="fastify-hybrid-auth", error="invalid_request"')
      t.notMatch(answer, token)
    }
  }
  t.equal(handled(), 0)
})

t.test('case 35: two Authorization headers are a malformed request, in whatever order and letters', async t => {
  const { port, handled } = await build(t)
  const good = `Authorization: Bearer ${goodToken()}`
  for (const lines of [[good, good], [good, 'authorization: Bearer a.b.c'], ['AUTHORIZATION: Basic eDp5', good], ['Authorization:', good]]) {
    t.equal(statusOf(await rawUpgrade(port, lines)), 400, lines.map(line => line.slice(0, 24)).join())
    t.equal(statusOf(await rawAnswer(port, ['GET /me HTTP/1.1', 'Host: x', ...lines, '', ''].join('\r\n'))), 400)
  }
  t.equal(handled(), 0)
})

t.test('case 36: a token in two places is a malformed request, even where it is the same good one', async t => {
  const { host, handled } = await build(t, { auth: { credentials: { query: true } } })
  const token = goodToken()
  const header = { headers: { authorization: `Bearer ${token}` } }
  const offer = { protocols: [NAME, `bearer.${token}`] }
  const query = { path: `/live?token=${token}` }
  for (const request of [{ ...header, ...query }, { ...header, ...offer }, { ...offer, ...query }, { ...header, ...offer, ...query }]) {
    const answer = await upgrade(t, host, request)
    t.equal(answer.status, 400, Object.keys(request).join(' and '))
    t.equal(codeOf(answer.body), MALFORMED)
  }
  for (const request of [header, offer, query]) t.equal((await upgrade(t, host, request)).status, 101)
  t.equal((await ask(host, `/me?token=${token}`, header)).status, 400, 'over HTTP too')
  t.equal((await upgrade(t, host, { path: `/live?token=${token}&token=${token}` })).status, 400, 'the parameter twice')
  t.equal(handled(), 3)
})

t.test('a query token is no credential unless it was turned on, and a subprotocol token unless it was turned off', async t => {
  const off = await build(t)
  t.equal((await upgrade(t, off.host, { path: `/live?token=${goodToken()}` })).status, 401)
  const on = await build(t, { auth: { credentials: { query: true, subprotocol: false } } })
  t.match((await upgrade(t, on.host, { path: `/live?token=${goodToken()}` })).context, { via: 'query' })
  t.match(JSON.parse((await ask(on.host, `/me?token=${goodToken()}`)).body), { via: 'query' })
  t.equal((await upgrade(t, on.host, { path: '/live?token=' })).status, 401, 'an empty one is a bad one')
  const refused = await upgrade(t, on.host, { protocols: ['other', `bearer.${goodToken()}`] })
  t.equal(refused.status, 401)
  t.equal(codeOf(refused.body), 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
  t.equal((await ask(on.host, '/me', { headers: { 'sec-websocket-protocol': `x, bearer.${goodToken()}` } })).status, 401, 'HTTP has no subprotocol')
})

t.test('case 37: another scheme is answered 401 with a challenge that names no error', async t => {
  const { host } = await build(t)
  for (const authorization of ['Basic eDp5', 'Digest username="x"', 'Bearerx abc', 'DPoP abc', 'x']) {
    const answer = await upgrade(t, host, { headers: { authorization } })
    t.equal(answer.status, 401, authorization)
    t.equal(codeOf(answer.body), 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
    t.equal(answer.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth"')
  }
})

t.test('case 38: nothing at all is answered 401 with a challenge that names no error, and never cached', async t => {
  const { host } = await build(t)
  const onUpgrade = await upgrade(t, host)
  const onHttp = await ask(host)
  t.same([onUpgrade.status, onHttp.status], [401, 401])
  t.equal(onUpgrade.headers['www-authenticate'], 'Bearer realm="fastify-hybrid-auth"')
  t.equal(onHttp.headers.get('www-authenticate'), 'Bearer realm="fastify-hybrid-auth"')
  t.same([onUpgrade.headers['cache-control'], onHttp.headers.get('cache-control')], ['no-store', 'no-store'])
  t.equal(onUpgrade.body, onHttp.body, 'upgrade and HTTP answer with the same body')
})

t.test('case 39: CR, LF and quotes in a credential leave the challenge well-formed', async t => {
  const { port } = await build(t)
  for (const value of ['a"b', '", error="none', 'a.b.c"\\', 'a\\"', '<script>', "a'b", 'caf\xe9', 'a;b=c', 'a\x7fb']) {
    const answer = await rawUpgrade(port, [`Authorization: Bearer ${value}`])
    t.ok([400, 401].includes(statusOf(answer)), JSON.stringify(value))
    const challenge = headerOf(answer, 'www-authenticate')
    if (challenge !== undefined) t.match(challenge, CHALLENGE)
  }
  for (const value of ['a\rX-Injected: 1', 'a\nX-Injected: 1', 'a\r\n X-Injected: 1', 'a\0b']) {
    const answer = await rawUpgrade(port, [`Authorization: Bearer ${value}`])
    t.equal(statusOf(answer), 400, JSON.stringify(value))
    t.notMatch(answer, /x-injected/i)
  }
})

t.test('case 42: a token offered alone as a subprotocol is refused and not echoed', async t => {
  const { port, handled } = await build(t)
  const token = goodToken()
  const alone = await rawUpgrade(port, [`Sec-WebSocket-Protocol: bearer.${token}`])
  t.equal(statusOf(alone), 400)
  const bare = await rawUpgrade(port, [`Sec-WebSocket-Protocol: ${token}`])
  t.equal(statusOf(bare), 401)
  for (const answer of [alone, bare]) {
    t.notMatch(answer, token)
    t.equal(headerOf(answer, 'sec-websocket-protocol'), undefined)
  }
  t.equal(handled(), 0)
})

t.test('case 42: the name beside the token is selected, in any order', async t => {
  const { host, port } = await build(t)
  const bearer = `bearer.${goodToken()}`
  for (const protocols of [[NAME, bearer], [bearer, NAME], ['other', bearer, NAME], [bearer, NAME, 'other']]) {
    const answer = await upgrade(t, host, { protocols })
    t.equal(answer.protocol, NAME)
    t.match(answer.context, { via: 'subprotocol' })
  }
  const other = await rawUpgrade(port, [`Sec-WebSocket-Protocol: ${bearer}, graphql-transport-ws`])
  t.equal(statusOf(other), 101)
  t.equal(headerOf(other, 'sec-websocket-protocol'), 'graphql-transport-ws', 'the first name where ours is not offered')
  const raw = await rawUpgrade(port, [`Sec-WebSocket-Protocol:${bearer} ,\t${NAME}`])
  t.equal(statusOf(raw), 101)
  t.equal(headerOf(raw, 'sec-websocket-protocol'), NAME)
  t.notMatch(raw, bearer)
})

t.test('case 42: two protocol headers, duplicates, empty items and two tokens are malformed requests', async t => {
  const { port, handled } = await build(t)
  const bearer = `bearer.${goodToken()}`
  const bad = [
    [`Sec-WebSocket-Protocol: ${NAME}`, `Sec-WebSocket-Protocol: ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME}, ${bearer}`, `sec-websocket-protocol: ${NAME}, ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME}, ${NAME}, ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME}, ${bearer}, ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME}, ${bearer}, bearer.${goodToken()}`],
    [`Sec-WebSocket-Protocol: ${NAME},, ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME}, ${bearer},`],
    [`Sec-WebSocket-Protocol: ${NAME}, bearer. ${bearer}`],
    [`Sec-WebSocket-Protocol: ${NAME} ${bearer}`],
    ['Sec-WebSocket-Protocol:'],
    ['Sec-WebSocket-Protocol: "quoted"'],
    ['Sec-WebSocket-Protocol: caf\xe9']
  ]
  for (const lines of bad) {
    const answer = await rawUpgrade(port, lines)
    t.equal(statusOf(answer), 400, lines.join().slice(0, 60))
    t.notMatch(answer, bearer)
  }
  t.equal(handled(), 0)
})

t.test('case 42: a credential is never selected on a route that is open either', async t => {
  const { port } = await serveWith(t, undefined)
  const token = goodToken()
  for (const [offer, selected] of [
    [`bearer.${token}`, undefined], [token, undefined], [`Bearer.${token}`, undefined], [`access.bearer.${token}`, undefined],
    [`bearer.${token}, chat`, 'chat'], [`${token}, chat`, 'chat'], ['chat, other', 'chat'], [`chat, ${NAME}`, NAME],
    ['bearer.', undefined], [`${'x'.repeat(65)}, chat`, 'chat'], ['eyJhbGciOiJub25lIn0, chat', 'chat']
  ] as const) {
    const answer = await rawUpgrade(port, [`Sec-WebSocket-Protocol: ${offer}`], { path: '/open' })
    t.equal(statusOf(answer), 101, offer.slice(0, 30))
    t.equal(headerOf(answer, 'sec-websocket-protocol'), selected, offer.slice(0, 30))
  }
})

t.test('case 42: an application\'s own handleProtocols chooses among the names and never sees a token', async t => {
  const seen: string[][] = []
  let choose: (offered: Set<string>) => unknown = () => false
  const { port } = await serveWith(t, {
    handleProtocols (offered) {
      seen.push([...offered])
      return choose(offered) as string | false
    }
  })
  const bearer = `bearer.${goodToken()}`
  const select = async (offer: string, path = '/live') => {
    const answer = await rawUpgrade(port, [`Sec-WebSocket-Protocol: ${offer}`, ...(path === '/live' && !offer.includes('bearer.') ? [`Authorization: Bearer ${goodToken()}`] : [])], { path })
    t.equal(statusOf(answer), 101)
    t.notMatch(answer, bearer)
    return headerOf(answer, 'sec-websocket-protocol')
  }

  choose = () => 'chat'
  t.equal(await select(`${NAME}, chat, ${bearer}`), 'chat', 'its choice stands')
  t.equal(await select(`${NAME}, ${bearer}`), NAME, 'a name that was not offered is not selected')
  choose = () => bearer
  t.equal(await select(`${NAME}, ${bearer}`), NAME, 'nor is the token')
  t.equal(await select(`other, ${bearer}`), undefined)
  choose = () => false
  t.equal(await select(`${NAME}, ${bearer}`), NAME, 'ours where it chooses none')
  t.equal(await select(`chat, ${bearer}`), undefined)
  choose = () => { throw new Error('no choice') }
  t.equal(await select(`${NAME}, ${bearer}`), NAME, 'ours where it throws')
  t.equal(await select(`chat, ${bearer}`), undefined)
  for (const garbage of [undefined, null, 1, {}, '', true, Promise.resolve('chat')]) {
    choose = () => garbage
    t.equal(await select(`chat, ${bearer}`), undefined, 'garbage is no choice')
  }
  choose = offered => [...offered].at(-1) ?? false
  t.equal(await select(`chat, ${bearer}`, '/open'), 'chat', 'on an open route')
  const before = seen.length
  t.equal(await select(bearer, '/open'), undefined, 'with nothing but a token it is not asked')
  t.equal(seen.length, before)
  t.notOk(seen.flat().some(name => name.includes('bearer')), 'no token was shown to it')
})

t.test('case 42: what handleProtocols throws is logged without its message', async t => {
  const log = keepLines()
  const { port } = await serveWith(t, { handleProtocols () { throw new Error('canary-4711') } }, {}, logTo(log.stream))
  const answer = await rawUpgrade(port, [`Sec-WebSocket-Protocol: ${NAME}, bearer.${goodToken()}`])
  t.equal(statusOf(answer), 101)
  t.match(log.text(), /handleProtocols/)
  t.notMatch(log.text() + answer, /canary-4711/)
})

t.test('an offer is read into names and tokens, or not at all', async t => {
  t.same(readOffer('a, b'), { names: ['a', 'b'], tokens: [] })
  t.same(readOffer('a , bearer.x.y.z'), { names: ['a'], tokens: ['x.y.z'] })
  t.same(readOffer('bearer.'), { names: [], tokens: [''] })
  for (const bad of ['', ' ', ',', 'a,', ',a', 'a,,b', 'a,a', 'a b', 'a;b', 'a=b', '(a)', 'a\u00e9']) t.equal(readOffer(bad), null, JSON.stringify(bad))
  t.equal(speaksProtocol(undefined), false)
  t.equal(speaksProtocol('a,a'), false)
  t.equal(speaksProtocol(`a, ${NAME}`), true)
  t.equal(speaksProtocol(NAME.toUpperCase()), false, 'subprotocol names do not fold case')
  const handler = composeHandleProtocols(undefined, () => {})
  const raw = new IncomingMessage(new Socket())
  t.equal(handler(new Set(), raw), false)
  t.equal(handler(new Set(['a', 'b']), raw), 'a')
})

const startWith = async (options: FastifyServerOptions, credentials: NonNullable<HybridAuthOptions['credentials']> = { query: true }): Promise<FastifyInstance> => {
  const app = Fastify(options)
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT, credentials })
  await app.close()
  return app
}

function ownLogger (write: (line: string) => void): FastifyBaseLogger {
  const line = (...parts: unknown[]) => { write(JSON.stringify(parts)) }
  return { level: 'info', silent () {}, trace: line, debug: line, info: line, warn: line, error: line, fatal: line, child: () => ownLogger(write) }
}

t.test('case 43: with a logger that would print the token the plugin does not start', async t => {
  const { stream } = keepLines()
  const refusal = { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /credentials\.query/ }
  await t.rejects(startWith(logTo(stream, { level: 'info' })), refusal, 'the default logger')
  await t.rejects(startWith(logTo(stream, { level: 'error' })), refusal, 'a high level: errors are written with their request, and a route may lower it')
  await t.rejects(startWith(logTo(stream, { serializers: { req: ({ url }: FastifyRequest) => ({ url }) } })), refusal, 'serializers that print the URL')
  await t.rejects(startWith(logTo(stream, { serializers: { req: ({ raw }: FastifyRequest) => raw.url } })), refusal, 'or the raw URL')
  await t.rejects(startWith(logTo(stream, { serializers: { req () { throw new Error('no') } } })), refusal, 'or cannot be asked')
  await t.rejects(startWith({ loggerInstance: ownLogger(() => {}) }), refusal, 'a logger of which nothing is known')
  await t.resolves(startWith(logTo(stream, { serializers })), 'the exported serializers')
  await t.resolves(startWith(logTo(stream, { serializers: { req: ({ method }: FastifyRequest) => ({ method }) } })), 'serializers without the URL')
  await t.resolves(startWith(logTo(stream, { serializers: { req: () => undefined } })), 'a serializer that prints nothing')
  await t.resolves(startWith(logTo(stream), { query: true, allowTokenInLogs: true }), 'on the application\'s word')
  await t.resolves(startWith({ loggerInstance: ownLogger(() => {}) }, { query: true, allowTokenInLogs: true }))
  await t.resolves(startWith(logTo(stream), { query: false }), 'without query tokens')
  await t.resolves(startWith({}), 'without a logger')
  await t.resolves(startWith({ logger: false }))
})

t.test('case 43: no log line at any level holds the query token', async t => {
  const log = keepLines()
  const token = goodToken()
  const late = goodToken({ exp: inSeconds(-10) })
  const { host, port } = await build(t, {
    auth: { credentials: { query: true } },
    fastify: logTo(log.stream, { serializers }),
    routes (app) {
      app.get('/talk', { auth: true }, async request => {
        request.log.info(request.url)
        request.log.info({ url: request.originalUrl, query: request.query, raw: request.raw.url, req: request })
        request.log.info({ req: request }, 'the request')
        return 'ok'
      })
      app.get('/fails', { auth: true }, async () => { throw new Error('boom') })
      app.get('/speak', { websocket: true }, (socket, request) => {
        request.log.info(request.url)
        request.log.info({ req: request, query: request.query })
        socket.send('{}')
      })
      app.get('/broken', { websocket: true }, () => { throw new Error('boom') })
      app.get('/plain', async () => 'ok')
    }
  })
  const paths = [
    `/talk?token=${token}`, `/talk?a=1&token=${token}&b=2`, `/fails?token=${token}`, `/talk?token=${late}`, `/nowhere?token=${token}`, `/me?token=${token}x`,
    `/me?token=${token}&token=${token}`, `/talk?token=${token}#x`, `/nowhere?x&token=${token}`, `/me?token=${encodeURIComponent(token)}%00`, `/plain?token=${token}`,
    `/me?TOKEN=${token}`, `/me?token[]=${token}`
  ]
  for (const path of paths) await ask(host, path)
  for (const path of ['/talk', '/live', '/nowhere', '/me', '/plain']) await ask(host, `${path}?token=${token}`, { method: 'POST' })
  for (const path of ['/speak', '/nowhere', '/me', '/talk', '/plain', '/login']) await rawUpgrade(port, [], { path: `${path}?token=${token}` })
  await rawUpgrade(port, [], { path: `/broken?token=${token}` })
  await rawUpgrade(port, [`Authorization: Bearer ${token}`], { path: `/live?token=${token}` })
  t.match(log.text(), /"url":"\/talk\?token=\[redacted\]"/)
  t.match(log.text(), /boom/)
  const lines = log.text().split('\n')
  for (const secret of [token, late]) t.same(lines.filter(line => line.includes(secret) || line.includes(encodeURIComponent(secret))), [])
  const answer = await ask(host, `/nowhere?token=${token}`)
  t.equal(answer.status, 404)
  t.notMatch(answer.body, token, 'nor does the answer to a route that does not exist')
})

t.test('case 43: a token under a percent-encoded name is not logged', async t => {
  const log = keepLines()
  const token = goodToken()
  const { host, port } = await build(t, {
    auth: { credentials: { query: true } },
    fastify: logTo(log.stream, { serializers })
  })
  for (const name of ['%74oken', 'tok%65n', '%74%6f%6b%65%6e', '%54oken']) {
    await ask(host, `/me?${name}=${token}`)
    await rawUpgrade(port, [], { path: `/live?a=b&${name}=${token}` })
  }
  t.same(log.text().split('\n').filter(line => line.includes(token)), [])
})

t.test('case 43: a path that is no URL does not bring the token into the log', async t => {
  const log = keepLines()
  const token = goodToken()
  const { port } = await build(t, {
    auth: { credentials: { query: true } },
    fastify: logTo(log.stream, { serializers })
  })
  for (const path of ['/%ZZ', '/live%', '/%E0%A4%A', '/%C0%80']) {
    const answer = await rawAnswer(port, `GET ${path}?token=${token} HTTP/1.1\r\nHost: x\r\n\r\n`)
    t.ok([400, 404].includes(statusOf(answer)), path)
  }
  t.same(log.text().split('\n').filter(line => line.includes(token)), [])
})

t.test('case 43: a logger that writes errors only does not print the token of a route that fails', async t => {
  const log = keepLines()
  const token = goodToken()
  const app = Fastify({ logger: { stream: log.stream, level: 'error' } })
  t.teardown(() => app.close())
  try {
    await app.register(hybridAuth, { jwt: JWT, credentials: { query: true } })
  } catch (error) {
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, 'not starting is an answer too')
    return
  }
  app.get('/early', { auth: true, onRequest: (_request, _reply, done) => { done(new Error('boom')) } }, async () => 'ok')
  app.get('/open', async () => { throw new Error('boom') })
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  for (const path of ['/early', '/open']) t.equal((await ask(address.replace('http://', ''), `${path}?token=${token}`)).status, 500)
  t.match(log.text(), /boom/)
  t.notMatch(log.text(), token)
})

t.test('case 43: a silent logger that a route turns up does not print the token', async t => {
  const log = keepLines()
  const token = goodToken()
  const app = Fastify({ logger: { stream: log.stream, level: 'silent' } })
  t.teardown(() => app.close())
  try {
    await app.register(hybridAuth, { jwt: JWT, credentials: { query: true } })
  } catch (error) {
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, 'not starting is an answer too')
    return
  }
  app.get('/loud', { auth: true, logLevel: 'info' }, async () => 'ok')
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  t.equal((await ask(address.replace('http://', ''), `/loud?token=${token}`)).status, 200)
  t.notMatch(log.text(), token)
})

t.test('case 44: no oddity of HTTP is a way around the guard', async t => {
  const { port, handled } = await build(t)
  const oddities: Array<[string, Parameters<typeof handshake>[1], string[]?]> = [
    ['a percent-encoded path', { path: '/%6cive' }], ['another one', { path: '/l%69ve' }], ['twice encoded', { path: '/%256cive' }],
    ['a double slash', { path: '//live' }], ['a trailing slash', { path: '/live/' }], ['dots', { path: '/x/../live' }], ['a dot', { path: '/./live' }],
    ['a semicolon', { path: '/live;x=1' }], ['a query', { path: '/live?x' }], ['an encoded slash', { path: '/live%2f' }], ['upper case', { path: '/LIVE' }],
    ['a null byte', { path: '/live%00' }], ['a fragment', { path: '/live#x' }],
    ['absolute-form', { path: 'http://127.0.0.1/live' }], ['absolute-form of another host', { path: 'http://evil.example/live' }],
    ['authority-form', { path: '127.0.0.1:80' }], ['asterisk-form', { path: '*', method: 'OPTIONS' }],
    ['HEAD', { method: 'HEAD' }], ['POST', { method: 'POST' }], ['OPTIONS', { method: 'OPTIONS' }], ['a method of no standard', { method: 'FOO' }],
    ['version 8', { version: '8' }], ['version 0', { version: '0' }], ['no version', { version: '' }],
    ['no key', { key: '' }], ['a bad key', { key: 'short' }], ['method override', {}, ['X-HTTP-Method-Override: OPTIONS']],
    ['a body', { method: 'POST' }, ['Content-Length: 5', '', 'hello']], ['chunks', { method: 'POST' }, ['Transfer-Encoding: chunked', '', '0', '']],
    ['both lengths', { method: 'POST' }, ['Content-Length: 5', 'Transfer-Encoding: chunked', '', '0']],
    ['another Upgrade beside', {}, ['Upgrade: h2c']], ['an accept-version', {}, ['Accept-Version: 2.x']], ['Expect', {}, ['Expect: 100-continue']]
  ]
  for (const [what, parts, lines] of oddities) {
    const answer = await rawUpgrade(port, lines, parts)
    t.match(answer, /^HTTP\/1\.1 4\d\d /, what)
  }
  for (const protocol of ['h2c', 'h2c, websocket', 'TLS/1.0', 'foo']) {
    const answer = await rawAnswer(port, handshake(['HTTP2-Settings: AAMAAABkAAQAAP__']).replace('Upgrade: websocket', `Upgrade: ${protocol}`))
    t.match(answer, /^HTTP\/1\.1 4\d\d /, protocol)
  }
  t.match(await rawAnswer(port, handshake().replace('HTTP/1.1', 'HTTP/1.0')), /^HTTP\/1\.\d 4\d\d /)
  t.match(await rawAnswer(port, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), /^(?:HTTP\/1\.1 4\d\d |$)/)
  t.match(await rawAnswer(port, handshake().replaceAll('\r\n', '\n'), '\n\n'), /^(?:HTTP\/1\.1 4\d\d |$)/)
  t.equal(handled(), 0)
})

t.test('case 44: routes that a router finds by other spellings are guarded under each of them', async t => {
  const { port } = await build(t, { fastify: { routerOptions: { ignoreTrailingSlash: true, ignoreDuplicateSlashes: true, caseSensitive: false } } })
  for (const path of ['/live/', '//live', '//live//', '/LIVE', '/%6Cive', '/live']) {
    t.equal(statusOf(await rawUpgrade(port, [], { path })), 401, path)
    t.equal(statusOf(await rawUpgrade(port, [`Authorization: Bearer ${goodToken()}`], { path })), 101, path)
  }
})

t.test('case 44: an authenticated request that is no WebSocket handshake is not upgraded', async t => {
  const { port, handled } = await build(t)
  const lines = [`Authorization: Bearer ${goodToken()}`]
  for (const parts of [{ key: '' }, { key: 'short' }, { version: '7' }, { method: 'HEAD' }, { method: 'POST' }]) {
    t.match(await rawUpgrade(port, lines, parts), /^HTTP\/1\.1 4\d\d /, JSON.stringify(parts))
  }
  t.match(await rawAnswer(port, handshake(lines).replace('Upgrade: websocket', 'Upgrade: h2c')), /^HTTP\/1\.1 4\d\d /)
  t.match(await rawAnswer(port, ['GET /live HTTP/1.1', 'Host: x', ...lines, '', ''].join('\r\n')), /^HTTP\/1\.1 404 /, 'plain GET of a WebSocket route')
  t.equal(handled(), 0)
})

t.test('case 44: an upgrade of a plain HTTP route is never accepted, with or without a credential', async t => {
  let ran = 0
  const { port, login } = await build(t, {
    routes (app) {
      app.get('/plain', async () => { ran++; return 'ok' })
      app.get('/guarded', { auth: true }, async () => { ran++; return 'ok' })
      app.get('/required', { preHandler: app.hybridAuth.require() }, async () => { ran++; return 'ok' })
    }
  })
  const cookie = await login()
  for (const path of ['/plain', '/guarded', '/required', '/nowhere']) {
    for (const lines of [[], [`Authorization: Bearer ${goodToken()}`], [`Cookie: ${cookie}`, `Origin: http://127.0.0.1:${port}`]]) {
      const answer = await rawUpgrade(port, lines.map(line => line), { path, host: `127.0.0.1:${port}` })
      t.match(answer, /^HTTP\/1\.1 (?:401|404|503) /, `${path} ${lines.length}`)
    }
  }
  t.equal(ran, 0)
})

t.test('case 45: thousands of headers, and kilobytes of spaces, are answered at once', async t => {
  const { port, handled } = await build(t)
  const many = Array.from({ length: 2200 }, (_, i) => `a${i}: b`)
  const requests: Array<[string, string]> = [
    ['2 200 headers', handshake(many)],
    ['2 200 short headers', handshake(Array.from({ length: 2200 }, () => 'a:b'))],
    ['2 200 headers behind a credential', handshake(['Authorization: Bearer a.b.c', ...Array.from({ length: 2200 }, () => 'a:b')])],
    ['16 KiB of spaces as subprotocol', handshake([`Sec-WebSocket-Protocol: a${' '.repeat(16_384)}b`])],
    ['15 KiB of spaces as subprotocol', handshake([`Sec-WebSocket-Protocol: a${' '.repeat(15_360)}b`])],
    ['15 KiB of spaces in the credential', handshake([`Authorization: Bearer a${' '.repeat(15_360)}b`])],
    ['15 KiB of commas', handshake([`Sec-WebSocket-Protocol: ${','.repeat(15_360)}`])],
    ['7 000 names', handshake([`Sec-WebSocket-Protocol: ${Array.from({ length: 3000 }, (_, i) => i.toString(36)).join()}`])],
    ['15 KiB of cookie', handshake([`Cookie: ${'sessionId=;'.repeat(1300)}`])],
    ['15 KiB of origin', handshake([`Origin: http://${'a.'.repeat(7500)}`, 'Cookie: sessionId=x'])]
  ]
  for (const [what, request] of requests) {
    const times: number[] = []
    for (let i = 0; i < 3; i++) {
      const start = performance.now()
      const answer = await rawAnswer(port, request)
      times.push(performance.now() - start)
      t.match(answer, /^HTTP\/1\.1 4\d\d /, what)
    }
    t.ok(Math.min(...times) < 50, `${what}: ${Math.round(Math.min(...times))} ms`)
  }
  t.equal(handled(), 0)
})
