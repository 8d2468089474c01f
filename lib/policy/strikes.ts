/** Failures under a name within a sliding window: when there were too many, and until when that is so. */

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
}

/** An attack that pauses for so many windows is another one. */
export const EPISODE = 2
const LOOKS = 2

export class StrikeTable {
  readonly #records = new Map<string, Record>()
  readonly #max: number

  /** @param max the most names that are kept: past it, the one with the oldest failure is lost */
  constructor (max: number) {
    this.#max = max
  }

  get size (): number {
    return this.#records.size
  }

  /** Counts a failure under every name under which there were not too many before. */
  strike (names: readonly string[], { max, window }: Window, time: number): Strike {
    this.#forget(window, time)
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
    return {
      isOver,
      waits: records.map(({ times: [oldest = 0, ...later] }) => later.length + 1 >= max ? oldest + window - time : 0),
      isAlert: isReached && !wasSuspected && !isOver
    }
  }

  /** As the latest of all, without what is out of the window. */
  #recordOf (name: string, window: number, time: number): Record {
    const record = this.#records.get(name) ?? { times: [], suspectedUntil: 0 }
    this.#records.delete(name)
    this.#records.set(name, record)
    // After the clock was set back, what lies ahead happened now.
    const left = record.times.map(at => Math.min(at, time)).filter(at => at > time - window)
    record.times.splice(0, Infinity, ...left)
    return record
  }

  /** What is over, and what there is no room for. */
  #forget (window: number, time: number): void {
    let looks = LOOKS
    for (const [name, { times, suspectedUntil }] of this.#records) {
      const isPast = times.every(at => at <= time - window) && suspectedUntil <= time
      if (--looks < 0 || (!isPast && this.#records.size < this.#max)) return
      this.#records.delete(name)
    }
  }
}
