"""Budgets by day, month and rolling window, in a time zone whose clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, fleet, serving
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.periods import HOUR, day_at
from weighbridge.routes.budget import Budgets, Denial, Ledger, Reservation
from weighbridge.routes.config import parse_configuration
from weighbridge.routes.ledger import books
from weighbridge.routes.ledger.allowance import Allowance, Per

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    """A moment as a clock on the wall there shows it."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("noon", "zone", "hours"),
    [
        ("2026-03-28 12:00", BERLIN, 24),
        ("2026-03-29 12:00", BERLIN, 23),
        ("2026-10-25 12:00", BERLIN, 25),
        ("2026-11-01 12:00", "America/New_York", 25),
        ("2026-03-08 12:00", "America/Havana", 23),  # the hour that is left out begins at midnight
        ("2026-11-01 12:00", "America/Havana", 25),
        ("2026-10-04 12:00", "Australia/Lord_Howe", 23.5),
        ("2026-04-05 12:00", "Australia/Lord_Howe", 24.5),
        ("2026-10-04 12:00", "Australia/Adelaide", 23),
        ("2026-04-05 12:00", "Australia/Adelaide", 25),
        ("2026-09-27 12:00", "Pacific/Chatham", 23),
        ("2026-04-05 12:00", "Pacific/Chatham", 25),
        ("2026-09-06 12:00", "America/Santiago", 23),  # it begins at 1 o'clock
        ("2026-04-04 12:00", "America/Santiago", 25),  # its last hour comes twice
        ("2026-03-28 12:00", "America/Nuuk", 23),
        ("2026-10-24 12:00", "America/Nuuk", 25),
        ("2026-03-29 12:00", "UTC", 24),
    ],
)
def test_a_day_is_as_long_as_it_is(noon: str, zone: str, hours: float) -> None:
    day = day_at(at(noon, zone), zone)
    assert day.name == noon[:10]
    assert day.ends - day.begins == hours * HOUR
    assert day_at(day.begins, zone) == day
    assert day_at(day.ends - 0.001, zone) == day
    assert day_at(day.begins - 0.001, zone).name < day.name < day_at(day.ends, zone).name


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from(
        [BERLIN, "UTC", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca"]
    ),
)
def test_every_moment_is_in_its_day_and_month(moment: datetime, zone: str) -> None:
    seconds = moment.replace(tzinfo=UTC).timestamp()
    day = day_at(seconds, zone)
    assert day.begins <= seconds < day.ends <= day.month_ends
    assert day.name == datetime.fromtimestamp(seconds, ZoneInfo(zone)).strftime("%Y-%m-%d")
    last, following = day_at(day.month_ends - 0.5, zone).name, day_at(day.month_ends, zone).name
    assert last[:7] == day.name[:7] < following[:7]
    assert following.endswith("-01") or zone == "Pacific/Apia"


def ledger(budgets: Budgets, now: float) -> tuple[Ledger, Clock]:
    clock = Clock(now)
    return Ledger(None, budgets, clock), clock


def spend(ledger: Ledger, usd: float, tenant: str = "ann") -> Denial | None:
    """None where it was spent."""
    foreseen = ledger.refusal(tenant, "auto", usd)
    made = ledger.reserve(tenant, "auto", usd)
    assert foreseen == ("" if isinstance(made, Reservation) else made)
    if isinstance(made, Reservation):
        ledger.settle(made, usd)
        return None
    assert isinstance(made, Denial)
    return made


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2026-03-29", BERLIN, 23),
        ("2026-10-25", BERLIN, 25),
        ("2026-10-26", BERLIN, 24),
        ("2026-10-04", "Australia/Lord_Howe", 23.5),
        ("2026-04-05", "Australia/Lord_Howe", 24.5),
        ("2026-10-04", "Australia/Adelaide", 23),
        ("2026-04-05", "Pacific/Chatham", 25),
        ("2026-09-06", "America/Santiago", 23),
        ("2026-04-04", "America/Santiago", 25),
        ("2026-07-01", "Asia/Kathmandu", 24),
    ],
)
def test_a_budget_by_day_lasts_as_long_as_the_day(day: str, zone: str, hours: float) -> None:
    begins = at(f"{day} 00:00", zone)
    book, clock = ledger(Budgets(total=1.0, zone=zone), begins)
    assert spend(book, 0.75) is None
    for half in range(int(hours * 2)):
        clock.now = begins + half * HOUR / 2 + 1
        denial = spend(book, 0.5)
        assert denial is not None
        assert denial.retry_after == (hours - half / 2) * HOUR - 1
        assert denial.startswith(
            "the daily budget is exhausted: 0.750000 of 1 USD of today are taken; it resets at "
        )
        assert zone in denial
    clock.now = begins + hours * HOUR
    assert spend(book, 1.0) is None


