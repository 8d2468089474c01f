/** What an operator may do to an open connection, on whichever node it is. */
import { permissionsOf } from './roles.js'
import { COMMAND_ANSWER, ORDER } from './schemas.js'

const READ_ONLY = ['property:read']
/** To bring another token, in milliseconds. */
const TIME_LEFT = 10_000

export function addOperator (app, { board, endings, roles }) {
  app.post('/operator/order', { auth: { permissions: ['operate'] }, schema: { body: ORDER, response: { 200: COMMAND_ANSWER } } }, async (request, reply) => {
    const { connectionId, action } = request.body
    const connection = await board.find(connectionId)
    if (connection === undefined) return reply.code(404).send({ message: 'This connection is not open any more' })
    const { userId, target, permissions } = connection
    const reason = `${action} by ${request.auth.userId}`
    switch (action) {
      case 'revoke': {
        const result = await app.hybridAuth.revoke(target, { reason })
        // Who could get the next token would be back at once.
        await endings.endOne(userId, signin => isOf(signin, target), reason)
        return result
      }
      // Until its next credential: what somebody may do for good is a matter of the role.
      case 'read-only': {
        // It takes and never gives, also where the role has changed since the board was told.
        const current = permissionsOf(await roles.get(userId))
        return app.hybridAuth.setPermissions(userId, READ_ONLY.filter(one => permissions.includes(one) && current.includes(one)))
      }
      default:
        if (target.sessionId !== undefined) return reply.code(409).send({ message: 'A session cannot be replaced over its socket' })
        return app.hybridAuth.revoke(target, { reason, mode: { reauthWithin: TIME_LEFT } })
    }
  })
}

const isOf = (signin, target) => signin.kind === 'session'
  ? signin.sessionId === target.sessionId
  : signin.tokens.some(({ jti }) => jti === target.tokenId)
