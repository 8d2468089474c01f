/** Rooms with history, over nodes in memory and in Redis. */
import t from 'tap'
import { memoryCluster } from '../lib/cluster/memory.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { CLUSTER_SECRET } from './cluster-suite.js'
import { historySuite } from './history-suite.js'
import { connect, needsRedis, startRedis } from './redis.js'

t.setTimeout(240_000)

historySuite(t, 'nodes that share memory', async () => {
  const driver = memoryCluster()
  return () => driver
})

historySuite(t, 'nodes that share a Redis', async t => {
  const { url } = await startRedis(t)
  return async () => redisCluster(await connect(t, url), { secret: CLUSTER_SECRET })
}, { ...needsRedis })
