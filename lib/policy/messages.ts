/** What a route says of each message: rules by type, then a function. */
import type { AuthContext } from '../../types/context.js'
import type { Message } from '../../types/connection.js'
import type { FastifyRequest } from 'fastify'
import type { MessageRule, RequirementRule } from '../../types/rules.js'
import type { Maybe } from '../maybe.js'
import { compileRequirements, FORBIDDEN, type RequirementCheck, type Unmet } from './requirements.js'

/** `true` delivers the message. What is {@link Unmet} says why not; anything else refuses. @throws what the application throws */
export type MessageDecision = (auth: AuthContext, message: Message, request: FastifyRequest) => unknown

/** Rules by type, as they were read from a route's `messages`. */
export interface MessageRules {
  /** The member of a message that holds its type. */
  readonly field: string
  /** Whether messages of other types, and what has none, are allowed. */
  readonly isDefaultAllowed: boolean
  readonly rules: ReadonlyMap<string, RequirementRule>
}

const BYTE_ORDER_MARK = '\ufeff'

/** undefined: every message is delivered. */
export function compileMessageDecision (authorize: MessageRule | undefined, messages: MessageRules | undefined): MessageDecision | undefined {
  if (messages === undefined) return authorize
  const { field, isDefaultAllowed, rules } = messages
  const checks = new Map<string, RequirementCheck>([...rules].map(([type, rule]) => [type, compileRequirements(rule)]))

  return function decideByType (auth, message, request) {
    const type = typeIn(message, field)
    const check = type === null ? undefined : checks.get(type)
    const unmet: Maybe<Unmet | null> = check === undefined ? (isDefaultAllowed && type !== null ? null : FORBIDDEN) : check(auth, request)
    if (unmet instanceof Promise) return unmet.then((late): unknown => late ?? askFunction(auth, message, request))
    return unmet ?? askFunction(auth, message, request)
  }

  function askFunction (auth: AuthContext, message: Message, request: FastifyRequest): unknown {
    return authorize === undefined || authorize(auth, message, request)
  }
}

/**
 * Empty where it has none; null where it has one that is no text, which an application may take for one. Binary frames are read
 * as well: few applications look at how a message came before they parse it.
 */
function typeIn (message: Message, field: string): string | null {
  const value = parsed(message)
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, field)) return ''
  const type: unknown = Reflect.get(value, field)
  return typeof type === 'string' ? type : null
}

/** undefined: it is no JSON, also to readers that skip a byte order mark. */
function parsed (message: Message): unknown {
  try {
    const text = message.text()
    return text.startsWith(BYTE_ORDER_MARK) ? JSON.parse(text.slice(1)) : message.json()
  } catch {
    return undefined
  }
}
