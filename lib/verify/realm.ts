/** What tells registrations apart that do not accept the same tokens, though they share a cluster. */
import { createHash, KeyObject } from 'node:crypto'
import type { ParsedJwtOptions } from '../options.js'

/** A hash of everything that decides which tokens are accepted. Of a key function only that it is one. */
export function realmOf ({ key, algorithms, issuer, audience, typ }: ParsedJwtOptions): string {
  const parts = JSON.stringify([algorithms, issuer, audience, typ, key], (_name, value: unknown) => plainKey(value))
  return createHash('sha256').update(parts).digest('base64url')
}

function plainKey (value: unknown): unknown {
  if (value instanceof KeyObject) return value.export({ format: 'jwk' })
  return typeof value === 'function' ? 'function' : value
}
