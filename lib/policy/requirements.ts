/** A rule to a check: read once, asked per request. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { RequirementRule } from '../../types/rules.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import { compileStepUp, type StepUp } from './step-up.js'

/** The context does not have what a rule asks for, and would not after authenticating again. */
export const FORBIDDEN = Object.freeze({ code: 'FST_HYBRID_AUTH_FORBIDDEN' })

/** Why a rule does not hold. */
export type Unmet = typeof FORBIDDEN | StepUp

/** null: the context meets the rule. @throws, or rejects with, what the rule's own function throws */
export type RequirementCheck = (auth: AuthContext, request: FastifyRequest) => Maybe<Unmet | null>

export function compileRequirements ({ permissions, anyPermission, role, roles, types, check, ...rest }: RequirementRule): RequirementCheck {
  const holds: Array<(auth: AuthContext) => boolean> = []
  if (types !== undefined) holds.push(auth => types.includes(auth.authType))
  if (role !== undefined) holds.push(auth => auth.role === role)
  if (roles !== undefined) holds.push(auth => auth.role !== null && roles.includes(auth.role))
  if (permissions !== undefined) holds.push(auth => permissions.every(name => auth.permissions.includes(name)))
  if (anyPermission !== undefined) holds.push(auth => anyPermission.some(name => auth.permissions.includes(name)))
  const stepUp = compileStepUp(rest)

  return function meetsRequirements (auth, request) {
    if (!holds.every(one => one(auth))) return FORBIDDEN
    const lacking = stepUp === null ? null : stepUp(auth)
    if (check === undefined) return lacking
    // Types end at the border: a function in JavaScript may answer anything, and only `true` admits.
    return whenReady(adopt<unknown>(check(auth, request)), verdict => verdict === true ? lacking : FORBIDDEN)
  }
}
