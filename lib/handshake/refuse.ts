/** The answer to who is not let in: one code, no reason. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { authError, ERRORS, type Refusal } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import { acceptAndClose } from './seam.js'
import { markPassed } from './state.js'
import { speaksProtocol } from './subprotocol.js'

const REALM = 'Bearer realm="fastify-hybrid-auth"'
const RETRY_AFTER_SECONDS = '5'

export function createRefuser (app: FastifyInstance, mode: ParsedOptions['refuse']) {
  return function refuse (request: FastifyRequest, reply: FastifyReply, code: Refusal): void {
    if (request.ws) {
      forgetSession(request)
      if (isToldByClose(request, code) && closeAfterUpgrade(request, reply, code)) return
    }
    const { status, challenge } = ERRORS[code]
    // RFC 6750 §3: the challenge names an error only where a token was presented.
    if (status < 500) reply.header('WWW-Authenticate', challenge === undefined ? REALM : `${REALM}, error="${challenge}"`)
    else reply.header('Retry-After', RETRY_AFTER_SECONDS)
    reply.header('Cache-Control', 'no-store').send(authError(code))
  }

  function isToldByClose (request: FastifyRequest, code: Refusal): boolean {
    if (mode !== 'auto') return mode === 'close'
    // A request that contradicts itself is answered as the HTTP request that it is.
    return ERRORS[code].status !== 400 && speaksProtocol(request.headers['sec-websocket-protocol'])
  }

  function closeAfterUpgrade (request: FastifyRequest, reply: FastifyReply, code: Refusal): boolean {
    if (!request.server.hasDecorator('websocketServer')) return false
    reply.hijack()
    markPassed(request.raw)
    return acceptAndClose(app, request, code)
  }
}

/** So that the `onSend` hook of @fastify/session stores nothing and sets no cookie for who was refused. */
function forgetSession (request: FastifyRequest): void {
  if ('session' in request) Reflect.set(request, 'session', null)
}
