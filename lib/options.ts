/** The option schema, strict at every depth, and every default. */
import * as v from 'valibot'
import type { Algorithm, HybridAuthOptions, JwtOptions, Reportable, SessionOptions } from '../types/options.js'
import type { ClusterDriver } from './cluster/cluster.js'
import { parseOriginPattern } from './handshake/origin.js'
import type { AskUser } from './policy/asked.js'
import { roomOptions } from './rooms/settings.js'
import { CLOSE, type CloseName } from './protocol.js'
import { isIntrospection, type IntrospectionSource } from './verify/introspector.js'
import { DAY, flag, fn, oneOf, oneOrMore, parse, text, within } from './schema.js'

const ALGORITHMS = [
  'HS256', 'HS384', 'HS512', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'
] as const satisfies readonly Algorithm[]

/** RS and PS are the two schemes of one kind of key. */
const family = (algorithm: Algorithm) => algorithm.slice(0, 2).replace('PS', 'RS')

export const algorithms = v.pipe(
  v.array(oneOf(ALGORITHMS), 'must be a list of algorithms'),
  v.nonEmpty('must name at least one algorithm'),
  v.check(given => new Set(given.map(family)).size === 1, 'must be of one family: HS, RS and PS, ES, or EdDSA'))

const jwt = v.strictObject({
  // The kinds of key are told apart where they are imported.
  key: v.custom<JwtOptions['key']>(given => given !== undefined && given !== null, 'is required'),
  algorithms,
  issuer: v.optional(oneOrMore),
  audience: v.optional(oneOrMore),
  typ: v.optional(text('a media type')),
  clockTolerance: v.optional(within(0, 300, 'seconds'), 0),
  maxAge: v.optional(within(1, 1e9, 'seconds')),
  maxTokenLength: v.optional(within(1, 65_536, 'characters'), 8192),
  allowNoExpiry: flag(false),
  user: v.optional(fn<NonNullable<JwtOptions['user']>>())
})

const MIN_COOKIE_SECRET = 32
const isSecret = (given: unknown) => (typeof given === 'string' || Buffer.isBuffer(given)) && given.length >= MIN_COOKIE_SECRET
const isSigner = (given: unknown) => typeof given === 'object' && given !== null &&
  'sign' in given && typeof given.sign === 'function' && 'unsign' in given && typeof given.unsign === 'function'

const UNUSED = 'has no use without session.store'

const session = v.pipe(
  v.strictObject({
    user: fn<SessionOptions['user']>(),
    store: v.optional(v.custom<NonNullable<SessionOptions['store']>>(
      given => typeof given === 'object' && given !== null && 'get' in given && typeof given.get === 'function',
      'must be a session store with a get(sessionId, callback) method')),
    secret: v.optional(v.custom<NonNullable<SessionOptions['secret']>>(
      given => isSecret(given) || isSigner(given) || (Array.isArray(given) && given.length > 0 && given.every(isSecret)),
      `must be a signer, or a secret of at least ${MIN_COOKIE_SECRET} characters, or a list of such secrets`)),
    cookieName: v.optional(text('a cookie name')),
    cookiePrefix: v.optional(v.string('must be a string')),
    revalidate: v.optional(within(100, DAY, 'milliseconds'), 30_000),
    onStoreError: v.optional(oneOf(['serve', 'close']), 'serve'),
    maxStale: v.optional(within(0, DAY, 'milliseconds'), 300_000),
    touch: flag(false)
  }),
  v.forward(v.check(given => !given.touch || given.store === undefined || given.store.touch !== undefined, 'needs a store with a touch(sessionId, session, callback) method'), ['touch']),
  v.forward(v.check(given => given.store === undefined || given.secret !== undefined, 'is required with session.store'), ['secret']),
  v.forward(v.check(given => given.store !== undefined || given.secret === undefined, UNUSED), ['secret']),
  v.transform(({ cookieName = 'sessionId', cookiePrefix = '', ...given }) => ({ ...given, cookieName, cookiePrefix })))

const enrich = v.pipe(
  v.union([
    fn<AskUser>(),
    v.strictObject({ ask: fn<AskUser>(), maxAge: v.optional(within(0, DAY, 'milliseconds'), 30_000), shared: flag(false) })
  ], 'must be a function, or { ask, maxAge, shared }'),
  v.transform(given => typeof given === 'function' ? { ask: given, maxAge: 30_000, shared: false } : given))

const credentials = v.strictObject({
  query: flag(false),
  subprotocol: flag(true),
  ticket: flag(true),
  allowTokenInLogs: flag(false)
})

const heartbeat = v.strictObject({
  interval: v.optional(within(10, DAY, 'milliseconds'), 25_000),
  timeout: v.optional(within(10, DAY, 'milliseconds'), 10_000)
})

