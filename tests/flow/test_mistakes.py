"""Mistakes that people make with flows: each is named in one line, when it is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weighbridge.errors import BadInput
from weighbridge.flow import Budget, flow, step


async def work(x: int) -> int:
    return x


MISTAKES: list[tuple[Any, str]] = [
    (lambda: step(effcet="read")(work), "there is no option 'effcet'; the options are effect, timeout"),  # type: ignore[call-overload]
    (lambda: step(effect="reed")(work), "step work: effect='reed' must be one of pure, read"),  # type: ignore[arg-type]
    (lambda: step("read"), "write @step\\(effect='read'\\)"),  # type: ignore[call-overload]
    (lambda: step(effect="read", timeout="3")(work), "timeout='3' must be a number"),  # type: ignore[arg-type]
    (lambda: step(effect="read", retries=1.5)(work), "retries=1.5 must be a number"),  # type: ignore[arg-type]
    (lambda: step(lambda x: x), "must be an async function; make it `async def`"),  # type: ignore[arg-type]
    (lambda: step(hedge=0.1)(work), "is never hedged or cached"),
    (lambda: flow(budget=0.05)(work), "budget=0.05 must be a Budget"),  # type: ignore[arg-type]
    (lambda: flow(value_per_second="3")(work), "value_per_second='3' is a number of dollars"),  # type: ignore[arg-type]
    (lambda: flow(limits={"api": "4"})(work), "must be a number, 1 or more"),  # type: ignore[dict-item]
    (lambda: Budget(usd=-1.0), "usd=-1.0 must be a number, 0 or more"),
    (lambda: Budget(waste=20.0), "waste=20.0 is a share, from 0 to 1"),
    (lambda: flow(work).explain(), "flow work has not run yet"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_a_mistake_is_named(mistake: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        mistake()


def test_a_flow_may_return_a_step_without_awaiting_it() -> None:
    double = step(effect="pure")(work)

    @flow
    async def forgetful(x: int) -> Any:
        return double(x)

    assert forgetful.run(3) == 3


async def test_run_inside_an_event_loop_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match=r"here, `await work\(\.\.\.\)`"):
        flow(work).run(1)
    await asyncio.sleep(0)


def test_what_a_step_raises_reaches_the_caller_from_where_it_was_raised() -> None:
    @step(effect="read")
    async def breaks(x: int) -> int:
        raise ValueError(f"no {x}")

    @flow
    async def body(x: int) -> int:
        return await breaks(x)

    with pytest.raises(ValueError, match="no 7") as caught:
        body.run(7)
    assert "breaks" in [frame.name for frame in caught.traceback]
    assert "failed: ValueError: no 7" in body.explain()
