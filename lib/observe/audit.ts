/** Every decision, counted, and told as one typed event to whoever wants to know, without a way to slow or break the path. */
import { channel } from 'node:diagnostics_channel'
import { EventEmitter } from 'node:events'
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import type { AuditEvent } from '../../types/audit.js'
import type { AuthContext } from '../../types/context.js'
import type { Reportable } from '../../types/options.js'
import type { AuthErrorCode } from '../errors.js'
import { adopt } from '../maybe.js'
import { networkOf, requestIdOf, routeOf } from '../request.js'
import { excerpt } from './redaction.js'
import { Sink } from './sink.js'
import { labelOf, Tally, type ClosedBy } from './tally.js'

type EventType = AuditEvent['type']
type EventOf<Type extends EventType> = Extract<AuditEvent, { type: Type }>
/** All members of an event but those that say when and where. */
type Details<Type extends EventType, Known> = Omit<EventOf<Type>, 'type' | 'nodeId' | 'time' | keyof Known>

/** Every event under its type. */
export type AuditEvents = EventEmitter<{ [Type in EventType]: [event: EventOf<Type>] }>

/** What is told of a connection; the parts of it that an event shows. */
export interface Audited {
  readonly id: string
  readonly request: FastifyRequest
  readonly context: AuthContext
  readonly framesIn: number
  readonly framesOut: number
}

export type Auditor = ReturnType<typeof createAuditor>

type Level = 'debug' | 'info' | 'warn'
const LINES: Readonly<Record<EventType, readonly [level: Level, message: string]>> = {
  authenticated: ['debug', 'authenticated'],
  fallback: ['info', 'the bearer was refused, the session is used instead'],
  refused: ['info', 'authentication refused'],
  refreshed: ['debug', 'credential refreshed'],
  refresh_refused: ['info', 'the new credential was refused'],
  identity_changed: ['warn', 'the new credential is of somebody else'],
  expired: ['info', 'the credential has expired'],
  revoked: ['info', 'the credential was revoked'],
  permissions_changed: ['info', 'permissions changed'],
  message_refused: ['debug', 'message refused'],
  room_joined: ['debug', 'room joined'],
  room_left: ['debug', 'room left'],
  room_refused: ['debug', 'room refused'],
  limited: ['warn', 'limit reached'],
  brute_force_suspected: ['warn', 'too many credentials that look like guesses'],
  closed: ['debug', 'connection closed'],
  command: ['info', 'command given'],
  cluster_lost: ['warn', 'the cluster is away'],
  cluster_recovered: ['info', 'the other nodes can be reached again']
}

/** Which limit refuses a handshake, or a refresh, with a code: by the name that the option `report` has for it. */
const LIMITS: Readonly<Partial<Record<AuthErrorCode, Reportable>>> = {
  FST_HYBRID_AUTH_ORIGIN_REFUSED: 'origin',
  FST_HYBRID_AUTH_TLS_REQUIRED: 'tls',
  FST_HYBRID_AUTH_TOO_MANY_FAILURES: 'failures',
  FST_HYBRID_AUTH_TOO_MANY_CONNECTIONS: 'connections',
  FST_HYBRID_AUTH_RATE_LIMITED: 'connects'
}
/** With a zone and a port. */
const LONGEST_ADDRESS = 64
/** How long the last events are waited for when the application closes, in milliseconds. */
const FLUSH = 5000

