/** Every way a guarded socket ends. */
import type { Socket } from '../request.js'
import { invalidOption } from '../errors.js'
import type { ClosedBy } from '../observe/tally.js'
import { CLOSE, type CloseAction, type CloseName, type CloseReason } from '../protocol.js'
import { now } from './clock.js'
import type { GuardedConnection } from './connection.js'
import { sendFrame } from './control.js'
import { giveUpStepUp, release } from './gate.js'
import type { CloseBy, CloseDetails } from './hub.js'
import { ABNORMAL } from './socket.js'
import { wheel } from '../wheel.js'

/** How long a peer has to answer a close, in milliseconds; ws alone would wait 30 s. */
const CLOSE_GRACE = 3000
/** When a client that is not let in at the moment may try again, in milliseconds. */
export const RETRY_AFTER = 5000
/** What needs no escape in JSON, and leaves room in the 123 bytes. */
export const REASON = /^[\w .:-]{1,40}$/

const NAMES = Object.keys(CLOSE) as CloseName[]

export type CloseCodes = Partial<Record<CloseName, number | undefined>>

interface Close {
  readonly code: number
  readonly reason: string
  readonly action: CloseAction
}

/** Makes room for another: it must not come back at once, or the two would evict each other for ever. */
export const EVICTED: CloseDetails = { reason: 'evicted', action: 'stop' }

/** Closes by a row of the table. Nothing is delivered from here on, in either direction. Does nothing the second time. */
export function closeConnection (connection: GuardedConnection, by: CloseBy, details: CloseDetails = {}): void {
  if (!connection.isOpen) return
  const { hub } = connection.route
  const { code, action, reason } = resolveClose(by, hub.settings.closeCodes, details)
  if (connection.speaks) {
    const { retryAfterMs } = details
    sendFrame(connection.socket, { type: 'bye', code: reason, action, ...(retryAfterMs !== undefined && { retryAfterMs }) })
  }
  connection.isOpen = false
  connection.closeCode = code
  connection.held = null
  connection.demand = null
  hub.registry.remove(connection)
  hub.rooms.leaveAll(connection)
  connection.place?.release()
  connection.socket.holdBack(false)
  wheel.schedule(connection, CLOSE_GRACE)
  connection.socket.close(code, JSON.stringify({ code: reason, action, retryAfterMs: details.retryAfterMs ?? 0 } satisfies CloseReason))
  if (connection.heldClose !== null) release(connection)
}

/**
 * The socket is closed, by whom ever. false: frames that came before the peer's close are still to be delivered, and the
 * event has to wait for them.
 */
export function finish (connection: GuardedConnection, code: number, reason: Buffer): boolean {
  const { hub } = connection.route
  connection.place?.release()
  if (connection.isOpen && (connection.isJudging || connection.held !== null)) {
    connection.heldClose = { code, reason }
    hub.registry.close(connection)
    hub.rooms.silence(connection)
    giveUpStepUp(connection)
    return false
  }
  connection.isOpen = false
  hub.registry.remove(connection)
  hub.rooms.leaveAll(connection)
  wheel.remove(connection)
  // What the peer answers to a close is not why it was closed.
  const shown = connection.closeCode || connection.ownCloseCode || code
  hub.audit.closed(connection, shown, closedBy(connection, code), now() - connection.startedAt)
  connection.announce('close', shown)
  return true
}

const BY: Readonly<Record<CloseName, ClosedBy>> = {
  AuthenticationFailed: 'authentication',
  AuthenticationExpired: 'authentication',
  Inactive: 'server',
  RefreshFailed: 'authentication',
  RefreshTimeout: 'authentication',
  Revoked: 'authentication',
  Forbidden: 'authentication',
  RateLimited: 'limit',
  TooManyConnections: 'limit',
  AuthenticationTimeout: 'authentication',
  IdentityChanged: 'authentication',
  Unavailable: 'server',
  ProtocolError: 'server',
  Draining: 'server'
}

/** Who ended it, so that expired tokens are not taken for a bad network. */
function closedBy ({ closeCode, ownCloseCode, route }: GuardedConnection, seen: number): ClosedBy {
  if (closeCode === 0) return ownCloseCode !== 0 ? 'application' : seen === ABNORMAL ? 'network' : 'peer'
  const { closeCodes } = route.hub.settings
  const name = NAMES.find(one => (closeCodes[one] ?? CLOSE[one].code) === closeCode)
  return name === undefined ? 'application' : BY[name]
}

/** What it is sent it does not read, and it may not wait here without end. */
export function closeSlow (connection: GuardedConnection): void {
  const { audit } = connection.route.hub
  audit.tally.limited('buffered', true)
  audit.limited(connection, 'FST_HYBRID_AUTH_RATE_LIMITED', true)
  closeConnection(connection, 'RateLimited', { reason: 'slow_consumer', retryAfterMs: RETRY_AFTER })
}

/** Closes a socket that never became a connection. */
export function closeSocket (socket: Socket, name: CloseName, codes: CloseCodes, details: CloseDetails = {}): void {
  const { code, reason, action } = resolveClose(name, codes, details)
  const waiting = { due: -1, position: 0, look: () => { socket.terminate() } }
  wheel.schedule(waiting, CLOSE_GRACE)
  socket.on('error', () => { socket.terminate() })
  socket.on('close', () => { wheel.remove(waiting) })
  const { retryAfterMs = action === 'retry' ? RETRY_AFTER : 0 } = details
  socket.close(code, JSON.stringify({ code: reason, action, retryAfterMs } satisfies CloseReason))
}

/** Whether an application may close with it (RFC 6455 §7.4.2). */
export function isCloseCode (code: number): boolean {
  return Number.isInteger(code) && ((code >= 3000 && code <= 4999) || code === CLOSE.Draining.code)
}

/** @throws FST_HYBRID_AUTH_INVALID_OPTION on what a close frame cannot carry (RFC 6455 §7.4.2) */
export function checkClose (code: unknown, reason: unknown): void {
  const isName = typeof code === 'string' && Object.hasOwn(CLOSE, code)
  if (!isName && !(typeof code === 'number' && isCloseCode(code))) throw invalidOption('code', 'must be a name of the close-code table, or a code from 3000 to 4999')
  if (reason !== undefined && !(typeof reason === 'string' && REASON.test(reason))) {
    throw invalidOption('reason', 'must be 1 to 40 letters, digits, spaces and any of _.:-')
  }
}

function resolveClose (by: CloseBy, codes: CloseCodes, { reason, action }: CloseDetails): Close {
  const name = typeof by === 'string' ? by : nameOf(by)
  if (name === undefined) return { code: Number(by), reason: reason ?? 'closed', action: 'stop' }
  const row = CLOSE[name]
  return { code: codes[name] ?? row.code, reason: reason ?? row.reason, action: action ?? row.action }
}

function nameOf (code: number): CloseName | undefined {
  return NAMES.find(name => CLOSE[name].code === code)
}
