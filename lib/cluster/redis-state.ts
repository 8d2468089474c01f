/** Whether Redis is still what it was, and what to do where it is not: exchange what each side knows. */
import { randomBytes } from 'node:crypto'
import { ANYBODY, type ClusterMember } from './cluster.js'
import type { Codec, Command } from './command.js'
import { ask, listOf, run, send, textOf, textsOf, type RedisClient } from './redis-client.js'
import type { Keys } from './redis-keys.js'
import type { RedisSettings } from './redis-node.js'
import { BEAT, BURY } from './redis-scripts.js'

export interface RedisParts {
  readonly client: RedisClient
  readonly codec: Codec
  readonly settings: RedisSettings
  readonly member: ClusterMember
  readonly keys: Keys
  /** Appends a command to the log. */
  readonly append: (command: Command) => Promise<unknown>
}

const GENERATION = 'generation'
/** Clocks of nodes and of Redis may differ by so much, in milliseconds. */
export const SKEW = 60_000

export interface Beat {
  /** A text that is another for another Redis, for one that was emptied, and for one that went back to an older state. */
  readonly state: string
  /** Redis had not given this node up. */
  readonly wasAlive: boolean
  /** Nodes that are alive, this one included. */
  readonly alive: number
}

/** Says that this node is alive, frees what belonged to nodes that are not, and finds out which Redis this is. */
export async function beat ({ client, keys, settings, member }: RedisParts, reader: RedisClient): Promise<Beat> {
  const reply = await run(client, BEAT, [keys.nodes, keys.ends, keys.live],
    [member.id, String(settings.nodeTimeout), randomId(), String(SKEW)], settings.timeout)
  const [generation, wasAlive, alive, dead] = listOf(reply)
  for (const node of textsOf(dead)) {
    // What cannot be cleared away keeps nobody from working.
    await bury(client, keys, settings, node, false).catch(() => {})
  }
  const [here, there] = await Promise.all([serverOf(client, settings), serverOf(reader, settings)])
  // While one connection has followed a failover and the other has not, what is written is not what is read.
  if (here !== there) throw new Error('two servers')
  return { state: `${textOf(generation)} ${here}`, wasAlive: wasAlive === 1, alive: Number(alive) }
}

/** Frees everything of a node, if it is gone or says so itself. */
export async function bury (client: RedisClient, keys: Keys, { nodeTimeout, timeout }: RedisSettings, node: string, isLeaving: boolean): Promise<void> {
  const once = () => run(client, BURY, [keys.nodes, keys.held(node), keys.answers(node)],
    [node, String(nodeTimeout), isLeaving ? '1' : '0', keys.lease], timeout)
  while (Number(await once()) > 0);
}

/** Which process this is; empty where Redis does not say. */
async function serverOf (client: RedisClient, { timeout }: RedisSettings): Promise<string> {
  const info = await ask(client, ['INFO', 'server'], timeout).catch(() => '')
  return /run_id:(\w+)/.exec(textOf(info))?.[1] ?? ''
}

/** Live revocations, both ways. */
export async function exchange ({ keys, codec, member, settings, append }: RedisParts, reader: RedisClient): Promise<void> {
  const there = new Set<string>()
  let cursor = '0'
  do {
    const reply = await send(reader, ['HSCAN', keys.live, cursor, 'COUNT', '1000'], settings.timeout)
    const [next, entries] = listOf(reply)
    // Names and values in turn.
    const texts = textsOf(entries)
    for (const [index, sealed] of texts.entries()) {
      if (index % 2 === 0 || texts[index - 1] === GENERATION) continue
      const command = codec.openCommand(sealed)
      if (command?.type !== 'revoke') {
        member.ignored()
        continue
      }
      // What a retired secret has signed is told anew.
      if (codec.isCurrent(sealed)) there.add(command.id)
      if (!member.hasRevocation(command.id)) await member.receive(command)
    }
    cursor = textOf(next)
  } while (cursor !== '0')
  for (const revocation of member.revocations()) {
    if (there.has(revocation.id)) continue
    // Whoever tells it, it is the same text: several nodes that know it append it once.
    await append({ type: 'revoke', id: revocation.id, from: ANYBODY, at: revocation.at, revocation })
  }
}

function randomId (): string {
  return randomBytes(12).toString('base64url')
}
