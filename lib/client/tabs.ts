/** Tabs of one page: one of them refreshes at a time, all have what it got, and a logout is everybody's. Off in Node. */
import { page, unref } from './environment.js'

/** So long another tab has to hear of a token before it may ask for one itself, in milliseconds. */
const HEARD_WITHIN = 50

export interface Tabs {
  /** Does it while no other tab does, and tells them what came of it. */
  readonly share: (ask: () => Promise<string | null>, signal: AbortSignal) => Promise<string | null>
  readonly logOut: () => void
}

/** null: there are none. @param user who it is in this tab, as the server has said; null: not known. @param isTold whether tokens are for others of the same user */
export function joinTabs (name: string, user: () => string | null, isTold: boolean, closing: AbortSignal, onToken: (token: string) => void, onLogout: () => void): Tabs | null {
  if (!page.BroadcastChannel) return null
  const channel = new page.BroadcastChannel(name)
  unref(channel)
  // Where it is closed it throws.
  const tell = (message: object): void => { if (!closing.aborted) channel.postMessage(message) }
  closing.addEventListener('abort', () => { channel.close() })
  channel.onmessage = ({ data }) => {
    const { token, id, logout } = Object(data) as { readonly token?: unknown, readonly id?: unknown, readonly logout?: unknown }
    if (logout) {
      // Of somebody else it is nobody's business here.
      if (id === null || user() === null || id === user()) onLogout()
    } else if (isTold && typeof token === 'string' && typeof id === 'string' && id === user()) onToken(token)
  }
  return {
    logOut () { tell({ logout: true, id: user() }) },
    async share (ask, signal) {
      if (!isTold) return ask()
      let isHeard = false
      const asked = async (): Promise<string | null> => {
        const token = await ask()
        const id = user()
        isHeard = token !== null && id !== null && !signal.aborted
        if (isHeard) tell({ token, id })
        return token
      }
      // Without https there are no locks (Web Locks §2).
      const locks = page.navigator?.locks
      if (!locks) return asked()
      return new Promise((resolve, reject) => {
        let isMine = false
        locks.request(name, { signal }, async () => {
          isMine = true
          resolve(await asked())
          if (!isHeard) return
          await new Promise<void>(_resolve => {
            const timer = setTimeout(_resolve, HEARD_WITHIN)
            signal.addEventListener('abort', () => {
              clearTimeout(timer)
              _resolve()
            })
          })
        }).catch((error: unknown) => {
          // A frame without an origin of its own has no locks either, and says so late.
          if (isMine || signal.aborted) reject(error)
          else resolve(asked())
        })
      })
    }
  }
}
