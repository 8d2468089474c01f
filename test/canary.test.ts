/** One run over every kind of traffic, with credentials that are known again anywhere, and everything that came out of it. */
import { randomBytes } from 'node:crypto'
import { subscribe, tracingChannel, unsubscribe } from 'node:diagnostics_channel'
import { inspect } from 'node:util'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import hybridAuth, { serializers, type HybridAuthOptions, type Identity, type MessageRule } from '../lib/index.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { EVENT_TYPES, Recorder, secret, spellings, watch } from './canary.js'
import { build, handshake, inSeconds, JWT, keepLines, SESSION_SECRET, signHs256, signRaw, type Server } from './helpers.js'
import { eventually, lookNow, setClock } from './live.js'
import { connect as connectRedis, needsRedis, startRedis } from './redis.js'
import { untyped, updateOf } from './revoking.js'
import { cookieFor, MapStore } from './stores.js'
import { get, exchange } from './ways.js'
import { authFrame, closeFrame, connect, connected, frame, rawConnect, serveLive, type Peer, type PeerOptions } from './wire.js'

/** So much of a part is enough to be known again, however it was cut. */
const ENOUGH = 20

/** What a credential may look like where it should not be, whole or in part. */
function needles (text: string): string[] {
  const parts = [...new Set([text, decodeURIComponent(text)].flatMap(one => one.split(/[.\s=;]+/)))].filter(part => part.length >= ENOUGH)
  const isToken = text.split('.').length === 3
  // The header of a token is the same in all of them, and says nothing.
  const kept = isToken ? parts.slice(1) : parts.length === 0 ? [text] : parts
  return [...new Set(kept.flatMap(part => [part, part.slice(0, ENOUGH), part.slice(-ENOUGH)]).flatMap(part => [...spellings(part), ...insideBase64(part)]))]
}

/** The part that is the same wherever in a longer base64 a text stands. */
function insideBase64 (text: string): string[] {
  return [0, 1, 2].map(offset => Buffer.from('x'.repeat(offset) + text).toString('base64').slice(4, -4)).filter(found => found.length >= ENOUGH)
}

/** What of all that came out holds a credential, and the first that it holds. */
function grep (output: ReadonlyArray<readonly [from: string, text: string]>, canaries: ReadonlyMap<string, string>): string[] {
  const wanted = [...canaries].flatMap(([name, canary]) => needles(canary).map(needle => ({ name, needle })))
  return output.flatMap(([from, text]) => {
    const found = wanted.find(({ needle }) => text.includes(needle))
    if (found === undefined) return []
    const at = text.indexOf(found.needle)
    return [`${found.name} in ${from}: ${text.slice(Math.max(0, at - 200), at + 80)}`]
  })
}

/** Everything that comes out of this process, beside what its clients are answered. */
function collect (t: Test) {
  const { stream, text } = keepLines()
  const output: Array<[from: string, text: string]> = []
  const canaries = new Map<string, string>()
  const keep = (from: string) => (value: unknown) => { output.push([from, typeof value === 'string' ? value : `${JSON.stringify(value)} ${inspect(value, { depth: 9, showHidden: true })}`]) }
  const published = keep('diagnostics_channel')
  for (const type of EVENT_TYPES) subscribe(`fastify-hybrid-auth:${type}`, published)
  const traced = keep('tracing')
  const verify = tracingChannel<string, object>('fastify-hybrid-auth:verify')
  const handlers = { start: traced, end: traced, asyncStart: traced, asyncEnd: traced, error: traced }
  verify.subscribe(handlers)
  const warned = (warning: Error) => { keep('process warning')(`${warning.stack ?? ''} ${warning.message}`) }
  process.on('warning', warned)
  t.teardown(() => {
    for (const type of EVENT_TYPES) unsubscribe(`fastify-hybrid-auth:${type}`, published)
    verify.unsubscribe(handlers)
    process.off('warning', warned)
  })
  return {
    output, canaries, keep, log: text,
    logger: { level: 'trace', stream, serializers },
    /** A credential to look for. */
    plant: <Text extends string>(name: string, credential: Text): Text => {
      if (canaries.has(name)) throw new Error(`there is a ${name} already`)
      canaries.set(name, credential)
      return credential
    },
    /** Of what was called, what it threw. */
    thrown: async (what: string, run: () => unknown): Promise<void> => {
      try {
        await run()
      } catch (error) {
        keep(`what ${what} threw`)(inspect(error, { depth: 5 }))
      }
    }
  }
}

