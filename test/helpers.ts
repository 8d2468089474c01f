/** A real server on a real socket, and clients for it. Every helper tears down what it made. */
import { createHmac, randomBytes } from 'node:crypto'
import net from 'node:net'
import { Writable } from 'node:stream'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { WebSocket, type ClientOptions } from 'ws'
import hybridAuth, { type HybridAuthOptions, type Identity } from '../lib/index.js'
import { secret as canary, watch } from './canary.js'

declare module 'fastify' {
  interface Session { user?: Identity }
}

export const SECRET = canary('a secret for tests, 32 bytes or more')
export const SESSION_SECRET = canary('another secret for tests, which signs the session cookies')

/** An HS256 token as any issuer would make it, from parts that may be anything. */
export function signHs256 (claims: unknown, header: object = {}, secret: string | Buffer = SECRET): string {
  return signRaw(JSON.stringify({ alg: 'HS256', typ: 'JWT', ...header }), JSON.stringify(claims), secret)
}

/** Like {@link signHs256}, of texts or bytes that need not be JSON. */
export function signRaw (header: string | Buffer, payload: string | Buffer, secret: string | Buffer = SECRET): string {
  const input = `${Buffer.from(header).toString('base64url')}.${Buffer.from(payload).toString('base64url')}`
  return canary(`${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`)
}

export const inSeconds = (seconds: number) => Math.floor(Date.now() / 1000) + seconds

/** Claims that are in order, with changes; a change to undefined removes the claim. */
export function goodClaims (changes: Record<string, unknown> = {}) {
  return { sub: 'alice', exp: inSeconds(300), iat: inSeconds(0), jti: randomBytes(8).toString('hex'), ...changes }
}

export const goodToken = (changes: Record<string, unknown> = {}) => signHs256(goodClaims(changes))

export const JWT = { key: SECRET, algorithms: ['HS256'] } as const satisfies HybridAuthOptions['jwt']
export const SESSION = { user: (stored: { user?: Identity }) => stored.user ?? null } satisfies HybridAuthOptions['session']

/** A stream that keeps what is written, for a logger. */
export function keepLines (): { stream: Writable, text: () => string } {
  const chunks: string[] = []
  const stream = new Writable({ write (chunk, _encoding, done) { chunks.push(String(chunk)); done() } })
  return { stream, text: () => chunks.join('') }
}

export interface Server {
  app: FastifyInstance
  /** `127.0.0.1:port` */
  host: string
  port: number
  /** How often the handler of the WebSocket route ran. */
  handled: () => number
  /** Logs in over HTTP and returns the `Cookie` header. */
  login: (user?: Identity) => Promise<string>
}

export interface ServerOptions {
  auth?: Partial<HybridAuthOptions>
  fastify?: FastifyServerOptions
  /** Routes declared after the plugin, beside `/live`, `/me` and `/login`. */
  routes?: (app: FastifyInstance) => void
  /** `saveUninitialized` and the like. */
  session?: Partial<Parameters<typeof session>[1]>
}

/**
 * A listening server with everything registered. `/live` (WebSocket) sends its context as JSON and echoes; `/me` answers
 * the context; `/login` stores a session.
 */
export async function build (t: Test, options: ServerOptions = {}): Promise<Server> {
  const app = Fastify(watch(t, options.fastify))
  t.teardown(() => app.close())
  let handled = 0
  await app.register(cookie)
  await app.register(session, { secret: SESSION_SECRET, cookie: { secure: false }, ...options.session })
  await app.register(websocket)
  // Most tests send more hostile credentials from one address than anybody may.
  await app.register(hybridAuth, { jwt: JWT, session: SESSION, failures: false, ...options.auth })
  app.get('/live', { websocket: true }, (socket, request) => {
    handled++
    socket.send(JSON.stringify(request.auth))
    socket.on('message', (data, isBinary) => { socket.send(data, { binary: isBinary }) })
  })
  app.get('/me', { auth: true }, async request => request.auth)
  app.post<{ Body: Identity }>('/login', async request => {
    request.session.user = request.body
    return 'ok'
  })
  options.routes?.(app)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const port = portOf(app)

  return {
    app,
    port,
    host: `127.0.0.1:${port}`,
    handled: () => handled,
    async login (user = { userId: 'bob', role: 'agent', permissions: ['property:read'] }) {
      const answer = await fetch(`http://127.0.0.1:${port}/login`, {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(user)
      })
      return canary((answer.headers.get('set-cookie') ?? '').split(';', 1)[0] ?? '')
    }
  }
}

export function portOf (app: FastifyInstance): number {
  const address = app.server.address()
  if (address === null || typeof address === 'string') throw new Error('the server does not listen on a port')
  return address.port
}

/** What became of an upgrade: a refusal by status, or an open socket, its first message and its end. */
export interface Upgrade {
  /** 101 where it was accepted. */
  status: number
  headers: Record<string, string>
  body: string
  /** The first message, parsed; undefined where none came. */
  context: Record<string, unknown> | undefined
  protocol: string
  code: number
  reason: string
}

/** Upgrades with the ws client, waits for the first message or the end, and closes. */
export function upgrade (t: Test, host: string, { path = '/live', protocols = [], headers = {}, ...rest }: ClientOptions & { path?: string, protocols?: string[] } = {}): Promise<Upgrade> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${host}${path}`, protocols, { headers, ...rest })
    t.teardown(() => { socket.terminate() })
    const result: Upgrade = { status: 101, headers: {}, body: '', context: undefined, protocol: '', code: 0, reason: '' }
    socket.on('unexpected-response', (_request, response) => {
      result.status = response.statusCode ?? 0
      result.headers = Object.fromEntries(Object.entries(response.headers).map(([name, value]) => [name, String(value)]))
      response.on('data', (chunk: Buffer) => { result.body += chunk.toString() })
      response.on('end', () => { resolve(result) })
    })
    socket.on('open', () => { result.protocol = socket.protocol })
    socket.on('message', (data: Buffer) => {
      result.context ??= JSON.parse(data.toString()) as Record<string, unknown>
      socket.close()
    })
    socket.on('close', (code, reason) => {
      result.code = code
      result.reason = String(reason)
      resolve(result)
    })
    socket.on('error', error => { if (result.status === 101) reject(error) })
  })
}

/** Sends bytes as they are and returns everything that comes back until the server closes or `until` is seen. */
export function rawExchange (port: number, text: string, until = '\r\n\r\n'): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(text, 'latin1') })
    let received = ''
    socket.on('data', chunk => {
      received += chunk.toString('latin1')
      if (received.includes(until)) socket.destroy()
    })
    socket.on('close', () => { resolve(received) })
    socket.on('error', reject)
  })
}

/** A WebSocket handshake as text, with header lines of any kind. */
export function handshake (lines: string[] = [], { path = '/live', method = 'GET', host = '127.0.0.1', version = '13', key = 'dGhlIHNhbXBsZSBub25jZQ==' } = {}): string {
  return [
    `${method} ${path} HTTP/1.1`, `Host: ${host}`, 'Connection: Upgrade', 'Upgrade: websocket',
    `Sec-WebSocket-Version: ${version}`, ...(key === '' ? [] : [`Sec-WebSocket-Key: ${key}`]), ...lines, '', ''
  ].join('\r\n')
}

export const statusOf = (answer: string) => Number(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1] ?? 0)
