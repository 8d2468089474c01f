/** The shapes of what comes in, and of what goes out. */

const text = maxLength => ({ type: 'string', minLength: 1, maxLength })
const object = properties => ({ type: 'object', required: Object.keys(properties), additionalProperties: false, properties })
const maybe = type => ({ type, nullable: true })

export const CREDENTIALS = object({ username: text(64), password: text(128) })
export const WHOM = object({ userId: text(64) })
export const roleChange = roles => object({ userId: text(64), role: { enum: roles } })
export const SAYING = object({ text: text(200) })
export const ENTRY = object({ id: { type: 'string', pattern: '^[0-9a-f]{12}$' } })
export const ORDER = object({ connectionId: text(64), action: { enum: ['revoke', 'read-only', 'shorten'] } })

const user = { userId: { type: 'string' }, tenantId: maybe('string') }
export const LOGIN_ANSWER = object({ user: object(user) })
export const SESSION_ANSWER = object({ user: { ...object({ ...user, role: maybe('string') }), nullable: true } })
export const ROLES_ANSWER = object({
  roles: { type: 'array', items: { type: 'string' } },
  users: { type: 'object', additionalProperties: { type: 'string' } }
})
/** What a command of the plugin met. */
export const COMMAND_ANSWER = object({
  id: { type: 'string' }, matched: { type: 'integer' }, closed: { type: 'integer' }, durable: { type: 'boolean' },
  nodes: object({ acknowledged: { type: 'integer' }, missing: { type: 'integer' } })
})
export const TICKET_ANSWER = object({ ticket: { type: 'string' } })
export const TOKEN_ANSWER = object({ access_token: { type: 'string' }, token_type: { type: 'string' }, expires_in: { type: 'integer' } })

export const SIGNINS_ANSWER = object({
  signins: {
    type: 'array',
    items: object({
      id: { type: 'string' }, kind: { type: 'string' }, browser: { type: 'string' },
      createdAt: { type: 'integer' }, isThisOne: { type: 'boolean' }
    })
  }
})

const counts = { type: 'object', additionalProperties: { type: 'integer' } }

/** Of the nodes, each with its connections: nothing in it is, or leads to, a credential. */
export const BOARD = object({
  node: { type: 'string' },
  total: { type: 'integer' },
  connections: {
    type: 'array',
    items: object({
      id: { type: 'string' }, userId: { type: 'string' }, tenantId: maybe('string'), role: maybe('string'),
      authType: { type: 'string' }, via: { type: 'string' }, credential: { type: 'string' },
      expiresIn: maybe('integer'), openedAgo: { type: 'integer' }, rooms: { type: 'array', items: { type: 'string' } },
      permissions: { type: 'array', items: { type: 'string' } }
    })
  },
  handshakes: counts,
  closes: counts
})
export const BOARDS_ANSWER = object({ nodes: { type: 'array', items: BOARD } })

export const LOG_ENTRY = {
  type: 'object',
  additionalProperties: false,
  properties: {
    time: { type: 'integer' },
    ...Object.fromEntries(['id', 'node', 'type', 'userId', 'authType', 'via', 'route', 'code', 'reason', 'room', 'command', 'connectionId'].map(name => [name, { type: 'string' }])),
    closeCode: { type: 'integer' },
    count: { type: 'integer' },
    websocket: { type: 'boolean' }
  }
}
export const LOG_ANSWER = object({ entries: { type: 'array', items: LOG_ENTRY } })