type Collected = ReturnType<typeof collect>

const random = (bytes = 24) => randomBytes(bytes).toString('base64url')
const BOB: Identity = { userId: 'bob', permissions: [] }
const WRONG = 'not the secret of anybody, long enough'

/** Errors of every shape that quote what they were about. */
function faults (quoted: string): unknown[] {
  const changed = new Error(`first\n    at ${quoted} (file.js:1:2)\n    at second (${quoted}:1:2)`)
  // The stack is as it was when it was first looked at.
  Object.assign(changed, { stack: changed.stack, message: 'changed since' })
  const multiline = new Error(`no:\n    at ${quoted} (file.js:1:2)`)
  return [
    new Error(quoted), multiline, changed, new Error('no', { cause: new Error(quoted) }), new AggregateError([new Error(quoted)], quoted), quoted, { quoted },
    Object.assign(new Error('no'), { name: quoted }), Object.assign(new Error('no'), { code: quoted }), Object.assign(new Error('no'), { detail: quoted }),
    Object.assign(new Error('no'), { message: null }), Object.assign(new Error('no'), { stack: null }), Object.assign(new Error('no'), { stack: `    at ${quoted}:1:2` }),
    Object.create(Error.prototype, { message: { get () { throw new Error(quoted) } } }), undefined, null
  ]
}

/** A server whose every dependency can fail, quoting the credential that it was given. */
async function world (t: Test, all: Collected, auth: Partial<HybridAuthOptions> = {}): Promise<Server & { store: MapStore, failing: Map<string, unknown> }> {
  const store = new MapStore()
  /** What is thrown for a `kid`, a user or a session. */
  const failing = new Map<string, unknown>()
  const fail = (name: string | undefined) => { if (name !== undefined && failing.has(name)) throw failing.get(name) }
  const server = await build(t, {
    // No cookie is set anew, so that none has to be in any answer.
    session: { store, rolling: false, saveUninitialized: false },
    auth: {
      heartbeat: false,
      handshakeTimeout: 50,
      credentials: { query: true },
      jwt: {
        ...JWT,
        key ({ kid }) {
          if (kid === 'hangs') return new Promise(() => {})
          fail(kid)
          return all.canaries.get('jwt secret')
        },
        user (claims) {
          fail(claims.sub)
          return { userId: claims.sub ?? '', permissions: [], companyId: claims }
        }
      },
      session: {
        secret: SESSION_SECRET,
        user (session) {
          fail(session.user?.userId)
          return session.user ?? null
        },
        store: {
          get (sessionId: string, callback: (error: unknown, session?: unknown) => void) {
            if (!failing.has(sessionId)) store.get(sessionId, callback)
            else if (sessionId.length % 2 === 0) callback(failing.get(sessionId))
            else throw failing.get(sessionId)
          }
        }
      },
      rooms: {
        authorize (_auth, room, action) {
          if (action === 'publish') throw new Error(room)
          return room !== 'refused'
        }
      },
      audit (event) {
        all.keep('audit')(event)
        throw new Error('no')
      },
      ...auth
    },
    fastify: { logger: all.logger },
    routes: app => { declare(app, all) }
  })
  for (const type of EVENT_TYPES) server.app.hybridAuth.events.on(type, all.keep('events'))
  return { ...server, store, failing }
}

