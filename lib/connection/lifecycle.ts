/**
 * When to look at a connection next, and what to do then: expiry, refresh, session, heartbeat and idleness are all
 * questions of time, and the wheel asks them together.
 */
import type { AuthContext } from '../../types/context.js'
import { AT_ONCE, fromEpoch, now } from './clock.js'
import { closeConnection } from './closing.js'
import type { Ending, GuardedConnection } from './connection.js'
import { sendFrame } from './control.js'
import { dropUnheard, giveUpStepUp } from './gate.js'
import { askAgain } from './watch.js'
import { HORIZON, wheel } from '../wheel.js'

/** The grace of sockets that can refresh, where `expiryGrace` says nothing. */
const REFRESH_GRACE = 25_000
/** A refresh is asked for at a random part of the lifetime between these, so that tokens of one second are not renewed in one. */
const [REFRESH_FROM, REFRESH_TO] = [0.7, 0.9]
/** …and at least so long before the end, where the lifetime is long enough for the parts to mean more. */
const REFRESH_AHEAD = 30_000
/** A session is read again so long before it ends: it may have been extended over HTTP. */
const READ_AHEAD = 2000
const MAX_HELD_TIME = 5000

/** Sets everything that follows from the context: after it was made, and after it was replaced. */
export function schedule (connection: GuardedConnection): void {
  const { context } = connection
  connection.refreshAt = context.authType === 'session' ? 0 : refreshTime(context)
  connection.isAsked = false
  keepEnd(connection)
}

/** After a context was replaced that has the same times: only what was revoked may be otherwise. */
export function keepEnd (connection: GuardedConnection): void {
  const { context, startedAt, route: { hub: { settings } } } = connection
  const canRefresh = connection.speaks && context.authType !== 'session'
  const grace = settings.expiryGrace ?? (canRefresh ? REFRESH_GRACE : 0)
  const credentialEnds = context.expiresAt === null ? Infinity : fromEpoch(context.expiresAt + grace)
  const ageEnds = settings.maxConnectionAge === undefined ? Infinity : startedAt + settings.maxConnectionAge
  const ends = Math.min(credentialEnds, ageEnds, connection.revoked?.by ?? Infinity)
  connection.endsAt = ends === Infinity ? 0 : ends
  lookAt(connection)
}

/** Sets an end that only another credential moves. false: it has one that is sooner. */
export function endBy (connection: GuardedConnection, by: number, revocation: Ending['revocation']): boolean {
  if (connection.revoked !== null && connection.revoked.by <= by) return false
  connection.revoked = { by, revocation }
  connection.endsAt = sooner(connection.endsAt, by)
  // One that is over already is looked at in its turn, by whom it ended.
  if (by !== AT_ONCE) lookAt(connection)
  return true
}

/** Past its end, and closed now if it was not yet. */
export function isOver (connection: GuardedConnection, time = now()): boolean {
  if (connection.endsAt === 0 || time < connection.endsAt) return false
  end(connection)
  return true
}

/** What the wheel does with a connection whose time has come. */
export function look (connection: GuardedConnection): void {
  if (!connection.isOpen) {
    connection.socket.terminate()
    return
  }
  const time = now()
  forgetFuture(connection, time)
  if (isOver(connection, time) || isIdle(connection, time) || isDead(connection, time) || isUnheard(connection, time)) return
  if (isDue(connection.refreshAt, time)) askToRefresh(connection)
  if (!connection.isReading && isDue(nextReading(connection), time)) askAgain(connection).catch(() => {})
  if (isDue(nextRelease(connection), time)) discard(connection)
  if (isDue(demandEnd(connection), time)) giveUpStepUp(connection)
  lookAt(connection)
}

/** One that is closed already waits for its peer, and stays where it is. */
export function lookAt (connection: GuardedConnection): void {
  if (!connection.isOpen) return
  const { endsAt, refreshAt, pingAt, lastMessageAt, route: { hub: { settings: { idleTimeout } } } } = connection
  let next = sooner(sooner(endsAt, refreshAt), sooner(pingAt, nextReading(connection)))
  next = sooner(next, demandEnd(connection))
  next = sooner(next, sooner(nextRelease(connection), idleTimeout === undefined ? 0 : lastMessageAt + idleTimeout))
  // Clocks are set forward and back: no connection goes unseen for longer than the wheel is round.
  wheel.schedule(connection, next === 0 ? HORIZON : Math.min(next - now(), HORIZON))
}

function end (connection: GuardedConnection): void {
  if (!connection.isOpen) return
  const { context, isAsked, revoked } = connection
  if (revoked !== null && now() >= revoked.by) {
    connection.route.hub.audit.revoked(connection, revoked.revocation)
    closeConnection(connection, 'Revoked')
    return
  }
  connection.route.hub.audit.expired(connection)
  const isCredential = context.expiresAt !== null && Date.now() >= context.expiresAt
  closeConnection(connection, isCredential && isAsked && connection.speaks ? 'RefreshTimeout' : 'AuthenticationExpired')
}

