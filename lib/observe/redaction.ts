/** Keeps credentials out of log lines. */
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { invalidOption } from '../errors.js'
import { networkOf } from '../request.js'

const SERIALIZERS = Symbol.for('pino.serializers')
const CANARY = 'canary'
const WORD = /^\w{1,64}$/
/** A line of a stack: a function, and a place in a file. */
const FRAME = /^ {4}at [^\n]*:\d+:\d+\)?$/

const REDACTED = '[redacted]'

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
    return /^(?:token|ticket(?!\w))/i.test(decodeURIComponent(name))
  } catch {
    return true
  }
}

const MAX_EXCERPT = 256
/** How much of a text is looked at. */
const MAX_READ = 4096
/** Long parts in base64url with dots between them, or what begins as a JSON object does in base64url. */
const LIKE_A_TOKEN = /(?<![\w-])(?:[\w-]{16,}\.[\w-]{16,}(?:\.[\w-]*)?|ey[\w-]{8,}[\w.-]*)/g

/** The beginning of a text that a client sent, for a log: without what might be a token there. */
export function excerpt (text: string): string {
  return text.slice(0, MAX_READ).replace(LIKE_A_TOKEN, REDACTED).slice(0, MAX_EXCERPT)
}

/** Headers that carry credentials, in whichever direction. */
const SECRET_HEADERS = new Set(['authorization', 'proxy-authorization', 'cookie', 'set-cookie', 'sec-websocket-protocol'])

function withoutSecrets (headers: object): object {
  return Object.fromEntries(Object.entries(headers).map(([name, value]: [string, unknown]) =>
    [name, SECRET_HEADERS.has(name.toLowerCase()) ? REDACTED : value]))
}

/**
 * For Fastify's `logger.serializers`. `req`: the request line as Fastify writes it, without a token or ticket in the URL,
 * needed with `credentials.query`. `headers`: for applications that log those, without the ones that carry credentials.
 */
export const serializers = Object.freeze({
  req (request: FastifyRequest) {
    return {
      method: request.method,
      url: withoutToken(request.url),
      host: request.host,
      remoteAddress: request.ip,
      remotePort: networkOf(request).socket?.remotePort ?? 0
    }
  },
  headers (headers: object) {
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

/**
 * Writes down what a dependency threw, by name, code and stack frames. Its message stays out: messages quote what they
 * were given, and that may be a token or a session id.
 */
export function logFault (log: FastifyBaseLogger, where: string, error: unknown, message = `authentication failed in ${where}`): void {
  log.error({ hybridAuth: { where, ...describe(error) } }, message)
}

function describe (error: unknown) {
  if (!(error instanceof Error)) return { thrown: typeof error }
  const { name, message, stack = '' } = error
  const code = 'code' in error && isCode(error.code) ? { code: error.code } : {}
  // The stack begins with the message, which may hold lines that look like frames.
  const frames = stack.slice(stack.indexOf(message) + message.length).split('\n').filter(line => FRAME.test(line))
  return { name: WORD.test(name) ? name : 'Error', ...code, frames }
}

function isCode (code: unknown): code is string | number {
  return typeof code === 'number' || (typeof code === 'string' && WORD.test(code))
}

/** As an `onRequest` hook: Fastify writes the URL of a route that does not exist into the log, and into the answer. */
export function redactNotFound (request: FastifyRequest, _reply: unknown, done: () => void): void {
  if (request.is404 && request.raw.url !== undefined) request.raw.url = withoutToken(request.raw.url)
  done()
}

/** Says once of each mapper that what it returns names nobody: its users see a 401 like everybody else's. */
export function createIdentityWarning (log: FastifyBaseLogger): (option: string) => void {
  const told = new Set<string>()
  return function warnOfIdentity (option) {
    if (told.has(option)) return
    told.add(option)
    log.warn(`${option} returned something that is no identity: userId, role and tenantId are texts of 1 to 1024 characters, permissions a list of texts`)
  }
}
