/** Sec-WebSocket-Protocol (RFC 6455 §11.3.4): what was offered, and what may be selected. */
import type { IncomingMessage } from 'node:http'
import { BEARER_PREFIX, SUBPROTOCOL } from '../protocol.js'

/** An offer, parted into names and credentials. */
export interface Offer {
  readonly names: readonly string[]
  readonly tokens: readonly string[]
}

/** Selects one of the offered names, or none. As `handleProtocols` of ws. */
export type ProtocolHandler = (protocols: Set<string>, request: IncomingMessage) => string | false

const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/
const MAX_NAME_LENGTH = 64

/** null: not a list of distinct tokens (RFC 9110 §5.6.2). */
export function readOffer (value: string): Offer | null {
  const offered = value.split(',').map(item => item.trim())
  if (new Set(offered).size !== offered.length || !offered.every(item => TOKEN.test(item))) return null
  return {
    names: offered.filter(item => !mayBeCredential(item)),
    tokens: offered.filter(item => item.startsWith(BEARER_PREFIX)).map(item => item.slice(BEARER_PREFIX.length))
  }
}

/** Whether the client can be told by close code why it is refused. */
export function speaksProtocol (value: string | undefined): boolean {
  return value !== undefined && readOffer(value)?.names.includes(SUBPROTOCOL) === true
}

/**
 * The application's choice among the names, and never a credential: the selected name is sent back in clear. Without a
 * choice of the application's it is ours if offered, else the first name, as ws does by itself.
 */
export function composeHandleProtocols (own: ProtocolHandler | null | undefined, onError: (error: unknown) => void): ProtocolHandler {
  return function handleProtocols (offered, request) {
    const names = new Set([...offered].filter(name => !mayBeCredential(name)))
    const ours = names.has(SUBPROTOCOL) ? SUBPROTOCOL : undefined
    const [first] = names
    // ws says null where it was given none.
    if (own == null) return ours ?? first ?? false
    try {
      const chosen = names.size > 0 ? own(new Set(names), request) : false
      return typeof chosen === 'string' && names.has(chosen) ? chosen : ours ?? false
    } catch (error) {
      onError(error)
      return ours ?? false
    }
  }
}

/** Some clients put a token in bare, or under a prefix of their own. Registered names are short and say no such word. */
function mayBeCredential (item: string): boolean {
  return item.length > MAX_NAME_LENGTH || item.toLowerCase().includes('bearer') || item.startsWith('eyJ')
}
