/** Opaque tokens: what their authorization server is asked, what is made of its answers, what is remembered of them, and what is not. */
import { createHash, createSecretKey, generateKeyPairSync, randomBytes, type KeyObject } from 'node:crypto'
import { spawn } from 'node:child_process'
import type { RequestListener } from 'node:http'
import { text } from 'node:stream/consumers'
import { inspect } from 'node:util'
import { gzipSync } from 'node:zlib'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { serializers, type Claims, type HybridAuthOptions, type Identity } from '../lib/index.js'
import { openIntrospector } from '../lib/verify/introspector.js'
import { RemoteTokens, type Ask } from '../lib/verify/remote-tokens.js'
import { introspection, type AssertionAlgorithm, type IntrospectionOptions } from '../lib/verify/providers.js'
import { CLUSTER_SECRET, redisNode } from './cluster-suite.js'
import { secret as canary } from './canary.js'
import { goodToken, handshake, inSeconds, JWT, keepLines, rawExchange, signHs256, upgrade } from './helpers.js'
import { eventually, setClock } from './live.js'
import {
  active, asking, askingRoutes, assertionOf, authorizationServer, basicOf, CLIENT, dressed, dribbles, introspectionOf, opaque, type Asking
} from './introspecting.js'
import { hangs, says, saysJson, stopwatch } from './provider.js'
import { needsRedis, startRedis } from './redis.js'
import { driverOf, isRevoked, outcome, REVOKED, untyped, updateOf, withoutId } from './revoking.js'
import { ask, codeOf, deferred } from './stores.js'
import { accepts, gate, outcomes, refuses, WAYS, type RefusalName } from './ways.js'
import { authFrame, connected } from './wire.js'

const INVALID_TOKEN = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const EXPIRED_TOKEN = 'FST_HYBRID_AUTH_EXPIRED_TOKEN'
const REVOKED_TOKEN = 'FST_HYBRID_AUTH_REVOKED_TOKEN'
const UNAVAILABLE = 'FST_HYBRID_AUTH_UNAVAILABLE'
const INVALID_TICKET = 'FST_HYBRID_AUTH_INVALID_TICKET'
const ISSUER = 'https://as.example.com'
const AUDIENCE = 'urn:api'
/** Every question is asked. */
const UNREMEMBERED = { maxAge: 0, negativeMaxAge: 0 } as const satisfies Partial<IntrospectionOptions>

const times = <T>(n: number, make: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => make(i))
const hashOf = (token: string) => 'sha256:' + createHash('sha256').update(token).digest('base64url')
/** The signature is no part of it. */
const nameOfJws = (token: string) => hashOf(token.slice(0, token.lastIndexOf('.')))
const b64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
/** A JWS by its form, signed by nobody whom anybody here knows. */
const foreignJws = (claims: object = {}, header: object = {}) => canary(`${b64({ alg: 'RS256', ...header })}.${b64({ sub: 'alice', exp: inSeconds(300), ...claims })}.${randomBytes(256).toString('base64url')}`)

/** The code that a first message is closed with; 0 where it lets in. */
async function firstMessage (t: Test, { host }: Asking, token: string): Promise<number> {
  const peer = await connected(t, host, { path: '/first', token: null })
  peer.send(authFrame(token))
  const { code } = await Promise.race([peer.closed, peer.heard.next().then(() => ({ code: 0 }))])
  peer.socket.terminate()
  return code
}

/** What is said to fresh tokens on one open socket of alice. */
async function updating (server: Asking): Promise<(token: string) => Promise<unknown>> {
  const { peer } = await server.open({ token: goodToken({ sub: 'alice', iss: ISSUER }), speaks: true })
  return async token => {
    peer.say(updateOf(token))
    const { type, code } = JSON.parse(await peer.take() ?? '{}') as Record<string, unknown>
    return type === 'error' ? code : type
  }
}

/** What makes an answer bad, or good, for a server that wants this issuer and audience. */
const NAMED = { iss: ISSUER, aud: AUDIENCE }
const answerOf = (changes: object) => JSON.stringify(active({ ...NAMED, ...changes }))
const REFUSED: Record<string, readonly [body: string, as?: RefusalName]> = {
  ...Object.fromEntries(Object.entries({
    'the text true': '"true"', 'the text True': '"True"', 'the text false': '"false"', 'an empty text': '""', 1: '1', 0: '0', '-1': '-1', null: 'null', 'a list': '[]',
    'a list of true': '[true]', 'an object': '{}', 'an object that says so': '{"active":true}', false: 'false'
  }).map(([what, value]) => [`active that is ${what}`, [answerOf({}).replace('"active":true', `"active":${value}`)] as const])),
  'active that is missing': [answerOf({ active: undefined })],
  'active by another name': [answerOf({ active: undefined, Active: true, 'active ': true, is_active: true })],
  'active twice, false in the end': [answerOf({}).replace('}', ',"active":false}')],
  'active that a prototype would have': [answerOf({ active: undefined }).replace('{', '{"__proto__":{"active":true},')],
  'an empty object': ['{}'],
  'an error in JSON': ['{"error":"invalid_token"}'],
  'exp a second ago': [answerOf({ exp: inSeconds(-1) }), 'expired'],
  'exp that is 1': [answerOf({ exp: 1 }), 'expired'],
  'exp that is 0': [answerOf({ exp: 0 }), 'expired'],
  'exp as text': [answerOf({ exp: String(inSeconds(300)) })],
  'exp as a date': [answerOf({ exp: new Date(Date.now() + 300_000) })],
  'exp that is null': [answerOf({ exp: null })],
  'exp that is true': [answerOf({ exp: true })],
  'exp that is a list': [answerOf({ exp: [inSeconds(300)] })],
  'exp before all times': [answerOf({ exp: -1 })],
  'exp of 1e400': [answerOf({ exp: 7 }).replace('"exp":7', '"exp":1e400')],
  'exp of 1e308': [answerOf({ exp: 1e308 })],
  'exp in milliseconds': [answerOf({ exp: Date.now() * 1e6 })],
  'nbf ahead': [answerOf({ nbf: inSeconds(60) })],
  'nbf as text': [answerOf({ nbf: '1' })],
  'iat a year ahead': [answerOf({ iat: inSeconds(365 * 86_400) })],
  'iat as text': [answerOf({ iat: '1' })],
  'no iss': [answerOf({ iss: undefined })],
  'iss of somebody else': [answerOf({ iss: 'https://other.example.com' })],
  'iss with a slash behind': [answerOf({ iss: `${ISSUER}/` })],
  'iss in another case': [answerOf({ iss: ISSUER.toUpperCase() })],
  'iss that begins like ours': [answerOf({ iss: `${ISSUER}.evil.example` })],
  'iss in a list': [answerOf({ iss: [ISSUER] })],
  'iss that is null': [answerOf({ iss: null })],
  'no aud': [answerOf({ aud: undefined })],
  'aud of somebody else': [answerOf({ aud: 'urn:other' })],
  'aud that begins like ours': [answerOf({ aud: `${AUDIENCE}:more` })],
  'an empty aud': [answerOf({ aud: '' })],
  'an empty list as aud': [answerOf({ aud: [] })],
  'a list of others as aud': [answerOf({ aud: ['urn:a', 'urn:b'] })],
  'an aud of mixed types': [answerOf({ aud: [AUDIENCE, 7] })],
  'an aud that is an object': [answerOf({ aud: { 0: AUDIENCE } })],
  'no sub': [answerOf({ sub: undefined })],
  'sub that is null': [answerOf({ sub: null })],
  'an empty sub': [answerOf({ sub: '' })],
  'sub that is a number': [answerOf({ sub: 123 })],
  'sub that is an object': [answerOf({ sub: {} })],
  'sub of 10 KiB': [answerOf({ sub: 'a'.repeat(10_240) })],
  'a username alone': [answerOf({ sub: undefined, username: 'alice' })],
  'a role that is a list': [answerOf({ role: ['admin'] })],
  'permissions that are a text': [answerOf({ permissions: 'read' })],
  'token_type DPoP': [answerOf({ token_type: 'DPoP' })],
  'token_type mac': [answerOf({ token_type: 'mac' })],
  'token_type N_A': [answerOf({ token_type: 'N_A' })],
  'token_type refresh_token': [answerOf({ token_type: 'refresh_token' })],
  'an empty token_type': [answerOf({ token_type: '' })],
  'token_type that is null': [answerOf({ token_type: null })],
  'token_type in a list': [answerOf({ token_type: ['Bearer'] })],
  'typ Refresh, as Keycloak says it': [answerOf({ typ: 'Refresh' })],
  'typ Offline': [answerOf({ typ: 'Offline' })],
  'typ ID': [answerOf({ typ: 'ID' })],
  'typ Logout': [answerOf({ typ: 'Logout' })],
  'the event of a logout token': [answerOf({ events: { 'http://schemas.openid.net/event/backchannel-logout': {} } })],
  'token_use refresh': [answerOf({ token_use: 'refresh' })],
  'token_use refresh_token': [answerOf({ token_use: 'refresh_token' })],
  'token_use id': [answerOf({ token_use: 'id' })],
  'token_use that is null': [answerOf({ token_use: null })],
  'token_use in a list': [answerOf({ token_use: ['access'] })]
}
const BOUND: Record<string, readonly [body: string]> = {
  'the thumbprint of a key': [answerOf({ cnf: { jkt: 'a'.repeat(43) } })],
  'the thumbprint of a certificate': [answerOf({ cnf: { 'x5t#S256': 'a'.repeat(43) } })],
  'an empty object': [answerOf({ cnf: {} })],
  null: [answerOf({ cnf: null })],
  'an empty text': [answerOf({ cnf: '' })],
  false: [answerOf({ cnf: false })]
}

/** Servers for the whole table: nothing is remembered from one row to the next. */
async function refusedEverywhere (t: Test, table: Record<string, readonly [body: string, as?: RefusalName]>, title: (what: string) => string) {
  const source = await authorizationServer(t)
  const options = { ...UNREMEMBERED, issuer: ISSUER, audience: AUDIENCE }
  const guarded = await gate(t, { auth: { introspection: introspectionOf(source, options) } })
  const server = await asking(t, { as: source, introspection: options })
  const update = await updating(server)
  for (const [what, [body, as = 'invalid']] of Object.entries(table)) {
    await t.test(title(what), async t => {
      source.answer = says(body)
      const token = opaque()
      await refuses(t, guarded, token, { as, about: 'the token' })
      t.equal(source.times(token), WAYS.length, 'each time it was asked')
      t.equal(await firstMessage(t, server, token), as === 'expired' ? 4002 : 4001)
      t.equal(await update(token), 'refresh_failed')
      source.answer = null
      t.equal(await update(source.issue(NAMED)), 'auth_updated', 'and one that is good is good')
    })
  }
}

t.test('77: what an answer must not be', t => refusedEverywhere(t, REFUSED, what => `77: ${what}: 401, on every way in`))
t.test('31: tokens that are bound to keys', t => refusedEverywhere(t, BOUND, what => `31: a token bound to a key, cnf ${what}, is no bearer, on any way in`))

