/** One table of rows, each held to its bound. */
import { availableParallelism } from 'node:os'
import { head, line } from './statistics.js'

/** @param parts what measures some rows, by name; `wanted` are the names of those that run, or none for all */
export async function printParts (parts, wanted) {
  console.log(`Node.js ${process.version}, ${availableParallelism()} cores\n`)
  console.log(head(['row', 'result', 'spread', 'beside it', 'goal', 'verdict']))
  for (const [name, measure] of Object.entries(parts)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue
    for (const row of await measure()) console.log(describe(row))
  }
}

function describe ({ name, value, spread = '', beside = '', digits = 0, note, goal, ...bounds }) {
  if (note !== undefined) return line([name, note, '', '', '', ''])
  const [text, excess] = hold(value, bounds)
  const verdict = excess === null ? '' : excess <= 0 ? 'met' : `missed by ${excess.toFixed(digits)}`
  return line([name, value.toFixed(digits), spread, beside, goal ?? text, verdict])
}

/** The goal in words, and by how much it is missed; null: there is none. */
function hold (value, { atMost, atLeast, within }) {
  if (atMost !== undefined) return [`≤ ${atMost}`, value - atMost]
  if (atLeast !== undefined) return [`≥ ${atLeast}`, atLeast - value]
  if (within !== undefined) return [`1 ± ${within}`, Math.abs(value - 1) - within]
  return ['', null]
}
