/** Who holds the places under a key, oldest first. */
import type { Lease } from './cluster.js'

export class LeaseTable {
  readonly #byKey = new Map<string, Set<string>>()

  /** As `acquire` of a cluster. */
  acquire (lease: Lease, limits: readonly number[], evicts: boolean): readonly string[] | null {
    const evicted = new Set<string>()
    for (const [index, key] of lease.keys.entries()) {
      const taken = [...this.#byKey.get(key) ?? []].filter(other => !evicted.has(other))
      const over = taken.length + 1 - (limits[index] ?? 0)
      if (over > 0 && !evicts) return null
      for (const other of taken.slice(0, Math.max(over, 0))) evicted.add(other)
    }
    for (const key of lease.keys) for (const other of evicted) this.#byKey.get(key)?.delete(other)
    this.add(lease)
    return [...evicted]
  }

  add ({ id, keys }: Lease): void {
    for (const key of keys) this.#byKey.set(key, (this.#byKey.get(key) ?? new Set()).add(id))
  }

  release ({ id, keys }: Lease): void {
    for (const key of keys) {
      const taken = this.#byKey.get(key)
      taken?.delete(id)
      if (taken?.size === 0) this.#byKey.delete(key)
    }
  }
}
