"""Money: reserve before spending, settle after. Kept in SQLite, so that a restart forgets nothing.

Amounts are whole nano-dollars: sums of them are exact. A reservation counts against its budgets until it is
settled; one whose process died stays reserved until its day ends, because nobody knows what it cost.
"""

from __future__ import annotations

import asyncio
import logging
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

from weighbridge.errors import BadInput

log = logging.getLogger("weighbridge.routes")

T = TypeVar("T")

NANO = 1_000_000_000
ALL = "*"
#: No single answer costs more, in US dollars; an amount beyond it is a mistake of whoever says so.
HIGHEST_USD = 1e6
#: Seconds that a transaction waits for another process; then the cloud is refused, and settling is tried again later.
BUSY_SECONDS = 0.5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spending (
    id TEXT PRIMARY KEY, day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL,
    reserved INTEGER NOT NULL, settled INTEGER, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS taken (
    day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, route)
);
"""


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
        self._clock = clock
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = threading.RLock()
            self._db = self._connected(path, BUSY_SECONDS)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            # Looking needs no lock in a file, and must not wait for a transaction that does.
            self._reader = self._db if path is None else self._connected(path, 0.0)
        except (sqlite3.Error, OSError) as error:
            raise BadInput(f"cannot open the ledger {path}: {error}") from error

    @staticmethod
    def _connected(path: Path | None, timeout: float) -> sqlite3.Connection:
        return sqlite3.connect(
            path or ":memory:", timeout=timeout, isolation_level=None, check_same_thread=False
        )

    def reserve(self, tenant: str, route: str, usd: float) -> Reservation | str:
        """Set `usd` aside in every budget concerned, or say which of them is exhausted.

        What costs nothing is never refused.
        """
        if usd > HIGHEST_USD:
            return self.refusal(tenant, route, usd)
        amount = nano(usd)
        if amount <= 0:
            return FREE_OF_CHARGE
        day = self._day()
        with self._transaction():
            refusal = self._refusal(self._db, tenant, route, amount)
            if refusal:
                return refusal
            reservation = Reservation(uuid.uuid4().hex, amount)
            self._db.execute(
                "INSERT INTO spending VALUES (?, ?, ?, ?, ?, NULL, ?)",
                (reservation.id, day, tenant, route, amount, self._clock()),
            )
            self._take(day, tenant, route, amount)
        return reservation

    def refusal(self, tenant: str, route: str, usd: float) -> str:
        """What `reserve` would say now, without reserving; empty when it would succeed."""
        if usd > HIGHEST_USD:
            return f"it may cost {usd:.0f} USD; ask for a shorter answer"
        return self._refusal(self._reader, tenant, route, nano(usd))

    def _refusal(self, db: sqlite3.Connection, tenant: str, route: str, amount: int) -> str:
        day = self._day()
        for name, limit, whose, which in self._limits(tenant, route) if amount > 0 else ():
            taken = self._taken(db, day, whose, which)
            if taken + amount > round(limit * NANO):
                return f"{name} is exhausted: {taken / NANO:.6f} of {limit:g} USD of today are taken"
        return ""

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what it really cost. Settling twice keeps the first amount."""
        if not reservation.id:
            return
        with self._transaction():
            row = self._db.execute(
                "SELECT day, tenant, route, reserved FROM spending WHERE id = ? AND settled IS NULL",
                (reservation.id,),
            ).fetchone()
            if row is not None:
                day, tenant, route, reserved = row
                self._db.execute("UPDATE spending SET settled = ? WHERE id = ?", (nano(usd), reservation.id))
                self._take(day, tenant, route, nano(usd) - reserved)

    def spent(self, tenant: str | None = None, route: str | None = None, day: str | None = None) -> Spent:
        """What a day (UTC, `YYYY-MM-DD`; default today) has cost so far."""
        query = (
            "SELECT COALESCE(SUM(settled), 0), COALESCE(SUM(CASE WHEN settled IS NULL THEN reserved END), 0) "
            "FROM spending WHERE day = ? AND (? IS NULL OR tenant = ?) AND (? IS NULL OR route = ?)"
        )
        with self._lock:
            row = self._db.execute(query, (day or self._day(), tenant, tenant, route, route)).fetchone()
        return Spent(row[0] / NANO, row[1] / NANO)

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

    @staticmethod
    def _taken(db: sqlite3.Connection, day: str, tenant: str | None, route: str | None) -> int:
        """Settled and reserved nano-dollars of a day."""
        query = (
            "SELECT COALESCE(SUM(amount), 0) FROM taken "
            "WHERE day = ? AND (? IS NULL OR tenant = ?) AND (? IS NULL OR route = ?)"
        )
        return int(db.execute(query, (day, tenant, tenant, route, route)).fetchone()[0])

    def _take(self, day: str, tenant: str, route: str, amount: int) -> None:
        self._db.execute(
            "INSERT INTO taken VALUES (?, ?, ?, ?) "
            "ON CONFLICT (day, tenant, route) DO UPDATE SET amount = amount + excluded.amount",
            (day, tenant, route, amount),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, alone among the threads and processes that share the file."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d")


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
    what could not be settled stays reserved, and is settled with the next request. `failures` counts both.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.failures = 0
        self._thread = ThreadPoolExecutor(1, "weighbridge-ledger")
        self._unsettled: list[tuple[Reservation, float]] = []

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
        except (sqlite3.Error, ValueError) as error:
            return self._failed(error)

    async def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what it really cost, once; also when whoever waits for it is cancelled."""
        if reservation.id:
            await asyncio.shield(self._run(self._settle, reservation, usd))

    def close(self) -> None:
        """Settle what is left and let the thread go."""
        self._thread.submit(self._settle_rest)
        self._thread.shutdown(wait=True)

    # -- on the event loop -----------------------------------------------------------------------------

    def _run(self, work: Callable[..., T], *values: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *values)

    # -- on the thread ---------------------------------------------------------------------------------

    def _claim(self, claim: _Claim, tenant: str, route: str, usd: float) -> Reservation | str:
        self._settle_rest()
        try:
            made = self.ledger.reserve(tenant, route, usd)
        except (sqlite3.Error, ValueError) as error:
            return self._failed(error)
        if isinstance(made, Reservation) and made.id and not claim.keep(made):
            self._settle(made, 0.0)
        return made

    def _settle(self, reservation: Reservation, usd: float) -> None:
        self._unsettled.append((reservation, usd))
        self._settle_rest()

    def _settle_rest(self) -> None:
        while self._unsettled:
            reservation, usd = self._unsettled[0]
            try:
                self.ledger.settle(reservation, usd)
            except ValueError as error:  # no amount at all: it counts as what was reserved
                self._failed(error)
                usd = reservation.nano_usd / NANO
                self._unsettled[0] = (reservation, usd)
                continue
            except sqlite3.Error as error:
                self._failed(error)
                return
            del self._unsettled[0]

    def _failed(self, error: Exception) -> str:
        if not self.failures:
            log.error("the ledger failed, so the cloud is refused while it does: %s", error)
        self.failures += 1
        return f"the ledger failed ({error}), so nothing may be spent"
