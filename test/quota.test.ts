/** How many questions are out at once, and how many begin in a second. */
import t, { type Test } from 'tap'
import { Quota } from '../lib/connection/quota.js'

const AT_ONCE = 50

interface Fake {
  quota: Quota
  /** Moves the clock, and lets timers fire that are due by then. */
  pass: (ms: number) => Promise<void>
  /** Somebody enters, whose name is the next number. */
  enter: (n?: number) => void
  /** Who is inside, or was, in order. */
  entered: number[]
  /** Who was told that it is not wanted any more. */
  dropped: number[]
  /** These are not wanted any more. */
  go: (...those: number[]) => void
  /** The first who is inside has done. */
  leave: () => Promise<void>
  timers: () => number
  setClock: (ms: number) => void
}

const settle = (): Promise<void> => new Promise(resolve => { setImmediate(resolve) })

/** With a clock and timers that move by hand. */
function fake (t: Test, perSecond: number): Fake {
  const { setTimeout: realSet, clearTimeout: realClear } = globalThis
  const realNow = Date.now.bind(Date)
  let time = realNow()
  let skew = 0
  const timers = new Map<object, { at: number, run: () => void }>()
  Date.now = () => time + skew
  globalThis.setTimeout = ((run: () => void, ms: number) => {
    const timer = { unref: () => timer }
    timers.set(timer, { at: time + ms, run })
    return timer
  }) as never
  globalThis.clearTimeout = ((timer: object | undefined) => { if (timer !== undefined) timers.delete(timer) }) as never
  t.teardown(() => {
    Date.now = realNow
    Object.assign(globalThis, { setTimeout: realSet, clearTimeout: realClear })
  })
  const quota = new Quota(perSecond)
  const entered: number[] = []
  const dropped: number[] = []
  const gone = new Set<number>()
  const leaving: Array<() => void> = []
  let names = 0
  return {
    quota,
    entered,
    dropped,
    go (...those) { for (const name of those) gone.add(name) },
    timers: () => timers.size,
    setClock (ms) { skew += ms },
    enter (n = 1) {
      for (let i = 0; i < n; i++) {
        const name = names++
        quota.enter(() => !gone.has(name)).then(leave => {
          if (leave === null) {
            dropped.push(name)
            return
          }
          entered.push(name)
          leaving.push(leave)
        }).catch(t.threw.bind(t))
      }
    },
    async leave () {
      leaving.shift()?.()
      await settle()
    },
    async pass (ms) {
      const end = time + ms
      for (;;) {
        const due = [...timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0]
        if (due === undefined) break
        const [timer, { at, run }] = due
        timers.delete(timer)
        time = Math.max(time, at)
        run()
        await settle()
      }
      time = end
      await settle()
    }
  }
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

t.test('without a bound by the second, fifty are inside at once, and the others come in order', async t => {
  const { enter, entered, leave, timers } = fake(t, Infinity)
  enter(120)
  await settle()
  t.strictSame(entered, upTo(AT_ONCE))
  for (let n = AT_ONCE + 1; n <= 120; n++) {
    await leave()
    t.strictSame(entered, upTo(n))
  }
  for (let i = 0; i < AT_ONCE; i++) await leave()
  enter(60)
  await settle()
  t.equal(entered.length, 120 + AT_ONCE, 'as many as before, once all have left')
  t.equal(timers(), 0, 'no timer is needed')
})

t.test('with a bound by the second, who comes too soon waits for it, and not longer', async t => {
  const { enter, entered, pass, leave } = fake(t, 4)
  enter(20)
  await pass(0)
  t.equal(entered.length, 1)
  await pass(249)
  t.equal(entered.length, 1)
  for (const n of [2, 3, 4, 5]) {
    await pass(n === 2 ? 1 : 250)
    t.equal(entered.length, n)
  }
  // Leaving makes no room in the second.
  for (let i = 0; i < 5; i++) await leave()
  t.equal(entered.length, 5)
  await pass(3749)
  t.equal(entered.length, 19)
  await pass(1)
  t.strictSame(entered, upTo(20))
})

t.test('who is not wanted any more when its turn comes costs nothing, and is told', async t => {
  const { enter, entered, dropped, go, pass, leave, timers } = fake(t, 1)
  enter(8)
  await pass(0)
  go(0, 1, 2, 3, 5, 7)
  t.strictSame([entered, dropped], [[0], []], 'who is inside already stays')
  await pass(999)
  t.strictSame(entered, [0])
  await pass(1)
  t.strictSame([entered, dropped], [[0, 4], [1, 2, 3, 5]], 'the next whom somebody wants has the second of those before it')
  await pass(1000)
  t.strictSame([entered, dropped, timers()], [[0, 4, 6], [1, 2, 3, 5, 7], 0])
  for (let i = 0; i < 3; i++) await leave()
  enter()
  await pass(1000)
  t.equal(entered.length, 4)
})

t.test('who is not wanted any more takes none of the fifty places', async t => {
  const { enter, entered, dropped, go, leave } = fake(t, Infinity)
  enter(AT_ONCE)
  enter(100)
  go(...Array.from({ length: 99 }, (_, i) => AT_ONCE + i))
  await settle()
  t.strictSame([entered.length, dropped.length <= 99], [AT_ONCE, true])
  await leave()
  t.strictSame([entered.length, entered.at(-1), dropped.length], [AT_ONCE + 1, AT_ONCE + 99, 99])
})

/** Everybody leaves at once; a look around every 50 ms. @returns when they began, in milliseconds */
async function beginnings ({ enter, entered, pass, leave }: Fake, perSecond: number): Promise<number[]> {
  const at: number[] = []
  enter(perSecond * 12)
  for (let ms = 0; ms < 10_000; ms += 50) {
    do {
      await pass(0)
      await leave()
      if (entered.length > at.length) at.push(ms)
    } while (entered.length > at.length)
    await pass(50)
  }
  return at
}

t.test('in the long run, as many begin as the bound allows, and no more', async t => {
  for (const perSecond of [1, 3, 7, 40]) {
    const began = (await beginnings(fake(t, perSecond), perSecond)).length
    t.ok(began <= perSecond * 11, `${began} in 10 s at ${perSecond} a second`)
    t.ok(began >= perSecond * 9.9 - 1, `${began} in 10 s at ${perSecond} a second`)
  }
})

t.test('in no second do more begin than the bound allows, but for a twentieth', async t => {
  for (const perSecond of [10, 40]) {
    const at = await beginnings(fake(t, perSecond), perSecond)
    const most = Math.max(...at.map(begin => at.filter(time => time >= begin && time < begin + 1000).length))
    t.ok(most <= perSecond * 1.05 + 1, `${most} in one second, at ${perSecond} a second`)
  }
})

t.test('both bounds hold together: a second that has room does not admit a fifty-first, nor a place a second without room', async t => {
  const { enter, entered, pass, leave, timers } = fake(t, 60)
  enter(200)
  await pass(0)
  t.equal(entered.length, 3)
  await pass(10_000)
  t.strictSame([entered.length, timers()], [AT_ONCE, 0], 'nobody is waited for by a timer while there is no place')
  for (let i = 0; i < AT_ONCE; i++) await leave()
  t.equal(entered.length, AT_ONCE + 3, 'of the seconds that nobody used no more is left than a twentieth of one')
  await pass(1000)
  t.equal(entered.length, AT_ONCE * 2)
})

t.test('a clock that is set back or forward admits nobody too many, and nobody waits for it for ever', async t => {
  for (const jump of [-3_600_000, 3_600_000]) {
    const { enter, entered, pass, setClock } = fake(t, 2)
    enter(12)
    await pass(0)
    t.equal(entered.length, 1)
    setClock(jump)
    await pass(400)
    t.ok(entered.length <= 2, `${entered.length} of them`)
    await pass(8000)
    t.equal(entered.length, 12)
  }
})

t.test('after stop() nobody enters who was in line, and no timer is left', async t => {
  const { quota, enter, entered, pass, leave, timers } = fake(t, 1)
  enter(5)
  await pass(0)
  t.strictSame([entered.length, timers()], [1, 1])
  quota.stop()
  t.equal(timers(), 0)
  await leave()
  await pass(10_000)
  t.strictSame([entered.length, timers()], [1, 0])
  quota.stop()
})

t.test('a timer of the line does not keep a process alive', async t => {
  const quota = new Quota(1)
  t.teardown(() => { quota.stop() })
  const before = process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const leave = await quota.enter(() => true)
  quota.enter(() => true).catch(t.threw.bind(t))
  t.equal(process.getActiveResourcesInfo().filter(name => name === 'Timeout').length, before)
  leave?.()
})
