/** The credentials of this page. A session is a cookie; of the tokens one is kept here, and the other is in a cookie, too. */

/** Less is left of a token that is not used for a request any more, in milliseconds. */
const SPARE = 5000
const LOCK = 'refresh'

/** `session` or `token`; null: nobody is signed in. */
let kind = null
let userId = null
/** Kept here and nowhere else: not in the page, its address or its storage. */
let token = null
let flight = null

export const how = () => kind

export const who = () => userId

/** Whoever is signed in from before is again. */
export async function restore () {
  const { user } = await request('/session')
  if (user !== null) is('session', user.userId)
  else if (await refresh() !== null) is('token', userInToken())
}

/** @throws an error that says why not */
export async function signIn (wanted, credentials) {
  const answer = await request(wanted === 'token' ? '/token' : '/login', { method: 'POST', body: credentials })
  forget()
  if (wanted === 'token') keep(answer)
  is(wanted, credentials.username)
}

/** Of both kinds: what is left would sign this browser in again. @throws an error that says why not */
export async function signOut () {
  await request('/token/refresh', { method: 'DELETE' })
  if ((await request('/session')).user !== null) await request('/logout', { method: 'POST', body: {} })
  forget()
}

/** What the server has ended by itself. */
export function forget () {
  token = null
  is(null, null)
}

/** For the socket: null where there will be none. */
export async function getToken ({ reason }) {
  return reason === 'connect' && isFresh() ? token.value : refresh()
}

/** As whoever is signed in. @throws an error that says why not */
export async function ask (path, options = {}) {
  return bodyOf(await send(path, options))
}

/** The answer as it is. A token that was replaced since is asked for again, once. */
export async function send (path, options = {}) {
  if (kind !== 'token') return fetchJson(path, options)
  if (!isFresh()) await refresh()
  const answer = await fetchJson(path, withToken(options))
  return answer.status === 401 && await refresh() !== null ? fetchJson(path, withToken(options)) : answer
}

const withToken = options => token === null ? options : { ...options, headers: { authorization: `Bearer ${token.value}` } }

const isFresh = () => token !== null && performance.now() < token.until - SPARE

function is (nextKind, nextUser) {
  kind = nextKind
  userId = nextUser
}

/** The page need not verify it: the server does. */
const userInToken = () => JSON.parse(atob(token.value.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'))).sub

function keep ({ access_token: value, expires_in: lifetime }) {
  token = { value, until: performance.now() + lifetime * 1000 }
  return value
}

/** One at a time, among all tabs: they have one cookie, and each answer replaces it. */
function refresh () {
  flight ??= navigator.locks.request(LOCK, refreshNow).finally(() => { flight = null })
  return flight
}

async function refreshNow () {
  const answer = await fetchJson('/token/refresh', { method: 'POST' })
  if (answer.status === 200) return keep(await answer.json())
  if (answer.status >= 429) throw new Error('There is no token at the moment')
  token = null
  return null
}

async function request (path, options = {}) {
  return bodyOf(await fetchJson(path, options))
}

function fetchJson (path, { method = 'GET', body, headers = {} }) {
  return fetch(path, body === undefined
    ? { method, headers }
    : { method, headers: { ...headers, 'content-type': 'application/json' }, body: JSON.stringify(body) })
}

async function bodyOf (answer) {
  const text = await answer.text()
  const json = text === '' ? {} : JSON.parse(text)
  if (!answer.ok) throw new Error(json.error_description ?? json.message ?? `The server answered ${answer.status}`)
  return json
}
