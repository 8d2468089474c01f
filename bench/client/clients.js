/** Many clients in one process: when each of them asked for a token, and when it came back. */
import { setTimeout as delay } from 'node:timers/promises'
import { createAuthSocket } from 'fastify-hybrid-auth/client'
import { WebSocket } from 'ws'
import { answerRequests } from '../ipc.js'
import { createIssuer } from '../tokens.js'

const clients = []
const asked = []
const back = []
let tries = 0

answerRequests({
  /** @param lifetime of every token, in seconds; all of them begin now */
  async open ({ port, secret, count, lifetime }) {
    const issue = createIssuer('HS256', secret)
    const now = Math.floor(Date.now() / 1000)
    const first = Array.from({ length: count }, (_, i) => issue({ sub: `user-${i}`, iat: now, exp: now + lifetime }))
    for (const [i, token] of first.entries()) {
      const client = createAuthSocket({
        url: `ws://127.0.0.1:${port}/live`,
        WebSocket,
        getToken ({ reason }) {
          if (reason === 'connect') return token
          asked.push(performance.now())
          const iat = Math.floor(Date.now() / 1000)
          return issue({ sub: `user-${i}`, iat, exp: iat + 3600 })
        }
      })
      let begun = 0
      client.on('state', state => {
        if (state !== 'connecting') return
        tries++
        begun = performance.now()
      })
      client.on('open', () => { back.push(begun) })
      clients.push(client)
    }
    while (clients.some(({ state }) => state !== 'open')) await delay(20)
  },
  /** When they asked, in milliseconds, since this is called. */
  async refreshes ({ within }) {
    asked.length = 0
    const since = performance.now()
    await delay(within)
    return asked.map(time => time - since)
  },
  forget () {
    back.length = 0
    tries = 0
  },
  /** When all are open again: when the attempts began that came through, in milliseconds, and how many there were. */
  async reopened () {
    while (back.length < clients.length) await delay(20)
    return { back, tries }
  },
  /** CPU time in milliseconds that they cost in so many. */
  async idle ({ ms }) {
    const before = process.cpuUsage()
    await delay(ms)
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  },
  close () {
    for (const client of clients.splice(0)) client.close()
  }
})
