/** The demo's property market: a role that is taken in one window ends the feed in the other. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { chromium, type Browser, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { eventually } from './live.js'
import { needsRedis } from './redis.js'

// Processes, browsers, and commands that wait: on a machine with other work that takes its time.
t.setTimeout(180_000)

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const CHROMIUM = '/usr/bin/chromium-headless-shell'
const READY = '# Ctrl+C'
const PHONE = { width: 390, height: 844 }
const DESKTOP = { width: 1280, height: 900 }

/** Without what makes tap measure a child process. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))

interface Demo {
  /** `http://127.0.0.1:port`, of each node. */
  origins: string[]
  passwords: Record<'alice' | 'root', string>
}

async function startDemo (t: Test, program: string): Promise<Demo> {
  const child = spawn(process.execPath, [program], { cwd: ROOT, env: { ...ENV, PORT: '0', TMPDIR: t.testdir() }, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill()
    await once(child, 'exit')
  })
  let text = ''
  await new Promise<void>((resolve, reject) => {
    const keep = (chunk: Buffer) => {
      text += chunk.toString()
      if (text.includes(READY)) resolve()
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.on('exit', code => { reject(new Error(`the demo ended with ${code ?? 'a signal'}: ${text}`)) })
  })
  const passwordOf = (name: string) => new RegExp(`^# {3}${name} (\\S+)`, 'm').exec(text)?.[1] ?? ''
  const open = /^# Or open.*$/m.exec(text)?.[0] ?? ''
  return {
    origins: [...open.matchAll(/http:\/\/127\.0\.0\.1:\d+/g)].map(([origin]) => origin),
    passwords: { alice: passwordOf('alice'), root: passwordOf('root') }
  }
}

function post (address: string, body: unknown, headers: Record<string, string> = {}) {
  return fetch(address, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) })
}

function memberOf (value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined
}

t.test('only an admin reads and changes roles, never its own, and the change holds for the next request', async t => {
  const { origins: [origin = ''], passwords } = await startDemo(t, 'demo/server.js')
  const bearer = async (username: 'alice' | 'root') => {
    const answer: unknown = await (await post(`${origin}/token`, { username, password: passwords[username] })).json()
    return { authorization: `Bearer ${String(memberOf(answer, 'access_token'))}` }
  }
  const [alice, root] = [await bearer('alice'), await bearer('root')]
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
  t.match(await (await fetch(`${origin}/me`, { headers: alice })).json(), { role: 'admin', permissions: ['property:read', 'property:write'] })
  t.match(await (await fetch(`${origin}/roles`, { headers: alice })).json(), { users: { alice: 'admin', root: 'admin' } })
})

