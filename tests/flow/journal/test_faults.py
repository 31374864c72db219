"""Journals under faults: locks, full disks, damaged files, clocks that jump."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.state.small_disk import needs_own_disk, resize, run_on_disk
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow import NotDone, flow, idempotency_key, step
from weighbridge.flow.journal import journal as journal_module
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.state.database import StateError

SLOW = """
import asyncio, os, sys
from pathlib import Path
from weighbridge.flow import flow, step

@step
async def send() -> str:
    with open("sent", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not Path("go").exists():
        await asyncio.sleep(0.02)
    return "sent"

@flow
async def body() -> str:
    return await send()
"""


def flow_run(directory: Path, *words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "weighbridge",
        "flow",
        "run",
        "slow.py:body",
        "--journal",
        "j.db",
        *words,
    ]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def appears(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.02)


def test_a_run_that_is_refused_takes_nobodys_lock(tmp_path: Path) -> None:
    """A runs, B with the same id is refused, and so is C: what A does is done once."""
    (tmp_path / "slow.py").write_text(SLOW)
    first = flow_run(tmp_path, "--run-id", "r1")
    try:
        appears(tmp_path / "sent")
        for _ in range(2):
            refused = flow_run(tmp_path, "--run-id", "r1")
            _, error = refused.communicate(timeout=60)
            assert refused.returncode == 2
            assert error.count("\n") == 1
            assert "is being executed by another process" in error
        assert list(tmp_path.glob("*.lock"))
    finally:
        (tmp_path / "go").touch()
        out, _ = first.communicate(timeout=60)
    assert out == "sent\n"
    assert len((tmp_path / "sent").read_text().splitlines()) == 1
    assert not list(tmp_path.glob("*.lock")), "its holder has taken it away"


def test_the_lock_of_a_killed_run_dies_with_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    killed = flow_run(tmp_path, "--run-id", "r1")
    appears(tmp_path / "sent")
    killed.kill()
    killed.communicate(timeout=60)
    again = flow_run(tmp_path, "--run-id", "r1")
    _, error = again.communicate(timeout=60)
    assert "send had started when run r1 was interrupted" in error


# -- files ---------------------------------------------------------------------------------------------------


@step(effect="read", name="look")
async def look(n: int) -> str:
    return "x" * n


def a_run(path: Path, run_id: str = "r1") -> Any:
    @flow(name="body")
    async def body() -> int:
        return len(await look(4000))

    return body.options(journal=path, run_id=run_id)


def test_a_file_that_is_no_journal_is_named_in_a_sentence(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no database at all, " * 100)
    with pytest.raises(BadInput, match="it is no SQLite file; name another one"):
        run_virtual(a_run(garbage)())
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(BadInput, match="is an SQLite file, but no journal"):
        run_virtual(a_run(other)())
    with pytest.raises(BadInput, match="the journal /proc/no/where"):
        run_virtual(a_run(Path("/proc/no/where"))())


def test_a_damaged_journal_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    for n in range(20):
        run_virtual(a_run(path, f"r{n}")())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // size):  # all but the first, which has the schema
        data[page * size : page * size + 64] = os.urandom(64)
    path.write_bytes(data)
    with pytest.raises(WeighbridgeError, match=r"the journal .*: it is damaged; restore it from a backup"):
        run_virtual(a_run(path, "r3")())


def test_a_locked_journal_is_not_waited_for_without_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j.sqlite"
    run_virtual(a_run(path)())
    monkeypatch.setattr(journal_module, "WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="another process keeps it locked"):
            run_virtual(a_run(path, "r2")())
    assert run_virtual(a_run(path, "r2")()) == 4000
    assert journal_module.WAIT_SECONDS <= 5.0


def test_a_clock_that_goes_back_leaves_no_run_that_ended_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2e9]
    monkeypatch.setattr(time, "time", lambda: now[0])

    @step(effect="read")
    async def jump() -> None:
        now[0] -= 1e6

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> None:
        await jump()

    run_virtual(body())
    journal = Journal(tmp_path / "j.sqlite")
    [run] = journal.runs()
    journal.close()
    assert run["ended"] == run["began"] == 2e9


# -- a disk that is full -------------------------------------------------------------------------------------


def write_until_full(disk: str, outside: str) -> None:
    """In a process on a small disk: run a flow that needs more than it has; then make room and run it again."""
    effects = Path(outside) / "effects"

    async def settled(n: int) -> int:
        if effects.exists() and idempotency_key() in effects.read_text():
            return n
        raise NotDone("no such line")

    @step(settle=settled, name="send")
    async def send(n: int) -> int:
        with effects.open("a") as file:
            file.write(f"{idempotency_key()} {n}\n")
        return n

    @flow(journal=Path(disk) / "j.sqlite", run_id="r1")
    async def body() -> int:
        total = 0
        for n in range(60):
            total += len(await look(4000 + n))
            await send(n)
        return total

    try:
        run_virtual(body())
    except StateError as error:
        print(json.dumps([str(error), len(effects.read_text().splitlines())]))
    resize(disk, "size=8m")
    print(json.dumps(run_virtual(body())))


@needs_own_disk
@pytest.mark.parametrize("size", ["200k", "400k", "600k"])
def test_no_effect_starts_that_a_full_disk_cannot_remember(tmp_path: Path, size: str) -> None:
    done = run_on_disk(f"{__name__}:write_until_full", tmp_path / "disk", size, str(tmp_path))
    assert done.returncode == 0, done.stderr
    told, result = map(json.loads, done.stdout.splitlines())
    assert told[0].endswith("j.sqlite: the disk is full; free some room")
    assert told[1] < 60
    assert result == sum(4000 + n for n in range(60))
    lines = [line.split()[1] for line in (tmp_path / "effects").read_text().splitlines()]
    assert lines == [str(n) for n in range(60)], "each once, in order"


def write_read_only(disk: str) -> None:
    run_virtual(a_run(Path(disk) / "j.sqlite")())
    resize(disk, "ro")
    for run_id in ("r1", "r2"):
        try:
            run_virtual(a_run(Path(disk) / "j.sqlite", run_id)())
        except BadInput as error:
            print(error)


@needs_own_disk
def test_a_journal_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    done = run_on_disk(f"{__name__}:write_read_only", tmp_path / "disk", "1m")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all("the journal" in line and "permissions" in line for line in done.stdout.splitlines())
