/** Both ends of an open socket, and a clock that can be set. */
import { once } from 'node:events'
import net from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import type { Connection, HybridAuthOptions, RouteAuth } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import { SUBPROTOCOL } from '../lib/protocol.js'
import { build, goodToken, handshake, type Server, type ServerOptions } from './helpers.js'

export const HOUR = 3_600_000
export const DAY = 24 * HOUR

export interface End { code: number, reason: string, at: number }
export type Frame = Record<string, unknown>

/** A client that keeps everything it gets. */
export class Peer {
  readonly socket: WebSocket
  readonly texts: string[] = []
  readonly pings: number[] = []
  readonly end: Promise<End>
  hasEnded = false
  #taken = 0
  readonly #waiting = new Set<() => void>()

  constructor (socket: WebSocket) {
    this.socket = socket
    socket.on('message', (data: Buffer) => {
      this.texts.push(data.toString())
      for (const check of [...this.#waiting]) check()
    })
    socket.on('ping', () => {
      this.pings.push(performance.now())
      for (const check of [...this.#waiting]) check()
    })
    socket.on('error', () => {})
    this.end = new Promise(resolve => {
      socket.on('close', (code, reason) => {
        this.hasEnded = true
        for (const check of [...this.#waiting]) check()
        resolve({ code, reason: reason.toString(), at: Date.now() })
      })
    })
  }

  /** Every frame so far that is JSON and has this `type`. */
  framesOf (type: string): Frame[] {
    return this.texts.map(parse).filter(frame => frame.type === type)
  }

  /** The next text that was not taken yet; null where the socket ended first. */
  async take (): Promise<string | null> {
    await this.until(() => this.texts.length > this.#taken)
    return this.texts[this.#taken++] ?? null
  }

  /** Skips to the next frame of this type; an empty one where the socket ended first. */
  async takeFrame (type: string): Promise<Frame> {
    for (;;) {
      const text = await this.take()
      if (text === null) return {}
      const frame = parse(text)
      if (frame.type === type) return frame
    }
  }

  /** Waits until it holds, asked after each message and ping, or until the end. */
  until (holds: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => { reject(new Error('what the peer waits for never came')) }, 10_000)
      const check = () => {
        if (!holds() && !this.hasEnded) return
        clearTimeout(timer)
        this.#waiting.delete(check)
        resolve()
      }
      this.#waiting.add(check)
      check()
    })
  }

  say (frame: unknown): void {
    this.socket.send(typeof frame === 'string' ? frame : JSON.stringify(frame))
  }

  /** Says something that the application answers in order, and waits for that answer: all before it has arrived then. */
  async echoed (text: string): Promise<boolean> {
    this.say(text)
    await this.until(() => this.texts.includes(text))
    return this.texts.includes(text)
  }
}

function parse (text: string): Frame {
  try {
    const parsed: unknown = JSON.parse(text)
    return typeof parsed === 'object' && parsed !== null ? parsed as Frame : {}
  } catch {
    return {}
  }
}

export interface Dial { path?: string, token?: string, cookie?: string, speaks?: boolean, protocols?: string[], autoPong?: boolean }

/** Opens a socket and fails where it is refused. */
export async function dial (t: Test, host: string, { path = '/app', token, cookie, speaks = false, protocols = speaks ? [SUBPROTOCOL] : [], autoPong = true }: Dial = {}): Promise<Peer> {
  const headers = cookie === undefined ? { authorization: `Bearer ${token ?? goodToken()}` } : { cookie, origin: `http://${host}` }
  const socket = new WebSocket(`ws://${host}${path}`, protocols, { headers, autoPong })
  t.teardown(() => { socket.terminate() })
  const peer = new Peer(socket)
  await once(socket, 'open')
  return peer
}

/** The server's end of a socket. */
export interface There {
  socket: WebSocket
  request: FastifyRequest
  connection: Connection
  /** What reached the application, as text. */
  received: string[]
  /** Codes of `close` events of the connection, and of the socket. */
  closes: number[]
  socketCloses: number[]
  closed: Promise<void>
}

export interface Pair { peer: Peer, there: There }

export interface Live extends Server {
  /** Opens a socket on `/app` and returns both ends. */
  open: (dial?: Dial) => Promise<Pair>
}

export interface LiveOptions extends Omit<ServerOptions, 'auth'> {
  auth?: Partial<HybridAuthOptions>
  route?: RouteAuth
  /** @default echoes */
  handler?: (there: There) => void
}

export function echo ({ socket, received }: There): void {
  socket.on('message', (data: Buffer, isBinary) => {
    received.push(data.toString())
    socket.send(data, { binary: isBinary })
  })
}

/** A server whose route `/app` shows its own end of each socket. */
export async function live (t: Test, { route = true, handler = echo, routes, ...rest }: LiveOptions = {}): Promise<Live> {
  const arrivals = new Map<string, (there: There) => void>()
  const server = await build(t, {
    ...rest,
    routes (app) {
      declareApp(app, route, (there, n) => {
        handler(there)
        arrivals.get(n)?.(there)
      })
      routes?.(app)
    }
  })
  let opened = 0
  return {
    ...server,
    async open (how = {}) {
      const n = String(++opened)
      const arrived = new Promise<There>(resolve => { arrivals.set(n, resolve) })
      const peer = await dial(t, server.host, { path: `/app?n=${n}`, ...how })
      const there = await Promise.race([arrived, peer.end])
      if (!('connection' in there)) throw new Error(`the socket ended with ${there.code} before the handler ran`)
      return { peer, there }
    }
  }
}

function declareApp (app: FastifyInstance, auth: RouteAuth, arrived: (there: There, n: string) => void): void {
  app.get<{ Querystring: { n?: string } }>('/app', { websocket: true, auth }, (socket: WebSocket, request) => {
    const connection = app.hybridAuth.connection(socket)
    if (connection === null) throw new Error('the socket of a guarded route has no connection')
    const closes: number[] = []
    const socketCloses: number[] = []
    connection.on('close', code => { closes.push(code) })
    const closed = new Promise<void>(resolve => {
      socket.on('close', code => {
        socketCloses.push(code)
        resolve()
      })
    })
    arrived({ socket, request, connection, received: [], closes, socketCloses, closed }, request.query.n ?? '')
  })
}

/** What the wheel does with a connection whose time has come, now. */
export function lookNow (connection: Connection): void {
  if (!(connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  connection.look()
}

/** `Date.now` can be set; timers go on as they are. */
export function setClock (t: Test): { move: (ms: number) => void, reset: () => void, freeze: () => void } {
  const now = Date.now.bind(Date)
  let offset = 0
  let frozen: number | null = null
  Date.now = () => (frozen ?? now()) + offset
  t.teardown(() => { Date.now = now })
  return { move (ms) { offset += ms }, reset () { offset = 0 }, freeze () { frozen = now() } }
}

/** `Math.random` gives the same, for whatever is jittered. */
export function setRandom (t: Test, value: number): void {
  const random = Math.random.bind(Math)
  Math.random = () => value
  t.teardown(() => { Math.random = random })
}

/** Keeps the loop from doing anything else. */
export function blockUntil (time: number): void {
  while (Date.now() < time);
}

/** Resolves when it holds, asked every turn of the loop; rejects after `ms`. */
export async function eventually (what: string, holds: () => boolean, ms = 5000): Promise<void> {
  const started = performance.now()
  while (!holds()) {
    if (performance.now() - started > ms) throw new Error(`never: ${what}`)
    await new Promise(resolve => { setTimeout(resolve, 5) })
  }
}

/** A client that upgrades and then ignores everything, closes included. */
export function deafPeer (t: Test, port: number, lines: string[], path = '/app'): Promise<{ socket: net.Socket, closed: Promise<number> }> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write(handshake(lines, { path })) })
    const closed = new Promise<number>(_resolve => { socket.on('close', () => { _resolve(performance.now()) }) })
    t.teardown(() => { socket.destroy() })
    socket.on('error', reject)
    let head = ''
    socket.on('data', chunk => {
      if (head.includes('\r\n\r\n')) return
      head += chunk.toString('latin1')
      if (!head.includes('\r\n\r\n')) return
      if (head.startsWith('HTTP/1.1 101')) resolve({ socket, closed })
      else reject(new Error(head.slice(0, 40)))
    })
  })
}
