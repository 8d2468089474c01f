/** What it costs a handshake that live revocations are asked. */
import { startChild } from '../ipc.js'
import { median, quartiles } from '../statistics.js'

// Room for the garbage of a whole batch.
const FLAGS = ['--expose-gc', '--min-semi-space-size=16']
const MAX_NANOS = 1000
const MAX_NOISE = 0.03

export async function measureHandshakes () {
  const child = startChild(new URL('./chain.js', import.meta.url), FLAGS)
  try {
    const { never, twin, ...asked } = await child.ask('measure')
    const toItself = twin.map((value, i) => value / never[i])
    return [
      { name: 'A/A: cached JWT, revocations never asked, against itself', value: median(toItself), spread: quartiles(toItself, 3), digits: 3, within: MAX_NOISE },
      ...Object.entries(asked).map(([name, nanos]) => {
        const added = nanos.map((value, i) => value - never[i])
        const ratios = nanos.map((value, i) => value / never[i])
        return {
          name: `cached JWT, ${name}: added, ns`, value: median(added), spread: quartiles(added, 0), atMost: MAX_NANOS,
          beside: `${median(nanos).toFixed(0)} for ${median(never).toFixed(0)}: ${median(ratios).toFixed(3)} (${quartiles(ratios, 3)})`
        }
      })
    ]
  } finally {
    child.stop()
  }
}
