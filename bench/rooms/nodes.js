/** Two nodes and Redis: published on A, where nobody is, to the members on B. */
import { randomBytes } from 'node:crypto'
import { startRedis } from '../../demo/redis.js'
import { inPairs } from '../abuse/pairs.js'
import { describe } from './publish.js'
import { publishing, ROOM, startServer, withSockets } from './stage.js'

/** Members, and messages in a burst. */
const SIZES = [{ count: 1000, times: 10 }, { count: 10, times: 200 }]
const MAX_NOISE = 0.05

export async function measureNodes () {
  const redis = await startRedis().catch(error => {
    if (error.code !== 'ENOENT') throw error
    return null
  })
  if (redis === null) return [{ name: 'two nodes through Redis', note: 'not measured: this machine has no redis-server' }]
  try {
    const settings = { redisUrl: redis.url, clusterSecret: randomBytes(32).toString('base64url') }
    const rows = []
    for (const size of SIZES) rows.push(...await measure(settings, size))
    return rows
  } finally {
    await redis.stop()
  }
}

async function measure (settings, { count, times }) {
  const [a, b] = [startServer(), startServer()]
  return withSockets(b, { ours: 'ours', io: 'io' }, { count, rooms: [ROOM], publishers: [a], settings }, async clients => {
    const ours = await publishing([a, b], 'ours', clients.ours, { count, times })
    const io = await publishing([a, b], 'io', clients.io, { count, times })
    const row = async (name, one, other, bounds) => describe(`published on A to ${count} members on B: ${name}`, await inPairs(one, other), count, bounds)
    return [
      await row('A/A: Socket.IO against itself', io, io, { within: MAX_NOISE }),
      await row('ours / Socket.IO and its Redis adapter', ours, io, {})
    ]
  })
}
