/** The token of a client: asked for by one at a time, never one that was refused, and in time. */

export type TokenReason = 'connect' | 'expiring' | 'rejected'

export interface TokenRequest {
  /** `connect`: there is none. `expiring`: the one that is there ends soon. `rejected`: the server did not take it. */
  readonly reason: TokenReason
  /** How often in a row this has failed, from 0. */
  readonly attempt: number
  /** Aborted after 10 s, and when the client is closed. */
  readonly signal: AbortSignal
}

/** null: there will be none, and the client closes for good. */
export type GetToken = (request: TokenRequest) => string | null | Promise<string | null>

const LIMIT = 10_000
/** Whatever is left of a token that is used for another connection, as a part of its lifetime. */
const SPARE = 0.1
/** A refresh begins at a random part of the lifetime between these. */
const [REFRESH_FROM, REFRESH_TO] = [0.65, 0.8]

interface Held {
  readonly token: string
  /** By a clock that nobody sets, in milliseconds. */
  readonly since: number
  /** In milliseconds; Infinity: unknown. */
  readonly lifetime: number
}

export class Tokens {
  readonly #ask: GetToken
  readonly #closing: AbortSignal
  readonly #isSingleUse: boolean
  #held: Held | null = null
  #rejected: string | null = null
  #isRejected = false
  #failures = 0
  #flight: Promise<string | null> | null = null

  /** @param isSingleUse each connection needs one of its own */
  constructor (ask: GetToken, closing: AbortSignal, isSingleUse: boolean) {
    this.#ask = ask
    this.#closing = closing
    this.#isSingleUse = isSingleUse
  }

  /** One for a connection: the one that is there, if it lasts. Rejects where there is none for now. */
  forConnection (): Promise<string | null> {
    if (this.#isSingleUse) return this.fetch('connect')
    const held = this.#held
    if (held === null) return this.fetch(this.#isRejected ? 'rejected' : 'connect')
    return held.lifetime === Infinity || this.#left(held) > held.lifetime * SPARE ? Promise.resolve(held.token) : this.fetch('expiring')
  }

  /** Another one. Rejects where there is none for now. */
  fetch (reason: TokenReason): Promise<string | null> {
    this.#flight ??= this.#fetchNow(reason).finally(() => { this.#flight = null })
    return this.#flight
  }

  /** The server did not take it: it is not sent again. One that came since, and that it has not judged, stays. */
  reject (token: string | null): void {
    this.#rejected = token
    this.#isRejected = true
    if (this.#held?.token === token) this.#held = null
  }

  /** It may not be good, for all that can be told: the next one is asked for as if it were not, and may be the same. */
  suspect (): void {
    this.#held = null
    this.#isRejected = true
  }

  forget (): void {
    this.#held = null
  }

  /** What the server says of the lifetime, in seconds; anything else: no end. */
  lasts (expiresIn: unknown): void {
    if (this.#held !== null) this.#held = { token: this.#held.token, since: performance.now(), lifetime: typeof expiresIn === 'number' ? expiresIn * 1000 : Infinity }
  }

  /** In how many milliseconds another one should be asked for; Infinity: not as far as is known. */
  get refreshIn (): number {
    const held = this.#held
    if (held === null || held.lifetime === Infinity) return Infinity
    return Math.max(0, this.#left(held) - held.lifetime * (1 - REFRESH_FROM - Math.random() * (REFRESH_TO - REFRESH_FROM)))
  }

  async #fetchNow (reason: TokenReason): Promise<string | null> {
    const controller = new AbortController()
    const abort = (): void => { controller.abort() }
    const timer = setTimeout(abort, LIMIT)
    const attempt = this.#failures++
    this.#closing.addEventListener('abort', abort)
    try {
      const token = await Promise.race([this.#ask({ reason, attempt, signal: controller.signal }), whenAborted(controller.signal)])
      if (token !== null && (typeof token !== 'string' || token === '' || token === this.#rejected)) throw new TypeError('getToken gave no token, or one that was refused')
      this.#failures = 0
      this.#isRejected = false
      this.#held = token === null ? null : { token, since: performance.now(), lifetime: lifetimeOf(token) }
      return token
    } finally {
      clearTimeout(timer)
      this.#closing.removeEventListener('abort', abort)
    }
  }

  #left ({ since, lifetime }: Held): number {
    return since + lifetime - performance.now()
  }
}

function whenAborted (signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => { reject(new Error('getToken took too long')) })
  })
}

/** Of a JWT, by its own words: `exp − iat`, so that no clock but the issuer's matters. In milliseconds. */
function lifetimeOf (token: string): number {
  const { exp, iat } = claimsOf(token)
  return typeof exp === 'number' && typeof iat === 'number' ? (exp - iat) * 1000 : Infinity
}

/** Nothing of it is verified here. */
export function claimsOf (token: string): { readonly exp?: unknown, readonly iat?: unknown, readonly sub?: unknown } {
  try {
    const [, payload = ''] = token.split('.')
    const claims: unknown = JSON.parse(atob(payload.replaceAll('-', '+').replaceAll('_', '/')))
    return typeof claims === 'object' && claims !== null ? claims : {}
  } catch {
    return {}
  }
}
