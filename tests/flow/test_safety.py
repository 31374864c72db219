"""Whatever is guessed, a flow does what its sequential reading does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.flow.programs import (
    TAINT,
    Failed,
    Outside,
    Statement,
    as_flow,
    mixed,
    sequentially,
    statements,
    steps_on,
)
from weighbridge.flow import Flow, Several
from weighbridge.flow.replay.virtual_time import run_virtual


def outcome_of(work: Any) -> tuple[str, Any]:
    try:
        return "value", work()
    except Failed as error:
        return "error", str(error)


def run_as_flow(
    program: list[Statement], mode: Any, seed: int, limit: int | None
) -> tuple[tuple[str, Any], Outside]:
    """Run in virtual time with durations and predictions drawn from `seed`."""
    outside = Outside()

    def seconds(*call: Any) -> float:
        return [0.0, 0.1, 0.7, 1.0, 3.0][mixed(seed, "seconds", *map(str, call)) % 5]

    def predict(salt: int, *args: int) -> Several:
        """One hypothesis is a lie, the other right for pure steps and a wild guess for the rest."""
        likely = mixed("pure", salt, 0, *args)
        return Several(TAINT + 5, likely) if mixed(seed, salt) % 2 else Several(likely, TAINT + 5)

    steps = steps_on(outside, seconds)

    async def body() -> int:
        return await as_flow(program, steps, predict)

    flow = Flow(body, mode=mode, limits={"a": limit, "b": limit} if limit is not None else None)

    async def main() -> int:
        try:
            return await flow()
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left behind: {left}"

    outcome = outcome_of(lambda: run_virtual(main()))
    assert flow.last is not None
    for name, count in flow.last.outcomes().items():
        event(f"bets {name}", min(count, 3))
    for execution, args in outside.ran:
        tainted = any(arg >= TAINT for arg in args)
        assert not (tainted and execution is not None and execution.committed), "a lie was committed"
    return outcome, outside


@pytest.mark.parametrize("mode", ["sequential", "parallel", "speculate"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=statements(), seed=st.integers(0, 1000), limit=st.sampled_from([None, 1, 2]))
def test_any_flow_does_what_its_sequential_reading_does(
    mode: str, program: list[Statement], seed: int, limit: int | None
) -> None:
    expected_outside = Outside()
    expected = outcome_of(lambda: sequentially(program, expected_outside))
    got, outside = run_as_flow(program, mode, seed, limit)
    assert got == expected
    for resource in ("a", "b"):  # writes of different named resources are independent of each other
        assert outside.log_of(resource) == expected_outside.log_of(resource)
    assert sorted(outside.log, key=repr) == sorted(expected_outside.log, key=repr)
    assert outside.state == expected_outside.state
