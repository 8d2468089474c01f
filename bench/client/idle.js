/** What a client costs that has nothing to do: CPU time of a thousand, over that of none. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'

const COUNT = 1000
const MS = 60_000

export async function measureIdle () {
  const [none, some] = [await cpuOf(0), await cpuOf(COUNT)]
  return [{
    name: 'CPU of an idle client, parts of a million of a core', value: (some - none) / COUNT / MS * 1e6, digits: 1,
    beside: `${COUNT} for ${MS / 1000} s: ${some.toFixed(0)} ms, none: ${none.toFixed(0)} ms`
  }]
}

async function cpuOf (count) {
  const server = startChild(new URL('./server.js', import.meta.url))
  const clients = startChild(new URL('./clients.js', import.meta.url))
  try {
    const secret = randomBytes(32).toString('base64url')
    const port = await server.ask('start', { secret })
    await clients.ask('open', { port, secret, count, lifetime: 3600 })
    return await clients.ask('idle', { ms: MS })
  } finally {
    server.stop()
    clients.stop()
  }
}
