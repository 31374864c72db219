"""Whatever a flow is, and whenever it is interrupted: in the end it has done what its sequential reading does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.flow.programs import (
    RESOURCES,
    Failed,
    Outside,
    Statement,
    as_flow,
    mixed,
    sequentially,
    statements,
)
from weighbridge.flow import Flow, NotDone, Several, idempotency_key, step
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.step import Step

SECONDS = [0.0, 0.1, 0.7, 1.0, 3.0]


class Surviving(Outside):
    """Outlives the processes that act on it, and can be asked what has happened."""

    def __init__(self) -> None:
        super().__init__()
        self.done: dict[str, int] = {}

    def act(self, effect: str, resource: str | None, salt: int, args: tuple[Any, ...]) -> int:
        """Looking never fails: what a read finds depends on when it looks, and a failed one looks again."""
        if effect in ("read", "remote"):
            return mixed(effect, salt, self.read(resource), *args)
        return super().act(effect, resource, salt, args)


def steps_on(
    outside: Surviving, seconds: Callable[..., float]
) -> dict[tuple[str, str | None], Step[Any, int]]:
    """One step per effect and resource; writes can be looked up by their key."""

    def make(effect: str, resource: str | None) -> Step[Any, int]:
        async def act(salt: int, *args: int) -> int:
            duration = seconds(effect, salt, args)
            await asyncio.sleep(duration / 2)
            try:
                value = outside.act(effect, resource, salt, args)
                if effect == "write":
                    assert idempotency_key() not in outside.done, "an effect happened twice"
                    outside.done[idempotency_key()] = value
                return value
            finally:
                await asyncio.sleep(duration / 2)

        async def look_up(salt: int, *args: int) -> int:
            if idempotency_key() not in outside.done:
                raise NotDone("no such write")
            return outside.done[idempotency_key()]

        options: dict[str, Any] = {"effect": effect, "resource": resource, "name": f"{effect}-{resource}"}
        if effect == "write":
            options["settle"] = look_up
        return step(**options)(act)

    effects = ("pure", "read", "remote", "write")
    return {(effect, resource): make(effect, resource) for effect in effects for resource in RESOURCES}


def live(
    program: list[Statement], outside: Surviving, mode: Any, seed: int, path: Path, ends: float | None
) -> Any:
    """One life of the run: interrupted after `ends` seconds, or to its end."""

    def seconds(*call: Any) -> float:
        return SECONDS[mixed(seed, "seconds", *map(str, call)) % 5]

    def predict(salt: int, *args: int) -> Several:
        return Several(mixed("pure", salt, 0, *args), mixed(seed, salt))

    steps = steps_on(outside, seconds)

    async def body() -> int:
        return await as_flow(program, steps, predict)

    flow = Flow(body, mode=mode, journal=path, run_id="r1", name="body")

    async def main() -> tuple[str, Any]:
        running = asyncio.ensure_future(flow())
        await asyncio.wait([running], timeout=ends)
        if not running.done():
            running.cancel()
        try:
            return "value", await running
        except Failed as error:
            return "error", str(error)
        except asyncio.CancelledError:
            return "interrupted", None

    return run_virtual(main())


@pytest.mark.parametrize("mode", ["sequential", "parallel", "speculate"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    program=statements().filter(lambda program: len(program) > 2),
    seeds=st.lists(st.integers(0, 1000), min_size=4, max_size=4),
    ends=st.lists(st.sampled_from([0.05, 0.5, 1.0, 1.75, 2.6, 4.0]), min_size=1, max_size=3),
)
def test_a_run_of_several_lives_does_what_one_would(
    mode: str, program: list[Statement], seeds: list[int], ends: list[float]
) -> None:
    alone = Surviving()
    expected: tuple[str, Any]
    try:
        expected = "value", sequentially(program, alone)
    except Failed as error:
        expected = "error", str(error)
    outside, lives = Surviving(), 0
    with tempfile.TemporaryDirectory() as directory:
        for seed, end in zip(seeds, [*ends, None], strict=False):
            got = live(program, outside, mode, seed, Path(directory) / "j.sqlite", end)
            lives += 1
            if got[0] != "interrupted":
                break
    event(f"lives {lives}")
    assert got == expected
    for resource in ("a", "b"):
        assert outside.log_of(resource) == alone.log_of(resource)
    assert sorted(outside.log, key=repr) == sorted(alone.log, key=repr)
