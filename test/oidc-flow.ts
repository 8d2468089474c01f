/** People who log in at the real `oidc-provider`, with a browser that is scripted, and log out there. */
import { createHash, randomBytes } from 'node:crypto'
import { request, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import type { Test } from 'tap'
import { secret as canary } from './canary.js'
import { fakeIssuer, privateJwk, type FakeIssuer, type IssuerKey, type Jwk } from './provider.js'

export const AUDIENCE = 'urn:api'
/** The client that people log in to. */
export const APP = { id: 'the-app', secret: canary('what the app proves itself with') }
/** The client that asks about tokens. */
export const API = { id: 'the-api', secret: canary('a/secret+with: %signs of, the api') }
/** The same, with a key instead of a secret. */
export const KEYED = { id: 'the-api-with-a-key' }
const CALLBACK = 'https://app.example/callback'
const COOKIES = canary('what the provider signs its cookies with')
const FORM = 'application/x-www-form-urlencoded'

/** The parts of it that are used. It comes without types. */
interface Grant {
  addOIDCScope (scope: string): void
  addResourceScope (resource: string, scope: string): void
  save (): Promise<string>
}
interface Interaction { prompt: { name: string }, params: { client_id: string }, session?: { accountId: string } }
interface OidcProvider {
  callback (): RequestListener
  on (event: 'backchannel.error', listener: (context: unknown, error: Error) => void): void
  interactionDetails (request: IncomingMessage, response: ServerResponse): Promise<Interaction>
  interactionFinished (request: IncomingMessage, response: ServerResponse, result: object, options: object): Promise<void>
  readonly Grant: new (of: { accountId: string | undefined, clientId: string }) => Grant
}
type OidcProviderClass = new (issuer: string, configuration: object) => OidcProvider
type SendRequest = (url: string, init: RequestInit & { dispatcher?: unknown }) => Promise<Response>

export interface FlowOptions {
  keys: IssuerKey[]
  format: 'opaque' | 'jwt'
  /** Where it tells of logouts. @default nowhere */
  logoutUri?: string
  /** Whether it says which login has ended. @default true */
  sessionRequired?: boolean
  /** Whether access tokens that are JWTs say which login they came from, which they do not by themselves. @default false */
  tellsSid?: boolean
  /** The public half of the key of {@link KEYED}. */
  clientJwk?: Jwk
  /** Whether it sends logout tokens to this machine, which it does not by itself. @default true */
  sendsToLoopback?: boolean
}

export interface Tokens { accessToken: string, idToken: string, refreshToken: string }

export interface Flow {
  readonly door: FakeIssuer
  readonly issuer: string
  readonly endpoint: string
  /** Every logout token that was sent, in order. */
  readonly logoutTokens: string[]
  /** What it says of those that did not arrive. */
  readonly undelivered: string[]
  /** Starts it, or starts it anew on the same port: it still knows everybody. */
  begin: (options: FlowOptions) => Promise<void>
  kill: () => Promise<void>
  /** Answers of its endpoints to a client. */
  introspect: (token: string) => Promise<Answer>
  isActive: (token: string) => Promise<unknown>
  revoke: (token: string) => Promise<Answer>
  refresh: (refreshToken: string) => Promise<Tokens>
  browser: () => Browser
}

export interface Answer { status: number, body: string }

/** The provider, not begun: what it tells of logouts may have to be known first. */
export async function openFlow (t: Test): Promise<Flow> {
  const name: string = 'oidc-provider'
  const { default: Provider } = await import(name) as { default: OidcProviderClass }
  const { createMemoryAdapter } = await import(`${name}/lib/adapters/memory_adapter.js`) as { createMemoryAdapter: () => unknown }
  const door = await fakeIssuer(t)
  const adapter = createMemoryAdapter()
  const logoutTokens: string[] = []
  const undelivered: string[] = []
  let hasBegun = false

  function start (options: FlowOptions): RequestListener {
    const send: SendRequest = (url, { dispatcher, ...init }) => {
      if (init.body instanceof URLSearchParams) logoutTokens.push(canary(init.body.get('logout_token') ?? ''))
      // The dispatcher is what refuses addresses like the one of this machine.
      return fetch(url, options.sendsToLoopback === false ? { ...init, ...(dispatcher !== undefined && { dispatcher }) } : init)
    }
    const provider = new Provider(door.issuer, { ...configurationOf(options), adapter, fetch: send })
    provider.on('backchannel.error', (_context, error) => { undelivered.push(error.cause instanceof Error ? error.cause.message : error.message) })
    const listener = provider.callback()
    return (request, response) => {
      if (request.url?.startsWith('/interaction/') !== true) {
        listener(request, response)
        return
      }
      interact(provider, request, response).catch((error: unknown) => { response.writeHead(500).end(String(error)) })
    }
  }

  const tokensOf = ({ status, body }: Answer): Tokens => {
    const given = JSON.parse(body) as Record<string, string>
    if (status !== 200) throw new Error(`the provider gives no tokens: ${status} ${body}`)
    const { access_token: accessToken = '', id_token: idToken = '', refresh_token: refreshToken = '' } = given
    return { accessToken: canary(accessToken), idToken: canary(idToken), refreshToken: canary(refreshToken) }
  }
  const ask = async (path: string, form: Record<string, string>, client = APP) => answerOf(await send(`${door.issuer}${path}`, { form, client }))
  const introspect = (token: string) => ask('/token/introspection', { token }, API)

  return {
    door,
    issuer: door.issuer,
    endpoint: `${door.issuer}/token/introspection`,
    logoutTokens,
    undelivered,
    async begin (options) {
      if (hasBegun) await door.kill()
      door.keys = door.metadata = door.rest = start(options)
      if (hasBegun) await door.restart()
      hasBegun = true
    },
    kill: () => door.kill(),
    introspect,
    isActive: async token => (JSON.parse((await introspect(token)).body) as { active?: unknown }).active,
    revoke: token => ask('/token/revocation', { token }),
    // Without a resource it would be a token for the provider alone, as at the login.
    refresh: async token => tokensOf(await ask('/token', { grant_type: 'refresh_token', refresh_token: token, resource: AUDIENCE })),
    browser: () => new Browser(door.issuer, async form => tokensOf(await ask('/token', form)))
  }
}

function configurationOf ({ keys, format, logoutUri, sessionRequired = true, tellsSid = false, clientJwk }: FlowOptions): object {
  const app = {
    client_id: APP.id, client_secret: APP.secret, redirect_uris: [CALLBACK], grant_types: ['authorization_code', 'refresh_token'],
    ...(logoutUri !== undefined && { backchannel_logout_uri: logoutUri, backchannel_logout_session_required: sessionRequired })
  }
  const none = { redirect_uris: [], response_types: [], grant_types: [] }
  const keyed = { client_id: KEYED.id, token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [clientJwk] }, ...none }
  return {
    clients: [app, { client_id: API.id, client_secret: API.secret, ...none }, ...(clientJwk === undefined ? [] : [keyed])],
    jwks: { keys: keys.map(privateJwk) },
    cookies: { keys: [COOKIES] },
    // Those of the API are not among them, or the provider would ask for consent to them for itself, again and again.
    scopes: ['openid', 'offline_access'],
    pkce: { required: () => true },
    findAccount: (_context: unknown, sub: string) => ({ accountId: sub, claims: () => ({ sub }) }),
    ...(tellsSid && { extraTokenClaims: (_context: unknown, { sid }: { sid?: string }) => ({ sid }) }),
    interactions: { url: (_context: unknown, { uid }: { uid: string }) => `/interaction/${uid}` },
    ttl: { AccessToken: 3600, IdToken: 3600, RefreshToken: 86_400, Interaction: 3600, Session: 86_400, Grant: 86_400 },
    features: {
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: 'read write', audience: AUDIENCE, accessTokenFormat: format, ...(format === 'jwt' && { jwt: { sign: { alg: keys[0]?.alg, kid: keys[0]?.kid } } })
        })
      }
    }
  }
}

