/** Every decision as one typed event, handed over without a way to slow or break the path. */
import type { FastifyRequest } from 'fastify'
import type { AuditEvent } from '../../types/audit.js'
import type { AuthContext } from '../../types/context.js'
import type { AuthErrorCode } from '../errors.js'
import { networkOf } from '../request.js'

/** Tells of decisions, before and after the 101. */
export interface Auditor extends ConnectionAudit {
  authenticated (request: FastifyRequest, auth: AuthContext): void
  refused (request: FastifyRequest, code: AuthErrorCode): void
}

/** What is told of a connection; the parts of it that an event shows. */
export interface ConnectionAudit {
  refreshed (connection: Audited): void
  refreshRefused (connection: Audited, code: AuthErrorCode): void
  identityChanged (connection: Audited): void
  expired (connection: Audited): void
  messageRefused (connection: Audited): void
  /** @param duration in milliseconds */
  closed (connection: Audited, closeCode: number, duration: number): void
}

interface Audited {
  readonly id: string
  readonly request: FastifyRequest
  readonly context: AuthContext
}

export function createAuditor (sink: ((event: AuditEvent) => unknown) | undefined): Auditor {
  function deliver (describe: () => AuditEvent): void {
    if (sink === undefined) return
    try {
      const answer = sink(describe())
      if (answer instanceof Promise) answer.catch(() => {})
    } catch {
      // An audit sink that fails must not decide about a connection.
    }
  }

  return {
    authenticated (request, auth) {
      const code = auth.authType === 'session' ? auth.fallbackFrom : undefined
      if (code !== undefined) deliver(() => ({ type: 'fallback', code, ...whoAt(request, auth) }))
      deliver(() => ({ type: 'authenticated', ...whoAt(request, auth) }))
    },
    refused (request, code) { deliver(() => ({ type: 'refused', code, ...placeOf(request) })) },
    refreshed (connection) { deliver(() => ({ type: 'refreshed', ...about(connection) })) },
    refreshRefused (connection, code) { deliver(() => ({ type: 'refresh_refused', code, ...about(connection) })) },
    identityChanged (connection) { deliver(() => ({ type: 'identity_changed', ...about(connection) })) },
    expired (connection) { deliver(() => ({ type: 'expired', ...about(connection) })) },
    messageRefused (connection) { deliver(() => ({ type: 'message_refused', ...about(connection) })) },
    closed (connection, closeCode, duration) {
      deliver(() => ({ type: 'closed', closeCode, duration, ...about(connection) }))
    }
  }
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
