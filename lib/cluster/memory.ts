/** One process, or several nodes in one: everything that Redis does for nodes, without it. */
import { CLAIM } from './claims.js'
import { authError } from '../errors.js'
import { BucketTable } from '../policy/bucket.js'
import { StrikeTable } from '../policy/strikes.js'
import { OVER, REMEMBERED, type Cluster, type ClusterDriver, type ClusterMember, type Delivery } from './cluster.js'
import type { Command } from './command.js'
import { LeaseTable } from './leases.js'
import { MemoryHistories } from './memory-history.js'

const MAX_TICKETS = 100_000
/** Users and addresses that are counted at once. */
export const MAX_COUNTED = 100_000

/** @returns a cluster whose nodes are the registrations that it is given to, all in this process */
export function memoryCluster (): ClusterDriver {
  const members = new Set<ClusterMember>()
  const leases = new LeaseTable()
  const buckets = new BucketTable(MAX_COUNTED, Date.now)
  /** Apart, so that who uses up names does not have limits forgotten. */
  const claims = new BucketTable(MAX_COUNTED, Date.now)
  const strikes = new StrikeTable(MAX_COUNTED)
  const histories = new MemoryHistories()
  const tickets = new Map<string, { readonly value: string | typeof OVER, readonly until: number }>()

  const channels = new Map<string, Set<ClusterMember>>()

  return { join }

  function join (member: ClusterMember): Cluster {
    members.add(member)
    return {
      onLoss: { action: 'serve', after: 0 },
      queued: 0,
      memory: null,
      isConnected: true,
      async start () {},
      async stop () {
        members.delete(member)
        if (members.size === 0) {
          buckets.stop()
          claims.stop()
          strikes.stop()
          histories.stop()
        }
        for (const lease of member.leases()) leases.release(lease)
        for (const room of channels.keys()) unsubscribe(room, member)
      },
      publish: command => publish(command, member),
      subscribe (room) { channels.set(room, (channels.get(room) ?? new Set()).add(member)) },
      unsubscribe (room) { unsubscribe(room, member) },
      broadcast (room, payload) {
        for (const other of channels.get(room) ?? []) if (other !== member) other.heard(room, payload)
        return true
      },
      append (room, said, retention) {
        const { epoch, entry } = histories.append(room, member.id, said, retention)
        for (const other of channels.get(room) ?? []) other.told(room, epoch, entry)
        return true
      },
      recall: (room, after, wanted) => histories.recall(room, after, wanted),
      acquire: (lease, limits, evicts) => leases.acquire(lease, limits, evicts),
      release: lease => { leases.release(lease) },
      spend: debits => (debits[0]?.key.startsWith(CLAIM) === true ? claims : buckets).spend(debits),
      strike: (names, window) => strikes.strike(names, window),
      putTicket,
      takeTicket
    }
  }

  function unsubscribe (room: string, member: ClusterMember): void {
    const channel = channels.get(room)
    channel?.delete(member)
    if (channel?.size === 0) channels.delete(room)
  }

  async function publish (command: Command, from: ClusterMember): Promise<Delivery> {
    const others = [...members].filter(member => member !== from)
    const outcomes = await Promise.all(others.map(member => member.receive(command)))
    return {
      durable: true,
      acknowledged: others.length,
      missing: 0,
      matched: outcomes.reduce((sum, { matched }) => sum + matched, 0),
      closed: outcomes.reduce((sum, { closed }) => sum + closed, 0)
    }
  }

  function putTicket (key: string, value: string, ttl: number): void {
    const now = Date.now()
    for (const [old, { until }] of tickets) {
      if (until + REMEMBERED > now) break
      tickets.delete(old)
    }
    // Those which are good are not lost for others.
    for (const [old, { value, until }] of tickets.size < MAX_TICKETS ? [] : tickets) if (value === OVER || until <= now) tickets.delete(old)
    if (tickets.size >= MAX_TICKETS) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    tickets.set(key, { value, until: now + ttl })
  }

  function takeTicket (key: string): string | typeof OVER | null {
    const ticket = tickets.get(key)
    if (ticket === undefined) return null
    const { value, until } = ticket
    // Behind the others: who keeps coming back with one that is over keeps it remembered.
    tickets.delete(key)
    tickets.set(key, { value: OVER, until: Math.min(until, Date.now()) })
    return until <= Date.now() ? OVER : value
  }
}
