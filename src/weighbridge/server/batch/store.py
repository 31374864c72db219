"""Files and batches in SQLite: in a file, where one is configured, else in memory.

What a line was answered is committed before anything else hears of it, and only once, so that whoever is killed goes
on where it was. What is deleted, and what has expired, is overwritten, in the log of the file too.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.server.batch.lines import BatchLine, unanswered
from weighbridge.server.batch.records import (
    BATCH_OUTPUT,
    CANCELLING,
    FINAL,
    IN_PROGRESS,
    BatchRecord,
    FileRecord,
    Problem,
)
from weighbridge.state.database import DatabaseSchema, as_state_error, open_database, transaction
from weighbridge.state.schema import unchanged

#: Bytes in which contents are kept and read.
PIECE = 256 << 10
#: Rows of one look, and of one transaction that somebody waits for.
ROWS_AT_ONCE = 500
#: Seconds that another process is waited for.
WAIT_SECONDS = 5.0
#: About what a batch, or a line of one, takes beside its answer.
BATCH_BYTES, LINE_BYTES = 2048, 128

_FIRST = """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, purpose TEXT NOT NULL,
    expires REAL NOT NULL, bytes INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE INDEX files_expires ON files (expires);
CREATE TABLE parts (
    file TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (file, number)
);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, over INTEGER NOT NULL,
    expires REAL NOT NULL, bytes INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE INDEX batches_over ON batches (over, expires);
