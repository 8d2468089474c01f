/** What is kept of the rooms of a pattern, beside who may be in them. */
import type { Retention } from '../cluster/history.js'
import { findPattern, segmentsOf, type RoomPattern } from './patterns.js'

export interface RoomTerms {
  /** null: nothing is kept. */
  readonly history: Retention | null
  /** How long an id of a client's message is not taken a second time, in milliseconds; 0: it may come again. */
  readonly repeats: number
}

const NONE: RoomTerms = { history: null, repeats: 0 }

/** @param patterns null: there are none */
export function compileTerms (patterns: readonly RoomPattern[] | null): (room: string) => RoomTerms {
  if (patterns?.some(({ history, repeats }) => history !== null || repeats > 0) !== true) return () => NONE
  const compiled = patterns.map(one => ({ ...one, segments: segmentsOf(one.pattern) }))
  return room => findPattern(compiled, segmentsOf(room)) ?? NONE
}
