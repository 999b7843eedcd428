-- The functions that brokers of layout 1 call. Their names carry the version, so that a later release can
-- load its own beside them and both work side by side.

-- Reads the items of one request from `args`, starting at `at`. Nine arguments each.
local function parse_items(args, at, count, policies)
  local items = {}
  for i = 1, count do
    local policy = policies[tonumber(args[at + 6])]
    items[i] = {
      channel = args[at], format = args[at + 1], kind = args[at + 2], data = args[at + 3],
      retry = args[at + 4], skip = args[at + 5],
      length_max = policy.length_max, age_max = policy.age_max,
      key = args[at + 7], window = args[at + 8],
    }
    at = at + 9
  end
  return items, at
end

local function refusal(code, channel, detail)
  return '!' .. code .. '\n' .. channel .. '\n' .. (detail or '')
end

-- What would make a later item of a request fail is found before the first is written, because a script's
-- writes are not undone. Answers nil when all can be appended.
local function find_refusal(feed, base, items)
  local seen = {}
  for _, item in ipairs(items) do
    if not seen[item.channel] then
      seen[item.channel] = true
      local key = base .. 'ch:' .. item.channel
      local kind = redis.call('TYPE', key).ok
      if kind == 'stream' then
        local last = stream_info(key)['last-generated-id']
        if poisoned(feed, last) then
          return refusal('poisoned', item.channel, last)
        end
      elseif kind ~= 'none' then
        return refusal('wrong_type', item.channel, 'it holds a ' .. kind)
      end
    end
    if item.key ~= '' then
      local reply = redis.pcall('GET', idempotency_key(base, item.channel, item.key))
      if type(reply) == 'table' and reply.err then
        return refusal('wrong_type', item.channel, reply.err)
      end
    end
  end
  return nil
end

-- Appends one item unless its key was used. Answers its id, '=' before it for a duplicate; or nil and a refusal.
local function publish_item(call, item)
  local base = call.base
  local idem
  if item.key ~= '' then
    idem = idempotency_key(base, item.channel, item.key)
    local known = redis.pcall('GET', idem)
    if type(known) == 'table' and known.err then
      return nil, refusal('wrong_type', item.channel, known.err)
    elseif known then
      return '=' .. known
    end
  end
  local id, code, detail = append(call.feed, base, item)
  if not id then
    return nil, refusal(code, item.channel, detail)
  end
  if idem then
    redis.call('SET', idem, id, 'PX', item.window)
  end
  call.touched[item.channel] = { id = id, age_max = item.age_max }
  call.newest = id
  call.appended = call.appended + 1
  return id
end

