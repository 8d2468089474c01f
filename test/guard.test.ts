import t from 'tap'
import { build, goodToken, upgrade } from './helpers.js'

t.test('a socket with a bearer is a jwt connection, one with a cookie a session connection, of the same shape', async t => {
  const { host, login } = await build(t)
  const cookie = await login()
  const origin = `http://${host}`
  const byToken = await upgrade(t, host, { headers: { authorization: `Bearer ${goodToken()}` } })
  const byCookie = await upgrade(t, host, { headers: { cookie, origin } })
  t.match(byToken.context, { authType: 'jwt', userId: 'alice', via: 'header' })
  t.match(byCookie.context, { authType: 'session', userId: 'bob', via: 'cookie' })
  const shared = Object.keys(byCookie.context ?? {}).filter(key => key !== 'sessionId')
  t.same(shared.filter(key => !(key in (byToken.context ?? {}))), [])
})

t.test('neither credential: 401, and the handler never ran', async t => {
  const { host, handled } = await build(t)
  const answer = await upgrade(t, host)
  t.equal(answer.status, 401)
  t.equal(handled(), 0)
})
