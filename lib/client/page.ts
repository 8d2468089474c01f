/** What becomes of a page: it is put away and fetched back, sleeps and wakes, and loses its way to the network. */
import { page, unref } from './environment.js'

/** How often it is looked whether time has passed that nobody was awake in, and how much, in milliseconds. Hidden pages are woken once a minute. */
const [LOOK, SLEPT] = [30_000, 90_000]

export const isOffline = (): boolean => page.navigator?.onLine === false

/**
 * @param onAway what is open is as good as lost, and must not keep the page from being kept (HTML §7.4.3, bfcache)
 * @param onBack there may be a way again
 * @param onDoubt what is open may not be open any more
 */
export function watchPage (signal: AbortSignal, onAway: () => void, onBack: () => void, onDoubt: () => void): void {
  const listen = (type: string, listener: (event: { readonly persisted?: boolean }) => void): void => { page.addEventListener?.(type, listener, { signal }) }
  let seen = Date.now()
  const timer = setInterval(() => {
    if (-seen + (seen = Date.now()) > SLEPT) onDoubt()
  }, LOOK)
  unref(timer)
  signal.addEventListener('abort', () => { clearInterval(timer) })
  listen('online', onBack)
  listen('offline', onDoubt)
  listen('visibilitychange', () => { if (!page.document?.hidden) onDoubt() })
  listen('pagehide', ({ persisted }) => { if (persisted) onAway() })
  listen('pageshow', ({ persisted }) => { if (persisted) onBack() })
}
