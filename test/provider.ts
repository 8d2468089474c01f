/** Identity providers on this machine: one that answers whatever a test wants, and the real `oidc-provider` behind the same door. */
import { constants, generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import { createServer, request, type RequestListener, type Server as HttpServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { json } from 'node:stream/consumers'
import type { Test } from 'tap'
import type { Algorithm } from '../lib/index.js'
import { secret as canary } from './canary.js'
import { goodClaims } from './helpers.js'

export type Jwk = Readonly<Record<string, unknown>>

/** A key of an issuer, both halves. */
export interface IssuerKey {
  readonly kid: string | undefined
  readonly alg: Algorithm
  readonly privateKey: KeyObject
  /** As it is published; `kid`, `alg` and `use` included. */
  readonly jwk: Jwk
}

function pairFor (alg: Algorithm): { publicKey: KeyObject, privateKey: KeyObject } {
  if (alg === 'ES256') return generateKeyPairSync('ec', { namedCurve: 'P-256' })
  if (alg === 'ES384') return generateKeyPairSync('ec', { namedCurve: 'P-384' })
  if (alg === 'ES512') return generateKeyPairSync('ec', { namedCurve: 'P-521' })
  if (alg === 'EdDSA') return generateKeyPairSync('ed25519')
  return generateKeyPairSync('rsa', { modulusLength: 2048 })
}

/** A new key. Members of `more` are published with it; one that is undefined is not published. */
export function issuerKey (kid?: string, alg: Algorithm = 'ES256', more: Jwk = {}, pair = pairFor(alg)): IssuerKey {
  const published = { ...pair.publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig', ...more }
  return { kid, alg, privateKey: pair.privateKey, jwk: Object.fromEntries(Object.entries(published).filter(([, value]) => value !== undefined)) }
}

/** The private half as `oidc-provider` wants it. */
export function privateJwk ({ kid, alg, privateKey }: IssuerKey): Jwk {
  return { ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' }
}

function signature (alg: Algorithm, input: Buffer, key: KeyObject): Buffer {
  if (alg === 'EdDSA') return sign(null, input, key)
  const hash = `sha${alg.slice(2)}`
  if (alg.startsWith('ES')) return sign(hash, input, { key, dsaEncoding: 'ieee-p1363' })
  if (alg.startsWith('PS')) return sign(hash, input, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST })
  return sign(hash, input, key)
}

/** A token of claims in order, changed by `claims`; its header may say anything. */
export function mint (key: IssuerKey, claims: Jwk = {}, header: Jwk = {}): string {
  return mintRaw(key, JSON.stringify(goodClaims(claims)), header)
}

/** Like {@link mint}, of a payload that need not be JSON. */
export function mintRaw ({ kid, alg, privateKey }: IssuerKey, payload: string | Buffer, header: Jwk = {}): string {
  const encoded = [JSON.stringify({ alg, kid, ...header }), payload].map(part => Buffer.from(part).toString('base64url')).join('.')
  return canary(`${encoded}.${signature(alg, Buffer.from(encoded), privateKey).toString('base64url')}`)
}

/** The same token with one bit of its signature turned over. */
export function garbled (token: string): string {
  const dot = token.lastIndexOf('.') + 1
  const bytes = Buffer.from(token.slice(dot), 'base64url')
  bytes.writeUInt8(bytes.readUInt8(8) ^ 1, 8)
  return token.slice(0, dot) + bytes.toString('base64url')
}

export function says (body: string | Buffer, { status = 200, type = 'application/json', headers = {} }: { status?: number, type?: string, headers?: Record<string, string> } = {}): RequestListener {
  return (_request, response) => { response.writeHead(status, { 'content-type': type, ...headers }).end(body) }
}

export const saysJson = (value: unknown): RequestListener => says(JSON.stringify(value))
export const publishes = (...keys: Array<IssuerKey | Jwk>): RequestListener => saysJson({ keys: keys.map(key => 'privateKey' in key ? key.jwk : key) })
/** Never answers. */
export const hangs: RequestListener = () => {}

/** An http server on a port of its own, which counts what it is asked for and answers as told. */
export class FakeIssuer {
  readonly issuer: string
  /** How often `/jwks` was asked for. */
  hits = 0
  /** How often the metadata were. */
  discoveries = 0
  keys: RequestListener = publishes()
  metadata: RequestListener
  /** Everything else. */
  rest: RequestListener = says('', { status: 404 })
  /** Paths in the order in which they were asked for. */
  readonly asked: string[] = []
  #server: HttpServer
  readonly #port: number

  constructor (server: HttpServer, port: number) {
    this.#server = server
    this.#port = port
    this.issuer = `http://127.0.0.1:${port}`
    this.metadata = saysJson({ issuer: this.issuer, jwks_uri: this.url })
    this.#attach()
  }

  get url (): string {
    return `${this.issuer}/jwks`
  }

  /** Nobody listens on the port any more, and what was open is cut. */
  kill (): Promise<void> {
    return new Promise(resolve => {
      this.#server.close(() => { resolve() })
      this.#server.closeAllConnections()
    })
  }

  /** On the same port. */
  async restart (): Promise<void> {
    this.#server = createServer()
    this.#attach()
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(this.#port, '127.0.0.1', resolve)
    })
  }

  #attach (): void {
    this.#server.on('request', (request, response) => {
      const { url = '' } = request
      this.asked.push(url)
      if (url === '/jwks') this.hits++
      const isMetadata = url.endsWith('/.well-known/openid-configuration')
      if (isMetadata) this.discoveries++
      const answer = url === '/jwks' ? this.keys : isMetadata ? this.metadata : this.rest
      answer(request, response)
    })
  }
}

