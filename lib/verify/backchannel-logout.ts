/** OpenID Connect Back-Channel Logout 1.0: a provider says who has logged out, and what was opened with that ends. */
import type { FastifyInstance, FastifyReply } from 'fastify'
import * as v from 'valibot'
import type { Claims } from '../../types/context.js'
import type { BackchannelLogoutOptions } from '../../types/logout.js'
import type { ProviderLogout } from '../cluster/provider-logout.js'
import { settledWithin } from '../deadline.js'
import { authError, invalidOption, isRefusal } from '../errors.js'
import { algorithms, type ParsedJwtOptions } from '../options.js'
import { fn, oneOrMore, parse, text, within } from '../schema.js'
import { createClaimsCheck, isLogout } from './claims.js'
import { logoutPartsOf, type LogoutParts } from './logout-parts.js'
import type { PlainObject } from './plain.js'
import { createSignedReader } from './signed.js'

const schema = v.strictObject({
  path: text('the path of a route'),
  key: v.optional(v.custom<ParsedJwtOptions['key']>(given => given !== null)),
  algorithms: v.optional(algorithms),
  issuer: v.optional(oneOrMore),
  audience: v.optional(oneOrMore),
  clockTolerance: v.optional(within(0, 300, 'seconds')),
  onLogout: v.optional(fn<NonNullable<BackchannelLogoutOptions['onLogout']>>()),
  // Fastify hands its own on.
  prefix: v.optional(v.unknown()),
  logLevel: v.optional(v.unknown()),
  logSerializers: v.optional(v.unknown())
}, 'must be an object')

const UNDER = 'backchannelLogout'
const FORM = 'application/x-www-form-urlencoded'
/** In bytes, of a body that holds one token. */
const MAX_BODY = 32 * 1024
const MAX_TOKEN = 16 * 1024
/** How old a logout token may be, in seconds. */
const MAX_AGE = 300
/** How long one is told from another that came before, in seconds: longer than it is good, with clocks that differ. */
const REMEMBERED = 2 * MAX_AGE + 300
/** No other kind of token may pass for one (RFC 8725 §3.11); providers that do not say the kind are not refused. */
const TYPES = new Set(['logout+jwt', 'application/logout+jwt', 'jwt'])
const MAX_NAME = 1024

/** @throws FST_HYBRID_AUTH_INVALID_OPTION; FST_HYBRID_AUTH_MISSING_DEPENDENCY where the plugin is not registered */
export async function backchannelLogout (app: FastifyInstance, given: BackchannelLogoutOptions): Promise<void> {
  const parts = app.hasDecorator('hybridAuth') ? logoutPartsOf(app.hybridAuth) : undefined
  if (parts === undefined) throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'backchannelLogout needs fastify-hybrid-auth registered before it')
  const options = parse(schema, given, UNDER)
  const read = createReader(options, parts)
  const carryOut = createLogout(parts, options.onLogout)

  // Other routes of the application parse forms as they like.
  if (app.hasContentTypeParser(FORM)) app.removeContentTypeParser(FORM)
  app.addContentTypeParser(FORM, { parseAs: 'string', bodyLimit: MAX_BODY }, (_request, body, done) => {
    done(null, new URLSearchParams(String(body)))
  })
  app.post(options.path, async (request, reply) => {
    const run = async (): Promise<Outcome> => {
      const logout = await read(tokenIn(request.body))
      return typeof logout === 'string' ? { status: 400, why: logout } : carryOut(logout)
    }
    const outcome = run().catch((error: unknown): Outcome => {
      parts.report(request, UNDER, error)
      return FAILED
    })
    const { status, why, onTold } = await settledWithin(outcome, parts.timeout, FAILED)
    if (status === 400) request.log.warn({ hybridAuth: { where: UNDER, why } }, 'refused a logout token')
    onTold?.()
    return answer(reply, status)
  })
}

interface Outcome {
  readonly status: 200 | 400 | 503
  /** For the log. */
  readonly why?: Refused
  /** Called when this is what the provider is told. */
  readonly onTold?: () => void
}

/** What is wrong with a logout token. */
type Refused = 'signature' | 'typ' | 'claims' | 'event' | 'nonce' | 'replayed'

const REPLAYED: Outcome = { status: 400, why: 'replayed' }
const FAILED: Outcome = { status: 503 }

/** A logout token that is good. */
interface LogoutToken extends ProviderLogout {
  readonly claims: Claims
  /** What tells it from every other. */
  readonly name: string
}

