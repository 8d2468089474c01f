/** Histories under chance: whoever goes, comes back, polls and publishes, each message comes to each once and in order. */
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import type { Cluster } from '../lib/cluster/cluster.js'
import { comeBack, cursorOf, HALL, keeper, taleOf, type Keeper } from './histories.js'
import type { Pair } from './live.js'
import { driverOf } from './revoking.js'

t.setTimeout(240_000)
const RUNS = 25

const step = fc.oneof(
  { weight: 5, arbitrary: fc.record({ type: fc.constant('publish' as const), node: fc.nat(1), count: fc.integer({ min: 1, max: 4 }) }) },
  { weight: 3, arbitrary: fc.record({ type: fc.constant('join' as const), client: fc.nat(2), node: fc.nat(1) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('go' as const), client: fc.nat(2) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('poll' as const), client: fc.nat(2), node: fc.nat(1) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('deafen' as const), node: fc.nat(1), isDeaf: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('wait' as const), turns: fc.integer({ min: 1, max: 5 }) }) }
)

/** Somebody who has a cursor, and a socket now and then. */
class Client {
  readonly had: unknown[] = []
  cursor: string
  #coming: Promise<Pair> | null = null

  constructor (cursor: string) {
    this.cursor = cursor
  }

  join (node: Keeper): void {
    this.#coming ??= comeBack(node, this.cursor)
  }

  async go (): Promise<void> {
    const pair = await this.#coming
    if (pair === null) return
    this.#coming = null
    pair.peer.socket.terminate()
    await pair.there.closed
    this.had.push(...taleOf(pair.peer).filter(one => one !== 'joined'))
    this.cursor = cursorOf(pair)
  }

  async poll (node: Keeper): Promise<void> {
    await this.go()
    const { messages, cursor, gap } = await node.pollOf(this.cursor)
    this.had.push(...messages.map(({ payload }) => payload), ...(gap === true ? ['gap'] : []))
    this.cursor = cursor
  }
}

t.test(`in ${RUNS} runs`, async t => {
  let delays: number[] = []
  const deaf = new Set<number>()
  const resume: Array<() => void> = []
  const pause = async () => { for (let turns = delays.pop() ?? 0; turns > 0; turns--) await turn() }
  const driver = driverOf((inner, member): Partial<Cluster> => {
    const index = resume.length
    const tell = member.told.bind(member)
    member.told = (...given) => { if (!deaf.has(index)) tell(...given) }
    resume.push(() => { member.resumed() })
    // As over a connection: what a node says stays in its order.
    let last: Promise<unknown> = Promise.resolve()
    return {
      async append (...given) {
        const before = last
        const appended = (async () => {
          await before
          await pause()
          return inner.append(...given)
        })()
        last = appended
        return appended
      },
      async recall (...given) {
        await pause()
        const recalled = await inner.recall(...given)
        await pause()
        return recalled
      }
    }
  })
  const rooms = { patterns: { [HALL]: { join: true, history: 1000 } } }
  const nodes = [await keeper(t, driver, rooms), await keeper(t, driver, rooms)] as const
  const nodeOf = (index: number): Keeper => nodes[index === 0 ? 0 : 1]

  await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 40 }), fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 20, maxLength: 80 }), async (steps, given) => {
    delays = [...given]
    const { cursor } = await nodes[0].pollOf(null)
    const clients = [new Client(cursor), new Client(cursor), new Client(cursor)]
    const clientOf = (index: number): Client => clients[index] ?? new Client(cursor)
    const publishing: Array<Promise<unknown>> = []
    for (const one of steps) {
      switch (one.type) {
        case 'publish': for (let n = 0; n < one.count; n++) publishing.push(nodeOf(one.node).publish(`${one.node} ${publishing.length}`)); break
        case 'join': clientOf(one.client).join(nodeOf(one.node)); break
        case 'go': await clientOf(one.client).go(); break
        case 'poll': await clientOf(one.client).poll(nodeOf(one.node)); break
        case 'deafen':
          if (one.isDeaf) deaf.add(one.node)
          else if (deaf.delete(one.node)) resume[one.node]?.()
          break
        case 'wait': for (let n = 0; n < one.turns; n++) await turn()
      }
    }
    deaf.clear()
    await Promise.all(publishing)
    for (const client of clients) await client.poll(nodes[0])
    const { messages } = await nodes[1].pollOf(cursor)
    const all = messages.map(({ payload }) => payload)
    if (all.length !== publishing.length || new Set(all).size !== all.length) throw new Error(`${all.length} of ${publishing.length}`)
    for (const { had } of clients) if (JSON.stringify(had) !== JSON.stringify(all)) throw new Error(`${JSON.stringify(had)} of ${JSON.stringify(all)}`)
  }), { numRuns: RUNS })
  t.pass('each once and in order')
})
