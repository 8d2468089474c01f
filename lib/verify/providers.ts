/** `fastify-hybrid-auth/providers`: keys that an identity provider publishes, and tokens that it is asked about. */
import * as v from 'valibot'
import type { Algorithm } from '../../types/options.js'
import { invalidOption } from '../errors.js'
import { DAY, parse, within } from '../schema.js'
import { discoverKeys } from './discovery.js'
import { providerUrl } from './fetch.js'
import { RemoteKeys, type JwksSettings, type Locate } from './jwks.js'
import { keySource, type KeySource, type SourcedKeys } from './key-source.js'

export interface JwksOptions {
  /** How long keys are used before they are fetched again, in milliseconds: a key that was removed counts no longer. @default 600000 */
  maxAge?: number | undefined
  /** How long keys are used that cannot be fetched again, in milliseconds. @default 86400000 */
  maxStale?: number | undefined
  /** How often a key that is not known makes the keys be fetched again, in milliseconds. @default 30000 */
  cooldown?: number | undefined
  /** How long an answer is waited for, in milliseconds. @default 5000 */
  timeout?: number | undefined
}

const schema = v.strictObject({
  maxAge: v.optional(within(1000, DAY, 'milliseconds'), 600_000),
  maxStale: v.optional(within(0, 30 * DAY, 'milliseconds'), DAY),
  cooldown: v.optional(within(100, DAY, 'milliseconds'), 30_000),
  timeout: v.optional(within(50, 60_000, 'milliseconds'), 5000)
}, 'must be an object')
const urlsByIssuer = v.record(v.string(), v.unknown(), 'must be a URL, or an object of URLs by issuer')

/**
 * Keys for the option `jwt.key`, from a JWK Set (RFC 7517 §5), or from one for each issuer: a token is verified with the keys
 * of the issuer that it names, and no other.
 * @param urls https; http for this machine alone
 * @throws FST_HYBRID_AUTH_INVALID_OPTION
 */
export function jwks (urls: string | URL | Readonly<Record<string, string | URL>>, options: JwksOptions = {}): KeySource {
  const settings = parse(schema, options, 'jwks')
  if (typeof urls === 'string' || urls instanceof URL) {
    const url = providerUrl(urls, 'jwks.url')
    return keySource(url.href, algorithms => ofOne(new RemoteKeys(() => url, algorithms, settings)))
  }
  const given = parse(urlsByIssuer, urls, 'jwks')
  return byIssuer('jwks', Object.entries(given).map(([issuer, address]) => {
    const url = providerUrl(address, `jwks.${issuer}`)
    return { issuer, at: url.href, locate: () => url }
  }), settings)
}

/**
 * Keys for the option `jwt.key`, from where each issuer says that they are (OpenID Connect Discovery). A token is verified
 * with the keys of the issuer that it names; of another it is refused.
 * @param issuers exactly as in `iss`
 * @throws FST_HYBRID_AUTH_INVALID_OPTION
 */
export function discover (issuers: string | readonly string[], options: JwksOptions = {}): KeySource {
  const settings = parse(schema, options, 'discover')
  return byIssuer('discover', [issuers].flat().map((issuer: unknown, i) => {
    const path = `discover.${i}`
    if (typeof issuer !== 'string' || issuer !== issuer.trim()) throw invalidOption(path, 'must be an issuer, exactly as in iss')
    providerUrl(issuer, path)
    return { issuer, at: 'discover', locate: signal => discoverKeys(issuer, signal) }
  }), settings)
}

interface Located {
  readonly issuer: string
  readonly at: string
  readonly locate: Locate
}

function byIssuer (path: string, located: readonly Located[], settings: JwksSettings): KeySource {
  if (located.length === 0) throw invalidOption(path, 'names no issuer')
  const from = JSON.stringify(located.map(({ issuer, at }) => [issuer, at]).sort())
  return keySource(from, (algorithms: readonly Algorithm[]): SourcedKeys => {
    const keys = new Map(located.map(({ issuer, locate }) => [issuer, new RemoteKeys(locate, algorithms, settings)]))
    return {
      find ({ kid, alg }, issuer) {
        const named = issuer()
        return (named === null ? undefined : keys.get(named))?.find(kid, alg) ?? null
      }
    }
  })
}

function ofOne (keys: RemoteKeys): SourcedKeys {
  return { find: ({ kid, alg }) => keys.find(kid, alg) }
}

export { introspection, type IntrospectionOptions } from './introspection.js'
export type { AssertionAlgorithm, ClientAuthentication, ClientKey } from './authorization-server.js'
export type { IntrospectionSource } from './introspector.js'
export type { KeySource } from './key-source.js'