/** What is not wrong, and what the context says of it. */
const ACCEPTED: Record<string, readonly [changes: object, context?: object, options?: Partial<IntrospectionOptions>]> = {
  'everything in order': [NAMED, { issuer: ISSUER, permissions: ['read', 'write'], role: null, tenantId: null, user: { userId: 'alice' } }],
  'one of several issuers': [{ ...NAMED, iss: 'b' }, { issuer: 'b' }, { issuer: [ISSUER, 'b'] }],
  'one of several audiences': [{ ...NAMED, aud: 'b' }, {}, { audience: [AUDIENCE, 'b'] }],
  'an audience among others': [{ ...NAMED, aud: ['urn:other', AUDIENCE] }],
  'token_type bearer': [{ ...NAMED, token_type: 'bearer' }],
  'token_type BEARER': [{ ...NAMED, token_type: 'BEARER' }],
  'no token_type': [{ ...NAMED, token_type: undefined }],
  'token_use access': [{ ...NAMED, token_use: 'access' }],
  'token_use access_token': [{ ...NAMED, token_use: 'access_token' }],
  'token_use ACCESS': [{ ...NAMED, token_use: 'ACCESS' }],
  'typ Bearer': [{ ...NAMED, typ: 'Bearer' }],
  'typ at+jwt': [{ ...NAMED, typ: 'at+jwt' }],
  'events of another kind': [{ ...NAMED, events: { other: {} } }],
  'no exp': [{ ...NAMED, exp: undefined }, { expiresAt: null }],
  'exp within the tolerance': [{ ...NAMED, exp: inSeconds(-10) }, {}, { clockTolerance: 300 }],
  'nbf within the tolerance': [{ ...NAMED, nbf: inSeconds(60) }, {}, { clockTolerance: 300 }],
  'nbf a second ago': [{ ...NAMED, nbf: inSeconds(-1) }],
  'no scope': [{ ...NAMED, scope: undefined }, { permissions: [] }],
  'a scope that is a list, which grants nothing': [{ ...NAMED, scope: ['read'] }, { permissions: [] }],
  'permissions, which count before scope': [{ ...NAMED, permissions: ['property:read'] }, { permissions: ['property:read'] }],
  'a role and a tenant': [{ ...NAMED, role: 'agent', companyId: 'acme' }, { role: 'agent', tenantId: 'acme' }],
  'no iss, where none is wanted': [{ iss: undefined }, { issuer: null }, { issuer: undefined, audience: undefined }],
  'members of its own': [{ ...NAMED, client_id: 'app', username: 'Alice', nested: { list: [1, { a: null }] } }, { claims: { active: true, client_id: 'app', username: 'Alice', nested: { list: [1, { a: null }] } } }]
}
for (const [what, [changes, context = {}, options = {}]] of Object.entries(ACCEPTED)) {
  t.test(`an answer with ${what} is good on every way in`, async t => {
    const as = await authorizationServer(t)
    const token = as.issue(changes)
    const settings = { ...UNREMEMBERED, issuer: ISSUER, audience: AUDIENCE, ...options }
    const guarded = await gate(t, { auth: { introspection: introspectionOf(as, settings) } })
    const seen = await accepts(t, guarded, token, { context: { authType: 'oauth2', userId: 'alice', tokenId: hashOf(token), version: 1, ...context }, about: 'the token' })
    t.notOk(inspect(seen, { depth: Infinity }).includes(token), 'the context does not hold the token')
    t.equal(as.times(token), WAYS.length)
  })
}

t.test('77: exp of now is over, and what ends in a second is good for one', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await asking(t, { introspection: { ...UNREMEMBERED } })
  const [over, last] = [server.as.issue({ exp: Date.now() / 1000, iat: undefined }), server.as.issue({ exp: Date.now() / 1000 + 1, iat: undefined })]
  t.equal(codeOf((await server.me(over)).body), EXPIRED_TOKEN)
  t.equal(await server.status(last), 200)
})

t.test('77: an answer with __proto__, constructor and prototype leaves nothing behind', async t => {
  const server = await asking(t)
  const token = opaque()
  server.as.answer = says(answerOf({}).replace('{', '{"__proto__":{"role":"admin"},"constructor":{"prototype":{"role":"admin"}},"prototype":1,"deep":{"__proto__":{"a":1}},'))
  const context = await server.context(token)
  t.match(context, { authType: 'oauth2', role: null })
  t.strictSame(Object.keys(context.claims ?? {}).filter(name => ['__proto__', 'constructor', 'prototype'].includes(name)), [])
  t.equal(Reflect.get({}, 'role'), undefined)
  const { there } = await server.open({ token })
  const { context: held } = there.connection
  t.ok(Object.isFrozen(held) && 'claims' in held && Object.isFrozen(held.claims) && Object.isFrozen(held.claims.deep))
  t.strictSame('claims' in held && held.claims.deep, {})
})

const GOOD = JSON.stringify(active())
const padded = (length: number) => GOOD + ' '.repeat(length - GOOD.length)
const KIB = 1024
const deep = (levels: number) => GOOD.replace('{', `{"deep":${'['.repeat(levels)}${']'.repeat(levels)},`)
/** No answer at all, whatever the token is worth. */
const UNANSWERED: Record<string, RequestListener> = {
  'status 401': says('', { status: 401 }),
  'status 401 with a challenge': says('', { status: 401, headers: { 'www-authenticate': 'Basic realm="as", error="invalid_client"' } }),
  'status 401 with an answer': dressed({ status: 401 }),
  'status 403': says('', { status: 403 }),
  'status 400': says('{"error":"invalid_request"}', { status: 400 }),
  'status 404': says('not here', { status: 404, type: 'text/plain' }),
  'status 429': says('', { status: 429, headers: { 'retry-after': '1' } }),
  'status 500': says('', { status: 500 }),
  'status 500 with an answer': dressed({ status: 500 }),
  'status 502 with HTML': says('<!doctype html><title>Bad gateway</title>', { status: 502, type: 'text/html' }),
  'status 503': says('', { status: 503 }),
  'status 201 with an answer': dressed({ status: 201 }),
  'status 204': says('', { status: 204 }),
  'an answer that calls itself HTML': dressed({ type: 'text/html' }),
  'an answer that calls itself a text': dressed({ type: 'text/plain' }),
  'an answer that calls itself JSON of some other kind': dressed({ type: 'application/problem+json' }),
  'an answer that does not say what it is': (_request, response) => { response.writeHead(200).end(GOOD) },
  'half an answer': says(GOOD.slice(0, GOOD.length / 2)),
  'less than it promised': (_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': String(GOOD.length + 10) }).write(GOOD, () => { response.destroy() })
  },
  'chunks that never end': dribbles(response => { response.write(GOOD.slice(0, 10)) }),
  'chunks that are cut off': dribbles(response => { response.write(GOOD, () => { response.destroy() }) }),
  'gzip that is none': dressed({ headers: { 'content-encoding': 'gzip' } }),
  'two answers in one': says(GOOD + GOOD),
  'no answer': hangs,
  'a connection that is reset': request => { request.socket.resetAndDestroy() },
  'a connection that is closed': request => { request.socket.end() },
  'what is no HTTP': request => { request.socket.end('SSH-2.0-OpenSSH_9.6\r\n') },
  'an empty body': says(''),
  'a list': says(`[${GOOD}]`),
  'an empty list': says('[]'),
  null: says('null'),
  true: says('true'),
  'a number': says('1'),
  'a text': saysJson(GOOD),
  '5 MB': says(Buffer.alloc(5e6, ' ')),
  '5 MB with the answer in front': says(padded(5e6)),
  '5 MB that were 5 KB on the wire': says(gzipSync(padded(5e6)), { headers: { 'content-encoding': 'gzip' } }),
  'a byte more than 512 KiB': says(padded(512 * KIB + 1)),
  'more levels than there may be': says(deep(70)),
  '100 000 levels': says(deep(100_000)),
  'a redirect to itself': says('', { status: 302, headers: { location: '/introspect' } }),
  'a redirect with an answer as its body': dressed({ status: 307, headers: { location: '/introspect' } }),
  'a permanent redirect to nowhere': says('', { status: 308, headers: { location: 'http://127.0.0.1:1/' } }),
  'a signed answer, which nobody asked for': says(`${b64({ alg: 'RS256', typ: 'token-introspection+jwt' })}.${b64({ iss: ISSUER, aud: CLIENT.id, iat: inSeconds(0), token_introspection: active(NAMED) })}.AAAA`, { type: 'application/token-introspection+jwt' })
}

t.test('78: what is no answer', async t => {
  const server = await asking(t, { introspection: { timeout: 150, issuer: ISSUER } })
  const { as } = server
  const update = await updating(server)
  for (const [what, wrong] of Object.entries(UNANSWERED)) {
    await t.test(`78: ${what}: 503 for a new token, on every way in, while one that is remembered passes`, async t => {
      as.answer = null
      const [known, token] = [as.issue(NAMED), as.issue(NAMED)]
      t.equal(await server.status(known), 200)
      as.answer = wrong
      const { status, body, headers } = await server.me(token)
      t.strictSame([status, codeOf(body), headers.get('www-authenticate')], [503, UNAVAILABLE, null])
      t.equal((await server.upgrade(token)).status, 503)
      t.strictSame([await firstMessage(t, server, token), await update(token)], [4012, 'unavailable'])
      t.equal(as.times(token), 4, 'no failure is remembered for a verdict')
      t.equal(await server.status(known), 200)
      as.answer = null
      t.equal(await server.status(token), 200, 'when it answers again, at once')
    })
  }
})

t.test('78: a redirect is followed nowhere', async t => {
  const other = await authorizationServer(t)
  for (const status of [301, 302, 303, 307, 308]) {
    const server = await asking(t)
    server.as.answer = says('', { status, headers: { location: other.endpoint } })
    t.equal(await server.status(other.issue()), 503)
    t.equal(server.as.asked.length, 1)
  }
  t.strictSame(other.asked, [], 'neither the token nor the secret has gone there')
})

t.test('78: a server that is dead: 503, and 200 when it is back on its port', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  await server.as.door.kill()
  t.equal(await server.status(token), 503)
  t.equal((await server.upgrade(token)).status, 503)
  await server.as.door.restart()
  t.equal(await server.status(token), 200)
})

t.test('78: an answer is waited for no longer than the timeout, and a late one is nobody\'s', async t => {
  const server = await asking(t, { introspection: { timeout: 100 } })
  const token = server.as.issue()
  const release = server.as.hold()
  const began = performance.now()
  t.equal(await server.status(token), 503)
  t.ok(performance.now() - began < 3000, 'long before the timeout that is the default')
  release()
  server.as.answer = hangs
  t.equal(await server.status(token), 503, 'what came late was not kept')
})

t.test('78: the deadline of the handshake holds, whatever the timeout of the server', async t => {
  const server = await asking(t, { introspection: { timeout: 60_000 }, auth: { handshakeTimeout: 100 } })
  server.as.answer = hangs
  t.equal(await server.status(server.as.issue()), 503)
  t.equal((await server.upgrade(server.as.issue())).status, 503)
})

t.test('78: an answer of exactly 512 KiB, in gzip or not, is taken', async t => {
  const server = await asking(t)
  for (const answer of [says(padded(512 * KIB)), says(gzipSync(padded(512 * KIB)), { headers: { 'content-encoding': 'gzip' } }), dressed({ type: 'application/json; charset=utf-8' })]) {
    server.as.answer = answer
    t.equal(await server.status(opaque()), 200)
  }
})

t.test('79: a good answer is remembered for maxAge, and no longer', async t => {
  const clock = setClock(t)
  const server = await asking(t, { introspection: { maxAge: 30_000 } })
  const token = server.as.issue({ exp: inSeconds(3600) })
  clock.freeze()
  t.equal(await server.status(token), 200)
  clock.move(29_999)
  t.equal(await server.status(token), 200)
  t.equal((await server.upgrade(token)).status, 101)
  t.equal(server.as.asked.length, 1)
  server.as.revoke(token)
  t.equal(await server.status(token), 200, 'it does not know yet')
  clock.move(1)
  t.equal(await server.status(token), 401)
  t.equal(server.as.asked.length, 2)
})

t.test('79: by default a good answer is remembered for 30 s, and any other for 5 s', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await asking(t)
  const { as } = server
  const [good, bad] = [as.issue({ exp: inSeconds(3600) }), opaque()]
  t.strictSame([await server.status(good), await server.status(bad)], [200, 401])
  clock.move(4999)
  t.equal(await server.status(bad), 401)
  t.equal(as.times(bad), 1)
  clock.move(1)
  t.equal(await server.status(bad), 401)
  t.equal(as.times(bad), 2)
  clock.move(24_999)
  t.equal(await server.status(good), 200)
  t.equal(as.times(good), 1)
  clock.move(1)
  t.equal(await server.status(good), 200)
  t.equal(as.times(good), 2)
})

