/** How a sign-in ends before its time: whatever it was given opens nothing any more, and its sockets close with 4006. */
import { promisify } from 'node:util'

/** So much longer is a token taken for live, for clocks differ. To this comes the guard's `clockTolerance`, where it has one. */
const SKEW = 1000

export function createEndings ({ app, signins, sessions, issuer }) {
  const destroy = promisify(sessions.destroy.bind(sessions))

  /** Sign-ins that are in no list any more. */
  const end = (gone, reason) => Promise.all(gone.flatMap(signin => signin.kind === 'session'
    ? [app.hybridAuth.revoke({ sessionId: signin.sessionId }, { reason }), destroy(signin.sessionId)]
    : signin.tokens.filter(({ until }) => until + SKEW > Date.now())
      .map(({ jti, until }) => app.hybridAuth.revoke({ jti, iss: issuer }, { reason, expiresAt: until + 2 * SKEW }))))

  return {
    end,
    /** @returns whether there was such a one */
    async endOne (userId, isMeant, reason) {
      const gone = await signins.remove(userId, isMeant)
      await end(gone, reason)
      return gone.length > 0
    },
    /** The next login is good again. */
    async endAll (userId, reason) {
      const gone = await signins.remove(userId, () => true)
      const issuedBefore = Date.now()
      const result = await app.hybridAuth.revoke({ userId, issuedBefore }, { reason })
      // Tokens say only in whole seconds when they were issued: those of this one are named.
      await end(gone.map(signin => signin.kind === 'session'
        ? signin
        : { ...signin, tokens: signin.tokens.filter(({ issuedAt }) => issuedAt > issuedBefore - 2000) }), reason)
      return result
    }
  }
}
