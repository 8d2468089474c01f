/** The demo's refresh tokens, the list of sign-ins, and what operators may do, over HTTP and on sockets. */
import t from 'tap'
import { WebSocket } from 'ws'
import { bearer, bearerOf, cookieIn, listOf, live, memberOf, post, refresh, sessionOf, startDemo, textOf, tokensOf } from './demo-running.js'
import { eventually, setClock } from './live.js'
import { needsRedis } from './redis.js'

t.setTimeout(180_000)

const statusOf = async (address: string, headers: Record<string, string>) => (await fetch(address, { headers })).status

/** A refresh token, spent. */
async function spend (origin: string, value: string) {
  const answer = await refresh(origin, value)
  return { status: answer.status, token: textOf(await answer.json(), 'access_token'), refresh: cookieIn(answer, 'refresh').value }
}

t.test('the refresh token is in a cookie that no script reads, for one path, and for pages of the own origin alone', async t => {
  const { origin, passwords, printed } = await startDemo(t)
  const { token, refresh: { value, attributes } } = await tokensOf(origin, 'alice', passwords.alice)
  t.match(attributes, /^Max-Age=28800; Path=\/token\/refresh; HttpOnly; SameSite=Strict$/)
  t.notOk(token.includes(value))

  for (const method of ['POST', 'DELETE']) {
    t.equal((await refresh(origin, value, {}, method)).status, 403, 'no origin is no page')
    t.equal((await refresh(origin, value, { origin: 'http://elsewhere.example' }, method)).status, 403)
    t.equal((await refresh(origin, value, { origin: origin.replace('http', 'https') }, method)).status, 403)
  }
  t.equal((await refresh(origin, '')).status, 204, 'who has none is not told off')
  t.equal((await refresh(origin, 'x'.repeat(500))).status, 400)
  const answer = await refresh(origin, value)
  t.equal(answer.status, 200)
  t.equal(answer.headers.get('cache-control'), 'no-store')
  t.match(await answer.json(), { token_type: 'Bearer', expires_in: 60 })
  for (const secret of [value, token]) t.notOk(printed().includes(secret))
})

for (const [where, program, skip] of [['one process', 'demo/server.js', false], ['two nodes', 'demo/cluster.js', needsRedis.skip]] as const) {
  t.test(`${where}: a refresh token that comes a second time ends its family, tokens, sockets and all`, { skip }, async t => {
    const { nodes, passwords } = await startDemo(t, program)
    const [first = '', second = first] = [nodes[0], nodes.at(-1)]
    const one = await tokensOf(first, 'alice', passwords.alice)
    const other = await tokensOf(first, 'alice', passwords.alice)
    const two = await spend(second, one.refresh.value)
    const three = await spend(first, two.refresh)
    t.same([two.status, three.status], [200, 200])
    const sockets = [await live(t, first, one), await live(t, second, three)]
    const another = await live(t, second, other)

    const stolen = await refresh(second, one.refresh.value)
    t.equal(stolen.status, 400)
    t.match(cookieIn(stolen, 'refresh').value, '', 'and the cookie goes')
    t.same(await Promise.all(sockets.map(({ code }) => code)), [4006, 4006])
    t.equal((await refresh(first, three.refresh)).status, 400, 'the one that was good before is not, either')
    for (const { token } of [one, two, three]) t.equal(await statusOf(`${second}/me`, bearer(token)), 401)

    t.equal(another.socket.readyState, WebSocket.OPEN, 'another sign-in has nothing to do with it')
    t.equal((await refresh(second, other.refresh.value)).status, 200)
    const root = await bearerOf(first, 'root', passwords.root)
    const log: unknown = await (await fetch(`${second}/operator/log`, { headers: root })).json()
    t.ok(listOf(log, 'entries').some(entry => memberOf(entry, 'type') === 'refresh_reused' && memberOf(entry, 'userId') === 'alice'), 'and operators are told')
  })
}

t.test('a client whose answer was lost may ask once more, and whoever has that answer ends the family', async t => {
  const { origin, passwords } = await startDemo(t)
  const { refresh: { value: lost } } = await tokensOf(origin, 'alice', passwords.alice)
  const taken = await spend(origin, lost)
  const again = await spend(origin, lost)
  t.equal(again.status, 200)
  t.not(again.refresh, taken.refresh)
  t.equal((await refresh(origin, taken.refresh)).status, 400)
  t.equal((await refresh(origin, again.refresh)).status, 400)
  t.equal(await statusOf(`${origin}/me`, bearer(again.token)), 401)

  const { refresh: { value } } = await tokensOf(origin, 'alice', passwords.alice)
  const answers = [await spend(origin, value), await spend(origin, value), await spend(origin, value)]
  t.same(answers.map(({ status }) => status), [200, 200, 400], 'not twice')
})

t.test('of many that come with one refresh token at the same moment two are answered, and the family is over', async t => {
  const { origin, passwords } = await startDemo(t)
  const { refresh: { value } } = await tokensOf(origin, 'alice', passwords.alice)
  const answers = await Promise.all(Array.from({ length: 6 }, () => refresh(origin, value)))
  t.same(answers.map(({ status }) => status).sort(), [200, 200, 400, 400, 400, 400])
})

