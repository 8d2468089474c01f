/** `fastify-hybrid-auth/client`: a WebSocket that stays authenticated, for browsers and Node. */
import { createClient } from './client.js'
import { page } from './environment.js'
import type { AuthSocket, AuthSocketOptions } from './types.js'

/**
 * Connects, and stays connected for as long as there is a credential. Listen before the next turn of the loop: nothing happens sooner.
 * @throws TypeError that names the option which is missing, cannot be, or does not go with the others
 */
export function createAuthSocket (options: AuthSocketOptions): AuthSocket {
  const { url, WebSocket: Socket = page.WebSocket, getToken, attach = 'cookie', queue = 0, fallback } = options
  const { after = 0, interval = 1, poll = '' } = fallback ?? {}
  check('url', url)
  check('WebSocket', typeof Socket === 'function')
  check('getToken', getToken ? typeof getToken === 'function' : attach === 'cookie')
  check('attach', /^(protocol|message|ticket|query|cookie)$/.test(attach))
  check('queue', queue >= 0)
  check('fallback', !fallback || (poll && after >= 0 && interval >= 1 && attach !== 'ticket'))
  const client = createClient(options, Socket)
  queueMicrotask(() => { client.connect() })
  return client
}

function check (option: string, holds: unknown): asserts holds {
  if (!holds) throw new TypeError(`the option ${option} is missing, or cannot be what it is`)
}

export { CLOSE } from '../protocol.js'
export type { CloseAction, CloseName, CloseReason } from '../protocol.js'
export type * from './types.js'
export type { Data, SocketClass, SocketEvent, SocketLike } from './environment.js'
export type { GetToken, TokenReason, TokenRequest } from './tokens.js'
