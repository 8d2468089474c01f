/** What an application writes, and is told. */
import type { CloseAction, ErrorFrame } from '../protocol.js'
import type { Data, SocketClass } from './environment.js'
import type { GetToken } from './tokens.js'

/** How a credential reaches the server. */
export type Attach = 'protocol' | 'message' | 'ticket' | 'query' | 'cookie'

export interface AuthSocketOptions {
  /** `wss:`, or `ws:`. A function is asked for each connection; what it throws closes the client for good. */
  url: string | URL | (() => string | URL)
  /**
   * A token, or with `attach: 'ticket'` a ticket; null where there will be none: the client closes for good. What it throws, and
   * more than 10 s, is tried again. Never asked twice at once, unless it goes on after its signal was aborted. Required unless `attach` is `cookie`
   */
  getToken?: GetToken | undefined
  /**
   * `message` is for origins without a session: a socket that its cookie has opened takes no token, and is closed with 4011.
   * @default 'protocol' with `getToken`, else 'cookie'
   */
  attach?: Attach | undefined
  /** Closes the client for good. */
  signal?: AbortSignal | undefined
  /**
   * What tabs of one origin have in common: one refreshes at a time (Web Locks), all have its token, and a logout closes all
   * (BroadcastChannel). A name: only clients of one server, and of one tenant at a time, may have the same. false: each for itself.
   * @default by the host and path of `url` in a page; false in Node, and where `url` is a function
   */
  tabs?: string | false | undefined
  /** What to do where there is no socket to be had. @default nothing but trying again */
  fallback?: Fallback | undefined
  /** How many messages wait for a connection at most. They are dropped when the user is another. @default 0 */
  queue?: number | undefined
  /** @default the global one; in Node before 22 that of `ws` */
  WebSocket?: SocketClass | undefined
}

/** Polls in place of a socket, of the rooms that keep a history. Not with `attach: 'ticket'`. */
export interface Fallback {
  /** How long there has to be no socket, in milliseconds. @default 10_000 */
  after?: number | undefined
  /** Where `rooms.poll()` of the server answers: `https:`, or relative to the page. */
  poll: string | URL
  /** Between two polls, in milliseconds, half as long to half as long again. @default 5000 */
  interval?: number | undefined
}

/** `waiting`: for the next attempt. `idle`: until something is sent, for the server had nothing to do for it. */
export type State = 'connecting' | 'open' | 'waiting' | 'idle' | 'closed'

/** Who it is, as the server has said. */
export interface ClientIdentity { readonly id: string }

export interface ClosedEvent {
  /** The close code; 1006 where there was none. */
  readonly code: number
  /** The `code` of the close reason, as `expired`; empty where there was none. */
  readonly reason: string
  readonly action: CloseAction
  /** The client does not come back by itself. */
  readonly terminal: boolean
}

/** A message of the application, or what somebody said in a room. */
export type ClientMessage =
  | { readonly room: null, /** Text as a string, bytes as an ArrayBuffer. */ readonly data: unknown, readonly payload?: undefined, readonly id?: undefined }
  | { readonly room: string, readonly payload: unknown, readonly id?: string | number | undefined, readonly data?: undefined }

export type AuthSocketEvents = {
  state: State
  /** `recovered`: there was a connection before. */
  open: { readonly identity: ClientIdentity | null, readonly recovered: boolean }
  message: ClientMessage
  permissions: { readonly permissions: readonly string[], readonly added: readonly string[], readonly removed: readonly string[] }
  close: ClosedEvent
  /**
   * There is nobody logged in any more: by {@link AuthSocket.logout} here or in another tab, by getToken that has none (`self`), or
   * as the server says: revoked, closed by it, or not authenticated in the first place. The close follows.
   */
  logout: { readonly by: 'self' | 'tab' | 'server' }
  /** true: there is no socket, and the rooms are polled. false: that is over. */
  degraded: boolean
  /** In a room: what is said there from now on comes. Again after each reconnect. */
  joined: { readonly room: string }
  /** Out of it: `removed` by the server, `forbidden` any longer, or null where the client has left it. */
  left: { readonly room: string, readonly reason: 'removed' | 'forbidden' | null }
  /** Messages of the room are lost: more than its history holds. Load anew what they have changed. */
  gap: { readonly room: string }
  /**
   * `token`: getToken failed. `connect`: there is no socket to be had, for now. `poll`: a poll failed. `refused`: the server has
   * refused something, and the socket stays.
   */
  error: { readonly stage: 'token' | 'connect' | 'poll', readonly error: unknown } | { readonly stage: 'refused', readonly error: ErrorFrame }
}

export interface AuthSocket {
  readonly state: State
  readonly identity: ClientIdentity | null
  /** true: it is on its way. false: it is not, and waits where there is a `queue` with room for it: who sends it again then sends it twice. @throws TypeError on what is neither text nor bytes */
  send (data: Data): boolean
  /** Into a room, now and after each reconnect. */
  join (room: string): void
  leave (room: string): void
  /** As {@link send}, of what JSON holds. Others hear it, and this client does not. @param id tells the server, and who hears it, that they have seen it before: nobody else's may be the same. @default a random one */
  publish (room: string, payload: unknown, id?: string | number): boolean
  /** Connects at once, if it waits, is idle, was closed by the server or logged out. Not after {@link close}. */
  connect (): void
  /** Closes it, and its siblings in other tabs, and forgets the token. The server is told by whoever logs out there. */
  logout (): void
  /** For good. */
  close (): void
  /** @returns what takes the listener off again */
  on<Name extends keyof AuthSocketEvents> (name: Name, listener: (event: AuthSocketEvents[Name]) => void): () => void
  /** Messages until the client closes. */
  [Symbol.asyncIterator] (): AsyncIterator<ClientMessage>
}
