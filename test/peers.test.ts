/** Servers and clients that others wrote, on guarded routes that they know nothing of. */
import { GraphQLInt, GraphQLNonNull, GraphQLObjectType, GraphQLSchema, GraphQLString } from 'graphql'
import { createClient, type Client } from 'graphql-ws'
import { makeHandler } from 'graphql-ws/use/@fastify/websocket'
import t, { type Test } from 'tap'
import { WebSocket as UndiciSocket } from 'undici'
import { WebSocket } from 'ws'
import type { RouteRule } from '../lib/index.js'
import { goodToken, inSeconds } from './helpers.js'
import { deferred, type Served } from './stores.js'
import { authFrame, connect, connected, connectionOf, Inbox, numbered, serveLive, streamOf, turn, updateFrame, type Closed, type ServerSocket } from './wire.js'

const NAME = 'hybrid-auth.v1'
const GRAPHQL = 'graphql-transport-ws'
const parse = (text: string): unknown => JSON.parse(text)

interface Operation { readonly extra: { readonly request: { readonly auth: { readonly userId: string, readonly version: number } } } }

const nonNull = new GraphQLNonNull(GraphQLInt)
const schema = new GraphQLSchema({
  query: new GraphQLObjectType<unknown, Operation>({
    name: 'Query',
    fields: { me: { type: GraphQLString, resolve: (_root, _args, { extra }) => extra.request.auth.userId } }
  }),
  subscription: new GraphQLObjectType<unknown, Operation>({
    name: 'Subscription',
    fields: {
      count: {
        type: GraphQLInt,
        args: { to: { type: nonNull } },
        async * subscribe (_root, { to }: { to: number }) {
          for (let count = 0; count < to; count++) {
            await turn()
            yield { count }
          }
        }
      }
    }
  })
})

/** A graphql-ws server on a guarded route, which declares what a library cannot know of. */
function graphqlServer (t: Test, rule: RouteRule = {}, isLate = false): Promise<Served> {
  const handler = makeHandler({ schema, context: operation => operation })
  return serveLive(t, {
    rule: { control: true, ...rule },
    async handler (socket, request) {
      if (isLate) for (let i = 0; i < 5; i++) await turn()
      await handler.call(request.server, socket, request)
    }
  })
}

interface GraphqlPeer { client: Client, closed: Promise<Closed>, messages: string[] }

/** The client of graphql-ws, and every frame that it saw. */
function graphqlClient (t: Test, host: string, token = goodToken()): GraphqlPeer {
  const messages: string[] = []
  const closed = deferred<Closed>()
  class SocketWithToken extends WebSocket {
    constructor (url: string, protocols: string[]) {
      super(url, protocols, { headers: { authorization: `Bearer ${token}` } })
      this.on('message', (data: Buffer) => { messages.push(data.toString()) })
      this.on('close', (code, reason) => { closed.resolve({ code, reason: reason.toString() }) })
    }
  }
  const client = createClient({ url: `ws://${host}/live`, webSocketImpl: SocketWithToken, retryAttempts: 0, lazy: true })
  t.teardown(() => { client.terminate() })
  return { client, closed: closed.promise, messages }
}

async function all (client: Client, query: string): Promise<unknown[]> {
  const results: unknown[] = []
  for await (const { data, errors } of client.iterate({ query })) results.push(errors ?? data)
  return results
}

const ofGraphql = new Set(['connection_ack', 'next', 'complete', 'ping', 'pong', 'error'])
const typesOf = (messages: string[]) => messages.map(message => (parse(message) as { type: string }).type)

t.test('graphql-ws serves its own client, with the identity of the handshake', async t => {
  const rules: RouteRule[] = [{}, { authorize: () => true }, { authorize: async () => { await turn(); return true } }]
  for (const rule of rules) {
    for (const isLate of [false, true]) {
      const { host } = await graphqlServer(t, rule, isLate)
      const { client, messages } = graphqlClient(t, host)
      t.match(await all(client, '{ me }'), [{ me: 'alice' }])
      const counted = await Promise.all([all(client, 'subscription { count(to: 50) }'), all(client, 'subscription { count(to: 30) }')])
      t.strictSame(counted.map(results => results.map(result => (result as { count: number }).count)), [numbered(50).map(Number), numbered(30).map(Number)])
      t.ok(typesOf(messages).every(type => ofGraphql.has(type)), 'and never a frame of ours')
    }
  }
})

