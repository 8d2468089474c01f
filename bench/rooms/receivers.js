/** The clients, in a process of their own: raw sockets that shake hands, and then count the bytes that come. */
import { EventEmitter, once } from 'node:events'
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { answerRequests } from '../ipc.js'
import { sharedNow } from '../probe.js'
import { createIssuer } from '../tokens.js'

// A closed connection blocks its pair of ports for a minute. Only Linux has all of 127.0.0.0/8 on its loopback.
const SOURCES = process.platform === 'linux' ? 64 : 1
const CONCURRENCY = 64
/** Nothing is on its way any more when nothing came for so long, in milliseconds. */
const STILL = 200
// "40", which joins the main namespace of Socket.IO, masked with zeros.
const CONNECT_IO = Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0x34, 0x30])

/** All read into it: nothing of what comes is kept. */
const buffer = Buffer.allocUnsafe(64 * 1024)
const seen = new EventEmitter()
let opened = 0
let received = 0
let wanted = Infinity
let last = 0

answerRequests({
  /** @param isIo the server speaks Socket.IO @param protocol that is offered */
  async open ({ count, port, path, secret, isIo, protocol }) {
    const token = createIssuer('HS256', secret)()
    let left = count
    await Promise.all(Array.from({ length: CONCURRENCY }, async () => {
      while (left-- > 0) await open(port, path, [`Authorization: Bearer ${token}`, ...(protocol === undefined ? [] : [`Sec-WebSocket-Protocol: ${protocol}`])], isIo)
    }))
  },
  /** @returns how many bytes came since they were last asked for, once no more come */
  async settle () {
    for (let before = -1; before !== received; await setTimeout(STILL)) before = received
    const count = received
    received = 0
    return count
  },
  /** Waits for so many bytes since they were last asked for. @returns when the last of them came */
  async drained ({ bytes }) {
    wanted = bytes
    if (received < wanted) await once(seen, 'drained')
    if (received !== bytes) throw new Error(`${received} bytes came instead of ${bytes}`)
    received = 0
    wanted = Infinity
    return last
  }
})

function open (port, path, headers, isIo) {
  return new Promise((resolve, reject) => {
    let answer = ''
    const socket = connect({
      port,
      host: '127.0.0.1',
      ...(SOURCES > 1 && { localAddress: `127.0.0.${2 + opened++ % SOURCES}` }),
      onread: {
        buffer,
        callback (length) {
          received += length
          if (answer !== null) shakeHands(buffer.latin1Slice(0, length))
          else if (received >= wanted) {
            last = sharedNow()
            seen.emit('drained')
          }
          return true
        }
      }
    })
    socket.setNoDelay(true)
    socket.on('error', reject)
    socket.write([
      `GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
      `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, ...headers, '', ''
    ].join('\r\n'))

    function shakeHands (text) {
      answer += text
      if (!answer.includes('\r\n\r\n')) return
      if (!answer.startsWith('HTTP/1.1 101')) {
        reject(new Error(`${path} answered ${answer}`))
        return
      }
      answer = null
      if (isIo) socket.write(CONNECT_IO)
      resolve()
    }
  })
}
