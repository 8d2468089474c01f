/** What every part of the page writes with, and the log of what was said. */

const LOG_LENGTH = 100
const ARROW = { in: '←', out: '→', end: '×', note: '·' }
const SPOKEN = { in: 'received', out: 'sent', end: 'ended', note: 'note' }

export const at = id => document.getElementById(id)

export const log = at('log')

export function element (name, text) {
  const made = document.createElement(name)
  made.textContent = text
  return made
}

export function time (ms) {
  return new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })
}

export function write (kind, text) {
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

/** A dot and a word or two: `waiting`, `open`, `closed` or `refused`. */
export function showState (part, text, kind) {
  part.textContent = text
  part.dataset.kind = kind
}

/** On a phone the answers are below the buttons. */
export function bringIntoView (part) {
  part.closest('section').scrollIntoView({ block: 'nearest' })
}
