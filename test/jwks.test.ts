/** Keys that an issuer publishes: what is asked of it and when, which keys count, and what becomes of tokens while it is slow, wrong or dead. */
import { createHash, createSecretKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import type { RequestListener } from 'node:http'
import { inspect } from 'node:util'
import { gzipSync } from 'node:zlib'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import hybridAuth, { type Algorithm, type JwtOptions } from '../lib/index.js'
import type { ParsedJwtOptions } from '../lib/options.js'
import { fetchBounded, ProviderFailed } from '../lib/verify/fetch.js'
import { discover, jwks, type KeySource } from '../lib/verify/providers.js'
import { realmOf } from '../lib/verify/realm.js'
import { secret as canary } from './canary.js'
import { goodClaims, SECRET, signHs256 } from './helpers.js'
import { eventually, live, setClock, type Live } from './live.js'
import { fakeIssuer, garbled, hangs, issuerKey, mint, mintRaw, publishes, says, saysJson, stopwatch, type FakeIssuer, type IssuerKey, type Jwk } from './provider.js'
import { deferred } from './stores.js'

/** For tests of one thing at a time: whoever is asked has answered long before, and nothing gets old unless it is made to. */
const TIMES = { maxAge: 10_000, maxStale: 60_000, cooldown: 5000, timeout: 2000 }
const UNAVAILABLE = 503
const REFUSED = 401

interface Guarded extends Live {
  /** What `/me` answers to a token. */
  status: (token: string) => Promise<number>
}

async function guarded (t: Test, key: KeySource, jwt: Partial<JwtOptions> = {}): Promise<Guarded> {
  const server = await live(t, { auth: { jwt: { algorithms: ['ES256'], ...jwt, key }, heartbeat: false } })
  return {
    ...server,
    async status (token) {
      const answer = await fetch(`http://${server.host}/me`, { headers: { authorization: `Bearer ${token}` } })
      await answer.arrayBuffer()
      return answer.status
    }
  }
}

const times = <T>(n: number, make: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => make(i))
/** How many there are of each. */
function tally (statuses: readonly number[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const status of statuses) counts[status] = (counts[status] ?? 0) + 1
  return counts
}

/** Answers when the test says so. */
function held (answer: RequestListener): { listener: RequestListener, release: () => void } {
  const gate = deferred<undefined>()
  return {
    listener (request, response) { gate.promise.then(() => { answer(request, response) }) },
    release () { gate.resolve(undefined) }
  }
}

t.test('71: 1 000 tokens with made-up kids make one request, and good tokens pass meanwhile', async t => {
  const clock = stopwatch(t)
  const key = issuerKey('k1')
  const issuer = await fakeIssuer(t, key)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(key)), 200)
  t.equal(issuer.hits, 1)

  const slow = held(publishes(key))
  issuer.keys = slow.listener
  const made = Promise.all(times(1000, i => server.status(mint(key, {}, { kid: `made-up-${i}` }))))
  await eventually('the first of them makes the keys be looked for', () => issuer.hits === 2)
  t.strictSame(tally(await Promise.all(times(50, () => server.status(mint(key))))), { 200: 50 }, 'good tokens do not wait for it')
  slow.release()
  t.strictSame(tally(await made), { [REFUSED]: 1000 })
  t.equal(issuer.hits, 2)

  t.strictSame(tally(await Promise.all(times(100, i => server.status(mint(key, {}, { kid: `late-${i}` }))))), { [REFUSED]: 100 })
  clock.move(TIMES.cooldown - 1)
  t.equal(await server.status(mint(key, {}, { kid: 'later' })), REFUSED)
  t.equal(issuer.hits, 2, 'nobody is asked again within the cooldown')
  clock.move(1)
  t.equal(await server.status(mint(key, {}, { kid: 'latest' })), REFUSED)
  t.equal(issuer.hits, 3, 'and once after it')
})

t.test('71: a rotation is found after the cooldown by one request, however many tokens of the new key come at once', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(first)), 200)
  t.equal(await server.status(mint(second)), REFUSED, 'it is not published yet')
  t.equal(issuer.hits, 2)
  issuer.keys = publishes(first, second)
  clock.move(TIMES.cooldown - 1)
  t.equal(await server.status(mint(second)), REFUSED)
  clock.move(1)
  const slow = held(publishes(first, second))
  issuer.keys = slow.listener
  const answers = Promise.all(times(100, () => server.status(mint(second))))
  await eventually('it is asked', () => issuer.hits === 3)
  t.equal(await server.status(mint(first)), 200)
  slow.release()
  t.strictSame(tally(await answers), { 200: 100 })
  t.equal(issuer.hits, 3)
})

t.test('71: a rotation that nobody made kids up before is found at once', async t => {
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first)
  const server = await guarded(t, jwks(issuer.url))
  t.equal(await server.status(mint(first)), 200)
  issuer.keys = publishes(second, first)
  t.equal(await server.status(mint(second)), 200)
  t.equal(await server.status(mint(first)), 200)
  t.equal(issuer.hits, 2)
})

t.test('71: a cold start with 1 000 tokens at once makes one request', async t => {
  const key = issuerKey('k1')
  const issuer = await fakeIssuer(t)
  const slow = held(publishes(key))
  issuer.keys = slow.listener
  const server = await guarded(t, jwks(issuer.url, TIMES))
  let arrived = 0
  server.app.server.on('request', () => { arrived++ })
  const answers = Promise.all(times(1000, () => server.status(mint(key))))
  await eventually('all of them wait', () => arrived === 1000 && issuer.hits === 1, 20_000)
  slow.release()
  t.strictSame(tally(await answers), { 200: 1000 })
  t.equal(issuer.hits, 1)
})

t.test('71: two registrations of one source have each their own keys', async t => {
  const [es, rs] = [issuerKey('es'), issuerKey('rs', 'RS256')]
  const issuer = await fakeIssuer(t, es, rs)
  const source = jwks(issuer.url, TIMES)
  const [first, second] = [await guarded(t, source), await guarded(t, source, { algorithms: ['RS256'] })]
  t.strictSame([await first.status(mint(es)), await first.status(mint(rs))], [200, REFUSED])
  t.strictSame([await second.status(mint(es)), await second.status(mint(rs))], [REFUSED, 200])
})

