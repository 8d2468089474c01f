/** What a token says that was signed with a key of ours: form, key and signature, and nothing yet of what the claims mean. */
import { isUtf8 } from 'node:buffer'
import { whenReady, type Maybe } from '../maybe.js'
import type { ParsedJwtOptions } from '../options.js'
import { issuerIn } from './identify.js'
import { createKeyring } from './keyring.js'
import type { SignatureVerifier } from './keys.js'
import { freezeParsed, type PlainObject } from './plain.js'
import { createFormCheck, type WellFormed } from './token.js'

export interface Signed {
  readonly wellFormed: WellFormed
  readonly claims: PlainObject
}

/** null: it is not signed. @throws, or rejects with, what a key function throws */
export type SignedReader = (token: string) => Maybe<Signed | null>

/**
 * @param under the option that has them
 * @throws FST_HYBRID_AUTH_INVALID_OPTION on a key that cannot be used
 */
export function createSignedReader ({ key, algorithms, maxTokenLength }: Pick<ParsedJwtOptions, 'key' | 'algorithms' | 'maxTokenLength'>, under = 'jwt') {
  const keyring = createKeyring(key, algorithms, under)
  const { checkForm, remember } = createFormCheck(algorithms, maxTokenLength)
  const read: SignedReader = token => {
    const wellFormed = checkForm(token)
    if (wellFormed === null) return null
    return whenReady(keyring.find(wellFormed.header, () => issuerIn(wellFormed.payloadSegment)), verifier => {
      if (verifier?.signatureLength !== wellFormed.signatureLength) return null
      const claims = readClaims(token, wellFormed.payloadSegment, verifier)
      return claims === null ? null : { wellFormed, claims }
    })
  }
  return { read, remember, keepFor: keyring.keepFor }
}

/** null: the signature is wrong, or the payload is not UTF-8, not an object, or nested past measure. */
function readClaims (token: string, payloadSegment: string, verify: SignatureVerifier): PlainObject | null {
  const { stackTraceLimit } = Error
  // A bad signature is told by throwing, and a stack that nobody reads would make it dearer than a good one.
  Reflect.set(Error, 'stackTraceLimit', 0)
  const payload = orNull(() => verify(token))
  Reflect.set(Error, 'stackTraceLimit', stackTraceLimit)
  if (!isObject(payload) || !isUtf8(Buffer.from(payloadSegment, 'base64url'))) return null
  return orNull(() => freezeParsed(payload))
}

function orNull<T> (run: () => T): T | null {
  try {
    return run()
  } catch {
    return null
  }
}

function isObject (value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
