import type { KeyObject } from 'node:crypto'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import type { CloseName } from '../lib/protocol.js'
import type { IntrospectionSource } from '../lib/verify/introspector.js'
import type { KeySource } from '../lib/verify/key-source.js'
import type { AuditEvent } from './audit.js'
import type { Claims, Identity } from './context.js'
import type { RoomOptions } from './rooms.js'

/** The signature algorithms of RFC 7518 §3.1 and RFC 8037 that are accepted; `none` never is. */
export type Algorithm =
  | 'HS256' | 'HS384' | 'HS512'
  | 'RS256' | 'RS384' | 'RS512' | 'PS256' | 'PS384' | 'PS512'
  | 'ES256' | 'ES384' | 'ES512'
  | 'EdDSA'

/** A secret (HS), or a public key or certificate as PEM or KeyObject; never a private key. */
export type KeyMaterial = string | Buffer | KeyObject

/** A key that serves one algorithm only, where more than one of `algorithms` would fit it (RFC 8725 §3.1). */
export interface PinnedKey { key: KeyMaterial, algorithm: Algorithm }

/** The protected header (RFC 7515 §4) as a key function sees it: checked for shape, not yet for signature. */
export interface JoseHeader {
  readonly alg: Algorithm
  readonly kid?: string
  readonly typ?: string
}

/** Finds the key of a token. null or undefined: there is none, and the token is refused. */
export type KeyFunction = (header: JoseHeader) =>
  KeyMaterial | PinnedKey | null | undefined | Promise<KeyMaterial | PinnedKey | null | undefined>

export interface JwtOptions {
  /**
   * What verifies the signature. An object maps each `kid` to its key. A function is asked once per token and bounded
   * by `handshakeTimeout`; a verdict reached with its key is kept for at most 30 s. `jwks()` and `discover()` of
   * `fastify-hybrid-auth/providers` are the keys that an issuer publishes.
   */
  key: KeyMaterial | PinnedKey | Readonly<Record<string, KeyMaterial | PinnedKey>> | KeyFunction | KeySource
  /** The accepted `alg` values, of one family: HS, RS and PS, ES, or EdDSA. */
  algorithms: readonly Algorithm[]
  /** The exact `iss`, or a list of them. Required in the token once set. @default not checked */
  issuer?: string | readonly string[] | undefined
  /** The exact `aud`, or a list of which the token must name one. Required in the token once set. @default not checked */
  audience?: string | readonly string[] | undefined
  /** The required `typ` header; `application/at+jwt` equals `at+jwt`. @default not checked */
  typ?: string | undefined
  /** How far the clocks may differ, in seconds, 0 to 300. @default 0 */
  clockTolerance?: number | undefined
  /** How long after its `iat` a token is accepted, in seconds. Makes `iat` required. @default no limit */
  maxAge?: number | undefined
  /** In characters. A longer token is refused unread. @default 8192 */
  maxTokenLength?: number | undefined
  /** Accepts a token without `exp`. @default false */
  allowNoExpiry?: boolean | undefined
  /**
   * Who the claims describe. null refuses the token.
   * @default `sub`, `role`, `permissions` or else `scope` split at spaces, and `companyId` as the tenant
   */
  user?: ((claims: Claims) => Identity | null | Promise<Identity | null>) | undefined
}

/** What signs session cookies; `@fastify/cookie`'s `Signer` is one. */
export interface CookieSigner {
  sign (value: string): string
  unsign (value: string): { valid: boolean, value: string | null }
}

/** The part of an express-session store that is used: reading, and extending if asked for. */
export interface SessionStore {
  get (sessionId: string, callback: (error: unknown, session?: unknown) => void): unknown
  /** Extends a session without writing its data. Required by `session.touch`. */
  touch? (sessionId: string, session: unknown, callback: (error?: unknown) => void): unknown
}

/**
 * The session as the store holds it. `@fastify/session` widens it by declaration merging:
 * `declare module 'fastify' { interface Session { user?: … } }`.
 */
export type StoredSession = import('fastify').Session

