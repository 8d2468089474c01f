/** What nodes count together. Without Redis a node counts what is its own. */
import { authError } from '../errors.js'
import { BucketTable, type Debit } from '../policy/bucket.js'
import { EPISODE, StrikeTable, type Strike, type Window } from '../policy/strikes.js'
import { MAX_COUNTED } from './memory.js'
import { listOf, type Script } from './redis-client.js'
import type { Keys } from './redis-keys.js'
import { SPEND, STRIKE } from './redis-scripts.js'

/** undefined: Redis cannot be asked, or does not answer. Never rejects. */
export type Run = (script: Script, keys: string[], args: string[]) => Promise<unknown>

export class RedisCounts {
  readonly #keys: Keys
  readonly #nodeId: string
  readonly #run: Run
  readonly #buckets = new BucketTable(MAX_COUNTED, Date.now)
  readonly #strikes = new StrikeTable(MAX_COUNTED)
  #struck = 0

  constructor (keys: Keys, nodeId: string, run: Run) {
    this.#keys = keys
    this.#nodeId = nodeId
    this.#run = run
  }

  /** @throws FST_HYBRID_AUTH_UNAVAILABLE where it has to be exact, and Redis does not say */
  async spend (debits: readonly Debit[], isExact = false): Promise<number> {
    const args = debits.flatMap(({ cost, rate: { capacity, refillPerSecond } }) => [String(cost), String(capacity), String(refillPerSecond)])
    const reply = await this.#run(SPEND, debits.map(({ key }) => this.#keys.bucket(key)), args)
    if (typeof reply !== 'number' && isExact) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    if (typeof reply !== 'number') return this.#buckets.spend(debits)
    return reply < 0 ? Infinity : reply
  }

  async strike (names: readonly string[], { max, window }: Window): Promise<Strike> {
    const reply = await this.#run(STRIKE, names.flatMap(name => [this.#keys.strikes(name), this.#keys.suspect(name)]),
      [String(max), String(Math.ceil(window)), String(Math.ceil(EPISODE * window)), `${this.#nodeId}:${++this.#struck}`])
    const [isOver, isAlert, ...waits] = listOf(reply).map(Number)
    if (isOver === undefined) return this.#strikes.strike(names, { max, window })
    return { isOver: isOver === 1, isAlert: isAlert === 1, waits }
  }

  stop (): void {
    this.#buckets.stop()
    this.#strikes.stop()
  }
}
