"""Money: reserve before spending, settle after. Kept in SQLite, so that a restart forgets nothing.

Amounts are whole nano-dollars: sums of them are exact. A reservation counts against its budgets until it is
settled; one whose process died stays reserved until its budget's time is over, because nobody knows what it cost. The
tables, and what a day is when clocks jump, are in `ledger/books.py`; budgets and their zone in `ledger/allowance.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from weighbridge.cost.price import NANO
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.periods import FIRST_SECOND, HOUR, LAST_SECOND, Day, day_at, moment
from weighbridge.routes.ledger.allowance import NO_BUDGETS, Budgets, Concerned, Per
from weighbridge.routes.ledger.books import (
    KEPT_HOURS,
    LATEST_HOUR,
    LEDGER,
    add,
    add_hour,
    drop,
    drop_hours,
    first_kept_hour,
    hourly,
    latest_hour,
    month_total,
    read_day,
    stale_days,
    total,
    turn_to,
)
from weighbridge.routes.ledger.usage import UsageQuery, UsageRow, UsageTable, Used, first_day, usage_rows
from weighbridge.state.believed_time import believed_time
from weighbridge.state.database import check_version, connect, open_database, reason, sentence, transaction

log = logging.getLogger("weighbridge.routes")

T = TypeVar("T")

#: No single answer costs more, in US dollars; an amount beyond it is a mistake of whoever says so.
HIGHEST_USD = 1e6
#: Seconds that a transaction waits for another process; then the cloud is refused, and settling is tried again later.
BUSY_SECONDS = 0.5


def nano(usd: float) -> int:
    """US dollars in whole nano-dollars. Raises ValueError for what is no amount of money to spend."""
    if not 0.0 <= usd <= HIGHEST_USD:
        raise ValueError(f"{usd!r} US dollars cannot be spent")
    return round(usd * NANO)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one attempt. `id` empty: it costs nothing, and nothing is recorded."""

    id: str
    nano_usd: int


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one day, in US dollars."""

    settled: float
    reserved: float


FREE_OF_CHARGE = Reservation("", 0)


class Denial(str):
    """Why a budget has no room; `retry_after`: seconds until it may have."""

    __slots__ = ("retry_after",)
    retry_after: float | None

    def __new__(cls, reason: str, retry_after: float | None = None) -> Denial:
        denial = super().__new__(cls, reason)
        denial.retry_after = retry_after
        return denial


def wait_of(refusal: str) -> float | None:
    """Seconds after which what was refused may be tried again, where that is known."""
    return refusal.retry_after if isinstance(refusal, Denial) else None


@dataclass(frozen=True, slots=True)
class _Now:
    """A moment as budgets see it."""

    seconds: float  # since the epoch
    day: str  # of the ledger: a clock that goes back opens none again
    today: Day
    ahead: int | None = None  # since which hour it is known that the clock was ahead before; None: it was not

    @property
    def hour(self) -> int:
        return int(self.seconds // HOUR)


class Ledger:
    """Reservations and settlements of all processes that share one file. `path` None: in memory only.

    Any thread may call it; it blocks. What serves requests asks a `Cashier`.
    """

    def __init__(
        self, path: Path | None, budgets: Budgets = NO_BUDGETS, clock: Callable[[], float] = believed_time
    ) -> None:
        self.budgets = budgets
        self.where = str(path) if path is not None else "in memory"
        self._clock = clock
        self._rolls = budgets.rolls
        self._path = path
        self._usage = UsageTable(in_memory=path is None)
        self._today: Day | None = None
        self._lock = threading.RLock()
        self._db = open_database(path, LEDGER, wait_s=BUSY_SECONDS, durable=False)
        # Looking needs no lock in a file, and must not wait for a transaction that does.
        self._reader = self._db if path is None else connect(path, 0.0)
        self._stale: list[tuple[str, bool]] = []  # days to drop: whole, or only their tenants
        self._behind: int | None = None  # the hour in which the clock was found behind what was taken
        self._kept_from = 0, 0  # the hour in which that was looked at, and the first that is kept

    def reserve(self, tenant: str, route: str, usd: float) -> Reservation | str:
        """Set `usd` aside in every budget concerned, or say which of them is exhausted.

        What costs nothing is never refused.
        """
        if usd > HIGHEST_USD:
            return self.refusal(tenant, route, usd)
        amount = nano(usd)
        if amount <= 0:
            return FREE_OF_CHARGE
        with self._transaction():
            today = self.today()
            day, is_new = turn_to(self._db, today.name)
            self._tidy(is_new)
            now = self._now(self._db, day, today)
            refusal = self._refusal(self._db, now, tenant, route, amount)
            if refusal:
                return refusal
            reservation = Reservation(uuid.uuid4().hex, amount)
            hour = now.hour if self._rolls else 0
            self._db.execute(
                "INSERT INTO reservations (id, day, tenant, route, amount, hour) VALUES (?, ?, ?, ?, ?, ?)",
                (reservation.id, day, tenant, route, amount, hour),
            )
            add(self._db, day, tenant, route, settled=0, reserved=amount)
            if hour:
                add_hour(self._db, hour, tenant, route, amount)
                self._tidy_hours(now)
        return reservation

    def refusal(self, tenant: str, route: str, usd: float) -> str:
        """What `reserve` would say now, without reserving; empty when it would succeed."""
        if usd > HIGHEST_USD:
            return f"it may cost {usd:.0f} USD; ask for a shorter answer"
        amount = nano(usd)
        if amount <= 0 or not self.budgets.concerned(tenant, route):
            return ""
        today = self.today()
        day, _ = read_day(self._reader, today.name)
        return self._refusal(self._reader, self._now(self._reader, day, today), tenant, route, amount)

    def _now(self, db: sqlite3.Connection, day: str, today: Day) -> _Now:
        now = _Now(self._seconds(), day, today)
        if not self._rolls or latest_hour(db) <= now.hour:
            self._behind = None
            return now
        behind = now.hour if self._behind is None else min(self._behind, now.hour)
        self._behind = behind
        return replace(now, ahead=behind)

    def _refusal(self, db: sqlite3.Connection, now: _Now, tenant: str, route: str, amount: int) -> str:
        for budget in self.budgets.concerned(tenant, route):
            limit = round(budget.allowance.usd * NANO)
            if budget.allowance.per is Per.WINDOW:
                taken, resets = _window(db, budget, now, amount)
            elif budget.allowance.per is Per.MONTH:
                taken, resets = (
                    month_total(db, now.day[:7], budget.tenant, budget.route),
                    now.today.month_ends,
                )
            else:
                taken, resets = sum(total(db, now.day, budget.tenant, budget.route)), now.today.ends
            if taken + amount > limit:
                return self._denial(budget, taken, resets if amount <= limit else None)
        return ""

    def _denial(self, budget: Concerned, taken: int, resets: float | None) -> Denial:
        """`resets`: when there may be room, in seconds since the epoch; None: never, so large is the request."""
        allowance, zone = budget.allowance, self.budgets.zone
        within = {Per.DAY: "today", Per.MONTH: "this month"}.get(allowance.per, f"{allowance.hours} hours")
        said = (
            f"{budget.name} is exhausted: {taken / NANO:.6f} of {allowance.usd:g} USD of {within} are taken"
        )
        if resets is None:
            return Denial(f"{said}, and this request alone may cost more; ask for a shorter answer")
        when = f"{moment(resets, zone)} ({zone})"
        return Denial(f"{said}; it resets at {when}", max(resets - self._seconds(), 1.0))

    def settle(self, reservation: Reservation, usd: float, used: Used | None = None) -> None:
        """Replace a reservation by what it really cost. Settling twice keeps the first amount.

        `used`: whose model worked for it and how much, for the bill; its cost there is what is settled here.
        """
        if not reservation.id:
            return
        with self._transaction():
            row = self._db.execute(
                "DELETE FROM reservations WHERE id = ? RETURNING day, tenant, route, amount, hour",
                (reservation.id,),
            ).fetchone()
            if row is not None:
                day, tenant, route, reserved, hour = row
                amount = nano(usd)
                add(self._db, day, tenant, route, settled=amount, reserved=-reserved)
                if hour:
                    add_hour(self._db, hour, tenant, route, amount - reserved)
                known = used if used is not None else Used(tenant, "", requests=0)
                billed = replace(known, tenant=tenant, route=route, nano_usd=amount)
                self._usage.note(self._db, day, billed, budgeted=amount)

    def note(self, used: Iterable[tuple[str, Used]]) -> None:
        """Write what was used on which day, beside what is settled. All of it or nothing."""
        with self._transaction():
            for day, one in used:
                self._usage.note(self._db, day, one)
            if self._usage.drop_old(self._db, self.today().name):
                log.info("the ledger %s drops usage of its first day", self.where)

    def usage(self, query: UsageQuery) -> tuple[list[UsageRow], str]:
        """Return the rows of a query, and the first day of which anything is known. Blocks."""
        if self._path is None:
            with self._lock:
                return usage_rows(self._db, query), first_day(self._db)
        with closing(connect(self._path, BUSY_SECONDS, read_only=True)) as reader:
            return usage_rows(reader, query), first_day(reader)

    def spent(self, tenant: str | None = None, route: str | None = None, day: str | None = None) -> Spent:
        """What a day (of the budgets' zone, `YYYY-MM-DD`; default today) has cost so far."""
        with self._lock:
            day = day or read_day(self._db, self.today().name)[0]
            settled, reserved = total(self._db, day, tenant, route)
        return Spent(settled / NANO, reserved / NANO)

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._reader.close()

    def _tidy(self, is_new_day: bool) -> None:
        """Drop a part of what is too old, or too much, to be kept."""
        if is_new_day:
            whole, details = stale_days(self._db)
            self._stale = [(day, True) for day in whole] + [(day, False) for day in details]
            if self._stale:
                log.info("the ledger %s drops the totals of %d days", self.where, len(self._stale))
        if self._stale and not drop(self._db, self._stale[0][0], whole=self._stale[0][1]):
            del self._stale[0]

    def _tidy_hours(self, now: _Now) -> None:
        """Drop some hours of which nobody asks any more, and those ahead that a clock has opened long ago."""
        if self._kept_from[0] != now.hour:
            self._kept_from = now.hour, first_kept_hour(self._db, now.hour)
        long_ago = now.ahead is not None and now.ahead < now.hour - KEPT_HOURS
        drop_hours(self._db, self._kept_from[1], now.hour if long_ago else LATEST_HOUR)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, alone among the threads and processes that share the file."""
        with self._lock, transaction(self._db):
            check_version(self._db, LEDGER, self.where)  # a newer Weighbridge may have come meanwhile
            yield

    @property
    def zone(self) -> str:
        """Where days begin."""
        return self.budgets.zone

    def today(self) -> Day:
        """The day that it is in the budgets' zone, by the clock. Any thread may ask."""
        now, known = self._seconds(), self._today
        if known is None or not known.begins <= now < known.ends:
            self._today = known = day_at(now, self.budgets.zone)
        return known

    def _seconds(self) -> float:
        return min(max(self._clock(), FIRST_SECOND), LAST_SECOND)


def _window(db: sqlite3.Connection, budget: Concerned, now: _Now, amount: int) -> tuple[int, float]:
    """What a window that rolls has taken, and when it has room for `amount`, if nothing else comes."""
    allowance = budget.allowance
    rows = hourly(db, now.hour, allowance.hours, budget.tenant, budget.route, now.ahead)
    taken = left = sum(amount for _, amount in rows)
    limit = round(allowance.usd * NANO)
    for hour, counted in rows:
        left -= counted
        if left + amount <= limit:
            return taken, (hour + allowance.hours + 1) * HOUR
    return taken, now.seconds + HOUR


class _Claim:
    """A reservation in the making. Either it is kept, or whoever wanted it has gone first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone = False
        self._made: Reservation | None = None

    def keep(self, made: Reservation) -> bool:
        """Whether somebody still wants it."""
        with self._lock:
            self._made = made
            return not self._gone

    def abandon(self) -> Reservation | None:
        """Nobody wants it any more; what was made already is the caller's to give back."""
        with self._lock:
            self._gone = True
            return self._made


class Cashier:
    """Asks a ledger without stopping the event loop; one thread works for all requests.

    A ledger that fails refuses the cloud, as an exhausted budget does. It never costs an answer that was paid for:
    what could not be settled stays reserved, and is settled with the next request. `failures` counts both. Whoever has
    waited while it failed for somebody else does not try it again: so nobody waits for more than one failure.
    """

    def __init__(self, ledger: Ledger, on_used: Callable[[Used], None] = lambda used: None) -> None:
        """`on_used` hears what was used without being paid from a budget."""
        self.ledger = ledger
        self.on_used = on_used
        self.failures = 0
        self._thread = ThreadPoolExecutor(1, "weighbridge-ledger")
        self._unsettled: list[tuple[Reservation, float, Used | None]] = []
        self._failed_at = -math.inf
        self._last_error: Exception | None = None

    async def reserve(self, tenant: str, route: str, usd: float) -> Reservation | str:
        """Set `usd` aside, or say why not. Whoever is cancelled while it waits has nothing reserved."""
        if usd <= 0.0:
            return FREE_OF_CHARGE
        claim = _Claim()
        work = self._run(self._claim, claim, tenant, route, usd)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if (made := claim.abandon()) is not None:
                self._run(self._settle, made, 0.0, None)
            raise

    def refusal(self, tenant: str, route: str, usd: float) -> str:
        """What `reserve` would say now, without reserving; empty when it would succeed. Looking waits for nobody."""
        if usd <= 0.0:
            return ""
        try:
            return self.ledger.refusal(tenant, route, usd)
        except (sqlite3.Error, BadInput, ValueError) as error:
            return self._failed(error)

    async def settle(self, reservation: Reservation, usd: float, used: Used | None = None) -> None:
        """Replace a reservation by what it really cost, once; also when whoever waits for it is cancelled.

        `used` is written with it, or for itself where nothing was reserved.
        """
        if reservation.id:
            await asyncio.shield(self._run(self._settle, reservation, usd, used))
        elif used is not None:
            self.on_used(used)

    def close(self) -> None:
        """Settle what is left and let the thread go."""
        self._thread.submit(self._settle_rest, time.monotonic())
        self._thread.shutdown(wait=True)

    # -- on the event loop -----------------------------------------------------------------------------

    def _run(self, work: Callable[..., T], *values: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, time.monotonic(), *values)

    # -- on the thread ---------------------------------------------------------------------------------

    def _claim(self, asked: float, claim: _Claim, tenant: str, route: str, usd: float) -> Reservation | str:
        self._settle_rest(asked)
        if self._last_error is not None and self._failed_at >= asked:
            return self._failed(self._last_error)
        try:
            made = self.ledger.reserve(tenant, route, usd)
        except (sqlite3.Error, BadInput, ValueError) as error:
            return self._failed(error)
        if isinstance(made, Reservation) and made.id and not claim.keep(made):
            self._settle(asked, made, 0.0, None)
        return made

    def _settle(self, asked: float, reservation: Reservation, usd: float, used: Used | None) -> None:
        self._unsettled.append((reservation, usd, used))
        self._settle_rest(asked)

    def _settle_rest(self, asked: float) -> None:
        while self._unsettled and self._failed_at < asked:
            reservation, usd, used = self._unsettled[0]
            try:
                self.ledger.settle(reservation, usd, used)
            except ValueError as error:  # no amount at all: it counts as what was reserved
                self._failed(error)
                usd = reservation.nano_usd / NANO
                self._unsettled[0] = (reservation, usd, used)
                continue
            except (sqlite3.Error, BadInput) as error:
                self._failed(error)
                return
            del self._unsettled[0]

    def _failed(self, error: Exception) -> str:
        if not isinstance(error, ValueError):
            self._failed_at, self._last_error = time.monotonic(), error
        if not self.failures:
            said = sentence(error, "ledger", self.ledger.where)
            log.error("the ledger failed, so the cloud is refused while it does: %s", said)
        self.failures += 1
        why = (
            "it is of another version" if isinstance(error, BadInput) else reason(error)
        )  # no paths for clients
        return f"the ledger failed ({why}), so nothing may be spent"
