/** The live feed: the room of one's tenant, its numbered stream, and in plain words why one is out of it. */
import { context, join, leave, on, publish } from './connection.js'
import { at, element, showState, tell, time, trim } from './show.js'

const SHOWN = 8
const KINDS = { listed: 'New', reduced: 'Reduced', viewing: 'Viewing', sold: 'Sold' }
const MEANS = { 'property:read': 'read properties', 'property:write': 'publish properties', operate: 'operate' }
const [joinButton, leaveButton, membership, feed, form, stream] = ['join', 'leave', 'membership', 'feed', 'publish', 'stream'].map(at)
const price = new Intl.NumberFormat('en-IE', { style: 'currency', currency: 'EUR', maximumFractionDigits: 0 })

/** Of the tenant; null: nobody is there. */
let room = null
/** Who has left by a press of the button does not come back by itself. */
let hasLeft = false
let latest = null
let missed = 0

on('greeted', auth => {
  room = `tenant/${auth.tenantId}/agents`
  at('room').textContent = auth.tenantId
  joinButton.disabled = false
  if (!hasLeft && mayRead(auth)) join(room)
})
on('context', auth => { if (!hasLeft && mayRead(auth)) join(room) })
on('ended', () => {
  room = null
  hasLeft = false
  latest = null
  missed = 0
  joinButton.disabled = true
  stream.textContent = 'nothing yet'
  feed.replaceChildren()
  show(false, 'closed')
})
on('state', state => { if (state !== 'open') show(false, 'waiting') })

on('degraded', isSo => { if (isSo) showState(membership, 'Asked for', 'waiting') })

on('joined', joined => {
  if (joined.room !== room) return
  show(true, 'open')
  tell('good', 'You are in the room.')
})
on('left', left => {
  if (left.room !== room) return
  show(false, left.reason === null ? 'closed' : 'refused')
  if (left.reason === null) tell('note', 'You have left the room.')
  else tell('bad', left.reason === 'forbidden' ? 'You are out of the room: no longer allowed.' : 'The server has put you out of the room.')
})
on('permissions', ({ added, removed }) => {
  if (removed.length > 0) tell('bad', `You may no longer ${inWords(removed)}.`)
  if (added.length > 0) tell('good', `You may now ${inWords(added)}.`)
})
on('refused', frame => {
  if (frame.room !== room) return
  const what = frame.id === undefined ? 'enter this room' : 'publish here'
  tell('bad', frame.code === 'forbidden' ? `You may not ${what}.` : `${frame.message ?? frame.code}.`)
})
on('gap', gap => { if (gap.room === room) tell('bad', 'Some of the feed is lost: more than is kept of it.') })
on('said', ({ room: where, payload }) => { if (where === room) add(Object(payload)) })

joinButton.addEventListener('click', () => {
  hasLeft = false
  join(room)
})
leaveButton.addEventListener('click', () => {
  hasLeft = true
  leave(room)
})
form.addEventListener('submit', event => {
  event.preventDefault()
  const { text } = form.elements
  // The id comes back with a refusal. What is published does not: everybody else gets it.
  if (!publish(room, { text: text.value, by: context().userId }, crypto.randomUUID())) return
  add({ text: text.value, by: 'you' })
  text.value = ''
})

const mayRead = ({ permissions }) => permissions.includes('property:read')
const inWords = permissions => permissions.map(name => MEANS[name] ?? name).join(' or ')

function show (isIn, kind) {
  showState(membership, isIn ? 'In the room' : 'Not in the room', kind)
  // The focus stays where it was, on the button that undoes what the other did.
  const hadFocus = document.activeElement === (isIn ? joinButton : leaveButton)
  joinButton.hidden = isIn
  leaveButton.hidden = !isIn
  if (hadFocus) (isIn ? leaveButton : joinButton).focus()
  for (const one of form.elements) one.disabled = !isIn
}

/** The latest comes first. */
function add ({ number, kind, address, price: asked, text, by }) {
  const isProperty = typeof number === 'number'
  const item = element('li', isProperty
    ? [element('b', `#${number}`), element('span', KINDS[kind] ?? 'New', { className: 'kind' }), element('span', String(address).slice(0, 60)), element('span', price.format(asked), { className: 'price' })]
    : [element('b', String(by ?? 'somebody').slice(0, 20)), element('span', String(text).slice(0, 200), { className: 'said' }), element('time', time(Date.now()))])
  item.dataset.kind = isProperty ? kind : 'said'
  feed.prepend(item)
  trim(feed, SHOWN)
  if (isProperty) count(number)
}

/** By the numbers one sees what was not for this page. */
function count (number) {
  if (latest !== null && number > latest) missed += number - latest - 1
  latest = number
  stream.textContent = `up to #${number}, ${missed === 0 ? 'none missed' : `${missed} missed`}`
}
