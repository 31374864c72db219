"""The two scripts that Redis runs for `shared.py`, each as one step.

Of a tenant there are four hashes: amounts by slot of `tokens`, `requests` and `usd`, and what is `reserved`: by
request id its tokens, its dollars, their two slots, and when it ends by itself.
"""

from __future__ import annotations

_COMMON = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local widths = {1, 1, 1440}
local slots = {}
for i = 1, 3 do slots[i] = math.floor(now / widths[i]) end

local function add(i, slot, amount)
  redis.call('HINCRBYFLOAT', KEYS[i], slot, string.format('%.12g', amount))
end

local function parse(record)
  local found = {}
  for part in string.gmatch(record, '%S+') do found[#found + 1] = tonumber(part) end
  return found
end
"""

#: KEYS: the four hashes. ARGV: request id, tokens, dollars, seconds it may last, then limits of tokens, requests and
#: dollars in their windows and of tokens at one time, -1 for none. Replies with nothing when it is reserved, else with
#: the place of the limit that is full, the time, what is used, and the slots and amounts of its window.
RESERVE = (
    _COMMON
    + """
if redis.call('HEXISTS', KEYS[4], ARGV[1]) == 1 then return {} end
local amounts = {tonumber(ARGV[2]), 1, tonumber(ARGV[3])}
for i = 1, 3 do
  local limit, total, window = tonumber(ARGV[4 + i]), 0, {}
  local counted = redis.call('HGETALL', KEYS[i])
  for n = 1, #counted, 2 do
    if tonumber(counted[n]) < slots[i] - 60 then
      redis.call('HDEL', KEYS[i], counted[n])
    else
      total = total + tonumber(counted[n + 1])
      window[#window + 1] = counted[n]
      window[#window + 1] = counted[n + 1]
    end
  end
  if limit >= 0 and total + amounts[i] > limit + 1e-9 then
    return {tostring(i - 1), string.format('%.6f', now), string.format('%.12g', total), unpack(window)}
  end
end
local held, records = 0, redis.call('HGETALL', KEYS[4])
for n = 1, #records, 2 do
  local record = parse(records[n + 1])
  if record[5] < now then
    redis.call('HDEL', KEYS[4], records[n])
  else
    held = held + record[1]
  end
end
local most = tonumber(ARGV[8])
if most >= 0 and held + amounts[1] > most then
  return {'3', string.format('%.6f', now), string.format('%.12g', held)}
end
for i = 1, 3 do
  add(i, slots[i], amounts[i])
  redis.call('EXPIRE', KEYS[i], widths[i] * 62)
end
local ends = now + tonumber(ARGV[4])
redis.call('HSET', KEYS[4], ARGV[1], string.format(
  '%d %s %d %d %.6f', amounts[1], ARGV[3], slots[1], slots[3], ends))
redis.call('EXPIRE', KEYS[4], tonumber(ARGV[4]) + 60)
return {}
"""
)

#: KEYS: the four hashes. ARGV: request id, tokens and dollars it used, dollars that were used while Redis was away, and
#: whether a request that is not reserved is to be added (1) or left alone (0).
SETTLE = (
    _COMMON
    + """
local record = redis.call('HGET', KEYS[4], ARGV[1])
local tokens, usd, owed = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if record then
  redis.call('HDEL', KEYS[4], ARGV[1])
  local was = parse(record)
  if redis.call('HEXISTS', KEYS[1], was[3]) == 1 then add(1, was[3], tokens - was[1]) end
  if redis.call('HEXISTS', KEYS[3], was[4]) == 1 then add(3, was[4], usd - was[2]) end
elseif ARGV[5] == '1' then
  add(1, slots[1], tokens)
  owed = owed + usd
end
if owed > 0 then add(3, slots[3], owed) end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], widths[i] * 62) end
return {}
"""
)
