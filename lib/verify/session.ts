/** A session cookie to what it proves, through one of two readers. A session is only ever read. */
import type { FastifyRequest } from 'fastify'
import type {} from '@fastify/session'
import { parseCookie } from 'cookie'
import type { SessionStore, StoredSession } from '../../types/options.js'
import { FORGED, isRefusal, type Forged, type Refusal } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import type { ParsedSessionOptions } from '../options.js'
import { checkIdentity, type CheckedIdentity } from './identity.js'
import { toSigner, type Unsigner } from './signer.js'
import { isStored, loadById, storeOf, touch, type LoadedSession } from './store.js'

/** A session that names a user. */
export interface VerifiedSession {
  readonly sessionId: string
  readonly identity: CheckedIdentity
  /** In milliseconds since the epoch; null: no end. */
  readonly expiresAt: number | null
}

interface SessionReader {
  /** Whether the request carries a session cookie at all: asked before anything is read. */
  readonly isPresented: (request: FastifyRequest) => boolean
  /** null: there is no such session. Forged: the cookie was not signed here. @throws, or rejects with, what the store throws */
  readonly load: (request: FastifyRequest) => Maybe<LoadedSession | Forged | null>
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_SESSION'
const EXPIRED: Refusal = 'FST_HYBRID_AUTH_EXPIRED_SESSION'
const MAX_COOKIE_LENGTH = 4096

export type SessionVerifier = Awaited<ReturnType<typeof createSessionVerifier>>

/** @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY where a store is given and @fastify/cookie is not installed */
export async function createSessionVerifier (options: ParsedSessionOptions, onBadIdentity: () => void) {
  const { store, secret } = options
  const reader = store !== undefined && secret !== undefined
    ? readFromStore(options, store, await toSigner(secret))
    : readFromRequest(options)

  function verify (loaded: LoadedSession | Forged | null): Maybe<VerifiedSession | Refusal | Forged> {
    return loaded === FORGED ? FORGED : identify(loaded)
  }

  function identify (loaded: LoadedSession | null): Maybe<VerifiedSession | Refusal> {
    if (loaded === null) return INVALID
    const expiresAt = expiryOf(loaded.expires)
    if (isRefusal(expiresAt)) return INVALID
    if (expiresAt !== null && expiresAt <= Date.now()) return EXPIRED
    return whenReady(adopt(options.user(loaded.session)), mapped => {
      const identity = checkIdentity(mapped)
      if (identity === null && mapped !== null && mapped !== undefined) onBadIdentity()
      return identity === null ? INVALID : { sessionId: loaded.sessionId, identity, expiresAt }
    })
  }

  return {
    isPresented: reader.isPresented,
    /** One answer for every session that does not count: @fastify/session replaces the expired ones before they are seen. */
    verifySession: (request: FastifyRequest) => whenReady(whenReady(reader.load(request), verify), outcome =>
      outcome === EXPIRED ? INVALID : outcome),
    /** The same session, read from its store now. */
    reread: (request: FastifyRequest, sessionId: string) => whenReady(loadById(storeOf(request, store), sessionId), identify),
    touch: options.touch ? async (request: FastifyRequest, sessionId: string) => touch(storeOf(request, store), sessionId) : null,
    settings: options
  }
}

/** Uses what @fastify/session loaded for the request. That there is a session proves nothing: every request gets one. */
function readFromRequest (options: ParsedSessionOptions): SessionReader {
  const { cookieName } = options
  return {
    isPresented: request => cookieOf(request, cookieName) !== undefined || restoredFor(request) !== null,
    load (request) {
      const session = restoredFor(request)
      if (session === null) return isForged(request, options) ? FORGED : null
      const { sessionId, cookie } = session
      // `expires` was moved ahead when the session was loaded, as if this request would save it.
      return { sessionId, session, expires: cookie.originalExpires ?? cookie.expires }
    }
  }
}

/** The session that the request's own cookie names, under whatever name; null for one that was made just now. */
function restoredFor (request: FastifyRequest): RestoredSession | null {
  const session: unknown = request.session
  const { cookie } = request.headers
  if (cookie === undefined || !isRestored(session)) return null
  const { encryptedSessionId } = session
  return Object.values(parseCookie(cookie)).some(value => value?.endsWith(encryptedSessionId)) ? session : null
}

/** Reads the store itself: one signature check, one `get`, and nothing at all for a request without the cookie. */
function readFromStore ({ cookieName, cookiePrefix }: ParsedSessionOptions, store: SessionStore, signer: Unsigner): SessionReader {
  return {
    isPresented: request => cookieOf(request, cookieName) !== undefined,
    load (request) {
      const cookie = cookieOf(request, cookieName)
      // Empty is what a page sets to be rid of it.
      if (cookie === undefined || cookie === '') return null
      const sessionId = idOf(cookie, cookiePrefix, signer)
      return sessionId === null ? FORGED : loadById(store, sessionId)
    }
  }
}

/** null: it was not signed here. */
function idOf (cookie: string, prefix: string, signer: Unsigner): string | null {
  if (cookie.length > MAX_COOKIE_LENGTH || !cookie.startsWith(prefix)) return null
  const { valid, value } = signer.unsign(cookie.slice(prefix.length))
  return valid && value ? value : null
}

/** Whether the cookie that led to no session was never signed by @fastify/session. What cannot be told is not held against anybody. */
function isForged (request: FastifyRequest, { cookieName, cookiePrefix }: ParsedSessionOptions): boolean {
  const cookie = cookieOf(request, cookieName)
  const signer = signerOf(request.session)
  if (cookie === undefined || cookie === '' || signer === null) return false
  // A prefix that was told to @fastify/session alone makes no forgery of what has merely ended.
  const prefixes = [cookiePrefix, cookie.slice(0, cookie.lastIndexOf(':') + 1)]
  return prefixes.every(prefix => idOf(cookie, prefix, signer) === null)
}

/** @fastify/session keeps its signer in every session, under a symbol of its own; its description is all there is to know it by. */
function signerOf (session: unknown): Unsigner | null {
  const held = Object(session) as object
  const symbol = Object.getOwnPropertySymbols(held).find(({ description }) => description === 'cookieSignerKey')
  const signer: unknown = symbol === undefined ? undefined : Reflect.get(held, symbol)
  return isUnsigner(signer) ? signer : null
}

function isUnsigner (value: unknown): value is Unsigner {
  return typeof value === 'object' && value !== null && 'unsign' in value && typeof value.unsign === 'function'
}

function cookieOf (request: FastifyRequest, name: string): string | undefined {
  const { cookie } = request.headers
  if (!cookie?.includes(name)) return undefined
  const cookies = parseCookie(cookie)
  return Object.hasOwn(cookies, name) ? cookies[name] : undefined
}

type RestoredSession = StoredSession & {
  sessionId: string
  encryptedSessionId: string
  cookie: { expires?: unknown, originalExpires?: unknown }
}

function isRestored (session: unknown): session is RestoredSession {
  return isStored(session) && 'sessionId' in session && typeof session.sessionId === 'string' &&
    'encryptedSessionId' in session && typeof session.encryptedSessionId === 'string'
}

/** Stores keep a Date, its JSON text, or milliseconds. Anything else is no time that could be trusted. */
function expiryOf (expires: unknown): number | null | Refusal {
  if (expires === undefined || expires === null) return null
  if (!(expires instanceof Date || typeof expires === 'string' || typeof expires === 'number')) return INVALID
  const time = new Date(expires).getTime()
  return Number.isNaN(time) ? INVALID : time
}
