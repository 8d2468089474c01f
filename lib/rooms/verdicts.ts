/** What is asked about rooms: bounded in time, failing closed, and of the context as it is when the answer counts. */
import type { RoomAction } from '../../types/rooms.js'
import { settledWithin } from '../deadline.js'
import { attempt, type Maybe } from '../maybe.js'
import { FORBIDDEN, type Unmet } from '../policy/requirements.js'
import type { Member, RefusedFor } from './member.js'
import type { RoomDecision } from './patterns.js'

/** Somebody who is asked about: a member, or a request. */
export type Asker = Pick<Member, 'context' | 'request'>

export interface VerdictParts {
  /** null: who may be in a room is the application's to say, where it joins somebody. */
  readonly decide: RoomDecision | null
  /** How long a verdict is waited for, in milliseconds. */
  readonly timeout: number
  readonly onFault: (who: Asker, error: unknown) => void
}

export class Verdicts {
  readonly #parts: VerdictParts

  constructor (parts: VerdictParts) {
    this.#parts = parts
  }

  /** Whether a new context can change anything. */
  get isAsked (): boolean {
    return this.#parts.decide !== null
  }

  /** null: it is allowed. Neither throws nor rejects. */
  ask (who: Asker, room: string, action: RoomAction): Maybe<Unmet | null> {
    const { decide, timeout, onFault } = this.#parts
    if (decide === null) return null
    const verdict = attempt(() => decide(who.context, room, action, who.request), error => {
      onFault(who, error)
      return FORBIDDEN
    })
    return verdict instanceof Promise ? settledWithin<Unmet | null>(verdict, timeout, FORBIDDEN) : verdict
  }

  /** {@link ask}; `then` runs in the very step in which the verdict is known to be one on the present context. */
  reach<T> (member: Asker, room: string, action: RoomAction, then: (unmet: Unmet | null) => Maybe<T>): Maybe<T> {
    const { version } = member.context
    const verdict = this.ask(member, room, action)
    if (!(verdict instanceof Promise)) return then(verdict)
    return verdict.then(unmet => member.context.version === version ? then(unmet) : this.reach(member, room, action, then))
  }
}

/** Why somebody was refused, in a word. */
export function reasonOf<Code extends RefusedFor> (code: Code): ReasonOf<Code> {
  switch (code) {
    case 'FST_HYBRID_AUTH_FORBIDDEN': return 'forbidden' as ReasonOf<Code>
    case 'FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION': return 'insufficient_user_authentication' as ReasonOf<Code>
    default: return code as ReasonOf<Code>
  }
}

type ReasonOf<Code extends RefusedFor> =
  Code extends 'FST_HYBRID_AUTH_FORBIDDEN' ? 'forbidden' : Code extends 'FST_HYBRID_AUTH_INSUFFICIENT_USER_AUTHENTICATION' ? 'insufficient_user_authentication' : Code
