import Fastify, { type FastifyRequest, type preHandlerHookHandler } from 'fastify'
import { createPublicKey } from 'node:crypto'
import { Registry } from 'prom-client'
import { createClient } from 'redis'
import { describe, expect, test } from 'tstyche'
import hybridAuth, {
  hybridAuth as named, type AuditEvent, type AuthContext, type AuthErrorCode, type BackchannelLogoutOptions, type Claims,
  type CommandResult, type HybridAuthOptions, type Identity, type OAuth2Context, type PublishResult, type RevokeTarget, type RoomOptions, type RouteAuth, type Verification
} from '../lib/index.js'
import { redisCluster } from '../lib/cluster/redis.js'
import { discover, introspection, jwks } from '../lib/verify/providers.js'
import { CLOSE, type CloseAction, type PollAnswer } from '../lib/protocol.js'

declare module '../lib/index.js' {
  interface AuthUser { name: string }
}
declare module 'fastify' {
  interface Session { user?: Identity }
}

declare const context: AuthContext
declare const request: FastifyRequest
const app = Fastify()
const jwt = { key: 'secret', algorithms: ['HS256'] } as const
const user = () => ({ userId: 'alice', name: 'Alice' })

describe('registration', () => {
  test('the default and the named export are the same plugin', () => {
    expect(hybridAuth).type.toBe<typeof named>()
  })

  test('every kind of key is accepted, and a JWK is not', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, key: Buffer.from('secret'), user } })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, key: createPublicKey('pem') } })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, key: { one: 'pem', two: { key: 'pem', algorithm: 'RS256' as const } } } })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, key: async () => null } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, key: 1 } })
  })

  test('algorithms, issuer and audience are exact', () => {
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { key: 'secret' } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { key: 'secret', algorithms: ['none'] } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, issuer: /./ } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt, origins: [/./] })
  })

  test('a mapper returns the whole identity, with the fields that the application declared', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt, session: { user } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt, session: { user: () => ({ userId: 'alice' }) } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt, session: { user: () => ({ name: 'Alice' }) } })
  })
})

describe('routes', () => {
  test('WebSocket and HTTP routes take auth', () => {
    expect(app.get).type.toBeCallableWith('/live', { websocket: true as const, auth: { permissions: ['a'], optional: true } }, () => {})
    expect(app.get).type.toBeCallableWith('/open', { websocket: true as const, auth: false }, () => {})
    expect(app.get).type.toBeCallableWith('/me', { auth: (auth: AuthContext) => auth.role === 'admin' }, () => {})
    expect(app.get).type.not.toBeCallableWith('/me', { auth: { roles: 'admin' } }, () => {})
    expect(app.get).type.not.toBeCallableWith('/me', { auth: { types: ['basic'] } }, () => {})
  })

  test('require() gives a preHandler', () => {
    expect(app.hybridAuth.require({ anyPermission: ['a', 'b'] })).type.toBe<preHandlerHookHandler>()
    expect(app.hybridAuth.require).type.not.toBeCallableWith({ optional: true })
  })
})

describe('the context', () => {
  test('request.auth is never null, contextOf() may be', () => {
    expect(request.auth).type.toBe<AuthContext>()
    expect(app.hybridAuth.contextOf(request)).type.toBe<AuthContext | null>()
  })

  test('authType tells the members apart', () => {
    if (context.authType === 'session') {
      expect(context.sessionId).type.toBe<string>()
      expect(context).type.not.toHaveProperty('claims')
    } else {
      expect(context.tokenId).type.toBe<string>()
      expect(context.claims.sub).type.toBe<string | undefined>()
      expect(context).type.not.toHaveProperty('sessionId')
    }
  })

  test('user has the declared fields, and nothing can be assigned', () => {
    expect(context.user.name).type.toBe<string>()
    expect<Pick<AuthContext, 'userId'>>().type.toBe<{ readonly userId: string }>()
    expect(context.permissions).type.toBe<readonly string[]>()
  })
})

