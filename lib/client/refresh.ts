/** Another token over the connection that is there: in time, when the server asks, and again until it gives up. */
import { backoff, MAX_DELAY } from './backoff.js'
import type { TokenReason, Tokens } from './tokens.js'

const RETRIED: readonly unknown[] = ['unavailable', 'rate_limited']

export interface RefreshParts {
  readonly tokens: Tokens
  readonly say: (frame: object) => void
  readonly onNone: () => void
  readonly onError: (error: unknown) => void
}

export type Refresh = ReturnType<typeof createRefresh>

/** Of one connection. @param accepted the token that it came with */
export function createRefresh (accepted: string | null, { tokens, say, onNone, onError }: RefreshParts) {
  /** What the server has not answered yet. */
  let offered: string | null = null
  let isAsking = false
  let isOver = false
  let timer: ReturnType<typeof setTimeout> | undefined

  function begin (reason: TokenReason): void {
    if (isAsking) return
    clearTimeout(timer)
    isAsking = true
    tokens.fetch(reason).then(token => {
      isAsking = false
      if (isOver) return
      if (token === null) onNone()
      else offer(token)
    }, (error: unknown) => {
      isAsking = false
      if (isOver) return
      timer = setTimeout(() => { begin(reason) }, backoff(2))
      onError(error)
    })
  }

  function offer (token: string): void {
    if (token === offered) return
    offered = token
    say({ type: 'auth_update', token })
  }

  function plan (): void {
    clearTimeout(timer)
    const delay = tokens.refreshIn()
    if (delay === Infinity) return
    // A part of what is too long for a timer is waited for, and then the rest.
    timer = setTimeout(() => {
      if (delay > MAX_DELAY) plan()
      else begin('expiring')
    }, Math.min(delay, MAX_DELAY))
  }

  return {
    begin,
    offer,
    plan,
    /** The token that counts for the server. */
    accepted: () => accepted,
    updated (expiresIn: unknown): void {
      accepted = offered
      offered = null
      tokens.lasts(expiresIn)
      plan()
    },
    refused (): void {
      tokens.reject(offered ?? accepted)
      offered = null
      begin('rejected')
    },
    /** Perhaps of what was offered: it could not be asked for now whether that is good. @param atLeast in milliseconds */
    postponed (code: unknown, atLeast: unknown): void {
      const token = offered
      if (token === null || !RETRIED.includes(code)) return
      clearTimeout(timer)
      timer = setTimeout(() => {
        offered = null
        offer(token)
      }, Math.max(0, Number(atLeast) || 0) + backoff(2))
    },
    end (): void {
      isOver = true
      clearTimeout(timer)
    }
  }
}
