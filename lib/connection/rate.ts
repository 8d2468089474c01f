/** What follows when more comes than a route allows. */
import type { MessageRate } from '../policy/rates.js'
import { now } from './clock.js'
import { closeConnection, RETRY_AFTER } from './closing.js'
import type { GuardedConnection } from './connection.js'
import { sendFrame } from './control.js'
import type { Hub } from './hub.js'
import { byteLengthOf } from './message.js'
import type { RawFrame } from './socket.js'

/** What becomes of whoever sent it. */
interface Consequences {
  /** For the audit: once for each that begins, for of the messages there are too many. */
  readonly tell: (isEnforced: boolean) => void
  readonly answer: () => void
  readonly close: () => void
}

/** Whether a frame is refused for what came before it. Asked of every frame, before anything else of it is read. */
export function isTooMuch (connection: GuardedConnection, data: RawFrame, time: number): boolean {
  const { rate } = connection
  if (rate === null) return false
  const wait = rate.spend(byteLengthOf(data), time)
  return wait !== 0 && isLimited(connection, rate, wait)
}

/** Tells the client, or closes it if it keeps on. false: nobody is refused for it, it is only reported. */
export function isLimited (connection: GuardedConnection, rate: MessageRate, wait: number): boolean {
  const { socket, speaks, route: { hub } } = connection
  const isHopeless = wait === Infinity
  return isRefused(hub, rate, now(), {
    tell (isEnforced) { hub.audit.limited(connection, 'FST_HYBRID_AUTH_RATE_LIMITED', isEnforced) },
    answer () {
      if (!speaks) return
      if (isHopeless) sendFrame(socket, { type: 'error', code: 'too_large', message: 'This message is larger than any may be', action: 'none' })
      else sendFrame(socket, { type: 'error', code: 'rate_limited', message: 'Too much came in too short a time', action: 'retry', retryAfterMs: wait })
    },
    close () { closeConnection(connection, 'RateLimited', { retryAfterMs: isHopeless ? RETRY_AFTER : wait }) }
  })
}

export function isRefused ({ settings, audit }: Hub, rate: MessageRate, time: number, { tell, answer, close }: Consequences): boolean {
  const isEnforced = !settings.report.includes('rate')
  if (rate.refuse(time) === 1) tell(isEnforced)
  audit.tally.limited('rate', isEnforced)
  if (isEnforced) (rate.isPersistent ? close : answer)()
  return isEnforced
}
