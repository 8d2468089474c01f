/** What `revoke()` was given, to the revocation that it means. */
import { randomBytes } from 'node:crypto'
import * as v from 'valibot'
import type { RevokeOptions, RevokeTarget } from '../../types/cluster.js'
import { invalidOption } from '../errors.js'
import { parse } from '../schema.js'
import { identifyToken } from '../verify/identify.js'
import type { Revocation, Revocations } from './revocations.js'

const text = v.pipe(v.string('must be a text'), v.nonEmpty('must not be empty'), v.maxLength(2048, 'is too long'))
const time = (what: string) => v.pipe(v.number(`must be ${what}`), v.finite(`must be ${what}`), v.minValue(0, `must be ${what}`))
const epoch = time('a time in milliseconds since the epoch')

const target = v.pipe(
  v.strictObject({
    userId: v.optional(text),
    issuer: v.optional(v.nullable(text)),
    tenantId: v.optional(v.nullable(text)),
    sessionId: v.optional(text),
    token: v.optional(text),
    tokenId: v.optional(text),
    jti: v.optional(text),
    iss: v.optional(v.nullable(text)),
    issuedBefore: v.optional(epoch)
  }, 'must be an object'),
  v.rawCheck(({ dataset, addIssue }) => {
    if (!dataset.typed) return
    const given = dataset.value
    if (SELECTORS.filter(name => given[name] !== undefined).length > 1) addIssue({ message: 'must name one of userId, sessionId, token, tokenId and jti' })
  }))
const SELECTORS = ['userId', 'sessionId', 'token', 'tokenId', 'jti'] as const

const REASON = /^[\x20-\x7e]{0,200}$/
const options = v.strictObject({
  reason: v.optional(v.pipe(v.string('must be a text'), v.regex(REASON, 'must be at most 200 printable ASCII characters')), ''),
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
}

/** Clocks of nodes may differ by so much, in milliseconds. */
const SKEW = 60_000
/** A socket may outlive its token by its grace, and a node may be away: what is over is kept so long, in milliseconds. */
const MIN_RETENTION = 3_600_000

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the member */
export function parseRevoke (givenTarget: RevokeTarget, givenOptions: RevokeOptions | undefined, known: Revocations, { retention, clockTolerance }: RevokeSettings): { revocation: Revocation, dryRun: boolean } {
  for (const [name, value] of Object.entries(givenTarget)) {
    // A slip must not widen what is revoked.
    if (value === undefined) throw invalidOption(`target.${name}`, 'is undefined')
  }
  const { reason, mode, expiresAt, dryRun } = parse(options, givenOptions ?? {}, 'options')
  const { issuedBefore, ...aim } = aimOf(parse(target, givenTarget, 'target'))
  const at = Date.now()
  const reauthWithin = mode === 'now' ? 0 : mode.reauthWithin
  // Who is asked for another credential must be able to bring one.
  const before = issuedBefore ?? (reauthWithin > 0 && (aim.kind === 'user' || aim.kind === 'tenant') ? at : undefined)
  const { kind, key, issuer, tenantId, endsAt } = aim
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
      expiresAt: expiresAt ?? tolerated(endsAt === undefined ? known.endOf(before ?? at, retention) : endsAt)
    }
  }
}

const names = v.strictObject({ userId: text, permissions: v.array(text, 'must be a list of texts') })

/** @throws FST_HYBRID_AUTH_INVALID_OPTION */
export function parsePermissions (userId: string, permissions: readonly string[]): { userId: string, permissions: string[] } {
  return parse(names, { userId, permissions }, '')
}

type Aim = Pick<Revocation, 'kind' | 'key' | 'issuer' | 'tenantId' | 'issuedBefore'> & {
  /** Where the credential says it itself; null: never. */
  readonly endsAt?: number | null
}

function aimOf ({ userId, issuer: asIssuer, tenantId, sessionId, token, tokenId, jti, iss, issuedBefore }: v.InferOutput<typeof target>): Aim {
  const issuer = asIssuer === undefined ? iss : asIssuer
  const scope = { ...(issuer !== undefined && { issuer }), ...(issuedBefore !== undefined && { issuedBefore }) }
  if (userId !== undefined) return { kind: 'user', key: userId, ...scope, ...(tenantId !== undefined && { tenantId }) }
  if (sessionId !== undefined) return { kind: 'session', key: sessionId, ...scope }
  const id = tokenId ?? jti
  if (id !== undefined) return { kind: 'token', key: id, ...scope }
  if (token !== undefined) {
    const found = identifyToken(token)
    if (found === null) throw invalidOption('target.token', 'is not a token')
    return { kind: 'token', key: found.tokenId, issuer: found.issuer, endsAt: found.expiresAt }
  }
  if (typeof tenantId === 'string') return { kind: 'tenant', key: tenantId, ...scope }
  throw invalidOption('target', 'must name a userId, sessionId, token, tokenId, jti or tenantId')
}