function declare (app: FastifyInstance, all: Collected): void {
  app.addHook('onRequest', async ({ log, headers }) => { log.info({ headers }, 'headers') })
  const check = (_auth: unknown, { headers }: FastifyRequest) => {
    if (headers['x-rule'] === 'throws') throw new Error(`${headers.authorization} ${headers.cookie}`)
    return headers['x-rule'] !== 'refuses'
  }
  const authorize: MessageRule = (_auth, message) => {
    const [, fault] = /^throw (\d+)/.exec(message.text()) ?? []
    if (fault !== undefined) throw faults(message.text())[Number(fault)]
    if (message.text().startsWith('parse')) message.json()
    return !message.text().startsWith('refuse')
  }
  const rule = { rate: { capacity: 200, refillPerSecond: 1 }, check, authorize }
  app.get('/app', { websocket: true, auth: rule }, (socket, request) => {
    app.hybridAuth.connection(socket)?.on('refresh', () => { throw new Error(JSON.stringify([request.auth, request.headers])) })
    app.hybridAuth.connection(socket)?.on('close', () => { throw new Error(JSON.stringify([request.auth, request.headers])) })
    socket.on('message', () => { socket.send('echo') })
  })
  app.get('/first', { websocket: true, auth: { ...rule, firstMessage: true } }, socket => { socket.on('message', () => { socket.send('echo') }) })
  app.get('/rooms', { websocket: true, auth: { rooms: true } }, socket => { socket.send('{}') })
  app.get('/hello', { websocket: true }, socket => { socket.send('{}') })
  app.get('/strict', { auth: { check } }, async () => 'in')
  app.get('/twice', { auth: true, preHandler: app.hybridAuth.require({ role: 'admin' }) }, async () => 'in')
  app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
  app.post('/logout', async request => {
    await request.session.destroy()
    return 'out'
  })
  app.get('/fails', async (_request, reply) => {
    await all.thrown('request.auth', () => reply.request.auth)
    return 'out'
  })
}

const claims = (sub: string, more: object = {}) => ({ sub, exp: inSeconds(300), iat: inSeconds(0), jti: random(), ...more })

