/**
 * A room with history as the members of this node have it: each message once, in the order that the cluster gave it. What the node
 * was not told it reads from the history, before it goes on.
 */
import type { Cluster } from '../cluster/cluster.js'
import type { Entry, Position, Recalled, Retention } from '../cluster/history.js'
import { settledWithin } from '../deadline.js'
import { unawaited, whenReady, type Maybe } from '../maybe.js'
import type { JoinedFrame } from '../protocol.js'
import { wheel, type Wheeled } from '../wheel.js'
import { CatchUp } from './catch-up.js'
import { cursorOf, parseCursor } from './cursor.js'
import { RoomFrame } from './frame.js'
import { closeAll, handOut, type HandOutParts } from './hand-out.js'
import type { Member } from './member.js'
import { Publications } from './publications.js'
import { Senders } from '../cluster/senders.js'
import { hand } from './suspended.js'

export interface StreamParts extends HandOutParts {
  readonly nodeId: string
  readonly recall: Cluster['recall']
  /** A message of another node came. */
  readonly onReceived: (delivered: number) => void
  /** A message came a second time under another number. */
  readonly onIgnored: () => void
}

/** When a history that could not be read is asked for again, in milliseconds. */
const RETRY = 1000

export class Stream<M extends Member> implements Wheeled {
  due = -1
  position = 0
  readonly publications = new Publications()
  readonly #room: string
  readonly #members: ReadonlySet<M>
  readonly #retention: Retention
  readonly #parts: StreamParts
  readonly #head: string
  /** Where the members are; null: not known yet. */
  #at: Position | null = null
  /** The history is being read. */
  #reading: Promise<void> | null = null
  /** …and has to be read again. */
  #isDue = false
  /** The last that was told meanwhile. */
  #announced: Position | null = null
  #isClosed = false
  readonly #catchUps = new Set<CatchUp>()
  readonly #senders = new Senders()

  constructor (room: string, members: ReadonlySet<M>, retention: Retention, parts: StreamParts) {
    this.#room = room
    this.#members = members
    this.#retention = retention
    this.#parts = parts
    this.#head = `{"type":"message","room":${JSON.stringify(room)},"payload":`
  }

  /** What somebody is told who is in. */
  joined (isGap: boolean): JoinedFrame {
    const at = this.#at
    return {
      type: 'joined', room: this.#room, ...(at !== null && { cursor: cursorOf(at) }), ...((isGap || at === null) && { gap: true })
    }
  }

