/** People who log in at a real authorization server (`oidc-provider`) open sockets with what it gives them, until they log out there. */
import t, { type Test } from 'tap'
import hybridAuth, { type BackchannelLogoutOptions, type JwtOptions } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { discover, introspection, type IntrospectionOptions } from '../lib/verify/providers.js'
import { eventually, live, lookNow, setClock, type Live, type Pair } from './live.js'
import { API, APP, AUDIENCE, KEYED, openFlow, passesTo, readJwt, type Flow, type FlowOptions } from './oidc-flow.js'
import { fakeIssuer, hangs, issuerKey, says, saysJson } from './provider.js'
import { isOpen, isRevoked, updateOf } from './revoking.js'

// It says so once for each, on a Node that it has not been tested with, and of what is meant for development.
const { warn, info } = console
t.before(() => { console.warn = console.info = () => {} })
t.teardown(() => { Object.assign(console, { warn, info }) })

const [K1, K2, CLIENT_KEY] = [issuerKey('k1', 'RS256'), issuerKey('k2', 'RS256'), issuerKey('c1', 'ES256')]
const LOGOUT = '/backchannel-logout'

interface Guarded extends Pick<Live, 'open'> {
  logoutUri: string
  status: (token: string) => Promise<number>
  userOf: (token: string) => Promise<unknown>
}

interface GuardedOptions {
  jwt?: Partial<JwtOptions> | false
  remote?: Partial<IntrospectionOptions> | false
  logout?: Partial<BackchannelLogoutOptions>
}

/** A server for tokens of this provider: opaque ones, if nothing else is said. */
async function guarded (t: Test, { issuer, endpoint }: Flow, { jwt = false, remote = {}, logout }: GuardedOptions = {}): Promise<Guarded> {
  const key = discover(issuer)
  const secret = remote !== false && remote.clientKey !== undefined ? {} : { clientSecret: API.secret }
  const { host, open } = await live(t, {
    auth: {
      heartbeat: false,
      jwt: jwt === false ? undefined : { algorithms: ['RS256'], issuer, audience: AUDIENCE, typ: 'at+jwt', ...jwt, key },
      introspection: remote === false ? undefined : introspection({ endpoint, clientId: API.id, ...secret, issuer, audience: AUDIENCE, ...remote })
    },
    routes (app) {
      app.register(hybridAuth.backchannelLogout, { path: LOGOUT, audience: APP.id, ...(jwt === false && { key, algorithms: ['RS256'], issuer }), ...logout })
    }
  })
  const ask = (token: string) => fetch(`http://${host}/me`, { headers: { authorization: `Bearer ${token}` } })
  return {
    open,
    logoutUri: `http://${host}${LOGOUT}`,
    async status (token) {
      const answer = await ask(token)
      await answer.arrayBuffer()
      return answer.status
    },
    userOf: async token => (await ask(token)).json()
  }
}

/** The clock that keys grow old by, and that a server which failed is left alone by: moved and never stopped. */
function ageing (t: Test): (ms: number) => void {
  const now = performance.now.bind(performance)
  let offset = 0
  performance.now = () => now() + offset
  t.teardown(() => { Reflect.deleteProperty(performance, 'now') })
  return ms => { offset += ms }
}

