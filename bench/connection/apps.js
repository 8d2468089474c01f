/**
 * The applications under measurement, each with the same socket routes: bare @fastify/websocket, ours, and bare with what
 * one writes who needs sockets to end with their tokens: a timer for each.
 */
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'

// The first ping comes after everything that is measured: the clients know only what they asked for.
const HEARTBEAT = { interval: 600_000 }

const isAgent = auth => auth.role === 'agent'

/** The rules of our routes, by the last part of their path. */
const RULES = { idle: {}, none: {}, sync: { authorize: isAgent }, async: { authorize: async auth => isAgent(auth) } }

/** @param handler of every route */
export async function createApp (kind, key, handler) {
  const app = Fastify()
  await app.register(websocket)
  if (kind === 'ours') await app.register(hybridAuth, { jwt: { key, algorithms: ['HS256'] }, heartbeat: HEARTBEAT })
  for (const [name, auth] of Object.entries(RULES)) {
    app.get(`/${name}`, { websocket: true, ...(kind === 'ours' && { auth }) }, kind === 'naive' ? closeInTime(handler) : handler)
  }
  await app.listen({ port: 0, host: '127.0.0.1', backlog: 4096 })
  return app
}

function closeInTime (handler) {
  return (socket, request) => {
    const [, payload] = request.headers.authorization.split('.')
    const { exp } = JSON.parse(Buffer.from(payload, 'base64url'))
    const timer = setTimeout(() => { socket.close(4002, 'expired') }, exp * 1000 - Date.now())
    socket.on('close', () => { clearTimeout(timer) })
    handler(socket, request)
  }
}