/** @param log for what no request is concerned with; the rest goes to the request's own */
export function createAuditor (nodeId: string, log: FastifyBaseLogger, tell: ((event: AuditEvent) => unknown) | undefined) {
  const events: AuditEvents = new EventEmitter()
  const tally = new Tally()
  const sink = tell === undefined
    ? null
    : new Sink(tell, count => {
      if (count > 0 && tally.auditDropped === 0) log.warn('audit events are dropped: the audit function does not keep up')
      tally.auditDropped += count
    }, () => {
      if (tally.auditFailed++ === 0) log.warn('the audit function fails: what it throws is ignored')
    })
  const channels = Object.fromEntries(Object.keys(LINES).map(type => [type, channel(`fastify-hybrid-auth:${type}`)]))

  /** Asked before there is an event: most are of no interest to anybody. */
  function isWanted (type: EventType, logger: FastifyBaseLogger): boolean {
    return sink !== null || isLogged(type, logger) || events.listenerCount(type) > 0 || channels[type]?.hasSubscribers === true
  }

  function deliver<Type extends EventType> (type: Type, logger: FastifyBaseLogger, details: Details<Type, unknown>): void {
    const event = { type, time: Date.now(), nodeId, ...details } as EventOf<Type>
    const [level, message] = LINES[type]
    sink?.push(event)
    channels[type]?.publish(event)
    const isReported = 'enforced' in event && !event.enforced
    if (isLogged(type, logger)) quietly(() => { logger[level]({ hybridAuth: event }, isReported ? `only reported: ${message}` : message) })
    // One by one: one that fails must not keep it from those behind it.
    for (const listener of (events as EventEmitter).rawListeners(type)) quietly(() => Reflect.apply(listener, events, [event]))
  }

  function tellOf<Type extends EventType> (type: Type, connection: Audited, details: Details<Type, ReturnType<typeof about>> | (() => Details<Type, ReturnType<typeof about>>)): void {
    const { log } = connection.request
    // What an application's `trustProxy` throws is thrown by the request's `ip`.
    if (isWanted(type, log)) quietly(() => { deliver(type, log, { ...about(connection), ...(typeof details === 'function' ? details() : details) } as Details<Type, unknown>) })
  }

  function tellAt<Type extends EventType> (type: Type, request: FastifyRequest, details: () => Details<Type, ReturnType<typeof placeOf>>): void {
    if (isWanted(type, request.log)) quietly(() => { deliver(type, request.log, { ...placeOf(request), ...details() } as Details<Type, unknown>) })
  }

  return {
    nodeId,
    events,
    tally,
    /** Resolves when the application's function was told everything, or after a while. */
    flush: async (): Promise<void> => sink?.flush(FLUSH),

    authenticated (request: FastifyRequest, auth: AuthContext): void {
      const code = auth.authType === 'session' ? auth.fallbackFrom : undefined
      tally.handshake(isSocket(request), auth.authType)
      if (code !== undefined) tellAt('fallback', request, () => ({ code, ...whoIs(auth) }))
      tellAt('authenticated', request, () => whoIs(auth))
    },
    /** Nobody, on a route where that is allowed, or not yet. */
    passed (request: FastifyRequest, outcome: 'anonymous' | 'pending' | 'abandoned'): void { tally.handshake(isSocket(request), outcome) },
    /** @param auth who it was, where that was known already */
    refused (request: FastifyRequest, code: AuthErrorCode, auth: AuthContext | null): void {
      tally.handshake(isSocket(request), labelOf(code))
      // How many, and how often, is counted where it is limited.
      const limit = LIMITS[code]
      if (limit !== undefined && limit !== 'connections' && limit !== 'connects') tally.limited(limit, true)
      tellAt('refused', request, () => ({ code, enforced: true, ...whoMayBe(auth) }))
    },
    /** What would have been refused, were that not only reported. */
    reported (request: FastifyRequest, code: AuthErrorCode, auth: AuthContext | null): void {
      tally.limited(String(LIMITS[code]), false)
      tellAt('refused', request, () => ({ code, enforced: false, ...whoMayBe(auth) }))
    },
    bruteForceSuspected (request: FastifyRequest, by: EventOf<'brute_force_suspected'>['by'], claimed: EventOf<'brute_force_suspected'>['claimed']): void {
      tally.bruteForces++
      tellAt('brute_force_suspected', request, () => ({
        by,
        claimed: claimed === null ? null : { userId: excerpt(claimed.userId), issuer: claimed.issuer === null ? null : excerpt(claimed.issuer) }
      }))
    },
    /** One that has no connection: it had to go for another before its handler ran, or it is nobody's. */
    limitedAt (request: FastifyRequest, code: AuthErrorCode, enforced: boolean, auth: AuthContext | null): void {
      tellAt('limited', request, () => ({ code, enforced, connectionId: null, ...whoMayBe(auth) }))
    },
    /** A closed socket does not know any more where it came from, unless somebody asked before. */
    remember (request: FastifyRequest): void {
      if (isWanted('closed', request.log)) quietly(() => networkOf(request).ip)
    },

    refreshed (connection: Audited): void {
      tally.refreshes.add('refreshed')
      tellOf('refreshed', connection, {})
    },
    refreshRefused (connection: Audited, code: AuthErrorCode): void {
      tally.refreshes.add(labelOf(code))
      if (LIMITS[code] !== undefined) tally.limited(LIMITS[code], true)
      tellOf('refresh_refused', connection, { code })
    },
    identityChanged (connection: Audited): void {
      tally.refreshes.add('identity_changed')
      tellOf('identity_changed', connection, {})
    },
    expired (connection: Audited): void {
      tally.expiries++
      tellOf('expired', connection, {})
    },
    messageRefused (connection: Audited): void {
      tally.messagesRefused++
      tellOf('message_refused', connection, {})
    },
    roomJoined (connection: Audited, room: string): void { tellOf('room_joined', connection, () => ({ room: excerpt(room) })) },
    roomLeft (connection: Audited, room: string, reason: EventOf<'room_left'>['reason']): void { tellOf('room_left', connection, () => ({ room: excerpt(room), reason })) },
    roomRefused (connection: Audited, room: string, { action, reason }: Pick<EventOf<'room_refused'>, 'action' | 'reason'>): void {
      tally.roomsRefused.add(reason)
      tellOf('room_refused', connection, () => ({ room: excerpt(room), action, reason }))
    },
    /** By a request that polls it. */
    pollRefused (request: FastifyRequest, auth: AuthContext, room: string, reason: EventOf<'room_refused'>['reason']): void {
      tally.roomsRefused.add(reason)
      tellAt('room_refused', request, () => ({ connectionId: null, room: excerpt(room), action: 'join' as const, reason, ...whoIs(auth) }))
    },
    permissionsChanged (connection: Audited): void { tellOf('permissions_changed', connection, { permissions: connection.context.permissions }) },
    revoked (connection: Audited, { reason, id }: { readonly reason: string, readonly id: string | null }): void {
      tally.revoked++
      tellOf('revoked', connection, { reason, commandId: id })
    },
    limited (connection: Audited, code: AuthErrorCode, enforced: boolean): void { tellOf('limited', connection, { code, enforced }) },
    /** @param duration in milliseconds */
    closed (connection: Audited, closeCode: number, by: ClosedBy, duration: number): void {
      const { framesIn, framesOut } = connection
      tally.closed(closeCode, by)
      tellOf('closed', connection, { closeCode, duration, framesIn, framesOut })
    },

    command (details: Details<'command', unknown>): void { deliver('command', log, details) },
    clusterLost (): void { deliver('cluster_lost', log, {}) },
    /** Both in milliseconds. */
    clusterRecovered (lostFor: number, converged: number): void { deliver('cluster_recovered', log, { lostFor, converged }) }
  }
}

