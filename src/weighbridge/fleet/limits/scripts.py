"""The scripts that count tenants' use in Redis, which runs each of them alone.

Of a tenant there are four hashes: amounts by slot of `tokens`, `requests` and `usd`, and what is `reserved`. The last
has by `gateway/request id` the tokens that it holds, its dollars, their two slots, and when it ends by itself. A
receipt, of an answer that is charged and not yet handed over, holds no tokens; behind the others it has those that are
charged, and "paid". Either has "again" at its end where another gateway was asked for the same.
"""

from __future__ import annotations

#: What both begin with; the last of ARGV is the width of a slot of dollars.
_COMMON = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local widths = {1, 1, tonumber(ARGV[#ARGV])}
local slots = {}
for i = 1, 3 do slots[i] = math.floor(now / widths[i]) end

local function add(i, slot, amount)
  redis.call('HINCRBYFLOAT', KEYS[i], slot, string.format('%.12g', amount))
end

local function adjust(i, slot, amount)
  if redis.call('HEXISTS', KEYS[i], slot) == 1 then add(i, slot, amount) end
end

-- Slots of a clock that was ahead when it counted: what is further off than its window counts now.
local function near(i, slot)
  local most = widths[i] == 900 and 100 or 60
  if tonumber(slot) > slots[i] + most then return slots[i] end
  return tonumber(slot)
end

local function parse(record)
  local found = {}
  for part in string.gmatch(record, '%S+') do found[#found + 1] = tonumber(part) end
  return found
end

local function says(record, word)
  return string.find(record, word, 1, true) ~= nil
end
"""

#: KEYS: the four hashes. ARGV: request id, tokens, dollars, seconds it may last, then limits of tokens, requests and
#: dollars in their windows and of tokens at one time, -1 for none, the first slot of dollars of the day, -1 where
#: they count in a window, and the names of gateways that are gone. What these had reserved was used by nobody, and what
#: they charged for answers that were asked for again was not handed over: both are given back first. Replies with -1
#: when it is reserved, else with the place of the limit that is full; then with the time, and of tokens and of requests
#: what is used and the last slot that has any; of a limit that is full also what of it is used, and the slots and
#: amounts of its window.
RESERVE = (
    _COMMON
    + """
local amounts = {tonumber(ARGV[2]), 1, tonumber(ARGV[3])}
local oldest, gone = tonumber(ARGV[9]), {}
for name in string.gmatch(ARGV[10], '%S+') do gone[name] = true end
local held, records, twins = 0, redis.call('HGETALL', KEYS[4]), {}
local id, latest = string.match(ARGV[1], '^[^/]+(/.*)$'), now + tonumber(ARGV[4])
for n = 1, #records, 2 do
  local record, is_paid = parse(records[n + 1]), says(records[n + 1], 'paid')
  local gateway, its_id = string.match(records[n], '^([^/]+)(/.*)$')
  local is_void = gateway and gone[gateway] and (not is_paid or says(records[n + 1], 'again'))
  if is_void then
    adjust(1, record[3], is_paid and -record[6] or -record[1])
    adjust(2, record[3], -1)
    adjust(3, record[4], -record[2])
  elseif record[5] > latest + 1 then
    local first, third = near(1, record[3]), near(3, record[4])
    records[n + 1] = string.format('%d %.12g %d %d %.6f', record[1], record[2], first, third, latest)
      .. string.match(records[n + 1], '^%S+ %S+ %S+ %S+ %S+(.*)$')
    redis.call('HSET', KEYS[4], records[n], records[n + 1])
  end
  if is_void or record[5] < now then
    redis.call('HDEL', KEYS[4], records[n])
  else
    held = held + record[1]
    if id and its_id == id then twins[#twins + 1] = n end
  end
end
if oldest > slots[3] then oldest = slots[3] - 96 end
local totals, last, windows = {}, {}, {}
for i = 1, 3 do
  local total, newest, window = 0, -1, {}
  local counted = redis.call('HGETALL', KEYS[i])
  for n = 1, #counted, 2 do
    local slot = near(i, counted[n])
    if slot ~= tonumber(counted[n]) then
      redis.call('HDEL', KEYS[i], counted[n])
      add(i, slot, tonumber(counted[n + 1]))
      counted[n] = tostring(slot)
    end
    local by_day = i == 3 and oldest >= 0
    if tonumber(counted[n]) < slots[i] - (by_day and 192 or 60) then
      redis.call('HDEL', KEYS[i], counted[n])
    elseif not by_day or tonumber(counted[n]) >= oldest then
      total = total + tonumber(counted[n + 1])
      if tonumber(counted[n + 1]) > 0 then newest = math.max(newest, tonumber(counted[n])) end
      window[#window + 1] = counted[n]
      window[#window + 1] = counted[n + 1]
    end
  end
  totals[i], last[i], windows[i] = total, newest, window
end

local function reply(place, ...)
  return {tostring(place), string.format('%.6f', now), string.format('%.12g', totals[1]), tostring(last[1]),
    string.format('%.12g', totals[2]), tostring(last[2]), ...}
end

if redis.call('HEXISTS', KEYS[4], ARGV[1]) == 1 then return reply(-1) end
for i = 1, 3 do
  local limit = tonumber(ARGV[4 + i])
  if limit >= 0 and totals[i] + amounts[i] > limit + 1e-9 then
    return reply(i - 1, string.format('%.12g', totals[i]), unpack(windows[i]))
  end
end
local most = tonumber(ARGV[8])
if most >= 0 and held + amounts[1] > most then
  return reply(3, string.format('%.12g', held))
end
for _, n in ipairs(twins) do
  if not says(records[n + 1], 'again') then redis.call('HSET', KEYS[4], records[n], records[n + 1] .. ' again') end
end
for i = 1, 3 do
  add(i, slots[i], amounts[i])
  totals[i] = totals[i] + amounts[i]
  if amounts[i] > 0 then last[i] = slots[i] end
  redis.call('EXPIRE', KEYS[i], widths[i] == 1 and 62 or 93600)
end
redis.call('HSET', KEYS[4], ARGV[1], string.format(
  '%d %s %d %d %.6f', amounts[1], ARGV[3], slots[1], slots[3], latest))
redis.call('EXPIRE', KEYS[4], tonumber(ARGV[4]) + 60)
return reply(-1)
"""
)

#: KEYS: the four hashes. ARGV: request id, tokens and dollars it used, dollars that were used while Redis was away,
#: whether a request that is not reserved is to be added (1) or left alone (0), those dollars too, and the seconds that
#: a receipt may last, 0 for none. Where there is one, it was charged before, and the difference is added.
SETTLE = (
    _COMMON
    + """
local record = redis.call('HGET', KEYS[4], ARGV[1])
local tokens, usd, owed, lasts = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local function keep(first, third, ends, again)
  redis.call('HSET', KEYS[4], ARGV[1],
    string.format('0 %s %d %d %.6f %d paid', ARGV[3], first, third, ends, tokens) .. again)
end

if record then
  local was = parse(record)
  adjust(1, was[3], tokens - (says(record, 'paid') and was[6] or was[1]))
  adjust(3, was[4], usd - was[2])
  if lasts > 0 then
    keep(was[3], was[4], was[5], says(record, 'again') and ' again' or '')
  else
    redis.call('HDEL', KEYS[4], ARGV[1])
  end
elseif ARGV[5] == '1' then
  add(1, slots[1], tokens)
  add(3, slots[3], usd)
  if lasts > 0 then keep(slots[1], slots[3], now + lasts, '') end
else
  owed = 0
end
if owed > 0 then add(3, slots[3], owed) end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], widths[i] == 1 and 62 or 93600) end
return {}
"""
)
