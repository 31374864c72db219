"""Journals are bounded: long runs, many runs, and what `flow prune` drops."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from weighbridge.flow import flow, step
from weighbridge.flow.journal import upkeep
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.report import record_json
from weighbridge.flow.report.record_json import record_from_json
from weighbridge.flow.report.timeline import text


@step(effect="read", usd=0.5)
async def look(n: int) -> int:
    return n + 1


def looking(path: Path, run_id: str, times: int, fails: bool = False) -> Any:
    @flow(name="looking", mode="parallel")
    async def body() -> int:
        total = sum([await look(n) for n in range(times)])
        if fails:
            raise ValueError("not this time")
        return total

    return body.options(journal=path, run_id=run_id)


def count(path: Path, query: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(query).fetchone()[0])


def test_the_record_of_a_long_run_is_no_longer_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_json, "MAX_SPANS", 20)
    sizes = []
    for times in (40, 400):
        run_virtual(looking(tmp_path / "j.sqlite", f"r{times}", times)())
        journal = Journal(tmp_path / "j.sqlite")
        saved = journal.record_of(f"r{times}")
        journal.close()
        sizes.append(len(saved))
    assert sizes[1] < 1.2 * sizes[0]
    record = record_from_json(saved)
    assert (len(record.spans), record.dropped_spans, record.usd) == (20, 380, 200.0)
    assert "380 executions before these were not kept" in text(record)


def test_a_long_timeline_is_shown_in_pages(tmp_path: Path) -> None:
    flowing = looking(tmp_path / "j.sqlite", "r1", 450)
    run_virtual(flowing())
    pages = [text(flowing.last, first=first).splitlines() for first in (0, 200, 400)]
    assert [sum(line.startswith("look ") for line in page) for page in pages] == [200, 200, 50]
    assert [[line for line in page if line.startswith("...")] for page in pages] == [
        ["... and 250 more"],
        ["... and 50 more"],
        [],
    ]


def test_of_many_runs_the_latest_keep_their_steps_and_more_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RUNS_WITH_STEPS", 3)
    monkeypatch.setattr(upkeep, "RUNS_WITH_RESULTS", 6)
    path = tmp_path / "j.sqlite"
    with pytest.raises(ValueError, match="not this time"):
        run_virtual(looking(path, "failed", 2, fails=True)())
    for n in range(12):
        run_virtual(looking(path, f"r{n}", 2)())
    assert count(path, "SELECT COUNT(*) FROM runs WHERE status = 'done'") == 6
    assert count(path, "SELECT COUNT(DISTINCT run_id) FROM steps WHERE run_id != 'failed'") == 3
    assert run_virtual(looking(path, "r8", 2)()) == 3, "its result is there, its steps are not needed"
    assert run_virtual(looking(path, "failed", 2)()) == 3, "what can be resumed is kept"


def test_a_run_is_pruned_when_it_is_old_and_not_when_it_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    run_virtual(looking(path, "old", 30)())
    with pytest.raises(ValueError, match="not this time"):
        run_virtual(looking(path, "failed", 2, fails=True)())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE runs SET ended = ended - 40 * 86400")
        connection.commit()
    run_virtual(looking(path, "new", 2)())

    def prune(*words: str) -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "weighbridge",
            "flow",
            "prune",
            "--journal",
            str(path),
            "--json",
            *words,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(done.stdout))

    assert prune("--older-than", "50")["runs"] == 0
    pruned = prune()
    assert (pruned["runs"], pruned["rows"]) == (1, 31)
    assert count(path, "SELECT COUNT(*) FROM runs") == 2
    assert prune("--failed")["runs"] == 1
    assert count(path, "SELECT COUNT(*) FROM runs") == 1
    assert not list(tmp_path.glob("*.lock"))


def test_a_run_that_is_being_executed_is_not_pruned(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with pytest.raises(ValueError, match="not this time"):
        run_virtual(looking(path, "r1", 1, fails=True)())

    @step(effect="read")
    async def wait() -> int:
        await asyncio.sleep(1)
        return 1

    @flow(name="looking", mode="parallel")
    async def resumed() -> int:
        await wait()
        journal = Journal(path)
        pruned.append(journal.prune(time.time() + 60, failed=True))
        journal.close()
        return await look(0)

    pruned: list[tuple[int, int]] = []
    assert run_virtual(resumed.options(journal=path, run_id="r1")()) == 1
    assert pruned == [(0, 0)]
