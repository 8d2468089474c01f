/** What a logout at an OpenID provider revokes. */
import { randomBytes } from 'node:crypto'
import { authError } from '../errors.js'
import type { ClusterNode } from './node.js'
import type { Revocation, RevocationKind } from './revocations.js'

/** Who has logged out. At least one of `sid` and `sub` is there. */
export interface ProviderLogout {
  readonly issuer: string
  readonly sid: string | null
  readonly sub: string | null
  /** When, in seconds since the epoch. */
  readonly iat: number
}

/**
 * Ends everything that came from the login, on every node. What does not tell which login it came from may have come from this
 * one, and ends as well, if it was issued before.
 * @throws FST_HYBRID_AUTH_UNAVAILABLE
 */
export async function logOutAtProvider (node: ClusterNode, { issuer, sid, sub, iat }: ProviderLogout): Promise<void> {
  const revocationOf = (kind: RevocationKind, key: string, more: Partial<Revocation>): Revocation => {
    const at = Date.now()
    return { id: randomBytes(12).toString('base64url'), kind, key, issuer, reason: 'logged out at the provider', reauthWithin: 0, at, expiresAt: node.endOf(at), ...more }
  }
  // Of a token that was issued in the same second nobody knows whether it came before.
  const issuedBefore = (iat + 1) * 1000
  const revocations = [
    ...(sid === null ? [] : [revocationOf('login', sid, {})]),
    ...(sub === null ? [] : [revocationOf('subject', sub, { issuedBefore, ...(sid !== null && { besides: true }) })])
  ]
  await Promise.all(revocations.map(async revocation => {
    const { id, kind, reason } = revocation
    const result = await node.order({ type: 'revoke', revocation }, { id })
    node.tellOf('revoke', { kind, reason }, result)
    // It is done here, and waits for the other nodes. Were this one to end before, they would never know, unless the provider says it again.
    if (!result.durable) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
  }))
}
