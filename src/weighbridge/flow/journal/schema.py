"""The schema of a journal, and what older journals lack."""

from __future__ import annotations

import sqlite3

from weighbridge.state.database import DatabaseSchema

_FIRST = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, flow TEXT NOT NULL, arguments TEXT NOT NULL, arguments_digest TEXT NOT NULL,
    status TEXT NOT NULL, began REAL NOT NULL, ended REAL, result BLOB, error TEXT, record BLOB);
CREATE TABLE steps (
    run_id TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, effect TEXT NOT NULL, state TEXT NOT NULL,
    value BLOB, usd REAL NOT NULL DEFAULT 0, at REAL NOT NULL, PRIMARY KEY (run_id, key)) WITHOUT ROWID;
CREATE TABLE learned (flow TEXT PRIMARY KEY, record BLOB NOT NULL)
"""


def _order(connection: sqlite3.Connection) -> None:
    """Calls have an order: that in which they settled. Version 0 has only the time at which they did."""
    connection.execute("ALTER TABLE steps ADD COLUMN seq INTEGER")
    connection.execute("ALTER TABLE steps ADD COLUMN elapsed REAL NOT NULL DEFAULT 0")
    connection.execute(
        "UPDATE steps SET seq = place FROM (SELECT run_id AS run, key AS call, "
        "ROW_NUMBER() OVER (PARTITION BY run_id ORDER BY at) - 1 AS place FROM steps WHERE state = 'done') "
        "WHERE run_id = run AND key = call"
    )
    connection.execute("CREATE INDEX runs_began ON runs (began)")
    connection.execute("CREATE INDEX runs_ended ON runs (status, ended)")


#: `seq`: the place of a call among those that settled. `elapsed`: seconds from the beginning of the run's life.
JOURNAL = DatabaseSchema("journal", (_order,), 0x57424A4C, _FIRST, frozenset({"runs", "steps", "learned"}))
