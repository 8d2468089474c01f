/** What refuses for how many there are, and how often: one of each a registration, counted in its cluster. */
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import { Bucket } from '../policy/bucket.js'
import { Failures } from '../policy/failures.js'
import { ConnectionLimits } from '../policy/limits.js'
import type { Cluster } from './cluster.js'

/** null: it is not counted. */
export interface Counters {
  readonly limits: ConnectionLimits | null
  readonly failures: Failures | null
}

/** What the other nodes have to be told. */
export interface CounterOrders {
  readonly evict: (leases: readonly string[]) => void
  /** An address is blocked for so many milliseconds. */
  readonly block: (address: string, ms: number) => void
}

/** A flood of addresses must not become one of orders: past some, each node finds out by itself. */
const BLOCKS = { capacity: 100, refillPerSecond: 1 }

export function createCounters ({ limits, failures, report }: ParsedOptions, cluster: Cluster, audit: Auditor, { evict, block }: CounterOrders): Counters {
  const blocks = new Bucket(BLOCKS, Date.now())
  const onBlocked = (address: string, ms: number): void => {
    if (blocks.wait(1, Date.now()) > 0) return
    blocks.take(1)
    block(address, ms)
  }
  return {
    limits: limits.connections === undefined && limits.connects === undefined
      ? null
      : new ConnectionLimits(limits, {
        cluster,
        nodeId: audit.nodeId,
        evict,
        isReportOnly: limit => report.includes(limit),
        onRefused: limit => { audit.tally.limited(limit, true) },
        onReported: (request, code, auth) => { audit.reported(request, code, auth) }
      }),
    failures: failures === false
      ? null
      : new Failures(failures, {
        cluster,
        isReportOnly: report.includes('failures'),
        onSuspected: (request, by, claimed) => { audit.bruteForceSuspected(request, by, claimed) },
        onReported: (request, code) => { audit.reported(request, code, null) },
        onBlocked
      })
  }
}
