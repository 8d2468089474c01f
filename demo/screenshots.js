/** Pictures of the dashboard for the documentation: `node demo/screenshots.js [directory] [dark]`, after a build, with a Chromium. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'
import { buildDemo, HOST } from './server.js'

const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium-headless-shell'
const [directory = fileURLToPath(new URL('../docs/images', import.meta.url)), colorScheme = 'light'] = process.argv.slice(2)
const WIDE = { width: 1200, height: 900 }
const PHONE = { width: 390, height: 844 }
/** So that there is something to see: the numbered stream has come so far. */
const RUNS_TO = 9

const { app, logins } = await buildDemo({ tokenLifetime: 12 })
await app.listen({ host: HOST, port: 0 })
const origin = `http://${HOST}:${app.server.address().port}`
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] })
try {
  await mkdir(directory, { recursive: true })
  const guest = await (await browser.newContext({ viewport: PHONE, colorScheme, reducedMotion: 'reduce' })).newPage()
  await guest.goto(origin)
  for (let i = 0; i < 2; i++) await guest.getByRole('button', { name: 'Try a bad token' }).click()
  const bob = await enter('bob', 'Sign in with a session', WIDE)
  const carol = await enter('carol', 'Sign in with tokens', PHONE)
  const alice = await enter('alice', 'Sign in with tokens', PHONE)
  const root = await enter('root', 'Sign in with tokens', WIDE)
  // A refusal and an end, for the charts and the log.
  await bob.getByRole('button', { name: 'Disconnect' }).click()
  await bob.getByRole('button', { name: 'Try a bad token' }).click()
  await bob.getByRole('button', { name: 'Connect', exact: true }).click()
  await carol.getByRole('button', { name: 'Sign out' }).click()
  await root.locator('#feed b', { hasText: `#${RUNS_TO}` }).waitFor()
  await bob.getByLabel('Tell the room').fill('Viewing of 3 Mill Lane moved to noon')
  await bob.getByRole('button', { name: 'Publish' }).click()
  await root.locator('#feed li[data-kind="said"]').waitFor()
  await root.locator('#feed b', { hasText: `#${RUNS_TO + 3}` }).waitFor()
  await root.getByText(/^Context replaced/).waitFor()
  for (const [name, page] of [['wide', root], ['phone', alice]]) {
    await page.screenshot({ path: join(directory, `dashboard-${name}.png`), fullPage: name === 'wide' })
  }
} finally {
  await browser.close()
  await app.close()
}

async function enter (username, how, viewport) {
  const page = await (await browser.newContext({ viewport, colorScheme, reducedMotion: 'reduce' })).newPage()
  await page.goto(origin)
  await page.getByLabel('User name').fill(username)
  await page.getByLabel('Password').fill(logins.find(login => login.username === username).password)
  await page.getByRole('button', { name: how }).click()
  await page.getByText('In the room', { exact: true }).waitFor()
  return page
}
