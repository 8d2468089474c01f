/** As whom is this socket open, and for how long: asked by a client of any kind, answered by the server alone. */
import t from 'tap'
import { SUBPROTOCOL } from '../lib/protocol.js'
import { watched, withHeaders } from './clients.js'
import { build, goodToken, inSeconds, JWT, SECRET } from './helpers.js'
import { dial, echo, eventually, live, lookNow, setClock, setRandom } from './live.js'
import { ask, cookieFor, deferred, MapStore } from './stores.js'

const STATUS = '{"type":"auth_status"}'

t.test('every credential is answered: as whom, by what, on which connection, and for how long', async t => {
  const store = new MapStore()
  store.put('s1', { user: { userId: 'bob' }, cookie: {} })
  const server = await live(t, {
    session: { store },
    routes (app) { app.get('/ticket', { auth: true }, async request => ({ ticket: await app.hybridAuth.issueTicket(request) })) }
  })
  const { body } = await ask(server.host, '/ticket', { headers: { authorization: `Bearer ${goodToken({ exp: inSeconds(100) })}` } })
  const { ticket } = JSON.parse(body) as { ticket: string }
  for (const [what, how, expected, seconds] of [
    ['token', { token: goodToken({ exp: inSeconds(200) }), speaks: true }, { user: { id: 'alice' }, authType: 'jwt' }, 200],
    ['session', { cookie: cookieFor('s1'), speaks: true }, { user: { id: 'bob' }, authType: 'session' }, null]
  ] as const) {
    const { peer, there } = await server.open(how)
    peer.say(STATUS)
    const { expiresIn, ...frame } = await peer.takeFrame('auth_success')
    t.same(frame, { type: 'auth_success', ...expected, connectionId: there.connection.id }, what)
    if (seconds === null) t.equal(expiresIn, null)
    else t.ok(typeof expiresIn === 'number' && expiresIn <= seconds && expiresIn > seconds - 10, `${what}: ${String(expiresIn)}`)
    t.same(there.received, [], 'the application does not hear of it')
  }
  const { client, messages, isOpen, opens } = watched(t, { url: `ws://${server.host}/app`, attach: 'ticket', getToken: () => ticket })
  await isOpen()
  t.same([opens, messages], [[{ identity: { id: 'alice' }, recovered: false }], []], 'ticket')
  client.close()
})

t.test('what is left is counted in whole seconds, whatever the clocks, and follows a fresh token', async t => {
  const clock = setClock(t)
  clock.freeze()
  const { open } = await live(t)
  const { peer } = await open({ token: goodToken({ exp: inSeconds(100) }), speaks: true })
  clock.move(40_500)
  peer.say(STATUS)
  const { expiresIn } = await peer.takeFrame('auth_success')
  t.ok(typeof expiresIn === 'number' && Number.isInteger(expiresIn) && expiresIn >= 58 && expiresIn <= 60, String(expiresIn))
  peer.say({ type: 'auth_update', token: goodToken({ exp: inSeconds(100) }) })
  await peer.takeFrame('auth_updated')
  peer.say(STATUS)
  const after = await peer.takeFrame('auth_success')
  t.ok(Number(after.expiresIn) >= 99, String(after.expiresIn))
})

t.test('it is ours however it is spaced, and the application\'s where it only looks so, or is binary', async t => {
  const { open } = await live(t)
  const { peer, there } = await open({ speaks: true })
  const ours = [STATUS, ' {"type":"auth_status"}'.trim(), '{ "type" : "auth_status" , "more": 1 }', '{\n\t"type":"auth_status"}', '{"type":"auth_status","token":"x"}']
  for (const text of ours) peer.say(text)
  const theirs = ['{"type":"auth_statu"}', '{"type":"auth_statuses"}', '{"a":1,"type":"auth_status"}', '["auth_status"]', 'auth_status']
  for (const text of theirs) peer.say(text)
  peer.socket.send(Buffer.from(STATUS))
  await peer.echoed('the end')
  t.equal(peer.framesOf('auth_success').length, ours.length)
  t.same(there.received, [...theirs, STATUS, 'the end'])
})

t.test('where the application has all frames to itself, or the socket speaks another protocol, it is the application\'s', async t => {
  for (const optional of [false, true]) {
    const { host } = await build(t, {
      routes (app) {
        for (const [path, control] of [['/off', false], ['/other', undefined]] as const) {
          app.get(path, { websocket: true, auth: { optional, ...(control !== undefined && { control }) } }, socket => { socket.on('message', data => { socket.send(data, { binary: false }) }) })
        }
        app.websocketServer.options.handleProtocols = (offered: Set<string>) => [...offered][0] ?? false
      }
    })
    for (const [path, protocols] of [['/off', [SUBPROTOCOL]], ['/off', []], ['/other', ['chat.v1']]] as const) {
      const peer = await dial(t, host, { path, protocols: [...protocols], ...(optional && { cookie: 'no=session' }) })
      t.ok(await peer.echoed(STATUS), `${path}, ${optional ? 'nobody' : 'somebody'}`)
      t.same(peer.texts, [STATUS])
      peer.socket.close()
    }
  }
})

