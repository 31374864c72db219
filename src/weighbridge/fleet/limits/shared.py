"""Limits that several gateways share: what a tenant used anywhere is counted in one Redis (extra `redis`).

The same windows as in `tenant.py`, on Redis's clock. One script reserves in all of a tenant's limits or in none, one
settles; Redis runs each of them alone, so gateways overshoot no more than requests of one gateway do. A reservation
ends by itself when its gateway never settles it.

Redis away: requests are held to the limits of their own gateway alone, which counted them all along, and are not
held up: after a failure Redis is left alone for `RETRY_SECONDS`. What they cost is added when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import SharedLimitsSpec
from weighbridge.fleet.limits.lua import RESERVE, SETTLE
from weighbridge.fleet.limits.tenant import (
    DAY,
    MINUTE,
    NO_LIMITS,
    SLOTS,
    Limiter,
    TenantLimits,
    Window,
    over_limit,
)

log = logging.getLogger("weighbridge.fleet")

#: Seconds that a Redis which failed is left alone.
RETRY_SECONDS = 1.0
#: Seconds after which a reservation that nobody settled counts as over: the longest answer and the longest queue.
LEASE_SECONDS = 3600
#: What the reserving script names, in its order, and the seconds of their windows.
_WINDOWS = (("tokens_per_minute", MINUTE), ("requests_per_minute", MINUTE), ("usd_per_day", DAY))


class Script(Protocol):
    """A Lua script: its reply to `keys` and `args`. Raises whatever its Redis client raises."""

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Awaitable[Any]: ...


class SharedLimits:
    """`reserve` before a request goes, `settle` when it is over, on top of the gateway's own `Limiter`.

    `fallbacks` counts requests that went by local limits alone, `away` says whether the next one would.
    """

    def __init__(
        self, spec: SharedLimitsSpec, local: Limiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises BadInput where the extra is missing or the URL is none. Connects with the first request."""
        self.fallbacks = 0
        self._spec = spec
        self._local = local
        self._clock = clock
        self._redis = _client(spec)
        self._reserve: Script = self._redis.register_script(RESERVE)
        self._settle: Script = self._redis.register_script(SETTLE)
        self._failing = False
        self._retry_at = float("-inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owed: dict[str, float] = {}  # US dollars that Redis has not heard of, by tenant

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
        args = [request_id, tokens, f"{usd:.12g}", LEASE_SECONDS, *_limit_args(limits)]
        task = self._start(self._reserve(keys=self._keys(tenant), args=args))
        try:
            reply = await asyncio.wait_for(asyncio.shield(task), self._spec.timeout)
        except asyncio.CancelledError:  # it may have been reserved, or will be
            self._undo_after(task, tenant, request_id)
            raise
        except Exception as error:
            self._undo_after(task, tenant, request_id)
            self._failed(error)
            self.fallbacks += 1
            return
        self._works()
        if reply:
            raise self._refusal(tenant, limits, reply, tokens, usd)

    def settle(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        """The request used this much; told to Redis in the background. One that Redis did not know is added."""
        if self._local.limits(tenant) == NO_LIMITS:
            return
        if self.away:
            self._owe(tenant, usd)
        else:
            self._start(self._settled(tenant, request_id, tokens, usd))

    async def close(self) -> None:
        """Let what is being told arrive, and disconnect."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * self._spec.timeout)
        for task in self._tasks:
            task.cancel()
        await self._redis.aclose()

    # -- inside ----------------------------------------------------------------------------------------

    def _keys(self, tenant: str) -> list[str]:
        """All of a tenant's keys, in one slot of a cluster."""
        start = f"{self._spec.prefix}:{{{tenant}}}:"
        return [start + name for name in ("tokens", "requests", "usd", "reserved")]

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

    async def _settled(self, tenant: str, request_id: str, tokens: int, usd: float) -> None:
        owed = self._owed.pop(tenant, 0.0)
        args = [request_id, tokens, f"{usd:.12g}", f"{owed:.12g}", 1]
        try:
            async with asyncio.timeout(self._spec.timeout):
                await self._settle(keys=self._keys(tenant), args=args)
        except Exception as error:
            self._failed(error)
            self._owe(tenant, usd + owed)
        else:
            self._works()

    def _owe(self, tenant: str, usd: float) -> None:
        if usd:
            self._owed[tenant] = self._owed.get(tenant, 0.0) + usd

    def _undo_after(self, task: asyncio.Task[Any], tenant: str, request_id: str) -> None:
        """Whatever became of a reservation nobody waits for any more, it is given back."""

        async def undo() -> None:
            await asyncio.wait({task})  # its connection has a time-out
            if not task.cancelled() and task.exception() is None:
                args = [request_id, 0, 0, 0, 0]
                await self._settle(keys=self._keys(tenant), args=args)

        self._start(undo())

    def _refusal(
        self, tenant: str, limits: TenantLimits, reply: list[Any], tokens: int, usd: float
    ) -> Exception:
        """From what the script found full: its place in `_WINDOWS`, Redis's time and the window's slots."""
        place, now, used, *slots = (float(one) for one in reply)
        if int(place) == len(_WINDOWS):
            limit = limits.concurrent_tokens or 0
            wait = self._local.release_in(tenant, used + tokens - limit, self._clock())
            return over_limit(tenant, "concurrent_tokens", limit, used, tokens, wait)
        name, seconds = _WINDOWS[int(place)]
        amount = (tokens, 1, usd)[int(place)]
        window = Window(seconds)
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


def _limit_args(limits: TenantLimits) -> list[Any]:
    """-1 where there is no limit."""
    given = (
        limits.tokens_per_minute,
        limits.requests_per_minute,
        limits.usd_per_day,
        limits.concurrent_tokens,
    )
    return [-1 if one is None else one for one in given]


def _client(spec: SharedLimitsSpec) -> Any:
    try:
        from redis.asyncio import Redis
    except ImportError as error:
        message = "shared_limits: needs the extra `redis`; pip install 'weighbridge[redis]'"
        raise BadInput(message) from error
    try:
        return Redis.from_url(
            str(spec.redis),
            socket_timeout=spec.timeout,
            socket_connect_timeout=spec.timeout,
        )
    except ValueError as error:
        raise BadInput("shared_limits.redis: is no URL of a Redis; write redis://HOST:PORT/0") from error
