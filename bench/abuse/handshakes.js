/**
 * What a handshake costs the server: one that is refused, against one that is let in, and one of which others are told.
 * The ratio is of handshakes per second of the server's CPU time, as in ../handshake.
 */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { inPairs, ratioRow } from './pairs.js'

const BURST = Number(process.env.BENCH_BURST ?? 250)
// Room for the garbage of a whole burst.
const FLAGS = ['--expose-gc', '--min-semi-space-size=16']
const MAX_NOISE = 0.03

const good = (server, token = 'fresh') => ({ server, token, expect: 101 })
// By default an address is past the threshold after ten: before it are those who come from a new one each time.
const early = server => ({ server, token: 'forged', from: 'new', expect: 401 })
const late = (server, token = 'forged') => ({ server, token, expect: 429 })

const ACCEPTED = good('plain')
const UNCOUNTED = { ...early('uncounted'), from: 'same' }
const REFUSING = [
  { name: 'A/A: let in, a good token never seen, against another instance', a: good('twin'), b: ACCEPTED, within: MAX_NOISE },
  { name: 'refused, a forged token before the threshold / let in', a: early('plain'), b: { ...ACCEPTED, from: 'new' }, atLeast: 1 },
  { name: 'refused, a forged token past the threshold / let in', a: late('past'), b: ACCEPTED, atLeast: 1 },
  { name: "refused, a forged token past the threshold, block: 'address' / let in", a: late('blocked'), b: ACCEPTED, atLeast: 1 },
  { name: 'refused, a malformed token past the threshold / let in', a: late('past', 'malformed'), b: ACCEPTED, atLeast: 1 },
  { name: 'forged, before the threshold / forged, failures: false', a: early('plain'), b: early('uncounted') },
  { name: 'forged, past the threshold / forged, failures: false', a: late('past'), b: UNCOUNTED },
  { name: "forged, past the threshold, block: 'address' / forged, failures: false", a: late('blocked'), b: UNCOUNTED }
]

const SEEN = good('plain', 'seen')
const TELLING = [
  { name: 'A/A: let in, a token seen before, against another instance', a: good('traced', 'seen'), b: SEEN, within: MAX_NOISE },
  { name: 'let in, a token seen before: audit function / none', a: good('audited', 'seen'), b: SEEN },
  { name: 'let in, a token seen before: log at info / log at error', a: good('logged', 'seen'), b: good('silent', 'seen') },
  { name: 'let in, a token seen before: log at info / no logger', a: good('logged', 'seen'), b: SEEN },
  { name: 'let in, a token seen before: metrics / none', a: good('measured', 'seen'), b: SEEN },
  { name: 'let in, a token seen before: a tracing subscriber / none', a: { ...good('traced', 'seen'), subscribes: true }, b: SEEN },
  { name: 'A/A: refused, a forged token, against another instance', a: early('twin'), b: early('plain'), within: MAX_NOISE },
  { name: 'refused, a forged token: audit function / none', a: early('audited'), b: early('plain') },
  { name: 'refused, a forged token: log at info / log at error', a: early('logged'), b: early('silent') },
  { name: 'refused, a forged token: metrics / none', a: early('measured'), b: early('plain') }
]

export const measureRefusing = () => measure(REFUSING)
export const measureTelling = () => measure(TELLING)

async function measure (rows) {
  const server = startChild(new URL('./server.js', import.meta.url), FLAGS)
  const load = startChild(new URL('./load.js', import.meta.url))
  try {
    const key = randomBytes(32).toString('base64url')
    const ports = await server.ask('start', { key })
    await load.ask('start', { key })
    const burst = async ({ server: name, subscribes, from = 'same', ...how }) => {
      if (subscribes) await server.ask('subscribe')
      const before = await server.ask('cpu')
      await load.ask('burst', { port: ports[name], count: BURST, from, ...how })
      const cpu = (await server.ask('cpu') - before) / BURST
      if (subscribes) await server.ask('unsubscribe')
      return cpu
    }
    // The first failure of each address is the last that is not too many, and what the variants share is compiled.
    for (const name of ['past', 'blocked']) await load.ask('burst', { port: ports[name], count: BURST, token: 'malformed', from: 'same', expect: null })
    for (const { a, b } of rows) for (const one of [a, b]) await burst(one)
    const done = []
    for (const { name, a, b, ...bounds } of rows) done.push(ratioRow(name, await inPairs(() => burst(a), () => burst(b)), { beside: micros, ...bounds }))
    return done
  } finally {
    server.stop()
    load.stop()
  }
}

const micros = (a, b) => `${a.toFixed(0)} and ${b.toFixed(0)} µs`
