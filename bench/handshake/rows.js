/**
 * What is measured against what. A variant is a route of one of the servers in server.js and the request sent to it; the
 * two sides of a pair send the same bytes but for the path and the Host, except where one sends an opaque token.
 *
 * `goal` is the least median of the ratio; `within` the greatest distance of the median from 1.
 */

const at = (server, path, credential = 'none') => ({ server, path, credential, expect: 101 })
const refused = variant => ({ ...variant, expect: 401 })
const http = variant => ({ ...variant, expect: 200 })

const bare = credential => at('peers', '/bare', credential)
const jwt = (algorithm, how = 'seen') => at('peers', `/jwt/${algorithm}`, `${how}:${algorithm}`)
const ours = (algorithm, how = 'seen') => at('ours', `/${algorithm}/ws`, `${how}:${algorithm}`)

const sourced = (name, credential = 'seen:HS256') => at('sources', `/${name}/ws`, credential)

const SEEN = ['HS256', 'RS256']
const ALL = ['HS256', 'RS256', 'ES256', 'EdDSA']

export const ROWS = [
  { name: 'A/A: bare against itself', a: bare(), b: bare(), within: 0.03 },
  { name: 'A/A: bare against bare of another instance', a: at('twin', '/bare'), b: bare(), within: 0.03 },

  ...SEEN.map(alg => ({ name: `JWT seen, ${alg}: ours / bare`, a: ours(alg), b: bare(`seen:${alg}`), goal: 0.9 })),
  { name: 'JWT seen, HS256: ours / our route with auth: false', a: ours('HS256'), b: at('ours', '/HS256/open', 'seen:HS256'), goal: 0.97 },
  { name: 'our route with auth: false / bare', a: at('ours', '/HS256/open', 'seen:HS256'), b: bare('seen:HS256') },
  { name: 'JWT seen, HS256: ours / @fastify/jwt', a: ours('HS256'), b: jwt('HS256'), goal: 1.2 },
  { name: 'JWT seen, HS256: ours / @fastify/jwt with its cache', a: ours('HS256'), b: at('peers', '/jwt-cached/HS256', 'seen:HS256'), goal: 1.05 },
  { name: 'JWT seen, RS256: ours / @fastify/jwt', a: ours('RS256'), b: jwt('RS256'), goal: 1.5 },

  { name: 'JWT, HS256: @fastify/jwt / bare', a: jwt('HS256'), b: bare('seen:HS256') },
  { name: 'JWT, HS256: @fastify/jwt with its cache / bare', a: at('peers', '/jwt-cached/HS256', 'seen:HS256'), b: bare('seen:HS256') },
  { name: 'JWT, RS256: @fastify/jwt / bare', a: jwt('RS256'), b: bare('seen:RS256') },
  { name: 'JWT, HS256: jsonwebtoken / bare', a: at('peers', '/jsonwebtoken', 'seen:HS256'), b: bare('seen:HS256') },
  { name: 'JWT, HS256: jose / bare', a: at('peers', '/jose', 'seen:HS256'), b: bare('seen:HS256') },

  ...ALL.map(alg => ({ name: `JWT never seen, ${alg}: ours / @fastify/jwt`, a: ours(alg, 'fresh'), b: jwt(alg, 'fresh'), goal: 1 })),

  { name: 'session: @fastify/session / bare', a: at('peers', '/session/ws', 'session'), b: bare('session') },
  { name: 'session by the store: ours / bare', a: at('ours', '/store/ws', 'session'), b: bare('session') },
  { name: 'session by the store: ours / @fastify/session', a: at('ours', '/store/ws', 'session'), b: at('peers', '/session/ws', 'session'), goal: 1.15 },
  { name: 'session by @fastify/session: ours / @fastify/session alone', a: at('ours', '/session/ws', 'session'), b: at('peers', '/session/ws', 'session') },

  { name: 'bad signature, HS256: ours / @fastify/jwt', a: refused(ours('HS256', 'forged')), b: refused(jwt('HS256', 'forged')), goal: 1.1 },

  { name: 'HTTP, JWT seen, HS256: ours / @fastify/jwt', a: http(at('ours', '/HS256/http', 'seen:HS256')), b: http(at('peers', '/jwt/HS256/http', 'seen:HS256')), goal: 1.5 },
  { name: 'HTTP, JWT seen, HS256: ours / @fastify/jwt with its cache', a: http(at('ours', '/HS256/http', 'seen:HS256')), b: http(at('peers', '/jwt-cached/HS256/http', 'seen:HS256')), goal: 1.5 },
  { name: 'HTTP, JWT seen, HS256: ours / bare', a: http(at('ours', '/HS256/http', 'seen:HS256')), b: http(at('peers', '/bare/http', 'seen:HS256')) },

  { name: 'A/A, sources: JWT seen, HS256, against the same of another registration', a: sourced('jwt'), b: sourced('twin'), within: 0.03 },
  { name: 'sources: opaque token, introspection remembered / JWT seen, HS256', a: sourced('introspection', 'opaque'), b: sourced('jwt'), goal: 0.95 },
  { name: 'sources: the same token, introspection remembered / JWT seen, HS256', a: sourced('introspection'), b: sourced('jwt') },
  { name: 'sources: JWT seen, HS256, with introspection beside it / without', a: sourced('both'), b: sourced('jwt') },
  { name: 'sources: JWT seen, HS256, with enrich, remembered / without', a: sourced('enrich'), b: sourced('jwt') }
]

const first = (name, how, credential) => at('first', `/${name}/${how}`, credential)

/** How often a source is asked by many first handshakes at once. `isHeld`: it answers when all of them have come. */
export const FIRSTS = [
  { name: 'first connections with one opaque token, an answer that comes last: introspections', variant: first('introspection', 'held', 'opaque'), isHeld: true },
  { name: 'first connections with one opaque token, an answer after 10 ms: introspections', variant: first('introspection', 'quick', 'opaque'), isHeld: false },
  { name: 'first connections of one user, a token each, an answer that comes last: calls of enrich', variant: first('enrich', 'held', 'fresh:HS256'), isHeld: true },
  { name: 'first connections of one user, a token each, an answer after 10 ms: calls of enrich', variant: first('enrich', 'quick', 'fresh:HS256'), isHeld: false }
]
