/** In and out with tokens: a short one for the page's memory, and one to get the next, in a cookie that no script can read. */
import { LONGEST, browserOf } from './signins.js'
import { CREDENTIALS, TOKEN_ANSWER } from './schemas.js'

const COOKIE = 'refresh'
const REFRESH = '/token/refresh'
/** The demo is plain HTTP on this machine. Elsewhere it is `secure`, and its name begins with `__Secure-`. */
const COOKIE_OPTIONS = { path: REFRESH, httpOnly: true, sameSite: 'strict', secure: false }

export function addTokens (app, { verify, families, endings, lifetime, note }) {
  const answer = (reply, { token, refreshToken }) => {
    reply.setCookie(COOKIE, refreshToken, { ...COOKIE_OPTIONS, maxAge: LONGEST / 1000 })
    // RFC 6749, section 5.1
    return { access_token: token, token_type: 'Bearer', expires_in: lifetime }
  }
  const refuse = (reply, why) =>
    // RFC 6749, section 5.2
    reply.code(400).send({ error: 'invalid_grant', error_description: why })
  const noStore = async (request, reply) => { reply.headers({ 'cache-control': 'no-store', pragma: 'no-cache' }) }

  app.post('/token', { onRequest: noStore, schema: { body: CREDENTIALS, response: { 200: TOKEN_ANSWER } } }, async (request, reply) => {
    const user = await verify(request)
    if (user === null) return refuse(reply, 'The user name or the password is wrong')
    const { dropped, ...tokens } = await families.begin(user, browserOf(request))
    await endings.end(dropped, 'too many sign-ins')
    return answer(reply, tokens)
  })

  /** The guard sees no cookie but that of a session: who may use this one is asked here. */
  const ownOrigin = async (request, reply) => {
    if (request.headers.origin === `${request.protocol}://${request.host}`) return
    return reply.code(403).send({ error: 'invalid_request', error_description: 'Only a page of this origin may ask for this' })
  }

  app.post(REFRESH, { onRequest: [noStore, ownOrigin], schema: { response: { 200: TOKEN_ANSWER } } }, async (request, reply) => {
    const refreshToken = request.cookies[COOKIE]
    // The page asks when it opens, whether or not there is one.
    if (refreshToken === undefined) return reply.code(204).send()
    const { outcome, userId, family, ...tokens } = await families.rotate(refreshToken)
    if (outcome === 'rotated') return answer(reply, tokens)
    if (outcome === 'busy') return reply.code(429).header('retry-after', String(lifetime)).send({ error: 'slow_down', error_description: 'Too many tokens at once' })
    if (outcome === 'reused') {
      // Before anything can go wrong.
      note({ type: 'refresh_reused', time: Date.now(), route: REFRESH, userId })
      await endings.end([family], 'a refresh token was used again')
    }
    reply.clearCookie(COOKIE, COOKIE_OPTIONS)
    return refuse(reply, 'Sign in again')
  })

  // The same path, for the cookie goes to no other.
  app.delete(REFRESH, { onRequest: [noStore, ownOrigin] }, async (request, reply) => {
    const ended = await families.end(request.cookies[COOKIE] ?? '')
    if (ended !== null) await endings.end([ended.family], 'logged out')
    return reply.clearCookie(COOKIE, COOKIE_OPTIONS).code(204).send()
  })
}
