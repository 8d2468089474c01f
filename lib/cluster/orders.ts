/** What the application may order of the cluster. */
import type { FastifyRequest } from 'fastify'
import type { CommandResult, RevokeOptions, RevokeTarget, TicketOptions } from '../../types/cluster.js'
import type { ConnectionFilter, DisconnectOptions } from '../../types/connection.js'
import type { PermissionScope } from '../../types/plugin.js'
import { invalidOption } from '../errors.js'
import { issueTicket, type TicketParts } from '../verify/ticket.js'
import type { ClusterNode } from './node.js'
import { parseDisconnect, parsePermissions, parseUser } from './target.js'

/** What `app.hybridAuth` offers of the cluster. */
export function createClusterApi (node: ClusterNode, tickets: TicketParts, hasSource: boolean) {
  return {
    async revoke (target: RevokeTarget, options?: RevokeOptions): Promise<CommandResult> {
      const { revocation, dryRun } = node.parseRevoke(target, options)
      if (dryRun) return node.order({ type: 'count', revocation }, { id: revocation.id })
      const result = await node.order({ type: 'revoke', revocation }, { id: revocation.id })
      const { kind, key, tenantId, reason } = revocation
      node.tellOf('revoke', kind === 'tenant' ? { kind, tenantId: key, reason } : { kind, userId: kind === 'user' ? key : null, tenantId, reason }, result)
      return result
    },
    async disconnect (filter: ConnectionFilter, options?: DisconnectOptions): Promise<CommandResult> {
      const order = parseDisconnect(filter, options)
      const result = await node.order({ type: 'disconnect', ...order })
      node.tellOf('disconnect', { userId: filter.userId, tenantId: filter.tenantId, reason: order.reason }, result)
      return result
    },
    async setPermissions (userId: string, permissions: readonly string[], scope?: PermissionScope): Promise<CommandResult> {
      const result = await node.order({ type: 'permissions', ...parsePermissions(userId, permissions, scope) })
      node.tellOf('permissions', { userId, tenantId: scope?.tenantId }, result)
      return result
    },
    async refreshPermissions (userId: string): Promise<CommandResult> {
      if (!hasSource) throw invalidOption('permissions', 'is needed to ask again what a user may do, or enrich is')
      const result = await node.order({ type: 'refresh', userId: parseUser(userId) })
      node.tellOf('refresh', { userId }, result)
      return result
    },
    issueTicket: (request: FastifyRequest, options?: TicketOptions) => issueTicket(tickets, request, options),
    status: () => node.status()
  }
}