def test_the_hour_that_comes_twice_is_one_day_in_the_zone_and_another_in_utc() -> None:
    first, second = at("2026-10-25 02:30"), at("2026-10-25 02:30", fold=1)
    assert second - first == HOUR
    book, clock = ledger(Budgets(total=1.0, zone=BERLIN), first)
    assert spend(book, 1.0) is None
    clock.now = second
    assert spend(book, 0.1) is not None
    in_utc, clock = ledger(Budgets(total=1.0), at("2026-10-26 00:30"))
    assert spend(in_utc, 1.0) is None  # in UTC it is still the 25th
    clock.now += HOUR
    assert spend(in_utc, 1.0) is None


@pytest.mark.parametrize(
    ("month", "zone", "days", "change_h"),
    [
        ("2026-03", BERLIN, 31, -1),
        ("2026-10", BERLIN, 31, 1),
        ("2026-02", BERLIN, 28, 0),
        ("2028-02", BERLIN, 29, 0),
        ("2026-10", "Australia/Lord_Howe", 31, -0.5),
        ("2026-04", "Australia/Lord_Howe", 30, 0.5),
        ("2026-04", "Australia/Adelaide", 30, 1),
        ("2026-09", "Pacific/Chatham", 30, -1),
        ("2026-09", "America/Santiago", 30, -1),
    ],
)
def test_a_budget_by_month_lasts_until_the_first_of_the_next(
    month: str, zone: str, days: int, change_h: float
) -> None:
    begins = at(f"{month}-01 00:00", zone)
    seconds = (days * 24 + change_h) * HOUR
    book, clock = ledger(Budgets(tenants={"ann": [Allowance(1.0, Per.MONTH)]}, zone=zone), begins)
    assert spend(book, 0.25) is None
    clock.now = begins + 10 * 24 * HOUR
    assert spend(book, 0.5) is None
    clock.now = begins + seconds - 60
    denial = spend(book, 0.5)
    assert denial is not None
    assert denial.retry_after == 60
    assert denial.startswith(
        "tenant ann's monthly budget is exhausted: 0.750000 of 1 USD of this month are taken"
    )
    assert spend(book, 0.5, "ben") is None, "a month of somebody else's"
    clock.now = begins + seconds
    assert spend(book, 1.0) is None


def test_a_window_that_rolls_knows_no_days() -> None:
    begins = at("2026-10-24 23:40")
    book, clock = ledger(Budgets(routes={"auto": [Allowance(1.0, Per.WINDOW, 24)]}, zone=BERLIN), begins)
    assert spend(book, 0.5) is None
    clock.now = begins + 3 * HOUR
    assert spend(book, 0.5) is None
    denial = spend(book, 0.25)
    assert denial is not None
    assert denial.startswith(
        "route auto's 24-hour budget is exhausted: 1.000000 of 1 USD of 24 hours are taken"
    )
    assert denial.retry_after is not None
    clock.now += denial.retry_after - 1
    assert spend(book, 0.25) is not None
    clock.now += 1
    assert spend(book, 0.5) is None, "what was spent first is over"
    assert spend(book, 0.25) is not None
    large = spend(book, 1.5)
    assert large is not None
    assert large.retry_after is None
    assert "this request alone" in large


