/** The form of a token (RFC 7515 §5.2, RFC 8725): cases 1 to 19, each on every way in. */
import { createHmac, createPublicKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import http from 'node:http'
import t from 'tap'
import { goodClaims, goodToken, inSeconds, SECRET, signHs256, signRaw } from './helpers.js'
import { accepts, exchange, gate, get, outcomes, present, refuses, WAYS, type Way } from './ways.js'

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')

/** Signs segments as they are written, canonical or not. */
function signSegments (header: string, payload: string): string {
  return `${header}.${payload}.${createHmac('sha256', SECRET).update(`${header}.${payload}`).digest('base64url')}`
}

/** A token by the private half of a key pair. */
function signWith (algorithm: 'RS256' | 'ES256', key: KeyObject, claims: unknown, header: object = {}): string {
  const input = `${encode({ alg: algorithm, typ: 'JWT', ...header })}.${encode(claims)}`
  return `${input}.${sign('sha256', Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`
}

const signatureOf = (token: string) => token.slice(token.lastIndexOf('.') + 1)
const withoutSignature = (token: string) => token.slice(0, token.lastIndexOf('.') + 1)

// What cannot stand in a header: RFC 7235 has no place for it, and the request is refused as such.
const NO_HEADER: Partial<Record<Way, 'malformed'>> = { 'HTTP header': 'malformed', 'upgrade header': 'malformed' }
// What is no token of RFC 9110 cannot be offered as a subprotocol.
const NO_SUBPROTOCOL: Partial<Record<Way, 'malformed'>> = { subprotocol: 'malformed' }

t.test('a good token is accepted on every way in, and its context says which way it came', async t => {
  const server = await gate(t)
  const vias = []
  for (const way of WAYS) vias.push((await present(server, way, goodToken())).context?.via)
  t.strictSame(vias, ['header', 'query', 'header', 'subprotocol', 'query'])
  t.match(server.log(), /incoming request/, 'the log is a real one')
  t.match(server.log(), /token=\[redacted\]/)
})

t.test('case 1: alg none is refused in any case, with and without a signature', async t => {
  const server = await gate(t)
  for (const alg of ['none', 'None', 'NONE', 'nOnE', 'none ', '']) {
    const signed = signHs256(goodClaims(), { alg })
    await refuses(t, server, signed, { about: `alg ${alg}, signed` })
    await refuses(t, server, withoutSignature(signed), { about: `alg ${alg}, an empty signature` })
    await refuses(t, server, withoutSignature(signed).slice(0, -1), { about: `alg ${alg}, no signature` })
  }
})

t.test('case 2: an alg that is missing, or anything but the exact name, is refused', async t => {
  const server = await gate(t)
  for (const alg of [undefined, null, ['HS256'], { HS256: true }, { toString: 'HS256' }, 256, true, 'hs256', 'Hs256', 'HS256 ', ' HS256', 'HS256\u0000', 'HS', 'HS2566']) {
    await refuses(t, server, signHs256(goodClaims(), { alg }), { about: `alg ${JSON.stringify(alg)}` })
  }
  await refuses(t, server, signRaw('{}', JSON.stringify(goodClaims())), { about: 'no header parameter at all' })
})

t.test('case 3: a public key is never taken for an HMAC secret, whatever spelling of it signed', async t => {
  const pem = rsa.publicKey.export({ type: 'spki', format: 'pem' }).toString()
  const pkcs1 = rsa.publicKey.export({ type: 'pkcs1', format: 'pem' }).toString()
  const spellings: Record<string, string | Buffer> = {
    exact: pem,
    trimmed: pem.trim(),
    'with LF': pem.replaceAll('\r\n', '\n'),
    'with CRLF': pem.replaceAll('\n', '\r\n'),
    'with a second LF': `${pem}\n`,
    'of PKCS #1': pkcs1,
    'of PKCS #1, trimmed': pkcs1.trim(),
    'as DER': rsa.publicKey.export({ type: 'spki', format: 'der' }),
    'as JWK': JSON.stringify(rsa.publicKey.export({ format: 'jwk' }))
  }
  for (const [form, key] of Object.entries({ PEM: pem, 'Buffer of PEM': Buffer.from(pem), KeyObject: rsa.publicKey, 'map of kid': { k1: pem }, function: () => pem })) {
    const server = await gate(t, { jwt: { key, algorithms: ['RS256'] } })
    await accepts(t, server, signWith('RS256', rsa.privateKey, goodClaims(), { kid: 'k1' }), { about: `RS256 with the key as ${form}` })
    for (const [spelling, secret] of Object.entries(spellings)) {
      await refuses(t, server, signHs256(goodClaims(), { kid: 'k1' }, secret), { about: `HS256 by the PEM ${spelling}, key as ${form}` })
    }
  }
})

t.test('case 4: an algorithm outside of the list is refused with no key lookup, of the same family too', async t => {
  let lookups = 0
  const hmac = await gate(t, { jwt: { key: () => { lookups++; return SECRET } } })
  for (const alg of ['HS384', 'HS512', 'RS256', 'PS256', 'ES256', 'EdDSA', 'A128GCM', 'ES256K']) {
    await refuses(t, hmac, signHs256(goodClaims(), { alg }), { about: `${alg} on HS256` })
  }
  const input = `${encode({ alg: 'HS512' })}.${encode(goodClaims())}`
  await refuses(t, hmac, `${input}.${createHmac('sha512', SECRET).update(input).digest('base64url')}`, { about: 'HS512 by the same secret' })

  const asymmetric = await gate(t, { jwt: { key: () => { lookups++; return rsa.publicKey }, algorithms: ['RS256'] } })
  const pss = `${encode({ alg: 'PS256' })}.${encode(goodClaims())}`
  const padded = sign('sha256', Buffer.from(pss), { key: rsa.privateKey, padding: 6, saltLength: 32 }).toString('base64url')
  await refuses(t, asymmetric, `${pss}.${padded}`, { about: 'PS256 on RS256 by the same key' })
  t.equal(lookups, 0)
  await accepts(t, asymmetric, signWith('RS256', rsa.privateKey, goodClaims()), { about: 'RS256 on RS256' })
  t.equal(lookups, 1, 'and one lookup for the good token, whose verdict is kept')
})

t.test('case 5: a key that the token brings along is never used, and none that it points at is fetched', async t => {
  let hits = 0
  const listener = http.createServer((_request, response) => {
    hits++
    response.end(JSON.stringify({ keys: [{ ...attacker.publicKey.export({ format: 'jwk' }), alg: 'RS256', kid: 'k1' }] }))
  })
  const attacker = generateKeyPairSync('rsa', { modulusLength: 2048 })
  await new Promise<void>(resolve => { listener.listen(0, '127.0.0.1', resolve) })
  t.teardown(() => listener.close())
  const address = listener.address()
  if (address === null || typeof address === 'string') throw new Error('the listener has no port')
  const url = `http://127.0.0.1:${address.port}/keys`
  const jwk = attacker.publicKey.export({ format: 'jwk' })
  const x5c = [attacker.publicKey.export({ type: 'spki', format: 'der' }).toString('base64')]
  const embedded: object[] = [{ jwk }, { jku: url }, { x5u: url }, { x5c }, { jwk, jku: url, x5u: url, x5c }, { jwk: null }, { jku: '' }]

  let lookups = 0
  const asymmetric = await gate(t, { jwt: { key: () => { lookups++; return rsa.publicKey }, algorithms: ['RS256'] } })
  const hmac = await gate(t)
  for (const header of embedded) {
    const about = Object.keys(header).join()
    await refuses(t, asymmetric, signWith('RS256', attacker.privateKey, goodClaims(), { kid: 'k1', ...header }), { about: `${about} by the attacker` })
    await refuses(t, asymmetric, signWith('RS256', rsa.privateKey, goodClaims(), { kid: 'k1', ...header }), { about: `${about} by the issuer` })
    await refuses(t, hmac, signHs256(goodClaims(), header), { about: `${about} on HS256` })
  }
  const secret = { kty: 'oct', k: Buffer.from('a secret of the attacker, 32 bytes long').toString('base64url') }
  await refuses(t, hmac, signHs256(goodClaims(), { jwk: secret }, 'a secret of the attacker, 32 bytes long'), { about: 'an embedded secret' })
  t.equal(hits, 0, 'no outbound request')
  t.equal(lookups, 0, 'no key lookup')
})

t.test('case 6: a token with crit is refused, whatever crit holds', async t => {
  const server = await gate(t)
  for (const crit of [['exp'], ['b64'], ['unknown'], [], null, false, 0, '', 'exp', {}, true]) {
    await refuses(t, server, signHs256(goodClaims(), { crit }), { about: `crit ${JSON.stringify(crit)}` })
  }
})

t.test('case 7: a token with b64 false is refused', async t => {
  const server = await gate(t)
  await refuses(t, server, signHs256(goodClaims(), { b64: false }), { about: 'b64 false' })
  await refuses(t, server, signHs256(goodClaims(), { b64: false, crit: ['b64'] }), { about: 'b64 false, critical' })
  const header = encode({ alg: 'HS256', b64: false, crit: ['b64'] })
  const payload = encode(goodClaims())
  const overRaw = createHmac('sha256', SECRET).update(`${header}.${Buffer.from(payload, 'base64url').toString()}`).digest('base64url')
  await refuses(t, server, `${header}.${payload}.${overRaw}`, { about: 'b64 false, signed over the raw payload' })
})

t.test('case 8: what has other than three segments is no token', async t => {
  const server = await gate(t)
  const token = goodToken()
  const [header = '', payload = '', signature = ''] = token.split('.')
  for (const text of [
    `${token}.${payload}.${signature}`, `${header}..${payload}.${signature}.${signature}`, `${token}.`, `.${token}`, `${token}..`,
    '....', '...', '..', '.', header, `${header}.${payload}`, `${header}..${signature}`, `.${payload}.${signature}`, `${token}.${signature}`
  ]) await refuses(t, server, text)
  const unsigned = { payload, protected: header }
  for (const text of [
    JSON.stringify({ ...unsigned, signature }),
    JSON.stringify({ payload, signatures: [{ protected: header, signature }] })
  ]) await refuses(t, server, text, { except: { ...NO_HEADER, ...NO_SUBPROTOCOL }, about: 'a JSON serialisation' })
})

t.test('case 9: padding, whitespace and the base64 alphabet are refused', async t => {
  const server = await gate(t)
  const token = goodToken()
  const [header = '', payload = '', signature = ''] = token.split('.')
  await refuses(t, server, `${token}=`, { except: NO_SUBPROTOCOL, about: 'TOK=' })
  await refuses(t, server, `${token}==`, { except: NO_SUBPROTOCOL, about: 'TOK==' })
  await refuses(t, server, signSegments(`${header}=`, payload), { except: NO_SUBPROTOCOL, about: 'padding inside' })
  for (const [at, text] of Object.entries({
    'in front': ` ${token}`, 'before the payload': `${header}. ${payload}.${signature}`, 'before the signature': `${header}.${payload}. ${signature}`,
    'a tab inside': `${header}.${payload}\t.${signature}`
  })) await refuses(t, server, text, { except: { ...NO_HEADER, ...NO_SUBPROTOCOL }, about: `whitespace ${at}` })

  for (const end of ['\n', '\r\n', '\t', ' ', '\0', '\u00a0', '\ufeff']) {
    for (const way of ['HTTP query', 'upgrade query'] as const) {
      t.match(await present(server, way, token + end), { status: 401, code: 'FST_HYBRID_AUTH_INVALID_TOKEN' }, `${way}: ${JSON.stringify(end)} behind the token`)
    }
  }
  for (const way of ['HTTP header', 'upgrade header', 'subprotocol'] as const) {
    t.match(await present(server, way, `${token}\n`), { status: 400, context: null }, `${way}: a line feed behind the token`)
    t.match(await present(server, way, `${token}\0`), { status: 400, context: null }, `${way}: a NUL behind the token`)
  }

  // Whichever the random identifier gives: one token whose segments hold both letters that differ.
  const claims = goodClaims({ text: '\u00fb\u00ff\u00fe~~~???>>>' })
  const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64').replaceAll('=', '')
  const plain = signSegments(base64({ alg: 'HS256' }), base64(claims))
  t.match(plain, /\/|\+/)
  await refuses(t, server, plain, { except: plain.includes('/') ? NO_SUBPROTOCOL : {}, about: 'base64, not base64url' })
  await refuses(t, server, `${header}.${payload}.+${signature.slice(1)}`, { about: 'a plus in the signature' })
  await refuses(t, server, `${header}.${payload}./${signature.slice(1)}`, { except: NO_SUBPROTOCOL, about: 'a slash in the signature' })
})

t.test('case 10: a token has one spelling: no unused bits, no character more', async t => {
  const server = await gate(t)
  const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  const token = goodToken()
  for (const last of ALPHABET) {
    const variant = token.slice(0, -1) + last
    if (variant !== token) await refuses(t, server, variant, { about: `a signature that ends with ${last}` })
  }
  for (const more of ['A', 'AA', 'AAA', 'AAAA', '-', '_']) await refuses(t, server, token + more, { about: `${more} appended` })
  await accepts(t, server, token)
  for (const last of ['A', 'B']) await refuses(t, server, token + last, { about: `${last} appended to a token that is known` })

  // The same of header and payload, signed over the spelling as it is written.
  const headers = [0, 1, 2].map(spaces => Buffer.from(JSON.stringify({ alg: 'HS256' }) + ' '.repeat(spaces)).toString('base64url'))
  const claims = JSON.stringify(goodClaims())
  const payloads = [0, 1, 2].map(spaces => Buffer.from(claims + ' '.repeat(spaces)).toString('base64url'))
  const [header = ''] = headers
  const [payload = ''] = payloads
  for (const segment of headers) {
    await accepts(t, server, signSegments(segment, payload), { about: `a header of ${segment.length} characters` })
    for (const variant of respelled(segment)) await refuses(t, server, signSegments(variant, payload), { about: `header ${variant}` })
  }
  for (const segment of payloads) {
    await accepts(t, server, signSegments(header, segment), { about: `a payload of ${segment.length} characters` })
    for (const variant of respelled(segment)) await refuses(t, server, signSegments(header, variant), { about: `payload ${variant.slice(-8)}` })
  }

  /** Other spellings of the same bytes. */
  function respelled (segment: string): string[] {
    const bytes = Buffer.from(segment, 'base64url')
    return Array.from(ALPHABET, last => segment.slice(0, -1) + last).concat(`${segment}A`)
      .filter(variant => variant !== segment && Buffer.from(variant, 'base64url').equals(bytes))
  }
})

t.test('case 11: the second signature of an ECDSA token names the same token', async t => {
  const server = await gate(t, { jwt: { key: ec.publicKey, algorithms: ['ES256'] } })
  const ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n
  for (const jti of ['token-1', undefined]) {
    const token = signWith('ES256', ec.privateKey, goodClaims({ jti }))
    const bytes = Buffer.from(signatureOf(token), 'base64url')
    const mirrored = ORDER - BigInt(`0x${bytes.toString('hex', 32)}`)
    const twin = withoutSignature(token) +
      Buffer.concat([bytes.subarray(0, 32), Buffer.from(mirrored.toString(16).padStart(64, '0'), 'hex')]).toString('base64url')
    t.not(twin, token)
    const { tokenId } = await accepts(t, server, token, { about: 'as it was issued' })
    if (jti !== undefined) t.equal(tokenId, jti)
    for (const way of WAYS) {
      const { context } = await present(server, way, twin)
      t.ok(context === null || context.tokenId === tokenId, `${way}: refused, or the same token`)
    }
  }
})

t.test('case 12: a signature that is empty, of one byte, or too long is refused', async t => {
  const hmac = await gate(t)
  const token = goodToken()
  const input = withoutSignature(token)
  const good = Buffer.from(signatureOf(token), 'base64url')
  const sizes: Record<string, Buffer> = {
    'of 1 byte': good.subarray(0, 1), 'of 16 bytes': good.subarray(0, 16), 'of 31 bytes': good.subarray(0, 31),
    'of 33 bytes': Buffer.concat([good, Buffer.of(0)]), 'of 64 bytes': Buffer.concat([good, good]),
    'of 4 KiB': Buffer.concat([good, Buffer.alloc(4064)]), 'of zeros': Buffer.alloc(32)
  }
  await refuses(t, hmac, input, { about: 'an empty signature' })
  for (const [size, bytes] of Object.entries(sizes)) await refuses(t, hmac, input + bytes.toString('base64url'), { about: `a signature ${size}` })

  const ecdsa = await gate(t, { jwt: { key: ec.publicKey, algorithms: ['ES256'] } })
  const ecToken = signWith('ES256', ec.privateKey, goodClaims())
  const ecInput = withoutSignature(ecToken)
  const ecGood = Buffer.from(signatureOf(ecToken), 'base64url')
  const der = sign('sha256', Buffer.from(ecInput.slice(0, -1)), ec.privateKey)
  for (const [size, bytes] of Object.entries({
    'of zeros': Buffer.alloc(64), 'of 1 byte': ecGood.subarray(0, 1), 'of 63 bytes': ecGood.subarray(0, 63),
    'of 65 bytes': Buffer.concat([ecGood, Buffer.of(0)]), 'in DER': der, 'of 4 KiB': Buffer.alloc(4096, 1)
  })) await refuses(t, ecdsa, ecInput + bytes.toString('base64url'), { about: `an ECDSA signature ${size}` })
  await refuses(t, ecdsa, ecInput, { about: 'an empty ECDSA signature' })
})

t.test('case 13: a token of 15 KiB is refused unread', async t => {
  let lookups = 0
  const server = await gate(t, { jwt: { key: () => { lookups++; return SECRET } } })
  const token = goodToken({ padding: 'x'.repeat(11_000) })
  t.ok(token.length > 14_500 && token.length < 15_400)
  await refuses(t, server, token, { about: '15 KiB, signed' })
  await refuses(t, server, 'A'.repeat(15 * 1024), { about: '15 KiB of one letter' })
  await refuses(t, server, '.'.repeat(15 * 1024), { about: '15 KiB of dots' })
  t.equal(lookups, 0)
  for (const way of WAYS) {
    t.match(await present(server, way, goodToken({ padding: 'x'.repeat(20_000) })), { status: 431, context: null }, `${way}: past what Node reads`)
  }
  await accepts(t, server, goodToken(), { about: 'and the server lives' })
})

t.test('a token is accepted up to maxTokenLength, to the character', async t => {
  const token = goodToken({ padding: 'x'.repeat(500) })
  await accepts(t, await gate(t, { jwt: { maxTokenLength: token.length } }), token)
  await refuses(t, await gate(t, { jwt: { maxTokenLength: token.length - 1 } }), token)
})

t.test('case 14: JSON nested without end is refused, in claims and in the header', async t => {
  const large = { jwt: { maxTokenLength: 65_536 }, fastify: { http: { maxHeaderSize: 1 << 20 } } }
  const server = await gate(t, large)
  const claims = JSON.stringify(goodClaims()).slice(0, -1)
  const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
  // The deepest that fits the longest token that can be allowed.
  for (const depth of [65, 1000, 23_000]) {
    const token = signRaw('{"alg":"HS256"}', `${claims},"deep":${nested(depth)}}`)
    t.ok(token.length <= 65_536)
    await refuses(t, server, token, { about: `lists ${depth} deep in a claim` })
    await refuses(t, server, signRaw('{"alg":"HS256"}', nested(depth)), { about: `a payload of lists ${depth} deep` })
  }
  await refuses(t, server, signRaw('{"alg":"HS256"}', `${claims},"deep":${'{"a":'.repeat(7000)}1${'}'.repeat(7000)}}`), { about: 'objects 7 000 deep' })
  await refuses(t, server, signRaw('{"alg":"HS256"}', `${claims},"deep":${'['.repeat(40_000)}`), { about: '40 000 lists that are never closed' })
  await refuses(t, server, signRaw(nested(23_000), JSON.stringify(goodClaims())), { about: 'a header of lists' })
  await refuses(t, server, signRaw(`{"alg":"HS256","kid":${nested(23_000)}}`, JSON.stringify(goodClaims())), { about: 'a kid of lists' })
  await refuses(t, server, signRaw('{"alg":"HS256"}', nested(100_000)), { about: '100 000 deep, longer than can be allowed' })
  await accepts(t, server, goodToken({ deep: JSON.parse(nested(60)) as unknown }), { about: 'lists 60 deep' })
})

t.test('case 15: a payload that is not an object with claims is refused', async t => {
  const server = await gate(t)
  // Nothing but the form could refuse here.
  const lenient = await gate(t, { jwt: { allowNoExpiry: true, user: () => ({ userId: 'anybody' }) } })
  for (const payload of ['[]', '[{"sub":"alice"}]', '"s"', '1', 'null', 'true', 'false', '0', '""', ' ', '{', '{}{}', '{"sub":"alice"}x', "{'sub':'alice'}", '\ufeff{"sub":"alice"}']) {
    await refuses(t, server, signRaw('{"alg":"HS256"}', payload), { about: `payload ${payload}` })
    await refuses(t, lenient, signRaw('{"alg":"HS256"}', payload), { about: `payload ${payload} where no claim is required` })
  }
  await refuses(t, server, signRaw('{"alg":"HS256"}', '{}'), { about: 'payload {}' })
  await refuses(t, await gate(t, { jwt: { allowNoExpiry: true } }), signRaw('{"alg":"HS256"}', '{}'), { about: 'payload {}, without expiry: it names nobody' })
  for (const header of ['[]', '"s"', '1', 'null', '{}', '', '\ufeff{"alg":"HS256"}', '[{"alg":"HS256"}]']) {
    await refuses(t, server, signRaw(header, JSON.stringify(goodClaims())), { about: `header ${header}` })
  }
})

t.test('case 16: invalid UTF-8 is refused, in claims and in the header', async t => {
  const server = await gate(t)
  const claims = JSON.stringify(goodClaims()).slice(0, -1)
  for (const bytes of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xe2, 0x82], [0x80], [0xf5, 0x80, 0x80, 0x80]]) {
    const text = Buffer.concat([Buffer.from(`${claims},"name":"`), Buffer.from(bytes), Buffer.from('"}')])
    const key = Buffer.concat([Buffer.from(`${claims},"`), Buffer.from(bytes), Buffer.from('":1}')])
    const header = Buffer.concat([Buffer.from('{"alg":"HS256","x":"'), Buffer.from(bytes), Buffer.from('"}')])
    const about = bytes.map(byte => byte.toString(16)).join(' ')
    await refuses(t, server, signRaw('{"alg":"HS256"}', text), { about: `${about} in a claim` })
    await refuses(t, server, signRaw('{"alg":"HS256"}', key), { about: `${about} in the name of a claim` })
    await refuses(t, server, signRaw(header, JSON.stringify(goodClaims())), { about: `${about} in the header` })
  }
  await accepts(t, server, goodToken({ name: 'Zoë 🦊', sub: 'alice' }), { about: 'and valid UTF-8 passes' })
})

