/** The demo as `npm start` runs it, by the commands it prints and in a browser. */
import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { chromium, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { upgrade } from './helpers.js'

// Processes, browsers, and commands that wait: on a machine with other work that takes its time.
t.setTimeout(180_000)

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const CHROMIUM = '/usr/bin/chromium-headless-shell'
const READY = '# Ctrl+C'

/** Without what makes tap measure a child process. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))

interface Demo {
  child: ChildProcess
  /** `http://127.0.0.1:port` */
  origin: string
  host: string
  /** Everything it printed so far. */
  printed: () => string
  passwords: { alice: string, root: string }
}

async function startDemo (t: Test): Promise<Demo> {
  const child = spawn(process.execPath, ['demo/server.js'], { cwd: ROOT, env: { ...ENV, PORT: '0' }, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill()
    await once(child, 'exit')
  })
  let text = ''
  const { promise: ready, resolve, reject } = deferred()
  const keep = (chunk: Buffer) => {
    text += chunk.toString()
    if (text.includes(READY)) resolve()
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  child.on('exit', code => { reject(new Error(`the demo ended with ${code ?? 'a signal'}: ${text}`)) })
  await ready
  const [origin = ''] = /http:\/\/127\.0\.0\.1:\d+/.exec(text) ?? []
  const passwordOf = (name: string) => new RegExp(`^# {3}${name} (\\S+)`, 'm').exec(text)?.[1] ?? ''
  return {
    child, origin,
    host: origin.replace('http://', ''),
    printed: () => text,
    passwords: { alice: passwordOf('alice'), root: passwordOf('root') }
  }
}

function deferred () {
  let settle = { resolve: () => {}, reject: (_: Error) => {} }
  const promise = new Promise<void>((resolve, reject) => { settle = { resolve, reject } })
  return { promise, ...settle }
}

function post (origin: string, path: string, body: unknown, headers: Record<string, string> = {}) {
  return fetch(origin + path, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) })
}

async function tokenOf (origin: string, username: string, password: string): Promise<string> {
  return textOf(await (await post(origin, '/token', { username, password })).json(), 'access_token')
}

function textOf (body: unknown, name: string): string {
  const value: unknown = typeof body === 'object' && body !== null ? Reflect.get(body, name) : undefined
  return typeof value === 'string' ? value : ''
}

async function cookieOf (origin: string, username: string, password: string, sent = ''): Promise<string> {
  const answer = await post(origin, '/login', { username, password }, sent === '' ? {} : { cookie: sent })
  return answer.headers.get('set-cookie')?.split(';', 1)[0] ?? ''
}

/** A session cookie is the id, a dot, and the signature. */
const idIn = (value: string) => value.split('.', 1)[0] ?? ''

