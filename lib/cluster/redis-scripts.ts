/** What has to happen in Redis in one step. Times are those of Redis: nodes need not agree on theirs. */
import { script } from './redis-client.js'

const NOW = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int (n) return string.format('%.0f', n) end
`

/**
 * Appends a command; one that revokes is also kept until it ends. What is kept already was appended before.
 * KEYS log, live, ends, nodes · ARGV id, command, end or '' for what is not kept, ms that the log goes back, node timeout
 * → nodes that are alive
 */
export const PUBLISH = script(`${NOW}
local isKept = ARGV[3] ~= ''
-- What fails half way is not undone: the log comes first, for there it may stand twice.
if not isKept or redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then
  redis.call('XADD', KEYS[1], 'MINID', '~', int(now - ARGV[4]), '*', 'm', ARGV[2])
end
if isKept then
  redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
return redis.call('ZRANGEBYSCORE', KEYS[4], int(now - ARGV[5]), '+inf')`)

/**
 * A node is alive; what is over is dropped.
 * KEYS nodes, ends, live · ARGV node, node timeout, a new generation, ms that clocks may differ
 * → generation, 1 if the node was alive before, how many are alive, nodes that are not
 */
export const BEAT = script(`${NOW}
local since = now - ARGV[2]
local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], int(now), ARGV[1])
-- It stands among the revocations, so that it cannot outlive them.
redis.call('HSETNX', KEYS[3], 'generation', ARGV[3])
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', int(now - ARGV[4]), 'LIMIT', 0, 1000)
if #over > 0 then
  redis.call('HDEL', KEYS[3], unpack(over))
  redis.call('ZREM', KEYS[2], unpack(over))
end
return {
  redis.call('HGET', KEYS[3], 'generation'),
  before and tonumber(before) > since and 1 or 0,
  redis.call('ZCOUNT', KEYS[1], int(since), '+inf'),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. int(since))
}`)

/**
 * Frees up to 500 leases of a node that is gone, and forgets the node with the last of them.
 * KEYS nodes, its leases, its answers · ARGV node, node timeout, 1 if it says so itself, prefix of lease keys
 * → how many may be left
 */
export const BURY = script(`${NOW}
local seen = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[3] ~= '1' and seen and tonumber(seen) >= now - ARGV[2] then return 0 end
local held = redis.call('HRANDFIELD', KEYS[2], 500, 'WITHVALUES')
for i = 1, #held, 2 do
  local isList, keys = pcall(cjson.decode, held[i + 1])
  for _, key in ipairs(isList and type(keys) == 'table' and keys or {}) do redis.call('ZREM', ARGV[4] .. tostring(key), held[i]) end
  redis.call('HDEL', KEYS[2], held[i])
