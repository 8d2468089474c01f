/** A text that only who has a secret can read: the store that keeps it learns nothing from it. */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'

const ALGORITHM = 'aes-256-gcm'
const KEY_BYTES = 32
const NONCE_BYTES = 12
const TAG_BYTES = 16

/** @param secret of at least 256 random bits; used for one text only */
export function seal (text: string, secret: string): string {
  const nonce = randomBytes(NONCE_BYTES)
  const cipher = createCipheriv(ALGORITHM, keyFrom(secret), nonce)
  const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
  return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString('base64url')
}

/** null: it was sealed with another secret, or is not what was sealed. */
export function unseal (sealed: string, secret: string): string | null {
  const begin = NONCE_BYTES + TAG_BYTES
  try {
    const bytes = Buffer.from(sealed, 'base64url')
    const decipher = createDecipheriv(ALGORITHM, keyFrom(secret), bytes.subarray(0, NONCE_BYTES), { authTagLength: TAG_BYTES })
    decipher.setAuthTag(bytes.subarray(NONCE_BYTES, begin))
    return decipher.update(bytes.subarray(begin), undefined, 'utf8') + decipher.final('utf8')
  } catch {
    return null
  }
}

function keyFrom (secret: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, '', 'hybrid-auth.ticket', KEY_BYTES))
}
