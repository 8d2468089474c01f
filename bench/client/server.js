/** The server of the clients: guarded, and started again on the port it had. */
import websocket from '@fastify/websocket'
import Fastify from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { answerRequests } from '../ipc.js'

let app = null

answerRequests({
  async start ({ port = 0, secret }) {
    app = Fastify()
    await app.register(websocket)
    await app.register(hybridAuth, { jwt: { key: secret, algorithms: ['HS256'] }, failures: false })
    app.get('/live', { websocket: true }, () => {})
    await app.listen({ port, host: '127.0.0.1', backlog: 4096 })
    return app.server.address().port
  },
  /** As a crash: nobody is told when to come back. */
  async crash () {
    for (const socket of app.websocketServer.clients) socket.terminate()
    await app.close()
  },
  count: () => app.hybridAuth.count()
})
