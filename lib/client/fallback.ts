/** Without a socket: what is said in the rooms, asked for over HTTP with the same credential, until there is a socket again. */
import type { Emit } from './emitter.js'
import { read } from './frames.js'
import { isOffline } from './page.js'
import { page } from './environment.js'
import type { Rooms } from './rooms.js'
import type { Tokens } from './tokens.js'
import type { AuthSocketEvents, Fallback } from './types.js'

/** A poll takes no longer, in milliseconds. */
const PATIENCE = 15_000
const [AFTER, INTERVAL] = [10_000, 5000]

export interface FallbackParts {
  readonly tokens: Tokens | null
  readonly rooms: Rooms
  readonly emit: Emit<AuthSocketEvents>
  /** The session is over. */
  readonly onLoggedOut: () => void
}

/** When there is a socket, and when there is none. */
export function createFallback ({ after = AFTER, poll, interval = INTERVAL }: Fallback, { tokens, rooms, emit, onLoggedOut }: FallbackParts) {
  let timer: ReturnType<typeof setTimeout> | undefined
  let polling: AbortController | null = null

  /** @returns how long the server wants not to be asked, in milliseconds */
  async function ask (signal: AbortSignal): Promise<number> {
    const token = tokens === null ? null : await tokens.forConnection()
    // Where there is none any more the next attempt to connect ends the client.
    if (signal.aborted || (token === null && tokens !== null)) return 0
    const response = await fetch(new URL(poll, page.location?.href), {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(token !== null && { authorization: `Bearer ${token}` }) },
      credentials: token === null ? 'include' : 'omit',
      body: JSON.stringify({ rooms: Object.fromEntries(rooms.cursors) }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE)])
    })
    const { status, headers } = response
    const text = await response.text()
    if (status === 200) take(Object(read(text).rooms) as Answers, signal)
    else if (status === 401 && tokens !== null) tokens.reject(token)
    else if (status === 401) onLoggedOut()
    else emit('error', { stage: 'poll', error: new Error(`the server answered ${status}`) })
    return Number(headers.get('retry-after')) * 1000
  }

  function take (answers: Answers, signal: AbortSignal): void {
    for (const [room, answer] of Object.entries(answers)) {
      const { messages, error, ...rest } = Object(answer) as Answers
      if (!rooms.cursors.has(room)) continue
      if (error !== undefined) {
        rooms.cursors.delete(room)
        emit('error', { stage: 'refused', error: { type: 'error', code: error, room } })
      } else {
        for (const message of Array.isArray(messages) ? messages : []) if (!signal.aborted) rooms.message(room, Object(message) as Answers)
        if (!signal.aborted) rooms.joined(room, rest)
      }
    }
  }

  function begin (signal: AbortSignal): void {
    round(signal).catch(() => {})
  }

  /** Never rejects. */
  async function round (signal: AbortSignal): Promise<void> {
    let wait = 0
    try {
      if (!isOffline() && rooms.cursors.size > 0) wait = await ask(signal)
    } catch (error) {
      if (!signal.aborted) emit('error', { stage: 'poll', error })
    }
    if (!signal.aborted) timer = setTimeout(() => { begin(signal) }, Math.max(wait, interval * (0.5 + Math.random())))
  }

  return {
    /** There is none: if that lasts it is polled. */
    needed (): void {
      timer ??= setTimeout(() => {
        const { signal } = polling = new AbortController()
        emit('degraded', true)
        begin(signal)
      }, after)
    },
    /** There is one, or there will be none. */
    over (): void {
      clearTimeout(timer)
      timer = undefined
      if (polling === null) return
      polling.abort()
      polling = null
      emit('degraded', false)
    }
  }
}

type Answers = Readonly<Record<string, unknown>>
