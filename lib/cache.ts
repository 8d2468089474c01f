/**
 * A bounded memory, in two generations: when the young one is full it becomes the old one, and what is asked for again moves
 * back. Both bounds hold for the sum of the two, a hit costs one Map read, and nothing ever has to look for what is oldest.
 */
export class GenerationCache<V> {
  readonly #maxEntries: number
  readonly #maxBytes: number
  readonly #sizeOf: (key: string, value: V) => number
  #young = new Map<string, V>()
  #old = new Map<string, V>()
  #youngBytes = 0

  /** @param sizeOf in bytes; by default two for each character of the key, and as many for the value: claims are the key's own payload */
  constructor (maxEntries: number, maxBytes = Infinity, sizeOf: (key: string, value: V) => number = key => key.length * 4) {
    this.#maxEntries = Math.floor(maxEntries / 2)
    this.#maxBytes = maxBytes / 2
    this.#sizeOf = sizeOf
  }

  get (key: string): V | undefined {
    const hit = this.#young.get(key)
    if (hit !== undefined) return hit
    const aged = this.#old.get(key)
    if (aged !== undefined) {
      this.#old.delete(key)
      this.set(key, aged)
    }
    return aged
  }

  set (key: string, value: V): void {
    const bytes = this.#sizeOf(key, value)
    if (bytes > this.#maxBytes) return
    if (!this.#young.has(key) && (this.#young.size >= this.#maxEntries || this.#youngBytes + bytes > this.#maxBytes)) {
      this.#old = this.#young
      this.#young = new Map()
      this.#youngBytes = 0
    }
    this.#young.set(key, value)
    this.#youngBytes += bytes
  }

  delete (key: string): void {
    this.#young.delete(key)
    this.#old.delete(key)
  }

  clear (): void {
    this.#young = new Map()
    this.#old = new Map()
    this.#youngBytes = 0
  }

  /** An entry may be deleted while it is at hand. */
  * entries (): Generator<[string, V]> {
    yield * this.#young
    yield * this.#old
  }

  get size (): number {
    return this.#young.size + this.#old.size
  }
}
