/** Algorithms, key material, key functions, rotation, and the memory of successes. */
import { createPublicKey, createSecretKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import Fastify from 'fastify'
import { SignJWT } from 'jose'
import t, { type Test } from 'tap'
import hybridAuth, { type Algorithm, type JoseHeader, type JwtOptions, type KeyFunction } from '../lib/index.js'
import { GenerationCache } from '../lib/cache.js'
import { goodClaims, goodToken, inSeconds, SECRET, signHs256 } from './helpers.js'
import { accepts, fakeClock, gate, present, refuses, WAYS } from './ways.js'

interface Pair { publicKey: KeyObject, privateKey: KeyObject }

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const otherRsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const p256 = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' })
const p521 = generateKeyPairSync('ec', { namedCurve: 'P-521' })
const ed25519 = generateKeyPairSync('ed25519')
const secretOf = (bytes: number): Pair => {
  const key = createSecretKey(Buffer.from(SECRET.repeat(3)).subarray(0, bytes))
  return { publicKey: key, privateKey: key }
}

const PAIRS: Record<Algorithm, Pair> = {
  HS256: secretOf(32), HS384: secretOf(48), HS512: secretOf(64),
  RS256: rsa, RS384: rsa, RS512: rsa, PS256: rsa, PS384: rsa, PS512: rsa,
  ES256: p256, ES384: p384, ES512: p521,
  EdDSA: ed25519
}
const ALGORITHMS = Object.keys(PAIRS).filter(name => name in PAIRS) as Algorithm[]

const mint = (algorithm: Algorithm, header: { kid?: string, typ?: string } = {}, key = PAIRS[algorithm].privateKey, claims: Record<string, unknown> = {}) =>
  new SignJWT(goodClaims(claims)).setProtectedHeader({ alg: algorithm, ...header }).sign(key)

const pemOf = (key: KeyObject) => key.export(key.type === 'private' ? { type: 'pkcs8', format: 'pem' } : { type: 'spki', format: 'pem' }).toString()
const derOf = (key: KeyObject) => key.export({ type: 'spki', format: 'der' })
const jwkOf = (key: KeyObject) => JSON.stringify(key.export({ format: 'jwk' }))

/** The same token with one bit of its signature turned over. */
function garbled (token: string): string {
  const dot = token.lastIndexOf('.') + 1
  const bytes = Buffer.from(token.slice(dot), 'base64url')
  bytes.writeUInt8(bytes.readUInt8(8) ^ 1, 8)
  return token.slice(0, dot) + bytes.toString('base64url')
}

t.test('all thirteen algorithms are accepted from an issuer that this library has no part in', async t => {
  t.equal(ALGORITHMS.length, 13)
  for (const algorithm of ALGORITHMS) {
    const server = await gate(t, { jwt: { key: PAIRS[algorithm].publicKey, algorithms: [algorithm] } })
    const token = await mint(algorithm, { typ: 'JWT' })
    await refuses(t, server, garbled(token), { about: `${algorithm}, one bit of the signature turned` })
    await accepts(t, server, token, { about: algorithm })
    await refuses(t, server, garbled(token), { about: `${algorithm}, one bit turned of a token that is known` })
  }
})

t.test('EdDSA is also Ed448', async t => {
  const pair = generateKeyPairSync('ed448')
  const server = await gate(t, { jwt: { key: pair.publicKey, algorithms: ['EdDSA'] } })
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const input = `${encode({ alg: 'EdDSA' })}.${encode(goodClaims())}`
  const token = `${input}.${sign(null, Buffer.from(input), pair.privateKey).toString('base64url')}`
  await accepts(t, server, token)
  await refuses(t, server, garbled(token))
  await refuses(t, server, await mint('EdDSA'), { about: 'by an Ed25519 key' })
})

t.test('a token by another key of the same kind is refused', async t => {
  const others: Partial<Record<Algorithm, KeyObject>> = {
    HS256: createSecretKey(Buffer.alloc(32, 1)), RS256: otherRsa.privateKey, PS256: otherRsa.privateKey,
    ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey, EdDSA: generateKeyPairSync('ed25519').privateKey
  }
  for (const algorithm of ALGORITHMS) {
    const other = others[algorithm]
    if (other === undefined) continue
    const server = await gate(t, { jwt: { key: PAIRS[algorithm].publicKey, algorithms: [algorithm] } })
    await refuses(t, server, await mint(algorithm, {}, other), { about: algorithm })
  }
})

t.test('one key may serve several algorithms of its family, and no other', async t => {
  const server = await gate(t, { jwt: { key: rsa.publicKey, algorithms: ['RS256', 'PS512'] } })
  for (const algorithm of ['RS256', 'PS512'] as const) await accepts(t, server, await mint(algorithm), { about: algorithm })
  for (const algorithm of ['RS384', 'RS512', 'PS256', 'PS384'] as const) await refuses(t, server, await mint(algorithm), { about: algorithm })
})

/** An X.509 certificate of a key, not signed by anybody: a public key is all that is read of it. */
function certificateOf (key: KeyObject): string {
  const der = (tag: number, ...parts: Buffer[]): Buffer => {
    const content = Buffer.concat(parts)
    const length = content.length < 0x80 ? Buffer.of(content.length) : Buffer.of(0x82, content.length >> 8, content.length & 0xff)
    return Buffer.concat([Buffer.of(tag), length, content])
  }
  const ecdsaWithSha256 = der(0x30, Buffer.from('06082a8648ce3d040302', 'hex'))
  const nobody = der(0x30)
  const always = der(0x30, der(0x17, Buffer.from('200101000000Z')), der(0x17, Buffer.from('491231235959Z')))
  const body = der(0x30, der(0x02, Buffer.of(1)), ecdsaWithSha256, nobody, always, nobody, derOf(key))
  const certificate = der(0x30, body, ecdsaWithSha256, der(0x03, Buffer.of(0, 0x30, 0x06, 2, 1, 1, 2, 1, 1)))
  return `-----BEGIN CERTIFICATE-----\n${certificate.toString('base64').replace(/.{64}/g, '$&\n')}\n-----END CERTIFICATE-----\n`
}

t.test('a key is taken as text, Buffer, KeyObject or certificate, alone, pinned, in a map or from a function', async t => {
  const forms: Array<[string, Algorithm, string | Buffer | KeyObject]> = [
    ['a secret as text', 'HS256', SECRET.slice(0, 32)],
    ['a secret as Buffer', 'HS256', Buffer.from(SECRET.slice(0, 32))],
    ['a secret as KeyObject', 'HS256', PAIRS.HS256.publicKey],
    ['PEM', 'RS256', pemOf(rsa.publicKey)],
    ['PEM of PKCS #1', 'RS256', rsa.publicKey.export({ type: 'pkcs1', format: 'pem' })],
    ['PEM as Buffer', 'ES256', Buffer.from(pemOf(p256.publicKey))],
    ['KeyObject', 'ES256', p256.publicKey],
    ['KeyObject of a JWK', 'EdDSA', createPublicKey({ key: ed25519.publicKey.export({ format: 'jwk' }), format: 'jwk' })],
    ['a certificate', 'ES256', certificateOf(p256.publicKey)],
    ['a certificate as Buffer', 'RS256', Buffer.from(certificateOf(rsa.publicKey))],
  ]
  for (const [form, algorithm, key] of forms) {
    const token = await mint(algorithm, { kid: 'k1' })
    const pinned = { key, algorithm }
    const ways: Record<string, JwtOptions['key']> = {
      alone: key, pinned, 'in a map': { k1: key }, 'pinned in a map': { k1: pinned },
      'from a function': () => key, 'from a slow function': async () => key, 'pinned from a function': async () => pinned
    }
    for (const [way, given] of Object.entries(ways)) {
      const server = await gate(t, { jwt: { key: given, algorithms: [algorithm] } })
      await accepts(t, server, token, { about: `${form}, ${way}` })
      await refuses(t, server, garbled(token), { about: `${form}, ${way}, garbled` })
    }
  }
})

t.test('case 85: a private key is refused where only the public one has a use', async t => {
  for (const [algorithm, key] of [
    ['RS256', pemOf(rsa.privateKey)], ['ES256', p256.privateKey], ['EdDSA', pemOf(ed25519.privateKey)],
    ['ES256', p256.privateKey.export({ type: 'sec1', format: 'pem' }).toString()], ['RS256', Buffer.from(pemOf(rsa.privateKey))]
  ] as const) {
    await t.rejects(gate(t, { jwt: { key, algorithms: [algorithm] } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /jwt\.key: is a private key/ })
  }
})

t.test('a pinned key serves its algorithm only', async t => {
  const algorithms: Algorithm[] = ['RS256', 'PS256']
  for (const key of [
    { key: rsa.publicKey, algorithm: 'PS256' }, { k1: { key: rsa.publicKey, algorithm: 'PS256' } }, () => ({ key: rsa.publicKey, algorithm: 'PS256' })
  ] satisfies Array<JwtOptions['key']>) {
    const server = await gate(t, { jwt: { key, algorithms } })
    await accepts(t, server, await mint('PS256', { kid: 'k1' }))
    await refuses(t, server, await mint('RS256', { kid: 'k1' }))
  }
})

t.test('a key function may answer for each algorithm, and a key that it repeats is known by its material and its pin', async t => {
  let pin: Algorithm = 'RS256'
  const server = await gate(t, { jwt: { key: () => ({ key: pemOf(rsa.publicKey), algorithm: pin }), algorithms: ['RS256', 'PS256'] } })
  await accepts(t, server, await mint('RS256'))
  await refuses(t, server, await mint('PS256'))
  pin = 'PS256'
  await accepts(t, server, await mint('PS256'))
  await refuses(t, server, await mint('RS256'))
})

t.test('a key function that gives a Buffer and then a text of the same characters gave two keys', async t => {
  const bytes = Buffer.from('\u00fc'.repeat(32), 'latin1')
  const text = '\u00fc'.repeat(32)
  let given: Buffer | string = bytes
  const secrets = await gate(t, { jwt: { key: () => given } })
  await accepts(t, secrets, signHs256(goodClaims(), {}, bytes), { about: 'a Buffer' })
  given = text
  await accepts(t, secrets, signHs256(goodClaims(), {}, text), { about: 'a text of other bytes' })
  await refuses(t, secrets, signHs256(goodClaims(), {}, bytes), { about: 'the Buffer of before' })
})

t.test('a key function of many keys uses the right one for each token', async t => {
  const secret = (kid = '') => `${kid} `.padEnd(40, 'x')
  const server = await gate(t, { jwt: { key: ({ kid }) => secret(kid) } })
  for (let i = 0; i < 300; i++) {
    const kid = `k${i}`
    const answer = await present(server, 'HTTP header', signHs256(goodClaims(), { kid }, secret(kid)))
    t.equal(answer.status, 200, kid)
  }
  await refuses(t, server, signHs256(goodClaims(), { kid: 'k1' }, secret('k2')))
  await accepts(t, server, signHs256(goodClaims(), { kid: 'k0' }, secret('k0')), { about: 'the first again' })
})

t.test('a key function sees the checked header and nothing more of the token', async t => {
  const seen: JoseHeader[] = []
  const server = await gate(t, { jwt: { key: header => { seen.push(header); return SECRET } } })
  await accepts(t, server, signHs256(goodClaims(), { kid: 'k1', typ: 'at+jwt', cty: 'x', other: { secret: true } }))
  t.strictSame(seen, [{ alg: 'HS256', kid: 'k1', typ: 'at+jwt' }], 'once, for the verdict is kept')
  t.ok(Object.isFrozen(seen[0]))
  await accepts(t, server, signHs256(goodClaims(), { typ: undefined }))
  t.strictSame(seen[1], { alg: 'HS256' })
})

t.test('a key function that has no key refuses; one that fails, hangs or answers garbage is unavailable, never open', async t => {
  const MESSAGE = 'a message of the key store'
  const garbage = (given: unknown): KeyFunction => () => given as string
  const none: Record<string, KeyFunction> = {
    null: () => null, undefined: () => undefined, 'a promise of null': async () => null, 'a promise of undefined': async () => undefined
  }
  const failing: Record<string, KeyFunction> = {
    'that throws': () => { throw new Error(MESSAGE) },
    'that throws a text': garbageThrown(MESSAGE),
    'that throws nothing': garbageThrown(undefined),
    'that rejects': () => Promise.reject(new Error(MESSAGE)),
    'that never settles': () => new Promise(() => {}),
    'that answers a number': garbage(42),
    'that answers true': garbage(true),
    'that answers false': garbage(false),
    'that answers a list': garbage([SECRET]),
    'that answers an object': garbage({ secret: SECRET }),
    'that answers Object.prototype': garbage(Object.prototype),
    'that answers a function': garbage(() => SECRET),
    'that answers a symbol': garbage(Symbol('key')),
    'that answers a bigint': garbage(1n),
    'that answers the empty text': () => '',
    'that answers the empty Buffer': () => Buffer.alloc(0),
    'that answers a promise of garbage': garbage(Promise.resolve({})),
    'that answers a thenable that throws': garbage({ then () { throw new Error(MESSAGE) } }),
    'that answers a pin of garbage': garbage({ key: 1, algorithm: 'HS256' }),
    'that answers a pin of null': garbage({ key: null, algorithm: 'HS256' }),
    'that pins an algorithm outside of the list': () => ({ key: SECRET, algorithm: 'HS512' }),
    'that pins nonsense': garbage({ key: SECRET, algorithm: '__proto__' }),
    'that answers a secret that is too short': () => 'short',
    'that answers a PEM for HMAC': () => pemOf(rsa.publicKey),
    'that answers a DER for HMAC': () => derOf(rsa.publicKey),
    'that answers a JWK for HMAC': () => jwkOf(rsa.publicKey),
    'that answers a public key for HMAC': () => rsa.publicKey
  }
  for (const [what, key] of Object.entries(none)) {
    await refuses(t, await gate(t, { jwt: { key } }), goodToken(), { about: what })
  }
  for (const [what, key] of Object.entries(failing)) {
    const server = await gate(t, { jwt: { key }, auth: { handshakeTimeout: 20 } })
    await refuses(t, server, goodToken(), { as: 'unavailable', about: `a key function ${what}` })
    t.notMatch(server.log(), MESSAGE, `the log does not hold what it said: a key function ${what}`)
  }

  function garbageThrown (thrown: unknown): KeyFunction {
    return () => { throw thrown }
  }
})

t.test('a token in the message of an error that looks like a stack does not reach the log', async t => {
  const token = goodToken()
  const server = await gate(t, { jwt: { key: () => { throw new Error(`no key\n    at ${token}`) } } })
  await refuses(t, server, token, { as: 'unavailable' })
})

t.test('a key function that fails once fails that request only', async t => {
  let fail = true
  const server = await gate(t, { jwt: { key: async () => { if (fail) throw new Error('once'); return SECRET } } })
  const token = goodToken()
  await refuses(t, server, token, { as: 'unavailable' })
  fail = false
  await accepts(t, server, token)
})

t.test('keys rotate by kid: both verify their own tokens, and an unknown kid nothing', async t => {
  const keys = { old: SECRET, new: `${SECRET} of this month` }
  for (const key of [keys, ({ kid }: JoseHeader) => kid === 'old' || kid === 'new' ? keys[kid] : null]) {
    const server = await gate(t, { jwt: { key } })
    await accepts(t, server, signHs256(goodClaims(), { kid: 'old' }, keys.old))
    await accepts(t, server, signHs256(goodClaims(), { kid: 'new' }, keys.new))
    await refuses(t, server, signHs256(goodClaims(), { kid: 'old' }, keys.new), { about: 'old, by the new key' })
    await refuses(t, server, signHs256(goodClaims(), { kid: 'new' }, keys.old), { about: 'new, by the old key' })
    for (const kid of ['other', 'OLD', 'old ', 'toString', 'constructor', 'hasOwnProperty', undefined]) {
      await refuses(t, server, signHs256(goodClaims(), { kid }, keys.old), { about: `kid ${String(kid)}` })
    }
  }
  const alone = await gate(t)
  await accepts(t, alone, signHs256(goodClaims(), { kid: 'anything' }), { about: 'a single key does not ask for the kid' })
})

t.test('case 76: a malformed kid is refused, and no key is looked up for it', async t => {
  const asked: unknown[] = []
  const byFunction = await gate(t, { jwt: { key: ({ kid }) => { asked.push(kid); return SECRET } } })
  const byMap = await gate(t, { jwt: { key: { k1: SECRET } } })
  const alone = await gate(t)
  for (const kid of [
    '../', '..', '../../etc/passwd', 'a/../b', '..\\', 'x'.repeat(5120), 'x'.repeat(257), {}, { k1: 1 }, ['k1'], [], 1, null, true, false, '',
    ' ', 'k1 ', ' k1', 'k 1', 'k1\n', 'k1\u0000', 'k1\t', 'k1\u007f', 'sch\u00fcssel', '\u202ek1'
  ]) {
    const about = `kid ${JSON.stringify(kid).slice(0, 30)}`
    const token = signHs256(goodClaims(), { kid })
    await refuses(t, byFunction, token, { about: `${about}, a function` })
    await refuses(t, byMap, token, { about: `${about}, a map` })
    await refuses(t, alone, token, { about: `${about}, a single key` })
  }
  t.strictSame(asked, [])
  for (const kid of ['k1', 'x'.repeat(256), 'https://id.example.com/keys/1', 'a.b', '{}', '~!@#$%^&*()']) {
    await accepts(t, byFunction, signHs256(goodClaims(), { kid }), { about: `kid ${kid.slice(0, 30)}` })
  }
})

t.test('case 76: a kid of __proto__ is refused, and no key is looked up for it', async t => {
  const asked: unknown[] = []
  const token = signHs256(goodClaims(), { kid: '__proto__' })
  await refuses(t, await gate(t, { jwt: { key: { k1: SECRET } } }), token, { about: 'a map' })
  await refuses(t, await gate(t, { jwt: { key: ({ kid }) => { asked.push(kid); return SECRET } } }), token, { about: 'a function' })
  t.strictSame(asked, [])
  const keys: Record<string, string> = { k1: SECRET }
  await refuses(t, await gate(t, { jwt: { key: ({ kid = '' }) => keys[kid] } }), token, { about: 'a function that looks into an object' })
})

t.test('a token that is known is still bounded by exp, nbf and maxAge', async t => {
  const now = inSeconds(0)
  const at = (seconds: number) => (now + seconds) * 1000
  const clock = fakeClock(t, at(0))
  const server = await gate(t, { jwt: { key: { k1: SECRET } } })
  const asking = await gate(t, { jwt: { key: () => SECRET } })
  for (const gate of [server, asking]) {
    clock.set(at(0))
    const token = signHs256(goodClaims({ exp: now + 20, nbf: now - 20, iat: now - 20 }), { kid: 'k1' })
    await accepts(t, gate, token, { about: 'at first' })
    clock.set(at(20) - 1)
    await accepts(t, gate, token, { about: 'a millisecond before the end' })
    clock.set(at(20))
    await refuses(t, gate, token, { as: 'expired', about: 'at the end' })
    clock.set(at(0))
    await accepts(t, gate, token, { about: 'at first, again' })
    clock.set(at(-20) - 1)
    await refuses(t, gate, token, { about: 'before the beginning, the clock was set back' })
  }
  clock.set(at(0))
  const aging = await gate(t, { jwt: { maxAge: 60, allowNoExpiry: true } })
  const token = goodToken({ iat: now - 50, exp: undefined })
  await accepts(t, aging, token, { about: 'young' })
  clock.set(at(10) - 1)
  await accepts(t, aging, token, { about: 'a millisecond before it is too old' })
  clock.set(at(10))
  await refuses(t, aging, token, { as: 'expired', about: 'too old' })
})

t.test('only successes are kept', async t => {
  const now = inSeconds(0)
  const clock = fakeClock(t, now * 1000)
  let key: string | null = null
  let lookups = 0
  const server = await gate(t, { jwt: { key: () => { lookups++; return key } } })
  const token = goodToken({ nbf: now + 1 })
  await refuses(t, server, token, { about: 'no key' })
  t.equal(lookups, WAYS.length, 'asked each time')
  key = 'another secret than the one it was signed with'
  await refuses(t, server, token, { about: 'the wrong key' })
  t.equal(lookups, 2 * WAYS.length)
  key = SECRET
  await refuses(t, server, token, { about: 'too early' })
  t.equal(lookups, 3 * WAYS.length)
  clock.set((now + 1) * 1000)
  await accepts(t, server, token)
  t.equal(lookups, 3 * WAYS.length + 1, 'and once for the success')
})

t.test('forged tokens do not push a known one out', async t => {
  let lookups = 0
  const server = await gate(t, { jwt: { key: () => { lookups++; return SECRET } } })
  const token = goodToken()
  await accepts(t, server, token)
  for (let i = 0; i < 300; i++) await present(server, 'HTTP header', garbled(goodToken()))
  lookups = 0
  await accepts(t, server, token)
  t.equal(lookups, 0)
})

t.test('a key function is asked again after 30 seconds, and a key that it no longer gives has ended', async t => {
  const start = Date.now()
  for (const slow of [false, true]) {
    const clock = fakeClock(t, start)
    let key: string | null = SECRET
    let lookups = 0
    const give = () => { lookups++; return key }
    const server = await gate(t, { jwt: { key: slow ? async () => give() : give } })
    const token = goodToken()
    await accepts(t, server, token, { about: 'at first' })
    clock.set(start + 29_999)
    await accepts(t, server, token, { about: 'just before' })
    t.equal(lookups, 1)
    clock.set(start + 30_000)
    await accepts(t, server, token, { about: 'after 30 s' })
    t.equal(lookups, 2)
    key = null
    clock.set(start + 59_999)
    await accepts(t, server, token, { about: 'withdrawn, and just before' })
    clock.set(start + 60_000)
    await refuses(t, server, token, { about: 'withdrawn' })
    await refuses(t, server, token, { about: 'withdrawn, again' })
  }
})

t.test('a mapper is asked for each use of a token, and decides anew', async t => {
  let calls = 0
  let known = true
  const server = await gate(t, {
    jwt: {
      async user (claims) {
        calls++
        t.ok(Object.isFrozen(claims) && Object.isFrozen(claims.nested))
        return known ? { userId: `user of ${claims.sub ?? ''}` } : null
      }
    }
  })
  const token = goodToken({ nested: { a: 1 } })
  await accepts(t, server, token, { context: { userId: 'user of alice' } })
  t.equal(calls, WAYS.length)
  known = false
  await refuses(t, server, token)
})

t.test('the cache holds no more entries than it may, and keeps those that are asked for', async t => {
  const cache = new GenerationCache<number>(100, 1e9)
  let largest = 0
  for (let i = 0; i < 1000; i++) {
    cache.set(`key ${i}`, i)
    t.equal(cache.get('key 0'), 0, 'what is asked for stays')
    largest = Math.max(largest, cache.size)
  }
  t.ok(largest <= 100 && largest > 50, `at most ${largest} entries`)
  t.equal(cache.get('key 999'), 999)
  t.equal(cache.get('key 1'), undefined, 'what is not asked for goes')
  cache.delete('key 0')
  t.equal(cache.get('key 0'), undefined)
  cache.delete('never there')
})

t.test('the cache forgets what is deleted out of either generation', async t => {
  const cache = new GenerationCache<string>(4, 1e9)
  cache.set('a', 'old')
  cache.set('b', 'old')
  cache.set('c', 'young')
  for (const key of ['a', 'b', 'c']) {
    cache.delete(key)
    t.equal(cache.get(key), undefined, key)
  }
  t.equal(cache.size, 0)
  cache.set('a', 'first')
  cache.set('a', 'second')
  t.equal(cache.get('a'), 'second')
  t.equal(cache.size, 1)
})

t.test('the cache holds no more bytes than it may, at four for a character of a key', async t => {
  const cache = new GenerationCache<number>(1e6, 40_000)
  let largest = 0
  for (let i = 0; i < 1000; i++) {
    cache.set(String(i).padStart(100, '0'), i)
    largest = Math.max(largest, cache.size)
  }
  t.ok(largest * 400 <= 40_000 && largest > 40, `at most ${largest} entries`)
})

t.test('the cache does not keep an entry that its bound has no room for', async t => {
  const cache = new GenerationCache<number>(100, 40_000)
  cache.set('a'.repeat(10_001), 1)
  cache.set('b'.repeat(10_001), 2)
  t.ok(cache.size * 40_004 <= 40_000, `${cache.size} entries of 40 004 bytes each`)
})

/** Registration fails, naming the option and no part of the key. */
async function refusesOption (t: Test, about: string, jwt: object, path = 'jwt.key') {
  const app = Fastify()
  t.teardown(() => app.close())
  const outcome: unknown = await app.register(hybridAuth, { jwt: jwt as JwtOptions }).then(() => 'registered', (error: unknown) => error)
  t.match(outcome, { code: 'FST_HYBRID_AUTH_INVALID_OPTION' }, about)
  const message = outcome instanceof Error ? outcome.message : ''
  t.ok(message.startsWith(`Invalid option ${path}: `), `${about}: it names ${path} in "${message}"`)
  t.notMatch(message, /BEGIN|MII|"kty"|secret for tests/, `${about}: the message holds no key`)
}

t.test('case 84: algorithms that are missing, no list, empty, none, unknown or of several families do not register', async t => {
  for (const algorithms of [undefined, null, 'HS256', 'HS256,HS384', {}, new Set(['HS256']), [], ['HS256', 'RS256'], ['RS256', 'ES256'], ['ES256', 'EdDSA'], ['PS256', 'HS256']]) {
    await refusesOption(t, `algorithms ${JSON.stringify(algorithms)}`, { key: SECRET, algorithms }, 'jwt.algorithms')
  }
  for (const algorithm of ['none', 'None', 'hs256', 'HS256 ', 'ES256K', 'RSA-OAEP', '', null, 1]) {
    await refusesOption(t, `algorithm ${JSON.stringify(algorithm)}`, { key: SECRET, algorithms: [algorithm] }, 'jwt.algorithms.0')
    await refusesOption(t, `algorithm ${JSON.stringify(algorithm)} beside another`, { key: SECRET, algorithms: ['HS256', algorithm] }, 'jwt.algorithms.1')
  }
})

t.test('case 85: an HMAC key shorter than its hash does not register', async t => {
  for (const [algorithm, bytes] of [['HS256', 32], ['HS384', 48], ['HS512', 64]] as const) {
    const short = Buffer.from(SECRET.repeat(3)).subarray(0, bytes - 1)
    for (const key of [short, short.toString(), createSecretKey(short), { key: short, algorithm }]) {
      await refusesOption(t, `${algorithm}, one byte too short`, { key, algorithms: [algorithm] })
    }
    await refusesOption(t, `${algorithm}, in a map`, { key: { k1: short }, algorithms: [algorithm] }, 'jwt.key.k1')
  }
  await refusesOption(t, 'long enough for one of two', { key: SECRET, algorithms: ['HS256', 'HS512'] })
  await refusesOption(t, 'one byte', { key: 'x', algorithms: ['HS256'] })
  for (const key of ['', Buffer.alloc(0)]) await refusesOption(t, 'empty', { key, algorithms: ['HS256'] })
})

t.test('case 85: an HMAC key that looks like PEM, JWK or DER does not register', async t => {
  const wrap = (text: string) => text.replace(/.{64}/g, '$&\n')
  for (const [kind, pair] of Object.entries({ RSA: rsa, EC: p256, Ed25519: ed25519 })) {
    const pem = pemOf(pair.publicKey)
    const privateDer = pair.privateKey.export({ type: 'pkcs8', format: 'der' })
    const texts: Record<string, string> = {
      PEM: pem,
      'PEM, trimmed': pem.trim(),
      'PEM behind a line': `\n  ${pem}`,
      'PEM behind a byte order mark': `\ufeff${pem}`,
      'PEM with CRLF': pem.replaceAll('\n', '\r\n'),
      'PEM on one line': pem.replaceAll('\n', '\\n'),
      'a private PEM': pemOf(pair.privateKey),
      'a certificate': certificateOf(p256.publicKey),
      JWK: jwkOf(pair.publicKey),
      'a private JWK': jwkOf(pair.privateKey),
      'JWK behind a line': `\n ${jwkOf(pair.publicKey)}\n`,
      'a JWK set': JSON.stringify({ keys: [pair.publicKey.export({ format: 'jwk' })] }, null, 2),
      'a list of JWKs': JSON.stringify([pair.publicKey.export({ format: 'jwk' })]),
      'base64 of DER': derOf(pair.publicKey).toString('base64'),
      'base64 of DER, wrapped': `${wrap(derOf(pair.publicKey).toString('base64'))}\n`,
      'base64url of DER': derOf(pair.publicKey).toString('base64url'),
      'base64 of a private DER': privateDer.toString('base64')
    }
    const bytes: Record<string, Buffer> = { DER: derOf(pair.publicKey), 'a private DER': privateDer }
    for (const [what, text] of Object.entries(texts)) {
      await refusesOption(t, `${kind}: ${what}`, { key: text, algorithms: ['HS256'] })
      bytes[`${what} as Buffer`] = Buffer.from(text)
    }
    for (const [what, buffer] of Object.entries(bytes)) {
      await refusesOption(t, `${kind}: ${what}`, { key: buffer, algorithms: ['HS256'] })
      await refusesOption(t, `${kind}: ${what} in a secret KeyObject`, { key: createSecretKey(buffer), algorithms: ['HS256'] })
    }
    await refusesOption(t, `${kind}: in a map`, { key: { k1: pem }, algorithms: ['HS256'] }, 'jwt.key.k1')
    await refusesOption(t, `${kind}: pinned`, { key: { key: pem, algorithm: 'HS256' }, algorithms: ['HS256'] })
    await refusesOption(t, `${kind}: a public KeyObject`, { key: pair.publicKey, algorithms: ['HS256'] })
    await refusesOption(t, `${kind}: a private KeyObject`, { key: pair.privateKey, algorithms: ['HS256'] })
  }
  const pkcs1 = rsa.publicKey.export({ type: 'pkcs1', format: 'der' })
  await refusesOption(t, 'DER of PKCS #1', { key: pkcs1, algorithms: ['HS256'] })
  await refusesOption(t, 'base64 of DER of PKCS #1', { key: pkcs1.toString('base64'), algorithms: ['HS256'] })
})

t.test('case 85: a JWK behind a byte order mark, as editors write files, does not register as an HMAC key', async t => {
  const text = `\ufeff${jwkOf(rsa.publicKey)}`
  await refusesOption(t, 'as text', { key: text, algorithms: ['HS256'] })
  await refusesOption(t, 'as Buffer', { key: Buffer.from(text), algorithms: ['HS256'] })
})

t.test('secrets that only resemble a key are secrets', async t => {
  for (const secret of [
    '{ this begins like JSON and is none, which is fine }', '[another one that is no JSON text at all', '0 is 0x30 and begins like DER, by chance',
    'MIIB looks like base64 of DER, which it is not', '-----  a secret with dashes in front  -----'
  ]) await accepts(t, await gate(t, { jwt: { key: secret } }), signHs256(goodClaims(), {}, secret), { about: secret })
  for (const secret of [Buffer.from([0x30, 0x84, ...Buffer.alloc(40, 1)]), Buffer.from([0x30, 0x20, 0x02, ...Buffer.alloc(30, 1)]), Buffer.alloc(32, 0x30), Buffer.alloc(32)]) {
    await accepts(t, await gate(t, { jwt: { key: secret } }), signHs256(goodClaims(), {}, secret), { about: secret.toString('hex') })
  }
})

t.test('case 85: an RSA key under 2 048 bits, or with a tiny exponent, does not register', async t => {
  const small = generateKeyPairSync('rsa', { modulusLength: 1024 })
  const nearly = generateKeyPairSync('rsa', { modulusLength: 2040 })
  for (const algorithm of ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'] as const) {
    for (const key of [small.publicKey, pemOf(small.publicKey), Buffer.from(pemOf(small.publicKey)), small.privateKey, nearly.publicKey]) {
      await refusesOption(t, `a small key for ${algorithm}`, { key, algorithms: [algorithm] })
    }
  }
  const { n = '' } = rsa.publicKey.export({ format: 'jwk' })
  for (const e of ['AQ', 'Ag']) {
    const key = createPublicKey({ key: { kty: 'RSA', n, e }, format: 'jwk' })
    await refusesOption(t, `exponent ${e}`, { key, algorithms: ['RS256'] })
    await refusesOption(t, `exponent ${e} as PEM`, { key: pemOf(key), algorithms: ['PS256'] })
  }
  const server = await gate(t, { jwt: { key: () => small.publicKey, algorithms: ['RS256'] } })
  const input = [{ alg: 'RS256' }, goodClaims()].map(part => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
  await refuses(t, server, `${input}.${sign('sha256', Buffer.from(input), small.privateKey).toString('base64url')}`, { as: 'unavailable', about: 'from a function' })
})

t.test('case 85: a key of another kind or curve than its algorithm does not register', async t => {
  const k256 = generateKeyPairSync('ec', { namedCurve: 'secp256k1' })
  const x25519 = generateKeyPairSync('x25519')
  const kinds: Array<[KeyObject, readonly Algorithm[]]> = [
    [k256.publicKey, []], [x25519.publicKey, []], [p256.publicKey, ['ES256']], [p384.publicKey, ['ES384']], [p521.publicKey, ['ES512']],
    [ed25519.publicKey, ['EdDSA']], [rsa.publicKey, ['RS256', 'PS256']]
  ]
  for (const [key, fitting] of kinds) {
    for (const algorithm of ['RS256', 'PS256', 'ES256', 'ES384', 'ES512', 'EdDSA'] as const) {
      if (fitting.includes(algorithm)) continue
      const about = `${key.asymmetricKeyDetails?.namedCurve ?? key.asymmetricKeyType ?? ''} for ${algorithm}`
      await refusesOption(t, about, { key, algorithms: [algorithm] })
      await refusesOption(t, `${about}, as PEM`, { key: pemOf(key), algorithms: [algorithm] })
    }
  }
  for (const algorithm of ['RS256', 'PS256', 'ES256', 'EdDSA'] as const) {
    await refusesOption(t, `a secret for ${algorithm}`, { key: SECRET, algorithms: [algorithm] })
    await refusesOption(t, `a secret KeyObject for ${algorithm}`, { key: PAIRS.HS256.publicKey, algorithms: [algorithm] })
  }
  await refusesOption(t, 'a key that fits one of two', { key: p256.publicKey, algorithms: ['ES256', 'ES384'] })
  const map = await gate(t, { jwt: { key: { a: p256.publicKey, b: p384.publicKey }, algorithms: ['ES256', 'ES384'] } })
  await accepts(t, map, await mint('ES256', { kid: 'a' }))
  await accepts(t, map, await mint('ES384', { kid: 'b' }))
  await refuses(t, map, await mint('ES384', { kid: 'a' }))
})

t.test('case 85: what is no key, a JWK, a map without a key, or a key that could serve two algorithms does not register', async t => {
  for (const key of [undefined, null, 1, true, Symbol('key'), {}, new Map([['k1', SECRET]])]) {
    await refusesOption(t, `key ${typeof key}`, { key, algorithms: ['HS256'] })
  }
  for (const pair of [rsa, p256, ed25519]) {
    await refusesOption(t, 'a JWK as object', { key: pair.publicKey.export({ format: 'jwk' }), algorithms: ['RS256'] })
  }
  await refusesOption(t, 'a JWK as object, of a secret', { key: { kty: 'oct', k: 'x'.repeat(43) }, algorithms: ['HS256'] })
  for (const value of [1, null, undefined, {}, [SECRET], () => SECRET, new Uint8Array(32)]) {
    await refusesOption(t, `a map with ${typeof value}`, { key: { k1: SECRET, k2: value }, algorithms: ['HS256'] }, 'jwt.key.k2')
  }
  const both = Buffer.from(SECRET.repeat(2))
  await refusesOption(t, 'an ambiguous RSA key in a map', { key: { k1: rsa.publicKey }, algorithms: ['RS256', 'PS256'] }, 'jwt.key.k1')
  await refusesOption(t, 'an ambiguous secret in a map', { key: { k1: both }, algorithms: ['HS256', 'HS512'] }, 'jwt.key.k1')
  await refusesOption(t, 'a pin outside of the list', { key: { key: SECRET, algorithm: 'HS512' }, algorithms: ['HS256'] })
  await refusesOption(t, 'a pin outside of the list, in a map', { key: { k1: { key: SECRET, algorithm: 'RS256' } }, algorithms: ['HS256'] }, 'jwt.key.k1')
  await refusesOption(t, 'a locked private key', {
    key: rsa.privateKey.export({ type: 'pkcs8', format: 'pem', cipher: 'aes-128-cbc', passphrase: 'x' }), algorithms: ['RS256']
  })
  await refusesOption(t, 'half a PEM', { key: pemOf(rsa.publicKey).slice(0, 200), algorithms: ['RS256'] })
})

t.test('case 86: an issuer, audience or typ that is no exact text does not register', async t => {
  for (const name of ['issuer', 'audience']) {
    const values: Array<[unknown, string]> = [
      [/example/, ''], ['', ''], [[], ''], [null, ''], [1, ''], [{}, ''], [true, ''], [() => true, ''],
      [[''], '.0'], [['ok', ''], '.1'], [[/example/], ''], [['ok', null], '']
    ]
    for (const [given, inside] of values) {
      await refusesOption(t, `${name} ${JSON.stringify(given)}`, { key: SECRET, algorithms: ['HS256'], [name]: given }, `jwt.${name}${inside}`)
    }
  }
  for (const typ of ['', null, 1, /jwt/, ['JWT']]) await refusesOption(t, `typ ${String(typ)}`, { key: SECRET, algorithms: ['HS256'], typ }, 'jwt.typ')
})

t.test('case 87: a time or length that is no number in range does not register', async t => {
  const ranges: Record<string, unknown[]> = {
    clockTolerance: [NaN, Infinity, -Infinity, 301, 300.001, -1, '5', '5s', null, true, {}],
    maxAge: [NaN, Infinity, 0, -1, '60s', '60', null, 1e10],
    maxTokenLength: [NaN, Infinity, 0, -1, '8192', null, 65_537]
  }
  for (const [name, values] of Object.entries(ranges)) {
    for (const value of values) await refusesOption(t, `${name} ${typeof value} ${JSON.stringify(value)}`, { key: SECRET, algorithms: ['HS256'], [name]: value }, `jwt.${name}`)
  }
  for (const value of ['true', 1, null, 0]) {
    await refusesOption(t, `allowNoExpiry ${String(value)}`, { key: SECRET, algorithms: ['HS256'], allowNoExpiry: value }, 'jwt.allowNoExpiry')
  }
  for (const value of [null, {}, 'sub']) await refusesOption(t, `user ${JSON.stringify(value)}`, { key: SECRET, algorithms: ['HS256'], user: value }, 'jwt.user')
})

t.test('case 88: an unknown member of a pinned key does not register', async t => {
  await refusesOption(t, 'an unknown member of jwt', { key: SECRET, algorithms: ['HS256'], secret: SECRET }, 'jwt.secret')
  await refusesOption(t, 'a pinned key', { key: { key: SECRET, algorithm: 'HS256', kid: 'k1' }, algorithms: ['HS256'] })
  await refusesOption(t, 'a pinned key in a map', { key: { k1: { key: SECRET, algorithm: 'HS256', issuer: 'x' } }, algorithms: ['HS256'] }, 'jwt.key.k1')
})
