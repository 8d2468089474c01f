/** The demo's property market: a role that is taken in one window ends the feed in the other. */
import type { Browser } from 'playwright-core'
import t from 'tap'
import { bearer, bearerOf, browserMissing, DESKTOP, launch, live, memberOf, PHONE, post, press, sessionOf, signIn, startDemo, tokensOf, watch, type Who } from './demo-running.js'
import { eventually } from './live.js'
import { needsRedis } from './redis.js'

// Processes, browsers, and commands that wait: on a machine with other work that takes its time.
t.setTimeout(180_000)

t.test('only an admin reads and changes roles, never its own, and the change holds for the next request', async t => {
  const { origin, passwords } = await startDemo(t)
  const [alice, root] = [await bearerOf(origin, 'alice', passwords.alice), await bearerOf(origin, 'root', passwords.root)]
  const change = async (headers: Record<string, string>, body: unknown) => (await post(`${origin}/role`, body, headers)).status
  const read = async (path: string, headers: Record<string, string>) => (await fetch(origin + path, { headers })).status

  t.equal(await change({}, {}), 401, 'nobody learns what it takes')
  t.equal(await change(alice, { userId: 'alice', role: 'admin' }), 403)
  t.equal(await change(root, { userId: 'alice', role: 'king' }), 400)
  t.equal(await change(root, { userId: 'nobody', role: 'agent' }), 404)
  t.equal(await change(root, { userId: '__proto__', role: 'agent' }), 404)
  t.equal(await change(root, { userId: 'root', role: 'none' }), 409)
  t.equal(await read('/roles', {}), 401)
  t.equal(await read('/roles', alice), 403)
  t.equal(await read('/admin', alice), 403)

  t.equal(await change(root, { userId: 'alice', role: 'admin' }), 200)
  t.equal(await read('/admin', alice), 200, 'with the token that she has')
  t.match(await (await fetch(`${origin}/me`, { headers: alice })).json(), { role: 'admin', permissions: ['property:read', 'property:write', 'operate'] })
  t.match(await (await fetch(`${origin}/roles`, { headers: alice })).json(), { users: { alice: 'admin', root: 'admin' } })
})

t.test('who says something is who the server knows, and what looks like a property is the server\'s alone', async t => {
  const { origin, passwords } = await startDemo(t)
  const [bob, carol] = [await tokensOf(origin, 'bob', passwords.bob), await bearerOf(origin, 'carol', passwords.carol)]
  const { socket, frames } = await live(t, origin, await tokensOf(origin, 'alice', passwords.alice))
  const room = 'tenant/riverside/agents'
  const publisher = await live(t, origin, bob)
  for (const one of [socket, publisher.socket]) one.send(JSON.stringify({ type: 'join', room }))
  await eventually('both are in', () => [frames, publisher.frames].every(all => all.some(frame => memberOf(frame, 'type') === 'joined')))

  publisher.socket.send(JSON.stringify({ type: 'message', id: 1, room, payload: { text: 'Sell now', by: 'root' } }))
  publisher.socket.send(JSON.stringify({ type: 'message', id: 2, room, payload: { number: 99_999, kind: 'sold', address: 'Everything', price: 1 } }))
  const refusals = () => publisher.frames.filter(frame => memberOf(frame, 'type') === 'error')
  await eventually('he is refused', () => refusals().length === 2)
  t.match(refusals(), [{ code: 'forbidden' }, { code: 'forbidden' }])

  const say = (body: unknown, headers: Record<string, string>) => post(`${origin}/say`, body, headers)
  t.equal((await say({ text: 'mine', by: 'root' }, bearer(bob.token))).status, 204)
  const said = () => frames.map(frame => memberOf(frame, 'payload')).filter(payload => memberOf(payload, 'text') !== undefined)
  await eventually('alice hears of it', () => said().length > 0)
  t.same(said(), [{ text: 'mine', by: 'bob' }])
  t.equal((await say({ text: 'x' }, {})).status, 401)
  t.equal((await say({ text: 'x' }, carol)).status, 403, 'an agent only hears')
  t.equal((await say({ text: 'x' }, { cookie: await sessionOf(origin, 'bob', passwords.bob) })).status, 403, 'a page of another site cannot do it')
  for (const text of ['', 'x'.repeat(201), 1, undefined]) t.equal((await say({ text }, bearer(bob.token))).status, text === 1 ? 204 : 400)
  const statuses = await Promise.all(Array.from({ length: 12 }, async () => (await say({ text: 'again' }, bearer(bob.token))).status))
  t.ok(statuses.includes(429) && statuses.includes(204), 'and not without end')
  t.notOk(frames.some(frame => memberOf(memberOf(frame, 'payload'), 'number') === 99_999))
})

