"""SQLite files that many processes share: opened, brought to this version, and never waited for without a bound.

Whatever goes wrong is one sentence that names the file, what is the matter, and what to do about it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BadInput, Inside, WeighbridgeError
from weighbridge.state.schema import Schema

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked; find out which, or try again",
    sqlite3.SQLITE_LOCKED: "another connection keeps it locked; try again",
    sqlite3.SQLITE_FULL: "the disk is full; free some room",
    sqlite3.SQLITE_READONLY: "it cannot be written; check the permissions of file and directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened as an SQLite file; check the path and the permissions",
    sqlite3.SQLITE_PERM: "it cannot be opened; check the permissions of file and directory",
    sqlite3.SQLITE_NOTADB: "it is no SQLite file; name another one",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup, or move it away",
    sqlite3.SQLITE_IOERR: "the disk failed; look at the system's log",
}
#: What the system says of a disk that takes no more.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StateError(WeighbridgeError):
    """A file of ours cannot be read or written now."""


@dataclass(frozen=True, slots=True)
class DatabaseSchema(Schema[sqlite3.Connection]):
    """The schema of an SQLite file. A new file is one of version 0, migrated, so that both are the same.

    `application_id` is SQLite's own mark for a kind of file; version 0 has none and is known by its `tables`.
    """

    application_id: int
    first: str  # what makes a file of version 0
    tables: frozenset[str]


def reason(error: Exception) -> str:
    """Say what is wrong with a file, and what to do about it, without naming it."""
    if isinstance(error, OSError):
        if error.errno is None:  # in words of our own
            return str(error)
        remedy = "free some room" if error.errno in _FULL else "check the path and its permissions"
        return f"{(error.strerror or str(error)).lower()}; {remedy}"
    code = getattr(error, "sqlite_errorcode", None)
    return _REMEDIES.get(code & 0xFF, str(error)) if code is not None else str(error)


def sentence(error: Exception, name: str, where: object) -> str:
    """Say what is wrong with the file of a kind, and what to do about it."""
    return f"the {name} {where}: {reason(error)}"


@contextmanager
def as_state_error(name: str, where: object) -> Iterator[None]:
    """Raise StateError with a sentence for errors of SQLite and of the system. Only who runs the server is told where
    its files are."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        plainly = f"the {name} of this server cannot be used now; who runs it sees why in its log"
        raise StateError(Inside(sentence(error, name, where), plainly)) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of what is done within or nothing of it, alone among those who write to the file. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def open_database(
    path: Path | None, schema: DatabaseSchema, *, wait_s: float, durable: bool, private: bool = False
) -> sqlite3.Connection:
    """Return a connection to a file of this version; one that does not exist is made, an older one is migrated.

    `path`: None for one in memory. `wait_s`: how long each transaction waits for other processes. `durable`: what is
    committed survives a power cut, not only a crash of the process. `private`: it holds what people wrote, and a
    file that is made is its owner's alone. The connection may be used by any one thread at a time. Raises BadInput,
    also for a file of another kind and for a version from the future.
    """
    where = path if path is not None else "in memory"
    try:
        with as_state_error(schema.name, where):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if private:
                    with suppress(OSError):  # SQLite will say it in the words of all
                        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = connect(path, wait_s)
    except StateError as error:
        raise BadInput(str(error)) from error
    try:
        with as_state_error(schema.name, where):
            found = version_of(connection, schema, str(where))
            _use_wal(connection, wait_s)
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            if found != schema.version:
                migrate(connection, schema, str(where))
    except BaseException as error:
        connection.close()
        if isinstance(error, StateError):
            raise BadInput(str(error)) from error
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, wait_s: float) -> None:
    """Let readers and a writer work side by side. SQLite itself does not wait for others when it changes this."""
    until = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
        time.sleep(0.01)


def connect(path: Path | None, wait_s: float, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection that begins transactions only when told to. Raises sqlite3.Error."""
    name = ":memory:" if path is None else str(path)
    if read_only and path is not None:
        name = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(
        name,
        timeout=wait_s,
        isolation_level=None,
        check_same_thread=False,
        uri=read_only and path is not None,
    )


def version_of(connection: sqlite3.Connection, schema: DatabaseSchema, where: str) -> int:
    """Return the version of a file; an empty one has -1. Raises BadInput where it is none of this kind."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (count,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if not count and not version:
        return -1
    if not is_of(connection, schema):
        raise BadInput(f"{where} is an SQLite file, but no {schema.name}; name another file")
    return schema.check(version, where)


def is_of(connection: sqlite3.Connection, schema: DatabaseSchema) -> bool:
    """Tell whether a file is of this kind, whatever its version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application:
        return bool(application == schema.application_id)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return schema.tables <= tables


def check_version(connection: sqlite3.Connection, schema: DatabaseSchema, where: str) -> None:
    """Raises BadInput where somebody has brought an open file to another version than this one's."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != schema.version:
        schema.check(version, where)
        raise BadInput(f"{where} is a {schema.name} of an older version again; restart Weighbridge")


def migrate(connection: sqlite3.Connection, schema: DatabaseSchema, where: str) -> None:
    """Bring a file to this version, whole or not at all, also while other processes look. Raises sqlite3.Error."""
    with transaction(connection):
        found = version_of(connection, schema, where)  # another process may have been first
        if found < 0:
            for statement in schema.first.split(";"):
                connection.execute(statement)
        if found != schema.version:
            schema.upgrade(connection, max(found, 0), where)
            connection.execute(f"PRAGMA application_id={schema.application_id}")
            connection.execute(f"PRAGMA user_version={schema.version}")


def damage(connection: sqlite3.Connection) -> str:
    """Return what SQLite's own check finds wrong with a file; empty: nothing. Raises sqlite3.Error."""
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(5)")]
    return "" if found == ["ok"] else "; ".join(found)


def _give_up(status: int, remaining: int, total: int) -> None:
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise StateError(_REMEDIES[status])


def copy_database(source: Path, target: Path, *, wait_s: float) -> None:
    """Copy a file as it is at one moment, while others write to it. `target` must not exist.

    `wait_s`: how long a lock is waited for. Raises sqlite3.Error, and StateError for a file that stays locked.
    """
    reading = connect(source, wait_s, read_only=True)
    try:
        writing = connect(target, wait_s)
        try:
            # In one step: else it starts again whenever another process writes. SQLite itself would wait for ever.
            reading.backup(writing, pages=-1, progress=_give_up)
            writing.execute("PRAGMA journal_mode=DELETE")
        finally:
            writing.close()
    finally:
        reading.close()
