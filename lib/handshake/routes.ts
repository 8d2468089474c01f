/** Puts the guard into each route as it is declared. */
import type { FastifyInstance, RouteOptions } from 'fastify'
import { authError } from '../errors.js'
import type { ParsedOptions } from '../options.js'
import { parseRouteAuth, type ParsedRouteRule } from '../route-options.js'
import { admitUpgrade } from '../request.js'
import type { GuardHook } from './guard.js'
import { installSeam } from './seam.js'

type GuardFactory = (rule: ParsedRouteRule, isSocket: boolean, where: string) => GuardHook

/** @param app the scope of this registration: routes of a scope that registered the plugin again are left to that one */
export function guardRoutes (app: FastifyInstance, guard: ParsedOptions['guard'], createGuard: GuardFactory): void {
  const mine = app.hybridAuth
  const withSockets = new Set<FastifyInstance>()

  app.addHook('onRoute', function guardRoute (route) {
    if (this.hybridAuth !== mine) return
    const isSocket = isWebSocketRoute(route)
    if (isSocket) withSockets.add(this)
    const { auth = isSocket && guard === 'all' } = route
    const where = `${String(route.method)} ${route.url}`
    const hook = hookFor(parseRouteAuth(auth, isSocket, where), isSocket, route.auth === undefined, where)
    if (hook !== null) route.onRequest = [hook, ...[route.onRequest ?? []].flat()]
  })

  app.addHook('onReady', async () => {
    for (const scope of withSockets) {
      if (!scope.hasDecorator('websocketServer')) {
        throw authError('FST_HYBRID_AUTH_MISSING_DEPENDENCY', 'a WebSocket route needs @fastify/websocket registered in its scope')
      }
      installSeam(scope)
    }
  })

  function hookFor (rule: ParsedRouteRule | null, isSocket: boolean, isDefault: boolean, where: string): GuardHook | null {
    if (rule === null) return isSocket ? passOpen : null
    const check = createGuard(rule, isSocket, where)
    // A route that serves both, and says nothing of `auth`, guards its socket only: HTTP opts in.
    return isDefault ? onUpgradeOnly(check) : check
  }
}

function isWebSocketRoute (route: RouteOptions): boolean {
  return route.websocket === true || route.wsHandler !== undefined
}

const passOpen: GuardHook = function passOpen (request, _reply, done) {
  if (request.ws) admitUpgrade(request.raw, null)
  done()
}

function onUpgradeOnly (check: GuardHook): GuardHook {
  return function guardUpgrade (request, reply, done) {
    if (request.ws) check(request, reply, done)
    else done()
  }
}
