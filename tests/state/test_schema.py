"""Opening, migrating and copying databases: whole or not at all, and never for ever."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from weighbridge.errors import BadInput
from weighbridge.state.database import (
    DatabaseSchema,
    StateError,
    copy_database,
    open_database,
    version_of,
)


def _grow(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 1")


def _break(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE things ADD COLUMN half INTEGER")
    raise sqlite3.OperationalError("out of order")


FIRST = "CREATE TABLE things (name TEXT)"
OLD = DatabaseSchema("thing", (), 77, FIRST, frozenset({"things"}))
NEW = DatabaseSchema("thing", (_grow,), 77, FIRST, frozenset({"things"}))
BROKEN = DatabaseSchema("thing", (_grow, _break), 77, FIRST, frozenset({"things"}))


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(things)")]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "things"
    open_database(path, NEW, wait_s=1, durable=False).close()
    with pytest.raises(BadInput, match="out of order"):
        open_database(path, BROKEN, wait_s=1, durable=False)
    assert columns(path) == ["name", "size"]
    open_database(path, NEW, wait_s=1, durable=False).close()


def test_new_files_are_what_old_ones_become(tmp_path: Path) -> None:
    open_database(tmp_path / "old", OLD, wait_s=1, durable=True).close()
    for name in ("old", "new"):
        open_database(tmp_path / name, NEW, wait_s=1, durable=True).close()
    with closing(sqlite3.connect(tmp_path / "old")) as old, closing(sqlite3.connect(tmp_path / "new")) as new:
        query = "SELECT sql FROM sqlite_master ORDER BY name"
        assert old.execute(query).fetchall() == new.execute(query).fetchall()
        assert version_of(old, NEW, "old") == version_of(new, NEW, "new") == 1


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []
    ready = threading.Barrier(8)

    def opened() -> None:
        ready.wait()
        try:
            open_database(tmp_path / "things", NEW, wait_s=30, durable=False).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=opened) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert columns(tmp_path / "things") == ["name", "size"]


def test_a_copy_of_a_locked_file_is_given_up(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "things", isolation_level=None)) as other:
        other.execute(FIRST)  # a file without a write-ahead log
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises((StateError, sqlite3.OperationalError), match="locked"):
            copy_database(tmp_path / "things", tmp_path / "copy", wait_s=0.05)
        assert time.monotonic() - began < 60
