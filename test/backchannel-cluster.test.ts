/** What a logout at an OpenID provider ends, on every node of a cluster: what came from that login, and nothing else. */
import { createPublicKey } from 'node:crypto'
import t, { type Test } from 'tap'
import hybridAuth, { type AuthContext, type BackchannelLogoutOptions, type Claims, type HybridAuthOptions, type Identity } from '../lib/index.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { isAimedAt, Revocations, type Revocation } from '../lib/cluster/revocations.js'
import { connectionsOf } from '../lib/connection/enforce.js'
import { Registry } from '../lib/connection/registry.js'
import { introspection } from '../lib/verify/providers.js'
import { wheel, type Wheeled } from '../lib/wheel.js'
import { CLUSTER_SECRET, endOf, isOpen, REVOKED, SHORT, startNode, type Node, type NodeSettings } from './cluster-suite.js'
import { inSeconds, upgrade } from './helpers.js'
import { eventually, setClock, type Pair } from './live.js'
import { fakeIssuer, issuerKey, mint, saysJson, type Jwk } from './provider.js'
import { connect, needsRedis, startProxy, startRedis } from './redis.js'
import { bearer, driverOf, Hold, withCookie } from './revoking.js'
import { ask, codeOf, cookieFor, deferred, MapStore, type Answer } from './stores.js'
import { authFrame, connect as connectWs, until } from './wire.js'

const EVENT = 'http://schemas.openid.net/event/backchannel-logout'
const PATH = '/logged-out'
const ISSUER = 'https://id.example'
const OTHER = 'https://other.example'
const APP = 'the-app'
const ORIGIN = 'https://app.example'
const REVOKED_TOKEN = 'FST_HYBRID_AUTH_REVOKED_TOKEN'

const KEY = issuerKey('k1')
const PUBLIC = createPublicKey({ key: KEY.jwk, format: 'jwk' })
const JWT = { key: PUBLIC, algorithms: ['ES256'], issuer: [ISSUER, OTHER], audience: APP } as const satisfies HybridAuthOptions['jwt']

const logoutToken = (changes: Jwk) => mint(KEY, { iss: ISSUER, aud: APP, sub: undefined, exp: inSeconds(120), events: { [EVENT]: {} }, ...changes }, { typ: 'logout+jwt' })
/** Issued long enough ago to be older than every logout of a test; of alice, and of no login, unless it says otherwise. */
const accessToken = (changes: Jwk = {}) => mint(KEY, { iss: ISSUER, aud: APP, iat: inSeconds(-20), ...changes })

interface LogoutNode extends Node {
  tell: (token: string) => Promise<Answer>
  /** What `onLogout` was called with. */
  told: Claims[]
  store: MapStore
  /** What `/me` answers to a cookie. */
  knows: (cookie: string) => Promise<number>
  /** One that was asked for from {@link ORIGIN}. */
  ticket: (of: { headers: Record<string, string> }) => Promise<string>
  /** Whether an upgrade with this ticket opens. */
  takes: (ticket: string) => Promise<number>
}

interface Settings extends Partial<NodeSettings> { logout?: Partial<BackchannelLogoutOptions> }

async function logoutNode (t: Test, { cluster = memoryCluster(), auth, logout, routes, ...rest }: Settings = {}): Promise<LogoutNode> {
  const told: Claims[] = []
  const store = new MapStore()
  const node = await startNode(t, {
    cluster,
    store,
    auth: { heartbeat: false, jwt: JWT, ...auth },
    routes (app) {
      routes?.(app)
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => { socket.send('let in') })
      app.register(hybridAuth.backchannelLogout, { path: PATH, onLogout: claims => { told.push(claims) }, ...logout })
    },
    ...rest
  })
  const { host } = node
  return {
    ...node,
    told,
    store,
    tell: token => ask(host, PATH, { method: 'POST', body: new URLSearchParams({ logout_token: token }) }),
    knows: async cookie => (await ask(host, '/me', withCookie(cookie))).status,
    ticket: async ({ headers }) => (await ask(host, '/ticket', { method: 'POST', headers: { ...headers, origin: ORIGIN } })).body,
    takes: async ticket => (await upgrade(t, host, { path: `/live?ticket=${ticket}`, headers: { origin: ORIGIN } })).status
  }
}

type MakeDriver = () => ClusterDriver | Promise<ClusterDriver>
/** Two nodes of one cluster; the first is told of logouts unless a test does otherwise. */
async function two (t: Test, settings: Settings = {}, makeDriver?: MakeDriver): Promise<[LogoutNode, LogoutNode]> {
  const memory = memoryCluster()
  const start = async () => logoutNode(t, { cluster: await makeDriver?.() ?? memory, ...settings })
  return [await start(), await start()]
}

/** Puts the same session into the store of each node. */
function sessionOn (nodes: readonly LogoutNode[], id: string, user: Identity): string {
  for (const { store } of nodes) store.put(id, { user, cookie: {} })
  return cookieFor(id)
}

const openOn = (nodes: readonly Node[], ...given: Parameters<Node['open']>) => Promise.all(nodes.map(({ open }) => open(...given)))

async function haveEnded (t: Test, pairs: readonly Pair[], what: string): Promise<void> {
  for (const { peer } of pairs) t.same(await endOf(peer), REVOKED, `${what}: 4006 revoked`)
}

async function areOpen (t: Test, pairs: readonly Pair[], what: string): Promise<void> {
  for (const pair of pairs) await isOpen(t, pair, what)
}

const OUT = [401, 401]
const IN = [101, 200]

