/** A value that may already be there. What is synchronous stays synchronous, which is what keeps a cached handshake cheap. */
export type Maybe<T> = T | Promise<T>

/** `next(value)`, now or when the promise is fulfilled. */
export function whenReady<T, R> (value: Maybe<T>, next: (value: T) => Maybe<R>): Maybe<R> {
  return value instanceof Promise ? value.then(next) : next(value)
}

/** Foreign thenables become promises of our own; every other value passes as it is. */
export function adopt<T> (value: T | PromiseLike<T>): Maybe<T> {
  return isThenable(value) ? Promise.resolve(value) : value
}

function isThenable<T> (value: T | PromiseLike<T>): value is PromiseLike<T> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
}

/** Fails closed: what `run` throws, or rejects with, becomes what `failed` makes of it. */
export function attempt<T, F> (run: () => Maybe<T>, failed: (error: unknown) => F): Maybe<T | F> {
  try {
    const outcome = run()
    return outcome instanceof Promise ? outcome.catch(failed) : outcome
  } catch (error) {
    return failed(error)
  }
}

/** For what nobody waits for. What a listener of the application throws in it is as loud as where nothing had to be waited for. */
export function unawaited (value: Maybe<unknown>): void {
  if (value instanceof Promise) value.catch(throwLater)
}

/** Out of whatever is going on, to where uncaught errors go. */
export function throwLater (error: unknown): void {
  process.nextTick(() => { throw error })
}
