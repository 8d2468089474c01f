/** The rooms of a client, and how far it has heard in each: over a socket or by polls, each message once. */
import type { Values } from './frames.js'
import type { ClientMessage } from './types.js'

/** So many messages of one's own are known again. */
const REMEMBERED = 1000

export type Rooms = ReturnType<typeof createRooms>

/** @param onGap of a room messages are lost */
export function createRooms (deliver: (message: ClientMessage) => void, onGap: (room: string) => void) {
  /** The cursor of the last message; null: of those to come. */
  const cursors = new Map<string, string | null>()
  const published = new Set<string | undefined>()

  return {
    cursors,
    published (room: string, id: string | number): void {
      published.add(JSON.stringify([room, id]))
      if (published.size > REMEMBERED) published.delete(published.values().next().value)
    },
    /** What brings a connection into a room, where it was before. */
    frameFor: (room: string): object => ({ type: 'join', room, cursor: cursors.get(room) ?? undefined }),
    /** How far it has come, and with which message. */
    take (room: string, { cursor, gap, payload, id }: Values): void {
      if (typeof cursor === 'string' && cursors.has(room)) cursors.set(room, cursor)
      if (gap) onGap(room)
      // What is one's own the others have, and the history has it for all.
      if (payload !== undefined && !published.delete(JSON.stringify([room, id]))) deliver(typeof id === 'string' || typeof id === 'number' ? { payload, room, id } : { payload, room })
    }
  }
}
