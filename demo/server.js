/** The demo: one guarded WebSocket route, the same guard on HTTP, and a page to try both. Run it with `npm start`. */
import { randomBytes, randomUUID } from 'node:crypto'
import { realpathSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import { createSigner } from 'fast-jwt'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { commands } from './commands.js'
import { createUsers } from './users.js'

const HOST = '127.0.0.1'
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

const PAGE_HEADERS = {
  'content-security-policy': [
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-cache',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff'
}

const inPublic = name => new URL(`public/${name}`, import.meta.url)
const FILES = [
  ['/', 'text/html; charset=utf-8', inPublic('index.html')],
  ['/app.js', 'text/javascript; charset=utf-8', inPublic('app.js')],
  ['/style.css', 'text/css; charset=utf-8', inPublic('style.css')],
  ['/icon.svg', 'image/svg+xml', inPublic('icon.svg')],
  // The close codes and the subprotocol's name come from the library itself.
  ['/protocol.js', 'text/javascript; charset=utf-8', new URL(import.meta.resolve('fastify-hybrid-auth/protocol'))]
]

/**
 * The application, not listening yet, and what to type into its login form.
 * @param options.audit receives every decision of the guard
 */
export async function buildDemo ({ audit } = {}) {
  const users = await createUsers()
  const key = randomBytes(32)
  const sign = createSigner({ key, algorithm: 'HS256', expiresIn: TOKEN_LIFETIME * 1000, iss: ISSUER, aud: ISSUER })

  const app = Fastify({ bodyLimit: 1024, logger: { level: 'warn' } })
  await app.register(cookie)
  await app.register(session, {
    secret: randomBytes(32).toString('hex'),
    cookieName: COOKIE,
    cookie: { secure: false, sameSite: 'lax', httpOnly: true, path: '/', maxAge: SESSION_LIFETIME * 1000 },
    saveUninitialized: false
  })
  await app.register(websocket, { options: { maxPayload: 16 * 1024 } })
  await app.register(hybridAuth, {
    jwt: { key, algorithms: ['HS256'], issuer: ISSUER, audience: ISSUER },
    session: { user: session => session.user ?? null },
    audit
  })

  await addPage(app)
  addLogin(app, users, sign)

  app.get('/live', { websocket: true }, (socket, request) => {
    socket.send(JSON.stringify({ type: 'hello', auth: describe(request.auth) }))
    socket.on('message', (data, isBinary) => { socket.send(data, { binary: isBinary }) })
  })
  app.get('/me', { auth: true }, async request => describe(request.auth))
  app.get('/admin', { preHandler: app.hybridAuth.require({ role: 'admin' }) }, async request =>
    ({ message: `Welcome, ${request.auth.userId}.` }))

  return { app, logins: users.logins }
}

function addLogin (app, users, sign) {
  app.post('/token', { schema: { body: CREDENTIALS } }, async (request, reply) => {
    reply.headers({ 'cache-control': 'no-store', pragma: 'no-cache' })
    const user = await users.verify(request.body)
    if (user === null) {
      // RFC 6749, section 5.2
      return reply.code(400).send({ error: 'invalid_grant', error_description: 'The user name or the password is wrong' })
    }
    const { userId: sub, role, permissions } = user
    return { access_token: sign({ sub, role, permissions, jti: randomUUID() }), token_type: 'Bearer', expires_in: TOKEN_LIFETIME }
  })

  app.post('/login', { schema: { body: CREDENTIALS } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    const user = await users.verify(request.body)
    if (user === null) {
      return reply.code(401).send({ error: 'invalid_credentials', error_description: 'The user name or the password is wrong' })
    }
    // A new id: one that was planted before the login must not become the session.
    await request.session.regenerate()
    request.session.user = user
    return { user }
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

async function addPage (app) {
  for (const [path, type, file] of FILES) {
    const body = await readFile(file)
    app.get(path, async (request, reply) => reply.headers(PAGE_HEADERS).type(type).send(body))
  }
}

/** The context without what identifies the credential itself. */
function describe ({ authType, via, userId, role, permissions, tenantId, issuer, authenticatedAt, expiresAt, version, fallbackFrom }) {
  return { authType, via, userId, role, permissions, tenantId, issuer, authenticatedAt, expiresAt, version, fallbackFrom }
}

async function start () {
  const { app, logins } = await buildDemo({ audit: printDecision })
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

function printDecision ({ type, time, route, websocket, code, userId, authType, via }) {
  const who = userId === undefined ? [] : [userId, authType, `via ${via}`]
  console.log([new Date(time).toLocaleTimeString('en-GB'), type, websocket ? 'socket' : 'http', route, ...who, code ?? ''].join('  ').trimEnd())
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === import.meta.filename) await start()