/** Asks about the token of a socket, and waits until that has had its effect. */
async function askedAgain ({ there: { connection } }: Pair): Promise<void> {
  if (!(connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  const before = connection.readAt
  lookNow(connection)
  await eventually('its token was asked about', () => connection.readAt > before || !connection.isOpen)
}

async function tellLogout (uri: string, token: string): Promise<number> {
  const answer = await fetch(uri, { method: 'POST', body: new URLSearchParams({ logout_token: token }) })
  await answer.arrayBuffer()
  return answer.status
}

const OPAQUE = { keys: [K1], format: 'opaque' } as const satisfies FlowOptions
const STRUCTURED = { keys: [K1], format: 'jwt' } as const satisfies FlowOptions

const WAYS: Record<string, Partial<IntrospectionOptions>> = {
  client_secret_basic: {},
  client_secret_post: { clientAuthentication: 'client_secret_post' },
  private_key_jwt: { clientId: KEYED.id, clientKey: { key: CLIENT_KEY.privateKey, kid: 'c1', algorithm: 'ES256' } }
}

for (const [way, remote] of Object.entries(WAYS)) {
  t.test(`a login gives an opaque token that opens a socket, and logging out at the provider closes it (${way})`, async t => {
    const flow = await openFlow(t)
    const server = await guarded(t, flow, { remote })
    await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri, clientJwk: CLIENT_KEY.jwk })
    const [laptop, phone] = [flow.browser(), flow.browser()]
    const alice = await laptop.login('alice')
    const aliceElsewhere = await phone.login('alice')
    const bob = await flow.browser().login('bob')
    const { claims: { sid } } = readJwt(alice.idToken)
    t.type(sid, 'string')
    t.match(await server.userOf(alice.accessToken), {
      authType: 'oauth2', userId: 'alice', permissions: ['read'], issuer: flow.issuer, claims: { active: true, sid, aud: AUDIENCE, token_type: 'Bearer' }
    })
    const here = await server.open({ token: alice.accessToken })
    const elsewhere = await server.open({ token: aliceElsewhere.accessToken })
    const other = await server.open({ token: bob.accessToken })
    t.equal(here.there.connection.context.userId, 'alice')
    await isOpen(t, here, 'before')

    await laptop.logout(alice.idToken)
    await isRevoked(t, here, 'the socket of that login')
    t.strictSame(flow.undelivered, [], 'it has heard that it was understood')
    await isOpen(t, elsewhere, 'the same user, logged in elsewhere')
    await isOpen(t, other, 'another user')
    t.equal(await server.status(alice.accessToken), 401)
    t.equal(await server.status(aliceElsewhere.accessToken), 200)
    t.equal(await server.status(bob.accessToken), 200)

    const again = await laptop.login('alice')
    t.equal(await server.status(again.accessToken), 200, 'within the same second')
    await isOpen(t, await server.open({ token: again.accessToken }), 'a new login')
  })
}

t.test('a login gives a JWT that opens a socket, and with it the sid where the provider is told to put it there', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { jwt: {}, remote: false })
  await flow.begin({ ...STRUCTURED, logoutUri: server.logoutUri, tellsSid: true })
  const laptop = flow.browser()
  const alice = await laptop.login('alice')
  const aliceElsewhere = await flow.browser().login('alice')
  const bob = await flow.browser().login('bob')
  t.match(await server.userOf(alice.accessToken), { authType: 'jwt', userId: 'alice', permissions: ['read'], claims: { sid: readJwt(alice.idToken).claims.sid } })
  const [here, elsewhere, other] = [await server.open({ token: alice.accessToken }), await server.open({ token: aliceElsewhere.accessToken }), await server.open({ token: bob.accessToken })]
  await laptop.logout(alice.idToken)
  await isRevoked(t, here, 'the socket of that login')
  await isOpen(t, elsewhere, 'the same user, logged in elsewhere')
  await isOpen(t, other, 'another user')
  t.strictSame([await server.status(alice.accessToken), await server.status(aliceElsewhere.accessToken), await server.status(bob.accessToken)], [401, 200, 200])
  t.equal(await server.status((await laptop.login('alice')).accessToken), 200, 'a new login, within the same second')
})

t.test('JWTs that do not say which login they came from end with any of them, if they are older', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { jwt: {}, remote: false })
  await flow.begin({ ...STRUCTURED, logoutUri: server.logoutUri })
  const laptop = flow.browser()
  const alice = await laptop.login('alice')
  const aliceElsewhere = await flow.browser().login('alice')
  const bob = await flow.browser().login('bob')
  t.notOk('sid' in readJwt(alice.accessToken).claims, 'by itself the provider does not say it')
  const [here, elsewhere, other] = [await server.open({ token: alice.accessToken }), await server.open({ token: aliceElsewhere.accessToken }), await server.open({ token: bob.accessToken })]
  await laptop.logout(alice.idToken)
  await isRevoked(t, here, 'the socket of that login')
  await isRevoked(t, elsewhere, 'the same user, who may be the same login')
  await isOpen(t, other, 'another user')
  t.strictSame([await server.status(alice.accessToken), await server.status(aliceElsewhere.accessToken), await server.status(bob.accessToken)], [401, 401, 200])
  clock.move(1000)
  const again = await laptop.login('alice')
  t.equal(await server.status(again.accessToken), 200)
  await isOpen(t, await server.open({ token: again.accessToken }), 'a new login')
})

