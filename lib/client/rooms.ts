/** The rooms of a client, and how far it has heard in each: over a socket or by polls, each message once. */
import type { Emit } from './emitter.js'
import type { AuthSocketEvents } from './types.js'

/** So many messages of one's own are known again. */
const REMEMBERED = 1000

type Values = Readonly<Record<string, unknown>>
export type Rooms = ReturnType<typeof createRooms>

export function createRooms (emit: Emit<AuthSocketEvents>, deliver: (message: AuthSocketEvents['message']) => void) {
  /** The cursor of the last message; null: of those to come. */
  const cursors = new Map<string, string | null>()
  const published = new Set<unknown>()

  function moveTo (room: string, cursor: unknown): void {
    if (typeof cursor === 'string' && cursors.has(room)) cursors.set(room, cursor)
  }

  return {
    cursors,
    published (id: string | number): void {
      published.add(id)
      if (published.size > REMEMBERED) published.delete(published.values().next().value)
    },
    /** What brings a connection into a room, where it was before. */
    frameFor (room: string): object {
      const cursor = cursors.get(room)
      return typeof cursor === 'string' ? { type: 'join', room, cursor } : { type: 'join', room }
    },
    message (room: string, { payload, cursor, id }: Values): void {
      moveTo(room, cursor)
      // Others have it from this client, and the history has it for all.
      if (id === undefined || !published.delete(id)) deliver({ payload, room, ...(typeof id === 'string' || typeof id === 'number' ? { id } : {}) })
    },
    joined (room: string, { cursor, gap }: Values): void {
      moveTo(room, cursor)
      if (gap === true) emit('gap', { room })
    }
  }
}
