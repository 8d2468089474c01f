/**
 * Token buckets: `capacity` at once, `refillPerSecond` in the long run. They have no clock of their own: whoever asks says
 * what time it is, in milliseconds.
 */
import { GenerationCache } from '../cache.js'
import { Sweeper } from '../sweeper.js'

export interface Rate {
  readonly capacity: number
  readonly refillPerSecond: number
}

/** What is to be taken from one bucket. */
export interface Debit {
  readonly key: string
  readonly rate: Rate
  readonly cost: number
}

/** Sums of fractions are off by less than this part: who waited as long as was said must not be told to wait on. */
const ROUNDING = 1e-9

export class Bucket {
  readonly #rate: Rate
  #tokens: number
  #at: number

  constructor (rate: Rate, time: number) {
    this.#rate = rate
    this.#tokens = rate.capacity
    this.#at = time
  }

  /** Refills, and says in how many milliseconds there will be enough; 0: there is; Infinity: there never will. Nothing is taken. */
  wait (cost: number, time: number): number {
    const { capacity, refillPerSecond } = this.#rate
    // A clock that was set back refills nothing, and does not keep the bucket from being refilled later.
    this.#tokens = Math.min(capacity, this.#tokens + Math.max(0, time - this.#at) * refillPerSecond / 1000)
    this.#at = time
    const missing = cost - this.#tokens
    if (missing <= Math.max(cost, 1) * ROUNDING) return 0
    return cost > capacity ? Infinity : Math.max(1, Math.ceil(missing / refillPerSecond * 1000 * (1 - ROUNDING)))
  }

  take (cost: number): void {
    this.#tokens -= cost
  }

  /** Like one that was never used. */
  isFull (time: number): boolean {
    return this.wait(this.#rate.capacity, time) === 0
  }
}

/** Buckets by name. What is full may be forgotten, so nothing has to be given back. */
export class BucketTable {
  readonly #buckets: GenerationCache<Bucket>
  readonly #now: () => number
  readonly #sweeper = new Sweeper(() => this.#sweep())

  /**
   * @param max the most that are kept: past it, the oldest are lost
   * @param now the clock that `time` is read from, in milliseconds
   */
  constructor (max: number, now: () => number) {
    this.#buckets = new GenerationCache(max)
    this.#now = now
  }

  get size (): number {
    return this.#buckets.size
  }

  of (key: string, rate: Rate, time: number): Bucket {
    const known = this.#buckets.get(key)
    if (known !== undefined) return known
    const bucket = new Bucket(rate, time)
    this.#buckets.set(key, bucket)
    this.#sweeper.wake()
    return bucket
  }

  /** Takes from every bucket, or from none. @returns 0, or how long to wait, in milliseconds; Infinity: for ever */
  spend (debits: readonly Debit[]): number {
    const time = this.#now()
    const wait = Math.max(...debits.map(({ key, rate, cost }) => this.of(key, rate, time).wait(cost, time)))
    if (wait === 0) for (const { key, rate, cost } of debits) this.of(key, rate, time).take(cost)
    return wait
  }

  /** Nothing is swept any more. */
  stop (): void {
    this.#sweeper.stop()
  }

  #sweep (): number {
    const time = this.#now()
    for (const [key, bucket] of this.#buckets.entries()) if (bucket.isFull(time)) this.#buckets.delete(key)
    return this.#buckets.size
  }
}