t.test('79: a good answer is never used past its exp, however long maxAge is', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await asking(t, { introspection: { maxAge: 3_600_000 } })
  const token = server.as.issue({ exp: (Date.now() + 10_000) / 1000, iat: undefined })
  t.equal(await server.status(token), 200)
  clock.move(9999)
  t.equal(await server.status(token), 200)
  clock.move(1)
  const { status, body, headers } = await server.me(token)
  t.strictSame([status, codeOf(body)], [401, EXPIRED_TOKEN])
  t.match(headers.get('www-authenticate'), /error="invalid_token"/)
  t.equal(server.as.asked.length, 1, 'that it has ended needs no question')
})

t.test('79: nor past its exp and the clock tolerance', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await asking(t, { introspection: { maxAge: 3_600_000, clockTolerance: 5 } })
  const token = server.as.issue({ exp: (Date.now() + 10_000) / 1000, iat: undefined })
  t.match(await server.context(token), { expiresAt: Date.now() + 15_000 })
  clock.move(14_999)
  t.equal(await server.status(token), 200)
  clock.move(1)
  t.equal(await server.status(token), 401)
})

t.test('79: a refusal is remembered for negativeMaxAge, and then the token may have become good', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await asking(t, { introspection: { negativeMaxAge: 2000 } })
  const token = opaque()
  t.equal(await server.status(token), 401)
  server.as.says(token, active({ exp: inSeconds(3600) }))
  clock.move(1999)
  t.equal(await server.status(token), 401)
  t.equal(server.as.asked.length, 1)
  clock.move(1)
  t.equal(await server.status(token), 200)
  t.equal(await server.status(token), 200)
  t.equal(server.as.asked.length, 2)
})

t.test('79: why a token was refused is remembered with it', async t => {
  const server = await asking(t)
  const token = server.as.issue({ exp: inSeconds(-60), iat: inSeconds(-90) })
  for (let n = 0; n < 2; n++) t.equal(codeOf((await server.me(token)).body), EXPIRED_TOKEN)
  t.equal(server.as.asked.length, 1)
})

t.test('79: nothing is remembered where both ages are 0', async t => {
  const server = await asking(t, { introspection: UNREMEMBERED })
  const [good, bad] = [server.as.issue(), opaque()]
  for (let n = 1; n <= 3; n++) {
    t.strictSame([await server.status(good), await server.status(bad)], [200, 401])
    t.strictSame([server.as.times(good), server.as.times(bad)], [n, n])
  }
})

t.test('79: what is remembered of one token says nothing of another, however alike', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  t.equal(await server.status(token), 200)
  for (const other of [`${token}=`, `${token}A`, token.slice(0, -1), token.toUpperCase(), token.toLowerCase()]) t.equal(await server.status(canary(other)), 401)
  t.equal(server.as.asked.length, 6)
})

t.test('79: two registrations remember each for itself', async t => {
  const as = await authorizationServer(t)
  const source = introspectionOf(as)
  const [a, b] = [await asking(t, { as, auth: { introspection: source } }), await asking(t, { as, auth: { introspection: source } })]
  const token = as.issue()
  t.strictSame([await a.status(token), await b.status(token)], [200, 200])
  t.equal(as.asked.length, 2)
})

t.test('79: 1 000 concurrent first connections with one token ask one question', async t => {
  const server = await asking(t, { introspection: { timeout: 30_000 }, auth: { handshakeTimeout: 60_000 } })
  const token = server.as.issue()
  const release = server.as.hold()
  let arrived = 0
  server.app.server.on('upgrade', () => { arrived++ })
  const opened = Promise.all(times(1000, () => rawExchange(server.port, handshake([`Authorization: Bearer ${token}`]), '"authType":"oauth2"')))
  await eventually('all of them wait', () => arrived === 1000 && server.as.waiting() === 1, 20_000)
  release()
  const answers = await opened
  t.equal(answers.filter(answer => answer.startsWith('HTTP/1.1 101') && answer.includes('"userId":"alice"')).length, 1000)
  t.equal(server.handled(), 1000)
  t.equal(server.as.asked.length, 1)
})

t.test('79: who waits for one question shares its refusal, and its failure', async t => {
  const server = await asking(t)
  const { as } = server
  for (const [answer, status] of [[null, 401], [says('', { status: 500 }), 503]] as const) {
    as.answer = answer
    const token = opaque()
    const release = as.hold()
    let arrived = 0
    const count = () => { arrived++ }
    server.app.server.on('request', count)
    const all = Promise.all(times(50, () => server.status(token)))
    await eventually('all of them wait', () => arrived === 50 && as.waiting() === 1)
    server.app.server.off('request', count)
    release()
    t.strictSame([...new Set(await all)], [status])
    t.equal(as.times(token), 1)
  }
})

t.test('79: different tokens do not wait for each other', async t => {
  const server = await asking(t)
  const [slow, fast] = [server.as.issue(), server.as.issue()]
  const release = server.as.hold()
  const waits = server.status(slow)
  await eventually('it is asked', () => server.as.waiting() === 1)
  const also = server.status(fast)
  await eventually('so is the other', () => server.as.waiting() === 2)
  release()
  t.strictSame(await Promise.all([waits, also]), [200, 200])
})

t.test('after 5 failures in a row nothing is asked for 5 s, and then one trial is made', async t => {
  const watch = stopwatch(t)
  const server = await asking(t)
  const { as } = server
  const [known, token] = [as.issue(), as.issue()]
  t.equal(await server.status(known), 200)
  as.answer = says('', { status: 500 })
  for (let n = 1; n <= 5; n++) {
    t.equal(await server.status(token), 503)
    t.equal(as.times(token), n)
  }
  as.answer = null
  t.equal(await server.status(token), 503, 'though it would answer')
  watch.move(4999)
  t.equal(await server.status(token), 503)
  t.equal(as.times(token), 5)
  t.equal(await server.status(known), 200, 'what is remembered passes meanwhile')

  watch.move(1)
  as.answer = says('', { status: 500 })
  const release = as.hold()
  const trial = server.status(token)
  await eventually('one is asked', () => as.waiting() === 1)
  t.equal(await server.status(opaque()), 503, 'others do not wait for the trial')
  t.equal(as.waiting(), 1)
  release()
  t.equal(await trial, 503)
  as.answer = null
  t.equal(await server.status(token), 503, 'a trial that failed begins the pause anew')
  t.equal(as.times(token), 6)

  watch.move(5000)
  t.equal(await server.status(token), 200)
  t.equal(await server.status(as.issue()), 200, 'after a trial that did not, all are asked again')
})

t.test('4 failures and an answer, over and over, never stop the questions', async t => {
  const server = await asking(t, { introspection: UNREMEMBERED })
  const { as } = server
  const token = as.issue()
  for (let round = 0; round < 3; round++) {
    as.answer = says('', { status: 500 })
    for (let n = 0; n < 4; n++) t.equal(await server.status(token), 503)
    as.answer = round === 1 ? says('{"active":"yes"}') : null
    t.equal(await server.status(token), round === 1 ? 401 : 200, 'an answer that is a refusal is one as well')
  }
  t.equal(as.asked.length, 15)
})

t.test('a trial that hangs is followed by another after 5 s', async t => {
  const watch = stopwatch(t)
  const server = await asking(t, { introspection: { timeout: 60_000 } })
  const { as } = server
  as.answer = says('', { status: 500 })
  for (let n = 0; n < 5; n++) await server.status(opaque())
  watch.move(5000)
  const release = as.hold()
  const first = server.status(as.issue())
  await eventually('the trial', () => as.waiting() === 1)
  watch.move(4999)
  t.equal(await server.status(opaque()), 503)
  t.equal(as.waiting(), 1)
  watch.move(1)
  as.answer = null
  const second = server.status(as.issue())
  await eventually('another', () => as.waiting() === 2)
  release()
  t.strictSame(await Promise.all([first, second]), [200, 200])
})

t.test('what the application\'s mapper throws does not stop the questions', async t => {
  const server = await asking(t, { introspection: { ...UNREMEMBERED, user () { throw new Error('no') } } })
  for (let n = 0; n < 8; n++) t.equal(await server.status(server.as.issue()), 503)
  t.equal(server.as.asked.length, 8)
})

/** For counting: every failure counts, and `max` of them raise the alarm. */
const counting = (t: Test, options: Parameters<typeof asking>[1] = {}, max = 3) => asking(t, { ...options, auth: { failures: { max }, ...options.auth } })
const alarms = (server: Asking) => server.types().filter(type => type === 'brute_force_suspected').length

t.test('80: tokens that are not active count as guesses, each when it is first asked about', async t => {
  const server = await counting(t)
  const known = server.as.issue()
  const bad = opaque()
  t.equal(await server.status(bad), 401)
  for (let n = 0; n < 10; n++) t.equal(await server.status(bad), 401, 'the same again is no other guess')
  t.equal(await server.status(opaque()), 401)
  t.equal(alarms(server), 0)
  await server.status(opaque())
  t.equal(alarms(server), 1)
  const { status, headers } = await server.me(opaque())
  t.equal(status, 429)
  t.ok(Number(headers.get('retry-after')) > 0)
  t.equal(await server.status(known), 200, 'a good one passes')
  t.match(server.events.find(({ type }) => type === 'brute_force_suspected'), { by: ['address'], claimed: null })
})

const GUESSES: Record<string, (t: Test, server: Asking) => Promise<unknown>> = {
  'a header of an upgrade': (_t, server) => server.upgrade(opaque()),
  'a URL': (t, server) => upgrade(t, server.host, { path: `/live?token=${opaque()}` }),
  'a subprotocol': (t, server) => upgrade(t, server.host, { protocols: ['hybrid-auth.v1', `bearer.${opaque()}`] }),
  async 'a first message' (t, server) {
    const peer = await connected(t, server.host, { path: '/first', token: null })
    peer.send(authFrame(opaque()))
    await peer.closed
  },
  async 'an update of an open socket' (t, server) {
    const { peer } = await server.open({ speaks: true })
    peer.say(updateOf(opaque()))
    t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  }
}
for (const [what, guess] of Object.entries(GUESSES)) {
  t.test(`80: guesses count that come in ${what}`, async t => {
    const server = await counting(t, {}, 2)
    await guess(t, server)
    t.equal(alarms(server), 0)
    await guess(t, server)
    t.equal(alarms(server), 1)
    t.equal(server.as.asked.length, 2)
  })
}

t.test('80: with block "address", who has guessed too often is refused before anything is asked', async t => {
  const server = await counting(t, { auth: { failures: { max: 2, block: 'address' } } })
  const known = server.as.issue()
  for (let n = 0; n < 2; n++) await server.status(opaque())
  const before = server.as.asked.length
  t.strictSame([await server.status(opaque()), await server.status(known)], [429, 429])
  t.equal(server.as.asked.length, before)
})

t.test('80: what no token can look like is a guess that nobody is asked about', async t => {
  const server = await counting(t, { introspection: { maxTokenLength: 100 } })
  for (const text of ['a'.repeat(101), 'a=b', 'ab*cd']) t.equal(await server.status(text), 401)
  t.equal(alarms(server), 1)
  t.strictSame(server.as.asked, [])
})

t.test('80: 50 requests with one unknown token are one guess', async t => {
  const server = await counting(t, {}, 2)
  const token = opaque()
  const release = server.as.hold()
  let arrived = 0
  server.app.server.on('request', () => { arrived++ })
  const all = Promise.all(times(50, () => server.status(token)))
  await eventually('all of them wait', () => arrived === 50 && server.as.waiting() === 1)
  release()
  t.strictSame([...new Set(await all)], [401])
  t.equal(alarms(server), 0)
})

