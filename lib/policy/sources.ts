/** What the application knows of a user beside the credential: more of who it is, then what it may do. */
import type { AuthContext, Identity } from '../../types/context.js'
import { isRefusal, type Refusal } from '../errors.js'
import { adopt, whenReady, type Maybe } from '../maybe.js'
import type { CheckedIdentity } from '../verify/identity.js'
import { checkIdentity } from '../verify/identity.js'
import { plain } from '../verify/plain.js'
import { Asked, type AskedParts, type AskUser, type SharedMemory } from './asked.js'

/** As the option `enrich` is, read. */
export interface EnrichSettings {
  readonly ask: AskUser
  /** In milliseconds. */
  readonly maxAge: number
  readonly shared: boolean
}

export interface SourceParts {
  readonly permissions?: AskUser | undefined
  readonly enrich?: EnrichSettings | undefined
  /** In milliseconds. */
  readonly timeout: number
  /** null: the cluster has none, for this registration alone. */
  readonly shared: SharedMemory | null
  readonly realm: () => string
  readonly onFault: (where: string, error: unknown) => void
}

/** How long an answer of `permissions` is good, in milliseconds. */
const PERMISSIONS_AGE = 30_000

/** null: everything is as the credential says. */
export function createSources ({ permissions, enrich, timeout, shared, realm, onFault }: SourceParts): Sources | null {
  if (permissions === undefined && enrich === undefined) return null
  const partsOf = (where: string) => ({ timeout, realm, onFault: (error: unknown) => { onFault(where, error) } })
  return new Sources(
    enrich === undefined ? null : { ...partsOf('enrich'), ask: askPlain(enrich.ask), maxAge: enrich.maxAge, read: enriched, heldOf: ({ user }) => user, shared: enrich.shared ? shared : null },
    permissions === undefined ? null : { ...partsOf('permissions'), ask: permissions, maxAge: PERMISSIONS_AGE, read: listOf, heldOf: list => list, shared: null })
}

export class Sources {
  readonly #enrich: Asked<CheckedIdentity> | null
  readonly #permissions: Asked<readonly string[]> | null

  constructor (enrich: AskedParts<CheckedIdentity> | null, permissions: AskedParts<readonly string[]> | null) {
    this.#enrich = enrich === null ? null : new Asked(enrich)
    this.#permissions = permissions === null ? null : new Asked(permissions)
  }

  /** Who it is with everything that is known, or a refusal where a source fails. Neither throws nor rejects. */
  complete (issuer: string | null, identity: CheckedIdentity): Maybe<CheckedIdentity | Refusal> {
    const permissions = this.#permissions
    return whenReady(this.#enrich?.find(issuer, identity.user) ?? identity, (known): Maybe<CheckedIdentity | Refusal> => {
      if (permissions === null || isRefusal(known)) return known
      return whenReady(permissions.find(issuer, known.user), found => isRefusal(found) ? found : { ...known, permissions: found })
    })
  }

  /** Whether nothing has changed since the context was made, as far as this process was told. */
  isCurrent ({ userId, user, permissions }: AuthContext): boolean {
    return (this.#enrich === null || this.#enrich.isCurrent(userId, user)) &&
      (this.#permissions === null || this.#permissions.isCurrent(userId, permissions))
  }

  /** The context with what is known now. Neither throws nor rejects. */
  renew (context: AuthContext): Maybe<AuthContext | Refusal> {
    const { issuer, userId, role, permissions, tenantId, user } = context
    const identity = { userId, role, permissions, tenantId, user: baseOf(user) }
    return whenReady(this.complete(issuer, identity), known => isRefusal(known) ? known : Object.freeze<AuthContext>({ ...context, ...known }))
  }

  /** What was known of the user is asked for again. */
  forget (userId: string): void {
    this.#enrich?.forget(userId)
    this.#permissions?.forget(userId)
  }
}

/** What a credential said, of identities that have more. */
const bases = new WeakMap<Identity, Identity>()

function baseOf (user: Identity): Identity {
  return bases.get(user) ?? user
}

/** As JSON has it, on this node as on those which it is shared with: nothing that a getter or an own `toJSON` says twice. */
function askPlain (ask: AskUser): AskUser {
  return identity => whenReady(adopt(ask(identity)), given => {
    // What is no object is refused as it is.
    if (typeof given !== 'object' || given === null) return given ?? null
    return plain(given) ?? false
  })
}

/** @throws TypeError on what is no object, and on one that names somebody else, or nobody */
function enriched (given: unknown, identity: Identity): CheckedIdentity {
  const extra = given ?? {}
  if (typeof extra !== 'object' || Array.isArray(extra)) throw new TypeError('enrich returned something that is no object')
  const whole = checkIdentity({ ...identity, ...extra })
  if (whole?.userId !== identity.userId) throw new TypeError('enrich returned something that makes it no identity, or another user')
  bases.set(whole.user, identity)
  return whole
}

/** @throws TypeError on what is no list of texts */
function listOf (given: unknown): readonly string[] {
  // A copy has no holes.
  const list: unknown[] | null = Array.isArray(given) ? [...given as unknown[]] : null
  if (list?.every(one => typeof one === 'string') === true) return Object.freeze(list)
  throw new TypeError('permissions returned something that is no list of texts')
}
