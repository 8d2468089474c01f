/** The application's `audit` function: told in order and in its own time, whatever it does, and never in anybody's way. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import type { AuditEvent } from '../lib/index.js'
import { Sink } from '../lib/observe/sink.js'
import { EVENT_TYPES } from './canary.js'
import { build, goodToken, keepLines, upgrade, type Server, type ServerOptions } from './helpers.js'
import { eventually } from './live.js'
import { untyped } from './revoking.js'
import { ask, deferred, logTo, never } from './stores.js'
import { connected, turn } from './wire.js'

const bearer = () => ({ headers: { authorization: `Bearer ${goodToken()}` } })
const PATIENCE = 10_000
const FLUSH = 5000
const MAX_WAITING = 10_000
const numbers = (count: number) => Array.from({ length: count }, (_, i) => i)

/** Long timers fire when the test says so; whoever set one is known by its time. */
function longTimers (t: Test) {
  const waiting = new Map<object, { ms: number, fire: () => void }>()
  const [set, clear] = [globalThis.setTimeout, globalThis.clearTimeout]
  t.intercept(globalThis, 'setTimeout', {
    configurable: true,
    value: (fire: (...given: unknown[]) => void, ms = 0, ...given: unknown[]) => {
      if (ms < FLUSH) return set(fire, ms, ...given)
      const timer = set(() => {}, 0)
      waiting.set(timer, { ms, fire: () => { fire(...given) } })
      return timer
    }
  })
  t.intercept(globalThis, 'clearTimeout', {
    configurable: true,
    value: (timer: NodeJS.Timeout | undefined) => {
      if (timer !== undefined) waiting.delete(timer)
      clear(timer)
    }
  })
  return {
    /** Of those that wait: how long they were set to. */
    set: () => [...waiting.values()].map(({ ms }) => ms),
    fire (ms: number) {
      for (const [timer, one] of waiting) {
        if (one.ms !== ms) continue
        waiting.delete(timer)
        one.fire()
      }
    }
  }
}

t.test('a sink is told everything in order, behind whoever gives it', async t => {
  const told: number[] = []
  const sink = new Sink<number>(async n => {
    told.push(n)
    await turn()
  }, () => { t.fail('nothing is dropped') }, () => { t.fail('nothing fails') })
  for (const n of numbers(250)) sink.push(n)
  t.same(told, [], 'not while it is given')
  await eventually('some', () => told.length > 100)
  for (const n of numbers(10)) sink.push(250 + n)
  await sink.flush(FLUSH)
  t.same(told, numbers(260))
  await sink.flush(FLUSH)
  sink.push(999)
  await sink.flush(FLUSH)
  t.equal(told.at(-1), 999, 'and again after a pause')
})

t.test('a sink that throws or rejects is told the next event all the same', async t => {
  const told: number[] = []
  const failures = [
    () => { throw new Error('no') },
    async () => { throw new Error('no') },
    () => Promise.reject(new Error('no')),
    () => { throw undefined as unknown },
    () => 'nothing wrong',
    () => ({ then (_: unknown, no: (error: unknown) => void) { no(new Error('no')) } }),
    () => ({ get then () { throw new Error('no') } })
  ]
  let failed = 0
  const sink = new Sink<number>(n => {
    told.push(n)
    return failures[n % failures.length]?.()
  }, count => { t.equal(count, 0, 'nothing is dropped') }, () => { failed++ })
  for (const n of numbers(7 * failures.length)) sink.push(n)
  await sink.flush(FLUSH)
  t.same(told, numbers(7 * failures.length))
  t.equal(failed, 7 * 6, 'each failure is counted, and what never settles is none')
})

t.test('a hundred promises of a sink are waited for at once, and each for ten seconds', async t => {
  const timers = longTimers(t)
  const told: number[] = []
  const sink = new Sink<number>(n => {
    told.push(n)
    return never()
  }, () => {}, () => {})
  for (const n of numbers(250)) sink.push(n)
  const flushed = sink.flush(60_000)
  for (const count of [100, 200, 250]) {
    await eventually('the next', () => told.length >= count)
    await turn()
    t.equal(told.length, count)
    t.same(timers.set().filter(ms => ms !== 60_000), numbers(count === 250 ? 50 : 100).map(() => PATIENCE))
    timers.fire(PATIENCE)
  }
  await flushed
  t.same([told, timers.set()], [numbers(250), []], 'no timer is left')
})

t.test('flush() waits for what a sink is still busy with, whatever kind of promise that is', async t => {
  const done: number[] = []
  const sink = new Sink<number>(n => ({
    then (settle: () => void) {
      setTimeout(() => {
        done.push(n)
        settle()
      }, 5)
    }
  }), () => {}, () => {})
  for (const n of numbers(3)) sink.push(n)
  await sink.flush(FLUSH)
  t.same(done, [0, 1, 2])
})

