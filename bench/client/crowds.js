/** A thousand clients whose tokens end together, and a thousand whose server is started again: how they spread. */
import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { startChild } from '../ipc.js'
import { quantile } from '../statistics.js'

const COUNT = 1000
/** In seconds. */
const LIFETIME = 60
/** Milliseconds that the server is away. */
const OUTAGES = [0, 2000, 20_000]
const BARS = 20
const MAX_PEAK = 3
/** The last ones do not make the time longer that the others are spread over. */
const MOST = 0.95

export async function measureCrowds () {
  const rows = await withClients(LIFETIME, async ({ clients }) =>
    [spread(`${COUNT} tokens of ${LIFETIME} s that began together: refreshes`, await clients.ask('refreshes', { within: LIFETIME * 1000 }))])
  for (const outage of OUTAGES) rows.push(...await withClients(3600, context => measureRestart(context, outage)))
  return rows
}

async function measureRestart ({ server, clients, port, secret }, outage) {
  // A connection that held for less does not count as one that was good.
  await delay(6000)
  await clients.ask('forget')
  await server.ask('crash')
  await delay(outage)
  await server.ask('start', { port, secret })
  const { back, tries } = await clients.ask('reopened')
  const name = `${COUNT} clients of a server that was away for ${outage / 1000} s`
  return [
    spread(`${name}: attempts that came through`, back),
    { name: `${name}: attempts for each`, value: tries / COUNT, digits: 1 }
  ]
}

/** The fullest of the bars over their mean, from the first to most of them. */
function spread (name, times) {
  const from = Math.min(...times)
  const span = quantile(times, MOST) - from
  const bars = new Array(BARS).fill(0)
  for (const time of times) if (time - from < span) bars[Math.floor((time - from) / span * BARS)]++
  const mean = times.length * MOST / BARS
  const beside = `${MOST * 100} % in ${(span / 1000).toFixed(1)} s, all in ${((Math.max(...times) - from) / 1000).toFixed(1)} s`
  return { name: `${name}, peak over mean`, value: Math.max(...bars) / mean, digits: 2, spread: bars.join(' '), beside, atMost: MAX_PEAK }
}

async function withClients (lifetime, measure) {
  const server = startChild(new URL('./server.js', import.meta.url))
  const clients = startChild(new URL('./clients.js', import.meta.url))
  try {
    const secret = randomBytes(32).toString('base64url')
    const port = await server.ask('start', { secret })
    await clients.ask('open', { port, secret, count: COUNT, lifetime })
    return await measure({ server, clients, port, secret })
  } finally {
    server.stop()
    clients.stop()
  }
}
