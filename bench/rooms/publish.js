/** A message to everybody in a room of one process: ours, Socket.IO's and a hand-written loop's. */
import { inPairs } from '../abuse/pairs.js'
import { median, quartiles } from '../statistics.js'
import { capped, publishing, ROOM, startServer, withSockets } from './stage.js'

/** Members, and messages in a burst. */
const SIZES = [{ wanted: 1000, times: 10 }, { wanted: 10_000, times: 2 }]
const AT_ONCE = { wanted: 1000, times: 10, isAtOnce: true }
const MAX_NOISE = 0.05

const MIN_TO_LOOP = 0.95
const MIN_TO_IO = 1.5

const ITSELF = { name: 'A/A: the loop against itself', a: 'bare', b: 'bare', within: MAX_NOISE }
const TO_TWIN = { name: 'A/A: the loop against that of another instance', a: 'twin', b: 'bare', within: MAX_NOISE }
const TO_LOOP = { name: 'ours / a loop', a: 'ours', b: 'bare' }
const TO_IO = { name: 'ours / Socket.IO', a: 'ours', b: 'io' }

export async function measurePublish () {
  const rows = []
  for (const size of SIZES) {
    // A process may not have the sockets of three large rooms.
    const hasTwin = capped(size.wanted, 3) === size.wanted
    rows.push(...await compare({ bare: 'bare', ours: 'ours', ...(hasTwin && { twin: 'bare' }) }, size, [hasTwin ? TO_TWIN : ITSELF, { ...TO_LOOP, atLeast: MIN_TO_LOOP }]))
    rows.push(...await compare({ io: 'io', ours: 'ours' }, size, [{ ...TO_IO, atLeast: MIN_TO_IO }]))
  }
  return [...rows, ...await compare({ bare: 'bare', ours: 'ours', io: 'io' }, AT_ONCE, [TO_LOOP, TO_IO])]
}

/** @param given the names of applications in one process, each with its kind */
async function compare (given, { wanted, times, isAtOnce }, rows) {
  const count = capped(wanted, Object.keys(given).length)
  const server = startServer()
  return withSockets(server, given, { count, rooms: [ROOM] }, async clients => {
    const burst = {}
    for (const name of Object.keys(given)) burst[name] = await publishing([server], name, clients[name], { count, times, isAtOnce })
    const measured = []
    for (const { name, a, b, ...bounds } of rows) {
      const title = `publish to ${count} members${isAtOnce === true ? `, ${times} in one turn of the loop` : ''}: ${name}`
      measured.push(describe(title, await inPairs(burst[a], burst[b]), count, bounds))
    }
    return measured
  })
}

/** By CPU time of the servers. The clock is also that of the clients, who share the machine with them. */
export function describe (name, pairs, count, bounds) {
  const ratios = pairs.map(({ a, b }) => b.cpu / a.cpu)
  const each = side => (median(pairs.map(pair => pair[side].cpu)) / count).toFixed(2)
  return {
    name: `${name}, by CPU`, value: median(ratios), spread: quartiles(ratios), digits: 2, ...bounds,
    beside: `${each('a')} and ${each('b')} µs a member; by clock ${median(pairs.map(({ a, b }) => b.clock / a.clock)).toFixed(2)}`
  }
}