interface Kind { what: string, claims: Jwk }
interface Case { title: string, logout: Jwk, ends: Kind[], stays: Kind[] }
const CASES: Case[] = [
  {
    title: 'a logout by sid ends what says that it came from that login, whosever it is, and nothing else',
    logout: { sid: 'login-1' },
    ends: [{ what: 'the login', claims: { sid: 'login-1' } }, { what: 'the login, of another sub', claims: { sid: 'login-1', sub: 'bob' } },
      { what: 'the login, issued since', claims: { sid: 'login-1', iat: inSeconds(0) } }, { what: 'the login, without iat', claims: { sid: 'login-1', iat: undefined } }],
    stays: [{ what: 'another login', claims: { sid: 'login-2' } }, { what: 'no login', claims: {} }, { what: 'the login in capitals', claims: { sid: 'LOGIN-1' } },
      { what: 'the same sid of another issuer', claims: { sid: 'login-1', iss: OTHER } }, { what: 'a sub of that name', claims: { sub: 'login-1' } },
      { what: 'a sid that is a list', claims: { sid: ['login-1'] } }]
  },
  {
    title: 'a logout by sid and sub ends the login, and what was issued to the sub before and names no login',
    logout: { sid: 'login-1', sub: 'alice' },
    ends: [{ what: 'the login', claims: { sid: 'login-1' } }, { what: 'the login, of another sub', claims: { sid: 'login-1', sub: 'bob' } }, { what: 'no login', claims: {} },
      { what: 'no login, without iat', claims: { iat: undefined } }, { what: 'a sid that is no text', claims: { sid: 4711 } }, { what: 'a sid that is null', claims: { sid: null } }],
    stays: [{ what: 'another login', claims: { sid: 'login-2' } }, { what: 'no login, of another sub', claims: { sub: 'bob' } }, { what: 'no login, of another issuer', claims: { iss: OTHER } },
      { what: 'the same sid of another issuer', claims: { sid: 'login-1', iss: OTHER } }, { what: 'the sub in capitals', claims: { sub: 'Alice' } }]
  },
  {
    title: 'a logout by sub ends all that was issued to the sub before, whatever login it names',
    logout: { sub: 'alice' },
    ends: [{ what: 'a login', claims: { sid: 'login-1' } }, { what: 'another login', claims: { sid: 'login-2' } }, { what: 'no login', claims: {} }, { what: 'no iat', claims: { iat: undefined } }],
    stays: [{ what: 'another sub', claims: { sub: 'bob', sid: 'login-1' } }, { what: 'another issuer', claims: { iss: OTHER } }, { what: 'a login of that name', claims: { sub: 'bob', sid: 'alice' } }]
  }
]

/** What holds whatever nodes talk through. */
function endsOnEveryNode (t: Test, options: { skip?: string | false }, prefix: string, makeDriver?: (t: Test) => Promise<MakeDriver>): void {
  for (const { title, logout, ends, stays } of CASES) {
    t.test(`${prefix}${title}`, { ...options }, async t => {
      const nodes = await two(t, {}, await makeDriver?.(t))
      const [a] = nodes
      const open = async ({ what, claims }: Kind) => {
        const token = accessToken(claims)
        return { what, token, pairs: await openOn(nodes, { token }) }
      }
      const [ending, staying] = [await Promise.all(ends.map(open)), await Promise.all(stays.map(open))]
      t.equal((await a.tell(logoutToken(logout))).status, 200)
      for (const { what, token, pairs } of ending) {
        await haveEnded(t, pairs, what)
        for (const node of nodes) t.same(await node.admits(token), OUT, what)
      }
      for (const { what, token, pairs } of staying) {
        await areOpen(t, pairs, what)
        for (const node of nodes) t.same(await node.admits(token), IN, what)
      }
      const [{ token } = { token: '' }] = ending
      for (const { host } of nodes) t.equal(codeOf((await ask(host, '/me', bearer(token))).body), REVOKED_TOKEN)
    })
  }

  t.test(`${prefix}logout replayed: on another node it is refused, and what was opened since stays`, { ...options }, async t => {
    const nodes = await two(t, {}, await makeDriver?.(t))
    const [a, b] = nodes
    const iat = inSeconds(-5)
    const token = logoutToken({ sub: 'alice', sid: 'login-1', iat })
    t.equal((await a.tell(token)).status, 200)
    const since = accessToken({ iat: iat + 1 })
    const another = accessToken({ sid: 'login-2', iat: iat - 10 })
    const pairs = [...await openOn(nodes, { token: since }), ...await openOn(nodes, { token: another })]
    for (const node of [b, a, b]) {
      const { status, body } = await node.tell(token)
      t.same([status, body], [400, '{"error":"invalid_request"}'])
    }
    await areOpen(t, pairs, 'a later login')
    for (const node of nodes) t.same([await node.admits(since), await node.admits(another)], [IN, IN])
  })

  t.test(`${prefix}logout replayed: of one token that comes to both nodes at once, one carries it out`, { ...options }, async t => {
    const nodes = await two(t, {}, await makeDriver?.(t))
    for (let round = 0; round < 5; round++) {
      const token = logoutToken({ sid: `login-${round}` })
      const statuses = await Promise.all([...nodes, ...nodes].map(async ({ tell }) => (await tell(token)).status))
      t.ok(statuses.includes(200) && statuses.every(status => status === 200 || status === 400), statuses.join())
      t.equal(nodes.flatMap(({ told }) => told).length, round + 1)
      for (const { tell } of nodes) t.equal((await tell(token)).status, 400)
    }
  })
}

endsOnEveryNode(t, {}, '')
endsOnEveryNode(t, needsRedis, 'in Redis: ', async t => {
  const { url } = await startRedis(t)
  return async () => redisCluster(await connect(t, url), { ...SHORT, secret: CLUSTER_SECRET })
})

