import type { AuthErrorCode } from '../lib/errors.js'
import type { AuthType, Via } from './context.js'

interface AuditBase {
  /** In milliseconds since the epoch. */
  readonly time: number
  /** The route's pattern, not the URL. */
  readonly route: string
  readonly requestId: string
  /** As Fastify's `trustProxy` gives it; null where there is no socket. */
  readonly ip: string | null
  readonly websocket: boolean
}

interface WhoAudit extends AuditBase {
  readonly userId: string
  readonly authType: AuthType
  readonly via: Via
}

interface ConnectionAudit extends WhoAudit {
  readonly connectionId: string
}

/** One decision. A union on `type`. No event holds a credential. */
export type AuditEvent =
  | (WhoAudit & { readonly type: 'authenticated' })
  | (WhoAudit & { readonly type: 'fallback', /** Why the bearer was refused. */ readonly code: AuthErrorCode })
  | (AuditBase & { readonly type: 'refused', readonly code: AuthErrorCode })
  | (ConnectionAudit & { readonly type: 'refreshed' | 'identity_changed' | 'expired' | 'message_refused' })
  | (ConnectionAudit & { readonly type: 'refresh_refused', readonly code: AuthErrorCode })
  | (ConnectionAudit & { readonly type: 'closed', /** The close code. */ readonly closeCode: number, /** In milliseconds. */ readonly duration: number })
