/** The words that option schemas are made of, and the one way to read a value by such a schema. */
import * as v from 'valibot'
import { invalidOption } from './errors.js'

export const DAY = 86_400_000

export const text = (what: string) => v.pipe(v.string(`must be ${what}`), v.nonEmpty(`must be ${what}`))
export const names = (what: string) => v.pipe(v.array(text(what), `must be a list, each ${what}`), v.nonEmpty('must not be empty'))
export const oneOrMore = v.pipe(
  v.union([text('an exact string'), names('an exact string')], 'must be an exact string or a list of them'),
  v.transform(given => typeof given === 'string' ? [given] : given))
export const flag = (byDefault: boolean) => v.optional(v.boolean('must be true or false'), byDefault)
export const within = (min: number, max: number, unit: string) => {
  const message = `must be a number of ${unit} from ${min} to ${max}`
  return v.pipe(v.number(message), v.minValue(min, message), v.maxValue(max, message))
}
export const oneOf = <const Choices extends readonly [string, ...string[]]>(choices: Choices) =>
  v.picklist(choices, `must be one of ${choices.join(', ')}`)
export const fn = <F>() => v.custom<F>(given => typeof given === 'function', 'must be a function')

/** @throws FST_HYBRID_AUTH_INVALID_OPTION naming the path, which begins with `under` */
export function parse<Schema extends v.GenericSchema> (schema: Schema, given: unknown, under: string, where?: string): v.InferOutput<Schema> {
  const result = v.safeParse(schema, given)
  if (result.success) {
    const list = listForObject(given, result.output, under)
    if (list !== null) throw invalidOption(list === '' ? 'options' : list, where === undefined ? NO_OBJECT : `${NO_OBJECT} (${where})`)
    return result.output
  }
  // A name that is mistyped explains the one that is missing.
  const [first, ...others] = result.issues
  const issues = [...deeper(first, []), ...others.flatMap(other => deeper(other, []))] as const
  const { issue, path: steps } = issues.find(found => isUnknownName(found.issue)) ?? issues[0]
  const path = [under, ...steps].filter(part => part !== '').join('.')
  const isMissing = issue.type === 'strict_object' && issue.received === 'undefined'
  const why = isUnknownName(issue) ? 'is not an option' : isMissing ? 'is required' : issue.type === 'strict_object' ? NO_OBJECT : issue.message
  throw invalidOption(path === '' ? 'options' : path, where === undefined ? why : `${why} (${where})`)
}

const NO_OBJECT = 'must be an object'

/** A list has no unknown names, and would pass for an object of which nothing was given: an open door where that is a rule. */
function listForObject (given: unknown, read: unknown, path: string): string | null {
  // What was taken as it is was no object of options.
  if (given === read || !isObject(given) || !isObject(read) || Array.isArray(read)) return null
  if (Array.isArray(given)) return path
  for (const name of Object.keys(read)) {
    const found = listForObject(Reflect.get(given, name), Reflect.get(read, name), path === '' ? name : `${path}.${name}`)
    if (found !== null) return found
  }
  return null
}

function isObject (value: unknown): value is object {
  return typeof value === 'object' && value !== null
}

interface Found {
  readonly issue: v.BaseIssue<unknown>
  readonly path: readonly string[]
}

/** A member of an object, and not one of a list. */
const isName = (step: string | undefined): boolean => step !== undefined && !/^\d/.test(step)

/** Of a value that may be one thing or another, what is wrong inside of it; where it is neither, that. */
function deeper (issue: v.BaseIssue<unknown>, before: readonly string[]): [Found, ...Found[]] {
  const path = [...before, v.getDotPath(issue) ?? ''].filter(part => part !== '')
  const [first, ...others] = (issue.issues ?? []).flatMap(one => deeper(one, path)).filter(one => isName(one.path[path.length]))
  return first === undefined ? [{ issue, path }] : [first, ...others]
}

function isUnknownName ({ type, expected }: v.BaseIssue<unknown>): boolean {
  return type === 'strict_object' && expected === 'never'
}
