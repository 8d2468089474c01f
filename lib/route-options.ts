/** The `auth` option of a route, strict at every depth, and every default. */
import * as v from 'valibot'
import type { AuthType } from '../types/context.js'
import type { MessageRule, RequirementRule, RouteAuth, Rule, RuleFunction } from '../types/rules.js'
import { invalidOption } from './errors.js'
import type { MessageRules } from './policy/messages.js'
import type { Rate } from './policy/bucket.js'
import type { Rates, RouteRates } from './policy/rates.js'
import { DAY, flag, fn, names, oneOf, parse, text, within } from './schema.js'

const AUTH_TYPES = ['jwt', 'oauth2', 'session'] as const satisfies readonly AuthType[]

/** As it stands in a challenge, in quotes and between spaces (RFC 6749 §3.3). */
const ACR = 'must be a text without spaces and quotes, or a list of them'
const acr = v.pipe(v.string(ACR), v.regex(/^[\x21\x23-\x5b\x5d-\x7e]+$/, ACR))

const requirement = {
  permissions: v.optional(names('a permission')),
  anyPermission: v.optional(names('a permission')),
  role: v.optional(text('a role')),
  roles: v.optional(names('a role')),
  types: v.optional(v.pipe(v.array(oneOf(AUTH_TYPES), 'must be a list'), v.nonEmpty('must not be empty'))),
  acr: v.optional(v.union([acr, v.pipe(v.array(acr), v.nonEmpty('must not be empty'))], ACR)),
  maxAuthAge: v.optional(within(1000, 400 * DAY, 'milliseconds')),
  check: v.optional(fn<RuleFunction>())
}
const bucket = {
  capacity: within(1, 1e9, 'messages or bytes'),
  refillPerSecond: within(0.001, 1e9, 'messages or bytes a second')
}
/** `{ capacity, refillPerSecond, bytes: { capacity, refillPerSecond } }`, of which either part may be missing. */
const rates = {
  capacity: v.optional(bucket.capacity),
  refillPerSecond: v.optional(bucket.refillPerSecond),
  bytes: v.optional(v.strictObject(bucket))
}
interface GivenRates { capacity?: number | undefined, refillPerSecond?: number | undefined, bytes?: Rate | undefined }

const isWhole = ({ capacity, refillPerSecond }: GivenRates) => (capacity === undefined) === (refillPerSecond === undefined)
const limitsSomething = ({ capacity, bytes }: GivenRates) => capacity !== undefined || bytes !== undefined
const WHOLE = 'needs both capacity and refillPerSecond, or neither'
const readRates = ({ capacity, refillPerSecond, bytes }: GivenRates): Rates => ({
  messages: capacity === undefined || refillPerSecond === undefined ? null : { capacity, refillPerSecond },
  bytes: bytes ?? null
})
const userRates = v.pipe(
  v.strictObject({ ...rates, shared: flag(false) }),
  v.check(given => isWhole(given), WHOLE),
  v.check(given => limitsSomething(given), 'limits nothing'),
  v.transform(({ shared, ...given }) => ({ ...readRates(given), shared })))
const rate = v.pipe(
  v.strictObject({ ...rates, perUser: v.optional(userRates) }),
  v.check(given => isWhole(given), WHOLE),
  v.check(given => limitsSomething(given) || given.perUser !== undefined, 'limits nothing'),
  v.transform(({ perUser, ...given }): RouteRates => ({ ...readRates(given), perUser: perUser ?? null })))

export const requirementRule = v.strictObject(requirement, 'must be an object or a function')
const FIRST_MESSAGE_TIMEOUT = 5000
const socketRule = {
  authorize: v.optional(fn<MessageRule>()),
  // Read where the error can say of which type it is.
  messages: v.optional(v.custom<object>(given => typeof given === 'object' && given !== null && !Array.isArray(given), 'must be an object')),
  rooms: flag(false),
  onRefused: v.optional(oneOf(['error', 'close']), 'error'),
  rate: v.optional(rate),
  firstMessage: v.optional(v.pipe(
    v.union([
      v.pipe(v.boolean(), v.transform(on => ({ timeout: on ? FIRST_MESSAGE_TIMEOUT : 0 }))),
      v.strictObject({ timeout: v.optional(within(10, 600_000, 'milliseconds'), FIRST_MESSAGE_TIMEOUT) })
    ], 'must be true, false or { timeout }'),
    v.transform(({ timeout }) => timeout)), false),
  control: v.optional(v.boolean('must be true or false')),
  sessionMaxAge: v.optional(within(0, DAY, 'milliseconds'))
}
const httpRouteRule = v.strictObject({ ...requirement, optional: flag(false) }, 'must be true, false, an object or a function')
const socketRouteRule = v.strictObject({ ...requirement, optional: flag(false), ...socketRule }, 'must be true, false, an object or a function')

/** A route's `auth` option with every default; an HTTP route has those of a socket too, and no use for them. */
export type ParsedRouteRule = Omit<v.InferOutput<typeof socketRouteRule>, 'messages'> & { readonly messages?: MessageRules | undefined }

/** The rule of `require()`. @throws FST_HYBRID_AUTH_INVALID_OPTION */
export function parseRule (given: Rule | undefined): ParsedRouteRule {
  const requirement = parse(requirementRule, typeof given === 'function' ? { check: given } : given ?? {}, 'require')
  return { ...parse(socketRouteRule, requirement, 'require'), messages: undefined }
}

/**
 * A route's `auth` option; null where it opens the route.
 * @param where which route it is, for the error
 * @throws FST_HYBRID_AUTH_INVALID_OPTION, also for what only a socket has on an HTTP route
 */
export function parseRouteAuth (given: RouteAuth, isSocket: boolean, where?: string): ParsedRouteRule | null {
  if (given === false) return null
  const rule = given === true ? {} : typeof given === 'function' ? { check: given } : given
  if (!isSocket) parse(httpRouteRule, rule, 'auth', where)
  const { messages, ...parsed } = parse(socketRouteRule, rule, 'auth', where)
  const rules = messages === undefined ? undefined : parseMessages(messages, where)
  const taken = parsed.rooms && rules?.field === 'type' ? ROOM_FRAMES.find(type => rules.rules.has(type)) : undefined
  if (taken !== undefined) throw invalidOption(`auth.messages.${taken}`, `is a frame about rooms, of which the option rooms decides${where === undefined ? '' : ` (${where})`}`)
  return { ...parsed, messages: rules }
}

const ROOM_FRAMES = ['join', 'leave', 'message']

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the type */
function parseMessages (given: object, where: string | undefined): MessageRules {
  const rules = new Map<string, RequirementRule>()
  let field = 'type'
  let isDefaultAllowed = false
  for (const [type, rule] of Object.entries(given) as Array<[string, unknown]>) {
    if ((type === 'field' || type === 'default') && rule === undefined) continue
    if (type === '') parse(text('a type'), type, 'auth.messages', where)
    if (type === 'field' && typeof rule === 'string') field = parse(text('the name of a member'), rule, 'auth.messages.field', where)
    else if (type === 'default' && typeof rule === 'string') isDefaultAllowed = parse(oneOf(['allow', 'deny']), rule, 'auth.messages.default', where) === 'allow'
    else rules.set(type, parse(requirementRule, typeof rule === 'function' ? { check: rule } : rule, `auth.messages.${type}`, where))
  }
  return { field, isDefaultAllowed, rules }
}
