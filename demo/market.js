/** A property market: what changes is told in one room for each tenant, to those whose role lets them read it. */
import { BOARD_ROOM } from './board.js'
import { LOG_ROOM } from './journal.js'
import { ROLES } from './roles.js'
import { COMMAND_ANSWER, roleChange, ROLES_ANSWER } from './schemas.js'

const TICK = 1000
const LINGERS = 120
/** Each tenant has its own, so that one sees whose feed it is. */
const STREETS = [
  ['3 Mill Lane', '18 Harbour Street', '7 Orchard Road', '42 Station Square', '11 Abbey Close', '5 Ferry Steps', '29 Quay Street'],
  ['1 Beacon Hill', '14 Summit Drive', '8 Vineyard Path', '60 Ridge Avenue', '23 Windmill Rise', '2 Shepherd Gate']
]
const KINDS = ['listed', 'reduced', 'listed', 'viewing', 'listed', 'sold', 'reduced']

/** The plugin's option: to hear what is said takes one permission, to say something another. */
export const ROOMS = {
  patterns: {
    'tenant/:tenantId/agents': {
      join: { permissions: ['property:read'] }, publish: { permissions: ['property:write'] }, history: 100, repeats: 60_000
    },
    // Here the server alone has something to say.
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

/**
 * Tells the room of each tenant of another property every second, while somebody is in there, on whichever node, and for some
 * ticks more: whoever had to leave and comes back sees by the numbers what was not for him, and who polls has something to hear.
 */
export function addTicker (app, tenants) {
  const { rooms } = app.hybridAuth
  const markets = tenants.map((tenantId, i) => ({ streets: STREETS[i % STREETS.length], room: `tenant/${tenantId}/agents`, number: 0, ticks: 0, isBusy: false }))

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