t.test('a provider that does not say which login has ended ends all of that user', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri, sessionRequired: false })
  const laptop = flow.browser()
  const alice = await laptop.login('alice')
  const here = await server.open({ token: alice.accessToken })
  const elsewhere = await server.open({ token: (await flow.browser().login('alice')).accessToken })
  const other = await server.open({ token: (await flow.browser().login('bob')).accessToken })
  await laptop.logout(alice.idToken)
  const { claims } = readJwt(flow.logoutTokens[0] ?? '')
  t.notOk('sid' in claims)
  t.equal(claims.sub, 'alice')
  await isRevoked(t, here, 'the socket of that login')
  await isRevoked(t, elsewhere, 'the other')
  await isOpen(t, other, 'another user')
  clock.move(1000)
  t.equal(await server.status((await laptop.login('alice')).accessToken), 200, 'a new login')
})

t.test('the logout token of the provider says who, and which login, for two minutes, and is a bearer for nobody', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { jwt: { audience: [AUDIENCE, APP.id], typ: undefined } })
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri })
  const browser = flow.browser()
  const { idToken } = await browser.login('alice')
  await browser.logout(idToken)
  const [token = '', ...rest] = flow.logoutTokens
  t.strictSame(rest, [])
  const { header, claims } = readJwt(token)
  t.strictSame(header, { alg: 'RS256', typ: 'logout+jwt', kid: 'k1' })
  t.match(claims, {
    iss: flow.issuer, aud: APP.id, sub: 'alice', sid: readJwt(idToken).claims.sid, jti: String, iat: Number,
    events: { 'http://schemas.openid.net/event/backchannel-logout': {} }
  })
  t.equal(Number(claims.exp) - Number(claims.iat), 120)
  t.notOk('nonce' in claims)
  t.equal(await server.status(token), 401, 'as a bearer')
  t.equal(await tellLogout(server.logoutUri, token), 400, 'a second time')
  t.equal(await tellLogout(server.logoutUri, idToken), 400, 'an ID token in its place')
})

t.test('who stays logged in at the provider is logged out of the application all the same', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri })
  const browser = flow.browser()
  const { accessToken, idToken } = await browser.login('alice')
  const pair = await server.open({ token: accessToken })
  await browser.logout(idToken, false)
  await isRevoked(t, pair, 'the socket')
  t.equal(await server.status(accessToken), 401)
  t.equal(await flow.isActive(accessToken), false)
})

t.test('a token with offline_access stays active at the provider after the logout, and is refused here, as what it is refreshed with', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri })
  const browser = flow.browser()
  const { accessToken, idToken, refreshToken } = await browser.login('alice', { offline: true })
  const pair = await server.open({ token: accessToken })
  await browser.logout(idToken)
  await isRevoked(t, pair, 'the socket')
  t.equal(await flow.isActive(accessToken), true, 'the provider goes on')
  t.equal(await server.status(accessToken), 401)
  const next = await flow.refresh(refreshToken)
  t.equal(await flow.isActive(next.accessToken), true)
  t.equal(await server.status(next.accessToken), 401, 'it says that it came from that login')
})

t.test('a refreshed token is taken over the open socket, which ends with the login all the same', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri })
  const browser = flow.browser()
  const { accessToken, idToken, refreshToken } = await browser.login('alice', { offline: true })
  const pair = await server.open({ token: accessToken, speaks: true })
  const next = await flow.refresh(refreshToken)
  t.not(next.accessToken, accessToken)
  pair.peer.say(updateOf(next.accessToken))
  t.match(await pair.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
  await browser.logout(idToken)
  await isRevoked(t, pair, 'the socket')
  t.equal(await server.status(next.accessToken), 401)
})

