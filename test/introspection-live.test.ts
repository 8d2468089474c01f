/** Opaque tokens of open sockets: when their authorization server is asked about them again, and what becomes of the sockets. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import type { RequestListener } from 'node:http'
import { text } from 'node:stream/consumers'
import type { FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import type { AuditEvent, Connection, Identity } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { closeReason, type CloseName, CLOSE } from '../lib/protocol.js'
import { Breaker } from '../lib/verify/breaker.js'
import { ProviderFailed, QuestionRefused } from '../lib/verify/fetch.js'
import { introspection, type IntrospectionOptions } from '../lib/verify/providers.js'
import { RemoteTokens } from '../lib/verify/remote-tokens.js'
import { seal, unseal } from '../lib/verify/seal.js'
import { watchSessions, watchTokens, type WatchedParts } from '../lib/verify/watched.js'
import { secret as canary } from './canary.js'
import { goodToken, inSeconds, SESSION_SECRET } from './helpers.js'
import { eventually, HOUR, lookNow, setClock, setRandom, type Dial, type LiveOptions, type Pair } from './live.js'
import { fakeIssuer, hangs, says, saysJson, stopwatch, type FakeIssuer, type Jwk } from './provider.js'
import { audited, codeAndReason, isRevoked, updateOf, type Audited } from './revoking.js'
import { joins } from './rooming.js'
import { ask, cookieFor, deferred, MapStore, type Deferred } from './stores.js'

const REVALIDATE = 30_000
const GONE = 'the token is not active any more'
const closedAs = (name: CloseName) => ({ code: CLOSE[name].code, reason: closeReason(name) })
const DAY_IN_SECONDS = 86_400
const times = <T>(n: number, make: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => make(i))
const isTrue = (holds: boolean) => holds

interface Question { readonly token: string, answer: () => void }

/** An authorization server that says of each token what the test wants, at once or when the test lets it. */
class Provider {
  readonly door: FakeIssuer
  /** Tokens, in the order in which they were asked about. */
  readonly questions: string[] = []
  /** Those that have no answer yet. */
  readonly waiting: Question[] = []
  isHeld = false
  /** Instead of every answer. */
  instead: RequestListener | null = null
  readonly #answers = new Map<string, Jwk>()

