/**
 * Looks for credentials in everything that the servers of a test wrote: every token, cookie, secret and session id that the
 * helpers make is registered here, and none of them may stand in a log line or in an audit event.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { Writable } from 'node:stream'
import type { FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { serializers, type AuditEvent } from '../lib/index.js'

type EventType = AuditEvent['type']
/** A member for each type: one that is new is missed by the compiler. */
const TYPES: Readonly<Record<EventType, true>> = {
  authenticated: true, fallback: true, refused: true, refreshed: true, refresh_refused: true, identity_changed: true, expired: true,
  revoked: true, permissions_changed: true, message_refused: true, room_joined: true, room_left: true, room_refused: true, limited: true, brute_force_suspected: true, closed: true,
  command: true, cluster_lost: true, cluster_recovered: true
}
export const EVENT_TYPES = Object.keys(TYPES) as EventType[]

/** Whoever guesses that much of a credential by chance may have the rest. */
const LENGTH = 16
const RUN = new RegExp(`[\\w-]{${LENGTH},}`, 'g')
const ESCAPED = /%[0-9a-f]{2}/gi

/** A text as it stands, and as it would be in base64url and without the escapes of URLs. */
function readings (text: string): string[] {
  const plain = text.replace(ESCAPED, escape => String.fromCharCode(parseInt(escape.slice(1), 16)))
  return [text, plain.replaceAll('+', '-').replaceAll('/', '_')]
}

/** The beginnings of all runs that are long enough: a credential that was cut short is found too. */
function * beginnings (text: string): Generator<string> {
  for (const reading of readings(text)) for (const [run] of reading.matchAll(RUN)) yield run.slice(0, LENGTH)
}

/** Every way of writing a credential that anybody here might come upon. */
export function spellings (text: string): string[] {
  const bytes = Buffer.from(text)
  return [...new Set([text, encodeURIComponent(text), JSON.stringify(text).slice(1, -1), bytes.toString('base64url'), bytes.toString('base64'), bytes.toString('hex')])]
}

/** By their beginnings. */
const secrets = new Set<string>()
/** Those without a run of their own, as texts with spaces. There are few. */
const phrases = new Set<string>()

/** Registers a credential, and returns it. */
export function secret (text: string): string {
  const runs = [...beginnings(text)]
  for (const spelling of spellings(text)) for (const run of beginnings(spelling)) secrets.add(run)
  if (runs.length === 0 && text.length >= LENGTH) phrases.add(text)
  return text
}

/** What was read, as far as a credential may be found in it. Credentials may be registered before it or after it. */
export class Recorder {
  readonly #seen = new Map<string, string>()
  readonly #phrases = new Map<string, string>()

  read (text: string): void {
    for (const beginning of beginnings(text)) if (!this.#seen.has(beginning)) this.#seen.set(beginning, text)
    for (const phrase of phrases) if (text.includes(phrase)) this.#phrases.set(phrase, text)
  }

  /** What holds a registered credential. */
  leaks (): string[] {
    const found = [...this.#seen].filter(([beginning]) => secrets.has(beginning)).map(([, text]) => text)
    return [...new Set([...found, ...this.#phrases.values()])]
  }
}

/**
 * The options of a server whose test fails if a registered credential stands in its log or in an audit event. A test that has a
 * logger of its own looks into it itself.
 */
export function watch (t: Pick<Test, 'teardown'>, options: FastifyServerOptions = {}): FastifyServerOptions {
  const recorder = new Recorder()
  const readEvent = (event: unknown) => { recorder.read(JSON.stringify(event)) }
  for (const type of EVENT_TYPES) subscribe(`fastify-hybrid-auth:${type}`, readEvent)
  // The last teardown of all: whoever closes the server was registered after this.
  t.teardown(() => {
    for (const type of EVENT_TYPES) unsubscribe(`fastify-hybrid-auth:${type}`, readEvent)
    const leaks = recorder.leaks()
    if (leaks.length > 0) throw new Error(`credentials were written down:\n${leaks.join('\n')}`)
  })
  if ('logger' in options || 'loggerInstance' in options) return options
  const stream = new Writable({
    write (chunk, _encoding, done) {
      recorder.read(String(chunk))
      done()
    }
  })
  return { ...options, logger: { level: 'trace', stream, serializers } }
}
