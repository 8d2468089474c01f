/** The demo: one guarded WebSocket route, the same guard on HTTP, and a page to try both. Run it with `npm start`. */
import { hkdfSync, randomBytes, randomUUID } from 'node:crypto'
import { realpathSync } from 'node:fs'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import { createSigner } from 'fast-jwt'
import Fastify from 'fastify'
import { Registry } from 'prom-client'
import hybridAuth from 'fastify-hybrid-auth'
import { commands } from './commands.js'
import { addRoles, addTicker, ROOMS } from './market.js'
import { addPage } from './page.js'
import { memoryRoles, permissionsOf } from './roles.js'
import { createUsers } from './users.js'

export const HOST = '127.0.0.1'
const ISSUER = 'fastify-hybrid-auth-demo'
const TOKEN_LIFETIME = 300
const SESSION_LIFETIME = 30 * 60
const COOKIE = 'sessionId'

const CREDENTIALS = {
  type: 'object',
  required: ['username', 'password'],
  additionalProperties: false,
  properties: {
    username: { type: 'string', minLength: 1, maxLength: 64 },
    password: { type: 'string', minLength: 1, maxLength: 128 }
  }
}

const WHOM = {
  type: 'object',
  required: ['userId'],
  additionalProperties: false,
  properties: { userId: { type: 'string', minLength: 1, maxLength: 64 } }
}

/** One of several secrets that are made of one, so that processes which share that share all. */
export const derive = (secret, name) => Buffer.from(hkdfSync('sha256', secret, '', name, 32))

/**
 * The application, not listening yet, and what to type into its login form.
 * @param options.audit receives every decision of the guard
 * @param options.secret, options.store, options.cluster, options.roles what several processes have in common: see node.js
 * @param options.isTicking tells the rooms of properties: one of the processes
 */
export async function buildDemo ({ audit, secret = randomBytes(32), store, cluster, roles = memoryRoles(), isTicking = true } = {}) {
  const users = await createUsers(name => derive(secret, `the password of ${name}`))
  for (const { username, role } of users.logins) await roles.add(username, role)
  const key = derive(secret, 'tokens')
  const sign = createSigner({ key, algorithm: 'HS256', expiresIn: TOKEN_LIFETIME * 1000, iss: ISSUER, aud: ISSUER })

  const app = Fastify({ bodyLimit: 1024, logger: { level: 'warn' } })
  await app.register(cookie)
  await app.register(session, {
    secret: derive(secret, 'sessions').toString('hex'),
    store,
    cookieName: COOKIE,
    cookie: { secure: false, sameSite: 'lax', httpOnly: true, path: '/', maxAge: SESSION_LIFETIME * 1000 },
    saveUninitialized: false
  })
  await app.register(websocket, { options: { maxPayload: 16 * 1024 } })
  await app.register(hybridAuth, {
    // A credential says who it is. What somebody is and may do is looked up.
    jwt: {
      key, algorithms: ['HS256'], issuer: ISSUER, audience: ISSUER,
      user: async ({ sub, tenantId }) => ({ userId: sub, tenantId, role: await roles.get(sub) })
    },
    session: { user: async ({ user }) => user === undefined ? null : { ...user, role: await roles.get(user.userId) } },
    permissions: async ({ userId }) => permissionsOf(await roles.get(userId)),
    rooms: ROOMS,
    limits: { connections: { perUser: 10 }, connects: { perUser: 120 } },
    cluster,
    audit
  })

  await addPage(app)
  addLogin(app, users, sign, roles)
  addControl(app)
  addRoles(app, roles)
  if (isTicking) addTicker(app, users.tenants)

  app.get('/live', { websocket: true, auth: { rooms: true, rate: { capacity: 50, refillPerSecond: 10 } } }, (socket, request) => {
    const connection = app.hybridAuth.connection(socket)
    connection.send({ type: 'hello', auth: describe(request.auth) })
    connection.on('refresh', auth => { connection.send({ type: 'context', auth: describe(auth) }) })
    socket.on('message', (data, isBinary) => { socket.send(data, { binary: isBinary }) })
  })
  app.get('/me', { auth: true }, async request => ({ ...describe(request.auth), role: request.auth.role }))
  app.get('/admin', { preHandler: app.hybridAuth.require({ role: 'admin' }) }, async request =>
    ({ message: `Welcome, ${request.auth.userId}.` }))

  return { app, logins: users.logins }
}