t.test('logout replayed: on another node it does nothing, and the application is not called again', async t => {
  const [a, b] = await two(t)
  const token = logoutToken({ sub: 'alice', sid: 'login-1' })
  await a.tell(token)
  await b.tell(token)
  t.same([a.told.length, b.told.length], [1, 0])
})

t.test('what failed on one node may come again on another', async t => {
  let failures = 1
  const calls: Claims[] = []
  const [a, b] = await two(t, {
    logout: {
      async onLogout (claims) {
        if (failures-- > 0) throw new Error('the database is away')
        calls.push(claims)
      }
    }
  })
  const token = logoutToken({ sid: 'login-1' })
  t.equal((await a.tell(token)).status, 503)
  t.equal((await b.tell(token)).status, 200)
  t.equal((await b.tell(token)).status, 400)
  t.equal((await a.tell(token)).status, 400)
  t.equal(calls.length, 1)
})

t.test('what is issued after the logout opens again, and what is of the same second does not', async t => {
  const nodes = await two(t)
  const [a, b] = nodes
  const iat = inSeconds(-5)
  t.equal((await a.tell(logoutToken({ sub: 'alice', sid: 'login-1', iat }))).status, 200)
  const table: Array<[what: string, claims: Jwk, expected: number[]]> = [
    ['a second before', { iat: iat - 1 }, OUT], ['the same second', { iat }, OUT], ['the same second, with a fraction', { iat: iat + 0.9 }, OUT], ['the second after', { iat: iat + 1 }, IN],
    ['now', { iat: inSeconds(0) }, IN], ['without iat', { iat: undefined }, OUT], ['of the login, the second after', { iat: iat + 1, sid: 'login-1' }, OUT],
    ['of another login, the same second', { iat, sid: 'login-2' }, IN], ['of another login, before', { iat: iat - 10, sid: 'login-2' }, IN]
  ]
  for (const [what, claims, expected] of table) {
    const token = accessToken(claims)
    t.same([await a.admits(token), await b.admits(token)], [expected, expected], what)
  }
  t.equal((await b.tell(logoutToken({ sub: 'alice', iat: iat + 2 }))).status, 200, 'another logout, of all logins')
  for (const [what, claims, expected] of [['the second after the first', { iat: iat + 1 }, OUT], ['another login, before', { iat: iat - 10, sid: 'login-2' }, OUT], ['the second after both', { iat: iat + 3 }, IN]] as const) {
    t.same(await a.admits(accessToken(claims)), expected, what)
  }
})

t.test('a socket whose token was issued by a clock that is ahead, and that was open at the logout, ends, and its token with it', async t => {
  const auth = { jwt: { ...JWT, clockTolerance: 120 } }
  const nodes = await two(t, { auth })
  const [a, b] = nodes
  const token = accessToken({ iat: inSeconds(60) })
  const pairs = await openOn(nodes, { token })
  const other = accessToken({ iat: inSeconds(60) })
  t.equal((await a.tell(logoutToken({ sub: 'alice', iat: inSeconds(10) }))).status, 200)
  await haveEnded(t, pairs, 'the socket')
  t.same([await a.admits(token), await b.admits(token)], [OUT, OUT], 'its token')
  t.same([await a.admits(other), await b.admits(other)], [IN, IN], 'one that nobody saw before')
})

