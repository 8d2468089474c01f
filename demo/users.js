/** Users of two tenants, in memory. Their passwords are made at start and kept as scrypt hashes. */
import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'

const derive = promisify(scrypt)

// From OWASP's Password Storage Cheat Sheet: 16 MiB and about a tenth of a second per try.
const COST = { N: 2 ** 14, r: 8, p: 5 }
const HASH_LENGTH = 32
/** At the same time: whoever asks more of this process is not served before the others. */
const MOST = 20

/** With the role that each begins with. */
const PEOPLE = [
  { userId: 'alice', tenantId: 'riverside', role: 'agent' },
  { userId: 'bob', tenantId: 'riverside', role: 'broker' },
  { userId: 'carol', tenantId: 'hillcrest', role: 'agent' },
  { userId: 'root', tenantId: 'riverside', role: 'admin' }
]

/** @param secretOf random bytes for the name of a user */
export async function createUsers (secretOf) {
  /** What to type into the login form: only ever printed on the terminal. */
  const logins = PEOPLE.map(({ userId, tenantId, role }) => ({ username: userId, password: secretOf(userId).toString('hex', 0, 5), role, tenantId }))
  const records = new Map(await Promise.all(PEOPLE.map(async ({ userId, tenantId }, i) =>
    [userId, { identity: { userId, tenantId }, ...await hash(logins[i].password) }])))
  const nobody = { identity: null, salt: randomBytes(16), hash: randomBytes(HASH_LENGTH) }

  let busy = 0

  /** The user; null where name or password is wrong. An unknown name costs as much as a wrong password. */
  async function verify ({ username, password }) {
    if (busy >= MOST) throw Object.assign(new Error('Too many are signing in: try again'), { statusCode: 503 })
    busy++
    try {
      const record = records.get(username) ?? nobody
      const given = await hash(password, record.salt)
      return timingSafeEqual(given.hash, record.hash) ? record.identity : null
    } finally {
      busy--
    }
  }

  return { logins, tenants: [...new Set(PEOPLE.map(({ tenantId }) => tenantId))], isKnown: userId => records.has(userId), verify }
}

async function hash (password, salt = randomBytes(16)) {
  return { salt, hash: await derive(password.normalize('NFKC'), salt, HASH_LENGTH, COST) }
}
