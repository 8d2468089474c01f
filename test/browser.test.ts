/** The client in a real browser: every way in, what it is told of a refusal, and what stays behind of its credentials. */
import t from 'tap'
import { CLOSE, SUBPROTOCOL } from '../lib/protocol.js'
import { contextOf, faultsIn, FEED, KEPT, startSite, Tab, type Plan } from './browser-page.js'
import { secret as canary } from './canary.js'
import { browserMissing, launch } from './demo-running.js'
import { goodToken, inSeconds, signHs256, goodClaims } from './helpers.js'

const TOKEN = '/token?user=alice'
const QUERY = { credentials: { query: true } }

// A browser, on a machine with other work.
t.setTimeout(180_000)

t.test('the client in a browser', { skip: browserMissing() }, async t => {
  const browser = await launch(t)

  t.test('who has signed in with a session is let in by the cookie, is told who it is, and hears the feed', async t => {
    const site = await startSite(t)
    const tab = await Tab.open(await contextOf(t, browser), site)
    site.stream()
    await tab.start({ name: 'early' })
    const early = await tab.until(seen => seen.close.length > 0, null, 'early')
    t.match(early.close, [{ code: 4001, terminal: true }], 'nobody yet')
    await tab.post('/login', { userId: 'alice' })
    await tab.start({ rooms: [FEED] })
    const seen = await tab.hears(10)
    t.same(seen.open, [{ identity: { id: 'alice' }, recovered: false }])
    t.same(seen.texts, ['session by cookie'])
    t.same([faultsIn(seen.numbers), seen.joined, seen.gap], [[], [{ room: FEED }], []])
  })

  const ways: Array<[plan: Plan, said: string]> = [
    [{ attach: 'protocol', token: TOKEN }, 'jwt by subprotocol'],
    [{ attach: 'message', token: TOKEN }, 'jwt by message'],
    [{ attach: 'query', token: TOKEN }, 'jwt by query'],
    [{ attach: 'ticket', token: '/ticket' }, 'session by ticket']
  ]
  for (const [plan, said] of ways) {
    t.test(`who brings a credential by ${plan.attach} is let in by it, is told who it is, and hears the feed`, async t => {
      const site = await startSite(t, { auth: QUERY, route: { firstMessage: true } })
      const tab = await Tab.open(await contextOf(t, browser), site)
      site.stream()
      if (plan.attach === 'ticket') await tab.post('/login', { userId: 'alice' })
      await tab.start({ ...plan, rooms: [FEED] })
      await tab.hears(5)
      t.ok(await tab.run(page => page.client().send('echoed')))
      const seen = await tab.until(({ texts }) => texts.includes('echoed'))
      t.same(seen.open, [{ identity: { id: 'alice' }, recovered: false }])
      t.same([seen.texts, faultsIn(seen.numbers), seen.asked, seen.error], [[said, 'echoed'], [], ['connect'], []])
    })
  }

  t.test('a page reads why it was refused as a code and a reason, and without the subprotocol nothing but 1006', async t => {
    const site = await startSite(t, {
      auth: {
        ...QUERY,
        idleTimeout: 100,
        permissions ({ userId }) {
          if (userId === 'broken') throw new Error('the source is down')
          return ['read']
        }
      },
      routes (app) {
        app.get('/admins', { websocket: true, auth: { role: 'admin' } }, () => {})
        app.get('/first', { websocket: true, auth: { firstMessage: { timeout: 50 } } }, () => {})
      }
    })
    const tab = await Tab.open(await contextOf(t, browser), site)
    const revoked = goodToken()
    await site.app.hybridAuth.revoke({ token: revoked })
    const refusals: Array<[row: keyof typeof CLOSE, path: string, ...tokens: string[]]> = [
      ['AuthenticationFailed', '/live'],
      ['AuthenticationFailed', '/live', signHs256(goodClaims(), {}, canary('the secret of somebody else, 32 bytes or more'))],
      ['AuthenticationExpired', '/live', goodToken({ iat: inSeconds(-60), exp: inSeconds(-30) })],
      ['Revoked', '/live', revoked],
      ['Forbidden', '/admins', goodToken()],
      ['Unavailable', '/live', goodToken({ sub: 'broken' })]
    ]
    for (const [name, path, ...tokens] of refusals) {
      const address = `${path}?${tokens.map(token => `token=${token}`).join('&')}`
      const { code, reason, action } = CLOSE[name]
      const told = await tab.dial(address, [SUBPROTOCOL])
      t.equal(told.code, code, name)
      t.match(JSON.parse(told.reason), { code: reason, action, retryAfterMs: Number })
      t.same(await tab.dial(address, []), { code: 1006, reason: '' }, `${name} without the subprotocol`)
    }
    // Let in first, and closed for what they did not do.
    for (const protocols of [[], [SUBPROTOCOL]]) {
      t.match(await tab.dial('/first', protocols), { code: 4010, reason: /"authentication_timeout"/ })
      t.match(await tab.dial(`/live?token=${goodToken()}`, protocols), { code: 4003, reason: /"inactive"/ })
    }
  })

  t.test('a limit is told by its code and when to come back', async t => {
    const site = await startSite(t, { auth: { ...QUERY, limits: { connections: { perUser: 1 }, connects: { perUser: 4 } } } })
    const tab = await Tab.open(await contextOf(t, browser), site)
    await tab.start({ token: TOKEN, tabs: false })
    await tab.isOpen()
    const address = `/live?token=${goodToken()}`
    const told = [await tab.dial(address, [SUBPROTOCOL]), await tab.dial(address, [])]
    t.match(told, [{ code: 4009, reason: /"too_many_connections","action":"retry"/ }, { code: 1006, reason: '' }])
    await tab.start({ name: 'second', token: TOKEN, tabs: false })
    const refused = await tab.until(seen => seen.close.length > 0, null, 'second')
    t.match(refused.close, [{ code: 4009, reason: 'too_many_connections', action: 'retry', terminal: false }])
    t.match(await tab.dial(address, [SUBPROTOCOL]), { code: 4008, reason: /"rate_limited","action":"retry","retryAfterMs":[1-9]/ })
    t.same(await tab.dial(address, []), { code: 1006, reason: '' })
    t.same((await tab.seen()).close, [], 'who was there first stays')
  })

  for (const attach of ['protocol', 'message', 'cookie', 'query', 'ticket'] as const) {
    t.test(`by ${attach} no credential is left in the page, its address, its history or its storage, nor in the console but with the address of a socket that failed`, async t => {
      const site = await startSite(t, { auth: QUERY, route: { firstMessage: true } })
      const context = await contextOf(t, browser)
      const tab = await Tab.open(context, site)
      const isSession = attach === 'cookie' || attach === 'ticket'
      if (isSession) await tab.post('/login', { userId: 'alice' })
      await tab.start({ attach, rooms: [FEED], ...(attach !== 'cookie' && { token: attach === 'ticket' ? '/ticket' : TOKEN }) })
      await tab.isOpen()
      // And again, with a connection that fails before.
      site.isBlocked = true
      site.cut()
      await tab.until(seen => seen.connects.length >= 2)
      await tab.until(seen => seen.state.at(-1) === 'waiting')
      site.isBlocked = false
      await tab.isOpen('main', 2)

      const cookies = await context.cookies()
      t.same(cookies.map(({ name, httpOnly }) => [name, httpOnly]), isSession ? [['sessionId', true]] : [])
      const secrets = [...site.asked.map(({ token }) => token), ...site.tickets, ...cookies.flatMap(({ value }) => [value, decodeURIComponent(value).split('.')[0] ?? ''])]
      t.ok(secrets.length > 0 && secrets.every(secret => secret.length >= 24))
      const found = (text: string) => secrets.filter(secret => text.includes(secret) || text.includes(encodeURIComponent(secret))).length
      const { origins } = await context.storageState({ indexedDB: true })
      t.same(origins, [], 'nothing is stored but cookies')
      const kept = await tab.page.evaluate<string>(KEPT)
      t.match(kept, site.origin)
      t.equal(found(kept), 0, 'in the page')
      t.equal(found([...tab.addresses, tab.page.url()].join('\n')), 0, 'in an address')
      const isInUrl = attach === 'query' || attach === 'ticket'
      t.equal(found(tab.sockets.join('\n')) > 0, isInUrl, 'in the address of the socket as it is documented')
      // The browser writes the address of a connection that has failed.
      t.match(tab.console.join('\n'), /WebSocket connection to/)
      t.equal(found(tab.console.join('\n')) > 0, isInUrl, 'in the console where it is in that address')
    })
  }

  t.test('under a strict policy, with trusted types required, the client connects, shares with tabs, polls, and violates nothing', async t => {
    const site = await startSite(t)
    const tab = await Tab.open(await contextOf(t, browser), site)
    site.isBlocked = true
    site.stream()
    await tab.start({ token: TOKEN, rooms: [FEED], fallback: { after: 0, poll: '/poll', interval: 50 } })
    await tab.hears(5)
    site.isBlocked = false
    await tab.isOpen()
    await tab.run(page => { page.client().logout() })
    await tab.until(seen => seen.close.length > 0)
    t.same(await tab.run(page => page.violations), [])
    await tab.page.evaluate('setTimeout(() => { fetch("http://127.0.0.1:1").catch(() => {}); document.title = "done"; document.body.innerHTML = "text" })')
    await tab.run(page => new Promise<void>(resolve => {
      const look = () => { if (page.violations.length >= 2) resolve(); else setTimeout(look, 5) }
      look()
    }))
    t.same((await tab.run(page => page.violations)).sort(), ['connect-src', 'require-trusted-types-for'], 'the policy is in force')
  })
})
