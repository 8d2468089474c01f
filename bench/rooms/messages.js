/** What `auth.messages` adds to each message that it lets through. */
import { startChild } from '../ipc.js'
import { median, quartiles } from '../statistics.js'

const FLAGS = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64']
const MAX_NOISE = 0.1

const TITLES = {
  parsed: 'a function that reads the type and does not ask who it is',
  written: 'a function that reads the type and asks for a role',
  open: 'messages, a type that all may send',
  role: 'messages, a type that needs a role',
  permissions: 'messages, a type that needs two permissions',
  function: 'messages, a type that needs a role, then a function'
}

export async function measureMessages () {
  const child = startChild(new URL('./typed.js', import.meta.url), FLAGS)
  try {
    const { none, twin, ...judged } = await child.ask('measure')
    const toItself = twin.map((value, i) => value / judged.written[i])
    return [
      { name: 'A/A: a written function against itself on another route', value: median(toItself), spread: quartiles(toItself), digits: 2, within: MAX_NOISE },
      ...Object.entries(judged).map(([name, nanos]) => {
        const added = nanos.map((value, i) => value - none[i])
        const ratios = nanos.map((value, i) => judged.written[i] / value)
        return {
          name: `${TITLES[name]}: added to a message, ns`, value: median(added), spread: quartiles(added, 0),
          beside: `${median(nanos).toFixed(0)} for ${median(none).toFixed(0)}; ratio to a written function ${median(ratios).toFixed(2)} (${quartiles(ratios)})`
        }
      })
    ]
  } finally {
    child.stop()
  }
}