t.test('case 17: duplicate keys have the same outcome on every way', async t => {
  const server = await gate(t)
  const [past, future] = [inSeconds(-60), inSeconds(300)]
  for (const [header, payload] of [
    ['{"alg":"none","alg":"HS256"}', `{"sub":"alice","exp":${future}}`],
    ['{"alg":"HS256","alg":"none"}', `{"sub":"alice","exp":${future}}`],
    ['{"alg":"HS256"}', `{"sub":"alice","exp":${past},"exp":${future}}`],
    ['{"alg":"HS256"}', `{"sub":"alice","exp":${future},"exp":${past}}`],
    ['{"alg":"HS256"}', `{"sub":"alice","sub":"mallory","exp":${future}}`],
    ['{"alg":"HS256"}', `{"sub":"alice","sub":null,"exp":${future}}`],
    ['{"alg":"HS256","crit":["x"],"crit":[]}', `{"sub":"alice","exp":${future}}`]
  ] as const) {
    const token = signRaw(header, payload)
    const first = await outcomes(server, token)
    t.equal(new Set(first).size, 1, `${first.join()}: ${header} ${payload}`)
    t.strictSame(await outcomes(server, token), first, 'and again')
    if (first[0] === 'accepted') await accepts(t, server, token, { context: { userId: payload.includes('mallory') ? 'mallory' : 'alice' } })
  }
  await refuses(t, server, signRaw('{"alg":"HS256","alg":"none"}', JSON.stringify(goodClaims())), { about: 'the last alg is none' })
  await refuses(t, server, signRaw('{"alg":"HS256"}', `{"sub":"alice","exp":${future},"exp":${past}}`), { as: 'expired', about: 'the last exp is past' })
})

