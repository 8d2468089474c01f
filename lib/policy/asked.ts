/** What the application's own source says of users: asked once for whoever asks at the same time, and remembered for a while. */
import { createHash } from 'node:crypto'
import type { Identity } from '../../types/context.js'
import { GenerationCache } from '../cache.js'
import { settledWithin } from '../deadline.js'
import type { Refusal } from '../errors.js'
import { adopt, attempt, whenReady, type Maybe } from '../maybe.js'

/** As the options `permissions` and `enrich` are given. */
export type AskUser = (identity: Identity) => unknown

export interface AskedParts<V> {
  /** Answers plain data, where it is shared. */
  readonly ask: AskUser
  /** What an answer means for an identity. @throws on one that means nothing */
  readonly read: (given: unknown, identity: Identity) => V
  /** What of a value a context holds. */
  readonly heldOf: (value: V) => object
  /** How long an answer is good, in milliseconds, for changes that nobody tells of. */
  readonly maxAge: number
  /** In milliseconds. */
  readonly timeout: number
  readonly onFault: (error: unknown) => void
  /** null: this process remembers for itself. */
  readonly shared: SharedMemory | null
  /** Whose answers it shares: registrations that accept other credentials are answered about other people. */
  readonly realm: () => string
}

/** What the nodes of a cluster remember of users together. No method throws or rejects. */
export interface SharedMemory {
  /** null: it cannot be asked. `version` is what an answer that is asked for now is kept under. */
  recall (userId: string, key: string): Promise<{ readonly value: string | null, readonly until: number, readonly version: string } | null>
  /** Does nothing where the user was forgotten since. @param until in milliseconds since the epoch */
  keep (userId: string, key: string, value: string, until: number, version: string): void
  forget (userId: string): void
}

interface Known<V> {
  readonly value: V
  readonly until: number
}

interface Flight<V> {
  readonly userId: string
  readonly answer: Promise<V | Refusal>
  /** What it brings was asked for before something changed. */
  isStale: boolean
}

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const MAX_USERS = 10_000
/** Identities of one user: tokens may name the same one with other rights. */
const MAX_IDENTITIES = 16
/** A source that makes its own answers stale is not asked for ever. */
export const MAX_TURNS = 5

export class Asked<V extends object> {
  readonly #parts: AskedParts<V>
  readonly #users = new GenerationCache<Map<string, Known<V>>>(MAX_USERS)
  readonly #flights = new Map<string, Flight<V>>()
  /** When users were forgotten, and when values were asked for, in a time that only forgetting moves. */
  readonly #forgotten = new Map<string, number>()
  /** As if all whom there was no room to remember were forgotten last. */
  #floor = 0
  readonly #asked = new WeakMap<object, number>()
  #epoch = 0

  constructor (parts: AskedParts<V>) {
    this.#parts = parts
  }

  /** What is read from the answer, or a refusal where the source fails. Neither throws nor rejects. */
  find (issuer: string | null, identity: Identity): Maybe<V | Refusal> {
    const key = keyOf(issuer, identity)
    return this.#known(identity.userId, key) ?? this.#join(key, identity)
  }

  /** Whether the user was not forgotten since what a context holds was asked for, remembered or not. */
  isCurrent (userId: string, held: object): boolean {
    const asked = this.#asked.get(held)
    return asked !== undefined && asked >= (this.#forgotten.get(userId) ?? this.#floor)
  }

  /** What was known of the user is asked for again, by whoever is waiting for it as well. */
  forget (userId: string): void {
    this.#users.delete(userId)
    if (this.#forgotten.size >= MAX_USERS) {
      this.#forgotten.clear()
      this.#users.clear()
      this.#floor = this.#epoch + 1
    }
    this.#forgotten.set(userId, ++this.#epoch)
    this.#parts.shared?.forget(userId)
    for (const [key, flight] of this.#flights) {
      if (flight.userId !== userId) continue
      flight.isStale = true
      this.#flights.delete(key)
    }
  }

  #known (userId: string, key: string): V | null {
    const known = this.#users.get(userId)?.get(key)
    return known !== undefined && Date.now() < known.until ? known.value : null
  }