/** Whoever says who they are is believed, and agrees to everything. */
async function interact (provider: OidcProvider, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { prompt, params: { client_id: clientId }, session } = await provider.interactionDetails(request, response)
  if (request.method !== 'POST') {
    response.end(`<form method="post"><input name="${prompt.name}"></form>`)
    return
  }
  const given = new URLSearchParams(await text(request))
  if (prompt.name === 'login') {
    await provider.interactionFinished(request, response, { login: { accountId: given.get('login') } }, { mergeWithLastSubmission: false })
    return
  }
  const grant = new provider.Grant({ accountId: session?.accountId, clientId })
  grant.addOIDCScope('openid offline_access')
  grant.addResourceScope(AUDIENCE, given.get('consent') ?? '')
  await provider.interactionFinished(request, response, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true })
}

export interface Login {
  /** Whether a refresh token is asked for. @default false */
  offline?: boolean
  /** @default 'read' */
  scope?: string
  /** Where it is said that the token is for the API; else it is for the provider alone. @default 'always' */
  resource?: 'always' | 'at the login' | 'never'
}

/** Keeps cookies, and goes where it is sent. */
export class Browser {
  readonly #issuer: string
  readonly #exchange: (form: Record<string, string>) => Promise<Tokens>
  readonly #cookies = new Map<string, string>()

  constructor (issuer: string, exchange: (form: Record<string, string>) => Promise<Tokens>) {
    this.#issuer = issuer
    this.#exchange = exchange
  }

