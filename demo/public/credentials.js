/** 1. Credentials: a session, which the browser keeps in a cookie, and a token, which this module keeps. */
import { at, time } from './show.js'

const login = at('login')
const problem = at('problem')

/** Kept here and nowhere else: not in the page, its address or its storage. */
let token = null
let hasSession = false
let listener = () => {}

export const bearer = () => token?.value ?? null

/** @param listen is told that there are others now, and whether there are any */
export function onCredentials (listen) {
  listener = listen
}

login.addEventListener('submit', async event => {
  event.preventDefault()
  if (login.ariaBusy === 'true') return
  login.ariaBusy = 'true'
  problem.textContent = ''
  const { username, password } = login.elements
  try {
    const path = event.submitter?.value === 'token' ? '/token' : '/login'
    const answer = await request(path, { username: username.value, password: password.value })
    if (path === '/token') showToken({ value: answer.access_token, user: username.value, until: Date.now() + answer.expires_in * 1000 })
    else showSession(answer.user)
  } catch (error) {
    problem.textContent = error.message
  } finally {
    login.ariaBusy = 'false'
  }
})

at('logout').addEventListener('click', async () => {
  problem.textContent = ''
  try {
    await request('/logout', {})
    showSession(null)
  } catch (error) {
    problem.textContent = error.message
  }
})

at('forget').addEventListener('click', () => { showToken(null) })

/** Who is signed in, and as what, may be another by now. */
export async function readSession () {
  showSession((await request('/session')).user)
}

function showToken (next) {
  token = next
  at('token').textContent = token === null ? 'none' : `${token.user}, until ${time(token.until)}`
  at('forget').hidden = token === null
  at('by-token').disabled = token === null
  tell()
}

function showSession (user) {
  hasSession = user !== null
  at('session').textContent = user === null ? 'none' : `${user.userId}, ${user.role}`
  at('logout').hidden = user === null
  tell()
}

const tell = () => listener(token !== null || hasSession)

/** The token goes along if there is one, else the cookie. */
export const headers = () => token === null ? {} : { authorization: `Bearer ${token.value}` }

/** As whoever it is that has them. @param body makes it a POST @throws an error that says why not */
export const ask = (path, body) => request(path, body, headers())

async function request (path, body, credential = {}) {
  const answer = await fetch(path, body === undefined
    ? { headers: credential }
    : { method: 'POST', headers: { ...credential, 'content-type': 'application/json' }, body: JSON.stringify(body) })
  const text = await answer.text()
  const json = text === '' ? {} : JSON.parse(text)
  if (!answer.ok) throw new Error(json.error_description ?? json.message ?? `The server answered ${answer.status}`)
  return json
}