const places = () => v.optional(v.pipe(within(1, 1e9, 'connections'), v.integer('must be a whole number')))
const connectionLimits = v.strictObject({
  perUser: places(),
  perIp: places(),
  perTenant: places(),
  policy: v.optional(oneOf(['reject', 'evict-oldest']), 'reject')
})

const perMinute = () => v.optional(v.pipe(within(1, 1e6, 'connections a minute'), v.integer('must be a whole number')))
const connects = v.strictObject({ perUser: perMinute(), perIp: perMinute() })

const failures = v.strictObject({
  max: v.optional(v.pipe(within(1, 1000, 'failures'), v.integer('must be a whole number')), 10),
  window: v.optional(within(1000, DAY, 'milliseconds'), 300_000),
  block: v.optional(oneOf(['credential', 'address']), 'credential')
})

/** What `report` may name: everything that refuses for another reason than who somebody is. */
const REPORTABLE = ['origin', 'tls', 'failures', 'connections', 'connects', 'rate'] as const satisfies readonly Reportable[]

const CLOSE_NAMES = Object.keys(CLOSE) as CloseName[]
const optionalCode = () => v.optional(v.pipe(within(3000, 4999, 'the range for applications'), v.integer('must be an integer')))
const closeCodes = v.strictObject(Object.fromEntries(CLOSE_NAMES.map(name =>
  [name, optionalCode()])) as Record<CloseName, ReturnType<typeof optionalCode>>)

const schema = v.pipe(
  v.strictObject({
    jwt: v.optional(jwt),
    session: v.optional(session),
    introspection: v.optional(v.custom<IntrospectionSource>(isIntrospection, 'must be an introspection, as introspection() of fastify-hybrid-auth/providers makes one')),
    origins: v.optional(v.pipe(
      v.array(v.pipe(
        v.string('must be an origin'),
        v.rawTransform(({ dataset, addIssue, NEVER }) => {
          const pattern = parseOriginPattern(dataset.value)
          if (pattern !== null) return pattern
          addIssue({ message: 'must be an origin like https://app.example.com or https://*.example.com, without path, default port or trailing slash' })
          return NEVER
        })), 'must be a list of origins'),
      v.nonEmpty('must not be empty'))),
    fallback: v.optional(oneOf(['invalid', 'absent']), 'invalid'),
    credentials: v.optional(credentials, {}),
    guard: v.optional(oneOf(['all', 'opt-in']), 'all'),
    refuse: v.optional(oneOf(['auto', 'http', 'close']), 'auto'),
    handshakeTimeout: v.optional(within(1, 600_000, 'milliseconds'), 10_000),
    expiryGrace: v.optional(within(0, DAY, 'milliseconds')),
    maxConnectionAge: v.optional(within(1, 400 * DAY, 'milliseconds')),
    idleTimeout: v.optional(within(1, 400 * DAY, 'milliseconds')),
    heartbeat: v.optional(v.union([v.literal(false), heartbeat], 'must be false, or { interval, timeout }'), {}),
    drain: v.optional(v.strictObject({
      window: v.optional(within(0, DAY, 'milliseconds'), 5000),
      deadline: v.optional(within(1, DAY, 'milliseconds'), 10_000)
    }), {}),
    closeCodes: v.optional(closeCodes, {}),
    limits: v.optional(v.strictObject({
      pending: v.optional(within(0, 1e6, 'sockets'), 1000),
      pendingPerIp: v.optional(within(1, 1e6, 'sockets')),
      connections: v.optional(connectionLimits),
      connects: v.optional(connects)
    }), {}),
    failures: v.optional(v.union([v.literal(false), failures], 'must be false, or { max, window, block }'), {}),
    requireTls: flag(false),
    report: v.optional(v.array(oneOf(REPORTABLE), 'must be a list'), []),
    revocations: v.optional(v.strictObject({
      retention: v.optional(within(1000, 4000 * DAY, 'milliseconds'), 30 * DAY)
    }), {}),
    permissions: v.optional(fn<AskUser>()),
    enrich: v.optional(enrich),
    rooms: v.optional(roomOptions, {}),
    cluster: v.optional(v.custom<ClusterDriver>(
      given => typeof given === 'object' && given !== null && 'join' in given && typeof given.join === 'function',
      'must be a cluster, as redisCluster(client) makes one')),
    audit: v.optional(fn<NonNullable<HybridAuthOptions['audit']>>())
  }, 'must be an object'),
  v.forward(v.check(given => given.jwt !== undefined || given.session !== undefined || given.introspection !== undefined, 'is required, or session is, or introspection: nothing could authenticate anybody'), ['jwt']))

/** The options after validation: every default in place, every list a list. */
export type ParsedOptions = v.InferOutput<typeof schema>
export type ParsedJwtOptions = v.InferOutput<typeof jwt>
export type ParsedSessionOptions = v.InferOutput<typeof session>

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the option's path */
export function parseOptions (given: unknown): ParsedOptions {
  return parse(schema, given, '')
}
