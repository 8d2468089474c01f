import { BEARER_PREFIX, CLOSE, SUBPROTOCOL } from './protocol.js'

const LOG_LENGTH = 100

const at = id => document.getElementById(id)
const [login, problem, state, context, log, message] = ['login', 'problem', 'state', 'context', 'log', 'message'].map(at)

/** Kept here and nowhere else: not in the page, its address or its storage. */
let token = null
let socket = null

// 1. Credentials

login.addEventListener('submit', async event => {
  event.preventDefault()
  if (login.ariaBusy === 'true') return
  login.ariaBusy = 'true'
  problem.textContent = ''
  const { username, password } = login.elements
  try {
    const path = event.submitter?.value === 'token' ? '/token' : '/login'
    const answer = await post(path, { username: username.value, password: password.value })
    if (path === '/token') showToken({ value: answer.access_token, user: username.value, until: Date.now() + answer.expires_in * 1000 })
    else showSession(answer.user)
  } catch (error) {
    problem.textContent = error.message
  } finally {
    login.ariaBusy = 'false'
  }
})

at('logout').addEventListener('click', async () => {
  problem.textContent = ''
  try {
    await post('/logout')
    showSession(null)
  } catch (error) {
    problem.textContent = error.message
  }
})

at('forget').addEventListener('click', () => { showToken(null) })

function showToken (next) {
  token = next
  at('token').textContent = token === null ? 'none' : `${token.user}, until ${time(token.until)}`
  at('forget').hidden = token === null
  at('by-token').disabled = token === null
}

function showSession (user) {
  at('session').textContent = user === null ? 'none' : `${user.userId}, ${user.role}`
  at('logout').hidden = user === null
}

async function post (path, body) {
  const answer = await fetch(path, body === undefined
    ? { method: 'POST' }
    : { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
  const text = await answer.text()
  const json = text === '' ? {} : JSON.parse(text)
  if (!answer.ok) throw new Error(json.error_description ?? json.message ?? `The server answered ${answer.status}`)
  return json
}

// 2. The socket

at('by-token').addEventListener('click', () => { open('with the token', [SUBPROTOCOL, BEARER_PREFIX + token.value]) })
// The browser sends the cookie by itself. The subprotocol lets the server say why it refuses.
at('by-cookie').addEventListener('click', () => { open('with the cookie', [SUBPROTOCOL]) })
at('by-bad-token').addEventListener('click', () => { open('with a bad token', [SUBPROTOCOL, `${BEARER_PREFIX}not.a.token`]) })
at('close').addEventListener('click', () => { socket?.close(1000) })

function open (how, protocols) {
  socket?.close(1000)
  const mine = new WebSocket(`${window.location.origin.replace('http', 'ws')}/live`, protocols)
  const isCurrent = () => socket === mine
  let greeted = false
  socket = mine
  showContext(null)
  showState('Connecting', 'waiting')
  write('note', `Opening ${how}`)

  mine.addEventListener('message', ({ data }) => {
    write('in', data)
    const hello = greeted ? null : readHello(data)
    if (hello === null || !isCurrent()) return
    greeted = true
    showContext(hello)
    showState('Open', 'open')
    bringIntoView(state)
  })
  mine.addEventListener('close', ({ code, reason }) => {
    write('end', `Closed ${code} ${nameOf(code)} ${reason}`)
    if (!isCurrent()) return
    socket = null
    showContext(null)
    showState(`Closed ${code}`, code === 1000 ? 'closed' : 'refused')
    bringIntoView(log)
  })
}

message.addEventListener('submit', event => {
  event.preventDefault()
  const { text } = message.elements
  if (socket?.readyState !== WebSocket.OPEN) return
  socket.send(text.value)
  write('out', text.value)
  text.value = ''
})

function readHello (data) {
  try {
    const { type, auth } = JSON.parse(data)
    return type === 'hello' ? auth : null
  } catch {
    return null
  }
}

function nameOf (code) {
  const known = Object.entries(CLOSE).find(([, row]) => row.code === code)
  return known?.[0] ?? { 1000: 'Normal', 1001: 'GoingAway', 1006: 'ConnectionLost', 1009: 'TooBig' }[code] ?? ''
}

// 3. HTTP

for (const path of ['/me', '/admin']) {
  at(`get${path.replace('/', '-')}`).addEventListener('click', async () => {
    write('out', `GET ${path}`)
    try {
      const answer = await fetch(path, token === null ? {} : { headers: { authorization: `Bearer ${token.value}` } })
      write(answer.ok ? 'in' : 'end', `${answer.status} ${await answer.text()}`)
    } catch {
      write('end', 'The server does not answer')
    }
    bringIntoView(log)
  })
}

// What is shown

function showState (text, kind) {
  state.textContent = text
  state.dataset.kind = kind
  const isOpen = kind === 'open'
  at('close').hidden = !isOpen
  for (const one of message.elements) one.disabled = !isOpen
}

function showContext (auth) {
  at('nobody').hidden = auth !== null
  context.hidden = auth === null
  context.replaceChildren(...Object.entries(auth ?? {}).flatMap(([name, value]) => {
    const term = element('dt', name)
    const detail = element('dd', valueOf(name, value))
    detail.dataset.name = name
    return [term, detail]
  }))
}

function valueOf (name, value) {
  if (value === null) return 'null'
  if (name.endsWith('At')) return time(value)
  return Array.isArray(value) ? value.join(', ') : String(value)
}

const ARROW = { in: '←', out: '→', end: '×', note: '·' }
const SPOKEN = { in: 'received', out: 'sent', end: 'ended', note: 'note' }

function write (kind, text) {
  const list = log.firstElementChild
  const item = element('li', '')
  item.dataset.kind = kind
  const arrow = element('span', ARROW[kind])
  arrow.ariaHidden = 'true'
  const spoken = element('span', SPOKEN[kind])
  spoken.className = 'hidden'
  item.append(element('time', time(Date.now())), arrow, spoken, element('code', text))
  list.append(item)
  if (list.childElementCount > LOG_LENGTH) list.firstElementChild.remove()
  log.scrollTop = log.scrollHeight
}

/** On a phone the answers are below the buttons. */
function bringIntoView (part) {
  part.closest('section').scrollIntoView({ block: 'nearest' })
}

function element (name, text) {
  const made = document.createElement(name)
  made.textContent = text
  return made
}

function time (ms) {
  return new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })
}

const { user } = await (await fetch('/session')).json()
showSession(user)
