/** What it costs to be in a room: to get in and out of it, and the memory meanwhile. */
import { inPairs, ratioRow } from '../abuse/pairs.js'
import { median, quartiles } from '../statistics.js'
import { capped, ROOM, startServer, withSockets } from './stage.js'

const JOINING = 1000
const TIMES = 10
const MAX_NOISE = 0.05
const HOLDING = 10_000
const MANY = 10

const KINDS = { ours: 'ours', io: 'Socket.IO', bare: 'a Map of Sets' }

export async function measureJoins () {
  return [...await compareJoins(undefined), ...await compareJoins('hybrid-auth.v1')]
}

/** @param protocol those who speak it are told that they are in, and out */
async function compareJoins (protocol) {
  const server = startServer()
  return withSockets(server, { ours: 'ours', io: 'io' }, { count: JOINING, protocol }, async () => {
    const both = name => () => server.ask('joinAndLeave', { name, room: ROOM, times: protocol === undefined ? TIMES : 1 })
    const told = protocol === undefined ? '' : ', the client is told'
    const pairs = await inPairs(both('ours'), both('io'))
    const micros = pairs.map(({ a }) => a)
    return [
      ...(protocol === undefined ? [ratioRow('join and leave, A/A: Socket.IO against itself', await inPairs(both('io'), both('io')), { within: MAX_NOISE })] : []),
      { name: `join and leave${told}: ours, µs`, value: median(micros), spread: quartiles(micros), digits: 2 },
      ratioRow(`join and leave${told}: ours / Socket.IO`, pairs)
    ]
  })
}

export async function measureMemory () {
  const bytes = {}
  for (const kind of Object.keys(KINDS)) bytes[kind] = await bytesOfMembership(kind)
  const count = capped(HOLDING, 1)
  const beside = which => Object.entries(KINDS).filter(([kind]) => kind !== 'ours').map(([kind, title]) => `${title} ${bytes[kind][which].toFixed(0)}`).join(', ')
  return [
    { name: `memory of a membership, ${count} sockets in one room: ours, bytes`, value: bytes.ours.one, beside: beside('one') },
    { name: `memory of a membership, ${count} sockets in ${MANY} rooms: ours, bytes`, value: bytes.ours.many, beside: beside('many') }
  ]
}

/** In a process of its own. */
async function bytesOfMembership (kind) {
  const count = capped(HOLDING, 1)
  const server = startServer()
  return withSockets(server, { [kind]: kind }, { count }, async () => {
    // What the first of all compiles is no membership.
    const [warm, first, ...others] = Array.from({ length: MANY + 1 }, (_, i) => `${ROOM}/${String(i).padStart(2, '0')}`)
    await server.ask('join', { name: kind, rooms: [warm] })
    await server.ask('leave', { name: kind, room: warm })
    const none = await server.ask('memory')
    await server.ask('join', { name: kind, rooms: [first] })
    const one = await server.ask('memory')
    await server.ask('join', { name: kind, rooms: others })
    return { one: (one - none) / count, many: (await server.ask('memory') - none) / (count * MANY) }
  })
}