const KEY = issuerKey('k1')
const GOOD = JSON.stringify({ keys: [KEY.jwk] })
/** As many unusable keys as it takes, and the good one. */
const crowd = (n: number) => publishes(KEY, ...times(n - 1, i => ({ kty: 'none', kid: `n${i}` })))
const resets: RequestListener = request => { request.socket.resetAndDestroy() }
const WRONG: Record<string, RequestListener> = {
  'status 500': says('', { status: 500 }),
  'status 500 with the keys': says(GOOD, { status: 500 }),
  'status 404': says('not here', { status: 404, type: 'text/plain' }),
  'status 204, with no body at all': says('', { status: 204 }),
  'status 201 with the keys': says(GOOD, { status: 201 }),
  'a redirect to itself': says('', { status: 302, headers: { location: '/jwks' } }),
  'a redirect with the keys as its body': says(GOOD, { status: 307, headers: { location: '/jwks' } }),
  'a redirect to nowhere': says('', { status: 301, headers: { location: 'http://127.0.0.1:1/' } }),
  HTML: says('<!doctype html><title>Sign in</title>', { type: 'text/html' }),
  '10 MB': says(Buffer.alloc(10 * 1024 * 1024, ' ')),
  '10 MB with the keys at the front': says(GOOD + ' '.repeat(10 * 1024 * 1024)),
  '10 MB that were 10 KB on the wire': says(gzipSync(GOOD + ' '.repeat(10 * 1024 * 1024)), { headers: { 'content-encoding': 'gzip' } }),
  'half of the keys': says(GOOD.slice(0, GOOD.length / 2)),
  'less than it promised': (_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': String(GOOD.length + 10) }).write(GOOD, () => { response.destroy() })
  },
  'gzip that is none': says(GOOD, { headers: { 'content-encoding': 'gzip' } }),
  'a connection that is reset': resets,
  'what is no HTTP': request => { request.socket.end('SSH-2.0-OpenSSH_9.6\r\n') },
  'an empty body': says(''),
  'an empty object': says('{}'),
  'keys that are a number': says('{"keys":1}'),
  'keys that are null': says('{"keys":null}'),
  'keys that are an object': saysJson({ keys: { k1: KEY.jwk } }),
  'keys that are a text': saysJson({ keys: GOOD }),
  'a list': saysJson([KEY.jwk]),
  null: says('null'),
  'a number': says('42'),
  'a text': saysJson(GOOD),
  'a key alone': saysJson(KEY.jwk),
  'keys by another name': saysJson({ Keys: [KEY.jwk] }),
  '201 keys': crowd(201)
}

for (const [what, wrong] of Object.entries(WRONG)) {
  t.test(`72: ${what} for keys: 503 where there are none, else those that were good last, up to a bound`, async t => {
    const clock = stopwatch(t)
    const issuer = await fakeIssuer(t, KEY)
    const warm = await guarded(t, jwks(issuer.url, TIMES))
    t.equal(await warm.status(mint(KEY)), 200, 'good at first')
    issuer.keys = wrong

    issuer.hits = 0
    const cold = await guarded(t, jwks(issuer.url, TIMES))
    t.equal(await cold.status(mint(KEY)), UNAVAILABLE, 'without keys')
    t.equal(issuer.hits, 1)
    clock.move(999)
    t.equal(await cold.status(mint(KEY)), UNAVAILABLE)
    t.equal(issuer.hits, 1, 'it is left alone for a second')
    clock.move(1)
    t.equal(await cold.status(mint(KEY)), UNAVAILABLE)
    t.equal(issuer.hits, 2, 'and then asked again')

    clock.move(TIMES.maxAge - 1001)
    t.equal(await warm.status(mint(KEY)), 200, 'young keys ask for nothing')
    t.equal(issuer.hits, 2)
    clock.move(1)
    t.equal(await warm.status(mint(KEY)), 200, 'old keys are better than none')
    t.equal(issuer.hits, 3)
    t.equal(await warm.status(mint(KEY)), 200, 'in the pause as well')
    t.equal(issuer.hits, 3)
    clock.move(TIMES.maxStale - TIMES.maxAge - 1)
    t.equal(await warm.status(mint(KEY)), 200, 'up to the bound')
    clock.move(1)
    t.equal(await warm.status(mint(KEY)), UNAVAILABLE, 'and no longer')

    issuer.keys = publishes(KEY)
    clock.move(1000)
    t.equal(await warm.status(mint(KEY)), 200, 'when it is well again')
    t.equal(await cold.status(mint(KEY)), 200)
  })
}

t.test('72: as many keys as there may be are taken', async t => {
  const issuer = await fakeIssuer(t)
  issuer.keys = crowd(200)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(KEY)), 200)
})

t.test('72: keys are taken whatever the answer calls them, and in gzip', async t => {
  for (const answer of [
    says(GOOD, { type: 'application/jwk-set+json' }), says(GOOD, { type: 'text/plain; charset=utf-8' }), says(gzipSync(GOOD), { headers: { 'content-encoding': 'gzip' } }),
    says(GOOD + ' '.repeat(512 * 1024 - GOOD.length))
  ]) {
    const issuer = await fakeIssuer(t)
    issuer.keys = answer
    const server = await guarded(t, jwks(issuer.url, TIMES))
    t.equal(await server.status(mint(KEY)), 200)
  }
})

t.test('72: one byte too many is too much', async t => {
  const issuer = await fakeIssuer(t)
  issuer.keys = says(GOOD + ' '.repeat(512 * 1024 - GOOD.length + 1))
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(KEY)), UNAVAILABLE)
})

t.test('72: a redirect is not followed', async t => {
  const [issuer, other] = [await fakeIssuer(t), await fakeIssuer(t, KEY)]
  issuer.keys = says('', { status: 302, headers: { location: other.url } })
  issuer.metadata = says('', { status: 302, headers: { location: `${other.issuer}/.well-known/openid-configuration` } })
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(KEY)), UNAVAILABLE)
  const discovering = await guarded(t, discover(issuer.issuer, TIMES))
  t.equal(await discovering.status(mint(KEY, { iss: issuer.issuer })), UNAVAILABLE)
  t.strictSame(other.asked, [])
})

/** Bodies that come a byte at a time and never end. */
const drips: RequestListener = (_request, response) => {
  response.writeHead(200, { 'content-type': 'application/json' })
  const timer = setInterval(() => { response.write(' ') }, 10)
  response.on('close', () => { clearInterval(timer) })
}
for (const [what, slow] of Object.entries({ 'no answer': hangs, 'an answer that never ends': drips })) {
  t.test(`72: ${what}: 503 where there are no keys, else those that were good last, in the time that was set`, async t => {
    const clock = stopwatch(t)
    const issuer = await fakeIssuer(t, KEY)
    const options = { ...TIMES, timeout: 200 }
    const [warm, cold] = [await guarded(t, jwks(issuer.url, options)), await guarded(t, jwks(issuer.url, options))]
    t.equal(await warm.status(mint(KEY)), 200)
    issuer.keys = slow
    clock.move(TIMES.maxAge)
    for (const [about, server, status] of [['warm', warm, 200], ['cold', cold, UNAVAILABLE]] as const) {
      issuer.hits = 0
      const start = Date.now()
      t.strictSame(tally(await Promise.all(times(20, () => server.status(mint(KEY))))), { [status]: 20 }, about)
      const took = Date.now() - start
      t.ok(took >= 190 && took < 2000, `${about}: took ${took} ms`)
      t.equal(issuer.hits, 1)
    }
    clock.move(TIMES.maxStale)
    t.equal(await warm.status(mint(KEY)), UNAVAILABLE, 'keys that are too old')
    // A made-up kid waits no longer than a good one.
    issuer.keys = publishes(KEY)
    clock.move(1000)
    t.equal(await warm.status(mint(KEY)), 200)
    issuer.keys = slow
    const start = Date.now()
    t.equal(await warm.status(mint(KEY, {}, { kid: 'made-up' })), UNAVAILABLE)
    t.ok(Date.now() - start < 2000)
  })
}

t.test('72: old keys serve requests and sockets although the provider may take longer than a handshake', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t, KEY)
  const { host, open } = await live(t, {
    auth: { jwt: { key: jwks(issuer.url, { ...TIMES, timeout: 5000 }), algorithms: ['ES256'] }, handshakeTimeout: 2500, heartbeat: false }
  })
  const status = async () => (await fetch(`http://${host}/me`, { headers: { authorization: `Bearer ${mint(KEY)}` } })).status
  t.equal(await status(), 200)
  issuer.keys = hangs
  clock.move(TIMES.maxAge)
  const [http, { peer }] = await Promise.all([status(), open({ token: mint(KEY) })])
  t.equal(http, 200)
  t.ok(await peer.echoed('here'))
  t.equal(issuer.hits, 2, 'both wait for one request')
})

