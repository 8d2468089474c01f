/** What a node does while the others cannot be reached. */
import { closeConnection, RETRY_AFTER } from '../connection/closing.js'
import { someTimeIn } from '../connection/drain.js'
import { inBatches } from '../connection/enforce.js'
import type { Hub } from '../connection/hub.js'
import type { Auditor } from '../observe/audit.js'
import type { Cluster, Recovery } from './cluster.js'

export class ClusterLoss {
  /** In milliseconds since the epoch; null while the others can be reached. */
  since: number | null = null
  readonly #audit: Auditor
  readonly #report: (cause: unknown) => void
  #hub: Hub | null = null
  #timer: NodeJS.Timeout | undefined
  #isIsolated = false

  constructor (audit: Auditor, report: (cause: unknown) => void) {
    this.#audit = audit
    this.#report = report
  }

  /** The sockets that it is about. */
  attach (hub: Hub): void {
    this.#hub = hub
    hub.isIsolated = this.#isIsolated
  }

  /** Does nothing the second time. */
  begin (cause: unknown, { action, after }: Cluster['onLoss']): void {
    if (this.since !== null) return
    this.since = Date.now()
    this.#report(cause)
    this.#audit.clusterLost()
    if (action === 'serve') return
    this.#timer = setTimeout(() => {
      this.#isolate(true)
      if (action === 'close' && this.#hub !== null) closeAll(this.#hub).catch(() => {})
    }, after)
    this.#timer.unref()
  }

  end ({ lostFor, converged }: Recovery): void {
    this.stop()
    this.#isolate(false)
    if (this.since === null) return
    this.since = null
    this.#audit.clusterRecovered(lostFor, converged)
  }

  stop (): void {
    clearTimeout(this.#timer)
  }

  #isolate (isIsolated: boolean): void {
    this.#isIsolated = isIsolated
    if (this.#hub !== null) this.#hub.isIsolated = isIsolated
  }
}

/** They are not let in again at once, and do not come all together. */
async function closeAll ({ registry }: Hub): Promise<void> {
  await inBatches(registry.find({}), connection => {
    closeConnection(connection, 'Unavailable', { retryAfterMs: RETRY_AFTER + someTimeIn(RETRY_AFTER) })
  })
}
