/** Forgets what is over, now and then, while there is anything to forget. */
import { wheel, type Wheeled } from './wheel.js'

/** In milliseconds. */
const EVERY = 30_000

export class Sweeper implements Wheeled {
  due = -1
  position = 0
  readonly #sweep: () => number

  /** @param sweep answers how much is left */
  constructor (sweep: () => number) {
    this.#sweep = sweep
  }

  /** There is something that will be over. */
  wake (): void {
    if (this.due === -1) wheel.schedule(this, EVERY)
  }

  look (): void {
    if (this.#sweep() > 0) this.wake()
  }

  /** Until it is woken again. */
  stop (): void {
    wheel.remove(this)
  }
}
