/** The demo as a process of its own, what it printed, and a browser to look at it. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { chromium, type Browser, type Page } from 'playwright-core'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import { eventually } from './live.js'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))
const CHROMIUM = '/usr/bin/chromium-headless-shell'
const READY = '# Ctrl+C'
export const PHONE = { width: 390, height: 844 }
export const DESKTOP = { width: 1280, height: 900 }

/** Without what makes tap measure a child process. */
export const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*)$/.test(name)))

export type Who = 'alice' | 'bob' | 'carol' | 'root'

export interface Demo {
  child: ChildProcess
  /** `http://127.0.0.1:port`, where the page is. */
  origin: string
  host: string
  /** Of each node. */
  nodes: string[]
  redisPort: number
  passwords: Record<Who, string>
  /** Everything so far. */
  printed: () => string
}

/** Where its temporary directory goes is the test's own directory. */
export async function startDemo (t: Test, program = 'demo/server.js', env: NodeJS.ProcessEnv = {}): Promise<Demo> {
  const child = spawn(process.execPath, [program], {
    cwd: ROOT, env: { ...ENV, PORT: '0', TMPDIR: t.testdir(), ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: true
  })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill()
    await once(child, 'exit')
  })
  let text = ''
  await new Promise<void>((resolve, reject) => {
    const keep = (chunk: Buffer) => {
      text += chunk.toString()
      if (text.includes(READY)) resolve()
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.on('exit', code => { reject(new Error(`the demo ended with ${code ?? 'a signal'}: ${text}`)) })
  })
  const originsIn = (line: RegExp) => [...(line.exec(text)?.[0] ?? '').matchAll(/http:\/\/127\.0\.0\.1:\d+/g)].map(([origin]) => origin)
  const [origin = ''] = originsIn(/^# Or open.*$/m)
  const nodes = originsIn(/^# The nodes by themselves.*$/m)
  const passwordOf = (name: string) => new RegExp(`^# {3}${name} (\\S+)`, 'm').exec(text)?.[1] ?? ''
  return {
    child, origin,
    host: origin.replace('http://', ''),
    nodes: nodes.length === 0 ? [origin] : nodes,
    redisPort: Number(/redis-cli -p (\d+)/.exec(text)?.[1]),
    passwords: { alice: passwordOf('alice'), bob: passwordOf('bob'), carol: passwordOf('carol'), root: passwordOf('root') },
    printed: () => text
  }
}

export function post (address: string, body: unknown, headers: Record<string, string> = {}) {
  return fetch(address, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) })
}

export function memberOf (value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined
}

export function textOf (value: unknown, name: string): string {
  const text = memberOf(value, name)
  return typeof text === 'string' ? text : ''
}

export function listOf (value: unknown, name: string): unknown[] {
  const list = memberOf(value, name)
  return Array.isArray(list) ? list as unknown[] : []
}

/** The value of a cookie that an answer sets, and what else it says of it. */
export function cookieIn (answer: Response, name: string): { value: string, attributes: string } {
  const line = answer.headers.getSetCookie().find(cookie => cookie.startsWith(`${name}=`)) ?? ''
  const [pair = '', ...attributes] = line.split('; ')
  return { value: pair.slice(name.length + 1), attributes: attributes.join('; ') }
}

export async function tokensOf (origin: string, username: Who, password: string) {
  const answer = await post(`${origin}/token`, { username, password })
  return { token: textOf(await answer.json(), 'access_token'), refresh: cookieIn(answer, 'refresh') }
}

export const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

export async function bearerOf (origin: string, username: Who, password: string) {
  return bearer((await tokensOf(origin, username, password)).token)
}

/** To send it. */
export async function sessionOf (origin: string, username: Who, password: string, headers: Record<string, string> = {}) {
  const answer = await post(`${origin}/login`, { username, password }, headers)
  return `sessionId=${cookieIn(answer, 'sessionId').value}`
}

export interface Live { socket: WebSocket, code: Promise<unknown>, frames: unknown[] }

/** An open socket that has been greeted. */
export async function live (t: Test, origin: string, credential: { token: string } | { cookie: string }): Promise<Live> {
  const address = `${origin.replace('http', 'ws')}/live`
  const socket = 'token' in credential
    ? new WebSocket(address, ['hybrid-auth.v1', `bearer.${credential.token}`])
    : new WebSocket(address, ['hybrid-auth.v1'], { headers: { cookie: credential.cookie, origin } })
  t.teardown(() => { socket.terminate() })
  const frames: unknown[] = []
  socket.on('message', (data: Buffer) => { frames.push(JSON.parse(data.toString())) })
  const code = once(socket, 'close').then(([code]: unknown[]) => code)
  await eventually('the socket is greeted', () => frames.some(frame => memberOf(frame, 'type') === 'hello'))
  return { socket, code, frames }
}

export const refresh = (origin: string, value: string, headers: Record<string, string> = { origin }, method = 'POST') =>
  fetch(`${origin}/token/refresh`, { method, headers: { ...headers, ...value === '' ? {} : { cookie: `refresh=${value}` } } })

export async function launch (t: Test): Promise<Browser> {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']
  })
  t.teardown(() => browser.close())
  return browser
}

export const press = (page: Page, name: string) => page.getByRole('button', { name, exact: true }).click()

/** From the form to the open socket. */
export async function signIn (page: Page, name: Who, password: string, how: 'session' | 'token' = 'session') {
  await page.getByLabel('User name').fill(name)
  await page.getByLabel('Password').fill(password)
  await press(page, how === 'session' ? 'Sign in with a session' : 'Sign in with tokens')
  await page.locator('#state', { hasText: /^Open$/ }).waitFor()
}

/** The addresses and console lines of a page, and the frames that it got. */
export function watch (page: Page) {
  const seen = { urls: [] as string[], console: [] as string[], frames: [] as unknown[], numbers: [] as number[] }
  page.on('request', request => { seen.urls.push(request.url()) })
  page.on('framenavigated', frame => { seen.urls.push(frame.url()) })
  page.on('console', line => { seen.console.push(line.text()) })
  page.on('pageerror', error => { seen.console.push(error.message) })
  page.on('websocket', socket => {
    seen.urls.push(socket.url())
    socket.on('framereceived', ({ payload }) => {
      const frame: unknown = JSON.parse(String(payload))
      seen.frames.push(frame)
      const number = memberOf(memberOf(frame, 'payload'), 'number')
      if (typeof number === 'number') seen.numbers.push(number)
    })
  })
  return seen
}

/** Where CI promises a browser, its absence is a failure. */
export function browserMissing (): string | false {
  return !existsSync(CHROMIUM) && !process.env.CI ? `no browser at ${CHROMIUM}` : false
}

export function lacks (...programs: string[]): string | false {
  const folders = (process.env.PATH ?? '').split(':')
  const missing = programs.filter(program => !folders.some(folder => existsSync(`${folder}/${program}`)))
  return missing.length > 0 && !process.env.CI ? `needs ${missing.join(', ')}` : false
}
