/** One registration among its cluster: what it tells the others, what it does when told, and what when nobody can be reached. */
import { randomBytes } from 'node:crypto'
import type { ClusterStatus, CommandResult, RevokeOptions, RevokeTarget } from '../../types/cluster.js'
import type { Hub } from '../connection/hub.js'
import { authError } from '../errors.js'
import { unawaited } from '../maybe.js'
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import type { Failures } from '../policy/failures.js'
import type { ConnectionLimits } from '../policy/limits.js'
import { ANYBODY, type Cluster, type ClusterDriver, type ClusterMember, type Lease, type Outcome, type Recovery } from './cluster.js'
import { carryOut, NOTHING } from './carry-out.js'
import type { Command } from './command.js'
import type { Entry } from './history.js'
import { createCounters } from './counters.js'
import { ClusterLoss } from './loss.js'
import type { Revocation, Revocations } from './revocations.js'
import { parseRevoke, type RevokeSettings } from './target.js'

/** What is older is not carried out any more, in milliseconds; a revocation is, until it ends. */
const MAX_AGE = 3_600_000
/** What is destroyed is in no store any more; so long nothing that still holds it can put it back, in milliseconds. */
const LOGOUT_RETENTION = 3_600_000

/** As many leases as a message has room for. */
const PART = 500

type Order = Command extends infer One ? One extends Command ? Omit<One, 'id' | 'from' | 'at'> : never : never

type Ordered = 'revoke' | 'disconnect' | 'permissions' | 'refresh'
/** What an audit event says of an order: no ids of tokens and sessions. */
interface OrderedFor {
  readonly kind?: Revocation['kind'] | null
  readonly userId?: string | null | undefined
  readonly tenantId?: string | null | undefined
  readonly reason?: string | undefined
}

/** What the operator is told. */
export interface ClusterReports {
  readonly onLost: (cause: unknown) => void
  /** Once, for the first. */
  readonly onIgnored: () => void
}

export class ClusterNode implements ClusterMember {
  readonly id: string
  readonly cluster: Cluster
  readonly limits: ConnectionLimits | null
  readonly failures: Failures | null
  readonly onLogout = new Set<(sessionId: string) => void>()
  readonly #known: Revocations
  readonly #settings: RevokeSettings
  readonly #loss: ClusterLoss
  /** Commands of the last hour, and when they came. */
  readonly #seen = new Map<string, number>()
  #hub: Hub | null = null
  readonly #audit: Auditor
  readonly #onIgnored: () => void
  readonly #startedAt = Date.now()
  /** How old the latest command of another node was when it came, in milliseconds. */
  #lag = 0
  #ignored = 0
  #isStopped = false