  /** @param turn how often what came was asked for before something changed */
  #join (key: string, identity: Identity, turn = 0): Maybe<V | Refusal> {
    const { userId } = identity
    const flight = this.#flights.get(key)
    if (flight !== undefined) return flight.answer
    const { shared, timeout } = this.#parts
    const asked = shared === null ? this.#ask(identity) : this.#recall(shared, key, identity)
    if (!(asked instanceof Promise)) return this.#keep(userId, key, asked)
    const mine: Flight<V> = {
      userId,
      isStale: false,
      answer: settledWithin<Known<V> | Refusal | null>(asked, timeout, null).then(late => {
        const answer = late ?? this.#failed(new Error('no answer in time'))
        if (mine.isStale) return this.#known(userId, key) ?? (turn < MAX_TURNS ? this.#join(key, identity, turn + 1) : this.#failed(new Error('changed faster than it can be asked for')))
        this.#flights.delete(key)
        return this.#keep(userId, key, answer)
      })
    }
    this.#flights.set(key, mine)
    return mine.answer
  }

  #ask (identity: Identity, onAnswer?: (given: unknown, until: number) => void): Maybe<Known<V> | Refusal> {
    const { ask, maxAge } = this.#parts
    const epoch = this.#epoch
    return attempt(() => whenReady(adopt(ask(identity)), given => {
      const until = Date.now() + maxAge
      const known = this.#read(given, identity, until, epoch)
      onAnswer?.(given, until)
      return known
    }), error => this.#failed(error))
  }

  #read (given: unknown, identity: Identity, until: number, epoch: number): Known<V> {
    const { read, heldOf } = this.#parts
    const value = read(given, identity)
    this.#asked.set(heldOf(value), epoch)
    return { value, until }
  }

  /** Another node may have asked already. */
  async #recall (shared: SharedMemory, key: string, identity: Identity): Promise<Known<V> | Refusal> {
    const { userId } = identity
    const { maxAge, timeout, realm } = this.#parts
    const epoch = this.#epoch
    const begun = Date.now()
    const name = createHash('sha256').update(`${realm()}\n${key}`).digest('base64url')
    const found = await shared.recall(userId, name)
    if (found?.value == null || found.until <= Date.now()) {
      return this.#ask(identity, (given, until) => {
        // Who asked has given up on it.
        const isLate = Date.now() - begun >= timeout
        if (found !== null && !isLate) shared.keep(userId, name, JSON.stringify(given), until, found.version)
      })
    }
    // The clock of another node does not make it good for longer.
    const { value, until } = found
    return attempt(() => this.#read(JSON.parse(value), identity, Math.min(until, Date.now() + maxAge), epoch), error => this.#failed(error))
  }

  #keep (userId: string, key: string, answer: Known<V> | Refusal): V | Refusal {
    if (typeof answer === 'string') return answer
    const known = this.#users.get(userId) ?? new Map<string, Known<V>>()
    if (known.size >= MAX_IDENTITIES) known.clear()
    known.set(key, answer)
    this.#users.set(userId, known)
    return answer.value
  }

  #failed (error: unknown): Refusal {
    this.#parts.onFault(error)
    return UNAVAILABLE
  }
}

/** An identity is asked about more than once: by its handshake, and again when its connection is there. */
const keys = new WeakMap<Identity, { readonly issuer: string | null, readonly key: string }>()

/** Of everything that the source may look at: two tokens of one user need not have the same rights. As short as it may be large. */
function keyOf (issuer: string | null, identity: Identity): string {
  const known = keys.get(identity)
  if (known?.issuer === issuer) return known.key
  const key = createHash('sha256').update(JSON.stringify([issuer, identity])).digest('base64url')
  keys.set(identity, { issuer, key })
  return key
}