  constructor (door: FakeIssuer) {
    this.door = door
    door.rest = (request, response) => {
      const listener = this.instead
      text(request).then(form => {
        const token = new URLSearchParams(form).get('token') ?? ''
        this.questions.push(token)
        const answer = (): void => { (listener ?? saysJson(this.#answers.get(token) ?? { active: false }))(request, response) }
        if (this.isHeld) this.waiting.push({ token, answer })
        else answer()
      }).catch(() => { response.destroy() })
    }
  }

  /** A token that is active; members of `claims` that are undefined are not said. */
  issue (claims: Jwk = {}): string {
    const token = canary(`opaque.${randomBytes(24).toString('base64url')}`)
    this.say(token, claims)
    return token
  }

  say (token: string, claims: Jwk = {}): void {
    this.#answers.set(token, { active: true, sub: 'alice', scope: 'a:read', iss: this.door.issuer, exp: END, iat: BEGIN, ...claims })
  }

  sayRaw (token: string, answer: Jwk): void {
    this.#answers.set(token, answer)
  }

  forget (token: string): void {
    this.#answers.delete(token)
  }

  release (): void {
    for (const { answer } of this.waiting.splice(0)) answer()
  }
}

const BEGIN = inSeconds(-10)
/** As the provider tells it of the same token each time. */
const END = inSeconds(2 * 3600)

interface Remote extends Audited {
  provider: Provider
  enter: (token: string, dial?: Dial) => Promise<Pair>
  /** The time has come for every credential: looks at every connection. */
  look: () => void
  /** Moves the clock by an interval, and resolves when whatever was asked has had its effect. */
  round: (ms?: number) => Promise<void>
  told: (type: AuditEvent['type']) => AuditEvent[]
}

interface Options extends LiveOptions { introspection?: Partial<IntrospectionOptions> }

const guarded = (connection: Connection): GuardedConnection => {
  if (!(connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  return connection
}

async function remote (t: Test, { introspection: given = {}, auth, ...rest }: Options = {}): Promise<Remote & { clock: ReturnType<typeof setClock> }> {
  const clock = setClock(t)
  const provider = new Provider(await fakeIssuer(t))
  const server = await audited(t, {
    auth: {
      introspection: introspection({
        endpoint: `${provider.door.issuer}/introspect`, clientId: 'api', clientSecret: canary('the secret of this API, as a client'), revalidate: REVALIDATE, ...given
      }),
      ...auth
    },
    ...rest
  })
  const look = (): void => { for (const connection of server.app.hybridAuth.connections()) lookNow(connection) }
  const enter: Remote['enter'] = (token, dial = {}) => server.open({ token, speaks: true, ...dial })
  return {
    ...server,
    clock,
    provider,
    look,
    enter,
    told: type => server.events.filter(event => event.type === type),
    async round (ms = REVALIDATE) {
      clock.move(ms)
      look()
      await eventually('all questions have their answer', () => server.app.hybridAuth.connections().every(connection => !guarded(connection).isReading))
    }
  }
}

let said = 0

/** Whatever was sent to the peer before has arrived, too. */
async function isOpen (t: Test, { peer }: Pair, what: string): Promise<void> {
  t.ok(await peer.echoed(`${what} is open, ${++said}`), `${what}: open`)
}

const versionOf = ({ there }: Pair): number => there.connection.context.version
const resets: RequestListener = ({ socket }) => { socket.destroy() }

t.test('79: the token of any number of sockets is asked about once an interval', async t => {
  const { enter, provider, round, clock, look } = await remote(t)
  const [a, b] = [provider.issue(), provider.issue()]
  const pairs = await Promise.all([...times(20, () => enter(a)), ...times(3, () => enter(b))])
  t.strictSame([...provider.questions].sort(), [a, b].sort(), 'and once by all handshakes')
  for (const n of [2, 3, 4]) {
    await round()
    t.equal(provider.questions.length, n * 2)
    t.equal(provider.questions.filter(token => token === a).length, n)
  }
  clock.move(REVALIDATE * 0.9 - 2000)
  look()
  await Promise.all(pairs.map(pair => isOpen(t, pair, 'a socket')))
  t.equal(provider.questions.length, 8, 'not before its time, of which the last tenth is by chance')
  t.ok(pairs.every(pair => versionOf(pair) === 1))
})

t.test('79: a socket that opens while its token is asked about does not ask again, and shares the answer', async t => {
  // Handshakes are answered from memory meanwhile.
  const { enter, provider, clock, look } = await remote(t, { introspection: { maxAge: HOUR } })
  const token = provider.issue()
  const first = await enter(token)
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('it is asked about', () => provider.waiting.length === 1)
  const second = await enter(token)
  look()
  provider.forget(token)
  provider.release()
  await isRevoked(t, first, 'the first')
  await isRevoked(t, second, 'the second')
  t.equal(provider.questions.length, 2)
})

const GOOD = { active: true, sub: 'alice', scope: 'a:read', exp: END, iat: BEGIN }
const ISSUER = 'https://id.example.com'
const NOT_ACTIVE: Record<string, Jwk> = {
  'active: false': { active: false },
  'nothing at all': {},
  'active: "true"': { ...GOOD, iss: ISSUER, aud: 'api', active: 'true' },
  'active: 1': { ...GOOD, iss: ISSUER, aud: 'api', active: 1 },
  'active: null': { ...GOOD, iss: ISSUER, aud: 'api', active: null },
  'nobody as its subject': { ...GOOD, iss: ISSUER, aud: 'api', sub: undefined },
  'another audience': { ...GOOD, iss: ISSUER, aud: 'other' },
  'another issuer': { ...GOOD, iss: 'https://evil.example.com', aud: 'api' },
  'a begin ahead': { ...GOOD, iss: ISSUER, aud: 'api', nbf: inSeconds(DAY_IN_SECONDS) },
  'a key that it is bound to': { ...GOOD, iss: ISSUER, aud: 'api', cnf: { 'x5t#S256': 'x' } },
  'that it is a refresh token': { ...GOOD, iss: ISSUER, aud: 'api', token_use: 'refresh' },
  'another token type': { ...GOOD, iss: ISSUER, aud: 'api', token_type: 'DPoP' }
}

for (const [what, answer] of Object.entries(NOT_ACTIVE)) {
  t.test(`77: an open socket of whose token the server says ${what} is closed 4006, with every other one of it, and no others`, async t => {
    const { enter, provider, round, told, app, host } = await remote(t, { introspection: { issuer: ISSUER, audience: 'api' } })
    const [token, other] = times(2, () => provider.issue({ iss: ISSUER, aud: 'api' }))
    const mine = [await enter(token ?? ''), await enter(token ?? '', { speaks: false })]
    const theirs = await enter(other ?? '')
    provider.sayRaw(token ?? '', answer)
    await round()
    for (const pair of mine) await isRevoked(t, pair, what)
    t.strictSame(mine[0]?.peer.framesOf('bye'), [{ type: 'bye', code: 'revoked', action: 'stop' }])
    t.match(told('revoked'), times(2, () => ({ userId: 'alice', authType: 'oauth2', reason: GONE, commandId: null })))
    t.strictSame(told('revoked').map(event => 'connectionId' in event && event.connectionId).sort(), mine.map(({ there }) => there.connection.id).sort())
    t.equal(told('expired').length, 0)
    await isOpen(t, theirs, 'another token of the same user')
    t.equal(app.hybridAuth.count(), 1)
    t.equal((await ask(host, '/me', { headers: { authorization: `Bearer ${token}` } })).status, 401)
    t.equal(provider.questions.length, 4, 'and that is remembered')
  })
}

t.test('77: a token that is not active and would end within ten seconds has ended: 4002', async t => {
  const { enter, provider, clock, round, told } = await remote(t)
  clock.freeze()
  for (const [left, name] of [[9999, 'AuthenticationExpired'], [10_000, 'Revoked'], [60_000, 'Revoked']] as const) {
    const exp = Math.ceil(Date.now() / 1000) + 600
    const token = provider.issue({ exp })
    const { peer, there } = await enter(token)
    t.equal(there.connection.context.expiresAt, exp * 1000)
    provider.forget(token)
    await round(exp * 1000 - left - Date.now())
    t.strictSame(codeAndReason(await peer.end), closedAs(name), `${left} ms before its end`)
    await there.closed
  }
  t.strictSame([told('expired').length, told('revoked').length], [1, 2])
})

t.test('77: a token without end that is not active any more is revoked', async t => {
  const { enter, provider, round } = await remote(t)
  const token = provider.issue({ exp: undefined })
  const pair = await enter(token)
  await round()
  await isOpen(t, pair, 'the socket')
  provider.forget(token)
  await round()
  await isRevoked(t, pair, 'the socket')
})

t.test('an end in the past closes 4002, however far ahead it was', async t => {
  const { enter, provider, round, told } = await remote(t)
  const token = provider.issue()
  const { peer, there } = await enter(token)
  provider.say(token, { exp: inSeconds(-1) })
  await round()
  t.strictSame(codeAndReason(await peer.end), closedAs('AuthenticationExpired'))
  await there.closed
  t.strictSame([told('expired').length, told('revoked').length], [1, 0])
})

t.test('66: another scope is a new version on every socket of the token, told to those who understand', async t => {
  const { enter, provider, round, told } = await remote(t)
  const token = provider.issue({ scope: 'a:read a:write' })
  const speaking = await enter(token)
  const silent = await enter(token, { speaks: false })
  const other = await enter(provider.issue({ scope: 'a:read a:write' }))
  const refreshed: number[] = []
  for (const { there } of [speaking, silent, other]) there.connection.on('refresh', ({ version }) => { refreshed.push(version) })
  const before = speaking.there.connection.context
  provider.say(token, { scope: 'a:read b:read' })
  await round()
  t.strictSame(await speaking.peer.takeFrame('permission_update'), { type: 'permission_update', permissions: ['a:read', 'b:read'], added: ['b:read'], removed: ['a:write'] })
  for (const pair of [speaking, silent]) {
    const { there: { connection, request } } = pair
    t.match(connection.context, { version: 2, permissions: ['a:read', 'b:read'], authType: 'oauth2', via: 'header', userId: 'alice', claims: { scope: 'a:read b:read' } })
    t.equal(request.auth, connection.context)
    t.ok(connection.can('b:read') && !connection.can('a:write'))
    t.ok(Object.isFrozen(connection.context))
    await isOpen(t, pair, 'a socket')
  }
  const { authenticatedAt, expiresAt, issuer } = before
  const { authType, tokenId } = before as { authType: string, tokenId: string }
  t.match(speaking.there.connection.context, { authenticatedAt, expiresAt, issuer, authType, tokenId })
  t.strictSame(silent.peer.framesOf('permission_update'), [])
  t.strictSame([versionOf(other), refreshed], [1, [2, 2]])
  t.match(told('permissions_changed'), [{ permissions: ['a:read', 'b:read'] }, { permissions: ['a:read', 'b:read'] }])
  await round()
  t.strictSame([versionOf(speaking), speaking.peer.framesOf('permission_update').length], [2, 1], 'once')
})

t.test('66: the same scope in another order is nothing new', async t => {
  const { enter, provider, round, told } = await remote(t)
  const token = provider.issue({ scope: 'a b c' })
  const pair = await enter(token)
  let refreshed = 0
  pair.there.connection.on('refresh', () => { refreshed++ })
  provider.say(token, { scope: 'c b a' })
  await round()
  await isOpen(t, pair, 'the socket')
  t.strictSame([pair.peer.framesOf('permission_update'), told('permissions_changed'), versionOf(pair), refreshed], [[], [], 1, 0])
})

t.test('a scope that is no text is compared as it is, and grants nothing', async t => {
  const { enter, provider, round } = await remote(t)
  const token = provider.issue({ scope: ['a', 'b'] })
  const pair = await enter(token)
  t.strictSame([versionOf(pair), pair.there.connection.context.permissions], [1, []])
  await round()
  t.equal(versionOf(pair), 1)
  provider.say(token, { scope: ['b'] })
  await round()
  await isOpen(t, pair, 'the socket')
  t.strictSame([versionOf(pair), pair.there.connection.context.permissions], [2, []])
})

t.test('66: a scope that the rule of the route needs is lost: 4007', async t => {
  const { enter, provider, round } = await remote(t, { route: { permissions: ['a:read'] } })
  const [token, other] = [provider.issue({ scope: 'a:read a:write' }), provider.issue()]
  const [mine, theirs] = [await enter(token), await enter(other)]
  provider.say(token, { scope: 'a:write' })
  await round()
  t.strictSame(codeAndReason(await mine.peer.end), closedAs('Forbidden'))
  await isOpen(t, theirs, 'the socket of another token')
})

t.test('66: a rule that is a promise decides about the answer, and what came meanwhile is judged by the new scope', async t => {
  const verdicts: Array<Deferred<boolean>> = []
  const judged: string[] = []
  let isHeld = false
  const { enter, provider, round } = await remote(t, {
    route: {
      check () {
        if (!isHeld) return true
        const verdict = deferred<boolean>()
        verdicts.push(verdict)
        return verdict.promise
      },
      authorize (auth) {
        judged.push(auth.permissions.join(' '))
        return true
      }
    }
  })
  const token = provider.issue({ scope: 'a' })
  const pair = await enter(token)
  isHeld = true
  provider.say(token, { scope: 'b' })
  await round()
  await eventually('the rule is asked', () => verdicts.length === 1)
  t.ok(await pair.peer.echoed('meanwhile'))
  t.strictSame(judged, ['b'])
  verdicts[0]?.resolve(false)
  t.equal((await pair.peer.end).code, 4007)
})

t.test('66: rooms that the new scope does not admit to are left', async t => {
  const { enter, provider, round, told, app } = await remote(t, {
    auth: { rooms: { authorize: (auth, room) => auth.permissions.includes(room) } }, route: { rooms: true }
  })
  const token = provider.issue({ scope: 'one two' })
  const pair = await enter(token)
  await joins(pair.peer, 'one')
  await joins(pair.peer, 'two')
  provider.say(token, { scope: 'two three' })
  await round()
  t.strictSame(await pair.peer.takeFrame('left'), { type: 'left', room: 'one', reason: 'forbidden' })
  t.strictSame([...pair.there.connection.rooms], ['two'])
  t.match(told('room_left'), [{ room: 'one', reason: 'forbidden' }])
  app.hybridAuth.rooms.publish('one', 'secret')
  app.hybridAuth.rooms.publish('two', 'open')
  t.match(await pair.peer.takeFrame('message'), { room: 'two', payload: 'open' })
  t.equal(pair.peer.framesOf('message').length, 1)
})

for (const [what, changes] of Object.entries({ user: { sub: 'mallory' }, tenant: { companyId: 'evil' }, 'tenant, none': { companyId: undefined }, issuer: { iss: 'https://evil.example.com' } })) {
  t.test(`66: a token that is of another ${what} from one answer to the next closes 4011`, async t => {
    const { enter, provider, round, told } = await remote(t)
    const token = provider.issue({ companyId: 'acme' })
    const { peer, there } = await enter(token)
    provider.say(token, { companyId: 'acme', ...changes })
    await round()
    t.strictSame(codeAndReason(await peer.end), closedAs('IdentityChanged'))
    await there.closed
    t.match(there.connection.context, { userId: 'alice', tenantId: 'acme', version: 1 })
    t.match(told('identity_changed'), [{ userId: 'alice', authType: 'oauth2' }])
    t.match(told('closed'), [{ closeCode: 4011 }])
  })
}

t.test('an end that is put off is the end of the socket, without a new version', async t => {
  const { enter, provider, round, clock } = await remote(t)
  clock.freeze()
  const [first, second] = [inSeconds(600), inSeconds(1200)]
  const token = provider.issue({ exp: first })
  const pair = await enter(token, { speaks: false })
  let refreshed = 0
  pair.there.connection.on('refresh', () => { refreshed++ })
  provider.say(token, { exp: second })
  await round()
  t.equal(pair.there.connection.context.expiresAt, second * 1000)
  t.equal(pair.there.request.auth.expiresAt, second * 1000)
  clock.move(first * 1000 - Date.now() + 5000)
  await round(0)
  await isOpen(t, pair, 'past its first end, the socket')
  t.strictSame([versionOf(pair), refreshed], [1, 0])
  clock.move(second * 1000 - Date.now() - 1)
  await isOpen(t, pair, 'right before its end, the socket')
  clock.move(1)
  lookNow(pair.there.connection)
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('AuthenticationExpired'))
})

t.test('an end that comes sooner is the end of the socket', async t => {
  const { enter, provider, round, clock } = await remote(t)
  clock.freeze()
  const token = provider.issue()
  const pair = await enter(token, { speaks: false })
  const exp = inSeconds(100)
  provider.say(token, { exp })
  await round()
  t.strictSame([pair.there.connection.context.expiresAt, versionOf(pair)], [exp * 1000, 1])
  clock.move(exp * 1000 - Date.now() - 1)
  await isOpen(t, pair, 'right before it, the socket')
  clock.move(1)
  pair.peer.say('too late')
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('AuthenticationExpired'))
  t.notOk(pair.there.received.includes('too late'))
})

t.test('an end that is not said any more is none', async t => {
  const { enter, provider, round, clock } = await remote(t)
  const token = provider.issue({ exp: inSeconds(600) })
  const pair = await enter(token)
  provider.say(token, { exp: undefined })
  await round()
  t.equal(pair.there.connection.context.expiresAt, null)
  clock.move(HOUR)
  await isOpen(t, pair, 'past its first end, the socket')
})

const TRUNCATED = JSON.stringify({ ...GOOD, padding: 'x'.repeat(100) }).slice(0, 60)
const NO_ANSWERS: Record<string, RequestListener> = {
  'status 500': says('', { status: 500 }),
  'status 401': says(JSON.stringify({ error: 'invalid_client' }), { status: 401 }),
  'status 403, inactive': says(JSON.stringify({ active: false }), { status: 403 }),
  'an answer that never comes': hangs,
  'a reset': resets,
  'truncated JSON': says(TRUNCATED),
  HTML: says('<!doctype html>', { type: 'text/html' }),
  'what is not called JSON': says(JSON.stringify(GOOD), { type: 'text/plain' }),
  'a list': says('[]'),
  'too much': says(JSON.stringify({ active: false, padding: 'x'.repeat(600 * 1024) })),
  'a redirect': says('', { status: 302, headers: { location: '/introspect' } })
}

for (const [what, listener] of Object.entries(NO_ANSWERS)) {
  t.test(`78: with ${what} instead of an answer, an open socket is served until maxStale, and then closed 4012`, async t => {
    const stop = stopwatch(t)
    const { enter, provider, round, clock, told } = await remote(t, { introspection: { maxStale: 100_000, timeout: 100 } })
    const token = provider.issue()
    const [pair, twin] = [await enter(token), await enter(token)]
    clock.freeze()
    await round()
    provider.instead = listener
    for (const ms of [REVALIDATE, REVALIDATE, REVALIDATE, 9999]) {
      await round(ms)
      stop.move(5000)
      await isOpen(t, pair, `${ms} ms later`)
    }
    t.equal(provider.questions.length, 5, 'asked at each interval, and not because it is nearly too late')
    // The interval is over at the 120 000th millisecond; the question of that time is the first past the bound.
    await round(20_001)
    t.strictSame(codeAndReason(await pair.peer.end), closedAs('Unavailable'))
    t.strictSame(codeAndReason(await twin.peer.end), closedAs('Unavailable'))
    t.strictSame(pair.peer.framesOf('bye').map(({ code, action }) => ({ code, action })), [{ code: 'unavailable', action: 'retry' }])
    await pair.there.closed
    t.strictSame([told('revoked'), told('expired')], [[], []])
    t.equal(versionOf(pair), 1)
  })

  t.test(`78: with ${what} instead of an answer and onProviderError: close, an open socket is closed 4012 at once`, async t => {
    const { enter, provider, round } = await remote(t, { introspection: { onProviderError: 'close', timeout: 100 } })
    const token = provider.issue()
    const pairs = [await enter(token), await enter(token)]
    await round()
    provider.instead = listener
    await round()
    for (const { peer } of pairs) t.strictSame(codeAndReason(await peer.end), closedAs('Unavailable'))
  })
}

t.test('78: a server that is dead and comes back: the bound counts from the last good answer', async t => {
  const { enter, provider, round, clock } = await remote(t, { introspection: { maxStale: 100_000 } })
  clock.freeze()
  const token = provider.issue()
  const pair = await enter(token)
  for (const outage of [1, 2, 3]) {
    await provider.door.kill()
    await round()
    await round()
    await isOpen(t, pair, `60 seconds into outage ${outage}, the socket`)
    await provider.door.restart()
    await round()
    await isOpen(t, pair, `after outage ${outage}, the socket`)
  }
  await provider.door.kill()
  await round()
  await round()
  await round()
  await isOpen(t, pair, 'served')
  await round()
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('Unavailable'))
})

t.test('78: what was revoked while the server was away is closed with its first answer', async t => {
  const { enter, provider, round } = await remote(t)
  const token = provider.issue()
  const pair = await enter(token)
  provider.instead = says('', { status: 503 })
  await round()
  await isOpen(t, pair, 'the socket')
  provider.instead = null
  provider.forget(token)
  await round()
  await isRevoked(t, pair, 'the socket')
})

t.test('78: while the server is left alone after five failures nothing is asked, and the sockets are served', async t => {
  const stop = stopwatch(t)
  const { enter, provider, round, look, clock, app } = await remote(t, { introspection: { maxStale: HOUR } })
  const pairs = await Promise.all(times(8, () => enter(provider.issue())))
  const answered = provider.questions.length
  provider.instead = says('', { status: 500 })
  clock.move(REVALIDATE)
  for (const [i, { there }] of pairs.entries()) {
    lookNow(there.connection)
    await eventually('it has failed', () => !guarded(there.connection).isReading)
    t.equal(provider.questions.length - answered, Math.min(i + 1, 5))
  }
  provider.instead = null
  await round()
  t.equal(provider.questions.length - answered, 5, 'it is left alone')
  for (const pair of pairs) await isOpen(t, pair, 'a socket')
  stop.move(5000)
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('one asks on trial', () => provider.waiting.length === 1)
  await eventually('the others have their outcome', () => app.hybridAuth.connections().filter(connection => guarded(connection).isReading).length === 1)
  t.equal(provider.questions.length - answered, 6)
  provider.isHeld = false
  provider.release()
  await eventually('it has its answer', () => app.hybridAuth.connections().every(connection => !guarded(connection).isReading))
  await round()
  t.equal(provider.questions.length - answered, 14, 'and all ask again')
})

t.test('no more than fifty questions are out at once, and each of 200 tokens is asked about once', async t => {
  const { enter, provider, look, clock, app } = await remote(t, { introspection: { requestsPerSecond: 100_000, timeout: 60_000 } })
  const tokens = times(200, () => provider.issue())
  const pairs = await Promise.all(tokens.map(token => enter(token)))
  clock.move(REVALIDATE)
  provider.isHeld = true
  const before = provider.questions.length
  const asked = () => provider.questions.length - before
  look()
  await eventually('fifty are out', () => provider.waiting.length === 50)
  look()
  for (const pair of pairs.slice(0, 5)) await isOpen(t, pair, 'a socket')
  t.equal(asked(), 50)
  provider.waiting.shift()?.answer()
  await eventually('one more', () => asked() === 51)
  await isOpen(t, pairs[199] ?? t.fail() as never, 'the last socket')
  t.equal(asked(), 51)
  while (asked() < 200) {
    t.ok(provider.waiting.length <= 50)
    provider.release()
    await new Promise(resolve => { setTimeout(resolve, 5) })
  }
  provider.isHeld = false
  provider.release()
  await eventually('all have their answer', () => app.hybridAuth.connections().every(connection => !guarded(connection).isReading))
  t.strictSame([asked(), new Set(provider.questions.slice(before))], [200, new Set(tokens)])
  t.equal(app.hybridAuth.count(), 200)
})

t.test('no more questions begin in a second than requestsPerSecond', async t => {
  const { enter, provider, look, clock } = await remote(t, { introspection: { requestsPerSecond: 20 } })
  await Promise.all(times(30, () => enter(provider.issue())))
  clock.move(REVALIDATE)
  const before = provider.questions.length
  const begin = performance.now()
  look()
  await eventually('ten are asked about', () => provider.questions.length - before >= 10)
  t.ok(performance.now() - begin > 440, 'one after the other')
  await eventually('all are', () => provider.questions.length - before === 30)
  t.ok(performance.now() - begin > 1400, `${performance.now() - begin} ms for thirty`)
})

t.test('a socket that closes while its question waits in line costs nothing, and breaks nothing', async t => {
  const { enter, provider, look, clock, told } = await remote(t, { introspection: { requestsPerSecond: 1 } })
  const tokens = times(5, () => provider.issue())
  const pairs: Pair[] = []
  for (const token of tokens) pairs.push(await enter(token))
  const [first, , , , last] = pairs
  if (first === undefined || last === undefined) throw new Error('five were opened')
  clock.freeze()
  clock.move(REVALIDATE)
  const before = provider.questions.length
  look()
  await eventually('the first is asked about', () => provider.questions.length === before + 1)
  for (const { peer, there } of pairs.slice(1, 4)) {
    peer.socket.close()
    await there.closed
  }
  clock.move(1000)
  await eventually('the turn is that of the last', () => provider.questions.length === before + 2, 2000).catch(() => {})
  t.strictSame(provider.questions.slice(before).map(token => tokens.indexOf(token)), [0, 4], 'those that have gone take nobody\'s second')
  await isOpen(t, first, 'the first')
  await isOpen(t, last, 'the last')
  t.equal(told('closed').length, 3)
})

t.test('a token of which one socket closes while its question waits in line is asked about for the other', async t => {
  const { enter, provider, look, clock } = await remote(t, { introspection: { requestsPerSecond: 1 } })
  const [a, b] = [provider.issue(), provider.issue()]
  const [ahead, mine, other] = [await enter(a), await enter(b), await enter(b)]
  clock.freeze()
  clock.move(REVALIDATE)
  const before = provider.questions.length
  look()
  await eventually('the first is asked about', () => provider.questions.length === before + 1)
  provider.forget(b)
  mine.peer.socket.close()
  await mine.there.closed
  clock.move(1000)
  await isRevoked(t, other, 'the other')
  await isOpen(t, ahead, 'the first')
})

t.test('a question that is never answered ends with handshakeTimeout, and does not take a place of the fifty for ever', async t => {
  const { enter, provider, look, clock, app } = await remote(t, {
    introspection: { requestsPerSecond: 1000, timeout: 60_000 }, auth: { handshakeTimeout: 700 }
  })
  const tokens = times(60, () => provider.issue())
  const pairs = await Promise.all(tokens.map(token => enter(token)))
  clock.move(REVALIDATE)
  const before = provider.questions.length
  provider.instead = hangs
  look()
  await eventually('fifty are asked about', () => provider.questions.length - before === 50)
  provider.instead = null
  await eventually('the other ten are', () => provider.questions.length - before === 60)
  await eventually('nobody waits any more', () => app.hybridAuth.connections().every(connection => !guarded(connection).isReading))
  for (const pair of pairs) await isOpen(t, pair, 'a socket')
})

t.test('what an answer says that comes after its time counts for nothing', async t => {
  const { enter, provider, round, clock, look } = await remote(t, { introspection: { timeout: 60_000 }, auth: { handshakeTimeout: 150 } })
  const token = provider.issue()
  const pair = await enter(token)
  provider.isHeld = true
  await round()
  t.equal(provider.waiting.length, 1)
  provider.forget(token)
  provider.release()
  await isOpen(t, pair, 'after the late answer, the socket')
  provider.isHeld = false
  clock.move(REVALIDATE)
  look()
  await isRevoked(t, pair, 'after the next one, the socket')
})

/** A token is asked about, and another comes before the answer. @returns with the question of the first out */
async function swapping (t: Test, options: Options = {}) {
  const server = await remote(t, options)
  const { provider, enter, clock, look } = server
  const [first, second] = [provider.issue({ scope: 'a' }), provider.issue({ scope: 'b' })]
  const pair = await enter(first)
  // What the second is asked for is answered at once.
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('the first is asked about', () => provider.waiting.length === 1)
  provider.isHeld = false
  return { ...server, first, second, pair }
}

const OUTCOMES: Record<string, (provider: Provider, token: string) => void> = {
  'it is not active': (provider, token) => { provider.forget(token) },
  'it is of somebody else': (provider, token) => { provider.say(token, { sub: 'mallory' }) },
  'it has another scope': (provider, token) => { provider.say(token, { scope: 'a admin' }) },
  'it has ended': (provider, token) => { provider.say(token, { exp: inSeconds(-1) }) },
  'it is what it was': () => {}
}

for (const [what, happens] of Object.entries(OUTCOMES)) {
  t.test(`67: a socket that was given another token is not touched when the answer about its old one is that ${what}`, async t => {
    const { provider, first, second, pair, told, app, round } = await swapping(t, { introspection: { onProviderError: 'close' } })
    pair.peer.say(updateOf(second))
    t.match(await pair.peer.takeFrame('auth_updated'), { type: 'auth_updated' })
    t.match(pair.there.connection.context, { permissions: ['b'], version: 2 })
    happens(provider, first)
    provider.release()
    await eventually('the answer has come', () => !guarded(pair.there.connection).isReading)
    await isOpen(t, pair, 'the socket')
    t.match(pair.there.connection.context, { permissions: ['b'], version: 2 })
    t.strictSame([told('revoked'), told('expired'), told('identity_changed'), told('permissions_changed')], [[], [], [], []])
    t.equal(app.hybridAuth.count({ tokenId: (pair.there.connection.context as { tokenId: string }).tokenId }), 1)
    const before = provider.questions.length
    await round()
    t.strictSame(provider.questions.slice(before), [second], 'it is the new one that is asked about')
    provider.forget(second)
    await round()
    await isRevoked(t, pair, 'and whose end is the end: the socket')
  })
}

t.test('67: a socket that was given another token is not touched when there is no answer about its old one', async t => {
  const { provider, second, pair, app } = await swapping(t, { introspection: { onProviderError: 'close' } })
  pair.peer.say(updateOf(second))
  await pair.peer.takeFrame('auth_updated')
  for (const { token } of provider.waiting.splice(0)) t.ok(token)
  await provider.door.kill()
  await eventually('the question has failed', () => !guarded(pair.there.connection).isReading)
  await isOpen(t, pair, 'the socket')
  t.equal(app.hybridAuth.count(), 1)
})

t.test('67: the answer about a token that is in the middle of being replaced counts until it is', async t => {
  const { provider, first, pair, second } = await swapping(t)
  provider.isHeld = true
  pair.peer.say(updateOf(second))
  await eventually('both are asked about', () => provider.waiting.length === 2)
  provider.forget(first)
  provider.waiting.shift()?.answer()
  await isRevoked(t, pair, 'the socket')
  provider.release()
})

t.test('67: a socket goes from a JWT to an opaque token of the same issuer and back, and is asked about while it has the one', async t => {
  const { enter, provider, round, told } = await remote(t)
  const jwt = (scope: string) => goodToken({ iss: provider.door.issuer, scope, exp: END })
  const pair = await enter(jwt('j1'))
  await round()
  t.strictSame(provider.questions, [])
  const token = provider.issue({ scope: 'o' })
  pair.peer.say(updateOf(token))
  await pair.peer.takeFrame('auth_updated')
  t.match(pair.there.connection.context, { authType: 'oauth2', permissions: ['o'], version: 2, via: 'message' })
  await round()
  t.strictSame(provider.questions, [token, token])
  pair.peer.say(updateOf(jwt('j2')))
  await pair.peer.takeFrame('auth_updated')
  t.match(pair.there.connection.context, { authType: 'jwt', permissions: ['j2'], version: 3 })
  provider.forget(token)
  await round()
  t.equal(provider.questions.length, 2)
  await isOpen(t, pair, 'the socket')
  const again = provider.issue({ scope: 'o2' })
  pair.peer.say(updateOf(again))
  await pair.peer.takeFrame('auth_updated')
  provider.forget(again)
  await round()
  await isRevoked(t, pair, 'the socket')
  t.equal(told('refreshed').length, 3)
})

t.test('67: a socket that went to a JWT while its opaque token was asked about is not touched by the answer, nor by that there is none', async t => {
  for (const happens of [(provider: Provider, token: string) => { provider.forget(token) }, (provider: Provider) => { provider.instead = hangs }]) {
    const { provider, first, pair, round } = await swapping(t)
    pair.peer.say(updateOf(goodToken({ iss: provider.door.issuer, exp: END })))
    await pair.peer.takeFrame('auth_updated')
    happens(provider, first)
    provider.release()
    await eventually('the answer has come', () => !guarded(pair.there.connection).isReading)
    const before = provider.questions.length
    await round()
    await isOpen(t, pair, 'the socket')
    t.equal(pair.there.connection.context.authType, 'jwt')
    t.equal(provider.questions.length, before)
  }
})

t.test('66: an opaque token of another issuer, or of none, does not follow a JWT', async t => {
  for (const iss of ['https://other.example.com', undefined]) {
    const { enter, provider } = await remote(t)
    const pair = await enter(goodToken({ iss: provider.door.issuer }))
    pair.peer.say(updateOf(provider.issue({ iss })))
    t.strictSame(codeAndReason(await pair.peer.end), closedAs('IdentityChanged'))
  }
})

t.test('79: a token that is sent again over its socket does not put off when it is asked about', async t => {
  // As long as it is remembered, whoever has it can have it verified without a question.
  const { enter, provider, clock, look } = await remote(t, { introspection: { maxAge: HOUR } })
  const token = provider.issue()
  const pair = await enter(token)
  provider.forget(token)
  for (let i = 0; i < 6 && provider.questions.length === 1; i++) {
    clock.move(REVALIDATE / 3)
    look()
    const { peer } = pair
    peer.say(updateOf(token))
    await peer.until(() => peer.framesOf('auth_updated').length === i + 1)
  }
  t.equal(provider.questions.length, 2, 'an interval later it is asked about, whatever was sent')
  if (provider.questions.length === 2) await isRevoked(t, pair, 'the socket')
})

t.test('78: a token that is sent again over its socket does not make its last good answer younger', async t => {
  const { enter, provider, clock, round } = await remote(t, { introspection: { maxAge: HOUR, maxStale: 60_000 } })
  const token = provider.issue()
  const { peer } = await enter(token)
  provider.instead = says('', { status: 500 })
  for (let i = 0; i < 4 && !peer.hasEnded; i++) {
    await round()
    if (i === 3) break
    peer.say(updateOf(token))
    await peer.until(() => peer.framesOf('auth_updated').length === i + 1)
  }
  clock.move(REVALIDATE)
  await eventually('it has ended', () => peer.hasEnded, 1000).catch(() => {})
  t.ok(peer.hasEnded, 'closed at maxStale')
  if (peer.hasEnded) t.strictSame(codeAndReason(await peer.end), closedAs('Unavailable'))
})

t.test('a token in its grace is not asked about, and the socket ends with the grace', async t => {
  const { enter, provider, clock, round } = await remote(t, { auth: { expiryGrace: 90_000 } })
  clock.freeze()
  const exp = inSeconds(100)
  const token = provider.issue({ exp })
  const pair = await enter(token)
  await round()
  t.equal(provider.questions.length, 2)
  provider.forget(token)
  // Asked about at its time, it would be inactive by then.
  await round(exp * 1000 - Date.now())
  await round()
  await round()
  t.equal(provider.questions.length, 2)
  await isOpen(t, pair, 'in the grace, the socket')
  clock.move(exp * 1000 + 90_000 - Date.now())
  lookNow(pair.there.connection)
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('RefreshTimeout'))
})

t.test('a question that is answered in the grace, with the end that was known, does not take the grace away', async t => {
  const { enter, provider, clock, look } = await remote(t, { auth: { expiryGrace: 90_000 } })
  clock.freeze()
  const exp = inSeconds(60)
  const token = provider.issue({ exp })
  const pair = await enter(token)
  provider.isHeld = true
  clock.move(exp * 1000 - Date.now() - 5000)
  look()
  await eventually('it is asked about', () => provider.waiting.length === 1)
  clock.move(6000)
  provider.release()
  await eventually('it has its answer', () => !guarded(pair.there.connection).isReading)
  await isOpen(t, pair, 'in the grace, the socket')
})

t.test('good answers neither put off token_refresh_required nor repeat it', async t => {
  setRandom(t, 0.5)
  const { enter, provider, clock, round } = await remote(t)
  clock.freeze()
  const token = provider.issue({ exp: inSeconds(1000) })
  const pair = await enter(token)
  const { authenticatedAt, expiresAt } = pair.there.connection.context
  // The middle of what is between 0.7 and 0.9 of its lifetime.
  const due = authenticatedAt + (Number(expiresAt) - authenticatedAt) * 0.8
  const expiring: number[] = []
  pair.there.connection.on('expiring', left => { expiring.push(left) })
  while (Date.now() + REVALIDATE < due) await round()
  t.ok(provider.questions.length > 20)
  await isOpen(t, pair, 'the socket')
  t.strictSame(expiring, [])
  await round(Math.floor(due - Date.now()) - 1)
  t.strictSame(expiring, [], 'not before its time')
  await round(2)
  t.equal(expiring.length, 1, 'and then')
  for (let i = 0; i < 5; i++) await round()
  await isOpen(t, pair, 'the socket')
  t.equal(expiring.length, 1, 'once')
  t.equal(pair.peer.framesOf('token_refresh_required').length, 1)
  clock.move(Number(expiresAt) - Date.now() + 25_000)
  lookNow(pair.there.connection)
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('RefreshTimeout'), 'whoever was asked, and did not')
})

