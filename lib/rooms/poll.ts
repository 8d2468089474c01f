/** Rooms for who has no socket: what was said behind a cursor, of rooms that the request's context may join. */
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { Cluster } from '../cluster/cluster.js'
import type { Recalled, Retention } from '../cluster/history.js'
import type { Revocations } from '../cluster/revocations.js'
import { authError } from '../errors.js'
import type { KeptMessage, PollAnswer, PolledRoom } from '../protocol.js'
import { contextOf } from '../request.js'
import { cursorOf, parseCursor } from './cursor.js'
import type { RefusedFor } from './member.js'
import { revokedAs } from '../verify/context.js'
import { isRoomName, type RoomSettings } from './settings.js'
import type { RoomTerms } from './terms.js'
import { reasonOf, type Verdicts } from './verdicts.js'

export interface PollParts {
  readonly settings: RoomSettings
  readonly verdicts: Verdicts
  readonly termsOf: (room: string) => RoomTerms
  readonly recall: Cluster['recall']
  readonly revocations: Pick<Revocations, 'covers'>
  readonly onRefused: (request: FastifyRequest, context: AuthContext, room: string, code: RefusedFor) => void
}

type Wanted = readonly [room: string, cursor: string | null]
export type Poll = ReturnType<typeof createPoll>

export function createPoll ({ settings, verdicts, termsOf, recall, revocations, onRefused }: PollParts) {
  return async function poll (request: FastifyRequest, reply?: FastifyReply): Promise<PollAnswer> {
    const context = contextOf(request)
    if (context === null) throw authError('FST_HYBRID_AUTH_NOT_AUTHENTICATED')
    const wanted = wantedIn(request.body, settings.maxPerConnection)
    if (wanted === null) throw authError('FST_HYBRID_AUTH_MALFORMED_REQUEST')
    reply?.header('cache-control', 'no-store')
    const refusals = new Map(await Promise.all(wanted.map(async ([room], index) => [room, await refusalOf(request, context, room, index < MAX_TOLD)] as const)))
    const admitted = turned(wanted.filter(([room]) => refusals.get(room) === null))
    const found = new Map<string, PolledRoom>()
    const budget = new Budget(settings.maxBuffered)
    for (const [index, [room, cursor]] of admitted.entries()) found.set(room, await read(room, cursor, budget, admitted.length - index))
    // It took its time, in which the credential may have ended.
    if (revocations.covers(context)) throw authError(revokedAs(context))
    if (context.expiresAt !== null && context.expiresAt <= Date.now()) throw authError('FST_HYBRID_AUTH_EXPIRED_TOKEN')
    // As members of its own, whatever they are called.
    return { rooms: Object.fromEntries(wanted.map(([room]) => [room, found.get(room) ?? refusals.get(room)])) as PollAnswer['rooms'] }
  }

  /** null: its messages may be had. */
  async function refusalOf (request: FastifyRequest, context: AuthContext, room: string, isTold: boolean): Promise<PolledRoom | null> {
    const unmet = isRoomName(room, settings) ? await verdicts.ask({ request, context }, room, 'join') : BAD_ROOM
    if (unmet === null) return termsOf(room).history === null ? { error: 'no_history' } : null
    if (isTold) onRefused(request, context, room, unmet.code)
    return { error: reasonOf(unmet.code) }
  }

  /** @param sharers how many rooms what is left of the budget is for */
  async function read (room: string, cursor: string | null, budget: Budget, sharers: number): Promise<PolledRoom> {
    const { history } = termsOf(room) as { history: Retention }
    const after = cursor === null ? null : parseCursor(cursor)
    // There will be another poll.
    if (after !== null && budget.isSpent) return { messages: [], cursor: cursorOf(after) }
    const recalled = await recall(room, after, { ...history, bytes: budget.left / sharers, isHad: false })
    if (recalled === null) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    const { epoch, head } = recalled
    if (after !== null && after.epoch === epoch && after.number === recalled.from) return given(recalled, budget)
    return { messages: [], cursor: cursorOf({ epoch, number: head }), ...(cursor !== null && { gap: true }) }
  }
}

/** As much of it as there is room for. */
function given ({ epoch, from, to, entries }: Recalled, budget: Budget): PolledRoom {
  const messages: KeptMessage[] = []
  let number = from
  for (const entry of entries) {
    const { payload, id } = entry
    if (!budget.spend(Buffer.byteLength(payload) + ENVELOPE)) return { messages, cursor: cursorOf({ epoch, number }) }
    number = entry.number
    messages.push({ payload: JSON.parse(payload) as unknown, cursor: cursorOf({ epoch, number }), ...(id !== undefined && { id }) })
  }
  return { messages, cursor: cursorOf({ epoch, number: to }) }
}

/** Of so many rooms of one poll the audit is told: a question costs whoever asks it no more than one room would. */
const MAX_TOLD = 10
const BAD_ROOM = { code: 'bad_room' } as const
/** What surrounds a payload in an answer: a cursor, an id. */
const ENVELOPE = 256

/** Bytes of an answer. The first message always has its place: none is so large that it is never had. */
class Budget {
  left: number
  #isUsed = false
  #isFull = false

  constructor (bytes: number) {
    this.left = bytes
  }

  get isSpent (): boolean {
    return this.#isFull || (this.#isUsed && this.left <= ENVELOPE)
  }

  spend (bytes: number): boolean {
    // What is read and not given was read for nothing: then the others wait as well.
    this.#isFull = this.#isUsed && bytes > this.left
    if (this.#isFull) return false
    this.#isUsed = true
    this.left -= bytes
    return true
  }
}

/** Each is the first of them now and then: one that has much to say leaves the others their turn. */
function turned<T> (all: readonly T[]): T[] {
  const begin = Math.floor(Math.random() * all.length)
  return [...all.slice(begin), ...all.slice(0, begin)]
}

/** null: it is no body of a poll. */
function wantedIn (body: unknown, max: number): Wanted[] | null {
  if (typeof body !== 'object' || body === null || !('rooms' in body)) return null
  const { rooms } = body
  if (typeof rooms !== 'object' || rooms === null || Array.isArray(rooms)) return null
  const wanted: Array<[string, unknown]> = Object.entries(rooms)
  return wanted.length <= max && wanted.every(isWanted) ? wanted : null
}

function isWanted (entry: [string, unknown]): entry is [string, string | null] {
  const [, cursor] = entry
  return cursor === null || typeof cursor === 'string'
}
