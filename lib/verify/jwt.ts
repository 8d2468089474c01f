/** A bearer JWT to what it proves: form, key, signature, claims, in that order, and a memory of successes. */
import type { Claims } from '../../types/context.js'
import { FORGED, isRefusal, type Forged, type Refusal } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import type { ParsedJwtOptions } from '../options.js'
import { GenerationCache } from '../cache.js'
import { tokenHash } from './identify.js'
import { createClaimsCheck, isLogout, within, type Validity } from './claims.js'
import { checkIdentity, identityFromClaims, type CheckedIdentity } from './identity.js'
import { freezeParsed, type PlainObject } from './plain.js'
import { createSignedReader, type Signed } from './signed.js'

/** A token that was verified, and who it names. */
export interface VerifiedToken {
  readonly claims: Claims
  readonly tokenId: string
  readonly identity: CheckedIdentity
  /** In milliseconds since the epoch; null: never. */
  readonly expiresAt: number | null
}

interface Success extends Validity {
  readonly claims: Claims
  readonly tokenId: string
  /** null: the application's mapper says who it is, each time anew. */
  readonly identity: CheckedIdentity | null
  /** After this time the token is verified again. */
  readonly keepUntil: number
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const CACHE_ENTRIES = 20_000
const CACHE_BYTES = 64 * 1024 * 1024

/** How often a signature was remembered, and how often it was not. */
export interface CacheCounts {
  cacheHits: number
  cacheMisses: number
}

/**
 * @param onBadIdentity told when the mapper returned something that is neither null nor an identity
 * @throws FST_HYBRID_AUTH_INVALID_OPTION on a key that cannot be used
 */
export function createJwtVerifier (options: ParsedJwtOptions, counts: CacheCounts, onBadIdentity: () => void) {
  const { read, remember, keepFor } = createSignedReader(options)
  const checkClaims = createClaimsCheck(options)
  const successes = new GenerationCache<Success>(CACHE_ENTRIES, CACHE_BYTES)
  const mapUser = options.user

  return { verify: verifyJwt, recheck, readSigned: read }

  /** A refusal, or what the token proves. @throws, or rejects with, what a key function or mapper throws */
  function verifyJwt (token: string): Maybe<VerifiedToken | Refusal | Forged> {
    const known = successes.get(token)
    if (known === undefined) {
      counts.cacheMisses++
      return verifyAnew(token)
    }
    counts.cacheHits++
    const valid = within(known)
    if (isRefusal(valid) || Date.now() >= known.keepUntil) successes.delete(token)
    if (isRefusal(valid)) return valid
    return Date.now() >= known.keepUntil ? verifyAnew(token) : identify(known)
  }

  /** What claims are worth now that a token had which was verified before. @throws as {@link verifyJwt} */
  function recheck ({ claims, tokenId }: { readonly claims: object, readonly tokenId: string }): Maybe<VerifiedToken | Refusal> {
    const plain = freezeParsed(claims)
    const validity = checkClaims(plain, options.typ)
    return isRefusal(validity) ? validity : identify({ ...validity, claims: plain, tokenId, identity: identityOf(plain), keepUntil: 0 })
  }

  function identityOf (claims: PlainObject): CheckedIdentity | null {
    return mapUser === undefined ? identityFromClaims(claims) : null
  }

  function verifyAnew (token: string): Maybe<VerifiedToken | Refusal | Forged> {
    return whenReady(read(token), (signed): Maybe<VerifiedToken | Refusal | Forged> => {
      if (signed === null) return FORGED
      const success = judge(signed)
      if (isRefusal(success)) return success
      remember(signed.wellFormed)
      successes.set(token, success)
      return identify(success)
    })
  }

  function judge ({ wellFormed: { header, headerSegment, payloadSegment }, claims }: Signed): Success | Refusal {
    const validity = isLogout(claims) ? INVALID : checkClaims(claims, header.typ)
    if (isRefusal(validity)) return validity
    const identity = identityOf(claims)
    if (identity === null && mapUser === undefined) return INVALID
    const tokenId = typeof claims.jti === 'string' ? claims.jti : tokenHash(headerSegment, payloadSegment)
    // Written out: spreading one member more costs a tenth of a verification.
    const { notBefore, notAfter } = validity
    return { notBefore, notAfter, claims, tokenId, identity, keepUntil: Date.now() + keepFor }
  }

  function identify ({ claims, tokenId, identity, notAfter: expiresAt }: Success): Maybe<VerifiedToken | Refusal> {
    if (identity !== null) return { claims, tokenId, identity, expiresAt }
    return whenReady(adopt(mapUser?.(claims) ?? null), mapped => {
      const checked = checkIdentity(mapped)
      if (checked === null && mapped !== null) onBadIdentity()
      return checked === null ? INVALID : { claims, tokenId, identity: checked, expiresAt }
    })
  }
}
