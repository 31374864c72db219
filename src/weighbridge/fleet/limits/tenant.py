"""What a tenant may use: tokens and requests per minute, tokens at one time, money per day.

Reserve, then settle: before a request goes, the most it may use is set aside; when it is over, what it did use
replaces that. Both are synchronous, so that in one process no two requests see the same room: any number of
concurrent ones overshoot a limit by nothing at all when reservations are upper bounds, and by no more than
what single requests went beyond their estimates otherwise.

Rates are sliding windows, not buckets: what is counted is the last minute, in slots of a second, so there is no
moment at which two minutes' worth goes through. Money is counted in the last 24 hours in the same way, or by the days
of a time zone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from weighbridge.cost.mean import Mean
from weighbridge.errors import BadInput, RateLimited
from weighbridge.fleet.limits.days import DayTotal
from weighbridge.fleet.limits.rates import Rate

SLOTS = 60
MINUTE = 60.0
DAY = 86400.0
#: What `concurrent_tokens` asks to wait where nothing has been given back yet, and the least it ever asks.
BRIEFEST_WAIT = 1.0
#: How much of what is known of speeds the next settled request replaces.
LEARNING = 0.1
#: Tenants remembered that have nothing reserved; the one unused longest is forgotten first.
MAX_IDLE_TENANTS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """None: no limit. Raises BadInput for a limit that is not positive.

    `zone`: the time zone by whose days `usd_per_day` counts; None: it counts in the 24 hours that have just passed.
    """

    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    concurrent_tokens: int | None = None
    usd_per_day: float | None = None
    zone: str | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_minute", "requests_per_minute", "concurrent_tokens", "usd_per_day"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInput(
                    f"{name} is {value}, but must be more than 0; leave it out for none", param=name
                )


NO_LIMITS = TenantLimits()


#: The day that it is in a zone, as `YYYY-MM-DD`, and when it ends: on the clock of who asks.
Calendar = Callable[[str, float], tuple[str, float]]


def no_calendar(zone: str, now: float) -> tuple[str, float]:
    """Stands in where no limit goes by days."""
    raise BadInput(f"nothing here says which day it is in {zone}; leave out `zone`", param="zone")


def over_in(slot: float, seconds: float, now: float) -> float:
    """Seconds until a slot has left a window of so many `seconds`."""
    return max((slot + 1 + SLOTS) * seconds / SLOTS - now, 0.0)


@dataclass(slots=True)
class SlidingWindow:
    """Sum of amounts over the last `seconds`, in slots: an amount counts until its whole slot is that old."""

    seconds: float
    total: float = 0.0
    slots: deque[list[float]] = field(default_factory=deque)  # [slot number, amount], oldest first

    def _slot(self, now: float) -> int:
        return int(now // (self.seconds / SLOTS))

    def advance(self, now: float) -> None:
        oldest = self._slot(now) - SLOTS
        while self.slots and self.slots[0][0] < oldest:
            self.total -= self.slots.popleft()[1]
        if not self.slots:
            self.total = 0.0

    def add(self, amount: float, now: float) -> int:
        """Count `amount` now; returns its slot, for `adjust`."""
        slots, number = self.slots, self._slot(now)
        last = slots[-1] if slots else None
        if last is None or last[0] < number:
            self.advance(now)
            last = [number, 0.0]
            slots.append(last)
        last[1] += amount
        self.total += amount
        return int(last[0])

    def adjust(self, slot: int, change: float) -> None:
        """Change what was counted in `slot`, unless it has left the window."""
        for entry in reversed(self.slots):
            if entry[0] == slot:
                entry[1] += change
                self.total += change
                return

    def empty_in(self, now: float) -> float:
        """Seconds until nothing that is counted now counts any more."""
        for number, counted in reversed(self.slots):
            if counted > 0.0:
                return over_in(number, self.seconds, now)
        return 0.0

    def room_in(self, amount: float, limit: float, now: float) -> float:
        """Seconds until `amount` more fits under `limit`, if nothing else comes."""
        excess = self.total + amount - limit
        for number, counted in self.slots:
            excess -= counted
            if excess <= 0.0:
                return over_in(number, self.seconds, now)
        return self.seconds


@dataclass(slots=True)
class _Reservation:
    tenant: str
    tokens: int
    usd: float
    token_slot: int
    usd_slot: int
    day: str  # of the zone, where money counts by days
    began: float


@dataclass(slots=True)
class _Usage:
    tokens: SlidingWindow = field(default_factory=lambda: SlidingWindow(MINUTE))
    requests: SlidingWindow = field(default_factory=lambda: SlidingWindow(MINUTE))
    usd: SlidingWindow = field(default_factory=lambda: SlidingWindow(DAY))
    day: DayTotal = field(default_factory=DayTotal)
    concurrent: int = 0
    reserved: dict[str, _Reservation] = field(default_factory=dict)  # in the order of their coming


class Limiter:
    """Limits by tenant. Times are seconds on the caller's clock and never go back. All operations are O(slots)."""

    def __init__(
        self,
        limits: dict[str, TenantLimits] | None = None,
        default: TenantLimits = NO_LIMITS,
        calendar: Calendar = no_calendar,
    ) -> None:
        self._calendar = calendar
        self._limits = dict(limits or {})
        self._default = default
        self._usage: OrderedDict[str, _Usage] = OrderedDict()
        self._reserved: dict[str, _Reservation] = {}
        self._seconds_per_token = Mean(LEARNING)  # that a reservation is held

    def holds(self, request_id: str) -> bool:
        """Whether a request of this id has something reserved."""
        return request_id in self._reserved

    def limits(self, tenant: str) -> TenantLimits:
        return self._limits.get(tenant, self._default)

    def set_limits(self, tenant: str, limits: TenantLimits | None) -> None:
        """Set limits from now on; what is reserved stays. None: those of whoever is not named."""
        if limits is None:
            self._limits.pop(tenant, None)
        else:
            self._limits[tenant] = limits

    def used(self, tenant: str, now: float) -> dict[str, float]:
        """What counts against each limit now, by its name, also where there is none."""
        usage, limits = self._usage.get(tenant) or _Usage(), self.limits(tenant)
        for window in (usage.tokens, usage.requests, usage.usd):
            window.advance(now)
        if limits.zone is not None:
            usage.day.turn(*self._calendar(limits.zone, now))
        return {
            "requests_per_minute": usage.requests.total,
            "tokens_per_minute": usage.tokens.total,
            "concurrent_tokens": usage.concurrent,
            "usd_per_day": usage.usd.total if limits.zone is None else usage.day.total,
        }

    def reserve(self, tenant: str, request_id: str, tokens: int, usd: float, now: float) -> None:
        """Set aside `tokens` (prompt and output, at most or expected) and `usd` for a request about to go.

        All or nothing. Raises RateLimited naming the limit, with the time until it has room, and BadInput for
        a request that is larger than a whole limit or already has a reservation.
        """
        if request_id in self._reserved:
            raise BadInput(f"request {request_id!r} has a reservation already; ids must differ", param="id")
        usage = self._usage_of(tenant)
        self._check(tenant, usage, tokens, usd, now)
        usage.requests.add(1, now)
        usage.concurrent += tokens
        slots = usage.tokens.add(tokens, now), usage.usd.add(usd, now)
        usage.day.total += usd
        reservation = _Reservation(tenant, tokens, usd, *slots, usage.day.name, now)
        self._reserved[request_id] = usage.reserved[request_id] = reservation

    def settle(self, request_id: str, tokens: int, usd: float, now: float) -> None:
        """Settle a request that is over and used this much. Without a reservation (any more) nothing happens."""
        reservation = self._reserved.get(request_id)
        if reservation is None:
            return
        self._give_back(request_id, tokens, usd)
        if tokens:
            self._seconds_per_token.add((now - reservation.began) / max(reservation.tokens, 1))

    def cancel(self, request_id: str, now: float) -> None:
        """Settle a request that never ran, as if it had used nothing. It still counts as a request of this minute."""
        self.settle(request_id, 0, 0.0, now)

    def withdraw(self, request_id: str) -> None:
        """Forget a request that was refused elsewhere, as if it had never been asked here."""
        reservation = self._reserved.get(request_id)
        if reservation is not None:
            self._give_back(request_id, 0, 0.0)
            self._usage[reservation.tenant].requests.adjust(reservation.token_slot, -1)

    def rates(self, tenant: str, now: float) -> tuple[Rate, ...]:
        """What is left of a tenant's limits by the minute; nothing of those that it has not."""
        limits = self.limits(tenant)
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return ()
        usage = self._usage.get(tenant) or _Usage()
        windows = (
            ("requests", limits.requests_per_minute, usage.requests),
            ("tokens", limits.tokens_per_minute, usage.tokens),
        )
        found = []
        for kind, limit, window in windows:
            if limit is not None:
                window.advance(now)
                found.append(Rate(kind, limit, window.total, window.empty_in(now)))
        return tuple(found)

    def release_in(self, tenant: str, tokens: float, now: float) -> float:
        """Predicted seconds until `tokens` of what this tenant has in flight are given back.

        Each is taken to be held for as long as reservations were so far, in proportion to its tokens.
        """
        usage = self._usage.get(tenant)
        there = usage.reserved.values() if usage is not None else ()
        ends = sorted((one.began + one.tokens * self._seconds_per_token.value, one.tokens) for one in there)
        latest = now
        for end, given_back in ends:
            if tokens <= 0:
                break
            latest = end
            tokens -= given_back
        return max(latest - now, BRIEFEST_WAIT)

    # -- inside ----------------------------------------------------------------------------------------

    def _give_back(self, request_id: str, tokens: int, usd: float) -> None:
        """Replace a reservation by what was used."""
        reservation = self._reserved.pop(request_id)
        usage = self._usage[reservation.tenant]
        del usage.reserved[request_id]
        usage.tokens.adjust(reservation.token_slot, tokens - reservation.tokens)
        usage.usd.adjust(reservation.usd_slot, usd - reservation.usd)
        if reservation.day == usage.day.name:
            usage.day.total += usd - reservation.usd
        usage.concurrent -= reservation.tokens

    def _usage_of(self, tenant: str) -> _Usage:
        usage = self._usage.get(tenant)
        if usage is not None:
            self._usage.move_to_end(tenant)
            return usage
        usage = self._usage[tenant] = _Usage()
        if len(self._usage) - len(self._reserved) > MAX_IDLE_TENANTS:
            idle = next((t for t, u in self._usage.items() if not u.reserved and t != tenant), None)
            if idle is not None:
                del self._usage[idle]
        return usage

    def _check(self, tenant: str, usage: _Usage, tokens: int, usd: float, now: float) -> None:
        limits = self.limits(tenant)
        windows = (
            ("tokens_per_minute", limits.tokens_per_minute, usage.tokens, tokens),
            ("requests_per_minute", limits.requests_per_minute, usage.requests, 1),
            ("usd_per_day", None if limits.zone else limits.usd_per_day, usage.usd, usd),
        )
        for name, limit, window, amount in windows:
            if limit is None:
                continue
            window.advance(now)
            if window.total + amount > limit:
                wait = window.room_in(amount, limit, now)
                raise over_limit(tenant, name, limit, window.total, amount, wait)
        self._check_day(tenant, usage.day, usd, now)
        limit = limits.concurrent_tokens
        if limit is not None and usage.concurrent + tokens > limit:
            wait = self.release_in(tenant, usage.concurrent + tokens - limit, now)
            raise over_limit(tenant, "concurrent_tokens", limit, usage.concurrent, tokens, wait)

    def _check_day(self, tenant: str, day: DayTotal, usd: float, now: float) -> None:
        limits = self.limits(tenant)
        if limits.zone is None:
            return
        day.turn(*self._calendar(limits.zone, now))
        limit = limits.usd_per_day
        if limit is not None and day.total + usd > limit:
            raise over_limit(tenant, "usd_per_day", limit, day.total, usd, max(day.ends - now, BRIEFEST_WAIT))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every counter is the sum of what is reserved; zero for nothing."""
        concurrent = dict.fromkeys(self._usage, 0)
        for reservation in self._reserved.values():
            concurrent[reservation.tenant] += reservation.tokens
        if any(usage.concurrent != concurrent[tenant] for tenant, usage in self._usage.items()):
            raise AssertionError("a tenant's concurrent tokens do not match its reservations")


def over_limit(
    tenant: str, name: str, limit: float, used: float, amount: float, wait: float
) -> RateLimited | BadInput:
    asked = f"tenant {tenant!r} has {name} {limit:g}"
    if amount > limit:
        return BadInput(
            f"{asked}, but this request alone needs {amount:g}; lower max_tokens", param="max_tokens"
        )
    return RateLimited(
        f"{asked}, {used:g} are used and this request needs {amount:g}; try again in {wait:.0f} s",
        limit=name,
        retry_after=wait,
    )
