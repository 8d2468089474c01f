/** What comes a second time: ids of messages that a user has used before. */
import { createHash } from 'node:crypto'
import * as v from 'valibot'
import type { RepeatOptions } from '../../types/plugin.js'
import type { AuthContext } from '../../types/context.js'
import type { Claims } from '../cluster/claims.js'
import { authError } from '../errors.js'
import { DAY, parse, within } from '../schema.js'

/** In characters. */
export const MAX_ID = 128
const options = v.strictObject({ window: v.optional(within(1, DAY, 'milliseconds'), 60_000) }, 'must be an object')

export type MessageId = string | number

/** A text of some length, or a number that JSON can hold. */
export function isMessageId (given: unknown): given is MessageId {
  return (typeof given === 'string' && given !== '' && given.length <= MAX_ID) || (typeof given === 'number' && Number.isFinite(given))
}

export type Repeats = ReturnType<typeof createRepeats>

/** @param claims exact ones */
export function createRepeats ({ claim, release }: Claims) {
  return {
    /** `app.hybridAuth.isRepeat`. */
    isRepeat: async (auth: AuthContext, id: MessageId, given: RepeatOptions = {}): Promise<boolean> => {
      const { window } = parse(options, given, 'options')
      if (!isMessageId(id)) throw authError('FST_HYBRID_AUTH_MALFORMED_REQUEST')
      return !await claim(nameOf(auth, id, window), window / 1000)
    },
    /** false: its user has used the id in the room within so many milliseconds. Rejects with FST_HYBRID_AUTH_UNAVAILABLE. */
    claimIn: (room: string, auth: AuthContext, id: MessageId, window: number): Promise<boolean> => claim(nameOf(auth, id, window, room), window / 1000),
    /** What it was used for did not come about. */
    releaseIn: (room: string, auth: AuthContext, id: MessageId, window: number): Promise<void> => release(nameOf(auth, id, window, room), window / 1000)
  }
}

/** Of any length, and nothing that anybody could read. */
function nameOf ({ issuer, userId, tenantId }: AuthContext, ...rest: ReadonlyArray<string | number>): string {
  return createHash('sha256').update(JSON.stringify(['repeat', issuer, userId, tenantId, ...rest])).digest('base64url')
}
