/** Who it is by a password. Guesses are few, for one name and from one address, and each is noted. */
import { createBuckets, slowDown } from './buckets.js'

/**
 * Ten at once, and then one each ten seconds. A name that others guess at is closed to its owner meanwhile: whoever minds more
 * than a guess asks a second factor instead.
 */
const GUESSES = { atOnce: 10, interval: 10_000 }
/** That there are no more is said once in a while, for an address. */
const SAID = { atOnce: 1, interval: 60_000 }

export function createPasswords ({ users, note }) {
  const guesses = createBuckets(GUESSES)
  const said = createBuckets(SAID)

  /** @returns the user; null where name or password is wrong @throws 429 where there have been too many of those */
  return async function verify ({ body, ip, routeOptions: { url: route } }) {
    const keys = [`name ${body.username}`, `address ${ip}`]
    // Before it costs anything; who is right gets it back.
    const wait = guesses.take(...keys)
    // What is nobody's name may be a password, by mistake.
    const told = { time: Date.now(), route, userId: users.isKnown(body.username) ? body.username : null }
    if (wait > 0) {
      if (said.take(ip) === 0) note({ type: 'login_limited', ...told })
      throw slowDown(wait, 'Too many wrong passwords: try again later')
    }
    const user = await users.verify(body).catch(error => {
      guesses.giveBack(...keys)
      throw error
    })
    if (user !== null) guesses.giveBack(...keys)
    else note({ type: 'login_refused', ...told, code: 'invalid_credentials' })
    return user
  }
}
