/** How many connections a user, an address and a tenant may have, on all nodes together. */
import type { AuthContext } from '../../types/context.js'
import type { Cluster, Lease } from '../cluster/cluster.js'
import type { Refusal } from '../errors.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import type { ParsedOptions } from '../options.js'
import type { Network } from '../request.js'
import { addressKey } from './address.js'

export type LimitOptions = NonNullable<ParsedOptions['limits']['connections']>

type Closing = Network['socket']

const REFUSED: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS'

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
  readonly #options: LimitOptions
  readonly #cluster: Pick<Cluster, 'acquire' | 'release'>
  readonly #nodeId: string
  readonly #evict: (leases: readonly string[]) => void
  readonly #taken = new Map<string, Place>()
  #made = 0

  /** @param evict ends the connections that had to go for another, wherever they are */
  constructor (options: LimitOptions, cluster: Pick<Cluster, 'acquire' | 'release'>, nodeId: string, evict: (leases: readonly string[]) => void) {
    this.#options = options
    this.#cluster = cluster
    this.#nodeId = nodeId
    this.#evict = evict
  }

  /**
   * @param net what the connection stands on: its place does not outlive it, whatever becomes of the upgrade
   * @returns null: nothing that is limited can be told of this connection
   */
  acquire ({ userId, tenantId }: AuthContext, ip: string | undefined, net: Closing): Maybe<Place | Refusal | null> {
    const { perUser, perIp, perTenant, policy } = this.#options
    const address = addressKey(ip)
    const keys: string[] = []
    const limits: number[] = []
    const add = (key: string, limit: number | undefined): void => {
      if (limit === undefined) return
      keys.push(key)
      limits.push(limit)
    }
    add(`user:${JSON.stringify([tenantId, userId])}`, perUser)
    if (address !== null) add(`ip:${address}`, perIp)
    if (tenantId !== null) add(`tenant:${tenantId}`, perTenant)
    if (keys.length === 0) return null

    const place = new Place({ id: `${this.#nodeId}:${++this.#made}`, keys, at: Date.now() }, this)
    // Before the answer: an eviction of it may overtake that.
    this.#taken.set(place.lease.id, place)
    if (net?.destroyed === true) place.release()
    else net?.once?.('close', () => { place.release() })
    const failed = (error: unknown): never => {
      // It may have been given all the same.
      this.#taken.delete(place.lease.id)
      this.#cluster.release(place.lease)
      throw error
    }
    return whenReady(attempt(() => this.#cluster.acquire(place.lease, limits, policy === 'evict-oldest'), failed), evicted => {
      if (evicted === null) {
        this.#taken.delete(place.lease.id)
        return REFUSED
      }
      if (evicted.length > 0) this.#evict(evicted)
      // Whoever it was for has gone meanwhile.
      if (!this.#taken.has(place.lease.id)) this.#cluster.release(place.lease)
      return place
    })
  }

  release (place: Place): void {
    if (this.#taken.delete(place.lease.id)) this.#cluster.release(place.lease)
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
