/** The page of the demo: its files, read once, and what browsers have to know of them. */
import { readFile } from 'node:fs/promises'

const HEADERS = {
  'content-security-policy': [
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-cache',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff'
}

const inPublic = name => new URL(`public/${name}`, import.meta.url)
const script = name => [`/${name}`, 'text/javascript; charset=utf-8', inPublic(name)]
const FILES = [
  ['/', 'text/html; charset=utf-8', inPublic('index.html')],
  ...['app.js', 'credentials.js', 'feed.js', 'live.js', 'roles.js', 'show.js'].map(script),
  ['/style.css', 'text/css; charset=utf-8', inPublic('style.css')],
  ['/icon.svg', 'image/svg+xml', inPublic('icon.svg')],
  // The close codes and the subprotocol's name come from the library itself.
  ['/protocol.js', 'text/javascript; charset=utf-8', new URL(import.meta.resolve('fastify-hybrid-auth/protocol'))]
]

export async function addPage (app) {
  for (const [path, type, file] of FILES) {
    const body = await readFile(file)
    app.get(path, async (request, reply) => reply.headers(HEADERS).type(type).send(body))
  }
}
