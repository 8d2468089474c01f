/** Median and quartiles, and the tables made of them. */

/** Linear between the two nearest values. */
export function quantile (values, q) {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const below = Math.floor(at)
  const next = sorted[below + 1] ?? sorted[below]
  return sorted[below] + (next - sorted[below]) * (at - below)
}

export const median = values => quantile(values, 0.5)

/** `q1-q3` */
export function quartiles (values, digits = 2) {
  return `${quantile(values, 0.25).toFixed(digits)}-${quantile(values, 0.75).toFixed(digits)}`
}

/** As one line of a markdown table. */
export const line = cells => `| ${cells.join(' | ')} |`

/** The first two lines of a markdown table. */
export const head = titles => `${line(titles)}\n${line(titles.map(() => '---'))}`
