/** Who is in which room: in by a verdict, out when that falls or the connection ends. */
import type { RoomAction } from '../../types/rooms.js'
import { whenReady, type Maybe } from '../maybe.js'
import type { Unmet } from '../policy/requirements.js'
import type { CatchUp } from './catch-up.js'
import type { LeaveReason, Member, Memberships, Recheck, RefusedFor, RoomRefusal } from './member.js'
import { OpenRooms, type OpenRoom, type OpenRoomsParts } from './open-rooms.js'
import { isRoomName, type RoomSettings } from './settings.js'
import type { Stream } from './stream.js'
import { resume, suspend } from './suspended.js'
import { Turn } from './turn.js'
import type { Verdicts } from './verdicts.js'

const NOT_JOINED = Object.freeze({ code: 'not_joined' })
const ENDED = Object.freeze({ code: 'ended' })

export interface RoomParts<M extends Member> extends OpenRoomsParts<M> {
  readonly settings: RoomSettings
  readonly verdicts: Verdicts
  readonly onJoined: (member: M, room: string) => void
  readonly onLeft: (member: M, room: string, reason: LeaveReason) => void
  readonly onRefused: (member: M, room: string, action: RoomAction, code: RefusedFor) => void
}

export class Rooms<M extends Member> {
  readonly #parts: RoomParts<M>
  readonly #verdicts: Verdicts
  readonly #rooms: OpenRooms<M>
  /** Memberships. */
  size = 0

  constructor (parts: RoomParts<M>) {
    this.#parts = parts
    this.#verdicts = parts.verdicts
    this.#rooms = new OpenRooms(parts)
  }

  /** How many rooms there are. */
  get open (): number {
    return this.#rooms.size
  }

  membersOf (room: string): ReadonlySet<M> | null {
    return this.#rooms.get(room)?.members ?? null
  }

  /** null: nothing of the room is kept, or nobody is in there. */
  streamOf (room: string): Stream<M> | null {
    return this.#rooms.get(room)?.stream ?? null
  }

  /** Something may have been said that this node was not told. Never rejects. */
  resume (): Promise<void> {
    return this.#rooms.fill()
  }

  /** Says to a member that it is in. */
  confirm (member: M, room: string): void {
    member.say(this.streamOf(room)?.joined(false) ?? { type: 'joined', room })
  }

  /**
   * null: it is in. Neither throws nor rejects.
   * @param cursor of the last message that it has had, where the room has a history
   */
  join (member: M, room: string, cursor?: string): Maybe<RoomRefusal | null> {
    const { memberships, joining } = member
    if (memberships?.has(room) === true) return null
    const known = joining?.get(room)
    if (known !== undefined) return known
    const refusal = this.#obstacle(member, room)
    // In JavaScript a name may be anything.
    if (refusal !== null) return this.#refuse(member, typeof room === 'string' ? room : '', 'join', refusal)
    const turn = new Turn()
    const outcome = this.#admit(member, room, turn, cursor)
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
    return this.#verdicts.reach(member, room, 'publish', (unmet): RoomRefusal | null => {
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
    const { memberships } = member
    if (!this.#verdicts.isAsked || memberships === null) return
    if (member.recheck !== null) {
      // One at a time: who changes his context a hundred times has his rooms asked about twice.
      member.recheck.isDue = true
      for (const room of memberships.keys()) suspend(member, room)
      return member.recheck.done
    }
    const round = this.#round(member, memberships)
    if (!(round instanceof Promise)) return
    const recheck: Recheck = { isDue: false, done: round.then(() => this.#goOn(member, recheck, memberships)) }
    member.recheck = recheck
    return recheck.done
  }

  async #goOn (member: M, recheck: Recheck, memberships: Memberships): Promise<void> {
    while (recheck.isDue) {
      recheck.isDue = false
      await this.#round(member, memberships)
    }
    member.recheck = null
  }

  #round (member: M, memberships: Memberships): Maybe<void> {
    const { version } = member.context
    const waits: Array<Promise<void>> = []
    const lost: string[] = []
    for (const room of [...memberships.keys()]) {
      const verdict = this.#verdicts.ask(member, room, 'join')
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
  #admit (member: M, room: string, turn: Turn, cursor: string | undefined): Maybe<RoomRefusal | null> {
    return this.#verdicts.reach(member, room, 'join', (unmet): Maybe<RoomRefusal | null> => {
      if (!turn.isOpen(member, room)) return ENDED
      if (unmet !== null) {
        turn.end(member, room)
        return this.#refuse(member, room, 'join', unmet)
      }
      const { version } = member.context
      const known = this.#rooms.claim(room)
      const { stream, heard } = known
      const ready = stream === null || cursor === undefined ? whenReady(heard, () => null) : whenReady(heard, () => stream.catchUp(cursor))
      return whenReady(ready, (catchUp): Maybe<RoomRefusal | null> => {
        if (catchUp !== null) stream?.drop(catchUp)
        if (turn.isOpen(member, room) && member.context.version === version) {
          turn.end(member, room)
          return this.#enter(member, known, catchUp)
        }
        this.#rooms.release(room)
        return turn.isOpen(member, room) ? this.#admit(member, room, turn, cursor) : ENDED
      })
    })
  }

  #enter (member: M, { name, members, stream }: OpenRoom<M>, catchUp: CatchUp | null): null {
    member.memberships ??= new Map()
    member.memberships.set(name, null)
    members.add(member)
    this.size++
    const missed = catchUp === null ? [] : catchUp.framesFor(member)
    for (const frame of missed ?? []) member.pass(frame)
    member.say(stream?.joined(missed === null) ?? { type: 'joined', room: name })
    this.#parts.onJoined(member, name)
    member.announce('joined', name)
    return null
  }

  #refuse (member: M, room: string, action: RoomAction, refusal: RoomRefusal): RoomRefusal {
    const { code } = refusal
    if (code !== 'ended') this.#parts.onRefused(member, room, action, code)
    return refusal
  }

  /** false: it was not in there. */
  #remove (member: M, room: string): boolean {
    resume(member, room)
    if (member.memberships?.delete(room) !== true) return false
    this.size--
    this.#rooms.get(room)?.members.delete(member)
    this.#rooms.release(room)
    return true
  }

  #tellLeft (member: M, room: string, reason: LeaveReason): void {
    if (reason !== 'closed') member.say(reason === 'left' ? { type: 'left', room } : { type: 'left', room, reason })
    this.#parts.onLeft(member, room, reason)
    member.announce('left', room, reason)
  }
}
