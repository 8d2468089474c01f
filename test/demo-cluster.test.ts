/** The demo as `npm run demo:cluster` runs it, by the commands it prints, and the routes that one process has as well. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import net from 'node:net'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { bearerOf as bearer, ENV, lacks, post, ROOT, sessionOf as cookieOf, startDemo, textOf as memberText } from './demo-running.js'
import { needsRedis } from './redis.js'

// Processes, browsers, and commands that wait: on a machine with other work that takes its time.
t.setTimeout(180_000)

const textOf = async (answer: Response, name: string) => memberText(await answer.json(), name)

/** The status of a refusal, or what an open socket says first. */
function live (t: Test, origin: string, headers: Record<string, string>, query = ''): Promise<{ status: number, socket: WebSocket }> {
  const socket = new WebSocket(`${origin.replace('http', 'ws')}/live${query}`, { headers })
  t.teardown(() => { socket.terminate() })
  return new Promise((resolve, reject) => {
    socket.once('message', () => { resolve({ status: 101, socket }) })
    socket.once('unexpected-response', (_request, response) => { resolve({ status: response.statusCode ?? 0, socket }) })
    socket.once('error', reject)
  })
}

async function closeCode (socket: WebSocket): Promise<unknown> {
  const [code] = await once(socket, 'close') as unknown[]
  return code
}

function refusesConnections (port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); resolve(false) })
    socket.on('error', () => { resolve(true) })
  })
}