t.test('80: a token that was active and is not any more is no guess, however often it comes', async t => {
  const clock = setClock(t)
  clock.freeze()
  const server = await counting(t, { introspection: { maxAge: 1000, negativeMaxAge: 1000 } }, 2)
  const token = server.as.issue({ exp: inSeconds(3600) })
  t.equal(await server.status(token), 200)
  server.as.revoke(token)
  for (let n = 0; n < 5; n++) {
    clock.move(1000)
    t.equal(await server.status(token), 401)
  }
  t.equal(server.as.asked.length, 6, 'it was asked about each time')
  t.equal(alarms(server), 0)
})

t.test('80: a token whose end has passed is no guess, and neither is one that nothing is known of because nobody answered', async t => {
  const server = await counting(t, { introspection: UNREMEMBERED }, 1)
  for (let n = 0; n < 3; n++) t.equal(codeOf((await server.me(server.as.issue({ exp: inSeconds(-5), iat: inSeconds(-9) }))).body), EXPIRED_TOKEN)
  server.as.answer = says('', { status: 500 })
  for (let n = 0; n < 3; n++) t.equal(await server.status(opaque()), 503)
  t.equal(alarms(server), 0)
})

t.test('80: a token that is revoked here is no guess', async t => {
  const server = await counting(t, {}, 1)
  const token = server.as.issue()
  await server.app.hybridAuth.revoke({ token })
  for (let n = 0; n < 3; n++) t.equal(await server.status(token), 401)
  t.equal(alarms(server), 0)
})

t.test('a token that is a JWS by form is never asked about where jwt is set, forged, expired or good', async t => {
  const server = await asking(t)
  t.match(await server.context(goodToken()), { authType: 'jwt' })
  const bad = [foreignJws(), goodToken({ exp: inSeconds(-5) }), signHs256({ sub: 'alice' }), signHs256({ sub: 'alice', exp: inSeconds(300) }, {}, 'another secret, which nobody here has ever seen')]
  for (const token of bad) {
    server.as.says(token, active())
    t.equal(await server.status(token), 401)
    t.equal((await server.upgrade(token)).status, 401)
  }
  t.strictSame(server.as.asked, [])
})

t.test('a token of JOSE in another spelling than its issuer\'s is no other token: nobody is asked about it', async t => {
  const good = goodToken({ aud: 'api' })
  const [header = '', payload = '', signature = ''] = good.split('.')
  const respelled = [
    `${good}=`, `${good}==`, `${header}=.${payload}.${signature}`, `${header}.${payload}=.${signature}`, `${header}.${payload}.${signature.slice(0, -1)}/`,
    `${header}.${payload}.${signature.slice(0, -1)}+`, `${header}.YQ.YQ.YQ.YR`, `${header}.a`, `${good}.`, `${good}..`, `${good}.AA`, `${header}..${signature}`, `${header}.${payload}.`, `${header}.YQ`, `${header}.YQ.YQ.YQ`, `${header}..YQ.YQ.`, `${header}.YQ.YQ.YQ.`
  ]
  for (const server of [await asking(t), await asking(t, { auth: { jwt: undefined } })]) {
    for (const token of respelled) {
      server.as.says(token, active())
      t.equal(await server.status(token), 401, token.slice(-20))
    }
    t.strictSame(server.as.asked, [])
  }
})

t.test('a token that is no JWS by form is asked about, though it has dots, and though jwt is set', async t => {
  const server = await asking(t)
  const header = b64({ alg: 'HS256' })
  const like = ['a.b.c', 'not.a.jws', `${header}..YQ.YQ.YQ`, `${header}.YQ.YQ.YQ.YQ`, `${b64('text')}.a.b`, `${b64({ userId: 7 })}.1700000000.abc`, `${b64({})}.a`, `${b64({ alg: 5 })}.a.b`, `${b64(1)}.a.b`, `${b64(null)}.a.b`, `.${header}.a`, 'v4.public.abc', 'a+b/c~d-e_f.g==']
  for (const token of like) {
    server.as.says(token, active())
    t.match(await server.context(token), { authType: 'oauth2', tokenId: hashOf(token) }, token)
    t.equal(server.as.times(token), 1, 'as it was given')
  }
})

t.test('without jwt, a JWS is asked about as every other token', async t => {
  const server = await asking(t, { auth: { jwt: undefined } })
  const [good, bad] = [foreignJws({ jti: 'the-id', iss: ISSUER }), foreignJws()]
  server.as.says(good, active({ iss: ISSUER }))
  t.match(await server.context(good), { authType: 'oauth2', userId: 'alice', tokenId: nameOfJws(good), issuer: ISSUER }, 'its jti is as little verified as the rest of it')
  t.equal(await server.status(bad), 401)
  t.equal(await server.status(goodToken()), 401, 'what jwt would have taken')
  t.equal(server.as.asked.length, 3)
})

t.test('without jwt, a JWS whose answer names no issuer is of the one that it names itself', async t => {
  const server = await asking(t, { auth: { jwt: undefined } })
  const token = foreignJws({ iss: ISSUER })
  server.as.says(token, active())
  t.match(await server.context(token), { issuer: ISSUER, tokenId: nameOfJws(token), claims: { iss: ISSUER } })
})

t.test('without introspection, an opaque token is refused, and without anything but introspection it is not', async t => {
  const plain = await gate(t)
  await refuses(t, plain, opaque(), { about: 'an opaque token' })
  const as = await authorizationServer(t)
  const alone = await gate(t, { auth: { jwt: undefined, session: undefined, introspection: introspectionOf(as) } })
  await accepts(t, alone, as.issue(), { context: { authType: 'oauth2' }, about: 'an opaque token' })
  t.strictSame(await outcomes(alone, opaque()), times(5, () => 'refused'))
})

t.test('40: an opaque token that is refused falls back to the session, which says so', async t => {
  const server = await asking(t)
  const cookie = server.session('s1', { userId: 'bob' })
  const headers = { cookie, origin: `http://${server.host}` }
  t.match(await server.context(opaque(), headers), { authType: 'session', userId: 'bob', fallbackFrom: INVALID_TOKEN })
  t.match((await server.upgrade(opaque(), { headers })).context, { authType: 'session', userId: 'bob', fallbackFrom: INVALID_TOKEN })
  t.match(await server.context(server.as.issue({ exp: inSeconds(-9), iat: inSeconds(-20) }), headers), { authType: 'session', fallbackFrom: EXPIRED_TOKEN })
  const token = server.as.issue()
  t.match(await server.context(token, headers), { authType: 'oauth2', userId: 'alice' }, '41: a good one counts before the cookie')
  await server.app.hybridAuth.revoke({ token })
  t.match(await server.context(token, headers), { authType: 'session', fallbackFrom: REVOKED_TOKEN })
  server.as.answer = says('', { status: 500 })
  t.match(await server.context(opaque(), headers), { authType: 'session', fallbackFrom: UNAVAILABLE })
  t.equal((await server.upgrade(opaque(), { headers: { cookie, origin: 'https://evil.example' } })).status, 403, '46: not for a page of somebody else')
})

t.test('40: with fallback "absent" a refused opaque token is refused, whatever the cookie', async t => {
  const server = await asking(t, { auth: { fallback: 'absent' } })
  const headers = { cookie: server.session('s1', { userId: 'bob' }), origin: `http://${server.host}` }
  t.equal(codeOf((await server.me(opaque(), headers)).body), INVALID_TOKEN)
  server.as.answer = hangs
  t.equal(await ask(server.host, '/me', { headers }).then(({ status }) => status), 200, 'the cookie alone is good, and nothing is asked')
  server.as.answer = says('', { status: 500 })
  t.equal((await server.me(opaque(), headers)).status, 503)
})

t.test('a session alone asks nothing', async t => {
  const server = await asking(t)
  const { peer } = await server.open({ cookie: server.session('s1', { userId: 'bob' }) })
  t.ok(await peer.echoed('hello'))
  t.strictSame(server.as.asked, [])
})

t.test('an opaque token opens a socket as the first message', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  const peer = await connected(t, server.host, { path: '/first', token: null })
  peer.send(authFrame(token))
  const heard = [await peer.heard.next(), await peer.heard.next()].map(one => JSON.parse(one) as Record<string, unknown>)
  t.match(heard.find(({ type }) => type === 'auth_success'), { user: { id: 'alice' }, authType: 'oauth2' })
  t.match(heard.find(({ type }) => type === undefined), { authType: 'oauth2', userId: 'alice', via: 'message', tokenId: hashOf(token) })
  t.equal(server.as.times(token), 1)
})

t.test('via says which way a token came', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  t.match(await server.context(token), { via: 'header' })
  t.match((await server.upgrade(token)).context, { via: 'header' })
  t.match((await upgrade(t, server.host, { path: `/live?token=${token}` })).context, { via: 'query' })
  const offered = await upgrade(t, server.host, { protocols: ['hybrid-auth.v1', `bearer.${token}`] })
  t.match(offered, { protocol: 'hybrid-auth.v1' })
  t.match(offered.context, { via: 'subprotocol' })
  t.match((await upgrade(t, server.host, { path: `/live?ticket=${await server.ticket(token)}` })).context, { via: 'ticket', authType: 'oauth2', tokenId: hashOf(token) })
  t.equal(server.as.asked.length, 1)
})

t.test('auth_update takes another opaque token of the same user, and refuses what is not active', async t => {
  const server = await asking(t, { route: { control: true } })
  const [first, second] = [server.as.issue(), server.as.issue({ scope: 'read', exp: inSeconds(900) })]
  const { peer, there } = await server.open({ token: first, speaks: true })
  peer.say(updateOf(second))
  const { expiresIn } = await peer.takeFrame('auth_updated')
  t.ok(expiresIn === 899 || expiresIn === 900)
  t.match(there.connection.context, { authType: 'oauth2', tokenId: hashOf(second), version: 2, permissions: ['read'], via: 'message' })
  peer.say(updateOf(opaque()))
  t.match(await peer.takeFrame('error'), { code: 'refresh_failed', action: 'refresh' })
  server.as.answer = says('', { status: 500 })
  peer.say(updateOf(server.as.issue()))
  t.match(await peer.takeFrame('error'), { code: 'unavailable', action: 'retry' })
  t.match(there.connection.context, { tokenId: hashOf(second) })
  t.ok(await peer.echoed('still here'))
})

t.test('66: an opaque token of another user, issuer or tenant on an open socket: 4011', async t => {
  const server = await asking(t)
  for (const changes of [{ sub: 'bob' }, { iss: ISSUER }, { companyId: 'acme' }]) {
    const { peer } = await server.open({ token: server.as.issue(), speaks: true })
    peer.say(updateOf(server.as.issue(changes)))
    t.equal((await peer.end).code, 4011)
  }
})

t.test('66: a JWT may follow an opaque token of the same user and issuer, and the other way round', async t => {
  const server = await asking(t)
  const { peer, there } = await server.open({ token: server.as.issue({ iss: ISSUER }), speaks: true })
  for (const [token, authType] of [[goodToken({ iss: ISSUER }), 'jwt'], [server.as.issue({ iss: ISSUER }), 'oauth2']] as const) {
    peer.say(updateOf(token))
    await peer.takeFrame('auth_updated')
    t.equal(there.connection.context.authType, authType)
  }
})

t.test('67: an update whose answer comes after a later one changes nothing', async t => {
  const server = await asking(t)
  const { peer, there } = await server.open({ token: server.as.issue(), speaks: true })
  const slow = server.as.issue({ scope: 'slow' })
  const release = server.as.hold()
  peer.say(updateOf(slow))
  await eventually('it is asked', () => server.as.waiting() === 1)
  peer.say(updateOf(goodToken({ permissions: ['later'] })))
  await peer.takeFrame('auth_updated')
  const also = server.status(slow)
  release()
  t.equal(await also, 200, 'the answer has come')
  t.ok(await peer.echoed('open'))
  t.match(there.connection.context, { authType: 'jwt', permissions: ['later'], version: 2 })
  t.equal(peer.framesOf('auth_updated').length, 1)
})

