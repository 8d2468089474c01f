/** What names a token, for the verifier and for who revokes one. */
import { createHash } from 'node:crypto'
import { isUtf8 } from 'node:buffer'
import { isCanonical } from './token.js'

const JOSE = /^([A-Za-z0-9_+/-]+)=*\./
/** Issuers repeat their few headers: a token costs no parsing of one that was read before. */
const headers = new Set<string>()
const MAX_HEADERS = 64
const MAX_HEADER = 512
const [JWS_PARTS, JWE_PARTS] = [3, 5]
const BASE64URL = /^[A-Za-z0-9_-]*$/
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

/**
 * Of a token that its server is asked about: a hash, for a `jti` in it is as little verified as the rest. An opaque one has one spelling only;
 * one that is a JWS is named by what its signature covers.
 */
export function nameOfToken (token: string): Pick<NamedToken, 'tokenId' | 'issuer'> {
  const [, header = '', payload = ''] = (isJose(token) ? THREE_SEGMENTS.exec(token) : null) ?? []
  if (payload !== '') return { tokenId: tokenHash(header, payload), issuer: issuerIn(payload) }
  return { tokenId: 'sha256:' + createHash('sha256').update(token).digest('base64url'), issuer: null }
}

/** b64token of RFC 6750 §2.1. */
export const BEARER_TOKEN = /^[A-Za-z0-9\-._~+/]+=*$/

/**
 * Whether its first part is a header of JOSE (RFC 7515 §4, RFC 7516 §4), in whatever spelling: with padding, or in the other alphabet
 * of base64, it is no other token.
 */
export function isJose (token: string): boolean {
  const [, header = ''] = JOSE.exec(token) ?? []
  if (header === '' || headers.has(header)) return header !== ''
  // Without it, it is none (RFC 7515 §4.1.1).
  if (typeof readClaims(header)?.alg !== 'string') return false
  if (headers.size >= MAX_HEADERS) headers.clear()
  // A copy: a part of a text keeps the whole of it.
  if (header.length <= MAX_HEADER) headers.add(Buffer.from(header, 'latin1').toString('latin1'))
  return true
}

/** Whether a JWT verifier is who judges it. One with the five parts of a JWE (RFC 7516 §7.1) is opaque to us. */
export function isJws (token: string): boolean {
  return isJose(token) && token.split('.').length !== JWE_PARTS
}

/** A token of JOSE in another spelling than its issuer's: it names the same rights, and would have another hash. */
export function isRespelled (token: string): boolean {
  if (!isJose(token)) return false
  const parts = token.split('.')
  // Only what is encrypted may have an empty part, which is never the last.
  const isWhole = parts.length === JWE_PARTS ? parts.at(-1) !== '' : parts.length === JWS_PARTS && !parts.includes('')
  return !isWhole || !parts.every(part => BASE64URL.test(part) && isCanonical(part, 0, part.length))
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

function readClaims (segment: string): { jti?: unknown, iss?: unknown, exp?: unknown, sub?: unknown, alg?: unknown } | null {
  const bytes = Buffer.from(segment, 'base64url')
  try {
    const claims: unknown = JSON.parse(bytes.toString('utf8'))
    return isUtf8(bytes) && typeof claims === 'object' && claims !== null ? claims : null
  } catch {
    return null
  }
}
