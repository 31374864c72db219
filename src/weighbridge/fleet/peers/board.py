"""The board in Redis that gateways read and write: one script a second says who is there and what has changed.

Redis runs each script alone and tells the time, so gateways need no clocks in step. All keys are in one slot of a
cluster. What a key holds is nobody's promise: replies are checked here, and what is no record of ours is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from weighbridge.fleet.limits.connection import Script, redis_client
from weighbridge.fleet.peers.records import MemberRecord
from weighbridge.fleet.peers.registers import (
    LARGEST_RECORD,
    MOST_RECORDS,
    AnyRecord,
    Reader,
    RefusedRecord,
    written,
)
from weighbridge.fleet.peers.seal import Seal
from weighbridge.fleet.peers.tenant_records import (
    MOST_TENANT_RECORDS,
    ROOM_FOR_REVOKED,
    KeyRecord,
    TenantRecord,
)
from weighbridge.secret import Secret

#: Seconds without a sign of life after which a gateway counts as gone, and for which it is remembered as gone.
GONE_AFTER, GONE_KEPT = 5.0, 7200.0
#: Gateways that one fleet may have.
MOST_GATEWAYS = 256
#: Bytes of one piece of news, and how many of them wait for whoever has not read them yet.
LARGEST_NEWS, NEWS_KEPT = 64 << 10, 128
#: Records of tenants that one look brings: as many as a turn of the event loop has time for. The number of the last
#: change that there may ever be.
PAGE, LAST_CHANGE = 256, 1 << 50

#: KEYS: gateways, members, counts of changes, news, tenants, the same by their last change. ARGV: own name, seconds
#: that a gone gateway is remembered, the count that is known, bytes of a record, records, gateways, the last news that
#: were read ("": none are wanted), own news ("": none), their bytes, how many are kept; of tenants the seed and the
#: number of the last change that is known, how many are read at once, and the highest number that there may be.
#: Replies with the count, gateways with the seconds since their last sign of life, members where the count is
#: another one, news with their ids, and whether there are too many members; of tenants the seed, the number of the last
#: change that was read, whether it was read from the beginning, whether there are more, those that have changed, and
#: the time.
SYNC = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.3f', now))
local seen, gateways = redis.call('HGETALL', KEYS[1]), {}
for n = 1, #seen, 2 do
  local at = tonumber(seen[n + 1])
  if not at or at < now - tonumber(ARGV[2]) or at > now + 60 then
    redis.call('HDEL', KEYS[1], seen[n])
  elseif #gateways < 2 * tonumber(ARGV[6]) and #seen[n] <= 200 then
    gateways[#gateways + 1] = seen[n]
    gateways[#gateways + 1] = string.format('%.3f', now - at)
  end
end
local count = (redis.call('HGET', KEYS[3], 'seed') or '') .. ':' .. (redis.call('HGET', KEYS[3], 'n') or '0')
local members, many = {}, 0
if count ~= ARGV[3] then
  if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[5]) then
    many = 1
  else
    local kept = redis.call('HGETALL', KEYS[2])
    for n = 1, #kept, 2 do
      members[#members + 1] = kept[n]
      members[#members + 1] = #kept[n + 1] <= tonumber(ARGV[4]) and kept[n + 1] or ''
    end
  end
end
local news = {}
if ARGV[7] ~= '' then
  for _, one in ipairs(redis.call('XRANGE', KEYS[4], '(' .. ARGV[7], '+', 'COUNT', ARGV[10])) do
    local text = one[2][2] or ''
    news[#news + 1] = one[1]
    news[#news + 1] = #text <= tonumber(ARGV[9]) and text or ''
  end
end
if ARGV[8] ~= '' then
  redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[10], '*', 't', ARGV[8])
  redis.call('EXPIRE', KEYS[4], 600)
end
local seed = redis.call('HGET', KEYS[3], 'seed') or ''
local last = tonumber(redis.call('HGET', KEYS[3], 'tenants') or '0') or 0
local top = redis.call('ZREVRANGEBYSCORE', KEYS[6], ARGV[14], '0', 'WITHSCORES', 'LIMIT', '0', '1')
if top[2] then last = math.max(last, math.floor(tonumber(top[2]))) end
local from, page, tenants, more = tonumber(ARGV[12]), tonumber(ARGV[13]), {}, 0
if seed ~= ARGV[11] or last < from then from = 0 end
local upto = last
if last > from then
  local names = redis.call('ZRANGEBYSCORE', KEYS[6], '(' .. string.format('%.0f', from), string.format('%.0f', last),
    'WITHSCORES', 'LIMIT', '0', ARGV[13])
  for n = 1, #names, 2 do
    local record = redis.call('HGET', KEYS[5], names[n]) or ''
    tenants[#tenants + 1] = names[n]
    tenants[#tenants + 1] = #record <= tonumber(ARGV[4]) and record or ''
  end
  if #names == 2 * page then
    more = 1
    upto = math.floor(tonumber(names[#names]))
  end
end
local told = {seed, string.format('%.0f', upto), from == 0 and 1 or 0, more, tenants, string.format('%.3f', now)}
return {count, gateways, members, news, many, told}
"""