t.test('68: a token that is revoked while it is being asked about opens nothing', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  const release = server.as.hold()
  const opening = server.upgrade(token)
  await eventually('it is asked', () => server.as.waiting() === 1)
  await server.app.hybridAuth.revoke({ token })
  release()
  t.match(await opening, { status: 401 })
  t.equal(server.handled(), 0)
})

/** Nodes that share tickets as those of one Redis do, and what is kept for them. */
function sharedTickets () {
  const kept = new Map<string, string>()
  const driver = () => driverOf(() => ({
    putTicket (key, value) { kept.set(key, value) },
    takeTicket (key) {
      const value = kept.get(key) ?? null
      kept.delete(key)
      return value
    }
  }))
  return { kept, driver }
}

t.test('a ticket of an opaque token is good once, on another node as well, and says nothing to who keeps it', async t => {
  const as = await authorizationServer(t)
  const { kept, driver } = sharedTickets()
  const [a, b] = [await asking(t, { as, auth: { cluster: driver() } }), await asking(t, { as, auth: { cluster: driver() } })]
  const token = as.issue()
  const ticket = await a.ticket(token)
  t.match(ticket, /^o[A-Za-z0-9_-]{43}$/)
  const stored = [...kept].flat().join('\n')
  for (const form of [token, Buffer.from(token).toString('base64url'), Buffer.from(token).toString('hex'), hashOf(token), ticket, ticket.slice(1), 'alice']) t.notOk(stored.includes(form))
  t.match((await upgrade(t, b.host, { path: `/live?ticket=${ticket}` })).context, { authType: 'oauth2', via: 'ticket', userId: 'alice', permissions: ['read', 'write'], tokenId: hashOf(token) })
  t.equal(as.times(token), 2, 'the other one has asked for itself')
  t.equal((await upgrade(t, b.host, { path: `/live?ticket=${ticket}` })).status, 401)
  t.equal(kept.size, 0)
})

t.test('a ticket of another registration is refused, unasked', async t => {
  const as = await authorizationServer(t)
  const { driver } = sharedTickets()
  const given = await asking(t, { as, introspection: { issuer: ISSUER }, auth: { cluster: driver() } })
  const elsewhere = await authorizationServer(t)
  const others: Array<Parameters<typeof asking>[1]> = [
    { introspection: { issuer: ISSUER, clientId: 'another' } }, { introspection: { issuer: 'https://other.example.com' } },
    { introspection: { issuer: ISSUER, audience: AUDIENCE } }, { introspection: {} },
    { introspection: { issuer: ISSUER, endpoint: elsewhere.endpoint } }, { auth: { introspection: undefined } }
  ]
  for (const { auth, ...other } of others.map(one => ({ ...one }))) {
    const server = await asking(t, { as, ...other, auth: { cluster: driver(), ...auth } })
    const ticket = await given.ticket(as.issue({ iss: ISSUER, aud: AUDIENCE }))
    const before = as.asked.length
    const { status, body } = await upgrade(t, server.host, { path: `/live?ticket=${ticket}` })
    t.strictSame([status, codeOf(body)], [401, INVALID_TICKET])
    t.equal(as.asked.length, before)
  }
  t.strictSame(elsewhere.asked, [])
})

t.test('a ticket is worth what its token is worth when it is used', async t => {
  const as = await authorizationServer(t)
  const server = await asking(t, { as, introspection: UNREMEMBERED, route: { permissions: ['read'] } })
  const opens = async (ticket: string, path = '/live') => {
    const { status, body } = await upgrade(t, server.host, { path: `${path}?ticket=${ticket}` })
    return status === 101 ? 101 : codeOf(body)
  }
  const token = as.issue()
  const tickets = await Promise.all(times(8, () => server.ticket(token)))
  const next = () => tickets.pop() ?? ''
  as.revoke(token)
  t.equal(await opens(next()), INVALID_TICKET, 'not active')
  as.says(token, active({ exp: inSeconds(-3), iat: inSeconds(-9) }))
  t.equal(await opens(next()), INVALID_TICKET, 'over')
  as.says(token, active({ sub: 'bob' }))
  t.equal(await opens(next()), INVALID_TICKET, 'of somebody else')
  as.says(token, active({ companyId: 'acme' }))
  t.equal(await opens(next()), INVALID_TICKET, 'of another tenant')
  as.says(token, active({ scope: 'write' }))
  t.equal(await opens(next(), '/app'), 'FST_HYBRID_AUTH_FORBIDDEN', 'with less scope')
  as.answer = says('', { status: 500 })
  t.equal(await opens(next()), UNAVAILABLE, 'nobody knows')
  as.answer = null
  as.says(token, active())
  t.equal(await opens(next()), 101)
  await server.app.hybridAuth.revoke({ token })
  t.equal(await opens(next()), REVOKED_TOKEN)
})

t.test('a ticket with another letter, or of another secret, opens nothing', async t => {
  const server = await asking(t)
  const ticket = await server.ticket(server.as.issue())
  for (const other of [`j${ticket.slice(1)}`, `s${ticket.slice(1)}`, `o${'A'.repeat(43)}`, ticket.slice(0, -1), `x${ticket.slice(1)}`]) {
    t.equal((await upgrade(t, server.host, { path: `/live?ticket=${other}` })).status, 401)
  }
  t.equal((await upgrade(t, server.host, { path: `/live?ticket=${ticket}` })).status, 101)
})

t.test('a socket that came by an opaque token may issue a ticket for itself, also after the server was asked again', async t => {
  const server = await asking(t, { introspection: { maxAge: 0 } })
  const token = server.as.issue()
  const { there } = await server.open({ token })
  const ticket = canary(await server.app.hybridAuth.issueTicket(there.request))
  t.equal((await upgrade(t, server.host, { path: `/live?ticket=${ticket}` })).status, 101)
  t.equal(await server.status(token), 200)
  t.match(await server.app.hybridAuth.issueTicket(there.request), /^o/)
})

t.test('a ticket and a revocation go by a real Redis, which holds neither token nor secret', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const as = await authorizationServer(t)
  const node = (options: Partial<IntrospectionOptions> = {}) => redisNode(t, redis.url, { auth: { introspection: introspectionOf(as, options) }, routes: askingRoutes })
  const [a, b, other] = [await node(), await node(), await node({ clientId: 'another' })]
  const token = as.issue()
  const issue = async () => canary((await ask(a.host, '/ticket', { method: 'POST', headers: { authorization: `Bearer ${token}` } })).body)
  const [first, second, third] = [await issue(), await issue(), await issue()]
  const keys = await b.client.keys('*')
  const dump = await Promise.all(keys.map(async key => `${key} ${await b.client.type(key) === 'string' ? await b.client.get(key) ?? '' : ''}`))
  t.ok(dump.length >= 3)
  for (const secret of [token, Buffer.from(token).toString('base64url'), first, CLIENT.secret, CLUSTER_SECRET]) t.notOk(dump.join('\n').includes(secret))
  t.equal((await upgrade(t, b.host, { path: `/live?ticket=${first}` })).status, 101)
  t.equal((await upgrade(t, other.host, { path: `/live?ticket=${second}` })).status, 401)
  const pair = await b.open({ token })
  t.match(await a.revoke({ token }), { matched: 1, closed: 1, nodes: { acknowledged: 3, missing: 0 } })
  t.equal((await pair.peer.end).code, 4006)
  t.strictSame(await b.admits(token), [401, 401])
  t.equal((await upgrade(t, b.host, { path: `/live?ticket=${third}` })).status, 401)
})

t.test('revoke({ token }) of an opaque token closes its sockets and refuses it from then on, and no other token', async t => {
  const server = await asking(t)
  const [token, other] = [server.as.issue(), server.as.issue()]
  const [first, second, left] = [await server.open({ token }), await server.open({ token, speaks: true }), await server.open({ token: other })]
  t.strictSame(withoutId(t, await server.app.hybridAuth.revoke({ token }, { dryRun: true })), outcome(2, 0))
  t.strictSame(withoutId(t, await server.app.hybridAuth.revoke({ token })), outcome(2))
  await isRevoked(t, first, 'one of its sockets')
  t.match(await second.peer.end, REVOKED)
  t.ok(await left.peer.echoed('another token of the same user'))
  t.equal(codeOf((await server.me(token)).body), REVOKED_TOKEN)
  t.equal((await server.upgrade(token)).status, 401)
  t.equal(await server.status(other), 200)
})

t.test('revoke({ token }) counts for a token that was never seen here', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  await server.app.hybridAuth.revoke({ token })
  t.equal(codeOf((await server.me(token)).body), REVOKED_TOKEN)
})

t.test('revoke({ tokenId }) of a context, with its issuer and without', async t => {
  const server = await asking(t)
  for (const [changes, issuer, isHit] of [[{}, undefined, true], [{ iss: ISSUER }, undefined, true], [{ iss: ISSUER }, ISSUER, true], [{}, null, true], [{ iss: ISSUER }, null, false], [{ iss: ISSUER }, 'https://other.example.com', false]] as const) {
    const token = server.as.issue(changes)
    const { tokenId = '' } = await server.context(token)
    await server.app.hybridAuth.revoke({ tokenId: String(tokenId), ...(issuer !== undefined && { issuer }) })
    t.equal(await server.status(token), isHit ? 401 : 200, JSON.stringify([changes, issuer]))
  }
})

t.test('revoke({ userId }) reaches opaque tokens; issuedBefore compares their iat', async t => {
  const server = await asking(t)
  const [old, young, undated] = [server.as.issue({ iat: inSeconds(-100) }), server.as.issue({ iat: inSeconds(-1) }), server.as.issue({ iat: undefined })]
  const pair = await server.open({ token: old })
  await server.app.hybridAuth.revoke({ userId: 'alice', issuedBefore: Date.now() - 50_000 })
  await isRevoked(t, pair, 'the old one')
  t.strictSame([await server.status(old), await server.status(young), await server.status(undated)], [401, 200, 401])
  await server.app.hybridAuth.revoke({ userId: 'alice' })
  t.equal(await server.status(young), 401)
  t.equal(await server.status(server.as.issue({ sub: 'bob' })), 200)
})

t.test('revoke({ token }) of a JWS that was asked about, whatever its answer says of the issuer', async t => {
  const server = await asking(t, { auth: { jwt: undefined } })
  for (const [own, said] of [[ISSUER, ISSUER], [ISSUER, undefined], [undefined, ISSUER], [undefined, undefined]] as const) {
    for (const jti of ['an id', undefined]) {
      const token = foreignJws({ iss: own, said, jti: jti && `${jti} ${String(own)} ${String(said)}` })
      server.as.says(token, active({ iss: said }))
      t.equal(await server.status(token), 200)
      await server.app.hybridAuth.revoke({ token })
      t.equal(await server.status(token), 401, `iss ${String(own)} in the token, ${String(said)} in the answer, ${jti ?? 'no jti'}`)
    }
  }
})

t.test('revoke({ token }) of what is no JWT is a mistake where nothing is introspected, and of nothing it always is', async t => {
  const without = await asking(t, { auth: { introspection: undefined } })
  await t.rejects(without.app.hybridAuth.revoke({ token: opaque() }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /target\.token/ })
  const server = await asking(t)
  await t.rejects(server.app.hybridAuth.revoke({ token: '' }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /target\.token/ })
})

