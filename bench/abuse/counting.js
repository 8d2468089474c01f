/** What it costs to count: ours against rate-limiter-flexible, in memory and in Redis. */
import { startRedis } from '../../demo/redis.js'
import { startChild } from '../ipc.js'
import { ratioRow } from './pairs.js'

const FLAGS = ['--expose-gc', '--min-semi-space-size=16']
const MAX_NOISE = 0.05
const THEIRS = 'rate-limiter-flexible'

const LOADS = {
  flood: '20 000 addresses, once',
  tenfold: '20 000 addresses, ten times',
  hot: 'one address 20 000 times, 20 000 known',
  full: '20 000 addresses more than are kept'
}
const OURS = { strikes: 'failures (StrikeTable)', buckets: 'connects (BucketTable)' }

export async function measureMemory () {
  return withChild('./tables.js', async child => {
    const rows = [ratioRow('A/A: failures, 20 000 addresses, once, against itself', await child.ask('measure', { a: 'strikes', b: 'strikes', load: 'flood' }), { within: MAX_NOISE })]
    for (const [subject, title] of Object.entries(OURS)) {
      for (const [load, about] of Object.entries(LOADS)) {
        rows.push(ratioRow(`${about}: ${title} / ${THEIRS}`, await child.ask('measure', { a: subject, b: 'theirs', load }), { atLeast: 1 }))
      }
    }
    return [...rows, ...await measureHeap(), ...await measureTimers(), ...await measureEnds()]
  })
}

/** Each in a process that did nothing else before. */
const alone = (question, argument) => withChild('./tables.js', child => child.ask(question, argument))

async function measureHeap () {
  const rows = []
  for (const times of [1, 10]) {
    const theirs = await alone('heap', { subject: 'theirs', times })
    for (const [subject, title] of Object.entries(OURS)) {
      const ours = await alone('heap', { subject, times })
      rows.push({
        name: `heap of an address, seen ${times === 1 ? 'once' : 'ten times'}: ${title} / ${THEIRS}`, value: ours / theirs, digits: 2, atMost: 1,
        beside: `${ours.toFixed(0)} and ${theirs.toFixed(0)} B`
      })
    }
  }
  return rows
}

async function measureTimers () {
  const theirs = await alone('timers', { subject: 'theirs' })
  const rows = []
  for (const [subject, title] of Object.entries(OURS)) {
    const { set, active } = await alone('timers', { subject })
    rows.push({
      name: `timers for 20 000 addresses: ${title}`, value: set, atMost: 1,
      beside: `${THEIRS} ${theirs.set}; by getActiveResourcesInfo ${active} and ${theirs.active}`
    })
  }
  return rows
}

/** Ours sweeps every half minute, theirs has timers, which are due a second later here. */
async function measureEnds () {
  const [theirs, ...ours] = await Promise.all([
    alone('end', { subject: 'theirs', wait: 3000 }), ...Object.keys(OURS).map(subject => alone('end', { subject, wait: 32_000 }))
  ])
  return Object.values(OURS).map((title, i) => ({
    name: `100 000 addresses are over at once, longest stall: ${title}, ms`, value: ours[i].busy, digits: 1, atMost: 50,
    beside: `${THEIRS} ${theirs.busy.toFixed(1)}; by the clock ${ours[i].stall.toFixed(1)} and ${theirs.stall.toFixed(1)}`
  }))
}

async function withChild (name, use) {
  const child = startChild(new URL(name, import.meta.url), FLAGS)
  try {
    return await use(child)
  } finally {
    child.stop()
  }
}

export async function measureRedis () {
  const redis = await startRedis().catch(error => {
    if (error.code === 'ENOENT') return null
    throw error
  })
  if (redis === null) return [{ name: 'counting in Redis', note: 'not measured: redis-server is not installed' }]
  try {
    return await withChild('./shared.js', async child => describeRedis(await child.ask('measure', { redisUrl: redis.url })))
  } finally {
    await redis.stop()
  }
}

function describeRedis ({ measured: { itself, ...measured }, bytes }) {
  const of = (pairs, whose) => pairs.map(({ a, b }) => ({ a: a[whose], b: b[whose] }))
  const rows = [ratioRow(`A/A: ${THEIRS} in Redis, an address, against itself, CPU time of Node.js`, of(itself, 'node'), { within: MAX_NOISE })]
  for (const [name, pairs] of Object.entries(measured)) {
    // What a guess is counted by.
    const goal = name === 'an address' ? {} : { atLeast: 1 }
    rows.push(ratioRow(`in Redis, ${name}: ours / ${THEIRS}, CPU time of Node.js`, of(pairs, 'node'), goal))
    if (!name.includes('past')) rows.push(ratioRow(`in Redis, ${name}: ours / ${THEIRS}, CPU time of Redis`, of(pairs, 'redis')))
  }
  for (const [times, [ours, theirs]] of Object.entries(bytes)) {
    rows.push({ name: `memory of Redis for an address, failures: ${times}: ours / ${THEIRS}`, value: ours / theirs, digits: 2, beside: `${ours.toFixed(0)} and ${theirs.toFixed(0)} B` })
  }
  return rows
}
