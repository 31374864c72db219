"""Responses in an SQLite file, where their clients or the configuration want them written down.

What is deleted, and what has expired, is overwritten: in the file, and in the log that SQLite keeps beside it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.server.responses.record import KeptResponse
from weighbridge.state.database import DatabaseSchema, as_state_error, open_database, transaction
from weighbridge.state.schema import unchanged

#: What the file is called under WEIGHBRIDGE_HOME, unless it is told otherwise.
RESPONSES_FILE = "responses.sqlite"
#: Bytes of responses in the file: of one tenant, and in all. The oldest make room for new ones.
TENANT_FILE_BYTES, FILE_BYTES = 1 << 30, 8 << 30
#: Responses that go in one transaction, which somebody waits for.
ROWS_AT_ONCE = 200
#: Seconds that another process is waited for.
WAIT_SECONDS = 5.0

_FIRST = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, made REAL NOT NULL, expires REAL NOT NULL, previous TEXT,
    labels BLOB NOT NULL, only_edge INTEGER NOT NULL, response BLOB NOT NULL, input BLOB NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE INDEX responses_tenant ON responses (tenant, made);
CREATE INDEX responses_expires ON responses (expires);
CREATE TABLE items (
    id TEXT NOT NULL, tenant TEXT NOT NULL, response TEXT NOT NULL, PRIMARY KEY (id, tenant, response)
) WITHOUT ROWID;
CREATE INDEX items_response ON items (response);
CREATE TABLE held (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID
"""

RESPONSES = DatabaseSchema(
    "file of responses", (unchanged,), 0x57425250, _FIRST, frozenset({"responses", "items", "held"})
)

_encode, _decode = msgspec.json.encode, msgspec.json.decode
_COLUMNS = "id, tenant, made, response, input, previous, labels, only_edge"


class ResponseFile:
    """One file. Any thread may use it, one at a time. Raises StateError where the file cannot be used."""

    def __init__(
        self, path: Path, *, tenant_bytes: int = TENANT_FILE_BYTES, all_bytes: int = FILE_BYTES
    ) -> None:
        """Raises BadInput where the file cannot be opened."""
        self._path = path
        self._tenant_bytes, self._all_bytes = tenant_bytes, all_bytes
        self._lock = threading.Lock()
        self._to_erase = False  # the log still has what was deleted
        self._db = open_database(path, RESPONSES, wait_s=WAIT_SECONDS, durable=True, private=True)
        self._db.execute("PRAGMA secure_delete=ON")

    def put(self, record: KeptResponse, expires: float) -> None:
        """Write a response down; older ones of its tenant, and then of all, go where there is no room."""
        size = len(record.response) + len(record.input)
        row = (
            *(record.id, record.tenant, record.made_at, expires, record.previous),
            *(_encode(sorted(record.labels)), record.only_edge, record.response, record.input, size),
        )
        with self._transaction() as db:
            self._make_room(db, record.tenant, size)
            db.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.executemany(
                "INSERT OR IGNORE INTO items VALUES (?, ?, ?)",
                [(name, record.tenant, record.id) for name in record.names],
            )
            db.execute(
                "INSERT INTO held VALUES (?, ?) ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes",
                (record.tenant, size),
            )
        self._erase()

    def get(self, name: str, now: float) -> KeptResponse | None:
        with self._lock, as_state_error(RESPONSES.name, self._path):
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM responses WHERE id = ? AND expires > ?", (name, now)
            ).fetchone()
        return _record(found) if found is not None else None

    def with_item(self, name: str, tenant: str | None, now: float) -> KeptResponse | None:
        """The newest response that has an item of this name; `tenant`: whose it must be."""
        columns = ", ".join(f"responses.{one}" for one in _COLUMNS.split(", "))
        with self._lock, as_state_error(RESPONSES.name, self._path):
            found = self._db.execute(
                f"SELECT {columns} FROM items JOIN responses ON responses.id = items.response "
                "WHERE items.id = ?1 AND (?2 IS NULL OR items.tenant = ?2) AND expires > ?3 "
                "ORDER BY made DESC LIMIT 1",
                (name, tenant, now),
            ).fetchone()
        return _record(found) if found is not None else None

    def remove(self, name: str) -> bool:
        """Erase a response; False where there is none."""
        with self._transaction() as db:
            removed = _remove(db, "id = ?", name)
            self._to_erase = True
        self._erase()
        return removed > 0

    def purge(self, now: float) -> int:
        """Erase what has expired; return how many."""
        total = 0
        while True:
            with self._transaction() as db:
                removed = _remove(
                    db, "id IN (SELECT id FROM responses WHERE expires <= ? LIMIT ?)", now, ROWS_AT_ONCE
                )
            total += removed
            self._to_erase = self._to_erase or removed > 0
            if removed < ROWS_AT_ONCE:
                break
        self._erase()
        return total

    def close(self) -> None:
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, as_state_error(RESPONSES.name, self._path), transaction(self._db) as db:
            yield db

    def _make_room(self, db: sqlite3.Connection, tenant: str, size: int) -> None:
        while _sum(db, "WHERE tenant = ?", tenant) + size > self._tenant_bytes:
            query = "id IN (SELECT id FROM responses WHERE tenant = ? ORDER BY made LIMIT 1)"
            if not _remove(db, query, tenant):
                break
            self._to_erase = True
        while _sum(db) + size > self._all_bytes:
            if not _remove(db, "id IN (SELECT id FROM responses ORDER BY made LIMIT 1)"):
                break
            self._to_erase = True

    def _erase(self) -> None:
        """Write the log into the file and empty it, for it has the pages as they were; where other processes are in
        the way, at the next time."""
        with self._lock, as_state_error(RESPONSES.name, self._path):
            if self._to_erase:
                busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._to_erase = bool(busy)


def _sum(db: sqlite3.Connection, where: str = "", *values: Any) -> int:
    (total,) = db.execute(f"SELECT COALESCE(SUM(bytes), 0) FROM held {where}", values).fetchone()
    return int(total)


def _remove(db: sqlite3.Connection, where: str, *values: Any) -> int:
    """Delete the responses that a condition names, with all that is known of them; return how many there were."""
    rows = db.execute(f"SELECT id, tenant, bytes FROM responses WHERE {where}", values).fetchall()
    db.executemany("DELETE FROM items WHERE response = ?", [(name,) for name, _, _ in rows])
    db.executemany("DELETE FROM responses WHERE id = ?", [(name,) for name, _, _ in rows])
    db.executemany(
        "UPDATE held SET bytes = bytes - ? WHERE tenant = ?", [(size, whose) for _, whose, size in rows]
    )
    db.execute("DELETE FROM held WHERE bytes <= 0")
    return len(rows)


def _record(row: Any) -> KeptResponse:
    name, tenant, made, response, given, previous, labels, only_edge = row
    return KeptResponse(
        name, tenant, made, response, given, previous, frozenset(_decode(labels)), bool(only_edge)
    )
