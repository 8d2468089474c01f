/** The same of a cluster in memory and of one in Redis. */
import t from 'tap'
import { memoryCluster } from '../lib/cluster/memory.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { clusterSuite } from './cluster-suite.js'
import { connect, needsRedis, startRedis } from './redis.js'

clusterSuite(t, 'nodes that share memory', async () => {
  const driver = memoryCluster()
  return () => driver
})

clusterSuite(t, 'nodes that share a Redis', async t => {
  const { url } = await startRedis(t)
  return async () => redisCluster(await connect(t, url), { secret: 'a secret that all nodes know, of 32' })
}, { ...needsRedis })