t.test('68: a logout that comes while the token is asked about wins', async t => {
  const flow = await openFlow(t)
  const proxy = await fakeIssuer(t)
  const server = await guarded(t, flow, { remote: { endpoint: `${proxy.issuer}/token/introspection` } })
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri })
  const browser = flow.browser()
  const { accessToken, idToken } = await browser.login('alice')
  const { body } = await flow.introspect(accessToken)
  const arrived = new Promise<() => void>(resolve => {
    proxy.rest = (request, response) => { resolve(() => { saysJson(JSON.parse(body))(request, response) }) }
  })
  const opening = t.rejects(server.open({ token: accessToken }), /401/)
  const answer = await arrived
  await browser.logout(idToken)
  // Good when it was asked for, and its server goes on saying so.
  proxy.rest = saysJson(JSON.parse(body))
  answer()
  await opening
  t.equal(await server.status(accessToken), 401)
})

t.test('where the provider cannot tell of the logout, the next question about the token ends the socket', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin({ ...OPAQUE, logoutUri: server.logoutUri, sendsToLoopback: false })
  const browser = flow.browser()
  const { accessToken, idToken } = await browser.login('alice')
  const pair = await server.open({ token: accessToken })
  await browser.logout(idToken)
  t.match(flow.undelivered, [/special-use IP address/], 'it does not connect to such addresses')
  await isOpen(t, pair, 'nobody knows yet')
  clock.move(30_000)
  await askedAgain(pair)
  await isRevoked(t, pair, 'the socket')
})

t.test('a token that is revoked at the provider ends its socket at the next question, and opens none once it is not remembered', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin(OPAQUE)
  const { accessToken, refreshToken } = await flow.browser().login('alice', { offline: true })
  const pair = await server.open({ token: accessToken })
  const other = await server.open({ token: (await flow.browser().login('bob')).accessToken })
  t.equal((await flow.revoke(accessToken)).status, 200)
  t.equal(await flow.isActive(refreshToken), false, 'the provider revokes the whole grant')
  t.equal(await server.status(accessToken), 200, 'remembered')
  clock.move(30_000)
  await askedAgain(other)
  await isOpen(t, other, 'another')
  await askedAgain(pair)
  await isRevoked(t, pair, 'the socket')
  t.equal(await server.status(accessToken), 401)
  await t.rejects(server.open({ token: accessToken }), /401/)
})

t.test('what an open socket has learnt of its token counts for the next that comes with it', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { remote: { maxAge: 3_600_000 } })
  await flow.begin(OPAQUE)
  const { accessToken } = await flow.browser().login('alice')
  const pair = await server.open({ token: accessToken })
  await flow.revoke(accessToken)
  clock.move(30_000)
  t.equal(await server.status(accessToken), 200, 'remembered for an hour')
  await askedAgain(pair)
  t.equal(await server.status(accessToken), 401)
})

t.test('73: rotating the keys of the provider refuses no good token while both are published', async t => {
  const move = ageing(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { jwt: {}, remote: false })
  const settings = { ...STRUCTURED, logoutUri: server.logoutUri, tellsSid: true }
  const login = async (account: string) => (await flow.browser().login(account)).accessToken
  await flow.begin(settings)
  const [seen, whileBoth, removed, gone] = [await login('alice'), await login('alice'), await login('alice'), await login('alice')]
  const old = flow.browser()
  const { idToken: oldIdToken } = await old.login('alice')
  const pair = await server.open({ token: seen })

  await flow.begin({ ...settings, keys: [K1, K2] })
  t.equal(await server.status(await login('alice')), 200, 'published, and not used yet')
  await flow.begin({ ...settings, keys: [K2, K1] })
  const after = await Promise.all(Array.from({ length: 8 }, (_, i) => login(`user ${i}`)))
  t.strictSame(after.map(token => readJwt(token).header.kid), after.map(() => 'k2'))
  t.strictSame(await Promise.all([...after, whileBoth].map(server.status)), Array.from({ length: 9 }, () => 200))

  await flow.begin({ ...settings, keys: [K2] })
  t.equal(await server.status(removed), 200, 'removed, and the keys are young')
  move(600_000)
  t.equal(await server.status(gone), 401, 'removed')
  t.equal(await server.status(await login('alice')), 200)
  await isOpen(t, pair, 'a socket of the first key')

  await t.rejects(old.logout(oldIdToken), /could not validate id_token_hint/, 'the provider does not know its own ID token any more')
  const browser = flow.browser()
  const { accessToken, idToken } = await browser.login('alice')
  const last = await server.open({ token: accessToken })
  await browser.logout(idToken)
  t.equal(readJwt(flow.logoutTokens[0] ?? '').header.kid, 'k2')
  await isRevoked(t, last, 'a logout that the new key tells of')
  await isOpen(t, pair, 'the other login')
})