t.test('another scope does not repeat token_refresh_required', async t => {
  setRandom(t, 0.5)
  const { enter, provider, clock, round } = await remote(t)
  clock.freeze()
  const token = provider.issue({ exp: inSeconds(1000) })
  const pair = await enter(token)
  await round(850_000)
  await eventually('it is asked for', () => pair.peer.framesOf('token_refresh_required').length === 1)
  provider.say(token, { exp: Number(pair.there.connection.context.expiresAt) / 1000, scope: 'b' })
  await round()
  t.equal(versionOf(pair), 2)
  await round()
  await isOpen(t, pair, 'the socket')
  t.equal(pair.peer.framesOf('token_refresh_required').length, 1)
})

t.test('an end that was put off asks for a refresh before the new one', async t => {
  setRandom(t, 0.5)
  const { enter, provider, clock, round } = await remote(t)
  clock.freeze()
  const begin = Math.floor(Date.now() / 1000)
  const token = provider.issue({ exp: begin + 1000 })
  const pair = await enter(token)
  await round(850_000)
  await eventually('it is asked for', () => pair.peer.framesOf('token_refresh_required').length === 1)
  provider.say(token, { exp: begin + 4000 })
  await round()
  await round(3_100_000 - 900_000)
  await isOpen(t, pair, 'the socket')
  t.equal(pair.peer.framesOf('token_refresh_required').length, 1)
  await round(200_000)
  await eventually('it is asked for again', () => pair.peer.framesOf('token_refresh_required').length === 2)
})

