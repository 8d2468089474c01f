/** One token through every way in, over real sockets, and what must come back. */
import net from 'node:net'
import type { FastifyHttpOptions } from 'fastify'
import type { Server as HttpServer } from 'node:http'
import type { Test } from 'tap'
import { serializers, type HybridAuthOptions, type JwtOptions } from '../lib/index.js'
import { build, handshake, JWT, keepLines, type Server, type ServerOptions } from './helpers.js'

export const WAYS = ['HTTP header', 'HTTP query', 'upgrade header', 'subprotocol', 'upgrade query'] as const
export type Way = typeof WAYS[number]

/** What a refusal looks like: by status and code, or by close code to a client that offered the subprotocol. */
const REFUSALS = {
  invalid: { status: 401, code: 'FST_HYBRID_AUTH_INVALID_TOKEN', error: 'invalid_token', close: 4001 },
  expired: { status: 401, code: 'FST_HYBRID_AUTH_EXPIRED_TOKEN', error: 'invalid_token', close: 4002 },
  missing: { status: 401, code: 'FST_HYBRID_AUTH_MISSING_CREDENTIALS', error: '', close: 4001 },
  forbidden: { status: 403, code: 'FST_HYBRID_AUTH_FORBIDDEN', error: 'insufficient_scope', close: 4007 },
  unavailable: { status: 503, code: 'FST_HYBRID_AUTH_UNAVAILABLE', error: '', close: 4012 },
  // A request that contradicts itself is answered as the HTTP request that it is, also to who offered the subprotocol.
  malformed: { status: 400, code: 'FST_HYBRID_AUTH_MALFORMED_REQUEST', error: 'invalid_request', close: 0 }
} as const
export type RefusalName = keyof typeof REFUSALS

export interface Answer {
  /** 0 where nothing came back. */
  status: number
  /** `code` of the body. */
  code: string
  /** `error` of the WWW-Authenticate challenge. */
  error: string
  /** 0 where no close frame came. */
  close: number
  /** What the handler answered or sent first. */
  context: Record<string, unknown> | null
  /** Every byte that came back, as latin1. */
  received: string
}

export interface Gate extends Server {
  /** How often a request came past the guard, on any route. */
  reached: () => number
  /** Everything that was logged, at level `trace`. */
  log: () => string
}

export interface GateOptions extends Omit<ServerOptions, 'fastify'> {
  jwt?: Partial<JwtOptions>
  fastify?: FastifyHttpOptions<HttpServer>
}

/** A server with every way open, which logs all it can and counts who came through. */
export async function gate (t: Test, { jwt, auth, fastify, routes, ...rest }: GateOptions = {}): Promise<Gate> {
  const { stream, text } = keepLines()
  let reached = 0
  const options: Partial<HybridAuthOptions> = { jwt: { ...JWT, ...jwt }, credentials: { query: true }, ...auth }
  const http: FastifyHttpOptions<HttpServer> = { logger: { level: 'trace', stream, serializers }, ...fastify }
  const server = await build(t, {
    ...rest,
    auth: options,
    fastify: http,
    routes (app) {
      app.addHook('preHandler', async () => { reached++ })
      routes?.(app)
    }
  })
  return { ...server, reached: () => reached, log: text }
}

/** Where a way leads. */
export interface Paths { http: string, socket: string }
const PATHS: Paths = { http: '/me', socket: '/live' }

/** Presents a token, which may be any text; of a character past U+00FF a header carries the low byte. */
export function present ({ port }: { port: number }, way: Way, token: string, { http, socket }: Paths = PATHS): Promise<Answer> {
  const bearer = `Authorization: Bearer ${token}`
  const query = `?token=${encodeURIComponent(token)}`
  switch (way) {
    case 'HTTP header': return exchange(port, get(http, [bearer]))
    case 'HTTP query': return exchange(port, get(http + query))
    case 'upgrade header': return exchange(port, handshake([bearer], { path: socket }))
    case 'subprotocol': return exchange(port, handshake([`Sec-WebSocket-Protocol: hybrid-auth.v1, bearer.${token}`], { path: socket }))
    case 'upgrade query': return exchange(port, handshake([], { path: socket + query }))
  }
}

/** A plain HTTP request as text, with header lines of any kind. */
export function get (path: string, lines: string[] = []): string {
  return [`GET ${path} HTTP/1.1`, 'Host: 127.0.0.1', 'Connection: close', ...lines, '', ''].join('\r\n')
}

/** Every way refuses the token as named, nothing runs behind the guard, and nothing repeats the token. */
export async function refuses (t: Test, gate: Gate, token: string, {
  as = 'invalid', except = {}, paths = PATHS, about = token.slice(0, 60)
}: { as?: RefusalName, except?: Partial<Record<Way, RefusalName>>, paths?: Paths, about?: string } = {}): Promise<void> {
  const before = gate.reached()
  for (const way of WAYS) {
    const answer = await present(gate, way, token, paths)
    t.strictSame(outline(answer), expected(way, except[way] ?? as), `${way}: ${about}`)
    t.notOk(repeats(answer.received, token), `the answer does not repeat the token (${way}: ${about})`)
  }
  t.equal(gate.reached() - before, 0, `nothing ran behind the guard: ${about}`)
  t.notOk(repeats(gate.log(), token), `no log line holds the token: ${about}`)
}

