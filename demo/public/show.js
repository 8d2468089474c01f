/** What every part of the page writes with. */

const NEWS = 3

export const at = id => document.getElementById(id)

/** @param content text, or elements */
export function element (name, content = '', properties = {}) {
  const made = document.createElement(name)
  made.append(...[content].flat())
  return Object.assign(made, properties)
}

export function button (text, press, properties = {}) {
  const made = element('button', text, { type: 'button', ...properties })
  made.addEventListener('click', press)
  return made
}

export const time = ms => new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })

/** `42 s`, `7 min`, `3 h`. */
export function span (seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`
}

export const several = (count, what) => `${count} ${what}${count === 1 ? '' : 's'}`

/** A dot and a word or two: `waiting`, `open`, `closed` or `refused`. */
export function showState (part, text, kind) {
  if (part.textContent === text && part.dataset.kind === kind) return
  part.textContent = text
  part.dataset.kind = kind
}

/** What has happened to the user, in a sentence: `good`, `bad` or `note`. Screen readers say it. */
export function tell (kind, text) {
  const news = at('news')
  const item = element('li', [element('time', time(Date.now())), element('span', text)])
  item.dataset.kind = kind
  news.append(item)
  while (news.childElementCount > NEWS) news.firstElementChild.remove()
}

/** Keeps the first so many. */
export function trim (list, most) {
  while (list.childElementCount > most) list.lastElementChild.remove()
}

/** A list whose rows stay the same elements, so that the focus stays on a button of theirs. */
export function rows (list, make) {
  const known = new Map()
  return items => {
    for (const [id, row] of known) {
      if (items.some(item => item.id === id)) continue
      row.part.remove()
      known.delete(id)
    }
    for (const [i, item] of items.entries()) {
      const row = known.get(item.id) ?? make(item)
      known.set(item.id, row)
      row.update(item)
      if (list.children[i] !== row.part) list.insertBefore(row.part, list.children[i] ?? null)
    }
  }
}
