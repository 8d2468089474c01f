/** Tokens of a real authorization server (`oidc-provider`), found by discovery, while its keys rotate and while it is slow, wrong or dead. */
import t, { type Test } from 'tap'
import type { JwtOptions } from '../lib/index.js'
import { discover, type JwksOptions } from '../lib/verify/providers.js'
import { live, type Live } from './live.js'
import { hangs, issuerKey, realIssuer, says, type RealIssuer } from './provider.js'

// It says so once for each, on a Node that it has not been tested with, and of what is meant for development.
const { warn, info } = console
t.before(() => { console.warn = console.info = () => {} })
t.teardown(() => { Object.assign(console, { warn, info }) })

interface Guarded extends Live { status: (token: string) => Promise<number> }

async function guarded (t: Test, { issuer, audience }: RealIssuer, settings: JwksOptions = {}, jwt: Partial<JwtOptions> = {}): Promise<Guarded> {
  const key = discover(issuer, settings)
  const server = await live(t, { auth: { jwt: { algorithms: ['RS256'], issuer, audience, typ: 'at+jwt', ...jwt, key }, heartbeat: false } })
  return {
    ...server,
    async status (token) {
      const answer = await fetch(`http://${server.host}/me`, { headers: { authorization: `Bearer ${token}` } })
      await answer.arrayBuffer()
      return answer.status
    }
  }
}

/** The clock that keys grow old by, moved and never stopped. */
function ageing (t: Test): (ms: number) => void {
  const now = performance.now.bind(performance)
  let offset = 0
  performance.now = () => now() + offset
  t.teardown(() => { Reflect.deleteProperty(performance, 'now') })
  return ms => { offset += ms }
}

