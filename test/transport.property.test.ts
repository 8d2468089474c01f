/** Whatever bytes a client sends where a credential or a path stands, it gets a coded answer, and the process lives. */
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { serializers } from '../lib/index.js'
import { build, goodToken, JWT, keepLines, statusOf, upgrade } from './helpers.js'
import { ask, cookieFor, logTo, MapStore, rawAnswer, serveFromStore } from './stores.js'

const RUNS = { numRuns: 150 }
const CODED = [400, 401, 403, 404, 414, 431]
const CR = 13
const LF = 10

/** Any bytes at all, as text of one character per byte; sometimes near what is expected there. */
const anyBytes = (near: string[]) => fc.oneof(
  fc.uint8Array({ maxLength: 300 }).map(latin1),
  fc.uint8Array({ maxLength: 300 }).map(bytes => latin1(bytes.filter(byte => byte !== CR && byte !== LF))),
  fc.tuple(fc.constantFrom(...near), fc.uint8Array({ maxLength: 40 }), fc.constantFrom(...near)).map(([before, bytes, after]) => before + latin1(bytes) + after),
  fc.tuple(fc.constantFrom(...near), fc.nat({ max: 200 }), fc.nat({ max: 255 })).map(([text, at, byte]) => text.slice(0, at) + String.fromCharCode(byte) + text.slice(at + 1))
)

function latin1 (bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('latin1')
}

/** A handshake that no header can keep waiting: it says that nothing follows. */
function request (target: string, lines: string[], isUpgrade = true): string {
  return [
    `GET ${target} HTTP/1.1`, 'Host: 127.0.0.1', ...(isUpgrade ? ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='] : ['Connection: close']),
    ...lines, '', ''
  ].join('\r\n')
}

async function holds (t: Test, port: number, arbitrary: fc.Arbitrary<string>, toRequest: (text: string) => string): Promise<void> {
  await fc.assert(fc.asyncProperty(arbitrary, async text => {
    const answer = await rawAnswer(port, toRequest(text))
    if (!CODED.includes(statusOf(answer))) throw new Error(`answered ${answer.split('\r\n', 1)[0] ?? ''}`)
  }), RUNS)
  t.equal((await ask(`127.0.0.1:${port}`)).status, 401, 'the process lives')
}

/** A server per reader of the session, each with everything turned on. */
async function servers (t: Test) {
  const auth = { jwt: JWT, credentials: { query: true }, failures: false } as const
  const store = new MapStore().put('s1', { user: { userId: 'bob' }, cookie: {} })
  // A path may hold anything, and Fastify logs it: what is looked for in the log is below.
  return [await build(t, { auth, fastify: { logger: false } }), await serveFromStore(t, { store }, { auth, fastify: { logger: false } })]
}

t.test('any bytes as Origin beside a good cookie are refused with a code', async t => {
  const store = new MapStore().put('s1', { user: { userId: 'bob' }, cookie: {} })
  const near = ['https://app.example.co', 'https://a.example.com.', 'null', 'http://[::1', 'https://']
  for (const origins of [undefined, ['https://*.example.com']]) {
    const { port } = await serveFromStore(t, { store }, { auth: { origins } })
    await holds(t, port, anyBytes(near), text => request('/live', [`Cookie: ${cookieFor('s1')}`, `Origin: ${text}`]))
  }
  t.equal(store.reads, 0, 'and the store was never read')
})

t.test('any bytes as Cookie are refused with a code', async t => {
  const near = ['sessionId=', 'sessionId=s1.', `${cookieFor('s1')}x`, 'sessionId=%', '; ', '__proto__=']
  for (const { port } of await servers(t)) {
    await holds(t, port, anyBytes(near), text => request('/live', ['Origin: http://127.0.0.1', `Cookie: ${text}`]))
  }
})

t.test('any bytes as Authorization are refused with a code', async t => {
  const near = ['Bearer ', `Bearer ${goodToken()}x`, 'bearer', 'Basic ', 'Bearer a.b.c', '.']
  for (const { port } of await servers(t)) {
    await holds(t, port, anyBytes(near), text => request('/live', [`Authorization: ${text}`]))
    await holds(t, port, anyBytes(near), text => request('/me', [`Authorization: ${text}`], false))
  }
})

t.test('any bytes as Sec-WebSocket-Protocol are refused with a code', async t => {
  // Without our own name among them: who offers that is told by close code.
  const near = ['bearer.', `chat, bearer.${goodToken()}x`, 'bearer.a.b.c', ', ', 'hybrid-auth.v']
  for (const { port } of await servers(t)) {
    await holds(t, port, anyBytes(near).map(text => text.replaceAll('hybrid-auth.v1', 'hybrid-auth.v2')), text => request('/live', [`Sec-WebSocket-Protocol: ${text}`]))
  }
})

t.test('any bytes as path and query are refused with a code', async t => {
  const near = ['live?token=', '?token=', `live?token=${goodToken()}x`, 'live', '%6cive', '/live?', 'live;', '%', 'live?token[]=']
  for (const { port } of await servers(t)) {
    await holds(t, port, anyBytes(near), text => request(`/${text}`, [], false))
    // @fastify/websocket keeps the socket of an upgrade whose path cannot be decoded for ever.
    await holds(t, port, anyBytes(near).map(text => text.replaceAll('%', '')), text => request(`/${text}`, []))
    await holds(t, port, anyBytes(['token=', '&token=', 'token=a.b.c', '%74oken=', 'token[]=', '=', '&']), text => request(`/live?${text}`, []))
  }
})

t.test('no bytes around a token in the URL bring it into the log', async t => {
  const log = keepLines()
  const { port } = await build(t, { auth: { credentials: { query: true } }, fastify: logTo(log.stream, { serializers }) })
  const token = 'canary-4711'
  const names = fc.constantFrom('token', '%74oken', 'token[]', 'tok%65n', 'TOKEN', 'a=b&token')
  const rest = fc.string({ unit: fc.constantFrom('a', '=', '&', '%', '2', '6', ';', '?', '/', '[', ']', '+', '.'), maxLength: 12 })
  await fc.assert(fc.asyncProperty(fc.constantFrom('/me', '/nowhere', '/login'), rest, names, rest, async (path, before, name, after) => {
    const already = log.text().length
    await rawAnswer(port, request(`${path}?${before}&${name}=${token}${after}`, [], false))
    if (log.text().includes(token, already)) throw new Error('the token is in the log')
  }), RUNS)
})

t.test('any bytes beside good credentials never end in a 5xx', async t => {
  const { host, port } = await build(t, { auth: { credentials: { query: true } } })
  const authorization = `Authorization: Bearer ${goodToken()}`
  await fc.assert(fc.asyncProperty(fc.constantFrom('Origin', 'Cookie', 'Sec-WebSocket-Protocol', 'X-Forwarded-For', 'Sec-WebSocket-Extensions', 'Sec-WebSocket-Key'), anyBytes(['a', 'chat', 'sessionId=', 'http://']), async (name, text) => {
    const status = statusOf(await rawAnswer(port, request('/live', [authorization, `${name}: ${text}`])))
    if (status !== 101 && !CODED.includes(status)) throw new Error(`answered ${status}`)
  }), RUNS)
  t.equal((await upgrade(t, host)).status, 401)
})
