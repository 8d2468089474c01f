/** Handshakes, good and bad, on raw sockets from many addresses. In a process of its own, which signs before it sends. */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'

const CONCURRENCY = 16
/** Addresses that come again and again. */
const SAME = 58

let issue, forge, seen
let made = 0
let connections = 0
let places = 0
/** Only Linux has all of 127.0.0.0/8 on its loopback. */
const addresses = process.platform !== 'linux'
  ? { same: () => undefined, new: () => undefined }
  : {
      same: () => `127.0.0.${2 + connections++ % SAME}`,
      new: () => `127.${1 + (++places >> 16) % 250}.${places >> 8 & 255}.${places & 255}`
    }

/** Everybody claims to be somebody else. */
const stranger = () => ({ sub: `user-${++made}` })

const TOKENS = {
  seen: () => seen,
  fresh: () => issue(stranger()),
  forged: () => forge(stranger()),
  malformed: () => issue(stranger()).slice(0, -5)
}

answerRequests({
  start ({ key }) {
    issue = createIssuer('HS256', key)
    forge = createIssuer('HS256', randomBytes(32).toString('base64url'))
    seen = issue()
  },
  /** @param from addresses: the same ones, or new ones. @param expect the status; null for any. @returns how many seconds it took */
  async burst ({ port, token, from, expect, count }) {
    const requests = Array.from({ length: count }, () => requestOf(port, TOKENS[token]()))
    const start = performance.now()
    await Promise.all(Array.from({ length: CONCURRENCY }, async () => {
      for (let request = requests.pop(); request !== undefined; request = requests.pop()) await exchange({ port, host: '127.0.0.1', localAddress: addresses[from]() }, request, expect)
    }))
    return (performance.now() - start) / 1000
  }
})

function requestOf (port, token) {
  return [
    'GET /live HTTP/1.1', `Host: 127.0.0.1:${port}`, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
    `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, `Authorization: Bearer ${token}`, '', ''
  ].join('\r\n')
}

/** One connection. Who was refused waits for the server to hang up. */
function exchange (where, request, expect) {
  return new Promise((resolve, reject) => {
    const socket = connect(where)
    socket.setNoDelay(true)
    let status
    socket.on('data', chunk => {
      status ??= Number(chunk.latin1Slice('HTTP/1.1 '.length, 'HTTP/1.1 200'.length))
      if (status === 101) socket.destroy()
    })
    socket.on('error', reject)
    socket.on('close', () => {
      if (expect === null || status === expect) resolve()
      else reject(new Error(`the answer was ${status}, not ${expect}`))
    })
    socket.write(request)
  })
}
