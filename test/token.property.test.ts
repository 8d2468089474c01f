/** Whatever is presented as a token gets a coded answer, reaches nothing behind the guard, and leaves the server alive. */
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { goodToken, handshake, SECRET, signRaw } from './helpers.js'
import { exchange, gate, get, present, repeats, WAYS, type Answer, type Gate, type Way } from './ways.js'

const RUNS = { numRuns: 150 }

const bytes = fc.uint8Array({ maxLength: 400 }).map(array => Buffer.from(array).toString('latin1'))
const way = fc.constantFrom<Way[]>(...WAYS)

/** A 4xx, or an upgrade that was accepted only to be closed with a code of ours. */
function isCodedRefusal ({ status, close, context }: Answer): boolean {
  if (context !== null) return false
  return status === 101 ? close >= 4000 && close < 4100 : status >= 400 && status < 500
}

/** Holds for every input, and afterwards a good token still passes. */
async function holds<Input> (t: Test, inputs: fc.Arbitrary<Input>, ask: (server: Gate, input: Input) => Promise<Answer>) {
  const server = await gate(t)
  await fc.assert(fc.asyncProperty(inputs, async input => {
    const answer = await ask(server, input)
    if (isCodedRefusal(answer)) return
    throw new Error(`answered ${answer.status}, closed ${answer.close}`)
  }), RUNS)
  t.equal(server.reached(), 0, 'nothing ran behind the guard')
  const after = await Promise.all(WAYS.map(way => present(server, way, goodToken())))
  t.strictSame(after.map(({ context }) => context?.userId), WAYS.map(() => 'alice'), 'the server lives')
}

t.test('any bytes as a token get a coded answer on every way', async t => {
  await holds(t, fc.tuple(way, bytes), (server, [way, token]) => present(server, way, token))
})

t.test('any bytes as an Authorization header get a coded answer', async t => {
  await holds(t, fc.tuple(fc.boolean(), bytes), ({ port }, [upgrades, value]) => {
    const line = `Authorization: ${value}`
    return exchange(port, upgrades ? handshake([line]) : get('/me', [line]))
  })
})

t.test('any bytes as a subprotocol get a coded answer', async t => {
  const offers = fc.tuple(fc.constantFrom('', 'hybrid-auth.v1, ', 'hybrid-auth.v1, bearer.', 'chat, bearer.'), bytes)
  await holds(t, offers, ({ port }, [start, value]) => exchange(port, handshake([`Sec-WebSocket-Protocol: ${start}${value}`])))
})

t.test('any text and any bytes as a query get a coded answer', async t => {
  const value = fc.oneof(bytes, fc.string({ unit: 'binary', maxLength: 200 }).map(encodeURIComponent))
  const queries = fc.tuple(fc.boolean(), fc.constantFrom('token=', 'token=a&token=', 'token[]=', 'token%5B%5D=', ''), value)
  await holds(t, queries, ({ port }, [upgrades, start, value]) => {
    const query = `?${start}${value}`
    return exchange(port, upgrades ? handshake([], { path: `/live${query}` }) : get(`/me${query}`))
  })
})

t.test('any two ways at once, with any bytes, get a coded answer', async t => {
  await holds(t, fc.tuple(bytes, bytes), ({ port }, [first, second]) =>
    exchange(port, handshake([`Authorization: Bearer ${first}`, `Sec-WebSocket-Protocol: hybrid-auth.v1, bearer.${second}`])))
})

t.test('a good token beside any other on another way is refused', async t => {
  // Not empty, for an empty one would be none; printable, for the rest is refused before it is looked at.
  const other = fc.stringMatching(/^[A-Za-z0-9._-]{1,100}$/)
  await holds(t, fc.tuple(other, fc.constantFrom('header', 'subprotocol', 'query')), ({ port }, [text, good]) => {
    const pick = (here: string) => here === good ? goodToken() : text
    return good === 'query'
      ? exchange(port, handshake([`Authorization: Bearer ${text}`], { path: `/live?token=${goodToken()}` }))
      : exchange(port, handshake([`Authorization: Bearer ${pick('header')}`, `Sec-WebSocket-Protocol: hybrid-auth.v1, bearer.${pick('subprotocol')}`]))
  })
})

/** One edit of a text: a character put in, taken out, replaced or doubled, the end cut off, or two characters swapped. */
const edit = fc.record({
  kind: fc.constantFrom('insert', 'remove', 'replace', 'double', 'cut', 'swap', 'case'),
  at: fc.nat({ max: 100_000 }),
  character: fc.oneof(fc.constantFrom('.', '=', '+', '/', '-', '_', 'A', 'Q', ' ', '\t', '\n', '\0', '%', '&', '"'), fc.nat({ max: 255 }).map(code => String.fromCharCode(code)))
})

