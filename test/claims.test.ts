/** The claims of a token (RFC 7519 §4.1, RFC 8725 §3): cases 20 to 32, each on every way in. */
import t from 'tap'
import { goodClaims, goodToken, inSeconds, signHs256, signRaw } from './helpers.js'
import { accepts, fakeClock, gate, present, refuses, WAYS } from './ways.js'

const YEAR = 365 * 86_400

/** A good token but for one claim, written as it is, which need not be a value that JSON.stringify would write. */
function withRaw (claim: string, text: string): string {
  const rest = JSON.stringify(goodClaims({ [claim]: undefined })).slice(0, -1)
  return signRaw('{"alg":"HS256","typ":"JWT"}', `${rest},"${claim}":${text}}`)
}

t.test('case 20: a token without exp is refused, unless that is allowed', async t => {
  const endless = goodToken({ exp: undefined })
  await refuses(t, await gate(t), endless)
  await accepts(t, await gate(t, { jwt: { allowNoExpiry: true } }), endless, { context: { userId: 'alice', expiresAt: null } })
  await refuses(t, await gate(t, { jwt: { allowNoExpiry: true } }), goodToken({ exp: inSeconds(-1) }), { as: 'expired' })
})

t.test('case 21: an exp that is not a number is refused, also where exp may be missing', async t => {
  for (const jwt of [{}, { allowNoExpiry: true }]) {
    const server = await gate(t, { jwt })
    for (const exp of [String(inSeconds(300)), '', 'never', null, true, false, [inSeconds(300)], [], { value: inSeconds(300) }, {}]) {
      await refuses(t, server, goodToken({ exp }), { about: `exp ${JSON.stringify(exp)}` })
    }
  }
})

t.test('case 22: an exp that is no time is refused, and is never a fault of the server', async t => {
  for (const jwt of [{}, { allowNoExpiry: true }, { maxAge: 600 }]) {
    const server = await gate(t, { jwt })
    for (const exp of ['1e400', '1e308', '1.7976931348623157e308', '-1e20', '-1e400', '-1e308', '-1', `-${inSeconds(300)}`, '8640000000001', '9007199254740993', '1e20']) {
      await refuses(t, server, withRaw('exp', exp), { about: `exp ${exp}` })
    }
    await refuses(t, server, withRaw('exp', '0'), { as: 'expired', about: 'exp 0' })
    await refuses(t, server, withRaw('exp', '5e-324'), { as: 'expired', about: 'exp 5e-324' })
    for (const claim of ['nbf', 'iat']) {
      for (const time of ['1e400', '1e308', '-1e20', '-1', 'null', '"1"', '[]', '{}', 'true', '[1]']) {
        await refuses(t, server, withRaw(claim, time), { about: `${claim} ${time}` })
      }
    }
  }
  await accepts(t, await gate(t), withRaw('exp', '8.64e12'), { context: { expiresAt: 8.64e15 }, about: 'the last time there is' })
})

t.test('case 23: a token has ended at its exp, and not a second earlier', async t => {
  const now = inSeconds(0)
  fakeClock(t, now * 1000)
  const server = await gate(t)
  await refuses(t, server, goodToken({ exp: now }), { as: 'expired' })
  await refuses(t, server, goodToken({ exp: now - 1 }), { as: 'expired' })
  await refuses(t, server, goodToken({ exp: now - 0.001 }), { as: 'expired' })
  await accepts(t, server, goodToken({ exp: now + 1 }), { context: { expiresAt: (now + 1) * 1000 } })
  await accepts(t, server, goodToken({ exp: now + 0.5 }), { context: { expiresAt: (now + 0.5) * 1000 } })
})

t.test('clockTolerance moves the end of a token, and not without end', async t => {
  const now = inSeconds(0)
  fakeClock(t, now * 1000)
  const server = await gate(t, { jwt: { clockTolerance: 30 } })
  await accepts(t, server, goodToken({ exp: now - 29 }))
  await refuses(t, server, goodToken({ exp: now - 30 }), { as: 'expired' })
})

t.test('case 24: a token whose nbf is ahead is refused; inside the tolerance it passes', async t => {
  const now = inSeconds(0)
  fakeClock(t, now * 1000)
  const strict = await gate(t)
  await refuses(t, strict, goodToken({ nbf: now + 1 }))
  await refuses(t, strict, goodToken({ nbf: now + 0.5 }))
  await refuses(t, strict, goodToken({ nbf: now + YEAR, exp: now + 2 * YEAR }))
  await accepts(t, strict, goodToken({ nbf: now }))
  const tolerant = await gate(t, { jwt: { clockTolerance: 30 } })
  await accepts(t, tolerant, goodToken({ nbf: now + 30 }))
  await refuses(t, tolerant, goodToken({ nbf: now + 31 }))
})

