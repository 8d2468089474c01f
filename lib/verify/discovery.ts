/** Where the keys of an issuer are, as it says itself (OpenID Connect Discovery 1.0 §4). */
import { allowInsecureRequests, customFetch, discoveryRequest, processDiscoveryResponse } from 'oauth4webapi'
import { fetchBounded, isSafe, ProviderFailed } from './fetch.js'

/** @throws ProviderFailed, and what oauth4webapi throws on metadata of somebody else */
export async function discoverKeys (issuer: string, signal: AbortSignal): Promise<URL> {
  const address = new URL(issuer)
  const response = await discoveryRequest(address, {
    [customFetch]: (url, { headers }) => fetchBounded(url, { headers }, signal),
    // That it is on this machine, if so, was checked with the options.
    [allowInsecureRequests]: true
  })
  const { issuer: named, jwks_uri: uri } = await processDiscoveryResponse(address, response)
  // A slash more or less is another name in every token.
  if (named !== issuer) throw new ProviderFailed('the issuer calls itself by another name')
  const url = uri === undefined ? null : new URL(uri)
  if (url === null || !isSafe(url) || (url.protocol === 'http:' && address.protocol !== 'http:')) throw new ProviderFailed('the issuer says nothing of where its keys are that could be trusted')
  return url
}
