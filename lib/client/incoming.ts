/** Frames of the server, and what is done about each. */
import type { ErrorFrame } from '../protocol.js'
import type { Emit } from './emitter.js'
import type { Values } from './frames.js'
import type { Refresh } from './refresh.js'
import type { Rooms } from './rooms.js'
import type { AuthSocketEvents, ClientIdentity } from './types.js'

/**
 * @param refresh of the connection that it came over
 * @param onStatus it is open as somebody, for so many seconds more; null: as nobody, where that is allowed
 * @returns false: it only looks like a frame of ours
 */
export function obey (
  frame: Values, rooms: Rooms, refresh: Refresh | null, emit: Emit<AuthSocketEvents>,
  onStatus: (user: ClientIdentity | null, expiresIn: unknown) => void, onBye: () => void
): boolean {
  const { type, room, code, expiresIn } = frame
  const { id } = Object(frame.user) as Values
  if (type === 'auth_success' && typeof id === 'string') onStatus({ id }, expiresIn)
  else if (type === 'auth_updated' && expiresIn !== undefined) return refresh?.updated(expiresIn) === true
  else if (type === 'token_refresh_required' && expiresIn !== undefined) refresh?.begin('expiring')
  else if (isPermissions(frame)) emit('permissions', frame)
  else if (typeof room === 'string' && (type === 'joined' || (type === 'message' && 'payload' in frame))) {
    rooms.take(room, frame)
    if (type === 'joined') emit('joined', { room })
  } else if (typeof room === 'string' && type === 'left') {
    const { reason } = frame
    // None: it was left by the client, which knows what it wants.
    if (reason) rooms.cursors.delete(room)
    emit('left', { room, reason: reason === 'removed' || reason === 'forbidden' ? reason : null })
  } else if (type === 'bye' && typeof code === 'string') onBye()
  else if (!isError(frame)) return false
  else if (code === 'not_authenticated') onStatus(null, null)
  else if (code === 'refresh_failed') return refresh?.refused() === true
  else {
    if (!room && (code === 'unavailable' || code === 'rate_limited')) refresh?.postponed(frame.retryAfterMs)
    emit('error', { stage: 'refused', error: frame })
  }
  return true
}

function isError (frame: object): frame is ErrorFrame {
  const { type, code } = frame as Values
  return type === 'error' && typeof code === 'string'
}

function isPermissions (frame: object): frame is AuthSocketEvents['permissions'] {
  const { type, permissions, added, removed } = frame as Values
  return type === 'permission_update' && [permissions, added, removed].every(Array.isArray)
}
