/** What a text holds, and what a close means. Nothing that comes from outside is believed to have a form. */
import type { CloseAction } from '../protocol.js'
import type { ClosedEvent } from './types.js'

/** As an object; one without members where it is none. */
export function read (text: unknown): Readonly<Record<string, unknown>> {
  try {
    return Object(JSON.parse(String(text))) as Record<string, unknown>
  } catch {
    return {}
  }
}

/** Our frames, as the server writes them: the type first. */
const OURS = /^\{"type":"[a-z_]{1,40}"/

/** null: it is the application's. */
export const frameIn = (data: unknown): Readonly<Record<string, unknown>> | null =>
  typeof data === 'string' && OURS.test(data) ? read(data) : null

export interface Meaning extends Omit<ClosedEvent, 'terminal'> {
  /** In milliseconds; 0: nothing was said. */
  readonly retryAfterMs: number
}

const ACTIONS: readonly unknown[] = ['stop', 'refresh', 'retry', 'reconnect'] satisfies CloseAction[]
/** Of a code that came without a reason, as a way between may leave it. Others of ours stop, and what is not ours is tried again. */
const ACTION_OF: Readonly<Partial<Record<number, CloseAction>>> = {
  1012: 'reconnect', 4002: 'refresh', 4003: 'reconnect', 4005: 'refresh', 4008: 'retry', 4009: 'retry', 4012: 'retry'
}
/** Those that a client does something about. */
const REASON_OF: Readonly<Partial<Record<number, string>>> = { 4003: 'inactive', 4006: 'revoked' }

/** What the reason says, else what the code means, else that the way was lost. */
export function meaningOf (code: number, { code: reason, action, retryAfterMs }: Readonly<Record<string, unknown>>): Meaning {
  return {
    code,
    reason: typeof reason === 'string' ? reason : REASON_OF[code] ?? '',
    action: isAction(action) ? action : ACTION_OF[code] ?? (code > 4000 && code < 4014 ? 'stop' : 'retry'),
    retryAfterMs: typeof retryAfterMs === 'number' ? Math.max(0, retryAfterMs) : 0
  }
}

const isAction = (value: unknown): value is CloseAction => ACTIONS.includes(value)
