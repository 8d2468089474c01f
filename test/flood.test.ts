/**
 * A process is flooded from 58 addresses with credentials that look like guesses, and with sockets that never say who they
 * are, while a hundred good clients echo. Who is good notices nothing, the metrics tell what is going on, and nothing stays.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { WebSocket, type ClientOptions } from 'ws'
import type { HybridAuthOptions } from '../lib/index.js'
import { build, goodClaims, goodToken, handshake, inSeconds, SECRET, SESSION_SECRET, signHs256 } from './helpers.js'
import { dial, eventually } from './live.js'
import { killed } from './redis.js'
import { cookieFor } from './stores.js'
import { authFrame, frame } from './wire.js'

const BAD = 20_000
const SLOW = 2000
const GOOD = 100
/** Handshakes under way at once. */
const AT_ONCE = 64
/** As the option `failures` has it where nothing is said. */
const FAILURES = 10

/** Only Linux has all of 127.0.0.0/8 on its loopback. */
const needsAddresses = { skip: process.platform === 'linux' ? false as const : 'needs many addresses on the loopback' }
const HOME = '127.0.0.2'
const FLOODING = Array.from({ length: 58 }, (_, i) => `127.0.0.${3 + i}`)
/** Warms the process up, so that what is compiled, cached or made once is no part of what is measured. */
const WARMING = Array.from({ length: 58 }, (_, i) => `127.0.1.${3 + i}`)

/** `failures` is on as it is by default. The others are as tight as the good can bear. */
const AUTH: Partial<HybridAuthOptions> = {
  limits: {
    // One more than are slow, for a newcomer.
    pending: SLOW + GOOD, pendingPerIp: Math.ceil(SLOW / FLOODING.length) + 1,
    connections: { perIp: 2 * GOOD, perUser: 2 },
    connects: { perIp: 10 * GOOD, perUser: 10 }
  }
}

/**
 * What may be left of the flood: 150 bytes for each of its handshakes, where one that is not let go of takes ten thousand. It
 * is for the failures of 58 addresses and of who was claimed meanwhile, which count for five minutes (about 0.3 MB), and for
 * what V8 compiles after it was warmed up (1 to 1.5 MB). A second flood of the same process adds 0.2 MB, or takes them away.
 */
const TOLERANCE = 3_300_000

/** At most: what forgets failures, names that are blocked, and who connected how often, while there are any. */
const SWEEPERS = 3

const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))
const PROGRAM = fileURLToPath(new URL('flood-server.js', import.meta.url))

/** `waiting`: what the wheel is to look at. */
interface State { sockets: number, connections: number, waiting: number, timers: number }
interface Closed extends Pick<State, 'sockets' | 'waiting' | 'timers'> { events: Record<string, number>, metrics: string }

interface Flooded {
  port: number
  host: string
  errors: () => string
  memory: () => Promise<number>
  cpu: () => Promise<number>
  state: () => Promise<State>
  close: () => Promise<Closed>
  scrape: () => Promise<Metrics>
  /** The code that the process ends with. */
  exited: Promise<unknown>
}

