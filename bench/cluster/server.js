/** One process of the cluster under measurement. Times are by the clock that all processes of the machine share. */
import { EventEmitter, once } from 'node:events'
import { setTimeout } from 'node:timers/promises'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { redisCluster } from 'fastify-hybrid-auth/redis'
import { createClient } from 'redis'
import { answerRequests } from '../ipc.js'
import { sharedNow, startProbe, timeFinds } from '../probe.js'
import { closeNaively, createNaive } from './naive.js'
import { targetOf } from './targets.js'

const RAW = 'raw'
const CALM = 1000
/** Commands under way at once. */
const PART = 100
// The first ping comes after everything that is measured: the clients know only what they asked for.
const HEARTBEAT = { interval: 600_000 }
// As tokens end that live an hour.
const LIFETIME = 3_600_000

let client, app, naive, stopProbe
const heard = new Map()
const seen = new EventEmitter()

answerRequests({
  /** @returns the ports, how long it took until revocations were known, and the longest stalls of the loop meanwhile */
  async start ({ redisUrl, secret, clusterSecret }) {
    client = await createClient({ url: redisUrl }).connect()
    naive = await createNaive(client)
    app = Fastify()
    await app.register(websocket)
    await app.register(hybridAuth, {
      jwt: { key: secret, algorithms: ['HS256'] }, heartbeat: HEARTBEAT, cluster: redisCluster(client, { secret: clusterSecret })
    })
    app.get('/idle', { websocket: true }, () => {})
    const stop = startProbe()
    const start = performance.now()
    await app.ready()
    const joined = performance.now() - start
    const { stall, busy } = stop()
    await app.listen({ port: 0, host: '127.0.0.1', backlog: 4096 })
    return { ours: app.server.address().port, naive: naive.server.address().port, joined, stall, busy }
  },
  /** Leaves the cluster. */
  stop: () => app.close(),
  async subscribe () {
    const subscriber = await client.duplicate().connect()
    await subscriber.subscribe(RAW, message => {
      heard.set(message, sharedNow())
      seen.emit('message')
    })
  },
  async publish (message) {
    const at = sharedNow()
    await client.publish(RAW, message)
    return { at }
  },
  async heard (message) {
    while (!heard.has(message)) await once(seen, 'message')
    return heard.get(message)
  },
  async revoke (target) {
    const at = sharedNow()
    const result = await app.hybridAuth.revoke(target)
    return { at, resolved: sharedNow() - at, ...result }
  },
  async closeNaively (target) {
    const at = sharedNow()
    await closeNaively(client, target)
    return { at }
  },
  async revokeMany ({ kinds, count }) {
    const expiresAt = Date.now() + LIFETIME
    for (let from = 0; from < count; from += PART) {
      const results = await Promise.all(Array.from({ length: Math.min(PART, count - from) }, (_, i) =>
        app.hybridAuth.revoke(targetOf(kinds[i % kinds.length], from + i), { expiresAt })))
      if (!results.every(({ durable }) => durable)) throw new Error('Redis did not keep up')
    }
  },
  status: () => app.hybridAuth.status(),
  find: ({ userIds, each }) => timeFinds(app.hybridAuth, userIds, each),
  /** Watches the loop; resolves with the longest stall while nothing happens. */
  async watch () {
    const stop = startProbe()
    await setTimeout(CALM)
    const calm = stop()
    stopProbe = startProbe()
    return calm
  },
  watched: () => stopProbe()
})
