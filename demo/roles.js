/** Who has which role, and what a role may do: the application's own table, which the plugin's options `enrich` and `permissions` ask. */

const PERMISSIONS = {
  none: [],
  agent: ['property:read'],
  broker: ['property:read', 'property:write'],
  admin: ['property:read', 'property:write', 'operate']
}

export const ROLES = Object.keys(PERMISSIONS)

export const permissionsOf = role => PERMISSIONS[role] ?? []

/** For one process. */
export function memoryRoles () {
  const table = new Map()
  return {
    get: async userId => table.get(userId) ?? 'none',
    set: async (userId, role) => { table.set(userId, role) },
    /** Unless the user is there. */
    add: async (userId, role) => { if (!table.has(userId)) table.set(userId, role) },
    all: async () => Object.fromEntries(table)
  }
}

/** For several. */
export function redisRoles (client) {
  const KEY = 'roles'
  return {
    get: async userId => await client.hGet(KEY, userId) ?? 'none',
    set: (userId, role) => client.hSet(KEY, userId, role),
    add: (userId, role) => client.hSetNX(KEY, userId, role),
    all: () => client.hGetAll(KEY)
  }
}