  constructor (options: ParsedOptions & { readonly cluster: ClusterDriver }, known: Revocations, audit: Auditor, { onLost, onIgnored }: ClusterReports) {
    const { cluster, revocations, jwt, introspection } = options
    this.id = audit.nodeId
    this.#audit = audit
    this.#loss = new ClusterLoss(audit, onLost)
    this.#onIgnored = onIgnored
    this.#known = known
    this.#settings = { retention: revocations.retention, clockTolerance: jwt?.clockTolerance ?? 0, asks: introspection === undefined ? 'none' : jwt === undefined ? 'all' : 'opaque' }
    this.cluster = cluster.join(this)
    known.isComplete = this.cluster.isConnected
    const { limits, failures } = createCounters(options, this.cluster, audit, {
      evict: leases => { this.#evict(leases) },
      block: (address, ms) => { this.order({ type: 'block', address, ms }, { awaits: false }).catch(() => {}) }
    })
    this.limits = limits
    this.failures = failures
  }

  /** The connections that commands are about. */
  attach (hub: Hub): void {
    this.#hub = hub
    this.#loss.attach(hub)
  }

  /** A session was destroyed: its sockets end, and nothing opens with it again. Never rejects. */
  async logOut (sessionId: string): Promise<void> {
    if (this.isLoggedOut(sessionId)) return
    try {
      const { revocation } = this.parseRevoke({ sessionId }, { reason: 'logout', expiresAt: Date.now() + LOGOUT_RETENTION })
      const result = await this.order({ type: 'revoke', revocation: { ...revocation, isLogout: true } }, { id: revocation.id, awaits: false })
      this.tellOf('revoke', { kind: 'session', reason: 'logout' }, result)
    } catch {
      // What is no session's id has no sockets.
    }
  }

  isLoggedOut (sessionId: string): boolean {
    return this.#known.isLoggedOut(sessionId)
  }

  hasSockets (sessionId: string): boolean {
    return this.#hub !== null && this.#hub.registry.find({ sessionId }).length > 0
  }

  status (): ClusterStatus {
    return {
      nodeId: this.id,
      connected: this.cluster.isConnected,
      lostSince: this.#loss.since,
      revocations: this.#known.size,
      queued: this.cluster.queued,
      ignored: this.#ignored,
      auditDropped: this.#audit.tally.auditDropped
    }
  }

  async stop (): Promise<void> {
    this.#isStopped = true
    this.#loss.stop()
    this.failures?.stop()
    await this.cluster.stop()
    this.#known.stop()
  }

  /** In milliseconds. */
  get lag (): number {
    return this.#loss.since === null ? this.#lag : Date.now() - this.#loss.since
  }

  async receive (command: Command): Promise<Outcome> {
    if (this.#seen.has(command.id) || (command.type !== 'revoke' && command.at < Date.now() - MAX_AGE)) return NOTHING
    this.#remember(command)
    if (this.#isFresh(command)) this.#lag = Math.max(0, Date.now() - command.at)
    const outcome = this.#carryOut(command)
    if (command.type === 'revoke') this.#tellOfLogout(command.revocation)
    return outcome
  }

  revocations (): Iterable<Revocation> {
    return this.#known.live()
  }

  heard (room: string, payload: string): void {
    this.#hub?.publisher.receive(room, payload)
  }

  told (room: string, epoch: string, entry: Entry): void {
    this.#hub?.publisher.told(room, epoch, entry)
  }

  resumed (): void {
    unawaited(this.#hub?.rooms.resume())
  }

  hasRevocation (id: string): boolean {
    return this.#known.has(id)
  }

  leases (): Iterable<Lease> {
    return this.limits?.leases() ?? []
  }

  lost (cause: unknown): void {
    this.#loss.begin(cause, this.cluster.onLoss)
  }

  recovered (recovery: Recovery): void {
    this.#known.isComplete = true
    this.#loss.end(recovery)
  }

  ignored (): void {
    this.#ignored++
    if (this.#ignored === 1) this.#onIgnored()
  }

  /** Ends connections that had to go for another, and does not wait for it. */
  #evict (leases: readonly string[]): void {
    const elsewhere = leases.filter(lease => this.limits?.evict(lease) !== true)
    for (let from = 0; from < elsewhere.length; from += PART) {
      this.order({ type: 'evict', leases: elsewhere.slice(from, from + PART) }, { awaits: false }).catch(() => {})
    }
  }

  /** @throws FST_HYBRID_AUTH_INVALID_OPTION */
  parseRevoke (target: RevokeTarget, options: RevokeOptions | undefined): ReturnType<typeof parseRevoke> {
    return parseRevoke(target, options, this.#known, this.#settings)
  }

  /** When everything that exists at a time is over, as far as is known here; null: never. */
  endOf (time: number): number | null {
    return this.#known.endOf(time, this.#settings.retention)
  }

  /** What was ordered on this node, and what came of it, whether or not it met anybody. */
  tellOf (command: Ordered, { kind = null, userId = null, tenantId = null, reason = '' }: OrderedFor, { id, matched, closed }: CommandResult): void {
    this.#audit.command({ command, commandId: id, target: kind, userId, tenantId, reason, matched, closed })
  }

  /** Carried out here at once, then everywhere else. @throws FST_HYBRID_AUTH_UNAVAILABLE */
  async order (order: Order, { id = randomBytes(12).toString('base64url'), awaits = true } = {}): Promise<CommandResult> {
    if (this.#isStopped) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
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

  #tellOfLogout ({ key, isLogout }: Revocation): void {
    if (isLogout === true) for (const listener of this.onLogout) listener(key)
  }

  async #tell (revocation: Revocation): Promise<void> {
    await this.cluster.publish({ type: 'revoke', id: revocation.id, from: this.id, at: revocation.at, revocation }, false)
  }

  async #carryOut (command: Command): Promise<Outcome> {
    if (this.#hub === null) return NOTHING
    const isFresh = this.#isFresh(command)
    const outcome = await carryOut({
      hub: this.#hub,
      known: this.#known,
      failures: this.failures,
      tell: revocation => { this.#tell(revocation).catch(() => {}) }
    }, command)
    if (command.type === 'revoke' && isFresh) this.#audit.tally.revocationLatency.observe(Date.now() - command.at)
    return outcome
  }

  /** What was ordered before this node began could not come sooner, and what is told anew was here before. */
  #isFresh ({ at, from, id }: Command): boolean {
    return at >= this.#startedAt && from !== ANYBODY && !this.#known.has(id)
  }

  /** Revocations are known by themselves, an address may be blocked twice, and a question be answered. */
  #remember ({ id, type }: Command): void {
    if (type === 'revoke' || type === 'block' || type === 'count' || type === 'presence') return
    const now = Date.now()
    this.#seen.set(id, now)
    for (const [oldest, time] of this.#seen) {
      // Clocks may differ: what is forgotten is older than what is refused for its age.
      if (time > now - 2 * MAX_AGE) break
      this.#seen.delete(oldest)
    }
  }
}