#: KEYS: records, counts of changes, where there is one the order of their last changes. ARGV: name, record, version,
#: time, the version that it follows (-1: whatever is older), a seed for the counts, how many records there may be, a
#: record that is known to be none of ours, what the count is called, and the highest number that it may have.
#: Replies with 1, or 0 and the record that stands against it, or -1 where there are too many.
PUT = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and old == ARGV[8] then old = false end
local version, at = -1, -1
if old then
  local first, second = string.match(old, '^(%d+) (%d+%.?%d*) ')
  if first then version, at = tonumber(first), tonumber(second) end
  local follows = tonumber(ARGV[5])
  if follows >= 0 and version > follows then return {0, old} end
  if follows < 0 and (version > tonumber(ARGV[3]) or (version == tonumber(ARGV[3]) and at >= tonumber(ARGV[4]))) then
    return {0, old}
  end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[7]) then
  return {-1, ''}
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[2], 'seed', ARGV[6])
local n = redis.call('HINCRBY', KEYS[2], ARGV[9], 1)
if KEYS[3] then
  local top = redis.call('ZREVRANGEBYSCORE', KEYS[3], ARGV[10], '0', 'WITHSCORES', 'LIMIT', '0', '1')
  if top[2] and tonumber(top[2]) >= n then  -- the count was lost, and what it had counted was not
    n = math.floor(tonumber(top[2])) + 1
    redis.call('HSET', KEYS[2], ARGV[9], string.format('%.0f', n))
  end
  redis.call('ZADD', KEYS[3], string.format('%.0f', n), ARGV[1])
end
return {1, ''}
"""

#: KEYS: records, where there is one their order. ARGV: names and records. Forgets those that are still as they were
#: read. The count stays: who has one of them forgets it by himself.
FORGET = """
local gone = 0
for n = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[n]) == ARGV[n + 1] then
    gone = gone + redis.call('HDEL', KEYS[1], ARGV[n])
    if KEYS[2] then redis.call('ZREM', KEYS[2], ARGV[n]) end
  end
end
return gone
"""

#: KEYS: speeds. ARGV: how many may be kept, then names and speeds. Where there would be more all are forgotten first:
#: they are learned again.
SPEEDS = """
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) then redis.call('DEL', KEYS[1]) end
for n = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
redis.call('EXPIRE', KEYS[1], 604800)
return {}
"""


@dataclass(frozen=True, slots=True)
class News:
    """What a gateway told the others: who it is, and a text that it has sealed."""

    id: str
    text: bytes


@dataclass(frozen=True, slots=True)
class TenantsRead:
    """What has changed of tenants' keys and limits behind a place that was known. `whole`: it was read from the
    beginning. `more`: there is more than one look brings."""

    place: tuple[str, int] = ("", 0)  # where to read on: the seed of the count, and the number of a change
    records: Sequence[TenantRecord] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False
    more: bool = False
    at: float = 0.0  # when, by Redis's clock: epoch seconds


@dataclass(frozen=True, slots=True)
class BoardState:
    """What was on the board. `members`: None where nothing has changed. `gateways`: seconds since each was heard of."""

    count: str
    gateways: Mapping[str, float]
    members: Mapping[str, MemberRecord] | None
    refused: Mapping[str, str] = field(
        default_factory=dict
    )  # names of records that are none of ours, and why
    news: Sequence[News] = ()
    tenants: TenantsRead = TenantsRead()


class Outdated(Exception):
    """A change was made to what is no more so; `record` holds now."""

    def __init__(self, record: Any) -> None:
        """`record`: of the sort of the one that was to be written."""
        super().__init__(record.name)
        self.record = record


class TooMany(Exception):
    """There are as many records of that sort as there may be."""


class Shelf(Generic[AnyRecord]):
    """Where the records of one sort lie: their hash, the name of their count, and the order of their changes."""

    def __init__(self, kind: Any, key: bytes, name: str, count: str, order: str | None = None) -> None:
        """`key`: the digest of the operator's key."""
        self.seal = Seal(key, name.rpartition(":")[2])
        self.reader: Reader[AnyRecord] = Reader(kind, self.seal)
        self.name, self.count = name, count
        self.order = [] if order is None else [order]

    def read(self, flat: Sequence[Any]) -> tuple[dict[str, AnyRecord], dict[str, str]]:
        """The records of names and what lies there, and why others are none."""
        found: dict[str, AnyRecord] = {}
        refused: dict[str, str] = {}
        for raw, data in _pairs(flat):
            name = _text(raw)
            try:
                found[name] = self.reader.read(name, bytes(data))
            except RefusedRecord as error:
                refused[name[:80]] = str(error)
        return found, refused


