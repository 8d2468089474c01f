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

/** One member for each type. */
type Plain<Type> = Type extends string ? ConnectionAudit & { readonly type: Type } : never

interface ClusterAudit {
  /** In milliseconds since the epoch. */
  readonly time: number
  /** Of this process. */
  readonly nodeId: string
}

/** One decision. A union on `type`. No event holds a credential. */
export type AuditEvent =
  | (WhoAudit & { readonly type: 'authenticated' })
  | (WhoAudit & { readonly type: 'fallback', /** Why the bearer was refused. */ readonly code: AuthErrorCode })
  | (AuditBase & { readonly type: 'refused', readonly code: AuthErrorCode })
  | Plain<'refreshed' | 'identity_changed' | 'expired' | 'permissions_changed' | 'message_refused'>
  | (ConnectionAudit & { readonly type: 'revoked', /** Of the revocation. */ readonly reason: string })
  | (ConnectionAudit & { readonly type: 'limited', /** Of the limit. */ readonly code: AuthErrorCode })
  | (ConnectionAudit & { readonly type: 'refresh_refused', readonly code: AuthErrorCode })
  | (ConnectionAudit & { readonly type: 'closed', /** The close code. */ readonly closeCode: number, /** In milliseconds. */ readonly duration: number })
  | (ClusterAudit & { readonly type: 'cluster_lost' })
  | (ClusterAudit & {
    readonly type: 'cluster_recovered'
    /** How long the cluster was away, in milliseconds. */
    readonly lostFor: number
    /** How long it took from the first answer until everything missed was carried out, in milliseconds. */
    readonly converged: number
  })
