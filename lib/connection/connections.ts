/** The connections of one registration: how a socket becomes one, and what the application may ask about them. */
import type { Duplex } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import type { Connection, ConnectionFilter } from '../../types/connection.js'
import type { AuthContext } from '../../types/context.js'
import { ERRORS } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import type { ParsedRouteRule } from '../route-options.js'
import { unawaited } from '../maybe.js'
import type { Place } from '../policy/limits.js'
import { compileMessageDecision } from '../policy/messages.js'
import { MessageRate } from '../policy/rates.js'
import type { RequirementCheck } from '../policy/requirements.js'
import { setContext, type Socket } from '../request.js'
import { closeConnection, closeSocket, EVICTED } from './closing.js'
import { GuardedConnection } from './connection.js'
import { mayUnderstand, sendFrame, statusFrame } from './control.js'
import { someTimeIn } from './drain.js'
import { flush, holdEarly, release } from './gate.js'
import type { Hub, RouteSettings } from './hub.js'
import { isOver, lookAt, schedule } from './lifecycle.js'
import { ReusableMessage } from './message.js'
import { NOBODY, NobodysSocket } from './nobody.js'
import { PendingSocket } from './pending.js'
import { refreshConnection } from './permissions.js'
import { Registry } from './registry.js'
import { isGuarded, ownerOf, setOwner, type GuardedSocket } from './socket.js'
import { WaitingSockets } from './waiting.js'
import { CredentialWatch } from './watch.js'

export type HubParts = Pick<Hub, 'verifiers' | 'audit' | 'report' | 'revocations' | 'limits' | 'rates' | 'sources' | 'rooms' | 'publisher' | 'poll' | 'repeats' | 'termsOf'>

export function createHub (options: ParsedOptions, parts: HubParts): Hub {
  const { verifiers } = parts
  const registry = new Registry()
  const watches = new Map((['session', 'oauth2'] as const).flatMap(type => {
    const watched = verifiers.watched[type]
    return watched === undefined ? [] : [[type, new CredentialWatch(watched, options, registry)]]
  }))
  return {
    ...parts, settings: options, registry, pending: new WaitingSockets(options.limits), watches, lookAt, isDraining: false, isIsolated: false
  }
}

export function createRouteSettings (hub: Hub, rule: ParsedRouteRule, meets: RequirementCheck): RouteSettings {
  const { onRefused, rate, control, firstMessage, sessionMaxAge, rooms } = rule
  const decide = compileMessageDecision(rule.authorize, rule.messages)
  return { hub, meets, decide, onRefused, rate, control, firstMessage, sessionMaxAge, rooms, message: new ReusableMessage() }
}

/**
 * Takes over a socket right after the 101. `run` is the application's handler; it runs once the connection is registered,
 * and never for one that ended meanwhile.
 * @param context null: the credential comes as the first message; {@link NOBODY}: none comes, on a route where that is allowed
 * @param place where connections are limited and this one is among them
 */
