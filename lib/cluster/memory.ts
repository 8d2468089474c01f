/** One process, or several nodes in one: everything that Redis does for nodes, without it. */
import { authError } from '../errors.js'
import type { Cluster, ClusterDriver, ClusterMember, Delivery } from './cluster.js'
import type { Command } from './command.js'
import { LeaseTable } from './leases.js'

const MAX_TICKETS = 100_000

/** @returns a cluster whose nodes are the registrations that it is given to, all in this process */
export function memoryCluster (): ClusterDriver {
  const members = new Set<ClusterMember>()
  const leases = new LeaseTable()
  const tickets = new Map<string, { readonly value: string, readonly until: number }>()

  return { join }

  function join (member: ClusterMember): Cluster {
    members.add(member)
    return {
      onLoss: { action: 'serve', after: 0 },
      queued: 0,
      isConnected: true,
      async start () {},
      async stop () {
        members.delete(member)
        for (const lease of member.leases()) leases.release(lease)
      },
      publish: command => publish(command, member),
      acquire: (lease, limits, evicts) => leases.acquire(lease, limits, evicts),
      release: lease => { leases.release(lease) },
      putTicket,
      takeTicket
    }
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
    const isFull = tickets.size >= MAX_TICKETS
    for (const [old, { until }] of tickets) {
      if (until <= now) tickets.delete(old)
      else if (!isFull) break
    }
    if (tickets.size >= MAX_TICKETS) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
    tickets.set(key, { value, until: now + ttl })
  }

  function takeTicket (key: string): string | null {
    const ticket = tickets.get(key)
    tickets.delete(key)
    return ticket === undefined || ticket.until <= Date.now() ? null : ticket.value
  }
}