for (const [where, program, skip] of [
  ['on one node', 'demo/server.js', false],
  ['on another node', 'demo/cluster.js', needsRedis.skip]
] as const) {
  t.test(`a role that root takes in one window ends the feed in alice's ${where}, and gives it back`, { skip: skip || browserMissing() }, async t => {
    const { nodes, passwords } = await startDemo(t, program)
    const browser = await launch(t)
    const alice = await enter(browser, nodes.at(-1) ?? '', 'alice', passwords.alice, PHONE)
    const root = await enter(browser, nodes[0] ?? '', 'root', passwords.root, DESKTOP)
    const roleOf = (name: string) => root.page.getByRole('group', { name: `Role of ${name}` })
    t.equal(await roleOf('root').count(), 0, 'nobody is offered to lock itself out')
    t.notOk(await alice.page.getByRole('heading', { name: 'Roles' }).isVisible())
    await alice.hears(1)
    await root.hears(1)

    const answered = root.page.waitForResponse('**/role')
    await roleOf('alice').getByRole('button', { name: 'none', exact: true }).click()
    const result: unknown = await (await answered).json()
    t.match(result, { matched: 1, closed: 0, durable: true, nodes: { acknowledged: nodes.length, missing: 0 } })
    await alice.reads('You may no longer read properties.')
    await alice.reads('You are out of the room: no longer allowed.')
    await alice.page.getByText('Not in the room').waitFor()
    await alice.page.locator('dd[data-name="permissions"]', { hasText: /^none$/ }).waitFor()
    await alice.page.locator('#user-role', { hasText: 'none, riverside' }).waitFor()
    await root.page.getByText(`alice: none. 1 open socket asked again, ${nodes.length} node`).waitFor()

    const last = alice.latest()
    await root.hears(last + 3)
    t.equal(alice.latest(), last)
    const types = alice.frames.map(frame => memberOf(frame, 'type'))
    t.notOk(types.includes('message', types.indexOf('left')), 'what is published goes to others, and not to her')
    await press(alice.page, 'Join')
    await alice.reads('You may not enter this room.')

    await roleOf('alice').getByRole('button', { name: 'agent', exact: true }).click()
    await alice.reads('You may now read properties.')
    await alice.hears(last + 4)
    t.same(alice.numbers.filter(number => number > last && number <= last + 3), [], 'what she missed does not come after all')
    await alice.page.locator('#stream', { hasText: / missed$/ }).waitFor()

    await alice.says('hers')
    await alice.reads('You may not publish here.')
    await root.says('a viewing at noon')
    await alice.page.locator('#feed', { hasText: 'a viewing at noon' }).waitFor()
    await roleOf('alice').getByRole('button', { name: 'broker', exact: true }).click()
    await alice.reads('You may now publish properties.')
    await alice.says('sold')
    await root.page.locator('#feed', { hasText: 'sold' }).waitFor()

    t.equal(await alice.page.evaluate('document.documentElement.scrollWidth'), PHONE.width, 'nothing is wider than a phone')
    await press(alice.page, 'Leave')
    await alice.reads('You have left the room.')
    t.ok(await alice.page.getByRole('button', { name: 'Join', exact: true }).evaluate('document.activeElement?.id === "join"'), 'who uses a keyboard stays where it was')
    t.match([...alice.console, ...root.console], [/status of 403/], 'what she was refused, and nothing else')
  })
}

/** A window of its own, in the room. */
async function enter (browser: Browser, origin: string, name: Who, password: string, viewport: { width: number, height: number }) {
  const page = await (await browser.newContext({ viewport })).newPage()
  const { frames, numbers, console } = watch(page)
  await page.goto(origin)
  await signIn(page, name, password)
  await page.getByText('You are in the room.').waitFor()
  const latest = () => numbers.at(-1) ?? 0
  return {
    page, frames, numbers, console, latest,
    /** Until it shows a property with this number, or a later one. */
    async hears (number: number) {
      await eventually(`${name} hears of property ${number}`, () => latest() >= number, 20_000)
      await page.locator('#feed b', { hasText: `#${latest()}` }).waitFor()
    },
    reads: (text: string) => page.locator('#news').getByText(text, { exact: true }).last().waitFor(),
    async says (text: string) {
      await page.getByLabel('Tell the room').fill(text)
      await press(page, 'Publish')
    }
  }
}
