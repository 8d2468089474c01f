/** A Redis server of its own for each test, which can die, freeze and come back, and a network to it that can fail. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from 'redis'
import type { Test } from 'tap'

export const hasRedis: boolean = spawnSync('redis-server', ['--version']).status === 0

/**
 * For tests that start a server; where CI promises one, its absence is a failure. Given as `{ ...needsRedis }`: tap keeps
 * the test itself in its options.
 */
export const needsRedis: Readonly<{ skip: string | false }> = Object.freeze({
  skip: !hasRedis && !process.env.CI ? 'needs redis-server, which is not installed' : false
})

export interface Redis {
  port: number
  /** `redis://127.0.0.1:port` */
  url: string
  /** Kills it without a goodbye; resolves when it is gone. */
  kill: () => Promise<void>
  /** Starts it again on the same port, killed or not. Only what is durable is still there. */
  restart: () => Promise<void>
  /** Freezes it: the system still accepts connections for it, and nothing is answered. */
  pause: () => void
  resume: () => void
}

/** A private server on a free port; `durable` keeps each write on disk before it is answered. */
export async function startRedis (t: Test, { durable = false }: { durable?: boolean } = {}): Promise<Redis> {
  const dir = await mkdtemp(join(tmpdir(), 'hybrid-auth-redis-'))
  const port = await freePort()
  let child: ChildProcess | null = null
  const kill = async () => { if (child !== null) await killed(child) }
  const start = async () => {
    child = spawn('redis-server', [
      '--port', String(port), '--bind', '127.0.0.1', '--dir', dir, '--save', '',
      '--appendonly', durable ? 'yes' : 'no', '--appendfsync', 'always'
    ], { stdio: ['ignore', 'pipe', 'inherit'] })
    await answering(child, port)
  }
  t.teardown(async () => {
    await kill()
    await rm(dir, { recursive: true, force: true })
  })
  await start()
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    kill,
    async restart () {
      await kill()
      await start()
    },
    pause () { child?.kill('SIGSTOP') },
    resume () { child?.kill('SIGCONT') }
  }
}

/** Kills a process, frozen or not, and waits until it is gone. */
export async function killed (child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = once(child, 'exit')
  child.kill('SIGKILL')
  await gone
}

async function answering (child: ChildProcess, port: number): Promise<void> {
  let printed = ''
  child.stdout?.on('data', (chunk: Buffer) => { printed += chunk.toString() })
  const ended = new Promise<never>((_resolve, reject) => {
    child.once('error', reject)
    child.once('exit', () => { reject(new Error(`redis-server ended before it answered: ${printed}`)) })
  })
  // It ends some day, and nobody may be waiting any more.
  ended.catch(() => {})
  while (!await Promise.race([ping(port), ended])) await sleep(10)
}

/** Whether a server answers; one that still loads its data does not. */
function ping (port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.write('PING\r\n') })
    socket.setTimeout(1000, () => { socket.destroy() })
    socket.on('data', chunk => {
      resolve(chunk.toString().startsWith('+PONG'))
      socket.destroy()
    })
    socket.on('error', () => {})
    socket.on('close', () => { resolve(false) })
  })
}

/** From below what systems hand out to clients, so that nobody is given the port while the server is down. */
async function freePort (): Promise<number> {
  for (;;) {
    const port = randomInt(20_000, 32_000)
    const server = net.createServer()
    const isFree = await new Promise<boolean>(resolve => {
      server.once('error', () => { resolve(false) })
      server.listen(port, '127.0.0.1', () => { server.close(() => { resolve(true) }) })
    })
    if (isFree) return port
  }
}

export interface Proxy {
  port: number
  /** `redis://127.0.0.1:port` */
  url: string
  /** Ends every connection and each new one at once. */
  cut: () => void
  heal: () => void
  /** Every connection stays open, new ones too, and not a byte passes. */
  stall: () => void
  /** Goes on where it stopped. */
  flow: () => void
}

interface Link { near: net.Socket, far: net.Socket }

/** A network to a port of this machine. */
export async function startProxy (t: Test, port: number): Promise<Proxy> {
  const links = new Set<Link>()
  let isCut = false
  let isStalled = false

  const pass = ({ near, far }: Link) => {
    // What ended while nothing passed is made known now.
    if (near.destroyed) far.destroySoon()
    else near.pipe(far)
    if (far.destroyed) near.destroySoon()
    else far.pipe(near)
  }
  const cut = () => {
    isCut = true
    for (const { near, far } of links) {
      near.destroy()
      far.destroy()
    }
    links.clear()
  }

  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, near => {
    near.on('error', () => {})
    if (isCut) {
      near.destroy()
      return
    }
    const far = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
    far.on('error', () => {})
    const link = { near, far }
    links.add(link)
    for (const [one, other] of [[near, far], [far, near]] as const) {
      one.on('close', () => {
        if (other.destroyed) links.delete(link)
        else if (!isStalled) other.destroySoon()
      })
    }
    if (!isStalled) pass(link)
  })
  t.teardown(() => {
    cut()
    server.close()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the proxy does not listen on a port')

  return {
    port: address.port,
    url: `redis://127.0.0.1:${address.port}`,
    cut,
    heal () { isCut = false },
    stall () {
      isStalled = true
      for (const { near, far } of links) {
        near.unpipe()
        far.unpipe()
      }
    },
    flow () {
      if (!isStalled) return
      isStalled = false
      for (const link of links) pass(link)
    }
  }
}

/** A connected client, which comes back whenever it is cut off. */
export async function connect (t: Test, url: string) {
  const client = createClient({ url, socket: { reconnectStrategy: () => 100 } })
  client.on('error', () => {})
  t.teardown(() => { if (client.isOpen) client.destroy() })
  await client.connect()
  return client
}
