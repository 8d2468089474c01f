/** The demo as `npm start` runs it, by the commands it prints and in a browser. */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { promisify } from 'node:util'
import t from 'tap'
import { WebSocket } from 'ws'
import {
  bearer, bearerOf, browserMissing, ENV, launch, lacks, post, press, ROOT, sessionOf, signIn, startDemo, textOf, tokensOf, watch
} from './demo-running.js'
import { upgrade } from './helpers.js'

// Processes, browsers, and commands that wait: on a machine with other work that takes its time.
t.setTimeout(180_000)

/** A session cookie is the id, a dot, and the signature. */
const idIn = (value: string) => decodeURIComponent(value.replace('sessionId=', '')).split('.', 1)[0] ?? ''

t.test('every printed command does what its title says', { skip: lacks('bash', 'curl', 'awk') }, async t => {
  const { printed } = await startDemo(t)
  const script = printed().split('# Or open', 1)[0]?.replace(/^# .*$/gm, 'echo "@@@"') ?? ''
  const { stdout, stderr } = await promisify(execFile)('bash', ['-c', script], { cwd: ROOT, env: { ...ENV, TMPDIR: t.testdir() } })
  t.equal(stderr, '')
  const answers = stdout.split('@@@\n').slice(1)
  const expected: RegExp[] = [
    /^\{"access_token":"[\w-]+\.[\w-]+\.[\w-]+","token_type":"Bearer","expires_in":60\}$/m,
    /^$/,
    /^\{"authType":"jwt","via":"header","userId":"alice"/,
    /^\{"user":\{"userId":"alice"/,
    /^\{"authType":"session","via":"cookie","userId":"alice"/,
    /^HTTP\/1\.1 401 [\s\S]*FST_HYBRID_AUTH_MISSING_CREDENTIALS/,
    /^HTTP\/1\.1 403 [\s\S]*FST_HYBRID_AUTH_FORBIDDEN/,
    /^HTTP\/1\.1 200 [\s\S]*Welcome, root/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"header"[\s\S]*\nping\n1005/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"subprotocol"[\s\S]*\nping\n1005/,
    /^\{"type":"hello","auth":\{"authType":"session","via":"cookie"[\s\S]*\nping\n1005/,
    /^\{"type":"hello"[^\n]*\n\{"type":"joined","room":"tenant\/riverside\/agents"[^\n]*\n\{"type":"message",[^\n]*"number":\d+,[^\n]*\n$/,
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
  const token = (await tokensOf(origin, 'alice', passwords.alice)).token
  const cookie = await sessionOf(origin, 'alice', passwords.alice)
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
  for (const secret of [token, idIn(cookie)]) t.notOk(printed().includes(secret), 'no credential on the terminal')
})

t.test('HTTP: 401 for nobody, 403 for the wrong role, 200 for the right one', async t => {
  const { origin, passwords } = await startDemo(t)
  const statusOf = async (path: string, headers: Record<string, string> = {}) => (await fetch(origin + path, { headers })).status
  const alice = await bearerOf(origin, 'alice', passwords.alice)
  const root = { cookie: await sessionOf(origin, 'root', passwords.root) }
  t.equal(await statusOf('/me'), 401)
  t.equal(await statusOf('/admin'), 401)
  t.equal(await statusOf('/me', alice), 200)
  t.equal(await statusOf('/admin', alice), 403)
  t.equal(await statusOf('/admin', root), 200)
})

t.test('a login makes a new session id, a logout ends it', async t => {
  const { origin, passwords } = await startDemo(t)
  const statusOf = async (cookie: string) => (await fetch(`${origin}/me`, { headers: { cookie } })).status
  const first = await sessionOf(origin, 'alice', passwords.alice)
  const second = await sessionOf(origin, 'alice', passwords.alice, { cookie: first })
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
    const wrong = await post(origin + path, { username: 'alice', password: 'wrong' })
    const unknown = await post(origin + path, { username: 'nobody', password: 'wrong' })
    t.equal(wrong.status, status)
    t.equal(unknown.status, status)
    t.equal(wrong.headers.get('set-cookie'), null)
    t.equal(wrong.headers.get('cache-control'), 'no-store')
    t.equal(await wrong.text(), await unknown.text())
    t.equal((await post(origin + path, { username: 'alice' })).status, 400)
    t.equal((await post(origin + path, { username: 'alice', password: 'x'.repeat(2000) })).status, 413)
    t.equal((await post(origin + path, {}, { 'content-type': 'application/x-www-form-urlencoded' })).status, 415)
  }
})

t.test('ends on a signal, open sockets and all', async t => {
  const { child, host, origin, passwords } = await startDemo(t)
  const token = (await tokensOf(origin, 'alice', passwords.alice)).token
  const socket = new WebSocket(`ws://${host}/live`, { headers: bearer(token) })
  t.teardown(() => { socket.terminate() })
  await once(socket, 'message')
  const ended = Promise.all([once(child, 'exit'), once(socket, 'close')])
  child.kill('SIGTERM')
  const [exit] = await ended
  t.same(exit, [0, null])
})

t.test('in a browser', { skip: browserMissing() }, async t => {
  const { origin, passwords } = await startDemo(t)
  const context = await (await launch(t)).newContext()
  const page = await context.newPage()
  const seen = watch(page)
  const shows = (name: string, value: string) => page.locator(`dd[data-name="${name}"]`, { hasText: new RegExp(`^${value}$`) }).waitFor()
  const answer = (kind: string, text: string) => page.locator(`#answers li[data-kind="${kind}"]`, { hasText: text }).first().waitFor()
  await page.goto(origin)

  await press(page, 'Try a bad token')
  await answer('bad', 'Closed 4001 AuthenticationFailed. The server did not accept the credential.')
  t.notOk(await page.getByText('1006').count(), 'the page learns why it was refused')
  await page.getByLabel('Password').fill('wrong')
  await press(page, 'Sign in with tokens')
  await page.getByRole('alert').getByText('The user name or the password is wrong').waitFor()

  await signIn(page, 'alice', passwords.alice, 'session')
  await page.locator('#auth-type', { hasText: /^session$/ }).waitFor()
  await shows('role', 'agent')
  await press(page, 'Try a bad token')
  await answer('note', 'Let in by the session all the same: fallbackFrom FST_HYBRID_AUTH_INVALID_TOKEN')
  const cookie = (await context.cookies()).find(({ name }) => name === 'sessionId')
  t.match(cookie, { httpOnly: true, sameSite: 'Lax', value: /^.{32}/ })
  await page.reload()
  await page.locator('#state', { hasText: /^Open$/ }).waitFor()
  await press(page, 'Sign out')
  await page.getByText('You have signed out.').waitFor()
  t.same(await context.cookies(), [])

  const issued = page.waitForResponse(`${origin}/token`)
  await signIn(page, 'alice', passwords.alice, 'token')
  const tokens: string[] = [textOf(await (await issued).json(), 'access_token')]
  await page.locator('#auth-type', { hasText: /^jwt$/ }).waitFor()
  await page.locator('#via', { hasText: 'via subprotocol' }).waitFor()
  await press(page, 'GET /me')
  await answer('good', '200 {"authType":"jwt"')
  await press(page, 'GET /admin')
  await answer('bad', '403')
  const refreshed = page.waitForResponse(`${origin}/token/refresh`)
  await page.reload()
  tokens.push(textOf(await (await refreshed).json(), 'access_token'))
  await page.locator('#state', { hasText: /^Open$/ }).waitFor()
  await press(page, 'Disconnect')
  await page.getByText('Disconnected here. The sign-in is still good.').waitFor()
  t.ok(await page.getByRole('button', { name: 'Connect', exact: true }).evaluate('document.activeElement?.id === "reconnect"'), 'who uses a keyboard stays where it was')
  await press(page, 'Connect')
  await page.locator('#state', { hasText: /^Open$/ }).waitFor()

  const refresh = (await context.cookies(`${origin}/token/refresh`)).find(({ name }) => name === 'refresh')
  t.match(refresh, { httpOnly: true, sameSite: 'Strict', path: '/token/refresh', value: /^[\w.-]{60}/ })
  t.same((await context.storageState()).origins, [], 'nothing is stored in the browser but the cookies')
  const shown = await page.content()
  // The other way in as well, from another tab.
  await page.evaluate(`fetch('/login', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '${JSON.stringify({ username: 'alice', password: passwords.alice })}' })`)
  await press(page, 'Sign out')
  await page.getByText('You have signed out.').waitFor()
  t.same(await context.cookies([origin, `${origin}/token/refresh`]), [])

  const everything = [...seen.urls, ...seen.console, page.url(), shown, await page.content()].join('\n')
  for (const token of tokens) t.match(token, /^[\w-]+\.[\w-]+\.[\w-]+$/)
  for (const secret of [passwords.alice, ...tokens, refresh?.value ?? '', idIn(cookie?.value ?? '')]) {
    t.notOk(secret === '' || everything.includes(secret), 'no credential in an address, the console or the page')
  }
  t.same(seen.console.filter(line => !line.startsWith('Failed to load resource')), [], 'nothing else went wrong')
})
