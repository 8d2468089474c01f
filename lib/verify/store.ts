/** A session store of the express-session kind: read, and extended if asked for. What a logout means for it is in logout.ts. */
import type { FastifyRequest } from 'fastify'
import type {} from '@fastify/session'
import type { SessionStore, StoredSession } from '../../types/options.js'
import { authError } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'

/** What a store gave. */
export interface LoadedSession {
  readonly sessionId: string
  readonly session: StoredSession
  /** As the cookie of the stored session has it, whatever its type. */
  readonly expires: unknown
}

/** @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY where @fastify/session is gone from the request */
export function storeOf (request: FastifyRequest, store: SessionStore | undefined): SessionStore {
  const found: unknown = store ?? request.sessionStore
  if (isStore(found)) return found
  throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session needs the store of @fastify/session, or session.store')
}

export function isStore (value: unknown): value is SessionStore {
  return isObject(value) && 'get' in value && typeof value.get === 'function'
}

export function loadById (store: SessionStore, sessionId: string): Maybe<LoadedSession | null> {
  return whenReady(readStore(store, sessionId), session =>
    isStored(session) ? { sessionId, session, expires: session.cookie.expires } : null)
}

/** Whether there is such a session. @throws, or rejects with, what the store throws */
export function holds (store: SessionStore, sessionId: string): Maybe<boolean> {
  return whenReady(readStore(store, sessionId), isStored)
}

/**
 * When the session now ends; null for one that does not roll.
 * @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY for a store that cannot extend
 */
export async function touch (store: SessionStore, sessionId: string): Promise<number | null> {
  const extend = store.touch?.bind(store)
  if (extend === undefined) throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session.touch needs a store with a touch(sessionId, session, callback) method')
  const session = await readStore(store, sessionId)
  if (!isStored(session) || typeof session.cookie.originalMaxAge !== 'number') return null
  const expires = new Date(Date.now() + session.cookie.originalMaxAge)
  const extended = { ...session, cookie: { ...plainCookie(session.cookie), expires } }
  await new Promise<void>((resolve, reject) => {
    extend(sessionId, extended, error => {
      if (error === undefined || error === null) resolve()
      else reject(error instanceof Error ? error : new StoreFailed())
    })
  })
  return expires.getTime()
}

/** As it is stored: the cookie of @fastify/session keeps its members behind accessors. */
function plainCookie (cookie: object): object {
  return 'toJSON' in cookie && typeof cookie.toJSON === 'function' ? Reflect.apply(cookie.toJSON, cookie, []) as object : cookie
}

/** Memory stores answer at once and stay synchronous; the others get a promise. */
function readStore (store: SessionStore, sessionId: string): Maybe<unknown> {
  const read = new StoreRead()
  const returned = store.get(sessionId, (error, session) => { read.answer(error, session) })
  // An asynchronous store may reject instead of calling back.
  if (returned instanceof Promise) returned.catch((error: unknown) => { read.answer(error, undefined) })
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

export function isStored (session: unknown): session is StoredSession & { cookie: { expires?: unknown, originalMaxAge?: unknown } } {
  return isObject(session) && 'cookie' in session && isObject(session.cookie)
}

function isObject (value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
