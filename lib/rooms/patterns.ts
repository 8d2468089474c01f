/** Room names with places in them that the context fills: `tenant/:tenantId/agents`. */
import type { FastifyRequest } from 'fastify'
import type { AuthContext } from '../../types/context.js'
import type { RoomAction, RoomAuthorize } from '../../types/rooms.js'
import type { RequirementRule } from '../../types/rules.js'
import type { RoomTerms } from './terms.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import { compileRequirements, FORBIDDEN, type RequirementCheck, type Unmet } from '../policy/requirements.js'

/** Whether somebody may join a room, or publish to it. null: yes. @throws, or rejects with, what the application throws */
export type RoomDecision = (auth: AuthContext, room: string, action: RoomAction, request: FastifyRequest) => Maybe<Unmet | null>

/** A pattern as it was read from the options: what each action needs; null: it is not allowed to anybody. */
export interface RoomPattern extends RoomTerms {
  readonly pattern: string
  readonly join: RequirementRule | null
  readonly publish: RequirementRule | null
}

interface Form {
  readonly segments: readonly string[]
}

interface Compiled extends Form {
  readonly checks: Readonly<Record<RoomAction, RequirementCheck | null>>
}

const SEPARATOR = '/'
const PLACE = ':'

/** null: nothing is said of who may be in a room. @param patterns null: there are none */
export function compileRooms (authorize: RoomAuthorize | undefined, patterns: readonly RoomPattern[] | null): RoomDecision | null {
  if (authorize === undefined && patterns === null) return null
  const compiled = (patterns ?? []).map(({ pattern, join, publish }): Compiled => ({
    segments: segmentsOf(pattern),
    checks: { join: join === null ? null : compileRequirements(join), publish: publish === null ? null : compileRequirements(publish) }
  }))

  return function decideRoom (auth, room, action, request) {
    const segments = segmentsOf(room)
    // A name that has the form of a pattern is that pattern's: `authorize` does not open what the context's own fields have closed.
    const found = findPattern(compiled, segments)
    if (found !== undefined) {
      const check = found.checks[action]
      return check !== null && isOwn(found.segments, segments, auth) ? check(auth, request) : FORBIDDEN
    }
    if (authorize === undefined) return FORBIDDEN
    return whenReady(adopt<unknown>(authorize(auth, room, action)), verdict => verdict === true ? null : FORBIDDEN)
  }
}

export function segmentsOf (name: string): string[] {
  return name.split(SEPARATOR)
}

/** Of all whose form a name has, the first. */
export function findPattern<Pattern extends Form> (patterns: readonly Pattern[], segments: readonly string[]): Pattern | undefined {
  return patterns.find(one => hasForm(one.segments, segments))
}

function hasForm (pattern: readonly string[], segments: readonly string[]): boolean {
  return pattern.length === segments.length && pattern.every((part, i) => part.startsWith(PLACE) || part === segments[i])
}

/** Whether every place holds what the context has there. */
function isOwn (pattern: readonly string[], segments: readonly string[], auth: AuthContext): boolean {
  return pattern.every((part, i) => !part.startsWith(PLACE) || isSame(segments[i], fieldOf(auth, part.slice(1))))
}

/** What a name cannot hold stands in it as in a URL (RFC 3986 §2.1). */
function isSame (segment = '', field: string | null): boolean {
  if (!segment.includes('%')) return segment === field
  try {
    // In one way, as encodeURIComponent writes it: names that differ are rooms that differ, and nobody has any number of his own.
    return field !== null && segment === encodeURIComponent(field)
  } catch {
    return false
  }
}

/** null: the context has nothing of the name that a room could be called by. */
function fieldOf (auth: AuthContext, name: string): string | null {
  switch (name) {
    case 'userId': case 'tenantId': case 'role': case 'issuer': case 'authType': return auth[name]
  }
  const value: unknown = Object.hasOwn(auth.user, name) ? Reflect.get(auth.user, name) : null
  return (typeof value === 'string' && value !== '') || typeof value === 'number' ? String(value) : null
}
