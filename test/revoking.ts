/** A server that tells what it decided, sessions to put into it, and what a revocation does to a socket. */
import type { Test } from 'tap'
import type { AuditEvent, CommandResult, HybridAuthOptions, Identity } from '../lib/index.js'
import type { Cluster, ClusterDriver, ClusterMember } from '../lib/cluster/cluster.js'
import { memoryCluster } from '../lib/cluster/memory.js'
import { closeReason } from '../lib/protocol.js'
import { live, type End, type Live, type LiveOptions, type Pair } from './live.js'
import { cookieFor, deferred, MapStore, type Deferred } from './stores.js'

export const REVOKED = { code: 4006, reason: closeReason('Revoked') }
export const codeAndReason = ({ code, reason }: Pick<End, 'code' | 'reason'>) => ({ code, reason })
export const updateOf = (token: string) => ({ type: 'auth_update', token })
export const bearer = (token: string) => ({ headers: { authorization: `Bearer ${token}` } })
export const withCookie = (cookie: string) => ({ headers: { cookie } })

/** What one process answers, where it met so many. */
export function outcome (matched: number, closed = matched): Omit<CommandResult, 'id'> {
  return { matched, closed, durable: true, nodes: { acknowledged: 1, missing: 0 } }
}

/** A result without its id, which is checked here. */
export function withoutId (t: Test, { id, ...rest }: CommandResult): Omit<CommandResult, 'id'> {
  t.match(id, /^[A-Za-z0-9_-]{16}$/, 'the command has an id')
  return rest
}

export interface Audited extends Live {
  events: AuditEvent[]
  types: () => string[]
  store: MapStore
  /** Puts a session into the store, and returns its cookie. */
  session: (id: string, user: Identity) => string
}

/** Heartbeats are off: nothing but what the test does moves a connection. */
export async function audited (t: Test, { auth, ...rest }: LiveOptions = {}): Promise<Audited> {
  const events: AuditEvent[] = []
  const store = new MapStore()
  const server = await live(t, { auth: { heartbeat: false, audit: event => { events.push(event) }, ...auth }, session: { store }, ...rest })
  return {
    ...server,
    events,
    types: () => events.map(({ type }) => type),
    store,
    session (id, user) {
      store.put(id, { user, cookie: {} })
      return cookieFor(id)
    }
  }
}

/** What both ends of a socket that was revoked have seen. */
export async function isRevoked (t: Test, { peer, there }: Pair, what: string): Promise<void> {
  t.same(codeAndReason(await peer.end), REVOKED, `${what}: 4006 revoked`)
  await there.closed
  t.same([there.closes, there.socketCloses], [[4006], [4006]], `${what}: the application hears it once`)
}

export async function isOpen (t: Test, { peer }: Pair, what: string): Promise<void> {
  t.ok(await peer.echoed(`${what} is open`), `${what}: open`)
}

/** A place on a path where whoever comes by is held up, once the test has armed it. */
export class Hold {
  #isArmed = false
  readonly #entered: Deferred<void> = deferred()
  readonly #left: Deferred<void> = deferred()

  arm (): void {
    this.#isArmed = true
  }

  /** For the path. */
  async pass (): Promise<void> {
    if (!this.#isArmed) return
    this.#entered.resolve()
    await this.#left.promise
  }

  /** Until somebody is held up here. */
  get entered (): Promise<void> {
    return this.#entered.promise
  }

  release (): void {
    this.#left.resolve()
  }
}

/** One process's cluster, of which a test may do anything otherwise, and its members. */
export function driverOf (changes: (inner: Cluster, member: ClusterMember) => Partial<Cluster> = () => ({})): ClusterDriver & { members: ClusterMember[] } {
  const memory = memoryCluster()
  const members: ClusterMember[] = []
  return {
    members,
    join (member) {
      members.push(member)
      const inner = memory.join(member)
      return { ...inner, ...changes(inner, member) }
    }
  }
}

/** What `revoke()` and the like are given where a test gives what their types do not allow. */
export const untyped = (value: unknown) => value as never

export type { HybridAuthOptions }
