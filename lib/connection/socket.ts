/**
 * The WebSocket that applications get: a subclass of the one that @fastify/websocket would have made. It stands under
 * every listener, so that no handler, library or stream has to be changed to be guarded.
 */
import type { FastifyInstance } from 'fastify'
import { authError } from '../errors.js'
import type { RoomFrame } from '../rooms/frame.js'
import type { Socket as WebSocket } from '../request.js'

/** Of a close frame without a code, and of an end without one (RFC 6455 §7.4.1). */
const NO_STATUS = 1005
export const ABNORMAL = 1006

/** As `message` events carry it, by `binaryType`. */
export type RawFrame = Buffer | ArrayBuffer | Buffer[] | Blob

/** Who decides about a socket. A socket without an owner is one of a route with `auth: false`. */
export interface SocketOwner {
  /** A frame came; it is the owner's to deliver. */
  receive (data: RawFrame, isBinary: boolean): void
  /** A ping or a pong came. */
  heard (): void
  /** The application is attaching a listener for messages. */
  listened (): void
  /** The socket is closed. false: the event waits for `emitClose`. */
  closed (code: number, reason: Buffer): boolean
  /** Whether the peer may have a frame of the application, which is sent then. One that is past its end is closed here, and ws tells the sender. */
  mayReceive (): boolean
  /** A frame of ours goes out. */
  sent? (): void
  /** The application, or we, close the socket before the peer did. */
  closing (code: number): void
}

/** Bytes would be sent as binary. */
const AS_TEXT = Object.freeze({ binary: false })

/** As the options of a server have it. */
type SocketClass = NonNullable<FastifyInstance['websocketServer']['options']['WebSocket']>

// Registered, as two copies of this library may share a server: the class is the first one's.
const OWNER = Symbol.for('fastify-hybrid-auth.owner')

/** What we use of the subclass beyond WebSocket. */
export interface GuardedSocket extends WebSocket {
  [OWNER]: SocketOwner | null
  /** Hands a frame to the application's listeners. */
  deliver (data: RawFrame, isBinary: boolean): void
  /** Sends a frame of ours, whatever the owner says. */
  sendControl (text: string): void
  /** Sends a frame of text that is written already. The owner has decided. */
  pass (frame: RoomFrame): void
  /** Ends it without a close frame, and not in the name of the application. */
  cutOff (): void
  /** Stops reading, or reads again if the application does not want it stopped. */
  holdBack (on: boolean): void
  /** Emits the `close` that was held back. */
  emitHeldClose (code: number, reason: Buffer): void
}

export function isGuarded (socket: WebSocket): socket is GuardedSocket {
  return OWNER in socket
}

export function ownerOf (socket: WebSocket): SocketOwner | null {
  return isGuarded(socket) ? socket[OWNER] : null
}

export function setOwner (socket: GuardedSocket, owner: SocketOwner): void {
  socket[OWNER] = owner
}

/** Tells the owner of the next listener for messages, without a listener of ours staying behind. */
export function awaitListener (socket: GuardedSocket): void {
  if (!socket.listeners('newListener').includes(tellOwner)) socket.on('newListener', tellOwner)
}

function tellOwner (this: WebSocket, event: string | symbol): void {
  if (event !== 'message') return
  this.removeListener('newListener', tellOwner)
  ownerOf(this)?.listened()
}

/** @param Base the class found in the server's options, whoever put it there */
export function guardedClass (Base: SocketClass): SocketClass {
  return class GuardedWebSocket extends Base implements GuardedSocket {
    [OWNER]: SocketOwner | null = null
    #isPausedByApplication = false
    #isHeldBack = false
    /** No extension changes its frames; null: not asked yet. */
    #isPlain: boolean | null = null

    override emit (event: string | symbol, ...given: unknown[]): boolean {
      const owner = this[OWNER]
      if (owner === null) return super.emit(event, ...given)
      if (event === 'message') {
        // ws emits what it declares: the frame, and whether it is binary.
        owner.receive(given[0] as RawFrame, given[1] as boolean)
        return true
      }
      if (event === 'ping' || event === 'pong') owner.heard()
      if (event === 'close' && !owner.closed(given[0] as number, given[1] as Buffer)) return true
      return super.emit(event, ...given)
    }

    override send (data: Parameters<WebSocket['send']>[0], options?: SendOptions | SendCallback, callback?: SendCallback): void {
      if (this[OWNER]?.mayReceive() === false) {
        const told = typeof options === 'function' ? options : callback
        if (told !== undefined) process.nextTick(told, authError('FST_HYBRID_AUTH_MISSING_CREDENTIALS'))
        return
      }
      if (typeof options === 'object') super.send(data, options, callback)
      else super.send(data, options ?? callback)
    }

    override close (code?: number, data?: string | Buffer): void {
      // ws answers the peer's close by this method too, and keeps in a member of its own that it came.
      if (Reflect.get(this, '_closeFrameReceived') !== true) this[OWNER]?.closing(code ?? NO_STATUS)
      super.close(code, data)
    }

    override terminate (): void {
      this[OWNER]?.closing(ABNORMAL)
      super.terminate()
    }

    cutOff (): void {
      super.terminate()
    }

    override pause (): void {
      this.#isPausedByApplication = true
      super.pause()
    }

    override resume (): void {
      this.#isPausedByApplication = false
      if (!this.#isHeldBack) super.resume()
    }

    deliver (data: RawFrame, isBinary: boolean): void {
      super.emit('message', data, isBinary)
    }

    sendControl (text: string): void {
      this[OWNER]?.sent?.()
      super.send(text)
    }

    pass (frame: RoomFrame): void {
      this.#isPlain ??= this.extensions === ''
      const sender: unknown = this.#isPlain ? Reflect.get(this, '_sender') : null
      if (isFree(sender)) sender.sendFrame([frame.framed])
      else super.send(frame.payload, AS_TEXT)
    }

    holdBack (on: boolean): void {
      this.#isHeldBack = on
      if (on) super.pause()
      else if (!this.#isPausedByApplication) super.resume()
    }

    emitHeldClose (code: number, reason: Buffer): void {
      super.emit('close', code, reason)
    }
  }
}

/** What writes frames in ws: half of what it costs to send a message to many is to make the same frame for each. */
interface Sender {
  sendFrame (parts: Buffer[]): void
}

/** Whether a whole frame may go out now: not within one of the application that comes in parts, and not before one that is on its way. */
function isFree (sender: unknown): sender is Sender {
  return typeof sender === 'object' && sender !== null && 'sendFrame' in sender && typeof sender.sendFrame === 'function' &&
    '_state' in sender && sender._state === 0 && '_firstFragment' in sender && sender._firstFragment === true
}

type SendOptions = Exclude<Parameters<WebSocket['send']>[1], SendCallback | undefined>
type SendCallback = (error?: Error) => void
