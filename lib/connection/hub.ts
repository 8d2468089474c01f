/** What the parts of this folder share: the settings of a registration and of a route, and the ways out of the folder. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext, AuthType } from '../../types/context.js'
import type { Refusal } from '../errors.js'
import type { Maybe } from '../maybe.js'
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import type { Revocation } from '../cluster/revocations.js'
import type { ConnectionLimits } from '../policy/limits.js'
import type { MessageDecision } from '../policy/messages.js'
import type { RateParts, RouteRates } from '../policy/rates.js'
import type { RequirementCheck } from '../policy/requirements.js'
import type { Sources } from '../policy/sources.js'
import type { CloseAction, CloseName } from '../protocol.js'
import type { Poll } from '../rooms/poll.js'
import type { Publisher } from '../rooms/publisher.js'
import type { Repeats } from '../rooms/repeats.js'
import type { Rooms } from '../rooms/rooms.js'
import type { RoomTerms } from '../rooms/terms.js'
import type { Watched } from '../verify/watched.js'
import type { GuardedConnection } from './connection.js'
import type { ReusableMessage } from './message.js'
import type { Registry } from './registry.js'
import type { WaitingSockets } from './waiting.js'
import type { CredentialWatch } from './watch.js'

/** The options that matter after the 101. */
export type Settings = Pick<ParsedOptions,
  'rooms' | 'handshakeTimeout' | 'expiryGrace' | 'maxConnectionAge' | 'idleTimeout' | 'heartbeat' | 'drain' | 'closeCodes' | 'limits' | 'report'>

/** The same path as before the 101. */
export interface Verifiers {
  /** Who a token names. Neither throws nor rejects. */
  verifyToken (request: FastifyRequest, token: string): Maybe<AuthContext | Refusal>
  /** Credentials that somebody else may end. */
  readonly watched: Partial<Record<AuthType, Watched>>
  /** What others have said of tokens is asked for again. */
  forgetAnswers (): void
}

/** The live revocations, as those who hold a context ask them. */
export interface RevocationCheck {
  covers (context: AuthContext): boolean
  /** null: it is not revoked. */
  find (context: AuthContext): Revocation | null
}

export interface Hub {
  readonly settings: Settings
  readonly verifiers: Verifiers
  readonly registry: Registry
  /** Sockets that still owe their first message. */
  readonly pending: WaitingSockets
  readonly watches: ReadonlyMap<AuthType, CredentialWatch>
  readonly audit: Auditor
  readonly revocations: RevocationCheck
  /** null: connections are not counted. */
  readonly limits: ConnectionLimits | null
  readonly rates: RateParts
  /** null: everything is as credentials say. */
  readonly sources: Sources | null
  readonly rooms: Rooms<GuardedConnection>
  readonly publisher: Publisher<GuardedConnection>
  readonly poll: Poll
  readonly repeats: Repeats
  readonly termsOf: (room: string) => RoomTerms
  /** The application is closing: new sockets are refused. */
  isDraining: boolean
  /** The cluster is away for too long: new sockets are refused. */
  isIsolated: boolean
  /** Puts the connection where the wheel will look at it next. */
  lookAt (connection: GuardedConnection): void
  report (request: FastifyRequest, where: string, error: unknown): void
}

/** A route's `auth` option, read once. */
export interface RouteSettings {
  readonly hub: Hub
  readonly meets: RequirementCheck
  /** undefined: every message is delivered. */
  readonly decide: MessageDecision | undefined
  /** Whether clients may say what they want of rooms. */
  readonly rooms: boolean
  readonly onRefused: 'error' | 'close'
  readonly rate: RouteRates | undefined
  readonly control: boolean | undefined
  /** In milliseconds; 0: a credential is needed at the handshake. */
  readonly firstMessage: number
  /** How old the last reading of the session may be when a message is delivered, in milliseconds. */
  readonly sessionMaxAge: number | undefined
  /** Replaced when a verdict keeps the one that is here. */
  message: ReusableMessage
}

export interface CloseDetails {
  readonly reason?: string
  /** Instead of the row's. */
  readonly action?: CloseAction
  readonly retryAfterMs?: number
}

export type CloseBy = CloseName | number
