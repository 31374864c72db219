"""The ledger's promises: what a day is when clocks jump, how much it keeps, and what faults of the disk cost."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.state.small_disk import needs_own_disk, resize, run_on_disk
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.days import current_day
from weighbridge.routes import budget
from weighbridge.routes.budget import Budgets, Cashier, Ledger, Reservation
from weighbridge.routes.ledger import books

DAY = 86_400.0
NOON = datetime(2026, 5, 10, 12, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite", Budgets(total=1.0), clock)
    yield made
    made.close()


def spend(ledger: Ledger, usd: float) -> bool:
    reserved = ledger.reserve("ann", "auto", usd)
    assert isinstance(reserved, str) == bool(ledger.refusal("ann", "auto", usd)) or isinstance(
        reserved, Reservation
    )
    if isinstance(reserved, str):
        return False
    ledger.settle(reserved, usd)
    return True


# -- clocks that jump ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [1.0, 3600.0, DAY, 5 * DAY, 400 * DAY, 60 * 365 * DAY])
def test_a_clock_that_goes_back_opens_no_budget_again(ledger: Ledger, clock: Clock, back: float) -> None:
    assert spend(ledger, 1.0)
    clock.now -= back
    assert not spend(ledger, 0.1)
    assert "exhausted" in ledger.refusal("ann", "auto", 0.1)
    clock.now += back
    assert not spend(ledger, 0.1)
    clock.now += DAY
    assert spend(ledger, 1.0), "the next day is another"


@pytest.mark.parametrize("ahead", [DAY, 30 * DAY, 400 * 365 * DAY, 1e18, math.inf])
def test_a_clock_that_was_ahead_locks_nothing_beyond_the_day_it_was_put_right(
    ledger: Ledger, clock: Clock, ahead: float
) -> None:
    assert spend(ledger, 0.5)
    clock.now += ahead
    assert spend(ledger, 1.0)
    clock.now = NOON + 60
    assert not spend(ledger, 0.5), "the day that was opened goes on"
    clock.now = NOON + 11 * 3600
    assert not spend(ledger, 0.5)
    clock.now = NOON + (
        2 * DAY if ahead == DAY else DAY
    )  # tomorrow's money is spent, where it was tomorrow's
    assert spend(ledger, 1.0)
    assert not spend(ledger, 0.1)


def test_a_clock_from_before_its_epoch_fails_nothing(ledger: Ledger, clock: Clock) -> None:
    clock.now = -1e9
    assert spend(ledger, 1.0)
    assert not spend(ledger, 0.1)


@pytest.mark.parametrize("restarts", [False, True])
def test_days_outlive_the_process(tmp_path: Path, clock: Clock, restarts: bool) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, Budgets(total=1.0), clock)
    assert spend(ledger, 1.0)
    clock.now -= DAY
    if restarts:
        ledger.close()
        ledger = Ledger(path, Budgets(total=1.0), clock)
    assert not spend(ledger, 0.1)
    ledger.close()


days = st.dates(min_value=datetime(2026, 1, 1).date(), max_value=datetime(2026, 3, 1).date()).map(str)


@given(st.lists(days, min_size=1, max_size=40))
def test_a_day_is_never_opened_again_and_never_lasts(today: list[str]) -> None:
    """Whatever the clock says: what was opened later than a day keeps it shut until the clock has passed a midnight."""
    latest, corrected = "", None
    for now in today:
        day, corrected = current_day(now, latest, corrected)
        assert day == now or (day == latest and now < latest), "it is today, or the latest day goes on"
        latest = day
    last = max(today)
    for offset in range(1, 3):  # the clock goes on as clocks do
        now = (
            f"{last[:4]}-{last[5:7]}-{min(int(last[8:]) + offset, 31):02}"
            if last[8:] < "30"
            else "2026-04-01"
        )
        day, corrected = current_day(now, latest, corrected)
        latest = day
    assert latest >= last
    assert latest == now


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(0.01, 0.6)), max_size=40))
def test_no_day_costs_more_than_its_budget_wherever_the_clock_jumps(jumps: list[tuple[int, float]]) -> None:
    clock = Clock()
    ledger = Ledger(None, Budgets(total=1.0, tenants={"*": 0.75}), clock)
    spent: dict[str, float] = {}
    for by, usd in jumps:
        clock.now += by * DAY
        reserved = ledger.reserve("ann", "auto", usd)
        if isinstance(reserved, Reservation):
            (day,) = ledger._db.execute("SELECT day FROM calendar").fetchone()
            spent[day] = spent.get(day, 0.0) + usd
            ledger.settle(reserved, usd)
    assert all(usd <= 0.75 + 1e-6 for usd in spent.values())
    ledger.close()


# -- how much it keeps ---------------------------------------------------------------------------------------


def steps_of(ledger: Ledger, tenant: str) -> int:
    """Instructions of SQLite's machine that a reservation takes: a measure that no busy machine changes."""
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return 0

    ledger._db.set_progress_handler(counted, 1)
    assert isinstance(ledger.reserve(tenant, "auto", 0.001), Reservation)
    ledger._db.set_progress_handler(None, 0)
    return count


