/** Closing the application without dropping its sockets unannounced, whatever order the plugins were registered in. */
import type { FastifyInstance } from 'fastify'
import { closeConnection } from './closing.js'
import { inBatches } from './enforce.js'
import type { Hub } from './hub.js'

/** How long those that were cut off are waited for, in milliseconds. */
const CUT_OFF = 100
const DRAINS = Symbol.for('fastify-hybrid-auth.drains')
type Drain = () => Promise<void>
interface Drained { [DRAINS]?: Drain[] }

/**
 * Runs `drain` at the start of `app.close()`. A `preClose` hook would do, were it not that the one of @fastify/websocket
 * closes every socket without a code, and comes first when it was registered first.
 */
export function drainOnClose (app: FastifyInstance, drain: Drain): void {
  const root: FastifyInstance & Drained = rootOf(app)
  if (root[DRAINS] !== undefined) {
    root[DRAINS].push(drain)
    return
  }
  const drains = [drain]
  root[DRAINS] = drains
  const close = root.close.bind(root)
  let drained: Promise<unknown> | undefined
  const drainThenClose = (listener?: () => void): Promise<undefined> | undefined => {
    // Every call waits for the one drain.
    drained ??= Promise.all(drains.map(async one => one()))
    if (listener === undefined) return drained.then(async () => close())
    drained.then(() => { close(listener) }, () => { close(listener) })
    return undefined
  }
  Object.defineProperty(root, 'close', { value: drainThenClose, configurable: true, writable: true })
}

/** 1012 to every socket, each with its own time to come back; what has not answered at the deadline is cut off. */
export async function drainHub (hub: Hub): Promise<void> {
  const { window, deadline } = hub.settings.drain
  hub.isDraining = true
  for (const socket of hub.pending) socket.fail('Draining', undefined, { retryAfterMs: someTimeIn(window) })
  const connections = hub.registry.find({})
  const closed = connections.map(connection => new Promise<void>(resolve => {
    connection.socket.once('close', resolve)
  }))
  await inBatches(connections, connection => { closeConnection(connection, 'Draining', { retryAfterMs: someTimeIn(window) }) })
  let timer: NodeJS.Timeout | undefined
  const isLate = new Promise<void>(resolve => {
    timer = setTimeout(() => {
      for (const { socket } of connections) socket.terminate()
      // One whose listener has thrown in the middle of a frame never says that it is closed.
      timer = setTimeout(resolve, CUT_OFF)
    }, deadline)
  })
  await Promise.race([Promise.all(closed), isLate])
  clearTimeout(timer)
  for (const watch of hub.watches.values()) watch.stop()
}

/** So that the clients of this process do not all come to another at once. */
export function someTimeIn (window: number): number {
  return Math.floor(Math.random() * window)
}

/** Encapsulated instances inherit `close` from the one that has it. */
function rootOf (app: FastifyInstance): FastifyInstance {
  let root = app
  for (let above: unknown = app; isInstance(above); above = Object.getPrototypeOf(above)) root = above
  return root
}

function isInstance (value: unknown): value is FastifyInstance {
  return typeof value === 'object' && value !== null && 'close' in value
}
