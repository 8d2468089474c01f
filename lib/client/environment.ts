/** What the client uses of a browser, or of Node: declared here, so that neither has to be there to compile it. */

/** Text, or bytes. */
export type Data = string | ArrayBuffer | ArrayBufferView

/** The part of a WebSocket (WHATWG WebSockets §3.1) that is used; `ws` has it too. */
export interface SocketLike {
  binaryType: string
  readonly readyState: number
  addEventListener (type: 'open' | 'message' | 'close' | 'error', listener: (event: SocketEvent) => void): void
  send (data: Data): void
  close (code?: number, reason?: string): void
}

/** Of a message its data, of a close its code and reason, of an error, in Node, what it was. */
export interface SocketEvent {
  readonly type: string
  readonly data?: unknown
  readonly code?: number
  readonly message?: string
  readonly reason?: string
}

export type SocketClass = new (url: string, protocols: string[]) => SocketLike

interface Locks {
  request (name: string, options: { readonly signal: AbortSignal }, work: () => Promise<void>): Promise<void>
}

/** Messages between tabs of one origin (HTML §9.6). */
export interface Channel {
  onmessage: ((event: { readonly data: unknown }) => void) | null
  postMessage (message: unknown): void
  close (): void
}

interface PageGlobals {
  readonly WebSocket: SocketClass
  readonly location: { readonly href: string }
  readonly document: { readonly hidden: boolean }
  readonly navigator: { readonly onLine?: boolean, readonly locks?: Locks }
  readonly BroadcastChannel: new (name: string) => Channel
  addEventListener (type: string, listener: (event: { readonly persisted?: boolean }) => void, options: { readonly signal: AbortSignal }): void
}

/** In Node nobody has to wait for it. */
export function unref (thing: unknown): void {
  (Object(thing) as { readonly unref?: () => void }).unref?.()
}

/** Of what a page has, Node has some; all of it may be missing. */
export const page = Object(globalThis) as Partial<PageGlobals>
