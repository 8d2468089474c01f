/**
 * The wire contract, shared by server and client: the subprotocol's name and the close codes. It imports nothing.
 */

/** The subprotocol a client offers to speak the control protocol (RFC 6455 §1.9). It is a name, never a secret. */
export const SUBPROTOCOL = 'hybrid-auth.v1'

/** A token rides beside {@link SUBPROTOCOL} as a second offer: this prefix, then the token. */
export const BEARER_PREFIX = 'bearer.'

/** What a client does about a close: give up, get a fresh credential first, try again later, or come back when needed. */
export type CloseAction = 'stop' | 'refresh' | 'retry' | 'reconnect'

// Without side effects, as bundlers are told: a client that reads none of the table does not carry it.
const row = /* @__NO_SIDE_EFFECTS__ */ <Code extends number, Reason extends string>(code: Code, reason: Reason, action: CloseAction) =>
  Object.freeze({ code, reason, action })

/** Every close of ours: its code (RFC 6455 §7.4.2), the `code` of the close reason, and what the client does. */
export const CLOSE = /* @__PURE__ */ Object.freeze({
  AuthenticationFailed: row(4001, 'authentication_failed', 'stop'),
  AuthenticationExpired: row(4002, 'expired', 'refresh'),
  Inactive: row(4003, 'inactive', 'reconnect'),
  RefreshFailed: row(4004, 'refresh_failed', 'stop'),
  RefreshTimeout: row(4005, 'refresh_timeout', 'refresh'),
  Revoked: row(4006, 'revoked', 'stop'),
  Forbidden: row(4007, 'forbidden', 'stop'),
  RateLimited: row(4008, 'rate_limited', 'retry'),
  TooManyConnections: row(4009, 'too_many_connections', 'retry'),
  AuthenticationTimeout: row(4010, 'authentication_timeout', 'stop'),
  IdentityChanged: row(4011, 'identity_changed', 'stop'),
  Unavailable: row(4012, 'unavailable', 'retry'),
  ProtocolError: row(4013, 'protocol_error', 'stop'),
  Draining: row(1012, 'draining', 'reconnect')
})

/** A name of the close-code table. */
export type CloseName = keyof typeof CLOSE

/** The JSON of a close reason; at most 123 bytes (RFC 6455 §5.5.1). `retryAfterMs` is a duration, never a time. */
export interface CloseReason {
  readonly code: string
  readonly action: CloseAction
  readonly retryAfterMs: number
}

/** The text of a close reason. */
export function closeReason (name: CloseName, retryAfterMs = 0): string {
  const { reason, action } = CLOSE[name]
  return JSON.stringify({ code: reason, action, retryAfterMs } satisfies CloseReason)
}

/** Client to server: the first message of a socket that was opened without a credential. */
export interface AuthFrame { readonly type: 'auth', readonly token: string }
/** Client to server: a fresh credential for an open socket. */
export interface AuthUpdateFrame { readonly type: 'auth_update' | 'token_refresh', readonly token: string }
/** Client to server: as whom is this socket open, and for how long? Answered by `auth_success`. */
export interface AuthStatusFrame { readonly type: 'auth_status' }
/** Every frame with a credential that a client sends to us rather than to the application. */
export type ClientFrame = AuthFrame | AuthUpdateFrame
/** Client to server: into a room; of one with history, with everything that was said behind the cursor. */
export interface JoinFrame { readonly type: 'join', readonly room: string, readonly cursor?: string }
/** Client to server: out of a room. */
export interface LeaveFrame { readonly type: 'leave', readonly room: string }
/** Client to server: to everybody else in a room. `id` comes back where it is refused. */
export interface ClientRoomMessageFrame { readonly type: 'message', readonly room: string, readonly payload: unknown, readonly id?: string | number }
/** Every frame about rooms that a client sends. */
export type ClientRoomFrame = JoinFrame | LeaveFrame | ClientRoomMessageFrame