describe('the cluster', () => {
  test('a target names one thing, and may be narrowed', () => {
    expect<RevokeTarget>().type.toBeAssignableFrom({ userId: 'alice', issuer: null, tenantId: 'acme', issuedBefore: 1 })
    expect<RevokeTarget>().type.toBeAssignableFrom({ sessionId: 's' })
    expect<RevokeTarget>().type.toBeAssignableFrom({ jti: 'j', iss: 'https://issuer.example' })
    expect<RevokeTarget>().type.toBeAssignableFrom({ token: 'a.b.c' })
    expect<RevokeTarget>().type.not.toBeAssignableFrom({ issuedBefore: 1 })
    expect<RevokeTarget>().type.not.toBeAssignableFrom({ userId: undefined })
  })

  test('commands answer what they met', () => {
    expect(app.hybridAuth.revoke({ userId: 'alice' }, { mode: { reauthWithin: 1000 }, reason: 'why' })).type.toBe<Promise<CommandResult>>()
    expect(app.hybridAuth.disconnect({}, { code: 'Forbidden' })).type.toBe<Promise<CommandResult>>()
    expect(app.hybridAuth.setPermissions('alice', ['read'])).type.toBe<Promise<CommandResult>>()
    expect(app.hybridAuth.issueTicket(request, { ttl: 1000 })).type.toBe<Promise<string>>()
  })

  test('a client of node-redis is taken as it is made, whichever protocol it speaks', () => {
    expect(redisCluster).type.toBeCallableWith(createClient(), { secret: ['one', Buffer.from('two')], onClusterLoss: 'close' })
    expect(redisCluster).type.toBeCallableWith(createClient({ RESP: 2 }))
    expect(redisCluster).type.not.toBeCallableWith('redis://127.0.0.1')
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, cluster: redisCluster(createClient()) })
  })

  test('events are typed by their name', () => {
    app.hybridAuth.events.on('cluster_recovered', event => { expect(event.converged).type.toBe<number>() })
    app.hybridAuth.events.on('revoked', event => { expect(event.reason).type.toBe<string>() })
  })
})

describe('limits', () => {
  test('of a route: messages, bytes, and of a user', () => {
    expect<RouteAuth>().type.toBeAssignableFrom({ rate: { capacity: 50, refillPerSecond: 10 } })
    expect<RouteAuth>().type.toBeAssignableFrom({ rate: { bytes: { capacity: 1, refillPerSecond: 1 }, perUser: { capacity: 1, refillPerSecond: 1, shared: true } } })
    expect<RouteAuth>().type.not.toBeAssignableFrom({ rate: { bytes: 1000 } })
  })

  test('of a registration', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, failures: { max: 5, block: 'address' as const }, limits: { connects: { perIp: 60 } }, report: ['origin' as const] })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, failures: false as const })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, user }, failures: true as const })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, user }, report: ['permissions' as const] })
  })
})

describe('identity providers', () => {
  test('their keys are keys', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user, algorithms: ['RS256' as const], key: discover(['https://a.example', 'https://b.example']) } })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user, algorithms: ['ES256' as const], key: jwks({ 'https://a.example': 'https://a.example/keys' }, { maxAge: 1000 }) } })
    expect(discover).type.not.toBeCallableWith({ 'https://a.example': 'https://a.example' })
  })

  test('they are asked about opaque tokens', () => {
    const source = introspection({ endpoint: 'https://a.example/introspect', clientId: 'api', clientSecret: 'secret', user: claims => ({ userId: claims.sub ?? '', name: '' }) })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ introspection: source })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ introspection: { endpoint: 'https://a.example/introspect' } })
    expect(introspection).type.toBeCallableWith({ endpoint: new URL('https://a.example'), clientId: 'api', clientKey: { key: 'PEM', algorithm: 'ES256' as const }, issuer: 'https://a.example' })
    expect(introspection).type.not.toBeCallableWith({ endpoint: 'https://a.example', clientId: 'api', clientKey: { key: 'PEM', algorithm: 'HS256' as const } })
    expect(introspection).type.not.toBeCallableWith({ clientId: 'api' })
    if (context.authType === 'oauth2') {
      expect(context).type.toBe<OAuth2Context>()
      expect(context).type.not.toHaveProperty('sessionId')
    }
  })

  test('they tell of logouts', () => {
    expect(app.register(hybridAuth.backchannelLogout, { path: '/logout' })).type.toBeAssignableTo<object>()
    expect<BackchannelLogoutOptions>().type.toBeAssignableFrom({ path: '/logout', audience: ['rp'], onLogout: async (claims: Claims) => claims.sid })
    expect<BackchannelLogoutOptions>().type.not.toBeAssignableFrom({ audience: 'rp' })
  })

  test('what they do not know is asked of the application', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, enrich: async ({ userId }: Identity) => ({ name: userId }) })
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, enrich: { ask: () => null, maxAge: 1000, shared: true } })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, user }, enrich: () => 'alice' })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, user }, enrich: { maxAge: 1000 } })
  })
})

