/** One connection: where it goes, what it offers, and what it is told, until it closes. */
import { BEARER_PREFIX, SUBPROTOCOL } from '../protocol.js'
import { page, type Data, type SocketClass, type SocketEvent } from './environment.js'
import type { Attach, AuthSocketOptions } from './types.js'

const OPEN = 1
/** No close frame came (RFC 6455 §7.1.5). */
export const LOST = 1006

export interface LinkHandlers {
  readonly onOpen: () => void
  readonly onMessage: (data: unknown) => void
  /** Once, unless it is dropped before. */
  readonly onClose: (code: number, reason: string) => void
}

export interface Link {
  /** false: it is not open. */
  readonly send: (data: Data) => boolean
  /** Nobody is told. */
  readonly drop: () => void
}

/** @throws what the constructor of the socket throws on an address or a token that it cannot take */
export function openLink (Socket: SocketClass, url: AuthSocketOptions['url'], attach: Attach, token: string | null, { onOpen, onMessage, onClose }: LinkHandlers): Link {
  const address = new URL(typeof url === 'function' ? url() : url, page.location?.href)
  address.protocol = address.protocol.replace('http', 'ws')
  if (token !== null && attach === 'query') address.searchParams.set('token', token)
  if (token !== null && attach === 'ticket') address.searchParams.set('ticket', token)
  const socket = new Socket(address.href, token !== null && attach === 'protocol' ? [SUBPROTOCOL, BEARER_PREFIX + token] : [SUBPROTOCOL])
  socket.binaryType = 'arraybuffer'
  let isOver = false
  const listen = (type: 'open' | 'message' | 'close' | 'error', listener: (event: SocketEvent) => void): void => {
    socket.addEventListener(type, event => { if (!isOver) listener(event) })
  }
  listen('open', onOpen)
  listen('message', ({ data }) => { onMessage(data) })
  listen('close', ({ code = LOST, reason = '' }) => {
    isOver = true
    onClose(code, reason)
  })
  // What follows it is the close. Node's sockets have to be listened to.
  listen('error', () => {})
  return {
    send (data) {
      if (isOver || socket.readyState !== OPEN) return false
      socket.send(data)
      return true
    },
    drop () {
      if (!isOver) socket.close(1000)
      isOver = true
    }
  }
}
