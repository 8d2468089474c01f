/** Who is in which room: in by a verdict, out when that falls or the connection ends. */
import type { Cluster } from '../cluster/cluster.js'
import { settledWithin } from '../deadline.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import type { RoomFrame } from './frame.js'
import type { LeaveReason, Member, Recheck, RefusedFor, RoomRefusal } from './member.js'
import type { RoomAction } from '../../types/rooms.js'
import type { RoomDecision } from './patterns.js'
import { isRoomName, type RoomSettings } from './settings.js'

const NOT_JOINED = Object.freeze({ code: 'not_joined' })
const ENDED = Object.freeze({ code: 'ended' })

export interface RoomParts<M extends Member> {
  readonly settings: RoomSettings
  /** null: who may be in a room is the application's to say, where it joins somebody. */
  readonly decide: RoomDecision | null
  /** How long a verdict is waited for, in milliseconds. */
  readonly timeout: number
  /** How a room hears of the other nodes. */
  readonly channels: Pick<Cluster, 'subscribe' | 'unsubscribe'>
  readonly onFault: (member: M, error: unknown) => void
  readonly onJoined: (member: M, room: string) => void
  readonly onLeft: (member: M, room: string, reason: LeaveReason) => void
  readonly onRefused: (member: M, room: string, action: RoomAction, code: RefusedFor) => void
}

