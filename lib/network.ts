import type { FastifyRequest } from 'fastify'

/** What Fastify reads off the network socket. `injectWS` has none, so each may be missing. */
export interface Network {
  readonly protocol?: string | undefined
  readonly host?: string | undefined
  readonly ip?: string | undefined
  readonly socket?: { readonly remotePort?: number | undefined } | undefined
}

export const networkOf = (request: FastifyRequest): Network => request