t.test('72: new keys that come after old ones were used count from then on', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first)
  const server = await guarded(t, jwks(issuer.url, { ...TIMES, timeout: 10_000 }))
  t.equal(await server.status(mint(first)), 200)
  const slow = held(publishes(second))
  issuer.keys = slow.listener
  clock.move(TIMES.maxAge)
  t.equal(await server.status(mint(first)), 200, 'the new ones are not there')
  const waiting = server.status(mint(second))
  slow.release()
  t.equal(await waiting, 200)
  t.equal(await server.status(mint(first)), REFUSED)
  t.equal(issuer.hits, 3, 'one for their age, one for the kid that is not there any more')
})

t.test('72: nobody is there, and then somebody', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t, KEY)
  await issuer.kill()
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.strictSame(tally(await Promise.all(times(20, () => server.status(mint(KEY))))), { [UNAVAILABLE]: 20 })
  await issuer.restart()
  t.equal(await server.status(mint(KEY)), UNAVAILABLE, 'in the pause')
  t.equal(issuer.hits, 0)
  clock.move(1000)
  t.equal(await server.status(mint(KEY)), 200)
  await issuer.kill()
  t.equal(await server.status(mint(KEY)), 200, 'known keys go on')
  clock.move(TIMES.maxAge)
  t.equal(await server.status(mint(KEY)), 200)
  clock.move(TIMES.maxStale - TIMES.maxAge)
  t.equal(await server.status(mint(KEY)), UNAVAILABLE)
})

t.test('72: a socket is refused by 503 and closed with 4012 where the keys cannot be had', async t => {
  const issuer = await fakeIssuer(t)
  issuer.keys = says('', { status: 500 })
  const server = await guarded(t, jwks(issuer.url, TIMES))
  await t.rejects(server.open({ token: mint(KEY) }), /503/)
  await t.rejects(server.open({ token: mint(KEY), speaks: true }), /4012/)
})

t.test('72: a kid that was looked for in vain because the provider failed is unavailable, and looked for again after a second', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(first)), 200)
  issuer.keys = resets
  t.equal(await server.status(mint(second)), UNAVAILABLE)
  issuer.keys = publishes(second, first)
  t.equal(await server.status(mint(first)), 200)
  clock.move(999)
  t.equal(await server.status(mint(second)), UNAVAILABLE, 'in the pause')
  t.equal(issuer.hits, 2)
  clock.move(1)
  t.equal(await server.status(mint(second)), 200)
  t.equal(issuer.hits, 3)
})

t.test('71: kids that are made up while the provider fails make one request in a second', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t, KEY)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(KEY)), 200)
  issuer.keys = says('', { status: 503 })
  for (let second = 1; second <= 3; second++) {
    const made = await Promise.all(times(100, i => server.status(mint(KEY, {}, { kid: `made-up-${second}-${i}` }))))
    t.strictSame(tally(made), { [UNAVAILABLE]: 100 })
    t.equal(await server.status(mint(KEY)), 200)
    t.equal(issuer.hits, 1 + second)
    clock.move(1000)
  }
})

t.test('72: a kid that is not known while old keys cannot be had anew is unavailable, not refused', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t, KEY)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(KEY)), 200)
  issuer.keys = says('', { status: 500 })
  clock.move(TIMES.maxAge)
  t.equal(await server.status(mint(issuerKey('k2'))), UNAVAILABLE)
  t.equal(await server.status(mint(issuerKey('k2'))), UNAVAILABLE, 'in the pause')
  t.equal(await server.status(mint(KEY)), 200)
})

t.test('73: a key that was removed counts until its keys are as old as they may be, and no longer', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first, second)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.strictSame([await server.status(mint(first)), await server.status(mint(second))], [200, 200])
  issuer.keys = publishes(second)
  clock.move(TIMES.maxAge - 1)
  t.equal(await server.status(mint(first)), 200)
  t.equal(issuer.hits, 1)
  clock.move(1)
  t.equal(await server.status(mint(first)), REFUSED)
  t.equal(await server.status(mint(second)), 200)
  t.equal(issuer.hits, 2)
  issuer.keys = publishes()
  clock.move(TIMES.maxAge)
  t.equal(await server.status(mint(second)), REFUSED, 'all were removed')
  issuer.keys = publishes(second)
  clock.move(TIMES.maxAge)
  t.equal(await server.status(mint(second)), 200)
})

t.test('73: a key that was replaced under its kid counts no longer', async t => {
  const clock = stopwatch(t)
  const [old, replaced] = [issuerKey('k1'), issuerKey('k1')]
  const issuer = await fakeIssuer(t, old)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(old)), 200)
  issuer.keys = publishes(replaced)
  clock.move(TIMES.maxAge)
  t.strictSame([await server.status(mint(old)), await server.status(mint(replaced))], [REFUSED, 200])
})

t.test('73: a verdict that is remembered is gone after 30 s where the key was removed', async t => {
  const watch = stopwatch(t)
  const clock = setClock(t)
  clock.freeze()
  const issuer = await fakeIssuer(t, KEY)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  const token = mint(KEY)
  t.equal(await server.status(token), 200)
  issuer.keys = publishes(issuerKey('k2'))
  watch.move(TIMES.maxAge)
  t.equal(await server.status(token), 200, 'remembered')
  clock.move(29_999)
  t.equal(await server.status(token), 200)
  t.equal(issuer.hits, 1)
  clock.move(1)
  t.equal(await server.status(token), REFUSED)
  t.equal(await server.status(token), REFUSED, 'and stays refused')
})

t.test('73: an open socket goes on when its key is removed, and is refreshed by a token of another key only', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first, second)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  const { peer } = await server.open({ token: mint(first), speaks: true })
  issuer.keys = publishes(second)
  clock.move(TIMES.maxAge)
  t.ok(await peer.echoed('still here'))
  peer.say({ type: 'auth_update', token: mint(first) })
  t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  t.ok(await peer.echoed('here after that'))
  issuer.keys = says('', { status: 500 })
  clock.move(TIMES.maxStale)
  peer.say({ type: 'auth_update', token: mint(second) })
  t.match(await peer.takeFrame('error'), { code: 'unavailable' })
  issuer.keys = publishes(second)
  clock.move(1000)
  peer.say({ type: 'auth_update', token: mint(second) })
  t.match(await peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  t.ok(await peer.echoed('and now'))
})

/** A key in a set beside a good one, and a token by it that would be good if the key were. */
interface Odd { readonly jwk: Jwk, readonly token: string }
const ODD_CLAIMS = () => goodClaims()

function odd (more: Jwk, alg: Algorithm = 'ES256', pair?: { publicKey: KeyObject, privateKey: KeyObject }): Odd {
  const key = issuerKey('odd', alg, more, pair)
  return { jwk: key.jwk, token: mint(key) }
}

