/** From a token's header to the verifier of its key. */
import type { Algorithm, JoseHeader, JwtOptions, KeyFunction, KeyMaterial, PinnedKey } from '../../types/options.js'
import { KeyObject } from 'node:crypto'
import { invalidOption } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import { isKeySource, openKeys, type KeySource } from './key-source.js'
import { importKey, isPinned, KeyRefused, type SignatureVerifier, type VerifierKey } from './keys.js'

export interface Keyring {
  /** null: no key for this header. @throws what a key function throws, and KeyRefused for what it returns */
  find (header: JoseHeader, issuer: () => string | null): Maybe<SignatureVerifier | null>
  /** How long a verdict may be kept, in milliseconds: a key function can stop returning a key. */
  readonly keepFor: number
}

const KEY_FUNCTION_KEEP = 30_000
const MAX_IMPORTED_KEYS = 256

/** @throws FST_HYBRID_AUTH_INVALID_OPTION */
export function createKeyring (key: JwtOptions['key'], algorithms: readonly Algorithm[], under = 'jwt'): Keyring {
  if (typeof key === 'function') return fromFunction(key, algorithms)
  if (isKeySource(key)) return fromSource(key, algorithms, under)
  if (isKeyMap(key)) return fromMap(key, algorithms, under)
  const only = importOption(key, algorithms, true, `${under}.key`)
  return { find: header => only.get(header.alg) ?? null, keepFor: Infinity }
}

function fromSource (source: KeySource, algorithms: readonly Algorithm[], under: string): Keyring {
  // A shared secret is published nowhere.
  if (algorithms.some(algorithm => algorithm.startsWith('HS'))) throw invalidOption(`${under}.algorithms`, 'HMAC does not go with keys that an issuer publishes')
  return { ...openKeys(source, algorithms), keepFor: KEY_FUNCTION_KEEP }
}

function isKeyMap (key: Exclude<JwtOptions['key'], KeyFunction | KeySource>): key is Readonly<Record<string, KeyMaterial | PinnedKey>> {
  return typeof key === 'object' && !Array.isArray(key) && !Buffer.isBuffer(key) && !(key instanceof KeyObject) && !isPinned(key)
}

function fromMap (keys: Readonly<Record<string, KeyMaterial | PinnedKey>>, algorithms: readonly Algorithm[], under: string): Keyring {
  const entries = Object.entries(keys)
  if (entries.length === 0) throw invalidOption(`${under}.key`, 'names no key')
  if (Object.hasOwn(keys, 'kty')) throw invalidOption(`${under}.key`, 'is a JWK; import it with createPublicKey({ key, format: \'jwk\' })')
  const byKid = new Map(entries.map(([kid, given]) => {
    const imported = importOption(given, algorithms, false, `${under}.key.${kid}`)
    // RFC 8725 §3.1: a key is used with exactly one algorithm.
    if (imported.size > 1) throw invalidOption(`${under}.key.${kid}`, 'fits more than one of algorithms; write { key, algorithm }')
    return [kid, imported]
  }))
  return {
    find: ({ kid, alg }) => kid === undefined ? null : byKid.get(kid)?.get(alg) ?? null,
    keepFor: Infinity
  }
}

function fromFunction (ask: KeyFunction, algorithms: readonly Algorithm[]): Keyring {
  const imported = new Map<string | KeyObject, Map<Algorithm | 'any', VerifierKey>>()

  function importOnce (given: KeyMaterial | PinnedKey): VerifierKey {
    const [material, algorithm] = isPinned(given) ? [given.key, given.algorithm] : [given, 'any' as const]
    // By its bytes: a text and a Buffer may look alike and differ.
    const id = material instanceof KeyObject ? material : Buffer.from(material).toString('latin1')
    const known = imported.get(id)?.get(algorithm)
    if (known !== undefined) return known
    const key = importKey(given, algorithms, false)
    if (imported.size >= MAX_IMPORTED_KEYS) imported.clear()
    imported.set(id, (imported.get(id) ?? new Map<Algorithm | 'any', VerifierKey>()).set(algorithm, key))
    return key
  }

  return {
    find: header => whenReady(adopt(ask(header)), given => given == null ? null : importOnce(given).get(header.alg) ?? null),
    keepFor: KEY_FUNCTION_KEEP
  }
}

function importOption (given: KeyMaterial | PinnedKey, algorithms: readonly Algorithm[], every: boolean, path: string): VerifierKey {
  try {
    return importKey(given, algorithms, every)
  } catch (error) {
    throw invalidOption(path, error instanceof KeyRefused ? error.message : 'is not usable')
  }
}
