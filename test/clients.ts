/** Clients that keep what they were told, a WebSocket that a test plays the other end of, and time that passes when it says so. */
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import { createAuthSocket, type AuthSocket, type AuthSocketEvents, type AuthSocketOptions, type Data, type SocketClass, type SocketLike, type State } from '../lib/client/index.js'
import type { SocketEvent } from '../lib/client/environment.js'
import hybridAuth, { type HybridAuthOptions } from '../lib/index.js'
import { watch as watchLog } from './canary.js'
import { JWT, portOf } from './helpers.js'
import { eventually } from './live.js'

type Names = keyof AuthSocketEvents

export interface Watched {
  client: AuthSocket
  states: State[]
  opens: Array<AuthSocketEvents['open']>
  messages: Array<AuthSocketEvents['message']>
  permissions: Array<AuthSocketEvents['permissions']>
  logouts: Array<AuthSocketEvents['logout']>
  gaps: Array<AuthSocketEvents['gap']>
  degraded: boolean[]
  lefts: Array<AuthSocketEvents['left']>
  closes: Array<AuthSocketEvents['close']>
  errors: Array<AuthSocketEvents['error']>
  /** Names of events in their order, without those of messages. */
  order: string[]
  /** Text and bytes of the application, as text. */
  texts: () => string[]
  until: (what: string, holds: () => boolean, ms?: number) => Promise<void>
  isOpen: () => Promise<void>
}

/** For a class whose constructor answers a socket of another one. */
const injectable = (given: unknown): SocketClass => given as SocketClass

/** A client with ws, which is closed with the test. */
export function watched (t: Test, options: AuthSocketOptions): Watched {
  const client = createAuthSocket({ WebSocket, ...options })
  t.teardown(() => { client.close() })
  return watching(client)
}

export function watching (client: AuthSocket): Watched {
  const order: string[] = []
  const keep = <Name extends Names>(name: Name): Array<AuthSocketEvents[Name]> => {
    const kept: Array<AuthSocketEvents[Name]> = []
    client.on(name, event => {
      kept.push(event)
      if (name !== 'message') order.push(typeof event === 'string' ? event : name)
    })
    return kept
  }
  const seen = {
    states: keep('state'), opens: keep('open'), messages: keep('message'), permissions: keep('permissions'), logouts: keep('logout'), gaps: keep('gap'), degraded: keep('degraded'), lefts: keep('left'), closes: keep('close'), errors: keep('error')
  }
  const until: Watched['until'] = (what, holds, ms) => eventually(`${what} (${client.state}; ${JSON.stringify(seen.closes)})`, holds, ms)
  return {
    client,
    ...seen,
    order,
    texts: () => seen.messages.map(textOf),
    until,
    isOpen: () => until('it is open', () => client.state === 'open')
  }
}

function textOf (message: AuthSocketEvents['message']): string {
  if (!('data' in message)) return JSON.stringify(message.payload)
  const { data } = message
  return data instanceof ArrayBuffer ? Buffer.from(data).toString() : String(data)
}

/** ws with headers, as a browser sends them by itself. */
export function withHeaders (headers: Record<string, string>): SocketClass {
  return injectable(class {
    constructor (url: string, protocols: string[]) {
      return new WebSocket(url, protocols, { headers })
    }
  })
}

export interface Made { url: string, protocols: string[], socket: WebSocket, reasons: string[] }

/** ws, and what was made with what, and how it was closed. */
export function countedSockets (): { WebSocket: SocketClass, made: Made[] } {
  const made: Made[] = []
  return {
    made,
    WebSocket: injectable(class {
      constructor (url: string, protocols: string[]) {
        const socket = new WebSocket(url, protocols)
        const reasons: string[] = []
        socket.on('close', (_code, reason) => { reasons.push(String(reason)) })
        made.push({ url, protocols, socket, reasons })
        return socket
      }
    })
  }
}

