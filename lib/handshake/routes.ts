/** Puts the guard into each route as it is declared. */
import type { FastifyInstance, RouteOptions } from 'fastify'
import type { RouteAuth } from '../../types/rules.js'
import { parseRouteAuth, type ParsedOptions } from '../options.js'
import type { GuardHook } from './guard.js'
import { installSeam } from './seam.js'
import { markPassed } from './state.js'

type GuardFactory = (rule: NonNullable<ReturnType<typeof parseRouteAuth>>) => GuardHook

/** @param app the scope of this registration: routes of a scope that registered the plugin again are left to that one */
export function guardRoutes (app: FastifyInstance, guard: ParsedOptions['guard'], createGuard: GuardFactory): void {
  const mine = app.hybridAuth

  app.addHook('onRoute', function guardRoute (route) {
    if (this.hybridAuth !== mine) return
    const isSocket = isWebSocketRoute(route)
    if (isSocket) installSeam(this)
    const hooks = hooksFor(route.auth, isSocket)
    if (hooks.length > 0) route.onRequest = [...hooks, ...[route.onRequest ?? []].flat()]
  })

  function hooksFor (auth: RouteAuth | undefined, isSocket: boolean): GuardHook[] {
    const isGuarded = isSocket && guard === 'all'
    const rule = parseRouteAuth(auth ?? isGuarded)
    if (rule === null) return isSocket ? [passUpgrade] : []
    const check = createGuard(rule)
    if (!isSocket) return [check]
    // A route that serves both, and says nothing of `auth`, guards its socket only: HTTP opts in.
    return [auth === undefined ? onUpgradeOnly(check) : check, passUpgrade]
  }
}

function isWebSocketRoute (route: RouteOptions): boolean {
  return route.websocket === true || route.wsHandler !== undefined
}

const passUpgrade: GuardHook = function passUpgrade (request, _reply, done) {
  if (request.ws) markPassed(request.raw)
  done()
}

function onUpgradeOnly (check: GuardHook): GuardHook {
  return function guardUpgrade (request, reply, done) {
    if (request.ws) check(request, reply, done)
    else done()
  }
}
