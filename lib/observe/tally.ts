/** What has happened so far, as plain numbers: counting costs no more than that, whether or not anybody ever asks. */
import type { AuthErrorCode } from '../errors.js'

/** How often each member of a small set of names was seen. */
export class Counts<Name extends string | number = string> {
  readonly #counts = new Map<Name, number>()

  add (name: Name): void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1)
  }

  entries (): Iterable<readonly [Name, number]> {
    return this.#counts
  }
}

/** How often a time was within each of some bounds, which are in seconds. */
export class Times {
  readonly bounds: readonly number[]
  /** Of each bound those that lie above the one before it; the last is for what lies above all. */
  readonly counts: number[]
  sum = 0

  constructor (bounds: readonly number[]) {
    this.bounds = bounds
    this.counts = [...bounds, Infinity].map(() => 0)
  }

  /** @param ms in milliseconds */
  observe (ms: number): void {
    const seconds = Math.max(0, ms) / 1000
    this.sum += seconds
    const at = this.bounds.findIndex(bound => seconds <= bound)
    const index = at === -1 ? this.bounds.length : at
    this.counts[index] = Number(this.counts[index]) + 1
  }
}

/** Who ended a socket: one of our rules about credentials, a limit, the server for another reason, the application, the peer, the way. */
export type ClosedBy = 'authentication' | 'limit' | 'server' | 'application' | 'peer' | 'network'

/** What became of a question to the authorization server, or of one that was not asked because too many had failed. */
export type Introspected = 'active' | 'inactive' | 'unavailable'

/** Parts of one name, which hold no space. */
const SEPARATOR = ' '

export class Tally {
  /** By outcome. */
  readonly upgrades = new Counts()
  readonly requests = new Counts()
  readonly refreshes = new Counts()
  readonly introspections = new Counts<Introspected>()
  /** By whom, and by code. */
  readonly closes: Readonly<Record<ClosedBy, Counts<number | 'other'>>> = {
    authentication: new Counts(), limit: new Counts(), server: new Counts(), application: new Counts(), peer: new Counts(), network: new Counts()
  }

  /** By limit and whether it was enforced. */
  readonly limits = new Counts()
  readonly verifyTimes = new Times(VERIFY_BOUNDS)
  readonly revocationLatency = new Times(REVOKE_BOUNDS)
  cacheHits = 0
  cacheMisses = 0
  expiries = 0
  revoked = 0
  messagesRefused = 0
  /** By reason. */
  readonly roomsRefused = new Counts()
  /** Messages of rooms: what this node published, what of it the other nodes were not told, what came from them, and what members were sent. */
  published = 0
  unpublished = 0
  heard = 0
  delivered = 0
  bruteForces = 0
  auditDropped = 0
  auditFailed = 0

  /** A message that this node published: how many members it was sent to, and whether the other nodes were told. */
  roomMessage (delivered: number, isPublished: boolean): void {
    this.published++
    this.delivered += delivered
    if (!isPublished) this.unpublished++
  }

  /** A message of another node. */
  roomHeard (delivered: number): void {
    this.heard++
    this.delivered += delivered
  }

  handshake (isSocket: boolean, outcome: string): void {
    (isSocket ? this.upgrades : this.requests).add(outcome)
  }

  /** A peer may close with any of thousands of codes: those that mean something are told apart. */
  closed (code: number, by: ClosedBy): void {
    this.closes[by].add(by === 'peer' && !PEER_CODES.has(code) ? 'other' : code)
  }

  limited (limit: string, isEnforced: boolean): void {
    this.limits.add(join(limit, String(isEnforced)))
  }
}

/** RFC 6455 §7.4.1, without those that a server alone would send. */
const PEER_CODES = new Set([1000, 1001, 1002, 1003, 1005, 1007, 1008, 1009, 1011])

/** From a cached token to an authorization server that hardly answers. */
const VERIFY_BOUNDS = [0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10]
const REVOKE_BOUNDS = [0.001, 0.005, 0.025, 0.1, 0.25, 1, 5, 30]

const join = (a: string, b: string): string => a + SEPARATOR + b

export function split (name: string): readonly [string, string] {
  const at = name.indexOf(SEPARATOR)
  return [name.slice(0, at), name.slice(at + 1)]
}

/** As a label: `invalid_token` of FST_HYBRID_AUTH_INVALID_TOKEN. */
export function labelOf (code: AuthErrorCode): string {
  return code.slice('FST_HYBRID_AUTH_'.length).toLowerCase()
}
