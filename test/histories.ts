/** Nodes whose rooms have histories, clients that come back to them, and clients that poll. */
import type { Test } from 'tap'
import type { RoomOptions } from '../lib/index.js'
import type { ClusterDriver } from '../lib/cluster/cluster.js'
import type { KeptMessage } from '../lib/protocol.js'
import { bearer, startNode, tokenOf, type Node } from './cluster-suite.js'
import type { Frame, LiveOptions, Pair, Peer } from './live.js'
import { ask } from './stores.js'

export const HALL = 'hall'
const PATTERNS = {
  [HALL]: { join: true, publish: true, history: 100 },
  short: { join: true, publish: true, history: 5 },
  'of/:userId': { join: true, history: { messages: 100 } },
  plain: true
} as const

export interface Poller { status: number, body: { rooms: Record<string, Polled> } }
export interface Polled { messages: KeptMessage[], cursor: string, gap?: true, error?: string }

export interface Keeper extends Node {
  publish: (payload: unknown, room?: string) => Promise<{ delivered: number, published: boolean }>
  /** @param rooms the body as it is, where it is a text */
  poll: (rooms: unknown, token?: string) => Promise<Poller>
  /** Of one room, which is answered. */
  pollOf: (cursor: string | null, room?: string, token?: string) => Promise<Polled>
}

export async function keeper (t: Test, cluster: ClusterDriver, rooms: RoomOptions = {}, { auth, ...rest }: LiveOptions = {}): Promise<Keeper> {
  return keeperOf(await startNode(t, {
    cluster, route: { rooms: true }, routes: pollable, ...rest, auth: { heartbeat: false, rooms: { patterns: PATTERNS, ...rooms }, ...auth }
  }))
}

export const pollable: NonNullable<LiveOptions['routes']> = app => {
  app.post('/poll', { auth: true }, (request, reply) => app.hybridAuth.rooms.poll(request, reply))
}

export function keeperOf<T extends Node> (node: T): T & Keeper {
  const { app, host } = node
  const poll: Keeper['poll'] = async (rooms, token = tokenOf('alice')) => {
    const { status, body } = await ask(host, '/poll', {
      method: 'POST', headers: { ...bearer(token).headers, 'content-type': 'application/json' }, body: typeof rooms === 'string' ? rooms : JSON.stringify({ rooms })
    })
    return { status, body: JSON.parse(body) as Poller['body'] }
  }
  return {
    ...node,
    publish: (payload, room = HALL) => app.hybridAuth.rooms.publish(room, payload),
    poll,
    async pollOf (cursor, room = HALL, token) {
      const { status, body } = await poll({ [room]: cursor }, token)
      const answer = body.rooms[room]
      if (status !== 200 || answer === undefined) throw new Error(JSON.stringify(body))
      return answer
    }
  }
}

/** Everything of a room that has come, in order: payloads, and `joined` or `gap`. */
export function taleOf (peer: Peer, room = HALL): unknown[] {
  return framesOf(peer, room).map(({ type, payload, gap }) => type === 'message' ? payload : gap === true ? 'gap' : type)
}

export function framesOf (peer: Peer, room = HALL): Frame[] {
  return peer.texts.map(text => JSON.parse(text.startsWith('{') ? text : '{}') as Frame).filter(({ type, ...frame }) => frame.room === room && type !== 'error')
}

/** The last that came of a room. */
export function cursorOf ({ peer }: Pick<Pair, 'peer'>, room = HALL): string {
  return String(framesOf(peer, room).findLast(({ cursor }) => cursor !== undefined)?.cursor)
}

/** Says that it wants in, and waits until it is told that it is. */
export async function joinFrom ({ peer }: Pick<Pair, 'peer'>, cursor?: unknown, room = HALL): Promise<Frame> {
  const joined = () => framesOf(peer, room).filter(({ type }) => type === 'joined')
  const before = joined().length
  peer.say({ type: 'join', room, ...(cursor !== undefined && { cursor }) })
  await peer.until(() => joined().length > before)
  return joined().at(-1) ?? {}
}

/** A socket that comes back to the room. */
export async function comeBack ({ open }: Pick<Node, 'open'>, cursor?: unknown, room = HALL): Promise<Pair> {
  const pair = await open({ speaks: true })
  await joinFrom(pair, cursor, room)
  return pair
}

export const said = (from: number, to: number, of = ''): string[] => Array.from({ length: to - from + 1 }, (_, i) => `${of}${from + i}`)