t.test('the sid that a user mapper returns counts for tokens, and before the claim', async t => {
  const nodes = await two(t, { auth: { jwt: { ...JWT, user: ({ sub = '', login = null }) => ({ userId: sub, ...(login !== undefined && { sid: login as string | null }) }) } } })
  const [a, b] = nodes
  const ending = { mapped: accessToken({ login: 'login-1' }), both: accessToken({ login: 'login-1', sid: 'login-2' }), claim: accessToken({ login: null, sid: 'login-1' }) }
  const staying = { mapped: accessToken({ login: 'login-2' }), both: accessToken({ login: 'login-2', sid: 'login-1' }), none: accessToken({ sub: 'bob' }) }
  const open = async (tokens: Record<string, string>) => (await Promise.all(Object.values(tokens).map(token => openOn(nodes, { token })))).flat()
  const [ended, stayed] = [await open(ending), await open(staying)]
  t.equal((await b.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  await haveEnded(t, ended, 'of the login')
  await areOpen(t, stayed, 'of another')
  for (const [what, token] of Object.entries(ending)) t.same([await a.admits(token), await b.admits(token)], [OUT, OUT], what)
  for (const [what, token] of Object.entries(staying)) t.same([await a.admits(token), await b.admits(token)], [IN, IN], what)
})

t.test('the sid that enrich knows counts, for tokens and for sessions', async t => {
  const logins: Record<string, string> = { alice: 'login-1', bob: 'login-1', carol: 'login-2' }
  const nodes = await two(t, { auth: { enrich: async ({ userId }) => ({ sid: logins[userId] ?? null }) } })
  const cookie = sessionOn(nodes, 's1', { userId: 'bob' })
  const token = accessToken()
  const ended = [...await openOn(nodes, { token }), ...await openOn(nodes, { cookie })]
  const stayed = await openOn(nodes, { token: accessToken({ sub: 'carol' }) })
  t.equal((await nodes[0].tell(logoutToken({ sid: 'login-1' }))).status, 200)
  await haveEnded(t, ended, 'of the login')
  await areOpen(t, stayed, 'of another')
  for (const node of nodes) t.same([await node.admits(token), await node.knows(cookie)], [OUT, 401])
})

t.test('sessions end that tell of the login, and all others stay, also those of the same user', async t => {
  const nodes = await two(t)
  const [a, b] = nodes
  const users: Record<string, Identity> = {
    ending: { userId: 'alice', sid: 'login-1' }, ofBob: { userId: 'bob', sid: 'login-1' }, other: { userId: 'alice', sid: 'login-2' }, none: { userId: 'alice' }, empty: { userId: 'alice', sid: null }
  }
  const cookies = new Map(Object.entries(users).map(([id, user]) => [id, sessionOn(nodes, id, user)]))
  const opened = new Map<string, Pair[]>()
  for (const [id, cookie] of cookies) opened.set(id, await openOn(nodes, { cookie }))
  t.equal((await a.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  for (const [id, cookie] of cookies) {
    const ends = id === 'ending' || id === 'ofBob'
    if (ends) await haveEnded(t, opened.get(id) ?? [], id)
    else await areOpen(t, opened.get(id) ?? [], id)
    t.same([await a.knows(cookie), await b.knows(cookie)], ends ? [401, 401] : [200, 200], id)
    const { status } = await upgrade(t, b.host, { headers: { cookie, origin: `http://${b.host}` } })
    t.equal(status, ends ? 401 : 101, id)
  }
  t.equal(codeOf((await ask(b.host, '/me', withCookie(cookies.get('ending') ?? ''))).body), 'FST_HYBRID_AUTH_REVOKED_SESSION')
  t.equal((await b.tell(logoutToken({ sub: 'alice' }))).status, 200)
  await areOpen(t, opened.get('none') ?? [], 'a logout by sub says nothing of sessions: they are the application\'s')
  const later = sessionOn(nodes, 'later', { userId: 'alice', sid: 'login-3' })
  t.same([await a.knows(later), await b.knows(later)], [200, 200], 'a login later')
})

t.test('a session of which onLogout tells the application is ended by it', async t => {
  const memory = memoryCluster()
  const nodes: LogoutNode[] = []
  const onLogout = async ({ sub }: Claims) => { await nodes[0]?.app.hybridAuth.revoke({ userId: sub ?? '', issuer: null, issuedBefore: Date.now() }) }
  for (let i = 0; i < 2; i++) nodes.push(await logoutNode(t, { cluster: memory, logout: { onLogout } }))
  const cookie = sessionOn(nodes, 's1', { userId: 'alice' })
  const pairs = await openOn(nodes, { cookie })
  t.equal((await nodes[1]?.tell(logoutToken({ sub: 'alice' })))?.status, 200)
  await haveEnded(t, pairs, 'the session')
})

t.test('68: a socket that is between its verification and its handler when the login ends does not open, on whichever node', async t => {
  for (const at of [0, 1] as const) {
    for (const speaks of [false, true]) {
      const hold = new Hold()
      const ran: string[] = []
      const nodes = await two(t, {
        routes (app) {
          app.addHook('preHandler', async request => { if (request.url.startsWith('/slow')) await hold.pass() })
          app.get('/slow', { websocket: true }, () => { ran.push('socket') })
          app.get('/slow-check', { auth: { check: async () => { await hold.pass(); return true } } }, async () => { ran.push('http') })
        }
      })
      hold.arm()
      const token = accessToken({ sid: 'login-1' })
      const answer = upgrade(t, nodes[1].host, { path: '/slow', ...bearer(token), protocols: speaks ? ['hybrid-auth.v1'] : [] })
      const http = ask(nodes[1].host, '/slow-check', bearer(token))
      await hold.entered
      t.equal((await nodes[at].tell(logoutToken({ sid: 'login-1' }))).status, 200)
      hold.release()
      const { status, code, reason } = await answer
      t.same([status, { code, reason }], [101, REVOKED])
      t.equal((await http).status, 401)
      t.same([ran, nodes[1].app.hybridAuth.count()], [[], 0])
    }
  }
})

t.test('68: a socket that waits for its first message is refused with a token of the ended login, and let in with another', async t => {
  const nodes = await two(t)
  const [a] = nodes
  const connectFirst = async (host: string) => {
    const peer = connectWs(t, host, { path: '/first', token: null, protocols: ['hybrid-auth.v1'] })
    await peer.opened
    return peer
  }
  const pending = await Promise.all(nodes.map(({ host }) => connectFirst(host)))
  const others = await Promise.all(nodes.map(({ host }) => connectFirst(host)))
  t.equal((await a.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  for (const peer of pending) {
    peer.send(authFrame(accessToken({ sid: 'login-1' })))
    t.same(await peer.closed, REVOKED)
  }
  for (const peer of others) {
    peer.send(authFrame(accessToken({ sid: 'login-2' })))
    await until(() => peer.heard.all.includes('let in'))
  }
  t.ok(true)
})

t.test('68: a first message that is being verified when the login ends opens nothing', async t => {
  const hold = new Hold()
  const nodes = await two(t, { auth: { jwt: { ...JWT, async user ({ sub = '' }) { await hold.pass(); return { userId: sub } } } } })
  const peer = connectWs(t, nodes[1].host, { path: '/first', token: null, protocols: ['hybrid-auth.v1'] })
  await peer.opened
  hold.arm()
  peer.send(authFrame(accessToken({ sid: 'login-1' })))
  await hold.entered
  t.equal((await nodes[0].tell(logoutToken({ sid: 'login-1' }))).status, 200)
  hold.release()
  t.same(await peer.closed, REVOKED)
  t.notOk(peer.heard.all.includes('let in'))
})

t.test('tickets that were issued before end with their login, on every node, and those of others do not', async t => {
  const issuer = await fakeIssuer(t)
  const active = { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300), iat: inSeconds(-20) }
  issuer.rest = answering({ 'opaque-one': { ...active, sid: 'login-1' }, 'opaque-two': { ...active, sid: 'login-2' } })
  const nodes = await two(t, { auth: { origins: [ORIGIN], introspection: introspectionOf(issuer.issuer) } })
  const [a, b] = nodes
  const credentials = (sid: string, opaque: string) => [
    bearer(accessToken({ sid })), bearer(opaque), withCookie(sessionOn(nodes, `session-${sid}`, { userId: 'alice', sid }))
  ]
  const of = async (sid: string, opaque: string) => Promise.all(nodes.flatMap(({ ticket }) => credentials(sid, opaque).map(one => ticket(one))))
  const [ending, staying] = [await of('login-1', 'opaque-one'), await of('login-2', 'opaque-two')]
  t.same(ending.map(one => one.charAt(0)).join(''), 'josjos')
  t.equal((await a.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  for (const [at, ticket] of ending.entries()) t.equal(await (at % 2 === 0 ? a : b).takes(ticket), 401, `${at}: ended`)
  for (const [at, ticket] of staying.entries()) t.equal(await (at % 2 === 0 ? b : a).takes(ticket), 101, `${at}: stays`)
})

t.test('a re-authentication with a token of the ended login is refused, and the socket goes on as it was', async t => {
  const nodes = await two(t)
  const [a, b] = nodes
  const { peer, there } = await b.open({ token: accessToken({ sid: 'login-2' }), speaks: true })
  const [before, login] = [accessToken({ sid: 'login-1' }), accessToken()]
  t.equal((await a.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  for (const token of [before, login]) {
    peer.say({ type: 'auth_update', token })
    t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  }
  t.match(there.connection.context, { version: 1, claims: { sid: 'login-2' } })
  peer.say({ type: 'auth_update', token: accessToken({ sid: 'login-3' }) })
  await peer.takeFrame('auth_updated')
  t.match(there.connection.context, { version: 2, claims: { sid: 'login-3' } })
})

t.test('a socket belongs to the login of the token that it brought last', async t => {
  const nodes = await two(t)
  const move = async ({ peer }: Pair, sid: string) => {
    peer.say({ type: 'auth_update', token: accessToken({ sid }) })
    await peer.takeFrame('auth_updated')
  }
  const left = await openOn(nodes, { token: accessToken({ sid: 'login-1' }), speaks: true })
  const came = await openOn(nodes, { token: accessToken({ sid: 'login-2' }), speaks: true })
  for (const pair of left) await move(pair, 'login-2')
  for (const pair of came) await move(pair, 'login-1')
  t.equal((await nodes[0].tell(logoutToken({ sid: 'login-1' }))).status, 200)
  await haveEnded(t, came, 'who came')
  await areOpen(t, left, 'who left')
})

t.test('67: a re-authentication that is being verified when its login ends has one outcome, and the socket does not belong to that login', async t => {
  const hold = new Hold()
  const nodes = await two(t, { auth: { jwt: { ...JWT, async user ({ sub = '', sid }) { if (sid === 'login-1') await hold.pass(); return { userId: sub } } } } })
  const { peer, there } = await nodes[1].open({ token: accessToken({ sid: 'login-2' }), speaks: true })
  hold.arm()
  peer.say({ type: 'auth_update', token: accessToken({ sid: 'login-1' }) })
  await hold.entered
  t.equal((await nodes[0].tell(logoutToken({ sid: 'login-1' }))).status, 200)
  hold.release()
  t.match(await peer.takeFrame('error'), { code: 'refresh_failed' })
  t.match(there.connection.context, { claims: { sid: 'login-2' } })
  t.same(peer.framesOf('auth_updated'), [])
})

/** An introspection endpoint that says this of tokens, and of all others that they are not active. */
function answering (answers: Record<string, Jwk>): Awaited<ReturnType<typeof fakeIssuer>>['rest'] {
  return (request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => { body += chunk.toString() })
    request.on('end', () => { saysJson(answers[new URLSearchParams(body).get('token') ?? ''] ?? { active: false })(request, response) })
  }
}

const introspectionOf = (issuer: string, more: Partial<Parameters<typeof introspection>[0]> = {}) =>
  introspection({ endpoint: `${issuer}/introspect`, clientId: APP, clientSecret: 'a secret of the client', ...more })

t.test('opaque tokens end with their login, or with their sub, as JWTs do', async t => {
  const issuer = await fakeIssuer(t)
  const active = { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300), iat: inSeconds(-20) }
  const ending: Record<string, Jwk> = {
    'of-the-login': { sid: 'login-1' }, 'of-the-login-by-bob': { sid: 'login-1', sub: 'bob' }, 'of-the-login-without-iat': { sid: 'login-1', iat: undefined }, 'of-no-login': {},
    'of-no-issuer': { sid: 'login-1', iss: undefined }, 'of-no-login-or-issuer': { iss: undefined }
  }
  const staying: Record<string, Jwk> = { 'of-another-login': { sid: 'login-2' }, 'of-bob': { sub: 'bob' }, 'of-another-issuer': { sid: 'login-1', iss: OTHER }, 'issued-since': { iat: inSeconds(0) } }
  issuer.rest = answering(Object.fromEntries(Object.entries({ ...ending, ...staying }).map(([token, claims]) => [token, { ...active, ...claims }])))
  const nodes = await two(t, { auth: { introspection: introspectionOf(issuer.issuer) } })
  const open = async (tokens: Record<string, Jwk>) => Promise.all(Object.keys(tokens).map(async token => ({ token, pairs: await openOn(nodes, { token }) })))
  const [ended, stayed] = [await open(ending), await open(staying)]
  for (const { there } of ended[0]?.pairs ?? []) t.equal(there.connection.context.authType, 'oauth2')
  t.equal((await nodes[0].tell(logoutToken({ sid: 'login-1', sub: 'alice', iat: inSeconds(-5) }))).status, 200)
  for (const { token, pairs } of ended) {
    await haveEnded(t, pairs, token)
    for (const node of nodes) t.same(await node.admits(token), OUT, token)
  }
  for (const { token, pairs } of stayed) {
    await areOpen(t, pairs, token)
    for (const node of nodes) t.same(await node.admits(token), IN, token)
  }
})

t.test('the socket of an opaque token that does not say when it was issued ends, and whether the token is good is for its server to say', async t => {
  const issuer = await fakeIssuer(t)
  issuer.rest = answering({ opaque: { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300) } })
  const nodes = await two(t, { auth: { introspection: introspectionOf(issuer.issuer, { maxAge: 0, negativeMaxAge: 0 }) } })
  const [a, b] = nodes
  const pairs = await openOn(nodes, { token: 'opaque' })
  t.equal((await a.tell(logoutToken({ sid: 'login-1', sub: 'alice' }))).status, 200)
  await haveEnded(t, pairs, 'the socket')
  t.same([await a.admits('opaque'), await b.admits('opaque')], [IN, IN], 'another login may have made it')
  issuer.rest = answering({})
  t.same([await a.admits('opaque'), await b.admits('opaque')], [OUT, OUT])
})

t.test('68: what was asked about an opaque token before a logout is asked again after it, whenever the token was issued', async t => {
  const issuer = await fakeIssuer(t)
  const active = { active: true, iss: ISSUER, sub: 'alice', exp: inSeconds(300) }
  const waiting: Array<(answer: object) => void> = []
  issuer.rest = (request, response) => { waiting.push(answer => { saysJson(answer)(request, response) }) }
  const [node] = await two(t, { auth: { origins: [ORIGIN], introspection: introspectionOf(issuer.issuer) } })
  const logOut = async () => { t.equal((await node.tell(logoutToken({ sub: 'alice' }))).status, 200) }
  const asked = (count: number) => eventually(`it is asked ${count} times`, () => waiting.length === count)
  const me = async () => (await ask(node.host, '/me', bearer('opaque'))).status

  const ended = me()
  await asked(1)
  await logOut()
  waiting[0]?.(active)
  await asked(2)
  waiting[1]?.({ active: false })
  t.equal(await ended, 401, 'it had ended with the login')

  const unsure = ask(node.host, '/me', bearer('another'))
  await asked(3)
  await logOut()
  waiting[2]?.(active)
  await asked(4)
  await logOut()
  waiting[3]?.(active)
  t.equal((await unsure).status, 503, 'while logouts come, nobody knows')

  const issuing = node.ticket(bearer('third'))
  await asked(5)
  waiting[4]?.(active)
  const ticket = await issuing
  await logOut()
  const taken = node.takes(ticket)
  await asked(6)
  await logOut()
  waiting[5]?.(active)
  t.equal(await taken, 401, 'nor by a ticket')
})

t.test('the sid that introspection.user returns counts', async t => {
  const issuer = await fakeIssuer(t)
  issuer.rest = answering({ opaque: { active: true, iss: ISSUER, sub: 'alice', session_state: 'login-1', exp: inSeconds(300) } })
  const user = ({ sub = '', session_state: state }: Claims) => ({ userId: sub, sid: String(state) })
  const nodes = await two(t, { auth: { introspection: introspectionOf(issuer.issuer, { user }) } })
  const pairs = await openOn(nodes, { token: 'opaque' })
  t.equal((await nodes[1].tell(logoutToken({ sid: 'login-1' }))).status, 200)
  await haveEnded(t, pairs, 'the opaque token')
})

t.test('while a node closes, a logout is not said to be carried out', async t => {
  const began = deferred<undefined>()
  const cluster = driverOf(() => ({
    async publish () {
      began.resolve(undefined)
      throw new Error('nobody there')
    }
  }))
  const node = await logoutNode(t, { cluster })
  t.equal((await node.tell(logoutToken({ sid: 'login-1' }))).status, 503)
  await began.promise
  t.same(node.told, [])
})

t.test('in Redis: a logout is known to nodes that come later, and outlives Redis and all nodes', { ...needsRedis }, async t => {
  const redis = await startRedis(t, { durable: true })
  const driver = async () => redisCluster(await connect(t, redis.url), { ...SHORT })
  const nodes = await two(t, {}, driver)
  const [a, b] = nodes
  const tokens = { login: accessToken({ sid: 'login-1' }), none: accessToken(), other: accessToken({ sid: 'login-2' }), bob: accessToken({ sub: 'bob' }), since: accessToken({ iat: inSeconds(0) }) }
  const cookieOn = (node: LogoutNode) => sessionOn([node], 's1', { userId: 'bob', sid: 'login-1' })
  const logout = logoutToken({ sid: 'login-1', sub: 'alice', iat: inSeconds(-5) })
  t.equal((await a.tell(logout)).status, 200)
  const judge = async (node: LogoutNode, what: string) => {
    t.same([await node.admits(tokens.login), await node.admits(tokens.none), await node.knows(cookieOn(node))], [OUT, OUT, 401], `${what}: ended`)
    t.same([await node.admits(tokens.other), await node.admits(tokens.bob), await node.admits(tokens.since)], [IN, IN, IN], `${what}: stays`)
    t.equal(node.status().revocations, 2, what)
  }
  await judge(await logoutNode(t, { cluster: await driver() }), 'a node that came later')
  await redis.restart()
  for (const node of nodes) await eventually('it is back', () => node.status().connected, 10_000)
  await judge(a, 'the node that was told, after a restart of Redis')
  await judge(b, 'the other')
  for (const node of nodes) await node.app.close()
  const last = await logoutNode(t, { cluster: await driver() })
  await judge(last, 'a node when all others are gone')
  t.equal((await last.tell(logout)).status, 400, 'and it has heard the token before')
})

t.test('in Redis: a logout that comes while Redis is away ends what is here at once, and the rest when it is back; until then the provider may say it again', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const proxy = await startProxy(t, redis.port)
  const a = await logoutNode(t, { cluster: redisCluster(await connect(t, proxy.url), { ...SHORT }) })
  const b = await logoutNode(t, { cluster: redisCluster(await connect(t, redis.url), { ...SHORT }) })
  const token = accessToken({ sid: 'login-1' })
  const [here] = await openOn([a], { token })
  const there = await openOn([b], { token })
  proxy.cut()
  await eventually('it is lost', () => !a.status().connected)
  const logout = logoutToken({ sid: 'login-1' })
  t.equal((await a.tell(logout)).status, 503)
  await haveEnded(t, here === undefined ? [] : [here], 'what is here')
  t.same(await a.admits(token), OUT)
  t.equal((await a.tell(logout)).status, 503)
  await areOpen(t, there, 'of which the other node has not heard')
  proxy.heal()
  await haveEnded(t, there, 'the rest')
  t.same(await b.admits(token), OUT)
  await eventually('it is back', () => a.status().connected)
  t.equal((await a.tell(logout)).status, 200)
  t.equal((await b.tell(logout)).status, 400)
})

// What is known of logouts, by itself.

const SWEEP = 30_000
const START = 1_800_000_000_000
const S = START / 1000

let made = 0
const revocationOf = (changes: Partial<Revocation>): Revocation =>
  ({ id: `r${++made}`, kind: 'login', key: 'login-1', reason: '', reauthWithin: 0, at: START, expiresAt: null, ...changes })

const base = { userId: 'u', role: null, permissions: [], tenantId: null, user: { userId: 'u' }, via: 'header', issuer: 'i', authenticatedAt: START, expiresAt: null, version: 1 } as const
type TokenContext = Extract<AuthContext, { authType: 'jwt' }>
const tokenContext = (claims: Claims = {}, changes: Partial<TokenContext> = {}): AuthContext => ({ ...base, authType: 'jwt', claims, tokenId: 'k', ...changes })
const opaqueContext = (claims: Claims = {}, issuer: string | null = 'i'): AuthContext => ({ ...base, authType: 'oauth2', claims, tokenId: 'k', issuer })
const sessionContext = (user: Partial<Identity> = {}): AuthContext => ({ ...base, authType: 'session', issuer: null, sessionId: 's', user: { userId: 'u', ...user } })
const mapped = (sid: string | null, claims: Claims = {}) => tokenContext(claims, { user: { userId: 'u', sid } })

function stopClock (t: Test, start: number): { set: (ms: number) => void } {
  const real = Date.now
  let time = start
  Date.now = () => time
  t.teardown(() => { Date.now = real })
  return { set (ms) { time = ms } }
}

/** Those of all kinds that a logout may be about. */
const CONTEXTS: Record<string, AuthContext> = {
  claim: tokenContext({ sid: 'login-1', sub: 'alice', iat: S - 10 }), mapped: mapped('login-1', { sub: 'alice', iat: S - 10 }), mappedOver: mapped('login-1', { sid: 'login-2', sub: 'alice', iat: S - 10 }),
  mappedAway: mapped('login-2', { sid: 'login-1', sub: 'alice', iat: S - 10 }), mappedNull: mapped(null, { sid: 'login-1', sub: 'alice', iat: S - 10 }), opaque: opaqueContext({ sid: 'login-1', sub: 'alice', iat: S - 10 }),
  session: sessionContext({ sid: 'login-1' }), sessionOther: sessionContext({ sid: 'login-2' }), sessionNone: sessionContext(),
  none: tokenContext({ sub: 'alice', iat: S - 10 }), noneOpaque: opaqueContext({ sub: 'alice', iat: S - 10 }), odd: tokenContext({ sid: 4711, sub: 'alice', iat: S - 10 }), noIat: tokenContext({ sub: 'alice' }),
  late: tokenContext({ sub: 'alice', iat: S + 1 }), lateLogin: tokenContext({ sid: 'login-1', sub: 'alice', iat: S + 1 }), same: tokenContext({ sub: 'alice', iat: S }),
  foreign: tokenContext({ sid: 'login-1', sub: 'alice', iat: S - 10 }, { issuer: 'x' }), nobodys: tokenContext({ sid: 'login-1', sub: 'alice', iat: S - 10 }, { issuer: null }),
  opaqueNobodys: opaqueContext({ sid: 'login-1', sub: 'alice', iat: S - 10 }, null), noneNobodys: opaqueContext({ sub: 'alice', iat: S - 10 }, null),
  opaqueNoIat: opaqueContext({ sid: 'login-1', sub: 'alice' }), noneOpaqueNoIat: opaqueContext({ sub: 'alice' }),
  askedSince: { ...opaqueContext({ sub: 'alice' }), authenticatedAt: START + 1 },
  bob: tokenContext({ sub: 'bob', iat: S - 10 }), noSub: tokenContext({ iat: S - 10 })
}
/** An answer about an opaque token need not say who issued that. */
const UNNAMED = ['opaqueNobodys', 'noneNobodys']
const LOGIN = ['claim', 'mapped', 'mappedOver', 'mappedNull', 'opaque', 'opaqueNobodys', 'opaqueNoIat', 'session', 'lateLogin']
const KILLS: Array<[what: string, changes: Partial<Revocation>, covered: string[]]> = [
  ['a login, of an issuer', { issuer: 'i' }, LOGIN],
  ['a login, of any issuer', {}, [...LOGIN, 'foreign', 'nobodys']],
  ['another login', { key: 'login-2', issuer: 'i' }, ['mappedAway', 'sessionOther']],
  ['a login that nobody has', { key: 'login-3', issuer: 'i' }, []],
  ['a login by the name of a sub', { key: 'alice', issuer: 'i' }, []],
  ['a login that is over', { issuer: 'i', expiresAt: START }, []],
  ['a sub, beside logins', { kind: 'subject', key: 'alice', issuer: 'i', issuedBefore: START + 1000, besides: true }, ['none', 'noneOpaque', 'noneNobodys', 'noneOpaqueNoIat', 'odd', 'noIat', 'same']],
  ['a sub', { kind: 'subject', key: 'alice', issuer: 'i', issuedBefore: START + 1000 },
    ['claim', 'mapped', 'mappedOver', 'mappedAway', 'mappedNull', 'opaque', 'opaqueNoIat', ...UNNAMED, 'none', 'noneOpaque', 'noneOpaqueNoIat', 'odd', 'noIat', 'same']],
  ['a sub, besides false', { kind: 'subject', key: 'bob', issuer: 'i', issuedBefore: START + 1000, besides: false }, ['bob']],
  ['a sub, before the second', { kind: 'subject', key: 'alice', issuer: 'i', issuedBefore: START, besides: true }, ['none', 'noneOpaque', 'noneNobodys', 'noneOpaqueNoIat', 'odd', 'noIat']],
  ['a sub of another issuer', { kind: 'subject', key: 'alice', issuer: 'x', issuedBefore: START + 1000 }, ['foreign', ...UNNAMED]],
  ['a sub of no issuer', { kind: 'subject', key: 'alice', issuer: null, issuedBefore: START + 1000 }, ['nobodys', ...UNNAMED]],
  ['a sub by the name of a user', { kind: 'subject', key: 'u', issuer: 'i', issuedBefore: START + 1000 }, []]
]

t.test('revocations of logins and subjects cover what came from there, and no others', async t => {
  stopClock(t, START)
  for (const [what, changes, covered] of KILLS) {
    const revocations = new Revocations()
    const revocation = revocationOf(changes)
    for (const [name, context] of Object.entries(CONTEXTS)) t.notOk(revocations.covers(context), name)
    t.equal(revocations.add(revocation), changes.expiresAt === undefined, what)
    const found = Object.entries(CONTEXTS).filter(([, context]) => revocations.covers(context))
    t.same(found.map(([name]) => name).sort(), [...covered].sort(), what)
    for (const [, context] of found) {
      t.equal(revocations.find(context), revocation, what)
      t.ok(isAimedAt(revocation, context), what)
    }
    t.same(connectionsOf(new Registry(), revocation), [])
  }
})

t.test('many logouts, users and tokens at once do not hide each other', async t => {
  stopClock(t, START)
  const revocations = new Revocations()
  for (let at = 0; at < 500; at++) {
    revocations.add(revocationOf({ key: `login-${at}`, issuer: 'i' }))
    revocations.add(revocationOf({ kind: 'subject', key: `sub-${at}`, issuer: 'i', issuedBefore: START, besides: at % 2 === 0 }))
    revocations.add(revocationOf({ kind: 'token', key: `token-${at}`, issuer: 'i' }))
  }
  const covered = (claims: Claims) => revocations.covers(tokenContext(claims))
  t.same([covered({ sid: 'login-0' }), covered({ sid: 'login-499' }), covered({ sid: 'login-500' })], [true, true, false])
  t.same([covered({ sub: 'sub-4' }), covered({ sub: 'sub-4', sid: 'x' }), covered({ sub: 'sub-5', sid: 'x' }), covered({ sub: 'sub-500' })], [true, false, true, false])
  t.ok(revocations.covers(sessionContext({ sid: 'login-7' })))
  revocations.add(revocationOf({ key: 'login-7', issuer: 'x' }))
  t.ok(covered({ sid: 'login-7' }), 'the first of two')
  t.ok(revocations.covers(tokenContext({ sid: 'login-7' }, { issuer: 'x' })), 'the second of two')
})

t.test('logouts end, and what is over is dropped from each index', async t => {
  const clock = stopClock(t, START)
  let sweeping: Wheeled | undefined
  const schedule = wheel.schedule.bind(wheel)
  t.intercept(wheel, 'schedule', {
    value (item: Wheeled, ms: number) {
      if (ms === SWEEP) sweeping = item
      schedule(item, ms)
    },
    configurable: true
  })
  const revocations = new Revocations()
  t.teardown(() => { revocations.stop() })
  for (const kind of ['login', 'subject'] as const) for (const end of [10_000, 50_000]) revocations.add(revocationOf({ kind, key: 'same', expiresAt: START + end }))
  const contexts = [tokenContext({ sid: 'same' }), tokenContext({ sub: 'same' }), sessionContext({ sid: 'same' })]
  const look = () => [revocations.size, ...contexts.map(context => revocations.covers(context))]
  t.same(look(), [4, true, true, true])
  const seen: unknown[] = []
  for (const at of [SWEEP, 2 * SWEEP]) {
    clock.set(START + at)
    if (sweeping !== undefined) {
      wheel.remove(sweeping)
      sweeping.look()
    }
    seen.push(look())
  }
  t.same(seen, [[2, true, true, true], [0, false, false, false]])
})

t.test('a logout is kept for as long as anything that came from the login may live, and then forgotten', async t => {
  const clock = setClock(t)
  const [a, b] = await two(t, { auth: { revocations: { retention: 3_600_000 } } })
  const long = accessToken({ sid: 'login-1', exp: inSeconds(7200) })
  t.same(await a.admits(long), IN)
  t.equal((await a.tell(logoutToken({ sid: 'login-1' }))).status, 200)
  t.equal((await b.tell(logoutToken({ sid: 'login-2' }))).status, 200)
  clock.move(7_100_000)
  t.same([await a.admits(long), await b.admits(long)], [OUT, OUT], 'longer than the retention, because of a token that was seen')
  clock.move(200_000)
  const reborn = accessToken({ sid: 'login-1', exp: inSeconds(600), iat: inSeconds(-5) })
  t.same(await a.admits(reborn), IN)
})
