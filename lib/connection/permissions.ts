/** What open sockets may do: set by an order, or asked of the source again. */
import type { AuthContext } from '../../types/context.js'
import type { PermissionScope } from '../../types/plugin.js'
import type { Outcome } from '../cluster/cluster.js'
import { isRefusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import { closeConnection } from './closing.js'
import type { GuardedConnection, Granted } from './connection.js'
import type { Hub } from './hub.js'
import { isOver } from './lifecycle.js'
import { replaceContext } from './reauth.js'

/** On every connection of a user, until its next credential. Resolves when every rule and room has been asked. */
export async function setPermissions (hub: Hub, userId: string, given: readonly string[], scope: PermissionScope): Promise<Outcome> {
  const permissions = Object.freeze([...given])
  hub.permissions?.forget(userId)
  return outcomeOf(hub.registry.find({ userId, ...scope }), connection =>
    change(connection, permissions, { permissions, insteadOf: connection.granted?.insteadOf ?? connection.context.permissions }))
}

/** What is known of the user is forgotten, and every connection gets what the source says now. */
export async function refreshPermissions (hub: Hub, userId: string): Promise<Outcome> {
  hub.permissions?.forget(userId)
  return outcomeOf(hub.registry.find({ userId }), refreshConnection)
}

/** One that cannot be asked about is closed: what it may do now is not known. Never rejects. */
export function refreshConnection (connection: GuardedConnection): Maybe<void> {
  const { context, route: { hub } } = connection
  return whenReady(hub.permissions?.find(context.issuer, context.user) ?? context.permissions, (found): Maybe<void> => {
    if (!connection.isOpen || isOver(connection)) return
    // A later credential brought what was true when it came, and may be older than what is asked for.
    if (connection.context !== context) return refreshConnection(connection)
    if (isRefusal(found)) closeConnection(connection, 'Unavailable')
    else if (!isSame(found, context.permissions)) return change(connection, found, null)
  })
}

function change (connection: GuardedConnection, permissions: readonly string[], granted: Granted | null): Maybe<void> {
  const { context, route: { hub } } = connection
  const added = permissions.filter(name => !context.permissions.includes(name))
  const removed = context.permissions.filter(name => !permissions.includes(name))
  connection.granted = granted
  return replaceContext(connection, Object.freeze<AuthContext>({ ...context, permissions }), context.version + 1, {
    onReplaced () { hub.audit.permissionsChanged(connection) },
    onHolds () { connection.say({ type: 'permission_update', permissions, added, removed }) }
  })
}

/** All of them are changed when the first is waited for. */
async function outcomeOf (connections: readonly GuardedConnection[], changeOne: (connection: GuardedConnection) => Maybe<void>): Promise<Outcome> {
  await Promise.all(connections.map(changeOne).filter(one => one instanceof Promise))
  return { matched: connections.length, closed: connections.filter(({ isOpen }) => !isOpen).length }
}

function isSame (a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((name, i) => name === b[i])
}
