import type { Claims } from './context.js'
import type { JwtOptions } from './options.js'

/** `hybridAuth.backchannelLogout`: where an OpenID provider says that somebody has logged out. */
export interface BackchannelLogoutOptions {
  /** Of the route, as registered at the provider (`backchannel_logout_uri`). */
  path: string
  /** What verifies logout tokens. @default `jwt.key` */
  key?: JwtOptions['key'] | undefined
  /** @default `jwt.algorithms` */
  algorithms?: JwtOptions['algorithms'] | undefined
  /** The exact `iss`, or a list of them. @default `jwt.issuer`; one of the two is required */
  issuer?: string | readonly string[] | undefined
  /** The client id that the provider knows the application by, or a list of them. @default `jwt.audience`; one of the two is required */
  audience?: string | readonly string[] | undefined
  /** How far the clocks may differ, in seconds, 0 to 300. @default `jwt.clockTolerance` */
  clockTolerance?: number | undefined
  /**
   * Called with the claims of each logout token that is good, after its credentials were revoked: for sessions of the application
   * whose `user` does not tell their `sid`. What it throws is answered with 503, and the provider may try again.
   */
  onLogout?: ((claims: Claims) => unknown) | undefined
}
