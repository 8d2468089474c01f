/** What tells registrations apart that do not accept the same tokens, though they share a cluster. */
import { createHash, KeyObject } from 'node:crypto'
import type { ParsedJwtOptions, ParsedOptions } from '../options.js'

/** A hash of everything that decides which tokens are accepted. Of a key function only that it is one. */
export function realmOf ({ key, algorithms, issuer, audience, typ }: ParsedJwtOptions): string {
  const parts = JSON.stringify([algorithms, issuer, audience, typ, key], (_name, value: unknown) => plainKey(value))
  return createHash('sha256').update(parts).digest('base64url')
}

/** A hash of everything that decides whom a registration accepts, made when first asked for: what says the same of two is kept for both. */
export function createRealm ({ jwt, introspection, session }: ParsedOptions): () => string {
  let realm: string | undefined
  return () => {
    realm ??= hashOf([jwt === undefined ? null : realmOf(jwt), introspection?.from, session?.cookieName, session?.cookiePrefix])
    return realm
  }
}

function hashOf (parts: unknown): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('base64url')
}

function plainKey (value: unknown): unknown {
  if (value instanceof KeyObject) return value.export({ format: 'jwk' })
  return typeof value === 'function' ? 'function' : value
}
