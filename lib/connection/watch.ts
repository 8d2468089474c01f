/** Credentials of open sockets that somebody else may end, asked about again: one question a credential, however many sockets have it. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import { settledWithin } from '../deadline.js'
import { isRefusal, type Refusal } from '../errors.js'
import { unawaited } from '../maybe.js'
import type { Renewal, Watched } from '../verify/watched.js'
import { fromEpoch, now } from './clock.js'
import { closeConnection } from './closing.js'
import type { GuardedConnection } from './connection.js'
import type { Settings } from './hub.js'
import { isOver } from './lifecycle.js'
import { isSame, permissionUpdate, whenCurrent } from './permissions.js'
import { Quota } from './quota.js'
import { hasSameIdentity, replaceContext, withGranted } from './reauth.js'
import type { Registry } from './registry.js'

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
/** Questions are spread, so that credentials of one second are not asked about in one. */
const JITTER = 0.1
/** What ends so soon, in milliseconds, has ended by another clock. */
const ABOUT_TO_END = 10_000

export class CredentialWatch {
  readonly #watched: Watched
  readonly #timeout: number
  readonly #registry: Registry
  readonly #asking = new Map<string, Promise<void>>()
  readonly #quota: Quota
  readonly #inLine = new Set<string>()
  /** There was no answer to the last question. */
  #isAway = false

  constructor (watched: Watched, { handshakeTimeout }: Settings, registry: Registry) {
    this.#watched = watched
    this.#timeout = handshakeTimeout
    this.#registry = registry
    this.#quota = new Quota(watched.perSecond)
  }

  /** When the credential of a connection is asked about again. */
  next ({ readAt, phase }: GuardedConnection): number {
    return readAt + this.#watched.revalidate * (1 - JITTER * phase)
  }

  stop (): void {
    this.#quota.stop()
  }

  /** Asks about the credential and brings every socket of it up to date. Never rejects. */
  ask (request: FastifyRequest, context: AuthContext): Promise<void> {
    const key = keyOf(context)
    const known = this.#asking.get(key)
    if (known !== undefined) return known
    this.#inLine.add(key)
    // Whoever it is asked for may have gone while it waited for its turn.
    const asking = this.#quota.enter(() => this.#registry.sharing(context).length > 0).then(async leave => {
      this.#inLine.delete(key)
      if (leave === null) {
        this.#asking.delete(key)
        return
      }
      const outcome = await settledWithin(this.#askNow(request, context), this.#timeout, UNAVAILABLE)
      this.#asking.delete(key)
      leave()
      this.#isAway = outcome === UNAVAILABLE
      for (const connection of this.#registry.sharing(context)) this.#apply(connection, outcome)
    })
    this.#asking.set(key, asking)
    return asking
  }

  /** When a connection has waited too long for its turn in the line; 0: it does not wait, or while answers come its own is only late. */
  tooLateAt ({ isReading, context, readWellAt }: GuardedConnection): number {
    return isReading && this.#isAway && this.#inLine.has(keyOf(context)) ? readWellAt + this.#watched.maxStale : 0
  }

  /** After a credential was verified: it may have been remembered. */
  begin (connection: GuardedConnection, context: AuthContext): void {
    connection.readAt = Math.min(now(), fromEpoch(this.#watched.since(context)))
    connection.readWellAt = connection.readAt
  }

  async #askNow (request: FastifyRequest, context: AuthContext): Promise<Renewal | Refusal> {
    return this.#watched.renew(request, context, () => this.#takeUse(context))
  }

  #takeUse (context: AuthContext): boolean {
    const used = this.#registry.sharing(context).filter(({ isUsed }) => isUsed)
    for (const connection of used) connection.isUsed = false
    return used.length > 0
  }