t.test('CASE 43: of all credentials of a run over every kind of traffic, nothing comes out anywhere', async t => {
  const all = collect(t)
  const { plant, keep, output, canaries, thrown } = all
  const key = plant('jwt secret', random(32))
  plant('session secret', SESSION_SECRET)
  const server = await world(t, all, { limits: { connects: { perUser: 60 }, connections: { perUser: 40 } }, failures: { max: 40 } })
  const { app, host, port, store, failing } = server
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  const mint = (name: string, sub = 'alice', more: object = {}, header: object = {}) => plant(name, signHs256(claims(sub, more), header, key))
  const seat = (name: string, user: Identity = BOB, id = random()) => {
    store.put(plant(`id of ${name}`, id), { user, cookie: {} })
    return plant(name, cookieFor(id))
  }

  // Every credential, every way in.
  const answered = async (request: string) => { keep(`the answer to ${request.slice(0, 20)}`)((await exchange(port, request)).received) }
  const everyWay = async (token: string, lines: string[] = []) => {
    const bearer = `Authorization: Bearer ${token}`
    const escaped = encodeURIComponent(token)
    for (const path of ['/strict', '/twice', '/nowhere']) {
      await answered(get(path, [bearer, ...lines]))
      await answered(get(`${path}?token=${escaped}`, lines))
    }
    // Fastify answers a URL that is none before any hook runs, and quotes it: to the log it must not come.
    await exchange(port, get(`/%zz?token=${escaped}`, lines))
    await answered(get(`/strict?a=b;%74oken=${escaped}&token=${token}`, lines))
    for (const path of ['/first', '/nowhere']) await answered(handshake([bearer, 'X-Rule: refuses', ...lines], { path }))
    for (const path of ['/nowhere', '/fails', '/strict']) await answered(handshake(lines, { path: `${path}?token=${escaped}&ticket=${token}` }))
    await answered(handshake([bearer, bearer, ...lines], { path: '/app' }))
    await answered(handshake([`Sec-WebSocket-Protocol: bearer.${token}`, ...lines], { path: '/app' }))
    await answered(handshake([`Sec-WebSocket-Protocol: hybrid-auth.v1, bearer.${token}`, 'X-Rule: refuses', ...lines], { path: '/app' }))
    await answered(handshake([...lines], { path: `/app?token=${escaped}&token=${escaped}` }))
    // What has no form of a token cannot be told from a name.
    if (token.includes('.')) await answered(handshake([`User-Agent: ${token}`, `Origin: https://evil.example/?${token}`, `Referer: https://app.example/?token=${escaped}`, ...lines], { path: '/app' }))
  }
  const peers: Peer[] = []
  const enter = async (name: string, options: PeerOptions): Promise<Peer> => {
    const peer = connect(t, host, { path: '/app', ...options })
    peers.push(peer)
    peer.socket.on('error', error => { keep(`the error of ${name}`)(error.message) })
    peer.socket.on('message', (data: Buffer) => { keep(`a frame to ${name}`)(data.toString()) })
    peer.closed.then(({ code, reason }) => { keep(`the close of ${name}`)(`${code} ${reason}`) }, () => {})
    await peer.opened.catch(() => {})
    return peer
  }
  const cookieOf = (cookie: string) => ({ token: null, headers: { cookie, origin: `http://${host}` } })

  const refused: Record<string, string> = {
    forged: plant('forged', signHs256(claims('alice'), {}, WRONG)),
    expired: mint('expired', 'alice', { exp: inSeconds(-10) }),
    early: mint('early', 'alice', { nbf: inSeconds(100) }),
    none: plant('none', `${Buffer.from('{"alg":"none"}').toString('base64url')}.${Buffer.from(JSON.stringify(claims('alice'))).toString('base64url')}.${random()}`),
    unusual: plant('unusual', signRaw('{ "alg": "HS256", "typ": "JWT" }', `{ "sub": "", "exp": ${inSeconds(100)}, "jti": "${random()}" }`, key)),
    opaque: plant('opaque', random(60)),
    revoked: mint('revoked'),
    hangs: mint('hangs', 'alice', {}, { kid: 'hangs' })
  }
  await app.hybridAuth.revoke({ token: refused.revoked ?? '' }, { reason: 'stolen' })
  for (const token of [mint('good'), ...Object.values(refused)]) await everyWay(token)
  for (const [i, cookie] of [seat('good cookie'), plant('forged cookie', cookieFor(random(), { secret: WRONG })), plant('unknown cookie', cookieFor(random()))].entries()) {
    await everyWay(mint(`with cookie ${i}`, 'alice', i === 0 ? { exp: inSeconds(-10) } : {}), [`Cookie: ${cookie}`, `Origin: http://${host}`])
    await answered(get('/strict', [`Cookie: ${cookie}`]))
    await answered(handshake([`Cookie: ${cookie}`, 'Origin: https://evil.example'], { path: '/app' }))
    await enter(`cookie ${i}`, cookieOf(cookie))
  }

  // Dependencies that quote what they were given.
  for (const i of faults('').keys()) {
    const token = mint(`key fault ${i}`, `user ${i}`, {}, { kid: `kid-${i}` })
    failing.set(`kid-${i}`, faults(token)[i])
    await answered(get('/strict', [`Authorization: Bearer ${token}`]))
    const open = await enter(`key fault ${i}`, { token: mint(`before key fault ${i}`, `open ${i}`) })
    open.send(JSON.stringify(updateOf(token)), 'say')
    await open.heard.reach(2)
    failing.delete(`kid-${i}`)
    failing.set(`user ${i}`, faults(token)[i])
    await answered(handshake([`Authorization: Bearer ${token}`], { path: '/app' }))
    for (const odd of ['', 'x']) {
      const cookie = seat(`store fault ${i}${odd}`, BOB, `${randomBytes(12).toString('hex')}${odd}`)
      const id = canaries.get(`id of store fault ${i}${odd}`) ?? ''
      failing.set(id, faults(id)[i])
      await answered(get('/strict', [`Cookie: ${cookie}`]))
    }
    const cookie = seat(`mapper fault ${i}`, { ...BOB, userId: `mapper ${i}` })
    failing.set(`mapper ${i}`, faults(cookie)[i])
    await answered(get('/strict', [`Cookie: ${cookie}`]))
  }
  await answered(get('/strict', [`Authorization: Bearer ${mint('rule fault')}`, `Cookie: ${seat('rule fault cookie')}`, 'X-Rule: throws']))

  // Over open sockets.
  const session = await enter('a session', cookieOf(seat('of an open socket')))
  const speaking = await enter('a speaker', { token: mint('of a speaker'), protocols: ['hybrid-auth.v1'] })
  const byQuery = await enter('a query', { token: null, path: `/app?token=${mint('of a query')}` })
  const byProtocol = await enter('a subprotocol', { token: null, protocols: ['hybrid-auth.v1', `bearer.${mint('of a subprotocol')}`] })
  for (const [i, peer] of [session, speaking, byQuery, byProtocol].entries()) {
    const token = mint(`in frames ${i}`)
    for (const word of ['parse', 'refuse', 'say', ...faults('').map((_, fault) => `throw ${fault}`)]) peer.send(`${word} ${token}`, Buffer.from(token))
    peer.send(`{"type":"auth_update","token":"${refused.forged}"}`, `{"type":"auth_update","token":["${token}"]}`, JSON.stringify(updateOf(mint(`refresh ${i}`))))
    await Promise.race([peer.settled().catch(() => {}), peer.closed])
  }
  const first = await enter('a first message', { token: null, path: '/first' })
  first.send(authFrame(mint('first message')), 'say')
  await first.heard.reach(1)
  for (const [i, token] of Object.values(refused).entries()) (await enter(`a refused first message ${i}`, { token: null, path: '/first' })).send(authFrame(token))
  for (const text of [`{"type":"auth","token":{"a":"${refused.forged}"}}`, `${'x'.repeat(9000)}${refused.forged}`]) {
    (await enter('a bad first message', { token: null, path: '/first' })).send(text)
  }
  const raw = rawConnect(t, port, { path: '/app', token: mint('raw'), first: Buffer.concat([frame('text', 'say'), frame('ping', mint('in a ping').slice(0, 120)), closeFrame(4000, mint('in a close').slice(-100))]) })
  await raw.closed
  await rawConnect(t, port, { path: '/app', token: mint('raw, broken'), first: frame('text', mint('not masked'), { mask: false }) }).closed

  // Tickets.
  for (const [i, headers] of [{ authorization: `Bearer ${mint('for a ticket')}` }, { cookie: seat('for a ticket cookie'), origin: `http://${host}` }].entries()) {
    const ticket = plant(`ticket ${i}`, await (await fetch(`http://${host}/ticket`, { method: 'POST', headers })).text())
    t.match(ticket, /^[js][\w-]{43}$/)
    const origin = i === 0 ? {} : { origin: `http://${host}` }
    await answered(get(`/strict?ticket=${ticket}`))
    for (let again = 0; again < 2; again++) await enter(`ticket ${i}`, { token: null, path: `/app?ticket=${ticket}`, headers: origin })
    await answered(handshake([`Authorization: Bearer ${refused.forged}`], { path: `/app?ticket=${ticket}` }))
  }
  for (const ticket of [plant('forged ticket', `j${random(32)}`), plant('malformed ticket', random(40))]) await answered(handshake([], { path: `/app?ticket=${ticket}&Ticket=${ticket}` }))

  // Commands, and those that are refused.
  const { hybridAuth } = app
  const [id, token] = [canaries.get('id of of an open socket') ?? '', canaries.get('of a query') ?? '']
  await hybridAuth.disconnect({ sessionId: id }, { code: 4444 })
  await hybridAuth.revoke({ token })
  await hybridAuth.revoke({ sessionId: id })
  const erin = await enter('who is revoked', { token: mint('who is revoked', 'erin') })
  await hybridAuth.revoke({ token: canaries.get('who is revoked') ?? '' })
  await erin.closed
  for (const [what, given] of Object.entries({ token: { token: `${token}.x` }, both: { token, sessionId: id }, list: { sessionId: [id] }, user: { userId: [token] } })) {
    await thrown(`revoke of ${what}`, () => hybridAuth.revoke(untyped(given)))
    await thrown(`revoke for ${what}`, () => hybridAuth.revoke({ userId: 'nobody' }, { reason: `${token}\n` }))
    await thrown(`disconnect of ${what}`, () => hybridAuth.disconnect(untyped(given), untyped({ code: token, reason: token })))
  }
  await thrown('close', () => { hybridAuth.connections()[0]?.close(untyped(token), token) })
  const logout = cookieOf(seat('of a logout')).headers
  await enter('a logout', { token: null, headers: logout })
  keep('the answer to a logout')(await (await fetch(`http://${host}/logout`, { method: 'POST', headers: logout })).text())

  // Rooms, and what else should be no name of one. What comes back goes to who said it.
  const inRooms = await connected(t, host, { path: '/rooms', token: mint('in rooms', 'frank') })
  for (const room of ['a', 'refused', mint('as a room'), `${mint('as no room')}*`]) {
    for (const say of [{ type: 'join', room }, { type: 'message', room, payload: room }, { type: 'leave', room }, { type: 'join', room }]) inRooms.send(JSON.stringify(say))
  }
  await inRooms.settled()
  await hybridAuth.setPermissions('frank', [])

  // Limits.
  const loud = await enter('a loud one', { token: mint('loud') })
  loud.send(...Array.from({ length: 500 }, () => `say ${refused.forged}`))
  await loud.closed
  for (let i = 0; i < 40; i++) await answered(get('/strict', [`Authorization: Bearer ${i % 2 === 0 ? refused.forged : refused.opaque}`]))
  for (let i = 0; i < 45; i++) await enter('one too many', { token: refused.unusual ?? '' })
  for (let i = 0; i < 70; i++) await answered(handshake([`Authorization: Bearer ${canaries.get('good')}`], { path: '/hello' }))

  // The end of everything that is left.
  const clock = setClock(t)
  await enter('who expires', { token: mint('who expires', 'dave', { exp: inSeconds(1) }), protocols: ['hybrid-auth.v1'] })
  clock.move(400_000)
  for (const connection of hybridAuth.connections()) lookNow(connection)
  output.push(['metrics', await registry.metrics()])
  await app.close()
  await Promise.all(peers.map(async ({ closed }) => closed))
  output.push(...all.log().split('\n').map((line): [string, string] => ['the log', line]))

  const types = new Set(output.filter(([from]) => from === 'audit').map(([, text]) => /"type":"(\w+)"/.exec(text)?.[1]))
  for (const type of EVENT_TYPES) if (!type.startsWith('cluster_')) t.ok(types.has(type), `there was traffic with ${type}`)
  for (const where of ['jwt', 'session', 'rule', 'authorize', 'rooms']) t.ok(all.log().includes(`"where":"${where}"`), `there was a fault in ${where}`)
  t.notMatch(output.filter(([from]) => from.startsWith('the answer')).map(([, text]) => text.slice(0, 12)).join(), ' 500', 'no fault is a 500')
  t.ok(canaries.size > 100, `${canaries.size} credentials`)
  t.same(grep(output, canaries), [])
})

