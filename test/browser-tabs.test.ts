/** Several windows of a real browser: of one user, of others, and of somebody who changes what they may do. */
import t from 'tap'
import { contextOf, FEED, startSite, Tab } from './browser-page.js'
import { browserMissing, launch } from './demo-running.js'
import { eventually } from './live.js'
import { deferred } from './stores.js'

const ALICE = '/token?user=alice'

// A browser, on a machine with other work.
t.setTimeout(180_000)

t.test('windows of a browser', { skip: browserMissing() }, async t => {
  const browser = await launch(t)

  t.test('a change of rights that an admin makes in another window reaches the socket that is open, and its rooms', async t => {
    const site = await startSite(t, {
      routes (app) {
        app.post<{ Body: { user: string, rights: string[] } }>('/rights', { auth: { role: 'admin' } }, async ({ body: { user, rights } }) => {
          site.rights.set(user, rights)
          return app.hybridAuth.refreshPermissions(user)
        })
      }
    })
    const tab = await Tab.open(await contextOf(t, browser), site)
    await tab.start({ token: ALICE, rooms: [FEED] })
    await tab.until(seen => seen.joined.length === 1)
    await site.app.hybridAuth.rooms.publish(FEED, { number: 1 })
    await tab.hears(1)

    const admin = await Tab.open(await contextOf(t, browser), site)
    const change = async (...rights: string[]) => (await admin.post('/rights', { user: 'alice', rights })).status
    t.equal(await change(), 401)
    await admin.post('/login', { userId: 'mallory', role: 'agent' })
    t.equal(await change(), 403)
    t.same((await tab.seen()).permissions, [])
    await admin.post('/login', { userId: 'root', role: 'admin' })
    t.equal(await change('write'), 200)
    const lost = await tab.until(seen => seen.left.length === 1)
    t.match(lost.permissions, [{ permissions: ['write'], added: ['write'], removed: ['read'] }])
    t.same(lost.left, [{ room: FEED, reason: 'forbidden' }])
    t.same(await site.app.hybridAuth.rooms.publish(FEED, { number: 2 }), { delivered: 0, published: true })

    t.equal(await change('read'), 200)
    await tab.until(seen => seen.permissions.length === 2)
    await tab.run((page, room) => { page.client().join(room) }, FEED)
    await tab.until(seen => seen.joined.length === 2)
    await site.app.hybridAuth.rooms.publish(FEED, { number: 3 })
    const seen = await tab.hears(3)
    t.same([seen.numbers, seen.open.length, seen.close, seen.asked], [[1, 3], 1, [], ['connect']], 'over the same socket')
  })

  t.test('a logout in one tab closes the other, whose token is asked for no more, but not a tab of somebody else, and nobody in another browser', async t => {
    const site = await startSite(t)
    const context = await contextOf(t, browser)
    const [here, there, other, elsewhere] = [await Tab.open(context, site), await Tab.open(context, site), await Tab.open(context, site), await Tab.open(await contextOf(t, browser), site)]
    for (const tab of [here, there, other, elsewhere]) {
      await tab.start({ token: tab === other ? '/token?user=bob' : ALICE })
      await tab.isOpen()
    }
    await here.run(page => { page.client().logout() })
    for (const [tab, by] of [[here, 'self'], [there, 'tab']] as const) {
      const seen = await tab.until(({ close }) => close.length > 0)
      t.match([seen.logout, seen.close, seen.state.at(-1)], [[{ by }], [{ reason: 'logged_out', terminal: true }], 'closed'])
    }
    await eventually('two connections are left', () => site.app.hybridAuth.count() === 2)
    t.equal(site.asked.length, 4)
    for (const tab of [other, elsewhere]) t.match(await tab.seen(), { state: ['connecting', 'open'], logout: [] })
  })

  t.test('where a session ends both tabs are closed by the server with 4006, and are told that they are logged out', async t => {
    const site = await startSite(t)
    const context = await contextOf(t, browser)
    const [here, there] = [await Tab.open(context, site), await Tab.open(context, site)]
    await here.post('/login', { userId: 'alice' })
    for (const tab of [here, there]) {
      await tab.start({})
      await tab.isOpen()
    }
    t.equal((await here.post('/logout')).status, 200)
    for (const tab of [here, there]) {
      const seen = await tab.until(({ close }) => close.length > 0)
      t.match(seen, { logout: [{ by: 'server' }], close: [{ code: 4006, reason: 'revoked', action: 'stop', terminal: true }] })
    }
    await there.run(page => { page.client().connect() })
    t.match((await there.until(({ close }) => close.length === 2)).close[1], { code: 4001, terminal: true }, 'the cookie is worth nothing')
  })

  t.test('of two tabs of a user whose tokens end at once one asks for another and both use it, and a tab of somebody else does not', async t => {
    const site = await startSite(t)
    const context = await contextOf(t, browser)
    const asks: string[] = []
    const gate = deferred<undefined>()
    site.gate.wait = (user, reason) => {
      asks.push(`${user} ${reason}`)
      return reason === 'expiring' && asks.length === 4 ? gate.promise : undefined
    }
    const tabs = [await Tab.open(context, site), await Tab.open(context, site)] as const
    const other = await Tab.open(context, site)
    await other.start({ token: '/token?user=bob' })
    await other.isOpen()
    // Hears what the client of that page hears, and after it.
    await other.run((page, name) => { new BroadcastChannel(name).onmessage = () => { page.client().send('heard') } }, `hybrid-auth 127.0.0.1:${site.port}/live`)
    await Promise.all(tabs.map(tab => tab.start({ token: `${ALICE}&seconds=4` })))
    await Promise.all(tabs.map(tab => tab.isOpen()))

    const locks = () => other.page.evaluate<[held: number, pending: number]>('navigator.locks.query().then(({ held, pending }) => [held.length, pending.length])')
    await eventually('one asks', () => asks.length === 4)
    // The other one wants to ask too, and waits for its turn.
    let found = await locks()
    for (const started = performance.now(); found[1] === 0 && performance.now() - started < 10_000;) found = await locks()
    t.same(found, [1, 1])
    t.same(asks, ['bob connect', 'alice connect', 'alice connect', 'alice expiring'])
    gate.resolve(undefined)
    const idsOf = (userId: string) => site.app.hybridAuth.connections({ userId }).map(({ context }) => 'tokenId' in context && context.tokenId)
    await eventually('both have the new one', () => idsOf('alice').every(id => id === 'token 3 of alice'))
    t.equal(idsOf('alice').length, 2)
    await other.until(({ texts, state }) => texts.includes('heard') || state.at(-1) === 'closed')
    t.same(idsOf('bob'), ['token 0 of bob'])
    t.equal(asks.length, 4, 'it was asked for once')
    t.same((await Promise.all(tabs.map(tab => tab.seen()))).map(({ asked }) => asked.length).sort(), [1, 2])
    for (const tab of [...tabs, other]) t.match(await tab.seen(), { state: ['connecting', 'open'], close: [], error: [] })
    t.same((await other.seen()).asked, ['connect'])
    t.notOk(other.sent.some(frame => frame.includes('auth_update')), 'it was not even offered')
    t.ok(tabs.every(tab => tab.sent.filter(frame => frame.includes('auth_update')).length === 1))
  })
})
