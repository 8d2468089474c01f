/** Who is in which room: in by a verdict, out when that falls or the connection ends. */
import { settledWithin } from '../deadline.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import { Suspended, type LeaveReason, type Member, type RefusedFor, type RoomRefusal } from './member.js'
import type { RoomAction } from '../../types/rooms.js'
import type { RoomDecision } from './patterns.js'
import { isRoomName, type RoomSettings } from './settings.js'

/** How a room of this process hears of the other nodes. */
export interface RoomChannels {
  /** Resolves when what other nodes publish comes in, or when it is clear that it does not for now. Never rejects. */
  subscribe (room: string): Maybe<void>
  unsubscribe (room: string): void
}

export interface RoomParts<M extends Member> {
  readonly settings: RoomSettings
  /** null: who may be in a room is the application's to say, where it joins somebody. */
  readonly decide: RoomDecision | null
  /** How long a verdict is waited for, in milliseconds. */
  readonly timeout: number
  readonly channels: RoomChannels
  readonly onFault: (member: M, error: unknown) => void
  readonly onJoined: (member: M, room: string) => void
  readonly onLeft: (member: M, room: string, reason: LeaveReason) => void
  readonly onRefused: (member: M, room: string, action: RoomAction, code: RefusedFor) => void
}

/** A room with members, or with somebody on the way into it. */
interface Room<M> {
  readonly members: Set<M>
  /** Members, and those on the way. */
  claims: number
  /** When it hears of other nodes. */
  readonly heard: Maybe<void>
}

export class Rooms<M extends Member> {
  readonly #parts: RoomParts<M>
  readonly #rooms = new Map<string, Room<M>>()
  /** Memberships. */
  size = 0

  constructor (parts: RoomParts<M>) {
    this.#parts = parts
  }

  /** How many rooms there are. */
  get open (): number {
    return this.#rooms.size
  }

  membersOf (room: string): ReadonlySet<M> | null {
    return this.#rooms.get(room)?.members ?? null
  }

