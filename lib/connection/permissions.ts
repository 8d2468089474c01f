/** What open sockets may do: set by an order, or asked of the source again. */
import type { AuthContext } from '../../types/context.js'
import type { PermissionScope } from '../../types/plugin.js'
import type { Outcome } from '../cluster/cluster.js'
import { isRefusal, type Refusal } from '../errors.js'
import { MAX_TURNS } from '../policy/asked.js'
import { unawaited, whenReady, type Maybe } from '../maybe.js'
import type { PermissionUpdateFrame } from '../protocol.js'
import { closeConnection } from './closing.js'
import type { GuardedConnection, Granted } from './connection.js'
import type { Hub } from './hub.js'
import { isOver } from './lifecycle.js'
import { hasSameIdentity, replaceContext } from './reauth.js'

const UNAVAILABLE: Refusal = 'FST_HYBRID_AUTH_UNAVAILABLE'

/** On every connection of a user, until its next credential. Resolves when every rule and room has been asked. */
export async function setPermissions (hub: Hub, userId: string, given: readonly string[], scope: PermissionScope): Promise<Outcome> {
  const permissions = Object.freeze([...given])
  hub.sources?.forget(userId)
  return outcomeOf(hub.registry.find({ userId, ...scope }), connection =>
    change(connection, Object.freeze<AuthContext>({ ...connection.context, permissions }), { permissions, insteadOf: connection.granted?.insteadOf ?? connection.context.permissions }))
}

/** What is known of the user is forgotten, and every connection gets what the source says now. */
export async function refreshPermissions (hub: Hub, userId: string): Promise<Outcome> {
  hub.sources?.forget(userId)
  return outcomeOf(hub.registry.find({ userId }), refreshConnection)
}

/** One that cannot be asked about is closed: what it may do now is not known. Never rejects. */
export function refreshConnection (connection: GuardedConnection): Maybe<void> {
  const { context, route: { hub } } = connection
  return whenReady(hub.sources?.renew(context) ?? context, (found): Maybe<void> => {
    if (!connection.isOpen || isOver(connection)) return
    // A later credential brought what was true when it came, and may be older than what is asked for.
    if (connection.context !== context) return refreshConnection(connection)
    if (isRefusal(found)) closeConnection(connection, 'Unavailable')
    else if (!hasSameIdentity(found, context)) {
      hub.audit.identityChanged(connection)
      closeConnection(connection, 'IdentityChanged')
    } else if (!isSame(found.permissions, context.permissions) || JSON.stringify(found.user) !== JSON.stringify(context.user)) return change(connection, found, null)
  })
}

/**
 * What a context was made with may have been asked for before something changed: then it is asked for again. `then` runs in the
 * step in which the permissions are known to be those that the source has, or to be unknown.
 */
export function whenCurrent ({ sources }: Pick<Hub, 'sources'>, context: AuthContext, then: (current: AuthContext | Refusal) => void, turn = 0): void {
  if (sources === null || sources.isCurrent(context)) {
    then(context)
    return
  }
  unawaited(whenReady(sources.renew(context), found => {
    if (isRefusal(found)) then(found)
    else if (turn >= MAX_TURNS) then(UNAVAILABLE)
    else whenCurrent({ sources }, found, then, turn + 1)
  }))
}

function change (connection: GuardedConnection, next: AuthContext, granted: Granted | null): Maybe<void> {
  const { context: { permissions, version }, route: { hub } } = connection
  // What was set is told, whatever it was before.
  const isTold = granted !== null || !isSame(permissions, next.permissions)
  connection.granted = granted
  return replaceContext(connection, next, version + 1, {
    onReplaced () { if (isTold) hub.audit.permissionsChanged(connection) },
    tell () { if (isTold) connection.say(permissionUpdate(permissions, next.permissions)) }
  })
}

export function permissionUpdate (before: readonly string[], permissions: readonly string[]): PermissionUpdateFrame {
  const added = permissions.filter(name => !before.includes(name))
  const removed = before.filter(name => !permissions.includes(name))
  return { type: 'permission_update', permissions, added, removed }
}

/** All of them are changed when the first is waited for. */
async function outcomeOf (connections: readonly GuardedConnection[], changeOne: (connection: GuardedConnection) => Maybe<void>): Promise<Outcome> {
  await Promise.all(connections.map(changeOne).filter(one => one instanceof Promise))
  return { matched: connections.length, closed: connections.filter(({ isOpen }) => !isOpen).length }
}

/** In whatever order: a database need not have one. */
export function isSame (a: readonly string[], b: readonly string[]): boolean {
  return a.every(name => b.includes(name)) && b.every(name => a.includes(name))
}
