/** A position as clients have it: a text that means nothing to them. */
import type { Position } from '../cluster/history.js'

const CURSOR = /^([\w-]{1,32})\.(0|[1-9]\d{0,15})$/

export function cursorOf ({ epoch, number }: Position): string {
  return `${epoch}.${number}`
}

/** null: it is no cursor of ours. */
export function parseCursor (text: string): Position | null {
  const [, epoch, digits] = CURSOR.exec(text) ?? []
  const number = Number(digits)
  return epoch !== undefined && Number.isSafeInteger(number) ? { epoch, number } : null
}
