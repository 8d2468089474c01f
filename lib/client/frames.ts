/** Frames of the server, told from messages of the application, and what a close means. */
import { CLOSE, type CloseAction, type ServerFrame } from '../protocol.js'
import type { ClosedEvent } from './types.js'

/** As the server writes it: the type first. */
const OURS = /^\{"type":"[a-z_]{1,40}"/

/** null: it is the application's, also where only its type is one of ours. */
export function serverFrame (data: unknown): ServerFrame | null {
  if (typeof data !== 'string' || !OURS.test(data)) return null
  try {
    const frame: unknown = JSON.parse(data)
    return isOurs(frame) ? frame : null
  } catch {
    return null
  }
}

function isOurs (frame: unknown): frame is ServerFrame {
  const { type, user, expiresIn, permissions, added, removed, room, code, ...rest } = Object(frame) as Partial<Record<string, unknown>>
  const isTime = expiresIn === null || typeof expiresIn === 'number'
  switch (type) {
    case 'auth_success': return isTime && typeof user === 'object' && user !== null && 'id' in user && typeof user.id === 'string'
    case 'auth_updated': case 'token_refresh_required': return isTime
    case 'permission_update': return [permissions, added, removed].every(Array.isArray)
    case 'joined': case 'left': return typeof room === 'string'
    case 'message': return typeof room === 'string' && 'payload' in rest
    default: return (type === 'error' || type === 'bye') && typeof code === 'string'
  }
}

export interface Meaning extends Omit<ClosedEvent, 'terminal'> {
  /** In milliseconds; 0: nothing was said. */
  readonly retryAfterMs: number
}

const ACTIONS: ReadonlySet<unknown> = new Set<CloseAction>(['stop', 'refresh', 'retry', 'reconnect'])

/** What the reason says, else what the code means, else that the way was lost. */
export function meaningOf (code: number, text: string): Meaning {
  const row = Object.values(CLOSE).find(one => one.code === code)
  const { code: reason, action, retryAfterMs } = reasonIn(text)
  return {
    code,
    reason: typeof reason === 'string' ? reason : row?.reason ?? '',
    action: isAction(action) ? action : row?.action ?? 'retry',
    retryAfterMs: typeof retryAfterMs === 'number' ? Math.max(0, retryAfterMs) : 0
  }
}

function isAction (value: unknown): value is CloseAction {
  return ACTIONS.has(value)
}

function reasonIn (text: string): { readonly code?: unknown, readonly action?: unknown, readonly retryAfterMs?: unknown } {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? value : {}
  } catch {
    return {}
  }
}