/** Texts that are encoded in a header, in a form, or in both. */
const SECRETS = [':', 'a:b', '%', '100%25', '+', 'a+b c', ' ', 'a=b&c=d', '"quoted"\\', 'Grüße', '日本語', '🔑', "-_.!~*'()", '/?#[]@$,;', 'ÿ'.repeat(100)]
for (const given of SECRETS) {
  t.test(`the client id and secret ${JSON.stringify(given.slice(0, 12))} arrive as they are, in the header and in the form`, async t => {
    const as = await authorizationServer(t)
    const [id, secret] = [`id ${given}`, `${given} secret`]
    for (const clientAuthentication of [undefined, 'client_secret_basic', 'client_secret_post'] as const) {
      const introspector = openIntrospector(introspectionOf(as, { clientId: id, clientSecret: secret, clientAuthentication }), { onBadIdentity () {}, onAsked () {} })
      t.match(await introspector.verify(as.issue()), { identity: { userId: 'alice' } })
    }
    const [byDefault, basic, post] = as.asked
    if (byDefault === undefined || basic === undefined || post === undefined) throw new Error('it was not asked')
    for (const question of [byDefault, basic]) {
      t.strictSame(basicOf(question), { scheme: 'Basic', id, secret })
      t.strictSame([question.form.get('client_id'), question.form.get('client_secret')], [null, null], 'in the header, and nowhere else')
    }
    t.strictSame([post.headers.authorization, post.form.get('client_id'), post.form.get('client_secret')], [undefined, id, secret])
  })
}

t.test('a question is a POST of the token and what kind it is, and wants JSON', async t => {
  const server = await asking(t, { introspection: { clientAuthentication: 'client_secret_post' } })
  for (const token of [server.as.issue(), 'a+b/c~d-e_f.g==']) {
    server.as.says(token, active())
    t.equal(await server.status(token), 200)
    const question = server.as.asked.at(-1)
    t.match(question, { method: 'POST', url: '/introspect', headers: { accept: 'application/json', 'content-type': /^application\/x-www-form-urlencoded/ }, token })
    t.strictSame([...question?.form.keys() ?? []].sort(), ['client_id', 'client_secret', 'token', 'token_type_hint'])
    t.equal(question?.form.get('token_type_hint'), 'access_token')
  }
})

t.test('an endpoint may have a query, and may be a URL that is changed afterwards', async t => {
  const as = await authorizationServer(t)
  const endpoint = new URL(`${as.endpoint}?tenant=a%20b`)
  const source = introspection({ endpoint, clientId: 'c', clientSecret: 's' })
  endpoint.hostname = 'evil.example'
  const server = await asking(t, { as, auth: { introspection: source } })
  t.equal(await server.status(as.issue()), 200)
  t.equal(as.asked[0]?.url, '/introspect?tenant=a%20b')
})

const EC = { ES256: 'P-256', ES384: 'P-384', ES512: 'P-521' } as const
const pairOf = (algorithm: AssertionAlgorithm) => algorithm === 'RS256' || algorithm === 'PS256'
  ? generateKeyPairSync('rsa', { modulusLength: 2048 })
  : generateKeyPairSync('ec', { namedCurve: EC[algorithm] })
const pem = (key: KeyObject) => canary(String(key.export({ type: 'pkcs8', format: 'pem' })))
const PAIRS = { RS256: pairOf('RS256'), PS256: pairOf('PS256'), ES256: pairOf('ES256'), ES384: pairOf('ES384'), ES512: pairOf('ES512') } as const satisfies Record<AssertionAlgorithm, { privateKey: KeyObject, publicKey: KeyObject }>
const ALGORITHMS = Object.keys(PAIRS) as AssertionAlgorithm[]

for (const algorithm of ALGORITHMS) {
  t.test(`private_key_jwt with ${algorithm}: an assertion made out to the issuer, new each time, with a signature that node:crypto takes`, async t => {
    const { privateKey, publicKey } = PAIRS[algorithm]
    const as = await authorizationServer(t)
    const sec1 = algorithm.startsWith('ES') ? [String(privateKey.export({ type: 'sec1', format: 'pem' }))] : [String(privateKey.export({ type: 'pkcs1', format: 'pem' }))]
    for (const [key, kid] of [[privateKey, 'k1'], [pem(privateKey), undefined], [Buffer.from(pem(privateKey)), 'k 2'], ...sec1.map(one => [one, undefined] as const)] as const) {
      const server = await asking(t, { as, introspection: { ...UNREMEMBERED, clientKey: { key, algorithm, kid }, issuer: [ISSUER, 'https://second.example.com'] } })
      const token = as.issue({ iss: ISSUER })
      t.equal(await server.status(token), 200)
      t.equal(await server.status(token), 200)
      const [first, second] = as.asked.splice(0)
      if (first === undefined || second === undefined) throw new Error('it was not asked')
      const [a, b] = [assertionOf(first, publicKey, algorithm), assertionOf(second, publicKey, algorithm)]
      t.strictSame([a.isSigned, b.isSigned], [true, true])
      t.equal(a.header.alg, algorithm)
      t.equal(a.header.kid, kid)
      t.match(a.payload, { iss: CLIENT.id, sub: CLIENT.id, aud: ISSUER, jti: String })
      const { exp, iat, jti } = a.payload
      t.ok(Math.abs(Number(iat) - inSeconds(0)) <= 2 && Number(exp) > inSeconds(0) && Number(exp) <= inSeconds(300))
      t.not(jti, b.payload.jti)
      t.strictSame([first.headers.authorization, first.form.get('client_secret'), first.form.get('client_id'), first.form.get('client_assertion_type')],
        [undefined, null, CLIENT.id, 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'])
    }
  })
}

/** A path in the options, and what is wrong there. */
const endpoint = 'https://as.example.com/introspect'
const COMPLETE = { endpoint, clientId: 'c', clientSecret: 's' }
const KEYED = { endpoint, clientId: 'c', issuer: ISSUER }
const es256 = PAIRS.ES256.privateKey
const BAD: ReadonlyArray<readonly [what: string, path: string, options: unknown]> = [
  ['88: no options', 'introspection', undefined],
  ['88: null', 'introspection', null],
  ['88: a list', 'introspection.0', [COMPLETE]],
  ['88: a text', 'introspection', endpoint],
  ['88: an unknown name', 'introspection.url', { ...COMPLETE, url: endpoint }],
  ['88: a name with a typo', 'introspection.clientSecrte', { endpoint, clientId: 'c', clientSecrte: 's' }],
  ['88: an unknown name of the key', 'introspection.clientKey.alg', { ...KEYED, clientKey: { key: es256, alg: 'ES256', algorithm: 'ES256' } }],
  ['88: an unknown name in place of a known one', 'introspection.clientKey.use', { ...KEYED, clientKey: { key: es256, use: 'sig' } }],
  ['no endpoint', 'introspection.endpoint', { clientId: 'c', clientSecret: 's' }],
  ['an endpoint that is null', 'introspection.endpoint', { ...COMPLETE, endpoint: null }],
  ['an endpoint that is a number', 'introspection.endpoint', { ...COMPLETE, endpoint: 7 }],
  ['an empty endpoint', 'introspection.endpoint', { ...COMPLETE, endpoint: '' }],
  ['an endpoint that is a path', 'introspection.endpoint', { ...COMPLETE, endpoint: '/introspect' }],
  ['an endpoint over http elsewhere', 'introspection.endpoint', { ...COMPLETE, endpoint: 'http://as.example.com/introspect' }],
  ['an endpoint on a name that begins like this machine', 'introspection.endpoint', { ...COMPLETE, endpoint: 'http://localhost.evil.example/' }],
  ['an endpoint on an address that begins like this machine', 'introspection.endpoint', { ...COMPLETE, endpoint: 'http://127.0.0.1.evil.example/' }],
  ['an endpoint in the local network over http', 'introspection.endpoint', { ...COMPLETE, endpoint: new URL('http://10.0.0.1/') }],
  ['an endpoint with credentials', 'introspection.endpoint', { ...COMPLETE, endpoint: 'https://user:password@as.example.com/' }],
  ['an endpoint with a user', 'introspection.endpoint', { ...COMPLETE, endpoint: 'https://user@as.example.com/' }],
  ['an endpoint in a file', 'introspection.endpoint', { ...COMPLETE, endpoint: 'file:///introspect' }],
  ['no client id', 'introspection.clientId', { endpoint, clientSecret: 's' }],
  ['an empty client id', 'introspection.clientId', { ...COMPLETE, clientId: '' }],
  ['a client id that is a number', 'introspection.clientId', { ...COMPLETE, clientId: 7 }],
  ['neither secret nor key', 'introspection.clientSecret', { endpoint, clientId: 'c' }],
  ['an empty secret', 'introspection.clientSecret', { ...COMPLETE, clientSecret: '' }],
  ['a secret that is a Buffer', 'introspection.clientSecret', { ...COMPLETE, clientSecret: Buffer.from('s') }],
  ['both secret and key', 'introspection.clientKey', { ...KEYED, clientSecret: 's', clientKey: { key: es256, algorithm: 'ES256' } }],
  ['both, where it says which', 'introspection.clientKey', { ...KEYED, clientSecret: 's', clientAuthentication: 'client_secret_post', clientKey: { key: es256, algorithm: 'ES256' } }],
  ['a key for basic', 'introspection.clientSecret', { ...KEYED, clientAuthentication: 'client_secret_basic', clientKey: { key: es256, algorithm: 'ES256' } }],
  ['private_key_jwt with a secret', 'introspection.clientKey', { ...KEYED, clientSecret: 's', clientAuthentication: 'private_key_jwt' }],
  ['private_key_jwt without an issuer', 'introspection.issuer', { endpoint, clientId: 'c', clientKey: { key: es256, algorithm: 'ES256' } }],
  ['another way to authenticate', 'introspection.clientAuthentication', { ...COMPLETE, clientAuthentication: 'client_secret_jwt' }],
  ['none', 'introspection.clientAuthentication', { ...COMPLETE, clientAuthentication: 'none' }],
  ['a way to authenticate that is null', 'introspection.clientAuthentication', { ...COMPLETE, clientAuthentication: null }],
  ['a key alone', 'introspection.clientKey.key', { ...KEYED, clientKey: es256 }],
  ['a key that is a list', 'introspection.clientKey.key', { ...KEYED, clientKey: [] }],
  ['no key in it', 'introspection.clientKey.key', { ...KEYED, clientKey: { algorithm: 'ES256' } }],
  ['a key that is a JWK', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: es256.export({ format: 'jwk' }), algorithm: 'ES256' } }],
  ['an empty key', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: '', algorithm: 'ES256' } }],
  ['a key that is no PEM', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: 'not a key', algorithm: 'ES256' } }],
  ['a public key', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: PAIRS.ES256.publicKey, algorithm: 'ES256' } }],
  ['a public key in PEM', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: PAIRS.ES256.publicKey.export({ type: 'spki', format: 'pem' }), algorithm: 'ES256' } }],
  ['a secret key', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: createSecretKey(randomBytes(32)), algorithm: 'ES256' } }],
  ['a key in a locked PEM', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: es256.export({ type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'x' }), algorithm: 'ES256' } }],
  ['a key of another curve', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: PAIRS.ES384.privateKey, algorithm: 'ES256' } }],
  ['a key of another kind', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: PAIRS.RS256.privateKey, algorithm: 'ES512' } }],
  ['an EC key for RSA', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: es256, algorithm: 'PS256' } }],
  ['an RSA key of 1 024 bits', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey, algorithm: 'RS256' } }],
  ['an RSA-PSS key', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).privateKey, algorithm: 'PS256' } }],
  ['an Ed25519 key', 'introspection.clientKey.key', { ...KEYED, clientKey: { key: generateKeyPairSync('ed25519').privateKey, algorithm: 'ES256' } }],
  ['no algorithm', 'introspection.clientKey.algorithm', { ...KEYED, clientKey: { key: es256 } }],
  ['an algorithm with a secret', 'introspection.clientKey.algorithm', { ...KEYED, clientKey: { key: es256, algorithm: 'HS256' } }],
  ['an algorithm that is none', 'introspection.clientKey.algorithm', { ...KEYED, clientKey: { key: es256, algorithm: 'none' } }],
  ['EdDSA', 'introspection.clientKey.algorithm', { ...KEYED, clientKey: { key: generateKeyPairSync('ed25519').privateKey, algorithm: 'EdDSA' } }],
  ['an empty key id', 'introspection.clientKey.kid', { ...KEYED, clientKey: { key: es256, algorithm: 'ES256', kid: '' } }],
  ['a key id that is a number', 'introspection.clientKey.kid', { ...KEYED, clientKey: { key: es256, algorithm: 'ES256', kid: 7 } }],
  ['86: a RegExp as issuer', 'introspection.issuer', { ...COMPLETE, issuer: /x/ }],
  ['86: an empty issuer', 'introspection.issuer', { ...COMPLETE, issuer: '' }],
  ['86: no issuers', 'introspection.issuer', { ...COMPLETE, issuer: [] }],
  ['86: an empty audience in a list', 'introspection.audience.1', { ...COMPLETE, audience: ['a', ''] }],
  ['86: a null audience', 'introspection.audience', { ...COMPLETE, audience: null }],
  ['87: a tolerance of 301 s', 'introspection.clockTolerance', { ...COMPLETE, clockTolerance: 301 }],
  ['87: a tolerance that is no number', 'introspection.clockTolerance', { ...COMPLETE, clockTolerance: NaN }],
  ['87: a negative tolerance', 'introspection.clockTolerance', { ...COMPLETE, clockTolerance: -1 }],
  ['a mapper that is none', 'introspection.user', { ...COMPLETE, user: {} }],
  ...([
    ['maxAge', [-1, NaN, Infinity, '30s', 86_400_001]], ['negativeMaxAge', [-1, NaN, Infinity, 600_001]], ['timeout', [0, 49, 60_001, Infinity, '5s']],
    ['maxTokenLength', [0, 65_537, NaN]], ['revalidate', [0, 99, 86_400_001, Infinity, false]], ['requestsPerSecond', [0, NaN, Infinity]], ['maxStale', [-1, Infinity]],
    ['onProviderError', ['open', true, null, '']]
  ] as const).flatMap(([name, values]) => values.map(value => [`${name} of ${String(value)}`, `introspection.${name}`, { ...COMPLETE, [name]: value }] as const))
]
for (const [what, path, options] of BAD) {
  t.test(`options that must throw at registration: ${what}`, async t => {
    t.throws(() => introspection(untyped(options)), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: new RegExp(`^Invalid option ${path.replaceAll('.', '\\.')}: `) })
  })
}

