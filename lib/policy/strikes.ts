/** Failures under a name within a sliding window: when there were too many, and until when that is so. */
import { GenerationCache } from '../cache.js'
import { Sweeper } from '../sweeper.js'

/** What one more failure means. */
export interface Strike {
  /** There had been too many under one of the names before. */
  readonly isOver: boolean
  /** How long there will have been too many, in milliseconds, in the order of the names; 0: there are not. */
  readonly waits: readonly number[]
  /** There are too many now, and there were not for a while. */
  readonly isAlert: boolean
}

export interface Window {
  readonly max: number
  /** In milliseconds. */
  readonly window: number
}

interface Record {
  /** When the latest failures were, oldest first; never more than `max`. */
  readonly times: number[]
  /** Until when one that is over again is still the same attack. */
  suspectedUntil: number
  /** When the latest of them is out of the window. */
  endsAt: number
}

/** An attack that pauses for so many windows is another one. */
export const EPISODE = 2

export class StrikeTable {
  readonly #records: GenerationCache<Record>
  readonly #now: () => number
  readonly #sweeper = new Sweeper(() => this.#sweep())

  /** @param max the most names that are kept: past it, the oldest are lost */
  constructor (max: number, now: () => number = Date.now) {
    this.#records = new GenerationCache(max)
    this.#now = now
  }

  get size (): number {
    return this.#records.size
  }

  /** Counts a failure under every name under which there were not too many before. */
  strike (names: readonly string[], { max, window }: Window): Strike {
    const time = this.#now()
    const records = names.map(name => this.#recordOf(name, window, time))
    const wasSuspected = records.some(({ suspectedUntil }) => suspectedUntil > time)
    const isOver = records.some(({ times }) => times.length >= max)
    let isReached = false
    for (const record of records) {
      if (record.times.length >= max) continue
      record.times.push(time)
      if (record.times.length < max) continue
      isReached = true
      record.suspectedUntil = time + EPISODE * window
    }
    this.#sweeper.wake()
    return {
      isOver,
      waits: records.map(({ times }) => times.length >= max ? Math.min(Number(times[0]) + window - time, window) : 0),
      isAlert: isReached && !wasSuspected && !isOver
    }
  }

  /** Without what is out of the window. */
  #recordOf (name: string, window: number, time: number): Record {
    const record = this.#records.get(name) ?? { times: [], suspectedUntil: 0, endsAt: 0 }
    this.#records.set(name, record)
    record.endsAt = time + window
    // After the clock was set back, what lies ahead happened now; what lies further ahead than anything can is forgotten.
    if (record.suspectedUntil > time + EPISODE * window) record.suspectedUntil = 0
    const { times } = record
    // They are in order: mostly there is nothing to do.
    if (Number(times[0]) > time - window && Number(times.at(-1)) <= time) return record
    const left = times.filter(at => at > time - window && at <= time + window).map(at => Math.min(at, time))
    times.splice(0, Infinity, ...left)
    return record
  }

  /** Nothing is swept any more. */
  stop (): void {
    this.#sweeper.stop()
  }

  #sweep (): number {
    const time = this.#now()
    for (const [name, { endsAt, suspectedUntil }] of this.#records.entries()) if (Math.max(endsAt, suspectedUntil) <= time) this.#records.delete(name)
    return this.#records.size
  }
}