t.test('families and sign-ins end with time, and there are only so many', async t => {
  const load = async (name: string): Promise<unknown> => import(new URL(`../demo/${name}.js`, import.meta.url).href)
  const { memoryStore } = await load('store') as { memoryStore: () => object }
  const { createSignins } = await load('signins') as { createSignins: (store: object) => { list: (userId: string) => Promise<unknown[]> } }
  const { createFamilies } = await load('families') as { createFamilies: (signins: object, sign: () => string, lifetime: number) => Families }
  interface Families {
    begin: (user: object, browser: string) => Promise<{ refreshToken: string, dropped: unknown[] }>
    rotate: (token: string) => Promise<{ outcome: string, refreshToken?: string }>
  }
  const user = { userId: 'alice', tenantId: 'riverside' }
  const clock = setClock(t)
  clock.freeze()
  const after = (ms: number) => {
    clock.reset()
    clock.move(ms)
  }
  const signins = createSignins(memoryStore())
  const { begin, rotate } = createFamilies(signins, () => 'token', 60)

  const lost = await begin(user, '')
  t.equal((await rotate(lost.refreshToken)).outcome, 'rotated')
  after(5000)
  t.equal((await rotate(lost.refreshToken)).outcome, 'reused', 'an answer is lost for five seconds at most')

  const unused = await begin(user, '')
  after(5000 + 30 * 60_000)
  t.equal((await rotate(unused.refreshToken)).outcome, 'unknown', 'half an hour unused')

  let { refreshToken }: { refreshToken?: string } = await begin(user, '')
  for (let i = 1; i < 50; i++) ({ refreshToken } = await rotate(refreshToken ?? ''))
  t.equal((await rotate(refreshToken ?? '')).outcome, 'busy')
  after(5000 + 31 * 60_000)
  let last = await rotate(refreshToken ?? '')
  t.equal(last.outcome, 'rotated', 'it is good for later')
  for (let minutes = 50; minutes < 8 * 60 + 90; minutes += 20) {
    after(minutes * 60_000)
    if (last.outcome === 'rotated') last = await rotate(last.refreshToken ?? '')
  }
  t.equal(last.outcome, 'unknown', 'eight hours, however often it is used')
  t.same(await signins.list('alice'), [])

  for (let i = 0; i < 20; i++) t.same((await begin(user, String(i))).dropped, [])
  t.match((await begin(user, '20')).dropped, [{ browser: '0' }])
  t.equal((await signins.list('alice')).length, 20)
})

t.test('a sign-out ends the family, and the socket with it', async t => {
  const { origin, passwords } = await startDemo(t)
  const { token, refresh: { value } } = await tokensOf(origin, 'alice', passwords.alice)
  const { code } = await live(t, origin, { token })
  const answer = await refresh(origin, value, { origin }, 'DELETE')
  t.equal(answer.status, 204)
  t.equal(await code, 4006)
  t.equal((await refresh(origin, value)).status, 400)
  t.equal(await statusOf(`${origin}/me`, bearer(token)), 401)
})

