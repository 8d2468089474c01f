/** The option `introspection`: which server is asked about opaque tokens, as whom, and how often. */
import { KeyObject } from 'node:crypto'
import * as v from 'valibot'
import type { JwtOptions } from '../../types/options.js'
import { invalidOption } from '../errors.js'
import { DAY, fn, oneOf, oneOrMore, parse, text, within } from '../schema.js'
import { byKey, bySecret, introspect, type AssertionAlgorithm, type ClientAuthentication, type ClientKey } from './authorization-server.js'
import { providerUrl } from './fetch.js'
import { introspectionSource, type IntrospectionSource } from './introspector.js'
import { KeyRefused } from './keys.js'
import { RemoteTokens } from './remote-tokens.js'

export interface IntrospectionOptions {
  /** The introspection endpoint; https, or http for this machine alone. */
  endpoint: string | URL
  clientId: string
  /** For `client_secret_basic` and `client_secret_post`. */
  clientSecret?: string | undefined
  /** For `private_key_jwt`. */
  clientKey?: ClientKey | undefined
  /** @default 'private_key_jwt' with a `clientKey`, else 'client_secret_basic' */
  clientAuthentication?: ClientAuthentication | undefined
  /** The exact `iss` that an answer must have, or a list of them; the first is the audience of `private_key_jwt`. @default not checked */
  issuer?: string | readonly string[] | undefined
  /** The exact `aud`, or a list of which an answer must name one. @default not checked */
  audience?: string | readonly string[] | undefined
  /** How far the clocks may differ, in seconds, 0 to 300. @default 0 */
  clockTolerance?: number | undefined
  /** Who an answer describes. null refuses the token. @default as `jwt.user`: `sub`, and `scope` as permissions */
  user?: JwtOptions['user']
  /** How long a good answer is remembered, in milliseconds, and never past its `exp`. @default 30000 */
  maxAge?: number | undefined
  /** How long any other answer is, in milliseconds. @default 5000 */
  negativeMaxAge?: number | undefined
  /** How long an answer is waited for, in milliseconds. @default 5000 */
  timeout?: number | undefined
  /** In characters. A longer token is refused unasked. @default 4096 */
  maxTokenLength?: number | undefined
  /** How often the token of an open socket is asked about again, in milliseconds. @default 30000 */
  revalidate?: number | undefined
  /** How many tokens of open sockets are asked about in a second. With more of them than that, it takes longer. @default 50 */
  requestsPerSecond?: number | undefined
  /**
   * What happens to open sockets while the server does not answer: they are served until `maxStale`, or closed with 4012 at
   * once. A new socket is refused, unless its token is remembered. @default 'serve'
   */
  onProviderError?: 'serve' | 'close' | undefined
  /** How long a socket is served after the last good answer, in milliseconds. @default 300000 */
  maxStale?: number | undefined
}

const SIGNING = ['RS256', 'PS256', 'ES256', 'ES384', 'ES512'] as const satisfies readonly AssertionAlgorithm[]
const WAYS = ['client_secret_basic', 'client_secret_post', 'private_key_jwt'] as const satisfies readonly ClientAuthentication[]

const clientKey = v.strictObject({
  key: v.custom<ClientKey['key']>(given => typeof given === 'string' || Buffer.isBuffer(given) || given instanceof KeyObject, 'must be a private key'),
  kid: v.optional(text('a key id')),
  algorithm: oneOf(SIGNING)
})

const schema = v.pipe(
  v.strictObject({
    endpoint: v.custom<string | URL>(given => given !== undefined, 'is required'),
    clientId: text('a client id'),
    clientSecret: v.optional(text('a secret')),
    clientKey: v.optional(clientKey),
    clientAuthentication: v.optional(oneOf(WAYS)),
    issuer: v.optional(oneOrMore),
    audience: v.optional(oneOrMore),
    clockTolerance: v.optional(within(0, 300, 'seconds'), 0),
    user: v.optional(fn<NonNullable<JwtOptions['user']>>()),
    maxAge: v.optional(within(0, DAY, 'milliseconds'), 30_000),
    negativeMaxAge: v.optional(within(0, 600_000, 'milliseconds'), 5000),
    timeout: v.optional(within(50, 60_000, 'milliseconds'), 5000),
    maxTokenLength: v.optional(within(1, 65_536, 'characters'), 4096),
    revalidate: v.optional(within(100, DAY, 'milliseconds'), 30_000),
    requestsPerSecond: v.optional(within(1, 1e5, 'requests'), 50),
    onProviderError: v.optional(oneOf(['serve', 'close']), 'serve'),
    maxStale: v.optional(within(0, DAY, 'milliseconds'), 300_000)
  }, 'must be an object'),
  v.transform(({ clientAuthentication, ...given }) =>
    ({ ...given, clientAuthentication: clientAuthentication ?? (given.clientKey === undefined ? 'client_secret_basic' : 'private_key_jwt') })),
  v.forward(v.check(given => given.clientAuthentication === 'private_key_jwt' || given.clientSecret !== undefined, 'is required'), ['clientSecret']),
  v.forward(v.check(given => given.clientAuthentication !== 'private_key_jwt' || given.clientKey !== undefined, 'is required with private_key_jwt'), ['clientKey']),
  v.forward(v.check(given => given.clientSecret === undefined || given.clientKey === undefined, 'does not go with clientSecret'), ['clientKey']),
  v.forward(v.check(given => given.clientAuthentication !== 'private_key_jwt' || given.issuer !== undefined, 'is required with private_key_jwt: assertions are made out to it'), ['issuer']))

/**
 * Asks the authorization server about tokens that are no JWTs, or about every token where there is no option `jwt`, for the
 * option `introspection`.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION
 */
export function introspection (options: IntrospectionOptions): IntrospectionSource {
  const settings = parse(schema, options, 'introspection')
  const { clientId, issuer, audience, revalidate, onProviderError, maxStale, requestsPerSecond } = settings
  const endpoint = providerUrl(settings.endpoint, 'introspection.endpoint')
  const server = { endpoint, issuer: issuer?.[0] ?? endpoint.origin, clientId, authenticate: authenticationOf(settings) }
  const from = JSON.stringify([endpoint.href, clientId, issuer, audience])
  return introspectionSource(from, { revalidate, onProviderError, maxStale, requestsPerSecond }, parts =>
    new RemoteTokens((token, signal) => introspect(server, token, signal), settings, parts))
}

function authenticationOf ({ clientAuthentication, clientSecret = '', clientKey: given }: v.InferOutput<typeof schema>) {
  try {
    return given === undefined ? bySecret(clientAuthentication, clientSecret) : byKey(given)
  } catch (error) {
    throw invalidOption('introspection.clientKey.key', error instanceof KeyRefused ? error.message : 'is no private key')
  }
}
