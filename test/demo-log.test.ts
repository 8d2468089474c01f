/** The demo's audit log: nobody can push out of it what operators have to see. */
import t from 'tap'
import { bearerOf, listOf, memberOf, post, startDemo } from './demo-running.js'
import { eventually } from './live.js'

t.setTimeout(180_000)

t.test('neither requests of nobody nor those of a user push out of the log what was decided', async t => {
  const { origin, passwords } = await startDemo(t)
  const root = await bearerOf(origin, 'root', passwords.root)
  const alice = await bearerOf(origin, 'alice', passwords.alice)
  const read = async () => listOf(await (await fetch(`${origin}/operator/log`, { headers: root })).json(), 'entries')
  const typesOf = (entries: unknown[]) => entries.map(entry => memberOf(entry, 'type'))
  t.equal((await post(`${origin}/role`, { userId: 'bob', role: 'agent' }, root)).status, 200)
  t.ok(typesOf(await read()).includes('command'))

  for (let i = 0; i < 150; i++) await fetch(`${origin}/me`, { headers: alice })
  for (let i = 0; i < 150; i++) await fetch(`${origin}/me`)
  let entries: unknown[] = []
  const countOf = () => entries.filter(entry => memberOf(entry, 'type') === 'refused').map(entry => memberOf(entry, 'count') ?? 1)
  const sum = () => countOf().reduce((total: number, count) => total + Number(count), 0)
  let isDue = true
  await eventually('all of nobody are counted', () => {
    if (isDue) {
      isDue = false
      // To read is an entry, too.
      read().then(all => {
        entries = all
        setTimeout(() => { isDue = true }, 250)
      }, (error: unknown) => { t.threw(error) })
    }
    return sum() === 150
  })
  t.ok(countOf().length < 30, 'in an entry a second')
  t.ok(typesOf(entries).includes('command'))
  t.ok(typesOf(entries).includes('authenticated'))
  const times = entries.map(entry => Number(memberOf(entry, 'time')))
  t.same(times, [...times].sort((a, b) => b - a), 'the latest come first')
})
