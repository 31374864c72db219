"""A step that raises, hangs or is cancelled at any await leaves no task and no place taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.flow import Budget, Flow, FlowTimeout, best, first, guess, step
from weighbridge.flow.replay.virtual_time import run_virtual

PACE = 0.1


@settings(max_examples=150, deadline=None)
@given(
    victim=st.integers(0, 6),
    at=st.integers(0, 3),
    how=st.sampled_from(["raise", "hang", "cancel", "nothing"]),
    cut=st.sampled_from([None, 0.0, 0.05, 0.15, 0.4, 0.75, 1.3]),
    right=st.booleans(),
)
def test_nothing_is_left_whatever_goes_wrong(
    victim: int, at: int, how: str, cut: float | None, right: bool
) -> None:
    inside: list[int] = []

    async def work(number: int) -> int:
        inside.append(number)
        try:
            for turn in range(4):
                if number == victim and turn == at:
                    if how == "raise":
                        raise ValueError("on purpose")
                    if how == "hang":
                        await asyncio.Event().wait()
                    if how == "cancel":
                        raise asyncio.CancelledError
                await asyncio.sleep(PACE)
            return number
        finally:
            inside.remove(number)

    read = step(effect="read", resource="api")(work)

    async def body() -> int:
        one = read(0)
        two = await guess(read(1), by=lambda _: 1 if right else 99)
        three = await first(read(two + 1), read(3))
        four = await best(lambda: read(4), of=2, score=float, stop=4.0, stagger=0.1)
        return await one + three + four + await read(5)

    flow: Flow[[], int] = Flow(body, budget=Budget(seconds=20.0), limits={"api": 3})

    async def main() -> None:
        task = asyncio.ensure_future(flow())
        if cut is not None:
            await asyncio.sleep(cut)
            task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if how == "hang" and isinstance(outcome, BaseException) and cut is None:
            assert isinstance(outcome, FlowTimeout)
        assert not inside
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert all(len(one) == 0 for one in flow._slots_here().values())

    run_virtual(main())


def test_a_step_that_ignores_its_cancellation_does_not_hold_the_flow_for_ever() -> None:
    @step(effect="read")
    async def stubborn() -> None:
        for _ in range(1000):
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                continue

    async def body() -> None:
        await stubborn()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(FlowTimeout):
            await Flow(body, budget=Budget(seconds=1.0))()
        return loop.time() - began

    loop_seconds: Any = run_virtual(main())
    assert loop_seconds < 30.0
