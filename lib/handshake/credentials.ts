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

export function createBearerFinder ({ query, subprotocol }: ParsedOptions['credentials']) {
  /** null: no bearer in this request. */
  return function findBearer (request: FastifyRequest): Bearer | null | Refusal {
    const fromHeader = readAuthorization(request)
    if (typeof fromHeader === 'string') return fromHeader
    const fromOffer = request.ws ? bearerOffered(request, subprotocol) : null
    if (typeof fromOffer === 'string') return fromOffer
    if (fromOffer !== null && fromHeader !== null) return MALFORMED
    const fromQuery = query ? readQuery(request) : null
    if (typeof fromQuery === 'string') return fromQuery
    const first = fromHeader ?? fromOffer
    return fromQuery !== null && first !== null ? MALFORMED : first ?? fromQuery
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

function readQuery ({ query }: FastifyRequest): Bearer | null | Refusal {
  if (typeof query !== 'object' || query === null || !('token' in query)) return null
  return typeof query.token === 'string' ? { token: query.token, via: 'query' } : MALFORMED
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
