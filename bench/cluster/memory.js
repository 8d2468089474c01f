/** What a live revocation costs: on a node, in Redis, and a node that joins where there are many. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { KINDS } from './targets.js'

const COUNT = 100_000

export async function measureMemory ({ redisUrl, client }) {
  const rows = []
  for (const kind of KINDS) {
    const bytes = await withChild('./heap.js', child => child.ask('measure', { kind, count: COUNT }))
    rows.push({ name: `a live revocation on a node, of a ${kind}, bytes`, value: bytes })
  }
  return [...rows, ...await measureRedis(redisUrl, client)]
}

async function measureRedis (redisUrl, client) {
  const settings = { redisUrl, secret: randomBytes(32).toString('base64url'), clusterSecret: randomBytes(32).toString('base64url') }
  return withChild('./server.js', async node => {
    await node.ask('start', settings)
    const before = await usedMemory(client)
    const start = performance.now()
    await node.ask('revokeMany', { kinds: KINDS, count: COUNT })
    const seconds = (performance.now() - start) / 1000
    const used = await usedMemory(client) - before
    const parts = {}
    for (const name of ['live', 'ends', 'log']) parts[name] = Number(await client.sendCommand(['MEMORY', 'USAGE', `{hybrid-auth}:${name}`, 'SAMPLES', '0']))
    const joined = await withChild('./server.js', async other => {
      const { joined, stall, busy } = await other.ask('start', settings)
      const { revocations, connected } = await other.ask('status')
      if (revocations !== COUNT || !connected) throw new Error(`it knows ${revocations}, connected: ${connected}`)
      await other.ask('stop')
      return { joined, stall, busy }
    })
    return [
      {
        name: 'a live revocation in Redis, all kinds in turn, bytes', value: used / COUNT,
        beside: Object.entries(parts).map(([name, bytes]) => `${name} ${(bytes / COUNT).toFixed(0)}`).join(', ')
      },
      { name: `${COUNT} revocations, one after the other by the hundred: each, µs`, value: seconds * 1e6 / COUNT },
      { name: `a node joins where ${COUNT} are live: ready after, ms`, value: joined.joined, beside: `longest stall ${joined.stall.toFixed(0)}, by its own CPU time ${joined.busy.toFixed(0)}` }
    ]
  })
}

async function usedMemory (client) {
  return Number(/used_memory:(\d+)/.exec(await client.sendCommand(['INFO', 'memory']))[1])
}

async function withChild (name, use) {
  const child = startChild(new URL(name, import.meta.url), ['--expose-gc'])
  try {
    return await use(child)
  } finally {
    child.stop()
  }
}
