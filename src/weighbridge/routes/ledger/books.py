"""The ledger's tables: running totals of each day, reservations that are open, and which day it is.

A request changes four totals, so that asking what a tenant has taken costs the same however many tenants there are.
What was settled is in the totals and nowhere else.
"""

from __future__ import annotations

import sqlite3

from weighbridge.fleet.limits.days import current_day
from weighbridge.state.database import DatabaseSchema

#: Days whose totals are kept, and rows in all; beyond that the oldest go first.
KEPT_DAYS = 400
MAX_ROWS = 1_000_000
#: Rows that go in one transaction, which somebody waits for.
ROWS_AT_ONCE = 500
#: An hour that never comes.
LATEST_HOUR = 1 << 62
#: Hours that are kept for windows that roll, and the longest of them.
KEPT_HOURS = 31 * 24

_FIRST = """
CREATE TABLE spending (
    id TEXT PRIMARY KEY, day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL,
    reserved INTEGER NOT NULL, settled INTEGER, at REAL NOT NULL
);
CREATE TABLE taken (
    day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, route)
)
"""

#: The views have the names of older tables, so that a Weighbridge that knows only those cannot spend beside this one.
_TOTALS = """
CREATE TABLE reservations (
    id TEXT PRIMARY KEY, day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, amount INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX reservations_day ON reservations (day);
CREATE TABLE totals (
    day TEXT NOT NULL, kind TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL,
    settled INTEGER NOT NULL, reserved INTEGER NOT NULL, PRIMARY KEY (day, kind, tenant, route)
) WITHOUT ROWID;
CREATE TABLE calendar (
    day TEXT NOT NULL, corrected TEXT, dropped_rows INTEGER NOT NULL, dropped_until TEXT NOT NULL
);
INSERT INTO reservations SELECT id, day, tenant, route, reserved FROM spending WHERE settled IS NULL;
INSERT INTO totals SELECT day, 'pair', tenant, route, COALESCE(SUM(settled), 0),
    COALESCE(SUM(CASE WHEN settled IS NULL THEN reserved END), 0) FROM spending GROUP BY day, tenant, route;
INSERT INTO totals SELECT day, 'tenant', tenant, '', SUM(settled), SUM(reserved)
    FROM totals WHERE kind = 'pair' GROUP BY day, tenant;
INSERT INTO totals SELECT day, 'route', '', route, SUM(settled), SUM(reserved)
    FROM totals WHERE kind = 'pair' GROUP BY day, route;
INSERT INTO totals SELECT day, 'all', '', '', SUM(settled), SUM(reserved)
    FROM totals WHERE kind = 'pair' GROUP BY day;
INSERT INTO calendar SELECT COALESCE(MAX(day), ''), NULL, 0, '' FROM totals;
DROP TABLE spending;
DROP TABLE taken;
CREATE VIEW spending AS SELECT id, day, tenant, route, amount AS reserved FROM reservations;
CREATE VIEW taken AS SELECT day, tenant, route, settled + reserved AS amount FROM totals WHERE kind = 'pair'
"""

#: The totals that a request changes, and whether each is of its tenant, and of its route.
KINDS = (("pair", True, True), ("tenant", True, False), ("route", False, True), ("all", False, False))


def _totals(connection: sqlite3.Connection) -> None:
    """Totals that are kept, where version 0 added up every request of the day."""
    for statement in _TOTALS.split(";"):
        connection.execute(statement)


#: Money of days before this version has no model, and no tokens are known of it. `hours` has what windows that roll
#: need: what was settled and is reserved, by the hour of its reservation.
_USAGE = """
CREATE TABLE usage (
    day TEXT NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, route TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL, written INTEGER NOT NULL,
    output INTEGER NOT NULL, nano_usd INTEGER NOT NULL, budgeted INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, model, route)
) WITHOUT ROWID;
CREATE TABLE hours (
    kind TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, hour INTEGER NOT NULL, amount INTEGER NOT NULL,
    PRIMARY KEY (kind, tenant, route, hour)
) WITHOUT ROWID;
CREATE INDEX hours_hour ON hours (hour);
ALTER TABLE reservations ADD COLUMN hour INTEGER NOT NULL DEFAULT 0;
INSERT INTO usage SELECT day, tenant, '', route, 0, 0, 0, 0, 0, settled, settled
    FROM totals WHERE kind = 'pair' AND settled > 0
"""