  /** Authorization code with PKCE (RFC 7636), by whoever has this name. */
  async login (account: string, { offline = false, scope = 'read', resource = 'always' }: Login = {}): Promise<Tokens> {
    const verifier = randomBytes(32).toString('base64url')
    const state = randomBytes(8).toString('hex')
    const target = { resource: AUDIENCE }
    const url = new URL('/auth', this.#issuer)
    url.search = String(new URLSearchParams({
      client_id: APP.id, response_type: 'code', redirect_uri: CALLBACK, scope: `openid ${scope}${offline ? ' offline_access' : ''}`, state,
      code_challenge: createHash('sha256').update(verifier).digest('base64url'), code_challenge_method: 'S256',
      ...(offline && { prompt: 'consent' }), ...(resource !== 'never' && target)
    }))
    let page = await this.#follow(await this.#get(url))
    for (let asked = 0; page.at.origin === this.#issuer && asked < 5; asked++) {
      const [, field] = /name="(login|consent)"/.exec(page.body) ?? []
      if (field === undefined) throw new Error(`nothing to fill in: ${page.status} ${page.body}`)
      page = await this.#follow(await this.#post(page.at, { [field]: field === 'login' ? account : scope }))
    }
    const { searchParams } = page.at
    if (searchParams.get('state') !== state) throw new Error(`no answer to what was asked: ${page.at.search}`)
    return this.#exchange({
      grant_type: 'authorization_code', code: searchParams.get('code') ?? '', redirect_uri: CALLBACK, code_verifier: verifier, ...(resource === 'always' && target)
    })
  }

  /**
   * Logs out as the application sends people there (OpenID Connect RP-Initiated Logout 1.0).
   * @param everywhere what they answer to the question whether they want to be logged out at the provider as well
   */
  async logout (idToken: string, everywhere = true): Promise<void> {
    const form = await this.#get(new URL(`/session/end?${String(new URLSearchParams({ id_token_hint: idToken }))}`, this.#issuer))
    const [, action] = /action="([^"]+)"/.exec(form.body) ?? []
    const [, xsrf] = /name="xsrf" value="([^"]+)"/.exec(form.body) ?? []
    if (action === undefined || xsrf === undefined) throw new Error(`no form: ${form.status} ${form.body}`)
    const done = await this.#follow(await this.#post(new URL(action, this.#issuer), { xsrf, ...(everywhere && { logout: 'yes' }) }))
    if (done.status !== 200) throw new Error(`not logged out: ${done.status} ${done.body}`)
  }

  #get (url: URL): Promise<Page> {
    return this.#go(url)
  }

  #post (url: URL, form: Record<string, string>): Promise<Page> {
    return this.#go(url, form)
  }

  /** As far as the provider sends it. Where it is sent elsewhere, nobody is asked. */
  async #follow (page: Page): Promise<Page> {
    if (page.location === undefined) return page
    const at = new URL(page.location, page.at)
    return at.origin === this.#issuer ? this.#follow(await this.#get(at)) : { ...page, at }
  }

  async #go (at: URL, form?: Record<string, string>): Promise<Page> {
    const cookie = [...this.#cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const response = await send(at, { cookie, ...(form !== undefined && { form }) })
    for (const line of response.headers['set-cookie'] ?? []) this.#keep(line)
    const { location } = response.headers
    return { at, location, ...await answerOf(response) }
  }

  #keep (line: string): void {
    const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
    if (value === '') this.#cookies.delete(name)
    else this.#cookies.set(name, value)
  }
}

interface Page extends Answer { at: URL, location: string | undefined }

/** Over a connection of its own: those that are kept are cut when the provider starts anew. */
function send (url: URL | string, { form, cookie, client }: { form?: Record<string, string>, cookie?: string, client?: typeof APP } = {}): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const headers = { ...(form !== undefined && { 'content-type': FORM }), ...(cookie !== undefined && cookie !== '' && { cookie }) }
    const auth = client === undefined ? {} : { auth: [client.id, client.secret].map(encodeURIComponent).join(':') }
    request(url, { method: form === undefined ? 'GET' : 'POST', agent: false, headers, ...auth }, resolve)
      .on('error', reject).end(form === undefined ? undefined : String(new URLSearchParams(form)))
  })
}

async function answerOf (response: IncomingMessage): Promise<Answer> {
  return { status: response.statusCode ?? 0, body: await text(response) }
}

/** Passes everything on, as it comes. */
export function passesTo (issuer: string): RequestListener {
  return (incoming, outgoing) => {
    const { method, url, headers } = incoming
    const onward = request(new URL(url ?? '/', issuer), { method, headers, agent: false }, answer => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.headers)
      answer.pipe(outgoing)
    })
    onward.on('error', () => { outgoing.destroy() })
    incoming.pipe(onward)
  }
}

/** What a JWT says, header and claims. Nothing of it is verified. */
export function readJwt (token: string): { header: Jwk, claims: Jwk } {
  const [header = '', claims = ''] = token.split('.').map(part => Buffer.from(part, 'base64url').toString())
  return { header: JSON.parse(header) as Jwk, claims: JSON.parse(claims) as Jwk }
}
