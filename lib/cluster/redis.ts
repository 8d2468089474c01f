/** `fastify-hybrid-auth/redis`: many processes, through one Redis. */
import * as v from 'valibot'
import { invalidOption } from '../errors.js'
import { DAY, oneOf, parse, text, within } from '../schema.js'
import type { ClusterDriver, OnClusterLoss } from './cluster.js'
import { createCodec } from './command.js'
import type { RedisClient } from './redis-client.js'
import { RedisNode } from './redis-node.js'

export interface RedisClusterOptions {
  /** What the names of all keys begin with. Nodes with the same prefix are one cluster. @default 'hybrid-auth' */
  prefix?: string | undefined
  /**
   * Signs what nodes tell each other, and tickets; the same on all nodes, at least 32 characters. Without it whoever can
   * write to Redis can order a revocation, or forge a ticket. Of a list the first signs and each is accepted, for rotation.
   * @default none
   */
  secret?: string | Buffer | ReadonlyArray<string | Buffer>
  /**
   * What happens while Redis cannot be reached: nothing, new sockets are refused, or open ones are closed as well.
   * @default 'refuse-new'
   */
  onClusterLoss?: OnClusterLoss | undefined
  /** How long after the loss that happens, in milliseconds. @default 30000 */
  clusterLossDelay?: number | undefined
  /** When a node that is not heard of counts as gone and its connections no longer count, in milliseconds. @default 15000 */
  nodeTimeout?: number | undefined
  /** How long an answer of Redis, or of another node, is waited for, in milliseconds. @default 2000 */
  timeout?: number | undefined
}

const MIN_SECRET = 32
const SECRET = `must be a secret of at least ${MIN_SECRET} characters, or a list of them`
const isSecret = (given: unknown) => (typeof given === 'string' || Buffer.isBuffer(given)) && given.length >= MIN_SECRET

const schema = v.strictObject({
  prefix: v.optional(text('the beginning of key names'), 'hybrid-auth'),
  secret: v.optional(v.union([
    v.pipe(v.custom<string | Buffer>(isSecret, SECRET), v.transform(one => [one])),
    v.pipe(v.array(v.custom<string | Buffer>(isSecret, SECRET)), v.nonEmpty(SECRET))
  ], SECRET)),
  onClusterLoss: v.optional(oneOf(['serve', 'refuse-new', 'close']), 'refuse-new'),
  clusterLossDelay: v.optional(within(0, DAY, 'milliseconds'), 30_000),
  nodeTimeout: v.optional(within(500, 600_000, 'milliseconds'), 15_000),
  timeout: v.optional(within(50, 60_000, 'milliseconds'), 2000)
}, 'must be an object')

/**
 * The `cluster` option for many processes.
 * @param client connected, of node-redis 5 or newer; a second connection is made of it for reading, and closed with the
 * application. The client itself stays the caller's.
 * @throws FST_HYBRID_AUTH_INVALID_OPTION
 */
export function redisCluster (client: RedisClient, options: RedisClusterOptions = {}): ClusterDriver {
  if (!isClient(client)) throw invalidOption('cluster.client', 'must be a client of node-redis 5 or newer')
  // A variable of the environment that is not set must not turn signing off.
  if (Object.hasOwn(options, 'secret') && Reflect.get(options, 'secret') === undefined) throw invalidOption('cluster.secret', 'is undefined')
  const { secret, ...settings } = parse(schema, options, 'cluster')
  const codec = createCodec(secret ?? [])
  return { join: member => new RedisNode(client, codec, settings, member) }
}

function isClient (client: unknown): boolean {
  return typeof client === 'object' && client !== null && 'sendCommand' in client && 'duplicate' in client && 'isReady' in client
}

export type { RedisClient } from './redis-client.js'
export type { ClusterDriver, OnClusterLoss } from './cluster.js'
