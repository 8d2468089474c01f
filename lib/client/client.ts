/** The life of a client: connections one after the other, each with a credential that is still good. */
import { backoff, MAX_DELAY } from './backoff.js'
import { createEmitter } from './emitter.js'
import { page, type Data, type SocketClass } from './environment.js'
import { createFallback } from './fallback.js'
import { meaningOf, read, type Meaning } from './frames.js'
import { createIncoming } from './incoming.js'
import { LOST, openLink, type Link } from './link.js'
import { createStream, type MessageStream } from './messages.js'
import { isOffline, watchPage } from './page.js'
import { createRefresh, type Refresh } from './refresh.js'
import { createRooms } from './rooms.js'
import { joinTabs } from './tabs.js'
import { createTokens } from './tokens.js'
import type { AuthSocket, AuthSocketEvents, AuthSocketOptions, ClientIdentity, ClientMessage, State } from './types.js'

/** How long a connection may take to open, and an open one to answer, in milliseconds. */
const [PATIENCE, DOUBT] = [15_000, 5000]
/** A connection that held for so long was a good one, in milliseconds. */
const STABLE = 5000
/** After so many connections in a row that never opened the token may be why: a browser does not say. */
const SUSPICIOUS = 2
/** Reasons for which a client that stops must not come back with the same token. */
const TOKEN_IS_OVER: readonly string[] = ['authentication_failed', 'refresh_failed', 'revoked']

