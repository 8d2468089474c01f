/** A guarded route and its bare twin, clients that keep what they hear, and clients that write frames as bytes. */
import { randomBytes } from 'node:crypto'
import net from 'node:net'
import websocket, { type WebSocket as ServerSocket, type WebsocketPluginOptions } from '@fastify/websocket'
import type { FastifyInstance, FastifyRequest, FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { createWebSocketStream, WebSocket, type ClientOptions } from 'ws'
import { GuardedConnection } from '../lib/connection/connection.js'
import hybridAuth, { type HybridAuthOptions, type RouteAuth } from '../lib/index.js'
import { goodToken, handshake, JWT } from './helpers.js'
import { deferred, serve, type Served } from './stores.js'

export type { ServerSocket }
export type Handler = (socket: ServerSocket, request: FastifyRequest) => unknown

const GIVE_UP = 5000

/** Everything that came, in order; whoever waits for more is told when it is there. */
export class Inbox<T> {
  readonly all: T[] = []
  #taken = 0
  #waiting: Array<{ count: number, resolve: () => void }> = []

  push (item: T): void {
    this.all.push(item)
    for (const { count, resolve } of this.#waiting) if (this.all.length >= count) resolve()
    this.#waiting = this.#waiting.filter(({ count }) => this.all.length < count)
  }

  /** Until so many came in all. */
  async reach (count: number): Promise<T[]> {
    if (this.all.length >= count) return this.all
    const there = deferred<boolean>()
    // Only a test that fails waits this long.
    const timer = setTimeout(() => { there.resolve(false) }, GIVE_UP)
    this.#waiting.push({ count, resolve: () => { there.resolve(true) } })
    const isThere = await there.promise
    clearTimeout(timer)
    if (!isThere) throw new Error(`waited for ${count}, and ${this.all.length} came`)
    return this.all
  }

  /** The first that was not taken yet. */
  async next (): Promise<T> {
    const at = this.#taken++
    await this.reach(at + 1)
    const item = this.all[at]
    if (item === undefined) throw new Error('nothing came')
    return item
  }
}

export interface LiveOptions {
  /** The route's rule. */
  rule?: RouteAuth
  /** Options of the plugin beside `jwt`. */
  auth?: Partial<HybridAuthOptions>
  handler?: Handler
  fastify?: FastifyServerOptions
  websocket?: WebsocketPluginOptions
  more?: (app: FastifyInstance) => unknown
}

/** A server whose `/live` is guarded and whose `/bare` has the same handler and no guard. */
export function serveLive (t: Test, { rule = true, auth = {}, handler = echo, fastify = {}, websocket: options = {}, more }: LiveOptions = {}): Promise<Served> {
  return serve(t, async app => {
    await app.register(websocket, options)
    await app.register(hybridAuth, { jwt: JWT, failures: false, ...auth })
    app.get('/live', { websocket: true, auth: rule }, async (socket, request) => { await handler(socket, request) })
    app.get('/bare', { websocket: true, auth: false }, async (socket, request) => { await handler(socket, request) })
    await more?.(app)
  }, fastify)
}

export function echo (socket: ServerSocket): void {
  socket.on('message', (data: Buffer, isBinary) => { socket.send(data, { binary: isBinary }) })
}

export interface Closed { code: number, reason: string }

export interface Peer {
  readonly socket: WebSocket
  /** Text frames as they came. */
  readonly heard: Inbox<string>
  readonly opened: Promise<void>
  readonly closed: Promise<Closed>
  /** Sends frames in the order given. */
  send: (...frames: Array<string | Buffer>) => void
  /** Until the server has read all that was sent before. */
  settled: () => Promise<void>
}

export interface PeerOptions extends ClientOptions {
  path?: string
  protocols?: string[]
  /** Presented in a header; null: nothing is. */
  token?: string | null
}

/** A ws client. */
export function connect (t: Test, host: string, { path = '/live', protocols = [], token = goodToken(), headers = {}, ...rest }: PeerOptions = {}): Peer {
  const socket = new WebSocket(`ws://${host}${path}`, protocols, { headers: { ...headers, ...(token !== null && { authorization: `Bearer ${token}` }) }, ...rest })
  t.teardown(() => { socket.terminate() })
  const heard = new Inbox<string>()
  const pongs = new Inbox<string>()
  let pings = 0
  socket.on('message', (data: Buffer) => { heard.push(data.toString()) })
  socket.on('pong', data => { pongs.push(data.toString()) })
  const closed = new Promise<Closed>(resolve => {
    socket.on('close', (code, reason) => { resolve({ code, reason: reason.toString() }) })
  })
  const opened = new Promise<void>((resolve, reject) => {
    socket.on('open', resolve)
    socket.on('error', reject)
  })
  return {
    socket, heard, opened, closed,
    send (...frames) { for (const one of frames) socket.send(one) },
    async settled () {
      socket.ping()
      await pongs.reach(++pings)
    }
  }
}

/** {@link connect}, open. */
export async function connected (t: Test, host: string, options: PeerOptions = {}): Promise<Peer> {
  const peer = connect(t, host, options)
  await peer.opened
  return peer
}

export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const
type FrameKind = keyof typeof OPCODE

/** One masked frame (RFC 6455 §5.2). `claims` is the length it says it has. */
export function frame (kind: FrameKind | number, content: string | Uint8Array = '', { fin = true, mask = true, claims }: { fin?: boolean, mask?: boolean, claims?: number } = {}): Buffer {
  const payload = Buffer.from(content)
  const length = claims ?? payload.length
  const opcode = typeof kind === 'number' ? kind : OPCODE[kind]
  const head = Buffer.alloc(length < 126 ? 2 : length < 65_536 ? 4 : 10)
  head.writeUInt8((fin ? 0x80 : 0) | opcode, 0)
  const masked = mask ? 0x80 : 0
  if (length < 126) head.writeUInt8(masked | length, 1)
  else if (length < 65_536) {
    head.writeUInt8(masked | 126, 1)
    head.writeUInt16BE(length, 2)
  } else {
    head.writeUInt8(masked | 127, 1)
    head.writeBigUInt64BE(BigInt(length), 2)
  }
  if (!mask) return Buffer.concat([head, payload])
  const key = randomBytes(4)
  return Buffer.concat([head, key, payload.map((byte, at) => byte ^ (key[at % 4] ?? 0))])
}

/** A close frame with a code and a reason. */
export function closeFrame (code: number, reason = ''): Buffer {
  const payload = Buffer.alloc(2 + Buffer.byteLength(reason))
  payload.writeUInt16BE(code, 0)
  payload.write(reason, 2)
  return frame('close', payload)
}

export const texts = (...values: string[]) => Buffer.concat(values.map(value => frame('text', value)))
export const json = (value: unknown) => frame('text', JSON.stringify(value))
export const authFrame = (token: unknown) => JSON.stringify({ type: 'auth', token })
export const updateFrame = (token: unknown = goodToken()) => JSON.stringify({ type: 'auth_update', token })

export interface HeardFrame { opcode: number, payload: Buffer }

export interface RawPeer {
  readonly net: net.Socket
  /** The head of the answer. */
  readonly answered: Promise<string>
  readonly heard: Inbox<HeardFrame>
  /** The connection is closed; with the code and reason of the close frame, 0 where none came. */
  readonly closed: Promise<Closed>
  write: (...bytes: Buffer[]) => void
}

export interface RawOptions {
  path?: string
  token?: string | null
  lines?: string[]
  /** Frames in the same write as the handshake. */
  first?: Buffer
  /** Whether a close frame is answered. */
  answers?: boolean
}

/** A client that writes bytes. */
export function rawConnect (t: Test, port: number, { path = '/live', token = goodToken(), lines = [], first = Buffer.alloc(0), answers = true }: RawOptions = {}): RawPeer {
  const head = handshake([...(token === null ? [] : [`Authorization: Bearer ${token}`]), ...lines], { path })
  const socket = net.connect(port, '127.0.0.1', () => { socket.write(Buffer.concat([Buffer.from(head, 'latin1'), first])) })
  t.teardown(() => { socket.destroy() })
  const answered = deferred<string>()
  const heard = new Inbox<HeardFrame>()
  let received = Buffer.alloc(0)
  let isAnswered = false
  let last: Closed = { code: 0, reason: '' }
  socket.on('data', (chunk: Buffer) => {
    received = Buffer.concat([received, chunk])
    if (!isAnswered) {
      const end = received.indexOf('\r\n\r\n')
      if (end < 0) return
      isAnswered = true
      answered.resolve(received.toString('latin1', 0, end))
      received = received.subarray(end + 4)
    }
    for (let read = readFrame(received); read !== null; read = readFrame(received)) {
      received = received.subarray(read.bytes)
      if (read.opcode === OPCODE.close) {
        last = { code: read.payload.length < 2 ? 1005 : read.payload.readUInt16BE(0), reason: read.payload.toString('utf8', 2) }
        if (answers) socket.end(frame('close', read.payload))
      }
      heard.push({ opcode: read.opcode, payload: read.payload })
    }
  })
  // A server may cut a client off that is still writing.
  socket.on('error', () => {})
  const closed = new Promise<Closed>(resolve => {
    socket.on('close', () => {
      answered.resolve('')
      resolve(last)
    })
  })
  return { net: socket, answered: answered.promise, heard, closed, write (...bytes) { socket.write(Buffer.concat(bytes)) } }
}

/** null: there is more to come. A server does not mask. */
function readFrame (bytes: Buffer): (HeardFrame & { bytes: number }) | null {
  if (bytes.length < 2) return null
  const short = bytes.readUInt8(1)
  const start = short === 126 ? 4 : short === 127 ? 10 : 2
  if (bytes.length < start) return null
  const length = short === 126 ? bytes.readUInt16BE(2) : short === 127 ? Number(bytes.readBigUInt64BE(2)) : short
  if (bytes.length < start + length) return null
  return { opcode: bytes.readUInt8(0) & 0x0f, payload: Buffer.from(bytes.subarray(start, start + length)), bytes: start + length }
}

/** Texts among the frames of a raw client. */
export const textsOf = (frames: readonly HeardFrame[]) => frames.filter(({ opcode }) => opcode === OPCODE.text).map(({ payload }) => payload.toString())

/** Until it is so, looking again each time the loop comes round. */
export async function until (holds: () => boolean, what = 'it'): Promise<void> {
  const deadline = performance.now() + GIVE_UP
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`${what} never became so`)
    await turn()
  }
}

// ws declares its classes twice, for `import` and for `require`, and they are one at run time.

export function connectionOf (app: FastifyInstance, socket: ServerSocket): GuardedConnection {
  const connection = app.hybridAuth.connection(socket)
  if (!(connection instanceof GuardedConnection)) throw new Error('this socket is no connection')
  return connection
}

/** A stream of texts. */
export const streamOf = (socket: ServerSocket) => createWebSocketStream(socket, { encoding: 'utf8', readableObjectMode: true })

/** One round of the loop. */
export const turn = () => new Promise<void>(resolve => { setImmediate(resolve) })

/** The clock of `Date.now()`, which can be set ahead; everything else goes on in real time. */
export function shiftedClock (t: Test): { ahead: (ms: number) => void } {
  const real = Date.now
  let shift = 0
  t.intercept(Date, 'now', { value: () => real() + shift, configurable: true })
  return { ahead (ms) { shift += ms } }
}

export const numbered = (count: number, from = 0) => Array.from({ length: count }, (_, at) => String(from + at))
