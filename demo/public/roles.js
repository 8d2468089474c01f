/** Roles, for an admin: who has which, and another one by a press of a button. */
import { ask } from './access.js'
import { on } from './connection.js'
import { at, element, button, several } from './show.js'

const [panel, people, outcome] = ['roles-panel', 'people', 'outcome'].map(at)

/** Counts what was asked: only the last answer is shown. */
let asked = 0

on('greeted', show)
on('context', auth => { if ((auth.role === 'admin') === panel.hidden) show(auth) })
on('ended', hide)

async function show ({ userId, role }) {
  const mine = ++asked
  const found = role === 'admin' ? await ask('/roles').catch(() => null) : null
  if (mine !== asked) return
  panel.hidden = found === null
  outcome.textContent = ''
  people.replaceChildren(...found === null ? [] : rowsOf(userId, found))
}

function hide () {
  asked++
  panel.hidden = true
  people.replaceChildren()
}

const rowsOf = (me, { roles, users }) => Object.entries(users).map(([userId, role]) =>
  element('li', [element('strong', userId), userId === me ? element('span', `${role}, yourself`) : choice(userId, role, roles)]))

function choice (userId, role, roles) {
  const buttons = roles.map(name => button(name, () => change(userId, name, buttons), { ariaPressed: String(name === role) }))
  return element('div', buttons, { role: 'group', ariaLabel: `Role of ${userId}`, className: 'choice' })
}

async function change (userId, role, buttons) {
  try {
    const { matched, nodes } = await ask('/role', { method: 'POST', body: { userId, role } })
    for (const one of buttons) one.ariaPressed = String(one.textContent === role)
    outcome.textContent = `${userId}: ${role}. ${several(matched, 'open socket')} asked again, ${several(nodes.acknowledged, 'node')} acknowledged.`
  } catch (error) {
    outcome.textContent = error.message
  }
}
