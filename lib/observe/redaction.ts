/** Keeps credentials out of log lines. */
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { invalidOption } from '../errors.js'
import { networkOf } from '../request.js'

const SERIALIZERS = Symbol.for('pino.serializers')
const CANARY = 'canary'

const REDACTED = '[redacted]'

/** Behind a proxy that is trusted the names may be anything, and an application's `trustProxy` may throw. */
function peerOf (request: FastifyRequest): object {
  try {
    const { host = '', ip = '', socket } = networkOf(request)
    return { host: excerpt(host), remoteAddress: excerpt(ip), remotePort: socket?.remotePort ?? 0 }
  } catch {
    return {}
  }
}

/** A URL without the values of its `token` and `ticket` parameters, however their names are spelled. */
export function withoutToken (url: string): string {
  const start = url.indexOf('?')
  if (start === -1) return url
  const parameters = url.slice(start + 1).split(/([&;])/)
  return url.slice(0, start + 1) + parameters.map(one => {
    const [name = ''] = one.split('=', 1)
    return one.includes('=') && isTokenName(name) ? `${name}=${REDACTED}` : one
  }).join('')
}

function isTokenName (name: string): boolean {
  try {
    return /token|(?:^|\W)ticket(?!\w)/i.test(decodeURIComponent(name))
  } catch {
    return true
  }
}

const MAX_EXCERPT = 256
/** How much of a text is looked at. */
const MAX_READ = 4096
/** Three long parts in base64url, or the first two where that of the header begins as JSON does. Names of hosts are neither. */
const LIKE_A_TOKEN = /(?<![\w-])(?:[\w-]{16,}\.[\w-]{16,}\.[\w-]{40,}|e[wy][\w-]{14,}\.[\w-]{16,}[\w.-]*)/g
/** What is not written but done: line ends, escapes, marks that turn the direction of a text. */
const CONTROL = /\p{C}/gu

/** The beginning of a text that a client sent, for a log: without what might be a token there, and on one line. */
export function excerpt (text: string): string {
  return scrub(text.slice(0, MAX_READ)).replace(CONTROL, ' ').slice(0, MAX_EXCERPT)
}

function scrub (text: string): string {
  return withoutToken(text).replace(LIKE_A_TOKEN, REDACTED)
}

/** Headers that carry credentials, in whichever direction. */
const SECRET_HEADERS = new Set(['authorization', 'proxy-authorization', 'cookie', 'set-cookie', 'sec-websocket-protocol'])

/** In whatever shape they come: by name, as pairs, or as names and values in turn. */
function withoutSecrets (headers: unknown): unknown {
  if (typeof headers !== 'object' || headers === null) return scrubAll(headers)
  if (Array.isArray(headers)) return headers.every(Array.isArray) ? headers.flat().map(hideAfterName) : headers.map(hideAfterName)
  const entries = Symbol.iterator in headers ? [...headers as Iterable<[string, unknown]>] : Object.entries(headers)
  return Object.fromEntries(entries.map(([name, value]: [string, unknown]) => [name, hide(name, value)]))
}

function hideAfterName (text: unknown, index: number, all: readonly unknown[]): unknown {
  return index % 2 === 0 ? text : hide(all[index - 1], text)
}

function hide (name: unknown, value: unknown): unknown {
  return SECRET_HEADERS.has(String(name).toLowerCase()) ? REDACTED : scrubAll(value)
}

/** The others may hold a URL that has one. */
function scrubAll (value: unknown): unknown {
  if (Array.isArray(value)) return value.map(scrubAll)
  return typeof value === 'string' ? scrub(value) : value
}

/**
 * For Fastify's `logger.serializers`. `req`: the request line as Fastify writes it, without a token or ticket in the URL,
 * needed with `credentials.query`. `headers`: for applications that log those, without the ones that carry credentials.
 */
export const serializers = Object.freeze({
  req (request: FastifyRequest) {
    return { method: request.method, url: scrub(request.url), ...peerOf(request) }
  },
  headers (headers: unknown) {
    return withoutSecrets(headers)
  }
})

/**
 * With a token in the URL, the logger must be known to leave it out.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION
 */
export function checkLogger (log: FastifyBaseLogger, { query, allowTokenInLogs }: { query: boolean, allowTokenInLogs: boolean }): void {
  if (!query || allowTokenInLogs || !isWriting(log)) return
  if (!printsToken(log)) return
  throw invalidOption('credentials.query', 'would put tokens into the log: pass serializers of this package to the logger, or set credentials.allowTokenInLogs')
}

/** Fastify without a logger has one that writes nothing, and no serializers. What is silent now may be louder on a route. */
function isWriting (log: FastifyBaseLogger): boolean {
  return Reflect.has(log, SERIALIZERS) || log.info.name !== 'noop'
}

function printsToken (log: FastifyBaseLogger): boolean {
  const request = { method: 'GET', url: `/?token=${CANARY}`, host: '', ip: '', headers: {}, raw: { url: `/?token=${CANARY}` }, socket: {} }
  const req = requestSerializer(log)
  if (req === null) return true
  try {
    return JSON.stringify(req(request) ?? '').includes(CANARY)
  } catch {
    return true
  }
}

/** null: a logger that is not pino's, of which nothing can be told. */
function requestSerializer (log: FastifyBaseLogger): ((request: object) => unknown) | null {
  const all: unknown = Reflect.get(log, SERIALIZERS)
  if (typeof all !== 'object' || all === null || !('req' in all) || typeof all.req !== 'function') return null
  const { req } = all
  return (request): unknown => Reflect.apply(req, all, [request])
}

/** As an `onRequest` hook: Fastify writes the URL of a route that does not exist into the log, and into the answer. */
export function redactNotFound (request: FastifyRequest, _reply: unknown, done: () => void): void {
  if (request.is404 && request.raw.url !== undefined) request.raw.url = scrub(request.raw.url)
  done()
}
