/** The answer to who is not let in: one code, no reason. */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { closeSocket, RETRY_AFTER } from '../connection/closing.js'
import { limitBytes } from '../connection/bytes.js'
import { STEP_UP_CLOSE, stepUpFrame } from '../connection/step-up.js'
import { authError, ERRORS, type Refusal } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import { challengeOf } from '../policy/step-up.js'
import { SUBPROTOCOL } from '../protocol.js'
import { admissionOf, admitUpgrade, retryAfterOf, stepUpOf } from '../request.js'
import { acceptEarly } from './seam.js'
import { speaksProtocol } from './subprotocol.js'

const REALM = 'Bearer realm="fastify-hybrid-auth"'
const MAX_BYTES = 64 * 1024

export function createRefuser ({ refuse: mode, closeCodes }: ParsedOptions) {
  /** @param isSocket the route is one that sockets may open */
  return function refuse (request: FastifyRequest, reply: FastifyReply, code: Refusal, isSocket: boolean): void {
    if (request.ws) {
      forgetSession(request)
      if ((isSocket || admissionOf(request.raw) !== undefined) && isToldByClose(request, code) && closeAfterUpgrade(request, reply, code)) return
    }
    const { challenge } = ERRORS[code]
    // RFC 6750 §3: the challenge names an error only where a token was presented.
    if (isTemporary(code)) reply.header('Retry-After', Math.ceil(retryAfterOf(request, code, RETRY_AFTER) / 1000))
    else reply.header('WWW-Authenticate', challenge === undefined ? REALM : `${REALM}, error="${challenge}"${demandOf(request, code)}`)
    reply.header('Cache-Control', 'no-store').send(authError(code))
  }

  function isToldByClose (request: FastifyRequest, code: Refusal): boolean {
    if (mode !== 'auto') return mode === 'close'
    // A request that contradicts itself is answered as the HTTP request that it is.
    return ERRORS[code].status !== 400 && speaksProtocol(request.headers['sec-websocket-protocol'])
  }

  /** A browser cannot read the status of a refused upgrade; a close code it can. */
  function closeAfterUpgrade (request: FastifyRequest, reply: FastifyReply, code: Refusal): boolean {
    admitUpgrade(request.raw, null)
    const isAccepted = acceptEarly(request.server, request.raw, (socket, net) => {
      // What the client has sent meanwhile is read and dropped: a reset would take the close code along.
      limitBytes(net, MAX_BYTES, () => { socket.terminate() })
      const retryAfterMs = retryAfterOf(request, code, undefined)
      const stepUp = stepUpOf(request, code)
      if (stepUp !== null && socket.protocol === SUBPROTOCOL) socket.send(JSON.stringify(stepUpFrame(stepUp, 'stop')))
      closeSocket(socket, ERRORS[code].close, closeCodes, {
        ...(retryAfterMs !== undefined && { retryAfterMs }),
        ...(stepUp !== null && STEP_UP_CLOSE)
      })
    })
    if (isAccepted) reply.hijack()
    return isAccepted
  }
}

/** As further members of the challenge (RFC 9470 §3). */
function demandOf (request: FastifyRequest, code: Refusal): string {
  const stepUp = stepUpOf(request, code)
  return stepUp === null ? '' : Object.entries(challengeOf(stepUp)).map(([name, value]) => `, ${name}="${value}"`).join('')
}

/** The credential is as good as it was. */
function isTemporary (code: Refusal): boolean {
  return ERRORS[code].status === 429 || ERRORS[code].status >= 500
}

/** So that the `onSend` hook of @fastify/session stores nothing and sets no cookie for who was refused. */
function forgetSession (request: FastifyRequest): void {
  if ('session' in request) Reflect.set(request, 'session', null)
}
