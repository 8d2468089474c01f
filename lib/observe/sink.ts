/** The application's `audit`: told everything in order, behind the decision. Nothing but later events ever waits for it. */
import { settleWithin } from '../deadline.js'
import { adopt } from '../maybe.js'

/** Events that wait. What finds no room is dropped. */
const MAX_WAITING = 10_000
/** Answers that are waited for at once, and how long for each, in milliseconds. */
const MAX_OPEN = 100
const PATIENCE = 10_000
/** How long the loop is kept from other work, in milliseconds. */
const SLICE = 5
/** How often events are told before the loop has come round. */
const MAX_RUNS = 100
/** What is taken out of the queue at once. */
const BATCH = 100

export class Sink<E> {
  readonly #tell: (event: E) => unknown
  readonly #onDropped: (count: number) => void
  readonly #onFailed: () => void
  readonly #waiting: E[] = []
  /** Taken out of the queue, last first. */
  readonly #batch: E[] = []
  #open = 0
  #isScheduled = false
  /** Since the loop came round. */
  #runs = 0
  #whenIdle: Array<() => void> = []

  /**
   * @param onDropped called with how many were
   * @param onFailed called for each event that `tell` throws at, or rejects
   */
  constructor (tell: (event: E) => unknown, onDropped: (count: number) => void, onFailed: () => void) {
    this.#tell = tell
    this.#onDropped = onDropped
    this.#onFailed = onFailed
  }

  push (event: E): void {
    if (this.#waiting.length >= MAX_WAITING) {
      this.#onDropped(1)
      return
    }
    this.#waiting.push(event)
    // Behind the decision, and before anybody can have heard of it: unless telling it leads to the next one, and that to another.
    this.#schedule(this.#runs < MAX_RUNS ? queueMicrotask : setImmediate)
  }

  /** Resolves when everything was told and answered, or after `ms`; what waits then is dropped. */
  flush (ms: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(() => {
        this.#onDropped(this.#waiting.length + this.#batch.length)
        resolve()
      }, ms)
      this.#whenIdle.push(() => {
        clearTimeout(timer)
        resolve()
      })
      this.#schedule(setImmediate)
    })
  }

  #schedule (when: (run: () => void) => unknown): void {
    if (this.#isScheduled || this.#open >= MAX_OPEN) return
    this.#isScheduled = true
    when(() => { this.#drain() })
  }

  #drain (): void {
    this.#isScheduled = false
    if (this.#runs++ === 0) setImmediate(() => { this.#runs = 0 })
    const started = performance.now()
    while (this.#open < MAX_OPEN) {
      const event = this.#next()
      if (event === undefined) {
        if (this.#open === 0) for (const done of this.#whenIdle.splice(0)) done()
        return
      }
      this.#tellOf(event)
      if (performance.now() - started > SLICE) {
        this.#schedule(setImmediate)
        return
      }
    }
  }

  /** undefined: nothing waits. */
  #next (): E | undefined {
    if (this.#batch.length === 0) this.#batch.push(...this.#waiting.splice(0, BATCH).reverse())
    return this.#batch.pop()
  }

  #tellOf (event: E): void {
    try {
      const answer = adopt(this.#tell(event))
      if (!(answer instanceof Promise)) return
      this.#open++
      answer.catch(this.#onFailed)
      settleWithin<unknown>(answer, PATIENCE, undefined, () => {
        this.#open--
        this.#schedule(setImmediate)
      })
    } catch {
      this.#onFailed()
    }
  }
}
