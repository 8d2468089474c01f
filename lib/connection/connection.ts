/** One guarded socket: its state. What happens to it is in gate, lifecycle, reauth, sessions and closing. */
import { randomBytes } from 'node:crypto'
import { EventEmitter } from 'node:events'
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { Connection, ConnectionEvents } from '../../types/connection.js'
import type { Place } from '../policy/limits.js'
import type { MessageRate } from '../policy/rates.js'
import { SUBPROTOCOL, type CloseName, type ServerFrame } from '../protocol.js'
import type { RoomFrame } from '../rooms/frame.js'
import type { Member } from '../rooms/member.js'
import type { Revocation } from '../cluster/revocations.js'
import { now } from './clock.js'
import { checkClose, closeConnection, closeSlow, finish } from './closing.js'
import { mayUnderstand, sendFrame } from './control.js'
import { flush, receive } from './gate.js'
import type { RouteSettings } from './hub.js'
import { isOver, look } from './lifecycle.js'
import type { GuardedSocket, RawFrame, SocketOwner } from './socket.js'
import type { Wheeled } from '../wheel.js'

export interface Granted {
  readonly permissions: readonly string[]
  readonly insteadOf: readonly string[]
}

/** When a revoked credential ends its socket, and by which revocation. */
export interface Ending {
  readonly by: number
  readonly revocation: Pick<Revocation, 'id' | 'reason'>
}

/** A frame that waits for its turn. */
export interface HeldFrame {
  readonly data: RawFrame
  readonly isBinary: boolean
}

const NODE = randomBytes(6).toString('base64url')
const GOLDEN_RATIO = 0.618034
let made = 0

export class GuardedConnection implements Connection, Member, SocketOwner, Wheeled {
  readonly socket: GuardedSocket
  readonly request: FastifyRequest
  readonly route: RouteSettings
  context: AuthContext

  /** The application sees and sends frames: until we, the peer or the clock end it. */
  isOpen = true
  /** The client understands frames of ours. */
  speaks: boolean
  /** Frames that look like ours are taken out of the application's. */
  readonly readsControl: boolean
  /** Something came since the last ping. */
  isAlive = true
  isPinged = false
  /** Nobody listened in time: frames are not held for the application any more. */
  isGivenUp = false
  /** A verdict is being waited for. */
  isJudging = false
  /** `token_refresh_required` is out. */
  isAsked = false
  /** A message of the application came since its session was last extended. */
  isUsed = false
  isReading = false
  /** What the application closed the socket with, by the socket itself; 0: it did not. */
  ownCloseCode = 0
  /** What we closed it with; 0 until then. */
  closeCode = 0
  failedRefreshes = 0
  refreshesInFlight = 0
  /** Re-authentications in the order they came, and the latest of them that took effect. */
  refreshesBegun = 0
  refreshApplied = 0
  /** Its credential was revoked: when it ends for that, unless another came, and why. */
  revoked: Ending | null = null
  /** Permissions that were set on it, and those of its credential that they stand for. */
  granted: Granted | null = null
  /** A message that waits for another credential. */
  demand: HeldFrame | null = null
  /** How long it waits; 0: none does. */
  demandUntil = 0
  memberships: Member['memberships'] = null
  joining: Member['joining'] = null
  recheck: Member['recheck'] = null
  suspendedBytes = 0
  /** Where connections are limited. */
  place: Place | null = null
  /** What it may send; null: as much as it likes. */
  rate: MessageRate | null = null
  framesIn = 0
  framesOut = 0

  // Times are those of clock.ts; 0 is never.
  readonly startedAt: number
  /** Past this nothing is delivered, whether or not the wheel has come round. */
  endsAt = 0
  refreshAt = 0
  pingAt = 0
  lastMessageAt: number
  /** When the session was last read from its store, and last read without an error. */
  readAt: number
  readWellAt: number
  heldSince = 0

  held: HeldFrame[] | null = null
  heldBytes = 0
  /** The peer's close, where it came behind frames that are held. */
  heldClose: { readonly code: number, readonly reason: Buffer } | null = null

  due = -1
  position = 0
  nextOfUser: GuardedConnection | null = null
  previousOfUser: GuardedConnection | null = null
  nextOfCredential: GuardedConnection | null = null
  previousOfCredential: GuardedConnection | null = null

