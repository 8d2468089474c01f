/** A session cookie to what it proves, through one of two readers. A session is only ever read. */
import type { FastifyRequest } from 'fastify'
import type {} from '@fastify/session'
import { parseCookie } from 'cookie'
import type { CookieSigner, SessionStore, StoredSession } from '../../types/options.js'
import { authError, isRefusal, type Refusal } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import type { ParsedSessionOptions } from '../options.js'
import { checkIdentity, type CheckedIdentity } from './identity.js'

/** A session that names a user. */
export interface VerifiedSession {
  readonly sessionId: string
  readonly identity: CheckedIdentity
  /** In milliseconds since the epoch; null: no end. */
  readonly expiresAt: number | null
}

interface LoadedSession {
  readonly sessionId: string
  readonly session: StoredSession
  /** As the cookie of the stored session has it, whatever its type. */
  readonly expires: unknown
}

interface SessionReader {
  /** Whether the request carries a session cookie at all: asked before anything is read. */
  readonly isPresented: (request: FastifyRequest) => boolean
  /** null: there is no such session. @throws, or rejects with, what the store throws */
  readonly load: (request: FastifyRequest) => Maybe<LoadedSession | null>
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_SESSION'
const MAX_COOKIE_LENGTH = 4096

export type SessionVerifier = Awaited<ReturnType<typeof createSessionVerifier>>

/** @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY where a store is given and @fastify/cookie is not installed */
export async function createSessionVerifier (options: ParsedSessionOptions) {
  const { store, secret } = options
  const reader = store !== undefined && secret !== undefined
    ? readFromStore(options, store, await toSigner(secret))
    : readFromRequest()

  function verifySession (request: FastifyRequest): Maybe<VerifiedSession | Refusal> {
    return whenReady(reader.load(request), loaded => {
      if (loaded === null) return INVALID
      const expiresAt = expiryOf(loaded.expires)
      if (isRefusal(expiresAt) || (expiresAt !== null && expiresAt <= Date.now())) return INVALID
      return whenReady(adopt(options.user(loaded.session)), mapped => {
        const identity = checkIdentity(mapped)
        return identity === null ? INVALID : { sessionId: loaded.sessionId, identity, expiresAt }
      })
    })
  }

  return { isPresented: reader.isPresented, verifySession }
}

/** Uses what @fastify/session made of the request. That it made something proves nothing: it always does. */
function readFromRequest (): SessionReader {
  return {
    isPresented: request => request.headers.cookie !== undefined,
    load (request) {
      const session: unknown = request.session
      if (!isLoaded(session)) return null
      const { sessionId, cookie } = session
      // `expires` was moved ahead when the session was loaded, as if this request would save it.
      return { sessionId, session, expires: cookie.originalExpires ?? cookie.expires }
    }
  }
}

/** Reads the store itself: one signature check, one `get`, and nothing at all for a request without the cookie. */
function readFromStore ({ cookieName, cookiePrefix }: ParsedSessionOptions, store: SessionStore, signer: CookieSigner): SessionReader {
  return {
    isPresented: request => cookieOf(request, cookieName) !== undefined,
    load (request) {
      const cookie = cookieOf(request, cookieName)
      if (cookie === undefined || cookie.length > MAX_COOKIE_LENGTH || !cookie.startsWith(cookiePrefix)) return null
      const { valid, value: sessionId } = signer.unsign(cookie.slice(cookiePrefix.length))
      if (!valid || !sessionId) return null
      return whenReady(readStore(store, sessionId), session => {
        if (!isStored(session)) return null
        return { sessionId, session, expires: session.cookie.expires }
      })
    }
  }
}

/** Memory stores answer at once and stay synchronous; the others get a promise. */
function readStore (store: SessionStore, sessionId: string): Maybe<unknown> {
  const read = new StoreRead()
  store.get(sessionId, (error, session) => { read.answer(error, session) })
  return read.result()
}

/** A store's error need not be one. */
class StoreFailed extends Error {}

/** The first answer of a store counts. */
class StoreRead {
  #answer: { error: unknown, session: unknown } | null = null
  #settle: (() => void) | null = null

  answer (error: unknown, session: unknown): void {
    this.#answer ??= { error: isMissing(error) ? null : error, session }
    this.#settle?.()
  }

  result (): Maybe<unknown> {
    if (this.#answer !== null) return this.#read(this.#answer)
    return new Promise<void>(resolve => { this.#settle = resolve }).then(() => this.result())
  }

  #read ({ error, session }: { error: unknown, session: unknown }): unknown {
    if (error !== null && error !== undefined) throw error instanceof Error ? error : new StoreFailed()
    return session
  }
}

/** File stores say so when a session does not exist. */
function isMissing (error: unknown): boolean {
  return isObject(error) && 'code' in error && error.code === 'ENOENT'
}

function cookieOf (request: FastifyRequest, name: string): string | undefined {
  const { cookie } = request.headers
  if (!cookie?.includes(name)) return undefined
  const cookies = parseCookie(cookie)
  return Object.hasOwn(cookies, name) ? cookies[name] : undefined
}

function isStored (session: unknown): session is StoredSession & { cookie: { expires?: unknown } } {
  return isObject(session) && 'cookie' in session && isObject(session.cookie)
}

function isLoaded (session: unknown): session is StoredSession & { sessionId: string, cookie: { expires?: unknown, originalExpires?: unknown } } {
  return isStored(session) && 'sessionId' in session && typeof session.sessionId === 'string'
}

/** Stores keep a Date, its JSON text, or milliseconds. Anything else is no time that could be trusted. */
function expiryOf (expires: unknown): number | null | Refusal {
  if (expires === undefined || expires === null) return null
  if (!(expires instanceof Date || typeof expires === 'string' || typeof expires === 'number')) return INVALID
  const time = new Date(expires).getTime()
  return Number.isNaN(time) ? INVALID : time
}

async function toSigner (secret: NonNullable<ParsedSessionOptions['secret']>): Promise<CookieSigner> {
  if (isSigner(secret)) return secret
  const { Signer } = await import('@fastify/cookie').catch(() => {
    throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session.store needs the package @fastify/cookie')
  })
  return new Signer([secret].flat().map(one => Buffer.from(one)))
}

function isSigner (secret: NonNullable<ParsedSessionOptions['secret']>): secret is CookieSigner {
  return typeof secret === 'object' && 'unsign' in secret
}

function isObject (value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
