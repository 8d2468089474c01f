/** One row per error. Nothing a client sent, and nothing a dependency said, is ever part of a message. */
import { createError, type FastifyErrorConstructor } from '@fastify/error'
import type { CloseName } from './protocol.js'

interface ErrorRow {
  /** HTTP status. */
  readonly status: number
  /** The close code of the same refusal on a socket; CLOSE in protocol.ts has the client's action. */
  readonly close: CloseName
  /** `error` of the WWW-Authenticate challenge (RFC 6750 §3.1, RFC 9470 §3); none where no token was presented. */
  readonly challenge?: 'invalid_request' | 'invalid_token' | 'insufficient_scope' | 'insufficient_user_authentication'
  readonly message: string
}

const ROWS = {
  FST_HYBRID_AUTH_MALFORMED_REQUEST: { status: 400, close: 'ProtocolError', challenge: 'invalid_request', message: 'The request is malformed, or carries its credentials in a way that is not allowed' },
  FST_HYBRID_AUTH_MISSING_CREDENTIALS: { status: 401, close: 'AuthenticationFailed', message: 'Authentication is required' },
  FST_HYBRID_AUTH_INVALID_TOKEN: { status: 401, close: 'AuthenticationFailed', challenge: 'invalid_token', message: 'The access token is not valid' },
  FST_HYBRID_AUTH_EXPIRED_TOKEN: { status: 401, close: 'AuthenticationExpired', challenge: 'invalid_token', message: 'The access token has expired' },
  FST_HYBRID_AUTH_INVALID_SESSION: { status: 401, close: 'AuthenticationFailed', message: 'The session is not valid' },
  FST_HYBRID_AUTH_EXPIRED_SESSION: { status: 401, close: 'AuthenticationExpired', message: 'The session has expired' },
  FST_HYBRID_AUTH_REVOKED_TOKEN: { status: 401, close: 'Revoked', challenge: 'invalid_token', message: 'The access token was revoked' },
  FST_HYBRID_AUTH_REVOKED_SESSION: { status: 401, close: 'Revoked', message: 'The session was revoked' },
  FST_HYBRID_AUTH_INVALID_TICKET: { status: 401, close: 'AuthenticationFailed', message: 'The ticket is not valid' },
  FST_HYBRID_AUTH_NOT_AUTHENTICATED: { status: 401, close: 'AuthenticationFailed', message: 'request.auth was read where nobody was authenticated' },
  FST_HYBRID_AUTH_FORBIDDEN: { status: 403, close: 'Forbidden', challenge: 'insufficient_scope', message: 'The credential does not allow this' },
  FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION: { status: 401, close: 'Forbidden', challenge: 'insufficient_user_authentication', message: 'The user has to authenticate again, as the challenge says' },
  FST_HYBRID_AUTH_ORIGIN_REFUSED: { status: 403, close: 'Forbidden', message: 'This origin is not allowed' },
  FST_HYBRID_AUTH_TLS_REQUIRED: { status: 403, close: 'Forbidden', message: 'This route is reached by TLS only' },
  FST_HYBRID_AUTH_TOO_MANY_FAILURES: { status: 429, close: 'RateLimited', message: 'Too many attempts to authenticate have failed' },
  FST_HYBRID_AUTH_RATE_LIMITED: { status: 429, close: 'RateLimited', message: 'Too much came in too short a time' },
  FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS: { status: 429, close: 'TooManyConnections', message: 'Too many connections are open' },
  FST_HYBRID_AUTH_UNAVAILABLE: { status: 503, close: 'Unavailable', message: 'Authentication is not available at the moment' },
  FST_HYBRID_AUTH_UNGUARDED_ROUTE: { status: 503, close: 'Unavailable', message: 'This route does not accept WebSocket connections' },
  FST_HYBRID_AUTH_INVALID_OPTION: { status: 500, close: 'Unavailable', message: 'Invalid option %s: %s' },
  FST_HYBRID_AUTH_MISSING_DEPENDENCY: { status: 500, close: 'Unavailable', message: '%s' }
} as const satisfies Record<string, ErrorRow>

/** Every code this library answers or throws. */
export type AuthErrorCode = keyof typeof ROWS

/** A refusal travels as its code; only the answer to the client becomes an Error. */
export type Refusal = AuthErrorCode

/**
 * What the parts that verify answer to a credential that looks like a guess, rather than one that is merely not good: it is
 * counted, and becomes a refusal like any other.
 */
export const FORGED = 'forged'
export type Forged = typeof FORGED

/** The table, for who maps a code to a status, a close code or a challenge. */
export const ERRORS: Readonly<Record<AuthErrorCode, ErrorRow>> = Object.freeze(ROWS)

type ErrorConstructor = FastifyErrorConstructor<{ code: string }, string[]>
const constructors = new Map<AuthErrorCode, ErrorConstructor>()

/** An Error of the table: `code`, `statusCode` and a fixed message, filled with `details` where the row has places. */
export function authError (code: AuthErrorCode, ...details: string[]): InstanceType<ErrorConstructor> {
  const Constructor = constructors.get(code) ?? define(code)
  return new Constructor(...details)
}

function define (code: AuthErrorCode): ErrorConstructor {
  const { message, status } = ROWS[code]
  // A refusal is an answer, not a fault: its stack would only ever point here.
  const Constructor: ErrorConstructor = createError(code, message, status, Error, status === 500)
  constructors.set(code, Constructor)
  return Constructor
}

/** An option that cannot be used: its path, and why. */
export function invalidOption (path: string, why: string): Error {
  return authError('FST_HYBRID_AUTH_INVALID_OPTION', path, why)
}

/** A refusal is its code; everything else that a check answers is an object. */
export function isRefusal (outcome: unknown): outcome is Refusal {
  return typeof outcome === 'string'
}
