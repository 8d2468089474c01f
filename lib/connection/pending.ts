/** A socket that was accepted without a credential and has one message to bring it. */
import type { Duplex } from 'node:stream'
import type { AuthContext } from '../../types/context.js'
import { settleWithin } from '../deadline.js'
import { ERRORS, isRefusal, type Refusal } from '../errors.js'
import { attempt, whenReady, type Maybe } from '../maybe.js'
import type { Place } from '../policy/limits.js'
import type { Unmet } from '../policy/requirements.js'
import { refusalFor, retryAfterOf, stepUpOf } from '../request.js'
import { parseClientFrame, type CloseName } from '../protocol.js'
import { limitBytes } from './bytes.js'
import { closeSocket, EVICTED } from './closing.js'
import type { HeldFrame } from './connection.js'
import { controlType, mayUnderstand, sendFrame } from './control.js'
import type { FastifyRequest } from 'fastify'
import type { CloseDetails, RouteSettings } from './hub.js'
import { byteLengthOf } from './message.js'
import type { GuardedSocket, RawFrame, SocketOwner } from './socket.js'
import { STEP_UP_CLOSE, stepUpFrame } from './step-up.js'
import { wheel, type Wheeled } from '../wheel.js'

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const MAX_FRAME = 8 * 1024
const MAX_BYTES = 64 * 1024
const MAX_FRAMES = 32

/** Called once, with who it is and what came behind the credential. */
export type OnAuthenticated = (context: AuthContext, held: HeldFrame[], place: Place | null) => void

export class PendingSocket implements SocketOwner, Wheeled {
  due = -1
  position = 0
  readonly #socket: GuardedSocket
  readonly #net: Duplex
  readonly #stopCounting: () => void
  readonly #request: FastifyRequest
  readonly #route: RouteSettings
  readonly #done: OnAuthenticated
  readonly #held: HeldFrame[] = []
  #frames = 0
  #isVerifying = false
  /** Whom the credential names, whatever comes of it. */
  #who: AuthContext | null = null
  #isPending = true

  constructor (socket: GuardedSocket, net: Duplex, request: FastifyRequest, route: RouteSettings, done: OnAuthenticated) {
    this.#socket = socket
    this.#net = net
    this.#request = request
    this.#route = route
    this.#done = done
    socket.on('error', ignore)
    this.#stopCounting = limitBytes(net, MAX_BYTES, () => { this.fail('ProtocolError') })
    wheel.schedule(this, route.firstMessage)
    route.hub.pending.add(this, request)
  }

  /** The time is over. */
  look (): void {
    this.fail('AuthenticationTimeout')
  }

  receive (data: RawFrame, isBinary: boolean): void {
    if (!this.#isPending || !this.#mayHold(byteLengthOf(data))) return
    const type = isBinary ? null : controlType(data)
    if (type === null) this.#held.push({ data, isBinary })
    // Who asks as whom it is open has no credential to send.
    else if (type === 'auth_status' && !this.#isVerifying) this.fail('AuthenticationFailed', 'FST_HYBRID_AUTH_MISSING_CREDENTIALS')
    // A credential is for us, also one that comes too early: the application does not get it.
    else if (type !== 'auth' || this.#isVerifying || !Buffer.isBuffer(data)) this.fail('ProtocolError')
    else this.#verify(data)
  }

  heard (): void {
    if (this.#isPending) this.#mayHold(0)
  }

  listened (): void {}

  closed (): boolean {
    // One that we have closed was refused, and one whose peer went away was not.
    if (this.#isPending) this.#route.hub.audit.passed(this.#request, 'abandoned')
    this.#leave()
    return true
  }

  /** Who broadcasts to every client of the server does not mean who has not said who it is. */
  mayReceive (): boolean {
    return false
  }

  closing (): void {}

  fail (name: CloseName, code?: Refusal, details: CloseDetails = {}): void {
    this.#leave()
    this.#route.hub.audit.refused(this.#request, code ?? codeOf(name), this.#who)
    closeSocket(this.#socket, name, this.#route.hub.settings.closeCodes, details)
    // An answer to the close is read; more than that is not.
    limitBytes(this.#net, MAX_BYTES, () => { this.#socket.pause() })
  }

  #mayHold (bytes: number): boolean {
    this.#frames++
    if (bytes <= MAX_FRAME && this.#frames <= MAX_FRAMES) return true
    this.fail('ProtocolError')
    return false
  }

  #verify (data: Buffer): void {
    this.#isVerifying = true
    const frame = parseClientFrame(data.toString('utf8'))
    if (frame === null) {
      this.fail('ProtocolError')
      return
    }
    const { hub } = this.#route
    if (hub.isIsolated) {
      this.fail('Unavailable', UNAVAILABLE)
      return
    }
    const failed = (error: unknown): Refusal => {
      hub.report(this.#request, 'rule', error)
      return UNAVAILABLE
    }
    let place: Place | null = null
    const takePlace = (auth: AuthContext): Maybe<AuthContext | Refusal> =>
      whenReady(hub.limits?.acquire(this.#request, auth, this.#net) ?? null, taken => {
        if (isRefusal(taken)) return taken
        place = taken
        return auth
      })
    const admitted = attempt(() => whenReady(hub.verifiers.verifyToken(this.#request, frame.token), outcome => isRefusal(outcome)
      ? outcome
      : whenReady(this.#meets(outcome), (unmet): Maybe<AuthContext | Refusal> => unmet === null ? takePlace(outcome) : refusalFor(this.#request, unmet))), failed)
    settleWithin<AuthContext | Refusal>(admitted, hub.settings.handshakeTimeout, UNAVAILABLE, given => {
      if (!this.#isPending) return
      if (hasLost(place)) {
        this.fail('TooManyConnections', 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS', EVICTED)
        return
      }
      if (isRefusal(given)) {
        const stepUp = stepUpOf(this.#request, given)
        if (stepUp !== null && mayUnderstand(this.#socket)) sendFrame(this.#socket, stepUpFrame(stepUp, 'stop'))
        this.fail(ERRORS[given].close, given, stepUp === null ? detailsOf(this.#request, given) : STEP_UP_CLOSE)
        return
      }
      this.#leave()
      this.#done(given, this.#held, place)
    })
  }

  #meets (auth: AuthContext): Maybe<Unmet | null> {
    this.#who = auth
    return this.#route.meets(auth, this.#request)
  }

  #leave (): void {
    this.#isPending = false
    wheel.remove(this)
    this.#route.hub.pending.delete(this)
    this.#stopCounting()
  }
}

/** It went to another before this one had it. */
function hasLost (place: Place | null): boolean {
  return place?.isEvicted === true
}

function detailsOf (request: FastifyRequest, code: Refusal): CloseDetails {
  const retryAfterMs = retryAfterOf(request, code, undefined)
  return retryAfterMs === undefined ? {} : { retryAfterMs }
}

/** What is told of a socket that was closed before there was a credential to judge. */
function codeOf (name: CloseName): Refusal {
  if (name === 'ProtocolError') return 'FST_HYBRID_AUTH_MALFORMED_REQUEST'
  return name === 'AuthenticationTimeout' ? 'FST_HYBRID_AUTH_MISSING_CREDENTIALS' : UNAVAILABLE
}

function ignore (): void {}
