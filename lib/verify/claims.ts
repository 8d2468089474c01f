/** The registered claims (RFC 7519 §4.1), checked after the signature. */
import type { Claims } from '../../types/context.js'
import type { ParsedJwtOptions } from '../options.js'
import type { Refusal } from '../errors.js'
import type { PlainObject } from './plain.js'

/** When a token counts, in milliseconds since the epoch, the clock tolerance included. */
export interface Validity {
  readonly notBefore: number
  /** null: no end. */
  readonly notAfter: number | null
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const EXPIRED: Refusal = 'FST_HYBRID_AUTH_EXPIRED_TOKEN'
const MAX_NAME = 1024
// The furthest time that a Date holds (ECMA-262 §21.4.1.1), in seconds.
const MAX_NUMERIC_DATE = 8.64e12

/** The options that are about claims. */
export interface ClaimsOptions extends Pick<ParsedJwtOptions, 'clockTolerance' | 'maxAge' | 'allowNoExpiry' | 'typ'> {
  readonly issuer?: readonly string[] | undefined
  readonly audience?: readonly string[] | undefined
}

export function createClaimsCheck (options: ClaimsOptions) {
  const { issuer, audience, clockTolerance, maxAge, allowNoExpiry } = options
  const typ = options.typ === undefined ? undefined : mediaType(options.typ)

  return function checkClaims (claims: PlainObject, headerTyp: string | undefined): Validity | Refusal {
    if (!hasClaimTypes(claims) || claims.cnf !== undefined) return INVALID
    if (typ !== undefined && (headerTyp === undefined || mediaType(headerTyp) !== typ)) return INVALID
    const { iss, aud, exp, nbf, iat } = claims
    if (issuer !== undefined && (iss === undefined || !issuer.includes(iss))) return INVALID
    if (audience !== undefined && !namesOneOf(aud, audience)) return INVALID
    if (exp === undefined && !allowNoExpiry) return INVALID
    if (iat === undefined && maxAge !== undefined) return INVALID

    const starts = Math.max(nbf ?? 0, iat ?? 0) - clockTolerance
    const ends = Math.min(exp ?? Infinity, maxAge === undefined || iat === undefined ? Infinity : iat + maxAge) + clockTolerance
    return within({ notBefore: starts * 1000, notAfter: ends === Infinity ? null : ends * 1000 })
  }
}

/** The one event that a provider tells of in a token of its own (OpenID Connect Back-Channel Logout 1.0 §2.4). */
const LOGOUT_EVENT = 'http://schemas.openid.net/event/backchannel-logout'

/** Whether claims are those of a logout token: signed by the same keys, for the same audience, and a credential for nothing. */
export function isLogout ({ events }: PlainObject): boolean {
  return typeof events === 'object' && events !== null && LOGOUT_EVENT in events
}

/** The part of the check that the clock can change: repeated for every use of a cached verdict. */
export function within (validity: Validity): Validity | Refusal {
  const now = Date.now()
  if (validity.notAfter !== null && now >= validity.notAfter) return EXPIRED
  return now < validity.notBefore ? INVALID : validity
}

function hasClaimTypes (claims: PlainObject): claims is PlainObject & Claims {
  const { iss, sub, aud, exp, nbf, iat, jti } = claims
  return isNameOrAbsent(iss) && isNameOrAbsent(sub) && isNameOrAbsent(jti) && isAudience(aud) &&
    isDateOrAbsent(exp) && isDateOrAbsent(nbf) && isDateOrAbsent(iat)
}

function isNameOrAbsent (value: unknown): boolean {
  return value === undefined || (typeof value === 'string' && value !== '' && value.length <= MAX_NAME)
}

function isDateOrAbsent (value: unknown): boolean {
  return value === undefined || (typeof value === 'number' && value >= 0 && value <= MAX_NUMERIC_DATE)
}

function isAudience (value: unknown): boolean {
  return value === undefined || typeof value === 'string' ||
    (Array.isArray(value) && value.every(item => typeof item === 'string'))
}

function namesOneOf (aud: Claims['aud'], accepted: readonly string[]): boolean {
  if (aud === undefined) return false
  return typeof aud === 'string' ? accepted.includes(aud) : aud.some(name => accepted.includes(name))
}

/** RFC 7515 §4.1.9: the `application/` of a type without another slash may be left out; types fold case. */
function mediaType (typ: string): string {
  const lower = typ.toLowerCase()
  return lower.startsWith('application/') ? lower.slice('application/'.length) : lower
}