for (const [where, program, skip] of [['one process', 'demo/server.js', false], ['two nodes', 'demo/cluster.js', needsRedis.skip]] as const) {
  t.test(`${where}: a user sees where it is signed in, ends one of them, and all`, { skip }, async t => {
    const { nodes, passwords } = await startDemo(t, program)
    const [first = '', second = first] = [nodes[0], nodes.at(-1)]
    const session = await sessionOf(first, 'alice', passwords.alice, { 'user-agent': 'Firefox on a desk' })
    const tokens = await tokensOf(second, 'alice', passwords.alice)
    const carol = await bearerOf(first, 'carol', passwords.carol)
    const read = async (headers: Record<string, string>) => listOf(await (await fetch(`${second}/signins`, { headers })).json(), 'signins')
    const remove = async (path: string, headers: Record<string, string>) => (await fetch(`${first}${path}`, { method: 'DELETE', headers })).status

    const mine = await read({ cookie: session })
    t.match(mine, [{ kind: 'tokens', isThisOne: false }, { kind: 'session', browser: 'Firefox on a desk', isThisOne: true }])
    t.match(await read(bearer(tokens.token)), [{ kind: 'tokens', isThisOne: true }, { kind: 'session', isThisOne: false }])
    t.same(mine.map(signin => Object.keys(Object(signin) as object).sort()), Array(2).fill(['browser', 'createdAt', 'id', 'isThisOne', 'kind']), 'and nothing else of them')
    t.equal((await read(carol)).length, 1, 'and nobody else\'s')

    const id = textOf(mine[1], 'id')
    t.equal(await remove(`/signins/${id}`, {}), 401)
    t.equal(await remove(`/signins/${id}`, carol), 404)
    t.equal(await remove('/signins/x', carol), 400)
    t.equal(await remove(`/signins/${id}`, { cookie: session }), 403, 'a page of another site cannot do it')
    const bySession = await live(t, second, { cookie: session })
    t.equal(await remove(`/signins/${id}`, bearer(tokens.token)), 204)
    t.equal(await bySession.code, 4006)
    t.equal(await statusOf(`${second}/me`, { cookie: session }), 401)
    t.equal((await read(bearer(tokens.token))).length, 1)

    const next = await sessionOf(second, 'alice', passwords.alice)
    const sockets = [await live(t, first, tokens), await live(t, second, { cookie: next })]
    t.equal(await remove('/signins', { cookie: next, origin: first }), 204)
    t.same(await Promise.all(sockets.map(({ code }) => code)), [4006, 4006])
    t.equal(await statusOf(`${second}/me`, { cookie: next }), 401)
    t.equal((await refresh(second, tokens.refresh.value)).status, 400)
    t.equal(await statusOf(`${second}/me`, await bearerOf(first, 'alice', passwords.alice)), 200, 'a new login is good')
  })

  t.test(`${where}: an operator sees what is open everywhere, and ends it, narrows it, shortens it`, { skip }, async t => {
    const { nodes, passwords } = await startDemo(t, program)
    const [first = '', second = first] = [nodes[0], nodes.at(-1)]
    const root = await bearerOf(first, 'root', passwords.root)
    const alice = await tokensOf(second, 'alice', passwords.alice)
    const session = await sessionOf(first, 'bob', passwords.bob)
    const [byToken, bySession] = [await live(t, second, alice), await live(t, first, { cookie: session })]

    const board = async () => {
      const answer = await fetch(`${first}/operator/board`, { headers: root })
      const text = await answer.text()
      return { text, connections: listOf(JSON.parse(text), 'nodes').flatMap(node => listOf(node, 'connections')) }
    }
    let { text, connections } = await board()
    // The other node tells once a second what it has.
    while (connections.length < 2) ({ text, connections } = await board())
    const find = (userId: string) => connections.find(connection => memberOf(connection, 'userId') === userId)
    t.match(find('alice'), { authType: 'jwt', via: 'subprotocol', tenantId: 'riverside', role: 'agent', rooms: [], credential: /^[0-9a-f]{8}$/ })
    t.match(find('bob'), { authType: 'session', via: 'cookie', tenantId: 'riverside', role: 'broker' })
    const [sessionId = ''] = decodeURIComponent(session.replace('sessionId=', '')).split('.', 1)
    for (const secret of [sessionId, alice.token, alice.refresh.value]) t.notOk(text.includes(secret), 'it holds no credential')
    t.match(text, /"handshakes":\{[^}]*"(?:jwt|session)":1/)

    const [toAlice, toBob] = ['alice', 'bob'].map(name => textOf(find(name), 'id'))
    const order = (connectionId: unknown, action: string, headers: Record<string, string> = root) => post(`${first}/operator/order`, { connectionId, action }, headers)
    t.equal((await order(toAlice, 'revoke', {})).status, 401)
    t.equal((await order(toAlice, 'revoke', bearer(alice.token))).status, 403)
    t.equal((await order(toAlice, 'praise')).status, 400)
    t.equal((await order('nobody', 'revoke')).status, 404)
    for (const path of ['board', 'log']) t.equal(await statusOf(`${first}/operator/${path}`, bearer(alice.token)), 403)

    t.match(await (await order(toBob, 'read-only')).json(), { matched: 1, closed: 0 })
    await eventually('bob is told', () => bySession.frames.some(frame => memberOf(frame, 'type') === 'permission_update'))
    t.match(bySession.frames.find(frame => memberOf(frame, 'type') === 'permission_update'), { permissions: ['property:read'], removed: ['property:write'] })
    t.equal((await order(toBob, 'shorten')).status, 409, 'a session cannot be replaced on its socket')

    t.match(await (await order(toAlice, 'shorten')).json(), { matched: 1, closed: 0 })
    await eventually('alice is asked for another token', () => byToken.frames.some(frame => memberOf(frame, 'type') === 'token_refresh_required'))
    const next = await spend(second, alice.refresh.value)
    byToken.socket.send(JSON.stringify({ type: 'auth_update', token: next.token }))
    await eventually('it is taken', () => byToken.frames.some(frame => memberOf(frame, 'type') === 'auth_updated'))
    t.equal(await statusOf(`${second}/me`, bearer(alice.token)), 401, 'the one before is over')

    t.match(await (await order(toAlice, 'revoke')).json(), { matched: 1, closed: 1 })
    t.equal(await byToken.code, 4006)
    t.equal((await refresh(second, next.refresh)).status, 400, 'nor does its family give another')
    t.equal((await order(toBob, 'revoke')).status, 200)
    t.equal(await bySession.code, 4006)
    t.equal(await statusOf(`${second}/me`, { cookie: session }), 401)
    const log = await (await fetch(`${second}/operator/log`, { headers: root })).text()
    t.match(log, /"type":"revoked"[^}]*"userId":"bob"/)
    for (const secret of [sessionId, alice.token, next.refresh]) t.notOk(log.includes(secret))
  })
}
