"""`best`: several candidates for one answer, started one after the other, stopped when one is good enough."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.combine.nursery import Nursery
from weighbridge.flow.step import Options, Step, current_execution, current_world

T = TypeVar("T")

Score = Callable[[Any], "float | Awaitable[float]"]


def best(
    candidate: Callable[[], Awaitable[T]],
    *,
    of: int = 4,
    score: Callable[[T], float | Awaitable[float]],
    stop: float | None = None,
    stagger: float | None = None,
) -> Awaitable[T]:
    """The candidate with the highest score among `of` draws of `candidate()`.

    The first starts at once, the next whenever one has been scored below `stop` or `stagger` seconds have
    passed (by default: the usual time of a candidate). A score of `stop` or more ends the search and the
    rest are cancelled. Without `stop` all are started at once. `score` may be a step. Candidates that raise
    drop out; when all do, the last error is raised. Candidates are thrown away, so that they and the score
    may not write. Raises BadInput for of < 1.
    """
    if of < 1:
        raise BadInput(f"best: of={of} must be at least 1")
    world = current_world.get()
    if world is None:
        return _search(_Outside(candidate), of, score, stop, stagger)
    return cast(Awaitable[T], world.call(_BEST, (candidate, of, score, stop, stagger), {}))


async def _best_in_flow(
    candidate: Callable[[], Awaitable[Any]], of: int, score: Score, stop: float | None, stagger: float | None
) -> Any:
    launcher = _Inside(candidate)
    try:
        return await _search(launcher, of, score, stop, stagger)
    finally:
        launcher.close()


#: `best` is a step itself: shared between worlds, journaled and cancelled as one.
_BEST: Step[..., Any] = Step(_best_in_flow, Options(effect="pure", dedup=False), "best")


class _Outside:
    """Candidates as plain coroutines."""

    def __init__(self, candidate: Callable[[], Awaitable[Any]]) -> None:
        self._candidate = candidate

    def launch(self, number: int, score: Score) -> asyncio.Task[tuple[float, Any]]:
        return asyncio.ensure_future(self._scored(score))

    async def _scored(self, score: Score) -> tuple[float, Any]:
        value = await self._candidate()
        return await _number(score(value)), value

    def usual_seconds(self) -> float | None:
        return None


class _Inside(_Outside):
    """Candidates in nurseries of their own, so that each draw is a draw of its own and ends with the search."""

    def __init__(self, candidate: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(candidate)
        execution = current_execution.get()
        assert execution is not None
        self._owner = execution
        self._nurseries: list[Nursery] = []
        self._began: dict[int, float] = {}

    def launch(self, number: int, score: Score) -> asyncio.Task[tuple[float, Any]]:
        used = self._owner.run.executions[self._owner.key].index(self._owner)
        nursery = Nursery(self._owner, (self._owner.key, used, number), "best")
        self._nurseries.append(nursery)
        return self._owner.run.spawn_child(self._in(nursery, score))

    async def _in(self, nursery: Nursery, score: Score) -> tuple[float, Any]:
        current_world.set(nursery)
        began = self._owner.run.clock()
        try:
            result = await self._scored(score)
            self._owner.run.learner.step("best candidate").add(self._owner.run.clock() - began)
            return result
        finally:
            nursery.abandon()

    def usual_seconds(self) -> float | None:
        stats = self._owner.run.learner.step("best candidate")
        return stats.mean() if stats.seconds else None

    def close(self) -> None:
        for nursery in self._nurseries:
            nursery.abandon()


async def _number(score: float | Awaitable[float]) -> float:
    return float(await score if inspect.isawaitable(score) else score)


async def _search(
    launcher: _Outside, of: int, score: Score, stop: float | None, stagger: float | None
) -> Any:
    """Optional stopping over staggered draws; ties go to the earlier candidate."""
    tasks: list[asyncio.Task[tuple[float, Any]]] = []
    leader: tuple[float, int, Any] | None = None
    error: BaseException | None = None
    wait = stagger if stagger is not None else launcher.usual_seconds()

    def launch() -> None:
        if len(tasks) < of:
            tasks.append(launcher.launch(len(tasks), score))

    for _ in range(of if stop is None else 1):
        launch()
    waiting = set(tasks)
    try:
        while waiting:
            more_to_come = len(tasks) < of
            done, waiting = await asyncio.wait(
                waiting, timeout=wait if more_to_come else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in sorted(done, key=tasks.index):
                if task.exception() is not None:
                    error = task.exception()
                    continue
                value, candidate = task.result()
                if leader is None or value > leader[0]:
                    leader = (value, tasks.index(task), candidate)
            if leader is not None and stop is not None and leader[0] >= stop:
                break
            before = len(tasks)
            launch()
            waiting |= set(tasks[before:])
    finally:
        await _end(tasks)
    if leader is None:
        assert error is not None
        raise error
    return leader[2]


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.gather(*pending, return_exceptions=True)
