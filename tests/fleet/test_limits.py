"""Limits: reserve and settle, exact under concurrency, sliding windows, room computed."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput, RateLimited
from weighbridge.fleet.limits.periods import calendar, day_at
from weighbridge.fleet.limits.tenant import DAY, Limiter, TenantLimits


def test_500_at_once_overshoot_by_no_more_than_one_estimate() -> None:
    """LiteLLM #5783: tokens per minute overshot under concurrency."""
    limiter = Limiter(default=TenantLimits(tokens_per_minute=10_000))
    admitted, refused = [], []
    for number in range(500):
        try:
            limiter.reserve("t", f"q{number}", 150, 0.0, 0.0)
            admitted.append(number)
        except RateLimited as error:
            refused.append(error)
    for number in admitted:
        limiter.settle(f"q{number}", 150, 0.0, 1.0)
    assert len(admitted) * 150 <= 10_000 < (len(admitted) + 1) * 150
    assert len(refused) == 500 - len(admitted)
    assert {error.limit for error in refused} == {"tokens_per_minute"}
    assert all(60.0 <= (error.retry_after or 0.0) <= 61.0 for error in refused)
    limiter.check_integrity()


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 400), st.integers(0, 400)), max_size=80))
def test_no_minute_holds_more_than_the_limit(calls: list[tuple[float, int, int]]) -> None:
    limiter, now, used, waits = Limiter(default=TenantLimits(tokens_per_minute=1000)), 0.0, [], []
    for number, (gap, reserve, actual) in enumerate(calls):
        now += gap
        try:
            limiter.reserve("t", f"q{number}", reserve, 0.0, now)
        except RateLimited as error:
            waits.append(error.retry_after)
            continue
        actual = min(actual, reserve)
        limiter.settle(f"q{number}", actual, 0.0, now)
        used.append((now, actual))
        assert sum(tokens for at, tokens in used if at > now - 60.0) <= 1000
    assert all(wait is not None and wait <= 61.0 for wait in waits)
    limiter.check_integrity()


def test_after_retry_after_there_is_room() -> None:
    limiter = Limiter(default=TenantLimits(requests_per_minute=2))
    for number, now in enumerate((0.0, 10.5)):
        limiter.reserve("t", f"q{number}", 1, 0.0, now)
    with pytest.raises(RateLimited) as refused:
        limiter.reserve("t", "q2", 1, 0.0, 20.0)
    limiter.reserve("t", "q2", 1, 0.0, 20.0 + (refused.value.retry_after or 0.0) + 1e-6)


def test_concurrent_tokens_and_money_are_given_back() -> None:
    limiter = Limiter({"t": TenantLimits(concurrent_tokens=100, usd_per_day=1.0)})
    limiter.reserve("t", "a", 80, 0.9, 0.0)
    with pytest.raises(RateLimited, match="usd_per_day"):
        limiter.reserve("t", "b", 10, 0.2, 0.0)
    with pytest.raises(RateLimited, match="concurrent_tokens"):
        limiter.reserve("t", "b", 30, 0.05, 0.0)
    limiter.settle("a", 20, 0.1, 1.0)
    limiter.settle("a", 20, 0.1, 1.0)  # idempotent
    limiter.reserve("t", "b", 100, 0.8, 1.0)
    limiter.reserve("other", "c", 10**9, 99.0, 1.0)  # no limits by default
    limiter.check_integrity()


def test_a_request_larger_than_the_limit_is_bad_input() -> None:
    limiter = Limiter(default=TenantLimits(tokens_per_minute=100))
    with pytest.raises(BadInput, match="alone"):
        limiter.reserve("t", "a", 101, 0.0, 0.0)


def test_limits_must_be_positive() -> None:
    with pytest.raises(BadInput, match="requests_per_minute"):
        TenantLimits(requests_per_minute=0)


def test_concurrent_tokens_say_when_enough_will_be_given_back() -> None:
    limiter = Limiter(default=TenantLimits(concurrent_tokens=1000))
    limiter.reserve("t", "first", 500, 0.0, 0.0)
    limiter.settle("first", 400, 0.0, 10.0)  # 20 ms a token
    limiter.reserve("t", "long", 800, 0.0, 100.0)  # until about 116
    limiter.reserve("t", "short", 200, 0.0, 101.0)  # until about 105
    for tokens, wait in ((150, 3.0), (200, 3.0), (201, 14.0), (1000, 14.0)):
        with pytest.raises(RateLimited, match="concurrent_tokens") as refused:
            limiter.reserve("t", "next", tokens, 0.0, 102.0)
        assert refused.value.retry_after == pytest.approx(wait)
    with pytest.raises(RateLimited) as late:
        limiter.reserve("t", "next", 1000, 0.0, 500.0)  # both should have ended long ago
    assert late.value.retry_after == 1.0


def test_a_withdrawn_request_was_never_there() -> None:
    limiter = Limiter(default=TenantLimits(requests_per_minute=1, tokens_per_minute=10, usd_per_day=1.0))
    limiter.reserve("t", "a", 10, 1.0, 5.0)
    assert limiter.holds("a")
    limiter.withdraw("a")
    limiter.withdraw("a")
    assert not limiter.holds("a")
    limiter.reserve("t", "b", 10, 1.0, 5.0)
    limiter.check_integrity()