export async function fakeIssuer (t: Test, ...keys: Array<IssuerKey | Jwk>): Promise<FakeIssuer> {
  const server = createServer()
  const port = await new Promise<number>(resolve => {
    server.listen(0, '127.0.0.1', () => { resolve((server.address() as AddressInfo).port) })
  })
  const issuer = new FakeIssuer(server, port)
  issuer.keys = publishes(...keys)
  t.teardown(() => issuer.kill())
  return issuer
}

/** The part of it that is used. It comes without types. */
interface OidcProvider { callback (): RequestListener }
type OidcProviderClass = new (issuer: string, configuration: object) => OidcProvider

const CLIENT = { id: 'a-service', secret: canary('the secret of a client at the provider') }
const AUDIENCE = 'urn:api'

export interface RealIssuer {
  /** The door: what it answers itself never reaches the provider behind it. */
  readonly door: FakeIssuer
  readonly issuer: string
  readonly audience: string
  readonly clientId: string
  /** Opens the door for everything again. */
  open: () => void
  /** Starts it anew with these keys, on the same port; the first signs. */
  rotate: (...keys: IssuerKey[]) => Promise<void>
  /** An access token that the provider has issued. */
  token: () => Promise<string>
}

/** A real authorization server (`oidc-provider`), behind a door that the test owns. */
export async function realIssuer (t: Test, ...keys: IssuerKey[]): Promise<RealIssuer> {
  const name: string = 'oidc-provider'
  const { default: Provider } = await import(name) as { default: OidcProviderClass }
  const door = await fakeIssuer(t)

  function open (): void {
    door.keys = door.metadata = door.rest = listener
  }

  const start = (of: readonly IssuerKey[]) => new Provider(door.issuer, {
    clients: [{
      client_id: CLIENT.id, client_secret: CLIENT.secret, id_token_signed_response_alg: of[0]?.alg, grant_types: ['client_credentials'],
      redirect_uris: [], response_types: [], scope: 'read'
    }],
    scopes: ['read'],
    jwks: { keys: of.map(privateJwk) },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: () => ({
          scope: 'read', audience: AUDIENCE, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg: of[0]?.alg, kid: of[0]?.kid } }
        })
      }
    }
  }).callback()

  let listener = start(keys)
  open()
  return {
    door,
    issuer: door.issuer,
    audience: AUDIENCE,
    clientId: CLIENT.id,
    open,
    async rotate (...next) {
      await door.kill()
      listener = start(next)
      open()
      await door.restart()
    },
    async token () {
      const body = await post(`${door.issuer}/token`, 'grant_type=client_credentials&scope=read')
      if (body.access_token === undefined) throw new Error(`the provider gives no token: ${JSON.stringify(body)}`)
      return canary(body.access_token)
    }
  }
}

/** As the client of the provider, over a connection of its own: those that are kept are cut when it starts anew. */
function post (url: string, form: string): Promise<{ access_token?: string }> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    request(url, { method: 'POST', agent: false, headers, auth: `${CLIENT.id}:${encodeURIComponent(CLIENT.secret)}` }, response => {
      json(response).then(body => { resolve(body as { access_token?: string }) }, reject)
    }).on('error', reject).end(form)
  })
}

/** `performance.now`, standing still until it is moved: what has to be at an exact age, or within a pause. */
export function stopwatch (t: Test): { move: (ms: number) => void } {
  // Whole milliseconds: sums of them are exact.
  let now = Math.floor(performance.now())
  performance.now = () => now
  t.teardown(() => { Reflect.deleteProperty(performance, 'now') })
  return { move (ms) { now += ms } }
}
