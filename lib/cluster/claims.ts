/** Names that are taken once within a time, on one node of all: each a bucket with room for one. */
import type { Cluster } from './cluster.js'

/** What the keys of their buckets begin with. */
export const CLAIM = 'claim:'

export interface Claims {
  /** Whether a name comes for the first time within so many seconds, on any node. */
  readonly claim: (name: string, seconds: number) => Promise<boolean>
  /** Gives it back. */
  readonly release: (name: string, seconds: number) => Promise<void>
}

/** Between two attempts to give back what may have been taken, in milliseconds, how many there are, and how many names they are made for. */
const [PAUSE, ATTEMPTS, MAX_OWED] = [1000, 60, 10_000]

/** @param isExact @throws, or rejects with, FST_HYBRID_AUTH_UNAVAILABLE where it is not known what the other nodes have taken */
export function createClaims (cluster: Pick<Cluster, 'spend'>, isExact = false): Claims {
  /** Names that may have been taken by a question whose answer did not come: who asks again has not had them. */
  const owed = new Map<string, { readonly seconds: number, attempts: number }>()
  let timer: NodeJS.Timeout | null = null

  const take = async (name: string, seconds: number, cost: number): Promise<boolean> =>
    await cluster.spend([{ key: CLAIM + name, rate: { capacity: 1, refillPerSecond: 1 / seconds }, cost }], isExact) === 0

  function owe (name: string, seconds: number): void {
    if (owed.size < MAX_OWED) owed.set(name, { seconds, attempts: 0 })
    timer ??= setTimeout(payLater, PAUSE).unref()
  }

  async function release (name: string, seconds: number): Promise<void> {
    try {
      await take(name, seconds, -1)
      owed.delete(name)
    } catch (error) {
      if (!owed.has(name)) owe(name, seconds)
      throw error
    }
  }

  function payLater (): void {
    timer = null
    for (const [name, one] of owed) {
      if (++one.attempts > ATTEMPTS) owed.delete(name)
      else release(name, one.seconds).catch(() => { timer ??= setTimeout(payLater, PAUSE).unref() })
    }
  }

  return {
    release,
    async claim (name, seconds) {
      if (owed.has(name)) await release(name, seconds)
      try {
        return await take(name, seconds, 1)
      } catch (error) {
        owe(name, seconds)
        throw error
      }
    }
  }
}
