/** Keys that are somewhere else: what the core knows of them, so that it loads nothing of how they are had. */
import type { Algorithm, JoseHeader } from '../../types/options.js'
import type { Maybe } from '../maybe.js'
import type { SignatureVerifier } from './keys.js'

// Registered: the entry that makes one is another file, and may be another copy of this library.
const KEY_SOURCE = Symbol.for('fastify-hybrid-auth.key-source')

/** Keys of one registration. */
export interface SourcedKeys {
  /**
   * null: there is no such key. @throws, or rejects, where that cannot be known
   * @param issuer the `iss` that the token claims, read when asked for; nothing of it is verified
   */
  find (header: JoseHeader, issuer: () => string | null): Maybe<SignatureVerifier | null>
}

/** As `jwks()` and `discover()` make one, for the option `jwt.key`. */
export interface KeySource {
  /** Whose keys they are: what tells registrations apart. */
  readonly from: string
  readonly [KEY_SOURCE]: (algorithms: readonly Algorithm[]) => SourcedKeys
}

export function keySource (from: string, open: (algorithms: readonly Algorithm[]) => SourcedKeys): KeySource {
  return Object.freeze({ from, [KEY_SOURCE]: open })
}

export function isKeySource (given: unknown): given is KeySource {
  return typeof given === 'object' && given !== null && KEY_SOURCE in given
}

export function openKeys (source: KeySource, algorithms: readonly Algorithm[]): SourcedKeys {
  return source[KEY_SOURCE](algorithms)
}
