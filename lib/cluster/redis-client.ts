/** The part of a node-redis client that is used, and how it is asked: raw commands, bounded in time, never queued. */
import { createHash } from 'node:crypto'
import { settleWithin } from '../deadline.js'

/** A connected client of node-redis 5 or newer, as its `createClient` makes one. */
export interface RedisClient {
  readonly isReady: boolean
  readonly options?: { readonly socket?: unknown } | undefined
  sendCommand (args: string[], options?: { typeMapping?: object }): Promise<unknown>
  subscribe (channels: string[], listener: (message: string, channel: string) => void): Promise<unknown>
  unsubscribe (channel: string, listener: (message: string, channel: string) => void): Promise<unknown>
  duplicate (overrides?: object): RedisClient
  connect (): Promise<unknown>
  destroy (): void
  on (event: 'error', listener: (error: unknown) => void): unknown
}

/** A script, and what Redis calls it. */
export interface Script {
  readonly text: string
  readonly sha: string
}

/** What Redis did not answer in time, or could not be asked. */
class Away extends Error {}

export const script = (text: string): Script => ({ text, sha: createHash('sha1').update(text).digest('hex') })

/** @throws Away, or what Redis answered */
export async function ask (client: RedisClient, args: string[], ms: number): Promise<unknown> {
  // A client that is reconnecting would keep the command, and send it when nobody waits for it any more.
  if (!client.isReady) throw new Away()
  return send(client, args, ms)
}

/** However the application wants its replies mapped, here they are plain. @throws as {@link ask} */
export function send (client: RedisClient, args: string[], ms: number): Promise<unknown> {
  return bounded(client.sendCommand(args, { typeMapping: {} }), ms)
}

/** @throws as {@link ask} */
export async function run (client: RedisClient, { text, sha }: Script, keys: string[], args: string[], ms: number): Promise<unknown> {
  const rest = [String(keys.length), ...keys, ...args]
  try {
    return await ask(client, ['EVALSHA', sha, ...rest], ms)
  } catch (error) {
    if (!(error instanceof Error && error.message.startsWith('NOSCRIPT'))) throw error
    return ask(client, ['EVAL', text, ...rest], ms)
  }
}

export function bounded<T> (value: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    value.then(resolve, reject)
    settleWithin<unknown>(value, ms, LATE, outcome => { if (outcome === LATE) reject(new Away()) })
  })
}

const LATE = Symbol('late')

/**
 * A connection of its own, which waits for as long as it is told and does not come back by itself: who holds it decides.
 * @param signal closes it
 * @throws what connecting throws
 */
export async function connectAnother (client: RedisClient, ms: number, signal: AbortSignal): Promise<RedisClient> {
  const socket = typeof client.options?.socket === 'object' ? client.options.socket : {}
  const other = client.duplicate({ disableOfflineQueue: true, socket: { ...socket, connectTimeout: ms, socketTimeout: undefined, reconnectStrategy: false } })
  other.on('error', () => {})
  const close = () => { discard(other) }
  signal.addEventListener('abort', close, { once: true })
  try {
    await bounded(other.connect(), ms)
    signal.throwIfAborted()
    return other
  } catch (error) {
    signal.removeEventListener('abort', close)
    close()
    throw error
  }
}

/** One that is closed already says so by throwing. */
export function discard (client: RedisClient): void {
  try {
    client.destroy()
  } catch {}
}

/** What a reply holds as a list; empty where it is something else. */
export function listOf (reply: unknown): readonly unknown[] {
  return Array.isArray(reply) ? reply : []
}

/** The members of a map: a list of pairs in RESP2, an object or a Map in RESP3. */
export function pairsOf (reply: unknown): ReadonlyArray<readonly [unknown, unknown]> {
  if (reply instanceof Map) return [...reply]
  if (Array.isArray(reply)) return reply.map(pair => [listOf(pair)[0], listOf(pair)[1]])
  return typeof reply === 'object' && reply !== null ? Object.entries(reply) : []
}

/** Text, whether the client gives text or bytes; empty where it is something else. */
export function textOf (reply: unknown): string {
  return Buffer.isBuffer(reply) ? reply.toString('utf8') : typeof reply === 'string' ? reply : ''
}

export function textsOf (reply: unknown): string[] {
  return listOf(reply).map(textOf)
}
