/** The `rooms` option, strict at every depth, and every default. */
import * as v from 'valibot'
import type { RoomAuthorize } from '../../types/rooms.js'
import type { RequirementRule } from '../../types/rules.js'
import { invalidOption } from '../errors.js'
import { DAY, fn, parse, within } from '../schema.js'
import { requirementRule } from '../route-options.js'
import type { RoomPattern } from './patterns.js'

/** No wildcards, quotes, spaces or control characters: nothing that another system could read as more than a name. */
const NAME = /^[\p{L}\p{N}\p{M}_.:/@=,;~+!&%-]+$/u
const PATTERN = /^(?:[^:/]+|:[A-Za-z_]\w*)(?:\/(?:[^:/]+|:[A-Za-z_]\w*))*$/u

const whole = (min: number, max: number, unit: string) => v.pipe(within(min, max, unit), v.integer('must be a whole number'))

export const roomOptions = v.strictObject({
  authorize: v.optional(fn<RoomAuthorize>()),
  // Read where the error can say which of them it is.
  patterns: v.optional(v.custom<object>(given => Array.isArray(given) || isPlainObject(given), 'must be a list of patterns, or an object of them')),
  maxPerConnection: v.optional(whole(1, 1e6, 'rooms'), 100),
  maxNameLength: v.optional(whole(1, 1024, 'characters'), 128),
  maxPayload: v.optional(whole(1, 1_048_576, 'bytes'), 65_536),
  maxBuffered: v.optional(whole(1024, 1e9, 'bytes'), 1_048_576)
})

export type RoomSettings = Pick<v.InferOutput<typeof roomOptions>, 'maxPerConnection' | 'maxNameLength' | 'maxPayload' | 'maxBuffered'>

/** null: none were given. @throws FST_HYBRID_AUTH_INVALID_OPTION naming the pattern */
export function parsePatterns (given: object | undefined, { maxNameLength }: RoomSettings): RoomPattern[] | null {
  if (given === undefined) return null
  const forms = new Set<string>()
  if (Object.keys(given).length === 0) throw invalidOption('rooms.patterns', 'must not be empty')
  const all: Array<[name: string, pattern: unknown, access: unknown]> = Array.isArray(given)
    ? given.map((pattern: unknown, i) => [String(i), pattern, true])
    : Object.entries(given).map(([pattern, access]: [string, unknown]) => [pattern, pattern, access])
  return all.map(([name, pattern, access]) => {
    const path = `rooms.patterns.${name}`
    const read = patternOf(path, pattern, access)
    const form = formOf(read.pattern)
    if (form.length > maxNameLength) throw invalidOption(path, 'is longer than any name: see rooms.maxNameLength')
    if (forms.has(form)) throw invalidOption(path, 'has the form of an earlier one, which decides about all names of it')
    forms.add(form)
    return read
  })
}

/** What tells its names from those of other patterns. */
function formOf (pattern: string): string {
  return pattern.replaceAll(/:[^/]+/g, ':')
}

/** A Map or a Set would be one without patterns. */
function isPlainObject (given: unknown): boolean {
  return typeof given === 'object' && given !== null && [Object.prototype, null].includes(Object.getPrototypeOf(given) as object | null)
}

function patternOf (path: string, pattern: unknown, access: unknown): RoomPattern {
  if (typeof pattern !== 'string' || !PATTERN.test(pattern) || !NAME.test(pattern)) {
    throw invalidOption(path, 'must be names parted by slashes, of which one that begins with a colon is a member of the context')
  }
  if (!isByAction(access)) {
    const rule = ruleOf(path, access)
    return { pattern, join: rule, publish: rule, history: null, repeats: 0 }
  }
  const { join = false, publish = false, history = null, repeats = 0 } = parse(byAction, access, path)
  const read = { pattern, join: ruleOf(`${path}.join`, join), publish: ruleOf(`${path}.publish`, publish), history, repeats }
  if (history !== null && read.join === null) throw invalidOption(`${path}.history`, 'is for nobody where nobody may join')
  if (repeats > 0 && read.publish === null) throw invalidOption(`${path}.repeats`, 'has no use where no client may publish')
  return read
}

const MAX_AGE = 300_000
const kept = whole(1, 10_000, 'messages')
const retention = v.pipe(
  v.union([kept, v.strictObject({ messages: kept, maxAge: v.optional(within(1, DAY, 'milliseconds'), MAX_AGE) })], 'must be a number of messages from 1 to 10000, or { messages, maxAge }'),
  v.transform(given => typeof given === 'number' ? { messages: given, maxAge: MAX_AGE } : given))
const byAction = v.strictObject({
  join: v.optional(v.unknown()), publish: v.optional(v.unknown()), history: v.optional(retention), repeats: v.optional(within(1, DAY, 'milliseconds'))
})

function isByAction (access: unknown): boolean {
  return typeof access === 'object' && access !== null && ['join', 'publish', 'history', 'repeats'].some(name => name in access)
}

/** null: nobody. */
function ruleOf (path: string, access: unknown): RequirementRule | null {
  if (typeof access === 'boolean') return access ? {} : null
  const rule = parse(requirementRule, typeof access === 'function' ? { check: access } : access, path)
  if (Object.keys(rule).length === 0) throw invalidOption(path, 'says nothing: write true for whoever fits, false for nobody')
  return rule
}

export function isRoomName (room: unknown, { maxNameLength }: RoomSettings): room is string {
  return typeof room === 'string' && room.length <= maxNameLength && NAME.test(room)
}
