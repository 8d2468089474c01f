/** What a command does on a node, whoever gave it. */
import { changePermissions, connectionsOf, disconnectAll, requireReauth, revokeConnections } from '../connection/enforce.js'
import type { Hub } from '../connection/hub.js'
import { CLOSE, type CloseName } from '../protocol.js'
import type { Outcome } from './cluster.js'
import type { Command } from './command.js'
import type { Revocation, Revocations } from './revocations.js'
import { youngTokens, type Young } from './young.js'

export const NOTHING: Outcome = { matched: 0, closed: 0 }

export interface Executor {
  readonly hub: Hub
  readonly known: Revocations
  /** Revokes a token that the revocation itself does not reach. */
  readonly revokeYoung: (young: Young) => void
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
    case 'permissions': return { matched: changePermissions(hub, command.userId, command.permissions), closed: 0 }
    case 'evict': {
      const { length } = command.leases.filter(lease => hub.limits?.evict(lease) === true)
      return { matched: length, closed: length }
    }
  }
}

async function revoke ({ hub, known, revokeYoung }: Executor, revocation: Revocation): Promise<Outcome> {
  if (!known.add(revocation)) return NOTHING
  const found = connectionsOf(hub.registry, revocation)
  for (const young of youngTokens(found, revocation)) revokeYoung(young)
  if (revocation.reauthWithin > 0) {
    requireReauth(found, revocation)
    return { matched: found.length, closed: 0 }
  }
  await revokeConnections(found, revocation)
  return { matched: found.length, closed: found.length }
}

/** The names of this version are known here; another's are closed as what they most likely are. */
function closeByOf (code: string | number): CloseName | number {
  if (typeof code === 'number') return code
  return isCloseName(code) ? code : 'Revoked'
}

function isCloseName (name: string): name is CloseName {
  return Object.hasOwn(CLOSE, name)
}
