/** The live feed: the room of one's tenant, its numbered stream, and in plain words why one is out of it. */
import { send } from './access.js'
import { context, join, leave, on } from './connection.js'
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
  tell('bad', frame.code === 'forbidden' ? 'You may not enter this room.' : `${frame.message ?? frame.code}.`)
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
form.addEventListener('submit', async event => {
  event.preventDefault()
  const { text } = form.elements
  const said = text.value
  text.value = ''
  // It comes back by the room, and says by whom.
  const problem = await send('/say', { method: 'POST', body: { text: said } }).then(problemIn, () => 'The server does not answer.')
  if (problem === null) return
  if (text.value === '') text.value = said
  tell('bad', problem)
})

function problemIn ({ ok, status }) {
  if (ok) return null
  if (status === 403) return 'You may not publish here.'
  return status === 429 ? 'That is too much at once.' : `It was not published: the server answered ${status}.`
}

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
  const isProperty = Number.isSafeInteger(number) && Object.hasOwn(KINDS, kind) && typeof address === 'string' && Number.isFinite(asked)
  if (!isProperty && (typeof text !== 'string' || typeof by !== 'string')) return
  const item = element('li', isProperty
    ? [element('b', `#${number}`), element('span', KINDS[kind], { className: 'kind' }), element('span', address.slice(0, 60)), element('span', price.format(asked), { className: 'price' })]
    : [element('b', by === context()?.userId ? 'you' : by.slice(0, 20)), element('span', text.slice(0, 200), { className: 'said' }), element('time', time(Date.now()))])
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
