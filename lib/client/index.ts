/** `fastify-hybrid-auth/client`: a WebSocket that stays authenticated, for browsers and Node. */
import { createClient } from './client.js'
import { page } from './environment.js'
import type { AuthSocket, AuthSocketOptions } from './types.js'

/**
 * Connects, and stays connected for as long as there is a credential. Listen before the next turn of the loop: nothing happens sooner.
 * @throws TypeError on options that contradict each other, and where there is no WebSocket
 */
export function createAuthSocket (options: AuthSocketOptions): AuthSocket {
  const { WebSocket: Socket = page.WebSocket, getToken, attach = 'cookie', fallback } = options
  if (!Socket || (!getToken && attach !== 'cookie') || (fallback && attach === 'ticket')) throw new TypeError('WebSocket, attach, getToken or fallback is missing, or does not go with the others')
  const client = createClient(options, Socket)
  queueMicrotask(() => { client.connect() })
  return client
}

export { CLOSE } from '../protocol.js'
export type { CloseAction, CloseName, CloseReason } from '../protocol.js'
export type * from './types.js'
export type { Data, SocketClass, SocketEvent, SocketLike } from './environment.js'
export type { GetToken, TokenReason, TokenRequest } from './tokens.js'
