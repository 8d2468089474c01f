/** One document of a provider: over TLS, from where it was asked for, bounded in time and size. */
import { invalidOption } from '../errors.js'

/** As much as a provider's document may have, in bytes: hundreds of keys. */
const MAX_BYTES = 512 * 1024
const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/

/** What a provider answered that is no use, or that it did not answer. The message names no token. */
export class ProviderFailed extends Error {
  override readonly name = 'ProviderFailed'
  /** For the log, which has no messages: `STATUS_404`. */
  readonly code: string

  constructor (message: string, code = 'NO_ANSWER') {
    super(message)
    this.code = code
  }

  static status (status: number): ProviderFailed {
    return new this(`status ${status}`, `STATUS_${status}`)
  }
}

/** What it did not want to be asked. It may well answer the next question. */
export class QuestionRefused extends ProviderFailed {}

/**
 * An address of a provider.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION on what is none, or goes over the network without TLS
 */
export function providerUrl (given: unknown, path: string): URL {
  const url = typeof given === 'string' || given instanceof URL ? parse(String(given)) : null
  if (url === null) throw invalidOption(path, 'must be a URL')
  if (!isSafe(url)) throw invalidOption(path, 'must be an https URL without credentials; http is for this machine alone')
  return url
}

/** Whether what comes from there is what the provider has sent. */
export function isSafe ({ protocol, hostname, username, password }: URL): boolean {
  return (protocol === 'https:' || (protocol === 'http:' && LOOPBACK.test(hostname))) && username === '' && password === ''
}

/** As `fetch`, but with a body that is bounded and read already, and without redirects: where they lead is not who was asked. */
export async function fetchBounded (url: URL | string, init: Pick<RequestInit, 'method' | 'headers' | 'body'>, signal: AbortSignal): Promise<Response> {
  const response = await fetch(url, { ...init, redirect: 'manual', signal })
  const chunks: Uint8Array[] = []
  let length = 0
  const body: AsyncIterable<Uint8Array> | null = response.body
  for await (const chunk of body ?? []) {
    length += chunk.byteLength
    if (length > MAX_BYTES) throw new ProviderFailed('the answer is too long')
    chunks.push(chunk)
  }
  const { status, statusText } = response
  // A status like 204 may have no body at all.
  return new Response(length === 0 ? null : Buffer.concat(chunks), { status, statusText, headers: response.headers })
}

/** A JSON object. @throws ProviderFailed, and what `fetch` throws */
export async function fetchObject (url: URL, signal: AbortSignal): Promise<object> {
  const response = await fetchBounded(url, { headers: { accept: 'application/json' } }, signal)
  if (response.status !== 200) throw ProviderFailed.status(response.status)
  const value: unknown = await response.json().catch(() => null)
  if (typeof value !== 'object' || value === null) throw new ProviderFailed('the answer is no JSON object')
  return value
}

function parse (text: string): URL | null {
  try {
    return new URL(text)
  } catch {
    return null
  }
}
