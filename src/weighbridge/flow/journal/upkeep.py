"""How much a journal keeps: steps of the latest runs, results of more, and nothing for ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from weighbridge.state.database import transaction

#: Runs that are done: so many keep their steps, and so many their results and records.
RUNS_WITH_STEPS, RUNS_WITH_RESULTS = 100, 10_000
#: Runs that one look drops; in the long run each new one pushes out one.
RUNS_AT_ONCE = 3


def tidy(connection: sqlite3.Connection) -> int:
    """Drop the steps and results of the next runs that are beyond the bounds; return how many rows went."""
    bare, forgotten = (_beyond(connection, bound) for bound in (RUNS_WITH_STEPS, RUNS_WITH_RESULTS))
    return drop(connection, bare, forgotten) if bare or forgotten else 0


def _beyond(connection: sqlite3.Connection, kept: int) -> list[str]:
    query = "SELECT run_id FROM runs WHERE status = 'done' ORDER BY ended DESC LIMIT ? OFFSET ?"
    return [run_id for (run_id,) in connection.execute(query, (RUNS_AT_ONCE, kept))]


def ended_before(connection: sqlite3.Connection, moment: float, statuses: Sequence[str]) -> list[str]:
    """Return the runs with one of these statuses that ended before a moment, in seconds since the epoch."""
    marks = ", ".join("?" * len(statuses))
    rows = connection.execute(
        f"SELECT run_id FROM runs WHERE status IN ({marks}) AND ended < ? ORDER BY ended", (*statuses, moment)
    )
    return [run_id for (run_id,) in rows]


def drop(connection: sqlite3.Connection, bare: Sequence[str], forgotten: Sequence[str]) -> int:
    """Drop the steps of some runs, and others whole; return how many rows went."""
    gone = 0
    with transaction(connection):
        for run_id in [*bare, *forgotten]:
            gone += connection.execute("DELETE FROM steps WHERE run_id = ?", (run_id,)).rowcount
        for run_id in forgotten:
            gone += connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)).rowcount
    return gone
