/** The demo's balancer: nodes that do not answer, clients that say half a goodbye, and how many of them. */
import { once } from 'node:events'
import http from 'node:http'
import net from 'node:net'
import t, { type Test } from 'tap'
import { eventually } from './live.js'

t.setTimeout(60_000)

const portOf = (server: net.Server) => Number(Reflect.get(Object(server.address()) as object, 'port'))

/** A node: it says its name. */
async function node (t: Test, name: string): Promise<{ port: number, freeze: (isSo: boolean) => void }> {
  let isFrozen = false
  const server = http.createServer((_request, response) => { if (!isFrozen) response.end(name) }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { port: portOf(server), freeze (isSo) { isFrozen = isSo } }
}

async function balance (t: Test, ports: number[], options: object = {}): Promise<number> {
  const { startBalancer } = await import(new URL('../demo/balancer.js', import.meta.url).href) as { startBalancer: (options: object) => Promise<{ port: number, stop: () => void }> }
  const balancer = await startBalancer({ host: '127.0.0.1', port: 0, ports, ...options })
  t.teardown(() => { balancer.stop() })
  return balancer.port
}

const ask = (port: number) => new Promise<string>(resolve => {
  const request = http.get({ port, host: '127.0.0.1', agent: false, timeout: 500 }, response => {
    response.setEncoding('utf8').once('data', resolve)
  })
  request.on('timeout', () => { request.destroy() }).on('error', () => { resolve('nothing') })
})

t.test('past a node that takes connections and does not answer, those that it had included, until it answers again', async t => {
  const [one, two] = [await node(t, 'one'), await node(t, 'two')]
  const port = await balance(t, [one.port, two.port], { interval: 200 })
  t.same([await ask(port), await ask(port)].sort(), ['one', 'two'])
  const open = [net.connect(port, '127.0.0.1'), net.connect(port, '127.0.0.1')]
  for (const socket of open) {
    t.teardown(() => { socket.destroy() })
    await once(socket.resume().on('error', () => {}), 'connect')
  }
  one.freeze(true)
  await eventually('whoever was on it may come back', () => open.filter(({ closed }) => closed).length === 1)
  for (let i = 0; i < 4; i++) t.equal(await ask(port), 'two')
  one.freeze(false)
  const heard = new Set<string>()
  while (!heard.has('one')) heard.add(await ask(port))
})

t.test('who has said all that it has to say is answered all the same', async t => {
  const { port: nodePort } = await node(t, 'x'.repeat(1_000_000))
  const port = await balance(t, [nodePort])
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  t.teardown(() => { socket.destroy() })
  let size = 0
  socket.on('data', (chunk: Buffer) => { size += chunk.length })
  socket.end('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
  await once(socket, 'end')
  t.ok(size > 1_000_000)
})

t.test('there are only so many clients', async t => {
  const { port: nodePort } = await node(t, 'one')
  const port = await balance(t, [nodePort], { most: 3 })
  const sockets = Array.from({ length: 5 }, () => net.connect(port, '127.0.0.1').resume().on('error', () => {}))
  t.teardown(() => { for (const socket of sockets) socket.destroy() })
  await eventually('two are sent away', () => sockets.filter(({ closed }) => closed).length === 2)
  sockets.find(({ closed }) => !closed)?.destroy()
  let answer = 'nothing'
  while (answer === 'nothing') answer = await ask(port)
  t.equal(answer, 'one')
})
