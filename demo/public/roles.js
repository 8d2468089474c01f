/** 4. Roles, for an admin: who has which, and another one by a press of a button. */
import { ask, onCredentials, readSession } from './credentials.js'
import { onLive } from './live.js'
import { at, element } from './show.js'

const [panel, people, outcome] = ['roles', 'people', 'outcome'].map(at)

/** Counts what was asked: only the last answer is shown. */
let asked = 0

onCredentials(async hasAny => {
  const mine = ++asked
  const found = hasAny ? await find().catch(() => null) : null
  if (mine !== asked) return
  panel.hidden = found === null
  people.replaceChildren(...found === null ? [] : rows(found))
})

// What somebody may do has changed, and with it perhaps the role.
onLive((event, frame) => { if (event === 'frame' && frame.type === 'permission_update') readSession() })

/** null: whoever it is is no admin. */
async function find () {
  const { userId, role } = await ask('/me')
  return role === 'admin' ? { me: userId, ...await ask('/roles') } : null
}

function rows ({ me, roles, users }) {
  return Object.entries(users).map(([userId, role]) => {
    const item = element('li', '')
    item.append(element('strong', userId), userId === me ? element('span', `${role}, yourself`) : choice(userId, role, roles))
    return item
  })
}

function choice (userId, role, roles) {
  const group = element('div', '')
  group.role = 'group'
  group.ariaLabel = `Role of ${userId}`
  group.className = 'choice'
  const buttons = roles.map(name => {
    const button = element('button', name)
    button.type = 'button'
    button.ariaPressed = String(name === role)
    button.addEventListener('click', () => change(userId, name, buttons))
    return button
  })
  group.append(...buttons)
  return group
}

async function change (userId, role, buttons) {
  try {
    const { matched, nodes } = await ask('/role', { userId, role })
    for (const button of buttons) button.ariaPressed = String(button.textContent === role)
    outcome.textContent = `${userId}: ${role}. ${several(matched, 'open socket')} asked again, ${several(nodes.acknowledged, 'node')} acknowledged.`
  } catch (error) {
    outcome.textContent = error.message
  }
}

const several = (count, what) => `${count} ${what}${count === 1 ? '' : 's'}`
