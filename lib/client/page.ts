/** What becomes of a page: it is put away and fetched back, sleeps and wakes, and loses its way to the network. */
import { page } from './environment.js'

/** How often it is looked whether time has passed that nobody was awake in, and how much, in milliseconds. Hidden pages are woken once a minute. */
const LOOK = 30_000
const SLEPT = 90_000

export interface PageHandlers {
  /** What is open is as good as lost, and must not keep the page from being kept (HTML §7.4.3, bfcache). */
  readonly onAway: () => void
  /** There may be a way again. */
  readonly onBack: () => void
  /** What is open may not be open any more. */
  readonly onDoubt: () => void
}

export const isOffline = (): boolean => page.navigator?.onLine === false

export function watchPage (signal: AbortSignal, { onAway, onBack, onDoubt }: PageHandlers): void {
  let seen = Date.now()
  const timer = setInterval(() => {
    const time = Date.now()
    if (time - seen > SLEPT) onDoubt()
    seen = time
  }, LOOK)
  // In Node nobody has to wait for it.
  const { unref } = Object(timer) as { readonly unref?: () => void }
  unref?.call(timer)
  signal.addEventListener('abort', () => { clearInterval(timer) })
  const listen = (type: string, listener: (event: { readonly persisted?: boolean }) => void): void => { page.addEventListener?.(type, listener, { signal }) }
  listen('online', onBack)
  listen('offline', onDoubt)
  listen('visibilitychange', () => { if (page.document?.hidden !== true) onDoubt() })
  listen('pagehide', ({ persisted }) => { if (persisted === true) onAway() })
  listen('pageshow', ({ persisted }) => { if (persisted === true) onBack() })
}
