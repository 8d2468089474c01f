/** Copies foreign data into frozen plain data, so that nothing later can change it or smuggle a prototype in. */

export type Plain = string | number | boolean | null | readonly Plain[] | PlainObject
export interface PlainObject { readonly [key: string]: Plain }

const MAX_DEPTH = 64
/** Names that mean something else than a member. */
export const POISONED: ReadonlySet<string> = new Set(['__proto__', 'constructor', 'prototype'])

/**
 * A frozen deep copy of what JSON would keep of `value`: own enumerable members only, `toJSON` honoured.
 * @throws TypeError past 64 levels (a cycle included) or on a bigint
 */
export function plain (value: unknown, depth = 0): Plain | undefined {
  switch (typeof value) {
    case 'string': case 'boolean': return value
    case 'number': return Number.isFinite(value) ? value : null
    case 'object': return value === null ? null : plainContainer(value, depth)
    case 'bigint': throw new TypeError('a bigint is not plain data')
    default: return undefined
  }
}

function plainContainer (value: object, depth: number): Plain | undefined {
  if (depth >= MAX_DEPTH) throw new TypeError('data is nested too deeply')
  if (Array.isArray(value)) {
    return Object.freeze(value.map(item => plain(item, depth + 1) ?? null))
  }
  if ('toJSON' in value && typeof value.toJSON === 'function') return plain(Reflect.apply(value.toJSON, value, []), depth + 1)
  return plainObject(value, depth)
}

/**
 * Freezes what `JSON.parse` has just made, in place: it is plain already, and nobody else holds it.
 * @throws TypeError past 64 levels
 */
export function freezeParsed (value: object, depth = 0): PlainObject {
  if (depth >= MAX_DEPTH) throw new TypeError('data is nested too deeply')
  for (const key in value) {
    if (POISONED.has(key)) Reflect.deleteProperty(value, key)
    else {
      const member: unknown = Reflect.get(value, key)
      if (typeof member === 'object' && member !== null) freezeParsed(member, depth + 1)
    }
  }
  return Object.freeze(value as PlainObject)
}

/** {@link plain} for what is known to be an object. */
export function plainObject (value: object, depth = 0): PlainObject {
  const copy: Record<string, Plain> = {}
  for (const [key, member] of Object.entries(value)) {
    if (POISONED.has(key)) continue
    const kept = plain(member, depth + 1)
    if (kept !== undefined) copy[key] = kept
  }
  return Object.freeze(copy)
}
