/** Key material to static verifiers, one per key and algorithm: fast-jwt parses a key once, here, and never per token. */
import { createPublicKey, createSecretKey, KeyObject } from 'node:crypto'
import { createVerifier } from 'fast-jwt'
import type { Algorithm, KeyMaterial, PinnedKey } from '../../types/options.js'

/** Verifies the signature of a token and returns its payload. @throws on anything but a good signature */
export interface SignatureVerifier {
  (token: string): unknown
  /** Of a signature by this key, in base64url characters. */
  readonly signatureLength: number
}

/** One key: the verifier of each algorithm that it serves. */
export type VerifierKey = ReadonlyMap<Algorithm, SignatureVerifier>

/** Why a key cannot be used. The message names no key material. */
export class KeyRefused extends Error {}

const HASH_BYTES = { 256: 32, 384: 48, 512: 64 } as const
const CURVES = {
  ES256: { name: 'prime256v1', signatureBytes: 64 },
  ES384: { name: 'secp384r1', signatureBytes: 96 },
  ES512: { name: 'secp521r1', signatureBytes: 132 }
} as const
const ED_SIGNATURE_BYTES: Readonly<Record<string, number>> = { ed25519: 64, ed448: 114 }
const MIN_RSA_BITS = 2048

/**
 * @param every the key must serve every algorithm of the list; else those that fit it
 * @throws KeyRefused
 */
export function importKey (given: KeyMaterial | PinnedKey, algorithms: readonly Algorithm[], every: boolean): VerifierKey {
  const [material, wanted] = isPinned(given) ? [given.key, [given.algorithm]] : [given, algorithms]
  if (isPinned(given) && Object.keys(given).length > 2) throw new KeyRefused('has members beside key and algorithm')
  if (isPinned(given) && !algorithms.includes(given.algorithm)) throw new KeyRefused('its algorithm is not one of algorithms')
  const key = parse(material, wanted)
  const reasons: string[] = []
  const verifiers = new Map<Algorithm, SignatureVerifier>()
  for (const algorithm of wanted) {
    const fit = signatureBytes(key, algorithm)
    if (typeof fit === 'string') reasons.push(fit)
    else verifiers.set(algorithm, createSignatureVerifier(key, algorithm, fit))
  }
  const [reason] = reasons
  if (reason !== undefined && (every || verifiers.size === 0)) throw new KeyRefused(reason)
  return verifiers
}

export function isPinned (given: unknown): given is PinnedKey {
  return typeof given === 'object' && given !== null && !(given instanceof KeyObject) && 'key' in given && 'algorithm' in given
}

function parse (material: KeyMaterial, algorithms: readonly Algorithm[]): KeyObject {
  const symmetric = algorithms.every(algorithm => algorithm.startsWith('HS'))
  if (material instanceof KeyObject) {
    if (symmetric !== (material.type === 'secret')) throw new KeyRefused(`a ${material.type} key does not fit algorithms`)
    return symmetric ? checkSecret(material.export()) : publicKey(material)
  }
  if (typeof material !== 'string' && !Buffer.isBuffer(material)) {
    throw new KeyRefused('must be a string, a Buffer, a KeyObject, or an object of them; import a JWK with createPublicKey()')
  }
  if (material.length === 0) throw new KeyRefused('is empty')
  return symmetric ? checkSecret(Buffer.from(material)) : publicKey(material)
}

function publicKey (material: string | Buffer | KeyObject): KeyObject {
  if (material instanceof KeyObject && material.type === 'public') return material
  // Node would take the public half. Who only verifies has no business with the other.
  if (material instanceof KeyObject || material.includes('PRIVATE KEY-----')) throw new KeyRefused('is a private key; verifying needs the public one')
  try {
    return createPublicKey(material)
  } catch {
    throw new KeyRefused('is not a public key or certificate in PEM')
  }
}

/** A public key taken for a secret is a secret that everybody knows. */
function checkSecret (secret: Buffer): KeyObject {
  // Trimming takes a byte order mark along.
  const text = secret.toString('utf8').trim()
  if (text.includes('-----BEGIN ')) throw new KeyRefused('looks like PEM, which is no secret for HMAC')
  if (isJsonObject(text)) throw new KeyRefused('looks like a JWK, which is no secret for HMAC')
  if (isDer(secret) || isDer(Buffer.from(text, 'base64'))) throw new KeyRefused('looks like DER, which is no secret for HMAC')
  return createSecretKey(secret)
}

function isJsonObject (text: string): boolean {
  if (!text.startsWith('{') && !text.startsWith('[')) return false
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

/** A DER key is one SEQUENCE over all the bytes that begins with a SEQUENCE or an INTEGER (RFC 5280, RFC 8017). */
function isDer (bytes: Buffer): boolean {
  const [tag, length = 0] = bytes
  if (tag !== 0x30) return false
  const lengthBytes = length < 0x80 ? 0 : length & 0x7f
  if (lengthBytes > 3 || bytes.length < 2 + lengthBytes + 1) return false
  const content = lengthBytes === 0 ? length : bytes.readUIntBE(2, lengthBytes)
  const inner = bytes[2 + lengthBytes]
  return content === bytes.length - 2 - lengthBytes && (inner === 0x30 || inner === 0x02)
}

/** How long a signature is, in bytes, or why this key and this algorithm do not go together. */
function signatureBytes (key: KeyObject, algorithm: Algorithm): number | string {
  const details = { ...key.asymmetricKeyDetails }
  switch (algorithm) {
    case 'HS256': case 'HS384': case 'HS512': {
      const needed = hashBytes(algorithm)
      return Number(key.symmetricKeySize) >= needed ? needed : `is shorter than the ${needed} bytes that ${algorithm} needs (RFC 7518 §3.2)`
    }
    case 'ES256': case 'ES384': case 'ES512':
      return details.namedCurve === CURVES[algorithm].name ? CURVES[algorithm].signatureBytes : `is not on the curve that ${algorithm} needs`
    case 'EdDSA':
      return ED_SIGNATURE_BYTES[String(key.asymmetricKeyType)] ?? 'is not an Ed25519 or Ed448 key'
    default: {
      const { modulusLength = 0, publicExponent = 0n } = details
      if (key.asymmetricKeyType !== 'rsa') return `is not the RSA key that ${algorithm} needs`
      if (modulusLength < MIN_RSA_BITS) return `has fewer than ${MIN_RSA_BITS} bits (RFC 7518 §3.3)`
      return publicExponent >= 3n ? Math.ceil(modulusLength / 8) : 'has a public exponent below 3'
    }
  }
}

function hashBytes (algorithm: 'HS256' | 'HS384' | 'HS512'): number {
  return HASH_BYTES[algorithm === 'HS256' ? 256 : algorithm === 'HS384' ? 384 : 512]
}

function createSignatureVerifier (key: KeyObject, algorithm: Algorithm, bytes: number): SignatureVerifier {
  const verify = createVerifier({
    key: key.type === 'secret' ? key.export() : key.export({ type: 'spki', format: 'pem' }),
    algorithms: [algorithm],
    // Its cache stores errors as successes, and time is checked with the other claims, here.
    cache: false,
    ignoreExpiration: true,
    ignoreNotBefore: true
  })
  return Object.assign((token: string): unknown => verify(token), { signatureLength: Math.ceil(bytes * 8 / 6) })
}
