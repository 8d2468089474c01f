/** 2. The socket, whom the server sees on it, and the message that comes back. */
import { bearer } from './credentials.js'
import { BEARER_PREFIX, CLOSE, SUBPROTOCOL } from './protocol.js'
import { at, bringIntoView, element, log, showState, time, write } from './show.js'

const [state, context, message] = ['state', 'context', 'message'].map(at)

let socket = null
const listeners = []

/** @param listen gets `open` with the context, `frame` with what came as JSON, and `close` */
export function onLive (listen) {
  listeners.push(listen)
}

/** false: there is no open socket. */
export function send (text) {
  if (socket?.readyState !== WebSocket.OPEN) return false
  socket.send(text)
  write('out', text)
  return true
}

at('by-token').addEventListener('click', () => { open('with the token', [SUBPROTOCOL, BEARER_PREFIX + bearer()]) })
// The browser sends the cookie by itself. The subprotocol lets the server say why it refuses.
at('by-cookie').addEventListener('click', () => { open('with the cookie', [SUBPROTOCOL]) })
at('by-bad-token').addEventListener('click', () => { open('with a bad token', [SUBPROTOCOL, `${BEARER_PREFIX}not.a.token`]) })
at('close').addEventListener('click', () => { socket?.close(1000) })

function open (how, protocols) {
  socket?.close(1000)
  const mine = new WebSocket(`${window.location.origin.replace('http', 'ws')}/live`, protocols)
  const isCurrent = () => socket === mine
  let isGreeted = false
  socket = mine
  tell('close')
  showContext(null)
  show('Connecting', 'waiting')
  write('note', `Opening ${how}`)

  mine.addEventListener('message', ({ data }) => {
    const frame = parse(data)
    // The feed has a list of its own.
    if (frame?.type !== 'message') write('in', data)
    if (frame === null || !isCurrent()) return
    if (isGreeted) {
      if (frame.type === 'context') showContext(frame.auth)
      tell('frame', frame)
    } else if (frame.type === 'hello') {
      isGreeted = true
      showContext(frame.auth)
      show('Open', 'open')
      tell('open', frame.auth)
      bringIntoView(state)
    }
  })
  mine.addEventListener('close', ({ code, reason }) => {
    write('end', `Closed ${code} ${nameOf(code)} ${reason}`)
    if (!isCurrent()) return
    socket = null
    tell('close')
    showContext(null)
    show(`Closed ${code}`, code === 1000 ? 'closed' : 'refused')
    bringIntoView(log)
  })
}

message.addEventListener('submit', event => {
  event.preventDefault()
  const { text } = message.elements
  if (send(text.value)) text.value = ''
})

function tell (event, what) {
  for (const listen of listeners) listen(event, what)
}

/** null: it is no object. */
function parse (data) {
  try {
    const value = JSON.parse(data)
    return typeof value === 'object' ? value : null
  } catch {
    return null
  }
}

function nameOf (code) {
  const known = Object.entries(CLOSE).find(([, row]) => row.code === code)
  return known?.[0] ?? { 1000: 'Normal', 1001: 'GoingAway', 1006: 'ConnectionLost', 1009: 'TooBig' }[code] ?? ''
}

function show (text, kind) {
  showState(state, text, kind)
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
  return Array.isArray(value) ? value.join(', ') || 'none' : String(value)
}
