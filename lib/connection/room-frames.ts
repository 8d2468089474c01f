/** What a client says of rooms, on a route that lets it. */
import type { PublishResult } from '../../types/rooms.js'
import { whenReady, type Maybe } from '../maybe.js'
import { StepUp } from '../policy/step-up.js'
import { parseRoomFrame, type ClientRoomFrame, type ClientRoomMessageFrame, type ErrorFrame } from '../protocol.js'
import type { RoomRefusal } from '../rooms/member.js'
import { isMessageId, MAX_ID } from '../rooms/repeats.js'
import type { GuardedConnection } from './connection.js'

/** A frame was dealt with, and its sender was answered. */
export const ANSWERED = Symbol('answered')
type Code = Exclude<RoomRefusal, StepUp>['code'] | 'malformed' | 'unavailable'

/** What is in a frame beside its payload: the name of a room at its longest, an id, the punctuation. */
const ENVELOPE = 8 * 1024

const SAYS: Readonly<Record<Code, readonly [code: string, message: string]>> = {
  FST_HYBRID_AUTH_FORBIDDEN: ['forbidden', 'This room is not allowed'],
  bad_room: ['bad_room', 'This is no name of a room'],
  too_many_rooms: ['too_many_rooms', 'This socket is in too many rooms'],
  not_joined: ['not_joined', 'This socket is not in that room'],
  too_large: ['too_large', 'This message is larger than any may be'],
  malformed: ['malformed', 'This frame cannot be read'],
  ended: ['ended', 'This came too late'],
  unavailable: ['unavailable', 'This cannot be said at the moment']
}

/** Does what a frame asks for. @returns what the user has to do first for it; else {@link ANSWERED} */
export function takeRoomFrame (connection: GuardedConnection, data: Buffer): Maybe<StepUp | typeof ANSWERED> {
  const { rooms, settings } = connection.route.hub
  // Who speaks of rooms knows what is answered.
  connection.speaks = true
  if (data.length > settings.rooms.maxPayload + ENVELOPE) {
    rooms.refusePublish(connection, '', 'too_large')
    return answer(connection, 'too_large')
  }
  const frame = parseRoomFrame(data.toString('utf8'))
  if (frame === null) return answer(connection, 'malformed')
  const { type, room } = frame
  switch (type) {
    case 'join': {
      const isIn = connection.memberships?.has(room) === true
      return whenReady(rooms.join(connection, room, frame.cursor), refusal => {
        if (refusal !== null) return refused(connection, refusal, frame)
        if (isIn) rooms.confirm(connection, room)
        return ANSWERED
      })
    }
    case 'leave': return rooms.leave(connection, room, 'left') ? ANSWERED : answer(connection, 'not_joined', frame)
    case 'message': return publish(connection, frame)
  }
}

function publish (connection: GuardedConnection, frame: ClientRoomMessageFrame): Maybe<StepUp | typeof ANSWERED> {
  const { rooms, publisher, termsOf } = connection.route.hub
  const { room, payload, id } = frame
  const text = written(() => publisher.write(payload))
  if (text === undefined) return answer(connection, 'malformed', frame)
  if (text === null) {
    rooms.refusePublish(connection, room, 'too_large')
    return answer(connection, 'too_large', frame)
  }
  const { repeats } = termsOf(room)
  if (repeats > 0 && id !== undefined && connection.memberships?.has(room) === true) return publishOnce(connection, frame, text, repeats)
  return publishText(connection, frame, text, () => {})
}

/** @param onFailed it was refused, or could not be told */
function publishText (connection: GuardedConnection, frame: ClientRoomMessageFrame, text: string, onFailed: () => void): Maybe<StepUp | typeof ANSWERED> {
  const { rooms, publisher, termsOf } = connection.route.hub
  const { room, id } = frame
  let sent: Promise<PublishResult> | null = null
  const publish = (): void => { sent = publisher.send(room, text, connection, isMessageId(id) ? id : undefined) }
  return whenReady(rooms.publishAs(connection, room, publish), (refusal): Maybe<StepUp | typeof ANSWERED> => {
    if (refusal !== null) {
      onFailed()
      return refused(connection, refusal, frame)
    }
    // Elsewhere the members of this process have it. Here one after the other is said: nobody has any number of them on the way.
    return termsOf(room).history === null || sent === null ? ANSWERED : said(sent)
  })

  async function said (result: Promise<PublishResult>): Promise<typeof ANSWERED> {
    const { published } = await result
    if (published) return ANSWERED
    onFailed()
    return answer(connection, 'unavailable', frame)
  }
}

/** What its user has said before under the same id is not said again. */
async function publishOnce (connection: GuardedConnection, frame: ClientRoomMessageFrame, text: string, window: number): Promise<StepUp | typeof ANSWERED> {
  const { context, route: { hub: { repeats } } } = connection
  const { room, id } = frame
  if (!isMessageId(id)) return answer(connection, 'malformed', frame)
  const isFirst = await repeats.claimIn(room, context, id, window).catch(() => null)
  if (isFirst === null) return answer(connection, 'unavailable', frame)
  return isFirst ? publishText(connection, frame, text, () => { repeats.releaseIn(room, context, id, window).catch(() => {}) }) : ANSWERED
}

/** undefined: what could be read is nested too deeply to be written. */
function written (write: () => string | null): string | null | undefined {
  try {
    return write()
  } catch {
    return undefined
  }
}

function refused (connection: GuardedConnection, refusal: RoomRefusal, frame: ClientRoomFrame): StepUp | typeof ANSWERED {
  return refusal instanceof StepUp ? refusal : answer(connection, refusal.code, frame)
}

/** The name goes back where it is one, and an id that is short enough to be one. */
function answer (connection: GuardedConnection, code: Code, frame?: ClientRoomFrame): typeof ANSWERED {
  const [short, says] = SAYS[code]
  const message = short === 'forbidden' && frame?.type === 'message' ? 'This room is not one to publish in' : says
  const id = frame?.type === 'message' ? frame.id : undefined
  const about: Pick<ErrorFrame, 'room' | 'id'> = {
    ...(frame !== undefined && code !== 'bad_room' && frame.room.length <= connection.route.hub.settings.rooms.maxNameLength && { room: frame.room }),
    ...(id !== undefined && String(id).length <= MAX_ID && { id })
  }
  connection.say({ type: 'error', code: short, message, action: code === 'unavailable' ? 'retry' : 'none', ...about })
  return ANSWERED
}