t.test('the grep finds what is planted, in every spelling, and nothing else', t => {
  const [token, cookie, opaque] = [signHs256(claims('alice'), {}, WRONG), cookieFor('a-session-id+with/characters='), random(32)]
  const canaries = new Map([['token', token], ['cookie', cookie], ['opaque', opaque], ['phrase', 'a secret with spaces in it, and more']])
  const [header = '', payload = '', signature = ''] = token.split('.')
  const value = decodeURIComponent(cookie.slice('sessionId='.length))
  const planted = [
    token, JSON.stringify({ a: [{ token }] }), JSON.stringify(JSON.stringify(token)), `/?token=${encodeURIComponent(token)}&b`, payload, signature, `x${signature}y`, token.slice(0, header.length + 30),
    signature.slice(0, 24), Buffer.from(token).toString('base64'), Buffer.from(`Bearer ${token}`).toString('base64url'), Buffer.from(`x Bearer ${token}`).toString('base64'), Buffer.from(signature).toString('hex'),
    cookie, value, encodeURIComponent(value), JSON.stringify({ cookie }), opaque, `frame at ${opaque}:1:2`, opaque.slice(0, 25), 'it is a secret with spaces in it, and more'
  ]
  for (const text of planted) t.equal(grep([['here', text]], canaries).length, 1, text)
  for (const text of ['', header, 'eyJhbGciOiJIUzI1NiIs', 'sessionId=', random(32), signHs256({ a: 1 }, {}, WRONG), 'a-session-id']) t.same(grep([['here', text]], canaries), [], text)
  t.end()
})

