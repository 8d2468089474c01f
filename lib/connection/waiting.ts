/** The sockets that still owe their first message: how many there may be, and from where. */
import type { FastifyRequest } from 'fastify'
import type { Refusal } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import { addressKey } from '../policy/address.js'
import { networkOf } from '../request.js'
import type { PendingSocket } from './pending.js'

type Limits = Pick<ParsedOptions['limits'], 'pending' | 'pendingPerIp'>

export class WaitingSockets {
  readonly #limits: Limits
  /** Each under its address; null where none is counted. */
  readonly #all = new Map<PendingSocket, string | null>()
  readonly #perAddress = new Map<string, number>()

  constructor (limits: Limits) {
    this.#limits = limits
  }

  get size (): number {
    return this.#all.size
  }

  [Symbol.iterator] (): Iterator<PendingSocket> {
    return this.#all.keys()
  }

  /** Why there is no room for one more; null: there is. */
  refusalOf (request: FastifyRequest): Refusal | null {
    const { pending, pendingPerIp = pending } = this.#limits
    if (this.#all.size >= pending) return 'FST_HYBRID_AUTH_UNAVAILABLE'
    const address = this.#addressOf(request)
    return address !== null && this.#of(address) >= pendingPerIp ? 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS' : null
  }

  add (socket: PendingSocket, request: FastifyRequest): void {
    const address = this.#addressOf(request)
    this.#all.set(socket, address)
    if (address !== null) this.#perAddress.set(address, this.#of(address) + 1)
  }

  /** Does nothing the second time. */
  delete (socket: PendingSocket): void {
    const address = this.#all.get(socket) ?? null
    if (!this.#all.delete(socket) || address === null) return
    const left = this.#of(address) - 1
    if (left > 0) this.#perAddress.set(address, left)
    else this.#perAddress.delete(address)
  }

  #of (address: string): number {
    return this.#perAddress.get(address) ?? 0
  }

  #addressOf (request: FastifyRequest): string | null {
    return this.#limits.pendingPerIp === undefined ? null : addressKey(networkOf(request).ip)
  }
}
