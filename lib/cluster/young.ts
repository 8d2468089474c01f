/** Tokens of the very second of an `issuedBefore` are not older than it; but those that are seen to be open were. */
import type { RevokeOptions, RevokeTarget } from '../../types/cluster.js'
import type { GuardedConnection } from '../connection/connection.js'
import { isOlder, type Revocation } from './revocations.js'

/** A revocation of its own for such a token. */
export interface Young {
  readonly target: RevokeTarget
  readonly options: RevokeOptions
}

export function * youngTokens (connections: readonly GuardedConnection[], { issuedBefore, reason, reauthWithin }: Revocation): Generator<Young> {
  if (issuedBefore === undefined) return
  for (const { context } of connections) {
    if (context.authType === 'session' || isOlder(context, issuedBefore)) continue
    const { tokenId, issuer, expiresAt } = context
    yield {
      target: { tokenId, issuer },
      options: { reason, mode: reauthWithin > 0 ? { reauthWithin } : 'now', ...(expiresAt !== null && { expiresAt }) }
    }
  }
}
