// What the client adds to a page: as a bundler that minifies writes it, with gzip. Fails past the limit, and where the README says something else.
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import { buildSync } from 'esbuild'

const LIMIT = 6200
const { outputFiles: [{ contents }] } = buildSync({
  stdin: { contents: "export { createAuthSocket } from 'fastify-hybrid-auth/client'", resolveDir: import.meta.dirname },
  bundle: true, minify: true, format: 'esm', target: 'es2022', write: false
})
const size = gzipSync(contents, { level: 9 }).length
const figure = `${(Math.ceil(size / 100) / 10).toFixed(1)} kB`
console.log(`fastify-hybrid-auth/client: ${size} bytes with gzip, of ${LIMIT}`)
const problems = [
  size >= LIMIT && `it must be less than ${LIMIT}`,
  !readFileSync(new URL('../README.md', import.meta.url), 'utf8').includes(figure) && `the README must say ${figure}`
].filter(Boolean)
for (const problem of problems) console.error(problem)
process.exitCode = problems.length