t.test('78: a provider that is killed leaves what is remembered until it is too old, and comes back', async t => {
  const [clock, move] = [setClock(t), ageing(t)]
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin(OPAQUE)
  const { accessToken: known } = await flow.browser().login('alice')
  const { accessToken: fresh } = await flow.browser().login('bob')
  const pair = await server.open({ token: known })

  await flow.kill()
  t.equal(await server.status(fresh), 503)
  await t.rejects(server.open({ token: fresh }), /503/)
  t.equal(await server.status(known), 200)
  clock.move(25_000)
  t.equal(await server.status(known), 200, 'as long as it is remembered')
  const later = await server.open({ token: known })
  clock.move(5000)
  t.equal(await server.status(known), 503, 'and no longer')
  await t.rejects(server.open({ token: known }), /503/)

  await askedAgain(pair)
  await isOpen(t, pair, 'the socket')
  clock.move(265_000)
  await askedAgain(pair)
  await isOpen(t, pair, 'the socket, 295 s after the last answer')
  clock.move(30_000)
  await askedAgain(pair)
  const { code } = await pair.peer.end
  t.equal(code, 4012)

  await askedAgain(later)
  // Since this one was opened, maxStale is over as well.
  t.equal((await later.peer.end).code, 4012)

  await flow.begin(OPAQUE)
  move(5000)
  t.equal(await server.status(fresh), 200, 'it is back')
  t.equal(await server.status(known), 200)
  await isOpen(t, await server.open({ token: known }), 'a new socket')
})

t.test('78: sockets that were open while the provider was away go on when it is back', async t => {
  const [clock, move] = [setClock(t), ageing(t)]
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin(OPAQUE)
  const { accessToken } = await flow.browser().login('alice')
  const { accessToken: revoked } = await flow.browser().login('bob')
  const [pair, ended] = [await server.open({ token: accessToken }), await server.open({ token: revoked })]
  await flow.revoke(revoked)
  await flow.kill()
  clock.move(250_000)
  await Promise.all([askedAgain(pair), askedAgain(ended)])
  await isOpen(t, pair, 'away')
  await isOpen(t, ended, 'away: what has become of it nobody knows')
  await flow.begin(OPAQUE)
  move(5000)
  clock.move(30_000)
  await Promise.all([askedAgain(pair), askedAgain(ended)])
  await isOpen(t, pair, 'back')
  await isRevoked(t, ended, 'back: revoked meanwhile')
  await flow.kill()
  clock.move(280_000)
  await askedAgain(pair)
  await isOpen(t, pair, 'its time counts from the last answer')
})

t.test('78: onProviderError "close" closes sockets of a provider that is killed at the next question', async t => {
  const clock = setClock(t)
  const flow = await openFlow(t)
  const server = await guarded(t, flow, { remote: { onProviderError: 'close' } })
  await flow.begin(OPAQUE)
  const pair = await server.open({ token: (await flow.browser().login('alice')).accessToken })
  await flow.kill()
  clock.move(30_000)
  await askedAgain(pair)
  t.equal((await pair.peer.end).code, 4012)
})

t.test('78: a client that the provider does not know by what it says gets 503, and nobody in', async t => {
  const flow = await openFlow(t)
  const servers = await Promise.all(([
    { clientSecret: 'wrong' }, { clientId: 'nobody' },
    { ...WAYS.private_key_jwt, clientKey: { key: issuerKey('c1').privateKey, kid: 'c1', algorithm: 'ES256' } },
    { ...WAYS.private_key_jwt, issuer: ['https://other.example', flow.issuer] }
  ] satisfies Array<Partial<IntrospectionOptions>>).map(remote => guarded(t, flow, { remote })))
  await flow.begin({ ...OPAQUE, clientJwk: CLIENT_KEY.jwk })
  const { accessToken } = await flow.browser().login('alice')
  t.strictSame(await Promise.all(servers.map(({ status }) => status(accessToken))), servers.map(() => 503))
})

