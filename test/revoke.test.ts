import { generateKeyPairSync, sign } from 'node:crypto'
import t from 'tap'
import type { AuditEvent, RevokeTarget } from '../lib/index.js'
import { goodClaims, goodToken, inSeconds, JWT, rawExchange, SECRET, signHs256, handshake } from './helpers.js'
import { dial, eventually, type Pair } from './live.js'
import { audited, bearer, codeAndReason, isOpen, isRevoked, outcome, REVOKED, untyped, updateOf, withCookie, withoutId } from './revoking.js'
import { ask, codeOf, cookieFor, deferred, headerOf, MapStore, serveFromStore } from './stores.js'
import { exchange, gate, get, present, WAYS, type Way } from './ways.js'
import { authFrame, connect, connected } from './wire.js'

const REVOKED_TOKEN = 'FST_HYBRID_AUTH_REVOKED_TOKEN'
const REVOKED_SESSION = 'FST_HYBRID_AUTH_REVOKED_SESSION'
const OPTION = 'FST_HYBRID_AUTH_INVALID_OPTION'

/** Who is connected while something is revoked. Times are in seconds from now. */
const TOKENS = {
  oneAcme: { sub: 'alice', iss: 'one', companyId: 'acme', jti: 'j1', iat: -100 },
  twoOther: { sub: 'alice', iss: 'two', companyId: 'other', jti: 'j2', iat: -10 },
  plain: { sub: 'alice', jti: 'j1' },
  unnamed: { sub: 'alice', iss: 'one', companyId: 'acme', jti: undefined, iat: -10 },
  bob: { sub: 'bob', iss: 'one', companyId: 'acme', jti: 'jb', iat: -100 }
} as const
const SESSIONS = {
  s1: { userId: 'carol', tenantId: 'acme', issuedAt: -100 },
  s2: { userId: 'alice', issuedAt: -10 },
  s3: { userId: 'alice', tenantId: 'acme' }
} as const
type Name = keyof typeof TOKENS | keyof typeof SESSIONS
const ALICE: Name[] = ['oneAcme', 'twoOther', 'plain', 'unnamed', 's2', 's3']

interface Given { tokens: Record<keyof typeof TOKENS, string>, between: number }
type Row = [what: string, target: (given: Given) => RevokeTarget, closes: Name[]]

const TARGETS: Row[] = [
  ['a user', () => ({ userId: 'alice' }), ALICE],
  ['a user whose credentials are older than all of them', () => ({ userId: 'alice', issuedBefore: 1e11 }), ['plain', 's3']],
  ['a user, older', ({ between }) => ({ userId: 'alice', issuedBefore: between }), ['oneAcme', 'plain', 's3']],
  ['a user of an issuer', () => ({ userId: 'alice', issuer: 'one' }), ['oneAcme', 'unnamed']],
  ['a user of an issuer, older', ({ between }) => ({ userId: 'alice', issuer: 'one', issuedBefore: between }), ['oneAcme']],
  ['a user of no issuer', () => ({ userId: 'alice', issuer: null }), ['plain', 's2', 's3']],
  ['a user of a tenant', () => ({ userId: 'alice', tenantId: 'acme' }), ['oneAcme', 'unnamed', 's3']],
  ['a user of no tenant', () => ({ userId: 'alice', tenantId: null }), ['plain', 's2']],
  ['a user of an issuer and a tenant', () => ({ userId: 'alice', issuer: 'two', tenantId: 'other' }), ['twoOther']],
  ['a user of an issuer and another tenant', () => ({ userId: 'alice', issuer: 'two', tenantId: 'acme' }), []],
  ['a user of neither', () => ({ userId: 'alice', issuer: null, tenantId: null }), ['plain', 's2']],
  ['nobody', () => ({ userId: 'Alice' }), []],
  ['a session', () => ({ sessionId: 's1' }), ['s1']],
  ['a session, older', ({ between }) => untyped({ sessionId: 's1', issuedBefore: between }), ['s1']],
  ['a session that is newer', ({ between }) => untyped({ sessionId: 's2', issuedBefore: between }), []],
  ['a session that does not say when', ({ between }) => untyped({ sessionId: 's3', issuedBefore: between }), ['s3']],
  ['no session', () => ({ sessionId: 'alice' }), []],
  ['a jti of any issuer', () => ({ jti: 'j1' }), ['oneAcme', 'plain']],
  ['a jti of an issuer', () => ({ jti: 'j1', iss: 'one' }), ['oneAcme']],
  ['a jti of no issuer', () => ({ jti: 'j1', iss: null }), ['plain']],
  ['a jti of another issuer', () => ({ jti: 'j1', iss: 'two' }), []],
  ['a jti, older', ({ between }) => untyped({ jti: 'j2', issuedBefore: between }), []],
  ['a token id of any issuer', () => ({ tokenId: 'j1' }), ['oneAcme', 'plain']],
  ['a token id of an issuer', () => ({ tokenId: 'jb', issuer: 'one' }), ['bob']],
  ['a token id of no issuer', () => ({ tokenId: 'j1', issuer: null }), ['plain']],
  ['a token', ({ tokens }) => ({ token: tokens.oneAcme }), ['oneAcme']],
  ['a token of no issuer', ({ tokens }) => ({ token: tokens.plain }), ['plain']],
  ['a token without jti', ({ tokens }) => ({ token: tokens.unnamed }), ['unnamed']],
  ['a token that is newer', ({ tokens, between }) => untyped({ token: tokens.twoOther, issuedBefore: between }), []],
  ['a token that nobody holds', () => ({ token: goodToken({ jti: 'j1', iss: 'three' }) }), []],
  ['a tenant', () => ({ tenantId: 'acme' }), ['oneAcme', 'unnamed', 'bob', 's1', 's3']],
  ['a tenant, older', ({ between }) => ({ tenantId: 'acme', issuedBefore: between }), ['oneAcme', 'bob', 's1', 's3']],
  ['a tenant of an issuer', () => ({ tenantId: 'acme', issuer: 'one' }), ['oneAcme', 'unnamed', 'bob']],
  ['a tenant of no issuer', () => ({ tenantId: 'acme', issuer: null }), ['s1', 's3']],
  ['no tenant', () => ({ tenantId: 'one' }), []]
]