  /** null: it is in. Neither throws nor rejects. */
  join (member: M, room: string): Maybe<RoomRefusal | null> {
    const { memberships, joining } = member
    if (memberships?.has(room) === true) return null
    const known = joining?.get(room)
    if (known !== undefined) return known
    const refusal = this.#obstacle(member, room)
    if (refusal !== null) return this.#refuse(member, room, 'join', refusal)
    const turn = new Turn()
    const outcome = whenReady(this.#admit(member, room, turn), unmet => {
      const { joining: waiting } = member
      if (waiting?.get(room) === turn.promise) waiting.delete(room)
      return unmet === null ? this.#enter(member, room) : this.#refuse(member, room, 'join', unmet)
    })
    if (!(outcome instanceof Promise)) return outcome
    turn.promise = outcome
    member.joining ??= new Map()
    member.joining.set(room, outcome)
    return outcome
  }

  /** false: it was neither in nor on the way. */
  leave (member: M, room: string, reason: LeaveReason): boolean {
    const wasJoining = member.joining?.delete(room) === true
    if (member.memberships?.delete(room) !== true) return wasJoining
    this.#drop(member, room)
    if (reason !== 'closed') member.say(reason === 'left' ? { type: 'left', room } : { type: 'left', room, reason })
    this.#parts.onLeft(member, room, reason)
    member.announce('left', room, reason)
    return true
  }

  /** The connection ends. */
  leaveAll (member: M): void {
    member.joining = null
    for (const room of [...member.memberships?.keys() ?? []]) this.leave(member, room, 'closed')
  }

  /** null: it may. Neither throws nor rejects. */
  mayPublish (member: M, room: string): Maybe<RoomRefusal | null> {
    if (member.memberships?.has(room) !== true) return this.#refuse(member, room, 'publish', { code: 'not_joined' })
    return whenReady(this.#decide(member, room, 'publish'), (unmet): RoomRefusal | null => {
      if (unmet !== null) return this.#refuse(member, room, 'publish', unmet)
      if (!member.canAct()) return { code: 'ended' }
      // It may have been put out meanwhile.
      return member.memberships?.has(room) === true ? null : this.#refuse(member, room, 'publish', { code: 'not_joined' })
    })
  }

  /** One that is refused for what it is, before anybody is asked. */
  refusePublish (member: M, room: string, code: 'too_large'): void {
    this.#parts.onRefused(member, room, 'publish', code)
  }

  /**
   * The context is another. Who may no longer be in a room is out at once; where that has to be waited for, nothing of the
   * room is passed on until it is known. Never rejects.
   */
  recheck (member: M): Maybe<void> {
    const { decide } = this.#parts
    const { memberships, context } = member
    if (decide === null || memberships === null) return
    const waits: Array<Promise<void>> = []
    for (const room of [...memberships.keys()]) {
      const verdict = this.#ask(member, room, 'join', decide)
      if (!(verdict instanceof Promise)) {
        this.#conclude(member, room, verdict)
        continue
      }
      if (memberships.get(room) === null) memberships.set(room, new Suspended())
      // A later context has its own answer.
      waits.push(verdict.then(unmet => { if (member.context === context) this.#conclude(member, room, unmet) }))
    }
    if (waits.length > 0) return Promise.all(waits).then(() => {})
  }

  #conclude (member: M, room: string, unmet: Unmet | null): void {
    const suspended = member.memberships?.get(room)
    if (suspended === undefined) return
    if (unmet !== null) {
      this.leave(member, room, 'forbidden')
      return
    }
    member.memberships?.set(room, null)
    for (const frame of suspended?.frames ?? []) member.pass(frame)
  }

  #obstacle (member: M, room: string): RoomRefusal | null {
    const { settings } = this.#parts
    if (!member.canJoin()) return { code: 'ended' }
    if (!isRoomName(room, settings)) return { code: 'bad_room' }
    const taken = (member.memberships?.size ?? 0) + (member.joining?.size ?? 0)
    return taken >= settings.maxPerConnection ? { code: 'too_many_rooms' } : null
  }

  /** A verdict, and the ear for other nodes: what is reached under a context that is no longer the member's is reached again. */
  #admit (member: M, room: string, turn: Turn): Maybe<RoomRefusal | null> {
    return whenReady(this.#decide(member, room, 'join'), (unmet): Maybe<RoomRefusal | null> => {
      if (unmet !== null) return unmet
      if (isOver(member, room, turn)) return { code: 'ended' }
      const { context } = member
      return whenReady(this.#claim(room), (): Maybe<RoomRefusal | null> => {
        if (isOver(member, room, turn)) {
          this.#release(room)
          return { code: 'ended' }
        }
        if (member.context === context) return null
        this.#release(room)
        return this.#admit(member, room, turn)
      })
    })
  }

  #enter (member: M, room: string): null {
    member.memberships ??= new Map()
    member.memberships.set(room, null)
    this.#rooms.get(room)?.members.add(member)
    this.size++
    member.say({ type: 'joined', room })
    this.#parts.onJoined(member, room)
    member.announce('joined', room)
    return null
  }

  #decide (member: M, room: string, action: RoomAction): Maybe<Unmet | null> {
    const { decide } = this.#parts
    if (decide === null) return null
    const { context } = member
    const verdict = this.#ask(member, room, action, decide)
    if (!(verdict instanceof Promise)) return verdict
    return verdict.then(unmet => member.context === context ? unmet : this.#decide(member, room, action))
  }

  #ask (member: M, room: string, action: RoomAction, decide: RoomDecision): Maybe<Unmet | null> {
    const { timeout, onFault } = this.#parts
    const verdict = attempt(() => decide(member.context, room, action, member.request), error => {
      onFault(member, error)
      return FORBIDDEN
    })
    return verdict instanceof Promise ? settledWithin<Unmet | null>(verdict, timeout, FORBIDDEN) : verdict
  }

  #refuse (member: M, room: string, action: RoomAction, refusal: RoomRefusal): RoomRefusal {
    const { code } = refusal
    if (code !== 'ended') this.#parts.onRefused(member, room, action, code)
    return refusal
  }

  #claim (room: string): Maybe<void> {
    const known = this.#rooms.get(room)
    if (known !== undefined) {
      known.claims++
      return known.heard
    }
    const made: Room<M> = { members: new Set(), claims: 1, heard: this.#parts.channels.subscribe(room) }
    this.#rooms.set(room, made)
    return made.heard
  }

  #release (room: string): void {
    const known = this.#rooms.get(room)
    if (known === undefined || --known.claims > 0) return
    this.#rooms.delete(room)
    this.#parts.channels.unsubscribe(room)
  }

  #drop (member: M, room: string): void {
    this.size--
    this.#rooms.get(room)?.members.delete(member)
    this.#release(room)
  }
}

/** One attempt to join. */
class Turn {
  /** null: nothing had to be waited for. */
  promise: Promise<RoomRefusal | null> | null = null
}

/** It was told to leave before it was in, or has ended. */
function isOver (member: Member, room: string, { promise }: Turn): boolean {
  return !member.canJoin() || (promise !== null && member.joining?.get(room) !== promise)
}
