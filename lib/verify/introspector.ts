/** Tokens that their authorization server is asked about: what the core knows of it, so that it loads nothing of how that is done. */
import type { Claims } from '../../types/context.js'
import type { Forged, Refusal } from '../errors.js'
import type { Maybe } from '../maybe.js'
import type { Introspected } from '../observe/tally.js'
import type { VerifiedToken } from './jwt.js'

// Registered: the entry that makes one is another file, and may be another copy of this library.
const INTROSPECTION = Symbol.for('fastify-hybrid-auth.introspection')

/** How tokens of open sockets are asked about. */
export interface IntrospectionWatch {
  /** How often, in milliseconds. */
  readonly revalidate: number
  readonly onProviderError: 'serve' | 'close'
  /** How long a socket is served after the last good answer, in milliseconds. */
  readonly maxStale: number
  /** How many tokens in a second. */
  readonly requestsPerSecond: number
}

/** The tokens of one registration. */
export interface Introspector {
  /** Who a token names, as far as is remembered. @throws, or rejects, where that cannot be known */
  verify (token: string): Maybe<VerifiedToken | Refusal | Forged>
  /** The same, asked anew. Of claims that {@link verify} has answered. */
  reverify (claims: Claims): Maybe<VerifiedToken | Refusal>
  /** The token of such claims; null: they are not of here. */
  tokenOf (claims: Claims): string | null
  /** When they were answered, in milliseconds since the epoch. */
  since (claims: Claims): number
  /** Whether nothing has been forgotten since such claims were asked for. */
  isCurrent (claims: Claims): boolean
  /** What is remembered is asked about again: somebody has logged out at the server, and it knows whose tokens that ended. */
  forget (): void
  /** The application closes: nothing is asked any more. */
  stop (): void
}

/** What an introspector tells of itself. */
export interface IntrospectorParts {
  /** The mapper returned something that is neither null nor an identity. */
  readonly onBadIdentity: () => void
  readonly onAsked: (outcome: Introspected) => void
}

/** As `introspection()` makes one, for the option of that name. */
export interface IntrospectionSource {
  /** Whose tokens they are, and as whom that is asked: what tells registrations apart. */
  readonly from: string
  readonly watch: IntrospectionWatch
  readonly [INTROSPECTION]: (parts: IntrospectorParts) => Introspector
}

export function introspectionSource (from: string, watch: IntrospectionWatch, open: (parts: IntrospectorParts) => Introspector): IntrospectionSource {
  return Object.freeze({ from, watch, [INTROSPECTION]: open })
}

export function isIntrospection (given: unknown): given is IntrospectionSource {
  return typeof given === 'object' && given !== null && INTROSPECTION in given
}

export function openIntrospector (source: IntrospectionSource, parts: IntrospectorParts): Introspector {
  return source[INTROSPECTION](parts)
}
