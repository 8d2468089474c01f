/** One message to everybody in a room: written once, handed to the members here, and told to the other nodes. */
import type { PublishResult } from '../../types/rooms.js'
import type { Cluster } from '../cluster/cluster.js'
import type { Entry, Retention } from '../cluster/history.js'
import { invalidOption } from '../errors.js'
import type { Maybe } from '../maybe.js'
import { RoomFrame } from './frame.js'
import { closeAll, handOut } from './hand-out.js'
import type { Member } from './member.js'
import type { Rooms } from './rooms.js'
import { isRoomName, type RoomSettings } from './settings.js'
import type { RoomTerms } from './terms.js'

export interface PublisherParts {
  readonly settings: RoomSettings
  readonly now: () => number
  readonly termsOf: (room: string) => RoomTerms
  /** Tells the other nodes. false: they cannot be reached. Never rejects. @param payload as JSON */
  readonly broadcast: (room: string, payload: string) => Maybe<boolean>
  readonly append: Cluster['append']
  /** A message had so many members here, and the other nodes were told of it or not. */
  readonly onPublished: (delivered: number, published: boolean) => void
  /** A message of another node came. */
  readonly onReceived: (delivered: number) => void
}

/** How long a message that the cluster has is waited for, before it is asked for, in milliseconds. */
const PATIENCE = 500

export class Publisher<M extends Member> {
  readonly #rooms: Rooms<M>
  readonly #parts: PublisherParts
  #said = 0

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

  /**
   * As {@link publish}, of what is checked. Members of this process have it when this returns, or, in a room with history that several
   * processes share, when it resolves. Never rejects.
   * @param id what a client calls it; kept where the room has a history
   */
  async send (room: string, text: string, except: M | null, id?: string | number): Promise<PublishResult> {
    const { history } = this.#parts.termsOf(room)
    return history === null ? this.#send(room, text, except) : this.#append(room, text, except, id, history)
  }

  async #send (room: string, text: string, except: M | null): Promise<PublishResult> {
    const { broadcast, onPublished } = this.#parts
    const slow = new Set<M>()
    const delivered = this.#deliver(room, text, except, slow)
    const told = broadcast(room, text)
    closeAll(slow)
    const published = await told
    onPublished(delivered, published)
    return { delivered, published }
  }

  /** It is delivered when the cluster has given it its place. */
  async #append (room: string, payload: string, except: M | null, id: string | number | undefined, history: Retention): Promise<PublishResult> {
    const { append, onPublished } = this.#parts
    const sequence = ++this.#said
    const stream = this.#rooms.streamOf(room)
    const arrived = stream?.publications.expect(sequence, except)
    const published = await append(room, { sequence, payload, ...(id !== undefined && { id }) }, history)
    const delivered = published && stream !== null && arrived !== undefined ? await stream.arrival(sequence, arrived, PATIENCE) : 0
    onPublished(delivered, published)
    return { delivered, published }
  }

  /** From another node. */
  receive (room: string, text: string): void {
    const slow = new Set<M>()
    this.#parts.onReceived(this.#deliver(room, text, null, slow))
    closeAll(slow)
  }

  /** It stands in a history, which this node may know nothing of. */
  told (room: string, epoch: string, entry: Entry): void {
    const stream = this.#rooms.streamOf(room)
    if (stream === null) this.receive(room, entry.payload)
    else stream.told(epoch, entry)
  }

  #deliver (room: string, text: string, except: M | null, slow: Set<M>): number {
    const members = this.#rooms.membersOf(room)
    if (members === null || members.size === 0) return 0
    const frame = new RoomFrame(`{"type":"message","room":${JSON.stringify(room)},"payload":${text}}`)
    return handOut(members, room, frame, except, slow, this.#parts)
  }
}
