import type { Duplex } from 'node:stream'

/**
 * Counts what comes in ahead of the parser, which would gather a frame of any size before it tells of it.
 * @returns stops the count
 */
export function limitBytes (net: Duplex, max: number, onOver: () => void): () => void {
  let seen = 0
  const count = (chunk: Buffer): void => {
    seen += chunk.length
    if (seen > max) onOver()
  }
  net.prependListener('data', count)
  return () => { net.removeListener('data', count) }
}
