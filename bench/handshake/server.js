/**
 * Every variant as a route of one process. The peers stand on an instance of their own, without our plugin: it takes
 * hold of the WebSocket server of the instance that it is registered on. A twin of the bare instance shows what being
 * on another instance does to a figure.
 */
import { createSecretKey } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { setImmediate, setTimeout } from 'node:timers/promises'
import cookie from '@fastify/cookie'
import fastifyJwt from '@fastify/jwt'
import session from '@fastify/session'
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { introspection } from 'fastify-hybrid-auth/providers'
import { jwtVerify } from 'jose'
import jsonwebtoken from 'jsonwebtoken'
import { answerRequests } from '../ipc.js'
import { ALGORITHMS, verifyingKey } from '../tokens.js'

/** The peers count nobody's failures. What counting costs is in bench/abuse. */
const FAILURES = false

const SESSION_SECRET = 'a secret for benchmarks which signs the session cookies'
const USER = { userId: 'user-4711', role: 'agent', permissions: ['property:read', 'property:write'] }
const HOUR = 3_600_000
/** For the handshakes that come at once. */
const BACKLOG = 4096

const store = new session.MemoryStore()
const sessionOptions = { secret: SESSION_SECRET, store, cookie: { secure: false, maxAge: HOUR } }

const instances = {}
// How long an answer takes that is not held, in milliseconds.
const QUICK = 10
/** How often the sources of the instance `first` were asked; how many handshakes have come to it, how many are awaited, and until when. */
const first = { asked: 0, arrived: 0, awaited: 0, allHere: null, release () {} }

answerRequests({
  async start (keys) {
    instances.peers = await createPeers(keys)
    instances.twin = await createTwin()
    instances.ours = await createOurs(keys)
    instances.sources = await createSourced(keys)
    instances.first = await createFirst(keys)
    const ports = {}
    for (const [name, app] of Object.entries(instances)) {
      await app.listen({ port: 0, host: '127.0.0.1', backlog: BACKLOG })
      ports[name] = app.server.address().port
    }
    return { ports, cookie: await login() }
  },
  /** The CPU time used so far, in microseconds, once the last connection is gone and what it left behind is collected. */
  async cpu () {
    while (await countConnections() > 0) await setImmediate()
    globalThis.gc({ type: 'minor' })
    const { user, system } = process.cpuUsage()
    return user + system
  },
  /** From now on, sources answer when so many handshakes have come, or soon where it is 0. @returns how often they were asked before */
  expect ({ handshakes }) {
    const { asked } = first
    Object.assign(first, { asked: 0, arrived: 0, awaited: handshakes })
    first.allHere = handshakes === 0 ? null : new Promise(resolve => { first.release = resolve })
    return asked
  }
})

async function createPeers (keys) {
  const app = Fastify()
  await app.register(websocket)
  addRoutes(app, '/bare')

  for (const algorithm of ALGORITHMS) {
    const secret = algorithm === 'HS256' ? keys.HS256.publicKey : { public: keys[algorithm].publicKey }
    await addJwt(app, `/jwt/${algorithm}`, secret, { algorithms: [algorithm] })
  }
  await addJwt(app, '/jwt-cached/HS256', keys.HS256.publicKey, { algorithms: ['HS256'], cache: true })

  const key = createSecretKey(Buffer.from(keys.HS256.publicKey))
  app.register(async function viaJsonwebtoken (scope) {
    scope.decorateRequest('user', null)
    scope.addHook('onRequest', function verifyByJsonwebtoken (request, reply, done) {
      try {
        request.user = jsonwebtoken.verify(bearerOf(request), key, { algorithms: ['HS256'] })
        done()
      } catch {
        reply.code(401).send()
      }
    })
    addRoutes(scope, '/jsonwebtoken')
  })
  app.register(async function viaJose (scope) {
    scope.decorateRequest('user', null)
    scope.addHook('onRequest', async function verifyByJose (request) {
      const { payload } = await jwtVerify(bearerOf(request), key, { algorithms: ['HS256'] })
      request.user = payload
    })
    addRoutes(scope, '/jose')
  })

  app.register(async function viaSession (scope) {
    await scope.register(cookie)
    await scope.register(session, sessionOptions)
    scope.post('/login', async request => {
      request.session.user = USER
      return 'ok'
    })
    scope.register(async function guarded (inner) {
      inner.addHook('onRequest', function requireUser (request, reply, done) {
        if (request.session.user) done()
        else reply.code(401).send()
      })
      inner.get('/session/ws', { websocket: true }, keepOpen)
    })
  })
  return app
}

async function addJwt (app, path, secret, verify) {
  await app.register(async function viaFastifyJwt (scope) {
    await scope.register(fastifyJwt, { secret, verify })
    scope.addHook('onRequest', async function verifyByFastifyJwt (request) {
      await request.jwtVerify()
    })
    addRoutes(scope, path)
  })
}

