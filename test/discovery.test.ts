/** What an issuer on the network may say of where its keys are. The network is stood in for: no test has a certificate for another host. */
import t, { type Test } from 'tap'
import { discoverKeys } from '../lib/verify/discovery.js'

const ISSUER = 'https://id.example.com'

function answering (t: Test, metadata: object): void {
  const { fetch } = globalThis
  globalThis.fetch = async () => new Response(JSON.stringify(metadata), { headers: { 'content-type': 'application/json' } })
  t.teardown(() => { globalThis.fetch = fetch })
}

t.test('an issuer that is asked over TLS has its keys behind TLS, wherever that is', async t => {
  for (const uri of [`${ISSUER}/keys`, 'https://keys.example.net/a?b=c']) {
    answering(t, { issuer: ISSUER, jwks_uri: uri })
    t.equal((await discoverKeys(ISSUER, AbortSignal.timeout(1000))).href, uri)
  }
})

t.test('72: and not where whoever listens on this machine, or on the way, could answer for it', async t => {
  for (const uri of ['http://127.0.0.1:3000/keys', 'http://localhost/keys', 'http://[::1]/keys', 'http://id.example.com/keys', 'https://user:pass@id.example.com/keys', 'file:///etc/keys', 'data:application/json,{}', undefined]) {
    answering(t, { issuer: ISSUER, ...(uri !== undefined && { jwks_uri: uri }) })
    await t.rejects(discoverKeys(ISSUER, AbortSignal.timeout(1000)), String(uri))
  }
})

t.test('an issuer that calls itself by another name is not the one that was asked', async t => {
  for (const issuer of [`${ISSUER}/`, 'https://other.example.com', 'https://ID.example.com', undefined]) {
    answering(t, { issuer, jwks_uri: `${ISSUER}/keys` })
    await t.rejects(discoverKeys(ISSUER, AbortSignal.timeout(1000)), String(issuer))
  }
})
