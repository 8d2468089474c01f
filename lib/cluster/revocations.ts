/** Every live revocation, found by what it kills in the time of a few Map reads. */
import type { AuthContext } from '../../types/context.js'
import { wheel } from '../wheel.js'

/**
 * What a revocation is aimed at. A login is a session at an OpenID provider, of which credentials may tell (`sid`). A subject is whom
 * tokens name that tell of no login.
 */
export const KINDS = ['user', 'session', 'token', 'tenant', 'login', 'subject'] as const
export type RevocationKind = typeof KINDS[number]

/** One revocation. Times are in milliseconds since the epoch. */
export interface Revocation {
  readonly id: string
  readonly kind: RevocationKind
  /** The user's, session's, token's or tenant's id; of a login at a provider its `sid`, of a subject its `sub`. */
  readonly key: string
  /** Only what this issuer issued; null: what names none. */
  readonly issuer?: string | null
  /** Only the user of this tenant; null: of none. */
  readonly tenantId?: string | null
  /** Only credentials that are older. */
  readonly issuedBefore?: number
  readonly reason: string
  /** Only credentials that tell of no login: another one may be theirs. */
  readonly besides?: boolean
  /** The session was destroyed, and is in no store any more. */
  readonly isLogout?: boolean
  /** How long an open socket has to bring another credential, in milliseconds; 0: none. */
  readonly reauthWithin: number
  readonly at: number
  /** When nothing that it kills can be alive any more; null: never. */
  readonly expiresAt: number | null
}

type Index = Map<string, Revocation[]>

/** How long what is over may stay: it kills nothing meanwhile. */
const SWEEP = 30_000

export class Revocations {
  readonly #byId = new Map<string, Revocation>()
  readonly #users: Index = new Map()
  readonly #sessions: Index = new Map()
  readonly #tokens: Index = new Map()
  readonly #tenants: Index = new Map()
  readonly #logins: Index = new Map()
  readonly #subjects: Index = new Map()
  /** By the sweep that will drop them, so that a sweep costs what it drops. */
  readonly #endings = new Map<number, Revocation[]>()
  #swept = Math.floor(Date.now() / SWEEP)
  readonly #sweeper = { due: -1, position: 0, look: () => { this.#sweep() } }
  #latest = 0
  #isStopped = false
  /** Whether those that were made before this process began are here. Until then nobody can be told from who was revoked. */
  isComplete = true

  get size (): number {
    return this.#byId.size
  }

