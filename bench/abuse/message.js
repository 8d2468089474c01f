/** What `auth.rate` adds to each message that it lets through. */
import { startChild } from '../ipc.js'
import { median, quartiles } from '../statistics.js'

const FLAGS = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64']
const MAX_NANOS = 200
// What V8 rounds the size of its heap to, over a batch.
const NO_BYTES = 0.5
const MAX_NOISE = 0.1

const TITLES = {
  messages: 'messages of a connection',
  'messages-bytes': 'messages and bytes of a connection',
  user: 'messages of a user',
  'messages-user': 'messages of a connection and of a user',
  all: 'messages and bytes of a connection and of a user'
}

export async function measureMessages () {
  const child = startChild(new URL('./guard.js', import.meta.url), FLAGS)
  try {
    const { none, twin, ...limited } = await child.ask('measure')
    const beyond = (values, base) => values.map((value, i) => value - base[i])
    const toItself = twin.nanos.map((value, i) => value / none.nanos[i])
    return [
      { name: 'A/A: a message without a limit, against another route', value: median(toItself), spread: quartiles(toItself), digits: 2, within: MAX_NOISE },
      ...Object.entries(limited).flatMap(([name, { nanos, bytes }]) => {
        const [added, allocated] = [beyond(nanos, none.nanos), beyond(bytes, none.bytes)]
        const ratios = nanos.map((value, i) => none.nanos[i] / value)
        return [
          {
            name: `rate, ${TITLES[name]}: added to a message, ns`, value: median(added), spread: quartiles(added, 0), atMost: MAX_NANOS,
            beside: `${median(nanos).toFixed(0)} for ${median(none.nanos).toFixed(0)}: ratio ${median(ratios).toFixed(2)} (${quartiles(ratios)})`
          },
          {
            name: `rate, ${TITLES[name]}: allocated for a message, bytes`, value: median(allocated), spread: quartiles(allocated, 1), digits: 1,
            beside: `without ${median(none.bytes).toFixed(1)}`, atMost: NO_BYTES, goal: '0'
          }
        ]
      })
    ]
  } finally {
    child.stop()
  }
}