t.test('case 25: a token that was issued in the future is refused', async t => {
  const now = inSeconds(0)
  fakeClock(t, now * 1000)
  const strict = await gate(t)
  await refuses(t, strict, goodToken({ iat: now + YEAR, exp: now + 2 * YEAR }))
  await refuses(t, strict, goodToken({ iat: now + 1 }))
  await refuses(t, strict, goodToken({ iat: now + YEAR, nbf: now - YEAR, exp: now + 2 * YEAR }))
  const tolerant = await gate(t, { jwt: { clockTolerance: 30, maxAge: 60 } })
  await accepts(t, tolerant, goodToken({ iat: now + 30 }))
  await refuses(t, tolerant, goodToken({ iat: now + 31 }))
})

t.test('case 26: with maxAge a token says when it was issued, and has ended that long after', async t => {
  const now = inSeconds(0)
  fakeClock(t, now * 1000)
  const server = await gate(t, { jwt: { maxAge: 60 } })
  await refuses(t, server, goodToken({ iat: undefined }))
  await refuses(t, server, goodToken({ iat: now - 60 }), { as: 'expired' })
  await accepts(t, server, goodToken({ iat: now - 59 }), { context: { expiresAt: (now + 1) * 1000 } })
  await accepts(t, server, goodToken({ iat: now - 10, exp: now + 5 }), { context: { expiresAt: (now + 5) * 1000 } })
  const endless = await gate(t, { jwt: { maxAge: 60, allowNoExpiry: true } })
  await refuses(t, endless, goodToken({ iat: undefined, exp: undefined }))
  await refuses(t, endless, goodToken({ iat: now - 61, exp: undefined }), { as: 'expired' })
  await accepts(t, endless, goodToken({ exp: undefined }), { context: { expiresAt: (now + 60) * 1000 } })
})

t.test('case 27: an iss that is missing, a list, or another text is refused', async t => {
  const ISSUER = 'https://id.example.com'
  for (const issuer of [ISSUER, ['https://other.example.com', ISSUER]]) {
    const server = await gate(t, { jwt: { issuer } })
    for (const iss of [
      undefined, null, [ISSUER], [], {}, '', true, 1, 'https://ID.example.com', 'HTTPS://id.example.com', `${ISSUER}/`, ` ${ISSUER}`, `${ISSUER} `,
      'https://id.example.co', `${ISSUER}.evil`, 'http://id.example.com', 'id.example.com', `${ISSUER}\u0000`
    ]) await refuses(t, server, goodToken({ iss }), { about: `iss ${JSON.stringify(iss)}` })
    await accepts(t, server, goodToken({ iss: ISSUER }), { context: { issuer: ISSUER } })
  }
  const any = await gate(t)
  for (const iss of [[ISSUER], {}, 1, null, '', 'x'.repeat(1025)]) {
    await refuses(t, any, goodToken({ iss }), { about: `iss ${JSON.stringify(iss).slice(0, 40)} where none is required` })
  }
  await accepts(t, any, goodToken({ iss: undefined }), { context: { issuer: null } })
})

t.test('case 28: an aud that is missing, empty, wrong or of mixed types is refused; a list that holds ours passes', async t => {
  for (const audience of ['ours', ['also', 'ours']]) {
    const server = await gate(t, { jwt: { audience } })
    for (const aud of [
      undefined, null, [], '', 'theirs', ['theirs'], ['ours', 1], ['ours', null], [['ours']], ['ours', {}], { 0: 'ours', length: 1 }, 1, true,
      'Ours', 'ours ', 'our', 'ours theirs', ['OURS']
    ]) await refuses(t, server, goodToken({ aud }), { about: `aud ${JSON.stringify(aud)}` })
    for (const aud of ['ours', ['ours'], ['theirs', 'ours']]) await accepts(t, server, goodToken({ aud }), { about: `aud ${JSON.stringify(aud)}` })
  }
  const any = await gate(t)
  for (const aud of [null, 1, {}, ['ours', 1]]) await refuses(t, any, goodToken({ aud }), { about: `aud ${JSON.stringify(aud)} where none is required` })
})

t.test('case 29: a typ other than the required one is refused, and application/ may be left out', async t => {
  const server = await gate(t, { jwt: { typ: 'at+jwt' } })
  for (const typ of [undefined, 'JWT', 'at', 'at+jwt ', 'at+jwt;v=1', 'text/at+jwt', 'application/application/at+jwt', 'application/', '', null, ['at+jwt'], 1, {}]) {
    await refuses(t, server, signHs256(goodClaims(), { typ }), { about: `typ ${JSON.stringify(typ)}` })
  }
  for (const typ of ['at+jwt', 'application/at+jwt', 'application/AT+JWT', 'AT+JWT']) {
    await accepts(t, server, signHs256(goodClaims(), { typ }), { about: `typ ${typ}` })
  }
  const long = await gate(t, { jwt: { typ: 'application/AT+JWT' } })
  await accepts(t, long, signHs256(goodClaims(), { typ: 'at+jwt' }))
  await refuses(t, long, signHs256(goodClaims(), { typ: 'JWT' }))
  const any = await gate(t)
  for (const typ of [null, ['JWT'], 1, {}]) await refuses(t, any, signHs256(goodClaims(), { typ }), { about: `typ ${JSON.stringify(typ)} where none is required` })
  await accepts(t, any, signHs256(goodClaims(), { typ: undefined }), { about: 'no typ' })
})