t.test('a token of a real provider opens a socket and answers a request', async t => {
  const issuer = await realIssuer(t, issuerKey('k1', 'RS256'))
  const server = await guarded(t, issuer)
  const token = await issuer.token()
  const answer = await fetch(`http://${server.host}/me`, { headers: { authorization: `Bearer ${token}` } })
  t.match(await answer.json(), { authType: 'jwt', userId: issuer.clientId, permissions: ['read'] })
  const { peer, there } = await server.open({ token })
  t.equal(there.connection.context.userId, issuer.clientId)
  t.ok(await peer.echoed('hello'))
  const speaking = await server.open({ token: await issuer.token(), speaks: true })
  speaking.peer.say({ type: 'auth_update', token: await issuer.token() })
  t.match(await speaking.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  t.equal(issuer.door.hits, 1)
  t.equal(issuer.door.discoveries, 1)
})

for (const alg of ['RS256', 'PS256', 'ES256', 'EdDSA'] as const) {
  t.test(`a token of a real provider that signs with ${alg} is good, and one with a bit turned is not`, async t => {
    const issuer = await realIssuer(t, issuerKey('k1', alg))
    const server = await guarded(t, issuer, {}, { algorithms: [alg] })
    const token = await issuer.token()
    const bytes = Buffer.from(token.slice(token.lastIndexOf('.') + 1), 'base64url')
    bytes.writeUInt8(bytes.readUInt8(8) ^ 1, 8)
    t.equal(await server.status(token.slice(0, token.lastIndexOf('.') + 1) + bytes.toString('base64url')), 401)
    t.equal(await server.status(token), 200)
  })
}

t.test('a token for another audience, or of another type, is refused', async t => {
  const issuer = await realIssuer(t, issuerKey('k1', 'RS256'))
  const token = await issuer.token()
  t.equal(await (await guarded(t, issuer, {}, { audience: 'urn:other' })).status(token), 401)
  t.equal(await (await guarded(t, issuer, {}, { typ: 'JWT' })).status(token), 401)
})

t.test('75: the same kid at two real providers is two keys', async t => {
  const [a, b] = [await realIssuer(t, issuerKey('k1', 'RS256')), await realIssuer(t, issuerKey('k1', 'RS256'))]
  const [ofA, ofB] = [await a.token(), await b.token()]
  const alone = await guarded(t, a)
  t.strictSame([await alone.status(ofA), await alone.status(ofB)], [200, 401])
  t.equal(b.door.hits, 0)
  const both = await live(t, { auth: { jwt: { algorithms: ['RS256'], key: discover([a.issuer, b.issuer]) }, heartbeat: false } })
  for (const token of [ofA, ofB]) {
    const answer = await fetch(`http://${both.host}/me`, { headers: { authorization: `Bearer ${token}` } })
    t.equal(answer.status, 200)
  }
})

t.test('73: a rotation refuses no good token of either key while both are published', async t => {
  const move = ageing(t)
  const [first, second] = [issuerKey('k1', 'RS256'), issuerKey('k2', 'RS256')]
  const issuer = await realIssuer(t, first)
  const server = await guarded(t, issuer)
  const before = [await issuer.token(), await issuer.token(), await issuer.token(), await issuer.token()]
  t.equal(await server.status(before[0] ?? ''), 200)
  const { peer } = await server.open({ token: before[0] ?? '' })

  await issuer.rotate(first, second)
  t.equal(await server.status(await issuer.token()), 200, 'published, and not used yet')
  await issuer.rotate(second, first)
  const after = await Promise.all(Array.from({ length: 20 }, () => issuer.token()))
  t.equal(headerOf(after[0] ?? '').kid, 'k2', 'it signs with the new key')
  t.strictSame(await Promise.all(after.map(server.status)), after.map(() => 200))
  t.equal(issuer.door.hits, 2, 'one request for the new key')
  t.equal(await server.status(before[1] ?? ''), 200, 'a token of the old key')

  await issuer.rotate(second)
  t.equal(await server.status(before[2] ?? ''), 200, 'removed, and the keys are young')
  move(600_000)
  t.equal(await server.status(before[3] ?? ''), 401, 'removed')
  t.equal(await server.status(await issuer.token()), 200)
  t.ok(await peer.echoed('an open socket goes on'))
})

t.test('72: a provider that is killed leaves known keys as they are, and a cold server without any', async t => {
  const move = ageing(t)
  const key = issuerKey('k1', 'RS256')
  const issuer = await realIssuer(t, key)
  const tokens = await Promise.all(Array.from({ length: 6 }, () => issuer.token()))
  const [one = '', two = '', three = '', four = '', five = '', six = ''] = tokens
  const warm = await guarded(t, issuer)
  t.equal(await warm.status(one), 200)
  await issuer.door.kill()
  const cold = await guarded(t, issuer)
  t.equal(await cold.status(one), 503)
  await t.rejects(cold.open({ token: one }), /503/)
  t.equal(await warm.status(two), 200)
  move(600_000)
  t.equal(await warm.status(three), 200, 'old keys')
  const { peer } = await warm.open({ token: four })
  move(86_400_000)
  t.equal(await warm.status(five), 503, 'keys that are too old')
  t.ok(await peer.echoed('who is here stays'))
  await issuer.rotate(key)
  move(1000)
  t.equal(await cold.status(one), 200, 'it is back')
  t.equal(await warm.status(six), 200)
})

t.test('72: a real provider behind a door that is slow, wrong, huge or shut', async t => {
  const move = ageing(t)
  const issuer = await realIssuer(t, issuerKey('k1', 'RS256'))
  const { door } = issuer
  const settings = { maxAge: 10_000, maxStale: 20_000, timeout: 500 }
  const warm = await guarded(t, issuer, settings)
  t.equal(await warm.status(await issuer.token()), 200)
  const real = door.keys
  for (const [what, answer] of Object.entries({
    wrong: says('<html>', { type: 'text/html' }), huge: says(Buffer.alloc(10 * 1024 * 1024)), hanging: hangs, failing: says('', { status: 502 })
  })) {
    for (const at of ['keys', 'metadata'] as const) {
      issuer.open()
      move(10_000)
      t.equal(await warm.status(await issuer.token()), 200, `${what}: open again`)
      door[at] = answer
      move(10_000)
      t.equal(await warm.status(await issuer.token()), 200, `${what} ${at}: the last good keys`)
      const cold = await guarded(t, issuer, settings)
      t.equal(await cold.status(await issuer.token()), 503, `${what} ${at}: none`)
    }
  }
  issuer.open()
  move(10_000)
  door.keys = (request, response) => { setTimeout(() => { real(request, response) }, 150) }
  const slow = await guarded(t, issuer, settings)
  t.equal(await slow.status(await issuer.token()), 200, 'slow, and in time')
})

function headerOf (token: string): { kid?: string } {
  return JSON.parse(Buffer.from(token.split('.', 1)[0] ?? '', 'base64url').toString()) as { kid?: string }
}