function apply (token: string, { kind, at, character }: { kind: string, at: number, character: string }): string {
  const i = at % token.length
  const [before, here, after] = [token.slice(0, i), token.charAt(i), token.slice(i + 1)]
  switch (kind) {
    case 'insert': return before + character + here + after
    case 'remove': return before + after
    case 'replace': return before + character + after
    case 'double': return before + here + here + after
    case 'cut': return before
    case 'swap': return before + after.slice(0, 1) + here + after.slice(1)
    default: return before + (here === here.toUpperCase() ? here.toLowerCase() : here.toUpperCase()) + after
  }
}

/** Whether a way still carries the very same token: space around a header's value belongs to HTTP, and a comma ends an offer. */
function isSame (changed: string, token: string, way: Way): boolean {
  if (way === 'subprotocol') return changed.split(',').some(item => item.trim() === token)
  return (way.endsWith('query') ? changed : changed.trim()) === token
}

t.test('a good token with any edit is refused on every way, also where the good one is known', async t => {
  const token = goodToken({ role: 'agent' })
  const server = await gate(t)
  t.match(await present(server, 'HTTP header', token), { context: { userId: 'alice' } })
  const reached = server.reached()
  await fc.assert(fc.asyncProperty(way, fc.array(edit, { minLength: 1, maxLength: 3 }), async (way, edits) => {
    const changed = edits.reduce((text, one) => text === '' ? text : apply(text, one), token)
    fc.pre(!isSame(changed, token, way))
    const answer = await present(server, way, changed)
    if (!isCodedRefusal(answer)) throw new Error(`answered ${answer.status}, closed ${answer.close}`)
    if (repeats(answer.received, changed)) throw new Error('the answer repeats the token')
  }), { numRuns: 400 })
  t.equal(server.reached(), reached, 'nothing ran behind the guard')
  t.notOk(repeats(server.log(), token), 'no log line holds the token')
  t.match(await present(server, 'subprotocol', token), { context: { userId: 'alice' } }, 'the server lives')
})

t.test('any bytes as the three segments, well encoded and well signed, get a coded answer', async t => {
  const part = fc.uint8Array({ maxLength: 200 }).map(array => Buffer.from(array))
  await holds(t, fc.tuple(way, part, part, fc.constantFrom('both', 'payload', 'header')), (server, [way, header, payload, which]) => present(server, way, signRaw(
    which === 'payload' ? '{"alg":"HS256"}' : header,
    which === 'header' ? JSON.stringify({ sub: 'alice', exp: 4e9 }) : payload)))
})

t.test('any JSON as header and claims, well signed, is accepted only for a subject that has not ended', async t => {
  const server = await gate(t)
  const value = fc.jsonValue({ maxDepth: 3 })
  const mostly = <T>(usual: T) => fc.oneof({ weight: 3, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: value })
  const header = fc.record({ alg: mostly('HS256'), typ: value, kid: value, crit: value, jwk: value, b64: value }, { requiredKeys: ['alg'] })
  const claims = fc.record({
    sub: mostly('alice'), exp: mostly(4e9), iat: value, nbf: value, iss: value, aud: value, jti: value, role: value, permissions: value,
    scope: value, companyId: value, cnf: value, other: value
  }, { requiredKeys: ['sub', 'exp'] })
  await fc.assert(fc.asyncProperty(way, header, claims, async (way, header, claims) => {
    const answer = await present(server, way, signRaw(JSON.stringify(header), JSON.stringify(claims), SECRET))
    if (answer.context === null) {
      if (!isCodedRefusal(answer)) throw new Error(`answered ${answer.status}, closed ${answer.close}`)
      return
    }
    const { userId, role, permissions, expiresAt } = answer.context
    if (header.alg !== 'HS256' || 'crit' in header || 'jwk' in header || 'b64' in header || 'cnf' in claims) throw new Error('accepted')
    if (userId !== claims.sub || typeof userId !== 'string' || userId === '') throw new Error('accepted as somebody else')
    if (typeof expiresAt !== 'number' || expiresAt <= Date.now()) throw new Error('accepted after its end')
    if (!(role === null || typeof role === 'string') || !Array.isArray(permissions)) throw new Error('accepted with a role or permissions of another shape')
  }), { numRuns: 400 })
  t.match(await present(server, 'HTTP header', goodToken()), { context: { userId: 'alice' } }, 'the server lives')
})