for (const [what, targetOf, closes] of TARGETS) {
  t.test(`revoke() of ${what} closes the sockets of exactly those, and refuses their credentials`, async t => {
    const { app, host, open, session, events } = await audited(t)
    const now = Math.floor(Date.now() / 1000)
    const tokenOf = (name: keyof typeof TOKENS) => {
      const claims = TOKENS[name]
      return goodToken({ ...claims, iat: 'iat' in claims ? now + claims.iat : undefined })
    }
    const tokens = { oneAcme: tokenOf('oneAcme'), twoOther: tokenOf('twoOther'), plain: tokenOf('plain'), unnamed: tokenOf('unnamed'), bob: tokenOf('bob') }
    const cookies = Object.fromEntries(Object.entries(SESSIONS).map(([id, user]) =>
      [id, session(id, { ...user, ...('issuedAt' in user && { issuedAt: (now + user.issuedAt) * 1000 }) })]))
    const credentials = new Map<string, { token: string } | { cookie: string }>([
      ...Object.entries(tokens).map(([name, token]): [string, { token: string }] => [name, { token }]),
      ...Object.entries(cookies).map(([name, cookie]): [string, { cookie: string }] => [name, { cookie }])
    ])
    const pairs = new Map<string, Pair>()
    for (const [name, credential] of credentials) pairs.set(name, await open(credential))
    const target = targetOf({ tokens, between: (now - 50) * 1000 })

    t.same(withoutId(t, await app.hybridAuth.revoke(target, { dryRun: true })), outcome(closes.length, 0), 'dryRun counts')
    t.equal(app.hybridAuth.status().revocations, 0, 'and revokes nothing')
    for (const [name, pair] of pairs) await isOpen(t, pair, name)

    t.same(withoutId(t, await app.hybridAuth.revoke(target, { reason: 'left the company' })), outcome(closes.length))
    t.equal(app.hybridAuth.status().revocations, 1)
    for (const [name, pair] of pairs) await (closes.some(one => one === name) ? isRevoked : isOpen)(t, pair, name)
    t.equal(app.hybridAuth.count(), pairs.size - closes.length)

    for (const [name, credential] of credentials) {
      const { status, body } = await ask(host, '/me', 'token' in credential ? bearer(credential.token) : withCookie(credential.cookie))
      const isGone = closes.some(one => one === name)
      t.equal(status, isGone ? 401 : 200, `${name} over HTTP`)
      if (isGone) t.equal(codeOf(body), 'token' in credential ? REVOKED_TOKEN : REVOKED_SESSION)
    }
    const told = events.filter((event): event is Extract<AuditEvent, { type: 'revoked' }> => event.type === 'revoked')
    t.same(told.map(({ reason }) => reason), closes.map(() => 'left the company'))
  })
}

