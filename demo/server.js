/** The demo: one guarded WebSocket route, the same guard on HTTP, and a dashboard to see both. Run it with `npm start`. */
import { hkdfSync, randomBytes } from 'node:crypto'
import { realpathSync } from 'node:fs'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import { createSigner } from 'fast-jwt'
import Fastify from 'fastify'
import { Registry } from 'prom-client'
import hybridAuth from 'fastify-hybrid-auth'
import { createBoard } from './board.js'
import { commands } from './commands.js'
import { addControl } from './control.js'
import { createEndings } from './endings.js'
import { createFamilies } from './families.js'
import { createJournal } from './journal.js'
import { addLive } from './live.js'
import { addLogin, COOKIE } from './login.js'
import { addRoles, addTalk, addTicker, ROOMS } from './market.js'
import { addOperator } from './operator.js'
import { addPage } from './page.js'
import { createPasswords } from './passwords.js'
import { loginLines, printDecision } from './print.js'
import { memoryRoles, permissionsOf } from './roles.js'
import { addSessions } from './sessions.js'
import { createSignins, LONGEST } from './signins.js'
import { closeInTime, exitInTime } from './stop.js'
import { memoryStore } from './store.js'
import { addTokens } from './tokens.js'
import { createUsers } from './users.js'

export const HOST = '127.0.0.1'
const ISSUER = 'fastify-hybrid-auth-demo'
/** In seconds: short, so that one sees tokens being replaced. */
const TOKEN_LIFETIME = Number(process.env.DEMO_TOKEN_LIFETIME || 60)
const SESSION_LIFETIME = 30 * 60
/** For a request to come, head and body. Fastify's own default is no limit. */
const REQUEST_TIME = 10_000

/** One of several secrets that are made of one, so that processes which share that share all. */
export const derive = (secret, name) => Buffer.from(hkdfSync('sha256', secret, '', name, 32))

/**
 * The application, not listening yet, and what to type into its login form.
 * @param options.audit receives every decision of the guard
 * @param options.node the name of this process
 * @param options.secret, options.sessions, options.store, options.cluster, options.roles what several processes have in common: see node.js
 * @param options.tokenLifetime in seconds
 * @param options.isTicking tells the rooms of properties: one of the processes
 */
export async function buildDemo ({
  audit, node = 'node 1', secret = randomBytes(32), sessions = new session.MemoryStore(), store = memoryStore(),
  cluster, roles = memoryRoles(), isTicking = true, tokenLifetime = TOKEN_LIFETIME
} = {}) {
  const users = await createUsers(name => derive(secret, `the password of ${name}`))
  for (const { username, role } of users.logins) await roles.add(username, role)
  const key = derive(secret, 'tokens')
  const sign = createSigner({ key, algorithm: 'HS256', expiresIn: tokenLifetime * 1000, iss: ISSUER, aud: ISSUER })
  const journal = createJournal({ store, node })
  const note = event => {
    journal.note(event)
    audit?.(event)
  }

  const app = Fastify({
    bodyLimit: 1024,
    logger: { level: 'warn' },
    requestTimeout: REQUEST_TIME,
    // Node takes the longer of the two for the body.
    http: { headersTimeout: REQUEST_TIME, connectionsCheckingInterval: 1000 }
  })
  closeInTime(app)
  await app.register(cookie)
  await app.register(session, {
    secret: derive(secret, 'sessions').toString('hex'),
    store: sessions,
    cookieName: COOKIE,
    cookie: { secure: false, sameSite: 'lax', httpOnly: true, path: '/', maxAge: SESSION_LIFETIME * 1000 },
    saveUninitialized: false
  })
  await app.register(websocket, { options: { maxPayload: 16 * 1024 } })
  await app.register(hybridAuth, {
    // A credential says who it is. What somebody is and may do is looked up.
    jwt: { key, algorithms: ['HS256'], issuer: ISSUER, audience: ISSUER, user: ({ sub, tenantId }) => ({ userId: sub, tenantId }) },
    session: { user: ({ user }) => user === undefined || Date.now() - user.issuedAt > LONGEST ? null : user },
    enrich: async ({ userId }) => ({ role: await roles.get(userId) }),
    permissions: ({ role }) => permissionsOf(role),
    rooms: ROOMS,
    limits: { connections: { perUser: 10 }, connects: { perUser: 120 } },
    cluster,
    audit: note
  })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)

  const signins = createSignins(store)
  const endings = createEndings({ app, signins, sessions, issuer: ISSUER })
  const families = createFamilies(signins, sign, tokenLifetime)
  const board = createBoard({ app, store, node, registry })
  const verify = createPasswords({ users, note })

  await addPage(app)
  addLogin(app, { verify, signins, endings })
  addTokens(app, { verify, families, endings, lifetime: tokenLifetime, note })
  addSessions(app, { signins, sessions, endings })
  addLive(app, board.opened)
  addControl(app, { endings, registry })
  addRoles(app, roles)
  addTalk(app)
  addOperator(app, { board, endings, roles })
  journal.add(app)
  if (isTicking) addTicker(app, users.tenants)

  return { app, logins: users.logins }
}

async function start () {
  const { app, logins } = await buildDemo({ audit: event => { printDecision(event) } })
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      exitInTime()
      app.close()
    })
  }
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
  console.log(loginLines(logins))
  console.log(`# A token lives for ${TOKEN_LIFETIME} seconds: DEMO_TOKEN_LIFETIME=300 npm start makes it 300`)
  console.log('# Ctrl+C stops the server. What it decides from now on:\n')
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === import.meta.filename) await start()
