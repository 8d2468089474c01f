/** What a command does to the connections of this process. */
import { setImmediate as immediate } from 'node:timers/promises'
import type { ConnectionFilter } from '../../types/connection.js'
import { isAimedAt, isOlder, type Revocation } from '../cluster/revocations.js'
import { AT_ONCE, now } from './clock.js'
import { unawaited } from '../maybe.js'
import { closeConnection } from './closing.js'
import type { GuardedConnection } from './connection.js'
import { sendFrame } from './control.js'
import type { CloseBy, CloseDetails } from './hub.js'
import { endBy, isOver } from './lifecycle.js'
import type { Registry } from './registry.js'

/** Closes between two turns of the loop. */
const BATCH = 25

/** One after the other; the first of them at once. Other work of the loop goes on between the batches. */
export async function inBatches (connections: readonly GuardedConnection[], end: (connection: GuardedConnection) => void): Promise<void> {
  for (const [index, connection] of connections.entries()) {
    end(connection)
    if (index % BATCH === BATCH - 1) await immediate()
  }
}

/** The open connections that a revocation ends, or would. */
export function connectionsOf (registry: Registry, revocation: Revocation): GuardedConnection[] {
  const { issuedBefore } = revocation
  return registry.find(filterOf(revocation)).filter(({ context }) => isAimedAt(revocation, context) &&
    // What was verified before that time was issued before it, whatever its seconds say.
    (issuedBefore === undefined || context.authenticatedAt <= issuedBefore || isOlder(context, issuedBefore)))
}

function filterOf ({ kind, key }: Revocation): ConnectionFilter {
  switch (kind) {
    case 'user': return { userId: key }
    case 'session': return { sessionId: key }
    case 'token': return { tokenId: key }
    case 'tenant': return { tenantId: key }
    // Logouts are rare, and no index is kept for them.
    case 'login': case 'subject': return {}
  }
}

/** Nothing passes any more from here on, in either direction; the closes follow in batches. */
export async function revokeConnections (connections: readonly GuardedConnection[], revocation: Revocation): Promise<void> {
  for (const connection of connections) endBy(connection, AT_ONCE, revocation)
  await inBatches(connections, connection => { isOver(connection) })
}

/** Asks for another credential, and ends whoever has not brought one in time. */
export function requireReauth (connections: readonly GuardedConnection[], revocation: Revocation): void {
  const { reauthWithin } = revocation
  for (const connection of connections) {
    if (!endBy(connection, now() + reauthWithin, revocation)) continue
    connection.isAsked = true
    // A session's socket takes no token: what helps there is a new login over HTTP.
    if (connection.speaks && connection.context.authType !== 'session') {
      sendFrame(connection.socket, { type: 'token_refresh_required', expiresIn: Math.ceil(reauthWithin / 1000) })
    }
    connection.announce('expiring', reauthWithin)
    unawaited(connection.route.hub.rooms.recheck(connection))
  }
}

export async function disconnectAll (connections: readonly GuardedConnection[], by: CloseBy, details: CloseDetails): Promise<void> {
  await inBatches(connections, connection => { closeConnection(connection, by, details) })
}
