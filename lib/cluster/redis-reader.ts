/** A node's ear: one connection that reads the log from where it was, comes back by itself, and finds out what it missed. */
import { setTimeout as delay } from 'node:timers/promises'
import type { Answers } from './answers.js'
import type { Command } from './command.js'
import { bounded, connectAnother, listOf, pairsOf, run, send, textOf, textsOf, type RedisClient } from './redis-client.js'
import { LOG_AGE } from './redis-node.js'
import { ANSWER } from './redis-scripts.js'
import { ANYBODY } from './cluster.js'
import { beat, exchange, type RedisParts } from './redis-state.js'

export interface ReaderParts extends RedisParts {
  readonly answers: Answers
  /** Brings everything else of this node into Redis. */
  readonly catchUp: () => Promise<void>
}

const START = '0-0'
/** The longest that a read waits for something new, in milliseconds. */
const BLOCK = 1000
const COUNT = '500'
/** Who asked longer ago has stopped waiting for an answer, in milliseconds. */
const ANSWER_AGE = 60_000
/** Between two attempts, in milliseconds; up to twice that. */
const PAUSE = 100

export class RedisReader {
  isConnected = false
  /** How many other nodes were alive when that was last heard. */
  others = 0
  readonly #parts: ReaderParts
  readonly #stopping = new AbortController()
  #cursors = { log: START, answers: START }
  /** What Redis was known by; null: it has to be compared with what is known here. */
  #state: string | null = null
  /** The end of the log when this node began: what was ordered before is not for its connections. */
  #since = START
  #isFirst = true
  #differs = false
  #lostAt = performance.now()
  #beatAt = -Infinity
  #readAt = Date.now()
  #loop: Promise<void> | null = null

  constructor (parts: ReaderParts) {
    this.#parts = parts
  }

  /** Resolves when everything is known, or after `ms` without. */
  async start (ms: number): Promise<void> {
    const ready = new Promise<void>(resolve => { this.#loop = this.#run(resolve) })
    await bounded(ready, ms).catch((error: unknown) => { this.#lose(error) })
  }

  async stop (): Promise<void> {
    this.#stopping.abort()
    await this.#loop
    this.isConnected = false
  }

  /** Leases or commands of this node did not get into Redis. */
  differ (): void {
    this.#differs = true
  }

  /** Live revocations may not be in Redis. */
  forget (): void {
    this.#state = null
    this.#beatAt = -Infinity
  }

  async #run (onReady: () => void): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      await this.#session(onReady).catch((error: unknown) => {
        // Whatever it was, the way out is to begin again.
        if (this.isConnected && !this.#stopping.signal.aborted) this.#lose(error)
      })
      await delay(PAUSE * (1 + Math.random()), undefined, { signal }).catch(() => {})
    }
    // Nobody waits for a node that was told to stop.
    onReady()
  }

  /** Reads until that fails, or until it is told to stop. */
  async #session (onReady: () => void): Promise<void> {
    const { signal } = this.#stopping
    const session = new AbortController()
    const reader = await connectAnother(this.#parts.client, this.#parts.settings.timeout, AbortSignal.any([signal, session.signal]))
    try {
      await this.#join(reader)
      onReady()
      while (!signal.aborted) await this.#listen(reader)
    } finally {
      session.abort()
    }
  }

  #lose (cause: unknown): void {
    this.isConnected = false
    this.#lostAt = performance.now()
    this.#parts.member.lost(cause)
  }

