import type { FastifyRequest, preHandlerHookHandler } from 'fastify'
import type { WebsocketHandler } from '@fastify/websocket'
import type { Connection, ConnectionFilter, DisconnectOptions } from './connection.js'
import type { AuthContext } from './context.js'
import type { RouteAuth, Rule } from './rules.js'

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
  /** Closes the connections that match. @throws FST_HYBRID_AUTH_INVALID_OPTION */
  disconnect (filter: ConnectionFilter, options?: DisconnectOptions): Promise<{ matched: number }>
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
