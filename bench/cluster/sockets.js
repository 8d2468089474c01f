/** One node holds many real sockets, whose clients are another process; the other node revokes a user's, then a tenant's. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { median, quantile, quartiles } from '../statistics.js'

const COUNT = 10_000
const SOCKETS_OF_ONE = 5
/** Users of another tenant, one after the other. */
const ENDED = 20
const ASKED_FOR = 100
/** One stall of the machine is as long as a storm's: the median counts. */
const RUNS = { ours: 3, naive: 1 }

const MAX_STALL = 50
const MAX_FIND = 5

export async function measureSockets ({ redisUrl, client }) {
  const runs = { ours: [], naive: [] }
  for (const [kind, times] of Object.entries(RUNS)) {
    while (runs[kind].length < times) {
      await client.sendCommand(['FLUSHALL'])
      runs[kind].push(await measure(kind, redisUrl))
    }
  }
  return describe(runs)
}

async function measure (kind, redisUrl) {
  const [a, b, clients] = ['./server.js', './server.js', '../connection/clients.js'].map(name => startChild(new URL(name, import.meta.url)))
  try {
    const secret = randomBytes(32).toString('base64url')
    const settings = { redisUrl, secret, clusterSecret: randomBytes(32).toString('base64url') }
    await a.ask('start', settings)
    const { [kind]: port } = await b.ask('start', settings)
    const users = COUNT / SOCKETS_OF_ONE
    const where = { port, path: '/idle', secret }
    await clients.ask('open', { ...where, count: COUNT, users, claims: { companyId: 'acme' } })
    await clients.ask('open', { ...where, count: ENDED * SOCKETS_OF_ONE, users: ENDED, first: users, claims: { companyId: 'other' } })

    const found = kind !== 'ours'
      ? []
      : await b.ask('find', { each: SOCKETS_OF_ONE, userIds: Array.from({ length: ASKED_FOR }, (_, i) => `user-${Math.floor(i * users / ASKED_FOR)}`) })
    const end = async (target, count) => {
      const { at } = await a.ask(kind === 'ours' ? 'revoke' : 'closeNaively', target)
      const closed = await clients.ask('closes', { count })
      if (closed.count !== count) throw new Error(`${closed.count} sockets were closed`)
      return { first: closed.first - at, last: closed.last - at }
    }
    const five = []
    for (let i = 0; i < ENDED; i++) five.push((await end({ userId: `user-${users + i}` }, SOCKETS_OF_ONE)).last)
    const calm = await b.ask('watch')
    const { first, last } = await end({ tenantId: 'acme' }, COUNT)
    return { found, five, calm: calm.stall, first, last, ...await b.ask('watched') }
  } finally {
    for (const child of [a, b, clients]) child.stop()
  }
}

function describe ({ ours, naive: [naive] }) {
  const found = ours.flatMap(run => run.found)
  const five = ours.flatMap(run => run.five)
  const row = (what, member, atMost, beside = '') => {
    const values = ours.map(run => run[member])
    return {
      name: `a tenant of ${COUNT} sockets is revoked: ${what}, ms`, value: median(values), spread: range(values), atMost,
      beside: `a channel and a loop ${naive[member].toFixed(0)}${beside}`
    }
  }
  return [
    { name: `find ${SOCKETS_OF_ONE} sockets of a user among ${COUNT}, µs`, value: median(found), spread: quartiles(found), digits: 2, atMost: MAX_FIND },
    {
      name: `a user's ${SOCKETS_OF_ONE} of ${COUNT} sockets are revoked: the last one closed after, ms`, value: median(five), spread: quartiles(five, 1), digits: 1,
      beside: `p99 ${quantile(five, 0.99).toFixed(1)}, max ${Math.max(...five).toFixed(1)}; a channel and a loop ${median(naive.five).toFixed(1)}`
    },
    row('longest stall', 'stall', MAX_STALL, `; before it ${range(ours.map(run => run.calm))}`),
    row('longest stall by its own CPU time', 'busy'),
    row('first closed after', 'first'),
    row('all closed after', 'last')
  ]
}

const range = values => `${Math.min(...values).toFixed(0)}-${Math.max(...values).toFixed(0)}`
