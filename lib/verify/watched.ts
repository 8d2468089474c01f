/** Credentials that somebody else may end while a socket is open: who is asked about them, and how often. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import { isRefusal, type Refusal } from '../errors.js'
import type { Maybe } from '../maybe.js'
import type { FaultReporter } from './chain.js'
import { sessionContext, tokenContext } from './context.js'
import type { CheckedIdentity } from './identity.js'
import type { IntrospectionWatch, Introspector } from './introspector.js'
import type { SessionVerifier } from './session.js'

/** What a credential has become, for each connection that came with it. */
export type Renewal = (of: AuthContext) => AuthContext

/** A kind of credential. */
export interface Watched {
  /** In milliseconds, as `maxStale`. */
  readonly revalidate: number
  /** While there is no answer. */
  readonly onError: 'serve' | 'close'
  /** How long a socket is served after the last good answer. */
  readonly maxStale: number
  /** How many credentials in a second. */
  readonly perSecond: number
  /** For the audit, of one that is not good any more. */
  readonly goneReason: string
  /** When its credential was last asked about, in milliseconds since the epoch: it may have been remembered. */
  readonly since: (context: AuthContext) => number
  /**
   * The credential of a context, asked about now. Neither throws nor rejects.
   * @param takeUse whether the application used any of its sockets since this was last asked
   */
  readonly renew: (request: FastifyRequest, context: AuthContext, takeUse: () => boolean) => Maybe<Renewal | Refusal>
}

/** What the chain does with everything that it verifies. */
export interface WatchedParts {
  readonly grounded: <T extends { readonly identity: CheckedIdentity }> (outcome: T | Refusal, issuer: string | null) => Maybe<T | Refusal>
  readonly closed: <T> (request: FastifyRequest, where: string, run: () => Maybe<T>) => Maybe<T | Refusal>
  readonly report: FaultReporter
}

const INVALID_SESSION: Refusal = 'FST_HYBRID_AUTH_INVALID_SESSION'
const INVALID_TOKEN: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'

export function watchSessions ({ settings, reread, touch }: SessionVerifier, { grounded, closed, report }: WatchedParts): Watched {
  const { revalidate, maxStale, onStoreError: onError } = settings
  return {
    revalidate,
    maxStale,
    onError,
    perSecond: Infinity,
    goneReason: 'the session is gone',
    since: () => Date.now(),
    renew: (request, context, takeUse) => closed(request, 'session', async (): Promise<Renewal | Refusal> => {
      if (context.authType !== 'session') return INVALID_SESSION
      const found = await grounded(await reread(request, context.sessionId), null)
      if (isRefusal(found)) return found
      // Extended if the application used it, and only then.
      const expiresAt = touch === null || !takeUse()
        ? null
        : await touch(request, context.sessionId).catch((error: unknown) => {
          report(request, 'session.touch', error)
          return null
        })
      const session = expiresAt === null ? found : { ...found, expiresAt }
      return of => sessionContext(session, 'fallbackFrom' in of ? of.fallbackFrom : undefined, of.via)
    })
  }
}

export function watchTokens (introspector: Introspector, { revalidate, maxStale, onProviderError: onError, requestsPerSecond: perSecond }: IntrospectionWatch, { grounded, closed }: WatchedParts): Watched {
  return {
    revalidate,
    maxStale,
    onError,
    perSecond,
    goneReason: 'the token is not active any more',
    since: context => context.authType === 'oauth2' ? introspector.since(context.claims) : 0,
    renew: (request, context) => closed(request, 'introspection', async (): Promise<Renewal | Refusal> => {
      if (context.authType !== 'oauth2') return INVALID_TOKEN
      const outcome = await introspector.reverify(context.claims)
      const found = await grounded(outcome, isRefusal(outcome) ? null : outcome.claims.iss ?? null)
      // The time that it was had is what its lifetime is counted from.
      return isRefusal(found) ? found : of => Object.freeze({ ...tokenContext('oauth2', found, of.via), authenticatedAt: of.authenticatedAt })
    })
  }
}
