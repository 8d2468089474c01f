/** What each node has open, and has counted: told in a room for operators, and kept so that an order finds its connection. */
import { createHash } from 'node:crypto'
import { secondsTo } from './live.js'
import { BOARDS_ANSWER } from './schemas.js'

export const BOARD_ROOM = 'operators/board'
const TABLE = 'board'
const INTERVAL = 1000
/** A node that said nothing for so long is gone. */
const STALE = 5000
/** Of one node. More are counted and not listed. */
const LISTED = 50

/** @param registry of prom-client, with the plugin's metrics */
export function createBoard ({ app, store, node, registry }) {
  const openedAt = new WeakMap()

  const describe = connection => {
    const { userId, tenantId, role, authType, via, permissions, expiresAt, ...context } = connection.context
    return {
      id: connection.id,
      userId, tenantId, role, authType, via, permissions,
      expiresAt,
      openedAt: openedAt.get(connection) ?? Date.now(),
      rooms: [...connection.rooms],
      target: authType === 'session' ? { sessionId: context.sessionId } : { tokenId: context.tokenId, issuer: context.issuer }
    }
  }

  async function record () {
    const metrics = await registry.getMetricsAsJSON()
    const counts = (name, label, isMeant = () => true) => {
      const sums = {}
      for (const { value, labels } of metrics.find(metric => metric.name === `hybrid_auth_${name}`)?.values ?? []) {
        if (isMeant(labels)) sums[labels[label]] = (sums[labels[label]] ?? 0) + value
      }
      return sums
    }
    const open = app.hybridAuth.connections()
    return {
      node,
      at: Date.now(),
      total: open.length,
      connections: open.slice(-LISTED).map(describe),
      handshakes: counts('handshakes_total', 'outcome', ({ transport }) => transport === 'websocket'),
      closes: counts('closes_total', 'code')
    }
  }

  let isTelling = false
  let isBehind = false

  async function tell () {
    isBehind = isTelling
    if (isTelling) return
    isTelling = true
    try {
      const mine = await record()
      await store.put(TABLE, node, JSON.stringify(mine))
      await app.hybridAuth.rooms.publish(BOARD_ROOM, publicly(mine))
    } catch {
      // The store is away, or this process ends. The next time tries again.
    } finally {
      isTelling = false
    }
    if (isBehind) await tell()
  }

  const read = async () => (await store.rows(TABLE)).map(text => JSON.parse(text)).filter(({ at }) => at > Date.now() - STALE)

  let timer
  app.addHook('onReady', async () => { timer = setInterval(tell, INTERVAL) })
  app.addHook('preClose', async () => {
    clearInterval(timer)
    await store.drop(TABLE, node).catch(() => {})
  })
  app.get('/operator/board', { auth: { permissions: ['operate'] }, schema: { response: { 200: BOARDS_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    await store.put(TABLE, node, JSON.stringify(await record()))
    return { nodes: (await read()).map(publicly) }
  })

  return {
    /** An order that comes right after is about the credential that is there by then. */
    opened (connection) {
      openedAt.set(connection, Date.now())
      connection.on('refresh', tell).on('close', tell)
      tell()
    },
    /** On whichever node; undefined: it is not open any more. */
    async find (connectionId) {
      const own = app.hybridAuth.connections().find(({ id }) => id === connectionId)
      if (own !== undefined) return describe(own)
      return (await read()).flatMap(({ connections }) => connections).find(({ id }) => id === connectionId)
    }
  }
}

/** Durations, for clocks differ; of the credential a short hash, to tell one from the other. */
const publicly = ({ node, total, connections, handshakes, closes }) => ({
  node, total, handshakes, closes,
  connections: connections.map(({ target, expiresAt, openedAt, ...shown }) => ({
    ...shown,
    expiresIn: secondsTo(expiresAt),
    openedAgo: Math.round((Date.now() - openedAt) / 1000),
    credential: createHash('sha256').update(target.sessionId ?? target.tokenId).digest('hex').slice(0, 8)
  }))
})
