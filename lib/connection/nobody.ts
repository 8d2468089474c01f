/** A socket of somebody who brought no credential, on a route where that is allowed: it is nobody's, and held to the limits all the same. */
import type { FastifyRequest } from 'fastify'
import { addressKey } from '../policy/address.js'
import type { Place } from '../policy/limits.js'
import { MessageRate, type RouteRates } from '../policy/rates.js'
import { networkOf } from '../request.js'
import { now } from './clock.js'
import { closeSocket, EVICTED, RETRY_AFTER } from './closing.js'
import { controlType, mayUnderstand, sendFrame } from './control.js'
import type { Hub, RouteSettings } from './hub.js'
import { byteLengthOf } from './message.js'
import { isRefused } from './rate.js'
import type { GuardedSocket, RawFrame, SocketOwner } from './socket.js'

export const NOBODY = Symbol('nobody')

export class NobodysSocket implements SocketOwner {
  readonly heard = ignore
  readonly listened = ignore
  readonly closing = ignore
  readonly #socket: GuardedSocket
  readonly #request: FastifyRequest
  readonly #hub: Hub
  readonly #rate: MessageRate | null
  /** Nobody has no right to what somebody has to be asked for. */
  readonly #mayTalk: boolean
  /** A client of ours wants to know as whom it is open. */
  readonly #isAsked: boolean
  #isOpen = true

  constructor (socket: GuardedSocket, request: FastifyRequest, { hub, rate, decide, control }: RouteSettings, place: Place | null) {
    this.#socket = socket
    this.#request = request
    this.#hub = hub
    this.#mayTalk = decide === undefined
    this.#isAsked = control !== false && mayUnderstand(socket)
    this.#rate = rate === undefined ? null : rateOf(hub, request, rate)
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
    if (!this.#isOpen || this.#isTooMuch(data)) return
    if (!isBinary && this.#isAsked && controlType(data) === 'auth_status') {
      sendFrame(this.#socket, { type: 'error', code: 'not_authenticated', message: 'This socket is nobody\'s', action: 'none' })
      return
    }
    if (this.#mayTalk) this.#socket.deliver(data, isBinary)
    else this.#hub.audit.tally.messagesRefused++
  }

  closed (): boolean {
    return true
  }

  mayReceive (): boolean {
    return this.#isOpen
  }

  #isTooMuch (data: RawFrame): boolean {
    const time = now()
    const wait = this.#rate?.spend(byteLengthOf(data), time) ?? 0
    if (wait === 0 || this.#rate === null) return false
    const { audit, settings } = this.#hub
    return isRefused(this.#hub, this.#rate, time, {
      tell: isEnforced => { audit.limitedAt(this.#request, 'FST_HYBRID_AUTH_RATE_LIMITED', isEnforced, null) },
      // It never said that it speaks the protocol with us.
      answer () {},
      close: () => {
        this.#isOpen = false
        closeSocket(this.#socket, 'RateLimited', settings.closeCodes, { retryAfterMs: wait === Infinity ? RETRY_AFTER : wait })
      }
    })
  }
}

/** Who has no name is counted by address, and by this process; who has no address either, by himself alone. */
function rateOf (hub: Hub, request: FastifyRequest, rates: RouteRates): MessageRate {
  const address = rates.perUser === null ? null : addressOf(request)
  const perUser = rates.perUser === null || address === null ? null : { ...rates.perUser, shared: false }
  return new MessageRate({ ...rates, perUser }, hub.rates, JSON.stringify([request.routeOptions.url, null, null, address]), now())
}

/** An application's `trustProxy` may throw, and here nobody would hear of it. */
function addressOf (request: FastifyRequest): string | null {
  try {
    return addressKey(networkOf(request).ip)
  } catch {
    return null
  }
}

function ignore (): void {}