t.test('dryRun of one process leaves nothing behind: the credential opens the next socket', async t => {
  const { app, open } = await audited(t)
  const token = goodToken()
  await app.hybridAuth.revoke({ userId: 'alice' }, { dryRun: true })
  await isOpen(t, await open({ token }), 'the socket')
})

t.test('a client that speaks the protocol hears bye before 4006, and no reason of the application', async t => {
  const { app, open } = await audited(t)
  const { peer } = await open({ speaks: true })
  await app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'fraud-case-4711' })
  t.same(codeAndReason(await peer.end), REVOKED)
  t.same(peer.framesOf('bye'), [{ type: 'bye', code: 'revoked', action: 'stop' }])
  t.notOk(peer.texts.some(text => text.includes('4711')))
})

t.test('closeCodes can give the close another code', async t => {
  const { app, open } = await audited(t, { auth: { closeCodes: { Revoked: 4403 } } })
  const { peer } = await open()
  await app.hybridAuth.revoke({ userId: 'alice' })
  t.same(codeAndReason(await peer.end), { ...REVOKED, code: 4403 })
})

t.test('a revocation again, or of one that is narrower, closes nothing twice', async t => {
  const { app, open, events } = await audited(t)
  const pair = await open({ token: goodToken({ jti: 'one' }) })
  const [first, second, third] = await Promise.all([
    app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'first' }), app.hybridAuth.revoke({ userId: 'alice' }), app.hybridAuth.revoke({ jti: 'one' })
  ])
  t.same([first.matched, second.matched, third.matched], [1, 0, 0])
  t.equal(new Set([first.id, second.id, third.id]).size, 3)
  await isRevoked(t, pair, 'the socket')
  t.match(events.filter(({ type }) => type === 'revoked'), [{ reason: 'first' }])
  t.equal(events.filter(({ type }) => type === 'revoked').length, 1)
})

/** What each way answers to a credential that was revoked. */
const outlineOf = (way: Way) => way === 'subprotocol'
  ? { status: 101, code: '', error: '', close: 4006 }
  : { status: 401, code: REVOKED_TOKEN, error: 'invalid_token', close: 0 }

const TOKEN_KINDS: Array<[string, Record<string, unknown>]> = [['with jti', { jti: 'one' }], ['without jti', { jti: undefined }]]
for (const [kind, claims] of TOKEN_KINDS) {
  t.test(`a revoked token ${kind} is refused on all ways in, also where its verdict is cached`, async t => {
    let handled = 0
    const server = await gate(t, {
      routes (app) {
        app.get('/required', { preHandler: app.hybridAuth.require() }, async () => { handled++ })
        app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => { handled++ })
      }
    })
    const token = goodToken(claims)
    for (const way of WAYS) t.ok((await present(server, way, token)).context !== null, `${way}: good before`)
    t.equal((await exchange(server.port, get('/required', [`Authorization: Bearer ${token}`]))).status, 200)
    const open = await connected(t, server.host, { token: goodToken() })
    await open.heard.reach(1)
    const first = connect(t, server.host, { path: '/first', token: null, protocols: ['hybrid-auth.v1'] })
    await first.opened
    const [reached, ran] = [server.reached(), handled]
    await server.app.hybridAuth.revoke({ token })

    for (const way of WAYS) {
      for (const round of ['first', 'second']) {
        const { status, code, error, close } = await present(server, way, token)
        t.same({ status, code, error, close }, outlineOf(way), `${way}, ${round} time`)
      }
    }
    t.same([server.reached() - reached, handled - ran], [0, 0], 'nothing ran behind the guard')
    const { status, code, error } = await exchange(server.port, get('/required', [`Authorization: Bearer ${token}`]))
    t.same({ status, code, error }, { status: 401, code: REVOKED_TOKEN, error: 'invalid_token' }, 'require()')
    first.send(authFrame(token))
    t.same(await first.closed, REVOKED, 'first message')
    open.send(JSON.stringify(updateOf(token)))
    await open.heard.reach(2)
    t.match(JSON.parse(open.heard.all[1] ?? ''), { type: 'error', code: 'refresh_failed' }, 're-authentication')
    t.equal(handled, ran, 'no handler ran')
    t.ok((await present(server, 'HTTP header', goodToken())).context !== null, 'another token of the user is good')
    t.notOk(server.log().includes(token))
  })
}

