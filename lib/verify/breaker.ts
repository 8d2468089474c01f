/** Stops asking who does not answer, so that those who wait are told at once and it has the time to come back. */
import { ProviderFailed, QuestionRefused } from './fetch.js'

/** Failures in a row, and how long nothing is asked after them, in milliseconds. */
const FAILURES = 5
const PAUSE = 5000

export class Breaker {
  #failures = 0
  #openUntil = -Infinity

  /** @throws ProviderFailed while nothing is asked, and what `run` rejects with */
  async run<T> (run: () => Promise<T>): Promise<T> {
    const time = performance.now()
    if (time < this.#openUntil) throw new ProviderFailed('it has failed too often, and is left alone for a while')
    // The first one after the pause is a trial: who comes meanwhile waits for its outcome no longer than for the pause.
    if (this.#failures >= FAILURES) this.#openUntil = time + PAUSE
    try {
      const value = await run()
      this.#failures = 0
      this.#openUntil = -Infinity
      return value
    } catch (error) {
      // It has answered: who asks nonsense must not keep everybody else from asking.
      if (error instanceof QuestionRefused) this.#openUntil = -Infinity
      else this.#fail()
      throw error
    }
  }

  #fail (): void {
    this.#failures++
    if (this.#failures >= FAILURES) this.#openUntil = performance.now() + PAUSE
  }
}
