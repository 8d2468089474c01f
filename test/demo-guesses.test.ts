/** Guesses of passwords for the demo: how many there are, and who is told of them. */
import t from 'tap'
import { bearerOf, listOf, memberOf, post, startDemo } from './demo-running.js'

t.setTimeout(180_000)

const guess = (origin: string, path: string, username: string) => post(origin + path, { username, password: 'wrong' })

t.test('ten guesses at a password, by whichever way in: then it is closed for a while, whoever knows it', async t => {
  const { origin, passwords, printed } = await startDemo(t)
  const root = await bearerOf(origin, 'root', passwords.root)
  for (let i = 0; i < 12; i++) t.equal((await post(`${origin}/login`, { username: 'alice', password: passwords.alice })).status, 200, 'who is right uses none up')
  const answers = await Promise.all(Array.from({ length: 10 }, (_, i) => guess(origin, i % 2 === 0 ? '/login' : '/token', i < 9 ? 'root' : 'a password by mistake')))
  t.same(answers.map(({ status }) => status), Array.from({ length: 10 }, (_, i) => i % 2 === 0 ? 401 : 400))
  for (const path of ['/login', '/token']) {
    for (const username of ['root', 'alice', 'nobody']) {
      const answer = await guess(origin, path, username)
      t.equal(answer.status, 429)
      t.match(answer.headers.get('retry-after'), /^(?:[1-9]|10)$/)
      t.match(await answer.json(), { message: 'Too many wrong passwords: try again later' })
    }
  }
  t.equal((await post(`${origin}/login`, { username: 'root', password: passwords.root })).status, 429)

  const log: unknown = await (await fetch(`${origin}/operator/log`, { headers: root })).json()
  const refused = listOf(log, 'entries').filter(entry => memberOf(entry, 'type') === 'login_refused')
  t.equal(refused.length, 10)
  t.match(refused.find(entry => memberOf(entry, 'route') === '/login'), { userId: 'root', code: 'invalid_credentials' })
  t.equal(refused.filter(entry => memberOf(entry, 'userId') === undefined).length, 1, 'what is no name may be a password')
  t.equal([...printed().matchAll(/ {2}login_refused {2}http {2}\/(?:login|token) {2}root {2}invalid_credentials$/gm)].length, 9)
  t.notOk(printed().includes('a password by mistake'))
  t.equal(listOf(log, 'entries').filter(entry => memberOf(entry, 'type') === 'login_limited').length, 1, 'that it is closed is said once')
})

t.test('a bucket fills again, one by one, and no flood of keys makes it forget', async t => {
  const { createBuckets } = await import(new URL('../demo/buckets.js', import.meta.url).href) as {
    createBuckets: (options: object) => { take: (...keys: string[]) => number, giveBack: (...keys: string[]) => void }
  }
  let time = 0
  const { take, giveBack } = createBuckets({ atOnce: 3, interval: 1000, now: () => time })
  t.same([take('a'), take('a'), take('a'), take('a')], [0, 0, 0, 1000])
  time = 400
  t.equal(take('a'), 600)
  time = 1000
  t.same([take('a'), take('a')], [0, 1000])
  giveBack('a')
  t.same([take('a'), take('a')], [0, 1000])
  time = 10_000
  t.same([take('a'), take('a'), take('a'), take('a')], [0, 0, 0, 1000], 'and not over its rim')

  t.ok(take('b', 'a') > 0)
  t.same([take('b'), take('b'), take('b')], [0, 0, 0], 'of keys together none is taken where one has none')
  for (let i = 0; i < 20_000; i++) take(`flood ${i}`)
  t.ok(take('a') > 0)
})
