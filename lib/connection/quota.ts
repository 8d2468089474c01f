/** So many at once, and about so many in a second; the others wait in line. */
import { Bucket } from '../policy/bucket.js'
import { now } from './clock.js'

const AT_ONCE = 50
/** What may begin in one moment is this part of what may in a second. */
const BURST = 0.05

interface Place {
  /** Asked when its turn has come. */
  readonly isWanted: () => boolean
  readonly admit: (leave: (() => void) | null) => void
}

export class Quota {
  readonly #bucket: Bucket | null
  readonly #line: Place[] = []
  #inside = 0
  #timer: NodeJS.Timeout | undefined

  /** @param perSecond Infinity: as many as there are */
  constructor (perSecond: number) {
    this.#bucket = perSecond === Infinity ? null : new Bucket({ capacity: Math.max(1, perSecond * BURST), refillPerSecond: perSecond }, now())
  }

  /** Resolves with what to call when it is done; with null where it was not wanted any more, which costs nothing. */
  enter (isWanted: () => boolean): Promise<(() => void) | null> {
    return new Promise(resolve => {
      this.#line.push({ isWanted, admit: resolve })
      this.#admit()
    })
  }

  /** Who still waits, waits for ever. */
  stop (): void {
    clearTimeout(this.#timer)
    this.#line.length = 0
  }

  #leave (): void {
    this.#inside--
    this.#admit()
  }

  #admit (): void {
    clearTimeout(this.#timer)
    for (let next = this.#line[0]; next !== undefined && this.#inside < AT_ONCE; next = this.#line[0]) {
      if (!next.isWanted()) {
        this.#line.shift()
        next.admit(null)
        continue
      }
      const wait = this.#bucket?.wait(1, now()) ?? 0
      if (wait > 0) {
        this.#timer = setTimeout(() => { this.#admit() }, wait).unref()
        return
      }
      this.#bucket?.take(1)
      this.#inside++
      this.#line.shift()
      next.admit(() => { this.#leave() })
    }
  }
}
