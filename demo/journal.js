/** The latest audit events of all nodes, for operators: kept for a while, and told in a room that only they may be in. */
import { LOG_ANSWER } from './schemas.js'

export const LOG_ROOM = 'operators/log'
const LIST = 'journal'
const LENGTH = 100

export function createJournal ({ store, node }) {
  let publish = null
  let count = 0

  /** Never waited for: what cannot be kept is on the terminal all the same. */
  function note (event) {
    const entry = { id: `${node}/${++count}`, ...entryOf({ node, ...event }) }
    store.push(LIST, JSON.stringify(entry), LENGTH).catch(() => {})
    publish?.(entry)
  }

  return {
    note,
    add (app) {
      publish = entry => { app.hybridAuth.rooms.publish(LOG_ROOM, entry).catch(() => {}) }
      app.get('/operator/log', { auth: { permissions: ['operate'] }, schema: { response: { 200: LOG_ANSWER } } }, async (request, reply) => {
        reply.header('cache-control', 'no-store')
        return { entries: (await store.latest(LIST)).map(text => JSON.parse(text)) }
      })
    }
  }
}

/** No event holds a credential; here is what a page has use for. */
function entryOf ({ time, node, type, userId, authType, via, route, websocket, code, closeCode, reason, room, command, connectionId }) {
  const entry = { time, node, type, userId, authType, via, route, websocket, code, closeCode, reason, room, command, connectionId }
  return Object.fromEntries(Object.entries(entry).filter(([, value]) => value !== undefined && value !== null && value !== ''))
}