CREATE TABLE lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    name TEXT NOT NULL, model TEXT NOT NULL, restricted INTEGER NOT NULL, failed INTEGER, answer BLOB,
    PRIMARY KEY (batch, number)
);
CREATE TABLE held (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID
"""

BATCHES = DatabaseSchema(
    "file of batches", (unchanged,), 0x57424254, _FIRST, frozenset({"files", "parts", "batches", "lines"})
)

_encode = msgspec.json.encode
_files, _batches = msgspec.json.Decoder(FileRecord), msgspec.json.Decoder(BatchRecord)


class NoRoom(Exception):
    """There is no room for more; `mine`: the tenant has used up its own."""

    def __init__(self, mine: bool, bound: int) -> None:
        super().__init__()
        self.mine = mine
        self.bound = bound


class NoSuchRow(Exception):
    """A list cannot go on behind what is not there."""


@dataclass(frozen=True, slots=True)
class LineOutcome:
    """What became of a line. `answer`: its line of the output file, or of the error file where it has `failed`."""

    line: BatchLine
    failed: bool
    answer: bytes
    used: Usage | None = None


class BatchStore:
    """One file, or memory. Any thread may use it, one at a time. Raises StateError where the file cannot be used."""

    def __init__(self, path: Path | None, *, tenant_bytes: int, all_bytes: int) -> None:
        """Raises BadInput where the file cannot be opened."""
        self.path = path
        self.tenant_bytes, self.all_bytes = tenant_bytes, all_bytes
        self._where = path if path is not None else "in memory"
        self._lock = threading.Lock()
        self._to_erase = False
        self._db = open_database(path, BATCHES, wait_s=WAIT_SECONDS, durable=True, private=True)
        self._db.execute("PRAGMA secure_delete=ON")

    # -- files -----------------------------------------------------------------------------------------

    def add_file(self, record: FileRecord, content: bytes) -> None:
        """Raises NoRoom."""
        with self._transaction() as db:
            self._check_room(db, record.tenant, len(content))
            _put_file(db, record, [content])

    def file(self, name: str, now: float) -> FileRecord | None:
        with self._reading() as db:
            found = db.execute(
                "SELECT record FROM files WHERE id = ? AND expires > ?", (name, now)
            ).fetchone()
        return _files.decode(found[0]) if found is not None else None

    def files(
        self, tenant: str | None, now: float, *, purpose: str | None, after: str | None, limit: int, asc: bool
    ) -> list[FileRecord]:
        """A page of a tenant's files, or of everybody's. Raises NoSuchRow."""
        with self._reading() as db:
            seq = _behind(db, "files", after, asc)
            rows = db.execute(
                "SELECT record FROM files WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR purpose = ?2) "
                f"AND expires > ?3 AND seq {'>' if asc else '<'} ?4 ORDER BY seq {'ASC' if asc else 'DESC'} LIMIT ?5",
                (tenant, purpose, now, seq, limit),
            ).fetchall()
        return [_files.decode(row[0]) for row in rows]

    def piece(self, name: str, number: int) -> bytes | None:
        """A piece of a content; None behind the last."""
        with self._reading() as db:
            found = db.execute(
                "SELECT data FROM parts WHERE file = ? AND number = ?", (name, number)
            ).fetchone()
        return found[0] if found is not None else None

    def content(self, name: str) -> bytes:
        with self._reading() as db:
            return b"".join(
                [
                    row[0]
                    for row in db.execute("SELECT data FROM parts WHERE file = ? ORDER BY number", (name,))
                ]
            )

    def remove_file(self, name: str) -> bool:
        """Erase a file; False where there is none, or where a batch still reads it."""
        with self._transaction() as db:
            removed = _remove_files(db, "id = ?", name)
            self._to_erase = self._to_erase or removed > 0
        self._erase()
        return removed > 0

    # -- batches ---------------------------------------------------------------------------------------

    def add_batch(self, record: BatchRecord, expires: float, most_open: int) -> bool:
        """Raises NoRoom; False where the tenant has `most_open` batches that are not over."""
        with self._transaction() as db:
            (count,) = db.execute(
                "SELECT COUNT(*) FROM batches WHERE tenant = ? AND NOT over", (record.tenant,)
            ).fetchone()
            if count >= most_open:
                return False
            self._check_room(db, record.tenant, BATCH_BYTES)
            db.execute(
                "INSERT INTO batches (id, tenant, over, expires, bytes, record) VALUES (?, ?, 0, ?, ?, ?)",
                (record.id, record.tenant, expires, BATCH_BYTES, _encode(record)),
            )
            _hold(db, record.tenant, BATCH_BYTES)
        return True

    def batch(self, name: str, now: float) -> BatchRecord | None:
        with self._reading() as db:
            found = db.execute(
                "SELECT record FROM batches WHERE id = ? AND (expires > ? OR NOT over)", (name, now)
            ).fetchone()
        return _batches.decode(found[0]) if found is not None else None

    def batches(self, tenant: str | None, now: float, after: str | None, limit: int) -> list[BatchRecord]:
        """A page of a tenant's batches, the newest first. Raises NoSuchRow."""
        with self._reading() as db:
            seq = _behind(db, "batches", after, False)
            rows = db.execute(
                "SELECT record FROM batches WHERE (?1 IS NULL OR tenant = ?1) AND (expires > ?2 OR NOT over) "
                "AND seq < ?3 ORDER BY seq DESC LIMIT ?4",
                (tenant, now, seq, limit),
            ).fetchall()
        return [_batches.decode(row[0]) for row in rows]

    def unfinished(self) -> list[BatchRecord]:
        """The batches that are not over, the oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT record FROM batches WHERE NOT over ORDER BY seq").fetchall()
        return [_batches.decode(row[0]) for row in rows]

    def change(self, name: str, change: Callable[[BatchRecord], None]) -> BatchRecord | None:
        """Change a batch that is not over; None where there is none."""
        with self._transaction() as db:
            record = _open_batch(db, name)
            if record is not None:
                change(record)
                _write_batch(db, record)
        return record

    # -- lines -----------------------------------------------------------------------------------------

    def begin(self, name: str, lines: Sequence[BatchLine], model: str | None, now: float) -> None:
        """Note the lines of a batch, which begins. Raises NoRoom."""
        with self._transaction() as db:
            record = _open_batch(db, name)
            if record is None or record.status == CANCELLING:
                return
            self._check_room(db, record.tenant, LINE_BYTES * len(lines))
            db.execute("DELETE FROM lines WHERE batch = ?", (name,))
            db.executemany(
                "INSERT INTO lines (batch, number, start, length, name, model, restricted) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(name, o.number, o.start, o.length, o.name, o.model, o.is_restricted) for o in lines],
            )
            self._grow(db, record, LINE_BYTES * len(lines))
            record.counts.total, record.model = len(lines), model
            record.enter(IN_PROGRESS, now)
            _write_batch(db, record)

    def waiting(self, record: BatchRecord, behind: int, limit: int) -> list[tuple[BatchLine, bytes]]:
        """The next lines without an answer, with their text."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT number, start, length, name, model, restricted FROM lines "
                "WHERE batch = ? AND number > ? AND answer IS NULL ORDER BY number LIMIT ?",
                (record.id, behind, limit),
            ).fetchall()
            lines = [
                BatchLine(n, start, size, name, model, bool(own)) for n, start, size, name, model, own in rows
            ]
            return [(line, _slice(db, record.input_file_id, line)) for line in lines]

    def put(self, name: str, outcomes: Sequence[LineOutcome]) -> None:
        """Write down what became of lines, each once. An answer for which there is no room becomes a short error."""
        with self._transaction() as db:
            record = _open_batch(db, name)
            if record is None:
                return
            for one in outcomes:
                answer, failed = one.answer, one.failed
                try:
                    self._check_room(db, record.tenant, len(answer))
                except NoRoom:
                    message = "there was no room to keep the answer; delete files"
                    answer = unanswered(name, one.line.number, one.line.name, "storage_full", message)
                    failed = True
                if _answer(db, name, one.line.number, failed, answer):
                    self._grow(db, record, len(answer))
                    _count(record, failed, one.used)
            _write_batch(db, record)

    def fail(self, name: str, problems: Sequence[Problem], status: str, now: float) -> None:
        """End a batch that cannot begin."""

        def ended(record: BatchRecord) -> None:
            record.errors = list(problems)
            record.enter(status, now)

        self.change(name, ended)

    def finish(
        self, name: str, status: str, now: float, expires: float, left: tuple[str, str] | None
    ) -> None:
        """End a batch: what was answered becomes its two files. `left`: code and message for lines without an
        answer; None: they are in neither. Nobody sees one without the other."""
        with self._transaction() as db:
            record = _open_batch(db, name)
            if record is None:
                return
            if left is not None:
                self._give_up(db, record, *left)
            for failed in (False, True):
                made = self._output(db, record, failed, now, expires)
                if failed:
                    record.error_file_id = made
                else:
                    record.output_file_id = made
            self._to_erase = bool(db.execute("DELETE FROM lines WHERE batch = ?", (name,)).rowcount)
            self._shrink(db, record)
            record.enter(status, now)
            _write_batch(db, record)
        self._erase()

    def _give_up(self, db: sqlite3.Connection, record: BatchRecord, code: str, message: str) -> None:
        rows = db.execute(
            "SELECT number, name FROM lines WHERE batch = ? AND answer IS NULL", (record.id,)
        ).fetchall()
        for number, name in rows:
            if _answer(db, record.id, number, True, unanswered(record.id, number, name, code, message)):
                _count(record, True, None)

    def _output(
        self, db: sqlite3.Connection, record: BatchRecord, failed: bool, now: float, expires: float
    ) -> str | None:
        """One of the two files of a batch; None where it would be empty."""
        (size,) = db.execute(
            "SELECT COALESCE(SUM(LENGTH(answer)), 0) FROM lines WHERE batch = ? AND failed = ?",
            (record.id, failed),
        ).fetchone()
        if not size:
            return None
        kind = "error" if failed else "output"
        name = f"file-{record.id.removeprefix('batch_')}{kind}"
        file = FileRecord(
            name, record.tenant, f"{record.id}_{kind}.jsonl", BATCH_OUTPUT, size, int(now), int(expires)
        )
        rows = db.execute(
            "SELECT answer FROM lines WHERE batch = ? AND failed = ? ORDER BY number", (record.id, failed)
        )
        _put_file(db, file, (row[0] for row in rows))
        return name

    # -- room and time ---------------------------------------------------------------------------------

    def purge(self, now: float) -> int:
        """Erase what has expired; return how many rows."""
        total = 0
        while True:
            with self._transaction() as db:
                removed = _remove_files(
                    db, "id IN (SELECT id FROM files WHERE expires <= ? LIMIT ?)", now, ROWS_AT_ONCE
                )
                removed += _remove_batches(db, now)
            total += removed
            self._to_erase = self._to_erase or removed > 0
            if not removed:
                break
        self._erase()
        return total

    def used(self, tenant: str | None = None) -> int:
        """Bytes that are held for a tenant, or for all."""
        with self._reading() as db:
            return _sum(db, tenant)

    def close(self) -> None:
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    def _check_room(self, db: sqlite3.Connection, tenant: str, size: int) -> None:
        if _sum(db, tenant) + size > self.tenant_bytes:
            raise NoRoom(True, self.tenant_bytes)
        if _sum(db, None) + size > self.all_bytes:
            raise NoRoom(False, self.all_bytes)

    def _grow(self, db: sqlite3.Connection, record: BatchRecord, size: int) -> None:
        db.execute("UPDATE batches SET bytes = bytes + ? WHERE id = ?", (size, record.id))
        _hold(db, record.tenant, size)

    def _shrink(self, db: sqlite3.Connection, record: BatchRecord) -> None:
        """Its answers are in files now."""
        (size,) = db.execute("SELECT bytes FROM batches WHERE id = ?", (record.id,)).fetchone()
        self._grow(db, record, BATCH_BYTES - size)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, as_state_error(BATCHES.name, self._where):
            yield self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, as_state_error(BATCHES.name, self._where), transaction(self._db) as db:
            yield db

    def _erase(self) -> None:
        """Write the log into the file and empty it, for it has the pages as they were."""
        if self.path is None:
            return
        with self._reading() as db:
            if self._to_erase:
                busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._to_erase = bool(busy)


