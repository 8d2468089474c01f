/** Every decision as one typed event, handed over without a way to slow or break the path. */
import type { FastifyRequest } from 'fastify'
import type { AuditEvent } from '../../types/audit.js'
import type { AuthContext } from '../../types/context.js'
import type { AuthErrorCode } from '../errors.js'
import { networkOf } from '../network.js'

export interface Auditor {
  authenticated (request: FastifyRequest, auth: AuthContext): void
  refused (request: FastifyRequest, code: AuthErrorCode): void
}

const SILENT: Auditor = { authenticated () {}, refused () {} }

export function createAuditor (sink: ((event: AuditEvent) => unknown) | undefined): Auditor {
  if (sink === undefined) return SILENT

  function deliver (event: AuditEvent): void {
    try {
      const answer = sink?.(event)
      if (answer instanceof Promise) answer.catch(() => {})
    } catch {
      // An audit sink that fails must not decide about a connection.
    }
  }

  return {
    authenticated (request, { userId, authType, via, fallbackFrom }) {
      const who = { ...origin(request), userId, authType, via }
      if (fallbackFrom !== undefined) deliver({ type: 'fallback', code: fallbackFrom, ...who })
      deliver({ type: 'authenticated', ...who })
    },
    refused: (request, code) => { deliver({ type: 'refused', code, ...origin(request) }) }
  }
}

function origin (request: FastifyRequest) {
  return {
    time: Date.now(),
    route: request.routeOptions.url ?? '',
    requestId: request.id,
    ip: networkOf(request).ip ?? null,
    websocket: request.ws
  }
}