t.test('every printed command does what its title says, over two nodes', { skip: needsRedis.skip || lacks('bash', 'curl', 'awk') }, async t => {
  const { printed } = await startDemo(t, 'demo/cluster.js')
  const script = printed().split('# Or open', 1)[0]?.replace(/^# .*$/gm, 'echo "@@@"') ?? ''
  const { stdout, stderr } = await promisify(execFile)('bash', ['-c', script], { cwd: ROOT, env: { ...ENV, TMPDIR: t.testdir() } })
  t.equal(stderr, '')
  const answers = stdout.split('@@@\n').slice(1)
  const expected: RegExp[] = [
    /^\{"user":\{"userId":"alice"/,
    /^\{"type":"hello","auth":\{"authType":"session","via":"cookie","userId":"alice"/,
    /^204\n4006 \{"code":"revoked"/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"header","userId":"alice"[^\n]*\n\{"type":"joined","room":"tenant\/riverside\/agents"[^\n]*\n\{"type":"message",[^\n]*"number":\d+,[^\n]*\n$/,
    /^\{"statusCode":403,"code":"FST_HYBRID_AUTH_FORBIDDEN"/,
    /^\{"id":"[^"]+","matched":1,"closed":0,"durable":true,"nodes":\{"acknowledged":2,"missing":0\}\}\n(?:\{"type":"message",[^\n]*\n)*\{"type":"permission_update","permissions":\[\],"added":\[\],"removed":\["property:read"\]\}\n(?:\{"type":"context"[^\n]*\n)?\{"type":"left","room":"tenant\/riverside\/agents","reason":"forbidden"\}\n(?:\{"type":"context"[^\n]*\n)?nothing for 3 seconds\n$/,
    /^\{"id":[^\n]*\n\{"type":"permission_update","permissions":\["property:read"\],"added":\["property:read"\],"removed":\[\]\}\n(?:\{"type":"context"[^\n]*\n)?\{"type":"joined",[^\n]*\n(?:\{"type":"context"[^\n]*\n)?\{"type":"message",/,
    /^\{"id":"[^"]+","matched":1,"closed":1,"durable":true,"nodes":\{"acknowledged":2,"missing":0\}\}\n[\s\S]*4006 \{"code":"revoked"/,
    /^Unexpected server response: 401$/m,
    /^j[\w-]{43}\n$/,
    /^\{"type":"hello","auth":\{"authType":"jwt","via":"ticket","userId":"root"[\s\S]*\nping\n1005/,
    /^Unexpected server response: 401$/m,
    /^\{"nodeId":"([^"]+)","connected":true,[^\n]*"sockets":0\}\n\{"nodeId":"(?!\1)[^"]+","connected":true,/
  ]
  t.equal(answers.length, expected.length)
  for (const [i, pattern] of expected.entries()) t.match(answers[i], pattern)
  const numbers = [...answers.join('').matchAll(/"number":(\d+)/g)].map(([, number]) => Number(number))
  t.ok(numbers.some((number, i) => number > 1 + (numbers[i - 1] ?? number)), 'what was published while she was out never came')
  t.match(printed(), /node 2 {2}closed {2}socket {2}\/live {2}alice {2}session {2}via cookie {2}4006/, 'and is told on the terminal')
})

t.test('a session of one node is one of the other, and ends on both', { ...needsRedis }, async t => {
  const { nodes: [first = '', second = ''], passwords } = await startDemo(t, 'demo/cluster.js')
  const cookie = await cookieOf(second, 'alice', passwords.alice)
  const { socket } = await live(t, first, { cookie, origin: first })
  const code = closeCode(socket)
  t.equal((await fetch(`${second}/logout`, { method: 'POST', headers: { cookie, origin: second } })).status, 204)
  t.equal(await code, 4006)
  t.equal((await fetch(`${first}/me`, { headers: { cookie } })).status, 401)
})

t.test('one page on both nodes: its connections go to them in turn, and past one that does not answer', { ...needsRedis }, async t => {
  const { origin, nodes, passwords } = await startDemo(t, 'demo/cluster.js')
  t.notOk(nodes.includes(origin))
  const cookie = await cookieOf(origin, 'alice', passwords.alice)
  for (let i = 0; i < 4; i++) t.equal((await live(t, origin, { cookie, origin })).status, 101, 'the page is of one origin, whichever node it is on')
  const root = await bearer(origin, 'root', passwords.root)
  for (const node of nodes) t.match(await (await fetch(`${node}/status`, { headers: root })).json(), { connected: true, sockets: 2 })

  const { startBalancer } = await import(new URL('../demo/balancer.js', import.meta.url).href) as { startBalancer: (options: object) => Promise<{ port: number, stop: () => void }> }
  const closed = net.createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const gone = Number(Reflect.get(Object(closed.address()) as object, 'port'))
  closed.close()
  const balancer = await startBalancer({ host: '127.0.0.1', port: 0, ports: [gone, Number(new URL(nodes[0] ?? '').port)] })
  t.teardown(() => { balancer.stop() })
  for (let i = 0; i < 3; i++) t.equal((await fetch(`http://127.0.0.1:${balancer.port}/session`, { headers: { connection: 'close' } })).status, 200)
})

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  t.test(`${signal} to all of its processes ends them, Redis last, and leaves nothing behind`, { ...needsRedis }, async t => {
    const { child, nodes: [first = '', second = ''], passwords, redisPort, printed } = await startDemo(t, 'demo/cluster.js')
    const { socket } = await live(t, second, await bearer(first, 'alice', passwords.alice))
    t.equal((await readdir(t.testdirName)).length, 1)
    const ended = once(child, 'exit')
    const code = closeCode(socket)
    // Ctrl+C in a terminal goes to the whole group, and npm passes it on to its child once more.
    process.kill(-(child.pid ?? 0), signal)
    child.kill(signal)
    t.same(await ended, [0, null])
    t.equal(await code, 1012)
    t.ok(await refusesConnections(redisPort))
    t.same(await readdir(t.testdirName), [])
    t.notMatch(printed(), /ECONNREFUSED|Socket closed|Error/)
  })
}

t.test('ends with status 1 where it cannot start, and says why in one line', async t => {
  const run = async (env: NodeJS.ProcessEnv) => {
    const child = spawn(process.execPath, ['demo/cluster.js'], { cwd: ROOT, env: { ...ENV, TMPDIR: t.testdir(), ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    let text = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => { text += chunk.toString() })
    const [code] = await once(child, 'close') as unknown[]
    return { code, text, left: await readdir(t.testdirName) }
  }

  await t.test('no redis-server', async t => {
    t.strictSame(await run({ PATH: ROOT }), { code: 1, text: 'This needs redis-server, which is not installed. Without it: npm start\n', left: [] })
  })
  await t.test('a port that is taken', { ...needsRedis }, async t => {
    const server = net.createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => { server.close() })
    const address = server.address()
    const port = typeof address === 'object' ? address?.port ?? 0 : 0
    // Its page takes the one before, its first node the next one.
    const { code, text, left } = await run({ PORT: String(port - 1) })
    t.equal(code, 1)
    t.match(text, new RegExp(`^Port ${port} is taken\\. Try others: PORT=4000 npm run demo:cluster$`, 'm'))
    t.same(left, [])
  })
})

t.test('one process without Redis: /revoke and /status are for admins, and a revoked user can sign in again', async t => {
  const { origin, passwords } = await startDemo(t)
  const alice = await bearer(origin, 'alice', passwords.alice)
  const root = await bearer(origin, 'root', passwords.root)
  const target = { userId: 'alice' }
  const revoke = async (headers: Record<string, string>, body: unknown = target) => (await post(`${origin}/revoke`, body, headers)).status
  t.equal(await revoke({}), 401)
  t.equal(await revoke({}, {}), 401, 'nobody learns what it takes')
  t.equal(await revoke(alice), 403)
  t.equal(await revoke({ cookie: await cookieOf(origin, 'root', passwords.root) }), 403, 'a page of another site cannot do it either')
  t.equal(await revoke(root, {}), 400)
  t.equal((await fetch(`${origin}/status`)).status, 401)
  t.equal((await fetch(`${origin}/status`, { headers: alice })).status, 403)

  const cookie = await cookieOf(origin, 'alice', passwords.alice)
  const sockets = [await live(t, origin, alice), await live(t, origin, { cookie, origin })].map(({ socket }) => socket)
  const status: unknown = await (await fetch(`${origin}/status`, { headers: root })).json()
  t.match(status, { connected: true, sockets: 2 })
  const codes = Promise.all(sockets.map(closeCode))
  t.equal(await revoke(root), 200)
  t.same(await codes, [4006, 4006])
  t.equal((await fetch(`${origin}/me`, { headers: alice })).status, 401)
  t.equal((await fetch(`${origin}/me`, { headers: await bearer(origin, 'alice', passwords.alice) })).status, 200)
  t.equal((await fetch(`${origin}/me`, { headers: { cookie: await cookieOf(origin, 'alice', passwords.alice) } })).status, 200)
})

t.test('one process without Redis: a ticket is for who is authenticated, and opens one socket', async t => {
  const { origin, passwords } = await startDemo(t)
  t.equal((await post(`${origin}/ticket`, {})).status, 401)
  const answer = await post(`${origin}/ticket`, {}, await bearer(origin, 'alice', passwords.alice))
  t.equal(answer.headers.get('cache-control'), 'no-store')
  const ticket = await textOf(answer, 'ticket')
  t.equal((await live(t, origin, {}, `?ticket=${ticket}`)).status, 101)
  t.equal((await live(t, origin, {}, `?ticket=${ticket}`)).status, 401)
})
