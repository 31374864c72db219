"""Limits that several gateways share: what a tenant used anywhere is counted in one Redis (extra `redis`).

The same windows as in `tenant.py`, on Redis's clock. One script reserves in all of a tenant's limits or in none, one
settles; Redis runs each of them alone, so gateways overshoot no more than requests of one gateway do. A reservation
ends by itself when its gateway never settles it.

Redis away: requests are held to the limits of their own gateway alone, which counted them all along, and are not
held up: after a failure Redis is left alone for `RETRY_SECONDS`. What they cost is added when it is back, and what they
had reserved, or may have, is settled then (`untold.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.fleet.limits.connection import Script, is_late, is_refused, redis_client
from weighbridge.fleet.limits.periods import day_at
from weighbridge.fleet.limits.rates import Rate
from weighbridge.fleet.limits.tenant import (
    BRIEFEST_WAIT,
    DAY,
    MAX_IDLE_TENANTS,
    MINUTE,
    NO_LIMITS,
    SLOTS,
    Limiter,
    SlidingWindow,
    TenantLimits,
    over_in,
    over_limit,
)
from weighbridge.fleet.limits.untold import Untold, UntoldBook
from weighbridge.secret import Secret

log = logging.getLogger("weighbridge.fleet")

#: Seconds that a Redis which failed is left alone.
RETRY_SECONDS = 1.0
#: Seconds after which a reservation that nobody settled counts as over: the longest answer and the longest queue.
LEASE_SECONDS = 3600
#: Seconds of a slot of dollars: a window has SLOTS of them, and a day begins with one, whatever the zone.
WINDOW_SLOT, DAY_SLOT = 1440, 900
#: What the reserving script names, in its order, and the seconds of their windows.
_WINDOWS = (("tokens_per_minute", MINUTE), ("requests_per_minute", MINUTE), ("usd_per_day", DAY))


# -- the scripts: Redis runs each of them alone --------------------------------------------------------

#: What both scripts begin with; the last of ARGV is the width of a slot of dollars. Of a tenant there are four hashes:
#: amounts by slot of `tokens`, `requests` and `usd`, and what is `reserved`: by request id its tokens, its dollars,
#: their two slots, and when it ends by itself.
_COMMON = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local widths = {1, 1, tonumber(ARGV[#ARGV])}
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
#: dollars in their windows and of tokens at one time, -1 for none, the first slot of dollars of the day, -1 where
#: they count in a window, and the names of gateways that are gone: what these had reserved was used by nobody, and is
#: given back first. Replies with -1 when it is reserved, else with the place of the limit that is full; then with the
#: time, and of tokens and of requests what is used and the last slot that has any; of a limit that is full also what of
#: it is used, and the slots and amounts of its window.
RESERVE = (
    _COMMON
    + """
local amounts = {tonumber(ARGV[2]), 1, tonumber(ARGV[3])}
local oldest = tonumber(ARGV[9])
if ARGV[10] ~= '' then
  local gone = {}
  for name in string.gmatch(ARGV[10], '%S+') do gone[name] = true end
  local open = redis.call('HGETALL', KEYS[4])
  for n = 1, #open, 2 do
    local gateway = string.match(open[n], '^([^/]+)/')
    if gateway and gone[gateway] then
      local was = parse(open[n + 1])
      redis.call('HDEL', KEYS[4], open[n])
      if redis.call('HEXISTS', KEYS[1], was[3]) == 1 then add(1, was[3], -was[1]) end
      if redis.call('HEXISTS', KEYS[2], was[3]) == 1 then add(2, was[3], -1) end
      if redis.call('HEXISTS', KEYS[3], was[4]) == 1 then add(3, was[4], -was[2]) end
    end
  end
end
local totals, last, windows = {}, {}, {}
for i = 1, 3 do
  local total, newest, window = 0, -1, {}
  local counted = redis.call('HGETALL', KEYS[i])
  for n = 1, #counted, 2 do
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
  return reply(3, string.format('%.12g', held))
end
for i = 1, 3 do
  add(i, slots[i], amounts[i])
  totals[i] = totals[i] + amounts[i]
  if amounts[i] > 0 then last[i] = slots[i] end
  redis.call('EXPIRE', KEYS[i], widths[i] == 1 and 62 or 93600)
end
local ends = now + tonumber(ARGV[4])
redis.call('HSET', KEYS[4], ARGV[1], string.format(
  '%d %s %d %d %.6f', amounts[1], ARGV[3], slots[1], slots[3], ends))
redis.call('EXPIRE', KEYS[4], tonumber(ARGV[4]) + 60)
return reply(-1)
"""
)

#: KEYS: the four hashes. ARGV: request id, tokens and dollars it used, dollars that were used while Redis was away, and
#: whether a request that is not reserved is to be added (1) or left alone (0), those dollars too.
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
else
  owed = 0
end
if owed > 0 then add(3, slots[3], owed) end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], widths[i] == 1 and 62 or 93600) end
return {}
"""
)