t.test('a revoked user is refused on all ways in with every token, also with one that is issued later', async t => {
  const server = await gate(t)
  await server.app.hybridAuth.revoke({ userId: 'alice' })
  for (const way of WAYS) {
    const { status, code, error, close } = await present(server, way, goodToken())
    t.same({ status, code, error, close }, outlineOf(way), way)
  }
})

t.test('a token that is revoked before it was ever seen is refused', async t => {
  const server = await gate(t)
  for (const claims of [{}, { jti: undefined }, { iss: 'one' }, { iss: 'one', jti: undefined }]) {
    const token = goodToken(claims)
    await server.app.hybridAuth.revoke({ token })
    t.match(await present(server, 'HTTP header', token), { status: 401, code: REVOKED_TOKEN })
  }
})

t.test('the signature need not be good to revoke a token, and is no part of what is revoked', async t => {
  const server = await gate(t)
  const claims = goodClaims({ jti: undefined })
  await server.app.hybridAuth.revoke({ token: signHs256(claims, {}, 'another secret of 32 bytes or more') })
  t.match(await present(server, 'HTTP header', signHs256(claims)), { status: 401, code: REVOKED_TOKEN })
})

t.test('a token of any length that is accepted can be revoked', async t => {
  const server = await gate(t)
  const token = goodToken({ note: 'x'.repeat(3000) })
  t.ok((await present(server, 'HTTP header', token)).context !== null)
  const refused = await server.app.hybridAuth.revoke({ token }).then(() => null, (error: unknown) => error)
  t.equal(refused, null, 'revoke() takes it')
  t.equal((await present(server, 'HTTP header', token)).status, 401, 'and it is refused')
})

t.test('a revoked session is refused over HTTP, by upgrade, by close, and by require()', async t => {
  const { app, host, port, session, handled } = await audited(t, {
    routes (app) { app.get('/required', { preHandler: app.hybridAuth.require() }, async () => 'never') }
  })
  const cookie = session('s1', { userId: 'bob' })
  for (const path of ['/me', '/required']) t.equal((await ask(host, path, withCookie(cookie))).status, 200)
  await app.hybridAuth.revoke({ sessionId: 's1' })
  for (const path of ['/me', '/required']) {
    const { status, body, headers } = await ask(host, path, withCookie(cookie))
    t.same([status, codeOf(body)], [401, REVOKED_SESSION], path)
    t.equal(headers.get('www-authenticate'), 'Bearer realm="fastify-hybrid-auth"')
  }
  const lines = [`Cookie: ${cookie}`, `Origin: http://127.0.0.1:${port}`]
  const upgrade = await rawExchange(port, handshake(lines, { host: `127.0.0.1:${port}` }), REVOKED_SESSION)
  t.match(upgrade, /^HTTP\/1\.1 401 /)
  t.ok(upgrade.includes(REVOKED_SESSION))
  t.equal(headerOf(upgrade, 'www-authenticate'), 'Bearer realm="fastify-hybrid-auth"')
  const spoken = await dial(t, host, { path: '/live', cookie, speaks: true })
  t.same(codeAndReason(await spoken.end), REVOKED)
  t.equal(handled(), 0)
  const other = session('s2', { userId: 'bob' })
  t.equal((await ask(host, '/me', withCookie(other))).status, 200, 'another session of the user is good')
})

t.test('where there are no tokens, sessions are revoked all the same', async t => {
  const store = new MapStore().put('s1', { user: { userId: 'bob' }, cookie: {} })
  const { app, host } = await serveFromStore(t, { store })
  t.equal((await ask(host, '/me', withCookie(cookieFor('s1')))).status, 200)
  t.match(await app.hybridAuth.revoke({ userId: 'bob' }), outcome(0))
  const { status, body } = await ask(host, '/me', withCookie(cookieFor('s1')))
  t.same([status, codeOf(body)], [401, REVOKED_SESSION])
})

