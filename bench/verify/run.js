/**
 * What one verification costs, in one process: ours, fast-jwt alone, and the bare signature check of node:crypto, in turns.
 * Reads the build of lib/: run `npm run build` before it.
 */
import { createHmac, createPublicKey, timingSafeEqual, verify } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createVerifier } from 'fast-jwt'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { jwks } from 'fastify-hybrid-auth/providers'
import { parseOptions } from '../../dist/esm/lib/options.js'
import { createJwtVerifier } from '../../dist/esm/lib/verify/jwt.js'
import { head, line, median, quartiles } from '../statistics.js'
import { ALGORITHMS, createIssuer, generateKeys, verifyingKey } from '../tokens.js'

const ROUNDS = Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 10
// What may be spent around the signature check, in microseconds: on the form, the JSON, the claims.
const OVERHEAD = 6
const TOLERANCE = 1.1
const TOKENS = { HS256: 1000, RS256: 200, ES256: 200, EdDSA: 200 }
const HITS = 5000
const PUBLISHED_GOAL = 0.97

const keys = generateKeys()

console.log(`Node.js ${process.version}, ${ROUNDS} rounds\n`)
console.log(head(['never seen', 'ours µs', 'fast-jwt µs', 'node:crypto µs', 'fast-jwt / ours', 'quartiles', `ours / (node:crypto + ${OVERHEAD} µs)`, 'quartiles', 'goal', 'result']))
for (const algorithm of ALGORITHMS) console.log(describeNeverSeen(algorithm, await measureNeverSeen(algorithm)))

console.log('\n' + head(['never seen, RS256', 'µs', 'to a key that is given', 'quartiles', 'goal', 'result']))
for (const cells of await measurePublished()) console.log(line(cells))

console.log('\n' + head(['seen before, HS256', 'µs', 'quartiles', 'of fast-jwt with its cache', 'quartiles']))
for (const cells of await measureSeen()) console.log(line(cells))

async function measureNeverSeen (algorithm) {
  const count = TOKENS[algorithm]
  const issue = createIssuer(algorithm, keys[algorithm].privateKey)
  const ours = createOurs(algorithm)
  const fastJwt = createVerifier({ key: keys[algorithm].publicKey, algorithms: [algorithm] })
  const floor = createFloor(algorithm)
  return inTurns(() => Array.from({ length: count }, issue), {
    ours: tokens => { for (const token of tokens) if (typeof ours(token) === 'string') throw new Error('a good token was refused') },
    fastJwt: tokens => { for (const token of tokens) fastJwt(token) },
    floor: tokens => { for (const token of tokens) if (!floor(token)) throw new Error('a good signature was refused') }
  })
}

function createOurs (algorithm, key = verifyingKey(algorithm, keys[algorithm])) {
  return createJwtVerifier(parseOptions({ jwt: { key, algorithms: [algorithm] } }).jwt, { cacheHits: 0, cacheMisses: 0 }, () => {}).verify
}

