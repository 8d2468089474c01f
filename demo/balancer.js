/**
 * One port for several nodes: connections go to them in turn, and past a node that does not answer. It reads nothing of them, so
 * for the nodes every client has its address: limits for one address are for all. One that is to be used tells whose a connection
 * is (PROXY, X-Forwarded-For), and the nodes believe nobody else (Fastify's `trustProxy`).
 */
import net from 'node:net'
import { watchNodes } from './health.js'

/** Clients at the same time. */
const MOST = 1000

/** @param ports of the nodes, on the same host @param interval of health.js */
export async function startBalancer ({ host, port, ports, interval, most = MOST }) {
  /** Of each node: what ends its connections. */
  const open = ports.map(() => new Set())
  const endAll = i => { for (const end of open[i]) end() }
  const health = watchNodes({ host, ports, interval, lost: endAll })
  let turn = 0

  // Half open: who has said all that it has to say is answered all the same.
  const server = net.createServer({ pauseOnConnect: true, noDelay: true, allowHalfOpen: true }, client => {
    const inTurn = ports.map((_, i) => (turn + i) % ports.length)
    turn++
    connect(client, [...inTurn.filter(health.answers), ...inTurn.filter(i => !health.answers(i))])
  })
  server.maxConnections = most

  function connect (client, [i, ...others]) {
    const node = net.connect({ host, port: ports[i], noDelay: true })
    const end = () => {
      open[i].delete(end)
      client.destroy()
      node.destroy()
    }
    const next = () => {
      node.destroy()
      if (others.length > 0 && !client.destroyed) connect(client, others)
      else client.destroy()
    }
    node.once('error', next)
    node.once('connect', () => {
      node.off('error', next)
      if (client.destroyed) return node.destroy()
      open[i].add(end)
      for (const socket of [client, node]) socket.on('error', end)
      client.on('close', end)
      // What it said before goes out first.
      node.on('close', () => { client.destroySoon() })
      client.pipe(node).pipe(client)
    })
    client.once('error', () => { client.destroy() })
  }

  await new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, resolve)
  }).catch(error => {
    health.stop()
    throw error
  })
  return {
    port: server.address().port,
    /** Behind the nodes, which say goodbye first. */
    stop () {
      health.stop()
      server.close()
      for (const i of ports.keys()) endAll(i)
    }
  }
}
