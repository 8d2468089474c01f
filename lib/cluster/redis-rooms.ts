/**
 * Rooms through Redis pub/sub: one connection that listens to the rooms that have members here, made for the first of them.
 * What is published while it is away is not heard: a message is worth something now, and the log is kept for orders. Of a room with
 * history it is read there.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { ClusterMember } from './cluster.js'
import { settledWithin } from '../deadline.js'
import type { Codec } from './command.js'
import { ask, bounded, connectAnother, send, type RedisClient } from './redis-client.js'
import { isJson, readTold } from './redis-history.js'
import type { Keys } from './redis-keys.js'
import type { RedisSettings } from './redis-node.js'
import { SKEW } from './redis-state.js'
import { Senders } from './senders.js'

export interface RoomsParts {
  readonly client: RedisClient
  readonly codec: Codec
  readonly settings: RedisSettings
  readonly member: ClusterMember
  readonly keys: Keys
  /** Whether Redis answers, as far as the node knows. */
  readonly isConnected: () => boolean
}

/** Between two attempts, in milliseconds; up to twice that. */
const PAUSE = 100
/** As many rooms in one command as do not keep Redis from others. */
const PART = 500
export class RedisRooms {
  readonly #parts: RoomsParts
  readonly #stopping = new AbortController()
  readonly #rooms = new Set<string>()
  readonly #senders = new Senders()
  #published = 0
  #loop: Promise<void> | null = null
  #session = new Session()

  constructor (parts: RoomsParts) {
    this.#parts = parts
  }

  /** Resolves when messages come in, or when they do not for now. Never rejects. */
  async subscribe (room: string): Promise<void> {
    this.#rooms.add(room)
    this.#loop ??= this.#run()
    const session = this.#session
    // One that begins asks for this room as well.
    const asked = session.listener === null
      ? session.hasBegun
      : this.#hear(session.listener, [room]).catch(() => this.#renew(session).hasBegun)
    if (this.#parts.isConnected()) await settledWithin(asked, this.#parts.settings.timeout, undefined)
  }

  unsubscribe (room: string): void {
    this.#rooms.delete(room)
    const session = this.#session
    // Without the function node-redis would take a subscription that follows at once for one that is there still.
    session.listener?.unsubscribe(this.#parts.keys.room(room), this.#receive).catch(() => { this.#renew(session) })
  }

  /** false: nobody could be told. Never rejects. */
  async broadcast (room: string, payload: string): Promise<boolean> {
    const { client, codec, keys, member, settings, isConnected } = this.#parts
    if (!isConnected()) return false
    try {
      const sealed = codec.seal('room', { from: member.id, room, number: ++this.#published, at: Date.now(), payload })
      await ask(client, ['PUBLISH', keys.room(room), sealed], settings.timeout)
      return true
    } catch {
      return false
    }
  }

  async stop (): Promise<void> {
    this.#stopping.abort()
    await this.#loop
  }

  async #run (): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      const session = this.#session
      await this.#listen(session).catch(() => {})
      this.#renew(session)
      await delay(PAUSE * (1 + Math.random()), undefined, { signal }).catch(() => {})
    }
  }

  /** A listener that may not hear everything is given up for another. @returns the session that follows */
  #renew (session: Session): Session {
    session.end.abort()
    if (this.#session === session) this.#session = new Session()
    return this.#session
  }

  /** Listens until that fails, or until it is told to stop. */
  async #listen (session: Session): Promise<void> {
    const { client, settings } = this.#parts
    const signal = AbortSignal.any([this.#stopping.signal, session.end.signal])
    const listener = await connectAnother(client, settings.timeout, signal)
    listener.on('error', () => { this.#renew(session) })
    const rooms = [...this.#rooms]
    // Those that come from now on are asked for one by one.
    session.listener = listener
    for (let from = 0; from < rooms.length; from += PART) {
      await this.#hear(listener, rooms.slice(from, from + PART).filter(room => this.#rooms.has(room)))
    }
    session.begin()
    this.#parts.member.resumed()
    while (!signal.aborted) {
      await delay(settings.nodeTimeout / 4, undefined, { signal })
      await send(listener, ['PING'], settings.timeout)
    }
  }

  async #hear (listener: RedisClient, rooms: readonly string[]): Promise<void> {
    const { keys, settings } = this.#parts
    if (rooms.length > 0) await bounded(listener.subscribe(rooms.map(room => keys.room(room)), this.#receive), settings.timeout)
  }

  readonly #receive = (sealed: string, channel: string): void => {
    const { codec, keys, member } = this.#parts
    const told = readTold(codec, sealed)
    if (told !== null) {
      if (keys.room(told.room) === channel) member.told(told.room, told.epoch, told.entry)
      else member.ignored()
      return
    }
    const message = codec.openRoom(sealed)
    if (message === null || keys.room(message.room) !== channel || Math.abs(Date.now() - message.at) > SKEW || !this.#senders.isNew(message) || !isJson(message.payload)) member.ignored()
    else if (message.from !== member.id) member.heard(message.room, message.payload)
  }
}

/** One listener, from when it is wanted to when it is given up. */
class Session {
  listener: RedisClient | null = null
  readonly end = new AbortController()
  readonly #begun = new AbortController()
  /** It listens to every room. Never rejects. */
  readonly hasBegun = new Promise<void>(resolve => { this.#begun.signal.addEventListener('abort', () => { resolve() }) })

  begin (): void {
    this.#begun.abort()
  }
}