t.test('77: a token of the provider for another audience, or for itself alone, is refused', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  const elsewhere = await guarded(t, flow, { remote: { audience: 'urn:other' } })
  const another = await guarded(t, flow, { remote: { issuer: `${flow.issuer}/` } })
  await flow.begin(OPAQUE)
  const { accessToken } = await flow.browser().login('alice')
  t.strictSame([await server.status(accessToken), await elsewhere.status(accessToken), await another.status(accessToken)], [200, 401, 401])
  for (const resource of ['never', 'at the login'] as const) {
    const { accessToken: own } = await flow.browser().login('alice', { resource })
    t.match(JSON.parse((await flow.introspect(own)).body), { active: true, scope: 'openid', aud: undefined }, `the API is named ${resource}`)
    t.equal(await server.status(own), 401)
  }
})

t.test('77: a refresh token of the provider is no bearer where an audience is asked for', async t => {
  const flow = await openFlow(t)
  const server = await guarded(t, flow)
  await flow.begin(OPAQUE)
  const { refreshToken } = await flow.browser().login('alice', { offline: true })
  const answer = JSON.parse((await flow.introspect(refreshToken)).body) as Record<string, unknown>
  t.match(answer, { active: true, sub: 'alice', client_id: APP.id, scope: 'openid offline_access read' })
  t.notOk('token_type' in answer || 'aud' in answer || 'token_use' in answer, 'nothing says what kind it is')
  t.equal(await server.status(refreshToken), 401)
  await t.rejects(server.open({ token: refreshToken }), /401/)
})

// jose, and with it the provider, takes what begins like a JWT for one; it answers 400 to questions about those.
const encoded = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
const LOOKALIKES = {
  'three parts': (i: number) => `${encoded({ alg: 'none', i })}.e30.AA`,
  'no signature': (i: number) => `${encoded({ alg: 'none', i })}.e30.`,
  'five parts': (i: number) => `${encoded({ alg: 'dir', i })}.AA.AA.AA.AA`
}
for (const [what, lookalike] of Object.entries(LOOKALIKES)) {
  t.test(`78: whoever sends what looks like a JWT, and was never issued, keeps nobody else out (${what})`, async t => {
    const clock = setClock(t)
    const flow = await openFlow(t)
    const servers = [await guarded(t, flow), await guarded(t, flow, { jwt: {} })]
    await flow.begin(OPAQUE)
    t.match(await flow.introspect(lookalike(0)), { status: 400, body: /unsupported_token_type/ })
    for (const server of servers) {
      const { accessToken } = await flow.browser().login('alice')
      const { accessToken: another } = await flow.browser().login('bob')
      const pair = await server.open({ token: another })
      for (let i = 0; i < 12; i++) t.not(await server.status(lookalike(i)), 200)
      t.equal(await server.status(accessToken), 200)
      clock.move(30_000)
      await askedAgain(pair)
      await isOpen(t, pair, 'a socket whose token was asked about again')
    }
  })

  t.test(`77: what the provider does not want to be asked about is no token, and needs no second try (${what})`, async t => {
    const flow = await openFlow(t)
    const server = await guarded(t, flow)
    await flow.begin(OPAQUE)
    const asked = () => flow.door.asked.filter(url => url === '/token/introspection').length
    t.equal(await server.status(lookalike(0)), 401)
    const before = asked()
    t.equal(await server.status(lookalike(0)), 401)
    t.equal(asked(), before, 'remembered')
  })
}

