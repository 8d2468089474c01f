/**
 * Every guarded connection, found by user, by session and by token in the time of one Map read. Connections with the same
 * key are linked to each other, so that an index costs two references a connection and no collection of its own.
 */
import type { ConnectionFilter } from '../../types/connection.js'
import type { AuthContext } from '../../types/context.js'
import { invalidOption } from '../errors.js'
import type { Census } from '../observe/metrics.js'
import type { GuardedConnection } from './connection.js'

/** The fields of a connection that link it to its neighbours under one key. */
const SAME_USER = { next: 'nextOfUser', previous: 'previousOfUser' } as const
const SAME_CREDENTIAL = { next: 'nextOfCredential', previous: 'previousOfCredential' } as const
type Links = typeof SAME_USER | typeof SAME_CREDENTIAL

const FILTERS = new Set(['userId', 'issuer', 'tenantId', 'sessionId', 'tokenId', 'authType'])

export class Registry {
  readonly #all = new Set<GuardedConnection>()
  /** Those whose peer has closed, and whose frames are still judged: open to nobody, and reached by every order. */
  readonly #closing = new Set<GuardedConnection>()
  readonly #byUser = new Map<string, GuardedConnection>()
  readonly #bySession = new Map<string, GuardedConnection>()
  readonly #byToken = new Map<string, GuardedConnection>()

  get size (): number {
    return this.#all.size
  }

  add (connection: GuardedConnection): void {
    this.#all.add(connection)
    link(this.#byUser, connection.context.userId, connection, SAME_USER)
    this.#linkCredential(connection)
  }

  /** Its peer has closed. */
  close (connection: GuardedConnection): void {
    this.remove(connection)
    this.#closing.add(connection)
  }

  /** Does nothing the second time. */
  remove (connection: GuardedConnection): void {
    this.#closing.delete(connection)
    if (!this.#all.delete(connection)) return
    unlink(this.#byUser, connection.context.userId, connection, SAME_USER)
    this.#unlinkCredential(connection)
  }

  /** How many there are of each kind, and how many frames they hold back. */
  census (): Census {
    const byType = new Map<string, number>([['jwt', 0], ['oauth2', 0], ['session', 0]])
    let queuedFrames = 0
    for (const { context: { authType }, held } of this.#all) {
      byType.set(authType, Number(byType.get(authType)) + 1)
      queuedFrames += held?.length ?? 0
    }
    return { byType, queuedFrames }
  }

  /** Moves the connection to its new credential; the user stays the same. */
  rekey (connection: GuardedConnection, swap: () => void): void {
    // One whose peer has closed is in no index any more, and does not come back into one.
    if (!this.#all.has(connection)) {
      swap()
      return
    }
    this.#unlinkCredential(connection)
    swap()
    this.#linkCredential(connection)
  }

  /**
   * Those that match every member of the filter. The most selective index is followed, then the rest is compared.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION on a member that is not a filter
   */
  open (filter: ConnectionFilter): GuardedConnection[] {
    checkFilter(filter)
    const found: GuardedConnection[] = []
    for (const connection of this.#candidates(filter)) if (matches(connection, filter)) found.push(connection)
    return found
  }

  /** {@link open}, and those that are not done with what came before their peer closed. */
  find (filter: ConnectionFilter): GuardedConnection[] {
    const found = this.open(filter)
    for (const connection of this.#closing) if (matches(connection, filter)) found.push(connection)
    return found
  }

  /** Those of one credential, {@link find}. */
  sharing (context: AuthContext): GuardedConnection[] {
    const { authType, issuer } = context
    return this.find(authType === 'session' ? { authType, sessionId: context.sessionId } : { authType, issuer, tokenId: context.tokenId })
  }

  * #candidates ({ tokenId, sessionId, userId }: ConnectionFilter): Generator<GuardedConnection> {
    if (tokenId !== undefined) yield * chain(this.#byToken.get(tokenId), SAME_CREDENTIAL)
    else if (sessionId !== undefined) yield * chain(this.#bySession.get(sessionId), SAME_CREDENTIAL)
    else if (userId !== undefined) yield * chain(this.#byUser.get(userId), SAME_USER)
    else yield * this.#all
  }

  #linkCredential (connection: GuardedConnection): void {
    const { context } = connection
    if (context.authType === 'session') link(this.#bySession, context.sessionId, connection, SAME_CREDENTIAL)
    else link(this.#byToken, context.tokenId, connection, SAME_CREDENTIAL)
  }

  #unlinkCredential (connection: GuardedConnection): void {
    const { context } = connection
    if (context.authType === 'session') unlink(this.#bySession, context.sessionId, connection, SAME_CREDENTIAL)
    else unlink(this.#byToken, context.tokenId, connection, SAME_CREDENTIAL)
  }
}

/** What is not there matches nothing less than everything: a slip must not disconnect everybody. */
export function checkFilter (filter: unknown): void {
  if (typeof filter !== 'object' || filter === null) throw invalidOption('filter', 'must be an object')
  for (const [name, value] of Object.entries(filter)) {
    if (!FILTERS.has(name)) throw invalidOption(`filter.${name}`, 'is not an option')
    if (value === undefined) throw invalidOption(`filter.${name}`, 'is undefined')
  }
}

function matches ({ context }: GuardedConnection, filter: ConnectionFilter): boolean {
  const { userId, issuer, tenantId, sessionId, tokenId, authType } = filter
  return (userId === undefined || context.userId === userId) &&
    (issuer === undefined || context.issuer === issuer) &&
    (tenantId === undefined || context.tenantId === tenantId) &&
    (authType === undefined || context.authType === authType) &&
    (sessionId === undefined || (context.authType === 'session' && context.sessionId === sessionId)) &&
    (tokenId === undefined || (context.authType !== 'session' && context.tokenId === tokenId))
}

function * chain (head: GuardedConnection | undefined, links: Links): Generator<GuardedConnection> {
  for (let connection = head ?? null; connection !== null; connection = connection[links.next]) yield connection
}

function link (index: Map<string, GuardedConnection>, key: string, connection: GuardedConnection, links: Links): void {
  const head = index.get(key) ?? null
  connection[links.next] = head
  connection[links.previous] = null
  if (head !== null) head[links.previous] = connection
  index.set(key, connection)
}

function unlink (index: Map<string, GuardedConnection>, key: string, connection: GuardedConnection, links: Links): void {
  const next = connection[links.next]
  const previous = connection[links.previous]
  connection[links.next] = null
  connection[links.previous] = null
  if (next !== null) next[links.previous] = previous
  if (previous !== null) previous[links.next] = next
  else if (next !== null) index.set(key, next)
  else index.delete(key)
}
