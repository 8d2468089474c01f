/** What the application may do with rooms, and what rooms do with the connections of this folder. */
import * as v from 'valibot'
import type { Connection } from '../../types/connection.js'
import type { Presence, PublishResult } from '../../types/rooms.js'
import type { CommandResult } from '../../types/cluster.js'
import { invalidOption } from '../errors.js'
import type { Auditor } from '../observe/audit.js'
import type { ParsedOptions } from '../options.js'
import { createClaims } from '../cluster/claims.js'
import type { Cluster } from '../cluster/cluster.js'
import type { ClusterNode } from '../cluster/node.js'
import type { Revocations } from '../cluster/revocations.js'
import { parse } from '../schema.js'
import { compileRooms } from '../rooms/patterns.js'
import { createPoll } from '../rooms/poll.js'
import { Publisher } from '../rooms/publisher.js'
import { createRepeats } from '../rooms/repeats.js'
import { Rooms } from '../rooms/rooms.js'
import { isRoomName, parsePatterns } from '../rooms/settings.js'
import { Stream, type StreamParts } from '../rooms/stream.js'
import { compileTerms } from '../rooms/terms.js'
import { reasonOf, Verdicts } from '../rooms/verdicts.js'
import { now } from './clock.js'
import { GuardedConnection } from './connection.js'
import type { Hub } from './hub.js'

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the pattern */
export function createRooms ({ rooms: settings, handshakeTimeout }: ParsedOptions, node: Pick<ClusterNode, 'cluster' | 'ignored'>, audit: Auditor, report: Hub['report'], revocations: Pick<Revocations, 'covers'>) {
  const { cluster } = node
  const patterns = parsePatterns(settings.patterns, settings)
  const termsOf = compileTerms(patterns)
  const recall: Cluster['recall'] = (room, after, wanted) => cluster.recall(room, after, wanted)
  const verdicts = new Verdicts({
    decide: compileRooms(settings.authorize, patterns),
    timeout: handshakeTimeout,
    onFault: ({ request }, error) => { report(request, 'rooms', error) }
  })
  const onReceived = (delivered: number): void => { audit.tally.roomHeard(delivered) }
  const streams: StreamParts = { nodeId: audit.nodeId, settings, now, recall, onReceived, onIgnored: () => { node.ignored() } }
  const rooms = new Rooms<GuardedConnection>({
    settings,
    verdicts,
    channels: cluster,
    streamOf (room, members) {
      const { history } = termsOf(room)
      return history === null ? null : new Stream(room, members, history, streams)
    },
    onJoined: (connection, room) => { audit.roomJoined(connection, room) },
    onLeft: (connection, room, reason) => { if (reason !== 'closed') audit.roomLeft(connection, room, reason) },
    onRefused: (connection, room, action, code) => { audit.roomRefused(connection, room, { action, reason: reasonOf(code) }) }
  })
  const publisher = new Publisher(rooms, {
    settings,
    now,
    termsOf,
    broadcast: (room, payload) => cluster.broadcast(room, payload),
    append: (room, said, history) => cluster.append(room, said, history),
    onPublished: (delivered, published) => { audit.tally.roomMessage(delivered, published) },
    onReceived
  })
  const poll = createPoll({
    settings, verdicts, termsOf, recall, revocations, onRefused: (request, context, room, code) => { audit.pollRefused(request, context, room, reasonOf(code)) }
  })
  return { rooms, publisher, termsOf, poll, repeats: createRepeats(createClaims(cluster, true)) }
}

/** `app.hybridAuth.rooms`. @param ask asks all nodes how many members a room has */
export function createRoomApi ({ rooms, publisher, poll, settings }: Hub, ask: (room: string) => Promise<CommandResult>) {
  /** Questions that are out: whoever asks the same meanwhile has the same answer. */
  const asking = new Map<string, Promise<CommandResult>>()
  const membersOf = (room: string): GuardedConnection[] => [...rooms.membersOf(room) ?? []]
  return {
    join: async (connection: Connection, room: string): Promise<boolean> => guarded(connection).join(room),
    leave: (connection: Connection, room: string): boolean => guarded(connection).leave(room),
    async publish (room: string, payload: unknown, options: { except?: Connection | undefined } = {}): Promise<PublishResult> {
      const { except = null } = parse(publishing, options, 'options')
      return publisher.publish(room, payload, except)
    },
    poll,
    members: (room: string): Connection[] => membersOf(room),
    count: (room: string): number => membersOf(room).length,
    async presence (room: string): Promise<Presence> {
      if (!isRoomName(room, settings.rooms)) throw invalidOption('room', 'is no name of a room')
      const asked = asking.get(room) ?? ask(room).finally(() => { asking.delete(room) })
      asking.set(room, asked)
      const { matched, nodes } = await asked
      return { members: matched, nodes }
    }
  }
}

const NO_CONNECTION = 'must be a connection, as app.hybridAuth.connection(socket) gives it'
const publishing = v.strictObject({ except: v.optional(v.instance(GuardedConnection, NO_CONNECTION)) }, 'must be an object')

/** @throws FST_HYBRID_AUTH_INVALID_OPTION */
function guarded (connection: Connection): GuardedConnection {
  if (connection instanceof GuardedConnection) return connection
  throw invalidOption('connection', NO_CONNECTION)
}
