/** The dashboard in a browser: what each panel shows and does, and that it can be used by everybody. */
import type { Page } from 'playwright-core'
import t from 'tap'
import { bearerOf, browserMissing, DESKTOP, launch, memberOf, PHONE, press, sessionOf, signIn, startDemo, tokensOf, watch } from './demo-running.js'
import { eventually } from './live.js'
import { needsRedis } from './redis.js'

t.setTimeout(180_000)

const skip = browserMissing()
const state = (page: Page, text: string) => page.locator('#state', { hasText: new RegExp(`^${text}$`) }).waitFor()
const rowOf = (page: Page, name: string) => page.locator('#connections tr', { has: page.getByRole('rowheader', { name }) })

t.test('a token is replaced again and again without a gap in the stream, and nothing of it is left lying about', { skip }, async t => {
  const { origin, passwords } = await startDemo(t, 'demo/server.js', { DEMO_TOKEN_LIFETIME: '4' })
  const context = await (await launch(t)).newContext()
  const page = await context.newPage()
  const seen = watch(page)
  const tokens: unknown[] = []
  page.on('response', response => { if (response.url().includes('/token')) response.json().then(body => tokens.push(memberOf(body, 'access_token')), () => {}) })
  await page.goto(origin)
  await signIn(page, 'alice', passwords.alice, 'token')
  await page.getByText(/^Context replaced 3 ×/).waitFor()
  await page.getByText(/^up to #\d+, none missed$/).waitFor()
  t.equal(seen.urls.filter(url => url.startsWith('ws:')).length, 1, 'over one and the same socket')
  t.ok(seen.numbers.length > 5)
  t.same(seen.numbers, seen.numbers.map((_, i) => (seen.numbers[0] ?? 0) + i))
  t.ok(tokens.length >= 4 && new Set(tokens).size === tokens.length)

  t.same((await context.storageState()).origins, [])
  const refresh = (await context.cookies(`${origin}/token/refresh`)).map(({ value }) => value)
  const everything = [...seen.urls, ...seen.console, await page.content()].join('\n')
  for (const secret of [...tokens, ...refresh]) t.notOk(everything.includes(String(secret)))
  t.same(seen.console, [])
})

t.test('a user ends a sign-in elsewhere, then all: every window says why, with the code', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await launch(t)
  const [desk, phone] = [await (await browser.newContext({ viewport: DESKTOP })).newPage(), await (await browser.newContext({ viewport: PHONE })).newPage()]
  for (const page of [desk, phone]) await page.goto(origin)
  await signIn(phone, 'alice', passwords.alice, 'session')
  await signIn(desk, 'alice', passwords.alice, 'token')
  await desk.locator('#signins li').nth(1).waitFor()
  t.equal(await desk.locator('#signins li[data-kind="mine"]', { hasText: 'Tokens' }).count(), 1)
  await desk.getByRole('button', { name: /^Log out: Session/ }).click()
  await phone.locator('#why', { hasText: 'Closed 4006 Revoked. This sign-in was ended: by a logout, or by an operator. Sign in again.' }).waitFor()
  await desk.locator('#signins li').nth(1).waitFor({ state: 'detached' })
  t.equal(await desk.locator('#signins li').count(), 1)

  await signIn(phone, 'alice', passwords.alice, 'token')
  await press(desk, 'Log out everywhere')
  for (const page of [desk, phone]) await page.locator('#why', { hasText: /^Closed 4006 Revoked\./ }).waitFor()
  await phone.reload()
  await phone.getByRole('heading', { name: 'Sign in' }).waitFor()
  t.equal(await phone.locator('#feed li').count(), 0, 'nothing of it is left in the page')
  await signIn(phone, 'alice', passwords.alice, 'session')
})

t.test('tabs of one browser: who signs out in one is out in all', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const context = await (await launch(t)).newContext()
  const [first, second] = [await context.newPage(), await context.newPage()]
  await first.goto(origin)
  await signIn(first, 'alice', passwords.alice, 'token')
  await second.goto(origin)
  await state(second, 'Open')
  await press(first, 'Sign out')
  await first.getByText('You have signed out.').waitFor()
  await second.getByRole('heading', { name: 'Sign in' }).waitFor()
  t.match(await second.locator('#why').textContent(), /signed out|4006/)
})

