/** Messages of this node that are on their way to its own members: who is not to have them, and who waits for them. */
import type { Member } from './member.js'

/** One that did not come back is one that the cluster may still have. */
const MAX_KEPT = 10_000

export interface Publication {
  readonly except: Member | null
  /** To how many members of this node it went. */
  readonly settle: (delivered: number) => void
}

export class Publications {
  readonly #open = new Map<number, Publication>()

  /** @returns to how many members of this node it went, when it has come */
  expect (sequence: number, except: Member | null): Promise<number> {
    const delivered = new Promise<number>(resolve => { this.#open.set(sequence, { except, settle: resolve }) })
    for (const [oldest] of this.#open) {
      if (this.#open.size <= MAX_KEPT) break
      this.take(oldest)?.settle(0)
    }
    return delivered
  }

  /** It has come, or nobody waits for it any more. */
  take (sequence: number): Publication | null {
    const publication = this.#open.get(sequence) ?? null
    this.#open.delete(sequence)
    return publication
  }

  /** Nothing comes any more. */
  end (): void {
    for (const { settle } of this.#open.values()) settle(0)
    this.#open.clear()
  }
}
