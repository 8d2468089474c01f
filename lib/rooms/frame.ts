/** A message of a room as it goes out: its bytes, and the same with the head of a WebSocket frame before them. */

/** One whole frame of text: FIN and the opcode (RFC 6455 §5.2). A server does not mask. */
const TEXT = 0x81
const [SHORT, MEDIUM] = [126, 65_536]

export class RoomFrame {
  readonly payload: Buffer
  /** Written once, for all who get it. */
  readonly framed: Buffer

  constructor (text: string) {
    this.payload = Buffer.from(text)
    this.framed = Buffer.concat([headOf(this.payload.length), this.payload])
  }

  get length (): number {
    return this.framed.length
  }
}

function headOf (length: number): Buffer {
  if (length < SHORT) return Buffer.from([TEXT, length])
  const head = Buffer.alloc(length < MEDIUM ? 4 : 10)
  head[0] = TEXT
  if (length < MEDIUM) {
    head[1] = 126
    head.writeUInt16BE(length, 2)
  } else {
    head[1] = 127
    head.writeBigUInt64BE(BigInt(length), 2)
  }
  return head
}
