-- The function that other programs call. Its name carries no version: the newest layout's replaces it.

-- White space outside ASCII and C1 control characters, as UTF-8.
local REFUSED = {
  '\194[\128-\160]', '\225\154\128', '\226\128[\128-\138]', '\226\128[\168\169\175]', '\226\129\159', '\227\128\128',
}

local function invalid_channel(channel)
  if channel == '' or #channel > 200 then
    return 'a channel name has 1 to 200 bytes'
  elseif string.sub(channel, 1, 1) == '$' then
    return 'names that start with $ are reserved'
  elseif string.find(channel, '[%s%c,{}]') or not valid_utf8(channel) then
    return 'a channel name is UTF-8 without white space, control characters, commas and braces'
  end
  for _, pattern in ipairs(REFUSED) do
    if string.find(channel, pattern) then
      return 'a channel name is UTF-8 without white space, control characters, commas and braces'
    end
  end
  return nil
end

-- CRC-16/XMODEM, as the brokers and Redis Cluster hash names.
local function crc16(text)
  local crc = 0
  for i = 1, #text do
    crc = bit.bxor(crc, bit.lshift(string.byte(text, i), 8))
    for _ = 1, 8 do
      crc = bit.lshift(crc, 1)
      if bit.band(crc, 0x10000) ~= 0 then
        crc = bit.bxor(crc, 0x11021)
      end
    end
  end
  return crc
end

-- The feed that a channel's events go to, of so many partitions, when it is not `feed`.
local function other_feed(feed, base, channel, partitions)
  local prefix, partition = string.match(feed, '^(.*){(%d+)}:feed$')
  local right = partitions > 1 and crc16(channel) % partitions or 0
  if tonumber(partition) ~= right then
    return prefix .. '{' .. right .. '}:feed'
  end
  return nil
end

local function matches(pattern, name)
  local escaped = string.gsub(pattern, '[%^%$%(%)%%%.%[%]%+%-%?]', '%%%0')
  return string.find(name, '^' .. string.gsub(escaped, '%*', '.*') .. '$') ~= nil
end

-- What the brokers' rules keep of a channel: the first rule, by its number, whose pattern matches.
local function retention(base, channel)
  local fields = redis.call('HGETALL', base .. 'retention')
  local best, length_max, age_max = math.huge, 1000, DAY_MS
  for i = 1, #fields, 2 do
    local number, length, age = string.match(fields[i + 1], '^(%d+) (%S+) (%S+)$')
    if number and tonumber(number) < best and matches(fields[i], channel) then
      best, length_max, age_max = tonumber(number), tonumber(length), tonumber(age)
    end
  end
  return length_max, age_max
end

-- FCALL headwater_publish 1 <prefix>:{<partition>}:feed <channel> <type> <data> [idempotency key]
--
-- Publishes one event and answers its id, `ms-seq`. Data that is a JSON object or array is taken as JSON. A
-- repeated idempotency key answers the first id for ten minutes.
local function publish(keys, args)
  local feed = keys[1]
  local channel, kind, data, idem = args[1], args[2], args[3], args[4]
  if not feed or not data or #args > 4 then
    return redis.error_reply('HWREFUSED usage: FCALL headwater_publish 1 <feed> <channel> <type> <data> [key]')
  elseif not string.find(feed, '{%d+}:feed$') then
    return redis.error_reply('HWREFUSED the key is a feed, as in hw:{0}:feed')
  elseif #data > 262144 then
    return redis.error_reply('HWREFUSED the data of one event has at most 262144 bytes')
  end
  local base = base_of(feed)
  local wrong = invalid_channel(channel) or invalid_kind(kind)
  if wrong then
    return redis.error_reply('HWREFUSED ' .. wrong)
  end
  local partitions = tonumber(redis.call('HGET', base .. 'state', 'partitions'))
  if not partitions then
    return redis.error_reply('HWREFUSED no broker keeps the feed ' .. feed .. '; check the prefix and the partition')
  end
  local right = other_feed(feed, base, channel, partitions)
  if right then
    return redis.error_reply('HWREFUSED events of this channel go to the feed ' .. right)
  end
  if redis.call('XLEN', feed) == 0 then
    begin(feed, base, '0-0')
  end
  local record = idem and idem ~= '' and idempotency_key(base, channel, idem)
  if record then
    local known = redis.call('GET', record)
    if known then
      return known
    end
  end
  local length_max, age_max = retention(base, channel)
  local id, code, detail = append(feed, base, {
    channel = channel, kind = kind, data = data, format = format_of(data), length_max = length_max,
  })
  if not id then
    return redis.error_reply('HWREFUSED ' .. code .. ' ' .. (detail or ''))
  end
  if record then
    redis.call('SET', record, id, 'PX', 600000)
  end
  settle(base, channel, id, age_max)
  trim_feed(feed, redis.call('XLEN', feed), id)
  return id
end

redis.register_function('headwater_publish', publish)
