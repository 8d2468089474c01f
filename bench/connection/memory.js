/** What an open socket on which nothing happens costs beyond a bare one, in bytes of heap and external memory. */
import { randomBytes } from 'node:crypto'
import { startChild } from '../ipc.js'
import { median } from '../statistics.js'

const MAX_BYTES = 450
const WARM_UP = 1000
/** Each with how often it is measured: the fewer sockets, the more the rest of the heap weighs. */
const COUNTS = [{ count: 1000, runs: 3 }, { count: 10_000, runs: 1 }, { count: 50_000, runs: 1 }]
// Descriptors that a process needs for other things than its sockets.
const SPARE = 100

export async function measureMemory () {
  const limit = process.report.getReport().userLimits.open_files.hard
  const rows = []
  for (const { count, runs } of COUNTS) {
    if (limit !== 'unlimited' && count + SPARE > limit) {
      rows.push({ name: `memory, ${count} sockets`, note: `not measured: this machine allows ${limit} open files a process` })
      continue
    }
    for (const isShared of [true, false]) {
      const added = []
      const bare = []
      for (let run = 0; run < runs; run++) {
        bare.push(await bytesPerSocket('bare', count, isShared))
        added.push(await bytesPerSocket('ours', count, isShared) - bare.at(-1))
      }
      rows.push({
        name: `memory, ${count} sockets, ${isShared ? 'one token' : 'a token each'}: added, bytes`, value: median(added),
        spread: runs > 1 ? `${Math.min(...added).toFixed(0)}-${Math.max(...added).toFixed(0)}` : '',
        beside: `bare ${median(bare).toFixed(0)}`, atMost: MAX_BYTES
      })
    }
  }
  return rows
}

/** In a process that did nothing else before but open and lose sockets, so that its code is compiled. */
async function bytesPerSocket (kind, count, isShared) {
  const server = startChild(new URL('./server.js', import.meta.url), ['--expose-gc'])
  const clients = startChild(new URL('./clients.js', import.meta.url))
  try {
    const secret = randomBytes(32).toString('base64url')
    const { app: port } = await server.ask('start', { given: { app: kind }, secret })
    const where = { port, path: '/idle', secret, isShared }
    await clients.ask('open', { ...where, count: WARM_UP, isShared: true })
    await clients.ask('closeAll')
    const before = await server.ask('memory', { open: 0 })
    await clients.ask('open', { ...where, count, users: count })
    return (await server.ask('memory', { open: count }) - before) / count
  } finally {
    server.stop()
    clients.stop()
  }
}