/** What a logger would not write it answers by a function of this name. */
function isLogged (type: EventType, logger: FastifyBaseLogger): boolean {
  return logger[LINES[type][0]].name !== 'noop'
}

/** Who listens and fails must not decide about a connection. */
function quietly (tell: () => unknown): void {
  try {
    const answer = adopt(tell())
    if (answer instanceof Promise) answer.catch(() => {})
  } catch {}
}

function about ({ request, context, id }: Audited) {
  return { ...placeOf(request), ...whoIs(context), connectionId: id }
}

function whoIs ({ userId, authType, via }: AuthContext) {
  return { userId, authType, via }
}

function whoMayBe (auth: AuthContext | null) {
  return auth === null ? { userId: null, authType: null, via: null } : whoIs(auth)
}

function placeOf (request: FastifyRequest) {
  const { origin, 'user-agent': userAgent } = request.headers
  return {
    route: routeOf(request),
    requestId: excerpt(requestIdOf(request)),
    ip: shortest(networkOf(request).ip),
    websocket: isSocket(request),
    origin: origin === undefined ? null : excerpt(origin),
    userAgent: userAgent === undefined ? null : excerpt(userAgent)
  }
}

/** Behind a proxy that is trusted it may be anything. */
function shortest (ip: string | undefined): string | null {
  return ip === undefined ? null : excerpt(ip).slice(0, LONGEST_ADDRESS)
}

function isSocket (request: FastifyRequest): boolean {
  return networkOf(request).ws === true
}
