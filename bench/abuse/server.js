/** The servers whose handshakes are measured, each an instance of its own in one process. Never more than one is busy. */
import { setImmediate } from 'node:timers/promises'
import { tracingChannel } from 'node:diagnostics_channel'
import websocket from '@fastify/websocket'
import Fastify, { LogController } from 'fastify'
import hybridAuth from 'fastify-hybrid-auth'
import { Registry } from 'prom-client'
import { answerRequests } from '../ipc.js'

const DAY = 86_400_000
/** Past the threshold after one. */
const AT_ONCE = { max: 1, window: DAY }

/** How often somebody was told of something. */
export let told = 0
const tell = () => { told++ }
const verify = tracingChannel('fastify-hybrid-auth:verify')
const traced = { start: tell, end: tell, asyncStart: tell, asyncEnd: tell, error: tell }

// What Fastify itself says of a request is no part of it.
const logTo = level => ({ logger: { level, file: '/dev/null' }, logController: new LogController({ disableRequestLogging: true }) })

/** By name: options of the plugin, of Fastify, and what is done once it is registered. `failures` is on where nothing is said. */
const KINDS = {
  plain: {},
  twin: {},
  uncounted: { auth: { failures: false } },
  past: { auth: { failures: AT_ONCE } },
  blocked: { auth: { failures: { ...AT_ONCE, block: 'address' } } },
  audited: { auth: { audit: tell } },
  logged: { fastify: logTo('info') },
  silent: { fastify: logTo('error') },
  measured: { then: app => { app.hybridAuth.metrics(new Registry()) } },
  traced: {}
}

const apps = {}

answerRequests({
  /** @returns the ports */
  async start ({ key }) {
    for (const [name, { auth, fastify, then }] of Object.entries(KINDS)) {
      const app = Fastify(fastify)
      await app.register(websocket)
      await app.register(hybridAuth, { jwt: { key, algorithms: ['HS256'] }, ...auth })
      then?.(app)
      app.get('/live', { websocket: true }, () => {})
      await app.listen({ port: 0, host: '127.0.0.1', backlog: 4096 })
      apps[name] = app
    }
    return Object.fromEntries(Object.entries(apps).map(([name, app]) => [name, app.server.address().port]))
  },
  /** Subscribers are those of the process, and not of an instance. */
  subscribe: () => { verify.subscribe(traced) },
  unsubscribe: () => { verify.unsubscribe(traced) },
  /** The CPU time used so far, in microseconds, once the last connection is gone and what it left behind is collected. */
  async cpu () {
    while (await countConnections() > 0) await setImmediate()
    globalThis.gc({ type: 'minor' })
    const { user, system } = process.cpuUsage()
    return user + system
  }
})

async function countConnections () {
  const counts = await Promise.all(Object.values(apps).map(({ server }) => new Promise((resolve, reject) => {
    server.getConnections((error, count) => { error ? reject(error) : resolve(count) })
  })))
  return counts.reduce((sum, count) => sum + count, 0)
}