for (const [where, program, skip] of [
  ['on one node', 'demo/server.js', false],
  ['on another node', 'demo/cluster.js', needsRedis.skip]
] as const) {
  t.test(`a role that root takes in one window ends the feed in alice's ${where}, and gives it back`, { skip: skip || browserMissing() }, async t => {
    const { origins, passwords } = await startDemo(t, program)
    const browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']
    })
    t.teardown(() => browser.close())
    const alice = await enter(browser, origins.at(-1) ?? '', 'alice', passwords.alice, PHONE)
    const root = await enter(browser, origins[0] ?? '', 'root', passwords.root, DESKTOP)
    const roleOf = (name: string) => root.page.getByRole('group', { name: `Role of ${name}` })
    t.equal(await roleOf('root').count(), 0, 'nobody is offered to lock itself out')
    t.notOk(await alice.page.getByRole('heading', { name: 'Change a role' }).isVisible())
    await alice.hears(1)
    await root.hears(1)

    const answered = root.page.waitForResponse('**/role')
    await roleOf('alice').getByRole('button', { name: 'none', exact: true }).click()
    const result: unknown = await (await answered).json()
    t.match(result, { matched: 1, closed: 0, durable: true, nodes: { acknowledged: origins.length, missing: 0 } })
    await alice.reads('You may no longer read properties.')
    await alice.reads('You are out of the room: no longer allowed.')
    await alice.page.getByText('Not in the room').waitFor()
    await alice.page.locator('dd[data-name="permissions"]', { hasText: /^none$/ }).waitFor()
    await alice.page.locator('#session', { hasText: 'alice, none' }).waitFor()
    await root.page.getByText(`alice: none. 1 open socket asked again, ${origins.length} node`).waitFor()

    const last = alice.latest()
    await root.hears(last + 3)
    t.equal(alice.latest(), last)
    t.notOk(alice.types.includes('message', alice.types.indexOf('left')), 'what is published goes to others, and not to her')
    await alice.page.getByRole('button', { name: 'Join', exact: true }).click()
    await alice.reads('You may not enter this room.')

    await roleOf('alice').getByRole('button', { name: 'agent', exact: true }).click()
    await alice.reads('You may now read properties.')
    await alice.page.getByRole('button', { name: 'Join', exact: true }).click()
    await alice.hears(last + 4)
    t.same(alice.numbers.filter(number => number > last && number <= last + 3), [], 'what she missed does not come after all')

    await alice.says('hers')
    await alice.reads('You may not publish here.')
    await root.says('a viewing at noon')
    await alice.page.locator('#feed', { hasText: 'a viewing at noon' }).waitFor()
    await roleOf('alice').getByRole('button', { name: 'broker', exact: true }).click()
    await alice.reads('You may now publish properties.')
    await alice.says('sold')
    await root.page.locator('#feed', { hasText: 'sold' }).waitFor()

    t.equal(await alice.page.evaluate('document.documentElement.scrollWidth'), PHONE.width, 'nothing is wider than a phone')
    await alice.page.getByRole('button', { name: 'Leave', exact: true }).click()
    await alice.reads('You have left the room.')
    t.ok(await alice.page.getByRole('button', { name: 'Join', exact: true }).evaluate('document.activeElement?.id === "join"'), 'who uses a keyboard stays where it was')
    t.same([...alice.faults, ...root.faults], [])
  })
}

/** A window of its own, in the room. */
async function enter (browser: Browser, origin: string, name: string, password: string, viewport: { width: number, height: number }) {
  const page = await (await browser.newContext({ viewport })).newPage()
  const { types, numbers, faults } = watch(page)
  await page.goto(origin)
  await page.getByLabel('User name').fill(name)
  await page.getByLabel('Password').fill(password)
  const press = (button: string) => page.getByRole('button', { name: button, exact: true }).click()
  await press('Sign in')
  await page.locator('#session', { hasText: name }).waitFor()
  await press('With the cookie')
  await press('Join')
  await page.getByText('You are in the room.').waitFor()
  const latest = () => numbers.at(-1) ?? 0
  return {
    page, types, numbers, faults, latest,
    /** Until it shows a property with this number, or a later one. */
    async hears (number: number) {
      await eventually(`${name} hears of property ${number}`, () => latest() >= number, 20_000)
      await page.locator('#feed b', { hasText: `#${latest()}` }).waitFor()
    },
    reads: (text: string) => page.locator('#news').getByText(text, { exact: true }).last().waitFor(),
    async says (text: string) {
      await page.getByLabel('Tell the room').fill(text)
      await page.getByRole('button', { name: 'Publish', exact: true }).click()
    }
  }
}

/** The types of the frames that came, the numbers of the properties, and what went wrong. */
function watch (page: Page) {
  const seen = { types: [] as unknown[], numbers: [] as number[], faults: [] as string[] }
  page.on('websocket', socket => {
    socket.on('framereceived', ({ payload }) => {
      const frame: unknown = JSON.parse(String(payload))
      seen.types.push(memberOf(frame, 'type'))
      const number = memberOf(memberOf(frame, 'payload'), 'number')
      if (typeof number === 'number') seen.numbers.push(number)
    })
  })
  page.on('console', line => { seen.faults.push(line.text()) })
  page.on('pageerror', error => { seen.faults.push(error.message) })
  return seen
}

/** Where CI promises a browser, its absence is a failure. */
function browserMissing (): string | false {
  return !existsSync(CHROMIUM) && !process.env.CI ? `no browser at ${CHROMIUM}` : false
}