/** With an exponent of 1 the signature is what was to be signed: everybody can make it. */
function exponentOfOne (): Odd {
  const { jwk } = issuerKey('odd', 'RS256', { e: 'AQ' }, RSA)
  const input = [{ alg: 'RS256', kid: 'odd' }, ODD_CLAIMS()].map(part => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
  const digestInfo = Buffer.concat([Buffer.from('3031300d060960864801650304020105000420', 'hex'), createHash('sha256').update(input).digest()])
  const padded = Buffer.concat([Buffer.from([0, 1]), Buffer.alloc(256 - 3 - digestInfo.length, 0xff), Buffer.from([0]), digestInfo])
  return { jwk, token: canary(`${input}.${padded.toString('base64url')}`) }
}

const SECRET_JWK = createSecretKey(Buffer.from(SECRET)).export({ format: 'jwk' })
const rsaOf = (modulusLength: number) => generateKeyPairSync('rsa', { modulusLength })
const RSA = rsaOf(2048)
const GOOD_KEYS = { ES256: issuerKey('good'), RS256: issuerKey('good', 'RS256') }

const ODD: Record<string, () => Odd> = {
  'of use enc': () => odd({ use: 'enc' }),
  'of a use that is not known': () => odd({ use: 'SIG' }),
  'of a use that is null': () => odd({ use: null }),
  'of a use that is a list': () => odd({ use: ['sig'] }),
  'with key_ops without verify': () => odd({ key_ops: ['sign', 'encrypt'] }),
  'with no key_ops at all': () => odd({ key_ops: [] }),
  'with key_ops that are a text': () => odd({ key_ops: 'verify' }),
  'with key_ops that are null': () => odd({ key_ops: null }),
  'of use sig with key_ops of deriveKey': () => odd({ use: 'sig', key_ops: ['deriveKey'] }),
  'of another alg': () => odd({ alg: 'ES384' }),
  'of an alg of another family': () => odd({ alg: 'RS256' }),
  'of alg none': () => odd({ alg: 'none' }),
  'of alg HS256': () => odd({ alg: 'HS256' }),
  'of an alg that is null': () => odd({ alg: null }),
  'of an alg that is a list': () => odd({ alg: ['ES256'] }),
  'that is private': () => {
    const key = issuerKey('odd')
    return { jwk: { ...key.jwk, ...key.privateKey.export({ format: 'jwk' }) }, token: mint(key) }
  },
  'with a private member that is empty': () => odd({ d: '' }),
  'with a private member that is null': () => odd({ d: null }),
  'on P-384': () => odd({ alg: 'ES256' }, 'ES256', generateKeyPairSync('ec', { namedCurve: 'P-384' })),
  'on secp256k1': () => odd({}, 'ES256', generateKeyPairSync('ec', { namedCurve: 'secp256k1' })),
  'on P-256 that calls itself P-384': () => odd({ crv: 'P-384' }),
  'on a curve that is not known': () => odd({ crv: 'P-257' }),
  'without a curve': () => odd({ crv: undefined }),
  'whose point is not on the curve': () => odd({ x: Buffer.alloc(32, 1).toString('base64url') }),
  'of no kty': () => odd({ kty: undefined }),
  'of a kty that is a number': () => odd({ kty: 5 }),
  'of another kty': () => odd({ kty: 'OKP' }),
  'with x of a number': () => odd({ x: 1 })
}
const ODD_RSA: Record<string, () => Odd> = {
  'of RSA with 1024 bits': () => odd({}, 'RS256', rsaOf(1024)),
  'of RSA with 2047 bits': () => odd({}, 'RS256', rsaOf(2047)),
  'with an exponent of 1': exponentOfOne,
  'of RSA without a modulus': () => odd({ n: undefined }, 'RS256', RSA),
  'of RSA for encryption': () => odd({ alg: 'RSA-OAEP' }, 'RS256', RSA),
  'of RSA that is private': () => {
    const key = issuerKey('odd', 'RS256', {}, RSA)
    return { jwk: { ...key.jwk, ...key.privateKey.export({ format: 'jwk' }) }, token: mint(key) }
  },
  'that is a secret': () => ({ jwk: { ...SECRET_JWK, kid: 'odd', alg: 'RS256' }, token: signHs256(goodClaims(), { kid: 'odd' }) }),
  'that is a secret for HS256': () => ({ jwk: { ...SECRET_JWK, kid: 'odd', alg: 'HS256' }, token: signHs256(goodClaims(), { kid: 'odd' }) })
}

for (const [table, algorithms] of [[ODD, ['ES256', 'ES384']], [ODD_RSA, ['RS256', 'PS256']]] as const) {
  for (const [what, make] of Object.entries(table)) {
    t.test(`74: a key ${what} is not there, and the one beside it is`, async t => {
      const { jwk, token } = make()
      const good = GOOD_KEYS[algorithms[0]]
      for (const keys of [[jwk, good], [good, jwk]]) {
        const issuer = await fakeIssuer(t, ...keys)
        const server = await guarded(t, jwks(issuer.url, TIMES), { algorithms })
        t.equal(await server.status(token), REFUSED)
        t.equal(await server.status(mint(good)), 200)
        t.equal(await server.status(mint({ ...good, kid: undefined })), 200, 'it counts as the only one')
      }
    })
  }
}

t.test('74: a key serves what it is for and nothing else: not another alg, nor another curve, nor as a secret', async t => {
  const wrong: Record<string, [IssuerKey, string, readonly Algorithm[]]> = {
    'RSA for PS256, in a token of RS256': [issuerKey('k1', 'RS256', { alg: 'PS256' }, RSA), 'RS256', ['RS256', 'PS256']],
    'P-384, in a token of ES256': [issuerKey('k1', 'ES256', { alg: undefined }, generateKeyPairSync('ec', { namedCurve: 'P-384' })), 'ES256', ['ES256', 'ES384']]
  }
  for (const [about, [key, alg, algorithms]] of Object.entries(wrong)) {
    const server = await guarded(t, jwks((await fakeIssuer(t, key)).url, TIMES), { algorithms })
    t.equal(await server.status(mint(key, {}, { alg })), REFUSED, about)
  }
  const key = issuerKey('k1', 'RS256', {}, RSA)
  const server = await guarded(t, jwks((await fakeIssuer(t, key)).url, TIMES), { algorithms: ['RS256'] })
  t.equal(await server.status(signHs256(goodClaims(), { kid: 'k1' }, RSA.publicKey.export({ type: 'spki', format: 'pem' }))), REFUSED, 'HMAC with what is published')
  t.equal(await server.status(mint(key)), 200)
})

t.test('74: a key with members that say nothing of it, or nothing wrong, is one', async t => {
  const harmless: Record<string, Jwk> = {
    'without use': { use: undefined }, 'without alg': { alg: undefined }, 'with key_ops': { key_ops: ['verify'] },
    'with more key_ops': { use: undefined, key_ops: ['encrypt', 'verify'] }, 'with x5c': { x5c: ['MIIB'], x5t: 'abc', x5u: 'http://127.0.0.1:1/' },
    'with what nobody knows': { exp: 1, issuer: 'x', ext: true }, 'with a prototype': JSON.parse('{"__proto__":{"d":"x"}}') as Jwk
  }
  for (const [what, more] of Object.entries(harmless)) {
    const key = issuerKey('k1', 'ES256', more)
    const issuer = await fakeIssuer(t, key)
    const server = await guarded(t, jwks(issuer.url, TIMES))
    t.equal(await server.status(mint(key)), 200, what)
    t.equal(await server.status(garbled(mint(key))), REFUSED, what)
    t.equal(issuer.hits, 1)
  }
})

t.test('74: x5c of somebody else does not count', async t => {
  const [key, other] = [issuerKey('k1', 'RS256'), issuerKey('k1', 'RS256')]
  const issuer = await fakeIssuer(t, { ...key.jwk, x5c: [Buffer.from(String(other.jwk.n)).toString('base64')] })
  const server = await guarded(t, jwks(issuer.url, TIMES), { algorithms: ['RS256'] })
  t.strictSame([await server.status(mint(key)), await server.status(mint(other))], [200, REFUSED])
})

t.test('74: of keys with one kid there is none, in whatever order and however many', async t => {
  const [a, b, c, good] = [issuerKey('twin'), issuerKey('twin'), issuerKey('twin'), issuerKey('good')]
  const other = issuerKey('twin', 'RS256')
  const enc = { ...b.jwk, use: 'enc' }
  for (const [about, set] of Object.entries({
    two: [a, b, good], three: [a, good, b, c], 'the same one': [a, a, good], 'the second not usable': [a, enc, good],
    'the first not usable': [enc, a, good], 'of another type': [a, other, good]
  })) {
    const issuer = await fakeIssuer(t, ...set)
    const server = await guarded(t, jwks(issuer.url, TIMES))
    for (const key of [a, b, c]) t.equal(await server.status(mint(key)), REFUSED, about)
    t.equal(await server.status(mint(good)), 200, about)
    t.equal(await server.status(mint({ ...good, kid: undefined })), 200, `${about}: the only one that is left`)
  }
})

t.test('74: what is no key among keys is passed over', async t => {
  const key = issuerKey('k1')
  const issuer = await fakeIssuer(t)
  issuer.keys = saysJson({ keys: [null, 1, 'k1', true, [], [key.jwk], {}, { kid: 'k1x' }, key.jwk] })
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(key)), 200)
})

