/** A JWK Set (RFC 7517) to static verifiers: what is no signing key for the algorithms in use is not there. */
import { createPublicKey } from 'node:crypto'
import type { Algorithm } from '../../types/options.js'
import { ProviderFailed } from './fetch.js'
import { importKey, type SignatureVerifier, type VerifierKey } from './keys.js'
import { POISONED } from './plain.js'

const MAX_KEYS = 200
const MAX_KID = 256
/** Private members (RFC 7518 §6): a set that has them has been published by mistake, and the key is everybody's. */
const PRIVATE = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k']

export class JwkSet {
  readonly #byKid = new Map<string, VerifierKey>()
  /** All of them, those without a `kid` included. */
  #keys: VerifierKey[] = []

  /** @throws ProviderFailed on what is no set; one with nothing of use is an empty one */
  constructor (document: object, algorithms: readonly Algorithm[]) {
    const listed: unknown = 'keys' in document ? document.keys : null
    if (!Array.isArray(listed) || listed.length > MAX_KEYS) throw new ProviderFailed('the answer is no JWK Set')
    const seen = new Set<string>()
    for (const jwk of listed as unknown[]) {
      if (!isObject(jwk)) continue
      const kid = kidOf(jwk)
      const key = keyOf(jwk, algorithms)
      // Two keys of one name: which of them is meant nobody can tell.
      const isSecond = kid !== null && seen.has(kid)
      if (kid !== null) seen.add(kid)
      if (kid !== null && isSecond) this.#drop(kid)
      else if (key !== null) this.#add(kid, key)
    }
  }

  /** A token without a `kid` is of the only key, where there is but one (OpenID Connect Core §10.1). */
  find (kid: string | undefined, algorithm: Algorithm): SignatureVerifier | null {
    if (kid !== undefined) return this.#byKid.get(kid)?.get(algorithm) ?? null
    const [only, ...others] = this.#keys
    return others.length > 0 ? null : only?.get(algorithm) ?? null
  }

  #drop (kid: string): void {
    const key = this.#byKid.get(kid)
    this.#byKid.delete(kid)
    this.#keys = this.#keys.filter(other => other !== key)
  }

  #add (kid: string | null, key: VerifierKey): void {
    this.#keys.push(key)
    if (kid !== null) this.#byKid.set(kid, key)
  }
}

function kidOf ({ kid }: JwkLike): string | null {
  return typeof kid === 'string' && kid !== '' && kid.length <= MAX_KID && !POISONED.has(kid) ? kid : null
}

/** null: not one to verify signatures of these algorithms with. */
function keyOf (jwk: JwkLike, algorithms: readonly Algorithm[]): VerifierKey | null {
  const { use, key_ops: operations, alg } = jwk
  if (PRIVATE.some(name => Object.hasOwn(jwk, name))) return null
  if (use !== undefined && use !== 'sig') return null
  if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify'))) return null
  const wanted = alg === undefined ? algorithms : algorithms.filter(one => one === alg)
  if (wanted.length === 0) return null
  try {
    return importKey(createPublicKey({ key: jwk, format: 'jwk' }), wanted, false)
  } catch {
    return null
  }
}

interface JwkLike { readonly [member: string]: unknown }

function isObject (value: unknown): value is JwkLike {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