/** The same key under a name, given here or published by an issuer, and a token that was never seen. */
async function measurePublished () {
  const algorithm = 'RS256'
  const { publicKey, privateKey } = keys[algorithm]
  const document = JSON.stringify({ keys: [{ ...createPublicKey(publicKey).export({ format: 'jwk' }), kid: 'a', use: 'sig', alg: algorithm }] })
  const server = createServer((request, response) => { response.end(document) }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const issue = createIssuer(algorithm, privateKey, 'a')
  const published = createOurs(algorithm, jwks(`http://127.0.0.1:${server.address().port}/`))
  const given = createOurs(algorithm, { a: publicKey })
  const twin = createOurs(algorithm, { a: publicKey })
  // The first one fetches.
  if (typeof await published(issue()) === 'string') throw new Error('a good token was refused')
  server.close()
  const all = verifyOne => tokens => { for (const token of tokens) if (typeof verifyOne(token) === 'string') throw new Error('a good token was refused') }
  const times = inTurns(() => Array.from({ length: TOKENS[algorithm] }, issue), { given: all(given), published: all(published), twin: all(twin) })
  return ['twin', 'published'].map(name => {
    const ratios = times.given.map((value, i) => value / times[name][i])
    const isMet = name === 'twin' || median(ratios) >= PUBLISHED_GOAL
    return [name === 'twin' ? 'A/A: a key that is given, twice' : 'a key of a JWK Set', median(times[name]).toFixed(1), median(ratios).toFixed(3), quartiles(ratios), name === 'twin' ? '' : `≥ ${PUBLISHED_GOAL}`, name === 'twin' ? '' : isMet ? 'met' : 'missed']
  })
}

/** Nothing but the signature. */
function createFloor (algorithm) {
  const { publicKey } = keys[algorithm]
  const key = algorithm === 'HS256' ? publicKey : createPublicKey(publicKey)
  const hash = algorithm === 'EdDSA' ? null : 'sha256'
  const check = algorithm === 'HS256'
    ? (input, signature) => timingSafeEqual(createHmac('sha256', key).update(input).digest(), signature)
    : (input, signature) => verify(hash, Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' }, signature)
  return token => {
    const end = token.lastIndexOf('.')
    return check(token.slice(0, end), Buffer.from(token.slice(end + 1), 'base64url'))
  }
}

async function measureSeen () {
  const issue = createIssuer('HS256', keys.HS256.privateKey)
  const token = issue()
  const ours = createOurs('HS256')
  const cached = createVerifier({ key: keys.HS256.publicKey, algorithms: ['HS256'], cache: true })
  const { guard, requestWith } = await createGuard()
  const bytes = Buffer.from(token)
  // Every request brings a string of its own, whose hash nobody computed yet.
  const times = inTurns(() => Array.from({ length: HITS }, () => ({ arrived: bytes.latin1Slice(), request: requestWith(bytes.latin1Slice()) })), {
    fastJwt: all => { for (const { arrived } of all) cached(arrived) },
    ours: all => { for (const { arrived } of all) ours(arrived) },
    guard: all => {
      let passed = 0
      const reply = { sent: false }
      for (const { request } of all) guard(request, reply, () => { passed++ })
      if (passed !== all.length) throw new Error('the guard refused a good token')
    }
  })
  const row = (name, values) => {
    const ratios = values.map((value, i) => value / times.fastJwt[i])
    return [name, median(values).toFixed(2), quartiles(values), median(ratios).toFixed(2), quartiles(ratios)]
  }
  return [row('fast-jwt with its cache', times.fastJwt), row('our verifier', times.ours), row('our whole hook', times.guard)]
}

/** The hook of a route, and requests that have what it reads of them. */
async function createGuard () {
  const app = Fastify()
  await app.register(hybridAuth, { jwt: { key: keys.HS256.publicKey, algorithms: ['HS256'] } })
  class Request {
    [Symbol.for('fastify-hybrid-auth.context')] = null
    ws = true
    constructor (token) {
      this.headers = { host: '127.0.0.1', authorization: token }
      this.log = app.log
      this.routeOptions = { url: '/' }
      this.raw = { destroyed: false, rawHeaders: ['Host', '127.0.0.1', 'Connection', 'Upgrade', 'Upgrade', 'websocket', 'Authorization', token] }
    }
  }
  return { guard: app.hybridAuth.require(), requestWith: token => new Request(`Bearer ${token}`) }
}

/** Microseconds per item and round, of each; every round has items of its own and begins with another of them. */
function inTurns (makeItems, subjects) {
  const names = Object.keys(subjects)
  const times = Object.fromEntries(names.map(name => [name, []]))
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    const items = makeItems()
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round + WARM_UP) % names.length]
      globalThis.gc?.({ type: 'minor' })
      const start = process.hrtime.bigint()
      subjects[name](items)
      const micros = Number(process.hrtime.bigint() - start) / 1000 / items.length
      if (round >= 0) times[name].push(micros)
    }
  }
  return times
}

function describeNeverSeen (algorithm, { ours, fastJwt, floor }) {
  const toPeer = fastJwt.map((value, i) => value / ours[i])
  const toFloor = ours.map((value, i) => value / (floor[i] + OVERHEAD))
  const excess = median(toFloor) - TOLERANCE
  return line([
    algorithm, median(ours).toFixed(1), median(fastJwt).toFixed(1), median(floor).toFixed(1),
    median(toPeer).toFixed(2), quartiles(toPeer), median(toFloor).toFixed(2), quartiles(toFloor),
    `≤ ${TOLERANCE}`, excess <= 0 ? 'met' : `missed by ${excess.toFixed(2)}`
  ])
}