t.test('case 18: claims called __proto__, constructor and prototype are absent from the context', async t => {
  const server = await gate(t)
  const poison = '"__proto__":{"role":"admin","polluted":1},"constructor":{"prototype":{"polluted":1}},"prototype":{"polluted":1}'
  const claims = JSON.stringify(goodClaims()).slice(0, -1)
  const poisoned = signRaw('{"alg":"HS256"}', `${claims},${poison},"nested":{${poison},"kept":1},"list":[{${poison}}]}`)
  await accepts(t, server, poisoned, { context: { userId: 'alice', role: null, permissions: [] } })
  for (const way of WAYS) {
    const { received } = await present(server, way, poisoned)
    t.match(received, '"kept":1')
    t.notMatch(received, /__proto__|constructor|prototype|polluted|admin/, `${way}: nothing of it in the context`)
  }
  await refuses(t, server, signRaw('{"alg":"HS256"}', `{"__proto__":${JSON.stringify(goodClaims())}}`), { about: 'all claims inherited' })
  await refuses(t, server, signRaw('{"__proto__":{"alg":"HS256"}}', JSON.stringify(goodClaims())), { about: 'an inherited alg' })
  await accepts(t, server, signRaw('{"alg":"HS256","__proto__":{"crit":["x"],"kid":{}}}', JSON.stringify(goodClaims())), { about: 'an inherited crit is none' })
  const clean: Record<string, unknown> = {}
  t.strictSame([clean.role, clean.polluted, clean.crit, clean.alg], [undefined, undefined, undefined, undefined])
  t.strictSame(Object.getOwnPropertyNames(Object.prototype).filter(name => /polluted|role/.test(name)), [])
})

