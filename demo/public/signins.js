/** Where the user is signed in: sessions and families of tokens, each to be ended, and all together. */
import { ask } from './access.js'
import { on } from './connection.js'
import { at, button, element, tell, time } from './show.js'

const INTERVAL = 15_000
const [panel, list, everywhere] = ['signins-panel', 'signins', 'everywhere'].map(at)

let timer = null
let shown = ''

on('greeted', () => {
  panel.hidden = false
  clearInterval(timer)
  timer = setInterval(() => { if (!document.hidden) show() }, INTERVAL)
  show()
})
on('ended', () => {
  clearInterval(timer)
  shown = ''
  list.replaceChildren()
})

everywhere.addEventListener('click', async () => {
  // The socket is closed by it, and that shows the rest.
  await ask('/signins', { method: 'DELETE' }).catch(error => { tell('bad', error.message) })
})

async function show () {
  const { signins } = await ask('/signins').catch(() => ({ signins: null }))
  const text = JSON.stringify(signins)
  if (signins === null || text === shown) return
  shown = text
  list.replaceChildren(...signins.map(row))
}

function row ({ id, kind, browser, createdAt, isThisOne }) {
  const what = `${kind === 'session' ? 'Session' : 'Tokens'}, ${browserIn(browser)}`
  const since = `since ${time(createdAt)}`
  const end = button('Log out', async () => {
    try {
      await ask(`/signins/${id}`, { method: 'DELETE' })
    } catch (error) {
      tell('bad', error.message)
    }
    shown = ''
    if (!isThisOne) show()
  }, { ariaLabel: `Log out: ${what}, ${since}` })
  const item = element('li', [
    element('p', [element('strong', what), element('span', isThisOne ? `${since} · this one` : since)]), end
  ])
  if (isThisOne) item.dataset.kind = 'mine'
  return item
}

/** Enough to know it again. */
function browserIn (text) {
  const name = /Edg|OPR|Firefox|HeadlessChrome|Chrome|Safari|curl/.exec(text)?.[0] ?? text.slice(0, 20)
  const system = /Android|iPhone|iPad|Windows|Mac OS|Linux/.exec(text)?.[0]
  return [{ Edg: 'Edge', OPR: 'Opera', HeadlessChrome: 'Chrome' }[name] ?? (name || 'unknown'), system].filter(Boolean).join(' on ')
}
