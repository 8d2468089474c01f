/** One credential after the other: the bearer first, the session second. */
import type { FastifyRequest } from 'fastify'
import type { Verification } from '../../types/audit.js'
import type { AuthContext, AuthType, Claims, Via } from '../../types/context.js'
import { FORGED, isRefusal, type Forged, type Refusal } from '../errors.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import type { Tally } from '../observe/tally.js'
import { excerpt } from '../observe/redaction.js'
import { Tracer } from '../observe/tracing.js'
import type { ParsedOptions } from '../options.js'
import { requestIdOf, routeOf } from '../request.js'
import type { Revocations } from '../cluster/revocations.js'
import type { Failures } from '../policy/failures.js'
import type { Sources } from '../policy/sources.js'
import { revokedAs, sessionContext, tokenContext } from './context.js'
import type { CheckedIdentity } from './identity.js'
import { claimedBy, isJws } from './identify.js'
import { openIntrospector } from './introspector.js'
import { createJwtVerifier, type VerifiedToken } from './jwt.js'
import { realmOf } from './realm.js'
import { takeTicket, type KeptCredential, type PresentedTicket, type TicketStore } from './ticket.js'
import { createSessionVerifier } from './session.js'
import { watchSessions, watchTokens, type Watched } from './watched.js'

/** What a caller knows of the request that this folder does not. */
export interface Presented {
  readonly bearer: { readonly token: string, readonly via: Via } | null
  /** Asked before a session is read. */
  readonly mayUseCookie: () => boolean
}

/** Tells the operator what a dependency threw. The client never learns it. */
export type FaultReporter = (request: FastifyRequest, where: string, error: unknown) => void

const MISSING: Refusal = 'FST_HYBRID_AUTH_MISSING_CREDENTIALS'
const INVALID_TOKEN: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const INVALID_SESSION: Refusal = 'FST_HYBRID_AUTH_INVALID_SESSION'
const TOO_MANY: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const INVALID_TICKET: Refusal = 'FST_HYBRID_AUTH_INVALID_TICKET'
const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'

export interface ChainParts {
  readonly report: FaultReporter
  readonly onBadIdentity: (option: string) => void
  readonly revocations: Pick<Revocations, 'covers' | 'saw' | 'isComplete'>
  readonly tickets: TicketStore
  /** null: failures are not counted. */
  readonly failures: Failures | null
  readonly tally: Tally
  /** null: everything is as credentials say. */
  readonly sources: Sources | null
}

export type Chain = Awaited<ReturnType<typeof createChain>>

