/** The hook before the 101, shared by WebSocket and HTTP routes: find, verify, authorize, then on or refuse. */
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import { accept, createRouteSettings } from '../connection/connections.js'
import type { Hub } from '../connection/hub.js'
import { NOBODY } from '../connection/nobody.js'
import { settleWithin } from '../deadline.js'
import { invalidOption, isRefusal, type Refusal } from '../errors.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import type { Auditor } from '../observe/audit.js'
import { withoutToken } from '../observe/redaction.js'
import type { ParsedOptions } from '../options.js'
import type { ParsedRouteRule } from '../route-options.js'
import type { Place } from '../policy/limits.js'
import { compileRequirements } from '../policy/requirements.js'
import { admitUpgrade, contextOf, networkOf, refusalFor, schemeOf, setContext } from '../request.js'
import type { Chain, FaultReporter } from '../verify/chain.js'
import { revokedAs } from '../verify/context.js'
import { createCredentialFinder } from './credentials.js'
import { createOriginCheck } from './origin.js'
import { createRefuser } from './refuse.js'
import { speaksProtocol } from './subprotocol.js'

/** As an `onRequest` or `preHandler` hook. */
export type GuardHook = (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => void

export interface GuardParts {
  readonly chain: Chain
  readonly hub: Hub
  readonly audit: Auditor
  readonly report: FaultReporter
}

/** The credential may still come, as the first message. */
const PENDING = Symbol('pending')
type Found = ReturnType<ReturnType<typeof createCredentialFinder>>
type Verdict = AuthContext | Refusal | null | typeof PENDING

const TLS_REQUIRED: Refusal = 'FST_HYBRID_AUTH_TLS_REQUIRED'
const ORIGIN_REFUSED: Refusal = 'FST_HYBRID_AUTH_ORIGIN_REFUSED'
const TOO_MANY_FAILURES: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const SAFE_METHODS = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

export function createGuards (options: ParsedOptions, { chain, hub, audit, report }: GuardParts) {
  const findCredential = createCredentialFinder(options.credentials)
  const isAllowedOrigin = createOriginCheck(options.origins)
  const isOwnOrigin = createOriginCheck(undefined)
  const refuse = createRefuser(options)
  // A good cookie is refused too then, and must not become nobody's in silence.
  const isBlocking = options.failures !== false && options.failures.block === 'address'

  /**
   * A hook that holds a request to the rule. Who was authenticated before is only asked whether the rule holds.
   * @param isSocket an upgrade that passes becomes a connection
   * @param where which route it is, for errors
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on what contradicts the options of the registration
   */
  return function createGuard (rule: ParsedRouteRule, isSocket: boolean, where = ''): GuardHook {
    const meets = compileRequirements(rule)
    const settings = createRouteSettings(hub, rule, meets)
    if (rule.rooms && rule.control === false) throw invalidOption('auth.rooms', `does not go with control: false (${where})`)
    if (rule.rooms && options.rooms.authorize === undefined && options.rooms.patterns === undefined) throw invalidOption('auth.rooms', `needs rooms.authorize or rooms.patterns where the plugin is registered (${where})`)

    return function hybridAuthGuard (request, reply, done) {
      const failed = (error: unknown): Refusal => {
        report(request, 'rule', error)
        return UNAVAILABLE
      }
      let place: Place | null = null
      let who: AuthContext | null = null
      const takePlace = (auth: AuthContext | null): Maybe<Verdict> => {
        if (hub.limits === null || !isSocket || !request.ws) return auth
        return whenReady(hub.limits.acquire(request, auth, networkOf(request).socket), taken => {
          if (isRefusal(taken)) return taken
          place = taken
          return auth
        })
      }
      const admitted = attempt(() => whenReady(admit(request, takeCredential(request)), (admission): Maybe<Verdict> => {
        if (admission === null) return takePlace(null)
        if (!isContext(admission)) return admission
        who = admission
        return whenReady(meets(admission, request), (unmet): Maybe<Verdict> => {
          if (unmet !== null) return refusalFor(request, unmet)
          return hub.limits === null ? admission : takePlace(admission)
        })
      }), failed)
      settleWithin<Verdict>(admitted, options.handshakeTimeout, UNAVAILABLE, given => {
        if (reply.sent || networkOf(request).socket?.destroyed === true) return
        // Since it was verified, other things were waited for.
        const verdict = isContext(given) && hub.revocations.covers(given) ? revokedAs(given) : given
        if (typeof verdict === 'string') {
          audit.refused(request, verdict, who)
          refuse(request, reply, verdict, isSocket)
          return
        }
        if (isSocket && request.ws) admitSocket(request, verdict, place)
        if (!isContext(verdict)) audit.passed(request, verdict === null ? 'anonymous' : 'pending')
        if (isContext(verdict) && contextOf(request) === null) {
          setContext(request, verdict)
          audit.authenticated(request, verdict)
        }
        done()
      })
    }

    /** null: nobody, on a route where that is allowed. */
    function admit (request: FastifyRequest, found: Found): Maybe<Verdict> {
      if (request.ws && (hub.isDraining || hub.isIsolated)) return UNAVAILABLE
      return whenReady(contextOf(request) ?? identify(request, found), (outcome): Maybe<Verdict> => {
        if (!isRefusal(outcome) || !isAnonymous(outcome, found, isBlocking)) return outcome
        if (isSocket && request.ws && rule.firstMessage !== 0) return noRoom(request) ?? PENDING
        return rule.optional ? null : outcome
      })
    }

    function mayAsk ({ raw }: FastifyRequest): boolean {
      return rule.control !== false && (rule.control === true || speaksProtocol(raw.headers['sec-websocket-protocol']))
    }

    function admitSocket (request: FastifyRequest, verdict: Exclude<Verdict, Refusal>, place: Place | null): void {
      // What is compressed is small on the wire only: a socket that owes its credential gets no room to unpack.
      if (verdict === PENDING) delete request.raw.headers['sec-websocket-extensions']
      // Nobody's socket is left alone where nothing is limited, and nobody asks as whom it is open.
      const isFree = verdict === null && place === null && rule.rate === undefined && settings.decide === undefined && !mayAsk(request)
      admitUpgrade(request.raw, isFree
        ? null
        : (socket, net, run) => { accept(socket, net, request, settings, verdict === null ? NOBODY : verdict === PENDING ? null : verdict, place, run) })
    }
  }

  function noRoom (request: FastifyRequest): Refusal | null {
    const refusal = hub.pending.refusalOf(request)
    if (refusal !== null) audit.tally.limited('pending', true)
    return refusal
  }

  /** Whether what is refused here would only be refused, had the operator not asked to try it out first. */
  function isOnlyReported (request: FastifyRequest, what: 'origin' | 'tls', code: Refusal): boolean {
    if (!options.report.includes(what)) return false
    audit.reported(request, code, null)
    return true
  }

  /** What was presented. From here on it is in no URL and no query, whatever becomes of the request. */
  function takeCredential (request: FastifyRequest): Found {
    const found = findCredential(request)
    if (options.credentials.query) dropParameter(request, 'token')
    if (options.credentials.ticket && request.ws && hasTicket(request)) dropParameter(request, 'ticket')
    return found
  }

  function identify (request: FastifyRequest, found: Found): Maybe<AuthContext | Refusal> {
    const { origin } = request.headers
    if (request.ws && options.requireTls && !isTls(request) && !isOnlyReported(request, 'tls', TLS_REQUIRED)) return TLS_REQUIRED
    // Browsers send cookies along to any socket, and Origin with every one: whoever sends one is held to it.
    if (request.ws && origin !== undefined && !isSameOrAllowed(request) && !isOnlyReported(request, 'origin', ORIGIN_REFUSED)) return ORIGIN_REFUSED
    if (isRefusal(found)) return found
    if (found !== null && 'ticket' in found) {
      const isFrom = (asked: string | null) => asked === null ? origin === undefined || isOwn(request, origin) : asked === origin
      return chain.redeem(request, { ticket: found.ticket, isFrom })
    }
    return chain.authenticate(request, { bearer: found, mayUseCookie: () => mayUseCookie(request) })
  }

  function mayUseCookie (request: FastifyRequest): boolean {
    if ((!request.ws && SAFE_METHODS.has(request.method)) || isSameOrAllowed(request)) return true
    // A socket with a foreign Origin was reported already.
    if (request.ws && request.headers.origin !== undefined) return options.report.includes('origin')
    return isOnlyReported(request, 'origin', ORIGIN_REFUSED)
  }

  function isSameOrAllowed (request: FastifyRequest): boolean {
    const { origin } = request.headers
    const { host = '' } = networkOf(request)
    return origin !== undefined && isAllowedOrigin(origin, schemeOf(request), host)
  }

  /** A page's own `GET` carries no Origin, and its socket does: the server's. */
  function isOwn (request: FastifyRequest, origin: string): boolean {
    const { host = '' } = networkOf(request)
    return isOwnOrigin(origin, schemeOf(request), host)
  }
}

function isContext (verdict: Verdict): verdict is AuthContext {
  return typeof verdict === 'object' && verdict !== null
}

/** A credential that is absent, or a cookie that names nobody, however often: browsers keep those long after the session. */
function isAnonymous (refusal: Refusal, found: Found, isBlocking: boolean): boolean {
  return refusal === 'FST_HYBRID_AUTH_MISSING_CREDENTIALS' || refusal === 'FST_HYBRID_AUTH_INVALID_SESSION' ||
    (refusal === TOO_MANY_FAILURES && found === null && !isBlocking)
}

/** Behind a proxy as Fastify's `trustProxy` has it. */
function isTls (request: FastifyRequest): boolean {
  return schemeOf(request) === 'https'
}

function hasTicket ({ query }: FastifyRequest): boolean {
  return typeof query === 'object' && query !== null && 'ticket' in query
}

/** From here on nothing that logs the URL or the query can log the credential. */
function dropParameter ({ raw, query }: FastifyRequest, name: 'token' | 'ticket'): void {
  if (raw.url !== undefined) raw.url = withoutToken(raw.url)
  if (typeof query === 'object' && query !== null) Reflect.deleteProperty(query, name)
}