t.test('on a socket that negotiated nothing it is answered, and all that is ours from then on is said', async t => {
  const { app, open } = await live(t)
  const { peer } = await open()
  await eventually('it is there', () => app.hybridAuth.count() === 1)
  await app.hybridAuth.setPermissions('alice', ['a'])
  t.ok(await peer.echoed('1'))
  t.same(peer.framesOf('permission_update'), [], 'nobody has said that frames of ours are understood')
  peer.say(STATUS)
  t.match(await peer.takeFrame('auth_success'), { user: { id: 'alice' } })
  await app.hybridAuth.setPermissions('alice', ['b'])
  t.match(await peer.takeFrame('permission_update'), { permissions: ['b'] })
})

t.test('nobody is told that he is nobody, and the client is open as nobody', async t => {
  const received: string[] = []
  const { host } = await build(t, {
    routes (app) {
      app.get('/app', { websocket: true, auth: { optional: true } }, socket => {
        socket.send('welcome')
        socket.on('message', (data: Buffer) => { received.push(data.toString()) })
      })
    }
  })
  const peer = await dial(t, host, { cookie: 'no=session', speaks: true })
  peer.say(STATUS)
  t.same(await peer.takeFrame('error'), { type: 'error', code: 'not_authenticated', message: 'This socket is nobody\'s', action: 'none' })
  const { client, opens, errors, texts, until } = watched(t, { url: `ws://${host}/app`, queue: 1 })
  client.send('hello')
  await until('it is open', () => texts().length > 0)
  t.same([opens, client.identity, errors, texts()], [[{ identity: null, recovered: false }], null, [], ['welcome']])
  await eventually('it is heard', () => received.length > 0)
  t.same(received, ['hello'])
})

t.test('before a first message has said who it is, who asks has no credential: 4001, and 4013 while one is judged', async t => {
  const judged = deferred<string>()
  const { host } = await build(t, { auth: { jwt: { ...JWT, key: () => judged.promise } }, routes (app) { app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => { t.fail('the handler ran') }) } })
  const [one, two] = [await dial(t, host, { path: '/first', cookie: 'no=session', speaks: true }), await dial(t, host, { path: '/first', cookie: 'no=session', speaks: true })]
  one.say(STATUS)
  t.equal((await one.end).code, 4001)
  two.say({ type: 'auth', token: goodToken() })
  two.say(STATUS)
  t.equal((await two.end).code, 4013)
  judged.resolve(SECRET)
})

t.test('once a first message has said who it is, the question is answered', async t => {
  const { host } = await build(t, { routes (app) { app.get('/first', { websocket: true, auth: { firstMessage: true } }, () => {}) } })
  const peer = await dial(t, host, { path: '/first', cookie: 'no=session', speaks: true })
  peer.say({ type: 'auth', token: goodToken() })
  const first = await peer.takeFrame('auth_success')
  peer.say(STATUS)
  t.match(await peer.takeFrame('auth_success'), { user: { id: 'alice' }, connectionId: first.connectionId })
})

t.test('questions count for the rate, but for the first word on a socket', async t => {
  const { open } = await live(t, { route: { rate: { capacity: 2, refillPerSecond: 0.001 } } })
  const { peer, there } = await open({ speaks: true })
  for (let i = 0; i < 4; i++) peer.say(STATUS)
  t.match(await peer.takeFrame('error'), { code: 'rate_limited' })
  t.equal(peer.framesOf('auth_success').length, 3)
  for (let i = 0; i < 20; i++) peer.say(STATUS)
  t.equal((await peer.end).code, 4008)
  t.same(there.received, [])
  const other = await open({ speaks: true })
  for (const text of ['1', STATUS, STATUS]) other.peer.say(text)
  t.match(await other.peer.takeFrame('error'), { code: 'rate_limited' })
  t.equal(other.peer.framesOf('auth_success').length, 1, 'a question that is not the first counts')
})

t.test('a client opens also where the other sockets of its user have used up what that may send', async t => {
  const { host, open } = await live(t, { route: { rate: { perUser: { capacity: 1, refillPerSecond: 0.001 } } } })
  const { peer } = await open({ speaks: true })
  peer.say('1')
  peer.say('2')
  t.match(await peer.takeFrame('error'), { code: 'rate_limited' })
  const { isOpen, errors } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken() })
  await isOpen()
  t.same(errors, [])
})

