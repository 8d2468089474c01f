/** What is published in a room while it is not known whether a member may still have it. */
import type { RoomFrame } from './frame.js'
import type { Member } from './member.js'

/** What is published in the room waits for the member. */
export function suspend (member: Member, room: string): void {
  if (member.memberships?.get(room) === null) member.memberships.set(room, [])
}

/** @returns what has waited */
export function resume (member: Member, room: string): readonly RoomFrame[] {
  const frames = member.memberships?.get(room) ?? []
  if (member.memberships?.has(room) === true) member.memberships.set(room, null)
  for (const { length } of frames) member.suspendedBytes -= length
  return frames
}

/** Passes it on, or keeps it. */
export function hand (member: Member, room: string, frame: RoomFrame): void {
  const frames = member.memberships?.get(room)
  if (frames == null) {
    member.pass(frame)
    return
  }
  frames.push(frame)
  member.suspendedBytes += frame.length
}
