// The client as it was built, in a process of its own; test/browser-node.test.ts starts it and waits for its end.
const { url, token, module, until } = JSON.parse(process.env.PLAN)

const { createAuthSocket } = await import(`../dist/${module}/lib/client/index.js`)
const isGlobal = typeof WebSocket === 'function'
const given = isGlobal ? {} : { WebSocket: (await import('ws')).WebSocket }
const told = { isGlobal, open: [], messages: [], close: [] }

const client = createAuthSocket({ url, getToken: () => token, ...given })
client.on('open', event => { told.open.push(event) })
client.on('close', event => { told.close.push(event) })
client.on('state', state => { if (state === until) client.close() })
if (until === undefined) {
  client.join('feed')
  client.on('joined', () => { client.send('echoed') })
  for await (const message of client) {
    told.messages.push(message.data)
    if (told.messages.includes('echoed')) client.close()
  }
}
const ended = performance.now()
// Whatever is left of the client keeps the process.
process.on('exit', () => { console.log(JSON.stringify({ ...told, state: client.state, took: performance.now() - ended })) })
