"""`first`: a race. The first success wins, the others are let go."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.nursery import first_success
from weighbridge.flow.runtime import Promise, World, this_world
from weighbridge.flow.step import Options, Step

T = TypeVar("T")


def first(*calls: Awaitable[T]) -> Awaitable[T]:
    """Return the result of whichever call succeeds first; raise the last error when all fail.

    In a flow the calls are promises of steps that change nothing: losers are cancelled. Raises BadInput for
    a write, and without any calls.
    """
    if not calls:
        raise BadInput("first: give at least one call to race")
    world = this_world()
    if world is None:
        return _race([cast(Coroutine[Any, Any, T], call) for call in calls])
    promises = [_promise(call) for call in calls]
    for promise in promises:
        if promise.step.writes:
            promise.abandon()
            raise BadInput(
                f"first cancels the losers of a race, so that {promise.step.name} (effect "
                f"{promise.step.options.effect!r}) must not take part; call it with the winner"
            )
    return cast(Awaitable[T], _Race(world, promises).promise)


def _promise(call: Any) -> Promise[Any]:
    if isinstance(call, Promise):
        return call
    if inspect.iscoroutine(call):
        call.close()
    raise BadInput(
        "first: inside a flow race calls of steps; a plain coroutine cannot be shared or cancelled"
    )


async def _never() -> Any:
    raise AssertionError("a race runs no function")


_FIRST: Step[..., Any] = Step(_never, Options(effect="pure"), "first")


class _Race:
    """Settles its promise with the first success; ties go to what ended earlier, then to the earlier call."""

    def __init__(self, world: World, promises: list[Promise[Any]]) -> None:
        self._promises = promises
        self._is_decided = False
        self.promise = world.combine(_FIRST, promises)
        if self.promise.done:
            self._let_go()
            return
        ended = [
            (call.execution.finished_at, call) for call in promises if call.execution and _succeeded(call)
        ]
        if ended:
            self._won(min(ended, key=lambda pair: pair[0])[1])
            return
        for promise in promises:
            promise.on_settled(self._settled)

    def _settled(self, promise: Promise[Any]) -> None:
        if self.promise.done or self._is_decided:
            return
        if promise.error is None:
            self._won(promise)
        elif all(call.done for call in self._promises):
            self.promise.settle(None, promise.error)

    def _won(self, winner: Promise[Any]) -> None:
        self._is_decided = True
        self.promise.settle(winner.result())
        self._let_go()

    def _let_go(self) -> None:
        for promise in self._promises:
            promise.abandon()


def _succeeded(call: Promise[Any]) -> bool:
    return call.done and call.error is None


async def _race(calls: list[Coroutine[Any, Any, T]]) -> T:
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return cast(T, await first_success(tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
