/** The signature of a session cookie. */
import type { CookieSigner } from '../../types/options.js'
import { authError } from '../errors.js'
import type { ParsedSessionOptions } from '../options.js'
import { GenerationCache } from '../cache.js'

/** Nothing is ever signed here. */
export type Unsigner = Pick<CookieSigner, 'unsign'>

const SIGNED_COOKIES = 20_000
const SIGNED_BYTES = 16 * 1024 * 1024

/** @throws FST_HYBRID_AUTH_MISSING_DEPENDENCY where @fastify/cookie is not installed and would be needed */
export async function toSigner (secret: NonNullable<ParsedSessionOptions['secret']>, load = () => import('@fastify/cookie')): Promise<Unsigner> {
  if (isSigner(secret)) return secret
  const { Signer } = await load().catch(() => {
    throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session.store needs the package @fastify/cookie')
  })
  return remembering(new Signer([secret].flat().map(one => Buffer.from(one))))
}

/** A signature by a secret of ours stays good: the good ones are remembered, within bounds. */
function remembering (signer: Unsigner): Unsigner {
  const good = new GenerationCache<ReturnType<Unsigner['unsign']>>(SIGNED_COOKIES, SIGNED_BYTES)
  return {
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
