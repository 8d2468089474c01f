/** A socket of somebody who brought no credential, on a route where that is allowed: it is nobody's, and held to the limits all the same. */
import type { FastifyRequest } from 'fastify'
import { addressKey } from '../policy/address.js'
import type { Place } from '../policy/limits.js'
import { MessageRate } from '../policy/rates.js'
import { networkOf } from '../request.js'
import { now } from './clock.js'
import { closeSocket, EVICTED, RETRY_AFTER } from './closing.js'
import type { Hub, RouteSettings } from './hub.js'
import { byteLengthOf } from './message.js'
import type { GuardedSocket, RawFrame, SocketOwner } from './socket.js'

export const NOBODY = Symbol('nobody')

export class NobodysSocket implements SocketOwner {
  readonly #socket: GuardedSocket
  readonly #request: FastifyRequest
  readonly #hub: Hub
  readonly #rate: MessageRate | null
  #isOpen = true

  constructor (socket: GuardedSocket, request: FastifyRequest, { hub, rate }: RouteSettings, place: Place | null) {
    this.#socket = socket
    this.#request = request
    this.#hub = hub
    // Who has no name is counted by address, and by this process.
    const user = JSON.stringify([request.routeOptions.url, null, null, addressKey(networkOf(request).ip)])
    this.#rate = rate === undefined
      ? null
      : new MessageRate({ ...rate, perUser: rate.perUser === null ? null : { ...rate.perUser, shared: false } }, hub.rates, user, now())
    if (place !== null) {
      place.onEvicted = () => {
        hub.audit.tally.limited('connections', true)
        hub.audit.limitedAt(request, 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS', true, null)
        this.#isOpen = false
        closeSocket(socket, 'TooManyConnections', hub.settings.closeCodes, EVICTED)
      }
    }
  }

  receive (data: RawFrame, isBinary: boolean): void {
    if (this.#isOpen && !this.#isTooMuch(data)) this.#socket.deliver(data, isBinary)
  }

  heard (): void {}

  listened (): void {}

  closed (): boolean {
    return true
  }

  mayReceive (): boolean {
    return this.#isOpen
  }

  sent (): void {}

  closing (): void {}

  #isTooMuch (data: RawFrame): boolean {
    const time = now()
    const wait = this.#rate?.spend(byteLengthOf(data), time) ?? 0
    if (wait === 0 || this.#rate === null) return false
    const { audit, settings } = this.#hub
    const isReportOnly = settings.report.includes('rate')
    if (this.#rate.refuse(time) === 1) audit.limitedAt(this.#request, 'FST_HYBRID_AUTH_RATE_LIMITED', !isReportOnly, null)
    audit.tally.limited('rate', !isReportOnly)
    if (isReportOnly) return false
    if (this.#rate.isPersistent) {
      this.#isOpen = false
      closeSocket(this.#socket, 'RateLimited', settings.closeCodes, { retryAfterMs: wait === Infinity ? RETRY_AFTER : wait })
    }
    return true
  }
}
