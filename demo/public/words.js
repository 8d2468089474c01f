/** What a close means, in plain words. The codes and their names are the library's own. */
import { CLOSE } from '/lib/protocol.js'

const NAMES = { 1000: 'Normal', 1001: 'GoingAway', 1006: 'ConnectionLost', 1009: 'TooBig' }

const WORDS = {
  AuthenticationFailed: 'The server did not accept the credential.',
  AuthenticationExpired: 'The credential has run out.',
  Inactive: 'Nothing was sent for a while.',
  RefreshFailed: 'Three tokens in a row were refused.',
  RefreshTimeout: 'The server asked for another token, and none came in time.',
  Revoked: 'This sign-in was ended: by a logout, or by an operator.',
  Forbidden: 'You may not use this socket any more.',
  RateLimited: 'That was too much, too fast.',
  TooManyConnections: 'You have too many connections open.',
  AuthenticationTimeout: 'No credential came in time.',
  IdentityChanged: 'The next token was somebody else’s.',
  Unavailable: 'The server cannot ask who you are at the moment.',
  ProtocolError: 'The server did not understand what was sent.',
  Draining: 'The server is being restarted.',
  Normal: 'The connection was closed here.',
  ConnectionLost: 'The connection was lost, or could not be had: a browser does not say why.'
}

const NEXT = {
  stop: '', refresh: 'Trying again with a fresh credential.', retry: 'Trying again.', reconnect: 'Coming back.'
}

export const nameOf = code => Object.entries(CLOSE).find(([, row]) => row.code === code)?.[0] ?? NAMES[code] ?? ''

export function explain (code, action = 'stop') {
  return [`Closed ${code} ${nameOf(code)}.`, WORDS[nameOf(code)], NEXT[action]].filter(Boolean).join(' ')
}