  async #join (reader: RedisClient): Promise<void> {
    const began = performance.now()
    const lostFor = Math.round(began - this.#lostAt)
    this.#noteAge()
    // A server that does not say which it is may be another each time.
    if (this.#state?.endsWith(' ') === true) this.forget()
    await this.#compare(reader)
    while (await this.#read(reader, null) > 0);
    await this.#catchUp()
    this.isConnected = true
    this.#parts.member.recovered({ lostFor, converged: Math.round(performance.now() - began) })
  }

  async #listen (reader: RedisClient): Promise<void> {
    const every = this.#parts.settings.nodeTimeout / 4
    await this.#read(reader, Math.min(BLOCK, every))
    if (performance.now() - this.#beatAt >= every) await this.#compare(reader)
    if (this.#differs) await this.#catchUp()
  }

  async #catchUp (): Promise<void> {
    this.#differs = false
    await this.#parts.catchUp()
  }

  /** A Redis that was emptied, or went back, is told what this node knows, and asked what it knows itself. */
  async #compare (reader: RedisClient): Promise<void> {
    const { state, wasAlive, alive } = await beat(this.#parts, reader)
    this.#beatAt = performance.now()
    this.others = Math.max(0, alive - 1)
    if (!wasAlive) this.#differs = true
    if (state === this.#state) return
    // The numbers of another log mean nothing; what was read before does nothing a second time.
    this.#cursors = { log: this.#isFirst ? await this.#endOfLog(reader) : START, answers: START }
    // Where the data is new, so are its numbers.
    if (this.#isFirst || !isSameData(state, this.#state)) this.#since = this.#cursors.log
    this.#isFirst = false
    await exchange(this.#parts, reader)
    this.#differs = true
    this.#state = state
  }

  async #endOfLog (reader: RedisClient): Promise<string> {
    const reply = await send(reader, ['XREVRANGE', this.#parts.keys.log, '+', '-', 'COUNT', '1'], this.#parts.settings.timeout)
    return textsOf(listOf(reply)[0])[0] ?? START
  }

  /** Everything new, now or after `block` milliseconds. @returns how much that was */
  async #read (reader: RedisClient, block: number | null): Promise<number> {
    const { keys, member, settings } = this.#parts
    const answers = keys.answers(member.id)
    const wait = block === null ? [] : ['BLOCK', String(Math.ceil(block))]
    const reply = await send(reader,
      ['XREAD', 'COUNT', COUNT, ...wait, 'STREAMS', keys.log, answers, this.#cursors.log, this.#cursors.answers],
      (block ?? 0) + settings.timeout)
    this.#noteAge()
    let count = 0
    for (const [key, entries] of pairsOf(reply)) {
      const isAnswers = textOf(key) === answers
      for (const entry of listOf(entries)) {
        const [id, fields] = listOf(entry)
        const sealed = textsOf(fields)[1] ?? ''
        this.#cursors[isAnswers ? 'answers' : 'log'] = textOf(id)
        if (isAnswers) this.#takeAnswer(sealed)
        else this.#takeCommand(sealed, textOf(id))
        count++
      }
    }
    return count
  }

  /** What was not read for so long may be gone from the log. */
  #noteAge (): void {
    const time = Date.now()
    if (time - this.#readAt > LOG_AGE / 2) this.forget()
    this.#readAt = time
  }

  #takeAnswer (sealed: string): void {
    const answer = this.#parts.codec.openAnswer(sealed)
    if (answer === null) this.#parts.member.ignored()
    else this.#parts.answers.add(answer)
  }

  #takeCommand (sealed: string, id: string): void {
    const { codec, member } = this.#parts
    const command = codec.openCommand(sealed)
    if (command === null) member.ignored()
    else if (command.from !== member.id && (command.type === 'revoke' || isAfter(id, this.#since))) this.#carryOut(command).catch(() => {})
  }

  async #carryOut (command: Command): Promise<void> {
    const { client, codec, keys, member, settings } = this.#parts
    const { matched, closed } = await member.receive(command)
    if (command.from === ANYBODY || command.type === 'block' || command.at < Date.now() - ANSWER_AGE) return
    const answer = codec.seal('answer', { from: member.id, to: command.id, matched, closed })
    await run(client, ANSWER, [keys.answers(command.from)], [answer, String(ANSWER_AGE)], settings.timeout)
  }
}

/** A state begins with what the data is known by. */
function isSameData (state: string, before: string | null): boolean {
  return before === null || state.split(' ', 1)[0] === before.split(' ', 1)[0]
}

/** Entries are numbered by milliseconds, and within one by a count. */
function isAfter (id: string, other: string): boolean {
  const [ms = 0, n = 0] = id.split('-').map(Number)
  const [otherMs = 0, otherN = 0] = other.split('-').map(Number)
  return ms > otherMs || (ms === otherMs && n > otherN)
}