t.test('graphql-ws is gated by message: a refused operation never reaches it', async t => {
  const authorize: RouteRule['authorize'] = async (_auth, message) => {
    await turn()
    const { type, payload } = message.json() as { type: string, payload?: { query?: string } }
    return type !== 'subscribe' || payload?.query?.includes('subscription') !== true
  }
  const kept = await graphqlServer(t, { authorize })
  const one = graphqlClient(t, kept.host)
  let results = 0
  const stop = one.client.subscribe({ query: 'subscription { count(to: 3) }' }, { next () { results++ }, error () {}, complete () {} })
  t.match(await all(one.client, '{ me }'), [{ me: 'alice' }], 'the socket stays')
  stop()
  t.equal(results, 0)
  t.ok(typesOf(one.messages).every(type => ofGraphql.has(type)))

  const closing = await graphqlServer(t, { authorize, onRefused: 'close' })
  const two = graphqlClient(t, closing.host)
  await t.rejects(all(two.client, 'subscription { count(to: 3) }'), { code: 4007 })
  t.strictSame(await two.closed, { code: 4007, reason: '{"code":"forbidden","action":"stop","retryAfterMs":0}' })
  t.ok(typesOf(two.messages).every(type => ofGraphql.has(type)))
})

t.test('graphql-ws is closed by code when its credential ends, is disconnected or is refused', async t => {
  const { app, host } = await graphqlServer(t)
  const one = graphqlClient(t, host, goodToken({ exp: inSeconds(2) }))
  const two = graphqlClient(t, host)
  const endless = 'subscription { count(to: 1000000000) }'
  const ends = [t.rejects(all(one.client, endless), { code: 4002 }), t.rejects(all(two.client, endless), { code: 4006 })]
  t.match(await one.closed, { code: 4002 })
  await app.hybridAuth.disconnect({ userId: 'alice' })
  t.match(await two.closed, { code: 4006 })
  await Promise.all(ends)
  for (const { messages } of [one, two]) t.ok(typesOf(messages).every(type => ofGraphql.has(type)))
  const { client } = graphqlClient(t, host, 'x.y.z')
  await t.rejects(all(client, '{ me }'))
  t.equal(app.hybridAuth.count(), 0)
})

t.test('a server of shared documents, as y-websocket is one, relays every update in order', async t => {
  const rooms = new Set<ServerSocket>()
  const { host } = await serveLive(t, {
    rule: {
      async authorize (auth, message) {
        await turn()
        return message.isBinary && (message.data[0] !== 1 || auth.permissions.includes('write'))
      }
    },
    async handler (socket) {
      socket.binaryType = 'arraybuffer'
      await turn()
      rooms.add(socket)
      socket.on('close', () => { rooms.delete(socket) })
      socket.on('message', (data: ArrayBuffer) => {
        for (const other of rooms) if (other !== socket && other.readyState === other.OPEN) other.send(new Uint8Array(data))
      })
      socket.send(new Uint8Array([0]))
    }
  })
  const join = async (permissions: string[]) => {
    const peer = connect(t, host, { token: goodToken({ permissions }) })
    const updates = new Inbox<string>()
    peer.socket.on('message', (data: Buffer) => { updates.push(data.toString('latin1')) })
    await peer.opened
    return { ...peer, updates }
  }
  const [writer, reader] = [await join(['write']), await join([])]
  await Promise.all([writer.heard.reach(1), reader.heard.reach(1)])
  const updates = Array.from({ length: 200 }, (_, at) => Buffer.concat([Buffer.from([1, at]), Buffer.alloc(at * 20, at)]))
  writer.send(...updates)
  reader.send(Buffer.from([1, 99]), 'text', Buffer.from([2, 7]))
  await Promise.all([writer.updates.reach(2), reader.updates.reach(201)])
  t.strictSame(reader.updates.all.slice(1), updates.map(update => update.toString('latin1')))
  t.strictSame(writer.updates.all.slice(1), [Buffer.from([2, 7]).toString('latin1')], 'what a reader may not write reaches nobody')
})

t.test('a stream that is piped into itself echoes every byte, and its end', async t => {
  const ended = deferred<undefined>()
  const { host } = await serveLive(t, {
    rule: { authorize: async () => { await turn(); return true } },
    async handler (socket) {
      await turn()
      const stream = streamOf(socket)
      stream.pipe(stream)
      stream.on('end', () => { ended.resolve(undefined) })
      // The peer may be gone before the last echo.
      stream.on('error', () => {})
    }
  })
  const peer = await connected(t, host)
  const sent = numbered(300).map(one => `${one},`.padEnd(Number(one) * 5, '.'))
  peer.send(...sent)
  await peer.heard.reach(300)
  t.equal(peer.heard.all.join(''), sent.join(''))
  peer.socket.close(1000)
  await peer.closed
  await ended.promise
})

/** A client of either make, by what both have. */
interface AnySocket {
  readonly protocol: string
  readonly socket: { send: (text: string) => void, close: () => void }
  readonly heard: Inbox<string>
  readonly closed: Promise<Closed>
}

interface Dial { protocols?: string[], headers?: Record<string, string> }