async function start (t: Test): Promise<Flooded> {
  const given = JSON.stringify({ secret: SECRET, sessionSecret: SESSION_SECRET, auth: AUTH })
  const child = fork(PROGRAM, { execArgv: ['--expose-gc'], env: { ...ENV, FLOOD_SERVER_JSON: given }, stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
  t.teardown(() => killed(child))
  const exited = once(child, 'exit').then(([code]) => code as unknown)
  let errors = ''
  child.stderr?.on('data', (chunk: Buffer) => { errors += chunk.toString() })
  const waiting = new Map<number, { resolve: (answer: unknown) => void, reject: (error: Error) => void }>()
  const port = await new Promise<number>((resolve, reject) => {
    child.on('message', message => {
      const { port, id = 0, answer, error } = message as { port?: number, id?: number, answer?: unknown, error?: string }
      if (port !== undefined) resolve(port)
      if (error === undefined) waiting.get(id)?.resolve(answer)
      else waiting.get(id)?.reject(new Error(error))
    })
    child.once('close', code => {
      const failed = new Error(`the process ended with ${code ?? 'a signal'}: ${errors}`)
      reject(failed)
      for (const one of waiting.values()) one.reject(failed)
    })
  })
  let asked = 0
  const ask = (name: string) => new Promise<unknown>((resolve, reject) => {
    waiting.set(++asked, { resolve, reject })
    child.send({ id: asked, name })
  })
  const host = `127.0.0.1:${port}`
  return {
    port, host, exited,
    errors: () => errors,
    memory: async () => await ask('memory') as number,
    cpu: async () => await ask('cpu') as number,
    state: async () => await ask('state') as State,
    close: async () => await ask('close') as Closed,
    scrape: async () => new Metrics(await (await fetch(`http://${host}/metrics`)).text())
  }
}

/** What was scraped at one time. */
class Metrics {
  readonly #values = new Map<string, number>()

  constructor (text: string) {
    for (const [, name = '', value] of text.matchAll(/^hybrid_auth_(\S+) (\S+)$/gm)) this.#values.set(name, Number(value))
  }

  /** All of a name whose labels are these. */
  get (name: string, labels: Record<string, string> = {}): number {
    let sum = 0
    for (const [key, value] of this.#values) {
      if (key.split('{', 1)[0] !== name) continue
      if (Object.entries(labels).every(([label, wanted]) => key.includes(`${label}="${wanted}"`))) sum += value
    }
    return sum
  }

  /** What was counted since another scrape, by the labels that stand in it; without what was not counted. */
  since (before: Metrics, name: string): Record<string, number> {
    const counted: Record<string, number> = {}
    for (const [key, value] of this.#values) {
      const added = value - (before.#values.get(key) ?? 0)
      if (key.split('{', 1)[0] !== name || added === 0) continue
      counted[[...key.matchAll(/="([^"]*)"/g)].map(([, label]) => label).join(' ')] = added
    }
    return counted
  }
}

const inMegabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`

/** How often each was seen. */
class Seen {
  readonly counts: Record<string, number> = {}

  add (what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }
}

// ----- the bad

let made = 0
/** Nobody else's, in every attempt. */
const stranger = () => `nobody-${++made}`
const forged = (sub = stranger()) => signHs256(goodClaims({ sub }), {}, 'a secret of somebody else, 32 bytes at least')
const ORIGIN = 'Origin: http://127.0.0.1'

/** Handshakes that look like guesses; what they are refused with while there were not too many. */
const GUESSES: ReadonlyArray<readonly [outcome: string, request: (sub?: string) => string]> = [
  ['401 invalid_token', sub => handshake([`Authorization: Bearer ${forged(sub)}`])],
  ['401 invalid_token', () => handshake([`Authorization: Bearer ${goodToken({ sub: stranger() }).slice(0, -5)}`])],
  ['401 invalid_session', () => handshake([`Cookie: ${cookieFor(stranger(), { secret: 'a secret of somebody else who signs cookies' })}`, ORIGIN])],
  ['401 invalid_ticket', () => handshake([], { path: `/live?ticket=j${Buffer.from(stranger().padEnd(32, '.')).toString('base64url')}` })],
  ['4001 authentication_failed', sub => handshake([`Sec-WebSocket-Protocol: hybrid-auth.v1, bearer.${forged(sub)}`])],
  ['401 invalid_token', sub => handshake([`Authorization: Bearer ${forged(sub)}`], { path: '/first' })],
  ['401 invalid_token', () => handshake([`Authorization: Bearer ${stranger()}`])],
  ['401 invalid_ticket', () => handshake([], { path: `/live?ticket=${stranger()}` })]
]

interface Answer { index: number, outcome: string }

/** A connection of its own, read until the server hangs up. The outcome is a status and its code, or a close code and its. */
function present (port: number, localAddress: string, request: string, behave: (socket: net.Socket) => void = () => {}): Promise<string> {
  return new Promise(resolve => {
    const socket = net.connect({ port, host: '127.0.0.1', localAddress }, () => { socket.write(request, 'latin1') })
    const chunks: Buffer[] = []
    let outcome = 'nothing'
    let isOpen = false
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      const all = Buffer.concat(chunks)
      const end = all.indexOf('\r\n\r\n')
      if (end < 0) return
      const status = all.toString('latin1', 'HTTP/1.1 '.length, 'HTTP/1.1 200'.length)
      const rest = all.subarray(end + 4)
      if (status !== '101') {
        outcome = `${status} ${/"code":"FST_HYBRID_AUTH_(\w+)"/.exec(rest.toString())?.[1]?.toLowerCase() ?? '?'}`
        return
      }
      if (!isOpen) {
        isOpen = true
        outcome = 'open'
        behave(socket)
      }
      // Nothing but a close frame comes to who was not let in, and none is longer than 125 bytes.
      if (rest.length < 4 || rest.length < 2 + rest.readUInt8(1)) return
      const code = rest.readUInt16BE(2)
      outcome = `${code} ${String((JSON.parse(rest.toString('utf8', 4)) as { code: unknown }).code)}`
      socket.end(frame('close', rest.subarray(2)))
    })
    socket.on('error', () => {})
    socket.on('close', () => { resolve(outcome) })
  })
}

/** So many at once, of each address in turn. */
async function flood (port: number, addresses: readonly string[], count: number, of: (index: number) => string, seen: (answer: Answer) => void): Promise<void> {
  let next = 0
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (next < count) {
      const index = next++
      const from = addresses[index % addresses.length] ?? HOME
      seen({ index, outcome: await present(port, from, of(index)) })
    }
  }))
}

const guess = (index: number, sub?: string): string => GUESSES[index % GUESSES.length]?.[1](sub) ?? ''
const kindOf = (index: number): string => GUESSES[index % GUESSES.length]?.[0] ?? ''

// ----- the slow

/** A first message whose credential is forged, and longer than anybody waits for it byte by byte. */
const LONG = () => frame('text', authFrame(forged()))
const BYTE_EVERY = 150
const CUT_AFTER = 400

/** What sockets do that owe their first message, and how it ends for each. */
const SLOWNESS: ReadonlyArray<readonly [outcome: string, behave: (socket: net.Socket) => void]> = [
  ['4010 authentication_timeout', () => {}],
  ['4010 authentication_timeout', drip],
  ['open', socket => { setTimeout(() => { socket.destroy() }, CUT_AFTER) }],
  ['4010 authentication_timeout', drip],
  ['open', socket => { setTimeout(() => { socket.resetAndDestroy() }, CUT_AFTER) }],
  ['4008 rate_limited', socket => { socket.write(LONG()) }],
  ['4010 authentication_timeout', () => {}],
  ['open', socket => { setTimeout(() => { socket.end() }, CUT_AFTER) }]
]

function drip (socket: net.Socket): void {
  const bytes = LONG()
  let sent = 0
  const timer = setInterval(() => { socket.write(bytes.subarray(sent, ++sent)) }, BYTE_EVERY)
  socket.on('close', () => { clearInterval(timer) })
}

async function crawl (port: number, seen: (outcome: string, expected: string) => void): Promise<void> {
  const all: Array<Promise<void>> = []
  for (let index = 0; index < SLOW; index++) {
    const [expected, behave] = SLOWNESS[index % SLOWNESS.length] ?? ['', () => {}]
    all.push(new Promise<void>(resolve => {
      present(port, FLOODING[index % FLOODING.length] ?? HOME, handshake([], { path: '/first' }), behave).then(outcome => {
        seen(outcome, expected)
        resolve()
      }, () => {})
    }))
    if (index % 20 === 19) await sleep(5)
  }
  await Promise.all(all)
}

// ----- the good

const SAY_EVERY = 40
/** Of a good client, messages on the way at once. */
const WINDOW = 8

/** Says one number after the other, and hears them back in that order. */
class Echoing {
  readonly socket: WebSocket
  readonly opened: Promise<unknown>
  readonly times: number[] = []
  /** Everything that should not happen to it. */
  readonly troubles: string[] = []
  readonly #said: number[] = []
  #next = 0
  #timer: NodeJS.Timeout | undefined

  constructor (t: Test, url: string, protocols: string[], options: ClientOptions, first?: string) {
    this.socket = new WebSocket(url, protocols, { localAddress: HOME, ...options })
    t.teardown(() => { this.socket.terminate() })
    this.socket.on('error', error => { this.troubles.push(error.message) })
    this.socket.on('close', code => { this.troubles.push(`closed with ${code}`) })
    this.socket.on('message', (data: Buffer) => { this.#hear(data.toString()) })
    this.opened = once(this.socket, 'open').then(() => { if (first !== undefined) this.socket.send(first) })
  }

  begin (): void {
    this.#timer = setInterval(() => {
      if (this.#said.length >= WINDOW) return
      this.socket.send(String(this.#next++))
      this.#said.push(performance.now())
    }, SAY_EVERY)
  }

  /** Resolves when everything has come back. */
  async pause (): Promise<void> {
    clearInterval(this.#timer)
    await eventually('every echo comes', () => this.#said.length === 0, 10_000)
  }

  #hear (text: string): void {
    if (text.startsWith('{')) return
    const said = this.#said.shift()
    if (said === undefined || text !== String(this.times.length)) this.troubles.push(`heard ${text} after ${this.times.length}`)
    this.times.push(performance.now() - (said ?? 0))
  }
}

async function login (host: string, userId: string): Promise<string> {
  const answer = await fetch(`http://${host}/login`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ userId }) })
  return (answer.headers.get('set-cookie') ?? '').split(';', 1)[0] ?? ''
}

/** The ways in, and what a client needs for each. */
type Way = 'token' | 'subprotocol' | 'session' | 'first message' | 'ticket'
const WAYS: readonly Way[] = ['token', 'session', 'first message', 'subprotocol', 'ticket']

interface Entry { url: string, options: ClientOptions, protocols: string[], first?: string }

async function entryOf (host: string, way: Way, sub: string, claims: Record<string, unknown> = {}): Promise<Entry> {
  const url = `ws://${host}/live`
  const token = goodToken({ sub, ...claims })
  switch (way) {
    case 'token': return { url, options: { headers: { authorization: `Bearer ${token}` } }, protocols: [] }
    case 'subprotocol': return { url, options: {}, protocols: ['hybrid-auth.v1', `bearer.${token}`] }
    case 'session': return { url, options: { headers: { cookie: await login(host, sub), origin: `http://${host}` } }, protocols: [] }
    case 'first message': return { url: `ws://${host}/first`, options: {}, protocols: [], first: authFrame(token) }
    case 'ticket': {
      const answer = await fetch(`http://${host}/ticket`, { method: 'POST', headers: { authorization: `Bearer ${token}` } })
      return { url: `${url}?ticket=${await answer.text()}`, options: {}, protocols: [] }
    }
  }
}

/** How a newcomer goes again: by the book, without a word, or because its token ends. */
const LEAVING = ['1000 peer', '1006 network', '4002 authentication'] as const
/** Seconds that the token lives. */
const SHORT = 6

interface Visit { way: Way, leaving: typeof LEAVING[number], from: string }

/** Every way in, each from home and from where the flood comes, and every way to go. */
const VISITS: readonly Visit[] = [HOME, ...FLOODING].flatMap((from, i): Visit[] => {
  const way = WAYS[i % WAYS.length] ?? 'token'
  const leaving = LEAVING[i % 2] ?? '1000 peer'
  return [{ way, leaving, from }, ...i % 4 === 0 ? [{ way: 'token', leaving: '4002 authentication', from } as const] : []]
})

/** Comes in, is heard, and goes. Resolves with what it met. */
async function visit (t: Test, host: string, { way, leaving, from }: Visit): Promise<string> {
  const claims = leaving === '4002 authentication' ? { exp: inSeconds(SHORT) } : {}
  const { url, options, protocols, first } = await entryOf(host, way, stranger(), claims)
  const socket = new WebSocket(url, protocols, { localAddress: from, ...options })
  t.teardown(() => { socket.terminate() })
  return new Promise(resolve => {
    let isHeard = false
    socket.on('open', () => {
      if (first !== undefined) socket.send(first)
      socket.send('hello')
    })
    socket.on('message', (data: Buffer) => {
      if (data.toString() !== 'hello') return
      isHeard = true
      if (leaving === '1000 peer') socket.close(1000)
      if (leaving === '1006 network') socket.terminate()
    })
    socket.on('unexpected-response', (_request, { statusCode = 0 }) => { resolve(`refused with ${statusCode}`) })
    socket.on('error', error => { resolve(error.message) })
    socket.on('close', code => { resolve(`${isHeard ? 'heard' : 'not heard'}, ${code}`) })
  })
}

/** So many of them, each in its turn. */
function countsOf (many: number, of: (index: number) => string | undefined): Record<string, number> {
  const seen = new Seen()
  for (let i = 0; i < many; i++) seen.add(String(of(i)))
  return seen.counts
}

const added = (metrics: Metrics, before: Metrics, name: string, labels: Record<string, string>) => metrics.get(name, labels) - before.get(name, labels)

/** Once there is nothing but the good. */
async function settled (server: Flooded): Promise<State> {
  const deadline = performance.now() + 5000
  for (;;) {
    const state = await server.state()
    if ((state.sockets === GOOD && state.waiting <= GOOD + SWEEPERS) || performance.now() > deadline) return state
    await sleep(20)
  }
}

t.setTimeout(120_000)

t.test('CASES 65, 80, 82: a hundred good clients notice nothing of 20 000 bad handshakes and 2 000 slow sockets, of which nothing stays', { ...needsAddresses }, async t => {
  const server = await start(t)
  const { host, port } = server

  // Every kind of client, good or bad, has been there before anything is measured.
  await flood(port, WARMING, 4000, index => guess(index), () => {})
  await Promise.all(WARMING.map((from, i) => present(port, from, handshake([], { path: '/first' }), SLOWNESS[i % SLOWNESS.length]?.[1])))
  await Promise.all(VISITS.filter(({ leaving }) => leaving !== '4002 authentication').map(one => visit(t, host, { ...one, from: HOME })))
  const good = await Promise.all(Array.from({ length: GOOD }, async (_, i) => {
    const { url, options, protocols, first } = await entryOf(host, WAYS[i % WAYS.length] ?? 'token', `good-${i}`)
    const client = new Echoing(t, url, protocols, options, first)
    await client.opened
    client.begin()
    return client
  }))
  await sleep(300)
  await Promise.all(good.map(client => client.pause()))
  t.equal((await settled(server)).sockets, GOOD)
  const atStart = await server.memory()
  const before = await server.scrape()
  const cpuBefore = await server.cpu()
  for (const client of good) client.begin()
  const began = performance.now()
  const seconds = () => (performance.now() - began) / 1000

  // The first ten of each address are refused for what they are.
  const few = FLOODING.length * FAILURES
  const first: string[] = []
  await flood(port, FLOODING, few, index => guess(index), ({ index, outcome }) => { first[index] = outcome })
  t.strictSame(first, Array.from({ length: few }, (_, i) => kindOf(i)), 'the first ten of an address get 401, or 4001')

  // Everything at once.
  const scrapes: Metrics[] = []
  const isFlooding = { now: true }
  const scraping = (async () => {
    while (isFlooding.now) {
      scrapes.push(await server.scrape())
      await sleep(200)
    }
  })()
  const [seen, crawled, visited] = [new Seen(), new Seen(), new Seen()]
  const flooding = flood(port, FLOODING, BAD - few, index => guess(index, index % 3 === 0 ? `good-${index % GOOD}` : undefined), ({ outcome }) => { seen.add(outcome) })
  const handshakesTook = flooding.then(seconds)
  const visiting = Promise.all(VISITS.map(async (one, i) => {
    await sleep(i * 40)
    visited.add(`${one.leaving}: ${await visit(t, host, one)}`)
  }))
  await Promise.all([flooding, visiting, crawl(port, (outcome, expected) => { crawled.add(outcome === expected ? outcome : `${outcome} for ${expected}`) })])
  isFlooding.now = false
  await scraping
  const took = seconds()
  const cpu = await server.cpu() - cpuBefore
  await Promise.all(good.map(client => client.pause()))

  const throttled = countsOf(BAD - few, i => kindOf(i).startsWith('401') ? '429 too_many_failures' : '4008 rate_limited')
  t.strictSame(seen.counts, throttled, 'every later one gets 429, or 4008')
  const slow = countsOf(SLOW, i => SLOWNESS[i % SLOWNESS.length]?.[0])
  t.strictSame(crawled.counts, slow, 'every slow one gets its close code, or was gone before')
  t.strictSame(good.flatMap(({ troubles }) => troubles), [], 'no good client was refused or closed, or lost a message, or heard two the wrong way round')
  t.ok(good.every(({ times }) => times.length > 0), 'and all were heard')
  t.strictSame(visited.counts, countsOf(VISITS.length, i => `${VISITS[i]?.leaving ?? ''}: heard, ${VISITS[i]?.leaving.slice(0, 4) ?? ''}`),
    'every good newcomer got in, by every way, also from where the flood comes from')

  const after = await server.scrape()
  const tooMany = BAD - few + (slow['4008 rate_limited'] ?? 0)
  const by = (way: Way) => VISITS.filter(visit => visit.way === way).length
  t.strictSame(after.since(before, 'handshakes_total'), {
    ...countsOf(few, i => `websocket ${kindOf(i).replace('4001 authentication_failed', '401 invalid_token').slice('401 '.length)}`),
    'websocket too_many_failures': tooMany,
    'websocket pending': SLOW + by('first message'),
    'websocket missing_credentials': slow['4010 authentication_timeout'],
    'websocket abandoned': slow.open,
    'websocket jwt': VISITS.length - by('session'),
    'websocket session': by('session'),
    'http jwt': by('ticket')
  }, 'every handshake is counted by what became of it')
  t.strictSame(after.since(before, 'closes_total'), countsOf(VISITS.length, i => VISITS[i]?.leaving), 'sockets whose token ended are told from those whose peer left, and those that the network lost')
  t.strictSame(after.since(before, 'limited_total'), { 'failures true': tooMany })
  t.strictSame(after.since(before, 'brute_force_suspected_total'), { '': FLOODING.length }, 'one alert for each address')
  t.match({ pending: after.get('pending_sockets'), queued: after.get('queued_frames'), open: after.get('connections') }, { pending: 0, queued: 0, open: GOOD })

  const failed = (metrics: Metrics) => added(metrics, before, 'handshakes_total', { outcome: 'too_many_failures' })
  const lost = (metrics: Metrics) => added(metrics, before, 'handshakes_total', { outcome: 'abandoned' }) + added(metrics, before, 'closes_total', { by: 'network' })
  const during = scrapes.filter(one => failed(one) > 0 && failed(one) < tooMany && lost(one) > 0)
  t.ok(during.length > 0, 'scraped in the middle of it, attempts to authenticate that failed stand apart from sockets that were lost')
  const inOrder = [...scrapes, after]
  t.ok(inOrder.every((one, i) => failed(one) >= failed(inOrder[i - 1] ?? before) && lost(one) >= lost(inOrder[i - 1] ?? before)), 'and both only grow')
  t.ok(scrapes.every(one => one.get('connections') >= GOOD && one.get('pending_sockets') <= SLOW + GOOD), 'no scrape misses one of the good')

  const { connections, waiting, ...left } = await settled(server)
  t.match(left, { sockets: GOOD, timers: 1 })
  t.ok(waiting >= GOOD && waiting <= GOOD + SWEEPERS, 'with one timer, nothing is waited for but the good')
  t.ok(connections <= 2 * GOOD, `open are those of the good and some of HTTP: ${connections}`)
  const atEnd = await server.memory()
  t.ok(atEnd - atStart < TOLERANCE, `memory came back: ${inMegabytes(atEnd - atStart)} more`)

  const times = good.flatMap(client => client.times).sort((a, b) => a - b)
  const quantile = (q: number) => `${(times[Math.floor((times.length - 1) * q)] ?? 0).toFixed(1)} ms`
  t.comment(`${BAD} bad handshakes in ${(await handshakesTook).toFixed(1)} s, with ${SLOW} slow sockets in ${took.toFixed(1)} s, for ${cpu.toFixed(1)} s of the server's CPU time`)
  t.comment(`${GOOD} good clients: ${times.length} echoes, median ${quantile(0.5)}, p99 ${quantile(0.99)}, longest ${quantile(1)}; ${VISITS.length} newcomers; ${during.length} of ${scrapes.length} scrapes in the middle`)
  t.comment(`heap and external memory: ${inMegabytes(atStart)} before, ${inMegabytes(atEnd)} after, ${((atEnd - atStart) / (BAD + SLOW)).toFixed(0)} bytes a handshake`)

  const ends = Promise.all(good.map(async ({ socket }) => (await once(socket, 'close'))[0] as number))
  const closed = await server.close()
  t.ok((await ends).every(code => code === 1012))
  t.match(closed, { sockets: 0, waiting: 0, timers: 0 }, 'after app.close() there is no connection and no timer')
  const end = new Metrics(closed.metrics)
  t.equal(end.get('closes_total', { code: '1012', by: 'server' }), GOOD)
  t.equal(end.get('audit_dropped_total'), 0)
  const nothing = new Metrics('')
  const told = Object.entries(end.since(nothing, 'handshakes_total')).filter(([outcome]) => !/ (?:pending|abandoned)$/.test(outcome))
  const sum = (entries: typeof told) => entries.reduce((total, [, value]) => total + value, 0)
  const isLetIn = ([outcome]: [string, number]) => / (?:jwt|session)$/.test(outcome)
  t.match(closed.events, {
    authenticated: sum(told.filter(isLetIn)), refused: sum(told.filter(one => !isLetIn(one))),
    brute_force_suspected: end.get('brute_force_suspected_total'), closed: end.get('closes_total')
  }, 'the audit function was told of each')
  t.equal(await Promise.race([server.exited, sleep(10_000, 'still there', { ref: false })]), 0, 'the process ends by itself')
  t.equal(server.errors(), '')
})

t.test('who only asks how sockets end is told where they came from', async t => {
  const { app, host } = await build(t)
  const ips: unknown[] = []
  app.hybridAuth.events.on('closed', ({ ip }) => { ips.push(ip) })
  const [one, other] = [await dial(t, host, { path: '/live' }), await dial(t, host, { path: '/live' })]
  one.socket.close()
  other.socket.terminate()
  await eventually('both are closed', () => ips.length === 2)
  t.strictSame(ips, ['127.0.0.1', '127.0.0.1'])
})
