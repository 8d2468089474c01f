/** What the server says over a connection: our frames are obeyed, the rest is the application's. */
import type { Emit } from './emitter.js'
import { frameIn, meaningOf, type Meaning } from './frames.js'
import { LOST } from './link.js'
import type { Refresh } from './refresh.js'
import type { Rooms } from './rooms.js'
import type { AuthSocketEvents, ClientIdentity, ClientMessage } from './types.js'

/** What may come before it is known as whom the connection is open, and is not the application's. */
const FIRST: readonly unknown[] = ['auth_success', 'error', 'bye']

export interface IncomingParts {
  readonly rooms: Rooms
  readonly emit: Emit<AuthSocketEvents>
  readonly deliver: (message: ClientMessage) => void
  /** As whom; null: as nobody, where that is allowed. Once for each connection */
  readonly opened: (user: ClientIdentity | null) => void
  /** The credential lasts so many seconds more, or has no end. */
  readonly onSuccess: (expiresIn: unknown) => void
  readonly refresh: () => Refresh | null
}

export function createIncoming ({ rooms, emit, deliver, opened, onSuccess, refresh }: IncomingParts) {
  let isOpen = false
  let early: unknown[] = []
  let bye: Meaning | null = null
  let connection = 0

  function open (user: ClientIdentity | null): void {
    if (isOpen) return
    isOpen = true
    const mine = connection
    opened(user)
    for (const data of early.splice(0)) if (mine === connection) receive(data)
  }

  function receive (data: unknown): void {
    const frame = frameIn(data)
    if (!isOpen && !FIRST.includes(frame?.type)) early.push(data)
    else if (frame === null || !obey(frame)) deliver({ data, room: null })
  }

  /** false: it only looks like one of ours. */
  function obey (frame: Readonly<Record<string, unknown>>): boolean {
    const { type, room, code, expiresIn, permissions, added, removed } = frame
    switch (type) {
      case 'auth_success': {
        const { id } = Object(frame.user) as { readonly id?: unknown }
        if (typeof id !== 'string') return false
        onSuccess(expiresIn)
        open({ id })
        break
      }
      case 'auth_updated': case 'token_refresh_required':
        if (expiresIn === undefined) return false
        if (type === 'auth_updated') refresh()?.updated(expiresIn)
        else refresh()?.begin('expiring')
        break
      case 'permission_update':
        if (!isTexts(permissions) || !isTexts(added) || !isTexts(removed)) return false
        emit('permissions', { permissions, added, removed })
        break
      case 'message':
        if (typeof room !== 'string' || !('payload' in frame)) return false
        rooms.message(room, frame)
        break
      case 'joined':
        if (typeof room !== 'string') return false
        rooms.joined(room, frame)
        break
      case 'left':
        if (typeof room !== 'string') return false
        // By itself it left nothing.
        if (frame.reason !== undefined) rooms.cursors.delete(room)
        break
      case 'bye':
        if (typeof code !== 'string') return false
        bye = meaningOf(LOST, frame)
        break
      case 'error':
        if (typeof code !== 'string') return false
        if (code === 'not_authenticated') open(null)
        else if (code === 'refresh_failed') refresh()?.refused()
        else {
          if (room === undefined) refresh()?.postponed(code, frame.retryAfterMs)
          emit('error', { stage: 'refused', error: frame })
        }
        break
      default: return false
    }
    return true
  }

  return {
    receive,
    /** What the server has said of the close that follows. */
    bye: () => bye,
    /** For another connection. */
    reset (): void {
      isOpen = false
      early = []
      bye = null
      connection++
    }
  }
}

function isTexts (value: unknown): value is string[] {
  return Array.isArray(value) && value.every(one => typeof one === 'string')
}
