/** A session that is destroyed takes its sockets along, on every node, without a line of the application. */
import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/session'
import type { SessionStore } from '../../types/options.js'
import { settledWithin } from '../deadline.js'
import { invalidOption } from '../errors.js'
import { attempt } from '../maybe.js'
import type { ParsedSessionOptions } from '../options.js'
import { holds, isStore, isStored } from './store.js'

export interface LogoutWatch {
  /** A session was destroyed or regenerated. Does not reject. */
  logOut (sessionId: string): Promise<void>
  isLoggedOut (sessionId: string): boolean
  hasSockets (sessionId: string): boolean
  /** Told of the logouts of other nodes. */
  readonly onLogout: Set<(sessionId: string) => void>
}

type Method = (this: unknown, sessionId: string, ...rest: unknown[]) => unknown

type Run = (original: Method, sessionId: string, rest: unknown[]) => unknown

const MEMBERS = ['get', 'set', 'touch', 'destroy'] as const
type Member = typeof MEMBERS[number]

const WATCHED = Symbol.for('fastify-hybrid-auth.watched')
interface Watched { [WATCHED]?: Watch }

interface Watch {
  readonly watches: Set<LogoutWatch>
  /** Another node was told of a logout. */
  readonly onLogout: (sessionId: string) => void
}

/** Sessions that are remembered to be in the store. */
const MAX_THERE = 10_000
/** A store that does not say whether it has a session has had its time after so many milliseconds. */
const PATIENCE = 1000

/**
 * Watches the store that is given, or the one that @fastify/session brings along with the first request.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION for a store that nothing can be put in front of
 */
export function watchLogouts (app: FastifyInstance, session: ParsedSessionOptions | undefined, watch: LogoutWatch): void {
  if (session === undefined) return
  const { store } = session
  const seen = new Set<SessionStore>()
  app.addHook('onClose', async () => { for (const one of seen) forget(one, watch) })
  if (store !== undefined) {
    seen.add(store)
    if (!watchStore(store, watch)) throw invalidOption('session.store', 'must not be frozen: its members tell of logouts')
    return
  }
  app.addHook('onRequest', function watchLogout (request, _reply, done) {
    const { sessionStore } = request
    if (!seen.has(sessionStore) && isStore(sessionStore)) {
      seen.add(sessionStore)
      if (!watchStore(sessionStore, watch)) app.log.warn('the session store is frozen: a logout closes sockets only when their sessions are read again')
    }
    done()
  })
}

/** The store may live longer than this application. */
function forget (store: SessionStore & Watched, watch: LogoutWatch): void {
  store[WATCHED]?.watches.delete(watch)
}

/** false: nothing can be put in front of this store. */
function watchStore (store: SessionStore & Watched, watch: LogoutWatch): boolean {
  const known = store[WATCHED] ?? stand(store)
  if (known === null) return false
  known.watches.add(watch)
  watch.onLogout.add(known.onLogout)
  return true
}

/**
 * Stands in front of the store's own members, once per store however many registrations watch it. What the store does,
 * and what it answers, stays its own.
 */
function stand (store: SessionStore): Watch | null {
  if (!isReplaceable(store)) return null
  const watches = new Set<LogoutWatch>()
  // Sessions that were in the store not long ago: found, or saved.
  const there = new Set<string>()
  const original = Object.fromEntries(MEMBERS.map(name => [name, methodOf(store, name)]))
  const isGone = (sessionId: string) => [...watches].some(one => one.isLoggedOut(sessionId))
  const tell = (sessionId: string) => {
    there.delete(sessionId)
    for (const one of watches) one.logOut(sessionId).catch(() => {})
  }

  const members: Record<Member, Run> = {
    get: (get, sessionId, rest) => Reflect.apply(get, store, [sessionId, ...rest.map(one => isCallback(one)
      ? (error: unknown, session: unknown) => {
          if (isStored(session)) remember(there, sessionId)
          one(error, session)
        }
      : one)]),
    set: (set, sessionId, rest) => {
      // A request that is under way while its session is destroyed would bring it back to life.
      if (isGone(sessionId)) return rest.find(isCallback)?.()
      remember(there, sessionId)
      return Reflect.apply(set, store, [sessionId, ...rest])
    },
    touch: (touch, sessionId, rest) => isGone(sessionId) ? rest.find(isCallback)?.() : Reflect.apply(touch, store, [sessionId, ...rest]),
    destroy: (destroy, sessionId, rest) => {
      const run = (): unknown => Reflect.apply(destroy, store, [sessionId, ...rest])
      // Whatever the application gives its store: what is no text is no session's id.
      if (typeof sessionId !== 'string') return run()
      // Whoever logs out means it, also when the store is down: the others are told before it is asked.
      if (there.has(sessionId) || [...watches].some(one => one.hasSockets(sessionId))) {
        tell(sessionId)
        return run()
      }
      // One that never was in the store, as everybody without a cookie is given, is nobody's.
      const found = attempt(() => holds(store, sessionId), () => true)
      if (!(found instanceof Promise)) {
        if (found) tell(sessionId)
        return run()
      }
      return settledWithin(found, PATIENCE, true).then(isThere => {
        if (isThere) tell(sessionId)
        return attempt(run, error => {
          // What the store throws would find nobody to catch it by now.
          const callback = rest.find(isCallback)
          if (callback === undefined) throw error
          callback(error)
        })
      })
    }
  }
  // One that was saved here before the logout on another node was known is destroyed once more.
  const onLogout = (sessionId: string) => {
    if (there.delete(sessionId) && original.destroy != null) quietly(original.destroy, store, sessionId)
  }
  const watch = { watches, onLogout }
  for (const name of MEMBERS) {
    const method = original[name]
    if (method == null) continue
    const value = (sessionId: string, ...rest: unknown[]): unknown => members[name](method, sessionId, rest)
    Object.defineProperty(store, name, { value, configurable: true, writable: true })
  }
  Object.defineProperty(store, WATCHED, { value: watch })
  return watch
}

function isReplaceable (store: object): boolean {
  return Object.isExtensible(store) && MEMBERS.every(name => Object.getOwnPropertyDescriptor(store, name)?.configurable !== false)
}

function remember (there: Set<string>, sessionId: string): void {
  there.delete(sessionId)
  there.add(sessionId)
  const [oldest] = there
  if (there.size > MAX_THERE && oldest !== undefined) there.delete(oldest)
}

function quietly (destroy: Method, store: SessionStore, sessionId: string): void {
  attempt(async () => Reflect.apply(destroy, store, [sessionId, () => {}]), () => {})
}

function methodOf (store: object, name: string): Method | null {
  const found: unknown = Reflect.get(store, name)
  return isMethod(found) ? found : null
}

function isMethod (value: unknown): value is Method {
  return typeof value === 'function'
}

function isCallback (value: unknown): value is (...answer: unknown[]) => unknown {
  return typeof value === 'function'
}
