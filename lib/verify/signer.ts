/** The signature of a session cookie. */
import type { CookieSigner } from '../../types/options.js'
import { authError } from '../errors.js'
import type { ParsedSessionOptions } from '../options.js'
import { GenerationCache } from './cache.js'

const SIGNED_COOKIES = 20_000
const SIGNED_BYTES = 16 * 1024 * 1024

/** @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY where @fastify/cookie is not installed and would be needed */
export async function toSigner (secret: NonNullable<ParsedSessionOptions['secret']>, load = () => import('@fastify/cookie')): Promise<CookieSigner> {
  if (isSigner(secret)) return secret
  const { Signer } = await load().catch(() => {
    throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session.store needs the package @fastify/cookie')
  })
  return remembering(new Signer([secret].flat().map(one => Buffer.from(one))))
}

/** A signature by a secret of ours stays good: the good ones are remembered, within bounds. */
function remembering (signer: CookieSigner): CookieSigner {
  const good = new GenerationCache<ReturnType<CookieSigner['unsign']>>(SIGNED_COOKIES, SIGNED_BYTES)
  return {
    sign: value => signer.sign(value),
    unsign (value) {
      const known = good.get(value)
      if (known !== undefined) return known
      const result = signer.unsign(value)
      if (result.valid) good.set(value, result)
      return result
    }
  }
}

function isSigner (secret: NonNullable<ParsedSessionOptions['secret']>): secret is CookieSigner {
  return typeof secret === 'object' && 'unsign' in secret
}