/** A room with members, or with somebody on the way into it. */
interface Room<M> {
  /** As everybody in it has it: the same text, and not one for each. */
  readonly name: string
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
    // In JavaScript a name may be anything.
    if (refusal !== null) return this.#refuse(member, typeof room === 'string' ? room : '', 'join', refusal)
    const turn = new Turn()
    const outcome = this.#admit(member, room, turn)
    if (!(outcome instanceof Promise)) return outcome
    turn.promise = outcome
    member.joining ??= new Map()
    member.joining.set(room, outcome)
    return outcome
  }

  /** false: it was neither in nor on the way. */
  leave (member: M, room: string, reason: LeaveReason): boolean {
    const wasJoining = member.joining?.delete(room) === true
    if (!this.#remove(member, room)) return wasJoining
    this.#tellLeft(member, room, reason)
    return true
  }

  /** Its peer has closed: it hears nothing more and is counted nowhere, and may still say what it said before. */
  silence (member: M): void {
    for (const room of member.memberships?.keys() ?? []) this.#rooms.get(room)?.members.delete(member)
  }

  /** The connection ends. */
  leaveAll (member: M): void {
    member.joining = null
    for (const room of [...member.memberships?.keys() ?? []]) this.leave(member, room, 'closed')
  }

  /** Does it if it is allowed, in the moment when that is known. null: it is done. Neither throws nor rejects. */
  publishAs (member: M, room: string, publish: () => void): Maybe<RoomRefusal | null> {
    const isIn = (): boolean => member.memberships?.has(room) === true
    if (!isIn()) return this.#refuse(member, room, 'publish', NOT_JOINED)
    return this.#decide(member, room, 'publish', (unmet): RoomRefusal | null => {
      if (unmet !== null) return this.#refuse(member, room, 'publish', unmet)
      if (!member.canAct()) return ENDED
      // It may have been put out meanwhile.
      if (!isIn()) return this.#refuse(member, room, 'publish', NOT_JOINED)
      publish()
      return null
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
    if (decide === null || member.memberships === null) return
    if (member.recheck !== null) {
      // One at a time: who changes his context a hundred times has his rooms asked about twice.
      member.recheck.isDue = true
      for (const room of member.memberships.keys()) suspend(member, room)
      return member.recheck.done
    }
    const round = this.#round(member, decide)
    if (!(round instanceof Promise)) return
    const recheck: Recheck = { isDue: false, done: round.then(() => this.#goOn(member, recheck, decide)) }
    member.recheck = recheck
    return recheck.done
  }

  async #goOn (member: M, recheck: Recheck, decide: RoomDecision): Promise<void> {
    while (recheck.isDue) {
      recheck.isDue = false
      await this.#round(member, decide)
    }
    member.recheck = null
  }

  #round (member: M, decide: RoomDecision): Maybe<void> {
    const { memberships, context: { version } } = member
    const waits: Array<Promise<void>> = []
    const lost: string[] = []
    for (const room of [...memberships?.keys() ?? []]) {
      const verdict = this.#ask(member, room, 'join', decide)
      if (verdict instanceof Promise) {
        suspend(member, room)
        // A later context has its own answer.
        waits.push(verdict.then(unmet => { if (member.context.version === version) this.#conclude(member, room, unmet) }))
      } else if (verdict === null) this.#conclude(member, room, null)
      else if (this.#remove(member, room)) lost.push(room)
    }
    // It is out of all of them before anybody is told of the first.
    for (const room of lost) this.#tellLeft(member, room, 'forbidden')
    if (waits.length > 0) return Promise.all(waits).then(() => {})
  }

  #conclude (member: M, room: string, unmet: Unmet | null): void {
    if (unmet !== null) {
      this.leave(member, room, 'forbidden')
      return
    }
    for (const frame of resume(member, room)) if (member.isLive()) member.pass(frame)
  }

  #obstacle (member: M, room: string): RoomRefusal | null {
    const { settings } = this.#parts
    if (!member.canJoin()) return ENDED
    if (!isRoomName(room, settings)) return { code: 'bad_room' }
    const taken = (member.memberships?.size ?? 0) + (member.joining?.size ?? 0)
    return taken >= settings.maxPerConnection ? { code: 'too_many_rooms' } : null
  }

  /** A verdict, then the ear for other nodes, then in: what was reached under a context that is no longer the member's is reached again. */
  #admit (member: M, room: string, turn: Turn): Maybe<RoomRefusal | null> {
    return this.#decide(member, room, 'join', (unmet): Maybe<RoomRefusal | null> => {
      if (!turn.isOpen(member, room)) return ENDED
      if (unmet !== null) {
        turn.end(member, room)
        return this.#refuse(member, room, 'join', unmet)
      }
      const { version } = member.context
      return whenReady(this.#claim(room), (): Maybe<RoomRefusal | null> => {
        if (turn.isOpen(member, room) && member.context.version === version) {
          turn.end(member, room)
          return this.#enter(member, room)
        }
        this.#release(room)
        return turn.isOpen(member, room) ? this.#admit(member, room, turn) : ENDED
      })
    })
  }

  #enter (member: M, room: string): null {
    const known = this.#rooms.get(room)
    member.memberships ??= new Map()
    member.memberships.set(known?.name ?? room, null)
    known?.members.add(member)
    this.size++
    member.say({ type: 'joined', room })
    this.#parts.onJoined(member, room)
    member.announce('joined', room)
    return null
  }

  /** What follows happens in the very step in which the verdict is known to be one on the present context. */
  #decide<T> (member: M, room: string, action: RoomAction, then: (unmet: Unmet | null) => Maybe<T>): Maybe<T> {
    const { decide } = this.#parts
    if (decide === null) return then(null)
    const { version } = member.context
    const verdict = this.#ask(member, room, action, decide)
    if (!(verdict instanceof Promise)) return then(verdict)
    return verdict.then(unmet => member.context.version === version ? then(unmet) : this.#decide(member, room, action, then))
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
    const made: Room<M> = { name: room, members: new Set(), claims: 1, heard: this.#parts.channels.subscribe(room) }
    this.#rooms.set(room, made)
    return made.heard
  }

  #release (room: string): void {
    const known = this.#rooms.get(room)
    if (known === undefined || --known.claims > 0) return
    this.#rooms.delete(room)
    this.#parts.channels.unsubscribe(room)
  }

  /** false: it was not in there. */
  #remove (member: M, room: string): boolean {
    resume(member, room)
    if (member.memberships?.delete(room) !== true) return false
    this.size--
    this.#rooms.get(room)?.members.delete(member)
    this.#release(room)
    return true
  }

  #tellLeft (member: M, room: string, reason: LeaveReason): void {
    if (reason !== 'closed') member.say(reason === 'left' ? { type: 'left', room } : { type: 'left', room, reason })
    this.#parts.onLeft(member, room, reason)
    member.announce('left', room, reason)
  }
}

/** What is published in the room waits for the member. */
function suspend (member: Member, room: string): void {
  if (member.memberships?.get(room) === null) member.memberships.set(room, [])
}

/** @returns what has waited */
function resume (member: Member, room: string): readonly RoomFrame[] {
  const frames = member.memberships?.get(room) ?? []
  if (member.memberships?.has(room) === true) member.memberships.set(room, null)
  for (const { length } of frames) member.suspendedBytes -= length
  return frames
}

/** One attempt to join. */
class Turn {
  /** null: nothing had to be waited for. */
  promise: Promise<RoomRefusal | null> | null = null

  /** It was not told to leave before it was in, and is still there. */
  isOpen (member: Member, room: string): boolean {
    return member.canJoin() && (this.promise === null || member.joining?.get(room) === this.promise)
  }

  end (member: Member, room: string): void {
    if (this.promise !== null) member.joining?.delete(room)
  }
}
