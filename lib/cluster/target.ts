/** What `revoke()` was given, to the revocation that it means. */
import { randomBytes } from 'node:crypto'
import * as v from 'valibot'
import type { RevokeOptions, RevokeTarget } from '../../types/cluster.js'
import type { ConnectionFilter, DisconnectOptions } from '../../types/connection.js'
import type { PermissionScope } from '../../types/plugin.js'
import { checkClose } from '../connection/closing.js'
import { checkFilter } from '../connection/registry.js'
import { invalidOption } from '../errors.js'
import { parse } from '../schema.js'
import { BEARER_TOKEN, identifyToken, isJws, isRespelled, nameOfToken } from '../verify/identify.js'
import { filter } from './command.js'
import type { Revocation, Revocations } from './revocations.js'

const text = v.pipe(v.string('must be a text'), v.nonEmpty('must not be empty'), v.maxLength(2048, 'is too long'))
const time = (what: string) => v.pipe(v.number(`must be ${what}`), v.finite(`must be ${what}`), v.minValue(0, `must be ${what}`))
/** As long as the longest that any verifier accepts. */
const MAX_TOKEN = 65_536
/** Before this, in 1973, nothing was issued: it is seconds that were given. */
const EARLIEST = 1e11
const MILLISECONDS = 'must be a time in milliseconds since the epoch'
const epoch = v.pipe(v.number(MILLISECONDS), v.finite(MILLISECONDS), v.minValue(EARLIEST, MILLISECONDS))

const target = v.strictObject({
  userId: v.optional(text),
  issuer: v.optional(v.nullable(text)),
  tenantId: v.optional(v.nullable(text)),
  sessionId: v.optional(text),
  token: v.optional(v.pipe(v.string('must be a text'), v.maxLength(MAX_TOKEN, 'is too long'))),
  tokenId: v.optional(text),
  jti: v.optional(text),
  iss: v.optional(v.nullable(text)),
  issuedBefore: v.optional(epoch)
}, 'must be an object')
type Target = v.InferOutput<typeof target>

/** What each may be narrowed by, beside `issuedBefore`. What narrows nothing is refused: more would be revoked than was asked. */
const NARROWED_BY = {
  userId: ['issuer', 'tenantId'], sessionId: [], token: [], tokenId: ['issuer'], jti: ['iss'], tenantId: ['issuer']
} as const satisfies Partial<Record<keyof Target, ReadonlyArray<keyof Target>>>
const SELECTORS = Object.keys(NARROWED_BY) as Array<keyof typeof NARROWED_BY>

const REASON = /^\P{Cc}{0,200}$/u
const options = v.strictObject({
  reason: v.optional(v.pipe(v.string('must be a text'), v.regex(REASON, 'must be at most 200 characters, none of them a control character')), ''),
  mode: v.optional(v.union([
    v.literal('now'),
    v.strictObject({ reauthWithin: v.pipe(time('milliseconds'), v.minValue(1, 'must be at least 1 millisecond'), v.maxValue(86_400_000, 'must be at most a day')) })
  ], "must be 'now' or { reauthWithin }"), 'now'),
  expiresAt: v.optional(epoch),
  dryRun: v.optional(v.boolean('must be true or false'), false)
}, 'must be an object')

export interface RevokeSettings {
  /** In milliseconds. */
  readonly retention: number
  /** In seconds. */
  readonly clockTolerance: number
  /** Which tokens an authorization server is asked about, in place of verifying them. */
  readonly asks: 'none' | 'opaque' | 'all'
}

/** Clocks of nodes may differ by so much, in milliseconds. */
const SKEW = 60_000
/** A socket may outlive its token by its grace, and a node may be away: what is over is kept so long, in milliseconds. */
const MIN_RETENTION = 3_600_000

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the member */
export function parseRevoke (givenTarget: RevokeTarget, givenOptions: RevokeOptions = {}, known: Revocations, { retention, clockTolerance, asks }: RevokeSettings): { revocation: Revocation, dryRun: boolean } {
  const { issuedBefore, ...aim } = aimOf(narrowed(parse(target, givenTarget, 'target')), asks)
  const { reason, mode, expiresAt, dryRun } = parse(options, givenOptions, 'options')
  const at = Date.now()
  const reauthWithin = mode === 'now' ? 0 : mode.reauthWithin
  // Who is asked for another credential must be able to bring one.
  const before = issuedBefore ?? (reauthWithin > 0 && (aim.kind === 'user' || aim.kind === 'tenant') ? at : undefined)
  const { kind, key, issuer, tenantId, endsAt, livesUntil = 0 } = aim
  if (expiresAt !== undefined && expiresAt <= at) throw invalidOption('options.expiresAt', 'is in the past')
  const tolerated = (end: number | null) => end === null ? null : Math.max(end + clockTolerance * 1000 + SKEW, at + MIN_RETENTION)
  return {
    dryRun,
    revocation: {
      id: randomBytes(12).toString('base64url'),
      kind,
      key,
      ...(issuer !== undefined && { issuer }),
      ...(tenantId !== undefined && { tenantId }),
      ...(before !== undefined && { issuedBefore: before }),
      reason,
      reauthWithin,
      at,
      expiresAt: expiresAt !== undefined ? Math.max(expiresAt, at + reauthWithin) : tolerated(endsAt === undefined ? known.endOf(Math.max(before ?? 0, at, livesUntil - retention), retention) : endsAt)
    }
  }
}

