/**
 * Credentials that look like guesses, counted by where they come from and whom they claim to be. What is merely old, revoked
 * or absent is no guess: people behind one address whose tokens expire together must not lock each other out.
 */
import { createHash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import { GenerationCache } from '../cache.js'
import type { Cluster } from '../cluster/cluster.js'
import type { Refusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import { networkOf, setRetryAfter } from '../request.js'
import { Sweeper } from '../sweeper.js'
import { addressKey } from './address.js'
import type { Strike, Window } from './strikes.js'

/** Whom a token says it is of. Nothing of it was verified. */
export interface Claimed {
  readonly userId: string
  readonly issuer: string | null
}

/** By what an attack was noticed. */
export type SuspectedBy = 'address' | 'identity'

export interface FailureOptions extends Window {
  /** Whether an address with too many failures is still asked who it is. */
  readonly block: 'credential' | 'address'
}

export interface FailureParts {
  readonly cluster: Pick<Cluster, 'strike'>
  /** Counts, and refuses nobody for it. */
  readonly isReportOnly: boolean
  readonly onSuspected: (request: FastifyRequest, by: readonly SuspectedBy[], claimed: Claimed | null) => void
  /** What would have been refused. */
  readonly onReported: (request: FastifyRequest, code: Refusal) => void
  /** Tells the other nodes of an address that is blocked for so many milliseconds. */
  readonly onBlocked: (address: string, ms: number) => void
}

const TOO_MANY: Refusal = 'FST_HYBRID_AUTH_TOO_MANY_FAILURES'
const MAX_KEPT = 100_000

export class Failures {
  readonly #options: FailureOptions
  readonly #parts: FailureParts
  /** Until when there have been too many failures under a name, in milliseconds since the epoch. */
  readonly #over = new GenerationCache<number>(MAX_KEPT)
  /** What was answered to what was counted. */
  readonly #counted = new WeakMap<object, Refusal>()
  readonly #reported = new WeakSet()
  readonly #sweeper = new Sweeper(() => this.#sweep())

  constructor (options: FailureOptions, parts: FailureParts) {
    this.#options = options
    this.#parts = parts
  }

  /** Whether the address is refused whatever it brings. Asked before any key or store. */
  isBlocked (request: FastifyRequest, presented: object): boolean {
    if (this.#options.block !== 'address' || this.#over.size === 0) return false
    const address = addressKey(networkOf(request).ip)
    const wait = address === null ? 0 : this.#waitOf(nameOfAddress(address))
    return wait > 0 && this.#isRefused(request, presented, wait)
  }

  /**
   * Counts a credential that looks like a guess.
   * @param presented what it came with: one request counts once, however many rules ask about it
   * @param code what it is refused with while there are not too many
   * @param claimed called only if it matters
   */
  count (request: FastifyRequest, presented: object, code: Refusal, claimed: () => Claimed | null): Maybe<Refusal> {
    const answered = this.#counted.get(presented)
    if (answered !== undefined) return answered
    return whenReady(this.#countOne(request, presented, code, claimed), answer => {
      this.#counted.set(presented, answer)
      return answer
    })
  }

  #countOne (request: FastifyRequest, presented: object, code: Refusal, claimed: () => Claimed | null): Maybe<Refusal> {
    const address = addressKey(networkOf(request).ip)
    const ofAddress = address === null ? [] : [nameOfAddress(address)]
    // An attack that was noticed costs nothing more: neither a record nor a question to the cluster for whom it claims to be next.
    const wait = this.#longest(ofAddress)
    if (wait > 0) return this.#isRefused(request, presented, wait) ? TOO_MANY : code
    const who = claimed()
    const all = [...ofAddress, ...who === null ? [] : [nameOfIdentity(who)]]
    const known = this.#longest(all)
    const names = all.filter(name => this.#waitOf(name) === 0)
    if (names.length === 0) return known > 0 && this.#isRefused(request, presented, known) ? TOO_MANY : code
    // Who counts within another window counts for himself.
    const { window } = this.#options
    return whenReady(this.#parts.cluster.strike(names.map(name => `${window}:${name}`), this.#options), strike => {
      this.#learn(names, strike)
      if (strike.isAlert && known === 0) this.#parts.onSuspected(request, names.filter((_, i) => isOver(strike, i)).map(kindOf), who)
      if (known === 0 && !strike.isOver) return code
      return this.#isRefused(request, presented, Math.max(known, ...strike.waits)) ? TOO_MANY : code
    })
  }

  /** Another node found out. */
  block (address: string, ms: number): void {
    const name = nameOfAddress(address)
    this.#keep(name, Math.max(Math.min(ms, this.#options.window), this.#waitOf(name)))
  }

  #learn (names: readonly string[], { waits }: Strike): void {
    for (const [index, name] of names.entries()) {
      const wait = Number(waits[index])
      if (wait === 0) continue
      const wasKnown = this.#waitOf(name) > 0
      this.#keep(name, wait)
      if (!wasKnown && this.#options.block === 'address' && kindOf(name) === 'address') this.#parts.onBlocked(name.slice(PREFIX.address.length), wait)
    }
  }

  /** Nothing is swept any more. */
  stop (): void {
    this.#sweeper.stop()
  }

  #keep (name: string, ms: number): void {
    this.#over.set(name, Date.now() + ms)
    this.#sweeper.wake()
  }

  #sweep (): number {
    // Whoever reads an entry makes it young again.
    for (const [name, until] of this.#over.entries()) if (until <= Date.now()) this.#over.delete(name)
    return this.#over.size
  }

  #longest (names: readonly string[]): number {
    return Math.max(0, ...names.map(name => this.#waitOf(name)))
  }

  #waitOf (name: string): number {
    const until = this.#over.get(name)
    if (until === undefined) return 0
    const { window } = this.#options
    const wait = until - Date.now()
    // A clock that was set back does not make it longer.
    if (wait > window) this.#over.set(name, Date.now() + window)
    if (wait > 0) return Math.min(wait, window)
    this.#over.delete(name)
    return 0
  }

  #isRefused (request: FastifyRequest, presented: object, wait: number): boolean {
    if (!this.#parts.isReportOnly) {
      setRetryAfter(request, TOO_MANY, wait)
      return true
    }
    if (!this.#reported.has(presented)) this.#parts.onReported(request, TOO_MANY)
    this.#reported.add(presented)
    return false
  }
}

const PREFIX = { address: 'ip:', identity: 'id:' }

const nameOfAddress = (address: string) => PREFIX.address + address

/** As long as any other, whatever was claimed. */
function nameOfIdentity ({ userId, issuer }: Claimed): string {
  return PREFIX.identity + createHash('sha256').update(JSON.stringify([issuer, userId])).digest('base64url')
}

function kindOf (name: string): SuspectedBy {
  return name.startsWith(PREFIX.address) ? 'address' : 'identity'
}

function isOver ({ waits }: Strike, index: number): boolean {
  return Number(waits[index]) > 0
}
