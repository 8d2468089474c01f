/** A thousand clients whose tokens end together, and a thousand whose server is started again: how they spread. */
import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { startChild } from '../ipc.js'

const COUNT = 1000
/** In seconds. */
const LIFETIME = 60
/** Milliseconds that the server is away. */
const OUTAGES = [0, 2000, 20_000]
const BARS = 20
const MAX_PEAK = 3

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
  const { opened, tried } = await clients.ask('reopened')
  const name = `${COUNT} clients of a server that was away for ${outage / 1000} s`
  return [
    spread(`${name}: open again`, opened),
    { name: `${name}: attempts for each`, value: tried.length / COUNT, digits: 1 }
  ]
}

/** The fullest of the bars over their mean, from the first to the last. */
function spread (name, times) {
  const from = Math.min(...times)
  const span = Math.max(...times) - from
  const bars = new Array(BARS).fill(0)
  for (const time of times) bars[Math.min(BARS - 1, Math.floor((time - from) / span * BARS))]++
  const mean = times.length / BARS
  return { name: `${name}, peak over mean`, value: Math.max(...bars) / mean, digits: 2, spread: bars.join(' '), beside: `${times.length} in ${(span / 1000).toFixed(1)} s`, atMost: MAX_PEAK }
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
