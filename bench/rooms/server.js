/** The server under measurement, with one application or several. Runs with --expose-gc. */
import { setImmediate, setTimeout } from 'node:timers/promises'
import { answerRequests } from '../ipc.js'
import { sharedNow } from '../probe.js'
import { CREATE } from './apps.js'

const PAYLOAD = { from: 'user-4711', at: 1_750_000_000_000, text: 'hello to everybody who is here' }

const apps = {}

answerRequests({
  /** @param given the names of the applications, each with its kind @returns their ports */
  async start ({ given, ...settings }) {
    const ports = {}
    for (const [name, kind] of Object.entries(given)) {
      apps[name] = await CREATE[kind](settings)
      ports[name] = apps[name].port
    }
    return ports
  },
  /** Waits until `count` sockets are open. */
  async opened ({ name, count }) {
    while (apps[name].members.size !== count) await setTimeout(5)
  },
  /** Everybody joins the rooms. Each name is a text of its own, as out of a frame. */
  async join ({ name, rooms }) {
    const { members, join } = apps[name]
    for (const room of rooms) await Promise.all([...members].map(member => join(member, Buffer.from(room).toString())))
  },
  leave ({ name, room }) {
    const { members, leave } = apps[name]
    for (const member of members) leave(member, room)
  },
  /** Publishes: all in one turn of the loop, or one in each. @returns when it began */
  async publish ({ name, room, times, isAtOnce }) {
    const at = sharedNow()
    const published = []
    for (let i = 0; i < times; i++) {
      published.push(apps[name].publish(room, PAYLOAD))
      if (!isAtOnce) await setImmediate()
    }
    await Promise.all(published)
    return at
  },
  /** Everybody joins and leaves a room, so often. @returns microseconds of CPU time for each pair */
  async joinAndLeave ({ name, room, times }) {
    const { members, join, leave } = apps[name]
    globalThis.gc({ type: 'minor' })
    const before = process.cpuUsage()
    for (let i = 0; i < times; i++) {
      for (const member of members) await join(member, room)
      for (const member of members) leave(member, room)
    }
    globalThis.gc({ type: 'minor' })
    const { user, system } = process.cpuUsage(before)
    return (user + system) / (members.size * times)
  },
  /** The CPU time used so far, in microseconds. */
  cpu () {
    globalThis.gc({ type: 'minor' })
    const { user, system } = process.cpuUsage()
    return user + system
  },
  /** The bytes in use. */
  async memory () {
    let least = Infinity
    for (let i = 0; i < 4; i++) {
      await setTimeout(50)
      globalThis.gc()
      const { heapUsed, external } = process.memoryUsage()
      least = Math.min(least, heapUsed + external)
    }
    return least
  }
})
