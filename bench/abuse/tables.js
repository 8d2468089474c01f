/**
 * Counters in memory: ours, and those of rate-limiter-flexible. Each is told of the same addresses in the same order. Runs in
 * a process of its own, with --expose-gc. Reads the build of lib/.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { RateLimiterMemory } from 'rate-limiter-flexible'
import { BucketTable } from '../../dist/esm/lib/policy/bucket.js'
import { StrikeTable } from '../../dist/esm/lib/policy/strikes.js'
import { answerRequests } from '../ipc.js'
import { startProbe } from '../probe.js'
import { inPairs } from './pairs.js'

const MAX = 10
const MAX_KEPT = 100_000
const FLOOD = 20_000

/** Every address is counted by `run`, and let go of by `stop`. `window` is in seconds. */
const SUBJECTS = {
  strikes (window) {
    const table = new StrikeTable(MAX_KEPT)
    const options = { max: MAX, window: window * 1000 }
    return {
      run (names) { for (const name of names) table.strike([name], options) },
      stop () { table.stop() }
    }
  },
  buckets (window) {
    const table = new BucketTable(MAX_KEPT, Date.now)
    const rate = { capacity: MAX, refillPerSecond: MAX / window }
    return {
      run (names) { for (const key of names) table.spend([{ key, rate, cost: 1 }]) },
      stop () { table.stop() }
    }
  },
  theirs (window) {
    const limiter = new RateLimiterMemory({ points: MAX, duration: window })
    return {
      async run (names) {
        for (const name of names) {
          try {
            await limiter.consume(name)
          } catch (refused) {
            if (refused instanceof Error) throw refused
          }
        }
      },
      // Each key has a timer.
      stop (names) { for (const name of names) limiter.delete(name) }
    }
  }
}

const WINDOW = 300

function addresses (count, from = 0) {
  return Array.from({ length: count }, (_, i) => `ip:10.${(from + i) >> 16 & 255}.${(from + i) >> 8 & 255}.${(from + i) & 255}`)
}

/** What there is before, and what is measured. */
const LOADS = {
  flood: { known: [], names: addresses(FLOOD) },
  tenfold: { known: [], names: Array.from({ length: MAX }, () => addresses(FLOOD)).flat() },
  hot: { known: addresses(FLOOD), names: Array.from({ length: FLOOD }, () => 'ip:192.0.2.1') },
  full: { known: addresses(MAX_KEPT), names: addresses(FLOOD, MAX_KEPT) }
}

answerRequests({
  /** @returns microseconds of CPU time for each address, of two subjects in pairs */
  measure: ({ a, b, load }) => inPairs(() => run(a, load), () => run(b, load)),
  /** @returns bytes of heap and external memory for each of the addresses, which were seen so many times */
  async heap ({ subject, times }) {
    // The one that warms up is kept as well: what is collected meanwhile would be taken off the other.
    const [warm, counter] = [SUBJECTS[subject](WINDOW), SUBJECTS[subject](WINDOW)]
    await warm.run(addresses(FLOOD))
    const before = used()
    // Every handshake brings a string of its own.
    for (let i = 0; i < times; i++) await counter.run(addresses(FLOOD))
    const bytes = (used() - before) / FLOOD
    for (const one of [warm, counter]) one.stop(addresses(FLOOD))
    return bytes
  },
  /** @returns timers that are set, and those of them of which Node tells: the ones that would keep the process alive */
  async timers ({ subject }) {
    const set = countTimers()
    const { run } = SUBJECTS[subject](WINDOW)
    await run(addresses(FLOOD))
    return { set: set.size, active: process.getActiveResourcesInfo().filter(name => name === 'Timeout').length }
  },
  /** @returns the longest stall when as many as ours keeps are over at once, in milliseconds */
  async end ({ subject, wait }) {
    const { run } = SUBJECTS[subject](1)
    await run(addresses(MAX_KEPT))
    const stop = startProbe()
    await sleep(wait)
    return stop()
  }
})

async function run (subject, load) {
  const { known, names } = LOADS[load]
  const counter = SUBJECTS[subject](WINDOW)
  await counter.run(known)
  globalThis.gc({ type: 'minor' })
  const before = process.cpuUsage()
  await counter.run(names)
  const { user, system } = process.cpuUsage(before)
  counter.stop([...known, ...names])
  return (user + system) / names.length
}

/** The timers that neither fired nor were cleared. */
function countTimers () {
  const { setTimeout: set, clearTimeout: clear } = globalThis
  const timers = new Set()
  globalThis.setTimeout = (callback, ...given) => {
    const timer = set(() => {
      timers.delete(timer)
      callback()
    }, ...given)
    timers.add(timer)
    return timer
  }
  globalThis.clearTimeout = timer => {
    timers.delete(timer)
    clear(timer)
  }
  return timers
}

function used () {
  for (let i = 0; i < 4; i++) globalThis.gc()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}