t.test('74: a kid that is none makes a key without a name, for tokens without one', async t => {
  for (const kid of [undefined, null, 1, '', true, {}, ['k1'], 'x'.repeat(257), '__proto__', 'constructor', 'prototype']) {
    const key = issuerKey('k1', 'ES256', { kid })
    const about = `kid ${inspect(kid).slice(0, 20)}`
    const issuer = await fakeIssuer(t, key)
    const server = await guarded(t, jwks(issuer.url, TIMES))
    for (const asked of ['k1', 'null', '1', 'true', 'undefined', '[object Object]', 'toString']) {
      t.equal(await server.status(mint(key, {}, { kid: asked })), REFUSED, `${about}: ${asked}`)
    }
    if (typeof kid === 'string') t.equal(await server.status(mint(key, {}, { kid })), REFUSED, about)
    t.equal(await server.status(mint(key, {}, { kid: undefined })), 200, `${about}: none`)
  }
})

t.test('74: a token without kid is of the only key; where there are several it is of none', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const issuer = await fakeIssuer(t, first)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  const nameless = (key: IssuerKey) => mint({ ...key, kid: undefined })
  t.equal(await server.status(nameless(first)), 200)
  t.equal(await server.status(nameless(second)), REFUSED, 'by another key')
  t.equal(issuer.hits, 1)
  issuer.keys = publishes(first, second)
  clock.move(TIMES.maxAge)
  t.strictSame([await server.status(nameless(first)), await server.status(nameless(second))], [REFUSED, REFUSED])
  t.equal(issuer.hits, 3)
  issuer.keys = publishes()
  clock.move(TIMES.maxAge)
  t.equal(await server.status(nameless(first)), REFUSED, 'of none at all')
})

const FAMILIES: ReadonlyArray<readonly Algorithm[]> = [
  ['RS256', 'RS384', 'RS512'], ['PS256', 'PS384', 'PS512'], ['RS256', 'PS256'], ['ES256', 'ES384', 'ES512'], ['EdDSA']
]
t.test('74: of a mixed set each family verifies its own, by alg or by what a key fits', async t => {
  const named = new Map([...new Set(FAMILIES.flat())].map(alg => [alg, issuerKey(alg, alg)]))
  for (const isNamed of [true, false]) {
    const keys = isNamed ? named : new Map([...named].map(([alg, key]) => [alg, { ...key, jwk: { ...key.jwk, alg: undefined } }]))
    const issuer = await fakeIssuer(t, ...keys.values(), { ...SECRET_JWK, kid: 'oct' }, { kty: 'OKP', crv: 'X25519', x: Buffer.alloc(32, 9).toString('base64url'), kid: 'x' })
    for (const algorithms of FAMILIES) {
      const server = await guarded(t, jwks(issuer.url, TIMES), { algorithms })
      for (const [alg, key] of keys) {
        const about = `${alg} for ${algorithms.join()}, ${isNamed ? 'named' : 'without alg'}`
        t.equal(await server.status(garbled(mint(key))), REFUSED, `${about}, one bit turned`)
        t.equal(await server.status(mint(key)), algorithms.includes(alg) ? 200 : REFUSED, about)
      }
    }
  }
})

t.test('74: Ed448 is EdDSA as well', async t => {
  const key = issuerKey('k1', 'EdDSA', {}, generateKeyPairSync('ed448'))
  const issuer = await fakeIssuer(t, key)
  const server = await guarded(t, jwks(issuer.url, TIMES), { algorithms: ['EdDSA'] })
  t.strictSame([await server.status(garbled(mint(key))), await server.status(mint(key))], [REFUSED, 200])
})

t.test('75: the same kid at two issuers is two keys, and neither is the other’s', async t => {
  const [keyA, keyB] = [issuerKey('same'), issuerKey('same')]
  const [a, b] = [await fakeIssuer(t, keyA), await fakeIssuer(t, keyB)]
  const sources = { jwks: jwks({ [a.issuer]: a.url, [b.issuer]: new URL(b.url) }, TIMES), discover: discover([a.issuer, b.issuer], TIMES) }
  for (const [about, source] of Object.entries(sources)) {
    const server = await guarded(t, source)
    const statuses = async () => Promise.all([
      server.status(mint(keyA, { iss: a.issuer })), server.status(mint(keyB, { iss: b.issuer })),
      server.status(mint(keyA, { iss: b.issuer })), server.status(mint(keyB, { iss: a.issuer }))
    ])
    t.strictSame(await statuses(), [200, 200, REFUSED, REFUSED], about)
    t.strictSame(await statuses(), [200, 200, REFUSED, REFUSED], `${about}, when all is known`)
  }
})

t.test('75: a token of no issuer that is known, or that does not say, is refused and nobody is asked', async t => {
  const key = issuerKey('k1')
  const issuer = await fakeIssuer(t, key)
  const unknown: unknown[] = [
    undefined, null, 5, true, {}, [], [issuer.issuer], { toString: issuer.issuer }, '', `${issuer.issuer}/`, ` ${issuer.issuer}`, issuer.issuer.toUpperCase(), issuer.url,
    'https://elsewhere.example', '__proto__', 'constructor', 'toString', 'undefined', 'null'
  ]
  for (const source of [jwks({ [issuer.issuer]: issuer.url }, TIMES), discover(issuer.issuer, TIMES)]) {
    const server = await guarded(t, source)
    for (const iss of unknown) t.equal(await server.status(mint(key, { iss })), REFUSED, `iss ${inspect(iss)}`)
    for (const payload of ['null', '[]', '"text"', '5', 'no JSON', '{', Buffer.from([0x22, 0xff, 0x22]), JSON.stringify([goodClaims({ iss: issuer.issuer })])]) {
      t.equal(await server.status(mintRaw(key, payload)), REFUSED, `a payload of ${String(payload).slice(0, 10)}`)
    }
    t.strictSame(issuer.asked, [])
  }
  const server = await guarded(t, jwks({ [issuer.issuer]: issuer.url }, TIMES))
  t.equal(await server.status(mint(key, { iss: issuer.issuer })), 200)
})