export interface SessionOptions {
  /**
   * Who the session belongs to. null is nobody: that a session exists proves nothing.
   */
  user: (session: StoredSession) => Identity | null | undefined | Promise<Identity | null | undefined>
  /**
   * Read sessions from this store directly, so that no session hook runs on a handshake and a store that is down
   * refuses nobody who has a bearer. @default what @fastify/session loaded for the request
   */
  store?: SessionStore | undefined
  /** What signed the cookie, as given to @fastify/session. Required with `store`. */
  secret?: string | Buffer | ReadonlyArray<string | Buffer> | CookieSigner | undefined
  /** As given to @fastify/session. @default 'sessionId' */
  cookieName?: string | undefined
  /** As given to @fastify/session. @default '' */
  cookiePrefix?: string | undefined
  /** How often the session of an open socket is read again, in milliseconds. @default 30000 */
  revalidate?: number | undefined
  /**
   * What happens to open sockets whose session cannot be read: they are served until `maxStale`, or closed with 4012 at
   * once. @default 'serve'
   */
  onStoreError?: 'serve' | 'close' | undefined
  /** How long a socket is served after the last good reading of its session, in milliseconds. @default 300000 */
  maxStale?: number | undefined
  /**
   * Whether messages of the application extend the session, as requests do with a rolling session; at most once per
   * `revalidate`, through the store's `touch`, which leaves its data alone. @default false
   */
  touch?: boolean | undefined
}

export interface CredentialOptions {
  /** Reads `?token=` of the URL (RFC 6750 §2.3). URLs are logged, so the logger must leave it out. @default false */
  query?: boolean | undefined
  /** Reads `bearer.<token>` offered beside `hybrid-auth.v1` as a subprotocol. @default true */
  subprotocol?: boolean | undefined
  /** Reads `?ticket=` of an upgrade, as `issueTicket()` made it. @default true */
  ticket?: boolean | undefined
  /** Starts although the logger would print a token given in the URL. @default false */
  allowTokenInLogs?: boolean | undefined
}

/** As the option `enrich` is given. Members are the application's own, as those of {@link Identity}. */
export type Enrich = (identity: Identity) => object | null | undefined | Promise<object | null | undefined>

/** A limit that can be tried out. */
export type Reportable = 'origin' | 'tls' | 'failures' | 'connections' | 'connects' | 'rate'

