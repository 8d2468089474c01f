/** A message that waits until its sender has authenticated again (RFC 9470), and what he is told of it. */
import { challengeOf, type StepUp } from '../policy/step-up.js'
import type { ErrorFrame } from '../protocol.js'
import { now } from './clock.js'
import type { GuardedConnection, HeldFrame } from './connection.js'
import type { CloseDetails } from './hub.js'

/** How long it waits, in milliseconds: somebody has to find a second factor. */
const PATIENCE = 120_000
const CODE = 'insufficient_user_authentication'

export const STEP_UP_CLOSE: CloseDetails = Object.freeze({ reason: CODE })

/** @param action what the client does: brings another token, for which the message waits; nothing that would help here; or gives up, for the socket is closed */
export function stepUpFrame (lacking: StepUp, action: 'refresh' | 'none' | 'stop'): ErrorFrame {
  return { type: 'error', code: CODE, message: 'This needs the user to authenticate again', action, ...challengeOf(lacking) }
}

/**
 * Tells the client what is lacking. false: nothing that it could send would help, or there is no room to wait, and the message
 * is refused.
 */
export function demandStepUp (connection: GuardedConnection, lacking: StepUp, frame: HeldFrame, hasRoom: boolean): boolean {
  // What helps a session is a new login over HTTP, and a peer that has closed brings nothing more.
  const mayWait = hasRoom && connection.speaks && connection.context.authType !== 'session' && connection.heldClose === null
  connection.say(stepUpFrame(lacking, mayWait ? 'refresh' : 'none'))
  if (!mayWait || !connection.isOpen) return false
  // Another token that is not good enough either does not prolong it.
  if (connection.demandUntil === 0) connection.demandUntil = now() + PATIENCE
  connection.demand = frame
  connection.isJudging = true
  connection.route.hub.lookAt(connection)
  return true
}

/** Nothing is waited for any more. @returns the message that was; null: none was */
export function takeDemanded (connection: GuardedConnection): HeldFrame | null {
  const { demand } = connection
  if (demand === null) return null
  connection.demand = null
  connection.isJudging = false
  return demand
}
