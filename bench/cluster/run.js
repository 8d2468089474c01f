/** Prints one table of what a cluster costs: all of it, or the parts that are named. Starts a Redis of its own. */
import { createClient } from 'redis'
import { startRedis } from '../../demo/redis.js'
import { printParts } from '../table.js'
import { measureHandshakes } from './handshake.js'
import { measureLatency } from './latency.js'
import { measureMemory } from './memory.js'
import { measureSockets } from './sockets.js'

const redis = await startRedis()
const client = createClient({ url: redis.url })
await client.connect()

/** Each part begins with nothing in Redis. */
const fresh = measure => async () => {
  await client.sendCommand(['FLUSHALL'])
  return measure({ redisUrl: redis.url, client })
}

try {
  await printParts({
    latency: fresh(measureLatency), sockets: fresh(measureSockets), handshake: measureHandshakes, memory: fresh(measureMemory)
  }, process.argv.slice(2))
} finally {
  client.destroy()
  await redis.stop()
}
