/** Names that are taken once within a time, on one node of all: each a bucket with room for one. */
import type { Cluster } from './cluster.js'

export interface Claims {
  /** Whether a name comes for the first time within so many seconds, on any node. */
  readonly claim: (name: string, seconds: number) => Promise<boolean>
  /** Gives it back. */
  readonly release: (name: string, seconds: number) => Promise<void>
}

/** @param isExact @throws, or rejects with, FST_HYBRID_AUTH_UNAVAILABLE where it is not known what the other nodes have taken */
export function createClaims (cluster: Pick<Cluster, 'spend'>, isExact = false): Claims {
  const take = async (name: string, seconds: number, cost: number): Promise<boolean> =>
    await cluster.spend([{ key: `claim:${name}`, rate: { capacity: 1, refillPerSecond: 1 / seconds }, cost }], isExact) === 0
  return {
    claim: (name, seconds) => take(name, seconds, 1),
    async release (name, seconds) { await take(name, seconds, -1) }
  }
}
