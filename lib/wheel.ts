/**
 * One timer for any number of things to look at. An item stands in at most one slot and knows where, so that moving and
 * removing it cost the same whatever else is waiting.
 */

/** What stands in a wheel. */
export interface Wheeled {
  /** Where it stands, for the wheel to write: the tick that it is due at, -1 for none, and its place in that tick's slot. */
  due: number
  position: number
  /** Its time has come. It may schedule itself again. */
  look (): void
}

const TICK = 50
const SLOTS = 1024
/** The furthest that an item waits before it is looked at again, in milliseconds: far below the 2^31 of a timer. */
export const HORIZON = TICK * (SLOTS - 1)
// Longer than this the loop is not kept from other work, however many items are due at once.
const SLICE = 2

export class Wheel {
  readonly #slots: Wheeled[][] = []
  /** The last tick whose slot was emptied. */
  #emptied = tickOf(performance.now())
  #armedFor = Infinity
  #timer: NodeJS.Timeout | undefined
  #isTurning = false
  #size = 0

  get size (): number {
    return this.#size
  }

  /** Looks at the item after `ms`, never earlier, or after {@link HORIZON} if that is sooner. */
  schedule (item: Wheeled, ms: number): void {
    this.remove(item)
    const now = performance.now()
    // Nothing stands before the tick that the timer is set to.
    if (!this.#isTurning) this.#emptied = Math.max(this.#emptied, Math.min(tickOf(now), this.#armedFor - 1))
    const tick = tickOf(now + Math.min(Math.max(ms, 0), HORIZON - TICK)) + 1
    const slot = this.#slotOf(tick)
    item.due = tick
    item.position = slot.push(item) - 1
    this.#size++
    this.#arm(tick)
  }

  remove (item: Wheeled): void {
    if (item.due === -1) return
    const slot = this.#slotOf(item.due)
    const last = slot.pop()
    if (last !== undefined && last !== item) {
      slot[item.position] = last
      last.position = item.position
    }
    item.due = -1
    this.#size--
    if (this.#size === 0) this.#rest()
  }

  /** Nothing is waiting: no timer is left. */
  #rest (): void {
    clearTimeout(this.#timer)
    this.#armedFor = Infinity
  }

  #slotOf (tick: number): Wheeled[] {
    const at = tick % SLOTS
    return (this.#slots[at] ??= [])
  }

  #arm (tick: number): void {
    if (tick >= this.#armedFor) return
    clearTimeout(this.#timer)
    this.#armedFor = tick
    this.#timer = setTimeout(() => { this.#turn() }, Math.max(tick * TICK - performance.now(), 1))
    this.#timer.unref()
  }

  #turn (): void {
    this.#isTurning = true
    const started = performance.now()
    const current = tickOf(started)
    // More than once round, every slot is due.
    this.#emptied = Math.max(this.#emptied, current - SLOTS)
    while (this.#emptied < current) {
      // A slot holds what is due a round later too.
      for (const item of this.#slotOf(this.#emptied + 1).filter(({ due }) => due <= current)) {
        // One look may have taken out, or put off, the next.
        if (item.due === -1 || item.due > current) continue
        this.remove(item)
        lookAt(item)
        if (performance.now() - started > SLICE) {
          // `setImmediate` lets sockets be served between two slices.
          setImmediate(() => { this.#turn() })
          return
        }
      }
      this.#emptied++
    }
    this.#isTurning = false
    this.#armNext(current)
  }

  #armNext (current: number): void {
    this.#armedFor = Infinity
    if (this.#size === 0) return
    let tick = current + 1
    while (this.#slotOf(tick).length === 0) tick++
    this.#arm(tick)
  }
}

/** One that throws is a fault to be heard of, and no reason to leave the others unseen. */
function lookAt (item: Wheeled): void {
  try {
    item.look()
  } catch (error) {
    setImmediate(() => { throw error })
  }
}

/** The wheel of this process. */
export const wheel = new Wheel()

function tickOf (ms: number): number {
  return Math.floor(ms / TICK)
}
