/** Many sockets whose tokens end in the same second, and one user's sockets among many. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { median, quartiles } from '../statistics.js'

const COUNTS = [1000, 10_000]
const SOCKETS_OF_ONE = 5
const ASKED_FOR = 100
/** Seconds until the tokens end: time for all of the sockets to be opened. */
const LIFETIME = 10
/** One stall of the machine is as long as a storm's: the median counts. */
const STORMS = { ours: 3, naive: 1 }

const MAX_STALL = 50
const MAX_DONE = 2000
const MAX_FIND = 5

export async function measureStorms () {
  const rows = []
  const found = {}
  for (const count of COUNTS) {
    found[count] = await withSockets('ours', count, undefined, ({ server, users }) => server.ask('find', {
      open: count, each: SOCKETS_OF_ONE,
      userIds: Array.from({ length: ASKED_FOR }, (_, i) => `user-${Math.floor(i * users / ASKED_FOR)}`)
    }))
    rows.push({
      name: `find ${SOCKETS_OF_ONE} sockets of a user among ${count}, µs`, value: found[count].micros, digits: 2,
      spread: quartiles(found[count].rounds), atMost: MAX_FIND
    })
  }
  return [...rows, ...await measureExpiry(COUNTS.at(-1))]
}

async function measureExpiry (count) {
  const storms = { ours: [], naive: [] }
  for (const [kind, runs] of Object.entries(STORMS)) {
    while (storms[kind].length < runs) {
      const exp = Math.ceil(Date.now() / 1000) + LIFETIME
      const storm = await withSockets(kind, count, exp, ({ server }) => server.ask('storm', { from: exp * 1000 }))
      if (storm.closed !== count) throw new Error(`${storm.closed} sockets were closed`)
      storms[kind].push(storm)
    }
  }
  const [naive] = storms.naive
  const calm = storms.ours.map(storm => storm.calm.stall)
  const row = (what, member, atMost, beside = '') => {
    const values = storms.ours.map(storm => storm[member])
    return {
      name: `${count} tokens end at once: ${what}, ms`, value: median(values), spread: range(values), atMost,
      beside: `a timer each ${naive[member].toFixed(0)}${beside}`
    }
  }
  return [
    row('longest stall', 'stall', MAX_STALL, `; before the storm ${range(calm)}`),
    row('longest stall by its own CPU time', 'busy'),
    row('all closed after', 'done', MAX_DONE)
  ]
}

const range = values => `${Math.min(...values).toFixed(0)}-${Math.max(...values).toFixed(0)}`

async function withSockets (kind, count, exp, measure) {
  const server = startChild(new URL('./server.js', import.meta.url), ['--expose-gc'])
  const clients = startChild(new URL('./clients.js', import.meta.url))
  try {
    const secret = randomBytes(32).toString('base64url')
    const { [kind]: port } = await server.ask('start', { given: { [kind]: kind }, secret })
    const users = count / SOCKETS_OF_ONE
    await clients.ask('open', { port, path: '/idle', secret, count, users, exp })
    return await measure({ server, users })
  } finally {
    server.stop()
    clients.stop()
  }
}
