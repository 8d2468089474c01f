/** What the terminal shows: with what to sign in, and each decision in a line. */

export const loginLines = all => all.map(({ username, password, role, tenantId }) => `#   ${username} ${password} (${role}, ${tenantId})`).join('\n')

/** @param name of the process, where there are several */
export function printDecision ({ type, time, route, websocket, room, command, code, closeCode, reason, userId, authType, via }, name) {
  const where = route === undefined ? [] : [websocket ? 'socket' : 'http', route]
  const how = authType == null ? [] : [authType, `via ${via}`]
  const line = [new Date(time).toLocaleTimeString('en-GB'), name, type, ...where, userId, ...how, room, command, code ?? closeCode ?? reason]
  // Of some of it others choose the words: none of them moves the cursor.
  console.log(line.filter(Boolean).join('  ').replace(/\p{Cc}/gu, '?'))
}