for (const [where, program, skipped] of [['one node', 'demo/server.js', false], ['two nodes', 'demo/cluster.js', needsRedis.skip]] as const) {
  t.test(`${where}: an operator sees the connections of all, and gives three orders`, { skip: skip || skipped }, async t => {
    const { nodes, passwords } = await startDemo(t, program)
    const browser = await launch(t)
    const [first = '', second = first] = [nodes[0], nodes.at(-1)]
    const [root, alice, bob] = [await (await browser.newContext({ viewport: DESKTOP })).newPage(), await (await browser.newContext()).newPage(), await (await browser.newContext()).newPage()]
    await root.goto(first)
    await alice.goto(second)
    await bob.goto(second)
    const seen = watch(root)
    await signIn(root, 'root', passwords.root, 'token')
    await signIn(alice, 'alice', passwords.alice, 'token')
    await signIn(bob, 'bob', passwords.bob, 'session')

    await root.getByText(`3 on ${nodes.length} node`).waitFor()
    await rowOf(root, 'alice').getByText('riverside/agents').waitFor()
    t.match(await rowOf(root, 'alice').innerText(), /alice[\s\S]*agent, riverside · reads[\s\S]*jwt[\s\S]*subprotocol · [0-9a-f]{8}[\s\S]*\d+ s[\s\S]*1 room/)
    t.match(await rowOf(root, 'bob').innerText(), /bob[\s\S]*broker, riverside · reads, writes[\s\S]*session[\s\S]*cookie/)
    t.match(await rowOf(root, 'root').innerText(), /3 rooms/)
    t.ok(await root.getByRole('button', { name: /another token: bob$/ }).isDisabled(), 'a session cannot be replaced over its socket')

    await press(root, 'Drop to read-only: bob')
    await bob.getByText('You may no longer publish properties.').waitFor()
    await rowOf(root, 'bob').getByText('broker, riverside · reads', { exact: true }).waitFor()
    await press(root, 'Ten seconds to bring another token: alice')
    await alice.getByText(/^Context replaced 1 ×/).waitFor()
    await root.getByText('alice has ten seconds to bring another token, on 1 socket.').waitFor()
    await state(alice, 'Open')
    await press(root, 'End the credential of alice')
    await alice.locator('#why', { hasText: /^Closed 4006 Revoked\./ }).waitFor()
    await rowOf(root, 'alice').waitFor({ state: 'detached' })
    await root.locator('#closes li', { hasText: '4006' }).filter({ hasText: 'Revoked · alice' }).waitFor()
    await alice.reload()
    await alice.getByRole('heading', { name: 'Sign in' }).waitFor()

    await root.locator('#codes svg text', { hasText: '4006 Revoked' }).waitFor()
    await root.locator('#handshakes svg text', { hasText: 'jwt' }).waitFor()
    t.match(await root.getByRole('img', { name: 'Handshakes of sockets, by outcome' }).getAttribute('aria-description'), /jwt: \d+/)
    await root.locator('#codes summary').click()
    await root.locator('#codes details th', { hasText: '4006 Revoked' }).waitFor()
    await root.locator('#log li[data-kind="bad"]', { hasText: 'revoked' }).filter({ hasText: 'alice (jwt, message)' }).first().waitFor()
    t.same(seen.console, [])
  })
}

t.test('who loses the role of an admin loses the operator\'s panels at once', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await launch(t)
  const page = await (await browser.newContext({ viewport: DESKTOP })).newPage()
  await page.goto(origin)
  const root = await bearerOf(origin, 'root', passwords.root)
  const give = (role: string) => fetch(`${origin}/role`, { method: 'POST', headers: { ...root, 'content-type': 'application/json' }, body: JSON.stringify({ userId: 'bob', role }) })
  await signIn(page, 'bob', passwords.bob)
  const panels = ['Live connections', 'Metrics', 'Audit log', 'Roles'].map(name => page.getByRole('heading', { name }))
  for (const panel of panels) t.notOk(await panel.isVisible())
  await give('admin')
  for (const panel of panels) await panel.waitFor()
  await page.locator('#log li[data-transport="socket"]').first().waitFor()
  await give('broker')
  for (const panel of panels) await panel.waitFor({ state: 'hidden' })
  t.equal(await page.locator('#log li').count(), 0)
})

t.test('feeds of two tenants are apart', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await launch(t)
  const [bob, carol] = [await (await browser.newContext()).newPage(), await (await browser.newContext()).newPage()]
  const heard = watch(carol)
  for (const [page, name] of [[bob, 'bob'], [carol, 'carol']] as const) {
    await page.goto(origin)
    await signIn(page, name, passwords[name])
    await page.getByText('You are in the room.').waitFor()
  }
  await bob.getByLabel('Tell the room').fill('for riverside')
  await press(bob, 'Publish')
  await bob.locator('#feed', { hasText: 'for riverside' }).waitFor()
  const before = heard.numbers.length
  await eventually('carol hears of her own market', () => heard.numbers.length > before + 1, 20_000)
  t.equal(await carol.locator('#room').textContent(), 'hillcrest')
  t.notMatch(JSON.stringify(heard.frames), /riverside/)
})