def test_a_reservation_takes_the_same_work_however_many_tenants_there_are(clock: Clock) -> None:
    ledger = Ledger(None, Budgets(total=1e5, tenants={"*": 5.0}, routes={"auto": 1e5}), clock)
    ledger.reserve("first", "auto", 0.001)
    few = steps_of(ledger, "t0")
    with ledger._transaction():
        for n in range(5000):
            books.add(ledger._db, "2026-05-10", f"t{n}", "auto", settled=1, reserved=0)
    assert steps_of(ledger, "t77") < 1.2 * few
    assert steps_of(ledger, "new") < 1.2 * few
    ledger.close()


def test_what_is_settled_leaves_totals_and_no_row_of_its_own(ledger: Ledger) -> None:
    for n in range(200):
        reserved = ledger.reserve(f"t{n % 4}", "auto", 0.001)
        assert isinstance(reserved, Reservation)
        ledger.settle(reserved, 0.0005)
        ledger.settle(reserved, 0.9)  # again: the first amount stays
    assert ledger._db.execute("SELECT COUNT(*) FROM reservations").fetchone() == (0,)
    assert ledger._db.execute("SELECT COUNT(*) FROM totals").fetchone() == (4 + 4 + 1 + 1,)
    assert (ledger.spent().settled, ledger.spent().reserved) == (0.1, 0.0)
    assert ledger.spent("t1").settled == ledger.spent("t1", "auto").settled == 0.025
    assert ledger.spent(route="auto").settled == 0.1
    assert ledger.spent("nobody").settled == 0.0