def _usage(connection: sqlite3.Connection) -> None:
    """What was used, by tenant and model, beside what was spent; hours, for budgets whose window rolls."""
    for statement in _USAGE.split(";"):
        connection.execute(statement)


def _hidden(connection: sqlite3.Connection) -> None:
    """Of cached tokens, those that a tenant is not shown; of what was written before, all may be of others' texts.

    And an index, so that a tenant who looks at its own reads no other's rows.
    """
    connection.execute("ALTER TABLE usage ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0")
    connection.execute("UPDATE usage SET hidden = cached")
    connection.execute("CREATE INDEX usage_tenant ON usage (tenant, day)")


LEDGER = DatabaseSchema(
    "ledger", (_totals, _usage, _hidden), 0x57424C47, _FIRST, frozenset({"spending", "taken"})
)


def add_hour(db: sqlite3.Connection, hour: int, tenant: str, route: str, amount: int) -> None:
    """Add nano-dollars to an hour's totals."""
    db.executemany(
        "INSERT INTO hours VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, tenant, route, hour) DO UPDATE SET "
        "amount = amount + excluded.amount",
        [
            (kind, tenant if by_tenant else "", route if by_route else "", hour, amount)
            for kind, by_tenant, by_route in KINDS
        ],
    )


def first_kept_hour(db: sqlite3.Connection, hour: int) -> int:
    """Return the hour before which none is kept of those until `hour`: by their number and not by the clock, so that
    one that was ahead for a while costs no window what it has taken."""
    (found,) = db.execute(
        "WITH RECURSIVE latest (hour, number) AS (SELECT MAX(hour), 1 FROM hours WHERE hour <= ? UNION ALL "
        "SELECT (SELECT MAX(hour) FROM hours WHERE hour < latest.hour), number + 1 FROM latest "
        "WHERE hour IS NOT NULL AND number <= ?) SELECT MIN(hour) FROM latest",
        (hour, KEPT_HOURS),
    ).fetchone()
    return int(found or 0)


def drop_hours(db: sqlite3.Connection, first: int, last: int) -> None:
    """Let some hours go that are before `first` or behind `last`."""
    db.execute(
        "DELETE FROM hours WHERE (kind, tenant, route, hour) IN "
        "(SELECT kind, tenant, route, hour FROM hours WHERE hour < ? OR hour > ? LIMIT ?)",
        (first, last, ROWS_AT_ONCE),
    )


def latest_hour(db: sqlite3.Connection) -> int:
    """Return the last hour that took anything; 0 where none has."""
    (found,) = db.execute("SELECT MAX(hour) FROM hours").fetchone()
    return int(found or 0)


def hourly(
    db: sqlite3.Connection, hour: int, hours: int, tenant: str | None, route: str | None, ahead: int | None
) -> list[tuple[int, int]]:
    """Return the hours of a window that ends with `hour`, the oldest first, and what each of them took.

    An hour counts until all of it is so old. `ahead`: when the clock was seen to be behind hours that took something;
    those count as if they were that one, as long as it does.
    """
    counts_ahead = ahead is not None and ahead >= hour - hours
    rows = db.execute(
        "SELECT hour, amount FROM hours WHERE kind = ? AND tenant = ? AND route = ? AND hour BETWEEN ? AND ?",
        (
            *(_kind(tenant, route), tenant or "", route or ""),
            *(hour - hours, LATEST_HOUR if counts_ahead else hour),
        ),
    )
    return sorted((row[0] if ahead is None or row[0] <= hour else ahead, row[1]) for row in rows)


def add(db: sqlite3.Connection, day: str, tenant: str, route: str, *, settled: int, reserved: int) -> None:
    """Add nano-dollars to a day's totals of a tenant and a route."""
    db.executemany(
        "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (day, kind, tenant, route) DO UPDATE SET "
        "settled = settled + excluded.settled, reserved = reserved + excluded.reserved",
        [
            (day, kind, tenant if by_tenant else "", route if by_route else "", settled, reserved)
            for kind, by_tenant, by_route in KINDS
        ],
    )


