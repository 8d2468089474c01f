/** The answers of other nodes to a command, as they come in. */
import { settleWithin } from '../deadline.js'
import type { Outcome } from './cluster.js'
import type { Answer } from './command.js'

export interface Collected extends Outcome {
  readonly acknowledged: number
  readonly missing: number
}

export class Answers {
  readonly #open = new Map<string, Collection>()

  /** Begins to collect: a node may answer before it is known who is to. */
  expect (id: string): Collection {
    const collection = new Collection(() => { this.#open.delete(id) })
    this.#open.set(id, collection)
    return collection
  }

  add (answer: Answer): void {
    this.#open.get(answer.to)?.add(answer)
  }
}

export class Collection {
  readonly #answers = new Map<string, Answer>()
  readonly #onEnd: () => void
  #wake: () => void = () => {}

  constructor (onEnd: () => void) {
    this.#onEnd = onEnd
  }

  add (answer: Answer): void {
    this.#answers.set(answer.from, answer)
    this.#wake()
  }

  /** What these nodes answered, when the last has or `ms` have passed. */
  from (nodes: readonly string[], ms: number): Promise<Collected> {
    return new Promise(resolve => {
      const isComplete = () => nodes.every(node => this.#answers.has(node))
      const complete = new Promise<void>(_resolve => {
        this.#wake = () => { if (isComplete()) _resolve() }
        this.#wake()
      })
      settleWithin<void>(complete, ms, undefined, () => { resolve(this.#sum(nodes)) })
    })
  }

  end (): void {
    this.#onEnd()
  }

  #sum (nodes: readonly string[]): Collected {
    const given = nodes.flatMap(node => this.#answers.get(node) ?? [])
    return {
      acknowledged: given.length,
      missing: nodes.length - given.length,
      matched: given.reduce((sum, { matched }) => sum + matched, 0),
      closed: given.reduce((sum, { closed }) => sum + closed, 0)
    }
  }
}
