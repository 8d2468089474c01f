/** A session that is destroyed takes its sockets along, on every node, without a line of the application. */
import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/session'
import type { SessionStore } from '../../types/options.js'
import type { ParsedSessionOptions } from '../options.js'
import { isStore } from './store.js'

const WATCHED = Symbol.for('fastify-hybrid-auth.watched')

export interface LogoutWatch {
  /** A session was destroyed or regenerated. Resolves when the other nodes can know. Never rejects. */
  logOut (sessionId: string): Promise<void>
  isLoggedOut (sessionId: string): boolean
}

type Callback = (error?: unknown, ...rest: unknown[]) => void
type Method = (this: unknown, sessionId: string, ...rest: unknown[]) => unknown
interface Watched { [WATCHED]?: Set<LogoutWatch> }

/** Watches the store that is given, or the one that @fastify/session brings along with the first request. */
export function watchLogouts (app: FastifyInstance, session: ParsedSessionOptions | undefined, watch: LogoutWatch): void {
  if (session === undefined) return
  const { store } = session
  if (store !== undefined) {
    watchStore(store, watch)
    app.addHook('onClose', async () => { forget(store, watch) })
    return
  }
  let seen: SessionStore | null = null
  app.addHook('onRequest', function watchLogout (request, _reply, done) {
    if (request.sessionStore !== seen && isStore(request.sessionStore)) {
      seen = request.sessionStore
      watchStore(seen, watch)
    }
    done()
  })
  app.addHook('onClose', async () => { if (seen !== null) forget(seen, watch) })
}

/** The store may live longer than this application. */
function forget (store: SessionStore & Watched, watch: LogoutWatch): void {
  store[WATCHED]?.delete(watch)
}

/**
 * Stands in front of the store's own `destroy` and `set`, once per store however many registrations watch it. What the
 * store does, and what it answers, stays its own.
 */
function watchStore (store: SessionStore & Watched, watch: LogoutWatch): void {
  const known = store[WATCHED]
  if (known !== undefined) {
    known.add(watch)
    return
  }
  const watches = new Set([watch])
  Object.defineProperty(store, WATCHED, { value: watches })

  wrap(store, 'destroy', (destroy, sessionId, rest) => {
    // Before the store has answered: whoever logs out means it, also when the store is down.
    const told = Promise.all([...watches].map(async one => one.logOut(sessionId)))
    return Reflect.apply(destroy, store, [sessionId, ...rest.map(one => typeof one === 'function' ? after(told, one as Callback) : one)])
  })
  wrap(store, 'set', (set, sessionId, rest) => {
    // A request that was under way during the logout would bring the session back to life.
    const isGone = [...watches].some(one => one.isLoggedOut(sessionId))
    if (!isGone) return Reflect.apply(set, store, [sessionId, ...rest])
    const callback = rest.find(one => typeof one === 'function') as Callback | undefined
    return callback?.()
  })
}

function wrap (store: object, name: string, run: (original: Method, sessionId: string, rest: unknown[]) => unknown): void {
  const original: unknown = Reflect.get(store, name)
  if (!isMethod(original)) return
  const value = (sessionId: string, ...rest: unknown[]) => run(original, sessionId, rest)
  Object.defineProperty(store, name, { value, configurable: true, writable: true })
}

function isMethod (value: unknown): value is Method {
  return typeof value === 'function'
}

/** Calls back once the others were told as well. */
function after (told: Promise<unknown>, callback: Callback): Callback {
  return (...answer) => { told.then(() => { callback(...answer) }, () => { callback(...answer) }) }
}