t.test('a revoked bearer and a good session: the session, which says so; a revoked session too: the refusal of the bearer', async t => {
  const { app, host, open, session, events } = await audited(t)
  const cookie = session('s1', { userId: 'bob' })
  const token = goodToken()
  await app.hybridAuth.revoke({ token })
  const both = { headers: { cookie, authorization: `Bearer ${token}` } }
  const { status, body } = await ask(host, '/me', both)
  t.equal(status, 200)
  t.match(JSON.parse(body), { authType: 'session', userId: 'bob', fallbackFrom: REVOKED_TOKEN })
  t.match(events.filter(({ type }) => type === 'fallback'), [{ code: REVOKED_TOKEN, userId: 'bob' }])
  const { there } = await open({ cookie })
  t.equal(there.connection.context.userId, 'bob')
  await app.hybridAuth.revoke({ sessionId: 's1' })
  t.equal(codeOf((await ask(host, '/me', both)).body), REVOKED_TOKEN)
})

t.test('fallback: absent refuses a revoked bearer beside a good session', async t => {
  const { app, host, session } = await audited(t, { auth: { fallback: 'absent' } })
  const cookie = session('s1', { userId: 'bob' })
  const token = goodToken()
  await app.hybridAuth.revoke({ token })
  t.equal(codeOf((await ask(host, '/me', { headers: { cookie, authorization: `Bearer ${token}` } })).body), REVOKED_TOKEN)
})

t.test('a ticket dies with the credential that it was issued for', async t => {
  const { app, host, port, session } = await audited(t, {
    routes (app) { app.get('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request)) }
  })
  const [token, cookie] = [goodToken(), session('s1', { userId: 'bob' })]
  const byToken = (await ask(host, '/ticket', bearer(token))).body
  const bySession = (await ask(host, '/ticket', withCookie(cookie))).body
  await app.hybridAuth.revoke({ token })
  await app.hybridAuth.revoke({ sessionId: 's1' })
  t.match(await exchange(port, handshake([], { path: `/live?ticket=${byToken}` })), { status: 401, code: REVOKED_TOKEN })
  t.match(await exchange(port, handshake([], { path: `/live?ticket=${bySession}` })), { status: 401, code: REVOKED_SESSION })
})

t.test('case 11: the other signature of a revoked ECDSA token stays refused, whether or not it verifies', async t => {
  const ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const server = await gate(t, { jwt: { key: publicKey, algorithms: ['ES256'] } })
  for (const claims of [{ jti: 'one', iss: 'issuer' }, { jti: 'two' }, { jti: undefined, iss: 'issuer' }, { jti: undefined }]) {
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
    const input = `${part({ alg: 'ES256', typ: 'JWT' })}.${part(goodClaims(claims))}`
    const bytes = sign('sha256', Buffer.from(input), { key: privateKey, dsaEncoding: 'ieee-p1363' })
    const mirrored = (ORDER - BigInt(`0x${bytes.toString('hex', 32)}`)).toString(16).padStart(64, '0')
    const [token, twin] = [bytes, Buffer.concat([bytes.subarray(0, 32), Buffer.from(mirrored, 'hex')])]
      .map(signature => `${input}.${signature.toString('base64url')}`)
    if (token === undefined || twin === undefined) throw new Error('there are two')
    t.not(token, twin)
    for (const way of WAYS) t.ok((await present(server, way, token)).context !== null, `${way}: good before`)
    await server.app.hybridAuth.revoke('iss' in claims && claims.jti !== undefined ? { jti: claims.jti, iss: claims.iss } : { token })
    for (const way of WAYS) {
      for (const [which, one] of Object.entries({ token, twin })) {
        const { status, context, close } = await present(server, way, one)
        t.ok(context === null && (status === 401 || close === 4006 || close === 4001), `${way}: the ${which} is refused`)
      }
    }
    // And the other way round: who revokes the twin has revoked the token.
    const again = goodClaims({ ...claims, jti: claims.jti === undefined ? undefined : `${claims.jti}-again` })
    const signed = `${part({ alg: 'ES256', typ: 'JWT' })}.${part(again)}`
    const signature = sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' })
    await server.app.hybridAuth.revoke({ token: `${signed}.${Buffer.alloc(64, 1).toString('base64url')}` })
    t.equal((await present(server, 'HTTP header', `${signed}.${signature.toString('base64url')}`)).status, 401)
  }
})

t.test('the sink and the emitter are told of each socket with the reason; one that throws or rejects changes nothing', async t => {
  const seen: AuditEvent[] = []
  const { app, open } = await audited(t, {
    auth: {
      audit (event) {
        seen.push(event)
        if (event.type === 'revoked') throw new Error('a sink that throws')
      }
    }
  })
  const heard: Array<Extract<AuditEvent, { type: 'revoked' }>> = []
  app.hybridAuth.events.on('revoked', event => {
    heard.push(event)
    throw new Error('a listener that throws')
  })
  const pairs = [await open(), await open({ speaks: true })]
  for (const { there } of pairs) there.connection.on('close', () => { throw new Error('a listener that throws') })
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }, { reason: 'stolen laptop' }), outcome(2))
  for (const pair of pairs) await isRevoked(t, pair, 'the socket')
  const byId = (a: { connectionId: string }, b: { connectionId: string }) => a.connectionId.localeCompare(b.connectionId)
  const expected = pairs.map(({ there }) => ({ type: 'revoked', reason: 'stolen laptop', userId: 'alice', authType: 'jwt', via: 'header', route: '/app', connectionId: there.connection.id, websocket: true }))
  t.match([...heard].sort(byId), expected.sort(byId))
  t.same(seen.filter(({ type }) => type === 'revoked'), heard)
  t.match(seen.filter(({ type }) => type === 'closed'), [{ closeCode: 4006 }, { closeCode: 4006 }])
})

