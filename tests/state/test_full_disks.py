"""Responses, batches and changes on real disks that are full, or become read-only: what was written stays, what cannot
be is said in a sentence, and all goes on once there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_batches import batch, content_of, file
from tests.server.test_kept_responses import record
from tests.state.small_disk import needs_own_disk, resize, run_on_disk
from weighbridge.errors import BadInput
from weighbridge.server.batch.store import BatchStore
from weighbridge.server.gateway.changes import ChangeLog, FleetAct, FleetChange, NotWritten
from weighbridge.server.responses.file import ResponseFile
from weighbridge.state.database import StateError

NOW = 1000.0


class Responses:
    def __init__(self, disk: Path) -> None:
        self._file = ResponseFile(disk / "responses.sqlite")

    def write(self, number: int) -> None:
        self._file.put(record(f"r{number}", text="t3xt" * 500), 5000.0)

    def has(self, number: int) -> bool:
        return self._file.get(f"r{number}", NOW) is not None

    def close(self) -> None:
        self._file.close()


class Batches:
    def __init__(self, disk: Path) -> None:
        self._store = BatchStore(disk / "batches.sqlite", tenant_bytes=1 << 30, all_bytes=1 << 30)

    def write(self, number: int) -> None:
        content = content_of(20)
        self._store.add_file(file(f"f{number}", content, expires=5000.0), content)
        self._store.add_batch(batch(f"b{number}", f"f{number}"), 5000.0, 1 << 20)

    def has(self, number: int) -> bool:
        found = self._store.batch(f"b{number}", NOW)
        return found is not None and self._store.content(f"f{number}") == content_of(20)

    def close(self) -> None:
        self._store.close()


class Changes:
    def __init__(self, disk: Path) -> None:
        self._path = disk / "changes.jsonl"
        self._log = ChangeLog(self._path)
        self._read: tuple[int, set[str]] = (-1, set())

    def write(self, number: int) -> None:
        self._log.write(FleetChange(NOW, "me", FleetAct.REMOVE, f"c{number}", "m", "here" * 500, None))

    def has(self, number: int) -> bool:
        """Whether one who reads the file anew knows it; that is done once for as long as it is."""
        size = self._path.stat().st_size
        if size != self._read[0]:
            again = ChangeLog(self._path).latest(10_000)
            self._read = size, {getattr(one, "replica", "") for one in again}
        return f"c{number}" in self._read[1]

    def close(self) -> None:
        pass


KINDS: dict[str, Callable[[Path], Any]] = {"responses": Responses, "batches": Batches, "changes": Changes}


def fill(disk: str, kind: str) -> None:
    """Inside: write until the disk is full, then go on with more room, then without leave to write."""
    kept, written, said = KINDS[kind](Path(disk)), 0, ""
    while written < 10_000 and not said:
        try:
            kept.write(written)
        except (StateError, NotWritten) as error:
            said = str(error)
        else:
            written += 1
    assert "free some room" in said
    assert written > 3
    assert all(kept.has(number) for number in range(written)), "what was written is there, and whole"
    resize(disk, "size=64m")
    kept.write(100_000)
    assert kept.has(100_000)
    kept.close()
    again = KINDS[kind](Path(disk))
    assert all(again.has(number) for number in range(written))
    assert again.has(100_000)
    again.close()
    resize(disk, "ro")
    with pytest.raises((StateError, NotWritten, BadInput), match=r"read-only|cannot be (written|opened)"):
        KINDS[kind](Path(disk)).write(100_001)


@needs_own_disk
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_disk_does_not_take_costs_nothing_that_it_took(kind: str, tmp_path: Path) -> None:
    done = run_on_disk(f"{__name__}:fill", tmp_path / "disk", "1m", kind)
    assert done.returncode == 0, done.stderr