/** A server on a port that it can be started on again. */
export async function serverAt (t: Test, { port = 0, auth = {}, declare }: { port?: number, auth?: Partial<HybridAuthOptions>, declare: (app: FastifyInstance) => void }): Promise<{ app: FastifyInstance, port: number }> {
  const app = Fastify(watchLog(t))
  t.teardown(() => app.close())
  await app.register(websocket)
  await app.register(hybridAuth, { jwt: JWT, failures: false, ...auth })
  declare(app)
  await app.listen({ port, host: '127.0.0.1' })
  return { app, port: portOf(app) }
}

const STATUS = '{"type":"auth_status"}'

/** Of a token as tests make it. */
function subjectOf (token: string): string {
  const [, claims = ''] = token.split('.')
  return /"sub":"([^"]*)"/.exec(Buffer.from(claims, 'base64url').toString())?.[1] ?? 'somebody'
}

type Listener = (event: SocketEvent) => void
type Parts = Omit<SocketEvent, 'type'>

/** A socket of which the test is the network and the server. */
export class FakeSocket implements SocketLike {
  binaryType = 'blob'
  readyState = 0
  /** What the client has closed it with. */
  closedWith: number | undefined
  /** What the client wants of the server, but for whom it is open. */
  readonly sent: Data[] = []
  /** It says at once for whom it is open, where it is asked. */
  greets = true
  /** How often it was asked and did not say. */
  asked = 0
  readonly #listeners: Array<{ type: string, listener: Listener }> = []

  constructor (readonly url: string, readonly protocols: string[]) {}

  addEventListener (type: string, listener: Listener): void {
    this.#listeners.push({ type, listener })
  }

  send (data: Data): void {
    if (data !== STATUS) this.sent.push(data)
    else if (this.greets) this.say({ type: 'auth_success', user: { id: subjectOf(this.token) } })
    else this.asked++
  }

  close (code?: number): void {
    this.closedWith = code
    this.readyState = 2
  }

  /** The token that was offered as a subprotocol. */
  get token (): string {
    return this.protocols[1]?.slice('bearer.'.length) ?? ''
  }

  /** What was sent as JSON. */
  get frames (): unknown[] {
    return this.sent.map(data => typeof data === 'string' ? JSON.parse(data) as unknown : data)
  }

  open (): this {
    this.readyState = 1
    this.#emit('open', {})
    return this
  }

  say (data: unknown): void {
    this.#emit('message', { data: typeof data === 'object' && !(data instanceof ArrayBuffer) ? JSON.stringify(data) : data })
  }

  end (event: Parts = {}): void {
    this.readyState = 3
    this.#emit('error', {})
    this.#emit('close', event)
  }

  #emit (type: string, event: Parts): void {
    for (const one of this.#listeners) if (one.type === type) one.listener({ type, ...event })
  }
}

export interface FakeSockets {
  WebSocket: new (url: string, protocols: string[]) => FakeSocket
  all: FakeSocket[]
  last: () => FakeSocket
}

export function fakeSockets (): FakeSockets {
  const all: FakeSocket[] = []
  return {
    all,
    last () {
      const socket = all.at(-1)
      if (socket === undefined) throw new Error('no socket was made')
      return socket
    },
    WebSocket: class extends FakeSocket {
      constructor (url: string, protocols: string[]) {
        super(url, protocols)
        all.push(this)
      }
    }
  }
}

/** Whatever waits for a promise has gone on. */
export const settle = (): Promise<void> => new Promise(resolve => { setImmediate(resolve) })

export interface FakeTime {
  /** Runs what is due until then, in its order. */
  pass: (ms: number) => Promise<void>
  /** What is set, in milliseconds from now. */
  pending: () => number[]
  random: (value: number) => void
}

const LONGEST = 2 ** 31 - 1

