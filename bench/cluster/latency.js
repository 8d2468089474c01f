/** From a command on one node to the closed socket on another, and what Redis itself takes to tell another process. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { median, quantile, quartiles } from '../statistics.js'

// A message after one of its own kind finds everything warm: each kind comes in blocks, and blocks are what is compared.
const BLOCKS = 40
const BLOCK = 25
const WARM_UP = 2

const MAX_CLOSED = 250
const MAX_NOISE = 0.1
const REVOKED = 4006

export async function measureLatency ({ redisUrl }) {
  const [a, b, clients] = ['./server.js', './server.js', '../connection/clients.js'].map(name => startChild(new URL(name, import.meta.url)))
  try {
    const secret = randomBytes(32).toString('base64url')
    const settings = { redisUrl, secret, clusterSecret: randomBytes(32).toString('base64url') }
    await a.ask('start', settings)
    const ports = await b.ask('start', settings)
    await b.ask('subscribe')
    const users = (BLOCKS + WARM_UP) * BLOCK
    for (const name of ['ours', 'naive']) await clients.ask('open', { port: ports[name], path: '/idle', secret, count: users, users })

    const closed = async given => {
      const { count, last, codes } = await clients.ask('closes', { count: 1 })
      if (count !== 1 || codes[0] !== REVOKED) throw new Error(`${count} sockets were closed, with ${codes}`)
      return last - given
    }
    const publish = async message => {
      const { at } = await a.ask('publish', message)
      return await b.ask('heard', message) - at
    }
    const times = { ours: [], resolved: [], naive: [], raw: [], twin: [] }
    const subjects = {
      async ours (i) {
        const { at, resolved, nodes } = await a.ask('revoke', { userId: `user-${i}` })
        if (nodes.acknowledged !== 2) throw new Error(`${nodes.missing} nodes did not answer`)
        return { ours: await closed(at), resolved }
      },
      async naive (i) {
        const { at } = await a.ask('closeNaively', { userId: `user-${i}` })
        return { naive: await closed(at) }
      },
      raw: async i => ({ raw: await publish(`raw ${i}`) }),
      twin: async i => ({ twin: await publish(`twin ${i}`) })
    }
    const names = Object.keys(subjects)
    for (let block = -WARM_UP; block < BLOCKS; block++) {
      for (const name of block % 2 === 0 ? names : [...names].reverse()) {
        const taken = []
        for (let i = 0; i < BLOCK; i++) taken.push(await subjects[name]((block + WARM_UP) * BLOCK + i))
        if (block < 0) continue
        for (const member of Object.keys(taken[0])) times[member].push(taken.map(found => found[member]))
      }
    }
    return describe(times)
  } finally {
    for (const child of [a, b, clients]) child.stop()
  }
}

/** @param times of every block, by name */
function describe (times) {
  const ratio = (name, a, b, bounds) => {
    const ratios = times[a].map((block, i) => median(block) / median(times[b][i]))
    return { name, value: median(ratios), spread: quartiles(ratios), digits: 2, ...bounds }
  }
  const tail = (name, of, bounds) => {
    const all = times[of].flat()
    return {
      name: `${name}, p99 of ${all.length}, ms`, value: quantile(all, 0.99), spread: quartiles(all), digits: 2,
      beside: `p50 ${median(all).toFixed(2)}, max ${Math.max(...all).toFixed(2)}`, ...bounds
    }
  }
  return [
    ratio('A/A: Redis publish to subscriber, against itself', 'twin', 'raw', { within: MAX_NOISE }),
    tail('Redis publish on A, heard on B', 'raw'),
    tail('a channel and a loop: told on A, closed at the client of B', 'naive'),
    tail('revoke on A, closed at the client of B', 'ours', { atMost: MAX_CLOSED }),
    tail('revoke on A, resolved there with the answer of B', 'resolved'),
    ratio('closed by revoke / heard from Redis', 'ours', 'raw'),
    ratio('closed by revoke / by a channel and a loop', 'ours', 'naive')
  ]
}
