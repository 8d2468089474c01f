/** Question and answer between a process and its child. */
import { fork } from 'node:child_process'

/** @returns {(name: string, argument?: unknown) => Promise<any>} asks the child; it rejects with what the child threw */
export function startChild (url, execArgv = []) {
  const child = fork(url, { execArgv })
  const waiting = new Map()
  let last = 0
  child.on('message', ({ id, answer, error }) => {
    const { resolve, reject } = waiting.get(id)
    waiting.delete(id)
    if (error === undefined) resolve(answer)
    else reject(new Error(error))
  })
  child.on('exit', code => {
    for (const { reject } of waiting.values()) reject(new Error(`the child process ended with code ${code}`))
  })
  function ask (name, argument) {
    return new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject })
      child.send({ id: last, name, argument })
    })
  }
  return { ask, stop: () => { child.disconnect() } }
}

/** In the child: one function per name. The process ends with its parent. */
export function answerRequests (handlers) {
  process.on('message', ({ id, name, argument }) => {
    Promise.resolve(argument).then(handlers[name]).then(
      answer => { process.send({ id, answer }) },
      error => { process.send({ id, error: error.stack }) })
  })
  process.on('disconnect', () => { process.exit() })
}
