/** The live feed: in and out of the room of one's tenant, what is said there, and in plain words why one is out of it. */
import { onLive, send } from './live.js'
import { at, element, showState, time } from './show.js'

const MESSAGES = 6
const NEWS = 3
const [join, leave, membership, news, feed, publish] = ['join', 'leave', 'membership', 'news', 'feed', 'publish'].map(at)

const MEANS = { 'property:read': 'read properties', 'property:write': 'publish properties' }
const OUT = {
  forbidden: 'You are out of the room: no longer allowed.',
  removed: 'The server has put you out of the room.'
}
const price = new Intl.NumberFormat('en-IE', { style: 'currency', currency: 'EUR', maximumFractionDigits: 0 })

/** Of the socket's tenant; null: there is no socket. */
let room = null

onLive((event, what) => {
  if (event === 'frame') {
    take(what)
    return
  }
  room = event === 'open' ? `tenant/${what.tenantId}/agents` : null
  join.disabled = room === null
  show(false, 'closed')
})

join.addEventListener('click', () => { send(JSON.stringify({ type: 'join', room })) })
leave.addEventListener('click', () => { send(JSON.stringify({ type: 'leave', room })) })

publish.addEventListener('submit', event => {
  event.preventDefault()
  const { text } = publish.elements
  // The id comes back with a refusal. What is published does not: everybody else gets it.
  if (send(JSON.stringify({ type: 'message', room, payload: { text: text.value }, id: 'publish' }))) text.value = ''
})

function take (frame) {
  switch (frame.type) {
    case 'message':
      add(frame.payload)
      break
    case 'joined':
      show(true, 'open')
      tell('good', 'You are in the room.')
      break
    case 'left':
      show(false, frame.reason === undefined ? 'closed' : 'refused')
      tell(frame.reason === undefined ? 'note' : 'bad', OUT[frame.reason] ?? 'You have left the room.')
      break
    case 'permission_update':
      if (frame.removed.length > 0) tell('bad', `You may no longer ${inWords(frame.removed)}.`)
      if (frame.added.length > 0) tell('good', `You may now ${inWords(frame.added)}.`)
      break
    case 'error':
      if (frame.room === room) tell('bad', frame.id === undefined ? refusal('enter this room', frame) : refusal('publish here', frame))
  }
}

const inWords = permissions => permissions.map(name => MEANS[name] ?? name).join(' or ')

const refusal = (what, { code, message }) => code === 'forbidden' ? `You may not ${what}.` : `${message}.`

function show (isIn, kind) {
  showState(membership, isIn ? 'In the room' : 'Not in the room', kind)
  // The focus stays where it was, on the button that undoes what the other did.
  const hadFocus = document.activeElement === (isIn ? join : leave)
  join.hidden = isIn
  leave.hidden = !isIn
  if (hadFocus) (isIn ? leave : join).focus()
  for (const one of publish.elements) one.disabled = !isIn
}

function tell (kind, text) {
  const item = element('li', '')
  item.dataset.kind = kind
  item.append(element('time', time(Date.now())), element('span', text))
  news.append(item)
  if (news.childElementCount > NEWS) news.firstElementChild.remove()
}

/** The latest comes first. */
function add (payload) {
  const { number, address, price: asked, text } = Object(payload)
  const item = element('li', '')
  item.append(...typeof number === 'number'
    ? [element('b', `#${number}`), element('span', String(address)), element('span', price.format(asked))]
    : [element('b', 'said'), element('span', String(text))])
  feed.prepend(item)
  if (feed.childElementCount > MESSAGES) feed.lastElementChild.remove()
  at('quiet').hidden = true
}