const clients: Array<[string, (t: Test, host: string, how?: Dial) => Promise<AnySocket>]> = [
  ['ws', async (t, host, { protocols = [], headers = {} } = {}) => {
    const peer = await connected(t, host, { protocols, headers, token: null })
    return { ...peer, protocol: peer.socket.protocol }
  }],
  ['undici, which is Node\'s own', async (t, host, { protocols = [], headers = {} } = {}) => {
    const socket = new UndiciSocket(`ws://${host}/live`, { protocols, headers })
    t.teardown(() => { socket.close() })
    const heard = new Inbox<string>()
    const closed = deferred<Closed>()
    socket.addEventListener('message', ({ data }) => { heard.push(String(data)) })
    socket.addEventListener('close', ({ code, reason }) => { closed.resolve({ code, reason }) })
    await new Promise<unknown>((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', reject)
    })
    return { protocol: socket.protocol, socket, heard, closed: closed.promise }
  }]
]

/** Sends numbers without end, and says whose they are. */
function stream (socket: ServerSocket): void {
  let sent = 0
  const timer = setInterval(() => { socket.send(`n${sent++}`) }, 5)
  socket.on('close', () => { clearInterval(timer) })
  socket.on('message', (data: Buffer) => { socket.send(`echo ${data.toString()}`) })
}

for (const [what, dial] of clients) {
  t.test(`${what}: every way to bring a credential works`, async t => {
    const { host } = await serveLive(t, { rule: { firstMessage: true } })
    const ways: Dial[] = [{ headers: { authorization: `Bearer ${goodToken()}` } }, { protocols: [NAME, `bearer.${goodToken()}`] }, { protocols: ['chat', `bearer.${goodToken()}`] }]
    for (const way of ways) {
      const { protocol, socket, heard } = await dial(t, host, way)
      t.equal(protocol, way.protocols?.[0] ?? '')
      socket.send('hello')
      t.equal(await heard.next(), 'hello')
    }
    const { socket, heard } = await dial(t, host)
    socket.send(authFrame(goodToken()))
    socket.send('hello')
    t.match(parse(await heard.next()), { type: 'auth_success', user: { id: 'alice' } })
    t.equal(await heard.next(), 'hello')
  })

  t.test(`${what}: a refusal is told by its code`, async t => {
    const { host } = await serveLive(t, { rule: { firstMessage: { timeout: 150 } } })
    const stop = (code: string) => `{"code":"${code}","action":"stop","retryAfterMs":0}`
    t.strictSame(await (await dial(t, host, { protocols: [NAME, 'bearer.x.y.z'] })).closed, { code: 4001, reason: stop('authentication_failed') })
    t.strictSame(await (await dial(t, host)).closed, { code: 4010, reason: stop('authentication_timeout') })
    const peer = await dial(t, host)
    peer.socket.send(authFrame(7))
    t.strictSame(await peer.closed, { code: 4013, reason: stop('protocol_error') })
    await t.rejects(dial(t, host, { headers: { authorization: 'Bearer x.y.z' } }))
  })

  t.test(`${what}: a refresh in-band keeps a numbered stream without a gap past the end of the first token`, async t => {
    const { app, host } = await serveLive(t, { handler: stream, auth: { expiryGrace: 0 } })
    const end = Date.now() + 2000
    const { socket, heard, closed } = await dial(t, host, { protocols: [NAME, `bearer.${goodToken({ exp: Math.floor(end / 1000) })}`] })
    await heard.reach(5)
    socket.send(updateFrame(goodToken({ exp: inSeconds(300) })))
    socket.send('still here')
    while (Date.now() < end + 300) await heard.reach(heard.all.length + 1)
    const numbers = heard.all.filter(text => text.startsWith('n'))
    t.strictSame(numbers, numbers.map((_, at) => `n${at}`))
    t.match(heard.all.filter(text => text.startsWith('{')).map(parse), [{ type: 'auth_updated' }])
    t.ok(heard.all.includes('echo still here'))
    t.equal(app.hybridAuth.connections()[0]?.context.version, 2)
    await app.hybridAuth.disconnect({})
    t.match(await closed, { code: 4006 })
    t.match(parse(heard.all.at(-1) ?? ''), { type: 'bye', code: 'revoked' })
  })
}

t.test('the connection of a socket is the one that its library was given', async t => {
  const found = new Inbox<string>()
  const { app, host } = await serveLive(t, { handler (socket, request) { found.push(connectionOf(request.server, socket).context.userId) } })
  const peer = await connected(t, host, { protocols: [GRAPHQL] })
  t.equal(peer.socket.protocol, GRAPHQL)
  t.equal(await found.next(), 'alice')
  t.equal(app.hybridAuth.count({ userId: 'alice' }), 1)
})
