/** How a process of the demo ends: answers that are under way are given, and nothing keeps it for ever. */

/** For answers that are under way, in milliseconds. A request of which half was sent would be waited for without end. */
const ANSWERS = 2000
/** For everything. */
const ALL = 10_000

/** To be called before the application is ready. */
export function closeInTime (app) {
  app.addHook('preClose', async () => { setTimeout(() => app.server.closeAllConnections(), ANSWERS).unref() })
}

/** Whatever still is not over by then. */
export function exitInTime () {
  setTimeout(() => process.exit(1), ALL).unref()
}

/** @returns when the child is gone: by itself, or as one that does not hear */
export function stopInTime (child, gone) {
  child.kill()
  const timer = setTimeout(() => {
    process.exitCode = 1
    child.kill('SIGKILL')
  }, ALL + ANSWERS)
  return gone.finally(() => { clearTimeout(timer) })
}
