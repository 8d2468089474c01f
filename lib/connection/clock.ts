/**
 * The clock of connections: whole milliseconds since this module was loaded, by the wall clock. Numbers of that size are
 * kept in place, where those of the epoch are each an object of their own; a connection has seven of them.
 */
const START = Date.now() - 1

export const now = (): number => Math.floor(Date.now() - START)

/** Before any time, whatever the clock is set to. */
export const AT_ONCE = -(2 ** 30)

/** A time in milliseconds since the epoch; rounded up, so that nothing happens before it. */
export const fromEpoch = (time: number): number => Math.ceil(time - START)