t.test('no message about an option repeats a secret', async t => {
  for (const options of [{ ...COMPLETE, clientSecret: CLIENT.secret, clientId: 7 }, { ...KEYED, clientKey: { key: `${CLIENT.secret}-----`, algorithm: 'ES256' } }, { ...COMPLETE, endpoint: `https://u:${encodeURIComponent(CLIENT.secret)}@as.example.com` }]) {
    const error: unknown = await new Promise(resolve => { try { resolve(introspection(untyped(options))) } catch (thrown) { resolve(thrown) } })
    t.notOk(inspect(error, { depth: Infinity, showHidden: true }).includes(CLIENT.secret))
    t.notOk(inspect(error, { depth: Infinity }).includes(encodeURIComponent(CLIENT.secret)))
  }
})

t.test('89: introspection alone is enough; what introspection() has not made is refused at registration', async t => {
  for (const given of [COMPLETE, {}, null, 'x', true, () => {}]) {
    await t.rejects(asking(t, { auth: { introspection: untyped(given) } }), { code: 'FST_HYBRID_AUTH_INVALID_OPTION', message: /^Invalid option introspection: / })
  }
  const source = introspection(COMPLETE)
  t.ok(Object.isFrozen(source))
  for (const clientSecret of ['s', CLIENT.secret]) t.notOk(inspect(introspection({ ...COMPLETE, clientSecret }), { depth: Infinity, showHidden: true }).includes(CLIENT.secret))
  t.strictSame(introspection({ ...COMPLETE, endpoint: new URL(endpoint) }).from, source.from)
})

t.test('http is for this machine: localhost, 127.0.0.0/8 and ::1', async t => {
  for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '[::1]', 'localhost:8080']) t.ok(introspection({ ...COMPLETE, endpoint: `http://${host}/` }))
})

type Mapper = NonNullable<IntrospectionOptions['user']>
const mapping = (t: Test, user: Mapper, more: Partial<HybridAuthOptions> = {}) => asking(t, { introspection: { user }, auth: more })

t.test('the mapper gets the frozen answer and says who it is, each time anew, without another question', async t => {
  const seen: Claims[] = []
  const server = await mapping(t, claims => {
    seen.push(claims)
    return { userId: `user ${String(claims.client_id)}`, role: `${seen.length}`, permissions: ['p'], tenantId: 'acme', acr: 'mfa', own: { deep: [1] } }
  })
  const token = server.as.issue({ sub: undefined, client_id: 'app' })
  t.match(await server.context(token), { userId: 'user app', role: '1', permissions: ['p'], tenantId: 'acme', user: { own: { deep: [1] }, acr: 'mfa' }, claims: { active: true, client_id: 'app' } })
  t.match(await server.context(token), { role: '2' })
  t.ok(seen.every(claims => Object.isFrozen(claims)))
  t.equal(server.as.asked.length, 1)
})

t.test('an asynchronous mapper is waited for, and one that never settles is not', async t => {
  const waits = deferred<Identity>()
  const server = await mapping(t, () => waits.promise)
  const answer = server.context(server.as.issue())
  waits.resolve({ userId: 'late' })
  t.match(await answer, { userId: 'late' })
  const stuck = await mapping(t, () => new Promise(() => {}), { handshakeTimeout: 100 })
  t.equal(await stuck.status(stuck.as.issue()), 503)
  const thenable = await mapping(t, () => untyped({ then (resolve: (value: unknown) => void) { resolve({ userId: 'of a thenable' }) } }))
  t.match(await thenable.context(thenable.as.issue()), { userId: 'of a thenable' })
})

t.test('a mapper that says null refuses the token: 401, and no guess', async t => {
  for (const nobody of [() => null, async () => null]) {
    const server = await mapping(t, nobody, { failures: { max: 1 } })
    for (let n = 0; n < 3; n++) t.equal(codeOf((await server.me(server.as.issue())).body), INVALID_TOKEN)
    t.equal(alarms(server), 0)
  }
})

t.test('83: a mapper that throws or rejects: 503, without its words', async t => {
  const words = canary('the words of a mapper that failed')
  for (const fails of [() => { throw new Error(words) }, async () => { throw new Error(words) }, () => untyped(Promise.reject(new Error(words))), () => untyped({ get userId () { throw new Error(words) } })]) {
    const server = await mapping(t, fails)
    const { status, body, headers } = await server.me(server.as.issue())
    t.strictSame([status, codeOf(body)], [503, UNAVAILABLE])
    t.notOk((body + JSON.stringify([...headers])).includes(words))
    t.equal((await server.upgrade(server.as.issue())).status, 503)
  }
})

const GARBAGE: Record<string, unknown> = {
  nothing: {}, 'a text': 'alice', true: true, 'a number': 7, 'a list': [], 'an empty userId': { userId: '' }, 'a userId that is a number': { userId: 7 }, 'a long userId': { userId: 'a'.repeat(1025) },
  'permissions that are a text': { userId: 'a', permissions: 'read' }, 'permissions of numbers': { userId: 'a', permissions: [7] }, 'a role that is a list': { userId: 'a', role: [] }, 'an empty tenant': { userId: 'a', tenantId: '' }, 'a function': () => {}
}
for (const [what, garbage] of Object.entries(GARBAGE)) {
  t.test(`83: a mapper that returns ${what}: 401, and the log says once that it did`, async t => {
    for (const user of [() => untyped(garbage), async () => untyped(garbage)]) {
      const { stream, text: log } = keepLines()
      const server = await asking(t, { introspection: { user }, fastify: { logger: { stream, level: 'warn', serializers } } })
      for (let n = 0; n < 2; n++) t.equal(codeOf((await server.me(server.as.issue())).body), INVALID_TOKEN)
      t.equal(log().split('introspection.user returned something that is no identity').length, 2)
    }
  })
}

t.test('a mapper that returns undefined refuses the token', async t => {
  const server = await mapping(t, () => untyped(undefined))
  t.equal(await server.status(server.as.issue()), 401)
})

t.test('a mapper that changes what it gets fails, and has changed nothing for anybody', async t => {
  let isHostile = true
  const server = await mapping(t, claims => {
    if (isHostile) Reflect.set(claims, 'sub', 'mallory')
    if (isHostile) Reflect.set(Object(claims.nested) as object, 'role', 'admin')
    if (isHostile) Reflect.deleteProperty(claims, 'active')
    return { userId: claims.sub ?? '', nested: claims.nested }
  })
  const token = server.as.issue({ nested: { role: 'user' } })
  t.match(await server.context(token), { userId: 'alice', user: { nested: { role: 'user' } } })
  isHostile = false
  t.match(await server.context(token), { userId: 'alice', claims: { active: true, sub: 'alice', nested: { role: 'user' } } })
  const throwing = await mapping(t, claims => {
    Object.assign(claims, { sub: 'mallory' })
    return { userId: 'x' }
  })
  t.equal(await throwing.status(throwing.as.issue()), 503)
})

t.test('what a mapper returned may be changed by it later, and no context changes', async t => {
  const mine = { userId: 'alice', permissions: ['read'] }
  const server = await mapping(t, () => mine)
  const token = server.as.issue()
  const { there } = await server.open({ token })
  mine.userId = 'mallory'
  mine.permissions.push('admin')
  t.match(there.connection.context, { userId: 'alice' })
  t.strictSame(there.connection.context.permissions, ['read'])
})

t.test('HTTP routes share it: auth, require() and optional, with one question', async t => {
  const server = await asking(t, {
    routes (app) {
      app.get('/readers', { auth: { permissions: ['read'] } }, async request => request.auth)
      app.get('/admins', { auth: { permissions: ['admin'] } }, async request => request.auth)
      app.get('/required', { preHandler: app.hybridAuth.require({ permissions: ['write'] }) }, async request => request.auth)
      app.get('/maybe', { auth: { optional: true } }, async request => ({ who: app.hybridAuth.contextOf(request)?.userId ?? null }))
    }
  })
  const token = server.as.issue()
  const get = (path: string) => ask(server.host, path, { headers: { authorization: `Bearer ${token}` } })
  t.strictSame([(await get('/readers')).status, (await get('/required')).status, (await get('/admins')).status], [200, 200, 403])
  t.match((await get('/admins')).headers.get('www-authenticate'), /error="insufficient_scope"/)
  t.equal((await get('/maybe')).body, '{"who":"alice"}')
  t.equal((await ask(server.host, '/maybe')).body, '{"who":null}')
  t.equal(server.as.asked.length, 1)
})

t.test('32: scope counts by whole names', async t => {
  const server = await asking(t, { routes (app) { app.get('/readers', { websocket: true, auth: { permissions: ['read'] } }, socket => { socket.send('{}') }) } })
  for (const [scope, status] of [['read', 101], ['write read', 101], [' read  ', 101], ['readall', 403], ['rea d', 403], ['READ', 403], ['read,write', 403], ['', 403], [['read'], 403], [7, 403], [{ read: true }, 403]] as const) {
    t.equal((await server.upgrade(server.as.issue({ scope }), { path: '/readers' })).status, status, JSON.stringify(scope))
  }
})

t.test('types says whether opaque tokens are meant', async t => {
  const server = await asking(t, {
    routes (app) {
      app.get('/oauth2', { auth: { types: ['oauth2'] } }, async () => 'ok')
      app.get('/others', { auth: { types: ['jwt', 'session'] } }, async () => 'ok')
    }
  })
  const status = async (path: string, authorization: string) => (await ask(server.host, path, { headers: { authorization } })).status
  const [token, jwt] = [`Bearer ${server.as.issue()}`, `Bearer ${goodToken()}`]
  t.strictSame([await status('/oauth2', token), await status('/oauth2', jwt)], [200, 403])
  t.strictSame([await status('/others', token), await status('/others', jwt)], [403, 200])
})

