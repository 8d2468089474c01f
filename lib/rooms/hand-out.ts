/** One frame to everybody in a room who can take it. */
import type { RoomFrame } from './frame.js'
import type { Member } from './member.js'
import { hand } from './suspended.js'

export interface HandOutParts {
  readonly now: () => number
  readonly settings: { readonly maxBuffered: number }
}

/**
 * Nothing of the application runs in here: what it published meanwhile would overtake this for some.
 * @param slow gets those who do not read what they are sent: to be closed when all have what there is
 * @returns to how many
 */
export function handOut<M extends Member> (members: ReadonlySet<M>, room: string, frame: RoomFrame, except: Member | null, slow: Set<M>, { now, settings: { maxBuffered } }: HandOutParts): number {
  const time = now()
  let delivered = 0
  for (const member of members) {
    if (member === except || !member.isLive(time)) continue
    // What a member does not read is kept for it up to a bound, and not past it.
    if (member.buffered + member.suspendedBytes > maxBuffered) {
      slow.add(member)
      continue
    }
    hand(member, room, frame)
    delivered++
  }
  return delivered
}

export function closeAll (members: Iterable<Member>): void {
  for (const member of members) member.closeSlow()
}
