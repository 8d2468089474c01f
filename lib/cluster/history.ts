/** What a room with history keeps, and what of it a node is told. */

export interface Retention {
  readonly messages: number
  /** How long, in milliseconds. */
  readonly maxAge: number
}

/** A place in the order of a room. Numbers count its messages; those of another epoch mean nothing. */
export interface Position {
  readonly epoch: string
  readonly number: number
}

/** A message as a node says it. */
export interface Said {
  /** Of all that the node says, which: its messages are numbered in the order in which it says them. */
  readonly sequence: number
  /** As JSON. */
  readonly payload: string
  readonly id?: string | number
}

/** A message in its place. */
export interface Entry extends Said {
  readonly number: number
  /** The node that has said it. */
  readonly from: string
}

/** What is asked for: as much as fits, and one at least. */
export interface Wanted extends Retention {
  readonly bytes: number
  /** A node has had everything up to there: a history that does not reach so far is an older one, and begins anew. */
  readonly isHad: boolean
}

/** A part of a history: everything behind `from` up to `to`, but for what no node can have said. */
export interface Recalled {
  readonly epoch: string
  /** The number of the last that was said. */
  readonly head: number
  readonly from: number
  /** Less than the head where the rest was too much. */
  readonly to: number
  readonly entries: readonly Entry[]
}
