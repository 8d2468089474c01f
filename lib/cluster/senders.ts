/** The last message of each node: whoever can write to what nodes share could say again what was said. */

/** Nodes whose last message is remembered. */
const MAX_SENDERS = 1000

export class Senders {
  readonly #heard = new Map<string, number>()

  /** @param number of all messages of the sender, which: later ones have higher numbers */
  isNew ({ from, number }: { readonly from: string, readonly number: number }): boolean {
    if (number <= (this.#heard.get(from) ?? 0)) return false
    this.#heard.delete(from)
    this.#heard.set(from, number)
    for (const [oldest] of this.#heard) {
      if (this.#heard.size <= MAX_SENDERS) break
      this.#heard.delete(oldest)
    }
    return true
  }
}
