/**
 * What happened, for Prometheus. A metric here is what a registry of prom-client asks of one, and reads the numbers when it
 * is scraped: nothing is counted twice, and prom-client is not imported. No label holds a user, a token or an address.
 */
import type { MetricsRegistry } from '../../types/plugin.js'
import { invalidOption } from '../errors.js'
import { split, type Counts, type Tally, type Times } from './tally.js'
import type { Tracer } from './tracing.js'

/** What is read at a scrape. */
export interface Measured {
  readonly tally: Tally
  readonly tracer: Tracer
  readonly hub: {
    readonly registry: { census (): Census }
    readonly pending: { readonly size: number }
    /** Memberships, and rooms that have any. */
    readonly rooms: { readonly size: number, readonly open: number }
  }
  readonly node: {
    /** In milliseconds. */
    readonly lag: number
    status (): { readonly connected: boolean, readonly queued: number, readonly ignored: number, readonly revocations: number }
  }
}

/** Of all open connections. */
export interface Census {
  readonly byType: ReadonlyMap<string, number>
  /** Frames that wait for a verdict or a listener. */
  readonly queuedFrames: number
}

interface Sample {
  readonly value: number
  readonly labels: Readonly<Record<string, string>>
  readonly metricName?: string
}

type Kind = 'counter' | 'gauge' | 'histogram'

const PREFIX = 'hybrid_auth_'

/** As prom-client asks one for its samples. */
class Metric {
  readonly name: string
  readonly help: string
  readonly type: Kind
  /** How prom-client adds up several processes. */
  readonly aggregator: 'sum' | 'max' | 'min'
  readonly #read: () => Iterable<Sample>

  constructor (type: Kind, name: string, help: string, read: () => Iterable<Sample>, aggregator: Metric['aggregator'] = 'sum') {
    this.name = PREFIX + name
    this.help = help
    this.type = type
    this.#read = read
    this.aggregator = aggregator
  }

