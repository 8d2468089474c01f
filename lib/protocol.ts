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