t.test('a sink that blocks keeps the loop for one event at a time', async t => {
  const told: number[] = []
  const sink = new Sink<number>(n => {
    told.push(n)
    const until = performance.now() + 6
    while (performance.now() < until);
  }, () => {}, () => {})
  for (const n of numbers(20)) sink.push(n)
  let turns = 0
  while (told.length < 20) {
    await turn()
    turns++
  }
  t.ok(turns >= 19, `${turns} turns of the loop`)
})

t.test('a function whose commands lead to events of their own does not keep the loop to itself', async t => {
  let told = 0
  const { app, host } = await build(t, {
    auth: {
      audit () {
        if (++told < 1000) app.hybridAuth.disconnect({ userId: 'nobody' }).catch(() => {})
      }
    }
  })
  let turns = 0
  const count = () => {
    turns++
    if (told < 1000) setImmediate(count)
  }
  const answered = ask(host)
  await eventually('it begins', () => told > 0)
  setImmediate(count)
  await answered
  await eventually('it ends', () => told >= 1000)
  t.ok(turns >= 5, `${turns} turns of the loop`)
})

t.test('ten thousand events wait, what finds no room is dropped, and what waits is told', async t => {
  const told: number[] = []
  let dropped = 0
  const first = deferred<undefined>()
  const sink = new Sink<number>(n => {
    told.push(n)
    return n < 100 ? first.promise : undefined
  }, count => { dropped += count }, () => {})
  for (const n of numbers(100)) sink.push(n)
  await eventually('it is busy', () => told.length === 100)
  for (const n of numbers(MAX_WAITING)) sink.push(100 + n)
  t.equal(dropped, 0, 'there is room')
  sink.push(-1)
  t.equal(dropped, 1, 'one too many')
  first.resolve(undefined)
  await sink.flush(FLUSH)
  t.same(told, numbers(100 + MAX_WAITING))
  sink.push(-2)
  await sink.flush(FLUSH)
  t.equal(told.at(-1), -2, 'there is room again')
})

t.test('flush() waits as long as it is told and no longer, for whoever asks', async t => {
  const timers = longTimers(t)
  let dropped = 0
  const sink = new Sink<number>(() => never(), count => { dropped += count }, () => {})
  await sink.flush(FLUSH)
  t.same(timers.set(), [], 'nothing waits')
  sink.push(0)
  const both = Promise.all([sink.flush(FLUSH), sink.flush(FLUSH)])
  await eventually('it is told', () => timers.set().includes(PATIENCE))
  t.equal(dropped, 0)
  timers.fire(FLUSH)
  await both
  t.same(timers.set(), [PATIENCE])
  t.equal(dropped, 0, 'it was told')
  for (const n of numbers(110)) sink.push(n)
  await eventually('it is busy', () => timers.set().length === 100)
  const last = sink.flush(FLUSH)
  timers.fire(FLUSH)
  await last
  t.equal(dropped, 11, 'what nobody will be told of any more is dropped')
})

/** A server whose messages are all refused, each with an event. */
const refusing = (t: Test, { auth, ...rest }: ServerOptions = {}): Promise<Server> => build(t, {
  auth: { heartbeat: false, ...auth },
  routes (app) { app.get('/app', { websocket: true, auth: { authorize: () => false } }, socket => { socket.on('message', () => {}) }) },
  ...rest
})

t.test('what is dropped is counted in status(), and warned of once', async t => {
  const { stream, text } = keepLines()
  const told: AuditEvent[] = []
  const first = deferred<undefined>()
  const { app, host } = await refusing(t, {
    auth: {
      audit (event) {
        told.push(event)
        return told.length <= 100 ? first.promise : undefined
      }
    },
    fastify: logTo(stream, { level: 'warn' })
  })
  const peer = await connected(t, host, { path: '/app' })
  const send = async (count: number) => {
    peer.send(...Array.from({ length: count }, () => 'x'))
    await peer.settled()
  }
  await send(99)
  await eventually('it is busy with a hundred', () => told.length === 100)
  for (let i = 0; i < 10; i++) await send(1000)
  t.equal(app.hybridAuth.status().auditDropped, 0)
  await send(250)
  t.equal(app.hybridAuth.status().auditDropped, 250)
  t.equal(text().trim().split('\n').length, 1)
  t.match(text(), /"level":40.*audit events are dropped/)
  first.resolve(undefined)
  await eventually('the rest is told', () => told.length === MAX_WAITING + 100)
  peer.socket.close()
  await eventually('and what comes later', () => told.at(-1)?.type === 'closed')
  t.equal(app.hybridAuth.status().auditDropped, 250)
  t.match(told.at(-1), { framesIn: 10_349 })
})

