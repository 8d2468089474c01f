/**
 * The same rooms three times: a Map of Sets and a loop on bare @fastify/websocket, ours, and Socket.IO. Each with the sockets
 * that are open, and what one writes to join, leave and publish.
 */
import { createServer } from 'node:http'
import { once } from 'node:events'
import websocket from '@fastify/websocket'
import { createAdapter } from '@socket.io/redis-adapter'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { redisCluster } from 'fastify-hybrid-auth/redis'
import { createClient } from 'redis'
import { Server } from 'socket.io'

// The first ping comes after everything that is measured: the clients know only what they asked for.
const QUIET = 600_000
const BIND = { port: 0, host: '127.0.0.1', backlog: 4096 }

export const PATHS = { bare: '/room', ours: '/room', io: '/socket.io/?EIO=4&transport=websocket' }

export const CREATE = { bare: createBare, ours: createOurs, io: createIo }

async function createBare () {
  const members = new Set()
  const rooms = new Map()
  const app = Fastify()
  await app.register(websocket)
  app.get(PATHS.bare, { websocket: true }, socket => {
    members.add(socket)
    socket.on('close', () => {
      members.delete(socket)
      for (const sockets of rooms.values()) sockets.delete(socket)
    })
  })
  await app.listen(BIND)
  return {
    port: app.server.address().port,
    members,
    join (socket, room) { rooms.set(room, (rooms.get(room) ?? new Set()).add(socket)) },
    leave (socket, room) { rooms.get(room).delete(socket) },
    publish (room, payload) {
      const text = JSON.stringify({ type: 'message', room, payload })
      for (const socket of rooms.get(room)) socket.send(text)
    }
  }
}

/** @param redisUrl of a cluster; undefined: there is none */
async function createOurs ({ secret, redisUrl, clusterSecret }) {
  const members = new Set()
  const app = Fastify()
  await app.register(websocket)
  await app.register(hybridAuth, {
    jwt: { key: secret, algorithms: ['HS256'] }, heartbeat: { interval: QUIET },
    ...(redisUrl !== undefined && { cluster: redisCluster(await createClient({ url: redisUrl }).connect(), { secret: clusterSecret }) })
  })
  app.get(PATHS.ours, { websocket: true, auth: {} }, socket => {
    const connection = app.hybridAuth.connection(socket)
    members.add(connection)
    socket.on('close', () => { members.delete(connection) })
  })
  await app.listen(BIND)
  return {
    port: app.server.address().port,
    members,
    join: (connection, room) => connection.join(room),
    leave: (connection, room) => connection.leave(room),
    publish: (room, payload) => app.hybridAuth.rooms.publish(room, payload)
  }
}

async function createIo ({ redisUrl }) {
  const members = new Set()
  const server = createServer()
  const io = new Server(server, { transports: ['websocket'], serveClient: false, pingInterval: QUIET, ...(redisUrl !== undefined && { adapter: await adapterOf(redisUrl) }) })
  io.on('connection', socket => {
    members.add(socket)
    socket.on('disconnect', () => { members.delete(socket) })
  })
  await once(server.listen(BIND), 'listening')
  return {
    port: server.address().port,
    members,
    join: (socket, room) => socket.join(room),
    leave: (socket, room) => socket.leave(room),
    publish: (room, payload) => io.to(room).emit('message', payload)
  }
}

async function adapterOf (url) {
  const client = await createClient({ url }).connect()
  return createAdapter(client, await client.duplicate().connect())
}
