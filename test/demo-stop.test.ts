/** The demo ends on a signal whatever its clients, or its nodes, leave undone. */
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import t, { type Test } from 'tap'
import { startDemo } from './demo-running.js'
import { eventually } from './live.js'
import { needsRedis } from './redis.js'

t.setTimeout(180_000)

const HALF_A_HEAD = 'GET / HTTP/1.1\r\n'
const HALF_A_BODY = 'POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{'

/** A client that has sent this, and no more; what it is answered. */
async function half (t: Test, origin: string, text: string): Promise<{ answer: () => string, isOver: () => boolean }> {
  const socket = net.connect(Number(new URL(origin).port), '127.0.0.1')
  t.teardown(() => { socket.destroy() })
  let answer = ''
  socket.on('error', () => {}).on('data', chunk => { answer += chunk.toString() })
  await once(socket, 'connect')
  await new Promise(resolve => { socket.write(text, resolve) })
  return { answer: () => answer, isOver: () => socket.closed }
}

for (const [where, program, skip] of [['one process', 'demo/server.js', false], ['two nodes', 'demo/cluster.js', needsRedis.skip]] as const) {
  t.test(`${where}: requests of which half was sent do not keep it`, { skip }, async t => {
    const { child, origin } = await startDemo(t, program)
    for (let i = 0; i < 2; i++) for (const text of [HALF_A_HEAD, HALF_A_BODY, '']) await half(t, origin, text)
    // Asked after them, and answered: they have come.
    t.equal((await fetch(`${origin}/session`)).status, 200)
    const ended = once(child, 'exit')
    const started = performance.now()
    child.kill('SIGTERM')
    t.same(await ended, [0, null])
    t.ok(performance.now() - started < 9000, 'before anything is cut short')
  })
}

t.test('a request has ten seconds to come', async t => {
  const { origin } = await startDemo(t)
  const clients = [await half(t, origin, HALF_A_HEAD), await half(t, origin, HALF_A_BODY)]
  await eventually('they are told', () => clients.every(({ answer, isOver }) => answer().startsWith('HTTP/1.1 408 ') && isOver()), 20_000)
})

t.test('a node that does not hear is not waited for', { ...needsRedis }, async t => {
  const { child } = await startDemo(t, 'demo/cluster.js')
  const children = (await readFile(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')).trim().split(' ').map(Number)
  const commands = await Promise.all(children.map(pid => readFile(`/proc/${pid}/cmdline`, 'utf8')))
  const [node = 0] = children.filter((_, i) => commands[i]?.includes('node.js'))
  t.ok(node)
  process.kill(node, 'SIGSTOP')
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  t.same(await ended, [1, null])
})
