/** Whom revocations are about: ids as long as they are in practice. */

export const KINDS = ['user', 'session', 'token', 'tenant']

const TARGETS = {
  user: index => ({ userId: `user-${digits(index, 6)}` }),
  // As @fastify/session makes them.
  session: index => ({ sessionId: digits(index, 32) }),
  // As a `jti` of 96 bits.
  token: index => ({ jti: digits(index, 24) }),
  tenant: index => ({ tenantId: `tenant-${digits(index, 6)}` })
}

export const targetOf = (kind, index) => TARGETS[kind](index)

const digits = (index, length) => String(index).padStart(length, '0')
