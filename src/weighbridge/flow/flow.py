"""`@flow`: an async function whose steps start when they are called, run side by side and end with it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, get_args, overload

from weighbridge.errors import BadInput
from weighbridge.flow.bets.guess import Bets
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.budget import Budget, Purse
from weighbridge.flow.hooks import Hook
from weighbridge.flow.journal.cache import StepCache
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.journal.json_values import return_type
from weighbridge.flow.report.explain import explain
from weighbridge.flow.report.record import Record
from weighbridge.flow.report.timeline import text
from weighbridge.flow.report.timeline_page import page
from weighbridge.flow.runtime import Diverged, FlowRun
from weighbridge.flow.slots import Slots
from weighbridge.flow.step import current_world

P = ParamSpec("P")
T = TypeVar("T")
Mode = Literal["sequential", "parallel", "speculate"]

#: What a second is worth to a flow that does not say: $3.60 an hour.
VALUE_PER_SECOND = 0.001


class Flow(Generic[P, T]):
    """Call it for a coroutine, or `run` it from synchronous code. Inside another flow it is a part of that.

    A flow learns over its runs (durations, hit rates, what bets bring); `last` is the record of the latest.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[T]],
        *,
        budget: Budget | None = None,
        value_per_second: float = VALUE_PER_SECOND,
        limits: Mapping[str, int] | None = None,
        mode: Mode = "speculate",
        journal: str | Path | None = None,
        run_id: str | None = None,
        name: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.function = function
        self.name = name or function.__qualname__.rsplit("<locals>.", 1)[-1]
        self.budget = budget or Budget()
        self.value_per_second = value_per_second
        self.limits = dict(limits or {})
        self.mode: Mode = mode
        self.journal = Path(journal) if journal is not None else None
        self.run_id = run_id
        self.hooks = tuple(hooks)
        self.learner = Learner()
        self.last: Record | None = None
        self._cache = StepCache()
        self._slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Slots]]
        self._slots = weakref.WeakKeyDictionary()
        self._check()
        functools.update_wrapper(self, function)

    def _check(self) -> None:
        if not inspect.iscoroutinefunction(self.function):
            raise BadInput(f"flow {self.name}: a flow must be an async function; make it `async def`")
        if self.mode not in get_args(Mode):
            raise BadInput(f"flow {self.name}: mode={self.mode!r} must be one of {', '.join(get_args(Mode))}")
        if not isinstance(self.budget, Budget):
            raise BadInput(f"flow {self.name}: budget={self.budget!r} must be a Budget, as Budget(usd=0.05)")
        if not isinstance(self.value_per_second, int | float) or not self.value_per_second >= 0.0:
            raise BadInput(
                f"flow {self.name}: value_per_second={self.value_per_second!r} is a number of dollars, 0 or more"
            )
        for resource, size in self.limits.items():
            if not isinstance(size, int) or size < 1:
                raise BadInput(f"flow {self.name}: limits[{resource!r}]={size!r} must be a number, 1 or more")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        if current_world.get() is not None:
            return cast("Coroutine[Any, Any, T]", self.function(*args, **kwargs))
        return self._execute(args, kwargs)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run to the end from synchronous code. Raises RuntimeError inside a running event loop: `await` it there."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self(*args, **kwargs))
        raise RuntimeError(f"flow {self.name}: run() is for synchronous code; here, `await {self.name}(...)`")

    def options(
        self,
        *,
        journal: str | Path | None = None,
        run_id: str | None = None,
        mode: Mode | None = None,
        budget: Budget | None = None,
    ) -> Flow[P, T]:
        """Return the same flow under other options; the two learn together.

        `journal`: an SQLite file that remembers runs. `run_id`: the run to start, or to resume where it was
        interrupted; the arguments must be those it began with.
        """
        other: Flow[P, T] = Flow(
            self.function,
            budget=budget or self.budget,
            value_per_second=self.value_per_second,
            limits=self.limits,
            mode=mode or self.mode,
            journal=journal or self.journal,
            run_id=run_id or self.run_id,
            name=self.name,
            hooks=self.hooks,
        )
        other.learner, other._cache = self.learner, self._cache
        other._slots = self._slots
        return other

    async def _execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        run_id = self.run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        if self.journal is None:
            return cast(T, await self._run(args, kwargs, self._new_record(run_id)).execute())
        with Journal(self.journal).open_run(self.name, run_id, args, kwargs) as journal:
            kind = return_type(self.function)
            while True:
                record = self._new_record(run_id)
                run = self._run(args, kwargs, record, journal)
                try:
                    return cast(T, await journal.execute(run.execute, kind, record, self.learner))
                except Diverged:
                    if not journal.goes_again():
                        raise

    def _new_record(self, run_id: str) -> Record:
        clock = asyncio.get_running_loop().time
        self.last = record = Record(self.name, run_id, self.mode, clock, clock())
        return record

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], record: Record, *keepers: Hook) -> FlowRun:
        """Compose a run. Hooks that may know a result or refuse a start come before those that only watch."""
        hooks: list[Hook] = [self._cache]
        if self.budget.usd is not None:
            hooks.append(Purse(self.budget.usd))
        hooks += [*keepers, record, self.learner]
        if self.mode == "speculate":
            price, budget = self.value_per_second, self.budget
            hooks.append(Bets(self.learner, record, value_per_second=price, budget=budget))
        run = FlowRun(
            self.name,
            record.run_id,
            lambda: self.function(*args, **kwargs),
            [*hooks, *self.hooks],
            sequential=self.mode == "sequential",
            budget=self.budget,
            slots=self._slots_here(),
            times=self.learner.step,
        )
        if self.mode == "speculate":
            self.learner.watch_servers(run)
        return run

    def _slots_here(self) -> dict[str, Slots]:
        """Limits hold for all runs of the flow on one event loop."""
        if not self.limits:
            return {}
        loop = asyncio.get_running_loop()
        slots = self._slots.get(loop)
        if slots is None:
            slots = self._slots[loop] = {name: Slots(size) for name, size in self.limits.items()}
        return slots

    def explain(self) -> str:
        """Return every bet of the last run in words: what the gate said and what came of it."""
        return explain(self._last())

    def timeline(self, width: int = 100) -> str:
        """Return the last run as text."""
        return text(self._last(), width)

    def timeline_html(self) -> str:
        """Return the last run as a page that needs nothing else."""
        return page(self._last())

    def _last(self) -> Record:
        if self.last is None:
            raise BadInput(f"flow {self.name} has not run yet")
        return self.last

    def __repr__(self) -> str:
        return f"<flow {self.name}>"


@overload
def flow(function: Callable[P, Awaitable[T]], /) -> Flow[P, T]: ...


@overload
def flow(
    *,
    budget: Budget | None = ...,
    value_per_second: float = ...,
    limits: Mapping[str, int] | None = ...,
    mode: Mode = ...,
    journal: str | Path | None = ...,
    run_id: str | None = ...,
    name: str | None = ...,
    hooks: Sequence[Hook] = ...,
) -> Callable[[Callable[P, Awaitable[T]]], Flow[P, T]]: ...


def flow(function: Callable[..., Awaitable[Any]] | None = None, /, **options: Any) -> Any:
    """Make an async function a flow.

    `budget`: see `Budget`. `value_per_second`: what a second saved is worth, in dollars (V of the gate).
    `limits`: how many steps of a resource run at once, over all runs of this flow. `mode`: sequential,
    parallel (no bets) or speculate. `journal`: an SQLite file that remembers runs. `hooks`: who else hears of what
    happens in a run (see `weighbridge.flow.hooks`).
    """
    if function is not None:
        return Flow(function, **options)
    return lambda target: Flow(target, **options)
