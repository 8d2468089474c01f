/** What a request carries for us, under registered symbols: two copies of this library must read the same marks. */
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import type { WebsocketHandler } from '@fastify/websocket'
import type { AuthContext } from '../types/context.js'
import type { Refusal } from './errors.js'
import type { Unmet } from './policy/requirements.js'
import { StepUp } from './policy/step-up.js'

export const CONTEXT = Symbol.for('fastify-hybrid-auth.context')
const ADMISSION = Symbol.for('fastify-hybrid-auth.admission')
const RETRY_AFTER = Symbol.for('fastify-hybrid-auth.retry-after')
const STEP_UP = Symbol.for('fastify-hybrid-auth.step-up')

interface CarriesContext { [CONTEXT]?: AuthContext | null }
interface CarriesAdmission { [ADMISSION]?: Admission }
interface CarriesStepUp { [STEP_UP]?: StepUp }
interface CarriesRetryAfter { [RETRY_AFTER]?: { readonly code: Refusal, readonly ms: number } }

export function contextOf (request: FastifyRequest): AuthContext | null {
  return (request as FastifyRequest & CarriesContext)[CONTEXT] ?? null
}

export function setContext (request: FastifyRequest, context: AuthContext): void {
  (request as FastifyRequest & CarriesContext)[CONTEXT] = context
}

/** The class that @fastify/websocket hands to handlers. */
export type Socket = Parameters<WebsocketHandler>[0]

/** What becomes of an upgrade that met its guard; null on a route that is open on purpose. */
export type Admission = ((socket: Socket, net: Duplex, run: () => void) => void) | null

export function admitUpgrade (raw: IncomingMessage, admission: Admission): void {
  (raw as IncomingMessage & CarriesAdmission)[ADMISSION] = admission
}

/** undefined: this upgrade met no guard. */
export function admissionOf (raw: IncomingMessage): Admission | undefined {
  return (raw as IncomingMessage & CarriesAdmission)[ADMISSION]
}

/** How long the client has to wait that is refused for the time being, in milliseconds. A refusal itself is but its code. */
export function setRetryAfter (request: FastifyRequest, code: Refusal, ms: number): void {
  (request as FastifyRequest & CarriesRetryAfter)[RETRY_AFTER] = { code, ms: Math.ceil(ms) }
}

/** @param otherwise where nothing was said with this refusal */
export function retryAfterOf<T> (request: FastifyRequest, code: Refusal, otherwise: T): number | T {
  const kept = (request as FastifyRequest & CarriesRetryAfter)[RETRY_AFTER]
  return kept?.code === code ? kept.ms : otherwise
}

/** The refusal of whoever lacks it. What has to be brought is kept for the answer. */
export function refusalFor (request: FastifyRequest, unmet: Unmet): Refusal {
  if (unmet instanceof StepUp) (request as FastifyRequest & CarriesStepUp)[STEP_UP] = unmet
  return unmet.code
}

/** null: nothing was said with this refusal. */
export function stepUpOf (request: FastifyRequest, code: Refusal): StepUp | null {
  const kept = (request as FastifyRequest & CarriesStepUp)[STEP_UP]
  return kept?.code === code ? kept : null
}

/** What a request need not have: `injectWS` makes some without a network socket. */
export interface Network {
  readonly protocol?: string | undefined
  readonly host?: string | undefined
  readonly ip?: string | undefined
  readonly socket?: { readonly remotePort?: number | undefined, readonly destroyed?: boolean | undefined, once? (event: 'close', listener: () => void): unknown } | undefined
  /** Absent where @fastify/websocket is not registered. */
  readonly ws?: boolean | undefined
}

export const networkOf = (request: FastifyRequest): Network => request

/** An application's `genReqId` may answer anything. */
export function requestIdOf ({ id }: { readonly id: unknown }): string {
  return String(id)
}

/** The pattern; empty where no route was found. */
export function routeOf (request: FastifyRequest): string {
  return request.routeOptions.url ?? ''
}

/** As pages have it in their origin. Some proxies say `wss` of an upgrade, and a scheme has no case (RFC 3986 §3.1). */
export function schemeOf (request: FastifyRequest): string {
  const { protocol = 'http' } = networkOf(request)
  switch (protocol.toLowerCase()) {
    case 'https': case 'wss': return 'https'
    case 'http': case 'ws': return 'http'
    default: return protocol
  }
}
