/** A against B within one run, in turns. */
import { median, quartiles } from '../statistics.js'

const PAIRS = Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 6

/**
 * @param runA, runB what each costs, in any unit
 * @returns the costs of the pairs; every second one was measured the other way round, so that no side gains by its place
 */
export async function inPairs (runA, runB) {
  const pairs = []
  for (let i = -WARM_UP; i < PAIRS; i++) {
    const isTurned = i % 2 !== 0
    const first = await (isTurned ? runB : runA)()
    const second = await (isTurned ? runA : runB)()
    if (i >= 0) pairs.push(isTurned ? { a: second, b: first } : { a: first, b: second })
  }
  return pairs
}

/**
 * A row of the table: how much more A does for the same cost.
 * @param beside what stands beside it, of the median costs of A and B
 */
export function ratioRow (name, pairs, { beside = micros, ...bounds } = {}) {
  const ratios = pairs.map(({ a, b }) => b / a)
  return {
    name, value: median(ratios), spread: quartiles(ratios), digits: 2,
    beside: beside(median(pairs.map(({ a }) => a)), median(pairs.map(({ b }) => b))), ...bounds
  }
}

const micros = (a, b) => `${a.toFixed(2)} and ${b.toFixed(2)} µs`
