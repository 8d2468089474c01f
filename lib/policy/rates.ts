/** How much a connection, and all connections of a user together, may send: messages and bytes, each from a bucket. */
import type { Cluster } from '../cluster/cluster.js'
import { settledWithin } from '../deadline.js'
import { whenReady, type Maybe } from '../maybe.js'
import { Bucket, type BucketTable, type Debit, type Rate } from './bucket.js'

/** A bucket for messages and one for their bytes; null: not limited. */
export interface Rates {
  readonly messages: Rate | null
  readonly bytes: Rate | null
}

/** A route's `rate`, read once. */
export interface RouteRates extends Rates {
  readonly perUser: (Rates & { /** Counted on all nodes together. */ readonly shared: boolean }) | null
}

/** What the buckets of users stand in. */
export interface RateParts {
  readonly users: BucketTable
  readonly cluster: Pick<Cluster, 'spend'>
}

/** Who keeps sending is closed after so many refusals, or after as many as the bucket has messages, if that is more. */
const MIN_REFUSALS = 10
/** In milliseconds. */
const MIN_PAUSE = 500

export class MessageRate {
  readonly isShared: boolean
  /** What all connections of the user may send together. */
  readonly #user: Rates
  readonly #parts: RateParts
  readonly #messages: Bucket | null
  readonly #bytes: Bucket | null
  readonly #userMessages: string
  readonly #userBytes: string
  readonly #maxRefusals: number
  /** In milliseconds. */
  readonly #pause: number
  #refusals = 0
  #refusedAt = 0

  /** @param user what the user's buckets are called by */
  constructor (rates: RouteRates, parts: RateParts, user: string, time: number) {
    this.#user = rates.perUser ?? NONE
    this.#parts = parts
    this.isShared = rates.perUser?.shared === true
    this.#messages = rates.messages === null ? null : new Bucket(rates.messages, time)
    this.#bytes = rates.bytes === null ? null : new Bucket(rates.bytes, time)
    this.#userMessages = `messages:${nameOf(this.#user.messages)}:${user}`
    this.#userBytes = `bytes:${nameOf(this.#user.bytes)}:${user}`
    this.#pause = 2 * Math.max(MIN_PAUSE, ...[rates, this.#user].flatMap(({ messages, bytes }) => [timeToFill(messages), timeToFill(bytes)]))
    this.#maxRefusals = Math.max(MIN_REFUSALS, (rates.messages ?? this.#user.messages)?.capacity ?? 0)
  }

  /** Takes a message of so many bytes from every bucket of this process, or from none. @returns 0, or how long to wait, in milliseconds */
  spend (size: number, time: number): number {
    const { messages, bytes } = this.isShared ? NONE : this.#user
    const userMessages = messages === null ? null : this.#parts.users.of(this.#userMessages, messages, time)
    const userBytes = bytes === null ? null : this.#parts.users.of(this.#userBytes, bytes, time)
    const wait = Math.max(
      this.#messages === null ? 0 : this.#messages.wait(1, time),
      this.#bytes === null ? 0 : this.#bytes.wait(size, time),
      userMessages === null ? 0 : userMessages.wait(1, time),
      userBytes === null ? 0 : userBytes.wait(size, time))
    if (wait > 0) return wait
    this.#messages?.take(1)
    this.#bytes?.take(size)
    userMessages?.take(1)
    userBytes?.take(size)
    return 0
  }

  /**
   * The same for the buckets that all nodes share. What they refuse is given back to those of this process.
   * @param patience how long the cluster may take, in milliseconds; after that this process counts alone
   */
  spendShared (size: number, patience: number): Maybe<number> {
    const { messages, bytes } = this.#user
    const debits: Debit[] = []
    if (messages !== null) debits.push({ key: this.#userMessages, rate: messages, cost: 1 })
    if (bytes !== null) debits.push({ key: this.#userBytes, rate: bytes, cost: size })
    const asked = this.#parts.cluster.spend(debits)
    const answered = asked instanceof Promise
      ? settledWithin<number | null>(asked, patience, null).then(wait => wait ?? this.#parts.users.spend(debits))
      : asked
    return whenReady(answered, wait => {
      if (wait > 0) {
        this.#messages?.take(-1)
        this.#bytes?.take(-size)
      }
      return wait
    })
  }

  /** One more was refused. @returns how many that makes without a pause in which an empty bucket would have filled twice */
  refuse (time: number): number {
    if (Math.abs(time - this.#refusedAt) > this.#pause) this.#refusals = 0
    this.#refusedAt = time
    return ++this.#refusals
  }

  /** It keeps on. */
  get isPersistent (): boolean {
    return this.#refusals >= this.#maxRefusals
  }
}

const NONE: Rates = { messages: null, bytes: null }

/** Routes of one URL may differ by host or version, and each has its own bucket. */
function nameOf (rate: Rate | null): string {
  return rate === null ? '' : `${rate.capacity}/${rate.refillPerSecond}`
}

function timeToFill (rate: Rate | null): number {
  return rate === null ? 0 : rate.capacity / rate.refillPerSecond * 1000
}