# -- money by the days of a zone ---------------------------------------------------------------------------


def at(text: str, zone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("noon", "zone"),
    [
        ("2026-03-29 12:00", "Europe/Berlin"),  # 23 hours
        ("2026-10-25 12:00", "Europe/Berlin"),  # 25
        ("2026-04-05 12:00", "Australia/Lord_Howe"),  # 24 and a half
        ("2026-02-15 12:00", "Africa/Casablanca"),
        ("2026-06-01 12:00", "Asia/Kathmandu"),  # a quarter of an hour beside the others
        ("2026-06-01 12:00", "UTC"),
    ],
)
def test_a_day_of_a_zone_ends_when_it_ends_there(noon: str, zone: str) -> None:
    start = 1000.0  # of a clock that is none on the wall
    wall = at(noon, zone)
    days = calendar(lambda: start, lambda: wall)
    limiter = Limiter(default=TenantLimits(usd_per_day=10.0, zone=zone), calendar=days)
    ends = start + day_at(wall, zone).ends - wall
    limiter.reserve("t", "one", 1, 9.0, start)
    with pytest.raises(RateLimited, match="usd_per_day 10, 9 are used") as refused:
        limiter.reserve("t", "two", 1, 2.0, start + 60.0)
    assert refused.value.retry_after == pytest.approx(ends - start - 60.0)
    with pytest.raises(RateLimited):
        limiter.reserve("t", "two", 1, 2.0, ends - 0.01)
    limiter.reserve("t", "two", 1, 2.0, ends)
    limiter.settle("one", 1, 9.0, ends + 1.0)  # it was of the day before
    limiter.reserve("t", "three", 1, 8.0, ends + 2.0)
    limiter.settle("three", 1, 1.0, ends + 3.0)
    limiter.reserve("t", "four", 1, 7.0, ends + 4.0)
    with pytest.raises(RateLimited):
        limiter.reserve("t", "five", 1, 0.01, ends + 5.0)
    limiter.check_integrity()


@given(
    st.lists(st.tuples(st.floats(0.0, 20 * 3600.0), st.floats(0.1, 4.0), st.floats(0.0, 4.0)), max_size=40)
)
def test_no_day_of_a_zone_holds_more_than_the_limit(calls: list[tuple[float, float, float]]) -> None:
    """Across the end of summer time. Each request is settled at once, and never for more than was reserved."""
    zone, now = "America/New_York", at("2026-10-30 08:00", "America/New_York")
    limiter = Limiter(
        default=TenantLimits(usd_per_day=5.0, zone=zone), calendar=calendar(lambda: 0.0, lambda: 0.0)
    )
    spent: dict[str, float] = {}
    for number, (gap, reserve, part) in enumerate(calls):
        now += gap
        day = day_at(now, zone).name
        try:
            limiter.reserve("t", f"q{number}", 1, reserve, now)
        except RateLimited:
            assert spent.get(day, 0.0) + reserve > 5.0 - 1e-9
            continue
        used = min(part, reserve)
        limiter.settle(f"q{number}", 1, used, now)
        spent[day] = spent.get(day, 0.0) + used
    assert all(total <= 5.0 + 1e-9 for total in spent.values())


def test_a_clock_that_is_set_back_gives_nobody_a_day_again() -> None:
    wall = at("2026-06-01 23:59", "UTC")
    limiter = Limiter(
        default=TenantLimits(usd_per_day=1.0, zone="UTC"), calendar=calendar(lambda: 0.0, lambda: wall)
    )
    limiter.reserve("t", "one", 1, 1.0, 0.0)
    limiter.reserve("t", "two", 1, 1.0, 120.0)
    wall -= 3600.0
    with pytest.raises(RateLimited):
        limiter.reserve("t", "three", 1, 1.0, 130.0)


@pytest.mark.parametrize("ahead", [2 * DAY, 30 * DAY, 365 * DAY])
def test_a_clock_that_was_ahead_keeps_a_day_shut_no_longer_than_that_in_which_it_was_put_right(
    ahead: float,
) -> None:
    wall = right = at("2026-06-01 22:00", "UTC")
    limiter = Limiter(
        default=TenantLimits(usd_per_day=1.0, zone="UTC"), calendar=calendar(lambda: 0.0, lambda: wall)
    )
    limiter.reserve("t", "one", 1, 1.0, 0.0)
    wall = right + ahead
    limiter.reserve("t", "two", 1, 1.0, 10.0)
    wall = right
    with pytest.raises(RateLimited) as refused:
        limiter.reserve("t", "three", 1, 1.0, 20.0)
    assert refused.value.retry_after == pytest.approx(2 * 3600.0 - 20.0)
    with pytest.raises(RateLimited):
        limiter.reserve("t", "three", 1, 1.0, 2 * 3600.0 - 1.0)
    limiter.reserve("t", "three", 1, 1.0, 2 * 3600.0 + 1.0)