function addLogin (app, users, sign, roles) {
  app.post('/token', { schema: { body: CREDENTIALS } }, async (request, reply) => {
    reply.headers({ 'cache-control': 'no-store', pragma: 'no-cache' })
    const user = await users.verify(request.body)
    if (user === null) {
      // RFC 6749, section 5.2
      return reply.code(400).send({ error: 'invalid_grant', error_description: 'The user name or the password is wrong' })
    }
    const { userId: sub, tenantId } = user
    return { access_token: sign({ sub, tenantId, jti: randomUUID() }), token_type: 'Bearer', expires_in: TOKEN_LIFETIME }
  })

  app.post('/login', { schema: { body: CREDENTIALS } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    const user = await users.verify(request.body)
    if (user === null) {
      return reply.code(401).send({ error: 'invalid_credentials', error_description: 'The user name or the password is wrong' })
    }
    // A new id: one that was planted before the login must not become the session.
    await request.session.regenerate()
    // Tells the session from an older one where /revoke ends those.
    request.session.user = { ...user, issuedAt: Date.now() }
    return { user: { ...user, role: await roles.get(user.userId) } }
  })

  app.post('/logout', { auth: { types: ['session'] } }, async (request, reply) => {
    await request.session.destroy()
    return reply.clearCookie(COOKIE, { path: '/' }).code(204).send()
  })

  // Who is signed in, if anybody: the page asks when it opens.
  app.get('/session', { auth: { types: ['session'], optional: true } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { user: app.hybridAuth.contextOf(request)?.user ?? null }
  })
}

function addControl (app) {
  // What the user has by now; the next login is good again.
  app.post('/revoke', { auth: { role: 'admin' }, schema: { body: WHOM } }, async request =>
    app.hybridAuth.revoke({ userId: request.body.userId, issuedBefore: Date.now() }, { reason: `by ${request.auth.userId}` }))

  app.post('/ticket', { auth: true }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { ticket: await app.hybridAuth.issueTicket(request) }
  })

  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  app.get('/metrics', { auth: { role: 'admin' } }, async (request, reply) => reply.type(registry.contentType).send(await registry.metrics()))

  app.get('/status', { auth: { role: 'admin' } }, async () => ({ ...app.hybridAuth.status(), sockets: app.hybridAuth.count() }))
}

/** The context without what identifies the credential itself, and without the role, which a socket keeps as it was when it came. */
function describe ({ authType, via, userId, permissions, tenantId, issuer, authenticatedAt, expiresAt, version, fallbackFrom }) {
  return { authType, via, userId, permissions, tenantId, issuer, authenticatedAt, expiresAt, version, fallbackFrom }
}

async function start () {
  const { app, logins } = await buildDemo({ audit: event => { printDecision(event) } })
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => app.close())
  try {
    await app.listen({ host: HOST, port: Number(process.env.PORT || 3000) })
  } catch (error) {
    console.error(error.code === 'EADDRINUSE' ? 'The port is taken. Try another: PORT=3001 npm start' : error.message)
    process.exitCode = 1
    return app.close()
  }
  const origin = `http://${HOST}:${app.server.address().port}`
  console.log(commands(origin, logins))
  console.log(`# Or open ${origin}/ and sign in as`)
  for (const { username, password, role } of logins) console.log(`#   ${username} ${password} (${role})`)
  console.log('# Ctrl+C stops the server. What it decides from now on:\n')
}

/** @param name of the process, where there are several */
export function printDecision ({ type, time, route, websocket, room, command, code, closeCode, reason, userId, authType, via }, name) {
  const where = route === undefined ? [] : [websocket ? 'socket' : 'http', route]
  const who = userId == null || authType == null ? [] : [userId, authType, `via ${via}`]
  console.log([new Date(time).toLocaleTimeString('en-GB'), name, type, ...where, ...who, room, command, code ?? closeCode ?? reason].filter(Boolean).join('  '))
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === import.meta.filename) await start()
