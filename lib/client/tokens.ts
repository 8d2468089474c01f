/** The token of a client: asked for by one at a time, never one that was refused, and in time. */
import { read } from './frames.js'
import type { Tabs } from './tabs.js'

export type TokenReason = 'connect' | 'expiring' | 'rejected'

export interface TokenRequest {
  /** `connect`: there is none. `expiring`: the one that is there ends soon. `rejected`: the server did not take it. */
  readonly reason: TokenReason
  /** How often in a row this has failed, from 0. */
  readonly attempt: number
  /** Aborted after 10 s, and when the client is closed or logged out. */
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

export type Tokens = ReturnType<typeof createTokens>

/** @param isSingleUse each connection needs one of its own */
export function createTokens (ask: GetToken, isSingleUse: boolean) {
  let tabs: Tabs | null = null
  let held: Held | null = null
  let rejected: string | null = null
  let isRejected = false
  let failures = 0
  let flight: Promise<string | null> | null = null
  let controller = new AbortController()

  const left = ({ since, lifetime }: Held): number => since + lifetime - performance.now()

  function hold (token: string): void {
    failures = 0
    isRejected = false
    held = { token, since: performance.now(), lifetime: lifetimeOf(token) }
  }

  async function fetchNow (reason: TokenReason, mine: AbortController): Promise<string | null> {
    const { signal } = mine
    const timer = setTimeout(() => { mine.abort() }, LIMIT)
    const attempt = failures++
    const before = held
    // Another tab may have been faster.
    const request = async (): Promise<string | null> => {
      if (held !== null && held !== before) return held.token
      const token: unknown = await ask({ reason, attempt, signal })
      if (token !== null && (typeof token !== 'string' || token === '' || token === rejected)) throw new TypeError('getToken gave no token, or one that was refused')
      return token
    }
    try {
      const token = await Promise.race([tabs === null ? request() : tabs.share(request, signal), whenAborted(signal)])
      // What was asked for before a logout is nobody's after it.
      signal.throwIfAborted()
      if (token === null) held = null
      else if (token !== held?.token || held === before) hold(token)
      return token
    } finally {
      clearTimeout(timer)
    }
  }

  /** Another one. Rejects where there is none for now. */
  function fetch (reason: TokenReason): Promise<string | null> {
    if (flight === null) {
      controller = new AbortController()
      const mine = fetchNow(reason, controller).finally(() => { if (flight === mine) flight = null })
      flight = mine
    }
    return flight
  }

  return {
    fetch,
    /** Where one comes from before it is asked for. */
    joined (given: Tabs | null): void { tabs = given },
    /** One for a connection: the one that is there, if it lasts. Rejects where there is none for now. */
    async forConnection (): Promise<string | null> {
      if (held === null || isSingleUse) return fetch(isRejected ? 'rejected' : 'connect')
      return held.lifetime === Infinity || left(held) > held.lifetime * SPARE ? held.token : fetch('expiring')
    },
    /** What another tab got, if it is for the same user. false: it is of no use. */
    adopt (token: string): boolean {
      if (token === rejected || token === held?.token || (held !== null && subjectOf(token) !== subjectOf(held.token))) return false
      hold(token)
      return true
    },
    /** The server did not take it: it is not sent again. One that came since, and that it has not judged, stays. */
    reject (token: string | null): void {
      rejected = token
      isRejected = true
      if (held?.token === token) held = null
    },
    /** It may not be good, for all that can be told: the next one is asked for as if it were not, and may be the same. */
    suspect (): void {
      held = null
      isRejected = true
    },
    /** Whoever comes next may be somebody else. */
    forget (): void {
      held = null
      flight = null
      controller.abort()
    },
    /** What the server says of the lifetime, in seconds; null: it has no end. */
    lasts (expiresIn: unknown): void {
      if (held !== null && (expiresIn === null || typeof expiresIn === 'number')) {
        held = { token: held.token, since: performance.now(), lifetime: expiresIn === null ? Infinity : expiresIn * 1000 }
      }
    },
    /** In how many milliseconds another one should be asked for; Infinity: not as far as is known. */
    refreshIn (): number {
      if (held === null || held.lifetime === Infinity) return Infinity
      return Math.max(0, left(held) - held.lifetime * (1 - REFRESH_FROM - Math.random() * (REFRESH_TO - REFRESH_FROM)))
    }
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

function subjectOf (token: string): string {
  const { iss, sub } = claimsOf(token)
  return JSON.stringify([iss, sub])
}

/** Nothing of it is verified here. */
function claimsOf (token: string): Readonly<Record<string, unknown>> {
  try {
    const [, payload = ''] = token.split('.')
    return read(atob(payload.replaceAll('-', '+').replaceAll('_', '/')))
  } catch {
    return {}
  }
}