  readonly #number = ++made
  #events: EventEmitter | null = null

  constructor (socket: GuardedSocket, request: FastifyRequest, route: RouteSettings, context: AuthContext) {
    this.socket = socket
    this.request = request
    this.route = route
    this.context = context
    this.readsControl = route.control !== false && mayUnderstand(socket)
    this.speaks = this.readsControl && (socket.protocol === SUBPROTOCOL || route.control === true)
    this.startedAt = now()
    this.lastMessageAt = this.startedAt
    this.readAt = this.startedAt
    this.readWellAt = this.startedAt
  }

  /** A part of one, spread evenly among connections. */
  get phase (): number {
    return (this.#number * GOLDEN_RATIO) % 1
  }

  get id (): string {
    return `${NODE}-${this.#number.toString(36)}`
  }

  can (permission: string): boolean {
    return this.context.permissions.includes(permission)
  }

  get rooms (): ReadonlySet<string> {
    return new Set(this.memberships?.keys())
  }

  async join (room: string): Promise<boolean> {
    return await this.route.hub.rooms.join(this, room) === null
  }

  leave (room: string): boolean {
    return this.route.hub.rooms.leave(this, room, 'removed')
  }

  isLive (time = now()): boolean {
    return this.isOpen && (this.endsAt === 0 || time < this.endsAt) && this.socket.readyState === this.socket.OPEN
  }

  canAct (): boolean {
    return this.isOpen && this.ownCloseCode === 0 && !isOver(this)
  }

  canJoin (): boolean {
    return mayUnderstand(this.socket) && this.heldClose === null && this.canAct()
  }

  get buffered (): number {
    return this.socket.bufferedAmount
  }

  pass (frame: RoomFrame): void {
    this.framesOut++
    this.socket.pass(frame)
  }

  say (frame: ServerFrame): void {
    if (!this.speaks) return
    if (this.buffered > this.route.hub.settings.rooms.maxBuffered) closeSlow(this)
    else sendFrame(this.socket, frame)
  }

  closeSlow (): void {
    closeSlow(this)
  }

  send (value: unknown): boolean {
    const text: unknown = JSON.stringify(value)
    if (typeof text !== 'string') throw new TypeError(`a ${typeof value} is nothing that JSON holds`)
    if (!this.isOpen || isOver(this) || this.socket.readyState !== this.socket.OPEN) return false
    this.socket.send(text)
    return true
  }

  close (code: CloseName | number = 'Revoked', reason?: string): void {
    checkClose(code, reason)
    closeConnection(this, code, reason === undefined ? {} : { reason })
  }

  on<E extends keyof ConnectionEvents> (event: E, listener: (...args: ConnectionEvents[E]) => void): this {
    this.#events ??= new EventEmitter()
    this.#events.on(event, listener)
    return this
  }

  off<E extends keyof ConnectionEvents> (event: E, listener: (...args: ConnectionEvents[E]) => void): this {
    this.#events?.off(event, listener)
    return this
  }

  /** A listener that throws must not keep the connection from being closed. */
  announce<E extends keyof ConnectionEvents> (event: E, ...args: ConnectionEvents[E]): void {
    try {
      this.#events?.emit(event, ...args)
    } catch (error) {
      this.route.hub.report(this.request, `the ${event} listener`, error)
    }
  }

  receive (data: RawFrame, isBinary: boolean): void {
    receive(this, data, isBinary)
  }

  look (): void {
    look(this)
  }

  heard (): void {
    this.isAlive = true
  }

  listened (): void {
    this.isGivenUp = false
    // The listener is attached after this returns, and the code behind it may attach more.
    process.nextTick(flush, this)
  }

  closed (code: number, reason: Buffer): boolean {
    return finish(this, code, reason)
  }

  mayReceive (): boolean {
    isOver(this)
    if (this.isOpen && this.socket.readyState === this.socket.OPEN) this.framesOut++
    return true
  }

  sent (): void {
    this.framesOut++
  }

  closing (code: number): void {
    if (!this.isOpen || this.ownCloseCode !== 0) return
    this.ownCloseCode = code
    this.route.hub.rooms.leaveAll(this)
  }
}
