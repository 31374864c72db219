"""The journal: an SQLite file from which an interrupted run goes on without repeating its effects.

Every call of the committed world has a key: the step's name, its arguments, and how many times it was called
with them before. Results of pure and read steps are written now and then; before a write starts, all of them
and the fact that it starts are on disk, and after it its result. So a run that is killed and resumed finds
everything its effects rested on. A write that had started but not ended is in doubt: it is never simply done
again; its `settle` function says whether it happened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from weighbridge.errors import BadInput
from weighbridge.flow.journal.run_journal import RunJournal
from weighbridge.flow.journal.schema import JOURNAL
from weighbridge.flow.journal.upkeep import drop, ended_before
from weighbridge.state.database import as_state_error, open_database, sentence

#: Seconds that a transaction waits for other processes.
WAIT_SECONDS = 5.0


class Journal:
    """One SQLite file, shared by any number of runs and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = open_database(path, JOURNAL, wait_s=WAIT_SECONDS, durable=True)

    def close(self) -> None:
        self.connection.close()

    def runs(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return runs, the latest first: id, flow, arguments, status, times."""
        names = ("run_id", "flow", "arguments", "status", "began", "ended", "error")
        query = f"SELECT {', '.join(names)} FROM runs ORDER BY began DESC LIMIT ?"
        with as_state_error("journal", self.path):
            rows = self.connection.execute(query, (limit,)).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def record_of(self, run_id: str) -> bytes:
        """Return the saved record of a run that has ended. Raises BadInput if there is none."""
        with as_state_error("journal", self.path):
            row = self.connection.execute(
                "SELECT record, status FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        if row is None:
            latest = ", ".join(run["run_id"] for run in self.runs(5)) or "none yet"
            raise BadInput(f"journal {self.path} has no run {run_id!r}; the latest are: {latest}")
        if row[0] is None:
            raise BadInput(f"run {run_id} is {row[1]} and has no timeline yet; let it end, or resume it")
        return bytes(row[0])

    def prune(self, moment: float, *, failed: bool = False) -> tuple[int, int]:
        """Forget runs that were done before a moment (seconds since the epoch); return how many, and how many rows.

        `failed`: also those that failed, which could have been resumed; one that is being executed stays.
        """
        runs = rows = 0
        with as_state_error("journal", self.path):
            for run_id in ended_before(self.connection, moment, ["done", "failed"] if failed else ["done"]):
                with suppress(BadInput), _alone(Path(f"{self.path}.{run_id}.lock"), run_id):
                    rows += drop(self.connection, [], [run_id])
                    runs += 1
            if runs:
                self.connection.execute("VACUUM")
        return runs, rows

    @contextmanager
    def open_run(
        self, flow: str, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[RunJournal]:
        """Begin or resume a run; one process at a time. Raises BadInput for other arguments than before."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
            raise BadInput(f"run id {run_id!r}: use up to 100 letters, digits, dots, dashes and underscores")
        try:
            with _alone(Path(f"{self.path}.{run_id}.lock"), run_id):
                yield RunJournal(self.connection, self.path, flow, run_id, args, kwargs)
        finally:
            self.close()


@contextmanager
def _alone(path: Path, run_id: str) -> Iterator[None]:
    """Be the only one that executes a run. The system forgets the lock with the process that holds it.

    The file goes only while its lock is held: whoever waits with the file that was removed looks again.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BadInput(f"run {run_id} is being executed by another process; wait for it") from None
    except OSError as error:
        raise BadInput(sentence(error, "lock", path)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()