export function accept (socket: Socket, net: Duplex, request: FastifyRequest, route: RouteSettings, context: AuthContext | typeof NOBODY | null, place: Place | null, run: () => void): void {
  // Only a socket of our class can be guarded; another would pass every frame.
  if (!isGuarded(socket)) {
    socket.terminate()
    return
  }
  const { hub } = route
  const { closeCodes, drain } = hub.settings
  if (place?.isEvicted === true) {
    hub.audit.tally.limited('connections', true)
    hub.audit.limitedAt(request, 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS', true, context === NOBODY ? null : context)
    closeSocket(socket, 'TooManyConnections', closeCodes, EVICTED)
    return
  }
  if (hub.isDraining) {
    closeSocket(socket, 'Draining', closeCodes, { retryAfterMs: someTimeIn(drain.window) })
    return
  }
  if (context === NOBODY) {
    setOwner(socket, new NobodysSocket(socket, request, route, place))
    run()
    return
  }
  if (context !== null) {
    const connection = begin(socket, request, route, context, place)
    if (isLive(connection)) runWhenCurrent(connection, run)
    return
  }
  const full = hub.pending.refusalOf(request)
  if (full !== null) {
    hub.audit.tally.limited('pending', true)
    hub.audit.refused(request, full, null)
    closeSocket(socket, ERRORS[full].close, closeCodes)
    return
  }
  setOwner(socket, new PendingSocket(socket, net, request, route, (authenticated, held, taken) => {
    setContext(request, authenticated)
    hub.audit.authenticated(request, authenticated)
    const connection = begin(socket, request, route, authenticated, taken)
    connection.speaks = connection.readsControl
    schedule(connection)
    connection.framesIn = held.length + 1
    if (!isLive(connection)) return
    if (mayUnderstand(socket)) sendFrame(socket, statusFrame(authenticated, connection.id))
    // Nobody has been given the time to listen yet.
    connection.isJudging = true
    holdEarly(connection, held)
    connection.isJudging = false
    // What came before may have been too much.
    if (!connection.isOpen) return
    runWhenCurrent(connection, () => {
      run()
      flush(connection)
    })
  }))
}

function begin (socket: GuardedSocket, request: FastifyRequest, route: RouteSettings, context: AuthContext, place: Place | null): GuardedConnection {
  const { hub } = route
  const connection = new GuardedConnection(socket, request, route, context)
  hub.watches.get(context.authType)?.begin(connection, context)
  setOwner(socket, connection)
  const { heartbeat } = hub.settings
  if (route.rate !== undefined) {
    const user = JSON.stringify([request.routeOptions.url, context.tenantId, context.userId])
    connection.rate = new MessageRate(route.rate, hub.rates, user, connection.startedAt)
  }
  if (heartbeat !== false) connection.pingAt = connection.startedAt + heartbeat.interval
  hub.audit.remember(request)
  hub.registry.add(connection)
  schedule(connection)
  if (place !== null) {
    connection.place = place
    place.onEvicted = () => {
      hub.audit.limited(connection, 'FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS', true)
      hub.audit.tally.limited('connections', true)
      closeConnection(connection, 'TooManyConnections', EVICTED)
    }
  }
  return connection
}

/** What the user may do may have changed between the question and now: then it is asked again, and the handler waits. */
function runWhenCurrent (connection: GuardedConnection, run: () => void): void {
  const { context, route: { hub: { sources } } } = connection
  const current = sources === null || sources.isCurrent(context) ? undefined : refreshConnection(connection)
  if (!(current instanceof Promise)) {
    if (connection.isOpen) run()
    return
  }
  // What comes meanwhile is not judged by what is known to be old.
  connection.isJudging = true
  unawaited(current.then(() => {
    connection.isJudging = false
    if (!connection.isOpen || isOver(connection)) return
    // Who has gone meanwhile, and said nothing, is none that the handler is called for.
    if (connection.heldClose !== null && connection.held === null) {
      release(connection)
      return
    }
    run()
    flush(connection)
  }))
}

/**
 * The credential may have ended between its verification and now, or have been revoked: what was revoked before the
 * connection was registered is seen here, and what is revoked after it finds the connection.
 */
function isLive (connection: GuardedConnection): boolean {
  const { context, isOpen, route: { hub } } = connection
  const revocation = hub.revocations.find(context)
  if (isOpen && revocation !== null) {
    hub.audit.revoked(connection, revocation)
    closeConnection(connection, 'Revoked')
  }
  return connection.isOpen && !isOver(connection)
}

/** What `app.hybridAuth` offers of the connections of this process. */
export function createConnectionApi ({ registry }: Hub) {
  return {
    connection (socket: Socket): Connection | null {
      const owner = ownerOf(socket)
      return owner instanceof GuardedConnection ? owner : null
    },
    connections: (filter: ConnectionFilter = {}): Connection[] => registry.open(filter),
    count: (filter: ConnectionFilter = {}): number =>
      Object.keys(filter).length === 0 ? registry.size : registry.open(filter).length
  }
}
