"""The journal: an SQLite file from which an interrupted run goes on without repeating its effects.

Every call of the committed world has a key: the step's name, its arguments, and how many times it was called
with them before. Results of pure and read steps are written now and then; before a write starts, all of them
and the fact that it starts are on disk, and after it its result. So a run that is killed and resumed finds
everything its effects rested on. A write that had started but not ended is in doubt: it is never simply done
again; its `settle` function says whether it happened.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from weighbridge.errors import BadInput
from weighbridge.flow.journal.run_journal import RunJournal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, flow TEXT NOT NULL, arguments TEXT NOT NULL, arguments_digest TEXT NOT NULL,
    status TEXT NOT NULL, began REAL NOT NULL, ended REAL, result BLOB, error TEXT, record BLOB);
CREATE TABLE IF NOT EXISTS steps (
    run_id TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, effect TEXT NOT NULL, state TEXT NOT NULL,
    value BLOB, usd REAL NOT NULL DEFAULT 0, at REAL NOT NULL, PRIMARY KEY (run_id, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learned (flow TEXT PRIMARY KEY, record BLOB NOT NULL);
"""


class Journal:
    """One SQLite file, shared by any number of runs and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise BadInput(
                f"journal {path}: {error}; give the path of an SQLite file or a new one"
            ) from error

    def close(self) -> None:
        self.connection.close()

    def runs(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return runs, the latest first: id, flow, arguments, status, times."""
        names = ("run_id", "flow", "arguments", "status", "began", "ended", "error")
        query = f"SELECT {', '.join(names)} FROM runs ORDER BY began DESC LIMIT ?"
        return [dict(zip(names, row, strict=True)) for row in self.connection.execute(query, (limit,))]

    def record_of(self, run_id: str) -> bytes:
        """Return the saved record of a run that has ended. Raises BadInput if there is none."""
        row = self.connection.execute(
            "SELECT record, status FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if row is None:
            latest = ", ".join(run["run_id"] for run in self.runs(5)) or "none yet"
            raise BadInput(f"journal {self.path} has no run {run_id!r}; the latest are: {latest}")
        if row[0] is None:
            raise BadInput(f"run {run_id} is {row[1]} and has no timeline yet; let it end, or resume it")
        return bytes(row[0])

    @contextmanager
    def open_run(
        self, flow: str, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[RunJournal]:
        """Begin or resume a run; one process at a time. Raises BadInput for other arguments than before."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
            raise BadInput(f"run id {run_id!r}: use up to 100 letters, digits, dots, dashes and underscores")
        lock = filelock.FileLock(f"{self.path}.{run_id}.lock", timeout=0)
        try:
            with lock:
                yield RunJournal(self.connection, flow, run_id, args, kwargs)
        except filelock.Timeout:
            raise BadInput(f"run {run_id} is being executed by another process; wait for it") from None
        finally:
            self.close()
            if not lock.is_locked:
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
