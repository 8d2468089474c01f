/** Which nodes answer: each is asked again and again for a file of the page. A connection alone tells nothing: the system takes it for a process that hangs. */

/** Between two questions, and for an answer, in milliseconds. */
const INTERVAL = 2000
/** In a row. */
const MISSES = 2

/** @param lost is told which node does not answer any more */
export function watchNodes ({ host, ports, interval = INTERVAL, lost }) {
  const misses = ports.map(() => 0)
  const timers = ports.map((_, i) => setTimeout(ask, interval, i))
  let isOver = false

  async function ask (i) {
    try {
      const answer = await fetch(`http://${host}:${ports[i]}/icon.svg`, { signal: AbortSignal.timeout(interval) })
      await answer.arrayBuffer()
      misses[i] = 0
    } catch {
      if (++misses[i] === MISSES) lost(i)
    }
    if (!isOver) timers[i] = setTimeout(ask, interval, i)
  }

  return {
    answers: i => misses[i] < MISSES,
    stop () {
      isOver = true
      for (const timer of timers) clearTimeout(timer)
    }
  }
}