/** Answers `auth` and `auth_status`. `expiresIn` is in seconds, null for a credential without end. */
export interface AuthSuccessFrame {
  readonly type: 'auth_success'
  readonly user: { readonly id: string }
  readonly authType: 'jwt' | 'oauth2' | 'session'
  readonly connectionId: string
  readonly expiresIn: number | null
}
/** Answers `auth_update`. */
export interface AuthUpdatedFrame { readonly type: 'auth_updated', readonly expiresIn: number | null }
/** Asks for `auth_update` within `expiresIn` seconds. */
export interface RefreshRequiredFrame { readonly type: 'token_refresh_required', readonly expiresIn: number }
/** The permissions of the connection were changed. */
export interface PermissionUpdateFrame {
  readonly type: 'permission_update'
  readonly permissions: readonly string[]
  readonly added: readonly string[]
  readonly removed: readonly string[]
}
/**
 * The connection is in a room: what is published there from now on comes. Of a room with history: what was said up to the cursor has come,
 * or was not asked for. `gap`: some of it is not to be had. Comes again, with `gap`, where the server has missed something itself.
 */
export interface JoinedFrame { readonly type: 'joined', readonly room: string, readonly cursor?: string, readonly gap?: true }
/** It is not any more. `reason`: the server took it out, or it may no longer be in there; none where the client asked for it. */
export interface LeftFrame { readonly type: 'left', readonly room: string, readonly reason?: 'removed' | 'forbidden' }
/** What was said in a room with history: a cursor of at most 64 characters, and the `id` that a client gave it, of at most 128. */
export interface KeptMessage { readonly payload: unknown, readonly cursor: string, readonly id?: string | number }
/** Somebody, or the server, has said something in a room. */
export interface RoomMessageFrame extends Omit<KeptMessage, 'cursor'> { readonly type: 'message', readonly room: string, readonly cursor?: string }
/** Something was refused and the socket stays. */
export interface ErrorFrame {
  readonly type: 'error'
  readonly code: string
  readonly message: string
  readonly action: CloseAction | 'none'
  readonly retryAfterMs?: number
  /** The room that it is about, and the `id` of the message. */
  readonly room?: string
  readonly id?: string | number
  /** Of `insufficient_user_authentication` (RFC 9470 §3): the `acr` values of which the next token needs one, and the age in seconds. */
  readonly acr_values?: string
  readonly max_age?: number
}
/** Of a room that was polled: what follows the cursor, and where that leads; or why nothing is said of it. */
export type PolledRoom =
  | { readonly messages: readonly KeptMessage[], readonly cursor: string, /** Some of what was said behind the cursor is not to be had. */ readonly gap?: true }
  | { readonly error: 'forbidden' | 'bad_room' | 'no_history' | 'insufficient_user_authentication' }
/** The body of a poll: of each room the cursor, or null for what is said from now on. */
export interface PollRequest { readonly rooms: Readonly<Record<string, string | null>> }
/** The answer to a poll. */
export interface PollAnswer { readonly rooms: Readonly<Record<string, PolledRoom>> }
/** Comes before a close of ours, with the same meaning. */
export interface ByeFrame { readonly type: 'bye', readonly code: string, readonly action: CloseAction, readonly retryAfterMs?: number }
/** Every frame that the server sends by itself. */
export type ServerFrame =
  | AuthSuccessFrame | AuthUpdatedFrame | RefreshRequiredFrame | PermissionUpdateFrame
  | JoinedFrame | LeftFrame | RoomMessageFrame | ErrorFrame | ByeFrame

/** A client frame out of its text; null where it is not one, in every member. */
export function parseClientFrame (text: string): ClientFrame | null {
  const frame = parseObject(text)
  if (frame === null || !('type' in frame) || !('token' in frame)) return null
  const { type, token } = frame
  if (typeof token !== 'string') return null
  return type === 'auth' || type === 'auth_update' || type === 'token_refresh' ? { type, token } : null
}

/** A frame about rooms out of its text; null where it is not one, in every member. */
export function parseRoomFrame (text: string): ClientRoomFrame | null {
  const frame = parseObject(text)
  if (frame === null || !('type' in frame) || !('room' in frame)) return null
  const { type, room } = frame
  if (typeof room !== 'string') return null
  if (type === 'leave') return { type, room }
  if (type === 'join') return 'cursor' in frame && frame.cursor !== null ? { type, room, cursor: typeof frame.cursor === 'string' ? frame.cursor : '' } : { type, room }
  if (type !== 'message' || !('payload' in frame)) return null
  const id = 'id' in frame ? frame.id : undefined
  const { payload } = frame
  return typeof id === 'string' || typeof id === 'number' ? { type, room, payload, id } : { type, room, payload }
}

function parseObject (text: string): object | null {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' ? value : null
  } catch {
    return null
  }
}
