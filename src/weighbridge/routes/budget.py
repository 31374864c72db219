"""Money: reserve before spending, settle after. Kept in SQLite, so that a restart forgets nothing.

Amounts are whole nano-dollars: sums of them are exact. A reservation counts against its budgets until it is
settled; one whose process died stays reserved until its day ends, because nobody knows what it cost.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from weighbridge.errors import BadInput

NANO = 1_000_000_000
ALL = "*"

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
    """US dollars in whole nano-dollars."""
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
    """Reservations and settlements of all processes that share one file. `path` None: in memory only."""

    def __init__(
        self, path: Path | None, budgets: Budgets = Budgets(), clock: Callable[[], float] = time.time
    ) -> None:
        self.budgets = budgets
        self._clock = clock
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=5.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise BadInput(f"cannot open the ledger {path}: {error}") from error

    def reserve(self, tenant: str, route: str, usd: float) -> Reservation | str:
        """Set `usd` aside in every budget concerned, or say which of them is exhausted.

        What costs nothing is never refused.
        """
        amount = nano(usd)
        if amount <= 0:
            return FREE_OF_CHARGE
        day = self._day()
        with self._transaction():
            refusal = self.refusal(tenant, route, usd)
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
        day, amount = self._day(), nano(usd)
        for name, limit, one_tenant, one_route in self._limits(tenant, route) if amount > 0 else ():
            taken = self._taken(day, one_tenant, one_route)
            if taken + amount > nano(limit):
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
        row = self._db.execute(query, (day or self._day(), tenant, tenant, route, route)).fetchone()
        return Spent(row[0] / NANO, row[1] / NANO)

    def close(self) -> None:
        self._db.close()

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

    def _taken(self, day: str, tenant: str | None, route: str | None) -> int:
        """Settled and reserved nano-dollars of a day."""
        query = (
            "SELECT COALESCE(SUM(amount), 0) FROM taken "
            "WHERE day = ? AND (? IS NULL OR tenant = ?) AND (? IS NULL OR route = ?)"
        )
        return int(self._db.execute(query, (day, tenant, tenant, route, route)).fetchone()[0])

    def _take(self, day: str, tenant: str, route: str, amount: int) -> None:
        self._db.execute(
            "INSERT INTO taken VALUES (?, ?, ?, ?) "
            "ON CONFLICT (day, tenant, route) DO UPDATE SET amount = amount + excluded.amount",
            (day, tenant, route, amount),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, alone among the processes that share the file."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d")
