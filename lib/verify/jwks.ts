/** Keys of one issuer, from its JWK Set: fetched when needed, kept while good, asked for again by one at a time. */
import type { Algorithm } from '../../types/options.js'
import { settledWithin } from '../deadline.js'
import type { Maybe } from '../maybe.js'
import { fetchObject, ProviderFailed } from './fetch.js'
import { JwkSet } from './jwk-set.js'
import type { SignatureVerifier } from './keys.js'

export interface JwksSettings {
  /** All in milliseconds. */
  readonly maxAge: number
  readonly maxStale: number
  readonly cooldown: number
  readonly timeout: number
}

/** Where a JWK Set is. @throws, or rejects, where that cannot be known */
export type Locate = (signal: AbortSignal) => URL | Promise<URL>

/** How long new keys are waited for where there are old ones, in milliseconds: less than a handshake may take. */
const PATIENCE = 1000
/** After a failure nobody is asked for so long, in milliseconds. */
const PAUSE = 1000

export class RemoteKeys {
  readonly #locate: Locate
  readonly #algorithms: readonly Algorithm[]
  readonly #settings: JwksSettings
  #keys: JwkSet | null = null
  #loadedAt = -Infinity
  #failedAt = -Infinity
  /** When a key that is not there was last looked for. */
  #missedAt = -Infinity
  #loading: Promise<JwkSet> | null = null

  /** @param locate where the set is; asked before each loading */
  constructor (locate: Locate, algorithms: readonly Algorithm[], settings: JwksSettings) {
    this.#locate = locate
    this.#algorithms = algorithms
    this.#settings = settings
  }

  /** null: there is no such key. Throws, or rejects, where there are no keys to tell by. */
  find (kid: string | undefined, algorithm: Algorithm): Maybe<SignatureVerifier | null> {
    const keys = this.#keys
    if (keys === null || this.#age() >= this.#settings.maxAge) {
      return this.#current().then(current => {
        const found = current.find(kid, algorithm)
        if (found === null && current === keys) throw new ProviderFailed('whether there is such a key cannot be known')
        return found
      })
    }
    return keys.find(kid, algorithm) ?? this.#findAnew(kid, algorithm)
  }

  /** The issuer may have begun to use a key since. Who makes kids up does not make it answer for each of them. */
  #findAnew (kid: string | undefined, algorithm: Algorithm): Maybe<SignatureVerifier | null> {
    const time = performance.now()
    if (this.#loading === null) {
      if (time - this.#missedAt < this.#settings.cooldown) return null
      this.#missedAt = time
    }
    return this.#load().then(keys => keys.find(kid, algorithm), (error: unknown) => {
      // Nobody knows yet whether there is such a key.
      this.#missedAt = -Infinity
      throw error
    })
  }

  /** Good keys that are old are better than none, up to a bound. */
  async #current (): Promise<JwkSet> {
    const old = this.#keys
    const loading = this.#load()
    if (old === null || this.#age() >= this.#settings.maxStale) return loading
    return await settledWithin<JwkSet | null>(loading, PATIENCE, null) ?? old
  }

  #load (): Promise<JwkSet> {
    if (this.#loading !== null) return this.#loading
    if (performance.now() - this.#failedAt < PAUSE) return Promise.reject(new ProviderFailed('the keys cannot be had'))
    this.#loading = this.#fetch().then(keys => {
      this.#keys = keys
      this.#loadedAt = performance.now()
      return keys
    }, (error: unknown) => {
      this.#failedAt = performance.now()
      throw error
    }).finally(() => { this.#loading = null })
    return this.#loading
  }

  async #fetch (): Promise<JwkSet> {
    const signal = AbortSignal.timeout(this.#settings.timeout)
    return new JwkSet(await fetchObject(await this.#locate(signal), signal), this.#algorithms)
  }

  #age (): number {
    return performance.now() - this.#loadedAt
  }
}