t.test('case 19: a token that is no text, or that is the text of a value, is refused', async t => {
  const server = await gate(t)
  for (const text of ['null', 'undefined', 'true', 'false', '0', '1', 'NaN', '-1', '[object.Object]']) {
    await refuses(t, server, text, { except: text.startsWith('[') ? NO_SUBPROTOCOL : {}, about: text })
  }
  await refuses(t, server, '{"token":1}', { except: NO_SUBPROTOCOL })
  await refuses(t, server, '', { except: NO_HEADER, about: 'the empty text' })

  const token = goodToken()
  for (const [query, status, code] of [
    [`token=${token}&token=${token}`, 400, 'MALFORMED_REQUEST'],
    [`token=${token}&token=`, 400, 'MALFORMED_REQUEST'],
    ['token', 401, 'INVALID_TOKEN'],
    [`token[]=${token}`, 401, 'MISSING_CREDENTIALS'],
    [`token[a]=${token}`, 401, 'MISSING_CREDENTIALS'],
    [`Token=${token}`, 401, 'MISSING_CREDENTIALS']
  ] as const) {
    const about = query.replaceAll(token, 'TOK')
    t.match(await exchange(server.port, get(`/me?${query}`)), { status, code: `FST_HYBRID_AUTH_${code}` }, `HTTP: ${about}`)
  }
  t.equal(server.reached(), 0)

  for (const parsed of [{ token: 1 }, { token: null }, { token: { toString: () => token } }, { token: [token] }, { token: true }]) {
    const typed = await gate(t, { fastify: { routerOptions: { querystringParser: () => ({ ...parsed }) } } })
    for (const way of ['HTTP query', 'upgrade query'] as const) {
      t.match(await present(typed, way, 'x'), { status: 400, code: 'FST_HYBRID_AUTH_MALFORMED_REQUEST', context: null }, `${way}: ${typeof parsed.token}`)
    }
    t.equal(typed.reached(), 0)
  }
})

t.test('the public key of a private one is what verifies, and the pair of another is refused', async t => {
  const server = await gate(t, { jwt: { key: createPublicKey(ec.privateKey), algorithms: ['ES256'] } })
  await accepts(t, server, signWith('ES256', ec.privateKey, goodClaims()))
  await refuses(t, server, signWith('ES256', generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey, goodClaims()))
})
