/** Rooms with history in Redis: a list of sealed messages, which is read back as strictly as what comes over a channel. */
import { randomBytes } from 'node:crypto'
import type { Codec } from './command.js'
import type { Entry, Position, Recalled, Retention, Said, Wanted } from './history.js'
import { KEPT_LONGER } from './memory-history.js'
import { ask, listOf, run, textOf, textsOf } from './redis-client.js'
import type { RoomsParts } from './redis-rooms.js'
import { APPEND, RECALL } from './redis-scripts.js'
import { SKEW } from './redis-state.js'
import { Senders } from './senders.js'

/** A cursor, then what is sealed: no signature has a dot or a space. */
const TOLD = /^([\w-]+)\.(\d{1,16}) /

export class RedisHistory {
  readonly #parts: RoomsParts

  constructor (parts: RoomsParts) {
    this.#parts = parts
  }

  /** Never rejects. @returns false: it is not known to be there */
  async append (room: string, { sequence, payload, id }: Said, { messages, maxAge }: Retention): Promise<boolean> {
    const { client, codec, keys, member, settings, isConnected } = this.#parts
    if (!isConnected()) return false
    try {
      const sealed = codec.seal('history', { from: member.id, room, number: sequence, at: Date.now(), payload, ...(id !== undefined && { id }) })
      // By its text and not by its hash: one that Redis does not know would be sent again, behind those that came later.
      await ask(client, [
        'EVAL', APPEND.text, '3', keys.history(room), keys.head(room), keys.room(room),
        sealed, String(messages), String(Math.ceil(maxAge)), newEpoch(), keptFor(maxAge)
      ], settings.timeout)
      return true
    } catch {
      return false
    }
  }

  /** Never rejects. null: Redis cannot be asked. */
  async recall (room: string, after: Position | null, { maxAge, bytes, isHad }: Wanted): Promise<Recalled | null> {
    const { client, keys, settings, isConnected } = this.#parts
    if (!isConnected()) return null
    const args = [after?.epoch ?? '', String(after?.number ?? 0), String(bytes), String(maxAge), newEpoch(), keptFor(maxAge), isHad ? '1' : '0']
    const reply = await run(client, RECALL, [keys.history(room), keys.head(room)], args, settings.timeout).catch(() => null)
    const [epoch, head, from, sealed] = listOf(reply)
    if (sealed === undefined) return null
    return { epoch: textOf(epoch), head: numberOf(head), ...this.#open(room, numberOf(from), textsOf(sealed), maxAge) }
  }

  #open (room: string, from: number, sealed: readonly string[], maxAge: number): Pick<Recalled, 'from' | 'to' | 'entries'> {
    const { codec, member } = this.#parts
    const senders = new Senders()
    const entries: Entry[] = []
    for (const [index, text] of sealed.entries()) {
      const kept = open(codec, text, maxAge + SKEW)
      // Where it stands is nothing that anybody has signed: it may not stand there twice.
      if (kept?.room !== room || !senders.isNew({ from: kept.from, number: kept.sequence })) member.ignored()
      else entries.push(entryOf(kept, from + 1 + index))
    }
    return { from, to: from + sealed.length, entries }
  }
}

interface Opened extends Said {
  readonly from: string
  readonly room: string
}

/** null: no node can have said it, or not so lately. */
function open (codec: Codec, sealed: string, maxAge: number): Opened | null {
  const message = codec.openKept(sealed)
  const age = message === null ? Infinity : Date.now() - message.at
  if (message === null || age > maxAge || age < -SKEW || !isJson(message.payload)) return null
  const { from, room, number: sequence, payload, id } = message
  return { from, room, sequence, payload, ...(id !== undefined && { id }) }
}

function entryOf ({ room: _room, ...said }: Opened, number: number): Entry {
  return { ...said, number }
}

/** What came over a channel, where it is a message of a room with history; null: it is none. */
export function readTold (codec: Codec, text: string): { readonly room: string, readonly epoch: string, readonly entry: Entry } | null {
  const [head, epoch, number] = TOLD.exec(text) ?? []
  if (head === undefined || epoch === undefined) return null
  const opened = open(codec, text.slice(head.length), SKEW)
  return opened === null ? null : { room: opened.room, epoch, entry: entryOf(opened, Number(number)) }
}

export function isJson (text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

const newEpoch = (): string => randomBytes(12).toString('base64url')
const keptFor = (maxAge: number): string => String(Math.ceil(maxAge) + KEPT_LONGER)
const numberOf = (reply: unknown): number => Number(textOf(reply))
