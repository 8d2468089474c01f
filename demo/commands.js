/** What to paste into bash, in the checkout, to try everything the server does. */

/** One bash script; each command can also be pasted by itself, in this order. */
export function commands (origin, logins) {
  const [alice, root] = ['alice', 'root'].map(name => loginOf(logins, name))
  const live = `${origin.replace('http', 'ws')}/live`
  const byCookie = `"${live}", { origin: "${origin}", headers: { cookie: process.env.COOKIE } }`

  return script([
    ['A token, as in RFC 6749, section 5.1',
      `curl -s -w '\\n' ${origin}/token ${json(alice)}`],
    ['They are short: each command from here on takes another',
      taken('alice', origin, alice), taken('root', origin, root)],
    ['HTTP with the token: jwt',
      `curl -s -w '\\n' ${origin}/me -H "authorization: Bearer $(alice)"`],
    ['Sign in: the session cookie goes into a jar',
      'JAR=$(mktemp)',
      `curl -s -w '\\n' -c "$JAR" ${origin}/login ${json(alice)}`],
    ['HTTP with the cookie: session',
      `curl -s -w '\\n' -b "$JAR" ${origin}/me`],
    ['HTTP with neither: 401',
      `curl -si -w '\\n' ${origin}/me`],
    ['alice is no admin: 403',
      `curl -si -w '\\n' ${origin}/admin -H "authorization: Bearer $(alice)"`],
    ['root is one: 200',
      `curl -si -w '\\n' ${origin}/admin -H "authorization: Bearer $(root)"`],
    ['The socket with the token: jwt',
      `TOKEN=$(alice) ${node(`"${live}", { headers: { authorization: "Bearer " + process.env.TOKEN } }`)}`],
    ['The socket with the token as browsers send it: jwt',
      `TOKEN=$(alice) ${node(`"${live}", ["hybrid-auth.v1", "bearer." + process.env.TOKEN]`)}`],
    ['The socket with the cookie: session. Whoever sends a cookie must say from which origin',
      `${COOKIE} ${node(byCookie)}`],
    ['The feed of her tenant, for a client that joins whenever it may: a property every second',
      HEARD,
      `exec 3< <(${COOKIE} ${visitor(byCookie)})`,
      'heard number'],
    ['root takes her role: she is told, is out of the room, and hears no more of it',
      setRole(origin, 'alice', 'none'),
      'heard left; quiet'],
    ['root gives it back: she is told, and joins again. By the numbers, others were published meanwhile',
      setRole(origin, 'alice', 'agent'),
      'heard number'],
    ['She signs out: the socket is closed with 4006',
      `curl -s -w '%{http_code}\\n' -X POST ${origin}/logout -b "$JAR" -H 'origin: ${origin}'`,
      'cat <&3'],
    ['The socket with neither: 401',
      node(`"${live}"`)],
    ['A bad token as browsers send it: closed with 4001, which a page can read',
      node(`"${live}", ["hybrid-auth.v1", "bearer.wrong"]`)],
    ['Ten guesses from one address raise one alert: from then on 429, also where the route is another',
      `for n in 1 2 3 4 5 6 7 8 9 10; do curl -so /dev/null -w '%{http_code} ' ${origin}/me -H "authorization: Bearer guess.$n.guess"; done; echo`],
    ['A good token still passes',
      `curl -s -w '\\n' ${origin}/me -H "authorization: Bearer $(alice)"`],
    ['What happened so far, for Prometheus',
      `curl -s ${origin}/metrics -H "authorization: Bearer $(root)" | grep -E 'handshakes_total|limited_total|suspected_total'`]
  ])
}

/** Each command with its title before it. */
export const script = parts => parts.map(([title, ...lines]) => [`# ${title}`, ...lines, ''].join('\n')).join('\n')

export const json = body => `-H 'content-type: application/json' -d '${body}'`

/** What somebody signs in with. */
export const loginOf = (logins, name) => {
  const { username, password } = logins.find(({ username }) => username === name)
  return JSON.stringify({ username, password })
}

/** A function that takes a token. */
export const taken = (name, origin, login) => `${name}() { curl -s ${origin}/token ${json(login)} | ${member('access_token')}; }`

/** The cookie of the jar, for what comes after it. */
export const COOKIE = 'COOKIE=$(awk \'$6 == "sessionId" { print $6 "=" $7 }\' "$JAR")'

/** Two functions for what a client on descriptor 3 prints: up to a line with a word in it, and until there is nothing for a while. */
export const HEARD = [
  'heard() { while read -r LINE <&3; do echo "$LINE"; [[ $LINE == *"$1"* ]] && return; done; }',
  'quiet() { while read -rt 3 LINE <&3; do echo "$LINE"; [[ $LINE == *number* ]] && return; done; echo "nothing for 3 seconds"; }'
].join('\n')

/** As root. */
export const setRole = (origin, userId, role) =>
  `curl -s -w '\\n' ${origin}/role ${json(JSON.stringify({ userId, role }))} -H "authorization: Bearer $(root)"`

/** Of the JSON that comes in. */
export const member = name => `node -p 'JSON.parse(fs.readFileSync(0)).${name}'`

/** Prints what the server sends, says one thing, and leaves when it comes back. */
export const node = target => client(target, 'console.log(String(data)); String(data) === "ping" ? socket.close() : socket.send("ping")')

/** Prints what the server sends, until that closes the socket. */
export const listener = target => client(target, 'console.log(String(data))')

/** Prints what the server sends, and joins the room of its tenant when it comes and whenever it is given a permission. */
export const visitor = target => client(target, [
  'console.log(String(data)); const { type, auth, added } = JSON.parse(data)',
  'if (type === "hello") socket.room = "tenant/" + auth.tenantId + "/agents"',
  'if (type === "hello" || added?.length > 0) socket.send(JSON.stringify({ type: "join", room: socket.room }))'
].join('; '))

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
