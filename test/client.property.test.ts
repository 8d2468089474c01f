/** The client under chance: whatever the network, the server, the clock and the application do, in whatever order. */
import fc from 'fast-check'
import t from 'tap'
import { createAuthSocket, type AuthSocketEvents, type Data, type SocketLike } from '../lib/client/index.js'
import { CLOSE, closeReason, type CloseName } from '../lib/protocol.js'
import { FakeSocket, fakeTime, lookalike, settle, siblingOf, type FakeTime } from './clients.js'
import { deferred, type Deferred } from './stores.js'

const RUNS = 300
const ADDRESS = 'ws://server.example/live'
const OVER: readonly number[] = [4001, 4002, 4004, 4005, 4006]
const CODES = [1000, 1006, 1012, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4008, 4012]

/** What happens next. */
const step = fc.oneof(
  { weight: 4, arbitrary: fc.constant({ kind: 'open' } as const) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('status' as const), expiresIn: fc.constantFrom(null, 0, 5, 100) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('end' as const), code: fc.constantFrom(...CODES) }) },
  { weight: 2, arbitrary: fc.constant({ kind: 'ask' } as const) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('answer' as const), how: fc.constantFrom('taken' as const, 'refused' as const, 'unavailable' as const) }) },
  { weight: 2, arbitrary: fc.constant({ kind: 'limited' } as const) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('token' as const), what: fc.constantFrom('new' as const, 'new' as const, 'new' as const, 'old' as const, 'old' as const, 'none' as const, 'error' as const) }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('tab' as const), what: fc.constantFrom('new' as const, 'old' as const, 'old' as const, 'logout' as const) }) },
  { weight: 4, arbitrary: fc.constant({ kind: 'send' } as const) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('pass' as const), ms: fc.constantFrom(1, 300, 5000, 11_000, 16_000, 80_000) }) },
  { weight: 2, arbitrary: fc.constant({ kind: 'connect' } as const) },
  { weight: 1, arbitrary: fc.constant({ kind: 'logout' } as const) },
  { weight: 1, arbitrary: fc.constant({ kind: 'close' } as const) }
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

const NAMES = Object.keys(CLOSE) as CloseName[]

const isText = (data: Data): data is string => typeof data === 'string'

/** The other end: it judges tokens in the order in which they are offered, and knows what it has refused. */
class World {
  readonly sockets: Judge[] = []
  readonly refused = new Set<string>()
  readonly wrong: string[] = []
  readonly sentAs = new Map<string, boolean>()
  readonly asked: Array<Deferred<string | null | Error>> = []
  isOver = false
  isClosed = false

  arrived (token: string): void {
    if (this.refused.has(token)) this.wrong.push('a token that was refused came again')
  }

  happened (what: string): void {
    if (this.isClosed) this.wrong.push(`${what} after the last close`)
  }

  check (): void {
    const open = this.sockets.filter(({ closedWith, readyState }) => closedWith === undefined && readyState < 2)
    if (open.length > 1) this.wrong.push(`${open.length} sockets at once`)
    const heard = this.sockets.flatMap(({ sent }) => sent.filter(isText)).filter(text => this.sentAs.has(text))
    if (new Set(heard).size !== heard.length) this.wrong.push('a message was sent twice')
    for (const [text, isSent] of this.sentAs) if (isSent && !heard.includes(text)) this.wrong.push('a message that was sent was not')
  }
}

class Judge extends FakeSocket {
  /** What the server goes by, and what it has yet to judge. */
  accepted: string
  readonly offered: string[] = []
  readonly #world: World

  constructor (world: World, url: string, protocols: string[]) {
    super(url, protocols)
    this.#world = world
    this.greets = false
    this.accepted = this.token
    world.happened('a socket')
    if (world.isOver) world.wrong.push('a socket that nobody wanted')
    world.arrived(this.token)
    world.sockets.push(this)
    world.check()
  }

  override send (data: Parameters<SocketLike['send']>[0]): void {
    super.send(data)
    const [, token] = /^\{"type":"auth_update","token":"(.*)"\}$/.exec(isText(data) ? data : '') ?? []
    if (token === undefined) return
    this.#world.arrived(token)
    this.offered.push(token)
  }

  get isHere (): boolean {
    return this.readyState === 1 && this.closedWith === undefined
  }

  answer (how: 'taken' | 'refused' | 'unavailable'): void {
    const token = this.offered.shift()
    if (token === undefined || !this.isHere) return
    if (how === 'taken') {
      this.accepted = token
      this.say({ type: 'auth_updated', expiresIn: 100 })
    } else if (how === 'refused') {
      this.#world.refused.add(token)
      this.say({ type: 'error', code: 'refresh_failed', message: '', action: 'refresh' })
    } else this.say({ type: 'error', code: 'unavailable', message: '', action: 'retry' })
  }

