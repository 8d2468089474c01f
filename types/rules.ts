import type { FastifyRequest } from 'fastify'
import type { Message } from './connection.js'
import type { AuthContext, AuthType } from './context.js'

/** Decides by code. Only `true` admits; anything else, a throw included, refuses. */
export type RuleFunction = (auth: AuthContext, request: FastifyRequest) => boolean | Promise<boolean>

/** Decides about one message of an open socket. Only `true` delivers it; later messages wait for a promise. */
export type MessageRule = (auth: AuthContext, message: Message, request: FastifyRequest) => boolean | Promise<boolean>

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
  /**
   * How the user was authenticated (`acr`, OpenID Connect Core §2), or a list of which one is enough. Who is not is asked to
   * authenticate again (RFC 9470), and a message that needs it waits for that.
   */
  acr?: string | readonly string[] | undefined
  /** How long ago at most: by the claim `auth_time` of a token, or `issuedAt` of a session; in milliseconds. As `acr` otherwise. */
  maxAuthAge?: number | undefined
  /** A decision by code, asked only if the rest holds, but for `acr` and `maxAuthAge`. */
  check?: RuleFunction | undefined
}

/** A rule for `app.hybridAuth.require()`. */
export type Rule = RequirementRule | RuleFunction

/** A token bucket. */
export interface BucketRule {
  /** How much may come at once. */
  capacity: number
  /** How much may come in the long run, a second. */
  refillPerSecond: number
}

/** Messages, their bytes, or both. Frames of ours that a client sends count as well. */
export interface Rates {
  capacity?: number | undefined
  refillPerSecond?: number | undefined
  /** The same for bytes. A message that is larger than `capacity` never passes. */
  bytes?: BucketRule | undefined
}

/** How much a connection may send. */
export interface RateRule extends Rates {
  /**
   * All connections of a user of one tenant on this route together. `shared`: on all nodes together, which asks the cluster
   * about every message. @default not limited, not shared
   */
  perUser?: (Rates & { shared?: boolean | undefined }) | undefined
}

/**
 * Rules by the type of a message, which is the text in its member `field`. Two names are not types where they hold a text:
 * `field` (by default `'type'`), and `default`: what becomes of messages of other types, and of those without (by default
 * `'deny'`).
 */
export interface MessageTypeRules {
  readonly [type: string]: Rule | string | undefined
  readonly default?: 'allow' | 'deny' | Rule | undefined
}

/** A route's `auth` option, as an object. */
export interface RouteRule extends RequirementRule {
  /**
   * Lets a request without a credential through, as nobody: `contextOf(request)` is then null. A credential that is
   * there and refused is still a refusal. @default false
   */
  optional?: boolean | undefined
  /** (sockets) Asked for each message of the application, before any listener sees it. @default every message passes */
  authorize?: MessageRule | undefined
  /** (sockets) Who may send which messages, by their type; `authorize` is asked about those that pass. @default every message passes */
  messages?: MessageTypeRules | undefined
  /** (sockets) Takes `join`, `leave` and `message` frames of the client, as the option `rooms` allows them. @default false */
  rooms?: boolean | undefined
  /**
   * (sockets) What follows a refused message: `error` tells the client, if it speaks the protocol, and keeps the socket;
   * `close` closes it with 4007. @default 'error'
   */
  onRefused?: 'error' | 'close' | undefined
  /**
   * (sockets) How much may come: `capacity` messages at once and `refillPerSecond` in the long run, as
   * `{ capacity: 50, refillPerSecond: 10 }`. What is more is answered by an `error` frame with `retryAfterMs`, and who keeps
   * on is closed with 4008. @default no limit
   */
  rate?: RateRule | undefined
  /**
   * (sockets) Accepts the upgrade without a credential and waits so many milliseconds for it as the first message;
   * `true` is 5 000. The handler runs when it came. @default false
   */
  firstMessage?: boolean | { timeout?: number | undefined } | undefined
  /**
   * (sockets) Whether frames of the control protocol are sent unasked. `false` also leaves every frame that comes to the
   * application. @default to clients that negotiated `hybrid-auth.v1`, and in answer to a control frame
   */
  control?: boolean | undefined
  /**
   * (sockets) How old the last reading of the session may be when a message is delivered, in milliseconds; an older one
   * is read again first. @default as old as `session.revalidate` lets it become
   */
  sessionMaxAge?: number | undefined
}

/**
 * A route's `auth` option. `true`: authenticated, nothing more. `false`: open, the only way to leave a WebSocket
 * route unguarded.
 */
export type RouteAuth = boolean | RouteRule | RuleFunction