t.test('where no socket can be had the feed is polled, and says so', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await launch(t)
  const other = await (await browser.newContext()).newPage()
  await other.goto(origin)
  await signIn(other, 'bob', passwords.bob)
  const page = await (await browser.newContext()).newPage()
  let isBlocked = true
  await page.routeWebSocket('**/live', socket => {
    if (isBlocked) socket.close({ code: 1011 })
    else socket.connectToServer()
  })
  await page.goto(origin)
  await page.getByLabel('User name').fill('alice')
  await page.getByLabel('Password').fill(passwords.alice)
  await press(page, 'Sign in with tokens')
  await state(page, 'Polling')
  await page.getByText('There is no socket to be had: asking over HTTP meanwhile.').waitFor()
  await page.locator('#feed li').first().waitFor()
  isBlocked = false
  await state(page, 'Open')
  await page.getByText('The socket is back.').waitFor()
  await page.getByText('You are in the room.').waitFor()
  const last = await page.locator('#feed b').first().textContent()
  await page.locator('#feed b', { hasNotText: last ?? '' }).first().waitFor()
  await page.getByText(/^up to #\d+, none missed$/).waitFor()
})

t.test('every control has a name, nothing is wider than a phone, and a finger finds what it presses', { skip }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await launch(t)
  await tokensOf(origin, 'root', passwords.root)
  await sessionOf(origin, 'root', passwords.root)
  for (const viewport of [PHONE, DESKTOP]) {
    const page = await (await browser.newContext({ viewport })).newPage()
    const seen = watch(page)
    await page.goto(origin)
    const check = async (view: string) => {
      t.equal(await page.evaluate('document.documentElement.scrollWidth'), viewport.width, `${view}: nothing is wider than the window`)
      t.same(await page.evaluate(UNNAMED), [], `${view}: every control and region has a name`)
      t.same(await page.evaluate(DOUBLE), [], `${view}: every id is there once`)
      if (viewport === PHONE) t.same(await page.evaluate(SMALL), [], `${view}: 44 pixels at least`)
      for (const scheme of ['light', 'dark'] as const) {
        await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' })
        t.same(await page.evaluate(FAINT), [], `${view}, ${scheme}: contrast`)
      }
    }
    await check('signed out')
    await press(page, 'Try a bad token')
    await signIn(page, 'root', passwords.root, 'token')
    await rowOf(page, 'root').first().waitFor()
    await page.locator('#log li[data-transport="socket"]').first().waitFor()
    await page.locator('#people li').first().waitFor()
    await page.locator('#signins li').first().waitFor()
    await page.locator('#handshakes svg').waitFor()
    await page.locator('#feed li').first().waitFor()
    await check('signed in')
    await page.keyboard.press('Tab')
    t.same(seen.console, [])
  }
})

/** In the page: what has a role and no accessible name that a label, a text or an attribute gives. */
const UNNAMED = `[...document.querySelectorAll('button, input, section, table, [role="region"], [role="log"], [role="img"], [role="group"], progress, summary')]
  .filter(one => one.checkVisibility())
  .filter(one => one.tagName !== 'TABLE' && !(one.ariaLabel || one.innerText?.trim() || one.labels?.length > 0 ||
    document.getElementById(one.getAttribute('aria-labelledby'))?.textContent))
  .map(one => one.outerHTML.slice(0, 80))`

const DOUBLE = '[...document.querySelectorAll("[id]")].map(({ id }) => id).filter((id, i, all) => all.indexOf(id) !== i)'

const SMALL = `[...document.querySelectorAll('button, input, summary, label.check')]
  .filter(one => one.checkVisibility() && one.type !== 'checkbox')
  .filter(one => one.getBoundingClientRect().height < 44 || one.getBoundingClientRect().width < 44)
  .map(one => one.outerHTML.slice(0, 80))`

/** WCAG 2.2, 1.4.3: of texts against the nearest background that is painted, where nothing is disabled. */
const FAINT = `(() => {
  const rgb = color => color.match(/[\\d.]+/g).map(Number)
  const luminance = color => {
    const [r, g, b] = rgb(color).map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = one => {
    for (let at = one; at !== null; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor
      if ((rgb(color)[3] ?? 1) > 0) return color
    }
    return getComputedStyle(document.body).backgroundColor
  }
  return [...document.querySelectorAll('body *')]
    .filter(one => one.checkVisibility() && one.closest('svg, :disabled') === null && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim() !== ''))
    .filter(one => {
      const [a, b] = [luminance(getComputedStyle(one).color), luminance(behind(one))]
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5
    })
    .map(one => one.outerHTML.slice(0, 80))
})()`
