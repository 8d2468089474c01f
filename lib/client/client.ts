/** The life of a client: connections one after the other, each with a credential that is still good. */
import { backoff, LONGEST, MAX_DELAY } from './backoff.js'
import { createEmitter } from './emitter.js'
import { page, type Data, type SocketClass } from './environment.js'
import { createFallback } from './fallback.js'
import { frameIn, meaningOf, read, type Meaning } from './frames.js'
import { obey } from './incoming.js'
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

type Timer = ReturnType<typeof setTimeout> | undefined

export function createClient (options: AuthSocketOptions, Socket: SocketClass): AuthSocket {
  const { url, getToken, attach = getToken ? 'protocol' : 'cookie', signal, queue: limit = 0 } = options
  const [on, emit] = createEmitter<AuthSocketEvents>()
  const closing = new AbortController()
  const isTicket = attach === 'ticket'
  const tokens = getToken && attach !== 'cookie' ? createTokens(getToken, isTicket) : null
  const rooms = createRooms(deliver, room => { emit('gap', { room }) })
  const fallback = options.fallback && createFallback(options.fallback, tokens, rooms, emit, () => { logOut('server') })
  const { tabs: name = page.document && nameOf(url) } = options
  const tabs = name
    ? joinTabs(name, () => identity?.id ?? null, !isTicket, closing.signal, token => { if (state !== 'closed' && tokens?.adopt(token) && state === 'open') refresh?.offer(token) }, () => { logOut('tab') })
    : null
  if (tabs) tokens?.sharedBy(tabs)

  const streams = new Set<MessageStream>()
  const queue: Data[] = []
  let state: State = 'waiting'
  let identity: ClientIdentity | null = null
  let link: Link | null = null
  let refresh: Refresh | null = null
  /** What the connection came with. */
  let sent: string | null = null
  /** What came before it was known as whom the connection is open. */
  let early: unknown[] = []
  let bye: Meaning | null = null
  /** Which attempt counts: what an older one brings is late. */
  let turn = 0
  let failures = 0
  let neverOpened = 0
  let recovered = false
  /** Not sooner than the server says, by a clock that nobody sets. */
  let notBefore = 0
  let retryTimer: Timer
  let stableTimer: Timer
  /** Until a connection opens, and until one that is in doubt says something. */
  let patienceTimer: Timer

  function connect (): void {
    if (signal?.aborted) close()
    if (closing.signal.aborted || state === 'connecting' || state === 'open') return
    const mine = stop()
    become('connecting')
    // Whoever is told anything may close or connect it.
    if (mine !== turn) return
    open(mine).catch((error: unknown) => {
      if (mine === turn) emit('error', { stage: 'token', error })
      if (mine === turn) later(0)
    })
  }

  async function open (mine: number): Promise<void> {
    const token = sent = tokens && await tokens.forConnection()
    if (mine !== turn) return
    if (tokens && !token) {
      logOut('self', 'no_credential')
      return
    }
    // Another ticket is nothing to a socket that is open.
    if (tokens && !isTicket) refresh = createRefresh(token, tokens, say, () => { logOut('self', 'no_credential') }, error => { emit('error', { stage: 'token', error }) })
    try {
      // It is open when the server has said for whom.
      const opening = openLink(Socket, url, attach, token, () => { say(attach === 'message' ? { type: 'auth', token } : { type: 'auth_status' }) }, receive, lost)
      // Who gave the address may have closed it.
      if (mine !== turn) opening.drop()
      else {
        link = opening
        wait(PATIENCE)
      }
    } catch {
      // Neither becomes another by trying again. What was thrown may have the token in its text.
      emit('error', { stage: 'connect', error: new TypeError('no socket can be made with the address or the token') })
      if (mine === turn) end('bad_address')
    }
  }

  function opened (user: ClientIdentity | null): void {
    const mine = turn
    if (identity && user?.id !== identity.id) {
      queue.length = 0
      for (const room of rooms.cursors.keys()) rooms.cursors.set(room, null)
    }
    identity = user
    neverOpened = 0
    stableTimer = setTimeout(() => { failures = 0 }, STABLE)
    fallback?.end()
    if (mine !== turn) return
    for (const room of rooms.cursors.keys()) say(rooms.frameFor(room))
    flush()
    // Another tab may have brought it meanwhile.
    const newer = tokens?.held()
    if (newer && newer !== sent) refresh?.offer(newer)
    become('open')
    if (mine === turn) emit('open', { identity, recovered })
    recovered = true
    for (const data of early.splice(0)) if (mine === turn) receive(data)
  }

  function receive (data: unknown): void {
    const frame = frameIn(data)
    const isOpen = state === 'open'
    if (isOpen) calm()
    const isOurs = (isOpen || /^(auth_success|error|bye)$/.test(String(frame.type))) && obey(frame, rooms, refresh, emit, (user, expiresIn) => {
      calm()
      if (expiresIn !== undefined) tokens?.lasts(expiresIn)
      refresh?.plan()
      if (state === 'open') flush()
      else opened(user)
    }, () => { bye = meaningOf(LOST, frame) })
    if (!isOurs && isOpen) deliver({ data, room: null })
    else if (!isOurs) early.push(data)
  }

  function deliver (message: ClientMessage): void {
    emit('message', message)
    for (const stream of streams) stream.push(message)
  }

  /** What waits goes before what is said next. */
  function flush (): void {
    while (queue[0] !== undefined && link?.send(queue[0])) queue.shift()
  }

  function lost (code: number, text: string, cause = 'no connection, or no answer'): void {
    const meaning = code === LOST && bye ? bye : meaningOf(code, read(text))
    const { reason, action } = meaning
    const token = refresh ? refresh.accepted() : sent
    const hasFailed = state !== 'open' && code === LOST
    // Who stops must not come back with a token that is over.
    const isOver = /^(authentication_f|refresh_f|revoked)/.test(reason)
    if (hasFailed && ++neverOpened === SUSPICIOUS) tokens?.suspect()
    if (action === 'refresh' || isOver) tokens?.reject(token)
    const mine = stop()
    if (action === 'stop') {
      if (isOver) logOut('server', reason, code)
      else end(reason, code)
      return
    }
    if (hasFailed) emit('error', { stage: 'connect', error: new Error(cause) })
    if (mine === turn) emit('close', { code, reason, action, terminal: false })
    if (mine !== turn) return
    if (reason !== 'inactive') later(meaning.retryAfterMs)
    else {
      fallback?.end()
      if (mine === turn) become('idle')
    }
  }

  /** @param atLeast in milliseconds */
  function later (atLeast: number): void {
    notBefore = performance.now() + atLeast
    retryIn(atLeast + backoff(failures++))
    become('waiting')
  }

  function retryIn (delay: number): void {
    clearTimeout(retryTimer)
    // The way back is told of, where the browser knows.
    retryTimer = setTimeout(connect, Math.min(MAX_DELAY, isOffline() ? Math.max(delay, LONGEST) : delay))
  }

  function wait (patience: number): void {
    patienceTimer ??= setTimeout(() => { lost(LOST, '') }, patience)
  }

  function calm (): void {
    clearTimeout(patienceTimer)
    patienceTimer = undefined
  }

  function logOut (by: AuthSocketEvents['logout']['by'], reason = 'logged_out', code?: number): void {
    if (state === 'closed') return
    const mine = stop()
    // Of who was never there nothing is forgotten: it is as it was asked for.
    if (identity) rooms.cursors.clear()
    forget()
    if (mine === turn) emit('logout', { by })
    if (mine === turn) end(reason, code)
  }

  /** Whoever connects next may be somebody else. */
  function forget (): void {
    queue.length = 0
    for (const room of rooms.cursors.keys()) rooms.cursors.set(room, null)
    identity = null
    recovered = false
    tokens?.forget()
    fallback?.end()
  }

  /** For good, unless somebody connects it again. */
  function end (reason: string, code = 1000): void {
    const mine = stop()
    forget()
    // Who was told of that may have ended it already.
    if (mine !== turn) return
    for (const stream of streams) stream.end()
    streams.clear()
    become('closed')
    emit('close', { code, reason, action: 'stop', terminal: true })
  }

  /** Whatever goes on is over. @returns the turn of what comes next */
  function stop (): number {
    for (const timer of [retryTimer, stableTimer]) clearTimeout(timer)
    calm()
    early = []
    if (state === 'open' || state === 'connecting') state = 'waiting'
    refresh?.end()
    link?.drop()
    bye = refresh = link = null
    return ++turn
  }

  function become (next: State): void {
    state = next
    if (next === 'connecting' || next === 'waiting') fallback?.begin()
    emit('state', next)
  }

  function say (frame: object): void {
    link?.send(JSON.stringify(frame))
  }

  function send (data: Data): boolean {
    // A browser would send anything, as a text of it.
    if (typeof data !== 'string' && !((Object(data) as ArrayBuffer).byteLength >= 0)) throw new TypeError('send() takes text or bytes: JSON.stringify() makes text of an object')
    // What is said behind something that waits waits as well; so does what can, while it is not sure that anybody is there.
    if (state === 'open' && !queue.length && !(limit && patienceTimer) && link?.send(data)) return true
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

  signal?.addEventListener('abort', close, { signal: closing.signal })
  watchPage(closing.signal, () => {
    if (state !== 'connecting' && state !== 'open') return
    stop()
    become('waiting')
  }, () => {
    const left = notBefore - performance.now()
    if (state !== 'waiting') inDoubt()
    else if (left > 0) retryIn(left)
    else connect()
  }, inDoubt)

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
    publish (room, payload, id = crypto.getRandomValues(new Uint32Array(4)).join('-')) {
      const text: unknown = JSON.stringify(payload)
      if (!text) throw new TypeError('the payload is nothing that JSON holds')
      rooms.published(room, id)
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

/** What tabs of one server have in common. undefined: nothing is known of the address yet. */
function nameOf (url: AuthSocketOptions['url']): string | undefined {
  if (typeof url === 'function') return
  try {
    const { host, pathname } = new URL(url, page.location?.href)
    return `hybrid-auth ${host}${pathname}`
  } catch {
    // The first connection says so.
  }
}
