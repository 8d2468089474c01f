/** How sign-ins of the demo end when part of them has run out by itself, and what an operator's order leaves of a permission. */
import t from 'tap'
import { bearer, bearerOf, cookieIn, listOf, live, memberOf, post, refresh, startDemo, textOf, tokensOf, type Demo } from './demo-running.js'
import { eventually } from './live.js'

t.setTimeout(180_000)

const SHORT = { DEMO_TOKEN_LIFETIME: '1' }

/** The refresh token of a sign-in whose access token has run out. */
async function slept ({ origin, passwords }: Demo): Promise<string> {
  const { token, refresh: { value } } = await tokensOf(origin, 'alice', passwords.alice)
  const over = Date.now() + 1000
  await eventually('the token has run out', () => Date.now() > over)
  if ((await fetch(`${origin}/me`, { headers: bearer(token) })).status !== 401) throw new Error('it has not')
  return value
}

t.test('who was away for longer than an access token lasts can sign out', async t => {
  const demo = await startDemo(t, 'demo/server.js', SHORT)
  const value = await slept(demo)
  const answer = await refresh(demo.origin, value, { origin: demo.origin }, 'DELETE')
  t.equal(answer.status, 204)
  t.match(cookieIn(answer, 'refresh'), { value: '', attributes: /Expires=Thu, 01 Jan 1970/ })
  t.equal((await refresh(demo.origin, value)).status, 400)
})

t.test('a sign-in whose access token has run out is ended from another one, and by one too many', async t => {
  const demo = await startDemo(t, 'demo/server.js', SHORT)
  const { origin, passwords } = demo
  const values = [await slept(demo), await slept(demo)]
  const alice = await bearerOf(origin, 'alice', passwords.alice)
  const signins = listOf(await (await fetch(`${origin}/signins`, { headers: alice })).json(), 'signins')
  const id = textOf(signins.at(-1), 'id')
  t.equal((await fetch(`${origin}/signins/${id}`, { method: 'DELETE', headers: await bearerOf(origin, 'alice', passwords.alice) })).status, 204)
  t.equal((await refresh(origin, values[0] ?? '')).status, 400)
  for (let i = 0; i < 20; i++) t.equal((await post(`${origin}/login`, { username: 'alice', password: passwords.alice })).status, 200)
  t.equal((await refresh(origin, values[1] ?? '')).status, 400)
})

t.test('a refresh token that comes again is told of, though nothing of its family is live', async t => {
  const demo = await startDemo(t, 'demo/server.js', SHORT)
  const { origin, passwords } = demo
  const first = await slept(demo)
  const second = cookieIn(await refresh(origin, first), 'refresh').value
  const third = cookieIn(await refresh(origin, second), 'refresh').value
  await slept(demo)
  const stolen = await refresh(origin, first)
  t.equal(stolen.status, 400)
  t.match(cookieIn(stolen, 'refresh').attributes, /Expires=Thu, 01 Jan 1970/)
  t.equal((await refresh(origin, third)).status, 400)
  const log: unknown = await (await fetch(`${origin}/operator/log`, { headers: await bearerOf(origin, 'root', passwords.root) })).json()
  t.match(listOf(log, 'entries').find(entry => memberOf(entry, 'type') === 'refresh_reused'), { userId: 'alice', route: '/token/refresh' })
  t.ok(/refresh_reused {2}http {2}\/token\/refresh {2}alice$/m.test(demo.printed()), 'on the terminal as well')
})

t.test('an order to read only gives nobody a permission that they have not', async t => {
  const { origin, passwords } = await startDemo(t)
  const root = await bearerOf(origin, 'root', passwords.root)
  t.equal((await post(`${origin}/role`, { userId: 'carol', role: 'none' }, root)).status, 200)
  const { socket, frames } = await live(t, origin, await tokensOf(origin, 'carol', passwords.carol))
  const board: unknown = await (await fetch(`${origin}/operator/board`, { headers: root })).json()
  const [connection] = listOf(listOf(board, 'nodes')[0], 'connections')
  t.match(connection, { userId: 'carol', permissions: [] })
  t.equal((await post(`${origin}/operator/order`, { connectionId: textOf(connection, 'id'), action: 'read-only' }, root)).status, 200)
  socket.send(JSON.stringify({ type: 'join', room: 'tenant/hillcrest/agents' }))
  const answer = () => frames.find(frame => ['joined', 'error'].includes(textOf(frame, 'type')))
  await eventually('she is answered', () => answer() !== undefined)
  t.match(answer(), { type: 'error', code: 'forbidden' })
  t.same(frames.flatMap(frame => listOf(frame, 'added')), [])
})
