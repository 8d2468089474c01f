/** What the terminal shows: with what to sign in, and each decision in a line. */

export const loginLines = all => all.map(({ username, password, role, tenantId }) => `#   ${username} ${password} (${role}, ${tenantId})`).join('\n')

/** @param name of the process, where there are several */
export function printDecision ({ type, time, route, websocket, room, command, code, closeCode, reason, userId, authType, via }, name) {
  const where = route === undefined ? [] : [websocket ? 'socket' : 'http', route]
  const who = userId == null || authType == null ? [] : [userId, authType, `via ${via}`]
  console.log([new Date(time).toLocaleTimeString('en-GB'), name, type, ...where, ...who, room, command, code ?? closeCode ?? reason].filter(Boolean).join('  '))
}
