/** One node in Redis: what it asks of it, and what it does without. How it reads is in redis-reader. */
import { authError } from '../errors.js'
import { Answers, type Collection } from './answers.js'
import type { Debit } from '../policy/bucket.js'
import type { Strike, Window } from '../policy/strikes.js'
import { OVER, REMEMBERED, type Cluster, type ClusterMember, type Delivery, type Lease, type OnClusterLoss } from './cluster.js'
import type { Codec, Command } from './command.js'
import type { Position, Recalled, Retention, Said, Wanted } from './history.js'
import { LeaseTable } from './leases.js'
import { ask, run, textOf, textsOf, type RedisClient, type Script } from './redis-client.js'
import { RedisCounts } from './redis-counts.js'
import { RedisHistory } from './redis-history.js'
import { createKeys } from './redis-keys.js'
import { RedisMemory } from './redis-memory.js'
import { RedisReader } from './redis-reader.js'
import { RedisRooms } from './redis-rooms.js'
import { ACQUIRE, PUBLISH, PUT_TICKET, RELEASE, TAKE_TICKET } from './redis-scripts.js'
import { bury, SKEW } from './redis-state.js'

export interface RedisSettings {
  readonly prefix: string
  readonly onClusterLoss: OnClusterLoss
  readonly clusterLossDelay: number
  readonly nodeTimeout: number
  readonly timeout: number
}

/** How far the log goes back, in milliseconds: whoever was away for longer reads the live revocations instead. */
export const LOG_AGE = 3_600_000
const MAX_QUEUED = 1000
/** How long a start waits for Redis before the application goes on without, refusing everybody. */
const START_TIMEOUT = 5000
const PART = 500
/** A limit that is not asked. */
const TAKEN = '-1'

export class RedisNode implements Cluster {
  readonly onLoss: Cluster['onLoss']
  readonly memory: RedisMemory
  readonly #client: RedisClient
  readonly #codec: Codec
  readonly #settings: RedisSettings
  readonly #member: ClusterMember
  readonly #keys
  readonly #reader: RedisReader
  readonly #answers = new Answers()
  /** Everything this node holds, and its count for the time when nobody else can be asked. */
  readonly #held = new Map<string, Lease>()
  readonly #leases = new LeaseTable()
  readonly #counts: RedisCounts
  readonly #rooms: RedisRooms
  readonly #history: RedisHistory
  /** Leases that Redis may have given, and has not said so. */
  readonly #asking = new Set<string>()
  readonly #queue: Array<{ readonly command: Command, readonly sealed: string }> = []

  constructor (client: RedisClient, codec: Codec, settings: RedisSettings, member: ClusterMember) {
    this.#client = client
    this.#codec = codec
    this.#settings = settings
    this.#member = member
    this.#keys = createKeys(settings.prefix)
    this.onLoss = { action: settings.onClusterLoss, after: settings.clusterLossDelay }
    const runIfConnected = async (script: Script, keys: string[], args: string[]): Promise<unknown> =>
      this.isConnected ? run(client, script, keys, args, settings.timeout).catch(() => undefined) : undefined
    this.#counts = new RedisCounts(this.#keys, member.id, runIfConnected)
    const parts = { client, codec, settings, member, keys: this.#keys, isConnected: () => this.isConnected }
    this.#rooms = new RedisRooms(parts)
    this.#history = new RedisHistory(parts)
    this.memory = new RedisMemory(this.#keys, codec, runIfConnected)
    this.#reader = new RedisReader({
      client, codec, settings, member, keys: this.#keys, answers: this.#answers, append: command => this.#append(command, codec.seal('control', command)), catchUp: () => this.#catchUp()
    })
  }

  get isConnected (): boolean {
    return this.#reader.isConnected
  }

  get queued (): number {
    return this.#queue.length
  }

  async start (): Promise<void> {
    await this.#reader.start(START_TIMEOUT)
  }

