/** The client as it was built, in Node: with the WebSocket that Node has, or with that of ws, and what is left of it in a process. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import type { AuthSocketEvents, State } from '../lib/client/index.js'
import { ENV, ROOT } from './demo-running.js'
import { goodToken } from './helpers.js'
import { startSite } from './browser-page.js'

// Processes that begin, on a machine with other work.
t.setTimeout(120_000)

interface Plan { url: string, token: string, module: 'esm' | 'cjs', until?: State }

interface Told {
  isGlobal: boolean
  open: Array<AuthSocketEvents['open']>
  messages: string[]
  close: Array<AuthSocketEvents['close']>
  state: State
  /** From the end of the client to the end of the process, in milliseconds. */
  took: number
}

/** Rejects where the process has to be ended. */
async function inProcess (plan: Plan, flags: string[] = []): Promise<Told> {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [...flags, 'test/node-client.js'], {
    cwd: ROOT, env: { ...ENV, PLAN: JSON.stringify(plan) }, timeout: 20_000
  })
  if (stderr !== '') throw new Error(stderr)
  return JSON.parse(stdout) as Told
}

const hasGlobal = 'WebSocket' in globalThis
// Node 20 has it behind a flag, and later ones can do without.
const flagsFor = (isGlobal: boolean) => isGlobal === hasGlobal ? [] : [isGlobal ? '--experimental-websocket' : '--no-experimental-websocket']

for (const module of ['esm', 'cjs'] as const) {
  for (const isGlobal of [true, false]) {
    t.test(`as ${module} with ${isGlobal ? 'the global WebSocket' : 'that of ws'} it is let in, hears, says, and the process ends after close()`, async t => {
      const site = await startSite(t)
      const url = `${site.origin.replace('http', 'ws')}/live`
      const flags = [...flagsFor(isGlobal), '--disable-warning=ExperimentalWarning']
      const told = await inProcess({ url, token: goodToken(), module }, flags)
      t.match(told, {
        isGlobal,
        open: [{ identity: { id: 'alice' }, recovered: false }],
        messages: ['jwt by subprotocol', 'echoed'],
        close: [{ code: 1000, reason: 'closed', terminal: true }],
        state: 'closed'
      })
      t.ok(told.took < 5000, 'and nothing keeps it')
      t.equal(site.upgrades(), 1)
    })
  }
}

for (const [until, says] of [['connecting', 'while it connects'], ['open', 'as soon as it is open'], ['waiting', 'while it waits to try again']] as const) {
  t.test(`a process ends where the client is closed ${says}`, async t => {
    const site = await startSite(t)
    site.isBlocked = until === 'waiting'
    const told = await inProcess({ url: `${site.origin.replace('http', 'ws')}/live`, token: goodToken(), module: 'esm', until })
    t.match(told.close.at(-1), { code: 1000, reason: 'closed', terminal: true })
    t.equal(told.state, 'closed')
    t.ok(told.took < 8000)
  })
}