t.test('75: an issuer that is down is no trouble for the tokens of another', async t => {
  const [keyA, keyB] = [issuerKey('k1'), issuerKey('k1')]
  const [a, b] = [await fakeIssuer(t, keyA), await fakeIssuer(t, keyB)]
  const server = await guarded(t, jwks({ [a.issuer]: a.url, [b.issuer]: b.url }, TIMES))
  await b.kill()
  const hung = held(publishes(keyB))
  t.strictSame([await server.status(mint(keyA, { iss: a.issuer })), await server.status(mint(keyB, { iss: b.issuer }))], [200, UNAVAILABLE])
  hung.release()
  t.strictSame(tally(await Promise.all(times(20, i => server.status(mint(keyB, { iss: b.issuer }, { kid: `made-up-${i}` }))))), { [UNAVAILABLE]: 20 })
  t.equal(await server.status(mint(keyA, { iss: a.issuer })), 200)
})

t.test('75: kids made up for one issuer do not keep a rotation of another from being found', async t => {
  const [keyA, keyB] = [issuerKey('k1'), issuerKey('k2')]
  const [a, b] = [await fakeIssuer(t, keyA), await fakeIssuer(t)]
  const server = await guarded(t, jwks({ [a.issuer]: a.url, [b.issuer]: b.url }, TIMES))
  t.equal(await server.status(mint(keyA, { iss: a.issuer }, { kid: 'made-up' })), REFUSED)
  t.equal(await server.status(mint(keyB, { iss: b.issuer }, { kid: 'k0' })), REFUSED)
  t.strictSame([a.hits, b.hits], [1, 1])
})

t.test('75: an issuer that keys are for is still to be one of jwt.issuer', async t => {
  const key = issuerKey('k1')
  const [a, b] = [await fakeIssuer(t, key), await fakeIssuer(t, key)]
  const server = await guarded(t, jwks({ [a.issuer]: a.url, [b.issuer]: b.url }, TIMES), { issuer: a.issuer })
  t.strictSame([await server.status(mint(key, { iss: a.issuer })), await server.status(mint(key, { iss: b.issuer }))], [200, REFUSED])
})

t.test('76: a kid that is no name of a key is refused, and nobody is asked', async t => {
  const key = issuerKey('k1')
  const issuer = await fakeIssuer(t, key)
  const server = await guarded(t, jwks(issuer.url, TIMES), { maxTokenLength: 16_384 })
  for (const kid of ['../', '..', '../../jwks', 'a/../b', '__proto__', 'constructor', 'prototype', 'x'.repeat(5120), 'x'.repeat(257), {}, { k1: 1 }, ['k1'], 1, null, true, '', 'k 1', 'k1\n', 'k1\u0000', 'schlüssel']) {
    t.equal(await server.status(mint(key, {}, { kid })), REFUSED, `kid ${JSON.stringify(kid).slice(0, 20)}`)
  }
  t.strictSame(issuer.asked, [])
  for (const header of [{ jku: issuer.url }, { x5u: issuer.url }, { jwk: key.jwk }, { x5c: [] }]) {
    t.equal(await server.status(mint(key, {}, header)), REFUSED, `a header with ${Object.keys(header).join()}`)
  }
  for (const alg of ['none', 'HS256', 'RS256', 'es256', 1, null]) t.equal(await server.status(mint(key, {}, { alg })), REFUSED, `alg ${String(alg)}`)
  t.strictSame(issuer.asked, [])
  t.equal(await server.status(mint(key)), 200)
})

t.test('76: kids that objects have by birth are names like others', async t => {
  const key = issuerKey('toString')
  const issuer = await fakeIssuer(t, key)
  const server = await guarded(t, jwks(issuer.url, TIMES))
  t.equal(await server.status(mint(key, {}, { kid: 'hasOwnProperty' })), REFUSED)
  t.equal(await server.status(mint(key)), 200)
})

t.test('discover() finds the keys where the issuer says, and asks anew each time', async t => {
  const clock = stopwatch(t)
  const [first, second] = [issuerKey('k1'), issuerKey('k2')]
  const [issuer, elsewhere] = [await fakeIssuer(t), await fakeIssuer(t, second)]
  issuer.keys = publishes(first)
  const server = await guarded(t, discover(issuer.issuer, TIMES))
  const iss = issuer.issuer
  const answers = await Promise.all(times(100, () => server.status(mint(first, { iss }))))
  t.strictSame(tally(answers), { 200: 100 })
  t.strictSame(issuer.asked, ['/.well-known/openid-configuration', '/jwks'])
  issuer.metadata = saysJson({ issuer: iss, jwks_uri: elsewhere.url })
  clock.move(TIMES.maxAge)
  t.strictSame([await server.status(mint(first, { iss })), await server.status(mint(second, { iss }))], [REFUSED, 200], 'the keys have moved')
})

/** What an issuer may say of itself that is no use. */
const BAD_METADATA: Record<string, (issuer: FakeIssuer) => RequestListener> = {
  'another issuer': ({ url }) => saysJson({ issuer: 'https://elsewhere.example', jwks_uri: url }),
  'another path of the issuer': ({ issuer, url }) => saysJson({ issuer: `${issuer}/tenant`, jwks_uri: url }),
  'no issuer': ({ url }) => saysJson({ jwks_uri: url }),
  'an issuer that is a list': ({ issuer, url }) => saysJson({ issuer: [issuer], jwks_uri: url }),
  'an issuer that is no URL': ({ url }) => saysJson({ issuer: 'me', jwks_uri: url }),
  'no jwks_uri': ({ issuer }) => saysJson({ issuer }),
  'a jwks_uri that is null': ({ issuer }) => saysJson({ issuer, jwks_uri: null }),
  'a jwks_uri that is a number': ({ issuer }) => saysJson({ issuer, jwks_uri: 5 }),
  'a jwks_uri that is relative': ({ issuer }) => saysJson({ issuer, jwks_uri: '/jwks' }),
  'a jwks_uri that is a file': ({ issuer }) => saysJson({ issuer, jwks_uri: 'file:///etc/passwd' }),
  'a jwks_uri that is data': ({ issuer }) => saysJson({ issuer, jwks_uri: `data:application/json,${encodeURIComponent(GOOD)}` }),
  'a jwks_uri by http elsewhere': ({ issuer }) => saysJson({ issuer, jwks_uri: 'http://id.example.com/jwks' }),
  'a jwks_uri by http that is reached, and is not this machine by name': ({ issuer, url }) => saysJson({ issuer, jwks_uri: url.replace('127.0.0.1', '0.0.0.0') }),
  'a jwks_uri by http in the neighbourhood': ({ issuer }) => saysJson({ issuer, jwks_uri: 'http://169.254.169.254/latest' }),
  'a jwks_uri that only looks like this machine': ({ issuer }) => saysJson({ issuer, jwks_uri: 'http://127.0.0.1.example.com/jwks' }),
  'a jwks_uri with credentials': ({ issuer, url }) => saysJson({ issuer, jwks_uri: url.replace('//', '//user:password@') }),
  HTML: () => says('<!doctype html><title>Sign in</title>', { type: 'text/html' }),
  'no JSON': () => says('{'),
  nothing: () => says(''),
  null: () => says('null'),
  'status 500': ({ issuer, url }) => says(JSON.stringify({ issuer, jwks_uri: url }), { status: 500 }),
  'status 404': () => says('', { status: 404 }),
  'status 204': () => says('', { status: 204 }),
  'a redirect': ({ url }) => says('', { status: 302, headers: { location: url } }),
  '10 MB': () => says(Buffer.alloc(10 * 1024 * 1024, ' ')),
  'a reset': () => resets
}