t.test('of a cluster neither the secret, the password of Redis, nor a ticket comes out, and none stands in Redis', { ...needsRedis }, async t => {
  const all = collect(t)
  const { plant, keep, output, canaries } = all
  const redis = await startRedis(t)
  const admin = await connectRedis(t, redis.url)
  const [password, clusterSecret] = [plant('password', random()), plant('cluster secret', random(32))]
  plant('jwt secret', random(32))
  await admin.configSet('requirepass', password)
  const nodes: Array<Awaited<ReturnType<typeof world>>> = []
  for (const name of ['a', 'b']) {
    const client = await connectRedis(t, redis.url.replace('//', `//:${password}@`))
    client.on('error', (error: Error) => { keep(`an error of the client ${name}`)(error.message) })
    nodes.push(await world(t, all, { cluster: redisCluster(client, { secret: clusterSecret, timeout: 200, nodeTimeout: 1000 }), limits: { connections: { perUser: 5 } }, failures: { max: 2 } }))
  }
  const [a, b] = nodes
  if (a === undefined || b === undefined) throw new Error('no nodes')
  await eventually('both are there', () => nodes.every(({ app }) => app.hybridAuth.status().connected))
  const mint = (name: string, sub = 'alice') => plant(name, signHs256(claims(sub), {}, canaries.get('jwt secret') ?? ''))
  const sessionId = plant('session id', random())
  b.store.put(sessionId, { user: BOB, cookie: {} })
  const cookie = plant('cookie', cookieFor(sessionId))
  const open = async ({ host }: Server, options: PeerOptions) => {
    const peer = connect(t, host, { path: '/app', ...options })
    peer.closed.then(({ code, reason }) => { keep('a close')(`${code} ${reason}`) }, () => {})
    await peer.opened
    return peer
  }
  const tickets: string[] = []
  for (const name of ['taken', 'kept']) {
    const ticket = await (await fetch(`http://${a.host}/ticket`, { method: 'POST', headers: { authorization: `Bearer ${mint(`for the ticket ${name}`)}` } })).text()
    tickets.push(plant(`ticket ${name}`, ticket))
  }
  const peers = [await open(b, { token: null, path: `/app?ticket=${tickets[0]}` }), await open(b, { token: null, headers: { cookie, origin: `http://${b.host}` } }), await open(a, { token: mint('of a socket') })]
  for (const { port } of nodes) {
    for (let i = 0; i < 2; i++) keep('an answer')((await exchange(port, get('/strict', [`Authorization: Bearer ${i === 0 ? mint(`forged ${port}`) : plant(`of another ${port}`, signHs256(claims('alice'), {}, WRONG))}`]))).received)
  }
  await admin.xAdd('{hybrid-auth}:log', '*', { m: `${tickets[1]}:${canaries.get('of a socket')}` })
  await a.app.hybridAuth.revoke({ token: plant('of nobody', signHs256(claims('nobody'), {}, WRONG)) })
  const dump = []
  for (const name of await admin.keys('*')) {
    const type = await admin.type(name)
    const commands: Record<string, string[]> = { string: ['GET', name], hash: ['HGETALL', name], stream: ['XRANGE', name, '-', '+'], set: ['SMEMBERS', name], zset: ['ZRANGE', name, '0', '-1', 'WITHSCORES'], list: ['LRANGE', name, '0', '-1'] }
    dump.push(`${name} ${JSON.stringify(await admin.sendCommand(commands[type] ?? ['GET', name]))}`)
  }
  t.ok(dump.length > 3, `${dump.length} keys`)
  // What the test itself wrote there is not the library's.
  output.push(...dump.map((text): [string, string] => ['Redis', text.replaceAll(`${tickets[1]}:${canaries.get('of a socket')}`, '')]))
  await a.app.hybridAuth.revoke({ sessionId })
  await a.app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'all of it' })
  await Promise.all(peers.map(async ({ closed }) => closed))
  await redis.kill()
  await eventually('it is lost', () => nodes.every(({ app }) => !app.hybridAuth.status().connected && app.hybridAuth.status().lostSince !== null))
  for (const { port } of nodes) keep('an answer')((await exchange(port, handshake([], { path: `/app?ticket=${tickets[1]}` }))).received)
  await redis.restart()
  await eventually('it is back', () => nodes.every(({ app }) => app.hybridAuth.status().connected), 10_000)
  for (const { app } of nodes) await app.close()
  output.push(...all.log().split('\n').map((line): [string, string] => ['the log', line]))
  for (const type of ['cluster_lost', 'cluster_recovered', 'revoked', 'brute_force_suspected']) t.ok(output.some(([from, text]) => from === 'audit' && text.includes(`"type":"${type}"`)), type)
  t.same(grep(output, canaries), [])
})

