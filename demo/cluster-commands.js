/** What to paste into bash, in the checkout, to see what one node does reach the sockets of the other. */
import { COOKIE, HEARD, json, listener, loginOf, member, node, script, setRole, taken, visitor } from './commands.js'

/** One bash script; each command can also be pasted by itself, in this order. */
export function clusterCommands ([first, second], logins) {
  const [alice, root] = ['alice', 'root'].map(name => loginOf(logins, name))
  const live = `${second.replace('http', 'ws')}/live`
  const byToken = `"${live}", { headers: { authorization: "Bearer " + process.env.TOKEN } }`
  const byCookie = `"${live}", { origin: "${second}", headers: { cookie: process.env.COOKIE } }`
  const byTicket = `"${live}?ticket=" + process.env.TICKET`
  const revoke = `curl -s -w '\\n' ${first}/revoke ${json('{"userId":"alice"}')} -H`

  return script([
    ['Sign in on node 1: the session cookie goes into a jar',
      'JAR=$(mktemp)',
      `curl -s -w '\\n' -c "$JAR" ${first}/login ${json(alice)}`],
    ['A socket on node 2 with that cookie: session. It stays open',
      `exec 3< <(${COOKIE} ${listener(byCookie)})`,
      'read -r HELLO <&3; echo "$HELLO"'],
    ['Sign out on node 1: the socket on node 2 is closed with 4006',
      `curl -s -w '%{http_code}\\n' -X POST ${first}/logout -b "$JAR" -H 'origin: ${first}'`,
      'cat <&3'],
    ['A socket on node 2 with a token that node 1 issued: jwt. It joins the feed of its tenant, of which node 1 tells',
      HEARD,
      taken('alice', first, alice), taken('root', first, root),
      'TOKEN=$(alice)',
      `exec 3< <(TOKEN=$TOKEN ${visitor(byToken)})`,
      'heard number'],
    ['alice is no admin and may revoke nothing: 403',
      `${revoke} "authorization: Bearer $TOKEN"`],
    ['root takes her role on node 1: on node 2 she is told, is out of the room, and hears no more of it',
      setRole(first, 'alice', 'none'),
      'heard left; quiet'],
    ['root gives it back: she is told, and joins again. By the numbers, others were published meanwhile',
      setRole(first, 'alice', 'agent'),
      'heard number'],
    ['root revokes what alice has, on node 1: the socket on node 2 is closed with 4006',
      `${revoke} "authorization: Bearer $(root)"`,
      'cat <&3'],
    ['Her token opens nothing any more: 401',
      `TOKEN=$TOKEN ${node(byToken)}`],
    ['A ticket from node 1',
      `TICKET=$(curl -s -X POST ${first}/ticket -H "authorization: Bearer $(root)" | ${member('ticket')})`,
      'echo "$TICKET"'],
    ['It opens a socket on node 2',
      `TICKET=$TICKET ${node(byTicket)}`],
    ['and no second one: 401',
      `TICKET=$TICKET ${node(byTicket)}`],
    ['How each node stands to the other',
      `curl -s -w '\\n' ${first}/status -H "authorization: Bearer $(root)"`,
      `curl -s -w '\\n' ${second}/status -H "authorization: Bearer $(root)"`]
  ])
}