const disconnecting = v.strictObject({ code: v.optional(v.union([v.string(), v.number()], 'must be a name or a code'), 'Revoked'), reason: v.optional(v.string('must be a text')) }, 'must be an object')

/** @throws FST_HYBRID_AUTH_INVALID_OPTION on what no node would understand */
export function parseDisconnect (given: ConnectionFilter, givenOptions: DisconnectOptions = {}) {
  checkFilter(given)
  const { code, reason } = parse(disconnecting, givenOptions, '')
  checkClose(code, reason)
  return { filter: parse(filter, given, 'filter'), code, ...(reason !== undefined && { reason }) }
}

/** In characters: what a message has room for. */
const MAX_ORDER = 48 * 1024
const scopes = v.strictObject({ issuer: v.exactOptional(v.nullable(text)), tenantId: v.exactOptional(v.nullable(text)) }, 'must be an object')
const names = v.strictObject({ userId: text, permissions: v.array(text, 'must be a list of texts') })

/** @throws FST_HYBRID_AUTH_INVALID_OPTION */
export function parsePermissions (userId: string, permissions: readonly string[], scope: PermissionScope = {}): v.InferOutput<typeof names> & v.InferOutput<typeof scopes> {
  const order = { ...parse(scopes, scope, 'scope'), ...parse(names, { userId, permissions }, '') }
  if (JSON.stringify(order).length > MAX_ORDER) throw invalidOption('permissions', 'is too long to be told to the other nodes')
  return order
}

/** @throws FST_HYBRID_AUTH_INVALID_OPTION */
export function parseUser (userId: string): string {
  return parse(text, userId, 'userId')
}

type Aim = Pick<Revocation, 'kind' | 'key' | 'issuer' | 'tenantId' | 'issuedBefore'> & {
  /** Where the credential says it itself; null: never. */
  readonly endsAt?: number | null
  /** No sooner than this, where somebody else says when. */
  readonly livesUntil?: number
}

/** @throws FST_HYBRID_AUTH_INVALID_OPTION: a slip must not widen what is revoked */
function narrowed (given: Target): Target {
  const names = Object.keys(given) as Array<keyof Target>
  for (const name of names) if (given[name] === undefined) throw invalidOption(`target.${name}`, 'is undefined')
  const selector = SELECTORS.find(name => name in given)
  if (selector === undefined) throw invalidOption('target', `must name one of ${SELECTORS.join(', ')}`)
  const known: ReadonlyArray<keyof Target> = [selector, 'issuedBefore', ...NARROWED_BY[selector]]
  const other = names.find(name => !known.includes(name))
  if (other !== undefined) throw invalidOption(`target.${other}`, `does not go with ${selector}`)
  return given
}

function aimOf ({ userId, issuer: asIssuer, tenantId, sessionId, token, tokenId, jti, iss, issuedBefore }: Target, asks: RevokeSettings['asks']): Aim {
  const issuer = asIssuer === undefined ? iss : asIssuer
  const scope = { ...(issuer !== undefined && { issuer }), ...(issuedBefore !== undefined && { issuedBefore }) }
  if (userId !== undefined) return { kind: 'user', key: userId, ...scope, ...(tenantId !== undefined && { tenantId }) }
  if (sessionId !== undefined) return { kind: 'session', key: sessionId, ...scope }
  const id = tokenId ?? jti
  if (id !== undefined) return { kind: 'token', key: id, ...scope }
  if (typeof tenantId === 'string') return { kind: 'tenant', key: tenantId, ...scope }
  if (token === undefined) throw invalidOption('target.tenantId', 'must be a text')
  if (asks === 'all' || (asks === 'opaque' && !isJws(token))) {
    if (!BEARER_TOKEN.test(token) || isRespelled(token)) throw invalidOption('target.token', 'is not a token')
    return { kind: 'token', key: nameOfToken(token).tokenId, livesUntil: identifyToken(token)?.expiresAt ?? 0, ...scope }
  }
  const found = identifyToken(token)
  if (found === null) throw invalidOption('target.token', 'is not a token')
  return { kind: 'token', key: found.tokenId, issuer: found.issuer, endsAt: found.expiresAt, ...scope }
}
