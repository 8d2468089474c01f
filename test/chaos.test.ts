/**
 * Redis and the ways to it fail at random while users are revoked on three processes: none of that is lost.
 * CHAOS_SECONDS, CHAOS_REVOCATIONS and CHAOS_SEED change how long, how many, and which faults.
 */
import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { bearer, CLUSTER_SECRET, tokenOf } from './cluster-suite.js'
import { inSeconds } from './helpers.js'
import { dial, eventually, type Peer } from './live.js'
import { startNode, type AppNode } from './processes.js'
import { needsRedis, startProxy, startRedis, type Proxy, type Redis } from './redis.js'
import { ask } from './stores.js'

const SECONDS = Number(process.env.CHAOS_SECONDS ?? 15)
const REVOCATIONS = Number(process.env.CHAOS_REVOCATIONS ?? 100)
const SEED = Number(process.env.CHAOS_SEED ?? randomInt(2 ** 31))
const NODES = 3
/** How many others there are for each who is revoked. */
const OTHERS = 0.5
const CLUSTER = { nodeTimeout: 1000, timeout: 400, onClusterLoss: 'serve', secret: CLUSTER_SECRET }
/** Nothing takes so long that is not lost, in milliseconds. */
const PATIENCE = 20_000

t.setTimeout((SECONDS + 90) * 1000)

