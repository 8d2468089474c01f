/** Messages for `for await`: they wait for whoever reads, until the client closes. */
import type { ClientMessage } from './types.js'

export class MessageStream implements AsyncIterator<ClientMessage> {
  readonly #waiting: ClientMessage[] = []
  readonly #readers: Array<(result: IteratorResult<ClientMessage>) => void> = []
  readonly #onReturn: () => void
  #isOver = false

  constructor (onReturn: () => void) {
    this.#onReturn = onReturn
  }

  push (message: ClientMessage): void {
    const reader = this.#readers.shift()
    if (reader === undefined) this.#waiting.push(message)
    else reader({ value: message, done: false })
  }

  end (): void {
    this.#isOver = true
    for (const reader of this.#readers.splice(0)) reader({ value: undefined, done: true })
  }

  async next (): Promise<IteratorResult<ClientMessage>> {
    const value = this.#waiting.shift()
    if (value !== undefined) return { value, done: false }
    if (this.#isOver) return { value, done: true }
    return new Promise(resolve => { this.#readers.push(resolve) })
  }

  async return (): Promise<IteratorResult<ClientMessage>> {
    this.#waiting.length = 0
    this.end()
    this.#onReturn()
    return { value: undefined, done: true }
  }
}