describe('what somebody may do', () => {
  test('permissions have one source', () => {
    expect<HybridAuthOptions>().type.toBeAssignableFrom({ jwt: { ...jwt, user }, permissions: async ({ userId }: Identity) => [userId] })
    expect<HybridAuthOptions>().type.not.toBeAssignableFrom({ jwt: { ...jwt, user }, permissions: ['read'] })
    expect(app.hybridAuth.refreshPermissions('alice')).type.toBe<Promise<CommandResult>>()
    expect(app.hybridAuth.setPermissions).type.toBeCallableWith('alice', [], { issuer: null, tenantId: 'acme' })
    expect(app.hybridAuth.setPermissions).type.not.toBeCallableWith('alice', [], { tenantId: undefined })
  })

  test('a route has rules by message type, step-up, and rooms', () => {
    expect<RouteAuth>().type.toBeAssignableFrom({ messages: { a: { role: 'agent' }, b: (auth: AuthContext) => auth.role === 'b', default: 'allow' as const, field: 'event' } })
    expect<RouteAuth>().type.toBeAssignableFrom({ acr: ['mfa', 'phr'], maxAuthAge: 60_000, rooms: true })
    expect<RouteAuth>().type.not.toBeAssignableFrom({ messages: { a: 1 } })
    expect(app.hybridAuth.require).type.not.toBeCallableWith({ rooms: true })
  })

  test('rooms are bound by patterns or by a function', () => {
    expect<RoomOptions>().type.toBeAssignableFrom({ patterns: ['tenant/:tenantId/agents'] })
    expect<RoomOptions>().type.toBeAssignableFrom({ patterns: { 'a/:userId': { join: true, publish: { role: 'agent' } }, b: false, c: { permissions: ['c'] } } })
    expect<RoomOptions>().type.toBeAssignableFrom({ authorize: (_auth: AuthContext, room: string, action: 'join' | 'publish') => room === action })
    expect(app.hybridAuth.rooms.publish('a', { b: 1 })).type.toBe<Promise<PublishResult>>()
    expect(app.hybridAuth.rooms.count('a')).type.toBe<number>()
    expect(app.hybridAuth.rooms.join).type.not.toBeCallableWith('a', 'b')
  })

  test('a pattern keeps a history, which is polled, and ids', () => {
    expect<RoomOptions>().type.toBeAssignableFrom({ patterns: { a: { join: true, history: 100, repeats: 60_000 }, b: { join: true, history: { messages: 5, maxAge: 1000 } } } })
    expect<RoomOptions>().type.not.toBeAssignableFrom({ patterns: { a: { join: true, history: { maxAge: 1000 } } } })
    expect<RoomOptions>().type.not.toBeAssignableFrom({ patterns: { a: { join: true, history: true } } })
    expect(app.hybridAuth.rooms.poll(request)).type.toBe<Promise<PollAnswer>>()
    expect(app.hybridAuth.isRepeat(context, 'an id', { window: 1000 })).type.toBe<Promise<boolean>>()
    expect(app.hybridAuth.isRepeat).type.not.toBeCallableWith(context, {})
    expect(app.hybridAuth.isRepeat).type.not.toBeCallableWith(context, 1, { windows: 1000 })
  })

  test('a connection tells of its rooms', () => {
    const [connection] = app.hybridAuth.connections()
    expect(connection?.rooms).type.toBe<ReadonlySet<string> | undefined>()
    connection?.on('left', (room, reason) => { expect([room, reason]).type.toBe<string[]>() })
  })
})

describe('what is told', () => {
  test('audit events are a union on type', () => {
    expect<Extract<AuditEvent, { type: 'fallback' }>['code']>().type.toBe<AuthErrorCode>()
    expect<Extract<AuditEvent, { type: 'refused' }>['userId']>().type.toBe<string | null>()
    expect<Extract<AuditEvent, { type: 'authenticated' }>['userId']>().type.toBe<string>()
    expect<Extract<AuditEvent, { type: 'closed' }>['framesIn']>().type.toBe<number>()
    expect<Extract<AuditEvent, { type: 'command' }>>().type.not.toHaveProperty('sessionId')
  })

  test('a registry of prom-client is taken as it is', () => {
    expect(app.hybridAuth.metrics).type.toBeCallableWith(new Registry())
    expect(app.hybridAuth.metrics).type.not.toBeCallableWith({})
  })

  test('what subscribers of the TracingChannel get holds no request', () => {
    expect<Verification['credential']>().type.toBe<'token' | 'session' | 'ticket' | 'none'>()
    expect<Verification>().type.not.toHaveProperty('request')
  })

  test('close codes are literals', () => {
    expect(CLOSE.AuthenticationExpired.code).type.toBe<4002>()
    expect(CLOSE.AuthenticationExpired.action).type.toBe<CloseAction>()
  })
})
