import type { AuthErrorCode } from '../lib/errors.js'
import type { AuthType, Via } from './context.js'

/** Where and when something was decided. */
interface AuditBase {
  /** In milliseconds since the epoch. */
  readonly time: number
  /** The process, as `status()` names it. */
  readonly nodeId: string
  /** The route's pattern, not the URL. */
  readonly route: string
  readonly requestId: string
  /** As Fastify's `trustProxy` gives it; null where there is no socket. */
  readonly ip: string | null
  readonly websocket: boolean
  /** The header, at most 256 characters of it; null where there was none. */
  readonly origin: string | null
  /** The header, at most 256 characters of it; null where there was none. */
  readonly userAgent: string | null
}

interface WhoAudit extends AuditBase {
  readonly userId: string
  readonly authType: AuthType
  readonly via: Via
}

interface ConnectionAudit extends WhoAudit {
  readonly connectionId: string
}

/** Who it was, where that was known already. */
interface MaybeWhoAudit extends AuditBase {
  readonly userId: string | null
  readonly authType: AuthType | null
  readonly via: Via | null
}

/** One member for each type. */
type Plain<Type> = Type extends string ? ConnectionAudit & { readonly type: Type } : never

interface ClusterAudit {
  /** In milliseconds since the epoch. */
  readonly time: number
  /** Of this process. */
  readonly nodeId: string
}

/** What is refused for a limit says whether it was refused, or only reported: see the option `report`. */
interface Enforced {
  readonly code: AuthErrorCode
  readonly enforced: boolean
}

/** One decision. A union on `type`. No event holds a credential. */
export type AuditEvent =
  | (WhoAudit & { readonly type: 'authenticated' })
  | (WhoAudit & { readonly type: 'fallback', /** Why the bearer was refused. */ readonly code: AuthErrorCode })
  | (MaybeWhoAudit & Enforced & { readonly type: 'refused' })
  | Plain<'refreshed' | 'identity_changed' | 'expired' | 'message_refused'>
  | (ConnectionAudit & { readonly type: 'permissions_changed', /** As they are now. */ readonly permissions: readonly string[] })
  | (ConnectionAudit & {
    readonly type: 'revoked'
    /** Of the revocation. */
    readonly reason: string
    /** What `revoke()` answered, on whichever node; null: nobody ordered it, the session was gone from its store. */
    readonly commandId: string | null
  })
  /** `connectionId` is null for a connection that had to go for another before its handler ran, and for a socket that is nobody's. */
  | (MaybeWhoAudit & Enforced & { readonly type: 'limited', readonly connectionId: string | null })
  | (AuditBase & {
    readonly type: 'brute_force_suspected'
    /** By what it was noticed: too many failures from one address, or for one claimed identity. */
    readonly by: ReadonlyArray<'address' | 'identity'>
    /** Whom the latest token says it is of. Nothing of it was verified. null: it does not say. */
    readonly claimed: { readonly userId: string, readonly issuer: string | null } | null
  })
  /** The name of a room is one that a client may have chosen: at most 256 characters of it, without what looks like a token. */
  | (ConnectionAudit & { readonly type: 'room_joined', readonly room: string })
  /** Not told of rooms that a connection leaves by being closed. */
  | (ConnectionAudit & { readonly type: 'room_left', readonly room: string, readonly reason: 'left' | 'removed' | 'forbidden' })
  /** `connectionId` is null for a poll. */
  | (WhoAudit & {
    readonly type: 'room_refused'
    readonly connectionId: string | null
    readonly room: string
    readonly action: 'join' | 'publish'
    readonly reason: 'forbidden' | 'insufficient_user_authentication' | 'bad_room' | 'too_many_rooms' | 'not_joined' | 'too_large'
  })
  | (ConnectionAudit & { readonly type: 'refresh_refused', readonly code: AuthErrorCode })
  | (ConnectionAudit & {
    readonly type: 'closed'
    /** The close code. */
    readonly closeCode: number
    /** How long it was open, in milliseconds. */
    readonly duration: number
    /** Frames that came and went, those of the protocol included. */
    readonly framesIn: number
    readonly framesOut: number
  })
  | (ClusterAudit & {
    /** `revoke()`, `disconnect()`, `setPermissions()` or `refreshPermissions()` was called on this node, or a session was destroyed. */
    readonly type: 'command'
    readonly command: 'revoke' | 'disconnect' | 'permissions' | 'refresh'
    readonly commandId: string
    /** What is revoked; null for other commands. */
    readonly target: 'user' | 'session' | 'token' | 'tenant' | 'login' | 'subject' | null
    /** null for whole tenants, for tokens and for sessions, whose names would be their ids. */
    readonly userId: string | null
    readonly tenantId: string | null
    readonly reason: string
    /** Connections that it concerned and that it closed, on all nodes that answered in time. */
    readonly matched: number
    readonly closed: number
  })
  | (ClusterAudit & { readonly type: 'cluster_lost' })
  | (ClusterAudit & {
    readonly type: 'cluster_recovered'
    /** How long the cluster was away, in milliseconds. */
    readonly lostFor: number
    /** How long it took from the first answer until everything missed was carried out, in milliseconds. */
    readonly converged: number
  })

/**
 * What subscribers of the TracingChannel `fastify-hybrid-auth:verify` are given. It holds no credential, and they may put
 * what they like into it.
 */
export interface Verification {
  readonly requestId: string
  readonly route: string
  /** What was verified: a bearer, a cookie, a ticket; `none` where nothing came. */
  readonly credential: 'token' | 'session' | 'ticket' | 'none'
  /**
   * The `authType`, or the code of the refusal, also where a route lets nobody in, or waits for a first message. Set when it
   * is known.
   */
  outcome?: string
}
