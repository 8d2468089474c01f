/** What somebody has to be given who comes back to a room: what was said since, and what is said while that is read. */
import type { RoomFrame } from './frame.js'
import type { Member } from './member.js'

export class CatchUp {
  /** The number of the last message that its member has had. */
  readonly #after: number
  readonly #maxBytes: number
  readonly #frames: RoomFrame[] = []
  #bytes = 0
  /** Some of it is not to be had, or it is more than is sent at once. */
  #isGap = false

  /** @param after null: nobody knows any more what followed */
  constructor (after: number | null, maxBytes: number) {
    this.#after = after ?? 0
    this.#maxBytes = maxBytes
    if (after === null) this.fail()
  }

  /** The next. */
  add (number: number, frame: RoomFrame): void {
    if (this.#isGap || number <= this.#after) return
    this.#frames.push(frame)
    this.#bytes += frame.length
    if (this.#bytes > this.#maxBytes) this.fail()
  }

  /** Before all that was added. */
  prepend (frames: readonly RoomFrame[]): void {
    const added = this.#frames.splice(0)
    this.#bytes = 0
    for (const frame of [...frames, ...added]) this.add(Infinity, frame)
  }

  fail (): void {
    this.#isGap = true
    this.#frames.length = 0
  }

  /** null: nothing of it, for all of it is not to be had. */
  framesFor ({ buffered }: Member): readonly RoomFrame[] | null {
    return this.#isGap || buffered + this.#bytes > this.#maxBytes ? null : this.#frames
  }
}
