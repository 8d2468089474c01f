/**
 * A cached JWT through the chain of verifiers and the guard's second look at the revocations, with more of them or fewer,
 * against a chain whose revocations answer without looking. Runs in a process of its own. Reads the build of lib/.
 */
import { randomBytes } from 'node:crypto'
import { Revocations } from '../../dist/esm/lib/cluster/revocations.js'
import { parseRevoke } from '../../dist/esm/lib/cluster/target.js'
import { parseOptions } from '../../dist/esm/lib/options.js'
import { createChain } from '../../dist/esm/lib/verify/chain.js'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'
import { KINDS, targetOf } from './targets.js'

const BATCH = 5000
const ROUNDS = Number(process.env.BENCH_PAIRS ?? 40)
const WARM_UP = 10
const COUNTS = [0, 1000, 100_000]
const LIFETIME = 3_600_000
const SETTINGS = { retention: LIFETIME, clockTolerance: 0 }

const USER = 'user-4711'
const secret = randomBytes(32).toString('base64url')
const token = createIssuer('HS256', secret)({ sub: USER, companyId: 'acme' })

answerRequests({ measure })

/** @returns nanoseconds per handshake of every round, by name */
async function measure () {
  const subjects = { never: await createSubject(unasked()), twin: await createSubject(unasked()) }
  for (const count of COUNTS) subjects[`${count} revocations`] = await createSubject(live(count))
  subjects[`${COUNTS.at(-1)} revocations, five of them of what the user had before`] = await createSubject(live(COUNTS.at(-1), 5))
  const names = Object.keys(subjects)
  const times = Object.fromEntries(names.map(name => [name, []]))
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round + WARM_UP) % names.length]
      // Every request brings a string of its own, whose hash nobody computed yet.
      const tokens = Array.from({ length: BATCH }, () => Buffer.from(token).latin1Slice())
      globalThis.gc({ type: 'minor' })
      const start = process.hrtime.bigint()
      subjects[name](tokens)
      if (round >= 0) times[name].push(Number(process.hrtime.bigint() - start) / BATCH)
      else subjects[name](tokens)
    }
  }
  return times
}

async function createSubject (revocations) {
  const options = parseOptions({ jwt: { key: secret, algorithms: ['HS256'] } })
  const { authenticate } = await createChain(options, { report () {}, onBadIdentity () {}, revocations, tickets: null })
  const request = { headers: {}, ws: true }
  const mayUseCookie = () => false
  return tokens => {
    for (const given of tokens) {
      const context = authenticate(request, { bearer: { token: given, via: 'header' }, mayUseCookie })
      if (context.userId !== USER || revocations.covers(context)) throw new Error(`refused: ${context}`)
    }
  }
}

const unasked = () => ({ isComplete: true, saw () {}, covers: () => false })

function live (count, ofUser = 0) {
  const known = new Revocations()
  const add = target => { known.add(parseRevoke(target, { expiresAt: Date.now() + LIFETIME }, known, SETTINGS).revocation) }
  for (let i = 0; i < count - ofUser; i++) add(targetOf(KINDS[i % KINDS.length], i))
  for (let i = 0; i < ofUser; i++) add({ userId: USER, issuedBefore: Date.now() - 60_000 - i })
  if (known.size !== count) throw new Error(`${known.size} are live`)
  return known
}
