/** The page: its files and those of the library's client, read once, and what browsers have to know of them. */
import { readdir, readFile } from 'node:fs/promises'
import { extname } from 'node:path'

const HEADERS = {
  'content-security-policy': [
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-cache',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff'
}
const TYPES = {
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml'
}

const PAGE = new URL('public/', import.meta.url)
const CLIENT = new URL('./', import.meta.resolve('fastify-hybrid-auth/client'))

export async function addPage (app) {
  const files = [
    ...await filesOf('/', PAGE),
    // The page runs the library's own client, which imports the wire protocol from the directory above.
    ...await filesOf('/lib/client/', CLIENT),
    ['/lib/protocol.js', new URL(import.meta.resolve('fastify-hybrid-auth/protocol'))]
  ]
  for (const [path, file] of files) {
    const body = await readFile(file)
    const type = TYPES[extname(file.pathname)]
    app.get(path.replace('index.html', ''), async (request, reply) => reply.headers(HEADERS).type(type).send(body))
  }
}

async function filesOf (path, directory) {
  const names = (await readdir(directory)).filter(name => Object.hasOwn(TYPES, extname(name)))
  return names.map(name => [path + name, new URL(name, directory)])
}
