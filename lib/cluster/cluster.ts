/** What a node asks of its cluster, and a cluster of its nodes. Memory and Redis are the two that there are. */
import type { Maybe } from '../maybe.js'
import type { SharedMemory } from '../policy/asked.js'
import type { Debit } from '../policy/bucket.js'
import type { Strike, Window } from '../policy/strikes.js'
import type { Command } from './command.js'
import type { Entry, Position, Recalled, Retention, Said, Wanted } from './history.js'
import type { Revocation } from './revocations.js'

/** What a command met: connections that it concerns, and those of them that it closed. */
export interface Outcome {
  readonly matched: number
  readonly closed: number
}

/** What became of a command on the other nodes. */
export interface Delivery extends Outcome {
  /** It is in the log: a node that is away finds it there. */
  readonly durable: boolean
  readonly acknowledged: number
  readonly missing: number
}

/** A connection's place under its limits. Unique among nodes. */
export interface Lease {
  readonly id: string
  /** What is counted: `user:alice`, `ip:192.0.2.1`, `tenant:acme`. */
  readonly keys: readonly string[]
  /** When it was taken, in milliseconds since the epoch. */
  readonly at: number
}

/** How a node came back to its cluster, or to it for the first time. */
export interface Recovery {
  /** How long it was away, and how long it took from the first answer until nothing was left to read, in milliseconds. */
  readonly lostFor: number
  readonly converged: number
}

/** The node, as its cluster sees it. */
export interface ClusterMember {
  readonly id: string
  /** A command of another node. One that came before does nothing. */
  receive (command: Command): Promise<Outcome>
  /** Revocations that are live, for a cluster that has lost them. */
  revocations (): Iterable<Revocation>
  /** Another node has published. @param payload as JSON */
  heard (room: string, payload: string): void
  /** Something was said in a room with history, here or on another node. It may be told twice, or not at all. */
  told (room: string, epoch: string, entry: Entry): void
  /** Something may have been said that was not told. */
  resumed (): void
  hasRevocation (id: string): boolean
  leases (): Iterable<Lease>
  /** @param cause what Redis, or the way to it, said */
  lost (cause: unknown): void
  recovered (recovery: Recovery): void
  /** A message that could not have come from a node. */
  ignored (): void
}

/** The sender of what is told anew, whom nobody answers. */
export const ANYBODY = '*'

/** A ticket that was taken, or whose time is over. */
export const OVER = Symbol('over')
/** How long a ticket that is over is told from one that never was, in milliseconds. */
export const REMEMBERED = 300_000

/** What open and new sockets may do while the cluster cannot be reached. */
export type OnClusterLoss = 'serve' | 'refuse-new' | 'close'

/** One node's way to the others. */
export interface Cluster {
  /** null: the only node there is remembers for itself. */
  readonly memory: SharedMemory | null
  readonly onLoss: { readonly action: OnClusterLoss, readonly after: number }
  readonly isConnected: boolean
  /** Commands that wait for the cluster to be back. */
  readonly queued: number
  /** Resolves when live revocations are known, or when it is clear that they are not to be had now. Never rejects. */
  start (): Promise<void>
  stop (): Promise<void>
  /**
   * Tells the other nodes.
   * @param awaits whether their answers are waited for
   * @throws FST_HYBRID_AUTH_UNAVAILABLE where no more commands can be kept
   */
  publish (command: Command, awaits: boolean): Promise<Delivery>
  /**
   * Takes a place under every key, or none.
   * @param limits how many places each key has, in the order of the keys
   * @returns the leases that have to go for it, oldest first; null: there is no place
   */
  acquire (lease: Lease, limits: readonly number[], evicts: boolean): Maybe<readonly string[] | null>
  release (lease: Lease): void
  /** Resolves when what other nodes publish in a room comes in, or when it is clear that it does not for now. Never rejects. */
  subscribe (room: string): Maybe<void>
  unsubscribe (room: string): void
  /**
   * Tells the nodes that have subscribed to a room. Never rejects.
   * @param payload as JSON
   * @returns false: they cannot be reached
   */
  broadcast (room: string, payload: string): Maybe<boolean>
  /** Puts it at the end of the room's history, and tells the nodes that have subscribed, this one included. Never rejects. @returns false: it is not known to be there */
  append (room: string, said: Said, retention: Retention): Maybe<boolean>
  /** What follows a position; null: where the room is now. Never rejects. @returns null: it cannot be asked for */
  recall (room: string, after: Position | null, wanted: Wanted): Maybe<Recalled | null>
  /**
   * Takes from every bucket or from none. @returns 0, or how long to wait, in milliseconds; Infinity: for ever
   * @param isExact what the others have taken counts: @throws, or rejects with, FST_HYBRID_AUTH_UNAVAILABLE where that is not known
   */
  spend (debits: readonly Debit[], isExact?: boolean): Maybe<number>
  /** Counts a failure under each of the names. */
  strike (names: readonly string[], window: Window): Maybe<Strike>
  /** Keeps a value to be taken once. @throws, or rejects, where that cannot be promised */
  putTicket (key: string, value: string, ttl: number): Maybe<void>
  /**
   * The value, for the first who asks within `ttl`. @throws, or rejects, where that cannot be known
   * @returns {@link OVER} for whoever asks later; null: there never was one, or it was long ago
   */
  takeTicket (key: string): Maybe<string | typeof OVER | null>
}

/** As the `cluster` option takes it: one object may serve several registrations, each a node of its own. */
export interface ClusterDriver {
  join (member: ClusterMember): Cluster
}
