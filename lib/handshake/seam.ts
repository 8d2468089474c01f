/** The places where @fastify/websocket is taken hold of, once per server however many scopes register the plugin. */
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import type { FastifyInstance } from 'fastify'

import { guardedClass } from '../connection/socket.js'
import { authError } from '../errors.js'
import { logFault } from '../observe/faults.js'
import { admissionOf, admitUpgrade, type Socket } from '../request.js'
import { composeHandleProtocols } from './subprotocol.js'

const INSTALLED = Symbol.for('fastify-hybrid-auth.seam')

/** Does nothing where @fastify/websocket is not registered (yet), or the seam is in place. */
export function installSeam (app: FastifyInstance): void {
  if (!app.hasDecorator('websocketServer')) return
  const server = app.websocketServer
  if (Object.hasOwn(server, INSTALLED)) return
  Object.defineProperty(server, INSTALLED, { value: true })

  const { options } = server
  if (options.WebSocket !== undefined) options.WebSocket = guardedClass(options.WebSocket)
  options.handleProtocols = composeHandleProtocols(options.handleProtocols, error => { logFault(app.log, 'handleProtocols', error) })

  const upgrade = server.handleUpgrade.bind(server)
  server.handleUpgrade = function handleGuardedUpgrade (raw, net, head, callback) {
    const admission = admissionOf(raw)
    if (admission === undefined) refuseUnguarded(app, raw, net)
    else if (admission === null) upgrade(raw, net, head, callback)
    else {
      // It is not kept with the request, which lives as long as its socket.
      admitUpgrade(raw, null)
      upgrade(raw, net, head, (socket, request) => { admission(socket, net, () => { callback(socket, request) }) })
    }
  }
}

/** The handler is about to run and no guard ever saw this upgrade: the route is older than the plugin, or outside of it. */
function refuseUnguarded (app: FastifyInstance, raw: IncomingMessage, net: Duplex): void {
  const { code, message, statusCode } = authError('FST_HYBRID_AUTH_UNGUARDED_ROUTE')
  app.log.error({ code, path: pathOf(raw) },
    'refused a WebSocket upgrade on a route without a guard: declare the route after `await app.register(hybridAuth)` and within its scope, or there with `auth: false`')
  const body = JSON.stringify({ statusCode, code, error: 'Service Unavailable', message })
  net.once('error', () => { net.destroy() })
  net.end([
    'HTTP/1.1 503 Service Unavailable', 'Connection: close', 'Content-Type: application/json; charset=utf-8',
    `Content-Length: ${Buffer.byteLength(body)}`, '', body
  ].join('\r\n'))
}

/** Without the query, which may hold a token. */
function pathOf ({ url }: IncomingMessage): string {
  return String(url).split('?', 1).join()
}

/** Accepts an upgrade before its route was reached. false: this one cannot be accepted. */
export function acceptEarly (app: FastifyInstance, raw: IncomingMessage, accepted: (socket: Socket, net: Duplex) => void): boolean {
  const pending = pendingUpgrade(raw)
  if (pending === null || !app.hasDecorator('websocketServer')) return false
  const { net, head } = pending
  app.websocketServer.handleUpgrade(raw, net, head, (socket: Socket) => { accepted(socket, net) })
  return true
}

/** @fastify/websocket keeps both on the raw request under symbols of its own; their descriptions are all there is to know them by. */
function pendingUpgrade (raw: IncomingMessage): { readonly net: Duplex, readonly head: Buffer } | null {
  const kept = new Map(Object.getOwnPropertySymbols(raw).map(symbol => [symbol.description, symbol]))
  const [ofSocket, ofHead] = [kept.get('ws-socket'), kept.get('ws-head')]
  if (ofSocket === undefined || ofHead === undefined) return null
  const net: unknown = Reflect.get(raw, ofSocket)
  const head: unknown = Reflect.get(raw, ofHead)
  return isDuplex(net) && Buffer.isBuffer(head) ? { net, head } : null
}

function isDuplex (value: unknown): value is Duplex {
  return typeof value === 'object' && value !== null && 'write' in value && 'read' in value
}
