/** What a registration does when a provider tells of a logout: kept here, so that who is told of none loads nothing of it. */
import type { HybridAuth } from '../../types/plugin.js'
import type { Claims } from '../cluster/claims.js'
import type { ProviderLogout } from '../cluster/provider-logout.js'
import type { ParsedJwtOptions } from '../options.js'
import type { FaultReporter } from './chain.js'
import type { SignedReader } from './signed.js'

export interface LogoutParts extends Claims {
  readonly jwt: ParsedJwtOptions | undefined
  /** What reads its tokens, and shares its keys; null without `jwt`. */
  readonly readSigned: SignedReader | null
  /** Ends it on every node. @throws FST_HYBRID_AUTH_UNAVAILABLE */
  readonly logOut: (logout: ProviderLogout) => Promise<void>
  /** In milliseconds. */
  readonly timeout: number
  readonly report: FaultReporter
}

const parts = new WeakMap<HybridAuth, LogoutParts>()

export function setLogoutParts (of: HybridAuth, given: LogoutParts): void {
  parts.set(of, given)
}

/** undefined: it is no registration of this library. */
export function logoutPartsOf (of: HybridAuth): LogoutParts | undefined {
  return parts.get(of)
}