t.test('of nobody they count too', async t => {
  const { host } = await build(t, { routes (app) { app.get('/app', { websocket: true, auth: { optional: true, rate: { capacity: 1, refillPerSecond: 0.001 } } }, () => {}) } })
  const peer = await dial(t, host, { cookie: 'no=session', speaks: true })
  for (let i = 0; i < 30; i++) peer.say(STATUS)
  t.equal((await peer.end).code, 4008)
  const answered = peer.framesOf('error').filter(({ code }) => code === 'not_authenticated').length
  t.ok(answered >= 1 && answered <= 2, `${answered}`)
})

t.test('to ask is no activity: a socket on which nothing else is said is idle', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { idleTimeout: 60_000 } })
  const { peer, there } = await open({ speaks: true })
  for (let i = 0; i < 2; i++) {
    clock.move(25_000)
    peer.say(STATUS)
    await peer.takeFrame('auth_success')
    lookNow(there.connection)
    t.notOk(peer.hasEnded)
  }
  clock.move(25_000)
  lookNow(there.connection)
  t.equal((await peer.end).code, 4003)
})

t.test('it is answered while a message is judged, which keeps its place before what follows', async t => {
  const verdict = deferred<boolean>()
  let judged = 0
  const { open } = await live(t, { route: { authorize: (_auth, message) => { judged++; return message.text() === 'slow' ? verdict.promise : true } } })
  const { peer, there } = await open({ speaks: true })
  peer.say('slow')
  peer.say('behind')
  peer.say(STATUS)
  t.match(await peer.takeFrame('auth_success'), { user: { id: 'alice' } })
  t.same([there.received, judged], [[], 1])
  verdict.resolve(true)
  await peer.until(() => peer.texts.includes('behind'))
  t.same(there.received, ['slow', 'behind'])
})

t.test('it is not answered after the end of the credential, nor after a close', async t => {
  const clock = setClock(t)
  const { open } = await live(t, { auth: { expiryGrace: 0 } })
  const { peer } = await open({ token: goodToken({ exp: inSeconds(100) }), speaks: true })
  clock.move(101_000)
  peer.say(STATUS)
  t.equal((await peer.end).code, 4002)
  t.same(peer.framesOf('auth_success'), [])
})

t.test('a client is open only when the server has answered, and what the handler said before comes after that, in order', async t => {
  const slow = deferred<string>()
  let keys = 0
  const { host } = await live(t, {
    auth: { jwt: { ...JWT, key: () => { keys++; return SECRET } } },
    handler (there) {
      for (const text of ['1', '{"type":"error","message":"out of stock"}', '{"type":"bye"}', '{"type":"auth_success"}', '2']) there.socket.send(text)
      there.connection.send({ type: 'message', room: 'a', payload: 3 })
      echo(there)
      slow.resolve('')
    }
  })
  const seen: unknown[] = []
  const { client, until } = watched(t, { url: `ws://${host}/app`, getToken: () => goodToken(), queue: 1 })
  client.on('state', state => { seen.push(state) })
  client.on('open', () => { seen.push('opened') })
  client.on('message', message => { seen.push('data' in message ? message.data : message.payload) })
  client.send('waiting')
  await until('all is there', () => seen.includes('waiting'))
  t.same(seen, ['connecting', 'open', 'opened', '1', '{"type":"error","message":"out of stock"}', '{"type":"bye"}', '{"type":"auth_success"}', '2', 3, 'waiting'])
  t.equal(keys, 1)
})

t.test('a refusal by 101 and a close is never open, and what waits is not lost by it', async t => {
  setRandom(t, 0.1)
  const { host } = await live(t)
  const tokens = [goodToken({ exp: inSeconds(-60), iat: inSeconds(-120) }), goodToken({ exp: inSeconds(-50), iat: inSeconds(-120) }), goodToken()]
  const { client, states, closes, opens, texts, until } = watched(t, { url: `ws://${host}/app`, getToken: () => tokens.shift() ?? null, queue: 2 })
  client.send('1')
  client.send('2')
  await until('it is heard', () => texts().length === 2)
  t.same(states, ['connecting', 'waiting', 'connecting', 'waiting', 'connecting', 'open'])
  t.same([closes.map(({ code }) => code), opens.length, texts()], [[4002, 4002], 1, ['1', '2']])
})

t.test('a session answers for itself in the client too', async t => {
  const server = await build(t)
  const { client, isOpen } = watched(t, { url: `ws://${server.host}/live`, WebSocket: withHeaders({ cookie: await server.login(), origin: `http://${server.host}` }) })
  await isOpen()
  t.same(client.identity, { id: 'bob' })
})
