/** How long to wait before the next attempt: full jitter, so that many clients do not come back at once. */
const FIRST = 500
export const LONGEST = 20_000
/** A timer that is set for longer fires at once. */
export const MAX_DELAY = 2 ** 31 - 1

/** @param attempt from 0; in milliseconds */
export const backoff = (attempt: number): number => Math.random() * Math.min(LONGEST, FIRST * 2 ** Math.min(attempt, 10))
