"""What was used, by day, tenant and model: the rows of bills, beside what was spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from weighbridge.cost.usage import Usage
from weighbridge.routes.ledger.books import KEPT_DAYS, ROWS_AT_ONCE

#: Rows that are kept, and rows of one day; whoever comes later on a day counts under `OTHERS`. Names are the clients'
#: to choose, disks are ours.
MAX_USAGE_ROWS = 1_000_000
MAX_DAY_ROWS = 50_000
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Used:
    """What one request used of one model, or several did. `nano_usd`: what it cost."""

    tenant: str
    model: str
    route: str = ""  # empty: the model was named itself
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    nano_usd: int = 0
    requests: int = 1


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows are asked for. Days are `YYYY-MM-DD`, both included; empty: from the first, to the last."""

    first: str = ""
    last: str = ""
    by_month: bool = False
    tenant: str | None = None
    model: str | None = None
    limit: int = 10_000
    offset: int = 0


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


def note_usage(db: sqlite3.Connection, day: str, used: Used, budgeted: int = 0) -> None:
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
    )
    if not any(amounts):
        return
    changed = db.execute(
        "UPDATE usage SET requests = requests + ?, prompt = prompt + ?, cached = cached + ?, written = written + ?, "
        "output = output + ?, nano_usd = nano_usd + ?, budgeted = budgeted + ? "
        "WHERE day = ? AND tenant = ? AND model = ? AND route = ?",
        (*amounts, day, used.tenant, used.model, used.route),
    ).rowcount
    if changed:
        return
    (rows,) = db.execute(
        "SELECT COUNT(*) FROM (SELECT 1 FROM usage WHERE day = ? LIMIT ?)", (day, MAX_DAY_ROWS)
    ).fetchone()
    tenant = used.tenant if rows < MAX_DAY_ROWS else OTHERS
    db.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (day, tenant, model, route) DO UPDATE SET requests = requests + excluded.requests, "
        "prompt = prompt + excluded.prompt, cached = cached + excluded.cached, "
        "written = written + excluded.written, output = output + excluded.output, "
        "nano_usd = nano_usd + excluded.nano_usd, budgeted = budgeted + excluded.budgeted",
        (day, tenant, used.model, used.route, *amounts),
    )


def usage_rows(db: sqlite3.Connection, query: UsageQuery) -> list[UsageRow]:
    """Return the rows of a query, by period, tenant and model."""
    period = "substr(day, 1, 7)" if query.by_month else "day"
    where, values = _where(query)
    rows = db.execute(
        f"SELECT {period}, tenant, model, SUM(requests), SUM(prompt), SUM(cached), SUM(written), SUM(output), "
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


def drop_old_usage(db: sqlite3.Connection) -> int:
    """Let some rows of the oldest day go where more is kept than is to be; return how many.

    By the number of days and not by their dates, so that a clock that was wrong once costs no history.
    """
    (rows,) = db.execute("SELECT COUNT(*) FROM usage").fetchone()
    days = db.execute("SELECT COUNT(DISTINCT day) FROM usage").fetchone()[0]
    if rows <= MAX_USAGE_ROWS and days <= KEPT_DAYS:
        return 0
    return db.execute(
        "DELETE FROM usage WHERE (day, tenant, model, route) IN "
        "(SELECT day, tenant, model, route FROM usage WHERE day = (SELECT MIN(day) FROM usage) LIMIT ?)",
        (ROWS_AT_ONCE,),
    ).rowcount
