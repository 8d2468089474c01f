/** What follows when more comes than a route allows. */
import { now } from './clock.js'
import { closeConnection, RETRY_AFTER } from './closing.js'
import type { GuardedConnection } from './connection.js'
import { sendFrame } from './control.js'
import { byteLengthOf } from './message.js'
import type { RawFrame } from './socket.js'

/** Whether a frame is refused for what came before it. Asked of every frame, before anything else of it is read. */
export function isTooMuch (connection: GuardedConnection, data: RawFrame, time: number): boolean {
  const { rate } = connection
  if (rate === null) return false
  const wait = rate.spend(byteLengthOf(data), time)
  return wait !== 0 && isLimited(connection, wait)
}

/** Tells the client, or closes it if it keeps on. false: nobody is refused for it, it is only reported. */
export function isLimited (connection: GuardedConnection, retryAfterMs: number): boolean {
  const { rate, socket, route: { hub } } = connection
  const isReportOnly = hub.settings.report.includes('rate')
  // One event for each that begins, and not one for each message: there are too many.
  if (rate?.refuse(now()) === 1) hub.audit.limited(connection, 'FST_HYBRID_AUTH_RATE_LIMITED', !isReportOnly)
  hub.audit.tally.limited('rate', !isReportOnly)
  if (isReportOnly) return false
  const isHopeless = retryAfterMs === Infinity
  if (rate?.isPersistent === true) closeConnection(connection, 'RateLimited', { retryAfterMs: isHopeless ? RETRY_AFTER : retryAfterMs })
  else if (!connection.speaks) return true
  else if (isHopeless) sendFrame(socket, { type: 'error', code: 'too_large', message: 'This message is larger than any may be', action: 'none' })
  else sendFrame(socket, { type: 'error', code: 'rate_limited', message: 'Too much came in too short a time', action: 'retry', retryAfterMs })
  return true
}
