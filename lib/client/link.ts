/** One connection: where it goes, what it offers, and what it is told, until it closes. */
import { BEARER_PREFIX, SUBPROTOCOL } from '../protocol.js'
import { page, type Data, type SocketClass, type SocketEvent } from './environment.js'
import type { Attach, AuthSocketOptions } from './types.js'

/** No close frame came (RFC 6455 §7.1.5). */
export const LOST = 1006

export interface Link {
  /** false: it is not open. */
  readonly send: (data: Data) => boolean
  /** Nobody is told. */
  readonly drop: () => void
}

/**
 * @param onClose is called once, unless it is dropped before
 * @throws what the constructor of the socket throws on an address or a token that it cannot take
 */
export function openLink (
  Socket: SocketClass, url: AuthSocketOptions['url'], attach: Attach, token: string | null,
  onOpen: () => void, onMessage: (data: unknown) => void, onClose: (code: number, reason: string, cause?: string) => void
): Link {
  const address = new URL(typeof url === 'function' ? url() : url, page.location?.href)
  address.protocol = address.protocol.replace('http', 'ws')
  if (token && (attach === 'query' || attach === 'ticket')) address.searchParams.set(attach === 'query' ? 'token' : attach, token)
  const socket = new Socket(address.href, token && attach === 'protocol' ? [SUBPROTOCOL, BEARER_PREFIX + token] : [SUBPROTOCOL])
  let isOver = false
  let cause: string | undefined
  const listen = (type: 'open' | 'message' | 'close' | 'error', listener: (event: SocketEvent) => void): void => {
    socket.addEventListener(type, event => { if (!isOver) listener(event) })
  }
  socket.binaryType = 'arraybuffer'
  listen('open', onOpen)
  listen('message', ({ data }) => { onMessage(data) })
  listen('close', ({ code = LOST, reason = '' }) => {
    isOver = true
    onClose(code, reason, cause)
  })
  // What follows it is the close. A browser does not say what it was.
  listen('error', ({ message }) => { cause = message })
  return {
    send (data) {
      if (isOver || socket.readyState !== 1) return false
      socket.send(data)
      return true
    },
    drop () {
      if (!isOver) socket.close(1000)
      isOver = true
    }
  }
}