/** @throws FST_HYBRID_AUTH_INVALID_OPTION, FST_HYBRID_AUTH_MISSING_DEPENDENCY */
export async function createChain (options: ParsedOptions, { report, onBadIdentity, revocations, tickets, failures, tally, sources }: ChainParts) {
  const tracer = new Tracer()
  const jwt = options.jwt === undefined ? null : createJwtVerifier(options.jwt, tally, () => { onBadIdentity('jwt.user') })
  const introspector = options.introspection === undefined
    ? null
    : openIntrospector(options.introspection, {
      onBadIdentity () { onBadIdentity('introspection.user') },
      onAsked (outcome) { tally.introspections.add(outcome) }
    })
  const realms = { j: options.jwt === undefined ? '' : realmOf(options.jwt), o: options.introspection?.from ?? '' }
  const sessions = options.session === undefined ? null : await createSessionVerifier(options.session, () => { onBadIdentity('session.user') })

  /** Who the request comes from. Neither throws nor rejects. */
  function authenticate (request: FastifyRequest, { bearer, mayUseCookie }: Presented): Maybe<AuthContext | Refusal> {
    if (bearer === null) return trySession(request, mayUseCookie)
    return whenReady(tryToken(request, bearer, request), outcome => {
      if (!isRefusal(outcome) || options.fallback === 'absent' || sessions?.isPresented(request) !== true) return outcome
      // Where the session does not help either, the bearer's refusal tells the client what to do.
      return whenReady(trySession(request, mayUseCookie, outcome), second =>
        isRefusal(second) && second !== UNAVAILABLE ? outcome : second)
    })
  }

  function tryToken (request: FastifyRequest, { token, via }: NonNullable<Presented['bearer']>, presented: object, isAgain = false): Maybe<AuthContext | Refusal> {
    // A JWT proves by itself whether it is good: of what is forged nobody is asked.
    const isOpaque = introspector !== null && (jwt === null || !isJws(token))
    const verifier = isOpaque ? introspector : jwt
    if (verifier === null) return INVALID_TOKEN
    const authType = isOpaque ? 'oauth2' : 'jwt'
    return closed(request, isOpaque ? 'introspection' : 'jwt', () => failures?.isBlocked(request, presented) === true
      ? TOO_MANY
      : whenReady(verifier.verify(token), (outcome): Maybe<AuthContext | Refusal> => {
        if (outcome === FORGED) return failures?.count(request, presented, INVALID_TOKEN, () => claimedBy(token)) ?? INVALID_TOKEN
        return whenReady(grounded(outcome, issuerOf(outcome)), (found): Maybe<AuthContext | Refusal> => {
          if (isRefusal(found)) return found
          if (isOutdated(authType, found)) return isAgain ? UNAVAILABLE : tryToken(request, { token, via }, presented, true)
          return unlessRevoked(tokenContext(authType, found, via))
        })
      }))
  }

  /** Somebody has logged out at the server since it was asked: it may have been this one. */
  function isOutdated (authType: 'jwt' | 'oauth2', { claims }: VerifiedToken): boolean {
    return introspector !== null && authType === 'oauth2' && !introspector.isCurrent(claims)
  }

  /** With what the application's sources know, where there are some. */
  function grounded<T extends { readonly identity: CheckedIdentity }> (outcome: T | Refusal, issuer: string | null): Maybe<T | Refusal> {
    if (sources === null || isRefusal(outcome)) return outcome
    return whenReady(sources.complete(issuer, outcome.identity), identity => isRefusal(identity) ? identity : { ...outcome, identity })
  }

  /** Every credential comes by here, remembered or not, at every use. */
  function unlessRevoked (context: AuthContext): AuthContext | Refusal {
    if (!revocations.isComplete) return UNAVAILABLE
    revocations.saw(context)
    return revocations.covers(context) ? revokedAs(context) : context
  }

  /** Who a ticket stands for: it is worth what its credential is worth here and now. Neither throws nor rejects. */
  function redeem (request: FastifyRequest, presented: PresentedTicket): Maybe<AuthContext | Refusal> {
    return closed(request, 'ticket', () => failures?.isBlocked(request, request) === true
      ? TOO_MANY
      : whenReady(takeTicket({ store: tickets, realms }, presented), (kept): Maybe<AuthContext | Refusal> => {
        if (kept === FORGED) return failures?.count(request, request, INVALID_TICKET, () => null) ?? INVALID_TICKET
        if (isRefusal(kept)) return kept
        return whenReady(verifyKept(request, kept), context => {
          if (isRefusal(context)) return context
          const isSame = context.userId === kept.userId && context.tenantId === kept.tenantId
          return isSame ? unlessRevoked(context) : INVALID_TICKET
        })
      }))
  }

  function verifyKept (request: FastifyRequest, kept: KeptCredential): Maybe<AuthContext | Refusal> {
    if (kept.authType === 'session') {
      return whenReady(groundedTicket(sessions?.reread(request, kept.sessionId), () => null), session =>
        isRefusal(session) ? session : sessionContext(session, undefined, 'ticket'))
    }
    const { authType } = kept
    return whenReady(groundedTicket(authType === 'jwt' ? jwt?.recheck(kept) : introspector?.verify(kept.token), issuerOf), (token): AuthContext | Refusal => {
      if (isRefusal(token)) return token
      return isOutdated(authType, token) ? INVALID_TICKET : tokenContext(authType, token, 'ticket')
    })
  }

  /** Whatever is wrong with what a ticket stands for, it is the ticket that is refused. */
  function groundedTicket<T extends { readonly identity: CheckedIdentity }> (again: Maybe<T | Refusal | Forged> | undefined, issuer: (of: T) => string | null): Maybe<T | Refusal> {
    return whenReady(again ?? INVALID_TICKET, (outcome): Maybe<T | Refusal> => outcome === FORGED || isRefusal(outcome) ? INVALID_TICKET : grounded(outcome, issuer(outcome)))
  }

  function verifyToken (request: FastifyRequest, token: string): Maybe<AuthContext | Refusal> {
    return tryToken(request, { token, via: 'message' }, {})
  }

  function trySession (request: FastifyRequest, mayUseCookie: () => boolean, fallbackFrom?: Refusal): Maybe<AuthContext | Refusal> {
    if (!sessions?.isPresented(request)) return MISSING
    if (!mayUseCookie()) return 'FST_HYBRID_AUTH_ORIGIN_REFUSED'
    return closed(request, 'session', () => failures?.isBlocked(request, request) === true
      ? TOO_MANY
      : whenReady(sessions.verifySession(request), (outcome): Maybe<AuthContext | Refusal> => {
        if (outcome === FORGED) return failures?.count(request, request, INVALID_SESSION, () => null) ?? INVALID_SESSION
        return whenReady(grounded(outcome, null), session => isRefusal(session) ? session : unlessRevoked(sessionContext(session, fallbackFrom)))
      }))
  }

  const parts = { grounded, closed, report }
  return {
    realms,
    forgetAnswers () { introspector?.forget() },
    stop () { introspector?.stop() },
    readSigned: jwt?.readSigned ?? null,
    tokenOf: (claims: Claims): string | null => introspector?.tokenOf(claims) ?? null,
    tracer,
    authenticate (request: FastifyRequest, presented: Presented) {
      if (!tracer.isActive) return authenticate(request, presented)
      const credential = presented.bearer !== null ? 'token' : sessions?.isPresented(request) === true ? 'session' : 'none'
      return tracer.trace(verificationOf(request, credential), outcomeOf, () => authenticate(request, presented))
    },
    redeem (request: FastifyRequest, presented: PresentedTicket) {
      if (!tracer.isActive) return redeem(request, presented)
      return tracer.trace(verificationOf(request, 'ticket'), outcomeOf, () => redeem(request, presented))
    },
    /** Who a token names that came over an open socket. Neither throws nor rejects. */
    verifyToken (request: FastifyRequest, token: string) {
      if (!tracer.isActive) return verifyToken(request, token)
      return tracer.trace(verificationOf(request, 'token'), outcomeOf, () => verifyToken(request, token))
    },
    watched: {
      ...(sessions !== null && { session: watchSessions(sessions, parts) }),
      ...(introspector !== null && options.introspection !== undefined && { oauth2: watchTokens(introspector, options.introspection.watch, parts) })
    } satisfies Partial<Record<AuthType, Watched>>
  }

  function closed<T> (request: FastifyRequest, where: string, run: () => Maybe<T>): Maybe<T | Refusal> {
    return attempt(run, error => {
      report(request, where, error)
      return UNAVAILABLE
    })
  }
}

function verificationOf (request: FastifyRequest, credential: Verification['credential']): Verification {
  return { requestId: excerpt(requestIdOf(request)), route: routeOf(request), credential }
}

function issuerOf (outcome: VerifiedToken | Refusal): string | null {
  return isRefusal(outcome) ? null : outcome.claims.iss ?? null
}

function outcomeOf (outcome: AuthContext | Refusal): string {
  return isRefusal(outcome) ? outcome : outcome.authType
}