t.test('68: a revocation while a question is out is the end, whatever the answer says', async t => {
  const { enter, provider, clock, look, app, told } = await remote(t)
  const token = provider.issue()
  const pair = await enter(token)
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('it is asked about', () => provider.waiting.length === 1)
  const { id } = await app.hybridAuth.revoke({ token }, { reason: 'stolen' })
  provider.say(token, { scope: 'admin' })
  provider.release()
  await isRevoked(t, pair, 'the socket')
  t.match(told('revoked'), [{ commandId: id, reason: 'stolen' }])
  await eventually('the answer has come', () => !guarded(pair.there.connection).isReading)
  t.equal(versionOf(pair), 1)
  t.equal(told('closed').length, 1)
})

t.test('68: a revocation and an answer that say the same end a socket once', async t => {
  const { enter, provider, clock, look, app, told } = await remote(t)
  const token = provider.issue()
  const pair = await enter(token)
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('it is asked about', () => provider.waiting.length === 1)
  provider.forget(token)
  provider.release()
  await app.hybridAuth.revoke({ userId: 'alice' })
  await isRevoked(t, pair, 'the socket')
  t.equal(told('revoked').length, 1)
})

for (const [what, claimsNow] of Object.entries<() => Jwk>({
  'issued long before': () => ({}),
  'issued in the same second': () => ({ iat: inSeconds(0) }),
  'that does not say when it was issued': () => ({ iat: undefined }),
  'issued by a clock that is ahead': () => ({ iat: inSeconds(200) })
})) {
  t.test(`68: a token ${what} that has to be replaced is not let off because its server says that it is active`, async t => {
    const { enter, provider, clock, round, app, told } = await remote(t, { introspection: { clockTolerance: 300 } })
    clock.freeze()
    const claims = claimsNow()
    const token = provider.issue(claims)
    const pair = await enter(token)
    await app.hybridAuth.revoke({ userId: 'alice' }, { mode: { reauthWithin: 90_000 }, reason: 'a new password' })
    await round()
    await isOpen(t, pair, 'as long as it has time, the socket')
    provider.say(token, { ...claims, scope: 'b' })
    await round()
    await isOpen(t, pair, 'as long as it has time, the socket')
    clock.move(30_000)
    lookNow(pair.there.connection)
    const end = await Promise.race([pair.peer.end, pair.peer.echoed(`still here, ${++said}`).then(() => null)])
    t.strictSame(end === null ? null : codeAndReason(end), closedAs('Revoked'))
    t.match(told('revoked'), [{ reason: 'a new password' }])
  })
}

