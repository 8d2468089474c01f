/** The rooms that somebody of this process is in, or on the way into. */
import type { Cluster } from '../cluster/cluster.js'
import { whenReady, type Maybe } from '../maybe.js'
import type { Member } from './member.js'
import type { Stream } from './stream.js'

export interface OpenRoom<M extends Member> {
  /** As everybody in it has it: the same text, and not one for each. */
  readonly name: string
  readonly members: Set<M>
  /** Members, and those on the way. */
  claims: number
  /** null: nothing of it is kept. */
  readonly stream: Stream<M> | null
  /** When it hears of other nodes, and knows where it is. */
  readonly heard: Maybe<void>
}

export interface OpenRoomsParts<M extends Member> {
  /** How a room hears of the other nodes. */
  readonly channels: Pick<Cluster, 'subscribe' | 'unsubscribe'>
  /** null: nothing of the room is kept. */
  readonly streamOf: (room: string, members: ReadonlySet<M>) => Stream<M> | null
}

/** As many histories at once as do not keep the cluster from others. */
const PART = 100

export class OpenRooms<M extends Member> {
  readonly #parts: OpenRoomsParts<M>
  readonly #rooms = new Map<string, OpenRoom<M>>()

  constructor (parts: OpenRoomsParts<M>) {
    this.#parts = parts
  }

  get size (): number {
    return this.#rooms.size
  }

  get (room: string): OpenRoom<M> | null {
    return this.#rooms.get(room) ?? null
  }

  claim (room: string): OpenRoom<M> {
    const known = this.#rooms.get(room)
    if (known !== undefined) {
      known.claims++
      return known
    }
    const { channels, streamOf } = this.#parts
    const members = new Set<M>()
    const stream = streamOf(room, members)
    const subscribed = channels.subscribe(room)
    const made: OpenRoom<M> = { name: room, members, claims: 1, stream, heard: stream === null ? subscribed : whenReady(subscribed, () => stream.open()) }
    this.#rooms.set(room, made)
    return made
  }

  release (room: string): void {
    const known = this.#rooms.get(room)
    if (known === undefined || --known.claims > 0) return
    this.#rooms.delete(room)
    known.stream?.close()
    this.#parts.channels.unsubscribe(room)
  }

  /** Reads in all of them what members have not had. Never rejects. */
  async fill (): Promise<void> {
    const streams = [...this.#rooms.values()].flatMap(({ stream }) => stream ?? [])
    for (let from = 0; from < streams.length; from += PART) await Promise.all(streams.slice(from, from + PART).map(async stream => stream.fill()))
  }
}
