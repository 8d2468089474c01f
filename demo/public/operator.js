/** For operators: what is open on all nodes, what to do about it, and how what was open ended. */
import { ask } from './access.js'
import { on } from './connection.js'
import { show as showMetrics } from './metrics.js'
import { at, button, element, rows, several, showState, span, trim } from './show.js'
import { nameOf } from './words.js'

/** A node that said nothing for so long is not shown, in milliseconds. */
const STALE = 5000
const CLOSES = 6
const ORDERS = [
  ['revoke', 'Revoke', 'End the credential of'],
  ['read-only', 'Read-only', 'Drop to read-only:'],
  ['shorten', 'Shorten', 'Ten seconds to bring another token:']
]
const DONE = {
  revoke: ({ matched, closed }) => `revoked: ${closed} of ${several(matched, 'socket')} closed.`,
  'read-only': ({ matched }) => `may only read now, on ${several(matched, 'socket')}, until the next credential.`,
  shorten: ({ matched }) => `has ten seconds to bring another token, on ${several(matched, 'socket')}.`
}
const [body, ordered, closes] = ['connections', 'ordered', 'closes'].map(at)

const nodes = new Map()
const update = rows(body, makeRow)

export function board (node) {
  nodes.set(node.node, { ...node, heard: performance.now() })
  show()
}

/** An event of the log: of closes the latest are kept in sight. */
export function noteClose ({ type, userId, closeCode, node }) {
  if (type !== 'closed') return
  if (closes.firstElementChild?.className === 'hint') closes.replaceChildren()
  closes.prepend(element('li', [element('b', String(closeCode)), element('span', `${nameOf(closeCode)} · ${userId} · ${node}`)]))
  trim(closes, CLOSES)
}

export function clear () {
  nodes.clear()
  update([])
  ordered.textContent = ''
  closes.replaceChildren(element('li', 'None since you are here', { className: 'hint' }))
}

on('ended', clear)
setInterval(show, 1000)

function show () {
  const now = performance.now()
  for (const [name, { heard }] of nodes) if (heard < now - STALE) nodes.delete(name)
  const all = [...nodes.values()].sort((a, b) => a.node.localeCompare(b.node))
  const total = all.reduce((sum, node) => sum + node.total, 0)
  showState(at('total'), `${total} on ${several(all.length, 'node')}`, all.length > 0 ? 'open' : 'closed')
  update(all.flatMap(({ node, heard, connections }) => connections.map(connection => ({ ...connection, node, age: (now - heard) / 1000 }))))
  showMetrics(all)
}

function makeRow ({ id, userId, authType }) {
  const cells = ['User', 'Credential', 'Ends in', 'Rooms', 'Open for'].map((label, i) => {
    const cell = i === 0 ? element('th', '', { role: 'rowheader' }) : element('td', '', { role: 'cell' })
    cell.dataset.label = label
    return cell
  })
  const orders = element('td', ORDERS.map(([action, text, spoken]) =>
    button(text, () => order(id, userId, action), {
      ariaLabel: `${spoken} ${userId}`, title: `${spoken} ${userId}`, disabled: action === 'shorten' && authType === 'session'
    })), { className: 'orders', role: 'cell' })
  return {
    part: element('tr', [...cells, orders], { role: 'row' }),
    update ({ tenantId, role, authType, via, credential, expiresIn, rooms, openedAgo, node, permissions, age }) {
      const texts = [
        [userId, `${role}, ${tenantId} · ${may(permissions)}`],
        [authType, `${via} · ${credential}`],
        [expiresIn === null ? 'no end' : span(expiresIn - age)],
        [several(rooms.length, 'room'), rooms.map(room => room.replace(/^tenant\//, '').replace(/^operators\//, 'op/')).join(', ')],
        [span(openedAgo + age), node]
      ]
      for (const [i, [first, second = '']] of texts.entries()) write(cells[i], first, second)
    }
  }
}

const may = permissions => ['read', 'write'].filter(what => permissions.includes(`property:${what}`)).map(what => `${what}s`).join(', ') || 'reads nothing'

/** Only what is another is written, so that nothing flickers and a selection stays. */
function write (cell, first, second) {
  if (cell.childElementCount === 0) cell.append(element('span'), element('small'))
  const [main, small] = cell.children
  if (main.textContent !== first) main.textContent = first
  if (small.textContent !== second) small.textContent = second
}

async function order (connectionId, userId, action) {
  try {
    ordered.textContent = `${userId} ${DONE[action](await ask('/operator/order', { method: 'POST', body: { connectionId, action } }))}`
  } catch (error) {
    ordered.textContent = error.message
  }
}
