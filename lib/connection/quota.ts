/** So many at once, and so many in a second; the others wait in line. */
import { Bucket } from '../policy/bucket.js'
import { now } from './clock.js'

const AT_ONCE = 50

export class Quota {
  readonly #bucket: Bucket | null
  readonly #line: Array<() => void> = []
  #inside = 0
  #timer: NodeJS.Timeout | undefined

  /** @param perSecond Infinity: as many as there are */
  constructor (perSecond: number) {
    this.#bucket = perSecond === Infinity ? null : new Bucket({ capacity: perSecond, refillPerSecond: perSecond }, now())
  }

  /** Resolves with what to call when it is done. */
  enter (): Promise<() => void> {
    return new Promise(resolve => {
      this.#line.push(() => { resolve(() => { this.#leave() }) })
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
    while (this.#line.length > 0 && this.#inside < AT_ONCE) {
      const wait = this.#bucket?.wait(1, now()) ?? 0
      if (wait > 0) {
        this.#timer = setTimeout(() => { this.#admit() }, wait).unref()
        return
      }
      this.#bucket?.take(1)
      this.#inside++
      this.#line.shift()?.()
    }
  }
}
