/** Servers, and for each of their applications a process of clients. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { PATHS } from './apps.js'

// Room for the garbage of a whole burst: each is collected once, at its own end.
const FLAGS = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64', ...(process.env.BENCH_SERVER_FLAGS?.split(' ') ?? [])]
/** Descriptors that a process needs for other things than its sockets. */
const SPARE = 100

export const ROOM = 'tenant/acme/agents'

/** As many sockets as each of so many applications in one process may have, at most `wanted`. */
export function capped (wanted, applications) {
  const limit = process.report.getReport().userLimits.open_files.hard
  return limit === 'unlimited' ? wanted : Math.min(wanted, Math.floor((limit - SPARE) / applications))
}

export const startServer = () => startChild(new URL('./server.js', import.meta.url), FLAGS)

/**
 * @param given the names of the applications of `server`, each with its kind; `publishers` have the same, and nobody's sockets
 * @param count sockets of each
 * @param rooms that they join
 * @param protocol that the clients of ours offer
 * @param use is given the clients of each, by name
 */
export async function withSockets (server, given, { count, rooms = [], publishers = [server], settings = {}, protocol }, use) {
  const secret = randomBytes(32).toString('base64url')
  const clients = {}
  const all = [server, ...publishers.filter(other => other !== server)]
  try {
    const [ports] = await Promise.all(all.map(one => one.ask('start', { given, secret, ...settings })))
    for (const [name, kind] of Object.entries(given)) {
      const receivers = startChild(new URL('./receivers.js', import.meta.url))
      clients[name] = receivers
      await receivers.ask('open', { count, port: ports[name], path: PATHS[kind], secret, isIo: kind === 'io', protocol: kind === 'ours' ? protocol : undefined })
      await server.ask('opened', { name, count })
      await server.ask('join', { name, rooms })
      await receivers.ask('settle')
    }
    return await use(clients)
  } finally {
    for (const one of [...all, ...Object.values(clients)]) one.stop()
  }
}

/**
 * A burst of messages: from the first until the last of them is with its last member.
 * @param nodes whose CPU time counts; the first of them publishes
 * @param isAtOnce in one turn of the loop, and not one in each
 * @returns function that measures one, in microseconds for each message
 */
export async function publishing (nodes, name, receivers, { count, times, isAtOnce = false }) {
  const [publisher] = nodes
  await publisher.ask('publish', { name, room: ROOM, times: 1 })
  const bytes = await receivers.ask('settle')
  if (bytes === 0 || bytes % count !== 0) throw new Error(`${bytes} bytes came to ${count} members of ${name}`)
  const used = async () => (await Promise.all(nodes.map(node => node.ask('cpu')))).reduce((sum, cpu) => sum + cpu, 0)
  return async () => {
    const before = await used()
    const drained = receivers.ask('drained', { bytes: bytes * times })
    const at = await publisher.ask('publish', { name, room: ROOM, times, isAtOnce })
    const last = await drained
    return { cpu: (await used() - before) / times, clock: (last - at) * 1000 / times }
  }
}