@given(
    st.lists(st.tuples(st.floats(0, 20 * HOUR), st.integers(1, 90), st.booleans()), max_size=50),
    st.integers(1, 48),
)
def test_no_window_costs_more_than_its_budget(steps: list[tuple[float, int, bool]], hours: int) -> None:
    book, clock = ledger(Budgets(total=[Allowance(1.0, Per.WINDOW, hours)]), at("2026-03-28 12:00"))
    spent: list[tuple[float, int]] = []
    for gap, cents, settles in steps:
        clock.now += gap
        made = book.reserve("ann", "auto", cents / 100)
        if isinstance(made, Reservation):
            spent.append((clock.now, cents))
            if settles:
                book.settle(made, cents / 100)
        else:
            assert isinstance(made, Denial)
            assert made.retry_after is not None
            assert 0 < made.retry_after <= (hours + 2) * HOUR
    for when, _ in spent:
        assert sum(cents for at, cents in spent if when <= at < when + hours * HOUR) <= 100


@given(
    st.lists(st.tuples(st.floats(0, 40 * HOUR), st.integers(1, 40)), max_size=40),
    st.sampled_from(
        [
            BERLIN,
            "America/Havana",
            "Asia/Kathmandu",
            "Australia/Lord_Howe",
            "Pacific/Chatham",
            "America/Santiago",
        ]
    ),
)
def test_no_day_and_no_month_costs_more_than_its_budget(steps: list[tuple[float, int]], zone: str) -> None:
    budgets = Budgets(total=[Allowance(0.5), Allowance(2.0, Per.MONTH)], zone=zone)
    book, clock = ledger(budgets, at("2026-10-20 12:00", zone))
    days: dict[str, int] = {}
    for gap, cents in steps:
        clock.now += gap
        if spend(book, cents / 100) is None:
            name = datetime.fromtimestamp(clock.now, ZoneInfo(zone)).strftime("%Y-%m-%d")
            days[name] = days.get(name, 0) + cents
    assert all(cents <= 50 for cents in days.values())
    for month in {name[:7] for name in days}:
        assert sum(cents for name, cents in days.items() if name[:7] == month) <= 200


def test_what_was_reserved_and_settled_for_less_is_free_again_in_each_window() -> None:
    budgets = Budgets(
        total=[Allowance(1.0), Allowance(1.0, Per.MONTH), Allowance(1.0, Per.WINDOW, 2)], zone=BERLIN
    )
    book, _ = ledger(budgets, at("2026-10-25 02:30"))
    made = book.reserve("ann", "auto", 1.0)
    assert isinstance(made, Reservation)
    assert isinstance(book.reserve("ann", "auto", 0.1), Denial)
    book.settle(made, 0.25)
    assert spend(book, 0.75) is None
    assert spend(book, 0.01) is not None


def test_old_hours_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "KEPT_HOURS", 48)
    book, clock = ledger(Budgets(total=[Allowance(9.0, Per.WINDOW, 24)]), at("2026-03-28 12:00"))
    for _ in range(200):
        assert spend(book, 0.001) is None
        clock.now += HOUR
    (rows,) = book._db.execute("SELECT COUNT(*) FROM hours").fetchone()
    assert rows <= 4 * 50


# -- settings and doors --------------------------------------------------------------------------------------

CONFIG = """
models:
  small: {{replicas: [{{name: near, url: 'http://127.0.0.1:9', probe: false}}]}}
routes:
  auto:
    edge: {{model: small}}
    cloud: {{url: '{url}/v1', model: big, price: {{input_usd_per_million: 1000, output_usd_per_million: 1000}}}}
budgets: {{{budgets}}}
"""


def read(budgets: str) -> Budgets:
    text = CONFIG.format(url="http://127.0.0.1:9", budgets=budgets)
    return parse_configuration(text, "weighbridge.yaml", Path(".")).routes.budgets