t.test('a refused handshake is audited with its code', async t => {
  const { app, host, session, events } = await audited(t)
  const [token, cookie] = [goodToken(), session('s1', { userId: 'bob' })]
  await app.hybridAuth.revoke({ token })
  await app.hybridAuth.revoke({ sessionId: 's1' })
  await ask(host, '/me', bearer(token))
  await ask(host, '/me', withCookie(cookie))
  t.match(events.filter(({ type }) => type === 'refused'), [{ type: 'refused', code: REVOKED_TOKEN, route: '/me' }, { type: 'refused', code: REVOKED_SESSION }])
})

t.test('status() is plain numbers', async t => {
  const { app } = await audited(t)
  const { nodeId, ...rest } = app.hybridAuth.status()
  t.match(nodeId, /^[A-Za-z0-9_-]{12}$/)
  t.same(rest, { connected: true, lostSince: null, revocations: 0, queued: 0, ignored: 0, auditDropped: 0 })
  await app.hybridAuth.revoke({ userId: 'alice' })
  await app.hybridAuth.revoke({ jti: 'one' })
  t.same(app.hybridAuth.status(), { nodeId, ...rest, revocations: 2 })
})

t.test('revoke() after the application was closed rejects, for nobody would carry it out', async t => {
  const { app } = await audited(t)
  await app.close()
  await t.rejects(app.hybridAuth.revoke({ userId: 'alice' }), { code: 'FST_HYBRID_AUTH_UNAVAILABLE' })
})

t.test('revoke() does not wait for a peer that never answers the close', async t => {
  const { app, open } = await audited(t)
  const { peer, there } = await open()
  peer.socket.pause()
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }), outcome(1))
  t.equal(app.hybridAuth.count(), 0)
  await there.closed
  t.same(there.closes, [4006])
})

