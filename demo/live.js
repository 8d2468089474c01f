/** The socket: it says whom it sees, and again when that changes, and sends back what it is told. */

const RATE = { capacity: 50, refillPerSecond: 10 }

/** @param opened is told of each connection */
export function addLive (app, opened) {
  app.get('/live', { websocket: true, auth: { rooms: true, rate: RATE } }, (socket, request) => {
    const connection = app.hybridAuth.connection(socket)
    connection.send({ type: 'hello', auth: describe(request.auth) })
    connection.on('refresh', auth => { connection.send({ type: 'context', auth: describe(auth) }) })
    socket.on('message', (data, isBinary) => { socket.send(data, { binary: isBinary }) })
    opened(connection)
  })
  // In place of the socket, where there is none to be had.
  app.post('/poll', { auth: true }, (request, reply) => app.hybridAuth.rooms.poll(request, reply))
  app.get('/me', { auth: true }, async request => describe(request.auth))
  app.get('/admin', { preHandler: app.hybridAuth.require({ role: 'admin' }) }, async request =>
    ({ message: `Welcome, ${request.auth.userId}.` }))
}

/** The context without what identifies the credential itself, and its end as a duration, for clocks differ. */
function describe ({ authType, via, userId, role, permissions, tenantId, issuer, authenticatedAt, expiresAt, version, fallbackFrom }) {
  return { authType, via, userId, role, permissions, tenantId, issuer, authenticatedAt, expiresAt, expiresIn: secondsTo(expiresAt), version, fallbackFrom }
}

export const secondsTo = time => time === null ? null : Math.max(0, Math.round((time - Date.now()) / 1000))
