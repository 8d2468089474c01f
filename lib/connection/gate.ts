/**
 * What stands between a socket and the application's listeners: one FIFO per connection. A verdict that is there at once
 * costs no promise and no object; one that is not holds back the frames behind it.
 */
import { settleWithin } from '../deadline.js'
import { adopt, attempt, throwLater, unawaited, whenReady, type Maybe } from '../maybe.js'
import { StepUp } from '../policy/step-up.js'
import { now } from './clock.js'
import { closeConnection, finish, RETRY_AFTER } from './closing.js'
import type { GuardedConnection, HeldFrame } from './connection.js'
import { controlType, isRoomFrame, statusFrame } from './control.js'
import { isOver } from './lifecycle.js'
import { byteLengthOf, ReusableMessage } from './message.js'
import { isLimited, isTooMuch } from './rate.js'
import { reauthenticate } from './reauth.js'
import { ANSWERED, takeRoomFrame } from './room-frames.js'
import { askAgain, isStale } from './watch.js'
import { awaitListener, type RawFrame } from './socket.js'
import { demandStepUp, takeDemanded } from './step-up.js'

const MAX_HELD_FRAMES = 32
const MAX_HELD_BYTES = 64 * 1024

export function receive (connection: GuardedConnection, data: RawFrame, isBinary: boolean): void {
  connection.isAlive = true
  connection.framesIn++
  // The clock is read once a message: each reading costs as much as the rest of a synchronous verdict.
  const time = now()
  if (!connection.isOpen || isOver(connection, time)) return
  // The first word of a client of ours is not one too many, whatever others of its user have said.
  if (!(connection.framesIn === 1 && isStatus(connection, data, isBinary)) && isTooMuch(connection, data, time)) return
  if (!isBinary && connection.readsControl && isOurs(connection, data)) return
  connection.lastMessageAt = time
  connection.isUsed = true
  if ((isListening(connection) || isForRooms(connection, data, isBinary)) && connection.held === null && !connection.isJudging) judge(connection, data, isBinary)
  else hold(connection, data, isBinary)
}

function isOurs (connection: GuardedConnection, data: RawFrame): boolean {
  const type = controlType(data)
  // Only a socket that was opened for it may say `auth`; elsewhere that is a word of the application's.
  if (type === null || (type === 'auth' && connection.route.firstMessage === 0)) return false
  if (type === 'auth_status') tellStatus(connection)
  else if (Buffer.isBuffer(data)) reauthenticate(connection, data)
  return true
}

function isStatus ({ readsControl }: GuardedConnection, data: RawFrame, isBinary: boolean): boolean {
  return readsControl && !isBinary && controlType(data) === 'auth_status'
}

/** As whom it is open, and for how long: whoever asks speaks the protocol. */
function tellStatus (connection: GuardedConnection): void {
  connection.speaks = true
  connection.say(statusFrame(connection.context, connection.id))
}

/** Frames about rooms keep their place among the others, and need nobody of the application to hear them. */
function isForRooms ({ route, readsControl }: GuardedConnection, data: RawFrame, isBinary: boolean): data is Buffer {
  return route.rooms && readsControl && !isBinary && isRoomFrame(data)
}

/** A handler that was given its time and never listened gets what it would without us: frames that nobody hears. */
function isListening ({ socket, isGivenUp }: GuardedConnection): boolean {
  return isGivenUp || socket.listenerCount('message') > 0
}

function hold (connection: GuardedConnection, data: RawFrame, isBinary: boolean): void {
  connection.held ??= []
  connection.held.push({ data, isBinary })
  connection.heldBytes += byteLengthOf(data)
  if (!connection.isJudging && !isListening(connection) && !isForRooms(connection, data, isBinary)) awaitHandler(connection)
  if (!isFull(connection)) return
  // What is not read cannot bring the credential that is waited for.
  if (connection.demand === null) connection.socket.holdBack(true)
  else giveUpStepUp(connection)
}

