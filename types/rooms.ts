import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PollAnswer } from '../lib/protocol.js'
import type { Connection } from './connection.js'
import type { AuthContext } from './context.js'
import type { Rule } from './rules.js'

/** What somebody wants with a room. */
export type RoomAction = 'join' | 'publish'

/** Decides about a room. Only `true` admits; anything else, a throw included, refuses. Asked again whenever the context changes. */
export type RoomAuthorize = (auth: AuthContext, room: string, action: RoomAction) => boolean | Promise<boolean>

/** `true`: whoever the pattern fits. `false`: nobody. */
export type RoomAccess = boolean | Rule

/** Who may have what of the rooms of a pattern: the same for both actions, or each by itself. What is not named is allowed to nobody. */
export type RoomPatternRule = RoomAccess | {
  join?: RoomAccess | undefined
  publish?: RoomAccess | undefined
  /**
   * How many of the last messages are kept, 1 to 10 000, and how long, in milliseconds: for who comes back with a cursor, and for who
   * polls. All nodes give them one order. Whoever may join may read them, those from before he might as well.
   * @default nothing is kept; `maxAge` is 300000, at most 86400000
   */
  history?: number | { messages: number, maxAge?: number | undefined } | undefined
  /**
   * A client's message with an `id` that its user has used in the room within so many milliseconds is dropped, 1 to 86 400 000.
   * @default it is published again
   */
  repeats?: number | undefined
}

export interface RoomOptions {
  /** Asked about rooms that have the form of no pattern. @default refuses them */
  authorize?: RoomAuthorize | undefined
  /**
   * Names such as `tenant/:tenantId/agents`. A segment that begins with a colon must equal that member of the context, or of
   * its `user`; what a name cannot hold is written as in a URL. The pattern whose form a name has decides about it: of two, the first. As a list: who fits may join and publish.
   * @default none
   */
  patterns?: readonly string[] | Readonly<Record<string, RoomPatternRule>> | undefined
  /** How many rooms a connection may be in. @default 100 */
  maxPerConnection?: number | undefined
  /** In characters. @default 128 */
  maxNameLength?: number | undefined
  /** Of one message as JSON, in bytes. @default 65536 */
  maxPayload?: number | undefined
  /** What may wait for a client that does not read, in bytes; past it the socket is closed with 4008. @default 1048576 */
  maxBuffered?: number | undefined
}

/** What became of one message. */
export interface PublishResult {
  /** Members of this process that it was sent to. */
  readonly delivered: number
  /**
   * The other nodes were told. false: they could not be, and their members may have missed it; in a room with history nobody is known to
   * have it. Always true in one process.
   */
  readonly published: boolean
}

/** How many members a room has, on all nodes that answered in time. */
export interface Presence {
  readonly members: number
  readonly nodes: { readonly acknowledged: number, readonly missing: number }
}

/** `app.hybridAuth.rooms`. Names are 1 to `maxNameLength` letters, digits and any of `_.:/@=,;~+!&%-`. */
export interface Rooms {
  /**
   * Resolves when messages from every node reach the connection. false: it is not allowed, not possible, or no name.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on what is no connection
   */
  join (connection: Connection, room: string): Promise<boolean>
  /** false: it was not in there. @throws as {@link join} */
  leave (connection: Connection, room: string): boolean
  /**
   * Sends `{"type":"message","room","payload"}` to every member on every node, in the order of the calls, but for one connection. In a
   * room with history with a `cursor`, and to all in one order; the connection that is left out may read it there.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on a bad name or too large a payload; TypeError on what JSON cannot hold
   */
  publish (room: string, payload: unknown, options?: { except?: Connection | undefined }): Promise<PublishResult>
  /** Of this process. */
  members (room: string): Connection[]
  /** How many {@link members} there are. */
  count (room: string): number
  /** On all nodes, which are asked. @throws FST_HYBRID_AUTH_INVALID_OPTION; FST_HYBRID_AUTH_UNAVAILABLE where the cluster is away */
  presence (room: string): Promise<Presence>
  /**
   * Answers a route that is polled in place of a socket: `app.post('/poll', { auth: true }, request => app.hybridAuth.rooms.poll(request))`.
   * The body is `{ rooms: { [room]: cursor | null } }`, with at most `maxPerConnection` names; null: what is said from now on. Each room's
   * `join` is asked each time. At most `maxBuffered` bytes of messages are answered, and the rest to the next poll.
   * @param reply gets `cache-control: no-store`
   * @throws FST_HYBRID_AUTH_NOT_AUTHENTICATED; FST_HYBRID_AUTH_MALFORMED_REQUEST on another body; FST_HYBRID_AUTH_UNAVAILABLE where the
   * histories cannot be read
   */
  poll (request: FastifyRequest, reply?: FastifyReply): Promise<PollAnswer>
}
