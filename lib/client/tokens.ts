/** The token of a client: asked for by one at a time, never one that was refused, and in time. */
import { read, type Values } from './frames.js'
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
/** Nor is one asked for sooner than this, in milliseconds, whatever the server says. */
const SOONEST = 1000
/** So many refused tokens are known again. */
const REMEMBERED = 100
/** A refresh begins at a random part of the lifetime from here, over so much of it. */
const [REFRESH_FROM, REFRESH_OVER] = [0.65, 0.15]

export type Tokens = ReturnType<typeof createTokens>

/** @param isSingleUse each connection needs one of its own */
export function createTokens (ask: GetToken, isSingleUse: boolean) {
  let share: Tabs['share'] = request => request()
  let held: string | null = null
  /** In milliseconds; Infinity: unknown. The end of it by a clock that nobody sets. */
  let lifetime = 0
  let until = 0
  const rejected = new Set<string | null | undefined>()
  let isRejected = false
  let failures = 0
  let flight: Promise<string | null> | null = null
  let controller = new AbortController()

  const left = (): number => until - performance.now()

  /** In seconds; anything else: nobody knows. */
  function lasts (seconds: unknown): void {
    lifetime = typeof seconds === 'number' ? seconds * 1000 : Infinity
    until = performance.now() + lifetime
  }

  function hold (token: string): void {
    const { exp, iat } = claimsOf(token)
    failures = 0
    isRejected = false
    held = token
    // By its own words, so that no clock but the issuer's matters.
    lasts(typeof exp === 'number' && typeof iat === 'number' ? exp - iat : null)
  }

  async function fetchNow (reason: TokenReason, mine: AbortController): Promise<string | null> {
    const { signal } = mine
    const timer = setTimeout(() => { mine.abort() }, LIMIT)
    const attempt = failures++
    const before = held
    const aborted = new Promise<never>((_resolve, reject) => {
      signal.addEventListener('abort', () => { reject(new Error('getToken took too long')) })
    })
    // Where nobody waits for it, nobody has to hear of it.
    aborted.catch(() => {})
    try {
      const token = await share(async () => {
        // Another tab may have been faster.
        if (held && held !== before) return held
        const given: unknown = await Promise.race([aborted, ask({ reason, attempt, signal })])
        if (given !== null && (!given || typeof given !== 'string' || rejected.has(given))) throw new TypeError('getToken gave no token, or one that was refused')
        return given
      }, signal)
      // What was asked for before a logout is nobody's after it.
      signal.throwIfAborted()
      if (!token) held = null
      else if (held !== token || held === before) hold(token)
      return token
    } finally {
      clearTimeout(timer)
    }
  }

  /** Another one. Rejects where there is none for now. */
  function fetch (reason: TokenReason): Promise<string | null> {
    if (!flight) {
      const mine = flight = fetchNow(reason, controller = new AbortController()).finally(() => { if (flight === mine) flight = null })
    }
    return flight
  }

  return {
    fetch,
    lasts,
    /** Another way to ask: as one of several tabs. */
    sharedBy (tabs: Tabs): void { share = tabs.share },
    held: () => held,
    /** One for a connection: the one that is there, if it lasts. Rejects where there is none for now. */
    async forConnection (): Promise<string | null> {
      if (!held || isSingleUse) return fetch(isRejected ? 'rejected' : 'connect')
      return left() >= lifetime * SPARE ? held : fetch('expiring')
    },
    /** What another tab got for the same user. false: it is of no use. */
    adopt (token: string): boolean {
      if (!token || rejected.has(token) || token === held || (held && subjectOf(token) !== subjectOf(held))) return false
      hold(token)
      return true
    },
    /** The server did not take it: it is not sent again. One that came since, and that it has not judged, stays. */
    reject (token: string | null): void {
      rejected.add(token)
      if (rejected.size > REMEMBERED) rejected.delete(rejected.values().next().value)
      isRejected = true
      if (held === token) held = null
    },
    /** It may not be good, for all that can be told: the next one is asked for as if it were not, and may be the same. */
    suspect (): void {
      held = null
      isRejected = true
    },
    /** Whoever comes next may be somebody else. */
    forget (): void {
      held = flight = null
      controller.abort()
    },
    /** In how many milliseconds another one should be asked for; Infinity: not as far as is known. */
    refreshIn: (): number => lifetime < Infinity ? Math.max(SOONEST, left() - lifetime * (1 - REFRESH_FROM - Math.random() * REFRESH_OVER)) : lifetime
  }
}

/** What cannot be read is nobody's: then it is the server who has said for whom a token is. */
function subjectOf (token: string): string {
  const { iss, sub } = claimsOf(token)
  return JSON.stringify([iss, sub])
}

/** Nothing of it is verified here. */
function claimsOf (token: string): Values {
  try {
    return read(atob(String(token.split('.')[1]).replaceAll('-', '+').replaceAll('_', '/')))
  } catch {
    return {}
  }
}
