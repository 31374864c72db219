"""Candidates, races and hedges: what is started, what is stopped, what is kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.flow.test_flow import timed
from weighbridge.errors import BadInput
from weighbridge.flow import attempt, best, first, flow, guess, step
from weighbridge.flow.replay.virtual_time import run_virtual


def drafts(*scores: float, seconds: float = 1.0) -> tuple[Any, Any, list[float], list[float]]:
    """A step that draws the next of `scores`, a judge, and what was started and finished."""
    started: list[float] = []
    finished: list[float] = []

    @step(effect="pure")
    async def draft(question: str) -> float:
        value = scores[len(started)]
        started.append(value)
        await asyncio.sleep(seconds)
        finished.append(value)
        return value

    @step(effect="pure")
    async def judge(value: float) -> float:
        return value

    return draft, judge, started, finished


def test_best_stops_early() -> None:
    draft, judge, started, _ = drafts(0.2, 0.95, 0.99, 1.0)

    @flow
    async def answer(question: str) -> float:
        return await best(lambda: draft(question), of=4, score=judge, stop=0.9)

    assert timed(answer("q")) == (0.95, 2.0)
    assert started == [0.2, 0.95]


def test_best_staggers_and_cancels_the_rest() -> None:
    draft, judge, started, finished = drafts(0.5, 0.92, 0.7, 0.1)

    @flow
    async def answer() -> float:
        return await best(lambda: draft("q"), of=4, score=judge, stop=0.9, stagger=0.4)

    assert timed(answer()) == (0.92, 1.4)
    assert started == [0.5, 0.92, 0.7, 0.1]
    assert finished == [0.5, 0.92]


def test_best_without_stop_draws_all_at_once() -> None:
    draft, judge, _, finished = drafts(0.5, 0.9, 0.7)

    @flow
    async def answer() -> float:
        return await best(lambda: draft("q"), of=3, score=judge)

    assert timed(answer()) == (0.9, 1.0)
    assert len(finished) == 3


def test_best_drops_candidates_that_raise() -> None:
    calls = []

    @step(effect="pure")
    async def draft() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError(f"draft {len(calls)}")
        return len(calls)

    def answer(of: int) -> Any:
        @flow
        async def body() -> int:
            return await best(draft, of=of, score=float, stop=1.0)

        return body

    assert timed(answer(4)())[0] == 3
    calls.clear()
    with pytest.raises(ValueError, match="draft 2"):
        timed(answer(2)())


def test_best_and_first_outside_a_flow() -> None:
    draft, judge, started, _ = drafts(0.2, 0.95, 0.99)

    async def main() -> tuple[float, float]:
        one = await best(lambda: draft("q"), of=3, score=judge, stop=0.9)
        return one, await first(asyncio.sleep(2, 2.0), asyncio.sleep(1, 1.0))

    assert timed(main()) == ((0.95, 1.0), 3.0)
    assert len(started) == 2


def test_best_runs_ahead_on_a_guess_once() -> None:
    draft, judge, started, _ = drafts(0.2, 0.95, 0.99, 0.99)

    @step(effect="pure")
    async def classify() -> str:
        await asyncio.sleep(3)
        return "refund"

    @flow
    async def answer() -> float:
        intent = await guess(classify(), by=lambda: "refund")
        return await best(lambda: draft(intent), of=4, score=judge, stop=0.9)

    assert timed(answer()) == (0.95, 3.0)
    assert started == [0.2, 0.95]


def test_candidates_may_not_write() -> None:
    @step
    async def send() -> int:
        raise AssertionError("must not run")

    @flow
    async def one() -> int:
        return await best(send, of=2, score=float)

    @flow
    async def two() -> int:
        return await first(send(), send())

    for body in (one, two):
        with pytest.raises(BadInput, match="must not"):
            timed(body())


@step(effect="read")
async def search(engine: str, seconds: float, error: bool = False) -> str:
    await asyncio.sleep(seconds)
    if error:
        raise ValueError(engine)
    return engine


def test_first_takes_the_first_success() -> None:
    @flow
    async def race() -> str:
        return await first(search("slow", 5), search("broken", 1, True), search("quick", 2))

    assert timed(race()) == ("quick", 2.0)
    assert race.last is not None
    assert [span.status for span in race.last.spans] == ["cancelled", "failed", "committed"]


def test_first_raises_when_all_fail() -> None:
    @flow
    async def race() -> str:
        return await first(search("a", 1, True), search("b", 2, True))

    with pytest.raises(ValueError, match="b"):
        timed(race())


def test_a_slow_call_is_hedged_within_its_budget() -> None:
    slow = {40, 90}
    launches: list[tuple[int, int]] = []

    @step(effect="read", hedge=0.05)
    async def ask(n: int) -> int:
        launches.append((n, attempt.get()))
        await asyncio.sleep(60.0 if n in slow and attempt.get() == 0 else 1.0)
        return n

    @flow
    async def many() -> list[float]:
        loop = asyncio.get_running_loop()
        seconds = []
        for n in range(100):
            began = loop.time()
            await ask(n)
            seconds.append(loop.time() - began)
        return seconds

    seconds, _ = timed(many())
    assert seconds[40] == pytest.approx(2.001)
    assert max(seconds) == pytest.approx(2.001)
    hedged = [n for n, number in launches if number == 1]
    assert hedged == [40, 90]


def test_errors_are_not_hedged() -> None:
    launches = []

    @step(effect="read", hedge=0.5)
    async def ask(n: int) -> int:
        launches.append(attempt.get())
        await asyncio.sleep(0.5)
        if n == 40:
            raise ValueError("wrong question")
        return n

    @flow
    async def many() -> None:
        for n in range(41):
            await ask(n)

    with pytest.raises(ValueError, match="wrong question"):
        timed(many())
    assert sum(launches) == 0


def test_a_cancelled_flow_leaves_nothing() -> None:
    ends: list[str] = []

    @step(effect="read")
    async def slow(name: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.5)  # cleaning up takes its time, and gets it
            ends.append(name)

    @flow
    async def body() -> None:
        slow("a")
        await guess(slow("b"), by=lambda name: None)
        await slow("c")

    async def main() -> None:
        task = asyncio.create_task(body())
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ends) == ["a", "b", "c"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
