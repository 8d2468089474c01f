/** What is asked about rooms: bounded in time, failing closed, and of the context as it is when the answer counts. */
import type { RoomAction } from '../../types/rooms.js'
import { settledWithin } from '../deadline.js'
import { attempt, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import type { Member } from './member.js'
import type { RoomDecision } from './patterns.js'

export interface VerdictParts<M extends Member> {
  /** null: who may be in a room is the application's to say, where it joins somebody. */
  readonly decide: RoomDecision | null
  /** How long a verdict is waited for, in milliseconds. */
  readonly timeout: number
  readonly onFault: (member: M, error: unknown) => void
}

export class Verdicts<M extends Member> {
  readonly #parts: VerdictParts<M>

  constructor (parts: VerdictParts<M>) {
    this.#parts = parts
  }

  /** Whether a new context can change anything. */
  get isAsked (): boolean {
    return this.#parts.decide !== null
  }

  /** null: it is allowed. Neither throws nor rejects. */
  ask (member: M, room: string, action: RoomAction): Maybe<Unmet | null> {
    const { decide, timeout, onFault } = this.#parts
    if (decide === null) return null
    const verdict = attempt(() => decide(member.context, room, action, member.request), error => {
      onFault(member, error)
      return FORBIDDEN
    })
    return verdict instanceof Promise ? settledWithin<Unmet | null>(verdict, timeout, FORBIDDEN) : verdict
  }

  /** {@link ask}; `then` runs in the very step in which the verdict is known to be one on the present context. */
  reach<T> (member: M, room: string, action: RoomAction, then: (unmet: Unmet | null) => Maybe<T>): Maybe<T> {
    const { version } = member.context
    const verdict = this.ask(member, room, action)
    if (!(verdict instanceof Promise)) return then(verdict)
    return verdict.then(unmet => member.context.version === version ? then(unmet) : this.reach(member, room, action, then))
  }
}
