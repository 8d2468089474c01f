/** What a dependency threw, and what a mapper returned, for the operator: never in the words of either. */
import type { FastifyBaseLogger } from 'fastify'

/** As classes of errors are named, and as codes of errors are written: what is neither may be anything. */
const NAME = /^[A-Z][A-Za-z]{0,40}$/
const CODE = /^[A-Z][A-Z0-9_]{1,40}$/
/** A line of a stack: a function, and a place in a file. */
const FRAME = /^ {4}at [^\n]*:\d+:\d+\)?$/

/**
 * Writes down what a dependency threw, by name, code and stack frames. Its message stays out: messages quote what they
 * were given, and that may be a token or a session id.
 */
export function logFault (log: FastifyBaseLogger, where: string, error: unknown, message = `authentication failed in ${where}`): void {
  log.error({ hybridAuth: { where, ...describe(error) } }, message)
}

function describe (error: unknown): object {
  if (!(error instanceof Error)) return { thrown: typeof error }
  try {
    const name: unknown = error.name
    const code = codeOf(error) ?? codeOf(error.cause)
    return {
      name: typeof name === 'string' && NAME.test(name) ? name : 'Error',
      ...(code !== undefined && { code }),
      frames: framesOf(error.message, error.stack)
    }
  } catch {
    // Errors may be anything too, and what they are must not be worse than what they tell.
    return { name: 'Error' }
  }
}

/** The stack begins with the message, which may hold lines that look like frames. Where it is another one, nothing can be told apart. */
function framesOf (message: unknown, stack: unknown): string[] {
  if (typeof message !== 'string' || typeof stack !== 'string') return []
  const at = stack.indexOf(message)
  return at === -1 ? [] : stack.slice(at + message.length).split('\n').filter(line => FRAME.test(line))
}

/** What `fetch` throws says in its cause why. */
function codeOf (error: unknown): string | number | undefined {
  const code: unknown = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined
  return isCode(code) ? code : undefined
}

function isCode (code: unknown): code is string | number {
  return typeof code === 'number' || (typeof code === 'string' && CODE.test(code))
}

/** Says once of each mapper that what it returns names nobody: its users see a 401 like everybody else's. */
export function createIdentityWarning (log: FastifyBaseLogger): (option: string) => void {
  const told = new Set<string>()
  return function warnOfIdentity (option) {
    if (told.has(option)) return
    told.add(option)
    log.warn(`${option} returned something that is no identity: userId, role and tenantId are texts of 1 to 1024 characters, permissions a list of texts`)
  }
}
