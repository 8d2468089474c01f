/** What the guard costs per message: alone, and as a part of an echo over real sockets. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { median, quartiles } from '../statistics.js'

// An echo is mostly the kernel's work, and a pair is short: twice as many as elsewhere.
const PAIRS = 2 * Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 6
const CONNECTIONS = 16
const ROUNDS = 16
const PIPELINED = 64
// Room for the garbage of a whole burst: each is collected once, at its own end.
const FLAGS = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64']

const MAX_NANOS = 200
// What V8 rounds the size of its heap to, over a batch.
const NO_BYTES = 0.5
const MIN_ECHO = 0.97
const MAX_NOISE = 0.03

const ECHOES = [
  { name: 'A/A: bare against bare of another instance', a: ['twin', '/none'], within: MAX_NOISE },
  { name: 'no authorize: ours / bare', a: ['ours', '/none'], goal: MIN_ECHO },
  { name: 'sync authorize: ours / bare', a: ['ours', '/sync'], goal: MIN_ECHO },
  { name: 'async authorize: ours / bare', a: ['ours', '/async'] }
]

export async function measureMessages () {
  return [...await measureAlone(), ...await measureEchoes()]
}

async function measureAlone () {
  const child = startChild(new URL('./guard.js', import.meta.url), FLAGS)
  try {
    const { bare, ...guarded } = await child.ask('measure')
    return Object.entries(guarded).flatMap(([name, { nanos, bytes }]) => {
      const title = name === 'none' ? 'no authorize' : `${name} authorize`
      const added = beyond(nanos, bare.nanos)
      const allocated = beyond(bytes, bare.bytes)
      const isBound = name !== 'async'
      return [
        {
          name: `message, ${title}: added to an emit, ns`, value: median(added), spread: quartiles(added, 0),
          beside: `an emit alone ${median(bare.nanos).toFixed(0)}`, ...(isBound && { atMost: MAX_NANOS })
        },
        {
          name: `message, ${title}: allocated beyond an emit, bytes`, value: median(allocated), spread: quartiles(allocated, 1), digits: 1,
          beside: `an emit alone ${median(bare.bytes).toFixed(1)}`, ...(isBound && { atMost: NO_BYTES, goal: '0' })
        }
      ]
    })
  } finally {
    child.stop()
  }
}

const beyond = (values, base) => values.map((value, i) => value - base[i])

async function measureEchoes () {
  const server = startChild(new URL('./server.js', import.meta.url), FLAGS)
  const clients = startChild(new URL('./clients.js', import.meta.url))
  try {
    const secret = randomBytes(32).toString('base64url')
    const ports = await server.ask('start', { given: { bare: 'bare', twin: 'bare', ours: 'ours' }, secret })
    const variant = ([name, path]) => ({ port: ports[name], path, rounds: ROUNDS, pipelined: PIPELINED })
    const bare = variant(['bare', '/none'])
    const burst = async where => {
      const before = await server.ask('cpu')
      const { count, seconds } = await clients.ask('echo', where)
      return { cpu: (await server.ask('cpu') - before) / count, clock: seconds / count }
    }
    for (const where of [bare, ...ECHOES.map(({ a }) => variant(a))]) {
      await clients.ask('open', { ...where, secret, count: CONNECTIONS, isShared: true })
      for (let i = 0; i < WARM_UP; i++) await burst(where)
    }
    const rows = []
    for (const { name, a, goal, within } of ECHOES) {
      const pairs = await inPairs(() => burst(variant(a)), () => burst(bare))
      const byCpu = pairs.map(pair => pair.b.cpu / pair.a.cpu)
      rows.push({
        name: `echo, ${name}, by CPU`, value: median(byCpu), spread: quartiles(byCpu, 3), digits: 3, atLeast: goal, within,
        beside: `by clock ${median(pairs.map(pair => pair.b.clock / pair.a.clock)).toFixed(3)}; ` +
          `${median(pairs.map(pair => pair.a.cpu)).toFixed(2)} and ${median(pairs.map(pair => pair.b.cpu)).toFixed(2)} µs`
      })
    }
    return rows
  } finally {
    server.stop()
    clients.stop()
  }
}

/** Every second pair the other way round, so that no side gains by its place. */
async function inPairs (runA, runB) {
  const pairs = []
  for (let i = 0; i < PAIRS; i++) {
    const isTurned = i % 2 === 1
    const first = await (isTurned ? runB : runA)()
    const second = await (isTurned ? runA : runB)()
    pairs.push(isTurned ? { a: second, b: first } : { a: first, b: second })
  }
  return pairs
}
