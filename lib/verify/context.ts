/** The two ways to an AuthContext. */
import type { AuthContext, Via } from '../../types/context.js'
import type { AuthErrorCode } from '../errors.js'
import type { VerifiedToken } from './jwt.js'
import type { VerifiedSession } from './session.js'

const FIRST_VERSION = 1

export function tokenContext (authType: 'jwt' | 'oauth2', { identity, claims, tokenId, expiresAt }: VerifiedToken, via: Via): AuthContext {
  const { userId, role, permissions, tenantId, user } = identity
  return Object.freeze({
    authType, userId, role, permissions, tenantId, user, via, issuer: claims.iss ?? null,
    authenticatedAt: Date.now(), expiresAt, version: FIRST_VERSION, claims, tokenId
  })
}

export function sessionContext ({ identity, sessionId, expiresAt }: VerifiedSession, fallbackFrom?: AuthErrorCode, via: Via = 'cookie'): AuthContext {
  const { userId, role, permissions, tenantId, user } = identity
  return Object.freeze({
    authType: 'session', userId, role, permissions, tenantId, user, via, issuer: null,
    authenticatedAt: Date.now(), expiresAt, version: FIRST_VERSION, sessionId,
    ...(fallbackFrom !== undefined && { fallbackFrom })
  })
}

/** What the holder of a revoked credential is told. */
export function revokedAs ({ authType }: AuthContext): AuthErrorCode {
  return authType === 'session' ? 'FST_HYBRID_AUTH_REVOKED_SESSION' : 'FST_HYBRID_AUTH_REVOKED_TOKEN'
}

/** The same, as a later version of a connection's context. */
export function withVersion (context: AuthContext, version: number): AuthContext {
  return version === context.version ? context : Object.freeze({ ...context, version })
}
