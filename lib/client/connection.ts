/** One connection: where it goes, what it offers, and what it is told, until it closes. */
import { BEARER_PREFIX, SUBPROTOCOL } from '../protocol.js'
import type { Data, SocketClass, SocketEvent, SocketLike } from './environment.js'
import type { Attach, AuthSocketOptions } from './types.js'

/** How long a connection may take to open, in milliseconds. */
const PATIENCE = 15_000
const OPEN = 1
/** No close frame came (RFC 6455 §7.1.5). */
export const LOST = 1006

export interface ConnectionHandlers {
  readonly onOpen: () => void
  readonly onMessage: (data: unknown) => void
  /** Once, whatever happens. */
  readonly onClose: (code: number, reason: string) => void
}

export class ClientConnection {
  readonly #socket: SocketLike
  readonly #handlers: ConnectionHandlers
  readonly #timer: ReturnType<typeof setTimeout>
  #isOver = false

  /** @throws what the constructor of the socket throws on an address or a token that it cannot take */
  constructor (Socket: SocketClass, { url }: Pick<AuthSocketOptions, 'url'>, attach: Attach, token: string | null, handlers: ConnectionHandlers) {
    this.#handlers = handlers
    this.#socket = new Socket(addressOf(url, attach, token), offerOf(attach, token))
    this.#socket.binaryType = 'arraybuffer'
    this.#timer = setTimeout(() => { this.end(LOST) }, PATIENCE)
    this.#listen('open', () => { handlers.onOpen() })
    this.#listen('message', ({ data }) => { handlers.onMessage(data) })
    this.#listen('close', ({ code = LOST, reason = '' }) => {
      clearTimeout(this.#timer)
      this.#isOver = true
      handlers.onClose(code, reason)
    })
    // What follows it is the close. Node's sockets have to be listened to.
    this.#listen('error', () => {})
  }

  /** It is authenticated, as far as is known. */
  settle (): void {
    clearTimeout(this.#timer)
  }

  /** false: it is not open. */
  send (data: Data): boolean {
    if (this.#isOver || this.#socket.readyState !== OPEN) return false
    this.#socket.send(data)
    return true
  }

  /** As if the other side had closed it, and without waiting for that. */
  end (code: number): void {
    this.drop()
    this.#handlers.onClose(code, '')
  }

  /** Nobody is told. */
  drop (): void {
    clearTimeout(this.#timer)
    if (this.#isOver) return
    this.#isOver = true
    this.#socket.close(1000)
  }

  #listen (type: 'open' | 'message' | 'close' | 'error', listener: (event: SocketEvent) => void): void {
    this.#socket.addEventListener(type, event => { if (!this.#isOver) listener(event) })
  }
}

function addressOf (url: AuthSocketOptions['url'], attach: Attach, token: string | null): string {
  const base: unknown = Reflect.get(Object(Reflect.get(globalThis, 'location')) as object, 'href')
  const address = new URL(typeof url === 'function' ? url() : url, typeof base === 'string' ? base : undefined)
  address.protocol = address.protocol.replace('http', 'ws')
  if (token !== null && attach === 'query') address.searchParams.set('token', token)
  if (token !== null && attach === 'ticket') address.searchParams.set('ticket', token)
  return address.href
}

function offerOf (attach: Attach, token: string | null): string[] {
  return token !== null && attach === 'protocol' ? [SUBPROTOCOL, BEARER_PREFIX + token] : [SUBPROTOCOL]
}
