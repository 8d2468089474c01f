/** Tabs of one page: one of them refreshes at a time, all have what it got, and a logout is everybody's. Off in Node. */
import { page } from './environment.js'

/** So long another tab has to hear of a token before it may ask for one itself, in milliseconds. */
const HEARD_WITHIN = 50

export interface Tabs {
  /** Does it while no other tab does, and tells them what came of it. */
  readonly share: (ask: () => Promise<string | null>, signal: AbortSignal) => Promise<string | null>
  readonly logOut: () => void
}

export interface Siblings {
  readonly onToken: (token: string) => void
  readonly onLogout: () => void
}

/** null: there are none. @param isTold whether they may have each other's tokens */
export function joinTabs (name: string, isTold: boolean, closing: AbortSignal, { onToken, onLogout }: Siblings): Tabs | null {
  const { BroadcastChannel: Channel, navigator } = page
  if (Channel === undefined) return null
  const channel = new Channel(name)
  closing.addEventListener('abort', () => { channel.close() })
  channel.onmessage = ({ data }) => {
    const { token, logout } = Object(data) as { readonly token?: unknown, readonly logout?: unknown }
    if (logout === true) onLogout()
    else if (typeof token === 'string') onToken(token)
  }
  const tell = (message: object): void => {
    if (!closing.aborted) channel.postMessage(message)
  }
  return {
    logOut () { tell({ logout: true }) },
    share (ask, signal) {
      if (!isTold) return ask()
      const askAndTell = async (): Promise<string | null> => {
        const token = await ask()
        if (token !== null && !signal.aborted) tell({ token })
        return token
      }
      const locks = navigator?.locks
      // Of another origin than https: there are no locks (Web Locks §2).
      if (locks === undefined) return askAndTell()
      return new Promise((resolve, reject) => {
        locks.request(name, { signal }, async () => {
          const asked = askAndTell()
          resolve(asked)
          await asked
          await new Promise(_resolve => { setTimeout(_resolve, HEARD_WITHIN) })
        }).catch(reject)
      })
    }
  }
}
