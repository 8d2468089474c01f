/**
 * Prints the table of rows.js. A server process and a load process; this one only asks and divides.
 *
 * The ratio is of handshakes per second of the server's CPU time: it counts what the server did, all of it (closing and
 * garbage collection included), and not how fast the load could ask or what else ran on the machine meanwhile. The ratio of
 * wall-clock rates stands beside it: it says the same where the server is the bottleneck, with more noise.
 */
import { availableParallelism } from 'node:os'
import { startChild } from '../ipc.js'
import { head, line, median, quartiles } from '../statistics.js'
import { generateKeys } from '../tokens.js'
import { FIRSTS, ROWS } from './rows.js'

const PAIRS = Number(process.env.BENCH_PAIRS ?? 40)
const BURST = Number(process.env.BENCH_BURST ?? 250)
const WARM_UP = 6
// Handshakes at once, and how often a source may be asked for them.
const AT_ONCE = 1000
const MAX_ASKED = 1
// Room for the garbage of a whole burst: each is collected once, at its own end, and not now and then at the next one's cost.
const SERVER_FLAGS = ['--expose-gc', '--min-semi-space-size=16', ...(process.env.BENCH_SERVER_FLAGS ?? '').split(' ').filter(Boolean)]
const wanted = process.argv.slice(2)

const server = startChild(new URL('./server.js', import.meta.url), SERVER_FLAGS)
const load = startChild(new URL('./load.js', import.meta.url))

try {
  const keys = generateKeys()
  await load.ask('start', { ...await server.ask('start', keys), keys })
  const isWanted = ({ name }) => wanted.every(word => name.includes(word))
  const rows = ROWS.filter(isWanted)
  await warmUpAll(rows)

  console.log(`Node.js ${process.version}, ${availableParallelism()} cores, ${PAIRS} pairs of bursts of ${BURST}\n`)
  if (rows.length > 0) console.log(head(['row (A / B)', 'ratio by CPU', 'quartiles', 'by clock', 'pairs', 'A µs', 'B µs', 'goal', 'result']))
  for (const row of rows) console.log(describe(row, await measure(row)))

  const firsts = FIRSTS.filter(isWanted)
  if (firsts.length > 0) console.log('\n' + head([`${AT_ONCE} at once`, 'asked', 'goal', 'result']))
  for (const row of firsts) console.log(describeFirst(row, await countAsked(row)))
} finally {
  server.stop()
  load.stop()
}

/** The code that the variants share is compiled before the first of them is measured. */
async function warmUpAll (rows) {
  for (const variant of rows.flatMap(({ a, b }) => [a, b])) {
    await load.ask('prepare', { variants: [variant], count: BURST })
    await burst(variant)
  }
}

async function measure ({ a, b }) {
  await load.ask('prepare', { variants: [a, b], count: BURST * (PAIRS + WARM_UP) })
  for (let i = 0; i < WARM_UP; i++) {
    await burst(a)
    await burst(b)
  }
  const pairs = []
  for (let i = 0; i < PAIRS; i++) {
    // Every second pair the other way round, so that no side gains by its place.
    const order = i % 2 === 0 ? [a, b] : [b, a]
    const [first, second] = [await burst(order[0]), await burst(order[1])]
    pairs.push(i % 2 === 0 ? { a: first, b: second } : { a: second, b: first })
  }
  return pairs
}

/** The server's CPU time and the time by the clock, in microseconds per handshake. */
async function burst (variant) {
  const before = await server.ask('cpu')
  const { count, seconds } = await load.ask('burst', { variant, count: BURST })
  return { cpu: (await server.ask('cpu') - before) / count, clock: seconds * 1e6 / count }
}

/** How often the source is asked. Each is measured once: later it would remember. */
async function countAsked ({ variant, isHeld }) {
  await load.ask('prepare', { variants: [variant], count: AT_ONCE })
  await server.ask('expect', { handshakes: isHeld ? AT_ONCE : 0 })
  await load.ask('burst', { variant, count: AT_ONCE, concurrency: AT_ONCE })
  return server.ask('expect', { handshakes: 0 })
}

function describeFirst ({ name }, asked) {
  return line([name, asked, `≤ ${MAX_ASKED}`, asked <= MAX_ASKED ? 'met' : `missed by ${asked - MAX_ASKED}`])
}

function describe ({ name, goal, within }, pairs) {
  const byCpu = pairs.map(({ a, b }) => b.cpu / a.cpu)
  const byClock = pairs.map(({ a, b }) => b.clock / a.clock)
  return line([
    name, median(byCpu).toFixed(3), quartiles(byCpu), median(byClock).toFixed(2), pairs.length,
    median(pairs.map(({ a }) => a.cpu)).toFixed(1), median(pairs.map(({ b }) => b.cpu)).toFixed(1),
    goal === undefined ? within === undefined ? '' : `1 ± ${within}` : `≥ ${goal}`,
    verdict(median(byCpu), goal, within)
  ])
}

function verdict (ratio, goal, within) {
  const short = goal !== undefined ? goal - ratio : within !== undefined ? Math.abs(ratio - 1) - within : null
  if (short === null) return ''
  return short <= 0 ? 'met' : `missed by ${short.toFixed(3)}`
}
