/** From what a `user` mapper returned to the members of an AuthContext: a whole identity, or none. */
import type { Identity } from '../../types/context.js'
import { plainObject, type Plain, type PlainObject } from './plain.js'

/** What every context takes from the mapper. */
export interface CheckedIdentity {
  readonly userId: string
  readonly role: string | null
  readonly permissions: readonly string[]
  readonly tenantId: string | null
  readonly user: Identity
}

const MAX_LENGTH = 1024
const NO_PERMISSIONS: readonly string[] = Object.freeze([])

/** null: what was returned does not name a user. @throws whatever a getter or `toJSON` of it throws */
export function checkIdentity (mapped: unknown): CheckedIdentity | null {
  if (typeof mapped !== 'object' || mapped === null) return null
  return checked(plainObject(mapped))
}

function checked (user: PlainObject): CheckedIdentity | null {
  if (!isIdentity(user)) return null
  const { userId, role, permissions, tenantId } = user
  return { userId, role: role ?? null, permissions: permissions ?? NO_PERMISSIONS, tenantId: tenantId ?? null, user }
}

function isIdentity (user: PlainObject): user is PlainObject & Identity {
  const { userId, role, permissions, tenantId, issuedAt, acr, sid } = user
  return isName(userId) &&
    (issuedAt == null || typeof issuedAt === 'number') &&
    (role == null || isName(role)) &&
    (acr == null || isName(acr)) &&
    (sid == null || isName(sid)) &&
    (tenantId == null || isName(tenantId)) &&
    (permissions == null || (Array.isArray(permissions) && permissions.every(item => typeof item === 'string')))
}

function isName (value: Plain | undefined): boolean {
  return typeof value === 'string' && value.length > 0 && value.length <= MAX_LENGTH
}

/**
 * The default `jwt.user`, of claims that are frozen plain data already. `scope` is one string of names parted by spaces
 * (RFC 8693 §4.2); in another shape it grants nothing.
 */
export function identityFromClaims (claims: PlainObject): CheckedIdentity | null {
  const { sub, role, scope, companyId } = claims
  const permissions = claims.permissions ?? (typeof scope === 'string' ? scopeNames(scope) : NO_PERMISSIONS)
  const user = Object.freeze({ userId: sub ?? null, role: role ?? null, permissions, tenantId: companyId ?? null })
  return checked(user)
}

function scopeNames (scope: string): readonly string[] {
  return Object.freeze(scope.split(' ').filter(name => name !== ''))
}
