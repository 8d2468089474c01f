import type { CloseName } from '../lib/protocol.js'
import type { AuthContext, AuthType } from './context.js'

/** What happens to a connection after its handler got it. */
export interface ConnectionEvents {
  /** The context was replaced. */
  refresh: [context: AuthContext]
  /** The credential ends in so many milliseconds; `token_refresh_required` was sent where the client speaks the protocol. */
  expiring: [remaining: number]
  /** It is in a room from now on. */
  joined: [room: string]
  /** It is not any more: by itself, by the server, because it may not be, or because it ended. */
  left: [room: string, reason: 'left' | 'removed' | 'forbidden' | 'closed']
  /** The socket is closed; by us with a code of the table, or by the peer. */
  close: [code: number]
}

/** One guarded socket. */
export interface Connection {
  /** Unique among processes. Not a secret, and no credential. */
  readonly id: string
  /** The current context; replaced, never changed. */
  readonly context: AuthContext
  /** Whether the current context has this permission. */
  can (permission: string): boolean
  /** Those it is in now. */
  readonly rooms: ReadonlySet<string>
  /** As `app.hybridAuth.rooms.join`. */
  join (room: string): Promise<boolean>
  /** As `app.hybridAuth.rooms.leave`. */
  leave (room: string): boolean
  /** Sends a value as a JSON text frame. false: the socket is not open, and nothing was sent. @throws TypeError on what JSON cannot hold */
  send (value: unknown): boolean
  /**
   * Closes by a name of the table, or by a code from 3000 to 4999.
   * @default 'Revoked'
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on what a close frame cannot carry
   */
  close (code?: CloseName | number, reason?: string): void
  on<E extends keyof ConnectionEvents> (event: E, listener: (...args: ConnectionEvents[E]) => void): this
  off<E extends keyof ConnectionEvents> (event: E, listener: (...args: ConnectionEvents[E]) => void): this
}

/** Which connections are meant; every member must match. `{}` means all; a member that is undefined is an error. */
export interface ConnectionFilter {
  userId?: string
  /** null: those whose credential names no issuer. */
  issuer?: string | null
  tenantId?: string | null
  sessionId?: string
  tokenId?: string
  authType?: AuthType
}

export interface DisconnectOptions {
  /** A name of the close-code table, or a code from 3000 to 4999. @default 'Revoked' */
  code?: CloseName | number | undefined
  /** Replaces the `code` of the close reason: 1 to 40 letters, digits, spaces and any of `_.:-`. @default the table's */
  reason?: string | undefined
}

/** One frame of the application, as a route's `authorize` sees it. Valid until the verdict: copy what you keep. */
export interface Message {
  readonly data: Buffer
  readonly isBinary: boolean
  /** The frame as UTF-8, decoded once. */
  text (): string
  /** The frame as JSON, parsed once. @throws SyntaxError */
  json (): unknown
}