t.test('a function for subprotocols that fails, quoting them, is logged without', async t => {
  const all = collect(t)
  const token = all.plant('token', signHs256(claims('alice')))
  const quote = (offered: Set<string>): never => { throw new Error([...offered].join()) }
  const { host } = await serveLive(t, { websocket: { options: { handleProtocols: quote } }, fastify: { logger: all.logger } })
  const peer = connect(t, host, { token: null, protocols: ['chat', 'hybrid-auth.v1', `bearer.${token}`] })
  await peer.opened.catch((error: unknown) => { all.keep('the error')(String(error)) })
  peer.socket.terminate()
  await peer.closed
  t.match(all.log(), /handleProtocols/)
  t.same(grep([...all.output, ['the log', all.log()]], all.canaries), [])
})

/** What a test that is watched does at its end. */
function watched (options?: Parameters<typeof watch>[1]) {
  const ends: Array<() => unknown> = []
  const given = watch({ teardown (end: () => unknown) { ends.push(end) } }, options)
  return { given, end: () => { for (const run of ends) run() } }
}

t.test('a test whose server writes down a registered credential fails, whenever that was registered', async t => {
  const before = secret(signHs256(claims('alice'), {}, WRONG))
  const planted: Record<string, (log: { info: (what: unknown, text?: string) => void }) => string> = {
    'a token': log => { log.info({ here: before }); return before },
    'a token, later registered': log => { const token = signHs256(claims('bob'), {}, WRONG); log.info(`it is ${token}`); return token },
    'a signature': log => { log.info(`'${before.split('.')[2]}'`); return before },
    'the beginning of a signature': log => { log.info(`${before.split('.')[2]?.slice(0, 20)}…`); return before },
    'a token in a URL': log => { log.info({ url: `/live?token=${encodeURIComponent(before)}` }); return before },
    'a cookie': log => { const cookie = cookieFor('s1'); log.info(cookie); return cookie },
    'the value of a cookie': log => { const cookie = cookieFor('s1+/'); log.info(decodeURIComponent(cookie)); return cookie },
    'a session id': log => { const id = random(); log.info({ id }); return id },
    'base64 of it': log => { const id = random(); log.info(Buffer.from(id).toString('base64')); return id },
    'a secret with spaces': log => { const phrase = secret('a phrase of words that nobody says'); log.info(`is ${phrase}`); return phrase }
  }
  for (const [what, plant] of Object.entries(planted)) {
    await t.test(what, async t => {
      const { given, end } = watched()
      const server = await serveLive(t, { fastify: given })
      secret(plant(server.app.log))
      t.throws(end, /credentials were written down/)
    })
  }
})

t.test('a test whose server tells a registered credential in an event fails, whatever its logger', async t => {
  const { given, end } = watched({ logger: false })
  t.same(given, { logger: false }, 'its logger is its own')
  // The helpers' servers are watched themselves.
  const app = Fastify(given)
  t.teardown(() => app.close())
  await app.register(hybridAuth, { jwt: JWT })
  const id = secret(random())
  await app.hybridAuth.disconnect({ userId: id })
  t.throws(end, new RegExp(id))
})

t.test('a test whose server does neither passes', async t => {
  const { given, end } = watched({ bodyLimit: 100 })
  t.match(given, { bodyLimit: 100, logger: { level: 'trace' } })
  const { app, host } = await serveLive(t, { fastify: given })
  const token = secret(signHs256(claims('alice')))
  const peer = connect(t, host, { token })
  await peer.opened
  peer.send('echo')
  await peer.heard.reach(1)
  await app.close()
  end()
  const recorder = new Recorder()
  recorder.read(`${random()} eyJ `)
  t.same(recorder.leaks(), [])
  recorder.read(token)
  t.same(recorder.leaks(), [token])
})
