/** A frame as a route's `authorize` sees it: decoded and parsed only if asked, and then once. */
import type { Message } from '../../types/connection.js'
import type { RawFrame } from './socket.js'

const UNPARSED = Symbol('unparsed')

/** One object serves every synchronous verdict of a route: judging a message allocates nothing. */
export class ReusableMessage implements Message {
  isBinary = false
  #raw: RawFrame = Buffer.alloc(0)
  #text: string | null = null
  #json: unknown = UNPARSED

  set (raw: RawFrame, isBinary: boolean): this {
    this.#raw = raw
    this.isBinary = isBinary
    this.#text = null
    this.#json = UNPARSED
    return this
  }

  get data (): Buffer {
    const data = toBuffer(this.#raw)
    this.#raw = data
    return data
  }

  text (): string {
    this.#text ??= this.data.toString('utf8')
    return this.#text
  }

  json (): unknown {
    if (this.#json === UNPARSED) this.#json = JSON.parse(this.text())
    return this.#json
  }
}

/** Without a copy where there is one piece. @throws TypeError on a Blob, which can only be read asynchronously */
export function toBuffer (raw: RawFrame): Buffer {
  if (Buffer.isBuffer(raw)) return raw
  if (raw instanceof Blob) throw new TypeError('a Blob cannot be read at once: give the socket another binaryType')
  return Array.isArray(raw) ? Buffer.concat(raw) : Buffer.from(raw)
}

export function byteLengthOf (raw: RawFrame): number {
  if (Array.isArray(raw)) return raw.reduce((sum, part) => sum + part.byteLength, 0)
  return raw instanceof Blob ? raw.size : raw.byteLength
}
