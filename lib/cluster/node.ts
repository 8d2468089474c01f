/** One registration among its cluster: what it tells the others, what it does when told, and what when nobody can be reached. */
import { randomBytes } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { ClusterStatus, CommandResult, RevokeOptions, RevokeTarget, TicketOptions } from '../../types/cluster.js'
import type { ConnectionFilter, DisconnectOptions } from '../../types/connection.js'
import { checkClose } from '../connection/closing.js'
import { disconnectAll } from '../connection/enforce.js'
import type { Hub } from '../connection/hub.js'
import { checkFilter } from '../connection/registry.js'
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import { ConnectionLimits } from '../policy/limits.js'
import { issueTicket } from '../verify/ticket.js'
import type { Cluster, ClusterMember, Outcome, Recovery } from './cluster.js'
import { carryOut, NOTHING } from './carry-out.js'
import type { Command } from './command.js'
import { memoryCluster } from './memory.js'
import type { Revocation, Revocations } from './revocations.js'
import { parsePermissions, parseRevoke, type RevokeSettings } from './target.js'

/** What is older is not carried out any more, in milliseconds; a revocation is, until it ends. */
const MAX_AGE = 3_600_000
/** What is destroyed is in no store any more; so long nothing that still holds it can put it back, in milliseconds. */
const LOGOUT_RETENTION = 3_600_000

type Order = Command extends infer One ? One extends Command ? Omit<One, 'id' | 'from' | 'at'> : never : never

export class ClusterNode implements ClusterMember {
  readonly id = randomBytes(9).toString('base64url')
  readonly cluster: Cluster
  readonly limits: ConnectionLimits | null
  readonly #known: Revocations
  readonly #audit: Auditor
  readonly #settings: RevokeSettings
  readonly #report: (cause: unknown) => void
  /** Commands of the last hour, and when they came. */
  readonly #seen = new Map<string, number>()
  #hub: Hub | null = null
  #lostSince: number | null = null
  #lossTimer: NodeJS.Timeout | undefined
  #ignored = 0

