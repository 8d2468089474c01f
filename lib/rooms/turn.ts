import type { Member, RoomRefusal } from './member.js'

/** One attempt to join. */
export class Turn {
  /** null: nothing had to be waited for. */
  promise: Promise<RoomRefusal | null> | null = null

  /** It was not told to leave before it was in, and is still there. */
  isOpen (member: Member, room: string): boolean {
    return member.canJoin() && (this.promise === null || member.joining?.get(room) === this.promise)
  }

  end (member: Member, room: string): void {
    if (this.promise !== null) member.joining?.delete(room)
  }
}
