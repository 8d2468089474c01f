/** Processes of one application, each with its own memory, as a load balancer would spread clients over them. */
import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import type { HybridAuthOptions } from '../lib/index.js'
import { killed } from './redis.js'

const PROGRAM = fileURLToPath(new URL('node-process.js', import.meta.url))

/** Without what makes tap measure a child process. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))

/** Everything goes through JSON, so there is no function in it. */
export interface NodeOptions {
  redisUrl: string
  /** Of the tokens. @default `SECRET` of helpers.ts */
  secret?: string
  /** Of `redisCluster`. */
  cluster?: Record<string, unknown>
  /** Of the plugin, members of `jwt` and `session` beside those that the program sets. */
  auth?: Partial<Omit<HybridAuthOptions, 'jwt' | 'session' | 'cluster' | 'audit'>> & {
    jwt?: Partial<NonNullable<HybridAuthOptions['jwt']>>
    session?: Partial<NonNullable<HybridAuthOptions['session']>>
  }
}

/** `body` is parsed where it is JSON. */
export interface NodeAnswer { status: number, headers: Headers, body: unknown }

export interface AppNode {
  port: number
  /** `127.0.0.1:port` */
  host: string
  pid: number
  /** `cluster_lost` and `cluster_recovered`, as they came. */
  events: Array<Record<string, unknown>>
  /** What it wrote to stderr. */
  errors: () => string
  /** Kills it without a goodbye; resolves when it is gone. */
  kill: () => Promise<void>
  /** Freezes it. */
  pause: () => void
  resume: () => void
  post: (path: string, body?: unknown, headers?: Record<string, string>) => Promise<NodeAnswer>
  get: (path: string, headers?: Record<string, string>) => Promise<NodeAnswer>
}

/** Starts test/node-process.js and waits until it listens. */
export async function startNode (t: Test, options: NodeOptions): Promise<AppNode> {
  const child = fork(PROGRAM, {
    execArgv: [],
    env: { ...ENV, NODE_OPTIONS_JSON: JSON.stringify(options) },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc']
  })
  t.teardown(() => killed(child))
  let errors = ''
  child.stderr?.on('data', (chunk: Buffer) => { errors += chunk.toString() })
  const events: AppNode['events'] = []
  const port = await new Promise<number>((resolve, reject) => {
    child.on('message', message => {
      const { port, event } = message as { port?: number, event?: Record<string, unknown> }
      if (port !== undefined) resolve(port)
      if (event !== undefined) events.push(event)
    })
    child.once('error', reject)
    // Not at `exit`, after which there may be more to read.
    child.once('close', code => { reject(new Error(`the process ended with ${code ?? 'a signal'}: ${errors}`)) })
  })
  const host = `127.0.0.1:${port}`

  return {
    port, host, events,
    pid: child.pid ?? 0,
    errors: () => errors,
    kill: () => killed(child),
    pause () { child.kill('SIGSTOP') },
    resume () { child.kill('SIGCONT') },
    post: (path, body, headers = {}) => ask(host + path, body === undefined
      ? { method: 'POST', headers }
      : { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) }),
    get: (path, headers = {}) => ask(host + path, { headers })
  }
}

async function ask (address: string, init: RequestInit): Promise<NodeAnswer> {
  const response = await fetch(`http://${address}`, init)
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.startsWith('application/json') === true
  return { status: response.status, headers: response.headers, body: isJson ? JSON.parse(text) as unknown : text }
}
