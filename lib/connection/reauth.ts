/** A fresh credential for an open socket: verified by the same path, applied in one step, in the order it was sent. */
import { settledWithin, settleWithin } from '../deadline.js'
import { isRefusal, type Refusal } from '../errors.js'
import type { AuthContext } from '../../types/context.js'
import { attempt, unawaited, whenReady, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import { isStepUp } from '../policy/step-up.js'
import { parseClientFrame } from '../protocol.js'
import { retryAfterOf, setContext } from '../request.js'
import { withVersion } from '../verify/context.js'
import { closeConnection, RETRY_AFTER } from './closing.js'
import type { GuardedConnection } from './connection.js'
import { secondsUntil, sendFrame } from './control.js'
import { resumeStepUp } from './gate.js'
import { isOver, schedule } from './lifecycle.js'
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
    if (!connection.isOpen || isOver(connection) || turn < connection.refreshApplied) return
    if (isRefusal(verified)) refuse(connection, verified)
    else if (isRevoked(connection, verified)) refuse(connection, 'FST_HYBRID_AUTH_REVOKED_TOKEN')
    else apply(connection, verified, turn)
  })
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
  const current = withGranted(connection, next)
  unawaited(replaceContext(connection, current, connection.context.version + 1, {
    onHolds () {
      hub.audit.refreshed(connection)
      sendFrame(connection.socket, { type: 'auth_updated', expiresIn: secondsUntil(next.expiresAt) })
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
  if (JSON.stringify(granted.insteadOf) === JSON.stringify(next.permissions)) return Object.freeze({ ...next, permissions: granted.permissions })
  connection.granted = null
  return next
}

/** Who is told of a replaced context, and when. */
export interface Replacement {
  /** At once. */
  readonly onReplaced?: () => void
  /** The route's rule holds. */
  readonly onHolds?: () => void
  /** It does not, and the connection is about to be closed. */
  readonly onForbidden?: (unmet: Unmet) => void
}

/**
 * Swaps the context, the indexes and everything that follows from its times, in one step: what was lost is lost at once.
 * Then the route's rule is asked, and the connection ends if it no longer holds, and so are its rooms.
 * @returns when all of them have answered. Never rejects.
 */
export function replaceContext (connection: GuardedConnection, next: AuthContext, version: number, told: Replacement = {}): Maybe<void> {
  const { request, route } = connection
  const isNew = version !== connection.context.version
  const context = withVersion(next, version)
  route.hub.registry.rekey(connection, () => {
    connection.context = context
    setContext(request, context)
  })
  schedule(connection)
  if (!isNew) return
  told.onReplaced?.()
  const rule = recheckRule(connection, context, told)
  const rooms = route.hub.rooms.recheck(connection)
  return whenReady(rule, () => rooms)
}

function recheckRule (connection: GuardedConnection, context: AuthContext, { onHolds, onForbidden }: Replacement): Maybe<void> {
  const { request, route } = connection
  const failed = (error: unknown): Unmet => {
    route.hub.report(request, 'rule', error)
    return FORBIDDEN
  }
  const verdict = attempt(() => route.meets(context, request), failed)
  const inTime = verdict instanceof Promise ? settledWithin<Unmet | null>(verdict, route.hub.settings.handshakeTimeout, FORBIDDEN) : verdict
  return whenReady(inTime, unmet => {
    // A later context has its own answer, and may be there already.
    if (connection.context !== context || !connection.isOpen) return
    if (unmet === null) {
      onHolds?.()
      connection.announce('refresh', context)
      resumeStepUp(connection)
      return
    }
    onForbidden?.(unmet)
    if (isStepUp(unmet)) connection.say(stepUpFrame(unmet))
    closeConnection(connection, 'Forbidden', isStepUp(unmet) ? STEP_UP_CLOSE : {})
  })
}
