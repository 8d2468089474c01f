/** How long the loop of this process stands still, and how long a lookup takes. */

/**
 * Turns the loop every millisecond. What is returned stops that, and tells by how many milliseconds a turn came too late
 * at most: by the clock, and by what of it this process used. The rest went to other processes.
 */
export function startProbe () {
  const longest = { stall: 0, busy: 0 }
  let last = performance.now()
  let used = process.cpuUsage()
  const timer = setInterval(() => {
    const now = performance.now()
    const { user, system } = process.cpuUsage(used)
    const late = now - last - 1
    longest.stall = Math.max(longest.stall, late)
    longest.busy = Math.max(longest.busy, Math.min(late, (user + system) / 1000))
    last = now
    used = process.cpuUsage()
  }, 1)
  return () => {
    clearInterval(timer)
    return longest
  }
}

const FINDS = 1000
const ROUNDS = 21

/** Microseconds to find the connections of one user, of every round. */
export function timeFinds (hybridAuth, userIds, each) {
  return Array.from({ length: ROUNDS }, () => {
    const start = process.hrtime.bigint()
    for (let i = 0; i < FINDS; i++) {
      const found = hybridAuth.connections({ userId: userIds[i % userIds.length] })
      if (found.length !== each) throw new Error(`found ${found.length}`)
    }
    return Number(process.hrtime.bigint() - start) / 1000 / FINDS
  })
}

/** Milliseconds by a clock that all processes of the machine share. */
export const sharedNow = () => Number(process.hrtime.bigint()) / 1e6
