/** The checks of a token that need no key (RFC 7515 §5.2): size, alphabet, canonical form, header. */
import { isUtf8 } from 'node:buffer'
import type { Algorithm, JoseHeader } from '../../types/options.js'
import { POISONED } from './plain.js'

/** A token whose form is right. Its signature is not verified yet. */
export interface WellFormed {
  readonly header: JoseHeader
  readonly headerSegment: string
  readonly payloadSegment: string
  /** In base64url characters. */
  readonly signatureLength: number
}

const THREE_SEGMENTS = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/
// The last character of a segment may carry unused bits, and they must be zero (RFC 4648 §3.5): a token has one spelling.
const ENDS_CLEAN_AFTER_1_BYTE = new Set('AQgw')
const ENDS_CLEAN_AFTER_2_BYTES = new Set('AEIMQUYcgkosw048')
const KID = /^[\x21-\x7e]{1,256}$/
// A header that brings its own key, or asks for processing that we do not do (RFC 7515 §4.1.11, RFC 7797), is refused
// whatever its value: accepting one would mean ignoring what the signer called essential.
const REFUSED_PARAMETERS = ['crit', 'b64', 'jwk', 'jku', 'x5u', 'x5c', 'zip']
const MAX_KNOWN_HEADERS = 64

export function createFormCheck (algorithms: readonly Algorithm[], maxTokenLength: number) {
  const known = new Map<string, JoseHeader>()

  /** null: not a token that could be verified here. */
  function checkForm (token: string): WellFormed | null {
    if (token.length > maxTokenLength || !THREE_SEGMENTS.test(token)) return null
    const first = token.indexOf('.')
    const second = token.indexOf('.', first + 1)
    if (!isCanonical(token, 0, first) || !isCanonical(token, first + 1, second)) return null
    if (!isCanonical(token, second + 1, token.length)) return null
    const headerSegment = token.slice(0, first)
    const header = known.get(headerSegment) ?? readHeader(headerSegment)
    if (header === null) return null
    return { header, headerSegment, payloadSegment: token.slice(first + 1, second), signatureLength: token.length - second - 1 }
  }

  function readHeader (segment: string): JoseHeader | null {
    const bytes = Buffer.from(segment, 'base64url')
    if (!isUtf8(bytes)) return null
    const header = parseObject(bytes)
    if (header === null || REFUSED_PARAMETERS.some(name => Object.hasOwn(header, name))) return null
    const { alg, kid, typ } = header
    const listed = algorithms.find(name => name === alg)
    if (listed === undefined) return null
    if (kid !== undefined && !isKid(kid)) return null
    if (typ !== undefined && typeof typ !== 'string') return null
    return Object.freeze({ alg: listed, ...(kid !== undefined && { kid }), ...(typ !== undefined && { typ }) })
  }

  /** Issuers repeat their few headers. Only those of verified tokens are remembered, so that nobody else fills the map. */
  function remember ({ headerSegment, header }: WellFormed): void {
    if (known.size >= MAX_KNOWN_HEADERS) known.clear()
    known.set(headerSegment, header)
  }

  return { checkForm, remember }
}

/** Nothing that would mean something else to who looks it up in an object, or puts it into a path. */
function isKid (kid: unknown): kid is string {
  return typeof kid === 'string' && KID.test(kid) && !kid.includes('..') && !POISONED.has(kid)
}

/** Whether nothing else decodes to the same bytes (RFC 4648 §3.5). */
export function isCanonical (token: string, start: number, end: number): boolean {
  switch ((end - start) % 4) {
    case 0: return true
    case 2: return ENDS_CLEAN_AFTER_1_BYTE.has(token.charAt(end - 1))
    case 3: return ENDS_CLEAN_AFTER_2_BYTES.has(token.charAt(end - 1))
    default: return false
  }
}

function parseObject (bytes: Buffer): Record<string, unknown> | null {
  try {
    const parsed: unknown = JSON.parse(bytes.toString('utf8'))
    return isObject(parsed) ? parsed : null
  } catch {
    return null
  }
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
