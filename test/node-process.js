// One process of an application whose others share its Redis; test/processes.ts starts it and talks to it.
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import { RedisStore } from 'connect-redis'
import Fastify from 'fastify'
import { createClient } from 'redis'
import { redisCluster } from '../dist/esm/lib/cluster/redis.js'
import hybridAuth from '../dist/esm/lib/index.js'

// As in test/helpers.ts, which Node cannot load.
const SECRET = 'a secret for tests, 32 bytes or more'
const SESSION_SECRET = 'another secret for tests, which signs the session cookies'

const { redisUrl, secret = SECRET, cluster, auth = {} } = JSON.parse(process.env.NODE_OPTIONS_JSON)

const tell = message => { if (process.connected) process.send(message) }
process.on('disconnect', () => { process.exit() })

const client = createClient({ url: redisUrl, socket: { reconnectStrategy: () => 100 } })
client.on('error', () => {})
await client.connect()

const app = Fastify()
await app.register(cookie)
await app.register(session, {
  secret: SESSION_SECRET,
  store: new RedisStore({ client, prefix: 'sess:' }),
  cookie: { secure: false },
  saveUninitialized: false
})
await app.register(websocket)
await app.register(hybridAuth, {
  ...auth,
  jwt: { key: secret, algorithms: ['HS256'], ...auth.jwt },
  session: { user: stored => stored.user ?? null, ...auth.session },
  cluster: redisCluster(client, cluster)
})
for (const name of ['cluster_lost', 'cluster_recovered']) app.hybridAuth.events.on(name, event => { tell({ event }) })

app.get('/live', { websocket: true }, (socket, request) => {
  socket.send(JSON.stringify({ id: app.hybridAuth.connection(socket).id, userId: request.auth.userId }))
  socket.on('message', (data, isBinary) => { socket.send(data, { binary: isBinary }) })
})
app.get('/me', { auth: true }, async request => request.auth)
app.post('/login', async request => {
  await request.session.regenerate()
  request.session.user = request.body
  return { ok: true }
})
app.post('/logout', async request => {
  await request.session.destroy()
  return { ok: true }
})
app.post('/ticket', { auth: true }, async request => ({ ticket: await app.hybridAuth.issueTicket(request) }))

app.post('/revoke', async ({ body }) => app.hybridAuth.revoke(body.target, body.options))
app.post('/disconnect', async ({ body }) => app.hybridAuth.disconnect(body.filter, body.options))
app.post('/permissions', async ({ body }) => app.hybridAuth.setPermissions(body.userId, body.permissions))
app.get('/status', async () => ({ ...app.hybridAuth.status(), sockets: app.hybridAuth.count() }))

await app.listen({ port: 0, host: '127.0.0.1' })
tell({ port: app.server.address().port })