def test_budgets_are_read() -> None:
    assert read("usd_per_day: 20, tenants: {'*': 2}").concerned("x", "auto")[0].allowance == Allowance(20.0)
    found = read(
        "zone: Europe/Berlin, usd_per_month: 300, usd_per_window: 50, window_hours: 168, "
        "tenants: {'*': 2, ann: {usd_per_month: 40, usd_per_day: 3}}, routes: {auto: 15}"
    )
    assert found.zone == BERLIN
    named = [(one.name, one.allowance.usd) for one in found.concerned("ann", "auto")]
    assert named == [
        ("the monthly budget", 300),
        ("the 168-hour budget", 50),
        ("tenant ann's budget", 3),
        ("tenant ann's monthly budget", 40),
        ("route auto's budget", 15),
    ]
    assert [one.name for one in found.concerned("ben", "x")][2:] == ["tenant ben's budget"]


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ("zone: Europe/Atlantis", "Europe/Atlantis.*is no time zone.*Europe/Berlin"),
        ("zone: ../../etc/passwd", "is no time zone"),
        ("usd_per_window: 5", "belong together"),
        ("window_hours: 5", "belong together"),
        ("usd_per_window: 5, window_hours: 745", "at most 744"),
        ("tenants: {ann: {usd_per_week: 5}}", "usd_per_week"),
        ("usd_per_month: -1", "usd_per_month"),
    ],
)
def test_what_is_wrong_with_a_budget_is_said(budgets: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(budgets)


@pytest.mark.parametrize(
    ("budgets", "least", "most"),
    [
        ("zone: Europe/Berlin, usd_per_day: 5", 1, 25 * 3600),
        ("zone: Europe/Berlin, usd_per_month: 5", 1, 32 * 24 * 3600),
        ("usd_per_window: 5, window_hours: 24", 24 * 3600, 25 * 3600),
    ],
)
async def test_a_refusal_says_when_the_budget_resets(budgets: str, least: int, most: int) -> None:
    backend = Backend("far", "openai", usage={"prompt_tokens": 1, "completion_tokens": 4999})
    async with serving(backend) as url, fleet(config=CONFIG.format(url=url, budgets=budgets)) as front:
        wanted = {"model": "auto", "weighbridge": {"placement": "only_cloud"}, "max_tokens": 4500}
        async with front.post(**wanted) as answer:
            assert answer.status == 200, await answer.text()
        await front.idle()
        async with front.post(**wanted) as answer:
            body = await answer.json()
        assert (answer.status, body["error"]["code"]) == (429, "cloud_denied")
        assert "it resets at" in body["error"]["message"]
        assert least <= int(answer.headers["retry-after"]) <= most


@pytest.mark.parametrize("ahead", [30 * HOUR, 60 * 24 * HOUR, 365 * 24 * HOUR])
def test_a_clock_that_was_ahead_gives_no_window_twice_and_locks_none(ahead: float) -> None:
    book, clock = ledger(Budgets(total=[Allowance(1.0, Per.WINDOW, 24)]), at("2026-03-28 12:00"))
    right = clock.now
    assert spend(book, 0.5) is None
    clock.now = right + ahead
    assert spend(book, 0.5) is None
    clock.now = right + HOUR
    refused = book.reserve("ann", "auto", 0.25)
    assert isinstance(refused, Denial), (
        "what was spent before the clock was set, and while it was ahead, counts"
    )
    assert refused.retry_after is not None
    assert refused.retry_after <= 26 * HOUR
    clock.now = right + 25 * HOUR
    assert isinstance(book.reserve("ann", "auto", 0.6), Denial), (
        "what was spent ahead is a day old by now, not more"
    )
    assert spend(book, 0.5) is None
    clock.now = right + 27 * HOUR
    assert spend(book, 0.5) is None


@pytest.mark.parametrize("back", [30 * HOUR, 365 * 24 * HOUR, 50 * 365 * 24 * HOUR])
def test_a_clock_that_is_set_back_gives_no_window_twice_and_locks_none(back: float) -> None:
    book, clock = ledger(Budgets(total=[Allowance(1.0, Per.WINDOW, 24)]), at("2026-03-28 12:00"))
    right = clock.now
    assert spend(book, 1.0) is None
    clock.now = right - back
    assert isinstance(book.reserve("ann", "auto", 0.25), Denial)
    clock.now = right + 2 * HOUR
    assert isinstance(book.reserve("ann", "auto", 0.25), Denial)
    clock.now = right - back + HOUR
    assert isinstance(book.reserve("ann", "auto", 0.25), Denial)
    clock.now = right - back + 26 * HOUR
    assert spend(book, 1.0) is None, "by this clock a day has passed"
