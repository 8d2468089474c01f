/**
 * What stands between a socket and the application's listeners: one FIFO per connection. A verdict that is there at once
 * costs no promise and no object; one that is not holds back the frames behind it.
 */
import { settleWithin } from '../deadline.js'
import { adopt, attempt, whenReady, type Maybe } from '../maybe.js'
import { now } from './clock.js'
import { closeConnection, finish, RETRY_AFTER } from './closing.js'
import type { GuardedConnection, HeldFrame } from './connection.js'
import { controlType, sendFrame } from './control.js'
import { isOver } from './lifecycle.js'
import { byteLengthOf, ReusableMessage } from './message.js'
import { isLimited, isTooMuch } from './rate.js'
import { reauthenticate } from './reauth.js'
import { isStale, readSession } from './sessions.js'
import { awaitListener, type RawFrame } from './socket.js'

const MAX_HELD_FRAMES = 32
/** A verdict: refused, and answered already. */
const LIMITED = Symbol('limited')
const MAX_HELD_BYTES = 64 * 1024

export function receive (connection: GuardedConnection, data: RawFrame, isBinary: boolean): void {
  connection.isAlive = true
  connection.framesIn++
  // The clock is read once a message: each reading costs as much as the rest of a synchronous verdict.
  const time = now()
  if (!connection.isOpen || isOver(connection, time) || isTooMuch(connection, data, time)) return
  if (!isBinary && connection.readsControl && isOurs(connection, data)) return
  connection.lastMessageAt = time
  connection.isUsed = true
  if (isListening(connection) && connection.held === null && !connection.isJudging) judge(connection, data, isBinary)
  else hold(connection, data, isBinary)
}

function isOurs (connection: GuardedConnection, data: RawFrame): boolean {
  const type = controlType(data)
  // Only a socket that was opened for it may say `auth`; elsewhere that is a word of the application's.
  if (type === null || (type === 'auth' && connection.route.firstMessage === 0)) return false
  if (Buffer.isBuffer(data)) reauthenticate(connection, data)
  return true
}

/** A handler that was given its time and never listened gets what it would without us: frames that nobody hears. */
function isListening ({ socket, isGivenUp }: GuardedConnection): boolean {
  return isGivenUp || socket.listenerCount('message') > 0
}

function hold (connection: GuardedConnection, data: RawFrame, isBinary: boolean): void {
  connection.held ??= []
  connection.held.push({ data, isBinary })
  connection.heldBytes += byteLengthOf(data)
  if (!isListening(connection)) awaitHandler(connection)
  if (connection.held.length >= MAX_HELD_FRAMES || connection.heldBytes >= MAX_HELD_BYTES) connection.socket.holdBack(true)
}

/** Takes over frames that came before there was a connection. */
export function holdEarly (connection: GuardedConnection, frames: readonly HeldFrame[]): void {
  for (const { data, isBinary } of frames) if (connection.isOpen && !isTooMuch(connection, data, now())) hold(connection, data, isBinary)
}

function awaitHandler (connection: GuardedConnection): void {
  awaitListener(connection.socket)
  if (connection.heldSince !== 0) return
  connection.heldSince = now()
  connection.route.hub.lookAt(connection)
}

/** Judges what is held, in order, until a verdict has to be waited for or nobody listens. */
export function flush (connection: GuardedConnection): void {
  while (connection.held !== null && !connection.isJudging) {
    const { held } = connection
    // What is revoked in a crowd ends at once, and is closed in its turn.
    if (isOver(connection)) return
    if (!isListening(connection)) {
      if (held.length === 0) break
      awaitHandler(connection)
      return
    }
    connection.heldSince = 0
    const frame = held.shift()
    if (frame === undefined) break
    connection.heldBytes -= byteLengthOf(frame.data)
    judge(connection, frame.data, frame.isBinary)
  }
  if (connection.isJudging) return
  release(connection)
}

/** Forgets what is held, reads again, and lets a close through that had to wait. */
export function release (connection: GuardedConnection): void {
  connection.held = null
  connection.heldBytes = 0
  connection.heldSince = 0
  connection.socket.holdBack(false)
  if (connection.heldClose === null) return
  const { code, reason } = connection.heldClose
  connection.heldClose = null
  finish(connection, code, reason)
  connection.socket.emitHeldClose(code, reason)
}