t.test('what setPermissions() has set stays while the answer is what it was, in whatever order', async t => {
  const { enter, provider, round, app, told } = await remote(t)
  const token = provider.issue({ scope: 'a b' })
  const pair = await enter(token)
  await app.hybridAuth.setPermissions('alice', ['c'])
  t.strictSame(pair.there.connection.context.permissions, ['c'])
  await round()
  await round()
  t.strictSame([pair.there.connection.context.permissions, versionOf(pair)], [['c'], 2])
  provider.say(token, { scope: 'b a' })
  await round()
  t.strictSame([pair.there.connection.context.permissions, versionOf(pair)], [['c'], 2], 'in another order')
  t.equal(told('permissions_changed').length, 1)
  provider.say(token, { scope: 'b' })
  await round()
  t.strictSame(pair.there.connection.context.permissions, ['b'], 'and goes when it is not')
  t.strictSame(pair.peer.framesOf('permission_update').at(-1), { type: 'permission_update', permissions: ['b'], added: ['b'], removed: ['c'] })
})

t.test('what setPermissions() sets while a question is out stays when the answer is what it was', async t => {
  const { enter, provider, clock, look, app } = await remote(t)
  const pair = await enter(provider.issue({ scope: 'a b' }))
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('it is asked about', () => provider.waiting.length === 1)
  await app.hybridAuth.setPermissions('alice', ['c'])
  provider.release()
  await eventually('it has its answer', () => !guarded(pair.there.connection).isReading)
  t.strictSame(pair.there.connection.context.permissions, ['c'])
  await isOpen(t, pair, 'the socket')
})

t.test('an end that is put off keeps what setPermissions() has set', async t => {
  const { enter, provider, round, app } = await remote(t)
  const token = provider.issue()
  const pair = await enter(token)
  await app.hybridAuth.setPermissions('alice', ['c'])
  provider.say(token, { exp: END + 600 })
  await round()
  t.match(pair.there.connection.context, { permissions: ['c'], expiresAt: (END + 600) * 1000, version: 2 })
  await round()
  t.strictSame(pair.there.connection.context.permissions, ['c'])
})

t.test('claims that the mapper does not look at are those of the last answer', async t => {
  const { enter, provider, round } = await remote(t, { route: { authorize: auth => auth.authType === 'oauth2' && auth.claims.plan !== 'over' } })
  const token = provider.issue({ plan: 'paid' })
  const pair = await enter(token)
  await isOpen(t, pair, 'the socket')
  provider.say(token, { plan: 'over' })
  await round()
  t.match(pair.there.connection.context, { claims: { plan: 'over' } })
  pair.peer.say('is this allowed?')
  await pair.peer.until(() => pair.peer.texts.length > 1)
  t.match(pair.peer.framesOf('error'), [{ code: 'forbidden' }])
})

t.test('66: an acr that an answer takes back does not go on to satisfy the rule of the route', async t => {
  const { enter, provider, round } = await remote(t, { route: { acr: 'high' } })
  const token = provider.issue({ acr: 'high' })
  const pair = await enter(token)
  provider.say(token, { acr: 'low' })
  await round()
  const end = await Promise.race([pair.peer.end, pair.peer.echoed(`still here, ${++said}`).then(() => null)])
  t.equal(end?.code, 4007)
})

t.test('83: a mapper that says something else, throws or never settles, when its token is asked about again', async t => {
  let map: (claims: { sub?: string }) => unknown = ({ sub }) => ({ userId: sub, role: 'agent', permissions: ['a'] })
  const { enter, provider, round } = await remote(t, {
    introspection: { user: claims => map(claims) as Identity }, auth: { handshakeTimeout: 300 }
  })
  const open = () => enter(provider.issue())
  const good = map
  const role = await open()
  let refreshed = 0
  role.there.connection.on('refresh', () => { refreshed++ })
  await round()
  t.equal(refreshed, 0, 'the same, made anew, is nothing new')
  map = async claims => ({ ...good(claims) as Identity, role: 'admin' })
  await round()
  t.match(role.there.connection.context, { role: 'admin', version: 2 })
  t.strictSame([refreshed, role.peer.framesOf('permission_update')], [1, []])
  map = () => { throw new Error('the mapper') }
  await round()
  await isOpen(t, role, 'with a mapper that throws, the socket')
  map = async () => { throw new Error('the mapper') }
  await round()
  await isOpen(t, role, 'with a mapper that rejects, the socket')
  map = () => new Promise(() => {})
  await round()
  await isOpen(t, role, 'with a mapper that never settles, the socket')
  t.match(role.there.connection.context, { role: 'admin', version: 2 })
  for (const [what, next, name] of [
    ['null', () => null, 'Revoked'], ['nothing', () => undefined, 'Revoked'], ['no identity', () => ({ userId: 7 }), 'Revoked'],
    ['somebody else', () => ({ userId: 'mallory' }), 'IdentityChanged']
  ] as const) {
    map = good
    const { peer } = await open()
    map = next
    await round()
    t.strictSame(codeAndReason(await peer.end), closedAs(name), what)
  }
  t.equal((await role.peer.end).code, 4006)
})

