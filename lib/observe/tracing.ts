/**
 * The verification of credentials as a TracingChannel of `diagnostics_channel`, so that whoever subscribes can make spans
 * of it, and as times. Without a subscriber and without metrics it costs two comparisons.
 */
import { tracingChannel } from 'node:diagnostics_channel'
import type { Verification } from '../../types/audit.js'
import type { Maybe } from '../maybe.js'
import type { Times } from './tally.js'

const channel = tracingChannel<string, Verification>('fastify-hybrid-auth:verify')

export class Tracer {
  /** null: nobody measures. */
  times: Times | null = null

  /** Asked first: what nobody follows is not worth a closure. */
  get isActive (): boolean {
    return this.times !== null || channel.hasSubscribers
  }

  /** Runs `verify`, which neither throws nor rejects. */
  trace<T> (context: Verification, outcomeOf: (value: T) => string, verify: () => Maybe<T>): Maybe<T> {
    const started = performance.now()
    const settle = (value: T): T => {
      context.outcome = outcomeOf(value)
      this.times?.observe(performance.now() - started)
      return value
    }
    return channel.start.runStores(context, () => {
      const value = verify()
      if (!(value instanceof Promise)) {
        settle(value)
        channel.end.publish(context)
        return value
      }
      channel.end.publish(context)
      return value.then(later => {
        settle(later)
        channel.asyncStart.publish(context)
        channel.asyncEnd.publish(context)
        return later
      })
    })
  }
}
