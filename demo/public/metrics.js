/** Two charts of the plugin's metrics, of all nodes together. Each is an image with a text, and the same as a table. */
import { at, element } from './show.js'
import { nameOf } from './words.js'

const SVG = 'http://www.w3.org/2000/svg'
const ROW = 34
const SPACE = 8
const GOOD = new Set(['jwt', 'session', 'oauth2', '1000', '1001', '1005', '1012'])

const shown = new Map()

/** @param nodes as operators are told of them */
export function show (nodes) {
  draw('handshakes', sum(nodes, 'handshakes'), name => name.replaceAll('_', ' '))
  draw('codes', sum(nodes, 'closes'), code => `${code} ${nameOf(Number(code))}`)
}

function sum (nodes, name) {
  const counts = {}
  for (const node of nodes) {
    for (const [label, value] of Object.entries(node[name])) counts[label] = (counts[label] ?? 0) + value
  }
  return Object.entries(counts).filter(([, value]) => value > 0).sort(([, a], [, b]) => b - a)
}

function draw (id, bars, label) {
  const text = JSON.stringify(bars)
  if (shown.get(id) === text) return
  shown.set(id, text)
  const chart = at(id)
  const isOpen = chart.querySelector('details')?.open === true
  chart.replaceChildren(...bars.length === 0
    ? [element('p', 'None yet', { className: 'hint' })]
    : [picture(id, bars, label), table(bars, label, isOpen)])
}

function picture (id, bars, label) {
  const most = Math.max(...bars.map(([, value]) => value))
  const svg = shape('svg', { width: '100%', height: bars.length * ROW, role: 'img', 'aria-labelledby': `${id}-title`, 'aria-description': bars.map(([name, value]) => `${label(name)}: ${value}`).join(', ') })
  for (const [i, [name, value]] of bars.entries()) {
    const y = i * ROW
    const [what, count] = [shape('text', { x: 0, y: y + 14 }), shape('text', { x: '100%', y: y + 14, 'text-anchor': 'end', class: 'value' })]
    what.textContent = label(name)
    count.textContent = String(value)
    svg.append(what, count,
      shape('rect', { x: 0, y: y + 20, width: '100%', height: SPACE, rx: 4, class: 'rail' }),
      shape('rect', { x: 0, y: y + 20, width: `${100 * value / most}%`, height: SPACE, rx: 4, class: GOOD.has(name) ? 'good' : 'bad' }))
  }
  return svg
}

function table (bars, label, isOpen) {
  const body = element('tbody', bars.map(([name, value]) => element('tr', [element('th', label(name), { scope: 'row' }), element('td', String(value))])))
  return element('details', [element('summary', 'As a table'), element('table', body)], { open: isOpen })
}

function shape (name, attributes) {
  const made = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  return made
}
