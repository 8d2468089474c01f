/** The two places where @fastify/websocket is taken hold of, once per server however many scopes register the plugin. */
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { WebSocket } from 'ws'
import { authError, ERRORS, type Refusal } from '../errors.js'
import { logFault } from '../observe/redaction.js'
import { CLOSE, closeReason } from '../protocol.js'
import { hasPassed } from './state.js'
import { composeHandleProtocols } from './subprotocol.js'

const INSTALLED = Symbol.for('fastify-hybrid-auth.seam')
const CLOSE_GRACE = 3000

/** Does nothing where @fastify/websocket is not registered (yet), or the seam is in place. */
export function installSeam (app: FastifyInstance): void {
  if (!app.hasDecorator('websocketServer')) return
  const server = app.websocketServer
  if (Object.hasOwn(server, INSTALLED)) return
  Object.defineProperty(server, INSTALLED, { value: true })

  const upgrade = server.handleUpgrade.bind(server)
  server.handleUpgrade = function handleUpgradeIfPassed (raw, socket, head, callback) {
    if (hasPassed(raw)) upgrade(raw, socket, head, callback)
    else refuseUnguarded(app, raw, socket)
  }
  server.options.handleProtocols = composeHandleProtocols(server.options.handleProtocols, error => {
    logFault(app.log, 'handleProtocols', error)
  })
}

/** The handler is about to run and no guard ever saw this upgrade: the route is older than the plugin, or outside of it. */
function refuseUnguarded (app: FastifyInstance, raw: IncomingMessage, socket: Duplex): void {
  const error = authError('FST_HYBRID_AUTH_UNGUARDED_ROUTE')
  app.log.error({ code: error.code, path: pathOf(raw) },
    'refused a WebSocket upgrade on a route without a guard: declare the route after `await app.register(hybridAuth)` and within its scope, or there with `auth: false`')
  const body = JSON.stringify({ statusCode: error.statusCode, code: error.code, error: 'Service Unavailable', message: error.message })
  socket.once('error', () => { socket.destroy() })
  socket.end([
    'HTTP/1.1 503 Service Unavailable', 'Connection: close', 'Content-Type: application/json; charset=utf-8',
    `Content-Length: ${Buffer.byteLength(body)}`, '', body
  ].join('\r\n'))
}

/** Without the query, which may hold a token. */
function pathOf ({ url = '' }: IncomingMessage): string {
  return url.split('?', 1)[0] ?? ''
}

/** Accepts the upgrade only to close it with a code that a browser can read. false: this upgrade cannot be accepted. */
export function acceptAndClose (app: FastifyInstance, request: FastifyRequest, code: Refusal): boolean {
  const pending = pendingUpgrade(request.raw)
  if (pending === null || !app.hasDecorator('websocketServer')) return false
  const { close } = ERRORS[code]
  app.websocketServer.handleUpgrade(request.raw, pending.socket, pending.head, (socket: WebSocket) => {
    closeWith(socket, CLOSE[close].code, closeReason(close))
  })
  return true
}

/** Closes, reads nothing more, and does not wait for a peer that does not answer. */
function closeWith (socket: WebSocket, code: number, reason: string): void {
  const timer = setTimeout(() => { socket.terminate() }, CLOSE_GRACE)
  timer.unref()
  socket.on('error', () => { socket.terminate() })
  socket.on('message', () => { socket.terminate() })
  socket.on('close', () => { clearTimeout(timer) })
  socket.close(code, reason)
}

interface PendingUpgrade { readonly socket: Duplex, readonly head: Buffer }

/** @fastify/websocket keeps both on the raw request under symbols of its own; their descriptions are all there is to know them by. */
function pendingUpgrade (raw: IncomingMessage): PendingUpgrade | null {
  const kept = new Map(Object.getOwnPropertySymbols(raw).map(symbol => [symbol.description, symbol]))
  const [ofSocket, ofHead] = [kept.get('ws-socket'), kept.get('ws-head')]
  if (ofSocket === undefined || ofHead === undefined) return null
  const socket: unknown = Reflect.get(raw, ofSocket)
  const head: unknown = Reflect.get(raw, ofHead)
  return isDuplex(socket) && Buffer.isBuffer(head) ? { socket, head } : null
}

function isDuplex (value: unknown): value is Duplex {
  return typeof value === 'object' && value !== null && 'write' in value && 'read' in value
}
