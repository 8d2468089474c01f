/** Messages of this node that are on their way to its own members: who is not to have them, and who waits for them. */
import type { Member } from './member.js'

/** One that did not come back is one that the cluster may still have. */
const MAX_KEPT = 1000

export interface Publication {
  readonly except: Member | null
  /** To how many members of this node it went. */
  readonly delivered: Promise<number>
  readonly settle: (delivered: number) => void
}

export class Publications {
  readonly #open = new Map<number, Publication>()

  expect (sequence: number, except: Member | null): Publication {
    let settle: Publication['settle'] = () => {}
    const delivered = new Promise<number>(resolve => { settle = resolve })
    const publication = { except, delivered, settle }
    this.#open.set(sequence, publication)
    for (const [oldest, { settle: giveUp }] of this.#open) {
      if (this.#open.size <= MAX_KEPT) break
      this.#open.delete(oldest)
      giveUp(0)
    }
    return publication
  }

  /** It has come. */
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
