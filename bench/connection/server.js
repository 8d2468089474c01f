/** The server under measurement, with one application or several. */
import { setImmediate, setTimeout } from 'node:timers/promises'
import { answerRequests } from '../ipc.js'
import { startProbe, timeFinds } from '../probe.js'
import { median } from '../statistics.js'
import { createApp } from './apps.js'

// In milliseconds: how long the loop is watched before a storm, and from how long before it that no longer counts.
const CALM = 1000
const MARGIN = 50

const apps = {}
/** Of sockets. */
const count = { opened: 0, closed: 0 }

answerRequests({
  /** @param given the names of the applications, each with its kind */
  async start ({ given, secret }) {
    const ports = {}
    for (const [name, kind] of Object.entries(given)) {
      apps[name] = await createApp(kind, secret, keepAndEcho)
      ports[name] = apps[name].server.address().port
    }
    return ports
  },
  /** The CPU time used so far, in microseconds. */
  cpu () {
    globalThis.gc({ type: 'minor' })
    const { user, system } = process.cpuUsage()
    return user + system
  },
  /** The bytes in use once `open` sockets are open, and no more. */
  async memory ({ open }) {
    await haveOpen(open)
    let least = Infinity
    for (let i = 0; i < 4; i++) {
      await setTimeout(50)
      globalThis.gc()
      const { heapUsed, external } = process.memoryUsage()
      least = Math.min(least, heapUsed + external)
    }
    return least
  },
  /** Microseconds to find the sockets of one user. */
  async find ({ open, userIds, each }) {
    await haveOpen(open)
    const rounds = timeFinds(apps.ours.hybridAuth, userIds, each)
    return { micros: median(rounds), rounds }
  },
  /**
   * Waits until every socket is closed.
   * @param from when the tokens end, in milliseconds since the epoch
   * @returns the longest stalls from then on and in the second before; and when the last socket was closed
   */
  async storm ({ from }) {
    await setTimeout(from - CALM - Date.now())
    const stopCalm = startProbe()
    await setTimeout(from - Date.now() - MARGIN)
    const calm = stopCalm()
    const stop = startProbe()
    while (openNow() > 0) await setTimeout(1)
    const done = Date.now() - from
    return { ...stop(), done, calm, closed: count.closed }
  }
})

function keepAndEcho (socket) {
  count.opened++
  socket.on('close', onClose)
  socket.on('message', echo)
}

function onClose () {
  count.closed++
}

function echo (data, isBinary) {
  this.send(data, { binary: isBinary })
}

function openNow () {
  return count.opened - count.closed
}

async function haveOpen (wanted) {
  while (openNow() !== wanted) await setImmediate()
}