-- FCALL headwater_publish_v1 1 <feed> <floor> <policies> {<length max> <age max, ms>} {<items> {<channel>
--   <format> <type> <data> <retry> <skip> <policy> <key> <window, ms>}}
--
-- Each request is all or nothing. Answers per request an array of ids, '=' before a duplicate's, or a text
-- '!code\nchannel\ndetail'. Refuses the call when history that the caller has seen is missing.
local function publish(keys, args)
  local feed, floor = keys[1], args[1]
  local base = base_of(feed)
  local length = redis.call('XLEN', feed)
  if length == 0 then
    begin(feed, base, floor)
  elseif rolled_back(feed, base, floor) then
    return redis.error_reply('HWROLLEDBACK the feed does not hold ' .. floor)
  end
  local policies = {}
  local at = 3
  for i = 1, tonumber(args[2]) do
    -- The length stays text: it is only passed on, and Redis is slow to print a number.
    policies[i] = { length_max = args[at] ~= '' and args[at] or nil, age_max = tonumber(args[at + 1]) }
    at = at + 2
  end
  local call = { feed = feed, base = base, touched = {}, appended = 0 }
  local results = {}
  while at <= #args do
    local items
    items, at = parse_items(args, at + 1, tonumber(args[at]), policies)
    local refused = #items > 1 and find_refusal(feed, base, items)
    local ids = {}
    for i, item in ipairs(items) do
      if refused then
        break
      end
      ids[i], refused = publish_item(call, item)
    end
    results[#results + 1] = refused or ids
  end
  if call.newest then
    for channel, last in pairs(call.touched) do
      settle(base, channel, last.id, last.age_max)
    end
    trim_feed(feed, length + call.appended, call.newest)
  end
  return results
end

local function entry_bytes(entry)
  local bytes = 0
  for _, field in ipairs(entry[2]) do
    bytes = bytes + #field
  end
  return bytes
end

-- Reads entries of a channel within `low` and `high` until `count` or `bytes` is reached; one always fits.
-- Answers the entries and whether nothing more is there.
local function read_entries(key, low, high, ascending, count, bytes)
  local entries = {}
  local step = 16 -- the first look is short: it tells how large entries are
  while true do
    step = math.min(step, count - #entries)
    local batch
    if ascending then
      batch = redis.call('XRANGE', key, low, high, 'COUNT', step)
    else
      batch = redis.call('XREVRANGE', key, high, low, 'COUNT', step)
    end
    for _, entry in ipairs(batch) do
      bytes = bytes - entry_bytes(entry)
      if bytes < 0 and #entries > 0 then
        return entries, false
      end
      entries[#entries + 1] = entry
    end
    if #batch < step then
      return entries, true
    end
    if #entries >= count then
      return entries, false
    end
    if ascending then
      low = '(' .. entries[#entries][1]
    else
      high = '(' .. entries[#entries][1]
    end
    step = 64
  end
end

-- FCALL headwater_read_v1 1 <feed> <channel> <after> <before> <asc|desc> <count> <bytes> <age max, ms>
--
-- Answers {end of feed, epoch, purged, expiry, passed over, exhausted, {first, last, length, added, max
-- deleted} or {}, entries}, all of one moment.
local function read(keys, args)
  local feed = keys[1]
  local base = base_of(feed)
  local channel, from, before = args[1], args[2], args[3]
  local key = base .. 'ch:' .. channel
  local state = redis.call('HMGET', base .. 'state', 'epoch', 'epoch:' .. channel)
  local purged = state[2] and string.match(state[2], '^%S+')
  local age_max = tonumber(args[7])
  local expiry, passed_over = '', 0
  local head = { feed_last(feed) or '0-0', state[1] or '0-0', purged or '0-0', '', 0, 1, {}, {} }
  local info, err = stream_info(key)
  local low = '(' .. from
  if age_max then
    expiry = integer(math.max(now_ms() - age_max, 0))
    head[4] = expiry
    if after(expiry .. '-0', from) then
      if info and #redis.call('XRANGE', key, low, '(' .. expiry .. '-0', 'COUNT', 1) > 0 then
        head[5] = 1
      end
      low = expiry .. '-0'
    end
  end
  if not info then
    if string.find(err, 'no such key', 1, true) then
      return head
    end
    return redis.error_reply(err)
  end
  local first = info['first-entry']
  head[7] = {
    first and first[1] or '', info['last-generated-id'], integer(info['length']),
    integer(info['entries-added']), info['max-deleted-entry-id'],
  }
  local entries, exhausted =
    read_entries(key, low, '(' .. before, args[4] == 'asc', tonumber(args[5]), tonumber(args[6]))
  head[6] = exhausted and 1 or 0
  head[8] = entries
  return head
end

-- FCALL headwater_count_v1 1 <feed> <channel> <low> <high>: {entries, where to go on or ''}, a stretch at a time.
local function count(keys, args)
  local entries = redis.call('XRANGE', base_of(keys[1]) .. 'ch:' .. args[1], args[2], args[3], 'COUNT', 500)
  return { #entries, #entries == 500 and '(' .. entries[500][1] or '' }
end

local function tail_of(feed, base)
  return { feed_last(feed), redis.call('HGET', base .. 'state', 'epoch') or '0-0' }
end

-- FCALL headwater_tail_v1 1 <feed> <floor>: {end of feed, epoch}; creates a feed that is missing.
local function tail(keys, args)
  local base = base_of(keys[1])
  if redis.call('XLEN', keys[1]) == 0 then
    begin(keys[1], base, args[1])
  end
  return tail_of(keys[1], base)
end

-- FCALL headwater_reset_v1 1 <feed> <watermark> <floor>: a new epoch above both when the watermark is missing
-- and no epoch says so yet. Answers {end of feed, epoch}.
local function reset(keys, args)
  local base = base_of(keys[1])
  local watermark, floor = args[1], args[2]
  if redis.call('XLEN', keys[1]) == 0 or rolled_back(keys[1], base, watermark) then
    begin(keys[1], base, after(watermark, floor) and watermark or floor)
  end
  return tail_of(keys[1], base)
end

-- Purges whose marker every cursor of its channel is younger than, or past its maximum age, say nothing more.
-- A look is short, so each starts elsewhere: any number is a cursor.
local function forget_old_purges(state)
  local now = now_ms()
  local fields = redis.call('HSCAN', state, integer(now), 'MATCH', 'epoch:*', 'COUNT', 64)[2]
  for i = 1, #fields, 2 do
    local ms, age_max = string.match(fields[i + 1], '^(%d+)-%d+ (%d+)$')
    if ms and tonumber(ms) + tonumber(age_max) < now then
      redis.call('HDEL', state, fields[i])
    end
  end
end

-- FCALL headwater_purge_v1 1 <feed> <channel> <floor> <age max, ms>: removes a channel's events, answers the
-- marker's id.
local function purge(keys, args)
  local feed = keys[1]
  local base = base_of(feed)
  local channel = args[1]
  if redis.call('XLEN', feed) == 0 then
    begin(feed, base, args[2])
  end
  local id = mark(feed, args[2], 'purge', 'ch', channel)
  redis.call('DEL', base .. 'ch:' .. channel)
  redis.call('SREM', base .. 'channels', channel)
  forget_old_purges(base .. 'state')
  redis.call('HSET', base .. 'state', 'epoch:' .. channel, id .. ' ' .. (args[3] or ''))
  return id
end

-- FCALL headwater_channels_v1 1 <feed> <cursor> <glob> <count>: {next cursor, names}; drops names whose
-- stream has expired.
local function channels(keys, args)
  local base = base_of(keys[1])
  local names = {}
  local reply = redis.call('SSCAN', base .. 'channels', args[1], 'MATCH', args[2], 'COUNT', args[3])
  for _, name in ipairs(reply[2]) do
    if redis.call('EXISTS', base .. 'ch:' .. name) == 1 then
      names[#names + 1] = name
    else
      redis.call('SREM', base .. 'channels', name)
    end
  end
  return { reply[1], names }
end

-- What an entry that somebody wrote past the broker would have been as an event: its fields `type` and
-- `data` where it has them, otherwise all its fields as a JSON object.
local function event_of(entry, channel)
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  local kind = fields['type'] or ''
  return {
    channel = channel,
    kind = invalid_kind(kind) and 'message' or kind,
    data = fields['data'] or cjson.encode(fields),
    format = format_of(fields['data'] or '{}'),
  }
end

-- FCALL headwater_adopt_v1 1 <feed> <channel> <from> <floor> <length max> <age max, ms>: publishes one page
-- of entries anew that no function wrote, and removes the originals. Answers {adopted, where to go on}.
local function adopt(keys, args)
  local feed = keys[1]
  local base = base_of(feed)
  local channel, from = args[1], args[2]
  local key = base .. 'ch:' .. channel
  if redis.call('XLEN', feed) == 0 then
    begin(feed, base, args[3])
  end
  local adopted, newest = 0, nil
  local page = redis.call('XRANGE', key, '(' .. from, '+', 'COUNT', 500)
  for _, entry in ipairs(page) do
    from = entry[1]
    if entry[2][1] ~= 'v' then
      local event = event_of(entry, channel)
      event.length_max, event.age_max = tonumber(args[4]), tonumber(args[5])
      local id, code, detail = append(feed, base, event)
      if not id then
        return redis.error_reply('HWREFUSED ' .. code .. ' ' .. (detail or ''))
      end
      redis.call('XDEL', key, entry[1])
      adopted, newest = adopted + 1, id
    end
  end
  if newest then
    settle(base, channel, newest, tonumber(args[5]))
  end
  return { adopted, #page == 500 and from or '' }
end

redis.register_function('headwater_publish_v1', publish)
redis.register_function('headwater_adopt_v1', adopt)
redis.register_function { function_name = 'headwater_read_v1', callback = read, flags = { 'no-writes' } }
redis.register_function { function_name = 'headwater_count_v1', callback = count, flags = { 'no-writes' } }
redis.register_function { function_name = 'headwater_tail_v1', callback = tail, flags = { 'allow-oom' } }
redis.register_function { function_name = 'headwater_reset_v1', callback = reset, flags = { 'allow-oom' } }
redis.register_function { function_name = 'headwater_purge_v1', callback = purge, flags = { 'allow-oom' } }
redis.register_function { function_name = 'headwater_channels_v1', callback = channels, flags = { 'allow-oom' } }