export function createClient (options: AuthSocketOptions, Socket: SocketClass): AuthSocket {
  const { url, getToken, attach = getToken === undefined ? 'cookie' : 'protocol', signal, queue: limit = 0 } = options
  const { on, emit } = createEmitter<AuthSocketEvents>()
  const closing = new AbortController()
  const streams = new Set<MessageStream>()
  const queue: Data[] = []
  const tokens = getToken === undefined || attach === 'cookie' ? null : createTokens(getToken, attach === 'ticket')
  const rooms = createRooms(emit, deliver)
  const incoming = createIncoming({ rooms, emit, deliver, opened, onSuccess: expiresIn => { tokens?.lasts(expiresIn); refresh?.plan() }, refresh: () => refresh })
  const name = options.tabs ?? (page.document === undefined || typeof url === 'function' ? false : `hybrid-auth ${String(url)}`)
  const tabs = name === false
    ? null
    : joinTabs(name, attach !== 'ticket', closing.signal, {
      onToken (token) { if (state !== 'closed' && tokens?.adopt(token) === true) refresh?.offer(token) },
      onLogout () { logOut('tab') }
    })
  tokens?.joined(tabs)
  const fallback = options.fallback === undefined
    ? null
    : createFallback(options.fallback, { tokens, rooms, emit, onLoggedOut () { end('logged_out') } })

  let state: State = 'waiting'
  let identity: ClientIdentity | null = null
  let link: Link | null = null
  let refresh: Refresh | null = null
  /** What the connection came with. */
  let sent: string | null = null
  /** Which attempt counts: what an older one brings is late. */
  let turn = 0
  let failures = 0
  let neverOpened = 0
  let wasOpen = false
  /** Not sooner than the server says, by a clock that nobody sets. */
  let notBefore = 0
  const timers: { retry?: Timer, stable?: Timer, patience?: Timer } = {}

  function connect (): void {
    if (signal?.aborted === true) close()
    if (closing.signal.aborted || state === 'connecting' || state === 'open') return
    const mine = stop()
    become('connecting')
    // Whoever is told anything may close or connect it.
    if (mine !== turn) return
    open(mine).catch((error: unknown) => {
      if (mine !== turn) return
      emit('error', { stage: 'token', error })
      if (mine === turn) later(0)
    })
  }

  async function open (mine: number): Promise<void> {
    const token = tokens === null ? null : await tokens.forConnection()
    if (mine !== turn) return
    if (token === null && tokens !== null) {
      end('no_credential')
      return
    }
    sent = token
    // Another ticket opens another socket, and is nothing to an open one.
    if (tokens !== null && attach !== 'ticket') {
      refresh = createRefresh(token, {
        tokens,
        say,
        onNone () { end('no_credential') },
        onError (error) { emit('error', { stage: 'token', error }) }
      })
    }
    try {
      link = openLink(Socket, url, attach, token, {
        // It is open when the server has said for whom.
        onOpen () { say(attach === 'message' ? { type: 'auth', token } : { type: 'auth_status' }) },
        onMessage (data) {
          if (state === 'open') clearTimeout(timers.patience)
          incoming.receive(data)
        },
        onClose: lost
      })
      wait(PATIENCE)
    } catch (error) {
      // Neither the address nor the token becomes another by trying again.
      emit('error', { stage: 'connect', error })
      if (mine === turn) end('bad_address')
    }
  }

  function opened (user: ClientIdentity | null): void {
    const mine = turn
    clearTimeout(timers.patience)
    if (identity !== null && user?.id !== identity.id) queue.length = 0
    identity = user
    neverOpened = 0
    timers.stable = setTimeout(() => { failures = 0 }, STABLE)
    const recovered = wasOpen
    wasOpen = true
    fallback?.over()
    if (mine !== turn) return
    for (const room of rooms.cursors.keys()) say(rooms.frameFor(room))
    for (let data = queue[0]; data !== undefined && link?.send(data) === true; data = queue[0]) queue.shift()
    become('open')
    if (mine === turn) emit('open', { identity, recovered })
  }

  function deliver (message: ClientMessage): void {
    emit('message', message)
    for (const stream of streams) stream.push(message)
  }

  function lost (code: number, text: string): void {
    const isFirst = state === 'connecting'
    const meaning = (code === LOST ? incoming.bye() : null) ?? meaningOf(code, read(text))
    const token = refresh?.accepted() ?? sent
    const mine = stop()
    if (isFirst && code === LOST && ++neverOpened === SUSPICIOUS) tokens?.suspect()
    if (meaning.action === 'refresh' || TOKEN_IS_OVER.includes(meaning.reason)) tokens?.reject(token)
    if (meaning.action === 'stop') {
      if (meaning.reason === 'revoked') emit('logout', { by: 'server' })
      if (mine === turn) end(meaning.reason, meaning)
      return
    }
    emit('close', { code, reason: meaning.reason, action: meaning.action, terminal: false })
    if (mine !== turn) return
    if (meaning.reason !== 'inactive') later(meaning.retryAfterMs)
    else {
      fallback?.over()
      become('idle')
    }
  }

  /** @param atLeast in milliseconds */
  function later (atLeast: number): void {
    notBefore = performance.now() + atLeast
    retryIn(atLeast + backoff(failures++))
    become('waiting')
  }

  function retryIn (delay: number): void {
    clearTimeout(timers.retry)
    // The way back is told of.
    if (!isOffline()) timers.retry = setTimeout(connect, Math.min(MAX_DELAY, delay))
  }

  function wait (patience: number): void {
    clearTimeout(timers.patience)
    timers.patience = setTimeout(() => { lost(LOST, '') }, patience)
  }

  function logOut (by: AuthSocketEvents['logout']['by']): void {
    if (state === 'closed') return
    const mine = stop()
    tokens?.forget()
    emit('logout', { by })
    if (mine === turn) end('logged_out')
  }

  /** For good, unless somebody connects it again, who may be somebody else. */
  function end (reason: string, { code, action }: Pick<Meaning, 'code' | 'action'> = { code: 1000, action: 'stop' }): void {
    stop()
    fallback?.over()
    queue.length = 0
    tokens?.forget()
    become('closed')
    emit('close', { code, reason, action, terminal: true })
    for (const stream of streams) stream.end()
    streams.clear()
  }

  /** Whatever goes on is over. @returns the turn of what comes next */
  function stop (): number {
    for (const timer of Object.values(timers)) clearTimeout(timer)
    incoming.reset()
    refresh?.end()
    refresh = null
    link?.drop()
    link = null
    return ++turn
  }

  function become (next: State): void {
    state = next
    if (next === 'connecting' || next === 'waiting') fallback?.needed()
    emit('state', next)
  }

  function say (frame: object): void {
    link?.send(JSON.stringify(frame))
  }

  function send (data: Data): boolean {
    if (state === 'open' && link?.send(data) === true) return true
    if (state !== 'closed' && queue.length < limit) queue.push(data)
    if (state === 'idle') connect()
    return false
  }

  function close (): void {
    if (closing.signal.aborted) return
    closing.abort()
    if (state === 'closed') stop()
    else end('closed')
  }

  function inDoubt (): void {
    if (state !== 'open') return
    say({ type: 'auth_status' })
    wait(DOUBT)
  }

  signal?.addEventListener('abort', close, { once: true, signal: closing.signal })
  watchPage(closing.signal, {
    onAway () {
      if (state !== 'connecting' && state !== 'open') return
      stop()
      become('waiting')
    },
    onBack () {
      const left = notBefore - performance.now()
      if (state !== 'waiting') inDoubt()
      else if (left > 0) retryIn(left)
      else connect()
    },
    onDoubt: inDoubt
  })

  return {
    get state () { return state },
    get identity () { return identity },
    on,
    connect,
    close,
    send,
    logout () {
      tabs?.logOut()
      logOut('self')
    },
    join (room) {
      if (!rooms.cursors.has(room)) rooms.cursors.set(room, null)
      if (state === 'open') say(rooms.frameFor(room))
      else if (state === 'idle') connect()
    },
    leave (room) {
      rooms.cursors.delete(room)
      if (state === 'open') say({ type: 'leave', room })
    },
    publish (room, payload, id = crypto.randomUUID()) {
      rooms.published(id)
      return send(JSON.stringify({ type: 'message', room, payload, id }))
    },
    [Symbol.asyncIterator] () {
      const stream = createStream(one => { streams.delete(one) })
      if (state === 'closed') stream.end()
      else streams.add(stream)
      return stream
    }
  }
}

type Timer = ReturnType<typeof setTimeout>