t.test('78: the provider behind a proxy that is slow, wrong, huge or dead is 503, and served again when that is over', async t => {
  const flow = await openFlow(t)
  const proxy = await fakeIssuer(t)
  const passes = passesTo(flow.issuer)
  const clock = setClock(t)
  const server = await guarded(t, flow, { remote: { endpoint: `${proxy.issuer}/token/introspection`, timeout: 500 } })
  await flow.begin(OPAQUE)
  const login = async () => (await flow.browser().login('alice')).accessToken
  const { body: real } = await flow.introspect(await login())
  const after = (ms: number) => (...[request, response]: Parameters<typeof passes>) => { setTimeout(() => { passes(request, response) }, ms) }

  const faults: Record<string, typeof passes> = {
    slow: after(700),
    hanging: hangs,
    'half an answer, then nothing': (_request, response) => { response.writeHead(200, { 'content-type': 'application/json', 'content-length': real.length }).write(real.slice(0, 40)) },
    'half an answer, then cut': (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': real.length })
      response.write(real.slice(0, 40), () => { response.destroy() })
    },
    truncated: says(real.slice(0, -1)),
    'cut off': request => { request.socket.destroy() },
    HTML: says('<html>', { type: 'text/html' }),
    'a good answer, called HTML': says(real, { type: 'text/html' }),
    'a good answer, called text': says(real, { type: 'text/plain' }),
    'a good answer of no type': (_request, response) => { response.end(real) },
    'a good answer in a list': says(`[${real}]`),
    'a good answer with 5 MB': saysJson({ ...JSON.parse(real) as object, padding: 'x'.repeat(5 * 1024 * 1024) }),
    '5 MB without an end': (_request, response) => { response.writeHead(200, { 'content-type': 'application/json' }).write(`${real.slice(0, -1)}, "padding": "${'x'.repeat(5 * 1024 * 1024)}`) },
    nothing: says(''),
    'no content': says('', { status: 204 }),
    '301 to the provider': says('', { status: 301, headers: { location: flow.endpoint } }),
    '307 to the provider': says('', { status: 307, headers: { location: flow.endpoint } }),
    '307 with a good answer': says(real, { status: 307, headers: { location: flow.endpoint } }),
    '201 with a good answer': says(real, { status: 201 }),
    '401 with a good answer': says(real, { status: 401 }),
    'status 403': says('{}', { status: 403 }),
    'status 429': says('{"error":"slow_down"}', { status: 429 }),
    '500 with a good answer': says(real, { status: 500 }),
    '502 with HTML': says('<html>', { status: 502, type: 'text/html' })
  }
  proxy.rest = passes
  const known = await login()
  const pair = await server.open({ token: known })
  for (const [what, fault] of Object.entries(faults)) {
    const token = await login()
    proxy.rest = fault
    const asked = flow.door.asked.filter(url => url === '/token/introspection').length
    t.equal(await server.status(known), 200, `${what}: remembered`)
    clock.move(30_000)
    const [ofNew, ofKnown] = await Promise.all([server.status(token), server.status(known), askedAgain(pair)])
    t.strictSame([ofNew, ofKnown], [503, 503], `${what}: new, and not remembered any more`)
    t.notOk(pair.peer.hasEnded, `${what}: open`)
    if (fault !== faults.slow) t.equal(flow.door.asked.filter(url => url === '/token/introspection').length, asked, `${what}: nothing went further`)
    proxy.rest = passes
    t.strictSame([await server.status(token), await server.status(known)], [200, 200], `${what}, and over`)
    clock.move(30_000)
    await askedAgain(pair)
    await isOpen(t, pair, `${what}, and over`)
  }
  proxy.rest = after(100)
  t.equal(await server.status(await login()), 200, 'slow, and in time')

  const token = await login()
  await proxy.kill()
  t.equal(await server.status(token), 503, 'dead')
  proxy.rest = passes
  await proxy.restart()
  t.equal(await server.status(token), 200, 'dead, and over')
})

t.test('78: a provider that fails again and again is left alone for five seconds, and then asked once', async t => {
  const move = ageing(t)
  const flow = await openFlow(t)
  const proxy = await fakeIssuer(t)
  const server = await guarded(t, flow, { remote: { endpoint: `${proxy.issuer}/token/introspection` } })
  await flow.begin(OPAQUE)
  const login = async () => (await flow.browser().login('alice')).accessToken
  const tokens = await Promise.all(Array.from({ length: 8 }, login))
  proxy.rest = says('', { status: 502 })
  for (const token of tokens) t.equal(await server.status(token), 503)
  t.equal(proxy.asked.length, 5)
  proxy.rest = passesTo(flow.issuer)
  t.equal(await server.status(tokens[0] ?? ''), 503, 'still left alone')
  move(5000)
  t.strictSame(await Promise.all(tokens.slice(0, 1).map(server.status)), [200])
  t.strictSame(await Promise.all(tokens.map(server.status)), tokens.map(() => 200))
})
