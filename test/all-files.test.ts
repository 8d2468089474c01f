/** Coverage counts the files that some test loads: this one loads them all. */
import { readdir } from 'node:fs/promises'
import t from 'tap'

t.test('every file of the library can be imported by itself', async t => {
  const lib = new URL('../lib/', import.meta.url)
  const files = (await readdir(lib, { recursive: true })).filter(name => name.endsWith('.ts')).sort()
  t.ok(files.includes('index.ts'), 'the directory was read')
  for (const name of files) {
    const module: unknown = await import(new URL(name, lib).href)
    t.type(module, 'object', name)
  }
})