t.test('sessions beside tokens are read from their store as before, while the server of the tokens does not answer', async t => {
  const { enter, open, session, store, provider, round, told, app } = await remote(t, { introspection: { onProviderError: 'close', requestsPerSecond: 1 } })
  const cookie = session('s1', { userId: 'bob', permissions: ['a'] })
  const other = session('s2', { userId: 'carol' })
  const [mine, theirs] = [await open({ cookie, speaks: true }), await open({ cookie: other, speaks: true })]
  const token = await enter(provider.issue())
  const [reads, questions] = [store.reads, provider.questions.length]
  await round()
  t.strictSame([store.reads - reads, provider.questions.length - questions], [2, 1])
  provider.instead = says('', { status: 500 })
  store.put('s1', { user: { userId: 'bob', permissions: ['b'] }, cookie: {} })
  await round()
  t.strictSame(codeAndReason(await token.peer.end), closedAs('Unavailable'))
  t.match(mine.there.connection.context, { permissions: ['b'], version: 2, authType: 'session' })
  await isOpen(t, theirs, 'another session')
  store.sessions.delete('s1')
  await round()
  await isRevoked(t, mine, 'the session')
  t.match(told('revoked'), [{ reason: 'the session is gone', authType: 'session', userId: 'bob' }])
  t.equal(app.hybridAuth.count(), 1)
})

t.test('sessions beside tokens are extended when they are used, and a message waits until its session was read again', async t => {
  let fails = false
  class Store extends MapStore {
    touched = 0
    touch (sessionId: string, session: { cookie: { expires?: unknown } }, callback: (error?: unknown) => void): void {
      this.touched++
      const { expires } = JSON.parse(JSON.stringify(session.cookie)) as { expires?: unknown }
      if (!fails) this.put(sessionId, { user: { userId: 'bob' }, cookie: { originalMaxAge: HOUR, expires } })
      callback(fails ? new Error('down') : undefined)
    }
  }
  const sessions = new Store()
  const { enter, open, provider, round, clock } = await remote(t, {
    auth: { session: { user: stored => stored.user ?? null, store: sessions, secret: SESSION_SECRET, touch: true, revalidate: REVALIDATE } },
    route: { sessionMaxAge: 5000 }
  })
  clock.freeze()
  const end = () => new Date(Date.now() + HOUR).toISOString()
  sessions.put('s1', { user: { userId: 'bob' }, cookie: { originalMaxAge: HOUR, expires: end() } })
  const mine = await open({ cookie: cookieFor('s1') })
  const pair = await enter(provider.issue())
  await round()
  t.equal(sessions.touched, 0, 'nobody has used it')
  const { expiresAt } = mine.there.connection.context
  const { reads } = sessions
  clock.move(5001)
  await isOpen(t, mine, 'the session')
  t.ok(sessions.reads > reads, 'read before the message was delivered')
  t.equal(sessions.touched, 1, 'and extended')
  t.ok(Number(mine.there.connection.context.expiresAt) > Number(expiresAt))
  await isOpen(t, pair, 'the token')
  t.equal(provider.questions.length, 2, 'which no message asks about')
  fails = true
  await isOpen(t, mine, 'the session')
  await round()
  t.equal(sessions.touched, 2)
  await isOpen(t, mine, 'with a store that does not extend it, the session')
})

t.test('tokens are asked about as before while the session store is down', async t => {
  const { enter, open, session, store, provider, round, told } = await remote(t, { auth: { session: { user: stored => stored.user ?? null, revalidate: REVALIDATE, onStoreError: 'close' } } })
  const mine = await open({ cookie: session('s1', { userId: 'bob' }) })
  const token = provider.issue()
  const pair = await enter(token)
  store.get = (_sessionId, callback) => { callback(new Error('down')) }
  await round()
  t.strictSame(codeAndReason(await mine.peer.end), closedAs('Unavailable'))
  await isOpen(t, pair, 'the socket of a token')
  provider.forget(token)
  await round()
  await isRevoked(t, pair, 'the socket of a token')
  t.match(told('revoked'), [{ reason: GONE }])
})

t.test('sessions do not wait in the line of tokens', async t => {
  const { enter, open, session, store, provider, clock, look } = await remote(t, { introspection: { requestsPerSecond: 1 } })
  for (const token of times(5, () => provider.issue())) await enter(token)
  const mine = await open({ cookie: session('s1', { userId: 'bob' }) })
  clock.freeze()
  clock.move(REVALIDATE)
  store.sessions.delete('s1')
  look()
  await isRevoked(t, mine, 'the session')
})

t.test('62: a socket that is paused because it sends too much is closed like any other, and delivers nothing more', async t => {
  const verdict = deferred<boolean>()
  const { enter, provider, round, told } = await remote(t, { route: { authorize: () => verdict.promise } })
  const token = provider.issue()
  const pair = await enter(token)
  for (let i = 0; i < 200; i++) pair.peer.say(`frame ${i}`)
  await eventually('it is paused', () => pair.there.socket.isPaused)
  provider.forget(token)
  await round()
  verdict.resolve(true)
  await isRevoked(t, pair, 'the socket')
  t.strictSame(pair.there.received, [])
  t.equal(told('closed').length, 1)
})

t.test('62: frames of a peer that has closed, and that are still judged, are not delivered after its token was revoked', async t => {
  const verdict = deferred<boolean>()
  const { enter, provider, round, app } = await remote(t, { route: { authorize: () => verdict.promise } })
  const token = provider.issue()
  const { peer, there } = await enter(token)
  peer.say('one')
  peer.say('two')
  peer.socket.close()
  await eventually('its close waits', () => app.hybridAuth.count() === 0 && guarded(there.connection).heldClose !== null)
  provider.forget(token)
  lookNow(there.connection)
  await round()
  lookNow(there.connection)
  await eventually('it is asked about', () => provider.questions.length === 2)
  await there.closed
  verdict.resolve(true)
  await new Promise(resolve => { setImmediate(resolve) })
  t.strictSame(there.received, [])
})

t.test('a listener that closes the other sockets of its token leaves nothing behind, and brings nothing back', async t => {
  const { enter, provider, round, app } = await remote(t)
  const token = provider.issue()
  const pairs = await Promise.all(times(3, () => enter(token)))
  let isDone = false
  for (const { there: { connection } } of pairs) {
    connection.on('refresh', () => {
      if (isDone) return
      isDone = true
      for (const other of pairs) if (other.there.connection !== connection) other.there.connection.close(4999, 'away')
    })
  }
  provider.say(token, { scope: 'b' })
  await round()
  await eventually('two are closed', () => pairs.filter(({ peer }) => peer.hasEnded).length === 2)
  for (const { peer } of pairs) if (peer.hasEnded) t.equal((await peer.end).code, 4999)
  t.strictSame([app.hybridAuth.count(), app.hybridAuth.count({ userId: 'alice' }), app.hybridAuth.count({ authType: 'oauth2' })], [1, 1, 1])
})

t.test('67: a socket that was given another token while the source of permissions was asked about its old one keeps what came last', async t => {
  const sourced: Array<{ user: Identity, answer: Deferred<string[]> }> = []
  let isHeld = false
  const { enter, provider, clock, look, app } = await remote(t, {
    auth: {
      permissions (user) {
        if (!isHeld) return user.permissions ?? []
        const answer = deferred<string[]>()
        sourced.push({ user, answer })
        return answer.promise
      }
    }
  })
  const [first, second] = [provider.issue({ scope: 'old' }), provider.issue({ scope: 'new' })]
  const pair = await enter(first)
  isHeld = true
  // What the source said is not remembered for longer than an interval.
  clock.move(REVALIDATE)
  look()
  await eventually('the source is asked', () => sourced.length === 1)
  const refreshing = app.hybridAuth.refreshPermissions('alice')
  sourced[0]?.answer.resolve(['stale'])
  await eventually('it is asked again', () => sourced.length === 2)
  t.strictSame(sourced.map(({ user }) => user.permissions), [['old'], ['old']])
  pair.peer.say(updateOf(second))
  await eventually('it is asked about the second', () => sourced.length === 3)
  sourced[2]?.answer.resolve(['of the second'])
  await pair.peer.takeFrame('auth_updated')
  const { tokenId } = pair.there.connection.context as { tokenId: string }
  sourced[1]?.answer.resolve(['of the first'])
  await eventually('the answer has come', () => !guarded(pair.there.connection).isReading)
  isHeld = false
  await refreshing
  await isOpen(t, pair, 'the socket')
  t.match(pair.there.connection.context, { permissions: ['of the second'], tokenId, claims: { scope: 'new' } })
})

