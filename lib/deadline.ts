import type { Maybe } from './maybe.js'

/**
 * `settle` is called exactly once: with the value, with `late` after `ms` or a rejection. A value that is
 * there is handed on at once, and costs no timer.
 */
export function settleWithin<T> (value: Maybe<T>, ms: number, late: T, settle: (value: T) => void): void {
  if (!(value instanceof Promise)) {
    settle(value)
    return
  }
  let open = true
  const once = (outcome: T) => {
    if (!open) return
    open = false
    clearTimeout(timer)
    settle(outcome)
  }
  const timer = setTimeout(once, ms, late)
  timer.unref()
  value.then(once, () => { once(late) })
}

/** {@link settleWithin} as a promise. */
export function settledWithin<T> (value: Promise<T>, ms: number, late: T): Promise<T> {
  return new Promise(resolve => { settleWithin(value, ms, late, resolve) })
}
