/**
 * Rooms through Redis pub/sub: one connection that listens to the rooms that have members here, made for the first of them.
 * What is published while it is away is not heard: a message is worth something now, and the log is kept for orders.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { ClusterMember } from './cluster.js'
import type { Codec } from './command.js'
import { ask, bounded, connectAnother, send, type RedisClient } from './redis-client.js'
import type { Keys } from './redis-keys.js'
import type { RedisSettings } from './redis-node.js'
import { SKEW } from './redis-state.js'

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
  #listener: RedisClient | null = null
  #loop: Promise<void> | null = null
  /** The attempt to listen that is under way. Never rejects. */
  #begun: Promise<void> = Promise.resolve()
  /** A listener that may not hear everything is given up for another. */
  #session: AbortController | null = null

  constructor (parts: RoomsParts) {
    this.#parts = parts
  }

  /** Resolves when messages come in, or when they do not for now. Never rejects. */
  async subscribe (room: string): Promise<void> {
    this.#rooms.add(room)
    this.#loop ??= this.#run()
    // One that begins now asks for this room as well.
    const asked = this.#listener === null ? this.#begun : this.#hear(this.#listener, [room]).catch(() => { this.#session?.abort() })
    if (this.#parts.isConnected()) await asked
  }

  unsubscribe (room: string): void {
    this.#rooms.delete(room)
    // Without the function node-redis would take a subscription that follows at once for one that is there still.
    this.#listener?.unsubscribe(this.#parts.keys.room(room), this.#receive).catch(() => { this.#session?.abort() })
  }

  /** false: nobody could be told. Never rejects. */
  async broadcast (room: string, payload: string): Promise<boolean> {
    const { client, codec, keys, member, settings, isConnected } = this.#parts
    if (!isConnected()) return false
    try {
      const parsed: unknown = JSON.parse(payload)
      const sealed = codec.seal('room', { from: member.id, room, at: Date.now(), payload: parsed })
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
      await this.#listen().catch(() => {})
      await delay(PAUSE * (1 + Math.random()), undefined, { signal }).catch(() => {})
    }
  }

  /** Listens until that fails, or until it is told to stop. */
  async #listen (): Promise<void> {
    const { client, settings } = this.#parts
    const session = new AbortController()
    const signal = AbortSignal.any([this.#stopping.signal, session.signal])
    const begun = this.#begin(connectAnother(client, settings.timeout, signal))
    this.#begun = begun.then(() => {}, () => {})
    this.#session = session
    try {
      const listener = await begun
      listener.on('error', () => { session.abort() })
      while (!signal.aborted) {
        await delay(settings.nodeTimeout / 4, undefined, { signal })
        await send(listener, ['PING'], settings.timeout)
      }
    } finally {
      this.#listener = null
      session.abort()
    }
  }

  async #begin (connecting: Promise<RedisClient>): Promise<RedisClient> {
    const listener = await connecting
    const rooms = [...this.#rooms]
    // Those that come from now on are asked for one by one.
    this.#listener = listener
    for (let from = 0; from < rooms.length; from += PART) await this.#hear(listener, rooms.slice(from, from + PART).filter(room => this.#rooms.has(room)))
    return listener
  }

  async #hear (listener: RedisClient, rooms: readonly string[]): Promise<void> {
    const { keys, settings } = this.#parts
    if (rooms.length > 0) await bounded(listener.subscribe(rooms.map(room => keys.room(room)), this.#receive), settings.timeout)
  }

  readonly #receive = (sealed: string, channel: string): void => {
    const { codec, keys, member } = this.#parts
    const message = codec.openRoom(sealed)
    if (message === null || keys.room(message.room) !== channel || Math.abs(Date.now() - message.at) > SKEW) member.ignored()
    else if (message.from !== member.id) member.heard(message.room, JSON.stringify(message.payload))
  }
}
