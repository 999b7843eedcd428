-- What both libraries of layout 1 share: ids, the feed, markers and the append of one event.
--
-- Everything of a partition shares one hash tag, so that one function may touch all of it in a cluster. The
-- only declared key is the feed, `<prefix>:{<partition>}:feed`; the others follow from it.
--
-- Ids are compared as decimal text: a sequence number exceeds what a Lua number holds exactly (2^53), a
-- millisecond timestamp does not.

local DAY_MS = 86400000
local FEED_AGE_MS = 60000        -- refs younger than this stay
local FEED_LENGTH_MIN = 100000   -- and so do this many, however old
local FEED_TRIM_SLACK = 1000     -- refs above the minimum before trimming is tried
local FEED_LENGTH_MAX = 5000000  -- the cap, however young

local function digits_after(a, b)
  if #a ~= #b then
    return #a > #b
  end
  return a > b
end

local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return ms, seq
end

-- Whether id `a` comes after id `b`.
local function after(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  if a_ms == b_ms then
    return digits_after(a_seq, b_seq)
  end
  return digits_after(a_ms, b_ms)
end

local function integer(number)
  return string.format('%.0f', number)
end

-- The first id of the millisecond after `id`; no arithmetic on sequence numbers.
local function above(id)
  local ms = split(id)
  return integer(tonumber(ms) + 1) .. '-*'
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- 'hw:{0}:feed' -> 'hw:{0}:'
local function base_of(feed)
  return string.sub(feed, 1, -5)
end

local function feed_first(feed)
  local entry = redis.call('XRANGE', feed, '-', '+', 'COUNT', 1)[1]
  return entry and entry[1]
end

local function feed_last(feed)
  local entry = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  return entry and entry[1]
end

-- Appends a marker ref above `floor` and answers its id.
local function mark(feed, floor, ...)
  local id = redis.call('XADD', feed, '*', 'mark', ...)
  if not after(id, floor) then
    redis.call('XDEL', feed, id)
    id = redis.call('XADD', feed, above(floor), 'mark', ...)
  end
  return id
end

-- Begins the partition's history anew and answers the epoch.
local function begin(feed, base, floor)
  local epoch = mark(feed, floor, 'epoch')
  redis.call('HSET', base .. 'state', 'epoch', epoch)
  return epoch
end

-- Whether history up to `floor`, which a node has seen, is missing here and no epoch says so yet.
local function rolled_back(feed, base, floor)
  if floor == '0-0' or #redis.call('XRANGE', feed, floor, floor, 'COUNT', 1) > 0 then
    return false
  end
  local first = feed_first(feed)
  if first and after(first, floor) then
    return false -- trimmed, not lost
  end
  local epoch = redis.call('HGET', base .. 'state', 'epoch')
  return not (epoch and after(epoch, floor))
end

local function stream_info(key)
  local reply = redis.pcall('XINFO', 'STREAM', key)
  if reply.err then
    return nil, reply.err
  end
  local info = {}
  for i = 1, #reply, 2 do
    info[reply[i]] = reply[i + 1]
  end
  return info
end

-- Whether a channel's last id is so far ahead that no event may follow it. What lies below the end of the feed
-- is not: the functions wrote it themselves before the clock went back.
local function poisoned(feed, last_id)
  local ms = split(last_id)
  return tonumber(ms) > now_ms() + DAY_MS and after(last_id, feed_last(feed) or '0-0')
end

-- Tries to `XADD` an event under `id`. Most events have neither retry nor skip list: arguments that stand one by
-- one spare them a table, which is a tenth of what an event costs.
local function add(key, id, event)
  local retry, skip = event.retry or '', event.skip or ''
  if retry == '' and skip == '' then
    if event.length_max then
      return redis.pcall('XADD', key, 'MAXLEN', '~', event.length_max, id,
        'v', event.format, 'type', event.kind, 'data', event.data)
    end
    return redis.pcall('XADD', key, id, 'v', event.format, 'type', event.kind, 'data', event.data)
  end
  local command = event.length_max and { 'XADD', key, 'MAXLEN', '~', event.length_max } or { 'XADD', key }
  local fields = { id, 'v', event.format, 'type', event.kind, 'data', event.data }
  if retry ~= '' then
    fields[8], fields[9] = 'retry', retry
  end
  if skip ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'skip', skip
  end
  for _, field in ipairs(fields) do
    command[#command + 1] = field
  end
  return redis.pcall(unpack(command))
end

-- Appends one event: ref first, then the event under the ref's id. Answers the id, or nil, a code and a
-- detail after taking the ref back. Asking the channel before every append would halve the rate.
local function append(feed, base, event)
  local key = base .. 'ch:' .. event.channel
  local bytes = #event.kind + #event.data
  local id = redis.call('XADD', feed, '*', 'ch', event.channel, 'n', bytes)
  local reply = add(key, id, event)
  if not reply.err then
    return id
  end
  redis.call('XDEL', feed, id)
  local info = stream_info(key)
  if not info then
    return nil, 'wrong_type', reply.err
  end
  local last = info['last-generated-id']
  if after(id, last) then
    return nil, 'failed', reply.err
  end
  if poisoned(feed, last) then
    return nil, 'poisoned', last
  end
  id = redis.call('XADD', feed, above(last), 'ch', event.channel, 'n', bytes)
  reply = add(key, id, event)
  if reply.err then
    redis.call('XDEL', feed, id)
    return nil, 'failed', reply.err
  end
  return id
end

-- After the last append to a channel in one call: age trim, expiry, listing. The key outlives its newest
-- event's maximum age by a tenth, so that the expiry need not be renewed on every call; readers leave out
-- what is older.
local function settle(base, channel, id, age_max)
  local key = base .. 'ch:' .. channel
  local ttl = redis.call('PTTL', key)
  if age_max then
    local ms = split(id)
    if tonumber(ms) > age_max then
      redis.call('XTRIM', key, 'MINID', '=', integer(tonumber(ms) - age_max))
    end
    if ttl < age_max then
      redis.call('PEXPIRE', key, integer(math.ceil(age_max * 1.1)))
    end
  elseif ttl >= 0 then
    redis.call('PERSIST', key)
  end
  if ttl == -1 then
    -- A key of another type under this name must not fail a call whose events are written.
    redis.pcall('SADD', base .. 'channels', channel)
  end
end

-- Whole nodes of refs that are old and above the minimum go; LIMIT keeps the minimum.
local function trim_feed(feed, length, newest)
  if length > FEED_LENGTH_MAX then
    redis.call('XTRIM', feed, 'MAXLEN', '~', FEED_LENGTH_MAX)
  elseif length > FEED_LENGTH_MIN + FEED_TRIM_SLACK then
    local ms = split(newest)
    local oldest = integer(tonumber(ms) - FEED_AGE_MS)
    redis.call('XTRIM', feed, 'MINID', '~', oldest, 'LIMIT', length - FEED_LENGTH_MIN)
  end
end

-- The key that remembers an idempotency key: the length keeps 'a:b'+'c' and 'a'+'b:c' apart.
local function idempotency_key(base, channel, key)
  return base .. 'idem:' .. #channel .. ':' .. channel .. ':' .. key
end

-- What other programs hand in as data: a JSON object or array stays one, everything else is text.
local function format_of(data)
  if string.find(data, '^%s*[{%[]') and pcall(cjson.decode, data) then
    return '1j'
  end
  return '1'
end

-- Each well-formed sequence is replaced, not removed, or the bytes around it could join to another.
local UTF8 = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '\237[\128-\159][\128-\191]',
  '[\225-\236\238\239][\128-\191][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}

local function valid_utf8(text)
  for _, sequence in ipairs(UTF8) do
    text = string.gsub(text, sequence, '.')
  end
  return not string.find(text, '[\128-\255]')
end

-- Why a text cannot be an event type; nil when it can.
local function invalid_kind(kind)
  if kind == '' or #kind > 200 then
    return 'an event type has 1 to 200 bytes'
  elseif string.find(kind, '%c') or string.find(kind, '\194[\128-\159]') then
    return 'an event type contains no control characters'
  elseif not valid_utf8(kind) then
    return 'an event type is UTF-8'
  elseif kind == 'connected' or kind == 'gap' or kind == 'heartbeat' or kind == 'closing' then
    return 'the server sends events of type ' .. kind .. ' itself'
  end
  return nil
end
