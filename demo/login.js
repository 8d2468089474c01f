/** In and out with a session: who it is is in the store, the browser has a cookie. */
import { CREDENTIALS, LOGIN_ANSWER, SESSION_ANSWER } from './schemas.js'
import { browserOf } from './signins.js'

export const COOKIE = 'sessionId'

export function addLogin (app, { verify, signins, endings }) {
  app.post('/login', { schema: { body: CREDENTIALS, response: { 200: LOGIN_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    const user = await verify(request)
    if (user === null) {
      return reply.code(401).send({ error: 'invalid_credentials', error_description: 'The user name or the password is wrong' })
    }
    const before = request.session.user
    if (before !== undefined) await signins.remove(before.userId, ({ sessionId }) => sessionId === request.session.sessionId)
    // A new id: one that was planted before the login must not become the session.
    await request.session.regenerate()
    // Tells the session from an older one where those are revoked.
    request.session.user = { ...user, issuedAt: Date.now() }
    const dropped = await signins.add(user.userId, { kind: 'session', browser: browserOf(request), sessionId: request.session.sessionId })
    await endings.end(dropped, 'too many sign-ins')
    return { user }
  })

  app.post('/logout', { auth: { types: ['session'] } }, async (request, reply) => {
    const { userId, sessionId } = request.auth
    await signins.remove(userId, signin => signin.sessionId === sessionId)
    await request.session.destroy()
    return reply.clearCookie(COOKIE, { path: '/' }).code(204).send()
  })

  // Who is signed in, if anybody: the page asks when it opens.
  app.get('/session', { auth: { types: ['session'], optional: true }, schema: { response: { 200: SESSION_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    const auth = app.hybridAuth.contextOf(request)
    return { user: auth === null ? null : { userId: auth.userId, tenantId: auth.tenantId, role: auth.role } }
  })
}
