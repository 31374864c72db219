"""`best`: several candidates for one answer, started one after the other, stopped when one is good enough."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

from weighbridge.errors import BadInput
from weighbridge.flow.runtime import Execution, Promise, World, this_execution, this_world
from weighbridge.flow.step import Options, Step, current_world

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
    """Return the candidate with the highest score among `of` draws of `candidate()`.

    The first starts at once, the next whenever one has been scored below `stop` or `stagger` seconds have
    passed (by default: the usual time of a candidate). A score of `stop` or more ends the search and the
    rest are cancelled. Without `stop` all are started at once. `score` may be a step. Candidates that raise
    drop out; when all do, the last error is raised. Candidates are thrown away, so that they and the score
    may not write. Raises BadInput for of < 1.
    """
    if of < 1:
        raise BadInput(f"best: of={of} must be at least 1")
    world = this_world()
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


#: `best` is a step itself: shared between worlds, journaled and cancelled as a whole.
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
    """Candidates in worlds of their own, so that each draw is a draw of its own and ends with the search."""

    def __init__(self, candidate: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(candidate)
        execution = this_execution()
        assert execution is not None
        self._owner = execution
        self._run = execution.run
        self._times = self._run.times("best candidate")
        self._worlds: list[TrialWorld] = []

    def launch(self, number: int, score: Score) -> asyncio.Task[tuple[float, Any]]:
        used = self._run.executions[self._owner.key].index(self._owner)
        world = TrialWorld(self._owner, (self._owner.key, used, number))
        self._worlds.append(world)
        return self._run.nursery.spawn_child(self._in(world, score))

    async def _in(self, world: TrialWorld, score: Score) -> tuple[float, Any]:
        current_world.set(world)
        began = self._run.clock()
        try:
            result = await self._scored(score)
            self._times.add(self._run.clock() - began)
            return result
        finally:
            world.abandon()

    def usual_seconds(self) -> float | None:
        return self._times.mean() if self._times.seconds else None

    def close(self) -> None:
        for world in self._worlds:
            world.abandon()


class TrialWorld(World):
    """The inside of a candidate, which may be thrown away, so that it may not change anything."""

    bettable = False
    reported = False  # what happens inside a step is not journaled; its result is

    def __init__(self, owner: Execution, path: Hashable) -> None:
        super().__init__(owner.run)
        self.path = path
        self._withheld: list[Promise[Any]] = []
        self.committed = owner.committed
        if not owner.committed:
            owner.on_commit.append(self._commit)

    def _commit(self) -> None:
        self.committed = True
        for promise in list(self.handles):
            if promise.execution is not None:
                promise.execution.commit()
        withheld, self._withheld = self._withheld, []
        for promise in withheld:
            self.arm(promise)

    def check_allowed(self, step: Step[..., Any]) -> None:
        if step.writes:
            raise BadInput(
                f"best throws candidates away, so that {step.name} (effect {step.options.effect!r}) "
                "must not run inside it; call it afterwards, with the chosen result"
            )

    def called(self, promise: Promise[Any]) -> None:
        if self.committed or promise.step.may_speculate:
            self.arm(promise)
        else:
            self._withheld.append(promise)


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