  #apply (connection: GuardedConnection, outcome: Renewal | Refusal): void {
    // What an earlier one's listener has closed is not brought back.
    if (!connection.isOpen || isOver(connection)) return
    const time = now()
    connection.readAt = time
    if (outcome === UNAVAILABLE) this.#serveOrClose(connection, time)
    else if (isRefusal(outcome)) this.#end(connection, outcome)
    else {
      connection.readWellAt = time
      const key = keyOf(connection.context)
      whenCurrent(connection.route.hub, outcome(connection.context), next => {
        // The source may have been waited for, and another credential or a later answer have come.
        if (!connection.isOpen || isOver(connection) || keyOf(connection.context) !== key || connection.readAt !== time) return
        if (isRefusal(next)) this.#serveOrClose(connection, now())
        else update(connection, withGranted(connection, next))
      })
    }
  }

  /** Whoever ended it did not tell us. */
  #end (connection: GuardedConnection, refusal: Refusal): void {
    const { context: { authType, expiresAt }, route: { hub } } = connection
    // What is over has its grace, whenever that is said.
    if (refusal === 'FST_HYBRID_AUTH_EXPIRED_TOKEN' && expiresAt !== null && expiresAt <= Date.now()) {
      hub.lookAt(connection)
      return
    }
    const isExpired = refusal === 'FST_HYBRID_AUTH_EXPIRED_SESSION' || refusal === 'FST_HYBRID_AUTH_EXPIRED_TOKEN' ||
      (authType !== 'session' && expiresAt !== null && expiresAt - Date.now() < ABOUT_TO_END)
    if (isExpired) hub.audit.expired(connection)
    else hub.audit.revoked(connection, { id: null, reason: this.#watched.goneReason })
    closeConnection(connection, isExpired ? 'AuthenticationExpired' : 'Revoked')
  }

  #serveOrClose (connection: GuardedConnection, time: number): void {
    const { onError, maxStale } = this.#watched
    if (onError === 'close' || time - connection.readWellAt >= maxStale) closeConnection(connection, 'Unavailable')
    else connection.route.hub.lookAt(connection)
  }
}

function keyOf (context: AuthContext): string {
  return context.authType === 'session' ? context.sessionId : JSON.stringify([context.issuer, context.tokenId])
}

/** A new version where the user changed; the same one with its new end where only that did. */
function update (connection: GuardedConnection, next: AuthContext): void {
  const { context, route: { hub } } = connection
  if (!hasSameIdentity(context, next)) {
    hub.audit.identityChanged(connection)
    closeConnection(connection, 'IdentityChanged')
    return
  }
  if (!hub.revocations.covers(next)) connection.revoked = null
  const isOtherRights = !isSame(context.permissions, next.permissions)
  const isChanged = isOtherRights || userOf(context) !== userOf(next) || claimsOf(context) !== claimsOf(next)
  unawaited(replaceContext(connection, next, isChanged ? context.version + 1 : context.version, {
    onReplaced () { if (isOtherRights) hub.audit.permissionsChanged(connection) },
    tell () { if (isOtherRights) connection.say(permissionUpdate(context.permissions, next.permissions)) }
  }))
}

/** In whatever order its permissions are, which are compared by themselves. */
function userOf ({ user }: AuthContext): string {
  return JSON.stringify({ ...user, permissions: null })
}

/** What an answer says beside its times. */
function claimsOf (context: AuthContext): string {
  if (context.authType === 'session') return ''
  const { exp: _exp, iat: _iat, nbf: _nbf, expires_in: _left, scope, ...rest } = context.claims
  const members = Object.entries({ ...rest, scope: typeof scope === 'string' ? scope.split(' ').sort() : scope })
  return JSON.stringify(members.sort(([a], [b]) => a < b ? -1 : 1))
}

/** Whether a message has to wait until the session was read again. */
export function isStale ({ context, readAt, route: { sessionMaxAge } }: GuardedConnection): boolean {
  return sessionMaxAge !== undefined && context.authType === 'session' && now() - readAt > sessionMaxAge
}

/** Asks about the credential of a connection, and brings everything up to date that came with it. Never rejects. */
export async function askAgain (connection: GuardedConnection): Promise<void> {
  const { context, request, route: { hub } } = connection
  connection.isReading = true
  try {
    await hub.watches.get(context.authType)?.ask(request, context)
  } finally {
    connection.isReading = false
  }
  hub.lookAt(connection)
}
