"""`recorded`: what a flow's body asks of the outside, as a step, so that a resumed run is given the same answer."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from weighbridge.flow.step import Options, Step

T = TypeVar("T")


def recorded(observe: Callable[[], T | Awaitable[T]], name: str | None = None) -> Awaitable[T]:
    """Return what `observe()` gives: `await recorded(time.time)`, `await recorded(queue.get)`.

    In a journaled flow the answer is kept, and a resumed run gets it again. `name`: what it is called there, by default
    the name of `observe`. It never runs ahead on a guess. The answer must be JSON.
    """

    async def ask() -> Any:
        answer = observe()
        return await answer if inspect.isawaitable(answer) else answer

    called = name or str(getattr(observe, "__qualname__", type(observe).__name__))
    options = Options(effect="read", speculate=False, dedup=False)
    return cast("Awaitable[T]", Step(ask, options, f"recorded {called}")())
