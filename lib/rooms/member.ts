/** What rooms know of a connection. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { ServerFrame } from '../protocol.js'
import type { RoomFrame } from './frame.js'
import type { Unmet } from '../policy/requirements.js'

/** Frames that wait until it is known whether somebody may still have them. */
export type Suspended = RoomFrame[]

/** Rooms by name, and what waits in those that are being asked about; null: nothing has to wait. */
export type Memberships = Map<string, Suspended | null>

/** Rooms that are being asked again. */
export interface Recheck {
  readonly done: Promise<void>
  /** The context has changed meanwhile. */
  isDue: boolean
}

/** Why somebody is no member of a room any more. */
export type LeaveReason = 'left' | 'removed' | 'forbidden' | 'closed'

/** Why somebody did not get what he wanted of a room. `ended`: he is not there any more to be told. */
export type RoomRefusal = Unmet | { readonly code: 'bad_room' | 'too_many_rooms' | 'not_joined' | 'too_large' | 'ended' }

/** As far as anybody is told of it. */
export type RefusedFor = Exclude<RoomRefusal['code'], 'ended'>

export interface Member {
  readonly id: string
  readonly request: FastifyRequest
  readonly context: AuthContext
  /** Whether it is told what frames of ours tell. */
  readonly speaks: boolean
  /** Its rooms; null: none. Written by rooms alone. */
  memberships: Memberships | null
  /** Joins that wait for a verdict. Written by rooms alone. */
  joining: Map<string, Promise<RoomRefusal | null>> | null
  /** Bytes of frames that wait, in all of its rooms together. Written by rooms alone. */
  suspendedBytes: number
  /** null: they are not. Written by rooms alone. */
  recheck: Recheck | null
  /** Whether it may be given anything. @param time of now() */
  isLive (time?: number): boolean
  /** Whether what it wants still counts: its frames may be judged after its peer has closed. */
  canAct (): boolean
  /** Whether it can be in a room: there, and with a peer that understands frames of ours. */
  canJoin (): boolean
  /** How much waits to be sent, in bytes. */
  readonly buffered: number
  /** Sends a frame of a room. */
  pass (frame: RoomFrame): void
  /** Sends a frame of the protocol, if it speaks that. */
  say (frame: ServerFrame): void
  /** Does not read what it is sent. */
  closeSlow (): void
  announce (event: 'joined', room: string): void
  announce (event: 'left', room: string, reason: LeaveReason): void
}