function refreshTime ({ expiresAt, authenticatedAt }: AuthContext): number {
  if (expiresAt === null) return 0
  const lifetime = expiresAt - authenticatedAt
  const part = authenticatedAt + lifetime * (REFRESH_FROM + Math.random() * (REFRESH_TO - REFRESH_FROM))
  const isLong = lifetime * (1 - REFRESH_FROM) > REFRESH_AHEAD
  return fromEpoch(isLong ? Math.min(part, expiresAt - REFRESH_AHEAD) : part)
}

function askToRefresh (connection: GuardedConnection): void {
  connection.refreshAt = 0
  connection.isAsked = true
  const left = Math.max(0, Number(connection.context.expiresAt) - Date.now())
  if (connection.speaks) sendFrame(connection.socket, { type: 'token_refresh_required', expiresIn: Math.ceil(left / 1000) })
  connection.announce('expiring', left)
}

/** 0: nobody is asked about the credential of this connection. */
function nextReading (connection: GuardedConnection): number {
  const { context, readAt, isReading, route: { hub } } = connection
  const watch = hub.watches.get(context.authType)
  if (watch === undefined) return 0
  if (isReading) return watch.tooLateAt(connection)
  const routine = watch.next(connection)
  const { expiresAt } = context
  // A token is not extended: the one after its end is another.
  if (context.authType !== 'session') return expiresAt !== null && Date.now() >= expiresAt ? 0 : routine
  const beforeEnd = expiresAt === null ? Infinity : fromEpoch(expiresAt - READ_AHEAD)
  return beforeEnd > readAt ? Math.min(routine, beforeEnd) : routine
}

/** 0: nothing waits for another credential. */
function demandEnd ({ demand, demandUntil }: GuardedConnection): number {
  return demand === null ? 0 : demandUntil
}

/** 0: nothing waits for a listener. */
function nextRelease ({ heldSince }: GuardedConnection): number {
  return heldSince === 0 ? 0 : heldSince + MAX_HELD_TIME
}

/** After the clock was set back, what happened lies ahead: as far as anybody can tell, it happened now. */
function forgetFuture (connection: GuardedConnection, time: number): void {
  const { heartbeat } = connection.route.hub.settings
  if (heartbeat !== false) connection.pingAt = Math.min(connection.pingAt, time + heartbeat.interval)
  connection.lastMessageAt = Math.min(connection.lastMessageAt, time)
  connection.readAt = Math.min(connection.readAt, time)
  connection.readWellAt = Math.min(connection.readWellAt, time)
  connection.heldSince = Math.min(connection.heldSince, time)
}

function isIdle (connection: GuardedConnection, time: number): boolean {
  const { idleTimeout } = connection.route.hub.settings
  if (idleTimeout === undefined || time < connection.lastMessageAt + idleTimeout) return false
  closeConnection(connection, 'Inactive')
  return true
}

/** Nobody answers, and before its turn would come to be asked about, it has not been known for too long whether its credential is good. */
function isUnheard (connection: GuardedConnection, time: number): boolean {
  const { context: { authType }, route: { hub } } = connection
  if (!isDue(hub.watches.get(authType)?.tooLateAt(connection) ?? 0, time)) return false
  closeConnection(connection, 'Unavailable')
  return true
}

/** Pings in turn; a peer that sent nothing since the ping is gone, and is not asked to close. */
function isDead (connection: GuardedConnection, time: number): boolean {
  const { heartbeat } = connection.route.hub.settings
  if (heartbeat === false || !isDue(connection.pingAt, time)) return false
  // What is not read cannot be heard: a socket that we or the application hold back is not a dead one.
  if (connection.isPinged && !connection.isAlive && !connection.socket.isPaused) {
    connection.socket.cutOff()
    return true
  }
  connection.isPinged = !connection.isPinged
  connection.pingAt = time + (connection.isPinged ? heartbeat.timeout : Math.max(heartbeat.interval - heartbeat.timeout, 0))
  if (connection.isPinged) {
    connection.isAlive = false
    connection.socket.ping()
  }
  return false
}

/** The handler never listened: it is a socket that only sends, and what came is dropped as without us. */
function discard (connection: GuardedConnection): void {
  const frames = dropUnheard(connection)
  connection.request.log.warn({ frames }, 'dropped frames that no listener was attached for')
}

/** The sooner of two times, of which 0 is never. */
function sooner (a: number, b: number): number {
  return a === 0 || (b !== 0 && b < a) ? b : a
}

function isDue (due: number, time: number): boolean {
  return due !== 0 && time >= due
}
