"""One run of a step's function, shared by every promise that asks for the same call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.promise import Promise
from weighbridge.flow.report.record import Span
from weighbridge.flow.step import NotDone, Step, current_execution

if TYPE_CHECKING:
    from weighbridge.flow.run import Run

#: Which attempt of a hedged call runs: 0 the first, 1 the second. A step that has several replicas of its
#: backend sends attempt n to replica n.
attempt: ContextVar[int] = ContextVar("weighbridge_flow_attempt", default=0)

FIRST_BACKOFF = 0.1  # seconds before the first retry; doubled each time
LONGEST_BACKOFF = 5.0


class StepTimeout(WeighbridgeError, TimeoutError):
    """A step took longer than its `timeout`."""


class Execution:
    """Runs in a task of its own from `start` until it ends or nobody holds a promise on it any more."""

    __slots__ = (
        "_stopped",
        "_task",
        "args",
        "committed",
        "done",
        "error",
        "finished_at",
        "handles",
        "in_doubt",
        "journal_key",
        "key",
        "kwargs",
        "on_commit",
        "preempted",
        "run",
        "span",
        "step",
        "value",
    )

    def __init__(
        self, run: Run, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: Hashable
    ) -> None:
        self.run = run
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.key = key
        self.handles: dict[Promise[Any], None] = {}
        self.committed = False  # a promise of the committed world stands for it
        self.on_commit: list[Callable[[], None]] = []
        self.done = False
        self.preempted = False
        self.in_doubt = False  # a write that may have happened before a crash
        self.journal_key: str | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished_at = 0.0
        self.span: Span | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False  # cancelled by us

    # -- who holds it ----------------------------------------------------------------------------------

    def claim(self, promise: Promise[Any]) -> None:
        """`promise` stands for this execution from now on."""
        promise.execution = self
        if promise.world.committed:
            self.commit()
        if self.done:
            promise.settle(self.value, self.error)
        else:
            self.handles[promise] = None

    def release(self, promise: Promise[Any]) -> None:
        """`promise` lets go; the last one to do so cancels what still runs.

        What a confirmed shadow left behind holds it for the committed world; once that has had it and let
        go, it counts no more.
        """
        self.handles.pop(promise, None)
        wanted = any(not one.inherited for one in self.handles) if self.committed else bool(self.handles)
        if not wanted and not self.done and self._task is not None:
            self._stopped = True
            self._task.cancel()

    def commit(self) -> None:
        """The committed world needs it: no longer a bet."""
        if not self.committed:
            self.committed = True
            if self.span is not None:
                self.span.committed = True
            callbacks, self.on_commit = self.on_commit, []
            for callback in callbacks:
                callback()

    def preempt(self) -> None:
        """Stop a speculative execution for want of its place; whoever needs the call later starts it anew."""
        self.preempted = self._stopped = True
        if self._task is not None:
            self._task.cancel()

    @property
    def usable(self) -> bool:
        """Whether another promise may stand for it: not when it was stopped, or failed while only a bet."""
        if self.done:
            return self.error is None or self.committed
        return not self._stopped

    # -- running ---------------------------------------------------------------------------------------

    def start(self) -> None:
        self.span = self.run.record.start(self)
        self._task = self.run.spawn(self._run())

    def finish_with(self, value: Any) -> None:
        """Known without running: from a journal or a cache."""
        self.done, self.value, self.finished_at = True, value, self.run.clock()

    async def _run(self) -> None:
        current_execution.set(self)
        run, span = self.run, self.span
        assert span is not None
        limiter = run.limiter_of(self.step)
        try:
            if limiter is not None:
                await limiter.acquire(self)
            span.started = run.record.now()
            if self.step.options.usd:
                run.charge(self, self.step.options.usd)
            try:
                value = await self._attempts()
            finally:
                if limiter is not None:
                    limiter.release(self)
        except asyncio.CancelledError as error:
            self._finish(None, error if self._stopped or self.run.closing else _cancelled_itself(self.step))
        except Exception as error:
            self._finish(None, error)
        else:
            self._finish(value, None)

    async def _attempts(self) -> Any:
        options = self.step.options
        if self.in_doubt and options.settle is not None:
            try:
                return await options.settle(*self.args, **self.kwargs)
            except NotDone:
                pass  # it did not happen: now it does
        if not (options.timeout or options.retries or options.hedge):
            return await self.step.function(*self.args, **self.kwargs)
        for count in range(options.retries + 1):
            try:
                return await (self._hedged() if options.hedge else self._once(0))
            except Exception as error:
                if count == options.retries or not _worth_retrying(self.step, error):
                    raise
            await asyncio.sleep(min(FIRST_BACKOFF * 2**count, LONGEST_BACKOFF))
        raise AssertionError("unreachable")

    async def _once(self, number: int) -> Any:
        attempt.set(number)
        seconds = self.step.options.timeout
        if seconds is None:
            return await self.step.function(*self.args, **self.kwargs)
        try:
            async with asyncio.timeout(seconds):
                return await self.step.function(*self.args, **self.kwargs)
        except TimeoutError as error:
            if isinstance(error, StepTimeout):
                raise
            raise StepTimeout(
                f"step {self.step.name} took longer than its timeout of {seconds:g} s"
            ) from error

    async def _hedged(self) -> Any:
        """Launch a second attempt when the first is slower than most, if the budget for that allows it."""
        stats = self.run.learner.step(self.step.name)
        delay = stats.hedge_delay(self.step.options.hedge)
        tasks = [self.run.spawn_child(self._once(0))]
        try:
            if delay is not None:
                await asyncio.wait(tasks, timeout=delay)
                if not tasks[0].done() and stats.take_hedge():
                    self.run.record.hedged(self, delay)
                    tasks.append(self.run.spawn_child(self._once(1)))
            return await first_success(tasks)
        finally:
            await self.run.reap(tasks)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self.done, self.value, self.error = True, value, error
        self.finished_at = self.run.clock()
        self.run.finished(self)
        handles, self.handles = list(self.handles), {}
        if self.preempted:
            return  # the shadows that wait for it stay parked
        for promise in handles:
            promise.settle(value, error)


def charge(usd: float) -> None:
    """Inside a step: it has cost so many dollars (more). Counts towards the flow's budget; ignored elsewhere."""
    execution = current_execution.get()
    if execution is not None:
        execution.run.charge(execution, usd)


def _worth_retrying(step: Step[..., Any], error: Exception) -> bool:
    """A write's effect may have happened unless it says otherwise; a mistake in the call stays one."""
    if step.writes:
        return isinstance(error, NotDone)
    if step.options.retry_on is not None:
        return step.options.retry_on(error)
    return not isinstance(error, BadInput | TypeError)


def _cancelled_itself(step: Step[..., Any]) -> WeighbridgeError:
    return WeighbridgeError(f"step {step.name} was cancelled from inside; raise an error instead")


async def first_success(tasks: list[asyncio.Task[Any]]) -> Any:
    """The result of the first task that succeeds; the last error when none does."""
    waiting = set(tasks)
    error: BaseException | None = None
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=tasks.index):
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                return task.result()
    raise error if error is not None else asyncio.CancelledError
