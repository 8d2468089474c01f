import type { AuthErrorCode } from '../lib/errors.js'

/**
 * The application's user, as `jwt.user` and `session.user` return it. Empty until the application declares its
 * fields: `declare module 'fastify-hybrid-auth' { interface AuthUser { name: string } }`.
 */

export interface AuthUser {}

/** What a `user` mapper returns: who it is, and the application's own fields beside it. Plain data only. */
export type Identity = AuthUser & {
  /** 1 to 1 024 characters. */
  readonly userId: string
  /** @default null */
  readonly role?: string | null | undefined
  /** Compared by exact string. @default [] */
  readonly permissions?: readonly string[] | null | undefined
  /** @default null */
  readonly tenantId?: string | null | undefined
  /**
   * When the session was made, or its user last proved who it is, in milliseconds since the epoch: what `issuedBefore` of a
   * revocation is compared with. Of a token that is `iat`. @default unknown, which counts as older
   */
  readonly issuedAt?: number | null | undefined
  /** How the user was authenticated, for rules with `acr`. @default the claim `acr` of a token */
  readonly acr?: string | null | undefined
  /** The session at the OpenID provider that it came from, for back-channel logout. @default the claim `sid` of a token */
  readonly sid?: string | null | undefined
}

/** Where the credential came from. */
export type Via = 'header' | 'subprotocol' | 'ticket' | 'query' | 'cookie' | 'message'

/** How the connection was authenticated: the tag of {@link AuthContext}. */
export type AuthType = 'jwt' | 'oauth2' | 'session'

/** The verified claims set (RFC 7519 §4), frozen, without `__proto__`, `constructor` and `prototype` at any depth. */
export interface Claims {
  readonly iss?: string
  readonly sub?: string
  readonly aud?: string | readonly string[]
  readonly exp?: number
  readonly nbf?: number
  readonly iat?: number
  readonly jti?: string
  readonly [claim: string]: unknown
}

interface ContextBase {
  readonly userId: string
  readonly role: string | null
  readonly permissions: readonly string[]
  readonly tenantId: string | null
  /** What the mapper returned, copied and frozen; values become what JSON would make of them. */
  readonly user: Identity
  readonly via: Via
  /** The `iss` claim; null where the credential names no issuer. */
  readonly issuer: string | null
  /** When this context was made, in milliseconds since the epoch. */
  readonly authenticatedAt: number
  /** When the credential ends, in milliseconds since the epoch; null if it does not. */
  readonly expiresAt: number | null
  /** 1 at the handshake, higher each time the connection's context is replaced. */
  readonly version: number
}

export interface JwtContext extends ContextBase {
  readonly authType: 'jwt'
  readonly claims: Claims
  /** `jti`, or `sha256:` and the base64url hash of `header.payload` where the token has none. */
  readonly tokenId: string
}

/** A token whose authorization server was asked about it (RFC 7662). */
export interface OAuth2Context extends ContextBase {
  readonly authType: 'oauth2'
  /** The answer of the server, frozen, as {@link Claims} of a token. */
  readonly claims: Claims
  /** `sha256:` and the base64url hash of the token; of a JWT, of its first two parts. */
  readonly tokenId: string
}

export interface SessionContext extends ContextBase {
  readonly authType: 'session'
  readonly sessionId: string
  /** The code of the bearer that was refused before the session was accepted; absent where none was. */
  readonly fallbackFrom?: AuthErrorCode
}

/** Who is on the other side. Frozen plain data; `authType` tells which member of the union it is. */
export type AuthContext = JwtContext | OAuth2Context | SessionContext
