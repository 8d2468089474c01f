/** An authorization server that records what it was asked and answers as told, and servers that ask it. */
import { constants, randomBytes, verify, type KeyObject } from 'node:crypto'
import type { IncomingHttpHeaders, RequestListener, ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { HybridAuthOptions } from '../lib/index.js'
import { introspection, type AssertionAlgorithm, type IntrospectionOptions, type IntrospectionSource } from '../lib/verify/providers.js'
import { secret as canary } from './canary.js'
import { inSeconds, type Upgrade, upgrade } from './helpers.js'
import type { LiveOptions } from './live.js'
import { fakeIssuer, says, saysJson, type FakeIssuer } from './provider.js'
import { audited, type Audited } from './revoking.js'
import { ask, deferred, type Answer } from './stores.js'

export const CLIENT = { id: 'resource-server', secret: canary('the secret of whoever asks about tokens') }

/** One question, as it arrived. */
export interface Question {
  readonly method: string
  readonly url: string
  readonly headers: IncomingHttpHeaders
  readonly form: URLSearchParams
  readonly token: string
}

export interface FakeAuthorizationServer {
  readonly door: FakeIssuer
  readonly endpoint: string
  readonly asked: Question[]
  /** How many questions are open. */
  readonly waiting: () => number
  /** Answers everything; null: what is known of the token. */
  answer: RequestListener | null
  /** A new opaque token, and what is said of it: alice, unless that says otherwise. A member that is undefined is not said. */
  issue: (changes?: object) => string
  /** What is said of a token from now on. */
  says: (token: string, answer: unknown) => void
  /** It is not active any more. */
  revoke: (token: string) => void
  /** What is asked from now on is answered when the test says so, as is known then. */
  hold: () => () => void
  /** How often it was asked about this token. */
  times: (token: string) => number
}

export const opaque = () => canary(randomBytes(24).toString('base64url'))
/** What is said of a token that is good. */
export const active = (changes: object = {}) => ({ active: true, sub: 'alice', scope: 'read write', exp: inSeconds(300), iat: inSeconds(0), token_type: 'Bearer', ...changes })

export async function authorizationServer (t: Test): Promise<FakeAuthorizationServer> {
  const door = await fakeIssuer(t)
  const known = new Map<string, unknown>()
  const asked: Question[] = []
  let gate: Promise<unknown> | null = null
  let waiting = 0
  const as: FakeAuthorizationServer = {
    door,
    endpoint: `${door.issuer}/introspect`,
    asked,
    waiting: () => waiting,
    answer: null,
    issue (changes) {
      const token = opaque()
      known.set(token, active(changes))
      return token
    },
    says (token, answer) { known.set(token, answer) },
    revoke (token) { known.delete(token) },
    hold () {
      const { promise, resolve } = deferred<undefined>()
      gate = promise
      return () => {
        gate = null
        resolve(undefined)
      }
    },
    times: token => asked.filter(question => question.token === token).length
  }
  door.rest = (request, response) => {
    const { method = '', url = '', headers } = request
    text(request).then(async body => {
      const form = new URLSearchParams(body)
      const token = form.get('token') ?? ''
      asked.push({ method, url, headers, form, token })
      waiting++
      await gate
      waiting--
      const answer = as.answer ?? saysJson(known.get(token) ?? { active: false })
      answer(request, response)
    }).catch(() => { response.destroy() })
  }
  return as
}

/** What RFC 6749 §2.3.1 puts into the header. */
export function basicOf ({ headers: { authorization = '' } }: Question): { scheme: string, id: string, secret: string } {
  const [scheme = '', encoded = ''] = authorization.split(' ')
  const decoded = Buffer.from(encoded, 'base64').toString('latin1')
  const colon = decoded.indexOf(':')
  const [id = '', secret = ''] = [decoded.slice(0, colon), decoded.slice(colon + 1)].map(part => decodeURIComponent(part.replaceAll('+', ' ')))
  return { scheme, id, secret }
}

export interface Assertion { readonly isSigned: boolean, readonly header: Record<string, unknown>, readonly payload: Record<string, unknown> }

/** What RFC 7523 §2.2 puts into the form, and whether that key has signed it. */
export function assertionOf ({ form }: Question, key: KeyObject, algorithm: AssertionAlgorithm): Assertion {
  const [header = '', payload = '', signature = ''] = (form.get('client_assertion') ?? '').split('.')
  const input = Buffer.from(`${header}.${payload}`)
  const hash = `sha${algorithm.slice(2)}`
  const given = algorithm.startsWith('ES')
    ? { key, dsaEncoding: 'ieee-p1363' as const }
    : algorithm === 'PS256' ? { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 } : { key, padding: constants.RSA_PKCS1_PADDING }
  return { isSigned: verify(hash, input, given, Buffer.from(signature, 'base64url')), header: parse(header), payload: parse(payload) }
}

const parse = (segment: string) => JSON.parse(Buffer.from(segment, 'base64url').toString()) as Record<string, unknown>

/** An answer that comes piece by piece. */
export const dribbles = (write: (response: ServerResponse) => void): RequestListener => (_request, response) => {
  response.writeHead(200, { 'content-type': 'application/json' })
  write(response)
}

/** A good answer in any other clothes. */
export const dressed = (how: Parameters<typeof says>[1], changes: object = {}): RequestListener => (request, response) => { says(JSON.stringify(active(changes)), how)(request, response) }

/** The option as most tests want it: everything is asked anew, unless the test says otherwise. */
export function introspectionOf ({ endpoint }: Pick<FakeAuthorizationServer, 'endpoint'>, options: Partial<IntrospectionOptions> = {}): IntrospectionSource {
  return introspection({ endpoint, clientId: CLIENT.id, ...(options.clientKey === undefined && { clientSecret: CLIENT.secret }), ...options })
}

export interface Asking extends Audited {
  readonly as: FakeAuthorizationServer
  /** What `/me` answers to a bearer. */
  me: (token: string, headers?: Record<string, string>) => Promise<Answer>
  status: (token: string) => Promise<number>
  context: (token: string, headers?: Record<string, string>) => Promise<Record<string, unknown>>
  /** An upgrade of `/live` with a bearer. */
  upgrade: (token: string, options?: Parameters<typeof upgrade>[2]) => Promise<Upgrade>
  /** A ticket for the holder of a bearer. */
  ticket: (token: string) => Promise<string>
}

export interface AskingOptions extends LiveOptions {
  introspection?: Partial<IntrospectionOptions>
  /** @default a new one */
  as?: FakeAuthorizationServer
}

/** Declares what most tests need: `/first`, which waits for a first message, and `/ticket`. */
export function askingRoutes (app: FastifyInstance): void {
  app.get('/first', { websocket: true, auth: { firstMessage: true } }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
  app.post('/ticket', { auth: true }, async request => app.hybridAuth.issueTicket(request))
}

export async function asking (t: Test, { introspection: options, as: given, auth, routes, ...rest }: AskingOptions = {}): Promise<Asking> {
  const as = given ?? await authorizationServer(t)
  const all: Partial<HybridAuthOptions> = { introspection: introspectionOf(as, options), credentials: { query: true }, ...auth }
  const server = await audited(t, {
    auth: all,
    routes (app) {
      askingRoutes(app)
      routes?.(app)
    },
    ...rest
  })
  const bearer = (token: string, headers: Record<string, string> = {}) => ({ headers: { ...headers, authorization: `Bearer ${token}` } })
  const me: Asking['me'] = (token, headers) => ask(server.host, '/me', bearer(token, headers))
  return {
    ...server,
    as,
    me,
    status: async token => (await me(token)).status,
    context: async (token, headers) => JSON.parse((await me(token, headers)).body) as Record<string, unknown>,
    upgrade: (token, { headers, ...others } = {}) => upgrade(t, server.host, { headers: { ...headers, authorization: `Bearer ${token}` }, ...others }),
    async ticket (token) {
      const { status, body } = await ask(server.host, '/ticket', { method: 'POST', ...bearer(token) })
      if (status !== 200) throw new Error(`no ticket: ${status} ${body}`)
      return canary(body)
    }
  }
}
