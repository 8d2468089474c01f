/** The page: signed in or not. Each part of it sees to itself. */
import { forget, how, restore, signIn, signOut } from './access.js'
import { close, on, open } from './connection.js'
import './me.js'
import './feed.js'
import './signins.js'
import './log.js'
import './roles.js'
import './tries.js'
import { at, tell } from './show.js'
import { explain } from './words.js'

const PANELS = ['feed-panel', 'me-panel', 'signins-panel', 'session']
const OUTSIDE = ['intro', 'sign-in']
const OPERATORS = ['operator-panel', 'chart-panel', 'log-panel', 'roles-panel']
const [login, problem, why, signOutButton] = ['login', 'problem', 'why', 'sign-out'].map(at)

/** Where the client itself has closed the connection. */
const BY_ITSELF = {
  no_credential: 'Your tokens are over. Sign in again.',
  logged_out: 'You were signed out, in another tab or by the server.'
}
/** After these there is nothing to come back with. */
const OVER = new Set([4001, 4002, 4004, 4005, 4006, 4011])

function enter () {
  show(true)
  why.textContent = ''
  open()
}

/** @param text says why */
function exit (text) {
  close()
  forget()
  show(false)
  why.textContent = text
  at('news').replaceChildren()
  login.elements.password.value = ''
  login.elements.password.focus()
}

function show (isIn) {
  document.body.dataset.view = isIn ? 'in' : 'out'
  for (const id of PANELS) at(id).hidden = !isIn
  for (const id of OUTSIDE) at(id).hidden = isIn
  if (!isIn) for (const id of OPERATORS) at(id).hidden = true
}

on('closed', ({ code, reason, terminal }) => {
  if (!terminal) return
  if (Object.hasOwn(BY_ITSELF, reason)) exit(BY_ITSELF[reason])
  else if (OVER.has(code)) exit(`${explain(code)} Sign in again.`)
})

login.addEventListener('submit', async event => {
  event.preventDefault()
  if (login.ariaBusy === 'true') return
  login.ariaBusy = 'true'
  problem.textContent = ''
  const { username, password } = login.elements
  try {
    await signIn(event.submitter?.value ?? 'session', { username: username.value, password: password.value })
    password.value = ''
    enter()
    at('main').focus({ preventScroll: true })
    window.scrollTo(0, 0)
  } catch (error) {
    problem.textContent = error.message
  } finally {
    login.ariaBusy = 'false'
  }
})

signOutButton.addEventListener('click', async () => {
  try {
    await signOut()
    close(true)
    exit('You have signed out.')
  } catch (error) {
    tell('bad', error.message)
  }
})

await restore().catch(() => {})
if (how() === null) show(false)
else enter()
