/** The audit log, for operators: what was before, then live, through a room that only they may be in. */
import { ask } from './access.js'
import { join, on } from './connection.js'
import { board, noteClose } from './operator.js'
import { at, element, time, trim } from './show.js'

const [LOG_ROOM, BOARD_ROOM] = ['operators/log', 'operators/board']
const PANELS = ['operator-panel', 'chart-panel', 'log-panel'].map(at)
const LENGTH = 200
const BAD = new Set(['refused', 'revoked', 'expired', 'limited', 'brute_force_suspected', 'refresh_refused', 'refresh_reused', 'login_refused', 'login_limited', 'message_refused', 'room_refused', 'identity_changed', 'cluster_lost'])
const WAIT = new Set(['fallback', 'permissions_changed', 'room_left', 'command'])
const GOOD = new Set(['authenticated', 'refreshed', 'room_joined', 'cluster_recovered'])
const [list, all] = ['log', 'all'].map(at)

on('greeted', auth => { show(auth) })
on('context', auth => { show(auth) })
on('ended', () => { list.replaceChildren() })
on('said', ({ room, payload }) => {
  if (room === BOARD_ROOM) board(payload)
  if (room === LOG_ROOM) add(payload)
})
all.addEventListener('change', () => { list.dataset.all = String(all.checked) })
list.dataset.all = 'false'

function show ({ permissions }) {
  const mayOperate = permissions.includes('operate')
  const isNew = mayOperate && PANELS[0].hidden
  for (const panel of PANELS) panel.hidden = !mayOperate
  if (!mayOperate) list.replaceChildren()
  if (!mayOperate) return
  join(LOG_ROOM)
  join(BOARD_ROOM)
  if (isNew || list.childElementCount === 0) before()
}

async function before () {
  const { entries } = await ask('/operator/log').catch(() => ({ entries: [] }))
  // Some of them may have come by the room meanwhile.
  list.append(...entries.filter(({ id }) => ![...list.children].some(item => item.dataset.id === id)).map(row))
  trim(list, LENGTH)
}

function add (entry) {
  list.prepend(row(entry))
  trim(list, LENGTH)
  noteClose(entry)
}

function row ({ id, time: when, node, type, userId, authType, via, route, websocket, code, closeCode, reason, room, command, count }) {
  const who = userId === undefined ? [] : [userId + (authType === undefined ? '' : ` (${authType}${via === undefined ? '' : `, ${via}`})`)]
  const what = [...who, room ?? route, command, code, closeCode, reason, count && `${count} ×`].filter(part => part !== undefined).join(' · ')
  const item = element('li', [element('time', time(when)), element('b', type.replaceAll('_', ' ')), element('span', what), element('small', node)])
  item.dataset.id = id
  item.dataset.kind = kindOf(type)
  item.dataset.transport = websocket === false ? 'http' : 'socket'
  return item
}

function kindOf (type) {
  if (BAD.has(type)) return 'bad'
  if (WAIT.has(type)) return 'wait'
  return GOOD.has(type) ? 'good' : 'note'
}
