/** Where a bearer may stand (RFC 6750 §2), in order, and that there is at most one. */
import type { FastifyRequest } from 'fastify'
import type { Refusal } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import { readOffer } from './subprotocol.js'

export interface Bearer {
  readonly token: string
  readonly via: 'header' | 'subprotocol' | 'query'
}

const MALFORMED: Refusal = 'FST_HYBRID_AUTH_MALFORMED_REQUEST'
const SCHEME = 'bearer'
/** What parts a scheme from its value, words, and the members of a list. */
const SEPARATORS = [' ', '\t', ',']

export function createCredentialFinder ({ query, subprotocol, ticket }: ParsedOptions['credentials']) {
  /** null: nothing but cookies, if that, is in this request. */
  return function findCredential (request: FastifyRequest): Bearer | { readonly ticket: string } | null | Refusal {
    const fromHeader = readAuthorization(request)
    if (typeof fromHeader === 'string') return fromHeader
    const fromOffer = request.ws ? bearerOffered(request, subprotocol) : null
    if (typeof fromOffer === 'string') return fromOffer
    if (fromOffer !== null && fromHeader !== null) return MALFORMED
    const fromQuery = query ? readQuery(request, 'token') : undefined
    const fromTicket = ticket && request.ws ? readQuery(request, 'ticket') : undefined
    const first = fromHeader ?? fromOffer
    if (fromQuery === null || fromTicket === null) return MALFORMED
    if (fromTicket !== undefined) return first === null && fromQuery === undefined ? { ticket: fromTicket } : MALFORMED
    if (fromQuery === undefined) return first
    return first === null ? { token: fromQuery, via: 'query' } : MALFORMED
  }
}

function readAuthorization ({ headers, raw }: FastifyRequest): Bearer | null | Refusal {
  const value = headers.authorization
  if (value === undefined) return null
  // Of several, Node keeps the first and says nothing.
  if (isRepeated(raw.rawHeaders, 'authorization')) return MALFORMED
  if (value.slice(0, SCHEME.length).toLowerCase() !== SCHEME) return null
  const after = value.charAt(SCHEME.length)
  if (after !== '' && !SEPARATORS.includes(after)) return null
  const token = value.slice(SCHEME.length + 1)
  if (after !== ' ' || token === '' || SEPARATORS.some(separator => token.includes(separator))) return MALFORMED
  return { token, via: 'header' }
}

function bearerOffered ({ headers, raw }: FastifyRequest, enabled: boolean): Bearer | null | Refusal {
  const value = headers['sec-websocket-protocol']
  if (value === undefined) return null
  if (isRepeated(raw.rawHeaders, 'sec-websocket-protocol')) return MALFORMED
  const offer = readOffer(value)
  if (offer === null || offer.tokens.length > 1) return MALFORMED
  const [token] = offer.tokens
  if (token === undefined || !enabled) return null
  // With nothing to select, the answer would echo the token or fail in the browser.
  return offer.names.length === 0 ? MALFORMED : { token, via: 'subprotocol' }
}

/** undefined: it is not there; null: it is there, and no text. */
function readQuery ({ query }: FastifyRequest, name: 'token' | 'ticket'): string | null | undefined {
  if (typeof query !== 'object' || query === null || !Object.hasOwn(query, name)) return undefined
  const value: unknown = Reflect.get(query, name)
  return typeof value === 'string' ? value : null
}

/** `injectWS` makes requests without raw headers. */
function isRepeated (rawHeaders: readonly string[] | undefined, name: string): boolean {
  if (rawHeaders === undefined) return false
  let seen = 0
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const header = rawHeaders[i]
    if (header?.length === name.length && header.toLowerCase() === name) seen++
  }
  return seen > 1
}
