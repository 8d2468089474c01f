/** What nodes tell each other: one schema, one size, one signature. A message that fails any of them was never sent. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import * as v from 'valibot'
import { isCloseCode, REASON } from '../connection/closing.js'
import { invalidOption } from '../errors.js'
import { KINDS } from './revocations.js'

const MAX_LENGTH = 64 * 1024
/** A room's message is as long as the application lets it be. */
const MAX_ROOM_LENGTH = 2 * 1024 * 1024
const SIGNATURE_LENGTH = 43

const name = v.pipe(v.string('must be a text'), v.nonEmpty('must not be empty'), v.maxLength(2048, 'is too long'))
const nullableName = v.nullable(name)
const time = v.pipe(v.number(), v.finite(), v.minValue(0))

const revocation = v.strictObject({
  id: name,
  kind: v.picklist(KINDS),
  key: name,
  issuer: v.exactOptional(nullableName),
  tenantId: v.exactOptional(nullableName),
  issuedBefore: v.exactOptional(time),
  reason: v.pipe(v.string(), v.maxLength(200)),
  besides: v.exactOptional(v.boolean()),
  isLogout: v.exactOptional(v.boolean()),
  reauthWithin: time,
  at: time,
  expiresAt: v.nullable(time)
})

export const filter = v.strictObject({
  userId: v.exactOptional(name),
  issuer: v.exactOptional(nullableName),
  tenantId: v.exactOptional(nullableName),
  sessionId: v.exactOptional(name),
  tokenId: v.exactOptional(name),
  authType: v.exactOptional(v.picklist(['jwt', 'oauth2', 'session'], 'must be jwt, oauth2 or session'))
})

const NAME = /^[A-Za-z]{1,40}$/
/** A name, which a later version may have more of, or a code that an application may send. */
const closeCode = v.union([v.pipe(v.string(), v.regex(NAME)), v.pipe(v.number(), v.check(isCloseCode))])
const id = { id: name, from: name, at: time }
const command = v.variant('type', [
  v.strictObject({ ...id, type: v.literal('revoke'), revocation }),
  v.strictObject({ ...id, type: v.literal('count'), revocation }),
  v.strictObject({ ...id, type: v.literal('disconnect'), filter, code: closeCode, reason: v.exactOptional(v.pipe(v.string(), v.regex(REASON))) }),
  v.strictObject({
    ...id, type: v.literal('permissions'), userId: name, permissions: v.array(v.string()), issuer: v.exactOptional(nullableName), tenantId: v.exactOptional(nullableName)
  }),
  v.strictObject({ ...id, type: v.literal('refresh'), userId: name }),
  v.strictObject({ ...id, type: v.literal('presence'), room: name }),
  v.strictObject({ ...id, type: v.literal('evict'), leases: v.array(name) }),
  v.strictObject({ ...id, type: v.literal('block'), address: name, ms: time })
])

const ticket = v.strictObject({ key: name, value: v.string(), until: time })
const remembered = v.strictObject({ user: name, key: name, value: v.string(), until: time })
const answer = v.strictObject({ from: name, to: name, matched: time, closed: time })
const message = { from: name, room: name, number: time, at: time, payload: v.string() }
const roomMessage = v.strictObject(message)
const keptMessage = v.strictObject({ ...message, id: v.exactOptional(v.union([v.pipe(v.string(), v.maxLength(128)), v.number()])) })

/** Read by every node. `at` is in milliseconds since the epoch, by the clock of the node that sent it. */
export type Command = v.InferOutput<typeof command>
/** One node's answer to the command `to`. */
export type Answer = v.InferOutput<typeof answer>

/** What was published in a room, as JSON, by which node, and which of its messages it is. */
export type RoomMessage = v.InferOutput<typeof roomMessage>

/** One that is kept, with the `id` that its client has given it. */
export type KeptRoomMessage = v.InferOutput<typeof keptMessage>

/** A ticket under its key, until a time in milliseconds since the epoch. */
export type Ticket = v.InferOutput<typeof ticket>

/** What is remembered of a user under a key, until a time in milliseconds since the epoch. */
export type Remembered = v.InferOutput<typeof remembered>

/** Where a text is kept: one signed for one place means nothing in another. */
export type Place = 'control' | 'answer' | 'ticket' | 'room' | 'history' | 'memory'

export type Codec = ReturnType<typeof createCodec>

/** @param secrets the first signs, each is accepted; with none whoever can write to the cluster's store is believed */
export function createCodec (secrets: ReadonlyArray<string | Buffer>) {
  const [current] = secrets

  /** The JSON of a text that was sealed here or on a node with the same secret; undefined for any other. */
  function open (place: Place, sealed: string): unknown {
    if (sealed.length > maxLengthOf(place)) return undefined
    const at = sealed.indexOf(':')
    const text = sealed.slice(at + 1)
    if (at === -1 || !isSigned(place, text, sealed.slice(0, at))) return undefined
    try {
      return JSON.parse(text)
    } catch {
      return undefined
    }
  }

  /** Without a secret, what is signed with one is read as well. */
  function isSigned (place: Place, text: string, signature: string): boolean {
    return current === undefined || secrets.some(secret => isSame(signature, sign(secret, place, text)))
  }

  return {
    /** Whether the secret that signs now has signed it. */
    isCurrent: (sealed: string): boolean =>
      current === undefined || isSame(sealed.slice(0, sealed.indexOf(':')), sign(current, 'control', sealed.slice(sealed.indexOf(':') + 1))),
    /** @throws FST_HYBRID_AUTH_INVALID_OPTION on what is longer than nodes read */
    seal (place: Place, value: object): string {
      const text = JSON.stringify(value)
      const sealed = `${current === undefined ? '' : sign(current, place, text)}:${text}`
      if (sealed.length > maxLengthOf(place)) throw invalidOption(place, 'is too long to be told to the other nodes')
      return sealed
    },
    openTicket: (sealed: string): Ticket | null => parse(ticket, open('ticket', sealed)),
    openRemembered: (sealed: string): Remembered | null => parse(remembered, open('memory', sealed)),
    openCommand: (sealed: string): Command | null => parse(command, open('control', sealed)),
    openRoom: (sealed: string): RoomMessage | null => parse(roomMessage, open('room', sealed)),
    openKept: (sealed: string): KeptRoomMessage | null => parse(keptMessage, open('history', sealed)),
    openAnswer: (sealed: string): Answer | null => parse(answer, open('answer', sealed))
  }
}

function maxLengthOf (place: Place): number {
  return place === 'room' || place === 'history' ? MAX_ROOM_LENGTH : MAX_LENGTH
}

function sign (secret: string | Buffer, place: Place, text: string): string {
  return createHmac('sha256', secret).update(`hybrid-auth.${place}\n${text}`).digest('base64url')
}

function isSame (given: string, expected: string): boolean {
  const bytes = Buffer.from(given)
  return bytes.length === SIGNATURE_LENGTH && timingSafeEqual(bytes, Buffer.from(expected))
}

function parse<Schema extends v.GenericSchema> (schema: Schema, value: unknown): v.InferOutput<Schema> | null {
  const result = v.safeParse(schema, value)
  return result.success ? result.output : null
}