/** Every way lets the token through, as whom `context` says. Returns the last context. */
export async function accepts (t: Test, gate: Gate, token: string, {
  context = { authType: 'jwt', userId: 'alice' }, paths = PATHS, about = token.slice(0, 60)
}: { context?: object, paths?: Paths, about?: string } = {}): Promise<Record<string, unknown>> {
  const before = gate.reached()
  let seen: Record<string, unknown> = {}
  for (const way of WAYS) {
    const answer = await present(gate, way, token, paths)
    t.match(answer, { status: isUpgrade(way) ? 101 : 200, context }, `${way}: ${about}`)
    seen = answer.context ?? {}
  }
  t.equal(gate.reached() - before, WAYS.length, `every way came past the guard: ${about}`)
  t.notOk(repeats(gate.log(), token), `no log line holds the token: ${about}`)
  return seen
}

/** What every way answers, for inputs of which only the agreement of the ways is asked. */
export async function outcomes (gate: Gate, token: string): Promise<Array<'accepted' | 'refused'>> {
  const seen: Array<'accepted' | 'refused'> = []
  for (const way of WAYS) seen.push((await present(gate, way, token)).context === null ? 'refused' : 'accepted')
  return seen
}

export const isUpgrade = (way: Way) => way !== 'HTTP header' && way !== 'HTTP query'

function outline ({ status, code, error, close }: Answer) {
  return { status, code, error, close }
}

function expected (way: Way, name: RefusalName) {
  const refusal = REFUSALS[name]
  if (way === 'subprotocol' && refusal.close !== 0) return { status: 101, code: '', error: '', close: refusal.close }
  return { ...refusal, close: 0 }
}

const LONG_ENOUGH_TO_BE_NO_CHANCE = 16

/** Whether a text holds the token or its signature, as it is or as it stands in a URL. */
export function repeats (text: string, token: string): boolean {
  const signature = token.slice(token.lastIndexOf('.') + 1)
  return [token, encodeURIComponent(token), signature].some(part => part.length >= LONG_ENOUGH_TO_BE_NO_CHANCE && text.includes(part))
}

const GIVE_UP = 10_000

/** Sends a request as it is and reads one answer: a response with its body, or a 101 and the first frame. */
export function exchange (port: number, text: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(text, 'latin1') })
    const finish = () => {
      const received = Buffer.concat(chunks)
      resolve(readAnswer(received) ?? { ...NOTHING, received: received.toString('latin1') })
    }
    socket.setTimeout(GIVE_UP, () => { socket.destroy() })
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      if (readAnswer(Buffer.concat(chunks)) !== null) socket.destroy()
    })
    socket.on('close', finish)
    socket.on('error', error => {
      // A server that hangs up on a malformed request may reset the connection behind its answer.
      if (chunks.length === 0) reject(error)
    })
  })
}

const NOTHING: Answer = { status: 0, code: '', error: '', close: 0, context: null, received: '' }

/** null: there is more to come. */
function readAnswer (received: Buffer): Answer | null {
  const end = received.indexOf('\r\n\r\n')
  if (end < 0) return null
  const head = received.toString('latin1', 0, end)
  const rest = received.subarray(end + 4)
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0)
  const answer: Answer = {
    ...NOTHING, status, received: received.toString('latin1'),
    error: /^www-authenticate:.*\berror="([^"]*)"/im.exec(head)?.[1] ?? ''
  }
  if (status === 101) return readFrame(rest, answer)
  const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0)
  if (rest.length < length) return null
  const body = parseObject(rest.toString('utf8', 0, length))
  if (status < 300) return { ...answer, context: body }
  return { ...answer, code: typeof body?.code === 'string' ? body.code : '' }
}

/** The first frame (RFC 6455 §5.2): a close, or a text of the handler's. */
function readFrame (bytes: Buffer, answer: Answer): Answer | null {
  if (bytes.length < 4) return null
  const short = bytes.readUInt8(1)
  const [start, length] = short === 126 ? [4, bytes.readUInt16BE(2)] : short === 127 ? [10, bytes.length < 10 ? Infinity : Number(bytes.readBigUInt64BE(2))] : [2, short]
  if (bytes.length < start + length) return null
  const payload = bytes.subarray(start, start + length)
  const isClose = bytes.readUInt8(0) === 0x88
  return isClose ? { ...answer, close: payload.readUInt16BE(0) } : { ...answer, context: parseObject(payload.toString()) }
}

function parseObject (text: string): Record<string, unknown> | null {
  try {
    const parsed: unknown = JSON.parse(text)
    return isObject(parsed) ? parsed : null
  } catch {
    return null
  }
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Stops the clock. `set` moves it, in milliseconds since the epoch. */
export function fakeClock (t: Test, start = Date.now()): { set: (ms: number) => void } {
  let now = start
  t.intercept(Date, 'now', { value: () => now, configurable: true })
  return { set (ms) { now = ms } }
}
