"""Which day and month it is where the bills are paid, and when they end: 23, 24 or 25 hours later, as clocks change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from weighbridge.errors import BadInput
from weighbridge.fleet.limits.tenant import Calendar
from weighbridge.state.believed_time import believed_time

HOUR = 3600.0
#: What is dated at all, in seconds since the epoch: from its second day to some weeks before the end of the year 9999.
FIRST_SECOND, LAST_SECOND = 86_400.0, 253_399_000_000.0


@lru_cache(maxsize=8)
def zone_of(name: str) -> ZoneInfo:
    """The time zone of that name in IANA's database. Raises BadInput where there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadInput(
            f"{name!r} is no time zone that this machine knows; write one as IANA names it, such as Europe/Berlin, "
            "or install the package tzdata"
        ) from error


@dataclass(frozen=True, slots=True)
class Day:
    """One day of a zone as `YYYY-MM-DD`; when it begins, and when it and its month end, in seconds since the epoch."""

    name: str
    begins: float
    ends: float
    month_ends: float


def day_at(seconds: float, zone: str) -> Day:
    """The day that it is at a moment."""
    where = zone_of(zone)
    local = datetime.fromtimestamp(min(max(seconds, FIRST_SECOND), LAST_SECOND), where)
    first = local.replace(day=1) + timedelta(days=32)
    return Day(
        local.strftime("%Y-%m-%d"),
        _midnight(local, where),
        _midnight(local + timedelta(days=1), where),
        _midnight(first.replace(day=1), where),
    )


def _midnight(local: datetime, where: ZoneInfo) -> float:
    """When a day begins. Where the clock skips midnight, that is the moment at which it does."""
    begins = datetime(local.year, local.month, local.day, tzinfo=where)
    return begins.timestamp()


def moment(seconds: float, zone: str) -> str:
    """A moment for people: to the minute, with its distance from UTC."""
    return datetime.fromtimestamp(seconds, zone_of(zone) if zone != "UTC" else UTC).isoformat(
        timespec="minutes"
    )


def calendar(clock: Callable[[], float], wall: Callable[[], float] = believed_time) -> Calendar:
    """Which day it is, for who counts time on `clock`; `wall`: seconds since the epoch."""

    def day_of(zone: str, now: float) -> tuple[str, float]:
        offset = wall() - clock()
        day = day_at(now + offset, zone)
        return day.name, day.ends - offset

    return day_of
