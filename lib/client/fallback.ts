/** Without a socket: what is said in the rooms, asked for over HTTP with the same credential, until there is a socket again. */
import { MAX_DELAY } from './backoff.js'
import type { Emit } from './emitter.js'
import { read, type Values } from './frames.js'
import { isOffline } from './page.js'
import type { Rooms } from './rooms.js'
import type { Tokens } from './tokens.js'
import type { AuthSocketEvents, Fallback } from './types.js'

/** A poll takes no longer, in milliseconds. */
const PATIENCE = 15_000

/** @param onLoggedOut the session is over */
export function createFallback ({ after = 10_000, poll, interval = 5000 }: Fallback, tokens: Tokens | null, rooms: Rooms, emit: Emit<AuthSocketEvents>, onLoggedOut: () => void) {
  let timer: ReturnType<typeof setTimeout> | undefined
  let polling: AbortController | null = null
  /** Of which there is nothing to be had by polls. */
  const unheard = new Set<string>()

  /** @returns how long the server wants not to be asked, in milliseconds */
  async function ask (signal: AbortSignal): Promise<number> {
    const cursors = [...rooms.cursors].filter(([room]) => !unheard.has(room))
    if (!cursors.length || isOffline()) return 0
    const token = tokens && await tokens.forConnection()
    // Where there is none any more the next attempt to connect ends the client.
    if (signal.aborted || (tokens && !token)) return 0
    const response = await fetch(poll, {
      method: 'POST',
      // The credential is for this address alone.
      redirect: 'error',
      credentials: token ? 'omit' : 'include',
      headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
      body: JSON.stringify({ rooms: Object.fromEntries(cursors) }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE)])
    })
    const { rooms: answers } = read(await response.text())
    if (response.ok && answers) for (const [room, answer] of Object.entries(Object(answers) as Values)) take(room, Object(answer) as Values, signal)
    else if (response.status === 401 && !tokens) onLoggedOut()
    else {
      if (response.status === 401) tokens?.reject(token)
      emit('error', { stage: 'poll', error: new Error(`the server answered ${response.status}`) })
    }
    return Math.min(MAX_DELAY, Number(response.headers.get('retry-after')) * 1000 || 0)
  }

  function take (room: string, { messages, error, cursor, gap }: Values, signal: AbortSignal): void {
    // A listener may close the client, or leave the room.
    const isOver = (): boolean => signal.aborted || !rooms.cursors.has(room)
    if (isOver()) return
    if (typeof error === 'string') {
      // As over a socket: who may not be in a room any more is out of it.
      if (error === 'forbidden') {
        rooms.cursors.delete(room)
        emit('left', { room, reason: error })
      } else {
        unheard.add(room)
        emit('error', { stage: 'refused', error: { type: 'error', code: error, message: 'This room cannot be polled', action: 'none', room } })
      }
    } else for (const one of Array.isArray(messages) ? [...messages as unknown[], { cursor, gap }] : []) if (!isOver()) rooms.take(room, Object(one) as Values)
  }

  /** Never rejects. */
  async function round (signal: AbortSignal): Promise<void> {
    let wait = 0
    try {
      wait = await ask(signal)
    } catch (error) {
      if (!signal.aborted) emit('error', { stage: 'poll', error })
    }
    if (!signal.aborted) timer = setTimeout(() => { go(signal) }, Math.max(wait, interval * (0.5 + Math.random())))
  }

  function go (signal: AbortSignal): void {
    round(signal).catch(() => {})
  }

  return {
    /** There is no socket: if that lasts, the rooms are polled. */
    begin (): void {
      timer ??= setTimeout(() => {
        const { signal } = polling = new AbortController()
        emit('degraded', true)
        if (!signal.aborted) go(signal)
      }, after)
    },
    /** There is one, or none is wanted. */
    end (): void {
      clearTimeout(timer)
      timer = undefined
      if (!polling) return
      unheard.clear()
      polling.abort()
      polling = null
      emit('degraded', false)
    }
  }
}