class SharedLimits:
    """`reserve` before a request goes, `settle` when it is over, on top of the gateway's own `Limiter`.

    `fallbacks` counts requests that went by local limits alone, `away` says whether the next one would.
    """

    def __init__(
        self,
        url: Secret,
        local: Limiter,
        *,
        prefix: str = "weighbridge",
        timeout: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The Redis at `url`, whose keys begin with `prefix`; after `timeout` seconds a request goes on without it.

        `gateway` may be set to this gateway's name among its peers, and `gone` to what tells which of them are no more:
        what these had reserved is given back.

        Connects with the first request. Raises BadInput where the extra is missing or the URL is none.
        """
        self.fallbacks = 0
        self.operations = 0
        self.gateway = ""
        self.gone: Callable[[], Sequence[str]] = tuple
        self._prefix = prefix
        self._timeout = timeout
        self._local = local
        self._clock = clock
        self._redis = redis_client(url, timeout, "shared_limits")
        self._reserve: Script = self._redis.register_script(RESERVE)
        self._settle: Script = self._redis.register_script(SETTLE)
        self._failing = False
        self._retry_at = float("-inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rates: OrderedDict[str, tuple[float, tuple[Rate, ...]]] = OrderedDict()  # when, and what
        self._held: dict[str, tuple[list[str], int]] = {}  # keys and slot of what is reserved, by request
        self._owed: dict[str, float] = {}  # US dollars that Redis has not heard of, by tenant
        self._untold = UntoldBook()
        self._teller: asyncio.Task[None] | None = None
        self._redis_ahead = 0.0  # seconds of its clock before ours, which may be wrong

    @property
    def away(self) -> bool:
        return self._clock() < self._retry_at

    async def reserve(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        """Set it aside in the shared limits. Raises RateLimited like the local limiter; nothing else goes wrong."""
        limits = self._local.limits(tenant)
        if limits == NO_LIMITS:
            return
        if self.away:
            self.fallbacks += 1
            return
        wall = time.time() + self._redis_ahead
        oldest = -1 if limits.zone is None else int(day_at(wall, limits.zone).begins // DAY_SLOT)
        args = [self._name(request_id), tokens, f"{usd:.12g}", LEASE_SECONDS, *_limit_args(limits), oldest]
        args += [" ".join(self.gone()), _slot(limits)]
        self.operations += 1
        keys = self._keys(tenant)
        task = self._start(self._reserve(keys=keys, args=args))
        try:
            reply = await asyncio.wait_for(asyncio.shield(task), self._timeout)
        except asyncio.CancelledError:  # it may have been reserved, or will be
            self._undo_after(task, tenant, request_id)
            raise
        except Exception as error:
            self._undo_after(task, tenant, request_id)
            self._failed(error)
            self.fallbacks += 1
            return
        self._works()
        place, now, *said = (float(one) for one in reply)
        self._redis_ahead = now - time.time()
        self._remember(tenant, limits, now, said[:4])
        if place >= 0:
            raise self._refusal(tenant, limits, (int(place), now, *said[4:]), tokens, usd)
        self._held[request_id] = keys, _slot(limits)

    def rates(self, tenant: str) -> tuple[Rate, ...] | None:
        """What was left of a tenant's shared limits when one of its requests was last let in or refused; None where
        that is not known, or Redis is away."""
        known = self._rates.get(tenant)
        if known is None or self.away:
            return None
        at, rates = known
        return tuple(rate.after(self._clock() - at) for rate in rates)

    def settle(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        """Tell Redis in the background what the request used, where it was reserved even if the limits are others by
        now. One that Redis did not know is added."""
        held, limits = self._held.pop(request_id, None), self._local.limits(tenant)
        if held is None and limits == NO_LIMITS:
            return
        keys, slot = held if held is not None else (self._keys(tenant), _slot(limits))
        one = Untold(tenant, keys, slot, tokens, usd)
        if not self.away:
            self._start(self._settled(self._name(request_id), one, is_held=held is not None))
        elif held is not None:
            self._tell_later(self._name(request_id), one)
        else:
            self._owe(tenant, usd)

    async def close(self) -> None:
        """Let what is being told arrive, and disconnect."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * self._timeout)
        if self._teller is not None and not self.away:
            await asyncio.wait({self._teller}, timeout=2 * self._timeout)
        for task in (*self._tasks, *([self._teller] if self._teller is not None else [])):
            task.cancel()
        await self._redis.aclose()

    # -- inside ----------------------------------------------------------------------------------------

    def _remember(self, tenant: str, limits: TenantLimits, now: float, said: list[float]) -> None:
        """Keep what Redis counted: of tokens and of requests what is used, and the last slot that has any."""
        tokens, last_tokens, requests, last_requests = said
        counted = (
            ("requests", limits.requests_per_minute, requests, last_requests),
            ("tokens", limits.tokens_per_minute, tokens, last_tokens),
        )
        rates = tuple(
            Rate(kind, limit, used, over_in(last, MINUTE, now) if last >= 0 else 0.0)
            for kind, limit, used, last in counted
            if limit is not None
        )
        self._rates[tenant] = self._clock(), rates
        self._rates.move_to_end(tenant)
        if len(self._rates) > MAX_IDLE_TENANTS:
            self._rates.popitem(last=False)

    def _keys(self, tenant: str) -> list[str]:
        """All of a tenant's keys, in one slot of a cluster."""
        start = f"{self._prefix}:{{{tenant}}}:"
        money = "usd" if self._local.limits(tenant).zone is None else "usd-by-day"
        return [start + name for name in ("tokens", "requests", money, "reserved")]

    def _name(self, request_id: str) -> str:
        """The name of a reservation: a gateway's own, so that what another one holds under the same id is not taken
        for it."""
        return f"{self.gateway}/{request_id}" if self.gateway else request_id

    def _start(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        async def run() -> Any:
            return await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told where it was waited for; here it is only not to be warned of

    async def _settled(self, name: str, one: Untold, *, is_held: bool) -> None:
        one = replace(one, owed=self._owed.pop(one.tenant, 0.0))
        began = self._clock()
        try:
            await self._say(name, one, adds=True)
        except Exception as error:
            self._failed(error)
            if is_held:
                self._tell_later(name, replace(one, sent_at=began) if is_late(error) else one)
            else:
                self._owe(one.tenant, one.usd + one.owed)
        else:
            self._works()

    async def _say(self, name: str, one: Untold, *, adds: bool) -> None:
        args = [name, one.tokens, f"{one.usd:.12g}", f"{one.owed:.12g}", int(adds), one.slot]
        self.operations += 1
        async with asyncio.timeout(self._timeout):
            await self._settle(keys=one.keys, args=args)

    def _tell_later(self, name: str, one: Untold) -> None:
        """Tell Redis when it answers again."""
        given_up = self._untold.keep(name, one)
        if given_up is not None:
            self._owe(given_up.tenant, given_up.usd + given_up.owed)
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        """Tell Redis what it may not have heard, for as long as that takes."""
        while self._untold:
            await asyncio.sleep(max(self._retry_at - self._clock(), 0.0))
            name, one = self._untold.first()
            began = self._clock()
            try:
                await self._say(name, one, adds=one.adds(began))
            except Exception as error:
                self._untold.wait_on(name, one, began if is_late(error) else None)
                if is_refused(error):  # it may be this one alone
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._failed(error)
            else:
                self._untold.told(name, one)
                self._works()

    def _owe(self, tenant: str, usd: float) -> None:
        if usd:
            self._owed[tenant] = self._owed.get(tenant, 0.0) + usd

    def _undo_after(self, task: asyncio.Task[Any], tenant: str, request_id: str) -> None:
        """Give a reservation back that nobody waits for any more, also where nobody knows whether it was made."""
        name, keys, slot = self._name(request_id), self._keys(tenant), _slot(self._local.limits(tenant))

        async def undo() -> None:
            await asyncio.wait({task})  # its connection has a time-out
            self._tell_later(name, Untold(tenant, keys, slot, only_release=True))

        self._start(undo())

    def _refusal(
        self, tenant: str, limits: TenantLimits, reply: Sequence[float], tokens: int, usd: float
    ) -> Exception:
        """Return the error for what the script found full: its place in `_WINDOWS`, Redis's time and the
        window's slots."""
        place, now, used, *slots = reply
        if int(place) == len(_WINDOWS):
            limit = limits.concurrent_tokens or 0
            wait = self._local.release_in(tenant, used + tokens - limit, self._clock())
            return over_limit(tenant, "concurrent_tokens", limit, used, tokens, wait)
        name, seconds = _WINDOWS[int(place)]
        amount = (tokens, 1, usd)[int(place)]
        if name == "usd_per_day" and limits.zone is not None:
            wait = max(day_at(now, limits.zone).ends - now, BRIEFEST_WAIT)
            return over_limit(tenant, name, limits.usd_per_day or 0.0, used, amount, wait)
        window = SlidingWindow(seconds)
        for slot, counted in sorted(zip(slots[::2], slots[1::2], strict=True)):
            window.add(counted, slot * seconds / SLOTS)
        limit = getattr(limits, name)
        return over_limit(tenant, name, limit, used, amount, window.room_in(amount, limit, now))

    def _failed(self, error: Exception) -> None:
        self._retry_at = self._clock() + RETRY_SECONDS
        if not self._failing:
            self._failing = True
            why = str(error) or type(error).__name__
            log.warning("Redis is away (%s): limits are those of this gateway alone until it is back", why)

    def _works(self) -> None:
        self._retry_at = float("-inf")
        if self._failing:
            self._failing = False
            log.warning("Redis is back: limits are shared again")


def _slot(limits: TenantLimits) -> int:
    """Seconds of a slot of dollars."""
    return WINDOW_SLOT if limits.zone is None else DAY_SLOT


def _limit_args(limits: TenantLimits) -> list[Any]:
    """Return the limits as the script reads them: -1 where there is none."""
    given = (
        limits.tokens_per_minute,
        limits.requests_per_minute,
        limits.usd_per_day,
        limits.concurrent_tokens,
    )
    return [-1 if one is None else one for one in given]
