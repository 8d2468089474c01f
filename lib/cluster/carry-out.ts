/** What a command does on a node, whoever gave it. */
import { connectionsOf, disconnectAll, requireReauth, revokeConnections } from '../connection/enforce.js'
import type { Hub } from '../connection/hub.js'
import { refreshPermissions, setPermissions } from '../connection/permissions.js'
import { CLOSE, type CloseName } from '../protocol.js'
import type { Failures } from '../policy/failures.js'
import type { Outcome } from './cluster.js'
import type { Command } from './command.js'
import type { Revocation, Revocations } from './revocations.js'
import { youngTokens } from './young.js'

export const NOTHING: Outcome = { matched: 0, closed: 0 }

export interface Executor {
  readonly hub: Hub
  readonly known: Revocations
  readonly failures: Failures | null
  /** Tells the other nodes of one that this node found out about by itself. */
  readonly tell: (revocation: Revocation) => void
}

/** What is to end has ended for the application when this returns; the promise waits for the close frames. */
export async function carryOut (executor: Executor, command: Command): Promise<Outcome> {
  const { hub } = executor
  switch (command.type) {
    case 'count': return { matched: connectionsOf(hub.registry, command.revocation).length, closed: 0 }
    case 'revoke': return revoke(executor, command.revocation)
    case 'disconnect': {
      const { filter, code, reason } = command
      const found = hub.registry.find(filter)
      await disconnectAll(found, closeByOf(code), reason === undefined ? {} : { reason })
      return { matched: found.length, closed: found.length }
    }
    case 'permissions': {
      const { userId, permissions, issuer, tenantId } = command
      return setPermissions(hub, userId, permissions, { ...(issuer !== undefined && { issuer }), ...(tenantId !== undefined && { tenantId }) })
    }
    case 'refresh': return refreshPermissions(hub, command.userId)
    case 'presence': return { matched: hub.rooms.membersOf(command.room)?.size ?? 0, closed: 0 }
    case 'block': {
      executor.failures?.block(command.address, Math.max(0, command.ms - Math.max(0, Date.now() - command.at)))
      return NOTHING
    }
    case 'evict': {
      const { length } = command.leases.filter(lease => hub.limits?.evict(lease) === true)
      return { matched: length, closed: length }
    }
  }
}

async function revoke ({ hub, known, tell }: Executor, revocation: Revocation): Promise<Outcome> {
  const isNew = known.add(revocation)
  if (!isNew && known.has(revocation.id)) return NOTHING
  // One that is over already, on a node that was away, still ends what was open when it was made.
  if (revocation.kind === 'user') hub.sources?.forget(revocation.key)
  if (revocation.kind === 'login' || revocation.kind === 'subject') hub.verifiers.forgetAnswers()
  const found = connectionsOf(hub.registry, revocation).filter(({ context }) => isNew || context.authenticatedAt <= revocation.at)
  const young = youngTokens(found, revocation).filter(one => known.add(one))
  if (revocation.reauthWithin > 0) requireReauth(found, revocation)
  else await revokeConnections(found, revocation)
  for (const one of young) tell(one)
  return { matched: found.length, closed: revocation.reauthWithin > 0 ? 0 : found.length }
}

/** The names of this version are known here; another's are closed as what they most likely are. */
function closeByOf (code: string | number): CloseName | number {
  if (typeof code === 'number') return code
  return isCloseName(code) ? code : 'Revoked'
}

function isCloseName (name: string): name is CloseName {
  return Object.hasOwn(CLOSE, name)
}