  async stop (): Promise<void> {
    await Promise.all([this.#reader.stop(), this.#rooms.stop()])
    this.#counts.stop()
    await bury(this.#client, this.#keys, this.#settings, this.#member.id, true).catch(() => {})
  }

  async publish (command: Command, awaits: boolean): Promise<Delivery> {
    const sealed = this.#codec.seal('control', command)
    // What waits was ordered before.
    if (!this.isConnected || this.#queue.length > 0) return this.#keep(command, sealed)
    const collected = this.#answers.expect(command.id)
    const delivery = await this.#deliver(command, sealed, awaits, collected).catch(() => null)
    collected.end()
    return delivery ?? this.#keep(command, sealed)
  }

  async #deliver (command: Command, sealed: string, awaits: boolean, collected: Collection): Promise<Delivery> {
    const alive = await this.#append(command, sealed)
    const others = alive.filter(node => node !== this.#member.id)
    this.#reader.others = others.length
    return { durable: true, ...await collected.from(awaits ? others : [], this.#settings.timeout) }
  }

  async acquire (lease: Lease, limits: readonly number[], evicts: boolean): Promise<readonly string[] | null> {
    this.#asking.add(lease.id)
    const reply = this.isConnected ? await this.#place(lease, limits.map(String), evicts).catch(() => undefined) : undefined
    this.#asking.delete(lease.id)
    const evicted = reply === undefined ? this.#acquireHere(lease, limits, evicts) : Array.isArray(reply) ? textsOf(reply) : null
    if (evicted === null) return null
    this.#held.set(lease.id, lease)
    this.#leases.add(lease)
    return evicted
  }

  /** Without Redis a node counts what is its own. Redis is told, or tells that it heard after all, when it can be asked. */
  #acquireHere (lease: Lease, limits: readonly number[], evicts: boolean): readonly string[] | null {
    this.#reader.differ()
    return this.#leases.acquire(lease, limits, evicts)
  }

  release (lease: Lease): void {
    this.#held.delete(lease.id)
    this.#leases.release(lease)
    this.#free(lease).catch(() => { this.#reader.differ() })
  }

  async putTicket (key: string, value: string, ttl: number): Promise<void> {
    const sealed = this.#codec.seal('ticket', { key, value, until: Date.now() + ttl + SKEW })
    const reply = await this.#runTicket(PUT_TICKET, key, [sealed, String(Math.ceil(ttl)), String(Math.ceil(ttl) + REMEMBERED)])
    if (reply !== 1) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
  }

  async takeTicket (key: string): Promise<string | typeof OVER | null> {
    const reply = await this.#runTicket(TAKE_TICKET, key, [String(REMEMBERED)])
    if (reply === null || reply === undefined) return null
    const opened = this.#codec.openTicket(textOf(reply))
    // It is good under its own name, and not for ever: who can write to Redis could put it back.
    return opened?.key === key && opened.until > Date.now() ? opened.value : OVER
  }

  /** What cannot be asked is not queued: a client that waits for a Redis which hangs has no bound. */
  async #runTicket (script: Script, key: string, args: string[]): Promise<unknown> {
    if (!this.isConnected) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    return run(this.#client, script, [this.#keys.ticket(key), this.#keys.over(key)], args, this.#settings.timeout)
  }

  spend (debits: readonly Debit[], isExact?: boolean): Promise<number> {
    return this.#counts.spend(debits, isExact)
  }

  subscribe (room: string): Promise<void> {
    return this.#rooms.subscribe(room)
  }

  unsubscribe (room: string): void {
    this.#rooms.unsubscribe(room)
  }

  broadcast (room: string, payload: string): Promise<boolean> {
    return this.#rooms.broadcast(room, payload)
  }

  append (room: string, said: Said, retention: Retention): Promise<boolean> {
    return this.#history.append(room, said, retention)
  }

  recall (room: string, after: Position | null, wanted: Wanted): Promise<Recalled | null> {
    return this.#history.recall(room, after, wanted)
  }

  strike (names: readonly string[], window: Window): Promise<Strike> {
    return this.#counts.strike(names, window)
  }

  /** After a time away: leases as they are now, and the commands that waited. */
  async #catchUp (): Promise<void> {
    const asked = new Set(this.#asking)
    const kept = new Set(textsOf(await this.#ask(['HKEYS', this.#keys.held(this.#member.id)])))
    const missing = [...this.#held.values()].filter(({ id }) => !kept.delete(id))
    await inParts(missing, lease => this.#restore(lease))
    const left = [...kept].filter(id => !asked.has(id) && !this.#asking.has(id) && !this.#held.has(id))
    await inParts(left, id => this.#freeAs(id))
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      await this.#append(next.command, next.sealed)
      this.#queue.shift()
    }
  }

  /** It may be given back while Redis is told that it is there. */
  async #restore (lease: Lease): Promise<void> {
    if (this.#held.has(lease.id)) await this.#place(lease, lease.keys.map(() => TAKEN), false, String(lease.at * 1000))
    if (!this.#held.has(lease.id)) await this.#free(lease)
  }

  async #append (command: Command, sealed: string): Promise<string[]> {
    const { log, live, ends, nodes } = this.#keys
    const isKept = command.type === 'revoke'
    const end = isKept ? String(command.revocation.expiresAt ?? '+inf') : ''
    const args = [command.id, sealed, end, String(LOG_AGE), String(this.#settings.nodeTimeout)]
    return textsOf(await run(this.#client, PUBLISH, [log, live, ends, nodes], args, this.#settings.timeout))
  }

  /** A revocation that finds no room is not lost: this node knows it, and tells Redis when that is back. */
  #keep (command: Command, sealed: string): Delivery {
    this.#reader.differ()
    if (command.type === 'presence') throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    // What is only worth something now leaves its room to others: each node finds out by itself.
    if (command.type === 'block') return { durable: false, matched: 0, closed: 0, acknowledged: 0, missing: this.#reader.others }
    if (this.#queue.length < MAX_QUEUED) this.#queue.push({ command, sealed })
    else if (command.type === 'revoke') this.#reader.forget()
    else throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    return { durable: false, matched: 0, closed: 0, acknowledged: 0, missing: this.#reader.others }
  }

  #place ({ id, keys }: Lease, limits: string[], evicts: boolean, since = ''): Promise<unknown> {
    const { held, lease } = this.#keys
    return run(this.#client, ACQUIRE, [held(this.#member.id), ...keys.map(key => lease + key)],
      [id, JSON.stringify(keys), evicts ? '1' : '0', since, ...limits], this.#settings.timeout)
  }

  #free ({ id, keys }: Lease): Promise<unknown> {
    const { held, lease } = this.#keys
    return run(this.#client, RELEASE, [held(this.#member.id), ...keys.map(key => lease + key)], [id], this.#settings.timeout)
  }

  /** One that was released while Redis was away. */
  async #freeAs (id: string): Promise<void> {
    const reply = await this.#ask(['HGET', this.#keys.held(this.#member.id), id])
    await this.#free({ id, keys: keysIn(textOf(reply)), at: 0 })
  }

  #ask (args: string[]): Promise<unknown> {
    return ask(this.#client, args, this.#settings.timeout)
  }
}

/** The keys of a lease as it is kept; none where that is not what stands there. */
function keysIn (text: string): string[] {
  try {
    return textsOf(JSON.parse(text))
  } catch {
    return []
  }
}

/** As many at once as do not keep Redis from others. */
async function inParts<T> (all: readonly T[], each: (one: T) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < all.length; from += PART) await Promise.all(all.slice(from, from + PART).map(each))
}