/** Timers, `performance.now` and `Math.random` of the test. As in Node, a time that no timer takes is 1 ms. */
export function fakeTime (t: Test, random = 0.5): FakeTime {
  const timers = new Map<number, { at: number, run: () => void }>()
  let now = 1000
  let made = 0
  let chance = random
  const set = (run: (...given: unknown[]) => void, ms = 0, ...given: unknown[]) => {
    timers.set(++made, { at: now + (ms >= 1 && ms <= LONGEST ? ms : 1), run () { run(...given) } })
    return made
  }
  const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout }
  const clear = (timer: unknown) => {
    if (typeof timer === 'number') timers.delete(timer)
    else real.clearTimeout(timer as NodeJS.Timeout | undefined)
  }
  Object.assign(globalThis, { setTimeout: set, clearTimeout: clear })
  t.teardown(() => { Object.assign(globalThis, real) })
  t.intercept(performance, 'now', { value: () => now, configurable: true })
  t.intercept(Math, 'random', { value: () => chance, configurable: true })
  return {
    async pass (ms) {
      const end = now + ms
      for (;;) {
        await settle()
        const [next] = [...timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)
        if (next === undefined) break
        timers.delete(next[0])
        now = next[1].at
        next[1].run()
      }
      now = end
    },
    pending: () => [...timers.values()].map(({ at }) => at - now).sort((a, b) => a - b),
    random (value) { chance = value }
  }
}

/** Delays of the timers that are set from now on, in milliseconds. */
export function timersSet (t: Test): number[] {
  const delays: number[] = []
  const real = globalThis.setTimeout
  const spy: typeof real = Object.assign((...args: Parameters<typeof real>) => {
    delays.push(args[1] ?? 0)
    return real(...args)
  }, { __promisify__: real.__promisify__ })
  globalThis.setTimeout = spy
  t.teardown(() => { globalThis.setTimeout = real })
  return delays
}

let tokensMade = 0

/** A token as it looks from outside, that lasts so many seconds. */
export function lookalike (seconds: number, claims: object = {}): string {
  return `e30.${Buffer.from(JSON.stringify({ sub: 'alice', iat: 5000, exp: 5000 + seconds, n: ++tokensMade, ...claims })).toString('base64url')}.c2ln`
}

/** Members of `globalThis` for the test, in place of those that are there. */
export function setGlobals (t: Test, members: Record<string, unknown>): void {
  for (const [name, value] of Object.entries(members)) {
    const before = Object.getOwnPropertyDescriptor(globalThis, name)
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
    t.teardown(() => {
      if (before === undefined) Reflect.deleteProperty(globalThis, name)
      else Object.defineProperty(globalThis, name, before)
    })
  }
}

export interface Page {
  navigator: { onLine?: boolean, locks?: FakeLocks }
  document: { hidden: boolean }
  fire: (type: string, members?: { persisted?: boolean }) => void
  /** The intervals that are set, each of which is over at once. */
  tick: () => void
  intervals: () => number
}

/** What a page has and Node has not. */
export function inPage (t: Test): Page {
  const target = new EventTarget()
  const [navigator, document] = [{ onLine: true }, { hidden: false }]
  const intervals = new Map<number, () => void>()
  let made = 0
  setGlobals(t, {
    navigator,
    document,
    addEventListener: target.addEventListener.bind(target),
    setInterval: (run: () => void) => {
      intervals.set(++made, run)
      return made
    },
    clearInterval: (interval: number) => { intervals.delete(interval) }
  })
  return {
    navigator,
    document,
    fire (type, members = {}) { target.dispatchEvent(Object.assign(new Event(type), members)) },
    tick () { for (const run of [...intervals.values()]) run() },
    intervals: () => intervals.size
  }
}

/** As `navigator.locks`: one at a time has the name, in the order in which they asked for it. */
export class FakeLocks {
  waiting = 0
  readonly #last = new Map<string, Promise<unknown>>()

