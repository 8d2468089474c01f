/** The socket of this page, by the library's own client, and what the parts of the page are told of it. */
import { createAuthSocket } from '/lib/client/index.js'
import { ask, getToken, how, who } from './access.js'

const listeners = new Map()
const wanted = new Set()
let client = null
let auth = null

/**
 * @param name `state`, `degraded`, `closed`, `permissions`, `refused`, `joined`, `left`, `gap`: as the client says; `greeted` and `context` with
 * the context that the server sees; `said` with what somebody said in a room; `ended`: there is no socket any more
 */
export function on (name, listen) {
  listeners.set(name, [...listeners.get(name) ?? [], listen])
}

export const context = () => auth

export function open () {
  close()
  const mine = client = createAuthSocket({
    url: '/live',
    // Tabs of one user share tokens and a logout.
    tabs: `${how()}:${who()}`,
    fallback: { after: 6000, poll: '/poll', interval: 2000 },
    ...how() === 'token' ? { getToken } : { attach: 'cookie' }
  })
  const pass = (event, name = event) => mine.on(event, what => { if (mine === client) tell(name, what) })
  pass('state')
  pass('close', 'closed')
  for (const name of ['permissions', 'joined', 'gap', 'degraded']) pass(name)
  mine.on('left', left => {
    if (mine !== client) return
    wanted.delete(left.room)
    tell('left', left)
  })
  mine.on('degraded', isSo => { if (isSo && mine === client && auth === null) introduce(mine) })
  mine.on('error', ({ stage, error }) => {
    if (mine !== client || stage !== 'refused') return
    // It did not get in there, and may ask again.
    wanted.delete(error.room)
    tell('refused', error)
  })
  mine.on('message', message => {
    if (mine !== client) return
    if (message.room === null) take(JSON.parse(message.data))
    else tell('said', message)
  })
}

/** @param isForAll other tabs of the user as well */
export function close (isForAll = false) {
  const last = client
  client = null
  auth = null
  wanted.clear()
  if (isForAll) last?.logout()
  last?.close()
  tell('ended')
}

/** Where there has been no socket that could say whom the server sees. */
async function introduce (mine) {
  const seen = await ask('/me').catch(() => null)
  if (mine === client && auth === null && seen !== null) take({ type: 'hello', auth: seen })
}

/** As it is, now or once there is a connection. */
export function connect () {
  client?.connect()
}

export function join (room) {
  if (wanted.has(room)) return
  wanted.add(room)
  client?.join(room)
}

export function leave (room) {
  wanted.delete(room)
  client?.leave(room)
}

function take (frame) {
  switch (frame.type) {
    case 'hello':
      auth = frame.auth
      tell('greeted', auth)
      break
    case 'context':
      auth = frame.auth
      tell('context', auth)
  }
}

function tell (name, what) {
  for (const listen of listeners.get(name) ?? []) listen(what)
}
