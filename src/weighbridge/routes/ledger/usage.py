"""What was used, by day, tenant and model: the rows of bills, beside what was spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from weighbridge.cost.usage import Usage
from weighbridge.routes.ledger.books import KEPT_DAYS, ROWS_AT_ONCE

#: Rows that are kept, and rows of one day; whoever comes later on a day counts under `OTHERS`.
MAX_USAGE_ROWS = 1_000_000
MAX_DAY_ROWS = 50_000
OTHERS = "(others)"
#: In memory a part of that is kept: one of so many.
SHARE_IN_MEMORY = 20


@dataclass(frozen=True, slots=True)
class Used:
    """What one request used of one model, or several did. `nano_usd`: what it cost.

    `hidden_tokens`: of the cached ones, those that the tenant is not shown.
    """

    tenant: str
    model: str
    route: str = ""  # empty: the model was named itself
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    nano_usd: int = 0
    requests: int = 1
    hidden_tokens: int = 0


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows are asked for. Days are `YYYY-MM-DD`, both included; empty: from the first, to the last.

    `hides`: cached tokens that may be of another tenant's text are left out.
    """

    first: str = ""
    last: str = ""
    by_month: bool = False
    tenant: str | None = None
    model: str | None = None
    limit: int = 10_000
    offset: int = 0
    hides: bool = False


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a tenant used of a model in a day or month. `budgeted_nano_usd`: what of its cost counted in budgets."""

    period: str
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    output_tokens: int
    nano_usd: int
    budgeted_nano_usd: int


class UsageTable:
    """Writes rows, and lets the oldest go. Names are the clients' to choose, so that a day has a bound too."""

    def __init__(self, *, in_memory: bool) -> None:
        self._share = SHARE_IN_MEMORY if in_memory else 1
        self._rows: dict[str, int] = {}  # of the days that were written to lately
        self._tidied = ""  # the day on which there was nothing more to let go

    def note(self, db: sqlite3.Connection, day: str, used: Used, budgeted: int = 0) -> None:
        """Add what was used to its row. `budgeted`: nano-dollars of it that a budget was asked for."""
        usage = used.usage
        amounts = (
            used.requests,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.written_tokens,
            usage.output_tokens,
            used.nano_usd,
            budgeted,
            used.hidden_tokens,
        )
        if not any(amounts):
            return
        if not self._add(db, day, used.tenant, used, amounts):
            tenant = used.tenant if self._has_room(db, day) else OTHERS
            if tenant == used.tenant or not self._add(db, day, tenant, used, amounts):
                values = (day, tenant, used.model, used.route, *amounts)
                db.execute(f"INSERT INTO usage VALUES ({', '.join('?' * len(values))})", values)
                self._rows[day] += 1

    def drop_old(self, db: sqlite3.Connection, today: str) -> int:
        """Let some rows of the oldest day go where more is kept than is to be; return how many. Looked at once a day.

        By the number of days and not by their dates, so that a clock that was wrong once costs no history.
        """
        if self._tidied == today:
            return 0
        (rows,) = db.execute("SELECT COUNT(*) FROM usage").fetchone()
        (days,) = db.execute(
            "WITH RECURSIVE days (day) AS (SELECT MIN(day) FROM usage UNION ALL "
            "SELECT (SELECT MIN(day) FROM usage WHERE day > days.day) FROM days WHERE day IS NOT NULL) "
            "SELECT COUNT(day) FROM days"
        ).fetchone()
        if rows <= MAX_USAGE_ROWS // self._share and days <= KEPT_DAYS:
            self._tidied = today
            return 0
        return db.execute(
            "DELETE FROM usage WHERE (day, tenant, model, route) IN "
            "(SELECT day, tenant, model, route FROM usage WHERE day = (SELECT MIN(day) FROM usage) LIMIT ?)",
            (ROWS_AT_ONCE,),
        ).rowcount

    def _add(
        self, db: sqlite3.Connection, day: str, tenant: str, used: Used, amounts: tuple[int, ...]
    ) -> bool:
        """Add to a row that is there; whether it is."""
        changed = db.execute(
            "UPDATE usage SET requests = requests + ?, prompt = prompt + ?, cached = cached + ?, "
            "written = written + ?, output = output + ?, nano_usd = nano_usd + ?, budgeted = budgeted + ?, "
            "hidden = hidden + ? "
            "WHERE day = ? AND tenant = ? AND model = ? AND route = ?",
            (*amounts, day, tenant, used.model, used.route),
        ).rowcount
        return changed > 0

    def _has_room(self, db: sqlite3.Connection, day: str) -> bool:
        """Whether a day takes another row. What other processes add meanwhile is not known, so each has the bound."""
        if day not in self._rows:
            (rows,) = db.execute("SELECT COUNT(*) FROM usage WHERE day = ?", (day,)).fetchone()
            for old in sorted(self._rows)[: len(self._rows) - 3]:
                del self._rows[old]
            self._rows[day] = rows
        return self._rows[day] < MAX_DAY_ROWS // self._share


def usage_rows(db: sqlite3.Connection, query: UsageQuery) -> list[UsageRow]:
    """Return the rows of a query, by period, tenant and model."""
    period = "substr(day, 1, 7)" if query.by_month else "day"
    cached = "cached - hidden" if query.hides else "cached"
    where, values = _where(query)
    rows = db.execute(
        f"SELECT {period}, tenant, model, SUM(requests), SUM(prompt), SUM({cached}), SUM(written), SUM(output), "
        f"SUM(nano_usd), SUM(budgeted) FROM usage {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT ? OFFSET ?",
        (*values, query.limit, query.offset),
    )
    return [UsageRow(*row) for row in rows]


def first_day(db: sqlite3.Connection) -> str:
    """Return the first day of which anything is known; empty where there is none."""
    (day,) = db.execute("SELECT MIN(day) FROM usage").fetchone()
    return day or ""


def _where(query: UsageQuery) -> tuple[str, list[str]]:
    asked: Iterable[tuple[str, str | None]] = (
        ("day >= ?", query.first or None),
        ("day <= ?", query.last or None),
        ("tenant = ?", query.tenant),
        ("model = ?", query.model),
    )
    given = [(clause, value) for clause, value in asked if value is not None]
    where = " AND ".join(clause for clause, _ in given)
    return (f"WHERE {where}" if where else ""), [value for _, value in given]
