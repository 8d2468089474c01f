/** Whom the server sees: the state of the connection, the context, how long it lasts, and in plain words why it was closed. */
import { close, connect, on, open } from './connection.js'
import { at, element, showState, span, tell, time } from './show.js'
import { explain } from './words.js'

const STATES = {
  connecting: ['Connecting', 'waiting'], open: ['Open', 'open'], waiting: ['Waiting to try again', 'waiting'],
  idle: ['Idle', 'closed'], closed: ['Closed', 'refused']
}
const [state, closed, disconnect, reconnect] = ['state', 'closed', 'disconnect', 'reconnect'].map(at)

/** By this page's own clock, for clocks differ. null: it does not end. */
let ends = null
let lifetime = 1
let refreshes = 0
let isDegraded = false
let last = 'closed'

on('state', next => {
  last = next
  show()
})
on('degraded', isSo => {
  isDegraded = isSo
  tell(isSo ? 'bad' : 'good', isSo ? 'There is no socket to be had: asking over HTTP meanwhile.' : 'The socket is back.')
  show()
})
on('greeted', auth => {
  refreshes = 0
  closed.textContent = ''
  showContext(auth)
})
on('context', auth => {
  refreshes++
  showContext(auth)
})
on('closed', ({ code, action, terminal }) => { closed.textContent = explain(code, terminal ? 'stop' : action) })
on('ended', () => {
  last = 'closed'
  isDegraded = false
  showContext(null)
  show()
})

disconnect.addEventListener('click', () => {
  close()
  closed.textContent = 'Disconnected here. The sign-in is still good.'
  reconnect.focus()
})
reconnect.addEventListener('click', () => {
  if (last === 'waiting' || last === 'idle') connect()
  else open()
  disconnect.focus()
})

function show () {
  const [text, kind] = isDegraded ? ['Polling', 'waiting'] : STATES[last]
  showState(state, text, kind)
  reconnect.hidden = last === 'open' || last === 'connecting'
  disconnect.hidden = last === 'closed'
}

function showContext (auth) {
  at('auth-type').textContent = auth?.authType ?? 'nobody'
  at('auth-type').dataset.kind = auth?.authType ?? ''
  at('via').textContent = auth === null ? '' : `via ${auth.via}`
  at('user').textContent = auth?.userId ?? ''
  at('user-role').textContent = auth === null ? '' : `${auth.role}, ${auth.tenantId}`
  ends = auth === null || auth.expiresIn === null ? null : performance.now() + auth.expiresIn * 1000
  lifetime = auth?.expiresIn ?? 1
  at('refreshed').textContent = auth === null ? '' : refreshedText(auth)
  at('context').replaceChildren(...Object.entries(shown(auth)).flatMap(([name, value]) => {
    const detail = element('dd', String(value))
    detail.dataset.name = name
    return [element('dt', name), detail]
  }))
  count()
}

function refreshedText (auth) {
  if (auth.authType === 'session') return 'Read again every 30 s'
  return refreshes === 0 ? 'Not replaced yet' : `Context replaced ${refreshes} ×, last at ${time(Date.now())}`
}

function shown (auth) {
  if (auth === null) return {}
  const { userId, tenantId, role, permissions, authenticatedAt, version, issuer, fallbackFrom } = auth
  return {
    userId, tenantId, role, permissions: permissions.join(', ') || 'none', version,
    authenticatedAt: time(authenticatedAt), ...issuer === null ? {} : { issuer }, ...fallbackFrom === undefined ? {} : { fallbackFrom }
  }
}

function count () {
  const left = ends === null ? null : Math.max(0, (ends - performance.now()) / 1000)
  at('ends').textContent = left === null ? '–' : span(left)
  at('left').max = Math.max(1, lifetime)
  at('left').value = left ?? 0
}

setInterval(count, 1000)