class Board:
    """Reads and writes the board. Every method raises whatever its Redis client raises, and TimeoutError."""

    def __init__(self, url: Secret, prefix: str, me: str, key: bytes, timeout: float, setting: str) -> None:
        """`me`: the name of this gateway among the others; `key`: the digest of the operator's key.

        Raises BadInput like `redis_client`.
        """
        self.operations = 0
        self._me, self._timeout = me, timeout
        self._redis = redis_client(url, timeout, setting)
        self._sync: Script = self._redis.register_script(SYNC)
        self._put: Script = self._redis.register_script(PUT)
        self._forget: Script = self._redis.register_script(FORGET)
        self._write_speeds: Script = self._redis.register_script(SPEEDS)
        start = f"{prefix}:{{fleet}}:"
        self._gateways, self._count, self._news, self._speeds = (
            start + name for name in ("gateways", "changes", "news", "speeds")
        )
        self._members: Shelf[MemberRecord] = Shelf(MemberRecord, key, start + "members", "n")
        self._tenants: Shelf[TenantRecord] = Shelf(
            TenantRecord, key, start + "tenants", "tenants", start + "tenants:order"
        )

    async def look(
        self,
        known: str,
        read_news_after: str = "",
        own_news: bytes = b"",
        tenants_known: tuple[str, int] = ("", 0),
    ) -> BoardState:
        """Say that we are here, and see what has changed since the count `known`, and of tenants since a place."""
        args = [self._me, GONE_KEPT, known, LARGEST_RECORD, MOST_RECORDS, MOST_GATEWAYS]
        args += [read_news_after, own_news, LARGEST_NEWS, NEWS_KEPT, *tenants_known, PAGE, LAST_CHANGE]
        keys = [self._gateways, self._members.name, self._count, self._news, self._tenants.name]
        reply = await self._done(self._sync(keys=keys + self._tenants.order, args=args))
        count, gateways, members, news, many, tenants = reply
        now_count = _text(count)
        found, refused = None, {}
        if many:
            refused = {"*": f"there are more than {MOST_RECORDS} members"}
        elif now_count != known:
            found, refused = self._members.read(members)
        ages = {_text(name): float(age) for name, age in _pairs(gateways)}
        read_news = [News(_text(name), bytes(text)) for name, text in _pairs(news)]
        return BoardState(now_count, ages, found, refused, read_news, self._read_tenants(tenants))

    def _read_tenants(self, told: Sequence[Any]) -> TenantsRead:
        seed, upto, whole, more, flat, at = told
        found, refused = self._tenants.read(flat)
        place = _text(seed), int(upto)
        return TenantsRead(place, list(found.values()), refused, bool(whole), bool(more), float(at))

    async def put(self, record: MemberRecord | TenantRecord, follows: int | None) -> None:
        """Write a record down that follows version `follows`; None: it replaces whatever is older.

        Raises Outdated where another one stands against it, and TooMany.
        """
        shelf, most = self._shelf(record)
        data, no_record = written(record, shelf.seal), b""
        for _ in range(3):
            args = [record.name, data, record.version, f"{record.at:.6f}", -1 if follows is None else follows]
            args += [f"{self._me}-{time.time_ns():x}", most, no_record]
            args += [shelf.count, LAST_CHANGE]
            keys = [shelf.name, self._count, *shelf.order]
            done, old = await self._done(self._put(keys=keys, args=args))
            if int(done) == 1:
                return
            if int(done) == -1:
                raise TooMany
            try:
                raise Outdated(shelf.reader.read(record.name, bytes(old)))
            except RefusedRecord:
                no_record = bytes(old)  # it stands against nothing
        raise RefusedRecord(f"somebody else writes over the record of {record.name!r} again and again")

    def _shelf(self, record: MemberRecord | TenantRecord) -> tuple[Shelf[Any], int]:
        """Where a record lies, and how many there may be so that it finds a place."""
        if isinstance(record, MemberRecord):
            return self._members, MOST_RECORDS
        is_revoked = isinstance(record, KeyRecord) and record.is_revoked
        return self._tenants, MOST_TENANT_RECORDS - (0 if is_revoked else ROOM_FOR_REVOKED)

    async def forget(self, records: Sequence[MemberRecord] | Sequence[TenantRecord]) -> int:
        """Delete records of one sort that nobody needs any more; one that was changed meanwhile stays. Return how many
        went."""
        shelf, _ = self._shelf(records[0])
        flat = [part for one in records for part in (one.name, written(one, shelf.seal))]
        return int(await self._done(self._forget(keys=[shelf.name, *shelf.order], args=flat)))

    async def write_speeds(self, speeds: Mapping[str, bytes]) -> None:
        """Keep what was learned of replicas' speeds, for whoever asks."""
        flat = [part for pair in speeds.items() for part in pair]
        await self._done(self._write_speeds(keys=[self._speeds], args=[MOST_RECORDS, *flat]))

    async def speeds(self, names: Sequence[str]) -> dict[str, bytes]:
        """What is kept of these replicas' speeds; nothing of those of which nothing is."""
        found = await self._done(self._redis.hmget(self._speeds, list(names)))
        return {name: bytes(one) for name, one in zip(names, found, strict=True) if one is not None}

    async def leave(self) -> None:
        """Say that we are gone for good, with nothing left open."""
        await self._done(self._redis.hdel(self._gateways, self._me))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _done(self, work: Awaitable[Any]) -> Any:
        self.operations += 1
        async with asyncio.timeout(self._timeout):
            return await work


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