def total(db: sqlite3.Connection, day: str, tenant: str | None, route: str | None) -> tuple[int, int]:
    """Return what was settled and what is reserved on a day, in nano-dollars; None: of all tenants or routes."""
    row = db.execute(
        "SELECT settled, reserved FROM totals WHERE day = ? AND kind = ? AND tenant = ? AND route = ?",
        (day, _kind(tenant, route), tenant or "", route or ""),
    ).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def month_total(db: sqlite3.Connection, month: str, tenant: str | None, route: str | None) -> int:
    """Return what was settled and is reserved in a month, `YYYY-MM`, in nano-dollars."""
    days = [f"{month}-{number:02}" for number in range(1, 32)]
    (found,) = db.execute(
        f"SELECT COALESCE(SUM(settled + reserved), 0) FROM totals WHERE day IN ({', '.join('?' * len(days))}) "
        "AND kind = ? AND tenant = ? AND route = ?",
        (*days, _kind(tenant, route), tenant or "", route or ""),
    ).fetchone()
    return int(found)


def _kind(tenant: str | None, route: str | None) -> str:
    which = tenant is not None, route is not None
    return next(kind for kind, *by in KINDS if tuple(by) == which)


# -- which day it is -----------------------------------------------------------------------------------------


def read_day(db: sqlite3.Connection, today: str) -> tuple[str, str | None]:
    """Return what `current_day` says of the ledger's calendar."""
    latest, corrected = db.execute("SELECT day, corrected FROM calendar").fetchone()
    return current_day(today, latest, corrected)


def turn_to(db: sqlite3.Connection, today: str) -> tuple[str, bool]:
    """Return the day that it is from now on, and whether it has just begun."""
    latest, before = db.execute("SELECT day, corrected FROM calendar").fetchone()
    day, corrected = current_day(today, latest, before)
    if (day, corrected) != (latest, before):
        db.execute("UPDATE calendar SET day = ?, corrected = ?", (day, corrected))
    return day, day != latest


# -- how much is kept ----------------------------------------------------------------------------------------


def stale_days(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Return the days of which nothing is to be kept any more, and those of which tenants are not.

    By their number and not by the date, so that a clock that was wrong once costs no history.
    """
    days = [
        day
        for (day,) in db.execute(
            "WITH RECURSIVE days (day) AS (SELECT MIN(day) FROM totals UNION ALL "
            "SELECT (SELECT MIN(day) FROM totals WHERE day > days.day) FROM days WHERE day IS NOT NULL) "
            "SELECT day FROM days WHERE day IS NOT NULL"
        )
    ]
    whole, kept = days[:-KEPT_DAYS], days[-KEPT_DAYS:]
    (rows,) = db.execute("SELECT COUNT(*) FROM totals").fetchone()
    details: list[str] = []
    for day in kept[:-1]:
        if rows <= MAX_ROWS:
            break
        (own,) = db.execute(
            "SELECT COUNT(*) FROM totals WHERE day = ? AND kind IN ('pair', 'tenant')", (day,)
        ).fetchone()
        rows -= own
        if own:
            details.append(day)
    return whole, details


def drop(db: sqlite3.Connection, day: str, *, whole: bool) -> int:
    """Let some rows of a day go and count them in the calendar; return how many, 0 when none are left."""
    kinds = "" if whole else "AND kind IN ('pair', 'tenant')"
    rows = db.execute(
        f"SELECT kind, tenant, route FROM totals WHERE day = ? {kinds} LIMIT ?", (day, ROWS_AT_ONCE)
    )
    keys = [(day, *row) for row in rows]
    db.executemany("DELETE FROM totals WHERE day = ? AND kind = ? AND tenant = ? AND route = ?", keys)
    if whole and not keys:
        db.execute("DELETE FROM reservations WHERE day <= ?", (day,))
    db.execute(
        "UPDATE calendar SET dropped_rows = dropped_rows + ?, dropped_until = MAX(dropped_until, ?)",
        (len(keys), day),
    )
    return len(keys)
