/** What to paste into bash, in the checkout, to try everything the server does. */

/** One bash script; each command can also be pasted by itself, in this order. */
export function commands (origin, logins) {
  const [alice, root] = logins.map(({ username, password }) => JSON.stringify({ username, password }))
  const live = `${origin.replace('http', 'ws')}/live`
  const token = login => tokenFor(origin, login)

  return script([
    ['A token, as in RFC 6749, section 5.1',
      `curl -s -w '\\n' ${origin}/token ${json(alice)}`,
      `TOKEN=${token(alice)}`],
    ['HTTP with the token: jwt',
      `curl -s -w '\\n' ${origin}/me -H "authorization: Bearer $TOKEN"`],
    ['Sign in: the session cookie goes into a jar',
      'JAR=$(mktemp)',
      `curl -s -w '\\n' -c "$JAR" ${origin}/login ${json(alice)}`],
    ['HTTP with the cookie: session',
      `curl -s -w '\\n' -b "$JAR" ${origin}/me`],
    ['HTTP with neither: 401',
      `curl -si -w '\\n' ${origin}/me`],
    ['alice is no admin: 403',
      `curl -si -w '\\n' ${origin}/admin -H "authorization: Bearer $TOKEN"`],
    ['root is one: 200',
      `curl -si -w '\\n' ${origin}/admin -H "authorization: Bearer ${token(root)}"`],
    ['The socket with the token: jwt',
      `TOKEN=$TOKEN ${node(`"${live}", { headers: { authorization: "Bearer " + process.env.TOKEN } }`)}`],
    ['The socket with the token as browsers send it: jwt',
      `TOKEN=$TOKEN ${node(`"${live}", ["hybrid-auth.v1", "bearer." + process.env.TOKEN]`)}`],
    ['The socket with the cookie: session. Whoever sends a cookie must say from which origin',
      `COOKIE=$(awk '$6 == "sessionId" { print $6 "=" $7 }' "$JAR") ${node(`"${live}", { origin: "${origin}", headers: { cookie: process.env.COOKIE } }`)}`],
    ['The socket with neither: 401',
      node(`"${live}"`)],
    ['A bad token as browsers send it: closed with 4001, which a page can read',
      node(`"${live}", ["hybrid-auth.v1", "bearer.wrong"]`)],
    ['Ten guesses from one address raise one alert: from then on 429, also where the route is another',
      `for n in 1 2 3 4 5 6 7 8 9 10; do curl -so /dev/null -w '%{http_code} ' ${origin}/me -H "authorization: Bearer guess.$n.guess"; done; echo`],
    ['A good token still passes',
      `curl -s -w '\\n' ${origin}/me -H "authorization: Bearer $TOKEN"`],
    ['What happened so far, for Prometheus',
      `curl -s ${origin}/metrics -H "authorization: Bearer ${token(root)}" | grep -E 'handshakes_total|limited_total|suspected_total'`]
  ])
}

/** Each command with its title before it. */
export const script = parts => parts.map(([title, ...lines]) => [`# ${title}`, ...lines, ''].join('\n')).join('\n')

export const json = body => `-H 'content-type: application/json' -d '${body}'`

export const tokenFor = (origin, login) => `$(curl -s ${origin}/token ${json(login)} | ${member('access_token')})`

/** Of the JSON that comes in. */
export const member = name => `node -p 'JSON.parse(fs.readFileSync(0)).${name}'`

/** Prints what the server sends, says one thing, and leaves when it comes back. */
export const node = target => client(target, 'console.log(String(data)); String(data) === "ping" ? socket.close() : socket.send("ping")')

/** Prints what the server sends, until that closes the socket. */
export const listener = target => client(target, 'console.log(String(data))')

function client (target, onMessage) {
  const script = [
    'import WebSocket from "ws"',
    `const socket = new WebSocket(${target})`,
    `socket.on("message", data => { ${onMessage} })`,
    'socket.on("close", (code, reason) => console.log(code, String(reason)))',
    'socket.on("error", error => console.log(error.message))'
  ].join('; ')
  return `node --input-type=module -e '${script}'`
}
