/** A session that is destroyed takes its sockets along, on every node, without a line of the application. */
import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/session'
import type { SessionStore } from '../../types/options.js'
import { settleWithin } from '../deadline.js'
import { invalidOption } from '../errors.js'
import { attempt } from '../maybe.js'
import type { ParsedSessionOptions } from '../options.js'
import { holds, isStore } from './store.js'

export interface LogoutWatch {
  /** A session was destroyed or regenerated. Does not reject. */
  logOut (sessionId: string): Promise<void>
  isLoggedOut (sessionId: string): boolean
  hasSockets (sessionId: string): boolean
  /** Told of the logouts of other nodes. */
  readonly onLogout: Set<(sessionId: string) => void>
}

type Method = (this: unknown, sessionId: string, ...rest: unknown[]) => unknown

const WATCHED = Symbol.for('fastify-hybrid-auth.watched')
interface Watched { [WATCHED]?: Watch }

interface Watch {
  readonly watches: Set<LogoutWatch>
  /** Another node was told of a logout. */
  readonly onLogout: (sessionId: string) => void
}

/** Sessions whose last saving is remembered. */
const MAX_SAVED = 10_000
/** A store that does not say whether it has a session has had its time after so many milliseconds. */
const PATIENCE = 1000

/**
 * Watches the store that is given, or the one that @fastify/session brings along with the first request.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION for a store that nothing can be put in front of
 */
export function watchLogouts (app: FastifyInstance, session: ParsedSessionOptions | undefined, watch: LogoutWatch): void {
  if (session === undefined) return
  const { store } = session
  if (store !== undefined) {
    if (!Object.isExtensible(store)) throw invalidOption('session.store', 'must not be frozen: logouts are told by it')
    watchStore(store, watch)
    app.addHook('onClose', async () => { forget(store, watch) })
    return
  }
  let seen: SessionStore | null = null
  app.addHook('onRequest', function watchLogout (request, _reply, done) {
    if (request.sessionStore !== seen && isStore(request.sessionStore)) {
      seen = request.sessionStore
      if (Object.isExtensible(seen)) watchStore(seen, watch)
      else app.log.warn('the session store is frozen: a logout closes sockets only when their sessions are read again')
    }
    done()
  })
  app.addHook('onClose', async () => { if (seen !== null) forget(seen, watch) })
}

/** The store may live longer than this application. */
function forget (store: SessionStore & Watched, watch: LogoutWatch): void {
  store[WATCHED]?.watches.delete(watch)
}

/**
 * Stands in front of the store's own `destroy`, `set` and `touch`, once per store however many registrations watch it.
 * What the store does, and what it answers, stays its own.
 */
function watchStore (store: SessionStore & Watched, watch: LogoutWatch): void {
  const { watches, onLogout } = store[WATCHED] ?? stand(store)
  watches.add(watch)
  watch.onLogout.add(onLogout)
}

function stand (store: SessionStore & Watched): Watch {
  const watches = new Set<LogoutWatch>()
  const saved = new Set<string>()
  const destroyAgain = methodOf(store, 'destroy')
  // A request that was under way here, before the logout on another node was known, may have brought it back to life.
  const onLogout = (sessionId: string) => { if (saved.delete(sessionId)) quietly(destroyAgain, store, sessionId) }
  const watch = { watches, onLogout }
  Object.defineProperty(store, WATCHED, { value: watch })

  wrap(store, 'destroy', (destroy, sessionId, rest) => {
    tellOf(store, sessionId, watches)
    return Reflect.apply(destroy, store, [sessionId, ...rest])
  })
  for (const name of ['set', 'touch']) {
    wrap(store, name, (write, sessionId, rest) => {
      // …and so would one that is under way while it is.
      if ([...watches].some(one => one.isLoggedOut(sessionId))) return callbackOf(rest)?.()
      remember(saved, sessionId)
      return Reflect.apply(write, store, [sessionId, ...rest])
    })
  }
  return watch
}

/**
 * Before the store has answered: whoever logs out means it, also when the store is down. A session that never was in the
 * store, as everybody without a cookie is given, is nobody's: only then nothing is told.
 */
function tellOf (store: SessionStore, sessionId: unknown, watches: ReadonlySet<LogoutWatch>): void {
  // Whatever the application gives its store: what is no text is no session's id.
  if (typeof sessionId !== 'string') return
  const told = [...watches]
  const tell = () => { for (const one of told) one.logOut(sessionId).catch(() => {}) }
  if (told.some(one => one.hasSockets(sessionId))) {
    tell()
    return
  }
  settleWithin(attempt(() => holds(store, sessionId), () => true), PATIENCE, true, isThere => { if (isThere) tell() })
}

function remember (saved: Set<string>, sessionId: string): void {
  saved.delete(sessionId)
  saved.add(sessionId)
  const [oldest] = saved
  if (saved.size > MAX_SAVED && oldest !== undefined) saved.delete(oldest)
}

function quietly (destroy: Method | null, store: SessionStore, sessionId: string): void {
  attempt(() => {
    const answer = destroy === null ? undefined : Reflect.apply(destroy, store, [sessionId, () => {}])
    return answer instanceof Promise ? answer.catch(() => {}) : undefined
  }, () => {})
}

function wrap (store: object, name: string, run: (original: Method, sessionId: string, rest: unknown[]) => unknown): void {
  const original = methodOf(store, name)
  if (original === null) return
  const value = (sessionId: string, ...rest: unknown[]) => run(original, sessionId, rest)
  Object.defineProperty(store, name, { value, configurable: true, writable: true })
}

function methodOf (store: object, name: string): Method | null {
  const found: unknown = Reflect.get(store, name)
  return isMethod(found) ? found : null
}

function callbackOf (rest: unknown[]): (() => unknown) | undefined {
  return rest.find((one): one is () => unknown => typeof one === 'function')
}

function isMethod (value: unknown): value is Method {
  return typeof value === 'function'
}
