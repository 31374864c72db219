"""Limits that several gateways share: what a tenant used anywhere is counted in one Redis (extra `redis`).

The same windows as in `tenant.py`, on Redis's clock. One script reserves in all of a tenant's limits or in none, one
settles (`scripts.py`); Redis runs each of them alone, so gateways overshoot no more than requests of one gateway do. A
reservation ends by itself when its gateway never settles it.

Among peers an answer is charged before its client has the end of it, and its reservation stays as a receipt until that
was handed over. So nothing goes uncharged when a gateway is killed; and where its client asks elsewhere again, under
the same id, what the receipt says is given back, so that nobody pays twice.

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
from dataclasses import dataclass, replace
from typing import Any

from weighbridge.fleet.limits.connection import Script, is_late, is_refused, redis_client
from weighbridge.fleet.limits.periods import day_at
from weighbridge.fleet.limits.rates import Rate
from weighbridge.fleet.limits.scripts import RESERVE, SETTLE
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


@dataclass(frozen=True, slots=True)
class _Receipt:
    """What is charged before it is handed over; `charging` ends with what Redis has not heard of it."""

    keys: list[str]
    slot: int
    charging: asyncio.Task[Untold | None]


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
        self._receipts: dict[str, _Receipt] = {}  # of answers that are charged, and on their way
        self._owed: dict[str, float] = {}  # US dollars that Redis has not heard of, by tenant
        self._untold = UntoldBook()
        self._teller: asyncio.Task[None] | None = None
        self._redis_ahead: float | None = None  # seconds of its clock before one that nobody sets

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
        ahead = self._redis_ahead
        wall = time.time() if ahead is None else self._clock() + ahead
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
        self._redis_ahead = now - self._clock()
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

    async def charge(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        """Tell Redis what the request has used as far as is known, while its client waits for the end of the answer;
        nothing where gateways do not know each other. `settle` is still to follow."""
        held = self._held.get(request_id)
        if held is None or not self.gateway or self.away:
            return
        del self._held[request_id]
        keys, slot = held
        one = Untold(tenant, keys, slot, tokens, usd, keeps_receipt=True)
        task = self._start(self._settled(self._name(request_id), one, is_held=True))
        self._receipts[request_id] = _Receipt(keys, slot, task)
        await asyncio.shield(task)  # it has a time-out

    def settle(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        """Tell Redis in the background what the request used, where it was reserved even if the limits are others by
        now. One that Redis did not know is added; of one that is charged the receipt is thrown away."""
        receipt = self._receipts.pop(request_id, None)
        if receipt is not None:
            one = Untold(tenant, receipt.keys, receipt.slot, tokens, usd)
            self._start(self._handed_over(self._name(request_id), one, receipt.charging))
            return
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

    async def _settled(self, name: str, one: Untold, *, is_held: bool) -> Untold | None:
        """Tell Redis now. Return what is to be told later, if it did not do it."""
        if not one.keeps_receipt:
            one = replace(one, owed=self._owed.pop(one.tenant, 0.0))
        began = self._clock()
        try:
            await self._say(name, one, adds=True)
        except Exception as error:
            self._failed(error)
            if not is_held:
                self._owe(one.tenant, one.usd + one.owed)
                return None
            left = replace(one, sent_at=began) if is_late(error) else one
            self._tell_later(name, left)
            return left
        self._works()
        return None

    async def _handed_over(self, name: str, one: Untold, charging: asyncio.Task[Untold | None]) -> None:
        """Settle what was charged before, which is told first."""
        left = await charging
        if left is not None or self.away:
            self._tell_later(name, one if left is None else replace(one, sent_at=left.sent_at))
        else:
            await self._settled(name, one, is_held=True)

    async def _say(self, name: str, one: Untold, *, adds: bool) -> None:
        args = [
            name,
            one.tokens,
            f"{one.usd:.12g}",
            f"{one.owed:.12g}",
            int(adds),
            LEASE_SECONDS if one.keeps_receipt else 0,
            one.slot,
        ]
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
