/** The histories of rooms in one process. */
import { randomBytes } from 'node:crypto'
import { DAY } from '../schema.js'
import { Sweeper } from '../sweeper.js'
import type { Entry, Position, Recalled, Retention, Said, Wanted } from './history.js'

const MAX_ROOMS = 100_000
/** Of one room, and of all together. */
const [MAX_ROOM_BYTES, MAX_BYTES] = [16 * 1024 * 1024, 128 * 1024 * 1024]
/** What surrounds a payload where it is kept or sent: names, a cursor, an id. */
const ENVELOPE = 256
/** How much longer than its messages a room keeps its place, in milliseconds. */
export const KEPT_LONGER = DAY

interface Stored extends Entry {
  readonly at: number
  readonly bytes: number
}

interface Room {
  readonly epoch: string
  head: number
  /** By number, without a hole, up to the head. */
  readonly stored: Map<number, Stored>
  bytes: number
  maxAge: number
  usedAt: number
}

export class MemoryHistories {
  /** Those that were used last at the end. */
  readonly #rooms = new Map<string, Room>()
  readonly sweeper = new Sweeper(() => this.#sweep())
  #bytes = 0

  get size (): number {
    return this.#rooms.size
  }

  append (name: string, from: string, said: Said, retention: Retention): { readonly epoch: string, readonly entry: Entry } {
    const room = this.#use(name, retention)
    const entry: Stored = { ...said, from, number: ++room.head, at: Date.now(), bytes: Buffer.byteLength(said.payload) + ENVELOPE }
    room.stored.set(entry.number, entry)
    this.#count(room, entry.bytes)
    while (room.stored.size > retention.messages || room.bytes > MAX_ROOM_BYTES) this.#dropOldest(room)
    this.#makeRoom()
    return { epoch: room.epoch, entry }
  }

  recall (name: string, after: Position | null, wanted: Wanted): Recalled {
    const room = this.#use(name, wanted)
    const { epoch, head, stored } = room
    this.#dropOlder(room, Date.now())
    this.#makeRoom()
    const begin = after === null ? head : after.epoch === epoch ? after.number : 0
    const from = Math.min(head, Math.max(begin, head - stored.size))
    const entries: Entry[] = []
    let bytes = 0
    for (let entry = stored.get(from + 1); entry !== undefined; entry = stored.get(entry.number + 1)) {
      bytes += entry.bytes
      if (bytes > wanted.bytes && entries.length > 0) break
      entries.push(entry)
    }
    return { epoch, head, from, to: from + entries.length, entries }
  }

  /** Nothing is swept any more. */
  stop (): void {
    this.sweeper.stop()
  }

  #use (name: string, { maxAge }: Retention): Room {
    const room: Room = this.#rooms.get(name) ?? { epoch: randomBytes(12).toString('base64url'), head: 0, stored: new Map(), bytes: 0, maxAge, usedAt: 0 }
    room.usedAt = Date.now()
    room.maxAge = maxAge
    this.#rooms.delete(name)
    this.#rooms.set(name, room)
    this.sweeper.wake()
    return room
  }

  /** What was used last stays. */
  #makeRoom (): void {
    for (const [name, room] of this.#rooms) {
      if (this.#rooms.size <= MAX_ROOMS && this.#bytes <= MAX_BYTES) break
      this.#drop(name, room)
    }
  }

  #drop (name: string, room: Room): void {
    this.#count(room, -room.bytes)
    this.#rooms.delete(name)
  }

  #dropOldest (room: Room): void {
    const [oldest] = room.stored.values()
    if (oldest !== undefined) {
      room.stored.delete(oldest.number)
      this.#count(room, -oldest.bytes)
    }
  }

  #dropOlder (room: Room, now: number): void {
    for (const { at } of room.stored.values()) {
      if (at >= now - room.maxAge) return
      this.#dropOldest(room)
    }
  }

  #count (room: Room, bytes: number): void {
    room.bytes += bytes
    this.#bytes += bytes
  }

  #sweep (): number {
    const now = Date.now()
    for (const [name, room] of this.#rooms) {
      this.#dropOlder(room, now)
      if (room.usedAt < now - room.maxAge - KEPT_LONGER) this.#drop(name, room)
    }
    return this.#rooms.size
  }
}
