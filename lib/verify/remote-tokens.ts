/** Tokens that their authorization server is asked about: once for all who wait for the same one, and remembered for a while. */
import { createHash } from 'node:crypto'
import type { Claims } from '../../types/context.js'
import type { JwtOptions } from '../../types/options.js'
import { GenerationCache } from '../cache.js'
import { FORGED, isRefusal, type Forged, type Refusal } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import { Breaker } from './breaker.js'
import { createClaimsCheck, isLogout, within, type Validity } from './claims.js'
import { ProviderFailed } from './fetch.js'
import { BEARER_TOKEN, isRespelled, nameOfToken } from './identify.js'
import { checkIdentity, identityFromClaims, type CheckedIdentity } from './identity.js'
import type { Introspector, IntrospectorParts } from './introspector.js'
import type { VerifiedToken } from './jwt.js'
import { freezeParsed, type PlainObject } from './plain.js'

export interface TokenSettings {
  readonly issuer?: readonly string[] | undefined
  readonly audience?: readonly string[] | undefined
  /** In seconds. */
  readonly clockTolerance: number
  /** How long an answer is remembered, in milliseconds: a good one, and any other. */
  readonly maxAge: number
  readonly negativeMaxAge: number
  /** In milliseconds. */
  readonly timeout: number
  /** In characters. */
  readonly maxTokenLength: number
  readonly user?: JwtOptions['user']
}

/** What the server says of a token; null: it is not active. Rejects where there is no answer. */
export type Ask = (token: string, signal: AbortSignal) => Promise<object | null>

interface Active extends Validity {
  readonly claims: Claims
  readonly tokenId: string
  /** null: the application's mapper says who it is, each time anew. */
  readonly identity: CheckedIdentity | null
  readonly keepUntil: number
  /** Asked for after so many logouts. */
  readonly epoch: number
  /** In bytes, about. */
  readonly size: number
}

interface Flight {
  readonly controller: AbortController
  readonly answer: Promise<Active | Inactive>
}

interface Inactive {
  readonly refusal: Refusal
  /** The server has never called it active, as far as is remembered. */
  readonly isUnknown: boolean
  readonly keepUntil: number
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TOKEN'
const ENTRIES = 20_000
/** Questions at once: each is a connection. */
const MAX_FLIGHTS = 1000
const BYTES = 64 * 1024 * 1024

export class RemoteTokens implements Introspector {
  readonly #ask: Ask
  readonly #settings: TokenSettings
  readonly #parts: IntrospectorParts
  readonly #checkClaims
  readonly #breaker = new Breaker()
  readonly #active = new GenerationCache<Active>(ENTRIES, BYTES, (key, { size }) => key.length * 2 + size)
  readonly #inactive = new GenerationCache<Inactive>(ENTRIES)
  readonly #flights = new Map<string, Flight>()
  /** What is asked about again has to be sent again; no context shows it. */
  readonly #answered = new WeakMap<Claims, { readonly token: string, readonly at: number, readonly epoch: number }>()
  #epoch = 0

  constructor (ask: Ask, settings: TokenSettings, parts: IntrospectorParts) {
    this.#ask = ask
    this.#settings = settings
    this.#parts = parts
    this.#checkClaims = createClaimsCheck({ ...settings, maxAge: undefined, allowNoExpiry: true })
  }

  verify (token: string): Maybe<VerifiedToken | Refusal | Forged> {
    if (token.length > this.#settings.maxTokenLength || !BEARER_TOKEN.test(token) || isRespelled(token)) return FORGED
    const key = keyOf(token)
    const time = Date.now()
    const known = this.#active.get(key)
    if (known !== undefined && time < known.keepUntil && known.epoch === this.#epoch) {
      const valid = within(known)
      return isRefusal(valid) ? valid : this.#identify(known)
    }
    const refused = this.#inactive.get(key)
    if (refused !== undefined && time < refused.keepUntil) return refused.refusal
    const isFirst = !this.#flights.has(key)
    if (isFirst && this.#flights.size >= MAX_FLIGHTS) return Promise.reject(new ProviderFailed('too much is asked at once'))
    return this.#find(key, token).then(found => {
      if (!('refusal' in found)) return this.#identify(found)
      // What others ask about as well is no guess of whoever asks.
      return isFirst && found.isUnknown ? FORGED : found.refusal
    })
  }

