/** What the printed commands use beside the page: revocation of a user, a ticket, the metrics, and how this node is. */
import { COMMAND_ANSWER, TICKET_ANSWER, WHOM } from './schemas.js'

export function addControl (app, { endings, registry }) {
  app.post('/revoke', { auth: { role: 'admin' }, schema: { body: WHOM, response: { 200: COMMAND_ANSWER } } }, async request =>
    endings.endAll(request.body.userId, `by ${request.auth.userId}`))

  app.post('/ticket', { auth: true, schema: { response: { 200: TICKET_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { ticket: await app.hybridAuth.issueTicket(request) }
  })

  app.get('/metrics', { auth: { role: 'admin' } }, async (request, reply) => reply.type(registry.contentType).send(await registry.metrics()))

  app.get('/status', { auth: { role: 'admin' } }, async () => ({ ...app.hybridAuth.status(), sockets: app.hybridAuth.count() }))
}