  async get () {
    const { name, help, type, aggregator } = this
    return { name, help, type, aggregator, values: [...this.#read()] }
  }

  /** A registry may be told to begin again; what happened has happened. */
  reset (): void {}
}

/** @throws what the registry throws where it has metrics of these names already */
export function registerMetrics (registry: MetricsRegistry, measured: Measured): void {
  if (!isRegistry(registry)) throw invalidOption('registry', 'must be a Registry of prom-client')
  for (const metric of describe(measured)) registry.registerMetric(metric)
  // From now on it is worth its while.
  measured.tracer.times = measured.tally.verifyTimes
}

function isRegistry (given: unknown): boolean {
  return typeof given === 'object' && given !== null && 'registerMetric' in given && typeof given.registerMetric === 'function'
}

function describe ({ tally, hub, node }: Measured): Metric[] {
  const counter = (name: string, help: string, read: () => Iterable<Sample>) => new Metric('counter', `${name}_total`, help, read)
  const gauge = (name: string, help: string, read: () => number, aggregator?: Metric['aggregator']) =>
    new Metric('gauge', name, help, () => one(read()), aggregator)
  return [
    new Metric('gauge', 'connections', 'Open guarded sockets by auth_type.', () => labelled(hub.registry.census().byType, 'auth_type')),
    gauge('pending_sockets', 'Sockets that owe their first message.', () => hub.pending.size),
    gauge('queued_frames', 'Frames that wait for a verdict or a listener.', () => hub.registry.census().queuedFrames),
    counter('handshakes', 'Upgrades and HTTP requests by outcome: an auth_type, anonymous, pending, abandoned, or the error code.',
      () => [
        ...labelled(tally.upgrades.entries(), 'outcome', { transport: 'websocket' }),
        ...labelled(tally.requests.entries(), 'outcome', { transport: 'http' })
      ]),
    counter('verify_cache', 'Tokens whose signature was remembered, or had to be checked.', () => [
      { value: tally.cacheHits, labels: { result: 'hit' } }, { value: tally.cacheMisses, labels: { result: 'miss' } }
    ]),
    counter('introspections', 'Questions to the authorization server by outcome: active, inactive, unavailable.', () => labelled(tally.introspections.entries(), 'outcome')),
    histogram('verify_seconds', 'How long it took to find out who somebody is.', tally.verifyTimes),
    counter('refreshes', 'Fresh credentials on open sockets by outcome.', () => labelled(tally.refreshes.entries(), 'outcome')),
    counter('expiries', 'Sockets whose credential ended.', () => one(tally.expiries)),
    counter('revoked', 'Sockets whose credential was revoked.', () => one(tally.revoked)),
    histogram('revocation_seconds', 'From the order to revoke until this node had carried it out.', tally.revocationLatency),
    counter('closes', 'Sockets that ended, by close code and by whom: authentication, limit, server, application, peer, network.',
      () => Object.entries(tally.closes).flatMap(([by, counts]) => [...counts.entries()].map(([code, value]) => ({ value, labels: { code: String(code), by } })))),
    counter('messages_refused', 'Messages that a route did not allow.', () => one(tally.messagesRefused)),
    gauge('rooms', 'Rooms that have members here.', () => hub.rooms.open),
    gauge('room_members', 'Members of all rooms.', () => hub.rooms.size),
    counter('rooms_refused', 'Joins and messages that were refused, by reason.', () => labelled(tally.roomsRefused.entries(), 'reason')),
    counter('room_messages', 'Messages of rooms: published here, heard from other nodes, sent to members, and those that other nodes missed.', () => [
      { value: tally.published, labels: { step: 'published' } }, { value: tally.heard, labels: { step: 'heard' } },
      { value: tally.delivered, labels: { step: 'delivered' } }, { value: tally.unpublished, labels: { step: 'lost' } }
    ]),
    counter('limited', 'What a limit refused, or only reported.', () => pairs(tally.limits, ['limit', 'enforced'])),
    counter('brute_force_suspected', 'Alerts for too many credentials that look like guesses.', () => one(tally.bruteForces)),
    counter('audit_dropped', 'Events that the audit function was too slow for.', () => one(tally.auditDropped)),
    counter('audit_failed', 'Events that the audit function threw at, or rejected.', () => one(tally.auditFailed)),
    gauge('cluster_connected', '1 while the other nodes can be reached.', () => Number(node.status().connected), 'min'),
    gauge('cluster_lag_seconds', 'How old the latest command of another node was when it came, or how long the others have been away.',
      () => node.lag / 1000, 'max'),
    gauge('cluster_queued', 'Commands that wait for the cluster.', () => node.status().queued),
    counter('cluster_ignored', 'Messages that no node of this cluster can have sent.', () => one(node.status().ignored)),
    gauge('revocations', 'Live revocations that this node knows.', () => node.status().revocations, 'max')
  ]

  function histogram (name: string, help: string, times: Times): Metric {
    return new Metric('histogram', name, help, () => buckets(PREFIX + name, times))
  }
}

function one (value: number): Sample[] {
  return [{ value, labels: {} }]
}

function labelled (counts: Iterable<readonly [string, number]>, label: string, others: Sample['labels'] = {}): Sample[] {
  return [...counts].map(([name, value]) => ({ value, labels: { ...others, [label]: name } }))
}

function pairs (counts: Counts, [first, second]: readonly [string, string]): Sample[] {
  return [...counts.entries()].map(([name, value]) => {
    const [a, b] = split(name)
    return { value, labels: { [first]: a, [second]: b } }
  })
}

/** Cumulative, as Prometheus wants them. */
function * buckets (name: string, { bounds, counts, sum }: Times): Generator<Sample> {
  let total = 0
  for (const [index, count] of counts.entries()) {
    total += count
    yield { value: total, labels: { le: String(bounds[index] ?? '+Inf') }, metricName: `${name}_bucket` }
  }
  yield { value: sum, labels: {}, metricName: `${name}_sum` }
  yield { value: total, labels: {}, metricName: `${name}_count` }
}