  reverify (claims: Claims): Maybe<VerifiedToken | Refusal> {
    const token = this.tokenOf(claims)
    if (token === null) return INVALID
    return this.#find(keyOf(token), token).then(found => 'refusal' in found ? found.refusal : this.#identify(found))
  }

  tokenOf (claims: Claims): string | null {
    return this.#answered.get(claims)?.token ?? null
  }

  since (claims: Claims): number {
    return this.#answered.get(claims)?.at ?? 0
  }

  isCurrent (claims: Claims): boolean {
    return this.#answered.get(claims)?.epoch === this.#epoch
  }

  forget (): void {
    this.#epoch++
  }

  /** What is being asked is asked for nobody any more. */
  stop (): void {
    for (const { controller } of this.#flights.values()) controller.abort()
  }

  #find (key: string, token: string): Promise<Active | Inactive> {
    const known = this.#flights.get(key)
    if (known !== undefined) return known.answer
    const controller = new AbortController()
    const timer = setTimeout(() => { controller.abort() }, this.#settings.timeout).unref()
    const epoch = this.#epoch
    const answer = this.#breaker.run(() => this.#ask(token, controller.signal))
      .then(given => {
        const found = this.#keep(key, token, given, epoch)
        this.#parts.onAsked('refusal' in found ? 'inactive' : 'active')
        return found
      }, (error: unknown) => {
        this.#parts.onAsked('unavailable')
        throw error
      })
      .finally(() => {
        clearTimeout(timer)
        this.#flights.delete(key)
      })
    this.#flights.set(key, { controller, answer })
    return answer
  }

  #keep (key: string, token: string, answer: object | null, epoch: number): Active | Inactive {
    const { maxAge, negativeMaxAge } = this.#settings
    const found = answer === null ? INVALID : this.#read(token, answer, { keepUntil: Date.now() + maxAge, epoch })
    if (isRefusal(found)) {
      // What merely ended since is no guess, however often it comes.
      const wasActive = this.#active.get(key) !== undefined || this.#inactive.get(key)?.isUnknown === false
      const inactive = { refusal: found, isUnknown: answer === null && !wasActive, keepUntil: Date.now() + negativeMaxAge }
      this.#active.delete(key)
      this.#inactive.set(key, inactive)
      return inactive
    }
    this.#inactive.delete(key)
    this.#active.set(key, found)
    this.#answered.set(found.claims, { token, at: Date.now(), epoch })
    return found
  }

  #read (token: string, answer: object, kept: Pick<Active, 'keepUntil' | 'epoch'>): Active | Refusal {
    const { tokenId, issuer } = nameOfToken(token)
    // Of a token that says itself who issued it, and is active, that is as true as the rest.
    const claims = freezeParsed('iss' in answer || issuer === null ? answer : { ...answer, iss: issuer })
    if (!isAccessToken(claims) || isLogout(claims)) return INVALID
    const validity = this.#checkClaims(claims, undefined)
    if (isRefusal(validity)) return validity
    const identity = this.#settings.user === undefined ? identityFromClaims(claims) : null
    if (identity === null && this.#settings.user === undefined) return INVALID
    return { ...validity, ...kept, claims, tokenId, identity, size: JSON.stringify(claims).length * 2 }
  }

  #identify ({ claims, tokenId, identity, notAfter: expiresAt }: Active): Maybe<VerifiedToken | Refusal> {
    if (identity !== null) return { claims, tokenId, identity, expiresAt }
    return whenReady(adopt(this.#settings.user?.(claims) ?? null), mapped => {
      const checked = checkIdentity(mapped)
      if (checked === null && mapped !== null) this.#parts.onBadIdentity()
      return checked === null ? INVALID : { claims, tokenId, identity: checked, expiresAt }
    })
  }
}

/** A server may be asked about refresh tokens as well (RFC 7662 §4), and tells by these names, if at all, which kind one is. */
function isAccessToken ({ token_type: type, token_use: use, typ }: PlainObject): boolean {
  return (type === undefined || isOneOf(type, ['bearer'])) && (use === undefined || isOneOf(use, ['access_token', 'access'])) &&
    (typ === undefined || !isOneOf(typ, ['refresh', 'offline', 'id', 'logout']))
}

function isOneOf (value: unknown, names: readonly string[]): boolean {
  return typeof value === 'string' && names.includes(value.toLowerCase())
}

/** Nothing that is kept is a credential. */
function keyOf (token: string): string {
  return createHash('sha256').update(token).digest('base64url')
}
