/** Narrows a target to what was issued before a time, in milliseconds since the epoch. */
interface IssuedBefore {
  /**
   * Compared with `iat` in whole seconds, and for a session with `issuedAt` of what `session.user` returned. A credential
   * that does not say when it was issued counts as older.
   */
  issuedBefore?: number
}

/** Whose credentials are revoked. Without `issuedBefore` that includes those which are issued later. */
export type RevokeTarget =
  /** `issuer` and `tenantId` narrow it; null is a credential that names none. */
  | ({ userId: string, issuer?: string | null, tenantId?: string | null } & IssuedBefore)
  | ({ tenantId: string, issuer?: string | null } & IssuedBefore)
  | { sessionId: string }
  /** A token by its claims. Without `iss` of any issuer. */
  | { jti: string, iss?: string | null }
  /** A token by what a context calls it. */
  | { tokenId: string, issuer?: string | null }
  /** The token itself. Only its `jti` and `iss`, or the hash of its first two parts, is kept. */
  | { token: string }

export interface RevokeOptions {
  /** For the audit log, at most 200 characters. Clients do not learn it. @default '' */
  reason?: string | undefined
  /**
   * What happens to open sockets. `now`: closed with 4006. `reauthWithin`: asked for another credential, and closed if
   * none came within so many milliseconds; a user or tenant without `issuedBefore` then gets the present.
   * @default 'now'
   */
  mode?: 'now' | { reauthWithin: number } | undefined
  /**
   * Until when it is kept, in milliseconds since the epoch.
   * @default the end of a `token`; else `revocations.retention`, or as long as the longest token that was seen
   */
  expiresAt?: number | undefined
  /** Only counts. @default false */
  dryRun?: boolean | undefined
}

/** What a command met, on all nodes that answered in time. */
export interface CommandResult {
  /** What the nodes know the command by. */
  readonly id: string
  /** Open connections that it concerns. */
  readonly matched: number
  /** Those that it closed. */
  readonly closed: number
  /** In the cluster's log: nodes that were not reached carry it out when they are back. Always true in one process. */
  readonly durable: boolean
  /** How many nodes have carried it out, this one included, and how many have not said so yet. */
  readonly nodes: { readonly acknowledged: number, readonly missing: number }
}

/** `app.hybridAuth.status()`: plain numbers, for a health check. */
export interface ClusterStatus {
  readonly nodeId: string
  /** Whether the other nodes can be reached; always true in one process. */
  readonly connected: boolean
  /** When the cluster was lost, in milliseconds since the epoch; null while it is not. */
  readonly lostSince: number | null
  /** Live revocations that this node knows. */
  readonly revocations: number
  /** Commands that wait for the cluster to be back. */
  readonly queued: number
  /** Messages that no node can have sent. */
  readonly ignored: number
  /** Audit events that found no room, because `audit` did not keep up. */
  readonly auditDropped: number
}

export interface TicketOptions {
  /** In milliseconds, 1000 to 300000; never longer than the credential. @default 30000 */
  ttl?: number | undefined
}
