/** One port for several nodes: connections go to them in turn, and past a node that does not answer. It reads nothing of them. */
import net from 'node:net'

/** @param ports of the nodes, on the same host */
export async function startBalancer ({ host, port, ports }) {
  const open = new Set()
  let turn = 0

  const server = net.createServer({ pauseOnConnect: true, noDelay: true }, client => {
    connect(client, turn++, ports.length)
  })

  function connect (client, index, tries) {
    const node = net.connect({ host, port: ports[index % ports.length], noDelay: true })
    const end = () => {
      open.delete(client)
      client.destroy()
      node.destroy()
    }
    const next = () => {
      node.destroy()
      if (tries > 1 && !client.destroyed) connect(client, index + 1, tries - 1)
      else client.destroy()
    }
    node.once('error', next)
    node.once('connect', () => {
      node.off('error', next)
      open.add(client)
      for (const socket of [client, node]) socket.on('error', end).on('close', end)
      client.pipe(node).pipe(client)
    })
    client.once('error', () => { client.destroy() })
  }

  await new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, resolve)
  })
  return {
    port: server.address().port,
    /** Behind the nodes, which say goodbye first. */
    stop () {
      server.close()
      for (const client of open) client.destroy()
    }
  }
}
