/** The latest audit events of all nodes, for operators: kept for a while, and told in a room that only they may be in. */
import { LOG_ANSWER } from './schemas.js'

export const LOG_ROOM = 'operators/log'
/** What anybody brings about as often as he likes is kept by itself: it pushes nothing else out. */
const ROUTINE = new Set(['authenticated', 'fallback', 'refused', 'limited', 'closed', 'expired', 'refreshed', 'refresh_refused', 'message_refused', 'room_refused', 'room_joined', 'room_left'])
const LENGTH = 100
/** Refusals of nobody in particular are counted for so long, and are one entry. */
const COUNTED = 1000

export function createJournal ({ store, node }) {
  let publish = null
  let count = 0

  let timer = null
  let held = null

  /** Never waited for: what cannot be kept is on the terminal all the same. */
  function keep (event) {
    const entry = { id: `${node}/${++count}`, ...entryOf({ node, ...event }) }
    store.push(ROUTINE.has(event.type) ? 'routine' : 'decisions', JSON.stringify(entry), LENGTH).catch(() => {})
    publish?.(entry)
  }

  /** The first at once, and those that follow with their number. */
  function note (event) {
    const isNobodys = event.type === 'refused' && !event.userId
    if (!isNobodys) return keep(event)
    if (timer !== null) {
      held = { ...event, count: (held?.count ?? 0) + 1 }
      return
    }
    keep(event)
    hold()
  }

  function hold () {
    timer = setTimeout(() => {
      timer = null
      if (held === null) return
      keep(held)
      held = null
      hold()
    }, COUNTED).unref()
  }

  return {
    note,
    add (app) {
      publish = entry => { app.hybridAuth.rooms.publish(LOG_ROOM, entry).catch(() => {}) }
      app.get('/operator/log', { auth: { permissions: ['operate'] }, schema: { response: { 200: LOG_ANSWER } } }, async (request, reply) => {
        reply.header('cache-control', 'no-store')
        const entries = (await Promise.all(['routine', 'decisions'].map(store.latest))).flat().map(text => JSON.parse(text))
        return { entries: entries.sort((a, b) => b.time - a.time) }
      })
    }
  }
}

/** No event holds a credential; here is what a page has use for. */
function entryOf ({ time, node, type, userId, authType, via, route, websocket, code, closeCode, reason, room, command, connectionId, count }) {
  const entry = { time, node, type, userId, authType, via, route, websocket, code, closeCode, reason, room, command, connectionId, count }
  return Object.fromEntries(Object.entries(entry).filter(([, value]) => value !== undefined && value !== null && value !== ''))
}