t.test('67: a socket that was given another token while more was asked about the user of its old one keeps what came last', async t => {
  const held: Array<Deferred<object>> = []
  const permissions: Array<Deferred<string[]>> = []
  let isHeld = false
  const isOld = (user: Identity) => isHeld && user.permissions?.includes('old') === true
  const { enter, provider, clock, look, app } = await remote(t, {
    auth: {
      enrich (user) {
        if (!isOld(user)) return {}
        const answer = deferred<object>()
        held.push(answer)
        return answer.promise
      },
      permissions (user) {
        if (!isOld(user)) return user.permissions ?? []
        const answer = deferred<string[]>()
        permissions.push(answer)
        return answer.promise
      }
    }
  })
  const [first, second] = [provider.issue({ scope: 'old' }), provider.issue({ scope: 'new' })]
  const pair = await enter(first)
  isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('more is asked for', () => held.length === 1)
  held[0]?.resolve({})
  await eventually('the permissions are asked for', () => permissions.length === 1)
  // What was said first is forgotten before all of it is there.
  const refreshing = app.hybridAuth.refreshPermissions('alice')
  await eventually('more is asked for again', () => held.length === 2)
  permissions[0]?.resolve(['old'])
  await eventually('the permissions are asked for again', () => permissions.length === 2)
  permissions[1]?.resolve(['old'])
  await eventually('the answer is complete, and not current', () => !guarded(pair.there.connection).isReading)
  pair.peer.say(updateOf(second))
  await pair.peer.takeFrame('auth_updated')
  isHeld = false
  const { context } = pair.there.connection
  t.match(context, { permissions: ['new'], claims: { scope: 'new' } })
  for (const answer of held) answer.resolve({})
  await refreshing
  await isOpen(t, pair, 'the socket')
  t.match(pair.there.connection.context, { permissions: ['new'], claims: { scope: 'new' } })
})

t.test('78: while a source of permissions fails, sockets are served until maxStale', async t => {
  let isUp = true
  const { enter, provider, round, clock } = await remote(t, {
    introspection: { maxStale: 70_000 },
    auth: { permissions () { if (isUp) return ['a']; throw new Error('down') } }
  })
  clock.freeze()
  const pair = await enter(provider.issue())
  isUp = false
  await round(REVALIDATE + 1)
  await round()
  await isOpen(t, pair, 'the socket')
  await round()
  t.strictSame(codeAndReason(await pair.peer.end), closedAs('Unavailable'))
})

t.test('78: a question without an answer closes nobody else, whose token was not to be asked about yet', async t => {
  const { enter, provider, clock, look } = await remote(t, {
    introspection: { revalidate: 600_000, maxStale: 60_000, onProviderError: 'close', user: claims => { if (claims.bad === true) throw new Error('the mapper'); return { userId: String(claims.sub) } } }
  })
  clock.freeze()
  const token = provider.issue()
  const bad = await enter(token)
  clock.move(300_000)
  const pair = await enter(provider.issue())
  provider.say(token, { bad: true })
  clock.move(300_000)
  look()
  t.strictSame(codeAndReason(await bad.peer.end), closedAs('Unavailable'))
  // As with each heartbeat.
  look()
  await isOpen(t, pair, 'that of another, five minutes after it was opened,')
})

t.test('66: a rule that reads the scope out of the claims is asked again when it changes, whatever the mapper makes of it', async t => {
  const { enter, provider, round } = await remote(t, {
    introspection: { user: claims => ({ userId: String(claims.sub) }) },
    route: { check: auth => auth.authType === 'oauth2' && auth.claims.scope === 'a' }
  })
  const token = provider.issue({ scope: 'a' })
  const pair = await enter(token)
  await round()
  await isOpen(t, pair, 'the socket')
  provider.say(token, { scope: 'b' })
  await round()
  const end = await Promise.race([pair.peer.end, pair.peer.echoed(`still here, ${++said}`).then(() => null)])
  t.equal(end?.code, 4007)
})

t.test('78: the bound holds for all sockets of a server that is away, however few may ask in a second', async t => {
  const { enter, provider, clock, look, app } = await remote(t, { introspection: { requestsPerSecond: 1, maxStale: 60_000 } })
  const pairs: Pair[] = []
  for (const token of times(6, () => provider.issue())) pairs.push(await enter(token))
  clock.freeze()
  provider.instead = says('', { status: 500 })
  clock.move(60_000)
  look()
  await eventually('one was asked about', () => pairs.some(({ peer }) => peer.hasEnded))
  // Nothing was heard of any of them since.
  clock.move(1000)
  look()
  await eventually('all are closed', () => pairs.every(({ peer }) => peer.hasEnded), 2000).catch(() => {})
  t.equal(app.hybridAuth.count(), 0, 'a second past the bound none is served')
})

t.test('82: app.close() with questions in line and in flight resolves, and what is answered after it touches nothing', async t => {
  const { enter, provider, clock, look, app, told } = await remote(t, { introspection: { requestsPerSecond: 2, timeout: 60_000 }, auth: { drain: { window: 0 } } })
  const tokens = times(6, () => provider.issue())
  const pairs: Pair[] = []
  for (const token of tokens) pairs.push(await enter(token))
  provider.isHeld = true
  clock.move(REVALIDATE)
  look()
  await eventually('two are asked about', () => provider.waiting.length === 2)
  await app.close()
  for (const { peer } of pairs) t.equal((await peer.end).code, 1012)
  const asked = provider.questions.length
  for (const token of tokens) provider.forget(token)
  provider.release()
  clock.move(10_000)
  await new Promise(resolve => { setTimeout(resolve, 600) })
  t.equal(provider.questions.length, asked, 'nobody in the line is asked about any more')
  t.strictSame(told('revoked'), [])
  t.equal(told('closed').length, 6)
})

const PROGRAM = `
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import { WebSocket } from 'ws'
import hybridAuth from './lib/index.ts'
import { introspection } from './lib/verify/providers.ts'

const app = Fastify()
await app.register(websocket)
await app.register(hybridAuth, {
  introspection: introspection({ endpoint: process.env.ENDPOINT, clientId: 'api', clientSecret: 'secret', revalidate: 200, requestsPerSecond: 2, timeout: 60000 }),
  failures: false, drain: { window: 0 }, handshakeTimeout: 30000
})
app.get('/live', { websocket: true }, socket => { socket.send('open') })
await app.listen({ port: 0, host: '127.0.0.1' })
const sockets = []
for (let i = 0; i < 8; i++) {
  const socket = new WebSocket('ws://127.0.0.1:' + app.server.address().port + '/live', { headers: { authorization: 'Bearer token-' + i } })
  await new Promise((resolve, reject) => { socket.once('message', resolve); socket.once('error', reject); socket.once('unexpected-response', reject) })
  sockets.push(socket)
}
process.stdout.write('open\\n')
await new Promise(resolve => { process.stdin.once('data', resolve) })
process.stdin.destroy()
const codes = sockets.map(socket => new Promise(resolve => { socket.on('close', resolve) }))
await app.close()
process.stdout.write(JSON.stringify(await Promise.all(codes)) + '\\n')
`

t.test('82: a process with questions in line, and some in flight, exits by itself after app.close()', async t => {
  const provider = new Provider(await fakeIssuer(t))
  provider.instead = saysJson({ active: true, sub: 'alice' })
  const loader = process.execArgv.filter(argument => argument.includes('typescript'))
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))
  const child = spawn(process.execPath, [...loader, '--input-type=module', '-e', PROGRAM], {
    cwd: new URL('..', import.meta.url), env: { ...env, ENDPOINT: `${provider.door.issuer}/introspect` }, stdio: ['pipe', 'pipe', 'inherit']
  })
  t.teardown(() => { child.kill('SIGKILL') })
  const closed = once(child, 'close')
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => { printed += chunk.toString() })
  await eventually('the sockets are open', () => printed.includes('open') || child.exitCode !== null, 30_000)
  provider.instead = hangs
  const before = provider.questions.length
  await eventually('some are asked about, and the others wait', () => provider.questions.length >= before + 2)
  child.stdin.write('close\n')
  const timer = setTimeout(() => { child.kill('SIGKILL') }, 5000)
  const [status] = await closed as [number | null]
  clearTimeout(timer)
  t.strictSame(JSON.parse(printed.split('\n')[1] ?? 'null'), times(8, () => 1012), 'it was closed')
  t.equal(status, 0, 'and nothing kept it')
})

t.test('82: sockets that have gone leave no question behind', async t => {
  const { enter, provider, clock, look, app } = await remote(t)
  const pairs = await Promise.all(times(20, () => enter(provider.issue())))
  for (const { peer, there } of pairs) {
    peer.socket.terminate()
    await there.closed
  }
  const before = provider.questions.length
  clock.move(REVALIDATE)
  look()
  for (const { there } of pairs) t.equal(guarded(there.connection).due, -1)
  t.strictSame([app.hybridAuth.count(), provider.questions.length], [0, before])
})

t.test('70: after the clock was set back an hour, a revoked token still ends its socket within the interval', async t => {
  const { enter, provider, clock, look } = await remote(t)
  clock.move(HOUR)
  const token = provider.issue()
  const pair = await enter(token)
  clock.move(-HOUR)
  look()
  provider.forget(token)
  clock.move(REVALIDATE)
  look()
  await isRevoked(t, pair, 'the socket')
})

