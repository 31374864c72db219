"""`weighbridge state` on real files, while they are used, and on files that are not well."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from weighbridge.routes.budget import Budgets, Ledger, Reservation
from weighbridge.state.lines import LineFile, read_lines
from weighbridge.ticket import TICKETS, Ticket

RELEASED = Path(__file__).parents[1] / "state" / "released" / "0.1.0"
CONFIG = """\
listen: 127.0.0.1:0
models: {m: {replicas: [{url: "http://127.0.0.1:1", key_env: NOT_SET_HERE}]}}
ledger: ledger.sqlite
tickets: tickets.jsonl
shadow_file: shadow.jsonl
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a configuration and what 0.1.0 has left, and a home with a journal and a calibration."""
    (tmp_path / "weighbridge.yaml").write_text(CONFIG)
    for name in ("ledger.sqlite", "tickets.jsonl", "shadow.jsonl"):
        shutil.copy(RELEASED / name, tmp_path / name)
    (tmp_path / "home" / "calibration").mkdir(parents=True)
    shutil.copy(RELEASED / "journal.sqlite", tmp_path / "home" / "flows.sqlite")
    shutil.copy(RELEASED / "calibration.json", tmp_path / "home" / "calibration" / "key.json")
    return tmp_path


def state(here: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "weighbridge", "state", *words],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "WEIGHBRIDGE_HOME": str(here / "home"), "COLUMNS": "200"},
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 1) and "--json" in words else done.stdout + done.stderr


def found(here: Path, *words: str, code: int = 0) -> dict[str, Any]:
    files = json.loads(state(here, *words, "--json", code=code))["files"]
    return {Path(one["file"]).name: one for one in files}


def test_files_are_checked_migrated_and_checked_again(here: Path) -> None:
    before = found(here, "check")
    kinds = {name: (one["kind"], one["version"], one["old"]) for name, one in before.items()}
    assert kinds == {
        "ledger.sqlite": ("ledger", 0, True),
        "tickets.jsonl": ("ticket", 0, True),
        "shadow.jsonl": ("shadow evaluation", 0, True),
        "flows.sqlite": ("journal", 0, True),
        "key.json": ("calibration", 0, True),
    }
    told = state(here, "migrate")
    assert "ledger.sqlite: from version 0 to 3; what it was is in ledger.sqlite.v0" in told
    assert "tickets.jsonl: nothing to do: lines are brought to this version when they are read" in told
    after = found(here, "check")
    assert [after[name]["old"] for name in ("ledger.sqlite", "flows.sqlite", "key.json")] == [False] * 3
    kept = found(here, "check", "ledger.sqlite.v0")
    assert kept["ledger.sqlite.v0"]["version"] == 0
    assert found(here, "migrate")["ledger.sqlite"]["done"] == "nothing to do"
    assert "old: it is migrated when it is used" in state(here, "check")


def test_a_backup_is_of_one_moment_while_money_is_spent(here: Path) -> None:
    """Each reservation is settled with the same amount, so that any moment shows whole requests only."""
    ledger = Ledger(here / "ledger.sqlite", Budgets())
    tickets = LineFile(here / "tickets.jsonl", TICKETS)
    stop, served = threading.Event(), 0

    def serve() -> None:
        nonlocal served
        while not stop.is_set():
            reserved = ledger.reserve("ann", "auto", 0.5)
            assert isinstance(reserved, Reservation)
            ledger.settle(reserved, 0.25)
            tickets.append(Ticket(f"new-{served}", "ann", "auto", "hash", 1, 2, replica="near").as_dict())
            served += 1

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        copies = [found(here, "backup", "--to", f"copies-{n}") for n in range(2)]
        during = found(here, "check")
    finally:
        stop.set()
        serving.join()
        tickets.close()
    assert all(one["ok"] for one in during.values())
    assert {Path(one["copy"]).name for one in copies[0].values()} == {
        "ledger.sqlite", "tickets.jsonl", "shadow.jsonl", "flows.sqlite", "key.json"
    }  # fmt: skip
    amounts = []
    for n in range(2):
        copy = Ledger(here / f"copies-{n}" / "ledger.sqlite", Budgets())
        spent = copy.spent("ann")
        assert spent.settled % 0.25 == 0.0
        assert spent.reserved in (0.0, 0.5)
        amounts.append(spent.settled)
        copy.close()
        text = (here / f"copies-{n}" / "tickets.jsonl").read_bytes()
        assert text.endswith(b"\n")
        assert all(json.loads(line) for line in text.splitlines())
    assert 0.0 < amounts[0] < amounts[1] <= ledger.spent("ann").settled == 0.25 * served
    assert len(list(read_lines(here / "tickets.jsonl", TICKETS))) == served + 2
    ledger.close()


def test_a_backup_overwrites_nothing(here: Path) -> None:
    state(here, "backup", "--to", "copies")
    before = (here / "copies" / "ledger.sqlite").read_bytes()
    assert "ledger.sqlite is there already; give another directory" in state(
        here, "backup", "--to", "copies", code=2
    )
    assert (here / "copies" / "ledger.sqlite").read_bytes() == before
    assert not list((here / "copies").glob(".*.part"))


def test_a_copy_takes_the_place_of_a_lost_file(here: Path) -> None:
    state(here, "backup", "--to", "copies", "ledger.sqlite")
    (here / "ledger.sqlite").unlink()
    shutil.copy(here / "copies" / "ledger.sqlite", here / "ledger.sqlite")
    ledger = Ledger(here / "ledger.sqlite", Budgets())
    assert ledger.spent(day="2026-09-22").settled == 0.75
    ledger.close()


def test_files_that_are_not_well_are_named(here: Path) -> None:
    data = bytearray((here / "ledger.sqlite").read_bytes())
    data[4096 : 4096 + 64] = b"\xff" * 64
    (here / "ledger.sqlite").write_bytes(data)
    with (here / "tickets.jsonl").open("a") as file:
        file.write(json.dumps({"schema": 99, "id": "x", "prompt_hash": "y"}) + "\n")
    with closing(sqlite3.connect(here / "home" / "flows.sqlite")) as journal:
        journal.execute("PRAGMA user_version=7")
    checked = found(here, "check", code=1)
    assert "damaged" in checked["ledger.sqlite"]["problem"]
    assert "written by a newer Weighbridge" in checked["tickets.jsonl"]["problem"]
    assert "is a journal of version 7, written by a newer Weighbridge" in checked["flows.sqlite"]["problem"]
    assert checked["shadow.jsonl"]["ok"]
    assert "is a journal of version 7" in state(here, "migrate", str(here / "home" / "flows.sqlite"), code=2)


def test_what_is_none_of_ours_is_refused(here: Path) -> None:
    (here / "notes.txt").write_text("nothing of yours")
    with closing(sqlite3.connect(here / "songs")) as songs:
        songs.execute("CREATE TABLE songs (name TEXT)")
    assert "is nothing that Weighbridge has written" in state(here, "migrate", "notes.txt", code=2)
    assert "is an SQLite file of something else" in state(here, "backup", "--to", "x", "songs", code=2)
    assert "cannot read nowhere" in state(here, "migrate", "nowhere", code=2)
    for name in ("weighbridge.yaml", "ledger.sqlite", "tickets.jsonl", "shadow.jsonl"):
        (here / name).unlink()
    shutil.rmtree(here / "home")
    assert "there are no files yet" in state(here, "check", code=2)


def test_a_ledger_that_is_locked_is_not_waited_for_without_a_bound(here: Path) -> None:
    with closing(sqlite3.connect(here / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")  # as a process that uses no write-ahead log may
        assert "another process keeps it locked" in state(
            here, "backup", "--to", "copies", "ledger.sqlite", code=1
        )
        other.execute("ROLLBACK")
    assert not (here / "copies" / "ledger.sqlite").exists()
