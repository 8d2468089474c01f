/** What the client uses of a browser, or of Node: declared here, so that neither has to be there to compile it. */

/** Text, or bytes. */
export type Data = string | ArrayBuffer | ArrayBufferView<ArrayBuffer>

/** The part of a WebSocket (WHATWG WebSockets §3.1) that is used; `ws` has it too. */
export interface SocketLike {
  binaryType: string
  readonly readyState: number
  addEventListener (type: 'open' | 'message' | 'close' | 'error', listener: (event: SocketEvent) => void): void
  send (data: Data): void
  close (code?: number, reason?: string): void
}

/** Of a message its data, of a close its code and reason. */
export interface SocketEvent {
  readonly type: string
  readonly data?: unknown
  readonly code?: number
  readonly reason?: string
}

export type SocketClass = new (url: string, protocols: string[]) => SocketLike