t.test('a function that fails is warned of once, and counted', async t => {
  const { stream, text } = keepLines()
  let told = 0
  const { host, app } = await build(t, {
    auth: {
      audit () {
        if (++told % 2 === 0) throw new Error('a token that nobody may see')
        return Promise.reject(new Error('a token that nobody may see'))
      }
    },
    fastify: logTo(stream, { level: 'warn' })
  })
  const registry = new Registry()
  app.hybridAuth.metrics(registry)
  for (let i = 0; i < 4; i++) await ask(host)
  await eventually('all are told', () => told === 4)
  await turn()
  t.match(await registry.metrics(), /^hybrid_auth_audit_failed_total 4$/m)
  t.match(await registry.metrics(), /^hybrid_auth_audit_dropped_total 0$/m)
  t.equal(text().trim().split('\n').length, 1)
  t.match(text(), /"level":40.*the audit function fails/)
  t.notMatch(text(), /nobody may see/)
})

t.test('app.close() tells the function what is left, the last closes included, before it is over', async t => {
  const told: AuditEvent[] = []
  const { app, host } = await refusing(t, {
    auth: {
      async audit (event) {
        await turn()
        told.push(event)
      }
    }
  })
  const peer = await connected(t, host, { path: '/app' })
  peer.send(...Array.from({ length: 300 }, () => 'x'))
  await peer.settled()
  await app.close()
  const types = told.map(({ type }) => type)
  t.equal(types.filter(type => type === 'message_refused').length, 300)
  t.equal(types.at(-1), 'closed')
  t.match(told.at(-1), { closeCode: 1012 })
})

t.test('app.close() waits five seconds for a function that hangs, and no longer', async t => {
  const timers = longTimers(t)
  const { app, host } = await build(t, { auth: { heartbeat: false, drain: { deadline: 1000 }, audit: () => never() } })
  await upgrade(t, host, bearer())
  let isClosed = false
  app.close().then(() => { isClosed = true }, () => {})
  await eventually('it waits', () => timers.set().includes(FLUSH))
  t.equal(isClosed, false)
  timers.fire(FLUSH)
  await eventually('it is closed', () => isClosed)
})

t.test('a function that hangs, blocks or fails delays no handshake and changes no answer', async t => {
  const end = deferred<undefined>()
  const functions = {
    hangs: () => end.promise,
    throws: () => { throw new Error('no') },
    rejects: async () => { throw new Error('no') },
    blocks () {
      const until = performance.now() + 20
      while (performance.now() < until);
    }
  }
  for (const [what, audit] of Object.entries(functions)) {
    await t.test(what, async t => {
      const { host } = await refusing(t, { auth: { audit } })
      const peer = await connected(t, host, { path: '/app' })
      peer.send(...Array.from({ length: 100 }, () => 'x'))
      await peer.settled()
      // A function that blocks has two seconds of work now.
      const started = performance.now()
      t.match(await upgrade(t, host, bearer()), { status: 101, context: { userId: 'alice' } })
      t.equal((await ask(host, '/me', bearer())).status, 200)
      t.equal((await ask(host)).status, 401)
      t.ok(performance.now() - started < 1500, `${Math.round(performance.now() - started)} ms`)
      end.resolve(undefined)
    })
  }
})

t.test('the function is not told while the decision is made', async t => {
  const told: AuditEvent[] = []
  const early: string[] = []
  const { host, app } = await build(t, { auth: { audit: event => { told.push(event) } } })
  for (const type of EVENT_TYPES) {
    app.hybridAuth.events.on(type, (event: AuditEvent) => { if (told.includes(event)) early.push(type) })
  }
  await upgrade(t, host, bearer())
  await ask(host)
  await eventually('all are told', () => told.length === 3)
  t.same(early, [])
})

t.test('a listener that throws changes nothing, and keeps the event from nobody else', async t => {
  const told: AuditEvent[] = []
  const heard: string[] = []
  const published: string[] = []
  const { host, app } = await build(t, { auth: { audit: event => { told.push(event) } } })
  const publish = (event: unknown) => { if (typeof event === 'object' && event !== null && 'type' in event) published.push(String(event.type)) }
  for (const type of EVENT_TYPES) {
    app.hybridAuth.events.on(type, () => { heard.push(type) })
    app.hybridAuth.events.on(type, () => { throw new Error('no') })
    app.hybridAuth.events.on(type, untyped(async () => { throw new Error('no') }))
    app.hybridAuth.events.once(type, () => { heard.push(`${type} once`) })
    app.hybridAuth.events.on(type, () => { heard.push(`${type} behind it`) })
    subscribe(`fastify-hybrid-auth:${type}`, publish)
  }
  t.teardown(() => { for (const type of EVENT_TYPES) unsubscribe(`fastify-hybrid-auth:${type}`, publish) })
  t.match(await upgrade(t, host, bearer()), { status: 101, context: { userId: 'alice' } })
  t.equal((await ask(host)).status, 401)
  await app.hybridAuth.disconnect({})
  await eventually('all are told', () => told.length === 4)
  const types = told.map(({ type }) => type)
  t.same(published, types)
  t.same(heard, types.flatMap(type => [type, `${type} once`, `${type} behind it`]))
})
