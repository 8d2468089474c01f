/**
 * Counters in Redis: ours, and those of rate-limiter-flexible, through one connection each. Runs in a process of its own, with
 * --expose-gc. Reads the build of lib/.
 */
import { RateLimiterRedis } from 'rate-limiter-flexible'
import { createClient } from 'redis'
import { redisCluster } from 'fastify-hybrid-auth/redis'
import { Failures } from '../../dist/esm/lib/policy/failures.js'
import { answerRequests } from '../ipc.js'
import { inPairs } from './pairs.js'

const MAX = 10
const WINDOW = 300
const BURST = 2000
const AT_ONCE = 50
const HOT = 'ip:192.0.2.1'
const failures = { max: MAX, window: WINDOW * 1000, block: 'credential' }

let made = 0
const stranger = () => `ip:10.${++made >> 16 & 255}.${made >> 8 & 255}.${made & 255}`
const someone = () => `id:${String(++made).padStart(43, '.')}`

answerRequests({ measure })

/** @returns what the pairs cost, in microseconds of this process and of Redis, by name; and bytes in Redis, ours and theirs */
async function measure ({ redisUrl }) {
  const client = await createClient({ url: redisUrl }).connect()
  const cluster = redisCluster(client).join(member)
  await cluster.start()
  const settings = { storeClient: client, useRedisPackage: true, points: MAX, duration: WINDOW }
  const consume = consumer(settings)
  const consumeKnown = consumer({ ...settings, keyPrefix: 'known', inMemoryBlockOnConsumed: MAX })
  const strike = (...names) => cluster.strike(names, failures)
  const counted = new Failures(failures, { cluster, isReportOnly: false, onSuspected () {}, onReported () {}, onBlocked () {} })
  const request = { ip: HOT.slice('ip:'.length) }
  const claimed = () => ({ userId: someone(), issuer: null })
  const count = () => counted.count(request, {}, 'FST_HYBRID_AUTH_INVALID_TOKEN', claimed)
  for (let i = 0; i <= MAX; i++) await Promise.all([count(), consumeKnown(HOT)])

  const subjects = {
    itself: [() => consume(stranger()), () => consume(stranger())],
    'an address': [() => strike(stranger()), () => consume(stranger())],
    'an address and an identity': [() => strike(stranger(), someone()), () => Promise.all([consume(stranger()), consume(someone())])],
    'an address past the threshold': [count, () => consumeKnown(HOT)]
  }
  const measured = {}
  for (const [name, [ours, theirs]] of Object.entries(subjects)) {
    measured[name] = await inPairs(() => burst(client, ours), () => burst(client, theirs))
    await client.sendCommand(['FLUSHALL'])
  }
  const bytes = {}
  for (const times of [1, MAX]) bytes[times] = [await bytesOf(client, strike, times), await bytesOf(client, consume, times)]
  await cluster.stop()
  client.destroy()
  return { measured, bytes }
}

function consumer (settings) {
  const limiter = new RateLimiterRedis(settings)
  return name => limiter.consume(name).catch(ignoreRefusal)
}

function ignoreRefusal (refused) {
  if (refused instanceof Error) throw refused
}

/** A node of which nothing is asked. */
const member = {
  id: 'bench', async receive () { return { matched: 0, closed: 0 } }, revocations: () => [], hasRevocation: () => true, leases: () => [], lost () {}, recovered () {}, ignored () {}
}

async function burst (client, one) {
  globalThis.gc({ type: 'minor' })
  const redis = await cpuOf(client)
  const before = process.cpuUsage()
  for (let sent = 0; sent < BURST; sent += AT_ONCE) await Promise.all(Array.from({ length: AT_ONCE }, one))
  const { user, system } = process.cpuUsage(before)
  return { node: (user + system) / BURST, redis: (await cpuOf(client) - redis) / BURST }
}

/** Of Redis, in microseconds. */
async function cpuOf (client) {
  const text = await client.sendCommand(['INFO', 'cpu'])
  return ['user', 'sys'].reduce((sum, name) => sum + Number(new RegExp(`used_cpu_${name}:([\\d.]+)`).exec(text)[1]) * 1e6, 0)
}

async function bytesOf (client, one, times) {
  await client.sendCommand(['FLUSHALL'])
  const names = Array.from({ length: BURST }, stranger)
  const before = await usedMemory(client)
  for (let from = 0; from < BURST * times; from += AT_ONCE) {
    const at = from % BURST
    await Promise.all(names.slice(at, at + AT_ONCE).map(name => one(name)))
  }
  return (await usedMemory(client) - before) / BURST
}

async function usedMemory (client) {
  return Number(/used_memory:(\d+)/.exec(await client.sendCommand(['INFO', 'memory']))[1])
}
