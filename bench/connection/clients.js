/** The clients, in a process of their own, on raw sockets. */
import { EventEmitter, once } from 'node:events'
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { answerRequests } from '../ipc.js'
import { sharedNow } from '../probe.js'
import { createIssuer } from '../tokens.js'

// A closed connection blocks its pair of ports for a minute. Only Linux has all of 127.0.0.0/8 on its loopback.
const SOURCES = process.platform === 'linux' ? 64 : 1
const CONCURRENCY = 64
const CLOSE = 0x88
// What an application sends: JSON that begins as our own frames do, so that it has to be told from them.
const TEXT = Buffer.from('{"type":"chat","room":"lobby","text":"hello to everybody who is here"}')
const HEADER_LENGTH = 2

const all = new Set()
let opened = 0
/** Close frames that nobody asked for yet. */
let closes = []
const seen = new EventEmitter()

answerRequests({
  /**
   * Opens `count` sockets.
   * @param isShared one token for all of them
   * @param users over which the tokens are dealt, from the `first` on; they end at `exp`
   * @param claims of every token
   */
  async open ({ secret, count, isShared, users = 1, first = 0, exp, claims, ...where }) {
    const issue = createIssuer('HS256', secret)
    const claimsOf = index => ({ sub: userId(first + index % users), ...(exp !== undefined && { exp }), ...claims })
    const shared = isShared ? issue(claimsOf(0)) : null
    const tokens = Array.from({ length: count }, (_, index) => shared ?? issue(claimsOf(index)))
    await Promise.all(Array.from({ length: CONCURRENCY }, async () => {
      while (tokens.length > 0) await open(where, tokens.pop())
    }))
  },
  async closeAll () {
    const closed = [...all].map(socket => once(socket, 'close'))
    for (const socket of all) socket.destroy()
    await Promise.all(closed)
  },
  /** When the next `count` close frames came, by the shared clock, and the codes in them. */
  async closes ({ count }) {
    while (closes.length < count) await once(seen, 'close')
    const taken = closes
    closes = []
    const times = taken.map(({ at }) => at)
    return { count: taken.length, first: Math.min(...times), last: Math.max(...times), codes: [...new Set(taken.map(({ code }) => code))] }
  },
  /** Every open socket on `path` sends `rounds` times `pipelined` frames in one piece, each when the last was echoed. */
  async echo ({ port, path, rounds, pipelined }) {
    const piece = Buffer.concat(Array(pipelined).fill(maskedFrame(TEXT)))
    const echoed = pipelined * (HEADER_LENGTH + TEXT.length)
    const sockets = [...all].filter(socket => socket.remotePort === port && socket.path === path)
    const start = performance.now()
    await Promise.all(sockets.map(socket => exchange(socket, piece, echoed, rounds)))
    return { count: sockets.length * rounds * pipelined, seconds: (performance.now() - start) / 1000 }
  }
})

export function userId (index) {
  return `user-${index}`
}

function open ({ port, path }, token) {
  return new Promise((resolve, reject) => {
    const source = SOURCES > 1 && { localAddress: `127.0.0.${2 + opened++ % SOURCES}` }
    const socket = connect({ port, host: '127.0.0.1', ...source })
    socket.path = path
    socket.setNoDelay(true)
    socket.on('error', reject)
    socket.on('close', () => { all.delete(socket) })
    socket.once('data', answer => {
      if (!answer.latin1Slice().startsWith('HTTP/1.1 101')) {
        reject(new Error(`${path} answered ${answer}`))
        return
      }
      all.add(socket)
      socket.on('data', answerClose)
      resolve()
    })
    socket.write([
      `GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
      `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, `Authorization: Bearer ${token}`, '', ''
    ].join('\r\n'))
  })
}

/** As every client does; the server then ends the connection. */
function answerClose (chunk) {
  if (chunk[0] !== CLOSE) return
  closes.push({ at: sharedNow(), code: chunk.readUInt16BE(HEADER_LENGTH) })
  seen.emit('close')
  this.write(maskedFrame(chunk.subarray(HEADER_LENGTH), CLOSE))
}

function exchange (socket, piece, echoed, rounds) {
  return new Promise(resolve => {
    let missing = 0
    let left = rounds
    const onData = chunk => {
      missing -= chunk.length
      if (missing === 0) next()
    }
    const next = () => {
      if (left-- === 0) {
        socket.off('data', onData)
        resolve()
        return
      }
      missing = echoed
      socket.write(piece)
    }
    socket.on('data', onData)
    next()
  })
}

/** A frame as clients send it (RFC 6455 §5.3), of at most 125 bytes; text where nothing else is said. */
function maskedFrame (payload, firstByte = 0x81) {
  const mask = randomBytes(4)
  return Buffer.concat([Buffer.from([firstByte, 0x80 | payload.length]), mask, payload.map((byte, i) => byte ^ mask[i % 4])])
}