t.test('connections() and count() find opaque tokens by authType, by tokenId and by user', async t => {
  const server = await asking(t)
  const token = server.as.issue()
  await server.open({ token })
  await server.open({ token })
  await server.open({ token: server.as.issue({ sub: 'bob' }) })
  await server.open()
  const { hybridAuth } = server.app
  t.strictSame(['oauth2', 'jwt', 'session'].map(authType => hybridAuth.count({ authType: untyped(authType) })), [3, 1, 0])
  t.equal(hybridAuth.count({ tokenId: hashOf(token) }), 2)
  t.equal(hybridAuth.count({ userId: 'alice', authType: 'oauth2' }), 2)
  t.ok(hybridAuth.connections({ authType: 'oauth2' }).every(({ context }) => context.authType === 'oauth2'))
  await hybridAuth.disconnect({ authType: 'oauth2' })
  t.equal(hybridAuth.count({}), 1)
})

t.test('audit and metrics say oauth2, and how the questions went', async t => {
  const server = await asking(t)
  const registry = new Registry()
  server.app.hybridAuth.metrics(registry)
  const token = server.as.issue()
  const { peer } = await server.open({ token, speaks: true })
  t.match(server.events.find(({ type }) => type === 'authenticated'), { authType: 'oauth2', userId: 'alice', via: 'header' })
  peer.say(updateOf(server.as.issue()))
  await peer.takeFrame('auth_updated')
  t.match(server.events.find(({ type }) => type === 'refreshed'), { authType: 'oauth2', userId: 'alice', via: 'message' })
  t.equal(await server.status(opaque()), 401)
  t.match(server.events.find(({ type }) => type === 'refused'), { code: INVALID_TOKEN, authType: null, userId: null })
  server.as.answer = says('', { status: 500 })
  t.equal(await server.status(opaque()), 503)
  const metrics = await registry.metrics()
  for (const line of [
    'hybrid_auth_connections{auth_type="oauth2"} 1', 'hybrid_auth_handshakes_total{transport="websocket",outcome="oauth2"} 1',
    'hybrid_auth_introspections_total{outcome="active"} 2', 'hybrid_auth_introspections_total{outcome="inactive"} 1', 'hybrid_auth_introspections_total{outcome="unavailable"} 1'
  ]) t.ok(metrics.includes(line), line)
  for (const secret of [token, hashOf(token), 'alice']) t.notOk(metrics.includes(secret))
  peer.socket.close()
  await eventually('it is gone', () => server.app.hybridAuth.count({}) === 0)
  t.match(server.events.find(({ type }) => type === 'closed'), { authType: 'oauth2' })
})

t.test('neither token nor secret is in a log line, an answer, a context or an event, though the server repeats them in all it says', async t => {
  const { stream, text: log } = keepLines()
  const server = await asking(t, { fastify: { logger: { stream, level: 'trace', serializers } }, introspection: { ...UNREMEMBERED, timeout: 200 } })
  const { as } = server
  const secrets: string[] = [CLIENT.secret, encodeURIComponent(CLIENT.secret)]
  let said = ''
  const repeating = (make: (text: string) => RequestListener): RequestListener => (request, response) => {
    const last = as.asked.at(-1)
    const text = `${last?.token ?? ''} ${last?.headers.authorization ?? ''} ${last === undefined ? '' : basicOf(last).secret}`
    make(text)(request, response)
  }
  const answers = [
    repeating(text => says(JSON.stringify({ error: 'invalid_client', error_description: text, error_uri: text }), { status: 401 })),
    repeating(text => says(JSON.stringify({ error: text, error_description: text }), { status: 400 })),
    repeating(text => says(text, { status: 500, type: 'text/plain', headers: { 'www-authenticate': `Basic realm="${text}"` } })),
    repeating(text => says(text)), repeating(text => saysJson({ active: text })), repeating(text => saysJson([text])),
    repeating(text => says('', { status: 302, headers: { location: `/${encodeURIComponent(text)}` } })),
    repeating(text => saysJson({ active: false, token: text })), repeating(text => says(text, { type: `application/${encodeURIComponent(text)}` })), hangs
  ]
  for (const answer of answers) {
    // A server of its own for each would be asked too; the breaker must not be.
    as.answer = null
    const good = as.issue()
    t.equal(await server.status(good), 200)
    as.answer = answer
    const token = as.issue()
    secrets.push(token, good)
    const { body, headers } = await server.me(token)
    const refused = await server.upgrade(token)
    said += body + JSON.stringify([[...headers], refused, await upgrade(t, server.host, { path: `/live?token=${token}` })])
  }
  as.answer = null
  const token = as.issue()
  secrets.push(token)
  const { there } = await server.open({ token })
  said += inspect(there.connection.context, { depth: Infinity, showHidden: true })
  said += JSON.stringify(server.events)
  await server.app.hybridAuth.revoke({ token }, { reason: 'for the log' })
  t.ok(log().includes('authentication failed in introspection'), 'the operator is told')
  for (const secret of secrets) for (const form of [secret, Buffer.from(secret).toString('base64'), Buffer.from(secret).toString('base64url')]) t.notOk((log() + said).includes(form))
})

t.test('a ticket of an oauth2 context that was not made here cannot be issued', async t => {
  const server = await asking(t)
  const other = await asking(t, { as: server.as })
  const { there } = await server.open({ token: server.as.issue() })
  await t.rejects(other.app.hybridAuth.issueTicket(there.request), { code: UNAVAILABLE })
})

t.test('who is asked about claims that are not of here, asks nobody', async t => {
  const as = await authorizationServer(t)
  const asked: string[] = []
  const introspector = openIntrospector(introspectionOf(as), { onBadIdentity () {}, onAsked (answer) { asked.push(answer) } })
  t.equal(introspector.tokenOf({}), null)
  t.equal(await introspector.reverify({ sub: 'alice' }), INVALID_TOKEN)
  t.strictSame([as.asked, asked], [[], []])
})

t.test('what is asked again while sockets are open is asked of the server, whatever is remembered', async t => {
  const as = await authorizationServer(t)
  const introspector = openIntrospector(introspectionOf(as), { onBadIdentity () {}, onAsked () {} })
  const token = as.issue()
  const found = await introspector.verify(token)
  if (typeof found === 'string') throw new Error(found)
  t.equal(introspector.tokenOf(found.claims), token)
  t.match(await introspector.reverify(found.claims), { identity: { userId: 'alice' } })
  t.equal(as.asked.length, 2)
  as.revoke(token)
  t.equal(await introspector.reverify(found.claims), INVALID_TOKEN)
  t.equal(await introspector.verify(token), INVALID_TOKEN, 'and what it learns counts at once')
  t.equal(as.asked.length, 3)
})

for (const status of [400, 403, 404, 413]) {
  t.test(`a question that the server does not want to be asked, with status ${status}, does not stop the others`, async t => {
    const server = await asking(t)
    server.as.answer = says('', { status })
    for (let n = 0; n < 8; n++) t.equal(await server.status(opaque()), 503)
    t.equal(server.as.asked.length, 8)
    server.as.answer = null
    t.equal(await server.status(server.as.issue()), 200)
  })
}

t.test('80: a 400 that says unsupported_token_type is an answer: 401, remembered, and a guess', async t => {
  const server = await counting(t, {}, 2)
  server.as.answer = says('{"error":"unsupported_token_type"}', { status: 400 })
  const token = opaque()
  t.strictSame([await server.status(token), await server.status(token)], [401, 401])
  t.equal(server.as.asked.length, 1)
  await server.status(opaque())
  t.equal(alarms(server), 1)
  for (const [body, status] of [['["unsupported_token_type"]', 400], ['{"error":["unsupported_token_type"]}', 400], ['{"error":"unsupported_token_type"}', 401], ['{"error":"unsupported_token_type"}', 500], ['unsupported_token_type', 400]] as const) {
    server.as.answer = says(body, { status })
    t.equal(await server.status(opaque()), 503)
  }
})

t.test('82: when the application closes, questions that are open are over', async t => {
  const as = await authorizationServer(t)
  const introspector = openIntrospector(introspectionOf(as, { timeout: 60_000 }), { onBadIdentity () {}, onAsked () {} })
  as.answer = hangs
  const open = Promise.resolve(introspector.verify(as.issue()))
  const ended = t.rejects(open)
  await eventually('it is asked', () => as.asked.length === 1)
  introspector.stop()
  await ended
})

for (const status of [401, 429, 500, 502]) {
  t.test(`status ${status} is no matter of the question, and stops the others after 5`, async t => {
    const server = await asking(t)
    server.as.answer = says('', { status })
    for (let n = 0; n < 8; n++) t.equal(await server.status(opaque()), 503)
    t.equal(server.as.asked.length, 5)
  })
}

t.test('1 000 questions are open at once and no more; what is remembered passes meanwhile', async t => {
  const asked: string[] = []
  const gate = deferred<undefined>()
  const ask: Ask = async token => {
    if (asked.push(token) > 1) await gate.promise
    return active()
  }
  const tokens = new RemoteTokens(ask, { clockTolerance: 0, maxAge: 30_000, negativeMaxAge: 5000, timeout: 60_000, maxTokenLength: 100 }, { onBadIdentity () {}, onAsked () {} })
  const who = { identity: { userId: 'alice' } }
  t.match(await tokens.verify('known'), who)
  const open = times(1000, i => tokens.verify(`token-${i}`))
  await t.rejects(Promise.resolve(tokens.verify('one-more')), /too much/)
  const same = tokens.verify('token-0')
  t.match(tokens.verify('known'), who)
  gate.resolve(undefined)
  for (const found of await Promise.all([...open, same])) if (typeof found === 'string') t.fail(found)
  t.match(await tokens.verify('one-more'), who)
  t.equal(asked.length, 1002)
})

const ENTRY = (name: string) => JSON.stringify(new URL(`../lib/${name}`, import.meta.url).href)
const HOOK = "import { writeSync } from 'node:fs'\nexport async function load (url, context, next) { writeSync(1, 'loaded ' + url + '\\n'); return next(url, context) }"
/** Modules that a process loads for each part of a program. */
async function loadedBy (t: Test, ...parts: string[]): Promise<string[][]> {
  const program = [`import { register } from 'node:module'\nregister(${JSON.stringify(`data:text/javascript,${encodeURIComponent(HOOK)}`)})`, ...parts.map(part => `{${part}\n}\nprocess.stdout.write('done\\n')`)].join('\n')
  const child = spawn(process.execPath, [...process.execArgv, '--input-type=module', '-e', program], { cwd: new URL('..', import.meta.url), stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => { child.kill() })
  const [out, errors, code] = await Promise.all([text(child.stdout), text(child.stderr), new Promise(resolve => { child.on('close', resolve) })])
  if (code !== 0) throw new Error(`it ended with ${String(code)}: ${errors}`)
  return out.split('done\n').map(part => part.split('\n').filter(line => line.startsWith('loaded ')))
}

t.test('the main entry loads nothing of oauth4webapi, nor of what asks a server, and the providers do', async t => {
  const [main = [], providers = []] = await loadedBy(t, `
    const { default: hybridAuth } = await import(${ENTRY('index.ts')})
    const { default: Fastify } = await import('fastify')
    const app = Fastify()
    await app.register(hybridAuth, { jwt: ${JSON.stringify({ ...JWT, key: 'k'.repeat(32) })} })
    app.get('/', { auth: true }, async () => 'ok')
    await app.inject({ url: '/', headers: { authorization: 'Bearer abc' } })
    await app.close()`, `await import(${ENTRY('verify/providers.ts')})`)
  t.ok(main.some(url => url.includes('lib/verify/chain')), 'it was watched')
  t.strictSame(main.filter(url => /oauth4webapi|verify\/(?:providers|introspection|authorization-server|remote-tokens|fetch|breaker)\./.test(url)), [])
  t.ok(providers.some(url => url.includes('oauth4webapi')))
})
