"""Money: reserve before spending, settle after. Kept in SQLite, so that a restart forgets nothing.

Amounts are whole nano-dollars: sums of them are exact. A reservation counts against its budgets until it is
settled; one whose process died stays reserved until its day ends, because nobody knows what it cost. The tables, and
what a day is when clocks jump, are in `ledger/books.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from weighbridge.cost.price import NANO
from weighbridge.errors import BadInput
from weighbridge.routes.ledger.books import LEDGER, add, drop, read_day, stale_days, total, turn_to
from weighbridge.state.database import check_version, connect, open_database, reason, sentence

log = logging.getLogger("weighbridge.routes")

T = TypeVar("T")

ALL = "*"
#: No single answer costs more, in US dollars; an amount beyond it is a mistake of whoever says so.
HIGHEST_USD = 1e6
#: Seconds that a transaction waits for another process; then the cloud is refused, and settling is tried again later.
BUSY_SECONDS = 0.5

#: The last moment that has a date, in seconds since the epoch: the end of the year 9999.
_LAST_SECOND = 253_402_300_799.0


def nano(usd: float) -> int:
    """US dollars in whole nano-dollars. Raises ValueError for what is no amount of money to spend."""
    if not 0.0 <= usd <= HIGHEST_USD:
        raise ValueError(f"{usd!r} US dollars cannot be spent")
    return round(usd * NANO)


@dataclass(frozen=True, slots=True)
class Budgets:
    """US dollars per day (UTC), all of them hard. Names not listed have no budget of their own."""

    total: float | None = None
    tenants: Mapping[str, float] = field(default_factory=dict)
    routes: Mapping[str, float] = field(default_factory=dict)


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


class Ledger:
    """Reservations and settlements of all processes that share one file. `path` None: in memory only.

    Any thread may call it; it blocks. What serves requests asks a `Cashier`.
    """

    def __init__(
        self, path: Path | None, budgets: Budgets = Budgets(), clock: Callable[[], float] = time.time
    ) -> None:
        self.budgets = budgets
        self.where = str(path) if path is not None else "in memory"
        self._clock = clock
        self._lock = threading.RLock()
        self._db = open_database(path, LEDGER, wait_s=BUSY_SECONDS, durable=False)
        # Looking needs no lock in a file, and must not wait for a transaction that does.
        self._reader = self._db if path is None else connect(path, 0.0)
        self._stale: list[tuple[str, bool]] = []  # days to drop: whole, or only their tenants

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
            day, is_new = turn_to(self._db, self._today())
            self._tidy(is_new)
            refusal = self._refusal(self._db, day, tenant, route, amount)
            if refusal:
                return refusal
            reservation = Reservation(uuid.uuid4().hex, amount)
            self._db.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?)",
                (reservation.id, day, tenant, route, amount),
            )
            add(self._db, day, tenant, route, settled=0, reserved=amount)
        return reservation

    def refusal(self, tenant: str, route: str, usd: float) -> str:
        """What `reserve` would say now, without reserving; empty when it would succeed."""
        if usd > HIGHEST_USD:
            return f"it may cost {usd:.0f} USD; ask for a shorter answer"
        amount = nano(usd)
        if amount <= 0 or not self._limits(tenant, route):
            return ""
        day, _ = read_day(self._reader, self._today())
        return self._refusal(self._reader, day, tenant, route, amount)

    def _refusal(self, db: sqlite3.Connection, day: str, tenant: str, route: str, amount: int) -> str:
        for name, limit, whose, which in self._limits(tenant, route):
            taken = sum(total(db, day, whose, which))
            if taken + amount > round(limit * NANO):
                return f"{name} is exhausted: {taken / NANO:.6f} of {limit:g} USD of today are taken"
        return ""

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what it really cost. Settling twice keeps the first amount."""
        if not reservation.id:
            return
        with self._transaction():
            row = self._db.execute(
                "DELETE FROM reservations WHERE id = ? RETURNING day, tenant, route, amount",
                (reservation.id,),
            ).fetchone()
            if row is not None:
                day, tenant, route, reserved = row
                add(self._db, day, tenant, route, settled=nano(usd), reserved=-reserved)

    def spent(self, tenant: str | None = None, route: str | None = None, day: str | None = None) -> Spent:
        """What a day (UTC, `YYYY-MM-DD`; default today) has cost so far."""
        with self._lock:
            day = day or read_day(self._db, self._today())[0]
            settled, reserved = total(self._db, day, tenant, route)
        return Spent(settled / NANO, reserved / NANO)

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._reader.close()

    def _limits(self, tenant: str, route: str) -> list[tuple[str, float, str | None, str | None]]:
        """Name, US dollars, and the tenant and route whose spending counts, for each budget concerned."""
        limits: list[tuple[str, float, str | None, str | None]] = []
        budgets = self.budgets
        if budgets.total is not None:
            limits.append(("the daily budget", budgets.total, None, None))
        own = budgets.tenants.get(tenant, budgets.tenants.get(ALL))
        if own is not None:
            limits.append((f"tenant {tenant}'s budget", own, tenant, None))
        if route in budgets.routes:
            limits.append((f"route {route}'s budget", budgets.routes[route], None, route))
        return limits

    def _tidy(self, is_new_day: bool) -> None:
        """Drop a part of what is too old, or too much, to be kept."""
        if is_new_day:
            whole, details = stale_days(self._db)
            self._stale = [(day, True) for day in whole] + [(day, False) for day in details]
            if self._stale:
                log.info("the ledger %s drops the totals of %d days", self.where, len(self._stale))
        if self._stale and not drop(self._db, self._stale[0][0], whole=self._stale[0][1]):
            del self._stale[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, alone among the threads and processes that share the file."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                check_version(self._db, LEDGER, self.where)  # a newer Weighbridge may have come meanwhile
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _today(self) -> str:
        seconds = min(max(self._clock(), 0.0), _LAST_SECOND)
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


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

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.failures = 0
        self._thread = ThreadPoolExecutor(1, "weighbridge-ledger")
        self._unsettled: list[tuple[Reservation, float]] = []
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
                self._run(self._settle, made, 0.0)
            raise

    def refusal(self, tenant: str, route: str, usd: float) -> str:
        """What `reserve` would say now, without reserving; empty when it would succeed. Looking waits for nobody."""
        if usd <= 0.0:
            return ""
        try:
            return self.ledger.refusal(tenant, route, usd)
        except (sqlite3.Error, BadInput, ValueError) as error:
            return self._failed(error)

    async def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what it really cost, once; also when whoever waits for it is cancelled."""
        if reservation.id:
            await asyncio.shield(self._run(self._settle, reservation, usd))

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
            self._settle(asked, made, 0.0)
        return made

    def _settle(self, asked: float, reservation: Reservation, usd: float) -> None:
        self._unsettled.append((reservation, usd))
        self._settle_rest(asked)

    def _settle_rest(self, asked: float) -> None:
        while self._unsettled and self._failed_at < asked:
            reservation, usd = self._unsettled[0]
            try:
                self.ledger.settle(reservation, usd)
            except ValueError as error:  # no amount at all: it counts as what was reserved
                self._failed(error)
                usd = reservation.nano_usd / NANO
                self._unsettled[0] = (reservation, usd)
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
