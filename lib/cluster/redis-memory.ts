/** What nodes remember of users together. Without Redis nothing is: whoever asks, asks the source. */
import { createHash, randomBytes } from 'node:crypto'
import { unawaited } from '../maybe.js'
import type { SharedMemory } from '../policy/asked.js'
import { DAY } from '../schema.js'
import type { Codec } from './command.js'
import { listOf, textOf } from './redis-client.js'
import type { Run } from './redis-counts.js'
import type { Keys } from './redis-keys.js'
import { FORGET_USER, KEEP_USER, RECALL_USER } from './redis-scripts.js'

/** No question takes longer, in milliseconds: so long a version has to be told from another. */
const LONGEST_QUESTION = '900000'
const MAX_USERS = 100_000

export class RedisMemory implements SharedMemory {
  readonly #keys: Keys
  readonly #codec: Codec
  readonly #run: Run
  /** Users that are being forgotten, or that Redis would not forget: what it has of them is not believed. */
  readonly #forgetting = new Map<string, Promise<boolean>>()
  /** There was no room for all of them: until then nothing is believed, in milliseconds since the epoch. */
  #blindUntil = 0

  constructor (keys: Keys, codec: Codec, run: Run) {
    this.#keys = keys
    this.#codec = codec
    this.#run = run
  }

  async recall (userId: string, key: string): ReturnType<SharedMemory['recall']> {
    if (Date.now() < this.#blindUntil) return null
    const isForgotten = await (this.#forgetting.get(userId) ?? true) || await this.#forget(userId)
    if (!isForgotten) return null
    const [version, sealed] = listOf(await this.#run(RECALL_USER, [this.#keyOf(userId)], [key, newVersion(), LONGEST_QUESTION]))
    if (typeof version !== 'string') return null
    const kept = sealed == null ? null : this.#codec.openRemembered(textOf(sealed))
    // It is good under its own name: who can write to Redis could put it elsewhere.
    if (kept?.user !== hashOf(userId) || kept.key !== key) return { value: null, until: 0, version }
    return { value: kept.value, until: kept.until, version }
  }

  keep (userId: string, key: string, value: string, until: number, version: string): void {
    const ms = until - Date.now()
    if (ms < 1) return
    const sealed = seal(this.#codec, { user: hashOf(userId), key, value, until })
    if (sealed !== null) unawaited(this.#run(KEEP_USER, [this.#keyOf(userId)], [version, key, sealed, String(Math.ceil(ms))]))
  }

  forget (userId: string): void {
    unawaited(this.#forget(userId))
  }

  #forget (userId: string): Promise<boolean> {
    const forgetting = this.#run(FORGET_USER, [this.#keyOf(userId)], [newVersion(), LONGEST_QUESTION])
      .then(reply => {
        if (reply === 1 && this.#forgetting.get(userId) === forgetting) this.#forgetting.delete(userId)
        return reply === 1
      })
    if (this.#forgetting.size >= MAX_USERS) {
      this.#forgetting.clear()
      this.#blindUntil = Date.now() + DAY
    }
    this.#forgetting.set(userId, forgetting)
    return forgetting
  }

  #keyOf (userId: string): string {
    return this.#keys.user(hashOf(userId))
  }
}

const newVersion = (): string => randomBytes(12).toString('base64url')
const hashOf = (userId: string): string => createHash('sha256').update(userId).digest('base64url')

/** null: it is too long to be kept. */
function seal (codec: Codec, value: object): string | null {
  try {
    return codec.seal('memory', value)
  } catch {
    return null
  }
}
