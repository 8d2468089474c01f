/** Where each user is signed in: one record for each session and for each family of tokens. It is for the server alone. */
import { randomBytes } from 'node:crypto'

/** However often a session is used or a token refreshed: after that its user signs in again. */
export const LONGEST = 8 * 60 * 60_000
/** One more ends the oldest. */
const MOST = 20
/** Every attempt but the last has been overtaken by another writer that got through. */
const ATTEMPTS = 50

export function createSignins (store) {
  const keyOf = userId => `signins:${userId}`

  /** @param edit changes the list that it is given; what it returns is the answer. Called again where somebody was faster */
  async function change (userId, edit) {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const before = await store.get(keyOf(userId))
      const signins = current(before)
      const answer = edit(signins)
      const after = signins.length === 0 ? null : JSON.stringify(signins)
      if (after === before || await store.replace(keyOf(userId), before, after, LONGEST)) return answer
    }
    throw Object.assign(new Error('Try again'), { statusCode: 503 })
  }

  return {
    change,
    list: async userId => current(await store.get(keyOf(userId))),

    /** @returns those that had to go for it */
    add: (userId, signin) => change(userId, signins => {
      signins.push({ id: randomBytes(6).toString('hex'), createdAt: Date.now(), expiresAt: Date.now() + LONGEST, ...signin })
      return signins.splice(0, signins.length - MOST)
    }),

    /** @returns what was taken out */
    remove: (userId, isMeant) => change(userId, signins => {
      const gone = signins.filter(isMeant)
      signins.splice(0, Infinity, ...signins.filter(signin => !gone.includes(signin)))
      return gone
    })
  }
}

const current = text => JSON.parse(text ?? '[]').filter(({ expiresAt }) => expiresAt > Date.now())

/** What a page may be told of a browser: enough to know it again. */
export const browserOf = request => String(request.headers['user-agent'] ?? '').slice(0, 200)
