/** A server with rooms, the peers in them, and what is left of them in the process. */
import type { Test } from 'tap'
import type { AuditEvent, RoomOptions, RouteRule } from '../lib/index.js'
import { GuardedConnection } from '../lib/connection/connection.js'
import type { Hub } from '../lib/connection/hub.js'
import { goodToken } from './helpers.js'
import type { Dial, Frame, LiveOptions, Pair, Peer } from './live.js'
import { audited, type Audited } from './revoking.js'
import { deferred, type Deferred } from './stores.js'

export type Answer = boolean | Promise<boolean>
type Authorize = NonNullable<RoomOptions['authorize']>

export interface Roomy extends Audited {
  /** Opens a socket of this user. */
  enter: (sub: string, permissions?: readonly string[], dial?: Dial) => Promise<Pair>
  /** {@link enter}, and joins by a frame of the client. */
  enterRoom: (sub: string, room: string, permissions?: readonly string[]) => Promise<Pair>
  /** Of a type, without where and when. */
  told: (type: AuditEvent['type']) => Frame[]
}

export interface RoomyOptions extends Omit<LiveOptions, 'route'> {
  rooms?: RoomOptions
  rule?: RouteRule
}

export const PASS: RoomOptions = { authorize: () => true }

/** Takes frames of clients about rooms, and lets everybody into all of them, unless it is told otherwise. */
export async function roomy (t: Test, { rooms = PASS, rule = {}, auth, ...rest }: RoomyOptions = {}): Promise<Roomy> {
  const server = await audited(t, { auth: { rooms, ...auth }, route: { rooms: true, ...rule }, ...rest })
  const enter: Roomy['enter'] = (sub, permissions = [], dial = {}) => server.open({ token: goodToken({ sub, permissions }), speaks: true, ...dial })
  return {
    ...server,
    enter,
    async enterRoom (sub, room, permissions) {
      const pair = await enter(sub, permissions)
      await joins(pair.peer, room)
      return pair
    },
    told: type => server.events.filter(event => event.type === type).map(event => Object.fromEntries(
      Object.entries(event).filter(([name]) => ['userId', 'room', 'action', 'reason', 'permissions', 'code', 'closeCode'].includes(name))))
  }
}

/** By a frame, whose answer is waited for. */
export async function joins (peer: Peer, room: string): Promise<void> {
  const before = peer.texts.length
  const answer = () => peer.texts.slice(before).find(text => text.startsWith('{"type":"joined"') || text.startsWith('{"type":"error"'))
  peer.say({ type: 'join', room })
  await peer.until(() => answer() !== undefined)
  if (answer() !== JSON.stringify({ type: 'joined', room })) throw new Error(`${room} was not joined: ${answer() ?? 'no answer'}`)
}

let markers = 0

/** Everything that was sent to the peer before has come, in order; nothing more is waited for. */
export async function settled ({ peer }: Pair): Promise<void> {
  await peer.echoed(`marker ${++markers}`)
}

/** The payloads that came by way of a room, once all is there. */
export async function heard (pair: Pair, room?: string): Promise<unknown[]> {
  await settled(pair)
  return heardSoFar(pair.peer, room)
}

export function heardSoFar (peer: Peer, room?: string): unknown[] {
  return peer.framesOf('message').filter(frame => room === undefined || frame.room === room).map(({ payload }) => payload)
}

export function guardedOf ({ there: { connection } }: Pick<Pair, 'there'>): GuardedConnection {
  if (!(connection instanceof GuardedConnection)) throw new Error('not a connection of this process')
  return connection
}

export const hubOf = (pair: Pick<Pair, 'there'>): Hub => guardedOf(pair).route.hub

/** What a process holds of sockets and rooms. */
export function remains ({ registry, rooms }: Hub): Record<'connections' | 'memberships' | 'rooms', number> {
  return { connections: registry.size, memberships: rooms.size, rooms: rooms.open }
}

export const NOTHING = { connections: 0, memberships: 0, rooms: 0 }

/** Questions of `authorize` that wait for the test. */
export class Questions {
  readonly asked: Array<{ userId: string, room: string, action: string, permissions: readonly string[], answer: Deferred<boolean>['resolve'] }> = []
  /** What is answered at once; null: the test answers. */
  #atOnce: ((...given: Parameters<Authorize>) => boolean) | null = null
  #waiting: Array<() => void> = []

  readonly authorize: Authorize = (auth, room, action) => {
    if (this.#atOnce !== null) return this.#atOnce(auth, room, action)
    const { promise, resolve } = deferred<boolean>()
    this.asked.push({ userId: auth.userId, room, action, permissions: auth.permissions, answer: resolve })
    for (const wake of this.#waiting.splice(0)) wake()
    return promise
  }

  answerAtOnce (answer: (...given: Parameters<Authorize>) => boolean = () => true): void {
    this.#atOnce = answer
  }

  hold (): void {
    this.#atOnce = null
  }

  /** The question with this number, once it is asked. */
  async at (index: number): Promise<(typeof this.asked)[number]> {
    for (;;) {
      const question = this.asked[index]
      if (question !== undefined) return question
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => { reject(new Error(`question ${index} was never asked`)) }, 5000)
        this.#waiting.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }
}

/** So many turns of the queue of microtasks. */
export async function turns (count: number): Promise<void> {
  for (let i = 0; i < count; i++) await Promise.resolve()
}