interface Bad { what: string, target?: unknown, options?: unknown, names: string }
const CANARY = 'canary-4711'
const LONG = CANARY.repeat(300)
const BAD: Bad[] = [
  { what: 'nothing', target: undefined, names: 'target' },
  { what: 'null', target: null, names: 'target' },
  { what: 'a text', target: CANARY, names: 'target' },
  { what: 'a list', target: [CANARY], names: 'target' },
  { what: 'no selector', target: {}, names: 'target' },
  { what: 'an issuer alone', target: { issuer: CANARY }, names: 'target' },
  { what: 'no tenant', target: { tenantId: null }, names: 'target' },
  { what: 'a time alone', target: { issuedBefore: 1 }, names: 'target' },
  { what: 'a member that is not one', target: { userId: 'a', userID: CANARY }, names: 'target.userID' },
  { what: 'a user that is undefined', target: { userId: undefined, tenantId: CANARY }, names: 'target.userId' },
  { what: 'an issuer that is undefined', target: { userId: CANARY, issuer: undefined }, names: 'target.issuer' },
  { what: 'a tenant that is undefined', target: { userId: CANARY, tenantId: undefined }, names: 'target.tenantId' },
  { what: 'a time that is undefined', target: { userId: CANARY, issuedBefore: undefined }, names: 'target.issuedBefore' },
  ...['userId', 'sessionId', 'token', 'tokenId', 'jti', 'tenantId', 'issuer', 'iss'].flatMap(name => [
    { what: `a number as ${name}`, target: { ...(name.startsWith('iss') && { jti: 'x' }), [name]: 4711 }, names: `target.${name}` },
    { what: `an empty ${name}`, target: { ...(name.startsWith('iss') && { jti: 'x' }), [name]: '' }, names: `target.${name}` },
    { what: `a long ${name}`, target: { ...(name.startsWith('iss') && { jti: 'x' }), [name]: LONG }, names: `target.${name}` }
  ]),
  { what: 'two selectors', target: { userId: CANARY, sessionId: CANARY }, names: 'target' },
  { what: 'two names of a token', target: { tokenId: CANARY, jti: CANARY }, names: 'target' },
  { what: 'a token and its jti', target: { token: goodToken(), jti: CANARY }, names: 'target' },
  { what: 'a garbage token', target: { token: CANARY }, names: 'target.token' },
  { what: 'a token of two parts', target: { token: `${CANARY}.${CANARY}` }, names: 'target.token' },
  { what: 'a token of four parts', target: { token: `${goodToken()}.${CANARY}` }, names: 'target.token' },
  { what: 'a token whose payload is no JSON', target: { token: `e30.${CANARY}.c2ln` }, names: 'target.token' },
  { what: 'a token whose payload is null', target: { token: 'e30.bnVsbA.c2ln' }, names: 'target.token' },
  { what: 'a token whose payload is a text', target: { token: `e30.${Buffer.from(`"${CANARY}"`).toString('base64url')}.c2ln` }, names: 'target.token' },
  { what: 'a token whose payload is not UTF-8', target: { token: `e30.${Buffer.from('{"jti":"\xff"}', 'latin1').toString('base64url')}.c2ln` }, names: 'target.token' },
  { what: 'a bearer', target: { token: `Bearer ${goodToken()}` }, names: 'target.token' },
  { what: 'issuedBefore: NaN', target: { userId: CANARY, issuedBefore: NaN }, names: 'target.issuedBefore' },
  { what: 'issuedBefore: Infinity', target: { userId: CANARY, issuedBefore: Infinity }, names: 'target.issuedBefore' },
  { what: 'issuedBefore: -1', target: { userId: CANARY, issuedBefore: -1 }, names: 'target.issuedBefore' },
  { what: 'a Date', target: { userId: CANARY, issuedBefore: new Date() }, names: 'target.issuedBefore' },
  { what: 'options that are a text', options: CANARY, names: 'options' },
  { what: 'an option that is not one', options: { reasons: CANARY }, names: 'options.reasons' },
  { what: 'issuedBefore as an option', options: { issuedBefore: 1 }, names: 'options.issuedBefore' },
  { what: 'a reason that is too long', options: { reason: 'x'.repeat(201) }, names: 'options.reason' },
  { what: 'a reason of two lines', options: { reason: `${CANARY}\n` }, names: 'options.reason' },
  { what: 'a reason with a control character', options: { reason: `${CANARY}\n` }, names: 'options.reason' },
  { what: 'a time in seconds', target: { userId: 'alice', issuedBefore: Math.floor(Date.now() / 1000) }, names: 'target.issuedBefore' },
  { what: 'a reason that is a number', options: { reason: 4711 }, names: 'options.reason' },
  ...[CANARY, 'later', null, 60_000, [], {}, { reauthWithin: 0 }, { reauthWithin: -1 }, { reauthWithin: NaN }, { reauthWithin: '60000' }, { reauthWithin: 86_400_001 }, { reauthWithin: Infinity },
    { reauthWithin: 1000, [CANARY.slice(0, 6)]: 1 }].map(mode => ({ what: `mode ${JSON.stringify(mode)}`, options: { mode }, names: 'options.mode' })),
  { what: 'expiresAt: NaN', options: { expiresAt: NaN }, names: 'options.expiresAt' },
  { what: 'expiresAt: a Date', options: { expiresAt: new Date() }, names: 'options.expiresAt' },
  { what: 'expiresAt: null', options: { expiresAt: null }, names: 'options.expiresAt' },
  { what: 'dryRun: 1', options: { dryRun: 1 }, names: 'options.dryRun' }
]

