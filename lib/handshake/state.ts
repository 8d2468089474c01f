/** What a request carries for us, under registered symbols: two copies of this library must read the same marks. */
import type { IncomingMessage } from 'node:http'
import type { FastifyRequest } from 'fastify'
import type {} from '@fastify/websocket'
import type { AuthContext } from '../../types/context.js'

export const CONTEXT = Symbol.for('fastify-hybrid-auth.context')
const PASSED = Symbol.for('fastify-hybrid-auth.passed')

interface CarriesContext { [CONTEXT]?: AuthContext | null }
interface CarriesPass { [PASSED]?: true }

export function contextOf (request: FastifyRequest): AuthContext | null {
  return (request as FastifyRequest & CarriesContext)[CONTEXT] ?? null
}

export function setContext (request: FastifyRequest, context: AuthContext): void {
  (request as FastifyRequest & CarriesContext)[CONTEXT] = context
}

/** This upgrade met its guard, or a route that is open on purpose. */
export function markPassed (raw: IncomingMessage): void {
  (raw as IncomingMessage & CarriesPass)[PASSED] = true
}

export function hasPassed (raw: IncomingMessage): boolean {
  return (raw as IncomingMessage & CarriesPass)[PASSED] === true
}
