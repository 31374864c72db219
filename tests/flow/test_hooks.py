"""Hooks: who hears of what happens in a run, and in which order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weighbridge.errors import WeighbridgeError
from weighbridge.flow import Budget, BudgetExceeded, Flow, best, first, flow, guess, prefetch, step
from weighbridge.flow.hooks import CallView, ExecutionView, Hook, Hooks, RunView
from weighbridge.flow.replay.virtual_time import run_virtual


class Log(Hook):
    """Writes down everything it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def called(self, call: CallView) -> None:
        self.events.append(("called", call.step.name))

    def recall(self, call: CallView, execution: ExecutionView) -> bool:
        self.events.append(("recall", call.step.name))
        return False

    def started(self, call: CallView, execution: ExecutionView) -> None:
        self.events.append(("started", execution.step.name))

    def finished(self, execution: ExecutionView) -> None:
        self.events.append(("finished", execution.step.name))

    def settled(self, call: CallView) -> None:
        self.events.append(("settled", call.step.name))

    def undone(self, call: CallView) -> None:
        self.events.append(("undone", call.step.name))

    def ended(self, run: RunView) -> None:
        self.events.append(("ended", run.name, str(run.error)))


@step(effect="pure", name="think")
async def think(n: int) -> int:
    await asyncio.sleep(1)
    return n


def test_a_hook_hears_of_every_call_in_its_order() -> None:
    log = Log()

    async def nothing(_: Any) -> None: ...

    @step(effect="undo", undo=nothing, name="book")
    async def book(n: int) -> int:
        return n

    @flow(hooks=[log], name="trip")
    async def body() -> None:
        await book(await think(1))
        raise ValueError("no flight")

    with pytest.raises(ValueError, match="no flight"):
        run_virtual(body())
    of_a_call = ["called", "recall", "started", "finished", "settled"]
    assert log.events == [
        *[(event, "think") for event in of_a_call],
        *[(event, "book") for event in of_a_call],
        ("undone", "book"),
        ("ended", "trip", "ValueError: no flight"),
    ]


def test_of_other_worlds_a_hook_hears_only_what_runs() -> None:
    """Calls in shadows, candidates and prefetched calls are not the flow's: they start and finish, that is all."""
    log = Log()

    @flow(hooks=[log])
    async def body() -> int:
        prefetch(think, 7)
        word = await guess(think(1), by=lambda _: 99)
        await think(word)
        await best(lambda: think(5), of=1, score=float)
        return await first(think(8), think(7))

    run_virtual(body())
    called = [name for event, name, *_ in log.events if event == "called"]
    assert called == ["think", "think", "best", "think", "think", "first"]
    assert [name for event, name, *_ in log.events if event == "settled"].count("think") == 4
    ran = [name for event, name, *_ in log.events if event == "started"]
    assert ran.count("think") == 6, "99 in the shadow, 7 ahead, 1 (twice: its first result had gone), 5 and 8"


def test_a_hook_may_know_the_result_or_refuse_the_start() -> None:
    ran: list[int] = []

    @step(effect="read")
    async def look(n: int) -> int:
        ran.append(n)
        return n

    class Gatekeeper(Hook):
        def started(self, call: CallView, execution: ExecutionView) -> None:
            if execution.key[1] == (("int", 1),):  # type: ignore[index]
                execution.finish_with(100)
            elif execution.key[1] == (("int", 2),):  # type: ignore[index]
                raise WeighbridgeError("not today")

    @flow(hooks=[Gatekeeper()])
    async def body() -> list[Any]:
        one, two, three = look(1), look(2), look(3)
        with pytest.raises(WeighbridgeError, match="not today"):
            await two
        return [await one, await three]

    assert run_virtual(body()) == [100, 3]
    assert ran == [3]


def test_an_error_of_a_hook_becomes_the_calls_before_anybody_sees_its_result() -> None:
    class Strict(Hook):
        def settled(self, call: CallView) -> None:
            if call.error is None and call.result() == 13:
                raise WeighbridgeError("thirteen")

    seen: list[int] = []

    @step(effect="read", name="look")
    async def look(n: int) -> int:
        seen.append(n)
        return n

    @flow(hooks=[Strict()])
    async def body() -> int:
        return await look(look(think(13)))  # type: ignore[arg-type]

    with pytest.raises(WeighbridgeError, match="thirteen"):
        run_virtual(body())
    assert not seen


def test_a_call_that_was_refused_is_refused_again_instead_of_waited_for() -> None:
    @step(effect="pure", usd=1.0)
    async def costly(n: int) -> int:
        return n

    @flow(budget=Budget(usd=0.5))
    async def body() -> int:
        refused = 0
        for _ in range(3):
            try:
                await costly(1)
            except BudgetExceeded:
                refused += 1
        return refused

    assert run_virtual(body()) == 3


def test_candidates_are_paid_from_the_same_budget() -> None:
    drawn: list[int] = []

    @step(effect="pure", usd=0.4, name="draft")
    async def draft() -> float:
        drawn.append(1)
        return 0.1

    async def body() -> float:
        return await best(draft, of=5, score=float, stop=1.0)

    assert run_virtual(Flow(body, budget=Budget(usd=1.0))()) == 0.1
    assert len(drawn) == 2, "the third would have cost more than the flow may spend"


def test_an_event_reaches_only_those_that_listen() -> None:
    class Deaf(Hook):
        pass

    class Ender(Hook):
        def ended(self, run: RunView) -> None: ...

    hooks = Hooks([Deaf(), Ender()])
    assert (len(hooks.ended), hooks.called, hooks.finished) == (1, (), ())
