/**
 * What one writes who needs sockets to be closed from another process: bare @fastify/websocket, and a channel on which it is
 * told whom to close. What it was not told while it was away it never learns, and nothing is refused afterwards.
 */
import websocket from '@fastify/websocket'
import Fastify from 'fastify'

const CHANNEL = 'close'
const REVOKED = 4006

export async function createNaive (client) {
  const byUser = new Map()
  const app = Fastify()
  await app.register(websocket)
  app.get('/idle', { websocket: true }, (socket, request) => {
    const [, payload] = request.headers.authorization.split('.')
    const { sub, companyId } = JSON.parse(Buffer.from(payload, 'base64url'))
    socket.tenant = companyId
    const mine = byUser.get(sub) ?? new Set()
    byUser.set(sub, mine.add(socket))
    socket.on('close', () => {
      mine.delete(socket)
      if (mine.size === 0) byUser.delete(sub)
    })
  })
  const subscriber = client.duplicate()
  await subscriber.connect()
  await subscriber.subscribe(CHANNEL, message => {
    const { userId, tenantId } = JSON.parse(message)
    const found = tenantId === undefined
      ? byUser.get(userId) ?? []
      : [...byUser.values()].flatMap(sockets => [...sockets]).filter(({ tenant }) => tenant === tenantId)
    for (const socket of found) socket.close(REVOKED)
  })
  await app.listen({ port: 0, host: '127.0.0.1', backlog: 4096 })
  return app
}

export const closeNaively = (client, target) => client.publish(CHANNEL, JSON.stringify(target))
