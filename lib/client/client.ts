/** The life of a client: connections one after the other, each with a credential that is still good. */
import { backoff, MAX_DELAY } from './backoff.js'
import { ClientConnection, LOST } from './connection.js'
import { Emitter } from './emitter.js'
import type { Data, SocketClass } from './environment.js'
import { meaningOf, serverFrame, type Meaning } from './frames.js'
import { MessageStream } from './messages.js'
import { claimsOf, Tokens, type TokenReason } from './tokens.js'
import type { ServerFrame } from '../protocol.js'
import type { Attach, AuthSocket, AuthSocketEvents, AuthSocketOptions, ClientIdentity, ClientMessage, State } from './types.js'

/** A connection that held for so long was a good one, in milliseconds. */
const STABLE = 5000
/** After so many connections in a row that never opened the token may be why: a browser does not say. */
const SUSPICIOUS = 2
/** Reasons for which a client that stops must not come back with the same token. */
const TOKEN_IS_OVER: ReadonlySet<string> = new Set(['authentication_failed', 'refresh_failed', 'revoked'])
const RETRIED: ReadonlySet<string> = new Set(['unavailable', 'rate_limited'])
const NO_CREDENTIAL: Meaning = { code: 1000, reason: 'no_credential', action: 'stop', retryAfterMs: 0 }
const BAD_ADDRESS: Meaning = { ...NO_CREDENTIAL, reason: 'bad_address' }
const CLOSED: Meaning = { ...NO_CREDENTIAL, reason: 'closed' }

export class Client implements AuthSocket {
  state: State = 'waiting'
  identity: ClientIdentity | null = null
  readonly #options: AuthSocketOptions
  readonly #Socket: SocketClass
  readonly #attach: Attach
  readonly #tokens: Tokens | null
  readonly #emitter = new Emitter<AuthSocketEvents>()
  readonly #streams = new Set<MessageStream>()
  readonly #closing = new AbortController()
  readonly #rooms = new Set<string>()
  readonly #queue: Data[] = []
  #connection: ClientConnection | null = null
  /** Which attempt counts: what an older one brings is late. */
  #turn = 0
  #failures = 0
  #neverOpened = 0
  #wasOpen = false
  #isRefreshing = false
  /** The token that the connection came with, or the last that the server has taken since. */
  #accepted: string | null = null
  /** What the server has not answered yet. */
  #offered: string | null = null
  #bye: Meaning | null = null
  #retryTimer: ReturnType<typeof setTimeout> | undefined
  #refreshTimer: ReturnType<typeof setTimeout> | undefined
  #stableTimer: ReturnType<typeof setTimeout> | undefined