  finish (code: number): void {
    if (this.readyState === 3 || this.closedWith !== undefined) return
    if (OVER.includes(code)) this.#world.refused.add(this.accepted)
    const name = NAMES.find(one => CLOSE[one].code === code)
    this.end(name === undefined ? { code } : { code, reason: closeReason(name) })
  }
}

/** Open, and asked for another token. */
const BEGIN: readonly Step[] = [{ kind: 'token', what: 'new' }, { kind: 'open' }, { kind: 'status', expiresIn: 100 }, { kind: 'ask' }, { kind: 'token', what: 'new' }]
let runs = 0

async function play (t: Parameters<typeof siblingOf>[0], time: FakeTime, isBegun: boolean, steps: readonly Step[]): Promise<string[]> {
  const world = new World()
  const name = `tabs of run ${++runs}`
  const sibling = siblingOf(t, name)
  const client = createAuthSocket({
    url: ADDRESS,
    queue: 3,
    tabs: name,
    WebSocket: class extends Judge {
      constructor (url: string, protocols: string[]) {
        super(world, url, protocols)
      }
    },
    async getToken () {
      world.happened('a question')
      if (world.isOver) world.wrong.push('a question that nobody wanted')
      const answer = deferred<string | null | Error>()
      world.asked.push(answer)
      const given = await answer.promise
      if (given instanceof Error) throw given
      return given
    }
  })
  for (const event of ['state', 'open', 'message', 'close', 'logout', 'error', 'permissions'] satisfies Array<keyof AuthSocketEvents>) {
    client.on(event, () => { world.happened(event) })
  }
  const tokenOf = (what: 'new' | 'old'): string => {
    // One that was refused, where there is one.
    const old = what === 'old' ? [...world.refused][world.sockets.length % world.refused.size] : undefined
    return old ?? lookalike(100)
  }
  let sent = 0
  const act = async (one: Step): Promise<void> => {
    const socket = world.sockets.at(-1)
    switch (one.kind) {
      case 'open': if (socket?.readyState === 0 && socket.closedWith === undefined) socket.open(); break
      case 'status': if (socket?.isHere === true) socket.say({ type: 'auth_success', user: { id: 'alice' }, expiresIn: one.expiresIn }); break
      case 'end': socket?.finish(one.code); break
      case 'ask': if (socket?.isHere === true) socket.say({ type: 'token_refresh_required', expiresIn: 5 }); break
      case 'answer': socket?.answer(one.how); break
      case 'limited': if (socket?.isHere === true) socket.say({ type: 'error', code: 'rate_limited', message: '', action: 'retry', retryAfterMs: 10 }); break
      case 'token': world.asked.shift()?.resolve(one.what === 'none' ? null : one.what === 'error' ? new Error('away') : tokenOf(one.what)); break
      case 'tab':
        sibling.say(one.what === 'logout' ? { logout: true, id: 'alice' } : { token: tokenOf(one.what), id: 'alice' })
        await sibling.settled()
        break
      case 'send': {
        const text = `message ${++sent}`
        world.sentAs.set(text, false)
        world.sentAs.set(text, client.send(text))
        break
      }
      case 'pass': await time.pass(one.ms); break
      case 'connect':
        world.isOver = false
        client.connect()
        break
      case 'logout': client.logout(); break
      case 'close':
        client.close()
        world.isClosed = true
        break
    }
    await settle()
    world.isOver = client.state === 'closed'
    world.check()
    if (world.isOver && time.pending().length > 0) world.wrong.push(`a timer of ${time.pending().join()} ms is left when it is closed`)
  }
  await settle()
  for (const one of [...(isBegun ? BEGIN : []), ...steps]) await act(one)
  if (!world.isClosed) await act({ kind: 'close' })
  for (const { resolve } of world.asked) resolve(tokenOf('new'))
  await act({ kind: 'pass', ms: 80_000 })
  return [...new Set(world.wrong)]
}

t.test('one socket at a time, no token that was refused, nothing twice, and nothing after the end, whatever happens in whatever order', async t => {
  const time = fakeTime(t)
  let opened = 0
  await fc.assert(fc.asyncProperty(fc.boolean(), fc.array(step, { minLength: 5, maxLength: 60 }), async (isBegun, steps) => {
    const wrong = await play(t, time, isBegun, steps)
    opened++
    if (wrong.length > 0) throw new Error(wrong.join('; '))
  }), { numRuns: RUNS, seed: 8, endOnFailure: false })
  t.ok(opened >= RUNS)
})
