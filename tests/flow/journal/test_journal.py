"""Runs that go on after a crash, without doing anything twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flow.journal.journaled import entries
from weighbridge.errors import BadInput
from weighbridge.flow import Budget, BudgetExceeded, InDoubt, first, flow, idempotency_key, step
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.report.record_json import record_from_json

COMMAND = [sys.executable, "-m", "tests.flow.journal.journaled"]


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(directory: Path) -> tuple[list[str], float]:
    began = time.monotonic()
    process = start(directory)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out), time.monotonic() - began


def killed_and_resumed(directory: Path, rng: random.Random, kills: int, longest: float) -> list[str]:
    for _ in range(kills):
        process = start(directory)
        try:
            process.wait(rng.uniform(0.3 * longest, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    return finished(directory)[0]


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path, seed: int) -> None:
    check_kills(tmp_path, seed, kills=3)


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_run_killed_at_many_points_resumes_to_the_same_result(tmp_path: Path, seed: int) -> None:
    check_kills(tmp_path, seed, kills=8)


def check_kills(tmp_path: Path, seed: int, kills: int) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    expected, seconds = finished(quiet)
    unkilled = [entry["text"] for entry in entries(quiet, "effects.jsonl")]
    assert expected == unkilled

    rough = tmp_path / "rough"
    rough.mkdir()
    assert killed_and_resumed(rough, random.Random(seed), kills, seconds) == expected
    assert [entry["text"] for entry in entries(rough, "effects.jsonl")] == unkilled
    assert finished(rough)[0] == expected, "a run that has ended gives its result again"
    assert len(entries(rough, "effects.jsonl")) == len(unkilled)


class Crash(BaseException):
    """Stands for the end of the process: nothing after it is journaled."""


def test_results_are_taken_from_the_journal(tmp_path: Path) -> None:
    ran: list[str] = []
    broken = True

    @step(effect="read")
    async def look(key: str) -> str:
        ran.append(key)
        return key

    @step
    async def send(text: str) -> str:
        ran.append(f"send {text}")
        return text

    @flow
    async def body() -> str:
        a = await look("a")
        await send(a)
        if broken:
            raise ValueError("stop here")
        return await look("b")

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1")
    with pytest.raises(ValueError, match="stop here"):
        run_virtual(journaled())
    broken = False
    assert run_virtual(journaled()) == "b"
    assert ran == ["a", "send a", "b"]
    assert journaled.last is not None
    assert journaled.last.resumed == 2
    assert run_virtual(journaled()) == "b"
    assert ran == ["a", "send a", "b"]
    journal = Journal(tmp_path / "j.sqlite")
    assert [run["status"] for run in journal.runs()] == ["done"]
    assert record_from_json(journal.record_of("r1")).spans
    with pytest.raises(BadInput, match="no run 'r2'; the latest are: r1"):
        journal.record_of("r2")
    journal.close()


def test_a_write_in_doubt_is_never_simply_repeated(tmp_path: Path) -> None:
    sent: list[str] = []

    @step
    async def send(text: str) -> None:
        sent.append(text)
        raise ValueError("the line went dead")

    @flow
    async def body() -> None:
        await send("x")

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1")
    with pytest.raises(ValueError, match="went dead"):
        run_virtual(journaled())
    with pytest.raises(InDoubt, match="may or may not have happened; give it settle="):
        run_virtual(journaled())
    assert sent == ["x"]


def test_a_race_has_the_same_winner_when_resumed(tmp_path: Path) -> None:
    seconds = {"a": 1.0, "b": 2.0}
    broken = True

    @step(effect="read")
    async def ask(name: str) -> str:
        await asyncio.sleep(seconds[name])
        return name

    @flow
    async def body() -> str:
        winner = await first(ask("a"), ask("b"))
        if broken:
            raise ValueError
        return winner

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1")
    with pytest.raises(ValueError):
        run_virtual(journaled())
    broken = False
    seconds = {"a": 2.0, "b": 1.0}
    assert run_virtual(journaled()) == "a"


def test_undo_is_not_repeated(tmp_path: Path) -> None:
    log: list[str] = []

    async def cancel(what: str) -> None:
        log.append(f"cancel {what}")

    @step(effect="undo", undo=cancel)
    async def book(what: str) -> str:
        log.append(f"book {what}")
        return what

    @flow
    async def body() -> None:
        await book("hotel")
        raise ValueError("no flight")

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1")
    for _ in range(2):
        with pytest.raises(ValueError, match="no flight"):
            run_virtual(journaled())
    assert log == ["book hotel", "cancel hotel"]


def test_a_write_that_the_budget_forbade_is_not_in_doubt(tmp_path: Path) -> None:
    sent: list[str] = []

    @step(usd=1.0)
    async def send(text: str) -> None:
        sent.append(text)

    @flow
    async def body() -> None:
        await send("x")

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1", budget=Budget(usd=0.5))
    with pytest.raises(BudgetExceeded):
        run_virtual(journaled())
    run_virtual(body.options(journal=tmp_path / "j.sqlite", run_id="r1", budget=Budget(usd=2.0))())
    assert sent == ["x"], "it had never started"


def test_what_a_write_rests_on_is_on_disk_before_it_starts(tmp_path: Path) -> None:
    """Also when the write waits for a promise and not for an `await`."""
    path = tmp_path / "j.sqlite"
    on_disk: list[tuple[str, str]] = []

    @step(effect="read", name="wait")
    async def wait(n: int) -> int:
        await asyncio.sleep(1)
        return n

    @step(name="send")
    async def send(n: int) -> int:
        with closing(sqlite3.connect(path)) as other:
            on_disk.extend(other.execute("SELECT name, state FROM steps ORDER BY at").fetchall())
        return n

    @flow(journal=path, run_id="r1")
    async def body() -> int:
        return await send(wait(wait(1)))  # type: ignore[arg-type]

    assert run_virtual(body()) == 1
    assert on_disk == [("wait", "done"), ("wait", "done"), ("send", "started")]


def test_the_record_of_a_run_that_had_ended_before_is_empty(tmp_path: Path) -> None:
    @step(effect="pure")
    async def one() -> int:
        return 1

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> int:
        return await one()

    for spans in (1, 0):
        assert run_virtual(body()) == 1
        assert body.last is not None
        assert (len(body.last.spans), body.last.seconds) == (spans, 0.0)


@dataclass
class Ticket:
    number: int
    tags: list[str]


def test_typed_results_come_back_as_they_were(tmp_path: Path) -> None:
    @step(effect="pure")
    async def typed() -> Ticket:
        return Ticket(1, ["a"])

    @step(effect="pure")
    async def untyped():  # type: ignore[no-untyped-def]
        return (1, 2)

    @flow
    async def good() -> Ticket:
        return await typed()

    @flow
    async def bad() -> Any:
        return await untyped()

    journaled = good.options(journal=tmp_path / "j.sqlite", run_id="r1")
    assert run_virtual(journaled()) == run_virtual(journaled()) == Ticket(1, ["a"])
    with pytest.raises(BadInput, match="annotate its return type as tuple"):
        run_virtual(bad.options(journal=tmp_path / "j.sqlite")())


def test_bad_use_says_what_to_change(tmp_path: Path) -> None:
    @step(effect="pure")
    async def take(thing: Any) -> int:
        return 1

    @flow
    async def body(n: Any) -> int:
        return await take(n if n != 3 else object())

    path = tmp_path / "j.sqlite"
    run_virtual(body.options(journal=path, run_id="r1")(1))
    with pytest.raises(BadInput, match="resume it so, or choose another run id"):
        run_virtual(body.options(journal=path, run_id="r1")(2))
    with pytest.raises(BadInput, match="argument of type object cannot be journaled"):
        run_virtual(body.options(journal=path, run_id="r2")(3))
    with pytest.raises(BadInput, match="argument of type object cannot be journaled"):
        run_virtual(body.options(journal=path, run_id="r3")(object()))
    with pytest.raises(BadInput, match="use up to 100 letters"):
        run_virtual(body.options(journal=path, run_id="../x")(1))
    with pytest.raises(BadInput, match="SQLite"):
        run_virtual(body.options(journal=tmp_path)(1))
    with pytest.raises(BadInput, match="inside a step"):
        idempotency_key()


def test_a_run_is_executed_by_one_process_at_a_time(tmp_path: Path) -> None:
    @step(effect="pure")
    async def wait() -> int:
        await asyncio.sleep(1)
        return 1

    @flow
    async def body() -> int:
        return await wait()

    journaled = body.options(journal=tmp_path / "j.sqlite", run_id="r1")

    async def main() -> None:
        one = asyncio.create_task(journaled())
        await asyncio.sleep(0.1)
        with pytest.raises(BadInput, match="executed by another process"):
            await journaled()
        assert await one == 1

    run_virtual(main())


def test_hit_rates_survive_the_process(tmp_path: Path) -> None:
    @step(effect="pure")
    async def classify(n: int) -> str:
        await asyncio.sleep(1)
        return "refund"

    def fresh() -> Any:
        from weighbridge.flow import guess

        @flow(journal=tmp_path / "j.sqlite", name="support")
        async def support(n: int) -> str:
            return await guess(classify(n), by=lambda n: "refund")

        return support

    one = fresh()
    for n in range(10):
        run_virtual(one(n))
    two = fresh()
    run_virtual(two(11))
    assert two.last.bets[0].verdict.stakes.probability == pytest.approx(
        one.learner.belief("classify", two.learner.sites["classify"].beliefs.__iter__().__next__()).lower(),
        abs=1e-6,
    )
