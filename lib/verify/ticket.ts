/** Single-use tickets: an authenticated HTTP request leaves its context behind, and one upgrade takes it up. */
import { createHash, randomBytes } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import * as v from 'valibot'
import type { TicketOptions } from '../../types/cluster.js'
import type { AuthContext, Claims } from '../../types/context.js'
import { OVER, type Cluster } from '../cluster/cluster.js'
import { settledWithin } from '../deadline.js'
import { authError, FORGED, type Forged, type Refusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import { contextOf } from '../request.js'
import { parse, within } from '../schema.js'
import { freezeParsed } from './plain.js'
import { seal, unseal } from './seal.js'

export type TicketStore = Pick<Cluster, 'putTicket' | 'takeTicket'>

/** What issuing and taking need. */
export interface TicketParts {
  readonly store: TicketStore
  /** Who may take a ticket for a JWT, and for an opaque token: registrations that would accept it. */
  readonly realms: { readonly j: string, readonly o: string }
  /** The token of an `oauth2` context; null: it is not of here. */
  readonly tokenOf: (claims: Claims) => string | null
  /** In milliseconds. */
  readonly timeout: number
}

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TICKET'
/** What kind of credential it stands for, and a secret. */
const FORM = /^[jos][A-Za-z0-9_-]{43}$/
const BYTES = 32
const LETTERS = { jwt: 'j', oauth2: 'o', session: 's' } as const satisfies Record<AuthContext['authType'], string>

const options = v.strictObject({ ttl: v.optional(within(1000, 300_000, 'milliseconds'), 30_000) }, 'must be an object')

/** What names the credential again, and who it named. The rest is found out anew. */
const text = v.string()
const who = { userId: text, tenantId: v.nullable(text) }
const kept = v.strictObject({
  /** Where the page that asked for it came from; null: the request did not say. */
  origin: v.nullable(text),
  credential: v.variant('authType', [
    v.strictObject({ ...who, authType: v.literal('jwt'), claims: v.looseObject({}), tokenId: text }),
    v.strictObject({ ...who, authType: v.literal('oauth2'), token: text }),
    v.strictObject({ ...who, authType: v.literal('session'), sessionId: text })
  ])
})

/** The credential that a ticket stands for. */
export type KeptCredential = v.InferOutput<typeof kept>['credential']

/** As it was presented. */
export interface PresentedTicket {
  readonly ticket: string
  /** Whether the upgrade comes from where the ticket was asked for; null: from a request without Origin. */
  readonly isFrom: (origin: string | null) => boolean
}

/**
 * @throws FST_HYBRID_AUTH_NOT_AUTHENTICATED, FST_HYBRID_AUTH_INVALID_OPTION; rejects with FST_HYBRID_AUTH_UNAVAILABLE
 * where it cannot be kept
 */
export async function issueTicket ({ store, realms, tokenOf, timeout }: TicketParts, request: FastifyRequest, given: TicketOptions | undefined): Promise<string> {
  const context = contextOf(request)
  if (context === null) throw authError('FST_HYBRID_AUTH_NOT_AUTHENTICATED')
  const { ttl } = parse(options, given ?? {}, 'options')
  const credential = credentialOf(context, tokenOf)
  const ticket = LETTERS[context.authType] + randomBytes(BYTES).toString('base64url')
  const left = Math.max(1, Math.min(ttl, (context.expiresAt ?? Infinity) - Date.now()))
  const value = JSON.stringify({ origin: request.headers.origin ?? null, credential })
  const put = async (): Promise<boolean> => {
    await store.putTicket(keyOf(ticket, realms), seal(value, ticket), left)
    return true
  }
  // What a store says is nobody's business.
  if (!await settledWithin(put(), timeout, false)) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
  return ticket
}

/**
 * The credential that it stands for. It is gone with the first who asks, whatever comes of it.
 * @throws, or rejects with, what the store throws
 */
export function takeTicket ({ store, realms }: Pick<TicketParts, 'store' | 'realms'>, { ticket, isFrom }: PresentedTicket): Maybe<KeptCredential | Refusal | Forged> {
  if (!FORM.test(ticket)) return FORGED
  return whenReady(store.takeTicket(keyOf(ticket, realms)), value => {
    if (value === null) return FORGED
    const found = value === OVER ? null : read(unseal(value, ticket))
    return found === null || !isFrom(found.origin) ? INVALID : found.credential
  })
}

function credentialOf (context: AuthContext, tokenOf: TicketParts['tokenOf']): KeptCredential {
  const { userId, tenantId } = context
  if (context.authType === 'session') return { authType: 'session', userId, tenantId, sessionId: context.sessionId }
  if (context.authType === 'jwt') return { authType: 'jwt', userId, tenantId, claims: { ...context.claims }, tokenId: context.tokenId }
  const token = tokenOf(context.claims)
  if (token === null) throw authError('FST_HYBRID_AUTH_UNAVAILABLE')
  return { authType: 'oauth2', userId, tenantId, token }
}

function read (value: string | null): v.InferOutput<typeof kept> | null {
  const result = v.safeParse(kept, value === null ? null : JSON.parse(value))
  if (!result.success) return null
  freezeParsed(result.output)
  return result.output
}

/** The ticket itself is kept nowhere. One of a token is found by those alone who would accept that token. */
function keyOf (ticket: string, { j, o }: TicketParts['realms']): string {
  const named = ticket.startsWith('s') ? ticket : `${ticket}\n${ticket.startsWith('j') ? j : o}`
  return createHash('sha256').update(named).digest('base64url')
}
