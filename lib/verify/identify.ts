/** What names a token, for the verifier and for who revokes one. */
import { createHash } from 'node:crypto'
import { isUtf8 } from 'node:buffer'

/** What claims more than this, in base64url characters, is not read to find out for whom. */
const MAX_CLAIMED = 8192
const THREE_SEGMENTS = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+$/

export interface NamedToken {
  readonly tokenId: string
  readonly issuer: string | null
  /** As the token says it, in milliseconds since the epoch; null: never. */
  readonly expiresAt: number | null
}

/** What names a token without `jti`. The signature is no part of it: one signature has several spellings. */
export function tokenHash (headerSegment: string, payloadSegment: string): string {
  return 'sha256:' + createHash('sha256').update(`${headerSegment}.${payloadSegment}`).digest('base64url')
}

/** Of a token whose signature need not be good: revoking what nobody accepts does no harm. null: not a token. */
export function identifyToken (token: string): NamedToken | null {
  const [, header = '', payload = ''] = THREE_SEGMENTS.exec(token) ?? []
  const claims = payload === '' ? null : readClaims(payload)
  if (claims === null) return null
  const { jti, iss, exp } = claims
  return {
    tokenId: typeof jti === 'string' ? jti : tokenHash(header, payload),
    issuer: typeof iss === 'string' ? iss : null,
    expiresAt: typeof exp === 'number' ? exp * 1000 : null
  }
}

/** {@link identifyToken}, or for an opaque one its hash: nothing in it names it, and it is spelled in one way only. */
export function nameOfToken (token: string): NamedToken {
  return identifyToken(token) ?? { tokenId: 'sha256:' + createHash('sha256').update(token).digest('base64url'), issuer: null, expiresAt: null }
}

/** Whether it is one of the three parts of a JWS (RFC 7515 §7.1), the first of them a JSON object. */
export function isJws (token: string): boolean {
  const [, header = ''] = THREE_SEGMENTS.exec(token) ?? []
  return header !== '' && readClaims(header) !== null
}

/** Whom a token says it is of. Nothing of it is verified. null: it does not say. */
export function claimedBy (token: string): { readonly userId: string, readonly issuer: string | null } | null {
  const [, , payload = ''] = THREE_SEGMENTS.exec(token) ?? []
  if (payload === '' || payload.length > MAX_CLAIMED) return null
  const { sub, iss } = readClaims(payload) ?? {}
  return typeof sub === 'string' ? { userId: sub, issuer: typeof iss === 'string' ? iss : null } : null
}

/** Whom the payload of a token says it was issued by. Nothing of it is verified. null: it does not say. */
export function issuerIn (payloadSegment: string): string | null {
  const iss = readClaims(payloadSegment)?.iss
  return typeof iss === 'string' ? iss : null
}

function readClaims (segment: string): { jti?: unknown, iss?: unknown, exp?: unknown, sub?: unknown } | null {
  const bytes = Buffer.from(segment, 'base64url')
  try {
    const claims: unknown = JSON.parse(bytes.toString('utf8'))
    return isUtf8(bytes) && typeof claims === 'object' && claims !== null ? claims : null
  } catch {
    return null
  }
}