export interface HybridAuthOptions {
  /** Bearer JWTs. @default off */
  jwt?: JwtOptions | undefined
  /** Session cookies. @default off */
  session?: SessionOptions | undefined
  /**
   * Opaque tokens, which their authorization server is asked about (RFC 7662): `introspection({ … })` of
   * `fastify-hybrid-auth/providers`. With `jwt` as well, a token that is a JWT is never asked about. @default off
   */
  introspection?: IntrospectionSource | undefined
  /**
   * Origins whose pages may open a socket, or use a session for an unsafe method: `https://app.example.com`, or
   * `https://*.example.com` for one or more whole labels. @default the request's own scheme and host
   */
  origins?: readonly string[] | undefined
  /**
   * What a refused bearer leads to. `invalid`: the session is tried next. `absent`: a refusal; the session is tried
   * only where no bearer came. @default 'invalid'
   */
  fallback?: 'invalid' | 'absent' | undefined
  credentials?: CredentialOptions | undefined
  /** Which WebSocket routes are guarded: `all` but those with `auth: false`, or only those with `auth`. @default 'all' */
  guard?: 'all' | 'opt-in' | undefined
  /**
   * How an upgrade is refused. `http`: by status. `close`: accepted and closed with a code. `auto`: `close` for a client
   * that offered `hybrid-auth.v1`, else `http`. @default 'auto'
   */
  refuse?: 'auto' | 'http' | 'close' | undefined
  /** How long everything asynchronous of one handshake may take, in milliseconds. @default 10000 */
  handshakeTimeout?: number | undefined
  /**
   * How long a socket outlives its credential, in milliseconds. @default 0; 25000 for sockets that can refresh in-band
   */
  expiryGrace?: number | undefined
  /** How long a socket may be open at all, in milliseconds. @default no limit */
  maxConnectionAge?: number | undefined
  /** Closes a socket (4003) on which no message of the application came for so many milliseconds. @default off */
  idleTimeout?: number | undefined
  /**
   * Pings every `interval` and cuts off who sent nothing for `timeout` after it, in milliseconds; false for never.
   * @default { interval: 25000, timeout: 10000 }
   */
  heartbeat?: false | { interval?: number | undefined, timeout?: number | undefined } | undefined
  /**
   * `app.close()`: sockets are closed with 1012 and told to come back within `window`; who has not answered by `deadline`
   * is cut off. In milliseconds. @default { window: 5000, deadline: 10000 }
   */
  drain?: { window?: number | undefined, deadline?: number | undefined } | undefined
  /** Other codes for rows of the close-code table, 3000 to 4999. @default the table */
  closeCodes?: Partial<Record<CloseName, number | undefined>> | undefined
  /**
   * Credentials that look like guesses: a forged signature, a malformed token, an unknown key, a forged cookie or ticket. From
   * one address (of IPv6 a /64), or for one claimed identity, on all nodes together: `max` within `window` milliseconds raise
   * `brute_force_suspected`, and the next ones are refused with 429. `block`: with `credential` a good credential still passes,
   * so everything has to be verified; with `address` the address is refused unseen, before any key or store is asked. What is
   * merely expired, revoked or absent never counts. @default { max: 10, window: 300000, block: 'credential' }
   */
  failures?: false | {
    max?: number | undefined
    window?: number | undefined
    block?: 'credential' | 'address' | undefined
  } | undefined
  /** Refuses upgrades that did not come by TLS, as Fastify's `trustProxy` tells it. @default false */
  requireTls?: boolean | undefined
  /**
   * What is only logged and counted, and refuses nobody: for trying a limit out.
   * @default []
   */
  report?: readonly Reportable[] | undefined
  limits?: {
    /** How many sockets may wait for their first message at once. @default 1000 */
    pending?: number | undefined
    /** How many of them from one address (of IPv6 a /64). @default as many as `pending` */
    pendingPerIp?: number | undefined
    /**
     * How many sockets a user of one tenant, or an address (of IPv6 a /64), may open a minute, on all nodes together. One more
     * is refused with 429, or closed with 4008, and told when to come back. @default no limit
     */
    connects?: { perUser?: number | undefined, perIp?: number | undefined } | undefined
    /**
     * How many sockets may be open at once, on all nodes together: of a user of one tenant, from an address (of IPv6 a /64),
     * of a tenant. `reject`: one more is refused with 429, or closed with 4009. `evict-oldest`: the oldest is closed with
     * 4009 for it. @default no limit, 'reject'
     */
    connections?: {
      perUser?: number | undefined
      perIp?: number | undefined
      perTenant?: number | undefined
      policy?: 'reject' | 'evict-oldest' | undefined
    } | undefined
  } | undefined
  revocations?: {
    /**
     * How long a revocation without an end of its own is kept, in milliseconds: at least as long as sessions and tokens
     * live. Tokens that were seen to live longer prolong it. @default 30 days
     */
    retention?: number | undefined
  } | undefined
  /**
   * What a user may do, in place of what its credential says: asked at every authentication, once for all who wait for the same
   * identity, and remembered for 30 s, or until `refreshPermissions()` or `setPermissions()`. What it throws, and any answer
   * but a list of texts, refuses with 503. @default what the identity says
   */
  permissions?: ((identity: Identity) => readonly string[] | Promise<readonly string[]>) | undefined
  /**
   * More of who a user is, from a user service or a database: members that join `auth.user`. A `role`, `tenantId`, `permissions` or
   * `acr` among them counts as if the credential had said so; `userId` stays. Asked before `permissions`, as that is, and again for
   * open sockets after `refreshPermissions()`. What it throws, and any answer but an object, null or undefined, refuses with 503.
   * @default nothing
   */
  enrich?: Enrich | {
    ask: Enrich
    /** How long an answer is good, in milliseconds. @default 30000 */
    maxAge?: number | undefined
    /** Whether the nodes of a cluster remember answers together, in its Redis, as JSON. @default false: each for itself */
    shared?: boolean | undefined
  } | undefined
  /** Who may be in which rooms, and how much of them. @default whoever the server joins */
  rooms?: RoomOptions | undefined
  /** The other processes: `redisCluster(client)` of `fastify-hybrid-auth/redis`. @default this process alone */
  cluster?: ClusterDriver | undefined
  /**
   * Receives every decision, in order, behind it. It can neither change nor delay one: what it throws is ignored, and where it
   * does not keep up (10 000 events wait, 100 promises are waited for at once), events are dropped and counted.
   * @default none
   */
  audit?: ((event: AuditEvent) => unknown) | undefined
}
