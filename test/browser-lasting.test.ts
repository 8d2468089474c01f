/** What the client in a real browser holds out against: the end of its tokens, the way to the server, and the server itself. */
import t from 'tap'
import { contextOf, faultsIn, FEED, goesOn, startSite, Tab } from './browser-page.js'
import { browserMissing, launch } from './demo-running.js'
import { eventually } from './live.js'

// A browser, on a machine with other work.
t.setTimeout(180_000)

t.test('the client in a browser', { skip: browserMissing() }, async t => {
  const browser = await launch(t)

  t.test('tokens that end are replaced in time over the same socket, and a numbered stream has neither gap nor repeat', async t => {
    const site = await startSite(t, { auth: { expiryGrace: 0 } })
    const tab = await Tab.open(await contextOf(t, browser), site)
    const at = site.stream()
    await tab.start({ token: '/token?user=alice&seconds=2.5', rooms: [FEED] })
    await tab.isOpen()
    const [first] = site.app.hybridAuth.connections()
    await eventually('three tokens, of which two are used up', () => site.asked.length >= 3 && Date.now() > (site.asked[1]?.ends ?? Infinity), 15_000)
    const seen = await tab.hears(at() + 1)
    t.same([seen.state, seen.close, seen.error], [['connecting', 'open'], [], []])
    t.same([faultsIn(seen.numbers), seen.gap], [[], []])
    const [connection] = site.app.hybridAuth.connections()
    t.equal(connection, first, 'the same socket')
    t.ok((connection?.context.version ?? 0) >= 3)
    t.same(seen.asked, ['connect', ...seen.asked.slice(1).fill('expiring')])
    for (const [i, { at, reason }] of site.asked.entries()) {
      const left = (site.asked[i - 1]?.ends ?? Infinity) - at
      t.ok(left > 0 && (i === 0 || left < 2500 * 0.5), `${reason}: asked for in the second half of the last one's time, and before its end`)
    }
  })

  t.test('who is offline waits, comes back at once when that is over, and has missed nothing', async t => {
    const site = await startSite(t)
    const context = await contextOf(t, browser)
    const tab = await Tab.open(context, site)
    const at = site.stream()
    await tab.start({ token: '/token?user=alice', rooms: [FEED] })
    await tab.hears(5)
    await context.setOffline(true)
    site.cut()
    // Without a network the page may not hear of it: then it asks, and has no answer.
    await tab.until(seen => seen.state.at(-1) === 'waiting')
    const before = site.upgrades()
    const { numbers: early } = await tab.seen()
    // More than the longest first wait of who is not offline.
    await goesOn(at, 40)
    t.equal(site.upgrades(), before, 'no attempt')
    t.same((await tab.seen()).connects.length, 1)
    t.same((await tab.seen()).numbers, early)
    const back = await tab.page.evaluate<number>('performance.now()')
    await context.setOffline(false)
    const seen = await tab.isOpen('main', 2)
    t.ok((seen.opens[1] ?? Infinity) - back < 5000, 'long before the time that it would have waited for')
    t.same((await tab.seen()).open.map(({ recovered }) => recovered), [false, true])
    const { numbers, gap } = await tab.hears(at() + 1)
    t.same([faultsIn(numbers), gap, numbers[0]], [[], [], early[0]])
    t.ok(numbers.length > early.length + 40)
  })

  t.test('a page that is put away has no socket, and one that is shown again has one, and has missed nothing', async t => {
    const site = await startSite(t)
    const tab = await Tab.open(await contextOf(t, browser), site)
    const at = site.stream()
    const connections = () => site.app.hybridAuth.count()
    await tab.start({ token: '/token?user=alice', rooms: [FEED] })
    await tab.hears(5)
    // This browser keeps no page, so that what it would say is said by the test.
    await tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await eventually('nobody is there', () => connections() === 0)
    const { state, connects } = await tab.seen()
    t.same([state.at(-1), connects.length], ['waiting', 1])
    await goesOn(at, 40)
    t.equal(connections(), 0)
    t.equal((await tab.seen()).connects.length, 1)
    await tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await tab.isOpen('main', 2)
    const seen = await tab.hears(at() + 1)
    t.same([faultsIn(seen.numbers), seen.gap, seen.asked, seen.close], [[], [], ['connect'], []])
    t.equal(connections(), 1)
  })

  t.test('a page that is left leaves no socket behind, and who comes back is let in by the cookie again', async t => {
    const site = await startSite(t)
    const tab = await Tab.open(await contextOf(t, browser), site)
    const connections = () => site.app.hybridAuth.count()
    await tab.post('/login', { userId: 'alice' })
    await tab.start({})
    await tab.isOpen()
    await tab.page.goto(`${site.origin}/other`)
    await eventually('nobody is there', () => connections() === 0)
    await tab.page.goBack()
    await tab.start({})
    await tab.isOpen()
    t.equal(connections(), 1)
  })

  for (const how of ['closes', 'dies'] as const) {
    t.test(`fifty clients of a server that ${how} and starts again all come back, not at once, and nobody has to log in`, async t => {
      const auth = { drain: { window: 1500 } }
      const first = await startSite(t, { auth })
      const tab = await Tab.open(await contextOf(t, browser), first)
      const names = Array.from({ length: 50 }, (_, i) => `client ${i}`)
      // Where more than a few are on their way the browser itself lets them wait for seconds.
      for (let i = 0; i < 50; i += 10) {
        const some = names.slice(i, i + 10)
        for (const name of some) await tab.start({ name, tabs: false, token: '/token?user=alice', rooms: [FEED] })
        for (const name of some) await tab.isOpen(name)
      }
      if (how === 'dies') {
        first.isBlocked = true
        first.cut()
      }
      await first.app.close()
      const second = await startSite(t, { auth, port: first.port })
      for (const name of names) await tab.until(seen => seen.open.length >= 2, null, name)
      t.equal(second.app.hybridAuth.count(), 50)
      const all = await tab.run((page, all) => all.map(name => page.seen(name)), names)
      t.same(all.flatMap(({ logout }) => logout), [])
      t.same(all.flatMap(({ close }) => close.filter(({ terminal }) => terminal)), [])
      const codes = [...new Set(all.map(({ close }) => close[0]?.code))]
      t.same(codes, [how === 'closes' ? 1012 : 1006])
      // The first attempt of each, by when it was made: whatever the browser and the machine do with it later.
      const attempts = all.map(({ connects }) => connects[1] ?? 0)
      const slots = new Map<number, number>()
      for (const attempt of attempts) slots.set(Math.floor(attempt / 100), (slots.get(Math.floor(attempt / 100)) ?? 0) + 1)
      const counts = [...slots.values()]
      t.ok(Math.max(...counts) <= 30, `at most ${Math.max(...counts)} of 50 in a tenth of a second`)
      const over = Math.max(...attempts) - Math.min(...attempts)
      // One that closes gives each its own time; else there are but the clients' own waits, of half a second.
      t.ok(slots.size >= 3 && over > (how === 'closes' ? 700 : 250), `over ${Math.round(over)} ms`)
    })
  }

  t.test('where no upgrade gets through the rooms are polled, and when one does the stream goes on over the socket, without gap or repeat', async t => {
    const site = await startSite(t)
    const tab = await Tab.open(await contextOf(t, browser), site)
    const at = site.stream()
    const plan = { token: '/token?user=alice', tabs: false as const, rooms: [FEED], fallback: { after: 300, poll: '/poll', interval: 100 } }
    await tab.start(plan)
    await tab.isOpen()
    await tab.hears(5)
    site.isBlocked = true
    site.cut()
    await tab.until(seen => seen.state.at(-1) !== 'open')
    await tab.start({ ...plan, name: 'late' })
    for (const [name, times] of [['main', 1], ['late', 0]] as const) {
      await tab.until(seen => seen.degraded.at(-1) === true, null, name)
      const seen = await tab.hears(at() + 10, name)
      t.same([seen.open.length, seen.state.includes('open')], [times, times === 1], `${name} hears by polls`)
    }
    site.isBlocked = false
    for (const [name, times] of [['main', 2], ['late', 1]] as const) {
      await tab.isOpen(name, times)
      const { degraded, numbers, gap } = await tab.hears(at() + 20, name)
      t.same([degraded.slice(-2), faultsIn(numbers), gap], [[true, false], [], []], `${name} is back`)
    }
    const { polls } = site
    await goesOn(at, 30)
    t.equal(site.polls, polls, 'nobody polls any more')
  })
})