/** mulberry32: the same numbers for the same seed, from 0 to 1. */
function createRandom (seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

class Dice {
  readonly #next: () => number

  constructor (seed: number) {
    this.#next = createRandom(seed)
  }

  between (from: number, to: number): number {
    return from + this.#next() * (to - from)
  }

  of<T> (list: readonly T[]): T {
    const one = list[Math.floor(this.#next() * list.length)]
    if (one === undefined) throw new Error('nothing to choose from')
    return one
  }

  some<T> (list: readonly T[]): T[] {
    const some = list.filter(() => this.#next() < 0.5)
    return some.length === 0 ? [this.of(list)] : some
  }
}

interface Faults {
  /** How often each happened. */
  readonly counts: Map<string, number>
  /** Until that time; everything works again when it is fulfilled. */
  run: (until: number) => Promise<void>
}

function createFaults (redis: Redis, proxies: readonly Proxy[], dice: Dice): Faults {
  const counts = new Map<string, number>()
  const hold = () => sleep(dice.between(100, 1400))
  const all: Record<string, () => Promise<unknown>> = {
    async kill () {
      await redis.kill()
      await hold()
      await redis.restart()
    },
    restart: () => redis.restart(),
    async pause () {
      redis.pause()
      await hold()
      redis.resume()
    },
    async cut () {
      const some = dice.some(proxies)
      for (const one of some) one.cut()
      await hold()
      for (const one of some) one.heal()
    },
    async stall () {
      const some = dice.some(proxies)
      for (const one of some) one.stall()
      await hold()
      for (const one of some) one.flow()
    },
    async 'stall and cut' () {
      const one = dice.of(proxies)
      one.stall()
      await hold()
      one.cut()
      one.flow()
      one.heal()
    }
  }
  return {
    counts,
    async run (until) {
      while (performance.now() < until) {
        await sleep(dice.between(20, 500))
        const name = dice.of(Object.keys(all))
        counts.set(name, (counts.get(name) ?? 0) + 1)
        await all[name]?.()
      }
    }
  }
}

interface User { token: string, node: AppNode, peer: Peer }

async function openAll (t: Test, names: readonly string[], nodes: readonly AppNode[], dice: Dice): Promise<User[]> {
  return Promise.all(names.map(async name => {
    const token = tokenOf(name, { exp: inSeconds(7200) })
    const node = dice.of(nodes)
    const peer = await dial(t, node.host, { path: '/live', token })
    return { token, node, peer }
  }))
}

const namesOf = (what: string, count: number) => Array.from({ length: count }, (_, i) => `${what} ${i}`)

interface Status { connected: boolean, queued: number, revocations: number, ignored: number }

for (const [index, durable] of [true, false].entries()) {
  const seed = SEED + index
  t.test(`no revocation is lost while a Redis that ${durable ? 'keeps what it was told' : 'forgets everything when it dies'} fails at random`, { ...needsRedis }, async t => {
    t.comment(`CHAOS_SEED=${SEED}`)
    const dice = new Dice(seed)
    const redis = await startRedis(t, { durable })
    const proxies = await Promise.all(Array.from({ length: NODES }, () => startProxy(t, redis.port)))
    const nodes = await Promise.all(proxies.map(({ url }) => startNode(t, { redisUrl: url, cluster: CLUSTER })))
    const revoked = await openAll(t, namesOf('revoked', REVOCATIONS), nodes, dice)
    const others = await openAll(t, namesOf('other', Math.ceil(REVOCATIONS * OTHERS)), nodes, dice)

    const time = SECONDS * 1000 / 2
    const began = performance.now()
    const faults = createFaults(redis, proxies, dice)
    const failing = faults.run(began + time)
    let kept = 0
    const revoking = Promise.all(revoked.map(async ({ token }, i) => {
      const node = dice.of(nodes)
      await sleep(time * (i + 1) / (REVOCATIONS + 1))
      const target = i % 2 === 0 ? { userId: `revoked ${i}` } : { token }
      const { status, body } = await node.post('/revoke', { target })
      if (status !== 200) throw new Error(`a revocation was refused: ${status}`)
      if ((body as { durable: boolean }).durable) kept++
    }))
    await failing
    const healed = performance.now()
    await revoking

    const converged = async (): Promise<boolean> => {
      const all = await Promise.all(nodes.map(async ({ get }) => (await get('/status')).body as Status))
      return all.every(({ connected, queued, revocations }) => connected && queued === 0 && revocations === REVOCATIONS) && revoked.every(({ peer }) => peer.hasEnded)
    }
    while (!await converged() && performance.now() - healed < PATIENCE) await sleep(20)
    const took = Math.round(performance.now() - healed)
    t.comment(`converged ${took} ms after the last fault; ${kept} of ${REVOCATIONS} were durable at once; ${[...faults.counts].map(([name, count]) => `${name} ${count}`).join(', ')}`)
    t.comment(`lost and found: ${nodes.map(({ events }) => events.length).join(', ')} events`)

    t.equal(revoked.filter(({ peer }) => !peer.hasEnded).length, 0, 'sockets that live on')
    const codes = new Set(await Promise.all(revoked.filter(({ peer }) => peer.hasEnded).map(async ({ peer }) => (await peer.end).code)))
    t.same([...codes], [4006])
    for (const { get } of nodes) t.match((await get('/status')).body, { queued: 0, revocations: REVOCATIONS, ignored: 0 })
    // A connection that was stalled may die of it a moment later.
    while (!await converged() && performance.now() - healed < 2 * PATIENCE) await sleep(20)
    t.ok(await converged(), 'all are connected')
    for (const { host } of nodes) {
      const answers = await Promise.all([...revoked, ...others].map(async ({ token }) => (await ask(host, '/me', bearer(token))).status))
      t.equal(answers.slice(0, REVOCATIONS).filter(status => status !== 401).length, 0, 'revoked tokens that are accepted')
      t.equal(answers.slice(REVOCATIONS).filter(status => status !== 200).length, 0, 'other tokens that are refused')
    }
    const alive = await Promise.all(others.map(({ peer }) => peer.echoed('still here')))
    t.equal(alive.filter(one => !one).length, 0, 'other sockets that were closed')
    await eventually('every loss has an end', () => nodes.every(({ events }) => events.at(-1)?.type !== 'cluster_lost'))
    for (const { events, errors } of nodes) {
      t.same(events.map(({ type }) => type), events.map((_, i) => i % 2 === 0 ? 'cluster_lost' : 'cluster_recovered'), 'in turn')
      t.equal(errors(), '')
    }
  })
}
