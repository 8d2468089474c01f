/**
 * The Origin header (RFC 6454 §7) against the allowed origins, as text: nothing is parsed that a browser would not send.
 */

/** An exact origin, or everything below a domain. */
export interface OriginPattern {
  readonly scheme: string
  /** Host and port, in lower case; of a wildcard the part from its first dot. */
  readonly host: string
  readonly wildcard: boolean
}

const PATTERN = /^([a-z][a-z0-9+.-]*):\/\/(\*(?=\.))?([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?$/
const LABELS = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/
const MAX_LENGTH = 512
const DEFAULT_PORT: Readonly<Record<string, string>> = { http: ':80', https: ':443' }

/** null: not an origin as browsers write them, or a wildcard that is not a whole leading label. */
export function parseOriginPattern (given: string): OriginPattern | null {
  const match = PATTERN.exec(given.toLowerCase())
  if (match === null) return null
  const [, scheme = '', star, name = '', port = ''] = match
  if (port === DEFAULT_PORT[scheme] || name.endsWith('.')) return null
  if (star === undefined) return { scheme, host: name + port, wildcard: false }
  return name.startsWith('.') && LABELS.test(name.slice(1)) ? { scheme, host: name + port, wildcard: true } : null
}

/** @param allowed undefined: the origin that the request itself was sent to */
export function createOriginCheck (allowed: readonly OriginPattern[] | undefined) {
  return function isAllowedOrigin (origin: string, protocol: string, host: string): boolean {
    if (origin.length > MAX_LENGTH) return false
    const folded = origin.toLowerCase()
    return allowed === undefined
      ? host !== '' && folded === `${protocol}://${withoutDefaultPort(protocol, host.toLowerCase())}`
      : allowed.some(pattern => matches(pattern, folded))
  }
}

function matches ({ scheme, host, wildcard }: OriginPattern, origin: string): boolean {
  const prefix = `${scheme}://`
  if (!wildcard) return origin === prefix + host
  return origin.startsWith(prefix) && origin.endsWith(host) &&
    LABELS.test(origin.slice(prefix.length, -host.length))
}

function withoutDefaultPort (protocol: string, host: string): string {
  const port = DEFAULT_PORT[protocol]
  return port !== undefined && host.endsWith(port) ? host.slice(0, -port.length) : host
}
