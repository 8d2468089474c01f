/** A Redis server of our own: on a free port, in a temporary directory, and nothing of it stays. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** @throws an error with the code ENOENT where redis-server is not installed */
export async function startRedis () {
  const dir = await mkdtemp(join(tmpdir(), 'hybrid-auth-'))
  const port = await freePort()
  // Ctrl+C goes to all processes of a terminal's group. This one ends after those that need it.
  const child = spawn('redis-server', ['--port', port, '--bind', '127.0.0.1', '--dir', dir, '--save', '', '--appendonly', 'no'],
    { detached: true, stdio: ['ignore', 'pipe', 'inherit'] })
  let isGone = false
  const gone = new Promise(resolve => { child.once('close', resolve) }).then(() => { isGone = true })
  const end = () => {
    if (!isGone) child.kill()
    rmSync(dir, { recursive: true, force: true })
  }
  process.on('exit', end)

  const stop = async () => {
    child.kill()
    await gone
    end()
    process.off('exit', end)
  }
  try {
    await answering(child)
  } catch (error) {
    end()
    throw error
  }
  return { url: `redis://127.0.0.1:${port}`, port, gone, stop }
}

function answering (child) {
  return new Promise((resolve, reject) => {
    let printed = ''
    child.stdout.on('data', chunk => {
      printed += chunk
      if (printed.includes('Ready to accept connections')) resolve()
    })
    child.once('error', reject)
    child.once('exit', () => { reject(new Error(`redis-server ended: ${printed}`)) })
  })
}

async function freePort () {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
