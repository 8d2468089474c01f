/** A site of its own for a browser: a real server with the plugin, and pages that run the client as it was built. */
import { readdir, readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import type { Test } from 'tap'
import type { AuthSocket, AuthSocketEvents, AuthSocketOptions } from '../lib/client/index.js'
import hybridAuth, { type HybridAuthOptions, type Identity, type RouteAuth } from '../lib/index.js'
import { secret as canary, watch } from './canary.js'
import { JWT, portOf, SESSION, SESSION_SECRET, signHs256 } from './helpers.js'
import { eventually } from './live.js'

export const FEED = 'feed'
/** In milliseconds: the longest wait of a client between two attempts, and more. */
const PATIENCE = 25_000
export const CSP = "default-src 'none'; script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'"
const CLIENT = new URL('../dist/esm/lib/client/', import.meta.url)
const PROTOCOL = new URL('../dist/esm/lib/protocol.js', import.meta.url)

/** A client of a page: its name there, and what can be told of its options from here. */
export interface Plan extends Pick<AuthSocketOptions, 'attach' | 'fallback' | 'tabs' | 'queue'> {
  name?: string
  /** @default '/live' */
  url?: string
  /** Where getToken asks. @default none, which is for cookies */
  token?: string
  rooms?: string[]
}

type Kept<Name extends keyof AuthSocketEvents> = Array<AuthSocketEvents[Name]>
export interface Seen {
  state: Kept<'state'>, open: Kept<'open'>, permissions: Kept<'permissions'>, close: Kept<'close'>, logout: Kept<'logout'>
  degraded: Kept<'degraded'>, joined: Kept<'joined'>, left: Kept<'left'>, gap: Kept<'gap'>
  /** By their stage; what the server has refused, by its code. */
  error: string[]
  texts: string[]
  /** Of the messages of rooms. */
  numbers: number[]
  /** Why getToken was asked. */
  asked: string[]
  /** When it began to connect, and was open, in milliseconds of the page. */
  connects: number[]
  opens: number[]
}

export interface Harness {
  start: (plan: Plan) => void
  client: (name?: string) => AuthSocket
  seen: (name?: string) => Seen
  post: (path: string, body?: unknown) => Promise<{ status: number, text: string }>
  /** How a bare WebSocket ends. */
  dial: (path: string, protocols: string[]) => Promise<{ code: number, reason: string }>
  violations: string[]
}

/** Runs in the page: it knows nothing but what it is given. */
function harness (createAuthSocket: (options: AuthSocketOptions) => AuthSocket): void {
  const page = globalThis as typeof globalThis & { addEventListener: (type: string, listener: (event: { violatedDirective: string }) => void) => void }
  const clients = new Map<string, { client: AuthSocket, seen: Seen }>()
  const of = (name = 'main') => {
    const found = clients.get(name)
    if (found === undefined) throw new Error(`no client ${name}`)
    return found
  }
  const post = async (path: string, body: unknown = {}, signal: AbortSignal | null = null) => {
    const answer = await fetch(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body), signal })
    return { status: answer.status, text: await answer.text() }
  }
  const violations: string[] = []
  page.addEventListener('securitypolicyviolation', event => { violations.push(event.violatedDirective) })
  const exposed: Harness = {
    start ({ name = 'main', url = '/live', token, rooms = [], ...options }) {
      const seen: Seen = {
        state: [], open: [], permissions: [], close: [], logout: [], degraded: [], joined: [], left: [], gap: [],
        error: [], texts: [], numbers: [], asked: [], connects: [], opens: []
      }
      const client = createAuthSocket({
        ...options,
        url,
        ...(token !== undefined && {
          async getToken ({ reason, signal }) {
            seen.asked.push(reason)
            const { status, text } = await post(token, { reason }, signal)
            if (status === 200) return text
            if (status === 401) return null
            throw new Error(`no token: ${status}`)
          }
        })
      })
      for (const event of ['state', 'open', 'permissions', 'close', 'logout', 'degraded', 'joined', 'left', 'gap'] as const) {
        client.on(event, told => { (seen[event] as unknown[]).push(told) })
      }
      client.on('state', state => { if (state === 'connecting') seen.connects.push(performance.now()) })
      client.on('open', () => { seen.opens.push(performance.now()) })
      client.on('error', ({ stage, error }) => { seen.error.push(stage === 'refused' ? String((error as { code?: unknown }).code) : stage) })
      client.on('message', message => {
        if ('data' in message) seen.texts.push(String(message.data))
        else seen.numbers.push(Number((message.payload as { number?: unknown }).number))
      })
      for (const room of rooms) client.join(room)
      clients.set(name, { client, seen })
    },
    client: name => of(name).client,
    seen: name => of(name).seen,
    post,
    dial: (path, protocols) => new Promise(resolve => {
      const socket = new WebSocket(new URL(path, (globalThis as { location?: { href: string } }).location?.href.replace('http', 'ws')), protocols)
      socket.onclose = ({ code, reason }) => { resolve({ code, reason }) }
    }),
    violations
  }
  Object.assign(globalThis, { harness: exposed })
}

