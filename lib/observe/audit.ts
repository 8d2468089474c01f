/** Every decision as one typed event, handed over without a way to slow or break the path. */
import { EventEmitter } from 'node:events'
import type { FastifyRequest } from 'fastify'
import type { AuditEvent } from '../../types/audit.js'
import type { AuthContext } from '../../types/context.js'
import type { AuthErrorCode } from '../errors.js'
import { networkOf } from '../request.js'

/** Tells of decisions, before and after the 101. */
export interface Auditor extends ConnectionAudit {
  authenticated (request: FastifyRequest, auth: AuthContext): void
  refused (request: FastifyRequest, code: AuthErrorCode): void
  clusterLost (nodeId: string): void
  /** Both in milliseconds. */
  clusterRecovered (nodeId: string, lostFor: number, converged: number): void
  readonly events: AuditEvents
}

/** Every event under its type. */
export type AuditEvents = EventEmitter<{ [Type in AuditEvent['type']]: [event: Extract<AuditEvent, { type: Type }>] }>

/** What is told of a connection; the parts of it that an event shows. */
export interface ConnectionAudit {
  refreshed (connection: Audited): void
  refreshRefused (connection: Audited, code: AuthErrorCode): void
  identityChanged (connection: Audited): void
  expired (connection: Audited): void
  messageRefused (connection: Audited): void
  permissionsChanged (connection: Audited): void
  /** @param reason the revocation's */
  revoked (connection: Audited, reason: string): void
  limited (connection: Audited, code: AuthErrorCode): void
  /** @param duration in milliseconds */
  closed (connection: Audited, closeCode: number, duration: number): void
}

interface Audited {
  readonly id: string
  readonly request: FastifyRequest
  readonly context: AuthContext
}

export function createAuditor (sink: ((event: AuditEvent) => unknown) | undefined): Auditor {
  const events: AuditEvents = new EventEmitter()

  function deliver<Type extends AuditEvent['type']> (type: Type, describe: () => Omit<Extract<AuditEvent, { type: Type }>, 'type'>): void {
    const isHeard = events.listenerCount(type) > 0
    if (sink === undefined && !isHeard) return
    const event = { type, ...describe() } as Extract<AuditEvent, { type: Type }>
    quietly(() => sink?.(event))
    if (isHeard) quietly(() => (events as EventEmitter).emit(type, event))
  }

  return {
    authenticated (request, auth) {
      const code = auth.authType === 'session' ? auth.fallbackFrom : undefined
      if (code !== undefined) deliver('fallback', () => ({ code, ...whoAt(request, auth) }))
      deliver('authenticated', () => ({ ...whoAt(request, auth) }))
    },
    refused (request, code) { deliver('refused', () => ({ code, ...placeOf(request) })) },
    refreshed (connection) { deliver('refreshed', () => ({ ...about(connection) })) },
    refreshRefused (connection, code) { deliver('refresh_refused', () => ({ code, ...about(connection) })) },
    identityChanged (connection) { deliver('identity_changed', () => ({ ...about(connection) })) },
    expired (connection) { deliver('expired', () => ({ ...about(connection) })) },
    messageRefused (connection) { deliver('message_refused', () => ({ ...about(connection) })) },
    permissionsChanged (connection) { deliver('permissions_changed', () => about(connection)) },
    revoked (connection, reason) { deliver('revoked', () => ({ reason, ...about(connection) })) },
    limited (connection, code) { deliver('limited', () => ({ code, ...about(connection) })) },
    clusterLost (nodeId) { deliver('cluster_lost', () => ({ time: Date.now(), nodeId })) },
    clusterRecovered (nodeId, lostFor, converged) { deliver('cluster_recovered', () => ({ time: Date.now(), nodeId, lostFor, converged })) },
    events,
    closed (connection, closeCode, duration) {
      deliver('closed', () => ({ closeCode, duration, ...about(connection) }))
    }
  }
}

/** Who listens and fails must not decide about a connection. */
function quietly (tell: () => unknown): void {
  try {
    const answer = tell()
    if (answer instanceof Promise) answer.catch(() => {})
  } catch {}
}

function about (connection: Audited) {
  return { ...whoAt(connection.request, connection.context), connectionId: connection.id }
}

function whoAt (request: FastifyRequest, { userId, authType, via }: AuthContext) {
  return { ...placeOf(request), userId, authType, via }
}

function placeOf (request: FastifyRequest) {
  return {
    time: Date.now(),
    route: request.routeOptions.url ?? '',
    requestId: request.id,
    ip: networkOf(request).ip ?? null,
    websocket: networkOf(request).ws === true
  }
}
