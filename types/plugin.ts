import type { FastifyRequest, preHandlerHookHandler } from 'fastify'
import type { WebsocketHandler } from '@fastify/websocket'
import type { EventEmitter } from 'node:events'
import type { AuditEvent } from './audit.js'
import type { ClusterStatus, CommandResult, RevokeOptions, RevokeTarget, TicketOptions } from './cluster.js'
import type { Connection, ConnectionFilter, DisconnectOptions } from './connection.js'
import type { AuthContext } from './context.js'
import type { Rooms } from './rooms.js'
import type { RouteAuth, Rule } from './rules.js'

/** What is used of a `Registry` of prom-client. */
export interface MetricsRegistry {
  registerMetric (metric: object): void
}

/** Narrows a user to connections of one issuer or tenant; null: of none. */
export interface PermissionScope {
  issuer?: string | null
  tenantId?: string | null
}

export interface RepeatOptions {
  /** How long an id is remembered, in milliseconds, 1 to 86 400 000. @default 60000 */
  window?: number | undefined
}

/** `app.hybridAuth`. */
export interface HybridAuth {
  /**
   * A `preHandler` that refuses who does not meet the rule, and authenticates by itself where nothing has yet.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on an unknown or ill-typed member
   */
  require (rule?: Rule): preHandlerHookHandler
  /** The current context of a request; null where nobody was authenticated. */
  contextOf (request: FastifyRequest): AuthContext | null
  /** The connection of a socket that a handler was given; null on a route with `auth: false`. */
  connection (socket: Parameters<WebsocketHandler>[0]): Connection | null
  /** The open connections of this process. @throws FST_HYBRID_AUTH_INVALID_OPTION on a member that is not a filter */
  connections (filter?: ConnectionFilter): Connection[]
  /** How many {@link connections} there are. */
  count (filter?: ConnectionFilter): number
  /**
   * Closes the connections that match, on every node. Their credentials stay good: {@link revoke} ends those too.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION; FST_HYBRID_AUTH_UNAVAILABLE where the cluster is away and no more commands can wait
   */
  disconnect (filter: ConnectionFilter, options?: DisconnectOptions): Promise<CommandResult>
  /**
   * Refuses the credentials of the target from now on, over HTTP and on sockets, and ends the open sockets that came with
   * them, on every node. Resolves when every node has done so, or has not answered in time.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION; FST_HYBRID_AUTH_UNAVAILABLE where the cluster is away and no more commands can wait
   */
  revoke (target: RevokeTarget, options?: RevokeOptions): Promise<CommandResult>
  /**
   * Replaces the permissions of every open connection of a user, on every node, until its next credential. When it resolves,
   * the routes' rules and the rooms have been asked again, on every node that acknowledged it.
   * @throws as {@link disconnect}
   */
  setPermissions (userId: string, permissions: readonly string[], scope?: PermissionScope): Promise<CommandResult>
  /**
   * Asks the options `enrich` and `permissions` again for every open connection of a user, on every node, and forgets what they said
   * before. Resolves as {@link setPermissions}.
   * @throws as {@link disconnect}; FST_HYBRID_AUTH_INVALID_OPTION where there is neither
   */
  refreshPermissions (userId: string): Promise<CommandResult>
  /** Who hears what is published where. */
  readonly rooms: Rooms
  /**
   * A text that opens one socket as the user of this request, as `?ticket=` of its URL: once, soon, and from the same origin.
   * @throws FST_HYBRID_AUTH_NOT_AUTHENTICATED, FST_HYBRID_AUTH_INVALID_OPTION; FST_HYBRID_AUTH_UNAVAILABLE where it cannot be kept
   */
  issueTicket (request: FastifyRequest, options?: TicketOptions): Promise<string>
  /**
   * For handlers of messages that may come twice: false for the first use of `id` by this user (`issuer`, `userId`, `tenantId`) within
   * `window`, on any node, true for each later one. An id is a text of 1 to 128 characters, or a number.
   * @throws FST_HYBRID_AUTH_MALFORMED_REQUEST on what is no id; FST_HYBRID_AUTH_UNAVAILABLE where it is not known what other nodes have
   * seen; FST_HYBRID_AUTH_INVALID_OPTION
   */
  isRepeat (auth: AuthContext, id: string | number, options?: RepeatOptions): Promise<boolean>
  /** How this node stands to the others. */
  status (): ClusterStatus
  /**
   * Adds this registration's metrics, all named `hybrid_auth_…`, to a registry of prom-client.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on what is no registry, and what the registry throws on metrics that it has already
   */
  metrics (registry: MetricsRegistry): void
  /** Every {@link AuditEvent}, under its `type`. */
  readonly events: EventEmitter<{ [Type in AuditEvent['type']]: [event: Extract<AuditEvent, { type: Type }>] }>
}

declare module 'fastify' {
  // Merges with the interface that @fastify/session declares, and stands in for it where that is not installed.

  interface Session {}

  interface FastifyInstance {
    hybridAuth: HybridAuth
  }

  interface FastifyRequest {
    /**
     * The current context. On a socket's request it is replaced when the connection re-authenticates.
     * @throws FST_HYBRID_AUTH_NOT_AUTHENTICATED where nobody was authenticated
     */
    readonly auth: AuthContext
  }

  interface RouteShorthandOptions {
    /** Who may use this route. @default true for a WebSocket route, false for an HTTP route */
    auth?: RouteAuth
  }
}
