/**
 * Refresh tokens (RFC 9700, section 4.14.2): each is used once and gives the next one of its family. An old one that comes
 * again has been stolen, or its successor has: nobody can tell which, so the family ends, and with it its access tokens.
 */
import { createHash, randomBytes, randomUUID } from 'node:crypto'

/** A family that nobody uses for so long is over. */
export const UNUSED = 30 * 60_000
/**
 * An answer that is lost on its way leaves an honest client with the token before: for so long that one gives a successor
 * once more. Whoever holds the successor that was lost, or taken, ends the family by using it.
 */
const GRACE = 5_000
/** Access tokens of one family that are good at the same time. */
const MOST_LIVE = 50
const FORM = /^([\w-]{2,100})\.([\w-]{22})\.([\w-]{43})$/

const hash = text => createHash('sha256').update(text).digest('base64url')

/** @param sign makes an access token of its claims @param lifetime of one, in seconds */
export function createFamilies (signins, sign, lifetime) {
  /** Only hashes are kept. That the name of the family is a secret, too, keeps others from ending it with a bad token. */
  function next (userId, secretName) {
    const secret = randomBytes(32).toString('base64url')
    return { refreshToken: `${Buffer.from(userId).toString('base64url')}.${secretName}.${secret}`, current: hash(secret) }
  }

  const accessToken = ({ userId: sub, tenantId }) => {
    const jti = randomUUID()
    return { token: sign({ sub, tenantId, jti }), live: { jti, issuedAt: Date.now(), until: Date.now() + lifetime * 1000 } }
  }

  /** @returns the first tokens of a family, and the sign-ins that had to go for it */
  async function begin (user, browser) {
    const name = randomBytes(16).toString('base64url')
    const { refreshToken, current } = next(user.userId, name)
    const { token, live } = accessToken(user)
    const dropped = await signins.add(user.userId, {
      kind: 'tokens', browser, tenantId: user.tenantId, name: hash(name), current, previous: null, usedAt: Date.now(), tokens: [live]
    })
    return { token, refreshToken, dropped }
  }

  /** `outcome`: `rotated`, with the next tokens; `reused`, with the family that is over; `busy`; `unknown`. */
  async function rotate (refreshToken) {
    const given = parse(refreshToken)
    if (given === null) return { outcome: 'unknown' }
    const { userId, name, secret } = given
    const successor = next(userId, name)
    return signins.change(userId, families => {
      const family = familyOf(families, name)
      if (family === undefined) return { outcome: 'unknown' }
      const now = Date.now()
      const isLost = family.previous?.hash === secret && !family.previous.isUsed && now < family.previous.until
      if (family.current !== secret && !isLost) {
        families.splice(families.indexOf(family), 1)
        return { outcome: 'reused', userId, family }
      }
      family.tokens = family.tokens.filter(({ until }) => until > now)
      if (family.tokens.length >= MOST_LIVE) return { outcome: 'busy' }
      const { token, live } = accessToken({ userId, tenantId: family.tenantId })
      family.tokens.push(live)
      family.previous = { hash: secret, until: now + GRACE, isUsed: isLost }
      family.current = successor.current
      family.usedAt = now
      return { outcome: 'rotated', token, refreshToken: successor.refreshToken }
    })
  }

  /** The family of a refresh token, which is over by that; null where there is none. */
  async function end (refreshToken) {
    const given = parse(refreshToken)
    if (given === null) return null
    const [family] = await signins.remove(given.userId, signin => signin === familyOf([signin], given.name))
    return family === undefined ? null : { userId: given.userId, family }
  }

  return { begin, rotate, end }
}

const familyOf = (signins, name) => signins.find(signin =>
  signin.kind === 'tokens' && signin.name === hash(name) && signin.usedAt + UNUSED > Date.now())

/** null: it is not one of ours. */
function parse (refreshToken) {
  const [, user, name, secret] = FORM.exec(refreshToken) ?? []
  return user === undefined ? null : { userId: Buffer.from(user, 'base64url').toString(), name, secret: hash(secret) }
}