const filesOnce = (async () => {
  const names = (await readdir(CLIENT)).filter(name => name.endsWith('.js'))
  const files = await Promise.all(names.map(async name => [`/lib/client/${name}`, await readFile(new URL(name, CLIENT), 'utf8')] as const))
  const script = `import { createAuthSocket } from '/lib/client/index.js'\n(${String(harness)})(createAuthSocket)\n`
  return [...files, ['/lib/protocol.js', await readFile(PROTOCOL, 'utf8')] as const, ['/page.js', script] as const]
})()

export interface Asked { user: string, reason: string, at: number, ends: number, token: string }

export interface Site {
  app: FastifyInstance
  port: number
  origin: string
  /** Tokens that were given, in their order. */
  asked: Asked[]
  tickets: string[]
  /** What the page waits for before it is given a token. */
  gate: { wait: (user: string, reason: string) => Promise<void> | undefined }
  /** What users may do. */
  rights: Map<string, string[]>
  /** How often it was polled. */
  polls: number
  /** Sockets are destroyed where they ask for an upgrade. */
  isBlocked: boolean
  upgrades: () => number
  /** Whatever is open is cut off. */
  cut: () => void
  /** Numbers from 1, in {@link FEED}. @returns how far it is */
  stream: () => () => number
}

export interface SiteOptions { port?: number, auth?: Partial<HybridAuthOptions>, route?: RouteAuth, routes?: (app: FastifyInstance) => void }

export async function startSite (t: Test, { port: wanted = 0, auth = {}, route = {}, routes }: SiteOptions = {}): Promise<Site> {
  const files = await filesOnce
  const app = Fastify(watch(t, { forceCloseConnections: true }))
  t.teardown(() => app.close())
  const sockets = new Set<Socket>()
  let upgrades = 0
  await app.register(cookie)
  await app.register(session, { secret: SESSION_SECRET, cookie: { secure: false }, saveUninitialized: false })
  await app.register(websocket)
  const rights = new Map<string, string[]>()
  await app.register(hybridAuth, {
    jwt: JWT,
    session: SESSION,
    failures: false,
    permissions: ({ userId }) => rights.get(userId) ?? ['read'],
    rooms: { patterns: { [FEED]: { join: { permissions: ['read'] }, history: 1000 } } },
    ...auth
  })
  const site: Site = {
    app, port: 0, origin: '', asked: [], tickets: [], rights, polls: 0, isBlocked: false,
    gate: { wait: () => undefined },
    upgrades: () => upgrades,
    cut () { for (const socket of sockets) socket.destroy() },
    stream () {
      let number = 0
      const timer = setInterval(() => { app.hybridAuth.rooms.publish(FEED, { number: ++number }).catch((error: unknown) => { t.fail(String(error)) }) }, 20)
      t.teardown(() => { clearInterval(timer) })
      return () => number
    }
  }
  app.addHook('onRequest', async (_request, reply) => { reply.headers({ 'content-security-policy': CSP, 'x-content-type-options': 'nosniff' }) })
  app.get('/', async (_request, reply) => reply.type('text/html').send('<!doctype html><title>A page</title><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>'))
  app.get('/other', async (_request, reply) => reply.type('text/html').send('<!doctype html><title>Another page</title>'))
  for (const [path, body] of files) app.get(path, async (_request, reply) => reply.type('text/javascript').send(body))
  app.post<{ Body: Identity }>('/login', async request => {
    await request.session.regenerate()
    request.session.user = { ...request.body, issuedAt: Date.now() }
    return 'ok'
  })
  app.post('/logout', { auth: true }, async ({ session }) => {
    await session.destroy()
    return 'ok'
  })
  app.post<{ Querystring: { user: string, seconds?: string }, Body: { reason: string } }>('/token', async ({ query: { user, seconds = '300' }, body: { reason } }) => {
    await site.gate.wait(user, reason)
    const now = Date.now()
    const ends = now + Number(seconds) * 1000
    const token = signHs256({ sub: user, iat: now / 1000, exp: ends / 1000, jti: `token ${site.asked.length} of ${user}` })
    site.asked.push({ user, reason, at: now, ends, token })
    return token
  })
  app.post('/ticket', { auth: true }, async request => {
    const ticket = canary(await app.hybridAuth.issueTicket(request))
    site.tickets.push(ticket)
    return ticket
  })
  app.post('/poll', { auth: true }, (request, reply) => {
    site.polls++
    return app.hybridAuth.rooms.poll(request, reply)
  })
  app.get('/live', { websocket: true, auth: { rooms: true, ...Object(route) as object } }, (socket, request) => {
    socket.send(`${request.auth.authType} by ${request.auth.via}`)
    socket.on('message', (data: Buffer) => { socket.send(data.toString()) })
  })
  routes?.(app)
  await app.listen({ port: wanted, host: '127.0.0.1' })
  const listeners = app.server.listeners('upgrade')
  app.server.removeAllListeners('upgrade')
  app.server.on('upgrade', (request, socket: Socket, head) => {
    upgrades++
    sockets.add(socket)
    socket.on('close', () => { sockets.delete(socket) })
    if (site.isBlocked) socket.destroy()
    else for (const listener of listeners) Reflect.apply(listener, app.server, [request, socket, head])
  })
  site.port = portOf(app)
  site.origin = `http://127.0.0.1:${site.port}`
  return site
}