for (const [what, bad] of Object.entries(BAD_METADATA)) {
  t.test(`72: an issuer that says ${what} of itself has no keys (503), or those that were good last`, async t => {
    const clock = stopwatch(t)
    const issuer = await fakeIssuer(t, KEY)
    const token = () => mint(KEY, { iss: issuer.issuer })
    const [warm, cold] = [await guarded(t, discover(issuer.issuer, TIMES)), await guarded(t, discover(issuer.issuer, TIMES))]
    const good = issuer.metadata
    t.equal(await warm.status(token()), 200)
    issuer.metadata = bad(issuer)
    issuer.hits = issuer.discoveries = 0
    t.equal(await cold.status(token()), UNAVAILABLE)
    t.equal(await cold.status(token()), UNAVAILABLE)
    t.strictSame([issuer.discoveries, issuer.hits], [1, 0])
    clock.move(TIMES.maxAge)
    t.equal(await warm.status(token()), 200)
    clock.move(TIMES.maxStale - TIMES.maxAge)
    t.equal(await warm.status(token()), UNAVAILABLE)
    t.equal(issuer.hits, 0)
    issuer.metadata = good
    clock.move(1000)
    t.strictSame([await cold.status(token()), await warm.status(token())], [200, 200])
  })
}

t.test('72: an issuer that is dead or slow is bounded in time, its metadata and its keys together', async t => {
  const clock = stopwatch(t)
  const issuer = await fakeIssuer(t, KEY)
  const good = issuer.metadata
  const token = () => mint(KEY, { iss: issuer.issuer })
  const server = await guarded(t, discover(issuer.issuer, { ...TIMES, timeout: 500 }))
  issuer.metadata = hangs
  const start = Date.now()
  t.equal(await server.status(token()), UNAVAILABLE)
  t.ok(Date.now() - start < 2000)
  clock.move(1000)
  // Each of the two is in time; both of them are not.
  issuer.metadata = (request, response) => { setTimeout(() => { good(request, response) }, 400) }
  issuer.keys = (request, response) => { setTimeout(() => { publishes(KEY)(request, response) }, 400) }
  const second = Date.now()
  await server.status(token())
  const took = Date.now() - second
  t.ok(took < 780, `the timeout is for an answer to who asks for a key: ${took} ms`)
  await issuer.kill()
  clock.move(1000)
  t.equal(await server.status(token()), UNAVAILABLE)
})

t.test('discover() takes an issuer with a path, with a slash at the end or without, exactly as tokens name it', async t => {
  const key = issuerKey('k1')
  for (const path of ['/realms/one', '/realms/one/', '/', '']) {
    const fake = await fakeIssuer(t, key)
    const issuer = fake.issuer + path
    fake.metadata = saysJson({ issuer, jwks_uri: fake.url })
    const server = await guarded(t, discover(issuer, TIMES))
    t.equal(await server.status(mint(key, { iss: issuer })), 200, `path ${path}`)
    t.equal(fake.asked[0], `${path.replace(/\/$/, '')}/.well-known/openid-configuration`)
    const other = issuer.endsWith('/') ? issuer.slice(0, -1) : `${issuer}/`
    t.equal(await server.status(mint(key, { iss: other })), REFUSED, `${path}: the other way round`)
    t.equal(fake.discoveries, 1)
  }
})

t.test('discover() does not take the metadata of an issuer that writes itself in another way than it was given', async t => {
  // Its tokens would all be refused as of an unknown issuer, and nobody would be told why.
  const key = issuerKey('k1')
  for (const [given, said] of [['', '/'], ['/', ''], ['/one', '/one/'], ['/one/', '/one']] as const) {
    const fake = await fakeIssuer(t, key)
    fake.metadata = saysJson({ issuer: fake.issuer + said, jwks_uri: fake.url })
    const server = await guarded(t, discover(fake.issuer + given, TIMES))
    t.equal(await server.status(mint(key, { iss: fake.issuer + given })), UNAVAILABLE, `given "${given}", says "${said}"`)
    t.equal(fake.hits, 0)
  }
})

/** Throws as it is made, naming the option. */
function refusesOption (t: Test, about: string, path: string, make: () => unknown): void {
  try {
    make()
    t.fail(`${about} is taken`)
  } catch (error) {
    t.match(error, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, about)
    const message = error instanceof Error ? error.message : ''
    t.ok(message.startsWith(`Invalid option ${path}: `), `${about}: "${message}" names ${path}`)
    t.notMatch(message, 'password', `${about}: the message holds no credential`)
  }
}

const untyped = (given: unknown) => given as never

t.test('a URL of keys that is none, or goes over the network without TLS, is refused as it is given', t => {
  const bad: Record<string, unknown> = {
    'the empty text': '', 'no URL': 'id.example.com/jwks', relative: '/jwks', 'http elsewhere': 'http://id.example.com/jwks',
    'http by address': 'http://10.0.0.1/jwks', 'http on all addresses': 'http://0.0.0.0/jwks', 'http of what looks like this machine': 'http://127.0.0.1.example.com/',
    'http of localhost elsewhere': 'http://localhost.example.com/', 'http before localhost': 'http://notlocalhost/', 'http in IPv6': 'http://[2001:db8::1]/jwks',
    'with a user': 'https://user@id.example.com/jwks', 'with credentials': 'https://user:password@id.example.com/jwks',
    'with a password': 'https://:password@id.example.com/jwks', 'with credentials on this machine': 'http://user:password@localhost/jwks',
    ftp: 'ftp://id.example.com/jwks', 'a file': 'file:///etc/jwks', data: 'data:application/json,{}', javascript: 'javascript:1', ws: 'wss://id.example.com/'
  }
  for (const [about, url] of Object.entries(bad)) {
    refusesOption(t, `jwks: ${about}`, 'jwks.url', () => jwks(untyped(url)))
    refusesOption(t, `jwks of an issuer: ${about}`, 'jwks.https://a.example', () => jwks({ 'https://b.example': 'https://b.example/jwks', 'https://a.example': untyped(url) }))
    refusesOption(t, `discover: ${about}`, 'discover.0', () => discover(untyped(url)))
    refusesOption(t, `discover of a list: ${about}`, 'discover.1', () => discover(['https://b.example', untyped(url)]))
    if (URL.canParse(String(url))) refusesOption(t, `jwks, as a URL: ${about}`, 'jwks.url', () => jwks(new URL(String(url))))
  }
  for (const given of [null, undefined, 5, true, {}, [], Symbol('url'), () => 'https://a.example']) {
    refusesOption(t, `jwks of ${inspect(given)}`, 'jwks', () => jwks(untyped(given)))
    refusesOption(t, `jwks of an issuer, of ${inspect(given)}`, 'jwks.a', () => jwks({ a: untyped(given) }))
    refusesOption(t, `discover of ${inspect(given)}`, Array.isArray(given) ? 'discover' : 'discover.0', () => discover(untyped(given)))
    if (!Array.isArray(given)) refusesOption(t, `discover of a list of ${inspect(given)}`, 'discover.1', () => discover(['https://b.example', untyped(given)]))
  }
  t.end()
})

