/** `fastify-hybrid-auth/client`: a WebSocket that stays authenticated, for browsers and Node. */
import { createClient } from './client.js'
import type { SocketClass } from './environment.js'
import type { AuthSocket, AuthSocketOptions } from './types.js'

/**
 * Connects, and stays connected for as long as there is a credential. Listen before the next turn of the loop: nothing happens sooner.
 * @throws TypeError on options that contradict each other, and where there is no WebSocket
 */
export function createAuthSocket (options: AuthSocketOptions): AuthSocket {
  const Socket = options.WebSocket ?? globalSocket()
  if (Socket === null) throw new TypeError('there is no WebSocket here: give the option WebSocket')
  if (options.getToken === undefined && options.attach !== undefined && options.attach !== 'cookie') throw new TypeError(`attach: '${options.attach}' needs getToken`)
  if (options.attach === 'ticket' && options.fallback !== undefined) throw new TypeError('fallback needs a token or a cookie: a ticket opens sockets only')
  const client = createClient(options, Socket)
  queueMicrotask(() => { client.connect() })
  return client
}

function globalSocket (): SocketClass | null {
  const found: unknown = Reflect.get(globalThis, 'WebSocket')
  return typeof found === 'function' ? found as SocketClass : null
}

export { CLOSE } from '../protocol.js'
export type { CloseAction, CloseName, CloseReason } from '../protocol.js'
export type * from './types.js'
export type { Data, SocketClass, SocketEvent, SocketLike } from './environment.js'
export type { GetToken, TokenReason, TokenRequest } from './tokens.js'
