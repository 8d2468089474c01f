/** One message to everybody in a room: written once, handed to the members here, and told to the other nodes. */
import type { PublishResult } from '../../types/rooms.js'
import { invalidOption } from '../errors.js'
import type { Maybe } from '../maybe.js'
import { RoomFrame } from './frame.js'
import type { Member } from './member.js'
import type { Rooms } from './rooms.js'
import { hand } from './suspended.js'
import { isRoomName, type RoomSettings } from './settings.js'

export interface PublisherParts {
  readonly settings: RoomSettings
  readonly now: () => number
  /** Tells the other nodes. false: they cannot be reached. Never rejects. @param payload as JSON */
  readonly broadcast: (room: string, payload: string) => Maybe<boolean>
  /** A message had so many members here, and the other nodes were told of it or not. */
  readonly onPublished: (delivered: number, published: boolean) => void
  /** A message of another node came. */
  readonly onReceived: (delivered: number) => void
}

export class Publisher<M extends Member> {
  readonly #rooms: Rooms<M>
  readonly #parts: PublisherParts

  constructor (rooms: Rooms<M>, parts: PublisherParts) {
    this.#rooms = rooms
    this.#parts = parts
  }

  /** The payload as JSON; null: it is too large. @throws TypeError on what JSON cannot hold, and what a `toJSON` throws */
  write (payload: unknown): string | null {
    const text: unknown = JSON.stringify(payload)
    if (typeof text !== 'string') throw new TypeError(`a payload of type ${typeof payload} is nothing that JSON holds`)
    return Buffer.byteLength(text) > this.#parts.settings.maxPayload ? null : text
  }

  /** @throws FST_HYBRID_AUTH_INVALID_OPTION, and as {@link write} */
  publish (room: string, payload: unknown, except: M | null): Promise<PublishResult> {
    if (!isRoomName(room, this.#parts.settings)) throw invalidOption('room', 'is no name of a room')
    const text = this.write(payload)
    if (text === null) throw invalidOption('payload', 'is larger than rooms.maxPayload')
    return this.send(room, text, except)
  }

  /** As {@link publish}, of what is checked. Members of this process have it when this returns. Never rejects. */
  async send (room: string, text: string, except: M | null): Promise<PublishResult> {
    const { broadcast, onPublished } = this.#parts
    const slow: M[] = []
    const delivered = this.#deliver(room, text, except, slow)
    const told = broadcast(room, text)
    closeAll(slow)
    const published = await told
    onPublished(delivered, published)
    return { delivered, published }
  }

  /** From another node. */
  receive (room: string, text: string): void {
    const slow: M[] = []
    this.#parts.onReceived(this.#deliver(room, text, null, slow))
    closeAll(slow)
  }

  /** Nothing of the application runs in here: what it published meanwhile would overtake this for some. */
  #deliver (room: string, text: string, except: M | null, slow: M[]): number {
    const members = this.#rooms.membersOf(room)
    if (members === null || members.size === 0) return 0
    const { now, settings: { maxBuffered } } = this.#parts
    const frame = new RoomFrame(`{"type":"message","room":${JSON.stringify(room)},"payload":${text}}`)
    const time = now()
    let delivered = 0
    for (const member of members) {
      if (member === except || !member.isLive(time)) continue
      // What a member does not read is kept for it up to a bound, and not past it.
      if (member.buffered + member.suspendedBytes > maxBuffered) {
        slow.push(member)
        continue
      }
      hand(member, room, frame)
      delivered++
    }
    return delivered
  }
}

function closeAll (members: readonly Member[]): void {
  for (const member of members) member.closeSlow()
}