  /** Finds out where the room is, unless that is known. Never rejects. */
  open (): Maybe<void> {
    if (this.#reading !== null) return this.#reading
    if (this.#at === null) return this.fill()
  }

  close (): void {
    this.#isClosed = true
    wheel.remove(this)
    this.publications.end()
  }

  /** For the wheel. */
  look (): void {
    unawaited(this.fill())
  }

  /** The cluster has it. */
  told (epoch: string, entry: Entry): void {
    const { number } = entry
    if (this.#reading !== null) this.#announced = { epoch, number }
    else if (this.#at?.epoch !== epoch || number > this.#at.number + 1) unawaited(this.fill())
    // One that was said before does not take the place of the one that is to come.
    else if (number === this.#at.number + 1 && this.#isNew(entry)) this.#advance(epoch, [entry], number)
  }

  /** Reads what members of this node have not had. Never rejects. */
  fill (): Maybe<void> {
    if (this.#reading !== null) {
      this.#isDue = true
      return this.#reading
    }
    const recalled = this.#recall(this.#at, true)
    if (recalled instanceof Promise) {
      this.#reading = this.#read(recalled)
      return this.#reading
    }
    this.#take(recalled)
  }

  /**
   * Waits for a message that the cluster has; where it is not told, it is read.
   * @param delivered what `publications.expect` answered
   * @returns to how many members of this node it went
   */
  async arrival (sequence: number, delivered: Promise<number>, patience: number): Promise<number> {
    if (await settledWithin<number | null>(delivered, patience, null) === null) {
      await this.fill()
      this.publications.take(sequence)?.settle(0)
    }
    return delivered
  }

  /** What follows a cursor, collected from now on: to be passed on in one step with its {@link drop}. Never rejects. */
  catchUp (cursor: string): Maybe<CatchUp> {
    const after = parseCursor(cursor)
    const at = this.#at
    const isKnown = after !== null && at?.epoch === after.epoch
    const catchUp = new CatchUp(isKnown ? after.number : null, this.#parts.settings.maxBuffered)
    this.#catchUps.add(catchUp)
    if (!isKnown || after.number === at.number) return catchUp
    if (after.number > at.number) {
      // Another node was ahead of this one.
      return whenReady(this.fill(), () => {
        if (this.#isAhead(after)) catchUp.fail()
        return catchUp
      })
    }
    return whenReady(this.#recall(after, false), recalled => {
      const isWhole = recalled?.epoch === after.epoch && recalled.from === after.number && recalled.to >= at.number
      if (isWhole) catchUp.prepend(recalled.entries.filter(({ number }) => number <= at.number).map(entry => this.#frameOf(after.epoch, entry)))
      else catchUp.fail()
      return catchUp
    })
  }

  drop (catchUp: CatchUp): void {
    this.#catchUps.delete(catchUp)
  }

  async #read (first: Promise<Recalled | null>): Promise<void> {
    let recalled: Maybe<Recalled | null> = first
    for (;;) {
      this.#isDue = false
      this.#announced = null
      this.#take(await recalled)
      if (!this.#isBehind()) break
      recalled = this.#recall(this.#at, true)
    }
    this.#reading = null
  }

  #isBehind (): boolean {
    return !this.#isClosed && (this.#isDue || this.#isAhead(this.#announced))
  }

  #isAhead (position: Position | null): boolean {
    return position !== null && (this.#at?.epoch !== position.epoch || position.number > this.#at.number)
  }

  #recall (after: Position | null, isHad: boolean): Maybe<Recalled | null> {
    return this.#parts.recall(this.#room, after, { ...this.#retention, bytes: this.#parts.settings.maxBuffered, isHad })
  }

  #take (recalled: Recalled | null): void {
    if (this.#isClosed) return
    if (recalled === null) {
      wheel.schedule(this, RETRY)
      return
    }
    wheel.remove(this)
    const { epoch, head, from, to, entries } = recalled
    const at = this.#at
    const isFirst = at === null
    // What is too much to be sent at once is not sent.
    const start = to === head ? from : head
    if (isFirst || at.epoch !== epoch || start !== at.number) {
      this.#at = { epoch, number: start }
      this.#tellGap()
    }
    if (start === from) this.#advance(epoch, entries.filter(entry => this.#isNew(entry)), to)
  }

  #isNew ({ from, sequence }: Entry): boolean {
    const isNew = this.#senders.isNew({ from, number: sequence })
    if (!isNew) this.#parts.onIgnored()
    return isNew
  }

  /** Nothing of the application runs before everybody has everything. */
  #advance (epoch: string, entries: readonly Entry[], to: number): void {
    const slow = new Set<M>()
    for (const entry of entries) {
      this.#at = { epoch, number: entry.number }
      const frame = this.#frameOf(epoch, entry)
      const own = entry.from === this.#parts.nodeId ? this.publications.take(entry.sequence) : null
      for (const catchUp of this.#catchUps) catchUp.add(entry.number, frame)
      const delivered = handOut(this.#members, this.#room, frame, own?.except ?? null, slow, this.#parts)
      if (own === null) this.#parts.onReceived(delivered)
      else own.settle(delivered)
    }
    this.#at = { epoch, number: to }
    closeAll(slow)
  }

  /** Who is in there has missed something that is not to be had. */
  #tellGap (): void {
    for (const catchUp of this.#catchUps) catchUp.fail()
    const frame = new RoomFrame(JSON.stringify(this.joined(true)))
    for (const member of this.#members) if (member.speaks && member.isLive()) hand(member, this.#room, frame)
  }

  #frameOf (epoch: string, { number, payload, id }: Entry): RoomFrame {
    return new RoomFrame(`${this.#head}${payload},"cursor":"${cursorOf({ epoch, number })}"${id === undefined ? '' : `,"id":${JSON.stringify(id)}`}}`)
  }
}
