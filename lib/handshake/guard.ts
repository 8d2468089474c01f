/** The hook before the 101, shared by WebSocket and HTTP routes: find, verify, authorize, then on or refuse. */
import type { FastifyInstance, FastifyReply, FastifyRequest, HookHandlerDoneFunction } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { RouteRule } from '../../types/rules.js'
import { isRefusal, type Refusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import { networkOf } from '../network.js'
import { createAuditor } from '../observe/audit.js'
import { logFault, withoutToken } from '../observe/redaction.js'
import type { ParsedOptions } from '../options.js'
import { compileRequirements } from '../policy/requirements.js'
import { createChain, type FaultReporter } from '../verify/chain.js'
import { createBearerFinder } from './credentials.js'
import { settleWithin } from './deadline.js'
import { createOriginCheck } from './origin.js'
import { createRefuser } from './refuse.js'
import { contextOf, setContext } from './state.js'

/** As an `onRequest` or `preHandler` hook. */
export type GuardHook = (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => void

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const SAFE_METHODS = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

export async function createGuards (app: FastifyInstance, options: ParsedOptions) {
  const findBearer = createBearerFinder(options.credentials)
  const isAllowedOrigin = createOriginCheck(options.origins)
  const authenticate = await createChain(options, reportFault)
  const refuse = createRefuser(app, options.refuse)
  const audit = createAuditor(options.audit)

  /** A hook that holds a request to the rule. Who was authenticated before is only asked whether the rule holds. */
  return function createGuard (rule: RouteRule): GuardHook {
    const meets = compileRequirements(rule)
    const isOptional = rule.optional === true

    return function hybridAuthGuard (request, reply, done) {
      settleWithin(admit(request), options.handshakeTimeout, UNAVAILABLE, failed(request), outcome => {
        if (reply.sent || request.raw.destroyed) return
        if (isRefusal(outcome)) {
          audit.refused(request, outcome)
          refuse(request, reply, outcome)
          return
        }
        if (outcome !== null && contextOf(request) === null) {
          setContext(request, outcome)
          audit.authenticated(request, outcome)
        }
        done()
      })
    }

    /** null: nobody, on a route where that is allowed. */
    function admit (request: FastifyRequest): Maybe<AuthContext | Refusal | null> {
      try {
        return whenReady(contextOf(request) ?? identify(request), outcome => isRefusal(outcome)
          ? isOptional && isAnonymous(outcome) ? null : outcome
          : whenReady(meets(outcome, request), holds => holds ? outcome : 'FST_HYBRID_AUTH_FORBIDDEN'))
      } catch (error) {
        return failed(request)(error)
      }
    }
  }

  function identify (request: FastifyRequest): Maybe<AuthContext | Refusal> {
    const { origin } = request.headers
    // Browsers send cookies along to any socket, and Origin with every one: whoever sends one is held to it.
    if (request.ws && origin !== undefined && !isSameOrAllowed(request)) return 'FST_HYBRID_AUTH_ORIGIN_REFUSED'
    const bearer = findBearer(request)
    if (options.credentials.query) dropToken(request)
    if (isRefusal(bearer)) return bearer
    return authenticate(request, { bearer, mayUseCookie: () => mayUseCookie(request) })
  }

  function mayUseCookie (request: FastifyRequest): boolean {
    return !request.ws && SAFE_METHODS.has(request.method) ? true : isSameOrAllowed(request)
  }

  function isSameOrAllowed (request: FastifyRequest): boolean {
    const { origin } = request.headers
    const { protocol = 'http', host = '' } = networkOf(request)
    return origin !== undefined && isAllowedOrigin(origin, protocol, host)
  }
}

const reportFault: FaultReporter = (request, where, error) => { logFault(request.log, where, error) }

function failed (request: FastifyRequest) {
  return (error: unknown): Refusal => {
    reportFault(request, 'rule', error)
    return UNAVAILABLE
  }
}

/** A credential that is absent, or a cookie that names nobody: browsers keep those long after the session. */
function isAnonymous (refusal: Refusal): boolean {
  return refusal === 'FST_HYBRID_AUTH_MISSING_CREDENTIALS' || refusal === 'FST_HYBRID_AUTH_INVALID_SESSION'
}

/** From here on nothing that logs the URL or the query can log the token. */
function dropToken ({ raw, query }: FastifyRequest): void {
  if (raw.url !== undefined) raw.url = withoutToken(raw.url)
  if (typeof query === 'object' && query !== null) Reflect.deleteProperty(query, 'token')
}
