/** Whether a user has proved who it is in the way, and as lately, as a rule demands (RFC 9470). */
import type { AuthContext } from '../../types/context.js'
import type { RequirementRule } from '../../types/rules.js'

/** What somebody lacks who is known, and would be let in after authenticating again. */
export class StepUp {
  readonly code = 'FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION'
  /** One of these; empty: whichever. */
  readonly acr: readonly string[]
  /** In milliseconds; null: however long ago. */
  readonly maxAuthAge: number | null

  constructor (acr: readonly string[], maxAuthAge: number | null) {
    this.acr = acr
    this.maxAuthAge = maxAuthAge
  }
}

/** Clocks of issuers may be ahead by so much, in milliseconds. */
const SKEW = 60_000

/** As RFC 9470 §3 names them: values parted by spaces, and seconds. */
export interface StepUpChallenge {
  readonly acr_values?: string
  readonly max_age?: number
}

/** null: the rule demands nothing of the kind. @returns what is lacking; null: nothing is */
export function compileStepUp ({ acr, maxAuthAge: given }: Pick<RequirementRule, 'acr' | 'maxAuthAge'>): ((auth: AuthContext) => StepUp | null) | null {
  const maxAuthAge = given ?? null
  if (acr === undefined && maxAuthAge === null) return null
  const values = acr === undefined ? [] : [acr].flat()
  const lacking = new StepUp(values, maxAuthAge)
  return auth => {
    const isStrong = values.length === 0 || values.some(value => value === acrOf(auth))
    return isStrong && (maxAuthAge === null || ageOf(auth) <= maxAuthAge) ? null : lacking
  }
}

export function challengeOf ({ acr, maxAuthAge }: StepUp): StepUpChallenge {
  return {
    ...(acr.length > 0 && { acr_values: acr.join(' ') }),
    ...(maxAuthAge !== null && { max_age: Math.floor(maxAuthAge / 1000) })
  }
}

/** The claim of a token (OpenID Connect Core §2), unless the application's mapper says it. */
function acrOf (auth: AuthContext): unknown {
  return auth.user.acr ?? (auth.authType === 'session' ? undefined : auth.claims.acr)
}

/**
 * In milliseconds. `iat` does not tell: a token that was refreshed is new, and its user may have logged in long ago. What says
 * nothing, and a time that lies ahead, is older than any bound.
 */
function ageOf (auth: AuthContext): number {
  const since = auth.authType === 'session' ? auth.user.issuedAt : secondsToTime(auth.claims.auth_time)
  const age = since == null ? Infinity : Date.now() - since
  return age < -SKEW ? Infinity : age
}

function secondsToTime (seconds: unknown): number | null {
  return typeof seconds === 'number' ? seconds * 1000 : null
}