  constructor ({ cluster = memoryCluster(), limits, revocations, jwt }: ParsedOptions, known: Revocations, audit: Auditor, report: (cause: unknown) => void) {
    this.#report = report
    this.#known = known
    this.#audit = audit
    this.#settings = { retention: revocations.retention, clockTolerance: jwt?.clockTolerance ?? 0 }
    this.cluster = cluster.join(this)
    known.isComplete = this.cluster.isConnected
    this.limits = limits.connections === undefined
      ? null
      : new ConnectionLimits(limits.connections, this.cluster, this.id, leases => { this.#evict(leases) })
  }

  /** The connections that commands are about. */
  attach (hub: Hub): void {
    this.#hub = hub
  }

  async revoke (target: RevokeTarget, options?: RevokeOptions): Promise<CommandResult> {
    const { revocation, dryRun } = parseRevoke(target, options, this.#known, this.#settings)
    return this.#order({ type: dryRun ? 'count' : 'revoke', revocation }, { id: revocation.id })
  }

  async disconnect (filter: ConnectionFilter, { code = 'Revoked', reason }: DisconnectOptions = {}): Promise<CommandResult> {
    checkClose(code, reason)
    checkFilter(filter)
    return this.#order({ type: 'disconnect', filter: { ...filter }, code, ...(reason !== undefined && { reason }) })
  }

  async setPermissions (userId: string, permissions: readonly string[]): Promise<CommandResult> {
    return this.#order({ type: 'permissions', ...parsePermissions(userId, permissions) })
  }

  /** A session was destroyed: its sockets end, and nothing opens with it again. Resolves when the others can know. */
  async logOut (sessionId: string): Promise<void> {
    if (this.#known.hasSession(sessionId)) return
    const { revocation } = parseRevoke({ sessionId }, { reason: 'logout', expiresAt: Date.now() + LOGOUT_RETENTION }, this.#known, this.#settings)
    await this.#order({ type: 'revoke', revocation }, { id: revocation.id, awaits: false }).catch(() => {})
  }

  isLoggedOut (sessionId: string): boolean {
    return this.#known.hasSession(sessionId)
  }

  status (): ClusterStatus {
    return {
      nodeId: this.id,
      connected: this.cluster.isConnected,
      lostSince: this.#lostSince,
      revocations: this.#known.size,
      queued: this.cluster.queued,
      ignored: this.#ignored
    }
  }

  async stop (): Promise<void> {
    clearTimeout(this.#lossTimer)
    this.#known.clear()
    await this.cluster.stop()
  }

  async receive (command: Command): Promise<Outcome> {
    if (this.#seen.has(command.id) || (command.type !== 'revoke' && command.at < Date.now() - MAX_AGE)) return NOTHING
    this.#remember(command)
    return this.#carryOut(command)
  }

  revocations (): Iterable<Revocation> {
    return this.#known.live()
  }

  hasRevocation (id: string): boolean {
    return this.#known.has(id)
  }

  lost (cause: unknown): void {
    if (this.#lostSince !== null) return
    this.#report(cause)
    this.#lostSince = Date.now()
    this.#audit.clusterLost(this.id)
    const { action, after } = this.cluster.onLoss
    if (action === 'serve') return
    this.#lossTimer = setTimeout(() => { this.#isolate(action === 'close') }, after)
    this.#lossTimer.unref()
  }

  recovered ({ lostFor, converged }: Recovery): void {
    clearTimeout(this.#lossTimer)
    this.#known.isComplete = true
    if (this.#hub !== null) this.#hub.isIsolated = false
    if (this.#lostSince === null) return
    this.#lostSince = null
    this.#audit.clusterRecovered(this.id, lostFor, converged)
  }

  ignored (): void {
    this.#ignored++
  }

  /** Ends connections that had to go for another, and does not wait for it. */
  #evict (leases: readonly string[]): void {
    const elsewhere = leases.filter(lease => this.limits?.evict(lease) !== true)
    if (elsewhere.length > 0) this.#order({ type: 'evict', leases: elsewhere }, { awaits: false }).catch(() => {})
  }

  #isolate (closes: boolean): void {
    const hub = this.#hub
    if (hub === null) return
    hub.isIsolated = true
    if (closes) disconnectAll(hub.registry.find({}), 'Unavailable', {}).catch(() => {})
  }

  /** Carried out here at once, then everywhere else. */
  async #order (order: Order, { id = randomBytes(12).toString('base64url'), awaits = true } = {}): Promise<CommandResult> {
    const command: Command = { ...order, id, from: this.id, at: Date.now() }
    this.#remember(command)
    const here = this.#carryOut(command)
    const elsewhere = await this.cluster.publish(command, awaits)
    const { matched, closed } = await here
    return {
      id,
      matched: matched + elsewhere.matched,
      closed: closed + elsewhere.closed,
      durable: elsewhere.durable,
      nodes: { acknowledged: elsewhere.acknowledged + 1, missing: elsewhere.missing }
    }
  }

  async #carryOut (command: Command): Promise<Outcome> {
    if (this.#hub === null) return NOTHING
    return carryOut({
      hub: this.#hub,
      known: this.#known,
      revokeYoung: ({ target, options }) => { this.revoke(target, options).catch(() => {}) }
    }, command)
  }

  /** Revocations are known by themselves. */
  #remember ({ id, type }: Command): void {
    if (type === 'revoke') return
    const now = Date.now()
    this.#seen.set(id, now)
    for (const [oldest, time] of this.#seen) {
      // Clocks may differ: what is forgotten is older than what is refused for its age.
      if (time > now - 2 * MAX_AGE) break
      this.#seen.delete(oldest)
    }
  }
}

/** What `app.hybridAuth` offers of the cluster. */
export function createClusterApi (node: ClusterNode) {
  return {
    revoke: (target: RevokeTarget, options?: RevokeOptions) => node.revoke(target, options),
    disconnect: (filter: ConnectionFilter, options?: DisconnectOptions) => node.disconnect(filter, options),
    setPermissions: (userId: string, permissions: readonly string[]) => node.setPermissions(userId, permissions),
    issueTicket: (request: FastifyRequest, options?: TicketOptions) => issueTicket(node.cluster, request, options),
    status: () => node.status()
  }
}
