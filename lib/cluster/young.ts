/** Tokens of the very second of an `issuedBefore` are not older than it; but those that are seen to be open were. */
import { randomBytes } from 'node:crypto'
import type { GuardedConnection } from '../connection/connection.js'
import { isOlder, type Revocation } from './revocations.js'

/** A revocation of its own for each such token. */
export function youngTokens (connections: readonly GuardedConnection[], { issuedBefore, reason, reauthWithin, at }: Revocation): Revocation[] {
  const found = new Map<string, Revocation>()
  if (issuedBefore === undefined) return []
  for (const { context } of connections) {
    if (context.authType === 'session' || isOlder(context, issuedBefore)) continue
    const { tokenId: key, issuer, expiresAt } = context
    found.set(JSON.stringify([issuer, key]), { id: randomBytes(12).toString('base64url'), kind: 'token', key, issuer, reason, reauthWithin, at, expiresAt })
  }
  return [...found.values()]
}
