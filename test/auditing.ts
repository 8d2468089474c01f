/** A server of which everybody who can listen is told everything, and all of them the same. */
import assert from 'node:assert/strict'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { FastifyInstance, FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { serializers, type AuditEvent, type RouteAuth } from '../lib/index.js'
import { EVENT_TYPES } from './canary.js'
import { build, keepLines, type Server, type ServerOptions } from './helpers.js'
import { eventually } from './live.js'
import { MapStore } from './stores.js'
import { connected, type Peer, type PeerOptions } from './wire.js'

type Type = AuditEvent['type']
export type Written = Record<string, unknown>

/** What everybody who can listen was told. */
interface Seen {
  /** By the `audit` function. */
  told: AuditEvent[]
  /** By `app.hybridAuth.events`. */
  heard: AuditEvent[]
  /** By diagnostics_channel. */
  published: AuditEvent[]
  /** Lines of the log with an event in them. */
  logged: () => Written[]
  log: () => string
  fastify: FastifyServerOptions
  attach: (app: FastifyInstance) => void
  /** Waits for the next event of a type that was not taken yet; of a connection, if that is said. */
  take: (type: Type) => Promise<AuditEvent>
  types: () => Type[]
}

/** As pino counts them. */
export const [DEBUG, INFO, WARN] = [20, 30, 40]
const LEVELS: Readonly<Record<Type, number>> = {
  authenticated: DEBUG, fallback: INFO, refused: INFO, refreshed: DEBUG, refresh_refused: INFO, identity_changed: WARN, expired: INFO,
  revoked: INFO, permissions_changed: INFO, message_refused: DEBUG, room_joined: DEBUG, room_left: DEBUG, room_refused: DEBUG, limited: WARN, brute_force_suspected: WARN, closed: DEBUG, command: INFO,
  cluster_lost: WARN, cluster_recovered: INFO
}
/** What a line with an event says beside it. */
const lineOf = (event: AuditEvent) => ({ level: LEVELS[event.type], reqId: 'requestId' in event ? event.requestId : undefined, hybridAuth: parse(JSON.stringify(event)) })

/** Everybody listens, and everybody must have been told the same in the end. */
export function observe (t: Test, level = 'trace'): Seen {
  const { stream, text } = keepLines()
  const seen: Omit<Seen, 'logged' | 'take' | 'types' | 'attach' | 'log' | 'fastify'> = { told: [], heard: [], published: [] }
  const all: AuditEvent[] = []
  let nodeId = ''
  const taken = new Map<Type, number>()
  const publish = (event: unknown) => {
    // Channels belong to the process, and so to every node in it.
    if (isEvent(event)) all.push(event)
    if (isEvent(event) && event.nodeId === nodeId) seen.published.push(event)
  }
  for (const type of EVENT_TYPES) subscribe(`fastify-hybrid-auth:${type}`, publish)
  t.teardown(() => { for (const type of EVENT_TYPES) unsubscribe(`fastify-hybrid-auth:${type}`, publish) })
  const logged = () => text().split('\n').filter(line => line !== '').map(parse).filter(line => isWritten(line.hybridAuth) && 'type' in line.hybridAuth)
  t.teardown(() => {
    // After the test, when the server is closed too: what is thrown here fails it.
    assert.deepStrictEqual(seen.heard, seen.told, 'app.hybridAuth.events tells what the function is told')
    assert.deepStrictEqual(seen.published, seen.told, 'so does diagnostics_channel')
    if (level === 'trace') {
      assert.deepStrictEqual(logged().map(({ level, reqId, hybridAuth }) => ({ level, reqId, hybridAuth })), seen.told.map(lineOf), 'so does the log')
    }
  })
  return {
    ...seen,
    logged,
    log: text,
    fastify: { logger: { level, stream, serializers }, genReqId: ({ headers: { 'x-id': id } }) => typeof id === 'string' ? id : 'unnamed' },
    attach (app) {
      ({ nodeId } = app.hybridAuth.status())
      seen.published.push(...all.filter(event => event.nodeId === nodeId))
      for (const type of EVENT_TYPES) app.hybridAuth.events.on(type, (event: AuditEvent) => { seen.heard.push(event) })
    },
    async take (type) {
      const at = taken.get(type) ?? 0
      taken.set(type, at + 1)
      const all = () => seen.told.filter(event => event.type === type)
      await eventually(`${type} number ${at + 1} of ${seen.told.map(({ type }) => type).join()}`, () => all().length > at)
      const found = all()[at]
      if (found === undefined) throw new Error('no event')
      return found
    },
    types: () => seen.told.map(({ type }) => type)
  }
}

const parse = (line: string): Written => JSON.parse(line) as Written
export const isWritten = (value: unknown): value is Written => typeof value === 'object' && value !== null
const isEvent = (value: unknown): value is AuditEvent => isWritten(value) && 'nodeId' in value

export interface World extends Server, Omit<Seen, 'fastify' | 'attach'> {
  store: MapStore
  nodeId: string
  /** An open socket, and the id of its connection. */
  enter: (id: string, options?: PeerOptions) => Promise<{ peer: Peer, connectionId: string }>
  /** Where and when, of whom that is asked. */
  at: (requestId: string, more?: Written) => Written
}

interface WorldOptions extends ServerOptions { route?: RouteAuth, level?: string, seen?: Seen }

/** A server whose `/app` echoes, with sessions in a store of the test, and everybody listening. */
export async function world (t: Test, { auth, route = true, level = 'trace', routes, fastify, seen = observe(t, level), ...rest }: WorldOptions = {}): Promise<World> {
  const store = new MapStore()
  const server = await build(t, {
    session: { store },
    auth: { heartbeat: false, audit: event => { seen.told.push(event) }, ...auth },
    fastify: { ...seen.fastify, ...fastify },
    routes (app) {
      app.get('/app', { websocket: true, auth: route }, socket => {
        socket.on('message', (data: Buffer, isBinary) => { socket.send(data, { binary: isBinary }) })
      })
      app.get('/first', { websocket: true, auth: { firstMessage: true } }, socket => {
        socket.on('message', (data: Buffer, isBinary) => { socket.send(data, { binary: isBinary }) })
      })
      app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
      routes?.(app)
    },
    ...rest
  })
  seen.attach(server.app)
  const { nodeId } = server.app.hybridAuth.status()
  return {
    ...server,
    ...seen,
    store,
    nodeId,
    at: (requestId, more = {}) => ({ nodeId, requestId, route: '/app', ip: '127.0.0.1', websocket: true, origin: null, userAgent: null, ...more }),
    async enter (id, { headers = {}, ...options } = {}) {
      const known = server.app.hybridAuth.connections().map(one => one.id)
      const peer = await connected(t, server.host, { path: '/app', headers: { ...headers, 'x-id': id }, ...options })
      const made = () => server.app.hybridAuth.connections().find(one => !known.includes(one.id))
      await eventually('a connection', () => made() !== undefined)
      return { peer, connectionId: made()?.id ?? '' }
    }
  }
}

/** Every member of the event, and no other; the time is now. */
export function whole (t: Test, { time, ...rest }: AuditEvent, expected: Written, what: string = rest.type): void {
  t.ok(Math.abs(Date.now() - time) < 20_000 && Number.isInteger(time), `${what}: the time is now`)
  t.strictSame(rest, expected, `${what}: the whole event`)
}