def test_old_days_go_and_the_ledger_says_so(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(books, "KEPT_DAYS", 3)
    monkeypatch.setattr(books, "ROWS_AT_ONCE", 5)
    caplog.set_level("INFO", "weighbridge.routes")
    left_open = ledger.reserve("dead", "auto", 0.1)
    for _ in range(8):
        for n in range(6):
            assert isinstance(ledger.reserve(f"t{n}", "auto", 0.001), Reservation)
        clock.now += DAY
    clock.now -= DAY
    kept = [day for (day,) in ledger._db.execute("SELECT DISTINCT day FROM totals ORDER BY day")]
    assert kept == ["2026-05-14", "2026-05-15", "2026-05-16", "2026-05-17"], "three, and today"
    rows, until = ledger._db.execute("SELECT dropped_rows, dropped_until FROM calendar").fetchone()
    assert (rows, until) == (4 * (6 + 6 + 2) + 2, "2026-05-13")
    assert "drops the totals of" in caplog.text
    assert isinstance(left_open, Reservation)
    before = ledger.spent(day="2026-05-17")
    ledger.settle(left_open, 0.1)
    assert ledger.spent(day="2026-05-17") == before


def test_of_too_many_tenants_the_oldest_days_keep_only_their_sums(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_ROWS", 50)
    for _ in range(6):
        for n in range(10):
            assert isinstance(ledger.reserve(f"t{n}", "auto", 0.001), Reservation)
        clock.now += DAY
    clock.now -= DAY
    (rows,) = ledger._db.execute("SELECT COUNT(*) FROM totals").fetchone()
    assert rows <= 50 + 22
    assert ledger.spent(day="2026-05-10").reserved == pytest.approx(0.01)
    assert ledger.spent(route="auto", day="2026-05-10").reserved == pytest.approx(0.01)
    assert ledger.spent("t1", day="2026-05-10").reserved == 0.0
    assert ledger.spent("t1").reserved == pytest.approx(0.001)


def test_a_clock_that_was_ahead_drops_no_history(ledger: Ledger, clock: Clock) -> None:
    assert spend(ledger, 0.5)
    clock.now += 5000 * DAY
    assert spend(ledger, 0.5)
    assert ledger.spent(day="2026-05-10").settled == 0.5


# -- faults --------------------------------------------------------------------------------------------------


async def test_whoever_waits_while_the_ledger_is_locked_waits_for_one_failure_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty requests behind a locked file do not wait one after the other."""
    monkeypatch.setattr(budget, "BUSY_SECONDS", 0.2)
    tried = 0

    class Counting(Ledger):
        def reserve(self, tenant: str, route: str, usd: float) -> Reservation | str:
            nonlocal tried
            tried += 1
            return super().reserve(tenant, route, usd)

    cashier = Cashier(Counting(tmp_path / "l.sqlite", Budgets(total=1.0)))
    with closing(sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await asyncio.gather(*(cashier.reserve(f"t{n}", "auto", 0.001) for n in range(50)))
        assert all("locked" in str(one) for one in refused)
        assert tried <= 3
        assert cashier.failures >= 50
        other.execute("COMMIT")
    assert isinstance(await cashier.reserve("t", "auto", 0.1), Reservation)
    await asyncio.to_thread(cashier.close)


async def test_a_ledger_that_is_damaged_while_it_is_used_refuses_the_cloud(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    cashier = Cashier(Ledger(path, Budgets(total=1.0)))
    reserved = await cashier.reserve("t", "auto", 0.1)
    assert isinstance(reserved, Reservation)
    for name in (path, Path(f"{path}-wal")):
        size = name.stat().st_size
        name.write_bytes(os.urandom(size))
    cashier.ledger._db.execute("PRAGMA cache_size=0")
    cashier.ledger._db.execute("PRAGMA shrink_memory")
    refused = await cashier.reserve("t", "auto", 0.1)
    assert "the ledger failed" in str(refused)
    assert str(tmp_path) not in str(refused), "a client is told no paths"
    await cashier.settle(reserved, 0.05)  # the answer it paid for is delivered
    await asyncio.to_thread(cashier.close)


def test_a_file_that_is_no_ledger_is_named_in_a_sentence(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no database " * 200)
    with pytest.raises(BadInput, match=r"the ledger .*garbage: it is no SQLite file; name another one"):
        Ledger(garbage)
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(BadInput, match="is an SQLite file, but no ledger"):
        Ledger(tmp_path / "other")
    with pytest.raises(BadInput, match="the ledger /proc/no/where"):
        Ledger(Path("/proc/no/where"))


def fill_the_disk(disk: str) -> None:
    """In a process on a small disk: reserve until it is full, then settle, then make room."""

    async def main() -> None:
        cashier = Cashier(Ledger(Path(disk) / "l.sqlite", Budgets(total=1e5, tenants={"*": 1e5})))
        made: list[Reservation] = []
        refused = ""
        for n in range(3000):
            reserved = await cashier.reserve(f"tenant {n}", "auto", 0.5)
            if isinstance(reserved, str):
                refused = reserved
                break
            made.append(reserved)
        for one in made:
            await cashier.settle(one, 0.25)
        during = cashier.ledger.spent()
        resize(disk, "size=16m")
        assert isinstance(await cashier.reserve("last", "auto", 0.5), Reservation)
        after = cashier.ledger.spent()
        print(
            json.dumps([len(made), refused, during.settled + during.reserved, after.settled, after.reserved])
        )
        cashier.close()

    asyncio.run(main())


@needs_own_disk
@pytest.mark.parametrize("size", ["160k", "320k"])
def test_a_full_disk_refuses_the_cloud_and_forgets_no_money(tmp_path: Path, size: str) -> None:
    done = run_on_disk(f"{__name__}:fill_the_disk", tmp_path / "disk", size)
    assert done.returncode == 0, done.stderr
    made, refused, during, settled, reserved = json.loads(done.stdout)
    assert refused == "the ledger failed (the disk is full; free some room), so nothing may be spent"
    assert 0 < made < 3000
    assert 0.25 * made <= during <= 0.5 * made, "what could not be settled stays reserved"
    assert (settled, reserved) == (0.25 * made, 0.5)


def open_read_only(disk: str) -> None:
    Ledger(Path(disk) / "l.sqlite").close()
    resize(disk, "ro")
    try:
        Ledger(Path(disk) / "l.sqlite")
    except BadInput as error:
        print(error)


@needs_own_disk
def test_a_ledger_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    done = run_on_disk(f"{__name__}:open_read_only", tmp_path / "disk", "1m")
    assert done.returncode == 0, done.stderr
    assert "l.sqlite" in done.stdout
    assert "check the" in done.stdout
    assert done.stdout.count("\n") == 1


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_money_never_goes_down_by_what_is_settled(usd: float) -> None:
    ledger = Ledger(None, Budgets(total=1.0))
    first = ledger.reserve("ann", "auto", 0.25)
    second = ledger.reserve("ann", "auto", 0.25)
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    ledger.settle(first, 0.25)
    try:
        ledger.settle(second, usd)
    except ValueError:
        assert ledger.spent().reserved == 0.25, "it stays reserved"
    assert ledger.spent().settled >= 0.25
    ledger.close()


async def test_a_ledger_of_a_newer_version_refuses_the_cloud_and_shows_clients_no_path(
    tmp_path: Path,
) -> None:
    cashier = Cashier(Ledger(tmp_path / "l.sqlite", Budgets(total=1.0)))
    with closing(sqlite3.connect(tmp_path / "l.sqlite")) as newer:
        newer.execute(f"PRAGMA user_version={books.LEDGER.version + 1}")
    refused = await cashier.reserve("t", "auto", 0.1)
    assert refused == "the ledger failed (it is of another version), so nothing may be spent"
    await asyncio.to_thread(cashier.close)