async function createTwin () {
  const app = Fastify()
  await app.register(websocket)
  addRoutes(app, '/bare')
  return app
}

async function createOurs (keys) {
  const app = Fastify()
  await app.register(websocket)
  for (const algorithm of ALGORITHMS) {
    app.register(async function viaOurs (scope) {
      await scope.register(hybridAuth, { jwt: { key: verifyingKey(algorithm, keys[algorithm]), algorithms: [algorithm] }, failures: FAILURES })
      scope.get(`/${algorithm}/ws`, { websocket: true }, keepOpen)
      scope.get(`/${algorithm}/open`, { websocket: true, auth: false }, keepOpen)
      scope.get(`/${algorithm}/http`, { auth: true }, answer)
    })
  }

  const user = stored => stored.user
  app.register(async function viaStore (scope) {
    await scope.register(hybridAuth, { session: { user, store, secret: SESSION_SECRET }, failures: FAILURES })
    scope.get('/store/ws', { websocket: true }, keepOpen)
  })
  app.register(async function viaLoadedSession (scope) {
    await scope.register(cookie)
    await scope.register(session, sessionOptions)
    await scope.register(hybridAuth, { session: { user } })
    scope.get('/session/ws', { websocket: true }, keepOpen)
  })
  return app
}

/** Whom a credential names according to somebody else, who is asked once and then remembered for as long as the run takes. */
async function createSourced ({ HS256 }) {
  const endpoint = await createAuthorizationServer()
  const jwt = { key: verifyingKey('HS256', HS256), algorithms: ['HS256'] }
  const asked = introspection({ endpoint, clientId: 'bench', clientSecret: 'bench', maxAge: HOUR })
  const variants = {
    jwt: { jwt },
    twin: { jwt },
    // A token of any form is asked about.
    introspection: { introspection: asked },
    both: { jwt, introspection: asked },
    enrich: { jwt, enrich: { ask: () => ({ branch: 'north', plan: 'gold' }), maxAge: HOUR } }
  }
  const app = Fastify()
  await app.register(websocket)
  for (const [name, options] of Object.entries(variants)) {
    app.register(async function viaSource (scope) {
      await scope.register(hybridAuth, { ...options, failures: FAILURES })
      scope.get(`/${name}/ws`, { websocket: true }, keepOpen)
    })
  }
  return app
}

/** Sources that remember nothing yet. */
async function createFirst ({ HS256 }) {
  const count = async () => {
    first.asked++
    await (first.allHere ?? setTimeout(QUICK))
  }
  const endpoint = await createAuthorizationServer(count)
  const jwt = { key: verifyingKey('HS256', HS256), algorithms: ['HS256'] }
  const variants = {
    introspection: { introspection: introspection({ endpoint, clientId: 'bench', clientSecret: 'bench' }) },
    enrich: {
      jwt,
      async enrich () {
        await count()
        return { branch: 'north', plan: 'gold' }
      }
    }
  }
  const app = Fastify()
  await app.register(websocket)
  app.addHook('onRequest', function arrive (request, reply, done) {
    done()
    if (++first.arrived === first.awaited) first.release()
  })
  for (const [name, options] of Object.entries(variants)) {
    // A registration each: what one of them remembers is not known to the other.
    for (const how of ['held', 'quick']) {
      app.register(async function viaSource (scope) {
        await scope.register(hybridAuth, { ...options, failures: FAILURES })
        scope.get(`/${name}/${how}`, { websocket: true }, keepOpen)
      })
    }
  }
  return app
}

/** Says of every token that it is active, and what our JWTs say. @returns its introspection endpoint */
async function createAuthorizationServer (ready = async () => {}) {
  const server = createServer(async (request, response) => {
    request.resume()
    await ready()
    const exp = Math.floor((Date.now() + HOUR) / 1000)
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({
      active: true, iss: 'https://issuer.example.com', sub: USER.userId, role: USER.role, permissions: USER.permissions, exp
    }))
  }).listen({ port: 0, host: '127.0.0.1', backlog: BACKLOG })
  await once(server, 'listening')
  return `http://127.0.0.1:${server.address().port}/introspect`
}

function addRoutes (app, path) {
  app.get(path, { websocket: true }, keepOpen)
  app.get(`${path}/http`, answer)
}

function keepOpen () {}

function answer (_request, reply) {
  reply.send({ ok: true })
}

function bearerOf ({ headers: { authorization = '' } }) {
  return authorization.startsWith('Bearer ') ? authorization.slice('Bearer '.length) : ''
}

async function login () {
  const response = await instances.peers.inject({ method: 'POST', url: '/login' })
  return response.headers['set-cookie'].split(';', 1)[0]
}

async function countConnections () {
  const counts = await Promise.all(Object.values(instances).map(({ server }) => new Promise((resolve, reject) => {
    server.getConnections((error, count) => { error ? reject(error) : resolve(count) })
  })))
  return counts.reduce((sum, count) => sum + count, 0)
}
