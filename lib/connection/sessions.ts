/** Sessions of open sockets, read again from their store: one read a session, however many sockets it has. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import { settledWithin } from '../deadline.js'
import { isRefusal, type Refusal } from '../errors.js'
import { unawaited } from '../maybe.js'
import { sessionContext } from '../verify/context.js'
import type { VerifiedSession } from '../verify/session.js'
import { now } from './clock.js'
import { closeConnection } from './closing.js'
import type { GuardedConnection } from './connection.js'
import type { LiveSessions, Settings } from './hub.js'
import { permissionUpdate, whenCurrent } from './permissions.js'
import type { Registry } from './registry.js'
import { isOver } from './lifecycle.js'
import { hasSameIdentity, replaceContext, withGranted } from './reauth.js'

export interface SessionWatchSettings {
  /** In milliseconds, as `maxStale`. */
  readonly revalidate: number
  readonly onStoreError: 'serve' | 'close'
  readonly maxStale: number
}

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'
/** How many reads are under way at once. */
const MAX_READS = 50
/** Readings are spread, so that sessions of one second are not read in one. */
const JITTER = 0.1

export class SessionWatch {
  readonly #settings: SessionWatchSettings
  readonly #timeout: number
  readonly #live: LiveSessions
  readonly #registry: Registry
  readonly #reading = new Map<string, Promise<VerifiedSession | Refusal>>()
  readonly #queue: Array<() => void> = []
  #running = 0

  constructor (live: LiveSessions, { handshakeTimeout }: Settings, registry: Registry) {
    this.#settings = live.settings
    this.#timeout = handshakeTimeout
    this.#live = live
    this.#registry = registry
  }

  /** When the session of a connection is read again. */
  next ({ readAt, phase }: GuardedConnection): number {
    return readAt + this.#settings.revalidate * (1 - JITTER * phase)
  }

  /** Reads the session and brings every socket of it up to date. Never rejects. */
  read (request: FastifyRequest, sessionId: string): Promise<VerifiedSession | Refusal> {
    const known = this.#reading.get(sessionId)
    if (known !== undefined) return known
    const reading = this.#whenFree()
      .then(() => settledWithin(this.#readNow(request, sessionId), this.#timeout, UNAVAILABLE))
      .then(outcome => {
        this.#reading.delete(sessionId)
        this.#free()
        for (const connection of this.#registry.find({ sessionId })) this.#apply(connection, outcome)
        return outcome
      })
    this.#reading.set(sessionId, reading)
    return reading
  }

  /** Extends the session if the application used it, and only then. */
  async #readNow (request: FastifyRequest, sessionId: string): Promise<VerifiedSession | Refusal> {
    const { reread, touch } = this.#live
    const outcome = await reread(request, sessionId)
    if (isRefusal(outcome) || touch === null || !this.#takeUse(sessionId)) return outcome
    const expiresAt = await touch(request, sessionId)
    return expiresAt === null ? outcome : { ...outcome, expiresAt }
  }

  /** Whether the application used any socket of the session since this was last asked. */
  #takeUse (sessionId: string): boolean {
    const used = this.#registry.find({ sessionId }).filter(({ isUsed }) => isUsed)
    for (const connection of used) connection.isUsed = false
    return used.length > 0
  }

  #apply (connection: GuardedConnection, outcome: VerifiedSession | Refusal): void {
    // What an earlier one's listener has closed is not brought back.
    if (!connection.isOpen || isOver(connection)) return
    const time = now()
    connection.readAt = time
    if (outcome === UNAVAILABLE) this.#serveOrClose(connection, time)
    else if (outcome === 'FST_HYBRID_AUTH_EXPIRED_SESSION') {
      connection.route.hub.audit.expired(connection)
      closeConnection(connection, 'AuthenticationExpired')
    } else if (isRefusal(outcome)) closeGone(connection)
    else {
      connection.readWellAt = time
      whenCurrent(connection.route.hub, contextOf(connection, outcome), next => {
        // The source may have been waited for.
        if (!connection.isOpen || isOver(connection)) return
        if (isRefusal(next)) this.#serveOrClose(connection, now())
        else update(connection, withGranted(connection, next))
      })
    }
  }

  #serveOrClose (connection: GuardedConnection, time: number): void {
    const { onStoreError, maxStale } = this.#settings
    if (onStoreError === 'close' || time - connection.readWellAt >= maxStale) closeConnection(connection, 'Unavailable')
    else connection.route.hub.lookAt(connection)
  }

  #whenFree (): Promise<void> {
    if (this.#running < MAX_READS) {
      this.#running++
      return Promise.resolve()
    }
    return new Promise(resolve => { this.#queue.push(resolve) })
  }

  #free (): void {
    const next = this.#queue.shift()
    if (next === undefined) this.#running--
    else next()
  }
}

/** Whoever ended the session did not tell us. */
function closeGone (connection: GuardedConnection): void {
  connection.route.hub.audit.revoked(connection, { id: null, reason: 'the session is gone' })
  closeConnection(connection, 'Revoked')
}

function contextOf ({ context }: GuardedConnection, session: VerifiedSession): AuthContext {
  return sessionContext(session, 'fallbackFrom' in context ? context.fallbackFrom : undefined)
}

/** A new version where the user changed; the same one with its new end where only that did. */
function update (connection: GuardedConnection, next: AuthContext): void {
  const { context } = connection
  if (!hasSameIdentity(context, next)) {
    connection.route.hub.audit.identityChanged(connection)
    closeConnection(connection, 'IdentityChanged')
    return
  }
  if (!connection.route.hub.revocations.covers(next)) connection.revoked = null
  const isChanged = JSON.stringify([context.user, context.permissions]) !== JSON.stringify([next.user, next.permissions])
  const isOtherRights = JSON.stringify(context.permissions) !== JSON.stringify(next.permissions)
  unawaited(replaceContext(connection, next, isChanged ? context.version + 1 : context.version, {
    onReplaced () { if (isOtherRights) connection.route.hub.audit.permissionsChanged(connection) },
    tell () { if (isOtherRights) connection.say(permissionUpdate(context.permissions, next.permissions)) }
  }))
}

/** Whether a message has to wait until the session was read again. */
export function isStale ({ context, readAt, route: { sessionMaxAge } }: GuardedConnection): boolean {
  return sessionMaxAge !== undefined && context.authType === 'session' && now() - readAt > sessionMaxAge
}

/** Reads the session of a connection, and everything else of that session. Never rejects. */
export async function readSession (connection: GuardedConnection): Promise<void> {
  const { context, request, route: { hub } } = connection
  if (context.authType !== 'session') return
  connection.isReading = true
  await hub.sessions?.read(request, context.sessionId)
  connection.isReading = false
  hub.lookAt(connection)
}
