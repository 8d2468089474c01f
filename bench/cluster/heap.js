/** The heap that live revocations take on a node that was told of them. In a process of its own. Reads the build of lib/. */
import { setTimeout } from 'node:timers/promises'
import { createCodec } from '../../dist/esm/lib/cluster/command.js'
import { Revocations } from '../../dist/esm/lib/cluster/revocations.js'
import { parseRevoke } from '../../dist/esm/lib/cluster/target.js'
import { answerRequests } from '../ipc.js'
import { targetOf } from './targets.js'

const LIFETIME = 3_600_000
const WARM_UP = 1000

const codec = createCodec(['a secret that nodes share, for a benchmark'])
/** Kept, or they would be collected. */
const all = []

answerRequests({
  /** @returns bytes of heap and external memory for each */
  async measure ({ kind, count }) {
    fill(new Revocations(), kind, WARM_UP)
    const known = new Revocations()
    all.push(known)
    const before = await used()
    fill(known, kind, count)
    return (await used() - before) / count
  }
})

function fill (known, kind, count) {
  // Ends all over an hour, as those of tokens.
  for (let i = 0; i < count; i++) {
    const { revocation } = parseRevoke(targetOf(kind, i), { expiresAt: Date.now() + LIFETIME * (1 + i / count) }, known, { retention: LIFETIME, clockTolerance: 0 })
    const command = { type: 'revoke', id: revocation.id, from: 'another node', at: revocation.at, revocation }
    known.add(codec.openCommand(codec.seal('control', command)).revocation)
  }
}

async function used () {
  let least = Infinity
  for (let i = 0; i < 4; i++) {
    await setTimeout(50)
    globalThis.gc()
    const { heapUsed, external } = process.memoryUsage()
    least = Math.min(least, heapUsed + external)
  }
  return least
}
