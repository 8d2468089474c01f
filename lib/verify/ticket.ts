/** Single-use tickets: an authenticated HTTP request leaves its context behind, and one upgrade takes it up. */
import { createHash, randomBytes } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import * as v from 'valibot'
import type { TicketOptions } from '../../types/cluster.js'
import type { AuthContext } from '../../types/context.js'
import type { Cluster } from '../cluster/cluster.js'
import { authError, type Refusal } from '../errors.js'
import { whenReady, type Maybe } from '../maybe.js'
import { contextOf, networkOf } from '../request.js'
import { parse, within } from '../schema.js'
import { renewed } from './context.js'
import { freezeParsed } from './plain.js'

export type TicketStore = Pick<Cluster, 'putTicket' | 'takeTicket'>

const INVALID: Refusal = 'FST_HYBRID_AUTH_INVALID_TICKET'
const FORM = /^[A-Za-z0-9_-]{43}$/
const BYTES = 32

const options = v.strictObject({ ttl: v.optional(within(1000, 300_000, 'milliseconds'), 30_000) }, 'must be an object')

/** What a node of this cluster has left; everything of a context that a later check reads. */
const nullableText = v.nullable(v.string())
const base = {
  userId: v.string(),
  role: nullableText,
  permissions: v.array(v.string()),
  tenantId: nullableText,
  user: v.looseObject({ userId: v.string() }),
  via: v.picklist(['header', 'subprotocol', 'ticket', 'query', 'cookie', 'message']),
  issuer: nullableText,
  authenticatedAt: v.number(),
  expiresAt: v.nullable(v.number()),
  version: v.number()
}
const kept = v.strictObject({
  /** Where the page that asked for it came from; null: the request did not say. */
  origin: nullableText,
  context: v.variant('authType', [
    v.strictObject({ ...base, authType: v.literal('jwt'), claims: v.looseObject({}), tokenId: v.string() }),
    v.looseObject({ ...base, authType: v.literal('session'), sessionId: v.string() })
  ])
})

/**
 * @throws FST_HYBRID_AUTH_NOT_AUTHENTICATED, FST_HYBRID_AUTH_INVALID_OPTION; rejects with FST_HYBRID_AUTH_UNAVAILABLE
 * where it cannot be kept
 */
export async function issueTicket (store: TicketStore, request: FastifyRequest, given: TicketOptions | undefined): Promise<string> {
  const context = contextOf(request)
  if (context === null) throw authError('FST_HYBRID_AUTH_NOT_AUTHENTICATED')
  const { ttl } = parse(options, given ?? {}, 'options')
  const ticket = randomBytes(BYTES).toString('base64url')
  const left = Math.max(1, Math.min(ttl, (context.expiresAt ?? Infinity) - Date.now()))
  await store.putTicket(keyOf(ticket), JSON.stringify({ origin: request.headers.origin ?? null, context }), left)
  return ticket
}

/**
 * Whose ticket it was. It is gone with the first who asks, whatever comes of it.
 * @throws, or rejects with, what the store throws
 */
export function takeTicket (store: TicketStore, request: FastifyRequest, ticket: string): Maybe<AuthContext | Refusal> {
  if (!FORM.test(ticket)) return INVALID
  return whenReady(store.takeTicket(keyOf(ticket)), value => {
    const found = value === null ? null : read(value)
    if (found === null || !isSameOrigin(found.origin, request)) return INVALID
    const { expiresAt } = found.context
    return expiresAt !== null && expiresAt <= Date.now() ? INVALID : renewed(found.context, 'ticket')
  })
}

function read (value: string): { origin: string | null, context: AuthContext } | null {
  const parsed: unknown = JSON.parse(value)
  const result = v.safeParse(kept, typeof parsed === 'object' && parsed !== null ? freezeParsed(parsed) : parsed)
  return result.success ? result.output : null
}

/** A page's own `GET` carries no Origin, and its socket does: the server's. */
function isSameOrigin (issuedTo: string | null, request: FastifyRequest): boolean {
  const { origin } = request.headers
  const { protocol, host } = networkOf(request)
  return issuedTo === null ? origin === undefined || origin === `${protocol}://${host}` : origin === issuedTo
}

/** The ticket itself is kept nowhere. */
function keyOf (ticket: string): string {
  return createHash('sha256').update(ticket).digest('base64url')
}
