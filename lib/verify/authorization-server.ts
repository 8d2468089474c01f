/** An authorization server, asked about a token (RFC 7662) by a client that authenticates as it was registered. */
import { createPrivateKey, createPublicKey, KeyObject, webcrypto } from 'node:crypto'
import {
  allowInsecureRequests, ClientSecretBasic, ClientSecretPost, customFetch, introspectionRequest, PrivateKeyJwt,
  processIntrospectionResponse, type ClientAuth
} from 'oauth4webapi'
import { fetchBounded, ProviderFailed, QuestionRefused } from './fetch.js'
import { importKey } from './keys.js'

/** How the client authenticates, as the registries of RFC 7591 §2 and OpenID Connect call it. */
export type ClientAuthentication = 'client_secret_basic' | 'client_secret_post' | 'private_key_jwt'

export type AssertionAlgorithm = 'RS256' | 'PS256' | 'ES256' | 'ES384' | 'ES512'

/** What a client signs its assertions with. */
export interface ClientKey {
  /** PEM, or what `crypto` makes. */
  key: string | Buffer | KeyObject
  /** As registered at the server. */
  kid?: string | undefined
  algorithm: AssertionAlgorithm
}

export interface AuthorizationServer {
  readonly endpoint: URL
  /** The audience of assertions. */
  readonly issuer: string
  readonly clientId: string
  readonly authenticate: ClientAuth
}

const JSON_TYPE = /^application\/json\s*(?:;|$)/i
/** Whatever the question: the client may not ask, or not now. */
const REFUSES_ANYBODY = new Set([401, 429])

/** What the server says of a token. null: it is not active. Rejects where it does not answer, or with no answer at all. */
export async function introspect ({ endpoint, issuer, clientId, authenticate }: AuthorizationServer, token: string, signal: AbortSignal): Promise<object | null> {
  const server = { issuer, introspection_endpoint: endpoint.href }
  const client = { client_id: clientId }
  const response = await introspectionRequest(server, client, authenticate, token, {
    [customFetch]: (url, { method, headers, body }) => fetchBounded(url, { method, headers, body }, signal),
    // That it is on this machine, if so, was checked with the options.
    [allowInsecureRequests]: true,
    additionalParameters: { token_type_hint: 'access_token' }
  })
  const { status } = response
  // Of what could not be one of its tokens some say so in place of `active` (RFC 7009 §2.2.1).
  if (status === 400 && await errorIn(response.clone()) === 'unsupported_token_type') return null
  if (status >= 400 && status < 500 && !REFUSES_ANYBODY.has(status)) throw QuestionRefused.status(status)
  if (status === 200) {
    if (!JSON_TYPE.test(response.headers.get('content-type') ?? '')) throw new ProviderFailed('the answer does not call itself JSON')
    // It has answered, and not said that the token is good.
    if (await isVague(response.clone())) return null
  }
  if (status !== 200 && status !== 401) throw ProviderFailed.status(status)
  const answer = await processIntrospectionResponse(server, client, response)
  return answer.active ? answer : null
}

export function bySecret (authentication: ClientAuthentication, secret: string): ClientAuth {
  return authentication === 'client_secret_post' ? ClientSecretPost(secret) : ClientSecretBasic(secret)
}

/** @throws KeyRefused, and what `crypto` throws on a key that is none */
export function byKey ({ key, kid, algorithm }: ClientKey): ClientAuth {
  const secret = key instanceof KeyObject ? key : createPrivateKey(key)
  // What its public half is not good for, it is not either.
  importKey(createPublicKey(secret), [algorithm], true)
  const bytes = secret.export({ type: 'pkcs8', format: 'der' })
  return async (server, client, body, headers) => {
    const imported = await webcrypto.subtle.importKey('pkcs8', bytes, PARAMETERS[algorithm], false, ['sign'])
    await PrivateKeyJwt({ key: imported, ...(kid !== undefined && { kid }) })(server, client, body, headers)
  }
}

const PARAMETERS = {
  RS256: { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' },
  PS256: { name: 'RSA-PSS', hash: 'SHA-256' },
  ES256: { name: 'ECDSA', namedCurve: 'P-256' },
  ES384: { name: 'ECDSA', namedCurve: 'P-384' },
  ES512: { name: 'ECDSA', namedCurve: 'P-521' }
} as const satisfies Record<AssertionAlgorithm, object>

/** A JSON object in which `active` is neither true nor false. */
async function isVague (response: Response): Promise<boolean> {
  const body = await objectIn(response)
  return body !== null && !('active' in body && typeof body.active === 'boolean')
}

async function errorIn (response: Response): Promise<unknown> {
  const body = await objectIn(response)
  return body !== null && 'error' in body ? body.error : null
}

async function objectIn (response: Response): Promise<object | null> {
  const body: unknown = await response.json().catch(() => null)
  return typeof body === 'object' && body !== null && !Array.isArray(body) ? body : null
}
