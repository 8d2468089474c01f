/** Another token over the connection that is there: in time, when the server asks, and again until it gives up. */
import { backoff, MAX_DELAY } from './backoff.js'
import type { TokenReason, Tokens } from './tokens.js'

export type Refresh = ReturnType<typeof createRefresh>

/** Of one connection. @param accepted the token that it came with. @param onNone there is none any more */
export function createRefresh (accepted: string | null, tokens: Tokens, say: (frame: object) => void, onNone: () => void, onError: (error: unknown) => void) {
  /** What the server has not answered yet, and what is offered when it has. */
  let offered: string | null = null
  let next: string | null = null
  let isAsking = false
  let isOver = false
  let failures = 0
  let timer: ReturnType<typeof setTimeout> | undefined

  function later (delay: number, work: () => void): void {
    clearTimeout(timer)
    if (!isOver) timer = setTimeout(work, delay)
  }

  function begin (reason: TokenReason): void {
    // What is offered is answered, or offered again.
    if (isAsking || isOver || offered) return
    clearTimeout(timer)
    isAsking = true
    const before = accepted
    tokens.fetch(reason).then(token => {
      isAsking = false
      failures = 0
      if (isOver) return
      if (!token) onNone()
      // Another tab may have brought it, and the server have taken it, meanwhile.
      else if (token !== accepted || accepted === before) offer(token)
    }, (error: unknown) => {
      isAsking = false
      later(backoff(2 + failures++), () => { begin(reason) })
      if (!isOver) onError(error)
    })
  }

  /** One at a time: what is answered is what was offered. */
  function offer (token: string): void {
    if (offered) next = token
    else say({ type: 'auth_update', token: offered = token })
  }

  /** @returns whether there is another one, which is offered */
  function answered (): boolean {
    const token = next
    clearTimeout(timer)
    offered = next = null
    if (!token || token === accepted) return false
    offer(token)
    return true
  }

  function plan (): void {
    if (offered) return
    const delay = tokens.refreshIn()
    // A part of what is too long for a timer is waited for, and then the rest.
    if (delay < Infinity) later(Math.min(delay, MAX_DELAY), () => { if (delay > MAX_DELAY) plan(); else begin('expiring') })
    else clearTimeout(timer)
  }

  return {
    begin,
    offer,
    plan,
    /** The token that counts for the server. */
    accepted: () => accepted,
    /** @returns whether anything was offered: else nobody has updated or refused anything */
    updated (expiresIn: unknown): boolean {
      if (!offered) return false
      accepted = offered
      tokens.lasts(expiresIn)
      if (!answered()) plan()
      return true
    },
    refused (): boolean {
      if (!offered) return false
      tokens.reject(offered)
      if (next === offered) next = null
      if (!answered()) begin('rejected')
      return true
    },
    /** Perhaps of what was offered: it could not be asked for now whether that is good. @param atLeast in milliseconds */
    postponed (atLeast: unknown): void {
      if (!offered) return
      next ??= offered
      later(Math.min(MAX_DELAY, (typeof atLeast === 'number' ? atLeast : 0) + backoff(2)), answered)
    },
    end (): void {
      isOver = true
      clearTimeout(timer)
    }
  }
}
