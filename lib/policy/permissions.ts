/** What a user may do, from the application's own source: asked once for whoever asks at the same time, and remembered for a while. */
import { createHash } from 'node:crypto'
import type { AuthContext, Identity } from '../../types/context.js'
import { GenerationCache } from '../cache.js'
import { settledWithin } from '../deadline.js'
import type { Refusal } from '../errors.js'
import { adopt, attempt, whenReady, type Maybe } from '../maybe.js'

/** As the option `permissions` is given. */
export type AskPermissions = (identity: Identity) => unknown

interface Known {
  readonly permissions: readonly string[]
  readonly until: number
}

interface Flight {
  readonly userId: string
  readonly answer: Promise<readonly string[] | Refusal>
  /** What it brings was asked for before something changed. */
  isStale: boolean
}

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
const MAX_USERS = 10_000
/** Identities of one user: tokens may name the same one with other rights. */
const MAX_IDENTITIES = 16
/** How long an answer is good, in milliseconds, for changes that nobody tells of. */
const KEPT = 30_000

export class PermissionSource {
  readonly #ask: AskPermissions
  readonly #timeout: number
  readonly #onFault: (error: unknown) => void
  readonly #users = new GenerationCache<Map<string, Known>>(MAX_USERS)
  readonly #flights = new Map<string, Flight>()

  /** @param timeout in milliseconds */
  constructor (ask: AskPermissions, timeout: number, onFault: (error: unknown) => void) {
    this.#ask = ask
    this.#timeout = timeout
    this.#onFault = onFault
  }

  /** A frozen list, or a refusal where the source fails. Neither throws nor rejects. */
  find (issuer: string | null, identity: Identity): Maybe<readonly string[] | Refusal> {
    const key = keyOf(issuer, identity)
    return this.#known(identity.userId, key) ?? this.#join(key, identity)
  }

  /** Whether nothing has changed since the context was made, as far as this process was told. */
  isCurrent ({ issuer, user, permissions }: AuthContext): boolean {
    return this.#known(user.userId, keyOf(issuer, user)) === permissions
  }

  /** What was known of the user is asked for again, by whoever is waiting for it as well. */
  forget (userId: string): void {
    this.#users.delete(userId)
    for (const [key, flight] of this.#flights) {
      if (flight.userId !== userId) continue
      flight.isStale = true
      this.#flights.delete(key)
    }
  }

  #known (userId: string, key: string): readonly string[] | null {
    const known = this.#users.get(userId)?.get(key)
    return known !== undefined && Date.now() < known.until ? known.permissions : null
  }

  #join (key: string, identity: Identity): Maybe<readonly string[] | Refusal> {
    const { userId } = identity
    const flight = this.#flights.get(key)
    if (flight !== undefined) return flight.answer
    const asked = attempt(() => whenReady(adopt(this.#ask(identity)), given => this.#check(given)), error => this.#failed(error))
    if (!(asked instanceof Promise)) return this.#keep(userId, key, asked)
    const mine: Flight = {
      userId,
      isStale: false,
      answer: settledWithin<readonly string[] | Refusal | null>(asked, this.#timeout, null).then(late => {
        const answer = late ?? this.#failed(new Error('no answer in time'))
        if (mine.isStale) return this.#join(key, identity)
        this.#flights.delete(key)
        return this.#keep(userId, key, answer)
      })
    }
    this.#flights.set(key, mine)
    return mine.answer
  }

  #keep (userId: string, key: string, answer: readonly string[] | Refusal): readonly string[] | Refusal {
    if (typeof answer === 'string') return answer
    const known = this.#users.get(userId) ?? new Map<string, Known>()
    if (known.size >= MAX_IDENTITIES) known.clear()
    known.set(key, { permissions: answer, until: Date.now() + KEPT })
    this.#users.set(userId, known)
    return answer
  }

  #check (given: unknown): readonly string[] | Refusal {
    // A copy has no holes.
    const list: unknown[] | null = Array.isArray(given) ? [...given as unknown[]] : null
    if (list?.every(one => typeof one === 'string') === true) return Object.freeze(list)
    return this.#failed(new TypeError('permissions returned something that is no list of texts'))
  }

  #failed (error: unknown): Refusal {
    this.#onFault(error)
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
