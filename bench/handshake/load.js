/**
 * The load, on raw sockets: a WebSocket client costs more than the server under measurement. It has a process of its
 * own, and signs every token before the burst that sends it.
 */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'

const CONCURRENCY = 16
// A closed connection blocks its pair of ports for a minute. Only Linux has all of 127.0.0.0/8 on its loopback.
const SOURCES = process.platform === 'linux' ? 64 : 1
const KEEP_ALIVE_REQUESTS = 4

let ports, cookie, keys
let connections = 0
const issuers = new Map()
const fresh = new Map()
const used = new Map()
const seen = new Map()
const opaque = randomBytes(32).toString('base64url')

answerRequests({
  start (given) {
    ({ ports, cookie, keys } = given)
  },
  /** Signs what `count` handshakes of each variant will need. */
  prepare ({ variants, count }) {
    for (const variant of variants) {
      const [how, algorithm] = variant.credential.split(':')
      if (how !== 'fresh') continue
      const tokens = fresh.get(algorithm) ?? []
      const needed = (used.get(routeOf(variant)) ?? 0) + count
      while (tokens.length < needed) tokens.push(issue(algorithm))
      fresh.set(algorithm, tokens)
    }
  },
  /** @returns how many were answered, and in how many seconds */
  async burst ({ variant, count, concurrency = CONCURRENCY }) {
    const keepAlive = variant.expect === 200
    const requests = Array.from({ length: keepAlive ? 1 : count }, () => requestOf(variant))
    const total = keepAlive ? count * KEEP_ALIVE_REQUESTS : count
    const start = performance.now()
    let next = 0
    await Promise.all(Array.from({ length: concurrency }, async () => {
      if (keepAlive) return exchangeMany(ports[variant.server], requests[0], Math.ceil(total / concurrency))
      while (next < count) await exchange(ports[variant.server], requests[next++], variant)
    }))
    return { count: keepAlive ? Math.ceil(total / concurrency) * concurrency : total, seconds: (performance.now() - start) / 1000 }
  }
})

function issue (algorithm) {
  if (!issuers.has(algorithm)) issuers.set(algorithm, createIssuer(algorithm, keys[algorithm].privateKey))
  return issuers.get(algorithm)()
}

function requestOf (variant) {
  const { server, path, expect } = variant
  const lines = expect === 200
    ? [`GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${ports[server]}`]
    : [
        `GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${ports[server]}`,
        'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13',
        `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`
      ]
  return Buffer.from([...lines, ...credentialLines(variant), '', ''].join('\r\n'))
}

function credentialLines (variant) {
  const [how, algorithm] = variant.credential.split(':')
  switch (how) {
    case 'none': return []
    // A browser, which sends Origin too. It cannot set Authorization: what does sends no Origin.
    case 'session': return [`Cookie: ${cookie}`, `Origin: http://127.0.0.1:${ports[variant.server]}`]
    case 'opaque': return [`Authorization: Bearer ${opaque}`]
    case 'fresh': return [`Authorization: Bearer ${nextFresh(algorithm, variant)}`]
    case 'forged': return [`Authorization: Bearer ${forge(seenToken(algorithm))}`]
    default: return [`Authorization: Bearer ${seenToken(algorithm)}`]
  }
}

/** The two sides of a pair send the same tokens, and neither sends one twice. */
function nextFresh (algorithm, variant) {
  const route = routeOf(variant)
  const index = used.get(route) ?? 0
  used.set(route, index + 1)
  return fresh.get(algorithm)[index]
}

function seenToken (algorithm) {
  if (!seen.has(algorithm)) seen.set(algorithm, issue(algorithm))
  return seen.get(algorithm)
}

/** Right in form, wrong in its first byte. */
function forge (token) {
  const at = token.lastIndexOf('.') + 1
  return token.slice(0, at) + (token[at] === 'A' ? 'B' : 'A') + token.slice(at + 1)
}

const routeOf = ({ server, path }) => server + path

const nextSource = () => `127.0.0.${2 + connections++ % SOURCES}`

function open (port, onData) {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', ...(SOURCES > 1 && { localAddress: nextSource() }) })
    socket.on('data', chunk => { onData(socket, chunk) })
    socket.on('error', reject)
    socket.on('close', resolve)
    socket.setNoDelay(true)
    onData(socket, null)
  })
}

const statusOf = chunk => Number(chunk.latin1Slice('HTTP/1.1 '.length, 'HTTP/1.1 200'.length))

/** One connection, one upgrade. Who was refused waits for the server to hang up. */
async function exchange (port, request, { path, expect }) {
  let status
  await open(port, (socket, chunk) => {
    if (chunk === null) {
      socket.write(request)
    } else if (status === undefined) {
      status = statusOf(chunk)
      if (status === 101) socket.destroy()
    }
  })
  if (status !== expect) throw new Error(`${path} answered ${status}`)
}

/** One connection, one request after the other. The answers are short enough to come in one piece. */
async function exchangeMany (port, request, count) {
  let sent = 0
  await open(port, (socket, chunk) => {
    if (chunk !== null && statusOf(chunk) !== 200) socket.destroy(new Error(`a request was answered ${statusOf(chunk)}`))
    else if (sent++ < count) socket.write(request)
    else socket.destroy()
  })
}
