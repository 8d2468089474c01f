/** What processes have in common beside their sessions: texts under a key, tables of them, and lists of the latest. */

/** For one process. */
export function memoryStore () {
  const texts = new Map()
  const tables = new Map()
  const lists = new Map()
  const get = key => {
    const held = texts.get(key)
    return held === undefined || held.until <= Date.now() ? null : held.text
  }
  return {
    get: async key => get(key),
    async replace (key, before, after, lifetime) {
      if (get(key) !== before) return false
      if (after === null) texts.delete(key)
      else texts.set(key, { text: after, until: Date.now() + lifetime })
      return true
    },
    async put (table, row, text) { tables.set(table, (tables.get(table) ?? new Map()).set(row, text)) },
    async drop (table, row) { tables.get(table)?.delete(row) },
    rows: async table => [...tables.get(table)?.values() ?? []],
    async push (list, text, max) { lists.set(list, [text, ...lists.get(list) ?? []].slice(0, max)) },
    latest: async list => lists.get(list) ?? []
  }
}

const REPLACE = `
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`

/** For several. */
export function redisStore (client) {
  return {
    get: key => client.get(key),
    /** Only if it still is what was read before; null is nothing. Says whether it was. */
    replace: async (key, before, after, lifetime) =>
      await client.eval(REPLACE, { keys: [key], arguments: [before ?? '', after ?? '', String(lifetime)] }) === 1,
    put: (table, row, text) => client.hSet(table, row, text),
    drop: (table, row) => client.hDel(table, row),
    rows: table => client.hVals(table),
    /** The latest come first, and so many at most. */
    push: (list, text, max) => client.multi().lPush(list, text).lTrim(list, 0, max - 1).exec(),
    latest: list => client.lRange(list, 0, -1)
  }
}
