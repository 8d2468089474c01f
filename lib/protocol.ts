/**
 * The wire contract, shared by server and client: the subprotocol's name and the close codes. It imports nothing.
 */

/** The subprotocol a client offers to speak the control protocol (RFC 6455 §1.9). It is a name, never a secret. */
export const SUBPROTOCOL = 'hybrid-auth.v1'

/** A token rides beside {@link SUBPROTOCOL} as a second offer: this prefix, then the token. */
export const BEARER_PREFIX = 'bearer.'

/** What a client does about a close: give up, get a fresh credential first, try again later, or come back when needed. */
export type CloseAction = 'stop' | 'refresh' | 'retry' | 'reconnect'

const row = <Code extends number, Reason extends string>(code: Code, reason: Reason, action: CloseAction) =>
  Object.freeze({ code, reason, action })

/** Every close of ours: its code (RFC 6455 §7.4.2), the `code` of the close reason, and what the client does. */
export const CLOSE = Object.freeze({
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
/** Every frame that a client sends to us rather than to the application. */
export type ClientFrame = AuthFrame | AuthUpdateFrame

/** Answers `auth`. `expiresIn` is in seconds, null for a credential without end. */
export interface AuthSuccessFrame {
  readonly type: 'auth_success'
  readonly user: { readonly id: string }
  readonly authType: 'jwt' | 'session'
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
/** Something was refused and the socket stays. */
export interface ErrorFrame {
  readonly type: 'error'
  readonly code: string
  readonly message: string
  readonly action: CloseAction | 'none'
  readonly retryAfterMs?: number
}
/** Comes before a close of ours, with the same meaning. */
export interface ByeFrame { readonly type: 'bye', readonly code: string, readonly action: CloseAction, readonly retryAfterMs?: number }
/** Every frame that the server sends by itself. */
export type ServerFrame = AuthSuccessFrame | AuthUpdatedFrame | RefreshRequiredFrame | PermissionUpdateFrame | ErrorFrame | ByeFrame

/** A client frame out of its text; null where it is not one, in every member. */
export function parseClientFrame (text: string): ClientFrame | null {
  let frame: unknown
  try {
    frame = JSON.parse(text)
  } catch {
    return null
  }
  if (typeof frame !== 'object' || frame === null || !('type' in frame) || !('token' in frame)) return null
  const { type, token } = frame
  if (typeof token !== 'string') return null
  return type === 'auth' || type === 'auth_update' || type === 'token_refresh' ? { type, token } : null
}
