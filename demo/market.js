/** A property market: what changes is told in one room for each tenant, to those whose role lets them read it. */
import { BOARD_ROOM } from './board.js'
import { createBuckets, slowDown } from './buckets.js'
import { LOG_ROOM } from './journal.js'
import { ROLES } from './roles.js'
import { COMMAND_ANSWER, roleChange, ROLES_ANSWER, SAYING } from './schemas.js'

const TICK = 1000
const LINGERS = 120
/** Each tenant has its own, so that one sees whose feed it is. */
const STREETS = [
  ['3 Mill Lane', '18 Harbour Street', '7 Orchard Road', '42 Station Square', '11 Abbey Close', '5 Ferry Steps', '29 Quay Street'],
  ['1 Beacon Hill', '14 Summit Drive', '8 Vineyard Path', '60 Ridge Avenue', '23 Windmill Rise', '2 Shepherd Gate']
]
const KINDS = ['listed', 'reduced', 'listed', 'viewing', 'listed', 'sold', 'reduced']

/** What one user may say: ten at once, and then one each second. */
const TALK = { atOnce: 10, interval: 1000 }

const roomOf = tenantId => `tenant/${tenantId}/agents`

/** The plugin's option. Clients only hear: who says something is not theirs to say. */
export const ROOMS = {
  patterns: {
    'tenant/:tenantId/agents': { join: { permissions: ['property:read'] }, history: 100 },
    [LOG_ROOM]: { join: { permissions: ['operate'] }, history: 100 },
    [BOARD_ROOM]: { join: { permissions: ['operate'] } }
  },
  maxPayload: 64 * 1024
}

/** Who has which role, and another one for somebody: for admins. */
export function addRoles (app, roles) {
  app.get('/roles', { auth: { role: 'admin' }, schema: { response: { 200: ROLES_ANSWER } } }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return { roles: ROLES, users: await roles.all() }
  })

  app.post('/role', { auth: { role: 'admin' }, schema: { body: roleChange(ROLES), response: { 200: COMMAND_ANSWER } } }, async (request, reply) => {
    const { userId, role } = request.body
    if (userId === request.auth.userId) return reply.code(409).send({ message: 'Your own role is for another admin to change' })
    if (!Object.hasOwn(await roles.all(), userId)) return reply.code(404).send({ message: 'There is no such user' })
    await roles.set(userId, role)
    // When this resolves, whoever may no longer be in a room is out of it, on every node that acknowledged.
    return app.hybridAuth.refreshPermissions(userId)
  })
}

/** Something for the room of the own tenant. By whom is what the guard knows. */
export function addTalk (app) {
  const talk = createBuckets(TALK)
  app.post('/say', { auth: { permissions: ['property:write'] }, schema: { body: SAYING } }, async (request, reply) => {
    const { userId, tenantId } = request.auth
    const wait = talk.take(userId)
    if (wait > 0) throw slowDown(wait, 'That is too much at once')
    const { published } = await app.hybridAuth.rooms.publish(roomOf(tenantId), { text: request.body.text, by: userId })
    return reply.code(published ? 204 : 503).send()
  })
}

/**
 * Tells the room of each tenant of another property every second, while somebody is in there, on whichever node, and for some
 * ticks more: whoever had to leave and comes back sees by the numbers what was not for him, and who polls has something to hear.
 */
export function addTicker (app, tenants) {
  const { rooms } = app.hybridAuth
  const markets = tenants.map((tenantId, i) => ({ streets: STREETS[i % STREETS.length], room: roomOf(tenantId), number: 0, ticks: 0, isBusy: false }))

  async function tick (market) {
    if (market.isBusy) return
    market.isBusy = true
    try {
      const { members } = await rooms.presence(market.room)
      market.ticks = members > 0 ? LINGERS : market.ticks - 1
      if (market.ticks > 0) await rooms.publish(market.room, property(++market.number, market.streets))
    } catch {
      // The other nodes cannot be asked. The next tick tries again.
    } finally {
      market.isBusy = false
    }
  }

  let timer
  app.addHook('onReady', async () => { timer = setInterval(() => { for (const market of markets) tick(market) }, TICK) })
  app.addHook('preClose', async () => { clearInterval(timer) })
}

const property = (number, streets) => ({
  number, kind: KINDS[number % KINDS.length], address: streets[number % streets.length], price: 1000 * (200 + number * 37 % 300)
})