t.test('every printed command does what its title says', { skip: lacks('bash', 'curl', 'awk') }, async t => {
  const { printed } = await startDemo(t)
  const script = printed().split('# Or open', 1)[0]?.replace(/^# .*$/gm, 'echo "@@@"') ?? ''
  const { stdout, stderr } = await promisify(execFile)('bash', ['-c', script], { cwd: ROOT, env: { ...ENV, TMPDIR: t.testdir() } })
  t.equal(stderr, '')
  const answers = stdout.split('@@@\n').slice(1)
  const expected: RegExp[] = [
    /^\{"access_token":"[\w-]+\.[\w-]+\.[\w-]+","token_type":"Bearer","expires_in":300\}$/m,
    /^\{"authType":"jwt","via":"header","userId":"alice"/,
    /^\{"user":\{"userId":"alice"/,
    /^\{"authType":"session","via":"cookie","userId":"alice"/,
    /^HTTP\/1\.1 401 [\s\S]*FST_HYBRID_AUTH_MISSING_CREDENTIALS/,
    /^HTTP\/1\.1 403 [\s\S]*FST_HYBRID_AUTH_FORBIDDEN/,
    /^HTTP\/1\.1 200 [\s\S]*Welcome, root/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"header"[\s\S]*\nping\n1005/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"subprotocol"[\s\S]*\nping\n1005/,
    /^\{"type":"hello","auth":\{"authType":"session","via":"cookie"[\s\S]*\nping\n1005/,
    /^\{"type":"hello"[^\n]*\n\{"type":"joined","room":"tenant\/riverside\/agents"\}\n\{"type":"message",[^\n]*"number":\d+,[^\n]*\n$/,
    /^\{"id":"[^"]+","matched":1,"closed":0,"durable":true,"nodes":\{"acknowledged":1,"missing":0\}\}\n(?:\{"type":"message",[^\n]*\n)*\{"type":"permission_update","permissions":\[\],"added":\[\],"removed":\["property:read"\]\}\n(?:\{"type":"context"[^\n]*\n)?\{"type":"left","room":"tenant\/riverside\/agents","reason":"forbidden"\}\n(?:\{"type":"context"[^\n]*\n)?nothing for 3 seconds\n$/,
    /^\{"id":[^\n]*\n\{"type":"permission_update","permissions":\["property:read"\],"added":\["property:read"\],"removed":\[\]\}\n(?:\{"type":"context"[^\n]*\n)?\{"type":"joined",[^\n]*\n(?:\{"type":"context"[^\n]*\n)?\{"type":"message",/,
    /^204\n[\s\S]*\n4006 \{"code":"revoked"/,
    /^Unexpected server response: 401$/m,
    /^4001 \{"code":"authentication_failed"/,
    /^(?:401 ){9}429 $/m,
    /^\{"authType":"jwt","via":"header","userId":"alice"/,
    /hybrid_auth_handshakes_total\{transport="http",outcome="too_many_failures"\} 1\n[\s\S]*hybrid_auth_limited_total\{limit="failures",enforced="true"\} 1\n[\s\S]*hybrid_auth_brute_force_suspected_total 1/
  ]
  t.equal(answers.length, expected.length)
  for (const [i, pattern] of expected.entries()) t.match(answers[i], pattern)
  const numbers = [...answers.join('').matchAll(/"number":(\d+)/g)].map(([, number]) => Number(number))
  t.ok(numbers.some((number, i) => number > 1 + (numbers[i - 1] ?? number)), 'what was published while she was out never came')
})

t.test('the socket is a jwt connection by token, a session connection by cookie, and no connection by neither', async t => {
  const { host, origin, passwords, printed } = await startDemo(t)
  const token = await tokenOf(origin, 'alice', passwords.alice)
  const cookie = await cookieOf(origin, 'alice', passwords.alice)
  const byToken = await upgrade(t, host, { protocols: ['hybrid-auth.v1', `bearer.${token}`] })
  const byCookie = await upgrade(t, host, { headers: { cookie, origin } })
  const elsewhere = await upgrade(t, host, { headers: { cookie, origin: 'http://elsewhere.example' } })
  const byNeither = await upgrade(t, host)
  t.match(byToken, { protocol: 'hybrid-auth.v1', context: { type: 'hello', auth: { authType: 'jwt', userId: 'alice' } } })
  t.match(byCookie.context, { type: 'hello', auth: { authType: 'session', userId: 'alice' } })
  t.equal(elsewhere.status, 403)
  t.equal(byNeither.status, 401)
  const shown = JSON.stringify([byToken.context, byCookie.context])
  t.notMatch(shown, /sessionId|tokenId|claims/, 'nothing that identifies the credential goes to the page')
  for (const secret of [token, idIn(cookie.replace('sessionId=', ''))]) t.notOk(printed().includes(secret), 'no credential on the terminal')
})

t.test('HTTP: 401 for nobody, 403 for the wrong role, 200 for the right one', async t => {
  const { origin, passwords } = await startDemo(t)
  const statusOf = async (path: string, headers: Record<string, string> = {}) => (await fetch(origin + path, { headers })).status
  const alice = { authorization: `Bearer ${await tokenOf(origin, 'alice', passwords.alice)}` }
  const root = { cookie: await cookieOf(origin, 'root', passwords.root) }
  t.equal(await statusOf('/me'), 401)
  t.equal(await statusOf('/admin'), 401)
  t.equal(await statusOf('/me', alice), 200)
  t.equal(await statusOf('/admin', alice), 403)
  t.equal(await statusOf('/admin', root), 200)
})

t.test('a login makes a new session id, a logout ends it', async t => {
  const { origin, passwords } = await startDemo(t)
  const statusOf = async (cookie: string) => (await fetch(`${origin}/me`, { headers: { cookie } })).status
  const first = await cookieOf(origin, 'alice', passwords.alice)
  const second = await cookieOf(origin, 'alice', passwords.alice, first)
  t.not(first, second)
  t.equal(await statusOf(first), 401)
  t.equal(await statusOf(second), 200)
  t.equal((await fetch(`${origin}/logout`, { method: 'POST', headers: { cookie: second, origin: 'http://elsewhere.example' } })).status, 403)
  t.equal((await fetch(`${origin}/logout`, { method: 'POST', headers: { cookie: second, origin } })).status, 204)
  t.equal(await statusOf(second), 401)
})

t.test('a login that fails sets no cookie and says the same of any name; a body is small and of the right shape', async t => {
  const { origin } = await startDemo(t)
  for (const [path, status] of [['/login', 401], ['/token', 400]] as const) {
    const wrong = await post(origin, path, { username: 'alice', password: 'wrong' })
    const unknown = await post(origin, path, { username: 'nobody', password: 'wrong' })
    t.equal(wrong.status, status)
    t.equal(unknown.status, status)
    t.equal(wrong.headers.get('set-cookie'), null)
    t.equal(wrong.headers.get('cache-control'), 'no-store')
    t.equal(await wrong.text(), await unknown.text())
    t.equal((await post(origin, path, { username: 'alice' })).status, 400)
    t.equal((await post(origin, path, { username: 'alice', password: 'x'.repeat(2000) })).status, 413)
    t.equal((await post(origin, path, {}, { 'content-type': 'application/x-www-form-urlencoded' })).status, 415)
  }
})

t.test('ends on a signal, open sockets and all', async t => {
  const { child, host, origin, passwords } = await startDemo(t)
  const token = await tokenOf(origin, 'alice', passwords.alice)
  const socket = new WebSocket(`ws://${host}/live`, { headers: { authorization: `Bearer ${token}` } })
  t.teardown(() => { socket.terminate() })
  await once(socket, 'message')
  const ended = Promise.all([once(child, 'exit'), once(socket, 'close')])
  child.kill('SIGTERM')
  const [exit] = await ended
  t.same(exit, [0, null])
})

t.test('in a browser', { skip: browserMissing() }, async t => {
  const { origin, passwords } = await startDemo(t)
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']
  })
  t.teardown(() => browser.close())
  const context = await browser.newContext()
  const page = await context.newPage()
  const seen = watch(page)
  await page.goto(origin)

  await press(page, 'With a bad token')
  await page.getByText('Closed 4001 AuthenticationFailed').waitFor()
  t.notOk(await page.getByText('1006').count(), 'the page learns why it was refused')

  await page.getByLabel('User name').fill('alice')
  await page.getByLabel('Password').fill(passwords.alice)
  await press(page, 'Sign in')
  await press(page, 'Sign out', { trial: true })
  await press(page, 'With the cookie')
  await shows(page, 'authType', 'session')
  await page.getByLabel('Message').fill('it comes back')
  await press(page, 'Send')
  await page.locator('li[data-kind="in"]', { hasText: 'it comes back' }).waitFor()

  const issued = page.waitForResponse(`${origin}/token`)
  await press(page, 'Get a token')
  const body: unknown = await (await issued).json()
  await press(page, 'With the token')
  await shows(page, 'authType', 'jwt')
  await shows(page, 'via', 'subprotocol')
  await press(page, 'GET /me')
  await page.locator('li[data-kind="in"]', { hasText: '200 {"authType":"jwt"' }).waitFor()
  await press(page, 'GET /admin')
  await page.locator('li[data-kind="end"]', { hasText: '403' }).waitFor()

  await press(page, 'With a bad token')
  await shows(page, 'fallbackFrom', 'FST_HYBRID_AUTH_INVALID_TOKEN')
  await shows(page, 'authType', 'session')

  const cookie = (await context.cookies()).find(({ name }) => name === 'sessionId')
  t.match(cookie, { httpOnly: true, sameSite: 'Lax', value: /^.{32}/ })
  const shown = await page.content()
  t.same((await context.storageState()).origins, [], 'nothing is stored in the browser but the cookie')

  await press(page, 'Sign out')
  await page.locator('#session', { hasText: 'none' }).waitFor()
  await press(page, 'With the cookie')
  await page.getByText('Closed 4001 AuthenticationFailed').nth(1).waitFor()

  t.same(await context.cookies(), [])

  const token = textOf(body, 'access_token')
  t.match(token, /^[\w-]+\.[\w-]+\.[\w-]+$/)
  const everything = [...seen.urls, ...seen.console, page.url(), shown, await page.content()].join('\n')
  for (const secret of [passwords.alice, token, idIn(cookie?.value ?? '')]) {
    t.notOk(everything.includes(secret), 'no credential in an address, the console or the page')
  }
  t.same(seen.console.filter(line => !line.startsWith('Failed to load resource')), [], 'nothing else went wrong')
})

/** The addresses and console lines of a page. */
function watch (page: Page) {
  const seen = { urls: [] as string[], console: [] as string[] }
  page.on('request', request => { seen.urls.push(request.url()) })
  page.on('websocket', socket => { seen.urls.push(socket.url()) })
  page.on('framenavigated', frame => { seen.urls.push(frame.url()) })
  page.on('console', line => { seen.console.push(line.text()) })
  page.on('pageerror', error => { seen.console.push(error.message) })
  return seen
}

async function press (page: Page, name: string, options: { trial?: boolean } = {}) {
  await page.getByRole('button', { name, exact: true }).click(options)
}

async function shows (page: Page, name: string, value: string) {
  await page.locator(`dd[data-name="${name}"]`, { hasText: new RegExp(`^${value}$`) }).waitFor()
}

function lacks (...programs: string[]): string | false {
  const folders = (process.env.PATH ?? '').split(':')
  const missing = programs.filter(program => !folders.some(folder => existsSync(`${folder}/${program}`)))
  return missing.length > 0 && !process.env.CI ? `needs ${missing.join(', ')}` : false
}

/** Where CI promises a browser, its absence is a failure. */
function browserMissing (): string | false {
  return !existsSync(CHROMIUM) && !process.env.CI ? `no browser at ${CHROMIUM}` : false
}
