/** Keys, and tokens signed with them by node:crypto: what any issuer would send. */
import { createHmac, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign } from 'node:crypto'

export const ALGORITHMS = ['HS256', 'RS256', 'ES256', 'EdDSA']

/** As text, so that it can be sent to another process. */
export function generateKeys () {
  const encoding = {
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' }
  }
  const secret = randomBytes(32).toString('base64url')
  return {
    HS256: { publicKey: secret, privateKey: secret },
    RS256: generateKeyPairSync('rsa', { modulusLength: 2048, ...encoding }),
    ES256: generateKeyPairSync('ec', { namedCurve: 'P-256', ...encoding }),
    EdDSA: generateKeyPairSync('ed25519', encoding)
  }
}

const encode = value => Buffer.from(JSON.stringify(value)).toString('base64url')

/**
 * A function that makes a new token of an hour per call; they differ by `jti` (required by RFC 9068) and not in length.
 * It takes claims that replace its own.
 * @param kid the name of the key, where it has one
 */
export function createIssuer (algorithm, privateKey, kid) {
  const header = encode({ alg: algorithm, typ: 'JWT', kid })
  const signInput = createSign(algorithm, privateKey)
  return function issue (claims = {}) {
    const now = Math.floor(Date.now() / 1000)
    const input = `${header}.${encode({
      iss: 'https://issuer.example.com', sub: 'user-4711', role: 'agent', permissions: ['property:read', 'property:write'],
      iat: now, exp: now + 3600, jti: randomBytes(12).toString('hex'), ...claims
    })}`
    return `${input}.${signInput(input).toString('base64url')}`
  }
}

function createSign (algorithm, privateKey) {
  if (algorithm === 'HS256') return input => createHmac('sha256', privateKey).update(input).digest()
  const key = createPrivateKey(privateKey)
  const hash = algorithm === 'EdDSA' ? null : 'sha256'
  return input => sign(hash, Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' })
}

/** The key that verifies, as a KeyObject or (HS256) its text. */
export const verifyingKey = (algorithm, { publicKey }) => algorithm === 'HS256' ? publicKey : createPublicKey(publicKey)
