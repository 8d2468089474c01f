/** What the parts of this folder share: the settings of a registration and of a route, and the ways out of the folder. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { Refusal } from '../errors.js'
import type { Maybe } from '../maybe.js'
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import type { Revocation } from '../cluster/revocations.js'
import type { ConnectionLimits } from '../policy/limits.js'
import type { MessageDecision } from '../policy/messages.js'
import type { PermissionSource } from '../policy/permissions.js'
import type { RateParts, RouteRates } from '../policy/rates.js'
import type { RequirementCheck } from '../policy/requirements.js'
import type { CloseAction, CloseName } from '../protocol.js'
import type { Publisher } from '../rooms/publisher.js'
import type { Rooms } from '../rooms/rooms.js'
import type { VerifiedSession } from '../verify/session.js'
import type { GuardedConnection } from './connection.js'
import type { ReusableMessage } from './message.js'
import type { Registry } from './registry.js'
import type { SessionWatch, SessionWatchSettings } from './sessions.js'
import type { WaitingSockets } from './waiting.js'

/** The options that matter after the 101. */
export type Settings = Pick<ParsedOptions,
  'rooms' | 'handshakeTimeout' | 'expiryGrace' | 'maxConnectionAge' | 'idleTimeout' | 'heartbeat' | 'drain' | 'closeCodes' | 'limits' | 'report'>

/** The same path as before the 101. */
export interface Verifiers {
  /** Who a token names. Neither throws nor rejects. */
  verifyToken (request: FastifyRequest, token: string): Maybe<AuthContext | Refusal>
  readonly sessions: LiveSessions | null
}

/** Sessions as open sockets need them. */
export interface LiveSessions {
  readonly settings: SessionWatchSettings
  /** What the store holds of a session now. Neither throws nor rejects. */
  readonly reread: (request: FastifyRequest, sessionId: string) => Maybe<VerifiedSession | Refusal>
  /** Extends a rolling session; null where that was not asked for. Does not reject. */
  readonly touch: ((request: FastifyRequest, sessionId: string) => Promise<number | null>) | null
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
  readonly sessions: SessionWatch | null
  readonly audit: Auditor
  readonly revocations: RevocationCheck
  /** null: connections are not counted. */
  readonly limits: ConnectionLimits | null
  readonly rates: RateParts
  /** null: permissions are what credentials say. */
  readonly permissions: PermissionSource | null
  readonly rooms: Rooms<GuardedConnection>
  readonly publisher: Publisher<GuardedConnection>
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