t.test('case 30: a sub that names nobody is refused, whatever the mapper would make of it', async t => {
  const byDefault = await gate(t)
  const mapped = await gate(t, { jwt: { user: ({ sub }) => ({ userId: String(sub) }) } })
  for (const sub of [null, '', {}, { toString: 'alice' }, 123, 'x'.repeat(10_240 / 2), [], ['alice'], true]) {
    const about = `sub ${JSON.stringify(sub).slice(0, 40)}`
    await refuses(t, byDefault, goodToken({ sub }), { about })
    await refuses(t, mapped, goodToken({ sub }), { about: `${about} with a mapper` })
  }
  await refuses(t, byDefault, goodToken({ sub: undefined }), { about: 'no sub' })
  const roomy = await gate(t, { jwt: { maxTokenLength: 16_000 } })
  await refuses(t, roomy, goodToken({ sub: 'x'.repeat(10_240) }), { about: 'sub of 10 KiB' })
  await refuses(t, roomy, goodToken({ sub: 'x'.repeat(1025) }), { about: 'sub of 1 025 characters' })
  await accepts(t, roomy, goodToken({ sub: 'x'.repeat(1024) }), { context: { userId: 'x'.repeat(1024) } })
})

t.test('case 31: a token that is bound to a key of its sender is no bearer token', async t => {
  const server = await gate(t)
  for (const cnf of [{ jkt: 'thumbprint' }, { 'x5t#S256': 'thumbprint' }, { jwk: {} }, {}, null, '', false, 'x']) {
    await refuses(t, server, goodToken({ cnf }), { about: `cnf ${JSON.stringify(cnf)}` })
  }
})

t.test('case 32: scope is a text of whole names; in another shape, or as a prefix, it grants nothing', async t => {
  const paths = { http: '/scoped', socket: '/scoped-live' }
  const server = await gate(t, {
    routes (app) {
      app.get('/scoped', { auth: { permissions: ['read'] } }, async request => request.auth)
      app.get('/scoped-live', { websocket: true, auth: { permissions: ['read'] } }, (socket, request) => { socket.send(JSON.stringify(request.auth)) })
    }
  })
  for (const scope of [
    ['read'], ['read', 'write'], 1, null, true, {}, { read: true }, '', ' ', 'readall', 'rea', 'READ', 'read,write', 'read\twrite', 'write', 'read:all', 'xread', undefined
  ]) await refuses(t, server, goodToken({ scope }), { as: 'forbidden', paths, about: `scope ${JSON.stringify(scope)}` })
  for (const scope of ['read', 'write read', 'read write', '  read  ']) {
    await accepts(t, server, goodToken({ scope }), { paths, about: `scope ${JSON.stringify(scope)}` })
  }

  await refuses(t, server, goodToken({ permissions: [], scope: 'read' }), { as: 'forbidden', paths, about: 'permissions come before scope' })
  await refuses(t, server, goodToken({ permissions: ['readall', 'rea'] }), { as: 'forbidden', paths, about: 'other permissions' })
  for (const permissions of ['read', 1, {}, [1], [['read']], ['read', null]]) {
    await refuses(t, server, goodToken({ permissions }), { paths, about: `permissions ${JSON.stringify(permissions)}` })
  }
  await accepts(t, server, goodToken({ permissions: ['read'] }), { paths, about: 'permissions' })
})

t.test('a jti or role that is no text is refused', async t => {
  const server = await gate(t)
  for (const jti of [1, null, '', {}, [], true, 'x'.repeat(1025)]) {
    await refuses(t, server, goodToken({ jti }), { about: `jti ${JSON.stringify(jti).slice(0, 40)}` })
  }
  for (const role of [1, '', {}, ['admin'], true]) await refuses(t, server, goodToken({ role }), { about: `role ${JSON.stringify(role)}` })
  for (const companyId of [1, '', {}, ['a']]) await refuses(t, server, goodToken({ companyId }), { about: `companyId ${JSON.stringify(companyId)}` })
})

t.test('a context is made of the claims, and is the same on every way but for the way', async t => {
  const server = await gate(t)
  const token = goodToken({ role: 'agent', scope: 'a b', companyId: 'acme', iss: 'https://id.example.com', jti: 'one' })
  const seen = []
  for (const way of WAYS) {
    const { context } = await present(server, way, token)
    seen.push({ ...context, via: '', authenticatedAt: 0 })
  }
  for (const context of seen) t.strictSame(context, seen[0])
  t.match(seen[0], { userId: 'alice', role: 'agent', permissions: ['a', 'b'], tenantId: 'acme', issuer: 'https://id.example.com', tokenId: 'one', version: 1 })
})