function isFull ({ held, heldBytes }: GuardedConnection): boolean {
  return held !== null && (held.length >= MAX_HELD_FRAMES || heldBytes >= MAX_HELD_BYTES)
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

/** A listener that throws does not keep what is behind its message from being heard. */
function heard (deliver: () => void): void {
  try {
    deliver()
  } catch (error) {
    throwLater(error)
  }
}

/** Judges what is held, in order, until a verdict has to be waited for or nobody listens. */
export function flush (connection: GuardedConnection): void {
  while (connection.held !== null && !connection.isJudging) {
    const { held } = connection
    // What is revoked in a crowd ends at once, and is closed in its turn.
    if (isOver(connection)) return
    const [frame] = held
    if (frame === undefined) break
    if (!isListening(connection) && !isForRooms(connection, frame.data, frame.isBinary)) {
      awaitHandler(connection)
      return
    }
    connection.heldSince = 0
    held.shift()
    connection.heldBytes -= byteLengthOf(frame.data)
    heard(() => { judge(connection, frame.data, frame.isBinary) })
  }
  if (connection.isJudging) return
  release(connection)
}

/** Nobody listened in time: what is held for the application is dropped, and what is ours is done. @returns how much was dropped */
export function dropUnheard (connection: GuardedConnection): number {
  const before = connection.held?.length ?? 0
  connection.held = connection.held?.filter(({ data, isBinary }) => isForRooms(connection, data, isBinary)) ?? null
  const left = connection.held?.length ?? 0
  connection.heldBytes = connection.held?.reduce((sum, { data }) => sum + byteLengthOf(data), 0) ?? 0
  connection.isGivenUp = true
  flush(connection)
  return before - left
}

/** The credential that a message needs has come, or will not: it is judged again, or refused. */
export function resumeStepUp (connection: GuardedConnection): void {
  const frame = takeDemanded(connection)
  if (frame === null) return
  heard(() => { judge(connection, frame.data, frame.isBinary, true) })
  flush(connection)
}

export function giveUpStepUp (connection: GuardedConnection): void {
  if (takeDemanded(connection) === null) return
  connection.demandUntil = 0
  refuse(connection)
  flush(connection)
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

/** @param isPaid the cluster had room for it, before the verdict had to be reached again */
function judge (connection: GuardedConnection, data: RawFrame, isBinary: boolean, isPaid = false): void {
  if (isStale(connection)) {
    judgeLater(connection, askAgain(connection).then(() => ask(connection, data, isBinary, isPaid)), data, isBinary)
    return
  }
  if (connection.route.decide === undefined && connection.rate?.isShared !== true && !isForRooms(connection, data, isBinary)) {
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
    if (!connection.isOpen || isOver(connection) || (wait > 0 && isLimited(connection, rate, wait))) return ANSWERED
    return askRoute(connection, data, isBinary)
  })
}

/** What the route says; what throws is a refusal. There is no closure here, for every message would pay for it. */
function askRoute (connection: GuardedConnection, data: RawFrame, isBinary: boolean): Maybe<unknown> {
  const { route, context, request } = connection
  if (isForRooms(connection, data, isBinary)) return takeRoomFrame(connection, data)
  const { decide } = route
  if (decide === undefined) return true
  try {
    const verdict = decide(context, route.message.set(data, isBinary), request)
    return typeof verdict === 'boolean' ? verdict : askLater(connection, adopt<unknown>(verdict))
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
  const { handshakeTimeout } = connection.route.hub.settings
  connection.isJudging = true
  const conclude = (verdict: unknown): void => {
    connection.isJudging = false
    if (connection.isOpen && !isOver(connection)) {
      // Reached for a context that is no longer the connection's: reached again.
      heard(() => {
        if (connection.context.version !== version && verdict !== ANSWERED) judge(connection, data, isBinary, true)
        else settle(connection, verdict, data, isBinary)
      })
    }
    flush(connection)
  }
  // What is done about a room is done when it is known: it has its own bounds, and is not to be given up in the middle.
  if (isForRooms(connection, data, isBinary)) unawaited(pending.then(conclude))
  else settleWithin(pending, handshakeTimeout, false, conclude)
}

function settle (connection: GuardedConnection, verdict: unknown, data: RawFrame, isBinary: boolean): void {
  if (!(verdict instanceof StepUp)) connection.demandUntil = 0
  if (verdict === true) {
    connection.socket.deliver(data, isBinary)
    return
  }
  // The client knows.
  if (verdict === ANSWERED) return
  if (!(verdict instanceof StepUp)) refuse(connection)
  else if (!demandStepUp(connection, verdict, { data, isBinary }, !isFull(connection))) refuse(connection, connection.speaks)
}

/** @param isTold the client knows already */
function refuse (connection: GuardedConnection, isTold = false): void {
  const { route } = connection
  route.hub.audit.messageRefused(connection)
  if (route.onRefused === 'close') closeConnection(connection, 'Forbidden')
  else if (!isTold) connection.say({ type: 'error', code: 'forbidden', message: 'This message is not allowed', action: 'none' })
}

function fault (connection: GuardedConnection, error: unknown): false {
  // What `message.json()` throws is the client's doing, who could fill the log with it.
  if (!(error instanceof SyntaxError)) connection.route.hub.report(connection.request, 'authorize', error)
  return false
}
