/** A fresh credential for an open socket: verified by the same path, applied in one step, in the order it was sent. */
import { settledWithin, settleWithin } from '../deadline.js'
import { isRefusal, type Refusal } from '../errors.js'
import type { AuthContext } from '../../types/context.js'
import { attempt, unawaited, whenReady, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import { StepUp } from '../policy/step-up.js'
import { parseClientFrame } from '../protocol.js'
import { retryAfterOf, setContext } from '../request.js'
import { withVersion } from '../verify/context.js'
import { closeConnection, RETRY_AFTER } from './closing.js'
import type { GuardedConnection } from './connection.js'
import { secondsUntil, sendFrame } from './control.js'
import { resumeStepUp } from './gate.js'
import { isOver, keepEnd, schedule } from './lifecycle.js'
import { isSame, whenCurrent } from './permissions.js'
import { STEP_UP_CLOSE, stepUpFrame } from './step-up.js'

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const TOO_MANY: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const MAX_FAILURES = 3
const MAX_IN_FLIGHT = 4
/** A frame that could hold the longest token that any option allows. */
const MAX_FRAME = 65_536 + 1024

/** Takes an `auth_update` frame. Whatever comes of it, exactly one answer or close follows, or none if a newer one was faster. */
export function reauthenticate (connection: GuardedConnection, data: Buffer): void {
  const { request, route: { hub } } = connection
  const turn = ++connection.refreshesBegun
  connection.speaks = true
  const frame = data.length > MAX_FRAME || connection.refreshesInFlight >= MAX_IN_FLIGHT ? null : parseClientFrame(data.toString('utf8'))
  connection.refreshesInFlight++
  const outcome = frame === null ? INVALID : hub.verifiers.verifyToken(request, frame.token)
  settleWithin(outcome, hub.settings.handshakeTimeout, UNAVAILABLE, verified => {
    connection.refreshesInFlight--
    if (isRefusal(verified)) take(connection, verified, turn)
    else whenCurrent(hub, verified, current => { take(connection, current, turn) })
  })
}

function take (connection: GuardedConnection, verified: AuthContext | Refusal, turn: number): void {
  if (!connection.isOpen || isOver(connection) || turn < connection.refreshApplied) return
  if (isRefusal(verified)) refuse(connection, verified)
  else if (isRevoked(connection, verified)) refuse(connection, 'FST_HYBRID_AUTH_REVOKED_TOKEN')
  else apply(connection, verified, turn)
}

/** Since it was verified, or all along: the credential that has to be replaced does not replace itself. */
function isRevoked ({ context, revoked, route }: GuardedConnection, next: AuthContext): boolean {
  return route.hub.revocations.covers(next) ||
    (revoked !== null && isSameToken(context, next))
}

function isSameToken (a: AuthContext, b: AuthContext): boolean {
  return a.authType !== 'session' && b.authType !== 'session' && a.tokenId === b.tokenId
}

function apply (connection: GuardedConnection, next: AuthContext, turn: number): void {
  const { hub } = connection.route
  if (!hasSameIdentity(connection.context, next)) {
    hub.audit.identityChanged(connection)
    closeConnection(connection, 'IdentityChanged')
    return
  }
  connection.refreshApplied = turn
  connection.failedRefreshes = 0
  connection.revoked = null
  // The same token, sent again, does not undo what was set since.
  if (!isSameToken(connection.context, next)) connection.granted = null
  hub.watches.get(next.authType)?.begin(connection, next)
  const current = withGranted(connection, next)
  const tell = (): void => { sendFrame(connection.socket, { type: 'auth_updated', expiresIn: secondsUntil(next.expiresAt) }) }
  const onHolds = (): void => { hub.audit.refreshed(connection) }
  unawaited(replaceContext(connection, current, connection.context.version + 1, {
    tell,
    onHolds,
    // Only the permissions are others: the credential is the one that counts.
    onSuperseded () {
      if (connection.refreshApplied !== turn) return
      tell()
      onHolds()
    },
    onForbidden (unmet) { hub.audit.refreshRefused(connection, unmet.code) }
  }))
}

function refuse (connection: GuardedConnection, code: Refusal): void {
  const { socket, route: { hub } } = connection
  hub.audit.refreshRefused(connection, code)
  if (code === UNAVAILABLE) {
    sendFrame(socket, { type: 'error', code: 'unavailable', message: 'The credential cannot be verified at the moment', action: 'retry' })
    return
  }
  connection.failedRefreshes++
  const isLast = connection.failedRefreshes >= MAX_FAILURES
  if (code === TOO_MANY) {
    const retryAfterMs = retryAfterOf(connection.request, code, RETRY_AFTER)
    if (isLast) closeConnection(connection, 'RateLimited', { retryAfterMs })
    else sendFrame(socket, { type: 'error', code: 'rate_limited', message: 'Too many attempts to authenticate have failed', action: 'retry', retryAfterMs })
    return
  }
  if (isLast) closeConnection(connection, 'RefreshFailed')
  else sendFrame(socket, { type: 'error', code: 'refresh_failed', message: 'The credential was refused', action: 'refresh' })
}

/**
 * A connection belongs to one user of one issuer and one tenant for life. A session is an issuer of its own: were it
 * replaced by a token, its logout would no longer reach the socket.
 */
export function hasSameIdentity (a: AuthContext, b: AuthContext): boolean {
  return a.issuer === b.issuer && a.userId === b.userId && a.tenantId === b.tenantId &&
    (a.authType === 'session') === (b.authType === 'session')
}

/** The same session, read again, does not undo what was set since; one that says something else does. */
export function withGranted (connection: GuardedConnection, next: AuthContext): AuthContext {
  const { granted } = connection
  if (granted === null) return next
  if (isSame(granted.insteadOf, next.permissions)) return Object.freeze({ ...next, permissions: granted.permissions })
  connection.granted = null
  return next
}

/** Who is told of a replaced context, and when. */
export interface Replacement {
  /** At once. */
  readonly onReplaced?: () => void
  /** The route's rule holds: what the client is told, before its rooms are asked again. */
  readonly tell?: () => void
  /** …and what others are told, after that. */
  readonly onHolds?: () => void
  /** Before the rule has answered, there was another context. */
  readonly onSuperseded?: () => void
  /** It does not, and the connection is about to be closed. */
  readonly onForbidden?: (unmet: Unmet) => void
}

/**
 * Swaps the context, the indexes and everything that follows from its times, in one step: what was lost is lost at once.
 * Then the route's rule and the rooms are asked: the connection ends if the rule no longer holds, and is out of the rooms that it lost.
 * @returns when all of them have answered. Never rejects.
 */
export function replaceContext (connection: GuardedConnection, next: AuthContext, version: number, told: Replacement = {}): Maybe<void> {
  const { request, route } = connection
  const isNew = version !== connection.context.version
  const context = withVersion(next, version)
  const { authenticatedAt, expiresAt } = connection.context
  route.hub.registry.rekey(connection, () => {
    connection.context = context
    setContext(request, context)
  })
  // What has the same end is not asked for a second time.
  if (authenticatedAt === context.authenticatedAt && expiresAt === context.expiresAt) keepEnd(connection)
  else schedule(connection)
  if (!isNew) return
  const verdict = askRule(connection, context)
  if (verdict === null) told.tell?.()
  // Before anybody else hears of it, who might say something in a room.
  const rooms = route.hub.rooms.recheck(connection)
  told.onReplaced?.()
  const rule = whenReady(verdict, unmet => {
    if (!connection.isOpen) return
    // A later context has its own answer, and may be there already.
    if (connection.context.version !== version) told.onSuperseded?.()
    else if (unmet !== null) endBecause(connection, unmet, told)
    else {
      if (verdict !== null) told.tell?.()
      told.onHolds?.()
      connection.announce('refresh', context)
      resumeStepUp(connection)
    }
  })
  return whenReady(rule, () => rooms)
}

function askRule ({ request, route }: GuardedConnection, context: AuthContext): Maybe<Unmet | null> {
  const verdict = attempt(() => route.meets(context, request), error => {
    route.hub.report(request, 'rule', error)
    return FORBIDDEN
  })
  return verdict instanceof Promise ? settledWithin<Unmet | null>(verdict, route.hub.settings.handshakeTimeout, FORBIDDEN) : verdict
}

function endBecause (connection: GuardedConnection, unmet: Unmet, { onForbidden }: Replacement): void {
  onForbidden?.(unmet)
  if (unmet instanceof StepUp) connection.say(stepUpFrame(unmet, 'stop'))
  closeConnection(connection, 'Forbidden', unmet instanceof StepUp ? STEP_UP_CLOSE : {})
}