end
local left = redis.call('HLEN', KEYS[2])
if left == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
end
return left`)

/**
 * Takes a place under every key or none. A limit of -1 is not asked: the place was taken before.
 * KEYS the node's leases, then each key · ARGV lease, its keys as JSON, 1 if the oldest goes, when it was taken, then each limit
 * → the leases that go, or -1
 */
export const ACQUIRE = script(`
local time = redis.call('TIME')
local score = ARGV[4] ~= '' and ARGV[4] or string.format('%.0f', time[1] * 1000000 + time[2])
local evicted, goes = {}, {}
for i = 2, #KEYS do
  local limit = tonumber(ARGV[i + 3])
  local over = limit == -1 and 0 or redis.call('ZCARD', KEYS[i]) + 1 - limit
  for _, id in ipairs(evicted) do
    if redis.call('ZSCORE', KEYS[i], id) then over = over - 1 end
  end
  if over > 0 and ARGV[3] ~= '1' then return -1 end
  for _, id in ipairs(over > 0 and redis.call('ZRANGE', KEYS[i], 0, over - 1 + #evicted) or {}) do
    if over > 0 and not goes[id] then
      goes[id] = true
      evicted[#evicted + 1] = id
      over = over - 1
    end
  end
end
for i = 2, #KEYS do
  for _, id in ipairs(evicted) do redis.call('ZREM', KEYS[i], id) end
  redis.call('ZADD', KEYS[i], 'NX', score, ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return evicted`)

/** KEYS the node's leases, then each key · ARGV lease */
export const RELEASE = script(`
for i = 2, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return redis.call('HDEL', KEYS[1], ARGV[1])`)

/** KEYS another node's answers · ARGV the answer, ms that it is kept */
export const ANSWER = script(`
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'm', ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

/**
 * Takes from every bucket or from none.
 * KEYS the buckets · ARGV cost, capacity and refill a second of each
 * → ms to wait; 0: taken; -1: more than a bucket ever holds
 */
export const SPEND = script(`
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local tokens, wait, isAhead = {}, 0, false
local function keep (i, left)
  local capacity, refill = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  redis.call('HSET', KEYS[i], 't', string.format('%.9f', left), 'at', string.format('%.3f', now))
  redis.call('PEXPIRE', KEYS[i], string.format('%.0f', math.ceil(capacity / refill * 1000) + 1000))
end
for i = 1, #KEYS do
  local cost, capacity, refill = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local kept = redis.call('HMGET', KEYS[i], 't', 'at')
  local at = tonumber(kept[2]) or now
  local passed = math.max(0, now - at)
  isAhead = isAhead or at > now
  tokens[i] = math.min(capacity, (tonumber(kept[1]) or capacity) + passed * refill / 1000)
  -- Sums of fractions are off by less than this part.
  if cost - tokens[i] > math.max(cost, 1) * 1e-9 then
    if cost > capacity then return -1 end
    wait = math.max(wait, math.ceil((cost - tokens[i]) / refill * 1000 * (1 - 1e-9)), 1)
  end
end
for i = 1, #KEYS do
  if wait == 0 then
    keep(i, tokens[i] - ARGV[3 * i - 2])
  elseif isAhead then
    -- The clock was set back: the buckets go on from here.
    keep(i, tokens[i])
  end
end
return wait`)

/**
 * Counts a failure under every name under which there were not too many before.
 * KEYS failures and suspicion of each name · ARGV how many are too many, ms of the window, ms of an episode, an id
 * → 1 if there were too many under one before, 1 if there are now and were not for an episode, ms to wait of each name
 */
export const STRIKE = script(`${NOW}
local max, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local wasOver, isReached, wasSuspected, reply = 0, false, false, { 0, 0 }
for i = 1, #KEYS, 2 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', int(now - window))
  -- What lies further ahead than anything can was before the clock was set back.
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '(' .. int(now + window), '+inf')
  if redis.call('EXISTS', KEYS[i + 1]) == 1 then wasSuspected = true end
  local count = redis.call('ZCARD', KEYS[i])
  if count >= max then
    wasOver = 1
  else
    redis.call('ZADD', KEYS[i], int(now), ARGV[4])
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
    count = count + 1
    if count >= max then
      isReached = true
      redis.call('SET', KEYS[i + 1], '1', 'PX', ARGV[3])
    end
  end
  local oldest = count >= max and redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2]
  reply[#reply + 1] = oldest and math.min(tonumber(oldest) + window - now, window) or 0
end
reply[1] = wasOver
reply[2] = (isReached and not wasSuspected and wasOver == 0) and 1 or 0
return reply`)

/** KEYS the ticket, its mark · ARGV what it stands for, ms that it is good, ms that it is known → 1, or 0 where there is one */
export const PUT_TICKET = script(`
if not redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then return 0 end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[3])
return 1`)

/**
 * Takes it at its first call, whatever comes of it. Who keeps coming back with one that is over keeps it remembered.
 * KEYS the ticket, its mark · ARGV ms that it is remembered → what it stands for; '': it is over; nothing: there was none
 */
export const TAKE_TICKET = script(`
local value = redis.call('GETDEL', KEYS[1])
if redis.call('PEXPIRE', KEYS[2], ARGV[1]) == 0 then return value end
return value or ''`)

/**
 * What is remembered of a user, where nobody has forgotten it since. At most 16 answers are kept, and `version`.
 * KEYS: the user's hash. ARGV: version, field, value, how long it is good in milliseconds
 */
export const KEEP_USER = script(`
  if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
  local left = redis.call('PTTL', KEYS[1])
  if redis.call('HLEN', KEYS[1]) > 16 then
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'version', ARGV[1])
  end
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  redis.call('PEXPIRE', KEYS[1], math.max(left, ARGV[4]))
  return 1`)

/**
 * KEYS: the user's hash. ARGV: the next version, for how long it has to be told from the one before, in milliseconds
 */
export const FORGET_USER = script(`
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'version', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1`)

/**
 * What is remembered of a user, and the version that an answer which is asked for now is kept under: a new one where there was none, for
 * what was forgotten with it.
 * KEYS: the user's hash. ARGV: field, a version for where there is none, how long that is kept in milliseconds
 */
export const RECALL_USER = script(`
  if redis.call('HSETNX', KEYS[1], 'version', ARGV[2]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
  return redis.call('HMGET', KEYS[1], 'version', ARGV[1])`)

/**
 * Numbers mean something to one Redis alone: another one, or the same in another life, may have gone back, and give them a second time.
 * KEYS the messages, the head · an epoch for where there is none
 */
const begin = (epoch: string): string => `
local info = redis.pcall('INFO', 'server')
-- Where that may not be asked, it is always the same one.
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
if redis.call('HGET', KEYS[2], 'run') ~= run then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'run', run, 'epoch', ${epoch}, 'n', 0)
end
`

/**
 * Says something in a room with history, in the order in which those hear it who listen.
 * KEYS the messages, the head, the channel · ARGV message, how many are kept, ms that they are, an epoch for where there is none, ms that the head is kept
 */
export const APPEND = script(`${NOW}${begin('ARGV[4]')}
redis.call('RPUSH', KEYS[1], int(now) .. ' ' .. ARGV[1])
local n = redis.call('HINCRBY', KEYS[2], 'n', 1)
redis.call('LTRIM', KEYS[1], -ARGV[2], -1)
-- More than one of those that are over, so that none stays for long, and not all at once.
for _ = 1, 4 do
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  if (tonumber(string.match(oldest, '^(%d+) ')) or 0) >= now - ARGV[3] then break end
  redis.call('LPOP', KEYS[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return redis.call('PUBLISH', KEYS[3], redis.call('HGET', KEYS[2], 'epoch') .. '.' .. int(n) .. ' ' .. ARGV[1])`)

/**
 * What follows a number: the list ends with the head, without a hole.
 * KEYS the messages, the head
 * ARGV an epoch or '' for where the room is now, a number, bytes, ms that messages count, a new epoch, ms that the head is kept, 1 if nodes have had that number
 * → epoch, head, the number before the first message, messages
 */
export const RECALL = script(`${NOW}${begin('ARGV[5]')}
redis.call('PEXPIRE', KEYS[2], ARGV[6])
local epoch, head = redis.call('HGET', KEYS[2], 'epoch'), tonumber(redis.call('HGET', KEYS[2], 'n') or 0)
local after = epoch == ARGV[1] and tonumber(ARGV[2]) or 0
if after > head and ARGV[7] == '1' then
  -- Redis has gone back: these numbers are given a second time.
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'epoch', ARGV[5], 'n', 0)
  epoch, head, after = ARGV[5], 0, 0
end
if ARGV[1] == '' or after > head then return { epoch, int(head), int(head), {} } end
local length = redis.call('LLEN', KEYS[1])
local from, bytes, found, isFull = math.max(after, head - length), 0, {}, false
local at, since, limit = length - (head - from), now - ARGV[4], tonumber(ARGV[3])
-- The first that still counts: times rise along the list.
local high = length
while at < high do
  local middle = math.floor((at + high) / 2)
  if (tonumber(string.match(redis.call('LINDEX', KEYS[1], middle), '^(%d+) ')) or 0) < since then
    from, at = from + middle + 1 - at, middle + 1
  else
    high = middle
  end
end
-- Not much more is read than is given.
local step = 1
while at < length and not isFull do
  for _, kept in ipairs(redis.call('LRANGE', KEYS[1], at, at + step - 1)) do
    bytes = bytes + #kept
    isFull = isFull or (bytes > limit and #found > 0)
    if not isFull then found[#found + 1] = string.sub(kept, (string.find(kept, ' ', 1, true) or 0) + 1) end
  end
  at = at + step
  step = math.max(1, math.min(8, step * 2, math.floor((limit - bytes) * #found / bytes)))
end
return { epoch, int(head), int(from), found }`)