t.test('a bad argument rejects with the name of the member and never with its value, and revokes nothing', async t => {
  const { app, open } = await audited(t)
  const pair = await open()
  for (const bad of BAD) {
    const { what, options, names } = bad
    const target = 'target' in bad ? bad.target : { userId: 'alice' }
    const error = await app.hybridAuth.revoke(untyped(target), untyped(options)).then(() => ({}), (one: unknown) => one)
    const message = error instanceof Error ? error.message : ''
    t.match(error, { code: OPTION }, what)
    t.ok(message.startsWith(`Invalid option ${names}`), `${what}: ${message}`)
    t.notOk(message.includes(CANARY) || message.includes('4711') || message.includes('eyJ'), `${what}: the value is not repeated`)
  }
  t.equal(app.hybridAuth.status().revocations, 0)
  await isOpen(t, pair, 'the socket')
})

t.test('a member that another target has is not ignored: what is revoked would be wider than what was asked for', async t => {
  const { app } = await audited(t)
  const slips: Array<[string, Record<string, unknown>]> = [
    ['the tenant of a session', { sessionId: 's1', tenantId: 'acme' }], ['the tenant of a token', { jti: 'j1', tenantId: 'acme' }],
    ['the issuer of a token', { token: goodToken(), issuer: 'one' }], ['the issuer of a session', { sessionId: 's1', issuer: null }],
    ['iss of a user', { userId: 'alice', iss: 'one' }], ['issuer of a jti', { jti: 'j1', issuer: 'one' }], ['two issuers', { jti: 'j1', iss: 'one', issuer: 'two' }]
  ]
  for (const [what, target] of slips) {
    const error = await app.hybridAuth.revoke(untyped(target)).then(() => null, (one: unknown) => one)
    t.match(error, { code: OPTION }, what)
  }
})

t.test('options that are undefined, or have members that are, are the defaults', async t => {
  const { app } = await audited(t)
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }, undefined), outcome(0))
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }, { reason: undefined, mode: undefined, expiresAt: undefined, dryRun: undefined }), outcome(0))
  t.equal(app.hybridAuth.status().revocations, 2)
})

t.test('a key that is the same text as another kind of key is another key', async t => {
  const { app, open, session } = await audited(t)
  const token = goodToken({ sub: 'x', jti: 'x', companyId: 'x' })
  const [byToken, bySession] = [await open({ token }), await open({ cookie: session('x', { userId: 'y' }) })]
  await app.hybridAuth.revoke({ sessionId: 'x' })
  await isRevoked(t, bySession, 'the session')
  await isOpen(t, byToken, 'the token')
  await app.hybridAuth.revoke({ jti: 'y' })
  await app.hybridAuth.revoke({ tenantId: 'y' })
  await isOpen(t, byToken, 'the token')
  await app.hybridAuth.revoke({ tenantId: 'x' })
  await isRevoked(t, byToken, 'the token')
})

t.test('what closed by itself meanwhile is neither matched nor told of', async t => {
  const { app, open, events } = await audited(t)
  const { peer, there } = await open()
  peer.socket.close(1000)
  await there.closed
  t.match(await app.hybridAuth.revoke({ userId: 'alice' }), outcome(0))
  t.notOk(events.some(({ type }) => type === 'revoked'))
})

t.test('keys that are still being fetched do not keep revoke() waiting', async t => {
  const key = deferred<string>()
  const { app, host } = await audited(t, { auth: { jwt: { ...JWT, key: () => key.promise } } })
  const token = goodToken({ exp: inSeconds(60) })
  const answer = ask(host, '/me', bearer(token))
  await eventually('the request is there', () => app.server.listening)
  t.match(await app.hybridAuth.revoke({ token }), outcome(0))
  key.resolve(SECRET)
  t.equal(codeOf((await answer).body), REVOKED_TOKEN)
})
