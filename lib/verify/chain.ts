/** One credential after the other: the bearer first, the session second. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext, Via } from '../../types/context.js'
import { isRefusal, type Refusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import type { ParsedOptions } from '../options.js'
import { jwtContext, sessionContext } from './context.js'
import { createJwtVerifier } from './jwt.js'
import { createSessionVerifier } from './session.js'

/** What a caller knows of the request that this folder does not. */
export interface Presented {
  readonly bearer: { readonly token: string, readonly via: Via } | null
  /** Asked before a session is read. */
  readonly mayUseCookie: () => boolean
}

/** Tells the operator what a dependency threw. The client never learns it. */
export type FaultReporter = (request: FastifyRequest, where: string, error: unknown) => void

const MISSING: Refusal = 'FST_HYBRID_AUTH_MISSING_CREDENTIALS'
const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'

/** @throws FST_HYBRID_AUTH_INVALID_OPTION, FST_HYBRID_AUTH_MISSING_DEPENDENCY */
export async function createChain (options: ParsedOptions, report: FaultReporter) {
  const verifyJwt = options.jwt === undefined ? null : createJwtVerifier(options.jwt)
  const sessions = options.session === undefined ? null : await createSessionVerifier(options.session)

  /** Who the request comes from. Neither throws nor rejects. */
  return function authenticate (request: FastifyRequest, { bearer, mayUseCookie }: Presented): Maybe<AuthContext | Refusal> {
    if (bearer === null) return trySession(request, mayUseCookie)
    return whenReady(tryJwt(request, bearer), outcome => {
      if (!isRefusal(outcome) || options.fallback === 'absent' || sessions?.isPresented(request) !== true) return outcome
      // Where the session does not help either, the bearer's refusal tells the client what to do.
      return whenReady(trySession(request, mayUseCookie, outcome), second =>
        isRefusal(second) && second !== UNAVAILABLE ? outcome : second)
    })
  }

  function tryJwt (request: FastifyRequest, { token, via }: NonNullable<Presented['bearer']>): Maybe<AuthContext | Refusal> {
    if (verifyJwt === null) return 'FST_HYBRID_AUTH_INVALID_TOKEN'
    return closed(request, 'jwt', () => whenReady(verifyJwt(token), outcome =>
      isRefusal(outcome) ? outcome : jwtContext(outcome, via)))
  }

  function trySession (request: FastifyRequest, mayUseCookie: () => boolean, fallbackFrom?: Refusal): Maybe<AuthContext | Refusal> {
    if (!sessions?.isPresented(request)) return MISSING
    if (!mayUseCookie()) return 'FST_HYBRID_AUTH_ORIGIN_REFUSED'
    return closed(request, 'session', () => whenReady(sessions.verifySession(request), outcome =>
      isRefusal(outcome) ? outcome : sessionContext(outcome, fallbackFrom)))
  }

  /** Fails closed: what throws or rejects is unavailable. */
  function closed (request: FastifyRequest, where: string, run: () => Maybe<AuthContext | Refusal>): Maybe<AuthContext | Refusal> {
    const fail = (error: unknown): Refusal => {
      report(request, where, error)
      return UNAVAILABLE
    }
    try {
      const outcome = run()
      return outcome instanceof Promise ? outcome.catch(fail) : outcome
    } catch (error) {
      return fail(error)
    }
  }
}
