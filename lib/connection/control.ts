/** Which frames are ours, told by their first bytes: nothing else of an application's frame is read. */
import type { AuthContext } from '../../types/context.js'
import { SUBPROTOCOL, type AuthSuccessFrame, type ServerFrame } from '../protocol.js'
import type { GuardedSocket, RawFrame } from './socket.js'

/** The control frames a client may send. */
export type ControlType = 'auth' | 'auth_update' | 'token_refresh' | 'auth_status'

const named = <Name extends string>(...names: Name[]) => names.map(name => ({ name, bytes: Buffer.from(`${name}"`) }))
const CONTROL = named<ControlType>('auth', 'auth_update', 'token_refresh', 'auth_status')
const ROOMS = named('join', 'leave', 'message')
const KEY = Buffer.from('"type"')
const [SPACE, TAB, LF, CR, QUOTE, COLON, BRACE] = [0x20, 0x09, 0x0a, 0x0d, 0x22, 0x3a, 0x7b]

/** null: not ours. */
export function controlType (data: RawFrame): ControlType | null {
  return typeAmong(CONTROL, data)
}

/** Whether a client says something of rooms: on a route that lets it, this too is ours. */
export function isRoomFrame (data: RawFrame): data is Buffer {
  return typeAmong(ROOMS, data) !== null
}

/** `type` must be the first member, as every JSON writer puts it that is told so. */
function typeAmong<Name extends string> (names: ReadonlyArray<{ readonly name: Name, readonly bytes: Buffer }>, data: RawFrame): Name | null {
  if (!Buffer.isBuffer(data) || data[0] !== BRACE) return null
  let at = skipSpace(data, 1)
  if (!startsWith(data, at, KEY)) return null
  at = skipSpace(data, at + KEY.length)
  if (data[at] !== COLON) return null
  at = skipSpace(data, at + 1)
  if (data[at] !== QUOTE) return null
  for (const { name, bytes } of names) if (startsWith(data, at + 1, bytes)) return name
  return null
}

/** Whether a peer may be sent frames of ours: one that negotiated another subprotocol speaks that. */
export function mayUnderstand ({ protocol }: { readonly protocol: string }): boolean {
  return protocol === '' || protocol === SUBPROTOCOL
}

export function sendFrame (socket: GuardedSocket, frame: ServerFrame): void {
  if (socket.readyState === socket.OPEN) socket.sendControl(JSON.stringify(frame))
}

export function statusFrame ({ userId, authType, expiresAt }: AuthContext, connectionId: string): AuthSuccessFrame {
  return { type: 'auth_success', user: { id: userId }, authType, connectionId, expiresIn: secondsUntil(expiresAt) }
}

/** Seconds that are left, for the wire: a duration means the same on every clock. */
export function secondsUntil (time: number | null): number | null {
  return time === null ? null : Math.max(0, Math.ceil((time - Date.now()) / 1000))
}

function skipSpace (data: Buffer, from: number): number {
  let at = from
  for (let byte = data[at]; byte === SPACE || byte === TAB || byte === LF || byte === CR; byte = data[at]) at++
  return at
}

function startsWith (data: Buffer, at: number, what: Buffer): boolean {
  if (data.length < at + what.length) return false
  for (let i = 0; i < what.length; i++) if (data[at + i] !== what[i]) return false
  return true
}