t.test('what would make a source that knows nobody is refused as it is given', t => {
  refusesOption(t, 'jwks of a list', 'jwks', () => jwks(untyped(['https://a.example/jwks'])))
  refusesOption(t, 'jwks of a Map', 'jwks', () => jwks(untyped(new Map([['https://a.example', 'https://a.example/jwks']]))))
  refusesOption(t, 'discover of a URL, which no iss is', 'discover.0', () => discover(untyped(new URL('https://a.example'))))
  refusesOption(t, 'discover of an issuer with a space before it', 'discover.0', () => discover(' https://a.example'))
  refusesOption(t, 'discover of an issuer with a line end', 'discover.0', () => discover('https://a.example\n'))
  refusesOption(t, 'discover of nobody', 'discover', () => discover([]))
  refusesOption(t, 'jwks of nobody', 'jwks', () => jwks({}))
  t.end()
})

t.test('good URLs are taken', t => {
  for (const url of ['https://id.example.com/jwks', 'https://id.example.com:8443/a?b=c', 'http://localhost/jwks', 'http://127.0.0.1:8080/', 'http://127.8.9.1/', 'http://[::1]:80/', 'HTTPS://ID.example.com']) {
    t.doesNotThrow(() => jwks(url), url)
    t.doesNotThrow(() => jwks(new URL(url)), url)
    t.doesNotThrow(() => discover(url), url)
  }
  t.end()
})

t.test('settings that are none are refused, naming them', t => {
  const bad: Record<string, unknown[]> = {
    maxAge: [999, 86_400_001, -1, 0, NaN, Infinity, '1000', null, {}],
    maxStale: [-1, 30 * 86_400_000 + 1, NaN, Infinity, '0', null],
    cooldown: [99, 0, -1, 86_400_001, NaN, '100', null],
    timeout: [49, 0, 60_001, NaN, Infinity, '50', null],
    maxage: [1000], cache: [true], issuer: ['https://a.example']
  }
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      refusesOption(t, `${name} ${String(value)}`, `jwks.${name}`, () => jwks('https://a.example', untyped({ [name]: value })))
      refusesOption(t, `${name} ${String(value)}`, `discover.${name}`, () => discover('https://a.example', untyped({ [name]: value })))
    }
  }
  for (const given of [null, 5, 'maxAge', [], () => {}]) {
    refusesOption(t, `settings ${String(given)}`, 'jwks', () => jwks('https://a.example', untyped(given)))
    refusesOption(t, `settings ${String(given)}`, 'discover', () => discover('https://a.example', untyped(given)))
  }
  for (const settings of [{}, undefined, { maxAge: 1000, maxStale: 0, cooldown: 100, timeout: 50 }, { maxAge: 86_400_000, maxStale: 30 * 86_400_000, cooldown: 86_400_000, timeout: 60_000 }, { maxAge: undefined }]) {
    t.doesNotThrow(() => jwks('https://a.example', settings))
    t.doesNotThrow(() => discover('https://a.example', settings))
  }
  t.end()
})

t.test('84: HMAC does not register with keys that are published', async t => {
  for (const algorithms of [['HS256'], ['HS384', 'HS512']] as const) {
    for (const key of [jwks('https://a.example'), discover('https://a.example')]) {
      const app = Fastify()
      t.teardown(() => app.close())
      await t.rejects(async () => app.register(hybridAuth, { jwt: { key, algorithms } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /^Invalid option jwt\.algorithms: / })
    }
  }
})

t.test('registrations with the keys of other issuers do not pass for one another', t => {
  const realm = (key: JwtOptions['key']) => realmOf({ key, algorithms: ['ES256'], issuer: undefined, audience: undefined, typ: undefined } as ParsedJwtOptions)
  const [a, b] = ['https://a.example', 'https://b.example']
  t.not(realm(jwks(a)), realm(jwks(b)))
  t.not(realm(jwks({ [a]: a })), realm(jwks({ [b]: b })))
  t.not(realm(discover(a)), realm(discover(b)))
  t.equal(realm(jwks(a)), realm(jwks(a)), 'nodes of one application do')
  t.not(realm(jwks(a)), realm(discover(a)))
  t.not(realm(jwks({ [a]: a })), realm(jwks({ [a]: b })))
  t.equal(realm(discover([a, b])), realm(discover([b, a])), 'in whatever order')
  t.equal(realm(jwks({ [a]: a, [b]: b })), realm(jwks({ [b]: b, [a]: a })))
  t.end()
})

t.test('a request to a provider ends with the signal, while it is waited for and while it is read', async t => {
  const issuer = await fakeIssuer(t, KEY)
  const asker = new AbortController()
  t.strictSame(await (await fetchBounded(issuer.url, {}, asker.signal)).json(), { keys: [KEY.jwk] })
  issuer.keys = hangs
  const asked = fetchBounded(issuer.url, {}, asker.signal)
  await eventually('it is asked', () => issuer.hits === 2)
  asker.abort()
  await t.rejects(asked, { name: 'AbortError' })
  issuer.keys = drips
  await t.rejects(fetchBounded(issuer.url, {}, AbortSignal.timeout(100)), { name: 'TimeoutError' })
  issuer.keys = says(Buffer.alloc(512 * 1024 + 1))
  const outcome: unknown = await fetchBounded(issuer.url, {}, AbortSignal.timeout(5000)).catch((error: unknown) => error)
  t.ok(outcome instanceof ProviderFailed, 'too long')
})

t.test('what is too long is not read to its end', async t => {
  const issuer = await fakeIssuer(t)
  let sent = 0
  const cut = deferred<undefined>()
  issuer.keys = (_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json' })
    const chunk = Buffer.alloc(64 * 1024, ' ')
    const timer = setInterval(() => { if (response.write(chunk)) sent += chunk.length }, 1)
    response.on('close', () => {
      clearInterval(timer)
      cut.resolve(undefined)
    })
  }
  const server = await guarded(t, jwks(issuer.url, { ...TIMES, timeout: 20_000 }))
  t.equal(await server.status(mint(KEY)), UNAVAILABLE)
  await cut.promise
  t.ok(sent < 20 * 1024 * 1024, `${sent} bytes were sent`)
})

t.test('requests carry nothing of the token that made them, and ask for JSON', async t => {
  const issuer = await fakeIssuer(t)
  const seen: string[] = []
  issuer.keys = (request, response) => {
    seen.push(JSON.stringify([request.method, request.url, request.headers]))
    t.equal(request.method, 'GET')
    t.equal(request.headers.accept, 'application/json')
    t.notOk('authorization' in request.headers || 'cookie' in request.headers)
    publishes(KEY)(request, response)
  }
  const server = await guarded(t, jwks(issuer.url, TIMES))
  const token = mint(KEY)
  t.equal(await server.status(token), 200)
  t.equal(seen.length, 1)
  t.notOk(seen.some(text => text.includes(token) || text.includes('k1')))
})