t.test('what is watched of one kind is nothing for a context of another', async t => {
  const parts: WatchedParts = { grounded: outcome => outcome, closed: (_request, _where, run) => run(), report () {} }
  const request = {} as FastifyRequest
  const { enter, provider, open, session } = await remote(t)
  const token = (await enter(provider.issue())).there.connection.context
  const stored = (await open({ cookie: session('s1', { userId: 'bob' }) })).there.connection.context
  const never = () => { throw new Error('nobody is asked') }
  const tokens = watchTokens({ verify: never, reverify: never, tokenOf: never, forget () {}, since: () => 0, isCurrent: () => true, stop () {} }, { revalidate: 1, onProviderError: 'serve', maxStale: 1, requestsPerSecond: 1 }, parts)
  t.equal(await tokens.renew(request, stored, isTrue.bind(null, true)), 'FST_HYBRID_AUTH_INVALID_TOKEN')
  t.equal(tokens.since(stored), 0, 'long ago')
  const settings = { revalidate: 1, maxStale: 1, onStoreError: 'serve' }
  const sessions = watchSessions({ settings, reread: never, touch: null } as never, parts)
  t.equal(await sessions.renew(request, token, isTrue.bind(null, true)), 'FST_HYBRID_AUTH_INVALID_SESSION')
  const remoteTokens = new RemoteTokens(never, { clockTolerance: 0, maxAge: 1, negativeMaxAge: 1, timeout: 1, maxTokenLength: 1 }, { onBadIdentity () {}, onAsked () {} })
  const foreign = { sub: 'alice' }
  t.strictSame([remoteTokens.since(foreign), remoteTokens.tokenOf(foreign), await remoteTokens.reverify(foreign)], [0, null, 'FST_HYBRID_AUTH_INVALID_TOKEN'])
})

t.test('what is sealed is read with its secret, whatever it is', t => {
  for (const text of ['', 'a', 'ünïcode \u{1F600} \u0000', '{"token":"abc"}', 'x'.repeat(100_000)]) {
    const secret = randomBytes(32).toString('base64url')
    const sealed = seal(text, secret)
    t.match(sealed, /^[A-Za-z0-9_-]+$/)
    t.equal(unseal(sealed, secret), text)
    t.not(seal(text, secret), sealed, 'never the same twice')
    t.notOk(text.length > 3 && Buffer.from(sealed, 'base64url').includes(text))
  }
  t.end()
})

t.test('what is sealed is not read with another secret, nor after it was changed at any place, cut short or made longer', t => {
  const secret = `o${randomBytes(32).toString('base64url')}`
  const sealed = seal('{"a":1}', secret)
  for (const other of ['', `j${secret.slice(1)}`, secret.slice(0, -1), `${secret}A`, secret.toLowerCase(), randomBytes(32).toString('base64url')]) {
    if (other !== secret) t.equal(unseal(sealed, other), null, 'another secret')
  }
  const bytes = Buffer.from(sealed, 'base64url')
  for (let i = 0; i < bytes.length; i++) {
    const changed = Buffer.from(bytes)
    changed.writeUInt8(bytes.readUInt8(i) ^ 1, i)
    t.equal(unseal(changed.toString('base64url'), secret), null, `byte ${i}`)
    t.equal(unseal(bytes.subarray(0, i).toString('base64url'), secret), null, `the first ${i} bytes`)
    t.equal(unseal(bytes.subarray(i + 1).toString('base64url'), secret), null, `without the first ${i + 1} bytes`)
  }
  t.equal(unseal(Buffer.concat([bytes, Buffer.alloc(1)]).toString('base64url'), secret), null, 'one byte more')
  const parts = [bytes.subarray(0, 12), bytes.subarray(12, 28), bytes.subarray(28)] as const
  t.equal(unseal(Buffer.concat([parts[0], parts[2], parts[1]]).toString('base64url'), secret), null, 'in another order')
  for (const value of ['', 'A', '!!!', '{"a":1}', 'x'.repeat(1000), '\u0000']) t.equal(unseal(value, secret), null, JSON.stringify(value.slice(0, 10)))
  t.end()
})

t.test('two things that were sealed with the same secret cannot be put together', t => {
  const secret = randomBytes(32).toString('base64url')
  const [a, b] = ['of one', 'of two'].map(text => Buffer.from(seal(text, secret), 'base64url'))
  if (a === undefined || b === undefined) throw new Error('two were sealed')
  t.equal(unseal(Buffer.concat([a.subarray(0, 28), b.subarray(28)]).toString('base64url'), secret), null)
  t.equal(unseal(Buffer.concat([a.subarray(0, 12), b.subarray(12)]).toString('base64url'), secret), null)
  t.end()
})

t.test('83: what is no text is nothing that was sealed', t => {
  const secret = randomBytes(32).toString('base64url')
  for (const value of [null, undefined, 7, {}, [], true, Symbol('sealed')]) t.equal(unseal(value as never, secret), null)
  t.end()
})

/** Runs, and says what became of it. */
async function outcomeOf (breaker: Breaker, run: () => Promise<string>): Promise<string> {
  return breaker.run(run).catch((error: unknown) => error instanceof ProviderFailed ? 'left alone' : String(error))
}
const fails = async (): Promise<string> => { throw new TypeError('down') }
const works = async () => 'up'
/** A question that the test answers. */
function heldQuestion (breaker: Breaker) {
  const question = deferred<boolean>()
  let asked = 0
  const outcome = outcomeOf(breaker, async () => {
    asked++
    if (await question.promise) return 'up'
    throw new TypeError('down')
  })
  return { outcome, answer: question.resolve, asked: () => asked }
}

t.test('78: five failures in a row open the breaker for five seconds, and four do not, nor five that are not in a row', async t => {
  const clock = stopwatch(t)
  const breaker = new Breaker()
  for (let i = 0; i < 4; i++) t.equal(await outcomeOf(breaker, fails), 'TypeError: down')
  t.equal(await outcomeOf(breaker, works), 'up')
  for (let i = 0; i < 5; i++) t.equal(await outcomeOf(breaker, fails), 'TypeError: down', 'what failed is told as it is')
  t.equal(await outcomeOf(breaker, works), 'left alone')
  clock.move(4999)
  t.equal(await outcomeOf(breaker, works), 'left alone')
  clock.move(1)
  t.equal(await outcomeOf(breaker, works), 'up')
  for (let i = 0; i < 4; i++) t.equal(await outcomeOf(breaker, fails), 'TypeError: down', 'and it counts from the beginning')
  t.equal(await outcomeOf(breaker, works), 'up')
})

t.test('78: after the pause one is asked on trial, and those who come meanwhile are told at once', async t => {
  const clock = stopwatch(t)
  const breaker = new Breaker()
  for (let i = 0; i < 5; i++) await outcomeOf(breaker, fails)
  clock.move(5000)
  const trial = heldQuestion(breaker)
  const others = times(20, () => heldQuestion(breaker))
  t.strictSame(new Set(await Promise.all(others.map(({ outcome }) => outcome))), new Set(['left alone']))
  t.ok(others.every(({ asked }) => asked() === 0))
  t.equal(trial.asked(), 1)
  trial.answer(true)
  t.equal(await trial.outcome, 'up')
  t.equal(await outcomeOf(breaker, works), 'up', 'then all are asked')
})

t.test('78: a trial that fails is the beginning of another pause, and of one failure more, not of five', async t => {
  const clock = stopwatch(t)
  const breaker = new Breaker()
  for (let i = 0; i < 5; i++) await outcomeOf(breaker, fails)
  for (let round = 0; round < 3; round++) {
    clock.move(5000)
    const trial = heldQuestion(breaker)
    clock.move(2000)
    trial.answer(false)
    t.equal(await trial.outcome, 'TypeError: down')
    clock.move(4999)
    t.equal(await outcomeOf(breaker, works), 'left alone')
    clock.move(1)
    clock.move(-5000)
  }
  clock.move(5000)
  t.equal(await outcomeOf(breaker, works), 'up')
})

t.test('78: a trial that is never answered does not keep others from trying', async t => {
  const clock = stopwatch(t)
  const breaker = new Breaker()
  for (let i = 0; i < 5; i++) await outcomeOf(breaker, fails)
  clock.move(5000)
  const hung = heldQuestion(breaker)
  clock.move(4999)
  t.equal(await outcomeOf(breaker, works), 'left alone')
  clock.move(1)
  t.equal(await outcomeOf(breaker, works), 'up')
  hung.answer(false)
  await hung.outcome
  t.equal(await outcomeOf(breaker, works), 'up', 'what fails late is one failure')
})

t.test('78: questions that were out when the breaker opened fail late, and count', async t => {
  const clock = stopwatch(t)
  const breaker = new Breaker()
  const out = times(50, () => heldQuestion(breaker))
  for (const { answer, outcome } of out.slice(0, 5)) {
    answer(false)
    await outcome
  }
  t.equal(await outcomeOf(breaker, works), 'left alone')
  clock.move(3000)
  for (const { answer, outcome } of out.slice(5, 49)) {
    answer(false)
    t.equal(await outcome, 'TypeError: down')
  }
  clock.move(4999)
  t.equal(await outcomeOf(breaker, works), 'left alone', 'five seconds from the last of them')
  out[49]?.answer(true)
  t.equal(await out[49]?.outcome, 'up')
  t.equal(await outcomeOf(breaker, works), 'up', 'one that was answered well ends the pause')
})

t.test('78: what throws before it is a promise counts as a failure', async t => {
  stopwatch(t)
  const breaker = new Breaker()
  const throws = (): Promise<string> => { throw new TypeError('at once') }
  for (let i = 0; i < 5; i++) t.equal(await outcomeOf(breaker, throws), 'TypeError: at once')
  t.equal(await outcomeOf(breaker, works), 'left alone')
})

t.test('78: a question that the server does not want to be asked says nothing of the next', async t => {
  stopwatch(t)
  const breaker = new Breaker()
  const refused = async (): Promise<string> => { throw new QuestionRefused('status 400') }
  for (let i = 0; i < 20; i++) t.equal(await outcomeOf(breaker, refused), 'left alone', 'which it is not: it has the same class')
  t.equal(await outcomeOf(breaker, works), 'up')
  for (let i = 0; i < 4; i++) await outcomeOf(breaker, fails)
  await outcomeOf(breaker, refused)
  await outcomeOf(breaker, fails)
  t.equal(await outcomeOf(breaker, works), 'left alone', 'nor does it end a row')
})
