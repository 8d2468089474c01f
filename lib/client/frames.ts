/** What a text holds, and what a close means. Nothing that comes from outside is believed to have a form. */
import type { CloseAction } from '../protocol.js'
import type { ClosedEvent } from './types.js'

export type Values = Readonly<Record<string, unknown>>

/** As an object; one without members where it is none. */
export function read (text: unknown): Values {
  try {
    return Object(JSON.parse(String(text))) as Values
  } catch {
    return {}
  }
}

/** Our frames, as the server writes them: the type first. What is not one has no type. */
export const frameIn = (data: unknown): Values => /^\{"type":"[a-z_]+"/.test(String(data)) ? read(data) : {}

export interface Meaning extends Omit<ClosedEvent, 'terminal'> {
  /** In milliseconds; 0: nothing was said. */
  readonly retryAfterMs: number
}

/** Of those that a client does something about: a way between may lose the reason. */
const REASON_OF: Readonly<Partial<Record<number, string>>> = { 4001: 'authentication_failed', 4003: 'inactive', 4004: 'refresh_failed', 4006: 'revoked' }

/** What the reason says, else what the code means, else that the way was lost. */
export function meaningOf (code: number, { code: reason, action, retryAfterMs }: Values): Meaning {
  return {
    code,
    reason: typeof reason === 'string' ? reason : REASON_OF[code] ?? '',
    action: isAction(action) ? action : actionOf(code),
    retryAfterMs: typeof retryAfterMs === 'number' && retryAfterMs > 0 ? retryAfterMs : 0
  }
}

const isAction = (value: unknown): value is CloseAction => ['stop', 'refresh', 'retry', 'reconnect'].includes(value as string)

function actionOf (code: number): CloseAction {
  if (code === 4002 || code === 4005) return 'refresh'
  if (code === 4003 || code === 1012) return 'reconnect'
  return code > 4000 && code < 4014 && ![4008, 4009, 4012].includes(code) ? 'stop' : 'retry'
}
