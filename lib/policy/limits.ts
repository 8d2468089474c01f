/** How many connections a user, an address and a tenant may have, and how many they may make, on all nodes together. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { Cluster, Lease } from '../cluster/cluster.js'
import type { Refusal } from '../errors.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import type { ParsedOptions } from '../options.js'
import { networkOf, setRetryAfter, type Network } from '../request.js'
import { addressKey } from './address.js'
import type { Debit, Rate } from './bucket.js'

type Closing = Network['socket']

export interface LimitParts {
  readonly cluster: Pick<Cluster, 'acquire' | 'release' | 'spend'>
  readonly nodeId: string
  /** Ends the connections that had to go for another, wherever they are. */
  readonly evict: (leases: readonly string[]) => void
  /** One more is refused. */
  readonly onRefused: (limit: 'connections' | 'connects') => void
  /** Limits that refuse nobody, and what they would have refused. */
  readonly isReportOnly: (limit: 'connections' | 'connects') => boolean
  readonly onReported: (request: FastifyRequest, code: Refusal, auth: AuthContext | null) => void
}

const REFUSED: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS'
const TOO_OFTEN: Refusal = 'FST_HYBRID_AUTH_RATE_LIMITED'
const MINUTE = 60

/** One connection's place. It is given back once, by whoever is first. */
export class Place {
  readonly lease: Lease
  isEvicted = false
  /** What ends the connection, once there is one. */
  onEvicted: (() => void) | null = null
  readonly #limits: ConnectionLimits

  constructor (lease: Lease, limits: ConnectionLimits) {
    this.lease = lease
    this.#limits = limits
  }

  release (): void {
    this.#limits.release(this)
  }
}

export class ConnectionLimits {
  readonly #options: ParsedOptions['limits']
  readonly #parts: LimitParts
  readonly #taken = new Map<string, Place>()
  #made = 0

  constructor (options: ParsedOptions['limits'], parts: LimitParts) {
    this.#options = options
    this.#parts = parts
  }

  /**
   * @param auth null: nobody, who is counted by address
   * @param net what the connection stands on: its place does not outlive it, whatever becomes of the upgrade
   * @returns null: nothing that is limited can be told of this connection
   */
  acquire (request: FastifyRequest, auth: AuthContext | null, net: Closing): Maybe<Place | Refusal | null> {
    return whenReady(this.#connect(request, auth), wait => {
      if (wait === 0) return this.#take(request, auth, net)
      if (this.#parts.isReportOnly('connects')) {
        this.#parts.onReported(request, TOO_OFTEN, auth)
        return this.#take(request, auth, net)
      }
      this.#parts.onRefused('connects')
      setRetryAfter(request, TOO_OFTEN, wait)
      return TOO_OFTEN
    })
  }

  /** Counts the attempt. @returns 0, or how long to wait, in milliseconds */
  #connect (request: FastifyRequest, auth: AuthContext | null): Maybe<number> {
    const { perUser, perIp } = this.#options.connects ?? {}
    const address = addressKey(networkOf(request).ip)
    const debits: Debit[] = []
    if (perUser !== undefined && auth !== null) debits.push({ key: `connect:${nameOfUser(auth)}`, rate: perMinute(perUser), cost: 1 })
    if (perIp !== undefined && address !== null) debits.push({ key: `connect:ip:${address}`, rate: perMinute(perIp), cost: 1 })
    return debits.length === 0 ? 0 : this.#parts.cluster.spend(debits)
  }

  #take (request: FastifyRequest, auth: AuthContext | null, net: Closing): Maybe<Place | Refusal | null> {
    const { perUser, perIp, perTenant, policy } = this.#options.connections ?? NO_LIMITS
    const address = addressKey(networkOf(request).ip)
    const keys: string[] = []
    const limits: number[] = []
    const isReportOnly = this.#parts.isReportOnly('connections')
    const add = (key: string, limit: number | undefined): void => {
      if (limit === undefined) return
      keys.push(key)
      limits.push(limit)
    }
    if (auth !== null) add(nameOfUser(auth), perUser)
    if (address !== null) add(`ip:${address}`, perIp)
    if (auth !== null && auth.tenantId !== null) add(`tenant:${auth.tenantId}`, perTenant)
    if (keys.length === 0) return null

    const place = new Place({ id: `${this.#parts.nodeId}:${++this.#made}`, keys, at: Date.now() }, this)
    // Before the answer: an eviction of it may overtake that.
    this.#taken.set(place.lease.id, place)
    if (net?.destroyed === true) place.release()
    else net?.once?.('close', () => { place.release() })
    const failed = (error: unknown): never => {
      // It may have been given all the same.
      this.#taken.delete(place.lease.id)
      this.#parts.cluster.release(place.lease)
      throw error
    }
    const evicts = policy === 'evict-oldest' && !isReportOnly
    return whenReady(attempt(() => this.#parts.cluster.acquire(place.lease, limits, evicts), failed), evicted => {
      if (evicted === null) {
        this.#taken.delete(place.lease.id)
        if (!isReportOnly) {
          this.#parts.onRefused('connections')
          return REFUSED
        }
        this.#parts.onReported(request, REFUSED, auth)
        return null
      }
      if (evicted.length > 0) this.#parts.evict(evicted)
      // Whoever it was for has gone meanwhile.
      if (!this.#taken.has(place.lease.id)) this.#parts.cluster.release(place.lease)
      return place
    })
  }

  release (place: Place): void {
    if (this.#taken.delete(place.lease.id)) this.#parts.cluster.release(place.lease)
  }

  /** Ends the connection of a lease, if it is one of this node. */
  evict (leaseId: string): boolean {
    const place = this.#taken.get(leaseId)
    if (place === undefined) return false
    place.isEvicted = true
    place.onEvicted?.()
    return true
  }

  * leases (): Generator<Lease> {
    for (const { lease } of this.#taken.values()) yield lease
  }
}

const NO_LIMITS: NonNullable<ParsedOptions['limits']['connections']> = { policy: 'reject' }

const perMinute = (count: number): Rate => ({ capacity: count, refillPerSecond: count / MINUTE })

const nameOfUser = ({ tenantId, userId }: AuthContext): string => `user:${JSON.stringify([tenantId, userId])}`