def _put_file(db: sqlite3.Connection, record: FileRecord, content: Iterator[bytes] | Sequence[bytes]) -> None:
    db.execute(
        "INSERT INTO files (id, tenant, purpose, expires, bytes, record) VALUES (?, ?, ?, ?, ?, ?)",
        (record.id, record.tenant, record.purpose, record.expires_at, record.size, _encode(record)),
    )
    for number, piece in enumerate(_cut(content)):
        db.execute("INSERT INTO parts VALUES (?, ?, ?)", (record.id, number, piece))
    _hold(db, record.tenant, record.size)


def _cut(content: Iterator[bytes] | Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size."""
    held = bytearray()
    for one in content:
        if not held and len(one) > PIECE:
            whole = len(one) // PIECE * PIECE
            yield from (one[at : at + PIECE] for at in range(0, whole, PIECE))
            one = one[whole:]
        held += one
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    if held:
        yield bytes(held)


def _slice(db: sqlite3.Connection, file: str, line: BatchLine) -> bytes:
    first, last = line.start // PIECE, (line.start + line.length) // PIECE
    rows = db.execute(
        "SELECT data FROM parts WHERE file = ? AND number BETWEEN ? AND ? ORDER BY number",
        (file, first, last),
    )
    text = b"".join([row[0] for row in rows])
    return text[line.start - first * PIECE :][: line.length]


def _behind(db: sqlite3.Connection, table: str, after: str | None, asc: bool) -> int:
    if after is None:
        return -1 if asc else 1 << 62
    found = db.execute(f"SELECT seq FROM {table} WHERE id = ?", (after,)).fetchone()
    if found is None:
        raise NoSuchRow(after)
    return int(found[0])


def _hold(db: sqlite3.Connection, tenant: str, size: int) -> None:
    db.execute(
        "INSERT INTO held VALUES (?, ?) ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes",
        (tenant, size),
    )


def _sum(db: sqlite3.Connection, tenant: str | None) -> int:
    (total,) = db.execute(
        "SELECT COALESCE(SUM(bytes), 0) FROM held WHERE ?1 IS NULL OR tenant = ?1", (tenant,)
    ).fetchone()
    return int(total)


def _open_batch(db: sqlite3.Connection, name: str) -> BatchRecord | None:
    found = db.execute("SELECT record FROM batches WHERE id = ? AND NOT over", (name,)).fetchone()
    return _batches.decode(found[0]) if found is not None else None


def _write_batch(db: sqlite3.Connection, record: BatchRecord) -> None:
    db.execute(
        "UPDATE batches SET record = ?, over = ? WHERE id = ?",
        (_encode(record), record.status in FINAL, record.id),
    )


def _answer(db: sqlite3.Connection, batch: str, number: int, failed: bool, answer: bytes) -> bool:
    """Note the answer of a line; False where it has one."""
    changed = db.execute(
        "UPDATE lines SET answer = ?, failed = ? WHERE batch = ? AND number = ? AND answer IS NULL",
        (answer, failed, batch, number),
    )
    return changed.rowcount > 0


def _count(record: BatchRecord, failed: bool, used: Usage | None) -> None:
    if failed:
        record.counts.failed += 1
    else:
        record.counts.completed += 1
    if used is not None:
        record.add(used)


def _remove_files(db: sqlite3.Connection, where: str, *values: Any) -> int:
    """Delete files that no batch reads any more."""
    reading = {
        _batches.decode(row[0]).input_file_id
        for row in db.execute("SELECT record FROM batches WHERE NOT over")
    }
    rows = db.execute(f"SELECT id, tenant, bytes FROM files WHERE {where}", values).fetchall()
    rows = [row for row in rows if row[0] not in reading]
    for name, tenant, size in rows:
        db.execute("DELETE FROM parts WHERE file = ?", (name,))
        db.execute("DELETE FROM files WHERE id = ?", (name,))
        _hold(db, tenant, -size)
    db.execute("DELETE FROM held WHERE bytes <= 0")
    return len(rows)


def _remove_batches(db: sqlite3.Connection, now: float) -> int:
    rows = db.execute(
        "SELECT id, tenant, bytes FROM batches WHERE over AND expires <= ? LIMIT ?", (now, ROWS_AT_ONCE)
    ).fetchall()
    for name, tenant, size in rows:
        db.execute("DELETE FROM lines WHERE batch = ?", (name,))
        db.execute("DELETE FROM batches WHERE id = ?", (name,))
        _hold(db, tenant, -size)
    db.execute("DELETE FROM held WHERE bytes <= 0")
    return len(rows)
