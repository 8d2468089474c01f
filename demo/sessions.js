/** Where a user is signed in, for that user: each can be ended, and all together. */
import { promisify } from 'node:util'
import { UNUSED } from './families.js'
import { ENTRY, SIGNINS_ANSWER } from './schemas.js'

export function addSessions (app, { signins, sessions, endings }) {
  const read = promisify(sessions.get.bind(sessions))

  const isLive = async signin => signin.kind === 'session'
    ? Boolean(await read(signin.sessionId))
    : signin.usedAt + UNUSED > Date.now()

  const isOf = (auth, { sessionId, tokens }) => auth.authType === 'session'
    ? auth.sessionId === sessionId
    : tokens?.some(({ jti }) => jti === auth.tokenId) === true

  app.get('/signins', { auth: true, schema: { response: { 200: SIGNINS_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    const all = await signins.list(request.auth.userId)
    const live = await Promise.all(all.map(isLive))
    return {
      signins: all.filter((_, i) => live[i]).map(signin => ({ ...signin, isThisOne: isOf(request.auth, signin) })).reverse()
    }
  })

  app.delete('/signins/:id', { auth: true, schema: { params: ENTRY } }, async (request, reply) => {
    const wasThere = await endings.endOne(request.auth.userId, ({ id }) => id === request.params.id, 'logged out elsewhere')
    return reply.code(wasThere ? 204 : 404).send()
  })

  app.delete('/signins', { auth: true }, async (request, reply) => {
    await endings.endAll(request.auth.userId, 'logged out everywhere')
    return reply.code(204).send()
  })
}