/** What a page keeps where whoever comes next, or another script, may look. */
export const KEPT = `Promise.all([indexedDB.databases(), caches.keys()]).then(kept => JSON.stringify([
  ...kept, location.href, history.state, document.cookie, document.documentElement.outerHTML, { ...localStorage }, { ...sessionStorage }, performance.getEntries(), name
]))`

/** Cookies and storage of its own. */
export async function contextOf (t: Test, browser: Browser): Promise<BrowserContext> {
  const context = await browser.newContext()
  t.teardown(() => context.close())
  return context
}

/** A page of a site, and the clients in it. */
export class Tab {
  /** Of documents and requests, of sockets, what these have sent, and lines of the console. */
  readonly addresses: string[] = []
  readonly sockets: string[] = []
  readonly sent: string[] = []
  readonly console: string[] = []

  constructor (readonly page: Page) {
    page.on('request', request => { this.addresses.push(request.url()) })
    page.on('framenavigated', frame => { this.addresses.push(frame.url()) })
    page.on('websocket', socket => {
      this.sockets.push(socket.url())
      socket.on('framesent', ({ payload }) => { this.sent.push(String(payload)) })
    })
    page.on('console', line => { this.console.push(line.text()) })
    page.on('pageerror', error => { this.console.push(String(error)) })
  }

  static async open (context: BrowserContext, { origin }: Pick<Site, 'origin'>): Promise<Tab> {
    const tab = new Tab(await context.newPage())
    // The module has run before `load`.
    await tab.page.goto(origin)
    return tab
  }

  /** In the page, so that it sees nothing of here but what it is given. */
  run<Result, Given = null>(work: (harness: Harness, given: Given) => Result, given?: Given): Promise<Awaited<Result>> {
    return this.page.evaluate<Awaited<Result>>(`(${String(work)})(harness, ${JSON.stringify(given ?? null)})`)
  }

  start (plan: Plan): Promise<void> {
    return this.run((page, given) => { page.start(given) }, plan)
  }

  seen (name = 'main'): Promise<Seen> {
    return this.run((page, given) => page.seen(given), name)
  }

  /** What a client has seen, when it holds. It is asked in the page, as {@link run}. */
  async until<Given = null>(holds: (seen: Seen, given: Given) => boolean, given?: Given, name = 'main'): Promise<Seen> {
    const asked = `(${String(holds)})(harness.seen(${JSON.stringify(name)}), ${JSON.stringify(given ?? null)})`
    // waitForFunction of playwright needs eval, which the policy of the page does not allow.
    const isSo = await this.page.evaluate<boolean>(`new Promise(resolve => {
      const started = performance.now()
      const look = () => {
        const isSo = ${asked}
        if (isSo || performance.now() - started > ${PATIENCE}) resolve(isSo)
        else setTimeout(look, 10)
      }
      look()
    })`)
    const seen = await this.seen(name)
    if (!isSo) throw new Error(`never: ${asked}\n${JSON.stringify(seen)}`)
    return seen
  }

  isOpen (name = 'main', times = 1): Promise<Seen> {
    return this.until((seen, count) => seen.open.length >= count && seen.state.at(-1) === 'open', times, name)
  }

  /** Has heard the numbers up to there. */
  hears (number: number, name = 'main'): Promise<Seen> {
    return this.until((seen, n) => (seen.numbers.at(-1) ?? 0) >= n, number, name)
  }

  post (path: string, body: unknown = {}) {
    return this.run((page, [to, what]) => page.post(to, what), [path, body] as const)
  }

  dial (path: string, protocols: string[]) {
    return this.run((page, [to, offered]) => page.dial(to, offered), [path, protocols] as const)
  }
}

/** What is missing of a stream, or comes again. */
export function faultsIn (numbers: number[]): string[] {
  return numbers.flatMap((number, i) => {
    const expected = (numbers[i - 1] ?? number - 1) + 1
    return number === expected ? [] : [`${number} in place of ${expected}`]
  })
}

/** The stream has gone on. */
export const goesOn = (at: () => number, count: number): Promise<void> => {
  const from = at()
  return eventually(`${count} more numbers`, () => at() >= from + count)
}
