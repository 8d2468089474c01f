/** How often something may happen: for each key a bucket that fills again with time. Of this process: two nodes let pass twice as many. */
import { createHmac, randomBytes } from 'node:crypto'

/**
 * Keys of strangers share a table of this size: a flood of them neither makes it grow nor makes it forget one. Whose slot is
 * also another's cannot be found out from outside.
 */
const SLOTS = 4096

/** @param atOnce so many, and then one each `interval` milliseconds */
export function createBuckets ({ atOnce, interval, now = () => performance.now() }) {
  const secret = randomBytes(32)
  /** When each would be full again. */
  const fullAt = new Float64Array(SLOTS)
  const slotOf = key => createHmac('sha256', secret).update(key).digest().readUInt16BE() % SLOTS
  const waitOf = slot => Math.max(0, fullAt[slot] - now() - (atOnce - 1) * interval)

  return {
    /** @returns 0: they are taken, one of each. Else after how many milliseconds there is one of each again, and none is taken */
    take (...keys) {
      const slots = keys.map(slotOf)
      const wait = Math.max(...slots.map(waitOf))
      if (wait === 0) for (const slot of slots) fullAt[slot] = Math.max(fullAt[slot], now()) + interval
      return wait
    },
    giveBack (...keys) {
      for (const slot of keys.map(slotOf)) fullAt[slot] -= interval
    }
  }
}

/** For a client that is too fast. */
export const slowDown = (wait, message) =>
  Object.assign(new Error(message), { statusCode: 429, headers: { 'retry-after': String(Math.ceil(wait / 1000)) } })