/** One whose peer has closed is in no index, where a revocation would find it. It ends here. */
function isRevokedUnseen (connection: GuardedConnection): boolean {
  const { hub } = connection.route
  const revocation = connection.heldClose === null ? null : hub.revocations.find(connection.context)
  if (revocation === null) return false
  if (connection.isOpen) hub.audit.revoked(connection, revocation)
  closeConnection(connection, 'Revoked')
  return true
}

/** @param isPaid the cluster had room for it, before the verdict had to be reached again */
function judge (connection: GuardedConnection, data: RawFrame, isBinary: boolean, isPaid = false): void {
  if (isRevokedUnseen(connection)) return
  if (isStale(connection)) {
    judgeLater(connection, readSession(connection).then(() => ask(connection, data, isBinary, isPaid)), data, isBinary)
    return
  }
  if (connection.route.authorize === undefined && connection.rate?.isShared !== true) {
    connection.socket.deliver(data, isBinary)
    return
  }
  const verdict = ask(connection, data, isBinary, isPaid)
  if (verdict instanceof Promise) judgeLater(connection, verdict, data, isBinary)
  else settle(connection, verdict, data, isBinary)
}

/** First whether all nodes together have room for it, where that is asked, then what the route says. */
function ask (connection: GuardedConnection, data: RawFrame, isBinary: boolean, isPaid: boolean): Maybe<unknown> {
  const { rate, route } = connection
  if (isPaid || rate?.isShared !== true) return askRoute(connection, data, isBinary)
  const room = attempt(() => rate.spendShared(byteLengthOf(data), route.hub.settings.handshakeTimeout / 2), error => {
    fault(connection, error)
    return RETRY_AFTER
  })
  return whenReady(room, wait => {
    // Whoever it is from may have ended meanwhile.
    if (!connection.isOpen || isOver(connection) || (wait > 0 && isLimited(connection, rate, wait))) return LIMITED
    return askRoute(connection, data, isBinary)
  })
}

/** What the route says; what throws is a refusal. There is no closure here, for every message would pay for it. */
function askRoute (connection: GuardedConnection, data: RawFrame, isBinary: boolean): Maybe<unknown> {
  const { route, context, request } = connection
  const { authorize } = route
  if (authorize === undefined) return true
  try {
    const verdict = authorize(context, route.message.set(data, isBinary), request)
    return typeof verdict === 'boolean' ? verdict : askLater(connection, adopt(verdict))
  } catch (error) {
    return fault(connection, error)
  }
}

function askLater (connection: GuardedConnection, verdict: Maybe<unknown>): Maybe<unknown> {
  if (!(verdict instanceof Promise)) return verdict
  // The application still holds this message: the next one gets another.
  connection.route.message = new ReusableMessage()
  return verdict.catch((error: unknown) => fault(connection, error))
}

function judgeLater (connection: GuardedConnection, pending: Promise<unknown>, data: RawFrame, isBinary: boolean): void {
  const { version } = connection.context
  connection.isJudging = true
  settleWithin<unknown>(pending, connection.route.hub.settings.handshakeTimeout, false, verdict => {
    connection.isJudging = false
    if (connection.isOpen && !isOver(connection) && !isRevokedUnseen(connection)) {
      // Reached for a context that is no longer the connection's: reached again.
      if (connection.context.version !== version && verdict !== LIMITED) judge(connection, data, isBinary, true)
      else settle(connection, verdict, data, isBinary)
    }
    flush(connection)
  })
}

function settle (connection: GuardedConnection, verdict: unknown, data: RawFrame, isBinary: boolean): void {
  if (verdict === true) {
    connection.socket.deliver(data, isBinary)
    return
  }
  // The client knows.
  if (verdict === LIMITED) return
  const { route } = connection
  route.hub.audit.messageRefused(connection)
  if (route.onRefused === 'close') closeConnection(connection, 'Forbidden')
  else if (connection.speaks) {
    sendFrame(connection.socket, { type: 'error', code: 'forbidden', message: 'This message is not allowed', action: 'none' })
  }
}

function fault (connection: GuardedConnection, error: unknown): false {
  // What `message.json()` throws is the client's doing, who could fill the log with it.
  if (!(error instanceof SyntaxError)) connection.route.hub.report(connection.request, 'authorize', error)
  return false
}
