/** The names of everything in Redis. The braces keep them in one slot of a Redis Cluster. */
export function createKeys (prefix: string) {
  const base = `{${prefix}}:`
  return {
    /** The stream of commands. */
    log: `${base}log`,
    /** Hash: id to command, of revocations that are live; and `generation`, a text that is new where the data is. */
    live: `${base}live`,
    /** Sorted set: id by end. */
    ends: `${base}ends`,
    /** Sorted set: node by when it was last heard of. */
    nodes: `${base}nodes`,
    /** The stream of answers to a node. */
    answers: (node: string) => `${base}answers:${node}`,
    /** Hash: lease to its keys, of a node. */
    held: (node: string) => `${base}held:${node}`,
    /** Sorted set: lease by when it was taken. */
    lease: `${base}lease:`,
    /** A bucket: what it holds, and when that was so. */
    bucket: (name: string) => `${base}bucket:${name}`,
    /** Sorted set: failures under a name by when they were. */
    strikes: (name: string) => `${base}strikes:${name}`,
    /** Is there while a name is suspected. */
    suspect: (name: string) => `${base}suspect:${name}`,
    /** The channel of a room. */
    room: (room: string) => `${base}room:${room}`,
    /** List: the last messages of a room, each behind the time when it came. */
    history: (room: string) => `${base}history:${room}`,
    /** Hash: `epoch`, and `n`, the number of the last message. */
    head: (room: string) => `${base}head:${room}`,
    /** Hash: what is remembered of a user, and `version`, a text that is new when it was forgotten. */
    user: (name: string) => `${base}user:${name}`,
    /** Is there until a ticket is not remembered any more. */
    over: (key: string) => `${base}over:${key}`,
    ticket: (key: string) => `${base}ticket:${key}`
  }
}

export type Keys = ReturnType<typeof createKeys>