  async request (name: string, { signal }: { signal: AbortSignal }, work: () => Promise<void>): Promise<void> {
    const before = this.#last.get(name)
    let release: () => void = () => {}
    const over = new Promise<void>(resolve => { release = resolve })
    this.#last.set(name, Promise.all([before, over]))
    this.waiting++
    try {
      await new Promise((resolve, reject) => {
        const abort = () => { reject(new DOMException('the request was aborted', 'AbortError')) }
        if (signal.aborted) abort()
        signal.addEventListener('abort', abort)
        Promise.resolve(before).then(resolve, reject)
      })
    } catch (error) {
      release()
      throw error
    } finally {
      this.waiting--
    }
    try {
      await work()
    } finally {
      release()
    }
  }
}

/** Resolves when it holds, asked every turn of the loop, also where time is the test's. */
export async function soon (what: string, holds: () => boolean): Promise<void> {
  const started = process.hrtime.bigint()
  while (!holds()) {
    if (process.hrtime.bigint() - started > 5_000_000_000n) throw new Error(`never: ${what}`)
    await settle()
  }
}

export interface Sibling {
  heard: unknown[]
  say: (message: unknown) => void
  /** All that was said by anybody so far has come. */
  settled: () => Promise<void>
}

/** What another tab of the page hears and says. */
export function siblingOf (t: Test, name: string): Sibling {
  const [channel, other] = [new BroadcastChannel(name), new BroadcastChannel(name)]
  t.teardown(() => {
    channel.close()
    other.close()
  })
  const heard: unknown[] = []
  let marks = 0
  let seen = 0
  channel.onmessage = (event: unknown) => {
    const { data } = event as { data: unknown }
    if (typeof data === 'object' && data !== null && 'mark' in data) seen++
    else heard.push(data)
  }
  return {
    heard,
    say (message) { channel.postMessage(message) },
    async settled () {
      const mark = ++marks
      other.postMessage({ mark })
      await soon('the mark', () => seen >= mark)
      // What follows from it has gone on too.
      for (let i = 0; i < 10; i++) await settle()
    }
  }
}

export interface Poll { authorization: string | undefined, rooms: Record<string, string | null> }

export interface PollServer {
  url: string
  /** What was asked, in order. */
  polls: Poll[]
  /** Puts it into the history of a room. */
  keep: (room: string, payload: unknown, id?: string) => void
  /** Answers the next polls in place of the history, in their order. */
  instead: Array<(reply: FastifyReply) => unknown>
}

/** A plain route that answers polls as the server's helper does: of each room what follows its cursor. */
export async function pollServer (t: Test, keeps = 100): Promise<PollServer> {
  const histories = new Map<string, Array<{ payload: unknown, cursor: string, id?: string }>>()
  const polls: Poll[] = []
  const instead: PollServer['instead'] = []
  let last = 0
  const cursorOf = (n: number) => `c${n}`
  const answerOf = (room: string, cursor: string | null) => {
    const history = (histories.get(room) ?? []).slice(-keeps)
    const now = cursorOf(last)
    if (cursor === null) return { messages: [], cursor: now }
    const from = Number(cursor.slice(1))
    const messages = history.filter(message => Number(message.cursor.slice(1)) > from)
    const isGap = (histories.get(room) ?? []).filter(message => Number(message.cursor.slice(1)) > from).length > messages.length
    return { messages, cursor: now, ...(isGap && { gap: true }) }
  }
  const app = Fastify(watchLog(t, { forceCloseConnections: true }))
  t.teardown(() => app.close())
  app.post<{ Body: { rooms: Record<string, string | null> } }>('/poll', async ({ headers, body }, reply) => {
    polls.push({ authorization: headers.authorization, rooms: body.rooms })
    const other = instead.shift()
    if (other !== undefined) return other(reply)
    return { rooms: Object.fromEntries(Object.entries(body.rooms).map(([room, cursor]) => [room, answerOf(room, cursor)])) }
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  return {
    url: `http://127.0.0.1:${portOf(app)}/poll`,
    polls,
    instead,
    keep (room, payload, id) {
      const history = histories.get(room) ?? []
      history.push({ payload, cursor: cursorOf(++last), ...(id !== undefined && { id }) })
      histories.set(room, history)
    }
  }
}