  constructor (options: AuthSocketOptions, Socket: SocketClass) {
    const { getToken, attach = getToken === undefined ? 'cookie' : 'protocol', signal } = options
    this.#options = options
    this.#Socket = Socket
    this.#attach = attach
    this.#tokens = getToken === undefined || attach === 'cookie' ? null : new Tokens(getToken, this.#closing.signal, attach === 'ticket')
    signal?.addEventListener('abort', () => { this.close() }, { once: true, signal: this.#closing.signal })
  }

  on<Name extends keyof AuthSocketEvents> (name: Name, listener: (event: AuthSocketEvents[Name]) => void): () => void {
    return this.#emitter.on(name, listener)
  }

  [Symbol.asyncIterator] (): MessageStream {
    const stream = new MessageStream(() => { this.#streams.delete(stream) })
    if (this.state === 'closed') stream.end()
    else this.#streams.add(stream)
    return stream
  }

  connect (): void {
    if (this.#options.signal?.aborted === true) this.close()
    if (this.#closing.signal.aborted || this.state === 'connecting' || this.state === 'open') return
    const turn = this.#stop()
    this.#become('connecting')
    // Whoever is told anything may close or connect it.
    if (turn !== this.#turn) return
    this.#open(turn).catch((error: unknown) => {
      if (turn !== this.#turn) return
      this.#emitter.emit('error', { stage: 'token', error })
      if (turn === this.#turn) this.#later(0)
    })
  }

  close (): void {
    if (this.#closing.signal.aborted) return
    this.#closing.abort()
    const { state } = this
    this.#stop()
    if (state !== 'closed') this.#end(CLOSED)
  }

  send (data: Data): boolean {
    if (this.state === 'open' && this.#connection?.send(data) === true) return true
    if (this.state !== 'closed' && this.#queue.length < (this.#options.queue ?? 0)) this.#queue.push(data)
    if (this.state === 'idle') this.connect()
    return false
  }

  join (room: string): void {
    this.#rooms.add(room)
    if (this.state === 'open') this.#say({ type: 'join', room })
    else if (this.state === 'idle') this.connect()
  }

  leave (room: string): void {
    this.#rooms.delete(room)
    if (this.state === 'open') this.#say({ type: 'leave', room })
  }

  publish (room: string, payload: unknown, id: string | number = crypto.randomUUID()): boolean {
    return this.send(JSON.stringify({ type: 'message', room, payload, id }))
  }

  async #open (turn: number): Promise<void> {
    const token = this.#tokens === null ? null : await this.#tokens.forConnection()
    if (turn !== this.#turn) return
    if (token === null && this.#tokens !== null) {
      this.#end(NO_CREDENTIAL)
      return
    }
    this.#accepted = token
    try {
      this.#connection = new ClientConnection(this.#Socket, this.#options, this.#attach, token, {
        onOpen: () => {
          if (this.#attach === 'message') this.#say({ type: 'auth', token })
          else this.#opened(identityIn(token))
        },
        onMessage: data => { this.#receive(data) },
        onClose: (code, reason) => { this.#lost(code, reason) }
      })
    } catch (error) {
      // Neither the address nor the token becomes another by trying again.
      this.#emitter.emit('error', { stage: 'connect', error })
      if (turn === this.#turn) this.#end(BAD_ADDRESS)
    }
  }

  #opened (identity: ClientIdentity | null): void {
    this.#connection?.settle()
    if (this.identity !== null && identity?.id !== this.identity.id) this.#queue.length = 0
    this.identity = identity
    this.#neverOpened = 0
    this.#stableTimer = setTimeout(() => { this.#failures = 0 }, STABLE)
    const recovered = this.#wasOpen
    this.#wasOpen = true
    for (const room of this.#rooms) this.#say({ type: 'join', room })
    for (let data = this.#queue[0]; data !== undefined && this.#connection?.send(data) === true; data = this.#queue[0]) this.#queue.shift()
    this.#planRefresh()
    const turn = this.#turn
    this.#become('open')
    if (turn === this.#turn) this.#emitter.emit('open', { identity, recovered })
  }

  #receive (data: unknown): void {
    const frame = serverFrame(data)
    if (frame === null) this.#deliver({ data, room: null })
    else this.#obey(frame)
  }

  #obey (frame: ServerFrame): void {
    switch (frame.type) {
      case 'auth_success':
        this.#tokens?.lasts(frame.expiresIn)
        if (this.state === 'connecting') this.#opened({ id: frame.user.id })
        break
      case 'auth_updated':
        this.#accepted = this.#offered
        this.#offered = null
        this.#tokens?.lasts(frame.expiresIn)
        this.#planRefresh()
        break
      case 'token_refresh_required': this.#refresh('expiring'); break
      case 'permission_update': this.#emitter.emit('permissions', frame); break
      case 'message': this.#deliver({ payload: frame.payload, room: frame.room }); break
      case 'left': if (frame.reason !== undefined) this.#rooms.delete(frame.room); break
      case 'joined': break
      case 'bye': this.#bye = { ...meaningOf(LOST, JSON.stringify(frame)) }; break
      case 'error':
        if (frame.code === 'refresh_failed') {
          this.#tokens?.reject(this.#offered ?? this.#accepted)
          this.#refresh('rejected')
          break
        }
        // It could not be asked for now whether the token is good.
        if (this.#offered !== null && frame.room === undefined && RETRIED.has(frame.code)) this.#planOffer(frame.retryAfterMs ?? 0)
        this.#emitter.emit('error', { stage: 'refused', error: frame })
    }
  }

  #deliver (message: ClientMessage): void {
    this.#emitter.emit('message', message)
    for (const stream of this.#streams) stream.push(message)
  }

  /** Another token over the connection that is there. Tried again until the server gives up on it. */
  #refresh (reason: TokenReason): void {
    if (this.#tokens === null || this.#attach === 'ticket' || this.#isRefreshing || this.state !== 'open') return
    const turn = this.#turn
    clearTimeout(this.#refreshTimer)
    this.#isRefreshing = true
    this.#tokens.fetch(reason).then(token => {
      if (turn !== this.#turn) return
      this.#isRefreshing = false
      if (token === null) {
        this.#stop()
        this.#end(NO_CREDENTIAL)
      } else this.#offer(token)
    }, (error: unknown) => {
      if (turn !== this.#turn) return
      this.#isRefreshing = false
      this.#refreshTimer = setTimeout(() => { this.#refresh(reason) }, backoff(2))
      this.#emitter.emit('error', { stage: 'token', error })
    })
  }

  #offer (token: string): void {
    this.#offered = token
    this.#say({ type: 'auth_update', token })
  }

  #planOffer (atLeast: number): void {
    clearTimeout(this.#refreshTimer)
    this.#refreshTimer = setTimeout(() => { if (this.#offered !== null) this.#offer(this.#offered) }, atLeast + backoff(2))
  }

  #planRefresh (): void {
    clearTimeout(this.#refreshTimer)
    const delay = this.#tokens?.refreshIn ?? Infinity
    if (delay === Infinity) return
    // A part of what is too long for a timer is waited for, and then the rest.
    this.#refreshTimer = setTimeout(() => {
      if (delay > MAX_DELAY) this.#planRefresh()
      else this.#refresh('expiring')
    }, Math.min(delay, MAX_DELAY))
  }

  #lost (code: number, text: string): void {
    const isFirst = this.state === 'connecting'
    const meaning = code === LOST && this.#bye !== null ? this.#bye : meaningOf(code, text)
    this.#stop()
    if (isFirst && code === LOST && ++this.#neverOpened === SUSPICIOUS) this.#tokens?.suspect()
    if (meaning.action === 'refresh' || TOKEN_IS_OVER.has(meaning.reason)) this.#tokens?.reject(this.#accepted)
    if (meaning.action === 'stop') {
      // Who connects again may be somebody else.
      this.#tokens?.forget()
      this.#end(meaning)
      return
    }
    const turn = this.#turn
    this.#emitter.emit('close', { code, reason: meaning.reason, action: meaning.action, terminal: false })
    if (turn !== this.#turn) return
    if (meaning.reason === 'inactive') this.#become('idle')
    else this.#later(meaning.retryAfterMs)
  }

  /** @param atLeast in milliseconds */
  #later (atLeast: number): void {
    const delay = Math.min(MAX_DELAY, atLeast + backoff(this.#failures++))
    this.#retryTimer = setTimeout(() => { this.connect() }, delay)
    this.#become('waiting')
  }

  #end ({ code, reason, action }: Meaning): void {
    this.#queue.length = 0
    this.#become('closed')
    this.#emitter.emit('close', { code, reason, action, terminal: true })
    for (const stream of this.#streams) stream.end()
    this.#streams.clear()
  }

  /** Whatever goes on is over. @returns the turn of what comes next */
  #stop (): number {
    clearTimeout(this.#retryTimer)
    clearTimeout(this.#refreshTimer)
    clearTimeout(this.#stableTimer)
    this.#isRefreshing = false
    this.#offered = null
    this.#bye = null
    this.#connection?.drop()
    this.#connection = null
    return ++this.#turn
  }

  #become (state: State): void {
    this.state = state
    this.#emitter.emit('state', state)
  }

  #say (frame: object): void {
    this.#connection?.send(JSON.stringify(frame))
  }
}

function identityIn (token: string | null): ClientIdentity | null {
  const sub = token === null ? undefined : claimsOf(token).sub
  return typeof sub === 'string' ? { id: sub } : null
}
