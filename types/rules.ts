import type { FastifyRequest } from 'fastify'
import type { AuthContext, AuthType } from './context.js'

/** Decides by code. Only `true` admits; anything else, a throw included, refuses. */
export type RuleFunction = (auth: AuthContext, request: FastifyRequest) => boolean | Promise<boolean>

/** What a context must have. Every member given must hold. */
export interface RequirementRule {
  /** All of these. */
  permissions?: readonly string[] | undefined
  /** At least one of these. */
  anyPermission?: readonly string[] | undefined
  /** Exactly this role. */
  role?: string | undefined
  /** One of these roles. */
  roles?: readonly string[] | undefined
  /** One of these ways of authenticating. */
  types?: readonly AuthType[] | undefined
  /** A decision by code, asked last and only if all the rest holds. */
  check?: RuleFunction | undefined
}

/** A rule for `app.hybridAuth.require()`. */
export type Rule = RequirementRule | RuleFunction

/** A route's `auth` option, as an object. */
export interface RouteRule extends RequirementRule {
  /**
   * Lets a request without a credential through, as nobody: `contextOf(request)` is then null. A credential that is
   * there and refused is still a refusal. @default false
   */
  optional?: boolean | undefined
}

/**
 * A route's `auth` option. `true`: authenticated, nothing more. `false`: open, the only way to leave a WebSocket
 * route unguarded.
 */
export type RouteAuth = boolean | RouteRule | RuleFunction