/** @returns what reads a logout token, or says why it is none, or not for here (§2.6) */
function createReader (options: v.InferOutput<typeof schema>, { jwt, readSigned }: LogoutParts): (token: string) => Promise<LogoutToken | Refused> {
  const { key = jwt?.key, algorithms: accepted = jwt?.algorithms, issuer = jwt?.issuer, audience = jwt?.audience } = options
  const missing = (name: string): Error => invalidOption(`${UNDER}.${name}`, 'is required, here or as jwt has it')
  if (key === undefined) throw missing('key')
  if (accepted === undefined) throw missing('algorithms')
  if (issuer === undefined) throw missing('issuer')
  if (audience === undefined) throw missing('audience')
  const isShared = options.key === undefined && options.algorithms === undefined
  const readAny = (isShared ? readSigned : null) ?? createSignedReader({ key, algorithms: accepted, maxTokenLength: MAX_TOKEN }, UNDER).read
  const clockTolerance = options.clockTolerance ?? jwt?.clockTolerance ?? 0
  const checkClaims = createClaimsCheck({ issuer, audience, clockTolerance, maxAge: MAX_AGE, allowNoExpiry: true })

  return async token => {
    const signed = await readAny(token)
    if (signed === null) return 'signature'
    const { claims, wellFormed: { header: { typ } } } = signed
    if (typ !== undefined && !TYPES.has(typ.toLowerCase())) return 'typ'
    if (!isLogout(claims)) return 'event'
    if (claims.nonce !== undefined) return 'nonce'
    return isRefusal(checkClaims(claims, typ)) ? 'claims' : logoutIn(claims) ?? 'claims'
  }
}

/** What it says, of claims whose registered members have the right types. */
function logoutIn (claims: PlainObject): LogoutToken | null {
  const { iss: issuer, jti, iat, sid = null, sub = null } = claims
  if (typeof issuer !== 'string' || typeof jti !== 'string' || typeof iat !== 'number') return null
  if (!isNameOrNull(sid) || !isNameOrNull(sub) || (sid === null && sub === null)) return null
  return { claims, issuer, iat, sid, sub, name: JSON.stringify([issuer, jti]) }
}

interface Known {
  readonly at: number
  /** null: the provider was told what became of it. From then on it is a replay. */
  readonly outcome: Promise<Outcome> | null
}

/** @returns what ends it, once */
function createLogout ({ logOut, claim, release }: LogoutParts, onLogout: BackchannelLogoutOptions['onLogout']) {
  /** Those that are being carried out, or were, in the order in which they came. */
  const known = new Map<string, Known>()

  async function run ({ name, claims, ...logout }: LogoutToken): Promise<Outcome> {
    let isMine = false
    try {
      isMine = await claim(name, REMEMBERED)
      if (isMine) {
        await logOut(logout)
        await onLogout?.(claims)
        return { status: 200, onTold: () => { remember(name, null) } }
      }
    } catch (error) {
      // The provider may say it again, here or to another node.
      if (isMine) await release(name, REMEMBERED).catch(() => {})
      known.delete(name)
      throw error
    }
    // Whoever has it may still fail.
    known.delete(name)
    return REPLAYED
  }

  return async function carryOut (logout: LogoutToken): Promise<Outcome> {
    for (const [old, { at }] of known) {
      if (at > Date.now() - REMEMBERED * 1000) break
      known.delete(old)
    }
    const before = known.get(logout.name)
    if (before !== undefined) return before.outcome ?? REPLAYED
    const outcome = run(logout)
    remember(logout.name, outcome)
    return outcome
  }

  function remember (name: string, outcome: Known['outcome']): void {
    known.delete(name)
    known.set(name, { at: Date.now(), outcome })
  }
}

function tokenIn (body: unknown): string {
  const tokens = body instanceof URLSearchParams ? body.getAll('logout_token') : []
  return tokens.length === 1 ? String(tokens[0]) : ''
}

/** As §2.8 has it. What was wrong is not said. */
function answer (reply: FastifyReply, status: 200 | 400 | 503): FastifyReply {
  reply.code(status).header('cache-control', 'no-store')
  if (status === 503) reply.header('retry-after', '1')
  return status === 200 ? reply.send() : reply.send({ error: status === 400 ? 'invalid_request' : 'temporarily_unavailable' })
}

function isNameOrNull (value: unknown): value is string | null {
  return value === null || (typeof value === 'string' && value !== '' && value.length <= MAX_NAME)
}
