/** fastify-hybrid-auth: validate, build the parts, decorate, hook. */
import { randomBytes } from 'node:crypto'
import fp from 'fastify-plugin'
import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import type { BackchannelLogoutOptions } from '../types/logout.js'
import type { HybridAuthOptions } from '../types/options.js'
import { ClusterNode } from './cluster/node.js'
import { createClaims } from './cluster/claims.js'
import { logOutAtProvider } from './cluster/provider-logout.js'
import { createClusterApi } from './cluster/orders.js'
import { MAX_COUNTED, memoryCluster } from './cluster/memory.js'
import { Revocations } from './cluster/revocations.js'
import { now } from './connection/clock.js'
import { createConnectionApi, createHub } from './connection/connections.js'
import { drainHub, drainOnClose } from './connection/drain.js'
import { createRoomApi, createRooms } from './connection/room-api.js'
import { authError } from './errors.js'
import { createGuards } from './handshake/guard.js'
import { guardRoutes } from './handshake/routes.js'
import { installSeam } from './handshake/seam.js'
import { createAuditor } from './observe/audit.js'
import { registerMetrics } from './observe/metrics.js'
import { createIdentityWarning, logFault } from './observe/faults.js'
import { checkLogger, redactNotFound } from './observe/redaction.js'
import { parseOptions } from './options.js'
import { parseRule } from './route-options.js'
import { BucketTable } from './policy/bucket.js'
import { createSources } from './policy/sources.js'
import { CONTEXT, contextOf } from './request.js'
import { createRealm } from './verify/realm.js'
import { setLogoutParts } from './verify/logout-parts.js'
import { watchLogouts } from './verify/logout.js'
import { createChain, type FaultReporter } from './verify/chain.js'

const plugin: FastifyPluginAsync<HybridAuthOptions> = async function hybridAuth (app, given) {
  const options = parseOptions(given)
  checkLogger(app.log, options.credentials)

  const audit = createAuditor(randomBytes(9).toString('base64url'), app.log, options.audit)
  const revocations = new Revocations()
  const node = new ClusterNode({ ...options, cluster: options.cluster ?? memoryCluster() }, revocations, audit, {
    onLost (cause) { logFault(app.log, 'cluster', cause, 'the other nodes cannot be reached') },
    onIgnored () { app.log.warn('ignored a message that no node of this cluster can have sent: do all have the same secret?') }
  })
  const sources = createSources({
    ...options, timeout: options.handshakeTimeout, shared: node.cluster.memory, realm: createRealm(options), onFault (where, error) { logFault(app.log, where, error) }
  })
  const chain = await createChain(options, {
    report, onBadIdentity: createIdentityWarning(app.log), revocations, tickets: node.cluster, failures: node.failures, tally: audit.tally, sources
  })
  const rates = { users: new BucketTable(MAX_COUNTED, now), cluster: node.cluster }
  const hub = createHub(options, {
    verifiers: chain, audit, report, revocations, limits: node.limits, rates, sources, ...createRooms(options, node, audit, report, revocations)
  })
  node.attach(hub)
  const createGuard = createGuards(options, { chain, hub, audit, report })

  if (!app.hasRequestDecorator('auth')) {
    app.decorateRequest(CONTEXT, null)
    app.decorateRequest('auth', {
      getter () {
        const context = contextOf(this)
        if (context === null) throw authError('FST_HYBRID_AUTH_NOT_AUTHENTICATED')
        return context
      }
    })
  }
  app.decorate('hybridAuth', {
    ...createConnectionApi(hub),
    ...createClusterApi(node, { store: node.cluster, realms: chain.realms, tokenOf: chain.tokenOf, timeout: options.handshakeTimeout }, sources !== null),
    rooms: createRoomApi(hub, room => node.order({ type: 'presence', room })),
    isRepeat: hub.repeats.isRepeat,
    events: audit.events,
    metrics: registry => { registerMetrics(registry, { tally: audit.tally, tracer: chain.tracer, hub, node }) },
    contextOf,
    require: rule => createGuard(parseRule(rule), false)
  })

  setLogoutParts(app.hybridAuth, {
    jwt: options.jwt,
    readSigned: chain.readSigned,
    logOut: logout => logOutAtProvider(node, logout),
    ...createClaims(node.cluster),
    timeout: options.handshakeTimeout,
    report
  })

  guardRoutes(app, options.guard, createGuard)
  watchLogouts(app, options.session, node)
  drainOnClose(app, () => drainHub(hub))
  app.addHook('onClose', async () => {
    chain.stop()
    await node.stop()
    rates.users.stop()
    await audit.flush()
  })
  if (options.credentials.query || options.credentials.ticket) app.addHook('onRequest', redactNotFound)
  app.addHook('onReady', async () => {
    if (options.session !== undefined && options.session.store === undefined && !app.hasRequestDecorator('session')) {
      throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'session needs @fastify/session registered in the same scope, or session.store')
    }
    installSeam(app)
    await node.cluster.start()
    if (options.report.length > 0) app.log.warn(`limits that refuse nobody, and are only reported: ${options.report.join(', ')}`)
    if (options.guard === 'opt-in') app.log.warn('WebSocket routes without an `auth` option are open: guard is "opt-in"')
  })
}

const report: FaultReporter = (request, where, error) => { logFault(request.log, where, error) }

/** The plugin. Register it before the routes it guards; the order among other plugins does not matter. */
export const hybridAuth = Object.assign(fp(plugin, { fastify: '5.x', name: 'fastify-hybrid-auth' }), {
  /**
   * A plugin with the route that an OpenID provider tells of logouts. Register it after `hybridAuth`.
   * @throws FST_HYBRID_AUTH_INVALID_OPTION, FST_HYBRID_AUTH_MISSING_DEPENDENCY
   */
  backchannelLogout: async (app: FastifyInstance, options: BackchannelLogoutOptions): Promise<void> => {
    const { backchannelLogout } = await import('./verify/backchannel-logout.js')
    await backchannelLogout(app, options)
  }
})
export default hybridAuth
/** As `hybridAuth.backchannelLogout`, for who imports everything under one name. */
export const { backchannelLogout } = hybridAuth

export { ERRORS, type AuthErrorCode } from './errors.js'
export { serializers } from './observe/redaction.js'
export type * from '../types/index.js'