  /** false: it is known already, or over. */
  add (revocation: Revocation): boolean {
    const { id, kind, key, expiresAt } = revocation
    if (this.#byId.has(id) || isPast(expiresAt)) return false
    this.#byId.set(id, revocation)
    push(this.#indexOf(kind), key, revocation)
    if (expiresAt !== null) {
      push(this.#endings, Math.ceil(expiresAt / SWEEP), revocation)
      if (this.#sweeper.due === -1 && !this.#isStopped) wheel.schedule(this.#sweeper, SWEEP)
    }
    return true
  }

  has (id: string): boolean {
    return this.#byId.has(id)
  }

  live (): Iterable<Revocation> {
    return this.#byId.values()
  }

  /** Whether the credential behind a context is revoked. Asked at every handshake, and on the hot path. */
  covers (context: AuthContext): boolean {
    return this.find(context) !== null
  }

  /** The revocation that kills the credential behind a context; null: there is none. */
  find (context: AuthContext): Revocation | null {
    if (this.#byId.size === 0) return null
    const { userId, tenantId } = context
    return firstToKill(this.#users.get(userId), context) ??
      firstToKill(context.authType === 'session' ? this.#sessions.get(context.sessionId) : this.#tokens.get(context.tokenId), context) ??
      (tenantId === null ? null : firstToKill(this.#tenants.get(tenantId), context)) ??
      this.#findLogout(context)
  }

  #findLogout (context: AuthContext): Revocation | null {
    if (this.#logins.size === 0 && this.#subjects.size === 0) return null
    const login = keyOf('login', context)
    const subject = keyOf('subject', context)
    return (login === null ? null : firstToKill(this.#logins.get(login), context)) ??
      (subject === null ? null : firstToKill(this.#subjects.get(subject), context))
  }

  isLoggedOut (sessionId: string): boolean {
    return this.#sessions.get(sessionId)?.some(({ isLogout, expiresAt }) => isLogout === true && !isPast(expiresAt)) === true
  }

  /** Remembers how long tokens live: what is revoked without an end is kept until the last of those that were seen is over. */
  saw ({ authType, expiresAt }: AuthContext): void {
    // An opaque token without an end has one that its server knows.
    if (authType !== 'session' && (authType === 'jwt' || expiresAt !== null)) this.#latest = Math.max(this.#latest, expiresAt ?? Infinity)
  }

  /** When everything that exists at `time` is over, as far as is known here; null: never. */
  endOf (time: number, retention: number): number | null {
    const end = Math.max(time + retention, this.#latest)
    return end === Infinity ? null : end
  }

  /** Nothing is swept any more. */
  stop (): void {
    this.#isStopped = true
    wheel.remove(this.#sweeper)
  }

  #sweep (): void {
    const until = Math.floor(Date.now() / SWEEP)
    // After a clock was set, there may be fewer endings than sweeps, or endings before the last sweep.
    const isSteady = until >= this.#swept && until - this.#swept <= this.#endings.size
    const sweeps = isSteady ? range(this.#swept + 1, until) : [...this.#endings.keys()]
    for (const sweep of sweeps) {
      if (sweep > until) continue
      for (const revocation of this.#endings.get(sweep) ?? []) this.#drop(revocation)
      this.#endings.delete(sweep)
    }
    this.#swept = until
    if (this.#endings.size > 0) wheel.schedule(this.#sweeper, SWEEP)
  }

  #drop (revocation: Revocation): void {
    const index = this.#indexOf(revocation.kind)
    const left = index.get(revocation.key)?.filter(other => other !== revocation)
    this.#byId.delete(revocation.id)
    if (left?.length === 0) index.delete(revocation.key)
    else if (left !== undefined) index.set(revocation.key, left)
  }

  #indexOf (kind: RevocationKind): Index {
    switch (kind) {
      case 'user': return this.#users
      case 'session': return this.#sessions
      case 'token': return this.#tokens
      case 'tenant': return this.#tenants
      case 'login': return this.#logins
      case 'subject': return this.#subjects
    }
  }
}

function firstToKill (revocations: readonly Revocation[] | undefined, context: AuthContext): Revocation | null {
  if (revocations === undefined) return null
  for (const revocation of revocations) if (kills(revocation, context)) return revocation
  return null
}

function kills (revocation: Revocation, context: AuthContext): boolean {
  return isAimedAt(revocation, context) && !isPast(revocation.expiresAt) && !isNewLogin(revocation, context) &&
    (revocation.issuedBefore === undefined || isOlder(context, revocation.issuedBefore))
}

/**
 * Of an opaque token that does not say when it was issued, its own server knows whether it came before the logout there, and was asked
 * again since. Refused for its age, its user could not come back.
 */
function isNewLogin ({ kind, at }: Revocation, context: AuthContext): boolean {
  return kind === 'subject' && context.authType === 'oauth2' && context.claims.iat === undefined && context.authenticatedAt > at
}

/** Whether the context is one of those that are meant, whatever its age. */
export function isAimedAt ({ kind, key, issuer, tenantId, besides }: Revocation, context: AuthContext): boolean {
  return keyOf(kind, context) === key &&
    (issuer === undefined || context.issuer === issuer || mayBeOf(kind, context)) &&
    (besides !== true || loginOf(context) === null) && (tenantId === undefined || context.tenantId === tenantId)
}

/**
 * Whether the credential was issued before. `iat` is in whole seconds (RFC 7519 §2): what was issued in the same second
 * is not older, or the token that follows a change of the password would be dead on arrival. One that does not say when
 * it was issued is older than anything.
 */
export function isOlder (context: AuthContext, time: number): boolean {
  if (context.authType === 'session') return (context.user.issuedAt ?? -Infinity) < time
  return (context.claims.iat ?? -Infinity) < Math.floor(time / 1000)
}

/** A session of our own names no issuer, and may still tell which login it came from; an answer about a token need not name one. */
function mayBeOf (kind: RevocationKind, { authType, issuer }: AuthContext): boolean {
  return issuer === null && ((kind === 'login' && authType !== 'jwt') || (kind === 'subject' && authType === 'oauth2'))
}

function keyOf (kind: RevocationKind, context: AuthContext): string | null {
  switch (kind) {
    case 'user': return context.userId
    case 'tenant': return context.tenantId
    case 'session': return context.authType === 'session' ? context.sessionId : null
    case 'token': return context.authType === 'session' ? null : context.tokenId
    case 'login': return loginOf(context)
    case 'subject': return context.authType === 'session' ? null : context.claims.sub ?? null
  }
}

/** The session at the provider that a credential came from; null: it does not tell. */
function loginOf (context: AuthContext): string | null {
  const sid: unknown = context.user.sid ?? (context.authType === 'session' ? null : context.claims.sid)
  return typeof sid === 'string' ? sid : null
}

function isPast (time: number | null): boolean {
  return time !== null && time <= Date.now()
}

function * range (from: number, to: number): Generator<number> {
  for (let i = from; i <= to; i++) yield i
}

function push<K> (index: Map<K, Revocation[]>, key: K, revocation: Revocation): void {
  const list = index.get(key)
  if (list === undefined) index.set(key, [revocation])
  else list.push(revocation)
}
