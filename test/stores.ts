/** Servers of any make, session stores of every temper, and clients that speak in bytes. */
import net from 'node:net'
import type { Writable } from 'node:stream'
import { Signer } from '@fastify/cookie'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyServerOptions, type Session } from 'fastify'
import type { Test } from 'tap'
import hybridAuth, { type HybridAuthOptions, type SessionStore } from '../lib/index.js'
import { secret as canary, watch } from './canary.js'
import { handshake, portOf, SESSION, SESSION_SECRET } from './helpers.js'

/** What a store calls back with; the session may be anything. */
export type StoreCallback = (error: unknown, session?: Session | null) => void

/** A store in memory that answers at once, counts its reads, and serves both readers. */
export class MapStore {
  readonly sessions = new Map<string, Session>()
  reads = 0

  get (sessionId: string, callback: StoreCallback): void {
    this.reads++
    callback(null, this.sessions.get(sessionId))
  }

  set (sessionId: string, session: Session, callback: (error?: unknown) => void): void {
    this.sessions.set(sessionId, session)
    callback()
  }

  destroy (sessionId: string, callback: (error?: unknown) => void): void {
    this.sessions.delete(sessionId)
    callback()
  }

  /** Puts in what a store might hold, which need not be what its type says. */
  put (sessionId: string, stored: unknown): this {
    this.sessions.set(sessionId, stored as Session)
    return this
  }
}

/** A store that does nothing but what the test says. */
export const storeOf = (get: SessionStore['get']): SessionStore => ({ get })

/** The `Cookie` header of a session that nobody logged in to. */
export function cookieFor (sessionId: string, { secret = SESSION_SECRET, prefix = '', name = 'sessionId' } = {}): string {
  return canary(`${name}=${encodeURIComponent(prefix + new Signer(secret).sign(sessionId))}`)
}

export interface Served {
  app: FastifyInstance
  /** `127.0.0.1:port` */
  host: string
  port: number
}

/** A listening server with what `declare` puts into it, and nothing else. */
export async function serve (t: Test, declare: (app: FastifyInstance) => unknown, options: FastifyServerOptions = {}): Promise<Served> {
  const app = Fastify(watch(t, options))
  t.teardown(() => app.close())
  await declare(app)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const port = portOf(app)
  return { app, port, host: `127.0.0.1:${port}` }
}

/** A WebSocket route that sends its context, and an HTTP route that answers it. */
export function liveRoutes (app: FastifyInstance): void {
  app.get('/live', { websocket: true }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
  app.get('/me', { auth: true }, async request => request.auth)
  app.post('/me', { auth: true }, async request => request.auth)
}

/** A server that knows neither @fastify/session nor @fastify/cookie and reads the store itself. */
export function serveFromStore (
  t: Test, session: Partial<NonNullable<HybridAuthOptions['session']>>,
  { auth = {}, fastify = {} }: { auth?: Partial<HybridAuthOptions>, fastify?: FastifyServerOptions } = {}
): Promise<Served> {
  return serve(t, async app => {
    await app.register(websocket)
    await app.register(hybridAuth, { session: { ...SESSION, secret: SESSION_SECRET, ...session }, failures: false, ...auth })
    liveRoutes(app)
  }, fastify)
}

/** A logger that writes everything to the stream; `more` are further options, whether their types say so or not. */
export const logTo = (stream: Writable, more: object = {}): FastifyServerOptions => ({ logger: { stream, level: 'trace', ...more } })

/** Sends bytes and returns what comes back, up to the end of the head or of the connection, however that ends. */
export function rawAnswer (port: number, bytes: string | Uint8Array, until = '\r\n\r\n'): Promise<string> {
  return new Promise(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes) })
    let received = ''
    // Only a server that never answers is waited for this long.
    socket.setTimeout(4000, () => { socket.destroy() })
    socket.on('data', chunk => {
      received += chunk.toString('latin1')
      if (received.includes(until)) socket.destroy()
    })
    socket.on('error', () => { socket.destroy() })
    socket.on('close', () => { resolve(received) })
  })
}

/** {@link rawAnswer} of a handshake with these header lines. */
export const rawUpgrade = (port: number, lines: string[] = [], parts: Parameters<typeof handshake>[1] = {}) =>
  rawAnswer(port, handshake(lines, parts))

/** A header of a raw answer; undefined where it is not there. */
export function headerOf (answer: string, name: string): string | undefined {
  const line = answer.split('\r\n').find(one => one.toLowerCase().startsWith(`${name.toLowerCase()}:`))
  return line?.slice(name.length + 1).trim()
}

export interface Answer { status: number, headers: Headers, body: string }

/** One HTTP request over a real socket. */
export async function ask (host: string, path = '/me', init: RequestInit = {}): Promise<Answer> {
  const response = await fetch(`http://${host}${path}`, init)
  return { status: response.status, headers: response.headers, body: await response.text() }
}

/** The `code` of a refusal's body. */
export function codeOf (body: string): unknown {
  const parsed: unknown = JSON.parse(body)
  return typeof parsed === 'object' && parsed !== null && 'code' in parsed ? parsed.code : undefined
}

export interface Deferred<T> { promise: Promise<T>, resolve: (value: T) => void }

/** A promise and what settles it. */
export function deferred<T> (): Deferred<T> {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>(_resolve => { resolve = _resolve })
  return { promise, resolve }
}

/** What never settles, of any type. */
export const never = <T>(): Promise<T> => new Promise<T>(() => {})
