/** What the tests of a cluster stand on: a server that fails as it is told to, and a network that does. */
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { eventually } from './live.js'
import { connect, needsRedis, startProxy, startRedis } from './redis.js'

/** What has not happened by then does not happen. */
const A_WHILE = 150

t.test('a restarted server has lost its data', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const client = await connect(t, redis.url)
  await client.set('key', 'value')
  t.equal(await client.get('key'), 'value')
  await redis.restart()
  t.equal(await client.get('key'), null)
})

t.test('a durable one has it, however it ended', { ...needsRedis }, async t => {
  const redis = await startRedis(t, { durable: true })
  const client = await connect(t, redis.url)
  for (let i = 0; i < 100; i++) await client.set(`key ${i}`, i)
  await redis.kill()
  await eventually('the client is cut off', () => !client.isReady)
  await redis.restart()
  t.equal(await client.get('key 99'), '99')
  t.equal(await client.dbSize(), 100)
})

t.test('a paused one answers after it goes on', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const client = await connect(t, redis.url)
  redis.pause()
  const answer = watch(client.set('key', 'value'))
  await sleep(A_WHILE)
  t.equal(answer.isThere(), false)
  t.equal(client.isReady, true)
  redis.resume()
  t.equal(await answer.promise, 'OK')
})

t.test('a server is gone after its test, paused or not, and its directory too', { ...needsRedis }, async t => {
  const seen = { port: 0, dir: '' }
  await t.test('which pauses it', async t => {
    const redis = await startRedis(t)
    const client = await connect(t, redis.url)
    seen.port = redis.port
    seen.dir = (await client.configGet('dir')).dir ?? ''
    t.equal(existsSync(seen.dir), true)
    redis.pause()
  })
  t.equal(existsSync(seen.dir), false)
  const [error] = await once(net.connect(seen.port, '127.0.0.1'), 'error') as unknown[]
  t.match(error, { code: 'ECONNREFUSED' })
})

t.test('two servers share nothing', { ...needsRedis }, async t => {
  const [one, other] = await Promise.all([startRedis(t), startRedis(t)])
  await (await connect(t, one.url)).set('key', 'value')
  t.equal(await (await connect(t, other.url)).get('key'), null)
})

t.test('a proxy that is cut lets nothing in until it is healed', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const proxy = await startProxy(t, redis.port)
  const client = await connect(t, proxy.url)
  await client.set('key', 'value')
  proxy.cut()
  await eventually('the client is cut off', () => !client.isReady)
  const socket = net.connect(proxy.port, '127.0.0.1')
  await once(socket, 'close')
  await sleep(A_WHILE)
  t.equal(client.isReady, false)
  proxy.heal()
  await eventually('the client is back', () => client.isReady)
  t.equal(await client.get('key'), 'value')
})

t.test('a proxy that is stalled keeps its connections, takes new ones, and loses nothing', async t => {
  const { port, received } = await listen(t)
  const proxy = await startProxy(t, port)
  const early = rawClient(t, proxy.port)
  await once(early.socket, 'connect')
  early.socket.write('one ')
  await eventually('it passes', () => received() === 'one ' && early.received() === 'one ')

  proxy.stall()
  const late = rawClient(t, proxy.port)
  const text = 'x'.repeat(4_000_000)
  early.socket.write(text)
  late.socket.write('late')
  await sleep(A_WHILE)
  t.equal(received(), 'one ')
  t.equal(early.received() + late.received(), 'one ')
  t.equal(late.socket.readyState, 'open')

  proxy.flow()
  await eventually('all of it came, and came back', () => early.received().length === text.length + 4 && late.received() === 'late')
  t.equal(early.received() === `one ${text}`, true)
  early.socket.end('the last')
  await once(early.socket, 'close')
  t.equal(early.received().endsWith('xthe last'), true, 'an end passes behind what was written before it')
})

t.test('an end while nothing passes is heard of when it flows', async t => {
  const { port, open } = await listen(t)
  const proxy = await startProxy(t, port)
  const ended = rawClient(t, proxy.port)
  const reset = rawClient(t, proxy.port)
  ended.socket.write('a')
  reset.socket.write('b')
  await eventually('both pass', () => ended.received() + reset.received() === 'ab')
  proxy.stall()
  ended.socket.end()
  reset.socket.resetAndDestroy()
  await sleep(A_WHILE)
  t.equal(open(), 2)
  proxy.flow()
  await eventually('it is heard of', () => open() === 0)
})

t.test('a client behind a stalled proxy gets its answer when it flows', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const proxy = await startProxy(t, redis.port)
  const client = await connect(t, proxy.url)
  proxy.stall()
  const answer = watch(client.set('key', 'value'))
  await sleep(A_WHILE)
  t.equal(answer.isThere(), false)
  t.equal(client.isReady, true)
  t.equal(await (await connect(t, redis.url)).get('key'), null)
  proxy.flow()
  t.equal(await answer.promise, 'OK')
})

t.test('where the server behind it is gone, so is the proxy to its clients', { ...needsRedis }, async t => {
  const redis = await startRedis(t)
  const proxy = await startProxy(t, redis.port)
  const client = await connect(t, proxy.url)
  await redis.kill()
  await eventually('the client is cut off', () => !client.isReady)
  await redis.restart()
  t.equal(await client.ping(), 'PONG')
})

function watch<T> (promise: Promise<T>): { promise: Promise<T>, isThere: () => boolean } {
  let isThere = false
  promise.then(() => { isThere = true }, () => { isThere = true })
  return { promise, isThere: () => isThere }
}

/** A server that keeps and returns what it gets. */
async function listen (t: Test): Promise<{ port: number, received: () => string, open: () => number }> {
  let received = ''
  const sockets = new Set<net.Socket>()
  const server = net.createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => { sockets.delete(socket) })
    socket.on('data', chunk => { received += chunk.toString() })
    socket.pipe(socket)
  })
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the server does not listen on a port')
  return { port: address.port, received: () => received, open: () => sockets.size }
}

function rawClient (t: Test, port: number): { socket: net.Socket, received: () => string } {
  const socket = net.connect(port, '127.0.0.1')
  t.teardown(() => { socket.destroy() })
  let received = ''
  socket.on('data', chunk => { received += chunk.toString() })
  socket.on('error', () => {})
  return { socket, received: () => received }
}
